package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost/abi"
)

// forever as the end of a pull: the changelog is followed.
const forever = -1

// begin finds out what there is to read, and starts reading.
//
// The order matters. An earlier owner's transaction may be about to be committed; it is part of the truth if it is. It
// changes the group's offsets, so once these are stable it has ended, and all its changelog records are below the end that
// is asked for then. No later one can be: its member's generation is over.
func (k *keeper) begin(ctx context.Context, inputs []record.Partition) (s changelog, from, to int64, err error) {
	t := k.of
	ask, cancel := context.WithTimeout(ctx, t.tuning.stalledAfter)
	defer cancel()
	if len(inputs) > 0 {
		if _, err := t.kafka.StableOffsets(ask, t.group, inputs); err != nil {
			return nil, 0, 0, k.unanswered(ctx, ask, "offsets of the inputs are part of a transaction that is still open, or cannot be had", err)
		}
	}
	topics, err := t.kafka.Describe(ask, k.changelog.Topic)
	if err != nil {
		return nil, 0, 0, k.unanswered(ctx, ask, "the changelog cannot be described", err)
	}
	switch info, ok := topics[k.changelog.Topic]; {
	case !ok:
		return nil, 0, 0, fmt.Errorf("changelog %s does not exist", k.changelog.Topic)
	case k.number >= info.Partitions:
		return nil, 0, 0, fmt.Errorf("changelog %s has %d partitions, partition %d is wanted", k.changelog.Topic, info.Partitions, k.number)
	}
	id := topics[k.changelog.Topic].ID
	all, err := t.kafka.Bounds(ask, k.changelog)
	if err != nil {
		return nil, 0, 0, k.unanswered(ctx, ask, "the bounds of the changelog cannot be had", err)
	}
	bounds := all[k.changelog]
	if err := k.reconcile(id.String(), bounds); err != nil {
		return nil, 0, 0, err
	}
	from = max(k.store.Offset(), bounds.Start)
	return t.kafka.Follow(k.changelog, id, from), from, bounds.High, nil
}

// unanswered makes a stall of a question that took too long.
func (k *keeper) unanswered(ctx, ask context.Context, why string, err error) error {
	if ctx.Err() == nil && ask.Err() != nil {
		return &stallError{k.store.Offset(), k.store.Offset(), why, err}
	}
	return err
}

// reconcile clears a store that is not a prefix of its changelog.
func (k *keeper) reconcile(id string, b broker.Bounds) error {
	at, origin := k.store.Offset(), k.store.Origin()
	var why string
	switch {
	case at == 0 && origin == id:
		return nil
	case at == 0: // new
	case origin != id:
		why = "the changelog was deleted and made anew"
	case at > b.High:
		why = "the changelog ends before the store does: the broker lost records"
	case at < b.Start:
		why = "records the store has not seen were deleted from the changelog"
	default:
		return nil
	}
	if why != "" {
		k.log.Error("the store of a table does not fit its changelog: it is emptied and restored from the start", "reason", why,
			"changelog", k.changelog.Topic, "storeOffset", at, "storeOrigin", origin, "origin", id, "start", b.Start, "end", b.High)
	}
	k.hide()
	k.offset.Store(0)
	return k.store.Clear(id)
}

// pull reads the changelog into the store until offset to.
func (k *keeper) pull(ctx context.Context, s changelog, at, to int64) error {
	t := k.of
	for to == forever || at < to {
		wait, cancel := context.WithTimeout(ctx, t.tuning.stalledAfter)
		chunk, err := s.Next(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			if err := stalled(s.State(), at, to, t.tuning.stalledAfter); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if k.role == roleCopy && !t.plan[k.table].Guest.Global {
			t.urgent.giveWay(ctx)
		}
		select {
		case t.turns <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err = k.apply(&chunk)
		<-t.turns
		if err != nil {
			return err
		}
		at = chunk.Next
		k.progress.at(at, max(to, chunk.High))
	}
	return nil
}

// precedence lets the partitions that records wait for be restored before copies, which nobody waits for.
type precedence struct {
	mu   sync.Mutex
	n    int           // guarded by mu; restores that records wait for
	none chan struct{} // guarded by mu; closed when n is 0 again
}

func (p *precedence) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n++; p.n == 1 {
		p.none = make(chan struct{})
	}
}

func (p *precedence) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n--; p.n == 0 {
		close(p.none)
	}
}

// giveWayMost is how long a copy gives way before each chunk: one restore that cannot go on must not stop all copies.
const giveWayMost = time.Second

func (p *precedence) giveWay(ctx context.Context) {
	p.mu.Lock()
	none, n := p.none, p.n
	p.mu.Unlock()
	if n == 0 {
		return
	}
	timer := time.NewTimer(giveWayMost)
	defer timer.Stop()
	select {
	case <-none:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// apply decodes a chunk and puts it into the store.
func (k *keeper) apply(c *broker.Chunk) error {
	if err := c.Decode(); err != nil {
		return err
	}
	have := k.store.Offset()
	k.changes = k.changes[:0]
	for i := range c.Entries {
		e := &c.Entries[i]
		if e.Offset < have {
			continue
		}
		if e.Key == nil {
			k.log.Warn("a record without a key in the changelog is not ours and was skipped", "changelog", k.changelog.Topic, "offset", e.Offset)
			continue
		}
		k.changes = append(k.changes, state.Change{Key: e.Key, Value: e.Value, Expires: expires(&k.of.plan[k.table].Guest, e)})
	}
	if c.Next <= have {
		return nil
	}
	err := k.store.Apply(k.changes, c.Next)
	clear(k.changes) // it would keep the chunk's memory
	k.offset.Store(k.store.Offset())
	return err
}

// expires is when an entry of the changelog is due for deletion: the window's end and what the table adds, or the table's
// time after the record was written; rounded up as the guest does.
func expires(t *abi.Table, e *broker.Logged) int64 {
	switch {
	case e.Value == nil:
	case t.Window != nil:
		if n := len(e.Key) - 8; t.Window.Expires > 0 && n >= 0 {
			return max(1, int64(binary.BigEndian.Uint64(e.Key[n:]))+t.Window.Size+t.Window.Expires)
		}
	case t.TTL > 0:
		step := max(1, t.TTL/64)
		return max(1, (e.Timestamp+t.TTL+step-1)/step*step)
	}
	return 0
}

// stalled tells waiting for records from waiting in vain: nil when there is nothing to read.
func stalled(st broker.StreamState, at, to int64, after time.Duration) error {
	end := max(to, st.High)
	quiet := time.Since(st.Answered) >= after
	if at >= end && !quiet {
		return nil
	}
	why := "the broker returns no records"
	switch {
	case quiet:
		why = "the partition's leader does not answer"
	case st.Stable <= at:
		why = "a transaction that is still open holds back what follows"
	}
	return &stallError{at, end, why, st.Trouble}
}
