package engine

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost/abi"
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

// fakeBroker stands for both ends of Kafka: it acknowledges sends after a while, keeps what is in the open transaction apart
// from what counts, and stores positions. Its faults are set by the test.
type fakeBroker struct {
	ack     time.Duration
	refuse  func(o *record.Output) error // nil: takes everything
	commit  func() error                 // outcome of the next Commit, once; nil: success
	refuses error                        // of the next Prepare, once
	slow    time.Duration                // how long Commit takes
	lost    bool                         // with commit's error: the transaction is committed all the same
	store   func()                       // at each Commit of positions alone; nil: nothing

	mu        sync.Mutex
	open      []record.Output                      // guarded by mu; of the transaction
	got       map[string][]string                  // guarded by mu; keys by topic, of what counts
	positions map[record.Partition]broker.Position // guarded by mu
	prepared  map[record.Partition]broker.Position // guarded by mu; of the transaction
	begun     int                                  // guarded by mu
	appended  int64                                // guarded by mu; entries of changelogs
	plain     bool                                 // no transactions
}

func (s *fakeBroker) Send(ctx context.Context, outs []record.Output, done func([]broker.SendFailure)) {
	var refused []broker.SendFailure
	s.mu.Lock()
	for i := range outs {
		switch err := s.refusal(&outs[i]); {
		case ctx.Err() != nil:
			refused = append(refused, broker.SendFailure{Index: i, Err: ctx.Err()})
		case err != nil:
			refused = append(refused, broker.SendFailure{Index: i, Err: err})
		case s.plain:
			s.count(outs[i])
		default:
			s.open = append(s.open, outs[i])
		}
	}
	s.mu.Unlock()
	after(s.ack, func() { done(refused) })
}

// after is time.AfterFunc, but never fires at once. In a bubble of synctest such a timer runs in its goroutine, with race detector
// state that the bubble's goroutines share: two at the same time, and the process dies of SIGSEGV (Go 1.26, runtime/time.go, unlockAndRun).
func after(d time.Duration, do func()) { time.AfterFunc(max(d, time.Nanosecond), do) }

func (s *fakeBroker) refusal(o *record.Output) error {
	if s.refuse == nil {
		return nil
	}
	return s.refuse(o)
}

func (s *fakeBroker) count(o record.Output) { s.got[o.Topic] = append(s.got[o.Topic], string(o.Key)) }

func (s *fakeBroker) SendOne(ctx context.Context, o record.Output, done func(broker.Delivered, time.Time, error)) {
	s.Send(ctx, []record.Output{o}, func(f []broker.SendFailure) {
		if len(f) > 0 {
			done(broker.Delivered{}, time.Time{}, f[0].Err)
			return
		}
		done(broker.Delivered{Topic: o.Topic, Key: o.Key}, time.Now(), nil)
	})
}

func (s *fakeBroker) Append(_ context.Context, _ record.Partition, n int, _ func(int) broker.Entry, done func(int64, error)) {
	s.mu.Lock()
	s.appended += int64(n)
	next := s.appended
	s.mu.Unlock()
	after(s.ack, func() { done(next, nil) })
}

func (s *fakeBroker) Begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun++; len(s.open) > 0 {
		return fmt.Errorf("begun while %d outputs are in a transaction", len(s.open))
	}
	return nil
}

func (s *fakeBroker) end() {
	for _, o := range s.open {
		s.count(o)
	}
	s.open = nil
	maps.Copy(s.positions, s.prepared)
	s.prepared = nil
}

// fakeEnds is fakeBroker as the producer: Commit has another meaning there.
type fakeEnds struct{ *fakeBroker }

func (s fakeEnds) Prepare(_ context.Context, _ broker.Grouped, offsets map[record.Partition]broker.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared = offsets
	err := s.refuses
	s.refuses = nil
	return err
}

func (s fakeEnds) Commit(ctx context.Context) error {
	select {
	case <-time.After(max(s.slow, time.Nanosecond)): // see after
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", broker.ErrNotCommitted, ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.commit != nil {
		err := s.commit()
		s.commit = nil
		if s.lost {
			s.end()
		}
		return err
	}
	s.end()
	return nil
}

func (s *fakeBroker) Committed() {}

func (s *fakeBroker) Abort(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.prepared = nil, nil
	return nil
}

func (s *fakeBroker) Reopen(ctx context.Context) error { return s.Abort(ctx) }

// fakeGroup is fakeBroker as the member.
type fakeGroup struct{ *fakeBroker }

func (s fakeGroup) Commit(_ context.Context, offsets map[record.Partition]broker.Position) error {
	if s.store != nil {
		s.store()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.positions, offsets)
	return nil
}

func (s fakeGroup) Committed(_ context.Context, ps []record.Partition) (map[record.Partition]broker.Position, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := map[record.Partition]broker.Position{}
	for _, p := range ps {
		if o, ok := s.positions[p]; ok {
			at[p] = o
		}
	}
	return at, nil
}

func (s *fakeBroker) keys(topic string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got[topic])
}

// stored is the group's position of the partition; 0 for none.
func (s *fakeBroker) position(p record.Partition) broker.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.positions[p]
}

func (s *fakeBroker) stored(p record.Partition) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.positions[p].Offset
}

// bench is a lane of one agent, with fakes for code and Kafka.
type bench struct {
	*lane
	app    *App
	agent  *agent
	kafka  *fakeBroker
	failed error // why the app was stopped
}

// testLane makes a bench, inside a synctest bubble.
func testLane(t *testing.T, code caller, p plan.Agent, lim limits, exactlyOnce bool) *bench {
	t.Helper()
	if p.OnError.Attempts == 0 {
		p.OnError = plan.Policy{Attempts: 1, Action: plan.Skip}
	}
	p.Name = "a"
	if lim.records == 0 {
		lim = limits{records: 10, bytes: 1 << 20}
	}
	b := &bench{kafka: &fakeBroker{ack: time.Millisecond, plain: !exactlyOnce, got: map[string][]string{}, positions: map[record.Partition]broker.Position{}}}
	b.app = &App{
		cfg: config.Config{QueueRecordsMax: 1000}, plan: &plan.Plan{}, log: slog.New(slog.DiscardHandler),
		intake: newIntake(1000), feeds: map[record.Partition][]laneFeed{}, stop: func() {},
	}
	ctx := context.Background()
	b.app.commits = &committer{
		exactlyOnce: exactlyOnce, producer: fakeEnds{b.kafka}, member: fakeGroup{b.kafka}, sending: ctx,
		feeds: b.app.assigned, lanes: b.app.allLanes, fail: func(err error) { b.failed = err }, released: b.app.signal, log: b.app.log,
		running: make(chan struct{}, 1), committed: map[record.Partition]broker.Position{},
		now: make(chan struct{}, 1), every: 1 << 40, current: newEpoch(ctx, !exactlyOnce),
	}
	if exactlyOnce {
		if err := b.app.commits.begin(ctx); err != nil {
			t.Fatal(err)
		}
	}
	b.agent = newAgent(b.app, &p)
	b.agent.runs(code)
	b.lane = newLane(0, b.app.commits, b.app.intake, lim)
	b.app.lanes = []*lane{b.lane}
	return b
}

// start runs the lane, and commits every 100 ms, until stop.
func (b *bench) start() (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	committing := make(chan struct{})
	go func() { ended <- b.run(ctx, context.Background()) }()
	go func() {
		defer close(committing)
		b.commits.loop(ctx, 100*time.Millisecond)
	}()
	return func() error {
		cancel()
		b.signal()
		<-committing
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

func (b *bench) open(p record.Partition) *feed {
	f := b.assign(b.agent, p)
	b.app.mu.Lock()
	b.app.feeds[p] = []laneFeed{{b.lane, f}}
	b.app.mu.Unlock()
	b.position(f, -1)
	b.begin(f, nil)
	return f
}

func (b *bench) feed(f *feed, rs []record.Record) { b.put(f, rs, rs[len(rs)-1].Offset+1) }

// both runs a test with either guarantee, inside a synctest bubble.
func both(t *testing.T, test func(t *testing.T, exactlyOnce bool)) {
	for _, exactlyOnce := range []bool{true, false} {
		t.Run(fmt.Sprintf("exactlyOnce=%v", exactlyOnce), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, exactlyOnce) })
		})
	}
}

var in0, in1 = record.Partition{Topic: "in"}, record.Partition{Topic: "in", Number: 1}

// Records of a partition come out in order, each once, whatever the sizes they were fetched in.
func TestLaneKeepsOrderAcrossChunks(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeCode{took: time.Millisecond}
		l := testLane(t, code, plan.Agent{}, limits{records: 7, bytes: 1 << 20}, exactlyOnce)
		f := l.open(in0)
		for at := int64(0); at < 100; {
			n := at%13 + 1
			l.feed(f, records(0, at, min(at+n, 100)))
			at += n
		}
		stop := l.start()
		time.Sleep(time.Second)
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 100)) {
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
		if got := l.kafka.stored(in0); got != 100 {
			t.Fatalf("stored %d, want 100", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A batch is bounded by bytes too, but a single large record still passes.
func TestLaneBatchBytes(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeCode{}
		l := testLane(t, code, plan.Agent{}, limits{records: 100, bytes: 10}, exactlyOnce)
		f := l.open(in0)
		rs := records(0, 0, 6)
		for i, size := range []int{4, 4, 4, 50, 4, 4} {
			rs[i].Value = make([]byte, size)
		}
		l.feed(f, rs)
		stop := l.start()
		time.Sleep(time.Second)
		if got := code.history(); got != "[[0 1] [2] [3] [4 5]]" {
			t.Fatalf("calls %s", got)
		}
		if len(l.kafka.keys("out-0")) != 6 {
			t.Fatalf("outputs %v", l.kafka.keys("out-0"))
		}
		_ = stop()
	})
}

// With batchLinger a batch waits for more records, no longer than that, and not at all once it is full.
func TestLaneLinger(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeCode{}
		l := testLane(t, code, plan.Agent{}, limits{records: 4, bytes: 1 << 20, linger: 50 * time.Millisecond}, exactlyOnce)
		f := l.open(in0)
		stop := l.start()
		for o := range int64(3) {
			l.feed(f, records(0, o, o+1))
			time.Sleep(10 * time.Millisecond)
		}
		if got := code.history(); got != "[]" {
			t.Fatalf("calls %s after 30 of 50 ms", got)
		}
		time.Sleep(25 * time.Millisecond)
		if got := code.history(); got != "[[0 1 2]]" {
			t.Fatalf("calls %s after 55 of 50 ms", got)
		}
		l.feed(f, records(0, 3, 7))
		time.Sleep(time.Millisecond)
		if got := code.history(); got != "[[0 1 2] [3 4 5 6]]" {
			t.Fatalf("calls %s, although a batch was full", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A record that waits for its retry holds back its own partition only, and the order stays.
func TestLaneRetryHoldsOnlyItsPartition(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		tries := 0
		code := &fakeCode{fails: func(r *record.Record) bool {
			if r.Partition == 0 && r.Offset == 3 {
				tries++
				return tries < 3
			}
			return false
		}}
		l := testLane(t, code, plan.Agent{OnError: plan.Policy{
			Attempts: 5, InitialBackoff: time.Second,
			MaxBackoff: time.Minute, Multiplier: 2, Action: plan.Skip,
		}}, limits{}, exactlyOnce)
		f0, f1 := l.open(in0), l.open(in1)
		l.feed(f0, records(0, 0, 8))
		l.feed(f1, records(1, 0, 50))
		stop := l.start()
		time.Sleep(500 * time.Millisecond)
		if got := l.kafka.keys("out-1"); len(got) != 50 {
			t.Fatalf("the other partition has %d of 50 outputs while one retries", len(got))
		}
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 3)) {
			t.Fatalf("the retrying partition has outputs %v", got)
		}
		if got := l.kafka.stored(in0); got != 3 {
			t.Fatalf("stored %d while offset 3 is retried", got)
		}
		time.Sleep(3 * time.Second) // 1 s and 2 s of back-off
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 8)) {
			t.Fatalf("after the retries outputs %v", got)
		}
		_ = stop()
	})
}

// The policy stop ends the lane with the record's place, and nothing from it on is committed.
func TestLaneStop(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeCode{fails: func(r *record.Record) bool { return r.Offset == 4 }}
		l := testLane(t, code, plan.Agent{OnError: plan.Policy{Attempts: 1, Action: plan.Stop}}, limits{}, exactlyOnce)
		f := l.open(in0)
		l.feed(f, records(0, 0, 9))
		err := l.run(context.Background(), context.Background())
		if err == nil {
			t.Fatal("the lane did not stop")
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 4)) {
			t.Fatalf("outputs %v", got)
		}
		if got := l.kafka.stored(in0); got != 4 {
			t.Fatalf("stored %d, want 4", got)
		}
	})
}

// take: a list is full at max, or due within its time; "0s" waits for a full one.
func TestLaneTake(t *testing.T) {
	for _, c := range []struct {
		within time.Duration
		want   string
	}{{2 * time.Second, "[[0 1 2 3] [4 5]]"}, {0, "[[0 1 2 3]]"}} {
		both(t, func(t *testing.T, exactlyOnce bool) {
			code := &fakeCode{}
			l := testLane(t, code, plan.Agent{Take: &plan.Take{Max: 4, Within: c.within}}, limits{}, exactlyOnce)
			f := l.open(in0)
			l.feed(f, records(0, 0, 6))
			stop := l.start()
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

// A failed record of a take batch has its retries before anything behind it: order stays, and so does its offset.
func TestLaneTakeRetry(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		tries := 0
		code := &fakeCode{fails: func(r *record.Record) bool {
			if r.Offset == 1 {
				tries++
				return tries < 3
			}
			return false
		}}
		p := plan.Agent{Take: &plan.Take{Max: 3, Within: 100 * time.Millisecond}, OnError: plan.Policy{
			Attempts: 4, InitialBackoff: time.Second,
			MaxBackoff: time.Second, Multiplier: 1, Action: plan.Skip,
		}}
		l := testLane(t, code, p, limits{}, exactlyOnce)
		f := l.open(in0)
		l.feed(f, records(0, 0, 6))
		stop := l.start()
		time.Sleep(1500 * time.Millisecond)
		if got := l.kafka.stored(in0); got > 1 {
			t.Fatalf("stored %d while a record of the first list is retried", got)
		}
		time.Sleep(2 * time.Second)
		if got := fmt.Sprint(l.kafka.keys("out-0")); got != "[0 1 2 3 4 5]" {
			t.Fatalf("outputs %s", got)
		}
		if got := l.kafka.stored(in0); got != 6 {
			t.Fatalf("stored %d, want 6", got)
		}
		_ = stop()
	})
}

// A revocation waits for the running step, and one that does not end in time must not deliver any more.
func TestLaneDrain(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeCode{took: 3 * time.Second}
		l := testLane(t, code, plan.Agent{}, limits{records: 2, bytes: 1 << 20}, exactlyOnce)
		f := l.open(in0)
		l.feed(f, records(0, 0, 6))
		stop := l.start()
		time.Sleep(time.Second)
		if !l.drain([]*feed{f}, time.Now().Add(10*time.Second)) {
			t.Fatal("not drained although the step ends in 2 s")
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		l.remove([]*feed{f})
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 2)) {
			t.Fatalf("outputs %v", got)
		}
		if n := l.intake.count(); n != 0 {
			t.Fatalf("the intake counts %d records of a revoked partition", n)
		}
		f = l.open(in0)
		l.feed(f, records(0, 2, 6))
		time.Sleep(time.Second)
		if l.drain([]*feed{f}, time.Now().Add(time.Second)) {
			t.Fatal("drained although the step takes longer")
		}
		l.remove([]*feed{f})
		time.Sleep(5 * time.Second)
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 2)) {
			t.Fatalf("a dropped step delivered %v", got)
		}
		_ = stop()
	})
}

// What a feed had applied before a step that does not end in time must be committed with its position, or not at all: the partition's next
// owner would make the same outputs again.
func TestDrainInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testLane(t, &fakeCode{took: 3 * time.Second}, plan.Agent{}, limits{records: 2, bytes: 1 << 20}, true)
		f := l.open(in0)
		ctx := context.Background()
		if err := l.commits.lock(ctx); err != nil { // nothing is committed meanwhile
			t.Fatal(err)
		}
		l.feed(f, records(0, 0, 6))
		stop := l.start()
		time.Sleep(4 * time.Second)
		if l.drain([]*feed{f}, time.Now().Add(time.Second)) {
			t.Fatal("drained although the step takes longer")
		}
		l.commits.unlock()
		time.Sleep(500 * time.Millisecond) // somebody commits
		got, stored := l.kafka.keys("out-0"), l.kafka.stored(in0)
		if !slices.Equal(got, offsets(0, stored)) {
			t.Errorf("outputs %v are committed, of a position of %d", got, stored)
		}
		if l.commits.handOver(ctx, map[*lane][]*feed{l.lane: {f}}, time.Now()) {
			t.Error("the step is said to have ended")
		}
		time.Sleep(5 * time.Second)
		if now := l.kafka.keys("out-0"); !slices.Equal(now, got) || l.kafka.stored(in0) != stored {
			t.Errorf("a step of a partition that was given up delivered %v", now)
		}
		_ = stop()
	})
}

// What expires is committed with a position of the partition, or a process that has lost it could still delete what its new owner has written anew.
func TestExpiryIsCommittedWithPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, true)
		store, err := mem.New().Open("t", 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Apply([]state.Change{{Key: []byte("old"), Value: []byte("v"), Expires: 1}}, 1); err != nil {
			t.Fatal(err)
		}
		b.kafka.appended = 1
		f := b.open(in0)
		s := &share{label: "t", staged: state.NewStaged(store), expires: true, streamTime: 1000, seen: map[*agent]uint64{}}
		b.shares[shareOf{}] = s
		b.feed(f, records(0, 0, 5))
		stop := b.start()
		time.Sleep(time.Second)
		before := b.kafka.position(in0)
		if err := b.expire(f, []*share{s}, &record.Batch{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if v, err := store.Get([]byte("old")); err != nil || v != nil {
			t.Fatalf("%q is there, %v", v, err)
		}
		if at := b.kafka.position(in0); at == before || at.Offset != before.Offset {
			t.Errorf("the position was %v, is %v", before, at)
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}

// Partitions may be taken away before anything was found out about them.
func TestAssignedTablesAreAcquired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, &fakeCode{}, plan.Agent{Tables: []plan.TableUse{{Table: 0, Declared: true}}}, limits{}, true)
		b.app.plan.Tables = []plan.Table{{Name: "t", Label: "t", Guest: abi.Table{Changelog: "t-log"}}}
		logs := newFakeLogs()
		logs.topics["t-log"] = &fakeLog{broker.TopicID{1}, make([]fakePartition, 1)}
		b.app.tables = newTables(mem.New(), logs, "app", b.app.plan.Tables, b.app.log, func(int32) {})
		b.app.tables.Start([]int32{1})
		b.agent.lanes, b.app.readers = b.app.lanes, map[string][]*agent{"in": {b.agent}}
		feeds := b.app.feedsOf([]record.Partition{in0})
		if len(feeds) != 1 {
			t.Fatalf("%d feeds", len(feeds))
		}
		b.app.tables.Release(0, []int{0}) // panics if it was not acquired
		if err := b.app.tables.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}

// Without transactions, too, a partition that was lost is given up only when no commit writes to its tables any more, and what was not committed
// never gets into its changelog, where the next owner's changes are by then.
func TestLostPartitionIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, &changingCode{}, plan.Agent{Tables: []plan.TableUse{{Table: 0, Declared: true}}}, limits{records: 5, bytes: 1 << 20}, false)
		b.app.plan.Tables = []plan.Table{{Name: "t", Label: "t"}}
		b.app.tables = newTables(nil, nil, "app", b.app.plan.Tables, b.app.log, func(int32) {})
		store, err := mem.New().Open("t", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := b.assign(b.agent, in0)
		b.app.feeds[in0] = []laneFeed{{b.lane, f}}
		b.position(f, 0)
		b.begin(f, func(table int, number int32) *share {
			return &share{table: table, label: "t", staged: state.NewStaged(store), seen: map[*agent]uint64{}}
		})
		given := make(chan struct{})
		b.kafka.store = func() {
			b.kafka.store = nil
			b.feed(f, records(0, 5, 10)) // a step that is not part of the commit under way
			time.Sleep(20 * time.Millisecond)
			go func() {
				defer close(given)
				b.commits.drop(context.Background(), map[*lane][]*feed{b.lane: {f}})
				// Somebody else's changes are read from the changelog.
				if err := store.Apply([]state.Change{{Key: []byte("at"), Value: []byte("new owner's")}}, 100); err != nil {
					t.Error(err)
				}
			}()
			time.Sleep(time.Second) // the broker's answer
		}
		b.feed(f, records(0, 0, 5))
		stop := b.start()
		<-given
		appended := b.kafka.appended
		time.Sleep(time.Second)
		if v, err := store.Get([]byte("at")); err != nil || string(v) != "new owner's" {
			t.Errorf("the table has %q, %v", v, err)
		}
		if appended != 1 || b.kafka.appended != 1 {
			t.Errorf("%d changes are in the changelog, 1 of them before the partition was lost", b.kafka.appended)
		}
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
	})
}
