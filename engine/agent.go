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
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// agent is one KasprAgent at work: its code, its failure policy, its counters. Its lanes do the moving.
type agent struct {
	app       *App
	plan      *plan.Agent
	component string // "KasprAgent/orders", as dead letters name it
	code      caller
	tables    []int           // by the program's index, as indexes of the plan's
	view      wasmhost.Tables // of the tables; nil while its code is loaded
	group     int             // of agents that may touch the same tables
	lanes     []*lane         // by slot; shared with the other agents of its group
	log       *slog.Logger
	// A retry has to happen before the records behind it; a stop too. Otherwise one call does the whole batch.
	stopOnFailure bool
	timed         bool // code acts by itself, too (timed)

	stats Stats

	letters struct {
		sync.Mutex
		ensured bool // guarded by the mutex
	}
	noisy sampler // failed records
	print sampler // lines of the guest

	schemaWriter
}

// Stats counts what an agent did since the start, as far as it is committed.
type Stats struct {
	Records, Outputs, Calls                       atomic.Int64
	Failed, DeadLettered, Skipped, Retried, Stops atomic.Int64
	FailedBy                                      [failureKinds]atomic.Int64 // Failed by record.FailureKind

	Received counts // records, by topic
	Sent     counts // outputs of every kind, by topic
	FailedAt counts // Failed by the operation

	Lasted durations // of a record, from its arrival, or its last rewind, to its commit

	// Of calls as they are made, repeated ones included.
	Took  durations // of a call, in the guest
	Batch sizes     // records of a call
}

// failureKinds is one more than the last kind.
const failureKinds = record.FailureSend + 1

// kindIndex is where a kind is counted. Kinds come out of the guest's memory: one that does not exist is 0.
func kindIndex(k record.FailureKind) record.FailureKind {
	if k >= failureKinds {
		return 0
	}
	return k
}

// tally is what steps of an agent add to its Stats once they are committed.
type tally struct {
	calls, records, outputs, failed, deadLettered, skipped, retried int64
	failedBy                                                        [failureKinds]int64
	received, sent, failedAt                                        map[string]int64
}

func newTally() *tally {
	return &tally{received: map[string]int64{}, sent: map[string]int64{}, failedAt: map[string]int64{}}
}

func (t *tally) add(topic string, v *verdict) {
	t.received[topic] += int64(v.consumed)
	countTopics(t.sent, v.outputs)
	t.calls++
	t.records += int64(v.consumed)
	t.outputs += int64(len(v.outputs) - v.dead - v.routed)
	t.failed += int64(len(v.failed))
	for i := range v.failed {
		t.failedBy[kindIndex(v.failed[i].Kind)]++
		t.failedAt[placeOf(&v.failed[i])]++
	}
	t.deadLettered += int64(v.dead)
	t.skipped += int64(v.skipped)
	t.retried += int64(len(v.retried))
}

func (s *Stats) add(t *tally) {
	s.Calls.Add(t.calls)
	s.Records.Add(t.records)
	s.Outputs.Add(t.outputs)
	s.Failed.Add(t.failed)
	for kind, n := range t.failedBy {
		s.FailedBy[kind].Add(n)
	}
	s.DeadLettered.Add(t.deadLettered)
	s.Skipped.Add(t.skipped)
	s.Retried.Add(t.retried)
	s.Received.add(t.received)
	s.Sent.add(t.sent)
	s.FailedAt.add(t.failedAt)
}

// countTopics counts outputs by topic; those of one topic mostly stand together.
func countTopics(n map[string]int64, outs []record.Output) {
	for len(outs) > 0 {
		same := 1
		for same < len(outs) && outs[same].Topic == outs[0].Topic {
			same++
		}
		n[outs[0].Topic] += int64(same)
		outs = outs[same:]
	}
}

// placeOf is where a record failed, in metrics.
func placeOf(f *record.Failure) string {
	if f.Operation == "" {
		return wasmhost.Codec
	}
	return f.Operation
}

func newAgent(app *App, p *plan.Agent) *agent {
	a := &agent{
		app: app, plan: p, group: p.Group, component: "KasprAgent/" + p.Name,
		log:           app.log.With("agent", p.Name),
		noisy:         sampler{burst: 20, rate: 1},
		print:         sampler{burst: 1000, rate: 100},
		schemaWriter:  schemaWriter{app.registry, p.Schemas},
		stopOnFailure: p.OnError.Blocks() || p.OnError.Action == plan.Stop,
	}
	if p.Task != nil {
		a.component, a.log = "KasprTask/"+p.Name, app.log.With("task", p.Name)
	}
	for _, u := range p.Tables {
		a.tables = append(a.tables, u.Table)
	}
	return a
}

// runs gives the agent its code.
func (a *agent) runs(code caller) {
	a.code = code
	_, a.timed = code.(timed)
}

// guest is its user code; nil: it has none.
func (a *agent) guest() *wasmhost.Component {
	code := a.code
	switch of := code.(type) {
	case *joinPart:
		code = of.extractor
	case *task:
		code = of.code
	}
	c, _ := code.(*wasmhost.Component)
	return c
}

// note logs a step's failures.
func (a *agent) note(b *record.Batch, v *verdict) {
	for i := range v.failed {
		a.logFailure(slog.LevelError, &b.Records[v.failed[i].Record], &v.failed[i], string(a.plan.OnError.Action))
	}
	for i := range v.retried {
		a.logFailure(slog.LevelWarn, &b.Records[v.retried[i].Record], &v.retried[i], "retry")
	}
}

// logFailure logs one failed record; a flood of them is thinned out, and the next line says by how many.
func (a *agent) logFailure(level slog.Level, r *record.Record, f *record.Failure, policy string) {
	a.app.failures.add(a.shown(), policy, r, f, time.Now())
	left, ok := a.noisy.allow(time.Now())
	if !ok {
		return
	}
	if policy == string(plan.DeadLetter) {
		policy += " -> " + a.plan.OnError.DeadLetterTopic
	}
	attrs := []any{
		"operation", f.Operation, "topic", r.Topic, "partition", r.Partition, "offset", r.Offset,
		"attempt", r.Attempt, "kind", f.Kind.String(), "policy", policy, "err", strings.TrimSuffix(f.Type+": "+f.Message, ": "),
	}
	if f.Traceback != "" {
		attrs = append(attrs, "traceback", f.Traceback)
	}
	if left > 0 {
		attrs = append(attrs, "unlogged", left)
	}
	a.log.Log(context.Background(), level, "record failed", attrs...)
}

// sampler lets a burst of events through, then rate of them a second.
type sampler struct {
	burst, rate float64

	mu      sync.Mutex
	tokens  float64   // guarded by mu
	last    time.Time // guarded by mu
	dropped int       // guarded by mu
}

// allow says whether an event may be shown, and how many were not since the last one that was.
func (s *sampler) allow(now time.Time) (dropped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.IsZero() {
		s.tokens = s.burst
	} else {
		s.tokens = min(s.burst, s.tokens+s.rate*now.Sub(s.last).Seconds())
	}
	s.last = now
	if s.tokens < 1 {
		s.dropped++
		return 0, false
	}
	s.tokens--
	dropped, s.dropped = s.dropped, 0
	return dropped, true
}

// ensureDeadLetterTopic creates the dead-letter topic before the first dead letter, unless the app must not create
// topics; then it is expected to exist.
func (a *agent) ensureDeadLetterTopic(ctx context.Context) error {
	a.letters.Lock()
	defer a.letters.Unlock()
	if a.letters.ensured {
		return nil
	}
	if a.app.cfg.Topics.AllowDeclare {
		if err := a.app.ensure(ctx, broker.Topic{
			Name: a.plan.OnError.DeadLetterTopic, Partitions: int32(a.app.cfg.Topics.Partitions),
			Replicas: int16(a.app.cfg.Topics.ReplicationFactor),
		}); err != nil {
			return fmt.Errorf("%s: %w", a.plan.Label, err)
		}
	}
	a.letters.ensured = true
	return nil
}

// Log, Send and EnsureTopic are what the agent's code may ask of the engine (wasmhost.Host).

func (a *agent) Log(level int, text string) { guestLine(a.log, &a.print, level, text) }

// guestLine logs a line that code printed or logged.
func guestLine(log *slog.Logger, print *sampler, level int, text string) {
	to := slog.LevelInfo
	switch {
	case level < 20:
		to = slog.LevelDebug
	case level >= 40:
		to = slog.LevelError
	case level >= 30:
		to = slog.LevelWarn
	}
	// Code can print tens of thousands of lines within one deadline; a log is for people.
	hidden, ok := print.allow(time.Now())
	if !ok {
		return
	}
	attrs := []any{"source", "guest"}
	if hidden > 0 {
		attrs = append(attrs, "unlogged", hidden)
	}
	log.Log(context.Background(), to, text, attrs...)
}

func (a *agent) Send(ctx context.Context, out record.Output, done func([]byte, error)) {
	w, _ := ctx.Value(workKey{}).(*work)
	a.app.commits.sendNow(ctx, w, out, func(d broker.Delivered, at time.Time, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(sentMetadata(d, at))
	})
}

func sentMetadata(d broker.Delivered, at time.Time) ([]byte, error) {
	return json.Marshal(map[string]any{
		"topic": d.Topic, "partition": d.Partition, "offset": d.Offset,
		"timestamp": float64(at.UnixMilli()) / 1000, "timestamp_type": 0,
	})
}

func (a *agent) EnsureTopic(ctx context.Context, t abi.TopicRequest) error {
	return a.app.ensureRequested(ctx, t)
}

// IsLeader is wasmhost.Host's.
func (a *agent) IsLeader() bool { return a.app.isLeader() }

// ensureRequested makes a topic that code asked for.
func (a *App) ensureRequested(ctx context.Context, t abi.TopicRequest) error {
	if !a.cfg.Topics.AllowDeclare {
		return fmt.Errorf("topic %s: this app may not create topics (topicAllowDeclare is false)", t.Name)
	}
	b := broker.Topic{Name: t.Name, Partitions: t.Partitions, Replicas: t.Replicas, Config: t.Config}
	if b.Partitions == 0 {
		b.Partitions = int32(a.cfg.Topics.Partitions)
	}
	if b.Replicas == 0 {
		b.Replicas = int16(a.cfg.Topics.ReplicationFactor)
	}
	return a.ensure(ctx, b)
}

// agentTables is what an agent's code may read of tables (wasmhost.Tables): those of its program, once there are some.
type agentTables struct{ *agent }

var errLoading = errors.New("tables cannot be read while code is loaded")

func (t agentTables) TableGet(own int32, table int, partition int32, key []byte) ([]byte, error) {
	if t.view == nil {
		return nil, errLoading
	}
	return t.view.TableGet(own, table, partition, key)
}

func (t agentTables) TableScan(own int32, table int, partition int32, prefix, after []byte, each func(key, value []byte) bool) error {
	if t.view == nil {
		return errLoading
	}
	return t.view.TableScan(own, table, partition, prefix, after, each)
}

func (t agentTables) TableInfo(table int) (int32, []int32, int64, error) {
	if t.view == nil {
		return 0, nil, 0, errLoading
	}
	return t.view.TableInfo(table)
}
