package engine

import (
	"fmt"
	"testing"

	"kaspr.io/kaspr/engine/record"
)

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// A trace that enters with a record must go on with what was made of it, unless code says otherwise.
func TestPassTrace(t *testing.T) {
	h := func(pairs ...string) (list []record.Header) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, record.Header{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return list
	}
	records := []record.Record{
		{Headers: h("traceparent", "old", "traceparent", parent, "tracestate", "vendor=1")},
		{Headers: h("traceparent", "rubbish", "tracestate", "vendor=2")},
		{},
	}
	shared := append(make([]record.Header, 0, 8), h("own", "x")...)
	outs := []record.Output{
		{Record: 0}, {Record: 0, Headers: shared}, {Record: 0, Headers: shared}, {Record: 0, Headers: h("traceparent", "mine")}, {Record: 1}, {Record: 2},
	}
	passTrace(records, outs)
	want := []string{
		"traceparent=" + parent + " tracestate=vendor=1 ", "own=x traceparent=" + parent + " tracestate=vendor=1 ",
		"own=x traceparent=" + parent + " tracestate=vendor=1 ", "traceparent=mine ", "", "",
	}
	for i := range outs {
		got := ""
		for _, x := range outs[i].Headers {
			got += fmt.Sprintf("%s=%s ", x.Key, x.Value)
		}
		if got != want[i] {
			t.Errorf("output %d has %q, want %q", i, got, want[i])
		}
	}
	if shared[:2:2][1].Key != "" {
		t.Error("a slice that outputs share was written to")
	}
}

// Records without a trace must cost nothing.
func TestPassTraceAllocates(t *testing.T) {
	records := []record.Record{{Headers: []record.Header{{Key: "a"}, {Key: "b"}}}, {}}
	outs := []record.Output{{Record: 0}, {Record: 1}}
	if n := testing.AllocsPerRun(100, func() { passTrace(records, outs) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTraceparent(t *testing.T) {
	for text, want := range map[string]bool{
		parent: true, "01" + parent[2:] + "-more": true, "01" + parent[2:]: true,
		"": false, parent + "-more": false, parent + "x": false, "01" + parent[2:] + "more": false, "ff" + parent[2:]: false, parent[:54]: false,
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01": false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": false,
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00": true,
	} {
		if isTraceparent([]byte(text)) != want {
			t.Errorf("%q: want %v", text, want)
		}
	}
}

func FuzzTraceparent(f *testing.F) {
	f.Add([]byte(parent))
	f.Add([]byte("01" + parent[2:] + "-x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isTraceparent(b) && len(b) < len(parent) {
			t.Errorf("%q", b)
		}
	})
}
