package wasmhost

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
)

// section and the functions below write a module by hand.
func section(id byte, body ...byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

func named(name string, tail ...byte) []byte {
	return append(append([]byte{byte(len(name))}, name...), tail...)
}

func function(body ...byte) []byte {
	body = append(append([]byte{0}, body...), opEnd) // no locals
	return append([]byte{byte(len(body))}, body...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// A module with two functions, kaspr_tick and run, a state at 1024 and whatever sections a test replaces.
func handMade(replace map[byte][]byte) []byte {
	sections := []struct {
		id   byte
		body []byte
	}{
		{1, []byte{2, 0x60, 0, 0, 0x60, 0, 1, 0x7f}}, // types () -> (), () -> i32
		{2, nil},             // imports
		{3, []byte{2, 0, 1}}, // functions
		{5, []byte{1, 0, 1}}, // memory of one page
		{6, []byte{2, 0x7f, 1, 0x41, 5, opEnd, 0x7f, 0, 0x41, 0x80, 8, opEnd}}, // a mutable global, the state's address
		{7, join([]byte{3}, named("kaspr_tick", 0, 0), named("kaspr_state", 3, 1), named("run", 0, 1))},
		{8, nil},
		{9, nil},
		{12, nil},
		{10, join([]byte{2}, function(opLoop, 0x40, opEnd), function(0x41, 7))},
		{11, nil},
	}
	module := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range sections {
		if body, ok := replace[s.id]; ok {
			s.body = body
		}
		if s.body != nil {
			module = append(module, section(s.id, s.body...)...)
		}
	}
	return module
}

// valid says whether wazero takes a module.
func valid(t testing.TB, module []byte) error {
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer r.Close(ctx)
	_, err := r.CompileModule(ctx, module)
	return err
}

func TestRewrite(t *testing.T) {
	for _, test := range []struct {
		name    string
		replace map[byte][]byte
		want    string // of the error; empty: none
		loops   int
	}{
		{name: "smallest"},
		{name: "loop", replace: map[byte][]byte{10: join([]byte{2}, function(), function(opLoop, 0x40, opEnd, 0x41, 7))}, loops: 1},
		{name: "nested loops with results", replace: map[byte][]byte{
			10: join([]byte{2}, function(), function(opLoop, 0x7f, opLoop, 0x7f, 0x41, 7, opEnd, opEnd)),
		}, loops: 2},
		{name: "loop with a parameter", replace: map[byte][]byte{
			1:  {3, 0x60, 0, 0, 0x60, 0, 1, 0x7f, 0x60, 1, 0x7f, 1, 0x7f},
			10: join([]byte{2}, function(), function(0x41, 7, opLoop, 2, opEnd)),
		}, loops: 1},
		{name: "loop of dead code", replace: map[byte][]byte{
			10: join([]byte{2}, function(), function(0x41, 7, 0x0f, opLoop, 0x40, opEnd)),
		}, loops: 1},
		{name: "start", replace: map[byte][]byte{8: {0}}, want: "start function"},
		{name: "no state", replace: map[byte][]byte{7: join([]byte{1}, named("kaspr_tick", 0, 0))}, want: "kaspr_state"},
		{name: "no tick", replace: map[byte][]byte{7: join([]byte{1}, named("kaspr_state", 3, 1))}, want: "kaspr_tick"},
		{name: "state is mutable", replace: map[byte][]byte{7: join([]byte{2}, named("kaspr_tick", 0, 0), named("kaspr_state", 3, 0))}, want: "not a constant"},
		{name: "state outside the memory", replace: map[byte][]byte{6: {2, 0x7f, 1, 0x41, 5, opEnd, 0x7f, 0, 0x41, 0xc1, 0xff, 3, opEnd}}, want: "outside the memory"},
		{name: "data outside the memory", replace: map[byte][]byte{11: {1, 0, 0x41, 0xff, 0xff, 3, opEnd, 2, 1, 2}}, want: "outside the memory"},
		{name: "shared memory", replace: map[byte][]byte{5: {1, 3, 1, 1}}, want: "shared"},
		{name: "memory imported", replace: map[byte][]byte{2: join([]byte{1}, named("e"), named("m", 2, 0, 1))}, want: "import of kind 2"},
		{name: "mutable reference", replace: map[byte][]byte{6: {2, 0x70, 1, 0xd0, 0x70, opEnd, 0x7f, 0, 0x41, 0x80, 8, opEnd}}, want: "no number"},
		{name: "table.set", replace: map[byte][]byte{10: join([]byte{2}, function(), function(0x26, 0))}, want: "table.set"},
		{name: "table.grow", replace: map[byte][]byte{10: join([]byte{2}, function(), function(0xfc, 15, 0))}, want: "snapshot"},
		{name: "unknown instruction", replace: map[byte][]byte{10: join([]byte{2}, function(), function(0x06, 0x40))}, want: "unknown instruction"},
		{name: "cut off", replace: map[byte][]byte{10: {2, 2, 0, opEnd, 9, 0}}, want: "unexpected end"},
		{name: "no end", replace: map[byte][]byte{10: {2, 2, 0, opEnd, 3, 0, 0x41, 7}}, want: "does not end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			module := handMade(test.replace)
			g, err := rewrite(module)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := valid(t, module); err != nil {
				t.Fatalf("the test's own module: %v", err)
			}
			if err := valid(t, g.wasm); err != nil {
				t.Fatal(err)
			}
			if g.loops != test.loops || g.state != 1024 || g.pages != 1 || len(g.globals) != 1 {
				t.Errorf("%+v", g)
			}
		})
	}
}

// The data section's contents come back in an image; code that names passive segments still finds them.
func TestRewriteData(t *testing.T) {
	g, err := rewrite(handMade(map[byte][]byte{
		12: {3},
		10: join([]byte{2}, function(), function(
			0x41, 0, 0x41, 0, 0x41, 4, 0xfc, 8, 1, 0, // memory.init of the passive segment to 0
			0xfc, 9, 1, // data.drop
			0x41, 0, opI32Load, 2, 0)),
		11: join([]byte{3}, []byte{0, 0x41, 0xe4, 0, opEnd, 2, 'a', 'b'}, []byte{1, 4, 1, 2, 3, 4}, []byte{2, 0, 0x41, 0xc8, 1, opEnd, 1, 'c'}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	if len(g.segments) != 2 || g.segments[0].offset != 100 || string(g.segments[0].data) != "ab" ||
		g.segments[1].offset != 200 || string(g.segments[1].data) != "c" {
		t.Errorf("%+v", g.segments)
	}
	ctx := t.Context()
	r := wazero.NewRuntime(ctx)
	defer r.Close(ctx)
	mod, err := r.Instantiate(ctx, g.wasm)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := mod.Memory().Read(0, pageSize); len(bytes.Trim(b, "\x00")) > 0 {
		t.Error("instantiation writes to memory")
	}
	if got, err := mod.ExportedFunction("run").Call(ctx); err != nil || got[0] != 0x04030201 {
		t.Errorf("memory.init: %v, %v", got, err)
	}
}

// Every instruction's length must be known, or the rewriter would take data for loops.
func TestInstructionLengths(t *testing.T) {
	for _, code := range [][]byte{
		{0x00},
		{0x01},
		{opBlock, 0x40},
		{opBlock, 0x7f},
		{opLoop, 0xff, 0},
		{opIf, 0x40},
		{0x05},
		{opEnd},
		{0x0c, 3},
		{0x0d, 0x80, 1},
		{0x0e, 2, 0, 1, 2},
		{0x0f},
		{opCall, 0xff, 0x7f},
		{0x11, 1, 0},
		{0x12, 1},
		{0x13, 1, 0},
		{0x1a},
		{0x1b},
		{0x1c, 1, 0x7f},
		{0x20, 1},
		{0x21, 1},
		{0x22, 1},
		{0x23, 1},
		{0x24, 1},
		{0x25, 0},
		{opI32Load, 2, 0x80, 8},
		{0x3e, 0, 0},
		{0x3f, 0},
		{0x40, 0},
		{opI32Const, 0xff, 0xff, 0xff, 0xff, 0x7f},
		{0x42, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f},
		{0x43, 1, 2, 3, 4},
		{0x44, 1, 2, 3, 4, 5, 6, 7, 8},
		{0x45},
		{0xc4},
		{0xd0, 0x70},
		{0xd1},
		{0xd2, 1},
		{0xfc, 7},
		{0xfc, 8, 1, 0},
		{0xfc, 9, 1},
		{0xfc, 10, 0, 0},
		{0xfc, 11, 0},
		{0xfc, 13, 1},
		{0xfc, 16, 0},
		{0xfd, 0, 4, 0},
		{0xfd, 11, 4, 0},
		append([]byte{0xfd, 12}, make([]byte, 16)...), append([]byte{0xfd, 13}, make([]byte, 16)...),
		{0xfd, 14},
		{0xfd, 21, 3},
		{0xfd, 34, 1},
		{0xfd, 35},
		{0xfd, 84, 0, 0, 3},
		{0xfd, 91, 3, 0, 1},
		{0xfd, 92, 2, 0},
		{0xfd, 93, 3, 0},
		{0xfd, 94},
		{0xfd, 0xff, 1},
		{0xfd, 0x93, 2},
	} {
		r := &reader{buf: append(bytes.Clone(code), 0xAA)}
		if r.instruction(); r.err != nil || r.pos != len(code) {
			t.Errorf("%x: read %d bytes, %v", code, r.pos, r.err)
		}
		for n := range len(code) {
			r := &reader{buf: code[:n]}
			if r.instruction(); r.err == nil {
				t.Errorf("%x: %d bytes are enough", code, n)
			}
		}
	}
}

// A rewritten module means the same to the tests of this package; here: the loops of the real guests are all found.
func TestRewriteTestGuest(t *testing.T) {
	g, err := rewrite(testGuest)
	if err != nil {
		t.Fatal(err)
	}
	if err := valid(t, g.wasm); err != nil {
		t.Fatal(err)
	}
	if g.loops < 20 || len(g.segments) == 0 || len(g.globals) != 1 {
		t.Errorf("%d loops, %d segments, globals %v", g.loops, len(g.segments), g.globals)
	}
	again, err := rewrite(g.wasm)
	if err != nil || again.loops != g.loops {
		t.Errorf("the rewritten module is read differently: %v", err)
	}
}

// No bytes may make the rewriter panic, or turn a module wazero takes into one it does not.
func FuzzRewrite(f *testing.F) {
	f.Add(testGuest)
	f.Add(handMade(nil))
	f.Add(handMade(map[byte][]byte{
		12: {2},
		10: join([]byte{2}, function(opLoop, 0x40, opEnd), function(opLoop, 0x7f, 0x41, 7, opEnd)),
		11: join([]byte{2}, []byte{0, 0x41, 0xe4, 0, opEnd, 2, 'a', 'b'}, []byte{1, 4, 1, 2, 3, 4}),
	}))
	f.Fuzz(func(t *testing.T, module []byte) {
		g, err := rewrite(module)
		if err != nil || len(module) > 10_000 || g.pages > 100 || valid(t, module) != nil {
			return
		}
		if err := valid(t, g.wasm); err != nil {
			t.Fatalf("%v\nfrom %x\nto   %x", err, module, g.wasm)
		}
	})
}
