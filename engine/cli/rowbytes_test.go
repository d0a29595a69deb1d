package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/enginetest"
)

// A changelog that takes less than others must not stop the app: not for a row that is larger, whose record fails, nor for rows that
// are only together.
func TestSmallChangelog(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	var errs enginetest.Buffer
	admin, err := broker.NewAdmin(broker.Options{Brokers: kafka.Addrs(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.Ensure(t.Context(), broker.Topic{
		Name: "small-app-rows-changelog", Partitions: 1, Replicas: 1, Config: map[string]string{"cleanup.policy": "compact", "max.message.bytes": "20000"},
	}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	settings := filepath.Join(dir, "settings")
	for file, text := range map[string]string{
		"app.yaml": `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: rows, labels: {kaspr.io/app: small}}
spec: {name: rows}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: grow, labels: {kaspr.io/app: small}}
spec:
  input: {topic: {name: sizes}, declare: true}
  processors:
    pipeline: [grow]
    operations:
      - name: grow
        tables: [{name: rows, paramName: rows}]
        map:
          python: |
            import random
            def grow(n, rows):
                rows["k%d" % (n % 7)] = random.Random(n).randbytes(n // 2).hex() + "x" * (n % 2)
                rows["last"] = len(rows.get("k5", ""))
`,
		"settings": fmt.Sprintf("definitionsDir: %s\ndataDir: %s\ntopicPartitions: 1\ntopicReplicationFactor: 1\nwebPort: 0\nadminListen: 127.0.0.1:%s\nkafkaBootstrapServers: %s\n",
			dir, dir, freePort(t), strings.Join(kafka.Addrs(), ",")),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, "test", []string{"run", "--config", settings}, Streams{Out: &enginetest.Buffer{}, Err: &errs})
	}()
	length := func(key string) (n int) {
		code, out, _ := kaspr(t, dir, nil, "tables", "get", "rows", key, "--config", settings)
		var value any
		if code != exitOK || json.Unmarshal([]byte(out), &value) != nil {
			return -1
		}
		switch v := value.(type) {
		case string:
			return len(v)
		case float64:
			return int(v)
		}
		return -1
	}
	var lines strings.Builder
	for n := 10000; n < 10012; n++ { // together more than the changelog takes
		fmt.Fprintln(&lines, n)
	}
	fmt.Fprintln(&lines, 30000-1) // by itself: of k4
	fmt.Fprintln(&lines, 10012)
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) { // the engine makes the topic
		if err := dev.Feed(kafka.Addrs(), nil, []dev.Input{{Topic: "sizes", File: "-"}}, strings.NewReader(lines.String())); err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("%v\n%s", err, &errs)
		}
	}
	for began := time.Now(); length(fmt.Sprintf("k%d", 10012%7)) != 10012; time.Sleep(50 * time.Millisecond) {
		select {
		case code := <-ended:
			t.Fatalf("the app stopped with %d\n%s", code, &errs)
		default:
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("the record behind is not processed\n%s", &errs)
		}
	}
	if n := length("k4"); n != 10007 { // 10007 % 7 is 4, and so is 29999 % 7
		t.Errorf("the row has %d bytes, want the 10007 of before", n)
	}
	if n := length("last"); n != 10008 {
		t.Errorf("the row beside it says %d, want 10008", n)
	}
	for _, part := range []string{"rows of a table can be no larger than its changelog takes", "TableWriteError: a write of 30005 bytes to ", "dead-letter"} {
		if !strings.Contains(errs.String(), part) {
			t.Errorf("the log does not say %q\n%s", part, &errs)
		}
	}
	cancel()
	<-ended
}
