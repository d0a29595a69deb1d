package manifest

import "time"

// Table is a KasprTable: key/value state backed by a compacted topic.
type Table struct {
	Meta
	SpecName          Value[string] // spec.name; metadata.name is the one that counts
	Description       Value[string]
	Global            Value[bool]
	DefaultSelector   *Code
	KeySerializer     Value[string] // raw, json
	ValueSerializer   Value[string]
	Partitions        Value[int]
	ExtraTopicConfigs []Entry
	Options           []Entry
	Window            *Window
}

// Window cuts a table into time windows: exactly one of Tumbling and Hopping.
type Window struct {
	Pos                Pos
	Tumbling           *Tumbling
	Hopping            *Hopping
	RelativeTo         Value[string] // stream, now, custom
	RelativeToSelector *Code
}

// Tumbling windows stand side by side.
type Tumbling struct {
	Pos     Pos
	Size    Value[time.Duration]
	Expires Value[time.Duration]
}

// Hopping windows overlap: a new one starts every Step.
type Hopping struct {
	Pos     Pos
	Size    Value[time.Duration]
	Step    Value[time.Duration]
	Expires Value[time.Duration]
}
