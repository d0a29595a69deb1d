package engine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// fakeCode stands for the sandbox: one output per record, named after its key; fails says which records fail.
type fakeCode struct {
	took  time.Duration
	fails func(r *record.Record) bool

	mu    sync.Mutex
	calls [][]int64 // guarded by mu; offsets of each call
}

func (c *fakeCode) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	time.Sleep(c.took)
	c.mu.Lock()
	defer c.mu.Unlock()
	var offsets []int64
	var res record.Result
	for i := range b.Records {
		r := &b.Records[i]
		offsets = append(offsets, r.Offset)
		res.Done++
		if c.fails != nil && c.fails(r) {
			res.Failures = append(res.Failures, record.Failure{Record: int32(i), Kind: record.FailureCode, Type: "ValueError"})
			if b.StopOnFailure {
				break
			}
			continue
		}
		res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: fmt.Sprintf("out-%d", r.Partition), Key: fmt.Append(nil, r.Offset)})
	}
	c.calls = append(c.calls, offsets)
	return res, nil
}

// history is the offsets of the calls so far.
func (c *fakeCode) history() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.calls)
}

// fakeSink acknowledges after a while.
type fakeSink struct {
	ack time.Duration
	mu  sync.Mutex
	got map[string][]string // guarded by mu; keys by topic
}

func (s *fakeSink) Send(_ context.Context, outs []record.Output, done func([]broker.SendFailure)) {
	s.mu.Lock()
	for _, o := range outs {
		s.got[o.Topic] = append(s.got[o.Topic], string(o.Key))
	}
	s.mu.Unlock()
	time.AfterFunc(s.ack, func() { done(nil) })
}

func (s *fakeSink) keys(topic string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got[topic])
}

// testLane is one lane with fakes at both ends, run until the test ends. It must be made inside a synctest bubble.
func testLane(t *testing.T, code *fakeCode, p plan.Agent, lim limits) (*lane, *fakeSink) {
	t.Helper()
	if p.OnError.Attempts == 0 {
		p.OnError = plan.Policy{Attempts: 1, Action: plan.Skip}
	}
	p.Name = "a"
	app := &App{cfg: config.Config{QueueRecordsMax: 1000}, plan: &plan.Plan{}, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		ledger: newLedger(), intake: newIntake(1000)}
	sink := &fakeSink{ack: time.Millisecond, got: map[string][]string{}}
	a := newAgent(app, &p, context.Background())
	a.code, a.sink = code, sink
	if lim.records == 0 {
		lim = limits{records: 10, bytes: 1 << 20}
	}
	return newLane(a, 0, app.ledger, sink, app.intake, lim), sink
}

func start(t *testing.T, l *lane) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.run(ctx, context.Background()) }()
	return func() error {
		cancel()
		l.signal()
		return <-ended
	}
}

func records(p int32, from, to int64) []record.Record {
	var rs []record.Record
	for o := from; o < to; o++ {
		rs = append(rs, record.Record{Topic: "in", Partition: p, Offset: o, Attempt: 1, Value: []byte("v")})
	}
	return rs
}

func offsets(from, to int64) []string {
	var keys []string
	for o := from; o < to; o++ {
		keys = append(keys, fmt.Sprint(o))
	}
	return keys
}

func (l *lane) open(p record.Partition) *feed {
	l.ledger.open(p, []string{"a"})
	return l.assign(p)
}

// Records of a partition come out in order, each once, whatever the sizes they were fetched in.
func TestLaneKeepsOrderAcrossChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &fakeCode{took: time.Millisecond}
		l, sink := testLane(t, code, plan.Agent{}, limits{records: 7, bytes: 1 << 20})
		f := l.open(record.Partition{Topic: "in"})
		for at := int64(0); at < 100; {
			n := at%13 + 1
			l.put(f, records(0, at, min(at+n, 100)))
			at += n
		}
		stop := start(t, l)
		time.Sleep(time.Second)
		if got := sink.keys("out-0"); !slices.Equal(got, offsets(0, 100)) {
			t.Fatalf("outputs %v", got)
		}
		code.mu.Lock()
		for _, c := range code.calls {
			if len(c) > 7 {
				t.Fatalf("a call took %d records, limit 7", len(c))
			}
		}
		code.mu.Unlock()
		if n := l.intake.count(); n != 0 {
			t.Fatalf("the intake counts %d records that are gone", n)
		}
		if got := l.ledger.committable(nil)[record.Partition{Topic: "in"}]; got != 100 {
			t.Fatalf("committable %d, want 100", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A batch is bounded by bytes too, but a single large record still passes.
func TestLaneBatchBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &fakeCode{}
		l, sink := testLane(t, code, plan.Agent{}, limits{records: 100, bytes: 10})
		f := l.open(record.Partition{Topic: "in"})
		rs := records(0, 0, 6)
		for i, size := range []int{4, 4, 4, 50, 4, 4} {
			rs[i].Value = make([]byte, size)
		}
		l.put(f, rs)
		stop := start(t, l)
		time.Sleep(time.Second)
		if got := code.history(); got != "[[0 1] [2] [3] [4 5]]" {
			t.Fatalf("calls %s", got)
		}
		if len(sink.keys("out-0")) != 6 {
			t.Fatalf("outputs %v", sink.keys("out-0"))
		}
		_ = stop()
	})
}

// A record that waits for its retry holds back its own partition only, and the order stays.
func TestLaneRetryHoldsOnlyItsPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		code := &fakeCode{fails: func(r *record.Record) bool {
			if r.Partition == 0 && r.Offset == 3 {
				tries++
				return tries < 3
			}
			return false
		}}
		l, sink := testLane(t, code, plan.Agent{OnError: plan.Policy{Attempts: 5, InitialBackoff: time.Second,
			MaxBackoff: time.Minute, Multiplier: 2, Action: plan.Skip}}, limits{})
		f0, f1 := l.open(record.Partition{Topic: "in"}), l.open(record.Partition{Topic: "in", Number: 1})
		l.put(f0, records(0, 0, 8))
		l.put(f1, records(1, 0, 50))
		stop := start(t, l)
		time.Sleep(500 * time.Millisecond)
		if got := sink.keys("out-1"); len(got) != 50 {
			t.Fatalf("the other partition has %d of 50 outputs while one retries", len(got))
		}
		if got := sink.keys("out-0"); !slices.Equal(got, offsets(0, 3)) {
			t.Fatalf("the retrying partition has outputs %v", got)
		}
		if got := l.ledger.committable(nil)[record.Partition{Topic: "in"}]; got != 3 {
			t.Fatalf("committable %d while offset 3 is retried", got)
		}
		time.Sleep(3 * time.Second) // 1 s and 2 s of back-off
		if got := sink.keys("out-0"); !slices.Equal(got, offsets(0, 8)) {
			t.Fatalf("after the retries outputs %v", got)
		}
		_ = stop()
	})
}

// The policy stop ends the lane with the record's place, and nothing from it on is committed.
func TestLaneStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &fakeCode{fails: func(r *record.Record) bool { return r.Offset == 4 }}
		l, sink := testLane(t, code, plan.Agent{OnError: plan.Policy{Attempts: 1, Action: plan.Stop}}, limits{})
		f := l.open(record.Partition{Topic: "in"})
		l.put(f, records(0, 0, 9))
		err := l.run(context.Background(), context.Background())
		if err == nil {
			t.Fatal("the lane did not stop")
		}
		time.Sleep(time.Second)
		if got := sink.keys("out-0"); !slices.Equal(got, offsets(0, 4)) {
			t.Fatalf("outputs %v", got)
		}
		if got := l.ledger.committable(nil)[record.Partition{Topic: "in"}]; got != 4 {
			t.Fatalf("committable %d, want 4", got)
		}
	})
}

// take: a list is full at max, or due within its time; "0s" waits for a full one.
func TestLaneTake(t *testing.T) {
	for _, c := range []struct {
		within time.Duration
		want   string
	}{{2 * time.Second, "[[0 1 2 3] [4 5]]"}, {0, "[[0 1 2 3]]"}} {
		synctest.Test(t, func(t *testing.T) {
			code := &fakeCode{}
			l, _ := testLane(t, code, plan.Agent{Take: &plan.Take{Max: 4, Within: c.within}}, limits{})
			f := l.open(record.Partition{Topic: "in"})
			l.put(f, records(0, 0, 6))
			stop := start(t, l)
			time.Sleep(time.Second)
			if got := code.history(); got != "[[0 1 2 3]]" {
				t.Fatalf("within %v: calls after 1 s %s", c.within, got)
			}
			time.Sleep(2 * time.Second)
			if got := code.history(); got != c.want {
				t.Fatalf("within %v: calls after 3 s %s, want %s", c.within, got, c.want)
			}
			_ = stop()
		})
	}
}

// Offsets of a take batch are committed only when its failed records have had their retries.
func TestLaneTakeRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		code := &fakeCode{fails: func(r *record.Record) bool {
			if r.Offset == 1 {
				tries++
				return tries < 3
			}
			return false
		}}
		p := plan.Agent{Take: &plan.Take{Max: 3}, OnError: plan.Policy{Attempts: 4, InitialBackoff: time.Second,
			MaxBackoff: time.Second, Multiplier: 1, Action: plan.Skip}}
		l, sink := testLane(t, code, p, limits{})
		f := l.open(record.Partition{Topic: "in"})
		l.put(f, records(0, 0, 6))
		stop := start(t, l)
		time.Sleep(1500 * time.Millisecond)
		if got, ok := l.ledger.committable(nil)[record.Partition{Topic: "in"}]; ok && got != 0 {
			t.Fatalf("committable %d while a record of the first list is retried", got)
		}
		time.Sleep(2 * time.Second)
		if got := fmt.Sprint(sink.keys("out-0")); got != "[0 2 1 3 4 5]" {
			t.Fatalf("outputs %s", got)
		}
		if got := l.ledger.committable(nil)[record.Partition{Topic: "in"}]; got != 6 {
			t.Fatalf("committable %d, want 6", got)
		}
		_ = stop()
	})
}

// A revocation waits for the running step, and one that does not end in time must not deliver any more.
func TestLaneDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := &fakeCode{took: 3 * time.Second}
		l, sink := testLane(t, code, plan.Agent{}, limits{records: 2, bytes: 1 << 20})
		f := l.open(record.Partition{Topic: "in"})
		l.put(f, records(0, 0, 6))
		stop := start(t, l)
		time.Sleep(time.Second)
		if !l.drain([]*feed{f}, time.Now().Add(10*time.Second)) {
			t.Fatal("not drained although the step ends in 2 s")
		}
		l.remove([]*feed{f}, false)
		if got := sink.keys("out-0"); !slices.Equal(got, offsets(0, 2)) {
			t.Fatalf("outputs %v", got)
		}
		if n := l.intake.count(); n != 0 {
			t.Fatalf("the intake counts %d records of a revoked partition", n)
		}
		f = l.open(record.Partition{Topic: "in"})
		l.put(f, records(0, 2, 6))
		time.Sleep(time.Second)
		if l.drain([]*feed{f}, time.Now().Add(time.Second)) {
			t.Fatal("drained although the step takes longer")
		}
		l.remove([]*feed{f}, true)
		time.Sleep(5 * time.Second)
		if got := sink.keys("out-0"); !slices.Equal(got, offsets(0, 2)) {
			t.Fatalf("a dropped step delivered %v", got)
		}
		_ = stop()
	})
}
