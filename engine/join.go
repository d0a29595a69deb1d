package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"kaspr.io/kaspr/engine/join"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
)

// joinPart runs a part of a join (engine/join): code of an agent that has none of its own but the extractor (caller).
type joinPart struct {
	*plan.JoinPart
	agent     *agent
	extractor caller // of the left part: a wasmhost.Component
}

func (p *joinPart) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	res := record.Result{}
	var err error
	switch table := (joinTable{p.agent, b.Records[0].Partition}); p.Part {
	case plan.JoinLeft:
		res, err = p.left(ctx, slot, b, table)
	case plan.JoinRows:
		return p.Rows(b.Records), nil
	case plan.JoinRight:
		res, err = p.Right(table, b.Records)
	case plan.JoinAnswers:
		res, err = p.Answers(table, b.Records)
	}
	if errors.Is(err, state.ErrCorrupt) || errors.Is(err, state.ErrDisk) || errors.Is(err, state.ErrClosed) {
		return record.Result{}, nil // nothing is done: the step finds the trouble, or its partition is about to leave
	}
	if err != nil {
		err = fmt.Errorf("%s: read its table: %w", p.agent.plan.Label, err)
	}
	return res, err
}

// left gives the rows that are there to the extractor, all at once, and then all of them to the join.
func (p *joinPart) left(ctx context.Context, slot int, b *record.Batch, table join.Table) (record.Result, error) {
	rows := record.Batch{StopOnFailure: b.StopOnFailure, Fresh: b.Fresh}
	var places []int32 // in b
	for i := range b.Records {
		if r := &b.Records[i]; r.Key != nil && r.Value != nil {
			rows.Records, places = append(rows.Records, *r), append(places, int32(i))
		}
	}
	var extracted record.Result
	done := len(b.Records)
	if len(places) > 0 {
		var err error
		if extracted, err = p.extractor.Call(ctx, slot, &rows); err != nil {
			return record.Result{}, err
		}
		if n := extracted.Done; n < len(places) { // up to a failed one, which gets another attempt
			done = int(places[n])
			if n > 0 {
				done = int(places[n-1]) + 1
			}
		}
	}
	keys, known := make([][]byte, done), make([]bool, done)
	var sent []record.Output // by the extractor's own code
	for _, o := range extracted.Outputs {
		o.Record = places[o.Record]
		if o.Topic == p.RightTopic {
			keys[o.Record], known[o.Record] = o.Key, true
		} else {
			sent = append(sent, o)
		}
	}
	res, err := p.Left(table, b.Records[:done], func(i int) ([]byte, bool) { return keys[i], known[i] })
	if err != nil {
		return record.Result{}, err
	}
	for _, f := range extracted.Failures {
		f.Record = places[f.Record]
		res.Failures = append(res.Failures, f)
	}
	slices.SortStableFunc(res.Failures, func(x, y record.Failure) int { return cmp.Compare(x.Record, y.Record) })
	if len(sent) > 0 {
		res.Outputs = append(sent, res.Outputs...)
		slices.SortStableFunc(res.Outputs, func(x, y record.Output) int { return cmp.Compare(x.Record, y.Record) })
	}
	res.Elapsed, res.Repeated = extracted.Elapsed, extracted.Repeated
	return res, nil
}

// joinTable is a partition of an agent's one table (join.Table).
type joinTable struct {
	agent  *agent
	number int32
}

func (t joinTable) Get(key []byte) ([]byte, error) {
	return t.agent.view.TableGet(t.number, 0, t.number, key)
}

func (t joinTable) Scan(prefix, after []byte, each func(key, value []byte) bool) error {
	return t.agent.view.TableScan(t.number, 0, t.number, prefix, after, each)
}
