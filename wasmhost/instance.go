package wasmhost

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Instance is one live restore of a Snapshot. It runs one call at a time.
type Instance struct {
	r       *Runtime
	program *program
	mem     *memory
	mod     api.Module
	library libraryFS
	slot    tickerSlot
	stack   [1]uint64       // parameter and result of an export
	ctx     context.Context // an instanceContext: what the guest's host functions find the instance by

	functions map[string]api.Function
	calls     int
	input     uint32 // address of the guest's input buffer
	inputSize int    // its size; 0 before the first

	counted int64 // of its memory, in the program's Stats

	own int32 // partition number of the batch of the call that runs, -1 without one

	busy   atomic.Bool // a call runs; only to notice two
	ended  bool        // trapped or stopped: memory may still be read, nothing may run
	closed bool

	pending pendingAnswer
	scratch []byte // of the last answer to a table read
	call    call
}

// call is the state of the call that runs. Only the goroutine that runs it touches it: host functions are on its stack.
type call struct {
	ctx       context.Context
	deadline  time.Duration    // of a unit
	began     time.Time        // moved on by all waiting that is not the guest's doing
	unit      uint32           // in progress at the last look
	since     time.Time        // when unit was first seen, moved on by all waiting that is not the guest's doing
	raised    bool             // Python was asked to stop
	looked    time.Time        // last look, moved on likewise
	spent     map[uint32]spent // of units that were in progress before, once the guest went back to one
	highest   uint32           // unit seen so far
	sends     *sends           // nil: none was started
	sentBy    int              // last unit that has sent something ahead of the result, -1 without one
	holding   bool             // a turn of the Gate
	cause     error            // why the host ended the call
	panicked  any              // a panic in host code, to be thrown again outside of the guest
	waited    time.Duration    // in this call: for turns, for the host, asleep
	outside   time.Duration    // of it, what was not for turns
	units     int
	records   []record.Record // of the batch, one for each unit but of a take batch
	hardAfter time.Duration   // from since on, the guest is ended
}

// spent is what a unit has had of its deadline.
type spent struct {
	ran    time.Duration
	raised bool
}

// callsPerStack is after how many calls an instance gets a new stack for its compiled code. A stack grows (to 100 MB, for deep
// recursion) and never shrinks.
const callsPerStack = 1024

// inputKept is the largest input buffer that is used again without asking the guest.
const inputKept = 4 << 20

// instanceContext carries the instance to its host functions.
type instanceContext struct {
	context.Context
	in *Instance
}

type instanceKey struct{}

func (c instanceContext) Value(key any) any {
	if key == (instanceKey{}) {
		return c.in
	}
	return nil
}

// errDie unwinds the guest when the host ends a call.
var errDie = errors.New("ended by the host")

// Call runs the program over b. A Python exception is not an error here: it is a Failure in the Result. An error is a
// *CallError: the instance ended, or ctx did; the Result holds what was finished before.
func (in *Instance) Call(ctx context.Context, b *record.Batch) (record.Result, error) {
	units := len(b.Records)
	if b.Take {
		units = min(units, 1)
	}
	in.enter()
	defer in.leave()
	if in.ended || in.closed {
		return record.Result{}, ErrClosed
	}
	size, err := abi.BatchSize(b)
	if err != nil {
		return record.Result{}, err
	}
	if err := in.r.cfg.Gate.acquire(ctx); err != nil {
		return record.Result{}, &CallError{Err: err, Unit: -1, Operation: -1}
	}
	begin := time.Now()
	in.call = call{
		ctx: ctx, deadline: in.program.Deadline, units: units, records: b.Records, holding: true, sentBy: -1, began: begin, since: begin, looked: begin, unit: abi.ProgressIdle,
	}
	if in.calls++; in.calls%callsPerStack == 0 {
		clear(in.functions)
	}
	in.begin()
	if len(b.Records) > 0 {
		in.own = b.Records[0].Partition
	}
	code, err := in.process(b, size)
	in.own, in.call.records = -1, nil
	in.end()
	res, err := in.answer(b, code, err)
	res.Elapsed, res.Waited = time.Since(begin)-in.call.waited, in.call.outside
	// What was started to be sent by records that are not done is sent again with them.
	res.Repeated = in.word(abi.StateRepeated) != 0 || (err != nil && in.call.sends != nil)
	in.count(&res, err)
	return res, err
}

// answer is the result of a call that gave code or ended with err.
func (in *Instance) answer(b *record.Batch, code uint32, err error) (record.Result, error) {
	switch {
	case err != nil:
		// What was committed is whole, unless the guest is of another build.
		res, broken := in.result(b, in.word(abi.StateCommitted))
		if broken != nil {
			res = record.Result{}
		}
		return res, err
	case code != 0: // the result is a message
		ended := in.protocolError(fmt.Sprintf("code %d: %s", code, in.resultText()))
		if in.atMemoryLimit() {
			ended.Err = ErrMemoryLimit
		}
		return record.Result{}, ended
	}
	res, err := in.result(b, in.word(abi.StateResultLen))
	if err == nil && res.Done < len(b.Records) && !endsEarly(b, &res) {
		err = in.protocolError(fmt.Sprintf("%d of %d records done", res.Done, len(b.Records)))
	}
	for i := range res.Failures {
		if f := &res.Failures[i]; f.Kind == record.FailureMemory && f.Type == "" { // no memory was left to say it
			f.Type, f.Message = "MemoryError", fmt.Sprintf("the instance reached its memory limit of %d MiB", in.program.MemoryMax>>20)
		}
	}
	return res, err
}

// result decodes the first n bytes of what the guest wrote.
func (in *Instance) result(b *record.Batch, n uint32) (record.Result, error) {
	buf, ok := in.read(in.word(abi.StateResultPtr), n)
	if !ok {
		return record.Result{}, in.protocolError("the result is outside its memory")
	}
	res, err := abi.DecodeResult(buf, in.program.topics, in.program.tables(), len(b.Records), b.Take)
	if err != nil {
		return res, in.protocolError(err.Error())
	}
	return res, nil
}

// endsEarly says whether a guest may leave units of b undone: after a failure it was told to stop at, or one that left it
// without memory.
func endsEarly(b *record.Batch, res *record.Result) bool {
	if len(res.Failures) == 0 {
		return false
	}
	last := res.Failures[len(res.Failures)-1]
	return int(last.Record) == res.Done-1 && (b.StopOnFailure || last.Kind == record.FailureMemory)
}

func (in *Instance) count(res *record.Result, err error) {
	stats := in.program.stats
	in.countMemory(in.mem.size)
	stats.Calls.Add(1)
	stats.Records.Add(int64(res.Done))
	stats.WasmNanos.Add(res.Elapsed.Nanoseconds())
	for i := range res.Failures {
		switch res.Failures[i].Kind {
		case record.FailureDeadline:
			stats.Deadlines.Add(1)
		case record.FailureMemory:
			stats.MemoryHits.Add(1)
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, ErrDeadline):
		stats.Deadlines.Add(1)
	case errors.Is(err, ErrMemoryLimit):
		stats.MemoryHits.Add(1)
	case errors.Is(err, ErrTrap), errors.Is(err, ErrStackOverflow), errors.Is(err, ErrExit), errors.Is(err, ErrProtocol):
		stats.Traps.Add(1)
	}
}

// process writes b into the guest and has it processed.
func (in *Instance) process(b *record.Batch, size int) (uint32, error) {
	dst, err := in.inputBuffer(size)
	if err != nil {
		return 0, err
	}
	abi.PutBatch(dst, b)
	return in.invoke("kaspr_process", uint64(size))
}

// run gives data, if any, to another export of the guest, under the load deadline.
func (in *Instance) run(ctx context.Context, export string, data []byte) (uint32, error) {
	in.enter()
	defer in.leave()
	if in.ended || in.closed {
		return 0, ErrClosed
	}
	if err := in.r.cfg.Gate.acquire(ctx); err != nil {
		return 0, &CallError{Err: err, Unit: -1, Operation: -1}
	}
	now := time.Now()
	in.call = call{ctx: ctx, deadline: in.program.LoadDeadline, holding: true, began: now, since: now, looked: now, unit: abi.ProgressIdle}
	in.begin()
	defer in.end()
	if data == nil {
		return in.invoke(export, 0)
	}
	dst, err := in.inputBuffer(len(data))
	if err != nil {
		return 0, err
	}
	copy(dst, data)
	return in.invoke(export, uint64(len(data)))
}

func (in *Instance) enter() {
	if !in.busy.CompareAndSwap(false, true) {
		panic("BUG: two calls of one wasmhost.Instance at once")
	}
}

func (in *Instance) leave() { in.busy.Store(false) }

// begin makes the instance ready to run: what an ended call left in the state must not be taken for this one's.
func (in *Instance) begin() {
	in.call.hardAfter = in.call.deadline + in.call.deadline/2
	in.setWord(abi.StateProgress, abi.ProgressIdle)
	in.setWord(abi.StatePhase, abi.PhaseIdle)
	in.setWord(abi.StateResultLen, 0)
	in.setWord(abi.StateCommitted, 0)
	in.setWord(abi.StateReportLen, 0)
	in.setWord(abi.StateRepeated, 0)
	in.setWord(abi.StateDeadline, uint32(min(in.call.deadline.Milliseconds()+1, math.MaxUint32)))
	in.mem.refused = 0
	in.slot.activate()
}

func (in *Instance) end() {
	in.slot.deactivate()
	if in.call.holding {
		in.call.holding = false
		in.r.cfg.Gate.release()
	}
	in.call.ctx = nil
	if p := in.call.panicked; p != nil {
		panic(p)
	}
}

// inputBuffer returns n bytes of the guest's memory to write its input to.
func (in *Instance) inputBuffer(n int) ([]byte, error) {
	// The guest gives a large buffer back when it is asked for a small one.
	if n > in.inputSize || in.inputSize == 0 || in.inputSize > inputKept {
		in.inputSize = 0
		address, err := in.invoke("kaspr_input", uint64(n))
		if err != nil {
			return nil, err
		}
		if _, ok := in.read(address, uint32(n)); !ok || address == 0 {
			in.ended = true
			if in.atMemoryLimit() {
				return nil, &CallError{Err: ErrMemoryLimit, Detail: fmt.Sprintf("no room for %d bytes of input", n), Unit: -1, Operation: -1}
			}
			return nil, in.protocolError(fmt.Sprintf("no input buffer of %d bytes", n))
		}
		in.input, in.inputSize = address, n
	}
	dst, _ := in.read(in.input, uint32(n))
	return dst, nil
}

// invoke calls an export, of one parameter or none, between begin and end.
func (in *Instance) invoke(export string, arg uint64) (uint32, error) {
	f := in.functions[export]
	if f == nil {
		if f = in.mod.ExportedFunction(export); f == nil {
			in.ended = true
			return 0, in.protocolError("the guest has no " + export)
		}
		if in.functions == nil {
			in.functions = make(map[string]api.Function, 4)
		}
		in.functions[export] = f
	}
	in.stack[0] = arg
	err := f.CallWithStack(in.ctx, in.stack[:])
	switch {
	case in.call.panicked != nil:
		in.ended = true
		return 0, nil // end throws it
	case in.mem.strayed():
		// Checked code would have ended there. What was done since is of a guest that read nobody knows what, so all of the call is thrown away.
		in.ended = true
		in.setWord(abi.StateCommitted, 0)
		return 0, &CallError{Err: ErrTrap, Detail: "out of bounds memory access", Unit: -1, Operation: -1}
	case err != nil:
		in.ended = true
		return 0, in.callError(err)
	}
	return uint32(in.stack[0]), nil
}

// tick is the host's answer to a guest that was interrupted.
func (in *Instance) tick() uint64 {
	now := time.Now()
	in.program.stats.Ticks.Add(1)
	in.program.sample(in.word(abi.StatePhase), in.word(abi.StateOperation))
	c := &in.call
	if c.ctx.Err() != nil {
		c.cause = c.ctx.Err()
		return abi.TickDie
	}
	if in.mem.strayed() {
		c.cause = ErrTrap // invoke sees it, too
		return abi.TickDie
	}
	in.look(now)
	// What is in progress is the guest's word. One that lies gets no more than all of its units together, each beside others and then alone, and what
	// is between them.
	most := 2 * c.hardAfter * time.Duration(c.units+1)
	switch ran := now.Sub(c.since); {
	case ran >= c.hardAfter || now.Sub(c.began) >= most:
		c.cause = ErrDeadline
		return abi.TickDie
	case ran >= c.deadline && !c.raised:
		c.raised = true
		return abi.TickRaise
	}
	// Anything may happen here that waits for this goroutine: a collection, another one's turn.
	runtime.Gosched()
	err := in.r.cfg.Gate.yield(c.ctx)
	in.excuse(time.Since(now))
	if err != nil {
		c.holding, c.cause = false, err
		return abi.TickDie
	}
	// The word was set again meanwhile. Left so, who just got a turn would hand it over at once.
	in.setWord(abi.StateInterrupt, 0)
	return abi.TickContinue
}

// goesOn is for host functions that take as long as the guest likes: it does what a tick does when one is due, and says whether to go on.
// Otherwise the guest is to have what is done so far, and is told by a tick of its own then.
func (in *Instance) goesOn() bool {
	if time.Since(in.call.looked) < in.r.cfg.Tick {
		return true
	}
	switch in.tick() {
	case abi.TickDie:
		panic(errDie)
	case abi.TickRaise:
		in.call.raised = false
		in.setWord(abi.StateInterrupt, 1)
		return false
	}
	return true
}

// look changes clocks when the guest has gone to another unit. Most guests only go on, to units that are new. One that goes to and fro
// between units that wait is charged by samples: what passed since the last look, for the unit that is in progress now.
func (in *Instance) look(now time.Time) {
	c := &in.call
	unit := in.word(abi.StateProgress)
	if unit != c.unit {
		before := c.unit
		had := spent{c.looked.Sub(c.since), c.raised}
		isNew := before == abi.ProgressIdle || unit == abi.ProgressIdle || unit > c.highest
		if c.spent == nil && !isNew {
			c.spent = map[uint32]spent{}
		}
		if c.spent != nil {
			c.spent[before] = had
		}
		c.unit, c.since, c.raised = unit, now, false
		if !isNew {
			c.raised = c.spent[unit].raised
			c.since = now.Add(-c.spent[unit].ran - now.Sub(c.looked))
		}
		if unit != abi.ProgressIdle {
			c.highest = max(c.highest, unit)
		}
	}
	c.looked = now
}

// excuse takes d, which has just passed, off the time the unit has run.
func (in *Instance) excuse(d time.Duration) {
	in.call.began = in.call.began.Add(d)
	in.call.since = in.call.since.Add(d)
	in.call.looked = in.call.looked.Add(d)
	in.call.waited += d
}

// left is how much time the unit in progress has before it is to be interrupted, or ended if it was.
func (in *Instance) left(now time.Time) time.Duration {
	c := &in.call
	limit := c.deadline
	if c.raised {
		limit = c.hardAfter
	}
	return max(limit-now.Sub(c.since), 0)
}

// pause runs wait without the turn of the Gate and without ticks. When ctx ends before the turn is back, the guest does
// not run again.
func (in *Instance) pause(wait func()) {
	in.slot.deactivate()
	if in.call.holding {
		in.call.holding = false
		in.r.cfg.Gate.release()
	}
	wait()
	begin := time.Now()
	if err := in.r.cfg.Gate.acquire(in.call.ctx); err != nil {
		in.call.cause = err
		panic(errDie)
	}
	in.call.holding = true
	in.excuse(time.Since(begin))
	in.slot.activate()
}

// sleep waits for d, but not past the unit's deadline or the end of the call's context. It counts as the guest's time.
func (in *Instance) sleep(d time.Duration) {
	now := time.Now()
	in.look(now)
	c := &in.call
	d = min(d, in.left(now))
	if d <= 0 {
		in.setWord(abi.StateInterrupt, 1)
		return
	}
	in.pause(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ctx.Done():
		}
		c.waited += time.Since(now)
		c.outside += time.Since(now)
		c.looked = time.Now()
	})
	in.setWord(abi.StateInterrupt, 1) // look at the deadline at once
}

// callError tells why a guest ended.
func (in *Instance) callError(err error) *CallError {
	e := &CallError{Unit: -1, Operation: -1, Phase: int(in.word(abi.StatePhase))}
	if unit := in.word(abi.StateProgress); unit < uint32(in.call.units) {
		e.Unit = int(unit)
	}
	if e.Phase == abi.PhaseOperation || e.Phase == abi.PhaseOutput {
		e.Operation = int(in.word(abi.StateOperation))
		e.Where = in.program.where(e.Phase, e.Operation)
	}
	if report, ok := in.read(in.word(abi.StateReportPtr), min(in.word(abi.StateReportLen), lineBytesMax)); ok {
		e.Traceback = in.program.traceback(string(report))
	}
	var exit *sys.ExitError
	innermost := err
	for next := errors.Unwrap(innermost); next != nil; next = errors.Unwrap(innermost) {
		innermost = next
	}
	switch {
	case errors.Is(err, errDie) && in.call.cause != nil:
		e.Err = in.call.cause
		if errors.Is(e.Err, ErrDeadline) {
			e.Detail = in.call.deadline.String()
		}
		return e
	case errors.Is(err, errDie):
		e.Err, e.Detail = ErrProtocol, "the guest ended itself"
		return e
	case errors.As(err, &exit):
		e.Err, e.Detail = ErrExit, "exit code "+strconv.Itoa(int(exit.ExitCode()))
		return e
	case innermost.Error() == "stack overflow": // wazero's error, which it keeps internal
		e.Err = ErrStackOverflow
		return e
	case in.atMemoryLimit():
		e.Err = ErrMemoryLimit
	default:
		e.Err = ErrTrap
	}
	e.Detail = trapDetail(err)
	return e
}

func (in *Instance) protocolError(detail string) *CallError {
	in.ended = true
	return &CallError{Err: ErrProtocol, Detail: detail, Unit: -1, Operation: -1}
}

// atMemoryLimit says whether the guest was refused memory in this call, or has next to none left.
func (in *Instance) atMemoryLimit() bool {
	return in.mem.refused > 0 || in.mem.size > in.mem.max-2*pageSize
}

// trapDetail shortens wazero's message to the fault and the innermost functions.
func trapDetail(err error) string {
	const functionsMax = 5
	lines := strings.Split(err.Error(), "\n")
	detail := strings.TrimPrefix(lines[0], "wasm error: ")
	if len(lines) < 3 || lines[1] != "wasm stack trace:" {
		return detail
	}
	for i, line := range lines[2:] {
		if i == functionsMax {
			break
		}
		separator := " < "
		if i == 0 {
			separator = " in "
		}
		name, _, _ := strings.Cut(strings.TrimSpace(line), "(")
		detail += separator + strings.TrimPrefix(name, ".")
	}
	return detail
}

// image copies the instance between two calls. The instance should not be used again.
func (in *Instance) image() (*image, error) {
	globals := make([]uint64, len(in.r.guest.globals))
	for i, index := range in.r.guest.globals {
		globals[i] = in.mod.ExportedGlobal(globalName(index)).Get()
	}
	return newImage(in.mem.bytes(), globals)
}

// word reads a field of the guest's State. The address was checked against the memory a guest starts with.
func (in *Instance) word(field uint32) uint32 {
	return binary.LittleEndian.Uint32(in.mem.bytes()[in.r.guest.state+field:])
}

func (in *Instance) setWord(field, v uint32) {
	binary.LittleEndian.PutUint32(in.mem.bytes()[in.r.guest.state+field:], v)
}

// read returns n bytes of the guest's memory, as they are: not a copy. The interrupt word is never among them, which the ticker may change at any
// time: what was checked stays as it was found.
func (in *Instance) read(address, n uint32) ([]byte, bool) {
	mem := in.mem.bytes()
	end, word := uint64(address)+uint64(n), uint64(in.r.guest.state+abi.StateInterrupt)
	if end > uint64(len(mem)) || uint64(address) < word+4 && word < end {
		return nil, false
	}
	return mem[address : address+n : address+n], true
}

// resultText is the last call's result where that is a message.
func (in *Instance) resultText() string {
	text, ok := in.read(in.word(abi.StateResultPtr), in.word(abi.StateResultLen))
	if !ok {
		return "a result outside its memory"
	}
	return strings.ToValidUTF8(string(text), "\uFFFD")
}

// MemoryBytes is the size of the instance's memory, of which it shares with the image what it has not written.
func (in *Instance) MemoryBytes() int64 { return in.mem.size }

// countMemory makes size the instance's part of the program's MemoryBytes.
func (in *Instance) countMemory(size int64) {
	in.program.stats.MemoryBytes.Add(size - in.counted)
	in.counted = size
}

// Close frees the instance. It is idempotent.
func (in *Instance) Close() error {
	if in.closed {
		return nil
	}
	in.enter()
	defer in.leave()
	in.closed = true
	in.slot.remove()
	err := errors.Join(in.mod.Close(context.Background()), in.mem.unmap())
	in.r.open.Add(-1)
	in.countMemory(0)
	in.program.stats.Instances.Add(-1)
	return err
}
