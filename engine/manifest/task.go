package manifest

import (
	"strings"
	"time"
	_ "time/tzdata" // zone names are checked where the host has no zone files
)

// Task is a KasprTask: code at start-up, on an interval or on cron.
type Task struct {
	Meta
	SpecName    Value[string]
	Description Value[string]
	OnLeader    Value[bool]
	Schedule    *Schedule // nil: once at start-up
	Processors  Processors
}

// Schedule says when a task runs: exactly one of Interval and Cron.
type Schedule struct {
	Pos      Pos
	Interval Value[time.Duration]
	Cron     Value[string] // five fields, or six with seconds last
	Timezone Value[string] // IANA name; UTC when unset
}

func (c cursor) task(t *Task) {
	c.object(append(c.specName(&t.Meta, &t.SpecName),
		may("description", func(c cursor) { c.text(&t.Description) }),
		may("onLeader", func(c cursor) { c.boolean(&t.OnLeader) }),
		may("schedule", func(c cursor) { c.schedule(&t.Schedule) }),
		must("processors", func(c cursor) { c.processors(&t.Processors, otherPipeline, true) }),
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
	)
	if there == nil {
		return
	}
	c.exactlyOne(there, "interval", "cron")
	if s.Timezone.Set() && !there["cron"] {
		c.warnAt(s.Timezone.Pos, NoEffect, "timezone of "+c.name()+" has no effect without cron", "")
	}
	*dst = s
}

// cron checks no more than the number of fields; what they may hold is known to the scheduler.
func (c cursor) cron(v *Value[string]) {
	var read Value[string]
	if !c.named(&read) {
		return
	}
	if n := len(strings.Fields(read.V)); n != 5 && n != 6 {
		c.fail(BadSchedule, c.name()+" "+quote(read.V)+" does not have five fields, or six with seconds last", "minute hour day month weekday")
		return
	}
	*v = read
}
