package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/join"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
)

// fakeExtractor gives a row's value as its key. A row "bad" fails, "sends" sends something, too.
type fakeExtractor struct{}

func (fakeExtractor) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	var res record.Result
	for i := range b.Records {
		res.Done++
		switch v := string(b.Records[i].Value); v {
		case "bad":
			res.Failures = append(res.Failures, record.Failure{Record: int32(i), Kind: record.FailureCode})
			if b.StopOnFailure {
				return res, nil
			}
		default:
			if v == "sends" {
				res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: "elsewhere"})
			}
			res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: "requests", Key: b.Records[i].Value})
		}
	}
	return res, nil
}

// fakeView is a table without rows, or one that cannot be read.
type fakeView struct{ err error }

func (v fakeView) TableGet(int32, int, int32, []byte) ([]byte, error) { return nil, v.err }

func (v fakeView) TableScan(int32, int, int32, []byte, []byte, func(key, value []byte) bool) error {
	return v.err
}
func (v fakeView) TableInfo(int) (int32, []int32, int64, error) { return 1, nil, 0, v.err }

func testPart(part string, err error) *joinPart {
	j := &join.Join{RightTopic: "requests", AnswerTopic: "answers", Channel: "channel", Unchanged: true}
	ag := &agent{plan: &plan.Agent{Label: "join"}, view: fakeView{err}, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	return &joinPart{JoinPart: &plan.JoinPart{Join: j, Name: "j", Part: part}, agent: ag, extractor: fakeExtractor{}}
}

// A failure must be that of its own row, among rows that were deleted, and what is behind one that gets another attempt must wait.
func TestJoinLeftFailures(t *testing.T) {
	var b record.Batch
	for i, v := range []string{"", "a", "", "bad", "", "sends", "bad", "", "b", ""} {
		r := record.Record{Key: fmt.Append(nil, i)}
		if v != "" {
			r.Value = []byte(v)
		}
		b.Records = append(b.Records, r)
	}
	b.Records[2].Key = nil // nobody of ours wrote it
	for _, c := range []struct {
		stop              bool
		done              int
		failures, outputs []int32
		topics            []string
	}{
		{false, 10, []int32{2, 3, 6}, []int32{1, 5, 5, 8}, []string{"requests", "elsewhere", "requests", "requests"}},
		{true, 4, []int32{2, 3}, []int32{1}, []string{"requests"}},
	} {
		b.StopOnFailure = c.stop
		res, err := testPart(plan.JoinLeft, nil).Call(t.Context(), 0, &b)
		if err != nil {
			t.Fatal(err)
		}
		var failures, outputs []int32
		var topics []string
		for _, f := range res.Failures {
			failures = append(failures, f.Record)
		}
		for _, o := range res.Outputs {
			outputs, topics = append(outputs, o.Record), append(topics, o.Topic)
		}
		if res.Done != c.done || !slices.Equal(failures, c.failures) || !slices.Equal(outputs, c.outputs) || !slices.Equal(topics, c.topics) {
			t.Errorf("stop %v: done %d, failures %v, outputs %v to %v; want %+v", c.stop, res.Done, failures, outputs, topics, c)
		}
	}
}

// A table that cannot be read is no fault of the records: they must neither fail nor be taken for done.
func TestJoinTableTrouble(t *testing.T) {
	b := record.Batch{Records: []record.Record{{Key: []byte("k"), Value: []byte{1}}}}
	for _, part := range []string{plan.JoinLeft, plan.JoinRight} {
		for _, broken := range []error{state.ErrCorrupt, state.ErrDisk, state.ErrClosed} {
			res, err := testPart(part, fmt.Errorf("read: %w", broken)).Call(t.Context(), 0, &b)
			if err != nil || res.Done != 0 || len(res.Failures)+len(res.Outputs)+len(res.Changes) > 0 {
				t.Errorf("%s, %v: %+v, %v", part, broken, res, err)
			}
		}
		if _, err := testPart(part, errLoading).Call(t.Context(), 0, &b); !errors.Is(err, errLoading) {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// An agent that reads from the start what others have read must get all of it, once and in order, although records of later on were
// fetched already; and the others must not get theirs twice.
func TestFeedsAwaitTheStart(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testLane(t, &fakeCode{}, plan.Agent{}, limits{}, exactlyOnce)
		behind, ahead := l.assign(l.agent, in0), l.assign(l.agent, in1) // two agents of one partition, told apart by their outputs
		for _, f := range []*feed{behind, ahead} {
			l.app.feeds[f.partition] = []laneFeed{{l.lane, f}}
			l.feed(f, records(f.partition.Number, 50, 60)) // fetched from the group's offset
			l.await(f)
		}
		l.position(behind, 0)
		l.position(ahead, 55)
		l.begin(behind, nil)
		l.begin(ahead, nil)
		stop := l.start()
		for _, f := range []*feed{behind, ahead} {
			l.feed(f, records(f.partition.Number, 60, 70)) // and on the way
		}
		time.Sleep(time.Second)
		for _, p := range []record.Partition{in0, in1} {
			if !l.app.awaited(p) || l.app.awaited(p) {
				t.Errorf("%v is not awaited once", p)
			}
		}
		for _, f := range []*feed{behind, ahead} {
			l.feed(f, records(f.partition.Number, 0, 70))
		}
		time.Sleep(time.Second)
		if got := l.kafka.keys("out-0"); !slices.Equal(got, offsets(0, 70)) {
			t.Errorf("from the start: %v", got)
		}
		if got := l.kafka.keys("out-1"); !slices.Equal(got, offsets(55, 70)) {
			t.Errorf("from where it was: %v", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
