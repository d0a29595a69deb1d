package wasmhost

import (
	"bytes"
	"fmt"
	"unsafe"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// memory is one instance's linear memory: address space for all it may ever have, so that it never moves, of which the
// front is usable. It implements wazero's MemoryAllocator for that one instance, and its LinearMemory.
//
// Invariant: whoever writes to it from outside the instance's goroutine (the ticker) is unregistered before unmap.
type memory struct {
	reserved []byte // PROT_NONE from size on
	size     int64
	max      int64 // limit, in whole WebAssembly pages
	refused  int64 // size of the last growth that was refused since the field was cleared; 0: none
}

func newMemory(max int64) (*memory, error) {
	max &^= pageSize - 1
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(max), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of address space: %w", max, err)
	}
	return &memory{reserved: unsafe.Slice((*byte)(p), max), max: max}, nil
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
		if err := unix.Mprotect(m.reserved[m.size:grown], unix.PROT_READ|unix.PROT_WRITE); err != nil {
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
	return unix.MunmapPtr(p, n)
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
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	_, err := unix.FcntlInt(uintptr(img.fd), unix.F_ADD_SEALS, seals)
	return err
}

func (img *image) close() error {
	if img.fd < 0 {
		return nil
	}
	fd := img.fd
	img.fd = -1
	return unix.Close(fd)
}
