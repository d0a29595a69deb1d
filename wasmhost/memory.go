package wasmhost

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// memory is one instance's linear memory: address space for all it may ever have, so that it never moves, of which the
// front is usable. It implements wazero's MemoryAllocator for that one instance, and its LinearMemory.
//
// With a spill, compiled code checks no address (see Reserved): wherever the guest strays, from the end of the memory to the last byte that an address with
// its offset can name, there is the spill, again and again: a file that only this instance has. So nothing it does faults or reaches what is not its own, what
// it can take of the machine beside its memory is spillSize, and that it strayed can be seen (strayed). Without one, code is checked.
//
// Invariant: whoever writes to it from outside the instance's goroutine (the ticker) is unregistered before unmap.
type memory struct {
	reserved []byte // PROT_NONE from size on, or the spill
	size     int64
	max      int64 // limit, in whole WebAssembly pages
	refused  int64 // size of the last growth that was refused since the field was cleared; 0: none
	spill    int   // file; -1: none
}

const (
	// reach is all that unchecked code can name: 32-bit addresses, with what wasmhost/wazero lets them have as offsets. It is a multiple of spillSize.
	reach = 4<<30 + 512<<20
	// spillSize is small, for what a guest that strays may take, but each mapping of it counts against vm.max_map_count (65530, of a process).
	spillSize = 512 << 20
)

// spillRefused says why memories cannot have a spill on this machine; empty if they can.
func spillRefused() string {
	limited := func(resource int, least uint64) bool {
		var limit unix.Rlimit
		return unix.Getrlimit(resource, &limit) != nil || limit.Cur < least
	}
	overcommit, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	switch {
	case runtime.GOARCH != "amd64":
		return "only tried on amd64"
	case limited(unix.RLIMIT_AS, unix.RLIM_INFINITY):
		return "the process's address space is limited (ulimit -v)"
	case limited(unix.RLIMIT_FSIZE, spillSize):
		return "files are limited to less than a spill's size (ulimit -f)"
	case err != nil:
		return err.Error()
	case strings.TrimSpace(string(overcommit)) == "2":
		// A page of the spill for which there is no commitment left would end the process.
		return "the machine commits no more memory than it has (vm.overcommit_memory is 2)"
	}
	return ""
}

func newMemory(max int64, spill bool) (*memory, error) {
	m := &memory{max: max &^ (pageSize - 1), spill: -1}
	size := m.max
	if spill {
		size = reach
	}
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(size), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of address space: %w", size, err)
	}
	m.reserved = unsafe.Slice((*byte)(p), size)
	if spill {
		if err := m.mapSpill(); err != nil {
			_ = m.unmap()
			return nil, fmt.Errorf("map what is behind a memory: %w", err)
		}
	}
	return m, nil
}

func (m *memory) mapSpill() (err error) {
	if m.spill, err = unix.MemfdCreate("kaspr-spill", unix.MFD_CLOEXEC); err != nil {
		return err
	}
	if err := unix.Ftruncate(m.spill, spillSize); err != nil {
		return err
	}
	for at := 0; at < reach; at += spillSize {
		_, err := unix.MmapPtr(m.spill, 0, unsafe.Pointer(&m.reserved[at]), spillSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
		if errors.Is(err, unix.ENOMEM) {
			return fmt.Errorf("%w (vm.max_map_count may be too small for as many instances of Python)", err)
		}
		if err != nil {
			return err
		}
	}
	return unix.Madvise(m.reserved, unix.MADV_DONTDUMP)
}

// Reserved tells a wazero with our patches that code needs no checks over this memory. The released wazero does not ask, and checks.
func (m *memory) Reserved() uint64 {
	if m.spill < 0 {
		return 0
	}
	return uint64(len(m.reserved))
}

// strayed says whether the guest has accessed anything behind its memory: it is no guest of ours any more then, and nothing it says counts.
func (m *memory) strayed() bool {
	if m.spill < 0 {
		return false
	}
	var s unix.Stat_t
	return unix.Fstat(m.spill, &s) != nil || s.Blocks > 0
}

// mapImage makes img the front of the memory, copied page by page when written.
func (m *memory) mapImage(img *image) error {
	if img.size > m.max {
		return fmt.Errorf("image of %d bytes in a memory of at most %d", img.size, m.max)
	}
	_, err := unix.MmapPtr(img.fd, 0, unsafe.Pointer(&m.reserved[0]), uintptr(img.size),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED)
	if err != nil {
		return fmt.Errorf("map image of %d bytes: %w", img.size, err)
	}
	m.size = img.size
	return nil
}

// bytes is the usable memory. It is valid until unmap, whatever became of the instance.
func (m *memory) bytes() []byte { return m.reserved[:m.size:m.size] }

// Allocate is called once, by the instantiation. The memory may be larger by then than the module says: then it holds
// an image.
func (m *memory) Allocate(_, _ uint64) experimental.LinearMemory { return m }

// Reallocate grows the memory in place, or returns nil: the guest's malloc fails then.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(m.max) {
		m.refused = int64(size)
		return nil
	}
	if grown := int64(size); grown > m.size {
		// One that fails leaves the spill in its place: what limits mappings is looked at before anything is taken away.
		_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&m.reserved[m.size]), uintptr(grown-m.size), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE|unix.MAP_FIXED)
		if err != nil {
			m.refused = grown
			return nil
		}
		m.size = grown
	}
	return m.bytes()
}

// Free does nothing: wazero calls it when a guest exits, and what the guest finished is still to be read. See unmap.
func (m *memory) Free() {}

func (m *memory) unmap() error {
	if m.reserved == nil {
		return nil
	}
	p := unsafe.Pointer(&m.reserved[0])
	n := uintptr(len(m.reserved))
	m.reserved, m.size = nil, 0
	err := unix.MunmapPtr(p, n)
	if m.spill >= 0 {
		err = errors.Join(err, unix.Close(m.spill))
		m.spill = -1
	}
	return err
}

// image is the memory and the globals of an instance between two calls, in an anonymous file nobody can change.
type image struct {
	fd      int
	size    int64
	globals []uint64
}

// newImage copies mem. Pages of zeros stay holes in the file.
func newImage(mem []byte, globals []uint64) (*image, error) {
	fd, err := unix.MemfdCreate("kaspr-image", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("create image file: %w", err)
	}
	img := &image{fd: fd, size: int64(len(mem)), globals: globals}
	if err := img.fill(mem); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("write image of %d bytes: %w", len(mem), err)
	}
	return img, nil
}

func (img *image) fill(mem []byte) error {
	if err := unix.Ftruncate(img.fd, img.size); err != nil {
		return err
	}
	const step = 4096
	var zeros [step]byte
	for off := 0; off < len(mem); {
		end := off
		for end < len(mem) && !bytes.Equal(mem[end:end+step], zeros[:]) {
			end += step
		}
		for off < end {
			n, err := unix.Pwrite(img.fd, mem[off:end], int64(off))
			if err != nil {
				return err
			}
			off += n
		}
		off += step
	}
	return img.seal()
}

// sealWait is how long the kernel may hold pages of an image.
const sealWait = 10 * time.Second

// seal makes the file unchangeable. The kernel refuses that with EBUSY (fcntl(2), F_SEAL_WRITE) as long as somebody could still write: a mapping,
// or whoever holds a page, which is also who moves pages or samples their use. On a busy machine it happens, and passes.
func (img *image) seal() error {
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		_, err := unix.FcntlInt(uintptr(img.fd), unix.F_ADD_SEALS, seals)
		if !errors.Is(err, unix.EBUSY) || time.Since(began) > sealWait {
			return err
		}
	}
}

func (img *image) close() error {
	if img.fd < 0 {
		return nil
	}
	fd := img.fd
	img.fd = -1
	return unix.Close(fd)
}
