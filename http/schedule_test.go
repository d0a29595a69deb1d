package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	nethttp "net/http"
	"strings"
	"testing"
	"time"
)

func (*fakeAdmin) Schedule(q ScheduleQuery) (int, any) { return 200, fmt.Sprint(q) }

func (a *fakeAdmin) Steer(_ context.Context, c ScheduleChange) (string, error) {
	switch c.RequestID {
	case "bad":
		return "", ErrBadChange
	case "down":
		return "", errors.New("no broker")
	}
	a.changes = append(a.changes, c)
	return "requests/0@" + c.RequestID, nil
}

// A change over HTTP must be what was meant, or be refused: one that is misread cancels or delivers something else.
func TestScheduleChange(t *testing.T) {
	s, admin := serveAdmin(t, "secret")
	post := func(token, body string) (int, string) {
		t.Helper()
		req, err := nethttp.NewRequestWithContext(t.Context(), "POST", "http://"+s.Addr()+"/schedule", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := nethttp.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if code, _ := post("wrong", `{"action":"CANCEL","requestId":"a"}`); code != 401 {
		t.Errorf("without the token: %d", code)
	}
	for _, c := range []struct {
		body string
		code int
		text string
	}{
		{`{"action":"CANCEL","requestId":"a"}`, 202, `{"request":"requests/0@a"}`},
		{`{"action":"REPLACE","requestId":"b","deliverTo":"out","deliverAt":"2030-01-01","key":"","value":"text","headers":{"h":"1"}}`, 202, "@b"},
		{`{"action":"REPLACE","requestId":"c","deliverTo":"out","deliverAt":"2030-01-01","value":{"n": 1}}`, 202, "@c"},
		{`{"action":"REPLACE","requestId":"d","deliverTo":"out","deliverAt":"2030-01-01","value":null}`, 202, "@d"},
		{`{"action":"CRON_PAUSE","requestId":"e"}`, 202, "@e"},
		{`{"action":"CRON_RESUME","requestId":"f"}`, 202, "@f"},
		{`{"action":"CANCEL","requestId":"bad"}`, 400, "not a change"},
		{`{"action":"CANCEL","requestId":"down"}`, 503, "no broker"},
		{``, 400, "JSON"},
		{`{`, 400, "JSON"},
		{`[]`, 400, "JSON"},
		{`{"action":"CANCEL","requestId":"a"} {}`, 400, "something follows"},
		{`{"action":"CANCEL","requestId":"a","id":"b"}`, 400, "id"},
		{`{"action":"cancel","requestId":"a"}`, 400, "action is"},
		{`{"action":"CANCEL"}`, 400, "requestId is needed"},
		{`{"action":"CANCEL","requestId":"a","value":1}`, 400, "requestId only"},
		{`{"action":"REPLACE","requestId":"a","deliverTo":"out"}`, 400, "deliverAt"},
	} {
		if code, text := post("secret", c.body); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %s, want %d %s", c.body, code, text, c.code, c.text)
		}
	}
	if len(admin.changes) != 6 {
		t.Fatalf("%d changes", len(admin.changes))
	}
	b, c, d := admin.changes[1], admin.changes[2], admin.changes[3]
	if string(b.ValueBytes()) != "text" || *b.Key != "" || b.Headers["h"] != "1" || string(c.ValueBytes()) != `{"n": 1}` || c.Key != nil || d.ValueBytes() != nil {
		t.Errorf("read as %+v, %+v, %+v", b, c, d)
	}
	if code, text := askAdmin(t, s, "GET", "/schedule?list=crons&limit=7&after=x", "Authorization", "Bearer secret"); code != 200 || !strings.Contains(text, "true x 7") {
		t.Errorf("list: %d %s", code, text)
	}
	if code, _ := askAdmin(t, s, "DELETE", "/schedule", "Authorization", "Bearer secret"); code != 405 {
		t.Errorf("DELETE: %d", code)
	}
}

// What waits is data: on webPort it is told to those who may call views, and nothing of it to others.
func TestScheduleAccess(t *testing.T) {
	asked := 0
	show := func(ScheduleQuery) (int, any) { asked++; return 200, "rem-77" }
	for token, want := range map[string]int{"": 401, "wrong": 401, "secret": 200} {
		s := serveViews(t, Options{Token: "secret", Schedule: show})
		for _, path := range []string{"/schedule", "/schedule?id=rem-77", "/schedule?limit=no", "//schedule", "/a/../schedule"} {
			asked = 0
			code, body, err := AskAs(token, s.Addr(), path, 10*time.Second, nil)
			if err != nil {
				t.Fatal(err)
			}
			if want == 401 && (code != 401 || asked > 0 || strings.Contains(string(body), "rem-77")) || want == 200 && code == 401 {
				t.Errorf("%s with the token %q: %d %s", path, token, code, body)
			}
		}
	}
	if code, body, err := Ask(serveViews(t, Options{Schedule: show}).Addr(), "/schedule", 10*time.Second, nil); code != 200 || err != nil {
		t.Errorf("where no token is asked for: %d %s %v", code, body, err)
	}
}

// The buttons of the console change the schedule; a page of elsewhere, or whoever has no token, must not.
func TestScheduleFromThePage(t *testing.T) {
	for _, token := range []string{"", "secret"} {
		s, admin := serveAdmin(t, token)
		own := "http://" + s.Addr()
		for _, c := range []struct {
			origin, host, token string
			code                int
		}{
			{own, "", token, 202},
			{"", "", token, 202}, // no browser
			{"http://evil.example", "", token, 403},
			{"null", "", token, 403},
			{own + ".evil.example", "", token, 403},
			{"https://" + s.Addr(), "", token, 403},
			{"http://evil.example", "evil.example", "", map[string]int{"": 403, "secret": 401}[token]}, // a name that was made to resolve to here
			{own, "", "wrong", map[string]int{"": 202, "secret": 401}[token]},
			{own, "", "", map[string]int{"": 202, "secret": 401}[token]},
		} {
			req, err := nethttp.NewRequestWithContext(t.Context(), "POST", own+"/schedule", strings.NewReader(`{"action":"CRON_PAUSE","requestId":"daily"}`))
			if err != nil {
				t.Fatal(err)
			}
			if c.origin != "" {
				req.Header.Set("Origin", c.origin)
			}
			if c.token != "" {
				req.Header.Set("Authorization", "Bearer "+c.token)
			}
			req.Host = c.host
			before := len(admin.changes)
			resp, err := nethttp.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if done := len(admin.changes) - before; resp.StatusCode != c.code || done != map[bool]int{true: 1}[c.code == 202] {
				t.Errorf("token %q: %+v: %d, %d changes", token, c, resp.StatusCode, done)
			}
		}
	}
}

func FuzzScheduleChange(f *testing.F) {
	f.Add([]byte(`{"action":"REPLACE","requestId":"b","deliverTo":"out","deliverAt":"2030-01-01","key":"","value":"text","headers":{"h":"1"}}`))
	f.Add([]byte(`{"action":"CANCEL","requestId":"a"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, wrong := parseChange(body)
		if wrong == "" && (c.RequestID == "" || c.Action == "REPLACE" && (c.DeliverTo == "" || c.DeliverAt == "")) {
			t.Errorf("accepted %s", body)
		}
		_ = c.ValueBytes()
	})
}
