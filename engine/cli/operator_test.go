package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/dev"
)

// What the original's operator mounts for an agent and a table: a file each, snake_case, what nobody has written null or empty.
var operatorFiles = map[string]string{
	"dunning-agent.yaml": `
agents:
- name: dunning
  description: null
  isolated_partitions: null
  input:
    declare: true
    topic: {name: bills, pattern: null, key_serializer: null, value_serializer: null, partitions: 1, retention: null, replicas: null, compacting: null, deleting: null, config: {}}
    channel: {}
    take: {}
  output:
    topics:
    - {name: letters, name_selector: null, key_selector: {}, value_selector: null, partition_selector: null, headers_selector: null, predicate: null,
       declare: true, ack: null, key_serializer: null, value_serializer: null, partitions: 1, retention: null, replicas: null, compacting: null, deleting: null, config: {}}
  processors:
    pipeline: [count]
    init: null
    operations:
    - name: count
      tables: [{name: seen, param_name: seen}]
      map:
        entrypoint: count
        python: |
          def count(bill, seen):
              seen[bill["to"]] = seen.get(bill["to"], 0) + 1
              return {"to": bill["to"], "n": seen[bill["to"]]}
      filter: null
      topic_send: null
`,
	"seen-table.yaml": `
tables:
- {name: seen, description: null, global: false, default_selector: null, key_serializer: json, value_serializer: json, partitions: 1, extra_topic_configs: {}, options: {}, window: null}
`,
}

// Whoever puts this engine in the place of the original's worker leaves its operator as it is: what that gives a worker must be enough, what it asks
// be answered, and a pod that is back go on where it was.
func TestUnderTheOperator(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	dir, port := t.TempDir(), freePort(t)
	for file, text := range operatorFiles {
		if err := os.MkdirAll(filepath.Join(dir, "definitions"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "definitions", file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	environ := []string{
		"K_APP_NAME=billing-app", "K_KAFKA_BOOTSTRAP_SERVERS=" + strings.Join(kafka.Addrs(), ","), "K_KAFKA_SECURITY_PROTOCOL=PLAINTEXT",
		"K_SCHEDULER_ENABLED=True", "K_TOPIC_REPLICATION_FACTOR=1", "K_WEB_PORT=" + port, "K_WEB_HOST=127.0.0.1",
		"K_DATA_DIR=" + dir, "K_TABLE_DIR=" + filepath.Join(dir, "tables"), "K_DEFINITIONS_DIR=" + filepath.Join(dir, "definitions"),
		"POD_NAME=billing-app-0", "K_CONSUMER_GROUP_INSTANCE_ID=billing-app-0", "PYTHONPATH=/opt/kaspr/packages:${PYTHONPATH}",
		"CONFIG_HASH=1", "AGENTS_HASH=2", "TABLES_HASH=3", "WEBVIEWS_HASH=4", "TASKS_HASH=5",
		"KASPR_ADMIN_LISTEN=off", // the test's own: other tests have the port
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(kafka.Addrs()...), kgo.ConsumeTopics("letters"), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(20*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond), kgo.AllowAutoTopicCreation())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	base := "http://127.0.0.1:" + port
	for _, want := range []string{`{"to":"ann","n":1}`, `{"to":"ann","n":2}`} {
		worker := startIn(t, environ, nil, "run")
		waitReady(t, base, &worker.errs)
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "bills", Value: []byte(`{"to": "ann"}`)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		fetches := cl.PollRecords(ctx, 1)
		cancel()
		letter := ""
		fetches.EachRecord(func(r *kgo.Record) { letter += string(r.Value) })
		if letter != want {
			t.Errorf("letter %s, %v, want %s\n%s", letter, fetches.Err(), want, &worker.errs)
		}
		var status struct {
			App                             string
			Leader, Rebalancing, Recovering *bool
			Assignment                      struct{ Actives, Standbys map[string][]int }
			Owners                          map[string]map[string][]int `json:"table_metadata"`
		}
		code, text := get(t, base+"/status/")
		if err := json.Unmarshal([]byte(text), &status); err != nil || code != http.StatusOK || status.App != "billing-app" ||
			status.Leader == nil || !*status.Leader || status.Rebalancing == nil || status.Recovering == nil || status.Assignment.Standbys == nil ||
			len(status.Assignment.Actives["bills"]) != 1 || len(status.Owners[base]["billing-app-seen-changelog"]) != 1 {
			t.Errorf("/status/: %d %s %v", code, text, err)
		}
		if code, text := post(t, base+"/signal/rebalance"); code != http.StatusOK || !strings.Contains(text, `"status":"ok"`) {
			t.Errorf("/signal/rebalance: %d %s", code, text)
		}
		if code, text := get(t, base+"/metrics"); code != http.StatusOK || !strings.Contains(text, `kaspr_app_info{app_name="billing-app",group_id="billing-app",`) {
			t.Errorf("/metrics: %d %s", code, text)
		}
		if code := worker.stop(); code != exitOK {
			t.Errorf("exit code %d\n%s", code, &worker.errs)
		}
		if text := worker.errs.String(); strings.Contains(text, "C011") || strings.Contains(text, "C010") {
			t.Errorf("the operator's settings are warned of:\n%s", text)
		}
	}
}
