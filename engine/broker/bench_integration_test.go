//go:build integration

package broker

import (
	"fmt"
	"log/slog"
	"testing"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
	"kaspr.io/kaspr/engine/record"
)

// BenchmarkTransaction is a transaction of 1,000 outputs in 4 partitions, from the first send to the broker's word that readers may see it.
func BenchmarkTransaction(b *testing.B) {
	kafka := realkafka.New(b, realkafka.Options{Heap: "1g", Optimise: true})
	opts := Options{Brokers: []string{kafka.Addr()}, ClientID: "bench", Log: slog.New(slog.DiscardHandler)}
	admin, err := NewAdmin(opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(admin.Close)
	if _, err := admin.Ensure(b.Context(), Topic{Name: "out", Partitions: 4, Replicas: 1}); err != nil {
		b.Fatal(err)
	}
	p, err := NewProducer(opts, "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Close)
	if err := p.Init(b.Context()); err != nil {
		b.Fatal(err)
	}
	outs := make([]record.Output, 1000)
	for i := range outs {
		outs[i] = record.Output{Topic: "out", Partition: record.PartitionByKey, Key: fmt.Appendf(nil, "u%d", i), Value: make([]byte, 200)}
	}
	for b.Loop() {
		if err := p.Begin(); err != nil {
			b.Fatal(err)
		}
		acknowledged := make(chan []SendFailure)
		go p.Send(b.Context(), outs, func(failed []SendFailure) { acknowledged <- failed })
		if failed := <-acknowledged; len(failed) > 0 {
			b.Fatal(failed[0].Err)
		}
		if err := p.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
