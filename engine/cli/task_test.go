package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const readsAtStart = `
apiVersion: kaspr.io/v1alpha1
kind: KasprApp
metadata: {name: one}
spec: {bootstrapServers: "kafka:9092"}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: rows, labels: {kaspr.io/app: one}}
spec: {name: rows}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: fills, labels: {kaspr.io/app: one}}
spec:
  input: {topic: {name: one-in}}
  processors:
    pipeline: [put]
    operations: [{name: put, tables: [{name: rows, paramName: rows}], map: {python: "def put(v, rows): rows['in'] = v"}}]
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTask
metadata: {name: reads, labels: {kaspr.io/app: one}}
spec:
  onLeader: true
  processors:
    pipeline: [read]
    operations: [{name: read, tables: [{name: rows, paramName: rows}], map: {python: "def read(rows): context['app'].log.info('found %d', rows['a'])"}}]
`

// The leader of an app whose tables take long to be restored must not begin a task before: its reads would fail, and a run at start be lost.
func TestLeaderTaskAwaitsTables(t *testing.T) {
	const changelog = "one-app-rows-changelog"
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "one-in", changelog), kfake.DefaultNumPartitions(1), kfake.AllowAutoTopicCreation(),
		kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: changelog, Key: []byte(`"a"`), Value: []byte("7")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	// Who fetches the changelog waits until go on.
	id, goOn, waits := kafka.TopicInfo(changelog).TopicID, make(chan struct{}), atomic.Bool{}
	kafka.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.KeepControl()
		if slices.ContainsFunc(r.(*kmsg.FetchRequest).Topics, func(t kmsg.FetchRequestTopic) bool { return t.Topic == changelog || t.TopicID == id }) {
			waits.Store(true)
			kafka.SleepControl(func() { <-goOn })
		}
		return nil, nil, false
	})
	dir, port := t.TempDir(), freePort(t)
	settings := filepath.Join(dir, "settings")
	for file, text := range map[string]string{
		"app.yaml": readsAtStart,
		"settings": "definitionsDir: " + dir + "\ndataDir: " + dir + "\nadminListen: 127.0.0.1:0\ntopicReplicationFactor: 1\nwebPort: " + port +
			"\nkafkaBootstrapServers: " + strings.Join(kafka.ListenAddrs(), ",") + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	app := start(t, nil, "run", "--config", settings)
	defer app.stop() // while there is a broker
	runs := func() (runs, failures int) {
		var status struct {
			Tasks []struct{ Runs, Failures int }
		}
		code, text := get(t, "http://127.0.0.1:"+port+"/status")
		if err := json.Unmarshal([]byte(text), &status); code != 200 || err != nil || len(status.Tasks) != 1 {
			return -1, -1
		}
		return status.Tasks[0].Runs, status.Tasks[0].Failures
	}
	app.until("restore", waits.Load)
	time.Sleep(4 * time.Second) // a read waits for 2 s for what is not there
	if n, failed := runs(); n != 0 {
		t.Errorf("%d runs, %d failed, before the table was restored\n%s", n, failed, &app.errs)
	}
	close(goOn)
	app.until("run", func() bool { n, _ := runs(); return n > 0 })
	if n, failed := runs(); n != 1 || failed != 0 || !strings.Contains(app.errs.String(), "found 7") {
		t.Errorf("%d runs, %d failed\n%s", n, failed, &app.errs)
	}
}
