package engine

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/scheduler"
)

// What waits, as /schedule tells it: without keys, values and headers.

type shownMessage struct {
	Partition int32  `json:"partition"`
	DeliverAt string `json:"deliverAt"`
	DeliverTo string `json:"deliverTo,omitempty"`
	ID        string `json:"requestId,omitempty"`
	Cron      string `json:"cron,omitempty"` // of the entry whose next firing it is
	Attempts  uint64 `json:"attempts,omitempty"`
	Bytes     int    `json:"bytes,omitempty"`
}

type shownCron struct {
	Partition  int32  `json:"partition"`
	ID         string `json:"requestId"`
	State      string `json:"state"`
	Expression string `json:"expression"`
	Zone       string `json:"zone,omitempty"`
	DeliverTo  string `json:"deliverTo"`
	Next       string `json:"next,omitempty"`
	Last       string `json:"last,omitempty"`
}

type shownID struct {
	Partition int32  `json:"partition"`
	ID        string `json:"requestId"`
	State     string `json:"state"`
	DeliverAt string `json:"deliverAt,omitempty"`
	DeliverTo string `json:"deliverTo,omitempty"`
	Since     string `json:"since"`
}

// schedulePage is a page of a list. Partitions that are on other members are named: their rows are to be asked for there.
type schedulePage struct {
	Messages  []shownMessage `json:"messages,omitempty"`
	Crons     []shownCron    `json:"crons,omitempty"`
	Next      string         `json:"next,omitempty"` // of the next page: after=
	Elsewhere []int32        `json:"elsewhere"`
}

func shownTime(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// Schedule answers a request for what waits (apphttp.Options.Schedule).
func (s *schedule) Schedule(q apphttp.ScheduleQuery) (int, any) {
	if !s.app.seen.running.Load() {
		return 503, map[string]string{"error": "the app is starting"}
	}
	if q.ID != "" {
		return s.showID(q.ID)
	}
	number, from, after, err := s.cursor(q)
	if err != nil {
		return 400, map[string]string{"error": err.Error()}
	}
	page := schedulePage{Elsewhere: []int32{}}
	left := q.Limit
	for n := range s.settings.Partitions {
		table, ok := s.reader(n)
		switch {
		case !ok:
			page.Elsewhere = append(page.Elsewhere, n)
			continue
		case n < number || left == 0:
			if n > number && left == 0 && page.Next == "" {
				page.Next = strconv.Itoa(int(n)) + ":"
			}
			continue
		case n > number:
			from, after = scheduler.Start, ""
		}
		if q.Crons {
			list, err := scheduler.Crons(table, after, left)
			if err != nil {
				return 500, map[string]string{"error": err.Error()}
			}
			for _, c := range list {
				state := "active"
				if c.Paused {
					state = "paused"
				}
				page.Crons = append(page.Crons, shownCron{n, c.ID, state, c.Expression, c.Zone, c.Topic, shownTime(c.Next), shownTime(c.Last)})
			}
			if left -= len(list); left == 0 {
				page.Next = fmt.Sprintf("%d:%s", n, list[len(list)-1].ID)
			}
			continue
		}
		list, next, done, err := scheduler.List(table, from, left)
		if err != nil {
			return 500, map[string]string{"error": err.Error()}
		}
		for _, x := range list {
			m := shownMessage{Partition: n, DeliverAt: shownTime(x.At.Due), Cron: x.Cron}
			if x.Message != nil {
				m.DeliverTo, m.ID, m.Attempts = x.Message.Topic, x.Message.ID, x.Message.Attempts
				m.Bytes = len(x.Message.Key) + len(x.Message.Value)
			}
			page.Messages = append(page.Messages, m)
		}
		if left -= len(list); !done {
			left = 0 // a page is bounded in bytes, too
			page.Next = fmt.Sprintf("%d:%d:%d", n, next.Due, next.Seq)
		}
	}
	return 200, page
}

func (s *schedule) showID(id string) (int, any) {
	n := record.PartitionOf([]byte(id), s.settings.Partitions)
	table, ok := s.reader(n)
	if !ok {
		return 404, map[string]any{"error": "the request id belongs to a partition of another member", "elsewhere": []int32{n}}
	}
	e, err := scheduler.Get(table, id)
	switch {
	case err != nil:
		return 500, map[string]string{"error": err.Error()}
	case e == nil:
		return 404, map[string]string{"error": "nothing is known of this request id, or not any more"}
	}
	shown := shownID{Partition: n, ID: id, State: e.State, DeliverAt: shownTime(e.Due), Since: shownTime(e.Since)}
	if e.Message != nil {
		shown.DeliverTo = e.Message.Topic
	}
	return 200, shown
}

func (s *schedule) reader(number int32) (rows, bool) {
	_, staged := s.app.tables.part(s.table, number).Store()
	return rows{staged}, staged != nil
}

// cursor is where a page begins: partition, and a place among its messages or crons.
func (s *schedule) cursor(q apphttp.ScheduleQuery) (number int32, from scheduler.Location, after string, err error) {
	from = scheduler.Start
	if q.After == "" {
		return 0, from, "", nil
	}
	partition, rest, ok := strings.Cut(q.After, ":")
	n, err := strconv.ParseInt(partition, 10, 32)
	if !ok || err != nil || n < 0 {
		return 0, from, "", fmt.Errorf("after=%q is not what a page gave as next", q.After)
	}
	if q.Crons || rest == "" {
		return int32(n), from, rest, nil
	}
	due, seq, ok := strings.Cut(rest, ":")
	d, err1 := strconv.ParseInt(due, 10, 64)
	sq, err2 := strconv.ParseUint(seq, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return 0, from, "", fmt.Errorf("after=%q is not what a page gave as next", q.After)
	}
	return int32(n), scheduler.Location{Due: d, Seq: sq}, "", nil
}
