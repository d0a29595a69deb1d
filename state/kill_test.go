package state_test

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"kaspr.io/kaspr/state"
)

const killPartitions = 3

// killedRecord is record number offset of a partition's changelog: anybody can make it.
func killedRecord(seed uint64, number int32, offset int64) state.Change {
	rnd := rand.New(rand.NewPCG(seed, uint64(number)<<48|uint64(offset)))
	c := state.Change{Key: fmt.Appendf(nil, "key-%d", rnd.IntN(2000))}
	if rnd.IntN(5) > 0 {
		c.Value = fmt.Appendf(nil, "%d:%0*d", offset, rnd.IntN(200)+1, rnd.IntN(100))
		if rnd.IntN(3) == 0 {
			c.Expires = rnd.Int64N(1e6) + 1
		}
	}
	return c
}

func killOptions(dir string) state.Options {
	// Small buffers and files: a kill hits flushes and compactions as often as writes.
	return state.Options{
		Dir: dir, MemoryLimit: 32 << 20, WriteBufferSize: 128 << 10, TargetFileSizeBase: 256 << 10, WriteBuffersSize: 300 << 10,
		FlushInterval: 20 * time.Millisecond,
		Tables:        map[string]map[string]string{"t": {"maxBytesForLevelBase": "1000000"}},
	}
}

// killedChild applies its changelogs until it is killed.
func killedChild(t *testing.T, dir string, seed uint64) {
	d := openDir(t, killOptions(dir))
	var owners sync.WaitGroup
	for number := range int32(killPartitions) {
		s := open(t, d, "t", number)
		owners.Go(func() {
			rnd := rand.New(rand.NewPCG(rand.Uint64(), 0))
			staged := state.NewStaged(s)
			for at := s.Offset(); ; {
				for n := rnd.IntN(300) + 1; n > 0; n-- {
					staged.Stage([]state.Change{killedRecord(seed, number, at)})
					at++
				}
				set := staged.Freeze()
				if err := staged.Commit(set, at); err != nil {
					fmt.Println("ERROR", err)
					os.Exit(1)
				}
				if rnd.IntN(20) == 0 {
					_ = s.Flush()
				}
				if _, err := staged.Expired(rnd.Int64N(1e6), 10); err != nil {
					fmt.Println("ERROR", err)
					os.Exit(1)
				}
			}
		})
	}
	fmt.Println("READY")
	owners.Wait()
}

// After SIGKILL, at any moment, a store equals the fold of its changelog up to the offset it names. KILLS=n for a longer run.
func TestKill(t *testing.T) {
	if dir := os.Getenv("KASPR_TEST_KILL"); dir != "" {
		seed, _ := strconv.ParseUint(os.Getenv("KASPR_TEST_KILL_SEED"), 0, 64)
		killedChild(t, dir, seed)
		return
	}
	kills := 10
	if n, err := strconv.Atoi(os.Getenv("KILLS")); err == nil {
		kills = n
	}
	if testing.Short() {
		kills = 2
	}
	dir, seed := t.TempDir(), rand.Uint64()
	t.Logf("seed %#x", seed)
	var tables [killPartitions]map[string]state.Change
	var upTo [killPartitions]int64
	for i := range tables {
		tables[i] = map[string]state.Change{}
	}
	moved := 0
	for kill := range kills {
		killChild(t, "TestKill", dir, seed, 250*time.Millisecond)
		d := openDir(t, killOptions(dir))
		for number := range int32(killPartitions) {
			s := open(t, d, "t", number)
			to := s.Offset()
			if to < upTo[number] {
				t.Fatalf("kill %d, partition %d: offset %d, was %d on disk before", kill, number, to, upTo[number])
			}
			if to > upTo[number] {
				moved++
			}
			table := tables[number]
			for at := upTo[number]; at < to; at++ {
				c := killedRecord(seed, number, at)
				table[string(c.Key)] = c
			}
			upTo[number] = to
			compare(t, s, table, fmt.Sprintf("kill %d, partition %d, offset %d, seed %#x", kill, number, to, seed))
			if err := s.Verify(); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d kills, offsets %v, %d times a store had moved on", kills, upTo, moved)
	if moved == 0 {
		t.Error("no store ever got anything to disk: this tested nothing")
	}
}

// killChild runs a test in a process of its own that finds the directory and the seed in its environment, and kills it some time after it
// has said READY.
func killChild(t *testing.T, test, dir string, seed uint64, within time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "KASPR_TEST_KILL="+dir, fmt.Sprintf("KASPR_TEST_KILL_SEED=%#x", seed))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "READY\n" {
		_ = cmd.Wait()
		t.Fatalf("the child says %q", line)
	}
	time.Sleep(rand.N(within))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// removedChild puts a copy of the store at model in place and destroys it, again and again, until it is killed.
func removedChild(t *testing.T, dir string) {
	model, place := filepath.Join(dir, "model", "t", "0"), filepath.Join(dir, "stores", "t", "0")
	files, err := os.ReadDir(model)
	if err != nil {
		t.Fatal(err)
	}
	d := openDir(t, killOptions(filepath.Join(dir, "stores")))
	fmt.Println("READY")
	for {
		fresh := filepath.Join(dir, "fresh")
		if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755), os.MkdirAll(filepath.Dir(place), 0o755)); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Link(filepath.Join(model, f.Name()), filepath.Join(fresh, f.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(d.Destroy("t", 0), os.Rename(fresh, place), d.Destroy("t", 0)); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that is killed while it removes a store leaves all of it or nothing: the rest of one would be taken for a table, or for a
// disk that has failed.
func TestKillInRemoval(t *testing.T) {
	if dir := os.Getenv("KASPR_TEST_KILL"); dir != "" {
		removedChild(t, dir)
		return
	}
	enough := 3
	if testing.Short() {
		enough = 1
	}
	const records = 2000
	dir, seed := t.TempDir(), rand.Uint64()
	model := openDir(t, killOptions(filepath.Join(dir, "model")))
	s, table := open(t, model, "t", 0), map[string]state.Change{}
	for at := int64(0); at < records; {
		var changes []state.Change
		for range 50 { // a file each
			c := killedRecord(seed, 0, at)
			table[string(c.Key)] = c
			changes = append(changes, c)
			at++
		}
		if err := errors.Join(s.Apply(changes, at), s.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	if err := model.Close(); err != nil {
		t.Fatal(err)
	}
	kill, cut, whole := 0, 0, 0
	for ; cut < enough && kill < 500; kill++ {
		killChild(t, "TestKillInRemoval", dir, seed, 50*time.Millisecond)
		stores := filepath.Join(dir, "stores")
		left, err := filepath.Glob(filepath.Join(stores, "t", "*.gone", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			cut++
		}
		d := openDir(t, killOptions(stores))
		if numbers, err := d.Partitions("t"); err != nil || len(left) > 0 && len(numbers) > 0 {
			t.Errorf("kill %d: there are stores %v and the rest of one, %v", kill, numbers, err)
		}
		s := open(t, d, "t", 0)
		switch what := fmt.Sprintf("kill %d, offset %d, seed %#x", kill, s.Offset(), seed); s.Offset() {
		case 0:
			compare(t, s, nil, what)
		case records:
			whole++
			compare(t, s, table, what)
		default:
			t.Error(what)
		}
		if err := s.Verify(); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if names, err := os.ReadDir(filepath.Join(stores, "t")); err != nil || len(names) != 1 {
			t.Errorf("kill %d: %v is left, %v", kill, names, err)
		}
	}
	t.Logf("%d kills, %d of them in the middle of a removal, %d times the store was whole", kill, cut, whole)
	if cut < enough {
		t.Error("hardly any removal was cut off: this tested nothing")
	}
}

// compare holds a store against a table: entries, and which of them are due.
func compare(t *testing.T, s state.Store, table map[string]state.Change, what string) {
	t.Helper()
	n, it := 0, s.Scan(state.Range{})
	for it.Next() {
		if n++; string(table[string(it.Key())].Value) != string(it.Value()) {
			t.Fatalf("%s: %s is %s, want %s", what, it.Key(), it.Value(), table[string(it.Key())].Value)
		}
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	want, due := 0, 0
	for _, c := range table {
		if c.Value != nil {
			want++
			if c.Expires != 0 {
				due++
			}
		}
	}
	if n != want {
		t.Fatalf("%s: %d entries, want %d", what, n, want)
	}
	list, err := s.Expired(1<<62, want+1)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if table[string(e.Key)].Expires != e.At {
			t.Fatalf("%s: %s is due at %d, want %d", what, e.Key, e.At, table[string(e.Key)].Expires)
		}
	}
	if len(list) != due {
		t.Fatalf("%s: %d entries due, want %d", what, len(list), due)
	}
}
