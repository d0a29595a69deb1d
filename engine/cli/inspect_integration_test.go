//go:build integration

package cli

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"kaspr.io/kaspr/engine/enginetest/realkafka"
)

// What `kaspr topics` and `kaspr lag` say must be true of a real broker: of a group it has never heard of, of topics that end with the mark of a
// transaction, and of records that were deleted, which nobody has to wait for.
func TestTopicsAndLagOnKafka(t *testing.T) {
	k := newKafka(t, realkafka.Shared(t))
	settings := topicsAndLag(t, []string{k.broker.Addr()})
	var below kadm.Offsets
	below.Add(kadm.Offset{Topic: "one-in", Partition: 0, At: 4})
	if _, err := k.adm.DeleteRecords(t.Context(), below); err != nil {
		t.Fatal(err)
	}
	var lag []lagRow
	if inspected(t, &lag, "lag", settings); len(lag) != 1 || lag[0] != (lagRow{Topic: "one-in", Committed: 3, End: 5, Lag: 1}) {
		t.Errorf("lag after the first of two records that wait was deleted: %+v", lag)
	}
	var topics []struct {
		Topic   string
		Records int64
	}
	inspected(t, &topics, "topics", settings)
	records := map[string]int64{}
	for _, x := range topics {
		records[x.Topic] = x.Records
	}
	// Three records were copied; the app commits a few at a time, each with a mark.
	if records["one-in"] != 1 || records["one-out"] < 4 || records["one-out"] > 6 {
		t.Errorf("records %v", records)
	}
}
