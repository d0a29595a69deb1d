package state

import "sync/atomic"

// A gate counts the calls that are inside a database, so that Close can wait for them: no lock is held across cgo.
type gate struct {
	n    atomic.Int64  // calls inside, plus gateShut once it is shut
	idle chan struct{} // closed when it is shut and the last call left
}

const gateShut = int64(1) << 62

func newGate() *gate { return &gate{idle: make(chan struct{})} }

// enter begins a call; false when the gate is shut.
func (g *gate) enter() bool {
	for {
		n := g.n.Load()
		if n >= gateShut {
			return false
		}
		if g.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *gate) leave() {
	if g.n.Add(-1) == gateShut {
		close(g.idle)
	}
}

// shut lets nobody in any more and waits until all have left. Only the first caller gets true.
func (g *gate) shut() bool {
	for {
		n := g.n.Load()
		if n >= gateShut {
			<-g.idle
			return false
		}
		if g.n.CompareAndSwap(n, n+gateShut) {
			if n == 0 {
				close(g.idle)
			}
			<-g.idle
			return true
		}
	}
}
