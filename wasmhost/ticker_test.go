package wasmhost

import (
	"errors"
	"runtime"
	"runtime/metrics"
	"slices"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// While no guest runs the thread sleeps, and the first call wakes it.
func TestTickerSleeps(t *testing.T) {
	r := newTestRuntime(t, Config{Tick: time.Millisecond})
	in := newTestInstance(t, newTestSnapshot(t, r, Options{}))
	for round := range 2 {
		asleep := false
		for deadline := time.Now().Add(5 * time.Second); !asleep && time.Now().Before(deadline); {
			before := r.ticker.ticks()
			time.Sleep(50 * time.Millisecond)
			asleep = r.ticker.ticks() == before
		}
		if !asleep {
			t.Fatalf("round %d: the ticker does not sleep", round)
		}
		if _, err := in.Call(t.Context(), batch("p")); err != nil {
			t.Fatal(err)
		}
	}
}

// The thread must not write into memory that is gone: instances come and go while others run.
func TestTickerHammer(t *testing.T) {
	r := newTestRuntime(t, Config{Tick: 50 * time.Microsecond})
	s := newTestSnapshot(t, r, Options{})
	var wg sync.WaitGroup
	stop := time.Now().Add(500 * time.Millisecond)
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				in, err := s.NewInstance(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				_, err = in.Call(t.Context(), batch("w50", "e", "w10"))
				if err = errors.Join(err, in.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s.Stats().Ticks.Load() == 0 {
		t.Error("no ticks")
	}
}

// A spinning guest must not hold up the garbage collector: that would stop the whole process.
func TestCollectorIsNotHeldUp(t *testing.T) {
	r := newTestRuntime(t, Config{})
	s := newTestSnapshot(t, r, Options{Deadline: time.Second})
	var wg sync.WaitGroup
	for range 2 {
		in := newTestInstance(t, s)
		wg.Go(func() {
			if res, err := in.Call(t.Context(), batch("p")); err != nil || len(res.Failures) != 1 || res.Failures[0].Kind != record.FailureDeadline {
				t.Errorf("%s, %v", show(res), err)
			}
		})
	}
	paused := collect(900 * time.Millisecond)
	wg.Wait()
	t.Logf("longest stop of the world %v", paused)
	if paused > 400*time.Millisecond { // about a tick, and whatever else the machine does
		t.Errorf("the world took %v to stop while guests were spinning", paused)
	}
}

// collect keeps the collector busy for d and returns the longest stop of the world, from asking for it to its end.
func collect(d time.Duration) time.Duration {
	sample := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(sample)
	histogram := sample[0].Value.Float64Histogram()
	before := slices.Clone(histogram.Counts)
	for begin := time.Now(); time.Since(begin) < d; {
		runtime.GC()
	}
	metrics.Read(sample)
	histogram = sample[0].Value.Float64Histogram()
	longest := 0.0
	for i, n := range histogram.Counts {
		if n > before[i] {
			longest = histogram.Buckets[i] // the bucket's lower end
		}
	}
	return time.Duration(longest * float64(time.Second))
}
