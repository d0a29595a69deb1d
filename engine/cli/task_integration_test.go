//go:build integration

package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// leaderApp sends, each second, the second and who sent it, to a topic and through a channel.
const leaderApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTask
metadata: {name: beat, labels: {kaspr.io/app: leader}}
spec:
  onLeader: true
  schedule: {cron: "* * * * * *"}
  processors:
    pipeline: [beat, send]
    init: {python: "import time, uuid\nme = []"}
    operations:
      - name: beat
        map:
          python: |
            def beat():
                if not me:
                    me.append(uuid.uuid4().hex)
                return {"second": int(time.time()), "by": me[0]}
      - name: send
        topicSend: {name: leader-out, ack: true, passThrough: true}
  output: {channels: [{name: beats}]}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: hears, labels: {kaspr.io/app: leader}}
spec:
  input: {channel: {name: beats}}
  processors: {pipeline: [same], operations: [{name: same, map: {python: "def same(v): return v"}}]}
  output: {topics: [{name: leader-heard}]}
`

// When the leader is killed another process must go on, with no second twice, nothing counted that was not sent, and what
// was sent through a channel heard once.
func TestLeaderIsKilled(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("leader-out", 1)
	k.topic("leader-heard", 1)
	var processes []*process
	for range 3 {
		processes = append(processes, k.engine(leaderApp, map[string]string{"transactionTimeout": "10s"}))
	}
	by := func(rs []*kgo.Record) (names []string) {
		for _, r := range rs {
			var v struct{ By string }
			if err := json.Unmarshal(r.Value, &v); err != nil {
				t.Fatal(err)
			}
			if len(names) == 0 || names[len(names)-1] != v.By {
				names = append(names, v.By)
			}
		}
		return names
	}
	k.outputs(time.Minute, count(4), "leader-out")
	killed := false
	for i, p := range processes {
		if log := p.log.String(); strings.LastIndex(log, "partitions assigned") > strings.LastIndex(log, "partitions revoked") &&
			strings.Contains(log[strings.LastIndex(log, "partitions assigned"):], "leader-app-assignor-leader/0") {
			_ = p.Cmd.Process.Kill()
			<-p.Done
			processes = append(processes[:i:i], processes[i+1:]...)
			killed = true
			break
		}
	}
	if !killed {
		t.Fatal("nobody leads")
	}
	got := k.outputs(time.Minute, func(rs []*kgo.Record) bool { return len(by(rs)) >= 2 && len(rs) >= 10 }, "leader-out")
	if n := len(by(got)); n < 2 {
		t.Fatalf("%d runs by %d leaders", len(got), n)
	}
	heard := k.outputs(time.Minute, count(len(got)), "leader-heard")
	for _, p := range processes {
		if code := p.stop(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
	seconds := func(rs []*kgo.Record) map[int64]bool {
		seen := map[int64]bool{}
		for _, r := range rs {
			var v struct{ Second int64 }
			if err := json.Unmarshal(r.Value, &v); err != nil {
				t.Fatal(err)
			}
			if seen[v.Second] {
				t.Errorf("second %d came twice to %s", v.Second, r.Topic)
			}
			seen[v.Second] = true
		}
		return seen
	}
	inChannel := seconds(heard)
	for second := range seconds(got) {
		if !inChannel[second] {
			t.Errorf("second %d was lost in the channel", second)
		}
	}
	got = k.broker.Records(t, "leader-out")
	seconds(got)
	states := k.broker.Records(t, "leader-app-_tasks-changelog")
	var last struct{ Runs, Failures int }
	if err := json.Unmarshal(states[len(states)-1].Value, &last); err != nil || last.Runs != len(got) || last.Failures != 0 {
		t.Errorf("%d runs sent something, the state says %+v, %v", len(got), last, err)
	}
}
