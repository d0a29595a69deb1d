package engine

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

func batchOf(n int, attempt int32) *record.Batch {
	b := &record.Batch{}
	for i := range n {
		b.Records = append(b.Records, record.Record{
			Topic: "orders", Partition: 3, Offset: int64(100 + i), Attempt: attempt, Timestamp: 1700000000000,
			Key: []byte{byte('a' + i)}, Value: []byte{0xff, byte(i)}, Headers: []record.Header{{Key: "trace", Value: []byte("t")}},
		})
	}
	return b
}

func outputs(of ...int32) []record.Output {
	var outs []record.Output
	for _, i := range of {
		outs = append(outs, record.Output{Record: i, Topic: "out"})
	}
	return outs
}

func failure(i int32) record.Failure {
	return record.Failure{
		Record: i, Kind: record.FailureCode, Type: "KeyError", Message: "'id'",
		Traceback: "    a.yaml:3, in f\n", Operation: `operation "enrich"`,
	}
}

// order is the outputs' records and topics in short form.
func order(outs []record.Output) string {
	var b strings.Builder
	for _, o := range outs {
		b.WriteByte(byte('0' + o.Record))
		if o.Topic != "out" {
			b.WriteString("!")
		}
	}
	return b.String()
}

// A dead letter must be the original record, byte for byte, in the failed record's place, with every fact in headers.
func TestDeadLetterKeepsTheRecordAndItsPlace(t *testing.T) {
	b := batchOf(4, 1)
	res := &record.Result{Outputs: outputs(0, 0, 2, 3), Failures: []record.Failure{failure(1)}, Done: 4}
	v := judge(plan.Policy{Attempts: 1, Action: plan.DeadLetter, DeadLetterTopic: "dlq"}, "KasprAgent/x", b, res, time.Time{})
	if got := order(v.outputs); got != "001!23" {
		t.Fatalf("outputs in order %s", got)
	}
	if v.consumed != 4 || v.dead != 1 || v.stop != nil {
		t.Fatalf("verdict %+v", v)
	}
	d := v.outputs[2]
	if d.Topic != "dlq" || string(d.Key) != "b" || string(d.Value) != "\xff\x01" {
		t.Fatalf("dead letter %+v", d)
	}
	got := map[string]string{}
	for _, h := range d.Headers {
		got[h.Key] = string(h.Value)
	}
	want := map[string]string{
		"trace": "t", "kaspr-error-kind": "code", "kaspr-error-type": "KeyError", "kaspr-error-message": "'id'",
		"kaspr-error-traceback": "    a.yaml:3, in f\n", "kaspr-component": "KasprAgent/x",
		"kaspr-operation": `operation "enrich"`, "kaspr-topic": "orders", "kaspr-partition": "3", "kaspr-offset": "101",
		"kaspr-timestamp": "1700000000000", "kaspr-attempt": "1",
	}
	for k, w := range want {
		if got[k] != w {
			t.Errorf("header %s is %q, want %q", k, got[k], w)
		}
	}
}

// Skip drops the failed record only; it is counted.
func TestSkipDropsOnlyTheFailedRecord(t *testing.T) {
	v := judge(plan.Policy{Attempts: 1, Action: plan.Skip}, "", batchOf(3, 1),
		&record.Result{Outputs: outputs(0, 2), Failures: []record.Failure{failure(1)}, Done: 3}, time.Time{})
	if order(v.outputs) != "02" || v.skipped != 1 || v.consumed != 3 || len(v.failed) != 1 {
		t.Fatalf("verdict %+v", v)
	}
}

// Stop must leave the failed record and all behind it unread, and still deliver what came before.
func TestStopKeepsTheFailedRecordUnread(t *testing.T) {
	b := batchOf(4, 1)
	b.StopOnFailure = true
	v := judge(plan.Policy{Attempts: 1, Action: plan.Stop}, "KasprAgent/x", b,
		&record.Result{Outputs: outputs(0, 1), Failures: []record.Failure{failure(2)}, Done: 3}, time.Time{})
	var stopped *StoppedError
	if !errors.As(v.stop, &stopped) || stopped.Record.Offset != 102 || v.consumed != 2 || order(v.outputs) != "01" {
		t.Fatalf("verdict %+v", v)
	}
}

// A retried record must be tried again before the ones behind it, after a growing pause, and in the end dead-lettered.
func TestRetryThenDeadLetter(t *testing.T) {
	p := plan.Policy{
		Attempts: 3, InitialBackoff: time.Second, MaxBackoff: 10 * time.Second, Multiplier: 2,
		Action: plan.DeadLetter, DeadLetterTopic: "dlq",
	}
	for attempt := int32(1); attempt <= 3; attempt++ {
		b := batchOf(3, attempt)
		b.StopOnFailure = true
		v := judge(p, "", b, &record.Result{Outputs: outputs(0), Failures: []record.Failure{failure(1)}, Done: 2}, time.Time{})
		switch {
		case attempt < 3 && (v.consumed != 1 || v.retry != int(attempt) || order(v.outputs) != "0"):
			t.Fatalf("attempt %d: verdict %+v", attempt, v)
		case attempt < 3 && v.pause != time.Second<<(attempt-1):
			t.Fatalf("attempt %d: pause %v", attempt, v.pause)
		case attempt == 3 && (v.consumed != 2 || v.retry != 0 || order(v.outputs) != "01!"):
			t.Fatalf("attempt %d: verdict %+v", attempt, v)
		}
	}
}

// A take batch stops at the record that needs a retry: lists before it are sent, nothing behind it overtakes it.
func TestTakeRetriesBeforeWhatFollows(t *testing.T) {
	b := batchOf(4, 1)
	b.Take, b.StopOnFailure = true, true
	p := plan.Policy{Attempts: 2, Action: plan.Skip}
	v := judge(p, "", b, &record.Result{Outputs: outputs(0), Failures: []record.Failure{failure(1)}, Done: 2}, time.Time{})
	if v.consumed != 1 || v.retry != 1 || len(v.retried) != 1 || order(v.outputs) != "0" || v.skipped != 0 {
		t.Fatalf("verdict %+v", v)
	}
}

// With later a failed record must not hold up those behind it: it goes to the scheduler with what it is, where it came from and how often it was
// tried, comes back after a growing pause, and ends as the policy says, as the record it was.
func TestRetryLater(t *testing.T) {
	p := plan.Policy{
		Attempts: 3, InitialBackoff: time.Second, MaxBackoff: 10 * time.Second, Multiplier: 2, Action: plan.DeadLetter, DeadLetterTopic: "dlq",
		RetryTopic: "retry", RequestTopic: "requests",
	}
	now := time.UnixMilli(1772352000750)
	b := batchOf(3, 1)
	b.Records[1].Headers = append(b.Records[1].Headers, record.Header{Key: "x-scheduler-request-id", Value: []byte("another's")},
		record.Header{Key: "kaspr-attempt", Value: []byte("2")}) // from whoever wrote the record: it says nothing of its attempts here
	headers := func(o *record.Output) map[string]string {
		m := map[string]string{}
		for _, h := range o.Headers {
			m[h.Key] = string(h.Value)
		}
		return m
	}
	for attempt := 1; attempt <= 3; attempt++ {
		v := judge(p, "KasprAgent/x", b, &record.Result{Outputs: outputs(0, 2), Failures: []record.Failure{failure(1)}, Done: 3}, now)
		if v.consumed != 3 || v.retry != 0 || v.pause != 0 || order(v.outputs) != "01!2" {
			t.Fatalf("attempt %d: verdict %+v", attempt, v)
		}
		o := v.outputs[1]
		got := headers(&o)
		want := map[string]string{
			"trace": "t", "kaspr-attempt": strconv.Itoa(attempt), "kaspr-topic": "orders", "kaspr-partition": "3", "kaspr-offset": "101", "kaspr-timestamp": "1700000000000",
		}
		topic := "dlq"
		if attempt < 3 {
			topic = "requests"
			want["x-scheduler-action"], want["x-scheduler-deliver-to"] = "ADD", "retry"
			want["x-scheduler-deliver-at"] = []string{"", "2026-03-01T08:00:01.750Z", "2026-03-01T08:00:02.750Z"}[attempt]
			if len(got) != len(want) || len(v.retried) != 1 || len(v.failed) != 0 {
				t.Errorf("attempt %d: headers %v, %d retried, %d failed", attempt, got, len(v.retried), len(v.failed))
			}
		}
		if o.Topic != topic || string(o.Key) != "b" || string(o.Value) != "\xff\x01" {
			t.Errorf("attempt %d: %+v", attempt, o)
		}
		for k, w := range want {
			if got[k] != w {
				t.Errorf("attempt %d: header %s is %q, want %q", attempt, k, got[k], w)
			}
		}
		// As the scheduler brings it back.
		b = batchOf(3, 1)
		b.Records[1].Topic, b.Records[1].Partition, b.Records[1].Offset, b.Records[1].Timestamp = "retry", 0, 7, 0
		b.Records[1].Headers = slices.DeleteFunc(slices.Clone(o.Headers), func(h record.Header) bool { return strings.HasPrefix(h.Key, "x-scheduler-") })
	}
	large := batchOf(1, 1)
	large.Records[0].Value = make([]byte, laterBytesMax)
	v := judge(p, "", large, &record.Result{Failures: []record.Failure{failure(0)}, Done: 1}, now)
	if len(v.outputs) != 1 || v.outputs[0].Topic != "dlq" {
		t.Errorf("a record the scheduler would refuse: %+v", v.outputs)
	}
	p.Action = plan.Stop
	b = batchOf(3, 1)
	b.StopOnFailure = true
	v = judge(p, "", b, &record.Result{Outputs: outputs(0), Failures: []record.Failure{failure(1)}, Done: 2}, now)
	if v.consumed != 2 || v.stop != nil || order(v.outputs) != "01!" {
		t.Errorf("before a stop: %+v", v)
	}
}
