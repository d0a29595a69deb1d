package state_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"kaspr.io/kaspr/state"
)

// smallDisk is a folder on a file system of a few megabytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("no small file system to fill: mount tmpfs: %v (TestFileSizeLimit covers failing writes without rights)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// fill applies batches until the store refuses, at most to offset most. It returns the folds by offset and the refusal.
func fill(t *testing.T, s state.Store, most int64) (folds map[int64]map[string]string, refused error) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(uint64(s.Offset()), 9))
	now := map[string]string{}
	it := s.Scan(state.Range{})
	for it.Next() {
		now[string(it.Key())] = string(it.Value())
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	copied := func() map[string]string {
		c := make(map[string]string, len(now))
		for k, v := range now {
			c[k] = v
		}
		return c
	}
	folds = map[int64]map[string]string{s.Offset(): copied()}
	for s.Offset() < most {
		var changes []state.Change
		for range 20 {
			changes = append(changes, state.Change{Key: fmt.Appendf(nil, "k%04d", rnd.IntN(3000)), Value: noise(rnd, 1000)})
		}
		if err := s.Apply(changes, s.Offset()+1); err != nil {
			return folds, err
		}
		for _, c := range changes {
			now[string(c.Key)] = string(c.Value)
		}
		folds[s.Offset()] = copied()
	}
	return folds, nil
}

// same compares a store with the fold at its offset.
func same(t *testing.T, s state.Store, folds map[int64]map[string]string) {
	t.Helper()
	want, ok := folds[s.Offset()]
	if !ok {
		t.Fatalf("offset %d was never reached", s.Offset())
	}
	n := 0
	it := s.Scan(state.Range{})
	for it.Next() {
		if n++; want[string(it.Key())] != string(it.Value()) {
			t.Fatalf("offset %d: %s differs", s.Offset(), it.Key())
		}
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if n != len(want) {
		t.Fatalf("offset %d: %d entries, want %d", s.Offset(), n, len(want))
	}
}

// A full disk must stop the partition with a clear error, lose nothing that was durable, and be over once there is room.
func TestDiskFull(t *testing.T) {
	disk := smallDisk(t, "12m")
	d := openDir(t, state.Options{Dir: disk, WriteBufferSize: 1 << 20})
	s := open(t, d, "t", 0)
	begun := time.Now()
	folds, err := fill(t, s, 5000)
	t.Logf("after %v, offset %d, durable %d: %v", time.Since(begun), s.Offset(), s.Metrics().Durable, err)
	if !errors.Is(err, state.ErrDisk) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("want ErrDisk and ENOSPC, got %v", err)
	}
	if !strings.Contains(err.Error(), "t/0") || s.Err() == nil {
		t.Errorf("the error does not name the partition, or the store forgot it: %v", err)
	}
	same(t, s, folds) // the store answers reads
	if err := s.Apply([]state.Change{put("a", "1")}, s.Offset()+1); !errors.Is(err, state.ErrDisk) {
		t.Fatalf("a full store takes a change: %v", err)
	}
	if err := s.Flush(); !errors.Is(err, state.ErrDisk) {
		t.Fatalf("flush: %v", err)
	}
	begun = time.Now()
	if err := s.Close(); !errors.Is(err, state.ErrDisk) {
		t.Errorf("close: %v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("close took %v", took)
	}
	// Still full: opening may fail, but only so.
	if s, err := d.Open("t", 0); err == nil {
		same(t, s, folds)
		_ = s.Close()
	} else if !errors.Is(err, state.ErrDisk) {
		t.Errorf("open on a full disk: %v", err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	s = open(t, d, "t", 0)
	t.Logf("reopened at offset %d", s.Offset())
	same(t, s, folds)
	if _, err := fill(t, s, s.Offset()+50); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Writes that fail for another reason: here a limit on the size of files, in a child process because it holds for all.
func TestFileSizeLimit(t *testing.T) {
	if dir := os.Getenv("KASPR_TEST_FILE_SIZE_LIMIT"); dir != "" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		d := openDir(t, state.Options{Dir: dir, WriteBufferSize: 4 << 20, TargetFileSizeBase: 8 << 20})
		s := open(t, d, "t", 0)
		folds, err := fill(t, s, 5000)
		if !errors.Is(err, state.ErrDisk) || !errors.Is(err, syscall.EFBIG) {
			t.Fatalf("want ErrDisk and EFBIG, got %v", err)
		}
		same(t, s, folds)
		if err := s.Close(); !errors.Is(err, state.ErrDisk) {
			t.Fatalf("close: %v", err)
		}
		s = open(t, d, "t", 0)
		same(t, s, folds)
		fmt.Println("LIMIT REACHED AT", s.Offset())
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFileSizeLimit$", "-test.v")
	cmd.Env = append(os.Environ(), "KASPR_TEST_FILE_SIZE_LIMIT="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "LIMIT REACHED") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// A folder that cannot be written must be an error of the disk, not a reason to throw a store away.
func TestReadOnly(t *testing.T) {
	disk := smallDisk(t, "32m")
	d := openDir(t, state.Options{Dir: disk})
	s := open(t, d, "t", 0)
	folds, _ := fill(t, s, 20)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT|flags, "size=32m"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	remount(syscall.MS_RDONLY)
	if _, err := state.OpenDir(state.Options{Dir: disk}); !errors.Is(err, state.ErrDisk) {
		t.Errorf("open the directory: %v", err)
	}
	remount(0)
	d = openDir(t, state.Options{Dir: disk})
	remount(0)
	s = open(t, d, "t", 0)
	same(t, s, folds)
}
