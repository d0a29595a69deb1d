package engine

import (
	"context"
	"encoding/hex"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
)

// tracer makes the engine's own spans, with tracing: export:
//
//	record with a trace ──► span of the step that processes it ──► its outputs
//	HTTP request        ──► span of its answer                 ──► what it sends and writes, reads in other processes (a span of each)
//
// There is a span where the context that came is sampled, or, if none came, where the ratio says so. A record without a context costs a
// look at its headers. A span is of an attempt: what is rolled back is processed, and has a span, again.
type tracer struct {
	queue    *spanQueue
	provider *sdktrace.TracerProvider
	sdk      trace.Tracer
	roots    bool // traces may begin here
	group    string
}

// newTracer only prepares: a collector that is not there is no reason not to start.
func newTracer(ctx context.Context, a *App) (*tracer, error) {
	o := a.cfg.OTLP
	exporter, err := otlptracehttp.New(ctx,
		otlptracehttp.WithEndpointURL(strings.TrimRight(o.Endpoint, "/")+"/v1/traces"), otlptracehttp.WithHeaders(o.Headers),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
	if err != nil {
		return nil, err
	}
	of, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(
		attribute.String("service.name", a.plan.App.ID), attribute.String("service.instance.id", a.instance), attribute.String("service.version", a.opts.Version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	return a.traceTo(exporter, of), nil
}

// traceTo makes the spans of the app, of the process that of describes.
func (a *App) traceTo(exporter sdktrace.SpanExporter, of *resource.Resource) *tracer {
	ratio := a.cfg.OTLP.Ratio
	t := &tracer{queue: newSpanQueue(exporter, a.log), roots: ratio > 0, group: a.plan.App.ID}
	t.provider = sdktrace.NewTracerProvider(sdktrace.WithResource(of), sdktrace.WithSpanProcessor(t.queue),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))))
	t.sdk = t.provider.Tracer("kaspr.io/kaspr", trace.WithInstrumentationVersion(a.opts.Version))
	return t
}

// flushMax bounds how long a stop waits for the collector, within the stop's time.
const flushMax = 5 * time.Second

// close sends what is left; until is the end of the stop's time, zero for none. It is idempotent.
func (t *tracer) close(until time.Time) {
	if soon := time.Now().Add(flushMax); until.IsZero() || until.After(soon) {
		until = soon
	}
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.queue.log.Warn("stop the export of spans", "err", err)
	}
}

// wanted tells whether something gets a span to which the context came.
func (t *tracer) wanted(c traceContext) bool {
	if c.parent == nil {
		return t.roots
	}
	return c.sampled()
}

// start begins a span below a context, and gives the context that goes on. The span does not record if the ratio says so.
func (t *tracer) start(c traceContext, kind trace.SpanKind, name string, at time.Time) (trace.Span, traceContext) {
	_, span := t.sdk.Start(trace.ContextWithRemoteSpanContext(context.Background(), c.remote()), name, trace.WithSpanKind(kind), trace.WithTimestamp(at))
	is := span.SpanContext()
	on := traceContext{parent: []byte("00-" + is.TraceID().String() + "-" + is.SpanID().String() + "-" + is.TraceFlags().String())}
	if state := is.TraceState().String(); state != "" {
		on.state = []byte(state)
	}
	return span, on
}

// remote is the context as the SDK knows it. A state that is none is left out, as the standard says.
func (c traceContext) remote() trace.SpanContext {
	if c.parent == nil {
		return trace.SpanContext{}
	}
	var of trace.SpanContextConfig
	var flags [1]byte
	for _, part := range []struct{ to, from []byte }{{of.TraceID[:], c.parent[3:35]}, {of.SpanID[:], c.parent[36:52]}, {flags[:], c.parent[53:55]}} {
		if _, err := hex.Decode(part.to, part.from); err != nil {
			panic("BUG: " + err.Error()) // isTraceparent
		}
	}
	of.TraceFlags, of.Remote = trace.TraceFlags(flags[0]), true
	if state, err := trace.ParseTraceState(string(c.state)); err == nil {
		of.TraceState = state
	}
	return trace.NewSpanContext(of)
}

// records makes a span of each record of a step that gets one, and gives outputs the context that goes on from their record.
func (t *tracer) records(a *agent, batch *record.Batch, res *record.Result, began time.Time) {
	var on []traceContext // by record; nil: none of them has one
	var ended time.Time
	failures := res.Failures
	for i := range batch.Records[:res.Done] {
		r := &batch.Records[i]
		var failure *record.Failure
		if len(failures) > 0 && int(failures[0].Record) == i {
			failure, failures = &failures[0], failures[1:]
		}
		c := contextOf(r.Headers)
		if t.wanted(c) {
			if ended.IsZero() {
				ended = time.Now()
			}
			var span trace.Span
			span, c = t.start(c, trace.SpanKindConsumer, "process "+r.Topic, began)
			t.describe(span, a, batch, r, failure)
			span.End(trace.WithTimestamp(ended))
		}
		if c.parent != nil {
			if on == nil {
				on = make([]traceContext, len(batch.Records))
			}
			on[i] = c
		}
	}
	if on == nil {
		return
	}
	for i := range res.Outputs {
		on[res.Outputs[i].Record].onto(&res.Outputs[i])
	}
}

// describe says what a record's span is of, in the words of OpenTelemetry's conventions.
func (t *tracer) describe(span trace.Span, a *agent, batch *record.Batch, r *record.Record, failure *record.Failure) {
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("messaging.system", "kafka"), attribute.String("messaging.operation.type", "process"), attribute.String("messaging.operation.name", "process"),
		attribute.String("messaging.destination.name", r.Topic), attribute.Int("messaging.destination.partition.id", int(r.Partition)),
		attribute.Int64("messaging.kafka.offset", r.Offset), attribute.String("messaging.consumer.group.name", t.group),
		attribute.Int("messaging.batch.message_count", len(batch.Records)),
		attribute.String("kaspr.agent", a.shown()), attribute.Int("kaspr.attempt", int(r.Attempt)),
	)
	if failure != nil {
		span.SetAttributes(attribute.String("error.type", failure.Type), attribute.String("kaspr.operation", failure.Operation))
		span.SetStatus(codes.Error, failure.Type+": "+failure.Message)
	}
}

// traceRequest is a request's span, nil for none, and the context that what the request makes gets.
func (a *App) traceRequest(v *plan.View, req *apphttp.Request, began time.Time) (trace.Span, traceContext) {
	if a.cfg.Tracing == config.TracingOff {
		return nil, traceContext{}
	}
	c := contextOfRequest(req.Trace)
	if a.tracer == nil || !a.tracer.wanted(c) {
		return nil, c
	}
	method, _ := req.Line()
	span, on := a.tracer.start(c, trace.SpanKindServer, method+" "+v.Path, began)
	span.SetAttributes(attribute.String("http.request.method", method), attribute.String("http.route", v.Path), attribute.String("kaspr.view", v.Name))
	return span, on
}

// endRequest ends the span of a request.
func endRequest(span trace.Span, status int) {
	span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= 500 {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// answerTraced is answerPeer, with a span if the question is part of a trace that is recorded.
func (a *App) answerTraced(from apphttp.Trace, question []byte) ([]byte, error) {
	c := contextOfRequest(from)
	if a.tracer == nil || c.parent == nil || !c.sampled() {
		return a.answerPeer(question)
	}
	span, _ := a.tracer.start(c, trace.SpanKindServer, "read table", time.Now())
	defer span.End()
	answer, err := a.answerPeer(question)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return answer, err
}
