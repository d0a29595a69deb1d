package plan

import (
	"fmt"

	"kaspr.io/kaspr/engine/manifest"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Blocks is all Code of an app's components, one Program for each, so that it can be checked before anything else is known
// to be right: of every kind, run by this version or not. With no app it is the Code of every component.
func Blocks(set *manifest.Set, app string) []abi.Program {
	var list []abi.Program
	add := func(m *manifest.Meta, init *manifest.Code, blocks blocks) {
		if app != "" && !m.Of(app) || init == nil && len(blocks) == 0 {
			return
		}
		list = append(list, abi.Program{Kind: m.Kind, Name: m.Name.V, Init: code(init, "init"), Blocks: blocks})
	}
	for _, a := range set.Agents {
		b := ofProcessors(&a.Processors)
		b.outputs(a.Outputs)
		b.channels(a.Channels)
		add(&a.Meta, a.Processors.Init, b)
	}
	for _, t := range set.Tables {
		var b blocks
		b.add("", "defaultSelector", t.DefaultSelector)
		if t.Window != nil {
			b.add("window, ", "relativeToSelector", t.Window.RelativeToSelector)
		}
		add(&t.Meta, nil, b)
	}
	for _, w := range set.WebViews {
		b := ofProcessors(&w.Processors)
		b.results("bodySelector, ", w.Response.BodySelector)
		b.results("statusCodeSelector, ", w.Response.StatusCodeSelector)
		b.results("headersSelector, ", w.Response.HeadersSelector)
		add(&w.Meta, w.Processors.Init, b)
	}
	for _, t := range set.Tasks {
		b := ofProcessors(&t.Processors)
		b.outputs(t.Outputs)
		b.channels(t.Channels)
		add(&t.Meta, t.Processors.Init, b)
	}
	for _, j := range set.Joins {
		var b blocks
		b.add("", "extractor", j.Extractor)
		add(&j.Meta, nil, b)
	}
	return list
}

type blocks []abi.Block

func (b *blocks) add(where, role string, c *manifest.Code) {
	if c != nil {
		*b = append(*b, abi.Block{Role: role, Code: code(c, where+role)})
	}
}

// ofProcessors takes every operation, in a pipeline or not.
func ofProcessors(p *manifest.Processors) blocks {
	var b blocks
	for _, op := range p.Operations {
		where := fmt.Sprintf("operation %q, ", op.Name.V)
		b.add(where, "map", op.Map)
		b.add(where, "filter", op.Filter)
		if op.TopicSend != nil {
			b.output(where, op.TopicSend)
		}
	}
	return b
}

func (b *blocks) outputs(list []*manifest.Output) {
	for i, o := range list {
		b.output(outputName(o, i)+", ", o)
	}
}

func (b *blocks) channels(list []*manifest.ChannelOutput) {
	for _, o := range list {
		where := fmt.Sprintf("channel %q, ", o.Name.V)
		b.add(where, "keySelector", o.KeySelector)
		b.add(where, "valueSelector", o.ValueSelector)
		b.add(where, "headersSelector", o.HeadersSelector)
		b.add(where, "predicate", o.Predicate)
	}
}

func (b *blocks) output(where string, o *manifest.Output) {
	b.add(where, "predicate", o.Predicate)
	b.add(where, "nameSelector", o.NameSelector)
	b.add(where, "keySelector", o.KeySelector)
	b.add(where, "valueSelector", o.ValueSelector)
	b.add(where, "partitionSelector", o.PartitionSelector)
	b.add(where, "headersSelector", o.HeadersSelector)
	if s := o.Schedule; s != nil {
		b.add(where, "schedule.deliverAt", s.DeliverAt)
		b.add(where, "schedule.delay", s.Delay)
		b.add(where, "schedule.requestId", s.RequestID)
	}
}

func (b *blocks) results(where string, s *manifest.ResultSelector) {
	if s != nil {
		b.add(where, "onSuccess", s.OnSuccess)
		b.add(where, "onError", s.OnError)
	}
}
