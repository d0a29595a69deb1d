package wasmhost

import (
	"context"

	"kaspr.io/kaspr/engine/record"
)

// Instance is one live restore of a Snapshot. It runs one call at a time.
type Instance struct{}

// Call runs the program over b. A Python exception is not an error here: it is a Failure in the Result. An error is a
// *CallError: the instance ended, or ctx did; the Result holds what was finished before.
func (in *Instance) Call(ctx context.Context, b *record.Batch) (record.Result, error) {
	return record.Result{}, errNotYet
}

// MemoryBytes is the size of the instance's memory, of which it shares with the image what it has not written.
func (in *Instance) MemoryBytes() int64 { return 0 }

// Close frees the instance. It is idempotent.
func (in *Instance) Close() error { return nil }
