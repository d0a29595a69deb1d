package bench

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"
	"google.golang.org/protobuf/encoding/protowire"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/engine/registry"
	"kaspr.io/kaspr/pyguest"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// pythonAvro reads the benchmark's record in the guest, as a reader of Avro written in Python would: one call for each type.
const pythonAvro = `
import struct

def long(b, at):
    n = shift = 0
    while True:
        c = b[at]
        at += 1
        n |= (c & 127) << shift
        if c < 128:
            return (n >> 1) ^ -(n & 1), at
        shift += 7

def text(b, at):
    n, at = long(b, at)
    return b[at:at + n].decode(), at + n

def double(b, at):
    return struct.unpack_from("<d", b, at)[0], at + 8

def texts(b, at):
    out = []
    while True:
        n, at = long(b, at)
        if n == 0:
            return out, at
        for _ in range(n):
            item, at = text(b, at)
            out.append(item)

FIELDS = [("id", long), ("user", text), ("amount", double), ("tags", texts), ("note", text)]

def read(b):
    at, value = 5, {}
    for name, of in FIELDS:
        value[name], at = of(b, at)
    return value
`

// BenchmarkSchemas is what it takes to have the same 1,000 records of 200 bytes of JSON as Python values, by serializer, with one small
// map and a small output: "avro", "protobuf" and "jsonschema" are decoded in Go before the call (go-cpu-ns/record of it is there), "json" by the
// guest's C, and "avro-in-python" is a raw serializer with Avro read by Python code in the guest.
func BenchmarkSchemas(b *testing.B) {
	const records = 1000
	fake := srfake.New()
	defer fake.Close()
	const schema = `{"type": "record", "name": "R", "fields": [{"name": "id", "type": "long"}, {"name": "user", "type": "string"}, {"name": "amount", "type": "double"},
		{"name": "tags", "type": {"type": "array", "items": "string"}}, {"name": "note", "type": "string"}]}`
	fake.SeedSchema("avro", 1, 1, sr.Schema{Schema: schema})
	fake.SeedSchema("protobuf", 1, 2, sr.Schema{Type: sr.TypeProtobuf, Schema: `syntax = "proto3"; message R { int64 id = 1; string user = 2; double amount = 3; repeated string tags = 4; string note = 5; }`})
	fake.SeedSchema("jsonschema", 1, 3, sr.Schema{Type: sr.TypeJSON, Schema: `{"type": "object", "required": ["id", "user"], "properties": {"id": {"type": "integer"}, "user": {"type": "string"},
		"amount": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}, "note": {"type": "string"}}}`})
	r, err := registry.New(registry.Options{URLs: []string{fake.URL()}, Timeout: 10 * time.Second, CacheMax: 10, ValidateJSON: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	runtime, err := wasmhost.New(b.Context(), wasmhost.Config{Module: pyguest.Module(), Stdlib: pyguest.Stdlib(), CacheDir: compiled(b)})
	if err != nil {
		b.Fatal(err)
	}
	defer runtime.Close()

	avroText := func(dst []byte, s string) []byte { return append(binary.AppendVarint(dst, int64(len(s))), s...) }
	frame := func(id byte) []byte { return []byte{0, 0, 0, 0, id} }
	note := func(i int) string {
		return strings.Repeat("x", 200-len(fmt.Sprintf(`{"id": %d, "user": "user-%d", "amount": %d.5, "tags": ["a", "b"], "note": ""}`, i, i%100, i)))
	}
	jsonOf := func(i int) []byte {
		return fmt.Appendf(nil, `{"id": %d, "user": "user-%d", "amount": %d.5, "tags": ["a", "b"], "note": "%s"}`, i, i%100, i, note(i))
	}
	avroOf := func(i int) []byte {
		v := avroText(binary.AppendVarint(frame(1), int64(i)), fmt.Sprint("user-", i%100))
		v = binary.LittleEndian.AppendUint64(v, math.Float64bits(float64(i)+0.5))
		v = avroText(avroText(binary.AppendVarint(v, 2), "a"), "b")
		return avroText(append(v, 0), note(i))
	}
	protobufOf := func(i int) []byte {
		v := protowire.AppendVarint(protowire.AppendTag(append(frame(2), 0), 1, protowire.VarintType), uint64(i))
		v = protowire.AppendString(protowire.AppendTag(v, 2, protowire.BytesType), fmt.Sprint("user-", i%100))
		v = protowire.AppendFixed64(protowire.AppendTag(v, 3, protowire.Fixed64Type), math.Float64bits(float64(i)+0.5))
		for _, tag := range []string{"a", "b"} {
			v = protowire.AppendString(protowire.AppendTag(v, 4, protowire.BytesType), tag)
		}
		return protowire.AppendString(protowire.AppendTag(v, 5, protowire.BytesType), note(i))
	}
	for _, c := range []struct {
		name       string
		serializer string // of the guest
		value      func(int) []byte
		init, read string
	}{
		{"json", "json", jsonOf, "", "value"},
		{"avro", "avro", avroOf, "", "value"},
		{"protobuf", "protobuf", protobufOf, "", "value"},
		{"jsonschema", "jsonschema", func(i int) []byte { return append(frame(3), jsonOf(i)...) }, "", "value"},
		{"avro-in-python", "raw", avroOf, pythonAvro, "read(value)"},
	} {
		b.Run(c.name, func(b *testing.B) {
			code := func(python string) *abi.Code {
				return &abi.Code{Python: python, File: "bench.yaml", Line: 1, Where: "bench"}
			}
			program := &abi.Program{
				Kind: "KasprAgent", Name: "bench", App: abi.AppInfo{Name: "app", ID: "app", Conf: map[string]any{}}, Env: map[string]string{},
				Input:   abi.Input{KeySerializer: "raw", ValueSerializer: c.serializer},
				Ops:     []abi.Operation{{Name: "total", Map: code("def total(value):\n    v = " + c.read + "\n    return v['id'] + v['amount'] + len(v['tags']) + len(v['user']) + len(v['note'])\n")}},
				Outputs: []abi.Output{{Topic: "out", KeySerializer: "raw", ValueSerializer: "json"}},
			}
			if c.init != "" {
				program.Init = code(c.init)
			}
			snapshot, err := runtime.Load(b.Context(), program, wasmhost.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer snapshot.Close()
			in, err := snapshot.NewInstance(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer in.Close()
			batch := &record.Batch{}
			for i := range records {
				batch.Records = append(batch.Records, record.Record{Topic: "in", Offset: int64(i), Value: c.value(i), Attempt: 1})
			}
			forms := make([]record.Forms, records)
			var memory []byte
			decode := func() {
				memory = memory[:0]
				for i := range batch.Records {
					for {
						at := len(memory)
						out, fetch, err := r.Decode(memory, c.serializer, batch.Records[i].Value)
						if err != nil {
							b.Fatal(err)
						}
						if fetch == nil {
							memory = out
							forms[i].Value = memory[at:len(memory):len(memory)]
							batch.Records[i].Forms = &forms[i]
							break
						}
						<-fetch.Done()
					}
				}
			}
			b.ReportAllocs()
			cpu, inGo := cpuTime(), int64(0)
			for b.Loop() {
				if registry.Has(c.serializer) {
					began := cpuTime()
					decode()
					inGo += cpuTime() - began
				}
				res, err := in.Call(b.Context(), batch)
				if err != nil || len(res.Outputs) != records || string(res.Outputs[999].Value) != fmt.Sprint(999+999.5+2+7+float64(len(note(999)))) {
					b.Fatal(res, err)
				}
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N*records), "cpu-ns/record")
			b.ReportMetric(float64(inGo)/float64(b.N*records), "go-cpu-ns/record")
		})
	}
}
