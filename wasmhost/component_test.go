package wasmhost

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Every record ends in outputs or in a failure, in order, whatever the ones beside it do.
func TestComponent(t *testing.T) {
	c, _ := newTestComponent(t, Options{Deadline: 60 * time.Millisecond})
	for _, test := range []struct{ name, values, want string }{
		{"well", "e1 e2 e3", "0:e1 1:e2 2:e3 done=3"},
		{"raises", "e1 f e3", "0:e1 1!code 2:e3 done=3"},
		{"trap first", "t e2 e3", "0!trap 1:e2 2:e3 done=3"},
		{"trap in the middle", "e1 t e3", "0:e1 1!trap 2:e3 done=3"},
		{"trap last", "e1 e2 t", "0:e1 1:e2 2!trap done=3"},
		{"traps only", "t t t", "0!trap 1!trap 2!trap done=3"},
		{"innocent trap", "e1 T e3", "0:e1 1:T 2:e3 done=3"}, // only traps where others ran before
		{"deadline", "e1 l e3 l", "0:e1 1!deadline 2:e3 3!deadline done=4"},
		{"polite deadline", "e1 p e3", "0:e1 1!deadline 2:e3 done=3"},
		{"memory bomb", "e1 m e3", "0:e1 1!memory 2:e3 done=3"},
		{"memory error", "e1 N e3", "0:e1 1!memory 2:e3 done=3"},
		{"memory error first", "N e2", "0!memory 1:e2 done=2"},
		{"innocent memory error", "e1 M e3 M e5", "0:e1 1:M 2:e3 3:M 4:e5 done=5"},
		{"more memory errors than reruns", "N N N N N N N e", "0!memory 1!memory 2!memory 3!memory 4!memory 5!memory 6!memory 7:e done=8"},
		{"exit", "e1 x e3", "0:e1 1!trap 2:e3 done=3"},
		{"recursion", "e1 r e3", "0:e1 1!trap 2:e3 done=3"},
		{"protocol", "e1 o e3", "0:e1 1!trap 2:e3 done=3"},
		{"all of it", "e1 t f l x e6 m p e9", "0:e1 1!trap 2!code 3!deadline 4!trap 5:e6 6!memory 7!deadline 8:e9 done=9"},
		{"none", "", "done=0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			res, err := c.Call(t.Context(), 0, batch(strings.Fields(test.values)...))
			if err != nil || show(res) != test.want {
				t.Errorf("%v\ngot  %s\nwant %s", err, show(res), test.want)
			}
			stop := batch(strings.Fields(test.values)...)
			stop.StopOnFailure = true
			res, err = c.Call(t.Context(), 0, stop)
			if want := upToFailure(test.want); err != nil || show(res) != want {
				t.Errorf("stop on failure: %v\ngot  %s\nwant %s", err, show(res), want)
			}
		})
	}
	if c.Stats().Retries.Load() == 0 || c.Stats().Restores.Load() == 0 || c.Stats().Traps.Load() == 0 ||
		c.Stats().MemoryHits.Load() == 0 || c.Stats().Deadlines.Load() == 0 {
		t.Errorf("%+v", c.Stats())
	}
}

// upToFailure cuts what show wrote behind the first failure.
func upToFailure(shown string) string {
	parts := strings.Fields(shown)
	for i, part := range parts {
		if record, _, failed := strings.Cut(part, "!"); failed {
			done := "done=" + string(record[0]+1)
			return strings.Join(append(parts[:i+1:i+1], done), " ")
		}
	}
	return shown
}

// A list that fails is cut down to the records that fail; the others are processed.
func TestComponentTake(t *testing.T) {
	c, _ := newTestComponent(t, Options{Deadline: 40 * time.Millisecond})
	for _, test := range []struct{ name, values, want, stop string }{
		{"well", "e1 e2 e3", "0:e1 0:e2 0:e3 done=3", "0:e1 0:e2 0:e3 done=3"},
		{"one raises", "e1 e2 f e4 e5", "0:e1 0:e2 2!code 3:e4 3:e5 done=5", "0:e1 0:e2 2!code done=3"},
		{"all raise", "f f f", "0!code 1!code 2!code done=3", "0!code done=1"},
		{"trap", "e1 e2 e3 t", "0:e1 0:e2 2:e3 3!trap done=4", "0:e1 0:e2 2:e3 3!trap done=4"},
		{"deadline", "l e2 e3 e4", "0!deadline 1:e2 2:e3 2:e4 done=4", "0!deadline done=1"},
		{"memory", "e1 N m e4", "0:e1 1!memory 2!memory 3:e4 done=4", "0:e1 1!memory done=2"},
		{"exit", "x e2", "0!trap 1:e2 done=2", "0!trap done=1"},
		{"none", "", "done=0", "done=0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := batch(strings.Fields(test.values)...)
			b.Take = true
			if res, err := c.Call(t.Context(), 0, b); err != nil || show(res) != test.want {
				t.Errorf("%v\ngot  %s\nwant %s", err, show(res), test.want)
			}
			b.StopOnFailure = true
			if res, err := c.Call(t.Context(), 0, b); err != nil || show(res) != test.stop {
				t.Errorf("stop on failure: %v\ngot  %s\nwant %s", err, show(res), test.stop)
			}
		})
	}
	// A list that trapped because of what an earlier call left runs again whole.
	if _, err := c.Call(t.Context(), 1, batch("e")); err != nil {
		t.Fatal(err)
	}
	b := batch("T", "e")
	b.Take = true
	if res, err := c.Call(t.Context(), 1, b); err != nil || show(res) != "0:T 0:e done=2" {
		t.Errorf("%s, %v", show(res), err)
	}
}

// An instance keeps its state from call to call, and loses it when it holds too much memory or ends.
func TestComponentState(t *testing.T) {
	c, _ := newTestComponent(t, Options{})
	counts := func(values ...string) string {
		t.Helper()
		res, err := c.Call(t.Context(), 0, batch(values...))
		if err != nil {
			t.Fatal(err)
		}
		return show(res)
	}
	for _, step := range []struct{ value, want string }{
		{"c", "0:1 done=1"},
		{"c", "0:2 done=1"},
		{"f", "0!code done=1"},
		{"c", "0:4 done=1"},
		{"p", "0!deadline done=1"},
		{"c", "0:6 done=1"},
		{"g4", "0:g4 done=1"}, // MiB, of 16: kept
		{"c", "0:8 done=1"},
		{"g8", "0:g8 done=1"}, // past three quarters
		{"c", "0:1 done=1"},
		{"t", "0!trap done=1"},
		{"c", "0:1 done=1"},
	} {
		if got := counts(step.value); got != step.want {
			t.Errorf("%s: got %s, want %s", step.value, got, step.want)
		}
	}
	if res, err := c.Call(t.Context(), 1, batch("c")); err != nil || show(res) != "0:1 done=1" {
		t.Errorf("slots share state: %s, %v", show(res), err)
	}
	if c.MemoryBytes() < 2*c.snapshot.Bytes() {
		t.Errorf("%d bytes for two instances of %d", c.MemoryBytes(), c.snapshot.Bytes())
	}
}

// What was finished before the engine had to stop is not lost, and nobody is blamed.
func TestComponentCancelled(t *testing.T) {
	c, _ := newTestComponent(t, Options{Deadline: time.Minute})
	for _, take := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		b := batch("e1", "t", "e3", "l", "e5")
		want := "0:e1 1!trap 2:e3 done=3"
		if b.Take = take; take {
			want = "0:e1 1!trap done=2"
		}
		res, err := c.Call(ctx, 0, b)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || show(res) != want {
			t.Errorf("take %v: %v, %s", take, err, show(res))
		}
	}
	if res, err := c.Call(t.Context(), 0, batch("e")); err != nil || show(res) != "0:e done=1" {
		t.Errorf("afterwards: %s, %v", show(res), err)
	}
}

func TestComponentFailureTexts(t *testing.T) {
	c, _ := newTestComponent(t, Options{})
	res, err := c.Call(t.Context(), 0, batch("t", "m", "x", "r", "l"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct{ kind, text string }{
		{"Trap", "the instance trapped: unreachable"},
		{"MemoryError", "the instance reached its memory limit of 16 MiB: unreachable"},
		{"SystemExit", "the instance exited: exit code 3"},
		{"StackOverflow", "the instance's stack overflowed"},
		{"DeadlineExceeded", "the unit ran past its deadline: 200ms"},
	} {
		f := res.Failures[i]
		if f.Type != want.kind || !strings.HasPrefix(f.Message, want.text) || f.Operation != `operation "enrich"` {
			t.Errorf("%d: %+v", i, f)
		}
		if f.Kind == record.FailureDeadline && !strings.Contains(f.Traceback, "agents/orders.yaml:42, in enrich") {
			t.Errorf("%d: traceback %q", i, f.Traceback)
		}
	}
}

// Two workers in one slot would corrupt an instance: that is a bug worth stopping for.
func TestComponentSlotBusy(t *testing.T) {
	c, _ := newTestComponent(t, Options{})
	running := make(chan struct{})
	c.snapshot.program.Host.(*fakeHost).send = func(context.Context, record.Output) ([]byte, error) {
		close(running)
		time.Sleep(50 * time.Millisecond)
		return []byte("{}"), nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = c.Call(context.Background(), 0, batch("S"))
	}()
	<-running
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a second call in a busy slot")
			}
		}()
		_, _ = c.Call(t.Context(), 0, batch("e"))
	}()
	<-done
}
