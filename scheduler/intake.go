package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Intake makes actions of one partition part of its table, in their order. Every one of them has an outcome.
func (s *Settings) Intake(r Reader, actions []record.Record, now time.Time) (Step, error) {
	return s.takeIn(r, actions, now, func(*Request) bool { return false }, true)
}

// Receive is Distribute and Intake in one, for a partition of the requests and the partition of the table with its number: what
// belongs there is made part of the table at once, and only the rest goes its way as actions. A request without an id belongs where it
// is. What is wrong with a request is rejected, every time it comes.
func (s *Settings) Receive(r Reader, here int32, requests []record.Record, now time.Time) (Step, error) {
	return s.takeIn(r, requests, now, func(q *Request) bool { return q.ID != "" && record.PartitionOf([]byte(q.ID), s.Partitions) != here }, false)
}

// takeIn makes records, actions or requests, part of the table, but for those that belong elsewhere.
func (s *Settings) takeIn(r Reader, records []record.Record, now time.Time, elsewhere func(*Request) bool, actions bool) (Step, error) {
	requests := make([]Request, len(records))
	problems := make([][]Problem, len(records))
	var ids, crons []string
	for i := range records {
		q := &requests[i]
		*q, problems[i] = parse(&records[i], actions)
		if len(problems[i]) == 0 {
			problems[i] = s.check(q)
		}
		switch {
		case len(problems[i]) > 0 || q.ID == "" || elsewhere(q):
		case q.Verb.cron():
			crons = append(crons, q.ID)
		default:
			ids = append(ids, q.ID)
		}
	}
	w, err := s.begin(r, now, ids, crons)
	if err != nil {
		return Step{}, err
	}
	w.Outcomes, w.Changes = make([]Outcome, 0, len(records)), make([]record.Change, 0, 2*len(records)+2)
	seen := sources{}
	if s.AtLeastOnce {
		if seen, err = readSources(r, requests); err != nil {
			return Step{}, err
		}
	}
	for i := range requests {
		q := &requests[i]
		w.at = int32(i)
		wrong := len(problems[i]) > 0
		switch {
		case wrong && !actions:
			s.reject(w.Step, w.at, &records[i], q, problems[i], now)
		case elsewhere(q):
			out := q.action(s.Actions, s.Partitions)
			out.Record = w.at
			w.Outputs = append(w.Outputs, out)
		case s.AtLeastOnce && seen.repeated(q.Source):
			w.answer(q, Unchanged, Repeated)
		case wrong:
			s.reject(w.Step, w.at, &records[i], q, problems[i], now)
		default:
			if why := w.take(q); why != nil {
				s.reject(w.Step, w.at, &records[i], q, []Problem{*why}, now)
			}
		}
	}
	for _, partition := range slices.Sorted(maps.Keys(seen)) {
		w.put(w.at, sourceKey(partition), encodeSource(seen[partition]))
	}
	return w.finish(), nil
}

func (w *work) answer(q *Request, v Verdict, c Code) {
	w.note(Outcome{
		Verdict: v, Code: c, Verb: q.Verb, ID: q.ID, Topic: q.Topic, Due: q.Due, Source: q.Source,
		PastDue: (v == Accepted || v == Replaced) && !q.Verb.cron() && q.Due <= w.ms,
	})
}

// take does what a request asks for, or says why not.
func (w *work) take(q *Request) *Problem {
	switch q.Verb {
	case Add, Replace:
		return w.add(q)
	case Cancel:
		w.cancel(q)
	case CronAdd:
		return w.cronAdd(q)
	case CronPause:
		w.cronPause(q)
	case CronResume:
		return w.cronResume(q)
	case CronCancel:
		w.cronCancel(q)
	}
	return nil
}

// add schedules a message; with an id, in the place of the one that has it.
func (w *work) add(q *Request) *Problem {
	m := Message{Due: q.Due, Expires: q.Expires, ID: q.ID, Source: q.Source, Topic: q.Topic, Key: q.Key, Value: q.Value, Headers: q.Headers}
	var old *idRow
	if q.ID != "" {
		old, m.Print = w.ids[q.ID], fingerprint(q)
	}
	verdict := Accepted
	if old != nil {
		same := old.Print == m.Print
		switch {
		case same && (old.State == pending || old.State == sent):
			w.answer(q, Unchanged, Same)
			return nil
		case old.State == cancelled && superseded(old.Source, q.Source, same):
			w.answer(q, Unchanged, Superseded)
			return nil
		case old.State == pending && q.Verb == Add && !w.s.Replace:
			return &Problem{DuplicateID, fmt.Sprintf("request id %q has another message that is not delivered yet (REPLACE or CANCEL it)", q.ID)}
		case old.State == pending:
			verdict = Replaced
		}
	}
	switch {
	case w.s.RejectPast && q.Due < w.ms:
		return &Problem{PastDue, fmt.Sprintf("it was due at %s", stamp(q.Due))}
	case w.s.Horizon > 0 && q.Due-w.ms > w.s.Horizon.Milliseconds():
		return &Problem{TooFar, fmt.Sprintf("it is due at %s, more than %s ahead", stamp(q.Due), w.s.Horizon)}
	}
	if verdict == Replaced {
		w.remove(old.At)
	}
	w.insert(&m, m.Due)
	if q.ID != "" {
		w.setID(q.ID, &idRow{State: pending, At: m.At, Print: m.Print, Since: w.ms, Source: q.Source})
	}
	w.answer(q, verdict, "")
	return nil
}

// superseded tells whether a request was made before the CANCEL that came before it: by their timestamps, if they came by
// different partitions of the requests. Within one the order is that of the offsets, and an older timestamp only shows that a
// client sent the cancelled message a second time.
func superseded(cancel, request Source, same bool) bool {
	return request.Time < cancel.Time && (same || request.Partition != cancel.Partition)
}

// cancel takes a message back. That it happened is remembered, for a request that was made before and comes later.
func (w *work) cancel(q *Request) {
	row := idRow{State: cancelled, Since: w.ms, Source: q.Source}
	verdict, code := Unchanged, NotFound
	if old := w.ids[q.ID]; old != nil {
		row.At, row.Print = old.At, old.Print
		switch old.State {
		case sent:
			w.answer(q, Unchanged, AlreadySent)
			return
		case pending:
			w.remove(old.At)
			verdict, code = Cancelled, ""
		}
	}
	w.setID(q.ID, &row)
	w.answer(q, verdict, code)
}

// sources is how far the requests of each partition were taken in: the last offset, and the latest timestamp.
type sources map[int32]Source

func readSources(r Reader, requests []Request) (sources, error) {
	seen := sources{}
	var partitions []int32
	var keys [][]byte
	for i := range requests {
		if p := requests[i].Source.Partition; !slices.Contains(partitions, p) {
			partitions, keys = append(partitions, p), append(keys, sourceKey(p))
		}
	}
	rows, err := r.MultiGet(keys)
	if err != nil {
		return nil, err
	}
	for i, b := range rows {
		if b == nil {
			continue
		}
		if seen[partitions[i]], err = decodeSource(b); err != nil {
			return nil, err
		}
	}
	return seen, nil
}

// repeated tells whether a request was taken in before, and notes it. A lower offset with a later timestamp than any before is
// of a topic that was made anew.
func (seen sources) repeated(q Source) bool {
	last, ok := seen[q.Partition]
	if ok && q.Offset <= last.Offset && q.Time <= last.Time {
		return true
	}
	if ok {
		q.Time = max(q.Time, last.Time)
	}
	seen[q.Partition] = q
	return false
}
