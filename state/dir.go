package state

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/linxGnu/grocksdb"
)

// A Dir is the state directory of a process: its stores, and the memory they share. Safe for concurrent use.
type Dir struct {
	opts   Options
	tables map[string]tableOptions
	log    *slog.Logger
	lock   *os.File

	cache, compressed *grocksdb.Cache            // shared by all stores
	own               map[string]*grocksdb.Cache // of tables whose options ask for one
	scratches         scratches

	memory  atomic.Int64       // bytes in memtables of all stores
	flusher chan chan struct{} // asks for a round; the channel in it, if any, is closed when that is done
	quit    chan struct{}
	joined  sync.WaitGroup

	gate *gate // of Open, SetAside and Destroy

	mu   sync.Mutex        // held for map access only
	open map[id]*partition // nil while it opens
}

var _ Opener = (*Dir)(nil)

// id names a store.
type id struct {
	table  string
	number int32
}

// OpenDir opens a state directory, or makes one. ErrInUse when another process has it.
func OpenDir(opts Options) (*Dir, error) {
	opts, tables, err := opts.complete()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, diskError("make the state directory", err)
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	d := &Dir{
		opts: opts, tables: tables, log: opts.Log, lock: lock,
		cache: grocksdb.NewLRUCache(uint64(opts.BlockCacheSize)),
		own:   map[string]*grocksdb.Cache{}, open: map[id]*partition{},
		flusher: make(chan chan struct{}), quit: make(chan struct{}), gate: newGate(),
	}
	if opts.BlockCacheCompressedSize > 0 {
		d.compressed = grocksdb.NewLRUCache(uint64(opts.BlockCacheCompressedSize))
	}
	for table, t := range tables {
		if t.blockCacheSize > 0 {
			d.own[table] = grocksdb.NewLRUCache(uint64(t.blockCacheSize))
		}
	}
	backgroundThreads()
	d.removeLeftovers()
	d.joined.Add(1)
	go d.flush()
	return d, nil
}

// backgroundThreads sizes RocksDB's thread pools, which the whole process shares.
var backgroundThreads = sync.OnceFunc(func() {
	env := grocksdb.NewDefaultEnv()
	defer env.Destroy()
	env.SetHighPriorityBackgroundThreads(2) // flushes: they wait for the disk
	env.SetLowPriorityBackgroundThreads(max(1, min(4, runtime.GOMAXPROCS(0)/2)))
})

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, diskError("lock the state directory", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the state directory %s: %w", dir, ErrInUse)
		}
		return nil, diskError("lock the state directory", err)
	}
	return f, nil
}

// Suffixes of what lies beside a store.
const (
	suffixGone    = ".gone"     // deleted, as soon as somebody gets to it
	suffixCorrupt = ".corrupt-" // set aside; a time follows
)

// removeLeftovers deletes what a crash in the middle of a deletion left.
func (d *Dir) removeLeftovers() {
	names, _ := filepath.Glob(filepath.Join(d.opts.Dir, "*", "*"+suffixGone))
	for _, n := range names {
		_ = os.RemoveAll(n)
	}
}

// path is the folder of a store. Table names come from manifests and may hold anything.
func (d *Dir) path(i id) string {
	table := url.PathEscape(i.table)
	if strings.HasPrefix(table, ".") {
		table = "%2E" + table[1:]
	}
	return filepath.Join(d.opts.Dir, table, strconv.Itoa(int(i.number)))
}

// reserve takes the name of a store that is not open, and keeps the directory from being closed.
func (d *Dir) reserve(i id) error {
	if !d.gate.enter() {
		return ErrClosed
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.open[i]; ok {
		d.gate.leave()
		return ErrInUse
	}
	d.open[i] = nil
	return nil
}

func (d *Dir) release(i id) {
	d.mu.Lock()
	delete(d.open, i)
	d.mu.Unlock()
	d.gate.leave()
}

func (d *Dir) closed(p *partition) {
	d.mu.Lock()
	if d.open[p.id] == p {
		delete(d.open, p.id)
	}
	d.mu.Unlock()
}

// stores are the open ones.
func (d *Dir) stores() []*partition {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*partition, 0, len(d.open))
	for _, p := range d.open {
		if p != nil {
			list = append(list, p)
		}
	}
	return list
}

// Open opens the store of a partition, or makes an empty one. An error is ErrCorrupt (set it aside and open again), ErrDisk,
// ErrInUse or ErrClosed.
func (d *Dir) Open(table string, number int32) (Store, error) {
	i := id{table, number}
	fail := func(err error) error { return fmt.Errorf("open table %s/%d: %w", table, number, err) }
	if table == "" || number < 0 {
		return nil, fail(errors.New("no such partition"))
	}
	if err := d.reserve(i); err != nil {
		return nil, fail(err)
	}
	path := d.path(i)
	h, at, err := d.openDatabase(i, path)
	if err != nil {
		d.release(i)
		return nil, fail(err)
	}
	p := &partition{dir: d, id: i, path: path}
	p.handle.Store(h)
	p.offset.Store(at.offset)
	p.durable.Store(at.offset)
	p.origin.Store(&at.origin)
	d.mu.Lock()
	d.open[i] = p
	d.mu.Unlock()
	d.gate.leave()
	return p, nil
}

// openDatabase opens the database at path, checks that it is ours, and reads where it is.
func (d *Dir) openDatabase(i id, path string) (*handle, position, error) {
	create, err := prepare(path)
	if err != nil {
		return nil, position{}, err
	}
	opts, err := d.rocksOptions(i.table, create)
	if err != nil {
		return nil, position{}, err
	}
	defer opts.Destroy()
	h, err := openHandle(path, opts)
	if err != nil {
		return nil, position{}, err
	}
	at, err := d.readPosition(h)
	if err != nil {
		h.close()
		return nil, position{}, err
	}
	return h, at, nil
}

// prepare tells whether a database must be made at path. RocksDB would make one over the remains of another, too.
func prepare(path string) (create bool, err error) {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, diskError("make a store", os.MkdirAll(path, 0o755))
	case errors.Is(err, syscall.ENOTDIR):
		return false, fmt.Errorf("%w: %s is not a folder", ErrCorrupt, path)
	case err != nil:
		return false, diskError("read a store's folder", err)
	}
	tables := false
	for _, e := range entries {
		if e.Name() == "CURRENT" {
			return false, nil
		}
		tables = tables || strings.HasSuffix(e.Name(), ".sst")
	}
	if tables {
		return false, fmt.Errorf("%w: there are tables but no CURRENT file in %s", ErrCorrupt, path)
	}
	// A creation that was cut off.
	if err := remove(path); err != nil {
		return false, err
	}
	return true, diskError("make a store", os.MkdirAll(path, 0o755))
}

// remove deletes a folder so that no part of it is ever taken for a store.
func remove(path string) error {
	gone := path + suffixGone
	if err := os.RemoveAll(gone); err != nil {
		return diskError("delete a store", err)
	}
	if err := os.Rename(path, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError("delete a store", err)
	}
	return diskError("delete a store", os.RemoveAll(gone))
}

func (d *Dir) readPosition(h *handle) (position, error) {
	x := d.scratches.get()
	defer d.scratches.put(x)
	raw, err := h.get(x, h.ro, positionKey)
	if err != nil {
		return position{}, err
	}
	if raw != nil {
		return decodePosition(raw)
	}
	// Nothing was flushed yet, or it is not our database.
	it, err := h.newIterator(nil, nil, nil, false)
	if err != nil {
		return position{}, err
	}
	defer h.freeIterator(it)
	slab, _, err := h.read(x, it, 1, 1)
	if err != nil {
		return position{}, err
	}
	if len(slab) > 0 {
		return position{}, fmt.Errorf("%w: entries without a position", ErrCorrupt)
	}
	return position{}, nil
}

// SetAside moves the closed, corrupt store of a partition out of the way and says where it is now; empty if there was none.
func (d *Dir) SetAside(table string, number int32) (string, error) {
	i := id{table, number}
	fail := func(err error) error { return fmt.Errorf("set aside table %s/%d: %w", table, number, err) }
	if err := d.reserve(i); err != nil {
		return "", fail(err)
	}
	defer d.release(i)
	path := d.path(i)
	// One copy is enough to look at; a store that goes bad again and again must not fill the disk.
	old, _ := filepath.Glob(globQuote(path) + suffixCorrupt + "*")
	for _, o := range old {
		_ = os.RemoveAll(o)
	}
	aside := path + suffixCorrupt + time.Now().UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fail(diskError("rename", err))
	}
	return aside, nil
}

var globQuote = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace

// Destroy deletes the closed store of a partition.
func (d *Dir) Destroy(table string, number int32) error {
	i := id{table, number}
	if err := d.reserve(i); err != nil {
		return fmt.Errorf("destroy table %s/%d: %w", table, number, err)
	}
	defer d.release(i)
	if err := remove(d.path(i)); err != nil {
		return fmt.Errorf("destroy table %s/%d: %w", table, number, err)
	}
	return nil
}

// Partitions lists what of a table is on disk, open or not, in order.
func (d *Dir) Partitions(table string) ([]int32, error) {
	entries, err := os.ReadDir(filepath.Dir(d.path(id{table: table})))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, diskError("list the stores of table "+table, err)
	}
	var list []int32
	for _, e := range entries {
		if n, err := strconv.ParseInt(e.Name(), 10, 32); err == nil && n >= 0 {
			list = append(list, int32(n))
		}
	}
	slices.Sort(list)
	return list, nil
}

// Close closes all stores, then the directory. Idempotent.
func (d *Dir) Close() error {
	if !d.gate.shut() {
		return nil
	}
	close(d.quit)
	d.joined.Wait()
	var errs []error
	list := d.stores()
	var mu sync.Mutex
	var all sync.WaitGroup
	turns := make(chan struct{}, 8) // a flush is mostly waiting
	for _, p := range list {
		all.Add(1)
		turns <- struct{}{}
		go func() {
			defer all.Done()
			if err := p.Close(); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			<-turns
		}()
	}
	all.Wait()
	d.scratches.close()
	d.cache.Destroy()
	if d.compressed != nil {
		d.compressed.Destroy()
	}
	for _, c := range d.own {
		c.Destroy()
	}
	d.lock.Close()
	return errors.Join(errs...)
}

// Root is the directory.
func (d *Dir) Root() string { return d.opts.Dir }

// Memory is what the stores take outside of Go right now.
type Memory struct {
	BlockCache, BlockCacheSize     int64
	WriteBuffers, WriteBuffersSize int64
}

// Memory is what all stores of the directory use together.
func (d *Dir) Memory() Memory {
	m := Memory{BlockCacheSize: d.opts.BlockCacheSize, WriteBuffersSize: d.opts.WriteBuffersSize, WriteBuffers: d.memory.Load()}
	if d.gate.enter() {
		defer d.gate.leave()
		m.BlockCache = int64(d.cache.GetUsage())
	}
	return m
}
