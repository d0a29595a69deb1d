//go:build peers && integration

package peers

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/bench/workload"
)

var (
	pace    = flag.Int("pace", 20_000, "records a second of the latency test")
	seconds = flag.Int("seconds", 15, "how long the latency test sends")
)

// How long it takes from the moment a record is handed to the producer until a reader of committed records has what came of it, at a
// steady pace: W1, the systems that have a guarantee worth comparing.
func TestLatency(t *testing.T) {
	env := start(t)
	var rows []string
	for i := range *reps {
		for _, s := range systems {
			if !slices.Contains([]string{"kaspr", "kaspr-at-least-once", "kafka-streams", "kafka-streams-exactly-once"}, s.name) {
				continue
			}
			took, err := env.latency(t, s, i)
			if err != nil {
				t.Errorf("%s: %v", s.name, err)
				continue
			}
			slices.Sort(took)
			at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Microseconds()) / 1000 }
			rows = append(rows, fmt.Sprintf("%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t", s.name, len(took), at(0.5), at(0.9), at(0.99), at(1)))
			t.Log(rows[len(rows)-1])
		}
	}
	slices.Sort(rows)
	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "system\toutputs\tp50 ms\tp90 ms\tp99 ms\tmax ms\t")
	for _, r := range rows {
		fmt.Fprintln(w, r)
	}
	w.Flush()
	fmt.Println(out.String())
}

func (e *environment) latency(t *testing.T, s system, count int) ([]time.Duration, error) {
	ctx := t.Context()
	id := fmt.Sprintf("latency-%s-%d", s.name, count)
	r := runOf{env: e, id: id, input: "in-" + id, output: "out-" + id, workload: "w1"}
	if _, err := e.admin.CreateTopics(ctx, inputPartitions, 1, nil, r.input, r.output); err != nil {
		return nil, err
	}
	p, err := s.start(ctx, &r)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	reader, err := kgo.NewClient(kgo.SeedBrokers(e.broker.Addr()), kgo.ConsumeTopics(r.output), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	var events []workload.Event
	warm := 3 * *pace // its first seconds are not counted: compilers warm up, groups settle
	workload.Events(warm+*pace**seconds, func(ev workload.Event) { events = append(events, ev) })
	sent := make([]time.Time, len(events))
	if err := e.awake(ctx, reader, r.input, events[0]); err != nil {
		return nil, err
	}
	go func() {
		began := time.Now()
		for i := 1; i < len(events); i++ {
			if i%20 == 0 { // a millisecond's worth at the usual pace
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(*pace))))
			}
			sent[i] = time.Now()
			e.client.Produce(ctx, &kgo.Record{Topic: r.input, Key: []byte(events[i].User), Value: events[i].Value}, nil)
		}
	}()
	want := 0
	for _, ev := range events[warm:] {
		if !ev.Heartbeat {
			want++
		}
	}
	took := make([]time.Duration, 0, want)
	limit, cancel := context.WithTimeout(ctx, time.Duration(*seconds+60)*time.Second)
	defer cancel()
	for len(took) < want {
		fetches := reader.PollFetches(limit)
		if limit.Err() != nil {
			return nil, fmt.Errorf("%d of %d outputs in time", len(took), want)
		}
		now := time.Now()
		fetches.EachRecord(func(rec *kgo.Record) {
			var v struct {
				Seq int `json:"seq"`
			}
			if json.Unmarshal(rec.Value, &v) == nil && v.Seq >= warm {
				took = append(took, now.Sub(sent[v.Seq]))
			}
		})
	}
	return took, nil
}

// awake sends one record again and again until the system has answered.
func (e *environment) awake(ctx context.Context, reader *kgo.Client, input string, ev workload.Event) error {
	for began := time.Now(); time.Since(began) < time.Minute; {
		e.client.Produce(ctx, &kgo.Record{Topic: input, Key: []byte(ev.User), Value: ev.Value}, nil)
		poll, cancel := context.WithTimeout(ctx, time.Second)
		n := reader.PollFetches(poll).NumRecords()
		cancel()
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("no output within a minute")
}
