package scheduler

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// stores are what the benchmarks run over.
var stores = map[string]func(b *testing.B) state.Opener{
	"mem": func(*testing.B) state.Opener { return mem.New() },
	"rocksdb": func(b *testing.B) state.Opener {
		d, err := state.OpenDir(state.Options{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		return d
	},
}

// bed is a partition whose changes are committed every so many steps, as a host's transactions are.
type bed struct {
	b     *testing.B
	store state.Store
	table view
	at    int64
	steps int
	asked int // requests so far
}

func newBed(b *testing.B, kind string) *bed {
	opener := stores[kind](b)
	b.Cleanup(func() {
		if err := opener.Close(); err != nil {
			b.Error(err)
		}
	})
	store, err := opener.Open("timetable", 0)
	if err != nil {
		b.Fatal(err)
	}
	return &bed{b: b, store: store, table: view{state.NewStaged(store)}}
}

func (d *bed) lay(st Step, err error) Step {
	if err != nil {
		d.b.Fatal(err)
	}
	d.table.lay(st)
	if d.steps++; d.steps%10 == 0 {
		d.commit()
	}
	return st
}

func (d *bed) commit() {
	set := d.table.Freeze()
	if set == nil {
		return
	}
	d.at += int64(len(set.Changes))
	if err := d.table.Commit(set, d.at); err != nil {
		d.b.Fatal(err)
	}
}

// fill takes n messages in that are due within a minute from a time on.
func (d *bed) fill(s *Settings, n int, ids bool, from time.Time) {
	const size = 500
	for i := 0; i < n; i += size {
		d.lay(s.Intake(d.table, actions(d.asked, min(size, n-i), ids, from), someDay))
		d.asked += size
	}
	d.commit()
}

var payload = bytes.Repeat([]byte("x"), 200)

func actions(first, n int, ids bool, from time.Time) []record.Record {
	batch := make([]record.Record, n)
	for i := range batch {
		due := formatSeconds(from.UnixMilli() + int64((first+i)*7919%60_000))
		h := headers(HeaderAction, "ADD", HeaderTo, "destination", HeaderAt, due, HeaderSource, fmt.Sprintf("0@%d@1772352000000", first+i))
		if ids {
			h = append(h, headers(HeaderID, fmt.Sprintf("request-%d", first+i))...)
		}
		batch[i] = record.Record{Offset: int64(first + i), Key: fmt.Append(nil, "key-", i), Value: payload, Headers: h}
	}
	return batch
}

func variants(b *testing.B, run func(b *testing.B, kind string, ids bool)) {
	for _, kind := range []string{"mem", "rocksdb"} {
		for _, ids := range []bool{false, true} {
			b.Run(fmt.Sprintf("store=%s/ids=%t", kind, ids), func(b *testing.B) { run(b, kind, ids) })
		}
	}
}

// What a request costs between its topic and the table, without the broker.
func BenchmarkIntake(b *testing.B) {
	s := Defaults("bench")
	variants(b, func(b *testing.B, kind string, ids bool) {
		const size = 500
		d := newBed(b, kind)
		n := 0
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			batch := actions(n, size, ids, someDay.Add(time.Hour))
			b.StartTimer()
			d.lay(s.Intake(d.table, batch, someDay))
			n += size
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
	})
}

// What a request costs on its way to the partition of its id.
func BenchmarkDistribute(b *testing.B) {
	s := Defaults("bench")
	const size = 500
	batch := actions(0, size, true, someDay)
	for i := range batch {
		batch[i].Headers = headers(HeaderTo, "destination", HeaderAt, "2026-03-01T09:00:00.750+01:00", HeaderID, fmt.Sprintf("request-%d", i))
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		if st := s.Distribute(batch, someDay); len(st.Outputs) != size {
			b.Fatal(st.Outcomes)
		}
		n += size
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
}

// What a message costs from the table to its output, without the broker.
func BenchmarkDispatch(b *testing.B) {
	s := Defaults("bench")
	variants(b, func(b *testing.B, kind string, ids bool) {
		const filled = 100_000
		d := newBed(b, kind)
		n, left := 0, 0
		now := someDay.Add(2 * time.Hour)
		b.ReportAllocs()
		for b.Loop() {
			if left == 0 {
				b.StopTimer()
				d.fill(&s, filled, ids, someDay.Add(time.Hour))
				left = filled
				b.StartTimer()
			}
			st := d.lay(s.Dispatch(d.table, nil, now))
			if len(st.Messages) == 0 {
				b.Fatal("nothing is due")
			}
			n += len(st.Messages)
			left -= len(st.Messages)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
	})
}

var benchPending = flag.Int("pending", 1_000_000, "messages that wait in BenchmarkIdle")

// What it costs to look, with many messages for another day. A host looks once a wake, which is far away then.
func BenchmarkIdle(b *testing.B) {
	s := Defaults("bench")
	d := newBed(b, "rocksdb")
	began := time.Now()
	d.fill(&s, *benchPending, false, someDay.AddDate(1, 0, 0))
	filled := time.Since(began)
	if err := d.store.Flush(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		st, err := s.Dispatch(d.table, nil, someDay.Add(time.Hour))
		if err != nil || len(st.Changes) > 0 || st.Wake.Before(someDay.AddDate(1, 0, 0)) {
			b.Fatal(st, err)
		}
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB-heap")
	b.ReportMetric(residentMiB(b), "MiB-resident")
	b.ReportMetric(float64(*benchPending)/filled.Seconds(), "filled/s")
}

// residentMiB is the process's memory, RocksDB's included.
func residentMiB(b *testing.B) float64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		b.Fatal(err)
	}
	return float64(resident*os.Getpagesize()) / (1 << 20)
}
