package http

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"
)

// Admin is what the admin server asks: tables and where they are. It is called from any number of goroutines.
type Admin interface {
	// Routes is what owns which partitions of the changelogs: of one table, or with an empty name of those of a page and where the next
	// page begins. False: there is no such table.
	Routes(table string, of Page) (v any, next string, ok bool)
	// Owner is the address of the process that has the partition of a key's hash.
	Owner(table, key string) (address string, err error)
	// Tables describes one table, or with an empty name those of a page.
	Tables(table string, of Page) (v any, next string, ok bool)
	// Scan is a page of a table's entries, whichever process has them, in the order of partitions and keys, and where the next page begins.
	Scan(ctx context.Context, table string, of Page) (entries any, next string, err error)
	// Value is a key's value as JSON; nil: there is none. A key of a JSON table is a text, or JSON itself if asJSON says so.
	Value(ctx context.Context, table, key string, asJSON bool) ([]byte, error)
	// Rebalance has the group assign its partitions anew.
	Rebalance() error
	// Schedule answers GET /schedule, as Options.Schedule does.
	Schedule(q ScheduleQuery) (int, any)
	// Steer has the message scheduler change something, and says where the request is.
	Steer(ctx context.Context, c ScheduleChange) (request string, err error)
	// Status is what App's is, with what exceptions say.
	Status() any
}

// Page asks for a part of a list. The zero value asks for all of it.
type Page struct {
	After string // what the page before gave as next
	Limit int    // 1 to PageLimitMax; 0: no bound
}

// Rows of a page.
const (
	pageLimit    = 100
	PageLimitMax = 1000
)

// Errors of an Admin, for the codes of the answers.
var (
	ErrNoTable     = errors.New("unknown table")
	ErrUnavailable = errors.New("cannot be answered now")
	ErrBadKey      = errors.New("not a key of this table")
	ErrBadAfter    = errors.New("after is not what a page before gave as next")
)

// AdminOptions are where the admin server listens, and whom it answers.
type AdminOptions struct {
	Addr       string
	Token      string   // that requests must bear; empty: none
	TLS        TLSFiles // with authorities of clients, connections must have a certificate of one
	Admin      Admin
	Console    Console // nil: there is none
	ConsoleFor string  // who may open it: "loopback", "all", or nobody
	Log        *slog.Logger
}

// AdminServer answers operators until Close. It shows data of tables.
type AdminServer struct {
	srv   *fasthttp.Server
	ln    net.Listener
	opts  AdminOptions
	must  access                                // what requests must show
	pages map[string]func(*fasthttp.RequestCtx) // the console's files, which hold no data and ask for no token
	asked map[string]func(*fasthttp.RequestCtx) // what its page asks
	ended chan struct{}
}

// ListenAdmin begins to serve. An address that is not of this machine alone needs a token, or certificates of clients.
func ListenAdmin(ctx context.Context, o AdminOptions) (*AdminServer, error) {
	if o.Token == "" && o.TLS.ClientCA == "" && !Loopback(o.Addr) {
		return nil, fmt.Errorf("admin server: %s is reachable from outside: it needs a token or client certificates", o.Addr)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("admin server: %w", err)
	}
	served, err := secure(ln, o.TLS, tls.RequireAndVerifyClientCert, o.Log)
	if err != nil {
		_ = ln.Close() // nobody has come yet
		return nil, fmt.Errorf("admin server: %w", err)
	}
	s := newAdmin(o)
	s.ln = ln
	go func() {
		defer close(s.ended)
		_ = s.srv.Serve(served) // its end is Close's
	}()
	return s, nil
}

func newAdmin(o AdminOptions) *AdminServer {
	s := &AdminServer{opts: o, must: access{o.Token, o.TLS.ClientCA != ""}, ended: make(chan struct{})}
	s.routeConsole()
	s.srv = &fasthttp.Server{
		Handler: s.handle, Name: "kaspr", Logger: quiet{o.Log}, ReadBufferSize: headBytesMax, MaxRequestBodySize: bodyBytesMax, Concurrency: 64,
		ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, CloseOnShutdown: true, NoDefaultDate: true,
	}
	return s
}

// Loopback tells an address that only this machine reaches.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Addr is where the server listens.
func (s *AdminServer) Addr() string { return s.ln.Addr().String() }

// Close takes no more requests and waits for those under way until ctx ends.
func (s *AdminServer) Close(ctx context.Context) error {
	err := s.srv.ShutdownWithContext(ctx)
	_ = s.ln.Close() // it may be closed already
	<-s.ended
	return err
}

// bears tells whether a request has the token, if one is wanted.
func bears(ctx *fasthttp.RequestCtx, token string) bool {
	if token == "" {
		return true
	}
	given, ok := strings.CutPrefix(string(ctx.Request.Header.Peek("Authorization")), "Bearer ")
	return ok && subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}

func (s *AdminServer) handle(ctx *fasthttp.RequestCtx) { survived(ctx, s.route, s.opts.Log) }

func (s *AdminServer) route(ctx *fasthttp.RequestCtx) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	path := string(ctx.URI().PathOriginal())
	page := s.pages[path]
	if page == nil && !s.must.admits(ctx) {
		return
	}
	// A page of the web could have a browser of this machine send requests here: it would say where it comes from. Browsers say so of the
	// console's own script, too.
	if origin := string(ctx.Request.Header.Peek("Origin")); origin != "" && origin != own(ctx) || s.must == (access{}) && !local(string(ctx.Host())) {
		fail(ctx, fasthttp.StatusForbidden, "not for pages of other hosts")
		return
	}
	if path == rebalancePath {
		rebalance(ctx, s.opts.Admin.Rebalance)
		return
	}
	if path == "/schedule" || path == "/schedule/" {
		s.schedule(ctx)
		return
	}
	if !ctx.IsGet() && !ctx.IsHead() {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only GET and HEAD are answered here")
		return
	}
	if page == nil {
		page = s.asked[path]
	}
	if page != nil {
		page(ctx)
		return
	}
	if path == "/status" || path == "/status/" {
		reply(ctx, fasthttp.StatusOK, s.opts.Admin.Status())
		return
	}
	names, ok := segments(path)
	switch {
	case !ok || len(names) == 0 || len(names) > 3:
		fail(ctx, fasthttp.StatusNotFound, "not found")
	case names[0] == "router":
		s.router(ctx, names[1:])
	case names[0] == "table":
		s.table(ctx, names[1:])
	default:
		fail(ctx, fasthttp.StatusNotFound, "not found")
	}
}

// own is the origin of pages that this server gave, as browsers write it.
func own(ctx *fasthttp.RequestCtx) string {
	if ctx.IsTLS() {
		return "https://" + string(ctx.Host())
	}
	return "http://" + string(ctx.Host())
}

// segments are the parts of a path that begins and ends with a slash, decoded.
func segments(path string) ([]string, bool) {
	inner, begins := strings.CutPrefix(path, "/")
	inner, ends := strings.CutSuffix(inner, "/")
	if !begins || !ends {
		return nil, false
	}
	parts := strings.Split(inner, "/")
	for i := range parts {
		plain, err := url.PathUnescape(parts[i])
		if err != nil || plain == "" {
			return nil, false
		}
		parts[i] = plain
	}
	return parts, true
}

func (s *AdminServer) router(ctx *fasthttp.RequestCtx, names []string) {
	if len(names) == 2 {
		address, err := s.opts.Admin.Owner(names[0], names[1])
		if err != nil {
			s.refuse(ctx, names[0], err)
			return
		}
		reply(ctx, fasthttp.StatusOK, address)
		return
	}
	s.describe(ctx, names, "routes", s.opts.Admin.Routes)
}

// describe answers what is said of one table, or of all: as the original does, or a page of it under its name for those who ask for pages.
func (s *AdminServer) describe(ctx *fasthttp.RequestCtx, names []string, list string, what func(string, Page) (any, string, bool)) {
	page, paged, ok := pageOf(ctx)
	if !ok {
		return
	}
	name := ""
	if len(names) > 0 {
		name, page, paged = names[0], Page{}, false // there is one
	}
	v, next, ok := what(name, page)
	switch {
	case !ok:
		s.refuse(ctx, name, ErrNoTable)
	case paged:
		reply(ctx, fasthttp.StatusOK, paging{list: v}.next(next))
	default:
		reply(ctx, fasthttp.StatusOK, v)
	}
}

// paging is the answer to a request for a page.
type paging map[string]any

// next says where the next page begins, if there is one.
func (p paging) next(next string) paging {
	if next != "" {
		p["next"] = next
	}
	return p
}

// pageOf reads the page that is asked for, and whether one is. False: it is not a page, and that is answered.
func pageOf(ctx *fasthttp.RequestCtx) (of Page, paged, ok bool) {
	args := ctx.QueryArgs()
	if !args.Has("limit") && !args.Has("after") {
		return Page{}, false, true
	}
	of = Page{After: string(args.Peek("after")), Limit: pageLimit}
	if args.Has("limit") {
		n, err := strconv.Atoi(string(args.Peek("limit")))
		if err != nil || n < 1 || n > PageLimitMax {
			fail(ctx, fasthttp.StatusBadRequest, "limit is a number from 1 to "+strconv.Itoa(PageLimitMax))
			return Page{}, false, false
		}
		of.Limit = n
	}
	return of, true, true
}

// scan answers a page of a table's entries, under what is said of the table.
func (s *AdminServer) scan(ctx *fasthttp.RequestCtx, table string, of Page) {
	entries, next, err := s.opts.Admin.Scan(ctx, table, of)
	if err != nil {
		s.refuse(ctx, table, err)
		return
	}
	reply(ctx, fasthttp.StatusOK, paging{"name": table, "entries": entries}.next(next))
}

func (s *AdminServer) table(ctx *fasthttp.RequestCtx, names []string) {
	if len(names) == 1 {
		of, paged, ok := pageOf(ctx)
		if !ok {
			return
		}
		if paged {
			s.scan(ctx, names[0], of)
			return
		}
	}
	if len(names) < 2 {
		s.describe(ctx, names, "tables", s.opts.Admin.Tables)
		return
	}
	value, err := s.opts.Admin.Value(ctx, names[0], names[1], string(ctx.QueryArgs().Peek("key")) == "json")
	switch {
	case err != nil:
		s.refuse(ctx, names[0], err)
	case value == nil:
		reply(ctx, fasthttp.StatusNotFound, map[string]string{"error": "key not found", "key": names[1], "table": names[0]})
	default:
		ctx.SetContentType("application/json")
		ctx.SetBody(value)
	}
}

func (s *AdminServer) refuse(ctx *fasthttp.RequestCtx, table string, err error) {
	switch {
	case errors.Is(err, ErrNoTable):
		reply(ctx, fasthttp.StatusNotFound, map[string]string{"error": ErrNoTable.Error(), "name": table})
	case errors.Is(err, ErrBadKey), errors.Is(err, ErrBadAfter):
		fail(ctx, fasthttp.StatusBadRequest, err.Error())
	default:
		ctx.Response.Header.Set("Retry-After", retryAfter)
		fail(ctx, fasthttp.StatusServiceUnavailable, err.Error())
	}
}
