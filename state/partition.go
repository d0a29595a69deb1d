package state

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/linxGnu/grocksdb"
)

// A partition is the Store on RocksDB: one database for one partition of one table.
//
// Invariant: data and position go in one WriteBatch, and there is one column family, so a flush takes both or neither;
// memtables are flushed oldest first. What is on disk is therefore always a prefix with its own position.
type partition struct {
	dir  *Dir
	id   id
	path string

	handle  atomic.Pointer[handle] // replaced by Clear; its gate is shut while there is none
	offset  atomic.Int64           // of the last Apply; written by the owner
	durable atomic.Int64           // at least this is on disk
	origin  atomic.Pointer[string] // written by the owner
	failure atomic.Pointer[error]  // the first error after which nothing may be written

	memory     atomic.Int64 // bytes in memtables, part of dir.memory
	dirtySince atomic.Int64 // Unix nanoseconds of the oldest change that may not be on disk; 0 for none

	batch  batch // owner only
	active int64 // bytes of the active memtable after the last Apply; owner only
	sealed int64 // offset at which RocksDB began the active memtable; owner only
	expiry expiryCursor

	reads, readKeys, scans, scanEntries, batches, changes, changedBytes, flushes atomic.Uint64
}

var _ Store = (*partition)(nil)

func (p *partition) wrap(action string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s table %s/%d: %w", action, p.id.table, p.id.number, err)
}

// broke remembers an error after which nothing may be written, and passes it on.
func (p *partition) broke(err error) error {
	if err != nil && broken(err) {
		if p.failure.CompareAndSwap(nil, &err) {
			p.forget() // its memtables cannot be flushed: others must not wait for that
		}
	}
	return err
}

func (p *partition) Err() error {
	if err := p.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// enter begins a call into the database; leave it through the handle's gate.
func (p *partition) enter() (*handle, error) {
	h := p.handle.Load()
	if !h.gate.enter() {
		return nil, ErrClosed
	}
	return h, nil
}

func (p *partition) Offset() int64  { return p.offset.Load() }
func (p *partition) Origin() string { return *p.origin.Load() }

func (p *partition) Apply(changes []Change, next int64) error {
	at := p.offset.Load()
	CheckApply(changes, at, next)
	if err := p.Err(); err != nil {
		return p.wrap("apply to", err)
	}
	if len(changes) == 0 && next == at {
		return nil
	}
	p.dir.makeRoom()
	h, err := p.enter()
	if err != nil {
		return p.wrap("apply to", err)
	}
	defer h.gate.leave()

	p.batch.reset()
	for _, e := range p.expiry.applying() {
		p.batch.deleteExpiry(e) // before the changes, which may write the same entry
	}
	least := int64(math.MaxInt64)
	defer func() { p.expiry.applied(least) }()
	var bytes uint64
	for _, c := range changes {
		p.batch.change(c)
		bytes += uint64(len(c.Key) + len(c.Value))
		if c.Expires != 0 && c.Value != nil {
			least = min(least, c.Expires)
		}
	}
	p.batch.position(position{offset: next, origin: p.Origin()})
	now := time.Now().UnixNano()
	p.dirtySince.CompareAndSwap(0, now)
	if err := h.write(p.batch.rep); err != nil {
		return p.wrap("apply to", p.broke(err))
	}
	p.offset.Store(next)
	p.batches.Add(1)
	p.changes.Add(uint64(len(changes)))
	p.changedBytes.Add(bytes)
	s := p.account(h)
	if s.active < p.active {
		p.dirtySince.Store(now) // RocksDB began a new memtable by itself, with this batch
		p.sealed = at
	}
	p.active = s.active
	if s.immutable == 0 && s.background == 0 {
		p.landed(p.sealed)
	}
	return nil
}

// account brings dir.memory up to date and looks for failures in the background.
func (p *partition) account(h *handle) status {
	s := h.status()
	if s.background != 0 && p.failure.Load() == nil {
		_ = p.broke(p.backgroundError(h))
	}
	if p.failure.Load() == nil {
		p.dir.memory.Add(s.memory - p.memory.Swap(s.memory))
	}
	return s
}

// backgroundError is why a flush or a compaction failed. RocksDB keeps that to itself: when it has stopped the database, a flush
// that waits fails with it; when it has not (a compaction without room), its log tells.
func (p *partition) backgroundError(h *handle) error {
	if err := h.flush(); err != nil && broken(err) {
		return err
	}
	text := "a flush or compaction failed"
	if b, err := os.ReadFile(filepath.Join(p.path, "LOG")); err == nil {
		for line := range strings.Lines(string(b)) {
			for _, kind := range []string{"IO error: ", "Corruption: "} {
				if _, said, ok := strings.Cut(line, kind); ok {
					text = kind + strings.TrimSpace(said)
				}
			}
		}
	}
	if err := classify(text); broken(err) {
		return err
	}
	return &rocksError{text: text, is: []error{ErrDisk}}
}

// landed notes that what is before offset is on disk.
func (p *partition) landed(offset int64) {
	for d := p.durable.Load(); d < offset && !p.durable.CompareAndSwap(d, offset); d = p.durable.Load() {
		continue
	}
}

// forget takes the store out of the process's accounts.
func (p *partition) forget() { p.dir.memory.Add(-p.memory.Swap(0)) }

func (p *partition) Flush() error { return p.wrap("flush", p.flush()) }

// flush may be called by the flusher too.
func (p *partition) flush() error {
	if err := p.Err(); err != nil {
		return err
	}
	h, err := p.enter()
	if err != nil {
		return err
	}
	defer h.gate.leave()
	p.dirtySince.Store(0) // before the offset is read: a change that comes now sets it again
	offset := p.offset.Load()
	p.flushes.Add(1)
	if err := h.flush(); err != nil {
		return p.broke(err)
	}
	p.landed(offset)
	p.account(h)
	return p.Err()
}

func (h *handle) flush() error {
	o := grocksdb.NewDefaultFlushOptions()
	defer o.Destroy()
	if err := h.db.Flush(o); err != nil {
		return classify(err.Error())
	}
	return nil
}

func (p *partition) Clear(origin string) error {
	h := p.handle.Load()
	if p.offset.Load() == 0 && p.batches.Load() == 0 && p.Err() == nil {
		p.origin.Store(&origin) // nothing was ever written
		return nil
	}
	h.close()
	p.forget()
	if err := remove(p.path); err != nil {
		return p.wrap("clear", p.broke(err))
	}
	h, _, err := p.dir.openDatabase(p.id, p.path)
	if err != nil {
		return p.wrap("clear", p.broke(err))
	}
	p.offset.Store(0)
	p.durable.Store(0)
	p.origin.Store(&origin)
	p.dirtySince.Store(0)
	p.active, p.sealed = 0, 0
	p.expiry.reset()
	p.failure.Store(nil)
	p.handle.Store(h)
	return nil
}

func (p *partition) Close() error {
	err := p.Err()
	if err == nil && p.offset.Load() != p.durable.Load() {
		err = p.flush()
	}
	p.handle.Load().close()
	p.forget()
	p.dir.closed(p)
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return p.wrap("close", err)
}

func (p *partition) Verify() error {
	h, err := p.enter()
	if err != nil {
		return p.wrap("verify", err)
	}
	defer h.gate.leave()
	return p.wrap("verify", p.broke(p.verify(h)))
}

func (p *partition) verify(h *handle) error {
	x := p.dir.scratches.get()
	defer p.dir.scratches.put(x)
	it, err := h.newIterator(nil, nil, nil, true)
	if err != nil {
		return err
	}
	defer h.freeIterator(it)
	for more := true; more; {
		var slab []byte
		if slab, more, err = h.read(x, it, 4096, 1<<20); err != nil {
			return err
		}
		for len(slab) > 0 {
			var key, value []byte
			key, value, slab = entry(slab)
			switch {
			case len(key) == 1 && key[0] == spaceMeta:
				_, err = decodePosition(value)
			case len(key) > 0 && key[0] == spaceData:
				_, _, err = decodeValue(value)
			case len(key) >= 9 && key[0] == spaceExpiry && len(value) == 0:
			default:
				err = fmt.Errorf("%w: key %x is of no known space", ErrCorrupt, key)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *partition) SizeEstimate() int64 {
	h, err := p.enter()
	if err != nil {
		return 0
	}
	defer h.gate.leave()
	return p.sizeEstimate(h)
}

func (p *partition) sizeEstimate(h *handle) int64 {
	n := h.property("rocksdb.estimate-num-keys") - 1 // the position record
	if n > 0 {
		return n
	}
	it := p.scan(h, nil, Range{})
	defer func() { _ = it.Close() }() // an estimate: what is wrong shows in a read
	if it.Next() {
		return 1
	}
	return 0
}

// property is a number RocksDB keeps about the database; 0 when it does not.
func (h *handle) property(name string) int64 {
	n, _ := h.db.GetIntProperty(name)
	return int64(n)
}

func (p *partition) Metrics() Metrics {
	m := Metrics{
		Reads: p.reads.Load(), ReadKeys: p.readKeys.Load(), Scans: p.scans.Load(), ScanEntries: p.scanEntries.Load(),
		Batches: p.batches.Load(), Changes: p.changes.Load(), ChangedBytes: p.changedBytes.Load(), Flushes: p.flushes.Load(),
		Offset: p.offset.Load(), Durable: p.durable.Load(),
	}
	h, err := p.enter()
	if err != nil {
		return m
	}
	defer h.gate.leave()
	m.Keys = p.sizeEstimate(h)
	m.DiskBytes = h.property("rocksdb.live-sst-files-size")
	m.MemtableBytes = h.property("rocksdb.cur-size-all-mem-tables")
	m.TableReaderBytes = h.property("rocksdb.estimate-table-readers-mem")
	m.CompactionBytes = h.property("rocksdb.estimate-pending-compaction-bytes")
	m.Level0Files = h.property("rocksdb.num-files-at-level0")
	m.Delayed = h.property("rocksdb.actual-delayed-write-rate") != 0 || h.property("rocksdb.is-write-stopped") != 0
	return m
}
