package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const counting = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: totals, labels: {kaspr.io/app: demo}}
spec: {name: totals}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: sum, labels: {kaspr.io/app: demo}}
spec:
  input: {topic: {name: numbers}}
  processors:
    pipeline: [add]
    operations:
      - name: add
        tables: [{name: totals, paramName: totals}]
        map:
          python: |
            def add(n, totals):
                totals['all'] = totals.get('all', 0) + n
                return totals['all']
  output: {topics: [{name: sums}]}
`

// freePort is a port nobody listens on just now.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// get is the answer to a request, or 0 while nobody answers.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// What an app does, and what went wrong in it, must show at its HTTP port: to probes, Prometheus and people.
func TestHTTP(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.yaml"), []byte(counting), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	in, input := io.Pipe()
	var out, errs lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan int, 1)
	args := []string{"dev", dir, "--input", "numbers=-", "--http", "--set", "webPort=" + port, "--set", "webMetricsBasePath=/internal"}
	go func() { ended <- Main(ctx, "1.2.3", args, Streams{In: in, Out: &out, Err: &errs}) }()
	base := "http://127.0.0.1:" + port
	until := func(what string, ok func() bool) {
		t.Helper()
		for began := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatalf("no %s\nstandard output:\n%s\nstandard error:\n%s", what, &out, &errs)
			}
		}
	}
	until("/readyz", func() bool { code, _ := get(t, base+"/readyz"); return code == http.StatusOK })
	if _, err := io.WriteString(input, "1\n2\n\"three\"\n4\n"); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`kaspr_app_info{app_name="demo-app",group_id="demo-app",kaspr_version="1.2.3",`, `kaspr_health{`,
		`kaspr_agent_records_total{agent="sum",app_name="demo-app",worker_name="W"} 4`,
		`kaspr_agent_outputs_total{agent="sum",app_name="demo-app",worker_name="W"} 3`,
		`kaspr_agent_failed_records_total{agent="sum",app_name="demo-app",kind="code",worker_name="W"} 1`,
		`kaspr_agent_failed_records_total{agent="sum",app_name="demo-app",kind="deadline",worker_name="W"} 0`,
		`kaspr_agent_dead_letters_total{agent="sum",app_name="demo-app",worker_name="W"} 1`,
		`kaspr_messages_received_total{app_name="demo-app",worker_name="W"} 4`,
		`kaspr_total_sent_messages_total{app_name="demo-app",worker_name="W"} 4`,
		`kaspr_messages_received_per_topics_partition{app_name="demo-app",partition="0",topic="numbers",worker_name="W"} 3`,
		`kaspr_topic_partition_offset_committed{app_name="demo-app",partition="0",topic="numbers",worker_name="W"} 4`,
		`kaspr_topic_partition_end_offset{app_name="demo-app",partition="0",topic="numbers",worker_name="W"} 4`,
		`kaspr_topic_partition_lag{agent="sum",app_name="demo-app",partition="0",topic="numbers",worker_name="W"} 0`,
		`kaspr_table_partition_phase{app_name="demo-app",partition="0",phase="active",table="totals",worker_name="W"} 1`,
		`kaspr_table_restore_records_left{app_name="demo-app",partition="0",role="active",table="totals",worker_name="W"} 0`,
		`kaspr_table_key_count{app_name="demo-app",table="totals",worker_name="W"} 1`,
		`kaspr_guest_instances{agent="sum",`, `kaspr_guest_seconds_total{agent="sum",`, `kaspr_consumer_commit_latency_bucket{`,
		`process_resident_memory_bytes `, `go_goroutines `,
	}
	name := worker()
	var code int
	var text, missing string
	until("metrics that tell of it", func() bool {
		code, text = get(t, base+"/internal/metrics")
		missing = ""
		for _, w := range want {
			if w = strings.ReplaceAll(w, `worker_name="W"`, `worker_name="`+name+`"`); !strings.Contains(text, w) {
				missing = w
			}
		}
		return code == http.StatusOK && missing == ""
	})
	var ready struct {
		Ready  bool
		State  string
		Tables []struct{ Table, Role, Phase string }
	}
	code, text = get(t, base+"/readyz")
	if err := json.Unmarshal([]byte(text), &ready); err != nil || code != http.StatusOK || !ready.Ready || ready.State != "running" ||
		len(ready.Tables) != 1 || fmt.Sprint(ready.Tables[0]) != "{totals active active}" {
		t.Errorf("/readyz: %d %s %v", code, text, err)
	}
	var status struct {
		App, Version string
		Assignment   struct{ Actives map[string][]int }
		Partitions   []struct {
			Topic, Agent                  string
			Position, Committed, End, Lag int64
		}
		Agents []struct {
			Agent           string
			Records, Failed int64
		}
	}
	code, text = get(t, base+"/status")
	if err := json.Unmarshal([]byte(text), &status); err != nil || code != http.StatusOK {
		t.Fatalf("/status: %d %s %v", code, text, err)
	}
	if got, want := fmt.Sprintf("%+v", status), "{App:demo-app Version:1.2.3 "+
		"Assignment:{Actives:map[demo-app-totals-changelog:[0] numbers:[0]]} "+
		"Partitions:[{Topic:numbers Agent:sum Position:4 Committed:4 End:4 Lag:0}] Agents:[{Agent:sum Records:4 Failed:1}]}"; got != want {
		t.Errorf("/status:\n%s\nwant\n%s", got, want)
	}
	for _, args := range [][]string{{"health"}, {"health", "--ready"}} {
		if code, said, errs := kaspr(t, dir, nil, append(args, "--set", "webPort="+port)...); code != exitOK || !strings.HasPrefix(said, "{") {
			t.Errorf("%v: exit %d, %s%s", args, code, said, errs)
		}
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit %d\n%s", code, &errs)
	}
	if code, _ := get(t, base+"/healthz"); code != 0 {
		t.Errorf("the port still answers: %d", code)
	}
	if code, _, errs := kaspr(t, dir, nil, "health", "--set", "webPort="+port); code != exitFailed || !strings.Contains(errs, "ask 127.0.0.1:"+port+"/healthz") {
		t.Errorf("health of nobody: exit %d, %s", code, errs)
	}
}

// worker is how this machine is named in metrics.
func worker() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// A port that another process has must end the start with its number.
func TestHTTPPortInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	var c conformanceCase
	c.Exit = exitFailed
	_, stderr := c.run(t, []string{"dev", "../../examples/hello", "--drain", "--http", "--set", "webPort=" + port})
	if !strings.Contains(stderr, "port "+port+" is in use") {
		t.Errorf("standard error: %s", stderr)
	}
}
