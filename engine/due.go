package engine

import (
	"cmp"
	"time"

	"kaspr.io/kaspr/engine/plan"
)

// taskState is what is remembered of a task: of one on the leader in the table of tasks, from one leader to the next; of another in its
// process. Times are milliseconds since 1970, 0 is never. A state is a value: what a run makes of it counts together with what the run
// made, or not at all.
type taskState struct {
	Schedule string `json:"schedule,omitempty"` // that Due follows
	Due      int64  `json:"due,omitempty"`      // next run of the schedule
	Start    string `json:"start,omitempty"`    // the last start of a process that is accounted for
	Pending  bool   `json:"pending,omitempty"`  // the run at that start is still to come

	Runs      int64  `json:"runs,omitempty"` // all of them, failed ones too
	Failures  int64  `json:"failures,omitempty"`
	Skipped   int64  `json:"skipped,omitempty"`   // were due while one went
	Missed    int64  `json:"missed,omitempty"`    // were due while no worker was there
	Began     int64  `json:"began,omitempty"`     // of the last run
	Ended     int64  `json:"ended,omitempty"`     // of the last run
	Succeeded int64  `json:"succeeded,omitempty"` // end of the last run that did not fail
	Failure   string `json:"failure,omitempty"`   // of the last run that failed
}

// lateMax is how late a run may be that somebody else should have begun: a leader that hands over takes about a second. Behind that it
// is missed.
const lateMax = 5 * time.Second

// countMax bounds the counting of runs that did not happen.
const countMax = 10_000

// prepare brings the state up to now, and says whether a run is due. started is the process's own name when it is just starting, else
// empty; foreseen says that Due was this process's to wait for.
func (s taskState) prepare(p *plan.Task, now time.Time, started string, foreseen bool) (taskState, bool) {
	sched := p.Schedule
	if sched == nil || sched.AtStart {
		// For a leader that came later it is no start, unless nobody was there to see one.
		if s.Start == "" || started != "" && s.Start != started {
			s.Start, s.Pending = cmp.Or(started, "unseen"), true
		}
	} else {
		s.Pending = false
	}
	if sched == nil {
		s.Schedule, s.Due = "", 0
		return s, s.Pending
	}
	if s.Schedule != sched.Expression {
		s.Schedule, s.Due = sched.Expression, milli(next(sched, now))
	}
	if sched.Interval > 0 && s.Due-milli(now) > sched.Interval.Milliseconds() { // by the clock of another process, or before it was set back
		s.Due = milli(next(sched, now))
	}
	late := now.Sub(time.UnixMilli(s.Due))
	if s.Pending || s.Due == 0 || late < 0 {
		return s, s.Pending
	}
	if sched.Interval == 0 && !foreseen && late > lateMax+sched.Jitter {
		missed := 1 + matches(sched, time.UnixMilli(s.Due), now) // Due itself need be no time of the expression: one that makes up, or was queued
		if !sched.MakeUp {
			s.Missed += missed
			s.Due = milli(next(sched, now))
			return s, false
		}
		s.Missed += missed - 1
		s.Due = milli(now) // the one that makes up for them
	}
	return s, true
}

// ran is the state after a run.
func (s taskState) ran(p *plan.Task, began, ended time.Time, failure string) taskState {
	s.Runs++
	s.Began, s.Ended = milli(began), milli(ended)
	if failure == "" {
		s.Succeeded = s.Ended
	} else {
		s.Failures++
		s.Failure = failure
	}
	sched, start := p.Schedule, s.Pending
	s.Pending = false
	switch {
	case sched == nil:
	case sched.Interval > 0:
		s.Due = milli(ended.Add(sched.Interval))
	case s.Due == 0 || start && s.Due > milli(ended):
	default:
		from := time.UnixMilli(s.Due)
		if start {
			from = from.Add(-time.Millisecond) // it was due, too
		}
		over := matches(sched, from, ended)
		if over > 0 && sched.Queue {
			s.Skipped += over - 1
			s.Due = s.Ended
			break
		}
		s.Skipped += over
		s.Due = milli(next(sched, ended))
	}
	return s
}

// matches is how many times of a cron expression are behind from, and not behind to.
func matches(s *plan.Schedule, from, to time.Time) (n int64) {
	for at := s.Cron.Next(from); !at.IsZero() && !at.After(to) && n < countMax; at = s.Cron.Next(at) {
		n++
	}
	return n
}

// milli is a time as a state has it.
func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// next is when a schedule is due for the first time behind a moment; zero for never.
func next(s *plan.Schedule, after time.Time) time.Time {
	if s.Interval > 0 {
		return after.Add(s.Interval)
	}
	return s.Cron.Next(after)
}
