package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
)

func (p *partition) Get(key []byte) ([]byte, error) {
	h, err := p.enter()
	if err != nil {
		return nil, p.wrap("read", err)
	}
	defer h.gate.leave()
	return p.get(h, h.ro, key)
}

func (p *partition) get(h *handle, ro *cReadOptions, key []byte) ([]byte, error) {
	p.reads.Add(1)
	p.readKeys.Add(1)
	x := p.dir.scratches.get()
	defer p.dir.scratches.put(x)
	x.keys = append(append(x.keys[:0], spaceData), key...)
	raw, err := h.get(x, ro, x.keys)
	if err != nil {
		return nil, p.wrap("read", p.broke(err))
	}
	if raw == nil {
		return nil, nil
	}
	value, _, err := decodeValue(raw)
	return value, p.wrap("read", p.broke(err))
}

func (p *partition) MultiGet(keys [][]byte) ([][]byte, error) {
	h, err := p.enter()
	if err != nil {
		return nil, p.wrap("read", err)
	}
	defer h.gate.leave()
	return p.multiGet(h, h.ro, keys)
}

func (p *partition) multiGet(h *handle, ro *cReadOptions, keys [][]byte) ([][]byte, error) {
	p.reads.Add(1)
	p.readKeys.Add(uint64(len(keys)))
	x := p.dir.scratches.get()
	defer p.dir.scratches.put(x)
	values := make([][]byte, len(keys))
	err := h.multiGet(x, ro, keys, func(i int, raw []byte) (err error) {
		values[i], _, err = decodeValue(raw)
		return err
	})
	if err != nil {
		return nil, p.wrap("read", p.broke(err))
	}
	return values, nil
}

func (p *partition) Scan(r Range) Iterator {
	h, err := p.enter()
	if err != nil {
		return &iterator{p: p, err: p.wrap("scan", err)}
	}
	defer h.gate.leave()
	p.scans.Add(1)
	return p.scan(h, nil, r)
}

// An iterator reads its range page by page, each page in one crossing; the first when it is made. Once it is at its end it
// holds nothing of RocksDB any more.
type iterator struct {
	p          *partition
	h          *handle
	c          *cIterator // nil when there is no further page
	slab       []byte     // the rest of the page
	page       int        // size of the next one
	key, value []byte
	err        error
}

// Pages grow, so that a scan that is left early has not read much.
const (
	pageBytesMin   = 8 << 10
	pageBytesMax   = 256 << 10
	pageEntriesMax = 4096
)

func (p *partition) scan(h *handle, snapshot *cSnapshot, r Range) *iterator {
	prefix := append([]byte{spaceData}, r.Prefix...)
	lower := prefix
	if bytes.Compare(r.From, r.Prefix) > 0 {
		lower = append([]byte{spaceData}, r.From...)
	}
	it := &iterator{p: p, h: h, page: pageBytesMin}
	c, err := h.newIterator(snapshot, lower, upperBound(prefix), false)
	if err != nil {
		it.err = p.wrap("scan", err)
		return it
	}
	it.c = c
	h.mu.Lock()
	h.iterators[it] = c
	h.mu.Unlock()
	it.read()
	return it
}

// read gets the next page. The gate is open.
func (it *iterator) read() {
	x := it.p.dir.scratches.get()
	defer it.p.dir.scratches.put(x)
	slab, more, err := it.h.read(x, it.c, pageEntriesMax, it.page)
	it.page = min(it.page*4, pageBytesMax)
	it.slab = slab
	if err != nil {
		it.err = it.p.wrap("scan", it.p.broke(err))
	}
	if !more {
		it.release()
	}
}

// release gives the RocksDB iterator back. The gate is open.
func (it *iterator) release() {
	if it.c == nil {
		return
	}
	it.h.mu.Lock()
	delete(it.h.iterators, it)
	it.h.mu.Unlock()
	it.h.freeIterator(it.c)
	it.c = nil
}

func (it *iterator) Next() bool {
	for len(it.slab) == 0 {
		if it.c == nil || it.err != nil {
			return false
		}
		if !it.h.gate.enter() {
			it.c, it.err = nil, it.p.wrap("scan", ErrClosed)
			return false
		}
		it.read()
		it.h.gate.leave()
	}
	var key, raw []byte
	key, raw, it.slab = entry(it.slab)
	value, _, err := decodeValue(raw)
	if err != nil {
		it.slab, it.err = nil, it.p.wrap("scan", it.p.broke(err))
		return false
	}
	it.key, it.value = key[1:], value
	it.p.scanEntries.Add(1)
	return true
}

func (it *iterator) Key() []byte   { return it.key }
func (it *iterator) Value() []byte { return it.value }

func (it *iterator) Close() error {
	it.slab = nil
	if it.c != nil {
		if it.h.gate.enter() {
			it.release()
			it.h.gate.leave()
		}
		it.c = nil
	}
	return it.err
}

// A view reads through a RocksDB snapshot.
type view struct {
	p        *partition
	h        *handle
	ro       *cReadOptions
	snapshot *cSnapshot
	offset   int64
	gate     *gate // shut by Close; entered before the handle's
}

func (p *partition) View() (View, error) {
	h, err := p.enter()
	if err != nil {
		return nil, p.wrap("view", err)
	}
	defer h.gate.leave()
	x := p.dir.scratches.get()
	defer p.dir.scratches.put(x)
	v := &view{p: p, h: h, gate: newGate()}
	v.ro, v.snapshot = h.snapshot()
	raw, err := h.get(x, v.ro, positionKey) // the offset of this very moment, whatever the owner is doing
	if err == nil && raw != nil {
		var at position
		at, err = decodePosition(raw)
		v.offset = at.offset
	}
	if err != nil {
		h.freeSnapshot(v.ro, v.snapshot)
		return nil, p.wrap("view", p.broke(err))
	}
	h.mu.Lock()
	h.views[v] = struct{}{}
	h.mu.Unlock()
	return v, nil
}

func (v *view) enter() bool {
	if !v.gate.enter() {
		return false
	}
	if !v.h.gate.enter() {
		v.gate.leave()
		return false
	}
	return true
}

func (v *view) leave() {
	v.h.gate.leave()
	v.gate.leave()
}

func (v *view) Offset() int64 { return v.offset }

func (v *view) Get(key []byte) ([]byte, error) {
	if !v.enter() {
		return nil, v.p.wrap("read", ErrClosed)
	}
	defer v.leave()
	return v.p.get(v.h, v.ro, key)
}

func (v *view) MultiGet(keys [][]byte) ([][]byte, error) {
	if !v.enter() {
		return nil, v.p.wrap("read", ErrClosed)
	}
	defer v.leave()
	return v.p.multiGet(v.h, v.ro, keys)
}

func (v *view) Scan(r Range) Iterator {
	if !v.enter() {
		return &iterator{p: v.p, err: v.p.wrap("scan", ErrClosed)}
	}
	defer v.leave()
	v.p.scans.Add(1)
	return v.p.scan(v.h, v.snapshot, r)
}

// SizeEstimate is the store's: RocksDB keeps no count for a snapshot.
func (v *view) SizeEstimate() int64 {
	if !v.enter() {
		return 0
	}
	defer v.leave()
	return v.p.sizeEstimate(v.h)
}

func (v *view) Close() {
	if !v.gate.shut() {
		return
	}
	if !v.h.gate.enter() {
		return // closing the store freed it, or is about to
	}
	defer v.h.gate.leave()
	v.h.mu.Lock()
	delete(v.h.views, v)
	v.h.mu.Unlock()
	v.h.freeSnapshot(v.ro, v.snapshot)
}

func (p *partition) Expired(now int64, limit int) ([]Expiry, error) {
	h, err := p.enter()
	if err != nil {
		return nil, p.wrap("read expired of", err)
	}
	defer h.gate.leave()
	due, err := p.expired(h, min(now, math.MaxInt64-1), limit)
	return due, p.wrap("read expired of", p.broke(err))
}

func (p *partition) expired(h *handle, now int64, limit int) ([]Expiry, error) {
	begun, from := p.expiry.begin()
	if now < from || limit <= 0 {
		return nil, nil
	}
	x := p.dir.scratches.get()
	defer p.dir.scratches.put(x)
	bound := func(t int64) []byte { return binary.BigEndian.AppendUint64([]byte{spaceExpiry}, uint64(t)) }
	it, err := h.newIterator(nil, bound(from), bound(now+1), false)
	if err != nil {
		return nil, err
	}
	defer h.freeIterator(it)

	var due, stale []Expiry
	for more := true; more && len(due) < limit; {
		var slab []byte
		if slab, more, err = h.read(x, it, min(limit-len(due), 1024)+64, pageBytesMax); err != nil {
			return nil, err
		}
		var entries []Expiry
		var keys [][]byte
		for len(slab) > 0 {
			var key, value []byte
			if key, value, slab = entry(slab); len(key) < 9 || len(value) != 0 {
				return nil, fmt.Errorf("%w: entry %x of the expiry index", ErrCorrupt, key)
			}
			entries = append(entries, Expiry{Key: key[9:], At: int64(binary.BigEndian.Uint64(key[1:]))})
			keys = append(keys, key[9:])
		}
		at := make([]int64, len(entries))
		err := h.multiGet(x, h.ro, keys, func(i int, raw []byte) (err error) {
			_, at[i], err = decodeValue(raw)
			return err
		})
		if err != nil {
			return nil, err
		}
		for i, e := range entries {
			if at[i] != e.At {
				stale = append(stale, e) // overwritten or deleted since
			} else if len(due) < limit {
				due = append(due, e)
			}
		}
	}
	from = now + 1
	if len(due) > 0 {
		from = due[0].At
	}
	p.expiry.end(begun, from, stale)
	return due, nil
}

// An expiryCursor knows from where on the expiry index is worth reading, and which of its entries are stale. Those are deleted
// with the next Apply.
//
// An entry that Expired found stale becomes live again when its key is written with the same time. So what Expired found
// counts only if no Apply ran meanwhile, and an Apply never deletes an entry that it writes.
type expiryCursor struct {
	mu    sync.Mutex
	turn  int64 // guarded by mu, as all; odd during an Apply
	from  int64 // no entry is older, except stale ones
	stale []Expiry
}

const staleMax = 100_000 // found again by the next Expired after an open; more are not worth the memory

func (c *expiryCursor) begin() (turn, from int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turn, c.from
}

func (c *expiryCursor) end(turn, from int64, stale []Expiry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if turn%2 == 1 || turn != c.turn {
		return
	}
	c.from = from
	if len(c.stale) < staleMax {
		c.stale = append(c.stale, stale...)
	}
}

// applying begins an Apply: it takes the stale entries.
func (c *expiryCursor) applying() []Expiry {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	stale := c.stale
	c.stale = nil
	return stale
}

// applied ends it; least is the earliest time written.
func (c *expiryCursor) applied(least int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	c.from = min(c.from, least)
}

func (c *expiryCursor) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn += 2
	c.from, c.stale = 0, nil
}
