package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"kaspr.io/kaspr/engine/cron"
)

// Whatever a file holds, reading it ends soon, does not panic, every problem has a place inside the file, and what is
// accepted is complete: the runtime does not check again.
func FuzzManifest(f *testing.F) {
	for _, pattern := range []string{"testdata/*.yaml", "../../examples/*/*.yaml", "../../testdata/conformance/*/*.y*ml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: no files, %v", pattern, err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(content)
			for _, doc := range bytes.Split(content, []byte("\n---\n")) {
				f.Add(doc)
			}
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		set, problems := Parse("f.yaml", content)
		// NEL, LS and PS end lines in YAML 1.1 as well.
		lines := bytes.Count(content, []byte("\n")) + bytes.Count(content, []byte("\r")) + 2
		for _, s := range []string{"\u0085", "\u2028", "\u2029"} {
			lines += bytes.Count(content, []byte(s))
		}
		last := Pos{}
		for _, p := range problems {
			if p.ID == "" || p.Text == "" || p.File != "f.yaml" || p.Line < 1 || p.Line > lines {
				t.Errorf("problem without a place or a text: %+v", p)
			}
			if p.Line < last.Line {
				t.Errorf("problems out of order: %v after %v", p.Pos, last)
			}
			last = p.Pos
		}
		if !problems.Fatal() {
			complete(t, set)
		}
		for _, name := range append(set.AppNames(), "", "x") {
			if app, problems := set.ChooseApp(name); (app == nil) != problems.Fatal() {
				t.Errorf("app %q: both or neither of an app and a problem", name)
			}
			ordered(t, set, name)
		}
		if settings, _ := ReadSettings("f.yaml", content); len(settings) > len(content) {
			t.Error("more settings than bytes")
		}
	})
}

// complete checks what the readers promise of a set without errors.
func complete(t *testing.T, set *Set) {
	missing := func(m *Meta, what string) { t.Errorf("%s was accepted without %s", m.Label(), what) }
	for _, m := range set.Components() {
		if !m.Name.Set() || !m.App.Set() && !m.Definition {
			missing(m, "a name or an app")
		}
	}
	pipeline := func(m *Meta, p *Processors, needed bool) {
		if needed && len(p.Pipeline) == 0 {
			missing(m, "a pipeline")
		}
		for _, name := range p.Pipeline {
			if p.Operation(name.V) == nil {
				missing(m, "operation "+name.V)
			}
		}
		for _, op := range p.Operations {
			kinds := 0
			for _, there := range []bool{op.Map != nil, op.Filter != nil, op.TopicSend != nil} {
				if there {
					kinds++
				}
			}
			if kinds != 1 {
				missing(m, "exactly one of map, filter and topicSend")
			}
		}
	}
	for _, a := range set.Agents {
		pipeline(&a.Meta, &a.Processors, true)
		if (a.Input.Topic == nil) == (a.Input.Channel == nil) {
			missing(&a.Meta, "exactly one input")
		}
		if a.Input.Topic != nil && (len(a.Input.Topic.Names) == 0) == !a.Input.Topic.Pattern.Set() {
			missing(&a.Meta, "exactly one of name and pattern")
		}
	}
	set.sends(func(by *Meta, channel Value[string]) {
		if !channel.Set() {
			missing(by, "a channel's name")
		}
	})
	for _, w := range set.WebViews {
		pipeline(&w.Meta, &w.Processors, false)
		if !w.Method.Set() || w.Route == nil || w.Route.Match == nil {
			missing(&w.Meta, "a method or a path")
		}
	}
	for _, k := range set.Tasks {
		pipeline(&k.Meta, &k.Processors, true)
		if s := k.Schedule; s != nil {
			if s.Interval.Set() == s.Cron.Set() || s.Interval.Set() && s.Interval.V <= 0 {
				missing(&k.Meta, "exactly one of interval and cron")
			}
			if zone := s.Zone(); s.Cron.Set() {
				if _, err := cron.Parse(s.Cron.V, zone); err != nil {
					t.Errorf("%s: %v", k.Label(), err)
				}
			}
		}
	}
	for _, j := range set.Joins {
		if !j.LeftTable.Set() || !j.RightTable.Set() || j.Extractor == nil || j.Channel() == "" {
			missing(&j.Meta, "a table or an extractor")
		}
	}
	for m, refs := range set.graph().refs {
		for _, ref := range refs {
			if ref.to.first(m) == nil {
				missing(m, ref.what+" "+ref.name.V)
			}
		}
	}
}

// ordered checks that every component of an app is there once, after what it refers to, circles aside.
func ordered(t *testing.T, set *Set, app string) {
	list := set.Ordered(app)
	place := map[*Meta]int{}
	for i, m := range list {
		if _, twice := place[m]; twice || !m.Of(app) {
			t.Errorf("app %q: %s stands twice, or is not its", app, m.Label())
		}
		place[m] = i
	}
	for _, m := range set.Components() {
		if _, there := place[m]; there != m.Of(app) {
			t.Errorf("app %q: %s is left out, or is not its", app, m.Label())
		}
	}
	g := set.graph()
	circles := false
	g.ordered(func([]*Meta, reference) { circles = true })
	for m, refs := range g.refs {
		for _, ref := range refs {
			for _, to := range slices.Concat(ref.to.near(m)...) {
				if !circles && m.Of(app) && to.Of(app) && place[to] > place[m] {
					t.Errorf("app %q: %s comes before %s", app, m.Label(), to.Label())
				}
			}
		}
	}
}

// Whatever a path is, it is refused or matches only whole paths, and its parameters are all there.
func FuzzRoute(f *testing.F) {
	for _, seed := range []string{"/", "/a/{b}", `/{day:\d{4}}/{x:.+}.txt`, "/{a}{b}", "{a:{}", `/{a:\}}`, "/{a:|}"} {
		f.Add(seed, "/a/b")
	}
	f.Fuzz(func(t *testing.T, path, request string) {
		r, err := ParseRoute(path)
		if err != nil {
			return
		}
		for _, name := range r.Params {
			if r.Match.SubexpIndex(name) < 0 {
				t.Errorf("%q: no group %q in %s", path, name, r.Match)
			}
		}
		if m := r.Match.FindString(request); r.Match.MatchString(request) && m != request && !slices.Contains([]byte(request), '\n') {
			t.Errorf("%q matches %q of %q", path, m, request)
		}
		if r.Text != "" && !r.Match.MatchString(r.Text) {
			t.Errorf("%q does not match itself", path)
		}
	})
}
