package scheduler

import "time"

// Refusal is a message that the broker did not take.
type Refusal struct {
	Message *Message
	// Topic, instead of a message, is one to which nothing is sent for now: what is due there counts as refused.
	Topic     string
	Reason    string
	Permanent bool // it will never take it: there is no use in sending it again
}

// attempt names one sending of one message. Its place among the messages does not: after a rollback another one may get that.
type attempt struct {
	source   Source
	due      int64
	attempts uint64
}

func (m *Message) attempt() attempt { return attempt{m.Source, m.Due, m.Attempts} }

// Refused plans messages anew that were not taken although their step was kept, which only happens with AtLeastOnce.
func (s *Settings) Refused(r Reader, refusals []Refusal, now time.Time) (Step, error) {
	var ids []string
	keys := make([][]byte, len(refusals))
	for i, refusal := range refusals {
		keys[i] = refusal.Message.At.key(spaceMessage)
		if id := refusal.Message.ID; id != "" {
			ids = append(ids, id)
		}
	}
	w, err := s.begin(r, now, ids, nil)
	if err != nil {
		return Step{}, err
	}
	rows, err := r.MultiGet(keys)
	if err != nil {
		return Step{}, err
	}
	w.at = -1
	for i, refusal := range refusals {
		m := *refusal.Message
		if rows[i] != nil {
			continue // the step was not kept: it is sent again anyway
		}
		if m.ID != "" && !m.Loose {
			row := w.ids[m.ID]
			m.Loose = row == nil || row.State != sent || row.At != m.At
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
