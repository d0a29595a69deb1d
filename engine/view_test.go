package engine

import (
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Requests that are taken together with a slow one wait for it. After one, a view must take them one by one, and many again once all are quick.
func TestViewCost(t *testing.T) {
	v := &view{}
	call := func(requests int, took time.Duration) {
		v.cost.Store(int64(costAfter(time.Duration(v.cost.Load()), requests, took)))
	}
	if n := v.most(); n != 1 {
		t.Errorf("the first call takes %d requests, whose cost nobody knows", n)
	}
	call(1, 50*time.Microsecond)
	if n := v.most(); n != 80 {
		t.Errorf("%d requests of 50 µs, want 80: 4 ms", n)
	}
	call(80, 300*time.Millisecond)
	if n := v.most(); n != 1 {
		t.Errorf("%d requests after a slow one among 80, want 1", n)
	}
	for range 200 {
		call(v.most(), time.Duration(v.most())*50*time.Microsecond)
	}
	if n := v.most(); n < 60 {
		t.Errorf("%d requests of 50 µs after many quick ones, want about 80", n)
	}
}

// Many requests with large bodies at once are many calls: one of all of them would not fit into the guest's memory.
func TestViewBytes(t *testing.T) {
	small, large := record.Record{Value: make([]byte, 400)}, record.Record{Key: make([]byte, 10), Headers: []record.Header{{Value: make([]byte, 2000)}}}
	for want, records := range map[int][]record.Record{
		0: nil, 1: {large, small}, 2: {small, small, small}, 3: {{}, {}, {}}, 4: {{}, small, small, {}, large},
	} {
		if n := fitting(records, 1000); n != want {
			t.Errorf("%d requests are one call, want %d", n, want)
		}
	}
}
