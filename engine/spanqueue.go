package engine

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// spanQueue takes spans to the collector (sdktrace.SpanProcessor). Whoever ends a span never waits: while the collector is slow or gone
// the queue fills, and what finds no room is dropped and counted. The SDK's own queue drops without telling how many.
type spanQueue struct {
	exporter sdktrace.SpanExporter
	log      *slog.Logger
	spans    chan sdktrace.ReadOnlySpan
	stop     chan struct{} // closed: send what is left, and end
	ended    chan struct{}
	close    sync.Once
	// sending ends exports under way when the stop's time is over.
	sending context.Context
	cancel  context.CancelFunc

	exported, full, failed atomic.Int64 // taken by the collector; not, for lack of room here; not, for other reasons
	noisy                  sampler      // exports that failed; only loop's
}

const (
	spanQueueMax = 4096
	spanBatchMax = 512
	spanLinger   = time.Second // that a batch which is not full waits for more
)

func newSpanQueue(exporter sdktrace.SpanExporter, log *slog.Logger) *spanQueue {
	q := &spanQueue{
		exporter: exporter, log: log, spans: make(chan sdktrace.ReadOnlySpan, spanQueueMax), stop: make(chan struct{}), ended: make(chan struct{}),
		noisy: sampler{burst: 1, rate: 1.0 / 60},
	}
	q.sending, q.cancel = context.WithCancel(context.Background())
	go q.loop()
	return q
}

// OnStart is sdktrace.SpanProcessor's.
func (q *spanQueue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd is sdktrace.SpanProcessor's.
func (q *spanQueue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	select {
	case q.spans <- s:
	default:
		q.full.Add(1)
	}
}

// ForceFlush is sdktrace.SpanProcessor's; nobody asks for it.
func (q *spanQueue) ForceFlush(context.Context) error { return nil }

// Shutdown sends what is left, until ctx ends; then the rest is dropped.
func (q *spanQueue) Shutdown(ctx context.Context) error {
	q.close.Do(func() { close(q.stop) })
	defer q.cancel()
	select {
	case <-q.ended:
	case <-ctx.Done():
		q.cancel()
		<-q.ended
	}
	return q.exporter.Shutdown(ctx)
}

func (q *spanQueue) loop() {
	defer close(q.ended)
	batch := make([]sdktrace.ReadOnlySpan, 0, spanBatchMax)
	linger := time.NewTimer(spanLinger)
	defer linger.Stop()
	for stopping := false; !stopping; {
		select {
		case s := <-q.spans:
			batch = append(batch, s)
		case <-q.stop:
			stopping = true
		}
		linger.Reset(spanLinger)
		for waiting := !stopping; waiting && len(batch) < spanBatchMax; {
			select {
			case s := <-q.spans:
				batch = append(batch, s)
			case <-linger.C:
				waiting = false
			case <-q.stop:
				waiting, stopping = false, true
			}
		}
		batch = q.export(batch)
	}
	for {
		select {
		case s := <-q.spans:
			if batch = append(batch, s); len(batch) == spanBatchMax {
				batch = q.export(batch)
			}
			continue
		default:
		}
		q.export(batch)
		return
	}
}

// export sends a batch, and gives it back empty.
func (q *spanQueue) export(batch []sdktrace.ReadOnlySpan) []sdktrace.ReadOnlySpan {
	if len(batch) == 0 {
		return batch
	}
	if err := q.exporter.ExportSpans(q.sending, batch); err != nil {
		q.failed.Add(int64(len(batch)))
		if left, ok := q.noisy.allow(time.Now()); ok {
			q.log.Warn("the collector does not take spans; they are dropped", "err", err, "unlogged", left)
		}
	} else {
		q.exported.Add(int64(len(batch)))
	}
	clear(batch)
	return batch[:0]
}
