package http

import (
	"log/slog"
	"net"
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
)

// BenchmarkView is what the server adds to a request of a view: its route, its head, its answer, without the connection.
func BenchmarkView(b *testing.B) {
	registry := prometheus.NewRegistry()
	answer := Response{Status: 200, ContentType: "application/json; charset=utf-8", Body: []byte(`{"name":"User 1","visits":1,"tags":["a","b"]}`)}
	s := newServer(Options{
		App: &fakeApp{}, Registry: registry, Own: registry, Log: slog.New(slog.DiscardHandler), Views: []View{
			{Method: "GET", Match: regexp.MustCompile(`^/users/(?P<key>[^{}/]+)$`), Params: []string{"key"}, Serve: func(*Request) Response { return answer }},
		},
	})
	var req fasthttp.Request
	req.SetRequestURI("/users/user-1234")
	req.Header.SetHost("bench")
	req.Header.Set("Accept", "application/json")
	req.Header.SetUserAgent("bench")
	var ctx fasthttp.RequestCtx
	ctx.Init(&req, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000}, nil)
	b.ReportAllocs()
	for b.Loop() {
		ctx.Response.Reset()
		if s.handle(&ctx); ctx.Response.StatusCode() != 200 {
			b.Fatal(ctx.Response.StatusCode())
		}
	}
}
