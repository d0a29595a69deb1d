package abi

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

// The guest is not trusted with the forms of what it sends: reading one must not panic, nor make more values than it has bytes.
func FuzzForm(f *testing.F) {
	whole := AppendFormCount(nil, FormMap, 2)
	whole = AppendFormBytes(whole, FormText, "a")
	whole = AppendForm(whole, FormFloat, math.Float64bits(0.5))
	whole = AppendForm(whole, FormInt, 7)
	whole = append(AppendFormCount(whole, FormTuple, 2), FormNull, FormTrue)
	f.Add(whole)
	f.Add(AppendFormCount(nil, FormList, 1<<31-1))
	f.Add([]byte(strings.Repeat("l\x01\x00\x00\x00", FormDepthMax+1) + "n"))
	f.Fuzz(func(t *testing.T, form []byte) {
		var arena FormsArena
		v, err := arena.Read(form)
		if err != nil {
			return
		}
		if len(arena.values) > len(form) {
			t.Fatalf("%d values of %d bytes", len(arena.values), len(form))
		}
		again := appendValue(nil, &v)
		var second FormsArena
		w, err := second.Read(again)
		if err != nil || string(again) != string(form) || !reflect.DeepEqual(v, w) {
			t.Fatalf("%v: %q read and written is %q", err, form, again)
		}
	})
}

func appendValue(dst []byte, v *Value) []byte {
	switch v.Kind {
	case FormNull, FormTrue, FormFalse:
		return append(dst, v.Kind)
	case FormInt, FormUint, FormFloat, FormDate, FormTime, FormInstant, FormDatetime:
		return AppendForm(dst, v.Kind, v.Bits)
	case FormList, FormTuple, FormMap:
		n := len(v.Items)
		if v.Kind == FormMap {
			n /= 2
		}
		dst = AppendFormCount(dst, v.Kind, n)
		for i := range v.Items {
			dst = appendValue(dst, &v.Items[i])
		}
		return dst
	}
	return AppendFormBytes(dst, v.Kind, v.Bytes)
}

// Values that were given out must stay where they are while more are made.
func TestFormsArenaKeepsValues(t *testing.T) {
	const n = 500
	form := AppendFormCount(nil, FormList, n)
	for i := range n {
		form = AppendForm(AppendFormCount(form, FormList, 1), FormInt, uint64(i))
	}
	var arena FormsArena
	for range 2 {
		v, err := arena.Read(form)
		if err != nil {
			t.Fatal(err)
		}
		for i := range v.Items {
			if got := v.Items[i].Items[0].Int(); got != int64(i) {
				t.Fatalf("item %d is %d", i, got)
			}
		}
	}
}
