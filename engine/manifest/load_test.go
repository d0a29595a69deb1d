package manifest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const someAgent = `apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: %s, labels: {kaspr.io/app: shop}}
spec:
  input: {topic: {name: in}}
  processors: {pipeline: [m], operations: [{name: m, map: {python: "def m(v): return v"}}]}
`

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A directory is read whole and in one order on every machine, or two workers would disagree about the app.
func TestLoadDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, file := range []string{"m/b.yaml", "m/a.yml", "m/deep/er/c.yaml"} {
		write(t, file, fmt.Sprintf(someAgent, strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))))
	}
	write(t, "m/notes.txt", "{")
	write(t, "m/.hidden.yaml", "{")
	write(t, "m/..2024_data/linked.yaml", fmt.Sprintf(someAgent, "linked"))
	// As a ConfigMap is mounted: a hidden directory, a link to it, links to its files.
	for link, target := range map[string]string{"m/..data": "..2024_data", "m/linked.yaml": "..data/linked.yaml", "m/up.yaml": ".."} {
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
	}
	set, problems := Load([]string{"m/deep", "m", "m/b.yaml", "./m/b.yaml"})
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	want := []string{"m/deep/er/c.yaml", "m/a.yml", "m/b.yaml", "m/linked.yaml"}
	if !slices.Equal(set.Files, want) {
		t.Errorf("read %q, want %q", set.Files, want)
	}
	if err := os.Symlink("m", "link"); err != nil {
		t.Fatal(err)
	}
	if linked, problems := Load([]string{"link/"}); len(problems) > 0 || len(linked.Agents) != 4 {
		t.Errorf("through a link: %d agents, %v", len(linked.Agents), problems)
	}
	var names []string
	for _, m := range set.Components() {
		names = append(names, m.Name.V)
	}
	if !slices.Equal(names, []string{"c", "a", "b", "linked"}) {
		t.Errorf("components %q are not in file order", names)
	}
}

// What cannot be read is said, and does not keep the rest from being checked.
func TestLoadProblems(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "good.yaml", fmt.Sprintf(someAgent, "good"))
	write(t, "dir/again.yaml", fmt.Sprintf(someAgent, "good"))
	write(t, "huge.yaml", strings.Repeat("#", fileBytesMax+1))
	write(t, "utf16.yaml", "\xff\xfea\x00")
	write(t, "latin.yaml", "a: 1\nb: caf\xe9\n")
	write(t, "control.yaml", "a: \"\x01\"\n")
	write(t, "bom.yaml", "\ufeff"+fmt.Sprintf(someAgent, "bom")+"---\n\ufeff"+fmt.Sprintf(someAgent, "joined"))
	write(t, "tab.yaml", "a:\n  b:\n \tc: 1\n")
	write(t, "crlf.yaml", strings.ReplaceAll(fmt.Sprintf(someAgent, "crlf")+"---\nkind: X\n", "\n", "\r\n"))
	write(t, "empty.yaml", "")
	if err := os.Mkdir("none", 0o755); err != nil {
		t.Fatal(err)
	}
	set, problems := Load([]string{"good.yaml", "missing.yaml", "dir", "huge.yaml", "utf16.yaml", "latin.yaml", "control.yaml", "bom.yaml", "tab.yaml", "crlf.yaml", "empty.yaml"})
	if len(set.Agents) != 5 {
		t.Errorf("%d agents read, want 5", len(set.Agents))
	}
	_, none := Load([]string{"none"})
	got := bytes.Buffer{}
	for _, p := range append(problems, none...) {
		fmt.Fprintln(&got, p)
	}
	t.Chdir(testDir)
	compare(t, "testdata/load.golden", got.String())
}

var testDir, _ = os.Getwd()

// Code that reports a wrong line sends its author to the wrong place; every way YAML has to write text is covered.
func TestCodePositions(t *testing.T) {
	for _, c := range []struct {
		name, yaml   string // from line 1, at member python
		line, column int
	}{
		{"literal", "python: |\n  x = 1\n", 2, 3},
		{"literal, blank lines first", "python: |\n\n\n    x = 1\n", 2, 5},
		{"literal, stripped, commented", "python: |-  # why\n  x = 1\n", 2, 3},
		{"literal, indentation given", "python: |2\n     x = 1\n", 2, 3},
		{"literal, tagged", "python: !!str |\n  x = 1\n", 2, 3},
		{"literal, header on the next line", "python: &a\n  |\n  x = 1\n", 3, 3},
		{"literal, alias", "entrypoint: &e x\npython: |\n  x = 1\n", 3, 3},
		{"folded", "python: >\n  x = 1\n", 2, 3},
		{"plain", "python: x = 1\n", 1, 9},
		{"plain, next line", "python:\n    x = 1\n", 2, 5},
		{"double quotes", "python: \"x = 1\"\n", 1, 10},
		{"single quotes", "python: 'x = 1'\n", 1, 10},
	} {
		text := strings.TrimSuffix(c.yaml, "\n")
		manifest := fmt.Sprintf(someAgent, "a")
		head := "---\n" + manifest[:strings.Index(manifest, "  processors")] + "  processors:\n    pipeline: [m]\n    operations:\n      - name: m\n        map:\n"
		body := "          " + strings.ReplaceAll(text, "\n", "\n          ") + "\n"
		set, problems := Parse("f.yaml", []byte("# first document\n"+head+body))
		if problems.Fatal() || len(set.Agents) != 1 {
			t.Errorf("%s: %v", c.name, problems)
			continue
		}
		at := set.Agents[0].Processors.Operations[0].Map.Text
		before := strings.Count("# first document\n"+head, "\n")
		if at.File != "f.yaml" || at.Line-before != c.line || at.Column-10 != c.column {
			t.Errorf("%s: text at line %d, column %d, want %d, %d", c.name, at.Line-before, at.Column-10, c.line, c.column)
		}
	}
}

// A Python error is shown where the author wrote the mistake, not where Python saw it.
func TestInFile(t *testing.T) {
	text := strings.Replace(fmt.Sprintf(someAgent, "a"), `python: "def m(v): return v"`, "PYTHON", 1)
	head := strings.Index(text, "PYTHON")
	column := head - strings.LastIndex(text[:head], "\n") // of python, from 1
	line := strings.Count(text[:head], "\n") + 1
	for _, c := range []struct {
		name, python string
		at, want     Pos // Line counted from the block's first line, Column in the source; in the file from python
	}{
		{"plain", `python: x = = 1`, Pos{Line: 0, Column: 5}, Pos{Line: 0, Column: 8 + 5}},
		{"quoted", `python: "x = = 1"`, Pos{Line: 0, Column: 5}, Pos{Line: 0, Column: 9 + 5}},
		{"escapes", `python: "x =\t= 1"`, Pos{Line: 0, Column: 5}, Pos{Line: 0}},
		{"two lines in quotes", `python: "x = 1\ny = = 1"`, Pos{Line: 1, Column: 5}, Pos{Line: 0}},
		{"no column", `python: x = = 1`, Pos{Line: 0}, Pos{Line: 0}},
	} {
		set, problems := Parse("f.yaml", []byte(strings.Replace(text, "PYTHON", c.python, 1)))
		if problems.Fatal() {
			t.Fatal(problems)
		}
		got := set.InFile(Pos{"f.yaml", line + c.at.Line, c.at.Column})
		want := Pos{"f.yaml", line + c.want.Line, c.want.Column}
		if want.Column > 0 {
			want.Column += column - 1
		}
		if got != want {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
	}
	block := strings.Replace(text, "operations: [{name: m, map: {PYTHON}}]}", "operations: *o}", 1)
	block = strings.Replace(block, "spec:", "spec:\n  output: {topics: [{name: o, predicate: &o {python: \"def a(v): return 1\"}, keySelector: {python: \"def b(v): return 1\"}}]}", 1)
	block = strings.Replace(block, "operations: *o}", "operations: [{name: m, map: *o}]}", 1)
	set, problems := Parse("f.yaml", []byte(block))
	if problems.Fatal() {
		t.Fatal(problems)
	}
	if got := set.InFile(Pos{"f.yaml", 5, 3}); got != (Pos{"f.yaml", 5, 0}) {
		t.Errorf("two blocks on one line: %v", got)
	}
	if got := set.InFile(Pos{"other.yaml", 5, 3}); got != (Pos{"other.yaml", 5, 3}) {
		t.Errorf("another file: %v", got)
	}
	literal := "apiVersion: kaspr.io/v1alpha1\nkind: KasprTable\nmetadata: {name: t, labels: {kaspr.io/app: a}}\nspec:\n  defaultSelector:\n    python: |\n      def f():\n        return = 1\n"
	set, problems = Parse("f.yaml", []byte(literal))
	if problems.Fatal() {
		t.Fatal(problems)
	}
	if got := set.InFile(Pos{"f.yaml", 8, 10}); got != (Pos{"f.yaml", 8, 16}) {
		t.Errorf("literal block: %v", got)
	}
}
