package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

func TestCall(t *testing.T) {
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{}))
	b := batch("echo", "dynamic", "fail", "", "echo again")
	b.Records[0].Key = nil
	res, err := in.Call(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := show(res), "0:echo 1:dynamic 2!code 3: 4:echo again done=5"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if res.Outputs[0].Topic != "out" || res.Outputs[0].Key != nil || res.Outputs[1].Topic != "made-up" || res.Outputs[2].Value == nil {
		t.Errorf("%+v", res.Outputs)
	}
	if res.Elapsed <= 0 {
		t.Errorf("elapsed %v", res.Elapsed)
	}
	stats := in.program.stats
	if stats.Calls.Load() != 1 || stats.Records.Load() != 5 || stats.WasmTime() != res.Elapsed {
		t.Errorf("calls %d records %d time %v", stats.Calls.Load(), stats.Records.Load(), stats.WasmTime())
	}

	b.StopOnFailure = true
	if res, err = in.Call(t.Context(), b); err != nil || show(res) != "0:echo 1:dynamic 2!code done=3" {
		t.Errorf("stop on failure: %s, %v", show(res), err)
	}
	if res, err = in.Call(t.Context(), batch()); err != nil || show(res) != "done=0" {
		t.Errorf("empty: %s, %v", show(res), err)
	}
	take := batch("a", "b", "e")
	take.Take = true
	if res, err = in.Call(t.Context(), take); err != nil || show(res) != "0:a 0:b 0:e done=3" {
		t.Errorf("take: %s, %v", show(res), err)
	}
}

// A batch larger than the guest's memory so far makes it grow, and the bytes arrive whole.
func TestCallLargeBatch(t *testing.T) {
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{}))
	large := strings.Repeat("echo", 100_000)
	for range 3 {
		res, err := in.Call(t.Context(), batch("e", large, "e"))
		if err != nil || len(res.Outputs) != 3 || string(res.Outputs[1].Value) != large {
			t.Fatalf("%v, %d outputs", err, len(res.Outputs))
		}
	}
	_, err := in.Call(t.Context(), batch(strings.Repeat("x", 17<<20)))
	if !errors.Is(err, ErrMemoryLimit) {
		t.Errorf("a batch larger than the limit: %v", err)
	}
}

// Each way to end an instance has its own error, names the record and its operation, and keeps what was done before.
func TestCallEnds(t *testing.T) {
	r := newTestRuntime(t, Config{})
	s := newTestSnapshot(t, r, Options{})
	for _, test := range []struct {
		value  string
		want   error
		detail string
	}{
		{"trap", ErrTrap, "unreachable"},
		{"memory", ErrMemoryLimit, "unreachable"},
		{"recursion", ErrStackOverflow, ""},
		{"x", ErrExit, "exit code 3"},
		{"loop", ErrDeadline, "200ms"},
	} {
		t.Run(test.value, func(t *testing.T) {
			var in *Instance
			var res record.Result
			var err error
			most := time.Minute // only the deadline has to do with time
			if errors.Is(test.want, ErrDeadline) {
				most = 2 * testDeadline
			}
			within(t, 0, most, func() {
				in = newTestInstance(t, s)
				res, err = in.Call(t.Context(), batch("echo", "fail", test.value, "echo"))
			})
			var ended *CallError
			if !errors.Is(err, test.want) || !errors.As(err, &ended) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if ended.Unit != 2 || ended.Phase != abi.PhaseOperation || ended.Operation != 0 || ended.Where != `operation "enrich"` ||
				!strings.HasPrefix(ended.Detail, test.detail) {
				t.Errorf("%+v", ended)
			}
			if got, want := show(res), "0:echo 1!code done=2"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if errors.Is(test.want, ErrDeadline) {
				want := "    agents/orders.yaml:42, in enrich\n        while True:\n    agents/orders.yaml:47, in helper\n"
				if ended.Traceback != want {
					t.Errorf("traceback %q", ended.Traceback)
				}
			}
			if _, err := in.Call(t.Context(), batch("echo")); !errors.Is(err, ErrClosed) {
				t.Errorf("an ended instance answers %v", err)
			}
			t.Log(err)
		})
	}
}

// A unit has its deadline for itself: many short ones may take longer together.
func TestDeadlineIsPerUnit(t *testing.T) {
	r := newTestRuntime(t, Config{})
	s := newTestSnapshot(t, r, Options{Deadline: 100 * time.Millisecond})
	in := newTestInstance(t, s)
	var values []string
	for range 8 {
		values = append(values, "z40")
	}
	begin := time.Now()
	res, err := in.Call(t.Context(), batch(values...))
	if err != nil || len(res.Failures) > 0 || time.Since(begin) < 300*time.Millisecond {
		t.Fatalf("%s, %v after %v", show(res), err, time.Since(begin))
	}
	// Python's exception comes at the deadline, and the instance lives on.
	within(t, 100*time.Millisecond, 150*time.Millisecond, func() {
		res, err = in.Call(t.Context(), batch("echo", "polite", "echo"))
		if err != nil || show(res) != "0:echo 1!deadline 2:echo done=3" {
			t.Fatalf("%s, %v", show(res), err)
		}
	})
	// Who swallows it is ended at one and a half.
	within(t, 150*time.Millisecond, 200*time.Millisecond, func() {
		if _, err = newTestInstance(t, s).Call(t.Context(), batch("loop")); !errors.Is(err, ErrDeadline) {
			t.Error(err)
		}
	})
}

// A sleeping guest wakes at its deadline, by whichever way it sleeps.
func TestSleep(t *testing.T) {
	s := newTestSnapshot(t, newTestRuntime(t, Config{}), Options{Deadline: 100 * time.Millisecond})
	for _, command := range []string{"z", "Z"} {
		in := newTestInstance(t, s)
		within(t, 120*time.Millisecond, 200*time.Millisecond, func() {
			res, err := in.Call(t.Context(), batch(command+"20", command+"10000", "echo"))
			if got, want := show(res), "0:"+command+"20 1!deadline 2:echo done=3"; err != nil || got != want {
				t.Errorf("got %s, want %s, %v", got, want, err)
			}
		})
		within(t, 20*time.Millisecond, 100*time.Millisecond, func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			res, err := newTestInstance(t, s).Call(ctx, batch("echo", command+"10000"))
			if !errors.Is(err, context.DeadlineExceeded) || show(res) != "0:echo done=1" {
				t.Errorf("cancelled sleep: %v, %s", err, show(res))
			}
		})
	}
}

func TestCancel(t *testing.T) {
	s := newTestSnapshot(t, newTestRuntime(t, Config{}), Options{Deadline: time.Minute})
	within(t, 30*time.Millisecond, 100*time.Millisecond, func() {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		res, err := newTestInstance(t, s).Call(ctx, batch("echo", "loop"))
		if !errors.Is(err, context.Canceled) || show(res) != "0:echo done=1" {
			t.Errorf("%v, %s", err, show(res))
		}
	})
}

func TestLoad(t *testing.T) {
	r := newTestRuntime(t, Config{})
	var problems *LoadError
	for _, err := range []error{
		r.Check(t.Context(), testProgram("SyntaxError")),
		func() error { _, err := r.Load(t.Context(), testProgram("SyntaxError"), Options{}); return err }(),
	} {
		if !errors.As(err, &problems) || len(problems.Problems) != 1 || problems.Error() != "a.yaml:3:5: init: SyntaxError: bad" {
			t.Errorf("%v", err)
		}
	}
	if err := r.Check(t.Context(), testProgram("load-spins")); err != nil {
		t.Errorf("check runs code: %v", err)
	}
	within(t, testDeadline, 2*testDeadline, func() {
		if _, err := r.Load(t.Context(), testProgram("load-spins"), Options{}); !errors.Is(err, ErrDeadline) {
			t.Error(err)
		}
	})
	if _, err := r.Load(t.Context(), testProgram("load-traps"), Options{}); !errors.Is(err, ErrTrap) {
		t.Error(err)
	}
	if r.open.Load() != 0 {
		t.Errorf("%d instances left behind", r.open.Load())
	}
}

// Instances of one snapshot share nothing: neither what calls change nor randomness.
func TestRestore(t *testing.T) {
	s := newTestSnapshot(t, newTestRuntime(t, Config{}), Options{})
	a, b := newTestInstance(t, s), newTestInstance(t, s)
	call := func(in *Instance, value string) string {
		t.Helper()
		res, err := in.Call(t.Context(), batch(value))
		if err != nil {
			t.Fatal(err)
		}
		return string(res.Outputs[0].Value)
	}
	for want := 1; want <= 3; want++ {
		if got := call(a, "count"); got != fmt.Sprint(want) {
			t.Errorf("got %s, want %d", got, want)
		}
	}
	if got := call(b, "count"); got != "1" {
		t.Errorf("a second instance starts at %s", got)
	}
	seedA, seedB := call(a, "seed"), call(b, "seed")
	if seedA == seedB || strings.Trim(seedA, "\x00") == "" {
		t.Errorf("seeds %x and %x", seedA, seedB)
	}
	for i, index := range s.r.guest.globals {
		value := a.mod.ExportedGlobal(globalName(index)).Get()
		if value != s.image.globals[i] {
			t.Errorf("global %d is %d, %d in the image: the stack pointer must be back at its start between calls", index, value, s.image.globals[i])
		}
	}
	if len(s.r.guest.globals) == 0 {
		t.Error("the stack pointer is not among the globals")
	}
}

func TestHostCalls(t *testing.T) {
	host := &fakeHost{}
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{Host: host}))
	res, err := in.Call(t.Context(), batch("Lhello", `S`, `Sx`, `E{"name":"new","partitions":3}`, `E{"name":"forbidden"}`, `Enonsense`, "R9", "R3", "R2"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := show(res), `1:{"offset":7} 2:{"offset":7} 3:{} 4:{"error":"not allowed"} 5!code 6:1 7:1 8:1 done=9`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if want := []string{"30 hello"}; !reflect.DeepEqual(host.logs, want) {
		t.Errorf("logs %q", host.logs)
	}
	// The second one's answer did not fit at first; it is asked for again, not sent again.
	if len(host.sent) != 2 || host.sent[0].Topic != "sent-to" || host.sent[1].Record != 2 || string(host.sent[1].Value) != "Sx" {
		t.Errorf("sent %+v", host.sent)
	}
	if len(host.topics) != 2 || host.topics[0].Name != "new" || host.topics[0].Partitions != 3 {
		t.Errorf("topics %+v", host.topics)
	}
	host.send = func(ctx context.Context, _ record.Output) ([]byte, error) { return nil, errors.New("broker is gone") }
	if res, err = in.Call(t.Context(), batch("S")); err != nil || show(res) != `0:{"error":"broker is gone"} done=1` {
		t.Errorf("%s, %v", show(res), err)
	}
}

// Who answers code that waits must know which record it works on: else a trace goes on under the name of another one.
func TestRunning(t *testing.T) {
	var seen []string
	host := &fakeHost{send: func(ctx context.Context, _ record.Output) ([]byte, error) {
		r := Running(ctx)
		seen = append(seen, string(r.Value))
		return []byte("{}"), nil
	}}
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{Host: host}))
	if _, err := in.Call(t.Context(), batch("w0", "Sa", "w1", "Sb")); err != nil || !reflect.DeepEqual(seen, []string{"Sa", "Sb"}) {
		t.Errorf("%q, %v", seen, err)
	}
	if Running(t.Context()) != nil {
		t.Error("a record runs where none does")
	}
}

// A broker that takes its time must not fail the record that waits for it.
func TestWaitingForTheHostIsNotTheGuestsTime(t *testing.T) {
	host := &fakeHost{send: func(context.Context, record.Output) ([]byte, error) {
		time.Sleep(3 * testDeadline)
		return []byte("{}"), nil
	}}
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{Host: host}))
	res, err := in.Call(t.Context(), batch("S", "w1"))
	if err != nil || show(res) != "0:{} 1:w1 done=2" || res.Elapsed > testDeadline {
		t.Errorf("%s, %v, elapsed %v", show(res), err, res.Elapsed)
	}
}

// A bug in the engine's Host must not pass for a trap of the guest.
func TestHostPanicPassesThrough(t *testing.T) {
	host := &fakeHost{send: func(context.Context, record.Output) ([]byte, error) { panic("BUG: in the host") }}
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{Host: host}))
	defer func() {
		if p := recover(); p != "BUG: in the host" {
			t.Errorf("recovered %v", p)
		}
	}()
	_, err := in.Call(t.Context(), batch("S"))
	t.Errorf("no panic, %v", err)
}

func TestProtocolErrors(t *testing.T) {
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{}))
	if _, err := in.Call(t.Context(), batch("out of bounds")); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}

// Nothing that a Runtime started may outlive its Close.
func TestNoLeaks(t *testing.T) {
	run := func() {
		r, err := New(t.Context(), Config{Module: testGuest, Defaults: testOptions()})
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Load(t.Context(), testProgram(""), Options{})
		if err != nil {
			t.Fatal(err)
		}
		c := NewComponent(s, 4)
		for slot := range 4 {
			if _, err := c.Call(t.Context(), slot, batch("echo", "trap", "exit", "memory", "loop")); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Stats().Instances.Load(); n > 4 {
			t.Errorf("%d instances for 4 slots", n)
		}
		if n, least := s.Stats().MemoryBytes.Load(), s.Stats().Instances.Load()*s.image.size; n < least || n > 4*testOptions().MemoryMax {
			t.Errorf("%d bytes of memory, at least %d are mapped", n, least)
		}
		for range 2 {
			if err := errors.Join(c.Close(), r.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Stats().Instances.Load(); n != 0 {
			t.Errorf("%d instances after Close", n)
		}
		if n := s.Stats().MemoryBytes.Load(); n != 0 {
			t.Errorf("%d bytes of memory after Close", n)
		}
	}
	run()
	before := countResources(t)
	for range 3 {
		run()
	}
	after := countResources(t)
	for range 100 { // the system lists a thread for a moment after it was joined
		if after == before {
			return
		}
		time.Sleep(20 * time.Millisecond)
		after = countResources(t)
	}
	t.Errorf("before %+v, after %+v", before, after)
}

// BenchmarkBareCall is a call that does nothing: an empty batch, without Python.
func BenchmarkBareCall(b *testing.B) {
	in := newTestInstance(b, newTestSnapshot(b, newTestRuntime(b, Config{}), Options{}))
	empty := batch()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in.Call(b.Context(), empty); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHostCall is a call of the host from C that does nothing.
func BenchmarkHostCall(b *testing.B) {
	const calls = 10_000
	in := newTestInstance(b, newTestSnapshot(b, newTestRuntime(b, Config{}), Options{}))
	work := batch(fmt.Sprint("H", calls))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := in.Call(b.Context(), work); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*calls), "ns/hostcall")
}

// What is in progress is the guest's word, which broken code may make a lie. It ends nevertheless, and no later than if all of its units had had
// their time.
func TestLiesAboutProgress(t *testing.T) {
	for _, lie := range []string{"y", "Y"} {
		in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{}))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := in.Call(ctx, batch(lie)); !errors.Is(err, ErrDeadline) {
			t.Errorf("%s: %v", lie, err)
		}
	}
}

// What a host function reads must not change while it reads, and the ticker writes whenever it likes.
func TestInterruptWordIsNoRequest(t *testing.T) {
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{}))
	// Four bytes that end before the word, have its first byte, and are the word itself.
	if res, err := in.Call(t.Context(), batch("q4", "q3", "q0")); err != nil || show(res) != "0:0 1:1 2:1 done=3" {
		t.Errorf("%s, %v", show(res), err)
	}
}
