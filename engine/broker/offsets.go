package broker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"kaspr.io/kaspr/engine/record"
)

// TopicID tells a topic from others of its name, before and after it (KIP-516). Zero: the broker has none (before 2.8).
type TopicID [16]byte

// String is the ID in hexadecimal; empty for none.
func (id TopicID) String() string {
	if id == (TopicID{}) {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// TopicInfo is what a topic is.
type TopicInfo struct {
	ID         TopicID
	Partitions int32
}

// Describe is what the topics are; those that do not exist are left out.
func (a *Admin) Describe(ctx context.Context, topics ...string) (map[string]TopicInfo, error) {
	found, err := describeTopics(ctx, a.cl, topics)
	if err != nil {
		return nil, err
	}
	out := make(map[string]TopicInfo, len(found))
	for name, d := range found {
		if d.err != nil {
			return nil, fmt.Errorf("describe topic %s: %w", name, d.err)
		}
		out[name] = TopicInfo{d.id, int32(len(d.leaders))}
	}
	return out, nil
}

type description struct {
	id      TopicID
	leaders map[int32]int32
	err     error
}

// describeTopics asks the broker, never the client's cache; unknown topics are left out.
func describeTopics(ctx context.Context, cl *kgo.Client, topics []string) (map[string]description, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	if len(req.Topics) == 0 {
		return nil, nil // without names the request asks for all
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("describe topics: %w", err)
	}
	out := map[string]description{}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		d := description{id: t.TopicID, err: kerr.ErrorForCode(t.ErrorCode), leaders: map[int32]int32{}}
		if errors.Is(d.err, kerr.UnknownTopicOrPartition) {
			continue
		}
		for _, p := range t.Partitions {
			d.leaders[p.Partition] = p.Leader
		}
		out[*t.Topic] = d
	}
	return out, nil
}

// Bounds are the first offset of a log, and the one after its last record, open transactions included (the high watermark).
type Bounds struct{ Start, High int64 }

// Bounds are those of some partitions, all of them. Everything acknowledged before the call is below High.
func (a *Admin) Bounds(ctx context.Context, ps ...record.Partition) (map[record.Partition]Bounds, error) {
	starts, err := a.offsetsAt(ctx, ps, -2)
	if err != nil {
		return nil, fmt.Errorf("start offset of %w", err)
	}
	highs, err := a.offsetsAt(ctx, ps, -1)
	if err != nil {
		return nil, fmt.Errorf("end offset of %w", err)
	}
	out := make(map[record.Partition]Bounds, len(ps))
	for _, p := range ps {
		out[p] = Bounds{starts[p], highs[p]}
	}
	return out, nil
}

// offsetsAt is an offset of each of the partitions, by the special timestamps of ListOffsets: -2 is the first, -1 behind the last.
func (a *Admin) offsetsAt(ctx context.Context, ps []record.Partition, timestamp int64) (map[record.Partition]int64, error) {
	if len(ps) == 0 {
		return nil, nil
	}
	req := kmsg.NewPtrListOffsetsRequest()
	for topic, numbers := range byTopic(ps) {
		t := kmsg.NewListOffsetsRequestTopic()
		t.Topic = topic
		for _, n := range numbers {
			part := kmsg.NewListOffsetsRequestTopicPartition()
			part.Partition, part.Timestamp = n, timestamp
			t.Partitions = append(t.Partitions, part)
		}
		req.Topics = append(req.Topics, t)
	}
	out := make(map[record.Partition]int64, len(ps))
	resp, err := req.RequestWith(ctx, a.cl) // asks the leaders, each for its own
	if err != nil {
		return nil, fmt.Errorf("%d partitions: %w", len(ps), err)
	}
	for _, t := range resp.Topics {
		for _, rp := range t.Partitions {
			if err := kerr.ErrorForCode(rp.ErrorCode); err != nil {
				return nil, fmt.Errorf("%s/%d: %w", t.Topic, rp.Partition, err)
			}
			out[record.Partition{Topic: t.Topic, Number: rp.Partition}] = rp.Offset
		}
	}
	for _, p := range ps {
		if _, ok := out[p]; !ok {
			return nil, fmt.Errorf("%s/%d: %w", p.Topic, p.Number, kerr.UnknownTopicOrPartition)
		}
	}
	return out, nil
}

// StableOffsets is Member.Committed of a group this process need not be in.
func (a *Admin) StableOffsets(ctx context.Context, group string, ps []record.Partition) (map[record.Partition]Position, error) {
	return stableOffsets(ctx, a.cl, group, ps)
}

// topicsByName keeps a client's OffsetFetch below the version that names topics by ID.
func topicsByName() kgo.Opt {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.OffsetFetch), 9)
	return kgo.MaxVersions(versions)
}

// stableOffsets needs a client made with topicsByName.
func stableOffsets(ctx context.Context, cl *kgo.Client, group string, ps []record.Partition) (map[record.Partition]Position, error) {
	if len(ps) == 0 {
		return nil, nil // without partitions the request asks for all
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group, req.RequireStable = group, true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	for topic, numbers := range byTopic(ps) {
		t := kmsg.NewOffsetFetchRequestTopic()
		t.Topic, t.Partitions = topic, numbers
		req.Topics = append(req.Topics, t)
		gt := kmsg.NewOffsetFetchRequestGroupTopic()
		gt.Topic, gt.Partitions = topic, numbers
		g.Topics = append(g.Topics, gt)
	}
	req.Groups = append(req.Groups, g)
	var at map[record.Partition]Position
	err := retried(ctx, func() error {
		resp, err := req.RequestWith(ctx, cl)
		if err != nil {
			return err
		}
		at = map[record.Partition]Position{}
		note := func(topic string, number int32, offset int64, metadata *string, code int16) error {
			if err := kerr.ErrorForCode(code); err != nil {
				return fmt.Errorf("%s/%d: %w", topic, number, err)
			}
			if offset >= 0 {
				p := Position{Offset: offset}
				if metadata != nil {
					p.Metadata = *metadata
				}
				at[record.Partition{Topic: topic, Number: number}] = p
			}
			return nil
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			return err
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := note(t.Topic, p.Partition, p.Offset, p.Metadata, p.ErrorCode); err != nil {
					return err
				}
			}
		}
		for _, g := range resp.Groups {
			if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
				return err
			}
			for _, t := range g.Topics {
				for _, p := range t.Partitions {
					if err := note(t.Topic, p.Partition, p.Offset, p.Metadata, p.ErrorCode); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, kerr.GroupIDNotFound): // what some brokers say of a group that has stored nothing
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("fetch offsets of group %s: %w", group, err)
	}
	return at, nil
}
