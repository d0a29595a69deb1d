package manifest

import "time"

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
	Cron     Value[string]
	Timezone Value[string] // IANA name; UTC when unset
}
