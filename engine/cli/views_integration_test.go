//go:build integration

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// readApp keeps a table by the partition of its records. Their keys are no JSON, the table's are: so the hash of a table key seldom gives
// the partition it is in.
const readApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: values, labels: {kaspr.io/app: read}}
spec: {name: values}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: keep, labels: {kaspr.io/app: read}}
spec:
  input: {topic: {name: TOPIC}}
  processors:
    pipeline: [keep]
    operations:
      - name: keep
        tables: [{name: values, paramName: values}]
        map:
          python: |
            def keep(value, values):
                values[value["k"]] = value["v"]
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: get, labels: {kaspr.io/app: read}}
spec:
  request: {method: GET, path: "/get/{key}"}
  response:
    contentType: application/json
    statusCodeSelector: {onSuccess: {python: "def s(v): return 404 if v is None else 200"}}
  processors:
    pipeline: [get]
    operations:
      - name: get
        tables: [{name: values, paramName: values}]
        map: {python: "def get(request, values, key): return values.get(key)"}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: count, labels: {kaspr.io/app: read}}
spec:
  request: {method: GET, path: /count}
  response: {contentType: application/json}
  processors:
    pipeline: [count]
    operations:
      - name: count
        tables: [{name: values, paramName: values}]
        map: {python: "def count(request, values): return len(values)"}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: put, labels: {kaspr.io/app: read}}
spec:
  request: {method: PUT, path: "/get/{key}"}
  response: {contentType: application/json}
  processors:
    pipeline: [put]
    operations:
      - name: put
        tables: [{name: values, paramName: values}]
        map:
          python: |
            async def put(request, values, key):
                values[key] = await request.json()
`

// readers are the processes of an app whose views read one table.
type readers struct {
	*kafka
	manifest  string
	dirs      []string
	ports     []string
	processes []*process
	client    *http.Client
}

func newReaders(t *testing.T, n int, topic string, partitions int32) *readers {
	k := newKafka(t, realkafka.Shared(t))
	k.topic(topic, partitions)
	r := &readers{kafka: k, manifest: strings.ReplaceAll(strings.ReplaceAll(readApp, "TOPIC", topic), "app: read", "app: "+topic), client: &http.Client{
		Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32},
	}}
	for i := range n {
		r.dirs, r.ports, r.processes = append(r.dirs, t.TempDir()), append(r.ports, freePort(t)), append(r.processes, nil)
		r.start(i)
	}
	for i := range n {
		r.ready(i)
	}
	return r
}

func (r *readers) start(i int) {
	r.processes[i] = r.engine(r.manifest, map[string]string{"dataDir": r.dirs[i], "webPort": r.ports[i], "webHost": "127.0.0.1", "transactionTimeout": "10s"})
}

func (r *readers) ready(i int) {
	r.t.Helper()
	for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(50 * time.Millisecond) {
		if code, _ := r.ask(i, "GET", "/readyz", ""); code == 200 {
			return
		}
	}
	r.t.Fatalf("process %d is not ready", i)
}

// ask is the answer of process i; status 0: there is none.
func (r *readers) ask(i int, method, path, body string) (int, string) {
	req, err := http.NewRequestWithContext(context.Background(), method, "http://127.0.0.1:"+r.ports[i]+path, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	resp, err := r.client.Do(req)
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

func (r *readers) write(topic string, n, version int) {
	for i := range n {
		key := fmt.Sprintf("user-%d", i)
		value, err := json.Marshal(map[string]any{"k": key, "v": i*10 + version})
		if err != nil {
			r.t.Fatal(err)
		}
		r.cl.Produce(r.t.Context(), &kgo.Record{Topic: topic, Key: []byte(key), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				r.t.Error(err)
			}
		})
	}
	if err := r.cl.Flush(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// Whichever process is asked, and whatever restarts meanwhile: a read is right, or an error. Never wrong, never empty.
func TestReadsDuringRollingRestart(t *testing.T) {
	keys := amount(t, "KASPR_READ_KEYS", 100_000)
	r := newReaders(t, 3, "rolling", 6)
	r.write("rolling", keys, 1)
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		code, text := r.ask(0, "GET", "/count", "")
		if code == 200 && text == fmt.Sprint(keys) {
			break
		}
		if time.Since(began) > 3*time.Minute {
			t.Fatalf("the table is not filled: %d %s", code, text)
		}
	}
	var right, errs, wrong atomic.Int64
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 6 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				i := rand.IntN(keys)
				process := rand.IntN(3)
				switch code, text := r.ask(process, "GET", fmt.Sprintf("/get/user-%d", i), ""); {
				case code == 200 && text == fmt.Sprint(i*10+1):
					right.Add(1)
				case code == 0 || code == 503:
					errs.Add(1)
					time.Sleep(10 * time.Millisecond)
				default:
					if wrong.Add(1) <= 10 {
						t.Errorf("user-%d of process %d: %d %s", i, process, code, text)
					}
				}
			}
		})
	}
	time.Sleep(2 * time.Second)
	quiet := errs.Load()
	if quiet > 0 {
		t.Errorf("%d errors while nothing restarted", quiet)
	}
	for i := range r.processes {
		if code := r.processes[i].stop(); code != 0 {
			t.Errorf("process %d ended with %d", i, code)
		}
		r.start(i)
		r.ready(i)
		time.Sleep(time.Second)
	}
	_ = r.processes[1].Cmd.Process.Kill()
	<-r.processes[1].Done
	time.Sleep(2 * time.Second)
	r.start(1)
	r.ready(1)
	time.Sleep(2 * time.Second)
	close(stop)
	asking.Wait()
	t.Logf("%d reads were right, %d were errors, %d wrong", right.Load(), errs.Load(), wrong.Load())
	if right.Load() < 1000 {
		t.Errorf("only %d reads were right", right.Load())
	}
	for i := range r.processes {
		if code, text := r.ask(i, "GET", "/count", ""); code != 200 || text != fmt.Sprint(keys) {
			t.Errorf("process %d counts %d %s", i, code, text)
		}
	}
}

// A process that was stopped so long that the group gave its partitions away must not answer with what it had.
func TestZombieReads(t *testing.T) {
	const keys = 200
	r := newReaders(t, 2, "zombie-reads", 4)
	r.write("zombie-reads", keys, 1)
	is := func(process, version int) func() bool {
		return func() bool {
			for _, i := range []int{0, keys / 2, keys - 1} {
				if code, text := r.ask(process, "GET", fmt.Sprintf("/get/user-%d", i), ""); code != 200 || text != fmt.Sprint(i*10+version) {
					return false
				}
			}
			return true
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for began := time.Now(); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Since(began) > 90*time.Second {
				t.Fatal("no " + what)
			}
		}
	}
	until("first values", is(0, 1))
	if err := r.processes[0].Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until("heir", is(1, 1)) // brokerSessionTimeout is 6 s
	r.write("zombie-reads", keys, 2)
	until("second values", is(1, 2))
	time.Sleep(time.Second)
	if err := r.processes[0].Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < 3*time.Second; {
		i := rand.IntN(keys)
		if code, text := r.ask(0, "GET", fmt.Sprintf("/get/user-%d", i), ""); code == 200 && text != fmt.Sprint(i*10+2) {
			t.Fatalf("the zombie answers %s for user-%d, %v after it woke", text, i, time.Since(began))
		}
	}
	until("the zombie back in the group", is(0, 2))
}

// A write through any process must reach the partition that has the key, once.
func TestWritesThroughAnyProcess(t *testing.T) {
	const keys = 60
	r := newReaders(t, 3, "writes-any", 6)
	r.write("writes-any", keys, 1)
	for i := range keys {
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			if code, _ := r.ask(0, "GET", fmt.Sprintf("/get/user-%d", i), ""); code == 200 {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatal("the table is not filled")
			}
		}
	}
	for i := range keys {
		if code, text := r.ask(i%3, "PUT", fmt.Sprintf("/get/user-%d", i), fmt.Sprint(i*10+5)); code != 200 {
			t.Fatalf("write user-%d: %d %s", i, code, text)
		}
	}
	for i := range keys {
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			code, text := r.ask((i+1)%3, "GET", fmt.Sprintf("/get/user-%d", i), "")
			if code == 200 && text == fmt.Sprint(i*10+5) {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("user-%d: %d %s", i, code, text)
			}
		}
	}
	if code, text := r.ask(2, "GET", "/count", ""); code != 200 || text != fmt.Sprint(keys) {
		t.Errorf("%d %s keys, want %d: a write made a second copy", code, text, keys)
	}
}
