package engine

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/scheduler"
	"kaspr.io/kaspr/wasmhost"
	"kaspr.io/kaspr/wasmhost/abi"
)

// administration is the app as its operators ask it (apphttp.Admin): where tables are, and what is in them.
type administration struct{ observer }

var _ apphttp.Admin = administration{}

// table is the index of a table; -1 when there is none.
func (a administration) table(name string) int {
	return slices.IndexFunc(a.plan.Tables, func(t plan.Table) bool { return t.Name == name })
}

// Routes is {address: {changelog: [partitions]}} of active owners, as the group's leader last said.
func (a administration) Routes(table string, of apphttp.Page) (any, string, bool) {
	tables, next, ok := a.tablesOf(table, of)
	if !ok {
		return nil, "", false
	}
	routes := map[string]map[string][]int32{}
	placed := a.placement.Load()
	if placed == nil {
		return routes, next, true
	}
	for _, t := range tables {
		for n, owner := range placed.placement.Owners[t.Name] {
			if owner < 0 || int(owner) >= len(placed.placement.Peers) {
				continue
			}
			address := shownAddress(placed.placement.Peers[owner].Address)
			if routes[address] == nil {
				routes[address] = map[string][]int32{}
			}
			routes[address][t.Changelog.Name] = append(routes[address][t.Changelog.Name], int32(n))
		}
	}
	return routes, next, true
}

// tablesOf is the table of a name; without one a page of all, by their names, and where the next one begins.
func (a administration) tablesOf(name string, of apphttp.Page) (list []*plan.Table, next string, ok bool) {
	for i := range a.plan.Tables {
		if t := &a.plan.Tables[i]; name == "" || t.Name == name {
			list = append(list, t)
		}
	}
	if name != "" || of.Limit == 0 {
		return list, "", name == "" || len(list) > 0
	}
	slices.SortFunc(list, func(a, b *plan.Table) int { return cmp.Compare(a.Name, b.Name) })
	list = slices.DeleteFunc(list, func(t *plan.Table) bool { return t.Name <= of.After && of.After != "" })
	if len(list) > of.Limit {
		list = list[:of.Limit]
		next = list[of.Limit-1].Name
	}
	return list, next, true
}

// shownAddress is the address of a process without its secret.
func shownAddress(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}

func (a administration) Owner(table, key string) (string, error) {
	i := a.table(table)
	if i < 0 {
		return "", apphttp.ErrNoTable
	}
	raw, err := keyBytes(&a.plan.Tables[i], key, false)
	if err != nil {
		return "", err
	}
	placed := a.placement.Load()
	if placed == nil || len(placed.placement.Owners[table]) == 0 {
		return "", fmt.Errorf("%w: the group has given no partitions yet", apphttp.ErrUnavailable)
	}
	owners := placed.placement.Owners[table]
	owner := owners[record.PartitionOf(raw, int32(len(owners)))]
	if owner < 0 || int(owner) >= len(placed.placement.Peers) {
		return "", fmt.Errorf("%w: the partition has no owner now", apphttp.ErrUnavailable)
	}
	return shownAddress(placed.placement.Peers[owner].Address), nil
}

func (a administration) Tables(table string, of apphttp.Page) (any, string, bool) {
	type described struct {
		Name string `json:"name"`
		Help string `json:"help"`
	}
	tables, next, ok := a.tablesOf(table, of)
	list := []described{}
	for _, t := range tables {
		list = append(list, described{t.Guest.Name, t.Guest.Help})
	}
	if table != "" && ok {
		return list[0], "", true
	}
	return list, next, ok
}

// scanned is an entry as Scan tells it: JSON as it is stored, what is not JSON as {"base64": …}.
type scanned struct {
	Partition int32           `json:"partition"`
	Key       json.RawMessage `json:"key"`
	Window    *int64          `json:"window,omitempty"` // its start, in milliseconds
	Value     json.RawMessage `json:"value"`
}

// Bounds of a page, of bytes: about how much is read of a partition at a time, and how much is answered. A page may be shorter than its limit.
const (
	scanBytes     = 256 << 10
	scanPageBytes = 4 << 20
)

func (a administration) Scan(ctx context.Context, table string, of apphttp.Page) (any, string, error) {
	i := a.table(table)
	if i < 0 {
		return nil, "", apphttp.ErrNoTable
	}
	if !a.seen.running.Load() {
		return nil, "", fmt.Errorf("%w: the app is starting", apphttp.ErrUnavailable)
	}
	number, after, err := parseCursor(of.After)
	if err != nil {
		return nil, "", apphttp.ErrBadAfter
	}
	t := &a.plan.Tables[i].Guest
	list, size, next := []scanned{}, 0, ""
	for ; number < a.counts[i]; number, after = number+1, nil {
		for more := true; more; {
			var entries []wasmhost.TableEntry
			if entries, more, err = a.page(ctx, i, number, nil, after, scanBytes); err != nil {
				return nil, "", fmt.Errorf("%w: %w", apphttp.ErrUnavailable, err)
			}
			for _, e := range entries {
				if len(list) == of.Limit || size > scanPageBytes {
					return list, next, nil
				}
				list, after = append(list, scannedOf(number, e, t)), e.Key
				size, next = size+len(e.Key)+len(e.Value), cursor(number, e.Key)
			}
			more = more && len(entries) > 0
		}
	}
	return list, "", nil
}

func scannedOf(number int32, e wasmhost.TableEntry, t *abi.Table) scanned {
	s := scanned{Partition: number, Value: jsonOf(e.Value, t.ValueSerializer)}
	key := e.Key
	if n := len(key) - 8; t.Window != nil && n >= 0 {
		start := int64(binary.BigEndian.Uint64(key[n:]))
		s.Window, key = &start, key[:n]
	}
	s.Key = jsonOf(key, t.KeySerializer)
	return s
}

// jsonOf is stored bytes as JSON.
func jsonOf(stored []byte, serializer string) json.RawMessage {
	if serializer != "raw" && json.Valid(stored) {
		return stored
	}
	text, err := json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString(stored)})
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return text
}

func (a administration) Value(ctx context.Context, table, key string, asJSON bool) ([]byte, error) {
	i := a.table(table)
	if i < 0 {
		return nil, apphttp.ErrNoTable
	}
	if !a.seen.running.Load() {
		return nil, fmt.Errorf("%w: the app is starting", apphttp.ErrUnavailable)
	}
	t := &a.plan.Tables[i]
	raw, err := keyBytes(t, key, asJSON)
	if err != nil {
		return nil, err
	}
	partition := record.RecordPartition
	if t.Guest.PartitionByKey {
		partition = record.PartitionOf(raw, a.counts[i])
	}
	value, _, err := a.lookup(ctx, i, partition, raw)
	switch {
	case errors.Is(err, wasmhost.ErrNotReady):
		return nil, fmt.Errorf("%w: %w", apphttp.ErrUnavailable, err)
	case err != nil || value == nil:
		return nil, err
	case t.Guest.ValueSerializer == "raw":
		return json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString(value)})
	}
	return value, nil
}

// Status is apphttp.Admin's: to operators all of it is told.
func (a administration) Status() any { return a.tell() }

// Rebalance is apphttp.App's and apphttp.Admin's.
func (a observer) Rebalance() error {
	if !a.seen.running.Load() {
		return fmt.Errorf("%w: the app is starting", apphttp.ErrUnavailable)
	}
	a.member.Rebalance()
	return nil
}

func (a administration) Schedule(q apphttp.ScheduleQuery) (int, any) {
	if a.schedule == nil {
		return 404, map[string]string{"error": "the app has no message scheduler: schedulerEnabled is false"}
	}
	return a.schedule.Schedule(q)
}

func (a administration) Steer(ctx context.Context, c apphttp.ScheduleChange) (string, error) {
	if a.schedule == nil {
		return "", fmt.Errorf("%w: the app has no message scheduler: schedulerEnabled is false", apphttp.ErrBadChange)
	}
	key := []byte(c.RequestID)
	var headers []record.Header
	if c.Action == string(scheduler.Replace) {
		if key = nil; c.Key != nil {
			key = []byte(*c.Key)
		}
		headers = []record.Header{{Key: scheduler.HeaderTo, Value: []byte(c.DeliverTo)}, {Key: scheduler.HeaderAt, Value: []byte(c.DeliverAt)}}
		for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
			headers = append(headers, record.Header{Key: name, Value: []byte(c.Headers[name])})
		}
	}
	return Steer(ctx, a.cfg, a.plan, a.log, scheduler.Verb(c.Action), c.RequestID, key, c.ValueBytes(), headers)
}

// keyBytes is a key as it stands in the changelog: in a raw table the text's bytes, in a JSON table the text as JSON, or JSON as it is given.
func keyBytes(t *plan.Table, key string, asJSON bool) ([]byte, error) {
	switch {
	case t.Guest.Window != nil:
		return nil, fmt.Errorf("%w: %s is windowed, its keys have windows", apphttp.ErrBadKey, t.Label)
	case t.Guest.KeySerializer == "raw":
		return []byte(key), nil
	case !asJSON:
		return asciiJSON(key), nil
	case !json.Valid([]byte(key)):
		return nil, fmt.Errorf("%w: %q is not JSON", apphttp.ErrBadKey, key)
	}
	return []byte(key), nil
}

// asciiJSON is a text as Python's json.dumps writes it, and so as it stands in changelogs: JSON of another style is another key.
func asciiJSON(s string) []byte {
	out := []byte{'"'}
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			out = append(out, '\\', byte(r))
		case r == '\n':
			out = append(out, `\n`...)
		case r == '\r':
			out = append(out, `\r`...)
		case r == '\t':
			out = append(out, `\t`...)
		case r == '\b':
			out = append(out, `\b`...)
		case r == '\f':
			out = append(out, `\f`...)
		case r >= ' ' && r < utf8.RuneSelf: // 0x7f too
			out = append(out, byte(r))
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return append(out, '"')
}
