package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/record"
)

// peekBytesMax bounds what one Peek fetches at a time.
const peekBytesMax = 1 << 20

// Span is the offsets of a partition from Start on and below End.
type Span struct{ Start, End int64 }

// Peek reads at most limit committed records of the spans, for people who look at a topic. It has connections of its own, and no part in the
// group. It returns what has come when ctx ends, in the order it came, and that is no error; next is the offset behind it, ends of
// transactions included.
func Peek(ctx context.Context, o Options, spans map[record.Partition]Span, limit int) (recs []record.Record, next map[record.Partition]int64, err error) {
	at := map[string]map[int32]kgo.Offset{}
	left := map[record.Partition]int64{}
	for p, span := range spans {
		if at[p.Topic] == nil {
			at[p.Topic] = map[int32]kgo.Offset{}
		}
		at[p.Topic][p.Number] = kgo.NewOffset().At(span.Start)
		left[p] = span.End
	}
	cl, err := kgo.NewClient(append(o.clientOptions(), kgo.ConsumePartitions(at), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.DisableClientMetrics(),
		kgo.FetchMaxBytes(peekBytesMax), kgo.FetchMaxPartitionBytes(peekBytesMax/4), kgo.MaxConcurrentFetches(1))...)
	if err != nil {
		return nil, nil, fmt.Errorf("kafka client: %w", err)
	}
	defer cl.Close()
	next = map[record.Partition]int64{}
	for len(left) > 0 && len(recs) < limit && ctx.Err() == nil {
		fetches := cl.PollRecords(ctx, limit-len(recs))
		var failed error
		fetches.EachError(func(topic string, p int32, err error) {
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
				failed = errors.Join(failed, fmt.Errorf("read %s/%d: %w", topic, p, err))
			}
		})
		if failed != nil {
			return nil, nil, failed
		}
		fetches.EachRecord(func(r *kgo.Record) {
			p := record.Partition{Topic: r.Topic, Number: r.Partition}
			if next[p] = r.Offset + 1; next[p] >= left[p] {
				delete(left, p)
			}
			if r.Attrs.IsControl() {
				return
			}
			rec := record.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				rec.Headers = append(rec.Headers, record.Header{Key: h.Key, Value: h.Value})
			}
			recs = append(recs, rec)
		})
	}
	return recs, next, nil
}
