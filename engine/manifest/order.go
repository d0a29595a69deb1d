package manifest

import (
	"maps"
	"slices"
)

// namesakes are components that can be referred to by one name, in the order they were added.
type namesakes struct {
	all         []*Meta
	byApp       map[string][]*Meta // those of one app
	definitions []*Meta            // those of any
}

func (n *namesakes) add(m *Meta) {
	switch {
	case len(n.all) > 0 && n.all[len(n.all)-1] == m: // one may name a channel twice
		return
	case m.Definition:
		n.definitions = append(n.definitions, m)
	default:
		n.byApp[m.App.V] = append(n.byApp[m.App.V], m)
	}
	n.all = append(n.all, m)
}

// near are those that can be in one app with m.
func (n *namesakes) near(m *Meta) [][]*Meta {
	switch {
	case n == nil:
		return nil
	case m.Definition:
		return [][]*Meta{n.all}
	}
	return [][]*Meta{n.byApp[m.App.V], n.definitions}
}

// first is one of those near m; nil: there is none.
func (n *namesakes) first(m *Meta) *Meta {
	for _, list := range n.near(m) {
		if len(list) > 0 {
			return list[0]
		}
	}
	return nil
}

// directory finds components by name, or by whatever else may stand only once in an app.
type directory[K comparable] map[K]*namesakes

func (d directory[K]) add(name K, m *Meta) {
	n := d[name]
	if n == nil {
		n = &namesakes{byApp: map[string][]*Meta{}}
		d[name] = n
	}
	n.add(m)
}

// reference is a name in one component that stands for another.
type reference struct {
	by      string // whose it is, where messages name that
	what    string // table, channel
	name    Value[string]
	to      *namesakes
	missing string // what is said of a name that stands for nothing
}

// graph knows what each component refers to.
type graph struct {
	nodes            []*Meta // in file order
	refs             map[*Meta][]reference
	tables, channels directory[string]
	readers          directory[string] // of channels
}

func (s *Set) graph() *graph {
	g := &graph{
		nodes: s.Components(), refs: map[*Meta][]reference{},
		tables: directory[string]{}, channels: directory[string]{}, readers: directory[string]{},
	}
	for _, t := range s.Tables {
		g.tables.add(t.Name.V, &t.Meta)
	}
	for _, j := range s.Joins {
		g.channels.add(j.Channel(), &j.Meta)
	}
	s.sends(func(by *Meta, channel Value[string]) { g.channels.add(channel.V, by) })
	refer := func(from *Meta, ref reference) {
		if ref.name.Set() {
			g.refs[from] = append(g.refs[from], ref)
		}
	}
	table := func(from *Meta, name Value[string]) {
		refer(from, reference{what: "table", name: name, to: g.tables[name.V], missing: "is not defined"})
	}
	operations := func(owner *Meta, p *Processors) {
		for _, op := range p.Operations {
			for _, ref := range op.Tables {
				table(owner, ref.Name)
			}
		}
	}
	for _, a := range s.Agents {
		if a.Input.Channel != nil {
			name := a.Input.Channel.Name
			refer(&a.Meta, reference{by: a.Label() + ": ", what: "channel", name: name, to: g.channels[name.V], missing: "is not the output of any join, agent or task"})
			g.readers.add(name.V, &a.Meta)
		}
		operations(&a.Meta, &a.Processors)
	}
	for _, w := range s.WebViews {
		operations(&w.Meta, &w.Processors)
	}
	for _, t := range s.Tasks {
		operations(&t.Meta, &t.Processors)
	}
	for _, j := range s.Joins {
		table(&j.Meta, j.LeftTable)
		table(&j.Meta, j.RightTable)
	}
	return g
}

// sends tells of every channel that an output of an agent or a task names.
func (s *Set) sends(each func(by *Meta, channel Value[string])) {
	for _, a := range s.Agents {
		for _, o := range a.Channels {
			each(&a.Meta, o.Name)
		}
	}
	for _, t := range s.Tasks {
		for _, o := range t.Channels {
			each(&t.Meta, o.Name)
		}
	}
}

// alternatives are the names that a reference of from could have meant.
func (g *graph) alternatives(from *Meta, ref reference) []string {
	d := g.tables
	if ref.what == "channel" {
		d = g.channels
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(d)) {
		if d[name].first(from) != nil {
			list = append(list, name)
		}
	}
	return list
}

// ordered puts the components after what they refer to, in file order otherwise. cycle is told of every way back to a
// component that is not done yet: the components from there on, and the reference that closes the circle.
func (g *graph) ordered(cycle func(path []*Meta, closing reference)) []*Meta {
	const done = -1
	var path, list []*Meta
	state := map[*Meta]int{}      // 0: not seen; done; else its place in path, from 1
	past := map[*namesakes]bool{} // all of them are done: many may refer to many
	var visit func(m *Meta)
	visit = func(m *Meta) {
		path = append(path, m)
		state[m] = len(path)
		for _, ref := range g.refs[m] {
			if ref.to == nil || past[ref.to] {
				continue
			}
			for _, near := range ref.to.near(m) {
				for _, to := range near {
					switch at := state[to]; at {
					case 0:
						visit(to)
					case done:
					default:
						cycle(path[at-1:], ref)
					}
				}
			}
			past[ref.to] = !slices.ContainsFunc(ref.to.all, func(to *Meta) bool { return state[to] != done })
		}
		path = path[:len(path)-1]
		state[m] = done
		list = append(list, m)
	}
	for _, m := range g.nodes {
		if state[m] == 0 {
			visit(m)
		}
	}
	return list
}

// Ordered are the components of an app, each after those it refers to: tables before joins and operations that use them,
// joins, agents and tasks before the agents that read their channels. File order decides the rest, whatever the files' order.
func (s *Set) Ordered(app string) []*Meta {
	var list []*Meta
	for _, m := range s.graph().ordered(func([]*Meta, reference) {}) { // check reports circles
		if m.Of(app) {
			list = append(list, m)
		}
	}
	return list
}
