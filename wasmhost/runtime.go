package wasmhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"kaspr.io/kaspr/wasmhost/abi"
)

// Runtime is the guest compiled once, and its base image: Python started, no program loaded.
type Runtime struct {
	cfg      Config
	guest    *guestModule
	cache    wazero.CompilationCache
	wazero   wazero.Runtime
	compiled wazero.CompiledModule
	module   wazero.ModuleConfig // what all instances share
	ticker   *ticker
	base     *image
	spill    bool         // memories have one, so that compiled code need not check addresses
	open     atomic.Int64 // snapshots and instances not closed
	closed   bool
}

// New compiles the guest (or takes it from Config.CacheDir), starts Python in it once and keeps the image.
func New(ctx context.Context, cfg Config) (_ *Runtime, err error) {
	cfg = cfg.withDefaults()
	if cfg.Tick < 0 {
		return nil, errors.New("wasmhost: the tick is negative")
	}
	if err := cfg.Defaults.validate(); err != nil {
		return nil, err
	}
	r := &Runtime{cfg: cfg}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	if r.guest, err = rewrite(cfg.Module); err != nil {
		return nil, err
	}
	if cfg.CacheDir == "" {
		r.cache = wazero.NewCompilationCache()
	} else if r.cache, err = wazero.NewCompilationCacheWithDir(cfg.CacheDir); err != nil {
		return nil, fmt.Errorf("open compilation cache: %w", err)
	}
	r.wazero = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().
		WithCompilationCache(r.cache).WithDebugInfoEnabled(false))
	if err = r.compile(ctx); err != nil {
		return nil, fmt.Errorf("compile guest: %w", err)
	}
	r.guest.wasm, r.cfg.Module = nil, nil // 20 MB nobody needs again
	if _, err = wasi_snapshot_preview1.Instantiate(ctx, r.wazero); err != nil {
		return nil, fmt.Errorf("instantiate wasi: %w", err)
	}
	if err = r.instantiateHost(ctx); err != nil {
		return nil, fmt.Errorf("instantiate host functions: %w", err)
	}
	r.module = wazero.NewModuleConfig().WithName("").WithStartFunctions().
		WithSysWalltime().WithSysNanotime()
	if r.ticker, err = newTicker(cfg.Tick); err != nil {
		return nil, err
	}
	if r.base, err = r.start(ctx); err != nil {
		return nil, fmt.Errorf("start the guest: %w", err)
	}
	return r, nil
}

// compile asks for code that checks no addresses, by showing wazero a memory with a spill, unless there can be none. Then wazero takes no other memory for
// that code.
func (r *Runtime) compile(ctx context.Context) (err error) {
	reason := spillRefused()
	if r.cfg.CheckAddresses {
		reason = "asked for"
	}
	if reason == "" {
		mem, err := newMemory(pageSize, true)
		if err != nil {
			reason = err.Error()
		} else {
			defer func() { _ = mem.unmap() }()
			ctx = experimental.WithMemoryAllocator(ctx, mem)
		}
	}
	if r.spill = reason == ""; !r.spill {
		r.cfg.Defaults.Logger.Info("compiled Python checks addresses, which makes it slower", "reason", reason)
	}
	r.compiled, err = r.wazero.CompileModule(ctx, r.guest.wasm)
	return err
}

// start makes the base image from an instance whose memory holds what the module's data segments say.
func (r *Runtime) start(ctx context.Context) (*image, error) {
	mem, err := newMemory(r.cfg.Defaults.MemoryMax, r.spill)
	if err != nil {
		return nil, err
	}
	if mem.Reallocate(uint64(r.guest.pages)*pageSize) == nil {
		return nil, errors.Join(fmt.Errorf("memory limit of %d bytes is less than the %d pages it needs", mem.max, r.guest.pages), mem.unmap())
	}
	for _, s := range r.guest.segments {
		copy(mem.bytes()[s.offset:], s.data)
	}
	in, err := r.instantiate(ctx, mem, nil, r.program(nil, Options{}))
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if in.mod.ExportedFunction("_initialize") != nil {
		if _, err := in.run(ctx, "_initialize", nil); err != nil {
			return nil, err
		}
	}
	code, err := in.run(ctx, "kaspr_start", nil)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("%s (code %d)", in.resultText(), code)
	}
	return in.image()
}

// Check compiles a program's Code without running it. Problems come as a *LoadError.
func (r *Runtime) Check(ctx context.Context, p *abi.Program) error {
	in, err := r.load(ctx, "kaspr_check", p, Options{})
	if err != nil {
		return err
	}
	return in.Close()
}

// Load runs a program's imports and init in an instance of its own and keeps the image. Problems in the program
// come as a *LoadError, an instance that ended as a *CallError.
func (r *Runtime) Load(ctx context.Context, p *abi.Program, o Options) (*Snapshot, error) {
	in, err := r.load(ctx, "kaspr_load", p, o)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	img, err := in.image()
	if err != nil {
		return nil, err
	}
	r.open.Add(1)
	return &Snapshot{r: r, image: img, program: in.program}, nil
}

// load gives p to an export of a new instance and returns the instance when the guest finds nothing wrong.
func (r *Runtime) load(ctx context.Context, export string, p *abi.Program, o Options) (_ *Instance, err error) {
	o = o.withDefaults(r.cfg.Defaults)
	if err := o.validate(); err != nil {
		return nil, err
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode program %s: %w", p.Name, err)
	}
	in, err := r.restore(ctx, r.base, r.program(p, o))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = in.Close()
		}
	}()
	code, err := in.run(ctx, export, text)
	if err != nil {
		return nil, err
	}
	if code == 0 {
		return in, nil
	}
	problems := &LoadError{}
	answer := in.resultText()
	switch {
	case json.Unmarshal([]byte(answer), &problems.Problems) == nil && len(problems.Problems) > 0:
		return nil, problems
	case in.atMemoryLimit():
		return nil, &CallError{Err: ErrMemoryLimit, Detail: answer, Unit: -1, Operation: -1}
	}
	return nil, fmt.Errorf("%s: %w: code %d and %q", export, ErrProtocol, code, answer)
}

// Close ends the ticker and frees the compiled module. It refuses to while Instances or Snapshots are open. It is
// idempotent.
func (r *Runtime) Close() error {
	if n := r.open.Load(); n > 0 {
		return fmt.Errorf("wasmhost: %d snapshots and instances are still open", n)
	}
	if r.closed {
		return nil
	}
	r.closed = true
	var errs []error
	ctx := context.Background()
	if r.ticker != nil {
		r.ticker.stop()
	}
	if r.base != nil {
		errs = append(errs, r.base.close())
	}
	if r.wazero != nil {
		errs = append(errs, r.wazero.Close(ctx))
	}
	if r.cache != nil {
		errs = append(errs, r.cache.Close(ctx))
	}
	return errors.Join(errs...)
}

// program is what an instance knows of the code it runs. It does not change, but for its Stats.
type program struct {
	Options
	code   *abi.Program // nil while Python starts
	topics []string     // of Program.Outputs
	stats  *Stats
}

func (r *Runtime) program(p *abi.Program, o Options) *program {
	prog := &program{Options: o.withDefaults(r.cfg.Defaults), code: p, stats: &Stats{}}
	places := 1
	if p != nil {
		for _, o := range p.Outputs {
			prog.topics = append(prog.topics, o.Topic)
		}
		places += len(p.Ops) + len(p.Outputs)
	}
	prog.stats.samples = make([]atomic.Int64, places)
	return prog
}

// tables is how many tables the program has.
func (p *program) tables() int {
	if p.code == nil {
		return 0
	}
	return len(p.code.Tables)
}

// view tells a web view's program, whose records are requests.
func (p *program) detached() bool {
	return p.code != nil && (p.code.View != nil || p.code.Kind == abi.KindTask)
}

// where names what a phase and an index into the program stand for, in the words the guest uses in its own failures.
func (p *program) where(phase, index int) string {
	switch {
	case p.code == nil || index < 0:
	case phase == abi.PhaseOperation && index < len(p.code.Ops):
		op := &p.code.Ops[index]
		for _, code := range []*abi.Code{op.Map, op.Filter} {
			if code != nil && code.Where != "" {
				return code.Where
			}
		}
		return fmt.Sprintf("operation %q", op.Name)
	case phase == abi.PhaseOutput && index < len(p.code.Outputs):
		if topic := p.code.Outputs[index].Topic; topic != "" {
			return fmt.Sprintf("output %q", topic)
		}
		return fmt.Sprintf("output %d", index+1)
	}
	return ""
}
