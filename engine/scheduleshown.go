package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/wasmhost"
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

// schedulePage is a page of a list, of the partitions of all members. Those that nobody can be asked for now are named.
type schedulePage struct {
	Messages []shownMessage `json:"messages,omitempty"`
	Crons    []shownCron    `json:"crons,omitempty"`
	Next     string         `json:"next,omitempty"` // of the next page: after=
	Missing  []int32        `json:"missing"`
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
		return s.showID(q.ID, q.Crons)
	}
	number, from, after, err := s.cursor(q)
	if err != nil {
		return 400, map[string]string{"error": err.Error()}
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	page := schedulePage{Missing: []int32{}}
	left := q.Limit
	for n := number; n < s.settings.Partitions; n++ {
		if left == 0 {
			if page.Next == "" {
				page.Next = strconv.Itoa(int(n)) + ":"
			}
			break
		}
		if n > number {
			from, after = scheduler.Start, ""
		}
		table := asked{s.app, ctx, s.table, n}
		if q.Crons {
			list, err := scheduler.Crons(table, after, left)
			if errors.Is(err, wasmhost.ErrNotReady) {
				page.Missing = append(page.Missing, n)
				continue
			}
			if err != nil {
				return 500, map[string]string{"error": err.Error()}
			}
			for i := range list {
				page.Crons = append(page.Crons, shownCronOf(n, &list[i]))
			}
			if left -= len(list); left == 0 {
				page.Next = fmt.Sprintf("%d:%s", n, list[len(list)-1].ID)
			}
			continue
		}
		list, next, done, err := scheduler.List(table, from, left)
		if errors.Is(err, wasmhost.ErrNotReady) {
			page.Missing = append(page.Missing, n)
			continue
		}
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

func shownCronOf(partition int32, c *scheduler.CronEntry) shownCron {
	state := "active"
	if c.Paused {
		state = "paused"
	}
	return shownCron{partition, c.ID, state, c.Expression, c.Zone, c.Topic, shownTime(c.Next), shownTime(c.Last)}
}

// showID answers what an id stands for: a message, or a cron entry.
func (s *schedule) showID(id string, cron bool) (int, any) {
	n := record.PartitionOf([]byte(id), s.settings.Partitions)
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	table := asked{s.app, ctx, s.table, n}
	var shown any
	var err error
	if cron {
		var c *scheduler.CronEntry
		if c, err = scheduler.Cron(table, id); c != nil {
			shown = shownCronOf(n, c)
		}
	} else {
		var e *scheduler.Entry
		if e, err = scheduler.Get(table, id); e != nil {
			x := shownID{Partition: n, ID: id, State: e.State, DeliverAt: shownTime(e.Due), Since: shownTime(e.Since)}
			if e.Message != nil {
				x.DeliverTo = e.Message.Topic
			}
			shown = x
		}
	}
	switch {
	case errors.Is(err, wasmhost.ErrNotReady):
		return 503, map[string]any{"error": err.Error(), "missing": []int32{n}}
	case err != nil:
		return 500, map[string]string{"error": err.Error()}
	case shown == nil:
		return 404, map[string]string{"error": "nothing is known of this request id, or not any more"}
	}
	return 200, shown
}

// askTimeout bounds one question about what waits.
const askTimeout = 10 * time.Second

// asked is a partition of the scheduler's table as whoever owns it answers: what is committed of it (reads.go).
type asked struct {
	app    *App
	ctx    context.Context
	table  int
	number int32
}

func (a asked) Get(key []byte) ([]byte, error) {
	value, _, err := a.app.lookup(a.ctx, a.table, a.number, key)
	return value, err
}

func (a asked) MultiGet(keys [][]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		var err error
		if values[i], err = a.Get(key); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// askedPage is about how many bytes an owner is asked for at once.
const askedPage = 256 << 10

func (a asked) Scan(prefix, from []byte) scheduler.Iterator {
	it := &askedIterator{asked: a, prefix: prefix, from: from, more: true}
	if len(from) > 0 { // pages begin behind a key: a lesser one, and what lies before from is left out
		it.after = slices.Clone(from[:len(from)-1])
	}
	return it
}

// askedIterator asks for one page after the other.
type askedIterator struct {
	asked
	prefix, from, after []byte
	page                []wasmhost.TableEntry
	at                  wasmhost.TableEntry
	more                bool
	err                 error
}

func (it *askedIterator) Next() bool {
	for it.err == nil {
		for len(it.page) > 0 {
			it.at, it.page = it.page[0], it.page[1:]
			it.after = it.at.Key
			if bytes.Compare(it.at.Key, it.from) >= 0 {
				return true
			}
		}
		if !it.more {
			return false
		}
		it.page, it.more, it.err = it.app.page(it.ctx, it.table, it.number, it.prefix, it.after, askedPage)
	}
	return false
}

func (it *askedIterator) Key() []byte   { return it.at.Key }
func (it *askedIterator) Value() []byte { return it.at.Value }
func (it *askedIterator) Close() error  { return it.err }

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
