package join

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What is in the topics and tables of a join is written by joins alone; what is not of this form is a record that fails.
var (
	errNotOurs = errors.New("this is not of a join: nobody else may write to its topics")
	errNoKey   = fmt.Errorf("%w: there is no key", errNotOurs)
)

var be = binary.BigEndian

// Kinds of requests to the right side.
const (
	kindRow         = 1 // a right row's value
	kindGone        = 2 // it was deleted
	kindSubscribe   = 3 // a left row refers to it
	kindUnsubscribe = 4 // it does no more
	kindRetract     = 5 // the same, and what the right row is now shall be answered
	kindContinue    = 6 // go on telling subscribers, behind one of them
)

// request is the value of a record to the right side, whose key is the right key: a kind and then
//
//	row: the value; subscribe: u32 partition of the left row, hash of its value, left key; unsubscribe, retract: without the
//	hash; continue: the key of a subscriber
type request struct {
	kind      byte
	row       []byte // kindRow; nil: gone
	partition int32
	hash      [hashSize]byte
	left      []byte
	after     []byte
}

func (q request) encode() []byte {
	b := []byte{q.kind}
	switch q.kind {
	case kindRow:
		if q.row == nil {
			return []byte{kindGone}
		}
		return append(b, q.row...)
	case kindSubscribe:
		b = append(be.AppendUint32(b, uint32(q.partition)), q.hash[:]...)
		return append(b, q.left...)
	case kindContinue:
		return append(b, q.after...)
	default:
		return append(be.AppendUint32(b, uint32(q.partition)), q.left...)
	}
}

func requestOf(b []byte) (request, error) {
	if len(b) == 0 {
		return request{}, errNotOurs
	}
	q := request{kind: b[0]}
	b = b[1:]
	switch q.kind {
	case kindRow:
		q.row = b
		return q, nil
	case kindGone:
		q.kind = kindRow
		return q, nil
	case kindContinue:
		q.after = b
		return q, nil
	case kindSubscribe, kindUnsubscribe, kindRetract:
	default:
		return q, fmt.Errorf("%w: a request of kind %d", errNotOurs, q.kind)
	}
	var err error
	if q.partition, b, err = cutPartition(b); err != nil {
		return q, err
	}
	if q.kind == kindSubscribe {
		if len(b) < hashSize {
			return q, fmt.Errorf("%w: a request is cut off", errNotOurs)
		}
		q.hash, b = [hashSize]byte(b), b[hashSize:]
	}
	q.left = b
	return q, nil
}

func cutPartition(b []byte) (int32, []byte, error) {
	if len(b) < 4 || b[0] > 127 {
		return 0, nil, fmt.Errorf("%w: there is no partition", errNotOurs)
	}
	return int32(be.Uint32(b)), b[4:], nil
}

// Kinds of answers.
const (
	answerLeft    = 1 // to a subscription
	answerRight   = 2 // the right row has changed
	answerRetract = 3 // the left row is gone
)

// answer is the key of a record to the left side, whose value is the right row, null for none. It is sent to a partition, so its
// bytes are free: u8 kind, hash of the left value, u32 length of the right key, right key, left key. The value is one for all
// subscribers.
type answer struct {
	kind byte
	hash [hashSize]byte
	key  []byte
	left []byte
}

func (a answer) encode() []byte {
	b := make([]byte, 0, 1+hashSize+4+len(a.key)+len(a.left))
	b = append(append(b, a.kind), a.hash[:]...)
	b = append(be.AppendUint32(b, uint32(len(a.key))), a.key...)
	return append(b, a.left...)
}

func answerOf(b []byte) (answer, error) {
	if len(b) < 1+hashSize+4 || b[0] < answerLeft || b[0] > answerRetract {
		return answer{}, fmt.Errorf("%w: an answer is none", errNotOurs)
	}
	a := answer{kind: b[0], hash: [hashSize]byte(b[1:])}
	b = b[1+hashSize:]
	n := be.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return a, fmt.Errorf("%w: an answer is cut off", errNotOurs)
	}
	a.key, a.left = b[:n:n], b[n:]
	return a, nil
}

// What was last sent of a left row; known only with retractions.
const (
	sentNothing = 0
	sentAlone   = 1
	sentPair    = 2
)

// leftRow is what the left table has under a left key: u8 what was sent, hash of the value, u32 length of the right key (all bits
// set: there is none), right key, value.
type leftRow struct {
	sent  byte
	hash  [hashSize]byte
	key   []byte // nil: it refers to no right row
	value []byte
}

const noKey = ^uint32(0)

func (r *leftRow) encode() []byte {
	b := make([]byte, 0, 1+hashSize+4+len(r.key)+len(r.value))
	b = append(append(b, r.sent), r.hash[:]...)
	if r.key == nil {
		b = be.AppendUint32(b, noKey)
	} else {
		b = append(be.AppendUint32(b, uint32(len(r.key))), r.key...)
	}
	return append(b, r.value...)
}

func leftRowOf(b []byte) (*leftRow, error) {
	if len(b) < 1+hashSize+4 {
		return nil, fmt.Errorf("%w: a row is cut off", errNotOurs)
	}
	r := &leftRow{sent: b[0], hash: [hashSize]byte(b[1:])}
	b = b[1+hashSize:]
	n := be.Uint32(b)
	b = b[4:]
	if n != noKey {
		if uint64(n) > uint64(len(b)) {
			return nil, fmt.Errorf("%w: a row is cut off", errNotOurs)
		}
		r.key, b = b[:n:n], b[n:]
	}
	r.value = b
	return r, nil
}

// The right table has right rows under 'r' and their key, and under 's' the hash of the left value for each subscriber: u32 length of
// the right key, right key, u32 partition of the left row, left key.

func rowKey(key []byte) []byte { return append([]byte{'r'}, key...) }

func subscribers(key []byte) []byte {
	b := make([]byte, 0, 1+4+len(key)+4+32)
	b = append(b, 's')
	return append(be.AppendUint32(b, uint32(len(key))), key...)
}

func subscriber(key []byte, partition int32, left []byte) []byte {
	return append(be.AppendUint32(subscribers(key), uint32(partition)), left...)
}

// subscriberOf takes a subscriber of a right key apart.
func subscriberOf(b, key []byte) (partition int32, left []byte, err error) {
	return cutPartition(b[1+4+len(key):])
}
