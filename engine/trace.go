package engine

import (
	"slices"

	"kaspr.io/kaspr/engine/record"
)

// Headers of W3C Trace Context, as producers write them into Kafka records.
const (
	headerTraceparent = "traceparent"
	headerTracestate  = "tracestate"
)

// passTrace gives outputs the trace context of the records they came from, unchanged, as who makes no spans of its own must. What code has
// set itself stays. A take batch is one unit: its outputs have the context of its first record.
func passTrace(records []record.Record, outs []record.Output) {
	for i := range outs {
		o := &outs[i]
		parent := headerOf(records[o.Record].Headers, headerTraceparent)
		if parent == nil || !isTraceparent(parent.Value) || headerOf(o.Headers, headerTraceparent) != nil {
			continue
		}
		o.Headers = append(slices.Clip(o.Headers), *parent)
		if state := headerOf(records[o.Record].Headers, headerTracestate); state != nil && headerOf(o.Headers, headerTracestate) == nil {
			o.Headers = append(o.Headers, *state)
		}
	}
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
