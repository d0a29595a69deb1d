package scheduler

import (
	"time"

	"kaspr.io/kaspr/engine/record"
)

// Reader is one partition of the table, with everything that earlier steps changed. state.Staged is one but for the form of
// Scan. Slices it gives out stay valid and are not modified.
type Reader interface {
	// Get is the value of a key; nil when there is none.
	Get(key []byte) ([]byte, error)
	// MultiGet is Get for many keys at once.
	MultiGet(keys [][]byte) ([][]byte, error)
	// Scan goes through the entries whose key starts with prefix and is not less than from, in key order.
	Scan(prefix, from []byte) Iterator
}

// Iterator goes through entries in key order. Close releases it and says why Next stopped; it may be called early.
type Iterator interface {
	Next() bool
	Key() []byte
	Value() []byte
	Close() error
}

// Step is what is to happen, all of it or nothing.
type Step struct {
	// Outputs are to be sent, in order. Output.Record is the index of the record that it comes from (Distribute, Intake), or of the
	// message it delivers (Dispatch); -1 for rejections and results of messages.
	Outputs []record.Output
	// Changes are to be laid over the table, in order; a later one of a key counts.
	Changes []record.Change
	// Outcomes say what became of requests and messages, for counts and logs.
	Outcomes []Outcome
	// Messages are what Outputs of a Dispatch deliver. A host keeps them until the outputs are acknowledged, and gives those that
	// are not to Refused.
	Messages []*Message
	// Wake is when to call the same function again although nothing has come: now when there is more to do at once, zero for
	// never. After an Intake it is when to call Dispatch, if earlier than planned.
	Wake time.Time
}

func (st *Step) put(at int32, key, value []byte) {
	st.Changes = append(st.Changes, record.Change{Record: at, Partition: record.RecordPartition, Key: key, Value: value})
}

func (st *Step) wake(at time.Time) {
	if st.Wake.IsZero() || at.Before(st.Wake) {
		st.Wake = at
	}
}
