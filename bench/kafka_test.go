//go:build integration

package bench

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/bench/workload"
	"kaspr.io/kaspr/engine"
	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// BenchmarkKafka runs whole apps on a backlog of 400,000 records in 4 partitions of a real Kafka, which shares the processors, from the
// first outputs that readers of committed records see to the last. For a profile of the engine:
//
//	go test -tags integration -run '^$' -bench Kafka/w1/exactly_once -benchtime 3x -cpuprofile cpu.out ./bench
func BenchmarkKafka(b *testing.B) {
	const n = 400_000
	kafka := realkafka.New(b, realkafka.Options{Heap: "1g", Optimise: true})
	brokers := []string{kafka.Addr()}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cl.Close)
	admin := kadm.NewClient(cl)
	create := func(topic string) {
		if _, err := admin.CreateTopics(b.Context(), 4, 1, nil, topic); err != nil {
			b.Fatal(err)
		}
	}
	create("in")
	produce(b, brokers, n)
	for _, w := range []struct{ name, manifest string }{{"w1", workload.W1}, {"w2", workload.W2}} {
		want := int64(workload.NewCheck(w.name, n).Want())
		for _, guarantee := range []string{"exactly_once", "at_least_once"} {
			run := 0
			b.Run(w.name+"/"+guarantee, func(b *testing.B) {
				var took time.Duration
				var done int64
				for range b.N {
					run++
					id := fmt.Sprintf("%s-%s-%d-%d", w.name, guarantee, b.N, run)
					create("out-" + id)
					d, outputs := runOnKafka(b, admin, brokers, id, strings.Replace(w.manifest, "name: out\n", "name: out-"+id+"\n", 1), guarantee, want)
					took, done = took+d, done+outputs*n/want
				}
				b.ReportMetric(float64(done)/took.Seconds(), "records/s")
				b.ReportMetric(float64(took.Nanoseconds())/float64(done), "ns/record")
			})
		}
	}
}

// runOnKafka is how long the engine took from the first outputs to the last, and how many outputs that were.
func runOnKafka(b *testing.B, admin *kadm.Client, brokers []string, id, text, guarantee string, want int64) (time.Duration, int64) {
	b.Helper()
	cfg, p := planned(b, text, map[string]string{
		"appName": id, "kafkaBootstrapServers": brokers[0], "tableDir": b.TempDir(), "processingGuarantee": guarantee, "topicReplicationFactor": "1",
	})
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	app, err := engine.New(ctx, cfg, p, sandbox(b, cfg), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), engine.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- app.Run(ctx) }()
	outputs := func() (n int64) {
		ends, err := admin.ListCommittedOffsets(ctx, "out-"+id)
		if err != nil {
			b.Fatal(err)
		}
		ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
		return n
	}
	var first int64
	var began, last time.Time
	for limit := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		n := outputs()
		last = time.Now()
		if first == 0 && n > 0 {
			first, began = n, last
		}
		if n >= want {
			break
		}
		select {
		case err := <-ended:
			b.Fatal("the app ended: ", err)
		default:
		}
		if last.After(limit) {
			b.Fatalf("%d of %d outputs within a minute", n, want)
		}
	}
	stop()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	return last.Sub(began), want - first
}
