package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost"
)

// console is the app as the console's page sees it (apphttp.Console). Everything it tells is bounded, and read when it is asked for.
type console struct {
	*App
	peeks chan struct{} // capacity: how many requests may read topics at a time
}

const peeksMax = 2

func newConsole(a *App) console { return console{a, make(chan struct{}, peeksMax)} }

// overview is all but data: what the app is made of and what it does.
type overview struct {
	status
	Reason    string      `json:"reason,omitempty"` // why it does not do all of its work
	Parts     []agentPart `json:"parts"`
	Views     []viewPart  `json:"views"`
	Topics    []topicPart `json:"topics"`
	TableList []tablePlan `json:"tableList"`
	Commits   commitsPart `json:"commits"`
	Errors    int64       `json:"errors"` // failures there were, retried ones included
	Scheduler bool        `json:"scheduler"`
	Now       int64       `json:"now"` // milliseconds
}

// viewPart is a web view with what became of its requests.
type viewPart struct {
	View     string   `json:"view"`
	Method   string   `json:"method"`
	Path     string   `json:"path"`
	Requests int64    `json:"requests"`
	Failed   int64    `json:"failed"`
	Refused  int64    `json:"refused"` // with 503: no room, too late, a table not ready
	Answered int64    `json:"answered"`
	Seconds  float64  `json:"seconds"` // from arrival to response, of all answered
	Tables   []string `json:"tables"`
	Outputs  []string `json:"outputTopics"`
}

// agentPart is an agent in the topology, with what its code did.
type agentPart struct {
	agentStatus
	Inputs     []string        `json:"inputs"`
	Outputs    []string        `json:"outputTopics"`
	Tables     []string        `json:"tables"`
	Writer     bool            `json:"writer"` // applies writes to other partitions of a table; no agent of the manifests
	Calls      int64           `json:"calls"`
	Seconds    float64         `json:"seconds"`
	Instances  int64           `json:"instances"`
	Memory     int64           `json:"memory"`
	Restores   int64           `json:"restores"`
	Limits     limitHits       `json:"limits"`
	Operations []operationPart `json:"operations"`
}

type limitHits struct {
	Deadline int64 `json:"deadline"`
	Memory   int64 `json:"memory"`
	Trap     int64 `json:"trap"`
}

// operationPart is where Python's time went and records failed.
type operationPart struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"` // an estimate
	Failed  int64   `json:"failed"`
}

type topicPart struct {
	Name     string `json:"name"`
	Received int64  `json:"received"`
	Sent     int64  `json:"sent"`
	Internal bool   `json:"internal"` // the app's own: changelogs, channels
}

type tablePlan struct {
	Name     string `json:"name"`
	Help     string `json:"help"`
	Global   bool   `json:"global"`
	Windowed bool   `json:"windowed"`
	Keys     int64  `json:"keys"`               // estimate, of the partitions that are active here
	Internal bool   `json:"internal,omitempty"` // the engine's own, which no code can name
}

type commitsPart struct {
	Commits   int64   `json:"commits"`
	Rollbacks int64   `json:"rollbacks"`
	Seconds   float64 `json:"seconds"` // all commits took together
}

// Overview is apphttp.Console's.
func (c console) Overview() any {
	o := overview{
		status: observer{c.App}.tell(), Parts: []agentPart{}, Views: []viewPart{}, Topics: []topicPart{}, TableList: []tablePlan{}, Now: time.Now().UnixMilli(),
		Scheduler: c.App.schedule != nil,
	}
	_, o.Reason = c.state(o.Partitions)
	c.failures.mu.Lock()
	o.Errors = c.failures.n
	c.failures.mu.Unlock()
	for _, ag := range c.agents { // tasks, too, which the status has elsewhere
		o.Parts = append(o.Parts, c.part(ag, o.Partitions))
	}
	for _, v := range c.views {
		o.Views = append(o.Views, c.viewPart(v))
	}
	if !c.seen.running.Load() {
		return o
	}
	n := &c.commits.stats
	o.Commits = commitsPart{n.Commits.Load(), n.Rollbacks.Load(), float64(n.Took.d.micros.Load()) / 1e9}
	o.Topics = c.topicParts()
	keys := map[int]int64{}
	c.tables.each(func(p *tablePart) {
		if now := p.now.Load(); now != nil && (now.staged != nil || c.plan.Tables[p.table].Guest.Global) {
			keys[p.table] += now.store.Metrics().Keys
		}
	})
	for i := range c.plan.Tables {
		g := &c.plan.Tables[i].Guest
		o.TableList = append(o.TableList, tablePlan{g.Name, g.Help, g.Global, g.Window != nil, keys[i], g.Name == plan.TaskTable})
	}
	return o
}

func (c console) part(ag *agent, feeds []feedState) agentPart {
	p := agentPart{agentStatus: ag.status(feeds), Inputs: []string{}, Outputs: []string{}, Tables: []string{}, Writer: ag.plan.Writer, Operations: []operationPart{}}
	c.mu.Lock()
	for topic, readers := range c.readers {
		if slices.Contains(readers, ag) && ag.plan.Task == nil { // whose topic only says where it runs
			p.Inputs = append(p.Inputs, topic)
		}
	}
	c.mu.Unlock()
	if len(p.Inputs) == 0 && ag.plan.Task == nil {
		p.Inputs = append(p.Inputs, ag.plan.Topics...) // it has not subscribed yet
	}
	slices.Sort(p.Inputs)
	outputs := map[string]int64{}
	ag.stats.Sent.addTo(outputs) // topics that code chose, and that of dead letters once there is one
	for _, t := range ag.plan.OutputTopics {
		outputs[t] += 0
	}
	for _, t := range ag.plan.Channels {
		outputs[t] += 0
	}
	p.Outputs = append(p.Outputs, slices.Sorted(maps.Keys(outputs))...)
	tables := ag.plan.Tables
	if ag.plan.Task != nil {
		tables = ag.plan.Task.Tables // those of its code; what it ran is kept in one that is no code's
	}
	for _, u := range tables {
		p.Tables = append(p.Tables, c.plan.Tables[u.Table].Name)
	}
	failed := ag.stats.FailedAt.all()
	if code := ag.guest(); code != nil {
		n := code.Stats()
		p.Calls, p.Seconds, p.Instances, p.Memory, p.Restores = n.Calls.Load(), n.WasmTime().Seconds(), n.Instances.Load(), n.MemoryBytes.Load(), n.Restores.Load()
		p.Limits = limitHits{n.Deadlines.Load(), n.MemoryHits.Load(), n.Traps.Load()}
		for _, place := range code.Places() {
			p.Operations = append(p.Operations, operationPart{place.Where, place.Ran.Seconds(), failed[place.Where]})
			delete(failed, place.Where)
		}
	}
	for _, place := range slices.Sorted(maps.Keys(failed)) { // the selectors, and what the broker refused
		p.Operations = append(p.Operations, operationPart{Name: place, Failed: failed[place]})
	}
	return p
}

func (c console) viewPart(v *view) viewPart {
	n := &v.stats
	p := viewPart{
		View: v.plan.Name, Method: v.plan.Method, Path: v.plan.Path, Tables: []string{}, Outputs: []string{}, Requests: n.Requests.Load(),
		Refused: n.Refused.Load() + n.Late.Load() + n.NotReady.Load(), Answered: int64(n.Took.count()), Seconds: float64(n.Took.d.micros.Load()) / 1e9,
	}
	for _, t := range v.tables {
		p.Tables = append(p.Tables, c.plan.Tables[t].Name)
	}
	outputs := map[string]int64{}
	n.Sent.addTo(outputs) // topics that code chose
	for _, t := range v.plan.OutputTopics {
		outputs[t] += 0
	}
	p.Outputs = append(p.Outputs, slices.Sorted(maps.Keys(outputs))...)
	for kind := range n.FailedBy {
		p.Failed += n.FailedBy[kind].Load()
	}
	return p
}

// topicParts is every topic the app reads or writes, by name.
func (c console) topicParts() []topicPart {
	parts := map[string]*topicPart{}
	part := func(name string) *topicPart {
		if parts[name] == nil {
			parts[name] = &topicPart{Name: name}
		}
		return parts[name]
	}
	c.mu.Lock()
	for topic := range c.readers {
		part(topic)
	}
	c.mu.Unlock()
	for _, ag := range c.agents {
		for topic, n := range ag.stats.Received.all() {
			part(topic).Received += n
		}
		for topic, n := range ag.stats.Sent.all() {
			part(topic).Sent += n
		}
		for _, topic := range ag.plan.OutputTopics {
			part(topic)
		}
	}
	for _, v := range c.views {
		for topic, n := range v.stats.Sent.all() {
			part(topic).Sent += n
		}
		for _, topic := range v.plan.OutputTopics {
			part(topic)
		}
	}
	logged := map[string]int64{}
	c.commits.stats.Updated.addTo(logged)
	c.commits.stats.Deleted.addTo(logged)
	for i := range c.plan.Tables {
		t := &c.plan.Tables[i]
		p := part(t.Changelog.Name)
		p.Sent, p.Internal = logged[t.Changelog.Name], true
		if t.Writes.Name != "" {
			part(t.Writes.Name).Internal = true
		}
	}
	for i := range c.plan.Own {
		part(c.plan.Own[i].Name).Internal = true
	}
	list := []topicPart{}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		list = append(list, *parts[name])
	}
	return list
}

// Failures is apphttp.Console's.
func (c console) Failures() any { return c.failures.last() }

// scheduledPage is a page of what waits in the message scheduler, of all partitions: messages by time, or crons by id.
type scheduledPage struct {
	Messages []scheduledMessage `json:"messages,omitzero"`
	Crons    []scheduledCron    `json:"crons,omitzero"`
	Next     string             `json:"next,omitempty"` // where the next page begins; empty at the end
	Missing  []int32            `json:"missing"`        // partitions that nobody can be asked for now
}

type scheduledMessage struct {
	Partition int32         `json:"partition"`
	Due       int64         `json:"due"`   // milliseconds
	Place     string        `json:"place"` // among all messages; no other has it
	ID        string        `json:"id"`
	Cron      string        `json:"cron"` // of a cron's next firing
	Topic     string        `json:"topic"`
	Key       *shownBytesOf `json:"key"`
	Value     *shownBytesOf `json:"value"`
}

type scheduledCron struct {
	Partition  int32  `json:"partition"`
	ID         string `json:"id"`
	Paused     bool   `json:"paused"`
	Expression string `json:"expression"`
	Zone       string `json:"zone"`
	Topic      string `json:"topic"`
	Next       int64  `json:"next"`
	Last       int64  `json:"last"`
}

// Scheduled is apphttp.Console's: at most pageEntries messages, or crons, behind a place that a page before gave as next.
func (c console) Scheduled(crons bool, after string) (any, error) {
	if !c.seen.running.Load() {
		return nil, apphttp.ErrNotReady
	}
	s := c.App.schedule
	if s == nil {
		return scheduledPage{Missing: []int32{}}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	table := func(number int32) scheduler.Reader { return asked{c.App, ctx, s.table, number} }
	if crons {
		return cronsPage(s.settings.Partitions, table, after)
	}
	return messagesPage(s.settings.Partitions, table, after)
}

// place is where a message stands among those of all partitions: by time, then partition, then order in it.
type place struct {
	due    int64
	number int32
	seq    uint64
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.due, q.due), cmp.Compare(p.number, q.number), cmp.Compare(p.seq, q.seq))
}

// behind is where what follows p begins in a partition.
func (p place) behind(number int32) scheduler.Location {
	switch at := (scheduler.Location{Due: p.due}); {
	case number == p.number:
		at.Seq = p.seq + 1
		return at
	case number < p.number:
		at.Due++
		return at
	default:
		return at
	}
}

func (p place) String() string { return fmt.Sprintf("%d:%d:%d", p.due, p.number, p.seq) }

func parsePlace(text string) (place, error) {
	due, rest, _ := strings.Cut(text, ":")
	number, seq, _ := strings.Cut(rest, ":")
	d, err1 := strconv.ParseInt(due, 10, 64)
	n, err2 := strconv.ParseInt(number, 10, 32)
	q, err3 := strconv.ParseUint(seq, 10, 64)
	if errors.Join(err1, err2, err3) != nil || n < 0 {
		return place{}, fmt.Errorf("after is no place among the messages: %w", apphttp.ErrBadRequest)
	}
	return place{d, int32(n), q}, nil
}

func messagesPage(partitions int32, table func(int32) scheduler.Reader, after string) (any, error) {
	page := scheduledPage{Messages: []scheduledMessage{}, Missing: []int32{}}
	var behind place
	if after != "" {
		var err error
		if behind, err = parsePlace(after); err != nil {
			return nil, err
		}
	}
	type row struct {
		at place
		scheduler.Scheduled
	}
	var rows []row
	var unread *place // the first that was not read: what is behind it has to wait for the next page
	for number := range partitions {
		from := scheduler.Start
		if after != "" {
			from = behind.behind(number)
		}
		list, next, done, err := scheduler.List(table(number), from, pageEntries) // bounded in bytes, too
		if errors.Is(err, wasmhost.ErrNotReady) {
			page.Missing = append(page.Missing, number)
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, x := range list {
			rows = append(rows, row{place{x.At.Due, number, x.At.Seq}, x})
		}
		if at := (place{next.Due, number, next.Seq}); !done && (unread == nil || at.compare(*unread) < 0) {
			unread = &at
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return a.at.compare(b.at) })
	for i := range rows {
		x := &rows[i]
		if len(page.Messages) == pageEntries || unread != nil && x.at.compare(*unread) >= 0 {
			break
		}
		m := scheduledMessage{Partition: x.at.number, Due: x.at.due, Place: x.at.String(), Cron: shownText(x.Cron)}
		if x := x.Message; x != nil {
			m.ID, m.Topic, m.Key, m.Value = shownText(x.ID), x.Topic, shownOf(x.Key), shownOf(x.Value)
		}
		page.Messages = append(page.Messages, m)
	}
	if n := len(page.Messages); n > 0 && (n < len(rows) || unread != nil) {
		page.Next = page.Messages[n-1].Place
	}
	return page, nil
}

func cronsPage(partitions int32, table func(int32) scheduler.Reader, after string) (any, error) {
	page := scheduledPage{Crons: []scheduledCron{}, Missing: []int32{}}
	for number := range partitions {
		list, err := scheduler.Crons(table(number), after, pageEntries+1)
		if errors.Is(err, wasmhost.ErrNotReady) {
			page.Missing = append(page.Missing, number)
			continue
		}
		if err != nil {
			return nil, err
		}
		for i := range list {
			x := &list[i]
			page.Crons = append(page.Crons, scheduledCron{number, x.ID, x.Paused, x.Expression, x.Zone, x.Topic, x.Next, x.Last})
		}
	}
	slices.SortFunc(page.Crons, func(a, b scheduledCron) int { return cmp.Compare(a.ID, b.ID) })
	if len(page.Crons) > pageEntries {
		page.Crons = page.Crons[:pageEntries]
		page.Next = page.Crons[pageEntries-1].ID
	}
	for i := range page.Crons {
		page.Crons[i].ID = shownText(page.Crons[i].ID)
	}
	return page, nil
}

// tablePage is some entries of a table, in the order of partitions and keys.
type tablePage struct {
	Entries []tableEntry `json:"entries"`
	Looked  int          `json:"looked"`         // entries that were read for it
	Next    string       `json:"next,omitempty"` // where the next page begins; empty at the end
}

type tableEntry struct {
	Partition int32         `json:"partition"`
	Key       *shownBytesOf `json:"key"`
	Window    *int64        `json:"window,omitempty"` // its start, in milliseconds
	Value     *shownBytesOf `json:"value"`
}

// Bounds of a page: entries shown, and looked at when there is a search.
const (
	pageEntries = 50
	pageLooked  = 20_000
	pageTime    = 2 * time.Second
)

// Table is apphttp.Console's: a page of what the stores here have, committed. With search, entries that have the text in key or value.
func (c console) Table(ctx context.Context, name, search, from string) (any, error) {
	if !c.seen.running.Load() {
		return nil, apphttp.ErrNotReady
	}
	table := slices.IndexFunc(c.plan.Tables, func(t plan.Table) bool { return t.Name == name })
	if table < 0 {
		return nil, fmt.Errorf("table %q: %w", name, apphttp.ErrUnknown)
	}
	number, after, err := parseCursor(from)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pageTime)
	defer cancel()
	page := tablePage{Entries: []tableEntry{}}
	parts := *c.tables.parts.Load()
	windowed := c.plan.Tables[table].Guest.Window != nil
	found := searchOf(search)
	for ; int(number) < len(parts[table]); number, after = number+1, nil {
		now := parts[table][number].now.Load()
		if now == nil {
			continue // not here
		}
		r := state.Range{}
		if after != nil {
			r.From = append(slices.Clone(after), 0)
		}
		it := now.store.Scan(r)
		full := false
		for it.Next() {
			key, value := it.Key(), it.Value()
			page.Looked++
			if found(key) || found(value) {
				page.Entries = append(page.Entries, entryOf(number, key, value, windowed))
			}
			if full = len(page.Entries) == pageEntries || page.Looked == pageLooked || ctx.Err() != nil; full {
				page.Next = cursor(number, key)
				break
			}
		}
		if err := it.Close(); err != nil && !errors.Is(err, state.ErrClosed) { // closed: it has just left
			return nil, err
		}
		if full {
			break
		}
	}
	return page, nil
}

// searchOf finds a text in stored bytes, also as JSON has it.
func searchOf(text string) func(stored []byte) bool {
	plain, escaped := []byte(text), asciiJSON(text)
	escaped = escaped[1 : len(escaped)-1]
	return func(stored []byte) bool { return bytes.Contains(stored, plain) || bytes.Contains(stored, escaped) }
}

func entryOf(number int32, key, value []byte, windowed bool) tableEntry {
	e := tableEntry{Partition: number, Value: shownOf(value)}
	if n := len(key) - 8; windowed && n >= 0 {
		start := int64(binary.BigEndian.Uint64(key[n:]))
		e.Window, key = &start, key[:n]
	}
	e.Key = shownOf(key)
	return e
}

// cursor is a place in a table: the partition and the key before.
func cursor(number int32, key []byte) string {
	return base64.RawURLEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, uint32(number)), key...))
}

func parseCursor(text string) (number int32, after []byte, err error) {
	if text == "" {
		return 0, nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 4 || int32(binary.BigEndian.Uint32(b)) < 0 {
		return 0, nil, fmt.Errorf("from is no place in a table: %w", apphttp.ErrBadRequest)
	}
	return int32(binary.BigEndian.Uint32(b)), b[4:], nil
}

// topicPage is some records of a topic.
type topicPage struct {
	Records []shownRec       `json:"records"` // by time
	Next    map[string]int64 `json:"next"`    // offset of the next page by partition
}

// Bounds of one look at a topic.
const (
	topicRecords    = 50
	topicPartitions = 100
	topicTime       = 1500 * time.Millisecond
)

// Topic is apphttp.Console's: committed records from offsets on, by partition; nil: the last ones. Only topics of the app are read.
func (c console) Topic(ctx context.Context, name string, from map[int32]int64) (any, error) {
	if !c.seen.running.Load() {
		return nil, apphttp.ErrNotReady
	}
	if !slices.ContainsFunc(c.topicParts(), func(t topicPart) bool { return t.Name == name }) {
		return nil, fmt.Errorf("topic %q is none of the app's: %w", name, apphttp.ErrUnknown)
	}
	select {
	case c.peeks <- struct{}{}:
		defer func() { <-c.peeks }()
	default:
		return nil, apphttp.ErrBusy
	}
	opts, err := c.brokerOptions()
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, 2*endsEvery)
	defer cancel()
	ends, err := c.admin.EndOffsets(asking, name)
	if err != nil {
		return nil, err
	}
	page := topicPage{Records: []shownRec{}, Next: map[string]int64{}}
	at := map[record.Partition]broker.Span{}
	some := max(1, int64(topicRecords/max(1, len(ends[name]))))
	for n, end := range ends[name] {
		if n >= topicPartitions {
			continue
		}
		offset, ok := from[n]
		if !ok || offset < 0 || offset > end {
			offset = max(0, end-2*some) // ends of transactions have offsets, too
		}
		page.Next[number(n)] = offset
		if offset < end {
			at[record.Partition{Topic: name, Number: n}] = broker.Span{Start: offset, End: end}
		}
	}
	if len(at) == 0 {
		return page, nil
	}
	reading, stop := context.WithTimeout(ctx, topicTime)
	defer stop()
	recs, next, err := broker.Peek(reading, opts, at, topicRecords)
	if err != nil {
		return nil, err
	}
	for p, offset := range next {
		page.Next[number(p.Number)] = offset
	}
	for i := range recs {
		page.Records = append(page.Records, shownRecord(&recs[i]))
	}
	slices.SortStableFunc(page.Records, func(a, b shownRec) int { return cmp.Compare(a.Timestamp, b.Timestamp) })
	return page, nil
}
