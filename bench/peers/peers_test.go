//go:build peers && integration

package peers

import (
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

var (
	reps    = flag.Int("reps", 3, "how often each system runs")
	records = flag.Int("records", 500_000, "records of the backlog; slow systems get a tenth")
	only    = flag.String("systems", "", "comma-separated names; empty for all")
	works   = flag.String("workloads", "w1,w2", "comma-separated")
	results = flag.String("results", "", "file for the results, as JSON")
)

//go:embed kstreams/pom.xml
var pom []byte

//go:embed kstreams/jars.sha256
var sums []byte

// report is what the JSON file holds.
type report struct {
	Date    string   `json:"date"`
	Commit  string   `json:"commit"`
	Command string   `json:"command"`
	Machine string   `json:"machine"`
	Runs    []result `json:"runs"`
}

// The table of README and docs/performance.md, measured here and now.
func TestPeers(t *testing.T) {
	env := start(t)
	rep := report{
		Date: time.Now().UTC().Format(time.RFC3339), Commit: commit(), Command: strings.Join(os.Args[1:], " "),
		Machine: fmt.Sprintf("%d processors, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, processor()),
	}
	inputs := map[int]string{}
	var err error
	for i := range *reps {
		for _, name := range strings.Split(*works, ",") {
			for _, s := range systems {
				if !slices.Contains(strings.Fields(s.workloads), name) || *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
					continue
				}
				n := *records
				if s.slow {
					n /= 10
				}
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
			}
		}
	}
	fmt.Println(table(rep.Runs))
	if *results != "" {
		text, err := json.MarshalIndent(rep, "", "  ")
		if err == nil {
			err = os.WriteFile(*results, append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// start makes what all runs share.
func start(t *testing.T) *environment {
	t.Helper()
	env := &environment{dir: t.TempDir(), kaspr: os.Getenv("KASPR_BINARY")}
	if env.kaspr == "" {
		t.Fatal("KASPR_BINARY names no engine; make bench-peers sets it")
	}
	if err := os.Chmod(env.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if env.jars, err = realkafka.FetchJars(t.Context(), pom, sums); err != nil {
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

// table is medians and spreads, and every rate as a ratio to Kaspr's.
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
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "workload\tsystem\truns\trecords/s\tspread\tkaspr is\tCPU-s/M\tspread\tkaspr's is\tMiB\tstart s\t")
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
		fmt.Fprintf(w, "%s\t%s\t%d\t%.0f\t%.0f-%.0f\t%s\t%.1f\t%.1f-%.1f\t%s\t%.0f\t%.1f\t\n", k.workload, k.system, len(by[k]), median, low, high, faster, cm, cl, ch, cheaper, mem, start)
	}
	w.Flush()
	return out.String()
}

func spread(rs []result, of func(result) float64) (low, median, high float64) {
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
