package dev

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"kaspr.io/kaspr/engine/broker"
)

// codecs say how a topic's readers decode it, which decides how a line's key and value become bytes.
type codecs struct{ key, value string }

// lineBytesMax bounds one input line.
const lineBytesMax = 64 << 20

// readLines calls produce with the record of each line of r. A line is a bare JSON value, or an object with only the
// members key, value, headers, partition and timestamp, value among them. Blank lines are passed over.
func readLines(r io.Reader, name, topic string, c codecs, produce func(*kgo.Record) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 64<<10), lineBytesMax)
	for n := 1; sc.Scan(); n++ {
		line := bytes.TrimSpace(sc.Bytes())
		if len(line) == 0 {
			continue
		}
		rec, err := parseLine(line, c)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		rec.Topic = topic
		if err := produce(rec); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func parseLine(line []byte, c codecs) (*kgo.Record, error) {
	rec := &kgo.Record{Partition: -1}
	var members map[string]json.RawMessage
	if line[0] == '{' && json.Unmarshal(line, &members) == nil && isEnvelope(members) {
		var err error
		if rec.Key, err = toBytes(members["key"], c.key); err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		if rec.Value, err = toBytes(members["value"], c.value); err != nil {
			return nil, fmt.Errorf("value: %w", err)
		}
		if p, ok := members["partition"]; ok {
			if err := json.Unmarshal(p, &rec.Partition); err != nil {
				return nil, fmt.Errorf("partition: %w", err)
			}
		}
		if t, ok := members["timestamp"]; ok {
			var ms float64
			if err := json.Unmarshal(t, &ms); err != nil {
				return nil, fmt.Errorf("timestamp (milliseconds since 1970): %w", err)
			}
			rec.Timestamp = time.UnixMicro(int64(ms * 1000))
		}
		if h, ok := members["headers"]; ok {
			if rec.Headers, err = parseHeaders(h); err != nil {
				return nil, fmt.Errorf("headers: %w", err)
			}
		}
		return rec, nil
	}
	var err error
	if rec.Value, err = toBytes(line, c.value); err != nil {
		return nil, err
	}
	return rec, nil
}

func isEnvelope(m map[string]json.RawMessage) bool {
	if _, ok := m["value"]; !ok {
		return false
	}
	for k := range m {
		switch k {
		case "key", "value", "headers", "partition", "timestamp":
		default:
			return false
		}
	}
	return true
}

// toBytes gives the bytes of a key or value. With the json codec they are the text of the line as it stands, also when
// it is not JSON, so that broken records can be tried. With another codec a JSON string stands for its text, and
// {"base64": "..."} for bytes in every case. null, like nothing at all, is Kafka's null.
func toBytes(raw json.RawMessage, codec string) ([]byte, error) {
	text := bytes.TrimSpace(raw)
	if len(text) == 0 || bytes.Equal(text, []byte("null")) {
		return nil, nil
	}
	var b struct {
		Base64 *string `json:"base64"`
	}
	if text[0] == '{' {
		var only map[string]json.RawMessage
		if json.Unmarshal(text, &only) == nil && len(only) == 1 && json.Unmarshal(text, &b) == nil && b.Base64 != nil {
			out, err := base64.StdEncoding.DecodeString(*b.Base64)
			if err != nil {
				return nil, err
			}
			return out, nil
		}
	}
	if codec != "json" && text[0] == '"' {
		var s string
		if err := json.Unmarshal(text, &s); err != nil {
			return nil, err
		}
		return []byte(s), nil
	}
	return bytes.Clone(text), nil
}

func parseHeaders(raw json.RawMessage) ([]kgo.RecordHeader, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("an object of name and text is wanted")
	}
	var out []kgo.RecordHeader
	for dec.More() { // in the order they stand, duplicates kept
		k, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		b, err := toBytes(v, "raw")
		if err != nil {
			return nil, err
		}
		out = append(out, kgo.RecordHeader{Key: k.(string), Value: b})
	}
	return out, nil
}

// AppendLine appends an output record as one JSON line.
func AppendLine(buf []byte, d broker.Delivered) []byte {
	buf = append(buf, `{"topic":`...)
	buf = appendText(buf, []byte(d.Topic))
	buf = fmt.Appendf(buf, `,"partition":%d,"key":`, d.Partition)
	buf = appendBytes(buf, d.Key)
	buf = append(buf, `,"value":`...)
	buf = appendBytes(buf, d.Value)
	buf = append(buf, `,"headers":{`...)
	for i, h := range d.Headers {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = appendText(buf, []byte(h.Key))
		buf = append(buf, ':')
		buf = appendText(buf, h.Value)
	}
	return append(buf, "}}\n"...)
}

// appendBytes shows bytes as JSON where they are JSON, as a string where they are text, else as {"base64": ...}.
func appendBytes(buf, b []byte) []byte {
	if b != nil && json.Valid(b) {
		out := bytes.NewBuffer(buf)
		if json.Compact(out, b) == nil {
			return out.Bytes()
		}
	}
	return appendText(buf, b)
}

func appendText(buf, b []byte) []byte {
	switch {
	case b == nil:
		return append(buf, "null"...)
	case !utf8.Valid(b):
		buf = append(buf, `{"base64":"`...)
		buf = base64.StdEncoding.AppendEncode(buf, b)
		return append(buf, `"}`...)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(string(b)); err != nil {
		panic("BUG: a valid string does not encode: " + err.Error())
	}
	return append(buf, bytes.TrimRight(out.Bytes(), "\n")...)
}
