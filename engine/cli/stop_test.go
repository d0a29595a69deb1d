package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"kaspr.io/kaspr/engine/enginetest"
)

// Who stops a process does so most of all when Kafka is gone, and must not have to kill it: one that has nothing to commit ends within seconds, and
// one that has within shutdownTimeout and those, whatever it was doing.
func TestStopWithoutKafka(t *testing.T) {
	const beats = `---
apiVersion: kaspr.io/v1alpha1
kind: KasprTask
metadata: {name: beat, labels: {kaspr.io/app: one}}
spec:
  schedule: {interval: 20ms}
  processors: {pipeline: [beat], operations: [{name: beat, map: {python: "def beat(): return 1"}}]}
  output: {topics: [{name: one-beats}]}
`
	const writes = `---
apiVersion: kaspr.io/v1alpha1
kind: KasprWebView
metadata: {name: write, labels: {kaspr.io/app: one}}
spec:
  request: {method: POST, path: /write}
  processors: {pipeline: [w], operations: [{name: w, topicSend: {name: one-written}}]}
`
	for _, c := range []struct {
		name, more, shutdownTimeout string
		hangs                       bool // it takes connections and answers nothing
		within                      time.Duration
	}{
		{"idle", "", "10m", false, 10 * time.Second},
		{"busy", beats, "2s", false, 10 * time.Second},
		{"asked", writes, "2s", false, 10 * time.Second},
		{"idle, hangs", "", "10m", true, 10 * time.Second},
		{"busy, hangs", beats, "2s", true, 10 * time.Second},
		{"asked, hangs", writes, "2s", true, 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(1), kfake.AllowAutoTopicCreation(),
				kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}))
			if err != nil {
				t.Fatal(err)
			}
			var gone atomic.Bool
			release := make(chan struct{})
			kafka.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
				kafka.KeepControl()
				if gone.Load() {
					<-release
				}
				return nil, nil, false
			})
			defer kafka.Close()
			defer close(release)
			dir := t.TempDir()
			port := freePort(t)
			settings := filepath.Join(dir, "settings")
			for file, text := range map[string]string{
				"app.yaml": copying("one", "topicPartitions: 1, topicReplicationFactor: 1, webPort: "+port) + c.more,
				"settings": fmt.Sprintf("definitionsDir: %s\ndataDir: %s\nadminListen: 127.0.0.1:0\nshutdownTimeout: %s\nkafkaBootstrapServers: %s\n",
					dir, dir, c.shutdownTimeout, strings.Join(kafka.ListenAddrs(), ",")),
			} {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var errs enginetest.Buffer
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan int, 1)
			go func() {
				ended <- Main(ctx, "test", []string{"run", "--config", settings}, Streams{Out: io.Discard, Err: &errs})
			}()
			base := "http://127.0.0.1:" + port
			waitReady(t, base, &errs)
			time.Sleep(time.Second) // what was assigned is committed, and tasks run
			if c.hangs {
				gone.Store(true)
			} else {
				kafka.Close()
			}
			if c.more == writes {
				for range 3 {
					go func() {
						req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/write", nil)
						if err != nil {
							t.Error(err)
							return
						}
						if resp, err := http.DefaultClient.Do(req); err == nil {
							resp.Body.Close()
						}
					}()
				}
			}
			time.Sleep(time.Second)
			cancel()
			began := time.Now()
			select {
			case <-ended:
				t.Logf("stopped after %v", time.Since(began))
			case <-time.After(40 * time.Second):
				t.Fatalf("does not stop\n%s", &errs)
			}
			if took := time.Since(began); took > c.within {
				t.Errorf("the stop took %v\n%s", took, &errs)
			}
		})
	}
}
