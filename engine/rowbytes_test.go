package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost/abi"
)

// appender appends what comes to one row. Like the guest it remembers the row, and believes that until it is told not to.
type appender struct {
	table *state.Staged
	row   []byte // as it was after the last record
}

func (a *appender) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	if b.CacheValid&1 == 0 {
		a.row, _ = a.table.Get([]byte("row"))
	}
	res := record.Result{Done: len(b.Records)}
	for i := range b.Records {
		a.row = append(slices.Clone(a.row), b.Records[i].Value...)
		res.Changes = append(res.Changes, record.Change{Record: int32(i), Partition: record.RecordPartition, Key: []byte("row"), Value: a.row})
		res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: "lengths", Key: fmt.Append(nil, len(a.row))})
	}
	return res, nil
}

// A record that writes more than a changelog takes must fail alone: the records behind it, in its batch too, must not see what it wrote.
func TestRowTooLargeForItsChangelog(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		store, err := mem.New().Open("t", 0)
		if err != nil {
			t.Fatal(err)
		}
		code := &appender{table: state.NewStaged(store)}
		b := testLane(t, code, plan.Agent{OnError: plan.Policy{Attempts: 1, Action: plan.DeadLetter, DeadLetterTopic: "dlq"}}, limits{records: 4, bytes: 1 << 20}, exactlyOnce)
		b.app.plan.Tables = []plan.Table{{Name: "t", Label: "t", Changelog: plan.Topic{Name: "t-log"}, Guest: abi.Table{Changelog: "t-log"}}}
		b.app.batchBytes = map[string]int{"t-log": 2 << 10}
		b.agent.letters.ensured = true
		f := b.open(in0)
		s := &share{label: "t", staged: code.table, seen: map[*agent]uint64{}}
		b.shares[shareOf{}], f.shares = s, []*share{s}
		rs := records(0, 0, 12)
		for i := range rs {
			rs[i].Value = []byte("x")
		}
		for _, i := range []int{2, 3, 9} {
			rs[i].Value = []byte(strings.Repeat("y", 1025))
		}
		b.feed(f, rs)
		stop := b.start()
		time.Sleep(time.Second)
		if err := stop(); err != nil || b.failed != nil {
			t.Fatal(err, b.failed)
		}
		if err := b.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if row, _ := store.Get([]byte("row")); string(row) != "xxxxxxxxx" {
			t.Errorf("the row has %d bytes, want 9: %.20q", len(row), row)
		}
		if got, want := b.kafka.keys("lengths"), offsets(1, 10); !slices.Equal(got, want) {
			t.Errorf("lengths of the row %v, want %v", got, want)
		}
		if n := len(b.kafka.keys("dlq")); n != 3 {
			t.Errorf("%d records to the dead letters, want 3", n)
		}
		if at := b.kafka.stored(in0); at != 12 {
			t.Errorf("position %d", at)
		}
	})
}
