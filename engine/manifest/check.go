package manifest

import (
	"slices"
	"strings"
)

// check finds what is wrong between documents: names used twice, names of nothing, circles.
func (s *Set) check(problems *Errors) {
	report := func(level Level, at Pos, id, text, hint string) {
		*problems = append(*problems, Error{Pos: at, ID: id, Level: level, Text: text, Hint: hint})
	}
	fail := func(at Pos, id, text, hint string) { report(LevelError, at, id, text, hint) }
	s.checkNames(fail)
	s.checkRoutes(fail)

	g := s.graph()
	for _, m := range g.nodes {
		for _, ref := range g.refs[m] {
			if len(ref.to) == 0 {
				fail(ref.name.Pos, Undefined, ref.what+" "+quote(ref.name.V)+" "+ref.missing, didYouMean(ref.name.V, ref.among.names(m)))
			}
		}
	}
	g.ordered(func(path []*Meta, closing reference) {
		labels := make([]string, 0, len(path)+1)
		for _, m := range append(slices.Clone(path), path[0]) {
			labels = append(labels, m.Label())
		}
		slices.Reverse(labels) // from the one that sends to the one that reads
		fail(closing.name.Pos, Cycle, "channel "+quote(closing.name.V)+" closes a circle: "+strings.Join(labels, " → "), "send through a topic if records shall go round")
	})
	unread := func(m *Meta, at Pos, channel string) {
		if !slices.ContainsFunc(g.readers[channel], func(reader *Meta) bool { return together(m, reader) }) {
			report(LevelWarning, at, UnreadChannel, "no agent reads channel "+quote(channel)+" of "+m.Label(), "")
		}
	}
	for _, j := range s.Joins {
		if j.Name.Set() || j.OutputChannel.Set() {
			at := j.Name.Pos
			if j.OutputChannel.Set() {
				at = j.OutputChannel.Pos
			}
			unread(&j.Meta, at, j.Channel())
		}
	}
	for _, a := range s.Agents {
		for _, o := range a.Channels {
			if o.Name.Set() {
				unread(&a.Meta, o.Name.Pos, o.Name.V)
			}
		}
	}
}

// checkNames finds components of one kind and app with one name, and labels of apps that are not there.
func (s *Set) checkNames(fail func(at Pos, id, text, hint string)) {
	var all []*Meta
	for _, a := range s.Apps {
		all = append(all, &a.Meta)
	}
	type key struct{ kind, name string }
	seen := map[key][]*Meta{}
	for _, m := range append(all, s.Components()...) {
		if !m.Name.Set() {
			continue
		}
		k := key{m.Kind, m.Name.V}
		if i := slices.IndexFunc(seen[k], func(other *Meta) bool { return together(m, other) }); i >= 0 {
			fail(m.Name.Pos, DuplicateName, m.Label()+" is defined twice", "first at "+seen[k][i].Name.Pos.String())
			continue
		}
		seen[k] = append(seen[k], m)
	}

	// Without any KasprApp the labels stand for themselves; with one, a label that names another app is a mistake.
	var apps []string
	for _, a := range s.Apps {
		apps = append(apps, a.Name.V)
	}
	for _, m := range s.Components() {
		if len(apps) > 0 && m.App.Set() && !slices.Contains(apps, m.App.V) {
			fail(m.App.Pos, UnknownApp, m.Label()+" belongs to app "+quote(m.App.V)+", which has no KasprApp manifest", didYouMean(m.App.V, apps))
		}
	}
}

// checkRoutes finds two web views that would answer the same requests.
func (s *Set) checkRoutes(fail func(at Pos, id, text, hint string)) {
	type key struct{ method, shape string }
	seen := map[key][]*WebView{}
	for _, w := range s.WebViews {
		if w.Route == nil || !w.Method.Set() {
			continue
		}
		k := key{w.Method.V, w.Route.Shape}
		if i := slices.IndexFunc(seen[k], func(other *WebView) bool { return together(&w.Meta, &other.Meta) }); i >= 0 {
			first := seen[k][i]
			fail(w.Path.Pos, DuplicateRoute, w.Label()+" answers "+w.Method.V+" "+quote(w.Path.V)+", as does "+first.Label(), "first at "+first.Path.Pos.String())
			continue
		}
		seen[k] = append(seen[k], w)
	}
}
