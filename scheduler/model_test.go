package scheduler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// ask is a request as its client means it.
type ask struct {
	verb         Verb
	id           string
	due, expires int64 // expires 0: never
	topic        string
	key, value   []byte
	headers      []record.Header
	period       int64 // of a cron entry, milliseconds; a divisor of a minute
	skip         bool
	wrong        bool // it has to be rejected at once
	made         int64
}

// same tells whether two requests are for the same message.
func (a *ask) same(b *ask) bool {
	return a.due == b.due && a.expires == b.expires && a.content() == b.content()
}

func (a *ask) content() string {
	return fmt.Sprintf("%q %#v %#v %#v", a.topic, a.key, a.value, a.headers)
}

// client makes a request, or sends an old one again.
func (w *world) client() {
	switch {
	case len(w.held) > 0 && w.rng.IntN(4) == 0:
		w.tally["late request"]++
		w.release(w.rng.IntN(len(w.held)))
		return
	case w.rng.IntN(8) == 0:
		p := w.rng.IntN(len(w.requests))
		if n := len(w.requests[p]); n > 0 {
			w.tally["duplicate"]++
			again := w.requests[p][w.rng.IntN(n)]
			w.publish(w.asked[p][again.Offset], p)
			return
		}
	}
	a := w.invent()
	if w.rng.IntN(5) == 0 {
		w.held = append(w.held, a)
		return
	}
	w.publish(a, w.place(a))
}

func (w *world) release(i int) {
	a := w.held[i]
	w.held = slices.Delete(w.held, i, i+1)
	w.publish(a, w.place(a))
}

// place is where clients put a request: anywhere.
func (w *world) place(*ask) int { return w.rng.IntN(len(w.requests)) }

func (w *world) invent() *ask {
	w.next++
	a := &ask{made: w.clock, topic: []string{"a", "b", "flaky", "gone"}[min(3, w.rng.IntN(14)/4)]}
	a.verb = []Verb{Add, Add, Add, Add, Replace, Replace, Cancel, Cancel, CronAdd, CronPause, CronResume, CronCancel}[w.rng.IntN(12)]
	if a.verb != Add || w.rng.IntN(3) > 0 {
		a.id = string(rune('p' + w.rng.IntN(5)))
	}
	a.due = w.clock + w.span(35_000) - 5_000
	if w.rng.IntN(8) == 0 {
		a.expires = a.due + w.span(5_000)
	}
	switch w.rng.IntN(4) {
	case 0:
		a.key = []byte{}
	case 1:
		a.key = []byte{0xff, byte(w.next)}
	}
	if w.rng.IntN(6) > 0 {
		a.value = fmt.Appendf(nil, `{"n": %d}`, w.next)
	}
	a.headers = []record.Header{{Key: "h", Value: []byte(fmt.Sprint(w.next))}, {Key: "h", Value: nil}, {Key: "", Value: []byte{0xfe}}}[:w.rng.IntN(4)]
	a.period = []int64{2_000, 10_000, 30_000, 60_000}[w.rng.IntN(4)]
	a.skip = w.rng.IntN(2) == 0
	a.wrong = w.rng.IntN(20) == 0
	return a
}

// publish writes a request to its topic.
func (w *world) publish(a *ask, p int) {
	rec := record.Record{Topic: w.s.Requests, Partition: int32(p), Offset: int64(len(w.requests[p])), Timestamp: a.made, Key: a.key, Value: a.value}
	put := func(name, value string) {
		rec.Headers = append(rec.Headers, record.Header{Key: name, Value: []byte(value)})
	}
	if a.verb != Add || a.made%2 == 0 {
		put("x-scheduler-action", string(a.verb))
	}
	rec.Headers = append(rec.Headers, a.headers...)
	if a.id != "" {
		put("x-scheduler-request-id", a.id)
	}
	switch a.verb {
	case Add, Replace:
		put("x-scheduler-deliver-to", a.topic)
		at := time.UnixMilli(a.due).UTC()
		put("x-scheduler-deliver-at", at.In(time.FixedZone("", int(a.due%7)*1800)).Format("2006-01-02T15:04:05.000Z07:00"))
		if a.expires != 0 {
			put("x-scheduler-expire-at", time.UnixMilli(a.expires).UTC().Format("20060102T150405.000Z"))
		}
	case CronAdd:
		put("x-scheduler-deliver-to", a.topic)
		put("x-scheduler-cron-expr", map[int64]string{
			2_000: "* * * * * */2", 10_000: "* * * * * 0,10,20,30,40,50", 30_000: "*/1 * * * * 0,30", 60_000: "* * * * *",
		}[a.period])
		if a.skip {
			put("x-scheduler-cron-missed-fire-policy", "skip")
		}
	}
	if a.wrong {
		put("x-scheduler-action", "NONSENSE")
	}
	w.asked[p][rec.Offset] = a
	w.requests[p] = append(w.requests[p], rec)
	w.log("request %d@%d at %d: %s id %q due %d made %d", p, rec.Offset, w.clock, a.verb, a.id, a.due, a.made)
}

// model is one partition as the specification has it.
type model struct {
	s     *Settings
	tally tally
	items map[string]*item // that wait, by the request they come from, or the firing
	sent  map[string]*item // that left
	ids   map[string]*holder
	crons map[string]*entry
	seen  map[int32][2]int64 // with at least once: offset and latest time, by partition of the requests
}

// item is a message.
type item struct {
	key   string
	ask   *ask
	from  int64 // when it may leave
	due   int64
	cron  string
	tries int
}

// holder is what an id stands for.
type holder struct {
	state     string // pending, sent, cancelled, failed
	item      *item  // also of the message it had when it was cancelled; nil: none
	since     int64
	made      int64 // the CANCEL
	partition int32
}

// entry is a cron.
type entry struct {
	state     string // active, paused, cancelled
	key       string // of its firings, without their time
	ask       *ask
	next      int64
	last      int64 // the last that was delivered
	since     int64
	made      int64
	partition int32
}

func newModel(s *Settings, t tally) *model {
	return &model{s: s, tally: t, items: map[string]*item{}, sent: map[string]*item{}, ids: map[string]*holder{}, crons: map[string]*entry{}, seen: map[int32][2]int64{}}
}

func (m *model) waits(int64) bool { return len(m.items) > 0 }

func (m *model) String() string { return fmt.Sprintf("%d messages wait", len(m.items)) }

func following(at, period int64) int64 { return (at/period + 1) * period }

// event checks one committed step.
func (m *model) event(w *world, e *event) error {
	if err := m.documents(e); err != nil {
		return err
	}
	for _, o := range e.outcomes {
		w.log("  at %d: %+v", e.now, o)
		m.tally[string(o.Verdict)]++
		m.tally[string(o.Code)]++
	}
	switch {
	case e.direct > 0:
		return m.received(w, e)
	case e.requests != nil:
		return m.distributed(w, e)
	case e.intake != nil:
		return m.takenIn(w, e)
	case e.dispatch:
		return m.dispatched(e)
	case e.retrying:
		return m.refused(e)
	}
	return m.cleaned(e)
}

// documents checks that everything that failed left a rejection, and every outcome a result if they are wanted.
func (m *model) documents(e *event) error {
	want, rejections, results := 0, 0, 0
	for _, o := range e.outcomes {
		if o.Verdict == Rejected || o.Verdict == Expired || o.Verdict == Failed {
			want++
		}
	}
	for _, o := range e.outputs {
		switch o.Topic {
		case "sim-schedule-rejections":
			rejections++
		case "results":
			results++
		default:
			continue
		}
		if !json.Valid(o.Value) {
			return fmt.Errorf("%s got %q, which is not JSON", o.Topic, o.Value)
		}
	}
	if rejections != want || m.s.Results != "" && results != len(e.outcomes) {
		return fmt.Errorf("%d rejections and %d results of %+v", rejections, results, e.outcomes)
	}
	return nil
}

// distributed checks that every request became its action, or was rejected.
func (m *model) distributed(w *world, e *event) error {
	wrong := 0
	for _, r := range e.requests {
		if w.asked[r.Partition][r.Offset].wrong {
			wrong++
		}
	}
	if wrong != len(e.outcomes) {
		return fmt.Errorf("%d of %d requests are wrong, the outcomes are %+v", wrong, len(e.requests), e.outcomes)
	}
	actions := 0
	for _, o := range e.outputs {
		if o.Topic == "sim-schedule-actions" {
			actions++
		}
	}
	if actions+wrong != len(e.requests) {
		return fmt.Errorf("%d requests became %d actions and %d rejections", len(e.requests), actions, wrong)
	}
	return nil
}

// received checks that every request was taken in where it belongs, became an action, or was rejected.
func (m *model) received(w *world, e *event) error {
	actions, outcomes := 0, e.outcomes
	for _, o := range e.outputs {
		if o.Topic == "sim-schedule-actions" {
			actions++
		}
	}
	for _, r := range e.requests {
		a := w.asked[r.Partition][r.Offset]
		if !a.wrong && a.id != "" && record.PartitionOf([]byte(a.id), m.s.Partitions) != e.direct-1 {
			actions--
			continue
		}
		want := "rejected UNKNOWN_ACTION"
		if !a.wrong {
			want = m.take(a, fmt.Sprintf("%d@%d", r.Partition, r.Offset), r.Partition, r.Offset, e.now)
		}
		if len(outcomes) == 0 || said(outcomes[:1]) != want {
			return fmt.Errorf("request %d@%d (%s %q): %s, want %s", r.Partition, r.Offset, a.verb, a.id, said(outcomes), want)
		}
		outcomes = outcomes[1:]
	}
	if actions != 0 || len(outcomes) != 0 {
		return fmt.Errorf("%d actions and %d outcomes too many", actions, len(outcomes))
	}
	return nil
}

func (m *model) takenIn(w *world, e *event) error {
	if len(e.outcomes) != len(e.intake) {
		return fmt.Errorf("%d actions have %d outcomes", len(e.intake), len(e.outcomes))
	}
	for i, r := range e.intake {
		var partition int32
		var offset, made int64
		for _, h := range r.Headers {
			if h.Key == "x-scheduler-source" {
				if _, err := fmt.Sscanf(string(h.Value), "%d@%d@%d", &partition, &offset, &made); err != nil {
					return err
				}
			}
		}
		a := w.asked[partition][offset]
		want := m.take(a, fmt.Sprintf("%d@%d", partition, offset), partition, offset, e.now)
		got := string(e.outcomes[i].Verdict)
		if c := e.outcomes[i].Code; c != "" {
			got += " " + string(c)
		}
		if got != want {
			return fmt.Errorf("request %d@%d (%s %q): %s, want %s", partition, offset, a.verb, a.id, got, want)
		}
	}
	return nil
}

// take is what becomes of a request, in words.
func (m *model) take(a *ask, key string, partition int32, offset, now int64) string {
	if m.s.AtLeastOnce {
		last, ok := m.seen[partition]
		if ok && offset <= last[0] && a.made <= last[1] {
			return "unchanged REPEATED"
		}
		m.seen[partition] = [2]int64{offset, max(a.made, last[1])}
	}
	if strings.HasPrefix(string(a.verb), "CRON") {
		return m.cron(a, "cron "+key, partition, now)
	}
	h := m.ids[a.id]
	if a.verb == Cancel {
		if h != nil && h.state == "sent" {
			return "unchanged ALREADY_SENT"
		}
		answer := "unchanged NOT_FOUND"
		tomb := &holder{state: "cancelled", since: now, made: a.made, partition: partition}
		if h != nil {
			tomb.item = h.item
			if h.state == "pending" {
				delete(m.items, h.item.key)
				answer = "cancelled"
			}
		}
		m.ids[a.id] = tomb
		return answer
	}
	it := &item{key: key, ask: a, from: a.due, due: a.due}
	answer := "accepted"
	if a.id != "" && h != nil {
		same := h.item != nil && h.item.ask.same(a)
		switch h.state {
		case "pending":
			if same {
				return "unchanged SAME"
			}
			if a.verb == Add && !m.s.Replace {
				return "rejected DUPLICATE_ID"
			}
			delete(m.items, h.item.key)
			answer = "replaced"
		case "sent":
			if same {
				return "unchanged SAME"
			}
		case "cancelled":
			if a.made < h.made && (same || partition != h.partition) {
				return "unchanged SUPERSEDED"
			}
		}
	}
	m.items[key] = it
	if a.id != "" {
		m.ids[a.id] = &holder{state: "pending", item: it, since: now}
	}
	return answer
}

func (m *model) cron(a *ask, key string, partition int32, now int64) string {
	c := m.crons[a.id]
	there := c != nil && c.state != "cancelled"
	switch a.verb {
	case CronAdd:
		if there && c.state == "active" && c.ask.content() == a.content() && c.ask.period == a.period && c.ask.skip == a.skip {
			return "unchanged SAME"
		}
		if c != nil && c.state == "cancelled" && a.made < c.made && partition != c.partition {
			return "unchanged SUPERSEDED"
		}
		m.crons[a.id] = &entry{state: "active", key: key, ask: a, next: following(now, a.period), since: now}
		if there {
			return "replaced"
		}
		return "accepted"
	case CronCancel:
		m.crons[a.id] = &entry{state: "cancelled", since: now, made: a.made, partition: partition}
		if there {
			return "cancelled"
		}
		return "unchanged NOT_FOUND"
	case CronPause:
		switch {
		case !there:
			return "unchanged NOT_FOUND"
		case c.state == "paused":
			return "unchanged SAME_STATE"
		}
		c.state = "paused"
		return "paused"
	}
	switch {
	case !there:
		return "unchanged NOT_FOUND"
	case c.state == "active":
		return "unchanged SAME_STATE"
	}
	c.state = "active"
	if c.ask.skip {
		c.next = following(max(now, c.last), c.ask.period)
	}
	return "resumed"
}

func (m *model) bound(skip bool) int64 {
	if skip {
		return m.s.CronGrace.Milliseconds()
	}
	return max(m.s.CronGrace, m.s.CronReplayBack).Milliseconds()
}

func firingKey(of Source, due int64) string {
	return fmt.Sprintf("cron %d@%d %d", of.Partition, of.Offset, due)
}

// fires moves a cron on by one firing.
func (m *model) fires(id string, due, now int64) (*item, error) {
	c := m.crons[id]
	if c == nil || c.state != "active" || c.next != due {
		return nil, fmt.Errorf("cron %s fires for %d, but it is %+v", id, due, c)
	}
	if now-due > m.bound(c.ask.skip) {
		return nil, fmt.Errorf("cron %s fires for %d at %d, which is too late", id, due, now)
	}
	if due > now {
		return nil, fmt.Errorf("cron %s fires for %d at %d, which is early", id, due, now)
	}
	c.next, c.last = following(due, c.ask.period), due
	return &item{key: c.key + fmt.Sprintf(" %d", due), ask: c.ask, from: due, due: due, cron: id}, nil
}

func (m *model) skips(o Outcome, now int64) error {
	c := m.crons[o.ID]
	if c == nil || c.state != "active" || o.Count < 1 {
		return fmt.Errorf("%+v of cron %+v", o, c)
	}
	for range o.Count {
		if c.next >= now-m.bound(c.ask.skip) {
			return fmt.Errorf("cron %s: the firing for %d is skipped at %d", o.ID, c.next, now)
		}
		c.next = following(c.next, c.ask.period)
	}
	m.tally["firing skipped"]++
	return nil
}

func (m *model) dispatched(e *event) error {
	var deliveries []record.Output
	for _, o := range e.outputs {
		if o.Record >= 0 {
			deliveries = append(deliveries, o)
		}
	}
	if len(deliveries) != len(e.messages) {
		return fmt.Errorf("%d outputs of %d messages", len(deliveries), len(e.messages))
	}
	last := int64(-1 << 62)
	for _, o := range e.outcomes {
		switch o.Verdict {
		case Delivered:
			msg, out := e.messages[0], deliveries[0]
			e.messages, deliveries = e.messages[1:], deliveries[1:]
			it, err := m.leaves(msg, e.now)
			if err != nil {
				return err
			}
			if it.from < last {
				return fmt.Errorf("%s of %d leaves behind one of %d", it.key, it.from, last)
			}
			last = it.from
			if err := m.faithful(it, out, e.now); err != nil {
				return fmt.Errorf("%s: %w", it.key, err)
			}
		case Expired:
			it := m.items[fmt.Sprintf("%d@%d", o.Source.Partition, o.Source.Offset)]
			if it == nil || it.from > e.now || it.ask.expires == 0 || it.ask.expires > e.now {
				return fmt.Errorf("expired: %+v, at %d", it, e.now)
			}
			last = max(last, it.from)
			delete(m.items, it.key)
			m.holds(it, "failed", e.now)
		case Retried, Failed:
			if err := m.refusal(o, e.now); err != nil {
				return err
			}
		case Skipped:
			if err := m.skips(o, e.now); err != nil {
				return err
			}
		case Cancelled: // a firing that was refused, and whose cron was cancelled or replaced then
			it := m.items[firingKey(o.Source, o.Due)]
			if it == nil || it.from > e.now || m.defines(it) {
				return fmt.Errorf("cancelled: %+v, at %d", it, e.now)
			}
			if c := m.crons[it.cron]; c != nil && c.state == "paused" && strings.HasPrefix(it.key, c.key+" ") && !c.ask.skip && c.last == it.due {
				c.next = it.due // a resume goes on with it
				m.tally["firing paused"]++
			}
			m.tally["firing cancelled"]++
			delete(m.items, it.key)
		default:
			return fmt.Errorf("a dispatch has outcome %+v", o)
		}
	}
	for _, it := range m.items {
		if it.from < last && !m.s.Interleave {
			return fmt.Errorf("%s, due at %d, was overtaken by one of %d", it.key, it.from, last)
		}
	}
	return nil
}

// leaves takes the item of a message that is delivered.
func (m *model) leaves(msg *Message, now int64) (*item, error) {
	key := fmt.Sprintf("%d@%d", msg.Source.Partition, msg.Source.Offset)
	if msg.Cron != "" {
		key = firingKey(msg.Source, msg.Due)
	}
	it := m.items[key]
	switch {
	case it == nil && msg.Cron != "":
		m.tally["firing"]++
		it, err := m.fires(msg.Cron, msg.Due, now)
		if err == nil {
			m.sent[key] = it
		}
		return it, err
	case it == nil:
		return nil, fmt.Errorf("%s is delivered, but does not wait", key)
	case it.from > now:
		return nil, fmt.Errorf("%s, due at %d, is delivered at %d", key, it.from, now)
	case it.cron == "" && it.ask.expires != 0 && it.ask.expires <= now:
		return nil, fmt.Errorf("%s is delivered at %d although it expired at %d", key, now, it.ask.expires)
	}
	if it.cron != "" && !m.defines(it) {
		return nil, fmt.Errorf("%s fires although its cron is another by now", key)
	}
	m.tally["delivery"]++
	delete(m.items, key)
	m.sent[key] = it
	m.holds(it, "sent", now)
	return it, nil
}

// defines tells whether a firing is one of its cron as it is now, and that is not paused.
func (m *model) defines(it *item) bool {
	c := m.crons[it.cron]
	return c != nil && c.state == "active" && strings.HasPrefix(it.key, c.key+" ")
}

// holds notes what became of a message with its id, if it still has it.
func (m *model) holds(it *item, state string, now int64) {
	if h := m.ids[it.ask.id]; it.cron == "" && h != nil && h.item == it {
		h.state, h.since = state, now
	}
}

// faithful compares a delivery with what the client asked for.
func (m *model) faithful(it *item, out record.Output, now int64) error {
	want := slices.Clone(it.ask.headers)
	if it.cron != "" {
		want = append(want, record.Header{Key: "x-scheduler-cron-fire-timestamp", Value: []byte(fmt.Sprint(it.due / 1000))})
	}
	got := out.Headers
	if m.s.Provenance {
		n := 3
		if it.ask.id != "" {
			n++
		}
		if len(got) < n {
			return fmt.Errorf("headers %v", got)
		}
		got = got[:len(got)-n]
	}
	equalHeader := func(a, b record.Header) bool {
		return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && (a.Value == nil) == (b.Value == nil)
	}
	if out.Topic != it.ask.topic || !slices.EqualFunc(got, want, equalHeader) ||
		fmt.Sprintf("%#v %#v", out.Key, out.Value) != fmt.Sprintf("%#v %#v", it.ask.key, it.ask.value) {
		return fmt.Errorf("delivered %+v, asked for %+v", out, it.ask)
	}
	return nil
}

// refused checks the outcomes of messages that were planned anew or given up although their step was kept.
func (m *model) refused(e *event) error {
	for _, o := range e.outcomes {
		if err := m.refusal(o, e.now); err != nil {
			return err
		}
	}
	return nil
}

// refusal is a message that the broker did not take.
func (m *model) refusal(o Outcome, now int64) error {
	key := fmt.Sprintf("%d@%d", o.Source.Partition, o.Source.Offset)
	if o.Fire {
		key = firingKey(o.Source, o.Due)
	}
	it := m.items[key]
	switch {
	case it != nil && !m.s.AtLeastOnce:
	case m.s.AtLeastOnce:
		if it = m.sent[key]; it == nil {
			return fmt.Errorf("%s was refused, but neither waits nor was sent", key)
		}
		delete(m.sent, key)
	case o.Fire:
		var err error
		if it, err = m.fires(o.ID, o.Due, now); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s was refused, but does not wait", key)
	}
	m.tally["refused"]++
	delete(m.items, key)
	switch {
	case o.Verdict == Failed && (it.ask.topic == "gone" || it.tries == m.s.RetryMax):
		m.tally["refused for good"]++
		m.holds(it, "failed", now)
	case o.Verdict == Retried && it.tries < m.s.RetryMax:
		it.from = max(it.due, now+1000<<it.tries)
		it.tries++
		m.items[key] = it
		m.holds(it, "pending", now)
	default:
		return fmt.Errorf("%s was refused %d times: %+v", key, it.tries, o)
	}
	return nil
}

// cleaned checks that what is forgotten was to be.
func (m *model) cleaned(e *event) error {
	remember := m.s.Remember.Milliseconds()
	for _, key := range e.cleaned {
		id := string(key[1:])
		switch key[0] {
		case spaceID:
			h := m.ids[id]
			if h == nil || h.state == "pending" || h.since+remember > e.now {
				return fmt.Errorf("id %q is forgotten at %d, it is %+v", id, e.now, h)
			}
			delete(m.ids, id)
		case spaceCron:
			c := m.crons[id]
			if c == nil || c.state != "cancelled" || c.since+remember > e.now {
				return fmt.Errorf("cron %q is forgotten at %d, it is %+v", id, e.now, c)
			}
			delete(m.crons, id)
		default:
			return fmt.Errorf("key %q is deleted", key)
		}
	}
	return nil
}

func sortedKeys(t tally) []string { return slices.Sorted(maps.Keys(t)) }
