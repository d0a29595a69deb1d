package engine

import (
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
)

// share is an active, restored partition of a table in the hands of its owner, a lane. It ends with Release or Failed; a
// partition that is restored again is a new one. Of a table that has no such partition it is an empty one, of one feed: nothing
// is staged there.
type share struct {
	table     int // of the plan
	label     string
	changelog record.Partition
	writes    string        // topic for writes to other partitions; empty: there are none
	staged    *state.Staged // nil: the table has no such partition

	// Of the lane's goroutine, but for version.
	version    uint64            // guarded by lane.mu; changes with whatever changes the share
	seen       map[*agent]uint64 // version when the agent's own changes were the last ones
	expires    bool              // entries expire
	ttl        int64             // milliseconds an entry lives after its last write; 0: no such limit
	span       int64             // milliseconds from a window's start to its expiry, where its time is not the records'; else 0
	streamTime int64             // latest timestamp of a record that was processed in the partition; with span, latest window written
	expired    time.Time         // when entries were last expired
}

// entryOf is a change as the changelog has it. When an entry expires is not written: a window's end stands in the key, and a
// lifetime begins at the record's timestamp (restore.go).
func (s *share) entryOf(c *state.Change) broker.Entry {
	e := broker.Entry{Key: c.Key, Value: c.Value}
	if s.ttl > 0 && c.Expires > 0 {
		// The guest rounds a lifetime's end up, by hours where it is long.
		e.Timestamp = min(c.Expires-s.ttl, time.Now().Add(aheadMax).UnixMilli())
	}
	return e
}

// aheadMax is how far a changelog record's timestamp may be ahead of the clock: brokers refuse more than an hour by default
// (message.timestamp.after.max.ms, KIP-937).
const aheadMax = 30 * time.Minute

// stage lays a step's changes over the tables. The owner's goroutine calls it, with the committer's cut held for reading.
func (l *lane) stage(f *feed, changes []record.Change) {
	if len(f.shares) == 0 {
		return
	}
	changed := make([]bool, len(f.shares))
	for _, c := range changes {
		if s := f.shares[c.Table]; s.span > 0 && c.Expires > 0 {
			s.streamTime = max(s.streamTime, c.Expires-s.span)
		}
	}
	for len(changes) > 0 {
		table, n := changes[0].Table, 1
		for n < len(changes) && changes[n].Table == table {
			n++
		}
		list := make([]state.Change, n)
		for i, c := range changes[:n] {
			list[i] = state.Change{Key: c.Key, Value: c.Value, Expires: c.Expires}
		}
		f.shares[table].staged.Stage(list)
		changed[table] = true
		changes = changes[n:]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range f.shares {
		if changed[i] {
			s.version++
		}
		s.seen[f.agent] = s.version
	}
}

// cacheValid says which tables nobody but the agent's own, applied calls has changed in the feed's partition since its last call
// there (record.Batch). l.mu is held.
func (f *feed) cacheValid() uint32 {
	var bits uint32
	for i, s := range f.shares {
		if seen, ok := s.seen[f.agent]; ok && i < 32 && seen == s.version {
			bits |= 1 << i
		}
	}
	return bits
}

// Entries expire by the time of the stream: the latest timestamp of a record that was processed in the partition. So a replay
// of old records gives what the first pass gave, and nothing expires while nothing comes. Windows relative to another time go by
// that: old events that are sent today must find their windows.
const (
	expireEvery = time.Second // at most so often, by the clock
	expireMax   = 10_000      // entries at a time
)

// expire deletes what is due in the feed's tables, as changes like any other. The owner's goroutine calls it.
func (l *lane) expire(f *feed, shares []*share, b *record.Batch) error {
	for _, s := range shares {
		if !s.expires {
			continue
		}
		if s.span == 0 {
			for i := range b.Records {
				s.streamTime = max(s.streamTime, b.Records[i].Timestamp)
			}
		}
		if now := time.Now(); now.Sub(s.expired) >= expireEvery {
			s.expired = now
			if err := l.commits.change(l, f, func() (bool, error) { return l.expireShare(s) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lane) expireShare(s *share) (made bool, err error) {
	due, err := s.staged.Expired(s.streamTime, expireMax)
	if err != nil || len(due) == 0 {
		return false, err
	}
	list := make([]state.Change, len(due))
	for i, e := range due {
		list[i] = state.Change{Key: e.Key}
	}
	s.staged.Stage(list)
	l.mu.Lock()
	s.version++
	l.mu.Unlock()
	return true, nil
}
