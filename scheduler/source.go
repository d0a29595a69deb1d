package scheduler

import (
	"fmt"
	"strconv"
	"strings"

	"kaspr.io/kaspr/engine/record"
)

// Source is the request that something comes from.
type Source struct {
	Partition int32 // of the requests; -1-n is partition n of the actions, where somebody else wrote one
	Offset    int64
	Time      int64 // the request's timestamp, in milliseconds
}

func sourceOf(r *record.Record) Source { return Source{r.Partition, r.Offset, r.Timestamp} }

// String is partition, offset and time, as in the header of an action.
func (s Source) String() string { return fmt.Sprintf("%d@%d@%d", s.Partition, s.Offset, s.Time) }

func (s *Source) parse(text string) error {
	parts := strings.Split(text, "@")
	if len(parts) != 3 {
		return fmt.Errorf("%q is not partition@offset@time", text)
	}
	partition, err1 := strconv.ParseInt(parts[0], 10, 32)
	offset, err2 := strconv.ParseInt(parts[1], 10, 64)
	at, err3 := strconv.ParseInt(parts[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || partition < 0 || offset < 0 {
		return fmt.Errorf("%q is not partition@offset@time", text)
	}
	*s = Source{int32(partition), offset, at}
	return nil
}

// doc is a source in JSON.
func (s *Settings) doc(from Source) map[string]any {
	topic, partition := s.Requests, from.Partition
	if partition < 0 {
		topic, partition = s.Actions, -1-partition
	}
	return map[string]any{"topic": topic, "partition": partition, "offset": from.Offset}
}
