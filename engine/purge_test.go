package engine

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/engine/record"
)

// Records may be deleted from the app's internal topics only, and only below what is committed; a broker that does not allow it is named
// once, not every ten seconds, and asked again.
func TestPurge(t *testing.T) {
	at := func(topic string, n int32) record.Partition { return record.Partition{Topic: topic, Number: n} }
	var log enginetest.Buffer
	var settled, asked map[record.Partition]int64
	var refusal error
	p := purge{
		topics: map[string]bool{"app-users-writes": true, "app-channel-c": true}, deleted: map[record.Partition]int64{},
		settled: func() map[record.Partition]int64 { return settled },
		delete: func(_ context.Context, below map[record.Partition]int64) error {
			asked = below
			return refusal
		},
		log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	refused := errors.New("TOPIC_AUTHORIZATION_FAILED")
	for i, step := range []struct {
		settled map[record.Partition]int64
		refusal error
		asked   map[record.Partition]int64
		warned  int
	}{
		{settled: map[record.Partition]int64{at("orders", 0): 70, at("app-users-writes", 0): -1, at("app-channel-c", 1): 0}},
		{
			settled: map[record.Partition]int64{at("orders", 0): 80, at("app-users-writes", 0): 5, at("app-channel-c", 1): 7},
			refusal: refused, asked: map[record.Partition]int64{at("app-users-writes", 0): 5, at("app-channel-c", 1): 7}, warned: 1,
		},
		{
			settled: map[record.Partition]int64{at("app-users-writes", 0): 6}, refusal: refused,
			asked: map[record.Partition]int64{at("app-users-writes", 0): 6}, warned: 1,
		},
		{settled: map[record.Partition]int64{at("app-users-writes", 0): 6}, asked: map[record.Partition]int64{at("app-users-writes", 0): 6}, warned: 1},
		{settled: map[record.Partition]int64{at("app-users-writes", 0): 6}, warned: 1},
		{
			settled: map[record.Partition]int64{at("app-users-writes", 0): 9}, refusal: refused,
			asked: map[record.Partition]int64{at("app-users-writes", 0): 9}, warned: 2,
		},
	} {
		settled, refusal, asked = step.settled, step.refusal, nil
		p.once(t.Context())
		if !maps.Equal(asked, step.asked) {
			t.Errorf("step %d: asked to delete below %v, want %v", i, asked, step.asked)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != step.warned {
			t.Errorf("step %d: %d warnings, want %d\n%s", i, n, step.warned, &log)
		}
	}
}
