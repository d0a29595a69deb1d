//go:build peers && integration

package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/bench/workload"
)

// grown is one run of Kaspr where one thing is larger than in the run before.
type grown struct {
	What     string  `json:"what"` // partitions, agents, bytes, keys, processes
	Of       int     `json:"of"`
	Workload string  `json:"workload"`
	Records  int     `json:"records"`
	Rate     float64 `json:"recordsPerSecond"` // of all agents together
	CPU      float64 `json:"cpuSecondsPerMillion"`
	Broker   float64 `json:"brokerCPUSecondsPerMillion"`
	MB       float64 `json:"inputMBPerSecond"`
	Memory   float64 `json:"residentMiB"`          // highest, of all processes together
	Idle     float64 `json:"residentMiBAtStart"`   // before the first output
	Start    float64 `json:"secondsToFirstOutput"` // with the tables' restore
	Load     float64 `json:"loadAverage"`
}

// growth is what one run is made of.
type growth struct {
	what       string
	of         int
	workload   string
	records    int
	partitions int
	agents     int // each reads all records
	shape      workload.Shape
	filled     bool // the table has an entry of each user before
	processes  int
}

// growths are all runs: enough records for some seconds each, few enough for all to be done in 25 minutes, filling ten million keys included.
func growths() (all []growth) {
	for _, w := range []string{"w1", "w2"} {
		for _, n := range []int{1, 4, 16, 64} {
			all = append(all, growth{what: "partitions", of: n, workload: w, records: 300_000, partitions: n, agents: 1, processes: 1})
		}
		for _, n := range []int{100, 1_000, 10_000, 100_000} {
			all = append(all, growth{what: "bytes", of: n, workload: w, records: min(300_000, 200_000_000/n), partitions: inputPartitions, agents: 1, shape: workload.Shape{Bytes: n}, processes: 1})
		}
		for _, n := range []int{1, 2, 4, 8} {
			all = append(all, growth{what: "processes", of: n, workload: w, records: 300_000, partitions: 16, agents: 1, processes: n})
		}
	}
	for _, n := range []int{1, 10, 50} {
		all = append(all, growth{what: "agents", of: n, workload: "w1", records: max(20_000, 300_000/n), partitions: inputPartitions, agents: n, processes: 1})
	}
	for _, n := range []int{10_000, 100_000, 1_000_000, 10_000_000} {
		all = append(all, growth{what: "keys", of: n, workload: "w2", records: 400_000, partitions: inputPartitions, agents: 1, shape: workload.Shape{Users: n}, filled: true, processes: 1})
	}
	for i := range all { // -records is for a backlog; with less all runs are shorter
		all[i].records = max(1000, int(int64(all[i].records)*int64(*records)/backlog))
	}
	return all
}

// What Kaspr costs as one thing grows: partitions, agents, the size of records, keys of a table, processes. One of them:
// -run TestGrowth/keys. docs/performance.md has the table.
func TestGrowth(t *testing.T) {
	env := start(t)
	rep := newReport(t)
	for i := range *reps {
		for _, g := range growths() {
			t.Run(fmt.Sprintf("%s/%s-%d", g.what, g.workload, g.of), func(t *testing.T) {
				res, err := env.grow(t.Context(), g, i)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%.0f records/s, %.1f CPU-s/M, %.0f MiB", res.Rate, res.CPU, res.Memory)
				rep.Growth = append(rep.Growth, res)
				rep.write(t)
			})
		}
	}
	fmt.Println(growthTable(rep.Growth))
}

func growthTable(all []grown) string {
	type row struct {
		what, workload string
		of             int
	}
	by := map[row][]grown{}
	var rows []row
	for _, g := range all {
		k := row{g.What, g.Workload, g.Of}
		if by[k] == nil {
			rows = append(rows, k)
		}
		by[k] = append(by[k], g)
	}
	out := "| | | Workload | Records/s | CPU-s/M | Broker's | Input MB/s | MiB before | MiB, highest | Start s |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|\n"
	for _, k := range rows {
		median := func(of func(grown) float64) float64 { _, m, _ := spread(by[k], of); return m }
		out += fmt.Sprintf("| %s | %d | %s | %.0f | %.1f | %.1f | %.1f | %.0f | %.0f | %.1f |\n", k.what, k.of, k.workload,
			median(func(g grown) float64 { return g.Rate }), median(func(g grown) float64 { return g.CPU }), median(func(g grown) float64 { return g.Broker }),
			median(func(g grown) float64 { return g.MB }), median(func(g grown) float64 { return g.Idle }), median(func(g grown) float64 { return g.Memory }),
			median(func(g grown) float64 { return g.Start }))
	}
	return out
}

// manifest is the workload's, once for each agent.
func (g *growth) manifest() string {
	if g.workload == "w2" {
		return workload.W2
	}
	var all []string
	for i := range g.agents {
		all = append(all, strings.Replace(workload.W1, "metadata: {name: w1,", fmt.Sprintf("metadata: {name: w1-%d,", i), 1))
	}
	return strings.Join(all, "\n---\n")
}

func (e *environment) grow(ctx context.Context, g growth, count int) (res grown, err error) {
	res = grown{What: g.what, Of: g.of, Workload: g.workload, Records: g.records}
	id := fmt.Sprintf("%s-%s-%d-%d", g.what, g.workload, g.of, count)
	r := runOf{env: e, id: id, input: "in-" + id, output: "out-" + id, workload: g.workload}
	now := "LogAppendTime"
	if err := e.create(ctx, r.input, g.partitions, nil); err != nil {
		return res, err
	}
	if err := e.create(ctx, r.output, g.partitions, map[string]*string{"message.timestamp.type": &now}); err != nil {
		return res, err
	}
	if g.filled {
		if err := e.fillTable(ctx, id+"-counts-changelog", g.partitions, g.shape.Users); err != nil {
			return res, err
		}
	}
	volume, want := 0, 0
	g.shape.Events(g.records, func(ev workload.Event) {
		volume += len(ev.Value)
		if g.workload == "w2" || !ev.Heartbeat {
			want += g.agents
		}
	})
	fill := func() error {
		return e.produce(ctx, func(produce func(*kgo.Record)) {
			g.shape.Events(g.records, func(ev workload.Event) {
				produce(&kgo.Record{Topic: r.input, Key: []byte(ev.User), Value: ev.Value})
			})
		})
	}
	began := time.Now()
	s := system{name: "kaspr", command: kasprApp("exactly_once", g.manifest())}
	if g.processes == 1 {
		if err := fill(); err != nil {
			return res, err
		}
		began = time.Now()
	}
	p, err := s.start(ctx, &r)
	if err != nil {
		return res, err
	}
	defer func() { p.stop() }()
	for i := 1; i < g.processes; i++ {
		other := r
		other.name, other.group = fmt.Sprintf("%s.%d", id, i), p.group
		if _, err := s.start(ctx, &other); err != nil {
			return res, err
		}
	}
	if g.processes > 1 { // they share the partitions before there is anything to do
		if err := e.joined(ctx, id, g.processes); err != nil {
			return res, err
		}
	}
	filled := make(chan error, 1)
	go func() {
		if g.processes > 1 {
			filled <- fill()
		} else {
			filled <- nil
		}
	}()
	restoring := time.Duration(0)
	if g.filled {
		restoring = time.Duration(g.shape.Users) * 20 * time.Microsecond // several times what it takes
	}
	samples, err := e.follow(ctx, p, r.output, want, began, timeout+restoring)
	res.Load = loadAverage()
	if err = errors.Join(err, <-filled); err != nil {
		text, _ := os.ReadFile(filepath.Join(r.dir, "log"))
		return res, fmt.Errorf("%w; end of its log: %s", err, text[max(0, len(text)-800):])
	}
	got, wrong := 0, ""
	first, last, err := e.read(ctx, r.output, func(value []byte) {
		got++
		if wrong == "" && (g.workload == "w1" && !bytes.Contains(value, []byte(`"big":`)) || g.filled && bytes.Contains(value, []byte(`"count":1}`))) {
			wrong = string(value[:min(len(value), 300)])
		}
	})
	switch {
	case err != nil:
		return res, err
	case wrong != "":
		return res, errors.New("wrong output: " + wrong)
	case got != want:
		return res, fmt.Errorf("%d outputs, want %d", got, want)
	}
	window := last.Sub(first).Seconds()
	n := float64(g.records * g.agents)
	from, to := nearest(samples, first), nearest(samples, last)
	res.Rate, res.MB = n/window, float64(volume*g.agents)/1e6/window
	res.CPU, res.Broker = (to.cpu-from.cpu)/n*1e6, (to.broker-from.broker)/n*1e6
	res.Start, res.Idle = first.Sub(began).Seconds(), from.memory
	for _, x := range samples {
		res.Memory = max(res.Memory, x.memory)
	}
	return res, nil
}

// fillTable writes an entry for each user, where the engine would have.
func (e *environment) fillTable(ctx context.Context, changelog string, partitions, users int) error {
	compact := "compact"
	if err := e.create(ctx, changelog, partitions, map[string]*string{"cleanup.policy": &compact}); err != nil {
		return err
	}
	byKey := kgo.StickyKeyPartitioner(nil).ForTopic(changelog)
	cl, err := kgo.NewClient(kgo.SeedBrokers(e.broker.Addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(200_000))
	if err != nil {
		return err
	}
	defer cl.Close()
	var failed error
	for i := range users {
		user := fmt.Sprintf("u%d", i)
		at := byKey.Partition(&kgo.Record{Key: []byte(user)}, partitions)
		cl.Produce(ctx, &kgo.Record{Topic: changelog, Partition: int32(at), Key: []byte(`"` + user + `"`), Value: []byte("1")}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed = err
			}
		})
	}
	return errors.Join(cl.Flush(ctx), failed)
}

// joined waits until so many processes are the group, and settled.
func (e *environment) joined(ctx context.Context, group string, n int) error {
	settled := 0
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(200 * time.Millisecond) {
		groups, err := e.admin.DescribeGroups(ctx, group) // the group may have no coordinator yet
		if g := groups[group]; err == nil && g.State == "Stable" && len(g.Members) == n {
			if settled++; settled == 10 { // a unit changes hands in two rounds
				return nil
			}
		} else {
			settled = 0
		}
	}
	return fmt.Errorf("group %s has not %d members within a minute", group, n)
}
