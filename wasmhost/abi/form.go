package abi

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// Value is a form, read: what it holds stands in the member its Kind says.
type Value struct {
	Kind  byte    // Form*
	Bits  uint64  // FormInt, FormUint, FormFloat and the times
	Bytes []byte  // whatever has a length; of the form's memory
	Items []Value // FormList, FormTuple; of FormMap each key and the value behind it
}

// Int is the number of a FormInt or a time.
func (v *Value) Int() int64 { return int64(v.Bits) }

// Float is the number of a FormFloat.
func (v *Value) Float() float64 { return math.Float64frombits(v.Bits) }

// Member is the value of a FormMap under a text key, nil without one.
func (v *Value) Member(name string) *Value {
	for i := 0; i+1 < len(v.Items); i += 2 {
		if v.Items[i].Kind == FormText && string(v.Items[i].Bytes) == name {
			return &v.Items[i+1]
		}
	}
	return nil
}

// FormsArena is memory for values, used again and again.
type FormsArena struct{ values []Value }

// take gives n values that stay where they are until Read is called again.
func (a *FormsArena) take(n int) []Value {
	if cap(a.values)-len(a.values) < n {
		a.values = make([]Value, 0, max(n, 2*cap(a.values), 64)) // the old ones are still in use, and then garbage
	}
	at := len(a.values)
	a.values = a.values[:at+n]
	return a.values[at : at+n : at+n]
}

var errForm = errors.New("the guest's form of a value is broken")

// Read reads a whole form of the guest, which is not trusted. The value is good until the next Read; its bytes are the form's.
func (a *FormsArena) Read(form []byte) (Value, error) {
	a.values = a.values[:0]
	var v Value
	rest, err := a.read(&v, form, 0)
	if err == nil && len(rest) > 0 {
		err = errForm
	}
	return v, err
}

func (a *FormsArena) read(v *Value, b []byte, depth int) ([]byte, error) {
	if len(b) == 0 || depth > FormDepthMax {
		return nil, errForm
	}
	*v = Value{Kind: b[0]}
	b = b[1:]
	switch v.Kind {
	case FormNull, FormTrue, FormFalse:
		return b, nil
	case FormInt, FormUint, FormFloat, FormDate, FormTime, FormInstant, FormDatetime:
		if len(b) < 8 {
			return nil, errForm
		}
		v.Bits = le.Uint64(b)
		return b[8:], nil
	}
	if len(b) < 4 {
		return nil, errForm
	}
	n := int(le.Uint32(b))
	b = b[4:]
	if n > len(b) { // an item is a byte at least
		return nil, errForm
	}
	switch v.Kind {
	case FormText, FormDecimal, FormUUID, FormBigInt:
		if !utf8.Valid(b[:n]) {
			return nil, errForm
		}
		fallthrough
	case FormBytes, FormJSON:
		v.Bytes = b[:n]
		return b[n:], nil
	case FormMap:
		n *= 2
	case FormList, FormTuple:
	default:
		return nil, errForm
	}
	if n > len(b) {
		return nil, errForm
	}
	v.Items = a.take(n)
	var err error
	for i := range v.Items {
		if b, err = a.read(&v.Items[i], b, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// AppendForm appends a form without length: a constant, a number or a time with its bits.
func AppendForm(dst []byte, kind byte, bits uint64) []byte {
	return le.AppendUint64(append(dst, kind), bits)
}

// AppendFormBytes appends a form that is bytes or text.
func AppendFormBytes[T []byte | string](dst []byte, kind byte, b T) []byte {
	return append(le.AppendUint32(append(dst, kind), uint32(len(b))), b...)
}

// AppendFormCount begins a list or map of n items; n may still be changed with SetFormCount.
func AppendFormCount(dst []byte, kind byte, n int) []byte {
	return le.AppendUint32(append(dst, kind), uint32(n))
}

// SetFormCount changes the count of the list or map that begins at form[at].
func SetFormCount(form []byte, at, n int) { le.PutUint32(form[at+1:], uint32(n)) }

// What is the Python type of a value, for messages.
func (v *Value) What() string {
	switch v.Kind {
	case FormNull:
		return "None"
	case FormTrue, FormFalse:
		return "bool"
	case FormInt, FormUint, FormBigInt:
		return "int"
	case FormFloat:
		return "float"
	case FormText:
		return "str"
	case FormBytes:
		return "bytes"
	case FormList:
		return "list"
	case FormTuple:
		return "tuple"
	case FormMap:
		return "dict"
	case FormDecimal:
		return "Decimal"
	case FormUUID:
		return "UUID"
	case FormDate:
		return "date"
	case FormTime:
		return "time"
	case FormInstant:
		return "datetime with a time zone"
	case FormDatetime:
		return "datetime without a time zone"
	case FormJSON:
		return "JSON"
	}
	return "value"
}

// Number is an integer as text, for messages.
func (v *Value) Number() string {
	switch v.Kind {
	case FormInt:
		return strconv.FormatInt(v.Int(), 10)
	case FormUint:
		return strconv.FormatUint(v.Bits, 10)
	case FormBigInt:
		if len(v.Bytes) > 40 {
			return string(v.Bytes[:40]) + "…"
		}
		return string(v.Bytes)
	}
	return v.What()
}

// EncodeRequest is the request of OpEncode.
type EncodeRequest struct {
	Serializer int // Serializer*
	Key        bool
	Schema     int // as Output.ValueSchema
	Topic      string
	Form       []byte // of the guest's memory
}

// ReadEncodeRequest reads a request of the guest.
func ReadEncodeRequest(b []byte) (EncodeRequest, error) {
	var r EncodeRequest
	if len(b) < 12 {
		return r, errForm
	}
	n := int(le.Uint32(b[8:]))
	r = EncodeRequest{Serializer: int(b[0]), Key: b[1] != 0, Schema: int(int32(le.Uint32(b[4:])))}
	if b = b[12:]; n > len(b) {
		return r, errForm
	}
	r.Topic, r.Form = string(b[:n]), b[n:]
	if r.Serializer < SerializerAvro || r.Serializer > SerializerJSONSchema {
		return r, fmt.Errorf("there is no serializer %d", r.Serializer)
	}
	return r, nil
}
