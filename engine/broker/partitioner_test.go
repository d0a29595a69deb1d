package broker

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/record"
)

// A table's key is looked for where record.PartitionOf says: if the producer sent it elsewhere, a view would look in every partition.
func TestKeyedPartitionIsTheProducers(t *testing.T) {
	producer := ByKeyOrGiven().ForTopic("t")
	for i := range 1000 {
		key := []byte(fmt.Sprintf("%06d", i*7919)[:i%7])
		want := producer.Partition(&kgo.Record{Key: key, Partition: record.PartitionByKey}, 12)
		if got := record.PartitionOf(key, 12); int(got) != want {
			t.Fatalf("%q is sent to partition %d and looked for in %d", key, want, got)
		}
	}
}

// Records without a key must go to all partitions in turn, or one of them gets everything: the partition changes with each batch that is produced.
func TestKeylessRecordsAreSpread(t *testing.T) {
	producer := ByKeyOrGiven().ForTopic("t")
	used := map[int]bool{}
	for range 200 {
		at := producer.Partition(&kgo.Record{Partition: record.PartitionByKey}, 4)
		if again := producer.Partition(&kgo.Record{Partition: record.PartitionByKey}, 4); again != at {
			t.Fatalf("two records of one batch go to partitions %d and %d", at, again)
		}
		used[at] = true
		producer.(kgo.TopicPartitionerOnNewBatch).OnNewBatch()
	}
	if len(used) != 4 {
		t.Errorf("200 batches went to partitions %v of 4", used)
	}
}

// A partition that is given is taken as it is, also one that the topic does not have: the client then fails the message, instead of
// sending it elsewhere. Only a message without a key may go elsewhere while a partition is away.
func TestGivenPartitionIsTaken(t *testing.T) {
	producer := ByKeyOrGiven().ForTopic("t")
	for _, given := range []int32{0, 3, 9} {
		if at := producer.Partition(&kgo.Record{Key: []byte("k"), Partition: given}, 4); at != int(given) {
			t.Errorf("partition %d became %d", given, at)
		}
	}
	for _, c := range []struct {
		message kgo.Record
		fixed   bool
	}{
		{kgo.Record{Partition: record.PartitionByKey}, false},
		{kgo.Record{Partition: record.PartitionByKey, Key: []byte{}}, true},
		{kgo.Record{Partition: 1}, true},
	} {
		if got := producer.RequiresConsistency(&c.message); got != c.fixed {
			t.Errorf("key %q, partition %d: fixed is %v", c.message.Key, c.message.Partition, got)
		}
	}
}
