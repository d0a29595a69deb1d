package http

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// peerPath is where processes of one app read each other's tables. Nobody else knows the secret, so nobody else gets in.
const peerPath = "/_kaspr/read"

// peerBodyMax bounds a question; answers are the answering process's own.
const peerBodyMax = 4 << 20

// isPeer tells whether a request is another process's of the app.
func (s *Server) isPeer(h *fasthttp.RequestHeader) bool {
	given, ok := strings.CutPrefix(string(h.Peek("Authorization")), "Bearer ")
	return s.opts.Peer != nil && s.opts.PeerSecret != "" && ok && subtle.ConstantTimeCompare([]byte(given), []byte(s.opts.PeerSecret)) == 1
}

// peer answers another process of the app.
func (s *Server) peer(ctx *fasthttp.RequestCtx) {
	switch {
	case !s.isPeer(&ctx.Request.Header):
		fail(ctx, fasthttp.StatusNotFound, "not found") // for strangers there is nothing here
	case !ctx.IsPost():
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only POST is answered here")
	default:
		answer, err := s.opts.Peer(traceOf(&ctx.Request.Header), ctx.Request.Body())
		if err != nil {
			fail(ctx, fasthttp.StatusBadRequest, err.Error())
			return
		}
		ctx.SetContentType("application/octet-stream")
		ctx.Response.SetBodyRaw(answer)
	}
}

// Peers asks other processes of the app. An address is http://SECRET@HOST:PORT, or https.
type Peers struct{ client *fasthttp.Client }

// NewPeers returns a client; with https, trust says whom to trust and who we are.
func NewPeers(trust *tls.Config) *Peers {
	return &Peers{&fasthttp.Client{
		Name: "kaspr", TLSConfig: trust, MaxConnsPerHost: 64, MaxIdleConnDuration: 30 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 10 * time.Second,
		MaxResponseBodySize: 64 << 20, RetryIfErr: func(*fasthttp.Request, int, error) (resetTimeout, retry bool) { return false, false }, DialTimeout: fasthttp.DialDualStackTimeout,
		MaxConnWaitTimeout: time.Second,
	}}
}

// Read asks a process for something of its tables.
func (p *Peers) Read(ctx context.Context, address string, question []byte) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User == nil {
		return nil, fmt.Errorf("%q is not the address of a process", address)
	}
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(u.Scheme + "://" + u.Host + peerPath)
	req.Header.SetMethod(fasthttp.MethodPost)
	req.Header.Set("Authorization", "Bearer "+u.User.Username())
	setTrace(ctx, &req.Header)
	req.SetBodyRaw(question)
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(30 * time.Second)
	}
	if err := p.client.DoDeadline(req, resp, deadline); err != nil {
		return nil, fmt.Errorf("ask %s: %w", u.Host, err)
	}
	if resp.StatusCode() != fasthttp.StatusOK {
		return nil, fmt.Errorf("ask %s: status %d", u.Host, resp.StatusCode())
	}
	return append([]byte(nil), resp.Body()...), nil
}

// Close lets connections go.
func (p *Peers) Close() { p.client.CloseIdleConnections() }
