package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// line is one output line of kaspr dev.
type line struct {
	Topic     string            `json:"topic"`
	Partition int32             `json:"partition"`
	Key       any               `json:"key"`
	Value     map[string]any    `json:"value"`
	Headers   map[string]string `json:"headers"`
}

// runDev runs `kaspr dev` on a manifest with records on standard input and returns its output lines by topic.
func runDev(t *testing.T, manifest, topic, input string, args ...string) (map[string][]line, int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code := Main(ctx, "test", append([]string{"dev", dir, "--input", topic + "=-", "--drain"}, args...),
		Streams{In: strings.NewReader(input), Out: &out, Err: &errs})
	if ctx.Err() != nil {
		t.Fatalf("not drained in time:\n%s", &errs)
	}
	lines := map[string][]line{}
	for text := range strings.Lines(out.String()) {
		var l line
		dec := json.NewDecoder(strings.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&l); err != nil {
			t.Fatalf("standard output has %q: %v", text, err)
		}
		lines[l.Topic] = append(lines[l.Topic], l)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("standard error:\n%s", &errs)
		}
	})
	return lines, code
}

const hostile = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: fan, labels: {kaspr.io/app: shop}}
spec:
  input: {topic: {name: in}}
  processors:
    pipeline: [check, split]
    init:
      python: |
        hog = []
        def double(x):
            return x * 2
    operations:
      - name: check
        filter:
          python: |
            def check(v):
                if v["n"] == 100:
                    raise ValueError("one hundred")
                if v["n"] == 200:
                    while True:
                        pass
                if v["n"] == 300:
                    while True:
                        hog.append(bytearray(1 << 20))
                return v["n"] % 10 != 9
      - name: split
        map:
          python: |
            def split(v):
                for i in range(2):
                    yield {"n": v["n"], "i": i, "d": double(v["n"])}
  output:
    topics:
      - name: all
        keySelector: {python: "def k(v): return 'k' + str(v['n'])"}
      - name: even
        headersSelector: {python: "def h(v): return {'n': str(v['n'])}"}
        predicate: {python: "def p(v): return v['n'] % 2 == 0 and v['i'] == 0"}
      - nameSelector: {python: "def t(v): return 'mod-' + str(v['n'] % 3)"}
        valueSelector: {python: "def s(v): return {'double': double(v['d'])}"}
        predicate: {python: "def p(v): return v['i'] == 1"}
`

// The promise of the first page: a record that raises, one that loops for ever and one that allocates without end go
// to the dead-letter topic with their traceback; all others come out, exactly, in order.
func TestPoisonedRecordsAmongAThousand(t *testing.T) {
	var input strings.Builder
	want := map[string][]string{}
	for n := range 1000 {
		fmt.Fprintf(&input, "{\"n\": %d}\n", n)
		if n%10 == 9 || n == 100 || n == 200 || n == 300 {
			continue
		}
		for i := range 2 {
			v := fmt.Sprintf("map[d:%d i:%d n:%d]", 2*n, i, n)
			want["all"] = append(want["all"], fmt.Sprintf("k%d %s map[]", n, v))
			if n%2 == 0 && i == 0 {
				want["even"] = append(want["even"], fmt.Sprintf("<nil> %s map[n:%d]", v, n))
			}
			if i == 1 {
				topic := fmt.Sprintf("mod-%d", n%3)
				want[topic] = append(want[topic], fmt.Sprintf("<nil> map[double:%d] map[]", 4*n))
			}
		}
	}
	lines, code := runDev(t, hostile, "in", input.String(), "--set", "sandboxDeadline=1s", "--set", "sandboxMemoryMax=128MiB")
	if code != exitFailed {
		t.Errorf("exit code %d although records failed", code)
	}
	for topic, w := range want {
		var got []string
		for _, l := range lines[topic] {
			got = append(got, fmt.Sprint(l.Key, l.Value, l.Headers))
		}
		for i := range w {
			w[i] = strings.ReplaceAll(w[i], " map", "map") // as fmt.Sprint joins them
		}
		for i := range got {
			got[i] = strings.ReplaceAll(got[i], " map", "map")
		}
		if !slices.Equal(got, w) {
			t.Errorf("topic %s: %d outputs, want %d, or in another order", topic, len(got), len(w))
		}
	}
	letters := lines["shop-app-fan-dead-letter"]
	if len(letters) != 3 {
		t.Fatalf("%d dead letters: %v", len(letters), letters)
	}
	for i, w := range []struct{ offset, kind, place, source string }{
		{"100", "code", "app.yaml:20, in check", `raise ValueError("one hundred")`},
		{"200", "deadline", "app.yaml:2", "check"}, // whichever line of the loop it was at
		{"300", "memory", "app.yaml:26, in check", "hog.append(bytearray(1 << 20))"},
	} {
		h := letters[i].Headers
		if h["kaspr-offset"] != w.offset || h["kaspr-error-kind"] != w.kind || !strings.Contains(h["kaspr-error-traceback"], w.place) ||
			!strings.Contains(h["kaspr-error-traceback"], w.source) {
			t.Errorf("dead letter %d: %v", i, h)
		}
	}
}

// One author's endless loop, in Python or in C, costs the deadline and not the others' pace.
func TestSpinningAgentLeavesOthersTheirPace(t *testing.T) {
	agent := func(name, in, out, body string) string {
		return fmt.Sprintf(`---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: %s, labels: {kaspr.io/app: shop}}
spec:
  input: {topic: {name: %s}}
  processors:
    pipeline: [run]
    init: {python: "import time"}
    operations:
      - name: run
        map:
          python: |
            def run(v):
                began = time.monotonic()
                %s
                return {"at": began, "n": v["n"]}
  output: {topics: [{name: %s}]}
`, name, in, body, out)
	}
	const deadline = time.Second
	const n = 20_000
	var work strings.Builder
	for i := range n {
		fmt.Fprintf(&work, "{\"n\": %d}\n", i)
	}
	bad := filepath.Join(t.TempDir(), "bad.jsonl")
	if err := os.WriteFile(bad, []byte("{\"n\": 1}\n{\"n\": 2}\n{\"n\": 3}\n{\"n\": 4}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pacer := agent("pacer", "work", "done", "pass")
	pace := func(manifest string, args ...string) (map[string][]line, float64) {
		args = append(args, "--set", "sandboxDeadline="+deadline.String(), "--set", "batchRecordsMax=50")
		lines, _ := runDev(t, manifest, "work", work.String(), args...)
		done := lines["done"]
		if len(done) != n {
			t.Fatalf("%d of %d outputs of the other agent", len(done), n)
		}
		return lines, n / (done[n-1].Value["at"].(float64) - done[0].Value["at"].(float64))
	}
	_, alone := pace(pacer)
	began := time.Now()
	lines, beside := pace(pacer+agent("spinner", "bad", "never", "while v['n'] % 2: pass\n                sum(range(10**15))"), "--input", "bad="+bad)
	if got := len(lines["shop-app-spinner-dead-letter"]); got != 4 {
		t.Fatalf("%d of 4 spinning records were stopped", got)
	}
	if took, limit := time.Since(began), 4*2*deadline+10*time.Second; took > limit {
		t.Errorf("four spinning records took %v, more than twice their deadline each", took)
	}
	// One worker's processor is shared between the two: half the pace is fair, a quarter allows for a noisy machine.
	t.Logf("the other agent: %.0f records/s alone, %.0f beside the spinning one", alone, beside)
	if beside < alone/4 {
		t.Error("the spinning agent took the other one's pace")
	}
}
