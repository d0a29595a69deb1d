package engine

import (
	"fmt"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/cron"
	"kaspr.io/kaspr/engine/plan"
)

// cronTask is a task with a cron expression in a zone.
func cronTask(t *testing.T, expression, zone string) *plan.Task {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cron.Parse(expression, loc)
	if err != nil {
		t.Fatal(err)
	}
	return &plan.Task{Schedule: &plan.Schedule{Cron: c, Expression: expression + " " + zone}}
}

func moment(t *testing.T, text string) time.Time {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// follow is the times a task runs from start on until end, each run taking took.
func follow(p *plan.Task, s taskState, start, end time.Time, took time.Duration) (times []string, last taskState) {
	for now := start; now.Before(end); {
		var due bool
		if s, due = s.prepare(p, now, "me", !start.After(time.UnixMilli(s.Due))); due {
			times = append(times, now.UTC().Format("02 15:04:05"))
			began := now
			now = now.Add(took)
			s = s.ran(p, began, now, "")
		}
		if s.Due == 0 {
			break
		}
		if next := time.UnixMilli(s.Due); next.After(now) {
			now = next
		}
	}
	return times, s
}

// A daily task must run once a day by the clock on the wall, whatever a change of clocks does to the hours.
func TestCronOverChangeOfClocks(t *testing.T) {
	for _, c := range []struct{ expression, from, to, want string }{
		{"0 8 * * *", "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z", "[28 07:00:00 29 06:00:00 30 06:00:00]"},
		{"0 8 * * *", "2026-10-24T00:00:00Z", "2026-10-27T00:00:00Z", "[24 06:00:00 25 07:00:00 26 07:00:00]"},
		{"30 2 * * *", "2026-03-28T00:00:00Z", "2026-03-31T00:00:00Z", "[28 01:30:00 30 00:30:00]"},             // 29 March has no 02:30
		{"30 2 * * *", "2026-10-24T00:00:00Z", "2026-10-26T00:00:00Z", "[24 00:30:00 25 00:30:00 25 01:30:00]"}, // 25 October has two
		{"*/20 * * * * 0", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z", "[01 00:20:00 01 00:40:00]"},
		{"* * * * * 30", "2026-01-01T00:00:00Z", "2026-01-01T00:02:00Z", "[01 00:00:30 01 00:01:30]"},
	} {
		p := cronTask(t, c.expression, "Europe/Berlin")
		got, _ := follow(p, taskState{}, moment(t, c.from), moment(t, c.to), time.Second)
		if fmt.Sprint(got) != c.want {
			t.Errorf("%q ran at %v, want %s", c.expression, got, c.want)
		}
	}
}

// A clock that is set must not make an interval longer, nor shorter, in the process that waits for its end; in another, which knows only the
// time on the wall, it must not last longer than a whole one. A cron goes by that time, and no time of it comes twice.
func TestTaskWhenTheClockIsSet(t *testing.T) {
	every := &plan.Task{Schedule: &plan.Schedule{Interval: 10 * time.Second, Expression: "every 10s"}}
	for _, set := range []time.Duration{-time.Hour, time.Hour} { // the clock, 4 s after a run
		before := time.Now().Add(-set)
		s := taskState{Schedule: "every 10s", Due: milli(before.Add(6 * time.Second))}
		here := &task{plan: every, drawn: s.Due, at: time.Now().Add(6 * time.Second)}
		for after, want := range map[time.Duration]bool{5 * time.Second: false, 7 * time.Second: true} {
			if _, due := s.prepare(every, here.clock(&s, time.Now().Add(after)), "", true); due != want {
				t.Errorf("clock set by %v: due %v later: %v", set, after, due)
			}
		}
		if left := here.waits(&s); left < 5*time.Second || left > 6*time.Second {
			t.Errorf("clock set by %v: waits for %v", set, left)
		}
	}
	now := moment(t, "2026-01-01T00:00:00Z")
	s := taskState{Schedule: "every 10s", Due: milli(now.Add(time.Hour))}
	if got, _ := follow(every, s, now, now.Add(15*time.Second), time.Second); fmt.Sprint(got) != "[01 00:00:10]" {
		t.Errorf("in another process it ran at %v", got)
	}
	minutely := cronTask(t, "* * * * *", "UTC")
	s = taskState{Schedule: minutely.Schedule.Expression, Due: milli(now.Add(3 * time.Minute))} // 00:02 was the last run
	if got, _ := follow(minutely, s, now, now.Add(5*time.Minute), time.Second); fmt.Sprint(got) != "[01 00:03:00 01 00:04:00]" {
		t.Errorf("the cron ran at %v", got)
	}
}

// An interval is a pause: it begins when a run has ended, and the first run comes after one.
func TestIntervalIsAPause(t *testing.T) {
	p := &plan.Task{Schedule: &plan.Schedule{Interval: 10 * time.Second, Expression: "every 10s"}}
	start := moment(t, "2026-01-01T00:00:00Z")
	got, s := follow(p, taskState{}, start, start.Add(time.Minute), 7*time.Second)
	if want := "[01 00:00:10 01 00:00:27 01 00:00:44]"; fmt.Sprint(got) != want {
		t.Errorf("ran at %v, want %s", got, want)
	}
	if s.Runs != 3 || s.Skipped+s.Missed+s.Failures != 0 {
		t.Errorf("%+v", s)
	}
	p.Schedule.AtStart = true
	got, _ = follow(p, taskState{}, start, start.Add(30*time.Second), 7*time.Second)
	if want := "[01 00:00:00 01 00:00:17]"; fmt.Sprint(got) != want {
		t.Errorf("with a run at start: ran at %v, want %s", got, want)
	}
}

// Runs never overlap: what is due while one goes is skipped and counted, or, with queue, one run follows it.
func TestOverlap(t *testing.T) {
	p := cronTask(t, "* * * * * */10", "UTC")
	start := moment(t, "2026-01-01T00:00:01Z")
	got, s := follow(p, taskState{}, start, start.Add(time.Minute), 25*time.Second)
	if want := "[01 00:00:10 01 00:00:40]"; fmt.Sprint(got) != want || s.Skipped != 4 {
		t.Errorf("skip: ran at %v, skipped %d, want %s and 4", got, s.Skipped, want)
	}
	p.Schedule.Queue = true
	got, s = follow(p, taskState{}, start, start.Add(time.Minute), 25*time.Second)
	if want := "[01 00:00:10 01 00:00:35 01 00:01:00]"; fmt.Sprint(got) != want || s.Skipped != 4 {
		t.Errorf("queue: ran at %v, skipped %d, want %s and 4", got, s.Skipped, want)
	}
}

// What was due while no worker was there is not made up, unless the manifest says so: then by one run.
func TestMissed(t *testing.T) {
	for _, c := range []struct {
		makeUp        bool
		want          string
		missed, skips int64
	}{{false, "[01 05:00:00]", 4, 0}, {true, "[01 04:30:00 01 05:00:00]", 3, 0}} {
		p := cronTask(t, "0 * * * *", "UTC")
		p.Schedule.MakeUp = c.makeUp
		before := taskState{Schedule: p.Schedule.Expression, Due: milli(moment(t, "2026-01-01T01:00:00Z")), Runs: 5}
		got, s := follow(p, before, moment(t, "2026-01-01T04:30:00Z"), moment(t, "2026-01-01T05:30:00Z"), time.Second)
		if fmt.Sprint(got) != c.want || s.Missed != c.missed || s.Skipped != c.skips {
			t.Errorf("makeUp %v: ran at %v, missed %d, skipped %d; want %s, %d, %d", c.makeUp, got, s.Missed, s.Skipped, c.want, c.missed, c.skips)
		}
	}
}

// A run that makes up for others, or was queued, is one run when its leader leaves it: what was missed must neither go down nor forget it.
func TestLeftRunIsMissedOnce(t *testing.T) {
	p := cronTask(t, "0 * * * *", "UTC")
	p.Schedule.MakeUp, p.Schedule.Jitter = true, time.Minute
	s := taskState{Schedule: p.Schedule.Expression, Due: milli(moment(t, "2026-01-01T01:00:00Z"))}
	for _, c := range []struct {
		at     string // a leader comes, and goes before jitter lets it run
		missed int64
	}{{"2026-01-01T04:30:00Z", 3}, {"2026-01-01T04:40:00Z", 3}, {"2026-01-01T05:10:00Z", 4}} {
		var due bool
		if s, due = s.prepare(p, moment(t, c.at), "", false); !due || s.Missed != c.missed {
			t.Errorf("%s: due %v, %d missed, want %d", c.at, due, s.Missed, c.missed)
		}
	}
	p.Schedule.MakeUp, p.Schedule.Queue = false, true
	s = taskState{Schedule: p.Schedule.Expression, Due: milli(moment(t, "2026-01-01T04:40:00Z"))} // queued
	if s, due := s.prepare(p, moment(t, "2026-01-01T05:10:00Z"), "", false); due || s.Missed != 2 {
		t.Errorf("queued: due %v, %d missed, want 2", due, s.Missed)
	}
}

// A leader that hands over within a moment must not lose the run that was due just then.
func TestLateIsNotMissed(t *testing.T) {
	p := cronTask(t, "0 * * * *", "UTC")
	due := moment(t, "2026-01-01T01:00:00Z")
	s := taskState{Schedule: p.Schedule.Expression, Due: milli(due)}
	if _, run := s.prepare(p, due.Add(2*time.Second), "", false); !run {
		t.Error("2 s late is taken for missed")
	}
	if got, run := s.prepare(p, due.Add(time.Minute), "", false); run || got.Missed != 1 {
		t.Errorf("a minute late: run %v, %+v", run, got)
	}
	if _, run := s.prepare(p, due.Add(time.Minute), "", true); !run {
		t.Error("a run this process was busy for is taken for missed")
	}
}

// A schedule that was changed in the manifest counts at once, not after the run that the old one had planned.
func TestScheduleChanges(t *testing.T) {
	p := cronTask(t, "0 * * * *", "UTC")
	s := taskState{Schedule: "0 0 1 1 * UTC", Due: milli(moment(t, "2027-01-01T00:00:00Z")), Runs: 3}
	s, due := s.prepare(p, moment(t, "2026-01-01T04:30:00Z"), "", false)
	if want := milli(moment(t, "2026-01-01T05:00:00Z")); due || s.Due != want || s.Runs != 3 {
		t.Errorf("%+v, due %v", s, due)
	}
}

// A task without a schedule runs once for each start of a process. For a leader that comes later it is no start, but a run that was
// begun and not made is its to make.
func TestRunsAtStart(t *testing.T) {
	p, now := &plan.Task{OnLeader: true}, moment(t, "2026-01-01T00:00:00Z")
	s, due := taskState{}.prepare(p, now, "a", true)
	if !due || !s.Pending {
		t.Fatal("no run at the first start")
	}
	if _, due := s.prepare(p, now, "", false); !due {
		t.Error("the leader that came next leaves a run that was to be made")
	}
	s = s.ran(p, now, now, "")
	if s.Pending || s.Runs != 1 || s.Due != 0 {
		t.Errorf("%+v", s)
	}
	for started, want := range map[string]bool{"a": false, "": false, "b": true} {
		if _, due := s.prepare(p, now, started, false); due != want {
			t.Errorf("started %q: run %v", started, due)
		}
	}
	if _, due := (taskState{}).prepare(p, now, "", false); !due {
		t.Error("nobody has ever made the run, and a leader that came later does not")
	}
}
