package engine

import (
	"testing"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// A partition that stands still must be named, and fetched anew only when it is the records that do not come.
func TestWatchNamesWhatStandsStill(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		b := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, exactlyOnce)
		f0, f1 := b.open(in0), b.open(in1)
		b.mu.Lock()
		f0.fetched, f0.applied = 7, 7 // and the log goes on
		f1.fetched, f1.applied, f1.ready = 9, 5, false
		f1.queued = 4
		b.mu.Unlock()
		ends := map[string]map[int32]int64{"in": {0: 9, 1: 9}}
		last, _ := b.app.compare(ends, nil)
		if last[in0].why != fetchNothing || last[in1].why != "a table of agent a is not restored" {
			t.Fatalf("seen %+v", last)
		}
		_, stuck := b.app.compare(ends, last)
		if len(stuck) != 2 {
			t.Fatalf("standing still: %v", stuck)
		}
		b.mu.Lock()
		f0.fetched = 8
		b.mu.Unlock()
		if _, stuck := b.app.compare(ends, last); len(stuck) != 1 || stuck[0] != in1 {
			t.Fatalf("one has moved, standing still: %v", stuck)
		}
		ends["in"][0] = 8
		last, _ = b.app.compare(ends, last)
		if last[in0] != (sight{head: 8, applied: 7}) {
			t.Fatalf("at the end: %+v", last[record.Partition{Topic: "in"}])
		}
	})
}
