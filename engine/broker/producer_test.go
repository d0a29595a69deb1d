package broker

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// Outputs that are acknowledged while their transaction is aborted must not be shown with those of the next one.
func TestProducerTellsOfCommittedOnly(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	sending := make(chan struct{}, 10)
	fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		fake.KeepControl()
		sending <- struct{}{}
		fake.SleepControl(func() { time.Sleep(50 * time.Millisecond) })
		return nil, nil, false
	})
	var told []string
	p, err := NewProducer(Options{Brokers: fake.ListenAddrs(), TransactionTimeout: time.Minute, Log: slog.New(slog.DiscardHandler), Delivered: func(d Delivered) {
		told = append(told, string(d.Value))
	}}, "id")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	begin := func(value string) {
		t.Helper()
		if err := p.Begin(); err != nil {
			t.Fatal(err)
		}
		p.Send(ctx, []record.Output{{Topic: "out", Value: []byte(value)}}, func([]SendFailure) {})
		<-sending // it is with the broker
	}
	if err := p.Init(ctx); err != nil {
		t.Fatal(err)
	}
	begin("aborted")
	if err := p.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	begin("lost")
	if err := p.Reopen(ctx); err != nil {
		t.Fatal(err)
	}
	begin("committed")
	if err := p.cl.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.CommitAlone(ctx); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []string{"committed"}) {
		t.Fatalf("told of %v", told)
	}
}

// A table write or a message for later of nearly 1 MiB, which is let in, must also be let out: a changelog that does not take it ends the app, at
// every start.
func TestProducerLargeMessage(t *testing.T) {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	p, err := NewProducer(Options{Brokers: fake.ListenAddrs(), Log: slog.New(slog.DiscardHandler)}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	send := func(size int) error {
		_, _, err := p.SendSync(ctx, record.Output{Topic: "out", Value: make([]byte, size)})
		return err
	}
	if err := send(1<<20 - 200); err != nil { // abi.ChangeBytesMax, and what a row of the scheduler may be, are less
		t.Error(err)
	}
	if err := send(1<<20 + 100); !(SendFailure{Err: err}).TooLarge() {
		t.Errorf("beyond what brokers take by default: %v", err)
	}
}
