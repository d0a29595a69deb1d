package state_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
)

// openDir is a state directory that is closed with the test.
func openDir(t testing.TB, opts state.Options) *state.Dir {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	if opts.MemoryLimit == 0 {
		opts.MemoryLimit = 96 << 20
	}
	d, err := state.OpenDir(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func open(t testing.TB, o state.Opener, table string, number int32) state.Store {
	t.Helper()
	s, err := o.Open(table, number)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// both runs a test on RocksDB and in memory: the same promises hold for both.
func both(t *testing.T, test func(t *testing.T, o state.Opener)) {
	t.Run("rocksdb", func(t *testing.T) { test(t, openDir(t, state.Options{})) })
	t.Run("mem", func(t *testing.T) { test(t, mem.New()) })
}

func put(key, value string) state.Change {
	return state.Change{Key: []byte(key), Value: []byte(value)}
}

func del(key string) state.Change { return state.Change{Key: []byte(key)} }

func expiring(key, value string, at int64) state.Change {
	return state.Change{Key: []byte(key), Value: []byte(value), Expires: at}
}

func apply(t testing.TB, s state.Store, next int64, changes ...state.Change) {
	t.Helper()
	if err := s.Apply(changes, next); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, r state.Reader, key string) string {
	t.Helper()
	v, err := r.Get([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return show(v)
}

// show tells nil from empty.
func show(v []byte) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%q", v)
}

func scan(t testing.TB, r state.Reader, prefix, from string) string {
	t.Helper()
	it := r.Scan(state.Range{Prefix: []byte(prefix), From: []byte(from)})
	var list []string
	for it.Next() {
		list = append(list, fmt.Sprintf("%q=%q", it.Key(), it.Value()))
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %s, want %s", what, got, want)
	}
}

// A table whose reads do not give back what was written is no table.
func TestReadsGiveWhatWasWritten(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		expect(t, "get of nothing", get(t, s, "a"), "-")
		apply(t, s, 3, put("a", "1"), put("b", ""), put("", "empty key"), put("a\xff", "x"), put("a\xff\xff", "y"), put("b\x00", "z"))
		expect(t, "get", get(t, s, "a"), `"1"`)
		expect(t, "an empty value is a value", get(t, s, "b"), `""`)
		expect(t, "the empty key", get(t, s, ""), `"empty key"`)
		apply(t, s, 4, put("a", "2"), put("a", "3"), del("b"), del("never there"))
		expect(t, "the last change of a key counts", get(t, s, "a"), `"3"`)
		expect(t, "deleted", get(t, s, "b"), "-")
		if s.Offset() != 4 {
			t.Fatalf("offset %d", s.Offset())
		}
		values, err := s.MultiGet([][]byte{[]byte("zz"), []byte("a"), []byte("a"), []byte(""), []byte("b")})
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, v := range values {
			list = append(list, show(v))
		}
		expect(t, "multiget", strings.Join(list, " "), `- "3" "3" "empty key" -`)
		if v, err := s.MultiGet(nil); err != nil || len(v) != 0 {
			t.Fatalf("multiget of nothing: %v %v", v, err)
		}
		expect(t, "scan in byte order", scan(t, s, "", ""), `""="empty key" "a"="3" "a\xff"="x" "a\xff\xff"="y" "b\x00"="z"`)
		expect(t, "prefix", scan(t, s, "a\xff", ""), `"a\xff"="x" "a\xff\xff"="y"`)
		expect(t, "prefix and from", scan(t, s, "a", "a\x01"), `"a\xff"="x" "a\xff\xff"="y"`)
		expect(t, "from below the prefix", scan(t, s, "b", "a"), `"b\x00"="z"`)
		expect(t, "from above the prefix", scan(t, s, "a", "b"), ``)
		expect(t, "no such prefix", scan(t, s, "c", ""), ``)
		expect(t, "prefix of 0xff", scan(t, s, "\xff", ""), ``)
	})
}

// A restart that forgets what was committed, or the offset it ends at, restores too much or too little.
func TestReopen(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 7)
		if err := s.Clear("topic-1"); err != nil {
			t.Fatal(err)
		}
		apply(t, s, 42, put("a", "1"), expiring("b", "2", 5000))
		apply(t, s, 50) // control records only
		if _, err := o.Open("t", 7); !errors.Is(err, state.ErrInUse) {
			t.Fatalf("second open: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("second close: %v", err)
		}
		s = open(t, o, "t", 7)
		expect(t, "get", get(t, s, "a"), `"1"`)
		expect(t, "get", get(t, s, "b"), `"2"`)
		if s.Offset() != 50 || s.Origin() != "topic-1" || s.Metrics().Durable != 50 {
			t.Fatalf("offset %d, origin %q, durable %d", s.Offset(), s.Origin(), s.Metrics().Durable)
		}
		if due, err := s.Expired(6000, 10); err != nil || len(due) != 1 || string(due[0].Key) != "b" {
			t.Fatalf("expired: %v %v", due, err)
		}
		if err := s.Verify(); err != nil {
			t.Fatal(err)
		}
		if other := open(t, o, "t", 8); other.Offset() != 0 || get(t, other, "a") != "-" {
			t.Fatal("another partition has the same content")
		}
	})
}

// A changelog that was made anew must not be laid over the old one's state.
func TestClear(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		apply(t, s, 10, put("a", "1"), expiring("b", "1", 1))
		v, err := s.View()
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if err := s.Clear("new"); err != nil {
			t.Fatal(err)
		}
		if s.Offset() != 0 || s.Origin() != "new" || get(t, s, "a") != "-" || scan(t, s, "", "") != "" || s.SizeEstimate() != 0 {
			t.Fatal("there is something left")
		}
		if due, err := s.Expired(100, 10); err != nil || len(due) != 0 {
			t.Fatalf("expired: %v %v", due, err)
		}
		apply(t, s, 1, put("c", "1"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, o, "t", 0)
		expect(t, "after reopening", scan(t, s, "", ""), `"c"="1"`)
		if s.Offset() != 1 || s.Origin() != "new" {
			t.Fatalf("offset %d, origin %q", s.Offset(), s.Origin())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := o.Destroy("t", 0); err != nil {
			t.Fatal(err)
		}
		if s = open(t, o, "t", 0); s.Offset() != 0 || scan(t, s, "", "") != "" {
			t.Fatal("there is something left")
		}
	})
}

// A web view that reads while the owner writes must see one moment.
func TestViewStandsStill(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		empty, err := s.View()
		if err != nil {
			t.Fatal(err)
		}
		apply(t, s, 1, put("a", "1"), put("b", "1"))
		v, err := s.View()
		if err != nil {
			t.Fatal(err)
		}
		it := s.Scan(state.Range{})
		apply(t, s, 2, put("a", "2"), del("b"), put("c", "2"))
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		expect(t, "view", scan(t, v, "", ""), `"a"="1" "b"="1"`)
		expect(t, "view", get(t, v, "b")+get(t, v, "c"), `"1"-`)
		if v.Offset() != 1 || empty.Offset() != 0 || scan(t, empty, "", "") != "" {
			t.Fatal("a view moved")
		}
		n := 0
		for it.Next() {
			n++
		}
		if err := it.Close(); err != nil || n != 2 {
			t.Fatalf("the scan saw %d entries, %v", n, err)
		}
		v.Close()
		v.Close()
		if _, err := v.Get([]byte("a")); !errors.Is(err, state.ErrClosed) {
			t.Fatalf("closed view: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := empty.Get([]byte("a")); !errors.Is(err, state.ErrClosed) {
			t.Fatalf("view of a closed store: %v", err)
		}
		empty.Close()
	})
}

// A revoked partition is closed while web views still read it: they get an error, not a crash.
func TestCloseUnderReaders(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		for round := range 5 {
			s := open(t, o, "t", int32(round))
			var changes []state.Change
			for i := range 2000 {
				changes = append(changes, put(fmt.Sprintf("key-%04d", i), strings.Repeat("v", 100)))
			}
			apply(t, s, 1, changes...)
			var readers sync.WaitGroup
			started := make(chan struct{}, 8)
			for i := range 8 {
				readers.Go(func() {
					var once sync.Once
					for {
						v, err := s.View()
						if err == nil {
							it := v.Scan(state.Range{})
							for it.Next() {
								continue
							}
							err = it.Close()
							if err == nil {
								_, err = v.MultiGet([][]byte{[]byte("key-0001"), []byte("key-1999")})
							}
							if i%2 == 0 {
								v.Close() // the others leave it to the store
							}
						}
						once.Do(func() { started <- struct{}{} })
						if errors.Is(err, state.ErrClosed) {
							return
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range 8 {
				<-started
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			readers.Wait()
		}
	})
}

// Table TTL and windows stand on the expiry index: what is due must be found, and nothing else.
func TestExpired(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		due := func(now int64, limit int) string {
			t.Helper()
			list, err := s.Expired(now, limit)
			if err != nil {
				t.Fatal(err)
			}
			var texts []string
			for _, e := range list {
				texts = append(texts, fmt.Sprintf("%s@%d", e.Key, e.At))
			}
			return strings.Join(texts, " ")
		}
		apply(t, s, 1, expiring("a", "1", 100), expiring("b", "1", 50), put("c", "1"), expiring("d", "", 300))
		expect(t, "nothing yet", due(49, 10), "")
		expect(t, "in order", due(100, 10), "b@50 a@100")
		expect(t, "limited", due(100, 1), "b@50")
		apply(t, s, 2, expiring("b", "2", 200), put("d", "2")) // later; never
		expect(t, "moved", due(1000, 10), "a@100 b@200")
		apply(t, s, 3, del("a"), expiring("e", "1", 10)) // e is due before all that was asked for
		expect(t, "deleted, and one in the past", due(1000, 10), "e@10 b@200")
		apply(t, s, 4, expiring("b", "3", 50)) // the entry that was found stale is live again
		expect(t, "back", due(1000, 10), "e@10 b@50")
		apply(t, s, 5, del("e"), del("b"))
		expect(t, "none left", due(1<<62, 10), "")
		expect(t, "values", scan(t, s, "", ""), `"c"="1" "d"="2"`)
	})
}

// The expiry index agrees between RocksDB (lazy) and memory (exact) for any history.
func TestExpiredEquivalence(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		d := openDir(t, state.Options{})
		r, m := open(t, d, "t", 0), open(t, mem.New(), "t", 0)
		now := int64(0)
		for step := range 150 {
			var changes []state.Change
			for range rnd.IntN(6) + 1 {
				key := fmt.Sprintf("k%02d", rnd.IntN(30))
				switch rnd.IntN(4) {
				case 0:
					changes = append(changes, del(key))
				case 1:
					changes = append(changes, put(key, "x"))
				default:
					changes = append(changes, expiring(key, "x", now/10*10+int64(rnd.IntN(5)+1)*10))
				}
			}
			apply(t, r, r.Offset()+1, changes...)
			apply(t, m, m.Offset()+1, changes...)
			now += int64(rnd.IntN(10))
			limit := rnd.IntN(20) + 1
			a, err1 := r.Expired(now, limit)
			b, err2 := m.Expired(now, limit)
			if err1 != nil || err2 != nil || fmt.Sprint(a) != fmt.Sprint(b) {
				t.Fatalf("seed %d, step %d: rocksdb %v %v, mem %v %v", seed, step, a, err1, b, err2)
			}
			if len(a) > 0 && rnd.IntN(2) == 0 {
				var gone []state.Change
				for _, e := range a {
					gone = append(gone, state.Change{Key: e.Key})
				}
				apply(t, r, r.Offset()+1, gone...)
				apply(t, m, m.Offset()+1, gone...)
			}
		}
		_ = d.Close()
	}
}

// Offsets that go back would make a store claim records it has not seen.
func TestApplyRefusesBugs(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		apply(t, s, 10, put("a", "1"))
		for name, f := range map[string]func(){
			"back":            func() { _ = s.Apply(nil, 9) },
			"without records": func() { _ = s.Apply([]state.Change{put("a", "2")}, 10) },
			"before 1970":     func() { _ = s.Apply([]state.Change{expiring("a", "2", -1)}, 11) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: no panic", name)
					}
				}()
				f()
			}()
		}
		expect(t, "value", get(t, s, "a"), `"1"`)
	})
}

func TestSizeEstimate(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		if n := s.SizeEstimate(); n != 0 {
			t.Fatalf("empty: %d", n)
		}
		var changes []state.Change
		for i := range 1000 {
			changes = append(changes, put(fmt.Sprint(i), "v"))
		}
		apply(t, s, 1, changes...)
		if n := s.SizeEstimate(); n != 1000 {
			t.Fatalf("memtable: %d", n)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := s.SizeEstimate(); n < 990 || n > 1010 {
			t.Fatalf("flushed: %d", n)
		}
		for i := range changes {
			changes[i].Value = nil
		}
		apply(t, s, 2, changes...)
		apply(t, s, 3, changes...)
		if n := s.SizeEstimate(); n != 0 {
			t.Fatalf("all deleted: %d", n)
		}
	})
}

// Large scans come in pages: none may be lost or doubled between two, whatever their sizes.
func TestScanPages(t *testing.T) {
	both(t, func(t *testing.T, o state.Opener) {
		s := open(t, o, "t", 0)
		rnd := rand.New(rand.NewPCG(1, 2))
		var changes []state.Change
		var want []string
		for i := range 9000 {
			key := fmt.Sprintf("%06d", i*7%9000)
			changes = append(changes, put(key, strings.Repeat("v", rnd.IntN(60)*rnd.IntN(60))))
			want = append(want, key)
		}
		slices.Sort(want)
		apply(t, s, 1, changes...)
		var keys []string
		var all [][]byte
		it := s.Scan(state.Range{})
		for it.Next() {
			keys = append(keys, string(it.Key()))
			all = append(all, it.Value())
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(keys, want) {
			t.Fatalf("%d keys, want %d", len(keys), len(want))
		}
		for _, v := range all { // slices stay valid
			if len(bytes.Trim(v, "v")) != 0 {
				t.Fatal("a value changed")
			}
		}
		it = s.Scan(state.Range{}) // left early
		it.Next()
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if it.Next() {
			t.Fatal("next after close")
		}
	})
}
