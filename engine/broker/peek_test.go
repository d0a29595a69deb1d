package broker

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/record"
)

// People who look at a topic must see what counts, once, and not wait for what will not come: aborted records and ends of transactions
// are passed over at once, and are not asked for again.
func TestPeek(t *testing.T) {
	c := newCluster(t, 2)
	cl := c.client(kgo.TransactionalID("peek"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	send := func(end kgo.TransactionEndTry, partition int32, values ...string) {
		t.Helper()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			r := &kgo.Record{Topic: "log", Partition: partition, Value: []byte(v), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte(v)}}}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := cl.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	send(kgo.TryCommit, 0, "a", "b")
	send(kgo.TryAbort, 0, "no")
	send(kgo.TryCommit, 1, "c")
	send(kgo.TryAbort, 1, "neither")
	ends, err := c.admin().EndOffsets(t.Context(), "log")
	if err != nil {
		t.Fatal(err)
	}
	look := func(limit int, from map[int32]int64) (values []string, next map[record.Partition]int64) {
		t.Helper()
		spans := map[record.Partition]Span{}
		for n, end := range ends["log"] {
			spans[record.Partition{Topic: "log", Number: n}] = Span{from[n], end}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		recs, next, err := Peek(ctx, c.tail().opts, spans, limit)
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(began) > 30*time.Second {
			t.Error("it waited for what will not come")
		}
		for _, r := range recs {
			if len(r.Headers) != 1 || string(r.Headers[0].Value) != string(r.Value) {
				t.Errorf("headers %v of %s", r.Headers, r.Value)
			}
			values = append(values, fmt.Sprintf("%d:%s", r.Partition, r.Value))
		}
		slices.Sort(values)
		return values, next
	}
	values, next := look(100, nil)
	if got := fmt.Sprint(values); got != "[0:a 0:b 1:c]" {
		t.Errorf("records %s", got)
	}
	for p, at := range next {
		if at != ends["log"][p.Number] {
			t.Errorf("%v: goes on at %d of %d", p, at, ends["log"][p.Number])
		}
	}
	if values, _ := look(1, nil); len(values) != 1 {
		t.Errorf("%v, with a limit of one", values)
	}
	if values, _ := look(100, map[int32]int64{0: 1, 1: 1}); fmt.Sprint(values) != "[0:b]" {
		t.Errorf("from 1 on: %v", values)
	}
}
