package wasmhost

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/tetratelabs/wazero/api"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// instantiateHost gives guests the module "kaspr" (package abi).
func (r *Runtime) instantiateHost(ctx context.Context) error {
	i32 := api.ValueTypeI32
	builder := r.wazero.NewHostModuleBuilder("kaspr")
	export := func(name string, params, results int, f func(in *Instance, stack []uint64)) {
		types := []api.ValueType{i32, i32, i32, i32, i32}
		builder.NewFunctionBuilder().WithGoFunction(api.GoFunc(func(ctx context.Context, stack []uint64) {
			in := ctx.Value(instanceKey{}).(*Instance)
			defer in.keepPanic()
			f(in, stack)
		}), types[:params], types[:results]).Export(name)
	}
	export("tick", 0, 1, func(in *Instance, stack []uint64) { stack[0] = in.tick() })
	export("die", 0, 0, func(*Instance, []uint64) { panic(errDie) })
	export("host", 5, 1, func(in *Instance, stack []uint64) {
		stack[0] = api.EncodeI32(in.host(uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3]), uint32(stack[4])))
	})
	_, err := builder.Instantiate(ctx)
	return err
}

// keepPanic lets a panic of ours pass through the guest: wazero would make it a trap.
func (in *Instance) keepPanic() {
	if p := recover(); p != nil {
		if p != any(errDie) { // panicked with, never wrapped
			in.call.panicked = p
		}
		panic(p)
	}
}

// pendingAnswer is an answer the guest had no room for. It asks again, and nothing must be done twice.
type pendingAnswer struct {
	op      uint32
	request []byte
	answer  []byte
}

// host does one operation for the guest.
func (in *Instance) host(op, req, reqLen, resp, respCap uint32) int32 {
	request, ok := in.read(req, reqLen)
	room, ok2 := in.read(resp, respCap)
	if !ok || !ok2 {
		return abi.HostRefused
	}
	var answer []byte
	if p := in.pending; p.answer != nil && p.op == op && bytes.Equal(p.request, request) {
		answer = p.answer
	} else {
		if answer, ok = in.operation(op, request); !ok {
			return abi.HostRefused
		}
	}
	in.pending = pendingAnswer{}
	if cap(in.scratch) > scratchKept {
		defer func() { in.scratch = nil }()
	}
	if len(answer) > len(room) {
		in.pending = pendingAnswer{op: op, request: bytes.Clone(request), answer: bytes.Clone(answer)}
		return -1 - int32(len(answer))
	}
	return int32(copy(room, answer))
}

// operation returns false for what is not offered or cannot be read. It keeps nothing of request, which is the guest's.
func (in *Instance) operation(op uint32, request []byte) (answer []byte, ok bool) {
	host := in.program.Host
	switch op {
	case abi.OpLog:
		if len(request) == 0 {
			return nil, false
		}
		text := request[1:]
		if len(text) > lineBytesMax {
			text = append(text[:lineBytesMax:lineBytesMax], "…"...)
		}
		host.Log(int(request[0]), strings.ToValidUTF8(string(text), "\uFFFD"))
		return nil, true
	case abi.OpSleep:
		if len(request) != 8 {
			return nil, false
		}
		nanos := binary.LittleEndian.Uint64(request)
		in.sleep(time.Duration(min(nanos, 1<<62)))
		return nil, true
	case abi.OpSend:
		out, err := abi.DecodeOutput(request, in.program.topics)
		if err != nil {
			return nil, false
		}
		in.sentAhead(out)
		in.wait(func(ctx context.Context) {
			sent := make(chan []byte, 1)
			host.Send(ctx, out, func(answer []byte, err error) { sent <- sendAnswer(answer, err) })
			select {
			case answer = <-sent:
			case <-ctx.Done():
				answer = errorAnswer(ctx.Err())
			}
		})
		return answer, true
	case abi.OpSendStart:
		out, err := abi.DecodeOutput(request, in.program.topics)
		if err != nil {
			return nil, false
		}
		in.sentAhead(out)
		in.scratch = le.AppendUint32(in.scratch[:0], in.startSend(out))
		return in.scratch, true
	case abi.OpWait:
		if len(request) != 8 {
			return nil, false
		}
		in.idle(time.Duration(min(binary.LittleEndian.Uint64(request), 1<<62)))
		return in.call.sends.take(in.scratch[:0]), true
	case abi.OpEnsureTopic:
		var topic abi.TopicRequest
		if json.Unmarshal(request, &topic) != nil || topic.Name == "" {
			return nil, false
		}
		var err error
		in.wait(func(ctx context.Context) { err = host.EnsureTopic(ctx, topic) })
		if err != nil {
			return errorAnswer(err), true
		}
		return []byte("{}"), true
	case abi.OpIsLeader:
		if len(request) != 0 {
			return nil, false
		}
		if host.IsLeader() {
			return []byte{1}, true
		}
		return []byte{0}, true
	case abi.OpEncode:
		req, err := abi.ReadEncodeRequest(request)
		if err != nil {
			return nil, false
		}
		return in.encode(&req), true
	case abi.OpTableGet:
		return in.tableGet(request)
	case abi.OpTableScan:
		return in.tableScan(request)
	case abi.OpTableInfo:
		return in.tableInfo(request)
	}
	return nil, false
}

// sentAhead notes that the output's unit sends something before the call has its result. The guest wrote the number: it may be any.
func (in *Instance) sentAhead(out record.Output) {
	in.call.sentBy = max(in.call.sentBy, min(int(out.Record), in.call.units-1))
}

// encode keeps the turn of the Gate, unless the schema has to be waited for.
func (in *Instance) encode(req *abi.EncodeRequest) []byte {
	answer, err := in.program.Host.Encode(append(in.scratch[:0], abi.TableFound), req)
	if errors.Is(err, ErrNoSchema) {
		if in.wait(func(ctx context.Context) { err = in.program.Host.Prepare(ctx, req) }); err == nil {
			answer, err = in.program.Host.Encode(append(in.scratch[:0], abi.TableFound), req)
		}
	}
	if err != nil {
		return in.tableError(err)
	}
	in.scratch = answer
	return answer
}

// Table reads keep the turn of the Gate: they take microseconds, and their time is the guest's.

// tableGet and its siblings build their answer in in.scratch, which host copies at once.
func (in *Instance) tableGet(request []byte) ([]byte, bool) {
	if len(request) < 8 {
		return nil, false
	}
	table, partition := le.Uint32(request), int32(le.Uint32(request[4:]))
	if int64(table) >= int64(in.program.tables()) || partition < abi.TableOthers || partition == record.RecordPartition && !in.program.detached() {
		return nil, false
	}
	key := request[8:]
	value, err := in.program.Tables.TableGet(in.own, int(table), partition, key)
	if remote, ok := in.program.Tables.(RemoteTables); ok && errors.Is(err, ErrElsewhere) {
		key = bytes.Clone(key)
		in.wait(func(ctx context.Context) { value, err = remote.TableFetch(ctx, int(table), partition, key) })
	}
	switch {
	case err != nil:
		return in.tableError(err), true
	case value == nil:
		in.scratch = append(in.scratch[:0], abi.TableMissing)
	default:
		in.scratch = append(append(in.scratch[:0], abi.TableFound), value...)
	}
	return in.scratch, true
}

func (in *Instance) tableError(err error) []byte {
	status := byte(abi.TableError)
	if errors.Is(err, ErrNotReady) {
		status = abi.TableNotReady
	}
	in.scratch = append(append(in.scratch[:0], status), err.Error()...)
	return in.scratch
}

func (in *Instance) tableScan(request []byte) ([]byte, bool) {
	if len(request) < 20 {
		return nil, false
	}
	table, partition, most := le.Uint32(request), int32(le.Uint32(request[4:])), le.Uint32(request[8:])
	prefixLen, afterLen := uint64(le.Uint32(request[12:])), int32(le.Uint32(request[16:]))
	rest := request[20:]
	if int64(table) >= int64(in.program.tables()) || partition < 0 || prefixLen > uint64(len(rest)) || afterLen < -1 {
		return nil, false
	}
	prefix, after := rest[:prefixLen], rest[prefixLen:]
	if afterLen == -1 {
		after = nil
	} else if int(afterLen) != len(after) {
		return nil, false
	}
	most = min(most, scanBytesMax)
	in.scratch = append(in.scratch[:0], abi.TableMissing)
	err := in.program.Tables.TableScan(in.own, int(table), partition, prefix, after, func(key, value []byte) bool {
		if len(in.scratch) > 1 && len(in.scratch)+8+len(key)+len(value) > int(most) {
			in.scratch[0] = abi.TableFound
			return false
		}
		in.scratch = le.AppendUint32(le.AppendUint32(in.scratch, uint32(len(key))), uint32(len(value)))
		in.scratch = append(append(in.scratch, key...), value...)
		return true
	})
	if remote, ok := in.program.Tables.(RemoteTables); ok && errors.Is(err, ErrElsewhere) {
		err = in.tablePage(remote, int(table), partition, bytes.Clone(prefix), bytes.Clone(after), int(most))
	}
	if err != nil {
		return in.tableError(err), true
	}
	return in.scratch, true
}

// tablePage answers a scan of a partition that is elsewhere.
func (in *Instance) tablePage(from RemoteTables, table int, partition int32, prefix, after []byte, most int) error {
	var entries []TableEntry
	var more bool
	var err error
	in.wait(func(ctx context.Context) {
		entries, more, err = from.TablePage(ctx, table, partition, prefix, after, most)
	})
	in.scratch = append(in.scratch[:0], abi.TableMissing)
	if more {
		in.scratch[0] = abi.TableFound
	}
	for _, e := range entries {
		in.scratch = le.AppendUint32(le.AppendUint32(in.scratch, uint32(len(e.Key))), uint32(len(e.Value)))
		in.scratch = append(append(in.scratch, e.Key...), e.Value...)
	}
	return err
}

func (in *Instance) tableInfo(request []byte) ([]byte, bool) {
	if len(request) != 4 || int64(le.Uint32(request)) >= int64(in.program.tables()) {
		return nil, false
	}
	partitions, active, entries, err := in.program.Tables.TableInfo(int(le.Uint32(request)))
	if err != nil {
		return in.tableError(err), true
	}
	in.scratch = le.AppendUint64(append(in.scratch[:0], abi.TableFound), uint64(entries))
	in.scratch = le.AppendUint32(le.AppendUint32(in.scratch, uint32(partitions)), uint32(len(active)))
	for _, p := range active {
		in.scratch = le.AppendUint32(in.scratch, uint32(p))
	}
	return in.scratch, true
}

// scratchKept bounds what a large answer leaves behind.
const scratchKept = 2 << 20

// scanBytesMax bounds one answer to a scan, unless it is one large entry.
const scanBytesMax = 1 << 20

var le = binary.LittleEndian

// runningKey is the context key of Running.
type runningKey struct{}

// Running is the record that code was working on when it asked its Host, or RemoteTables, for something that waits: of a take batch the
// first one. Nil outside of records. It is the caller's own or a copy of it, which shares its bytes.
func Running(ctx context.Context) *record.Record {
	r, _ := ctx.Value(runningKey{}).(*record.Record)
	return r
}

// wait runs something that waits for the world. It is not the guest's time.
func (in *Instance) wait(f func(ctx context.Context)) {
	begin := time.Now()
	in.look(begin)
	ctx := in.call.ctx
	if unit := in.call.unit; int64(unit) < int64(len(in.call.records)) {
		ctx = context.WithValue(ctx, runningKey{}, &in.call.records[unit])
	}
	in.pause(func() {
		f(ctx)
		in.excuse(time.Since(begin))
		in.call.outside += time.Since(begin)
	})
}

func sendAnswer(answer []byte, err error) []byte {
	if err != nil {
		return errorAnswer(err)
	}
	return answer
}

func errorAnswer(err error) []byte {
	answer, _ := json.Marshal(map[string]string{"error": err.Error()})
	return answer
}
