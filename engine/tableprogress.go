package engine

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// phase is what happens to a partition of a table.
type phase string

const (
	phaseAbsent    phase = "absent"    // not here
	phaseWaiting   phase = "waiting"   // for its store, or for Kafka to say how far its changelog goes
	phaseRestoring phase = "restoring" // reads the changelog
	phaseActive    phase = "active"    // restored, changed here
	phaseCopy      phase = "copy"      // restored, follows changes made elsewhere
	phaseFailed    phase = "failed"    // will be tried again; Err says why
)

// recovering says whether the partition is still on its way.
func (p phase) recovering() bool { return p == phaseRestoring || p == phaseWaiting }

// tableKeeping is how far a partition's keeper is.
type tableKeeping struct {
	mu     sync.Mutex
	phase  phase     // guarded by mu
	role   tableRole // guarded by mu
	now    int64     // guarded by mu; next changelog offset to read
	end    int64     // guarded by mu; end of the changelog as last heard
	rate   float64   // guarded by mu; offsets a second, of the last seconds
	since  time.Time // guarded by mu; of the rate's last sample
	mark   int64     // guarded by mu; position at the last sample
	stalls int64     // guarded by mu
	err    error     // guarded by mu; of the last failure, until success
}

// tableProgress is how far one partition of a table is. Offsets stand for records: compaction and transactions leave gaps,
// so there may be fewer.
type tableProgress struct {
	Table     string
	Partition int32
	Role      string // active, copy
	Phase     phase
	Offset    int64         // next changelog offset to read
	End       int64         // end of the changelog as last heard
	Left      int64         // records left to read, at most
	Rate      float64       // records a second while restoring
	ETA       time.Duration // 0: none, or unknown
	Stalls    int64         // times it made no progress and was read anew
	Err       error         // why it failed, until it is restored
}

// Progress is that of every partition that is here or is to be, by table and number.
func (t *tables) Progress() []tableProgress {
	var out []tableProgress
	t.each(func(p *tablePart) {
		g := &p.progress
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.phase == "" || g.phase == phaseAbsent {
			return
		}
		x := tableProgress{
			Table: t.plan[p.table].Name, Partition: p.number, Role: g.role.String(), Phase: g.phase,
			Offset: g.now, End: g.end, Left: max(0, g.end-g.now), Stalls: g.stalls, Err: g.err,
		}
		if g.phase == phaseActive {
			x.Offset = p.offset.Load()
			if store, _ := p.Store(); store != nil {
				x.Offset = store.Offset()
			}
			x.End, x.Left = x.Offset, 0
		}
		if g.phase == phaseRestoring {
			x.Rate = g.rate
			if g.rate > 0 {
				x.ETA = time.Duration(float64(x.Left) / g.rate * float64(time.Second)).Round(time.Second)
			}
		}
		out = append(out, x)
	})
	return out
}

func (g *tableKeeping) set(p phase) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase = p
	if p == phaseActive || p == phaseCopy {
		g.err = nil
	}
}

func (g *tableKeeping) begin(r tableRole) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase, g.role = phaseWaiting, r
}

func (g *tableKeeping) restoring(from, to int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase, g.now, g.end, g.rate, g.since, g.mark = phaseRestoring, from, to, 0, time.Now(), from
}

func (g *tableKeeping) at(now, end int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now, g.end = now, end
	if past := time.Since(g.since); past >= time.Second || g.rate == 0 && past > 100*time.Millisecond {
		rate := float64(now-g.mark) / past.Seconds()
		if g.rate > 0 {
			rate = (rate + g.rate) / 2
		}
		g.rate, g.since, g.mark = rate, time.Now(), now
	}
}

func (g *tableKeeping) failed(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.phase, g.err = phaseFailed, err
}

func (g *tableKeeping) stalled() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stalls++
}

// reportMax is how many partitions are named in the log at a time.
const reportMax = 8

// report logs the progress of what is being restored.
func (t *tables) report() {
	tick := time.NewTicker(t.tuning.reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.ctx.Done():
			return
		}
		var list []tableProgress
		var left int64
		var rate float64
		for _, x := range t.Progress() {
			if x.Phase.recovering() {
				list = append(list, x)
				left += x.Left
				rate += x.Rate
			}
		}
		slices.SortStableFunc(list, func(a, b tableProgress) int { return cmp.Compare(b.Left, a.Left) })
		for _, x := range list[:min(len(list), reportMax)] {
			t.log.Info("restoring table", "table", x.Table, "partition", x.Partition, "role", x.Role, "phase", x.Phase, "offset", x.Offset,
				"left", x.Left, "rate", int64(x.Rate), "eta", x.ETA)
		}
		if len(list) > reportMax {
			t.log.Info("restoring tables", "partitions", len(list), "left", left, "rate", int64(rate))
		}
	}
}
