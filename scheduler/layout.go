package scheduler

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"kaspr.io/kaspr/engine/record"
)

// formatVersion is that of all values in this file.
const formatVersion = 1

// Spaces: the first byte of every key (doc.go tells the layout).
const (
	spaceHead    = 'h'
	spaceMessage = 'm'
	spaceID      = 'i'
	spaceCron    = 'c'
	spaceForget  = 'x'
	spaceSource  = 's'
)

var headKey = []byte{spaceHead}

// Location is a place among the messages: they leave in this order.
type Location struct {
	Due int64 // milliseconds since the Unix epoch
	Seq uint64
}

func (l Location) less(o Location) bool { return l.Due < o.Due || l.Due == o.Due && l.Seq < o.Seq }

func (l Location) key(space byte) []byte {
	b := append(make([]byte, 0, 17), space)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Due)^1<<63)
	return binary.BigEndian.AppendUint64(b, l.Seq)
}

func locationOf(key []byte) (Location, error) {
	if len(key) != 17 {
		return Location{}, fmt.Errorf("table key %x: %w", key, errGarbled)
	}
	return Location{int64(binary.BigEndian.Uint64(key[1:]) ^ 1<<63), binary.BigEndian.Uint64(key[9:])}, nil
}

func idKey(id string) []byte   { return append([]byte{spaceID}, id...) }
func cronKey(id string) []byte { return append([]byte{spaceCron}, id...) }
func sourceKey(partition int32) []byte {
	return binary.BigEndian.AppendUint32([]byte{spaceSource}, uint32(partition))
}

// errGarbled says that a row is not what this package wrote.
var errGarbled = errors.New("it is not in a known format of the scheduler")

// head is what is known of a whole partition.
type head struct {
	Seq   uint64   // next sequence number
	Low   Location // no message lies below
	Count int64    // message rows, with the next firings of crons
	Crons int64    // cron entries that are active or paused
}

func (h *head) encode() []byte {
	var e encoder
	e.version()
	e.uint(h.Seq)
	e.location(h.Low)
	e.int(h.Count)
	e.int(h.Crons)
	return e.b
}

func decodeHead(b []byte) (h head, err error) {
	if b == nil {
		return head{Low: Location{Due: earliest}}, nil
	}
	d := decode(b)
	h.Seq, h.Low = d.uint(), d.location()
	h.Count, h.Crons = d.int(), d.int()
	return h, d.end("head")
}

// Message is a message that waits.
type Message struct {
	At       Location // where it lies; its Due is later than the message's own after a refusal
	Due      int64
	Expires  int64 // not to be delivered from then on; noExpiry: never
	ID       string
	Loose    bool   // the ID has come to stand for something else
	Cron     string // of a firing that was refused: the cron entry
	Print    [16]byte
	Attempts uint64
	Source   Source
	Topic    string
	Key      []byte
	Value    []byte
	Headers  []record.Header
}

// firing is the row of a cron's next firing.
type firing struct {
	Cron    string
	Version uint64
}

// Kinds of message rows.
const (
	kindMessage = 1
	kindFiring  = 2
)

func (m *Message) encode() []byte {
	e := encoder{make([]byte, 0, 96+len(m.ID)+len(m.Topic)+len(m.Key)+len(m.Value))}
	e.version()
	e.uint(kindMessage)
	e.int(m.Due)
	e.int(m.Expires)
	e.text(m.ID)
	e.bool(m.Loose)
	e.text(m.Cron)
	e.b = append(e.b, m.Print[:]...)
	e.uint(m.Attempts)
	e.source(m.Source)
	e.payload(m.Topic, m.Key, m.Value, m.Headers)
	return e.b
}

func (f *firing) encode() []byte {
	var e encoder
	e.version()
	e.uint(kindFiring)
	e.text(f.Cron)
	e.uint(f.Version)
	return e.b
}

// decodeMessage reads a message row: one or the other.
func decodeMessage(at Location, b []byte) (m *Message, f *firing, err error) {
	d := decode(b)
	switch d.uint() {
	case kindMessage:
		m = &Message{At: at, Due: d.int(), Expires: d.int(), ID: d.text(), Loose: d.bool(), Cron: d.text()}
		copy(m.Print[:], d.take(uint64(len(m.Print))))
		m.Attempts, m.Source = d.uint(), d.source()
		m.Topic, m.Key, m.Value, m.Headers = d.payload()
	case kindFiring:
		f = &firing{Cron: d.text(), Version: d.uint()}
	default:
		d.bad = true
	}
	return m, f, d.end("message")
}

// status of an id, or of a cron.
type status uint8

// States. Those from gone on are remembered for a while and then forgotten.
const (
	pending status = 1 // a message waits; a cron is active
	paused  status = 2 // of a cron only

	gone      status = 3
	sent      status = 3
	cancelled status = 4
	failed    status = 5 // it expired, or the broker refused it for good
)

// idRow says what an id stands for.
type idRow struct {
	State  status
	At     Location // of its message; Due is when it was due
	Print  [16]byte
	Since  int64  // when it came to State
	Source Source // the request that brought it there
}

func (r *idRow) encode() []byte {
	e := encoder{make([]byte, 0, 64)}
	e.version()
	e.uint(uint64(r.State))
	e.location(r.At)
	e.b = append(e.b, r.Print[:]...)
	e.int(r.Since)
	e.source(r.Source)
	return e.b
}

func decodeID(b []byte) (r idRow, err error) {
	d := decode(b)
	r.State, r.At = status(d.uint()), d.location()
	copy(r.Print[:], d.take(uint64(len(r.Print))))
	r.Since, r.Source = d.int(), d.source()
	return r, d.end("id")
}

// cronRow is a cron entry. A cancelled one has nothing but State, Since and Source.
type cronRow struct {
	State      status
	Version    uint64 // of the definition: a firing of another one does not count
	Next       int64  // the next firing, or the first not delivered when paused; 0: there is none
	At         Location
	Since      int64  // when it came to State
	Last       int64  // last firing; 0: none yet
	Source     Source // of the definition, or of the CRON_CANCEL
	Expression string
	Zone       string
	Skip       bool
	Topic      string
	Key, Value []byte
	Headers    []record.Header
}

func (c *cronRow) encode() []byte {
	e := encoder{make([]byte, 0, 96+len(c.Expression)+len(c.Topic)+len(c.Key)+len(c.Value))}
	e.version()
	e.uint(uint64(c.State))
	e.uint(c.Version)
	e.int(c.Next)
	e.location(c.At)
	e.int(c.Since)
	e.int(c.Last)
	e.source(c.Source)
	e.text(c.Expression)
	e.text(c.Zone)
	e.bool(c.Skip)
	e.payload(c.Topic, c.Key, c.Value, c.Headers)
	return e.b
}

func decodeCron(b []byte) (c cronRow, err error) {
	d := decode(b)
	c.State, c.Version = status(d.uint()), d.uint()
	c.Next, c.At = d.int(), d.location()
	c.Since, c.Last = d.int(), d.int()
	c.Source = d.source()
	c.Expression, c.Zone, c.Skip = d.text(), d.text(), d.bool()
	c.Topic, c.Key, c.Value, c.Headers = d.payload()
	return c, d.end("cron entry")
}

// encodeForget lists keys of rows that may be forgotten.
func encodeForget(keys [][]byte) []byte {
	var e encoder
	e.version()
	e.uint(uint64(len(keys)))
	for _, k := range keys {
		e.bytes(k)
	}
	return e.b
}

func decodeForget(b []byte) (keys [][]byte, err error) {
	d := decode(b)
	for n := d.uint(); n > 0 && !d.bad; n-- {
		keys = append(keys, d.bytes())
	}
	return keys, d.end("list")
}

func encodeSource(s Source) []byte {
	var e encoder
	e.version()
	e.source(s)
	return e.b
}

func decodeSource(b []byte) (Source, error) {
	d := decode(b)
	s := d.source()
	return s, d.end("source")
}

// fingerprint tells whether two requests ask for the same: time, destination, key, value and headers.
func fingerprint(r *Request) (sum [16]byte) {
	e := encoder{make([]byte, 0, 96+len(r.Key)+len(r.Value))}
	e.int(r.Due)
	e.int(r.Expires)
	e.payload(r.Topic, r.Key, r.Value, r.Headers)
	all := sha256.Sum256(e.b)
	copy(sum[:], all[:])
	return sum
}

// An encoder appends values: integers as varints, bytes with their length plus one before them, 0 for null.
type encoder struct{ b []byte }

func (e *encoder) version()      { e.b = append(e.b, formatVersion) }
func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) bool(v bool) {
	if v {
		e.uint(1)
	} else {
		e.uint(0)
	}
}

func (e *encoder) text(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(b []byte) {
	if b == nil {
		e.uint(0)
		return
	}
	e.uint(uint64(len(b)) + 1)
	e.b = append(e.b, b...)
}

func (e *encoder) location(l Location) {
	e.int(l.Due)
	e.uint(l.Seq)
}

func (e *encoder) source(s Source) {
	e.int(int64(s.Partition))
	e.int(s.Offset)
	e.int(s.Time)
}

func (e *encoder) payload(topic string, key, value []byte, headers []record.Header) {
	e.text(topic)
	e.bytes(key)
	e.uint(uint64(len(headers)))
	for _, h := range headers {
		e.text(h.Key)
		e.bytes(h.Value)
	}
	e.bytes(value)
}

// A decoder takes values off the front. What is wrong shows at the end.
type decoder struct {
	b   []byte
	bad bool
}

func decode(b []byte) *decoder {
	d := &decoder{b: b}
	if v := d.take(1); !d.bad && v[0] != formatVersion {
		d.bad = true
	}
	return d
}

func (d *decoder) take(n uint64) []byte {
	if d.bad || uint64(len(d.b)) < n {
		d.bad = true
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || d.bad {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 || d.bad {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bool() bool   { return d.uint() == 1 }
func (d *decoder) text() string { return string(d.take(d.uint())) }

func (d *decoder) bytes() []byte {
	n := d.uint()
	if n == 0 {
		return nil
	}
	return d.take(n - 1)
}

func (d *decoder) location() Location { return Location{d.int(), d.uint()} }
func (d *decoder) source() Source     { return Source{int32(d.int()), d.int(), d.int()} }

func (d *decoder) payload() (topic string, key, value []byte, headers []record.Header) {
	topic, key = d.text(), d.bytes()
	for n := d.uint(); n > 0 && !d.bad; n-- {
		headers = append(headers, record.Header{Key: d.text(), Value: d.bytes()})
	}
	return topic, key, d.bytes(), headers
}

// end is the error if the row was not read exactly to its end.
func (d *decoder) end(what string) error {
	if d.bad || len(d.b) > 0 {
		return fmt.Errorf("%s row of the timetable: %w", what, errGarbled)
	}
	return nil
}
