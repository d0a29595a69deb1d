package cli

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const joiningApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: trips, labels: {kaspr.io/app: same}}
spec: {name: trips}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: drivers, labels: {kaspr.io/app: same}}
spec: {name: drivers}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: put-trips, labels: {kaspr.io/app: same}}
spec:
  input: {declare: true, topic: {name: trips, partitions: 3, keySerializer: json}}
  processors:
    pipeline: [put]
    operations:
      - name: put
        tables: [{name: trips, paramName: table}]
        map:
          python: |
            def put(row, table):
                key = context["event"].key
                if row is None:
                    del table[key]
                else:
                    table[key] = row
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: put-drivers, labels: {kaspr.io/app: same}}
spec:
  input: {declare: true, topic: {name: drivers, partitions: 4, keySerializer: json}}
  processors:
    pipeline: [put]
    operations:
      - name: put
        tables: [{name: drivers, paramName: table}]
        map:
          python: |
            def put(row, table):
                key = context["event"].key
                if row is None:
                    del table[key]
                else:
                    table[key] = row
---
apiVersion: kaspr.io/v1alpha1
kind: KasprJoin
metadata: {name: named, labels: {kaspr.io/app: same}}
spec: {leftTable: trips, rightTable: drivers, type: left, retractions: true, extractor: {python: "def of(trip): return trip['of']"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: show, labels: {kaspr.io/app: same}}
spec:
  input: {channel: {name: named-channel}}
  processors: {pipeline: [show], operations: [{name: show, map: {python: "def show(pair): return pair"}}]}
  output: {topics: [{name: out, keySerializer: json, keySelector: {python: "def key(v): return context['event'].key"}}]}
`

// Whatever the batches, instances and commits, the last result of each left row must be that of what both rows are in the end.
func TestJoinEquivalence(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(joiningApp), 0o600); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	rows := map[string]map[int]string{}
	write := func(topic string, keys int, value func() string) string {
		var text strings.Builder
		rows[topic] = map[int]string{}
		for range 500 {
			key, v := rng.IntN(keys), value()
			if rng.IntN(5) == 0 {
				v = "null"
			}
			rows[topic][key] = v
			fmt.Fprintf(&text, `{"key": %d, "value": %s}`+"\n", key, v)
		}
		file := filepath.Join(dir, topic+".jsonl")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return topic + "=" + file
	}
	inputs := []string{
		"--input", write("trips", 40, func() string {
			of := []string{"null", "1", "2", "3", `"1"`, "99"}[rng.IntN(6)]
			return fmt.Sprintf(`{"of":%s,"n":%d}`, of, rng.IntN(1000))
		}),
		"--input", write("drivers", 4, func() string { return fmt.Sprintf(`{"d":%d}`, rng.IntN(1000)) }),
	}
	want := map[int]string{}
	for key, trip := range rows["trips"] {
		var row struct{ Of any }
		if err := json.Unmarshal([]byte(trip), &row); err != nil {
			t.Fatal(err)
		}
		driver := "null"
		if of, ok := row.Of.(float64); ok && rows["drivers"][int(of)] != "" {
			driver = rows["drivers"][int(of)]
		}
		want[key] = "[" + trip + "," + driver + "]"
	}
	for _, variant := range [][]string{
		{"batchRecordsMax=1000", "workers=1", "commitInterval=200ms"},
		{"batchRecordsMax=1", "workers=1", "commitInterval=5ms"},
		{"batchRecordsMax=7", "workers=3", "commitInterval=1ms"},
		{"batchRecordsMax=64", "workers=2", "commitEvery=5"},
		{"batchRecordsMax=1000", "workers=3", "processingGuarantee=at_least_once"},
	} {
		args := append([]string{"dev", dir, "--drain"}, inputs...)
		for _, s := range variant {
			args = append(args, "--set", s)
		}
		var c conformanceCase
		lines, stderr := c.run(t, args)
		last := map[int]string{}
		for _, line := range lines {
			var o struct {
				Key   int
				Value json.RawMessage
			}
			if err := json.Unmarshal([]byte(line), &o); err != nil {
				t.Fatalf("%v: %s: %v\n%s", variant, line, err, stderr)
			}
			last[o.Key] = string(o.Value)
		}
		for key, w := range want {
			got, sent := last[key]
			if strings.HasPrefix(w, "[null,") { // it is gone; perhaps nobody ever saw it
				if sent && !strings.HasPrefix(got, "[null,") {
					t.Errorf("%v, seed %d: trip %d is gone, its last result is %s", variant, seed, key, got)
				}
			} else if got != w {
				t.Errorf("%v, seed %d: the last result of trip %d is %s, want %s", variant, seed, key, got, w)
			}
		}
	}
}
