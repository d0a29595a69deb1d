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
	var first []string
	var how string
	for _, variant := range [][]string{
		{"batchRecordsMax=1000", "workers=1", "commitInterval=1s"},
		{"batchRecordsMax=1", "workers=1", "commitInterval=10ms"},
		{"batchRecordsMax=7", "workers=3", "commitInterval=1ms"},
		{"batchRecordsMax=64", "workers=2", "commitEvery=5"},
		{"batchRecordsMax=1000", "workers=3", "processingGuarantee=at_least_once"},
	} {
		args := []string{"dev", dir, "--drain", "--input", "users=" + file, "--set", "topicPartitions=3"}
		for _, s := range variant {
			args = append(args, "--set", s)
		}
		c := conformanceCase{Exit: 1} // records fail on purpose
		got, stderr := c.run(t, args)
		if len(got) < 600 {
			t.Fatalf("%v: %d outputs\n%s", variant, len(got), stderr)
		}
		for i, line := range got { // what depends on the clock
			line, _, _ = strings.Cut(line, `,"headers"`)
			got[i] = line
		}
		// The order within a partition counts; that between partitions is nobody's.
		byPartition := func(a, b string) int { return strings.Compare(place(a), place(b)) }
		slices.SortStableFunc(got, byPartition)
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

// place is the topic and partition of an output line.
func place(line string) string {
	before, _, _ := strings.Cut(line, `,"key"`)
	return before
}
