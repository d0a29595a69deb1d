// Package broker is the engine's Kafka: one group member that fetches and commits, a producer, a tail that reads changelogs, and
// topic administration.
package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

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

// Member is this process in the app's consumer group.
type Member struct {
	cl      *kgo.Client
	opts    Options
	group   *copartition
	lease   *lease
	started chan struct{}      // closed by Start; the handler hears nothing before
	closed  chan struct{}      // closed by Close; a member that never started must not wait for it
	abandon context.CancelFunc // ends all requests of the client

	again     time.Time // when the next poll may begin; only Poll uses it
	corrected bool      // a static member's old address; only the client's callbacks use it
}

// Join returns a member that consumes topics as part of opts.Group, from the earliest record where nothing is
// committed, reading committed transactions only. Records of topics that do not exist yet follow once they do.
// The handler is called from Start on.
func Join(opts Options, topics []string, h Handler) (*Member, error) {
	m := &Member{opts: opts, group: &copartition{opts: opts}, started: make(chan struct{}), closed: make(chan struct{}), lease: &lease{length: min(opts.SessionTimeout, opts.RebalanceTimeout)}}
	if m.lease.length == 0 {
		m.lease.length = 45 * time.Second // the client's own session timeout
	}
	if opts.UserData != nil {
		if err := opts.UserData().check(); err != nil {
			return nil, err
		}
	}
	kopts := append(opts.clientOptions(),
		topicsByName(),
		kgo.ConsumerGroup(opts.Group),
		kgo.WithHooks(m.lease),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.Balancers(m.group),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			m.lease.assigned() // the last sync was answered
			if m.awaitStart() {
				m.placed()
				h.Assigned(partitions(ps))
			}
		}),
		kgo.OnPartitionsRevoked(func(ctx context.Context, _ *kgo.Client, ps map[string][]int32) {
			if m.awaitStart() {
				h.Revoked(ctx, partitions(ps))
			}
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, ps map[string][]int32) {
			if m.awaitStart() {
				h.Lost(partitions(ps))
			}
		}),
		kgo.FetchMaxWait(500*time.Millisecond),
		kgo.KeepControlRecords(),   // the end of a transaction is a position to commit, although it is no record
		kgo.DisableClientMetrics(), // KIP-714: nothing of the client goes to the broker unasked
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
	if opts.FetchPartitionBytes > 0 {
		kopts = append(kopts, kgo.FetchMaxPartitionBytes(opts.FetchPartitionBytes))
	}
	ctx, abandon := context.WithCancel(context.Background())
	cl, err := kgo.NewClient(append(kopts, kgo.WithContext(ctx))...)
	if err != nil {
		abandon()
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	m.cl, m.abandon = cl, abandon
	return m, nil
}

// placed hands the placement of an assignment on. A static member that comes back gets the assignment it had, in which the
// group knows it by its old address; it has the group assign anew then.
func (m *Member) placed() {
	p, ok := m.group.take()
	if !ok {
		return
	}
	if m.opts.InstanceID != "" && !m.corrected && !m.group.named(p) {
		m.corrected = true // a leader that cannot read what we say would be asked for ever
		m.Rebalance()
	}
	if m.opts.OnAssignment != nil {
		m.opts.OnAssignment(p)
	}
}

// Start lets the handler be called. Call it once, when what the handler needs is there.
func (m *Member) Start() { close(m.started) }

// awaitStart waits until the handler may be called, and reports whether it ever may: not when the member was closed before.
func (m *Member) awaitStart() bool {
	select {
	case <-m.started:
		return true
	case <-m.closed:
	}
	select {
	case <-m.started: // it was, and is being closed: leaving the group revokes
		return true
	default:
		return false
	}
}

func partitions(m map[string][]int32) []record.Partition {
	var ps []record.Partition
	for topic, numbers := range m {
		for _, n := range numbers {
			ps = append(ps, record.Partition{Topic: topic, Number: n})
		}
	}
	return ps
}

// Fetched is what one Poll brought of one partition, in offset order. Records may be empty: only the position moved then,
// over the ends of transactions or records that do not count.
type Fetched struct {
	Partition record.Partition
	Records   []record.Record
	Next      int64 // offset behind all of it
}

// fewRecords is how many a poll brings at most for the next one to wait (Options.Gather). With more, a fetch is full as it is.
const fewRecords = 1000

// Poll waits for records, at most max, and hands them to take, once per partition. No rebalance happens while take
// runs, so take must not block. The error, if any, is for good; the client retries what can be retried.
func (m *Member) Poll(ctx context.Context, max int, take func(Fetched)) error {
	if wait := time.Until(m.again); wait > 0 && !sleep(ctx, wait) {
		return nil
	}
	fetches := m.cl.PollRecords(ctx, max)
	defer m.cl.AllowRebalance()
	if n := fetches.NumRecords(); n > 0 && n < fewRecords {
		m.again = time.Now().Add(m.opts.Gather)
	}
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
			if m.opts.StopOnLoss {
				failed = errors.Join(failed, fmt.Errorf("consume %s/%d: %w", topic, p, err))
			}
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
		recs := make([]record.Record, 0, len(p.Records))
		headers := 0
		for _, r := range p.Records {
			headers += len(r.Headers)
		}
		var slab []record.Header
		if headers > 0 {
			slab = make([]record.Header, 0, headers)
		}
		for _, r := range p.Records {
			if r.Attrs.IsControl() {
				continue
			}
			recs = append(recs, record.Record{
				Topic: p.Topic, Partition: p.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(),
				Attempt: 1, Key: r.Key, Value: r.Value,
			})
			rec := &recs[len(recs)-1]
			if t := r.Attrs.TimestampType(); t == 1 {
				rec.TimestampType = record.LogAppendTime
			}
			if len(r.Headers) > 0 {
				first := len(slab)
				for _, h := range r.Headers {
					slab = append(slab, record.Header{Key: h.Key, Value: h.Value})
				}
				rec.Headers = slab[first:len(slab):len(slab)]
			}
		}
		next := p.Records[len(p.Records)-1].Offset + 1
		take(Fetched{Partition: record.Partition{Topic: p.Topic, Number: p.Partition}, Records: recs, Next: next})
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

// Rebalance makes the group assign its partitions anew, with what its members say now. It does not wait for it.
func (m *Member) Rebalance() {
	m.group.asked.Add(1) // Kafka ignores a member that joins again with the same words
	m.cl.ForceRebalance()
}

// Pause stops fetching the partitions until Resume; what was fetched ahead of them is dropped and fetched again.
func (m *Member) Pause(ps []record.Partition) { m.cl.PauseFetchPartitions(byTopic(ps)) }

// Resume undoes Pause.
func (m *Member) Resume(ps []record.Partition) { m.cl.ResumeFetchPartitions(byTopic(ps)) }

// FetchFrom begins to fetch a partition anew, from offset on. What was fetched and not polled yet is dropped. Not while Poll runs.
func (m *Member) FetchFrom(p record.Partition, offset int64) {
	m.cl.SetOffsets(map[string]map[int32]kgo.EpochOffset{p.Topic: {p.Number: {Epoch: -1, Offset: offset}}})
}

func byTopic(ps []record.Partition) map[string][]int32 {
	out := map[string][]int32{}
	for _, p := range ps {
		out[p.Topic] = append(out[p.Topic], p.Number)
	}
	return out
}

// Generation is the member's id in the group and the group's generation (Grouped).
func (m *Member) Generation() (string, int32) { return m.cl.GroupMetadata() }

// Position is how far a partition was processed.
type Position struct {
	Offset   int64  // of the next record
	Metadata string // kept with the offset, for whoever reads it
}

// Commit stores the positions to resume from.
func (m *Member) Commit(ctx context.Context, offsets map[record.Partition]Position) error {
	if len(offsets) == 0 {
		return nil
	}
	to := map[string]map[int32]kgo.EpochOffset{}
	for p, o := range offsets {
		if to[p.Topic] == nil {
			to[p.Topic] = map[int32]kgo.EpochOffset{}
		}
		to[p.Topic][p.Number] = kgo.EpochOffset{Epoch: -1, Offset: o.Offset}
	}
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			t := &req.Topics[i]
			for j := range t.Partitions {
				if o := offsets[record.Partition{Topic: t.Topic, Number: t.Partitions[j].Partition}]; o.Metadata != "" {
					t.Partitions[j].Metadata = &o.Metadata
				}
			}
		}
		return nil
	})
	var failed error
	m.cl.CommitOffsetsSync(ctx, to, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
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

// Committed is the positions the group has stored; partitions without one are left out. It waits until no transaction is
// about to change them (KIP-447), such as that of a member which just died.
func (m *Member) Committed(ctx context.Context, ps []record.Partition) (map[record.Partition]Position, error) {
	return stableOffsets(ctx, m.cl, m.opts.Group, ps)
}

func positionsByTopic(offsets map[record.Partition]Position) map[string]map[int32]Position {
	out := map[string]map[int32]Position{}
	for p, o := range offsets {
		if out[p.Topic] == nil {
			out[p.Topic] = map[int32]Position{}
		}
		out[p.Topic][p.Number] = o
	}
	return out
}

// Close leaves the group. Call it once. When ctx ends, the group has to find out by itself: after the session. The client's own Close waits
// for requests under way, which a broker that hangs answers after minutes.
func (m *Member) Close(ctx context.Context) {
	close(m.closed)
	defer m.abandon()
	defer context.AfterFunc(ctx, m.abandon)()
	m.cl.AllowRebalance()
	if err := m.cl.LeaveGroupContext(ctx); err != nil {
		m.opts.Log.Warn("left the group without its knowing; what this process had waits until its session is over", "err", err)
	}
	m.cl.Close()
}
