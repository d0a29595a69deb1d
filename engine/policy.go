package engine

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/scheduler"
)

// verdict is what becomes of one call's batch under an agent's failure policy. It is pure data; step acts on it.
type verdict struct {
	outputs  []record.Output // to send, in record order, dead letters in the place of their records
	changes  []record.Change // to stage, of the records that are finished
	consumed int             // records of the batch that are finished once outputs are acked
	retry    int             // attempts the record at consumed has had, when it is to be retried; else 0
	pause    time.Duration   // before the retry
	dead     int             // dead letters among outputs
	routed   int             // table writes to other partitions among outputs
	skipped  int
	failed   []record.Failure // final failures (dead-lettered, skipped or stopping), for log and metrics
	retried  []record.Failure // failures that get another attempt
	stop     error            // the policy says stop
	wake     time.Time        // Result.Wake
	kept     func()           // Result.Kept
}

// judge applies the policy to a call's failures. Records that did not fail keep their outputs, whatever befalls others.
func judge(p plan.Policy, component string, b *record.Batch, res *record.Result, now time.Time) verdict {
	v := verdict{consumed: res.Done, changes: res.Changes, wake: res.Wake, kept: res.Kept}
	if len(res.Failures) == 0 {
		v.outputs = res.Outputs
		return v
	}
	failures := res.Failures
	// With StopOnFailure the failed record is the last one done; without it every failure is final.
	if last := &failures[len(failures)-1]; b.StopOnFailure {
		r := &b.Records[last.Record]
		switch {
		case later(&p, r):
		case int(r.Attempt) < p.Attempts && p.RetryTopic == "":
			v.consumed, v.retry, v.pause = int(last.Record), int(r.Attempt), p.Backoff(int(r.Attempt)+1)
			v.retried = failures[len(failures)-1:]
			failures = failures[:len(failures)-1]
		case p.Action == plan.Stop:
			v.consumed = int(last.Record)
		}
	}
	outs := res.Outputs
	for i := range failures {
		fl := &failures[i]
		r := &b.Records[fl.Record]
		for len(outs) > 0 && outs[0].Record < fl.Record {
			v.outputs, outs = append(v.outputs, outs[0]), outs[1:]
		}
		if later(&p, r) {
			v.outputs = append(v.outputs, retryLater(&p, fl.Record, r, now))
			v.retried = append(v.retried, *fl)
			continue
		}
		v.failed = append(v.failed, *fl)
		switch p.Action {
		case plan.DeadLetter:
			v.outputs = append(v.outputs, deadLetter(&p, component, fl.Record, r, fl))
			v.dead++
		case plan.Skip:
			v.skipped++
		case plan.Stop:
			v.stop = &StoppedError{Component: component, Record: *r, Failure: *fl}
		}
	}
	v.outputs = append(v.outputs, outs...)
	if v.stop != nil && b.Take {
		// A list that does not get through is not begun: nothing of it is sent, all of it is read again after the repair.
		v.outputs, v.consumed, v.dead, v.skipped = nil, 0, 0, 0
	}
	for i := range v.changes {
		if int(v.changes[i].Record) >= v.consumed {
			v.changes = v.changes[:i]
			break
		}
	}
	return v
}

// trim shortens the verdict's dead letters, for a broker that finds the whole ones too large.
func (v *verdict) trim() {
	for i := range v.outputs {
		if isDeadLetter(&v.outputs[i]) {
			v.outputs[i] = trimmed(v.outputs[i])
		}
	}
}

// StoppedError ends the app: a record failed and the policy is stop. Its offset is not committed.
type StoppedError struct {
	Component string
	Record    record.Record
	Failure   record.Failure
}

func (e *StoppedError) Error() string {
	return fmt.Sprintf("%s: %s\n  record %s/%d@%d, policy stop: repair the code or the record, then start again",
		e.Component, describe(&e.Failure), e.Record.Topic, e.Record.Partition, e.Record.Offset)
}

// describe is a failure as people read it: what failed, the exception, the user's frames.
func describe(f *record.Failure) string {
	text := f.Type
	if f.Message != "" {
		text += ": " + f.Message
	}
	if f.Operation != "" {
		text = f.Operation + ": " + text
	}
	if f.Traceback != "" {
		text += "\n" + f.Traceback
	}
	return text
}

// Headers of a dead letter; the original headers come first. They are named in docs/failure-policy.md.
const (
	headerErrorKind      = "kaspr-error-kind"
	headerErrorType      = "kaspr-error-type"
	headerErrorMessage   = "kaspr-error-message"
	headerErrorTraceback = "kaspr-error-traceback"
	headerComponent      = "kaspr-component"
	headerOperation      = "kaspr-operation"
	headerTopic          = "kaspr-topic"
	headerPartition      = "kaspr-partition"
	headerOffset         = "kaspr-offset"
	headerTimestamp      = "kaspr-timestamp"
	headerAttempt        = "kaspr-attempt"
)

// origin is where a record came from in the first place, and how often it was tried. One that the scheduler brought back says so in headers.
type origin struct {
	headers                             []record.Header // its own
	topic, partition, offset, timestamp string
	attempt                             int
}

func originOf(p *plan.Policy, r *record.Record) origin {
	o := origin{r.Headers, r.Topic, strconv.Itoa(int(r.Partition)), strconv.FormatInt(r.Offset, 10), strconv.FormatInt(r.Timestamp, 10), int(r.Attempt)}
	if p.RetryTopic == "" || r.Topic != p.RetryTopic {
		return o
	}
	o.headers = make([]record.Header, 0, len(r.Headers))
	for _, h := range r.Headers {
		switch h.Key {
		case headerTopic:
			o.topic = string(h.Value)
		case headerPartition:
			o.partition = string(h.Value)
		case headerOffset:
			o.offset = string(h.Value)
		case headerTimestamp:
			o.timestamp = string(h.Value)
		case headerAttempt:
			if n, err := strconv.Atoi(string(h.Value)); err == nil && n > 0 {
				o.attempt = n + 1
			}
		default:
			o.headers = append(o.headers, h)
		}
	}
	return o
}

// laterBytesMax bounds what the scheduler is asked to keep, below what it refuses: a record that is larger gets no further attempt.
const laterBytesMax = 900 << 10

// later tells whether a failed record is to come back by the scheduler.
func later(p *plan.Policy, r *record.Record) bool {
	if p.RetryTopic == "" || originOf(p, r).attempt >= p.Attempts {
		return false
	}
	size := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		size += len(h.Key) + len(h.Value)
	}
	return size < laterBytesMax
}

// retryLater asks the scheduler to bring a record to the agent's retry topic. The scheduler's own headers would be taken for the request's.
func retryLater(p *plan.Policy, index int32, r *record.Record, now time.Time) record.Output {
	from := originOf(p, r)
	h := make([]record.Header, 0, len(from.headers)+8)
	for _, own := range from.headers {
		switch {
		case strings.HasPrefix(own.Key, "x-scheduler-"):
		case own.Key == headerTopic, own.Key == headerPartition, own.Key == headerOffset, own.Key == headerTimestamp, own.Key == headerAttempt:
		default:
			h = append(h, own)
		}
	}
	add := func(k, v string) { h = append(h, record.Header{Key: k, Value: []byte(v)}) }
	add(headerTopic, from.topic)
	add(headerPartition, from.partition)
	add(headerOffset, from.offset)
	add(headerTimestamp, from.timestamp)
	add(headerAttempt, strconv.Itoa(from.attempt))
	add(scheduler.HeaderAction, string(scheduler.Add))
	add(scheduler.HeaderTo, p.RetryTopic)
	add(scheduler.HeaderAt, now.Add(p.Backoff(from.attempt+1)).UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	return record.Output{Record: index, Topic: p.RequestTopic, Partition: record.PartitionByKey, Key: r.Key, Value: r.Value, Headers: h}
}

// deadLetter is the original record, byte for byte, with headers that say why it is here.
func deadLetter(p *plan.Policy, component string, index int32, r *record.Record, f *record.Failure) record.Output {
	from := originOf(p, r)
	h := make([]record.Header, 0, len(from.headers)+11)
	h = append(h, from.headers...)
	add := func(k, v string) { h = append(h, record.Header{Key: k, Value: []byte(v)}) }
	add(headerErrorKind, f.Kind.String())
	add(headerErrorType, f.Type)
	add(headerErrorMessage, f.Message)
	add(headerErrorTraceback, f.Traceback)
	add(headerComponent, component)
	add(headerOperation, f.Operation)
	add(headerTopic, from.topic)
	add(headerPartition, from.partition)
	add(headerOffset, from.offset)
	add(headerTimestamp, from.timestamp)
	add(headerAttempt, strconv.Itoa(from.attempt))
	return record.Output{Record: index, Topic: p.DeadLetterTopic, Partition: record.PartitionByKey, Key: r.Key, Value: r.Value, Headers: h}
}

// trimmed is a dead letter without its long texts, for a broker that finds the whole one too large.
func trimmed(o record.Output) record.Output {
	h := make([]record.Header, 0, len(o.Headers))
	for _, x := range o.Headers {
		switch x.Key {
		case headerErrorTraceback:
			continue
		case headerErrorMessage:
			x.Value = x.Value[:min(len(x.Value), 200)]
		}
		h = append(h, x)
	}
	o.Headers = h
	return o
}

// knownFailure is what a record whose output was refused fails with when it is processed again.
func (a *agent) knownFailure(batch *record.Batch, v *verdict, r broker.SendFailure) (known, error) {
	out := &v.outputs[r.Index]
	if !a.wrote(out) {
		return known{failure: sendFailure(0, out, r)}, nil
	}
	if _, ok := shorter(out, r); ok {
		for _, f := range v.failed {
			if f.Record == out.Record {
				f.Record = 0
				return known{failure: f, trim: true}, nil
			}
		}
	}
	return known{}, a.stuckLetter(out, &batch.Records[out.Record], r)
}

// refused tells code that acts by itself of an output of a tick that the broker will not take.
func (a *agent) refused(tick *record.Record, out *record.Output, err error) {
	a.code.(timed).Refused(record.Partition{Topic: tick.Topic, Number: tick.Partition}, out, err)
}

// lost says whether a record does without an output that the broker will not take.
func (a *agent) lost(rec *record.Record, out *record.Output, err error) bool {
	code, ok := a.code.(reporting)
	return ok && code.Lost(record.Partition{Topic: rec.Topic, Number: rec.Partition}, out, err)
}

// wrote says whether an output is a dead letter of the agent's policy.
func (a *agent) wrote(o *record.Output) bool {
	return isDeadLetter(o) && o.Topic == a.plan.OnError.DeadLetterTopic
}

// shorter is what to send instead of a dead letter that was refused, if that may help.
func shorter(letter *record.Output, r broker.SendFailure) (record.Output, bool) {
	t := trimmed(*letter)
	return t, r.TooLarge() && len(t.Headers) < len(letter.Headers)
}

// sendFailure is what a record fails with whose output was refused.
func sendFailure(index int32, out *record.Output, r broker.SendFailure) record.Failure {
	return record.Failure{
		Record: index, Kind: record.FailureSend, Type: "SendError",
		Message: fmt.Sprintf("output to topic %q refused: %v", out.Topic, r.Err), Operation: "output",
	}
}

// stuckLetter ends the app: a record would be lost.
func (a *agent) stuckLetter(letter *record.Output, rec *record.Record, r broker.SendFailure) error {
	return fmt.Errorf("%s: the dead letter of record %s/%d@%d cannot be sent to %s: %w",
		a.plan.Label, rec.Topic, rec.Partition, rec.Offset, letter.Topic, r.Err)
}

// undelivered deals with outputs the broker refused for good, from a goroutine of its own, when there is no transaction to take
// back. finish is told whether the records they came from are accounted for; if not, the app is stopping.
func (a *agent) undelivered(ctx context.Context, batch *record.Batch, v *verdict, refused []broker.SendFailure, finish func(error)) {
	letters, err := a.redirect(batch, v, refused)
	if err == nil && len(letters) > 0 {
		err = a.ensureDeadLetterTopic(ctx)
	}
	if err != nil {
		a.app.fail(err)
		finish(err)
		return
	}
	a.app.commits.producer.Send(ctx, letters, func(again []broker.SendFailure) {
		if len(again) == 0 {
			finish(nil)
			return
		}
		go a.undelivered(ctx, batch, &verdict{outputs: letters}, again, finish) // shortened, or it cannot be sent at all
	})
}

// redirect applies the policy to records whose outputs were refused, and returns the dead letters to send for them.
func (a *agent) redirect(batch *record.Batch, v *verdict, refused []broker.SendFailure) ([]record.Output, error) {
	var letters []record.Output
	done := map[int32]bool{}
	for _, r := range refused {
		out := &v.outputs[r.Index]
		rec := &batch.Records[out.Record]
		if r.Abandoned() {
			return nil, fmt.Errorf("%s: outputs of record %s/%d@%d were not sent before the stop: %w",
				a.plan.Label, rec.Topic, rec.Partition, rec.Offset, r.Err)
		}
		if batch.Tick {
			a.refused(rec, out, r.Err)
			continue
		}
		if a.lost(rec, out, r.Err) {
			continue
		}
		if a.wrote(out) {
			t, ok := shorter(out, r)
			if !ok {
				return nil, a.stuckLetter(out, rec, r)
			}
			letters = append(letters, t)
			continue
		}
		if done[out.Record] {
			continue // one dead letter for a record, however many of its outputs were refused
		}
		done[out.Record] = true
		f := sendFailure(out.Record, out, r)
		a.stats.Failed.Add(1)
		a.stats.FailedBy[kindIndex(f.Kind)].Add(1)
		a.stats.FailedAt.add(map[string]int64{placeOf(&f): 1})
		a.logFailure(slog.LevelError, rec, &f, string(a.plan.OnError.Action))
		switch a.plan.OnError.Action {
		case plan.DeadLetter:
			a.stats.DeadLettered.Add(1)
			letters = append(letters, deadLetter(&a.plan.OnError, a.component, out.Record, rec, &f))
		case plan.Skip:
			a.stats.Skipped.Add(1)
		case plan.Stop:
			return nil, &StoppedError{Component: a.component, Record: *rec, Failure: f}
		}
	}
	return letters, nil
}

func isDeadLetter(o *record.Output) bool {
	for i := range o.Headers {
		if o.Headers[i].Key == headerErrorKind {
			return true
		}
	}
	return false
}
