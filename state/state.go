package state

import (
	"errors"
	"fmt"
)

var (
	// ErrCorrupt says that a store cannot be trusted: a checksum, a missing or garbled file, an unknown format.
	// Set it aside (Dir.SetAside) and restore it from the changelog.
	ErrCorrupt = errors.New("store is corrupt")
	// ErrDisk says that the disk is full, read-only or fails. The store takes no more changes until it is opened again.
	ErrDisk = errors.New("store cannot write")
	// ErrClosed says that the store (or the view, or its directory) was closed.
	ErrClosed = errors.New("store is closed")
	// ErrInUse says that the store or the directory is open already, here or in another process.
	ErrInUse = errors.New("store is in use")
)

// Change is one table write. A nil Value deletes; an empty one does not.
type Change struct {
	Key   []byte
	Value []byte
	// Expires is when the entry is due for deletion, in milliseconds since the Unix epoch; 0 is never. Nothing is
	// deleted by itself: the owner asks for Expired entries and deletes them, through the changelog.
	// Round it up (to 1/64 of the lifetime, say), so that a key that is written often has few entries in the index.
	Expires int64
}

// CheckApply panics when an Apply would break a store's invariant: the caller has a bug. For implementations of Store.
func CheckApply(changes []Change, at, next int64) {
	if next < at || next == at && len(changes) > 0 {
		panic(fmt.Sprintf("BUG: state: %d changes move offset %d to %d", len(changes), at, next))
	}
}

// Expiry names an entry that is due.
type Expiry struct {
	Key []byte
	At  int64 // its Change's Expires
}

// Range selects the entries whose key starts with Prefix and is not less than From; nil selects all.
type Range struct {
	Prefix []byte
	From   []byte
}

// Reader is what tables are read through: a Store, a View, a Staged. Slices it gives out stay valid and are not to be modified.
type Reader interface {
	// Get is the value of a key; nil when there is none, and empty but not nil for an empty value.
	Get(key []byte) ([]byte, error)
	// MultiGet is Get for many keys at once, much cheaper than many Gets. Keys may repeat.
	MultiGet(keys [][]byte) ([][]byte, error)
	// Scan goes through a range in key order. It sees the moment it was called at, whatever is written later.
	Scan(r Range) Iterator
	// SizeEstimate is about how many entries there are; never negative, and 0 only when there are none.
	SizeEstimate() int64
}

// Iterator goes through entries in key order:
//
//	for it.Next() {
//		use(it.Key(), it.Value())
//	}
//	err := it.Close()
type Iterator interface {
	// Next goes to the next entry; false at the end and on failure.
	Next() bool
	Key() []byte
	Value() []byte
	// Close releases the iterator and says why Next stopped; nil at the end. It may be called early and twice.
	Close() error
}

// View is a store at one moment, for any number of goroutines. Close it soon: it keeps old versions alive.
type View interface {
	Reader
	Offset() int64
	Close()
}

// Store is a committed prefix of the changelog of one partition of one table.
type Store interface {
	Reader
	// Offset is the offset of the next changelog record to read: all before it are applied, none from it on.
	Offset() int64
	// Origin names the changelog the store was made from, as given to Clear; empty for a new store. An offset means
	// nothing in another changelog (a topic that was deleted and created again has another ID).
	Origin() string
	// Apply makes changes visible and moves Offset to next, atomically. Of several changes of one key the last counts.
	// On an error nothing of them is applied. next may not be less than Offset, and with changes it must be more: a change
	// stands for a record.
	Apply(changes []Change, next int64) error
	// Expired lists entries whose time is at or before now, oldest first, at most limit.
	Expired(now int64, limit int) ([]Expiry, error)
	// View is the store as it is now.
	View() (View, error)
	// Clear empties the store: offset 0, of the given origin.
	Clear(origin string) error
	// Flush puts on disk what was applied so far; it returns when that is done.
	Flush() error
	// Verify reads everything and compares checksums; ErrCorrupt when something is wrong. What is in the block cache is taken
	// from there, so it tells most right after Open.
	Verify() error
	// Err is why the store takes no more changes (ErrDisk, ErrCorrupt); nil while it does. A flush in the background may fail
	// at any time.
	Err() error
	Metrics() Metrics
	// Close flushes and closes. Reads under way end first; later ones get ErrClosed. The store is closed also when
	// the flush failed; then the changes since the last flush are lost, and their offsets with them.
	Close() error
}

// Opener gives out the stores of a process: a Dir, or memory (state/mem).
type Opener interface {
	// Open opens the store of a partition, or makes an empty one. ErrInUse if it is open.
	Open(table string, partition int32) (Store, error)
	// SetAside moves a closed, corrupt store out of the way and says where it is now; empty if there was nothing.
	SetAside(table string, partition int32) (string, error)
	// Destroy deletes a closed store.
	Destroy(table string, partition int32) error
	// Close closes all stores.
	Close() error
}

// Metrics are counters and sizes of one store. Counters go up from its Open.
type Metrics struct {
	Reads, ReadKeys    uint64 // Get and MultiGet calls; keys asked for in them
	Scans, ScanEntries uint64 // Scan calls; entries read for them
	Batches            uint64 // Apply calls that succeeded
	Changes            uint64 // changes in them
	ChangedBytes       uint64 // keys and values of those
	Flushes            uint64 // flushes we asked for; RocksDB makes others when a write buffer is full
	Offset, Durable    int64  // next changelog offset: visible; at least on disk
	Keys               int64  // SizeEstimate
	DiskBytes          int64  // live table files
	MemtableBytes      int64  // applied, not yet on disk
	TableReaderBytes   int64  // indexes and filters outside of the block cache
	CompactionBytes    int64  // compaction work left
	Level0Files        int64
	Delayed            bool // RocksDB slows writes down until compaction has caught up
}
