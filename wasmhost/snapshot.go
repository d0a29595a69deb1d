package wasmhost

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// Snapshot is the memory of an instance that has loaded one program. It never changes.
type Snapshot struct {
	r       *Runtime
	image   *image
	program *program
	closed  atomic.Bool
}

// NewInstance restores the image over a module of its own; most of its time is that of the module (see reset).
func (s *Snapshot) NewInstance(ctx context.Context) (*Instance, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	begin := time.Now()
	in, err := s.r.restore(ctx, s.image, s.program)
	if err != nil {
		return nil, fmt.Errorf("restore instance: %w", err)
	}
	stats := s.program.stats
	stats.Restores.Add(1)
	stats.RestoreNanos.Add(time.Since(begin).Nanoseconds())
	return in, nil
}

// reset makes an instance of this Snapshot what NewInstance gives, over the module it has: only its memory and globals are
// taken back, which costs half as much. False when that cannot be: the guest exited, or its memory has grown, which a
// module does not forget, or it strayed and left something there, or left files open. The instance is to be closed then.
func (s *Snapshot) reset(ctx context.Context, in *Instance) bool {
	if s.closed.Load() || in.closed || in.mod.IsClosed() || in.mem.strayed() || in.mem.size != s.image.size || in.library.open > 1 {
		return false
	}
	begin := time.Now()
	if in.mem.mapImage(s.image) != nil {
		return false
	}
	for i, value := range s.image.globals {
		in.mod.ExportedGlobal(globalName(s.r.guest.globals[i])).(api.MutableGlobal).Set(value)
	}
	in.functions, in.calls, in.inputSize, in.ended = nil, 0, 0, false
	in.pending = pendingAnswer{}
	if in.reseed(ctx) != nil {
		return false
	}
	s.program.stats.Restores.Add(1)
	s.program.stats.RestoreNanos.Add(time.Since(begin).Nanoseconds())
	return true
}

// reseed gives an instance randomness of its own.
func (in *Instance) reseed(ctx context.Context) error {
	var seed [64]byte
	_, _ = rand.Read(seed[:]) // never fails
	code, err := in.run(ctx, "kaspr_reseed", seed[:])
	if err == nil && code != 0 {
		err = fmt.Errorf("%w: kaspr_reseed gave %d", ErrProtocol, code)
	}
	return err
}

// Stats counts what all instances of the Snapshot did.
func (s *Snapshot) Stats() *Stats { return s.program.stats }

// Bytes is the size of the image.
func (s *Snapshot) Bytes() int64 { return s.image.size }

// Close frees the image. Its instances must be closed before. It is idempotent.
func (s *Snapshot) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return nil
	}
	s.r.open.Add(-1)
	return s.image.close()
}

// restore makes an instance from an image and gives it randomness of its own.
func (r *Runtime) restore(ctx context.Context, img *image, p *program) (*Instance, error) {
	mem, err := newMemory(p.MemoryMax, r.spill)
	if err != nil {
		return nil, err
	}
	if err := mem.mapImage(img); err != nil {
		_ = mem.unmap()
		return nil, err
	}
	in, err := r.instantiate(ctx, mem, img.globals, p)
	if err != nil {
		return nil, err
	}
	if err := in.reseed(ctx); err != nil {
		_ = in.Close()
		return nil, err
	}
	return in, nil
}

// instantiate makes an instance over mem, which it owns from here on. Nothing of the guest runs.
func (r *Runtime) instantiate(ctx context.Context, mem *memory, globals []uint64, p *program) (*Instance, error) {
	in := &Instance{r: r, program: p, mem: mem, own: -1}
	in.library.zip = r.cfg.Stdlib
	config := r.module.WithStdout(&lineWriter{in: in, level: 20}).WithStderr(&lineWriter{in: in, level: 30}).
		WithFSConfig(in.library.mount()).WithRandSource(rand.Reader).
		WithNanosleep(func(ns int64) { in.sleep(time.Duration(ns)) })
	var err error
	in.mod, err = r.wazero.InstantiateModule(experimental.WithMemoryAllocator(ctx, mem), r.compiled, config)
	if err == nil && in.mod.Memory().Size() != uint32(mem.size) && mem.size < memoryMaxCeiling {
		err = fmt.Errorf("BUG: memory of %d bytes, not %d", in.mod.Memory().Size(), mem.size)
	}
	if err == nil {
		in.slot, err = r.ticker.add(&mem.bytes()[r.guest.state])
	}
	if err != nil {
		if in.mod != nil {
			_ = in.mod.Close(ctx)
		}
		_ = mem.unmap()
		return nil, err
	}
	for i, value := range globals {
		in.mod.ExportedGlobal(globalName(r.guest.globals[i])).(api.MutableGlobal).Set(value)
	}
	in.ctx = instanceContext{context.Background(), in}
	r.open.Add(1)
	p.stats.Instances.Add(1)
	in.countMemory(mem.size)
	return in, nil
}
