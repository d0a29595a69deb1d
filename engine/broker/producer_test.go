package broker

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
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
	if err := p.Commit(ctx); err != nil {
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

type noMember struct{}

func (noMember) Generation() (string, int32) { return "", -1 }

// Positions become part of a transaction before its outputs are acknowledged. When it is aborted they must not turn up in the next one: not
// when the broker took none of its outputs, and the client so thinks that there is nothing to abort, and not when they arrive late.
func TestAbortedOffsets(t *testing.T) {
	first, second := record.Partition{Topic: "in", Number: 0}, record.Partition{Topic: "in", Number: 1}
	for name, late := range map[string]bool{"no output was taken": false, "the offsets arrive late": true} {
		t.Run(name, func(t *testing.T) {
			fake, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.SeedTopics(2, "in", "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer fake.Close()
			group := "group"
			for fake.CoordinatorFor(group) == fake.CoordinatorFor("id") { // one broker has the requests of a connection in their order
				group += "+"
			}
			p, err := NewProducer(Options{Brokers: fake.ListenAddrs(), Group: group, TransactionTimeout: time.Minute, Log: slog.New(slog.DiscardHandler)}, "id")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := p.Init(ctx); err != nil {
				t.Fatal(err)
			}
			send := func(size int) (refused []SendFailure) {
				done := make(chan []SendFailure)
				go p.Send(ctx, []record.Output{{Topic: "out", Value: make([]byte, size)}}, func(f []SendFailure) { done <- f })
				return <-done
			}
			if err := p.Begin(); err != nil {
				t.Fatal(err)
			}
			prepare, size, arrived := ctx, 2<<20, make(chan struct{})
			if late {
				size = 10
				var delayed atomic.Bool
				fake.ControlKey(int16(kmsg.TxnOffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
					if delayed.CompareAndSwap(false, true) {
						fake.SleepControl(func() { time.Sleep(time.Second) })
						time.AfterFunc(100*time.Millisecond, func() { close(arrived) })
					}
					return nil, nil, false
				})
				prepare, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			} else {
				close(arrived)
			}
			if refused := send(size); (len(refused) > 0) == late {
				t.Fatalf("refused: %v", refused)
			}
			err = p.Prepare(prepare, noMember{}, map[record.Partition]Position{first: {Offset: 5}})
			if (err != nil) != late {
				t.Fatalf("prepare: %v", err)
			}
			if err := p.Abort(ctx); err != nil {
				t.Fatal(err)
			}
			if err := p.Begin(); err != nil {
				t.Fatal(err)
			}
			if refused := send(10); len(refused) > 0 {
				t.Fatal(refused[0].Err)
			}
			if err := p.Prepare(ctx, noMember{}, map[record.Partition]Position{second: {Offset: 7}}); err != nil {
				t.Fatal(err)
			}
			<-arrived
			if err := p.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			stored, err := kadm.NewClient(p.cl).FetchOffsets(ctx, group)
			if err != nil {
				t.Fatal(err)
			}
			if o, ok := stored.Lookup("in", 0); ok {
				t.Errorf("the aborted transaction's position %d is stored", o.At)
			}
			if o, _ := stored.Lookup("in", 1); o.At != 7 {
				t.Errorf("stored %d, want 7", o.At)
			}
		})
	}
}
