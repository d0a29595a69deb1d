package bench

import (
	"strings"
	"testing"

	"kaspr.io/kaspr/bench/workload"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
)

// BenchmarkStage is one call of 1,000 records of W1 with one stage more each time, so that differences are what a stage costs:
// the call alone (bytes into the guest, one Python function called for each, nothing out), with JSON decoded, with W1's
// operations, and with its outputs encoded and read back.
func BenchmarkStage(b *testing.B) {
	const records = 1000
	drop := "      - name: drop\n        filter: {python: \"def drop(v): return False\"}\n"
	operations := "    operations:\n"
	for _, test := range []struct {
		name, pipeline string
		raw, outputs   bool
	}{
		{"call", "[drop]", true, false}, {"decode", "[drop]", false, false}, {"operations", "[keep, enrich, drop]", false, false}, {"encode", "[keep, enrich]", false, true},
	} {
		b.Run(test.name, func(b *testing.B) {
			text := strings.Replace(strings.Replace(workload.W1, operations, operations+drop, 1), "[keep, enrich]", test.pipeline, 1)
			if test.raw {
				text = strings.Replace(text, "{name: in}", "{name: in, keySerializer: raw, valueSerializer: raw}", 1)
			}
			cfg, p := planned(b, text, nil)
			snapshot, err := sandbox(b, cfg).Load(b.Context(), &p.Agents[0].Program, wasmhost.Options{MemoryMax: cfg.Sandbox.MemoryMax, Deadline: cfg.Sandbox.Deadline})
			if err != nil {
				b.Fatal(err)
			}
			c := wasmhost.NewComponent(snapshot, 1)
			b.Cleanup(func() { _ = c.Close() })
			batch, kept := record.Batch{}, 0
			workload.Events(records, func(e workload.Event) {
				batch.Records = append(batch.Records, record.Record{Topic: "in", Offset: int64(len(batch.Records)), Timestamp: 1, Key: []byte(e.User), Value: e.Value, Attempt: 1})
				if !e.Heartbeat && test.outputs {
					kept++
				}
			})
			b.ReportAllocs()
			cpu := cpuTime()
			for b.Loop() {
				res, err := c.Call(b.Context(), 0, &batch)
				if err != nil || len(res.Failures) > 0 || len(res.Outputs) != kept {
					b.Fatal(len(res.Outputs), res.Failures, err)
				}
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N*records), "cpu-ns/record")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
		})
	}
}
