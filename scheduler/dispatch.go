package scheduler

import (
	"strconv"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Scheduled is a row that is due: a message, or a cron's firing.
type Scheduled struct {
	At      Location
	Message *Message // nil for a firing, unless it was refused before
	Cron    string   // the entry that fires; empty for others
	firing  *firing
}

// Due returns what is due at now, in the order in which it is to leave: at most limit rows from a place on, and about so many
// bytes. The location is where to go on; nothing that is due lies before it. With nothing left that is due, wake is when
// the next one will be; zero: there is none. It reads what it returns, and one row more.
func Due(r Reader, from Location, now time.Time, limit, bytes int) (rows []Scheduled, next Location, wake time.Time, err error) {
	it := r.Scan([]byte{spaceMessage}, from.key(spaceMessage))
	defer func() {
		if e := it.Close(); e != nil && err == nil {
			rows, err = nil, e
		}
	}()
	next = from
	size := 0
	for it.Next() {
		at, err := locationOf(it.Key())
		if err != nil {
			return nil, from, wake, err
		}
		next = at
		size += len(it.Value())
		switch {
		case at.Due > now.UnixMilli():
			return rows, next, time.UnixMilli(at.Due), nil
		case len(rows) == limit, len(rows) > 0 && size > bytes:
			return rows, next, now, nil
		}
		s := Scheduled{At: at}
		if s.Message, s.firing, err = decodeMessage(at, it.Value()); err != nil {
			return nil, from, wake, err
		}
		if s.firing != nil {
			s.Cron = s.firing.Cron
		} else {
			s.Cron = s.Message.Cron
		}
		rows = append(rows, s)
		next = Location{at.Due, at.Seq + 1}
	}
	return rows, next, wake, nil
}

// due is a batch of what is due.
func (s *Settings) due(r Reader, low Location, now time.Time) (rows []Scheduled, next Location, wake time.Time, err error) {
	if !s.Interleave {
		return Due(r, low, now, s.BatchMessages, s.BatchBytes)
	}
	half := (s.BatchMessages + 1) / 2
	rows, next, wake, err = Due(r, low, now, half, s.BatchBytes/2)
	recent := Location{Due: now.UnixMilli() - 1000}
	if err != nil || wake.IsZero() || wake.After(now) || !next.less(recent) {
		return rows, next, wake, err
	}
	others, _, _, err := Due(r, recent, now, half, s.BatchBytes/2)
	return append(rows, others...), next, wake, err
}

// Dispatch delivers what is due, oldest first, at most a batch: the messages' rows go, their ids become known as sent, and
// the outputs are theirs. Wake is now while there is more.
//
// Of refused messages, whose step was undone for it, none is sent; they are planned for later, or given up with a rejection. A
// host passes them until a step with them is kept; what is not due any more does no harm.
func (s *Settings) Dispatch(r Reader, refused []Refusal, now time.Time) (Step, error) {
	raw, err := r.Get(headKey)
	if err != nil {
		return Step{}, err
	}
	h, err := decodeHead(raw)
	if err != nil {
		return Step{}, err
	}
	rows, next, wake, err := s.due(r, h.Low, now)
	if err != nil {
		return Step{}, err
	}
	if len(rows) == 0 {
		return Step{Wake: wake}, nil
	}
	var crons []string
	for _, row := range rows {
		if row.Cron != "" {
			crons = append(crons, row.Cron)
		}
	}
	w, err := s.begin(r, now, nil, crons)
	if err != nil {
		return Step{}, err
	}
	w.at = -1
	w.Messages = make([]*Message, 0, len(rows))
	w.Outputs, w.Outcomes = make([]record.Output, 0, len(rows)), make([]Outcome, 0, len(rows))
	w.Changes = make([]record.Change, 0, 2*len(rows)+2)
	w.head.Low = next // firings that are planned below take it back
	known, closed := map[attempt]Refusal{}, map[string]Refusal{}
	for _, refusal := range refused {
		if refusal.Message != nil {
			known[refusal.Message.attempt()] = refusal
		} else {
			closed[refusal.Topic] = refusal
		}
	}
	for _, row := range rows {
		m := row.Message
		if m != nil {
			w.remove(row.At)
		} else if m = w.fire(row.At, row.firing); m == nil {
			continue
		}
		if m.Cron != "" && row.firing == nil && !w.goesOn(m) {
			w.end(m, cancelled, Cancelled, "")
			continue
		}
		if m.Expires <= w.ms && m.Expires != noExpiry {
			w.refuse(m, TooLate, "it was late: not to be delivered from "+stamp(m.Expires)+" on")
			w.end(m, failed, Expired, TooLate)
			continue
		}
		refusal, ok := known[m.attempt()]
		if !ok {
			refusal, ok = closed[m.Topic]
		}
		if ok {
			w.again(m, refusal)
			continue
		}
		w.Outputs = append(w.Outputs, w.output(m, len(w.Messages)))
		w.Messages = append(w.Messages, m)
		w.end(m, sent, Delivered, "")
	}
	if !wake.IsZero() {
		w.wake(wake)
	}
	return w.finish(), nil
}

// end notes what became of a message, and of its id.
func (w *work) end(m *Message, st status, v Verdict, code Code) {
	o := Outcome{Verdict: v, Code: code, ID: m.ID, Topic: m.Topic, Due: m.Due, Late: w.ms - m.Due, Source: m.Source}
	if m.Cron != "" {
		o.ID, o.Fire, o.Missed = m.Cron, true, o.Late > w.s.CronGrace.Milliseconds()
	}
	if m.ID != "" && !m.Loose {
		w.setID(m.ID, &idRow{State: st, At: m.At, Print: m.Print, Since: w.ms, Source: m.Source})
	}
	w.note(o)
}

// output is a message as it is delivered.
func (w *work) output(m *Message, index int) record.Output {
	out := record.Output{Record: int32(index), Topic: m.Topic, Partition: record.PartitionByKey, Key: m.Key, Value: m.Value, Headers: m.Headers}
	if m.Cron == "" && !w.s.Provenance {
		return out
	}
	out.Headers = append(make([]record.Header, 0, len(m.Headers)+5), m.Headers...)
	add := func(key, value string) {
		out.Headers = append(out.Headers, record.Header{Key: key, Value: []byte(value)})
	}
	if m.Cron != "" {
		add(HeaderFire, strconv.FormatInt(m.Due/1000, 10))
	}
	if w.s.Provenance {
		if id := m.ID + m.Cron; id != "" {
			add(HeaderID, id)
		}
		add(HeaderDue, stamp(m.Due))
		add(HeaderSent, stamp(w.ms))
		add(HeaderSource, m.Source.String())
	}
	return out
}

// refuse writes a rejection of a message, with the headers of its request.
func (w *work) refuse(m *Message, code Code, text string) {
	headers := append([]record.Header(nil), m.Headers...)
	add := func(key, value string) {
		headers = append(headers, record.Header{Key: key, Value: []byte(value)})
	}
	add(HeaderTo, m.Topic)
	add(HeaderAt, stamp(m.Due))
	if id := m.ID + m.Cron; id != "" {
		add(HeaderID, id)
	}
	w.s.rejection(w.Step, w.at, m.Key, m.Value, headers, m.Source, []Problem{{code, text}})
}
