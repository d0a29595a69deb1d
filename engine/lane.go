package engine

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// lane runs agents on one slot: it owns the slot's instances of them and the partitions whose number falls to the slot, one
// step at a time, its feeds in turn. The intake puts records in; run takes them out.
//
// Agents that may touch the same tables share lanes, so a partition of a table has one owner, too.
type lane struct {
	slot    int
	commits *committer
	intake  *intake
	limits  limits

	decoding decoding // of the lane's goroutine

	mu     sync.Mutex
	feeds  []*feed            // guarded by mu
	shares map[shareOf]*share // guarded by mu; of tables
	turn   int                // guarded by mu; feed to look at first
	wake   chan struct{}      // capacity 1: there may be something to do
	idle   *sync.Cond         // on mu; broadcast when a step is over
}

// shareOf names a share.
type shareOf struct {
	table  int
	number int32
}

// limits bound what one call takes.
type limits struct {
	records     int
	bytes       int64
	linger      time.Duration // how long to wait for a fuller batch
	concurrency int           // records in progress at once
}

// feed is one partition's way to one agent: fetched records that wait for their turn, and those that were processed since
// the last commit, which come back when it fails. Guarded by lane.mu.
//
// Invariant: done, taken and chunks are the records from committed on, in offset order, without a gap.
type feed struct {
	agent      *agent
	partition  record.Partition
	local      bool            // it is of no partition but of the process: a task's that runs in every one. Its offsets count runs
	positioned bool            // where the agent goes on is known
	awaits     bool            // what is fetched is not what comes next for it: nothing is taken in until it is fetched anew
	ready      bool            // where the agent begins is known, and its tables are restored; until then no step begins
	shares     []*share        // of the agent's tables, by the program's index; there while ready
	chunks     []chunk         // in offset order
	queued     int             // records in chunks
	taken      chunk           // of the step under way
	done       []chunk         // applied, not committed
	first      int64           // offset of the first record ever queued; -1 before it
	applied    int64           // everything below is applied; -1 for nothing yet
	committed  int64           // what applied was at the last commit
	known      map[int64]known // records that failed in a way that only showed after their call, by offset
	notBefore  time.Time       // a retry waits until then
	wake       time.Time       // a tick is due then; zero: none is
	ticked     bool            // the last step was a tick: records go first
	acted      bool            // a tick, or what expires, has made something since the last cut
	noSchema   bool            // the last step went back for want of a schema
	busy       bool            // a step is running
	alone      int64           // records below this offset are not processed beside others: that has gone wrong
	single     int64           // records below this offset are processed one by one: one of a batch wrote what its table does not take
	fresh      int64           // records below this offset are processed one by one, each in a new instance: alone was not enough
	era        int             // how often the feed was rewound: what a step began before must not count
	flush      bool            // what is queued is due now, however little it is
	draining   bool            // begin no further step: the partition is being revoked, or the engine stops
	dropped    bool            // another member may own the partition: a running step throws its result away
	paused     bool            // not fetched, and not counted by the intake, until it moves again
	fetched    int64           // offset behind all that was queued
	moved      int64           // records taken so far
	seen       int64           // moved when the intake was last found full, to tell a stalled feed
}

// chunk is a run of records and the offset behind them, which may be higher than the last one's: ends of transactions and
// records that do not count have offsets, too. It may hold no record at all.
type chunk struct {
	records []record.Record
	next    int64
	arrived time.Time
}

// known is a failure that a record has whatever its code does.
type known struct {
	failure record.Failure
	trim    bool // its dead letter is too large with all its texts
	later   bool // it has another attempt by the scheduler
}

func newLane(slot int, c *committer, in *intake, lim limits) *lane {
	ln := &lane{slot: slot, commits: c, intake: in, limits: lim, wake: make(chan struct{}, 1), shares: map[shareOf]*share{}}
	ln.idle = sync.NewCond(&ln.mu)
	return ln
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// assign adds a partition. Its records wait for begin.
func (l *lane) assign(a *agent, p record.Partition) *feed {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &feed{agent: a, partition: p, first: -1, applied: -1, committed: -1}
	l.feeds = append(l.feeds, f)
	return f
}

// position says where the agent goes on: at offset next; -1 is where its records begin.
func (l *lane) position(f *feed, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.positioned = true
	if next < 0 {
		return
	}
	f.applied, f.committed = next, next
	for len(f.chunks) > 0 && f.chunks[0].next <= next {
		l.count(f, -len(f.chunks[0].records))
		f.chunks = f.chunks[1:]
	}
	if len(f.chunks) > 0 {
		c := &f.chunks[0]
		n := 0
		for n < len(c.records) && c.records[n].Offset < next {
			n++
		}
		l.count(f, -n)
		c.records = c.records[n:]
	}
}

// await drops what was fetched for a feed, and what comes, until its partition is fetched anew.
func (l *lane) await(f *feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(f, -f.queued)
	f.chunks, f.awaits = nil, true
}

// begin lets steps of the feed begin, if its position is known. The agent's tables are restored; take gives a partition of one
// into the lane's hands, or nil.
func (l *lane) begin(f *feed, take func(table int, number int32) *share) {
	l.mu.Lock()
	defer l.signal()
	defer l.mu.Unlock()
	if !f.positioned || f.ready || f.dropped {
		return
	}
	for _, table := range f.agent.tables {
		at := shareOf{table, f.partition.Number}
		s := l.shares[at]
		if s == nil {
			if s = take(at.table, at.number); s == nil {
				f.shares = nil
				return // it is not ready any more
			}
			if s.staged != nil {
				l.shares[at] = s
			}
		}
		f.shares = append(f.shares, s)
	}
	f.ready = true
	f.awake()
	l.pass(f)
}

// awake makes a tick due at once, if the agent acts by itself. l.mu is held.
func (f *feed) awake() {
	if f.agent.timed {
		f.wake = time.Now()
	}
}

// hold keeps steps of the feeds that use a share from beginning until begin, and ends the share. What is staged over it, and
// steps under way, must not count by then.
func (l *lane) hold(s *share) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.feeds {
		if slices.Contains(f.shares, s) {
			f.ready, f.shares = false, nil
		}
	}
	maps.DeleteFunc(l.shares, func(_ shareOf, other *share) bool { return other == s })
}

// release ends the shares that no feed uses any more.
func (l *lane) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.shares, func(_ shareOf, s *share) bool {
		return !slices.ContainsFunc(l.feeds, func(f *feed) bool { return slices.Contains(f.shares, s) })
	})
}

// owned is the shares in the lane's hands.
func (l *lane) owned() []*share {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.shares))
}

// takeBack drops what is staged over the lane's shares. The committer's cut is held for writing.
func (l *lane) takeBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.shares {
		s.staged.Abort()
		s.version++
	}
}

// put queues fetched records. It never blocks: the intake polls only while there is room.
func (l *lane) put(f *feed, records []record.Record, next int64) {
	l.mu.Lock()
	defer l.signal()
	defer l.mu.Unlock()
	if f.awaits {
		return
	}
	f.fetched = max(f.fetched, next)
	if f.first < 0 {
		f.first = next
		if len(records) > 0 {
			f.first = records[0].Offset
		}
	}
	if f.positioned && next <= f.applied {
		return
	}
	for f.positioned && len(records) > 0 && records[0].Offset < f.applied {
		records = records[1:]
	}
	if last := len(f.chunks) - 1; len(records) == 0 && last >= 0 {
		f.chunks[last].next = next
		return
	}
	f.chunks = append(f.chunks, chunk{records, next, time.Now()})
	l.count(f, len(records))
	l.pass(f)
}

// pass moves over offsets without records at the head of the queue. l.mu is held.
func (l *lane) pass(f *feed) {
	for f.ready && !f.busy && len(f.chunks) > 0 && len(f.chunks[0].records) == 0 {
		f.done = append(f.done, f.chunks[0])
		f.applied = f.chunks[0].next
		f.chunks = f.chunks[1:]
	}
}

// position is the next offset the agent is to process, as far as that is known. l.mu is held.
func (f *feed) position() int64 {
	if f.applied >= 0 {
		return f.applied
	}
	if f.positioned {
		return f.first
	}
	return -1
}

// drain stops the feeds from beginning further steps and waits for those under way; it reports whether they all ended
// in time. Those that did not still count, with what they did before, until the committer drops them.
func (l *lane) drain(feeds []*feed, until time.Time) bool {
	if left := time.Until(until); left > 0 {
		timer := time.AfterFunc(left, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.idle.Broadcast()
		})
		defer timer.Stop()
	}
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
			return false
		}
		l.idle.Wait()
	}
}

// remove forgets feeds and their queued records.
func (l *lane) remove(feeds []*feed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range feeds {
		f.draining, f.dropped = true, true
		l.count(f, -f.queued)
		f.chunks, f.done, f.taken = nil, nil, chunk{}
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
		err := l.step(hard, f, &w)
		l.mu.Lock()
		f.busy = false
		l.pass(f)
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
	if l.commits.full() {
		return nil, work{}, time.Hour // released signals
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := time.Hour
	for i := range l.feeds {
		at := (l.turn + i) % len(l.feeds)
		f := l.feeds[at]
		if !f.ready || f.busy || f.draining {
			continue
		}
		records, tick := l.dueIn(f, now), f.tickIn(now)
		if d := min(records, tick); d > 0 {
			wait = min(wait, d)
			continue
		}
		l.turn = at + 1
		f.busy = true
		if tick <= 0 && (records > 0 || !f.ticked) {
			return f, l.tick(f, now), 0
		}
		return f, l.take(f), 0
	}
	return nil, work{}, wait
}

// tickIn is how long the feed's next tick has still to wait.
func (f *feed) tickIn(now time.Time) time.Duration {
	if f.wake.IsZero() {
		return time.Hour
	}
	return f.wake.Sub(now)
}

// tick is a step without records. l.mu is held.
func (l *lane) tick(f *feed, now time.Time) work {
	f.ticked = true
	b := record.Batch{Tick: true, CacheValid: f.cacheValid(), Records: []record.Record{{
		Topic: f.partition.Topic, Partition: f.partition.Number, Offset: -1, Timestamp: now.UnixMilli(), Attempt: 1,
	}}}
	if f.local {
		b.Records[0].Offset = f.applied
	}
	return work{batch: b, lane: l, feed: f, era: f.era, shares: f.shares}
}

// dueIn is how long the feed's next batch has still to wait: for its retry, for more records, or not at all.
func (l *lane) dueIn(f *feed, now time.Time) time.Duration {
	if f.queued == 0 {
		return time.Hour
	}
	if d := f.notBefore.Sub(now); d > 0 {
		return d
	}
	if f.flush || f.chunks[0].records[0].Offset < f.single {
		return 0
	}
	most, within := l.limits.records, l.limits.linger
	if t := f.agent.plan.Take; t != nil {
		most, within = t.Max, t.Within
		if within == 0 && f.queued < most && f.chunks[0].records[0].Attempt == 1 {
			return time.Hour // "0s": only when full (agent.md 7.2)
		}
	}
	if f.queued >= most || f.chunks[0].records[0].Attempt > 1 {
		return 0
	}
	return f.chunks[0].arrived.Add(within).Sub(now)
}

// work is one step's input, and what the step has done so far.
type work struct {
	batch  record.Batch
	known  *known // the batch is one record that has failed already
	lane   *lane
	feed   *feed
	era    int      // of the feed, when the step began
	shares []*share // of the feed, when the step began
	ran    bool     // a tick of a local feed was more than a look at the clock
	pinned *epoch   // the step has sent in this epoch ahead of its result
}

// takeBytesMax bounds a take batch: authors count on its number of records, so only the sandbox's memory sets a limit.
const takeBytesMax = 64 << 20

// take removes the next batch from the feed. l.mu is held.
func (l *lane) take(f *feed) work {
	f.ticked = false
	w := work{batch: record.Batch{StopOnFailure: f.agent.stopOnFailure, CacheValid: f.cacheValid()}, lane: l, feed: f, era: f.era, shares: f.shares}
	b := &w.batch
	most, bytesMax := l.limits.records, l.limits.bytes
	if t := f.agent.plan.Take; t != nil {
		b.Take = true
		most, bytesMax = t.Max, takeBytesMax
	}
	first := &f.chunks[0].records[0]
	if first.Offset >= f.alone && (l.commits.exactlyOnce || !f.agent.stopOnFailure) {
		// Otherwise a record behind one that fails may have sent something, which nobody takes back before it is processed again.
		b.Concurrency = l.limits.concurrency
	}
	if k, ok := f.known[first.Offset]; ok {
		w.known, most = &k, 1
	} else if b.Take && first.Attempt > 1 {
		most = 1 // it failed as a list of its own, and is tried again as one
	} else if first.Offset < f.single {
		most = 1
	}
	if first.Offset < f.fresh {
		most, b.Fresh = 1, true
	}
	var bytes int64
	f.taken = chunk{}
	for full := false; !full && len(b.Records) < most && len(f.chunks) > 0; {
		c := &f.chunks[0]
		if f.taken.arrived.IsZero() {
			f.taken.arrived = c.arrived
		}
		n := 0
		for n < len(c.records) && len(b.Records)+n < most {
			r := &c.records[n]
			size := int64(len(r.Key) + len(r.Value))
			others := len(b.Records)+n > 0
			if others && (bytes+size > bytesMax || f.apart(r, b.Take)) {
				full = true
				break
			}
			bytes += size
			n++
		}
		if b.Records == nil {
			b.Records = c.records[:n:n] // shared with the chunk; copied only when a second one is joined to it
		} else {
			b.Records = append(b.Records, c.records[:n]...)
		}
		if n == len(c.records) {
			f.taken.next = c.next
			f.chunks = f.chunks[1:]
		} else {
			f.taken.next = c.records[n].Offset
			c.records = c.records[n:]
		}
	}
	f.taken.records = b.Records
	l.count(f, -len(b.Records))
	f.flush = f.flush && f.queued > 0
	f.moved += int64(len(b.Records))
	return w
}

// apart says whether a record must begin a batch of its own.
func (f *feed) apart(r *record.Record, take bool) bool {
	if len(f.known) > 0 {
		if _, ok := f.known[r.Offset]; ok {
			return true
		}
	}
	return take && r.Attempt > 1
}

// count changes the number of queued records of a feed, for itself and for the intake. l.mu is held.
func (l *lane) count(f *feed, n int) {
	f.queued += n
	if !f.paused {
		l.intake.add(n)
	} else if n < 0 && l.intake.drained(f.queued) {
		l.intake.interrupt()
	}
}

// again prepares that a step is taken back: records that failed for good are known to have, one that is to be retried has had an attempt.
func (l *lane) again(f *feed, w *work, v *verdict, repeated bool) {
	for _, failed := range v.failed {
		offset := w.batch.Records[failed.Record].Offset
		failed.Record = 0
		l.know(f, offset, known{failure: failed})
	}
	if v.retry == 0 {
		for _, failed := range v.retried { // to come back later: or it would send, fail and be taken back for ever
			offset := w.batch.Records[failed.Record].Offset
			failed.Record = 0
			l.know(f, offset, known{failure: failed, later: true})
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.retry > 0 && v.consumed < len(f.taken.records) {
		f.taken.records = append([]record.Record(nil), f.taken.records...) // shared with the topic's other agents
		f.taken.records[v.consumed].Attempt = int32(v.retry) + 1
		f.notBefore = time.Now().Add(v.pause)
	}
	if repeated {
		f.alone = w.batch.Records[len(w.batch.Records)-1].Offset + 1
		if w.batch.Concurrency <= 1 {
			f.fresh = f.alone
		}
	}
}

// settle moves what the step consumed to the applied records, and gives the rest back to the feed. It does nothing, and
// says so, when the result must not count.
func (l *lane) settle(f *feed, w *work, v *verdict) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.dropped || f.era != w.era {
		return false
	}
	if v.pause > 0 {
		f.notBefore = time.Now().Add(v.pause)
	}
	if w.batch.Tick {
		f.wake = v.wake
		f.acted = f.acted || len(v.outputs)+len(v.changes) > 0 || w.pinned != nil
		if w.ran {
			f.applied++
		}
		return true
	}
	if !v.wake.IsZero() {
		l.wakeBy(f, v.wake)
	}
	all, next, arrived := f.taken.records, f.taken.next, f.taken.arrived
	f.taken = chunk{}
	if v.consumed < len(all) {
		rest := all[v.consumed:]
		if v.retry > 0 {
			rest = append([]record.Record(nil), rest...) // the chunk's array is shared with the topic's other agents
			rest[0].Attempt = int32(v.retry) + 1
		}
		f.chunks = append([]chunk{{rest, next, time.Now()}}, f.chunks...)
		l.count(f, len(rest))
		next = rest[0].Offset
	}
	if v.consumed > 0 {
		f.noSchema = false
		f.done = append(f.done, chunk{all[:v.consumed], next, arrived})
		f.applied = next
	}
	return true
}

// wakeBy makes a tick due at a time at the latest: of the feed, or of whoever acts by what it has written to the table they share.
// l.mu is held.
func (l *lane) wakeBy(f *feed, at time.Time) {
	for _, g := range l.feeds {
		concerned := g == f || len(f.shares) > 0 && slices.Contains(g.shares, f.shares[0])
		if concerned && g.agent.timed && (g.wake.IsZero() || at.Before(g.wake)) {
			g.wake = at
		}
	}
}

// oneByOne gives back what a step took, to be processed record by record: one of them has written what its table does not take, and those
// behind it have seen that.
func (l *lane) oneByOne(ctx context.Context, f *feed, w *work) {
	l.mu.Lock()
	f.single = w.batch.Records[len(w.batch.Records)-1].Offset + 1
	l.mu.Unlock()
	if w.pinned != nil { // what was sent must not be sent twice
		l.commits.takeBack(ctx, l, f, w, &verdict{}, true)
		return
	}
	l.settle(f, w, &verdict{})
}

// distrust has the guest forget what it remembers of tables: it takes what it wrote for what is there.
func (l *lane) distrust(shares []*share) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range shares {
		s.version++
	}
}

// awaitSchema gives back what a step took, to be tried again soon.
func (l *lane) awaitSchema(f *feed, w *work) {
	if l.settle(f, w, &verdict{pause: schemaWait}) {
		l.mu.Lock()
		defer l.mu.Unlock()
		f.noSchema = true
	}
}

// stale says whether a step's result would be thrown away by now.
func (l *lane) stale(w *work) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return w.feed.dropped || w.feed.era != w.era
}

// forget drops the applied records below a committed offset. l.mu is held.
func (f *feed) forget(committed int64) {
	f.committed = committed
	n := 0
	for now := time.Now(); n < len(f.done) && f.done[n].next <= committed; n++ {
		f.agent.stats.Lasted.observeEach(now.Sub(f.done[n].arrived), len(f.done[n].records))
	}
	f.done = f.done[n:]
	if len(f.done) == 0 {
		f.done = nil
	}
	for offset := range f.known {
		if offset < committed {
			delete(f.known, offset)
		}
	}
}

// rewind gives the feed back what was applied since the last commit, and what the step under way took. l.mu is held.
func (l *lane) rewind(f *feed) {
	f.era++
	back := f.done
	f.done = nil
	if len(f.taken.records) > 0 {
		back = append(back, f.taken)
		f.taken = chunk{}
	}
	n := 0
	now := time.Now()
	for i := range back {
		back[i].arrived = now
		n += len(back[i].records)
	}
	f.chunks = append(back, f.chunks...)
	f.applied = f.committed
	f.awake()
	l.count(f, n)
	if !f.busy {
		l.pass(f)
	}
}

// know notes that a record fails whatever its code does.
func (l *lane) know(f *feed, offset int64, k known) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.known == nil {
		f.known = map[int64]known{}
	}
	f.known[offset] = k
}
