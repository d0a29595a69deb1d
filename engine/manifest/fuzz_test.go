package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// Whatever a file holds, reading it ends soon, does not panic, and every problem has a place inside the file.
func FuzzManifest(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
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
		for _, a := range set.Agents {
			if problems.Fatal() {
				break
			}
			if !a.Name.Set() || (a.Input.Topic == nil) == (a.Input.Channel == nil) || len(a.Processors.Pipeline) == 0 {
				t.Errorf("an agent was accepted with something missing: %+v", a)
			}
			for _, name := range a.Processors.Pipeline {
				if a.Processors.Operation(name.V) == nil {
					t.Errorf("operation %q is not defined and was accepted", name.V)
				}
			}
		}
		for _, name := range append(set.AppNames(), "", "x") {
			if app, problems := set.ChooseApp(name); (app == nil) != problems.Fatal() {
				t.Errorf("app %q: both or neither of an app and a problem", name)
			}
		}
		if settings, _ := ReadSettings("f.yaml", content); len(settings) > len(content) {
			t.Error("more settings than bytes")
		}
	})
}
