package wasmhost

import "context"

// Collect is shared by the tests with and without Python.
var Collect = collect

// Reset takes an instance back to its snapshot's image, as a Component does with one that ended.
func Reset(ctx context.Context, s *Snapshot, in *Instance) bool { return s.reset(ctx, in) }
