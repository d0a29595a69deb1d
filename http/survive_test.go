package http

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"kaspr.io/kaspr/engine/enginetest"
)

// A request that meets a bug of ours must not end the process, with all the streams in it: it is answered, and whoever runs the
// app learns of it.
func TestPanicIsAnswered(t *testing.T) {
	logs := &enginetest.Buffer{}
	registry := prometheus.NewRegistry()
	s, err := Listen(t.Context(), Options{
		Addr: "127.0.0.1:0", App: &fakeApp{}, Registry: registry, Own: registry, Log: slog.New(slog.NewTextHandler(logs, nil)), Connections: 2,
		Views: []View{
			{Method: "GET", Text: "/nil", Serve: func(r *Request) Response { return Response{Body: r.Params[0]} }},
			{Method: "GET", Text: "/text", Serve: func(*Request) Response { panic("BUG: of a test") }},
			{Method: "GET", Text: "/fine", Serve: named("fine")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	for range 5 { // more than there are connections: none is lost
		for _, path := range []string{"/nil", "/text"} {
			if got := ask(t, s, "GET", path); got.code != 500 || got.body != `{"error":"internal error"}`+"\n" {
				t.Errorf("%s: %d %q", path, got.code, got.body)
			}
		}
	}
	if got := ask(t, s, "GET", "/fine"); got.code != 200 {
		t.Errorf("afterwards: %d %q", got.code, got.body)
	}
	text := ask(t, s, "GET", "/metrics").body
	for _, series := range []string{"kaspr_http_panics_total 10\n", `kaspr_http_status_codes_total{status_code="500"} 10`, `kaspr_http_status_codes_total{status_code="200"} 1`} {
		if !strings.Contains(text, series) {
			t.Errorf("no %s in the metrics", series)
		}
	}
	for _, part := range []string{"BUG: of a test", "index out of range", "path=/nil", "survive_test.go"} {
		if !strings.Contains(logs.String(), part) {
			t.Errorf("the log does not say %q", part)
		}
	}
}

// panicking is an admin of tables that has a bug.
type panicking struct{ fakeAdmin }

func (*panicking) Status() any { panic(fmt.Sprint("BUG: ", "of a test")) }

// The console, and whoever steers the scheduler, must be answered, too.
func TestAdminPanicIsAnswered(t *testing.T) {
	s, err := ListenAdmin(t.Context(), AdminOptions{Addr: "127.0.0.1:0", Admin: &panicking{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, s)
	for range 2 {
		if got := ask(t, s, "GET", "/status"); got.code != 500 {
			t.Errorf("%d %q", got.code, got.body)
		}
	}
	if got := ask(t, s, "GET", "/table/"); got.code != 200 {
		t.Errorf("afterwards: %d %q", got.code, got.body)
	}
}
