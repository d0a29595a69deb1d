package state

import (
	"time"
)

// RocksDB bounds the write buffers of one database, and its C interface has no write buffer manager for several. So we count
// (RocksDB tells after each write) and one goroutine flushes. Above the bound it flushes the largest buffers; RocksDB's
// manager would flush the one that happens to be written, however small it is. Above twice the bound, writers wait for it.

// makeRoom is called before a write, outside of every gate.
func (d *Dir) makeRoom() {
	used, limit := d.memory.Load(), d.opts.WriteBuffersSize
	switch {
	case used <= limit:
	case used <= 2*limit:
		select {
		case d.flusher <- nil:
		default: // it is at it
		}
	default:
		done := make(chan struct{})
		select {
		case d.flusher <- done:
			select {
			case <-done:
			case <-d.quit:
			}
		case <-d.quit:
		}
	}
}

// flush is the flusher's loop.
func (d *Dir) flush() {
	defer d.joined.Done()
	tick := time.NewTicker(max(d.opts.FlushInterval/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-d.quit:
			return
		case done := <-d.flusher:
			d.relieve()
			if done != nil {
				close(done)
			}
		case now := <-tick.C:
			d.flushOld(now)
		}
	}
}

// A write buffer that is smaller than this is not worth a flush.
const flushBytesMin = 256 << 10

// relieve flushes the largest write buffers until the bound is kept.
func (d *Dir) relieve() {
	for d.memory.Load() > d.opts.WriteBuffersSize {
		var largest *partition
		for _, p := range d.stores() {
			if largest == nil || p.memory.Load() > largest.memory.Load() {
				largest = p
			}
		}
		if largest == nil {
			return
		}
		before := largest.memory.Load()
		if before < flushBytesMin {
			return // so many stores that their smallest buffers are above the bound
		}
		if err := largest.flush(); err != nil {
			if broken(err) {
				d.log.Error("flush failed", "table", largest.id.table, "partition", largest.id.number, "err", err)
			}
			largest.forget() // it is broken or closed
			continue
		}
		if largest.memory.Load() >= before {
			return // its owner is faster than the disk; RocksDB slows it down
		}
		select {
		case <-d.quit:
			return
		default:
		}
	}
}

// flushOld flushes what has been off the disk for long, so that a crash leaves little to restore: after FlushInterval when it is
// worth a file, after twenty of them in any case.
func (d *Dir) flushOld(now time.Time) {
	for _, p := range d.stores() {
		since := p.dirtySince.Load()
		if since == 0 {
			continue
		}
		age := now.Sub(time.Unix(0, since))
		if age < d.opts.FlushInterval || p.memory.Load() < 4*flushBytesMin && age < 20*d.opts.FlushInterval {
			continue
		}
		if err := p.flush(); err != nil && broken(err) {
			d.log.Error("flush failed", "table", p.id.table, "partition", p.id.number, "err", err)
		}
		select {
		case <-d.quit:
			return
		default:
		}
	}
}
