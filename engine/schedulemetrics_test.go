package engine

import (
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/scheduler"
)

// What the process did in a partition it has lost must stay counted, or every handover looks like a restart; and no count may be left out.
func TestScheduleSeries(t *testing.T) {
	s := &schedule{parts: map[int32]*schedulePart{}}
	for n := range int32(2) {
		v := reflect.ValueOf(&s.part(n).counts).Elem()
		for i := range v.NumField() {
			v.Field(i).SetInt(int64(i + 1))
		}
	}
	sum := s.done()
	v := reflect.ValueOf(sum)
	for i := range v.NumField() {
		if got, want := v.Field(i).Int(), int64(2*(i+1)); got != want {
			t.Errorf("%s: %d, want %d", v.Type().Field(i).Name, got, want)
		}
	}
}

// How many messages are sent and not committed yet must be told, and not go on being told of those that were taken back.
func TestScheduleSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testSchedule(t, true, nil)
		l.kafka.slow = time.Second
		f, _ := l.serve(t)
		began := time.Now()
		due := began.Add(10 * time.Second).Truncate(time.Second)
		l.feed(f, asActions(due, "out", "out"))
		stop := l.start()
		want := func(when string, after time.Duration, sending int) {
			t.Helper()
			time.Sleep(time.Until(due.Add(after)))
			p := l.app.schedule.part(0)
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.sending != sending || p.since.Before(began) || p.since.After(began.Add(time.Second)) || time.Since(p.looked) > 2*lookEvery {
				t.Errorf("%s: %d messages are sent, want %d; worked on since %s, looked at %s", when, p.sending, sending, p.since, p.looked)
			}
		}
		want("waiting", -time.Second, 0)
		l.kafka.mu.Lock()
		l.kafka.commit = func() error { return fmt.Errorf("%w", kerr.TransactionAbortable) }
		l.kafka.mu.Unlock()
		want("in a transaction that will be aborted", 800*time.Millisecond, 2)
		want("in the end", 10*time.Second, 0)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := l.kafka.keys("out"); len(got) != 2 || l.commits.stats.Rollbacks.Load() != 1 {
			t.Errorf("delivered %v, %d rollbacks", got, l.commits.stats.Rollbacks.Load())
		}
	})
}

// Each setting must reach what it is for: one that is dropped on the way would be its default without a word.
func TestScheduleTakesSettings(t *testing.T) {
	a := &App{plan: &plan.Plan{App: plan.App{ID: "app"}}, log: slog.New(slog.DiscardHandler)}
	a.cfg.ProcessingGuarantee = config.AtLeastOnce
	a.cfg.Scheduler = config.Scheduler{
		DispatcherLookbackDays: 2, JanitorCleanInterval: 3 * time.Second, JanitorHighwaterOffset: 4 * time.Second, CronEnabled: true,
		CronTickInterval: 5 * time.Second, CronMinInterval: 6 * time.Second, PastDue: config.PastDueReject, DuplicateID: config.DuplicateReplace,
		Horizon: 7 * time.Second, Interleave: true, Provenance: true, Results: true,
	}
	s := newSchedule(a)
	want := scheduler.Defaults("app")
	want.AtLeastOnce, want.Replace, want.RejectPast, want.Interleave, want.Provenance, want.Cron = true, true, true, true, true, true
	want.Results, want.Horizon, want.Remember = "app-schedule-results", 7*time.Second, 4*time.Second
	want.CronGrace, want.CronMinGap, want.CronReplayBack = 5*time.Second, 6*time.Second, 48*time.Hour
	if s.settings != want || s.clean != 3*time.Second {
		t.Errorf("%+v, every %s,\nwant %+v", s.settings, s.clean, want)
	}
}
