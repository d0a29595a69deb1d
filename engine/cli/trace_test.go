package cli

import (
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const tracedApp = counting + `
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: seen, labels: {kaspr.io/app: demo}}
spec: {name: seen}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: relay, labels: {kaspr.io/app: demo}}
spec:
  input: {topic: {name: asked}}
  processors:
    pipeline: [same]
    operations: [{name: same, map: {python: "def same(value): return value"}}]
  output: {topics: [{name: relayed}]}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: ask, labels: {kaspr.io/app: demo}}
spec:
  request: {method: GET, path: "/ask/{id}"}
  response: {contentType: application/json}
  processors:
    pipeline: [read, note, send]
    operations:
      - name: read
        tables: [{name: totals, paramName: totals}, {name: seen, paramName: seen}]
        map:
          python: |
            def read(request, totals, seen, id):
                seen[id] = 1
                return {'id': id, 'total': totals.get('all')}
      - name: note
        topicSend: {name: noted, ack: true, passThrough: true}
      - name: send
        topicSend: {name: asked, passThrough: true}
`

// collecting is a collector of spans.
type collecting struct {
	*httptest.Server
	mu    sync.Mutex
	spans map[string]*tracepb.Span // guarded by mu; by id
	app   string                   // guarded by mu; whose they are
}

func newCollector(t *testing.T) *collecting {
	c := &collecting{spans: map[string]*tracepb.Span{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/base/v1/traces" || r.Header.Get("X-Key") != "k1" {
			t.Errorf("a request to %s with the key %q", r.URL.Path, r.Header.Get("X-Key"))
		}
		body, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		text, err := io.ReadAll(body)
		var req collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(text, &req)
		}
		if err != nil {
			t.Error(err)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range req.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				if a.Key == "service.name" {
					c.app = a.Value.GetStringValue()
				}
			}
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					c.spans[hex.EncodeToString(s.SpanId)] = s
				}
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// span is the one with an id; nil: it has not come.
func (c *collecting) span(id string) *tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans[id]
}

// tracedRun is a run of kaspr dev with tracing: export.
type tracedRun struct {
	*running
	base  string
	input *io.PipeWriter
}

func runTraced(t *testing.T, endpoint string) *tracedRun {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(tracedApp), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	in, input := io.Pipe()
	app := start(t, in,
		"dev", dir, "--input", "numbers=-", "--http", "--set", "webPort="+port, "--set", "adminListen=off",
		"--set", "tracing=export", "--set", "otlpEndpoint="+endpoint, "--set", "otlpHeaders=x-key=k1",
	)
	r := &tracedRun{app, "http://127.0.0.1:" + port, input}
	r.until("/readyz", func() bool { code, _ := get(t, r.base+"/readyz"); return code == http.StatusOK })
	return r
}

func (r *tracedRun) stop() {
	r.t.Helper()
	r.cancel()
	_ = r.input.Close() // ends the reader
	if code := r.running.stop(); code != 0 {
		r.t.Errorf("exit code %d\n%s", code, &r.errs)
	}
}

// traceparent waits for an output to a topic whose line holds a text, and gives its trace context; empty: it has none.
func (r *tracedRun) traceparent(topic, text string) (parent string) {
	r.t.Helper()
	r.until("output to "+topic+" with "+text, func() bool {
		for line := range strings.Lines(r.out.String()) {
			var o struct {
				Topic   string
				Headers map[string]string
			}
			if strings.Contains(line, text) && json.Unmarshal([]byte(line), &o) == nil && o.Topic == topic {
				parent = o.Headers["traceparent"]
				return true
			}
		}
		return false
	})
	return parent
}

// A trace must go on through the app: from a record's header to a span, from that to its outputs, from an HTTP request to what it sends and
// the agents that read it. A gap anywhere makes two traces of one.
func TestTraceExport(t *testing.T) {
	c := newCollector(t)
	r := runTraced(t, c.URL+"/base")
	const one, two, three = "4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4736", "6bf92f3577b34da6a3ce929d0e0e4736"
	const from = "00f067aa0ba902b7"
	send := func(lines ...string) {
		t.Helper()
		if _, err := io.WriteString(r.input, strings.Join(lines, "\n")+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	send(`{"value": 1, "headers": {"traceparent": "00-`+one+`-`+from+`-01", "tracestate": "v=1"}}`,
		`{"value": 10, "headers": {"traceparent": "00-`+one+`-`+from+`-00"}}`, `{"value": 100, "headers": {}}`)
	type want struct {
		parent, trace, name string
		kind                tracepb.Span_SpanKind
	}
	wants := map[string]want{} // by the span's id, as what was made names it
	id := func(traceparent, trace string) string {
		t.Helper()
		if len(traceparent) != 55 || traceparent[3:35] != trace || traceparent[36:52] == from || !strings.HasSuffix(traceparent, "-01") {
			t.Fatalf("an output goes on with %q, want a span of ours in trace %s", traceparent, trace)
		}
		return traceparent[36:52]
	}
	wants[id(r.traceparent("sums", `"value":1,`), one)] = want{from, one, "process numbers", tracepb.Span_SPAN_KIND_CONSUMER}
	if got := r.traceparent("sums", `"value":11,`); got != "00-"+one+"-"+from+"-00" {
		t.Errorf("a trace that is not recorded goes on with %q", got)
	}
	if got := r.traceparent("sums", `"value":111,`); got != "" {
		t.Errorf("without a trace there is %q", got)
	}

	// Two requests at a time, of two traces.
	var asking sync.WaitGroup
	for name, trace := range map[string]string{"b": two, "c": three} {
		asking.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.base+"/ask/"+name, nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("traceparent", "00-"+trace+"-"+from+"-01")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("status %d", resp.StatusCode)
			}
		})
	}
	asking.Wait()
	if code, _ := get(t, r.base+"/ask/d"); code != 200 {
		t.Errorf("status %d", code)
	}
	for name, trace := range map[string]string{"b": two, "c": three} {
		value := `"id":"` + name + `"`
		view := id(r.traceparent("asked", value), trace)
		if noted := r.traceparent("noted", value); id(noted, trace) != view {
			t.Errorf("what was sent with ack goes on with %q, and not with the request's span %s", noted, view)
		}
		wants[view] = want{from, trace, "GET /ask/{id}", tracepb.Span_SPAN_KIND_SERVER}
		wants[id(r.traceparent("relayed", value), trace)] = want{view, trace, "process asked", tracepb.Span_SPAN_KIND_CONSUMER}
	}
	if got := r.traceparent("relayed", `"id":"d"`); got != "" {
		t.Errorf("a request without a trace makes %q", got)
	}
	r.until("count of spans", func() bool {
		_, text := get(t, r.base+"/metrics")
		return strings.Contains(text, "kaspr_trace_spans_exported_total{") && !strings.Contains(text, `kaspr_trace_spans_exported_total{app_name="demo-app",worker_name="`+worker()+`"} 0`)
	})

	// What was made just before the stop is not lost.
	send(`{"value": 1000, "headers": {"traceparent": "00-` + one + `-` + from + `-01"}}`)
	wants[id(r.traceparent("sums", `"value":1111,`), one)] = want{from, one, "process numbers", tracepb.Span_SPAN_KIND_CONSUMER}
	r.stop()
	for id, want := range wants {
		s := c.span(id)
		if s == nil {
			t.Errorf("the collector never got %s, which is %+v", id, want)
			continue
		}
		if hex.EncodeToString(s.ParentSpanId) != want.parent || hex.EncodeToString(s.TraceId) != want.trace || s.Name != want.name || s.Kind != want.kind {
			t.Errorf("%s is %v, want %+v", id, s, want)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	writes := map[string]bool{} // traces whose request wrote a table: its record is processed, too, below the request's span
	for _, s := range c.spans {
		if above := c.spans[hex.EncodeToString(s.ParentSpanId)]; above != nil && above.Name == "GET /ask/{id}" && s.Name != "process asked" {
			writes[hex.EncodeToString(s.TraceId)] = true
		}
	}
	if !writes[two] || !writes[three] {
		t.Errorf("the writes of requests are in their traces: %v", writes)
	}
	if len(c.spans) != len(wants)+len(writes) || c.app != "demo-app" {
		t.Errorf("%d spans of %q, want %d: %v", len(c.spans), c.app, len(wants)+len(writes), c.spans)
	}
}

// A collector that is not there must cost spans, which are counted, and nothing else.
func TestTraceCollectorDown(t *testing.T) {
	r := runTraced(t, "http://127.0.0.1:"+freePort(t))
	if _, err := io.WriteString(r.input, `{"value": 1, "headers": {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	r.traceparent("sums", `"value":1,`)
	r.until("count of dropped spans", func() bool {
		_, text := get(t, r.base+"/metrics")
		return strings.Contains(text, `kaspr_trace_spans_dropped_total{app_name="demo-app",reason="collector",worker_name="`+worker()+`"} 1`)
	})
	r.stop()
	if !strings.Contains(r.errs.String(), "the collector does not take spans") {
		t.Errorf("the log does not tell:\n%s", &r.errs)
	}
}
