//go:build integration

package cli

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// What is shown of stores and disks must be RocksDB's and the volume's, and the advertised address must not keep members out.
func TestHTTPOfRealStores(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	k.topic("shown-in", 2)
	k.topic("shown-out", 1)
	app := strings.NewReplacer("counts-in,counts-late", "shown-in", "counts-out", "shown-out", "kaspr.io/app: counts", "kaspr.io/app: shown").Replace(countsApp)
	port := freePort(t)
	p := k.engine(app, map[string]string{"webPort": port, "webHost": "shown.example"})
	base := "http://127.0.0.1:" + port
	k.produce("shown-in", 0, 1000)
	if got := k.outputs(time.Minute, count(1000), "shown-out"); len(got) != 1000 {
		t.Fatalf("%d of 1000 outputs", len(got))
	}
	if code, text := get(t, base+"/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, text)
	}
	sum := func(text, series string) (sum float64, n int) {
		for _, m := range regexp.MustCompile(`(?m)^`+series+`\{[^}]*worker_name="shown.example"[^}]*\} (\S+)$`).FindAllStringSubmatch(text, -1) {
			v, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatalf("%s: %v", m[0], err)
			}
			sum, n = sum+v, n+1
		}
		return sum, n
	}
	var text string
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, text = get(t, base+"/metrics")
		records, _ := sum(text, "kaspr_agent_records_total")
		committed, n := sum(text, "kaspr_topic_partition_offset_committed")
		if lag, lags := sum(text, "kaspr_topic_partition_lag"); records == 1000 && committed >= 1000 && n == 2 && lag == 0 && lags == 2 {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("after a minute:\n%s", text)
		}
	}
	for series, at := range map[string]struct {
		least float64
		n     int
	}{
		"kaspr_table_key_count": {2, 1}, "kaspr_store_disk_bytes": {0, 2}, "kaspr_store_memtable_bytes": {1, 2}, "kaspr_store_unflushed_offsets": {1, 2},
		"kaspr_table_operations_total": {2, 3}, "kaspr_disk_space_total": {1 << 20, 1}, "kaspr_disk_space_used": {1 << 20, 1}, "kaspr_commits_total": {1, 1},
		"kaspr_consumer_commit_latency_count": {1, 1}, "kaspr_guest_memory_bytes": {1 << 20, 1},
	} {
		if v, n := sum(text, series); v < at.least || n != at.n {
			t.Errorf("%s: %d series, together %v; want %d with at least %v", series, n, v, at.n, at.least)
		}
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	k.committed("shown-app", "shown-in")
}
