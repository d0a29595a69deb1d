package http

import (
	"bytes"
	"context"

	"github.com/valyala/fasthttp"
)

// Headers of W3C Trace Context.
const (
	traceparent = "Traceparent"
	tracestate  = "Tracestate"
)

// Trace is the W3C trace context that came with a request, as its headers say and not yet looked at; no Parent: none came.
type Trace struct{ Parent, State string }

// traceOf is the trace context of a request.
func traceOf(h *fasthttp.RequestHeader) (t Trace) {
	parent := h.Peek(traceparent)
	if len(parent) == 0 {
		return t
	}
	return Trace{string(parent), string(bytes.Join(h.PeekAll(tracestate), []byte(",")))}
}

// traceKey is the context key of WithTrace.
type traceKey struct{}

// WithTrace gives what Peers ask under a context its trace context.
func WithTrace(ctx context.Context, t Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// setTrace writes the context's trace context into a request.
func setTrace(ctx context.Context, h *fasthttp.RequestHeader) {
	t, ok := ctx.Value(traceKey{}).(Trace)
	if !ok {
		return
	}
	h.Set(traceparent, t.Parent)
	if t.State != "" {
		h.Set(tracestate, t.State)
	}
}
