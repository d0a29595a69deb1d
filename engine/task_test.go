package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kerr"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// fakeRuns is the code of a task: run n sends n to the topic "runs"; fails says which runs fail.
type fakeRuns struct {
	took  time.Duration
	fails func(n int) bool

	mu sync.Mutex
	n  int // guarded by mu
}

func (c *fakeRuns) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	time.Sleep(c.took)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if c.fails != nil && c.fails(c.n) {
		return record.Result{Done: 1, Failures: []record.Failure{{Kind: record.FailureCode, Type: "ValueError", Message: "no"}}}, nil
	}
	return record.Result{Done: 1, Outputs: []record.Output{{Topic: "runs", Key: fmt.Append(nil, c.n)}}}, nil
}

// localTask is a bench whose lane runs a task of every process; its partition in0 is there to prove transactions.
func localTask(t *testing.T, p *plan.Task, code caller, exactlyOnce bool) (*bench, *task) {
	l := testLane(t, nil, plan.Agent{Task: p}, limits{}, exactlyOnce)
	l.app.start = "me"
	run := newTask(l.agent, p, code)
	l.agent.runs(run)
	l.agent.lanes = []*lane{l.lane}
	l.app.agents = []*agent{l.agent}
	other := newAgent(l.app, &plan.Agent{Name: "b"})
	other.runs(&fakeCode{})
	f := l.assign(other, in0)
	l.app.feeds[in0] = []laneFeed{{l.lane, f}}
	l.position(f, 7)
	l.begin(f, nil)
	l.app.startTasks()
	l.app.seen.worked.Store(true)
	for _, lf := range l.app.local {
		lf.lane.position(lf.feed, 0)
		lf.lane.begin(lf.feed, nil)
	}
	return l, run
}

// every is a task with an interval.
func every(d time.Duration) *plan.Task {
	return &plan.Task{Schedule: &plan.Schedule{Interval: d, Expression: "every " + d.String()}}
}

// A task must go on after a run that failed, with what happened in its status.
func TestTaskFailure(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l, run := localTask(t, every(time.Second), &fakeRuns{fails: func(n int) bool { return n == 2 }}, exactlyOnce)
		stop := l.start()
		time.Sleep(4500 * time.Millisecond)
		if err := stop(); err != nil || l.failed != nil {
			t.Fatal(err, l.failed)
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(l.kafka.keys("runs")); got != "[1 3 4]" {
			t.Errorf("sent %s", got)
		}
		s := run.status(false)
		if s.Runs != 4 || s.Failures != 1 || s.Error != "ValueError: no" || s.Next == nil || s.Ended == nil || l.app.FailedRuns() != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// What a run sent and the fact that it was made must count together: after a rollback the run is made again, and not a second time
// after a commit whose answer was lost.
func TestTaskRollback(t *testing.T) {
	for _, lost := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l, run := localTask(t, every(time.Second), &fakeRuns{}, true)
			stop := l.start()
			time.Sleep(1500 * time.Millisecond)
			l.kafka.mu.Lock()
			l.kafka.commit, l.kafka.lost = func() error { return errors.New("no answer") }, lost
			l.kafka.mu.Unlock()
			time.Sleep(3 * time.Second)
			if err := stop(); err != nil || l.failed != nil {
				t.Fatal(err, l.failed)
			}
			if err := l.commits.commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			want := "[1 2 3 4]"
			if !lost {
				want = "[1 3 4 5]" // the code's second run did not count, the task's did
			}
			if got := fmt.Sprint(l.kafka.keys("runs")); got != want {
				t.Errorf("lost %v: sent %s, want %s", lost, got, want)
			}
			if s := run.status(false); s.Runs != 4 {
				t.Errorf("lost %v: %d runs count, want 4", lost, s.Runs)
			}
		})
	}
}

// An output the broker refuses is a failure of its run: it must not be made for ever, nor keep the next ones from being made.
func TestTaskRefusedOutput(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l, run := localTask(t, every(time.Second), &fakeRuns{}, exactlyOnce)
		l.kafka.refuse = func(o *record.Output) error {
			if string(o.Key) == "2" {
				return kerr.MessageTooLarge
			}
			return nil
		}
		stop := l.start()
		time.Sleep(4500 * time.Millisecond)
		if err := stop(); err != nil || l.failed != nil {
			t.Fatal(err, l.failed)
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(l.kafka.keys("runs")); got != "[1 3 4]" {
			t.Errorf("sent %s", got)
		}
		if s := run.status(false); s.Runs != 4 || s.Failures != 1 || !strings.HasPrefix(s.Error, "SendError: ") {
			t.Errorf("status %+v", s)
		}
	})
}

// A task that is late because its worker was busy is late, no more.
func TestTaskOfLongRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := cronTask(t, "* * * * * */10", "UTC") // a bubble's clock begins at midnight
		l, run := localTask(t, p, &fakeRuns{took: 12 * time.Second}, true)
		stop := l.start()
		time.Sleep(45 * time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := run.status(false); got.Runs != 2 || got.Skipped != 2 || got.Missed != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Jitter is there to spread runs: each of a schedule must come between its time and the jitter's end, at different moments, and none be
// lost or made twice for it.
func TestTaskJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const jitter, step = 4 * time.Second, 10 * time.Second
		p := cronTask(t, "* * * * * */10", "UTC")
		p.Schedule.Jitter = jitter
		began := time.Now() // midnight
		var at []time.Duration
		code := &fakeRuns{fails: func(int) bool { at = append(at, time.Since(began)); return false }}
		l, run := localTask(t, p, code, true)
		stop := l.start()
		var shown []time.Duration // when the next run was said to be
		for range 30 {
			time.Sleep(step)
			if next := run.status(false).Next; next != nil {
				shown = append(shown, next.Sub(began))
			}
		}
		time.Sleep(jitter + time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if s := run.status(false); len(at) != 30 || s.Runs != 30 || s.Skipped+s.Missed != 0 {
			t.Fatalf("%d runs, %+v", len(at), s)
		}
		lowest, highest := jitter, time.Duration(0)
		for i, moment := range at {
			late := moment - time.Duration(i+1)*step
			if late < 0 || late > jitter+100*time.Millisecond {
				t.Errorf("run %d came %v after its time", i+1, late)
			}
			lowest, highest = min(lowest, late), max(highest, late)
		}
		if highest-lowest < jitter/4 { // of 30 draws, about once in 10^17
			t.Errorf("all runs came between %v and %v after their time", lowest, highest)
		}
		for i, next := range shown {
			if i > 0 && (next-at[i]).Abs() > 100*time.Millisecond && (next-at[i-1]).Abs() > 100*time.Millisecond {
				t.Errorf("the next run was to be at %v, and came at %v", next, at[i])
			}
		}
	})
}

// Alerts stand on these numbers.
func TestTaskMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		code := &fakeRuns{took: 12 * time.Second, fails: func(n int) bool { return n == 2 }}
		l, run := localTask(t, cronTask(t, "* * * * * */10", "UTC"), code, true)
		stop := l.start()
		time.Sleep(45 * time.Second) // runs from 10 to 22 and from 30 to 42; those of 20 and 40 are skipped
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		shown := run.status(false)
		shown.Task = "report"
		got := taskSeries(t, []taskStatus{shown, {Task: "led", OnLeader: true, Here: true, Missed: 3}, {Task: "elsewhere", OnLeader: true, Runs: 9}}, true)
		want := map[string]float64{
			"kaspr_leader":                                     1,
			"kaspr_task_runs_total report":                     2,
			"kaspr_task_failures_total report":                 1,
			"kaspr_task_skipped_runs_total report":             2,
			"kaspr_task_missed_runs_total report":              0,
			"kaspr_task_last_run_seconds report":               12,
			"kaspr_task_last_success_timestamp_seconds report": float64(began.Unix()) + 22,
			"kaspr_task_next_run_timestamp_seconds report":     float64(began.Unix()) + 50,
			"kaspr_task_runs_total led":                        0,
			"kaspr_task_failures_total led":                    0,
			"kaspr_task_skipped_runs_total led":                0,
			"kaspr_task_missed_runs_total led":                 3,
		}
		for name, v := range want {
			if have, ok := got[name]; !ok || have < v-0.2 || have > v+0.2 {
				t.Errorf("%s is %v (%v), want %v", name, have, ok, v)
			}
			delete(got, name)
		}
		if len(got) > 0 {
			t.Errorf("there are also %v", got)
		}
		if leads := taskSeries(t, nil, false)["kaspr_leader"]; leads != 0 {
			t.Errorf("kaspr_leader is %v for who does not lead", leads)
		}
	})
}

// taskSeries is the values of the series of tasks, by name and task.
func taskSeries(t *testing.T, list []taskStatus, leader bool) map[string]float64 {
	t.Helper()
	c := make(chan prometheus.Metric, 100)
	collection(c).tasks(list, leader)
	close(c)
	values := map[string]float64{}
	for m := range c {
		var out dto.Metric
		if err := m.Write(&out); err != nil {
			t.Fatal(err)
		}
		name := strings.Split(m.Desc().String(), `"`)[1]
		for _, l := range out.GetLabel() {
			name += " " + l.GetValue()
		}
		values[name] = out.GetCounter().GetValue() + out.GetGauge().GetValue()
	}
	return values
}

// leaders is what a task on the leader has of the world: a table of states, in which what a tick changed is seen at once and counts
// with a commit, and one process after the other.
type leaders struct {
	staged, committed map[string][]byte
	broken            error
	restored          time.Time // by then a process that leads has all its tables
}

func (x *leaders) TableGet(own int32, _ int, _ int32, key []byte) ([]byte, error) {
	if x.broken != nil {
		return nil, x.broken
	}
	if own == committedState {
		return x.committed[string(key)], nil
	}
	return x.staged[string(key)], nil
}

func (x *leaders) TableScan(int32, int, int32, []byte, []byte, func(key, value []byte) bool) error {
	panic("BUG: a task scans its states")
}

func (x *leaders) TableInfo(int) (int32, []int32, int64, error) { return 1, []int32{0}, 0, nil }

// agent is a task on the leader, in a process that has come to work.
func (x *leaders) agent(p *plan.Task) *agent {
	ag := newAgent(&App{log: slog.New(slog.DiscardHandler)}, &plan.Agent{Name: "t", Task: p, Tables: []plan.TableUse{{}}})
	ag.app.seen.worked.Store(true)
	ag.view = x
	return ag
}

// lead is one process's time as the leader: ticks as they are asked for, each committed, until the end. started is the process's name if
// it became the leader when it started. What it ran goes into sent.
func (x *leaders) lead(t *testing.T, p *plan.Task, started string, until time.Time, sent *[]string) {
	ag := x.agent(p)
	code := &fakeRuns{}
	run := newTask(ag, p, code)
	run.starting = func() string { return started }
	w := &work{feed: &feed{}}
	for wake := time.Now(); !wake.IsZero() && wake.Before(until); {
		time.Sleep(time.Until(wake))
		ag.app.seen.worked.Store(!time.Now().Before(x.restored))
		res, err := run.Call(context.WithValue(context.Background(), workKey{}, w), 0, &record.Batch{Tick: true, Records: []record.Record{{Offset: -1}}})
		if err != nil {
			t.Fatal(err)
		}
		for range res.Outputs {
			*sent = append(*sent, time.Now().UTC().Format("15:04:05"))
		}
		for _, c := range res.Changes {
			x.staged[string(c.Key)] = c.Value
		}
		x.committed = map[string][]byte{}
		for k, v := range x.staged {
			x.committed[k] = v
		}
		wake = res.Wake
	}
	time.Sleep(time.Until(until))
}

// The next leader must go on where the last one was: no run twice, none lost but those due while nobody led.
func TestLeaderChange(t *testing.T) {
	for _, c := range []struct {
		name string
		task func() *plan.Task
		want string
	}{
		{"cron", func() *plan.Task { return cronTask(t, "* * * * *", "UTC") }, "[00:01:00 00:02:00 00:03:02 00:05:00]"},
		{"interval", func() *plan.Task { return every(time.Minute) }, "[00:01:00 00:02:00 00:03:02 00:04:30 00:05:30]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				midnight := time.Now().Truncate(time.Second)
				x, p := &leaders{staged: map[string][]byte{}}, c.task()
				p.OnLeader = true
				var sent []string
				x.lead(t, p, "a", midnight.Add(2*time.Minute+59*time.Second), &sent)
				time.Sleep(3 * time.Second) // a hand-over over a due time
				x.lead(t, p, "", midnight.Add(3*time.Minute+30*time.Second), &sent)
				time.Sleep(time.Minute) // nobody leads
				x.lead(t, p, "", midnight.Add(5*time.Minute+59*time.Second), &sent)
				if got := fmt.Sprint(sent); got != c.want {
					t.Errorf("ran at %s, want %s", got, c.want)
				}
			})
		})
	}
}

// A leader's tables may take long to be restored. A run before would fail, since it cannot read them: none may begin, and none be lost that
// is not missed.
func TestLeaderAwaitsTables(t *testing.T) {
	minutely := func() *plan.Task { return cronTask(t, "* * * * *", "UTC") }
	for _, c := range []struct {
		name     string
		task     *plan.Task
		restored time.Duration
		want     string
		missed   int64
	}{
		{"at start", &plan.Task{}, 90 * time.Second, "[00:01:30]", 0},
		{"cron", minutely(), 150 * time.Second, "[00:03:00 00:04:00]", 2},
		{"cron, late", minutely(), 122 * time.Second, "[00:02:02 00:03:00 00:04:00]", 1},
		{"cron, made up for", func() *plan.Task { p := minutely(); p.Schedule.MakeUp = true; return p }(), 150 * time.Second, "[00:02:30 00:03:00 00:04:00]", 1},
		{"interval", every(time.Minute), 150 * time.Second, "[00:02:30 00:03:30]", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				midnight := time.Now()
				x := &leaders{staged: map[string][]byte{}, committed: map[string][]byte{}, restored: midnight.Add(c.restored)}
				c.task.OnLeader = true
				var sent []string
				x.lead(t, c.task, "a", midnight.Add(4*time.Minute+10*time.Second), &sent)
				if got := fmt.Sprint(sent); got != c.want {
					t.Errorf("ran at %s, want %s", got, c.want)
				}
				var s taskState
				if err := json.Unmarshal(x.committed["t"], &s); err != nil || s.Missed != c.missed || s.Skipped != 0 {
					t.Errorf("%+v, %v, want %d missed", s, err, c.missed)
				}
			})
		})
	}
}

// Tasks may run when all that was assigned is worked on, and no sooner.
func TestTasksMayRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testLane(t, nil, plan.Agent{Task: &plan.Task{OnLeader: true}}, limits{}, true)
		l.agent.runs(newTask(l.agent, l.agent.plan.Task, &fakeRuns{}))
		l.app.agents = []*agent{l.agent}
		other := newAgent(l.app, &plan.Agent{Name: "b"})
		other.runs(&fakeCode{})
		began := make(chan struct{})
		go func() {
			defer close(began)
			l.app.beginTasks(t.Context())
		}()
		may := func(when string, want bool) {
			t.Helper()
			time.Sleep(time.Second)
			if l.app.seen.worked.Load() != want {
				t.Errorf("%s: tasks may run: %v", when, !want)
			}
		}
		may("before the app runs", false)
		l.app.seen.running.Store(true)
		may("before anything is assigned", false)
		l.app.mu.Lock()
		for _, p := range []record.Partition{in0, in1} {
			f := l.assign(other, p)
			l.position(f, 0)
			l.app.feeds[p] = []laneFeed{{l.lane, f}}
		}
		l.app.mu.Unlock()
		l.app.seen.joined.Store(true)
		may("before the tables are restored", false)
		l.begin(l.app.feeds[in0][0].feed, nil)
		may("before all of them are", false)
		l.begin(l.app.feeds[in1][0].feed, nil)
		may("with all of them", true)
		<-began
	})
}

// A run at start is made once for a start of the app, not by every leader, and noted before it begins.
func TestLeaderAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, p := &leaders{staged: map[string][]byte{}, committed: map[string][]byte{}}, &plan.Task{OnLeader: true}
		var sent []string
		x.lead(t, p, "a", time.Now().Add(time.Minute), &sent)
		x.lead(t, p, "", time.Now().Add(time.Minute), &sent)
		if len(sent) != 1 {
			t.Errorf("ran at %v: once, by the first leader", sent)
		}
		x.lead(t, p, "b", time.Now().Add(time.Minute), &sent)
		if len(sent) != 2 {
			t.Errorf("ran at %v: once more after the second start", sent)
		}
	})
}

// The run at start must not begin before its note is committed: a leader that dies in it leaves it to the next one.
func TestLeaderNotesRunAtStart(t *testing.T) {
	x, p := &leaders{staged: map[string][]byte{}}, &plan.Task{OnLeader: true}
	ag := x.agent(p)
	run := newTask(ag, p, &fakeRuns{})
	run.starting = func() string { return "a" }
	ctx := context.WithValue(context.Background(), workKey{}, &work{feed: &feed{}})
	tick := func() record.Result {
		res, err := run.Call(ctx, 0, &record.Batch{Tick: true, Records: []record.Record{{Offset: -1}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range res.Changes {
			x.staged[string(c.Key)] = c.Value
		}
		return res
	}
	for range 3 {
		if res := tick(); len(res.Outputs) > 0 || res.Wake.IsZero() {
			t.Fatal("it ran before its note was committed")
		}
	}
	x.committed = map[string][]byte{"t": slices.Clone(x.staged["t"])}
	if res := tick(); len(res.Outputs) != 1 {
		t.Fatal("it did not run")
	}
}

// Of a task on the leader only the leader tells, and a rest of another program in the table does not stop it.
func TestTaskStateIsNotOurs(t *testing.T) {
	x, p := &leaders{staged: map[string][]byte{"t": []byte(`{"due": "soon"}`)}}, every(time.Minute)
	p.OnLeader = true
	ag := x.agent(p)
	run := newTask(ag, p, &fakeRuns{})
	ctx := context.WithValue(context.Background(), workKey{}, &work{feed: &feed{}})
	res, err := run.Call(ctx, 0, &record.Batch{Tick: true, Records: []record.Record{{Offset: -1}}})
	if err != nil || res.Wake.IsZero() || len(res.Changes) != 1 {
		t.Errorf("%+v, %v", res, err)
	}
	if s := run.status(false); s.Here || s.Next != nil {
		t.Errorf("a process that is not the leader tells %+v", s)
	}
	if s := run.status(true); !s.Here || s.Next == nil {
		t.Errorf("the leader tells %+v", s)
	}
}

// A store that cannot be read must neither end the process nor make a run that may have been made.
func TestTaskStateIsBroken(t *testing.T) {
	x, p := &leaders{broken: errors.New("disk")}, &plan.Task{OnLeader: true}
	ag := x.agent(p)
	run := newTask(ag, p, &fakeRuns{})
	ctx := context.WithValue(context.Background(), workKey{}, &work{feed: &feed{}})
	res, err := run.Call(ctx, 0, &record.Batch{Tick: true, Records: []record.Record{{Offset: -1}}})
	if err != nil || res.Wake.IsZero() || len(res.Outputs)+len(res.Changes) > 0 {
		t.Errorf("%+v, %v", res, err)
	}
}
