//go:build peers && integration

package peers

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Kaspr and a variant of it (-variants), at the same time on the same broker: what else uses the machine is in the way of both alike, so
// their processor time can be compared to some percent where runs one after the other differ by a third.
func TestPairs(t *testing.T) {
	if *others == "" {
		t.Skip("-variants names none")
	}
	env := start(t)
	input, err := env.fill(t.Context(), *records)
	if err != nil {
		t.Fatal(err)
	}
	rep := newReport(t)
	ratios := map[string][]float64{}
	var rows []string
	for i := range *reps {
		for _, name := range strings.Split(*works, ",") {
			for environ := range strings.SplitSeq(*others, ";") {
				var both [2]result
				var group sync.WaitGroup
				for j, s := range []system{systems[0], variant(environ)} {
					group.Go(func() { both[j] = env.run(t, s, name, input, *records, len(rep.Runs)) })
				}
				group.Wait()
				for _, r := range both {
					if r.Problem != "" {
						t.Errorf("%s: %s", r.System, r.Problem)
					}
				}
				if t.Failed() {
					continue
				}
				rep.Runs = append(rep.Runs, both[:]...)
				rep.write(t)
				row := name + " | " + environ
				if ratios[row] == nil {
					rows = append(rows, row)
				}
				ratios[row] = append(ratios[row], both[1].CPU/both[0].CPU)
				t.Logf("%d %s: %.1f and %.1f CPU-s/M, %.0f and %.0f records/s", i, row, both[0].CPU, both[1].CPU, both[0].Rate, both[1].Rate)
			}
		}
	}
	out := "| Workload | Variant | Pairs | Its processor time a record, in Kaspr's | Least and most |\n|---|---|--:|--:|---|\n"
	for _, row := range rows {
		low, median, high := spread(slices.Clone(ratios[row]), func(x float64) float64 { return x })
		out += fmt.Sprintf("| %s | %d | %.3f | %.2f–%.2f |\n", row, len(ratios[row]), median, low, high)
	}
	fmt.Println(out)
}
