package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the repository's; the commands of READMEs are written for it.
const root = "../.."

// exampleApp is one folder of examples/. Its README has the command that runs it on the embedded broker.
type exampleApp struct {
	name    string
	readme  string            // text
	command []string          // arguments of kaspr
	inputs  map[string]string // files by topic
	asks    string            // file of requests, if any; responses.jsonl beside it has what must be answered
	want    map[string][]output
}

// exampleApps reads every folder of examples/, from the repository's root.
func exampleApps(t *testing.T) []exampleApp {
	t.Helper()
	folders, err := os.ReadDir("examples")
	if err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile("examples/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []exampleApp
	for _, folder := range folders {
		if !folder.IsDir() {
			continue
		}
		dir := filepath.Join("examples", folder.Name())
		listed(t, "examples/README.md", string(index), folder.Name())
		file := filepath.Join(dir, "README.md")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		e := exampleApp{name: folder.Name(), readme: string(text), inputs: map[string]string{}}
		e.want = byTopic(t, lines(t, filepath.Join(dir, "expected.jsonl")))
		_, command, ok := strings.Cut(strings.ReplaceAll(e.readme, "\\\n", " "), "\n$ bin/kaspr dev "+dir+" ")
		if !ok {
			t.Fatalf("%s has no line `$ bin/kaspr dev %s ...`", file, dir)
		}
		command, _, _ = strings.Cut(command, "\n")
		e.command = append([]string{"dev", dir}, strings.Fields(command)...)
		for i, arg := range e.command {
			if arg == "--input" {
				topic, file, _ := strings.Cut(e.command[i+1], "=")
				e.inputs[topic] = file
			}
			if arg == "--requests" {
				e.asks = e.command[i+1]
			}
		}
		all = append(all, e)
	}
	return all
}

// listed fails when an index has no link to what lies beside it.
func listed(t *testing.T, file, index, name string) {
	t.Helper()
	if link := fmt.Sprintf("[%[1]s](%[1]s)", name); !strings.Contains(index, link) {
		t.Errorf("%s lacks %s", file, link)
	}
}

// recordsFail says whether dead letters are expected: a drained run then ends with 1.
func (e exampleApp) recordsFail() bool {
	for _, records := range e.want {
		for _, r := range records {
			if _, failed := r.HeadersContain["kaspr-error-kind"]; failed {
				return true
			}
		}
	}
	return false
}

// check compares the output lines with responses.jsonl and expected.jsonl.
func (e exampleApp) check(t *testing.T, stdout []string) {
	t.Helper()
	if e.asks != "" {
		var c conformanceCase
		stdout = c.responses(t, filepath.Dir(e.asks), stdout)
	}
	for _, problem := range e.problems(t, stdout) {
		t.Error(problem)
	}
}

// problems compares output records with expected.jsonl. Records of one topic and key must come in the order that stands there;
// between keys the order is not promised, because keys are spread over partitions.
func (e exampleApp) problems(t *testing.T, records []string) (all []string) {
	t.Helper()
	var c conformanceCase
	got := byTopic(t, records)
	for _, topic := range sortedKeys(e.want, got) {
		want, have := byKey(e.want[topic]), byKey(got[topic])
		for _, key := range sortedKeys(want, have) {
			w, h := want[key], have[key]
			if len(w) == 1 && w[0].Last && len(h) > 1 {
				h = h[len(h)-1:]
			}
			if problem := c.compare(w, h); problem != "" {
				all = append(all, fmt.Sprintf("topic %s, key %s: %s\nwant:\n%sgot:\n%s", topic, key, problem, show(w), show(h)))
			}
		}
	}
	return all
}

func byKey(records []output) map[string][]output {
	keys := map[string][]output{}
	for _, r := range records {
		text, err := json.Marshal(r.Key)
		if err != nil {
			panic("BUG: what was read as JSON is none: " + err.Error())
		}
		keys[string(text)] = append(keys[string(text)], r)
	}
	return keys
}

// The command in an example's README must give what the folder says, and the records the README quotes.
func TestExamples(t *testing.T) {
	t.Chdir(root)
	for _, e := range exampleApps(t) {
		t.Run(e.name, func(t *testing.T) {
			var c conformanceCase
			if e.recordsFail() {
				c.Exit = 1
			}
			stdout, stderr := c.run(t, e.command)
			e.check(t, stdout)
			for _, line := range strings.Split(e.readme, "\n") {
				if strings.HasPrefix(line, `{"topic":`) && !slices.Contains(stdout, line) {
					t.Errorf("README.md quotes what does not come out: %s", line)
				}
			}
			if t.Failed() {
				t.Logf("standard output:\n%s\nstandard error:\n%s", strings.Join(stdout, "\n"), stderr)
			}
		})
	}
}

// What an example's folder says must come out is computed a second time, by plain Python from the input: a slip in it would otherwise
// be a promise.
func TestExpectedOfExamples(t *testing.T) {
	t.Chdir(root)
	for _, e := range exampleApps(t) {
		t.Run(e.name, func(t *testing.T) {
			var stderr strings.Builder
			cmd := exec.CommandContext(t.Context(), "python3", "examples/expected.py", e.name)
			cmd.Stderr = &stderr
			stdout, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v (make deps installs Python)\n%s", err, &stderr)
			}
			e.check(t, strings.Split(strings.TrimSuffix(string(stdout), "\n"), "\n"))
		})
	}
}

// The first command of the repository's README must print what stands below it.
func TestReadme(t *testing.T) {
	t.Chdir(root)
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	const command = `$ echo '"Ada"' | bin/kaspr dev examples/hello --input names=- --drain`
	c := conformanceCase{stdin: `"Ada"`}
	stdout, _ := c.run(t, []string{"dev", "examples/hello", "--input", "names=-", "--drain"})
	if want := fmt.Sprintf("%s\n%s\n", command, strings.Join(stdout, "\n")); !strings.Contains(string(text), want) {
		t.Errorf("README.md lacks\n%s", want)
	}
}

// A page that the index does not name is found by nobody.
func TestDocsIndex(t *testing.T) {
	t.Chdir(root)
	const file = "docs/README.md"
	index, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil || len(pages) < 2 {
		t.Fatalf("pages %v: %v", pages, err)
	}
	for _, page := range pages {
		if page != file {
			listed(t, file, string(index), filepath.Base(page))
		}
	}
}
