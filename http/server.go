// Package http serves over HTTP what a process tells about itself: that it lives, whether it is ready, its metrics, its state.
package http

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
)

// App is what the server asks; all of it is called from any number of goroutines, from Listen on.
type App interface {
	// Ready tells whether the process does all of its work by now, and a value that says as JSON what is missing.
	Ready() (bool, any)
	// Status is the state as a value for JSON. It has no data of records or tables: the server asks nobody who they are.
	Status() any
	// Rebalance has the group assign its partitions anew. It does not wait for it.
	Rebalance() error
}

// Options are where to listen and what to serve.
type Options struct {
	Addr        string // host:port; an empty host is every interface
	MetricsBase string // path before /metrics, such as "/internal"
	BasePath    string // before every view's path: "" or "/base"
	Views       []View
	// Peer answers other processes of the app, who know PeerSecret; nil: nobody does.
	Peer        func(t Trace, question []byte) ([]byte, error)
	PeerSecret  string
	Token       string        // that requests to views and for the schedule must bear; empty: none
	TLS         TLSFiles      // with authorities of clients, those requests must come with a certificate of one
	BodyMax     int           // bytes of a request's body; 0: what the endpoints need, which take none
	Connections int           // of clients at a time; those beyond are answered with 503. 0: 256
	Read, Write time.Duration // of a whole request, and of an answer; 0: 10 s and 30 s. Tests are shorter
	App         App
	Registry    prometheus.Gatherer   // what /metrics tells
	Own         prometheus.Registerer // of it: where the server's own series go
	Log         *slog.Logger
	// Schedule answers /schedule to those who may call views: a code, and a value for JSON; nil: there is no such path.
	Schedule func(ScheduleQuery) (int, any)
	// OpenAPI describes the views, as JSON, to those who may call them; nil: nobody asked for it.
	OpenAPI []byte
}

// Limits of a request. A client that is slower than this, or says more, is cut off.
const (
	headBytesMax = 16 << 10 // request line and headers
	bodyBytesMax = 4 << 10
	readTimeout  = 10 * time.Second // of a whole request
	writeTimeout = 30 * time.Second // of a whole answer
	idleTimeout  = 2 * time.Minute  // between two requests of a connection
	connsMax     = 256              // unless Options say otherwise
)

// Server answers until Close.
type Server struct {
	srv    *fasthttp.Server
	ln     net.Listener
	rooms  *rooms
	opts   Options
	routes map[string]func(*fasthttp.RequestCtx)
	router *router
	views  access // what requests for data must show: to views, for their description, for the schedule; and to have the group rebalance
	signal signal
	stats  *stats
	closed atomic.Bool
	ended  chan struct{}
}

// Listen begins to serve, until Close; ctx is of the start only. The error says so when another process has the port.
func Listen(ctx context.Context, o Options) (*Server, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", o.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("HTTP server: port %s is in use by another process; give this one another webPort (0: no HTTP server)", port(o.Addr))
	}
	if err != nil {
		return nil, fmt.Errorf("HTTP server: %w", err)
	}
	s := newServer(o)
	s.ln, s.rooms.Listener = ln, ln
	// Probes have no certificate, so it is asked of requests for data, not of connections.
	served, err := secure(s.rooms, o.TLS, tls.VerifyClientCertIfGiven, o.Log)
	if err != nil {
		_ = ln.Close() // nobody has come yet
		return nil, fmt.Errorf("HTTP server: %w", err)
	}
	go func() {
		defer close(s.ended)
		if err := s.srv.Serve(served); err != nil && !s.closed.Load() {
			o.Log.Error("the HTTP server has ended", "err", err)
		}
	}()
	return s, nil
}

func newServer(o Options) *Server {
	s := &Server{opts: o, stats: newStats(o.Own), ended: make(chan struct{}), views: access{o.Token, o.TLS.ClientCA != ""}, router: newRouter(o.BasePath, o.Views)}
	conns, body := o.Connections, o.BodyMax
	if conns == 0 {
		conns = connsMax
	}
	if body < bodyBytesMax {
		body = bodyBytesMax
	}
	read, write := o.Read, o.Write
	if read == 0 {
		read = readTimeout
	}
	if write == 0 {
		write = writeTimeout
	}
	s.rooms = &rooms{clientsMax: conns}
	s.routes = map[string]func(*fasthttp.RequestCtx){
		"/":                        s.ok,
		"/healthz":                 s.ok,
		"/readyz":                  s.ready,
		"/status":                  s.status,
		"/status/":                 s.status, // the original's
		metricsPath(o.MetricsBase): s.metrics,
		rebalancePath:              s.rebalance, // which looks at the method itself
	}
	if o.Peer != nil {
		s.routes[peerPath] = s.peer // which looks at the method itself
	}
	if o.OpenAPI != nil {
		s.routes["/openapi.json"] = s.openAPI
	}
	if o.Schedule != nil {
		s.routes["/schedule"] = s.schedule
	}
	s.srv = &fasthttp.Server{
		Handler: s.handle, ErrorHandler: s.refuse, Name: "kaspr", Logger: quiet{o.Log},
		ReadBufferSize: headBytesMax, MaxRequestBodySize: body, Concurrency: s.rooms.all(),
		ReadTimeout: read, WriteTimeout: write, IdleTimeout: idleTimeout,
		CloseOnShutdown: true, NoDefaultDate: true, DisablePreParseMultipartForm: true,
		HeaderReceived: func(h *fasthttp.RequestHeader) (c fasthttp.RequestConfig) {
			if string(h.RequestURI()) == peerPath && s.isPeer(h) { // what the app's processes ask is not bounded by what clients may send
				c.MaxRequestBodySize = max(body, peerBodyMax)
			}
			return c
		},
	}
	return s
}

// metricsPath is base + "/metrics", with one slash before and none after the base.
func metricsPath(base string) string {
	if base = strings.Trim(base, "/"); base != "" {
		base = "/" + base
	}
	return base + "/metrics"
}

func port(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return port
}

// Addr is where the server listens, with the port it got.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// Close takes no more requests and waits for those under way until ctx ends.
func (s *Server) Close(ctx context.Context) error {
	s.closed.Store(true)
	err := s.srv.ShutdownWithContext(ctx)
	if closed := s.ln.Close(); err == nil && !errors.Is(closed, net.ErrClosed) {
		err = closed // it may not have begun to serve yet, and Shutdown not know of it
	}
	<-s.ended
	return err
}

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	began := time.Now()
	if !survived(ctx, s.route, s.opts.Log) {
		s.stats.panics.Inc()
	}
	s.stats.add(ctx.Response.StatusCode(), time.Since(began))
}

// survived runs a handler. One that panics has a bug, for which whoever asked for it must not end the process: it is logged, and answered
// with 500.
func survived(ctx *fasthttp.RequestCtx, handler fasthttp.RequestHandler, log *slog.Logger) (ok bool) {
	defer func() {
		if ok {
			return
		}
		why := recover()
		log.Error("BUG: a request's handler panicked", "method", string(ctx.Method()), "path", string(ctx.Path()), "panic", why, "stack", string(debug.Stack()))
		ctx.Response.Reset() // of what the handler had done
		fail(ctx, fasthttp.StatusInternalServerError, "internal error")
	}()
	handler(ctx)
	return true
}

func (s *Server) route(ctx *fasthttp.RequestCtx) {
	if !s.seated(ctx) {
		return
	}
	path := string(ctx.Path())
	answer := s.routes[path]
	switch {
	case answer == nil && s.view(ctx):
	case answer == nil:
		fail(ctx, fasthttp.StatusNotFound, "not found")
	case !ctx.IsGet() && !ctx.IsHead() && path != peerPath && path != rebalancePath:
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only GET and HEAD are answered here")
	default:
		ctx.Response.Header.Set("Cache-Control", "no-store")
		answer(ctx)
	}
}

// refuse answers what is no request, or none of the size allowed.
func (s *Server) refuse(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var slow net.Error
	code := fasthttp.StatusBadRequest
	switch {
	case errors.As(err, &small):
		code = fasthttp.StatusRequestHeaderFieldsTooLarge
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		code = fasthttp.StatusRequestEntityTooLarge
	case errors.As(err, &slow) && slow.Timeout():
		code = fasthttp.StatusRequestTimeout
	}
	fail(ctx, code, fasthttp.StatusMessage(code))
	s.stats.add(code, 0)
}

func (s *Server) ok(ctx *fasthttp.RequestCtx) {
	reply(ctx, fasthttp.StatusOK, map[string]string{"status": "OK"})
}

func (s *Server) ready(ctx *fasthttp.RequestCtx) {
	ok, detail := s.opts.App.Ready()
	code := fasthttp.StatusOK
	if !ok {
		code = fasthttp.StatusServiceUnavailable
	}
	reply(ctx, code, detail)
}

func (s *Server) status(ctx *fasthttp.RequestCtx) { reply(ctx, fasthttp.StatusOK, s.opts.App.Status()) }

func (s *Server) openAPI(ctx *fasthttp.RequestCtx) {
	if s.views.admits(ctx) {
		ctx.SetContentType("application/json")
		ctx.SetBody(s.opts.OpenAPI)
	}
}

func reply(ctx *fasthttp.RequestCtx, code int, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		panic("BUG: " + err.Error()) // our own values
	}
	ctx.SetStatusCode(code)
	ctx.SetContentType("application/json")
	ctx.SetBody(append(text, '\n'))
}

func fail(ctx *fasthttp.RequestCtx, code int, text string) {
	reply(ctx, code, map[string]string{"error": text})
}

// quiet is fasthttp's log: broken connections are nobody's concern.
type quiet struct{ log *slog.Logger }

func (q quiet) Printf(format string, args ...any) {
	q.log.Debug("http: " + fmt.Sprintf(format, args...))
}
