package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// Staged changes are seen before they are committed, by their own partition, and gone after an abort.
func TestStaged(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		store := open(t, o, "t", 0)
		apply(t, store, 1, put("a", "0"), put("b", "0"), put("d", "0"))
		s := state.NewStaged(store)
		if s.Freeze() != nil {
			t.Fatal("nothing to freeze")
		}
		s.Stage([]state.Change{put("a", "1"), put("c", "1"), del("b"), put("a", "2")})
		expect(t, "staged", scan(t, s, "", ""), `"a"="2" "c"="1" "d"="0"`)
		expect(t, "stored", scan(t, store, "", ""), `"a"="0" "b"="0" "d"="0"`)
		if s.Len() != 3 || s.Bytes() != 5 {
			t.Fatalf("%d keys, %d bytes", s.Len(), s.Bytes())
		}
		set := s.Freeze()
		expect(t, "writes of one key coalesce, in the order of the keys' first writes", showChanges(set.Changes), `"a"="2" "c"="1" "b"=-`)
		s.Stage([]state.Change{put("b", "3"), del("c")})
		expect(t, "next over frozen over stored", scan(t, s, "", ""), `"a"="2" "b"="3" "d"="0"`)
		if err := s.Commit(set, 9); err != nil {
			t.Fatal(err)
		}
		expect(t, "committed", scan(t, store, "", ""), `"a"="2" "c"="1" "d"="0"`)
		expect(t, "next over stored", scan(t, s, "", ""), `"a"="2" "b"="3" "d"="0"`)
		set = s.Freeze()
		s.Stage([]state.Change{put("x", "4")})
		s.Abort()
		expect(t, "aborted", scan(t, s, "", ""), `"a"="2" "c"="1" "d"="0"`)
		if store.Offset() != 9 || len(set.Changes) != 2 {
			t.Fatalf("offset %d", store.Offset())
		}
		if err := s.Commit(nil, 12); err != nil || store.Offset() != 12 {
			t.Fatalf("%v, offset %d", err, store.Offset())
		}
	})
}

func showChanges(changes []state.Change) string {
	var list []string
	for _, c := range changes {
		text := fmt.Sprintf("%q=%s", c.Key, show(c.Value))
		if c.Expires != 0 {
			text += fmt.Sprintf("@%d", c.Expires)
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

// A failed commit must not make changes disappear that the changelog already has.
func TestStagedCommitFails(t *testing.T) {
	stores := mem.New()
	s := state.NewStaged(open(t, stores, "t", 0))
	s.Stage([]state.Change{put("a", "1")})
	set := s.Freeze()
	stores.Fault = func(op, _ string, _ int32) error {
		if op == "apply" {
			return state.ErrDisk
		}
		return nil
	}
	if err := s.Commit(set, 1); !errors.Is(err, state.ErrDisk) {
		t.Fatal(err)
	}
	expect(t, "still seen", get(t, s, "a"), `"1"`)
}

// While a transaction commits on another goroutine the owner goes on: its reads never miss a change, not for a moment.
func TestStagedCommitsAside(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := state.NewStaged(open(t, o, "t", 0))
		const keys = 50
		for round := range 40 {
			want := strconv.Itoa(round)
			for k := range keys {
				s.Stage([]state.Change{expiring(fmt.Sprintf("k%02d", k), want, int64(1000+round))})
			}
			set := s.Freeze()
			var commit sync.WaitGroup
			commit.Go(func() {
				if err := s.Commit(set, int64(round)+1); err != nil {
					t.Error(err)
				}
			})
			for range 5 {
				n := 0
				it := s.Scan(state.Range{})
				for it.Next() {
					if n++; string(it.Value()) != want {
						t.Fatalf("round %d: scan of %s gives %s", round, it.Key(), it.Value())
					}
				}
				if err := it.Close(); err != nil || n != keys {
					t.Fatalf("round %d: %d keys, %v", round, n, err)
				}
				expect(t, "get", get(t, s, "k07"), strconv.Quote(want))
				if due, err := s.Expired(2000, 100); err != nil || len(due) != keys || due[0].At != int64(1000+round) {
					t.Fatalf("round %d: %d due, %v", round, len(due), err)
				}
			}
			commit.Wait()
		}
	})
}

// A model of one partition: the changelog, and what is staged over its committed prefix.
type model struct {
	changelog []logged // committed
	offset    int64    // its end
	frozen    map[string]state.Change
	next      map[string]state.Change
}

type logged struct {
	offset int64
	change state.Change
}

// fold is the table up to an offset.
func (m *model) fold(to int64) map[string]state.Change {
	table := map[string]state.Change{}
	for _, l := range m.changelog {
		if l.offset < to {
			table[string(l.change.Key)] = l.change
		}
	}
	return table
}

// seen is what the owner has to see.
func (m *model) seen() map[string]state.Change {
	table := m.fold(m.offset)
	maps.Copy(table, m.frozen)
	maps.Copy(table, m.next)
	return table
}

func text(table map[string]state.Change, prefix, from string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(table)) {
		if c := table[k]; c.Value != nil && strings.HasPrefix(k, prefix) && k >= from {
			list = append(list, fmt.Sprintf("%q=%q", k, c.Value))
		}
	}
	return strings.Join(list, " ")
}

func dueText(table map[string]state.Change, now int64, limit int) string {
	var list []state.Expiry
	for k, c := range table {
		if c.Value != nil && c.Expires != 0 && c.Expires <= now {
			list = append(list, state.Expiry{Key: []byte(k), At: c.Expires})
		}
	}
	slices.SortFunc(list, func(a, b state.Expiry) int {
		if a.At != b.At {
			return int(a.At - b.At)
		}
		return bytes.Compare(a.Key, b.Key)
	})
	return fmt.Sprint(list[:min(len(list), limit)])
}

// world is one store under test, with its staged changes.
type world struct {
	name   string
	opener state.Opener
	crash  func(state.Store)
	store  state.Store
	staged *state.Staged
	set    *state.ChangeSet
	scan   state.Iterator // held over other operations
	view   state.View
}

// TestSchedules runs random schedules of stage, freeze, commit, abort, flush, crash and restore on RocksDB, on memory and on a
// model, and compares all they show. SEEDS sets how many for RocksDB, SEED=n runs only that one.
func TestSchedules(t *testing.T) {
	seeds := 60
	if n, err := strconv.Atoi(os.Getenv("SEEDS")); err == nil {
		seeds = n
	}
	if testing.Short() {
		seeds = 10
	}
	if one, err := strconv.ParseUint(os.Getenv("SEED"), 0, 64); err == nil {
		schedule(t, one, openDir(t, state.Options{}))
		return
	}
	dir := openDir(t, state.Options{})
	begun := time.Now()
	for i := range seeds * 20 {
		seed := rand.Uint64()
		d := dir
		if i%20 != 0 {
			d = nil // memory and model only: thousands a minute
		}
		schedule(t, seed, d)
		if t.Failed() {
			t.Fatalf("to replay: SEED=%#x go test ./state -run TestSchedules", seed)
		}
	}
	t.Logf("%d schedules with RocksDB, %d with memory: %.0f a minute", seeds, seeds*20, float64(seeds*20)/time.Since(begun).Minutes())
}

func schedule(t *testing.T, seed uint64, dir *state.Dir) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	number := int32(rnd.Uint32() >> 1)
	memory := mem.New()
	worlds := []*world{{name: "mem", opener: memory, crash: func(state.Store) { memory.Crash() }}}
	if dir != nil {
		worlds = append(worlds, &world{name: "rocksdb", opener: dir, crash: state.Abandon})
		defer func() { _ = dir.Destroy("t", number) }()
	}
	m := &model{next: map[string]state.Change{}}
	var history []string
	check := func(w *world, what, got, want string) {
		t.Helper()
		if got != want {
			t.Fatalf("seed %#x, %s, %s:\ngot  %s\nwant %s\nafter %s\nto replay: SEED=%#x go test ./state -run TestSchedules",
				seed, w.name, what, got, want, strings.Join(history, ", "), seed)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("seed %#x: %v after %v", seed, err, history)
		}
	}
	keys := func() string {
		alphabet := "ab\x00\xff"
		k := make([]byte, rnd.IntN(4))
		for i := range k {
			k[i] = alphabet[rnd.IntN(len(alphabet))]
		}
		return string(k)
	}
	clock := int64(0)
	start := func(w *world) {
		w.store = open(t, w.opener, "t", number)
		w.staged = state.NewStaged(w.store)
		w.set, w.scan, w.view = nil, nil, nil
		// Recovery: what is there must be a prefix, whatever happened; then the rest of the changelog is restored, in steps.
		at := w.store.Offset()
		if at > m.offset {
			t.Fatalf("seed %#x, %s: offset %d is past the changelog's end %d", seed, w.name, at, m.offset)
		}
		check(w, "prefix after open", scan(t, w.store, "", ""), text(m.fold(at), "", ""))
		for _, l := range m.changelog {
			if l.offset >= at {
				must(w.store.Apply([]state.Change{l.change}, l.offset+1))
			}
		}
		must(w.store.Apply(nil, m.offset))
	}
	for _, w := range worlds {
		start(w)
	}
	var heldScan, heldView string
	for range 40 + rnd.IntN(60) {
		op := rnd.IntN(14)
		switch {
		case op < 5:
			var changes []state.Change
			for range rnd.IntN(5) + 1 {
				c := state.Change{Key: []byte(keys())}
				if rnd.IntN(3) > 0 {
					c.Value = fmt.Appendf([]byte{}, "%d", rnd.IntN(1000))[rnd.IntN(2):]
					if rnd.IntN(2) == 0 {
						c.Expires = clock + int64(rnd.IntN(10)) + 1
					}
				}
				changes = append(changes, c)
				m.next[string(c.Key)] = c
			}
			for _, w := range worlds {
				w.staged.Stage(changes)
			}
			history = append(history, "stage "+showChanges(changes))
		case op == 5 && m.frozen == nil:
			history = append(history, "freeze")
			for _, w := range worlds {
				w.set = w.staged.Freeze()
				if (w.set == nil) != (len(m.next) == 0) || w.set != nil && len(w.set.Changes) != len(m.next) {
					t.Fatalf("seed %#x, %s: froze %v, want %v", seed, w.name, w.set, m.next)
				}
			}
			if len(m.next) > 0 {
				m.frozen, m.next = m.next, map[string]state.Change{}
			}
		case op == 6 && m.frozen != nil:
			// The transaction commits: the changelog has the changes, then a control record; then the stores get them, or crash before.
			for _, c := range worlds[0].set.Changes {
				m.changelog = append(m.changelog, logged{m.offset, c})
				m.offset++
			}
			m.offset++
			m.frozen = nil
			crash := rnd.IntN(8) == 0
			history = append(history, fmt.Sprintf("commit %d crash=%v", m.offset, crash))
			if crash {
				m.next = map[string]state.Change{}
			}
			for _, w := range worlds {
				if crash {
					w.crash(w.store)
					start(w)
				} else {
					must(w.staged.Commit(w.set, m.offset))
					w.set = nil
				}
			}
		case op == 7:
			history = append(history, "abort")
			m.frozen, m.next = nil, map[string]state.Change{}
			for _, w := range worlds {
				w.staged.Abort()
			}
		case op == 8 && rnd.IntN(3) == 0:
			history = append(history, "crash")
			m.frozen, m.next = nil, map[string]state.Change{}
			for _, w := range worlds {
				w.crash(w.store)
				start(w)
			}
		case op == 9 && rnd.IntN(3) == 0:
			history = append(history, "reopen")
			m.frozen, m.next = nil, map[string]state.Change{}
			for _, w := range worlds {
				must(w.store.Close())
				start(w)
				if d := w.store.Metrics().Durable; m.offset > 0 && d != m.offset {
					t.Fatalf("seed %#x, %s: %d is durable after close, want %d", seed, w.name, d, m.offset)
				}
			}
		case op == 10 && rnd.IntN(2) == 0:
			history = append(history, "flush")
			for _, w := range worlds {
				must(w.store.Flush())
			}
		case op == 11: // a scan and a view that other operations run across
			for _, w := range worlds {
				if w.scan != nil {
					var list []string
					for w.scan.Next() {
						list = append(list, fmt.Sprintf("%q=%q", w.scan.Key(), w.scan.Value()))
					}
					must(w.scan.Close())
					check(w, "held scan", strings.Join(list, " "), heldScan)
					check(w, "held view", scan(t, w.view, "", ""), heldView)
					w.view.Close()
				}
				w.scan = w.staged.Scan(state.Range{})
				var err error
				w.view, err = w.store.View()
				must(err)
			}
			heldScan, heldView = text(m.seen(), "", ""), text(m.fold(m.offset), "", "")
		default:
			clock += int64(rnd.IntN(4))
			prefix, from, limit := keys(), keys(), rnd.IntN(8)+1
			var ask [][]byte
			var want []string
			seen := m.seen()
			for range rnd.IntN(6) + 1 {
				k := keys()
				ask = append(ask, []byte(k))
				want = append(want, show(seen[k].Value))
			}
			for _, w := range worlds {
				values, err := w.staged.MultiGet(ask)
				must(err)
				var got []string
				for i, v := range values {
					got = append(got, show(v))
					check(w, "get", get(t, w.staged, string(ask[i])), want[i])
				}
				check(w, fmt.Sprintf("multiget %q", ask), strings.Join(got, " "), strings.Join(want, " "))
				check(w, fmt.Sprintf("scan %q from %q", prefix, from), scan(t, w.staged, prefix, from), text(seen, prefix, from))
				due, err := w.staged.Expired(clock, limit)
				must(err)
				check(w, fmt.Sprintf("expired at %d, limit %d", clock, limit), fmt.Sprint(due[:len(due):len(due)]), dueText(seen, clock, limit))
			}
		}
	}
	for _, w := range worlds {
		check(w, "staged at the end", scan(t, w.staged, "", ""), text(m.seen(), "", ""))
		check(w, "store at the end", scan(t, w.store, "", ""), text(m.fold(m.offset), "", ""))
		must(w.store.Verify())
		must(w.store.Close())
	}
}
