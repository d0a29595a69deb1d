package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const equivalenceApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: counts, labels: {kaspr.io/app: same}}
spec: {name: counts, defaultSelector: {python: "def zero(): return int"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: hours, labels: {kaspr.io/app: same}}
spec: {name: hours, window: {hopping: {size: 2h, step: 1h, expires: 1h}}, defaultSelector: {python: "def zero(): return int"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: count, labels: {kaspr.io/app: same}}
spec:
  input: {topic: {name: users, keySerializer: json}}
  onError: {policy: dead-letter, topic: failed}
  processors:
    pipeline: [count]
    operations:
      - name: count
        tables: [{name: counts, paramName: counts}, {name: hours, paramName: hours}]
        map:
          python: |
            def count(value, counts, hours):
                user = context["event"].key
                counts[user] += 1
                hours[user] += value["n"]
                if value["n"] % 50 == 7:
                    raise ValueError("every fiftieth")
                yield {"user": user, "n": value["n"], "count": counts[user], "hour": hours[user].value()}
                if counts[user] % 3 == 0:
                    del counts[user]
  output: {topics: [{name: out, keySerializer: json, keySelector: {python: "def key(v): return v['user']"}}]}
`

// The size of batches, the number of instances and how often is committed must not change what comes out.
func TestEquivalence(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(equivalenceApp), 0o600); err != nil {
		t.Fatal(err)
	}
	var input strings.Builder
	for n := range 600 {
		fmt.Fprintf(&input, `{"key": "user-%d", "value": {"n": %d}, "timestamp": %d}`+"\n", n*n%17, n, 36_000_000+int64(n)*60_000)
	}
	file := filepath.Join(dir, "users.jsonl")
	if err := os.WriteFile(file, []byte(input.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	equivalent(t, 600, []string{"dev", dir, "--drain", "--input", "users=" + file, "--set", "topicPartitions=3"}, place, [][]string{
		{"batchRecordsMax=1000", "workers=1", "commitInterval=1s"},
		{"batchRecordsMax=1", "workers=1", "commitInterval=10ms"},
		{"batchRecordsMax=7", "workers=3", "commitInterval=1ms"},
		{"batchRecordsMax=64", "workers=2", "commitEvery=5"},
		{"batchRecordsMax=1000", "workers=3", "processingGuarantee=at_least_once"},
	})
}

// equivalent runs a command with different settings, some records of which fail on purpose. At least so many lines must come out, and
// the same ones; the order counts among those of which what is alike.
func equivalent(t *testing.T, least int, command []string, what func(line string) string, variants [][]string) {
	t.Helper()
	var first []string
	var how string
	for _, variant := range variants {
		args := slices.Clone(command)
		for _, s := range variant {
			args = append(args, "--set", s)
		}
		c := conformanceCase{Exit: 1}
		got, stderr := c.run(t, args)
		if len(got) < least {
			t.Fatalf("%v: %d outputs\n%s", variant, len(got), stderr)
		}
		for i, line := range got { // what depends on the clock
			line, _, _ = strings.Cut(line, `,"headers"`)
			got[i] = line
		}
		slices.SortStableFunc(got, func(a, b string) int { return strings.Compare(what(a), what(b)) })
		if first == nil {
			first, how = got, fmt.Sprint(variant)
		} else if !slices.Equal(got, first) {
			for i := range min(len(got), len(first)) {
				if got[i] != first[i] {
					t.Fatalf("%v gives\n%s\nwhere %s gives\n%s", variant, got[i], how, first[i])
				}
			}
			t.Fatalf("%v gives %d lines, %s %d", variant, len(got), how, len(first))
		}
	}
}

const concurrentApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: counts, labels: {kaspr.io/app: same}}
spec: {name: counts, defaultSelector: {python: "def zero(): return int"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: count, labels: {kaspr.io/app: same}}
spec:
  input: {topic: {name: users, keySerializer: json}}
  onError: POLICY
  processors:
    pipeline: [count, tell, check]
    init: {python: "import asyncio"}
    operations:
      - name: count
        tables: [{name: counts, paramName: counts}]
        map:
          python: |
            async def count(value, counts):
                user = context["event"].key
                before = counts[user]
                await asyncio.sleep(0.001 * (value["n"] % 4))
                counts[user] = before + 1
                yield {"user": user, "n": value["n"], "count": before + 1}
                await asyncio.sleep(0)
                if value["n"] % 3 == 0:
                    yield {"user": user, "n": value["n"], "count": -before}
      - name: tell
        topicSend: {name: acked, ack: true, passThrough: false, keySerializer: json, keySelector: {python: "def key(v): return v['user']"}}
      - name: check
        map:
          python: |
            def check(metadata):
                event = context["event"]
                if event.value["n"] % 50 == 7:
                    raise ValueError("every fiftieth")
                return {"user": event.key, "n": event.value["n"]}
  output: {topics: [{name: out, keySerializer: json, keySelector: {python: "def key(v): return v['user']"}}]}
`

// How many records are in progress at once must not change what comes out: neither what code writes and sends, nor what it sends ahead
// and waits for, of which only the order of one key is promised.
func TestEquivalenceConcurrency(t *testing.T) {
	dir := t.TempDir()
	var input strings.Builder
	for n := range 200 {
		fmt.Fprintf(&input, `{"key": "user-%d", "value": {"n": %d}}`+"\n", n*n%17, n)
	}
	file := filepath.Join(dir, "users.jsonl")
	if err := os.WriteFile(file, []byte(input.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, policy := range []string{
		"{policy: dead-letter, topic: failed}", "{policy: retry, then: dead-letter, topic: failed, retry: {maxAttempts: 2, initialBackoff: 1ms}}",
	} {
		if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(strings.Replace(concurrentApp, "POLICY", policy, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		byKey := func(line string) string {
			if !strings.HasPrefix(line, `{"topic":"acked"`) {
				return place(line)
			}
			before, _, _ := strings.Cut(line, `,"value"`)
			return before
		}
		equivalent(t, 450, []string{"dev", dir, "--drain", "--input", "users=" + file, "--set", "topicPartitions=3"}, byKey, [][]string{
			{"batchConcurrencyMax=1"},
			{"batchConcurrencyMax=64"},
			{"batchConcurrencyMax=3", "batchRecordsMax=20", "workers=3"},
		})
	}
}

// place is the topic and partition of an output line.
func place(line string) string {
	before, _, _ := strings.Cut(line, `,"key"`)
	return before
}
