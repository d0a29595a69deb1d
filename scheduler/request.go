package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"kaspr.io/kaspr/engine/cron"
	"kaspr.io/kaspr/engine/record"
)

// Headers of requests. All of them are control headers: what is delivered has none of them.
const (
	HeaderAction     = "x-scheduler-action"
	HeaderTo         = "x-scheduler-deliver-to"
	HeaderAt         = "x-scheduler-deliver-at"
	HeaderID         = "x-scheduler-request-id"
	HeaderExpires    = "x-scheduler-expire-at"
	HeaderExpression = "x-scheduler-cron-expr"
	HeaderZone       = "x-scheduler-cron-zone"
	HeaderPolicy     = "x-scheduler-cron-missed-fire-policy"
)

// Headers that the scheduler itself writes: the source of an action, and what delivered messages carry.
const (
	HeaderSource = "x-scheduler-source"
	HeaderFire   = "x-scheduler-cron-fire-timestamp"
	HeaderDue    = "x-scheduler-due"
	HeaderSent   = "x-scheduler-sent"
)

// Verb is what a request asks for, as in its header.
type Verb string

// The verbs.
const (
	Add        Verb = "ADD"
	Replace    Verb = "REPLACE"
	Cancel     Verb = "CANCEL"
	CronAdd    Verb = "CRON_ADD"
	CronPause  Verb = "CRON_PAUSE"
	CronResume Verb = "CRON_RESUME"
	CronCancel Verb = "CRON_CANCEL"
)

// verbs says what each needs: an id, a destination, a time, a cron expression.
var verbs = map[Verb]struct{ id, to, at, expression bool }{
	Add:        {to: true, at: true},
	Replace:    {id: true, to: true, at: true},
	Cancel:     {id: true},
	CronAdd:    {id: true, to: true, expression: true},
	CronPause:  {id: true},
	CronResume: {id: true},
	CronCancel: {id: true},
}

func (v Verb) cron() bool { return strings.HasPrefix(string(v), "CRON_") }

// Request is a request, or the action it became. Key, value and the values of headers are the record's.
type Request struct {
	Verb       Verb
	ID         string // empty: none
	Topic      string // destination
	Due        int64  // milliseconds
	Expires    int64  // not to be delivered from then on; noExpiry: never
	Expression string
	Zone       string // empty: UTC
	Skip       bool   // missed firings are not made up
	Key, Value []byte
	Headers    []record.Header // of the message
	Source     Source
}

const noExpiry = int64(-1 << 63)

// idBytes bounds request ids.
const idBytes = 4096

// Problem is one thing that is wrong with a request.
type Problem struct {
	Code Code
	Text string
}

// parse reads a request, or an action, whose times are numbers. It finds everything that is wrong.
func parse(rec *record.Record, action bool) (Request, []Problem) {
	r := Request{Verb: Add, Expires: noExpiry, Key: rec.Key, Value: rec.Value, Source: sourceOf(rec)}
	var problems []Problem
	fail := func(code Code, text string, args ...any) {
		problems = append(problems, Problem{code, fmt.Sprintf(text, args...)})
	}
	control := map[string]string{}
	for i, h := range rec.Headers {
		switch h.Key {
		default:
			r.Headers = append(r.Headers, h)
			continue
		case HeaderFire, HeaderDue, HeaderSent: // of a message that was delivered and is scheduled again
			continue
		case HeaderAction, HeaderTo, HeaderAt, HeaderID, HeaderExpires, HeaderExpression, HeaderZone, HeaderPolicy, HeaderSource:
		}
		if slices.ContainsFunc(rec.Headers[i+1:], func(later record.Header) bool { return later.Key == h.Key }) {
			continue // the last one counts, also where this one could not be read
		}
		if h.Value == nil || !utf8.Valid(h.Value) {
			fail(BadHeader, "header %s is not UTF-8 text", h.Key)
			continue
		}
		control[h.Key] = string(h.Value)
	}
	if v, ok := control[HeaderAction]; ok {
		r.Verb = Verb(v)
	}
	r.ID, r.Topic = control[HeaderID], control[HeaderTo]
	r.Expression, r.Zone = control[HeaderExpression], control[HeaderZone]
	r.Skip = control[HeaderPolicy] == "skip"
	if action {
		r.Source.Partition = -1 - rec.Partition
	}
	if source, ok := control[HeaderSource]; ok && action {
		if err := r.Source.parse(source); err != nil {
			fail(BadHeader, "header %s: %v", HeaderSource, err)
		}
	}
	needs, ok := verbs[r.Verb]
	if !ok {
		fail(UnknownAction, "header %s: %q is none of ADD, REPLACE, CANCEL, CRON_ADD, CRON_PAUSE, CRON_RESUME, CRON_CANCEL", HeaderAction, r.Verb)
		return r, problems
	}
	missing := func(need bool, name string) bool {
		if need && control[name] == "" {
			if _, ok := control[name]; ok {
				fail(MissingHeader, "header %s is empty", name)
			} else {
				fail(MissingHeader, "header %s is missing", name)
			}
		}
		return control[name] == "" || !need
	}
	missing(needs.id, HeaderID)
	if len(r.ID) > idBytes {
		fail(BadHeader, "header %s has %d bytes, more than %d", HeaderID, len(r.ID), idBytes)
	}
	if !missing(needs.to, HeaderTo) && !topicName(r.Topic) {
		fail(BadTopic, "header %s: %q is not a topic's name", HeaderTo, r.Topic)
	}
	instant := func(name string, into *int64) {
		read := parseInstant
		if action {
			read = parseSeconds
		}
		at, err := read(control[name])
		if err != nil {
			fail(BadTime, "header %s: %q: %v", name, control[name], err)
			return
		}
		*into = at
	}
	if !missing(needs.at, HeaderAt) {
		instant(HeaderAt, &r.Due)
	}
	if _, ok := control[HeaderExpires]; ok && needs.at {
		instant(HeaderExpires, &r.Expires)
	}
	if !missing(needs.expression, HeaderExpression) {
		if _, err := r.schedule(); err != nil {
			fail(BadCron, "%v", err)
		}
	}
	return r, problems
}

// size is at least what a row of the request takes.
func (r *Request) size() int {
	n := 128 + len(r.ID) + len(r.Topic) + len(r.Expression) + len(r.Zone) + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += 8 + len(h.Key) + len(h.Value)
	}
	return n
}

// schedule is the cron expression of a request, read.
func (r *Request) schedule() (cron.Schedule, error) { return schedule(r.Expression, r.Zone) }

func schedule(expression, zone string) (cron.Schedule, error) {
	at := time.UTC
	if zone != "" {
		var err error
		if at, err = time.LoadLocation(zone); err != nil || zone == "Local" {
			return cron.Schedule{}, fmt.Errorf("header %s: %q is not a time zone", HeaderZone, zone)
		}
	}
	sched, err := cron.Parse(expression, at)
	if err != nil {
		return sched, fmt.Errorf("header %s: %q: %w", HeaderExpression, expression, err)
	}
	return sched, nil
}

// check finds what the settings do not allow.
func (s *Settings) check(r *Request) []Problem {
	if r.Verb.cron() && !s.Cron {
		return []Problem{{CronDisabled, "cron entries are disabled (schedulerCronEnabled)"}}
	}
	if size := r.size(); size > s.RowBytes {
		return []Problem{{TooLarge, fmt.Sprintf("the message has %d bytes with key, headers and id, more than %d", size, s.RowBytes)}}
	}
	if r.Verb != CronAdd {
		return nil
	}
	sched, err := r.schedule()
	if err != nil {
		return []Problem{{BadCron, err.Error()}}
	}
	if gap := sched.Gap(); gap < s.CronMinGap {
		return []Problem{{BadCron, fmt.Sprintf("header %s: %q is due again after %s, less than %s (schedulerCronMinIntervalSeconds)",
			HeaderExpression, r.Expression, gap, s.CronMinGap)}}
	}
	return nil
}

// action is a checked request as a record for its partition of the actions.
func (r *Request) action(topic string, partitions int32) record.Output {
	out := record.Output{Topic: topic, Partition: partitionOf(r, partitions), Timestamp: r.Source.Time, Key: r.Key, Value: r.Value}
	out.Headers = append(make([]record.Header, 0, len(r.Headers)+8), r.Headers...)
	add := func(key, value string) {
		out.Headers = append(out.Headers, record.Header{Key: key, Value: []byte(value)})
	}
	add(HeaderAction, string(r.Verb))
	if r.ID != "" {
		add(HeaderID, r.ID)
	}
	needs := verbs[r.Verb]
	if needs.to {
		add(HeaderTo, r.Topic)
	}
	if needs.at {
		add(HeaderAt, formatSeconds(r.Due))
		if r.Expires != noExpiry {
			add(HeaderExpires, formatSeconds(r.Expires))
		}
	}
	if needs.expression {
		add(HeaderExpression, r.Expression)
		if r.Zone != "" {
			add(HeaderZone, r.Zone)
		}
		if r.Skip {
			add(HeaderPolicy, "skip")
		}
	}
	add(HeaderSource, r.Source.String())
	return out
}

// Distribute makes of each request its action, or a rejection. It needs no state, and no time but for what it writes.
func (s *Settings) Distribute(requests []record.Record, now time.Time) Step {
	st := Step{Outputs: make([]record.Output, 0, len(requests))}
	for i := range requests {
		rec := &requests[i]
		r, problems := parse(rec, false)
		if len(problems) == 0 {
			problems = s.check(&r)
		}
		if len(problems) > 0 {
			s.reject(&st, int32(i), rec, &r, problems, now)
			continue
		}
		out := r.action(s.Actions, s.Partitions)
		out.Record = int32(i)
		st.Outputs = append(st.Outputs, out)
	}
	return st
}
