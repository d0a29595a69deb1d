package manifest

import (
	"math"
	"slices"
	"strings"
	"time"
)

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
	TTL               Value[time.Duration] // an extension of ours: an entry is deleted this long after its last write
	PartitionBy       Value[string]        // an extension of ours: ByRecord (default), ByKey
}

// What decides the partition of a write, beside *_for_partition.
const (
	ByRecord = "record" // it is that of the record being processed
	ByKey    = "key"    // it is that of the table key's hash
)

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

func (c cursor) table(t *Table) {
	c.object(append(c.specName(&t.Meta, &t.SpecName),
		may("description", func(c cursor) { c.text(&t.Description) }),
		may("global", func(c cursor) { c.boolean(&t.Global) }),
		may("defaultSelector", func(c cursor) { c.code(&t.DefaultSelector) }),
		may("keySerializer", func(c cursor) { c.word(&t.KeySerializer, "raw", "json") }),
		may("valueSerializer", func(c cursor) { c.word(&t.ValueSerializer, "raw", "json") }),
		may("partitions", func(c cursor) { whole(c, &t.Partitions, 1, math.MaxInt32) }),
		may("extraTopicConfigs", func(c cursor) { c.texts(&t.ExtraTopicConfigs) }),
		may("options", func(c cursor) { c.texts(&t.Options) }),
		may("window", func(c cursor) { c.window(&t.Window) }),
		may("ttl", func(c cursor) { c.span(&t.TTL) }),
		may("partitionBy", func(c cursor) { c.word(&t.PartitionBy, ByRecord, ByKey) }),
	)...)
	for _, e := range t.ExtraTopicConfigs {
		if e.Key.V == "cleanup.policy" && !slices.Contains(strings.Split(strings.ReplaceAll(e.Value.V, " ", ""), ","), "compact") {
			c.warnAt(e.Key.Pos, NotCompacted, c.name()+".extraTopicConfigs: with cleanup.policy "+quote(e.Value.V)+" a restored table lacks what the changelog has deleted", "write compact, or compact,delete")
		}
	}
	if t.TTL.Set() && t.Window != nil {
		c.failAt(t.TTL.Pos, Contradiction, c.name()+" has both ttl and window", "windows have expires")
	}
}

func (c cursor) window(dst **Window) {
	w := &Window{Pos: c.at}
	there := c.object(
		may("tumbling", func(c cursor) {
			w.Tumbling = &Tumbling{Pos: c.at}
			c.object(
				must("size", func(c cursor) { c.span(&w.Tumbling.Size) }),
				may("expires", func(c cursor) { c.span(&w.Tumbling.Expires) }),
			)
		}),
		may("hopping", func(c cursor) {
			w.Hopping = &Hopping{Pos: c.at}
			c.object(
				must("size", func(c cursor) { c.span(&w.Hopping.Size) }),
				must("step", func(c cursor) { c.span(&w.Hopping.Step) }),
				may("expires", func(c cursor) { c.span(&w.Hopping.Expires) }),
			)
		}),
		may("relativeTo", func(c cursor) { c.word(&w.RelativeTo, "stream", "now", "custom") }),
		may("relativeToSelector", func(c cursor) { c.code(&w.RelativeToSelector) }),
		old("relativeToFieldSelector", "relativeToSelector"),
	)
	if there == nil {
		return
	}
	*dst = w
	c.exactlyOne(there, "tumbling", "hopping")
	if w.RelativeTo.V == "custom" && !there["relativeToSelector"] {
		c.failAt(w.RelativeTo.Pos, Contradiction, c.name()+" is relative to custom and needs relativeToSelector", "")
	}
	if there["relativeToSelector"] && there["relativeTo"] && w.RelativeTo.Set() && w.RelativeTo.V != "custom" {
		c.failAt(w.RelativeTo.Pos, Contradiction, c.name()+" has relativeToSelector and is relative to "+w.RelativeTo.V, "write relativeTo: custom")
	}
	if h := w.Hopping; h != nil && h.Size.Set() && h.Step.Set() && h.Step.V > h.Size.V {
		c.failAt(h.Step.Pos, OutOfRange, c.name()+".hopping.step must not be longer than size", "")
	}
}

// span reads a duration of whole milliseconds, as Kafka counts them, longer than nothing.
func (c cursor) span(v *Value[time.Duration]) {
	var read Value[time.Duration]
	switch c.duration(&read); {
	case read.Set() && read.V <= 0:
		c.fail(OutOfRange, c.name()+" must be longer than 0", "")
	case read.V%time.Millisecond != 0:
		c.fail(OutOfRange, c.name()+" must be whole milliseconds, not "+c.node.Value, "")
	default:
		*v = read
	}
}
