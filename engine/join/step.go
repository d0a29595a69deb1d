package join

import (
	"errors"
	"slices"
	"strings"

	"kaspr.io/kaspr/engine/record"
)

// step is one batch in progress: what it makes, and what it has changed of its table so far.
type step struct {
	table     Table
	over      map[string][]byte // by key; nil: deleted
	at        int32             // record in progress
	result    record.Result
	fanOutMax int
}

func newStep(t Table, records int) *step {
	return &step{table: t, over: map[string][]byte{}, result: record.Result{Done: records}, fanOutMax: fanOutMax}
}

func (s *step) fail(err error) {
	s.result.Failures = append(s.result.Failures, record.Failure{Record: s.at, Kind: record.FailureDecodeValue, Type: "JoinError", Message: err.Error()})
}

// skip makes a record fail that is not of a join. Other errors are the table's.
func (s *step) skip(err error) error {
	if errors.Is(err, errNotOurs) {
		s.fail(err)
		return nil
	}
	return err
}

func (s *step) send(topic string, partition int32, key, value []byte) {
	s.result.Outputs = append(s.result.Outputs, record.Output{Record: s.at, Topic: topic, Partition: partition, Key: key, Value: value})
}

func (s *step) answer(topic string, partition int32, a answer, row []byte) {
	s.send(topic, partition, a.encode(), row)
}

func (s *step) get(key []byte) ([]byte, error) {
	if v, ok := s.over[string(key)]; ok {
		return v, nil
	}
	return s.table.Get(key)
}

func (s *step) put(key, value []byte) {
	s.over[string(key)] = value
	s.result.Changes = append(s.result.Changes, record.Change{Record: s.at, Partition: record.RecordPartition, Key: key, Value: value})
}

// leftRow is the row of a left key; nil when there is none.
func (s *step) leftRow(key []byte) (*leftRow, error) {
	b, err := s.get(key)
	if err != nil || b == nil {
		return nil, err
	}
	return leftRowOf(b)
}

type entry struct{ key, value []byte }

// scan is the entries with a prefix behind a key, at most limit of them, and whether there are more.
func (s *step) scan(prefix, after []byte, limit int) (list []entry, more bool, err error) {
	var changed []string
	for k := range s.over {
		if strings.HasPrefix(k, string(prefix)) && (after == nil || k > string(after)) {
			changed = append(changed, k)
		}
	}
	slices.Sort(changed)
	add := func(k, v []byte) bool {
		if len(list) == limit {
			more = true
			return false
		}
		list = append(list, entry{k, v})
		return true
	}
	// changes adds those before a key, or all.
	changes := func(before []byte) bool {
		for len(changed) > 0 && (before == nil || changed[0] < string(before)) {
			if v := s.over[changed[0]]; v != nil && !add([]byte(changed[0]), v) {
				return false
			}
			changed = changed[1:]
		}
		return true
	}
	full := false
	err = s.table.Scan(prefix, after, func(k, v []byte) bool {
		if !changes(k) {
			full = true
			return false
		}
		if len(changed) > 0 && changed[0] == string(k) {
			v, changed = s.over[changed[0]], changed[1:]
		}
		if v != nil && !add(k, v) {
			full = true
			return false
		}
		return true
	})
	if err == nil && !full {
		changes(nil)
	}
	return list, more, err
}
