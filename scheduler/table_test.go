package scheduler

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// memory is an empty partition of the table.
func memory(t testing.TB) view {
	t.Helper()
	store, err := mem.New().Open("timetable", 0)
	if err != nil {
		t.Fatal(err)
	}
	return view{state.NewStaged(store)}
}

// lay puts the changes of a step over the table.
func (v view) lay(st Step) Step {
	changes := make([]state.Change, len(st.Changes))
	for i, c := range st.Changes {
		changes[i] = state.Change{Key: c.Key, Value: c.Value}
	}
	v.Stage(changes)
	return st
}

// host is one partition that is served at once, on a clock that the test sets.
type host struct {
	t     *testing.T
	s     Settings
	table view
	now   time.Time
	next  int64
}

func newHost(t *testing.T) *host {
	s := Defaults("billing-app")
	s.Cron, s.Partitions = true, 1
	return &host{t: t, s: s, table: memory(t), now: someDay}
}

// ask sends a request through both stages and says what became of it.
func (h *host) ask(value string, pairs ...string) string {
	h.t.Helper()
	rec := record.Record{Offset: h.next, Timestamp: h.now.UnixMilli(), Value: []byte(value), Headers: headers(pairs...)}
	h.next++
	st := h.s.Distribute([]record.Record{rec}, h.now)
	if len(st.Outcomes) == 0 {
		out := st.Outputs[0]
		var err error
		st, err = h.s.Intake(h.table, []record.Record{{Offset: h.next, Timestamp: out.Timestamp, Key: out.Key, Value: out.Value, Headers: out.Headers}}, h.now)
		if err != nil {
			h.t.Fatal(err)
		}
		h.table.lay(st)
	}
	return said(st.Outcomes)
}

func said(outcomes []Outcome) string {
	var list []string
	for _, o := range outcomes {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s %s", o.Verdict, o.Code)))
	}
	return strings.Join(list, ", ")
}

// at moves the clock and returns what is delivered, until there is nothing more.
func (h *host) at(clock string) (values []string) {
	h.t.Helper()
	at, err := time.Parse(time.RFC3339Nano, "2026-03-01T"+clock+"Z")
	if err != nil {
		h.t.Fatal(err)
	}
	h.now = at
	for {
		st, err := h.s.Dispatch(h.table, nil, h.now)
		if err != nil {
			h.t.Fatal(err)
		}
		h.table.lay(st)
		for _, o := range st.Outputs {
			if o.Record >= 0 {
				text := string(o.Value)
				for _, x := range o.Headers {
					text += fmt.Sprintf(" %s=%s", x.Key, x.Value)
				}
				values = append(values, text)
			}
		}
		if st.Wake.IsZero() || st.Wake.After(h.now) {
			return values
		}
	}
}

func (h *host) expect(what string, got, want any) {
	h.t.Helper()
	if g, w := fmt.Sprintf("%q", got), fmt.Sprintf("%q", want); g != w {
		h.t.Errorf("%s: %s, want %s", what, g, w)
	}
}

// The examples of the specification, as its requirements want them to go.
func TestExamples(t *testing.T) {
	none := []string(nil)
	t.Run("E1 add", func(t *testing.T) {
		h := newHost(t)
		h.expect("add", h.ask(`{"invoice":77}`, HeaderTo, "reminders", HeaderAt, "2026-03-01T09:00:00.750+01:00", HeaderID, "rem-77", "tenant", "acme"), "accepted")
		h.expect("early", h.at("08:00:00.749"), none)
		h.expect("due", h.at("08:00:00.750"), []string{`{"invoice":77} tenant=acme`})
		h.expect("again", h.at("09:00:00"), none)
		h.expect("cancel", h.ask("", HeaderAction, "CANCEL", HeaderID, "rem-77"), "unchanged ALREADY_SENT")
	})
	t.Run("E2 cancel", func(t *testing.T) {
		h := newHost(t)
		for _, n := range []string{"1", "2", "3"} {
			h.expect("add", h.ask(n, HeaderTo, "t", HeaderAt, later, HeaderID, n), "accepted")
		}
		h.expect("cancel", h.ask("", HeaderAction, "CANCEL", HeaderID, "1"), "cancelled")
		h.expect("cancel", h.ask("", HeaderAction, "CANCEL", HeaderID, "1"), "unchanged NOT_FOUND")
		h.expect("due", h.at("09:00:00"), []string{"2", "3"})
	})
	t.Run("E3 replace", func(t *testing.T) {
		h := newHost(t)
		h.expect("add", h.ask("1", HeaderTo, "t", HeaderAt, later, HeaderID, "r"), "accepted")
		h.expect("add", h.ask("1", HeaderTo, "t", HeaderAt, later, HeaderID, "r"), "unchanged SAME")
		h.expect("add", h.ask("2", HeaderTo, "t", HeaderAt, later, HeaderID, "r"), "rejected DUPLICATE_ID")
		replace := []string{HeaderAction, "REPLACE", HeaderTo, "t", HeaderAt, "2026-03-01T10:00:00Z", HeaderID, "r"}
		h.expect("replace", h.ask("1", replace...), "replaced")
		h.expect("replace", h.ask("1", replace...), "unchanged SAME")
		h.expect("old time", h.at("09:59:59"), none)
		h.expect("new time", h.at("10:00:00"), []string{"1"})
		h.expect("replace", h.ask("1", replace...), "unchanged SAME")
		h.expect("another", h.ask("2", HeaderTo, "t", HeaderAt, "2026-03-01T10:30:00Z", HeaderID, "r"), "accepted")
		h.expect("replace to the past", h.ask("3", HeaderAction, "REPLACE", HeaderTo, "t", HeaderAt, "2026-03-01T08:00:00Z", HeaderID, "r"), "replaced")
		h.expect("at once", h.at("10:00:00"), []string{"3"})
		h.expect("and no more", h.at("11:00:00"), none)
	})
	t.Run("E4 past due", func(t *testing.T) {
		h := newHost(t)
		past := []string{HeaderTo, "t", HeaderAt, "2026-03-01T07:58:30Z"}
		h.expect("add", h.ask(`{"invoice":77}`, past...), "accepted")
		h.expect("at once", h.at("08:00:00"), []string{`{"invoice":77}`})
		h.s.RejectPast = true
		h.expect("rejected", h.ask("1", past...), "rejected PAST_DUE")
		h.s.Horizon = time.Hour
		h.expect("far", h.ask("1", HeaderTo, "t", HeaderAt, "2026-03-01T09:00:01Z"), "rejected TOO_FAR")
		h.expect("near", h.ask("1", HeaderTo, "t", HeaderAt, later), "accepted")
	})
	t.Run("E7 clocks", func(t *testing.T) {
		h := newHost(t)
		h.expect("add", h.ask("1", HeaderTo, "t", HeaderAt, "2026-03-01T08:00:03Z"), "accepted")
		h.expect("a clock ahead", h.at("08:00:04"), []string{"1"})
		h.now = someDay
		h.expect("behind the last one", h.ask("2", HeaderTo, "t", HeaderAt, "2026-03-01T08:00:02Z"), "accepted")
		h.expect("not early", h.at("08:00:01.999"), none)
		h.expect("not stranded", h.at("08:00:02"), []string{"2"})
	})
	t.Run("E8 cron", func(t *testing.T) {
		fires := func(clocks ...int) (list []string) {
			for _, hour := range clocks {
				list = append(list, fmt.Sprintf("x x-scheduler-cron-fire-timestamp=%d", someDay.Unix()+int64(hour-8)*3600))
			}
			return list
		}
		all := fires(11, 12, 13)
		for policy, want := range map[string][]string{"skip": nil, "replay": all, "": all, "Skip": all, "other": all} {
			h := newHost(t)
			h.at("10:20:00")
			h.expect("add", h.ask("x", HeaderAction, "CRON_ADD", HeaderTo, "t", HeaderID, "sync", HeaderExpression, "0 * * * *", HeaderPolicy, policy), "accepted")
			h.expect("down 10:55–13:10", h.at("13:10:00"), want)
			h.expect("after", h.at("14:00:00"), fires(14))
			h.expect("pause", h.ask("", HeaderAction, "CRON_PAUSE", HeaderID, "sync"), "paused")
			h.expect("paused", h.at("16:30:00"), none)
			h.expect("resume", h.ask("", HeaderAction, "CRON_RESUME", HeaderID, "sync"), "resumed")
			if policy != "skip" { // whatever else it says
				want = fires(15, 16)
			}
			h.expect("resumed", h.at("16:30:01"), want)
			h.expect("new one", h.ask("y", HeaderAction, "CRON_ADD", HeaderTo, "t", HeaderID, "sync", HeaderExpression, "0 20 * * *"), "replaced")
			h.expect("old one", h.at("19:00:00"), none)
			h.expect("cancel", h.ask("", HeaderAction, "CRON_CANCEL", HeaderID, "sync"), "cancelled")
			h.expect("over", h.at("23:00:00"), none)
		}
	})
	t.Run("expiry", func(t *testing.T) {
		h := newHost(t)
		h.expect("add", h.ask("1", HeaderTo, "t", HeaderAt, later, HeaderExpires, "2026-03-01T09:00:05Z"), "accepted")
		h.expect("add", h.ask("2", HeaderTo, "t", HeaderAt, later, HeaderExpires, "2026-03-01T09:00:06Z"), "accepted")
		h.expect("late", h.at("09:00:05"), []string{"2"})
	})
}

// A second with very many messages must not take the memory or the time of everything else.
func TestHotSecond(t *testing.T) {
	h := newHost(t)
	const n = 20_000
	h.s.BatchMessages = 700
	var batch []record.Record
	for i := range n {
		batch = append(batch, record.Record{Offset: int64(i), Value: fmt.Append(nil, i), Headers: headers(HeaderTo, "t", HeaderAt, "1772352001")})
	}
	st, err := h.s.Intake(h.table, batch, h.now)
	if err != nil {
		t.Fatal(err)
	}
	h.table.lay(st)
	if !st.Wake.Equal(someDay.Add(time.Second)) {
		t.Errorf("the next is due at %s", st.Wake)
	}
	h.now = someDay.Add(time.Second)
	got := 0
	for got < n {
		step, err := h.s.Dispatch(h.table, nil, h.now)
		if err != nil {
			t.Fatal(err)
		}
		if len(step.Messages) == 0 || len(step.Messages) > 700 {
			t.Fatalf("a batch of %d", len(step.Messages))
		}
		for _, o := range step.Outputs {
			if string(o.Value) != fmt.Sprint(got) {
				t.Fatalf("%s after %d", o.Value, got-1)
			}
			got++
		}
		if more := got < n; more != step.Wake.Equal(h.now) {
			t.Fatalf("after %d: wake at %s", got, step.Wake)
		}
		h.table.lay(step)
		h.expect("a request in between", h.ask("x", HeaderTo, "t", HeaderAt, later), "accepted")
	}
	stats, err := Look(h.table, h.now)
	if err != nil || stats.Lag != 0 || stats.Next.Format(time.TimeOnly) == "" || stats.Messages != (n+699)/700 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// With Interleave a message that comes due behind a hot second does not wait for all of it.
func TestInterleave(t *testing.T) {
	for _, interleave := range []bool{false, true} {
		h := newHost(t)
		h.s.Interleave, h.s.BatchMessages = interleave, 10
		for i := range 100 {
			h.ask(fmt.Sprint(i), HeaderTo, "t", HeaderAt, "2026-03-01T08:00:01Z")
		}
		h.ask("new", HeaderTo, "t", HeaderAt, "2026-03-01T08:00:09.5Z")
		h.now = someDay.Add(10 * time.Second)
		st, err := h.s.Dispatch(h.table, nil, h.now)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(st.Outputs, func(o record.Output) bool { return string(o.Value) == "new" })
		if h.table.lay(st); got != interleave {
			t.Errorf("interleave %t: the new message is in the first batch: %t", interleave, got)
		}
		if n := len(h.at("08:00:10")) + len(st.Outputs); n != 101 {
			t.Errorf("interleave %t: %d messages", interleave, n)
		}
	}
}

// What an operator sees has to be what is there.
func TestList(t *testing.T) {
	h := newHost(t)
	h.ask("1", HeaderTo, "t", HeaderAt, later, HeaderID, "a")
	h.ask("2", HeaderTo, "t", HeaderAt, "2026-03-01T08:30:00Z", HeaderID, "b")
	for _, id := range []string{"c2", "c1", "c3"} {
		h.ask("3", HeaderAction, "CRON_ADD", HeaderTo, "t", HeaderID, id, HeaderExpression, "0 0 1 1 *")
	}
	h.ask("", HeaderAction, "CRON_PAUSE", HeaderID, "c3")
	h.ask("", HeaderAction, "CRON_CANCEL", HeaderID, "c2")
	var got []string
	for from, done := Start, false; !done; {
		var rows []Scheduled
		var err error
		if rows, from, done, err = List(h.table, from, 2); err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.Message != nil {
				got = append(got, row.Message.ID)
			} else {
				got = append(got, row.Cron)
			}
		}
	}
	h.expect("list", got, []string{"b", "a", "c1"})
	first, err1 := Crons(h.table, "", 1)
	rest, err2 := Crons(h.table, "c1", 10)
	if err1 != nil || err2 != nil || len(first) != 1 || first[0].ID != "c1" || first[0].Next == 0 || len(rest) != 1 || !rest[0].Paused || rest[0].ID != "c3" {
		t.Errorf("%+v %+v %v %v", first, rest, err1, err2)
	}
	for id, paused := range map[string]bool{"c1": false, "c3": true} {
		if c, err := Cron(h.table, id); err != nil || c == nil || c.ID != id || c.Paused != paused || c.Expression != "0 0 1 1 *" {
			t.Errorf("%s: %+v, %v", id, c, err)
		}
	}
	for _, id := range []string{"c2", "a", "c"} { // cancelled, a message, nothing
		if c, err := Cron(h.table, id); c != nil || err != nil {
			t.Errorf("%s: %+v, %v", id, c, err)
		}
	}
	stats, err := Look(h.table, someDay.Add(40*time.Minute))
	if err != nil || stats.Messages != 3 || stats.Crons != 2 || stats.Lag != 10*time.Minute {
		t.Errorf("%+v, %v", stats, err)
	}
	h.at("08:45:00")
	for id, want := range map[string]string{"a": "pending", "b": "sent", "c": ""} {
		e, err := Get(h.table, id)
		if err != nil || (e == nil) != (want == "") || e != nil && (e.State != want || (e.Message != nil) != (want == "pending")) {
			t.Errorf("%s: %+v, %v", id, e, err)
		}
	}
}

// Whoever asks for results gets one for every request and message, under the id.
func TestResults(t *testing.T) {
	h := newHost(t)
	h.s.Results, h.s.Provenance = "results", true
	st, err := h.s.Intake(h.table, []record.Record{{Offset: 3, Timestamp: 5, Headers: headers(HeaderTo, "t", HeaderAt, "1772352000.250", HeaderID, "a")}}, h.now)
	if err != nil {
		t.Fatal(err)
	}
	h.table.lay(st)
	h.expect("result", string(st.Outputs[0].Key)+" "+string(st.Outputs[0].Value),
		`a {"action":"ADD","at":"2026-03-01T08:00:00.000Z","deliverAt":"2026-03-01T08:00:00.250Z","deliverTo":"t","outcome":"accepted","requestId":"a","source":{"offset":3,"partition":0,"topic":"billing-app-schedule-actions"}}`)
	st, err = h.s.Dispatch(h.table, nil, h.now.Add(time.Second))
	if err != nil || len(st.Outputs) != 2 || st.Outputs[1].Record != -1 {
		t.Fatalf("%+v, %v", st, err)
	}
	h.expect("delivered", fmt.Sprintf("%q", st.Outputs[0].Headers), `[{"x-scheduler-request-id" "a"} {"x-scheduler-due" "2026-03-01T08:00:00.250Z"} {"x-scheduler-sent" "2026-03-01T08:00:01.000Z"} {"x-scheduler-source" "-1@3@5"}]`)
	h.expect("result", string(st.Outputs[1].Value),
		`{"at":"2026-03-01T08:00:01.000Z","deliverAt":"2026-03-01T08:00:00.250Z","deliverTo":"t","outcome":"delivered","requestId":"a","source":{"offset":3,"partition":0,"topic":"billing-app-schedule-actions"}}`)
	var c Counts
	c.Add(st.Outcomes)
	if c.Delivered != 1 {
		t.Errorf("%+v", c)
	}
	long := strings.Repeat("x", 600_000)
	st = h.s.Distribute([]record.Record{{Headers: headers(HeaderTo, long, HeaderID, long, HeaderAction, long)}}, h.now)
	for _, o := range st.Outputs {
		if o.Topic == "results" && len(o.Key)+len(o.Value) > 10_000 || len(o.Key)+len(o.Value) > h.s.RowBytes {
			t.Errorf("a record of %d bytes for %s, which no broker takes", len(o.Key)+len(o.Value), o.Topic)
		}
	}
}

// Every number that a dashboard of the original shows is there, once.
func TestSeries(t *testing.T) {
	c := Counts{
		Scheduled: 1, PastDue: 2, Replaced: 3, Unchanged: 4, Cancelled: 5, Rejected: 6, Delivered: 7, Retried: 8, Expired: 9, Failed: 10,
		CronAdded: 11, CronCancelled: 12, CronPaused: 13, CronResumed: 14, Fired: 15, FiringsMissed: 16, FiringsSkip: 17,
	}
	st := Stats{Messages: 18, Crons: 19, Lag: 20500 * time.Millisecond, Low: Location{Due: 21500, Seq: 22}}
	want := map[string]float64{
		"kms_messages_scheduled_total": 1, "kms_messages_delivered_instant_total": 2, "kms_messages_replaced_total": 3, "kms_messages_replace_noop_total": 4,
		"kms_messages_canceled_total": 5, "kms_messages_rejected_total": 6, "kms_messages_delivered_total": 7, "kms_messages_retried_total": 8,
		"kms_messages_expired_total": 9, "kms_messages_failed_total": 10, "kms_messages_removed_total": 3 + 5 + 9 + 10,
		"kms_cron_registered_total": 11, "kms_cron_canceled_total": 12, "kms_cron_paused_total": 13, "kms_cron_resumed_total": 14,
		"kms_cron_fires_materialized_total": 15, "kms_cron_fires_missed_total": 16, "kms_cron_fires_skipped_total": 17,
		"kms_timetable_size": 18, "kms_cron_registry_size": 19, "kms_last_location_lag": 20.5, "kms_last_location_time": 21.5, "kms_last_location_seq": 22,
	}
	for _, s := range AllSeries {
		value, ok := want[s.Name]
		if !ok || s.Help == "" || strings.HasSuffix(s.Name, "_total") != s.Counter || strings.HasPrefix(s.Name, "kms_last_location") != (s.Type == "D") {
			t.Errorf("%+v, or it is there twice", s)
		}
		if got := s.Value(&c, &st); got != value {
			t.Errorf("%s is %v, want %v", s.Name, got, value)
		}
		delete(want, s.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	st.Low = Location{Due: math.MinInt64}
	for _, s := range AllSeries {
		if s.Name == "kms_last_location_time" && s.Value(&c, &st) != 0 {
			t.Errorf("%s is %v before a delivery", s.Name, s.Value(&c, &st))
		}
	}
}

// Settings that make no sense are refused, all at once.
func TestSettings(t *testing.T) {
	good := Defaults("a")
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := Settings{Requests: "a b", Actions: "a", Rejections: strings.Repeat("x", 250), Results: "..", RetryMax: -1, Horizon: -1}
	err := bad.Validate()
	if err == nil {
		t.Fatal("a zero value is valid")
	}
	if n := len(strings.Split(err.Error(), "\n")); n != 8 {
		t.Errorf("%d problems: %v", n, err)
	}
}

// Which firings count as missed, and how far back they are made up for, is what the settings say; one that is not missed is delivered whatever
// they say.
func TestMissedFirings(t *testing.T) {
	for _, c := range []struct {
		name, policy string
		change       func(*Settings)
		back         string // the clock when the scheduler looks again, after 10:00:30
		want         []string
	}{
		{"replay", "replay", func(*Settings) {}, "10:05:20", []string{"10:01", "10:02", "10:03", "10:04", "10:05"}},
		{"replay, two minutes back", "replay", func(s *Settings) { s.CronReplayBack = 2 * time.Minute }, "10:05:20", []string{"10:04", "10:05"}},
		{"replay, nothing made up", "replay", func(s *Settings) { s.CronReplayBack = 0 }, "10:05:20", []string{"10:05"}},
		{"replay, nothing made up, late by a millisecond", "replay", func(s *Settings) { s.CronReplayBack = 0 }, "10:01:00.001", []string{"10:01"}},
		{"skip", "skip", func(*Settings) {}, "10:05:20", []string{"10:05"}},
		{"skip, later than the interval", "skip", func(*Settings) {}, "10:05:31", nil},
		{"skip, an interval of three minutes", "skip", func(s *Settings) { s.CronGrace = 3 * time.Minute }, "10:05:20", []string{"10:03", "10:04", "10:05"}},
		{"skip, nothing made up", "skip", func(s *Settings) { s.CronReplayBack = 0 }, "10:05:20", []string{"10:05"}},
	} {
		h := newHost(t)
		c.change(&h.s)
		h.at("10:00:30")
		h.expect(c.name+": add", h.ask("x", HeaderAction, "CRON_ADD", HeaderID, "c", HeaderExpression, "* * * * *", HeaderTo, "t", HeaderPolicy, c.policy), "accepted")
		h.expect(c.name, clocks(t, h.at(c.back)), c.want)
	}
}

// clocks are the times that firings say they are for.
func clocks(t *testing.T, values []string) (list []string) {
	t.Helper()
	for _, value := range values {
		at, err := strconv.ParseInt(value[strings.LastIndex(value, "=")+1:], 10, 64)
		if err != nil {
			t.Fatal(value, err)
		}
		list = append(list, time.Unix(at, 0).UTC().Format("15:04"))
	}
	return list
}

// A firing that the broker refused must not be delivered while its cron is paused; afterwards it is made up for, or skipped, as any other.
func TestPausedWhileRefused(t *testing.T) {
	for policy, want := range map[string][]string{"replay": {"10:02", "10:03", "10:04", "10:05"}, "skip": {"10:05"}} {
		h := newHost(t)
		h.at("10:00:30")
		h.expect("add", h.ask("c", HeaderAction, "CRON_ADD", HeaderID, "c", HeaderExpression, "* * * * *", HeaderTo, "t", HeaderPolicy, policy), "accepted")
		h.expect("the first one", len(h.at("10:01:00")), 1)
		h.now = h.now.Add(time.Minute)
		st, err := h.s.Dispatch(h.table, nil, h.now)
		if err != nil || len(st.Messages) != 1 {
			t.Fatal(st, err)
		}
		if st, err = h.s.Dispatch(h.table, []Refusal{{Message: st.Messages[0], Reason: "refused"}}, h.now); err != nil {
			t.Fatal(err)
		}
		h.expect("the second one", said(h.table.lay(st).Outcomes), "retried")
		h.expect("pause", h.ask("", HeaderAction, "CRON_PAUSE", HeaderID, "c"), "paused")
		h.expect("delivered while it is paused", h.at("10:04:30"), []string(nil))
		h.expect("resume", h.ask("", HeaderAction, "CRON_RESUME", HeaderID, "c"), "resumed")
		h.expect("delivered after "+policy, clocks(t, h.at("10:05:00")), want)
	}
}
