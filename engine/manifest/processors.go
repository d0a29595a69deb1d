package manifest

import (
	"strconv"

	"go.yaml.in/yaml/v3"
)

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

const tablesMax = 16 // of an operation; TABLES_MAX of the guest

// TableRef hands a table to an operation's function as a keyword argument.
type TableRef struct {
	Pos       Pos
	Name      Value[string]
	ParamName Value[string]
}

// processors reads a pipeline and the operations it names. A web view may do without: it answers with nothing.
func (c cursor) processors(p *Processors, where place, needed bool) {
	p.Pos = c.at
	nameless := false
	pipeline := may
	if c.sketching && needed {
		pipeline = must // without it there is a message of its own, below
	}
	there := c.object(
		pipeline("pipeline", func(c cursor) {
			c.list(func(c cursor) {
				var name Value[string]
				if c.named(&name) {
					p.Pipeline = append(p.Pipeline, name)
				}
			})
			if needed && c.node.Kind == yaml.SequenceNode && len(c.node.Content) == 0 {
				c.failAt(c.at, EmptyPipeline, c.name()+" is empty", "list the operations to run")
			}
		}),
		may("init", func(c cursor) {
			c.code(&p.Init)
			if p.Init != nil && p.Init.Entrypoint.Set() {
				c.warnAt(p.Init.Entrypoint.Pos, NoEffect, "entrypoint of "+c.name()+" has no effect: the block itself is run", "")
			}
		}),
		may("operations", func(c cursor) {
			c.list(func(c cursor) { nameless = !c.operation(p, where) || nameless })
		}),
	)
	if there == nil {
		return
	}
	if needed && !there["pipeline"] {
		c.failAt(c.at, EmptyPipeline, c.name()+" has no pipeline", "list the operations to run")
		return
	}
	var defined []string
	for _, op := range p.Operations {
		defined = append(defined, op.Name.V)
	}
	used := map[string]bool{}
	for _, name := range p.Pipeline {
		used[name.V] = true
		if p.Operation(name.V) == nil && !nameless {
			c.failAt(name.Pos, Undefined, "operation "+quote(name.V)+" is not defined", didYouMean(name.V, defined))
		}
	}
	for _, op := range p.Operations {
		if !used[op.Name.V] {
			c.warnAt(op.Name.Pos, UnusedOperation, "operation "+quote(op.Name.V)+" is not in the pipeline", "")
		}
	}
}

// operation reads one operation and tells whether its name is known.
func (c cursor) operation(p *Processors, where place) bool {
	op := &Operation{Pos: c.at}
	name := must
	if where == otherPipeline {
		name = may // as the resource schema of web views has it
	}
	there := c.of(where.operation()).object(
		name("name", func(c cursor) { c.named(&op.Name) }),
		may("tables", func(c cursor) {
			c.list(func(c cursor) { c.tableRef(op) })
		}),
		may("map", func(c cursor) { c.code(&op.Map) }),
		may("filter", func(c cursor) { c.code(&op.Filter) }),
		may("topicSend", func(c cursor) { op.TopicSend = c.output(where) }),
	)
	if there == nil {
		return false
	}
	c.exactlyOne(there, "map", "filter", "topicSend")
	if !there["name"] && where == otherPipeline {
		c.warnAt(c.at, UnusedOperation, c.name()+" has no name: no pipeline can name it", "")
		return true
	}
	if !op.Name.Set() {
		return false
	}
	if first := p.Operation(op.Name.V); first != nil {
		c.failAt(op.Name.Pos, NamedTwice, "operation "+quote(op.Name.V)+" is defined twice", "first in line "+strconv.Itoa(first.Name.Pos.Line))
		return true
	}
	p.Operations = append(p.Operations, op)
	return true
}

func (c cursor) tableRef(op *Operation) {
	ref := TableRef{Pos: c.at}
	if c.of("TableRef").object(
		must("name", func(c cursor) { c.named(&ref.Name) }),
		must("paramName", func(c cursor) { c.identifier(&ref.ParamName) }),
	) == nil {
		return
	}
	for _, other := range op.Tables {
		if ref.ParamName.Set() && other.ParamName.V == ref.ParamName.V {
			c.failAt(ref.ParamName.Pos, NamedTwice, "paramName "+quote(ref.ParamName.V)+" is used twice in one operation", "")
		}
	}
	if op.Tables = append(op.Tables, ref); len(op.Tables) == tablesMax+1 {
		c.failAt(ref.Pos, OutOfRange, "an operation has at most "+strconv.Itoa(tablesMax)+" tables", "context[\"app\"].tables has all of them")
	}
}
