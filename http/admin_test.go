package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	nethttp "net/http"
	"strings"
	"testing"
)

type fakeAdmin struct {
	rebalanced int
	changes    []ScheduleChange
}

func (*fakeAdmin) Routes(table string, of Page) (any, string, bool) {
	return map[string]any{"http://a": table}, of.After, table != "none"
}

func (*fakeAdmin) Scan(_ context.Context, table string, of Page) (any, string, error) {
	if table == "none" {
		return nil, "", ErrNoTable
	}
	if of.After == "bad" {
		return nil, "", ErrBadAfter
	}
	return []int{of.Limit}, of.After, nil
}

func (*fakeAdmin) Owner(table, key string) (string, error) {
	if table == "none" {
		return "", ErrNoTable
	}
	return "http://" + key, nil
}

func (*fakeAdmin) Tables(table string, of Page) (any, string, bool) {
	return []string{"t" + table}, of.After, table != "none"
}

func (*fakeAdmin) Value(_ context.Context, table, key string, asJSON bool) ([]byte, error) {
	switch {
	case table == "none":
		return nil, ErrNoTable
	case table == "away":
		return nil, ErrUnavailable
	case table == "window":
		return nil, ErrBadKey
	case table == "broken":
		return nil, errors.New("broken")
	case key == "missing":
		return nil, nil
	case asJSON:
		return []byte(key), nil
	}
	return []byte(`{"key":"` + key + `"}`), nil
}

func (a *fakeAdmin) Rebalance() error { a.rebalanced++; return nil }
func (*fakeAdmin) Status() any        { return "status" }

func serveAdmin(t *testing.T, token string) (*AdminServer, *fakeAdmin) {
	t.Helper()
	admin := &fakeAdmin{}
	s, err := ListenAdmin(t.Context(), AdminOptions{Addr: "127.0.0.1:0", Token: token, Admin: admin, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s, admin
}

func askAdmin(t *testing.T, s *AdminServer, method, path string, headers ...string) (int, string) {
	t.Helper()
	req, err := nethttp.NewRequestWithContext(t.Context(), method, "http://"+s.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
	}
	resp, err := nethttp.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}

// The original's endpoints must answer as its clients know them, and with the status that is meant.
func TestAdminEndpoints(t *testing.T) {
	s, admin := serveAdmin(t, "")
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/router/", 200, `{"http://a":""}`},
		{"GET", "/router/x/", 200, `{"http://a":"x"}`},
		{"GET", "/router/none/", 404, `{"error":"unknown table","name":"none"}`},
		{"GET", "/router/x/k%2F1/", 200, `"http://k/1"`},
		{"GET", "/router/none/k/", 404, "unknown table"},
		{"GET", "/table/", 200, `["t"]`},
		{"GET", "/table/none/", 404, `{"error":"unknown table","name":"none"}`},
		{"GET", "/table/x/k%C3%A4/", 200, `{"key":"kä"}`},
		{"GET", "/table/x/missing/", 404, `{"error":"key not found","key":"missing","table":"x"}`},
		{"GET", "/table/x/7/?key=json", 200, `7`},
		{"GET", "/table/away/k/", 503, "cannot be answered now"},
		{"GET", "/table/window/k/", 400, "not a key"},
		{"GET", "/table/broken/k/", 503, "broken"},
		{"GET", "/table/x/k", 404, "not found"},
		{"GET", "/table", 404, "not found"},
		{"GET", "/table/a/b/c/", 404, "not found"},
		{"GET", "/", 404, "not found"},
		{"POST", "/table/", 405, "only GET"},
		{"GET", "/table/?limit=5", 200, `{"tables":["t"]}`},
		{"GET", "/table/?after=a", 200, `{"next":"a","tables":["t"]}`},
		{"GET", "/router/?limit=1000&after=b", 200, `{"next":"b","routes":{"http://a":""}}`},
		{"GET", "/router/?limit=1001", 400, "from 1 to 1000"},
		{"GET", "/table/x/?limit=7", 200, `{"entries":[7],"name":"x"}`},
		{"GET", "/table/x/?after=c", 200, `{"entries":[100],"name":"x","next":"c"}`},
		{"GET", "/table/x/?limit=0", 400, "from 1 to 1000"},
		{"GET", "/table/x/?limit=", 400, "from 1 to 1000"},
		{"GET", "/table/x/?after=bad", 400, "after is not"},
		{"GET", "/table/none/?limit=1", 404, "unknown table"},
		{"GET", "/router/x/?limit=1", 200, `{"http://a":"x"}`},
		{"GET", "/signal/rebalance", 405, "only POST"},
		{"POST", "/signal/rebalance/", 405, ""},
		{"GET", "/status", 200, `"status"`},
		{"POST", "/signal/rebalance", 200, `{"message":"Rebalance requested","status":"ok"}`},
	} {
		if code, text := askAdmin(t, s, c.method, c.path); code != c.code || !strings.Contains(text, c.body) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, code, text, c.code, c.body)
		}
	}
	if admin.rebalanced != 1 {
		t.Errorf("rebalanced %d times", admin.rebalanced)
	}
}

// Tables' data must not be read by strangers: neither over the network, nor by a page in a browser of this machine.
func TestAdminAccess(t *testing.T) {
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0", "example.org:0"} {
		if s, err := ListenAdmin(t.Context(), AdminOptions{Addr: addr, Admin: &fakeAdmin{}, Log: slog.New(slog.DiscardHandler)}); err == nil {
			_ = s.Close(t.Context())
			t.Errorf("%s is served without a token", addr)
		}
	}
	open, _ := serveAdmin(t, "")
	for _, headers := range [][]string{{"Origin", "http://evil.example"}, {"Host", "evil.example"}} {
		if code, _ := askAdmin(t, open, "GET", "/table/x/k/", headers...); code != 403 {
			t.Errorf("%v: %d", headers, code)
		}
	}
	s, admin := serveAdmin(t, "secret")
	for token, want := range map[string]int{"": 401, "Bearer": 401, "Bearer wrong": 401, "Basic secret": 401, "Bearer secret": 200} {
		if code, text := askAdmin(t, s, "GET", "/table/x/k/", "Authorization", token); code != want {
			t.Errorf("%q: %d %s, want %d", token, code, text, want)
		}
	}
	if code, _ := askAdmin(t, s, "POST", "/signal/rebalance"); code != 401 || admin.rebalanced != 0 {
		t.Errorf("rebalanced without a token: %d", code)
	}
}

// With webToken views answer only who has it; probes need none.
func TestViewToken(t *testing.T) {
	s := serveViews(t, Options{Token: "secret"}, View{Method: "GET", Text: "/a", Serve: named("a")})
	for path, want := range map[string]int{"/a": 401, "/healthz": 200, "/b": 404} {
		if got := ask(t, s, "GET", path); got.code != want {
			t.Errorf("%s: %d, want %d", path, got.code, want)
		}
	}
	if got := ask(t, s, "DELETE", "/a"); got.code != 401 {
		t.Errorf("DELETE: %d", got.code)
	}
	if got := ask(t, s, "POST", "/signal/rebalance"); got.code != 401 {
		t.Errorf("a rebalance without the token: %d", got.code)
	}
	req, err := nethttp.NewRequestWithContext(t.Context(), "GET", "http://"+s.Addr()+"/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer secret")
	resp, err := nethttp.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("with the token: %d", resp.StatusCode)
	}
}

// FuzzAdmin: whatever a client sends to the admin server, nothing but a request with the token is asked of the app, with names that are not empty and
// pages within their bounds, and every answer is one of JSON or of the console's files.
func FuzzAdmin(f *testing.F) {
	for _, text := range []string{
		"GET /table/x/k/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n\r\n", "GET /table/x/?limit=5&after=%00 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n",
		"GET /router/%2f/%zz/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n", "POST /signal/rebalance HTTP/1.1\r\nHost: a\r\nAuthorization: bearer secret\r\nContent-Length: 3\r\n\r\nabc",
		"GET //table/../table/x/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nAuthorization: Bearer x\r\n\r\n", "GET /console/api/topic?name=t&from=0:1,,2 HTTP/1.1\r\nHost: [::1]\r\n\r\n",
		"GET /console/api/table?name=users&search=%ff HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nOrigin: x\r\n\r\n", "GET http://localhost/status HTTP/1.0\r\nAuthorization:\tBearer secret\r\n\r\n",
		"GET /table/" + strings.Repeat("a/", 5000) + " HTTP/1.1\r\nHost: a\r\n\r\n", "GET /status HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 3000) + "\r\n",
	} {
		f.Add(text)
	}
	admin := &watchedAdmin{}
	s := newAdmin(AdminOptions{Token: "secret", Admin: admin, Console: fakeConsole{}, ConsoleFor: "all", Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, text string) {
		admin.asked, admin.bad = 0, ""
		c := &wire{in: strings.NewReader(text)}
		_ = s.srv.ServeConn(c) // a request that cannot be read is an error
		if admin.bad != "" {
			t.Fatalf("the app was asked %s", admin.bad)
		}
		if admin.asked > 0 && !strings.Contains(text, "secret") {
			t.Fatal("the app was asked without the token")
		}
	})
}

// watchedAdmin notes what it is asked and should not be.
type watchedAdmin struct {
	fakeAdmin
	asked int
	bad   string
}

func (a *watchedAdmin) look(name string, of Page) {
	a.asked++
	if of.Limit < 0 || of.Limit > PageLimitMax || name == "" && of.Limit == 0 && of.After != "" {
		a.bad = fmt.Sprintf("%q for the page %+v", name, of)
	}
}

func (a *watchedAdmin) Routes(table string, of Page) (any, string, bool) {
	a.look(table, of)
	return a.fakeAdmin.Routes(table, of)
}

func (a *watchedAdmin) Tables(table string, of Page) (any, string, bool) {
	a.look(table, of)
	return a.fakeAdmin.Tables(table, of)
}

func (a *watchedAdmin) Scan(ctx context.Context, table string, of Page) (any, string, error) {
	a.look(table, of)
	if of.Limit == 0 {
		a.bad = "for a scan without a bound"
	}
	return a.fakeAdmin.Scan(ctx, table, of)
}

func (a *watchedAdmin) Value(ctx context.Context, table, key string, asJSON bool) ([]byte, error) {
	if a.asked++; table == "" || key == "" {
		a.bad = fmt.Sprintf("for key %q of table %q", key, table)
	}
	return []byte(`"v"`), nil
}

func (a *watchedAdmin) Rebalance() error { a.asked++; return nil }
func (a *watchedAdmin) Status() any      { a.asked++; return "status" }
