package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// everyBlock has a Code block in every place there is, each on a line of its own.
const everyBlock = `apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: a, labels: {kaspr.io/app: a}}
spec:
  input: {topic: {name: in}}
  output:
    topics:
      - name: out
        keySelector: CODE
        valueSelector: CODE
        partitionSelector: CODE
        headersSelector: CODE
        predicate: CODE
      - nameSelector: CODE
    channels:
      - name: c
        keySelector: CODE
        valueSelector: CODE
        headersSelector: CODE
        predicate: CODE
  processors:
    pipeline: [m, f, s]
    init: CODE
    operations:
      - name: m
        tables: [{name: t, paramName: t}]
        map: CODE
      - name: f
        filter: CODE
      - name: s
        topicSend:
          nameSelector: CODE
          keySelector: CODE
          valueSelector: CODE
          partitionSelector: CODE
          headersSelector: CODE
          predicate: CODE
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: t, labels: {kaspr.io/app: a}}
spec:
  name: t
  defaultSelector: CODE
  window:
    tumbling: {size: 1m}
    relativeTo: custom
    relativeToSelector: CODE
---
apiVersion: kaspr.io/v1alpha1
kind: KasprJoin
metadata: {name: j, labels: {kaspr.io/app: a}}
spec:
  leftTable: t
  rightTable: t
  extractor: CODE
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTask
metadata: {name: k, labels: {kaspr.io/app: a}}
spec:
  processors:
    pipeline: [m]
    init: CODE
    operations:
      - name: m
        map: CODE
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: w, labels: {kaspr.io/app: a}}
spec:
  request: {method: GET, path: /w}
  response:
    bodySelector:
      onSuccess: CODE
      onError: CODE
    statusCodeSelector:
      onSuccess: CODE
      onError: CODE
    headersSelector:
      onSuccess: CODE
      onError: CODE
  processors:
    pipeline: [m]
    init: CODE
    operations:
      - name: m
        map: CODE
      - name: unused
        topicSend:
          name: x
          keySelector: CODE
`

// Files without an app are refused when they are run, so they are not valid; and what is missing is said, whatever depends on it.
func TestValidateWhatIsNotThere(t *testing.T) {
	for _, c := range []struct{ name, yaml, want string }{
		{"empty", "", "error M045: the manifests hold no app"},
		{"comment", "# later\n---\n", "error M045: the manifests hold no app"},
		{"another group", "apiVersion: v1\nkind: Service\n", "error M045: the manifests hold no app"},
		{"no input", strings.Replace(everyBlock, "input:", "inputs:", 1), `m.yaml:5:3: error M008: unknown member "inputs" in spec (did you mean "input"?)`},
		{"no path", strings.Replace(everyBlock, "path: /w", "path: 'w/{id'", 1), "m.yaml:73:32: error M033"},
		{"no window", strings.Replace(everyBlock, "tumbling:", "tumblin:", 1), `unknown member "tumblin" in spec.window (did you mean "tumbling"?)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			text := strings.ReplaceAll(c.yaml, "CODE", `{python: "def f(v): return v"}`)
			if err := os.WriteFile("m.yaml", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			code := Main(t.Context(), "test", []string{"validate", "m.yaml"}, Streams{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &stderr})
			if code != exitFailed || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("exit %d, without %q:\n%s", code, c.want, stderr.String())
			}
		})
	}
}

// Python that does not compile must be found before the first record, request or tick, wherever it stands, and beside
// everything else that is wrong.
func TestValidateCompilesEveryBlock(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "all.yaml")
	for _, c := range []struct{ name, python, want string }{
		{"syntax", "def f(v) return v", "SyntaxError"},
		{"entrypoint", "x = 1", "the block defines no function"},
	} {
		text := strings.ReplaceAll(everyBlock, "CODE", `{python: "`+c.python+`"}`) + "  unknown: 1\n"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var out, stderr bytes.Buffer
		code := Main(context.Background(), "test", []string{"validate", dir}, Streams{In: strings.NewReader(""), Out: &out, Err: &stderr})
		if code != exitFailed || !strings.Contains(stderr.String(), "unknown member") {
			t.Errorf("%s: exit %d\n%s", c.name, code, stderr.String())
		}
		for i, line := range strings.Split(text, "\n") {
			block := strings.Contains(line, c.python) && !(c.name == "entrypoint" && strings.Contains(line, "init:")) // init has none
			if block && !problemAt(stderr.String(), i+1, c.want) {
				t.Errorf("%s: line %d is not reported: %s", c.name, i+1, line)
			}
			if !block && problemAt(stderr.String(), i+1, c.want) {
				t.Errorf("%s: line %d is reported: %s", c.name, i+1, line)
			}
		}
	}
}

// problemAt tells whether a problem of Code is reported in the line, with the text.
func problemAt(report string, line int, text string) bool {
	for r := range strings.Lines(report) {
		if strings.Contains(r, fmt.Sprintf("all.yaml:%d:", line)) && strings.Contains(r, "P001") && strings.Contains(r, text) {
			return true
		}
	}
	return false
}

// An app that does not start must say all that is wrong with its code, each once, although a table's code is part of every
// component that uses the table and loading ends at the first fault of a component.
func TestDevReportsAllCodeProblemsOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "all.yaml")
	agent := func(name string) string {
		return `---
{apiVersion: kaspr.io/v1alpha1, kind: KasprAgent, metadata: {name: ` + name + `, labels: {kaspr.io/app: a}},
  spec: {input: {topic: {name: in}}, processors: {pipeline: [m], operations: [{name: m, tables: [{name: t, paramName: t}],
    map: {python: "def f(v, *, t, other): return v"}}]}}}
`
	}
	text := `{apiVersion: kaspr.io/v1alpha1, kind: KasprApp, metadata: {name: a}, spec: {}}
---
{apiVersion: kaspr.io/v1alpha1, kind: KasprTable, metadata: {name: t, labels: {kaspr.io/app: a}}, spec: {name: t, defaultSelector: {python: "lambda: 0"}}}
` + agent("one") + agent("two")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	code := Main(context.Background(), "test", []string{"dev", file, "--drain"}, Streams{In: strings.NewReader(""), Out: &out, Err: &stderr})
	var lines []string
	for line := range strings.Lines(stderr.String()) {
		if strings.Contains(line, "P001") {
			lines = append(lines, line)
		}
	}
	if code != exitFailed || len(lines) != 3 || !strings.Contains(lines[0], "all.yaml:3:") || !strings.Contains(lines[1], "all.yaml:7:") ||
		!strings.Contains(lines[2], "all.yaml:11:") {
		t.Errorf("exit %d, want one problem in each of the lines 3, 7 and 11:\n%s", code, stderr.String())
	}
}
