package wasmhost

import (
	"sync/atomic"
	"time"
)

// Stats counts what a program's instances did. All fields only grow, except the last two.
type Stats struct {
	Calls        atomic.Int64
	Records      atomic.Int64
	Restores     atomic.Int64 // instances made from the image, the first of each slot included
	Deadlines    atomic.Int64 // units ended by their deadline, politely or not
	Traps        atomic.Int64 // instances lost to traps, stack overflows, exits
	MemoryHits   atomic.Int64 // units that met the memory limit
	Retries      atomic.Int64 // units run again alone in a fresh instance
	WasmNanos    atomic.Int64 // time inside guests, without waiting for the Gate or for the Host
	RestoreNanos atomic.Int64
	Ticks        atomic.Int64 // times a guest was interrupted
	Instances    atomic.Int64 // live now
	MemoryBytes  atomic.Int64 // of those, as of their last calls; what an instance has not written it shares with the others
}

// WasmTime is the time spent inside guests.
func (s *Stats) WasmTime() time.Duration { return time.Duration(s.WasmNanos.Load()) }
