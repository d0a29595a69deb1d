package engine

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// A series that the documentation names and the engine has not, or the other way round, is a dashboard that shows nothing.
func TestMetricsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{} // by series
	row := regexp.MustCompile("`(kaspr_[a-z_]+)`")
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) == 6 {
			for _, name := range row.FindAllStringSubmatch(line, -1) {
				rows[name[1]] = strings.TrimSpace(cells[3])
			}
		}
	}
	known := []string{"kaspr_http_status_codes_total", "kaspr_http_latency", "kaspr_http_panics_total", "kaspr_version"} // of package http; a label
	desc := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	for _, d := range described {
		m := desc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("cannot read %s", d)
		}
		known = append(known, m[1])
		if labels, ok := rows[m[1]]; !ok || labels != strings.ReplaceAll(m[2], ",", ", ") {
			t.Errorf("%s: labels %q, documented %v with %q", m[1], m[2], ok, labels)
		}
	}
	for name := range rows {
		if !slices.Contains(known, name) {
			t.Errorf("%s is documented and does not exist", name)
		}
	}
	for _, name := range regexp.MustCompile(`kaspr_[a-z_]+`).FindAllString(string(text), -1) {
		if name = strings.TrimSuffix(name, "_bucket"); !slices.Contains(known, name) {
			t.Errorf("%s is used and does not exist", name)
		}
	}
}

// Times must land in the bucket whose bound they do not exceed, or quantiles lie.
func TestDurations(t *testing.T) {
	var d durations
	for _, took := range []time.Duration{100 * time.Microsecond, time.Millisecond, 1500 * time.Microsecond, time.Minute} {
		d.observe(took)
	}
	var m dto.Metric
	if err := d.metric(prometheus.NewDesc("x", "x", nil, nil)).Write(&m); err != nil {
		t.Fatal(err)
	}
	h := m.GetHistogram()
	if h.GetSampleCount() != 4 || h.GetSampleSum() != 60002.6 {
		t.Errorf("%d samples, sum %v ms", h.GetSampleCount(), h.GetSampleSum())
	}
	for _, b := range h.GetBucket() {
		want := uint64(3)
		switch {
		case b.GetUpperBound() < 1:
			want = 1
		case b.GetUpperBound() < 2.5:
			want = 2
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("up to %v ms: %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), want)
		}
	}
}
