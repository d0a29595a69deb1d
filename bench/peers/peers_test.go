//go:build peers && integration

package peers

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/child"
	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

var (
	reps    = flag.Int("reps", 3, "how often each system runs")
	records = flag.Int("records", backlog, "records of the backlog; slow systems get fewer")
	only    = flag.String("systems", "", "comma-separated names; empty for all")
	works   = flag.String("workloads", "w1,w2", "comma-separated")
	results = flag.String("results", "", "file for the results, as JSON; it has each row as soon as that is measured")
	others  = flag.String("variants", "", "semicolon-separated: Kaspr once more with these environment variables (A=1 B=2); KASPR_BINARY is another build")
)

const backlog = 500_000

//go:embed kstreams/pom.xml
var pom []byte

//go:embed kstreams/jars.sha256
var sums []byte

// report is what the JSON file holds, behind those that were there before: the tests of one command share it.
type report struct {
	before []json.RawMessage

	Date    string   `json:"date"`
	Commit  string   `json:"commit"`
	Command string   `json:"command"`
	Machine string   `json:"machine"`
	Runs    []result `json:"runs,omitempty"`

	Latencies []latency `json:"latencies,omitempty"`
	Growth    []grown   `json:"growth,omitempty"`
}

func newReport(t *testing.T) *report {
	args := slices.Clone(os.Args[1:])
	if i := slices.Index(args, "-results"); i >= 0 {
		args = slices.Delete(args, i, i+2) // where they are is of no use to who reads them
	}
	r := &report{
		Date: time.Now().UTC().Format(time.RFC3339), Commit: commit(), Command: strings.Join(args, " "),
		Machine: fmt.Sprintf("%d processors, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, processor()),
	}
	if *results == "" {
		return r
	}
	text, err := os.ReadFile(*results)
	if err == nil {
		err = json.Unmarshal(text, &r.before)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s: %v", *results, err)
	}
	return r
}

// write is called with every row: what is measured stays, whatever becomes of the rest.
func (r *report) write(t *testing.T) {
	if *results == "" {
		return
	}
	own, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(append(slices.Clone(r.before), own), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*results+".new", append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(*results+".new", *results); err != nil {
		t.Fatal(err)
	}
}

// chosen are the systems to measure, variants behind the others.
func chosen() (all []system) {
	for _, s := range systems {
		if *only == "" || slices.Contains(strings.Split(*only, ","), s.name) {
			all = append(all, s)
		}
	}
	for environ := range strings.SplitSeq(*others, ";") {
		if environ != "" {
			all = append(all, variant(environ))
		}
	}
	return all
}

// The table of README and docs/performance.md, measured here and now.
func TestPeers(t *testing.T) {
	env := start(t)
	rep := newReport(t)
	inputs := map[int]string{}
	all := chosen()
	var err error
	for i := range *reps {
		for _, name := range strings.Split(*works, ",") {
			for _, s := range all {
				if !slices.Contains(strings.Fields(s.workloads), name) {
					continue
				}
				n := *records / s.part
				if inputs[n] == "" {
					if inputs[n], err = env.fill(t.Context(), n); err != nil {
						t.Fatal(err)
					}
				}
				res := env.run(t, s, name, inputs[n], n, i)
				t.Logf("%s %s: %.0f records/s, %.1f CPU-s/M %s", name, s.name, res.Rate, res.CPU, res.Problem)
				if res.Problem != "" {
					t.Errorf("%s %s: %s", name, s.name, res.Problem)
				}
				rep.Runs = append(rep.Runs, res)
				rep.write(t)
			}
		}
		slices.Reverse(all) // the broker is still getting faster: nobody is always the first
	}
	fmt.Println(table(rep.Runs))
}

// However a benchmark ends, nothing that it started is left (child.Start), nor is its own process.
func TestMain(m *testing.M) {
	child.FollowParent("go")
	os.Exit(m.Run())
}

// start makes what all runs share.
func start(t *testing.T) *environment {
	t.Helper()
	dir, err := child.NewDir("peers") // the next run removes what one that was killed has left
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dir.Remove)
	env := &environment{dir: dir.Path, kaspr: os.Getenv("KASPR_BINARY")}
	if env.kaspr == "" {
		t.Fatal("KASPR_BINARY names no engine; make bench-peers sets it")
	}
	if env.jars, err = child.Jars(t.Context(), pom, sums); err != nil {
		t.Fatal(err)
	}
	if env.broker, err = realkafka.Start(t.Context(), realkafka.Options{Heap: "1g", Optimise: true, Properties: map[string]string{"log.segment.bytes": "268435456", "auto.create.topics.enable": "true", "num.partitions": "4"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(env.broker.Close)
	if env.client, err = kgo.NewClient(kgo.SeedBrokers(env.broker.Addr()), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.MaxBufferedRecords(*records)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(env.client.Close)
	env.admin = kadm.NewClient(env.client)
	return env
}

// table is medians and spreads, and every rate as a ratio to Kaspr's, as Markdown.
func table(runs []result) string {
	type row struct{ workload, system string }
	by := map[row][]result{}
	var rows []row
	for _, r := range runs {
		if r.Problem != "" {
			continue
		}
		k := row{r.Workload, r.System}
		if by[k] == nil {
			rows = append(rows, k)
		}
		by[k] = append(by[k], r)
	}
	rate := func(k row) (low, median, high float64) {
		return spread(by[k], func(r result) float64 { return r.Rate })
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		_, x, _ := rate(a)
		_, y, _ := rate(b)
		if c := strings.Compare(a.workload, b.workload); c != 0 {
			return c
		}
		return int(y - x)
	})
	var out strings.Builder
	fmt.Fprintln(&out, "| Workload | System | Records | Runs | Records/s | Spread | Kaspr is | CPU-s/M | Spread | Kaspr's is | MiB | Start s |\n|---|---|--:|--:|--:|---|--:|--:|---|--:|--:|--:|")
	for _, k := range rows {
		low, median, high := rate(k)
		cl, cm, ch := spread(by[k], func(r result) float64 { return r.CPU })
		_, mem, _ := spread(by[k], func(r result) float64 { return r.Memory })
		_, start, _ := spread(by[k], func(r result) float64 { return r.Start })
		faster, cheaper := "", ""
		if own := by[row{k.workload, "kaspr"}]; len(own) > 0 {
			_, kr, _ := rate(row{k.workload, "kaspr"})
			_, kc, _ := spread(own, func(r result) float64 { return r.CPU })
			faster, cheaper = fmt.Sprintf("%.2f x", kr/median), fmt.Sprintf("%.2f x", kc/cm)
		}
		fmt.Fprintf(&out, "| %s | %s | %d | %d | %.0f | %.0f–%.0f | %s | %.1f | %.1f–%.1f | %s | %.0f | %.1f |\n", k.workload, k.system, by[k][0].Records, len(by[k]), median, low, high, faster, cm, cl, ch, cheaper, mem, start)
	}
	return out.String()
}

func spread[R any](rs []R, of func(R) float64) (low, median, high float64) {
	v := make([]float64, len(rs))
	for i, r := range rs {
		v[i] = of(r)
	}
	slices.Sort(v)
	return v[0], v[len(v)/2], v[len(v)-1]
}

func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func processor() string {
	text, err := os.ReadFile(filepath.Join("/proc", "cpuinfo"))
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.Trim(name, "\t :\n")
		}
	}
	return "unknown"
}
