package wasmhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// unchecked says whether code without checks of addresses is what is tested: only a build with our patches of wazero makes it.
func unchecked(t testing.TB) bool {
	t.Helper()
	return os.Getenv("KASPR_PATCHED") != "" && spillRefused() == ""
}

func newTestMemory(t testing.TB, most int64) *memory {
	t.Helper()
	if reason := spillRefused(); reason != "" {
		t.Skip(reason)
	}
	m, err := newMemory(most, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.unmap(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// spilled is how many bytes the machine gave for what is behind the memory.
func spilled(t testing.TB, m *memory) int64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Fstat(m.spill, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}

// A guest that strays reaches nothing of another instance's or the host's, and what it leaves behind is not what its memory grows into.
func TestSpill(t *testing.T) {
	a, b := newTestMemory(t, 64<<20), newTestMemory(t, 64<<20)
	for _, m := range []*memory{a, b} {
		if m.Reallocate(1<<20) == nil || m.strayed() {
			t.Fatal("no memory, or strayed without an access")
		}
		clear(m.bytes())
		if m.strayed() {
			t.Fatal("its own memory is the spill")
		}
	}
	for _, at := range []int{1 << 20, 2<<20 - 1, 64 << 20, 1 << 31, 4<<30 - 1, 4 << 30, reach - 1} {
		a.reserved[at] = 7
	}
	if !a.strayed() || b.strayed() {
		t.Errorf("strayed: %v, and the other %v", a.strayed(), b.strayed())
	}
	for at := 1 << 20; at < reach; at += 64 << 10 {
		if b.reserved[at] != 0 {
			t.Fatalf("the other's byte is at %#x", at)
		}
	}
	if !bytes.Equal(a.bytes(), make([]byte, 1<<20)) {
		t.Error("its memory changed")
	}
	if a.Reallocate(3<<20) == nil || !bytes.Equal(a.bytes(), make([]byte, 3<<20)) {
		t.Error("grown memory holds what was left there")
	}
	if a.Reallocate(65<<20) != nil || a.size != 3<<20 || a.refused != 65<<20 {
		t.Error("it grew past its limit")
	}
	before := spilled(t, a)
	for at := spillSize; at < reach; at += 1 << 20 {
		a.reserved[at] = 1
	}
	if n := spilled(t, a) - before; n == 0 || n > spillSize>>20*4096 {
		t.Errorf("%d bytes behind the memory for %d pages of the same file", n, spillSize>>20)
	}
}

// The largest memory ends where the addresses do: what is behind it is what offsets reach.
func TestSpillOfLargestMemory(t *testing.T) {
	m := newTestMemory(t, memoryMaxCeiling)
	if m.Reallocate(memoryMaxCeiling) == nil {
		t.Fatal("no memory of 4 GiB")
	}
	m.bytes()[memoryMaxCeiling-1] = 1
	if m.strayed() {
		t.Error("its last byte is not its own")
	}
	m.reserved[memoryMaxCeiling] = 1
	if !m.strayed() {
		t.Error("the byte behind it is its own")
	}
}

// An access out of bounds fails its record as a trap, the same with and without checks, wherever it is, and harms no other record.
func TestStray(t *testing.T) {
	for _, check := range []bool{false, true} {
		t.Run(fmt.Sprint("check=", check), func(t *testing.T) {
			r := newTestRuntime(t, Config{CheckAddresses: check})
			s := newTestSnapshot(t, r, Options{})
			for _, at := range []int64{s.image.size - 1, s.image.size, s.image.size + 1<<20, testOptions().MemoryMax, 1<<31 - 2, 1 << 31, 4<<30 - 4, 4<<30 - 1} {
				c := NewComponent(s, 1)
				res, err := c.Call(t.Context(), 0, batch("echo", fmt.Sprint("@", at), "count"))
				if got := show(res); err != nil || got != "0:echo 1!trap 2:1 done=3" {
					t.Errorf("at %#x: %s, %v", at, got, err)
				} else if f := res.Failures[0]; f.Type != "Trap" || !strings.Contains(f.Message, "out of bounds memory access") {
					t.Errorf("at %#x: %+v", at, f)
				}
				if in := c.slots[0].instance; in != nil && in.mem.strayed() {
					t.Errorf("at %#x: the instance is used again", at)
				}
				if err := c.slots[0].drop(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Whoever holds a page of an image for a moment, as the kernel does when it moves one, does not keep an app from starting.
func TestImageIsSealedLater(t *testing.T) {
	img, err := newImage(make([]byte, 1<<16), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = img.close() }()
	late := &image{size: 1 << 16}
	if late.fd, err = unix.MemfdCreate("kaspr-image", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.close() }()
	if err := unix.Ftruncate(late.fd, late.size); err != nil {
		t.Fatal(err)
	}
	held, err := unix.Mmap(late.fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	const hold = 100 * time.Millisecond
	began, left := time.Now(), make(chan error, 1)
	time.AfterFunc(hold, func() { left <- unix.Munmap(held) })
	if err := late.fill(make([]byte, late.size)); err != nil || time.Since(began) < hold {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
	for _, img := range []*image{img, late} {
		if _, err := unix.Pwrite(img.fd, []byte{1}, 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("a sealed image was written: %v", err)
		}
	}
}

// What is left behind a memory must not be found by the next user of the instance: it is not taken back to its image.
func TestStrayedIsNotReset(t *testing.T) {
	s := newTestSnapshot(t, newTestRuntime(t, Config{}), Options{})
	in, other := newTestInstance(t, s), newTestInstance(t, s)
	_, err := in.Call(t.Context(), batch("echo", "@3000000000"))
	if !errors.Is(err, ErrTrap) || !in.ended {
		t.Fatal(err)
	}
	if res, err := other.Call(t.Context(), batch("echo")); err != nil || show(res) != "0:echo done=1" {
		t.Errorf("an instance beside it: %s, %v", show(res), err)
	}
	if s.reset(t.Context(), in) == unchecked(t) {
		t.Errorf("reset: %v, without checks: %v", !unchecked(t), unchecked(t))
	}
	if res, err := in.Call(t.Context(), batch("echo")); unchecked(t) && err == nil {
		t.Errorf("it runs again: %s", show(res))
	}
}

// A guest that does nothing but stray is ended by a tick, long before its deadline, and what it can take is bounded.
func TestStrayingIsEnded(t *testing.T) {
	r := newTestRuntime(t, Config{Tick: time.Millisecond})
	in := newTestInstance(t, newTestSnapshot(t, r, Options{Deadline: time.Minute}))
	begin := time.Now()
	_, err := in.Call(t.Context(), batch("A1000000000"))
	if !errors.Is(err, ErrTrap) || time.Since(begin) > 30*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	if unchecked(t) {
		if n := spilled(t, in.mem); n == 0 || n > spillSize {
			t.Errorf("%d bytes behind the memory", n)
		}
	}
}

// Memory that a guest grows into is zeros, and no stray.
func TestGrownMemoryIsZeros(t *testing.T) {
	in := newTestInstance(t, newTestSnapshot(t, newTestRuntime(t, Config{}), Options{}))
	res, err := in.Call(t.Context(), batch("G16", "G1", "G60"))
	if err != nil || show(res) != "0:0 1:0 2:0 done=3" {
		t.Errorf("%s, %v", show(res), err)
	}
}

// Mappings are few enough for thousands of instances in a process, and Close takes them all.
func TestMappingsOfInstance(t *testing.T) {
	s := newTestSnapshot(t, newTestRuntime(t, Config{}), Options{})
	count := func() int {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(maps), "kaspr-spill") + strings.Count(string(maps), "kaspr-image")
	}
	before := count()
	var instances []*Instance
	for range 10 {
		in, err := s.NewInstance(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		instances = append(instances, in)
	}
	most := 1
	if spillRefused() == "" {
		most += reach / spillSize
	}
	if n := count() - before; n > 10*most {
		t.Errorf("10 instances have %d mappings, want at most %d each", n, most)
	}
	for _, in := range instances {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := count(); n != before {
		t.Errorf("%d mappings, %d before", n, before)
	}
}

// Where memories cannot have a spill, code is checked and runs as ever.
func TestNoSpill(t *testing.T) {
	if reason := spillRefused(); reason != "" {
		t.Skip(reason)
	}
	for _, test := range []struct {
		resource int
		limit    uint64
		want     string
	}{
		{unix.RLIMIT_AS, 1 << 46, "ulimit -v"},
		{unix.RLIMIT_FSIZE, spillSize - 1, "ulimit -f"},
	} {
		var was unix.Rlimit
		if err := unix.Getrlimit(test.resource, &was); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(test.resource, &unix.Rlimit{Cur: test.limit, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		reason := spillRefused()
		var log bytes.Buffer
		options := testOptions()
		options.Logger = slog.New(slog.NewTextHandler(&log, nil))
		r, err := New(t.Context(), Config{Module: testGuest, Defaults: options})
		if err := unix.Setrlimit(test.resource, &was); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.spill || !strings.Contains(reason, test.want) || !strings.Contains(log.String(), test.want) {
			t.Errorf("spill %v, reason %q, want %q, log %q", r.spill, reason, test.want, &log)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// accesses is a module whose functions read a byte of its memory of one page, each at its parameter and in its own way.
func accesses(bodies ...[]byte) []byte {
	functions, exports, code := []byte{byte(len(bodies))}, []byte{byte(len(bodies))}, []byte{byte(len(bodies))}
	for i, body := range bodies {
		functions = append(functions, 0)
		exports = append(exports, named(fmt.Sprint("f", i), 0, byte(i))...)
		code = append(code, function(body...)...)
	}
	return join([]byte("\x00asm\x01\x00\x00\x00"), section(1, 1, 0x60, 1, 0x7e, 1, 0x7f), section(3, functions...), section(5, 1, 0, 1),
		section(7, exports...), section(10, code...), section(11, join([]byte{1, 0, 0x41, 0, opEnd, 16}, []byte("0123456789abcdef"))...))
}

// The 32 bits of an address are all of it, whatever a register holds besides: nothing but that keeps an unchecked access inside of the reservation.
func TestAddresses(t *testing.T) {
	const get, wrap, load8, load8s, extend8 = 0x20, 0xa7, 0x2d, 0x2c, 0xc0
	bodies := [][]byte{
		0: {get, 0, wrap, load8, 0, 0},                            // load8(wrap(x))
		1: {get, 0, wrap, load8, 0, 0x80, 0x80, 0x80, 0x80, 0x01}, // at an offset of 256 MiB
		2: {get, 0, wrap, load8, 0, 0xff, 0xff, 0xff, 0xff, 0x01}, // at the largest that needs no check, 512 MiB - 1
		3: {get, 0, wrap, load8, 0, 0x80, 0x80, 0x80, 0x80, 0x02}, // one more
		4: {get, 0, wrap, load8, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}, // the largest there is
		5: {0x41, 0x78, load8, 0, 0},                              // at the constant -8
		6: {0x41, 0x80, 0x80, 0x80, 0x80, 0x78, load8, 0, 0},      // at the constant 0x80000000
		7: {get, 0, wrap, extend8, load8, 0, 0},                   // at a sign-extended byte
		8: {get, 0, wrap, load8s, 0, 0, load8, 0, 0},              // at a sign-extended byte of memory
		9: {get, 0, wrap, get, 0, wrap, 0x6a, load8, 0, 0},        // at a sum that overflows
		// load8(wrap(x)) after a branch that has accessed it in both arms, which makes wazero calculate the address again
		10: {get, 0, 0x50, 0x04, 0x40, get, 0, wrap, load8, 0, 0, 0x1a, 0x05, get, 0, wrap, load8, 0, 1, 0x1a, opEnd, get, 0, wrap, load8, 0, 2},
	}
	inside := []struct {
		f    int
		x    uint64
		want byte
	}{
		{0, 3, '3'},
		{0, 0xffffffff_00000003, '3'},
		{0, 0x12345678_0000000f, 'f'},
		{7, 0x7ffffff_00000005, '5'},
		{9, 0x80000002, '4'},
		{10, 0xabcdef_00000001, '3'},
		{10, 0, '2'},
	}
	outside := []struct {
		f int
		x uint64
	}{
		{0, 1 << 16},
		{0, 0xffffffff},
		{0, 0xdeadbeef_fffffff0},
		{1, 0},
		{1, 0xffffffff_ffffffff},
		{2, 0},
		{2, 0xffffffff},
		{2, 0xffffffff_ffffffff},
		{3, 0},
		{3, 0xffffffff},
		{4, 0},
		{4, 0xffffffff},
		{5, 0},
		{6, 0},
		{7, 0x80},
		{7, 0xff},
		{9, 0xffffffff},
		{10, 0xffffffff_ff000000},
		{10, 0x80000000},
	}
	ctx := t.Context()
	cache, err := wazero.NewCompilationCacheWithDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close(ctx)
	// Both in one cache, twice: code of one kind must not be taken for the other's.
	for _, spill := range []bool{true, false, true, false} {
		allocator := newTestMemory(t, 1<<20)
		if !spill {
			if allocator, err = newMemory(1<<20, false); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = allocator.unmap() }()
		}
		r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCompilationCache(cache))
		defer r.Close(ctx)
		own := experimental.WithMemoryAllocator(ctx, allocator)
		compiled, err := r.CompileModule(own, accesses(bodies...))
		if err != nil {
			t.Fatal(err)
		}
		if spill && unchecked(t) {
			checked, err := newMemory(1<<20, false)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = checked.unmap() }()
			for name, ctx := range map[string]context.Context{"no allocator": ctx, "a memory without a spill": experimental.WithMemoryAllocator(ctx, checked)} {
				if _, err := r.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("")); err == nil {
					t.Errorf("unchecked code runs with %s", name)
				}
			}
		}
		mod, err := r.InstantiateModule(own, compiled, wazero.NewModuleConfig().WithName(""))
		if err != nil {
			t.Fatal(err)
		}
		call := func(f int, x uint64) (uint64, error) {
			res, err := mod.ExportedFunction(fmt.Sprint("f", f)).Call(ctx, x)
			if err != nil {
				return 0, err
			}
			return uint64(uint32(res[0])), nil
		}
		for _, a := range inside {
			if got, err := call(a.f, a.x); err != nil || byte(got) != a.want {
				t.Errorf("spill=%v f%d(%#x): %d %v, want %c", spill, a.f, a.x, got, err, a.want)
			}
		}
		if allocator.strayed() {
			t.Fatal("strayed inside its memory")
		}
		for _, a := range outside {
			got, err := call(a.f, a.x)
			free := spill && unchecked(t) && a.f != 3 && a.f != 4 // whose offsets are checked
			if (err == nil) != free || got != 0 {
				t.Errorf("spill=%v f%d(%#x): %d, %v", spill, a.f, a.x, got, err)
			}
			if allocator.strayed() != free {
				t.Errorf("spill=%v f%d(%#x): strayed is %v", spill, a.f, a.x, allocator.strayed())
			}
			if free { // forget it
				if err := unix.Fallocate(allocator.spill, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, spillSize); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
