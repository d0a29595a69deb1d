package cli

import (
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
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// caseFile makes a folder a test case.
const caseFile = "case.json"

// testCase is a case.json: how manifests are run on the folder's input, and what must come of it.
type testCase struct {
	About     string            `json:"about"`
	Spec      []string          `json:"spec"`      // where the behaviour is specified; for people
	Manifests []string          `json:"manifests"` // files and folders, relative to the case
	Set       map[string]string `json:"set"`
	Env       map[string]string `json:"env"`
	Exit      int               `json:"exit"`
	Unordered bool              `json:"unordered"`
	Ignore    []string          `json:"ignore"`
	Stderr    []string          `json:"stderr"`

	dir   string
	stdin string
}

func readCase(file string) (testCase, error) {
	c := testCase{dir: filepath.Dir(file)}
	text, err := os.ReadFile(file)
	if err != nil {
		return c, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func (c *command) testCommand() *cobra.Command {
	var run string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "test PATH...",
		Short: "Run the test cases below PATH: manifests on an embedded broker, their input, and the output there must be",
		Long: "Run every folder below PATH with a case.json: its manifests on an embedded broker, with the records of input-TOPIC.jsonl and the requests of\n" +
			"requests.jsonl, and compare what comes of it with expected.jsonl and responses.jsonl. docs/testing.md has all of it.",
		Example: "  kaspr test examples/hello",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			only, err := regexp.Compile(run)
			if err != nil {
				return fmt.Errorf("--run: %w", err)
			}
			return c.test(cmd.Context(), paths, only, timeout)
		},
	}
	cmd.Flags().StringVar(&run, "run", "", "run only cases whose folder matches this expression")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long one case may take")
	return cmd
}

// test runs the cases one after the other and says of each how it went.
func (c *command) test(ctx context.Context, paths []string, only *regexp.Regexp, timeout time.Duration) error {
	ran, failed := 0, 0
	for _, path := range paths {
		files, err := caseFiles(path)
		if err != nil {
			return err
		}
		for _, file := range files {
			dir := filepath.Dir(file)
			if !only.MatchString(dir) {
				continue
			}
			began := time.Now()
			problems := c.testOne(ctx, path, file, timeout)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			ran++
			word := "ok  "
			if len(problems) > 0 {
				failed++
				word = "FAIL"
			}
			fmt.Fprintf(c.streams.Out, "%s %s (%.1fs)\n", word, dir, time.Since(began).Seconds())
			for _, p := range problems {
				fmt.Fprintln(c.streams.Out, "    "+strings.ReplaceAll(strings.TrimRight(p, "\n"), "\n", "\n    "))
			}
		}
	}
	if ran == 0 {
		return fmt.Errorf("there is no test case: no folder with a %s that is to be run", caseFile)
	}
	if _, err := fmt.Fprintf(c.streams.Out, "%d cases, %d failed\n", ran, failed); err != nil {
		return err
	}
	if failed > 0 {
		return errReported
	}
	return nil
}

func (c *command) testOne(ctx context.Context, root, file string, timeout time.Duration) []string {
	t, err := readCase(file)
	if err != nil {
		return []string{err.Error()}
	}
	manifests, err := t.manifests(root)
	if err != nil {
		return []string{err.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	problems, stderr, err := t.check(ctx, c.version, manifests)
	if err != nil {
		problems = append(problems, err.Error())
	}
	if len(problems) > 0 && stderr != "" {
		problems = append(problems, "standard error:\n"+stderr)
	}
	return problems
}

// caseFiles is every case.json below a path, in order.
func caseFiles(path string) (files []string, err error) {
	err = filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() == caseFile {
			files = append(files, file)
		}
		return err
	})
	return files, err
}

// manifests is what a case runs: what it names; else what its folder has, or the nearest one above it up to root.
func (c *testCase) manifests(root string) (paths []string, err error) {
	for _, m := range c.Manifests {
		paths = append(paths, filepath.Join(c.dir, m))
	}
	for dir := c.dir; len(paths) == 0; dir = filepath.Dir(dir) {
		for _, pattern := range []string{"*.yaml", "*.yml"} {
			if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 { // the pattern is well formed
				return []string{dir}, nil
			}
		}
		if up, err := filepath.Rel(root, dir); err != nil || up == "." || dir == filepath.Dir(dir) {
			return nil, fmt.Errorf("%s: no manifests in its folder, nor in those above it up to %s", filepath.Join(c.dir, caseFile), root)
		}
	}
	return paths, nil
}

// check runs manifests on the case's input and says what is not as it must be; with further arguments of kaspr dev.
func (c *testCase) check(ctx context.Context, version string, manifests []string, more ...string) (problems []string, stderr string, err error) {
	args := append(append([]string{"dev", "--drain"}, manifests...), more...)
	for key, v := range c.Set {
		args = append(args, "--set", key+"="+v)
	}
	inputs, err := filepath.Glob(filepath.Join(c.dir, "input-*.jsonl"))
	if err != nil {
		return nil, "", err
	}
	for _, in := range inputs {
		topic := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(in), "input-"), ".jsonl")
		args = append(args, "--input", topic+"="+in)
	}
	requests := filepath.Join(c.dir, "requests.jsonl")
	asks := exists(requests)
	if asks {
		args = append(args, "--requests", requests)
	}
	stdout, stderr, problems := c.execute(ctx, version, args)
	if ctx.Err() != nil {
		return problems, stderr, nil
	}
	if asks {
		var wrong []string
		if stdout, wrong, err = c.compareResponses(stdout); err != nil {
			return problems, stderr, err
		}
		problems = append(problems, wrong...)
	}
	var expected []string
	if file := filepath.Join(c.dir, "expected.jsonl"); exists(file) || !asks {
		if expected, err = fileLines(file); err != nil {
			return problems, stderr, err
		}
	}
	want, err := outputsOf(expected)
	if err != nil {
		return problems, stderr, fmt.Errorf("expected.jsonl: %w", err)
	}
	got, err := outputsOf(stdout)
	if err != nil {
		return problems, stderr, err
	}
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
			problems = append(problems, fmt.Sprintf("topic %s: %s\nwant:\n%sgot:\n%s", topic, problem, show(w), show(g)))
		}
	}
	return problems, stderr, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// execute runs one command line, and compares its exit code and what must be on standard error; stdout is its output's lines.
func (c *testCase) execute(ctx context.Context, version string, args []string) (stdout []string, stderr string, problems []string) {
	var out, errs bytes.Buffer
	s := Streams{In: strings.NewReader(c.stdin), Out: &out, Err: &errs}
	for name, v := range c.Env {
		s.Environ = append(s.Environ, name+"="+v)
	}
	exit := Main(ctx, version, args, s)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, errs.String(), []string{"not finished in time"}
	}
	if exit != c.Exit {
		problems = append(problems, fmt.Sprintf("exit code %d, want %d", exit, c.Exit))
	}
	for _, text := range c.Stderr {
		if !strings.Contains(errs.String(), text) {
			problems = append(problems, fmt.Sprintf("standard error lacks %q", text))
		}
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), errs.String(), problems
}

// compareResponses compares the responses to the case's requests, and returns the other lines.
func (c *testCase) compareResponses(stdout []string) (others, problems []string, err error) {
	var got []string
	for _, line := range stdout {
		if strings.HasPrefix(line, `{"request":`) {
			got = append(got, line)
		} else {
			others = append(others, line)
		}
	}
	want, err := fileLines(filepath.Join(c.dir, "responses.jsonl"))
	if err != nil {
		return nil, nil, err
	}
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if len(got) != len(want) {
		wrong("%d responses, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range min(len(got), len(want)) {
		var w, g map[string]any
		for text, into := range map[string]*map[string]any{want[i]: &w, got[i]: &g} {
			dec := json.NewDecoder(strings.NewReader(text))
			dec.UseNumber()
			if err := dec.Decode(into); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", text, err)
			}
		}
		for member, v := range w {
			switch member {
			case "headers": // those that are named; null: it must not be there
				have, _ := g["headers"].(map[string]any)
				named, ok := v.(map[string]any)
				if !ok {
					return nil, nil, fmt.Errorf("%s: headers must be an object", want[i])
				}
				for name, value := range named {
					if !same(value, have[name]) {
						wrong("response %d, header %s: %v, want %v\n%s", i+1, name, have[name], value, got[i])
					}
				}
			case "bodyContains":
				parts, ok := v.([]any)
				if !ok {
					return nil, nil, fmt.Errorf("%s: bodyContains must be a list", want[i])
				}
				for _, part := range parts {
					if text := fmt.Sprint(g["body"]); !strings.Contains(text, fmt.Sprint(part)) {
						wrong("response %d: body lacks %q\n%s", i+1, part, got[i])
					}
				}
			default:
				if !same(v, g[member]) {
					wrong("response %d, %s: %v, want %v\n%s", i+1, member, g[member], v, got[i])
				}
			}
		}
	}
	return others, problems, nil
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

// outputsOf reads lines of records, by topic.
func outputsOf(lines []string) (map[string][]output, error) {
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
				return nil, fmt.Errorf("%s: %w", line, err)
			}
		}
		_, o.hasKey = members["key"]
		_, o.hasValue = members["value"]
		topics[topic.Topic] = append(topics[topic.Topic], o)
	}
	return topics, nil
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
func (c *testCase) compare(want, got []output) string {
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
			if text, _ := have.(string); !strings.Contains(text, fmt.Sprint(part)) {
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

// fileLines is the lines of a file that are not blank.
func fileLines(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all, nil
}
