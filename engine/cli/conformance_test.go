package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
)

// conformanceDir holds the cases; its README.md describes their form.
const conformanceDir = "../../testdata/conformance"

// conformanceTimeout bounds one run of one case.
const conformanceTimeout = 2 * time.Minute

// conformanceCase is a case of kaspr test whose faults are those of the test it runs in.
type conformanceCase = testCase

// What the specification promises must hold through the real guest on the embedded broker, whatever the size of a batch.
func TestConformance(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(conformanceDir, "*", "case.json"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases in %s: %v", conformanceDir, err)
	}
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c, err := readCase(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "problems.jsonl")); err == nil {
				c.validate(t, dir)
				return
			}
			for _, records := range []string{"1000", "2"} {
				t.Run("batch="+records, func(t *testing.T) { c.dev(t, dir, records) })
			}
		})
	}
}

// dev runs the case's manifests on its inputs and compares the output records.
func (c *conformanceCase) dev(t *testing.T, dir, batch string) {
	ctx, cancel := context.WithTimeout(t.Context(), conformanceTimeout)
	defer cancel()
	more := []string{"--set", "batchRecordsMax=" + batch}
	if url := registryOf(t, dir); url != "" {
		more = append(more, "--set", "schemaRegistryUrl="+url)
	}
	problems, stderr, err := c.check(ctx, "test", []string{dir}, more...)
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	if t.Failed() {
		t.Logf("standard error:\n%s", stderr)
	}
}

// responses compares the responses to a folder's requests, and returns the other lines.
func (c *conformanceCase) responses(t *testing.T, dir string, stdout []string) []string {
	t.Helper()
	others, problems, err := (&testCase{dir: dir}).compareResponses(stdout)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	return others
}

// registryOf starts a schema registry with the schemas of the case's registry.json, whose ids are their places in it from 1; without
// the file there is none.
func registryOf(t *testing.T, dir string) (url string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "registry.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	var schemas []struct {
		Subject    string               `json:"subject"`
		Type       sr.SchemaType        `json:"type"`
		Schema     json.RawMessage      `json:"schema"` // text, or what is to be its text
		References []sr.SchemaReference `json:"references"`
	}
	if err := json.Unmarshal(text, &schemas); err != nil {
		t.Fatalf("registry.json: %v", err)
	}
	registry := srfake.New()
	t.Cleanup(registry.Close)
	versions := map[string]int{}
	for i, s := range schemas {
		schema := string(s.Schema)
		if strings.HasPrefix(schema, `"`) {
			if err := json.Unmarshal(s.Schema, &schema); err != nil {
				t.Fatal(err)
			}
		}
		versions[s.Subject]++
		registry.SeedSchema(s.Subject, versions[s.Subject], i+1, sr.Schema{Schema: schema, Type: s.Type, References: s.References})
	}
	return registry.URL()
}

// run runs one command line, checks its exit code and what must be on standard error, and returns its output's lines.
func (c *conformanceCase) run(t *testing.T, args []string) (stdout []string, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), conformanceTimeout)
	defer cancel()
	stdout, stderr, problems := c.execute(ctx, "test", args)
	for _, p := range problems {
		t.Errorf("%s; standard error:\n%s", p, stderr)
	}
	return stdout, stderr
}

// problem is one line of problems.jsonl.
type problem struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`
	Level    string   `json:"level"`
	Contains []string `json:"contains"`
}

var problemLine = regexp.MustCompile(`^(.+?):(\d+)(?::\d+)?: (error|warning) \w+: (.*)$`)

// validate compares the problems `kaspr validate` reports with those expected: the same ones, in the same order.
func (c *conformanceCase) validate(t *testing.T, dir string) {
	_, stderr := c.run(t, []string{"validate", dir})
	var got []problem
	for _, line := range strings.Split(stderr, "\n") {
		if m := problemLine.FindStringSubmatch(line); m != nil {
			at, _ := strconv.Atoi(m[2])
			got = append(got, problem{filepath.Base(m[1]), at, m[3], []string{m[4]}})
		} else if len(got) > 0 {
			got[len(got)-1].Contains[0] += "\n" + line
		}
	}
	want := lines(t, filepath.Join(dir, "problems.jsonl"))
	if len(want) != len(got) {
		t.Errorf("%d problems, want %d", len(got), len(want))
	}
	for i := range min(len(want), len(got)) {
		w := problem{File: "agents.yaml"}
		if err := json.Unmarshal([]byte(want[i]), &w); err != nil {
			t.Fatal(err)
		}
		g := got[i]
		if g.File != w.File || g.Line != w.Line || g.Level != w.Level {
			t.Errorf("problem %d is at %s:%d (%s), want %s:%d (%s)", i+1, g.File, g.Line, g.Level, w.File, w.Line, w.Level)
		}
		for _, part := range w.Contains {
			if !strings.Contains(g.Contains[0], part) {
				t.Errorf("problem %d lacks %q: %s", i+1, part, g.Contains[0])
			}
		}
	}
	if t.Failed() {
		t.Logf("standard error:\n%s", stderr)
	}
}

func byTopic(t *testing.T, lines []string) map[string][]output {
	t.Helper()
	topics, err := outputsOf(lines)
	if err != nil {
		t.Fatal(err)
	}
	return topics
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	all, err := fileLines(file)
	if err != nil {
		t.Fatal(err)
	}
	return all
}
