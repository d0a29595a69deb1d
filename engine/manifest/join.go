package manifest

// Join is a KasprJoin: a key join of two tables into a channel.
type Join struct {
	Meta
	SpecName      Value[string]
	Description   Value[string]
	LeftTable     Value[string]
	RightTable    Value[string]
	Extractor     *Code
	Type          Value[string] // inner, left
	OutputChannel Value[string] // unset: <name>-channel
}

// Channel is the name of the join's output channel.
func (j *Join) Channel() string { return j.OutputChannel.Or(j.Name.V + "-channel") }

func (c cursor) join(j *Join) {
	c.object(append(c.specName(&j.Meta, &j.SpecName),
		may("description", func(c cursor) { c.text(&j.Description) }),
		must("leftTable", func(c cursor) { c.named(&j.LeftTable) }),
		must("rightTable", func(c cursor) { c.named(&j.RightTable) }),
		must("extractor", func(c cursor) { c.code(&j.Extractor) }),
		may("type", func(c cursor) { c.word(&j.Type, "inner", "left") }),
		may("outputChannel", func(c cursor) { c.named(&j.OutputChannel) }),
	)...)
}
