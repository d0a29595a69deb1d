package scheduler

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
)

// A client whose time is read as another one gets its message at the wrong time.
func TestInstant(t *testing.T) {
	for text, want := range map[string]string{
		"2026-05-24T12:30:00Z":              "2026-05-24T12:30:00Z",
		"2026-05-24T12:30:00+02:00":         "2026-05-24T10:30:00Z",
		"2026-05-24T12:30:00-0230":          "2026-05-24T15:00:00Z",
		"2026-05-24T12:30:00+02":            "2026-05-24T10:30:00Z",
		"2026-05-24T12:30:00+02:00:30":      "2026-05-24T10:29:30Z",
		"20260524T123000Z":                  "2026-05-24T12:30:00Z",
		"20260524T1230":                     "2026-05-24T12:30:00Z",
		"2026-05-24 12:30":                  "2026-05-24T12:30:00Z",
		"2026-05-24·12":                     "2026-05-24T12:00:00Z",
		"2026-05-24":                        "2026-05-24T00:00:00Z",
		"20260524":                          "2026-05-24T00:00:00Z",
		"2026-W21-7":                        "2026-05-24T00:00:00Z",
		"2026W217T12":                       "2026-05-24T12:00:00Z",
		"2026-W21":                          "2026-05-18T00:00:00Z",
		"2020-W53-5":                        "2021-01-01T00:00:00Z",
		"2026-03-01T09:00:00.750+01:00":     "2026-03-01T08:00:00.75Z",
		"2026-03-01T09:00:00,5Z":            "2026-03-01T09:00:00.5Z",
		"2026-03-01T09:00:00.1234Z":         "2026-03-01T09:00:00.124Z", // nothing is early
		"2026-03-01T09:00:00.9999999999999": "2026-03-01T09:00:01Z",
		"2026-03-01T09:00:00.0000000000001": "2026-03-01T09:00:00.001Z",
		"2024-02-29T00:00Z":                 "2024-02-29T00:00:00Z",
		"0001-01-01T00:00:00+10:00":         "0000-12-31T14:00:00Z",
		"9999-12-31T23:59:59Z":              "9999-12-31T23:59:59Z",
		"1969-12-31T23:59:59.5Z":            "1969-12-31T23:59:59.5Z",
		"":                                  "",
		"1772352000":                        "",
		"Sun, 24 May 2026 12:30:00 GMT":     "",
		"2026-05-24T24:00:00Z":              "",
		"2026-05-24T12:60Z":                 "",
		"2026-05-24T12:30:60Z":              "",
		"2026-05-24T":                       "",
		"2026-05-24T1":                      "",
		"2026-05-24T12:30:00 Z":             "",
		"2026-05-24T12:30:00Zulu":           "",
		"2026-05-24T12:30:00.Z":             "",
		"2026-05-24T12:30:00+25:00":         "",
		"2026-02-29":                        "",
		"2026-13-01":                        "",
		"2026-05":                           "",
		"2026-5-24":                         "",
		"2026-W54":                          "",
		"2026-W21-8":                        "",
		"0000-01-01":                        "",
		"tomorrow":                          "",
	} {
		got, err := parseInstant(text)
		if want == "" {
			if err == nil {
				t.Errorf("%q is read as %s", text, stamp(got))
			}
			continue
		}
		at, _ := time.Parse(time.RFC3339Nano, want)
		if err != nil || got != at.UnixMilli() {
			t.Errorf("%q: %s, %v, want %s", text, stamp(got), err, want)
			continue
		}
		if again, err := parseSeconds(formatSeconds(got)); err != nil || again != got {
			t.Errorf("%q as an action: %q, %d, %v", text, formatSeconds(got), again, err)
		}
	}
	for text, want := range map[string]int64{"1772352000": 1772352000000, "-0.500": -500, "-1.250": -1250, "0.001": 1} {
		if got, err := parseSeconds(text); err != nil || got != want || formatSeconds(got) != text {
			t.Errorf("%q: %d, %v, back %q", text, got, err, formatSeconds(got))
		}
	}
	for _, text := range []string{"", "x", "1.5", "1.", "1e3", "99999999999999", "1.0001", "1.-12"} {
		if got, err := parseSeconds(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

// A request that lands in another partition than Kafka's own partitioner chooses is not handled after the earlier ones of its id.
func TestPartition(t *testing.T) {
	if got := partitionOf(&Request{ID: "rem-77", Key: []byte("x")}, 4); got != 1 {
		t.Errorf("the specification's example is in partition %d", got)
	}
	if got := partitionOf(&Request{Key: []byte("rem-77")}, 4); got != 1 {
		t.Errorf("without an id the key counts: %d", got)
	}
	spread := map[int32]bool{}
	for offset := range int64(8) {
		spread[partitionOf(&Request{Source: Source{Offset: offset}}, 4)] = true
	}
	if len(spread) != 4 {
		t.Errorf("requests without id and key go to %v only", spread)
	}
}

func headers(pairs ...string) (list []record.Header) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, record.Header{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return list
}

var (
	someDay = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	later   = "2026-03-01T09:00:00Z"
)

// A request that is wrong and leaves no trace was the original's worst habit.
func TestRejected(t *testing.T) {
	s := Defaults("billing-app")
	s.Cron = true
	off := Defaults("billing-app")
	for name, c := range map[string]struct {
		headers []record.Header
		code    Code
		errors  []string
		s       *Settings
	}{
		"nothing":          {nil, MissingHeader, []string{"x-scheduler-deliver-to is missing", "x-scheduler-deliver-at is missing"}, &s},
		"no time":          {headers(HeaderTo, "t"), MissingHeader, []string{"x-scheduler-deliver-at is missing"}, &s},
		"empty time":       {headers(HeaderTo, "t", HeaderAt, ""), MissingHeader, []string{"x-scheduler-deliver-at is empty"}, &s},
		"epoch":            {headers(HeaderTo, "t", HeaderAt, "1772352000"), BadTime, []string{`"1772352000"`}, &s},
		"bad expiry":       {headers(HeaderTo, "t", HeaderAt, later, HeaderExpires, "soon"), BadTime, []string{"x-scheduler-expire-at"}, &s},
		"verb":             {headers(HeaderAction, "add", HeaderTo, "t", HeaderAt, later), UnknownAction, []string{`"add"`}, &s},
		"replace":          {headers(HeaderAction, "REPLACE", HeaderTo, "t", HeaderAt, later), MissingHeader, []string{"request-id is missing"}, &s},
		"cancel":           {headers(HeaderAction, "CANCEL"), MissingHeader, []string{"request-id is missing"}, &s},
		"cron":             {headers(HeaderAction, "CRON_ADD"), MissingHeader, []string{"request-id", "deliver-to", "cron-expr"}, &s},
		"cron pause":       {headers(HeaderAction, "CRON_PAUSE"), MissingHeader, []string{"request-id"}, &s},
		"cron expression":  {headers(HeaderAction, "CRON_ADD", HeaderID, "c", HeaderTo, "t", HeaderExpression, "61 * * * *"), BadCron, []string{"61"}, &s},
		"30 February":      {headers(HeaderAction, "CRON_ADD", HeaderID, "c", HeaderTo, "t", HeaderExpression, "0 0 30 2 *"), BadCron, []string{"never"}, &s},
		"often":            {headers(HeaderAction, "CRON_ADD", HeaderID, "c", HeaderTo, "t", HeaderExpression, "* * * * * 0,1"), BadCron, []string{"after 1s"}, &s},
		"zone":             {headers(HeaderAction, "CRON_ADD", HeaderID, "c", HeaderTo, "t", HeaderExpression, "@daily", HeaderZone, "Mars"), BadCron, []string{"Mars"}, &s},
		"cron off":         {headers(HeaderAction, "CRON_CANCEL", HeaderID, "c"), CronDisabled, []string{"schedulerCronEnabled"}, &off},
		"topic":            {headers(HeaderTo, "a b", HeaderAt, later), BadTopic, []string{`"a b"`}, &s},
		"not text":         {headers(HeaderTo, "t", HeaderAt, later, HeaderID, "\xff"), BadHeader, []string{HeaderID}, &s},
		"null header":      {append(headers(HeaderTo, "t"), record.Header{Key: HeaderAt}), BadHeader, []string{HeaderAt, "missing"}, &s},
		"long id":          {headers(HeaderTo, "t", HeaderAt, later, HeaderID, strings.Repeat("x", 5000)), BadHeader, []string{"5000 bytes"}, &s},
		"large":            {headers(HeaderTo, "t", HeaderAt, later, "h", strings.Repeat("x", 1<<20)), TooLarge, []string{"bytes"}, &s},
		"last header wins": {headers(HeaderTo, "t", HeaderAt, later, HeaderAt, "never"), BadTime, []string{"never"}, &s},
	} {
		rec := record.Record{Partition: 2, Offset: 41, Key: []byte{0xff}, Value: []byte(`{"a" : 1}`), Headers: c.headers}
		st := c.s.Distribute([]record.Record{rec}, someDay)
		if len(st.Outputs) != 1 || len(st.Outcomes) != 1 || st.Outcomes[0].Verdict != Rejected || st.Outcomes[0].Code != c.code {
			t.Errorf("%s: %+v", name, st)
			continue
		}
		out := st.Outputs[0]
		var doc struct {
			Code    Code
			Errors  []string
			Key     map[string]string
			Value   json.RawMessage
			Headers []struct{ Name, Value any }
			Source  struct {
				Topic             string
				Partition, Offset int64
			}
		}
		if err := json.Unmarshal(out.Value, &doc); err != nil {
			t.Errorf("%s: %v: %s", name, err, out.Value)
			continue
		}
		if out.Topic != "billing-app-schedule-rejections" || !bytes.Equal(out.Key, rec.Key) || doc.Code != c.code || doc.Source.Offset != 41 ||
			doc.Source.Partition != 2 || doc.Source.Topic != "billing-app-schedule-requests" || doc.Key["base64"] != "/w==" ||
			len(out.Value) < 1<<19 && (string(doc.Value) != `{"a" : 1}` || len(doc.Headers) != len(c.headers)) && c.code != TooLarge {
			t.Errorf("%s: %s", name, out.Value)
		}
		if len(out.Value) > c.s.RowBytes {
			t.Errorf("%s: a rejection of %d bytes", name, len(out.Value))
		}
		if len(doc.Errors) != len(c.errors) {
			t.Errorf("%s: errors %q, want %q", name, doc.Errors, c.errors)
			continue
		}
		for i, want := range c.errors {
			if !strings.Contains(doc.Errors[i], want) {
				t.Errorf("%s: errors %q, want %q", name, doc.Errors, c.errors)
			}
		}
	}
}

// Of a control header that is there twice the last one counts, whatever the others hold.
func TestLastHeaderCounts(t *testing.T) {
	s := Defaults("billing-app")
	rec := record.Record{Headers: append([]record.Header{{Key: HeaderAt}, {Key: HeaderID, Value: []byte("\xff")}},
		headers(HeaderAction, "POSTPONE", HeaderTo, "a b", HeaderAt, "tomorrow", HeaderTo, "t", HeaderID, "i", HeaderAction, "REPLACE", HeaderAt, later, "tenant", "a", "tenant", "b")...)}
	st := s.Distribute([]record.Record{rec}, someDay)
	if len(st.Outcomes) > 0 {
		t.Fatalf("%+v: %s", st.Outcomes, st.Outputs[0].Value)
	}
	got := fmt.Sprintf("%q", st.Outputs[0].Headers)
	want := `[{"tenant" "a"} {"tenant" "b"} {"x-scheduler-action" "REPLACE"} {"x-scheduler-request-id" "i"} {"x-scheduler-deliver-to" "t"} ` +
		`{"x-scheduler-deliver-at" "1772355600"} {"x-scheduler-source" "0@0@0"}]`
	if got != want {
		t.Errorf("headers %s,\nwant    %s", got, want)
	}
}

// Whoever repairs rejected requests needs their bytes back.
func TestRejectionValue(t *testing.T) {
	s := Defaults("a")
	for encoding, value := range map[string][]byte{
		"null": nil, "json": []byte("{\"a\" :\n<1>}"), "text": []byte("{<"), "base64": {0xff, 0}, "omitted": bytes.Repeat([]byte("x"), s.RowBytes),
	} {
		if encoding == "json" {
			value = []byte("{\"a\" :\n\"<1>\"}")
		}
		st := s.Distribute([]record.Record{{Value: value}}, someDay)
		var doc struct {
			Value         json.RawMessage
			ValueEncoding string
			ValueBytes    int
		}
		if err := json.Unmarshal(st.Outputs[0].Value, &doc); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"null": "null", "json": string(value), "text": `"{<"`, "base64": `{"base64":"` + base64.StdEncoding.EncodeToString(value) + `"}`, "omitted": "null",
		}[encoding]
		if doc.ValueEncoding != encoding || string(doc.Value) != want || encoding == "omitted" && doc.ValueBytes != s.RowBytes {
			t.Errorf("%s: %.300s", encoding, st.Outputs[0].Value)
		}
	}
}

// What a client asks for has to survive the way through the actions, bytes and all.
func TestAction(t *testing.T) {
	s := Defaults("billing-app")
	s.Partitions, s.Cron = 4, true
	rec := record.Record{
		Partition: 3, Offset: 9, Timestamp: 1772351000123, Key: []byte("inv-77"), Value: []byte(`{"invoice":77}`),
		Headers: append(headers("tenant", "acme", HeaderTo, "reminders", HeaderAt, "2026-03-01T09:00:00.750+01:00", HeaderID, "rem-77", "tenant", "", HeaderSource, "junk", HeaderFire, "1"),
			record.Header{Key: "null"}, record.Header{Key: "binary", Value: []byte{0xff}}, record.Header{Key: "x-scheduler-other", Value: []byte("kept")}),
	}
	st := s.Distribute([]record.Record{rec}, someDay)
	out := st.Outputs[0]
	if out.Topic != "billing-app-schedule-actions" || out.Partition != 1 || out.Timestamp != rec.Timestamp || !bytes.Equal(out.Value, rec.Value) {
		t.Errorf("%+v", out)
	}
	got := fmt.Sprintf("%q", out.Headers)
	want := `[{"tenant" "acme"} {"tenant" ""} {"null" ""} {"binary" "\xff"} {"x-scheduler-other" "kept"} {"x-scheduler-action" "ADD"} ` +
		`{"x-scheduler-request-id" "rem-77"} {"x-scheduler-deliver-to" "reminders"} {"x-scheduler-deliver-at" "1772352000.750"} {"x-scheduler-source" "3@9@1772351000123"}]`
	if got != want {
		t.Errorf("headers %s,\nwant    %s", got, want)
	}
	r1, problems1 := parse(&rec, false)
	r2, problems2 := parse(&record.Record{Partition: out.Partition, Offset: 1, Timestamp: out.Timestamp, Key: out.Key, Value: out.Value, Headers: out.Headers}, true)
	if len(problems1)+len(problems2) > 0 || !reflect.DeepEqual(r1, r2) {
		t.Errorf("%+v %v,\n%+v %v", r1, problems1, r2, problems2)
	}
	// One of the original: whole seconds, no source.
	r3, problems := parse(&record.Record{Partition: 1, Offset: 5, Headers: headers(HeaderAction, "ADD", HeaderTo, "t", HeaderAt, "1772352000")}, true)
	if len(problems) > 0 || r3.Due != 1772352000000 || r3.Source != (Source{-2, 5, 0}) {
		t.Errorf("%+v %v", r3, problems)
	}
}

// No record that anybody writes may stop the scheduler or vanish: it is an action or a rejection, and the action means the same.
func FuzzRequest(f *testing.F) {
	f.Add("ADD", "t", later, "id", "", "", "k", []byte("v"), int64(5))
	f.Add("CRON_ADD", "t", "", "id", "*/5 * * * *", "Europe/Berlin", "", []byte(nil), int64(0))
	f.Add("CANCEL", "", "", "id", "", "", "", []byte{0xff}, int64(-1))
	f.Add("REPLACE", "t", "2026-W21-7T12:30:00.5+02", "id", "", "", "x-scheduler-fire", []byte("{}"), int64(1))
	s := Defaults("a")
	s.Cron = true
	f.Fuzz(func(t *testing.T, verb, to, at, id, expression, zone, name string, value []byte, offset int64) {
		rec := record.Record{
			Offset: offset & (1<<62 - 1), Key: []byte(id), Value: value,
			Headers: headers(HeaderAction, verb, HeaderTo, to, HeaderAt, at, HeaderID, id, HeaderExpression, expression, HeaderZone, zone, name, at),
		}
		st := s.Distribute([]record.Record{rec}, someDay)
		if len(st.Outputs) != 1 {
			t.Fatalf("%+v", st)
		}
		out := st.Outputs[0]
		if out.Topic == s.Rejections {
			if !json.Valid(out.Value) || len(st.Outcomes) != 1 {
				t.Fatalf("%s", out.Value)
			}
			return
		}
		a, problems := parse(&record.Record{Key: out.Key, Value: out.Value, Headers: out.Headers, Partition: out.Partition}, true)
		r, _ := parse(&rec, false)
		if verbs[r.Verb].at == false {
			r.Due, r.Topic = 0, a.Topic
		}
		if verbs[r.Verb].expression == false {
			r.Expression, r.Zone, r.Skip = "", "", false
		}
		if verbs[r.Verb].to {
			a.Topic = to
		}
		if len(problems) > 0 || !reflect.DeepEqual(a, r) {
			t.Fatalf("action %+v %v,\nrequest %+v", a, problems, r)
		}
	})
}

// An action is read, whoever wrote it.
func FuzzAction(f *testing.F) {
	f.Add("ADD", "1772352000", "1@2@3", "1772352000.001")
	f.Add("CRON_RESUME", "-0.001", "-1@0@0", "x")
	s := Defaults("a")
	s.Cron = true
	f.Fuzz(func(t *testing.T, verb, at, source, expires string) {
		rec := record.Record{Headers: headers(HeaderAction, verb, HeaderTo, "t", HeaderAt, at, HeaderID, "i", HeaderSource, source, HeaderExpires, expires)}
		st, err := s.Intake(memory(t), []record.Record{rec}, someDay)
		if err != nil || len(st.Outcomes) != 1 {
			t.Fatalf("%+v, %v", st, err)
		}
		if _, err := parseSeconds(at); err == nil && formatSeconds(mustSeconds(at)) == "" {
			t.Fatal(at)
		}
	})
}

func mustSeconds(text string) int64 {
	ms, err := parseSeconds(text)
	if err != nil {
		panic(err)
	}
	return ms
}

// A time is read to the millisecond it is written as, or not at all.
func FuzzInstant(f *testing.F) {
	for _, text := range []string{later, "20260524T123000Z", "2026-W21-7", "2026-05-24 12:30", "2026-03-01T09:00:00.7501+01:00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ms, err := parseInstant(text)
		if err != nil {
			return
		}
		if ms < earliest || ms > latest {
			t.Fatalf("%q is %d", text, ms)
		}
		if y := time.UnixMilli(ms).UTC().Year(); y > 0 && y < 10000 {
			if again, err := parseInstant(stamp(ms)); err != nil || again != ms {
				t.Fatalf("%q is %d, which is %q, which is %d, %v", text, ms, stamp(ms), again, err)
			}
		}
		if again, err := parseSeconds(formatSeconds(ms)); err != nil || again != ms {
			t.Fatalf("%q is %d, as an action %q: %d, %v", text, ms, formatSeconds(ms), again, err)
		}
	})
}

// A garbled row is an error, never a panic or half a message.
func FuzzRows(f *testing.F) {
	m := Message{Due: 5, Expires: noExpiry, ID: "i", Topic: "t", Key: []byte{}, Headers: []record.Header{{Key: "h"}}}
	f.Add(m.encode())
	f.Add((&firing{"c", 3}).encode())
	f.Add((&idRow{State: sent}).encode())
	f.Add((&cronRow{State: paused, Expression: "@daily"}).encode())
	f.Add((&head{Seq: 4}).encode())
	f.Add(encodeForget([][]byte{[]byte("ix"), nil}))
	f.Add(encodeSource(Source{1, 2, 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, err error, again func() any, value any) {
			if err == nil && !reflect.DeepEqual(again(), value) {
				t.Fatalf("%s of %x: %+v, again %+v", what, b, value, again())
			}
		}
		msg, fire, err := decodeMessage(Location{}, b)
		switch {
		case err == nil && msg != nil:
			same("message", err, func() any { m, _, _ := decodeMessage(Location{}, msg.encode()); return m }, msg)
		case err == nil:
			same("firing", err, func() any { _, f, _ := decodeMessage(Location{}, fire.encode()); return f }, fire)
		}
		id, err := decodeID(b)
		same("id", err, func() any { r, _ := decodeID(id.encode()); return r }, id)
		c, err := decodeCron(b)
		same("cron", err, func() any { r, _ := decodeCron(c.encode()); return r }, c)
		list, err := decodeForget(b)
		same("list", err, func() any { r, _ := decodeForget(encodeForget(list)); return r }, list)
		if b != nil {
			h, err := decodeHead(b)
			same("head", err, func() any { r, _ := decodeHead(h.encode()); return r }, h)
		}
	})
}
