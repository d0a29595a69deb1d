package engine

import (
	"context"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// A partition that has records and does not move must not go unnoticed: the client may wait for a leader that never answers, a
// step may hang, a table may not come back. Every watchEvery all assigned partitions are looked at; what stood still
// over two looks is named, with the reason, and fetched anew when no records came.
const watchEvery = 30 * time.Second

// sight is what a look at a partition saw.
type sight struct {
	head    int64  // offset behind what was fetched
	applied int64  // least of the agents'
	why     string // it has records and waits for this; empty: nothing to wait for
}

func (a *App) watchLoop(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := map[record.Partition]sight{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		next, err := a.watch(ctx, last)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("look for partitions that stand still", "err", err)
			}
			continue
		}
		last = next
	}
}

// watch looks at every assigned partition once, and compares with the look before.
func (a *App) watch(ctx context.Context, last map[record.Partition]sight) (map[record.Partition]sight, error) {
	ends, err := a.admin.EndOffsets(ctx, a.assignedTopics()...)
	if err != nil {
		return nil, err
	}
	seen, stuck := a.compare(ends, last)
	for _, p := range stuck {
		s := seen[p]
		a.stalls.Add(1)
		a.log.Warn("a partition stands still although it has records", "topic", p.Topic, "partition", p.Number, "offset", s.applied,
			"end", ends[p.Topic][p.Number], "reason", s.why)
		if s.why == fetchNothing {
			a.mu.Lock()
			a.refetch = append(a.refetch, refetch{p, s.head, false})
			a.mu.Unlock()
		}
	}
	return seen, nil
}

// compare is what is seen now, and which partitions stood still since the look before.
func (a *App) compare(ends map[string]map[int32]int64, last map[record.Partition]sight) (seen map[record.Partition]sight, stuck []record.Partition) {
	seen = map[record.Partition]sight{}
	a.eachFeed(func(p record.Partition, _ *lane, f *feed) {
		s, ok := seen[p]
		if !ok || f.applied < s.applied {
			s.applied = f.applied
		}
		s.head = max(f.fetched, f.applied)
		switch {
		case f.queued == 0 && !f.busy && !f.paused && ends[p.Topic][p.Number] > s.head:
			s.why = fetchNothing
		case f.queued == 0:
		case !f.positioned:
			s.why = "the group's stored position is not known yet"
		case !f.ready:
			s.why = "a table of agent " + f.agent.plan.Name + " is not restored"
		case f.noSchema:
			s.why = "agent " + f.agent.plan.Name + " waits for a schema from the registry"
		case f.busy:
			s.why = "a step of agent " + f.agent.plan.Name + " does not end"
		case f.agent.plan.Take == nil && time.Now().After(f.notBefore):
			s.why = "agent " + f.agent.plan.Name + " does not begin its next step"
		}
		seen[p] = s
	})
	for p, s := range seen {
		if before, ok := last[p]; ok && s.why != "" && before.why != "" && before.applied == s.applied && before.head == s.head {
			stuck = append(stuck, p)
		}
	}
	return seen, stuck
}

const fetchNothing = "no records come; they are fetched anew"

// refetch is where to fetch a partition from.
type refetch struct {
	record.Partition
	offset  int64
	awaited bool // by the partition's feeds
}

// fetchAnew begins to fetch again what does not come, or what feeds wait for. The poll loop calls it, so that no fetch runs meanwhile.
func (a *App) fetchAnew() {
	a.mu.Lock()
	list := a.refetch
	a.refetch = nil
	a.mu.Unlock()
	for _, x := range list {
		if x.awaited && !a.awaited(x.Partition) {
			continue // it has left, and may be back: its feeds are others
		}
		a.member.FetchFrom(x.Partition, x.offset)
	}
}

// awaited ends the waiting of a partition's feeds, and says whether they did.
func (a *App) awaited(p record.Partition) (any bool) {
	a.eachFeed(func(of record.Partition, _ *lane, f *feed) {
		if of == p && f.awaits {
			f.awaits, any = false, true
		}
	})
	return any
}
