// Package broker is the engine's Kafka: one group member that fetches, produces and commits, and topic administration.
package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/record"
)

// Handler is told of changes of the assignment. Calls come one at a time, never while Poll's caller holds fetched
// records (see Member.Poll).
type Handler interface {
	// Assigned adds partitions; their records follow.
	Assigned(ps []record.Partition)
	// Revoked returns when nothing of these partitions is in work any more and their offsets are committed.
	Revoked(ctx context.Context, ps []record.Partition)
	// Lost says that another member may already own them: drop their work, commit nothing.
	Lost(ps []record.Partition)
}

// Member is this process in the app's consumer group, and its producer.
type Member struct {
	cl      *kgo.Client
	opts    Options
	started chan struct{} // closed by Start; the handler hears nothing before
}

// Join returns a member that consumes topics as part of opts.Group, from the earliest record where nothing is
// committed, reading committed transactions only. Records of topics that do not exist yet follow once they do.
// The handler is called from Start on.
func Join(opts Options, topics []string, h Handler) (*Member, error) {
	m := &Member{opts: opts, started: make(chan struct{})}
	kopts := append(opts.clientOptions(),
		kgo.ConsumerGroup(opts.Group),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			<-m.started
			h.Assigned(partitions(ps))
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, ps map[string][]int32) {
			<-m.started
			h.Revoked(ctx, partitions(ps))
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			<-m.started
			h.Lost(partitions(ps))
		}),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.RecordPartitioner(ByKeyOrGiven()),
		kgo.AllowAutoTopicCreation(),
		// A topic that is being created, by us or by the broker, is not known everywhere at once.
		kgo.UnknownTopicRetries(20),
		kgo.ProducerLinger(0),
		kgo.DisableClientMetrics(), // KIP-714: nothing of the client goes to the broker unasked
		kgo.MaxBufferedRecords(200_000),
		kgo.MaxBufferedBytes(256<<20),
	)
	if opts.InstanceID != "" {
		kopts = append(kopts, kgo.InstanceID(opts.InstanceID))
	}
	if opts.SessionTimeout > 0 {
		kopts = append(kopts, kgo.SessionTimeout(opts.SessionTimeout))
	}
	if opts.HeartbeatInterval > 0 {
		kopts = append(kopts, kgo.HeartbeatInterval(opts.HeartbeatInterval))
	}
	if opts.RebalanceTimeout > 0 {
		kopts = append(kopts, kgo.RebalanceTimeout(opts.RebalanceTimeout))
	}
	if opts.ProduceBytesMax > 0 {
		kopts = append(kopts, kgo.ProducerBatchMaxBytes(opts.ProduceBytesMax))
	}
	if opts.FetchPartitionBytes > 0 {
		kopts = append(kopts, kgo.FetchMaxPartitionBytes(opts.FetchPartitionBytes))
	}
	cl, err := kgo.NewClient(kopts...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	m.cl = cl
	return m, nil
}

// Start lets the handler be called. Call it once, when what the handler needs is there.
func (m *Member) Start() { close(m.started) }

func partitions(m map[string][]int32) []record.Partition {
	var ps []record.Partition
	for topic, numbers := range m {
		for _, n := range numbers {
			ps = append(ps, record.Partition{Topic: topic, Number: n})
		}
	}
	return ps
}

// Fetched is what one Poll brought of one partition, in offset order.
type Fetched struct {
	Partition record.Partition
	Records   []record.Record
}

// Poll waits for records, at most max, and hands them to take, once per partition. No rebalance happens while take
// runs, so take must not block. The error, if any, is for good; the client retries what can be retried.
func (m *Member) Poll(ctx context.Context, max int, take func(Fetched)) error {
	fetches := m.cl.PollRecords(ctx, max)
	defer m.cl.AllowRebalance()
	if fetches.IsClientClosed() {
		return kgo.ErrClientClosed
	}
	var failed error
	fetches.EachError(func(topic string, p int32, err error) {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return
		}
		var loss *kgo.ErrDataLoss
		switch {
		case errors.As(err, &loss):
			m.opts.Log.Error("records were lost by the broker (retention or truncation)", "topic", topic, "partition", p,
				"consumedTo", loss.ConsumedTo, "resetTo", loss.ResetTo)
		case final(err):
			failed = errors.Join(failed, fmt.Errorf("consume %s/%d: %w", topic, p, err))
		case topic == "": // about the group, not about a partition; the client joins again by itself
			m.opts.Log.Warn("group session ended, joining again", "err", err)
		default:
			m.opts.Log.Warn("fetch failed, will be retried", "topic", topic, "partition", p, "err", err)
		}
	})
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		recs := make([]record.Record, len(p.Records))
		headers := 0
		for _, r := range p.Records {
			headers += len(r.Headers)
		}
		var slab []record.Header
		if headers > 0 {
			slab = make([]record.Header, 0, headers)
		}
		for i, r := range p.Records {
			recs[i] = record.Record{
				Topic: p.Topic, Partition: p.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(),
				Attempt: 1, Key: r.Key, Value: r.Value,
			}
			if t := r.Attrs.TimestampType(); t == 1 {
				recs[i].TimestampType = record.LogAppendTime
			}
			if len(r.Headers) > 0 {
				first := len(slab)
				for _, h := range r.Headers {
					slab = append(slab, record.Header{Key: h.Key, Value: h.Value})
				}
				recs[i].Headers = slab[first:len(slab):len(slab)]
			}
		}
		take(Fetched{Partition: record.Partition{Topic: p.Topic, Number: p.Partition}, Records: recs})
	})
	return failed
}

// final tells an error that repeating does not cure. Everything else (the network, a broker that restarts, a topic
// that is not there yet, a group that rebalances) the client retries.
func final(err error) bool {
	return Refused(err) || slices.ContainsFunc([]error{
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.FencedInstanceID, kerr.InconsistentGroupProtocol,
		kerr.InvalidSessionTimeout, kerr.InvalidGroupID, kerr.UnsupportedVersion, kgo.ErrClientClosed,
	}, func(e error) bool { return errors.Is(err, e) })
}

// AddTopics subscribes to further topics.
func (m *Member) AddTopics(topics ...string) { m.cl.AddConsumeTopics(topics...) }

// Pause stops fetching the partitions until Resume; what was fetched ahead of them is dropped and fetched again.
func (m *Member) Pause(ps []record.Partition) { m.cl.PauseFetchPartitions(byTopic(ps)) }

// Resume undoes Pause.
func (m *Member) Resume(ps []record.Partition) { m.cl.ResumeFetchPartitions(byTopic(ps)) }

func byTopic(ps []record.Partition) map[string][]int32 {
	out := map[string][]int32{}
	for _, p := range ps {
		out[p.Topic] = append(out[p.Topic], p.Number)
	}
	return out
}

// SendFailure is one output the broker will not take.
type SendFailure struct {
	Index int // into the outputs of the Send
	Err   error
}

// Abandoned tells a refusal that says nothing about the message: this process is stopping, or no longer may produce.
func (f SendFailure) Abandoned() bool {
	return errors.Is(f.Err, context.Canceled) || errors.Is(f.Err, context.DeadlineExceeded) ||
		errors.Is(f.Err, kgo.ErrClientClosed) || errors.Is(f.Err, kgo.ErrAborting)
}

// TooLarge tells a message above the broker's or the producer's size limit.
func (f SendFailure) TooLarge() bool { return errors.Is(f.Err, kerr.MessageTooLarge) }

// Send hands the outputs to the producer, which keeps their order per partition, and returns once they are queued; it
// blocks while the producer's buffer is full. done is called once, when the broker has acknowledged or refused each
// of them. Temporary failures are retried for ever, so a failure here is about the message itself: too large, no such
// topic or partition, not authorised.
func (m *Member) Send(ctx context.Context, outs []record.Output, done func([]SendFailure)) {
	if len(outs) == 0 {
		done(nil)
		return
	}
	recs := make([]kgo.Record, len(outs))
	for i := range outs {
		o, r := &outs[i], &recs[i]
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
	d := &delivery{recs: recs, done: done, tell: m.opts.Delivered}
	d.open.Store(int32(len(recs)))
	promise := d.promise // one closure for the whole batch
	for i := range recs {
		m.cl.Produce(ctx, &recs[i], promise)
	}
}

// delivery counts the acknowledgements of one Send.
type delivery struct {
	recs []kgo.Record
	open atomic.Int32
	done func([]SendFailure)
	tell func(Delivered)

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
	} else if d.tell != nil {
		d.tell(delivered(r))
	}
	if d.open.Add(-1) == 0 {
		d.mu.Lock()
		failed := d.failed
		d.mu.Unlock()
		d.done(failed)
	}
}

func delivered(r *kgo.Record) Delivered {
	d := Delivered{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		d.Headers = append(d.Headers, record.Header{Key: h.Key, Value: h.Value})
	}
	return d
}

// SendSync produces one output and waits for its acknowledgement (topicSend with ack).
func (m *Member) SendSync(ctx context.Context, o record.Output) (Delivered, time.Time, error) {
	r := &kgo.Record{Topic: o.Topic, Key: o.Key, Value: o.Value, Partition: o.Partition}
	if o.Timestamp != 0 {
		r.Timestamp = time.UnixMilli(o.Timestamp)
	}
	for _, h := range o.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	if err := m.cl.ProduceSync(ctx, r).FirstErr(); err != nil {
		return Delivered{}, time.Time{}, fmt.Errorf("send to %s: %w", o.Topic, err)
	}
	d := delivered(r)
	if m.opts.Delivered != nil {
		m.opts.Delivered(d)
	}
	return d, r.Timestamp, nil
}

// Commit stores the offsets to resume from.
func (m *Member) Commit(ctx context.Context, offsets map[record.Partition]int64) error {
	if len(offsets) == 0 {
		return nil
	}
	to := map[string]map[int32]kgo.EpochOffset{}
	for p, o := range offsets {
		if to[p.Topic] == nil {
			to[p.Topic] = map[int32]kgo.EpochOffset{}
		}
		to[p.Topic][p.Number] = kgo.EpochOffset{Epoch: -1, Offset: o}
	}
	var failed error
	m.cl.CommitOffsetsSync(ctx, to, func(_ *kgo.Client, req *kgoCommitRequest, resp *kgoCommitResponse, err error) {
		if err != nil {
			failed = fmt.Errorf("commit offsets: %w", err)
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					failed = errors.Join(failed, fmt.Errorf("commit offset of %s/%d: %w", t.Topic, p.Partition, err))
				}
			}
		}
	})
	return failed
}

// Close leaves the group, after what was sent has been acknowledged or ctx ends.
func (m *Member) Close(ctx context.Context) error {
	err := m.cl.Flush(ctx)
	m.cl.CloseAllowingRebalance()
	if err != nil {
		return fmt.Errorf("flush outputs: %w", err)
	}
	return nil
}
