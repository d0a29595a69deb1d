package manifest

import (
	"math"
	"time"
)

// Agent is a KasprAgent: one input, a pipeline, any number of output topics.
type Agent struct {
	Meta
	Description        Value[string]
	IsolatedPartitions Value[bool]
	Input              Input
	Outputs            []*Output
	Channels           []*ChannelOutput // after Outputs
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
	Pattern         Value[string]   // an RE2 expression over the whole name; see TopicPattern
	KeySerializer   Value[string]
	ValueSerializer Value[string]
	TopicOptions
}

// Channel names a channel that a join, a task or another agent of the app sends to.
type Channel struct {
	Pos  Pos
	Name Value[string]
}

// ChannelOutput is one channel an agent or a task sends to, for other agents of the app: an extension of ours. Values stay Python
// values, as if no codec were there.
type ChannelOutput struct {
	Pos             Pos
	Name            Value[string]
	KeySelector     *Code
	ValueSelector   *Code
	HeadersSelector *Code
	Predicate       *Code
}

// Take makes batches of records: at most Max, or what came within Within.
type Take struct {
	Pos    Pos
	Max    Value[int]
	Within Value[time.Duration]
}

func (c cursor) agent(a *Agent) {
	c.object(append(c.definitionName(&a.Meta),
		may("description", func(c cursor) { c.text(&a.Description) }),
		may("isolatedPartitions", func(c cursor) { c.boolean(&a.IsolatedPartitions) }),
		must("input", func(c cursor) { c.input(&a.Input) }),
		may("output", func(c cursor) { c.finals(&a.Outputs, &a.Channels) }),
		must("processors", func(c cursor) { c.processors(&a.Processors, agentPipeline, true) }),
		may("onError", func(c cursor) { c.onError(&a.OnError) }),
	)...)
}

func (c cursor) input(in *Input) {
	in.Pos = c.at
	there := c.object(
		may("declare", func(c cursor) { c.boolean(&in.Declare) }),
		may("topic", func(c cursor) { c.inputTopic(in) }),
		may("channel", func(c cursor) {
			channel := &Channel{Pos: c.at}
			if c.object(must("name", func(c cursor) { c.named(&channel.Name) })) != nil {
				in.Channel = channel
			}
		}),
		may("take", func(c cursor) {
			take := &Take{Pos: c.at}
			if c.object(
				must("max", func(c cursor) { whole(c, &take.Max, 1, math.MaxInt32) }),
				must("within", func(c cursor) { c.duration(&take.Within) }),
			) != nil {
				in.Take = take
			}
		}),
	)
	if there == nil {
		return
	}
	c.exactlyOne(there, "topic", "channel")
	switch {
	case in.Topic == nil:
		if in.Channel != nil && in.Declare.V {
			c.warnAt(in.Declare.Pos, NoEffect, "declare of "+c.name()+" has no effect on a channel", "")
		}
	case in.Declare.V && in.Topic.Pattern.Set():
		c.warnAt(in.Declare.Pos, NoEffect, "declare of "+c.name()+" has no effect on a pattern", "name the topics to create them")
	case !in.Declare.V:
		in.Topic.useless(c, "without declare: true")
	}
}

func (c cursor) inputTopic(in *Input) {
	t := &InputTopic{Pos: c.at}
	there := c.object(append(t.members(),
		may("name", func(c cursor) { c.topicNames(&t.Names) }),
		may("pattern", func(c cursor) { c.pattern(&t.Pattern) }),
		may("keySerializer", func(c cursor) { c.word(&t.KeySerializer, Serializers...) }),
		may("valueSerializer", func(c cursor) { c.word(&t.ValueSerializer, Serializers...) }),
		// Public texts show declare here; it belongs one level up and is taken as if it stood there.
		member{name: "declare", instead: "input.declare", read: func(c cursor) {
			var declare Value[bool]
			if c.boolean(&declare); declare.Set() && !in.Declare.Set() {
				in.Declare = declare
			}
		}},
	)...)
	if there == nil {
		return
	}
	c.exactlyOne(there, "name", "pattern")
	in.Topic = t
}
