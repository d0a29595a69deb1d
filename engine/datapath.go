package engine

import (
	"context"
	"errors"
	"time"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// caller runs an agent's pipeline over a batch: wasmhost.Component. Every record of the batch comes back in the Result,
// as outputs or as a Failure, up to Result.Done. err means the component is of no further use.
type caller interface {
	Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error)
}

// timed is a caller that also acts by itself: it is called with a tick (record.Batch) once its feed begins or was rewound, and from
// then on when its last answer said (record.Result.Wake). What a tick makes is part of the epoch like anything else; since no
// record stands for it, the caller itself keeps in a table what it has done.
type timed interface {
	caller
	// Refused tells that the broker will not take an output of a tick of the partition. With exactly_once the tick comes again and must not
	// make that output; otherwise what else the tick made has counted. It may come from any goroutine.
	Refused(p record.Partition, out *record.Output, err error)
}

// reporting is a caller some of whose outputs only tell of what it did. If the broker will not take one of them, that one is lost, and not
// the record it came from.
type reporting interface {
	caller
	// Lost tells that an output of a record of the partition was refused, and says whether it is lost; otherwise the record fails. With
	// exactly_once the record comes again and must not make that output. It may come from any goroutine.
	Lost(p record.Partition, out *record.Output, err error) bool
}

// step moves one batch of one partition through one agent: records -> one call -> policy -> the running epoch.
//
// Nothing waits for the broker here. The committer makes durable what steps have applied, all of it at once: outputs,
// table changes and the position in the input (commit.go). A crash at any point repeats what was not committed.
func (l *lane) step(ctx context.Context, f *feed, w *work) error {
	a, batch := f.agent, &w.batch

	var began time.Time
	if a.app.tracer != nil {
		began = time.Now()
	}

	// 1. One crossing into the sandbox for the whole batch. Records whose schema the registry does not give go back to the feed.
	result, err := l.call(ctx, f, w)
	if s, trouble := l.trouble(f, w); trouble != nil {
		l.commits.unpin(w)
		l.commits.giveUp(ctx, l, s, trouble) // what the code saw is not what is there: no fault of its records
		return nil
	}
	if err != nil {
		l.commits.unpin(w)
		if errors.Is(err, errNoSchema) {
			l.awaitSchema(f, w)
			return nil
		}
		return err
	}

	if f.checkChanges(w.shares, &result) {
		defer l.distrust(w.shares)
		if len(batch.Records) > 1 {
			l.oneByOne(ctx, f, w)
			return nil
		}
	}
	a.app.wrap(a.plan.Channels, result.Outputs)
	if a.app.cfg.Tracing != config.TracingOff && !batch.Tick {
		if a.app.tracer != nil && w.known == nil {
			a.app.tracer.records(a, batch, &result, began)
		} else {
			passTrace(batch.Records, result.Outputs)
		}
	}

	// 2. Failed records: to the dead-letter topic, skipped, back to the feed for another attempt, or the end of the app.
	v := judge(w.policy(a.plan.OnError), a.component, batch, &result, time.Now())
	if batch.Tick {
		v.consumed = 0 // its record is in no feed
	}
	if w.known != nil && w.known.trim {
		v.trim()
	}
	f.route(&v, w)
	if v.dead > 0 {
		if err := a.ensureDeadLetterTopic(ctx); err != nil {
			l.commits.unpin(w)
			return err
		}
	}
	if w.pinned != nil && (len(result.Failures) > 0 || result.Repeated) && !batch.Tick {
		// A failed record may have sent something already, and one that was run again something twice, which only the end of the
		// transaction takes back. What a tick sent stays sent: the next one would fail in the same way.
		l.commits.takeBack(ctx, l, f, w, &v, result.Repeated)
		return nil
	}

	// 3. What is finished leaves the feed and becomes part of the running epoch; the rest goes back to the feed's head.
	if l.commits.apply(l, f, w, &v) {
		a.note(batch, &v)
		if err := l.expire(f, w.shares, batch); err != nil {
			a.log.Warn("look for entries that expire", "err", err) // the store's next read or commit fails, too
		}
		return v.stop
	}
	return nil // rolled back, or another member owns the partition by now: the records are read again
}

// call runs the agent's code; for a record that has failed already there is nothing to run.
func (l *lane) call(ctx context.Context, f *feed, w *work) (record.Result, error) {
	if w.known != nil {
		return record.Result{Failures: []record.Failure{w.known.failure}, Done: 1}, nil
	}
	batch, err := l.decoding.decoded(ctx, f.agent, &w.batch)
	if err != nil {
		return record.Result{}, err
	}
	defer l.decoding.release()
	result, err := f.agent.code.Call(context.WithValue(ctx, workKey{}, w), l.slot, batch)
	f.agent.stats.Took.observe(result.Elapsed)
	f.agent.stats.Batch.observe(len(batch.Records))
	return result, err
}

// trouble is a share whose store failed while it was read.
func (l *lane) trouble(f *feed, w *work) (*share, error) {
	if len(w.shares) == 0 {
		return nil, nil
	}
	table, err := f.agent.app.tables.Trouble(f.partition.Number, f.agent.tables)
	if err == nil {
		return nil, nil
	}
	for _, s := range w.shares {
		if s.table == table {
			return s, err
		}
	}
	panic("BUG: trouble with a table the agent does not use")
}

// workKey is the context key under which code that runs finds its step's work.
type workKey struct{}

// policy is the failure policy for this step: a failure that would only be repeated gets no second attempt, nor does a tick.
func (w *work) policy(p plan.Policy) plan.Policy {
	if w.known != nil && !w.known.later || w.batch.Tick {
		p.Attempts = 1
	}
	return p
}
