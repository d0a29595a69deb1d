//go:build integration

package engine

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linxGnu/grocksdb"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// BenchmarkRestore restores 1,000,000 keys with values of 100 bytes from 4 partitions, and compares that with the least that
// can be done: a franz-go consumer that puts every fetched partition into a RocksDB by one WriteBatch (without the
// write-ahead log), one partition after the other (bare) or all at once (bare-parallel). Then it starts again with the store
// intact, and with one that is empty and has nothing to restore.
//
//	go test -tags integration -run '^$' -bench Restore -benchtime 5x ./engine
func BenchmarkRestore(b *testing.B) {
	const keys = 1_000_000
	kafka := realkafka.New(b, realkafka.Options{Heap: "768m"})
	k := newTableKafka(b, kafka, "bench", nil)
	for i := range keys {
		k.cl.Produce(k.ctx, &kgo.Record{
			Topic: k.topic, Partition: int32(i % tablePartitions), Key: fmt.Appendf(nil, "key-%09d", i*7919%keys), Value: fmt.Appendf(nil, "%0100d", i),
		}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := k.cl.Flush(k.ctx); err != nil {
		b.Fatal(err)
	}
	empty := newTableKafka(b, kafka, "empty", nil)
	var bare, parallel, restored, intact, nothing spent
	b.ResetTimer()
	for i := range b.N {
		run := func() { parallel.add(func() { k.bare(b, keys, true) }) }
		if i%2 == 0 { // who comes first finds a colder machine
			run()
		}
		bare.add(func() { k.bare(b, keys, false) })
		var p *tableProcess
		start := func(k *tableKafka, dir string) {
			p = k.process(dir)
			p.acquire()
			p.wait()
		}
		dir := b.TempDir()
		restored.add(func() { start(k, dir) })
		if p.part(0, 0).now.Load().store.SizeEstimate() == 0 {
			b.Error("nothing was restored")
		}
		p.close()
		if i%2 != 0 {
			run()
		}
		intact.add(func() { start(k, dir) })
		p.close()
		nothing.add(func() { start(empty, b.TempDir()) })
		p.close()
	}
	rate := func(s spent) float64 { return keys * float64(b.N) / s.time.Seconds() }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(rate(bare), "bare/s")
	b.ReportMetric(rate(parallel), "bare-parallel/s")
	b.ReportMetric(rate(restored), "restored/s")
	b.ReportMetric(rate(restored)/rate(bare), "of-bare")
	b.ReportMetric(rate(restored)/rate(parallel), "of-parallel")
	b.ReportMetric(restored.cpu.Seconds()/bare.cpu.Seconds(), "cpu-of-bare")
	b.ReportMetric(intact.time.Seconds()*1000/float64(b.N), "intact-ms")
	b.ReportMetric(nothing.time.Seconds()*1000/float64(b.N), "empty-ms")
}

// spent is the time something took, and what it cost this process: a busy machine changes the second less.
type spent struct{ time, cpu time.Duration }

func (s *spent) add(do func()) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			panic(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	runtime.GC() // each pays for its own garbage
	began, before := time.Now(), cpu()
	do()
	s.time += time.Since(began)
	s.cpu += cpu() - before
}

// bare consumes the changelog into RocksDB, a database for each partition.
func (k *tableKafka) bare(b *testing.B, records int, parallel bool) {
	dir := b.TempDir()
	opts := grocksdb.NewDefaultOptions()
	opts.SetCreateIfMissing(true)
	defer opts.Destroy()
	write := grocksdb.NewDefaultWriteOptions()
	write.DisableWAL(true)
	defer write.Destroy()
	dbs := make([]*grocksdb.DB, tablePartitions)
	at := map[int32]kgo.Offset{}
	for i := range dbs {
		db, err := grocksdb.OpenDb(opts, fmt.Sprintf("%s/%d", dir, i))
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close()
		dbs[i], at[int32(i)] = db, kgo.NewOffset().AtStart()
	}
	cl := k.client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{k.topic: at}), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	defer cl.Close()
	put := func(p kgo.FetchTopicPartition) {
		batch := grocksdb.NewWriteBatch()
		defer batch.Destroy()
		for _, r := range p.Records {
			batch.Put(r.Key, r.Value)
		}
		if err := dbs[p.Partition].Write(write, batch); err != nil {
			b.Error(err)
		}
	}
	for n := 0; n < records; {
		fetches := cl.PollFetches(k.ctx)
		if err := fetches.Err0(); err != nil {
			b.Fatal(err)
		}
		var all sync.WaitGroup
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			n += len(p.Records)
			if parallel {
				all.Go(func() { put(p) })
			} else {
				put(p)
			}
		})
		all.Wait()
	}
}
