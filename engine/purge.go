package engine

import (
	"context"
	"log/slog"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// purgeEvery is how often what was read for good is deleted from the app's internal topics.
const purgeEvery = 10 * time.Second

// purge deletes records of the app's internal topics once all agents that read them have committed past them: nobody else
// reads them, and by themselves they stay for ever, so that an app may stand still as long as it wants.
type purge struct {
	topics  map[string]bool
	settled func() map[record.Partition]int64 // of the partitions here: below which all their agents have committed
	delete  func(ctx context.Context, below map[record.Partition]int64) error
	log     *slog.Logger

	deleted map[record.Partition]int64 // below which nothing is left
	refused bool                       // the last time
}

func (a *App) purgeLoop(ctx context.Context) {
	p := purge{topics: a.plan.Internal(), settled: a.Settled, delete: a.admin.DeleteRecords, log: a.log, deleted: map[record.Partition]int64{}}
	if len(p.topics) == 0 {
		return
	}
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.once(ctx)
		}
	}
}

func (p *purge) once(ctx context.Context) {
	below := map[record.Partition]int64{}
	for part, at := range p.settled() {
		if p.topics[part.Topic] && at > p.deleted[part] {
			below[part] = at
		}
	}
	err := p.delete(ctx, below)
	switch {
	case err == nil:
		for part, at := range below {
			p.deleted[part] = at
		}
		p.refused = false
	case ctx.Err() == nil && !p.refused:
		p.refused = true
		p.log.Warn("the app's internal topics grow: what was processed cannot be deleted from them; it is tried again", "every", purgeEvery, "err", err)
	}
}
