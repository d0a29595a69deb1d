package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/wasmhost"
)

// dev runs the manifests on an embedded broker, again after every change until it is told to stop; with Drain once.
func (c *command) dev(ctx context.Context, paths []string, o dev.Options) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	read := func() project {
		layers := config.Read(config.Sources{Offline: true, Environ: c.streams.Environ, Dir: dir, Flags: c.flags})
		return read(paths, layers, layers.Early().App, dev.Adapt)
	}
	p := read()
	bad := c.report(append(p.problems, p.together(o.HTTP)...))
	if bad && o.Drain {
		return errReported
	}
	o.Log = c.logger(p.cfg)
	partitions := 1 // of topics that nobody made
	for _, a := range p.apps {
		partitions = max(partitions, a.cfg.Topics.Partitions)
	}
	broker, err := dev.NewBroker(partitions)
	if err != nil {
		return err
	}
	defer broker.Close()
	rt, err := newRuntime(ctx, p.cfg, o.Log)
	if err != nil {
		return err
	}
	defer rt.Close()
	if o.Drain {
		return c.devOnce(ctx, broker, p, rt, o)
	}
	watch, err := newWatch(paths, c.streams.Err)
	if err != nil {
		return err
	}
	defer watch.Close()
	for {
		runCtx, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		if bad {
			ended <- errReported
		} else {
			go func() { ended <- c.devOnce(runCtx, broker, p, rt, o) }()
		}
		changed, running, err := watch.wait(ctx, ended)
		cancel()
		if running {
			err = <-ended
		}
		if !changed {
			return err
		}
		o.Log.Info("manifests changed, reloading")
		p = read()
		bad = c.report(append(p.problems, p.together(o.HTTP)...))
	}
}

func (c *command) devOnce(ctx context.Context, b *dev.Broker, p project, rt *wasmhost.Runtime, o dev.Options) error {
	apps, err := p.withWork(o.Log)
	if err != nil {
		return err
	}
	var run []dev.App
	for _, a := range apps {
		run = append(run, dev.App{Config: a.cfg, Plan: a.plan})
	}
	err = dev.Run(ctx, b, run, rt, o)
	if c.reportCode(ctx, p, rt, err) {
		return errReported
	}
	return err
}

// watch tells of changes below the manifests' paths.
type watch struct {
	*fsnotify.Watcher
	errs io.Writer
}

func newWatch(paths []string, errs io.Writer) (*watch, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch manifests: %w", err)
	}
	for _, p := range paths {
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				return w.Add(path)
			}
			if path == p {
				return w.Add(filepath.Dir(path)) // editors replace files: the folder sees it, the file's watch does not
			}
			return nil
		})
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("watch %s: %w", p, err)
		}
	}
	return &watch{w, errs}, nil
}

// settleTime lets an editor or a git checkout finish writing before the manifests are read again.
const settleTime = 200 * time.Millisecond

// wait returns with changed after a change of the manifests, and without it when ctx ends or the run ended well; running
// says that the run has still to be ended and waited for. A run that failed waits for a repair.
func (w *watch) wait(ctx context.Context, ended <-chan error) (changed, running bool, err error) {
	var quiet <-chan time.Time
	running = true
	for {
		select {
		case err = <-ended:
			running, ended = false, nil
			if err == nil || ctx.Err() != nil {
				return false, false, err
			}
			if !errors.Is(err, errReported) {
				fmt.Fprintln(w.errs, "kaspr: "+err.Error())
			}
			fmt.Fprintln(w.errs, "waiting for the manifests to change")
		case <-ctx.Done():
			return false, running, err
		case ev := <-w.Events:
			if ext := filepath.Ext(ev.Name); ext == ".yaml" || ext == ".yml" {
				quiet = time.After(settleTime)
			} else if ev.Has(fsnotify.Create) {
				if st, err := os.Stat(ev.Name); err == nil && st.IsDir() {
					_ = w.Add(ev.Name) // a folder that vanishes at once needs no watch
				}
			}
		case err := <-w.Errors:
			fmt.Fprintln(w.errs, "kaspr: watch manifests: "+err.Error())
		case <-quiet:
			return true, running, nil
		}
	}
}
