package engine

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/wasmhost/abi"
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

// A request that needs a table which is being restored is to come again, and is told how far that is, whatever the view says of errors.
func TestViewNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, nil, plan.Agent{}, limits{}, true)
		x := newTablesFixture(t)
		b.app.tables, b.app.plan.Tables = x.tables, x.tables.plan
		v := newView(b.app, &plan.View{Name: "get", Tables: []plan.TableUse{{Table: users}}})
		b.app.seen.running.Store(true)
		x.append("users-log", 2, "a=1", "b=2", "c=3")
		x.logs.change(func() { x.logs.silent = true })
		x.Acquire(2, []int{users}, nil)
		x.notReady(2, users)
		r := v.failed(&apphttp.Request{}, &record.Failure{Kind: record.FailureCode, Type: abi.NotReady, Message: "partition 2"}, apphttp.Response{Status: 418})
		if want := `{"error":"partition 2","progress":[{"table":"users","partition":2,"phase":"restoring","left":3,`; r.Status != 503 || !strings.HasPrefix(string(r.Body), want) {
			t.Errorf("%d %s, want 503 %s", r.Status, r.Body, want)
		}
		if len(r.Headers) != 1 || r.Headers[0].Name != "Retry-After" {
			t.Errorf("headers %v", r.Headers)
		}
		if v.stats.NotReady.Load() != 1 || v.stats.FailedBy[record.FailureCode].Load() != 0 {
			t.Error("it is counted as a failure of the code")
		}
	})
}
