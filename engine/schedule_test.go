package engine

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// testSchedule is a lane that delivers messages; refuse says what the broker does not take.
func testSchedule(t *testing.T, exactlyOnce bool, refuse func(o *record.Output) error) *bench {
	t.Helper()
	tables := []plan.Table{{Name: plan.ScheduleTable, Label: "the schedule"}}
	l := testLane(t, nil, plan.Agent{Tables: []plan.TableUse{{Table: 0, Declared: true}}}, limits{}, exactlyOnce)
	l.kafka.refuse = refuse
	l.app.plan = &plan.Plan{App: plan.App{ID: "app"}, Tables: tables}
	l.app.cfg.Scheduler = config.Default().Scheduler
	if !exactlyOnce {
		l.app.cfg.ProcessingGuarantee = config.AtLeastOnce
	}
	l.app.tables = newTables(nil, nil, "app", tables, slog.New(slog.DiscardHandler), func(int32) {})
	l.app.schedule = newSchedule(l.app)
	l.agent.runs(deliverer{l.app.schedule})
	return l
}

// serve begins to work on partition 0, with an empty table.
func (b *bench) serve(t *testing.T) (*feed, *state.Staged) {
	t.Helper()
	store, err := mem.New().Open(plan.ScheduleTable, 0)
	if err != nil {
		t.Fatal(err)
	}
	staged := state.NewStaged(store)
	actions := record.Partition{Topic: "app-schedule-actions"}
	f := b.assign(b.agent, actions)
	b.app.mu.Lock()
	b.app.feeds[actions] = []laneFeed{{b.lane, f}}
	b.app.mu.Unlock()
	b.position(f, 0)
	b.begin(f, func(table int, number int32) *share {
		return &share{table: table, label: "the schedule", staged: staged, seen: map[*agent]uint64{}}
	})
	return f, staged
}

// asActions are messages due at a time, one for each topic.
func asActions(at time.Time, topics ...string) []record.Record {
	var rs []record.Record
	for i, topic := range topics {
		r := record.Record{Topic: "app-schedule-actions", Offset: int64(i), Timestamp: at.UnixMilli(), Attempt: 1, Key: fmt.Appendf(nil, "%s-%d", topic, i), Value: []byte("v")}
		for _, h := range [][2]string{
			{"x-scheduler-action", "ADD"}, {"x-scheduler-deliver-to", topic}, {"x-scheduler-deliver-at", fmt.Sprint(at.Unix())},
			{"x-scheduler-request-id", string(r.Key)}, {"x-scheduler-source", fmt.Sprintf("0@%d@%d", i, at.UnixMilli())},
		} {
			r.Headers = append(r.Headers, record.Header{Key: h[0], Value: []byte(h[1])})
		}
		rs = append(rs, r)
	}
	return rs
}

// A message the broker does not take must not be lost, nor hold up others, nor have them sent twice: it is tried again, and
// rejected when there is no use in that.
func TestScheduleRefused(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		began := time.Now()
		l := testSchedule(t, exactlyOnce, func(o *record.Output) error {
			switch {
			case o.Topic == "large":
				return kerr.MessageTooLarge
			case o.Topic == "never", o.Topic == "late" && time.Since(began) < 5*time.Second:
				return kerr.UnknownTopicOrPartition
			}
			return nil
		})
		f, _ := l.serve(t)
		l.feed(f, asActions(began, "good", "large", "good", "never", "late", "never", "good"))
		stop := l.start()
		time.Sleep(2 * time.Second)
		if got := l.kafka.keys("good"); !slices.Equal(got, []string{"good-0", "good-2", "good-6"}) {
			t.Errorf("delivered after 2 s: %v", got)
		}
		time.Sleep(5 * time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := l.commits.commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := l.kafka.keys("late"); !slices.Equal(got, []string{"late-4"}) {
			t.Errorf("to the topic that came late: %v", got)
		}
		rejected := l.kafka.keys("app-schedule-rejections")
		slices.Sort(rejected)
		if !slices.Equal(rejected, []string{"large-1", "never-3", "never-5"}) {
			t.Errorf("rejected: %v", rejected)
		}
		if got := l.kafka.keys("good"); len(got) != 3 {
			t.Errorf("delivered in the end: %v", got)
		}
		if l.failed != nil {
			t.Errorf("the app stopped: %v", l.failed)
		}
		// Each costs everybody the transaction: at most one for each try of the two topics, and one for the large message.
		if n := l.commits.stats.Rollbacks.Load(); n > 14 {
			t.Errorf("%d rollbacks", n)
		}
		c := l.app.schedule.part(0).counts
		if c.Scheduled != 7 || c.Delivered != 4 && exactlyOnce || c.Failed != 3 {
			t.Errorf("counted: %+v", c)
		}
	})
}

// What waits must be delivered at its time, whatever is rolled back meanwhile, and cost nothing until then.
func TestScheduleWaits(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testSchedule(t, exactlyOnce, nil)
		f, _ := l.serve(t)
		due := time.Now().Add(10 * time.Second).Truncate(time.Second)
		l.feed(f, asActions(due, "out", "out"))
		if exactlyOnce {
			l.kafka.commit = func() error { return fmt.Errorf("%w", kerr.TransactionAbortable) } // of the intake
		}
		stop := l.start()
		time.Sleep(time.Until(due) - time.Millisecond)
		if got := l.kafka.keys("out"); len(got) > 0 {
			t.Errorf("early: %v", got)
		}
		commits := l.commits.stats.Commits.Load()
		if commits > 2 {
			t.Errorf("%d commits while nothing was due", commits)
		}
		time.Sleep(300 * time.Millisecond)
		if got := l.kafka.keys("out"); !slices.Equal(got, []string{"out-0", "out-1"}) {
			t.Errorf("delivered: %v", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if c := l.app.schedule.part(0).counts; c.Scheduled != 2 || c.Delivered != 2 {
			t.Errorf("counted, with what was rolled back: %+v", c)
		}
	})
}

// A rejection that cannot be written must not be tried for ever: nothing else would be delivered.
func TestScheduleRejectionRefused(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testSchedule(t, exactlyOnce, func(o *record.Output) error {
			if o.Topic == "large" || strings.HasSuffix(o.Topic, "-rejections") {
				return kerr.MessageTooLarge
			}
			return nil
		})
		f, _ := l.serve(t)
		l.feed(f, asActions(time.Now(), "large", "good"))
		stop := l.start()
		time.Sleep(10 * time.Second)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := l.kafka.keys("good"); !slices.Equal(got, []string{"good-1"}) {
			t.Errorf("delivered: %v", got)
		}
	})
}
