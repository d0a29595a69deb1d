package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log"
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

	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/engine/enginetest/child"
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

// A registry that only lets in who has its authority's certificate, a login and a name it knows must serve as an open one does; and what is
// wrong with that must be said, and must not cost a record: the app waits as for a registry that is down.
func TestRegistryTLS(t *testing.T) {
	dir := t.TempDir()
	keys := child.Keys(dir)
	if err := keys.MakeKeys(); err != nil {
		t.Fatal(err)
	}
	strangers := child.Keys(t.TempDir())
	if err := strangers.MakeKeys(); err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(keys.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	own, err := tls.LoadX509KeyPair(keys.ServerFile(), keys.ServerFile())
	if err != nil {
		t.Fatal(err)
	}
	fake := srfake.NewRegistry()
	var login atomic.Bool // whether one is wanted
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); login.Load() && (user != "ada" || password != "secret") {
			http.Error(w, `{"error_code": 401, "message": "who are you?"}`, http.StatusUnauthorized)
			return
		}
		fake.Handler().ServeHTTP(w, req)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(strings.Replace(schemaAgents, "valueSerializer: avro}}", "valueSerializer: json}}", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := keys.ClientFiles()
	otherCert, otherKey := strangers.ClientFiles()
	clientCert := []string{"schemaRegistryTlsCertFile=" + cert, "schemaRegistryTlsKeyFile=" + key}
	ada := []string{"schemaRegistryUsername=ada", "schemaRegistryPassword=secret"}
	ca := "schemaRegistryTlsCaFile=" + keys.CAFile()
	for name, c := range map[string]struct {
		login bool
		set   []string
		waits string // what the log says, when the app cannot go on
	}{
		"all right":             {true, slices.Concat([]string{ca}, clientCert, ada), ""},
		"no login":              {false, slices.Concat([]string{ca}, clientCert), ""},
		"name":                  {false, slices.Concat([]string{ca, "schemaRegistryTlsServerName=localhost"}, clientCert), ""},
		"another name":          {false, slices.Concat([]string{ca, "schemaRegistryTlsServerName=elsewhere"}, clientCert), "not elsewhere"},
		"wrong password":        {true, slices.Concat([]string{ca}, clientCert, []string{"schemaRegistryUsername=ada", "schemaRegistryPassword=no"}), "who are you?"},
		"no authority":          {false, clientCert, "unknown authority"},
		"no client certificate": {false, []string{ca}, "certificate required"},
		"stranger":              {false, []string{ca, "schemaRegistryTlsCertFile=" + otherCert, "schemaRegistryTlsKeyFile=" + otherKey}, "tls: "},
	} {
		t.Run(name, func(t *testing.T) {
			login.Store(c.login)
			args := []string{"dev", dir, "--drain", "--input", "numbers=-", "--set", "schemaRegistryUrl=" + server.URL}
			for _, set := range c.set {
				args = append(args, "--set", set)
			}
			if c.waits == "" {
				run := conformanceCase{stdin: "41\n"}
				stdout, _ := run.run(t, args)
				if want := `"topic":"more"`; !strings.Contains(strings.Join(stdout, "\n"), want) {
					t.Errorf("no output: %q", stdout)
				}
				return
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var stdout, stderr enginetest.Buffer
			ended := make(chan int, 1)
			go func() {
				ended <- Main(ctx, "test", args, Streams{In: strings.NewReader("41\n"), Out: &stdout, Err: &stderr})
			}()
			for began := time.Now(); !strings.Contains(stderr.String(), c.waits); time.Sleep(20 * time.Millisecond) {
				if time.Since(began) > 30*time.Second || len(ended) > 0 {
					t.Fatalf("the log lacks %q:\n%s", c.waits, stderr.String())
				}
			}
			if text := stderr.String(); !strings.Contains(text, "the schema registry does not answer") || stdout.String() != "" {
				t.Errorf("%s\n%s", stdout.String(), text)
			}
			cancel()
			<-ended
		})
	}
}
