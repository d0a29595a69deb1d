package engine

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/state"
)

// schedule is the message scheduler of the app: two agents whose code is package scheduler. One sends requests to the partition of
// their id; the other (timed) takes them in as records, and delivers in ticks. Messages are rows of a table like any other, so that
// acceptance, delivery and the position in the input are committed together or not at all.
//
// What is kept here beside the table can be lost: the counts, and which messages the broker has just refused.
type schedule struct {
	app          *App
	log          *slog.Logger
	settings     scheduler.Settings // complete once begin was called, which is before the first step
	requests     int32              // partitions of the requests; with settings
	distributing *agent             // that reads the requests
	table        int                // of the plan
	clean        time.Duration      // between two looks for ids to forget
	noisy        sampler            // what is lost

	mu    sync.Mutex
	parts map[int32]*schedulePart // guarded by mu
}

// schedulePart is one partition of the scheduler. Its owner's lane works on it; refusals and commits come from elsewhere.
type schedulePart struct {
	feed *feed // whose steps these are
	era  int   // of the feed, at the last step

	mu      sync.Mutex
	since   time.Time               // guarded by mu; when work on the partition began here
	looked  time.Time               // guarded by mu; when it was last looked through for what is due
	sending int                     // guarded by mu; messages of steps that are not committed
	cleaned time.Time               // guarded by mu; when ids are looked for again
	refused []scheduler.Refusal     // guarded by mu
	planned []scheduler.Refusal     // guarded by mu; at_least_once: in steps that are not committed
	closed  map[string]*closedTopic // guarded by mu; topics that were refused
	lost    map[string]time.Time    // guarded by mu; outputs but messages that were too large, by their content
	counts  scheduler.Counts        // guarded by mu; of what is committed
}

// closedTopic is a topic that the broker does not take messages for. Each try to send there costs everybody the transaction, so
// there is one now and then.
type closedTopic struct {
	until  time.Time
	pause  time.Duration
	reason string
}

const (
	closedFirst = time.Second      // how long a topic is closed after the first refusal
	closedTop   = 15 * time.Second // less than the last pause of a message: it is not given up without a try after that of another
	refusedMax  = 50_000           // refusals that are remembered; of others we are told again
	lookEvery   = time.Second      // how late a jump of the clock is noticed
	cleanPause  = 10 * time.Millisecond
)

// rowRoom is what a row of the table has beside its message, at most.
const rowRoom = 3 << 10

// hostSchedule gives one of the scheduler's agents its code.
func (a *App) hostSchedule(ag *agent) {
	if a.schedule == nil {
		a.schedule = newSchedule(a)
	}
	ag.component = "scheduler"
	if ag.plan.Schedule == plan.Distribute {
		a.schedule.distributing = ag
		ag.runs(distributor{a.schedule})
		return
	}
	a.schedule.table = ag.plan.Tables[0].Table
	ag.runs(deliverer{a.schedule})
}

func newSchedule(a *App) *schedule {
	c, id := a.cfg.Scheduler, a.plan.App.ID
	s := scheduler.Defaults(id)
	s.Requests, s.Actions, s.Rejections = plan.ScheduleTopic(id, "requests"), plan.ScheduleTopic(id, "actions"), plan.ScheduleTopic(id, "rejections")
	if c.Results {
		s.Results = plan.ScheduleTopic(id, "results")
	}
	s.AtLeastOnce = a.cfg.ProcessingGuarantee == config.AtLeastOnce
	s.Replace, s.RejectPast = c.DuplicateID == config.DuplicateReplace, c.PastDue == config.PastDueReject
	s.Horizon, s.Remember, s.Provenance, s.Interleave = c.Horizon, c.JanitorHighwaterOffset, c.Provenance, c.Interleave
	s.Cron, s.CronMinGap, s.CronGrace = c.CronEnabled, c.CronMinInterval, c.CronTickInterval
	s.CronReplayBack = time.Duration(c.DispatcherLookbackDays) * 24 * time.Hour
	return &schedule{app: a, log: a.log.With("component", "scheduler"), settings: s, clean: c.JanitorCleanInterval, noisy: sampler{burst: 20, rate: 1}, parts: map[int32]*schedulePart{}}
}

// begin completes the settings with what the topics are.
func (s *schedule) begin() {
	for i := range s.app.plan.Own {
		switch s.app.plan.Own[i].Name {
		case s.settings.Actions:
			s.settings.Partitions = s.app.own[i]
		case s.settings.Requests:
			s.requests = s.app.own[i]
		}
	}
	s.settings.RowBytes = max(1, min(s.settings.RowBytes, s.app.rowBytes(s.table)-rowRoom))
	if s.requests != s.app.counts[s.table] {
		s.distributing.tables = nil // a partition of the requests has no partition of the table beside it
	}
	if err := s.settings.Validate(); err != nil {
		panic("BUG: settings of the scheduler: " + err.Error()) // engine/config and the plan have checked them
	}
}

// route sends requests that the app's own code makes to the partition of their id, so that those about one id stay in their order
// whatever their keys.
func (s *schedule) route(outs []record.Output) {
	for i := range outs {
		o := &outs[i]
		if o.Partition != record.PartitionByKey || o.Topic != s.settings.Requests {
			continue
		}
		for _, h := range o.Headers {
			if h.Key == scheduler.HeaderID && h.Value != nil {
				o.Partition = record.PartitionOf(h.Value, s.requests)
			}
		}
	}
}

func (s *schedule) part(number int32) *schedulePart {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[number]
	if p == nil {
		p = &schedulePart{closed: map[string]*closedTopic{}, lost: map[string]time.Time{}}
		s.parts[number] = p
	}
	return p
}

// count adds outcomes once they are committed.
func (p *schedulePart) count(outcomes []scheduler.Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.Add(outcomes)
}

// send counts messages that leave; what has left for good is taken off again.
func (p *schedulePart) send(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sending += n
}

// rows is a partition of the table as package scheduler reads it.
type rows struct{ state.Reader }

func (r rows) Scan(prefix, from []byte) scheduler.Iterator {
	return r.Reader.Scan(state.Range{Prefix: prefix, From: from})
}

// distributor is the code of the agent that reads the requests. It shares the deliverer's table, which is read and written by one lane.
type distributor struct{ *schedule }

func (d distributor) Call(ctx context.Context, _ int, b *record.Batch) (record.Result, error) {
	w, _ := ctx.Value(workKey{}).(*work)
	number := b.Records[0].Partition
	var st scheduler.Step
	if len(w.shares) == 0 {
		st = d.settings.Distribute(b.Records, time.Now())
	} else {
		var err error
		if st, err = d.settings.Receive(rows{w.shares[0].staged}, number, b.Records, time.Now()); err != nil {
			return record.Result{}, d.app.tables.Distrust(d.table, number, err)
		}
	}
	p := d.part(number)
	res := record.Result{Outputs: d.sendable(p, st.Outputs, anyOutput), Changes: st.Changes, Wake: st.Wake, Done: len(b.Records)}
	if len(st.Outcomes) > 0 {
		res.Kept = func() { p.count(st.Outcomes) }
	}
	return res, nil
}

// deliverer is the code of the agent that owns the messages.
type deliverer struct{ *schedule }

func (d deliverer) Call(ctx context.Context, _ int, b *record.Batch) (record.Result, error) {
	w, _ := ctx.Value(workKey{}).(*work)
	number := b.Records[0].Partition
	p := d.part(number)
	p.follow(w)
	table := rows{w.shares[0].staged}
	var res record.Result
	var err error
	if b.Tick {
		res, err = d.tick(p, table, time.Now())
	} else {
		var st scheduler.Step
		st, err = d.settings.Intake(table, b.Records, time.Now())
		res = record.Result{Outputs: d.sendable(p, st.Outputs, anyOutput), Changes: st.Changes, Wake: st.Wake}
		res.Kept = func() { p.count(st.Outcomes) }
	}
	if err != nil {
		return record.Result{}, d.app.tables.Distrust(d.table, number, err)
	}
	res.Done = len(b.Records)
	return res, nil
}

// tick does one thing that is due. What else is due has its turn at once, records in between.
func (s *schedule) tick(p *schedulePart, table rows, now time.Time) (record.Result, error) {
	refused, clean := p.due(now)
	var st scheduler.Step
	var err error
	all := false // that is due was looked at
	switch {
	case s.settings.AtLeastOnce && slices.ContainsFunc(refused, ofMessage):
		refused = slices.DeleteFunc(refused, func(r scheduler.Refusal) bool { return !ofMessage(r) })
		st, err = s.settings.Refused(table, refused, now)
		st.Wake = now
		if err == nil {
			p.plan(refused)
		}
	case clean:
		st, err = s.settings.Clean(table, now)
		more := !st.Wake.IsZero() && !st.Wake.After(now)
		p.cleanAgain(now, s.clean, more)
		st.Wake = now
	default:
		st, err = s.settings.Dispatch(table, refused, now)
		all = st.Wake.IsZero() || st.Wake.After(now)
	}
	if err != nil {
		return record.Result{}, err
	}
	if again := now.Add(lookEvery); st.Wake.IsZero() || st.Wake.After(again) {
		st.Wake = again // the wall clock may be set, which no timer notices
	}
	res := record.Result{Outputs: s.sendable(p, st.Outputs, ofNoMessage), Changes: st.Changes, Wake: st.Wake}
	for i := range res.Outputs {
		if o := &res.Outputs[i]; o.Record >= 0 {
			o.Of = st.Messages[o.Record]
		}
		res.Outputs[i].Record = 0 // a tick has one record
	}
	for i := range res.Changes {
		res.Changes[i].Record = 0
	}
	p.send(len(st.Messages))
	res.Kept = func() {
		p.send(-len(st.Messages))
		p.count(st.Outcomes)
		p.settled(st, refused, all)
	}
	return res, nil
}

func ofMessage(r scheduler.Refusal) bool { return r.Message != nil }

// follow begins anew when the partition has come back, or what was not committed was taken back.
func (p *schedulePart) follow(w *work) {
	if w.feed == p.feed && w.era == p.era {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.feed != p.feed { // its owner may have been another process in between
		p.refused, p.planned, p.since = nil, nil, time.Now()
	}
	p.refused, p.planned, p.sending = append(p.refused, p.planned...), nil, 0
	p.feed, p.era = w.feed, w.era
	p.cleaned = time.Time{}
}

// due is what a tick has to look at: refusals, and whether ids may be forgotten.
func (p *schedulePart) due(now time.Time) (refused []scheduler.Refusal, clean bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looked = now
	refused = slices.Clone(p.refused)
	for name, t := range p.closed {
		if now.Before(t.until) {
			refused = append(refused, scheduler.Refusal{Topic: name, Reason: t.reason})
		} else if now.Sub(t.until) > 2*closedTop {
			delete(p.closed, name)
		}
	}
	return refused, !now.Before(p.cleaned)
}

func (p *schedulePart) cleanAgain(now time.Time, every time.Duration, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cleaned = now.Add(every); more {
		p.cleaned = now.Add(cleanPause)
	}
}

// plan moves refusals from those to plan for to those that a step not yet committed plans for.
func (p *schedulePart) plan(refused []scheduler.Refusal) {
	these := setOf(refused)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = slices.DeleteFunc(p.refused, func(r scheduler.Refusal) bool { return these[r] })
	p.planned = append(p.planned, refused...)
}

// settled forgets refusals that a committed step has dealt with; all of them when it has looked at all that is due: what it did not find was
// cancelled, or replaced, since. With the clock set back one too many is forgotten, and refused once more.
func (p *schedulePart) settled(st scheduler.Step, refused []scheduler.Refusal, all bool) {
	if len(refused) == 0 {
		return
	}
	type sending struct {
		source scheduler.Source
		due    int64
	}
	dealt := map[sending]bool{}
	for i := range st.Outcomes {
		if o := &st.Outcomes[i]; o.Verdict != scheduler.Delivered {
			dealt[sending{o.Source, o.Due}] = true
		}
	}
	these := setOf(refused)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = slices.DeleteFunc(p.refused, func(r scheduler.Refusal) bool {
		return these[r] && (all || dealt[sending{r.Message.Source, r.Message.Due}])
	})
	p.planned = slices.DeleteFunc(p.planned, func(r scheduler.Refusal) bool { return these[r] })
}

func setOf(refused []scheduler.Refusal) map[scheduler.Refusal]bool {
	set := make(map[scheduler.Refusal]bool, len(refused))
	for _, r := range refused {
		set[r] = true
	}
	return set
}

// Refused is timed's. A message is planned for later, or given up with a rejection. A rejection that is refused is lost, but for the
// log: there is nowhere else to write it.
func (d deliverer) Refused(from record.Partition, out *record.Output, err error) {
	p := d.part(from.Number)
	now := time.Now()
	failure := broker.SendFailure{Err: err}
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := out.Of.(*scheduler.Message)
	if !ok {
		d.lose(p, out, failure, now)
		return
	}
	if len(p.refused) < refusedMax {
		p.refused = append(p.refused, scheduler.Refusal{Message: m, Reason: err.Error(), Permanent: failure.TooLarge()})
	}
	if !failure.TooLarge() && p.close(out.Topic, err, now) {
		d.log.Warn("the broker takes no messages for a topic; they are tried again, then rejected", "topic", out.Topic, "err", err)
	}
}

// Lost is reporting's: rejections and results are lost, not what they tell of. A request that has become too large on its way to the partition of
// its id is lost, too; if it cannot go there for another reason, none can.
func (s *schedule) Lost(from record.Partition, out *record.Output, err error) bool {
	failure := broker.SendFailure{Err: err}
	if out.Topic == s.settings.Actions && !failure.TooLarge() {
		return false
	}
	p := s.part(from.Number)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.lose(p, out, failure, time.Now())
	return true
}

// lose notes an output that is not to be made again. p.mu is held.
func (s *schedule) lose(p *schedulePart, out *record.Output, failure broker.SendFailure, now time.Time) {
	for what, at := range p.lost {
		if now.Sub(at) > closedTop {
			delete(p.lost, what)
		}
	}
	if failure.TooLarge() {
		p.lost[s.content(out)] = now
	} else {
		p.close(out.Topic, failure.Err, now)
	}
	s.logLost(out, failure.Err)
}

// close leaves a topic alone for a while that the broker takes nothing for; it says whether that is new. p.mu is held.
func (p *schedulePart) close(topic string, err error, now time.Time) (first bool) {
	t := p.closed[topic]
	switch {
	case t == nil:
		t, first = &closedTopic{pause: closedFirst}, true
		p.closed[topic] = t
	case now.Before(t.until):
		return false // of the same try
	default:
		t.pause = min(2*t.pause, closedTop)
	}
	t.until, t.reason = now.Add(t.pause), err.Error()
	return first
}

// Which outputs of a step may be left out.
func anyOutput(*record.Output) bool     { return true }
func ofNoMessage(o *record.Output) bool { return o.Record < 0 }

// sendable leaves out what was refused and cannot be helped.
func (s *schedule) sendable(p *schedulePart, outs []record.Output, may func(*record.Output) bool) []record.Output {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lost)+len(p.closed) == 0 {
		return outs
	}
	now := time.Now()
	return slices.DeleteFunc(outs, func(o record.Output) bool {
		if !may(&o) {
			return false
		}
		if _, lost := p.lost[s.content(&o)]; lost {
			return true
		}
		t := p.closed[o.Topic]
		if t == nil || o.Topic == s.settings.Actions || !now.Before(t.until) {
			return false
		}
		s.logLost(&o, errors.New(t.reason))
		return true
	})
}

// content is what an output says again when it is made anew. A result has another time then.
func (s *schedule) content(o *record.Output) string {
	if o.Topic == s.settings.Results {
		return o.Topic + "\x00" + string(o.Key)
	}
	return o.Topic + "\x00" + string(o.Key) + "\x00" + string(o.Value)
}

func (s *schedule) logLost(o *record.Output, err error) {
	if left, ok := s.noisy.allow(time.Now()); ok {
		s.log.Error("a rejection, result or request cannot be written, it is lost", "topic", o.Topic, "record", string(o.Value), "err", err, "notShown", left)
	}
}

// Overdue tells whether a message that is due has not been delivered, or a partition of the scheduler is not worked on here. It
// speaks of what is committed when it is called.
func (a *App) Overdue(ctx context.Context) (bool, error) {
	s := a.schedule
	if s == nil || !a.seen.running.Load() {
		return false, nil
	}
	if err := a.commits.lock(ctx); err != nil { // what a commit has made durable is in the stores when it is over
		return false, err
	}
	defer a.commits.unlock()
	now := time.Now()
	for number := range a.counts[s.table] {
		store, _ := a.tables.part(s.table, number).Store()
		if store == nil {
			return true, nil
		}
		st, err := scheduler.Look(rows{store}, now)
		if errors.Is(err, state.ErrClosed) || st.Lag > 0 {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}
