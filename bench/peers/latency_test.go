//go:build peers && integration

package peers

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/bench/workload"
)

var (
	pace    = flag.Int("pace", 20_000, "records a second of the latency test")
	seconds = flag.Int("seconds", 15, "how long the latency test sends")
)

// latency is what one system did at the pace.
type latency struct {
	System  string  `json:"system"`
	Pace    int     `json:"recordsPerSecond"`
	Outputs int     `json:"outputs"`
	P50     float64 `json:"p50Millis"`
	P90     float64 `json:"p90Millis"`
	P99     float64 `json:"p99Millis"`
	P999    float64 `json:"p999Millis"`
	Max     float64 `json:"maxMillis"`
	Cores   float64 `json:"cores"`       // processors the system used
	Broker  float64 `json:"brokerCores"` // and the broker meanwhile
	Load    float64 `json:"loadAverage"`
}

// How long it takes from the moment a record is handed to the producer until a reader of committed records has what came of it, at a
// steady pace: W1.
func TestLatency(t *testing.T) {
	env := start(t)
	env.warm(t)
	rep := newReport(t)
	for i := range *reps {
		for _, s := range chosen() {
			if !s.latency {
				continue
			}
			l, err := env.latency(t, s, i)
			if err != nil {
				t.Errorf("%s: %v", s.name, err)
				continue
			}
			t.Logf("%+v", l)
			rep.Latencies = append(rep.Latencies, l)
			rep.write(t)
		}
	}
	fmt.Println(latencyTable(rep.Latencies))
}

// warm has the broker compile what it runs all the time: unmeasured runs on a backlog, in transactions and without.
func (e *environment) warm(t *testing.T) {
	input, err := e.fill(t.Context(), *records)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		for _, s := range systems[:2] {
			if res := e.run(t, s, "w1", input, *records, 100+i); res.Problem != "" {
				t.Fatal(res.Problem)
			}
		}
	}
}

// latencyTable is medians, and the spread of what the goals are about, as Markdown.
func latencyTable(all []latency) string {
	by := map[string][]latency{}
	var names []string
	for _, l := range all {
		if by[l.System] == nil {
			names = append(names, l.System)
		}
		by[l.System] = append(by[l.System], l)
	}
	out := "| System | Runs | p50 ms | p90 ms | p99 ms | Spread | p99.9 ms | Max ms | Cores | Broker's |\n|---|--:|--:|--:|--:|---|--:|--:|--:|--:|\n"
	for _, name := range names {
		rs := by[name]
		median := func(of func(latency) float64) float64 { _, m, _ := spread(rs, of); return m }
		low, p99, high := spread(rs, func(l latency) float64 { return l.P99 })
		out += fmt.Sprintf("| %s | %d | %.1f | %.1f | %.1f | %.1f–%.1f | %.1f | %.1f | %.2f | %.2f |\n", name, len(rs),
			median(func(l latency) float64 { return l.P50 }), median(func(l latency) float64 { return l.P90 }), p99, low, high,
			median(func(l latency) float64 { return l.P999 }), median(func(l latency) float64 { return l.Max }),
			median(func(l latency) float64 { return l.Cores }), median(func(l latency) float64 { return l.Broker }))
	}
	return out
}

func (e *environment) latency(t *testing.T, s system, count int) (l latency, err error) {
	ctx := t.Context()
	l = latency{System: s.name, Pace: *pace}
	id := fmt.Sprintf("latency-%s-%d", notInNames.ReplaceAllString(s.name, "-"), count)
	r := runOf{env: e, id: id, input: "in-" + id, output: "out-" + id, workload: "w1"}
	for _, topic := range []string{r.input, r.output} {
		if err := e.create(ctx, topic, inputPartitions, nil); err != nil {
			return l, err
		}
	}
	p, err := s.start(ctx, &r)
	if err != nil {
		return l, err
	}
	defer p.stop()
	reader, err := kgo.NewClient(kgo.SeedBrokers(e.broker.Addr()), kgo.ConsumeTopics(r.output), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return l, err
	}
	defer reader.Close()
	// The load's own wait for fuller batches is part of every figure; the client's default would be 10 ms.
	load, err := kgo.NewClient(kgo.SeedBrokers(e.broker.Addr()), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(2*time.Millisecond))
	if err != nil {
		return l, err
	}
	defer load.Close()
	var events []workload.Event
	warm := 5 * *pace // its first seconds are not counted: compilers warm up, groups settle
	workload.Events(warm+*pace**seconds, func(ev workload.Event) { events = append(events, ev) })
	sent := make([]time.Time, len(events))
	if err := e.awake(ctx, reader, r.input, events[0]); err != nil {
		return l, err
	}
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection here would take both processors for a while
	go func() {
		began := time.Now()
		for i := 1; i < len(events); i++ {
			if i%20 == 0 { // a millisecond's worth at the usual pace
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(*pace))))
			}
			sent[i] = time.Now()
			load.Produce(ctx, &kgo.Record{Topic: r.input, Key: []byte(events[i].User), Value: events[i].Value}, nil)
		}
	}()
	from := e.sample(p)
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
			return l, fmt.Errorf("%d of %d outputs in time", len(took), want)
		}
		now := time.Now()
		fetches.EachRecord(func(rec *kgo.Record) {
			if seq := sequence(rec.Value); seq >= warm {
				took = append(took, now.Sub(sent[seq]))
			}
		})
	}
	to := e.sample(p)
	elapsed := to.at.Sub(from.at).Seconds()
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	l.Outputs, l.P50, l.P90, l.P99, l.P999, l.Max = len(took), at(0.5), at(0.9), at(0.99), at(0.999), at(1)
	l.Cores, l.Broker, l.Load = (to.cpu-from.cpu)/elapsed, (to.broker-from.broker)/elapsed, loadAverage()
	return l, nil
}

// sequence is the number of an event, read in less time than JSON takes: the load shares the processors with what it measures.
func sequence(value []byte) int {
	_, rest, _ := bytes.Cut(value, []byte(`"seq":`))
	n := 0
	for i, c := range bytes.TrimLeft(rest, " ") {
		if c < '0' || c > '9' {
			if i == 0 {
				return -1
			}
			break
		}
		n = 10*n + int(c-'0')
	}
	return n
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
