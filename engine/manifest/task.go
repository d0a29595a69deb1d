package manifest

import (
	"time"
	_ "time/tzdata" // zone names are checked where the host has no zone files

	"kaspr.io/kaspr/engine/cron"
)

// Task is a KasprTask: code at start-up, on an interval or on cron.
type Task struct {
	Meta
	SpecName    Value[string]
	Description Value[string]
	OnLeader    Value[bool]
	Schedule    *Schedule // nil: once at start-up
	Processors  Processors
	Outputs     []*Output        // of its final values
	Channels    []*ChannelOutput // after Outputs
}

// Schedule says when a task runs: exactly one of Interval and Cron.
type Schedule struct {
	Pos      Pos
	Interval Value[time.Duration] // from the end of a run to the next
	Cron     Value[string]        // five fields, or six with seconds last; cron.Parse reads it
	Timezone Value[string]        // IANA name; UTC when unset
	// RunAtStart: one run before the first that is due.
	RunAtStart Value[bool]
	Jitter     Value[time.Duration] // each run comes up to this much later, at random
	Overlap    Value[string]        // OverlapSkip, OverlapQueue: what becomes of a run that is due while one is going
	Missed     Value[string]        // MissedSkip, MissedOnce: what becomes of runs that were due while no worker was there
}

// What becomes of runs that cannot begin when they are due; unset is to skip them.
const (
	OverlapSkip  = "skip"
	OverlapQueue = "queue" // one run follows as soon as the one going ends
	MissedSkip   = "skip"
	MissedOnce   = "once" // one run makes up for all of them
)

// Zone is the time zone of Cron.
func (s *Schedule) Zone() *time.Location {
	zone, err := time.LoadLocation(s.Timezone.Or("UTC"))
	if err != nil {
		panic("BUG: a time zone that was checked is not known: " + err.Error())
	}
	return zone
}

func (c cursor) task(t *Task) {
	c.object(append(c.specName(&t.Meta, &t.SpecName),
		may("description", func(c cursor) { c.text(&t.Description) }),
		may("onLeader", func(c cursor) { c.boolean(&t.OnLeader) }),
		may("schedule", func(c cursor) { c.schedule(&t.Schedule) }),
		must("processors", func(c cursor) { c.processors(&t.Processors, otherPipeline, true) }),
		may("output", func(c cursor) { c.finals(&t.Outputs, &t.Channels) }),
	)...)
}

func (c cursor) schedule(dst **Schedule) {
	s := &Schedule{Pos: c.at}
	there := c.object(
		may("interval", func(c cursor) { c.span(&s.Interval) }),
		may("cron", func(c cursor) { c.cron(&s.Cron) }),
		may("timezone", func(c cursor) {
			var read Value[string]
			if !c.named(&read) {
				return
			}
			if _, err := time.LoadLocation(read.V); err != nil || read.V == "Local" {
				c.fail(BadSchedule, c.name()+" "+quote(read.V)+" is not a time zone", "an IANA name such as Europe/Berlin")
				return
			}
			s.Timezone = read
		}),
		may("runAtStart", func(c cursor) { c.boolean(&s.RunAtStart) }),
		may("jitter", func(c cursor) { c.duration(&s.Jitter) }),
		may("overlap", func(c cursor) { c.word(&s.Overlap, OverlapSkip, OverlapQueue) }),
		may("missed", func(c cursor) { c.word(&s.Missed, MissedSkip, MissedOnce) }),
	)
	if there == nil {
		return
	}
	c.exactlyOne(there, "interval", "cron")
	if there["interval"] && !there["cron"] {
		for _, m := range []struct {
			name string
			at   Pos
		}{{"timezone", s.Timezone.Pos}, {"overlap", s.Overlap.Pos}, {"missed", s.Missed.Pos}} {
			if m.at != (Pos{}) {
				c.warnAt(m.at, NoEffect, m.name+" of "+c.name()+" has no effect without cron", "an interval begins when a run has ended")
			}
		}
	}
	*dst = s
}

// cron reads an expression that is due some day. Where it is due depends on the zone, whether it is does not.
func (c cursor) cron(v *Value[string]) {
	var read Value[string]
	if !c.named(&read) {
		return
	}
	if _, err := cron.Parse(read.V, time.UTC); err != nil {
		c.fail(BadSchedule, c.name()+" "+quote(read.V)+" is not a cron expression: "+err.Error(), "")
		return
	}
	*v = read
}
