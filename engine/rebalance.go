package engine

import (
	"sync"
	"sync/atomic"
	"time"
)

// rebalances tells how long the group's changes of hands take this process. One begins when partitions are taken away, or when the
// process joins; its first part ends with the assignment, all of it when every assigned partition is worked on.
type rebalances struct {
	Assigning durations // until the positions of newly assigned partitions were known
	Assigned  durations // from the begin to the assignment
	Done      durations // to the moment every partition is worked on
	Failed    atomic.Int64

	mu       sync.Mutex
	began    time.Time // guarded by mu; zero: none is under way
	assigned bool      // guarded by mu; only the replay is missing
}

func (r *rebalances) begin(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() {
		r.began = now
	}
	r.assigned = false
}

func (r *rebalances) assign(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() || r.assigned {
		return
	}
	r.assigned = true
	r.Assigned.observe(now.Sub(r.began))
}

// worked says that every assigned partition is worked on.
func (r *rebalances) worked(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.assigned {
		r.Done.observe(now.Sub(r.began))
		r.began, r.assigned = time.Time{}, false
	}
}

// underWay is whether partitions are being handed over.
func (r *rebalances) underWay() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.began.IsZero() && !r.assigned
}
