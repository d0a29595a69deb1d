package scheduler

import (
	"strconv"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Scheduled is a row that is due: a message, or a cron's firing.
type Scheduled struct {
	At      Location
	Message *Message // nil for a firing
	Cron    string   // the entry that fires
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
		}
		rows = append(rows, s)
		next = Location{at.Due, at.Seq + 1}
	}
	return rows, next, wake, nil
}

// Dispatch delivers what is due, oldest first, at most a batch: the messages' rows go, their ids become known as sent, and
// the outputs are theirs. Wake is now while there is more.
func (s *Settings) Dispatch(r Reader, now time.Time) (Step, error) {
	raw, err := r.Get(headKey)
	if err != nil {
		return Step{}, err
	}
	h, err := decodeHead(raw)
	if err != nil {
		return Step{}, err
	}
	rows, next, wake, err := Due(r, h.Low, now, s.BatchMessages, s.BatchBytes)
	if err != nil {
		return Step{}, err
	}
	if len(rows) == 0 {
		return Step{Wake: wake}, nil
	}
	var crons []string
	for _, row := range rows {
		if row.firing != nil {
			crons = append(crons, row.Cron)
		}
	}
	w, err := s.begin(r, now, nil, crons)
	if err != nil {
		return Step{}, err
	}
	w.at = -1
	w.head.Low = next // firings that are planned below take it back
	for _, row := range rows {
		m := row.Message
		if m != nil {
			w.remove(row.At)
		} else if m = w.fire(row.At, row.firing); m == nil {
			continue
		}
		if m.Expires <= w.ms && m.Expires != noExpiry {
			w.refuse(m, TooLate, "it was late: not to be delivered from "+stamp(m.Expires)+" on")
			w.end(m, failed, Expired, TooLate)
			continue
		}
		w.Outputs = append(w.Outputs, w.output(m, len(w.Messages)))
		w.Messages = append(w.Messages, *m)
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
		o.ID, o.Fire = m.Cron, true
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

// Refusal is a message that the broker did not take.
type Refusal struct {
	Message   Message
	Reason    string
	Permanent bool // it will never take it: there is no use in sending it again
}

// Refused plans messages anew that were not taken, after a pause, or gives them up with a rejection. The step that sent them was
// undone before; with AtLeastOnce it was kept. A message that was cancelled since is not planned.
func (s *Settings) Refused(r Reader, refusals []Refusal, now time.Time) (Step, error) {
	var ids, crons []string
	keys := make([][]byte, len(refusals))
	for i := range refusals {
		m := &refusals[i].Message
		keys[i] = m.At.key(spaceMessage)
		if m.ID != "" {
			ids = append(ids, m.ID)
		}
		if m.Cron != "" {
			crons = append(crons, m.Cron)
		}
	}
	w, err := s.begin(r, now, ids, crons)
	if err != nil {
		return Step{}, err
	}
	rows, err := r.MultiGet(keys)
	if err != nil {
		return Step{}, err
	}
	w.at = -1
	for i, refusal := range refusals {
		m := refusal.Message
		switch {
		case rows[i] != nil:
			_, f, err := decodeMessage(m.At, rows[i])
			if err != nil {
				return Step{}, err
			}
			if f == nil {
				w.remove(m.At)
			} else if w.fire(m.At, f) == nil {
				continue
			}
		case !s.AtLeastOnce:
			continue
		case m.ID != "" && !m.Loose:
			if row := w.ids[m.ID]; row == nil || row.State != sent || row.At != m.At {
				m.Loose = true
			}
		}
		w.again(&m, refusal)
	}
	return w.finish(), nil
}

// again plans a message that was refused, or ends it.
func (w *work) again(m *Message, refusal Refusal) {
	if refusal.Permanent || m.Attempts >= uint64(w.s.RetryMax) {
		w.refuse(m, Undeliverable, refusal.Reason)
		w.end(m, failed, Failed, Undeliverable)
		return
	}
	pause := w.s.RetryFirst
	for n := m.Attempts; n > 0 && pause < w.s.RetryTop; n-- {
		pause *= 2
	}
	m.Attempts++
	// The clock may have been set back since it was sent.
	w.insert(m, max(m.Due, w.now.Add(min(pause, w.s.RetryTop)).UnixMilli()))
	w.end(m, pending, Retried, "")
}
