package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// view is one KasprWebView at work. It has instances of its own, so that nothing it does keeps a stream waiting.
//
//	HTTP request ──► ask ──► queue ──► one call for all that wait ──► responses
//	                                                             └──► outputs, table changes ──► outbox, then the response
//
// Whatever a request wrote is committed before it is answered: a success says that it is there. A request that failed wrote nothing.
type view struct {
	app    *App
	plan   *plan.View
	code   *wasmhost.Component
	tables []int // by the program's index, as indexes of the plan's
	log    *slog.Logger
	queue  chan *ask
	turn   chan struct{} // capacity 1; a worker takes from queue while it has what is in here
	asks   sync.Pool

	stats viewStats
	cost  atomic.Int64 // nanoseconds a request keeps an instance (costAfter)
	noisy sampler      // failed requests
	print sampler      // lines of the guest

	schemaWriter
}

// viewStats counts what a view did since the start.
type viewStats struct {
	Requests, Refused, Late atomic.Int64               // taken; turned away for lack of room; given up for lack of time
	FailedBy                [failureKinds]atomic.Int64 // by record.FailureKind
	NotReady                atomic.Int64               // read a table that could not be read
	Took                    durations                  // from arrival to response
	Sent                    counts                     // outputs that were stored, by topic
}

// ask is a request that waits for its response.
type ask struct {
	req    *apphttp.Request
	trace  traceContext // that what it makes gets
	until  time.Time
	answer chan apphttp.Response // capacity 1
	timer  *time.Timer           // of the request's time; stopped between two requests
}

// How many requests one call takes: as many as are done in about callTime, so that nobody waits long for those before it.
const (
	callTime       = 4 * time.Millisecond
	callRequestMax = 128
)

// turnTime is how long a worker runs before another one takes what has come since. One instance that answers all is faster than several in turn, for
// what it touched last is still in the processor's caches, and its calls have more requests each; but who is slow keeps nobody.
const turnTime = time.Millisecond

func newView(app *App, p *plan.View) *view {
	v := &view{
		app: app, plan: p, log: app.log.With("view", p.Name), queue: make(chan *ask, app.cfg.Web.QueueMax), turn: make(chan struct{}, 1),
		schemaWriter: schemaWriter{app.registry, p.Schemas},
		noisy:        sampler{burst: 20, rate: 1}, print: sampler{burst: 1000, rate: 100},
	}
	v.turn <- struct{}{}
	v.asks.New = func() any {
		a := &ask{answer: make(chan apphttp.Response, 1), timer: time.NewTimer(time.Hour)}
		a.timer.Stop()
		return a
	}
	for _, u := range p.Tables {
		v.tables = append(v.tables, u.Table)
	}
	return v
}

// reads is what it reads of tables, and where it writes.
func (v *view) reads() viewTables { return viewTables{v.app, v.tables} }

// shown is the view among agents: none of them has such a name.
func (v *view) shown() string { return "KasprWebView/" + v.plan.Name }

// route is the view as the HTTP server knows it.
func (v *view) route() apphttp.View {
	r := apphttp.View{Method: v.plan.Method, Serve: v.serve}
	if r.Text = v.plan.Route.Text; r.Text == "" {
		r.Match, r.Params = v.plan.Route.Match, v.plan.Route.Params
	}
	return r
}

// serve answers one request. It comes from a goroutine of the HTTP server.
func (v *view) serve(req *apphttp.Request) apphttp.Response {
	began := time.Now()
	span, traced := v.app.traceRequest(v.plan, req, began)
	r := v.ask(req, traced, began)
	if span != nil {
		endRequest(span, r.Status)
	}
	return r
}

// ask has a worker answer a request.
func (v *view) ask(req *apphttp.Request, traced traceContext, began time.Time) apphttp.Response {
	v.app.seen.asking.Add(1) // before the look at closing
	defer v.app.seen.asking.Add(-1)
	if !v.app.seen.running.Load() || v.app.seen.closing.Load() {
		return v.notReady("the app is " + string(v.app.stateNow()))
	}
	a := v.asks.Get().(*ask)
	a.req, a.trace, a.until = req, traced, began.Add(v.app.cfg.Web.Timeout)
	select {
	case v.queue <- a:
	default:
		v.asks.Put(a)
		v.stats.Refused.Add(1)
		return busy("too many requests wait for this view")
	}
	v.stats.Requests.Add(1)
	a.timer.Reset(v.app.cfg.Web.Timeout)
	select {
	case r := <-a.answer:
		a.timer.Stop()
		v.asks.Put(a)
		v.stats.Took.observe(time.Since(began))
		return r
	case <-a.timer.C:
	case <-v.app.viewsEnd:
	}
	v.stats.Late.Add(1) // whoever has the ask answers it still, and nobody reads it
	return busy("the request was not answered in time; what it was to write may still be written")
}

func busy(text string) apphttp.Response {
	body, _ := json.Marshal(map[string]string{"error": text})
	return apphttp.Busy(body, 0)
}

// notReady says what is missing, with the progress of what is being restored.
func (v *view) notReady(why string) apphttp.Response {
	v.stats.NotReady.Add(1)
	type part struct {
		Table     string  `json:"table"`
		Partition int32   `json:"partition"`
		Phase     phase   `json:"phase"`
		Left      int64   `json:"left"`
		ETA       float64 `json:"etaSeconds"`
	}
	detail := struct {
		Error    string `json:"error"`
		Progress []part `json:"progress"`
	}{why, []part{}}
	longest := 0.0
	var states []tableState
	if v.app.seen.running.Load() {
		states = v.app.tableStates()
	}
	for _, i := range v.tables {
		for _, s := range states {
			if s.Table == v.app.plan.Tables[i].Name && s.Phase.recovering() && len(detail.Progress) < 100 {
				detail.Progress = append(detail.Progress, part{s.Table, s.Partition, s.Phase, s.Left, s.ETA})
				longest = max(longest, s.ETA)
			}
		}
	}
	body, err := json.Marshal(detail)
	if err != nil {
		panic("BUG: " + err.Error()) // our own values
	}
	return apphttp.Busy(body, time.Duration(min(longest, 60)*float64(time.Second)))
}

// work runs a slot's instance until ctx ends. It keeps its turn from call to call, as long as each is short.
func (v *view) work(ctx context.Context, slot int) {
	w := viewWorker{view: v, slot: slot}
	pass := time.AfterFunc(time.Hour, func() { v.turn <- struct{}{} })
	pass.Stop()
	for {
		select {
		case <-v.turn:
		case <-ctx.Done():
			return
		}
		for mine := true; mine; mine = pass.Stop() {
			asks := w.asks[:0]
			select {
			case a := <-v.queue:
				asks = append(asks, a)
			case <-ctx.Done():
				return
			}
			w.asks = whatWaits(v.queue, asks, v.most())
			pass.Reset(turnTime)
			w.run(ctx)
		}
	}
}

// costAfter is what a request is taken to cost after a call of so many that took so long: the average of late. But a call that took much longer than
// it was to take had a slow request, and the next may have one too: then few are taken together for a while, so that few wait behind it.
func costAfter(cost time.Duration, requests int, took time.Duration) time.Duration {
	if took > 2*callTime {
		return max(cost, took)
	}
	each := took / time.Duration(requests)
	if cost > 0 {
		each = (7*cost + each) / 8
	}
	return max(1, each)
}

// viewWorker is a slot of a view at work, with what it uses again from call to call.
type viewWorker struct {
	*view
	slot    int
	asks    []*ask
	calling []*ask // of the call that runs; those before them are answered, and may be others by now
	records []record.Record
	headers []record.Header // of all records
}

// most is how many requests the next call takes.
func (v *view) most() int {
	cost := v.cost.Load()
	if cost <= 0 {
		return 1
	}
	return max(1, min(callRequestMax, int(int64(callTime)/cost)))
}

// run answers the asks with one call, or more when an instance is lost on the way.
func (w *viewWorker) run(ctx context.Context) {
	v, now := w.view, time.Now()
	records, headers, kept := w.records[:0], w.headers[:0], w.asks[:0]
	for _, a := range w.asks {
		if now.After(a.until) {
			a.answer <- busy("the request waited too long")
			continue
		}
		n := len(headers)
		for _, value := range a.req.Params {
			headers = append(headers, record.Header{Value: value})
		}
		records, kept = append(records, record.Record{
			Partition: record.RecordPartition, Timestamp: now.UnixMilli(), Attempt: 1,
			Key: a.req.Head, Value: a.req.Body, Headers: headers[n:len(headers):len(headers)],
		}), append(kept, a)
	}
	w.records, w.headers = records, headers
	defer w.forget()
	if v.app.cfg.Tracing != config.TracingOff {
		ctx = context.WithValue(ctx, askedKey{}, w)
	}
	for len(kept) > 0 {
		w.calling = kept
		res, err := v.code.Call(ctx, w.slot, &record.Batch{Records: records[:fitting(records, v.app.cfg.Batch.BytesMax)]})
		if res.Done > 0 {
			v.cost.Store(int64(costAfter(time.Duration(v.cost.Load()), res.Done, res.Elapsed+res.Waited)))
		}
		v.settle(ctx, kept[:res.Done], &res)
		records, kept = records[res.Done:], kept[res.Done:]
		if err != nil {
			if ctx.Err() == nil {
				v.log.Error("no instance to answer requests with", "err", err)
			}
			for _, a := range kept {
				a.answer <- busy("no instance to answer with")
			}
			return
		}
	}
}

// fitting is how many of the requests make one call of at most so many bytes; one that is larger is a call of its own.
func fitting(records []record.Record, most int64) int {
	size := int64(0)
	for i := range records {
		size += int64(len(records[i].Key) + len(records[i].Value))
		for j := range records[i].Headers {
			size += int64(len(records[i].Headers[j].Value))
		}
		if i > 0 && size > most {
			return i
		}
	}
	return len(records)
}

// forget lets go of the requests of the last call.
func (w *viewWorker) forget() {
	clear(w.asks)
	w.calling = nil
	clear(w.records)
	clear(w.headers)
}

// settle answers the requests of a result, in its order.
func (v *view) settle(ctx context.Context, asks []*ask, res *record.Result) {
	if v.app.schedule != nil {
		v.app.schedule.route(res.Outputs)
	}
	outputs, changes, failures := res.Outputs, res.Changes, res.Failures
	for i, a := range asks {
		r := apphttp.Response{}
		var sends []record.Output
		for ; len(outputs) > 0 && int(outputs[0].Record) == i; outputs = outputs[1:] {
			if outputs[0].Topic == abi.ResponseTopic {
				r = v.response(&outputs[0])
			} else {
				a.trace.onto(&outputs[0])
				sends = append(sends, outputs[0])
			}
		}
		n := 0
		for n < len(changes) && int(changes[n].Record) == i {
			n++
		}
		writes := changes[:n]
		changes = changes[n:]
		if len(failures) > 0 && int(failures[0].Record) == i {
			f := &failures[0]
			failures = failures[1:]
			r, sends, writes = v.failed(a.req, f, r), nil, nil
		}
		if r.Status == 0 {
			v.log.Error("BUG: a request has no response")
			r = v.fallback("", "no response")
		}
		if len(sends) == 0 && len(writes) == 0 {
			a.answer <- r
			continue
		}
		v.write(ctx, a, r, sends, writes)
	}
}

// write stores what a request wrote, and answers it then.
func (v *view) write(ctx context.Context, a *ask, r apphttp.Response, sends []record.Output, writes []record.Change) {
	trace := a.trace // an answered ask may be another one by now
	ctx = trace.forward(ctx)
	done := func(err error) {
		var unready *notReadyError
		switch {
		case errors.As(err, &unready):
			r = v.notReady(err.Error())
		case err != nil:
			v.log.Warn("what a request wrote was not stored", "err", err)
			r = unstored(err)
		default:
			sent := map[string]int64{}
			for i := range sends {
				sent[sends[i].Topic]++
			}
			v.stats.Sent.add(sent)
		}
		a.answer <- r
	}
	post := func(placed []record.Output, err error) {
		if err != nil {
			done(err)
			return
		}
		for i := range placed {
			trace.onto(&placed[i])
		}
		v.app.outbox.post(&posting{outputs: append(sends, placed...), done: done})
	}
	placed, err := v.reads().place(ctx, writes, false)
	if errors.Is(err, wasmhost.ErrElsewhere) {
		v.app.placing.Go(func() { post(v.reads().place(ctx, writes, true)) }) // which waits for other processes
		return
	}
	post(placed, err)
}

// response is what the guest answered.
func (v *view) response(o *record.Output) apphttp.Response {
	r := apphttp.Response{Status: int(o.Partition), ContentType: contentTypeHeader[v.plan.Program.View.ContentType], Body: o.Value}
	if r.Status < 200 || r.Status > 599 {
		return v.fallback("", fmt.Sprintf("status %d", r.Status))
	}
	if r.Status == 204 || r.Status == 304 {
		r.ContentType, r.Body = "", nil
	}
	for _, h := range o.Headers {
		if h.Value == nil {
			continue // None: not this one
		}
		one := apphttp.Header{Name: h.Key, Value: string(h.Value)}
		if problem := apphttp.HeaderProblem(one); problem != "" {
			v.log.Error("response: " + problem)
			return v.fallback("", problem)
		}
		r.Headers = append(r.Headers, one)
	}
	return r
}

// contentTypeHeader is what a response says of its body.
var contentTypeHeader = map[string]string{
	"application/json":         "application/json; charset=utf-8",
	"text/plain":               "text/plain; charset=utf-8",
	"text/html":                "text/html; charset=utf-8",
	"application/octet-stream": "application/octet-stream",
}

// failed logs and counts a failure of a request, and gives the response to it: the one the view made, if it could.
func (v *view) failed(req *apphttp.Request, f *record.Failure, made apphttp.Response) apphttp.Response {
	if f.Kind == record.FailureCode && f.Type == abi.NotReady {
		return v.notReady(f.Message)
	}
	if f.Kind == record.FailureCode && f.Type == abi.HTTPError && made.Status != 0 && made.Status < 500 {
		return made // the code's answer, and no failure of it; what it was to write is not written all the same
	}
	if made.Status == 0 {
		made = v.fallback(f.Operation, f.Message)
	}
	v.stats.FailedBy[kindIndex(f.Kind)].Add(1)
	v.app.failures.addRequest(v.shown(), req, made.Status, f, time.Now())
	if left, ok := v.noisy.allow(time.Now()); ok {
		attrs := []any{"operation", f.Operation, "kind", f.Kind.String(), "err", strings.TrimSuffix(f.Type+": "+f.Message, ": ")}
		if f.Traceback != "" {
			attrs = append(attrs, "traceback", f.Traceback)
		}
		if left > 0 {
			attrs = append(attrs, "unlogged", left)
		}
		v.log.Error("request failed", attrs...)
	}
	return made
}

// fallback is the response to an error when the view itself made none.
func (v *view) fallback(operation, cause string) apphttp.Response {
	r := apphttp.Response{Status: 500, ContentType: "text/plain; charset=utf-8", Body: []byte(strings.TrimPrefix(operation+": "+cause, ": "))}
	if v.plan.Program.View.ContentType == "application/json" {
		body, err := json.Marshal(map[string]string{"operation": operation, "cause": cause})
		if err != nil {
			panic("BUG: " + err.Error())
		}
		r.ContentType, r.Body = contentTypeHeader["application/json"], body
	}
	return r
}

// Log, Send and EnsureTopic are what a view's code may ask of the engine (wasmhost.Host).

func (v *view) Log(level int, text string) { guestLine(v.log, &v.print, level, text) }

// Send is a topicSend with ack: it is committed by itself, before the code goes on.
func (v *view) Send(ctx context.Context, out record.Output, done func([]byte, error)) {
	runningContext(ctx).onto(&out)
	p := &posting{outputs: []record.Output{out}, acked: true}
	p.done = func(err error) {
		if err != nil {
			done(nil, err)
			return
		}
		v.stats.Sent.add(map[string]int64{out.Topic: 1})
		done(p.metadata())
	}
	v.app.outbox.post(p)
}

func (v *view) EnsureTopic(ctx context.Context, t abi.TopicRequest) error {
	return v.app.ensureRequested(ctx, t)
}

// IsLeader is wasmhost.Host's.
func (v *view) IsLeader() bool { return v.app.isLeader() }

// routes are the views as the HTTP server knows them.
func (a *App) routes() []apphttp.View {
	list := make([]apphttp.View, len(a.views))
	for i, v := range a.views {
		list[i] = v.route()
	}
	return list
}

// startViews begins to answer requests. The function it gives ends that, and may be called more than once: requests under way get some
// time; what they wrote is stored.
//
// What is being stored ends with hard.
func (a *App) startViews(ctx, hard context.Context, opts broker.Options) (stop func(), err error) {
	if len(a.views) == 0 {
		return func() {}, nil
	}
	exactlyOnce := a.cfg.ProcessingGuarantee == config.ExactlyOnce
	id := ""
	if exactlyOnce {
		id = a.transactionalID() + "-views"
	}
	producer, err := broker.NewProducer(opts, id)
	if err != nil {
		return nil, err
	}
	if exactlyOnce {
		if err := a.takeOver(ctx, producer); err != nil {
			producer.Close()
			return nil, err
		}
	}
	working, end := context.WithCancel(context.Background())
	posting, endPosting := context.WithCancel(hard)
	a.outbox = newOutbox(posting, hard, producer, exactlyOnce, a.cfg.TransactionTimeout, a.log)
	var workers, poster sync.WaitGroup
	for _, v := range a.views {
		for slot := range a.cfg.Web.Instances {
			workers.Go(func() { v.work(working, slot) })
		}
	}
	poster.Go(a.outbox.loop)
	return sync.OnceFunc(func() {
		a.seen.closing.Store(true)
		until := time.Now().Add(webStop)
		for a.seen.asking.Load() > 0 && time.Now().Before(until) {
			time.Sleep(5 * time.Millisecond)
		}
		end()
		workers.Wait()
		a.placing.Wait()
		endPosting()
		poster.Wait()
		producer.Close()
		close(a.viewsEnd)
	}), nil
}
