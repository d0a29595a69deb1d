package manifest

// Types of joins; unset is InnerJoin.
const (
	InnerJoin = "inner"
	LeftJoin  = "left"
	OuterJoin = "outer" // our extension: left, and right rows that no left row refers to
)

// Join is a KasprJoin: a key join of two tables into a channel.
type Join struct {
	Meta
	SpecName      Value[string]
	Description   Value[string]
	LeftTable     Value[string]
	RightTable    Value[string]
	Extractor     *Code
	Type          Value[string] // inner, left, outer
	OutputChannel Value[string] // unset: <name>-channel
	// Retractions: a joined row that ends is sent once more, as (None, …) or with its right side missing.
	Retractions Value[bool]
	// Unchanged: what has been sent before is sent again when a row is rewritten with the same value. True when unset, as in
	// the original.
	Unchanged Value[bool]
	OnError   *OnError
}

// Channel is the name of the join's output channel.
func (j *Join) Channel() string { return j.OutputChannel.Or(j.Name.V + "-channel") }

func (c cursor) join(j *Join) {
	c.object(append(c.specName(&j.Meta, &j.SpecName),
		may("description", func(c cursor) { c.text(&j.Description) }),
		must("leftTable", func(c cursor) { c.named(&j.LeftTable) }),
		must("rightTable", func(c cursor) { c.named(&j.RightTable) }),
		must("extractor", func(c cursor) { c.code(&j.Extractor) }),
		may("type", func(c cursor) { c.word(&j.Type, InnerJoin, LeftJoin, OuterJoin) }),
		may("outputChannel", func(c cursor) { c.named(&j.OutputChannel) }),
		may("retractions", func(c cursor) { c.boolean(&j.Retractions) }),
		may("unchanged", func(c cursor) { c.boolean(&j.Unchanged) }),
		may("onError", func(c cursor) { c.onError(&j.OnError) }),
	)...)
}
