package manifest

import "time"

// Agent is a KasprAgent: one input, a pipeline, any number of output topics.
type Agent struct {
	Meta
	Description        Value[string]
	IsolatedPartitions Value[bool]
	Input              Input
	Outputs            []*Output
	Processors         Processors
	OnError            *OnError
}

// Input is where an agent's records come from: exactly one of Topic and Channel.
type Input struct {
	Pos     Pos
	Declare Value[bool]
	Topic   *InputTopic
	Channel *Channel
	Take    *Take
}

// InputTopic is one or more named topics, or a pattern of names; exactly one of Names and Pattern.
type InputTopic struct {
	Pos             Pos
	Names           []Value[string] // name, split at its commas
	Pattern         Value[string]   // an RE2 expression over the whole name
	KeySerializer   Value[string]
	ValueSerializer Value[string]
	TopicOptions
}

// TopicOptions is how a topic is created.
type TopicOptions struct {
	Partitions Value[int]
	Retention  Value[int64] // seconds
	Compacting Value[bool]
	Deleting   Value[bool]
	Replicas   Value[int] // 0 means the app's default
	Config     []Entry
}

// Channel names a join's output channel.
type Channel struct {
	Pos  Pos
	Name Value[string]
}

// Take makes batches of records: at most Max, or what came within Within.
type Take struct {
	Pos    Pos
	Max    Value[int]
	Within Value[time.Duration]
}

// Output is one target topic of an agent, or of a topicSend operation; exactly one of Name and NameSelector.
type Output struct {
	Pos               Pos
	Name              Value[string]
	NameSelector      *Code
	Ack               Value[bool]
	KeySerializer     Value[string]
	ValueSerializer   Value[string]
	KeySelector       *Code
	ValueSelector     *Code
	PartitionSelector *Code
	HeadersSelector   *Code
	Predicate         *Code
	Declare           Value[bool]
	TopicOptions
	PassThrough Value[bool] // topicSend only
}

// Processors are the named operations of a component and the order they run in.
type Processors struct {
	Pos        Pos
	Pipeline   []Value[string]
	Init       *Code
	Operations []*Operation
}

// Operation finds an operation by name; nil when there is none.
func (p *Processors) Operation(name string) *Operation {
	for _, op := range p.Operations {
		if op.Name.V == name {
			return op
		}
	}
	return nil
}

// Operation is one named step; exactly one of Map, Filter and TopicSend.
type Operation struct {
	Pos       Pos
	Name      Value[string]
	Tables    []TableRef
	Map       *Code
	Filter    *Code
	TopicSend *Output
}

// TableRef hands a table to an operation's function as a keyword argument.
type TableRef struct {
	Pos       Pos
	Name      Value[string]
	ParamName Value[string]
}
