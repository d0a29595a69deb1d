package abi

import (
	"bytes"
	"fmt"
	"unsafe"

	"kaspr.io/kaspr/engine/record"
)

// FormatError says that bytes from the guest are not what this package describes. The guest is then not to be trusted.
type FormatError struct {
	Offset int // of the entry, in the buffer
	Text   string
}

func (e *FormatError) Error() string { return fmt.Sprintf("result at byte %d: %s", e.Offset, e.Text) }

// DecodeResult reads the result of a call over a batch of records. Topics are the names of Program.Outputs by index, ""
// where the guest must name the topic itself; tables is the number of Program.Tables. Buf is copied once; the Result does not point into it.
//
// Result.Done counts records that belong to finished units; Elapsed is left alone. Of a unit that failed only the
// Failure is kept. A result that ends early is no error: the caller knows how many units to expect. The one unit of
// a take batch may have failures of single records that could not be decoded, in order, and one for the list of the
// others, whose Record is 0; outputs of the list have the first record in it as theirs.
func DecodeResult(buf []byte, topics []string, tables, records int, take bool) (record.Result, error) {
	var res record.Result
	n, err := count(buf)
	if err != nil {
		return res, err
	}
	if n.outputs+n.changes > 0 {
		// What is decoded points into this copy: the guest's memory changes with its next call.
		buf = bytes.Clone(buf)
	}
	if n.outputs > 0 {
		res.Outputs = make([]record.Output, 0, n.outputs)
	}
	if n.changes > 0 {
		res.Changes = make([]record.Change, 0, n.changes)
	}
	if n.failures > 0 {
		res.Failures = make([]record.Failure, 0, n.failures)
	}
	d := decoder{buf: buf, topics: topics, tables: tables}
	if n.headers > 0 {
		d.headers = make([]record.Header, n.headers)
	}
	units := records
	if take {
		units = min(records, 1)
	}
	first := 0       // of the current unit's outputs
	firstChange := 0 // of its changes
	firstFail := 0   // of its failures
	failed := false
	for off := 0; off < len(buf); {
		size := int(le.Uint32(buf[off:]))
		kind, unit := le.Uint32(buf[off+4:]), int(le.Uint32(buf[off+8:]))
		d.off, d.entry = off, buf[off:off+size:off+size]
		single := take && kind == EntryFailure && unit < records && res.Done == 0
		switch {
		case single:
		case unit >= units:
			return record.Result{}, d.errorf("unit %d of %d", unit, units)
		case unit != res.Done:
			return record.Result{}, d.errorf("unit %d, expected %d", unit, res.Done)
		}
		switch kind {
		case EntryOutput:
			out, err := d.output()
			if err != nil {
				return record.Result{}, err
			}
			if !failed || out.Topic == ResponseTopic {
				res.Outputs = append(res.Outputs, out)
			}
		case EntryChange:
			change, err := d.change()
			if err != nil {
				return record.Result{}, err
			}
			if !failed {
				res.Changes = append(res.Changes, change)
			}
		case EntryFailure:
			failure, err := d.failure()
			if err != nil {
				return record.Result{}, err
			}
			if failed {
				return record.Result{}, d.errorf("unit %d fails twice", unit)
			}
			if take && (failure.Kind == record.FailureDecodeKey || failure.Kind == record.FailureDecodeValue) {
				if n := len(res.Failures); n > 0 && failure.Record <= res.Failures[n-1].Record {
					return record.Result{}, d.errorf("record %d fails after record %d", failure.Record, res.Failures[n-1].Record)
				}
				res.Failures = append(res.Failures, failure)
				break
			}
			if take {
				failure.Record = 0
			}
			failed = true
			res.Outputs, res.Changes = cut(res.Outputs, first), cut(res.Changes, firstChange)
			res.Failures = append(res.Failures, failure)
		case EntryDone:
			if size != EntryHeaderSize {
				return record.Result{}, d.errorf("done entry of %d bytes", size)
			}
			res.Done++
			first, firstChange, firstFail, failed = len(res.Outputs), len(res.Changes), len(res.Failures), false
		}
		off += size
	}
	// Entries behind the last EntryDone belong to a unit that did not end.
	res.Outputs, res.Changes = cut(res.Outputs, first), cut(res.Changes, firstChange)
	res.Failures = res.Failures[:firstFail]
	if take && res.Done > 0 {
		res.Done = records
		ownList(&res)
	}
	return res, nil
}

// cut shortens a slice, and lets go of what the elements behind n hold.
func cut[T any](s []T, n int) []T {
	clear(s[n:])
	return s[:n]
}

// ownList gives the outputs and changes of a list to the first record that is in it.
func ownList(res *record.Result) {
	owner := int32(0)
	for i := range res.Failures {
		if res.Failures[i].Record == owner {
			owner++
		}
	}
	for i := range res.Outputs {
		res.Outputs[i].Record = owner
	}
	for i := range res.Changes {
		res.Changes[i].Record = owner
	}
}

// DecodeOutput reads one EntryOutput, as OpSend carries it. The Output owns its bytes.
func DecodeOutput(buf []byte, topics []string) (record.Output, error) {
	d := decoder{buf: buf}
	n, err := count(buf)
	if err != nil {
		return record.Output{}, err
	}
	if n.outputs != 1 || int(le.Uint32(buf)) != len(buf) {
		return record.Output{}, d.errorf("not one output")
	}
	buf = bytes.Clone(buf)
	d = decoder{buf: buf, entry: buf, topics: topics}
	if n.headers > 0 {
		d.headers = make([]record.Header, n.headers)
	}
	return d.output()
}

// counts is how many entries of each kind a buffer has, and how many headers its outputs have.
type counts struct{ outputs, headers, changes, failures int }

// count checks every entry's size and kind and the smallest size of what it announces, so that the decoder allocates
// no more than the buffer's length allows.
func count(buf []byte) (n counts, err error) {
	d := decoder{buf: buf}
	for off := 0; off < len(buf); {
		d.off = off
		rest := buf[off:]
		if len(rest) < EntryHeaderSize {
			return n, d.errorf("%d bytes left, too few for an entry", len(rest))
		}
		size := uint64(le.Uint32(rest))
		if size < EntryHeaderSize || size > uint64(len(rest)) {
			return n, d.errorf("entry of %d bytes, %d left", size, len(rest))
		}
		switch kind := le.Uint32(rest[4:]); kind {
		case EntryOutput:
			if size < OutputFixedSize {
				return n, d.errorf("output of %d bytes", size)
			}
			headers := uint64(le.Uint32(rest[40:]))
			if headers > (size-OutputFixedSize)/8 {
				return n, d.errorf("output of %d bytes with %d headers", size, headers)
			}
			n.outputs++
			n.headers += int(headers)
		case EntryChange:
			if size < ChangeFixedSize {
				return n, d.errorf("change of %d bytes", size)
			}
			n.changes++
		case EntryFailure:
			if size < FailureFixedSize {
				return n, d.errorf("failure of %d bytes", size)
			}
			n.failures++
		case EntryDone:
		default:
			return n, d.errorf("unknown kind %d", kind)
		}
		off += int(size)
	}
	return n, nil
}

// decoder reads one entry after another of a buffer whose entry sizes were checked by count.
type decoder struct {
	buf     []byte
	topics  []string
	tables  int
	headers []record.Header // room for all headers of the buffer
	off     int             // of entry in buf
	entry   []byte
}

func (d *decoder) errorf(format string, args ...any) error {
	return &FormatError{Offset: d.off, Text: fmt.Sprintf(format, args...)}
}

func (d *decoder) output() (record.Output, error) {
	e := d.entry
	index, topicLen := int32(le.Uint32(e[12:])), le.Uint32(e[16:])
	out := record.Output{
		Record:    int32(le.Uint32(e[8:])),
		Partition: int32(le.Uint32(e[20:])),
		Timestamp: int64(le.Uint64(e[24:])),
	}
	keyLen, valueLen, headerCount := int32(le.Uint32(e[32:])), int32(le.Uint32(e[36:])), int(le.Uint32(e[40:]))
	if out.Partition < record.PartitionByKey {
		return out, d.errorf("partition %d", out.Partition)
	}
	rest := e[OutputFixedSize:]
	var name, key, value []byte
	ok := true
	name, rest = d.take(rest, int64(topicLen), &ok)
	key, rest = d.take(rest, int64(keyLen), &ok)
	value, rest = d.take(rest, int64(valueLen), &ok)
	if !ok {
		return out, d.errorf("lengths %d, %d and %d exceed an output of %d bytes", topicLen, keyLen, valueLen, len(e))
	}
	out.Key, out.Value = key, value
	switch {
	case index == -1 && topicLen > 0:
		out.Topic = stringOf(name)
	case index >= 0 && int(index) < len(d.topics) && topicLen == 0 && d.topics[index] != "":
		out.Topic = d.topics[index]
	default:
		return out, d.errorf("output %d of %d with a topic of %d bytes", index, len(d.topics), topicLen)
	}
	if headerCount > 0 {
		out.Headers = d.headers[:headerCount:headerCount]
		d.headers = d.headers[headerCount:]
		for i := range out.Headers {
			if len(rest) < 8 {
				return out, d.errorf("header %d of %d is cut off", i, headerCount)
			}
			keyLen, valueLen := le.Uint32(rest), int32(le.Uint32(rest[4:]))
			key, rest = d.take(rest[8:], int64(keyLen), &ok)
			value, rest = d.take(rest, int64(valueLen), &ok)
			if !ok {
				return out, d.errorf("header %d: lengths %d and %d exceed the output", i, keyLen, valueLen)
			}
			out.Headers[i] = record.Header{Key: stringOf(key), Value: value}
		}
	}
	if len(rest) > 0 {
		return out, d.errorf("%d bytes too many in an output", len(rest))
	}
	return out, nil
}

func (d *decoder) change() (record.Change, error) {
	e := d.entry
	c := record.Change{
		Record: int32(le.Uint32(e[8:])), Table: int32(le.Uint32(e[12:])), Partition: int32(le.Uint32(e[16:])),
		Expires: int64(le.Uint64(e[28:])),
	}
	keyLen, valueLen := int32(le.Uint32(e[20:])), int32(le.Uint32(e[24:]))
	switch {
	case c.Table < 0 || int(c.Table) >= d.tables:
		return c, d.errorf("change of table %d of %d", c.Table, d.tables)
	case c.Partition < record.RecordPartition:
		return c, d.errorf("change in partition %d", c.Partition)
	case c.Expires < 0:
		return c, d.errorf("change that expires at %d", c.Expires)
	case keyLen < 0:
		return c, d.errorf("change without a key")
	}
	ok := true
	rest := e[ChangeFixedSize:]
	c.Key, rest = d.take(rest, int64(keyLen), &ok)
	c.Value, rest = d.take(rest, int64(valueLen), &ok)
	if !ok || len(rest) > 0 {
		return c, d.errorf("lengths %d and %d do not add up to a change of %d bytes", keyLen, valueLen, len(e))
	}
	return c, nil
}

// failureTextMax bounds each text of a failure: logs, metrics and dead letters have them. The guest has bounds of its own, far below, as long as it is
// what it should be.
const failureTextMax = 64 << 10

func (d *decoder) failure() (record.Failure, error) {
	e := d.entry
	f := record.Failure{Record: int32(le.Uint32(e[8:])), Kind: record.FailureKind(e[12])}
	if kind := le.Uint32(e[12:]); kind < uint32(record.FailureCode) || kind > uint32(record.FailureSend) {
		return f, d.errorf("unknown failure kind %d", kind)
	}
	rest := e[FailureFixedSize:]
	ok := true
	for i, s := range [...]*string{&f.Type, &f.Message, &f.Traceback, &f.Operation} {
		var text []byte
		text, rest = d.take(rest, int64(le.Uint32(e[16+4*i:])), &ok)
		*s = string(text[:min(len(text), failureTextMax)]) // copied: failures are kept longer than results
	}
	if !ok || len(rest) > 0 {
		return f, d.errorf("lengths do not add up to a failure of %d bytes", len(e))
	}
	return f, nil
}

// take cuts n bytes off rest; -1 is null. It clears ok, once and for all, when they are not there.
func (d *decoder) take(rest []byte, n int64, ok *bool) (v, tail []byte) {
	if n == -1 {
		return nil, rest
	}
	if n < 0 || n > int64(len(rest)) {
		*ok = false
		return nil, nil
	}
	return rest[:n:n], rest[n:]
}

// stringOf shares b's bytes. It is used for names only, which nobody writes to.
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
