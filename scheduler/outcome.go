package scheduler

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"kaspr.io/kaspr/engine/record"
)

// Verdict is how a request or a message ended, or what became of it so far.
type Verdict string

// Verdicts. A request gets one of the first group, and a message that was accepted one of the second in the end.
const (
	Accepted  Verdict = "accepted"  // the message will be delivered, or the cron entry is active
	Replaced  Verdict = "replaced"  // the same, in the place of an earlier one with the id
	Unchanged Verdict = "unchanged" // nothing had to be done; Code says why
	Cancelled Verdict = "cancelled" // what had the id will not be delivered
	Paused    Verdict = "paused"
	Resumed   Verdict = "resumed"
	Rejected  Verdict = "rejected" // Code says why

	Delivered Verdict = "delivered"
	Retried   Verdict = "retried" // the broker refused it; it is sent again later
	Expired   Verdict = "expired" // it was late for its x-scheduler-expire-at
	Failed    Verdict = "failed"  // the broker refused it for good
	Skipped   Verdict = "skipped" // firings of a cron entry that were missed and are not made up; Count says how many
)

// Code is a reason.
type Code string

// Reasons of rejections.
const (
	BadHeader     Code = "BAD_HEADER"
	MissingHeader Code = "MISSING_HEADER"
	UnknownAction Code = "UNKNOWN_ACTION"
	BadTopic      Code = "BAD_TOPIC"
	BadTime       Code = "BAD_TIME"
	BadCron       Code = "BAD_CRON"
	CronDisabled  Code = "CRON_DISABLED"
	TooLarge      Code = "TOO_LARGE"
	TooFar        Code = "TOO_FAR"
	PastDue       Code = "PAST_DUE"
	DuplicateID   Code = "DUPLICATE_ID"
	TooLate       Code = "EXPIRED"
	Undeliverable Code = "UNDELIVERABLE"
)

// Reasons why nothing had to be done.
const (
	Same        Code = "SAME"         // the id has exactly this message already, or had it delivered
	NotFound    Code = "NOT_FOUND"    // nothing has the id
	AlreadySent Code = "ALREADY_SENT" // the message with the id was delivered
	Superseded  Code = "SUPERSEDED"   // the id was cancelled by a later request that came first
	Repeated    Code = "REPEATED"     // this very request was taken in before
	SameState   Code = "SAME_STATE"   // the cron entry is paused, or active, already
)

// Outcome is what became of one request or message.
type Outcome struct {
	Verdict Verdict
	Code    Code
	Verb    Verb // of a request; empty for a message
	ID      string
	Topic   string // destination
	Due     int64  // milliseconds
	Late    int64  // of a message: milliseconds since then
	Count   int64  // firings skipped
	PastDue bool   // of a request: it was due when it was taken in
	Fire    bool   // of a message: a firing of the cron entry ID
	Missed  bool   // of a firing: it is made up for
	Source  Source // the request
}

// note adds an outcome, and its record if results are wanted.
func (s *Settings) note(st *Step, at int32, o Outcome, now time.Time) {
	st.Outcomes = append(st.Outcomes, o)
	if s.Results == "" {
		return
	}
	doc := map[string]any{
		"outcome": o.Verdict, "at": stamp(now.UnixMilli()), "source": s.doc(o.Source),
	}
	put := func(name string, value any, there bool) {
		if there {
			doc[name] = value
		}
	}
	put("code", o.Code, o.Code != "")
	put("action", o.Verb, o.Verb != "")
	put("requestId", o.ID, o.ID != "")
	put("deliverTo", o.Topic, o.Topic != "")
	put("deliverAt", stamp(o.Due), o.Topic != "" && o.Verb != CronAdd)
	put("skipped", o.Count, o.Count > 0)
	out := record.Output{Record: at, Topic: s.Results, Partition: record.PartitionByKey, Value: encodeDoc(doc)}
	if o.ID != "" {
		out.Key = []byte(o.ID)
	}
	st.Outputs = append(st.Outputs, out)
}

// reject writes a rejection of a request.
func (s *Settings) reject(st *Step, at int32, rec *record.Record, r *Request, problems []Problem, now time.Time) {
	s.rejection(st, at, rec.Key, rec.Value, asked(rec.Headers), r.Source, problems)
	o := Outcome{Verdict: Rejected, Code: problems[0].Code, Verb: r.Verb, ID: r.ID, Topic: r.Topic, Due: r.Due, Source: r.Source}
	if len(o.ID) > idBytes { // or the result would be as large as the request, twice
		o.ID = ""
	}
	o.Verb, o.Topic = Verb(clip(string(o.Verb))), clip(o.Topic)
	s.note(st, at, o, now)
}

// asked is the headers of a request, also where they are those of its action: without what is ours, and with times that can be read.
func asked(headers []record.Header) []record.Header {
	ours := slices.ContainsFunc(headers, func(h record.Header) bool { return h.Key == HeaderSource })
	if !ours {
		return headers
	}
	var list []record.Header
	for _, h := range headers {
		switch h.Key {
		case HeaderSource:
			continue
		case HeaderAt, HeaderExpires:
			if at, err := parseSeconds(string(h.Value)); err == nil {
				h.Value = []byte(stamp(at))
			}
		}
		list = append(list, h)
	}
	return list
}

// rejection writes a record of the rejections: one JSON object. The key is the request's. A value that is JSON is there as it
// is, byte by byte; other text as a string, other bytes in base64. The headers are a list, for order and repetitions. What is
// too large for a record is left out, the value first.
func (s *Settings) rejection(st *Step, at int32, key, value []byte, headers []record.Header, from Source, problems []Problem) {
	list := []any{}
	for _, h := range headers {
		list = append(list, map[string]any{"name": h.Key, "value": text(h.Value)})
	}
	errs := []string{}
	for _, p := range problems {
		errs = append(errs, clip(p.Text))
	}
	doc := map[string]any{"code": problems[0].Code, "errors": errs, "key": text(key), "headers": list, "source": s.doc(from)}
	out := record.Output{Record: at, Topic: s.Rejections, Partition: record.PartitionByKey, Key: key, Value: encodeRejection(doc, value)}
	if len(out.Key)+len(out.Value) > s.RowBytes {
		doc["value"], doc["valueEncoding"], doc["valueBytes"] = nil, "omitted", len(value)
		out.Value = encodeRejection(doc, nil)
	}
	if len(out.Key)+len(out.Value) > s.RowBytes {
		doc["headers"] = []any{}
		out.Value = encodeRejection(doc, nil)
	}
	if len(out.Key)+len(out.Value) > s.RowBytes {
		doc["key"], out.Key = nil, nil
		out.Value = encodeRejection(doc, nil)
	}
	st.Outputs = append(st.Outputs, out)
}

func encodeRejection(doc map[string]any, value []byte) []byte {
	if _, omitted := doc["valueEncoding"]; !omitted {
		doc = maps.Clone(doc)
		switch {
		case value == nil:
			doc["value"], doc["valueEncoding"] = nil, "null"
		case utf8.Valid(value) && json.Valid(value):
			// Marshal would compact it.
			doc["valueEncoding"] = "json"
			b := encodeDoc(doc)
			return append(append(append(b[:len(b)-1:len(b)-1], `,"value":`...), value...), '}')
		case utf8.Valid(value):
			doc["value"], doc["valueEncoding"] = string(value), "text"
		default:
			doc["value"], doc["valueEncoding"] = text(value), "base64"
		}
	}
	return encodeDoc(doc)
}

// clip keeps a text short that may quote what somebody sent.
func clip(text string) string {
	const most = 500
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

func encodeDoc(doc any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		panic("BUG: scheduler: " + err.Error()) // maps of strings, numbers and lists
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// text shows bytes in JSON: as text when they are, else as an object with base64.
func text(b []byte) any {
	switch {
	case b == nil:
		return nil
	case utf8.Valid(b):
		return string(b)
	}
	return map[string]string{"base64": base64.StdEncoding.EncodeToString(b)}
}

// stamp is a time for people and programs.
func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00") }
