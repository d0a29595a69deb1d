package abi

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/record"
)

// readBatch is what a guest does with a batch, with every length checked.
func readBatch(buf []byte) (*record.Batch, error) {
	cut := func(off, n uint32) ([]byte, error) {
		if int32(n) == -1 {
			return nil, nil
		}
		if uint64(off)+uint64(n) > uint64(len(buf)) {
			return nil, fmt.Errorf("%d bytes at %d of %d", n, off, len(buf))
		}
		return append([]byte{}, buf[off:off+n]...), nil
	}
	if len(buf) < BatchHeaderSize || le.Uint32(buf) != BatchMagic {
		return nil, errors.New("no batch")
	}
	flags := le.Uint32(buf[8:])
	b := &record.Batch{Take: flags&FlagTake != 0, StopOnFailure: flags&FlagStopOnFailure != 0, CacheValid: le.Uint32(buf[20:])}
	topicsOff := le.Uint32(buf[16:])
	for i := range le.Uint32(buf[4:]) {
		e := buf[BatchHeaderSize+i*RecordSize:]
		r := record.Record{
			Partition: int32(le.Uint32(e[4:])), Offset: int64(le.Uint64(e[8:])), Timestamp: int64(le.Uint64(e[16:])),
			TimestampType: record.TimestampType(le.Uint32(e[24:])), Attempt: int32(le.Uint32(e[28:])),
		}
		topic := le.Uint32(e)
		if topic >= le.Uint32(buf[12:]) {
			return nil, errors.New("topic index")
		}
		t := buf[topicsOff+topic*TopicSize:]
		name, err := cut(le.Uint32(t), le.Uint32(t[4:]))
		r.Topic = string(name)
		var err2, err3 error
		r.Key, err2 = cut(le.Uint32(e[32:]), le.Uint32(e[36:]))
		r.Value, err3 = cut(le.Uint32(e[40:]), le.Uint32(e[44:]))
		if err := errors.Join(err, err2, err3); err != nil {
			return nil, err
		}
		for j := range le.Uint32(e[52:]) {
			h := buf[le.Uint32(e[48:])+j*HeaderSize:]
			key, err := cut(le.Uint32(h), le.Uint32(h[4:]))
			value, err2 := cut(le.Uint32(h[8:]), le.Uint32(h[12:]))
			if err := errors.Join(err, err2); err != nil {
				return nil, err
			}
			r.Headers = append(r.Headers, record.Header{Key: string(key), Value: value})
		}
		b.Records = append(b.Records, r)
	}
	return b, nil
}

// appendResult is what a guest does: the entries of units first to last-1 of res, each with its done entry.
func appendResult(dst []byte, res *record.Result, topics []string, units int) []byte {
	for unit := range units {
		for _, o := range res.Outputs {
			if int(o.Record) == unit {
				dst = appendOutput(dst, o, topics)
			}
		}
		for _, c := range res.Changes {
			if int(c.Record) == unit {
				dst = appendChange(dst, c)
			}
		}
		for _, f := range res.Failures {
			if int(f.Record) == unit {
				dst = appendFailure(dst, f)
			}
		}
		dst = le.AppendUint32(le.AppendUint32(le.AppendUint32(dst, EntryHeaderSize), EntryDone), uint32(unit))
	}
	return dst
}

func length(b []byte) uint32 {
	if b == nil {
		return ^uint32(0)
	}
	return uint32(len(b))
}

func appendOutput(dst []byte, o record.Output, topics []string) []byte {
	start := len(dst)
	index, name := int32(-1), o.Topic
	for i, t := range topics {
		if t == o.Topic {
			index, name = int32(i), ""
		}
	}
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint32(dst, EntryOutput)
	dst = le.AppendUint32(dst, uint32(o.Record))
	dst = le.AppendUint32(dst, uint32(index))
	dst = le.AppendUint32(dst, uint32(len(name)))
	dst = le.AppendUint32(dst, uint32(o.Partition))
	dst = le.AppendUint64(dst, uint64(o.Timestamp))
	dst = le.AppendUint32(dst, length(o.Key))
	dst = le.AppendUint32(dst, length(o.Value))
	dst = le.AppendUint32(dst, uint32(len(o.Headers)))
	dst = append(append(append(dst, name...), o.Key...), o.Value...)
	for _, h := range o.Headers {
		dst = le.AppendUint32(le.AppendUint32(dst, uint32(len(h.Key))), length(h.Value))
		dst = append(append(dst, h.Key...), h.Value...)
	}
	le.PutUint32(dst[start:], uint32(len(dst)-start))
	return dst
}

func appendChange(dst []byte, c record.Change) []byte {
	size := ChangeFixedSize + len(c.Key) + len(c.Value)
	for _, v := range []uint32{uint32(size), EntryChange, uint32(c.Record), uint32(c.Table), uint32(c.Partition), uint32(len(c.Key)), length(c.Value)} {
		dst = le.AppendUint32(dst, v)
	}
	return append(append(le.AppendUint64(dst, uint64(c.Expires)), c.Key...), c.Value...)
}

func appendFailure(dst []byte, f record.Failure) []byte {
	start := len(dst)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint32(dst, EntryFailure)
	dst = le.AppendUint32(dst, uint32(f.Record))
	dst = le.AppendUint32(dst, uint32(f.Kind))
	for _, s := range []string{f.Type, f.Message, f.Traceback, f.Operation} {
		dst = le.AppendUint32(dst, uint32(len(s)))
	}
	for _, s := range []string{f.Type, f.Message, f.Traceback, f.Operation} {
		dst = append(dst, s...)
	}
	le.PutUint32(dst[start:], uint32(len(dst)-start))
	return dst
}

func randomBytes(r *rand.Rand) []byte {
	n := r.IntN(20) - 2
	if n < 0 {
		return nil // null is not the empty string
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func randomHeaders(r *rand.Rand) []record.Header {
	var hs []record.Header
	for range max(0, r.IntN(5)-2) {
		hs = append(hs, record.Header{Key: string(randomBytes(r)), Value: randomBytes(r)})
	}
	return hs
}

func TestBatchRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := &record.Batch{Take: r.IntN(2) == 0, StopOnFailure: r.IntN(2) == 0, CacheValid: r.Uint32()}
		for range r.IntN(40) {
			want.Records = append(want.Records, record.Record{
				Topic: fmt.Sprintf("topic-%d", r.IntN(1+int(seed%12))), Partition: r.Int32(), Offset: r.Int64(), Timestamp: r.Int64(),
				TimestampType: record.TimestampType(r.IntN(2)), Attempt: r.Int32N(9),
				Key: randomBytes(r), Value: randomBytes(r), Headers: randomHeaders(r),
			})
		}
		prefix := []byte("before")
		buf := AppendBatch(prefix, want)
		size, err := BatchSize(want)
		if err != nil || size != len(buf)-len(prefix) {
			t.Fatalf("seed %d: size %d, %v, wrote %d", seed, size, err, len(buf)-len(prefix))
		}
		dirty := make([]byte, size) // a guest's memory is not zero
		for i := range dirty {
			dirty[i] = 0xAA
		}
		PutBatch(dirty, want)
		if string(dirty) != string(buf[len(prefix):]) {
			t.Fatalf("seed %d: PutBatch leaves what was in its buffer", seed)
		}
		got, err := readBatch(buf[len(prefix):])
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d:\ngot  %+v\nwant %+v", seed, got, want)
		}
	}
}

func TestBatchTooLarge(t *testing.T) {
	big := make([]byte, 1<<20)
	b := &record.Batch{Records: make([]record.Record, 1025)}
	for i := range b.Records {
		b.Records[i].Value = big
	}
	if _, err := BatchSize(b); err == nil {
		t.Fatal("a batch of more than 1 GiB has a size")
	}
}

// tables is the number of tables of the tests' programs.
const tables = 3

var outputTopics = []string{"alpha", "", "beta"}

func TestResultRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		units := r.IntN(20)
		var want record.Result
		for unit := range units {
			if r.IntN(5) == 0 {
				want.Failures = append(want.Failures, record.Failure{
					Record: int32(unit), Kind: record.FailureKind(1 + r.IntN(7)), Type: "KeyError", Message: string(randomBytes(r)),
					Traceback: string(randomBytes(r)), Operation: string(randomBytes(r)),
				})
				continue
			}
			for range r.IntN(4) {
				want.Outputs = append(want.Outputs, record.Output{
					Record: int32(unit), Topic: []string{"alpha", "beta", "made-up"}[r.IntN(3)], Partition: r.Int32N(5) - 1, Timestamp: r.Int64(),
					Key: randomBytes(r), Value: randomBytes(r), Headers: randomHeaders(r),
				})
			}
			for range max(0, r.IntN(4)-1) {
				want.Changes = append(want.Changes, record.Change{
					Record: int32(unit), Table: r.Int32N(tables), Partition: r.Int32N(5) - 1, Key: append([]byte{}, randomBytes(r)...),
					Value: randomBytes(r), Expires: r.Int64(),
				})
			}
		}
		want.Done = units
		buf := appendResult(nil, &want, outputTopics, units)
		got, err := DecodeResult(buf, outputTopics, tables, units, false)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d:\ngot  %+v\nwant %+v", seed, got, want)
		}
		// The guest's memory changes with its next call.
		for i := range buf {
			buf[i] = 0xFF
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: the result points into the guest's buffer", seed)
		}
	}
}

// A call can die anywhere: only whole units may come out of what it left.
func TestResultCutShort(t *testing.T) {
	res := record.Result{
		Outputs: []record.Output{
			{Record: 0, Topic: "alpha", Value: []byte("a")},
			{Record: 1, Topic: "beta", Value: []byte("b")},
			{Record: 2, Topic: "beta", Value: []byte("c")},
			{Record: 2, Topic: "other", Value: []byte("d")},
		},
		Failures: []record.Failure{{Record: 3, Kind: record.FailureCode, Type: "ValueError"}},
	}
	buf := appendResult(nil, &res, outputTopics, 4)
	doneAt := map[int]int{}
	for off, done := 0, 0; off < len(buf); {
		off += int(le.Uint32(buf[off:]))
		if le.Uint32(buf[off-EntryHeaderSize+4:]) == EntryDone {
			done++
		}
		doneAt[off] = done
	}
	for n := range len(buf) + 1 {
		got, err := DecodeResult(buf[:n], outputTopics, tables, 4, false)
		done, whole := doneAt[n]
		if !whole && n > 0 {
			if err == nil {
				t.Fatalf("%d of %d bytes decode", n, len(buf))
			}
			continue
		}
		if err != nil || got.Done != done {
			t.Fatalf("%d of %d bytes: done %d, want %d, %v", n, len(buf), got.Done, done, err)
		}
		for _, o := range got.Outputs {
			if int(o.Record) >= done {
				t.Fatalf("%d of %d bytes: output of unit %d, done %d", n, len(buf), o.Record, done)
			}
		}
		if want := max(0, done-3); len(got.Failures) != want {
			t.Fatalf("%d of %d bytes: %d failures, want %d", n, len(buf), len(got.Failures), want)
		}
	}
}

func TestResultRefused(t *testing.T) {
	output := appendOutput(nil, record.Output{Topic: "alpha", Key: []byte("k"), Value: []byte("v"), Headers: []record.Header{{Key: "h"}}}, outputTopics)
	change := appendChange(nil, record.Change{Key: []byte("k"), Value: []byte("v")})
	failure := appendFailure(nil, record.Failure{Kind: record.FailureCode, Type: "E", Message: "m"})
	done := func(unit byte) []byte { return []byte{12, 0, 0, 0, EntryDone, 0, 0, 0, unit, 0, 0, 0} }
	with := func(b []byte, at int, v uint32) []byte {
		b = append([]byte{}, b...)
		le.PutUint32(b[at:], v)
		return b
	}
	for name, buf := range map[string][]byte{
		"unit beyond the batch":  done(2),
		"unit left out":          done(1),
		"unit done twice":        append(done(0), done(0)...),
		"size zero":              with(done(0), 0, 0),
		"size beyond the buffer": with(done(0), 0, 13),
		"size that wraps":        with(done(0), 0, ^uint32(0)),
		"kind unknown":           with(done(0), 4, 9),
		"change too short":       with(done(0), 4, EntryChange),
		"change of no table":     with(change, 12, tables),
		"change partition":       with(change, 16, ^uint32(1)),
		"change without key":     with(change, 20, ^uint32(0)),
		"change key beyond":      with(change, 20, 3),
		"change value short":     with(change, 24, 0),
		"change expires before":  with(change, 32, 1<<31),
		"done with a tail":       append(with(done(0), 0, 16), 0, 0, 0, 0),
		"output too short":       with(done(0), 4, EntryOutput),
		"output index":           with(output, 12, 3),
		"output index negative":  with(output, 12, ^uint32(1)),
		"output without topic":   with(output, 12, 1),
		"topic and index":        with(output, 16, 1),
		"topic length wraps":     with(output, 16, ^uint32(0)),
		"partition":              with(output, 20, ^uint32(1)),
		"key length":             with(output, 32, 1000),
		"key length negative":    with(output, 32, ^uint32(1)),
		"value length":           with(output, 36, 3),
		"header count":           with(output, 40, 1<<31),
		"header count off":       with(output, 40, 0),
		"failure kind":           with(failure, 12, 9),
		"failure kind wraps":     with(failure, 12, 257),
		"failure type length":    with(failure, 16, ^uint32(0)),
		"failure twice":          append(append([]byte{}, failure...), failure...),
	} {
		var format *FormatError
		if res, err := DecodeResult(buf, outputTopics, tables, 2, false); !errors.As(err, &format) {
			t.Errorf("%s: got %+v, %v", name, res, err)
		}
	}
}

// The outputs and changes a unit made before it failed must neither be sent nor stored.
func TestFailureDropsWhatTheUnitDid(t *testing.T) {
	buf := appendChange(nil, record.Change{Record: 0, Key: []byte("before"), Value: []byte("1")})
	buf = append(buf, 12, 0, 0, 0, EntryDone, 0, 0, 0, 0, 0, 0, 0)
	buf = appendOutput(buf, record.Output{Record: 1, Topic: "alpha"}, outputTopics)
	buf = appendChange(buf, record.Change{Record: 1, Key: []byte("k")})
	buf = appendFailure(buf, record.Failure{Record: 1, Kind: record.FailureEncode})
	buf = appendOutput(buf, record.Output{Record: 1, Topic: "alpha"}, outputTopics)
	buf = appendChange(buf, record.Change{Record: 1, Key: []byte("k")})
	buf = append(buf, 12, 0, 0, 0, EntryDone, 0, 0, 0, 1, 0, 0, 0)
	res, err := DecodeResult(buf, outputTopics, tables, 2, false)
	if err != nil || len(res.Outputs) != 0 || len(res.Changes) != 1 || res.Changes[0].Record != 0 || len(res.Failures) != 1 || res.Done != 2 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// A guest that is not what it should be must not fill the host's memory with what failures say.
func TestFailureTextsAreBounded(t *testing.T) {
	long := strings.Repeat("x", 3*failureTextMax)
	buf := appendResult(nil, &record.Result{Done: 1, Failures: []record.Failure{{Kind: record.FailureCode, Type: long, Message: long, Traceback: long, Operation: long}}}, nil, 1)
	res, err := DecodeResult(buf, nil, 0, 1, false)
	if err != nil || len(res.Failures) != 1 {
		t.Fatal(err, len(res.Failures))
	}
	for i, text := range []string{res.Failures[0].Type, res.Failures[0].Message, res.Failures[0].Traceback, res.Failures[0].Operation} {
		if len(text) != failureTextMax {
			t.Errorf("text %d has %d bytes", i, len(text))
		}
	}
}

// The response to a failed request is made after the failure: it alone is kept of what the request did.
func TestResponseOfFailure(t *testing.T) {
	buf := appendOutput(nil, record.Output{Topic: ResponseTopic, Partition: 200}, nil) // made, and then the request failed
	buf = appendFailure(buf, record.Failure{Kind: record.FailureCode})
	buf = appendOutput(buf, record.Output{Topic: "sent"}, nil)
	buf = appendOutput(buf, record.Output{Topic: ResponseTopic, Partition: 422, Value: []byte("why")}, nil)
	buf = append(buf, 12, 0, 0, 0, EntryDone, 0, 0, 0, 0, 0, 0, 0)
	res, err := DecodeResult(buf, nil, 0, 1, false)
	if err != nil || len(res.Outputs) != 1 || res.Outputs[0].Partition != 422 || len(res.Failures) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// A record that cannot be decoded must fail alone, and the others' list must not take it along.
func TestTakeResult(t *testing.T) {
	entry := func(unit int, kind record.FailureKind) []byte {
		return appendFailure(nil, record.Failure{Record: int32(unit), Kind: kind})
	}
	output := appendOutput(nil, record.Output{Record: 0, Topic: "alpha"}, outputTopics)
	change := appendChange(nil, record.Change{Record: 0, Key: []byte("k"), Value: []byte{}})
	done := []byte{12, 0, 0, 0, EntryDone, 0, 0, 0, 0, 0, 0, 0}
	for name, test := range map[string]struct {
		entries [][]byte
		want    string
	}{
		"all well":              {[][]byte{output, change, output, done}, "done 5 outputs [0 0] changes [0] failures []"},
		"single records":        {[][]byte{entry(0, 2), entry(1, 3), entry(4, 2), output, change, done}, "done 5 outputs [2] changes [2] failures [0/2 1/3 4/2]"},
		"the list":              {[][]byte{output, change, entry(0, 1), done}, "done 5 outputs [] changes [] failures [0/1]"},
		"both":                  {[][]byte{entry(0, 2), entry(0, 1), done}, "done 5 outputs [] changes [] failures [0/2 0/1]"},
		"memory while decoding": {[][]byte{entry(3, 6), done}, "done 5 outputs [] changes [] failures [0/6]"},
		"not done":              {[][]byte{entry(1, 2), output, change}, "done 0 outputs [] changes [] failures []"},
		"out of order":          {[][]byte{entry(1, 2), entry(0, 2), done}, "error"},
		"record unknown":        {[][]byte{entry(5, 2), done}, "error"},
		"list twice":            {[][]byte{entry(0, 1), entry(0, 1), done}, "error"},
		"done twice":            {[][]byte{done, done}, "error"},
		"after the end":         {[][]byte{done, entry(1, 2)}, "error"},
	} {
		res, err := DecodeResult(bytes.Join(test.entries, nil), outputTopics, tables, 5, true)
		outputs, changes, failures := []int32{}, []int32{}, []string{}
		for _, o := range res.Outputs {
			outputs = append(outputs, o.Record)
		}
		for _, c := range res.Changes {
			changes = append(changes, c.Record)
		}
		for _, f := range res.Failures {
			failures = append(failures, fmt.Sprintf("%d/%d", f.Record, f.Kind))
		}
		got := fmt.Sprintf("done %d outputs %v changes %v failures %v", res.Done, outputs, changes, failures)
		if err != nil {
			got = "error"
		}
		if got != test.want {
			t.Errorf("%s: got %s (%v), want %s", name, got, err, test.want)
		}
	}
}

func TestDecodeOutput(t *testing.T) {
	want := record.Output{Record: 7, Topic: "made-up", Partition: -1, Key: []byte{}, Headers: []record.Header{{Key: "a", Value: []byte("b")}}}
	buf := appendOutput(nil, want, outputTopics)
	got, err := DecodeOutput(buf, outputTopics)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range [][]byte{nil, buf[:10], append(append([]byte{}, buf...), buf...), appendFailure(nil, record.Failure{Kind: 1})} {
		if _, err := DecodeOutput(bad, outputTopics); err == nil {
			t.Errorf("%d bytes decode", len(bad))
		}
	}
}

// Whatever the guest writes, the decoder neither panics nor hands out more than the guest wrote.
func FuzzDecodeResult(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	var res record.Result
	for i := range 6 {
		res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: "alpha", Key: randomBytes(r), Value: randomBytes(r), Headers: randomHeaders(r)})
		res.Changes = append(res.Changes, record.Change{Record: int32(i), Table: r.Int32N(tables), Partition: r.Int32N(3) - 1, Key: []byte("k"), Value: randomBytes(r), Expires: r.Int64()})
	}
	f.Add(appendResult(nil, &res, outputTopics, 6), uint8(6))
	f.Add(appendFailure(nil, record.Failure{Kind: 1, Type: "a", Message: "b"}), uint8(1))
	f.Add([]byte{}, uint8(0))
	f.Fuzz(func(t *testing.T, buf []byte, units uint8) {
		if res, err := DecodeResult(buf, outputTopics, tables, int(units), true); err == nil && res.Done != 0 && res.Done != int(units) {
			t.Fatalf("%d of %d records of a take batch", res.Done, units)
		}
		res, err := DecodeResult(buf, outputTopics, tables, int(units), false)
		_, _ = DecodeOutput(buf, outputTopics)
		if err != nil {
			return
		}
		if res.Done > int(units) {
			t.Fatalf("%d of %d units", res.Done, units)
		}
		total := 0
		for _, o := range res.Outputs {
			total += len(o.Key) + len(o.Value)
			for _, h := range o.Headers {
				total += len(h.Key) + len(h.Value)
			}
		}
		for _, c := range res.Changes {
			total += len(c.Key) + len(c.Value)
			if c.Table < 0 || c.Table >= tables || c.Partition < record.RecordPartition || c.Expires < 0 || int(c.Record) >= res.Done {
				t.Fatalf("%+v", c)
			}
		}
		if total > len(buf) {
			t.Fatalf("%d bytes out of %d", total, len(buf))
		}
		again := appendResult(nil, &res, outputTopics, res.Done)
		second, err := DecodeResult(again, outputTopics, tables, res.Done, false)
		if len(res.Outputs) == 0 {
			res.Outputs = nil
		}
		if len(res.Changes) == 0 {
			res.Changes = nil
		}
		if len(res.Failures) == 0 {
			res.Failures = nil
		}
		if err != nil || !reflect.DeepEqual(res, second) {
			t.Fatalf("round trip: %v\n%+v\n%+v", err, res, second)
		}
	})
}

func benchmarkBatch(records, bytes int) *record.Batch {
	b := &record.Batch{}
	for i := range records {
		b.Records = append(b.Records, record.Record{
			Topic: "orders", Partition: 3, Offset: int64(i), Key: []byte("user-1234567"), Value: []byte(strings.Repeat("x", bytes)),
			Headers: []record.Header{{Key: "trace", Value: []byte("0123456789abcdef")}},
		})
	}
	return b
}

func BenchmarkPutBatch(b *testing.B) {
	for _, records := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("records=%d/bytes=200", records), func(b *testing.B) {
			batch := benchmarkBatch(records, 200)
			size, _ := BatchSize(batch)
			buf := make([]byte, size)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := BatchSize(batch); err != nil {
					b.Fatal(err)
				}
				PutBatch(buf, batch)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
		})
	}
}

func BenchmarkDecodeResult(b *testing.B) {
	for _, records := range []int{1, 64, 1000} {
		b.Run(fmt.Sprintf("records=%d/bytes=200", records), func(b *testing.B) {
			var res record.Result
			for i, r := range benchmarkBatch(records, 200).Records {
				res.Outputs = append(res.Outputs, record.Output{Record: int32(i), Topic: "alpha", Key: r.Key, Value: r.Value, Headers: r.Headers})
			}
			buf := appendResult(nil, &res, outputTopics, records)
			b.ReportAllocs()
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if _, err := DecodeResult(buf, outputTopics, tables, records, false); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
		})
	}
}
