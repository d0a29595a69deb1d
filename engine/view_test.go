package engine

import (
	"testing"
	"time"
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
