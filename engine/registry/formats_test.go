package registry

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"kaspr.io/kaspr/wasmhost/abi"
)

// Forms, to write values down.
func dict(namesAndForms ...string) string {
	form := string(abi.AppendFormCount(nil, abi.FormMap, len(namesAndForms)/2))
	for i := 0; i < len(namesAndForms); i += 2 {
		form += words(namesAndForms[i]) + namesAndForms[i+1]
	}
	return form
}

func many(forms ...string) string {
	return string(abi.AppendFormCount(nil, abi.FormList, len(forms))) + strings.Join(forms, "")
}

func words(s string) string { return string(abi.AppendFormBytes(nil, abi.FormText, s)) }

func raw(s string) string { return string(abi.AppendFormBytes(nil, abi.FormBytes, s)) }

func whole(n int64) string { return string(abi.AppendForm(nil, abi.FormInt, uint64(n))) }

func moment(kind byte, n int64) string { return string(abi.AppendForm(nil, kind, uint64(n))) }

func fraction(f float64) string {
	return string(abi.AppendForm(nil, abi.FormFloat, math.Float64bits(f)))
}

func decimal(s string) string { return string(abi.AppendFormBytes(nil, abi.FormDecimal, s)) }

var null, yes = string([]byte{abi.FormNull}), string([]byte{abi.FormTrue})

// defaults has a field of each kind, all with a default.
const defaults = `{"type": "record", "name": "D", "fields": [
	{"name": "n", "type": "null", "default": null}, {"name": "b", "type": "boolean", "default": true},
	{"name": "i", "type": "int", "default": -1}, {"name": "l", "type": "long", "default": 64},
	{"name": "f", "type": "float", "default": 0.5}, {"name": "d", "type": "double", "default": 1},
	{"name": "y", "type": "bytes", "default": "\u00ff"}, {"name": "s", "type": "string", "default": "é"},
	{"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}, "default": "B"},
	{"name": "x", "type": {"type": "fixed", "name": "X", "size": 2}, "default": "\u0001\u0002"},
	{"name": "a", "type": {"type": "array", "items": "int"}, "default": [1, 2]},
	{"name": "m", "type": {"type": "map", "values": {"type": "array", "items": "int"}}, "default": {"k": []}},
	{"name": "u", "type": ["string", "null"], "default": "z"}, {"name": "v", "type": ["null", "int"], "default": 5},
	{"name": "r", "type": {"type": "record", "name": "R", "fields": [{"name": "q", "type": "int"}, {"name": "w", "type": "int", "default": 4}]}, "default": {"q": 3}},
	{"name": "p", "type": {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, "default": "\u0001"},
	{"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}, "default": 1}]}`

const node = `syntax = "proto3"; message Node { int32 v = 1; Node next = 2; repeated Node kids = 3; map<string, Node> by = 4; }`

// Bytes are written down from the formats' specifications. Each must be read as the form, and the form written as the bytes.
func TestFormats(t *testing.T) {
	for name, c := range map[string]struct {
		schemaText
		bytes, form string
		oneWay      string // "read" or "write" alone
	}{
		"avro: a default of each kind": {
			schemaText{Avro, defaults, nil},
			"01" + "01" + "8001" + "0000003f" + "000000000000f03f" + "02ff" + "04c3a9" + "02" + "0102" + "04020400" + "02026b0000" + "00027a" + "020a" + "0608" + "0201" + "02",
			dict(), "write",
		},
		"avro: a value of each kind": {
			schemaText{Avro, defaults, nil},
			"01" + "01" + "8001" + "0000003f" + "000000000000f03f" + "02ff" + "04c3a9" + "02" + "0102" + "04020400" + "02026b0000" + "00027a" + "020a" + "0608" + "0201" + "02",
			dict("n", null, "b", yes, "i", whole(-1), "l", whole(64), "f", fraction(0.5), "d", fraction(1), "y", raw("\xff"), "s", words("é"), "e", words("B"),
				"x", raw("\x01\x02"), "a", many(whole(1), whole(2)), "m", dict("k", many()), "u", words("z"), "v", whole(5), "r", dict("q", whole(3), "w", whole(4)),
				"p", decimal("1E-2"), "t", moment(abi.FormInstant, 1000)), "",
		},
		"avro: references of references": {
			schemaText{Avro, `["null", "net.Host"]`, []reference{
				{"net.Mac", `{"type": "fixed", "name": "Mac", "namespace": "net", "size": 2}`},
				{"net.Host", `{"type": "record", "name": "Host", "namespace": "net", "fields": [{"name": "mac", "type": "Mac"}]}`},
			}},
			"02" + "0102", dict("mac", raw("\x01\x02")), "",
		},
		"avro: a type in itself, by an array and a map": {
			schemaText{Avro, `{"type": "record", "name": "T", "fields": [
			{"name": "kids", "type": {"type": "array", "items": "T"}}, {"name": "by", "type": {"type": "map", "values": ["null", "T"]}}]}`, nil},
			"02" + "0000" + "00" + "02026b" + "02" + "0000" + "00",
			dict("kids", many(dict("kids", many(), "by", dict())), "by", dict("k", dict("kids", many(), "by", dict()))), "",
		},
		"avro: names of other namespaces": {
			schemaText{Avro, `{"type": "record", "name": "a.b.R", "fields": [
			{"name": "s", "type": {"type": "record", "name": "S", "namespace": "c", "fields": [{"name": "f", "type": {"type": "fixed", "name": "F", "size": 1}}]}},
			{"name": "same", "type": {"type": "enum", "name": "F", "symbols": ["X"]}}, {"name": "first", "type": "c.F"}, {"name": "own", "type": "F"}]}`, nil},
			"07" + "00" + "08" + "00", dict("s", dict("f", raw("\x07")), "same", words("X"), "first", raw("\x08"), "own", words("X")), "",
		},
		"avro: a union's enum":   {schemaText{Avro, branches, nil}, "02" + "00", words("A"), ""},
		"avro: a union's fixed":  {schemaText{Avro, branches, nil}, "04" + "0102", raw("\x01\x02"), ""},
		"avro: a union's moment": {schemaText{Avro, branches, nil}, "06" + "02", moment(abi.FormInstant, 1), ""},
		"avro: a union's string": {schemaText{Avro, branches, nil}, "08" + "027a", words("z"), ""},
		"avro: a union's date":   {schemaText{Avro, branches, nil}, "0a" + "03", moment(abi.FormDate, -2), ""},
		"avro: a union's bytes":  {schemaText{Avro, branches, nil}, "0c" + "02ff", raw("\xff"), ""},
		"avro: a union's map":    {schemaText{Avro, branches, nil}, "0e" + "02026b02" + "00", dict("k", whole(1)), ""},
		"avro: a union's record": {schemaText{Avro, branches, nil}, "10" + "02", dict("only", whole(1)), ""},
		"avro: blocks with their size, and several": {
			schemaText{Avro, `{"type": "array", "items": "int"}`, nil},
			"0304" + "0204" + "02" + "06" + "00", many(whole(1), whole(2), whole(3)), "read",
		},
		"avro: a decimal of a fixed size, below zero": {
			schemaText{Avro, `{"type": "fixed", "name": "F", "size": 3, "logicalType": "decimal", "precision": 6, "scale": 3}`, nil},
			"fffb2e", decimal("-1234E-3"), "",
		},
		"avro: a decimal without its precision is bytes": {schemaText{Avro, `{"type": "bytes", "logicalType": "decimal"}`, nil}, "0201", raw("\x01"), ""},
		"avro: times of a day, local and not": {
			schemaText{Avro, `{"type": "record", "name": "T", "fields": [
			{"name": "ms", "type": {"type": "int", "logicalType": "time-millis"}}, {"name": "us", "type": {"type": "long", "logicalType": "time-micros"}},
			{"name": "lms", "type": {"type": "long", "logicalType": "local-timestamp-millis"}}, {"name": "lus", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
			{"name": "odd", "type": {"type": "string", "logicalType": "date"}}]}`, nil},
			"02" + "04" + "01" + "03" + "0278",
			dict("ms", moment(abi.FormTime, 1000), "us", moment(abi.FormTime, 2), "lms", moment(abi.FormDatetime, -1000), "lus", moment(abi.FormDatetime, -2), "odd", words("x")), "",
		},
		"protobuf: a message in itself": {
			schemaText{Protobuf, node, nil},
			"00" + "0801" + "12020802" + "1a020803" + "2207" + "0a016b" + "12020804",
			dict("v", whole(1), "next", leaf(2), "kids", many(leaf(3)), "by", dict("k", leaf(4))), "",
		},
		"protobuf: imports of imports": {
			schemaText{Protobuf, `syntax = "proto3"; import "b.proto"; message M { x.B b = 1; }`, []reference{
				{"a.proto", `syntax = "proto3"; package x; enum A { ZERO = 0; ONE = 1; }`},
				{"b.proto", `syntax = "proto3"; package x; import "a.proto"; message B { A a = 1; }`},
			}},
			"00" + "0a020801", dict("b", dict("a", words("ONE"))), "",
		},
		"protobuf: numbers of each kind": {
			schemaText{Protobuf, `syntax = "proto3"; message M { sint32 a = 1; sint64 b = 2; fixed32 c = 3; sfixed64 d = 4; uint32 e = 5; float f = 6; repeated sint32 g = 7; }`, nil},
			"00" + "0803" + "1001" + "1d01000000" + "21ffffffffffffffff" + "28ffffffff0f" + "350000003f" + "3a020102",
			dict("a", whole(-2), "b", whole(-1), "c", whole(1), "d", whole(-1), "e", whole(math.MaxUint32), "f", fraction(0.5), "g", many(whole(-1), whole(1))), "",
		},
		"protobuf: an enum's value that has no name": {
			schemaText{Protobuf, `syntax = "proto3"; enum E { Z = 0; } message M { E e = 1; }`, nil},
			"00" + "0809", dict("e", whole(9)), "",
		},
		"protobuf: a nested message of the second one, by its indexes": {
			schemaText{Protobuf, `syntax = "proto3"; message A {} message B { message C { bool c = 1; } }`, nil},
			"04" + "02" + "00" + "0801", dict("c", yes), "read",
		},
		"protobuf: unknown fields and values of another version": {
			schemaText{Protobuf, `syntax = "proto3"; message M { int32 a = 1; }`, nil},
			"00" + "0801" + "100a" + "1a0178", dict("a", whole(1)), "read",
		},
		"jsonschema: references of references": {
			schemaText{JSONSchema, `{"type": "object", "properties": {"b": {"$ref": "b.json"}}}`, []reference{
				{"a.json", `{"type": "integer"}`}, {"b.json", `{"type": "array", "items": {"$ref": "a.json"}}`},
			}},
			hex.EncodeToString([]byte(`{"b": [1]}`)), string(abi.AppendFormBytes(nil, abi.FormJSON, `{"b": [1]}`)), "",
		},
		"jsonschema: a schema in itself": {
			schemaText{JSONSchema, `{"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["v"]}`, nil},
			hex.EncodeToString([]byte(`{"v": 1, "next": {"v": 2}}`)), string(abi.AppendFormBytes(nil, abi.FormJSON, `{"v": 1, "next": {"v": 2}}`)), "",
		},
	} {
		codec, _, err := compile(c.schemaText, "", true)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := hex.DecodeString(c.bytes)
		if err != nil {
			t.Fatal(name, err)
		}
		if c.oneWay != "write" {
			if form, err := codec.decode(nil, want); err != nil || string(form) != c.form {
				t.Errorf("%s: read\n%q, %v, want\n%q", name, form, err, c.form)
			}
		}
		if c.oneWay != "read" {
			var arena abi.FormsArena
			v, err := arena.Read([]byte(c.form))
			if err != nil {
				t.Fatal(name, err)
			}
			if out, err := codec.encode(nil, &v); err != nil || hex.EncodeToString(out) != c.bytes {
				t.Errorf("%s: written\n%x, %v, want\n%s", name, out, err, c.bytes)
			}
		}
	}
}

// branches is a union of what is easily taken for each other.
const branches = `["null", {"type": "enum", "name": "E", "symbols": ["A"]}, {"type": "fixed", "name": "F", "size": 2}, {"type": "long", "logicalType": "timestamp-micros"},
	"string", {"type": "int", "logicalType": "date"}, "bytes", {"type": "map", "values": "int"}, {"type": "record", "name": "R", "fields": [{"name": "only", "type": "int"}]}]`

func leaf(v int64) string { return dict("v", whole(v), "kids", many(), "by", dict()) }

// Schemas that refer to each other over several steps must be fetched with all they refer to.
func TestInnerReferencesAreFetched(t *testing.T) {
	f := newFixture(t, nil)
	seed := func(id int, subject, schema string, refs ...sr.SchemaReference) {
		f.fake.SeedSchema(subject, 1, id, sr.Schema{Schema: schema, References: refs})
	}
	seed(1, "a", `{"type": "record", "name": "A", "fields": [{"name": "n", "type": "int"}]}`)
	seed(2, "b", `{"type": "record", "name": "B", "fields": [{"name": "a", "type": "A"}]}`, sr.SchemaReference{Name: "A", Subject: "a", Version: 1})
	seed(3, "c", `{"type": "record", "name": "C", "fields": [{"name": "a", "type": "A"}, {"name": "b", "type": "B"}]}`,
		sr.SchemaReference{Name: "B", Subject: "b", Version: 1}, sr.SchemaReference{Name: "A", Subject: "a", Version: 1})
	form, err := f.get(t, Avro, []byte{0, 0, 0, 0, 3, 2, 4})
	if want := dict("a", dict("n", whole(1)), "b", dict("a", dict("n", whole(2)))); err != nil || form != want {
		t.Errorf("%q, %v", form, err)
	}
}

// What is allocated for a record is allocated for millions.
func TestReadingAllocatesNothing(t *testing.T) {
	f := newFixture(t, nil)
	f.seed(1, `{"type": "record", "name": "R", "fields": [{"name": "n", "type": "long"}, {"name": "s", "type": "string"}]}`)
	value := []byte{0, 0, 0, 0, 1, 2, 2, 'x'}
	form, err := f.get(t, Avro, value)
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 0, len(form))
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := f.Decode(memory, Avro, value); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for a record", n)
	}
	target := Target{Serializer: Avro, Topic: "t", Text: `"long"`}
	if err := f.Prepare(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	number := []byte(whole(5))
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := f.Encode(memory, target, number); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for a value that is written", n)
	}
}

// The guest is hostile: whatever it wants written with whatever schema must be refused or written, and what was written can be read
// or is refused, too; nothing may panic or grow.
func FuzzEncode(f *testing.F) {
	schemas := []schemaText{{Avro, defaults, nil}, {Avro, branches, nil}, {Avro, fuzzAvro, nil}, {Protobuf, node, nil}, {Protobuf, fuzzProtobuf, nil}, {JSONSchema, `{"type": "object"}`, nil}}
	var codecs []codec
	for _, s := range schemas {
		c, _, err := compile(s, "", true)
		if err != nil {
			f.Fatal(err)
		}
		codecs = append(codecs, c)
	}
	f.Add(uint8(0), []byte(dict("p", decimal("-12.34"), "t", moment(abi.FormInstant, -1), "u", null, "a", many(whole(1)))))
	f.Add(uint8(1), []byte(moment(abi.FormDate, math.MinInt64)))
	f.Add(uint8(2), []byte(dict("p", decimal("1E+999"), "t", moment(abi.FormTime, -1))))
	f.Add(uint8(3), []byte(dict("v", whole(1), "next", leaf(2), "by", dict("k", leaf(3)))))
	f.Add(uint8(4), []byte(dict("i", whole(1), "g", dict("b", yes), "e", words("Y"))))
	f.Add(uint8(5), abi.AppendFormBytes(nil, abi.FormJSON, `{"a": 1}`))
	f.Fuzz(func(t *testing.T, which uint8, form []byte) {
		var arena abi.FormsArena
		v, err := arena.Read(form)
		if err != nil {
			return
		}
		c := codecs[int(which)%len(codecs)]
		out, err := c.encode(frame(nil, 1), &v)
		if err != nil {
			return
		}
		if len(out) > frameSize+1<<10+20*len(form) || binary.BigEndian.Uint32(out[1:]) != 1 {
			t.Fatalf("%d bytes became %d", len(form), len(out))
		}
		again, err := c.decode(nil, out[frameSize:])
		if err != nil {
			return
		}
		if v, err = arena.Read(again); err != nil {
			t.Fatalf("a form of ours cannot be read: %v", err)
		}
		if _, err := c.encode(nil, &v); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
	})
}
