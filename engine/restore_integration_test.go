//go:build integration

package engine

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/engine/enginetest/realkafka"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost/abi"
)

// tableKafka is a Kafka with a changelog for each test.
type tableKafka struct {
	t      testing.TB
	ctx    context.Context
	broker *realkafka.Broker
	topic  string
	cl     *kgo.Client
	adm    *kadm.Client
	log    enginetest.Buffer
	want   []map[string]string // by partition: what the table must hold
}

const tablePartitions = 4

func newTableKafka(t testing.TB, b *realkafka.Broker, topic string, configs map[string]*string) *tableKafka {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	k := &tableKafka{t: t, ctx: ctx, broker: b, topic: topic}
	k.cl = k.client()
	k.adm = kadm.NewClient(k.cl)
	k.create(configs)
	return k
}

func (k *tableKafka) client(opts ...kgo.Opt) *kgo.Client {
	k.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(k.broker.Addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.MaxBufferedRecords(100_000),
	}, opts...)...)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(cl.Close)
	return cl
}

func (k *tableKafka) create(configs map[string]*string) {
	k.t.Helper()
	if _, err := k.adm.CreateTopic(k.ctx, tablePartitions, 1, configs, k.topic); err != nil {
		k.t.Fatal(err)
	}
	k.want = make([]map[string]string, tablePartitions)
	for i := range k.want {
		k.want[i] = map[string]string{}
	}
}

// write produces n records with random keys of the first so many; a tenth deletes. They count when committed says so.
func (k *tableKafka) write(cl *kgo.Client, n, keys int, committed bool) {
	k.t.Helper()
	var failed error
	var mu sync.Mutex
	for i := range n {
		key := fmt.Sprintf("key-%06d", rand.IntN(keys))
		h := fnv.New32a()
		h.Write([]byte(key))
		r := &kgo.Record{Topic: k.topic, Partition: int32(h.Sum32() % tablePartitions), Key: []byte(key)}
		if rand.IntN(10) > 0 {
			r.Value = fmt.Appendf(nil, "%0100d", i)
		}
		if committed && r.Value != nil {
			k.want[r.Partition][key] = string(r.Value)
		} else if committed {
			delete(k.want[r.Partition], key)
		}
		cl.Produce(k.ctx, r, func(_ *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			}
		})
	}
	if err := cl.Flush(k.ctx); err != nil {
		k.t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if failed != nil {
		k.t.Fatal(failed)
	}
}

func (k *tableKafka) transaction(cl *kgo.Client, n, keys int, end kgo.TransactionEndTry) {
	k.t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		k.t.Fatal(err)
	}
	k.write(cl, n, keys, end == kgo.TryCommit)
	if err := cl.EndTransaction(k.ctx, end); err != nil {
		k.t.Fatal(err)
	}
}

// process is one process's table over the changelog.
type tableProcess struct {
	*tables
	k     *tableKafka
	dir   *state.Dir
	told  chan struct{}
	close func()
}

func (k *tableKafka) process(dir string) *tableProcess {
	k.t.Helper()
	d, err := state.OpenDir(state.Options{Dir: dir})
	if err != nil {
		k.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&k.log, nil))
	opts := broker.Options{Brokers: []string{k.broker.Addr()}, ClientID: "test", Log: log}
	admin, err := broker.NewAdmin(opts)
	if err != nil {
		k.t.Fatal(err)
	}
	tail, err := broker.NewTail(opts)
	if err != nil {
		k.t.Fatal(err)
	}
	p := &tableProcess{k: k, dir: d, told: make(chan struct{}, 1)}
	plans := []plan.Table{{Name: "t", Guest: abi.Table{Changelog: k.topic}}}
	p.tables = newTables(d, brokerLogs{admin, tail}, "group", plans, log, func(int32) {
		select {
		case p.told <- struct{}{}:
		default:
		}
	})
	p.Start([]int32{tablePartitions})
	p.close = sync.OnceFunc(func() {
		if err := p.Close(context.WithoutCancel(k.ctx)); err != nil {
			k.t.Error(err)
		}
		tail.Close()
		admin.Close()
		if err := d.Close(); err != nil {
			k.t.Error(err)
		}
	})
	k.t.Cleanup(p.close)
	return p
}

// acquire takes all partitions.
func (p *tableProcess) acquire() {
	for n := range int32(tablePartitions) {
		p.Acquire(n, []int{0}, []record.Partition{{Topic: "in", Number: n}})
	}
}

// restored waits until all partitions are ready and compares what is in them.
func (p *tableProcess) restored() {
	p.k.t.Helper()
	p.wait()
	for n := range int32(tablePartitions) {
		store, _ := p.part(0, n).Store()
		got := map[string]string{}
		it := store.Scan(state.Range{})
		for it.Next() {
			got[string(it.Key())] = string(it.Value())
		}
		if err := it.Close(); err != nil {
			p.k.t.Fatal(err)
		}
		if want := p.k.want[n]; !maps.Equal(got, want) {
			p.k.t.Errorf("partition %d holds %d keys, want %d, and not the same ones or values", n, len(got), len(want))
		}
	}
}

func (p *tableProcess) wait() {
	p.k.t.Helper()
	for {
		ready := 0
		for n := range int32(tablePartitions) {
			if p.Ready(n, []int{0}) {
				ready++
			}
		}
		if ready == tablePartitions {
			return
		}
		select {
		case <-p.told:
		case <-p.k.ctx.Done():
			p.k.t.Fatalf("not restored: %+v\n%s", p.Progress(), &p.k.log)
		}
	}
}

func (k *tableKafka) logged(text string) {
	k.t.Helper()
	if !strings.Contains(k.log.String(), text) {
		k.t.Errorf("the log does not have %q:\n%s", text, &k.log)
	}
}

// What a real broker keeps in a changelog, and does to it, must neither stall a restore nor change its result.
func TestTablesOnKafka(t *testing.T) {
	b := realkafka.New(t, realkafka.Options{Properties: map[string]string{
		"log.cleaner.backoff.ms": "100", "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
	}})

	t.Run("aborted transactions and markers at the end", func(t *testing.T) {
		k := newTableKafka(t, b, "aborted", nil)
		tx := k.client(kgo.TransactionalID("aborted"))
		for range 5 {
			k.transaction(tx, 500, 300, kgo.TryCommit)
			k.transaction(tx, 300, 300, kgo.TryAbort)
		}
		dir := t.TempDir()
		p := k.process(dir)
		p.acquire()
		p.restored()
		p.close()
		k.transaction(tx, 100, 300, kgo.TryCommit)
		k.transaction(tx, 100, 300, kgo.TryAbort)
		p = k.process(dir)
		p.acquire()
		p.restored()
	})

	t.Run("compacted", func(t *testing.T) {
		small, ratio, retention, policy := "1", "0.01", "1", "compact"
		k := newTableKafka(t, b, "compacted", map[string]*string{
			"cleanup.policy": &policy, "segment.ms": &small, "min.cleanable.dirty.ratio": &ratio, "delete.retention.ms": &retention,
		})
		tx := k.client(kgo.TransactionalID("compacted"))
		for range 6 {
			k.transaction(tx, 1000, 50, kgo.TryCommit)
			k.transaction(tx, 100, 50, kgo.TryAbort)
		}
		// Compaction begins when it likes; until then this tests less, but not nothing.
		deadline := time.Now().Add(30 * time.Second)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		readable := func() int { return len(k.broker.Records(t, k.topic)) }
		for left := readable(); left > 3000; left = readable() {
			if time.Now().After(deadline) {
				t.Fatalf("%d of 6000 records are left: compaction did not run", left)
			}
			<-tick.C
		}
		p := k.process(t.TempDir())
		p.acquire()
		p.restored()
	})

	t.Run("a dead producer's transaction", func(t *testing.T) {
		k := newTableKafka(t, b, "dead", nil)
		k.write(k.cl, 100, 50, true)
		tx := k.client(kgo.TransactionalID("dead"), kgo.TransactionTimeout(3*time.Second))
		if err := tx.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		k.write(tx, 100, 50, false)
		tx.Close() // says nothing to the broker about the transaction
		p := k.process(t.TempDir())
		began := time.Now()
		p.acquire()
		p.restored()
		t.Logf("restored after %v", time.Since(began).Round(time.Millisecond))
	})

	t.Run("deleted and made anew", func(t *testing.T) {
		k := newTableKafka(t, b, "anew", nil)
		k.write(k.cl, 500, 100, true)
		dir := t.TempDir()
		p := k.process(dir)
		p.acquire()
		p.restored()
		p.close()
		if _, err := k.adm.DeleteTopic(k.ctx, k.topic); err != nil {
			t.Fatal(err)
		}
		k.create(nil)
		k.write(k.client(), 2000, 400, true) // a new client: the old one knows the old topic
		p = k.process(dir)
		p.acquire()
		p.restored()
		k.logged("the changelog was deleted and made anew")
	})

	t.Run("start deleted", func(t *testing.T) {
		k := newTableKafka(t, b, "start", nil)
		k.write(k.cl, 500, 100, true)
		dir := t.TempDir()
		p := k.process(dir)
		p.acquire()
		p.restored()
		p.close()
		k.write(k.cl, 500, 100, true)
		ends, err := k.adm.ListEndOffsets(k.ctx, k.topic)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.adm.DeleteRecords(k.ctx, ends.Offsets()); err != nil {
			t.Fatal(err)
		}
		for i := range k.want {
			clear(k.want[i])
		}
		k.write(k.cl, 200, 100, true)
		p = k.process(dir)
		p.acquire()
		p.restored()
		k.logged("records the store has not seen were deleted from the changelog")
	})

	t.Run("a broker that does not answer", func(t *testing.T) {
		k := newTableKafka(t, b, "silent", nil)
		k.write(k.cl, 5000, 1000, true)
		p := k.process(t.TempDir())
		p.tuning.stalledAfter = time.Second
		p.Acquire(0, []int{0}, nil)
		for !p.Ready(0, []int{0}) {
			<-p.told
		}
		p.Follow([]standby{{0, 0}, {0, 1}, {0, 2}, {0, 3}}) // the copies have something to wait for
		b.Pause()
		p.acquire()
		stalls := func() (n int64) {
			for _, x := range p.Progress() {
				n += x.Stalls
			}
			return n
		}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for stalls() < 3 {
			select {
			case <-tick.C:
			case <-k.ctx.Done():
				b.Resume()
				t.Fatalf("no stall: %+v\n%s", p.Progress(), &k.log)
			}
		}
		b.Resume()
		p.restored()
		k.logged("table makes no progress, its changelog is read anew")
	})

	t.Run("many, with a broker that is killed, and cancelled", func(t *testing.T) {
		k := newTableKafka(t, b, "many", nil)
		k.write(k.cl, 200_000, 80_000, true)
		dir := t.TempDir()
		p := k.process(dir)
		hold := func() {
			for range cap(p.turns) {
				p.turns <- struct{}{}
			}
		}
		free := func() {
			for range cap(p.turns) {
				<-p.turns
			}
		}
		hold()
		p.acquire()
		p.reading()
		b.Kill()
		if err := b.Restart(k.ctx); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		free()
		p.restored()
		t.Logf("restored in %v", time.Since(began).Round(time.Millisecond))

		// Again, given up in the middle.
		p.close()
		p = k.process(t.TempDir())
		hold()
		p.acquire()
		p.reading()
		for n := range int32(tablePartitions) {
			p.Release(n, []int{0})
		}
		began = time.Now()
		p.close()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v to give up", took)
		}
	})
}

// reading waits until all partitions read their changelog.
func (p *tableProcess) reading() {
	p.k.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n := 0
		for _, x := range p.Progress() {
			if x.Phase == phaseRestoring {
				n++
			}
		}
		if n == tablePartitions {
			return
		}
		select {
		case <-tick.C:
		case <-p.k.ctx.Done():
			p.k.t.Fatalf("not reading: %+v\n%s", p.Progress(), &p.k.log)
		}
	}
}
