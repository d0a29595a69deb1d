package bench

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/bench/workload"
	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/wasmhost"
)

// BenchmarkApp runs whole apps on a backlog of 200,000 records in 4 partitions of the embedded broker, from the start of
// the group to the last committed offset. The broker shares the processors.
func BenchmarkApp(b *testing.B) {
	for _, w := range []struct{ name, manifest string }{{"w1", workload.W1}, {"w2", workload.W2}} {
		b.Run(w.name, func(b *testing.B) { benchmarkApp(b, w.manifest, 200_000, 1, nil) })
	}
}

const acks = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: acks, labels: {kaspr.io/app: bench}}
spec:
  input: {topic: {name: in}}
  processors:
    pipeline: [send, answer]
    operations:
      - name: send
        topicSend: {name: acked, ack: true, passThrough: false}
      - name: answer
        map: {python: "def answer(metadata): return metadata['offset']"}
  output: {topics: [{name: out}]}
`

// BenchmarkAcks is an agent that sends each record on and waits for the broker's answer: one after the other, and many at once.
func BenchmarkAcks(b *testing.B) {
	for _, concurrency := range []string{"1", "64", "1000"} {
		b.Run("concurrency="+concurrency, func(b *testing.B) {
			benchmarkApp(b, acks, 10_000, 2, map[string]string{"batchConcurrencyMax": concurrency})
		})
	}
}

// benchmarkApp runs an app on a backlog of n records, of each of which about outputs messages come.
func benchmarkApp(b *testing.B, text string, n, outputs int, settings map[string]string) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	flags := map[string]string{"topicPartitions": "4"}
	maps.Copy(flags, settings)
	cfg, p := planned(b, text, flags)
	cfg = dev.Adapt(cfg)
	rt := sandbox(b, cfg)
	var took time.Duration
	for b.Loop() {
		b.StopTimer()
		broker, err := dev.NewBroker(4)
		if err != nil {
			b.Fatal(err)
		}
		produce(b, broker.Addrs(), n)
		var out bytes.Buffer
		b.StartTimer()
		began := time.Now()
		if err := dev.Run(b.Context(), broker, []dev.App{{Config: cfg, Plan: p}}, rt, dev.Options{Drain: true, Stdin: bytes.NewReader(nil), Stdout: &out, Log: log}); err != nil {
			b.Fatal(err)
		}
		took += time.Since(began)
		b.StopTimer()
		if lines := bytes.Count(out.Bytes(), []byte("\n")); lines < outputs*n*8/10 || lines > outputs*n {
			b.Fatalf("%d outputs of %d records", lines, n)
		}
		broker.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N)/float64(n), "ns/record")
	b.ReportMetric(float64(n)*float64(b.N)/took.Seconds(), "records/s")
}

// planned is the app of some manifests, with default settings but for flags.
func planned(b *testing.B, text string, flags map[string]string) (config.Config, *plan.Plan) {
	b.Helper()
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	set, problems := manifest.Load([]string{dir})
	layers := config.Read(config.Sources{Offline: true, Flags: flags})
	app, more := set.ChooseApp("")
	problems = append(problems, more...)
	cfg, more := layers.Config(app)
	problems = append(problems, more...)
	p, more := plan.New(set, cfg)
	if problems = append(problems, more...); problems.Fatal() {
		b.Fatal(problems)
	}
	return cfg, p
}

func sandbox(b *testing.B, cfg config.Config) *wasmhost.Runtime {
	b.Helper()
	rt, err := wasmhost.New(b.Context(), wasmhost.Config{
		Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: compiled(b),
		Gate: wasmhost.NewGate(engine.Turns(cfg)),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = rt.Close() })
	return rt
}

func produce(b *testing.B, brokers []string, n int) {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.AllowAutoTopicCreation(), kgo.MaxBufferedRecords(n),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	workload.Events(n, func(e workload.Event) {
		cl.Produce(context.Background(), &kgo.Record{Topic: "in", Key: []byte(e.User), Value: e.Value}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	})
	if err := cl.Flush(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// compiled is the folder of compiled modules, which all runs share.
func compiled(b *testing.B) string {
	b.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		b.Fatal(err)
	}
	cache = filepath.Join(cache, "kaspr", "compiled")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		b.Fatal(err)
	}
	return cache
}
