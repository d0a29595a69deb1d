package manifest

// Output is one target topic of an agent or a task, or of a topicSend operation; exactly one of Name and NameSelector.
type Output struct {
	Pos               Pos
	Name              Value[string]
	NameSelector      *Code
	Ack               Value[bool]
	KeySerializer     Value[string]
	ValueSerializer   Value[string]
	KeySchema         *Schema
	ValueSchema       *Schema
	KeySelector       *Code
	CarryKey          Value[bool] // the key is the record's, instead of KeySelector: an extension of ours
	ValueSelector     *Code
	PartitionSelector *Code
	HeadersSelector   *Code
	Predicate         *Code
	Declare           Value[bool]
	TopicOptions
	PassThrough Value[bool] // topicSend only
	Schedule    *Scheduled  // outputTopic only
}

// Scheduled has an output's messages delivered later, by the scheduler; exactly one of DeliverAt and Delay. An extension of ours.
type Scheduled struct {
	Pos       Pos
	DeliverAt *Code
	Delay     *Code
	RequestID *Code
	Replace   Value[bool]
}

// place is where an output stands, which decides the members it has.
type place uint8

const (
	outputTopic   place = iota // output.topics[] of an agent or a task
	agentPipeline              // topicSend of an agent
	otherPipeline              // topicSend of a web view or task
)

// key names the outputs of a place in fields.txt, operation the operations that send to them.
func (p place) key() string { return [...]string{"OutputTopic", "Send", "Send"}[p] }

func (p place) operation() string { return [...]string{"", "AgentOperation", "Operation"}[p] }

func (c cursor) output(where place) *Output {
	o := &Output{Pos: c.at}
	selector := func(name string, dst **Code) member { return may(name, func(c cursor) { c.code(dst) }) }
	members := []member{
		may("name", func(c cursor) { c.topic(&o.Name) }),
		selector("nameSelector", &o.NameSelector),
		may("ack", func(c cursor) { c.boolean(&o.Ack) }),
		may("keySerializer", func(c cursor) { c.word(&o.KeySerializer, Serializers...) }),
		may("valueSerializer", func(c cursor) { c.word(&o.ValueSerializer, Serializers...) }),
		may("keySchema", func(c cursor) { c.schema(&o.KeySchema) }),
		may("valueSchema", func(c cursor) { c.schema(&o.ValueSchema) }),
		selector("keySelector", &o.KeySelector),
		may("carryKey", func(c cursor) { c.boolean(&o.CarryKey) }),
		selector("valueSelector", &o.ValueSelector),
		selector("partitionSelector", &o.PartitionSelector),
		selector("headersSelector", &o.HeadersSelector),
		selector("predicate", &o.Predicate),
		old("partitionerSelector", "partitionSelector"),
		old("headerSelector", "headersSelector"),
	}
	members = append(members, may("declare", func(c cursor) { c.boolean(&o.Declare) }))
	members = append(members, o.members()...)
	if where == outputTopic {
		members = append(members, may("schedule", func(c cursor) { c.scheduled(o) }))
	} else {
		members = append(members, may("passThrough", func(c cursor) { c.boolean(&o.PassThrough) }))
	}
	there := c.of(where.key()).object(members...)
	if there == nil {
		return nil
	}
	c.exactlyOne(there, "name", "nameSelector")
	c.atMostOne(there, "keySelector", "carryKey")
	if !o.Declare.V {
		o.useless(c, "without declare: true")
	}
	if where == outputTopic {
		for _, other := range []string{"partitionSelector", "declare", "keySchema", "valueSchema"} {
			c.atMostOne(there, "schedule", other)
		}
	}
	return o
}

func (c cursor) scheduled(o *Output) {
	s := &Scheduled{Pos: c.at}
	there := c.object(
		may("deliverAt", func(c cursor) { c.code(&s.DeliverAt) }),
		may("delay", func(c cursor) { c.code(&s.Delay) }),
		may("requestId", func(c cursor) { c.code(&s.RequestID) }),
		may("replace", func(c cursor) { c.boolean(&s.Replace) }),
	)
	if there == nil {
		return
	}
	o.Schedule = s
	c.exactlyOne(there, "deliverAt", "delay")
	if s.Replace.V && s.RequestID == nil {
		c.failAt(s.Replace.Pos, Contradiction, "replace of "+c.name()+" needs a requestId", "the id says which message is replaced")
	}
}

// finals reads where an agent's or a task's final values go.
func (c cursor) finals(topics *[]*Output, channels *[]*ChannelOutput) {
	c.object(
		may("topics", func(c cursor) {
			c.list(func(c cursor) {
				if o := c.output(outputTopic); o != nil {
					*topics = append(*topics, o)
				}
			})
		}),
		may("channels", func(c cursor) {
			c.list(func(c cursor) {
				if o := c.channelOutput(); o != nil {
					*channels = append(*channels, o)
				}
			})
		}),
	)
}

func (c cursor) channelOutput() *ChannelOutput {
	o := &ChannelOutput{Pos: c.at}
	if c.object(
		must("name", func(c cursor) { c.named(&o.Name) }),
		may("keySelector", func(c cursor) { c.code(&o.KeySelector) }),
		may("valueSelector", func(c cursor) { c.code(&o.ValueSelector) }),
		may("headersSelector", func(c cursor) { c.code(&o.HeadersSelector) }),
		may("predicate", func(c cursor) { c.code(&o.Predicate) }),
		old("headerSelector", "headersSelector"),
	) == nil {
		return nil
	}
	return o
}
