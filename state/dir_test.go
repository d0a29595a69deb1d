package state_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/state"
)

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc to count open files in")
	}
	return len(list)
}

// A worker opens and closes partitions for months: nothing may be left behind, whatever state they were in.
func TestNothingLeaks(t *testing.T) {
	round := func() {
		d, err := state.OpenDir(state.Options{Dir: t.TempDir(), MemoryLimit: 32 << 20, Tables: map[string]map[string]string{"own": {"block_cache_size": "1000000"}}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range int32(4) {
			s := open(t, d, "own", i)
			_, _ = fill(t, s, 5)
			v, err := s.View() // left open
			if err != nil {
				t.Fatal(err)
			}
			it := v.Scan(state.Range{}) // left in the middle
			it.Next()
			switch i {
			case 1:
				err = s.Close()
			case 2:
				err = s.Clear("x")
			case 3:
				state.Abandon(s)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Open("t", 9); !errors.Is(err, state.ErrClosed) {
			t.Fatalf("open after close: %v", err)
		}
	}
	round() // RocksDB's threads and singletons stay
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	for range 100 { // a goroutine that was joined may still be on its way out
		if runtime.NumGoroutine() <= goroutines {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, were %d\n%s", n, goroutines, buf[:runtime.Stack(buf, true)])
	}
	if n := openFiles(t); n > files {
		t.Errorf("%d open files, were %d", n, files)
	}
}

// Two processes in one state directory would tear each other's stores apart.
func TestDirIsLocked(t *testing.T) {
	d := openDir(t, state.Options{})
	if _, err := state.OpenDir(state.Options{Dir: d.Root()}); !errors.Is(err, state.ErrInUse) {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openDir(t, state.Options{Dir: d.Root()})
}

// Names come from manifests: none may lead out of the state directory, or to another table's folder.
func TestTableNames(t *testing.T) {
	d := openDir(t, state.Options{})
	names := []string{"t", "T", "..", ".", ".lock", "a/b", "a%2Fb", "../x", "tä", "a b", "t.corrupt-1", strings.Repeat("n", 200)}
	for i, name := range names {
		apply(t, open(t, d, name, 3), int64(i+1), put("name", name))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = openDir(t, state.Options{Dir: d.Root()})
	for i, name := range names {
		s := open(t, d, name, 3)
		if rel, err := filepath.Rel(d.Root(), state.Folder(s)); err != nil || strings.HasPrefix(rel, "..") || strings.Count(rel, "/") != 1 {
			t.Errorf("%q is in %s", name, rel)
		}
		if s.Offset() != int64(i+1) {
			t.Errorf("%q has another's content", name)
		}
		if list, err := d.Partitions(name); err != nil || len(list) != 1 || list[0] != 3 {
			t.Errorf("%q has partitions %v, %v", name, list, err)
		}
	}
	if _, err := d.Open("", 0); err == nil {
		t.Error("a table without a name")
	}
	if _, err := d.Open("t", -1); err == nil {
		t.Error("a partition below 0")
	}
}

// A creation that was killed leaves a folder without a database, a deletion one that is half gone: both must not be in the way.
func TestLeftovers(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"t/0/MANIFEST-000001": "cut off", "t/0/LOG": "", "t/1.gone/CURRENT": "MANIFEST-000005\n", "t/1.gone/000008.sst": "x",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := openDir(t, state.Options{Dir: root})
	for i := range int32(2) {
		if s := open(t, d, "t", i); s.Offset() != 0 {
			t.Fatalf("partition %d: offset %d", i, s.Offset())
		}
	}
	if _, err := os.Stat(filepath.Join(root, "t/1.gone")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Many stores written at once must stay within the process's bound, or the container is killed.
func TestWriteBuffersAreBounded(t *testing.T) {
	const bound = 6 << 20
	d := openDir(t, state.Options{MemoryLimit: 32 << 20, WriteBuffersSize: bound})
	var most int64
	var mu sync.Mutex
	var owners sync.WaitGroup
	for i := range int32(6) {
		s := open(t, d, "t", i)
		owners.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for at := range int64(40) {
				var changes []state.Change
				for range 200 {
					changes = append(changes, state.Change{Key: noise(rnd, 16), Value: noise(rnd, 1000)})
				}
				if err := s.Apply(changes, at+1); err != nil {
					t.Error(err)
					return
				}
				used := d.Memory().WriteBuffers
				mu.Lock()
				most = max(most, used)
				mu.Unlock()
			}
		})
	}
	owners.Wait()
	// Writers wait above twice the bound, each with one batch.
	if most > 2*bound+6*256<<10 {
		t.Errorf("%d KiB of write buffers, bound %d KiB", most>>10, bound>>10)
	}
	if most < bound {
		t.Errorf("only %d KiB at most: this tested nothing", most>>10)
	}
	t.Logf("at most %d KiB with a bound of %d KiB", most>>10, bound>>10)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if n := state.MemoryUsed(d); n != 0 {
		t.Errorf("%d bytes in the accounts after close", n)
	}
}

// What was written long ago must be on disk, or a crash restores hours.
func TestFlushInterval(t *testing.T) {
	d := openDir(t, state.Options{FlushInterval: 5 * time.Millisecond})
	s := open(t, d, "t", 0)
	apply(t, s, 7, put("a", "1"))
	for begun := time.Now(); s.Metrics().Durable != 7; time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			t.Fatal("never flushed")
		}
	}
	state.Abandon(s)
	if s = open(t, d, "t", 0); s.Offset() != 7 {
		t.Fatalf("offset %d", s.Offset())
	}
}

// The default is a share of the container's memory. A share of the node's gets the container killed.
func TestContainerMemory(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"version 2, in a container", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "536870912\n"}, 536870912},
		{"version 2, no limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0},
		{"version 2, nested", map[string]string{
			"proc/self/cgroup": "0::/pods/one/box\n", "sys/fs/cgroup/pods/memory.max": "max\n",
			"sys/fs/cgroup/pods/one/memory.max": "1000000\n", "sys/fs/cgroup/pods/one/box/memory.max": "2000000\n",
		}, 1000000},
		{"version 2, the host's path", map[string]string{"proc/self/cgroup": "0::/kubepods/burstable/pod1\n", "sys/fs/cgroup/memory.max": "777777\n"}, 777777},
		{"version 1", map[string]string{
			"proc/self/cgroup":                                      "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":            "9223372036854771712\n",
			"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "268435456\n",
		}, 268435456},
		{"version 1, no limit", map[string]string{"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		{"not Linux", map[string]string{"x": ""}, 0},
	} {
		root := t.TempDir()
		for name, content := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, ok := state.ContainerMemoryAt(root)
		if ok != (c.want != 0) || ok && got != c.want {
			t.Errorf("%s: %d %v, want %d", c.name, got, ok, c.want)
		}
	}
}

// Options of a manifest that nobody reads are a promise that is not kept: unknown and wrong ones are errors, all at once.
func TestTableOptions(t *testing.T) {
	good := map[string]string{
		"write_buffer_size": "1048576", "maxWriteBufferNumber": "4", "target_file_size_base": "1048576", "block_cache_size": "8388608",
		"bloom_filter_size": "0", "cacheIndexAndFilterBlocks": "true", "blockSize": "16384", "compression": "ZSTD", "bottommost_compression": "none",
		"level0_file_num_compaction_trigger": "2", "max_bytes_for_level_base": "10000000", "max_open_files": "50",
	}
	if err := state.CheckTableOptions(good); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, state.Options{Tables: map[string]map[string]string{"t": good}})
	s := open(t, d, "t", 0)
	folds, _ := fill(t, s, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	list, err := filepath.Glob(filepath.Join(state.Folder(s), "OPTIONS-*"))
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	b, err := os.ReadFile(list[len(list)-1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"write_buffer_size=1048576", "max_write_buffer_number=4", "target_file_size_base=1048576", "filter_policy=nullptr", "cache_index_and_filter_blocks=true",
		"block_size=16384", " compression=kZSTD", "bottommost_compression=kNoCompression", "level0_file_num_compaction_trigger=2",
		"max_bytes_for_level_base=10000000", "max_open_files=50", "avoid_flush_during_shutdown=true", "max_bgerror_resume_count=0", "paranoid_checks=true",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("RocksDB was opened without %s", want)
		}
	}
	same(t, open(t, d, "t", 0), folds)
	err = state.CheckTableOptions(map[string]string{"wal_dir": "/x", "write_buffer_size": "-1", "compression": "best", "cache_index_and_filter_blocks": "3"})
	for _, want := range []string{`unknown option "wal_dir"`, `option "write_buffer_size": "-1"`, `"best" is none of lz4`, `"3" is neither`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
	_, err = state.OpenDir(state.Options{WriteBufferSize: -1, Tables: map[string]map[string]string{"x": {"y": "z"}}})
	for _, want := range []string{"no state directory", "WriteBufferSize is -1", `table "x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
	if len(state.TableOptionNames()) != len(good) {
		t.Error("an option is not tested")
	}
}

// Two tables' stores are independent: one that breaks does not stop the other.
func TestStoresAreIndependent(t *testing.T) {
	d := openDir(t, state.Options{})
	a, b := open(t, d, "t", 0), open(t, d, "t", 1)
	apply(t, a, 1, put("a", "1"))
	apply(t, b, 1, put("a", "1"))
	if err := state.Raw(a, []byte("\x01a"), []byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Get([]byte("a")); !errors.Is(err, state.ErrCorrupt) || a.Err() == nil {
		t.Fatal(err)
	}
	apply(t, b, 2, put("a", "2"))
	if b.Err() != nil {
		t.Fatal(b.Err())
	}
	if err := a.Close(); !errors.Is(err, state.ErrCorrupt) {
		t.Fatalf("close says nothing of what is lost: %v", err)
	}
	m := b.Metrics()
	if m.Batches != 2 || m.Changes != 2 || m.ChangedBytes != 4 || m.Offset != 2 || m.Keys == 0 || m.MemtableBytes == 0 {
		t.Errorf("%+v", m)
	}
}
