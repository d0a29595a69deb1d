//go:build integration

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

const scheduleApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprApp
metadata: {name: later}
spec:
  config: {schedulerEnabled: true, schedulerTopicPartitions: 6}
`

// request is an ADD of message i.
func request(i int, due time.Time) *kgo.Record {
	r := &kgo.Record{
		Topic: "later-app-schedule-requests", Key: fmt.Appendf(nil, "key-%d", i), Value: fmt.Appendf(nil, `{"i":%d,"due":%d}`, i, due.UnixMilli()),
		Headers: []kgo.RecordHeader{
			{Key: "x-scheduler-deliver-to", Value: []byte("later-out")},
			{Key: "x-scheduler-deliver-at", Value: []byte(due.UTC().Format(time.RFC3339Nano))},
		},
	}
	if i%2 == 0 {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "x-scheduler-request-id", Value: fmt.Appendf(nil, "id-%d", i)})
	}
	return r
}

// deliveries reads the output as it comes: how often each message came, and how late.
type deliveries struct {
	mu    sync.Mutex
	times []int // by message
	late  []time.Duration
	due   []time.Time
	early int
	seen  int
}

func (k *kafka) deliveries(ctx context.Context, total int) *deliveries {
	d := &deliveries{times: make([]int, total), late: make([]time.Duration, total), due: make([]time.Time, total)}
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.broker.Addr()), kgo.ConsumeTopics("later-out"), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		k.t.Fatal(err)
	}
	go func() {
		defer cl.Close()
		for ctx.Err() == nil {
			fetches := cl.PollFetches(ctx)
			now := time.Now()
			d.mu.Lock()
			fetches.EachRecord(func(r *kgo.Record) {
				var v struct {
					I   int
					Due int64
				}
				if err := json.Unmarshal(r.Value, &v); err != nil {
					k.t.Errorf("delivered %q: %v", r.Value, err)
					return
				}
				due := time.UnixMilli(v.Due)
				if r.Timestamp.Before(due) || now.Before(due) {
					d.early++
				}
				if d.times[v.I]++; d.times[v.I] == 1 {
					d.seen++
				}
				d.late[v.I], d.due[v.I] = now.Sub(due), due
			})
			d.mu.Unlock()
		}
	}()
	return d
}

func (d *deliveries) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

// quantile of durations, which it sorts.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(q*float64(len(list))))]
}

// A message for later must be delivered once, not before its time and soon after it, whatever processes are killed between its
// request and its delivery.
func TestScheduleCrash(t *testing.T) {
	total, kills := amount(t, "KASPR_SCHEDULE_MESSAGES", 20_000), amount(t, "KASPR_SCHEDULE_KILLS", 3)
	seconds, processes := amount(t, "KASPR_SCHEDULE_SECONDS", 12), amount(t, "KASPR_SCHEDULE_PROCESSES", 2)
	seed := amount(t, "KASPR_SCHEDULE_SEED", int(time.Now().UnixNano()%1_000_000))
	t.Logf("%d messages over %d s, %d kills, %d processes, KASPR_SCHEDULE_SEED=%d", total, seconds, kills, processes, seed)
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	k := newKafka(t, realkafka.New(t, realkafka.Options{}))
	k.topic("later-out", 6)
	dirs, engines := make([]string, processes), make([]*process, processes)
	start := func(i int) {
		engines[i] = k.engine(scheduleApp, map[string]string{"dataDir": dirs[i], "transactionTimeout": "10s", "topicPartitions": "6"})
	}
	for i := range engines {
		dirs[i] = t.TempDir()
		start(i)
	}
	engines[0].waitLog("partitions assigned")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := k.deliveries(ctx, total)

	began := time.Now()
	produced := make(chan struct{})
	go func() {
		defer close(produced)
		ahead := rand.New(rand.NewPCG(uint64(seed), 2))
		for i := range total {
			r := request(i, time.Now().Add(2*time.Second+time.Duration(ahead.Int64N(int64(seconds)*int64(time.Second)))).Truncate(time.Millisecond))
			again := i%100 == 0 // a client that got no answer
			for n := 0; n < 1 || n < 2 && again; n++ {
				one := *r
				k.cl.Produce(context.Background(), &one, func(_ *kgo.Record, err error) {
					if err != nil {
						t.Error(err)
					}
				})
			}
			if i%100 == 99 {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Duration(seconds) * time.Second / time.Duration(total))))
			}
		}
		if err := k.cl.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	var killed []time.Time
	for n := range kills {
		at := began.Add(time.Duration(float64(seconds) * (float64(n) + 0.2 + 0.6*random.Float64()) / float64(kills) * float64(time.Second)))
		time.Sleep(time.Until(at))
		victim := random.IntN(processes)
		killed = append(killed, time.Now())
		_ = engines[victim].Cmd.Process.Kill()
		<-engines[victim].Done
		start(victim)
	}
	<-produced
	t.Logf("requests made in %s", time.Since(began).Round(time.Millisecond))
	for limit := time.Now().Add(time.Duration(seconds)*time.Second + 3*time.Minute); d.count() < total && time.Now().Before(limit); {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(3 * time.Second) // what comes twice comes late
	cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	lost, twice := 0, 0
	var all []time.Duration
	outside := map[time.Duration][]time.Duration{}
	for i, n := range d.times {
		switch {
		case n == 0:
			lost++
			continue
		case n > 1:
			twice++
		}
		all = append(all, d.late[i])
		for _, window := range restartWindows {
			if !slices.ContainsFunc(killed, func(at time.Time) bool {
				return d.due[i].After(at.Add(-time.Second)) && d.due[i].Before(at.Add(window))
			}) {
				outside[window] = append(outside[window], d.late[i])
			}
		}
	}
	t.Logf("lost %d, twice %d, early %d; late by: p50 %s, p90 %s, p99 %s, most %s",
		lost, twice, d.early, quantile(all, .5), quantile(all, .9), quantile(all, .99), quantile(all, 1))
	for _, window := range restartWindows {
		late := outside[window]
		t.Logf("due outside of %s after each kill (%d messages): p50 %s, p99 %s", window, len(late), quantile(late, .5), quantile(late, .99))
	}
	if lost > 0 || twice > 0 || d.early > 0 {
		t.Errorf("of %d messages %d were lost, %d came more than once, %d before their time", total, lost, twice, d.early)
	}
	last := outside[restartWindows[len(restartWindows)-1]]
	if p99 := quantile(last, .99); len(last) > 0 && p99 > time.Second {
		t.Errorf("outside of the restarts one in a hundred is later than %s", p99)
	}
	for i, p := range engines {
		if code := p.stop(); code != 0 {
			t.Errorf("process %d: exit code %d", i, code)
		}
	}
	if rejected := k.broker.Records(t, "later-app-schedule-rejections"); len(rejected) > 0 {
		t.Errorf("%d rejections, such as %s", len(rejected), rejected[0].Value)
	}
}

// restartWindows are how long after a kill messages may be late, by several definitions: until the process is back and has its partitions
// and their stores again; the last of them, which the test holds, until also what came due meanwhile is caught up, on a machine where
// the broker, the clients and all processes share two cores.
var restartWindows = []time.Duration{3 * time.Second, 6 * time.Second, 12 * time.Second}

// cpu is the processor time a process has taken.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			p.t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

// settledIn is how long it takes until the group has committed the ends of topics, from the moment do begins.
func (k *kafka) settledIn(group string, do func(), topics ...string) time.Duration {
	k.t.Helper()
	began := time.Now()
	do()
	for {
		lags, err := k.adm.Lag(k.t.Context(), group)
		if err != nil {
			k.t.Fatal(err)
		}
		var lag int64
		for _, topic := range topics {
			for _, l := range lags[group].Lag[topic] {
				lag += l.Lag
			}
		}
		if lag == 0 {
			return time.Since(began)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Scheduling must not cost much more than writing to a table, and what waits must cost nothing. KASPR_SCHEDULE_RATES messages; without
// it there is nothing to measure (make schedule-test).
func TestScheduleRates(t *testing.T) {
	n := amount(t, "KASPR_SCHEDULE_RATES", 0)
	if n == 0 {
		t.Skip("KASPR_SCHEDULE_RATES is not set")
	}
	k := newKafka(t, realkafka.New(t, realkafka.Options{}))
	k.topic("crash-in", 6)
	k.topic("crash-out", 6)
	k.topic("later-out", 6)
	send := func(record func(i int) *kgo.Record) func() {
		return func() {
			var failed atomic.Pointer[error]
			for i := range n {
				k.cl.Produce(t.Context(), record(i), func(_ *kgo.Record, err error) {
					if err != nil {
						failed.Store(&err)
					}
				})
			}
			if err := k.cl.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := failed.Load(); err != nil {
				t.Fatal(*err)
			}
		}
	}
	rate := func(took time.Duration) int { return int(float64(n) / took.Seconds()) }

	plain := k.engine(crashApp, map[string]string{"topicPartitions": "6"})
	plain.waitLog("table restored")
	writes := rate(k.settledIn("crash-app", send(func(i int) *kgo.Record {
		user := strconv.Itoa(i % 500)
		return &kgo.Record{Topic: "crash-in", Key: []byte(strconv.Quote(user)), Value: fmt.Appendf(nil, `{"user":%q,"i":%d}`, user, i)}
	}), "crash-in"))
	plain.stop()

	later := k.engine(scheduleApp, map[string]string{"topicPartitions": "6"})
	later.waitLog("table restored")
	far := time.Now().AddDate(1, 0, 0)
	intake := rate(k.settledIn("later-app", send(func(i int) *kgo.Record { return request(i, far) }),
		"later-app-schedule-requests", "later-app-schedule-actions"))
	time.Sleep(5 * time.Second)
	before := later.cpu()
	time.Sleep(20 * time.Second)
	idle := (later.cpu() - before).Seconds() / 20 * 100

	due := time.Now().Add(time.Duration(3*float64(n)/float64(intake)*float64(time.Second)) + 5*time.Second).Truncate(time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.settledIn("later-app", send(func(i int) *kgo.Record { return request(n+i, due) }), "later-app-schedule-requests", "later-app-schedule-actions")
	if wait := time.Until(due); wait < 0 {
		t.Errorf("taken in %s after they were due: the dispatch is not measured", -wait)
	}
	time.Sleep(time.Until(due))
	d := k.deliveries(ctx, 2*n)
	for d.count() < n && time.Since(due) < 5*time.Minute {
		time.Sleep(10 * time.Millisecond)
	}
	dispatch := rate(time.Since(due))
	t.Logf("%d records: table writes %d/s, intake %d/s (both stages), dispatch of one second %d/s, idle with as many waiting %.2f %% of a processor", n, writes, intake, dispatch, idle)
	if intake*2 < writes || dispatch*2 < writes {
		t.Errorf("less than half of the table writes")
	}
	if idle > 5 {
		t.Errorf("what waits takes %.1f %% of a processor", idle)
	}
	later.stop()
}

// rss is the memory a process has in use, and the most it ever had, in MiB.
func (p *process) rss() (now, most int) {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		for name, into := range map[string]*int{"VmRSS:": &now, "VmHWM:": &most} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if *into, err = strconv.Atoi(strings.Fields(rest)[0]); err != nil {
					p.t.Fatal(err)
				}
				*into /= 1024
			}
		}
	}
	return now, most
}

// What waits for another year must take disk, not memory or processor time. KASPR_SCHEDULE_IDLE messages; without it there is nothing to
// measure (make schedule-test).
func TestScheduleIdle(t *testing.T) {
	n := amount(t, "KASPR_SCHEDULE_IDLE", 0)
	if n == 0 {
		t.Skip("KASPR_SCHEDULE_IDLE is not set")
	}
	k := newKafka(t, realkafka.New(t, realkafka.Options{}))
	k.topic("later-out", 6)
	p := k.engine(scheduleApp, map[string]string{"topicPartitions": "6"})
	p.waitLog("table restored")
	before, _ := p.rss()
	far := time.Now().AddDate(1, 0, 0)
	took := k.settledIn("later-app", func() {
		for i := range n {
			k.cl.Produce(t.Context(), request(i, far), func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
		if err := k.cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}, "later-app-schedule-requests", "later-app-schedule-actions")
	time.Sleep(15 * time.Second) // the stores go to disk
	began := p.cpu()
	time.Sleep(30 * time.Second)
	idle := (p.cpu() - began).Seconds() / 30 * 100
	now, most := p.rss()
	t.Logf("%d messages wait, taken in within %s: %.2f %% of a processor; %d MiB of memory, %d at most, %d before", n, took.Round(time.Second), idle, now, most, before)
	if idle > 5 {
		t.Errorf("what waits takes %.1f %% of a processor", idle)
	}
	p.stop()
}

// What the command line asks for must come to the scheduler, in the partition of the id.
func TestScheduleSteer(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("later-out", 6)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(scheduleApp), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	token := "secret-of-the-admin"
	settings := map[string]string{
		"topicPartitions": "6", "webPort": port, "schedulerWebEnabled": "true", "schedulerCronEnabled": "true", "schedulerDebugStatsEnabled": "true",
		"adminListen": "127.0.0.1:" + freePort(t), "adminToken": token,
	}
	p := k.engine(scheduleApp, settings)
	p.waitLog("table restored")
	settings["webPort"] = freePort(t)
	adminAddr := "127.0.0.1:" + freePort(t)
	settings["adminListen"] = adminAddr
	other := k.engine(scheduleApp, settings) // half of the partitions are there, and are asked for from here
	other.waitLog("partitions assigned")
	command := func(args ...string) (string, int) {
		var out, errs bytes.Buffer
		args = append(append([]string{"schedule"}, args...), "--set", "definitionsDir="+dir, "--set", "kafkaBootstrapServers="+k.broker.Addr(), "--set", "webPort="+port)
		code := Main(t.Context(), "test", args, Streams{Out: &out, Err: &errs})
		return out.String() + errs.String(), code
	}
	becomes := func(state, id string) {
		t.Helper()
		var text string
		for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(50 * time.Millisecond) {
			if text, _ = command("get", id); strings.Contains(text, `"state":"`+state+`"`) {
				return
			}
		}
		t.Fatalf("%s is not %s: %s", id, state, text)
	}
	for i := range 8 {
		id := fmt.Sprintf("id-%d", i)
		if text, code := command("replace", id, "--to", "later-out", "--at", "9000-01-01", "--key", "k", "--value", "v", "--header", "h=1"); code != 0 {
			t.Fatal(text)
		}
		becomes("pending", id)
		if text, code := command("cancel", id); code != 0 {
			t.Fatal(text)
		}
		becomes("cancelled", id)
	}
	// The same over HTTP, at whichever process.
	change := func(body string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+adminAddr+"/schedule", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%d %s %v", resp.StatusCode, text, err)
		}
		return string(text)
	}
	for i := range 8 {
		id := fmt.Sprintf("http-%d", i)
		change(fmt.Sprintf(`{"action":"REPLACE","requestId":%q,"deliverTo":"later-out","deliverAt":"9000-01-01","value":{"n":1}}`, id))
		becomes("pending", id)
	}
	listed := map[string]bool{}
	for began, after := time.Now(), ""; len(listed) < 8 && time.Since(began) < 20*time.Second; {
		text, code := command("list", "--limit", "3", "--after", after)
		if code != 0 {
			t.Fatal(text)
		}
		var page struct {
			Messages []struct {
				ID string `json:"requestId"`
			}
			Next string
		}
		if err := json.Unmarshal([]byte(text), &page); err != nil {
			t.Fatal(err)
		}
		for _, m := range page.Messages {
			listed[m.ID] = true
		}
		after = page.Next
	}
	if len(listed) != 8 {
		t.Errorf("of 8 messages in the partitions of two processes these are listed: %v", listed)
	}
	for i := range 8 {
		change(fmt.Sprintf(`{"action":"CANCEL","requestId":"http-%d"}`, i))
		becomes("cancelled", fmt.Sprintf("http-%d", i))
	}
	p.waitLog("msg=scheduler app=later-app component=scheduler partition=") // schedulerDebugStatsEnabled
	if text, code := command("replace", "now", "--to", "later-out", "--at", "2020-01-01", "--key", "k", "--value", "v", "--header", "h=1"); code != 0 {
		t.Fatal(text)
	}
	got := k.outputs(20*time.Second, func(rs []*kgo.Record) bool { return len(rs) > 0 }, "later-out")
	if len(got) != 1 || string(got[0].Key) != "k" || string(got[0].Value) != "v" || len(got[0].Headers) != 1 {
		t.Errorf("delivered: %+v", got)
	}
	for _, p := range []*process{p, other} {
		if code := p.stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}
