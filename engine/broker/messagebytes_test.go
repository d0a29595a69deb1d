package broker

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"kaspr.io/kaspr/engine/record"
)

// What a topic takes must be known before it refuses; and messages that it takes one by one must not be sent as one batch that it does not.
func TestMessageBytes(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	o := Options{Brokers: fake.ListenAddrs(), Log: slog.New(slog.DiscardHandler), Gather: 20 * time.Millisecond}
	admin, err := NewAdmin(o)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, config := range map[string]map[string]string{"small": {"max.message.bytes": "10000"}, "usual": nil} {
		if _, err := admin.Ensure(ctx, Topic{Name: name, Partitions: 1, Replicas: 1, Config: config}); err != nil {
			t.Fatal(err)
		}
	}
	if o.BatchBytes, err = admin.MessageBytes(ctx, "small", "usual"); err != nil || o.BatchBytes["small"] != 10000 || o.BatchBytes["usual"] != 1<<20+12 {
		t.Fatalf("%v, %v", o.BatchBytes, err)
	}
	p, err := NewProducer(o, "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	random := rand.NewChaCha8([32]byte{})
	outs := make([]record.Output, 50) // 200 kB that no compression makes smaller
	for i := range outs {
		value := make([]byte, 4000)
		_, _ = random.Read(value)
		outs[i] = record.Output{Topic: "small", Value: value}
	}
	done := make(chan []SendFailure, 1)
	p.Send(ctx, outs, func(refused []SendFailure) { done <- refused })
	if refused := <-done; len(refused) > 0 {
		t.Errorf("%d of %d messages refused: %v", len(refused), len(outs), refused[0].Err)
	}
	if _, _, err := p.SendSync(ctx, record.Output{Topic: "small", Value: bytes.Repeat([]byte("x"), 11000)}); !(SendFailure{Err: err}).TooLarge() {
		t.Errorf("a message that is too large: %v", err)
	}
	if missing, err := admin.MessageBytes(ctx, "missing"); err == nil || len(missing) != 0 {
		t.Errorf("of a topic that does not exist: %v, %v", missing, err)
	}
}
