package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
)

// What waits must be seen page by page, each row once, and an id's end be told.
func TestScheduleShown(t *testing.T) {
	dir := t.TempDir()
	app := "apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: later}\nspec: {config: {schedulerCronEnabled: true, schedulerTopicPartitions: 3}}\n"
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	var requests strings.Builder
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		requests.WriteString(`{"key": "k", "value": "secret", "headers": {"x-scheduler-deliver-to": "out", "x-scheduler-deliver-at": "9000-01-01", "x-scheduler-request-id": "` + id + `"}}` + "\n")
	}
	requests.WriteString(`{"key": "k", "value": null, "headers": {"x-scheduler-action": "CANCEL", "x-scheduler-request-id": "a"}}` + "\n")
	requests.WriteString(`{"value": "secret", "headers": {"x-scheduler-action": "CRON_ADD", "x-scheduler-deliver-to": "out", "x-scheduler-cron-expr": "0 0 1 1 *", "x-scheduler-request-id": "yearly"}}` + "\n")
	input := filepath.Join(dir, "requests.jsonl")
	if err := os.WriteFile(input, []byte(requests.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	shown := start(t, strings.NewReader(""),
		"dev", dir, "--http", "--set", "webPort="+port, "--set", "schedulerWebEnabled=true", "--set", "webToken=secret-of-views", "--input", "later-app-schedule-requests="+input,
	)
	defer shown.stop()
	type page struct {
		Messages []struct {
			ID   string `json:"requestId"`
			Cron string
		}
		Crons []struct {
			ID    string `json:"requestId"`
			State string
		}
		Next, State string
	}
	token := "secret-of-views"
	ask := func(want int, args ...string) (p page, text string) {
		var out, errs bytes.Buffer
		code := Main(t.Context(), "test", append(append([]string{"schedule"}, args...), "--address", "127.0.0.1:"+port, "--set", "webToken="+token), Streams{Out: &out, Err: &errs})
		if code != want {
			t.Fatalf("%v: exit code %d: %s", args, code, errs.String())
		}
		if out.Len() > 0 {
			if err := json.Unmarshal(out.Bytes(), &p); err != nil {
				t.Fatal(err)
			}
		}
		return p, out.String()
	}
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, body, err := apphttp.AskAs(token, "127.0.0.1:"+port, "/schedule?limit=100", 10*time.Second, nil)
		if text := fmt.Sprint(string(body), err); strings.Count(text, "deliverAt") == 7 && strings.Contains(text, "yearly") {
			break
		} else if time.Since(began) > 30*time.Second {
			t.Fatalf("after 30 s: %s", text)
		}
	}
	seen, after := map[string]int{}, ""
	for pages := 0; pages < 10; pages++ {
		p, text := ask(0, "list", "--limit", "2", "--after", after)
		if len(p.Messages) > 2 || strings.Contains(text, "secret") {
			t.Errorf("page %s", text)
		}
		for _, m := range p.Messages {
			seen[m.ID+m.Cron]++
		}
		if after = p.Next; after == "" {
			break
		}
	}
	for _, id := range []string{"b", "c", "d", "e", "f", "g", "yearly"} {
		if seen[id] != 1 {
			t.Errorf("%s is there %d times", id, seen[id])
		}
	}
	if len(seen) != 7 {
		t.Errorf("listed: %v", seen)
	}
	if p, _ := ask(0, "list", "--crons"); len(p.Crons) != 1 || p.Crons[0].ID != "yearly" || p.Crons[0].State != "active" {
		t.Errorf("crons: %+v", p)
	}
	for id, state := range map[string]string{"a": "cancelled", "b": "pending"} {
		if p, _ := ask(0, "get", id); p.State != state {
			t.Errorf("%s is %q, not %s", id, p.State, state)
		}
	}
	if p, _ := ask(0, "get", "yearly", "--cron"); p.State != "active" {
		t.Errorf("yearly is %q", p.State)
	}
	ask(1, "get", "nobody")
	ask(1, "list", "--after", "nonsense")
	ask(1, "list", "--limit", "100000")
	token = "wrong"
	ask(1, "list")
	ask(1, "get", "b")
	// What dashboards of the original show.
	_, text := get(t, "http://127.0.0.1:"+port+"/metrics")
	for series, want := range map[string]string{
		`app_info\{.*kms_enabled="1".*\}`: `1\.\d+e\+09`, `kms_timetable_size\{.*\}`: `7`, `kms_cron_registry_size\{.*\}`: `1`, `kms_messages_scheduled_total\{.*\}`: `7`,
		`kms_messages_canceled_total\{.*\}`: `1`, `kms_cron_registered_total\{.*\}`: `1`, `kms_last_location_lag\{.*partition="2".*type="D".*\}`: `0`,
		`kms_dispatcher_info\{.*partition="1",state="ACTIVE".*\}`: `1\.\d+e\+09`, `kms_dispatcher_info\{.*partition="1",state="REVOKED".*\}`: `0`,
		`kms_janitor_info\{.*partition="0",state="ACTIVE".*\}`: `1\.\d+e\+09`, `kms_active_deliveries\{.*partition="0".*\}`: `0`,
		`kms_cron_ticker_last_tick\{.*partition="2".*\}`: `1\.\d+e\+09`,
	} {
		if !regexp.MustCompile(`(?m)^kaspr_` + series + ` ` + want + `$`).MatchString(text) {
			t.Errorf("no %s with %s in the metrics:\n%s", series, want, strings.Join(regexp.MustCompile(`(?m)^kaspr_(kms|app_info).*`).FindAllString(text, -1), "\n"))
		}
	}
}

// laterPartitions is in how many partitions the app of a laterKafka schedules.
const laterPartitions = 6

// laterKafka is an embedded broker with processes of one app that only schedules, and a client of it.
type laterKafka struct {
	t         *testing.T
	broker    *dev.Broker
	manifests string
	cl        *kgo.Client // reads the deliveries
}

type laterProcess struct {
	*running
	port string
}

func newLaterKafka(t *testing.T) *laterKafka {
	t.Helper()
	b, err := dev.NewBroker(laterPartitions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	k := &laterKafka{t: t, broker: b, manifests: t.TempDir()}
	app := fmt.Sprintf("apiVersion: kaspr.io/v1alpha1\nkind: KasprApp\nmetadata: {name: later}\nspec: {config: {schedulerEnabled: true, schedulerTopicPartitions: %d}}\n", laterPartitions)
	if err := os.WriteFile(filepath.Join(k.manifests, "app.yaml"), []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	k.cl, err = kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.AllowAutoTopicCreation(), kgo.ProducerLinger(0), kgo.ConsumeTopics("out"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(20*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.cl.Close)
	return k
}

// engine starts a process.
func (k *laterKafka) engine(settings ...string) *laterProcess {
	k.t.Helper()
	port := freePort(k.t)
	args := []string{"run"}
	for _, s := range append([]string{
		"definitionsDir=" + k.manifests, "dataDir=" + k.t.TempDir(), "topicPartitions=" + strconv.Itoa(laterPartitions), "topicReplicationFactor=1",
		"webPort=" + port, "adminListen=off", "kafkaBootstrapServers=" + strings.Join(k.broker.Addrs(), ","),
	}, settings...) {
		args = append(args, "--set", s)
	}
	return &laterProcess{start(k.t, nil, args...), port}
}

// ready waits until the process does all of its work.
func (p *laterProcess) ready(t *testing.T) {
	t.Helper()
	waitReady(t, "http://127.0.0.1:"+p.port, &p.errs)
}

// lateDelivery is how late a message was there for readers of committed records, and how late it was sent.
type lateDelivery struct {
	id         string
	late, sent time.Duration
}

// schedule asks for one message at each time, and reads them. Their ids are their numbers.
func (k *laterKafka) schedule(times []time.Time) []lateDelivery {
	k.t.Helper()
	var rs []*kgo.Record
	for i, at := range times {
		id := []byte(strconv.Itoa(i))
		rs = append(rs, &kgo.Record{Topic: "later-app-schedule-requests", Key: id, Value: id, Headers: []kgo.RecordHeader{
			{Key: "x-scheduler-deliver-to", Value: []byte("out")},
			{Key: "x-scheduler-request-id", Value: id},
			{Key: "x-scheduler-deliver-at", Value: []byte(at.UTC().Format("2006-01-02T15:04:05.000Z07:00"))},
		}})
	}
	if err := k.cl.ProduceSync(k.t.Context(), rs...).FirstErr(); err != nil {
		k.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Until(times[len(times)-1])+30*time.Second)
	defer cancel()
	var got []lateDelivery
	seen := map[string]bool{}
	for ctx.Err() == nil && len(seen) < len(times) {
		fetches := k.cl.PollFetches(ctx)
		now := time.Now()
		fetches.EachRecord(func(r *kgo.Record) {
			i, err := strconv.Atoi(string(r.Value))
			if err != nil || i >= len(times) || seen[string(r.Value)] {
				k.t.Errorf("delivered, or once more: %q", r.Value)
				return
			}
			seen[string(r.Value)] = true
			if r.Timestamp.Before(times[i]) || now.Before(times[i]) {
				k.t.Errorf("message %d was delivered %s early", i, max(times[i].Sub(now), times[i].Sub(r.Timestamp)))
			}
			got = append(got, lateDelivery{string(r.Value), now.Sub(times[i]), r.Timestamp.Sub(times[i])})
		})
	}
	if len(got) < len(times) {
		k.t.Fatalf("%d of %d messages were delivered", len(got), len(times))
	}
	return got
}

// lateness is the median and the most of a list.
func lateness(of []lateDelivery, late func(lateDelivery) time.Duration) (median, most time.Duration) {
	var list []time.Duration
	for _, d := range of {
		list = append(list, late(d))
	}
	slices.Sort(list)
	return list[len(list)/2], list[len(list)-1]
}

// Where nothing else is to do a message must leave when its time has come, to the millisecond, and not when somebody looks next: that is once
// a second. The bounds are wide because other tests run beside this one; docs/scheduler.md has what was measured.
func TestScheduleIdleLateness(t *testing.T) {
	k := newLaterKafka(t)
	for _, interval := range []string{"20ms", "100ms"} {
		p := k.engine("commitInterval=" + interval)
		p.ready(t)
		var times []time.Time
		at := time.Now().Add(time.Second).Truncate(time.Millisecond)
		for range 20 {
			at = at.Add(137 * time.Millisecond)
			times = append(times, at)
		}
		got := k.schedule(times)
		sent, sentMost := lateness(got, func(d lateDelivery) time.Duration { return d.sent })
		seen, seenMost := lateness(got, func(d lateDelivery) time.Duration { return d.late })
		t.Logf("commitInterval %s: sent %s after its time, half of them, and %s at most; there for readers of committed records %s, %s at most", interval, sent, sentMost, seen, seenMost)
		if sent > 100*time.Millisecond || seen > 250*time.Millisecond {
			t.Errorf("commitInterval %s: half of the messages left later than %s after their time, and were there %s after it", interval, sent, seen)
		}
		if code := p.stop(); code != exitOK {
			t.Errorf("exit code %d\n%s", code, &p.errs)
		}
	}
}

// A move of partitions must not hold up the others: those that stay deliver on time while the group still waits for a member.
func TestScheduleMove(t *testing.T) {
	k := newLaterKafka(t)
	stays := k.engine("brokerHeartbeatInterval=100ms", "brokerSessionTimeout=30s")
	slow := k.engine("brokerHeartbeatInterval=5s", "brokerSessionTimeout=30s") // which the others wait for, in each round
	var before map[int32]bool
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		before = stays.owns(t)
		if others := slow.owns(t); len(before) == laterPartitions/2 && len(others) == laterPartitions/2 && len(intersection(before, others)) == 0 {
			break
		} else if time.Since(began) > time.Minute {
			t.Fatalf("the two processes have the partitions %v and %v", before, others)
		}
	}
	stays.ready(t)
	slow.ready(t)
	var times []time.Time
	at := time.Now().Add(2 * time.Second).Truncate(time.Millisecond)
	for range 500 {
		at = at.Add(25 * time.Millisecond)
		times = append(times, at)
	}
	third := k.engine("brokerHeartbeatInterval=100ms", "brokerSessionTimeout=30s")
	got := k.schedule(times)
	third.ready(t)
	after := stays.owns(t)
	if len(after) == 0 || len(after) >= len(before) || !maps.Equal(after, intersection(before, after)) {
		t.Fatalf("the first process had the partitions %v, then %v", before, after)
	}
	var kept, others []lateDelivery
	for _, d := range got {
		if after[record.PartitionOf([]byte(d.id), laterPartitions)] {
			kept = append(kept, d)
		} else {
			others = append(others, d)
		}
	}
	late := func(d lateDelivery) time.Duration { return d.late }
	median, most := lateness(kept, late)
	_, othersMost := lateness(others, late)
	t.Logf("of partitions that stayed %d messages, half of them %s late and %s at most; of all others %s at most", len(kept), median, most, othersMost)
	if most > 2*time.Second {
		t.Errorf("a message of a partition that did not move was %s late", most)
	}
	leaders := 0
	for _, p := range []*laterProcess{third, slow, stays} { // an operator takes one of them for the leader, and only one
		if _, text := get(t, "http://127.0.0.1:"+p.port+"/status/"); strings.Contains(text, `"leader":true`) {
			leaders++
		}
	}
	if leaders != 1 {
		t.Errorf("%d of three processes say that they lead", leaders)
	}
	for n := range after {
		if restored := strings.Count(stays.errs.String(), fmt.Sprintf("msg=\"table restored\" app=later-app table=schedule partition=%d role=active", n)); restored != 1 {
			t.Errorf("partition %d stayed, and was restored %d times", n, restored)
		}
	}
	for _, p := range []*laterProcess{third, slow, stays} {
		if code := p.stop(); code != exitOK {
			t.Errorf("exit code %d\n%s", code, &p.errs)
		}
	}
}

// An app that is there for the message scheduler alone has no manifests under the original's operator, which says all of it by settings; and an app
// begins before its components come. It must run as soon as there is something to do; without a name nobody knows what to run.
func TestRunWithoutManifests(t *testing.T) {
	k := newLaterKafka(t)
	empty := t.TempDir()
	for _, dir := range []string{filepath.Join(empty, "not-there"), empty} {
		p := k.engine("definitionsDir="+dir, "appName=later-app", "schedulerEnabled=true", "schedulerTopicPartitions="+strconv.Itoa(laterPartitions))
		p.ready(t)
		k.schedule([]time.Time{time.Now().Add(time.Second).Truncate(time.Millisecond)})
		if code := p.stop(); code != exitOK || !strings.Contains(p.errs.String(), "warning M049: the app has no components: there is no *.yaml or *.yml file in "+dir) {
			t.Errorf("exit code %d\n%s", code, &p.errs)
		}
		for environ, want := range map[string]string{"K_APP_NAME=later-app": `app "later" has no component to run`, "K_SCHEDULER_ENABLED=True": "error "} {
			if code, _, errs := kaspr(t, empty, []string{environ, "K_DEFINITIONS_DIR=" + dir}, "run"); code != exitFailed || !strings.Contains(errs, want) {
				t.Errorf("%s: exit code %d, want %q in\n%s", environ, code, want, errs)
			}
		}
	}
}

// Who pauses, resumes or ends a cron entry, over HTTP or by the command line, must see it stop and go on: while it is paused nothing fires, and
// with skip nothing of that time is made up.
func TestScheduleCronSteered(t *testing.T) {
	k := newLaterKafka(t)
	admin := "127.0.0.1:" + freePort(t)
	cron := []string{"schedulerCronEnabled=true", "schedulerCronMinIntervalSeconds=1"}
	p := k.engine(append(cron, "adminListen="+admin, "adminToken=secret")...)
	p.ready(t)
	add := &kgo.Record{Topic: "later-app-schedule-requests", Key: []byte("tick"), Headers: []kgo.RecordHeader{
		{Key: "x-scheduler-action", Value: []byte("CRON_ADD")},
		{Key: "x-scheduler-deliver-to", Value: []byte("out")},
		{Key: "x-scheduler-request-id", Value: []byte("tick")},
		{Key: "x-scheduler-cron-expr", Value: []byte("* * * * * *")},
		{Key: "x-scheduler-cron-missed-fire-policy", Value: []byte("skip")},
	}}
	if err := k.cl.ProduceSync(t.Context(), add).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// fires reads firings: until there are n, or until the time is over.
	fires := func(n int, within time.Duration) (list []int64) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		for ctx.Err() == nil && len(list) < n {
			k.cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				for _, h := range r.Headers {
					if h.Key == "x-scheduler-cron-fire-timestamp" {
						at, err := strconv.ParseInt(string(h.Value), 10, 64)
						if err != nil {
							t.Error(err)
						}
						list = append(list, at)
					}
				}
			})
		}
		return list
	}
	becomes := func(state string) {
		t.Helper()
		var body []byte
		for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
			var page struct {
				Crons []struct {
					ID    string `json:"requestId"`
					State string
				}
			}
			var err error
			_, body, err = apphttp.AskAs("secret", admin, "/schedule?list=crons", 10*time.Second, nil)
			if err == nil {
				err = json.Unmarshal(body, &page)
			}
			if err != nil {
				t.Fatal(err)
			}
			if state == "" && len(page.Crons) == 0 || len(page.Crons) == 1 && page.Crons[0].ID == "tick" && page.Crons[0].State == state {
				return
			}
		}
		t.Fatalf("the cron is not %q: %s", state, body)
	}
	overHTTP := func(action, _ string) {
		t.Helper()
		body := fmt.Sprintf(`{"action":%q,"requestId":"tick"}`, action)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+admin+"/schedule", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer secret")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s: %s", body, resp.Status)
		}
	}
	byCommand := func(_, command string) {
		t.Helper()
		args := append([]string{"schedule"}, strings.Fields(command)...)
		for _, s := range append(cron, "definitionsDir="+k.manifests, "kafkaBootstrapServers="+strings.Join(k.broker.Addrs(), ",")) {
			args = append(args, "--set", s)
		}
		var out, errs bytes.Buffer
		if code := Main(t.Context(), "test", append(args, "tick"), Streams{Out: &out, Err: &errs}); code != exitOK {
			t.Fatalf("%v: exit code %d: %s", args, code, &errs)
		}
	}
	if got := fires(2, 20*time.Second); len(got) < 2 {
		t.Fatalf("fired %d times\n%s", len(got), &p.errs)
	}
	for _, change := range []func(action, command string){overHTTP, byCommand} {
		change("CRON_PAUSE", "pause")
		becomes("paused")
		paused := time.Now().Unix()
		fires(1000, 500*time.Millisecond) // of before
		if got := fires(1000, 2500*time.Millisecond); len(got) > 0 {
			t.Errorf("fired while paused: for %v", got)
		}
		resumed := time.Now().Unix()
		change("CRON_RESUME", "resume")
		becomes("active")
		got := fires(2, 20*time.Second)
		if len(got) < 2 || got[0] < resumed {
			t.Errorf("paused at %d, resumed at %d, and fired for %v", paused, resumed, got)
		}
	}
	overHTTP("CRON_CANCEL", "")
	becomes("")
	fires(1000, 500*time.Millisecond)
	if got := fires(1000, 2500*time.Millisecond); len(got) > 0 {
		t.Errorf("fired when cancelled: for %v", got)
	}
	if code := p.stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, &p.errs)
	}
}

func intersection(a, b map[int32]bool) map[int32]bool {
	both := maps.Clone(a)
	maps.DeleteFunc(both, func(n int32, _ bool) bool { return !b[n] })
	return both
}

var aMove = regexp.MustCompile(`msg="partitions (assigned|revoked)".* partitions="?\[([^\]]*)\]`)

// owns is which partitions of the scheduler a process has, by its log.
func (p *laterProcess) owns(t *testing.T) map[int32]bool {
	t.Helper()
	owned := map[int32]bool{}
	for _, m := range aMove.FindAllStringSubmatch(p.errs.String(), -1) {
		for _, name := range strings.Fields(m[2]) {
			topic, number, _ := strings.Cut(name, "/")
			if topic != "later-app-schedule-actions" {
				continue
			}
			n, err := strconv.ParseInt(number, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			if m[1] == "assigned" {
				owned[int32(n)] = true
			} else {
				delete(owned, int32(n))
			}
		}
	}
	return owned
}
