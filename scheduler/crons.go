package scheduler

import (
	"bytes"
	"slices"
	"time"

	"kaspr.io/kaspr/engine/cron"
	"kaspr.io/kaspr/engine/record"
)

// cronAdd makes a cron entry, in the place of the one with its id.
func (w *work) cronAdd(q *Request) *Problem {
	sched, err := q.schedule()
	if err != nil {
		return &Problem{BadCron, err.Error()}
	}
	c := &cronRow{
		State: pending, Since: w.ms, Source: q.Source, Expression: q.Expression, Zone: q.Zone, Skip: q.Skip,
		Topic: q.Topic, Key: q.Key, Value: q.Value, Headers: q.Headers,
	}
	verdict := Accepted
	if old := w.crons[q.ID]; old != nil {
		switch {
		case old.State == pending && old.same(c):
			w.answer(q, Unchanged, Same)
			return nil
		case old.State == cancelled && superseded(old.Source, q.Source, false):
			w.answer(q, Unchanged, Superseded)
			return nil
		case old.State == pending || old.State == paused:
			verdict = Replaced
			w.unplan(old)
		}
	}
	if verdict == Accepted {
		w.head.Crons++
	}
	c.Version = w.seq() // of its own, even if an entry with this id was forgotten
	w.plan(q.ID, c, sched.Next(w.now))
	w.setCron(q.ID, c)
	w.answer(q, verdict, "")
	return nil
}

func (c *cronRow) same(o *cronRow) bool {
	return c.Expression == o.Expression && c.Zone == o.Zone && c.Skip == o.Skip && c.Topic == o.Topic &&
		equal(c.Key, o.Key) && equal(c.Value, o.Value) &&
		slices.EqualFunc(c.Headers, o.Headers, func(a, b record.Header) bool { return a.Key == b.Key && equal(a.Value, b.Value) })
}

// equal tells null from empty.
func equal(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

// plan lays the row of the next firing; a zero time is none.
func (w *work) plan(id string, c *cronRow, next time.Time) {
	c.Next = 0
	if next.IsZero() {
		return
	}
	c.Next = next.UnixMilli()
	c.At = w.place(c.Next)
	w.put(w.at, c.At.key(spaceMessage), (&firing{Cron: id, Version: c.Version}).encode())
}

// unplan takes the row of the next firing away. A paused entry has none.
func (w *work) unplan(c *cronRow) {
	if c.State == pending && c.Next != 0 {
		w.remove(c.At)
	}
}

func (w *work) cronPause(q *Request) {
	c := w.crons[q.ID]
	switch {
	case c == nil || c.State >= gone:
		w.answer(q, Unchanged, NotFound)
		return
	case c.State == paused:
		w.answer(q, Unchanged, SameState)
		return
	}
	w.unplan(c)
	c.State, c.Since = paused, w.ms
	w.setCron(q.ID, c)
	w.answer(q, Paused, "")
}

// cronResume goes on with the first firing that was not delivered, or with the next one when missed ones are skipped.
func (w *work) cronResume(q *Request) *Problem {
	c := w.crons[q.ID]
	switch {
	case c == nil || c.State >= gone:
		w.answer(q, Unchanged, NotFound)
		return nil
	case c.State == pending:
		w.answer(q, Unchanged, SameState)
		return nil
	}
	var next time.Time
	if !c.Skip && c.Next != 0 {
		next = time.UnixMilli(c.Next)
	} else {
		sched, err := schedule(c.Expression, c.Zone)
		if err != nil {
			return &Problem{BadCron, err.Error()}
		}
		next = sched.Next(time.UnixMilli(max(w.ms, c.Last))) // not one again after the clock was set back
	}
	c.State, c.Since = pending, w.ms
	w.plan(q.ID, c, next)
	w.setCron(q.ID, c)
	w.answer(q, Resumed, "")
	return nil
}

func (w *work) cronCancel(q *Request) {
	verdict, code := Unchanged, NotFound
	if c := w.crons[q.ID]; c != nil && c.State < gone {
		w.unplan(c)
		w.head.Crons--
		verdict, code = Cancelled, ""
	}
	w.setCron(q.ID, &cronRow{State: cancelled, Since: w.ms, Source: q.Source})
	w.answer(q, verdict, code)
}

// skipMax bounds how many missed firings of one entry are counted in one step.
const skipMax = 10_000

// fire makes the message of a cron's firing and plans the next one; nil when it is skipped, or does not count any more. Its row
// is taken away. Missed firings are made up, up to a bound, or skipped.
func (w *work) fire(at Location, f *firing) *Message {
	w.remove(at)
	c := w.crons[f.Cron]
	if c == nil || c.State != pending || c.Version != f.Version || c.At != at {
		return nil
	}
	sched, err := schedule(c.Expression, c.Zone)
	if err != nil { // the zones of this machine are not those of the one that checked it
		m := w.message(f.Cron, c)
		w.refuse(m, BadCron, err.Error())
		w.note(Outcome{Verdict: Failed, Code: BadCron, ID: f.Cron, Topic: c.Topic, Due: c.Next, Source: c.Source, Fire: true})
		c.State, c.Since, c.Next = paused, w.ms, 0
		w.setCron(f.Cron, c)
		return nil
	}
	bound := w.s.CronGrace // what is not later than that was not missed, however little is made up for
	if !c.Skip {
		bound = max(bound, w.s.CronReplayBack)
	}
	if w.now.Sub(time.UnixMilli(c.Next)) > bound {
		w.skip(f.Cron, c, sched, w.now.Add(-bound))
		return nil
	}
	m := w.message(f.Cron, c)
	m.At = at
	c.Last = c.Next
	w.plan(f.Cron, c, sched.Next(time.UnixMilli(c.Next)))
	w.setCron(f.Cron, c)
	return m
}

// goesOn tells whether a firing that was refused is still to be delivered: not if its cron entry was cancelled or replaced, or is paused.
// One that is paused and makes up for what it missed goes on with it then, unless later ones were delivered.
func (w *work) goesOn(m *Message) bool {
	c := w.crons[m.Cron]
	if c == nil || c.Source != m.Source {
		return false
	}
	if c.State == paused && !c.Skip && c.Last == m.Due {
		c.Next = m.Due
		w.setCron(m.Cron, c)
	}
	return c.State == pending
}

// skip plans the first firing that is not before a time.
func (w *work) skip(id string, c *cronRow, sched cron.Schedule, from time.Time) {
	o := Outcome{Verdict: Skipped, ID: id, Topic: c.Topic, Due: c.Next, Late: w.ms - c.Next, Fire: true, Source: c.Source}
	next := time.UnixMilli(c.Next)
	for !next.IsZero() && next.Before(from) && o.Count < skipMax {
		next = sched.Next(next)
		o.Count++
	}
	w.plan(id, c, next)
	w.setCron(id, c)
	w.note(o)
}

// message is a firing as a message.
func (w *work) message(id string, c *cronRow) *Message {
	return &Message{Due: c.Next, Expires: noExpiry, Cron: id, Source: c.Source, Topic: c.Topic, Key: c.Key, Value: c.Value, Headers: c.Headers}
}
