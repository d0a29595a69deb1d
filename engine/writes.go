package engine

import (
	"context"
	"encoding/binary"
	"fmt"

	"kaspr.io/kaspr/engine/record"
)

// A table write goes to the partition of the record in progress, which the step owns. One for another partition goes to that
// partition's owner as a record of the table's writes topic: the same key and value, the time of the record it came from. It is
// part of the step's transaction; the owner applies it as a step of its own.

// headerExpires is the header of a write whose entry expires: when, in milliseconds since the Unix epoch, 8 bytes big endian.
const headerExpires = "kaspr-expires"

func expiresHeader(at int64) []record.Header {
	return []record.Header{{Key: headerExpires, Value: binary.BigEndian.AppendUint64(nil, uint64(at))}}
}

// writer applies the writes that other partitions sent: the code of an agent that has none (caller).
type writer struct{}

func (writer) Call(_ context.Context, _ int, b *record.Batch) (record.Result, error) {
	res := record.Result{Done: len(b.Records)}
	for i := range b.Records {
		r := &b.Records[i]
		c := record.Change{Record: int32(i), Partition: record.RecordPartition, Key: r.Key, Value: r.Value}
		var err error
		if c.Key == nil {
			err = fmt.Errorf("a table write has no key")
		}
		for _, h := range r.Headers {
			if h.Key == headerExpires {
				c.Expires, err = expiresOf(h.Value)
			}
		}
		if err != nil { // nobody but us should write there
			res.Failures = append(res.Failures, record.Failure{Record: int32(i), Kind: record.FailureDecodeKey, Type: "TableWrite", Message: err.Error()})
			continue
		}
		res.Changes = append(res.Changes, c)
	}
	return res, nil
}

func expiresOf(header []byte) (int64, error) {
	if len(header) != 8 || header[0] > 127 {
		return 0, fmt.Errorf("header %s is not a time", headerExpires)
	}
	return int64(binary.BigEndian.Uint64(header)), nil
}

// route takes the changes for other partitions out of a verdict, and sends them to their owners.
func (f *feed) route(v *verdict, w *work) {
	kept := v.changes[:0]
	for _, c := range v.changes {
		if c.Partition == record.RecordPartition || c.Partition == f.partition.Number {
			kept = append(kept, c)
			continue
		}
		o := record.Output{
			Record: c.Record, Topic: w.shares[c.Table].writes, Partition: c.Partition, Timestamp: w.batch.Records[c.Record].Timestamp,
			Key: c.Key, Value: c.Value,
		}
		if c.Value != nil && c.Expires != 0 {
			o.Headers = expiresHeader(c.Expires)
		}
		v.outputs = append(v.outputs, o)
		v.routed++
	}
	v.changes = kept
}

// checkChanges makes records fail whose table writes cannot be, and says whether there are any: too large for the changelog, which the
// guest itself refuses where that takes what brokers do by default, or to another partition although the plan saw no sign of that in the
// code.
func (f *feed) checkChanges(shares []*share, res *record.Result) bool {
	bad := map[int32]string{}
	for i := range res.Changes {
		c := &res.Changes[i]
		s := shares[c.Table]
		switch size := len(c.Key) + len(c.Value); {
		case size > f.agent.app.rowBytes(s.table):
			bad[c.Record] = fmt.Sprintf("a write of %d bytes to %s is more than its changelog takes (%d)", size, s.label, f.agent.app.rowBytes(s.table))
		case s.staged == nil && (c.Partition < 0 || c.Partition == f.partition.Number):
			bad[c.Record] = fmt.Sprintf("%s has no partition %d", s.label, f.partition.Number)
		case c.Partition >= 0 && c.Partition != f.partition.Number && s.writes == "":
			bad[c.Record] = fmt.Sprintf("a write to partition %d of %s: call update_for_partition or del_for_partition by name", c.Partition, s.label)
		}
	}
	if len(bad) == 0 {
		return false
	}
	var outputs []record.Output
	for _, o := range res.Outputs {
		if bad[o.Record] == "" {
			outputs = append(outputs, o)
		}
	}
	var changes []record.Change
	for _, c := range res.Changes {
		if bad[c.Record] == "" {
			changes = append(changes, c)
		}
	}
	var failures []record.Failure
	old := res.Failures
	for i := range int32(res.Done) {
		for len(old) > 0 && old[0].Record == i {
			failures, old = append(failures, old[0]), old[1:]
		}
		if text := bad[i]; text != "" {
			failures = append(failures, record.Failure{Record: i, Kind: record.FailureEncode, Type: "TableWriteError", Message: text, Operation: "table"})
		}
	}
	res.Outputs, res.Changes, res.Failures, res.Kept = outputs, changes, failures, nil
	return true
}
