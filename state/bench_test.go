package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linxGnu/grocksdb"
)

// What the choices of this package cost, and what the ones it did not make would: RATIONALE.md has the figures. The stores that
// are compared have the same options, memory and batches.

const (
	benchMemory = 192 << 20 // of a directory: 128 MiB of block cache, 64 MiB of write buffers
	benchValue  = 100       // bytes
	benchBatch  = 1000      // changes of a commit
)

func benchDir(b *testing.B) *Dir {
	b.Helper()
	d, err := OpenDir(Options{Dir: b.TempDir(), MemoryLimit: benchMemory})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	return d
}

// A benchSource makes the same keys and values for everybody. Half of a value compresses.
type benchSource struct {
	*rand.Rand
	keys   int // of a partition
	random []byte
}

func newBenchSource(keys int) *benchSource {
	s := &benchSource{Rand: rand.New(rand.NewPCG(1, 2)), keys: keys, random: make([]byte, 1<<16)}
	for i := range s.random {
		s.random[i] = byte(s.Uint32())
	}
	return s
}

func (s *benchSource) key(n int) []byte { return fmt.Appendf(nil, "user-%08d", n) }

func (s *benchSource) change(n int) Change {
	v := make([]byte, benchValue)
	copy(v, s.random[s.IntN(len(s.random)-benchValue):][:benchValue/2])
	return Change{Key: s.key(n), Value: v}
}

func (s *benchSource) changes(n int) []Change {
	list := make([]Change, n)
	for i := range list {
		list[i] = s.change(s.IntN(s.keys))
	}
	return list
}

// benchStores are the partitions of a table, in one of two layouts.
type benchStores interface {
	apply(partition int, changes []Change, next int64) error
	get(partition int, key []byte) ([]byte, error)
	flush() error
	reopen() error
	drop(partition int) error
	size() int64 // bytes of table files
}

// separate is ours: one database for each partition.
type separate struct {
	dir    *Dir
	stores []Store
}

func newSeparate(b *testing.B, partitions int) benchStores {
	s := &separate{dir: benchDir(b), stores: make([]Store, partitions)}
	if err := s.open(); err != nil {
		b.Fatal(err)
	}
	return s
}

// each does something to all stores, several at a time, as the process does when it starts and stops.
func (s *separate) each(do func(n int) error) error {
	errs := make([]error, len(s.stores))
	turns := make(chan struct{}, 8)
	var all sync.WaitGroup
	for n := range s.stores {
		turns <- struct{}{}
		all.Go(func() {
			errs[n] = do(n)
			<-turns
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (s *separate) open() error {
	return s.each(func(n int) (err error) {
		s.stores[n], err = s.dir.Open("t", int32(n))
		return err
	})
}

func (s *separate) apply(n int, changes []Change, next int64) error {
	return s.stores[n].Apply(changes, next)
}

func (s *separate) get(n int, key []byte) ([]byte, error) { return s.stores[n].Get(key) }

func (s *separate) flush() error { return s.each(func(n int) error { return s.stores[n].Flush() }) }

func (s *separate) reopen() error {
	if err := s.each(func(n int) error { return s.stores[n].Close() }); err != nil {
		return err
	}
	return s.open()
}

func (s *separate) drop(n int) (err error) {
	if err = s.stores[n].Close(); err == nil {
		err = s.dir.Destroy("t", int32(n))
	}
	if err == nil {
		s.stores[n], err = s.dir.Open("t", int32(n))
	}
	return err
}

func (s *separate) size() int64 { return tableBytes(s.dir.Root()) }

// shared is the other layout: one database, where a partition is a prefix of the key (and has its own position under it). It
// has all of the write buffers' memory, a part of it as its one write buffer.
type shared struct {
	dir  *Dir
	opts *grocksdb.Options
	path string
	h    *handle
}

func newShared(b *testing.B, _ int) benchStores {
	d := benchDir(b)
	s := &shared{dir: d, path: filepath.Join(d.Root(), "t")}
	if _, err := prepare(s.path); err != nil {
		b.Fatal(err)
	}
	var err error
	if s.opts, err = d.rocksOptions("t", true); err == nil {
		s.opts.SetWriteBufferSize(uint64(d.opts.WriteBuffersSize / 2))
		s.h, err = openHandle(s.path, s.opts)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.h.close(); s.opts.Destroy() })
	return s
}

func prefixed(n int, key []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(key)), uint32(n)), key...)
}

func (s *shared) apply(n int, changes []Change, next int64) error {
	var w batch
	w.rep = make([]byte, 0, len(changes)*(benchValue+32))
	w.reset()
	for _, c := range changes {
		w.change(Change{Key: prefixed(n, c.Key), Value: c.Value})
	}
	w.change(Change{Key: prefixed(n, nil), Value: position{offset: next}.encode(nil)})
	return s.h.write(w.rep)
}

func (s *shared) get(n int, key []byte) ([]byte, error) {
	x := s.dir.scratches.get()
	defer s.dir.scratches.put(x)
	x.keys = append(append(x.keys[:0], spaceData), prefixed(n, key)...)
	raw, err := s.h.get(x, s.h.ro, x.keys)
	if raw == nil || err != nil {
		return nil, err
	}
	value, _, err := decodeValue(raw)
	return value, err
}

func (s *shared) flush() error { return s.h.flush() }

func (s *shared) reopen() (err error) {
	if err = s.h.flush(); err != nil {
		return err
	}
	s.h.close()
	s.h, err = openHandle(s.path, s.opts)
	return err
}

// drop deletes the range, and compacts it so that the space is free and reads need not skip it.
func (s *shared) drop(n int) error {
	wo := grocksdb.NewDefaultWriteOptions()
	defer wo.Destroy()
	wo.DisableWAL(true)
	from, to := append([]byte{spaceData}, prefixed(n, nil)...), append([]byte{spaceData}, prefixed(n+1, nil)...)
	if err := s.h.db.DeleteRangeCF(wo, s.h.cf, from, to); err != nil {
		return err
	}
	s.h.db.CompactRange(grocksdb.Range{Start: from, Limit: to})
	return nil
}

func (s *shared) size() int64 { return tableBytes(s.path) }

func tableBytes(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".sst") {
			if i, err := e.Info(); err == nil {
				n += i.Size()
			}
		}
		return nil
	})
	return n
}

// eachLayout runs a benchmark on both, over several numbers of partitions which have 160,000 keys together.
func eachLayout(b *testing.B, run func(b *testing.B, s benchStores, partitions int, source *benchSource)) {
	for _, partitions := range []int{1, 8, 32} {
		for _, layout := range []struct {
			name string
			make func(*testing.B, int) benchStores
		}{{"separate", newSeparate}, {"shared", newShared}} {
			b.Run(fmt.Sprintf("partitions=%d/%s", partitions, layout.name), func(b *testing.B) {
				run(b, layout.make(b, partitions), partitions, newBenchSource(160_000/partitions))
			})
		}
	}
}

// fill writes every key once.
func fill(b *testing.B, s benchStores, partitions int, source *benchSource) {
	b.Helper()
	for n := range partitions {
		for from := 0; from < source.keys; from += benchBatch {
			list := make([]Change, 0, benchBatch)
			for k := from; k < min(from+benchBatch, source.keys); k++ {
				list = append(list, source.change(k))
			}
			check(b, s.apply(n, list, int64(from+benchBatch)))
		}
	}
	check(b, s.flush())
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkLayoutApply is a commit: 1,000 changes, spread over all partitions.
func BenchmarkLayoutApply(b *testing.B) {
	eachLayout(b, func(b *testing.B, s benchStores, partitions int, source *benchSource) {
		lists := make([][]Change, 64)
		for i := range lists {
			lists[i] = source.changes(benchBatch / partitions)
		}
		used := startCost()
		next := int64(0)
		for b.Loop() {
			for n := range partitions {
				next += benchBatch
				check(b, s.apply(n, lists[source.IntN(len(lists))], next))
			}
		}
		check(b, s.flush())
		used.report(b, benchBatch/partitions*partitions)
	})
}

// BenchmarkLayoutRestore fills all partitions at once, each from a goroutine of its own.
func BenchmarkLayoutRestore(b *testing.B) {
	eachLayout(b, func(b *testing.B, s benchStores, partitions int, source *benchSource) {
		list := source.changes(benchBatch)
		used := startCost()
		next := int64(0)
		for b.Loop() {
			var all sync.WaitGroup
			for n := range partitions {
				all.Go(func() {
					for i := range 32 / partitions {
						if err := s.apply(n, list, next+int64(i+1)*benchBatch); err != nil {
							b.Error(err)
						}
					}
				})
			}
			all.Wait()
			next += 32 * benchBatch
		}
		check(b, s.flush())
		used.report(b, 32*benchBatch)
	})
}

// BenchmarkLayoutGet reads one key; all of them are in the block cache.
func BenchmarkLayoutGet(b *testing.B) {
	eachLayout(b, func(b *testing.B, s benchStores, partitions int, source *benchSource) {
		fill(b, s, partitions, source)
		for n := range partitions {
			for k := range source.keys {
				_, err := s.get(n, source.key(k))
				check(b, err)
			}
		}
		b.ResetTimer()
		used := startCost()
		for b.Loop() {
			if v, err := s.get(source.IntN(partitions), source.key(source.IntN(source.keys))); err != nil || v == nil {
				b.Fatal(v, err)
			}
		}
		used.report(b, 1)
	})
}

// BenchmarkLayoutOpen closes and opens everything.
func BenchmarkLayoutOpen(b *testing.B) {
	eachLayout(b, func(b *testing.B, s benchStores, partitions int, source *benchSource) {
		fill(b, s, partitions, source)
		b.ResetTimer()
		used := startCost()
		for b.Loop() {
			check(b, s.reopen())
		}
		used.report(b, 1)
	})
}

// BenchmarkLayoutDrop takes one partition away, until its space is free.
func BenchmarkLayoutDrop(b *testing.B) {
	eachLayout(b, func(b *testing.B, s benchStores, partitions int, source *benchSource) {
		fill(b, s, partitions, source)
		var cost cost
		for b.Loop() {
			before := s.size()
			used := startCost()
			check(b, s.drop(0))
			cost.add(used)
			if after := s.size(); after > before-before/int64(2*partitions) {
				b.Fatalf("%d bytes of %d are left", after, before)
			}
			b.StopTimer()
			for from := 0; from < source.keys; from += benchBatch {
				check(b, s.apply(0, source.changes(benchBatch), int64(from+benchBatch)))
			}
			check(b, s.flush())
			b.StartTimer()
		}
		b.ReportMetric(cost.cpu/float64(b.N), "cpu-ns/item")
		b.ReportMetric(cost.written/float64(b.N), "written-B/item")
	})
}

// BenchmarkOpenStores is what each further open store takes: memory of the process, and files. Each has been written to.
func BenchmarkOpenStores(b *testing.B) {
	const stores = 128
	source := newBenchSource(1000)
	for b.Loop() {
		d := benchDir(b)
		memory, files := resident(b), openFiles(b)
		for n := range stores {
			s, err := d.Open("t", int32(n))
			check(b, err)
			check(b, s.Apply(source.changes(10), 10))
		}
		b.ReportMetric(float64(resident(b)-memory)/stores/1024, "KiB/store")
		b.ReportMetric(float64(openFiles(b)-files)/stores, "files/store")
		check(b, d.Close())
	}
}

// BenchmarkLog is a commit of 1,000 changes without a write-ahead log, with one that the system writes when it likes (as good against
// SIGKILL), and with one that is synced (as good against a power cut).
func BenchmarkLog(b *testing.B) {
	for _, test := range []struct {
		name      string
		log, sync bool
	}{{"none", false, false}, {"log", true, false}, {"synced", true, true}} {
		b.Run(test.name, func(b *testing.B) {
			d := benchDir(b)
			st, err := d.Open("t", 0)
			check(b, err)
			h := st.(*partition).handle.Load()
			wo := grocksdb.NewDefaultWriteOptions()
			defer wo.Destroy()
			wo.DisableWAL(!test.log)
			wo.SetSync(test.sync)
			source := newBenchSource(320_000)
			batches := make([][]byte, 320)
			for i := range batches {
				var w batch
				w.reset()
				for _, c := range source.changes(benchBatch) {
					w.change(c)
				}
				w.position(position{offset: int64(i + 1)})
				batches[i] = w.rep
			}
			b.ResetTimer()
			used := startCost()
			for i := 0; b.Loop(); i++ {
				w := grocksdb.WriteBatchFrom(batches[i%len(batches)])
				check(b, h.db.Write(wo, w))
				w.Destroy()
			}
			check(b, h.flush())
			used.report(b, benchBatch)
		})
	}
}

// BenchmarkRead is 1,000 keys of a store: one by one, or all in one call; from the block cache, and from the write buffer.
func BenchmarkRead(b *testing.B) {
	for _, from := range []string{"cache", "memtable"} {
		d := benchDir(b)
		s, err := d.Open("t", 0)
		check(b, err)
		source := newBenchSource(100_000)
		for n := 0; n < source.keys; n += benchBatch {
			list := make([]Change, benchBatch)
			for i := range list {
				list[i] = source.change(n + i)
			}
			check(b, s.Apply(list, int64(n+benchBatch)))
		}
		if from == "cache" {
			check(b, s.Flush())
		}
		var sets [64][1000][]byte
		for i := range sets {
			for k := range sets[i] {
				sets[i][k] = source.key(source.IntN(source.keys))
			}
		}
		b.Run(from+"/Get", func(b *testing.B) {
			used := startCost()
			for i := 0; b.Loop(); i++ {
				for _, k := range sets[i%len(sets)] {
					if v, err := s.Get(k); err != nil || v == nil {
						b.Fatal(v, err)
					}
				}
			}
			used.report(b, len(sets[0]))
		})
		b.Run(from+"/MultiGet", func(b *testing.B) {
			used := startCost()
			for i := 0; b.Loop(); i++ {
				values, err := s.MultiGet(sets[i%len(sets)][:])
				check(b, err)
				for _, v := range values {
					if v == nil {
						b.Fatal("a key is missing")
					}
				}
			}
			used.report(b, len(sets[0]))
		})
		check(b, d.Close())
	}
}

// cost is what the process used: processor time (elapsed time says little on a busy machine) and bytes given to the file system.
type cost struct{ cpu, written float64 }

func startCost() cost {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	var written float64
	io, _ := os.ReadFile("/proc/self/io")
	for line := range strings.Lines(string(io)) {
		_, _ = fmt.Sscanf(line, "wchar: %f", &written)
	}
	return cost{float64(u.Utime.Nano() + u.Stime.Nano()), written}
}

func (c *cost) add(since cost) {
	now := startCost()
	c.cpu += now.cpu - since.cpu
	c.written += now.written - since.written
}

// report tells the cost since c for each of the items of an operation.
func (c cost) report(b *testing.B, items int) {
	var used cost
	used.add(c)
	n := float64(b.N * items)
	b.ReportMetric(used.cpu/n, "cpu-ns/item")
	b.ReportMetric(used.written/n, "written-B/item")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/item")
}

func resident(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	check(b, err)
	var size, pages int64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func openFiles(b *testing.B) int {
	b.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	check(b, err)
	return len(list)
}

// BenchmarkStaged is a table's part of the way of 1,000 changes, of 100,000 keys: laid over the store as steps make them, read there,
// taken for a commit, and put into the store.
func BenchmarkStaged(b *testing.B) {
	const records = 1000
	d, err := OpenDir(Options{Dir: b.TempDir(), MemoryLimit: 192 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	store, err := d.Open("t", 0)
	if err != nil {
		b.Fatal(err)
	}
	staged := NewStaged(store)
	var stage, get, commit time.Duration
	offset := int64(0)
	for b.Loop() {
		changes := make([]Change, records)
		for i := range changes {
			changes[i] = Change{Key: fmt.Appendf(nil, `"u%d"`, (int(offset)+i*7919)%100_000), Value: []byte("41")}
		}
		began := time.Now()
		staged.Stage(changes)
		stage += time.Since(began)
		began = time.Now()
		for i := range changes {
			if v, err := staged.Get(changes[i].Key); err != nil || len(v) != 2 {
				b.Fatal(v, err)
			}
		}
		get += time.Since(began)
		began = time.Now()
		offset += records
		if err := staged.Commit(staged.Freeze(), offset); err != nil {
			b.Fatal(err)
		}
		commit += time.Since(began)
	}
	n := float64(b.N * records)
	b.ReportMetric(float64(stage.Nanoseconds())/n, "stage-ns/change")
	b.ReportMetric(float64(get.Nanoseconds())/n, "get-ns/change")
	b.ReportMetric(float64(commit.Nanoseconds())/n, "commit-ns/change")
}
