package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
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

// conformanceCase is case.json.
type conformanceCase struct {
	About     string            `json:"about"`
	Spec      []string          `json:"spec"`
	Set       map[string]string `json:"set"`
	Env       map[string]string `json:"env"`
	Exit      int               `json:"exit"`
	Unordered bool              `json:"unordered"`
	Ignore    []string
	Stderr    []string `json:"stderr"`

	stdin string
}

// What the specification promises must hold through the real guest on the embedded broker, whatever the size of a batch.
func TestConformance(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(conformanceDir, "*", "case.json"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no cases in %s: %v", conformanceDir, err)
	}
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var c conformanceCase
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&c); err != nil {
				t.Fatalf("%s: %v", file, err)
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
	args := []string{"dev", dir, "--drain", "--set", "batchRecordsMax=" + batch}
	for key, v := range c.Set {
		args = append(args, "--set", key+"="+v)
	}
	if url := registryOf(t, dir); url != "" {
		args = append(args, "--set", "schemaRegistryUrl="+url)
	}
	inputs, err := filepath.Glob(filepath.Join(dir, "input-*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range inputs {
		topic := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(in), "input-"), ".jsonl")
		args = append(args, "--input", topic+"="+in)
	}
	requests := filepath.Join(dir, "requests.jsonl")
	asks := false
	if _, err := os.Stat(requests); err == nil {
		asks = true
		args = append(args, "--requests", requests)
	}
	stdout, stderr := c.run(t, args)
	if asks {
		stdout = c.responses(t, dir, stdout)
	}

	var expected []string
	if _, err := os.Stat(filepath.Join(dir, "expected.jsonl")); err == nil || !asks {
		expected = lines(t, filepath.Join(dir, "expected.jsonl"))
	}
	want := byTopic(t, expected)
	got := byTopic(t, stdout)
	for _, topic := range c.Ignore {
		delete(got, topic)
	}
	for _, topic := range sortedKeys(want, got) {
		w, g := want[topic], got[topic]
		if !c.Unordered {
			byPartition(w)
			byPartition(g)
		}
		if problem := c.compare(w, g); problem != "" {
			t.Errorf("topic %s: %s\nwant:\n%sgot:\n%s", topic, problem, show(w), show(g))
		}
	}
	if t.Failed() {
		t.Logf("standard error:\n%s", stderr)
	}
}

// responses compares the responses to a case's requests, and returns the other lines.
func (c *conformanceCase) responses(t *testing.T, dir string, stdout []string) (others []string) {
	var got []string
	for _, line := range stdout {
		if strings.HasPrefix(line, `{"request":`) {
			got = append(got, line)
		} else {
			others = append(others, line)
		}
	}
	want := lines(t, filepath.Join(dir, "responses.jsonl"))
	if len(got) != len(want) {
		t.Errorf("%d responses, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range min(len(got), len(want)) {
		var w, g map[string]any
		for text, into := range map[string]*map[string]any{want[i]: &w, got[i]: &g} {
			dec := json.NewDecoder(strings.NewReader(text))
			dec.UseNumber()
			if err := dec.Decode(into); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		for member, v := range w {
			switch member {
			case "headers": // those that are named; null: it must not be there
				have, _ := g["headers"].(map[string]any)
				for name, value := range v.(map[string]any) {
					if !same(value, have[name]) {
						t.Errorf("response %d, header %s: %v, want %v\n%s", i+1, name, have[name], value, got[i])
					}
				}
			case "bodyContains":
				for _, part := range v.([]any) {
					if text := fmt.Sprint(g["body"]); !strings.Contains(text, part.(string)) {
						t.Errorf("response %d: body lacks %q\n%s", i+1, part, got[i])
					}
				}
			default:
				if !same(v, g[member]) {
					t.Errorf("response %d, %s: %v, want %v\n%s", i+1, member, g[member], v, got[i])
				}
			}
		}
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
	var out, errs bytes.Buffer
	s := Streams{In: strings.NewReader(c.stdin), Out: &out, Err: &errs}
	for name, v := range c.Env {
		s.Environ = append(s.Environ, name+"="+v)
	}
	exit := Main(ctx, "test", args, s)
	if ctx.Err() != nil {
		t.Fatalf("not finished after %v; standard error:\n%s", conformanceTimeout, errs.String())
	}
	if exit != c.Exit {
		t.Errorf("exit code %d, want %d; standard error:\n%s", exit, c.Exit, errs.String())
	}
	for _, text := range c.Stderr {
		if !strings.Contains(errs.String(), text) {
			t.Errorf("standard error lacks %q:\n%s", text, errs.String())
		}
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), errs.String()
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

// output is one output record, or what is expected of one: members that are not there are not compared.
type output struct {
	Partition      *int           `json:"partition"`
	Key            any            `json:"key"`
	Value          any            `json:"value"`
	Headers        map[string]any `json:"headers"`
	HeadersContain map[string]any `json:"headersContain"`
	Last           bool           `json:"last"` // of an example: only the last record of the key counts

	hasKey, hasValue bool
	line             string
}

func byTopic(t *testing.T, lines []string) map[string][]output {
	t.Helper()
	topics := map[string][]output{}
	for _, line := range lines {
		if line == "" {
			continue
		}
		var members map[string]json.RawMessage
		o := output{line: line}
		dec := json.NewDecoder(strings.NewReader(line))
		dec.UseNumber()
		var topic struct{ Topic string }
		for _, err := range []error{json.Unmarshal([]byte(line), &members), json.Unmarshal([]byte(line), &topic), dec.Decode(&o)} {
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
		_, o.hasKey = members["key"]
		_, o.hasValue = members["value"]
		topics[topic.Topic] = append(topics[topic.Topic], o)
	}
	return topics
}

// byPartition sorts stably by partition: order is only promised within one.
func byPartition(records []output) {
	slices.SortStableFunc(records, func(a, b output) int {
		if a.Partition == nil || b.Partition == nil {
			return 0
		}
		return *a.Partition - *b.Partition
	})
}

// compare says what differs; "" when nothing does.
func (c *conformanceCase) compare(want, got []output) string {
	if len(want) != len(got) {
		return fmt.Sprintf("%d records, want %d", len(got), len(want))
	}
	left := slices.Clone(got)
	for i, w := range want {
		at := 0
		if c.Unordered {
			if at = slices.IndexFunc(left, func(g output) bool { return w.differs(g) == "" }); at < 0 {
				return fmt.Sprintf("no record like %s", w.line)
			}
		}
		if d := w.differs(left[at]); d != "" {
			return fmt.Sprintf("record %d: %s", i+1, d)
		}
		left = slices.Delete(left, at, at+1)
	}
	return ""
}

func (w output) differs(g output) string {
	switch {
	case w.Partition != nil && *w.Partition != *g.Partition:
		return fmt.Sprintf("partition %d, want %d", *g.Partition, *w.Partition)
	case w.hasKey && !same(w.Key, g.Key):
		return fmt.Sprintf("key %v, want %v", g.Key, w.Key)
	case w.hasValue && !same(w.Value, g.Value):
		return fmt.Sprintf("value %v, want %v", g.Value, w.Value)
	case w.Headers != nil && !same(w.Headers, g.Headers):
		return fmt.Sprintf("headers %v, want %v", g.Headers, w.Headers)
	}
	for name, v := range w.HeadersContain {
		have, ok := g.Headers[name]
		if !ok {
			return "header " + name + " is missing"
		}
		parts, contains := v.([]any) // texts the header contains; anything else is the header itself
		if !contains && !same(v, have) {
			return fmt.Sprintf("header %s is %q, want %q", name, have, v)
		}
		for _, part := range parts {
			if text, _ := have.(string); !strings.Contains(text, part.(string)) {
				return fmt.Sprintf("header %s lacks %q: %q", name, part, have)
			}
		}
	}
	return ""
}

// same compares JSON values; numbers by value, so that 1.0 is 1.
func same(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return false
		}
		x, ok1 := new(big.Rat).SetString(a.String())
		y, ok2 := new(big.Rat).SetString(b.String())
		return ok1 && ok2 && x.Cmp(y) == 0
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, same)
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, there := b[k]; !there || !same(v, w) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

func sortedKeys(maps ...map[string][]output) []string {
	var keys []string
	for _, m := range maps {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func show(records []output) string {
	var b strings.Builder
	for _, r := range records {
		fmt.Fprintf(&b, "  %s\n", r.line)
	}
	return b.String()
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if line := strings.TrimSpace(sc.Text()); line != "" {
			all = append(all, line)
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
