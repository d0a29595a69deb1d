//go:build guesttest

// Command wasm runs the guest in wazero for the tests of the glue: it speaks the frames of ../guest.py on stdin and stdout.
// It is no host: no rewriting, no limits. Its build tag keeps it out of ./... as only package wasmhost uses wazero. Usage: wasm MODULE STDLIB-DIRECTORY [CACHE-DIRECTORY]
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"kaspr.io/kaspr/wasmhost/abi"
)

var le = binary.LittleEndian

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "wasm:", err)
		os.Exit(1)
	}
}

// died is how die leaves the call.
type died struct{}

type guest struct {
	in      *bufio.Reader
	out     *bufio.Writer
	mod     api.Module
	state   uint32
	answers []byte // of tick; the last one is repeated
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: wasm MODULE STDLIB-DIRECTORY [CACHE-DIRECTORY]")
	}
	code, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	cfg := wazero.NewRuntimeConfigCompiler()
	if len(args) > 2 {
		cache, err := wazero.NewCompilationCacheWithDir(args[2])
		if err != nil {
			return err
		}
		cfg = cfg.WithCompilationCache(cache)
	}
	runtime := wazero.NewRuntimeWithConfig(ctx, cfg)
	wasi_snapshot_preview1.MustInstantiate(ctx, runtime)
	g := &guest{in: bufio.NewReader(os.Stdin), out: bufio.NewWriter(os.Stdout)}
	_, err = runtime.NewHostModuleBuilder("kaspr").
		NewFunctionBuilder().WithFunc(g.tick).Export("tick").
		NewFunctionBuilder().WithFunc(func() { panic(died{}) }).Export("die").
		NewFunctionBuilder().WithFunc(g.host).Export("host").
		Instantiate(ctx)
	if err != nil {
		return err
	}
	g.mod, err = runtime.InstantiateWithConfig(ctx, code, wazero.NewModuleConfig().
		WithFSConfig(wazero.NewFSConfig().WithReadOnlyDirMount(args[1], "/lib")).
		WithStderr(os.Stderr).WithRandSource(rand.Reader).
		WithSysNanosleep().WithSysNanotime().WithSysWalltime().WithStartFunctions("_initialize"))
	if err != nil {
		return err
	}
	g.state = uint32(g.mod.ExportedGlobal("kaspr_state").Get())
	for {
		kind, payload, err := g.readFrame()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := g.command(ctx, kind, payload); err != nil {
			return err
		}
	}
}

func (g *guest) command(ctx context.Context, kind byte, payload []byte) (err error) {
	name := map[byte]string{'S': "kaspr_start", 'L': "kaspr_load", 'C': "kaspr_check", 'R': "kaspr_reseed", 'P': "kaspr_process", 'B': "kaspr_process"}[kind]
	if name == "" { // ticks need the loop checks of the host's rewriter
		return nil
	}
	repeat := 1
	if kind == 'B' {
		repeat, payload = int(le.Uint32(payload)), payload[4:]
	}
	var params []uint64
	if kind != 'S' {
		at, err := g.mod.ExportedFunction("kaspr_input").Call(ctx, uint64(len(payload)))
		if err != nil {
			return err
		}
		if !g.mod.Memory().Write(uint32(at[0]), payload) {
			return fmt.Errorf("kaspr_input gave %#x", at[0])
		}
		params = []uint64{uint64(len(payload))}
	}
	function := g.mod.ExportedFunction(name)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	start, startCPU := time.Now(), cpuTime()
	var rc []uint64
	for range repeat {
		rc, err = function.Call(ctx, params...)
		if err != nil {
			break
		}
	}
	elapsed := time.Since(start)
	if kind == 'B' {
		elapsed = cpuTime() - startCPU // a busy machine spoils less of it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wasm:", name, err)
		report := g.bytes(g.word(abi.StateReportPtr), g.word(abi.StateReportLen))
		head := g.reply(-1, elapsed)
		head = le.AppendUint32(head, uint32(len(report)))
		head = append(head, report...)
		return g.writeFrame('d', head, g.bytes(g.word(abi.StateResultPtr), g.word(abi.StateCommitted)))
	}
	return g.writeFrame('r', g.reply(int32(rc[0]), elapsed), g.bytes(g.word(abi.StateResultPtr), g.word(abi.StateResultLen)))
}

// cpuTime is the processor time of this process.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (g *guest) reply(rc int32, elapsed time.Duration) []byte {
	b := le.AppendUint32(nil, uint32(rc))
	b = le.AppendUint64(b, uint64(elapsed))
	for _, field := range []uint32{abi.StateProgress, abi.StatePhase, abi.StateOperation, abi.StateCommitted} {
		b = le.AppendUint32(b, g.word(field))
	}
	return b
}

func (g *guest) word(field uint32) uint32 {
	v, _ := g.mod.Memory().ReadUint32Le(g.state + field)
	return v
}

func (g *guest) bytes(at, n uint32) []byte {
	b, _ := g.mod.Memory().Read(at, n)
	return b
}

func (g *guest) tick() int32 {
	if len(g.answers) == 0 {
		return abi.TickContinue
	}
	a := g.answers[0]
	if len(g.answers) > 1 {
		g.answers = g.answers[1:]
	}
	return int32(a)
}

func (g *guest) host(ctx context.Context, op, req, reqLen, resp, respCap uint32) uint32 {
	request := append(le.AppendUint32(nil, op), g.bytes(req, reqLen)...)
	if err := g.writeFrame('h', request, nil); err != nil {
		panic(err)
	}
	kind, answer, err := g.readFrame()
	if err != nil || kind != 'a' {
		panic(fmt.Errorf("answer %q: %w", kind, err))
	}
	rc := int32(le.Uint32(answer))
	tick, data := answer[4], answer[5:]
	switch {
	case rc == 0 && len(data) > int(respCap):
		rc = -1 - int32(len(data))
	case rc == 0:
		if len(data) > 0 {
			g.mod.Memory().Write(resp, data)
		}
		rc = int32(len(data))
	}
	if tick > 0 { // as if the guest met a loop check here
		g.answers = []byte{tick - 1}
		if _, err := g.mod.ExportedFunction("kaspr_tick").Call(ctx); err != nil {
			panic(err)
		}
		g.answers = nil
	} else if op == abi.OpSleep && rc >= 0 {
		time.Sleep(time.Duration(le.Uint64(request[4:])))
	}
	return uint32(rc)
}

func (g *guest) readFrame() (kind byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(g.in, head[:]); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, le.Uint32(head[:])-1)
	_, err = io.ReadFull(g.in, payload)
	return head[4], payload, err
}

func (g *guest) writeFrame(kind byte, a, b []byte) error {
	head := le.AppendUint32(nil, uint32(1+len(a)+len(b)))
	g.out.Write(append(head, kind)) //nolint:errcheck // Flush says it
	g.out.Write(a)                  //nolint:errcheck
	g.out.Write(b)                  //nolint:errcheck
	return g.out.Flush()
}
