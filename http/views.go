package http

import (
	"bytes"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// View is one method on one path that somebody else answers.
type View struct {
	Method string
	// Text is the whole path, as it is written in a request; with Match, whose groups named Params are the path's parameters, it is
	// empty. Both are of what follows Options.BasePath.
	Text   string
	Match  *regexp.Regexp
	Params []string
	Serve  func(*Request) Response
}

// Request is what a view gets. It owns its bytes.
type Request struct {
	// Head is the lines of pyguest/runtime/kaspr_request.py.
	Head   []byte
	Params [][]byte // percent-decoded, in the order of View.Params
	Body   []byte   // nil: there is none
	Trace  Trace
}

// Line is the method and the path, as they were sent.
func (r *Request) Line() (method, path string) {
	lines := strings.SplitN(string(r.Head), "\n", 5)
	return lines[0], lines[3] // behind the scheme and the client's address
}

// Response is a view's answer.
type Response struct {
	Status      int
	ContentType string // unless a header says otherwise
	Headers     []Header
	Body        []byte
}

// Header is one header of an answer.
type Header struct{ Name, Value string }

// router finds the view of a path. Whole paths come before patterns, and these in the order they were given.
type router struct {
	base     string
	texts    map[string]methods
	patterns []pattern
}

// methods are the views of one path.
type methods map[string]*View

type pattern struct {
	match  *regexp.Regexp
	groups []int // of the parameters
	views  methods
}

func newRouter(base string, views []View) *router {
	r := &router{base: base, texts: map[string]methods{}}
	shapes := map[string]int{}
	for i := range views {
		v := &views[i]
		if v.Match == nil {
			if r.texts[v.Text] == nil {
				r.texts[v.Text] = methods{}
			}
			r.texts[v.Text][v.Method] = v
			continue
		}
		// Views that match alike are one pattern, whatever their parameters are called.
		shape := regexp.MustCompile(`\(\?P<\w+>`).ReplaceAllString(v.Match.String(), "(")
		at, ok := shapes[shape]
		if !ok {
			at = len(r.patterns)
			shapes[shape] = at
			p := pattern{match: v.Match, views: methods{}}
			for _, name := range v.Params {
				p.groups = append(p.groups, v.Match.SubexpIndex(name))
			}
			r.patterns = append(r.patterns, p)
		}
		r.patterns[at].views[v.Method] = v
	}
	return r
}

// find gives the view of a method and path, as these stand in a request, and the path's parameters as they stand there. Without one
// it gives the methods the path has; nil: no view has the path.
func (r *router) find(method, path string) (v *View, params []string, allowed []string) {
	path, ok := strings.CutPrefix(path, r.base)
	if !ok {
		return nil, nil, nil
	}
	try := func(m methods) bool {
		if v = m[method]; v == nil && method == fasthttp.MethodHead {
			v = m[fasthttp.MethodGet]
		}
		if v != nil {
			return true
		}
		for name := range m {
			allowed = append(allowed, name)
		}
		if m[fasthttp.MethodGet] != nil {
			allowed = append(allowed, fasthttp.MethodHead)
		}
		return false
	}
	if try(r.texts[path]) {
		return v, nil, nil
	}
	if strings.Contains(path, "%") { // the same path, written another way
		if plain, err := url.PathUnescape(path); err == nil && try(r.texts[plain]) {
			return v, nil, nil
		}
	}
	for i := range r.patterns {
		p := &r.patterns[i]
		if m := p.match.FindStringSubmatch(path); m != nil && try(p.views) {
			values := make([]string, len(p.groups))
			for k, group := range p.groups {
				values[k] = m[group]
			}
			return v, values, nil
		}
	}
	slices.Sort(allowed)
	return nil, nil, slices.Compact(allowed)
}

// view answers with the view of the request; false when none has its path.
func (s *Server) view(ctx *fasthttp.RequestCtx) bool {
	method, raw := string(ctx.Method()), string(ctx.Request.URI().PathOriginal())
	v, params, allowed := s.router.find(method, raw)
	if (v != nil || allowed != nil) && !s.views.admits(ctx) {
		return true
	}
	if v == nil {
		if allowed == nil {
			return false
		}
		ctx.Response.Header.Set("Allow", strings.Join(allowed, ", "))
		fail(ctx, fasthttp.StatusMethodNotAllowed, "Method "+method+" not allowed.")
		return true
	}
	req := &Request{Params: make([][]byte, len(params)), Trace: traceOf(&ctx.Request.Header)}
	for i, value := range params {
		plain, err := url.PathUnescape(value)
		if err != nil {
			fail(ctx, fasthttp.StatusBadRequest, "the path is not percent-encoded as it must be")
			return true
		}
		req.Params[i] = []byte(plain)
	}
	if body := ctx.Request.Body(); len(body) > 0 || ctx.Request.Header.ContentLength() > 0 {
		req.Body = bytes.Clone(body) // the connection's buffer outlives no answer, and a view may be given up before it ends
	}
	req.Head = appendHead(make([]byte, 0, 512), ctx, method, raw)
	s.answer(ctx, v.Serve(req))
	return true
}

// appendHead appends the head of a request. No part of a line holds an end of one.
func appendHead(to []byte, ctx *fasthttp.RequestCtx, method, path string) []byte {
	line := func(text string) { to = append(append(to, text...), '\n') }
	part := func(text []byte) {
		n := len(to)
		to = append(to, text...)
		for i := n; i < len(to); i++ {
			if to[i] == '\n' || to[i] == '\r' { // of a header that goes over several lines
				to[i] = ' '
			}
		}
	}
	line(method)
	if ctx.IsTLS() {
		line("https")
	} else {
		line("http")
	}
	if tcp, ok := ctx.RemoteAddr().(*net.TCPAddr); ok {
		if at := tcp.AddrPort().Addr(); at.IsValid() {
			to = at.Unmap().AppendTo(to)
		}
	}
	line("")
	part([]byte(path))
	line("")
	part(ctx.URI().QueryString())
	line("")
	if ctx.Request.Header.ConnectionClose() {
		line("0")
	} else {
		line("1")
	}
	for name, value := range ctx.Request.Header.All() {
		part(name)
		to = append(to, ':')
		part(value)
		line("")
	}
	return to
}

// retryAfter is what a client is told to wait, in seconds, when there is no room.
const retryAfter = "1"

// answer writes a view's response.
func (s *Server) answer(ctx *fasthttp.RequestCtx, r Response) {
	h := &ctx.Response.Header
	ctx.SetStatusCode(r.Status)
	if r.ContentType != "" {
		ctx.SetContentType(r.ContentType)
	} else {
		h.SetNoDefaultContentType(true)
	}
	for _, one := range r.Headers {
		switch strings.ToLower(one.Name) {
		case "content-type":
			ctx.SetContentType(one.Value)
		case "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer":
			// of the connection, which is the server's
		default:
			h.Add(one.Name, one.Value)
		}
	}
	ctx.Response.SetBodyRaw(r.Body)
}

// HeaderProblem says what is wrong with a header of an answer; "" for nothing.
func HeaderProblem(h Header) string {
	if h.Name == "" {
		return "a header has no name"
	}
	for i := range len(h.Name) {
		if c := h.Name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) >= 0 {
			return strconv.Quote(h.Name) + " is not the name of a header"
		}
	}
	for i := range len(h.Value) {
		if c := h.Value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "header " + h.Name + " has a control character in its value"
		}
	}
	return ""
}

// Busy is the answer when there is no room, or nobody who could answer now.
func Busy(detail []byte, after time.Duration) Response {
	seconds := retryAfter
	if after > time.Second {
		seconds = strconv.Itoa(int(after.Seconds()))
	}
	return Response{
		Status: fasthttp.StatusServiceUnavailable, ContentType: "application/json", Body: detail,
		Headers: []Header{{"Retry-After", seconds}},
	}
}
