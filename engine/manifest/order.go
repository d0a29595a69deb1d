package manifest

import "slices"

// together tells whether two components can be parts of one app.
func together(a, b *Meta) bool { return a.Definition || b.Definition || a.App.V == b.App.V }

// named are components by a name they can be referred to by.
type named map[string][]*Meta

func (n named) add(name string, m *Meta) {
	if !slices.Contains(n[name], m) {
		n[name] = append(n[name], m)
	}
}

// names are those that a component can refer to.
func (n named) names(from *Meta) []string {
	var list []string
	for name, all := range n {
		if slices.ContainsFunc(all, func(m *Meta) bool { return together(from, m) }) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// reference is a name in one component that stands for another.
type reference struct {
	what  string // table, channel
	name  Value[string]
	to    []*Meta // those it may mean; none: it is dangling
	among named
	// missing is what is said of a name that stands for nothing.
	missing string
}

// graph knows what each component refers to.
type graph struct {
	nodes []*Meta // in file order
	refs  map[*Meta][]reference
	// readers are the channels somebody reads, by name.
	readers named
}

func (s *Set) graph() *graph {
	g := &graph{nodes: s.Components(), refs: map[*Meta][]reference{}, readers: named{}}
	tables, channels := named{}, named{}
	for _, t := range s.Tables {
		tables.add(t.Name.V, &t.Meta)
	}
	for _, j := range s.Joins {
		channels.add(j.Channel(), &j.Meta)
	}
	for _, a := range s.Agents {
		for _, o := range a.Channels {
			channels.add(o.Name.V, &a.Meta)
		}
	}
	refer := func(from *Meta, ref reference) {
		if !ref.name.Set() {
			return
		}
		for _, to := range ref.among[ref.name.V] {
			if together(from, to) {
				ref.to = append(ref.to, to)
			}
		}
		g.refs[from] = append(g.refs[from], ref)
	}
	table := func(from *Meta, name Value[string]) {
		refer(from, reference{what: "table", name: name, among: tables, missing: "is not defined"})
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
			refer(&a.Meta, reference{what: "channel", name: name, among: channels, missing: "is not the output of any join or agent"})
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

// ordered puts the components after what they refer to, in file order otherwise. cycle is told of every way back to a
// component that is not done yet: the components from there on, and the reference that closes the circle.
func (g *graph) ordered(cycle func(path []*Meta, closing reference)) []*Meta {
	const (
		open = 1
		done = 2
	)
	state, path, list := map[*Meta]int{}, []*Meta{}, []*Meta{}
	var visit func(m *Meta)
	visit = func(m *Meta) {
		state[m] = open
		path = append(path, m)
		for _, ref := range g.refs[m] {
			for _, to := range ref.to {
				switch state[to] {
				case 0:
					visit(to)
				case open:
					if cycle != nil {
						cycle(path[slices.Index(path, to):], ref)
					}
				}
			}
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
// joins and agents before the agents that read their channels. File order decides the rest, whatever the files' order.
func (s *Set) Ordered(app string) []*Meta {
	var list []*Meta
	for _, m := range s.graph().ordered(nil) {
		if m.Of(app) {
			list = append(list, m)
		}
	}
	return list
}
