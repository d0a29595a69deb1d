package http

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/valyala/fasthttp"
)

// Console is what the console's page asks, from any number of goroutines. Answers are values for JSON, and bounded. They hold what users of
// the app wrote: data, never markup.
type Console interface {
	// Overview is what the app is made of and does.
	Overview() any
	// Failures are the last records that failed, with their records.
	Failures() any
	// Scheduled is a page of the messages that wait in the message scheduler, by time, or of its crons, behind a place that a page before gave.
	Scheduled(crons bool, after string) (any, error)
	// Table is a page of a table's entries that have the text of search, from a place of an earlier page on.
	Table(ctx context.Context, name, search, from string) (any, error)
	// Topic is records of a topic from offsets on, by partition; without offsets the last ones.
	Topic(ctx context.Context, name string, from map[int32]int64) (any, error)
}

// What a Console answers with instead.
var (
	ErrUnknown    = errors.New("not found")
	ErrBadRequest = errors.New("bad request")
	ErrNotReady   = errors.New("the app is starting")
	ErrBusy       = errors.New("too many look at topics at this moment")
)

// dist is the page, made of console/src by make console.
//
//go:embed console/dist
var dist embed.FS

var consoleFiles = map[string]struct{ name, contentType string }{
	"/console/":        {"index.html", "text/html; charset=utf-8"},
	"/console/app.js":  {"app.js", "text/javascript; charset=utf-8"},
	"/console/app.css": {"app.css", "text/css; charset=utf-8"},
}

// consolePolicy lets the page load its own files and ask its own server, and nothing else.
const consolePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *AdminServer) routeConsole() {
	if s.opts.Console == nil || s.opts.ConsoleFor != "loopback" && s.opts.ConsoleFor != "all" {
		return
	}
	s.pages, s.asked = map[string]func(*fasthttp.RequestCtx){}, map[string]func(*fasthttp.RequestCtx){}
	for path, f := range consoleFiles {
		text, err := dist.ReadFile("console/dist/" + f.name)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		s.pages[path] = s.guarded(func(ctx *fasthttp.RequestCtx) {
			ctx.SetContentType(f.contentType)
			ctx.SetBody(text)
		})
	}
	s.pages["/console"] = s.guarded(func(ctx *fasthttp.RequestCtx) { // a path, not a URL: the host is the client's word
		ctx.Response.Header.Set("Location", "console/")
		ctx.SetStatusCode(fasthttp.StatusFound)
	})
	c := s.opts.Console
	s.asked["/console/api/overview"] = s.guarded(func(ctx *fasthttp.RequestCtx) { reply(ctx, fasthttp.StatusOK, c.Overview()) })
	s.asked["/console/api/failures"] = s.guarded(func(ctx *fasthttp.RequestCtx) { reply(ctx, fasthttp.StatusOK, c.Failures()) })
	s.asked["/console/api/scheduled"] = s.guarded(func(ctx *fasthttp.RequestCtx) {
		q := ctx.QueryArgs()
		list := string(q.Peek("list"))
		if list != "messages" && list != "crons" {
			fail(ctx, fasthttp.StatusBadRequest, "list is messages or crons")
			return
		}
		page, err := c.Scheduled(list == "crons", string(q.Peek("after")))
		s.tell(ctx, page, err)
	})
	s.asked["/console/api/table"] = s.guarded(func(ctx *fasthttp.RequestCtx) {
		q := ctx.QueryArgs()
		page, err := c.Table(ctx, string(q.Peek("name")), string(q.Peek("search")), string(q.Peek("from")))
		s.tell(ctx, page, err)
	})
	s.asked["/console/api/topic"] = s.guarded(func(ctx *fasthttp.RequestCtx) {
		q := ctx.QueryArgs()
		from, err := parseOffsets(string(q.Peek("from")))
		if err != nil {
			s.tell(ctx, nil, err)
			return
		}
		page, err := c.Topic(ctx, string(q.Peek("name")), from)
		s.tell(ctx, page, err)
	})
}

func (s *AdminServer) tell(ctx *fasthttp.RequestCtx, body any, err error) {
	switch {
	case err == nil:
		reply(ctx, fasthttp.StatusOK, body)
	case errors.Is(err, ErrUnknown):
		fail(ctx, fasthttp.StatusNotFound, err.Error())
	case errors.Is(err, ErrBadRequest):
		fail(ctx, fasthttp.StatusBadRequest, err.Error())
	case errors.Is(err, ErrNotReady), errors.Is(err, ErrBusy):
		ctx.Response.Header.Set("Retry-After", "1")
		fail(ctx, fasthttp.StatusServiceUnavailable, err.Error())
	default:
		s.opts.Log.Error("console", "path", string(ctx.Path()), "err", err)
		fail(ctx, fasthttp.StatusBadGateway, err.Error())
	}
}

// guarded answers those who may see the console, with headers that keep what users wrote from being run or embedded.
func (s *AdminServer) guarded(answer func(*fasthttp.RequestCtx)) func(*fasthttp.RequestCtx) {
	return func(ctx *fasthttp.RequestCtx) {
		h := &ctx.Response.Header
		h.Set("Content-Security-Policy", consolePolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		if s.opts.ConsoleFor == "loopback" && !(ctx.RemoteIP().IsLoopback() && local(string(ctx.Host()))) {
			fail(ctx, fasthttp.StatusForbidden, "the console is for this machine only, at localhost or 127.0.0.1 (setting console)")
			return
		}
		answer(ctx)
	}
}

// local tells a Host header that names this machine. Another name may be a page's elsewhere that made the name resolve to here, to read what
// a browser on this machine is shown.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// offsetsMax bounds the partitions of one request.
const offsetsMax = 1000

// parseOffsets reads offsets by partition: "0:15,3:7". Empty text is nil.
func parseOffsets(text string) (map[int32]int64, error) {
	if text == "" {
		return nil, nil
	}
	offsets := map[int32]int64{}
	for part := range strings.SplitSeq(text, ",") {
		number, offset, _ := strings.Cut(part, ":")
		n, err := strconv.ParseInt(number, 10, 32)
		at, err2 := strconv.ParseInt(offset, 10, 64)
		if err != nil || err2 != nil || n < 0 || at < 0 || len(offsets) == offsetsMax {
			return nil, fmt.Errorf("from must be offsets by partition, such as 0:15,3:7: %w", ErrBadRequest)
		}
		offsets[int32(n)] = at
	}
	return offsets, nil
}
