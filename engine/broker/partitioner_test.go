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
