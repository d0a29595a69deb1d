package state

// #include "shim.h"
// #cgo noescape kst_get
// #cgo nocallback kst_get
// #cgo noescape kst_multi_get
// #cgo nocallback kst_multi_get
// #cgo noescape kst_write
// #cgo nocallback kst_write
// #cgo noescape kst_get_status
// #cgo nocallback kst_get_status
// #cgo noescape kst_iter_new
// #cgo nocallback kst_iter_new
// #cgo noescape kst_iter_read
// #cgo nocallback kst_iter_read
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"sync"
	"unsafe"

	"github.com/linxGnu/grocksdb"
)

// A handle is one open database. Its methods may be called by anyone at any time; each is at most one crossing.
type handle struct {
	db   *grocksdb.DB
	cf   *grocksdb.ColumnFamilyHandle
	c    *C.rocksdb_t
	ccf  *C.rocksdb_column_family_handle_t
	ro   *C.rocksdb_readoptions_t
	wo   *C.rocksdb_writeoptions_t
	gate *gate
	gone chan struct{} // closed when close is done

	mu        sync.Mutex               // held for map access only
	iterators map[*iterator]*cIterator // an iterator's own goroutine may clear its field at any time
	views     map[*view]struct{}
}

// pointer is the C object in a grocksdb value. grocksdb does not give it out, and we need it for calls that do more at once;
// its version is pinned.
func pointer(v any) unsafe.Pointer {
	return reflect.ValueOf(v).Elem().FieldByName("c").UnsafePointer()
}

// openHandle opens or creates a database. The options are free to go afterwards.
func openHandle(path string, opts *grocksdb.Options) (*handle, error) {
	db, cfs, err := grocksdb.OpenDbColumnFamilies(opts, path, []string{"default"}, []*grocksdb.Options{opts})
	if err != nil {
		return nil, classify(err.Error())
	}
	h := &handle{
		db: db, cf: cfs[0],
		c:    (*C.rocksdb_t)(pointer(db)),
		ccf:  (*C.rocksdb_column_family_handle_t)(pointer(cfs[0])),
		ro:   C.kst_readoptions(nil),
		wo:   C.rocksdb_writeoptions_create(),
		gate: newGate(), gone: make(chan struct{}), iterators: map[*iterator]*cIterator{}, views: map[*view]struct{}{},
	}
	C.rocksdb_writeoptions_disable_WAL(h.wo, 1)
	return h, nil
}

// close waits for the calls inside, then frees everything, iterators and views included. Idempotent.
func (h *handle) close() {
	if !h.gate.shut() {
		<-h.gone
		return
	}
	defer close(h.gone)
	for _, c := range h.iterators { // nobody else gets here any more: everyone passes the gate first
		C.kst_iter_free(c)
	}
	for v := range h.views {
		h.freeSnapshot(v.ro, v.snapshot)
	}
	C.rocksdb_readoptions_destroy(h.ro)
	C.rocksdb_writeoptions_destroy(h.wo)
	h.cf.Destroy()
	h.db.CancelAllBackgroundWork(true)
	h.db.Close()
}

// fail takes over a C error text.
func fail(cErr *C.char) error {
	text := C.GoString(cErr)
	C.free(unsafe.Pointer(cErr))
	return classify(text)
}

func chars(b []byte) *C.char { return (*C.char)(unsafe.Pointer(unsafe.SliceData(b))) }

// write applies a WriteBatch.
func (h *handle) write(rep []byte) error {
	var cErr *C.char
	C.kst_write(h.c, h.wo, chars(rep), C.size_t(len(rep)), &cErr)
	if cErr != nil {
		return fail(cErr)
	}
	return nil
}

// status is what the bookkeeping needs to know of a database after each write.
type status struct {
	memory     int64 // all memtables
	active     int64 // the one being written
	immutable  int64 // number of those waiting for or under flush
	background int64 // errors so far
}

func (h *handle) status() status {
	var s C.kst_status
	C.kst_get_status(h.c, &s)
	return status{memory: int64(s.memory), active: int64(s.active), immutable: int64(s.immutable), background: int64(s.background)}
}

// A scratch is the memory of one read: C's for results, Go's for keys.
type scratch struct {
	c    *C.kst_scratch
	keys []byte
	ends []uint32
}

// scratches are kept for the next read, as many as there were readers at once.
type scratches struct {
	mu     sync.Mutex
	free   []*scratch
	closed bool
}

func (s *scratches) get() *scratch {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		x := s.free[n-1]
		s.free = s.free[:n-1]
		return x
	}
	return &scratch{c: (*C.kst_scratch)(C.calloc(1, C.sizeof_kst_scratch))}
}

const scratchBytesMax = 4 << 20

func (s *scratches) put(x *scratch) {
	s.mu.Lock()
	keep := !s.closed && len(s.free) < 16 && int64(x.c.cap) <= scratchBytesMax && cap(x.keys) <= scratchBytesMax
	if keep {
		s.free = append(s.free, x)
	}
	s.mu.Unlock()
	if !keep {
		C.kst_scratch_free(x.c)
	}
}

func (s *scratches) close() {
	s.mu.Lock()
	free := s.free
	s.free, s.closed = nil, true
	s.mu.Unlock()
	for _, x := range free {
		C.kst_scratch_free(x.c)
	}
}

// out copies the results to Go's memory, in one slab.
func (x *scratch) out() []byte {
	slab := make([]byte, x.c.len)
	copy(slab, unsafe.Slice((*byte)(unsafe.Pointer(x.c.out)), x.c.len))
	return slab
}

// get reads one key as it is on disk; nil when there is none.
func (h *handle) get(x *scratch, ro *cReadOptions, key []byte) ([]byte, error) {
	var cErr *C.char
	switch C.kst_get(h.c, ro, chars(key), C.size_t(len(key)), x.c, &cErr) {
	case 1:
		return x.out(), nil
	case 0:
		return nil, nil
	}
	return nil, fail(cErr)
}

// multiGet reads the data of keys; it hands value i, as it is on disk, to each.
func (h *handle) multiGet(x *scratch, ro *cReadOptions, keys [][]byte, each func(i int, b []byte) error) error {
	if len(keys) == 0 {
		return nil
	}
	x.keys, x.ends = x.keys[:0], x.ends[:0]
	for _, k := range keys {
		x.keys = append(x.keys, spaceData)
		x.keys = append(x.keys, k...)
		if len(x.keys) > math.MaxUint32 {
			return fmt.Errorf("read of %d keys: more than 4 GiB of them", len(keys))
		}
		x.ends = append(x.ends, uint32(len(x.keys)))
	}
	var cErr *C.char
	if C.kst_multi_get(h.c, ro, h.ccf, chars(x.keys), (*C.uint32_t)(&x.ends[0]), C.size_t(len(keys)), x.c, &cErr) < 0 {
		return fail(cErr)
	}
	slab, at := x.out(), 0
	for i, n := range x.ends {
		if n == 0 {
			continue
		}
		end := at + int(n-1)
		if err := each(i, slab[at:end:end]); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// C types under names that files without cgo can use.
type (
	cIterator    = C.kst_iter
	cReadOptions = C.rocksdb_readoptions_t
	cSnapshot    = C.rocksdb_snapshot_t
)

// newIterator is an iterator over raw keys from lower to before upper; empty is no bound. Bulk is for reading everything
// once: it leaves the block cache alone.
func (h *handle) newIterator(snapshot *cSnapshot, lower, upper []byte, bulk bool) (*cIterator, error) {
	cache, readahead := C.int(1), C.size_t(0)
	if bulk {
		cache, readahead = 0, 1<<20
	}
	it := C.kst_iter_new(h.c, snapshot, cache, readahead, chars(lower), C.size_t(len(lower)), chars(upper), C.size_t(len(upper)))
	if it == nil {
		return nil, fmt.Errorf("scan: %w", &rocksError{text: "out of memory"})
	}
	return it, nil
}

// read is the next page: at most entries entries, and not many more bytes than bytes.
func (h *handle) read(x *scratch, it *cIterator, entries, bytes int) (slab []byte, more bool, err error) {
	var cErr *C.char
	var cMore C.int
	if C.kst_iter_read(it, C.size_t(entries), C.size_t(bytes), x.c, &cMore, &cErr) < 0 {
		return nil, false, fail(cErr)
	}
	return x.out(), cMore != 0, nil
}

// entry takes the first entry off a page.
func entry(slab []byte) (key, value, rest []byte) {
	k := int(binary.NativeEndian.Uint32(slab))
	v := 8 + k + int(binary.NativeEndian.Uint32(slab[4:]))
	return slab[8 : 8+k : 8+k], slab[8+k : v : v], slab[v:]
}

func (h *handle) freeIterator(it *cIterator) { C.kst_iter_free(it) }

// snapshot keeps the database as it is now, for reads with the options that come with it.
func (h *handle) snapshot() (*cReadOptions, *cSnapshot) {
	s := C.rocksdb_create_snapshot(h.c)
	return C.kst_readoptions(s), s
}

func (h *handle) freeSnapshot(ro *cReadOptions, s *cSnapshot) {
	C.rocksdb_readoptions_destroy(ro)
	C.rocksdb_release_snapshot(h.c, s)
}
