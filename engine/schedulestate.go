package engine

import (
	"context"
	"errors"
	"time"

	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/state"
)

// scheduleState is one partition of the scheduler that is worked on here: what waits, and what was done since the start.
type scheduleState struct {
	Partition int32
	Stats     scheduler.Stats
	Counts    scheduler.Counts
	Since     time.Time // when work on it began; zero: not yet
	Looked    time.Time // when it was last looked through for what is due
	Sending   int       // messages sent and not committed
}

// states reads the partitions that are here, in order: a few rows of each. What it cannot read is left out; its owner finds it, too.
func (s *schedule) states(now time.Time) []scheduleState {
	var list []scheduleState
	for number := range s.app.counts[s.table] {
		_, staged := s.app.tables.part(s.table, number).Store()
		if staged == nil {
			continue
		}
		st, err := scheduler.Look(rows{staged}, now)
		if err != nil {
			if !errors.Is(err, state.ErrClosed) {
				s.log.Warn("read the scheduler's numbers", "partition", number, "err", err)
			}
			continue
		}
		p := s.part(number)
		p.mu.Lock()
		list = append(list, scheduleState{number, st, p.counts, p.since, p.looked, p.sending})
		p.mu.Unlock()
	}
	return list
}

// statsEvery is the cadence of schedulerDebugStatsEnabled.
const statsEvery = 5 * time.Second

// statsLoop logs a line for each partition.
func (s *schedule) statsLoop(ctx context.Context) {
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, x := range s.states(time.Now()) {
			s.log.Info("scheduler", "partition", x.Partition, "waiting", x.Stats.Messages, "crons", x.Stats.Crons, "next", x.Stats.Next,
				"lag", x.Stats.Lag, "scheduled", x.Counts.Scheduled, "pastDue", x.Counts.PastDue, "delivered", x.Counts.Delivered,
				"replaced", x.Counts.Replaced, "unchanged", x.Counts.Unchanged, "cancelled", x.Counts.Cancelled, "rejected", x.Counts.Rejected,
				"failed", x.Counts.Failed)
		}
	}
}
