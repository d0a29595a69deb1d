package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// Tail reads partitions from an offset of the caller's choice, without a group: changelogs, to restore tables and to keep
// copies of them. Committed records only.
//
// It sends the fetch requests itself. A consumer of the client library tells its position by the records it returns, so
// it stands still where there are none: behind aborted records, in the gaps of a compacted topic. Here the position is
// always known. A partition whose reader is slow is left out of the next request, so that it neither stalls the others nor
// is fetched twice; a topic that was made anew under the same name is an error, not other records.
type Tail struct {
	opts   Options
	cl     *kgo.Client
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	joined sync.WaitGroup
	lost   chan struct{} // capacity 1: a stream has no leader

	mu       sync.Mutex
	streams  map[record.Partition]*Stream // guarded by mu
	fetchers map[int32]*fetcher           // guarded by mu; by leader
	buffered int64                        // guarded by mu; bytes in all queues
}

const (
	tailFetchBytes    = 1 << 20  // of one partition in a request, unless Options say otherwise
	tailRequestBytes  = 32 << 20 // of a request
	tailStreamBytes   = 4 << 20  // what a stream has waiting before it is left out of requests
	tailBytes         = 64 << 20 // what all streams have waiting before only empty ones take part in requests
	tailWait          = 250 * time.Millisecond
	tailWaitFull      = 10 * time.Millisecond // while a stream is left out: it is to take part again soon
	tailPauseShortest = 20 * time.Millisecond
	tailPauseLongest  = 500 * time.Millisecond
)

var (
	// ErrOutOfRange says that the log does not go that far back, or that far: records were deleted, or lost by the broker.
	ErrOutOfRange = errors.New("offset is outside of the log")
	// ErrRecreated says that the topic was deleted, and perhaps made anew: offsets mean nothing in it.
	ErrRecreated = errors.New("topic is not the one it was")
	// ErrTailClosed says that the stream or its Tail is closed.
	ErrTailClosed = errors.New("tail is closed")
)

// NewTail returns a Tail with connections of its own. Close it.
func NewTail(o Options) (*Tail, error) {
	cl, err := kgo.NewClient(append(o.clientOptions(), kgo.DisableClientMetrics(),
		kgo.RetryBackoffFn(func(tries int) time.Duration { return min(tailPauseShortest<<min(tries, 10), tailPauseLongest) }))...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	t := &Tail{opts: o, cl: cl, lost: make(chan struct{}, 1), streams: map[record.Partition]*Stream{}, fetchers: map[int32]*fetcher{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.joined.Go(t.findLeaders)
	return t, nil
}

// Close ends all streams. It is idempotent.
func (t *Tail) Close() {
	t.cancel()
	t.mu.Lock()
	for _, s := range t.streams {
		s.fail(ErrTailClosed)
	}
	t.mu.Unlock()
	t.joined.Wait()
	t.cl.Close()
}

// Stream is one partition of a Tail. Next is for one goroutine at a time.
type Stream struct {
	tail  *Tail
	p     record.Partition
	ready chan struct{} // capacity 1: there is something for Next

	// Guarded by tail.mu:
	topic  TopicID
	leader int32 // -1 while it is not known
	next   int64 // of the next fetch
	queue  []Chunk
	bytes  int64 // in queue
	err    error // the end of the stream
	state  StreamState
}

// StreamState tells how a stream is doing.
type StreamState struct {
	Next     int64     // offset after what was handed out
	High     int64     // end of the log as last heard, transactions that are still open included; -1: not heard yet
	Stable   int64     // where the first open transaction begins, or High: what can be read so far ends here; -1: not heard yet
	Answered time.Time // when the leader last answered a fetch; zero: never
	Trouble  error     // what is wrong since then, while it is tried again; nil: nothing
}

// Chunk is the next piece of a partition.
type Chunk struct {
	Entries []Logged // filled by Decode; may be empty, then only the position moved
	Next    int64    // offset after it
	High    int64    // end of the log when it was fetched

	from  int64
	topic string
	raw   kmsg.FetchResponseTopicPartition
}

// Logged is a record of a changelog.
type Logged struct {
	Key, Value []byte
	Offset     int64
	Timestamp  int64 // milliseconds since the Unix epoch
}

// Follow reads a partition from an offset on, until the stream is closed. The topic's ID, when it is not zero, makes sure
// that it is the topic the offset belongs to. A partition is followed once at a time.
func (t *Tail) Follow(p record.Partition, topic TopicID, from int64) *Stream {
	s := &Stream{
		tail: t, p: p, topic: topic, leader: -1, next: from, ready: make(chan struct{}, 1),
		state: StreamState{Next: from, High: -1, Stable: -1},
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[p] != nil {
		panic(fmt.Sprintf("BUG: %s/%d is followed twice", p.Topic, p.Number))
	}
	if t.ctx.Err() != nil {
		s.fail(ErrTailClosed)
		return s
	}
	t.streams[p] = s
	poke(t.lost)
	return s
}

// Next waits for more of the partition. An error is the end of the stream: ErrOutOfRange, ErrRecreated, ErrTailClosed, a
// refusal by the broker, or ctx's. What can be cured by trying again is tried again; State tells.
func (s *Stream) Next(ctx context.Context) (Chunk, error) {
	t := s.tail
	for {
		t.mu.Lock()
		if len(s.queue) > 0 {
			c := s.queue[0]
			s.queue = slices.Delete(s.queue, 0, 1)
			size := int64(len(c.raw.RecordBatches))
			s.bytes -= size
			t.buffered -= size
			s.state.Next = c.Next
			if f := t.fetchers[s.leader]; f != nil {
				poke(f.wake)
			}
			t.mu.Unlock()
			return c, nil
		}
		err := s.err
		t.mu.Unlock()
		if err != nil {
			return Chunk{}, err
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		}
	}
}

// State tells how the stream is doing.
func (s *Stream) State() StreamState {
	s.tail.mu.Lock()
	defer s.tail.mu.Unlock()
	return s.state
}

// Close ends the stream. It is idempotent.
func (s *Stream) Close() {
	t := s.tail
	t.mu.Lock()
	defer t.mu.Unlock()
	s.fail(ErrTailClosed)
	for _, c := range s.queue {
		t.buffered -= int64(len(c.raw.RecordBatches))
	}
	s.queue, s.bytes = nil, 0
	if t.streams[s.p] == s {
		delete(t.streams, s.p)
	}
}

// fail ends the stream; what it has waiting is still handed out. Tail.mu is held.
func (s *Stream) fail(err error) {
	if s.err == nil {
		s.err = err
		poke(s.ready)
	}
}

// stray says that the leader does not answer for the partition; another is looked for. Tail.mu is held.
func (s *Stream) stray(err error) {
	s.leader, s.state.Trouble = -1, err
	poke(s.tail.lost)
}

func (s *Stream) push(c Chunk) {
	s.next = c.Next
	s.queue = append(s.queue, c)
	s.bytes += int64(len(c.raw.RecordBatches))
	s.tail.buffered += int64(len(c.raw.RecordBatches))
	poke(s.ready)
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Decode reads the chunk's records into Entries. It is not done by Next so that its cost falls where the caller wants it.
func (c *Chunk) Decode() error {
	if c.raw.RecordBatches == nil {
		return nil
	}
	opts := kgo.ProcessFetchPartitionOpts{Offset: c.from, IsolationLevel: kgo.ReadCommitted(), Topic: c.topic, Partition: c.raw.Partition}
	part, next := kgo.ProcessFetchPartition(opts, &c.raw, kgo.DefaultDecompressor(), nil)
	if part.Err == nil && next != c.Next {
		part.Err = errors.New("a record batch is cut short")
	}
	if part.Err != nil {
		return fmt.Errorf("read %s/%d from offset %d: %w", c.topic, c.raw.Partition, next, part.Err)
	}
	c.Entries = make([]Logged, len(part.Records))
	for i, r := range part.Records {
		c.Entries[i] = Logged{r.Key, r.Value, r.Offset, r.Timestamp.UnixMilli()}
	}
	c.raw.RecordBatches = nil
	return nil
}

// end is the offset after the last complete batch; at if there is none.
func end(batches []byte, at int64) int64 {
	// Offset (8 bytes), length of what follows (4), leader epoch (4), magic (1), checksum (4), attributes (2), offset of the
	// last record less that of the first (4), …; before magic 2 a wrapped set has the offset of its last record.
	for len(batches) >= 17 {
		size := int64(int32(binary.BigEndian.Uint32(batches[8:]))) + 12
		if size < 17 || size > int64(len(batches)) {
			break
		}
		next := int64(binary.BigEndian.Uint64(batches)) + 1
		if batches[16] >= 2 && size >= 27 {
			next += int64(int32(binary.BigEndian.Uint32(batches[23:])))
		}
		at = max(at, next)
		batches = batches[size:]
	}
	return at
}

// fetcher fetches from one broker what it leads.
type fetcher struct {
	tail *Tail
	id   int32
	wake chan struct{} // capacity 1: there may be something to ask for
}

func (f *fetcher) run() {
	t := f.tail
	pause := tailPauseShortest
	for turn := 0; ; turn++ {
		req, asked := f.request(turn)
		if len(asked) == 0 {
			select {
			case <-f.wake:
				continue
			case <-t.ctx.Done():
				return
			}
		}
		resp, err := t.cl.Broker(int(f.id)).Request(t.ctx, req)
		if err == nil {
			err = kerr.ErrorForCode(resp.(*kmsg.FetchResponse).ErrorCode)
		}
		if err == nil {
			pause = tailPauseShortest
			t.take(asked, resp.(*kmsg.FetchResponse))
			continue
		}
		t.mu.Lock()
		for _, s := range asked {
			s.stray(err)
			if Refused(err) {
				s.fail(fmt.Errorf("read %s/%d: %w", s.p.Topic, s.p.Number, err))
			}
		}
		t.mu.Unlock()
		if !sleep(t.ctx, pause) {
			return
		}
		pause = min(2*pause, tailPauseLongest)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// request asks for every partition that has room. Each comes first in its turn: the broker fills an answer in order.
func (f *fetcher) request(turn int) (*kmsg.FetchRequest, []*Stream) {
	t := f.tail
	t.mu.Lock()
	defer t.mu.Unlock()
	var asked []*Stream
	full := false
	for _, s := range t.streams {
		switch {
		case s.leader != f.id || s.err != nil:
		case s.bytes >= tailStreamBytes, t.buffered >= tailBytes && s.bytes > 0:
			full = true
		default:
			asked = append(asked, s)
		}
	}
	if len(asked) == 0 {
		return nil, nil
	}
	slices.SortFunc(asked, func(a, b *Stream) int { return comparePartitions(a.p, b.p) })
	turn %= len(asked)
	asked = append(asked[turn:], asked[:turn]...)

	req := kmsg.NewPtrFetchRequest()
	req.IsolationLevel, req.MinBytes, req.MaxBytes = 1, 1, tailRequestBytes
	req.MaxWaitMillis = int32(tailWait.Milliseconds())
	if full {
		req.MaxWaitMillis = int32(tailWaitFull.Milliseconds())
	}
	size := t.opts.FetchPartitionBytes
	if size <= 0 {
		size = tailFetchBytes
	}
	for _, s := range asked {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = s.p.Number, s.next, size
		at := slices.IndexFunc(req.Topics, func(t kmsg.FetchRequestTopic) bool { return t.Topic == s.p.Topic })
		if at < 0 {
			topic := kmsg.NewFetchRequestTopic()
			topic.Topic, topic.TopicID = s.p.Topic, s.topic
			req.Topics = append(req.Topics, topic)
			at = len(req.Topics) - 1
		}
		req.Topics[at].Partitions = append(req.Topics[at].Partitions, p)
	}
	return req, asked
}

func comparePartitions(a, b record.Partition) int {
	if a.Topic != b.Topic {
		if a.Topic < b.Topic {
			return -1
		}
		return 1
	}
	return int(a.Number) - int(b.Number)
}

// take hands an answer to the streams that were asked for.
func (t *Tail) take(asked []*Stream, resp *kmsg.FetchResponse) {
	size := 0
	for i := range resp.Topics {
		for j := range resp.Topics[i].Partitions {
			rp := &resp.Topics[i].Partitions[j]
			size += len(rp.RecordBatches)
			if len(asked) > 1 && len(rp.RecordBatches) > 0 {
				rp.RecordBatches = bytes.Clone(rp.RecordBatches) // a slow reader's share would keep the memory of the whole answer
			}
		}
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range resp.Topics {
		topic := &resp.Topics[i]
		for j := range topic.Partitions {
			rp := &topic.Partitions[j]
			at := slices.IndexFunc(asked, func(s *Stream) bool {
				return s.p.Number == rp.Partition && (s.p.Topic == topic.Topic || topic.Topic == "" && s.topic == topic.TopicID)
			})
			if at < 0 || asked[at].err != nil {
				continue
			}
			s := asked[at]
			if err := kerr.ErrorForCode(rp.ErrorCode); err != nil {
				s.refused(err)
				continue
			}
			s.state.High, s.state.Stable, s.state.Answered, s.state.Trouble = rp.HighWatermark, rp.LastStableOffset, now, nil
			if s.state.Stable < 0 {
				s.state.Stable = s.state.High
			}
			switch next := end(rp.RecordBatches, s.next); {
			case next > s.next:
				s.push(Chunk{Next: next, High: rp.HighWatermark, from: s.next, topic: s.p.Topic, raw: *rp})
			case len(rp.RecordBatches) == 0 && s.state.Stable > s.next && (at == 0 || size == 0):
				// The first partition of an answer gets at least one batch if there is any, so up to the stable offset there is
				// none: compaction took them all.
				s.push(Chunk{Next: s.state.Stable, High: rp.HighWatermark})
			}
		}
	}
}

// refused says what the leader has against the partition. Tail.mu is held.
func (s *Stream) refused(err error) {
	switch {
	case errors.Is(err, kerr.OffsetOutOfRange):
		s.fail(fmt.Errorf("read %s/%d from %d: %w", s.p.Topic, s.p.Number, s.next, ErrOutOfRange))
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		s.fail(fmt.Errorf("read %s/%d: %w", s.p.Topic, s.p.Number, err))
	default:
		s.stray(err)
	}
}

// findLeaders gives every stream its fetcher.
func (t *Tail) findLeaders() {
	pause := tailPauseShortest
	for {
		select {
		case <-t.lost:
		case <-t.ctx.Done():
			return
		}
		if t.findOnce() {
			pause = tailPauseShortest
			continue
		}
		if !sleep(t.ctx, pause) {
			return
		}
		pause = min(2*pause, tailPauseLongest)
		poke(t.lost)
	}
}

// findOnce asks for the leaders of what has none, and says whether all have one now that answers.
func (t *Tail) findOnce() bool {
	var topics []string
	t.mu.Lock()
	again := false
	for p, s := range t.streams {
		if s.leader < 0 && s.err == nil {
			again = again || s.state.Trouble != nil
			if !slices.Contains(topics, p.Topic) {
				topics = append(topics, p.Topic)
			}
		}
	}
	t.mu.Unlock()
	if len(topics) == 0 {
		return true
	}
	found, err := describeTopics(t.ctx, t.cl, topics)
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, s := range t.streams {
		if s.leader >= 0 || s.err != nil || !slices.Contains(topics, p.Topic) {
			continue
		}
		d, known := found[p.Topic]
		switch {
		case err != nil:
			s.state.Trouble = err
			if final(err) {
				s.fail(err)
			}
			continue
		case !known:
			s.state.Trouble = fmt.Errorf("topic %s: %w", p.Topic, kerr.UnknownTopicOrPartition)
			again = true
			continue
		case d.err != nil:
			s.state.Trouble = d.err
			if final(d.err) {
				s.fail(fmt.Errorf("topic %s: %w", p.Topic, d.err))
			}
			again = true
			continue
		case s.topic == TopicID{}:
			s.topic = d.id
		case d.id != s.topic && d.id != TopicID{}:
			s.fail(fmt.Errorf("topic %s: %w", p.Topic, ErrRecreated))
			continue
		}
		leader, ok := d.leaders[p.Number]
		if !ok || leader < 0 {
			s.state.Trouble = fmt.Errorf("%s/%d: %w", p.Topic, p.Number, kerr.LeaderNotAvailable)
			again = true
			continue
		}
		s.leader = leader
		f := t.fetchers[leader]
		if f == nil && t.ctx.Err() == nil {
			f = &fetcher{tail: t, id: leader, wake: make(chan struct{}, 1)}
			t.fetchers[leader] = f
			t.joined.Go(f.run)
		}
		if f != nil {
			poke(f.wake)
		}
	}
	return err == nil && !again
}
