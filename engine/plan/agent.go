package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/engine/registry"
	"kaspr.io/kaspr/wasmhost/abi"
)

func (b *builder) agent(m *manifest.Agent) Agent {
	a := Agent{
		Name: m.Name.V, Label: m.Label(), Pos: m.Pos,
		Isolated: m.IsolatedPartitions.V,
		Program: abi.Program{
			Kind: manifest.KindAgent, Name: m.Name.V, App: b.info, Env: b.env,
			Init:      code(m.Processors.Init, "init"),
			Ops:       []abi.Operation{},
			Outputs:   []abi.Output{},
			JSONExact: b.cfg.JSONValueStyle == config.JSONOriginal,
		},
	}
	b.input(&a, m)
	for _, name := range m.Processors.Pipeline {
		if op := m.Processors.Operation(name.V); op != nil {
			a.Program.Ops = append(a.Program.Ops, b.operation(&a, op))
		}
	}
	for i, o := range m.Outputs {
		a.Program.Outputs = append(a.Program.Outputs, b.output(&a, o, outputName(o, i)))
	}
	for _, o := range m.Channels {
		a.Program.Outputs = append(a.Program.Outputs, b.channel(&a, o))
	}
	b.use(&a, &m.Processors)
	a.OnError = b.policy(&a, m.Name, m.OnError)
	return a
}

// outputName names an output in messages, by its topic or its place in the list.
func outputName(o *manifest.Output, index int) string {
	if o.Name.Set() {
		return "output " + strconv.Quote(o.Name.V)
	}
	return "output " + strconv.Itoa(index+1)
}

func (b *builder) input(a *Agent, m *manifest.Agent) {
	in := m.Input
	if in.Take != nil {
		a.Take = &Take{Max: in.Take.Max.V, Within: in.Take.Within.V}
		if a.Take.Within == 0 && a.Take.Max > b.cfg.QueueRecordsMax {
			b.fail(in.Take.Max.Pos, manifest.OutOfRange, fmt.Sprintf("%s: take.max %d can never be reached: at most %d records wait for an agent", a.Label, a.Take.Max, b.cfg.QueueRecordsMax),
				"raise queueRecordsMax, or give within a time")
		}
	}
	t := in.Topic
	if t == nil && in.Channel == nil {
		return // reported
	}
	if t == nil {
		a.Topics = []string{ChannelTopic(b.info.ID, in.Channel.Name.V)}
		a.Program.Input = abi.Input{KeySerializer: abi.Channel, ValueSerializer: abi.Channel}
		return
	}
	a.Program.Input = abi.Input{
		KeySerializer:   t.KeySerializer.Or(b.cfg.KeySerializer),
		ValueSerializer: t.ValueSerializer.Or(b.cfg.ValueSerializer),
	}
	b.needsRegistry(a.Program.Input.KeySerializer, a.Label+", input", in.Pos)
	b.needsRegistry(a.Program.Input.ValueSerializer, a.Label+", input", in.Pos)
	if t.Pattern.Set() {
		pattern, err := manifest.TopicPattern(t.Pattern.V)
		if err != nil {
			panic("BUG: a pattern that was checked does not compile: " + err.Error())
		}
		a.Pattern = pattern
		return
	}
	for _, name := range t.Names {
		a.Topics = append(a.Topics, name.V)
		if in.Declare.V {
			b.declare(name.V, &t.TopicOptions, a.Label+", input", in.Declare.Pos)
		}
	}
}

func (b *builder) operation(a *Agent, m *manifest.Operation) abi.Operation {
	where := "operation " + strconv.Quote(m.Name.V)
	op := abi.Operation{
		Name:   m.Name.V,
		Map:    code(m.Map, where+", map"),
		Filter: code(m.Filter, where+", filter"),
	}
	if m.TopicSend != nil {
		send := b.output(a, m.TopicSend, where)
		op.Send, op.PassThrough = &send, m.TopicSend.PassThrough.V
	}
	for _, ref := range m.Tables {
		op.Tables = append(op.Tables, abi.TableRef{Name: ref.Name.V, ParamName: ref.ParamName.V})
	}
	return op
}

func (b *builder) output(a *Agent, m *manifest.Output, where string) abi.Output {
	keys := b.cfg.KeySerializer
	if m.CarryKey.V {
		keys = b.carriedKey(a, m.CarryKey.Pos, where)
	}
	o := abi.Output{
		Topic:             m.Name.V,
		NameSelector:      code(m.NameSelector, where+", nameSelector"),
		CarryKey:          m.CarryKey.V,
		KeySerializer:     m.KeySerializer.Or(keys),
		ValueSerializer:   m.ValueSerializer.Or(b.cfg.ValueSerializer),
		Ack:               m.Ack.V,
		KeySelector:       code(m.KeySelector, where+", keySelector"),
		ValueSelector:     code(m.ValueSelector, where+", valueSelector"),
		PartitionSelector: code(m.PartitionSelector, where+", partitionSelector"),
		HeadersSelector:   code(m.HeadersSelector, where+", headersSelector"),
		Predicate:         code(m.Predicate, where+", predicate"),
	}
	o.KeySchema = b.schema(a, m.KeySchema, where+", keySchema", registry.Target{Serializer: o.KeySerializer, Key: true, Topic: o.Topic}, m.Pos)
	o.ValueSchema = b.schema(a, m.ValueSchema, where+", valueSchema", registry.Target{Serializer: o.ValueSerializer, Topic: o.Topic}, m.Pos)
	if m.Schedule != nil {
		b.scheduled(&o, m, where)
	}
	if o.Topic != "" && !slices.Contains(a.OutputTopics, o.Topic) {
		a.OutputTopics = append(a.OutputTopics, o.Topic)
	}
	if m.Declare.V {
		o.Declare = b.declare(m.Name.V, &m.TopicOptions, a.Label+", "+where, m.Declare.Pos)
	}
	return o
}

// carriedKey finds where there is no key that an output could carry on, and says how one is written unless the output does: as it was read.
func (b *builder) carriedKey(a *Agent, at manifest.Pos, where string) string {
	switch {
	case a.Program.Kind != manifest.KindAgent:
		b.fail(at, manifest.Contradiction, a.Label+", "+where+": there is no record whose key carryKey could keep", "give the key by keySelector")
	case a.Take != nil:
		b.fail(at, manifest.Contradiction, a.Label+", "+where+": take hands on lists, and carryKey keeps the key of one record", "give the key by keySelector")
	}
	if in := a.Program.Input.KeySerializer; in != "" && in != abi.Channel {
		return in
	}
	return b.cfg.KeySerializer
}

// code is a block as the guest takes it; nil stays nil.
func code(c *manifest.Code, where string) *abi.Code {
	if c == nil {
		return nil
	}
	return &abi.Code{
		Python: c.Python.V, Entrypoint: c.Entrypoint.V,
		File: c.Text.File, Line: c.Text.Line, Where: where,
	}
}

// internal tells whether a topic is the app's own, which a pattern never subscribes to.
func (b *builder) internal(topic string) bool { return strings.HasPrefix(topic, b.info.ID+"-") }
