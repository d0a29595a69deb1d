// Package join is a KasprJoin as functions of what changed, of a table of its own and of a batch: it knows no Kafka, no Python and no
// clock. The engine runs it as agents without code, and makes what it returns part of a transaction.
//
// The left table's changelog says what became of each left row; with the foreign keys that the extractor gives they go through
//
//	left changelog ──► Left ──subscribe──► right topic ──► Right ──► answers ──► Answers ──► channel
//	right changelog ─► Rows ──row────────► right topic ──┘
//
// The right topic is partitioned by the right key, whatever the tables are partitioned by; an answer goes back to the partition its
// left row is in. So each row has one owner on each side, and no table needs to be partitioned like another.
//
// Invariant: an answer counts only for the left value it was asked for. Answers to what a left row was before are dropped, and the
// newer value's own answer comes behind them; a foreign key's answers are in order, since they come from one partition. So the last
// result of a left row is that of what both rows are now.
package join

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost/abi"
)

// Join is what a KasprJoin does, with the names of its topics.
type Join struct {
	Lefts, Rights Codecs
	KeepLeft      bool // left rows without a right one are results, too (left, outer)
	KeepRight     bool // so are right rows that no left row refers to (outer)
	Retractions   bool // a result that ends is sent once more, with the side that is gone as None
	Unchanged     bool // a row that is written with the value it has counts as changed

	RightTopic  string // to Right, by right key
	AnswerTopic string // to Answers, by partition of the left row
	Channel     string // results
}

// Codecs are how a table's rows are written.
type Codecs struct{ JSONKey, JSONValue bool }

// Table is one partition of a side's table, without what the batch in progress has changed.
type Table interface {
	Get(key []byte) ([]byte, error)
	// Scan goes through the keys that begin with prefix and are greater than after (nil: all), in order, until each says false.
	// Slices stay valid.
	Scan(prefix, after []byte, each func(key, value []byte) bool) error
}

// fanOutMax bounds the subscribers that one step answers when their right row has changed; the rest is another record's work.
const fanOutMax = 10_000

// Rows sends the right table's changes to the partition of their key.
func (j *Join) Rows(recs []record.Record) record.Result {
	s := step{result: record.Result{Done: len(recs)}}
	for i := range recs {
		s.at = int32(i)
		if r := &recs[i]; r.Key == nil {
			s.fail(errNoKey)
		} else {
			s.send(j.RightTopic, record.PartitionByKey, r.Key, request{row: r.Value, kind: kindRow}.encode())
		}
	}
	return s.result
}

// Left takes what became of left rows. foreign is the right key of a record that has a value, nil for none, and false where there is
// no telling: then everything stays as it was.
func (j *Join) Left(t Table, recs []record.Record, foreign func(i int) (key []byte, ok bool)) (record.Result, error) {
	s := newStep(t, len(recs))
	for i := range recs {
		s.at = int32(i)
		r := &recs[i]
		if r.Key == nil {
			s.fail(errNoKey)
			continue
		}
		var key []byte
		if r.Value != nil {
			var ok bool
			if key, ok = foreign(i); !ok {
				continue
			}
		}
		if err := s.skip(j.left(s, r, key)); err != nil {
			return record.Result{}, err
		}
	}
	return s.result, nil
}

func (j *Join) left(s *step, r *record.Record, key []byte) error {
	old, err := s.leftRow(r.Key)
	if err != nil {
		return err
	}
	ask := func(kind byte, of []byte) {
		s.send(j.RightTopic, record.PartitionByKey, of, request{kind: kind, partition: r.Partition, hash: hashOf(r.Value), left: r.Key}.encode())
	}
	if r.Value == nil {
		switch {
		case old == nil:
			return nil
		case old.key != nil && j.Retractions && old.sent != sentNothing:
			ask(kindRetract, old.key)
		case old.key != nil:
			ask(kindUnsubscribe, old.key)
		case j.Retractions && old.sent != sentNothing:
			j.emit(s, r, abi.JoinedLeft, nil, nil, nil)
		}
		s.put(r.Key, nil)
		return nil
	}
	row := leftRow{hash: hashOf(r.Value), key: key, value: r.Value}
	if old != nil {
		same := bytes.Equal(old.key, key) && (old.key == nil) == (key == nil)
		if !j.Unchanged && same && bytes.Equal(old.value, r.Value) {
			return nil
		}
		if !same && old.key != nil {
			ask(kindUnsubscribe, old.key)
		}
		row.sent = old.sent
	}
	if key != nil {
		ask(kindSubscribe, key)
	} else {
		j.missing(s, r, &row, abi.JoinedLeft)
	}
	s.put(r.Key, row.encode())
	return nil
}

// Answers takes what the right side says of left rows.
func (j *Join) Answers(t Table, recs []record.Record) (record.Result, error) {
	s := newStep(t, len(recs))
	for i := range recs {
		s.at = int32(i)
		if err := s.skip(j.answered(s, &recs[i])); err != nil {
			return record.Result{}, err
		}
	}
	return s.result, nil
}

func (j *Join) answered(s *step, r *record.Record) error {
	a, err := answerOf(r.Key)
	if err != nil {
		return err
	}
	left := record.Record{Key: a.left, Partition: r.Partition}
	row, err := s.leftRow(a.left)
	if err != nil {
		return err
	}
	if a.kind == answerRetract {
		if row == nil || row.sent == sentNothing { // else it is back, and has a result that is newer
			j.emit(s, &left, abi.JoinedLeft, nil, r.Value, a.key)
		}
		return nil
	}
	if row == nil || row.hash != a.hash || row.key == nil || !bytes.Equal(row.key, a.key) {
		return nil // what was asked for is not there any more
	}
	before := row.sent
	change := byte(abi.JoinedLeft)
	if a.kind == answerRight {
		change = abi.JoinedRight
	}
	if r.Value != nil {
		j.emit(s, &left, change, row.value, r.Value, row.key)
		if j.Retractions {
			row.sent = sentPair
		}
	} else {
		left.Value = row.value
		j.missing(s, &left, row, change)
	}
	if row.sent != before {
		s.put(a.left, row.encode())
	}
	return nil
}

// missing sends what a left row is without a right one.
func (j *Join) missing(s *step, r *record.Record, row *leftRow, change byte) {
	if !j.KeepLeft && row.sent != sentPair {
		return
	}
	j.emit(s, r, change, r.Value, nil, row.key)
	switch {
	case j.Retractions && j.KeepLeft:
		row.sent = sentAlone
	case j.Retractions:
		row.sent = sentNothing // the pair is taken back
	}
}

// emit sends a result: left and right are nil for None. r has the left key, if there is one, and the partition.
func (j *Join) emit(s *step, r *record.Record, change byte, left, right, rightKey []byte) {
	var key []byte
	if r.Key != nil {
		key = abi.AppendPart(nil, abi.Part{JSON: j.Lefts.JSONKey, Bytes: r.Key})
	}
	s.send(j.Channel, r.Partition, key, abi.AppendJoined(nil, change,
		abi.Part{JSON: j.Lefts.JSONValue, Bytes: left}, abi.Part{JSON: j.Rights.JSONValue, Bytes: right}, abi.Part{JSON: j.Rights.JSONKey, Bytes: rightKey}))
}

// Right takes changes of right rows, and what left rows ask for.
func (j *Join) Right(t Table, recs []record.Record) (record.Result, error) {
	s := newStep(t, len(recs))
	for i := range recs {
		s.at = int32(i)
		if err := s.skip(j.right(s, &recs[i])); err != nil {
			return record.Result{}, err
		}
	}
	return s.result, nil
}

func (j *Join) right(s *step, r *record.Record) error {
	if r.Key == nil {
		return errNoKey
	}
	q, err := requestOf(r.Value)
	if err != nil {
		return err
	}
	row, err := s.get(rowKey(r.Key))
	if err != nil {
		return err
	}
	switch q.kind {
	case kindRow:
		if q.row == nil && row == nil || !j.Unchanged && row != nil && q.row != nil && bytes.Equal(row, q.row) {
			return nil
		}
		s.put(rowKey(r.Key), q.row)
		return j.fanOut(s, r, q.row, nil)
	case kindContinue:
		return j.fanOut(s, r, row, q.after)
	case kindSubscribe:
		s.put(subscriber(r.Key, q.partition, q.left), q.hash[:])
		s.answer(j.AnswerTopic, q.partition, answer{kind: answerLeft, hash: q.hash, key: r.Key, left: q.left}, row)
		return nil
	}
	mine := subscriber(r.Key, q.partition, q.left)
	if q.kind == kindRetract {
		s.answer(j.AnswerTopic, q.partition, answer{kind: answerRetract, key: r.Key, left: q.left}, row)
	}
	if there, err := s.get(mine); err != nil || there == nil {
		return err
	}
	s.put(mine, nil)
	if !j.KeepRight || row == nil {
		return nil
	}
	others, _, err := s.scan(subscribers(r.Key), nil, 1)
	if err == nil && len(others) == 0 {
		j.emit(s, &record.Record{Partition: r.Partition}, abi.JoinedLeft, nil, row, r.Key)
	}
	return err
}

// fanOut tells the subscribers behind after what has become of their right row, or in an outer join the channel if there is none.
func (j *Join) fanOut(s *step, r *record.Record, row, after []byte) error {
	list, more, err := s.scan(subscribers(r.Key), after, s.fanOutMax)
	if err != nil {
		return err
	}
	for _, e := range list {
		a := answer{kind: answerRight, key: r.Key}
		var partition int32
		if partition, a.left, err = subscriberOf(e.key, r.Key); err != nil {
			return err
		}
		if len(e.value) != len(a.hash) {
			return fmt.Errorf("%w: a subscription's hash has %d bytes", errNotOurs, len(e.value))
		}
		a.hash = [hashSize]byte(e.value)
		s.answer(j.AnswerTopic, partition, a, row)
	}
	switch {
	case more:
		s.send(j.RightTopic, r.Partition, r.Key, request{kind: kindContinue, after: list[len(list)-1].key}.encode())
	case len(list) == 0 && after == nil && j.KeepRight && (row != nil || j.Retractions):
		j.emit(s, &record.Record{Partition: r.Partition}, abi.JoinedRight, nil, row, r.Key)
	}
	return nil
}

const hashSize = 16

// hashOf tells values of a left row apart.
func hashOf(value []byte) [hashSize]byte {
	sum := sha256.Sum256(value)
	return [hashSize]byte(sum[:])
}
