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
