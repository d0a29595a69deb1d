package engine

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/record"
)

// fakeSender is a producer whose transactions tests can see, and make fail.
type fakeSender struct {
	mu        sync.Mutex
	open      []string // of the running transaction
	committed [][]string
	reopened  int
	refuse    map[string]error // by topic
	endings   []error          // of the next commits; then they are good
}

func (f *fakeSender) Send(_ context.Context, outs []record.Output, done func([]broker.SendFailure)) {
	f.mu.Lock()
	var failed []broker.SendFailure
	for i, o := range outs {
		if err := f.refuse[o.Topic]; err != nil {
			failed = append(failed, broker.SendFailure{Index: i, Err: err})
		} else {
			f.open = append(f.open, o.Topic)
		}
	}
	f.mu.Unlock()
	go done(failed)
}

func (f *fakeSender) SendSync(_ context.Context, o record.Output) (broker.Delivered, time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, o.Topic)
	return broker.Delivered{Topic: o.Topic, Offset: 7}, time.UnixMilli(1500), f.refuse[o.Topic]
}

func (f *fakeSender) Begin() error { f.open = nil; return nil }

func (f *fakeSender) Commit(context.Context) error {
	if len(f.endings) > 0 {
		err := f.endings[0]
		if f.endings = f.endings[1:]; err != nil {
			return err
		}
	}
	f.committed = append(f.committed, f.open)
	return nil
}

func (f *fakeSender) Abort(context.Context) error  { f.open = nil; return nil }
func (f *fakeSender) Reopen(context.Context) error { f.reopened++; return nil }

// postAll gives an outbox one posting for each list of topics, and returns their errors.
func postAll(t *testing.T, f *fakeSender, exactlyOnce bool, postings ...string) []error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := newOutbox(ctx, t.Context(), f, exactlyOnce, 5*time.Second, slog.New(slog.DiscardHandler))
	errs := make([]error, len(postings))
	var wait sync.WaitGroup
	for i, topics := range postings {
		p := &posting{}
		for topic := range strings.SplitSeq(topics, " ") {
			p.outputs = append(p.outputs, record.Output{Topic: topic})
		}
		wait.Add(1)
		p.done = func(err error) { errs[i] = err; wait.Done() }
		o.post(p)
	}
	var loop sync.WaitGroup
	loop.Go(o.loop)
	wait.Wait()
	cancel()
	loop.Wait()
	return errs
}

// Requests that wait share a transaction: otherwise writes cost one each.
func TestOutboxTogether(t *testing.T) {
	f := &fakeSender{}
	for i, err := range postAll(t, f, true, "a", "b c", "d") {
		if err != nil {
			t.Errorf("posting %d: %v", i, err)
		}
	}
	if len(f.committed) != 1 || strings.Join(f.committed[0], "") != "abcd" {
		t.Errorf("committed %v", f.committed)
	}
}

// A message the broker refuses must fail its own request as a whole, and no other.
func TestOutboxRefused(t *testing.T) {
	f := &fakeSender{refuse: map[string]error{"large": kerr.MessageTooLarge}}
	errs := postAll(t, f, true, "a", "b large", "c")
	var refused *refusedError
	if errs[0] != nil || errs[2] != nil || !errors.As(errs[1], &refused) {
		t.Errorf("errors %v", errs)
	}
	if len(f.committed) != 1 || strings.Join(f.committed[0], "") != "ac" {
		t.Errorf("committed %v: of the refused posting nothing may count", f.committed)
	}
	if r := unstored(errs[1]); r.Status != 500 {
		t.Errorf("a message that can never be sent is answered with %d", r.Status)
	}
}

// A transaction that does not count is made again; one of which that is not known must never be, or it counts twice.
func TestOutboxEndings(t *testing.T) {
	f := &fakeSender{endings: []error{broker.ErrNotCommitted, nil}}
	if errs := postAll(t, f, true, "a"); errs[0] != nil || len(f.committed) != 1 {
		t.Errorf("not committed once: %v, committed %v", errs, f.committed)
	}
	f = &fakeSender{endings: []error{errors.New("the network broke")}}
	errs := postAll(t, f, true, "a")
	if !errors.Is(errs[0], errUnknown) || len(f.committed) != 0 || f.reopened != 1 {
		t.Errorf("unknown: %v, committed %v, reopened %d", errs, f.committed, f.reopened)
	}
	if r := unstored(errs[0]); r.Status != 503 || !strings.Contains(string(r.Body), "not known") {
		t.Errorf("answered with %d %s", r.Status, r.Body)
	}
}

// Without transactions each request stands for itself.
func TestOutboxAtLeastOnce(t *testing.T) {
	f := &fakeSender{refuse: map[string]error{"bad": errors.New("no connection")}}
	if errs := postAll(t, f, false, "a", "bad"); errs[0] != nil || errs[1] == nil {
		t.Errorf("errors %v", errs)
	}
}

// A stop answers what still comes: nobody may wait for ever.
func TestOutboxStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := newOutbox(ctx, t.Context(), &fakeSender{}, true, time.Second, slog.New(slog.DiscardHandler))
	cancel()
	done := make(chan struct{}, 2)
	for range 2 {
		o.post(&posting{done: func(error) { done <- struct{}{} }})
	}
	o.loop()
	for range 2 {
		select {
		case <-done: // stored or refused
		case <-time.After(5 * time.Second):
			t.Fatal("a posting is not answered")
		}
	}
}
