package broker

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/record"
)

// requests counts the requests of a kind that a broker gets from now on.
func (c *cluster) requests(kind kmsg.Key) *atomic.Int64 {
	var n atomic.Int64
	c.fake.ControlKey(int16(kind), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		n.Add(1)
		return nil, nil, false
	})
	return &n
}

// Without it a pace of some thousand records a second costs the broker some thousand requests: more than the app itself.
func TestGatherMakesFewRequestsOfATrickle(t *testing.T) {
	const gather, records = 50 * time.Millisecond, 400
	c := newCluster(t, 1)
	c.opts.Gather, c.opts.Group = gather, "app"
	member, err := Join(c.opts, []string{"log"}, &idle{})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close(t.Context())
	member.Start()
	producer, err := NewProducer(c.opts, "")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	// The first record takes as long as joining the group does.
	if _, _, err := producer.SendSync(c.ctx, record.Output{Topic: "log", Value: []byte("first")}); err != nil {
		t.Fatal(err)
	}
	got := 0
	poll := func() {
		if err := member.Poll(c.ctx, 10_000, func(f Fetched) { got += len(f.Records) }); err != nil {
			t.Fatal(err)
		}
	}
	for got == 0 && c.ctx.Err() == nil {
		poll()
	}
	fetches, produces := c.requests(kmsg.Fetch), c.requests(kmsg.Produce)
	began := time.Now()
	var sending sync.WaitGroup // a record is read before its sender is told, who would be closed then
	sending.Add(records)
	defer sending.Wait()
	go func() {
		for range records {
			producer.Send(c.ctx, []record.Output{{Topic: "log", Value: []byte("x")}}, func(failed []SendFailure) {
				defer sending.Done()
				for _, f := range failed {
					t.Error(f.Err)
				}
			})
			time.Sleep(time.Millisecond)
		}
	}()
	for got < 1+records && c.ctx.Err() == nil {
		poll()
	}
	if got != 1+records {
		t.Fatalf("%d records, want %d", got, 1+records)
	}
	most := int64(time.Since(began)/gather) + 3
	if fetches.Load() > most || produces.Load() > most {
		t.Errorf("%d fetches and %d sends in %s", fetches.Load(), produces.Load(), time.Since(began))
	}
}

// topicSend with ack waits for nobody: a record's code stands still meanwhile.
func TestSendSyncDoesNotGather(t *testing.T) {
	c := newCluster(t, 1)
	c.opts.Gather = time.Minute // as long as the client takes it
	producer, err := NewProducer(c.opts, "")
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
	defer cancel()
	var done atomic.Bool
	producer.Send(ctx, []record.Output{{Topic: "log", Value: []byte("before")}}, func([]SendFailure) { done.Store(true) })
	d, _, err := producer.SendSync(ctx, record.Output{Topic: "log", Value: []byte("now")})
	if err != nil || d.Offset != 1 {
		t.Errorf("offset %d, %v", d.Offset, err)
	}
	if !done.Load() {
		t.Error("it overtook what was sent before")
	}
}

// A poll that waits for more ends with its context: a stop, or a paused partition that is to be fetched again.
func TestGatheringEndsWithItsContext(t *testing.T) {
	m := &Member{again: time.Now().Add(time.Hour), opts: Options{Gather: time.Hour, Log: slog.New(slog.DiscardHandler)}}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := m.Poll(ctx, 1, nil); err != nil {
		t.Error(err)
	}
}

// idle is a handler with nothing to do.
type idle struct{}

func (*idle) Assigned([]record.Partition)                 {}
func (*idle) Revoked(context.Context, []record.Partition) {}
func (*idle) Lost([]record.Partition)                     {}
