package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// fakeClock is code that acts by itself: every tick sends its number to the topic "ticks", and a record its offset to "records".
type fakeClock struct {
	every time.Duration // 0: a tick wants the next one at once
	took  time.Duration
	// poison is the key of one more output of each tick, until it is refused.
	poison string

	mu      sync.Mutex
	sent    int      // guarded by mu
	refused []string // guarded by mu; keys
}

func (c *fakeClock) Refused(p record.Partition, out *record.Output, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = append(c.refused, string(out.Key))
}

func (c *fakeClock) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	time.Sleep(c.took)
	c.mu.Lock()
	defer c.mu.Unlock()
	res := record.Result{Done: len(b.Records)}
	if !b.Tick {
		for i := range b.Records {
			res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: "records", Key: fmt.Append(nil, b.Records[i].Offset)})
		}
		return res, nil
	}
	res.Wake = time.Now().Add(c.every)
	res.Outputs = []record.Output{{Topic: "ticks", Key: fmt.Append(nil, c.sent)}}
	if c.poison != "" && !slices.Contains(c.refused, c.poison) {
		res.Outputs = append(res.Outputs, record.Output{Topic: "ticks", Key: []byte(c.poison)})
	}
	c.sent++
	return res, nil
}

// Code that always has something to do must not keep records waiting, nor they it.
func TestTicksAndRecordsTakeTurns(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testLane(t, &fakeClock{took: time.Millisecond}, plan.Agent{}, limits{records: 10, bytes: 1 << 20}, exactlyOnce)
		f := l.open(in0)
		l.feed(f, records(0, 0, 500))
		stop := l.start()
		time.Sleep(200 * time.Millisecond)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := len(l.kafka.keys("records")); got != 500 {
			t.Errorf("%d of 500 records beside the ticks", got)
		}
		if got := len(l.kafka.keys("ticks")); got < 90 {
			t.Errorf("%d ticks in 200 ms, each 1 ms, one for every batch of records", got)
		}
	})
}

// A clock without records commits, and a commit whose answer is lost is recognised all the same.
func TestTickIsCommittedByItself(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testLane(t, &fakeClock{every: 50 * time.Millisecond}, plan.Agent{}, limits{records: 10, bytes: 1 << 20}, exactlyOnce)
		f := l.assign(l.agent, in0)
		l.app.mu.Lock()
		l.app.feeds[in0] = []laneFeed{{l.lane, f}}
		l.app.mu.Unlock()
		l.position(f, 7)
		l.begin(f, nil)
		if exactlyOnce {
			l.kafka.commit, l.kafka.lost = func() error { return errors.New("no answer") }, true
		}
		stop := l.start()
		time.Sleep(525 * time.Millisecond)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := l.kafka.keys("ticks"); !slices.Equal(got, offsets(0, 11)) {
			t.Errorf("ticks %v, want 0 to 10", got)
		}
		if n := l.commits.stats.Rollbacks.Load(); n != 0 {
			t.Errorf("%d rollbacks of what was committed", n)
		}
		if at := l.kafka.stored(in0); at != 7 {
			t.Errorf("the position moved to %d", at)
		}
	})
}

// An output of a tick that the broker refuses is the code's to deal with; it must not be sent for ever, nor stop the app.
func TestRefusedOutputOfTick(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		code := &fakeClock{every: 10 * time.Millisecond, poison: "x"}
		l := testLane(t, code, plan.Agent{}, limits{records: 10, bytes: 1 << 20}, exactlyOnce)
		l.kafka.refuse = func(o *record.Output) error {
			if string(o.Key) == "x" {
				return kerr.MessageTooLarge
			}
			return nil
		}
		l.open(in0)
		stop := l.start()
		time.Sleep(time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		code.mu.Lock()
		defer code.mu.Unlock()
		// A few ticks may be under way before the first refusal is known.
		if n := len(code.refused); n == 0 || n > 15 {
			t.Errorf("told %d times of the refusal", n)
		}
		if n := len(l.kafka.keys("ticks")); n < 50 {
			t.Errorf("%d ticks counted after the refusal, in 1 s of one each 10 ms", n)
		}
		if l.failed != nil {
			t.Errorf("the app stopped: %v", l.failed)
		}
	})
}
