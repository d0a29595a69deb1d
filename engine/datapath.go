package engine

import (
	"context"
	"sync/atomic"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/record"
)

// caller runs an agent's pipeline over a batch: wasmhost.Component. Every record of the batch comes back in the Result,
// as outputs or as a Failure (up to Result.Done with StopOnFailure). err means the component is of no further use.
type caller interface {
	Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error)
}

// sink is where outputs go: broker.Member.
type sink interface {
	Send(ctx context.Context, outs []record.Output, done func([]broker.SendFailure))
}

// step moves one batch of one partition through one agent: records -> one call -> policy -> outputs -> ledger.
//
// Nothing waits for the broker here. The ledger's span is finished when the broker has acknowledged every output, and
// only offsets below finished spans are committed: a crash at any point repeats records, it never loses one.
func (l *lane) step(ctx context.Context, f *feed, w work) error {
	batch := &w.batch

	// 1. One crossing into the sandbox for the whole batch.
	result, err := l.agent.code.Call(ctx, l.slot, batch)
	if err != nil {
		return err
	}
	if l.dropped(f) {
		return nil // another member owns the partition by now and reads these records again
	}

	// 2. Failed records: to the dead-letter topic, skipped, back to the feed for another attempt, or the end of the app.
	v := judge(l.agent.plan.OnError, l.agent.component, batch, &result)
	l.agent.note(batch, &result, &v)
	if v.dead > 0 {
		if err := l.agent.ensureDeadLetterTopic(ctx); err != nil {
			return err
		}
	}

	// 3. The span of this step. It stays open while outputs are unacknowledged or records of it wait for a retry.
	finish := w.release
	if n := v.consumed; n > 0 && finish == nil {
		finish = l.ledger.begin(f.partition, l.agent.plan.Name, batch.Records[0].Offset, batch.Records[n-1].Offset+1)
	}
	finish = after(1+len(v.held), finish)

	// 4. What is not finished goes back to the head of the feed.
	l.settle(f, batch, &v, finish)

	// 5. Outputs, dead letters among them, in record order. The producer keeps the order of every partition.
	l.sink.Send(l.agent.sending, v.outputs, func(refused []broker.SendFailure) {
		if len(refused) == 0 {
			finish(true)
			return
		}
		// It sends again, which a producer's callback must not wait for.
		go func() { l.agent.undelivered(batch, &v, refused, finish) }()
	})
	return v.stop
}

// after returns a function that calls f at its n-th call, with false if any call had false.
func after(n int, f func(bool)) func(bool) {
	if f == nil {
		return func(bool) {}
	}
	if n == 1 {
		return f
	}
	var left, bad atomic.Int32
	left.Store(int32(n))
	return func(ok bool) {
		if !ok {
			bad.Store(1)
		}
		if left.Add(-1) == 0 {
			f(bad.Load() == 0)
		}
	}
}

func (l *lane) dropped(f *feed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.dropped
}
