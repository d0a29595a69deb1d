package bench

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/wasmhost"
)

// w1 drops one record in ten, adds a field to the others and sends them on, keyed.
const w1 = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: w1, labels: {kaspr.io/app: bench}}
spec:
  input: {topic: {name: in}}
  processors:
    pipeline: [keep, enrich]
    operations:
      - name: keep
        filter: {python: "def keep(v): return v['event'] != 'heartbeat'"}
      - name: enrich
        map: {python: "def enrich(v): return {**v, 'big': v['amount'] > 500}"}
  output:
    topics:
      - name: out
        keySelector: {python: "def key(v): return v['user_id']"}
`

// w2 counts the records of each user in a table and sends each count on.
const w2 = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: counts, labels: {kaspr.io/app: bench}}
spec: {name: counts, defaultSelector: {python: "def zero(): return int"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: w2, labels: {kaspr.io/app: bench}}
spec:
  input: {topic: {name: in}}
  processors:
    pipeline: [count]
    operations:
      - name: count
        tables: [{name: counts, paramName: counts}]
        map:
          python: |
            def count(v, counts):
                user = v["user_id"]
                counts[user] += 1
                return {"user_id": user, "count": counts[user]}
  output:
    topics:
      - name: out
        keySelector: {python: "def key(v): return v['user_id']"}
`

var kinds = [...]string{"click", "view", "login", "search", "purchase", "logout", "scroll", "share", "signup", "heartbeat"}

// event is the i-th record: about 205 bytes of JSON, 100,000 users.
func event(g *rand.Rand, i int) (key, value []byte) {
	user := fmt.Sprintf("u%d", g.IntN(100_000))
	return []byte(user), fmt.Appendf(nil, `{"user_id":"%s","event":"%s","ts":%d,"amount":%.2f,"tags":["alpha","beta%d"],`+
		`"page":{"url":"/products/%d/details","ref":"https://ref.example/%d"},"session":"s%012d","seq":%d}`,
		user, kinds[g.IntN(len(kinds))], 1_700_000_000+i/100, float64(g.IntN(100_000))/100, g.IntN(9), g.IntN(10_000),
		g.IntN(1_000), g.IntN(1<<40), i)
}

// BenchmarkApp runs whole apps on a backlog of 200,000 records in 4 partitions of the embedded broker, from the start of
// the group to the last committed offset. The broker shares the processors.
func BenchmarkApp(b *testing.B) {
	for _, w := range []struct{ name, manifest string }{{"w1", w1}, {"w2", w2}} {
		b.Run(w.name, func(b *testing.B) { benchmarkApp(b, w.manifest, 200_000) })
	}
}

func benchmarkApp(b *testing.B, text string, n int) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	set, problems := manifest.Load([]string{dir})
	layers := config.Read(config.Sources{Offline: true, Flags: map[string]string{"topicPartitions": "4"}})
	app, _ := set.ChooseApp("")
	cfg, _ := layers.Config(app)
	cfg = dev.Adapt(cfg)
	p, more := plan.New(set, cfg)
	if problems = append(problems, more...); problems.Fatal() {
		b.Fatal(problems)
	}
	rt, err := wasmhost.New(b.Context(), wasmhost.Config{
		Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: compiled(b),
		Gate: wasmhost.NewGate(engine.Turns(cfg)),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer rt.Close()
	var took time.Duration
	for b.Loop() {
		b.StopTimer()
		broker, err := dev.NewBroker(4)
		if err != nil {
			b.Fatal(err)
		}
		produce(b, broker, n)
		var out bytes.Buffer
		b.StartTimer()
		began := time.Now()
		if err := dev.Run(b.Context(), broker, cfg, p, rt, dev.Options{Drain: true, Stdin: bytes.NewReader(nil), Stdout: &out, Log: log}); err != nil {
			b.Fatal(err)
		}
		took += time.Since(began)
		b.StopTimer()
		if lines := bytes.Count(out.Bytes(), []byte("\n")); lines < n*8/10 || lines > n {
			b.Fatalf("%d outputs of %d records", lines, n)
		}
		broker.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N)/float64(n), "ns/record")
	b.ReportMetric(float64(n)*float64(b.N)/took.Seconds(), "records/s")
}

func produce(b *testing.B, broker *dev.Broker, n int) {
	b.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.Addrs()...), kgo.AllowAutoTopicCreation(), kgo.MaxBufferedRecords(n),
		kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	g := rand.New(rand.NewPCG(42, 7))
	for i := range n {
		key, value := event(g, i)
		cl.Produce(context.Background(), &kgo.Record{Topic: "in", Key: key, Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
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
