package wasmhost

import (
	"sync/atomic"
	"time"

	"kaspr.io/kaspr/wasmhost/abi"
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

	// samples counts the ticks that found each place of the program running: the operations, then the outputs, then all else. A guest
	// is interrupted at any place alike, so this is where its time went, for no more than a look at two words a tick.
	samples []atomic.Int64
}

// Place is a part of a program and how long it ran: a tick's time for each tick that found it running. It only grows; a machine that
// is so busy that ticks come late makes it less than it was.
type Place struct {
	Where string // in the words of failures, such as `operation "enrich", map`
	Ran   time.Duration
}

// Codec is the Place of what is no code of the program: reading records and writing outputs.
const Codec = "codec"

// sample notes what a tick found running. The numbers are the guest's, which may be any.
func (p *program) sample(phase, index uint32) {
	at := &p.stats.samples[len(p.stats.samples)-1]
	if p.code != nil {
		switch ops := uint32(len(p.code.Ops)); {
		case phase == abi.PhaseOperation && index < ops:
			at = &p.stats.samples[index]
		case phase == abi.PhaseOutput && index < uint32(len(p.code.Outputs)):
			at = &p.stats.samples[ops+index]
		}
	}
	at.Add(1)
}

// Places tells which parts of the program ticks found running, in the order of the program. Parts of one name are one.
func (c *Component) Places() []Place {
	p := c.snapshot.program
	var list []Place
	add := func(where string, ticks int64) {
		ran := time.Duration(ticks) * c.snapshot.r.cfg.Tick
		for i := range list {
			if list[i].Where == where {
				list[i].Ran += ran
				return
			}
		}
		list = append(list, Place{where, ran})
	}
	for i := range p.stats.samples {
		n := p.stats.samples[i].Load()
		switch ops := len(p.code.Ops); {
		case i < ops:
			add(p.where(abi.PhaseOperation, i), n)
		case i < ops+len(p.code.Outputs):
			add(p.where(abi.PhaseOutput, i-ops), n)
		default:
			add(Codec, n)
		}
	}
	return list
}

// Memory is the bytes of each slot's instance, 0 where there is none.
func (c *Component) Memory() []int64 {
	list := make([]int64, len(c.slots))
	for i := range c.slots {
		list[i] = c.slots[i].memory.Load()
	}
	return list
}

// WasmTime is the time spent inside guests.
func (s *Stats) WasmTime() time.Duration { return time.Duration(s.WasmNanos.Load()) }
