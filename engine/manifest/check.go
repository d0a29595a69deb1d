package manifest

import "slices"

// check finds what is wrong between documents: names used twice, names of nothing.
func (s *Set) check(problems *Errors) {
	report := func(at Pos, id, text, hint string) {
		*problems = append(*problems, Error{Pos: at, ID: id, Text: text, Hint: hint})
	}
	type key struct{ kind, app, name string }
	first := map[key]Pos{}
	unique := func(m *Meta) {
		if !m.Name.Set() {
			return
		}
		k := key{m.Kind, m.App.V, m.Name.V}
		if at, twice := first[k]; twice {
			report(m.Name.Pos, DuplicateName, m.Label()+" is defined twice", "first at "+at.String())
			return
		}
		first[k] = m.Name.Pos
	}
	for _, a := range s.Apps {
		unique(&a.Meta)
	}
	for _, m := range s.Components() {
		unique(m)
	}

	// Without any KasprApp the labels stand for themselves; with one, a label that names another app is a mistake.
	var apps []string
	for _, a := range s.Apps {
		apps = append(apps, a.Name.V)
	}
	for _, m := range s.Components() {
		if len(apps) > 0 && m.App.Set() && !slices.Contains(apps, m.App.V) {
			report(m.App.Pos, UnknownApp, m.Label()+" belongs to app "+quote(m.App.V)+", which has no KasprApp manifest", didYouMean(m.App.V, apps))
		}
	}

	// References stay inside one app.
	tables := func(owner *Meta, ref Value[string]) {
		var defined []string
		for _, t := range s.Tables {
			if t.App.V == owner.App.V {
				defined = append(defined, t.Name.V)
			}
		}
		if ref.Set() && !slices.Contains(defined, ref.V) {
			report(ref.Pos, Undefined, "table "+quote(ref.V)+" is not defined", didYouMean(ref.V, defined))
		}
	}
	operations := func(owner *Meta, p *Processors) {
		for _, op := range p.Operations {
			for _, ref := range op.Tables {
				tables(owner, ref.Name)
			}
		}
	}
	for _, a := range s.Agents {
		operations(&a.Meta, &a.Processors)
		if a.Input.Channel == nil {
			continue
		}
		var channels []string
		for _, j := range s.Joins {
			if j.App.V == a.App.V {
				channels = append(channels, j.Channel())
			}
		}
		if name := a.Input.Channel.Name; name.Set() && !slices.Contains(channels, name.V) {
			report(name.Pos, Undefined, "channel "+quote(name.V)+" is not the output of any join", didYouMean(name.V, channels))
		}
	}
	for _, w := range s.WebViews {
		operations(&w.Meta, &w.Processors)
	}
	for _, t := range s.Tasks {
		operations(&t.Meta, &t.Processors)
	}
	for _, j := range s.Joins {
		tables(&j.Meta, j.LeftTable)
		tables(&j.Meta, j.RightTable)
	}
}
