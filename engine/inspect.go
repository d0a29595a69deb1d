package engine

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/config"
	"kaspr.io/kaspr/engine/plan"
)

// inspectTimeout bounds a look at Kafka from outside of a running app.
const inspectTimeout = 30 * time.Second

// inspect connects to Kafka for a purpose, and asks which topics there are with how many partitions. The caller closes the client.
func inspect(ctx context.Context, cfg config.Config, p *plan.Plan, log *slog.Logger, purpose string) (*broker.Admin, map[string]int32, error) {
	_, admin, err := clientOf(cfg, p, log, purpose)
	if err != nil {
		return nil, nil, err
	}
	exist, err := admin.Topics(ctx)
	if err != nil {
		admin.Close()
		return nil, nil, err
	}
	return admin, exist, nil
}

// TopicUse is a topic of an app as Kafka has it.
type TopicUse struct {
	Topic      string   `json:"topic"`
	Partitions int      `json:"partitions"` // 0: it does not exist
	Records    int64    `json:"records"`    // offsets it holds, those of compacted records and of transactions' ends too
	Uses       []string `json:"uses"`
}

// Topics is every topic an app reads, writes or keeps as far as its manifests tell, and how it stands in Kafka, by name. Topics that
// selectors name are not known before.
func Topics(ctx context.Context, cfg config.Config, p *plan.Plan, log *slog.Logger) ([]TopicUse, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	admin, exist, err := inspect(ctx, cfg, p, log, "topics")
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	uses := p.TopicUses(exist)
	var there []string
	for topic := range uses {
		if _, ok := exist[topic]; ok {
			there = append(there, topic)
		}
	}
	starts, ends, err := spans(ctx, admin, there)
	if err != nil {
		return nil, err
	}
	list := []TopicUse{}
	for _, topic := range slices.Sorted(maps.Keys(uses)) {
		u := TopicUse{Topic: topic, Uses: uses[topic]}
		for n, end := range ends[topic] {
			u.Partitions++
			u.Records += end - starts[topic][n]
		}
		list = append(list, u)
	}
	return list, nil
}

// spans is the first offsets of topics and their ends. A record that is deleted meanwhile does not make a span negative: starts are
// asked for first.
func spans(ctx context.Context, admin *broker.Admin, topics []string) (starts, ends map[string]map[int32]int64, err error) {
	if starts, err = admin.StartOffsets(ctx, topics...); err != nil {
		return nil, nil, err
	}
	ends, err = admin.EndOffsets(ctx, topics...)
	return starts, ends, err
}

// PartitionLag is how far an app's group is in a partition that it reads.
type PartitionLag struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // below it all is done; -1: nothing has been committed
	End       int64  `json:"end"`
	Lag       int64  `json:"lag"` // offsets up to the end that are still there; ends of transactions count, too
}

// Lag is that of every partition the app's group reads, by topic and partition, whether the app runs or not.
func Lag(ctx context.Context, cfg config.Config, p *plan.Plan, log *slog.Logger) ([]PartitionLag, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	admin, exist, err := inspect(ctx, cfg, p, log, "lag")
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	topics := p.Read(exist)
	for _, topic := range topics {
		if _, ok := exist[topic]; !ok {
			log.Warn("a topic that is read does not exist", "topic", topic)
		}
	}
	// In this order: what is committed is below an end that is asked for later.
	committed, err := admin.Committed(ctx, p.App.ID)
	if err != nil {
		return nil, fmt.Errorf("app %q: %w", p.App.Name, err)
	}
	starts, ends, err := spans(ctx, admin, topics)
	if err != nil {
		return nil, err
	}
	list := []PartitionLag{}
	for _, topic := range topics {
		for _, n := range slices.Sorted(maps.Keys(ends[topic])) {
			l := PartitionLag{Topic: topic, Partition: n, Committed: -1, End: ends[topic][n]}
			if at, ok := committed[topic][n]; ok {
				l.Committed = at
			}
			l.Lag = max(0, l.End-max(l.Committed, starts[topic][n]))
			list = append(list, l)
		}
	}
	return list, nil
}
