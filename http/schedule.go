package http

import (
	"strconv"

	"github.com/valyala/fasthttp"
)

// ScheduleQuery asks for what the message scheduler has: one request id, or a page of the messages that wait or of the cron entries.
type ScheduleQuery struct {
	ID    string // empty: a list
	Crons bool
	After string // what the page before gave as next
	Limit int    // 1 to ScheduleLimitMax
}

// Rows of a page.
const (
	scheduleLimit    = 100
	ScheduleLimitMax = 1000
)

func (s *Server) schedule(ctx *fasthttp.RequestCtx) {
	args := ctx.QueryArgs()
	q := ScheduleQuery{ID: string(args.Peek("id")), Crons: string(args.Peek("list")) == "crons", After: string(args.Peek("after")), Limit: scheduleLimit}
	if text := string(args.Peek("limit")); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > ScheduleLimitMax {
			fail(ctx, fasthttp.StatusBadRequest, "limit is a number from 1 to "+strconv.Itoa(ScheduleLimitMax))
			return
		}
		q.Limit = n
	}
	if list := string(args.Peek("list")); list != "" && list != "crons" && list != "messages" {
		fail(ctx, fasthttp.StatusBadRequest, "list is messages or crons")
		return
	}
	code, body := s.opts.Schedule(q)
	reply(ctx, code, body)
}
