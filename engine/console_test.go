package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
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
