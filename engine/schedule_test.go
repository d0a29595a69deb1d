package engine

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// testSchedule is a lane that delivers messages; refuse says what the broker does not take.
func testSchedule(t *testing.T, exactlyOnce bool, refuse func(o *record.Output) error, change ...func(*config.Scheduler)) *bench {
	t.Helper()
	tables := []plan.Table{{Name: plan.ScheduleTable, Label: "the schedule"}}
	l := testLane(t, nil, plan.Agent{Tables: []plan.TableUse{{Table: 0, Declared: true}}}, limits{}, exactlyOnce)
	l.kafka.refuse = refuse
	l.app.plan = &plan.Plan{App: plan.App{ID: "app"}, Tables: tables}
	l.app.cfg.Scheduler = config.Default().Scheduler
	for _, c := range change {
		c(&l.app.cfg.Scheduler)
	}
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
			{"x-scheduler-action", "ADD"},
			{"x-scheduler-deliver-to", topic},
			{"x-scheduler-deliver-at", fmt.Sprint(at.Unix())},
			{"x-scheduler-request-id", string(r.Key)},
			{"x-scheduler-source", fmt.Sprintf("0@%d@%d", i, at.UnixMilli())},
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

// A message that was refused and is cancelled then must be forgotten: otherwise what is remembered grows as long as the process lives, and
// is looked through at each tick. Without transactions what was refused is planned anew at once.
func TestScheduleRefusedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testSchedule(t, true, func(o *record.Output) error {
			if o.Topic == "never" {
				return kerr.UnknownTopicOrPartition
			}
			return nil
		})
		f, _ := l.serve(t)
		rs := asActions(time.Now(), "never", "never", "good")
		l.feed(f, rs)
		stop := l.start()
		time.Sleep(200 * time.Millisecond) // refused, and to be tried again in a second
		cancels := asActions(time.Now(), "never", "never")
		for i := range cancels {
			r := &cancels[i]
			r.Offset += 3
			r.Headers = []record.Header{r.Headers[0], r.Headers[3], {Key: "x-scheduler-source", Value: fmt.Appendf(nil, "0@%d@%d", r.Offset, time.Now().UnixMilli())}}
			r.Headers[0].Value = []byte("CANCEL")
		}
		// As if they had come before the tick that plans what was refused anew.
		p := l.app.schedule.part(0)
		l.feed(f, cancels)
		time.Sleep(100 * time.Millisecond)
		for i := range rs[:2] {
			m := &scheduler.Message{ID: string(rs[i].Key), Topic: "never", Due: time.Now().UnixMilli(), Source: scheduler.Source{Offset: int64(i)}}
			deliverer{l.app.schedule}.Refused(record.Partition{Topic: "app-schedule-actions"}, &record.Output{Topic: "never", Of: m}, kerr.UnknownTopicOrPartition)
		}
		time.Sleep(10 * time.Second)
		if err := stop(); err != nil || l.failed != nil {
			t.Fatal(err, l.failed)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.refused)+len(p.planned) > 0 {
			t.Errorf("still remembered: %+v, %+v", p.refused, p.planned)
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

// A message for a topic that takes messages again must not be rejected for what was refused before its time.
func TestScheduleTopicComesBack(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		began := time.Now()
		back := began.Add(150 * time.Second)
		l := testSchedule(t, exactlyOnce, func(o *record.Output) error {
			if o.Topic == "out" && time.Now().Before(back) {
				return kerr.UnknownTopicOrPartition
			}
			return nil
		})
		f, _ := l.serve(t)
		var rs []record.Record
		var want []string
		for i := range int64(200) {
			due := began.Add(time.Duration(i) * time.Second)
			id := fmt.Sprint("at-", i)
			if rs = append(rs, scheduleRequest(i, began, "deliver-to", "out", "deliver-at", fmt.Sprint(due.Unix()), "request-id", id)); due.After(back) {
				want = append(want, id)
			}
		}
		l.feed(f, rs)
		got, _ := l.settle(t, 10*time.Minute)
		for _, id := range want {
			if !slices.Contains(got, id) {
				t.Errorf("%s is not delivered", id)
			}
		}
	})
}

// Rejections and results that cannot be written are lost, but not the requests they are about, nor what these ask for.
func TestScheduleReportsRefused(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		for _, why := range []error{kerr.TopicAuthorizationFailed, kerr.MessageTooLarge} {
			l := testSchedule(t, exactlyOnce, func(o *record.Output) error {
				if strings.HasSuffix(o.Topic, "-rejections") || strings.HasSuffix(o.Topic, "-results") {
					return why
				}
				return nil
			}, func(c *config.Scheduler) { c.Results = true })
			l.app.schedule.settings.Partitions = 1
			f, _ := l.serve(t)
			g := l.receive(t)
			now := time.Now()
			at := fmt.Sprint(now.Add(3 * time.Second).Unix())
			var here, there []record.Record
			for i := range int64(10) {
				id := fmt.Sprint("id-", i)
				here = append(here, scheduleRequest(2*i, now, "deliver-to", "out", "deliver-at", now.Add(2*time.Second).UTC().Format(time.RFC3339), "request-id", id))
				here = append(here, scheduleRequest(2*i+1, now, "deliver-to", "out", "request-id", "wrong-"+id))
				there = append(there, scheduleRequest(i, now, "deliver-to", "out", "deliver-at", at, "request-id", "far-"+id))
			}
			l.feed(g, here)
			l.feed(f, there)
			got, counts := l.settle(t, 10*time.Second)
			if len(got) != 20 || counts.Delivered != 20 || counts.Rejected != 10 {
				t.Errorf("%v: delivered %v, counted %+v", why, got, counts)
			}
		}
	})
}

// scheduleRequest is a request, or with a source an action.
func scheduleRequest(offset int64, at time.Time, headers ...string) record.Record {
	r := record.Record{Offset: offset, Timestamp: at.UnixMilli(), Attempt: 1, Value: []byte("v")}
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, record.Header{Key: "x-scheduler-" + headers[i], Value: []byte(headers[i+1])})
		if headers[i] == "request-id" {
			r.Key = []byte(headers[i+1])
		}
	}
	return r
}

// receive begins to work on partition 0 of the requests, beside that of the table.
func (b *bench) receive(t *testing.T) *feed {
	t.Helper()
	ag := newAgent(b.app, &plan.Agent{
		Name: "requests", Schedule: plan.Distribute, Tables: []plan.TableUse{{Table: 0}}, OnError: plan.Policy{Attempts: 1, Action: plan.Stop},
	})
	ag.runs(distributor{b.app.schedule})
	requests := record.Partition{Topic: "app-schedule-requests"}
	f := b.assign(ag, requests)
	b.app.mu.Lock()
	b.app.feeds[requests] = []laneFeed{{b.lane, f}}
	b.app.mu.Unlock()
	b.position(f, 0)
	b.begin(f, func(int, int32) *share {
		t.Error("the lane has the table already")
		return nil
	})
	return f
}

// settle lets what was asked for be done, stops the bench and says what was delivered, and why the others were not.
func (b *bench) settle(t *testing.T, wait time.Duration) (delivered []string, counts scheduler.Counts) {
	t.Helper()
	stop := b.start()
	time.Sleep(wait)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.commits.commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	return b.kafka.keys("out"), b.app.schedule.part(0).counts
}

// A request that is where its id belongs, or has none, is taken in there and delivered at its time: not after a way through the actions, and
// not only when something else wakes the scheduler. The others go their way.
func TestScheduleReceives(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testSchedule(t, exactlyOnce, nil)
		l.app.schedule.settings.Partitions = 3
		l.serve(t)
		f := l.receive(t)
		began := time.Now()
		due := began.Add(10 * time.Second).UTC().Format(time.RFC3339)
		var rs []record.Record
		var here, there []string
		for i := range 20 {
			id := fmt.Sprint("id-", i)
			if record.PartitionOf([]byte(id), 3) == 0 {
				here = append(here, id)
			} else {
				there = append(there, id)
			}
			rs = append(rs, scheduleRequest(int64(i), began, "deliver-to", "out", "deliver-at", due, "request-id", id))
		}
		none := scheduleRequest(20, began, "deliver-to", "out", "deliver-at", due)
		none.Key = []byte("none")
		l.feed(f, append(rs, none))
		stop := l.start()
		time.Sleep(9990 * time.Millisecond)
		if got := l.kafka.keys("out"); len(got) > 0 {
			t.Errorf("early: %v", got)
		}
		time.Sleep(310 * time.Millisecond)
		got := l.kafka.keys("out")
		want := append(here, "none")
		slices.Sort(want)
		if slices.Sort(got); !slices.Equal(got, want) || len(here) == 0 {
			t.Errorf("delivered 0.3 s after the time: %v, want %v", got, want)
		}
		if got := l.kafka.keys("app-schedule-actions"); !slices.Equal(got, there) {
			t.Errorf("actions: %v, want %v", got, there)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// What the settings say of late, repeated and far requests has to hold in the engine.
func TestScheduleSettings(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		for _, c := range []struct {
			name     string
			change   func(*config.Scheduler)
			out      []string
			rejected int64
		}{
			{"default", func(*config.Scheduler) {}, []string{"past", "twice", "far"}, 1},
			{"past due", func(c *config.Scheduler) { c.PastDue = config.PastDueReject }, []string{"twice", "far"}, 2},
			{"replace", func(c *config.Scheduler) { c.DuplicateID = config.DuplicateReplace }, []string{"past", "twice", "far"}, 0},
			{"horizon", func(c *config.Scheduler) { c.Horizon = 5 * time.Second }, []string{"past", "twice"}, 2},
		} {
			l := testSchedule(t, exactlyOnce, nil, c.change)
			f, _ := l.serve(t)
			now := time.Now()
			at := func(d time.Duration) string { return fmt.Sprint(now.Add(d).Unix()) }
			l.feed(f, []record.Record{
				scheduleRequest(0, now, "deliver-to", "out", "deliver-at", at(-time.Minute), "request-id", "past"),
				scheduleRequest(1, now, "deliver-to", "out", "deliver-at", at(2*time.Second), "request-id", "twice"),
				scheduleRequest(2, now, "deliver-to", "out", "deliver-at", at(3*time.Second), "request-id", "twice"),
				scheduleRequest(3, now, "deliver-to", "out", "deliver-at", at(10*time.Second), "request-id", "far"),
			})
			got, counts := l.settle(t, 15*time.Second)
			if !slices.Equal(got, c.out) || counts.Rejected != c.rejected || len(l.kafka.keys("app-schedule-rejections")) != int(c.rejected) {
				t.Errorf("%s: delivered %v, counted %+v", c.name, got, counts)
			}
		}
	})
}

// How long an id is remembered, and how often the ones to be forgotten are looked for, is what the two settings of the janitor say: until
// then a CANCEL of what was delivered is known for what it is.
func TestScheduleJanitor(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		for _, c := range []struct {
			name       string
			change     func(*config.Scheduler)
			kept, gone time.Duration // after the delivery: the id is remembered still, and not any more
		}{
			{name: "defaults", change: func(*config.Scheduler) {}, kept: 4*time.Hour - time.Second, gone: 4*time.Hour + 5*time.Second},
			{name: "offset", change: func(c *config.Scheduler) { c.JanitorHighwaterOffset = 30 * time.Second }, kept: 29 * time.Second, gone: 35 * time.Second},
			{name: "interval", change: func(c *config.Scheduler) {
				c.JanitorHighwaterOffset, c.JanitorCleanInterval = 30*time.Second, 10*time.Minute
			}, kept: 9 * time.Minute, gone: 11 * time.Minute},
			{name: "no offset", change: func(c *config.Scheduler) { c.JanitorHighwaterOffset = 0 }, kept: 0, gone: 5 * time.Second},
		} {
			l := testSchedule(t, exactlyOnce, nil, c.change)
			f, staged := l.serve(t)
			began := time.Now()
			l.feed(f, []record.Record{scheduleRequest(0, began, "deliver-to", "out", "deliver-at", fmt.Sprint(began.Unix()), "request-id", "a")})
			stop := l.start()
			known := func() string {
				e, err := scheduler.Get(rows{staged}, "a")
				if err != nil {
					t.Fatal(err)
				}
				if e == nil {
					return "nothing"
				}
				return e.State
			}
			for _, at := range []struct {
				after time.Duration
				want  string
			}{{c.kept + time.Second/2, "sent"}, {c.gone, "nothing"}} {
				time.Sleep(time.Until(began.Add(at.after)))
				if got := known(); got != at.want {
					t.Errorf("%s: %s after the delivery the id is %s, want %s", c.name, at.after, got, at.want)
				}
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if got := l.kafka.keys("out"); !slices.Equal(got, []string{"a"}) {
				t.Errorf("%s: delivered %v", c.name, got)
			}
		}
	})
}

// A CANCEL that overtakes the ADD it is about, which came by another partition of the requests, still cancels; an ADD that was made after
// it does not suffer from it.
func TestScheduleCancelOvertakes(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testSchedule(t, exactlyOnce, nil)
		f, _ := l.serve(t)
		now := time.Now()
		source := func(partition, offset int, made time.Duration) string {
			return fmt.Sprintf("%d@%d@%d", partition, offset, now.Add(made).UnixMilli())
		}
		at := fmt.Sprint(now.Add(time.Second).Unix())
		l.feed(f, []record.Record{
			scheduleRequest(0, now, "action", "CANCEL", "request-id", "a", "source", source(1, 7, -time.Second)),
			scheduleRequest(1, now, "deliver-to", "out", "deliver-at", at, "request-id", "a", "source", source(0, 3, -2*time.Second)),
			scheduleRequest(2, now, "action", "CANCEL", "request-id", "b", "source", source(1, 8, -2*time.Second)),
			scheduleRequest(3, now, "deliver-to", "out", "deliver-at", at, "request-id", "b", "source", source(0, 4, -time.Second)),
		})
		got, counts := l.settle(t, 5*time.Second)
		if !slices.Equal(got, []string{"b"}) || counts.Unchanged != 3 {
			t.Errorf("delivered %v, counted %+v", got, counts)
		}
	})
}

// A cron fires at its times, not while it is paused, and not after it was cancelled; with skip what it missed is left out, with replay made up.
func TestScheduleCrons(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		l := testSchedule(t, exactlyOnce, nil, func(c *config.Scheduler) { c.CronEnabled = true })
		f, _ := l.serve(t)
		began := time.Now().Truncate(time.Minute).Add(time.Minute)
		time.Sleep(time.Until(began.Add(-5 * time.Second)))
		offset := int64(0)
		request := func(verb, id string, more ...string) {
			l.feed(f, []record.Record{scheduleRequest(offset, time.Now(), append([]string{"action", verb, "request-id", id}, more...)...)})
			offset++
		}
		stop := l.start()
		for id, policy := range map[string]string{"skips": "skip", "replays": "replay"} {
			request("CRON_ADD", id, "deliver-to", "out-"+id, "cron-expr", "* * * * *", "cron-missed-fire-policy", policy)
		}
		at := func(d time.Duration) { time.Sleep(time.Until(began.Add(d))) }
		want := func(when string, skips, replays int) {
			t.Helper()
			if s, r := len(l.kafka.keys("out-skips")), len(l.kafka.keys("out-replays")); s != skips || r != replays {
				t.Errorf("%s: %d and %d firings, want %d and %d", when, s, r, skips, replays)
			}
		}
		at(time.Minute + 30*time.Second)
		want("after two minutes", 2, 2)
		request("CRON_PAUSE", "skips")
		request("CRON_PAUSE", "replays")
		at(4*time.Minute + 30*time.Second)
		want("paused for three minutes", 2, 2)
		request("CRON_RESUME", "skips")
		request("CRON_RESUME", "replays")
		at(4*time.Minute + 31*time.Second)
		want("resumed", 2, 5)
		at(5*time.Minute + 30*time.Second)
		want("a minute later", 3, 6)
		request("CRON_CANCEL", "skips")
		request("CRON_CANCEL", "replays")
		at(20 * time.Minute)
		want("cancelled", 3, 6)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A cron with a zone fires by the clock on the wall there when that is changed: what the clock skips does not fire, what comes twice fires
// twice, and the others keep their hour.
func TestScheduleCronsOverChangeOfClocks(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		// In Europe/Berlin 2000-03-26 has no 02:30 (01:59:59 +01:00 is followed by 03:00:00 +02:00), and 2000-10-29 has two.
		for _, night := range []struct {
			begins, ends string
			fires        map[string][]string // by id, in UTC
		}{
			{"2000-03-26T00:10:00Z", "2000-03-26T03:10:00Z", map[string][]string{
				"half-past-two": nil,
				"five":          {"2000-03-26T03:00:00Z"},
				"hourly":        {"2000-03-26T01:00:00Z", "2000-03-26T02:00:00Z", "2000-03-26T03:00:00Z"},
				"without-zone":  {"2000-03-26T02:30:00Z"},
			}},
			{"2000-10-28T23:10:00Z", "2000-10-29T04:10:00Z", map[string][]string{
				"half-past-two": {"2000-10-29T00:30:00Z", "2000-10-29T01:30:00Z"},
				"five":          {"2000-10-29T04:00:00Z"},
				"hourly":        {"2000-10-29T00:00:00Z", "2000-10-29T01:00:00Z", "2000-10-29T02:00:00Z", "2000-10-29T03:00:00Z", "2000-10-29T04:00:00Z"},
				"without-zone":  {"2000-10-29T02:30:00Z"},
			}},
		} {
			until := func(text string) {
				at, err := time.Parse(time.RFC3339, text)
				if err != nil || time.Now().After(at) {
					t.Fatalf("%s is over: the virtual clock is at %s (%v)", text, time.Now().UTC(), err)
				}
				time.Sleep(time.Until(at))
			}
			until(night.begins) // before anything runs, which would look at its clock all winter
			var mu sync.Mutex
			fired := map[string][]string{}
			l := testSchedule(t, exactlyOnce, func(o *record.Output) error {
				mu.Lock()
				defer mu.Unlock()
				for _, h := range o.Headers {
					if h.Key != scheduler.HeaderFire {
						continue
					}
					seconds, err := strconv.ParseInt(string(h.Value), 10, 64)
					at := time.Unix(seconds, 0).UTC()
					if late := time.Since(at); err != nil || late < 0 || late > time.Second {
						t.Errorf("%s: fired for %q %s after it (%v)", o.Topic, h.Value, late, err)
					}
					fired[o.Topic] = append(fired[o.Topic], at.Format(time.RFC3339))
				}
				return nil
			}, func(c *config.Scheduler) { c.CronEnabled = true })
			f, _ := l.serve(t)
			var rs []record.Record
			for id, when := range map[string][]string{
				"half-past-two": {"cron-expr", "30 2 * * *", "cron-zone", "Europe/Berlin"},
				"five":          {"cron-expr", "0 5 * * *", "cron-zone", "Europe/Berlin"},
				"hourly":        {"cron-expr", "0 * * * *", "cron-zone", "Europe/Berlin"},
				"without-zone":  {"cron-expr", "30 2 * * *"},
			} {
				rs = append(rs, scheduleRequest(int64(len(rs)), time.Now(), append([]string{"action", "CRON_ADD", "request-id", id, "deliver-to", id}, when...)...))
			}
			l.feed(f, rs)
			stop := l.start()
			until(night.ends)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			for id, want := range night.fires {
				if !slices.Equal(fired[id], want) {
					t.Errorf("the night of %s, %s: fired for %v, want %v", night.ends, id, fired[id], want)
				}
			}
		}
	})
}

// With schedulerInterleave a message that has just come due does not wait for all that are late; without it the order is that of the times.
func TestScheduleInterleave(t *testing.T) {
	both(t, func(t *testing.T, exactlyOnce bool) {
		for _, interleave := range []bool{false, true} {
			l := testSchedule(t, exactlyOnce, nil, func(c *config.Scheduler) { c.Interleave = interleave })
			l.app.schedule.settings.BatchMessages = 4
			f, _ := l.serve(t)
			now := time.Now()
			var rs []record.Record
			for i := range 10 {
				at := now.Add(-time.Minute)
				if i == 9 {
					at = now
				}
				rs = append(rs, scheduleRequest(int64(i), now, "deliver-to", "out", "deliver-at", fmt.Sprint(at.Unix()), "request-id", fmt.Sprint(i)))
			}
			l.feed(f, rs)
			got, _ := l.settle(t, 5*time.Second)
			if at := slices.Index(got, "9"); len(got) != 10 || interleave != (at < 4) || !interleave && at != 9 {
				t.Errorf("interleave %v: delivered %v", interleave, got)
			}
		}
	})
}
