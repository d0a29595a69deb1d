package plan

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/manifest"
)

// Manifests that are wrong are planned as well, so that all problems come at once. Whatever is missing or wrong in a file, every app of
// it has a plan or errors, and nothing panics.
func FuzzPlan(f *testing.F) {
	for _, content := range manifests(f, "../manifest/testdata/*.yaml", "testdata/*.yaml", "../../examples/*/*.yaml", "../../testdata/conformance/*/*.y*ml") {
		f.Add([]byte(content))
	}
	layers := config.Read(config.Sources{Offline: true})
	f.Fuzz(func(t *testing.T, content []byte) { planAll(t, layers, string(content)) })
}

var member = regexp.MustCompile(`([A-Za-z]+):`)

// What a user leaves out or misspells must not take the process down: each member of manifests that use all of them, in turn, by another
// name, and each value of another type.
func TestNoMemberIsTakenForGranted(t *testing.T) {
	layers := config.Read(config.Sources{Offline: true})
	all := strings.Join(manifests(t, "../manifest/testdata/ok-*.yaml", "testdata/*.yaml"), "\n---\n")
	for content := range strings.SplitSeq(all, "\n---\n") {
		for _, at := range member.FindAllStringIndex(content, -1) {
			before, name, after := content[:at[0]], content[at[0]:at[1]-1], content[at[1]:]
			planAll(t, layers, before+name+"Misspelt:"+after)
			if line, rest, _ := strings.Cut(after, "\n"); strings.TrimSpace(line) != "" {
				planAll(t, layers, before+name+": 5\n"+rest)
				planAll(t, layers, before+name+": {}\n"+rest)
			}
			if t.Failed() {
				t.Fatalf("with %q\n%s", name, content)
			}
		}
	}
}

// planAll plans what the text holds.
func planAll(t *testing.T, layers *config.Layers, content string) {
	t.Helper()
	set, _ := manifest.Parse("f.yaml", []byte(content))
	for _, name := range set.AppNames() {
		app, problems := set.ChooseApp(name)
		if problems.Fatal() {
			continue
		}
		cfg, problems := layers.Config(app)
		if problems.Fatal() {
			continue
		}
		cfg.App = name
		if p, problems := New(set, cfg); (p == nil) != problems.Fatal() {
			t.Errorf("app %q: both or neither of a plan and an error: %v", name, problems)
		}
	}
	Blocks(set, "")
}

func manifests(t testing.TB, patterns ...string) (list []string) {
	t.Helper()
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files, %v", pattern, err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, string(content))
		}
	}
	return list
}
