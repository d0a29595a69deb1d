package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// tables is what this process has of the app's tables: for each partition a store, and whether it is active here (its
// changes are made here), a copy of one that is active elsewhere (a standby, a global table's), or not here at all.
//
// Every partition that is here has a keeper (keeper.go), a goroutine that opens the store, restores it from the changelog,
// follows it, tries again what failed, and closes it. The others only say what they want: Acquire and Release for active
// partitions, Follow for standbys. What a partition leaves on disk when it goes elsewhere is deleted in time (cleanup.go).
//
// Invariant: a store is changed by its keeper until the partition is active and ready, and by the owner of the
// partition's Staged from then until Release or Failed.
type tables struct {
	stores  state.Opener
	kafka   changelogs
	group   string
	plan    []plan.Table
	log     *slog.Logger
	onReady func(number int32) // a partition number, or anyNumber, may have become ready; not called while a lock is held
	tuning  restoreTuning

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	joined sync.WaitGroup
	turns  chan struct{} // bounds how many chunks are decoded and applied at once
	urgent precedence

	parts  atomic.Pointer[[][]*tablePart] // by table and number; nil before Start
	faults []tableFaults                  // by table
	read   []atomic.Int64                 // by table; keys that code asked for and stores looked up

	mu sync.Mutex // guards what is wanted of every partition: tablePart.wants and keeping
}

// tableFaults are the reads of a table's copies that failed because the store is broken.
type tableFaults struct {
	count atomic.Uint64
	last  atomic.Pointer[error]
}

// changelogs is what tables need of Kafka.
type changelogs interface {
	StableOffsets(ctx context.Context, group string, ps []record.Partition) (map[record.Partition]broker.Position, error)
	Bounds(ctx context.Context, ps ...record.Partition) (map[record.Partition]broker.Bounds, error)
	Describe(ctx context.Context, topics ...string) (map[string]broker.TopicInfo, error)
	Follow(p record.Partition, topic broker.TopicID, from int64) changelog
}

// changelog is one partition of a changelog, being read: broker.Stream.
type changelog interface {
	Next(ctx context.Context) (broker.Chunk, error)
	State() broker.StreamState
	Close()
}

// brokerLogs is changelogs on Kafka.
type brokerLogs struct {
	*broker.Admin
	tail *broker.Tail
}

func (b brokerLogs) Follow(p record.Partition, topic broker.TopicID, from int64) changelog {
	return b.tail.Follow(p, topic, from)
}

// restoreTuning is what tests change.
type restoreTuning struct {
	stalledAfter time.Duration // without progress, or an answer, a partition is read anew
	reportEvery  time.Duration // progress in the log
	pause        time.Duration // after the first failure; doubled after each, up to pauseMax
	pauseMax     time.Duration
}

var defaultTuning = restoreTuning{stalledAfter: 30 * time.Second, reportEvery: 5 * time.Second, pause: time.Second, pauseMax: 30 * time.Second}

// newTables makes the tables of a plan. Nothing is here before Start. The stores and the connections stay the caller's.
func newTables(stores state.Opener, kafka changelogs, group string, p []plan.Table, log *slog.Logger, onReady func(number int32)) *tables {
	t := &tables{
		stores: stores, kafka: kafka, group: group, plan: p, log: log, onReady: onReady, tuning: defaultTuning,
		turns: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), faults: make([]tableFaults, len(p)),
		read: make([]atomic.Int64, len(p)),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// Start says how many partitions each table has, and begins to follow the global ones. The changelogs must exist.
func (t *tables) Start(partitions []int32) {
	all := make([][]*tablePart, len(t.plan))
	for i := range t.plan {
		for n := range partitions[i] {
			all[i] = append(all[i], newTablePart(t, i, n))
		}
	}
	t.parts.Store(&all)
	t.look()
	t.joined.Go(t.report)
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.plan {
		if t.plan[i].Guest.Global {
			for _, p := range all[i] {
				p.wants.copy = true
				p.wantsChanged()
			}
		}
	}
}

// look finds out how far the stores are that an earlier process left on disk: they make this one a good home (Offsets). What cannot
// be opened is no reason to stop; its keeper will deal with it.
func (t *tables) look() {
	disk, ok := t.stores.(interface{ Partitions(string) ([]int32, error) })
	if !ok {
		return
	}
	for i := range t.plan {
		numbers, err := disk.Partitions(t.plan[i].Name)
		if err != nil {
			t.log.Warn("look for stores of a table", "table", t.plan[i].Name, "err", err)
		}
		for _, n := range numbers {
			p := t.part(i, n)
			if p == nil {
				continue
			}
			t.mu.Lock()
			p.left = time.Now()
			t.mu.Unlock()
			store, err := t.stores.Open(t.plan[i].Name, n)
			if err == nil {
				p.offset.Store(store.Offset())
				err = store.Close()
			}
			if err != nil {
				p.log.Warn("look at the store of a table", "err", err)
			}
		}
	}
}

// part is one partition; nil when there is none such.
func (t *tables) part(table int, number int32) *tablePart {
	all := t.parts.Load()
	if all == nil || table < 0 || table >= len(*all) || number < 0 || int(number) >= len((*all)[table]) {
		return nil
	}
	return (*all)[table][number]
}

func (t *tables) each(do func(p *tablePart)) {
	if all := t.parts.Load(); all != nil {
		for _, parts := range *all {
			for _, p := range parts {
				do(p)
			}
		}
	}
}

// Acquire makes partition number of the tables active here, in the background: onReady and Ready tell when it is. Before
// the end of its changelog is asked for, no transaction may be about to change the group's offsets of the inputs. Each
// Acquire needs its Release. Tables without such a partition are left out.
func (t *tables) Acquire(number int32, tables []int, inputs []record.Partition) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range tables {
		if p := t.part(i, number); p != nil {
			p.wants.active++
			before := len(p.wants.inputs)
			for _, in := range inputs {
				p.wants.inputs[in] = struct{}{}
			}
			if _, staged := p.Store(); staged == nil && len(p.wants.inputs) > before {
				p.interrupt() // to wait for these too
			}
			p.wantsChanged()
		}
	}
}

// Release undoes one Acquire. After the last one of a partition its Staged is dropped with all that is in it, and the
// store is closed in the background, or goes on as a copy. Before that call nobody may be left who commits to it; reads
// that come late get state.ErrClosed.
func (t *tables) Release(number int32, tables []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range tables {
		p := t.part(i, number)
		if p == nil {
			continue
		}
		if p.wants.active--; p.wants.active < 0 {
			panic("BUG: table partition released more often than acquired")
		}
		if p.wants.active == 0 {
			clear(p.wants.inputs)
			p.retire()
			p.wantsChanged()
		}
	}
}

// Failed says that the store of an active partition refused a commit, or a read (Trouble). The partition is not ready any
// more; it is opened again, restored, and told as ready again. As with Release, nobody may be left who commits to it.
func (t *tables) Failed(table int, number int32, err error) {
	p := t.part(table, number)
	if p == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.wants.active > 0 {
		p.now.Store(nil)
		p.fault.Store(&err)
		p.interrupt()
	}
}

// Trouble is which of the tables cannot be trusted any more, although partition number was ready, and why; nil: none. A read
// failed because a store is broken, of the partition or of a copy the batch may read. What was made of such reads is void:
// the owner throws it away, says Failed, and begins again when Ready says so.
func (t *tables) Trouble(number int32, tables []int) (table int, err error) {
	for _, i := range tables {
		if p := t.part(i, number); p != nil {
			if now := p.now.Load(); now != nil && now.staged != nil {
				if err := p.trouble(now); err != nil {
					return i, err
				}
			}
		}
	}
	return 0, nil
}

// Distrust is for an owner that reads its store by itself: it passes on the error of a read, and remembers it for Trouble if it says
// that the store is broken.
func (t *tables) Distrust(table int, number int32, err error) error {
	if p := t.part(table, number); p != nil {
		if now := p.now.Load(); now != nil {
			return p.trust(now, err)
		}
	}
	return err
}

// trouble is Trouble of an active partition.
func (p *tablePart) trouble(now *readable) error {
	if err := now.trouble.Load(); err != nil {
		return *err
	}
	if f := &p.of.faults[p.table]; f.count.Load() != now.faults {
		return errors.New("the copy of another partition was broken: " + (*f.last.Load()).Error()) // not wrapped: this store is well
	}
	return nil
}

// anyNumber stands for every partition number.
const anyNumber int32 = -1

// Ready tells whether partition number of all the tables is active and restored, of those that have one. Of a global table
// every other partition must have been read to its end once.
func (t *tables) Ready(number int32, tables []int) bool {
	if t.parts.Load() == nil {
		return false
	}
	for _, i := range tables {
		p := t.part(i, number)
		if p != nil {
			if now := p.now.Load(); now == nil || now.staged == nil || p.trouble(now) != nil {
				return false
			}
		}
		if t.plan[i].Guest.Global {
			for _, other := range (*t.parts.Load())[i] {
				if other != p && !other.warm.Load() {
					return false
				}
			}
		}
	}
	return true
}

// standby names a partition of a table.
type standby struct {
	table  int
	number int32
}

// Follow says which partitions to keep copies of beside those of global tables: all of them, what was named before is
// not any more. A copy that becomes active needs to read only what it has not read yet.
func (t *tables) Follow(standbys []standby) {
	wanted := map[*tablePart]bool{}
	for _, s := range standbys {
		if p := t.part(s.table, s.number); p != nil {
			wanted[p] = true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.each(func(p *tablePart) {
		if want := wanted[p] || p.of.plan[p.table].Guest.Global; want != p.wants.copy {
			p.wants.copy = want
			if p.wants.active == 0 && !want {
				p.retire()
			}
			p.wantsChanged()
		}
	})
}

// Offsets tells of every store that is or was open here how far it is, by table and number: the warmer, the better a home.
func (t *tables) Offsets() map[int]map[int32]int64 {
	out := map[int]map[int32]int64{}
	t.each(func(p *tablePart) {
		if at := p.offset.Load(); at > 0 {
			if out[p.table] == nil {
				out[p.table] = map[int32]int64{}
			}
			out[p.table][p.number] = at
		}
	})
	return out
}

// Close gives up and closes every partition; ctx bounds the waiting. It is idempotent. The rules of Release hold.
func (t *tables) Close(ctx context.Context) error {
	t.mu.Lock()
	t.each(func(p *tablePart) {
		p.wants.active, p.wants.copy = 0, false
		p.retire()
		p.wantsChanged()
	})
	t.cancel()
	t.mu.Unlock()
	done := make(chan struct{})
	go func() {
		t.joined.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close tables: %w", ctx.Err())
	}
}

// readable is what can be read of a partition at one moment. It is never changed, but for trouble.
type readable struct {
	store   state.Store
	staged  *state.Staged         // of an active, restored partition; else nil
	faults  uint64                // of an active, restored partition: the table's faults at that time
	trouble atomic.Pointer[error] // the first read that failed for a reason that will not pass
}

// tablePart is one partition of one table.
type tablePart struct {
	of        *tables
	table     int
	number    int32
	changelog record.Partition
	log       *slog.Logger

	now    atomic.Pointer[readable] // nil while nothing may be read
	warm   atomic.Bool              // it was read to its end once
	offset atomic.Int64             // of the store, when it was last looked at
	fault  atomic.Pointer[error]    // from Failed, for the keeper

	// wants is guarded by tables.mu.
	wants struct {
		active int // Acquires without their Release
		inputs map[record.Partition]struct{}
		copy   bool // a standby, or of a global table
	}
	keeping bool               // guarded by tables.mu; a keeper runs, or the store is being deleted
	left    time.Time          // guarded by tables.mu; since when the store has no keeper; zero: it has, or there is none
	role    tableRole          // guarded by tables.mu; what the keeper does
	stop    context.CancelFunc // guarded by tables.mu; interrupts it

	progress tableKeeping
}

func newTablePart(t *tables, table int, number int32) *tablePart {
	p := &tablePart{of: t, table: table, number: number, changelog: record.Partition{Topic: t.plan[table].Guest.Changelog, Number: number}}
	p.log = t.log.With("table", t.plan[table].Name, "partition", number)
	p.wants.inputs = map[record.Partition]struct{}{}
	return p
}

// Store and Staged are those of an active, restored partition; nil, nil otherwise. They are good until Release or Failed.
func (p *tablePart) Store() (state.Store, *state.Staged) {
	if now := p.now.Load(); now != nil && now.staged != nil {
		return now.store, now.staged
	}
	return nil, nil
}

// retire takes the partition from its owner. tables.mu is held.
func (p *tablePart) retire() {
	now := p.now.Load()
	switch {
	case now == nil || now.staged == nil && p.wants.copy:
	case p.wants.copy:
		p.now.Store(&readable{store: now.store})
	default:
		p.now.Store(nil)
	}
}

// trust passes on the error of a read. One that says that the store is broken is remembered: an owner finds it in Trouble, a
// copy's keeper cures it.
func (p *tablePart) trust(r *readable, err error) error {
	if !errors.Is(err, state.ErrCorrupt) && !errors.Is(err, state.ErrDisk) {
		return err
	}
	first := r.trouble.CompareAndSwap(nil, &err)
	if r.staged != nil {
		return err
	}
	f := &p.of.faults[p.table]
	f.last.Store(&err)
	f.count.Add(1)
	if first {
		p.of.mu.Lock()
		defer p.of.mu.Unlock()
		if p.now.Load() == r {
			p.fault.Store(&err)
			p.interrupt()
		}
	}
	return err
}

// reader is what a batch of partition own reads of this one; nil when it is not here.
func (p *tablePart) reader(own int32) (*readable, state.Reader) {
	now := p.now.Load()
	switch {
	case now == nil:
		return nil, nil
	case p.number == own && now.staged != nil:
		return now, now.staged
	}
	return now, now.store
}

// programTables is the tables as one program sees them: its own numbers for them.
type programTables struct {
	of    *tables
	index []int // Program.Tables -> Plan.Tables
}

var _ wasmhost.Tables = programTables{}

// view is the tables for a program.
func (t *tables) view(index []int) wasmhost.Tables { return programTables{of: t, index: index} }

func (v programTables) all(table int) []*tablePart {
	if all := v.of.parts.Load(); all != nil {
		return (*all)[v.index[table]]
	}
	return nil
}

// TableGet is wasmhost.Tables's. A partition that is not here has no keys.
func (v programTables) TableGet(own int32, table int, partition int32, key []byte) ([]byte, error) {
	v.of.read[v.index[table]].Add(1)
	if partition != abi.TableOthers {
		if p := v.of.part(v.index[table], partition); p != nil {
			return p.get(own, key)
		}
		return nil, nil
	}
	for _, p := range v.all(table) {
		if p.number == own {
			continue
		}
		if value, err := p.get(own, key); value != nil || err != nil {
			return value, err
		}
	}
	return nil, nil
}

func (p *tablePart) get(own int32, key []byte) ([]byte, error) {
	now, from := p.reader(own)
	if now == nil {
		return nil, nil
	}
	value, err := from.Get(key)
	if errors.Is(err, state.ErrClosed) && p.number != own {
		return nil, nil // it has just left
	}
	return value, p.trust(now, err)
}

// TableScan is wasmhost.Tables's.
func (v programTables) TableScan(own int32, table int, partition int32, prefix, after []byte, each func(key, value []byte) bool) error {
	p := v.of.part(v.index[table], partition)
	if p == nil {
		return nil
	}
	now, from := p.reader(own)
	if now == nil {
		return nil
	}
	r := state.Range{Prefix: prefix}
	if after != nil {
		r.From = append(slices.Clone(after), 0) // the least key that is greater
	}
	it := from.Scan(r)
	n := int64(0)
	for it.Next() {
		n++
		if !each(it.Key(), it.Value()) {
			break
		}
	}
	v.of.read[v.index[table]].Add(n)
	err := it.Close()
	if errors.Is(err, state.ErrClosed) && p.number != own {
		return nil
	}
	return p.trust(now, err)
}

// TableInfo is wasmhost.Tables's: of a global table every partition counts that is here.
func (v programTables) TableInfo(table int) (partitions int32, active []int32, entries int64, err error) {
	global := v.of.plan[v.index[table]].Guest.Global
	parts := v.all(table)
	for _, p := range parts {
		now := p.now.Load()
		switch {
		case now == nil || now.staged == nil && !global:
			continue
		case now.staged != nil:
			entries += now.staged.SizeEstimate()
		default:
			entries += now.store.SizeEstimate()
		}
		active = append(active, p.number)
	}
	return int32(len(parts)), active, entries, nil
}

// sortedInputs is what to wait for before a partition's end is asked for. tables.mu is held.
func (p *tablePart) sortedInputs() []record.Partition {
	return slices.SortedFunc(maps.Keys(p.wants.inputs), func(a, b record.Partition) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Number, b.Number))
	})
}
