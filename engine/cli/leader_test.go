package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/dev"
)

const asksLeader = `
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: leader, labels: {kaspr.io/app: demo}}
spec:
  request: {method: GET, path: /leader}
  response: {contentType: application/json}
  processors:
    pipeline: [ask]
    operations: [{name: ask, map: {python: "def ask(request): return context['app'].is_leader()"}}]
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTask
metadata: {name: once, labels: {kaspr.io/app: demo}}
spec: {processors: {pipeline: [run], operations: [{name: run, map: {python: "def run(): return 1"}}]}}
`

// Code that does something once for all processes asks app.is_leader: of two processes one must lead, never both, and the other when it
// has gone. A task without a schedule runs once in each of them, whatever the group does.
func TestOneLeader(t *testing.T) {
	kafka, err := dev.NewBroker(1)
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	manifests := t.TempDir()
	if err := os.WriteFile(filepath.Join(manifests, "view.yaml"), []byte(asksLeader), 0o600); err != nil {
		t.Fatal(err)
	}
	type process struct {
		*running
		port string
	}
	processes := make([]process, 2)
	for i := range processes {
		p := &processes[i]
		p.port = freePort(t)
		settings := filepath.Join(t.TempDir(), "settings")
		text := "definitionsDir: " + manifests + "\ndataDir: " + t.TempDir() + "\ntopicReplicationFactor: 1\nwebPort: " + p.port +
			"\nbrokerSessionTimeout: 10s\nbrokerHeartbeatInterval: 500ms\nkafkaBootstrapServers: " + strings.Join(kafka.Addrs(), ",") + "\n"
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p.running = start(t, nil, "run", "--config", settings)
		defer p.stop() // while there is a broker
	}
	// leads is who says so, of the processes that answer: their numbers, or nil while one of them does not answer.
	leads := func(of ...int) (list []int) {
		for _, i := range of {
			code, text := get(t, "http://127.0.0.1:"+processes[i].port+"/leader")
			switch {
			case code != 200:
				return nil
			case strings.TrimSpace(text) == "true":
				list = append(list, i)
			}
		}
		return list
	}
	until := func(of ...int) int {
		t.Helper()
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			list := leads(of...)
			if len(list) == 1 {
				return list[0]
			}
			if len(list) > 1 {
				time.Sleep(2 * time.Second) // the office may have gone from one to the other between the two questions
				if list = leads(of...); len(list) > 1 {
					t.Fatalf("%d processes lead", len(list))
				}
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("nobody leads\n%s\n%s", &processes[0].errs, &processes[1].errs)
			}
		}
	}
	first := until(0, 1)
	if code := processes[first].stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, &processes[first].errs)
	}
	other := 1 - first
	if next := until(other); next != other {
		t.Errorf("%d leads", next)
	}
	code, text := get(t, "http://127.0.0.1:"+processes[other].port+"/status")
	var status struct {
		Leader bool
		Tasks  []struct{ Runs, Failures int }
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil || code != 200 || fmt.Sprint(status) != "{true [{1 0}]}" {
		t.Errorf("/status: %d %s %v", code, text, err)
	}
	if code := processes[other].stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, &processes[other].errs)
	}
}
