package engine

import (
	"errors"
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
	v := judge(plan.Policy{Attempts: 1, Action: plan.DeadLetter, DeadLetterTopic: "dlq"}, "KasprAgent/x", b, res)
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
		&record.Result{Outputs: outputs(0, 2), Failures: []record.Failure{failure(1)}, Done: 3})
	if order(v.outputs) != "02" || v.skipped != 1 || v.consumed != 3 || len(v.failed) != 1 {
		t.Fatalf("verdict %+v", v)
	}
}

// Stop must leave the failed record and all behind it unread, and still deliver what came before.
func TestStopKeepsTheFailedRecordUnread(t *testing.T) {
	b := batchOf(4, 1)
	b.StopOnFailure = true
	v := judge(plan.Policy{Attempts: 1, Action: plan.Stop}, "KasprAgent/x", b,
		&record.Result{Outputs: outputs(0, 1), Failures: []record.Failure{failure(2)}, Done: 3})
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
		v := judge(p, "", b, &record.Result{Outputs: outputs(0), Failures: []record.Failure{failure(1)}, Done: 2})
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
	v := judge(p, "", b, &record.Result{Outputs: outputs(0), Failures: []record.Failure{failure(1)}, Done: 2})
	if v.consumed != 1 || v.retry != 1 || len(v.retried) != 1 || order(v.outputs) != "0" || v.skipped != 0 {
		t.Fatalf("verdict %+v", v)
	}
}
