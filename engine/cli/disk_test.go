package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/enginetest"
)

// tallies counts records by their key, in the partition where they are, and by a remainder, wherever its partition is.
const tallies = `
apiVersion: kaspr.io/v1alpha1
kind: KasprApp
metadata: {name: demo}
spec: {config: {schedulerEnabled: true}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: tally, labels: {kaspr.io/app: demo}}
spec: {name: tally}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: last, labels: {kaspr.io/app: demo}}
spec: {name: last, partitionBy: key}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: count, labels: {kaspr.io/app: demo}}
spec:
  input: {declare: true, topic: {name: events, partitions: 4}}
  processors:
    pipeline: [count]
    operations:
      - name: count
        tables: [{name: tally, paramName: tally}, {name: last, paramName: last}]
        map:
          python: |
            def count(n, tally, last):
                tally[n % 40] = tally.get(n % 40, 0) + 1
                last[n % 7] = 'seen'
`

// One process after the other comes and goes. The disk of each must have what it works on and no more, the app's internal topics what is not
// processed yet, and a partition that comes back all of its table.
func TestNothingStaysBehind(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafka.Addrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	manifests := t.TempDir()
	if err := os.WriteFile(filepath.Join(manifests, "app.yaml"), []byte(tallies), 0o600); err != nil {
		t.Fatal(err)
	}
	type process struct {
		dir, settings string
		stop          context.CancelFunc
		ended         chan int
		errs          enginetest.Buffer
	}
	processes := make([]process, 2)
	start := func(p *process) {
		p.dir, p.ended = t.TempDir(), make(chan int, 1)
		p.settings = filepath.Join(p.dir, "settings")
		text := "definitionsDir: " + manifests + "\ndataDir: " + p.dir + "\ntopicReplicationFactor: 1\ntopicPartitions: 4\nwebPort: " + freePort(t) +
			"\nadminListen: 127.0.0.1:" + freePort(t) + "\nbrokerSessionTimeout: 10s\nbrokerHeartbeatInterval: 200ms\nstandbyReplicas: 0\nstoreCleanupDelay: 1s" +
			"\nkafkaBootstrapServers: " + strings.Join(kafka.Addrs(), ",") + "\n"
		if err := os.WriteFile(p.settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var ctx context.Context
		ctx, p.stop = context.WithCancel(t.Context())
		go func() {
			defer close(p.ended)
			p.ended <- Main(ctx, "test", []string{"run", "--config", p.settings}, Streams{Out: &enginetest.Buffer{}, Err: &p.errs})
		}()
	}
	a, b := &processes[0], &processes[1]
	until := func(what string, done func() bool) {
		t.Helper()
		for began := time.Now(); !done(); time.Sleep(50 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("%s\n%s\n%s", what, &a.errs, &b.errs)
			}
		}
	}
	tables := []string{"last", "schedule", "tally"}
	// stores is which partitions of a table a process has on disk.
	stores := func(p *process, table string) (list []string) {
		entries, err := os.ReadDir(filepath.Join(p.dir, "tables", table))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list
	}
	all := []string{"0", "1", "2", "3"}
	feed := func(n int) {
		t.Helper()
		var lines strings.Builder
		for i := range n {
			fmt.Fprintf(&lines, "{\"key\": \"%d\", \"value\": %d}\n", i%40, i)
		}
		until("the input is refused", func() bool { // the engine makes the topic
			return dev.Feed(kafka.Addrs(), nil, []dev.Input{{Topic: "events", File: "-"}}, strings.NewReader(lines.String())) == nil
		})
	}
	counted := func(n int) {
		t.Helper()
		want := fmt.Sprintf("\"value\":%d}\n", n)
		until(fmt.Sprintf("not every key was counted %d times", n), func() bool {
			code, out, _ := kaspr(t, manifests, nil, "tables", "scan", "tally", "--limit", "0", "--config", a.settings)
			return code == exitOK && strings.Count(out, want) == 40
		})
	}
	// kept is, of each partition of a topic that ever had a record, where it begins and ends.
	kept := func(topic string) (bounds [][2]int64) {
		t.Helper()
		first, err := adm.ListStartOffsets(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		last, err := adm.ListEndOffsets(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		last.Each(func(o kadm.ListedOffset) {
			if at, ok := first.Lookup(topic, o.Partition); ok && o.Offset > 0 {
				bounds = append(bounds, [2]int64{at.Offset, o.Offset})
			}
		})
		return bounds
	}

	start(a)
	defer func() {
		a.stop()
		<-a.ended
	}()
	feed(400)
	counted(10)
	for _, table := range tables {
		if got := stores(a, table); !slices.Equal(got, all) {
			t.Errorf("alone it has stores %v of %s", got, table)
		}
	}
	start(b)
	defer func() {
		b.stop()
		<-b.ended
	}()
	until("what moved to the other process is still on disk", func() bool {
		return !slices.ContainsFunc(tables, func(table string) bool {
			ours, others := stores(a, table), stores(b, table)
			return len(ours) == 0 || len(others) == 0 || !slices.Equal(slices.Sorted(slices.Values(slices.Concat(ours, others))), all)
		})
	})
	until("what was written to other partitions is still in Kafka", func() bool {
		bounds := kept("demo-app-last-writes")
		return len(bounds) > 0 && !slices.ContainsFunc(bounds, func(b [2]int64) bool { return b[1]-b[0] > 1 }) // the end of a transaction may stay
	})
	for _, topic := range []string{"events", "demo-app-tally-changelog", "demo-app-last-changelog"} {
		if bounds := kept(topic); len(bounds) == 0 || slices.ContainsFunc(bounds, func(b [2]int64) bool { return b[0] > 0 }) {
			t.Errorf("of %s there is %v", topic, bounds)
		}
	}

	b.stop()
	if code := <-b.ended; code != exitOK {
		t.Errorf("exit code %d\n%s", code, &b.errs)
	}
	feed(800)
	counted(30)
	for _, table := range tables {
		until("a partition that came back has no store", func() bool { return slices.Equal(stores(a, table), all) })
	}
	a.stop()
	if code := <-a.ended; code != exitOK {
		t.Errorf("exit code %d\n%s", code, &a.errs)
	}
	if text := a.errs.String() + b.errs.String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("the log has errors:\n%s", text)
	}
}
