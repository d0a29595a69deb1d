package wasmhost

import "context"

// Collect is shared by the tests with and without Python.
var Collect = collect

// SpillRefused says why code is checked on this machine; empty when it need not be.
var SpillRefused = spillRefused

// Reset takes an instance back to its snapshot's image, as a Component does with one that ended.
func Reset(ctx context.Context, s *Snapshot, in *Instance) bool { return s.reset(ctx, in) }
