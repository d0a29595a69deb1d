package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// cluster is an embedded broker with one topic "log", and clients of it.
type cluster struct {
	t    *testing.T
	ctx  context.Context
	fake *kfake.Cluster // nil with a real broker
	cl   *kgo.Client
	adm  *kadm.Client
	opts Options
}

func newCluster(t *testing.T, partitions int32) *cluster {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "log"),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	c := clusterAt(t, fake.ListenAddrs()...)
	c.fake = fake
	return c
}

func clusterAt(t *testing.T, addrs ...string) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	c := &cluster{t: t, ctx: ctx, opts: Options{Brokers: addrs, ClientID: "test", Log: slog.New(slog.DiscardHandler)}}
	c.cl = c.client()
	c.adm = kadm.NewClient(c.cl)
	return c
}

func (c *cluster) client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.opts.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MetadataMinAge(10 * time.Millisecond),
	}, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(cl.Close)
	return cl
}

func (c *cluster) tail() *Tail {
	c.t.Helper()
	t, err := NewTail(c.opts)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(t.Close)
	return t
}

func (c *cluster) admin() *Admin {
	c.t.Helper()
	a, err := NewAdmin(c.opts)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(a.Close)
	return a
}

// produce appends n records of a size to a partition.
func (c *cluster) produce(cl *kgo.Client, partition int32, n, size int) {
	c.t.Helper()
	for i := range n {
		cl.Produce(c.ctx, &kgo.Record{Topic: "log", Partition: partition, Key: fmt.Append(nil, i), Value: bytes.Repeat([]byte{'v'}, size)}, nil)
	}
	if err := cl.Flush(c.ctx); err != nil {
		c.t.Fatal(err)
	}
}

// transaction produces n records in a transaction and ends it.
func (c *cluster) transaction(cl *kgo.Client, n int, end kgo.TransactionEndTry) {
	c.t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		c.t.Fatal(err)
	}
	c.produce(cl, 0, n, 10)
	if err := cl.EndTransaction(c.ctx, end); err != nil {
		c.t.Fatal(err)
	}
}

// read reads until the position is at least to, and returns the keys.
func (c *cluster) read(s *Stream, to int64) []string {
	c.t.Helper()
	var keys []string
	for at := int64(-1); at < to; {
		chunk, err := s.Next(c.ctx)
		if err == nil {
			err = chunk.Decode()
		}
		if err != nil {
			c.t.Fatalf("at %d of %d (%+v): %v", at, to, s.State(), err)
		}
		for _, e := range chunk.Entries {
			keys = append(keys, string(e.Key))
		}
		at = chunk.Next
	}
	return keys
}

var log0 = record.Partition{Topic: "log", Number: 0}

func (c *cluster) bounds(a *Admin) Bounds {
	c.t.Helper()
	b, err := a.Bounds(c.ctx, log0)
	if err != nil {
		c.t.Fatal(err)
	}
	return b[log0]
}

// A restore that ends in aborted records or transaction markers would wait for ever for a record that never comes.
func TestTailPassesMarkersAndAbortedRecords(t *testing.T) {
	c := newCluster(t, 1)
	tx := c.client(kgo.TransactionalID("tx"))
	c.transaction(tx, 3, kgo.TryCommit)
	c.transaction(tx, 5, kgo.TryAbort)
	c.transaction(tx, 2, kgo.TryCommit)
	c.transaction(tx, 4, kgo.TryAbort)
	b := c.bounds(c.admin())
	if b.High != 3+1+5+1+2+1+4+1 {
		t.Fatalf("the log ends at %d", b.High)
	}
	s := c.tail().Follow(log0, TopicID{}, 0)
	if keys := fmt.Sprint(c.read(s, b.High)); keys != "[0 1 2 0 1]" {
		t.Errorf("read %s", keys)
	}
	if st := s.State(); st.Next != b.High || st.High != b.High || st.Stable != b.High || st.Answered.IsZero() || st.Trouble != nil {
		t.Errorf("state %+v", st)
	}
}

// Records of a transaction that is still open may yet be aborted.
func TestTailWaitsForAnOpenTransaction(t *testing.T) {
	c := newCluster(t, 1)
	c.produce(c.cl, 0, 2, 10)
	tx := c.client(kgo.TransactionalID("tx"))
	if err := tx.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	c.produce(tx, 0, 3, 10)
	high := c.bounds(c.admin()).High
	s := c.tail().Follow(log0, TopicID{}, 0)
	if keys := c.read(s, 2); len(keys) != 2 {
		t.Errorf("read %q before the end of the transaction", keys)
	}
	if st := s.State(); st.Stable != 2 || st.High != high {
		t.Errorf("state %+v, want stable 2, high %d", st, high)
	}
	short, cancel := context.WithTimeout(c.ctx, 2*tailWait)
	defer cancel()
	if chunk, err := s.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %+v, %v while the transaction was open", chunk, err)
	}
	if err := tx.EndTransaction(c.ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if keys := c.read(s, high+1); len(keys) != 3 {
		t.Errorf("read %q after the end of the transaction", keys)
	}
}

// One table that is slow to write must not stop the restore of the others, nor fill the memory.
func TestTailSlowReaderStallsNobody(t *testing.T) {
	c := newCluster(t, 3)
	const n, size = 100, 100 << 10
	for p := range int32(3) {
		c.produce(c.cl, p, n, size)
	}
	tail := c.tail()
	slow := tail.Follow(log0, TopicID{}, 0)
	for p := range int32(2) {
		s := tail.Follow(record.Partition{Topic: "log", Number: p + 1}, TopicID{}, 0)
		if keys := c.read(s, n); len(keys) != n {
			t.Errorf("read %d of %d records", len(keys), n)
		}
	}
	tail.mu.Lock()
	waiting := slow.bytes
	tail.mu.Unlock()
	if most := int64(tailStreamBytes + 2*tailFetchBytes); waiting == 0 || waiting > most {
		t.Errorf("%d bytes wait for the slow reader, want some and at most %d", waiting, most)
	}
	if keys := c.read(slow, n); len(keys) != n {
		t.Errorf("the slow reader got %d of %d records", len(keys), n)
	}
	slow.Close()
	tail.mu.Lock()
	defer tail.mu.Unlock()
	if len(tail.streams) != 2 {
		t.Errorf("%d streams are left", len(tail.streams))
	}
	if tail.buffered != 0 {
		t.Errorf("%d bytes are said to wait", tail.buffered)
	}
}

// Compaction takes the last records before the end of a log when the active segment is empty; nothing comes then, but the
// answer of the broker says how far nothing goes.
func TestTailPassesAGapAtTheEnd(t *testing.T) {
	c := newCluster(t, 2)
	c.produce(c.cl, 0, 10, 10)
	gaps := 0
	c.fake.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		req := kreq.(*kmsg.FetchRequest)
		c.fake.KeepControl()
		if len(req.Topics) != 1 || len(req.Topics[0].Partitions) != 1 || req.Topics[0].Partitions[0].FetchOffset != 4 {
			return nil, nil, false
		}
		gaps++
		resp := req.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.Topic, topic.TopicID = req.Topics[0].Topic, req.Topics[0].TopicID
		part := kmsg.NewFetchResponseTopicPartition()
		part.HighWatermark, part.LastStableOffset = 10, 7
		topic.Partitions = append(topic.Partitions, part)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	s := c.tail().Follow(log0, TopicID{}, 4)
	chunk, err := s.Next(c.ctx)
	if err != nil || chunk.Next != 7 || chunk.High != 10 || chunk.Decode() != nil || len(chunk.Entries) != 0 {
		t.Fatalf("got %+v, %v", chunk, err)
	}
	if keys := fmt.Sprint(c.read(s, 10)); keys != "[7 8 9]" || gaps != 1 {
		t.Errorf("read %s after %d gaps", keys, gaps)
	}
}

// Offsets outside of the log, and of another topic of the same name, mean that the store is not what it says it is.
func TestTailErrors(t *testing.T) {
	c := newCluster(t, 1)
	c.produce(c.cl, 0, 10, 10)
	if _, err := c.adm.DeleteRecords(c.ctx, kadm.Offsets{"log": {0: {Topic: "log", Partition: 0, At: 4}}}); err != nil {
		t.Fatal(err)
	}
	admin := c.admin()
	if b := c.bounds(admin); b != (Bounds{4, 10}) {
		t.Errorf("bounds %+v", b)
	}
	info, err := admin.Describe(c.ctx, "log", "missing")
	if err != nil || len(info) != 1 || info["log"].Partitions != 1 || info["log"].ID == (TopicID{}) {
		t.Fatalf("described as %+v, %v", info, err)
	}
	tail := c.tail()
	for _, x := range []struct {
		name  string
		topic TopicID
		from  int64
		want  error
	}{
		{"before the start", TopicID{}, 3, ErrOutOfRange},
		{"after the end", info["log"].ID, 11, ErrOutOfRange},
		{"another topic", TopicID{1}, 4, ErrRecreated},
	} {
		s := tail.Follow(log0, x.topic, x.from)
		if chunk, err := s.Next(c.ctx); !errors.Is(err, x.want) {
			t.Errorf("%s: got %+v, %v, want %v", x.name, chunk, err, x.want)
		}
		s.Close()
	}
	s := tail.Follow(log0, info["log"].ID, 4)
	c.read(s, 10)
	if _, err := c.adm.DeleteTopic(c.ctx, "log"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.adm.CreateTopic(c.ctx, 1, 1, nil, "log"); err != nil {
		t.Fatal(err)
	}
	c.produce(c.client(), 0, 20, 10)
	if chunk, err := s.Next(c.ctx); !errors.Is(err, ErrRecreated) {
		t.Errorf("a topic made anew: got %+v, %v", chunk, err)
	}
	tail.Close()
	if _, err := tail.Follow(record.Partition{Topic: "other"}, TopicID{}, 0).Next(c.ctx); !errors.Is(err, ErrTailClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A topic may appear, and a broker may come back, after the stream has begun.
func TestTailWaitsForTheTopic(t *testing.T) {
	c := newCluster(t, 1)
	s := c.tail().Follow(record.Partition{Topic: "later"}, TopicID{}, 0)
	short, cancel := context.WithTimeout(c.ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := s.Next(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v of a topic that is not there", err)
	}
	if _, err := c.adm.CreateTopic(c.ctx, 1, 1, nil, "later"); err != nil {
		t.Fatal(err)
	}
	if err := c.client().ProduceSync(c.ctx, &kgo.Record{Topic: "later", Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if keys := c.read(s, 1); len(keys) != 1 {
		t.Errorf("read %q", keys)
	}
}

// What a request asks for next is read off the batches' heads; a wrong one repeats or skips records.
func TestEndOfBatches(t *testing.T) {
	batch := func(magic byte, first int64, last int32, size int) []byte {
		b := make([]byte, size)
		b[7], b[6] = byte(first), byte(first>>8)
		b[11], b[16] = byte(size-12), magic
		b[26] = byte(last)
		return b
	}
	whole := batch(2, 300, 9, 61)
	for _, x := range []struct {
		name string
		in   []byte
		want int64
	}{
		{"nothing", nil, 5},
		{"one batch", whole, 310},
		{"one batch and the head of another", append(bytes.Clone(whole), batch(2, 310, 3, 61)[:40]...), 310},
		{"two", append(bytes.Clone(whole), batch(2, 320, 0, 61)...), 321},
		{"old format", batch(1, 12, 0, 40), 13},
		{"cut in the head", whole[:16], 5},
		{"senseless length", append([]byte{0, 0, 0, 0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff}, make([]byte, 60)...), 5},
		{"below the position", batch(2, 1, 1, 61), 5},
	} {
		if got := end(x.in, 5); got != x.want {
			t.Errorf("%s: %d, want %d", x.name, got, x.want)
		}
	}
}
