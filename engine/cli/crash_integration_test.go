//go:build integration

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
	"kaspr.io/kaspr/state"
)

// crashApp counts the records of each user.
const crashApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: counts, labels: {kaspr.io/app: crash}}
spec: {name: counts, defaultSelector: {python: "def zero(): return int"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: count, labels: {kaspr.io/app: crash}}
spec:
  input: {topic: {name: crash-in, keySerializer: json}}
  processors:
    pipeline: [count]
    operations:
      - name: count
        tables: [{name: counts, paramName: counts}]
        map:
          python: |
            def count(value, counts):
                counts[value["user"]] += 1
                return {"user": value["user"], "i": value["i"], "n": counts[value["user"]]}
  output:
    topics:
      - name: crash-out
        keySerializer: json
        keySelector: {python: "def key(value): return value['user']"}
`

// amount is a number from the environment: make crash-test gives them.
func amount(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

const (
	crashProcesses  = 3
	crashPartitions = 6
	crashUsers      = 500
)

// Exactly once means: whenever processes are killed and the broker restarts, outputs, table and changelog end as if
// nothing had happened. An independent fold of the input says what that is.
func TestCrash(t *testing.T) {
	for attempt := range 3 {
		sound := true
		t.Run(strconv.Itoa(attempt), func(t *testing.T) { sound = crash(t) })
		if sound || t.Failed() {
			return
		}
	}
	t.Error("in each attempt Kafka forgot markers of a transaction")
}

// forgotMarkers tells whether the broker completed a transaction whose markers it never wrote. Kafka 4.3.0 does so when it is killed
// between the two and has no other broker: it comes back fenced, finds no leader for the partitions, takes them for deleted, and what the
// transaction wrote there is never committed. No client can make good for that.
func forgotMarkers(t *testing.T, b *realkafka.Broker) bool {
	t.Helper()
	log, err := os.ReadFile(b.File("server.log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(log), "while trying to send transaction markers for")
}

// crash tells whether the broker kept its word, without which the rest says nothing.
func crash(t *testing.T) (sound bool) {
	kills, restarts := amount(t, "KASPR_CRASH_KILLS", 5), amount(t, "KASPR_CRASH_RESTARTS", 1)
	total, seed := amount(t, "KASPR_CRASH_RECORDS", 30_000), amount(t, "KASPR_CRASH_SEED", int(time.Now().UnixNano()%1_000_000))
	t.Logf("%d records, %d kills, %d restarts of the broker, KASPR_CRASH_SEED=%d", total, kills, restarts, seed)
	random := rand.New(rand.NewPCG(uint64(seed), 1))

	broker := realkafka.New(t, realkafka.Options{})
	k := newKafka(t, broker)
	k.topic("crash-in", crashPartitions)
	k.topic("crash-out", crashPartitions)
	dirs := make([]string, crashProcesses)
	processes := make([]*process, crashProcesses)
	start := func(i int) {
		processes[i] = k.engine(crashApp, map[string]string{"dataDir": dirs[i], "transactionTimeout": "10s", "standbyReplicas": "1"})
	}
	for i := range processes {
		dirs[i] = t.TempDir()
		start(i)
	}
	processes[0].waitLog("partitions assigned")

	want := make(map[string]int, crashUsers)
	produced := make(chan struct{})
	go func() {
		defer close(produced)
		users := rand.New(rand.NewPCG(uint64(seed), 2))
		for i := range total {
			user := fmt.Sprintf("user-%d", users.IntN(crashUsers))
			want[user]++
			k.cl.Produce(context.Background(), &kgo.Record{
				Topic: "crash-in", Key: []byte(strconv.Quote(user)), Value: fmt.Appendf(nil, `{"user":%q,"i":%d}`, user, i),
			}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
			if i%500 == 499 { // spread over the kills
				time.Sleep(time.Duration(kills+1) * time.Second * 500 / time.Duration(total))
			}
		}
		if err := k.cl.Flush(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for n := range kills {
		time.Sleep(time.Duration(300+random.IntN(1200)) * time.Millisecond)
		if restarts > 0 && n%max(1, kills/restarts) == kills/restarts/2 {
			broker.Kill()
			if err := broker.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		victim := random.IntN(crashProcesses)
		_ = processes[victim].Cmd.Process.Kill()
		<-processes[victim].Done
		time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
		start(victim)
	}
	<-produced

	limit := 2*time.Minute + time.Duration(total/2000)*time.Second
	got := k.outputs(limit, func(rs []*kgo.Record) bool { return len(rs) >= total || forgotMarkers(t, broker) }, "crash-out")
	if forgotMarkers(t, broker) {
		t.Log("Kafka forgot markers of a transaction; the next attempt tells")
		return false
	}
	if len(got) < total {
		t.Errorf("%d of %d outputs", len(got), total)
	}
	time.Sleep(3 * time.Second) // what comes twice comes late
	got = k.broker.Records(t, "crash-out")
	compareOutputs(t, got, want, total)
	for i, p := range processes {
		if code := p.stop(); code != 0 {
			t.Errorf("process %d: exit code %d", i, code)
		}
	}
	changelog := k.broker.Records(t, "crash-app-counts-changelog")
	fold := map[string]int{}
	for _, r := range changelog {
		fold[string(r.Key)] = number(t, r.Value)
	}
	compareCounts(t, "the changelog", fold, want)
	compareStores(t, dirs, changelog, want)
	k.committed("crash-app", "crash-in")
	return true
}

func number(t *testing.T, text []byte) int {
	t.Helper()
	n, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// compareOutputs fails unless each record has one output, and each user's counts are 1, 2, 3… in order.
func compareOutputs(t *testing.T, got []*kgo.Record, want map[string]int, total int) {
	t.Helper()
	counts, seen, twice := map[string]int{}, map[int]bool{}, 0
	wrong := 0
	for _, r := range got {
		var v struct {
			User string
			I, N int
		}
		if err := json.Unmarshal(r.Value, &v); err != nil {
			t.Fatalf("output %q: %v", r.Value, err)
		}
		if seen[v.I] {
			twice++
		}
		seen[v.I] = true
		if counts[v.User]++; counts[v.User] != v.N {
			if wrong++; wrong < 10 {
				t.Errorf("%s/%d@%d: count %d of %s is the %d-th one", r.Topic, r.Partition, r.Offset, v.N, v.User, counts[v.User])
			}
		}
	}
	if len(seen) != total || twice > 0 || wrong > 0 {
		t.Errorf("of %d records %d have an output, %d more than one, %d with a wrong count", total, len(seen), twice, wrong)
	}
	if !maps.Equal(counts, want) {
		t.Error("the outputs' counts are not those of the input")
	}
}

func compareCounts(t *testing.T, what string, got, want map[string]int) {
	t.Helper()
	wrong := 0
	for user, n := range want {
		if g := got[strconv.Quote(user)]; g != n {
			if wrong++; wrong < 10 {
				t.Errorf("%s: %s has %d, want %d", what, user, g, n)
			}
		}
	}
	if len(got) != len(want) || wrong > 0 {
		t.Errorf("%s: %d users, %d of them wrong; want %d users", what, len(got), wrong, len(want))
	}
}

// compareStores fails unless every store is the fold of its changelog up to its offset, and together they hold every count.
func compareStores(t *testing.T, dirs []string, changelog []*kgo.Record, want map[string]int) {
	t.Helper()
	whole := map[string]int{}
	for i, dir := range dirs {
		stores, err := state.OpenDir(state.Options{Dir: filepath.Join(dir, "tables"), MemoryLimit: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		numbers, err := stores.Partitions("counts")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range numbers {
			store, err := stores.Open("counts", p)
			if err != nil {
				t.Fatal(err)
			}
			fold := map[string]int{}
			for _, r := range changelog {
				if r.Partition == p && r.Offset < store.Offset() {
					fold[string(r.Key)] = number(t, r.Value)
				}
			}
			has := map[string]int{}
			it := store.Scan(state.Range{})
			for it.Next() {
				has[string(it.Key())] = number(t, it.Value())
			}
			if err := it.Close(); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(fold, has) {
				t.Errorf("process %d, partition %d: the store up to offset %d has %d keys and is not the fold of the changelog, which has %d", i, p, store.Offset(), len(has), len(fold))
			}
			for user, n := range has {
				whole[user] = max(whole[user], n)
			}
		}
		if err := stores.Close(); err != nil {
			t.Fatal(err)
		}
	}
	compareCounts(t, "the stores", whole, want)
}

// A process that was killed and comes back must go on at once. Its partitions stood still until the session of the dead member was over,
// which may be a minute.
func TestComesBackAtOnce(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	app := strings.ReplaceAll(crashApp, "crash", "back")
	k.topic("back-in", crashPartitions)
	k.topic("back-out", crashPartitions)
	settings := map[string]string{"brokerSessionTimeout": "45s", "brokerHeartbeatInterval": "1s", "dataDir": t.TempDir(), "transactionTimeout": "60s"}
	other := k.engine(app, map[string]string{"brokerSessionTimeout": "45s", "brokerHeartbeatInterval": "1s"})
	other.waitLog("partitions assigned")
	p := k.engine(app, settings)
	p.waitLog("role=active") // of what the other one has given up
	_ = p.Cmd.Process.Kill()
	<-p.Done
	killed := time.Now()
	p = k.engine(app, settings)
	for i := range 60 {
		user := strconv.Itoa(i)
		k.cl.Produce(t.Context(), &kgo.Record{Topic: "back-in", Key: []byte(strconv.Quote(user)), Value: fmt.Appendf(nil, `{"user":%q,"i":%d}`, user, i)}, nil)
	}
	if got := k.outputs(40*time.Second, count(60), "back-out"); len(got) != 60 {
		t.Errorf("%d of 60 records were processed within %s", len(got), time.Since(killed))
	}
	t.Logf("all partitions go on %s after the kill", time.Since(killed).Round(time.Millisecond))
	for _, p := range []*process{p, other} {
		if code := p.stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// A process that was away so long that the group gave its partitions to another must not commit what it had begun: it would
// be there twice.
func TestZombie(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("crash-in", crashPartitions)
	k.topic("crash-out", crashPartitions)
	// The transaction outlives the session, so that it is the group that refuses the zombie, not the transaction's end.
	settings := func() map[string]string {
		return map[string]string{"dataDir": t.TempDir(), "transactionTimeout": "60s", "commitInterval": "2s"}
	}
	zombie := k.engine(crashApp, settings())
	zombie.waitLog("partitions assigned")
	const total = 6000
	want := map[string]int{}
	feed := func(from, to int) {
		for i := from; i < to; i++ {
			user := fmt.Sprintf("user-%d", i*i%crashUsers)
			want[user]++
			k.cl.Produce(t.Context(), &kgo.Record{Topic: "crash-in", Key: []byte(strconv.Quote(user)), Value: fmt.Appendf(nil, `{"user":%q,"i":%d}`, user, i)},
				func(_ *kgo.Record, err error) {
					if err != nil {
						t.Error(err)
					}
				})
		}
		if err := k.cl.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	feed(0, total/2)
	time.Sleep(700 * time.Millisecond) // in the middle of an epoch
	if err := zombie.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	heir := k.engine(crashApp, settings())
	feed(total/2, total)
	heir.waitLog("table restored") // brokerSessionTimeout is 6 s
	time.Sleep(time.Second)
	if err := zombie.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	zombie.waitLog("partitions lost")
	k.outputs(2*time.Minute, func(rs []*kgo.Record) bool { return len(rs) >= total }, "crash-out")
	time.Sleep(4 * time.Second)
	compareOutputs(t, k.broker.Records(t, "crash-out"), want, total)
	if code := zombie.stop(); code != 0 {
		t.Errorf("the zombie ended with exit code %d", code)
	}
	heir.stop()
}
