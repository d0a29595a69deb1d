package registry

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"kaspr.io/kaspr/wasmhost/abi"
)

// protobufCodec reads every message of a file and writes one of them. Which one a record holds stands before it, as the indexes of
// the message in the file and of messages in it.
type protobufCodec struct {
	file    protoreflect.FileDescriptor
	message protoreflect.MessageDescriptor // to write
	indexes []byte                         // its, as they stand in a record
}

const mainFile = "schema.proto"

// newProtobuf compiles a file. Message names the one to write: empty is the first one.
func newProtobuf(s schemaText, message string) (codec, string, error) {
	files := map[string]string{mainFile: s.text}
	for _, r := range s.references {
		files[r.name] = r.text
	}
	compiler := protocompile.Compiler{
		MaxParallelism: 1,
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: protocompile.SourceAccessorFromMap(files), // no file of this machine, whatever is imported
		}),
	}
	compiled, err := compiler.Compile(context.Background(), mainFile)
	if err != nil {
		return nil, "", err
	}
	c := protobufCodec{file: compiled[0]}
	if c.file.Messages().Len() == 0 {
		return nil, "", errors.New("the schema has no message")
	}
	c.message = c.file.Messages().Get(0)
	if message != "" {
		name := protoreflect.FullName(message)
		if p := c.file.Package(); p != "" && !strings.HasPrefix(message, string(p)+".") {
			name = p + "." + name
		}
		if c.message = findMessage(c.file.Messages(), name); c.message == nil {
			return nil, "", fmt.Errorf("the schema has no message %q", message)
		}
	}
	var path []int64
	for d := protoreflect.Descriptor(c.message); ; d = d.Parent() {
		m, ok := d.(protoreflect.MessageDescriptor)
		if !ok {
			break
		}
		path = append([]int64{int64(indexOf(m))}, path...)
	}
	if len(path) == 1 && path[0] == 0 {
		c.indexes = []byte{0} // short for the first message
	} else {
		c.indexes = binary.AppendVarint(nil, int64(len(path)))
		for _, n := range path {
			c.indexes = binary.AppendVarint(c.indexes, n)
		}
	}
	return c, string(c.message.FullName()), nil
}

func findMessage(all protoreflect.MessageDescriptors, name protoreflect.FullName) protoreflect.MessageDescriptor {
	for i := range all.Len() {
		m := all.Get(i)
		if m.FullName() == name {
			return m
		}
		if strings.HasPrefix(string(name), string(m.FullName())+".") {
			return findMessage(m.Messages(), name)
		}
	}
	return nil
}

// inText is the messages that stand in the schema's text, as the registry's own clients count them: the entries of maps, which a
// compiler adds, are none of them.
func inText(all protoreflect.MessageDescriptors) []protoreflect.MessageDescriptor {
	var list []protoreflect.MessageDescriptor
	for i := range all.Len() {
		if m := all.Get(i); !m.IsMapEntry() {
			list = append(list, m)
		}
	}
	return list
}

func indexOf(m protoreflect.MessageDescriptor) int {
	siblings := m.ParentFile().Messages()
	if outer, ok := m.Parent().(protoreflect.MessageDescriptor); ok {
		siblings = outer.Messages()
	}
	return slices.Index(inText(siblings), m)
}

// messageOf takes the indexes from the front of a record.
func (c protobufCodec) messageOf(data []byte) (protoreflect.MessageDescriptor, []byte, error) {
	all := c.file.Messages()
	next := func() (int64, error) {
		n, size := binary.Varint(data)
		if size <= 0 {
			return 0, errors.New("the bytes end within the message's indexes")
		}
		data = data[size:]
		return n, nil
	}
	n, err := next()
	if err != nil {
		return nil, nil, err
	}
	if n == 0 { // short for the first message
		return all.Get(0), data, nil
	}
	if n < 0 || n > abi.FormDepthMax {
		return nil, nil, fmt.Errorf("a message cannot have %d indexes", n)
	}
	var m protoreflect.MessageDescriptor
	for range n {
		at, err := next()
		if err != nil {
			return nil, nil, err
		}
		list := inText(all)
		if at < 0 || at >= int64(len(list)) {
			return nil, nil, fmt.Errorf("the schema has no message number %d", at)
		}
		m = list[at]
		all = m.Messages()
	}
	return m, data, nil
}

// ---- from bytes to forms ----

func (c protobufCodec) decode(dst, data []byte) ([]byte, error) {
	d, data, err := c.messageOf(data)
	if err != nil {
		return nil, err
	}
	m := dynamicpb.NewMessage(d)
	if err := (proto.UnmarshalOptions{RecursionLimit: abi.FormDepthMax, AllowPartial: true, DiscardUnknown: true}).Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s: %w", d.FullName(), err)
	}
	w := formWriter{out: dst, most: len(dst) + formBytesMax}
	if err := w.message(m, 0); err != nil {
		return nil, err
	}
	return w.out, nil
}

// formWriter makes the form of a message: a dict of its fields by their names. A field that has presence and is not set is not there,
// unless the schema gives it a default of its own; every other field is.
type formWriter struct {
	out  []byte
	most int
}

func (w *formWriter) message(m protoreflect.Message, depth int) error {
	if depth > abi.FormDepthMax {
		return errTooDeep
	}
	at, n := len(w.out), 0
	w.out = abi.AppendFormCount(w.out, abi.FormMap, 0)
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.HasPresence() && !m.Has(f) && !f.HasDefault() {
			continue
		}
		n++
		w.out = abi.AppendFormBytes(w.out, abi.FormText, string(f.Name()))
		if err := w.field(f, m.Get(f), depth); err != nil {
			return err
		}
	}
	abi.SetFormCount(w.out, at, n)
	return nil
}

func (w *formWriter) field(f protoreflect.FieldDescriptor, v protoreflect.Value, depth int) error {
	switch {
	case f.IsMap():
		w.out = abi.AppendFormCount(w.out, abi.FormMap, v.Map().Len())
		var err error
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			if err = w.one(f.MapKey(), k.Value(), depth+1); err == nil {
				err = w.one(f.MapValue(), v, depth+1)
			}
			return err == nil
		})
		return err
	case f.IsList():
		list := v.List()
		w.out = abi.AppendFormCount(w.out, abi.FormList, list.Len())
		for i := range list.Len() {
			if err := w.one(f, list.Get(i), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return w.one(f, v, depth+1)
}

func (w *formWriter) one(f protoreflect.FieldDescriptor, v protoreflect.Value, depth int) error {
	if len(w.out) > w.most {
		return errTooLarge
	}
	switch f.Kind() {
	case protoreflect.BoolKind:
		w.out = append(w.out, [2]byte{abi.FormFalse, abi.FormTrue}[boolByte(v.Bool())])
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			w.out = abi.AppendFormBytes(w.out, abi.FormText, string(e.Name()))
		} else { // a value the schema has no name for survives as its number
			w.out = abi.AppendForm(w.out, abi.FormInt, uint64(v.Enum()))
		}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind, protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		w.out = abi.AppendForm(w.out, abi.FormInt, uint64(v.Int()))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		kind := byte(abi.FormInt)
		if v.Uint() > math.MaxInt64 {
			kind = abi.FormUint
		}
		w.out = abi.AppendForm(w.out, kind, v.Uint())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		w.out = abi.AppendForm(w.out, abi.FormFloat, math.Float64bits(v.Float()))
	case protoreflect.StringKind:
		w.out = abi.AppendFormBytes(w.out, abi.FormText, strings.ToValidUTF8(v.String(), "\uFFFD")) // proto2 does not promise UTF-8
	case protoreflect.BytesKind:
		w.out = abi.AppendFormBytes(w.out, abi.FormBytes, v.Bytes())
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return w.message(v.Message(), depth)
	}
	return nil
}

// ---- from forms to bytes ----

func (c protobufCodec) encode(dst []byte, v *abi.Value) ([]byte, error) {
	m := dynamicpb.NewMessage(c.message)
	if err := fill(m, v, 0); err != nil {
		return nil, err
	}
	// Deterministic: the same value gives the same bytes, so that keys go to one partition.
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend(append(dst, c.indexes...), m)
}

// fill sets a message's fields from a dict.
func fill(m protoreflect.Message, v *abi.Value, depth int) error {
	d := m.Descriptor()
	if v.Kind != abi.FormMap {
		return fmt.Errorf("a dict for message %s is wanted, not %s", d.FullName(), v.What())
	}
	if depth > abi.FormDepthMax {
		return errTooDeep
	}
	for i := 0; i < len(v.Items); i += 2 {
		key, value := &v.Items[i], &v.Items[i+1]
		if key.Kind != abi.FormText {
			return fmt.Errorf("fields of %s are named by str, not %s", d.FullName(), key.What())
		}
		f := d.Fields().ByName(protoreflect.Name(key.Bytes))
		if f == nil {
			f = d.Fields().ByJSONName(string(key.Bytes))
		}
		if f == nil {
			var names []protoreflect.FieldDescriptor
			for i := range d.Fields().Len() {
				names = append(names, d.Fields().Get(i))
			}
			return fmt.Errorf("%s has no field %q; it has %s", d.FullName(), shortened(key.Bytes), listed(names, func(f protoreflect.FieldDescriptor) string { return string(f.Name()) }))
		}
		if value.Kind == abi.FormNull {
			continue // not set
		}
		if other := m.WhichOneof; f.ContainingOneof() != nil && other(f.ContainingOneof()) != nil {
			return fmt.Errorf("%s and %s of %s exclude each other", other(f.ContainingOneof()).Name(), f.Name(), d.FullName())
		}
		if err := fillField(m, f, value, depth); err != nil {
			return fmt.Errorf("field %s: %w", f.Name(), err)
		}
	}
	return nil
}

func fillField(m protoreflect.Message, f protoreflect.FieldDescriptor, v *abi.Value, depth int) error {
	switch {
	case f.IsMap():
		if v.Kind != abi.FormMap {
			return fmt.Errorf("a dict is wanted, not %s", v.What())
		}
		entries := m.Mutable(f).Map()
		for i := 0; i < len(v.Items); i += 2 {
			key, err := scalar(f.MapKey(), &v.Items[i])
			if err != nil {
				return err
			}
			if f.MapValue().Kind() == protoreflect.MessageKind {
				if err := fill(entries.Mutable(key.MapKey()).Message(), &v.Items[i+1], depth+1); err != nil {
					return err
				}
				continue
			}
			value, err := scalar(f.MapValue(), &v.Items[i+1])
			if err != nil {
				return err
			}
			entries.Set(key.MapKey(), value)
		}
		return nil
	case f.IsList():
		if v.Kind != abi.FormList && v.Kind != abi.FormTuple {
			return fmt.Errorf("a list is wanted, not %s", v.What())
		}
		list := m.Mutable(f).List()
		for i := range v.Items {
			if f.Message() != nil {
				if err := fill(list.AppendMutable().Message(), &v.Items[i], depth+1); err != nil {
					return fmt.Errorf("item %d: %w", i, err)
				}
				continue
			}
			item, err := scalar(f, &v.Items[i])
			if err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
			list.Append(item)
		}
		return nil
	case f.Message() != nil:
		return fill(m.Mutable(f).Message(), v, depth+1)
	}
	value, err := scalar(f, v)
	if err != nil {
		return err
	}
	m.Set(f, value)
	return nil
}

// scalar is a value of one of protobuf's own types.
func scalar(f protoreflect.FieldDescriptor, v *abi.Value) (protoreflect.Value, error) {
	whole := v.Kind == abi.FormInt || v.Kind == abi.FormUint || v.Kind == abi.FormBigInt
	outside := func() error {
		return fmt.Errorf("%s is outside of what type %s holds", v.Number(), f.Kind())
	}
	n := v.Int()
	switch f.Kind() {
	case protoreflect.BoolKind:
		if v.Kind == abi.FormTrue || v.Kind == abi.FormFalse {
			return protoreflect.ValueOfBool(v.Kind == abi.FormTrue), nil
		}
	case protoreflect.EnumKind:
		if v.Kind == abi.FormText {
			e := f.Enum().Values().ByName(protoreflect.Name(v.Bytes))
			if e == nil {
				var names []protoreflect.EnumValueDescriptor
				for i := range f.Enum().Values().Len() {
					names = append(names, f.Enum().Values().Get(i))
				}
				return protoreflect.Value{}, fmt.Errorf("%s has no value %q; it has %s", f.Enum().FullName(), shortened(v.Bytes), listed(names, func(e protoreflect.EnumValueDescriptor) string { return string(e.Name()) }))
			}
			return protoreflect.ValueOfEnum(e.Number()), nil
		}
		if whole {
			if v.Kind != abi.FormInt || n != int64(int32(n)) {
				return protoreflect.Value{}, outside()
			}
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)), nil
		}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		if whole {
			if v.Kind != abi.FormInt || n != int64(int32(n)) {
				return protoreflect.Value{}, outside()
			}
			return protoreflect.ValueOfInt32(int32(n)), nil
		}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		if whole {
			if v.Kind != abi.FormInt {
				return protoreflect.Value{}, outside()
			}
			return protoreflect.ValueOfInt64(n), nil
		}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		if whole {
			if v.Kind != abi.FormInt || n != int64(uint32(n)) {
				return protoreflect.Value{}, outside()
			}
			return protoreflect.ValueOfUint32(uint32(n)), nil
		}
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		if whole {
			if v.Kind == abi.FormBigInt || v.Kind == abi.FormInt && n < 0 {
				return protoreflect.Value{}, outside()
			}
			return protoreflect.ValueOfUint64(v.Bits), nil
		}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		x, ok := v.Float(), v.Kind == abi.FormFloat
		switch v.Kind {
		case abi.FormInt:
			x, ok = float64(n), true
		case abi.FormUint:
			x, ok = float64(v.Bits), true
		}
		if ok && f.Kind() == protoreflect.DoubleKind {
			return protoreflect.ValueOfFloat64(x), nil
		}
		if ok {
			if math.Abs(x) > math.MaxFloat32 && !math.IsInf(x, 0) {
				return protoreflect.Value{}, fmt.Errorf("%v is outside of what type float holds", x)
			}
			return protoreflect.ValueOfFloat32(float32(x)), nil
		}
	case protoreflect.StringKind:
		if v.Kind == abi.FormText {
			return protoreflect.ValueOfString(string(v.Bytes)), nil
		}
	case protoreflect.BytesKind:
		if v.Kind == abi.FormBytes {
			return protoreflect.ValueOfBytes(v.Bytes), nil
		}
	}
	return protoreflect.Value{}, fmt.Errorf("a value of type %s is wanted, not %s", f.Kind(), v.What())
}
