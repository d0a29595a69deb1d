package http

import (
	"context"
	"errors"
	"io"
	"log/slog"
	nethttp "net/http"
	"strings"
	"testing"
	"time"
)

type fakeAdmin struct{ rebalanced int }

func (*fakeAdmin) Routes(table string) (any, bool) {
	return map[string]any{"http://a": table}, table != "none"
}

func (*fakeAdmin) Owner(table, key string) (string, error) {
	if table == "none" {
		return "", ErrNoTable
	}
	return "http://" + key, nil
}

func (*fakeAdmin) Tables(table string) (any, bool) { return []string{"t" + table}, table != "none" }

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
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
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
		{"GET", "/router/", 200, `{"http://a":""}`}, {"GET", "/router/x/", 200, `{"http://a":"x"}`}, {"GET", "/router/none/", 404, `{"error":"unknown table","name":"none"}`},
		{"GET", "/router/x/k%2F1/", 200, `"http://k/1"`}, {"GET", "/router/none/k/", 404, "unknown table"},
		{"GET", "/table/", 200, `["t"]`}, {"GET", "/table/none/", 404, `{"error":"unknown table","name":"none"}`},
		{"GET", "/table/x/k%C3%A4/", 200, `{"key":"kä"}`}, {"GET", "/table/x/missing/", 404, `{"error":"key not found","key":"missing","table":"x"}`},
		{"GET", "/table/x/7/?key=json", 200, `7`}, {"GET", "/table/away/k/", 503, "cannot be answered now"}, {"GET", "/table/window/k/", 400, "not a key"},
		{"GET", "/table/broken/k/", 503, "broken"}, {"GET", "/table/x/k", 404, "not found"}, {"GET", "/table", 404, "not found"}, {"GET", "/table/a/b/c/", 404, "not found"},
		{"GET", "/", 404, "not found"}, {"POST", "/table/", 405, "only GET"},
		{"GET", "/signal/rebalance", 405, "only POST"}, {"POST", "/signal/rebalance/", 405, ""}, {"GET", "/status", 200, `"status"`},
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
