//go:build integration

package cli

import (
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// countsApp counts records of two topics: one that is there, and one that is made later.
const countsApp = `
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: counts, labels: {kaspr.io/app: counts}}
spec: {name: counts, defaultSelector: {python: "def zero(): return int"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: count, labels: {kaspr.io/app: counts}}
spec:
  input: {topic: {name: "counts-in,counts-late"}}
  processors:
    pipeline: [count]
    operations:
      - name: count
        tables: [{name: counts, paramName: counts}]
        map: {python: "def count(value, counts): counts['n'] += 1; return value"}
  output: {topics: [{name: counts-out}]}
`

// Records of a partition that a table does not have would wait for ever for its restore. Partitions that come after the
// start end the app with the reason, as those that are there at the start do.
func TestPartitionsAfterTheStart(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(k *kafka) error
	}{
		{"a topic is made", `its input counts-late has 3 partitions, table "counts" has 2`, func(k *kafka) error {
			_, err := k.adm.CreateTopic(k.t.Context(), 3, 1, nil, "counts-late")
			return err
		}},
		{"a topic grows", `its input counts-in has 4 partitions, table "counts" has 2`, func(k *kafka) error {
			_, err := k.adm.UpdatePartitions(k.t.Context(), 4, "counts-in")
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKafka(t, realkafka.New(t, realkafka.Options{}))
			k.topic("counts-in", 2)
			k.topic("counts-out", 1)
			p := k.engine(countsApp, nil)
			k.produce("counts-in", 0, 10)
			if got := k.outputs(time.Minute, count(10), "counts-out"); len(got) != 10 {
				t.Fatalf("%d of 10 outputs", len(got))
			}
			if err := c.change(k); err != nil {
				t.Fatal(err)
			}
			select {
			case <-p.Done:
			case <-time.After(time.Minute):
				t.Fatal("the engine went on")
			}
			if code := p.Cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(p.log.String(), "M050") || !strings.Contains(p.log.String(), c.want) {
				t.Errorf("exit code %d, and no %q in the log:\n%s", code, c.want, p.log)
			}
		})
	}
}
