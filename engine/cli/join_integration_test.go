//go:build integration

package cli

import (
	"fmt"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// putInto is an agent that writes a row of a table for each number it reads, under the number.
func putInto(table, topic string) string {
	return fmt.Sprintf(`
---
apiVersion: kaspr.io/v1alpha1
kind: KasprTable
metadata: {name: %[1]s, labels: {kaspr.io/app: joining}}
spec: {name: %[1]s}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: put-%[1]s, labels: {kaspr.io/app: joining}}
spec:
  input: {topic: {name: %[2]s}}
  processors:
    pipeline: [put]
    operations:
      - name: put
        tables: [{name: %[1]s, paramName: table}]
        map:
          python: |
            def put(v, table):
                table[v["n"]] = {"n": v["n"], "of": v["n"] %% 500}
`, table, topic)
}

// joined is a join and an agent that sends the number of each result to a topic.
func joined(name, topic string) string {
	return fmt.Sprintf(`
---
apiVersion: kaspr.io/v1alpha1
kind: KasprJoin
metadata: {name: %[1]s, labels: {kaspr.io/app: joining}}
spec: {leftTable: lefts, rightTable: rights, extractor: {python: "def of(row): return row['of']"}}
---
apiVersion: kaspr.io/v1alpha1
kind: KasprAgent
metadata: {name: read-%[1]s, labels: {kaspr.io/app: joining}}
spec:
  input: {channel: {name: %[1]s-channel}}
  processors:
    pipeline: [n]
    operations:
      - name: n
        map:
          python: |
            def n(pair):
                assert pair.left["of"] == pair.right["n"] and pair.left["n"] == context["event"].key
                return {"n": pair.left["n"]}
  output: {topics: [{name: %[2]s}]}
`, name, topic)
}

// A result of a join must neither be lost nor come twice when a process is killed in the midst of it, wherever its rows are; and a
// join that comes later must find the rows that are there.
func TestJoinSurvivesKill(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("join-lefts", 4)
	k.topic("join-rights", 3)
	k.topic("join-out", 1)
	k.topic("join-later", 1)
	const n = 30_000
	app := putInto("lefts", "join-lefts") + putInto("rights", "join-rights") + joined("first", "join-out")
	a := k.engine(app, nil)
	b := k.engine(app, nil)
	a.waitLog("partitions assigned")
	b.waitLog("partitions assigned")
	k.produce("join-rights", 0, 250)
	k.produce("join-lefts", 0, n/2)
	if err := a.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	k.produce("join-rights", 250, 500)
	k.produce("join-lefts", n/2, n)
	once := func(topic string) {
		t.Helper()
		seen, twice := numbers(t, k.outputs(2*time.Minute, count(n), topic))
		if len(seen) != n || twice > 0 {
			t.Errorf("%s: %d of %d results came, %d of them twice", topic, len(seen), n, twice)
		}
	}
	once("join-out")
	if code := b.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	c := k.engine(app+joined("later", "join-later"), nil)
	once("join-later")
	if code := c.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	once("join-out") // nothing came anew
}
