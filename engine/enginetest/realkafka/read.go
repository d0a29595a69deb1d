//go:build integration

package realkafka

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// readWithin is how long a topic may take to be read.
const readWithin = 2 * time.Minute

// Records are all committed records that the topic holds now, those of a partition in their order. The test fails when they cannot be read to
// their end: that nothing is there is no answer of a reader that was too slow.
func (b *Broker) Records(t testing.TB, topic string) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readWithin)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords()) // a topic may end in the marker of a transaction
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	starts, errStarts := adm.ListStartOffsets(ctx, topic)
	ends, errEnds := adm.ListCommittedOffsets(ctx, topic)
	if err := errors.Join(errStarts, errEnds, starts.Error(), ends.Error()); err != nil {
		t.Fatal(err)
	}
	behind := map[int32]int64{} // partitions that are not read to this end
	for p, end := range ends[topic] {
		if starts[topic][p].Offset < end.Offset {
			behind[p] = end.Offset
		}
	}
	var rs []*kgo.Record
	for len(behind) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("%s: %v; not read to the ends %v", topic, err, behind)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if end, ok := behind[r.Partition]; ok && r.Offset+1 >= end {
				delete(behind, r.Partition)
			}
			if !r.Attrs.IsControl() {
				rs = append(rs, r)
			}
		})
	}
	return rs
}
