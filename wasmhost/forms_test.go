package wasmhost_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// object is a map whose members have an order, and may come twice.
type object []member

type member struct {
	name  string
	value any
}

func appendForm(dst []byte, v any) []byte {
	switch v := v.(type) {
	case int:
		return abi.AppendForm(dst, abi.FormInt, uint64(v))
	case float64:
		return abi.AppendForm(dst, abi.FormFloat, math.Float64bits(v))
	case string:
		return abi.AppendFormBytes(dst, abi.FormText, v)
	case []any:
		dst = abi.AppendFormCount(dst, abi.FormList, len(v))
		for _, item := range v {
			dst = appendForm(dst, item)
		}
	case object:
		dst = abi.AppendFormCount(dst, abi.FormMap, len(v))
		for _, m := range v {
			dst = appendForm(appendForm(dst, m.name), m.value)
		}
	}
	return dst
}

func appendJSON(dst []byte, v any) []byte {
	text := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return b
	}
	switch v := v.(type) {
	case float64:
		return fmt.Appendf(dst, "%.1f", v)
	case []any:
		var items [][]byte
		for _, item := range v {
			items = append(items, appendJSON(nil, item))
		}
		return append(append(append(dst, '['), bytes.Join(items, []byte(","))...), ']')
	case object:
		var members [][]byte
		for _, m := range v {
			members = append(members, appendJSON(append(text(m.name), ':'), m.value))
		}
		return append(append(append(dst, '{'), bytes.Join(members, []byte(","))...), '}')
	default:
		return append(dst, text(v)...)
	}
}

// What a schema describes and what JSON says is one value to code, whatever was read before: keys and short texts are kept, JSON's objects
// of a shape are copies of a table, and none may be taken for another or be changed by code.
func TestFormsAreJSON(t *testing.T) {
	wide := object{}
	for i := range 70 {
		wide = append(wide, member{fmt.Sprint("wide", i), i})
	}
	long := strings.Repeat("k", 65)
	vs := []any{
		object{},
		[]any{},
		"", "a", "ab", "ab\x00", "ab\x00\x00",
		[]any{"ab", "ab\x00", "\x00ab"},
		"é", "€uro", `"`, `a"b\`, "tab\t", "\x7f",
		object{{"a", 1}, {"a", 2}},
		object{{"a", 1}, {"b", 2}, {"a", 3}},
		object{{"b", 2}, {"a", 3}},
		object{{"a", 1}},
		object{{"", 1}},
		object{{"é", 1}, {"a", 2}},
		object{{`a"b`, 1}},
		object{{"a", 1}, {`b":2,"c`, 3}},
		object{{"a", 1}, {"b", 2}, {"c", 3}},
		object{{`\`, 1}, {"\n", 2}},
		object{{`\`, 1}, {"x", 2}},
		object{{`":`, ","}, {"x", 1}},
		object{{"\x00", 1}, {"", 2}},
		object{{long, 1}, {long + "k", 2}, {long[:64], 3}, {long[:63], 4}},
		wide, wide[:64], wide[:65], wide[:5], wide[:6], wide[:10], wide[:11],
		object{{"in", object{{"in", object{{"in", []any{object{{"in", 1.5}}}}}}}}},
		object{{"list", []any{}}},
		object{{"list", 1}},
		object{{"list", object{}}},
	}
	for n := range 80 { // texts of each length at a form's end, where nothing may be read behind them, and before it
		vs = append(vs, strings.Repeat("x", n), object{{"k", strings.Repeat("y", n)}}, []any{strings.Repeat("z", n), 1, 2}, object{{strings.Repeat("n", n), 1}})
	}
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"id", "user", "amount", "a_long_name_of_a_member", "x", "é", `"`}
	var anything func(depth int) any
	anything = func(depth int) any {
		switch k := random.IntN(8); {
		case k < 2 && depth < 4:
			o := object{}
			for range random.IntN(9) {
				o = append(o, member{names[random.IntN(len(names))], anything(depth + 1)})
			}
			return o
		case k == 2 && depth < 4:
			var items []any
			for range random.IntN(4) {
				items = append(items, anything(depth+1))
			}
			return items
		case k < 5:
			return random.IntN(1<<random.IntN(40)) - 5
		case k == 5:
			return float64(random.IntN(1000)) / 2
		default:
			return strings.Repeat(names[random.IntN(len(names))], random.IntN(3))
		}
	}
	for range 500 {
		vs = append(vs, anything(0))
	}
	vs = append(append(vs, vs...), vs...) // once keys and shapes are known

	forms, texts := &record.Batch{}, &record.Batch{}
	for i, v := range vs {
		text := appendJSON(nil, v)
		r := record.Record{Topic: "in", Offset: int64(i), Key: text, Value: text, Attempt: 1}
		texts.Records = append(texts.Records, r)
		r.Forms = &record.Forms{Value: appendForm(nil, v)}
		forms.Records = append(forms.Records, r)
	}
	const code = `def enrich(v):
    told = repr(v), repr(context["event"].key), gc.is_tracked(v)
    change(v)
    return told`
	const init = `import gc
def change(v):
    if type(v) is dict:
        for c in v.values(): change(c)
        for k in v: v[k] = "changed"
        v["new"] = 1
        v.pop("id", None)
    elif type(v) is list:
        for c in v: change(c)
        v.append("changed")
`
	answers := func(serializer string, b *record.Batch) []string {
		p := agent(init, code)
		p.Input.KeySerializer, p.Input.ValueSerializer = "json", serializer // in one guest, so what one leaves the other finds
		res, err := load(t, p, wasmhost.Options{}).Call(t.Context(), 0, b)
		if err != nil || len(res.Failures) > 0 || len(res.Outputs) != len(b.Records) {
			t.Fatalf("%s: %v, %d outputs of %d, %+v", serializer, err, len(res.Outputs), len(b.Records), res.Failures)
		}
		var told []string
		for _, o := range res.Outputs {
			told = append(told, string(o.Value))
		}
		return told
	}
	got, want := answers("avro", forms), answers("json", texts)
	wrong := 0
	for i := range want {
		if got[i] != want[i] {
			if wrong++; wrong < 5 {
				t.Errorf("record %d, %s\nas a form %s\nas JSON   %s", i, texts.Records[i].Value, got[i], want[i])
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d differ", wrong, len(want))
	}
}
