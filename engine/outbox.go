package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
)

// outbox stores what requests write: messages, and table changes as records of the tables' writes topics (view.place), which the owners
// of the partitions apply (writes.go). It takes all that waits together, as one transaction of its own producer: a posting counts as a whole or
// not at all, and is answered when that is known. Streams commit with another producer and never wait for it.
//
// With at_least_once there is no transaction: a posting is done when the broker has all of it.
type outbox struct {
	producer    requestSender
	exactlyOnce bool
	timeout     time.Duration // of one transaction
	log         *slog.Logger

	ctx   context.Context // postings that come after its end are refused
	hard  context.Context // what is being stored when it ends is given up
	queue chan *posting
}

// requestSender is what the outbox needs of broker.Producer.
type requestSender interface {
	Send(ctx context.Context, outs []record.Output, done func([]broker.SendFailure))
	SendSync(ctx context.Context, o record.Output) (broker.Delivered, time.Time, error)
	Begin() error
	Commit(ctx context.Context) error
	Abort(ctx context.Context) error
	Reopen(ctx context.Context) error
}

// posting is what one request writes.
type posting struct {
	outputs []record.Output
	acked   bool // one output, of which the metadata is wanted
	done    func(error)

	sent      broker.Delivered
	sentAt    time.Time
	failed    error // of the running attempt
	ofMessage bool  // and it would fail again
}

// metadata is that of an acked posting's message, as JSON.
func (p *posting) metadata() ([]byte, error) { return sentMetadata(p.sent, p.sentAt) }

// postingsMax bounds one transaction, and what waits for the next.
const postingsMax = 1000

// attemptsMax bounds how often a transaction that the broker did not take is tried.
const attemptsMax = 5

var (
	errStopping = errors.New("the app is stopping")
	errUnknown  = errors.New("it is not known whether it was stored")
	errAborted  = errors.New("the transaction was aborted")
)

// unstored is the response to a request whose writes are not stored, or not known to be.
func unstored(err error) apphttp.Response {
	var refused *refusedError
	if errors.As(err, &refused) {
		body, _ := json.Marshal(map[string]string{"error": err.Error()})
		return apphttp.Response{Status: 500, ContentType: "application/json", Body: body}
	}
	return busy("not stored: " + err.Error())
}

// refusedError says that the broker will not take a message, however often it is asked.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

func newOutbox(ctx, hard context.Context, producer requestSender, exactlyOnce bool, timeout time.Duration, log *slog.Logger) *outbox {
	return &outbox{producer: producer, exactlyOnce: exactlyOnce, timeout: timeout, log: log, ctx: ctx, hard: hard, queue: make(chan *posting, postingsMax)}
}

// post takes a posting; done is called once, from another goroutine or this one. It waits while too many wait already.
func (o *outbox) post(p *posting) {
	select {
	case o.queue <- p:
	case <-o.ctx.Done():
		p.done(errStopping)
	}
}

// loop stores postings until the end of its context, and then those that wait.
func (o *outbox) loop() {
	for {
		var batch []*posting
		select {
		case p := <-o.queue:
			if o.ctx.Err() != nil { // both were there
				p.done(errStopping)
				continue
			}
			batch = append(batch, p)
		case <-o.ctx.Done():
			select {
			case p := <-o.queue: // taken before the end: its request waits
				batch = append(batch, p)
			default:
				return
			}
		}
		o.store(whatWaits(o.queue, batch, postingsMax))
	}
}

// whatWaits adds to list what waits in a queue now, up to most.
func whatWaits[T any](queue <-chan T, list []T, most int) []T {
	for len(list) < most {
		select {
		case x := <-queue:
			list = append(list, x)
		default:
			return list
		}
	}
	return list
}

// store makes postings durable, in as few transactions as it takes, and answers each.
func (o *outbox) store(batch []*posting) {
	ctx, cancel := context.WithTimeout(o.hard, o.timeout)
	defer cancel()
	for attempt := 1; len(batch) > 0; attempt++ {
		err := o.attempt(ctx, batch)
		var left []*posting
		for _, p := range batch {
			switch {
			case p.failed != nil && p.ofMessage:
				p.done(&refusedError{p.failed})
			case err == nil && p.failed == nil:
				p.done(nil)
			case errors.Is(err, errUnknown) || attempt == attemptsMax || ctx.Err() != nil || !o.exactlyOnce:
				why := err
				if p.failed != nil {
					why = p.failed
				}
				p.done(why)
			default:
				left = append(left, p)
			}
		}
		batch = left
	}
}

// attempt is one transaction. The error says why it does not count as a whole; the postings' own say which of them are to blame.
func (o *outbox) attempt(ctx context.Context, batch []*posting) error {
	if o.exactlyOnce {
		if err := o.producer.Begin(); err != nil {
			o.reopen()
			return err
		}
	}
	o.send(ctx, batch)
	bad := false
	for _, p := range batch {
		bad = bad || p.failed != nil
	}
	if !o.exactlyOnce {
		return nil // each stands for itself
	}
	if bad {
		if err := o.producer.Abort(ctx); err != nil {
			o.reopen()
		}
		return errAborted
	}
	err := o.producer.Commit(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, broker.ErrNotCommitted):
		if o.producer.Abort(ctx) != nil {
			o.reopen()
		}
		return err
	}
	o.log.Warn("the end of a transaction of web views is not known", "err", err)
	o.reopen()
	return fmt.Errorf("%w: %w", errUnknown, err)
}

// reopen begins a new session of the producer. If that fails, the next Begin says so and it is tried again.
func (o *outbox) reopen() {
	ctx, cancel := context.WithTimeout(o.hard, o.timeout)
	defer cancel()
	if err := o.producer.Reopen(ctx); err != nil {
		o.log.Warn("begin a new session of the web views' producer", "err", err)
	}
}

// send gives all messages to the producer and waits for the broker to take or refuse each.
func (o *outbox) send(ctx context.Context, batch []*posting) {
	var wait sync.WaitGroup
	for _, p := range batch {
		p.failed, p.ofMessage = nil, false
		if p.acked {
			wait.Go(func() {
				if p.sent, p.sentAt, p.failed = o.producer.SendSync(ctx, p.outputs[0]); p.failed != nil {
					p.ofMessage = broker.SendFailure{Err: p.failed}.OfMessage()
				}
			})
			continue
		}
		wait.Add(1)
		o.producer.Send(ctx, p.outputs, func(refused []broker.SendFailure) {
			defer wait.Done()
			for _, r := range refused {
				if p.failed == nil || r.OfMessage() {
					p.failed, p.ofMessage = fmt.Errorf("send to %s: %w", p.outputs[r.Index].Topic, r.Err), r.OfMessage()
				}
			}
		})
	}
	wait.Wait()
}
