package engine

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// seriesLabels is the labels of every series of this process, but for app_name and worker_name; those of package http are named here.
func seriesLabels(t *testing.T) map[string][]string {
	t.Helper()
	series := map[string][]string{"kaspr_http_status_codes_total": {"status_code"}, "kaspr_http_latency": {}}
	desc := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	for _, d := range described {
		m := desc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("cannot read %s", d)
		}
		series[m[1]] = strings.Split(m[2], ",")
	}
	return series
}

// A panel that asks for a series or a label that is not there shows nothing, for ever.
func TestGrafana(t *testing.T) {
	text, err := os.ReadFile("../docs/grafana/kaspr.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		UID        string
		Templating struct {
			List []struct{ Name string }
		}
		Panels []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	series := seriesLabels(t)
	everywhere := []string{"app_name", "worker_name", "le"}
	names := regexp.MustCompile(`kaspr_[a-z_]+`)
	grouped := regexp.MustCompile(`by \(([^)]*)\)`)
	matched := regexp.MustCompile(`\{([^}]*)\}`)
	shown := regexp.MustCompile(`\{\{([^}]*)\}\}`)
	ids := map[int]bool{}
	asked := 0
	for _, p := range board.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q: its id %d is another's, or it is too wide, or it asks for nothing", p.Title, p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			found := names.FindAllString(target.Expr, -1)
			if len(found) == 0 {
				t.Errorf("panel %q asks for no series of ours: %s", p.Title, target.Expr)
			}
			var labels []string
			for _, name := range found {
				asked++
				base := name
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					if _, ok := series[base]; !ok {
						base = strings.TrimSuffix(name, suffix)
					}
				}
				if _, ok := series[base]; !ok {
					t.Errorf("panel %q asks for %s, which does not exist", p.Title, name)
				}
				labels = append(labels, series[base]...)
			}
			known := func(label string) bool { return slices.Contains(labels, label) || slices.Contains(everywhere, label) }
			groups := ""
			for _, m := range grouped.FindAllStringSubmatch(target.Expr, -1) {
				groups = m[1]
				for label := range strings.SplitSeq(m[1], ",") {
					if !known(strings.TrimSpace(label)) {
						t.Errorf("panel %q groups by %q, which no series of it has", p.Title, label)
					}
				}
			}
			for _, m := range matched.FindAllStringSubmatch(target.Expr, -1) {
				if !strings.Contains(m[1], `app_name="$app"`) {
					t.Errorf("panel %q mixes apps: %s", p.Title, target.Expr)
				}
			}
			for _, m := range shown.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !known(m[1]) || groups != "" && !strings.Contains(groups, m[1]) {
					t.Errorf("panel %q shows label %q, which it does not have", p.Title, m[1])
				}
			}
		}
	}
	if asked < 30 || len(board.Templating.List) != 2 || board.UID == "" {
		t.Errorf("%d series, variables %v", asked, board.Templating.List)
	}
}
