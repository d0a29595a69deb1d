package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"kaspr.io/kaspr/engine/record"
)

// Producer is where everything the app writes goes out. With a transactional id all of it belongs to transactions: Begin,
// any number of sends, then Commit or Abort. Without one sends are idempotent and Begin, Commit and Abort are not used.
//
// The consumer is another client (Member). Offsets come into a transaction with the group's member id and generation
// (KIP-447), so a member that is no longer one cannot commit, whatever its producer is allowed to.
//
// Sends may come from many goroutines, but none may run while Begin, Commit, Abort or Reopen does. Nor may Prepare, which may run
// while sends are being acknowledged.
type Producer struct {
	opts Options
	id   string // transactional id; empty: none
	cl   *kgo.Client

	mu        sync.Mutex
	delivered []Delivered // guarded by mu; of the running transaction, if anybody wants to know

	// Of the running transaction. Only with one of its sends acknowledged does the client know that the broker has it, and aborts it.
	acked      atomic.Bool
	prepared   bool
	unanswered bool // a request of Prepare, which the broker may yet get
}

// What may wait in the client for the broker.
const (
	bufferedRecordsMax = 200_000
	bufferedBytesMax   = 256 << 20
)

// batchBytesMax is the largest record batch sent, and so the largest message: what brokers take by default (max.message.bytes). The
// client's own default is less than what is let into tables.
const batchBytesMax = 1<<20 + 12

// batchBytes is the largest batch for a topic. Several messages that a topic takes must not become one that it does not.
func (o Options) batchBytes(topic string) int32 {
	if n, ok := o.BatchBytes[topic]; ok {
		return int32(min(max(n, 1), batchBytesMax))
	}
	return batchBytesMax
}

// NewProducer returns a producer; with a transactional id it is the only one of that id from its first Begin on: the
// broker ends the transaction an earlier one left open, and refuses the earlier one from then on.
func NewProducer(opts Options, transactionalID string) (*Producer, error) {
	p := &Producer{opts: opts, id: transactionalID}
	return p, p.connect()
}

func (p *Producer) connect() error {
	kopts := append(p.opts.clientOptions(),
		kgo.RecordPartitioner(ByKeyOrGiven()),
		kgo.AllowAutoTopicCreation(),
		// A topic that is being created, by us or by the broker, is not known everywhere at once.
		kgo.UnknownTopicRetries(20),
		kgo.ProducerLinger(p.opts.Gather),
		kgo.ProducerBatchMaxBytesFn(p.opts.batchBytes),
		kgo.DisableClientMetrics(), // KIP-714: nothing of the client goes to the broker unasked
		kgo.MaxBufferedRecords(bufferedRecordsMax),
		kgo.MaxBufferedBytes(bufferedBytesMax),
	)
	if p.id != "" {
		// Version 5 of TxnOffsetCommit adds the group to the transaction by itself, but only where the cluster runs the second
		// part of KIP-890, which a client cannot ask for. With version 4 the same two requests are right everywhere.
		versions := kversion.Stable()
		versions.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), 4)
		kopts = append(kopts, kgo.TransactionalID(p.id), kgo.MaxVersions(versions))
		if p.opts.TransactionTimeout > 0 {
			kopts = append(kopts, kgo.TransactionTimeout(p.opts.TransactionTimeout))
		}
	}
	cl, err := kgo.NewClient(kopts...)
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	p.cl = cl
	return nil
}

// SendFailure is one output the broker will not take.
type SendFailure struct {
	Index int // into the outputs of the Send
	Err   error
}

// Abandoned tells a refusal that says nothing about the message: this process is stopping, or the transaction ended.
func (f SendFailure) Abandoned() bool {
	return errors.Is(f.Err, context.Canceled) || errors.Is(f.Err, context.DeadlineExceeded) ||
		errors.Is(f.Err, kgo.ErrClientClosed) || errors.Is(f.Err, kgo.ErrAborting)
}

// TooLarge tells a message above the broker's or the producer's size limit.
func (f SendFailure) TooLarge() bool { return errors.Is(f.Err, kerr.MessageTooLarge) }

// OfMessage tells a refusal that is about this message and would be repeated: its size, its topic or partition, the
// right to write there. Anything else is about the connection, the producer or the transaction.
func (f SendFailure) OfMessage() bool {
	return slices.ContainsFunc([]error{
		kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord, kerr.InvalidTimestamp,
		kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InvalidTopicException, kerr.TopicAuthorizationFailed, kerr.PolicyViolation,
	}, func(e error) bool { return errors.Is(f.Err, e) }) ||
		f.Err != nil && strings.Contains(f.Err.Error(), noPartition)
}

// noPartition is the client's text for a partition that the topic does not have; it has no error value for it.
const noPartition = "invalid record partitioning choice"

// Send hands the outputs to the producer, which keeps their order per partition, and returns once they are queued; it
// blocks while the producer's buffer is full. done is called once, when the broker has acknowledged or refused each
// of them. Temporary failures are retried for ever, so without transactions a failure here is about the message itself: too
// large, no such topic or partition, not authorised.
func (p *Producer) Send(ctx context.Context, outs []record.Output, done func([]SendFailure)) {
	if len(outs) == 0 {
		done(nil)
		return
	}
	recs := make([]kgo.Record, len(outs))
	for i := range outs {
		fill(&recs[i], &outs[i])
	}
	d := &delivery{p: p, recs: recs, done: done}
	d.open.Store(int32(len(recs)))
	promise := d.promise // one closure for the whole batch
	for i := range recs {
		p.cl.Produce(ctx, &recs[i], promise)
	}
}

func fill(r *kgo.Record, o *record.Output) {
	r.Topic, r.Key, r.Value, r.Partition = o.Topic, o.Key, o.Value, o.Partition
	if o.Timestamp != 0 {
		r.Timestamp = time.UnixMilli(o.Timestamp)
	}
	if len(o.Headers) > 0 {
		r.Headers = make([]kgo.RecordHeader, len(o.Headers))
		for j, h := range o.Headers {
			r.Headers[j] = kgo.RecordHeader{Key: h.Key, Value: h.Value}
		}
	}
}

// delivery counts the acknowledgements of one Send.
type delivery struct {
	p    *Producer
	recs []kgo.Record
	open atomic.Int32
	done func([]SendFailure)

	mu     sync.Mutex
	failed []SendFailure // guarded by mu
}

func (d *delivery) promise(r *kgo.Record, err error) {
	if err != nil {
		for i := range d.recs {
			if &d.recs[i] == r {
				d.mu.Lock()
				d.failed = append(d.failed, SendFailure{i, err})
				d.mu.Unlock()
				break
			}
		}
	} else {
		d.p.took(r)
	}
	if d.open.Add(-1) == 0 {
		d.mu.Lock()
		failed := d.failed
		d.mu.Unlock()
		d.done(failed)
	}
}

// wrote notes that the broker has something of the transaction.
func (p *Producer) wrote() {
	if !p.acked.Load() { // for each record: reading is cheaper
		p.acked.Store(true)
	}
}

// took notes an output that the broker has, and reports it: at once, or with transactions once the transaction is committed.
func (p *Producer) took(r *kgo.Record) {
	p.wrote()
	switch {
	case p.opts.Delivered == nil:
	case p.id == "":
		p.opts.Delivered(delivered(r))
	default:
		p.mu.Lock()
		p.delivered = append(p.delivered, delivered(r))
		p.mu.Unlock()
	}
}

func delivered(r *kgo.Record) Delivered {
	d := Delivered{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		d.Headers = append(d.Headers, record.Header{Key: h.Key, Value: h.Value})
	}
	return d
}

// SendOne hands one output to the producer; done is called once, from any goroutine, when the broker has acknowledged or refused it
// (topicSend with ack). It must not block. Such an output does not gather with others.
func (p *Producer) SendOne(ctx context.Context, o record.Output, done func(Delivered, time.Time, error)) {
	r := &kgo.Record{}
	fill(r, &o)
	stop := func() {}
	var flushing context.Context
	if p.opts.Gather > 0 {
		flushing, stop = context.WithCancel(ctx) // others may keep the client from ever being empty
	}
	p.cl.Produce(ctx, r, func(r *kgo.Record, err error) {
		stop()
		if err != nil {
			done(Delivered{}, time.Time{}, fmt.Errorf("send to %s: %w", r.Topic, err))
			return
		}
		p.took(r)
		done(delivered(r), r.Timestamp, nil)
	})
	if flushing != nil {
		go func() { _ = p.cl.Flush(flushing) }() // it only ends the linger: the acknowledgement tells what became of the output
	}
}

// SendSync is SendOne, and waits for what done is told.
func (p *Producer) SendSync(ctx context.Context, o record.Output) (d Delivered, at time.Time, err error) {
	done := make(chan struct{})
	p.SendOne(ctx, o, func(got Delivered, when time.Time, failed error) {
		d, at, err = got, when, failed
		close(done)
	})
	<-done
	return d, at, err
}

// Entry is one record of a changelog.
type Entry struct {
	Key, Value []byte // a nil Value deletes
	Timestamp  int64  // milliseconds; 0 means the time of sending
}

// Append writes entries to one partition of a changelog, in order. done is called once: with the offset after the last
// one, or with why it failed.
func (p *Producer) Append(ctx context.Context, to record.Partition, n int, entry func(i int) Entry, done func(next int64, err error)) {
	recs := make([]kgo.Record, n)
	var open atomic.Int32
	open.Store(int32(n))
	var mu sync.Mutex
	var failed error  // guarded by mu
	next := int64(-1) // guarded by mu
	promise := func(r *kgo.Record, err error) {
		mu.Lock()
		if err != nil {
			if failed == nil { // one connection that breaks fails them all
				failed = err
			}
		} else {
			p.wrote()
			next = max(next, r.Offset+1)
		}
		mu.Unlock()
		if open.Add(-1) == 0 {
			done(next, failed)
		}
	}
	for i := range recs {
		r, e := &recs[i], entry(i)
		r.Topic, r.Partition, r.Key, r.Value = to.Topic, to.Number, e.Key, e.Value
		if e.Timestamp != 0 {
			r.Timestamp = time.UnixMilli(e.Timestamp)
		}
		p.cl.Produce(ctx, r, promise)
	}
}

// Init makes this the only producer of its transactional id; it returns when the broker has ended what an earlier one left.
func (p *Producer) Init(ctx context.Context) error {
	if _, _, err := p.cl.ProducerID(ctx); err != nil {
		return fmt.Errorf("transactional id %s: %w", p.id, err)
	}
	return nil
}

// Begin starts a transaction. What an earlier one left is not told of: it has been aborted.
func (p *Producer) Begin() error {
	p.mu.Lock()
	p.delivered = nil // only now nothing of it can be acknowledged any more
	p.mu.Unlock()
	p.acked.Store(false)
	p.prepared, p.unanswered = false, false
	if err := p.cl.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	return nil
}

// Grouped is who commits: the id and the generation of a member of the group. Member is one.
type Grouped interface {
	Generation() (member string, generation int32)
}

// ErrNotCommitted says that a transaction is not committed, and will not be: Abort it.
var ErrNotCommitted = errors.New("not committed")

// Prepare is what can be done of a commit while sends are still being acknowledged, after the last of them: none gathers any longer, and
// the offsets of the member's group become part of the transaction. With an error it can only be aborted.
func (p *Producer) Prepare(ctx context.Context, g Grouped, offsets map[record.Partition]Position) error {
	flushing, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _ = p.cl.Flush(flushing) }() // as in SendOne
	p.prepared = true
	err := p.addOffsets(ctx, g, offsets)
	var answer *kerr.Error
	p.unanswered = err != nil && !errors.As(err, &answer)
	return err
}

// Commit ends the transaction. All sends must have been acknowledged. With ErrNotCommitted nothing of it counts. Any other error leaves
// it open whether it does: Reopen settles it, and the group's offsets then tell (Member.Committed).
func (p *Producer) Commit(ctx context.Context) error {
	switch err := p.cl.EndTransaction(ctx, kgo.TryCommit); {
	case errors.Is(err, kerr.OperationNotAttempted), errors.Is(err, kerr.TransactionAbortable):
		return fmt.Errorf("%w: end transaction: %w", ErrNotCommitted, err)
	case err != nil:
		return fmt.Errorf("end transaction: %w", err)
	}
	p.Committed()
	return nil
}

// Committed tells of the outputs of a transaction that turned out to be committed.
func (p *Producer) Committed() {
	p.mu.Lock()
	all := p.delivered
	p.delivered = nil
	p.mu.Unlock()
	for _, d := range all {
		p.opts.Delivered(d)
	}
}

// addOffsets puts the offsets into the transaction.
func (p *Producer) addOffsets(ctx context.Context, g Grouped, offsets map[record.Partition]Position) error {
	id, epoch, err := p.cl.ProducerID(ctx)
	if err != nil {
		return fmt.Errorf("producer id: %w", err)
	}
	member, generation := g.Generation()
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = p.id, id, epoch, p.opts.Group
	commit := kmsg.NewPtrTxnOffsetCommitRequest()
	commit.TransactionalID, commit.ProducerID, commit.ProducerEpoch, commit.Group = p.id, id, epoch, p.opts.Group
	commit.MemberID, commit.Generation = member, generation
	if p.opts.InstanceID != "" {
		commit.InstanceID = &p.opts.InstanceID
	}
	for topic, ps := range positionsByTopic(offsets) {
		t := kmsg.NewTxnOffsetCommitRequestTopic()
		t.Topic = topic
		for number, o := range ps {
			tp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			tp.Partition, tp.Offset = number, o.Offset
			if o.Metadata != "" {
				tp.Metadata = &o.Metadata
			}
			t.Partitions = append(t.Partitions, tp)
		}
		commit.Topics = append(commit.Topics, t)
	}
	if err := retried(ctx, func() error {
		resp, err := add.RequestWith(ctx, p.cl)
		if err != nil {
			return err
		}
		return kerr.ErrorForCode(resp.ErrorCode)
	}); err != nil {
		return fmt.Errorf("add offsets to transaction: %w", err)
	}
	if err := retried(ctx, func() error {
		resp, err := commit.RequestWith(ctx, p.cl)
		if err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, tp := range t.Partitions {
				if err := kerr.ErrorForCode(tp.ErrorCode); err != nil {
					return fmt.Errorf("%s/%d: %w", t.Topic, tp.Partition, err)
				}
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("commit offsets in transaction: %w", err)
	}
	return nil
}

// retried repeats a request the coordinator could not take yet: it is loading, moving, or still ends the transaction
// before. All of them pass, or the transaction's timeout ends the trouble.
func retried(ctx context.Context, do func() error) error {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		err := do()
		again := errors.Is(err, kerr.ConcurrentTransactions) || errors.Is(err, kerr.CoordinatorLoadInProgress) ||
			errors.Is(err, kerr.CoordinatorNotAvailable) || errors.Is(err, kerr.NotCoordinator) || errors.Is(err, kerr.UnstableOffsetCommit) ||
			errors.Is(err, kerr.RebalanceInProgress)
		if !again {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// Abort ends the transaction so that nothing of it counts. What waits to be sent is refused first.
func (p *Producer) Abort(ctx context.Context) error {
	if err := p.cl.AbortBufferedRecords(ctx); err != nil {
		return fmt.Errorf("abort transaction: %w", err)
	}
	// The broker has the offsets, but the client takes the transaction for empty and would leave it open; or it may get them yet. They
	// would be of the next transaction. A new session's epoch makes the broker refuse both.
	if p.unanswered || p.prepared && !p.acked.Load() {
		return p.Reopen(ctx)
	}
	if err := p.cl.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("abort transaction: %w", err)
	}
	return nil
}

// Reopen starts anew under the same transactional id, whatever state the producer is in. When it returns, the broker has
// committed or aborted the transaction that was open, for good.
func (p *Producer) Reopen(ctx context.Context) error {
	p.cl.Close()
	if err := p.connect(); err != nil {
		return err
	}
	return p.Init(ctx)
}

// Fenced tells an error that says that another producer took over the transactional id.
func Fenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.InvalidProducerIDMapping)
}

// Close ends the producer; what was not acknowledged is refused.
func (p *Producer) Close() { p.cl.Close() }
