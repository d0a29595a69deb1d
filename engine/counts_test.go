package engine

import (
	"fmt"
	"testing"
	"time"
)

// Names that code makes up must not fill the memory, nor end the series of everything else.
func TestCountsAreBounded(t *testing.T) {
	var c counts
	for i := range 3 * countsMax {
		c.add(map[string]int64{fmt.Sprint("topic-", i): 1})
	}
	c.add(map[string]int64{"topic-0": 1, "bad \xff name": 2})
	all := c.all()
	if len(all) != countsMax+1 || all["topic-0"] != 2 || all[countsRest] != 2*countsMax+2 {
		t.Errorf("%d names, %d of the first, %d of the rest", len(all), all["topic-0"], all[countsRest])
	}
	var few counts
	few.add(map[string]int64{"bad \xff name": 2})
	if few.all()["bad \uFFFD name"] != 2 {
		t.Errorf("%v", few.all())
	}
}

func TestMemoryInfo(t *testing.T) {
	var m memory
	m.parse([]byte("MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    250 kB\n\nHugePages_Total:  x\nSwapTotal: 8 kB\nSwapFree: 8 kB\n"))
	if m.Total != 1000<<10 || m.Available != 250<<10 || m.SwapTotal != m.SwapFree || percent(m.Total-m.Available, m.Total) != 75 || percent(1, 0) != 0 {
		t.Errorf("%+v", m)
	}
}

// A rebalance is not over while tables are replayed, and the next one is another.
func TestRebalanceTimes(t *testing.T) {
	var r rebalances
	now := time.Now()
	r.worked(now)
	r.begin(now)
	r.begin(now.Add(time.Second)) // the same one
	if !r.underWay() {
		t.Error("not under way")
	}
	r.assign(now.Add(2 * time.Second))
	if r.underWay() || r.Done.count() != 0 {
		t.Error("still under way, or done without its tables")
	}
	r.worked(now.Add(5 * time.Second))
	r.worked(now.Add(6 * time.Second))
	if a, d := r.Assigned.d.micros.Load(), r.Done.d.micros.Load(); a != 2000e6 || d != 5000e6 || r.Done.count() != 1 {
		t.Errorf("assigned in %d, done in %d", a, d)
	}
}
