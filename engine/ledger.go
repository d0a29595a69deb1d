package engine

import (
	"slices"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// ledger knows how far every owned partition has come, and so what may be committed: the offset below which every agent
// that reads the partition has finished each record and the broker holds all of its outputs.
//
// Invariant: an offset leaves Committable only after every delivery it depends on was acknowledged.
type ledger struct {
	mu         sync.Mutex
	partitions map[record.Partition]*ledgerEntry // guarded by mu
	changed    *sync.Cond                        // on mu; broadcast when something settled
}

// ledgerEntry is one partition. Guarded by ledger.mu.
type ledgerEntry struct {
	readers   map[string]*reader // by agent name
	committed int64              // last offset given to the broker, -1 for none
}

// reader is one agent's way through a partition.
type reader struct {
	acked int64   // everything below is finished; -1 before the first span
	spans []*span // begun and not finished, in offset order; finished ones behind an unfinished one wait
}

// span is a run of records that went through one step. It is finished when the step is over and its outputs are acked.
type span struct {
	from, next int64
	finished   bool
	abandoned  bool // it will never finish, because the app stops: nothing to wait for
}

func newLedger() *ledger {
	l := &ledger{partitions: map[record.Partition]*ledgerEntry{}}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// open starts an account for a partition that agents read from now on.
func (l *ledger) open(p record.Partition, agents []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &ledgerEntry{readers: make(map[string]*reader, len(agents)), committed: -1}
	for _, a := range agents {
		e.readers[a] = &reader{acked: -1}
	}
	l.partitions[p] = e
}

// close forgets partitions. Spans still open for them are ignored when they finish.
func (l *ledger) close(ps []record.Partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range ps {
		delete(l.partitions, p)
	}
	l.changed.Broadcast()
}

// begin opens a span [from, next) of an agent; spans of one agent and partition begin in offset order. The returned
// function finishes it, or with false abandons it: then nothing from it on is ever committed. It may be called from any
// goroutine, once.
func (l *ledger) begin(p record.Partition, agent string, from, next int64) (finish func(ok bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.partitions[p]
	if e == nil {
		return func(bool) {}
	}
	r := e.readers[agent]
	if r.acked < 0 {
		r.acked = from
	}
	s := &span{from: from, next: next}
	r.spans = append(r.spans, s)
	return func(ok bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.finished, s.abandoned = ok, !ok
		for len(r.spans) > 0 && r.spans[0].finished {
			r.acked = r.spans[0].next
			r.spans = r.spans[1:]
		}
		l.changed.Broadcast()
	}
}

// committable returns the offsets that have moved since they were last committed, of the given partitions or of all.
func (l *ledger) committable(only []record.Partition) map[record.Partition]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	offsets := map[record.Partition]int64{}
	for p, e := range l.partitions {
		if only != nil && !slices.Contains(only, p) {
			continue
		}
		if o := e.settled(); o >= 0 && o != e.committed {
			offsets[p] = o
		}
	}
	return offsets
}

func (e *ledgerEntry) settled() int64 {
	least := int64(-1)
	for _, r := range e.readers {
		if r.acked < 0 {
			return -1 // this agent has not begun: nothing below is its own
		}
		if least < 0 || r.acked < least {
			least = r.acked
		}
	}
	return least
}

// commit notes what the broker has stored.
func (l *ledger) commit(offsets map[record.Partition]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p, o := range offsets {
		if e := l.partitions[p]; e != nil {
			e.committed = o
		}
	}
}

// waitIdle waits until the given partitions, or all, have no open span; false when that is not so by until.
func (l *ledger) waitIdle(only []record.Partition, until time.Time) bool {
	timer := time.AfterFunc(time.Until(until), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.idle(only) {
		if !time.Now().Before(until) {
			return false
		}
		l.changed.Wait()
	}
	return true
}

// idle reports whether the given partitions, or all, have no open span. l.mu is held.
func (l *ledger) idle(only []record.Partition) bool {
	for p, e := range l.partitions {
		if only != nil && !slices.Contains(only, p) {
			continue
		}
		for _, r := range e.readers {
			if slices.ContainsFunc(r.spans, func(s *span) bool { return !s.finished && !s.abandoned }) {
				return false
			}
		}
	}
	return true
}

// settledOffsets is the settled offset of every partition; -1 where nothing is.
func (l *ledger) settledOffsets() map[record.Partition]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	offsets := make(map[record.Partition]int64, len(l.partitions))
	for p, e := range l.partitions {
		offsets[p] = e.settled()
	}
	return offsets
}
