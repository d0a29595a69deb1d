package engine

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
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

// The simulation: a counter per user on a simulated Kafka and simulated disks, in virtual time, with everything going wrong that
// can: ticks among the records, commits that fail, whose answers are lost, or that a crash cuts off; crashes at any moment that lose what was
// not flushed; partitions taken away, and given up in time or not; disks that refuse. Whatever happens, the outputs that count are each user's 1, 2, 3…,
// and changelog and stores end with the right counts, and the ticks of each partition have counted 1, 2, 3… too. One seed is one history: go test ./engine -run TestSim -seed N.

var (
	seedOfSim  = flag.Int64("seed", -1, "the one history to simulate")
	seedsOfSim = flag.Int64("seeds", 400, "how many histories to simulate")
)

const (
	simPartitions = 3
	simRecords    = 240
	simUsers      = 7
	simTicks      = 30 // of each partition
	simLog        = "counts-log"
)

// simKafka is what survives a process: the input, and fakeBroker's outputs and positions beside the changelog.
type simKafka struct {
	fakeBroker
	logs    *fakeLogs
	input   [simPartitions][]record.Record
	written []written // guarded by fakeBroker.mu; changelog records of the open transaction
}

type written struct {
	at record.Partition
	r  broker.Logged
}

func newSimKafka(g *rand.Rand) *simKafka {
	k := &simKafka{logs: newFakeLogs()}
	k.got, k.positions = map[string][]string{}, map[record.Partition]broker.Position{}
	k.logs.topics[simLog] = &fakeLog{broker.TopicID{7}, make([]fakePartition, simPartitions)}
	for range simRecords {
		user := g.IntN(simUsers)
		p := int32(user % simPartitions)
		k.input[p] = append(k.input[p], record.Record{Topic: "in", Partition: p, Offset: int64(len(k.input[p])), Attempt: 1, Key: fmt.Append(nil, "u", user)})
	}
	return k
}

// simEnds is simKafka as a process sees it until it crashes.
type simEnds struct {
	*simKafka
	dead *atomic.Bool
}

var errDead = errors.New("the process is dead")

func (k simEnds) Send(ctx context.Context, outs []record.Output, done func([]broker.SendFailure)) {
	if !k.dead.Load() {
		k.fakeBroker.Send(ctx, outs, done)
	}
}

func (k simEnds) Append(ctx context.Context, to record.Partition, n int, entry func(int) broker.Entry, done func(int64, error)) {
	if k.dead.Load() {
		return
	}
	k.mu.Lock()
	var next int64
	k.logs.change(func() {
		p := &k.logs.topics[to.Topic].parts[to.Number]
		if p.open == 0 {
			p.open = p.high + 1 // offsets of the fake begin at 1, where 0 means none
		}
		for i := range n {
			e := entry(i)
			k.written = append(k.written, written{to, broker.Logged{Key: e.Key, Value: e.Value, Offset: p.high}})
			p.high++
		}
		next = p.high
	})
	k.mu.Unlock()
	after(k.ack, func() {
		if ctx.Err() != nil {
			done(-1, ctx.Err())
			return
		}
		done(next, nil)
	})
}

// settle ends the changelog's part of the transaction. mu is held.
func (k *simKafka) settle(commit bool) {
	k.logs.change(func() {
		for _, w := range k.written {
			p := &k.logs.topics[w.at.Topic].parts[w.at.Number]
			if commit {
				p.records = append(p.records, w.r)
			}
		}
		for i := range k.logs.topics[simLog].parts {
			if p := &k.logs.topics[simLog].parts[i]; p.open > 0 {
				p.open = 0
				p.high++ // the transaction's end
			}
		}
	})
	k.written = nil
}

func (k simEnds) Prepare(ctx context.Context, g broker.Grouped, offsets map[record.Partition]broker.Position) error {
	time.Sleep(k.ack / 2) // some acknowledgements come before it, some after
	if k.dead.Load() {
		return errDead
	}
	return fakeEnds{&k.fakeBroker}.Prepare(ctx, g, offsets)
}

func (k simEnds) Commit(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead.Load() {
		return errDead
	}
	fault, happens := k.commit, true
	k.commit = nil
	var err error
	if fault != nil {
		err, happens = fault(), k.lost
	}
	if happens {
		k.end()
		k.settle(true)
	}
	return err
}

func (k simEnds) Abort(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead.Load() {
		return errDead
	}
	k.open, k.prepared = nil, nil
	k.settle(false)
	return nil
}

func (k simEnds) Reopen(ctx context.Context) error { return k.Abort(ctx) }

// Stored positions, for the member.
type simGroup struct{ simEnds }

func (k simGroup) Commit(_ context.Context, offsets map[record.Partition]broker.Position) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead.Load() {
		return errDead
	}
	maps.Copy(k.positions, offsets)
	return nil
}

func (k simGroup) Committed(_ context.Context, ps []record.Partition) (map[record.Partition]broker.Position, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := map[record.Partition]broker.Position{}
	for _, p := range ps {
		if o, ok := k.positions[p]; ok {
			at[p] = o
		}
	}
	return at, nil
}

// counting is the code of the simulation: it reads and changes the table as a guest does, through wasmhost.Tables.
type counting struct{ agent *agent }

func (c *counting) Refused(record.Partition, *record.Output, error) {
	panic("BUG: nothing is refused here")
}

// tickKey is the row that counts a partition's ticks, and the topic their outputs go to.
func tickKey(p int32) []byte { return fmt.Append(nil, "tick", p) }

func (c *counting) Call(ctx context.Context, _ int, b *record.Batch) (record.Result, error) {
	time.Sleep(3 * time.Millisecond)
	res := record.Result{Done: len(b.Records)}
	if b.Tick {
		n, err := c.agent.view.TableGet(b.Records[0].Partition, 0, b.Records[0].Partition, tickKey(b.Records[0].Partition))
		if done, _ := strconv.Atoi(string(n)); err == nil && done >= simTicks {
			return res, nil
		}
		b.Records[0].Key = tickKey(b.Records[0].Partition)
		res.Wake = time.Now().Add(4 * time.Millisecond)
	}
	over := map[string]int{} // this call's changes
	for i := range b.Records {
		r := &b.Records[i]
		n, ok := over[string(r.Key)]
		if !ok {
			value, err := c.agent.view.TableGet(r.Partition, 0, r.Partition, r.Key)
			if err != nil {
				res.Failures = append(res.Failures, record.Failure{Record: int32(i), Kind: record.FailureCode, Type: "RuntimeError", Message: err.Error()})
				continue
			}
			n, _ = strconv.Atoi(string(value))
		}
		n++
		over[string(r.Key)] = n
		res.Changes = append(res.Changes, record.Change{Record: int32(i), Partition: record.RecordPartition, Key: r.Key, Value: fmt.Append(nil, n)})
		res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: string(r.Key), Key: fmt.Append(nil, n)})
	}
	return res, nil
}

// simProcess is one engine over the simulated world.
type simProcess struct {
	app    *App
	kafka  *simKafka
	feeds  [simPartitions]laneFeed
	dead   atomic.Bool
	cancel context.CancelFunc
	kill   context.CancelFunc
	ended  chan struct{}
	failed atomic.Pointer[error]
}

func startSim(t *testing.T, g *rand.Rand, k *simKafka, stores *mem.Stores) *simProcess {
	p := &simProcess{kafka: k, ended: make(chan struct{})}
	k.mu.Lock() // a new session ends what an earlier one left open
	k.open, k.prepared = nil, nil
	k.settle(false)
	k.mu.Unlock()
	table := plan.Table{Name: "counts", Label: "table counts", Guest: abi.Table{Changelog: simLog}}
	a := &App{
		cfg: config.Config{QueueRecordsMax: 1000}, plan: &plan.Plan{Tables: []plan.Table{table}}, log: slog.New(slog.DiscardHandler),
		intake: newIntake(1000), feeds: map[record.Partition][]laneFeed{}, stop: func() {},
	}
	p.app = a
	a.tables = newTables(stores, k.logs, "group", a.plan.Tables, a.log, a.tablesReady)
	a.tables.tuning.pause, a.tables.tuning.pauseMax = 10*time.Millisecond, 100*time.Millisecond
	ends := simEnds{k, &p.dead}
	var sending context.Context
	sending, p.kill = context.WithCancel(context.Background())
	a.commits = &committer{
		exactlyOnce: true, producer: ends, member: simGroup{ends}, sending: sending, feeds: a.assigned, lanes: a.allLanes,
		fail: func(err error) { p.failed.CompareAndSwap(nil, &err) }, released: a.signal, log: a.log,
		running: make(chan struct{}, 1), committed: map[record.Partition]broker.Position{}, now: make(chan struct{}, 1), every: 1 << 40,
		current: newEpoch(sending, false),
	}
	a.commits.shareFailed = func(s *share, err error) {
		for range 100 { // steps begin meanwhile, if they can
			runtime.Gosched()
		}
		a.shareFailed(s, err)
	}
	a.tables.Start([]int32{simPartitions})
	ag := newAgent(a, &plan.Agent{Name: "count", Tables: []plan.TableUse{{Declared: true}}, OnError: plan.Policy{Attempts: 1, Action: plan.Skip}})
	ag.view = a.tables.view(ag.tables)
	ag.runs(&counting{agent: ag})
	workers := 1 + g.IntN(simPartitions)
	for slot := range workers {
		ag.lanes = append(ag.lanes, newLane(slot, a.commits, a.intake, limits{records: 1 + g.IntN(12), bytes: 1 << 20}))
	}
	a.agents, a.lanes = []*agent{ag}, ag.lanes
	if err := a.commits.begin(sending); err != nil {
		t.Fatal(err)
	}
	for n := range int32(simPartitions) {
		p.assign(ag, n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() {
		defer close(p.ended)
		a.commits.loop(ctx, 20*time.Millisecond)
	}()
	for _, l := range ag.lanes {
		go func() {
			if err := l.run(ctx, sending); err != nil {
				p.failed.CompareAndSwap(nil, &err)
			}
		}()
	}
	return p
}

// assign gives the process a partition from its stored position on.
func (p *simProcess) assign(ag *agent, n int32) {
	a := p.app
	at := record.Partition{Topic: "in", Number: n}
	l := ag.lanes[int(n)%len(ag.lanes)]
	f := l.assign(ag, at)
	lf := laneFeed{l, f}
	a.mu.Lock()
	a.feeds[at] = []laneFeed{lf}
	a.mu.Unlock()
	a.tables.Acquire(n, []int{0}, []record.Partition{at})
	stored := p.kafka.stored(at)
	p.kafka.mu.Lock()
	a.commits.found(map[record.Partition]broker.Position{at: p.kafka.positions[at]})
	p.kafka.mu.Unlock()
	l.position(f, stored)
	if rest := p.kafka.input[n][stored:]; len(rest) > 0 {
		l.put(f, slices.Clone(rest), int64(len(p.kafka.input[n])))
	}
	p.feeds[n] = lf
	a.begin([]laneFeed{lf})
}

// lose takes a partition away without warning.
func (p *simProcess) lose(n int32) *agent {
	lf := p.feeds[n]
	p.app.commits.drop(p.app.commits.sending, map[*lane][]*feed{lf.lane: {lf.feed}})
	return p.release(n)
}

// revoke has a partition given up within a time that may be too short.
func (p *simProcess) revoke(n int32, within time.Duration) *agent {
	lf, until := p.feeds[n], time.Now().Add(within)
	ctx, cancel := context.WithDeadline(p.app.commits.sending, until)
	defer cancel()
	p.app.commits.handOver(ctx, map[*lane][]*feed{lf.lane: {lf.feed}}, until)
	return p.release(n)
}

func (p *simProcess) release(n int32) *agent {
	a, lf := p.app, p.feeds[n]
	a.mu.Lock()
	delete(a.feeds, lf.feed.partition)
	a.mu.Unlock()
	lf.lane.remove([]*feed{lf.feed})
	lf.lane.release()
	a.tables.Release(n, []int{0})
	a.commits.forget([]record.Partition{lf.feed.partition})
	return a.agents[0]
}

// crash ends the process as SIGKILL does: nothing it still does reaches the world.
func (p *simProcess) crash(stores *mem.Stores) {
	p.dead.Store(true)
	p.cancel()
	p.kill()
	p.app.signal()
	<-p.ended
	stores.Crash()
	_ = p.app.tables.Close(context.Background())
	time.Sleep(time.Second) // its goroutines end
}

// Exactly once, whatever goes wrong.
func TestSim(t *testing.T) {
	first, n := int64(0), *seedsOfSim
	if *seedOfSim >= 0 {
		first, n = *seedOfSim, 1
	}
	for seed := first; seed < first+n; seed++ {
		synctest.Test(t, func(t *testing.T) {
			simulate(t, seed)
			if t.Failed() {
				t.Fatalf("again: go test ./engine -run TestSim -seed %d", seed)
			}
		})
	}
}

func simulate(t *testing.T, seed int64) {
	g := rand.New(rand.NewPCG(uint64(seed), 11))
	k := newSimKafka(g)
	k.ack = time.Duration(g.IntN(5)) * time.Millisecond
	stores := mem.New()
	var fault atomic.Pointer[string] // operation that fails once
	stores.Fault = func(op, _ string, _ int32) error {
		if want := fault.Load(); want != nil && *want == op && fault.CompareAndSwap(want, nil) {
			return fmt.Errorf("%s: %w", op, state.ErrDisk)
		}
		return nil
	}
	p := startSim(t, g, k, stores)
	done := func() (n int64) {
		for i := range int32(simPartitions) {
			n += k.stored(record.Partition{Topic: "in", Number: i})
		}
		return n
	}
	for began := time.Now(); done() < simRecords; {
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("stands at %d of %d records", done(), simRecords)
		}
		time.Sleep(time.Duration(g.IntN(40)) * time.Millisecond)
		k.mu.Lock()
		switch g.IntN(14) {
		case 0:
			k.commit, k.lost = func() error { return fmt.Errorf("%w: chosen", broker.ErrNotCommitted) }, false
		case 1, 2:
			k.commit, k.lost = func() error { return errors.New("no answer") }, g.IntN(2) == 0
		case 3:
			k.refuses = errors.New("chosen")
		}
		k.mu.Unlock()
		switch g.IntN(20) {
		case 0, 1:
			p.crash(stores)
			p = startSim(t, g, k, stores)
		case 2, 3:
			n := g.Int32N(simPartitions)
			p.assign(p.lose(n), n)
		case 4, 5:
			n := g.Int32N(simPartitions)
			p.assign(p.revoke(n, time.Duration(g.IntN(8))*time.Millisecond), n)
		case 6:
			op := []string{"apply", "read", "open", "flush"}[g.IntN(4)]
			fault.Store(&op)
		}
		if err := p.failed.Load(); err != nil {
			t.Fatalf("the app stopped: %v", *err)
		}
	}
	fault.Store(nil)
	time.Sleep(5 * time.Second)
	check(t, k, stores, p)
	p.crash(stores)
}

func check(t *testing.T, k *simKafka, stores *mem.Stores, p *simProcess) {
	t.Helper()
	want := map[string]int{}
	for _, rs := range k.input {
		for _, r := range rs {
			want[string(r.Key)]++
		}
	}
	for p := range int32(simPartitions) {
		want[string(tickKey(p))] = simTicks
	}
	fold := map[string]string{}
	k.logs.mu.Lock()
	for _, part := range k.logs.topics[simLog].parts {
		for _, r := range part.records {
			fold[string(r.Key)] = string(r.Value)
		}
	}
	k.logs.mu.Unlock()
	for user, n := range want {
		if got := k.keys(user); !slices.Equal(got, offsets(1, int64(n)+1)) {
			t.Errorf("outputs of %s: %v, want 1 to %d", user, got, n)
		}
		if fold[user] != fmt.Sprint(n) {
			t.Errorf("the changelog ends with %q of %s, want %d", fold[user], user, n)
		}
		number := int32(user[len(user)-1]-'0') % simPartitions
		store, _ := p.app.tables.part(0, number).Store()
		if store == nil {
			t.Fatalf("partition %d is not restored", number)
		}
		if got, err := store.Get([]byte(user)); err != nil || string(got) != fmt.Sprint(n) {
			t.Errorf("the store has %q of %s, want %d (%v)", got, user, n, err)
		}
	}
}
