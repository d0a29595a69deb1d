package wasmhost_test

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// The program of the benchmarks: what an ordinary agent does to a record.
const benchOperation = `def enrich(value):
    if value["amount"] < 0:
        return None
    return {"id": value["id"], "user": value["user"], "total": value["amount"] * 2, "note": value["note"]}
`

func benchBatch(records, bytes int) *record.Batch {
	b := &record.Batch{Concurrency: 64} // as agents have it by default
	for i := range records {
		value := fmt.Sprintf(`{"id": %d, "user": "user-%d", "amount": %d.5, "tags": ["a", "b"], "note": "`, i, i%100, i)
		value += strings.Repeat("x", max(bytes-len(value)-2, 0)) + `"}`
		b.Records = append(b.Records, record.Record{Topic: "in", Offset: int64(i), Key: []byte(fmt.Sprint("user-", i)), Value: []byte(value), Attempt: 1})
	}
	return b
}

func benchSnapshot(b *testing.B, operation string, o wasmhost.Options) *wasmhost.Snapshot {
	b.Helper()
	o.Host = discard{&host{}}
	s, err := pythonRuntime(b).Load(context.Background(), agent("import json, math, re, datetime", operation), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func benchInstance(b *testing.B, s *wasmhost.Snapshot) *wasmhost.Instance {
	b.Helper()
	in, err := s.NewInstance(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close() })
	return in
}

// BenchmarkRestore is the time to a ready instance, with and without its first call, and to free it.
func BenchmarkRestore(b *testing.B) {
	s := benchSnapshot(b, benchOperation, wasmhost.Options{})
	for _, calls := range []int{0, 1} {
		b.Run(fmt.Sprintf("calls=%d", calls), func(b *testing.B) {
			batch := benchBatch(1, 200)
			b.ReportAllocs()
			usage := startUsage()
			restores, nanos := s.Stats().Restores.Load(), s.Stats().RestoreNanos.Load()
			for b.Loop() {
				in, err := s.NewInstance(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				for range calls {
					if _, err := in.Call(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
				}
				if err := in.Close(); err != nil {
					b.Fatal(err)
				}
			}
			usage.report(b)
			b.ReportMetric(float64(s.Stats().RestoreNanos.Load()-nanos)/float64(s.Stats().Restores.Load()-restores), "ready-ns/op")
		})
	}
}

// BenchmarkReset is a restore of an instance that ended, or did nothing wrong, over the module it has.
func BenchmarkReset(b *testing.B) {
	s := benchSnapshot(b, benchOperation, wasmhost.Options{})
	in := benchInstance(b, s)
	batch := benchBatch(100, 200)
	var nanos int64
	for b.Loop() {
		if _, err := in.Call(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
		before := s.Stats().RestoreNanos.Load()
		if !wasmhost.Reset(b.Context(), s, in) {
			b.Fatal("not reset")
		}
		nanos += s.Stats().RestoreNanos.Load() - before
	}
	b.ReportMetric(float64(nanos)/float64(b.N), "ready-ns/op")
}

// BenchmarkCall is one call of a batch: JSON in, one map operation, JSON out.
func BenchmarkCall(b *testing.B) {
	in := benchInstance(b, benchSnapshot(b, benchOperation, wasmhost.Options{}))
	for _, records := range []int{0, 1, 64, 1000} {
		for _, bytes := range []int{200, 2000} {
			if records == 0 && bytes > 200 {
				continue
			}
			b.Run(fmt.Sprintf("records=%d/bytes=%d", records, bytes), func(b *testing.B) {
				batch := benchBatch(records, bytes)
				b.SetBytes(int64(records * bytes))
				b.ReportAllocs()
				for b.Loop() {
					res, err := in.Call(b.Context(), batch)
					if err != nil || len(res.Outputs) != records {
						b.Fatal(show(res), err)
					}
				}
				if records > 0 {
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
				}
			})
		}
	}
}

// memoryTables is a host's side of tables: one map, whatever the table and partition.
type memoryTables map[string][]byte

func (m memoryTables) TableGet(_ int32, _ int, _ int32, key []byte) ([]byte, error) {
	return m[string(key)], nil
}

func (memoryTables) TableScan(int32, int, int32, []byte, []byte, func(key, value []byte) bool) error {
	return nil
}

func (memoryTables) TableInfo(int) (int32, []int32, int64, error) { return 8, []int32{0}, 0, nil }

func tableProgram(operation string, table abi.Table) *abi.Program {
	p := agent("", operation)
	table.Name, table.KeySerializer, table.ValueSerializer = "t", "json", "json"
	table.Default = &abi.Code{Python: "def start(): return int", File: "tables.yaml", Line: 1, Where: `table "t", defaultSelector`}
	p.Tables = []abi.Table{table}
	p.Ops[0].Tables = []abi.TableRef{{Name: "t", ParamName: "t"}}
	return p
}

// BenchmarkTable is what tables add to a batch of 1,000 records: a counter for each of 1,000 keys, which the guest remembers from the
// call before (cached) or asks the host for (uncached); without a table, and with a window, for comparison.
func BenchmarkTable(b *testing.B) {
	const records = 1000
	count := `def enrich(value, t):
    t[value["user"]] += 1
    return value["id"]
`
	for _, test := range []struct {
		name    string
		program *abi.Program
		valid   uint32
	}{
		{"none", agent("", "def enrich(value):\n    value['user']\n    return value['id']\n"), 0},
		{"cached", tableProgram(count, abi.Table{}), 1},
		{"uncached", tableProgram(count, abi.Table{}), 0},
		{"window", tableProgram(count, abi.Table{Window: &abi.Window{Size: 60_000, Step: 60_000, RelativeTo: "stream"}}), 1},
	} {
		b.Run(test.name, func(b *testing.B) {
			tables := memoryTables{}
			c := load(b, test.program, wasmhost.Options{Tables: tables})
			batch := &record.Batch{Concurrency: 64}
			for i := range records {
				value := fmt.Sprintf(`{"id": %d, "user": "user-%d"}`, i, i)
				batch.Records = append(batch.Records, record.Record{Topic: "in", Offset: int64(i), Timestamp: 1, Value: []byte(value), Attempt: 1})
			}
			call := func() {
				res, err := c.Call(b.Context(), 0, batch)
				if err != nil || len(res.Outputs) != records || len(res.Changes) != records*len(test.program.Tables) {
					b.Fatal(res.Failures, err)
				}
				for _, change := range res.Changes {
					tables[string(change.Key)] = change.Value
				}
			}
			call()
			batch.CacheValid = test.valid
			usage := startUsage()
			for b.Loop() {
				call()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
			b.ReportMetric(usage.cpu()/float64(b.N*records), "cpu-ns/record")
		})
	}
}

// BenchmarkRequest is a call of a web view that answers requests with what a table has under a parameter of the path, one of 10,000 keys.
func BenchmarkRequest(b *testing.B) {
	p := tableProgram("def get(request, t, key): return t.get(key)\n", abi.Table{})
	p.Kind, p.Outputs = "KasprWebView", []abi.Output{}
	p.View = &abi.View{Params: []string{"key"}, ContentType: "application/json"}
	tables, keys := memoryTables{}, make([][]byte, 10_000)
	for i := range keys {
		keys[i] = fmt.Append(nil, "user-", i)
		tables[fmt.Sprintf("%q", keys[i])] = fmt.Appendf(nil, `{"name":"User %d","visits":%d,"tags":["a","b"]}`, i, i)
	}
	c := load(b, p, wasmhost.Options{Tables: tables})
	head := []byte("GET\nhttp\n127.0.0.1\n/users/user-1\n\n1\nHost:bench\nAccept:application/json\nUser-Agent:bench\n")
	for _, requests := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("requests=%d", requests), func(b *testing.B) {
			batch := &record.Batch{}
			for range requests {
				batch.Records = append(batch.Records, record.Record{
					Partition: record.RecordPartition, Timestamp: 1, Attempt: 1, Key: head, Headers: make([]record.Header, 1),
				})
			}
			next := 0
			b.ReportAllocs()
			usage := startUsage()
			for b.Loop() {
				for i := range batch.Records {
					next = (next + 7919) % len(keys) // in no order
					batch.Records[i].Headers[0].Value = keys[next]
				}
				res, err := c.Call(b.Context(), 0, batch)
				if err != nil || len(res.Outputs) != requests || len(res.Failures) > 0 {
					b.Fatal(show(res), err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*requests), "ns/request")
			b.ReportMetric(usage.cpu()/float64(b.N*requests), "cpu-ns/request")
		})
	}
}

// BenchmarkTableAccess is one access in a Python loop, and the loop without it.
func BenchmarkTableAccess(b *testing.B) {
	const accesses = 1000
	for name, body := range map[string]string{
		"loop":       "n",
		"increment":  "t['key'] += 1",
		"get":        "t.get('key')",
		"get-host":   "t.get(n)",
		"set":        "t['key'] = n",
		"dict-copy":  "d['key'] = loads(dumps(d['key'])) + 1",
		"contains":   "'key' in t",
		"other-part": "t.get_for_partition('key', 1)",
	} {
		b.Run(name, func(b *testing.B) {
			program := tableProgram(fmt.Sprintf("from json import dumps, loads\nd = {'key': 1}\ndef enrich(value, t):\n    for n in range(%d):\n        %s\n", accesses, body), abi.Table{})
			c := load(b, program, wasmhost.Options{Tables: memoryTables{}})
			batch := values("1")
			usage := startUsage()
			for b.Loop() {
				if res, err := c.Call(b.Context(), 0, batch); err != nil || len(res.Failures) > 0 {
					b.Fatal(res.Failures, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*accesses), "ns/access")
			b.ReportMetric(usage.cpu()/float64(b.N*accesses), "cpu-ns/access")
		})
	}
}

// BenchmarkPrint is a log line from Python to the host.
func BenchmarkPrint(b *testing.B) {
	const calls = 1000
	in := benchInstance(b, benchSnapshot(b, fmt.Sprintf("def enrich(value):\n    for i in range(%d):\n        print('x')\n    return 1\n", calls), wasmhost.Options{}))
	batch := benchBatch(1, 100)
	for b.Loop() {
		if res, err := in.Call(b.Context(), batch); err != nil || len(res.Failures) > 0 {
			b.Fatal(res.Failures, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*calls), "ns/print")
}

type discard struct{ *host }

func (discard) Log(int, string) {}

// BenchmarkInstanceMemory is what each further instance costs in memory after 1,000 calls: of the whole process, with what
// Go holds for it (PSS: pages shared with the image are divided among those who share them), and of that what the
// guest has written.
func BenchmarkInstanceMemory(b *testing.B) {
	s := benchSnapshot(b, benchOperation, wasmhost.Options{})
	batch := benchBatch(64, 200)
	use := func() {
		in := benchInstance(b, s)
		for range 1000 {
			if _, err := in.Call(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
		}
	}
	use()
	const instances = 8
	for b.Loop() {
		pss, written := processMemory(b)
		for range instances {
			use()
		}
		pssAfter, writtenAfter := processMemory(b)
		b.ReportMetric(float64(pssAfter-pss)/instances, "KiB-PSS/instance")
		b.ReportMetric(float64(writtenAfter-written)/instances, "KiB-written/instance")
	}
}

// processMemory is the process' PSS and the anonymous memory over images, in KiB.
func processMemory(b *testing.B) (pss, written int) {
	b.Helper()
	debug.FreeOSMemory()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		b.Fatal(err)
	}
	image := false
	for line := range strings.Lines(string(smaps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			image = strings.Contains(line, "kaspr-image")
		}
		var kib int
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
			pss += kib
		}
		if n, _ := fmt.Sscanf(line, "Anonymous: %d kB", &kib); n == 1 && image {
			written += kib
		}
	}
	return pss, written
}

// usage tells what the process used, where other load on the machine makes elapsed time a poor measure.
type usage syscall.Rusage

func startUsage() usage {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return usage(u)
}

func (u usage) report(b *testing.B) {
	b.ReportMetric(u.cpu()/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(startUsage().Minflt-u.Minflt)/float64(b.N), "faults/op")
}

// cpu is the processor time used since, in nanoseconds.
func (u usage) cpu() float64 {
	now := startUsage()
	return float64(now.Utime.Nano() + now.Stime.Nano() - u.Utime.Nano() - u.Stime.Nano())
}
