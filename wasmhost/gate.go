package wasmhost

import (
	"context"
	"sync"
)

// Gate gives out a fixed number of turns, first come first served. A call holds a turn while its guest computes and
// hands it over at a tick when others wait, so a spinning guest leaves the others their share.
type Gate struct {
	mu      sync.Mutex
	free    int             // guarded by mu
	waiting []chan struct{} // guarded by mu; a turn is handed over by closing the channel at the front
}

// NewGate returns a Gate of n turns, at least one.
func NewGate(n int) *Gate {
	return &Gate{free: max(n, 1)}
}

// acquire waits for a turn. A nil Gate has turns without end.
func (g *Gate) acquire(ctx context.Context) error {
	if g == nil {
		return ctx.Err()
	}
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return nil
	}
	turn := g.enqueue()
	g.mu.Unlock()
	return g.wait(ctx, turn)
}

// release gives the turn back, to the first who waits.
func (g *Gate) release() {
	if g == nil {
		return
	}
	g.mu.Lock()
	g.pass()
	g.mu.Unlock()
}

// yield hands the turn over if somebody waits and gets in line again. It reports whether the caller holds a turn
// afterwards; it does not only when ctx ended.
func (g *Gate) yield(ctx context.Context) error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	if len(g.waiting) == 0 {
		g.mu.Unlock()
		return nil
	}
	turn := g.enqueue()
	g.pass()
	g.mu.Unlock()
	return g.wait(ctx, turn)
}

// wait returns once turn was handed over, or with ctx's error and without a turn.
func (g *Gate) wait(ctx context.Context, turn chan struct{}) error {
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.waiting {
		if w == turn {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return ctx.Err()
		}
	}
	g.pass() // the turn came at the same moment
	return ctx.Err()
}

// enqueue and pass are called with mu held.
func (g *Gate) enqueue() chan struct{} {
	turn := make(chan struct{})
	g.waiting = append(g.waiting, turn)
	return turn
}

func (g *Gate) pass() {
	if len(g.waiting) == 0 {
		g.free++
		return
	}
	turn := g.waiting[0]
	copy(g.waiting, g.waiting[1:])
	g.waiting = g.waiting[:len(g.waiting)-1]
	close(turn)
}
