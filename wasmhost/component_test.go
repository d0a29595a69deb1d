package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
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

// Records behind one that ended its instance see the table changes of those before it, because the caller comes in between:
// each call makes progress, and in the end every record has ended as it does without tables, with its changes once.
func TestComponentTables(t *testing.T) {
	program := testProgram("")
	program.Tables = []abi.Table{{Name: "t"}}
	for _, test := range []struct{ name, values, want, calls string }{
		{"well", "u1 u2 u3", "0:u1 1:u2 2:u3 done=3", "3"},
		{"raises", "u1 f u3", "0:u1 1!code 2:u3 done=3", "3"},
		{"trap", "u1 t u3", "0:u1 1!trap 2:u3 done=3", "1 1 1"},
		{"trap first", "t u2", "0!trap 1:u2 done=2", "1 1"},
		{"innocent trap", "u1 T u3", "0:u1 1:T 2:u3 done=3", "1 2"},
		{"deadline", "u1 l u3", "0:u1 1!deadline 2:u3 done=3", "2 1"},
		{"polite deadline", "u1 p u3", "0:u1 1!deadline 2:u3 done=3", "3"},
		{"memory error", "u1 N u3", "0:u1 1!memory 2:u3 done=3", "1 2"},
		{"innocent memory error", "u1 M u3", "0:u1 1:M 2:u3 done=3", "1 2"},
		{"protocol", "u1 o u3", "0:u1 1!trap 2:u3 done=3", "1 1 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := newTestRuntime(t, Config{}).Load(t.Context(), program, Options{Deadline: 60 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			c := NewComponent(s, 1)
			defer c.Close()
			b := batch(strings.Fields(test.values)...)
			var all record.Result
			var calls []string
			for all.Done < len(b.Records) {
				first := all.Done
				res, err := c.Call(t.Context(), 0, &record.Batch{Records: b.Records[first:]})
				if err != nil || res.Done == 0 {
					t.Fatalf("after %s: %s, %v", show(all), show(res), err)
				}
				calls = append(calls, fmt.Sprint(res.Done))
				merge(&all, &res, int32(first))
			}
			if show(all) != test.want {
				t.Errorf("got  %s\nwant %s", show(all), test.want)
			}
			if got := strings.Join(calls, " "); got != test.calls {
				t.Errorf("done in calls of %s, want %s", got, test.calls)
			}
			var changed []int32
			for _, ch := range all.Changes {
				changed = append(changed, ch.Record)
			}
			var want []int32
			for i, v := range strings.Fields(test.values) {
				if v[0] == 'u' {
					want = append(want, int32(i))
				}
			}
			if !slices.Equal(changed, want) {
				t.Errorf("changes of records %v, want %v", changed, want)
			}
		})
	}
}

// The same when it is not known which record ended the instance: half of the batch runs in a new one, and is to be applied first.
func TestComponentTablesUnknownRecord(t *testing.T) {
	program := testProgram("")
	program.Tables = []abi.Table{{Name: "t"}}
	s, err := newTestRuntime(t, Config{}).Load(t.Context(), program, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := NewComponent(s, 1)
	defer c.Close()
	for _, step := range []struct{ values, want string }{
		{"e", "0:e done=1"},
		{"i u2 u3 u4", "0:i 1:u2 done=2"},
	} {
		if res, err := c.Call(t.Context(), 0, batch(strings.Fields(step.values)...)); err != nil || show(res) != step.want {
			t.Errorf("%s: got %s, %v, want %s", step.values, show(res), err, step.want)
		}
	}
}

// merge adds a Result whose batch began at record first.
func merge(all, res *record.Result, first int32) {
	for _, o := range res.Outputs {
		o.Record += first
		all.Outputs = append(all.Outputs, o)
	}
	for _, c := range res.Changes {
		c.Record += first
		all.Changes = append(all.Changes, c)
	}
	for _, f := range res.Failures {
		f.Record += first
		all.Failures = append(all.Failures, f)
	}
	all.Done += res.Done
}

// What an instance remembers of tables is used only when the caller says so and every result was taken: a list that is thrown away
// and halved must not leave its changes in the instance's memory.
func TestComponentCacheValid(t *testing.T) {
	program := testProgram("")
	program.Tables = []abi.Table{{Name: "t"}}
	s, err := newTestRuntime(t, Config{Tick: 200 * time.Millisecond}).Load(t.Context(), program, Options{})
	if err != nil {
		t.Fatal(err)
	}
	c := NewComponent(s, 1)
	defer c.Close()
	for i, step := range []struct {
		values    string
		partition int32
		take      bool
		want      string
	}{
		{"v", 0, false, "0:1 done=1"},
		{"v v", 1, true, "0:1 0:1 done=2"},
		{"v k v", 0, true, "0:0 done=1"}, // the whole list ran with 1, and was thrown away
		{"v", 0, false, "0:1 done=1"},
		{"v", 1, false, "0:1 done=1"},
		{"v t", 0, false, "0:1 done=1"},
		{"t", 0, false, "0!trap done=1"},
		{"v", 0, false, "0:1 done=1"}, // a new instance remembers nothing
	} {
		b := batch(strings.Fields(step.values)...)
		b.Take, b.StopOnFailure, b.CacheValid = step.take, step.take, 1
		for j := range b.Records {
			b.Records[j].Partition = step.partition
		}
		if res, err := c.Call(t.Context(), 0, b); err != nil || show(res) != step.want {
			t.Errorf("%d: got %s, %v, want %s", i, show(res), err, step.want)
		}
	}
	// Between a list that was thrown away and the next attempt the engine may stop.
	ctx, cancel := context.WithCancel(t.Context())
	c.snapshot.program.Host = cancelOnLog{&fakeHost{}, cancel}
	b := batch("L", "k")
	b.Take, b.StopOnFailure, b.CacheValid = true, true, 1
	if res, err := c.Call(ctx, 0, b); !errors.Is(err, context.Canceled) || res.Done != 0 {
		t.Fatalf("%s, %v", show(res), err)
	}
	b = batch("v")
	b.CacheValid = 1
	for _, want := range []string{"0:0 done=1", "0:1 done=1"} {
		if res, err := c.Call(t.Context(), 0, b); err != nil || show(res) != want {
			t.Errorf("after the stop: %s, %v, want %s", show(res), err, want)
		}
	}
}

type cancelOnLog struct {
	*fakeHost
	cancel func()
}

func (h cancelOnLog) Log(int, string) { h.cancel() }

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

// A record that has sent something and is run again, or left, sends it twice: whoever can must be told to take that back. One that is alone in a
// new instance does not.
func TestSentAndRunAgain(t *testing.T) {
	for _, test := range []struct {
		values   []string
		fresh    bool
		want     string
		sent     int
		repeated bool
	}{
		{[]string{"echo", "S", "echo"}, false, "0:echo 1:{\"offset\":7} 2:echo done=3", 1, false},
		{[]string{"echo", "B", "echo"}, false, "0:echo 1:B 2:echo done=3", 2, true},
		{[]string{"S", "T"}, false, "0:{\"offset\":7} 1:T done=2", 1, false}, // the one that is run again has sent nothing
		{[]string{"B"}, true, "0:B done=1", 1, false},
	} {
		host := &fakeHost{}
		c, _ := newTestComponent(t, Options{Host: host})
		if _, err := c.Call(t.Context(), 0, batch("echo")); err != nil {
			t.Fatal(err)
		}
		b := batch(test.values...)
		b.Fresh = test.fresh
		res, err := c.Call(t.Context(), 0, b)
		if got := show(res); err != nil || got != test.want || len(host.sent) != test.sent || res.Repeated != test.repeated {
			t.Errorf("%v: %s, sent %d, repeated %v, %v", test.values, got, len(host.sent), res.Repeated, err)
		}
	}
}
