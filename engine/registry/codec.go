package registry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"kaspr.io/kaspr/wasmhost/abi"
)

// The serializers that have schemas, as manifests name them.
const (
	Avro       = "avro"
	Protobuf   = "protobuf"
	JSONSchema = "jsonschema"
)

// Serializers are the serializers of this package by their numbers in OpEncode.
var Serializers = map[int]string{abi.SerializerAvro: Avro, abi.SerializerProtobuf: Protobuf, abi.SerializerJSONSchema: JSONSchema}

// Has tells whether a serializer is one of this package.
func Has(serializer string) bool {
	return serializer == Avro || serializer == Protobuf || serializer == JSONSchema
}

// codec reads and writes what one schema describes. It may be used by several goroutines.
type codec interface {
	// decode appends the form of what data holds.
	decode(dst, data []byte) ([]byte, error)
	// encode appends the bytes of a value, behind the frame.
	encode(dst []byte, v *abi.Value) ([]byte, error)
}

// schemaText is a schema as the registry has it. What it refers to comes before what refers to it.
type schemaText struct {
	serializer string
	text       string
	references []reference
}

// reference is a schema under the name by which another refers to it.
type reference struct{ name, text string }

// Limits of what comes from a registry and from records.
const (
	schemaBytesMax = 1 << 20 // of a schema with all it refers to
	formBytesMax   = 16 << 20
)

var (
	errTooLarge = fmt.Errorf("what the bytes stand for is larger than %d MiB", formBytesMax>>20)
	errTooDeep  = fmt.Errorf("it is nested deeper than %d levels", abi.FormDepthMax)
)

// compile makes a codec, and gives the name of what the schema describes: of the record, of the message to write, or the title. A library
// that cannot cope with a schema must not end the process.
func compile(s schemaText, message string, validate bool) (c codec, name string, err error) {
	size := len(s.text)
	for _, r := range s.references {
		size += len(r.text)
	}
	if size > schemaBytesMax {
		return nil, "", fmt.Errorf("the schema has %d bytes, more than %d", size, schemaBytesMax)
	}
	defer func() {
		if p := recover(); p != nil {
			c, name, err = nil, "", fmt.Errorf("the schema cannot be read: %v", p)
		}
	}()
	switch s.serializer {
	case Avro:
		return newAvro(s)
	case Protobuf:
		return newProtobuf(s, message)
	case JSONSchema:
		return newJSONSchema(s, validate)
	}
	return nil, "", fmt.Errorf("there is no serializer %q with schemas", s.serializer)
}

// NameOf gives the name a schema has in subjects (RecordName), or what is wrong with the schema.
func NameOf(serializer, text, message string) (string, error) {
	_, name, err := compile(schemaText{serializer: serializer, text: text}, message, true)
	return name, err
}

// The frame: a zero byte, the schema's id, big end first, and the value.
const (
	magic     = 0
	frameSize = 5
)

// unframe gives the id and what is behind it.
func unframe(data []byte) (int, []byte, error) {
	if len(data) < frameSize {
		return 0, nil, fmt.Errorf("%d bytes are no value with a schema: it begins with a zero byte and the schema's id", len(data))
	}
	if data[0] != magic {
		return 0, nil, fmt.Errorf("it begins with byte %d, not with the zero before a schema's id", data[0])
	}
	id := int32(binary.BigEndian.Uint32(data[1:]))
	if id < 0 {
		return 0, nil, errors.New("its schema's id is negative")
	}
	return int(id), data[frameSize:], nil
}

func frame(dst []byte, id int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, magic), uint32(id))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
