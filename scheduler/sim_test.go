package scheduler

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// The simulation: clients, a broker, and workers that host the scheduler, on a virtual clock and from one seed. Requests come
// twice and out of order; workers crash between any two steps, hand partitions over, have clocks that are wrong and jump;
// transactions abort; the broker refuses messages. What was committed is checked, event by event, against a model (model_test.go)
// that was written from doc.go and the specification and shares no code with the package.

var (
	simSeed  = flag.Uint64("seed", 0, "run this seed of the simulation only, and tell what happens")
	simSeeds = flag.Int("seeds", 300, "number of seeds of the simulation")
)

// A message that is lost, sent twice or sent early is what this package is there to prevent.
func TestSim(t *testing.T) {
	if *simSeed != 0 {
		w := newWorld(*simSeed)
		w.log = func(format string, args ...any) { t.Logf(format, args...) }
		if err := w.run(); err != nil {
			t.Fatal(err)
		}
		return
	}
	total := newTally()
	base := uint64(1)
	if os.Getenv("SIM_RANDOM") != "" {
		base = rand.Uint64() >> 16
	}
	begin := time.Now()
	for seed := base; seed < base+uint64(*simSeeds); seed++ {
		w := newWorld(seed)
		if err := w.run(); err != nil {
			t.Fatalf("%v\nreplay: go test ./scheduler -run TestSim -v -seed %d", err, seed)
		}
		total.add(w.tally)
	}
	t.Logf("%d seeds in %s: %s", *simSeeds, time.Since(begin).Round(time.Millisecond), total)
	for what, n := range total {
		if n == 0 && *simSeeds >= 300 {
			t.Errorf("no seed had a %s: the simulation does not reach what it should", what)
		}
	}
}

// tally counts what happened, to show that it did.
type tally map[string]int

func newTally() tally {
	t := tally{}
	for _, what := range []string{
		"crash", "crash after commit", "abort", "hand over", "clock back", "clock ahead", "refused", "refused for good", "commit",
		"duplicate", "late request", "delivery", "firing", "firing skipped", "firing cancelled",
		"accepted", "replaced", "cancelled", "rejected", "paused", "resumed", "expired",
		"SAME", "NOT_FOUND", "ALREADY_SENT", "SUPERSEDED", "REPEATED", "SAME_STATE", "DUPLICATE_ID",
	} {
		t[what] = 0
	}
	return t
}

func (t tally) add(o tally) {
	for what, n := range o {
		if what != "" {
			t[what] += n
		}
	}
}

func (t tally) String() string {
	var b strings.Builder
	for _, what := range sortedKeys(t) {
		fmt.Fprintf(&b, "%s %d, ", what, t[what])
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// world is everything outside of the package. Its broker keeps committed records only.
type world struct {
	rng      *rand.Rand
	s        Settings
	log      func(string, ...any)
	tally    tally
	clock    int64 // true time, milliseconds
	direct   bool  // requests are received, not distributed
	grain    int64 // of all times: a coarse one has many at the same moment
	requests [][]record.Record
	asked    []map[int64]*ask // what the records of requests mean, by offset
	held     []*ask           // made, but not at the broker yet
	actions  [][]record.Record
	parts    []*part
	models   []*model
	workers  []*worker
	next     int // number of the next request
}

// worker is a process: a clock, and partitions.
type worker struct {
	offset int64 // its clock minus true time
}

// part is one partition of the requests, of the actions and of the table.
type part struct {
	number    int
	owner     *worker
	stores    *mem.Stores
	store     state.Store
	staged    *state.Staged
	changelog [][]state.Change
	read      [2]int64 // committed position in requests and actions
	at        [2]int64 // position with what is staged
	wake      int64    // when to dispatch; 0: never
	epoch     []event  // since the last commit
	refusals  []Refusal
}

// event is one step of a partition, as far as the model is concerned.
type event struct {
	now      int64
	requests []record.Record
	direct   int32 // the partition plus one, if requests that belong there are taken in
	intake   []record.Record
	dispatch bool
	cleaned  [][]byte // keys whose rows are gone
	outcomes []Outcome
	outputs  []record.Output
	messages []*Message // that outputs deliver, by Output.Record
	retrying bool       // messages that were refused are planned anew
}

// view is how the host lets the scheduler read what is staged.
type view struct{ *state.Staged }

func (v view) Scan(prefix, from []byte) Iterator {
	return v.Staged.Scan(state.Range{Prefix: prefix, From: from})
}

func newWorld(seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 0x5eed))
	w := &world{rng: rng, log: func(string, ...any) {}, tally: newTally(), grain: []int64{1, 500}[rng.IntN(2)]}
	w.clock = 1772352000000 + w.span(1000)
	w.s = Defaults("sim")
	w.s.Partitions = int32(1 + rng.IntN(3))
	w.s.AtLeastOnce = rng.IntN(4) == 0
	w.s.Replace = rng.IntN(3) == 0
	w.s.Provenance = rng.IntN(2) == 0
	w.s.BatchMessages = []int{1, 2, 7, 1000}[rng.IntN(4)]
	w.s.BatchBytes = []int{1, 300, 1 << 20}[rng.IntN(3)]
	w.s.Interleave = rng.IntN(4) == 0
	w.s.Remember = time.Duration(rng.IntN(30)) * time.Second
	w.s.RetryMax = rng.IntN(3)
	w.s.Cron = true
	w.s.CronMinGap = 2 * time.Second
	w.s.CronGrace = time.Duration(rng.IntN(20)) * time.Second
	w.s.CronReplayBack = time.Duration(rng.IntN(120)) * time.Second
	if rng.IntN(3) == 0 {
		w.s.Results = "results"
	}
	w.direct = rng.IntN(2) == 0
	for range 1 + rng.IntN(3) {
		w.workers = append(w.workers, &worker{offset: w.span(3000) - 1500})
	}
	n := int(w.s.Partitions)
	w.requests, w.actions = make([][]record.Record, n), make([][]record.Record, n)
	for i := range n {
		w.asked = append(w.asked, map[int64]*ask{})
		p := &part{number: i, stores: mem.New()}
		w.parts = append(w.parts, p)
		w.models = append(w.models, newModel(&w.s, w.tally))
		w.assign(p)
	}
	return w
}

// span is a time below n.
func (w *world) span(n int64) int64 { return w.rng.Int64N(n/w.grain) * w.grain }

// assign gives a partition to some worker, which restores the table from the changelog.
func (w *world) assign(p *part) {
	p.owner = w.workers[w.rng.IntN(len(w.workers))]
	store, err := p.stores.Open("timetable", int32(p.number))
	if err != nil {
		panic(err)
	}
	for at := store.Offset(); at < int64(len(p.changelog)); at++ {
		if err := store.Apply(p.changelog[at], at+1); err != nil {
			panic(err)
		}
	}
	p.store, p.staged = store, state.NewStaged(store)
	p.restart()
}

// restart begins anew from what was committed.
func (p *part) restart() {
	p.at, p.epoch, p.wake = p.read, nil, 1
}

// crash ends a worker's hold of a partition; its store is left as of some moment.
func (w *world) crash(p *part) {
	if w.rng.IntN(2) == 0 {
		if err := p.store.Flush(); err != nil {
			panic(err)
		}
	}
	p.stores.Crash()
	p.refusals = nil
	w.assign(p)
}

func (w *world) run() error {
	steps := 150 + w.rng.IntN(250)
	for range steps {
		if err := w.step(); err != nil {
			return err
		}
	}
	return w.settle()
}

// step is one thing that happens somewhere.
func (w *world) step() error {
	p := w.parts[w.rng.IntN(len(w.parts))]
	switch n := w.rng.IntN(100); {
	case n < 25:
		w.client()
	case n < 35:
		w.clock += w.span(2000)
	case n < 36:
		w.clock += w.span(100_000) // nothing works for a while
	case n < 38:
		jump := w.span(20_000) - 10_000
		p.owner.offset += jump
		if jump < 0 {
			w.tally["clock back"]++
		} else {
			w.tally["clock ahead"]++
		}
		w.log("clock of the owner of %d jumps by %d", p.number, jump)
		for _, q := range w.parts {
			q.wake = 1 // a host looks again when its clock was set
		}
	case n < 41:
		w.tally["crash"]++
		w.log("crash: partition %d", p.number)
		w.crash(p)
	case n < 44:
		w.tally["abort"]++
		w.log("abort: partition %d", p.number)
		p.staged.Abort()
		p.restart()
		if w.s.AtLeastOnce {
			p.refusals = nil // of steps that are gone
		}
	case n < 46:
		if err := w.commit(p); err != nil {
			return err
		}
		w.tally["hand over"]++
		if err := p.store.Close(); err != nil {
			return err
		}
		p.refusals = nil
		w.assign(p)
	case n < 58:
		return w.commit(p)
	case n < 61:
		return w.clean(p)
	case n < 80:
		return w.dispatch(p)
	case n < 90:
		return w.distribute(p)
	default:
		return w.intake(p)
	}
	return nil
}

func (w *world) now(p *part) time.Time { return time.UnixMilli(w.clock + p.owner.offset) }

func (w *world) take(log []record.Record, at *int64) []record.Record {
	n := min(int64(1+w.rng.IntN(8)), int64(len(log))-*at)
	batch := log[*at : *at+n]
	*at += n
	return batch
}

func (w *world) distribute(p *part) error {
	batch := w.take(w.requests[p.number], &p.at[0])
	if !w.direct {
		w.keep(p, w.s.Distribute(batch, w.now(p)), event{requests: batch})
		return nil
	}
	st, err := w.s.Receive(view{p.staged}, int32(p.number), batch, w.now(p))
	if err != nil {
		return err
	}
	w.keep(p, st, event{requests: batch, direct: int32(p.number) + 1})
	p.plan(st.Wake)
	return nil
}

func (w *world) intake(p *part) error {
	batch := w.take(w.actions[p.number], &p.at[1])
	st, err := w.s.Intake(view{p.staged}, batch, w.now(p))
	if err != nil {
		return err
	}
	w.keep(p, st, event{intake: batch})
	p.plan(st.Wake)
	return nil
}

func (p *part) plan(wake time.Time) {
	if !wake.IsZero() && (p.wake == 0 || wake.UnixMilli() < p.wake) {
		p.wake = wake.UnixMilli()
	}
}

// dispatch is what a host's timer does: nothing while it is not time.
func (w *world) dispatch(p *part) error {
	if w.s.AtLeastOnce && len(p.refusals) > 0 {
		st, err := w.s.Refused(view{p.staged}, p.refusals, w.now(p))
		if err != nil {
			return err
		}
		p.refusals = nil
		w.keep(p, st, event{retrying: true})
		p.plan(st.Wake)
		return nil
	}
	if p.wake == 0 || p.wake > w.now(p).UnixMilli() {
		return nil
	}
	st, err := w.s.Dispatch(view{p.staged}, p.refusals, w.now(p))
	if err != nil {
		return err
	}
	p.wake = 0
	p.plan(st.Wake)
	w.keep(p, st, event{dispatch: true, messages: st.Messages})
	return nil
}

func (w *world) clean(p *part) error {
	st, err := w.s.Clean(view{p.staged}, w.now(p))
	if err != nil {
		return err
	}
	var cleaned [][]byte
	for _, c := range st.Changes {
		if c.Value == nil && c.Key[0] != spaceForget {
			cleaned = append(cleaned, c.Key)
		}
	}
	w.keep(p, st, event{cleaned: cleaned})
	return nil
}

// keep makes a step part of the running transaction. Without transactions its outputs are out at once.
func (w *world) keep(p *part, st Step, e event) {
	e.now, e.outcomes, e.outputs = w.now(p).UnixMilli(), st.Outcomes, st.Outputs
	changes := make([]state.Change, len(st.Changes))
	for i, c := range st.Changes {
		changes[i] = state.Change{Key: c.Key, Value: c.Value}
	}
	p.staged.Stage(changes)
	if w.s.AtLeastOnce {
		w.send(&e)
		for _, o := range e.outputs {
			if refused, permanent := w.refuses(o); refused && e.dispatch && o.Record >= 0 {
				p.refusals = append(p.refusals, Refusal{Message: e.messages[o.Record], Reason: "refused", Permanent: permanent})
			}
		}
	}
	p.epoch = append(p.epoch, e)
}

// send appends the outputs for the actions to their topic.
func (w *world) send(e *event) {
	for _, o := range e.outputs {
		if o.Topic == w.s.Actions {
			w.append(o)
		}
	}
}

func (w *world) append(o record.Output) {
	log := &w.actions[o.Partition]
	*log = append(*log, record.Record{Topic: o.Topic, Partition: o.Partition, Offset: int64(len(*log)), Timestamp: o.Timestamp, Key: o.Key, Value: o.Value, Headers: o.Headers})
}

// refuses is the broker: of topic "gone" it takes nothing, of "flaky" only now and then.
func (w *world) refuses(o record.Output) (refused, permanent bool) {
	switch o.Topic {
	case "gone":
		return true, true
	case "flaky":
		return w.rng.IntN(2) == 0, false
	}
	return false, false
}

var errModel = errors.New("the model disagrees")

// commit ends the transaction of a partition.
func (w *world) commit(p *part) error {
	if len(p.epoch) == 0 {
		return nil
	}
	if !w.s.AtLeastOnce {
		var refusals []Refusal
		for _, e := range p.epoch {
			for _, o := range e.outputs {
				if refused, permanent := w.refuses(o); refused && o.Record >= 0 && e.dispatch {
					refusals = append(refusals, Refusal{Message: e.messages[o.Record], Reason: "refused", Permanent: permanent})
				}
			}
		}
		if len(refusals) > 0 {
			w.log("refused: %d messages of partition %d", len(refusals), p.number)
			p.staged.Abort()
			p.restart()
			p.refusals = append(p.refusals, refusals...)
			return nil
		}
	} else if len(p.refusals) > 0 { // their outputs are not acknowledged: what they are of must not be committed without them
		if err := w.dispatch(p); err != nil {
			return err
		}
	}
	w.tally["commit"]++
	p.refusals = nil
	set := p.staged.Freeze()
	if set != nil {
		p.changelog = append(p.changelog, set.Changes)
	}
	m := w.models[p.number]
	for i := range p.epoch {
		e := &p.epoch[i]
		if !w.s.AtLeastOnce {
			w.send(e)
		}
		if err := m.event(w, e); err != nil {
			return fmt.Errorf("partition %d: %w: %w", p.number, errModel, err)
		}
	}
	p.epoch = nil
	positions := !w.s.AtLeastOnce || w.rng.IntN(4) > 0
	if positions {
		p.read = p.at
	}
	if w.rng.IntN(10) == 0 || !positions { // nobody lives to see it
		w.tally["crash after commit"]++
		w.crash(p)
		return nil
	}
	if set != nil {
		if err := p.staged.Commit(set, int64(len(p.changelog))); err != nil {
			return err
		}
	}
	return w.inspect(p)
}

// inspect checks the invariants of doc.go in a partition that has nothing staged.
func (w *world) inspect(p *part) error {
	raw, err := p.store.Get(headKey)
	if err != nil {
		return err
	}
	h, err := decodeHead(raw)
	if err != nil {
		return err
	}
	var count, firings int64
	it := p.store.Scan(state.Range{Prefix: []byte{spaceMessage}})
	defer it.Close()
	for it.Next() {
		at, err := locationOf(it.Key())
		if err != nil {
			return err
		}
		m, f, err := decodeMessage(at, it.Value())
		if err != nil {
			return err
		}
		if f != nil {
			firings++
		}
		if count++; at.less(h.Low) {
			return fmt.Errorf("partition %d: a message at %v lies below %v", p.number, at, h.Low)
		}
		if m != nil && m.ID != "" && !m.Loose {
			b, err := p.store.Get(idKey(m.ID))
			if err != nil {
				return err
			}
			if row, err := decodeID(b); err != nil || row.State != pending || row.At != at {
				return fmt.Errorf("partition %d: the message at %v has id %s, which is %+v, %w", p.number, at, m.ID, row, err)
			}
		}
	}
	if h.Count != count {
		return fmt.Errorf("partition %d: the head counts %d messages, there are %d", p.number, h.Count, count)
	}
	crons := p.store.Scan(state.Range{Prefix: []byte{spaceCron}})
	defer crons.Close()
	var active, there int64
	for crons.Next() {
		c, err := decodeCron(crons.Value())
		if err != nil {
			return err
		}
		if c.State < gone {
			there++
		}
		if c.State != pending {
			continue
		}
		active++
		if b, err := p.store.Get(c.At.key(spaceMessage)); err != nil || b == nil {
			return fmt.Errorf("partition %d: cron %q has no firing at %v, %w", p.number, crons.Key(), c.At, err)
		}
	}
	if active != firings || there != h.Crons {
		return fmt.Errorf("partition %d: %d crons of %d are active, there are %d firings; the head counts %d", p.number, active, there, firings, h.Crons)
	}
	return nil
}

// settle lets everything come to its end: then nothing may be left.
func (w *world) settle() error {
	for len(w.held) > 0 {
		w.release(0)
	}
	for _, o := range w.workers {
		o.offset = 0
	}
	for _, p := range w.parts {
		p.wake = 1
	}
	for round := 0; ; round++ {
		if round > 10_000 {
			return errors.New("it does not come to rest")
		}
		idle := true
		for _, p := range w.parts {
			if p.at[0] < int64(len(w.requests[p.number])) || p.at[1] < int64(len(w.actions[p.number])) {
				idle = false
			}
			for _, do := range []func(*part) error{w.distribute, w.intake, w.dispatch, w.commit} {
				if err := do(p); err != nil {
					return err
				}
			}
			idle = idle && len(p.refusals) == 0
		}
		if !idle {
			continue
		}
		next := int64(0)
		for i, p := range w.parts {
			if !w.models[i].waits(w.clock) {
				continue
			}
			if p.wake == 0 {
				return fmt.Errorf("partition %d: %s, but nobody is to wake up", p.number, w.models[i])
			}
			if next == 0 || p.wake < next {
				next = p.wake
			}
		}
		if next == 0 {
			break
		}
		w.clock = max(w.clock, next)
	}
	w.clock += w.s.Remember.Milliseconds() + 1_000_000 // clocks were ahead
	for _, p := range w.parts {
		for begin := len(p.changelog); ; begin = len(p.changelog) {
			if err := errors.Join(w.clean(p), w.commit(p)); err != nil {
				return err
			}
			if begin == len(p.changelog) {
				break
			}
		}
		if err := w.rest(p); err != nil {
			return err
		}
	}
	return nil
}

// rest checks that of ids nothing is left once all is over: what is not forgotten then never is.
func (w *world) rest(p *part) error {
	it := p.store.Scan(state.Range{})
	defer it.Close()
	for it.Next() {
		switch k := it.Key(); k[0] {
		case spaceID, spaceForget:
			return fmt.Errorf("partition %d: row %q is left", p.number, k)
		case spaceMessage:
			if _, f, err := decodeMessage(Location{}, it.Value()); err != nil || f == nil {
				return fmt.Errorf("partition %d: a message is left: %x, %w", p.number, k, err)
			}
		case spaceCron:
			if c, err := decodeCron(it.Value()); err != nil || c.State >= gone {
				return fmt.Errorf("partition %d: cron row %q is left: %+v, %w", p.number, k, c, err)
			}
		}
	}
	return it.Close()
}
