package cli

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
)

const schemaAgents = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: schemas, labels: {kaspr.io/app: demo}}
spec:
  input: {topic: {name: numbers, valueSerializer: avro}}
  processors: {pipeline: [m], operations: [{name: m, map: {python: "def m(n): return n + 1"}}]}
  output:
    topics:
      - {name: more, valueSerializer: avro, valueSchema: {text: '"long"'}}
      - {name: seen}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: plain, labels: {kaspr.io/app: demo}}
spec:
  input: {topic: {name: numbers, valueSerializer: raw}}
  processors: {pipeline: [m], operations: [{name: m, map: {python: "def m(b): return len(b)"}}]}
  output: {topics: [{name: lengths}]}
`

// A registry that is down must cost time and nothing else: not at the start, not between records, and not those who need no schema.
func TestRegistryDown(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(schemaAgents), 0o600); err != nil {
		t.Fatal(err)
	}
	var input strings.Builder
	const records = 200
	for i := range records { // ids 1 to 4, each of which is first asked for while the registry is down
		fmt.Fprintf(&input, "{\"value\": {\"base64\": %q}}\n", base64.StdEncoding.EncodeToString([]byte{0, 0, 0, 0, byte(1 + i/50), byte(2 * (i % 50))}))
	}
	file := filepath.Join(dir, "numbers.jsonl")
	if err := os.WriteFile(file, []byte(input.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	fake := srfake.NewRegistry()
	for id := range 4 {
		fake.SeedSchema(fmt.Sprintf("s%d", id), 1, id+1, sr.Schema{Schema: `"int"`})
	}
	var refused, answered atomic.Int64
	perPath := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if n := perPath[req.URL.Path]; n < 2 { // the engine asks for one thing at a time here
			perPath[req.URL.Path] = n + 1
			refused.Add(1)
			time.Sleep(200 * time.Millisecond)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		answered.Add(1)
		fake.Handler().ServeHTTP(w, req)
	}))
	defer server.Close()
	for _, guarantee := range []string{"exactly_once", "at_least_once"} {
		clear(perPath)
		refused.Store(0)
		answered.Store(0)
		c := conformanceCase{Stderr: []string{"schema registry does not answer", "answers again"}}
		got, _ := c.run(t, []string{"dev", dir, "--drain", "--set", "schemaRegistryUrl=" + server.URL, "--set", "processingGuarantee=" + guarantee, "--set", "workers=1", "--input", "numbers=" + file})
		var seen, want []string
		topics := map[string]int{}
		for _, line := range got {
			topic, rest, _ := strings.Cut(strings.TrimPrefix(line, `{"topic":"`), `"`)
			topics[topic]++
			if topic == "seen" {
				_, value, _ := strings.Cut(rest, `"value":`)
				value, _, _ = strings.Cut(value, ",")
				seen = append(seen, value)
			}
		}
		for i := range records {
			want = append(want, fmt.Sprint(i%50+1))
		}
		if !slices.Equal(seen, want) {
			t.Errorf("%s: records were lost, or came in another order: %d of %d, %v", guarantee, len(seen), records, seen)
		}
		if topics["more"] != records || topics["lengths"] != records || len(topics) != 3 {
			t.Errorf("%s: %v", guarantee, topics)
		}
		if refused.Load() != 10 || answered.Load() != 5 {
			t.Errorf("%s: %d requests refused, %d answered; four schemas are read and one is written", guarantee, refused.Load(), answered.Load())
		}
	}
}

// An app whose serializers need a registry must not start without one and fail record by record.
func TestNoRegistry(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(schemaAgents), 0o600); err != nil {
		t.Fatal(err)
	}
	c := conformanceCase{Exit: 1, Stderr: []string{"warning M053", `a.yaml:2:1: agent "schemas" has a serializer with schemas: set schemaRegistryUrl`}}
	c.run(t, []string{"dev", dir, "--drain"})
	// What the registry refuses is said with its place before the first record.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error_code": 409, "message": "not compatible"}`, http.StatusConflict)
	}))
	defer server.Close()
	c = conformanceCase{Exit: 1, Stderr: []string{`a.yaml:10:45: agent "schemas", output "more", valueSchema: subject more-value: the registry says: not compatible`}}
	c.stdin = "1"
	c.run(t, []string{"dev", dir, "--drain", "--set", "schemaRegistryUrl=" + server.URL, "--input", "numbers=-"})
}
