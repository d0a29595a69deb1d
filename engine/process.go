package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Process is the apps that run in one process, each with its group, its stores and its HTTP server. They share the sandbox's runtime.
//
// An app that stops does not stop the others, and is not passed over: the log says so, none of the others is ready any more, and Run
// ends with its error.
type Process struct {
	apps []*App

	mu    sync.Mutex
	ended map[*App]error // guarded by mu; why, or nil: it was told to
}

// NewProcess puts apps together that do not run yet.
func NewProcess(apps ...*App) *Process {
	p := &Process{apps: apps, ended: map[*App]error{}}
	for _, a := range apps {
		a.process = p
	}
	return p
}

// Run runs all apps until ctx ends or each has stopped. The error says why they stopped, nil after ctx.
func (p *Process) Run(ctx context.Context) error {
	errs := make([]error, len(p.apps))
	var running sync.WaitGroup
	for i, a := range p.apps {
		running.Go(func() {
			err := a.Run(ctx)
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				err = nil // told to stop before it had begun
			}
			p.mu.Lock()
			p.ended[a] = err
			left := len(p.apps) - len(p.ended)
			p.mu.Unlock()
			if err != nil && len(p.apps) > 1 {
				err = fmt.Errorf("app %q: %w", a.plan.App.Name, err)
				a.log.Error("the app has stopped", "err", err, "apps that go on", left)
			}
			errs[i] = err
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// Close frees what apps hold that were not run.
func (p *Process) Close() {
	for _, a := range p.apps {
		a.Close()
	}
}

// Running is the apps that have not ended.
func (p *Process) Running() (apps []*App) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.apps {
		if _, ended := p.ended[a]; !ended {
			apps = append(apps, a)
		}
	}
	return apps
}

// unready says which app besides one does not do all of its work, and why; empty when they all do.
func (p *Process) unready(besides *App) string {
	for _, a := range p.apps {
		if a == besides {
			continue
		}
		p.mu.Lock()
		err, ended := p.ended[a]
		p.mu.Unlock()
		if ended {
			return fmt.Sprintf("app %q of this process has stopped: %v", a.plan.App.Name, err)
		}
		var feeds []feedState
		if a.seen.running.Load() {
			feeds = a.feedStates()
		}
		if _, why := a.state(feeds); why != "" {
			return fmt.Sprintf("app %q of this process: %s", a.plan.App.Name, why)
		}
	}
	return ""
}
