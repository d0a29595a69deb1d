package bench

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// storeTables are one table's partition in a store.
type storeTables struct {
	store      state.Store
	prefetched map[string][]byte // if any, asked instead of the store
}

func (t *storeTables) TableGet(_ int32, _ int, _ int32, key []byte) ([]byte, error) {
	if t.prefetched != nil {
		return t.prefetched[string(key)], nil
	}
	return t.store.Get(key)
}

func (*storeTables) TableScan(int32, int, int32, []byte, []byte, func(key, value []byte) bool) error {
	return nil
}

func (*storeTables) TableInfo(int) (int32, []int32, int64, error) { return 1, []int32{0}, 0, nil }

// BenchmarkTableReads is t[k] += 1 for each of 1,000 records with different keys, of 100,000 in a store (RocksDB, all in its block
// cache), by where the value comes from: what the guest remembers from the call before; a Get for each key; one MultiGet before
// the call, by a host that knows every key already. Changes are not applied, so that all read the same.
func BenchmarkTableReads(b *testing.B) {
	const keys, records = 100_000, 1000
	d, err := state.OpenDir(state.Options{Dir: b.TempDir(), MemoryLimit: 192 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = d.Close() })
	tables := &storeTables{}
	if tables.store, err = d.Open("t", 0); err != nil {
		b.Fatal(err)
	}
	key := func(n int) []byte { return fmt.Appendf(nil, `"user-%d"`, n) }
	for n := 0; n < keys; n += records {
		changes := make([]state.Change, records)
		for i := range changes {
			changes[i] = state.Change{Key: key(n + i), Value: []byte("41")}
		}
		if err := tables.store.Apply(changes, int64(n+records)); err != nil {
			b.Fatal(err)
		}
	}
	if err := tables.store.Flush(); err != nil {
		b.Fatal(err)
	}

	runtime, err := wasmhost.New(b.Context(), wasmhost.Config{Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: compiled(b)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = runtime.Close() })
	code := func(python string) *abi.Code {
		return &abi.Code{Python: python, File: "bench.yaml", Line: 1, Where: "bench"}
	}
	snapshot, err := runtime.Load(b.Context(), &abi.Program{
		Kind: "KasprAgent", Name: "bench", App: abi.AppInfo{Name: "app", ID: "app", Conf: map[string]any{}}, Env: map[string]string{},
		Input:  abi.Input{KeySerializer: "raw", ValueSerializer: "json"},
		Tables: []abi.Table{{Name: "t", KeySerializer: "json", ValueSerializer: "json", Default: code("def zero(): return int")}},
		Ops: []abi.Operation{{
			Name: "count", Map: code("def count(value, t):\n    t[value['user']] += 1\n    return value['id']\n"),
			Tables: []abi.TableRef{{Name: "t", ParamName: "t"}},
		}},
		Outputs: []abi.Output{{Topic: "out", KeySerializer: "raw", ValueSerializer: "json"}},
	}, wasmhost.Options{Tables: tables})
	if err != nil {
		b.Fatal(err)
	}
	component := wasmhost.NewComponent(snapshot, 1)
	b.Cleanup(func() { _ = component.Close() })

	var batches [16]record.Batch
	var sets [len(batches)][][]byte
	for i := range batches {
		for k, n := range rand.New(rand.NewPCG(1, uint64(i))).Perm(keys)[:records] {
			sets[i] = append(sets[i], key(n))
			batches[i].Records = append(batches[i].Records, record.Record{
				Topic: "in", Offset: int64(k), Timestamp: 1, Attempt: 1, Value: fmt.Appendf(nil, `{"id": %d, "user": "user-%d"}`, k, n),
			})
		}
	}
	for _, from := range []string{"guest", "Get", "MultiGet"} {
		b.Run(from, func(b *testing.B) {
			call := func(i int, valid uint32) {
				i %= len(batches)
				tables.prefetched = nil
				if from == "MultiGet" {
					values, err := tables.store.MultiGet(sets[i])
					if err != nil {
						b.Fatal(err)
					}
					tables.prefetched = make(map[string][]byte, records)
					for k, v := range values {
						tables.prefetched[string(sets[i][k])] = v
					}
				}
				batches[i].CacheValid = valid
				res, err := component.Call(b.Context(), 0, &batches[i])
				if err != nil || len(res.Changes) != records {
					b.Fatal(res.Failures, err)
				}
			}
			valid := uint32(0)
			if from == "guest" {
				valid = 1
				for i := range batches {
					call(i, min(uint32(i), 1)) // nothing is left of the case before
				}
			}
			cpu, reads := cpuTime(), tables.store.Metrics().ReadKeys
			for i := 0; b.Loop(); i++ {
				call(i, valid)
			}
			n := float64(b.N * records)
			b.ReportMetric(float64(cpuTime()-cpu)/n, "cpu-ns/record")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/record")
			b.ReportMetric(float64(tables.store.Metrics().ReadKeys-reads)/n, "reads/record")
		})
	}
}

// cpuTime is what the process has used, in nanoseconds: elapsed time says little on a busy machine.
func cpuTime() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
