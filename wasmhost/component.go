package wasmhost

import (
	"context"

	"kaspr.io/kaspr/engine/record"
)

// Component runs a program for workers: each has a slot with an Instance of its own, made when it is first used.
type Component struct{}

// NewComponent takes over s: Close of the Component closes it too.
func NewComponent(s *Snapshot, slots int) *Component { return &Component{} }

// Call runs b in the slot's instance. Whatever a record does, it ends in Outputs or in one Failure and leaves the other
// records unharmed:
//
//   - An instance that ends by deadline fails the record that ran. One that ends by trap, memory or exit is restored and
//     the record is run again alone, once, before it fails: it may have paid for an earlier one.
//   - A take batch that fails is halved until single failing records are found; the others come as smaller lists.
//   - Order is kept, and StopOnFailure is respected.
//
// An error means that ctx ended or no instance could be made; the Result is what was finished before, so records from
// Done on are untouched. A restored instance starts from the image: what init built is new, what calls changed is gone.
func (c *Component) Call(ctx context.Context, slot int, b *record.Batch) (record.Result, error) {
	return record.Result{}, errNotYet
}

// MemoryBytes is the sum over the live instances.
func (c *Component) MemoryBytes() int64 { return 0 }

// Stats counts what the component did.
func (c *Component) Stats() *Stats { return nil }

// Close frees all instances and the Snapshot. No call may be running. It is idempotent.
func (c *Component) Close() error { return nil }
