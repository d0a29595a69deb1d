//go:build integration

package cli

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

const passing = `
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: writer, labels: {kaspr.io/app: passing}}
spec:
  input: {topic: {name: pass-in}}
  processors: {pipeline: [n], operations: [{name: n, map: {python: "def n(v): return (v['n'],)"}}]}
  output: {channels: [{name: numbers}]}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: reader, labels: {kaspr.io/app: passing}}
spec:
  input: {channel: {name: numbers}}
  processors: {pipeline: [n], operations: [{name: n, map: {python: "def n(v): return {'n': v[0]}"}}]}
  output: {topics: [{name: pass-out, keySelector: {python: "def key(v): return context['event'].key"}}]}
`

// What is on its way through a channel must neither be lost nor come twice when a process is killed, in the order of its key; and
// what has arrived must not stay in Kafka for ever.
func TestChannelSurvivesKill(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("pass-in", 4)
	k.topic("pass-out", 4)
	const n = 40_000
	a := k.engine(passing, nil)
	b := k.engine(passing, nil)
	a.waitLog("partitions assigned")
	b.waitLog("partitions assigned")
	k.produce("pass-in", 0, n/2)
	if err := a.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	k.produce("pass-in", n/2, n)
	got := k.outputs(2*time.Minute, count(n), "pass-out")
	seen, twice := numbers(t, got)
	if len(seen) != n || twice > 0 {
		t.Errorf("%d of %d records came out, %d of them twice", len(seen), n, twice)
	}
	inKeyOrder(t, got)
	var left []*kgo.Record
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Second) {
		if left = k.broker.Records(t, "passing-app-channel-numbers"); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("%d records of the channel are still there", len(left))
	}
	if code := b.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	k.committed("passing-app", "passing-app-channel-numbers")
}
