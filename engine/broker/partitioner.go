package broker

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/record"
)

// ByKeyOrGiven sends a record to the partition it names; with record.PartitionByKey to the one its key's murmur2 hash
// gives, as the Java client does, and a null key to any, the same for a whole produced batch (KIP-480).
func ByKeyOrGiven() kgo.Partitioner { return partitioner{kgo.StickyKeyPartitioner(nil)} }

type partitioner struct{ keyed kgo.Partitioner }

func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return &topicPartitioner{p.keyed.ForTopic(topic)}
}

type topicPartitioner struct{ keyed kgo.TopicPartitioner }

func (p *topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition != record.PartitionByKey || p.keyed.RequiresConsistency(r)
}

func (p *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition != record.PartitionByKey {
		return int(r.Partition) // outside the topic: the client fails the record
	}
	return p.keyed.Partition(r, n)
}

// OnNewBatch passes the client's hint on, which is what makes null keys stick to a batch.
func (p *topicPartitioner) OnNewBatch() {
	if s, ok := p.keyed.(kgo.TopicPartitionerOnNewBatch); ok {
		s.OnNewBatch()
	}
}
