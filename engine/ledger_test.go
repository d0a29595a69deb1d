package engine

import (
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
)

var p0 = record.Partition{Topic: "orders", Number: 0}

// An offset committed too early is a lost record after a crash.
func TestLedgerCommitsOnlyBelowEveryUnfinishedSpan(t *testing.T) {
	l := newLedger()
	l.open(p0, []string{"a", "b"})
	commit := func() map[record.Partition]int64 { return l.committable(nil) }
	a1 := l.begin(p0, "a", 10, 20)
	a2 := l.begin(p0, "a", 20, 25)
	a2(true) // the broker acknowledged the second step first
	b1 := l.begin(p0, "b", 10, 30)
	if got := commit(); len(got) > 0 && got[p0] != 10 {
		t.Fatalf("committable %v before the first step finished", got)
	}
	a1(true)
	if got := commit(); got[p0] > 10 {
		t.Fatalf("committable %v while agent b has finished nothing", got)
	}
	b1(true)
	if got := commit(); got[p0] != 25 {
		t.Fatalf("committable %v, want the slower agent's 25", got)
	}
	l.commit(commit())
	if got := commit(); len(got) != 0 {
		t.Fatalf("committable %v again after the commit", got)
	}
	if !l.waitIdle(nil, time.Now()) {
		t.Fatal("not idle although every span is finished")
	}
}

// A step that will never finish must not keep a stop waiting, nor let anything behind it be committed.
func TestLedgerAbandonedSpan(t *testing.T) {
	l := newLedger()
	l.open(p0, []string{"a"})
	first, second := l.begin(p0, "a", 5, 6), l.begin(p0, "a", 6, 9)
	second(true)
	first(false)
	if !l.waitIdle(nil, time.Now()) {
		t.Fatal("waits for an abandoned step")
	}
	if got := l.committable(nil)[p0]; got > 5 {
		t.Fatalf("committable %d passes an abandoned step", got)
	}
}

// A span that finishes after its partition moved away must not count for the partition's next assignment.
func TestLedgerIgnoresSpansOfAnEarlierAssignment(t *testing.T) {
	l := newLedger()
	l.open(p0, []string{"a"})
	late := l.begin(p0, "a", 0, 100)
	l.close([]record.Partition{p0})
	l.open(p0, []string{"a"})
	now := l.begin(p0, "a", 50, 60)
	late(true)
	if got := l.committable(nil); got[p0] > 50 {
		t.Fatalf("committable %v from another assignment's span", got)
	}
	now(true)
	if got := l.committable(nil); got[p0] != 60 {
		t.Fatalf("committable %v, want 60", got)
	}
}

// Whatever the order of acknowledgements, the committable offset never passes an unfinished record and reaches the end.
func TestLedgerRandomAcknowledgements(t *testing.T) {
	for seed := range uint64(200) {
		g := rand.New(rand.NewPCG(seed, 1))
		l := newLedger()
		l.open(p0, []string{"a", "b"})
		type open struct {
			from   int64
			finish func(bool)
		}
		var pending []open
		next := map[string]int64{"a": 0, "b": 0}
		for range 200 {
			if g.IntN(2) == 0 || len(pending) == 0 {
				agent := []string{"a", "b"}[g.IntN(2)]
				n := next[agent] + 1 + g.Int64N(9)
				pending = append(pending, open{next[agent], l.begin(p0, agent, next[agent], n)})
				next[agent] = n
			} else {
				i := g.IntN(len(pending))
				pending[i].finish(true)
				pending = append(pending[:i], pending[i+1:]...)
			}
			if got, ok := l.committable(nil)[p0]; ok {
				for _, o := range pending {
					if got > o.from {
						t.Fatalf("seed %d: committable %d passes an unfinished step from %d", seed, got, o.from)
					}
				}
			}
		}
		for _, o := range pending {
			o.finish(true)
		}
		if want := min(next["a"], next["b"]); want > 0 && !maps.Equal(l.committable(nil), map[record.Partition]int64{p0: want}) {
			t.Fatalf("seed %d: committable %v in the end, want %d", seed, l.committable(nil), want)
		}
	}
}
