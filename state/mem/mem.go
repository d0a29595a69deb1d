// Package mem keeps stores in memory: the interface and behaviour of package state, for tests and for equivalences.
//
// What reaches the "disk" is what was flushed: [Stores.Crash] takes every store back to that.
package mem

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"kaspr.io/kaspr/state"
)

// Stores gives out stores in memory. Safe for concurrent use.
type Stores struct {
	// Fault, if set, is asked before each operation ("open", "read", "apply", "flush"); its error is the operation's.
	Fault func(op, table string, number int32) error

	mu    sync.Mutex
	disk  map[id]*version // what was flushed
	open  map[id]*store
	aside int
	shut  bool
}

var _ state.Opener = (*Stores)(nil)

type id struct {
	table  string
	number int32
}

// New is a process without state.
func New() *Stores { return &Stores{disk: map[id]*version{}, open: map[id]*store{}} }

// A version is a store at one moment. It is never changed.
type version struct {
	data   *node // by key
	expiry *node // by time and key
	offset int64
	origin string
}

type store struct {
	of  *Stores
	id  id
	now atomic.Pointer[version]
	err atomic.Pointer[error] // of a failed flush or apply: sticky, as on disk

	mu      sync.Mutex
	metrics state.Metrics
	shut    atomic.Bool
}

func (s *Stores) fault(op string, i id) error {
	if s.Fault == nil {
		return nil
	}
	if err := s.Fault(op, i.table, i.number); err != nil {
		return fmt.Errorf("%s table %s/%d: %w", op, i.table, i.number, err)
	}
	return nil
}

// Open is state.Opener's.
func (s *Stores) Open(table string, number int32) (state.Store, error) {
	i := id{table, number}
	if err := s.fault("open", i); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return nil, fmt.Errorf("open table %s/%d: %w", table, number, state.ErrClosed)
	}
	if s.open[i] != nil {
		return nil, fmt.Errorf("open table %s/%d: %w", table, number, state.ErrInUse)
	}
	x := &store{of: s, id: i}
	v := s.disk[i]
	if v == nil {
		v = &version{}
	}
	x.now.Store(v)
	x.metrics.Durable = v.offset
	s.open[i] = x
	return x, nil
}

// Crash is a SIGKILL: open stores are closed, and all are as they were when last flushed.
func (s *Stores) Crash() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.open {
		x.shut.Store(true)
	}
	clear(s.open)
}

// SetAside is state.Opener's.
func (s *Stores) SetAside(table string, number int32) (string, error) {
	i := id{table, number}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[i] != nil {
		return "", fmt.Errorf("set aside table %s/%d: %w", table, number, state.ErrInUse)
	}
	if s.disk[i] == nil {
		return "", nil
	}
	delete(s.disk, i)
	s.aside++
	return fmt.Sprintf("%s/%d.corrupt-%d", table, number, s.aside), nil
}

// Destroy is state.Opener's.
func (s *Stores) Destroy(table string, number int32) error {
	i := id{table, number}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[i] != nil {
		return fmt.Errorf("destroy table %s/%d: %w", table, number, state.ErrInUse)
	}
	delete(s.disk, i)
	return nil
}

// Close is state.Opener's.
func (s *Stores) Close() error {
	s.mu.Lock()
	s.shut = true
	var list []*store
	for _, x := range s.open {
		list = append(list, x)
	}
	s.mu.Unlock()
	for _, x := range list {
		_ = x.Close()
	}
	return nil
}

func (x *store) wrap(action string, err error) error {
	return fmt.Errorf("%s table %s/%d: %w", action, x.id.table, x.id.number, err)
}

func (x *store) broke(err error) error {
	if err != nil {
		x.err.CompareAndSwap(nil, &err)
	}
	return err
}

func (x *store) Err() error {
	if err := x.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (x *store) Offset() int64  { return x.now.Load().offset }
func (x *store) Origin() string { return x.now.Load().origin }

func expiryKey(at int64, key string) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(at))) + key
}

func (x *store) Apply(changes []state.Change, next int64) error {
	v := *x.now.Load()
	state.CheckApply(changes, v.offset, next)
	if err := x.Err(); err != nil {
		return x.wrap("apply to", err)
	}
	if x.shut.Load() {
		return x.wrap("apply to", state.ErrClosed)
	}
	if len(changes) == 0 && next == v.offset {
		return nil
	}
	if err := x.of.fault("apply", x.id); err != nil {
		return x.broke(err)
	}
	v.offset = next
	var bytes uint64
	for _, c := range changes {
		if c.Expires < 0 {
			panic("BUG: state: a change that expires before the epoch")
		}
		bytes += uint64(len(c.Key) + len(c.Value))
		key := string(c.Key)
		if old := v.data.find(key); old != nil && old.expires != 0 {
			v.expiry = v.expiry.without(expiryKey(old.expires, key))
		}
		if c.Value == nil {
			v.data = v.data.without(key)
			continue
		}
		v.data = v.data.with(key, c.Value, c.Expires)
		if c.Expires != 0 {
			v.expiry = v.expiry.with(expiryKey(c.Expires, key), []byte{}, 0)
		}
	}
	x.now.Store(&v)
	x.count(func(m *state.Metrics) {
		m.Batches++
		m.Changes += uint64(len(changes))
		m.ChangedBytes += bytes
	})
	return nil
}

func (x *store) count(f func(m *state.Metrics)) {
	x.mu.Lock()
	f(&x.metrics)
	x.mu.Unlock()
}

func (x *store) Flush() error {
	if err := x.Err(); err != nil {
		return x.wrap("flush", err)
	}
	if x.shut.Load() {
		return x.wrap("flush", state.ErrClosed)
	}
	if err := x.of.fault("flush", x.id); err != nil {
		return x.broke(err)
	}
	v := x.now.Load()
	if v.offset > 0 { // an origin alone is kept by neither
		x.of.mu.Lock()
		x.of.disk[x.id] = v
		x.of.mu.Unlock()
	}
	x.count(func(m *state.Metrics) { m.Flushes, m.Durable = m.Flushes+1, v.offset })
	return nil
}

func (x *store) Clear(origin string) error {
	if x.shut.Load() {
		return x.wrap("clear", state.ErrClosed)
	}
	if v := x.now.Load(); v.offset != 0 || x.Err() != nil {
		x.of.mu.Lock()
		delete(x.of.disk, x.id)
		x.of.mu.Unlock()
	}
	x.now.Store(&version{origin: origin})
	x.err.Store(nil)
	x.count(func(m *state.Metrics) { m.Durable = 0 })
	return nil
}

func (x *store) Close() error {
	if x.shut.Load() {
		return nil
	}
	err := x.Flush()
	if !x.shut.Swap(true) {
		x.of.mu.Lock()
		if x.of.open[x.id] == x {
			delete(x.of.open, x.id)
		}
		x.of.mu.Unlock()
	}
	return err
}

func (x *store) Verify() error {
	if x.shut.Load() {
		return x.wrap("verify", state.ErrClosed)
	}
	return x.of.fault("read", x.id)
}

func (x *store) Metrics() state.Metrics {
	v := x.now.Load()
	x.mu.Lock()
	defer x.mu.Unlock()
	m := x.metrics
	m.Offset, m.Keys = v.offset, v.data.len()
	return m
}

func (x *store) Get(key []byte) ([]byte, error)           { return x.get(x.now.Load(), key) }
func (x *store) MultiGet(keys [][]byte) ([][]byte, error) { return x.multiGet(x.now.Load(), keys) }
func (x *store) Scan(r state.Range) state.Iterator        { return x.scan(x.now.Load(), r) }
func (x *store) SizeEstimate() int64                      { return x.now.Load().data.len() }

func (x *store) View() (state.View, error) {
	if x.shut.Load() {
		return nil, x.wrap("view", state.ErrClosed)
	}
	return &view{store: x, version: x.now.Load()}, nil
}

func (x *store) reading(keys int) error {
	if x.shut.Load() {
		return x.wrap("read", state.ErrClosed)
	}
	x.count(func(m *state.Metrics) { m.Reads, m.ReadKeys = m.Reads+1, m.ReadKeys+uint64(keys) })
	return x.of.fault("read", x.id)
}

func (x *store) get(v *version, key []byte) ([]byte, error) {
	if err := x.reading(1); err != nil {
		return nil, err
	}
	return v.data.find(string(key)).get(), nil
}

func (x *store) multiGet(v *version, keys [][]byte) ([][]byte, error) {
	if err := x.reading(len(keys)); err != nil {
		return nil, err
	}
	values := make([][]byte, len(keys))
	for i, k := range keys {
		values[i] = v.data.find(string(k)).get()
	}
	return values, nil
}

func (x *store) scan(v *version, r state.Range) state.Iterator {
	if x.shut.Load() {
		return &iterator{err: x.wrap("scan", state.ErrClosed)}
	}
	x.count(func(m *state.Metrics) { m.Scans++ })
	if err := x.of.fault("read", x.id); err != nil {
		return &iterator{err: err}
	}
	from := max(string(r.Prefix), string(r.From))
	return &iterator{store: x, prefix: string(r.Prefix), walk: v.data.from(from)}
}

func (x *store) Expired(now int64, limit int) ([]state.Expiry, error) {
	if x.shut.Load() {
		return nil, x.wrap("read expired of", state.ErrClosed)
	}
	if err := x.of.fault("read", x.id); err != nil {
		return nil, err
	}
	var due []state.Expiry
	for w := x.now.Load().expiry.from(""); len(due) < limit; {
		n := w.next()
		if n == nil {
			break
		}
		at := int64(binary.BigEndian.Uint64([]byte(n.key[:8])))
		if at > now {
			break
		}
		due = append(due, state.Expiry{Key: []byte(n.key[8:]), At: at})
	}
	return due, nil
}

type view struct {
	store   *store
	version *version
	shut    atomic.Bool
}

func (v *view) Offset() int64       { return v.version.offset }
func (v *view) SizeEstimate() int64 { return v.version.data.len() }
func (v *view) Close()              { v.shut.Store(true) }

func (v *view) closed() error {
	if v.shut.Load() {
		return v.store.wrap("read", state.ErrClosed)
	}
	return nil
}

func (v *view) Get(key []byte) ([]byte, error) {
	if err := v.closed(); err != nil {
		return nil, err
	}
	return v.store.get(v.version, key)
}

func (v *view) MultiGet(keys [][]byte) ([][]byte, error) {
	if err := v.closed(); err != nil {
		return nil, err
	}
	return v.store.multiGet(v.version, keys)
}

func (v *view) Scan(r state.Range) state.Iterator {
	if err := v.closed(); err != nil {
		return &iterator{err: err}
	}
	return v.store.scan(v.version, r)
}

type iterator struct {
	store  *store
	prefix string
	walk   walk
	at     *node
	err    error
}

func (it *iterator) Next() bool {
	if it.err != nil {
		return false
	}
	if it.store.shut.Load() {
		it.err = it.store.wrap("scan", state.ErrClosed)
		return false
	}
	it.at = it.walk.next()
	if it.at == nil || len(it.at.key) < len(it.prefix) || it.at.key[:len(it.prefix)] != it.prefix {
		it.walk = nil
		return false
	}
	it.store.count(func(m *state.Metrics) { m.ScanEntries++ })
	return true
}

func (it *iterator) Key() []byte   { return []byte(it.at.key) }
func (it *iterator) Value() []byte { return it.at.value }

func (it *iterator) Close() error {
	it.walk = nil
	return it.err
}
