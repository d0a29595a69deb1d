package engine

import (
	"context"
	"slices"

	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/wasmhost"
)

// Headers of W3C Trace Context, as producers write them into Kafka records.
const (
	headerTraceparent = "traceparent"
	headerTracestate  = "tracestate"
)

// traceContext is a W3C trace context. Without a parent it is none; a parent is one that may be passed on (isTraceparent).
type traceContext struct{ parent, state []byte }

// contextOf is the trace context a record has.
func contextOf(headers []record.Header) (c traceContext) {
	parent := headerOf(headers, headerTraceparent)
	if parent == nil || !isTraceparent(parent.Value) {
		return c
	}
	c.parent = parent.Value
	if state := headerOf(headers, headerTracestate); state != nil {
		c.state = state.Value
	}
	return c
}

// contextOfRequest is that of an HTTP request.
func contextOfRequest(t apphttp.Trace) (c traceContext) {
	if !isTraceparent([]byte(t.Parent)) {
		return c
	}
	c.parent = []byte(t.Parent)
	if t.State != "" {
		c.state = []byte(t.State)
	}
	return c
}

// onto gives an output the context, unless its code has set one.
func (c traceContext) onto(o *record.Output) {
	if c.parent == nil || headerOf(o.Headers, headerTraceparent) != nil {
		return
	}
	o.Headers = append(slices.Clip(o.Headers), record.Header{Key: headerTraceparent, Value: c.parent})
	if c.state != nil && headerOf(o.Headers, headerTracestate) == nil {
		o.Headers = append(o.Headers, record.Header{Key: headerTracestate, Value: c.state})
	}
}

// sampled tells whether who made the context records its trace.
func (c traceContext) sampled() bool {
	last := c.parent[len("00-")+32+len("-")+16+len("-")+1] // of the two digits of the flags
	return (last-'0')&1 == 1 && last <= '9' || last >= 'a' && (last-'a')&1 == 1
}

// passTrace gives outputs the trace context of the records they came from, unchanged, as who makes no spans of its own must. What code has
// set itself stays. A take batch is one unit: its outputs have the context of its first record.
func passTrace(records []record.Record, outs []record.Output) {
	for i := range outs {
		contextOf(records[outs[i].Record].Headers).onto(&outs[i])
	}
}

// askedKey is the context key under which what a view's code asks for finds the requests of its call: a *viewWorker.
type askedKey struct{}

// runningContext is the trace context of the request that a view's code was working on when it asked for something.
func runningContext(ctx context.Context) traceContext {
	w, ok := ctx.Value(askedKey{}).(*viewWorker)
	r := wasmhost.Running(ctx)
	if !ok || r == nil {
		return traceContext{}
	}
	for _, a := range w.calling {
		if &a.req.Head[0] == &r.Key[0] { // no head is empty
			return a.trace
		}
	}
	return traceContext{}
}

// forward gives questions to other processes the trace context.
func (c traceContext) forward(ctx context.Context) context.Context {
	if c.parent == nil {
		return ctx
	}
	return apphttp.WithTrace(ctx, apphttp.Trace{Parent: string(c.parent), State: string(c.state)})
}

// headerOf is the last header of a name, which is the one that counts; nil: there is none.
func headerOf(headers []record.Header, name string) *record.Header {
	for i := len(headers) - 1; i >= 0; i-- {
		if headers[i].Key == name {
			return &headers[i]
		}
	}
	return nil
}

// isTraceparent tells a trace context that may be passed on: version, trace id, span id and flags, in lower-case hexadecimal, with more behind
// them only in versions to come. Ids of zeros are none.
func isTraceparent(b []byte) bool {
	const length = 55
	if len(b) < length || b[2] != '-' || b[35] != '-' || b[52] != '-' {
		return false
	}
	version := string(b[:2])
	if version == "ff" || version == "00" && len(b) != length || len(b) > length && b[length] != '-' {
		return false
	}
	for _, part := range [][]byte{b[:2], b[3:35], b[36:52], b[53:55]} {
		zeros := len(part) > 2
		for _, c := range part {
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
			zeros = zeros && c == '0'
		}
		if zeros {
			return false
		}
	}
	return true
}
