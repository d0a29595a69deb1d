package scheduler

import "kaspr.io/kaspr/engine/record"

// partitionOf is where the requests about an id are handled: where Kafka's own clients send a record with the id as its
// key. Requests without an id go by their key, or all over.
func partitionOf(r *Request, partitions int32) int32 {
	switch {
	case r.ID != "":
		return record.PartitionOf([]byte(r.ID), partitions)
	case r.Key != nil:
		return record.PartitionOf(r.Key, partitions)
	}
	return int32(r.Source.Offset % int64(partitions))
}
