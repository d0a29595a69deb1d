package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// A transaction that cannot be committed must leave nothing behind, and its records must be processed again.
func TestCommitFailureProcessesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &fakeCode{}
		b := testLane(t, code, plan.Agent{}, limits{}, true)
		f := b.open(in0)
		b.kafka.commit = func() error { return fmt.Errorf("%w: fenced", broker.ErrNotCommitted) }
		b.feed(f, records(0, 0, 25))
		stop := b.start()
		time.Sleep(time.Second)
		if got := b.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 25)) {
			t.Fatalf("outputs that count: %v", got)
		}
		if b.commits.stats.Rollbacks.Load() != 1 || b.kafka.stored(in0) != 25 {
			t.Fatalf("%d rollbacks, stored %d", b.commits.stats.Rollbacks.Load(), b.kafka.stored(in0))
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// When the answer to the end of a transaction is lost, the stored positions decide: repeating a committed one would
// duplicate its outputs, believing in an aborted one would lose them.
func TestCommitUnanswered(t *testing.T) {
	for _, happened := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			code := &fakeCode{}
			b := testLane(t, code, plan.Agent{}, limits{}, true)
			f := b.open(in0)
			b.kafka.commit, b.kafka.lost = func() error { return errors.New("connection reset") }, happened
			b.feed(f, records(0, 0, 25))
			stop := b.start()
			time.Sleep(time.Second)
			if got := b.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 25)) {
				t.Fatalf("committed %v: outputs %v", happened, got)
			}
			if again := len(code.calls) > 3; again == happened {
				t.Fatalf("committed %v, calls %s", happened, code.history())
			}
			_ = stop()
		})
	}
}

// An output the broker refuses for good must not stop the stream, nor take the batch's other records with it.
func TestCommitRefusedOutput(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeCode{}
		b := testLane(t, code, plan.Agent{OnError: plan.Policy{Attempts: 3, Action: plan.DeadLetter, DeadLetterTopic: "dlq"}}, limits{}, exactlyOnce)
		b.kafka.refuse = func(o *record.Output) error {
			if o.Topic == "out-0" && (string(o.Key) == "3" || string(o.Key) == "7") {
				return kerr.MessageTooLarge
			}
			if o.Topic == "dlq" && slices.ContainsFunc(o.Headers, func(h record.Header) bool { return h.Key == headerErrorTraceback }) {
				return kerr.MessageTooLarge
			}
			return nil
		}
		f := b.open(in0)
		rs := records(0, 0, 12)
		for i := range rs {
			rs[i].Key = fmt.Append(nil, "key", i)
		}
		b.feed(f, rs)
		stop := b.start()
		time.Sleep(3 * time.Second)
		want := slices.Concat(offsets(0, 3), offsets(4, 7), offsets(8, 12))
		if got := b.kafka.keys("out-0"); !slices.Equal(got, want) {
			t.Fatalf("outputs %v", got)
		}
		if got := b.kafka.keys("dlq"); !slices.Equal(got, []string{"key3", "key7"}) {
			t.Fatalf("dead letters %v, %v", got, b.failed)
		}
		if got := b.kafka.stored(in0); got != 12 {
			t.Fatalf("stored %d", got)
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// changingCode writes each record's offset into a table, too.
type changingCode struct{ fakeCode }

func (c *changingCode) Call(ctx context.Context, partition int, b *record.Batch) (record.Result, error) {
	res, err := c.fakeCode.Call(ctx, partition, b)
	for i := range b.Records {
		res.Changes = append(res.Changes, record.Change{Record: int32(i), Key: []byte("at"), Value: fmt.Append(nil, b.Records[i].Offset)})
	}
	return res, err
}

// Outputs would come late by as long as the stores take for the changes before them; and a store that refuses them then must not
// leave outputs of a transaction that is taken back.
func TestCommitStoresBehindTheNextTransaction(t *testing.T) {
	for _, refused := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := testLane(t, &changingCode{}, plan.Agent{Tables: []plan.TableUse{{Table: 0, Declared: true}}}, limits{}, true)
			b.app.plan.Tables = []plan.Table{{Name: "t", Label: "t"}}
			b.app.tables = newTables(nil, nil, "app", b.app.plan.Tables, b.app.log, func(int32) {})
			stores := mem.New()
			store, err := stores.Open("t", 0)
			if err != nil {
				t.Fatal(err)
			}
			f := b.assign(b.agent, in0)
			b.app.mu.Lock()
			b.app.feeds[in0] = []laneFeed{{b.lane, f}}
			b.app.mu.Unlock()
			b.position(f, 0)
			b.begin(f, func(table int, number int32) *share {
				return &share{table: table, label: "t", staged: state.NewStaged(store), seen: map[*agent]uint64{}}
			})
			writing, failed := 0, 0
			stores.Fault = func(op, _ string, _ int32) error {
				if op != "apply" {
					return nil
				}
				if writing++; writing > 1 {
					return nil
				}
				b.feed(f, records(0, 10, 20))
				time.Sleep(50 * time.Millisecond)
				b.kafka.mu.Lock()
				defer b.kafka.mu.Unlock()
				if n := len(b.kafka.open); n != 10 {
					t.Errorf("%d outputs are sent while the store is written, want 10", n)
				}
				if refused {
					failed++
					return errors.New("refused")
				}
				return nil
			}
			b.commits.shareFailed = func(*share, error) { f.dropped = true } // its partition stops here, until its table is restored
			b.feed(f, records(0, 0, 10))
			stop := b.start()
			time.Sleep(time.Second)
			want := offsets(0, 20)
			if refused {
				want = offsets(0, 10)
			}
			if got := b.kafka.keys("out-0"); !slices.Equal(got, want) {
				t.Errorf("refused %v: outputs %v", refused, got)
			}
			if n := b.commits.stats.Rollbacks.Load(); int(n) != failed {
				t.Errorf("%d rollbacks, want %d", n, failed)
			}
			if err := stop(); err != nil || b.failed != nil {
				t.Fatal(err, b.failed)
			}
		})
	}
}

// A record that sent something with ack and failed then must leave no message, and go to the policy without a second call.
func TestCommitTakesBackAcknowledgedSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &sendingCode{fail: 4}
		b := testLane(t, code, plan.Agent{}, limits{}, true)
		code.app = b.commits
		f := b.open(in0)
		b.feed(f, records(0, 0, 8))
		stop := b.start()
		time.Sleep(time.Second)
		want := slices.Concat(offsets(0, 4), offsets(5, 8))
		if got := b.kafka.keys("acked"); !slices.Equal(got, want) {
			t.Fatalf("messages sent with ack: %v", got)
		}
		if got := b.kafka.keys("out-0"); !slices.Equal(got, want) || b.kafka.stored(in0) != 8 {
			t.Fatalf("outputs %v, stored %d", got, b.kafka.stored(in0))
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// repeatingCode sends each record with ack, and says of its first concurrent calls that some were run again.
type repeatingCode struct {
	app      *committer
	repeat   int
	together []int // Concurrency of its calls
}

func (c *repeatingCode) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	c.together = append(c.together, b.Concurrency)
	res, err := (&sendingCode{app: c.app, fail: -1}).Call(ctx, slot, b)
	if c.repeat > 0 && b.Concurrency > 1 {
		c.repeat--
		again, _ := (&sendingCode{app: c.app, fail: -1}).Call(ctx, slot, b)
		again.Repeated = true
		return again, err
	}
	return res, err
}

// What records sent that were run again must not be there twice; and they run one after the other then, or it would never end.
func TestCommitTakesBackRepeatedSends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &repeatingCode{repeat: 1000}
		b := testLane(t, code, plan.Agent{}, limits{records: 4, bytes: 1 << 20, concurrency: 8}, true)
		code.app = b.commits
		f := b.open(in0)
		b.feed(f, records(0, 0, 8))
		stop := b.start()
		time.Sleep(5 * time.Second)
		if got := b.kafka.keys("acked"); !slices.Equal(got, offsets(0, 8)) {
			t.Fatalf("messages sent with ack: %v", got)
		}
		if got := b.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 8)) || b.kafka.stored(in0) != 8 {
			t.Fatalf("outputs %v, stored %d", got, b.kafka.stored(in0))
		}
		if code.repeat != 998 || len(code.together) > 6 { // once for each batch
			t.Errorf("records at once, by call: %v", code.together)
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// dyingCode sends each record with ack, and loses its instance in the middle of whatever is not a record in a new one.
type dyingCode struct{ app *committer }

func (c *dyingCode) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	send := &sendingCode{app: c.app, fail: -1}
	if b.Fresh {
		return send.Call(ctx, slot, b)
	}
	last := *b
	last.Records = b.Records[len(b.Records)-1:]
	if _, err := send.Call(ctx, slot, &last); err != nil {
		return record.Result{}, err
	}
	res, err := send.Call(ctx, slot, b)
	res.Repeated = true
	return res, err
}

// A record that has sent something and was run again, one after the other too, must not have sent it twice; and it must come to an end.
func TestCommitTakesBackSendsOfLostInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &dyingCode{}
		b := testLane(t, code, plan.Agent{}, limits{records: 4, bytes: 1 << 20}, true)
		code.app = b.commits
		f := b.open(in0)
		b.feed(f, records(0, 0, 8))
		stop := b.start()
		time.Sleep(5 * time.Second)
		if got := b.kafka.keys("acked"); !slices.Equal(got, offsets(0, 8)) {
			t.Errorf("messages sent with ack: %v", got)
		}
		if got := b.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 8)) || b.kafka.stored(in0) != 8 {
			t.Errorf("outputs %v, stored %d", got, b.kafka.stored(in0))
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// Without transactions nothing takes back what a record behind a failed one has sent: it must not run before that one is done.
func TestLaneConcurrency(t *testing.T) {
	for _, test := range []struct {
		exactlyOnce, retries bool
		want                 int
	}{{true, false, 8}, {true, true, 8}, {false, false, 8}, {false, true, 0}} {
		synctest.Test(t, func(t *testing.T) {
			code := &repeatingCode{}
			p := plan.Agent{OnError: plan.Policy{Attempts: 1, Action: plan.Skip}}
			if test.retries {
				p.OnError.Attempts = 3
			}
			b := testLane(t, code, p, limits{records: 4, bytes: 1 << 20, concurrency: 8}, test.exactlyOnce)
			code.app = b.commits
			b.feed(b.open(in0), records(0, 0, 4))
			stop := b.start()
			time.Sleep(time.Second)
			if err := stop(); err != nil || !slices.Equal(code.together, []int{test.want}) {
				t.Errorf("%+v: records at once, by call: %v, %v", test, code.together, err)
			}
		})
	}
}

// A record that fails because the transaction it sends in is rolled back on another's account is processed again, as if nothing had been.
func TestCommitFailureOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &sendingCode{fail: 4}
		b := testLane(t, code, plan.Agent{}, limits{}, true)
		code.app = b.commits
		code.before = func(calls int) {
			if calls == 1 {
				b.commits.epoch().poison(errTakenBack) // a step of another lane
			} else {
				code.fail = -1
			}
		}
		b.feed(b.open(in0), records(0, 0, 8))
		stop := b.start()
		time.Sleep(5 * time.Second)
		if got := b.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 8)) {
			t.Errorf("outputs %v", got)
		}
		if got := b.kafka.keys("acked"); !slices.Equal(got, offsets(0, 8)) {
			t.Errorf("sent %v", got)
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// A connection that breaks while a record sends is not the record's fault, a message the broker will not take is.
func TestCommitRefusedAcknowledgedSend(t *testing.T) {
	for _, test := range []struct {
		err  error
		want []string
	}{{errors.New("connection reset"), offsets(0, 8)}, {kerr.MessageTooLarge, slices.Concat(offsets(0, 4), offsets(5, 8))}} {
		synctest.Test(t, func(t *testing.T) {
			code := &sendingCode{fail: -1}
			b := testLane(t, code, plan.Agent{}, limits{}, true)
			code.app = b.commits
			code.before = func(int) { b.kafka.refuse = nil }
			b.kafka.refuse = func(o *record.Output) error {
				if o.Topic == "acked" && string(o.Key) == "4" {
					return test.err
				}
				return nil
			}
			b.feed(b.open(in0), records(0, 0, 8))
			stop := b.start()
			time.Sleep(5 * time.Second)
			for _, topic := range []string{"acked", "out-0"} {
				if got := b.kafka.keys(topic); !slices.Equal(got, test.want) {
					t.Errorf("%v: %s has %v", test.err, topic, got)
				}
			}
			if err := stop(); err != nil || b.failed != nil {
				t.Fatal(err, b.failed)
			}
		})
	}
}

// A step that sends must not get into a transaction that is being ended: it would have the message without the record's position, and
// if the record failed then, nothing would take it back nor read it again.
func TestCommitWaitsForPins(t *testing.T) {
	b := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, true)
	b.kafka.slow = 100 * time.Microsecond // steps wait for the transaction before
	f := b.open(in0)
	var steps sync.WaitGroup
	var under atomic.Int32
	for range 4 {
		under.Add(1)
		steps.Go(func() {
			defer under.Add(-1)
			for range 60 {
				w := work{lane: b.lane, feed: f}
				e, err := b.commits.pin(t.Context(), &w)
				if err != nil {
					t.Error(err)
					return
				}
				e.sentAll()
				e.finish(nil) // the broker has acknowledged it
				if b.commits.epoch() != e {
					t.Error("an epoch was cut while a step had sent in it")
				}
				b.commits.unpin(&w)
				time.Sleep(200 * time.Microsecond) // a commit needs a moment without pins
			}
		})
	}
	for under.Load() > 0 {
		b.lane.mu.Lock()
		f.applied++ // there is always something to commit
		b.lane.mu.Unlock()
		if err := b.commits.commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	steps.Wait()
}

// lose takes a partition away as App.Lost does.
func (b *bench) lose(p record.Partition, f *feed) {
	b.commits.drop(context.Background(), map[*lane][]*feed{b.lane: {f}})
	b.app.mu.Lock()
	delete(b.app.feeds, p)
	b.app.mu.Unlock()
	b.remove([]*feed{f})
	b.commits.forget([]record.Partition{p})
}

// sendingCode sends each record with ack during its call, and fails one of them after that.
type sendingCode struct {
	app    *committer
	fail   int64
	calls  int
	before func(calls int) // the end of a call
}

func (c *sendingCode) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	w, _ := ctx.Value(workKey{}).(*work)
	refused := map[int64]bool{}
	for _, r := range b.Records {
		sent := make(chan error, 1)
		c.app.sendNow(ctx, w, record.Output{Topic: "acked", Key: fmt.Append(nil, r.Offset)}, func(_ broker.Delivered, _ time.Time, err error) { sent <- err })
		if err := <-sent; err != nil {
			refused[r.Offset] = true
		}
		time.Sleep(30 * time.Millisecond) // a commit is due in the middle of the batch
	}
	if c.calls++; c.before != nil {
		c.before(c.calls)
	}
	fc := fakeCode{fails: func(r *record.Record) bool { return r.Offset == c.fail || refused[r.Offset] }}
	return fc.Call(ctx, slot, b)
}

// Partitions that are taken away without warning must not have anything committed that another member does again.
func TestCommitAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, true)
		f0, f1 := b.open(in0), b.open(in1)
		b.feed(f0, records(0, 0, 5))
		b.feed(f1, records(1, 0, 5))
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- b.run(ctx, context.Background()) }()
		time.Sleep(10 * time.Millisecond) // both are applied, nothing is committed
		b.lose(in0, f0)
		time.Sleep(10 * time.Millisecond)
		if err := b.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := b.kafka.keys("out-0"); len(got) > 0 || b.kafka.stored(in0) != 0 {
			t.Fatalf("outputs %v and position %d of a lost partition", got, b.kafka.stored(in0))
		}
		if got := b.kafka.keys("out-1"); !slices.Equal(got, offsets(0, 5)) {
			t.Fatalf("outputs of the partition that stayed: %v", got)
		}
		cancel()
		b.signal()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A stop, or the end of a rebalance's time, in the middle of a commit must not leave the transaction open: whoever takes the
// partitions over would wait for its timeout.
func TestCommitOutlivesItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, true)
		b.kafka.slow = 50 * time.Millisecond
		f := b.open(in0)
		b.feed(f, records(0, 0, 5))
		stop := b.start()
		time.Sleep(120 * time.Millisecond) // the first commit is under way
		if err := stop(); err != nil || b.failed != nil {
			t.Fatalf("stopped with %v, failed with %v", err, b.failed)
		}
		if got := b.kafka.stored(in0); got != 5 {
			t.Fatalf("stored %d, want 5: the commit was given up", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, true)
		b.kafka.slow = 50 * time.Millisecond
		f := b.open(in0)
		b.feed(f, records(0, 0, 5))
		stop := b.start()
		time.Sleep(10 * time.Millisecond)
		limited, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if err := b.commits.commit(limited); err == nil {
			t.Fatal("a commit of 50 ms succeeded within 20 ms")
		}
		if b.failed != nil {
			t.Fatalf("the app was stopped: %v", b.failed)
		}
		time.Sleep(time.Second) // what was rolled back is processed and committed again
		if err := stop(); err != nil || b.failed != nil {
			t.Fatalf("stopped with %v, failed with %v", err, b.failed)
		}
		if got := b.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 5)) || b.kafka.stored(in0) != 5 {
			t.Fatalf("outputs %v, stored %d", got, b.kafka.stored(in0))
		}
	})
}

// Exactly once, whatever goes wrong: thousands of histories of failed commits, lost answers, refusals, losses and retries.
func TestCommitRandomFaults(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) { randomFaults(t, seed) })
	}
}

func randomFaults(t *testing.T, seed uint64) {
	g := rand.New(rand.NewPCG(seed, 7))
	tries := map[int64]int{}
	code := &fakeCode{took: time.Duration(g.IntN(20)) * time.Millisecond, fails: func(r *record.Record) bool {
		if r.Offset%17 == 5 {
			tries[r.Offset]++
			return tries[r.Offset] < 2
		}
		return r.Offset%23 == 7
	}}
	p := plan.Agent{OnError: plan.Policy{Attempts: 3, InitialBackoff: 30 * time.Millisecond, MaxBackoff: time.Second, Multiplier: 2, Action: plan.Skip}}
	if g.IntN(2) == 0 {
		p.OnError.Attempts = 1
	}
	b := testLane(t, code, p, limits{records: 1 + g.IntN(9), bytes: 1 << 20}, true)
	b.kafka.refuse = func(o *record.Output) error {
		if string(o.Key) == "11" || string(o.Key) == "30" {
			return kerr.MessageTooLarge
		}
		return nil
	}
	const total = 120
	f := b.open(in0)
	var put int64
	stop := b.start()
	for put < total || b.kafka.stored(in0) < total {
		if put < total && g.IntN(2) == 0 {
			n := min(put+1+g.Int64N(20), total)
			b.feed(f, records(0, put, n))
			put = n
		}
		b.kafka.mu.Lock()
		switch g.IntN(12) {
		case 0:
			b.kafka.commit, b.kafka.lost = func() error { return fmt.Errorf("%w: chosen", broker.ErrNotCommitted) }, false
		case 1:
			b.kafka.commit, b.kafka.lost = func() error { return errors.New("no answer") }, true
		case 2:
			b.kafka.commit, b.kafka.lost = func() error { return errors.New("no answer") }, false
		}
		b.kafka.mu.Unlock()
		if g.IntN(15) == 0 { // lost, and assigned again from the stored position
			b.lose(in0, f)
			at := b.kafka.stored(in0)
			f = b.open(in0)
			if at < put {
				b.feed(f, records(0, at, put))
			}
		}
		time.Sleep(time.Duration(g.IntN(60)) * time.Millisecond)
	}
	if err := stop(); err != nil || b.failed != nil {
		t.Fatalf("seed %d: %v, %v", seed, err, b.failed)
	}
	var want []string
	for o := range int64(total) {
		failsFirst := o%17 == 5 && p.OnError.Attempts == 1
		if o%23 != 7 && o != 11 && o != 30 && !failsFirst {
			want = append(want, fmt.Sprint(o))
		}
	}
	got := b.kafka.keys("out-0")
	if p.OnError.Attempts == 1 { // such a record may have been tried again after a rollback, and come through then
		got = slices.DeleteFunc(got, func(k string) bool {
			o, err := strconv.Atoi(k)
			if err != nil {
				t.Fatal(err)
			}
			return o%17 == 5
		})
	}
	if !slices.Equal(got, want) {
		t.Fatalf("seed %d (go test ./engine -run TestCommitRandomFaults):\n got %v\nwant %v", seed, got, want)
	}
}
