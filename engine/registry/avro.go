package registry

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"kaspr.io/kaspr/wasmhost/abi"
)

// avroType is one type of an Avro schema, ready to read and write values. Records may contain themselves.
type avroType struct {
	kind      avroKind
	name      string // full name, or that of the primitive type
	logical   avroLogical
	fields    []avroField    // of a record
	field     map[string]int // by name
	symbols   []string       // of an enum
	symbol    map[string]int
	items     *avroType   // of an array or map
	branches  []*avroType // of a union
	size      int         // of a fixed
	precision int         // of a decimal
	scale     int
}

type avroField struct {
	name       string
	typ        *avroType
	hasDefault bool
	standard   []byte // its default, encoded
}

type avroKind uint8

const (
	avroNull avroKind = iota
	avroBoolean
	avroInt
	avroLong
	avroFloat
	avroDouble
	avroBytes
	avroString
	avroRecord
	avroEnum
	avroArray
	avroMap
	avroUnion
	avroFixed
)

var avroPrimitives = map[string]avroKind{
	"null": avroNull, "boolean": avroBoolean, "int": avroInt, "long": avroLong, "float": avroFloat, "double": avroDouble, "bytes": avroBytes, "string": avroString,
}

// avroLogical is a logical type that Python has a type for. Others are read as the type below them, as Avro wants it.
type avroLogical uint8

const (
	noLogical avroLogical = iota
	logicalDecimal
	logicalUUID
	logicalDate
	logicalTimeMillis
	logicalTimeMicros
	logicalInstantMillis
	logicalInstantMicros
	logicalLocalMillis
	logicalLocalMicros
)

// avroLogicals are the logical types by the kinds they may stand on.
var avroLogicals = map[string]map[avroKind]avroLogical{
	"decimal":                {avroBytes: logicalDecimal, avroFixed: logicalDecimal},
	"uuid":                   {avroString: logicalUUID},
	"date":                   {avroInt: logicalDate},
	"time-millis":            {avroInt: logicalTimeMillis},
	"time-micros":            {avroLong: logicalTimeMicros},
	"timestamp-millis":       {avroLong: logicalInstantMillis},
	"timestamp-micros":       {avroLong: logicalInstantMicros},
	"local-timestamp-millis": {avroLong: logicalLocalMillis},
	"local-timestamp-micros": {avroLong: logicalLocalMicros},
}

// ---- the schema ----

// avroParser reads schemas that may name each other's types.
type avroParser struct {
	types map[string]*avroType // by full name
	// later are defaults, which are encoded once all types are known.
	later []func() error
	count int
	// defaults is how many bytes defaults took.
	defaults int
}

// Limits of a schema: whoever may register one must not be able to use up memory or a stack with it.
const (
	schemaDepthMax   = 100
	schemaTypesMax   = 20_000
	defaultBytesMax  = 1 << 20
	decimalDigitsMax = 1000
)

func newAvro(s schemaText) (codec, string, error) {
	p := avroParser{types: map[string]*avroType{}}
	for _, r := range s.references {
		if _, err := p.parse(r.text); err != nil {
			return nil, "", fmt.Errorf("reference %s: %w", r.name, err)
		}
	}
	t, err := p.parse(s.text)
	if err != nil {
		return nil, "", err
	}
	for _, encode := range p.later {
		if err := encode(); err != nil {
			return nil, "", err
		}
	}
	name := ""
	if t.kind == avroRecord || t.kind == avroEnum || t.kind == avroFixed {
		name = t.name
	}
	return avroCodec{t}, name, nil
}

func (p *avroParser) parse(text string) (*avroType, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		if word := strings.TrimSpace(text); avroName.MatchString(word) {
			return p.named(word, "") // registries take a bare name, too
		}
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is text behind the schema")
	}
	return p.schema(v, "", 0)
}

var avroName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$`)

func (p *avroParser) schema(v any, namespace string, depth int) (*avroType, error) {
	if p.count++; p.count > schemaTypesMax || depth > schemaDepthMax {
		return nil, errors.New("the schema is too large or too deep")
	}
	switch v := v.(type) {
	case string:
		return p.named(v, namespace)
	case []any:
		t := &avroType{kind: avroUnion, name: "union"}
		seen := map[string]bool{}
		for _, b := range v {
			branch, err := p.schema(b, namespace, depth+1)
			if err != nil {
				return nil, err
			}
			if branch.kind == avroUnion {
				return nil, errors.New("a union cannot hold a union")
			}
			if seen[branch.name] {
				return nil, fmt.Errorf("a union holds %s twice", branch.name)
			}
			seen[branch.name] = true
			t.branches = append(t.branches, branch)
		}
		if len(t.branches) == 0 {
			return nil, errors.New("a union is empty")
		}
		return t, nil
	case map[string]any:
		return p.object(v, namespace, depth)
	}
	return nil, fmt.Errorf("a schema is a name, an object or a list, not %v", v)
}

func (p *avroParser) named(name, namespace string) (*avroType, error) {
	if kind, ok := avroPrimitives[name]; ok {
		return &avroType{kind: kind, name: name}, nil
	}
	if t := p.types[fullName(name, namespace)]; t != nil {
		return t, nil
	}
	if t := p.types[name]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("type %q is not defined", name)
}

func fullName(name, namespace string) string {
	if namespace == "" || strings.Contains(name, ".") {
		return name
	}
	return namespace + "." + name
}

func (p *avroParser) object(v map[string]any, namespace string, depth int) (*avroType, error) {
	word, ok := v["type"].(string)
	if !ok {
		if v["type"] == nil {
			return nil, errors.New("an object has no type")
		}
		return p.schema(v["type"], namespace, depth+1) // {"type": {"type": …}}
	}
	if kind, ok := avroPrimitives[word]; ok {
		t := &avroType{kind: kind, name: word}
		return t, t.logically(v)
	}
	switch word {
	case "array", "map":
		t, of := &avroType{kind: avroArray, name: word}, "items"
		if word == "map" {
			t.kind, of = avroMap, "values"
		}
		var err error
		if t.items, err = p.schema(v[of], namespace, depth+1); err != nil {
			return nil, fmt.Errorf("%s of %s: %w", of, word, err)
		}
		return t, nil
	case "record", "error", "enum", "fixed":
		return p.definition(word, v, namespace, depth)
	}
	return p.named(word, namespace)
}

// definition reads a type with a name.
func (p *avroParser) definition(word string, v map[string]any, namespace string, depth int) (*avroType, error) {
	name, _ := v["name"].(string)
	if !avroName.MatchString(name) {
		return nil, fmt.Errorf("%q is not a name of a %s", name, word)
	}
	if own, ok := v["namespace"].(string); ok && !strings.Contains(name, ".") {
		namespace = own
	}
	t := &avroType{name: fullName(name, namespace)}
	if i := strings.LastIndexByte(t.name, '.'); i >= 0 {
		namespace = t.name[:i]
	} else {
		namespace = ""
	}
	if p.types[t.name] != nil {
		return nil, fmt.Errorf("%s is defined twice", t.name)
	}
	p.types[t.name] = t
	switch word {
	case "enum":
		t.kind, t.symbol = avroEnum, map[string]int{}
		list, _ := v["symbols"].([]any)
		for i, s := range list {
			symbol, ok := s.(string)
			if _, twice := t.symbol[symbol]; !ok || twice {
				return nil, fmt.Errorf("enum %s: %v is not a symbol, or one twice", t.name, s)
			}
			t.symbol[symbol] = i
			t.symbols = append(t.symbols, symbol)
		}
		return t, nil
	case "fixed":
		t.kind = avroFixed
		size, err := wholeOf(v["size"], 0, 1<<20)
		if err != nil {
			return nil, fmt.Errorf("fixed %s: size: %w", t.name, err)
		}
		t.size = size
		return t, t.logically(v)
	}
	t.kind, t.field = avroRecord, map[string]int{}
	list, _ := v["fields"].([]any)
	for _, f := range list {
		m, _ := f.(map[string]any)
		name, _ := m["name"].(string)
		if _, twice := t.field[name]; name == "" || twice {
			return nil, fmt.Errorf("record %s: a field has no name, or that of another: %q", t.name, name)
		}
		typ, err := p.schema(m["type"], namespace, depth+1)
		if err != nil {
			return nil, fmt.Errorf("record %s, field %s: %w", t.name, name, err)
		}
		t.field[name] = len(t.fields)
		t.fields = append(t.fields, avroField{name: name, typ: typ})
		if standard, ok := m["default"]; ok {
			at := len(t.fields) - 1
			t.fields[at].hasDefault = true
			p.later = append(p.later, func() error {
				encoded, err := p.standard(nil, typ, standard, 0)
				if err != nil {
					return fmt.Errorf("record %s, field %s: default: %w", t.name, name, err)
				}
				t.fields[at].standard = append([]byte{}, encoded...) // never nil
				return nil
			})
		}
	}
	return t, nil
}

func wholeOf(v any, lowest, highest int) (int, error) {
	number, _ := v.(json.Number)
	n, err := strconv.Atoi(number.String())
	if err != nil || n < lowest || n > highest {
		return 0, fmt.Errorf("%v is not a whole number from %d to %d", v, lowest, highest)
	}
	return n, nil
}

// logically notes a logical type. One that does not fit is ignored, as Avro wants it.
func (t *avroType) logically(v map[string]any) error {
	word, _ := v["logicalType"].(string)
	l := avroLogicals[word][t.kind]
	if l == logicalDecimal {
		precision, err := wholeOf(v["precision"], 1, decimalDigitsMax)
		if err != nil {
			return nil //nolint:nilerr // an invalid decimal is bytes
		}
		scale := 0
		if v["scale"] != nil {
			if scale, err = wholeOf(v["scale"], 0, precision); err != nil {
				return nil //nolint:nilerr // see above
			}
		}
		t.precision, t.scale = precision, scale
	}
	t.logical = l
	return nil
}

// standard appends a default, which stands in the schema as JSON.
func (p *avroParser) standard(dst []byte, t *avroType, v any, depth int) ([]byte, error) {
	if depth > schemaDepthMax || p.defaults > defaultBytesMax {
		return nil, errors.New("the defaults of the schema are too deep or too large")
	}
	p.defaults++
	wrong := func() error { return fmt.Errorf("%v is not of type %s", v, t.name) }
	switch t.kind {
	case avroNull:
		if v != nil {
			return nil, wrong()
		}
		return dst, nil
	case avroBoolean:
		b, ok := v.(bool)
		if !ok {
			return nil, wrong()
		}
		return append(dst, boolByte(b)), nil
	case avroInt, avroLong:
		number, _ := v.(json.Number)
		n, err := strconv.ParseInt(number.String(), 10, 64)
		if err != nil || t.kind == avroInt && n != int64(int32(n)) {
			return nil, wrong()
		}
		return binary.AppendVarint(dst, n), nil
	case avroFloat, avroDouble:
		number, _ := v.(json.Number)
		f, err := number.Float64()
		if err != nil {
			return nil, wrong()
		}
		return appendFloat(dst, t.kind, f), nil
	case avroString, avroBytes, avroFixed, avroEnum:
		text, ok := v.(string)
		if !ok {
			return nil, wrong()
		}
		if p.defaults += len(text); t.kind == avroString {
			return appendAvroBytes(dst, []byte(text)), nil
		}
		if t.kind == avroEnum {
			at, ok := t.symbol[text]
			if !ok {
				return nil, wrong()
			}
			return binary.AppendVarint(dst, int64(at)), nil
		}
		var b []byte
		for _, r := range text {
			if r > 255 {
				return nil, wrong()
			}
			b = append(b, byte(r))
		}
		if t.kind == avroBytes {
			return appendAvroBytes(dst, b), nil
		}
		if len(b) != t.size {
			return nil, wrong()
		}
		return append(dst, b...), nil
	case avroUnion:
		var first error
		for i, branch := range t.branches { // before Avro 1.12 the first, since then any
			out, err := p.standard(binary.AppendVarint(dst, int64(i)), branch, v, depth+1)
			if err == nil {
				return out, nil
			}
			if first == nil {
				first = err
			}
		}
		return nil, first
	case avroArray, avroMap:
		list, isList := v.([]any)
		m, isMap := v.(map[string]any)
		if isList != (t.kind == avroArray) || isMap != (t.kind == avroMap) {
			return nil, wrong()
		}
		if n := len(list) + len(m); n > 0 {
			dst = binary.AppendVarint(dst, int64(n))
		}
		var err error
		for _, item := range list {
			if dst, err = p.standard(dst, t.items, item, depth+1); err != nil {
				return nil, err
			}
		}
		for _, key := range sortedKeys(m) {
			p.defaults += len(key)
			if dst, err = p.standard(appendAvroBytes(dst, []byte(key)), t.items, m[key], depth+1); err != nil {
				return nil, err
			}
		}
		return append(dst, 0), nil
	case avroRecord:
		m, ok := v.(map[string]any)
		if !ok {
			return nil, wrong()
		}
		for i := range t.fields {
			f := &t.fields[i]
			inner, given := m[f.name]
			if !given {
				if f.standard == nil {
					return nil, fmt.Errorf("field %s has no value, nor a default before it", f.name)
				}
				p.defaults += len(f.standard)
				dst = append(dst, f.standard...)
				continue
			}
			var err error
			if dst, err = p.standard(dst, f.typ, inner, depth+1); err != nil {
				return nil, err
			}
		}
		return dst, nil
	}
	panic("BUG: an Avro type of no kind")
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func appendAvroBytes(dst, b []byte) []byte {
	return append(binary.AppendVarint(dst, int64(len(b))), b...)
}

func appendFloat(dst []byte, kind avroKind, f float64) []byte {
	if kind == avroFloat {
		return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(f)))
	}
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(f))
}

// ---- from bytes to forms ----

type avroCodec struct{ t *avroType }

func (c avroCodec) decode(dst, data []byte) ([]byte, error) {
	r := avroReader{in: data, out: dst, most: len(dst) + formBytesMax}
	if err := r.value(c.t, 0); err != nil {
		return nil, err
	}
	if len(r.in) > 0 {
		return nil, fmt.Errorf("%d bytes are left behind the value", len(r.in))
	}
	return r.out, nil
}

// avroReader takes one value from bytes to its form. Nothing in the bytes can make it use more than formBytesMax.
type avroReader struct {
	in, out []byte
	most    int // bytes of out
	empty   int // items that took no bytes of the input
}

// emptyItemsMax bounds items that cost no input: a few bytes could otherwise ask for any number of them.
const emptyItemsMax = 10_000

var errShort = errors.New("the bytes end within the value")

func (r *avroReader) long() (int64, error) {
	n, size := binary.Varint(r.in)
	if size <= 0 {
		if size == 0 {
			return 0, errShort
		}
		return 0, errors.New("a number is longer than 10 bytes")
	}
	r.in = r.in[size:]
	return n, nil
}

func (r *avroReader) take(n int64) ([]byte, error) {
	if n < 0 || n > int64(len(r.in)) {
		return nil, errShort
	}
	b := r.in[:n]
	r.in = r.in[n:]
	return b, nil
}

func (r *avroReader) lengthAndBytes() ([]byte, error) {
	n, err := r.long()
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

func (r *avroReader) text() ([]byte, error) {
	b, err := r.lengthAndBytes()
	if err == nil && !utf8.Valid(b) {
		err = errors.New("a text is not UTF-8")
	}
	return b, err
}

func (r *avroReader) value(t *avroType, depth int) error {
	if len(r.out) > r.most {
		return errTooLarge
	}
	if depth > abi.FormDepthMax {
		return errTooDeep
	}
	switch t.kind {
	case avroNull:
		r.out = append(r.out, abi.FormNull)
	case avroBoolean:
		b, err := r.take(1)
		if err != nil {
			return err
		}
		if b[0] > 1 {
			return fmt.Errorf("a boolean is %d", b[0])
		}
		r.out = append(r.out, [2]byte{abi.FormFalse, abi.FormTrue}[b[0]])
	case avroInt, avroLong:
		n, err := r.long()
		if err != nil {
			return err
		}
		if t.kind == avroInt && n != int64(int32(n)) {
			return fmt.Errorf("%d is not an int", n)
		}
		return r.number(t, n)
	case avroFloat:
		b, err := r.take(4)
		if err != nil {
			return err
		}
		r.out = abi.AppendForm(r.out, abi.FormFloat, math.Float64bits(float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))))
	case avroDouble:
		b, err := r.take(8)
		if err != nil {
			return err
		}
		r.out = abi.AppendForm(r.out, abi.FormFloat, binary.LittleEndian.Uint64(b))
	case avroBytes, avroFixed:
		var b []byte
		var err error
		if t.kind == avroFixed {
			b, err = r.take(int64(t.size))
		} else {
			b, err = r.lengthAndBytes()
		}
		if err != nil {
			return err
		}
		if t.logical == logicalDecimal {
			return r.decimal(t, b)
		}
		r.out = abi.AppendFormBytes(r.out, abi.FormBytes, b)
	case avroString:
		b, err := r.text()
		if err != nil {
			return err
		}
		if t.logical == logicalUUID {
			if !uuidText.Match(b) {
				return fmt.Errorf("%q is not a UUID", shortened(b))
			}
			r.out = abi.AppendFormBytes(r.out, abi.FormUUID, b)
			return nil
		}
		r.out = abi.AppendFormBytes(r.out, abi.FormText, b)
	case avroEnum:
		n, err := r.long()
		if err != nil {
			return err
		}
		if n < 0 || n >= int64(len(t.symbols)) {
			return fmt.Errorf("%s has no symbol number %d", t.name, n)
		}
		r.out = abi.AppendFormBytes(r.out, abi.FormText, t.symbols[n])
	case avroUnion:
		n, err := r.long()
		if err != nil {
			return err
		}
		if n < 0 || n >= int64(len(t.branches)) {
			return fmt.Errorf("the union has no branch number %d", n)
		}
		return r.value(t.branches[n], depth)
	case avroArray, avroMap:
		return r.blocks(t, depth)
	case avroRecord:
		r.out = abi.AppendFormCount(r.out, abi.FormMap, len(t.fields))
		for i := range t.fields {
			f := &t.fields[i]
			r.out = abi.AppendFormBytes(r.out, abi.FormText, f.name)
			if err := r.value(f.typ, depth+1); err != nil {
				return fmt.Errorf("field %s: %w", f.name, err)
			}
		}
	}
	return nil
}

func (r *avroReader) number(t *avroType, n int64) error {
	kind, factor := byte(abi.FormInt), int64(1)
	switch t.logical {
	case logicalDate:
		kind = abi.FormDate
	case logicalTimeMillis, logicalTimeMicros:
		kind = abi.FormTime
		if t.logical == logicalTimeMillis {
			factor = 1000
		}
		if n < 0 || n >= 86_400_000_000/factor {
			return fmt.Errorf("%d is not a time of a day", n)
		}
	case logicalInstantMillis, logicalInstantMicros:
		kind = abi.FormInstant
	case logicalLocalMillis, logicalLocalMicros:
		kind = abi.FormDatetime
	}
	if t.logical == logicalInstantMillis || t.logical == logicalLocalMillis {
		if factor = 1000; n > math.MaxInt64/1000 || n < math.MinInt64/1000 {
			return fmt.Errorf("%d milliseconds are outside of what a datetime holds", n)
		}
	}
	r.out = abi.AppendForm(r.out, kind, uint64(n*factor))
	return nil
}

// decimal reads a two's complement number, big end first, as digits and an exponent: that keeps the scale.
func (r *avroReader) decimal(t *avroType, b []byte) error {
	if len(b) > decimalDigitsMax/2 {
		return fmt.Errorf("a decimal has %d bytes", len(b))
	}
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(len(b)*8)))
	}
	r.out = abi.AppendFormBytes(r.out, abi.FormDecimal, n.String()+"E-"+strconv.Itoa(t.scale))
	return nil
}

// blocks reads an array or a map, which come in blocks with a count each. A negative count has the block's size behind it.
func (r *avroReader) blocks(t *avroType, depth int) error {
	at, items := len(r.out), 0
	kind := byte(abi.FormList)
	if t.kind == avroMap {
		kind = abi.FormMap
	}
	r.out = abi.AppendFormCount(r.out, kind, 0)
	for {
		n, err := r.long()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if n < 0 {
			if n == math.MinInt64 {
				return errors.New("a block has no sensible count")
			}
			n = -n
			if _, err := r.long(); err != nil {
				return err
			}
		}
		for range n {
			before := len(r.in)
			if t.kind == avroMap {
				key, err := r.text()
				if err != nil {
					return err
				}
				r.out = abi.AppendFormBytes(r.out, abi.FormText, key)
			}
			if err := r.value(t.items, depth+1); err != nil {
				return fmt.Errorf("item %d: %w", items, err)
			}
			if len(r.in) == before {
				if r.empty++; r.empty > emptyItemsMax {
					return errTooLarge
				}
			}
			items++
		}
	}
	abi.SetFormCount(r.out, at, items)
	return nil
}

var uuidText = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)

func shortened(b []byte) string {
	if len(b) > 100 {
		return string(bytes.ToValidUTF8(b[:100], nil)) + "…"
	}
	return string(b)
}

// ---- from forms to bytes ----

func (c avroCodec) encode(dst []byte, v *abi.Value) ([]byte, error) { return c.t.write(dst, v, 0) }

func (t *avroType) write(dst []byte, v *abi.Value, depth int) ([]byte, error) {
	if depth > abi.FormDepthMax {
		return nil, errTooDeep
	}
	switch t.kind {
	case avroUnion:
		at, inner, err := t.choose(v)
		if err != nil {
			return nil, err
		}
		return t.branches[at].write(binary.AppendVarint(dst, int64(at)), inner, depth+1)
	case avroRecord:
		return t.writeRecord(dst, v, depth)
	case avroArray:
		if v.Kind != abi.FormList && v.Kind != abi.FormTuple {
			return nil, t.wrong(v)
		}
		if len(v.Items) > 0 {
			dst = binary.AppendVarint(dst, int64(len(v.Items)))
		}
		var err error
		for i := range v.Items {
			if dst, err = t.items.write(dst, &v.Items[i], depth+1); err != nil {
				return nil, fmt.Errorf("item %d: %w", i, err)
			}
		}
		return append(dst, 0), nil
	case avroMap:
		if v.Kind != abi.FormMap {
			return nil, t.wrong(v)
		}
		if len(v.Items) > 0 {
			dst = binary.AppendVarint(dst, int64(len(v.Items)/2))
		}
		var err error
		for i := 0; i < len(v.Items); i += 2 {
			key := &v.Items[i]
			if key.Kind != abi.FormText {
				return nil, fmt.Errorf("keys of a map are str, not %s", key.What())
			}
			if dst, err = t.items.write(appendAvroBytes(dst, key.Bytes), &v.Items[i+1], depth+1); err != nil {
				return nil, fmt.Errorf("key %q: %w", shortened(key.Bytes), err)
			}
		}
		return append(dst, 0), nil
	}
	return t.writeScalar(dst, v)
}

func (t *avroType) writeRecord(dst []byte, v *abi.Value, depth int) ([]byte, error) {
	if v.Kind != abi.FormMap {
		return nil, t.wrong(v)
	}
	for i := 0; i < len(v.Items); i += 2 {
		key := &v.Items[i]
		if _, ok := t.field[string(key.Bytes)]; !ok || key.Kind != abi.FormText {
			return nil, fmt.Errorf("%s has no field %q; it has %s", t.name, shortened(key.Bytes), listed(t.fields, func(f avroField) string { return f.name }))
		}
	}
	for i := range t.fields {
		f := &t.fields[i]
		// Python dicts mostly have the fields in the schema's order.
		var value *abi.Value
		if 2*i+1 < len(v.Items) && string(v.Items[2*i].Bytes) == f.name {
			value = &v.Items[2*i+1]
		} else {
			value = v.Member(f.name)
		}
		if value == nil {
			if f.hasDefault {
				dst = append(dst, f.standard...)
				continue
			}
			if f.typ.accepts(&abi.Value{Kind: abi.FormNull}) == 0 {
				return nil, fmt.Errorf("field %s of %s has no value", f.name, t.name)
			}
			value = &abi.Value{Kind: abi.FormNull}
		}
		var err error
		if dst, err = f.typ.write(dst, value, depth+1); err != nil {
			return nil, fmt.Errorf("field %s: %w", f.name, err)
		}
	}
	return dst, nil
}

// listed names things, the first few of them.
func listed[T any](all []T, name func(T) string) string {
	var names []string
	for i, x := range all {
		if i == 12 {
			names = append(names, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		names = append(names, name(x))
	}
	return strings.Join(names, ", ")
}

func (t *avroType) wrong(v *abi.Value) error {
	return fmt.Errorf("a value of type %s is wanted, not %s", t.name, v.What())
}

func (t *avroType) writeScalar(dst []byte, v *abi.Value) ([]byte, error) {
	if t.accepts(v) == 0 {
		if v.Kind == abi.FormDatetime && (t.logical == logicalInstantMillis || t.logical == logicalInstantMicros) {
			return nil, errors.New("a datetime without a time zone is no point in time: give it one, such as timezone.utc")
		}
		if (t.kind == avroInt || t.kind == avroLong) && t.logical == noLogical && (v.Kind == abi.FormInt || v.Kind == abi.FormUint || v.Kind == abi.FormBigInt) {
			return nil, fmt.Errorf("%s is outside of what type %s holds", v.Number(), t.name)
		}
		if t.kind == avroEnum && v.Kind == abi.FormText {
			return nil, fmt.Errorf("%s has no symbol %q; it has %s", t.name, shortened(v.Bytes), listed(t.symbols, func(s string) string { return s }))
		}
		if t.kind == avroFixed && v.Kind == abi.FormBytes {
			return nil, fmt.Errorf("%s takes %d bytes, not %d", t.name, t.size, len(v.Bytes))
		}
		return nil, t.wrong(v)
	}
	switch t.kind {
	case avroNull:
		return dst, nil
	case avroBoolean:
		return append(dst, boolByte(v.Kind == abi.FormTrue)), nil
	case avroInt, avroLong:
		n := v.Int()
		if v.Kind != abi.FormInt && (t.logical == logicalTimeMillis || t.logical == logicalInstantMillis || t.logical == logicalLocalMillis) {
			if n < 0 {
				n -= 999 // down, not towards 1970
			}
			n /= 1000
		}
		return binary.AppendVarint(dst, n), nil
	case avroFloat, avroDouble:
		f := v.Float()
		switch v.Kind {
		case abi.FormInt:
			f = float64(v.Int())
		case abi.FormUint:
			f = float64(v.Bits)
		}
		if t.kind == avroFloat && math.Abs(f) > math.MaxFloat32 && !math.IsInf(f, 0) {
			return nil, fmt.Errorf("%v is outside of what type float holds", f)
		}
		return appendFloat(dst, t.kind, f), nil
	case avroString:
		return appendAvroBytes(dst, v.Bytes), nil
	case avroEnum:
		return binary.AppendVarint(dst, int64(t.symbol[string(v.Bytes)])), nil
	case avroBytes, avroFixed:
		b := v.Bytes
		if t.logical == logicalDecimal && v.Kind != abi.FormBytes {
			n, err := unscaled(v, t.precision, t.scale)
			if err != nil {
				return nil, err
			}
			size := 0
			if t.kind == avroFixed {
				size = t.size
			}
			if b, err = twosComplement(n, size); err != nil {
				return nil, err
			}
		}
		if t.kind == avroFixed {
			return append(dst, b...), nil
		}
		return appendAvroBytes(dst, b), nil
	}
	panic("BUG: an Avro type of no kind")
}

// accepts tells how well a value fits, 0 for not at all. What is inside of lists and dicts is not looked at, but for the names of a
// record's fields.
func (t *avroType) accepts(v *abi.Value) int {
	fits := func(ok bool, how int) int {
		if ok {
			return how
		}
		return 0
	}
	switch t.kind {
	case avroNull:
		return fits(v.Kind == abi.FormNull, 3)
	case avroBoolean:
		return fits(v.Kind == abi.FormTrue || v.Kind == abi.FormFalse, 3)
	case avroInt, avroLong:
		var own byte
		switch t.logical {
		case logicalDate:
			own = abi.FormDate
		case logicalTimeMillis, logicalTimeMicros:
			own = abi.FormTime
		case logicalInstantMillis, logicalInstantMicros:
			own = abi.FormInstant
		case logicalLocalMillis, logicalLocalMicros:
			own = abi.FormDatetime
		}
		number := v.Kind == abi.FormInt && (t.kind == avroLong || v.Int() == int64(int32(v.Int())))
		switch {
		case own != 0 && v.Kind == own:
			return 3
		case own != 0:
			return fits(number, 1)
		case t.kind == avroInt:
			return fits(number, 3)
		}
		return fits(number, 2)
	case avroFloat, avroDouble:
		if v.Kind == abi.FormFloat {
			return fits(t.kind == avroDouble, 1) + 2
		}
		return fits(v.Kind == abi.FormInt || v.Kind == abi.FormUint, 1)
	case avroString:
		if t.logical == logicalUUID {
			return fits(v.Kind == abi.FormUUID, 3) + fits(v.Kind == abi.FormText && uuidText.Match(v.Bytes), 2)
		}
		return fits(v.Kind == abi.FormText, 3)
	case avroEnum:
		_, ok := t.symbol[string(v.Bytes)]
		return fits(v.Kind == abi.FormText && ok, 3)
	case avroBytes, avroFixed:
		if t.logical == logicalDecimal {
			return fits(v.Kind == abi.FormDecimal, 3) + fits(v.Kind == abi.FormInt || v.Kind == abi.FormUint || v.Kind == abi.FormBigInt, 1)
		}
		return fits(v.Kind == abi.FormBytes && (t.kind == avroBytes || len(v.Bytes) == t.size), 3)
	case avroArray:
		return fits(v.Kind == abi.FormList || v.Kind == abi.FormTuple, 2)
	case avroMap:
		return fits(v.Kind == abi.FormMap, 1)
	case avroRecord:
		if v.Kind != abi.FormMap {
			return 0
		}
		for i := 0; i < len(v.Items); i += 2 {
			if _, ok := t.field[string(v.Items[i].Bytes)]; !ok || v.Items[i].Kind != abi.FormText {
				return 0
			}
		}
		for i := range t.fields {
			f := &t.fields[i]
			if !f.hasDefault && v.Member(f.name) == nil && f.typ.accepts(&abi.Value{Kind: abi.FormNull}) == 0 {
				return 0
			}
		}
		return 3
	case avroUnion:
		_, _, err := t.choose(v)
		return fits(err == nil, 3)
	}
	return 0
}

// choose gives the branch for a value: the one that is named by a tuple ("name", value), or the first of those that fit best.
func (t *avroType) choose(v *abi.Value) (int, *abi.Value, error) {
	if v.Kind == abi.FormTuple && len(v.Items) == 2 && v.Items[0].Kind == abi.FormText {
		name := string(v.Items[0].Bytes)
		for i, b := range t.branches {
			if b.name == name || strings.HasSuffix(b.name, "."+name) {
				return i, &v.Items[1], nil
			}
		}
	}
	best, at := 0, -1
	for i, b := range t.branches {
		if how := b.accepts(v); how > best {
			best, at = how, i
		}
	}
	if at < 0 {
		return 0, nil, fmt.Errorf("no branch of the union takes this %s; it has %s", v.What(), listed(t.branches, func(b *avroType) string { return b.name }))
	}
	return at, v, nil
}

var decimalText = regexp.MustCompile(`^(-?)([0-9]*)\.?([0-9]*)(?:E([+-]?[0-9]{1,5}))?$`)

// unscaled is a decimal or whole number as a whole number of its last places.
func unscaled(v *abi.Value, precision, scale int) (*big.Int, error) {
	text := string(v.Bytes)
	switch v.Kind {
	case abi.FormInt:
		text = strconv.FormatInt(v.Int(), 10)
	case abi.FormUint:
		text = strconv.FormatUint(v.Bits, 10)
	}
	m := decimalText.FindStringSubmatch(text)
	if m == nil || m[2]+m[3] == "" || len(text) > 2*decimalDigitsMax {
		return nil, fmt.Errorf("%s is not a decimal of %d digits", shortened([]byte(text)), precision)
	}
	exponent, _ := strconv.Atoi(m[4]) // matched; empty is 0
	digits := strings.TrimLeft(m[2]+m[3], "0")
	shift := exponent - len(m[3]) + scale
	for ; shift < 0 && strings.HasSuffix(digits, "0"); shift++ {
		digits = digits[:len(digits)-1]
	}
	if digits == "" {
		return new(big.Int), nil
	}
	if shift < 0 {
		return nil, fmt.Errorf("%s has more than %d decimal places: round it first", shortened([]byte(text)), scale)
	}
	if len(digits)+shift > precision {
		return nil, fmt.Errorf("%s has more than %d digits", shortened([]byte(text)), precision)
	}
	n, ok := new(big.Int).SetString(m[1]+digits+strings.Repeat("0", shift), 10)
	if !ok {
		panic("BUG: digits are no number")
	}
	return n, nil
}

// twosComplement is a number's bytes, big end first: as few as will do, or size of them.
func twosComplement(n *big.Int, size int) ([]byte, error) {
	bits := n.BitLen()
	if n.Sign() < 0 {
		bits = new(big.Int).Not(n).BitLen()
	}
	need := bits/8 + 1
	if size == 0 {
		size = need
	}
	if need > size {
		return nil, fmt.Errorf("%v does not fit into %d bytes", n, size)
	}
	if n.Sign() < 0 {
		n = new(big.Int).Add(n, new(big.Int).Lsh(big.NewInt(1), uint(size*8)))
	}
	return n.FillBytes(make([]byte, size)), nil
}
