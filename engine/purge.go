package engine

import (
	"context"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// purgeEvery is how often what was read for good is deleted from the app's own topics.
const purgeEvery = 10 * time.Second

// purgeLoop deletes records of the app's own topics once all agents here that read them have committed past them: nobody else
// reads them, and by themselves they stay for ever, so that an app may stand still as long as it wants.
func (a *App) purgeLoop(ctx context.Context) {
	if len(a.plan.Own) == 0 {
		return
	}
	own := map[string]bool{}
	for i := range a.plan.Own {
		own[a.plan.Own[i].Name] = !a.plan.Own[i].Public
	}
	deleted := map[record.Partition]int64{}
	refused := false
	tick := time.NewTicker(purgeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		below := map[record.Partition]int64{}
		for p, at := range a.Settled() {
			if own[p.Topic] && at > deleted[p] {
				below[p] = at
			}
		}
		err := a.admin.DeleteRecords(ctx, below)
		switch {
		case err == nil:
			for p, at := range below {
				deleted[p] = at
			}
			refused = false
		case ctx.Err() == nil && !refused:
			refused = true
			a.log.Warn("the app's own topics grow: what was processed cannot be deleted from them; it is tried again", "every", purgeEvery, "err", err)
		}
	}
}
