package engine

import (
	"context"
	"time"
)

// cleanupEvery is how often stores are looked for that nobody needs any more, unless they are to go sooner than that.
const cleanupEvery = time.Minute

// cleanupLoop deletes the stores of partitions that have been neither active nor a copy here for so long; 0: never. Their changelogs have
// all that is in them.
//
// Only time counts in which this process is part of the group. Whoever is out, because it has just started or Kafka does not answer, has
// no partitions for a while, and then most of those it had.
func (t *tables) cleanupLoop(ctx context.Context, delay time.Duration, member func() bool) {
	if delay == 0 {
		return
	}
	tick := time.NewTicker(min(max(delay/10, 100*time.Millisecond), cleanupEvery))
	defer tick.Stop()
	var since time.Time // of being a member; zero: it is none
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			switch {
			case !member():
				since = time.Time{}
			case since.IsZero():
				since = now
			case now.Sub(since) >= delay:
				t.cleanup(ctx, now.Add(-delay))
			}
		}
	}
}

// cleanup deletes the stores of partitions that left before a time. Each stands in for a keeper meanwhile, so that nobody opens the store;
// who wants the partition has its keeper right after that. What cannot be deleted is left for as long again.
func (t *tables) cleanup(ctx context.Context, before time.Time) {
	t.each(func(p *tablePart) {
		t.mu.Lock()
		due := ctx.Err() == nil && !p.left.IsZero() && !p.left.After(before)
		if due {
			p.keeping, p.left = true, time.Time{}
		}
		t.mu.Unlock()
		if !due {
			return
		}
		err := t.stores.Destroy(t.plan[p.table].Name, p.number)
		if err != nil {
			p.log.Error("delete the store of a table's partition that is not here any more; it is tried again later", "err", err)
		} else {
			p.log.Info("the store of a table's partition that is not here any more was deleted")
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		p.keeping = false
		if err == nil {
			p.offset.Store(0)
		} else {
			p.left = time.Now()
		}
		p.wantsChanged()
	})
}
