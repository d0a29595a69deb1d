package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// task is the code of an agent that is a KasprTask: a tick is a look at the schedule, and a run when one is due (due.go).
//
// What a run makes, and that it was made, are part of one epoch. A task on the leader keeps its state in the table of tasks, so that
// a leader that comes next knows it, and one that was put out can neither run nor commit: its group's generation is over. Another
// task's state is in memory, one for every number of runs that count, which its feed tells (lane.tick).
//
// A run's failure is its own: it is logged and counted, nothing of it is kept but what it sent with ack, and the next run comes.
type task struct {
	agent *agent
	plan  *plan.Task
	code  caller
	reads viewTables
	// starting is the name of this process while it starts, afterwards empty.
	starting func() string

	feed   *feed               // of the last tick
	since  time.Time           // from then on the runs of the feed are this process's
	drawn  int64               // time of the run that jitter and at are of
	jitter time.Duration       // how much later it comes
	at     time.Time           // drawn on the clock that nobody sets (time.Time's monotonic reading), by which intervals go
	states map[int64]taskState // by the number of runs that count; of a task that is not on the leader

	mu      sync.Mutex
	shown   taskState // guarded by mu; after the last tick here
	next    time.Time // guarded by mu; when the next run is to begin; zero: none is
	begun   int64     // guarded by mu; runs so far, those included that were taken back
	refused int64     // guarded by mu; runs up to this one are not made again
	why     string    // guarded by mu; an output was refused
	late    int64     // guarded by mu; failures that only showed after their run had counted
}

func newTask(ag *agent, p *plan.Task, code caller) *task {
	t := &task{agent: ag, plan: p, code: code, reads: taskTables(ag.app, p), states: map[int64]taskState{}}
	t.starting = func() string {
		if p.OnLeader && !ag.app.led.Load() {
			return ""
		}
		return ag.app.start
	}
	return t
}

// taskTables is what a task reads of tables, and where it writes.
func taskTables(a *App, p *plan.Task) viewTables {
	t := viewTables{app: a}
	for _, u := range p.Tables {
		t.tables = append(t.tables, u.Table)
	}
	return t
}

// wakeMax is how long a task sleeps at most: a clock that is set does not wake anybody.
const wakeMax = time.Minute

// statesMax is how many states are kept to be taken back to. Nobody runs so often within one commit.
const statesMax = 1000

func (t *task) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	res := record.Result{Done: len(b.Records)}
	if !b.Tick || b.Records[0].Partition != 0 {
		return res, nil // nobody should write to the leader's topic
	}
	w := ctx.Value(workKey{}).(*work)
	now := time.Now()
	worked := t.agent.app.seen.worked.Load()
	if w.feed != t.feed || !worked { // what was due before nobody was there to run
		t.feed, t.since = w.feed, now
	}
	before, err := t.state(b, b.Records[0].Partition)
	if err != nil { // the step finds out, too, and has the store restored (lane.trouble)
		t.agent.log.Error("what is remembered of the task cannot be read", "err", err)
		res.Wake = now.Add(time.Second)
		return res, nil
	}
	s, due := before.prepare(t.plan, t.clock(&before, now), t.starting(), before.Due >= milli(t.since))
	if due && s.Pending && t.plan.OnLeader {
		// The next leader must know that somebody was to make the run.
		known, err := t.state(b, committedState)
		if err != nil {
			return res, err
		}
		if !known.Pending || known.Start != s.Start {
			res.Wake = now.Add(noteEvery)
			return res, t.keep(w, b, before, s, &res)
		}
	}
	switch {
	case due && !worked: // and nothing is kept: a run that cannot begin for long is missed
		res.Wake = now.Add(startedEvery)
		return res, nil
	case due && !s.Pending && t.waits(&s) > 0:
		res.Wake = t.wake(&s)
	case due:
		if s, err = t.run(ctx, slot, b, s, &res); err != nil {
			return res, err
		}
		res.Wake = t.wake(&s)
	default:
		res.Wake = t.wake(&s)
	}
	return res, t.keep(w, b, before, s, &res)
}

// waits is how long the next run of the schedule has still to wait, its jitter included.
func (t *task) waits(s *taskState) time.Duration {
	if s.Due != t.drawn {
		now := time.Now()
		t.drawn, t.jitter, t.at = s.Due, 0, now.Add(time.UnixMilli(s.Due).Sub(now))
		if j := t.plan.Schedule.Jitter; j > 0 {
			t.jitter = rand.N(j + 1)
		}
	}
	if t.plan.Schedule.Interval > 0 {
		return time.Until(t.at.Add(t.jitter))
	}
	return time.Until(time.UnixMilli(s.Due).Add(t.jitter))
}

// clock is the time that a state's next run is held against. Of an interval that was seen to begin here it is that of the clock that nobody
// sets; crons go by the clock on the wall.
func (t *task) clock(s *taskState, now time.Time) time.Time {
	if t.plan.Schedule == nil || t.plan.Schedule.Interval == 0 || s.Due == 0 || s.Due != t.drawn {
		return now
	}
	return time.UnixMilli(s.Due).Add(-t.at.Sub(now))
}

// wake is when to look again; zero for never.
func (t *task) wake(s *taskState) time.Time {
	if s.Due == 0 {
		return time.Time{}
	}
	return time.Now().Add(min(max(0, t.waits(s)), wakeMax))
}

// run calls the code. Its outputs and changes are in res, unless it failed.
func (t *task) run(ctx context.Context, slot int, b *record.Batch, s taskState, res *record.Result) (taskState, error) {
	began := time.Now()
	failure, again := t.refusedBefore(s.Runs + 1)
	if !again {
		run := b.Records[0]
		run.Partition = record.RecordPartition // it has none: its tables are elsewhere
		got, err := t.code.Call(ctx, slot, &record.Batch{Tick: true, Records: []record.Record{run}})
		if err != nil {
			return s, err
		}
		res.Elapsed = got.Elapsed
		writes, err := t.reads.place(ctx, got.Changes, true)
		switch {
		case len(got.Failures) > 0:
			f := &got.Failures[0]
			failure = f.Type + ": " + f.Message
			attrs := []any{"operation", f.Operation, "kind", f.Kind.String(), "err", failure}
			if f.Traceback != "" {
				attrs = append(attrs, "traceback", f.Traceback)
			}
			t.agent.log.Error("run failed", attrs...)
		case err != nil:
			failure = "TableWriteError: " + err.Error()
			t.agent.log.Error("run failed", "operation", "table", "err", failure)
		default:
			res.Outputs = append(got.Outputs, writes...)
		}
	}
	return s.ran(t.plan, began, time.Now(), failure), nil
}

// refusedBefore counts a run, and says whether it was made before and will not be made again.
func (t *task) refusedBefore(n int64) (why string, again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = max(t.begun, n)
	if n > t.refused {
		return "", false
	}
	return t.why, true
}

// Refused is timed's. With exactly_once what the runs made since the last commit is taken back, and made again: they are failures
// then, all of them, since it is not known which one's output it was. Without, the run has counted.
func (t *task) Refused(_ record.Partition, out *record.Output, err error) {
	t.agent.log.Error("an output of a run was refused", "topic", out.Topic, "err", err)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.why = fmt.Sprintf("SendError: output to topic %q refused: %v", out.Topic, err)
	if t.agent.app.commits.exactlyOnce {
		t.refused = t.begun
	} else {
		t.late++
	}
}

// committedState reads the state as everybody but the partition's own code sees it.
const committedState = -1

// noteEvery is how often a run at start looks whether its note is committed.
const noteEvery = 20 * time.Millisecond

// state is what is remembered of the task; of one on the leader, as partition as sees it.
func (t *task) state(b *record.Batch, as int32) (s taskState, err error) {
	if !t.plan.OnLeader {
		return t.states[b.Records[0].Offset], nil
	}
	text, err := t.agent.view.TableGet(as, 0, 0, []byte(t.agent.plan.Name))
	if err != nil || text == nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.agent.log.Error("what was remembered of the task cannot be read; it begins anew", "err", err)
		return taskState{}, nil
	}
	return s, nil
}

// keep makes the state the one after this tick.
func (t *task) keep(w *work, b *record.Batch, before, s taskState, res *record.Result) error {
	t.mu.Lock()
	if t.late > 0 {
		s.Failures += t.late
		s.Failure, t.late = t.why, 0
	}
	t.shown, t.next = s, time.Time{}
	if s.Due != 0 {
		t.next = time.UnixMilli(s.Due).Add(t.jitter)
	}
	t.mu.Unlock()
	if s == before {
		return nil
	}
	if t.plan.OnLeader {
		text, err := json.Marshal(s)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		res.Changes = append(res.Changes, record.Change{Partition: record.RecordPartition, Key: []byte(t.agent.plan.Name), Value: text})
		return nil
	}
	n := b.Records[0].Offset
	if s.Runs != before.Runs {
		n++
		w.ran = true
	}
	t.states[n] = s
	delete(t.states, n-statesMax)
	return nil
}

// startTasks gives the tasks that run in every process their feeds.
func (a *App) startTasks() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ag := range a.agents {
		if t := ag.plan.Task; t != nil && !t.OnLeader {
			f := ag.lanes[0].assign(ag, record.Partition{Topic: ag.component})
			f.local = true
			a.local = append(a.local, laneFeed{ag.lanes[0], f})
		}
	}
}

// startedEvery is how often tasks look whether the app has come to work.
const startedEvery = 20 * time.Millisecond

// beginTasks lets tasks run when all assigned partitions are worked on for the first time: tables are there by then. Those on the leader,
// whose feed is a partition's, look for it themselves.
func (a *App) beginTasks(ctx context.Context) {
	if len(a.tasks()) == 0 {
		return
	}
	tick := time.NewTicker(startedEvery)
	defer tick.Stop()
	for {
		if state, _ := a.state(a.feedStates()); state == stateRunning {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	a.seen.worked.Store(true)
	for _, lf := range a.local {
		lf.lane.position(lf.feed, 0)
		lf.lane.begin(lf.feed, nil)
	}
}

// isLeader says whether this process owns the leader's partition.
func (a *App) isLeader() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.feeds[a.leaderPartition()]) > 0
}

// seat is the code of an agent that has none, and reads the leader's topic to own it.
type seat struct{}

func (seat) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	return record.Result{Done: len(b.Records)}, nil // nobody should write there
}

func (a *App) leaderPartition() record.Partition {
	return record.Partition{Topic: plan.LeaderTopic(a.plan.App.ID)}
}

// tasks is the agents' that are one, in their order.
func (a *App) tasks() (list []*task) {
	for _, ag := range a.agents {
		if t, ok := ag.code.(*task); ok {
			list = append(list, t)
		}
	}
	return list
}

// TasksStarted says whether all runs at start are made and committed.
func (a *App) TasksStarted() bool {
	if !a.seen.running.Load() {
		return false
	}
	for _, t := range a.tasks() {
		if t.plan.Schedule != nil && !t.plan.Schedule.AtStart {
			continue
		}
		if t.plan.OnLeader {
			if s, err := t.state(nil, committedState); err != nil || s.Start == "" || s.Pending {
				return false
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, lf := range a.local {
		s := lf.feed.agent.plan.Task.Schedule
		lf.lane.mu.Lock()
		ran := lf.feed.committed > 0
		lf.lane.mu.Unlock()
		if !ran && (s == nil || s.AtStart) {
			return false
		}
	}
	return true
}

// FailedRuns is how many runs of tasks have failed so far; of those on the leader, as far as this process led.
func (a *App) FailedRuns() (n int64) {
	for _, t := range a.tasks() {
		t.mu.Lock()
		n += t.shown.Failures + t.late
		t.mu.Unlock()
	}
	return n
}

// taskStatus is a task as JSON tells it. Of one on the leader it says the rest only there, and counts the runs of all leaders so far.
type taskStatus struct {
	Task     string     `json:"task"`
	OnLeader bool       `json:"onLeader"`
	Here     bool       `json:"here"` // it runs in this process
	Runs     int64      `json:"runs"`
	Failures int64      `json:"failures"`
	Skipped  int64      `json:"skipped"`
	Missed   int64      `json:"missed"`
	Next     *time.Time `json:"nextRun,omitempty"`
	Began    *time.Time `json:"lastRun,omitempty"`
	Ended    *time.Time `json:"lastEnd,omitempty"`
	Success  *time.Time `json:"lastSuccess,omitempty"`
	Error    string     `json:"lastError,omitempty"` // of the last run that failed
}

func (t *task) status(leader bool) taskStatus {
	st := taskStatus{Task: t.agent.plan.Name, OnLeader: t.plan.OnLeader, Here: leader || !t.plan.OnLeader}
	if !st.Here {
		return st
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.shown
	st.Runs, st.Failures, st.Skipped, st.Missed, st.Error = s.Runs, s.Failures+t.late, s.Skipped, s.Missed, s.Failure
	at := func(ms int64) *time.Time {
		if ms == 0 {
			return nil
		}
		moment := time.UnixMilli(ms).UTC()
		return &moment
	}
	st.Began, st.Ended, st.Success = at(s.Began), at(s.Ended), at(s.Succeeded)
	if !t.next.IsZero() {
		st.Next = at(t.next.UnixMilli())
	}
	return st
}

func (a *App) taskStatuses() []taskStatus {
	leader := a.isLeader()
	list := []taskStatus{}
	for _, t := range a.tasks() {
		list = append(list, t.status(leader))
	}
	return list
}
