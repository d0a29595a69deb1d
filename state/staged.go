package state

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
	"sync/atomic"
)

// Staged lies over a store: changes of records that were processed and are not committed yet. Reads see staged over stored.
//
// There are two generations: what is being committed (frozen) and what came since. So processing goes on while a
// transaction commits:
//
//	staged.Stage(changes)              // any number of times
//	set := staged.Freeze()             // send set.Changes to the changelog, in the transaction
//	staged.Stage(more)                 // the next generation
//	err := staged.Commit(set, next)    // the transaction is committed: changes go to the store
//	staged.Abort()                     // or it is not: nothing was ever staged
//
// Invariant: what a read sees is the store with the frozen generation and then the next one applied to it.
//
// The owner of the store owns its Staged. Commit may run on another goroutine while the owner stages and reads; Freeze and
// Abort may while the owner reads, but not while it stages, nor while Commit runs. What an owner reads during an Abort may
// be of before or after it. Staged does no I/O of its own and knows no clock.
type Staged struct {
	store  Store
	next   atomic.Pointer[generation] // its contents are the owner's
	frozen atomic.Pointer[generation] // set by Freeze, taken off by Commit once the store has it
}

var _ Reader = (*Staged)(nil)

// NewStaged lies over a store with nothing staged.
func NewStaged(store Store) *Staged {
	s := &Staged{store: store}
	s.next.Store(&generation{})
	return s
}

// ChangeSet is a frozen generation: one change for each key, in the order the keys were first written. Read only.
type ChangeSet struct {
	Changes []Change
	Bytes   int64 // keys and values

	of *generation
}

// A generation is a set of changes with one for each key. Once frozen only its sort order still changes, which is the owner's.
type generation struct {
	index   map[string]int32 // key to place in changes
	changes []Change
	bytes   int64
	order   []int32 // places in key order; those from len(order) on are not sorted in yet
}

func (g *generation) put(c Change) {
	g.bytes += int64(len(c.Value))
	if i, ok := g.index[string(c.Key)]; ok {
		g.bytes -= int64(len(g.changes[i].Value))
		g.changes[i] = c
		return
	}
	if g.index == nil {
		g.index = map[string]int32{}
	}
	g.bytes += int64(len(c.Key))
	g.index[string(c.Key)] = int32(len(g.changes))
	g.changes = append(g.changes, c)
}

func (g *generation) get(key []byte) (c Change, ok bool) {
	if g == nil {
		return c, false
	}
	i, ok := g.index[string(key)]
	if ok {
		c = g.changes[i]
	}
	return c, ok
}

// sorted brings order up to date. A scan sorts only what was written since the last one.
func (g *generation) sorted() []int32 {
	done := len(g.order)
	if done == len(g.changes) {
		return g.order
	}
	for i := done; i < len(g.changes); i++ {
		g.order = append(g.order, int32(i))
	}
	byKey := func(a, b int32) int { return bytes.Compare(g.changes[a].Key, g.changes[b].Key) }
	fresh := g.order[done:]
	slices.SortFunc(fresh, byKey)
	if done == 0 || byKey(g.order[done-1], fresh[0]) < 0 {
		return g.order
	}
	merged := make([]int32, 0, len(g.order)+len(g.order)/4)
	old := g.order[:done]
	for len(old) > 0 && len(fresh) > 0 {
		if byKey(old[0], fresh[0]) < 0 {
			merged, old = append(merged, old[0]), old[1:]
		} else {
			merged, fresh = append(merged, fresh[0]), fresh[1:]
		}
	}
	g.order = append(append(merged, old...), fresh...)
	return g.order
}

// within copies the changes in a range, in key order.
func (g *generation) within(r Range) []Change {
	if g == nil || len(g.changes) == 0 {
		return nil
	}
	order := g.sorted()
	from := r.Prefix
	if bytes.Compare(r.From, from) > 0 {
		from = r.From
	}
	at := sort.Search(len(order), func(i int) bool { return bytes.Compare(g.changes[order[i]].Key, from) >= 0 })
	var list []Change
	for _, i := range order[at:] {
		if !bytes.HasPrefix(g.changes[i].Key, r.Prefix) {
			break
		}
		list = append(list, g.changes[i])
	}
	return list
}

// Stage adds changes, in order; a later one of a key replaces an earlier one.
func (s *Staged) Stage(changes []Change) {
	next := s.next.Load()
	for _, c := range changes {
		next.put(c)
	}
}

// Len tells how many keys are staged and not frozen yet.
func (s *Staged) Len() int { return len(s.next.Load().changes) }

// Bytes tells how many bytes of keys and values are staged and not frozen yet.
func (s *Staged) Bytes() int64 { return s.next.Load().bytes }

// Freeze ends a generation and hands it out; nil when nothing is staged. At most one is frozen at a time.
func (s *Staged) Freeze() *ChangeSet {
	next := s.next.Load()
	if len(next.changes) == 0 {
		return nil
	}
	// In this order a reader, who looks at next first, finds the changes in one place or in both.
	if !s.frozen.CompareAndSwap(nil, next) {
		panic("BUG: state: Freeze before the Commit or Abort of the last one")
	}
	s.next.Store(&generation{})
	return &ChangeSet{Changes: next.changes, Bytes: next.bytes, of: next}
}

// Commit gives the frozen changes to the store: the changelog has them, and goes on at offset next. A nil set moves only the offset.
// After an error the changes are still to be seen, but the store refused them: the partition has to stop.
func (s *Staged) Commit(set *ChangeSet, next int64) error {
	if set == nil {
		return s.store.Apply(nil, next)
	}
	if s.frozen.Load() != set.of {
		panic("BUG: state: Commit of a set that is not the frozen one")
	}
	if err := s.store.Apply(set.Changes, next); err != nil {
		return err
	}
	// In this order a reader finds the changes in one place or in both, and they are the same.
	s.frozen.Store(nil)
	return nil
}

// Abort drops everything staged, frozen or not. Not while Commit runs.
func (s *Staged) Abort() {
	s.frozen.Store(nil)
	s.next.Store(&generation{})
}

// generations are what lies over the store, the upper one first. They are loaded in this order, and before the store is
// read: what a Freeze or a Commit moves meanwhile is then seen twice, not missed.
func (s *Staged) generations() [2]*generation {
	next := s.next.Load()
	return [2]*generation{next, s.frozen.Load()}
}

func lookup(over [2]*generation, key []byte) (Change, bool) {
	if c, ok := over[0].get(key); ok {
		return c, true
	}
	return over[1].get(key)
}

// Get is the value of a key with what is staged; nil when there is none.
func (s *Staged) Get(key []byte) ([]byte, error) {
	if c, ok := lookup(s.generations(), key); ok {
		return c.Value, nil
	}
	return s.store.Get(key)
}

// MultiGet is Get for many keys at once.
func (s *Staged) MultiGet(keys [][]byte) ([][]byte, error) {
	over := s.generations()
	values := make([][]byte, len(keys))
	var ask [][]byte
	var places []int
	for i, k := range keys {
		if c, ok := lookup(over, k); ok {
			values[i] = c.Value
		} else {
			ask, places = append(ask, k), append(places, i)
		}
	}
	if len(ask) == 0 {
		return values, nil
	}
	stored, err := s.store.MultiGet(ask)
	if err != nil {
		return nil, err
	}
	for j, i := range places {
		values[i] = stored[j]
	}
	return values, nil
}

// over is what both generations have in a range, in key order.
func (s *Staged) over(r Range) []Change {
	generations := s.generations()
	next, frozen := generations[0].within(r), generations[1].within(r)
	if len(frozen) == 0 {
		return next
	}
	list := make([]Change, 0, len(frozen)+len(next))
	for len(frozen) > 0 && len(next) > 0 {
		c := bytes.Compare(frozen[0].Key, next[0].Key)
		if c < 0 {
			list, frozen = append(list, frozen[0]), frozen[1:]
			continue
		}
		if c == 0 {
			frozen = frozen[1:]
		}
		list, next = append(list, next[0]), next[1:]
	}
	return append(append(list, frozen...), next...)
}

// Scan reads a range with what is staged. The caller closes the iterator.
func (s *Staged) Scan(r Range) Iterator {
	over := s.over(r)
	if len(over) == 0 {
		return s.store.Scan(r)
	}
	it := &stagedIterator{over: over, under: s.store.Scan(r)}
	it.more = it.under.Next()
	return it
}

// A stagedIterator merges changes over the entries of a store.
type stagedIterator struct {
	over       []Change
	under      Iterator
	more       bool // under has an entry that was not given out
	key, value []byte
}

func (it *stagedIterator) Next() bool {
	for len(it.over) > 0 || it.more {
		way := -1
		if len(it.over) == 0 {
			way = 1
		} else if it.more {
			way = bytes.Compare(it.over[0].Key, it.under.Key())
		}
		if way > 0 {
			it.key, it.value = it.under.Key(), it.under.Value()
			it.more = it.under.Next()
			return true
		}
		c := it.over[0]
		it.over = it.over[1:]
		if way == 0 {
			it.more = it.under.Next()
		}
		if c.Value != nil {
			it.key, it.value = c.Key, c.Value
			return true
		}
	}
	return false
}

func (it *stagedIterator) Key() []byte   { return it.key }
func (it *stagedIterator) Value() []byte { return it.value }

func (it *stagedIterator) Close() error {
	it.over, it.more = nil, false
	return it.under.Close()
}

// SizeEstimate takes staged keys for new ones.
func (s *Staged) SizeEstimate() int64 {
	n := s.store.SizeEstimate()
	for _, g := range s.generations() {
		if g == nil {
			continue
		}
		for _, c := range g.changes {
			if c.Value != nil {
				n++
			}
		}
	}
	if n == 0 {
		return 0
	}
	it := s.Scan(Range{})
	defer func() { _ = it.Close() }() // an estimate: what is wrong shows in a read
	if it.Next() {
		return n
	}
	return 0
}

// Expired is the store's, with what is staged over it.
func (s *Staged) Expired(now int64, limit int) ([]Expiry, error) {
	over := s.over(Range{})
	for ask := limit; ; ask *= 2 {
		stored, err := s.store.Expired(now, ask)
		if err != nil {
			return nil, err
		}
		full := len(stored) >= ask
		due := slices.DeleteFunc(stored, func(e Expiry) bool {
			_, ok := slices.BinarySearchFunc(over, e.Key, func(c Change, key []byte) int { return bytes.Compare(c.Key, key) })
			return ok
		})
		if full && len(due) < limit {
			continue // what is staged hides some
		}
		for _, c := range over {
			if c.Value != nil && c.Expires != 0 && c.Expires <= now {
				due = append(due, Expiry{Key: c.Key, At: c.Expires})
			}
		}
		slices.SortFunc(due, func(a, b Expiry) int { return cmp.Or(cmp.Compare(a.At, b.At), bytes.Compare(a.Key, b.Key)) })
		return due[:min(len(due), limit)], nil
	}
}
