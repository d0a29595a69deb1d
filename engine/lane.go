package engine

import (
	"context"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// lane runs one agent on one slot: it owns the slot's instance and the partitions that fall to the slot, one step at a
// time, its partitions in turn. The intake puts records in; run takes them out.
type lane struct {
	agent  *agent
	slot   int
	ledger *ledger
	sink   sink
	intake *intake
	limits limits

	mu    sync.Mutex
	feeds []*feed       // guarded by mu
	turn  int           // guarded by mu; feed to look at first
	wake  chan struct{} // capacity 1: there may be something to do
	idle  *sync.Cond    // on mu; broadcast when a step is over
}

// limits bound what one call takes.
type limits struct {
	records int
	bytes   int64
	linger  time.Duration // how long to wait for a fuller batch
}

// feed is one partition's way to one agent: fetched records that wait for their turn. Guarded by lane.mu.
type feed struct {
	partition record.Partition
	chunks    []chunk   // in offset order; none is empty
	queued    int       // records in chunks
	held      []held    // failed records of take batches, to be retried one by one before the chunks
	notBefore time.Time // a retry waits until then
	busy      bool      // a step is running
	flush     bool      // what is queued is due now, however little it is
	draining  bool      // begin no further step: the partition is being revoked, or the engine stops
	dropped   bool      // another member may own the partition: a running step throws its result away
	paused    bool      // not fetched, and not counted by the intake, until it moves again
	moved     int64     // records taken so far
	seen      int64     // moved when the intake was last found full, to tell a stalled feed
}

// held is a failed record of a take batch on its way to another attempt. The batch's span stays open until released.
type held struct {
	record  record.Record
	release func(bool)
}

type chunk struct {
	records []record.Record
	arrived time.Time
}

func newLane(a *agent, slot int, l *ledger, s sink, in *intake, lim limits) *lane {
	ln := &lane{agent: a, slot: slot, ledger: l, sink: s, intake: in, limits: lim, wake: make(chan struct{}, 1)}
	ln.idle = sync.NewCond(&ln.mu)
	return ln
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// assign adds a partition.
func (l *lane) assign(p record.Partition) *feed {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &feed{partition: p}
	l.feeds = append(l.feeds, f)
	return f
}

// put queues fetched records. It never blocks: the intake polls only while there is room.
func (l *lane) put(f *feed, records []record.Record) {
	l.mu.Lock()
	f.chunks = append(f.chunks, chunk{records, time.Now()})
	l.count(f, len(records))
	l.mu.Unlock()
	l.signal()
}

// drain stops the feeds from beginning further steps and waits for those under way; it reports whether they all ended
// in time. Those that did not are dropped: what they return is thrown away.
func (l *lane) drain(feeds []*feed, until time.Time) bool {
	timer := time.AfterFunc(time.Until(until), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.idle.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range feeds {
		f.draining = true
	}
	for {
		busy := false
		for _, f := range feeds {
			busy = busy || f.busy
		}
		if !busy {
			return true
		}
		if !time.Now().Before(until) {
			for _, f := range feeds {
				f.dropped = f.dropped || f.busy
			}
			return false
		}
		l.idle.Wait()
	}
}

// remove forgets feeds and their queued records.
func (l *lane) remove(feeds []*feed, drop bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range feeds {
		f.draining = true
		f.dropped = f.dropped || drop
		l.count(f, -f.queued)
		f.chunks, f.held = nil, nil
		for i := range l.feeds {
			if l.feeds[i] == f {
				l.feeds = append(l.feeds[:i], l.feeds[i+1:]...)
				break
			}
		}
	}
}

// run steps until ctx ends or a step fails for good. A step under way when ctx ends goes on to its end, within hard.
func (l *lane) run(ctx, hard context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		f, w, wait := l.next(time.Now())
		if f == nil {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return nil
			case <-l.wake:
			case <-timer.C:
			}
			continue
		}
		err := l.step(hard, f, w)
		l.mu.Lock()
		f.busy = false
		l.idle.Broadcast()
		l.mu.Unlock()
		switch {
		case ctx.Err() != nil && (err == nil || hard.Err() != nil):
			return nil
		case err != nil:
			return err
		}
	}
}

// next chooses the next feed that has a batch ready and takes the batch from it; without one it says how long nothing
// will become ready by itself.
func (l *lane) next(now time.Time) (*feed, work, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := time.Hour
	for i := range l.feeds {
		at := (l.turn + i) % len(l.feeds)
		f := l.feeds[at]
		if f.busy || f.draining || (f.queued == 0 && len(f.held) == 0) {
			continue
		}
		if d := l.dueIn(f, now); d > 0 {
			wait = min(wait, d)
			continue
		}
		l.turn = at + 1
		f.busy = true
		return f, l.take(f), 0
	}
	return nil, work{}, wait
}

// dueIn is how long the feed's next batch has still to wait: for its retry, for more records, or not at all.
func (l *lane) dueIn(f *feed, now time.Time) time.Duration {
	if d := f.notBefore.Sub(now); d > 0 {
		return d
	}
	if len(f.held) > 0 || f.flush {
		return 0
	}
	most, within := l.limits.records, l.limits.linger
	if t := l.agent.plan.Take; t != nil {
		most, within = t.Max, t.Within
		if within == 0 && f.queued < most {
			return time.Hour // "0s": only when full (agent.md 7.2)
		}
	}
	if f.queued >= most || f.chunks[0].records[0].Attempt > 1 {
		return 0
	}
	return f.chunks[0].arrived.Add(within).Sub(now)
}

// work is one step's input: a batch, and for a held record what releases its span.
type work struct {
	batch   record.Batch
	release func(bool) // nil for records from the queue
}

// takeBytesMax bounds a take batch: authors count on its number of records, so only the sandbox's memory sets a limit.
const takeBytesMax = 64 << 20

// take removes the next batch from the feed.
func (l *lane) take(f *feed) work {
	w := work{batch: record.Batch{StopOnFailure: l.agent.stopOnFailure}}
	b := &w.batch
	most, bytesMax := l.limits.records, l.limits.bytes
	if t := l.agent.plan.Take; t != nil {
		b.Take, b.StopOnFailure = true, false
		most, bytesMax = t.Max, takeBytesMax
		if len(f.held) > 0 {
			b.Records, w.release = []record.Record{f.held[0].record}, f.held[0].release
			f.held = f.held[1:]
			return w
		}
	}
	var bytes int64
	for full := false; !full && len(b.Records) < most && len(f.chunks) > 0; {
		head := f.chunks[0].records
		n := 0
		for n < len(head) && len(b.Records)+n < most {
			size := int64(len(head[n].Key) + len(head[n].Value))
			if bytes+size > bytesMax && len(b.Records)+n > 0 {
				full = true
				break
			}
			bytes += size
			n++
		}
		if b.Records == nil {
			b.Records = head[:n:n] // shared with the chunk; copied only when a second one is joined to it
		} else {
			b.Records = append(b.Records, head[:n]...)
		}
		if n == len(head) {
			f.chunks = f.chunks[1:]
		} else {
			f.chunks[0].records = head[n:]
		}
	}
	l.count(f, -len(b.Records))
	f.flush = f.flush && f.queued > 0
	f.moved += int64(len(b.Records))
	return w
}

// count changes the number of queued records of a feed, for itself and for the intake. l.mu is held.
func (l *lane) count(f *feed, n int) {
	f.queued += n
	if !f.paused {
		l.intake.add(n)
	}
}

// settle gives back to the feed what the step did not finish.
func (l *lane) settle(f *feed, b *record.Batch, v *verdict, release func(bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.pause > 0 {
		f.notBefore = time.Now().Add(v.pause)
	}
	for i := len(v.held) - 1; i >= 0; i-- {
		f.held = append([]held{{v.held[i], release}}, f.held...)
	}
	if v.consumed < len(b.Records) {
		rest := b.Records[v.consumed:]
		if v.retry > 0 {
			rest = append([]record.Record(nil), rest...) // the chunk's array is shared with the topic's other agents
			rest[0].Attempt = int32(v.retry) + 1
		}
		f.chunks = append([]chunk{{rest, time.Now()}}, f.chunks...)
		l.count(f, len(rest))
	}
}
