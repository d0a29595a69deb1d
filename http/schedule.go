package http

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
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
	if s.views.admits(ctx) {
		showSchedule(ctx, s.opts.Schedule)
	}
}

func showSchedule(ctx *fasthttp.RequestCtx, show func(ScheduleQuery) (int, any)) {
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
	code, body := show(q)
	reply(ctx, code, body)
}

// ScheduleChange is what POST /schedule of the admin server asks for.
type ScheduleChange struct {
	Action    string            `json:"action"` // CANCEL, REPLACE, CRON_PAUSE, CRON_RESUME, CRON_CANCEL
	RequestID string            `json:"requestId"`
	DeliverTo string            `json:"deliverTo"` // of REPLACE, as all that follows
	DeliverAt string            `json:"deliverAt"`
	Key       *string           `json:"key"`
	Value     json.RawMessage   `json:"value"` // a text is itself, anything else is JSON; null or nothing is null
	Headers   map[string]string `json:"headers"`
}

// ErrBadChange says that a ScheduleChange makes no sense.
var ErrBadChange = errors.New("not a change of the schedule")

var scheduleActions = []string{"CANCEL", "REPLACE", "CRON_PAUSE", "CRON_RESUME", "CRON_CANCEL"}

// parseChange reads a change and finds what is wrong with its form; empty: nothing.
func parseChange(body []byte) (c ScheduleChange, wrong string) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, "the body is not a change as JSON: " + err.Error()
	}
	replace := c.Action == "REPLACE"
	switch _, err := d.Token(); {
	case !errors.Is(err, io.EOF):
		return c, "something follows the change"
	case !slices.Contains(scheduleActions, c.Action):
		return c, "action is CANCEL, REPLACE, CRON_PAUSE, CRON_RESUME or CRON_CANCEL"
	case c.RequestID == "":
		return c, "requestId is needed"
	case replace && (c.DeliverTo == "" || c.DeliverAt == ""):
		return c, "REPLACE needs deliverTo and deliverAt"
	case !replace && (c.DeliverTo != "" || c.DeliverAt != "" || c.Key != nil || c.Value != nil || c.Headers != nil):
		return c, c.Action + " has requestId only"
	}
	return c, ""
}

// ValueBytes is the value of the message.
func (c *ScheduleChange) ValueBytes() []byte {
	var text string
	switch {
	case len(c.Value) == 0 || string(c.Value) == "null":
		return nil
	case json.Unmarshal(c.Value, &text) == nil:
		return []byte(text)
	}
	return c.Value
}

// schedule shows and changes what waits.
func (s *AdminServer) schedule(ctx *fasthttp.RequestCtx) {
	switch {
	case ctx.IsGet() || ctx.IsHead():
		showSchedule(ctx, s.opts.Admin.Schedule)
		return
	case !ctx.IsPost():
		ctx.Response.Header.Set("Allow", "GET, HEAD, POST")
		fail(ctx, fasthttp.StatusMethodNotAllowed, "only GET, HEAD and POST are answered here")
		return
	}
	c, wrong := parseChange(ctx.Request.Body())
	if wrong != "" {
		fail(ctx, fasthttp.StatusBadRequest, wrong)
		return
	}
	request, err := s.opts.Admin.Steer(ctx, c)
	switch {
	case errors.Is(err, ErrBadChange):
		fail(ctx, fasthttp.StatusBadRequest, err.Error())
	case err != nil:
		ctx.Response.Header.Set("Retry-After", retryAfter)
		fail(ctx, fasthttp.StatusServiceUnavailable, err.Error())
	default: // what becomes of it is told by the schedule, later
		reply(ctx, fasthttp.StatusAccepted, map[string]string{"request": request})
	}
}
