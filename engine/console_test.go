package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// A flood of failures with large records must not fill the memory, and the last ones must be the ones that are shown.
func TestFailuresAreBounded(t *testing.T) {
	var l failures
	big := bytes.Repeat([]byte("é"), shownBytes)
	for i := range 3 * failuresMax {
		r := record.Record{Topic: "in", Offset: int64(i), Key: []byte{0xff, 0}, Value: big}
		for h := range 2 * shownHeaders {
			r.Headers = append(r.Headers, record.Header{Key: fmt.Sprint(h)})
		}
		l.add("orders", "skip", &r, &record.Failure{Kind: record.FailureCode, Type: "KeyError", Traceback: string(big)}, time.Now())
	}
	list := l.last()
	if len(list) != failuresMax || list[0].Record.Offset != 3*failuresMax-1 || list[failuresMax-1].Record.Offset != 2*failuresMax {
		t.Fatalf("%d failures, from %d to %d", len(list), list[0].Record.Offset, list[len(list)-1].Record.Offset)
	}
	f := list[0]
	if v := f.Record.Value; len(v.Text) != shownBytes || v.Size != 2*shownBytes || strings.Contains(v.Text, "\uFFFD") {
		t.Errorf("%d of %d bytes of the value are kept", len(v.Text), v.Size)
	}
	if f.Record.Key.Base64 != "/wA=" || len(f.Record.Headers) != shownHeaders || f.Record.More != shownHeaders || len(f.Traceback) > shownBytes {
		t.Errorf("%+v", f.Record)
	}
	if f.Record.Headers[0].Value != nil {
		t.Error("a null header is shown as something")
	}
	odd := append(bytes.Repeat([]byte("a"), shownBytes-1), "é"...)
	if got := shownOf(odd); len(got.Text) != shownBytes-1 {
		t.Errorf("a text cut in a character is shown as %d bytes, base64 %q", len(got.Text), got.Base64)
	}
}

// People page through a table: every key comes once, in every partition that is here, and a search finds what lies behind the first page.
func TestTablePages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, nil, plan.Agent{}, limits{}, true)
		x := newTablesFixture(t)
		b.app.tables = x.tables
		b.app.plan.Tables = x.tables.plan
		c := newConsole(b.app)
		if _, err := c.Table(t.Context(), "users", "", ""); !errors.Is(err, apphttp.ErrNotReady) {
			t.Errorf("before the start: %v", err)
		}
		b.app.seen.running.Store(true)
		var all []any
		for i := range 120 {
			all = append(all, fmt.Sprintf("key%03d=value%d", i, i))
		}
		x.append("users-log", 2, all[:70]...)
		x.append("users-log", 1, all[70:]...)
		for _, n := range []int32{1, 2} {
			x.Acquire(n, []int{users}, nil)
			x.ready(n, users)
		}
		pages := func(search string) (entries []tableEntry, n int) {
			from := ""
			for {
				got, err := c.Table(t.Context(), "users", search, from)
				if err != nil {
					t.Fatal(err)
				}
				page := got.(tablePage)
				if len(page.Entries) > pageEntries {
					t.Errorf("%d entries in a page", len(page.Entries))
				}
				entries, from, n = append(entries, page.Entries...), page.Next, n+1
				if from == "" {
					return entries, n
				}
			}
		}
		entries, n := pages("")
		seen := map[string]int{}
		for _, e := range entries {
			seen[e.Key.Text+"="+e.Value.Text]++
		}
		for _, kv := range all {
			if seen[kv.(string)] != 1 {
				t.Errorf("%s is there %d times", kv, seen[kv.(string)])
			}
		}
		if len(entries) != len(all) || n < 3 {
			t.Errorf("%d entries in %d pages", len(entries), n)
		}
		if found, _ := pages("value66"); len(found) != 1 || found[0].Key.Text != "key066" || found[0].Partition != 2 {
			text, _ := json.Marshal(found)
			t.Errorf("found %s", text)
		}
		if _, err := c.Table(t.Context(), "nobody", "", ""); !errors.Is(err, apphttp.ErrUnknown) {
			t.Errorf("a table that is not there: %v", err)
		}
		if _, err := c.Table(t.Context(), "users", "", "AAA"); !errors.Is(err, apphttp.ErrBadRequest) {
			t.Errorf("no place: %v", err)
		}
		if got, err := c.Table(t.Context(), "users", "", cursor(1<<30, nil)); err != nil || len(got.(tablePage).Entries) != 0 {
			t.Errorf("a partition that is not there: %v %v", got, err)
		}
	})
}

// unready is a partition that moves.
type unready struct{ scheduler.Reader }

func (unready) Get([]byte) ([]byte, error) { return nil, wasmhost.ErrNotReady }
func (unready) Scan([]byte, []byte) scheduler.Iterator {
	return &askedIterator{err: wasmhost.ErrNotReady}
}

// People page through what waits: every message comes once, in the order of times over all partitions, also where some are so large that one
// look does not get as many, and every cron once by its id. A partition that nobody can be asked for is named.
func TestScheduledPages(t *testing.T) {
	const partitions = 3
	settings := scheduler.Defaults("app")
	settings.Cron = true
	now := time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	tables := []scheduler.Reader{}
	offset := int64(0)
	var want, crons []string
	for range partitions {
		store, err := mem.New().Open(plan.ScheduleTable, 0)
		if err != nil {
			t.Fatal(err)
		}
		tables = append(tables, rows{state.NewStaged(store)})
	}
	request := func(number int, value []byte, headers ...string) {
		t.Helper()
		r := scheduleRequest(offset, now, append(headers, "source", fmt.Sprintf("0@%d@%d", offset, now.UnixMilli()))...)
		r.Value = value
		offset++
		staged := tables[number].(rows).Reader.(*state.Staged)
		st, err := settings.Intake(rows{staged}, []record.Record{r}, now)
		if err != nil || len(st.Outcomes) != 1 || st.Outcomes[0].Verdict != scheduler.Accepted {
			t.Fatalf("%+v, %v", st.Outcomes, err)
		}
		for _, c := range st.Changes {
			staged.Stage([]state.Change{{Key: c.Key, Value: c.Value}})
		}
	}
	for i := range 170 { // three at each time, in partitions that have nothing to do with the order
		id, value := fmt.Sprintf("m%03d", i), []byte("v")
		if i >= 20 && i < 24 {
			value = make([]byte, 600<<10)
		}
		due := now.Add(time.Hour + time.Duration(i/3)*time.Second)
		request((i*i+i/7)%partitions, value, "action", "ADD", "deliver-to", "out", "deliver-at", fmt.Sprint(due.Unix()), "request-id", id)
		want = append(want, fmt.Sprintf("%d/%d", due.UnixMilli(), (i*i+i/7)%partitions))
	}
	for i := range 120 {
		crons = append(crons, fmt.Sprintf("c%03d", i))
		request(i*7%partitions, nil, "action", "CRON_ADD", "deliver-to", "out", "request-id", crons[i], "cron-expr", "0 0 1 1 *")
		want = append(want, fmt.Sprintf("%d/%d", time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli(), i*7%partitions))
	}
	slices.Sort(want)
	table := func(number int32) scheduler.Reader { return tables[number] }
	pages := func(page func(int32, func(int32) scheduler.Reader, string) (any, error)) (all []scheduledPage) {
		for after := ""; len(all) == 0 || after != ""; {
			got, err := page(partitions, table, after)
			if err != nil || len(all) > 100 {
				t.Fatal(len(all), err)
			}
			p := got.(scheduledPage)
			all, after = append(all, p), p.Next
		}
		return all
	}
	var times, ids []string
	seen := map[string]bool{}
	for _, p := range pages(messagesPage) {
		if len(p.Messages) > pageEntries || len(p.Messages) == 0 || len(p.Missing) > 0 {
			t.Errorf("a page has %d messages, misses %v", len(p.Messages), p.Missing)
		}
		for _, m := range p.Messages {
			times = append(times, fmt.Sprintf("%d/%d", m.Due, m.Partition))
			if what := m.ID + "," + m.Cron; seen[what] || seen[m.Place] || what == "," {
				t.Errorf("%s at %s is there twice", what, m.Place)
			} else {
				seen[what], seen[m.Place] = true, true
			}
		}
	}
	if !slices.Equal(times, want) {
		t.Errorf("messages:\n%v\nwant\n%v", times, want)
	}
	list := pages(cronsPage)
	for _, p := range list {
		for _, c := range p.Crons {
			ids = append(ids, c.ID)
		}
	}
	if !slices.Equal(ids, crons) || len(list) != 3 || len(list[0].Crons) != pageEntries {
		t.Errorf("crons in %d pages: %v", len(list), ids)
	}
	tables[1] = unready{}
	for _, page := range []func(int32, func(int32) scheduler.Reader, string) (any, error){messagesPage, cronsPage} {
		got, err := page(partitions, table, "")
		if p, _ := got.(scheduledPage); err != nil || len(p.Messages)+len(p.Crons) == 0 || !slices.Equal(p.Missing, []int32{1}) {
			t.Errorf("while a partition moves: %+v, %v", p.Missing, err)
		}
	}
	if _, err := messagesPage(partitions, table, "1:2"); !errors.Is(err, apphttp.ErrBadRequest) {
		t.Errorf("no place: %v", err)
	}
}

// A place among messages comes from outside.
func FuzzPlace(f *testing.F) {
	f.Add("1772352000000:2:7")
	f.Add("-1:0:18446744073709551615")
	f.Add("1:-1:0")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePlace(text)
		if err != nil {
			return
		}
		if again, err := parsePlace(p.String()); err != nil || again != p || p.number < 0 {
			t.Errorf("%q comes back as %+v, %v", text, again, err)
		}
	})
}

// A place in a table comes from outside.
func FuzzCursor(f *testing.F) {
	f.Add("")
	f.Add(cursor(3, []byte("key")))
	f.Add("gAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		number, after, err := parseCursor(text)
		if err == nil && number < 0 {
			t.Errorf("partition %d", number)
		}
		if err == nil && text != "" {
			if again, key, err := parseCursor(cursor(number, after)); err != nil || again != number || !bytes.Equal(key, after) {
				t.Errorf("%d %q comes back as %d %q, %v", number, after, again, key, err)
			}
		}
	})
}

// A task must not take the place of an agent in what the console shows, nor end the process that is looked at. What is drawn of it are the tables
// that its code reads, not the one where the leader keeps what it ran.
func TestOverviewOfTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := testLane(t, nil, plan.Agent{}, limits{}, true)
		x := newTablesFixture(t)
		b.app.tables, b.app.plan.Tables = x.tables, append(slices.Clone(x.tables.plan), plan.Table{Name: plan.TaskTable})
		for i := range b.app.plan.Tables {
			b.app.plan.Tables[i].Guest.Name = b.app.plan.Tables[i].Name
		}
		ran := []plan.TableUse{{Table: len(x.tables.plan)}}
		for _, p := range []plan.Agent{
			{Name: "nightly", Task: &plan.Task{Tables: []plan.TableUse{{Table: users}}}, Tables: ran, Topics: []string{"leader"}},
			{Name: "orders", Topics: []string{"in"}, Tables: []plan.TableUse{{Table: rates}}},
		} {
			ag := newAgent(b.app, &p)
			ag.stats.Records.Add(int64(len(b.app.agents) + 3))
			b.app.agents = append(b.app.agents, ag)
		}
		b.app.seen.running.Store(true)
		o := newConsole(b.app).Overview().(overview)
		got := ""
		for _, p := range o.Parts {
			got += fmt.Sprintln(p.Agent, p.Records, p.Inputs, p.Tables)
		}
		for _, t := range o.TableList {
			got += fmt.Sprintln(t.Name, t.Internal)
		}
		if want := "KasprTask/nightly 3 [] [users]\norders 4 [in] [rates]\nusers false\nrates false\n_tasks true\n"; got != want {
			t.Errorf("parts:\n%s\nwant\n%s", got, want)
		}
	})
}

// A request to a web view that fails is among the errors, as a record would be; its query and headers, where tokens and cookies are, are not kept.
func TestFailedRequestsAreShown(t *testing.T) {
	b := testLane(t, nil, plan.Agent{}, limits{}, true)
	v := newView(b.app, &plan.View{Name: "total", Program: abi.Program{View: &abi.View{ContentType: "text/plain"}}})
	req := &apphttp.Request{
		Head: []byte("POST\nhttp\n127.0.0.1\n/totals/%3Cb%3E\ntoken=secret\n1\nAuthorization:Bearer secret\nCookie:secret\n"), Body: []byte(`{"a": 1}`),
	}
	v.failed(req, &record.Failure{Kind: record.FailureCode, Operation: "look", Type: "KeyError", Message: "'b'", Traceback: "app.yaml:7"}, apphttp.Response{})
	v.failed(req, &record.Failure{Kind: record.FailureCode, Type: abi.HTTPError}, apphttp.Response{Status: 404}) // the code's answer, and no failure
	list := b.app.failures.last()
	text, err := json.Marshal(list)
	if err != nil || len(list) != 1 {
		t.Fatalf("%s, %v", text, err)
	}
	f := list[0]
	if f.Agent != "KasprWebView/total" || f.Operation != "look" || f.Type != "KeyError" || f.Traceback != "app.yaml:7" || f.Record != nil || f.Request == nil {
		t.Fatalf("%s", text)
	}
	if r := *f.Request; r.Method != "POST" || r.Path != "/totals/%3Cb%3E" || r.Body.Text != `{"a": 1}` || r.Status != 500 {
		t.Errorf("%+v", r)
	}
	if strings.Contains(string(text), "secret") {
		t.Errorf("credentials are kept: %s", text)
	}
}

// People search for what they read, not for what JSON makes of it.
func TestSearchOfEscapedText(t *testing.T) {
	for text, stored := range map[string]string{
		"Zoë": `{"name":"Zo\u00eb"}`, "ë": "Zoë", `a "b"`: `["a \"b\""]`, "": "", "u00eb": `"\u00eb"`,
	} {
		if !searchOf(text)([]byte(stored)) {
			t.Errorf("%q is not found in %s", text, stored)
		}
	}
	if searchOf("zoo")([]byte(`"Zoë"`)) {
		t.Error("found what is not there")
	}
}
