package http

import (
	"log/slog"
	nethttp "net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// serveViews starts a server whose views answer with their names and parameters.
func serveViews(t *testing.T, o Options, views ...View) *Server {
	t.Helper()
	registry := prometheus.NewRegistry()
	o.Addr, o.App, o.Registry, o.Own, o.Log = "127.0.0.1:0", &fakeApp{}, registry, registry, slog.New(slog.DiscardHandler)
	o.Views = views
	s, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	return s
}

func named(name string) func(*Request) Response {
	return func(r *Request) Response {
		var parts []string
		for _, p := range r.Params {
			parts = append(parts, string(p))
		}
		return Response{Status: 200, ContentType: "text/plain", Body: []byte(name + "(" + strings.Join(parts, ",") + ")" + string(r.Body))}
	}
}

// A request must reach the one view that its method and path mean, however the path is written.
func TestViewRoutes(t *testing.T) {
	s := serveViews(t, Options{BasePath: "/b"},
		View{Method: "GET", Text: "/a", Serve: named("a")},
		View{Method: "POST", Text: "/a", Serve: named("post-a")},
		View{Method: "GET", Match: regexp.MustCompile(`^/(?P<x>[^{}/]+)$`), Params: []string{"x"}, Serve: named("x")},
		View{Method: "PUT", Match: regexp.MustCompile(`^/(?P<y>[^{}/]+)$`), Params: []string{"y"}, Serve: named("put-y")},
		View{Method: "GET", Match: regexp.MustCompile(`^/n/(?P<n>(\d)+)/(?P<rest>.*)$`), Params: []string{"n", "rest"}, Serve: named("n")},
		View{Method: "GET", Text: "/é", Serve: named("accent")},
	)
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/b/a", 200, "a()"},
		{"POST", "/b/a", 200, "post-a()"},
		{"PUT", "/b/a", 200, "put-y(a)"},
		{"GET", "/b/%61", 200, "a()"},
		{"GET", "/b/%C3%A9", 200, "accent()"},
		{"GET", "/b/x%2Fy", 200, "x(x/y)"},
		{"GET", "/b/n/12/a/b", 200, "n(12,a/b)"},
		{"GET", "/b/n/1/", 200, "n(1,)"},
		{"DELETE", "/b/a", 405, `{"error":"Method DELETE not allowed."}`},
		{"GET", "/b/n/x/1", 404, "not found"},
		{"GET", "/a", 404, "not found"},
		{"GET", "/b/", 404, "not found"},
		{"GET", "/b/a/", 404, "not found"},
		{"GET", "/healthz", 200, "OK"},
	} {
		if got := ask(t, s, c.method, c.path); got.code != c.code || !strings.Contains(got.body, c.body) {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, got.code, got.body, c.code, c.body)
		}
	}
	if got := ask(t, s, "HEAD", "/b/a"); got.code != 200 || got.body != "" || got.header.Get("Content-Length") != "3" {
		t.Errorf("HEAD: %+v", got)
	}
	if got := ask(t, s, "DELETE", "/b/a").header.Get("Allow"); got != "GET, HEAD, POST, PUT" {
		t.Errorf("Allow %q", got)
	}
	metrics := ask(t, s, "GET", "/metrics") // answers of views count as those of the server's own endpoints do
	for _, series := range []string{`{status_code="200"} 10`, `{status_code="404"} 4`, `{status_code="405"} 2`} {
		if !strings.Contains(metrics.body, "kaspr_http_status_codes_total"+series+"\n") {
			t.Errorf("no %s in\n%s", series, metrics.body)
		}
	}
	if ct := metrics.header.Get("Content-Type"); !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		t.Errorf("metrics are %q", ct)
	}
}

// What code sees of a request must be the request, and nothing in it may look like another line of the head.
func TestRequestHead(t *testing.T) {
	heads := make(chan string, 1)
	s := serveViews(t, Options{BodyMax: 5000}, View{Method: "POST", Text: "/x", Serve: func(r *Request) Response {
		heads <- string(r.Head)
		return Response{Status: 200}
	}})
	req, err := nethttp.NewRequestWithContext(t.Context(), "POST", "http://"+s.Addr()+"/x?a=%0Ab", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-One", "1:2")
	resp, err := nethttp.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != "" {
		t.Errorf("an empty answer has the content type %q", ct)
	}
	lines := strings.Split(<-heads, "\n")
	if want := []string{"POST", "http", "127.0.0.1", "/x", "a=%0Ab", "1"}; strings.Join(lines[:6], "|") != strings.Join(want, "|") {
		t.Errorf("head %q, want %q", lines[:6], want)
	}
	if all := strings.Join(lines[6:], "\n"); !strings.Contains(all, "X-One:1:2\n") || !strings.Contains(all, "Content-Length:4\n") {
		t.Errorf("headers %q", all)
	}
}

// A response cannot be made to hold another one, whatever code returns for a header.
func TestHeaderProblem(t *testing.T) {
	for _, h := range []Header{{"", "x"}, {"a b", "x"}, {"a:", "x"}, {"a\r\nb", "x"}, {"é", "x"}, {"a", "x\r\ny: z"}, {"a", "x\x00"}, {"a", "\x7f"}} {
		if HeaderProblem(h) == "" {
			t.Errorf("%q is allowed", h)
		}
	}
	for _, h := range []Header{{"X-A", "x\ty"}, {"a", ""}, {"a", "ä"}} {
		if p := HeaderProblem(h); p != "" {
			t.Errorf("%q: %s", h, p)
		}
	}
}

// FuzzRequest: no bytes a client sends end the process, or reach a view as more than one head of seven lines and its parameters.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{
		"GET /p/x%2Fy?q=1 HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n", "GET /p/%zz HTTP/1.1\r\nHost: a\r\n\r\n", "POST /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
		"GET http://a/p/b HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "GET //p/../p/x HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST /p/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
	} {
		f.Add(text)
	}
	registry := prometheus.NewRegistry()
	var bad string
	view := View{Match: regexp.MustCompile(`^/p/(?P<x>[^{}/]+)$`), Params: []string{"x"}, Serve: func(r *Request) Response {
		lines := strings.Split(string(r.Head), "\n")
		if len(lines) < 7 || len(r.Params) != 1 || lines[0] != "GET" && lines[0] != "POST" && lines[0] != "HEAD" || !strings.Contains(lines[3], "/p/") {
			bad = string(r.Head)
		}
		for _, line := range lines[6:] {
			if line != "" && !strings.Contains(line, ":") {
				bad = string(r.Head)
			}
		}
		return Response{Status: 200, Body: r.Body}
	}}
	get, post := view, view
	get.Method, post.Method = "GET", "POST"
	s := newServer(Options{App: &fakeApp{}, Registry: registry, Own: registry, Log: slog.New(slog.DiscardHandler), Views: []View{get, post}})
	f.Fuzz(func(t *testing.T, text string) {
		bad = ""
		c := &wire{in: strings.NewReader(text)}
		_ = s.srv.ServeConn(c) // a request that cannot be read is an error
		if bad != "" {
			t.Fatalf("a view got the head %q", bad)
		}
	})
}

// What processes of the app ask of each other must stay among them: to anybody else there is nothing.
func TestPeerSecret(t *testing.T) {
	s := serveViews(t, Options{PeerSecret: "s3cret", Peer: func(t Trace, q []byte) ([]byte, error) { return append([]byte(t.Parent+t.State+"re:"), q...), nil }})
	p := NewPeers(nil)
	defer p.Close()
	if answer, err := p.Read(t.Context(), "http://s3cret@"+s.Addr(), []byte("q")); err != nil || string(answer) != "re:q" {
		t.Errorf("%q, %v", answer, err)
	}
	traced := WithTrace(t.Context(), Trace{"parent", "state"})
	if answer, err := p.Read(traced, "http://s3cret@"+s.Addr(), []byte("q")); err != nil || string(answer) != "parentstatere:q" {
		t.Errorf("the trace context does not come along: %q, %v", answer, err)
	}
	long := make([]byte, 1<<20) // a key may be longer than clients' bodies
	if answer, err := p.Read(t.Context(), "http://s3cret@"+s.Addr(), long); err != nil || len(answer) != len("re:")+len(long) {
		t.Errorf("a long question: %d bytes, %v", len(answer), err)
	}
	if _, err := p.Read(t.Context(), "http://wrong@"+s.Addr(), long); err == nil || !strings.Contains(err.Error(), "413") {
		t.Errorf("a stranger's long question: %v", err)
	}
	for _, address := range []string{"http://wrong@" + s.Addr(), "http://@" + s.Addr(), "http://" + s.Addr(), "http://s3cret@127.0.0.1:1"} {
		if answer, err := p.Read(t.Context(), address, []byte("q")); err == nil {
			t.Errorf("%s: %q", address, answer)
		}
	}
	if got := ask(t, s, "POST", peerPath); got.code != 404 {
		t.Errorf("without a secret: %d", got.code)
	}
	none := serveViews(t, Options{Peer: func(Trace, []byte) ([]byte, error) { return nil, nil }})
	if _, err := p.Read(t.Context(), "http://x@"+none.Addr(), nil); err == nil {
		t.Error("a server without a secret answers")
	}
}

// What describes the views is for those who may call them.
func TestOpenAPIToken(t *testing.T) {
	s := serveViews(t, Options{Token: "secret", OpenAPI: []byte(`{"openapi":"3.0.3"}`)})
	if got := ask(t, s, "GET", "/openapi.json"); got.code != 401 {
		t.Errorf("without the token: %d %s", got.code, got.body)
	}
	if code, text := status(t, nethttp.DefaultClient, "http://"+s.Addr()+"/openapi.json", "Authorization", "Bearer secret"); code != 200 || text != `{"openapi":"3.0.3"}` {
		t.Errorf("with it: %d %s", code, text)
	}
}
