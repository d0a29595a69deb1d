package manifest

import (
	"slices"
	"strings"
)

const (
	hintsMax   = 100 // the search for what was meant goes through all names each time
	circlesMax = 20  // a few agents that all read and feed one channel make a great many
	circleMax  = 8   // components named of one circle
)

// check finds what is wrong between documents: names used twice, names of nothing, circles.
func (s *Set) check(problems *Errors) {
	report := func(level Level, at Pos, id, text, hint string) {
		*problems = append(*problems, Error{Pos: at, ID: id, Level: level, Text: text, Hint: hint})
	}
	fail := func(at Pos, id, text, hint string) { report(LevelError, at, id, text, hint) }
	s.checkNames(fail)
	s.checkRoutes(fail)

	g, hints := s.graph(), hintsMax
	for _, m := range g.nodes {
		for _, ref := range g.refs[m] {
			if ref.to.first(m) != nil {
				continue
			}
			hint := ""
			if hints--; hints >= 0 {
				hint = didYouMean(ref.name.V, g.alternatives(m, ref))
			}
			fail(ref.name.Pos, Undefined, ref.by+ref.what+" "+quote(ref.name.V)+" "+ref.missing, hint)
		}
	}
	circles := circlesMax
	g.ordered(func(path []*Meta, closing reference) {
		if circles--; circles >= 0 {
			fail(closing.name.Pos, Cycle, "channel "+quote(closing.name.V)+" closes a circle: "+circle(path), "send through a topic if records shall go round")
		}
	})
	unread := func(m *Meta, at Pos, channel string) {
		if g.readers[channel].first(m) == nil {
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
	s.sends(func(by *Meta, channel Value[string]) {
		if channel.Set() {
			unread(by, channel.Pos, channel.V)
		}
	})
}

// checkNames finds components of one kind and app with one name, and labels of apps that are not there.
func (s *Set) checkNames(fail func(at Pos, id, text, hint string)) {
	var all []*Meta
	for _, a := range s.Apps {
		all = append(all, &a.Meta)
	}
	type key struct{ kind, name string }
	seen := directory[key]{}
	for _, m := range append(all, s.Components()...) {
		if !m.Name.Set() {
			continue
		}
		k := key{m.Kind, m.Name.V}
		if first := seen[k].first(m); first != nil {
			fail(m.Name.Pos, DuplicateName, m.Label()+" is defined twice", "first at "+first.Name.Pos.String())
			continue
		}
		seen.add(k, m)
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
	seen, places := directory[key]{}, map[*Meta]Pos{}
	for _, w := range s.WebViews {
		if w.Route == nil || !w.Method.Set() {
			continue
		}
		k := key{w.Method.V, w.Route.Shape}
		if first := seen[k].first(&w.Meta); first != nil {
			fail(w.Path.Pos, DuplicateRoute, w.Label()+" answers "+w.Method.V+" "+quote(w.Path.V)+", as does "+first.Label(), "first at "+places[first].String())
			continue
		}
		seen.add(k, &w.Meta)
		places[&w.Meta] = w.Path.Pos
	}
}

// circle names the components of a circle, from one that sends to one that reads.
func circle(path []*Meta) string {
	var labels []string
	for _, m := range path[:min(len(path), circleMax)] {
		labels = append(labels, m.Label())
	}
	if len(path) > circleMax {
		labels = append(labels, "…")
	}
	labels = append(labels, path[0].Label())
	slices.Reverse(labels)
	return strings.Join(labels, " → ")
}
