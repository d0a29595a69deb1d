package http

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	nethttp "net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// fakeApp is ready when it is told so.
type fakeApp struct {
	ready      atomic.Bool
	rebalanced atomic.Int64
}

func (a *fakeApp) Ready() (bool, any) {
	ok := a.ready.Load()
	return ok, map[string]any{"ready": ok, "left": 7}
}

func (a *fakeApp) Status() any { return map[string]string{"app": "shop"} }

// Rebalance counts, but not before the app is ready.
func (a *fakeApp) Rebalance() error {
	if !a.ready.Load() {
		return errors.New("the app is starting")
	}
	a.rebalanced.Add(1)
	return nil
}

// closeAtEnd closes a server when the test is over, which must go well.
func closeAtEnd(t *testing.T, s interface {
	Close(ctx context.Context) error
},
) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// serve starts a server on a free port.
func serve(t *testing.T, base string) (*Server, *fakeApp) {
	t.Helper()
	registry := prometheus.NewRegistry()
	orders := prometheus.NewCounter(prometheus.CounterOpts{Name: "kaspr_orders_total", Help: "Orders."})
	registry.MustRegister(orders)
	orders.Add(3)
	app := &fakeApp{}
	s, err := Listen(t.Context(), Options{
		Addr: "127.0.0.1:0", MetricsBase: base, App: app, Registry: registry, Own: registry, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s, app
}

// answer is what came back.
type answer struct {
	code   int
	header nethttp.Header
	body   string
}

func ask(t *testing.T, s interface{ Addr() string }, method, path string) answer {
	t.Helper()
	req, err := nethttp.NewRequestWithContext(t.Context(), method, "http://"+s.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
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
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// Probes, Prometheus and people must find what they ask for, and nothing else.
func TestRoutes(t *testing.T) {
	s, app := serve(t, "/internal/")
	app.ready.Store(true)
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/healthz", 200, `{"status":"OK"}`},
		{"HEAD", "/healthz", 200, ``},
		{"GET", "/", 200, `{"status":"OK"}`},
		{"GET", "/readyz", 200, `{"left":7,"ready":true}`},
		{"GET", "/status", 200, `{"app":"shop"}`},
		{"GET", "/status/?x=1", 200, `{"app":"shop"}`},
		{"GET", "/internal/metrics", 200, "# HELP kaspr_orders_total Orders.\n# TYPE kaspr_orders_total counter\nkaspr_orders_total 3\n"},
		{"GET", "/metrics", 404, `{"error":"not found"}`},
		{"GET", "/readyz/", 404, `{"error":"not found"}`},
		{"GET", "/x/../../etc/passwd", 404, `{"error":"not found"}`},
		{"POST", "/readyz", 405, `{"error":"only GET and HEAD are answered here"}`},
		{"DELETE", "/internal/metrics", 405, `{"error":"only GET and HEAD are answered here"}`},
	} {
		got := ask(t, s, c.method, c.path)
		if got.code != c.code || !strings.Contains(got.body, c.body) {
			t.Errorf("%s %s: %d %q, want %d with %q", c.method, c.path, got.code, got.body, c.code, c.body)
		}
		if allow := got.header.Get("Allow"); c.code == 405 && allow != "GET, HEAD" {
			t.Errorf("%s %s: Allow %q", c.method, c.path, allow)
		}
	}
	text := ask(t, s, "GET", "/internal/metrics").body
	for _, series := range []string{
		`kaspr_http_status_codes_total{status_code="200"} 7`, `kaspr_http_status_codes_total{status_code="404"} 3`, `kaspr_http_latency_bucket{le="10000"}`,
	} {
		if !strings.Contains(text, series) {
			t.Errorf("no %s in\n%s", series, text)
		}
	}
}

// The original's operator has the group rebalance at this port, and knows the answer. Strangers must not be able to keep the group at it, nor a page
// in somebody's browser.
func TestRebalance(t *testing.T) {
	s, app := serve(t, "")
	for _, c := range []struct {
		method, path, origin string
		ready                bool
		code                 int
		body                 string
		header, value        string
		rebalanced           int64
	}{
		{"GET", "/signal/rebalance", "", true, 405, `{"error":"only POST is answered here"}`, "Allow", "POST", 0},
		{"POST", "/signal/rebalance/", "", true, 404, `{"error":"not found"}`, "", "", 0},
		{"POST", "/signal/rebalance", "http://evil.example", true, 403, `{"error":"not for pages in a browser"}`, "", "", 0},
		{"POST", "/signal/rebalance", "", false, 503, `{"error":"the app is starting"}`, "", "", 0},
		{"POST", "/signal/rebalance", "", true, 200, `{"message":"Rebalance requested","status":"ok"}`, "Cache-Control", "no-store", 1},
		{"POST", "/signal/rebalance", "", true, 429, `{"error":"a rebalance was requested a moment ago"}`, "Retry-After", "10", 1},
	} {
		app.ready.Store(c.ready)
		req, err := nethttp.NewRequestWithContext(t.Context(), c.method, "http://"+s.Addr()+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		resp, err := nethttp.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || strings.TrimSpace(string(text)) != c.body || c.header != "" && resp.Header.Get(c.header) != c.value {
			t.Errorf("%s %s: %d %s %v, %v", c.method, c.path, resp.StatusCode, text, resp.Header, err)
		}
		if n := app.rebalanced.Load(); n != c.rebalanced {
			t.Errorf("%s %s: %d rebalances, want %d", c.method, c.path, n, c.rebalanced)
		}
	}
	var gate signal
	now, asked := time.Now(), 0
	for _, later := range []time.Duration{0, 9 * time.Second, 10 * time.Second, 11 * time.Second, 21 * time.Second} {
		_ = gate.pass(now.Add(later), func() error { asked++; return nil })
	}
	if asked != 3 {
		t.Errorf("%d rebalances in 21 s", asked)
	}
}

// A process that restores its tables must get no traffic, and say how long that will be.
func TestReadiness(t *testing.T) {
	s, app := serve(t, "")
	for _, want := range []bool{false, true, false} {
		app.ready.Store(want)
		got := ask(t, s, "GET", "/readyz")
		if (got.code == 200) != want || !want && got.code != 503 || !strings.Contains(got.body, `"left":7`) {
			t.Errorf("ready %v: %d %s", want, got.code, got.body)
		}
		if ct := got.header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("content type %q", ct)
		}
	}
}

// A client cannot make the process hold more than a request's worth of bytes.
func TestLimits(t *testing.T) {
	s, _ := serve(t, "")
	for name, c := range map[string]struct {
		request string
		code    string
	}{
		"path":   {"GET /" + strings.Repeat("a", headBytesMax) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		"header": {"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", headBytesMax) + "\r\n\r\n", "431"},
		"body":   {fmt.Sprintf("POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", bodyBytesMax+1) + strings.Repeat("a", bodyBytesMax+1), "413"},
		"chunks": {"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n" + strings.Repeat("a", 0x2000) + "\r\n0\r\n\r\n", "413"},
		"noise":  {"\x16\x03\x01\r\n\r\n", "400"},
	} {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+c.code) {
			t.Errorf("%s: answered %q, %v; want %s", name, line, err, c.code)
		}
		conn.Close()
	}
}

// The second process on a machine must say what is wrong, not serve nothing.
func TestPortInUse(t *testing.T) {
	s, _ := serve(t, "")
	_, err := Listen(t.Context(), Options{Addr: s.Addr(), App: &fakeApp{}, Registry: prometheus.NewRegistry(), Own: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), port(s.Addr())+" is in use") || !strings.Contains(err.Error(), "webPort") {
		t.Errorf("error %v", err)
	}
}

// A stop must not wait for clients that keep their connections, or send their requests never.
func TestClose(t *testing.T) {
	s, _ := serve(t, "")
	ask(t, s, "GET", "/healthz") // keeps its connection
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil && ctx.Err() == nil {
		t.Error(err)
	}
	if c, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
}

func TestMetricsPath(t *testing.T) {
	for base, want := range map[string]string{"": "/metrics", "/": "/metrics", "a": "/a/metrics", "/a/b/": "/a/b/metrics"} {
		if got := metricsPath(base); got != want {
			t.Errorf("%q: %q, want %q", base, got, want)
		}
	}
}

// Clients that send their request byte by byte, or take no answer, must be let go: each holds a connection of a bounded number.
func TestSlowClients(t *testing.T) {
	const limit = 300 * time.Millisecond
	big := make([]byte, 64<<20) // more than the kernel takes for a client that does not read
	s := serveViews(t, Options{Read: limit, Write: limit, BodyMax: 1 << 20},
		View{Method: "POST", Text: "/in", Serve: named("in")},
		View{Method: "GET", Text: "/big", Serve: func(*Request) Response { return Response{Status: 200, Body: big} }})
	dial := func() net.Conn {
		t.Helper()
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for name, start := range map[string]string{
		"head": "GET /healthz HTTP/1.1\r\nX: ", "body": "POST /in HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
		"chunks": "POST /in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\n", "nothing": "",
	} {
		conn := dial()
		began := time.Now()
		ended := make(chan struct{})
		go func() { // a byte at a time: each of them is on time
			defer close(ended)
			_, err := io.WriteString(conn, start)
			for err == nil && start != "" && time.Since(began) < 20*time.Second {
				time.Sleep(limit / 20)
				_, err = conn.Write([]byte("a"))
			}
		}()
		line, err := bufio.NewReader(conn).ReadString('\n')
		took := time.Since(began)
		if took < limit/2 || took > 10*time.Second {
			t.Errorf("%s: let go after %v, want about %v", name, took, limit)
		}
		if start != "" && (err != nil || !strings.HasPrefix(line, "HTTP/1.1 408")) {
			t.Errorf("%s: answered %q, %v; want 408", name, line, err)
		}
		conn.Close()
		<-ended
	}
	conn := dial()
	if _, err := io.WriteString(conn, "GET /big HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * limit)
	if n, err := io.Copy(io.Discard, conn); err == nil && n >= int64(len(big)) {
		t.Errorf("an answer that was not taken in time was kept for the client: %d bytes", n)
	}
	if got := ask(t, s, "GET", "/healthz"); got.code != 200 {
		t.Errorf("others: %d", got.code)
	}
}
