//go:build integration

package cli

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/dev"
	"kaspr.io/kaspr/engine/enginetest/realkafka"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
)

// topics creates topics, by their numbers of partitions, and waits until the broker takes records for them.
func (k *kafka) topics(partitions map[string]int32) {
	k.t.Helper()
	forever := "-1" // the examples' records have timestamps of their own, which the broker would find too old to keep
	for topic, n := range partitions {
		if _, err := k.adm.CreateTopic(k.t.Context(), n, 1, map[string]*string{"retention.ms": &forever}, topic); err != nil {
			k.t.Fatalf("create topic %s (no two examples may use the same): %v", topic, err)
		}
	}
	names := slices.Collect(maps.Keys(partitions))
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		there, err := k.adm.ListTopics(k.t.Context(), names...)
		if err == nil {
			err = there.Error()
		}
		if err == nil {
			return
		}
		if time.Since(began) > 30*time.Second {
			k.t.Fatal(err)
		}
	}
}

// awaitCommitted waits until the group has committed the ends of the topics.
func (k *kafka) awaitCommitted(group string, topics ...string) {
	k.t.Helper()
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(50 * time.Millisecond) {
		lags, err := k.adm.Lag(k.t.Context(), group)
		lag := lags[group]
		if err != nil || lag.Error() != nil {
			continue // the group is not there yet
		}
		var behind int64
		for _, topic := range topics {
			if len(lag.Lag[topic]) == 0 {
				behind++
			}
			for _, l := range lag.Lag[topic] {
				behind += max(l.Lag, -l.Lag) // -1: not known yet
			}
		}
		if behind == 0 {
			return
		}
	}
	k.t.Fatalf("group %s has not committed %v after a minute", group, topics)
}

// Each example must give on a real Kafka, run as in production, what it gives on the embedded broker.
func TestExamplesOnKafka(t *testing.T) {
	t.Chdir(root)
	for _, e := range exampleApps(t) {
		t.Run(e.name, func(t *testing.T) {
			k := newKafka(t, realkafka.Shared(t))
			dir, err := filepath.Abs("examples/" + e.name)
			if err != nil {
				t.Fatal(err)
			}
			p := read([]string{dir}, config.Read(config.Sources{Offline: true}), "", dev.Adapt)
			if p.problems.Fatal() {
				t.Fatal(p.problems)
			}
			app := p.apps[0]
			topics := map[string]int32{}
			for topic := range e.want {
				topics[topic] = int32(app.cfg.Topics.Partitions)
			}
			for topic := range e.inputs {
				topics[topic] = int32(app.cfg.Topics.Partitions)
			}
			for _, agent := range app.plan.Agents {
				for _, topic := range agent.OutputTopics {
					topics[topic] = int32(app.cfg.Topics.Partitions)
				}
			}
			for _, topic := range app.plan.Topics {
				if _, ok := topics[topic.Name]; ok {
					topics[topic.Name] = topic.Partitions
				}
			}
			k.topics(topics)
			var inputs []dev.Input
			for topic, file := range e.inputs {
				inputs = append(inputs, dev.Input{Topic: topic, File: file})
			}
			if err := dev.Feed([]string{k.broker.Addr()}, []*plan.Plan{app.plan}, inputs, nil); err != nil {
				t.Fatal(err)
			}
			fed, err := k.adm.ListEndOffsets(t.Context(), slices.Collect(maps.Keys(topics))...)
			if err != nil {
				t.Fatal(err)
			}
			port := freePort(t)
			engine := k.engine("", map[string]string{
				"definitionsDir": dir, "topicPartitions": strconv.Itoa(p.cfg.Topics.Partitions), "webPort": port,
			})
			var stdout []string
			if e.asks != "" {
				k.awaitCommitted(app.plan.App.ID, slices.Collect(maps.Keys(e.inputs))...) // views read what is committed
				err := dev.Ask(t.Context(), "http://127.0.0.1:"+port, e.asks, func(response any) error {
					line, err := json.Marshal(response)
					stdout = append(stdout, string(line))
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			outputs := slices.Collect(maps.Keys(topics))
			records := func(rs []*kgo.Record) (lines []string) {
				for _, r := range rs {
					if end, ok := fed.Lookup(r.Topic, r.Partition); ok && r.Offset < end.Offset {
						continue // the topic is an input as well, and this was fed
					}
					d := broker.Delivered{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
					for _, h := range r.Headers {
						d.Headers = append(d.Headers, record.Header{Key: h.Key, Value: h.Value})
					}
					lines = append(lines, strings.TrimSuffix(string(dev.AppendLine(nil, d)), "\n"))
				}
				return lines
			}
			k.outputs(time.Minute, func(rs []*kgo.Record) bool { return len(e.problems(t, records(rs))) == 0 }, outputs...)
			if code := engine.stop(); code != 0 {
				t.Errorf("exit code %d after SIGTERM", code)
			}
			// Whether more came than is expected shows only now.
			before := -1
			all := k.outputs(time.Minute, func(rs []*kgo.Record) bool {
				still := len(rs) == before && len(e.problems(t, records(rs))) == 0
				before = len(rs)
				return still
			}, outputs...)
			stdout = append(stdout, records(all)...)
			e.check(t, stdout)
			for topic := range e.inputs {
				k.committed(app.plan.App.ID, topic)
			}
		})
	}
}
