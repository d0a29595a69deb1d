package wasmhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"kaspr.io/kaspr/wasmhost/abi"
)

// guestModule is the guest as it is compiled: rewritten so that it can be interrupted, and so that its memory starts
// from an image instead of its data segments. One compiled module serves all images.
type guestModule struct {
	wasm     []byte
	segments []segment // what the data section would have put into memory
	pages    uint32    // memory the guest starts with
	state    uint32    // address of the abi State
	globals  []uint32  // indices of all mutable globals, exported as globalName says
	loops    int       // loops that were given a check
}

type segment struct {
	offset uint32
	data   []byte
}

// globalName is the name under which the rewriter exports a mutable global, so that a snapshot can keep it.
func globalName(index uint32) string { return fmt.Sprint("kaspr.global.", index) }

// Sections of a module, by their id.
const (
	sectionCustom    = 0
	sectionImport    = 2
	sectionMemory    = 5
	sectionGlobal    = 6
	sectionExport    = 7
	sectionStart     = 8
	sectionCode      = 10
	sectionData      = 11
	sectionDataCount = 12
)

// Kinds of imports and exports.
const (
	kindFunction = 0
	kindGlobal   = 3
)

const maxPages = 65536

// rewrite prepares a guest:
//
//   - After the head of every loop, except in kaspr_tick, it inserts "if the interrupt word is set, call kaspr_tick".
//   - It takes the active data segments out (they are returned), so instantiation leaves memory as it finds it. Their
//     places stay, empty, as long as code can name them.
//   - It exports every mutable global.
//   - It lifts the memory's maximum: the allocator holds the limit, and so knows when it refused growth.
//
// What a snapshot would miss is refused: a start function, shared or imported memory, code that changes tables.
func rewrite(module []byte) (*guestModule, error) {
	w := &rewriter{out: make([]byte, 0, len(module)+len(module)/8)}
	if err := w.module(module); err != nil {
		return nil, fmt.Errorf("rewrite guest: %w", err)
	}
	return &w.guest, nil
}

type rewriter struct {
	guest guestModule
	out   []byte

	importedFunctions uint32
	importedGlobals   uint32
	constants         map[uint32]uint32 // i32 values of immutable globals, by index
	hasMemory         bool
	hasDataCount      bool
	hasExports        bool
	tick              uint32 // index of kaspr_tick
	check             []byte // instructions inserted into loops
}

func (w *rewriter) module(module []byte) error {
	if len(module) < 8 || string(module[:8]) != "\x00asm\x01\x00\x00\x00" {
		return errors.New("not a WebAssembly module of version 1")
	}
	w.constants = map[uint32]uint32{}
	w.out = append(w.out, module[:8]...)
	r := &reader{buf: module, pos: 8}
	for !r.done() {
		id := r.byte()
		body := r.vector()
		if r.err != nil {
			return r.err
		}
		if err := w.section(id, body); err != nil {
			return fmt.Errorf("section %d: %w", id, err)
		}
	}
	switch {
	case !w.hasExports || w.check == nil:
		return errors.New("no code, or no exports before it")
	case !w.hasMemory:
		return errors.New("no memory of its own")
	}
	size := uint64(w.guest.pages) * pageSize
	for _, s := range w.guest.segments {
		if uint64(s.offset)+uint64(len(s.data)) > size {
			return fmt.Errorf("data of %d bytes at %d is outside the memory", len(s.data), s.offset)
		}
	}
	if uint64(w.guest.state)+abi.StateSize > size {
		return errors.New("kaspr_state is outside the memory")
	}
	w.guest.wasm = w.out
	return nil
}

func (w *rewriter) section(id byte, body []byte) error {
	r := &reader{buf: body}
	var err error
	switch id {
	case sectionCustom:
		if string(r.vector()) != "name" {
			return nil // debug information would be wrong after the rewriting
		}
	case sectionImport:
		err = w.imports(r)
	case sectionMemory:
		body, err = w.memory(r)
	case sectionGlobal:
		err = w.readGlobals(r)
	case sectionExport:
		body, err = w.exports(body)
	case sectionStart:
		return errors.New("a start function is not supported")
	case sectionDataCount:
		w.hasDataCount = true
	case sectionCode:
		body, err = w.code(r)
	case sectionData:
		body, err = w.data(r)
	}
	if err != nil {
		return err
	}
	w.out = append(w.out, id)
	w.out = binary.AppendUvarint(w.out, uint64(len(body)))
	w.out = append(w.out, body...)
	return nil
}

func (w *rewriter) imports(r *reader) error {
	for n := r.u32(); n > 0 && r.err == nil; n-- {
		r.vector()
		r.vector()
		switch kind := r.byte(); kind {
		case kindFunction:
			r.u32()
			w.importedFunctions++
		case kindGlobal:
			r.byte()
			if r.byte() != 0 {
				return errors.New("imports a mutable global")
			}
			w.importedGlobals++
		default:
			return fmt.Errorf("import of kind %d is not supported", kind)
		}
	}
	return r.err
}

func (w *rewriter) memory(r *reader) ([]byte, error) {
	if n := r.u32(); n != 1 && r.err == nil {
		return nil, fmt.Errorf("%d memories", n)
	}
	if flags := r.byte(); flags > 1 {
		return nil, errors.New("shared and 64-bit memories are not supported")
	}
	w.guest.pages = r.u32()
	if w.guest.pages > maxPages {
		return nil, fmt.Errorf("memory of %d pages", w.guest.pages)
	}
	w.hasMemory = true
	body := binary.AppendUvarint([]byte{1, 1}, uint64(w.guest.pages))
	return binary.AppendUvarint(body, maxPages), r.err
}

func (w *rewriter) readGlobals(r *reader) error {
	n := r.u32()
	for i := uint32(0); i < n && r.err == nil; i++ {
		index := w.importedGlobals + i
		kind, mutable := r.byte(), r.byte() == 1
		first := r.pos
		for r.err == nil && r.instruction() != opEnd {
		}
		init := r.since(first)
		switch {
		case mutable && kind >= 0x7c && kind <= 0x7f: // numbers
			w.guest.globals = append(w.guest.globals, index)
		case mutable:
			return fmt.Errorf("mutable global %d is no number", index)
		case kind == 0x7f && len(init) > 1 && init[0] == opI32Const:
			value := &reader{buf: init, pos: 1}
			w.constants[index] = uint32(value.s64())
		}
	}
	return r.err
}

// exports finds the names the rewriter needs, and adds the globals'.
func (w *rewriter) exports(body []byte) ([]byte, error) {
	r := &reader{buf: body}
	n := r.u32()
	first := r.pos
	var state, tick *uint32
	for range n {
		name, kind, index := string(r.vector()), r.byte(), r.u32()
		if r.err != nil {
			return nil, r.err
		}
		switch {
		case name == "kaspr_tick" && kind == kindFunction:
			tick = &index
		case name == "kaspr_state" && kind == kindGlobal:
			address, ok := w.constants[index]
			if !ok {
				return nil, errors.New("kaspr_state is not a constant")
			}
			state = &address
		}
	}
	if state == nil || tick == nil {
		return nil, errors.New("kaspr_state or kaspr_tick is not exported")
	}
	w.hasExports = true
	w.tick, w.guest.state = *tick, *state
	w.check = binary.AppendUvarint([]byte{opI32Const, 0, opI32Load, 2}, uint64(*state)+abi.StateInterrupt)
	w.check = append(w.check, opIf, 0x40, opCall)
	w.check = binary.AppendUvarint(w.check, uint64(*tick))
	w.check = append(w.check, opEnd)

	out := binary.AppendUvarint(nil, uint64(n)+uint64(len(w.guest.globals)))
	out = append(out, r.since(first)...)
	for _, index := range w.guest.globals {
		name := globalName(index)
		out = binary.AppendUvarint(out, uint64(len(name)))
		out = append(append(out, name...), kindGlobal)
		out = binary.AppendUvarint(out, uint64(index))
	}
	return out, nil
}

func (w *rewriter) code(r *reader) ([]byte, error) {
	if w.check == nil {
		return nil, errors.New("no exports before the code")
	}
	n := r.u32()
	out := binary.AppendUvarint(make([]byte, 0, len(r.buf)+len(r.buf)/8), uint64(n))
	var function []byte
	for i := uint32(0); i < n && r.err == nil; i++ {
		body := r.vector()
		if index := w.importedFunctions + i; index != w.tick && r.err == nil {
			var err error
			if function, err = w.function(function[:0], body); err != nil {
				return nil, fmt.Errorf("function %d: %w", index, err)
			}
			body = function
		}
		out = binary.AppendUvarint(out, uint64(len(body)))
		out = append(out, body...)
	}
	return out, r.err
}

// function appends body to dst with a check in each of its loops.
func (w *rewriter) function(dst, body []byte) ([]byte, error) {
	r := &reader{buf: body}
	for n := r.u32(); n > 0 && r.err == nil; n-- { // locals
		r.u32()
		r.byte()
	}
	copied := 0
	last := byte(0)
	for !r.done() && r.err == nil {
		if last = r.instruction(); last == opLoop && r.err == nil {
			dst = append(append(dst, body[copied:r.pos]...), w.check...)
			copied = r.pos
			w.guest.loops++
		}
	}
	if r.err == nil && last != opEnd {
		return nil, errors.New("does not end")
	}
	return append(dst, body[copied:]...), r.err
}

// data takes the active segments out and leaves empty passive ones in their places.
func (w *rewriter) data(r *reader) ([]byte, error) {
	n := r.u32()
	out := binary.AppendUvarint(nil, uint64(n))
	kept := false
	for i := uint32(0); i < n && r.err == nil; i++ {
		first := r.pos
		switch flag := r.u32(); flag {
		case 0, 2:
			if flag == 2 && r.u32() != 0 {
				return nil, fmt.Errorf("segment %d is for another memory", i)
			}
			if r.byte() != opI32Const && r.err == nil {
				return nil, fmt.Errorf("segment %d has no constant offset", i)
			}
			offset := uint32(r.s64())
			if r.byte() != opEnd && r.err == nil {
				return nil, fmt.Errorf("segment %d has no constant offset", i)
			}
			w.guest.segments = append(w.guest.segments, segment{offset, r.vector()})
			out = append(out, 1, 0)
		case 1:
			r.vector()
			if r.err == nil {
				out = append(out, r.since(first)...)
				kept = true
			}
		default:
			return nil, fmt.Errorf("segment %d has flag %d", i, flag)
		}
	}
	if r.err == nil && !kept && !w.hasDataCount {
		out = []byte{0} // nothing can name them
	}
	return out, r.err
}

// Opcodes the rewriter looks for.
const (
	opBlock    = 0x02
	opLoop     = 0x03
	opIf       = 0x04
	opEnd      = 0x0b
	opCall     = 0x10
	opI32Load  = 0x28
	opI32Const = 0x41
)

// reader reads a module. The first error sticks; reads after it give zero.
type reader struct {
	buf []byte
	pos int
	err error
}

func (r *reader) done() bool { return r.pos >= len(r.buf) }

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("at byte %d: "+format, append([]any{r.pos}, args...)...)
	}
}

// since is what was read from first on.
func (r *reader) since(first int) []byte { return slices.Clip(r.buf[first:r.pos]) }

func (r *reader) byte() byte {
	if r.err != nil || r.pos >= len(r.buf) {
		r.fail("unexpected end")
		return 0
	}
	r.pos++
	return r.buf[r.pos-1]
}

func (r *reader) skip(n uint64) {
	if r.err != nil || n > uint64(len(r.buf)-r.pos) {
		r.fail("unexpected end")
		return
	}
	r.pos += int(n)
}

func (r *reader) u32() uint32 {
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		b := r.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if v > 1<<32-1 {
				r.fail("number too large")
				return 0
			}
			return uint32(v)
		}
	}
	r.fail("number too long")
	return 0
}

// s64 reads a signed number of at most 64 bits, and so of 32 or 33 too.
func (r *reader) s64() int64 {
	var v int64
	for shift := 0; shift < 70; shift += 7 {
		b := r.byte()
		v |= int64(b&0x7f) << shift
		if b < 0x80 {
			if shift < 57 && b&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
	r.fail("number too long")
	return 0
}

func (r *reader) vector() []byte {
	n := r.u32()
	first := r.pos
	r.skip(uint64(n))
	if r.err != nil {
		return nil
	}
	return r.since(first)
}

func (r *reader) memarg() {
	if r.u32() >= 1<<6 {
		r.fail("more than one memory")
	}
	r.u32()
}

// instruction reads one instruction with its immediates and returns its first byte.
func (r *reader) instruction() byte {
	op := r.byte()
	switch {
	case op == opBlock, op == opLoop, op == opIf:
		r.s64()
	case op <= 0x01, op == 0x05, op == opEnd, op == 0x0f, op == 0x1a, op == 0x1b, op >= 0x45 && op <= 0xc4, op == 0xd1:
		// no immediates
	case op == 0x0c, op == 0x0d, op == opCall, op == 0x12, op >= 0x20 && op <= 0x25, op == 0xd2:
		r.u32()
	case op == 0x0e: // br_table
		for n := r.u32(); n > 0 && r.err == nil; n-- {
			r.u32()
		}
		r.u32()
	case op == 0x11, op == 0x13: // call_indirect
		r.u32()
		r.u32()
	case op == 0x1c: // select with types
		for n := r.u32(); n > 0 && r.err == nil; n-- {
			r.byte()
		}
	case op == 0x26:
		r.fail("table.set: a snapshot would not keep it")
	case op >= opI32Load && op <= 0x3e:
		r.memarg()
	case op == 0x3f, op == 0x40: // memory.size, memory.grow
		r.byte()
	case op == opI32Const, op == 0x42, op == 0xd0:
		r.s64()
	case op == 0x43:
		r.skip(4)
	case op == 0x44:
		r.skip(8)
	case op == 0xfc:
		r.miscellaneous()
	case op == 0xfd:
		r.vectorInstruction()
	default:
		r.fail("unknown instruction 0x%02x", op)
	}
	return op
}

func (r *reader) miscellaneous() {
	switch op := r.u32(); op {
	case 0, 1, 2, 3, 4, 5, 6, 7: // saturating conversions
	case 8, 10: // memory.init, memory.copy
		r.u32()
		r.u32()
	case 9, 11, 13, 16: // data.drop, memory.fill, elem.drop, table.size
		r.u32()
	default: // table.init, copy, grow, fill
		r.fail("instruction 0xfc %d: unknown, or a snapshot would not keep it", op)
	}
}

func (r *reader) vectorInstruction() {
	switch op := r.u32(); {
	case op <= 11, op == 92, op == 93: // loads and stores
		r.memarg()
	case op == 12, op == 13: // v128.const, shuffle
		r.skip(16)
	case op >= 21 && op <= 34: // lanes
		r.byte()
	case op >= 84 && op <= 91: // loads and stores of lanes
		r.memarg()
		r.byte()
	case op > 0x113: // behind the last relaxed instruction
		r.fail("unknown instruction 0xfd %d", op)
	}
}
