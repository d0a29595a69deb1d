package state_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kaspr.io/kaspr/state"
)

// stored makes a closed store with several table files, and its folds by offset.
func stored(t *testing.T, d *state.Dir, number int32) (folder string, folds map[int64]map[string]string) {
	t.Helper()
	s := open(t, d, "t", number)
	folds = map[int64]map[string]string{}
	for range 3 {
		f, _ := fill(t, s, s.Offset()+4)
		maps.Copy(folds, f)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return state.Folder(s), folds
}

// A store with damaged files must be found out, or still be a prefix. It must never show anything else, and once set aside its
// partition starts anew.
func TestCorruptFiles(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %#x", seed)
	d := openDir(t, state.Options{})
	folder, folds := stored(t, d, 0)

	damages := map[string]func(name string, b []byte) error{
		"flip a byte": func(name string, b []byte) error {
			if len(b) > 0 {
				b[rnd.IntN(len(b))] ^= byte(1 << rnd.IntN(8))
			}
			return os.WriteFile(name, b, 0o644)
		},
		"flip a byte at the end": func(name string, b []byte) error {
			if len(b) > 0 {
				b[len(b)-1-rnd.IntN(min(len(b), 100))] ^= 0xff
			}
			return os.WriteFile(name, b, 0o644)
		},
		"cut in half": func(name string, b []byte) error { return os.WriteFile(name, b[:len(b)/2], 0o644) },
		"empty":       func(name string, _ []byte) error { return os.WriteFile(name, nil, 0o644) },
		"garbage":     func(name string, b []byte) error { return os.WriteFile(name, noise(rnd, len(b)), 0o644) },
		"delete":      func(name string, _ []byte) error { return os.Remove(name) },
		"a folder": func(name string, _ []byte) error {
			if err := os.Remove(name); err != nil {
				return err
			}
			return os.Mkdir(name, 0o755)
		},
	}
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	tally := map[string]int{}
	number := int32(1)
	for _, f := range files {
		for _, how := range slices.Sorted(maps.Keys(damages)) {
			number++
			// A directory for each: the block cache knows tables by an ID within them, and would answer for the damaged copy.
			d := openDir(t, state.Options{})
			target := filepath.Join(d.Root(), "t", fmt.Sprint(number))
			if err := os.CopyFS(target, os.DirFS(folder)); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(target, f.Name())
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := damages[how](name, b); err != nil {
				t.Fatal(err)
			}
			kind, _, _ := strings.Cut(f.Name(), "-")
			if strings.HasSuffix(kind, ".sst") {
				kind = "table"
			}
			what := kind + ", " + how
			s, err := d.Open("t", number)
			if err == nil {
				if err = s.Verify(); err == nil {
					same(t, s, folds)
					tally[what+": sound at offset "+fmt.Sprint(s.Offset())]++
				} else if s.Err() == nil || !errors.Is(s.Apply(nil, s.Offset()+1), state.ErrCorrupt) {
					t.Errorf("%s: a store that failed its check takes changes", what)
				}
				_ = s.Close()
			}
			if err == nil {
				continue
			}
			if !errors.Is(err, state.ErrCorrupt) {
				t.Errorf("%s: not ErrCorrupt: %v", what, err)
				continue
			}
			tally[what+": found out"]++
			aside, err := d.SetAside("t", number)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if _, err := os.Stat(aside); err != nil || !strings.Contains(aside, ".corrupt-") {
				t.Fatalf("%s: set aside as %q: %v", what, aside, err)
			}
			s = open(t, d, "t", number)
			if s.Offset() != 0 || scan(t, s, "", "") != "" {
				t.Fatalf("%s: not empty after it was set aside", what)
			}
			apply(t, s, 1, put("a", "1"))
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(tally)) {
		t.Logf("%s (%d)", k, tally[k])
	}
	for _, must := range []string{"table, flip a byte: found out", "CURRENT, delete: found out", "MANIFEST, garbage: found out", "table, delete: found out", "table, garbage: found out"} {
		if tally[must] == 0 {
			t.Errorf("not seen: %s", must)
		}
	}
}

// What is in a store's folder but is not a store of ours, of this version, must not be read as one.
func TestNotOurs(t *testing.T) {
	for name, raw := range map[string][2]string{
		"entries without a position": {"\x01key", "\x00value"},
		"a later format":             {"\x00", "\x02\x00\x00\x00\x00\x00\x00\x00\x05"},
		"a short position":           {"\x00", "\x01\x00"},
		"a negative offset":          {"\x00", "\x01\xff\x00\x00\x00\x00\x00\x00\x05"},
		"another program's database": {"user:1", "{}"},
	} {
		d := openDir(t, state.Options{})
		s := open(t, d, "t", 0)
		if err := state.Raw(s, []byte(raw[0]), []byte(raw[1])); err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		state.Abandon(s)
		if _, err := d.Open("t", 0); !errors.Is(err, state.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.RemoveAll(state.Folder(s)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(state.Folder(s), []byte("not a folder"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Open("t", 0); !errors.Is(err, state.ErrCorrupt) {
			t.Errorf("%s: a file for a folder: %v", name, err)
		}
		if _, err := d.SetAside("t", 0); err != nil {
			t.Error(err)
		}
		open(t, d, "t", 0)
	}
}

// A value that is not ours, in the middle of an open store, is an error of the read and the end of writing.
func TestCorruptValue(t *testing.T) {
	for _, raw := range []string{"", "\x07value", "\x01\x00"} {
		d := openDir(t, state.Options{})
		s := open(t, d, "t", 0)
		apply(t, s, 1, put("a", "1"), put("b", "1"))
		if err := state.Raw(s, []byte("\x01b"), []byte(raw)); err != nil {
			t.Fatal(err)
		}
		expect(t, "the others are still there", get(t, s, "a"), `"1"`)
		if _, err := s.Get([]byte("b")); !errors.Is(err, state.ErrCorrupt) {
			t.Fatalf("get: %v", err)
		}
		if _, err := s.MultiGet([][]byte{[]byte("a"), []byte("b")}); !errors.Is(err, state.ErrCorrupt) {
			t.Fatalf("multiget: %v", err)
		}
		it := s.Scan(state.Range{})
		for it.Next() {
			continue
		}
		if err := it.Close(); !errors.Is(err, state.ErrCorrupt) {
			t.Fatalf("scan: %v", err)
		}
		if err := s.Apply([]state.Change{put("a", "2")}, 2); !errors.Is(err, state.ErrCorrupt) {
			t.Fatalf("apply: %v", err)
		}
		if err := s.Clear(""); err != nil { // the way out while it is open
			t.Fatal(err)
		}
		apply(t, s, 1, put("a", "1"))
	}
}

// SetAside keeps one copy: a store that goes bad every hour must not fill the disk.
func TestSetAsideKeepsOne(t *testing.T) {
	d := openDir(t, state.Options{})
	if aside, err := d.SetAside("t", 0); aside != "" || err != nil {
		t.Fatalf("nothing there: %q %v", aside, err)
	}
	for range 3 {
		s := open(t, d, "t", 0)
		apply(t, s, 1, put("a", "1"))
		if _, err := d.SetAside("t", 0); !errors.Is(err, state.ErrInUse) {
			t.Fatalf("an open store: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		aside, err := d.SetAside("t", 0)
		if err != nil {
			t.Fatal(err)
		}
		names, err := os.ReadDir(filepath.Dir(aside))
		if err != nil || len(names) != 1 {
			t.Fatalf("%v %v", names, err)
		}
	}
	if list, err := d.Partitions("t"); err != nil || len(list) != 0 {
		t.Fatalf("partitions: %v %v", list, err)
	}
}

// What RocksDB says decides between "rebuild the store" and "stop": a full disk must not cost a rebuild.
func TestClassify(t *testing.T) {
	for text, want := range map[string]error{
		"Corruption: block checksum mismatch: stored = 1, computed = 2":                                                    state.ErrCorrupt,
		"Corruption: Can't access /000008.sst: IO error: No such file or directory: while stat a file":                     state.ErrCorrupt,
		"IO error: No such file or directory: While open a file for random read: /x/000008.sst: No such file or directory": state.ErrCorrupt,
		"IO error: No space left on device: While appending to file: /x/000018.sst: No space left on device":               state.ErrDisk,
		"IO error: While fsync: /x/000018.sst: Input/output error":                                                         state.ErrDisk,
		"IO error: While open a file for appending: /x/LOG: Read-only file system":                                         state.ErrDisk,
		"IO error: While open a file for random read: /x/000008.sst: Too many open files":                                  state.ErrDisk,
		"Corruption: Can't access /000008.sst: IO error: While open a file: Too many open files":                           state.ErrDisk,
		"IO error: While lock file: /x/LOCK: Resource temporarily unavailable":                                             state.ErrInUse,
		"IO error: lock hold by current process, acquire time 1 acquiring thread 2: /x/LOCK: No locks available":           state.ErrInUse,
		"Invalid argument: max_write_buffer_number must be greater than 1":                                                 nil,
	} {
		err := state.Classify(text)
		for _, is := range []error{state.ErrCorrupt, state.ErrDisk, state.ErrInUse} {
			if errors.Is(err, is) != errors.Is(want, is) {
				t.Errorf("%q: %v is %v: %v", text, err, is, errors.Is(err, is))
			}
		}
	}
}
