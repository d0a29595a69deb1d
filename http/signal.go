package http

import (
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

// rebalancePath has the group assign its partitions anew. The original's operator asks for it at the views' port, of whom nobody knows who asks.
const rebalancePath = "/signal/rebalance"

// rebalance answers a request for one, as the original does.
func rebalance(ctx *fasthttp.RequestCtx, do func() error) {
	if !ctx.IsPost() {
		ctx.Response.Header.Set("Allow", "POST")
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only POST is answered here")
		return
	}
	switch err := do(); {
	case errors.Is(err, errAgain):
		ctx.Response.Header.Set("Retry-After", strconv.Itoa(int(signalPause/time.Second)))
		fail(ctx, fasthttp.StatusTooManyRequests, err.Error())
	case err != nil:
		fail(ctx, fasthttp.StatusServiceUnavailable, err.Error())
	default:
		reply(ctx, fasthttp.StatusOK, map[string]string{"status": "ok", "message": "Rebalance requested"})
	}
}

// rebalance is for those who may call views, and for no page in a browser, which could be anybody's.
func (s *Server) rebalance(ctx *fasthttp.RequestCtx) {
	if len(ctx.Request.Header.Peek("Origin")) > 0 {
		fail(ctx, fasthttp.StatusForbidden, "not for pages in a browser")
		return
	}
	if s.views.admits(ctx) {
		rebalance(ctx, func() error { return s.signal.pass(time.Now(), s.opts.App.Rebalance) })
	}
}

// signalPause is between two rebalances that strangers have asked for: a group that is asked without end would do nothing else.
const signalPause = 10 * time.Second

var errAgain = errors.New("a rebalance was requested a moment ago")

// signal lets what strangers ask for pass now and then.
type signal struct {
	mu   sync.Mutex
	last time.Time // guarded by mu; when one has passed
}

func (s *signal) pass(now time.Time, do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && now.Sub(s.last) < signalPause {
		return errAgain
	}
	if err := do(); err != nil {
		return err
	}
	s.last = now
	return nil
}
