package wasmhost

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Turns go round in the order in which they were asked for.
func TestGateIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		var order []int
		var wg sync.WaitGroup
		if err := g.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			wg.Go(func() {
				time.Sleep(time.Duration(i+1) * time.Millisecond)
				if err := g.acquire(t.Context()); err != nil {
					t.Error(err)
				}
				for range 2 {
					order = append(order, i)
					if err := g.yield(t.Context()); err != nil {
						t.Error(err)
					}
				}
				g.release()
			})
		}
		time.Sleep(10 * time.Millisecond)
		g.release()
		wg.Wait()
		want := []int{0, 1, 2, 0, 1, 2}
		for i := range want {
			if len(order) != len(want) || order[i] != want[i] {
				t.Fatalf("got %v, want %v", order, want)
			}
		}
		if g.free != 1 || len(g.waiting) != 0 {
			t.Errorf("%d free, %d waiting", g.free, len(g.waiting))
		}
	})
}

// Who gives up waiting neither keeps a turn nor loses one for the others.
func TestGateCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		if err := g.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := g.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := g.acquire(t.Context()); err != nil {
				t.Error(err)
			}
			if err := g.yield(ctx); err == nil { // the context is over, but the turn may come first
				g.release()
			}
		})
		time.Sleep(2 * time.Second)
		if err := g.yield(t.Context()); err != nil {
			t.Error(err)
		}
		g.release()
		wg.Wait()
		if g.free != 1 || len(g.waiting) != 0 {
			t.Errorf("%d free, %d waiting", g.free, len(g.waiting))
		}
	})
}

// A spinning component leaves the others their share, and their turns do not count against its deadline.
func TestGateSharesWithSpinner(t *testing.T) {
	gate := NewGate(1)
	r := newTestRuntime(t, Config{Gate: gate})
	s := newTestSnapshot(t, r, Options{Deadline: 150 * time.Millisecond})
	spinner, other, echo := newTestInstance(t, s), newTestInstance(t, s), newTestInstance(t, s)
	var wg sync.WaitGroup
	begin := time.Now()
	for _, in := range []*Instance{spinner, other} {
		wg.Go(func() {
			res, err := in.Call(t.Context(), batch("p"))
			if err != nil || show(res) != "0!deadline done=1" {
				t.Errorf("%s, %v", show(res), err)
			}
			if res.Elapsed > 280*time.Millisecond {
				t.Errorf("ran %v of its 150 ms", res.Elapsed)
			}
		})
	}
	calls := 0
	for ; time.Since(begin) < 250*time.Millisecond; calls++ {
		if _, err := echo.Call(t.Context(), batch("e")); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if took := time.Since(begin); took < 280*time.Millisecond {
		t.Errorf("two spinners with 150 ms each, one turn: done after %v", took)
	}
	if calls < 10 {
		t.Errorf("the third got %d calls through in 250 ms", calls)
	}
	if gate.free != 1 {
		t.Errorf("%d turns left", gate.free)
	}
}
