package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
)

// committer makes steps durable: it ends one epoch after the other.
//
// An epoch is all that steps applied between two cuts: outputs, table changes, positions in the input. Its commit writes
// the changelog, waits until the broker has acknowledged everything, and commits the positions; with exactly_once all of
// that is one Kafka transaction. Only then the changes go into the stores. Processing goes on meanwhile, in the next
// epoch, whose outputs wait for the transaction to end; without transactions they go out at once.
//
// Invariant: a position is committed only together with, or after, everything that was made of the records below it.
// Invariant: a store holds only changes of committed epochs.
//
// An epoch that cannot be committed is rolled back with the one begun after it: staged changes are dropped, the feeds get
// their records back, and steps under way throw their results away. With at_least_once there is no rollback: what went out
// is out, so a failed commit is repeated with the next one.
type committer struct {
	exactlyOnce bool
	producer    sender
	member      member
	group       broker.Grouped    // member, as the producer wants it
	sending     context.Context   // of everything that is sent: it outlives the lanes
	feeds       func() []laneFeed // of assigned partitions
	lanes       func() []*lane
	shareFailed func(s *share, err error) // its store cannot be used any more; nothing is staged over it. cut is held for writing
	fail        func(error)               // stops the app
	released    func()                    // outputs go out again: lanes that waited for it go on
	log         *slog.Logger

	running chan struct{} // capacity 1; full while somebody ends an epoch: one at a time
	broken  error         // guarded by running; with at_least_once: outputs were lost, nothing may be committed any more

	takeOvers []time.Time // guarded by running; times this process took its transactional id back within the last minute

	// cut is held for reading while a step's result is applied, and for writing while an epoch is ended or rolled back.
	cut       sync.RWMutex
	current   *epoch                               // guarded by cut
	committed map[record.Partition]broker.Position // guarded by cut; what the group has stored of assigned partitions
	last      atomic.Pointer[epoch]                // the one that is being committed

	now   chan struct{} // capacity 1: commit before the interval is over
	since atomic.Int64  // records applied since the last cut
	every int64         // records after which to commit

	stats CommitStats
}

// CommitStats counts what became of epochs.
type CommitStats struct {
	Commits, Rollbacks, Reopened atomic.Int64
	Took                         durations // from cut to commit

	Sends       durations // from a send to its acknowledgement, of every output
	SendsFailed durations // to its refusal
	// Keys that commits set and deleted, by changelog. A key that was written several times counts once a commit.
	Updated, Deleted counts
}

// changed counts the changes of a commit.
func (s *CommitStats) changed(changelog string, set *state.ChangeSet) {
	deleted := int64(0)
	for i := range set.Changes {
		if set.Changes[i].Value == nil {
			deleted++
		}
	}
	s.Updated.add(map[string]int64{changelog: int64(len(set.Changes)) - deleted})
	s.Deleted.add(map[string]int64{changelog: deleted})
}

// sender is what the committer needs of broker.Producer.
type sender interface {
	Send(ctx context.Context, outs []record.Output, done func([]broker.SendFailure))
	SendOne(ctx context.Context, o record.Output, done func(broker.Delivered, time.Time, error))
	Append(ctx context.Context, to record.Partition, n int, entry func(int) broker.Entry, done func(int64, error))
	Begin() error
	Prepare(ctx context.Context, g broker.Grouped, offsets map[record.Partition]broker.Position) error
	Commit(ctx context.Context) error
	Committed()
	Abort(ctx context.Context) error
	Reopen(ctx context.Context) error
}

// member is what the committer needs of broker.Member.
type member interface {
	Commit(ctx context.Context, offsets map[record.Partition]broker.Position) error
	Committed(ctx context.Context, ps []record.Partition) (map[record.Partition]broker.Position, error)
}

// How much may wait for a transaction to end before steps wait too: bytes of outputs, and records as a multiple of those after
// which is committed. Feeds keep the records, and tables their changes, until then.
const (
	pendingBytesMax = 64 << 20
	sinceMax        = 20
)

// epoch is the outputs of the steps applied between two cuts.
type epoch struct {
	ctx    context.Context // of everything sent in it; ends when the epoch is rolled back
	cancel context.CancelFunc

	mu      sync.Mutex
	changed *sync.Cond        // on mu
	open    bool              // guarded by mu; sends go out. Else they are kept until the transaction before has ended
	closed  bool              // guarded by mu; another epoch is the current one
	pending []delivery        // guarded by mu
	bytes   int64             // guarded by mu; of pending
	sent    int               // guarded by mu; messages given to the producer: there is something to commit or abort
	sending int               // guarded by mu; calls of the producer under way
	left    int               // guarded by mu; deliveries that are not acknowledged
	pins    int               // guarded by mu; steps under way that have sent already: the epoch cannot be cut
	refused []refusal         // guarded by mu; with exactly_once
	tallies map[*agent]*tally // guarded by mu
	kept    []func()          // guarded by mu; verdict.kept of its steps
	broken  error             // guarded by mu; why it must not be committed
}

// delivery is the outputs of one step.
type delivery struct {
	lane  *lane
	feed  *feed
	batch *record.Batch
	v     *verdict
}

// refusal is an output the broker will not take.
type refusal struct {
	delivery
	broker.SendFailure
}

func newEpoch(parent context.Context, open bool) *epoch {
	e := &epoch{open: open, tallies: map[*agent]*tally{}}
	e.ctx, e.cancel = context.WithCancel(parent)
	e.changed = sync.NewCond(&e.mu)
	return e
}

// errRolledBack is why a step under way cannot send any more.
var errRolledBack = errors.New("the transaction was rolled back; the record is processed again")

// apply makes a step's result part of the epoch: records leave the feed, changes are staged, outputs go out. It does
// nothing and says so when the result must not count any more.
func (c *committer) apply(l *lane, f *feed, w *work, v *verdict) bool {
	c.cut.RLock()
	defer c.unpin(w)
	if !l.settle(f, w, v) {
		c.cut.RUnlock()
		return false
	}
	if w.known == nil { // else no code ran: what its instance remembers of the tables may be of a step that was taken back
		l.stage(f, v.changes)
	}
	e := c.current
	d := delivery{l, f, &w.batch, v}
	out := e.begin(d)
	c.cut.RUnlock()
	if out {
		c.deliver(e, d)
	}
	if c.since.Add(int64(v.consumed)) >= c.every {
		c.poke()
	}
	return true
}

// change makes changes that come from no step part of the epoch, unless the feed's partition is being given up. Like those of a tick they
// are committed with a position: it proves that they are, a process that no longer owns the partition cannot write it, and the next owner waits for it.
func (c *committer) change(l *lane, f *feed, do func() (made bool, err error)) error {
	c.cut.RLock()
	defer c.cut.RUnlock()
	l.mu.Lock()
	ok := f.ready && !f.dropped
	l.mu.Unlock()
	if !ok {
		return nil
	}
	made, err := do()
	l.mu.Lock()
	defer l.mu.Unlock()
	f.acted = f.acted || made
	return err
}

// begin takes a delivery into the epoch and says whether to send it now.
func (e *epoch) begin(d delivery) (now bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tallies[d.feed.agent]
	if t == nil {
		t = newTally()
		e.tallies[d.feed.agent] = t
	}
	t.add(d.feed.partition.Topic, d.v)
	if d.v.kept != nil {
		e.kept = append(e.kept, d.v.kept)
	}
	if len(d.v.outputs) == 0 {
		return false
	}
	e.left++
	if e.open {
		e.sent += len(d.v.outputs)
		e.sending++
		return true
	}
	e.pending = append(e.pending, d)
	for i := range d.v.outputs {
		o := &d.v.outputs[i]
		e.bytes += int64(len(o.Key) + len(o.Value) + 64)
	}
	return false
}

// deliver sends a step's outputs, dead letters among them, in record order. The producer keeps the order of every partition.
func (c *committer) deliver(e *epoch, d delivery) {
	began := time.Now()
	c.producer.Send(e.ctx, d.v.outputs, func(refused []broker.SendFailure) {
		took := time.Since(began)
		c.stats.Sends.observeEach(took, len(d.v.outputs)-len(refused))
		c.stats.SendsFailed.observeEach(took, len(refused))
		switch {
		case len(refused) == 0:
			e.finish(nil)
		case c.exactlyOnce:
			e.mu.Lock()
			for _, r := range refused {
				e.refused = append(e.refused, refusal{d, r})
			}
			e.mu.Unlock()
			e.finish(nil)
			c.poke()
		default:
			// It sends again, which a producer's callback must not wait for.
			go func() { d.feed.agent.undelivered(e.ctx, d.batch, d.v, refused, e.finish) }()
		}
	})
	e.sentAll()
}

// sentAll counts off one call of the producer.
func (e *epoch) sentAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sending--
	e.changed.Broadcast()
}

// finish counts one delivery off; with an error its outputs are lost.
func (e *epoch) finish(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left--
	if err != nil && e.broken == nil {
		e.broken = err
	}
	e.changed.Broadcast()
}

// epoch is the current one.
func (c *committer) epoch() *epoch {
	c.cut.RLock()
	defer c.cut.RUnlock()
	return c.current
}

// release lets the epoch's outputs go out: the transaction before has ended, its own has begun. running is held.
func (c *committer) release() {
	e := c.epoch()
	for {
		e.mu.Lock()
		pending := e.pending
		e.pending, e.bytes = nil, 0
		if len(pending) == 0 {
			e.open = true
			e.changed.Broadcast()
			e.mu.Unlock()
			c.released()
			return
		}
		for _, d := range pending {
			e.sent += len(d.v.outputs)
			e.sending++
		}
		e.mu.Unlock()
		for _, d := range pending {
			c.deliver(e, d)
		}
	}
}

// full says whether steps should wait for the transaction before to end.
func (c *committer) full() bool {
	if c.since.Load() > sinceMax*c.every {
		return true
	}
	e := c.epoch()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bytes > pendingBytesMax
}

// sendNow sends one output of a step under way; done is called with what the broker says (topicSend with ack). With exactly_once it is
// part of the running transaction, which therefore cannot end before the step.
func (c *committer) sendNow(ctx context.Context, w *work, o record.Output, done func(broker.Delivered, time.Time, error)) {
	if !c.exactlyOnce {
		c.producer.SendOne(ctx, o, done)
		return
	}
	if w == nil {
		done(broker.Delivered{}, time.Time{}, errors.New("a message can be sent only while a record is processed"))
		return
	}
	e, err := c.pin(ctx, w)
	if err != nil {
		done(broker.Delivered{}, time.Time{}, err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(e.ctx, cancel)
	c.producer.SendOne(ctx, o, func(d broker.Delivered, at time.Time, err error) {
		stop()
		cancel()
		if err != nil && !(broker.SendFailure{Err: err}).OfMessage() {
			e.poison(err) // nor is it the record's fault
		}
		e.finish(nil)
		done(d, at, err)
	})
	e.sentAll()
}

// pin keeps the current epoch from being cut until the step is over, and counts a call of the producer and its delivery.
func (c *committer) pin(ctx context.Context, w *work) (*epoch, error) {
	for {
		c.cut.RLock() // until the pin is there: otherwise close could have found none, and cut the epoch nevertheless
		if w.lane.stale(w) {
			c.cut.RUnlock()
			return nil, errRolledBack
		}
		e := c.current
		e.mu.Lock()
		if e.open {
			if w.pinned == nil {
				e.pins++
				w.pinned = e
			}
			e.sent++
			e.sending++
			e.left++ // code may end without having waited for it
			e.mu.Unlock()
			c.cut.RUnlock()
			return e, nil
		}
		c.cut.RUnlock()
		e.await(ctx, func() bool { return e.open || e.closed })
		e.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

func (c *committer) unpin(w *work) {
	e := w.pinned
	if e == nil {
		return
	}
	w.pinned = nil
	e.mu.Lock()
	e.pins--
	e.changed.Broadcast()
	e.mu.Unlock()
}

// await waits for a condition or the end of ctx. e.mu is held, but not while it waits.
func (e *epoch) await(ctx context.Context, ok func() bool) {
	stop := context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.changed.Broadcast()
	})
	defer stop()
	for !ok() && ctx.Err() == nil {
		e.changed.Wait()
	}
}

// poke asks for a commit soon.
func (c *committer) poke() {
	select {
	case c.now <- struct{}{}:
	default:
	}
}

// loop commits every interval, and when poked.
func (c *committer) loop(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.now:
		}
		// A stop does not end the commit under way: the open transaction would keep the next owners of the partitions waiting.
		if err := c.commit(c.sending); err != nil && c.sending.Err() == nil {
			c.log.Warn("commit failed", "err", err)
		}
	}
}

// closing is an epoch that was cut: what its commit is to make durable.
type closing struct {
	epoch     *epoch
	positions map[record.Partition]broker.Position // those that moved
	feeds     map[*feed]int64                      // how far each came
	sets      []changes
	began     time.Time
}

// lock takes running, or gives up when ctx ends.
func (c *committer) lock(ctx context.Context) error {
	select {
	case c.running <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *committer) unlock() { <-c.running }

// changes are one table partition's share of an epoch.
type changes struct {
	share *share
	set   *state.ChangeSet
	next  int64 // offset behind them in the changelog, once they are there
}

// commit ends the running epoch. Without anything in it nothing happens. The error says why not all that was applied
// before is committed now; the records are then processed, or committed, again.
func (c *committer) commit(ctx context.Context) error {
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	cl, err := c.close(ctx)
	if cl == nil || err != nil {
		return err
	}
	if err := c.settle(ctx, cl); err != nil {
		return err
	}
	c.stats.Commits.Add(1)
	c.stats.Took.observe(time.Since(cl.began))
	return nil
}

// close cuts the epoch: from here on steps apply to the next one. Nil when there is nothing to commit. running is held.
func (c *committer) close(ctx context.Context) (*closing, error) {
	if err := c.lockUnpinned(ctx); err != nil {
		return nil, err
	}
	defer c.cut.Unlock()
	c.since.Store(0)
	e := c.current
	cl := &closing{epoch: e, feeds: map[*feed]int64{}, began: time.Now()}
	var moved bool
	cl.positions, moved = c.positions(cl.feeds)
	for _, l := range c.lanes() {
		for _, s := range l.owned() {
			if set := s.staged.Freeze(); set != nil {
				cl.sets = append(cl.sets, changes{share: s, set: set})
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !moved && len(cl.sets) == 0 && e.left == 0 && e.sent == 0 && len(e.pending) == 0 && e.broken == nil {
		for _, kept := range e.kept { // of steps that only looked
			kept()
		}
		e.kept = nil
		return nil, nil
	}
	e.closed = true
	e.changed.Broadcast()
	c.last.Store(e)
	c.current = newEpoch(c.sending, !c.exactlyOnce)
	defer c.released() // steps that waited for the cut
	return cl, nil
}

// lockUnpinned takes cut for writing when no step has sent ahead of its result.
func (c *committer) lockUnpinned(ctx context.Context) error {
	for {
		c.cut.Lock()
		e := c.current
		e.mu.Lock()
		if e.pins == 0 {
			e.mu.Unlock()
			return nil
		}
		c.cut.Unlock()
		e.await(ctx, func() bool { return e.pins == 0 })
		e.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// positions is how far every assigned partition was processed by all agents that read it, where that is not stored yet. cut and
// running are held.
//
// A tick moves nothing. So that what it made can be told to be committed all the same (resolve), and so that the partition's next owner
// waits for it (stable offsets), the position there is stored anew with a mark, or without the one it has. A tick in no partition has
// that done with any that is here.
func (c *committer) positions(feeds map[*feed]int64) (map[record.Partition]broker.Position, bool) {
	byPartition := map[record.Partition][]progress{}
	acting := map[record.Partition]bool{}
	moved, acted := false, false
	for _, lf := range c.feeds() {
		lf.lane.mu.Lock()
		f := lf.feed
		if !f.dropped {
			if !f.local {
				byPartition[f.partition] = append(byPartition[f.partition], progress{lf.feed.agent.plan.Name, f.position(), f.agent.plan.Join.FromStart()})
				acting[f.partition] = acting[f.partition] || f.acted
			}
			feeds[f] = f.applied
			moved = moved || f.applied != f.committed
			acted = acted || f.acted
			f.acted = false
		}
		lf.lane.mu.Unlock()
	}
	if !moved && !acted {
		return nil, false
	}
	out := map[record.Partition]broker.Position{}
	var still record.Partition // one whose position is known and does not move
	for p, readers := range byPartition {
		at, ok := positionOf(readers)
		switch {
		case ok && at != unmarked(c.committed[p]):
			out[p] = at
		case ok && acting[p]:
			out[p] = marked(c.committed[p])
		case ok:
			still = p
		}
	}
	if acted && len(out) == 0 && still.Topic != "" {
		out[still] = marked(c.committed[still])
	}
	return out, true
}

// commitTimeout bounds the requests that end a transaction. The broker is asked again and again; after this time a new
// session is tried.
const commitTimeout = time.Minute

// settle makes a cut epoch durable within ctx, or rolls it back. That takes what it takes: there is no going on without it.
// running is held.
func (c *committer) settle(ctx context.Context, cl *closing) error {
	e := cl.epoch
	acked := func() bool { return e.left == 0 || e.broken != nil }
	if !c.exactlyOnce { // what a tick took out of a table must not be missing there before it is elsewhere
		e.mu.Lock()
		e.await(ctx, acked)
		lost := e.broken != nil || e.left > 0
		e.mu.Unlock()
		if lost {
			cl.sets = nil
		}
	}
	c.writeChangelogs(cl)
	prepared := c.prepare(ctx, cl)
	e.mu.Lock()
	e.await(ctx, acked)
	left, refused, sent, broken := e.left, e.refused, e.sent, e.broken
	e.mu.Unlock()
	notPrepared := <-prepared
	var err error
	switch {
	case broken != nil:
		err = broken
	case left > 0:
		err = fmt.Errorf("%d batches of outputs are not acknowledged: %w", left, ctx.Err())
	case len(refused) > 0:
		err = c.blame(refused)
	default:
		err = notPrepared
	}
	if !c.exactlyOnce {
		if broken != nil {
			c.broken = broken // positions only grow: none behind this may be committed either
		}
		if err == nil {
			err = c.broken
		}
		if err != nil { // what went out is out and will be repeated; changes are made anew
			c.undo(e, nil)
			c.release()
			return err
		}
		err = c.store(ctx, cl)
		c.applyChanges(cl) // they are in the changelog, wherever the position is
		return err
	}
	if err == nil && sent == 0 { // nothing in the transaction: it goes on as the next epoch's
		err = c.store(ctx, cl)
		c.release()
		return err
	}
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, commitTimeout)
		err = c.producer.Commit(limited)
		cancel()
		if err != nil && !errors.Is(err, broker.ErrNotCommitted) {
			return c.resolve(c.sending, cl, err)
		}
	}
	if err != nil {
		return errors.Join(err, c.rollBack(c.sending, e, nil))
	}
	return c.next(c.sending, cl)
}

// prepare adds the positions to the transaction while its last outputs and changes are being acknowledged. The channel gives one error. It
// is to be waited for, whatever becomes of the epoch: a request that comes too late would be of the next transaction. running is held.
func (c *committer) prepare(ctx context.Context, cl *closing) <-chan error {
	done := make(chan error, 1)
	cl.epoch.mu.Lock()
	sent := cl.epoch.sent
	cl.epoch.mu.Unlock()
	if !c.exactlyOnce || sent == 0 {
		done <- nil
		return done
	}
	go func() {
		limited, cancel := context.WithTimeout(ctx, commitTimeout)
		defer cancel()
		done <- c.producer.Prepare(limited, c.group, cl.positions)
	}()
	return done
}

// next is what follows a committed transaction. The next one begins before the stores are written: that takes as long as there are
// changes, its outputs need not wait for it, and until then the changes are seen in the staged layer. running is held.
func (c *committer) next(ctx context.Context, cl *closing) error {
	c.done(cl)
	err := c.begin(ctx)
	c.applyChanges(cl)
	return err
}

// writeChangelogs sends the epoch's table changes, in the same transaction as its outputs. Several writes of one key are one record.
func (c *committer) writeChangelogs(cl *closing) {
	e := cl.epoch
	e.mu.Lock()
	e.left += len(cl.sets)
	e.sending += len(cl.sets)
	for _, s := range cl.sets {
		e.sent += len(s.set.Changes)
	}
	e.mu.Unlock()
	for i := range cl.sets {
		s := &cl.sets[i]
		c.producer.Append(e.ctx, s.share.changelog, len(s.set.Changes), func(j int) broker.Entry { return s.share.entryOf(&s.set.Changes[j]) },
			func(next int64, err error) {
				s.next = next
				if err == nil {
					e.finish(nil)
					return
				}
				err = fmt.Errorf("changes of %s: write to %s/%d: %w", s.share.label, s.share.changelog.Topic, s.share.changelog.Number, err)
				if refused := (broker.SendFailure{Err: err}); refused.OfMessage() {
					if refused.TooLarge() {
						err = fmt.Errorf("%w; rows were let in that are larger than max.message.bytes of the topic, which could not be read at the start or was changed since: raise it, or start again", err)
					}
					c.fail(err) // a second pass would make the same change
				}
				e.finish(err)
			})
		e.sentAll()
	}
}

// applyChanges puts committed changes into the stores. A store that refuses them falls behind its changelog: what was applied on
// top is taken back, and the partition is restored from the changelog before it goes on. running is held.
func (c *committer) applyChanges(cl *closing) {
	failed := map[*share]error{}
	for i := range cl.sets {
		s := &cl.sets[i]
		c.stats.changed(s.share.changelog.Topic, s.set)
		if err := s.share.staged.Commit(s.set, s.next); err != nil {
			failed[s.share] = err
		}
	}
	c.takeBackShares(c.sending, failed)
}

// takeBackShares takes back what was made of shares whose stores failed, with all that is not committed, and has them restored. running
// is held.
func (c *committer) takeBackShares(ctx context.Context, failed map[*share]error) {
	switch {
	case len(failed) == 0:
	case c.exactlyOnce:
		c.tryRollBack(ctx, failed)
	default:
		c.undo(nil, failed)
		c.release()
	}
}

// giveUp takes back what was made of a share whose store cannot be read, and has it restored.
func (c *committer) giveUp(ctx context.Context, l *lane, s *share, why error) {
	if err := c.lock(ctx); err != nil {
		return
	}
	defer c.unlock()
	if !slices.Contains(l.owned(), s) {
		return // somebody has seen to it
	}
	c.takeBackShares(ctx, map[*share]error{s: why})
}

// store commits the positions without a transaction, of what is still assigned: a commit for another member's partition could
// set that one back. running is held.
func (c *committer) store(ctx context.Context, cl *closing) error {
	mine := map[record.Partition]broker.Position{}
	for _, lf := range c.feeds() {
		if at, ok := cl.positions[lf.feed.partition]; ok {
			mine[lf.feed.partition] = at
		}
	}
	if err := c.member.Commit(ctx, mine); err != nil {
		return err
	}
	c.done(cl)
	return nil
}

// begin starts the transaction of the current epoch, with a new producer session if the one there is cannot. running is held.
func (c *committer) begin(ctx context.Context) error {
	err := c.producer.Begin()
	if broker.Fenced(err) && !c.takeOver(time.Now()) {
		err = fmt.Errorf("another process keeps taking over the transactional id of this one (a copied state directory, or one consumerGroupInstanceId for two?): %w", err)
		c.fail(err)
		return err
	}
	if err != nil {
		c.log.Warn("starting a new producer session", "err", err)
		if err := c.open(ctx); err != nil {
			return err
		}
		if err := c.producer.Begin(); err != nil {
			c.fail(err)
			return err
		}
	}
	c.release()
	return nil
}

// takeOversMax is how often a minute this process takes its transactional id back. The broker itself takes it away when a
// transaction lasts too long; another process with the same id would do so again and again.
const takeOversMax = 3

func (c *committer) takeOver(now time.Time) bool {
	c.takeOvers = append(c.takeOvers, now)
	for now.Sub(c.takeOvers[0]) > time.Minute {
		c.takeOvers = c.takeOvers[1:]
	}
	return len(c.takeOvers) <= takeOversMax
}

// done notes what was committed. running is held.
func (c *committer) done(cl *closing) {
	c.cut.Lock()
	maps.Copy(c.committed, cl.positions)
	c.cut.Unlock()
	for a, t := range cl.epoch.tallies {
		a.stats.add(t)
	}
	for _, kept := range cl.epoch.kept {
		kept()
	}
	for _, lf := range c.feeds() {
		at, ok := cl.feeds[lf.feed]
		if !ok {
			continue
		}
		lf.lane.mu.Lock()
		lf.feed.forget(at)
		lf.lane.mu.Unlock()
	}
}

// blame makes the records whose outputs were refused known failures of their feeds, so that the second pass gives them to the
// failure policy instead of calling their code. The error says that there has to be a second pass, and why.
func (c *committer) blame(refused []refusal) error {
	var why error
	for _, r := range refused {
		if !r.OfMessage() {
			if why == nil {
				why = r.Err
			}
			continue
		}
		out := &r.v.outputs[r.Index]
		rec := &r.batch.Records[out.Record]
		if r.batch.Tick {
			why = fmt.Errorf("output of %s to topic %q refused: %w", r.feed.agent.component, out.Topic, r.Err)
			r.feed.agent.refused(rec, out, r.Err)
			continue
		}
		why = fmt.Errorf("output of record %s/%d@%d to topic %q refused: %w", rec.Topic, rec.Partition, rec.Offset, out.Topic, r.Err)
		if r.feed.agent.lost(rec, out, r.Err) {
			continue
		}
		k, err := r.feed.agent.knownFailure(r.batch, r.v, r.SendFailure)
		if err != nil {
			c.fail(err)
			return err
		}
		r.lane.know(r.feed, rec.Offset, k)
	}
	return why
}

// rollBack drops the closed epoch, if any, and the current one, and starts a new transaction. failed is undo's. running is held.
func (c *committer) rollBack(ctx context.Context, closed *epoch, failed map[*share]error) error {
	c.undo(closed, failed)
	if err := c.producer.Abort(ctx); err != nil {
		c.log.Warn("abort failed, starting a new producer session", "err", err)
		if err := c.open(ctx); err != nil {
			return err
		}
	}
	return c.begin(ctx)
}

// tryRollBack drops the current epoch; a failure is the log's, as the next commit meets it again. failed is undo's. running is held.
func (c *committer) tryRollBack(ctx context.Context, failed map[*share]error) {
	if err := c.rollBack(ctx, nil, failed); err != nil && ctx.Err() == nil {
		c.log.Warn("roll back", "err", err)
	}
}

// undo takes back what steps have applied since the last commit. When it returns, nothing of it is being sent any more and
// steps under way can neither send nor apply. running is held.
//
// Shares whose stores failed end at the same moment: a step that began over one in between would read nothing there, and apply
// what it made of that.
func (c *committer) undo(closed *epoch, failed map[*share]error) {
	c.stats.Rollbacks.Add(1)
	c.cut.Lock()
	c.since.Store(0)
	dropped := c.current
	c.current = newEpoch(c.sending, false) // released by begin, or at once when there are no transactions
	for _, lf := range c.feeds() {
		lf.lane.mu.Lock()
		lf.lane.rewind(lf.feed)
		lf.lane.mu.Unlock()
		lf.lane.signal()
	}
	for _, l := range c.lanes() {
		l.takeBack()
	}
	for s, err := range failed {
		c.shareFailed(s, err)
	}
	c.cut.Unlock()
	for _, e := range []*epoch{closed, dropped} {
		if e == nil {
			continue
		}
		e.cancel()
		e.mu.Lock()
		e.closed = true
		e.changed.Broadcast()
		for e.sending > 0 {
			e.changed.Wait()
		}
		e.mu.Unlock()
	}
}

// open gets a producer session that works, whatever it takes. running is held.
func (c *committer) open(ctx context.Context) error {
	c.stats.Reopened.Add(1)
	err := persist(ctx, func() error { return c.producer.Reopen(ctx) }, broker.Refused, func(err error, pause time.Duration) {
		c.log.Warn("open a producer session, will be retried", "err", err, "again", pause)
	})
	if err != nil {
		c.fail(err)
	}
	return err
}

// resolve finds out what became of a transaction whose end was not answered: a new session makes the broker finish it one way or
// the other, and the group's stored positions tell which. running is held.
func (c *committer) resolve(ctx context.Context, cl *closing, cause error) error {
	c.log.Warn("the end of a transaction was not answered, asking what became of it", "err", cause)
	if err := c.open(ctx); err != nil {
		return errors.Join(cause, err)
	}
	var ask []record.Partition
	for _, lf := range c.feeds() {
		if _, ok := cl.positions[lf.feed.partition]; ok {
			ask = append(ask, lf.feed.partition)
			break
		}
	}
	var stored map[record.Partition]broker.Position
	if len(ask) > 0 {
		var err error
		if stored, err = c.member.Committed(ctx, ask); err != nil {
			c.fail(err)
			return errors.Join(cause, err)
		}
	}
	if len(ask) == 0 || stored[ask[0]] != cl.positions[ask[0]] {
		c.undo(cl.epoch, nil)
		return errors.Join(cause, c.begin(ctx))
	}
	c.producer.Committed()
	return c.next(ctx, cl)
}

// handOver ends and commits what feeds do that are given up, within ctx, and drops them if that does not come about.
func (c *committer) handOver(ctx context.Context, byLane map[*lane][]*feed, until time.Time) (clean bool) {
	clean = true
	for l, feeds := range byLane {
		clean = l.drain(feeds, until) && clean
	}
	if err := c.commit(ctx); err != nil {
		c.log.Warn("partitions are given up before the commit; their records are read again by the new owner", "err", err)
		clean = false
	}
	if !clean {
		c.drop(c.sending, byLane)
	}
	return clean
}

// drop gives feeds up whose records another member may process again: nothing more of them is applied, and what was is taken
// back with everything else that is not committed. Without transactions it is out already.
func (c *committer) drop(ctx context.Context, byLane map[*lane][]*feed) {
	// At one moment, or a commit in between would have the outputs of these feeds without their positions.
	c.cut.Lock()
	for l, feeds := range byLane {
		l.mu.Lock()
		for _, f := range feeds {
			f.draining, f.dropped = true, true
		}
		l.mu.Unlock()
	}
	e := c.current
	if c.exactlyOnce {
		e.poison(errLost)
		if last := c.last.Load(); last != nil {
			last.poison(errLost)
		}
	}
	c.cut.Unlock()
	if !c.exactlyOnce {
		c.abandon(ctx, byLane)
		return
	}
	c.discard(ctx, e)
}

// abandonWait is how long abandon waits. What is left of the time for a revocation must be enough for it.
const abandonWait = rebalanceTimeout / 4

// abandon drops, without transactions, what is staged over the tables of feeds that were dropped: in the changelog it would come among the next
// owner's changes. A commit under way has its changes there already, and is to end first: whoever has the store next reads them there.
func (c *committer) abandon(ctx context.Context, byLane map[*lane][]*feed) {
	ctx, cancel := context.WithTimeout(ctx, abandonWait)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		c.log.Warn("partitions are given up while a commit is under way", "err", err)
		return
	}
	defer c.unlock()
	c.cut.Lock()
	defer c.cut.Unlock()
	for l, feeds := range byLane {
		l.mu.Lock()
		for _, f := range feeds {
			for _, s := range f.shares {
				if s.staged != nil {
					s.staged.Abort()
				}
			}
		}
		l.mu.Unlock()
	}
}

// takeBack undoes a step that had sent something ahead of its result, and failures then. Its records are processed again;
// those that failed for good go to the failure policy at once. If some were repeated (record.Result) they run one after the other
// now, and if that does not help each in a new instance, so that it does not happen again.
func (c *committer) takeBack(ctx context.Context, l *lane, f *feed, w *work, v *verdict, repeated bool) {
	e := w.pinned
	c.cut.RLock()
	// In an epoch that is rolled back already a record may fail for want of it. What fails by itself does so again.
	if !l.stale(w) && e.poison(errTakenBack) {
		l.again(f, w, v, repeated)
	}
	c.cut.RUnlock()
	c.unpin(w)
	c.discard(ctx, e)
}

// Why an epoch is not committed.
var (
	errLost      = errors.New("partitions were taken away before the commit")
	errTakenBack = errors.New("a record had sent messages and failed then")
)

// discard sees to it that a poisoned epoch is rolled back, by itself or by the commit that is under way.
func (c *committer) discard(ctx context.Context, e *epoch) {
	if err := c.lock(ctx); err != nil {
		return
	}
	defer c.unlock()
	if c.epoch() != e {
		return
	}
	c.tryRollBack(ctx, nil)
}

// poison keeps an epoch from being committed, and says whether it is the first to do so.
func (e *epoch) poison(why error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.broken != nil {
		return false
	}
	e.broken = why
	e.changed.Broadcast()
	return true
}

// found notes what the group has stored of newly assigned partitions. Only positions that moved are part of a transaction: by
// them it is told whether a transaction was committed (resolve).
func (c *committer) found(at map[record.Partition]broker.Position) {
	c.cut.Lock()
	defer c.cut.Unlock()
	maps.Copy(c.committed, at)
}

// forget drops what is known of partitions that are no longer assigned.
func (c *committer) forget(ps []record.Partition) {
	c.cut.Lock()
	defer c.cut.Unlock()
	for _, p := range ps {
		delete(c.committed, p)
	}
}
