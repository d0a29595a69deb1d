package engine

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// traced is an agent of an app whose spans go to an exporter.
func traced(t *testing.T, exporter sdktrace.SpanExporter, ratio float64) *agent {
	t.Helper()
	a := &App{log: slog.New(slog.DiscardHandler), plan: &plan.Plan{App: plan.App{ID: "shop-app"}}}
	a.cfg.Tracing, a.cfg.OTLP.Ratio = config.TracingExport, ratio
	a.tracer = a.traceTo(exporter, resource.Empty())
	t.Cleanup(func() { a.tracer.close(time.Now().Add(time.Second)) })
	return &agent{app: a, plan: &plan.Agent{Name: "relay"}}
}

func header(parent string) []record.Header {
	return []record.Header{{Key: headerTraceparent, Value: []byte(parent)}, {Key: headerTracestate, Value: []byte("vendor=1")}}
}

const unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"

// Every record of a sampled trace must have a span below who sent it, and what is made of the record must name that span and no other.
func TestRecordSpans(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	ag := traced(t, keep{spans}, 0)
	batch := &record.Batch{Records: []record.Record{
		{Topic: "in", Partition: 2, Offset: 7, Attempt: 1, Headers: header(parent)},
		{Topic: "in", Offset: 8, Headers: header(unsampled)},
		{Topic: "in", Offset: 9},
		{Topic: "in", Offset: 10, Attempt: 2, Headers: header(parent)},
		{Topic: "in", Offset: 11, Headers: header(parent)},
	}}
	res := record.Result{
		Done: 4, Outputs: []record.Output{{Record: 0}, {Record: 0, Headers: header("mine")}, {Record: 1}, {Record: 2}},
		Failures: []record.Failure{{Record: 3, Type: "KeyError", Message: "'x'", Operation: `operation "f"`}},
	}
	began := time.Now().Add(-time.Second)
	ag.app.tracer.records(ag, batch, &res, began)
	ag.app.tracer.close(time.Now().Add(time.Minute))
	got := spans.GetSpans()
	if len(got) != 2 {
		t.Fatalf("%d spans, want those of two records: one is not sampled, one has no trace, one was not processed", len(got))
	}
	ok, failed := got[0], got[1]
	if ok.Name != "process in" || ok.Parent.SpanID().String() != parent[36:52] || ok.SpanContext.TraceID().String() != parent[3:35] || !ok.StartTime.Equal(began) ||
		!ok.EndTime.After(began) || ok.Status.Code != codes.Unset {
		t.Errorf("%+v", ok)
	}
	attributes := map[string]string{}
	for _, a := range ok.Attributes {
		attributes[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{
		"messaging.system": "kafka", "messaging.destination.name": "in", "messaging.destination.partition.id": "2", "messaging.kafka.offset": "7",
		"messaging.consumer.group.name": "shop-app", "messaging.batch.message_count": "5", "kaspr.attempt": "1",
	} {
		if attributes[key] != want {
			t.Errorf("%s is %q, want %q", key, attributes[key], want)
		}
	}
	if failed.Status.Code != codes.Error || failed.Status.Description != "KeyError: 'x'" {
		t.Errorf("a record that failed: %+v", failed.Status)
	}
	for i, want := range []string{"00-" + parent[3:35] + "-" + ok.SpanContext.SpanID().String() + "-01", "mine", unsampled, ""} {
		is := ""
		if h := headerOf(res.Outputs[i].Headers, headerTraceparent); h != nil {
			is = string(h.Value)
		}
		if is != want {
			t.Errorf("output %d goes on with %q, want %q", i, is, want)
		}
	}
	if h := headerOf(res.Outputs[0].Headers, headerTracestate); h == nil || string(h.Value) != "vendor=1" {
		t.Errorf("tracestate %v", h)
	}
}

// keep ignores the exporter's Shutdown, which forgets the spans.
type keep struct{ *tracetest.InMemoryExporter }

func (keep) Shutdown(context.Context) error { return nil }

// With tracingSampleRatio traces begin here, and who reads the outputs must know what was decided about them.
func TestRatio(t *testing.T) {
	for ratio, want := range map[float64]int{1: 100, 1e-18: 0} {
		spans := tracetest.NewInMemoryExporter()
		ag := traced(t, keep{spans}, ratio)
		batch, res := &record.Batch{Records: make([]record.Record, 100)}, record.Result{Done: 100, Outputs: []record.Output{{Record: 99}}}
		ag.app.tracer.records(ag, batch, &res, time.Now())
		ag.app.tracer.close(time.Now().Add(time.Minute))
		c := contextOf(res.Outputs[0].Headers)
		if got := len(spans.GetSpans()); got != want || c.parent == nil || c.sampled() != (want > 0) {
			t.Errorf("ratio %v: %d spans, want %d; output goes on with %q", ratio, got, want, c.parent)
		}
	}
}

// Records without a trace must cost nothing but a look at their headers.
func TestRecordSpansAllocate(t *testing.T) {
	ag := traced(t, tracetest.NewInMemoryExporter(), 0)
	batch := &record.Batch{Records: []record.Record{{Headers: []record.Header{{Key: "a"}}}, {}}}
	res := record.Result{Done: 2, Outputs: []record.Output{{Record: 0}, {Record: 1}}}
	if n := testing.AllocsPerRun(100, func() { ag.app.tracer.records(ag, batch, &res, time.Time{}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// stuck is a collector that answers nothing.
type stuck struct{}

func (stuck) ExportSpans(ctx context.Context, _ []sdktrace.ReadOnlySpan) error {
	<-ctx.Done()
	return ctx.Err()
}
func (stuck) Shutdown(context.Context) error { return nil }

// A collector that hangs must hold up neither records nor a stop, and every span it costs must be counted.
func TestStuckCollector(t *testing.T) {
	ag := traced(t, stuck{}, 0)
	batch, res := &record.Batch{Records: make([]record.Record, 1000)}, record.Result{Done: 1000}
	for i := range batch.Records {
		batch.Records[i].Headers = header(parent)
	}
	const calls = 10
	for range calls {
		ag.app.tracer.records(ag, batch, &res, time.Now())
	}
	q := ag.app.tracer.queue
	if q.full.Load() < calls*1000-spanQueueMax-spanBatchMax {
		t.Errorf("%d of %d spans are dropped, although only %d have room", q.full.Load(), calls*1000, spanQueueMax+spanBatchMax)
	}
	began := time.Now()
	ag.app.tracer.close(began.Add(50 * time.Millisecond))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if got := q.full.Load() + q.failed.Load() + q.exported.Load(); got != calls*1000 || q.exported.Load() != 0 {
		t.Errorf("%d of %d spans are accounted for, %d as exported", got, calls*1000, q.exported.Load())
	}
	ag.app.tracer.close(time.Time{}) // once more does nothing
}

// A read that another process answers must be part of the request's trace, there too.
func TestForwardedRead(t *testing.T) {
	asked, other := staleApp(t, nil), staleApp(t, map[int32]string{0: "a", 1: "a", 2: "a"})
	asked.cfg.Web.StaleReads = true
	_, port, err := net.SplitHostPort(other.seen.web.Addr())
	if err != nil {
		t.Fatal(err)
	}
	asked.placement.Store(&owners{self: "asked", placement: broker.Placement{Peers: []broker.Peer{{Instance: "other", Address: "http://s@127.0.0.1:" + port}}}})
	spans := tracetest.NewInMemoryExporter()
	other.tracer = other.traceTo(keep{spans}, resource.Empty())
	for _, from := range []string{parent, unsampled} {
		ctx := contextOf(header(from)).forward(t.Context())
		if value, _, err := asked.lookup(ctx, 0, record.RecordPartition, []byte("a")); err != nil || string(value) != "old a" {
			t.Fatalf("%q, %v", value, err)
		}
	}
	if _, err := other.peers.Read(contextOf(header(parent)).forward(t.Context()), "http://s@127.0.0.1:"+port, []byte("x")); err == nil {
		t.Error("a malformed question is answered")
	}
	other.tracer.close(time.Now().Add(time.Minute))
	got := spans.GetSpans()
	if len(got) != 2 || got[0].Name != "read table" || got[0].Parent.SpanID().String() != parent[36:52] || got[1].Status.Code != codes.Error {
		t.Errorf("%s", fmt.Sprintf("%+v", got))
	}
}

// Whatever context comes from outside, the SDK must get one it can use.
func FuzzContext(f *testing.F) {
	f.Add(parent, "vendor=1")
	f.Add("01"+parent[2:]+"-x", "=,")
	f.Fuzz(func(t *testing.T, from, state string) {
		c := contextOf([]record.Header{{Key: headerTraceparent, Value: []byte(from)}, {Key: headerTracestate, Value: []byte(state)}})
		if c.parent == nil {
			return
		}
		if got := c.remote(); !got.IsValid() || got.IsSampled() != c.sampled() || got.TraceID().String() != from[3:35] || got.SpanID().String() != from[36:52] {
			t.Errorf("%q is read as %v", from, got)
		}
	})
}
