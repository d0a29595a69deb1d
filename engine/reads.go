package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/wasmhost"
)

// Reads of tables that are not made by a step: by web views and the table endpoints. What is here is read at once; for what is not the
// owner is asked over HTTP. Owners are known from the group's last assignment (broker.Placement), which may be old: so the process
// that is asked answers only for what it surely owns (still), and says which partitions those are.
//
// Invariant: that a key is not there is said only when the owner of every partition it may be in has said so; anything less is an
// error. While partitions move, owners are asked again for a while.

// How long to wait for partitions that move, and between two tries.
const (
	movingWait  = 2 * time.Second
	movingPause = 25 * time.Millisecond
)

// owners is who owns what, as the group's leader last said.
type owners struct {
	placement broker.Placement
	self      string
}

// owner is the address of the process that owns a partition; "" when it is this one, or nobody known.
func (o *owners) owner(table string, number int32) string {
	if o == nil {
		return ""
	}
	list := o.placement.Owners[table]
	if int(number) >= len(list) || list[number] < 0 || int(list[number]) >= len(o.placement.Peers) {
		return ""
	}
	if p := o.placement.Peers[list[number]]; p.Instance != o.self {
		return p.Address
	}
	return ""
}

// lookup reads a key of a partition, or with record.RecordPartition wherever it is, and says where it is or belongs.
func (a *App) lookup(ctx context.Context, table int, partition int32, key []byte) (value []byte, at int32, err error) {
	err = a.moving(ctx, table, func(parts []*tablePart) error {
		if partition == record.RecordPartition {
			value, at, err = a.lookupAll(ctx, parts, key)
		} else {
			at = partition
			value, _, err = a.lookupIn(ctx, parts, []int32{partition}, key)
		}
		return err
	})
	if err != nil && a.cfg.Web.StaleReads {
		if parts := a.partsOf(table); parts != nil {
			if value, at, ok := a.lookupStale(ctx, parts, partition, key); ok {
				return value, at, nil
			}
		}
	}
	return value, at, err
}

// moving tries a read until it succeeds, or partitions have been moving for too long.
func (a *App) moving(ctx context.Context, table int, read func(parts []*tablePart) error) error {
	until := time.Now().Add(movingWait)
	for {
		parts := a.partsOf(table)
		if parts == nil {
			return &notReadyError{"tables cannot be read yet: the app is starting"}
		}
		err := read(parts)
		if !errors.Is(err, wasmhost.ErrNotReady) || time.Now().After(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(movingPause):
		}
	}
}

// partsOf is a table's partitions; nil before there are any.
func (a *App) partsOf(table int) []*tablePart {
	if a.tables == nil {
		return nil
	}
	if all := a.tables.parts.Load(); all != nil {
		return (*all)[table]
	}
	return nil
}

// lookupAll asks for a key in the partition its hash gives, and then in all others.
func (a *App) lookupAll(ctx context.Context, parts []*tablePart, key []byte) ([]byte, int32, error) {
	home := record.PartitionOf(key, int32(len(parts)))
	value, _, err := a.lookupIn(ctx, parts, []int32{home}, key)
	if value != nil || err != nil {
		return value, home, err
	}
	others := make([]int32, 0, len(parts)-1)
	for n := range int32(len(parts)) {
		if n != home {
			others = append(others, n)
		}
	}
	value, at, err := a.lookupIn(ctx, parts, others, key)
	if value == nil {
		at = home
	}
	return value, at, err
}

// lookupIn asks for a key in each of the partitions, of which the least that has it counts.
func (a *App) lookupIn(ctx context.Context, parts []*tablePart, numbers []int32, key []byte) (value []byte, at int32, err error) {
	var here, missing []int32
	by := map[string][]int32{} // partitions by the address of their owner
	placed := a.placement.Load()
	table := ""
	for _, n := range numbers {
		p := parts[n]
		table = p.of.plan[p.table].Name
		v, err := a.readOwn(p, key)
		switch {
		case err == nil && v != nil:
			here, value, at = append(here, n), v, n
		case err == nil:
		case !errors.Is(err, wasmhost.ErrElsewhere):
			return nil, 0, err
		default:
			address := placed.owner(table, n)
			if address == "" {
				missing = append(missing, n)
				continue
			}
			by[address] = append(by[address], n)
		}
		if len(here) > 0 {
			break // in order, so it is the least of those that are here
		}
	}
	if len(here) > 0 && len(by) == 0 {
		return value, at, nil
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	var why error
	for address, asked := range by {
		asking.Go(func() {
			v, in, checked, err := a.ask(ctx, address, table, asked, key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				why = err
				missing = append(missing, asked...)
			case v != nil:
				if value == nil || in < at {
					value, at = v, in
				}
			default:
				for _, n := range asked {
					if !slices.Contains(checked, n) {
						missing = append(missing, n)
					}
				}
			}
		})
	}
	asking.Wait()
	if value == nil && len(missing) > 0 {
		return nil, 0, a.unread(table, missing, why)
	}
	return value, at, nil
}

// unread says which partitions nobody could be asked for.
func (a *App) unread(table string, missing []int32, why error) error {
	slices.Sort(missing)
	text := fmt.Sprintf("table %s: partitions %v cannot be read now, they are being restored or move to another process", table, missing)
	if why != nil {
		a.log.Debug("ask another process for a table", "table", table, "err", why)
	}
	return &notReadyError{text}
}

// staleWait is how long other processes are given to read their copies: by then the owner has been waited for.
const staleWait = time.Second

// lookupStale reads a key of whatever copies there are, here and then in other processes, if they are of all partitions it may be in.
func (a *App) lookupStale(ctx context.Context, parts []*tablePart, partition int32, key []byte) (value []byte, at int32, ok bool) {
	var left []int32 // partitions of which no copy has been read
	for _, p := range parts {
		if partition != record.RecordPartition && p.number != partition {
			continue
		}
		v, err := readCopy(p, key)
		if err != nil {
			left = append(left, p.number)
		} else if v != nil && value == nil {
			value, at = v, p.number
		}
	}
	if value == nil && len(left) > 0 {
		table := parts[0].of.plan[parts[0].table].Name
		a.askCopies(ctx, func(ctx context.Context, address string) (done func()) {
			v, in, checked, err := a.askFor(ctx, staleGetAsked, address, table, left, key)
			return func() {
				switch {
				case err != nil:
					a.log.Debug("ask another process for a copy of a table", "table", table, "err", err)
				case v != nil && (value == nil || in < at):
					value, at = v, in
				case v == nil:
					left = slices.DeleteFunc(slices.Clone(left), func(n int32) bool { return slices.Contains(checked, n) })
				}
			}
		})
	}
	if value == nil {
		at = record.PartitionOf(key, int32(len(parts)))
	}
	return value, at, value != nil || len(left) == 0
}

// askCopies asks all other processes at a time, and then has each answer taken, one after the other.
func (a *App) askCopies(ctx context.Context, ask func(ctx context.Context, address string) (done func())) {
	placed := a.placement.Load()
	if placed == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, staleWait)
	defer cancel()
	answers := make([]func(), len(placed.placement.Peers))
	var asking sync.WaitGroup
	for i, p := range placed.placement.Peers {
		if p.Instance != placed.self && p.Address != "" {
			asking.Go(func() { answers[i] = ask(ctx, p.Address) })
		}
	}
	asking.Wait()
	for _, done := range answers {
		if done != nil {
			done()
		}
	}
}

// readCopy reads a key of what is here of a partition, be it behind; wasmhost.ErrElsewhere when nothing is.
func readCopy(p *tablePart, key []byte) ([]byte, error) {
	now := p.now.Load()
	if now == nil {
		return nil, wasmhost.ErrElsewhere
	}
	return now.store.Get(key)
}

// pageCopy is the same for a page.
func pageCopy(p *tablePart, prefix, after []byte, most int) ([]wasmhost.TableEntry, bool, error) {
	now := p.now.Load()
	if now == nil {
		return nil, false, wasmhost.ErrElsewhere
	}
	return scanStore(now, prefix, after, most)
}

// pageStale reads entries of a partition of a copy, here or in another process.
func (a *App) pageStale(ctx context.Context, p *tablePart, prefix, after []byte, most int) (entries []wasmhost.TableEntry, more, ok bool) {
	if entries, more, err := pageCopy(p, prefix, after, most); err == nil {
		return entries, more, true
	}
	name := p.of.plan[p.table].Name
	a.askCopies(ctx, func(ctx context.Context, address string) (done func()) {
		list, rest, err := a.askPageFor(ctx, stalePageAsked, address, name, p.number, prefix, after, most)
		return func() {
			if err == nil && !ok {
				entries, more, ok = list, rest, true
			}
		}
	})
	return entries, more, ok
}

// page reads entries of one partition, from its owner.
func (a *App) page(ctx context.Context, table int, partition int32, prefix, after []byte, most int) (entries []wasmhost.TableEntry, more bool, err error) {
	err = a.moving(ctx, table, func(parts []*tablePart) error {
		if partition < 0 || int(partition) >= len(parts) {
			entries, more = nil, false
			return nil
		}
		p := parts[partition]
		if entries, more, err = a.pageOwn(p, prefix, after, most); !errors.Is(err, wasmhost.ErrElsewhere) {
			return err
		}
		name := p.of.plan[p.table].Name
		address := a.placement.Load().owner(name, partition)
		if address == "" {
			return a.unread(name, []int32{partition}, nil)
		}
		if entries, more, err = a.askPage(ctx, address, name, partition, prefix, after, most); err != nil {
			return a.unread(name, []int32{partition}, err)
		}
		return nil
	})
	if err != nil && a.cfg.Web.StaleReads {
		if parts := a.partsOf(table); parts != nil {
			if entries, more, ok := a.pageStale(ctx, parts[partition], prefix, after, most); ok {
				return entries, more, nil
			}
		}
	}
	return entries, more, err
}

// ---- between processes ------------------------------------------------------------------------------------------------

// A question is: one byte of what is asked, the table's name, and then
//
//	get:  count and numbers of the partitions, key        answer: 1, partition, value; or 0, count and numbers of those without it
//	page: partition, most, prefix, after (with its length + 1; 0: from the start)
//	      answer: 1, 1 if there is more, count and the pairs of key and value; or 0: it is not read here
//
// Numbers are uvarints, texts have their length before them. The stale ones ask for copies, too, be they behind.
const (
	getAsked       = 'g'
	pageAsked      = 'p'
	staleGetAsked  = 'G'
	stalePageAsked = 'P'

	askedPartitionsMax = 1 << 16
)

var errQuestion = errors.New("malformed question or answer about a table")

// ask asks another process for a key in partitions it should own.
func (a *App) ask(ctx context.Context, address, table string, partitions []int32, key []byte) (value []byte, at int32, checked []int32, err error) {
	return a.askFor(ctx, getAsked, address, table, partitions, key)
}

func (a *App) askFor(ctx context.Context, what byte, address, table string, partitions []int32, key []byte) (value []byte, at int32, checked []int32, err error) {
	q := appendBytes([]byte{what}, []byte(table))
	q = appendNumbers(q, partitions)
	answer, err := a.peers.Read(ctx, address, appendBytes(q, key))
	if err != nil {
		return nil, 0, nil, err
	}
	r := fields{b: answer}
	if r.number(1) == 1 {
		at = int32(r.number(askedPartitionsMax))
		value = r.bytes()
		if value == nil || !slices.Contains(partitions, at) {
			r.bad = true
		}
	} else {
		checked = r.numbers()
	}
	if r.bad {
		return nil, 0, nil, errQuestion
	}
	return value, at, checked, nil
}

// askPage asks another process for entries of a partition.
func (a *App) askPage(ctx context.Context, address, table string, partition int32, prefix, after []byte, most int) ([]wasmhost.TableEntry, bool, error) {
	return a.askPageFor(ctx, pageAsked, address, table, partition, prefix, after, most)
}

func (a *App) askPageFor(ctx context.Context, what byte, address, table string, partition int32, prefix, after []byte, most int) ([]wasmhost.TableEntry, bool, error) {
	q := appendBytes([]byte{what}, []byte(table))
	q = binary.AppendUvarint(binary.AppendUvarint(q, uint64(partition)), uint64(most))
	q = appendBytes(q, prefix)
	if after == nil {
		q = append(q, 0)
	} else {
		q = append(binary.AppendUvarint(q, uint64(len(after))+1), after...)
	}
	answer, err := a.peers.Read(ctx, address, q)
	if err != nil {
		return nil, false, err
	}
	r := fields{b: answer}
	if r.number(1) == 0 {
		return nil, false, fmt.Errorf("the process does not own partition %d of %s", partition, table)
	}
	more := r.number(1) == 1
	var entries []wasmhost.TableEntry
	for range r.number(uint64(len(answer))) {
		e := wasmhost.TableEntry{Key: r.bytes(), Value: r.bytes()}
		if r.bad {
			break
		}
		entries = append(entries, e)
	}
	if r.bad {
		return nil, false, errQuestion
	}
	return entries, more, nil
}

// answerPeer answers a question of another process: of what is surely this one's, or if copies will do of whatever is here.
func (a *App) answerPeer(question []byte) ([]byte, error) {
	r := fields{b: question}
	what, name := r.byte(), string(r.bytes())
	i := slices.IndexFunc(a.plan.Tables, func(t plan.Table) bool { return t.Name == name })
	var parts []*tablePart
	if i >= 0 && a.seen.running.Load() {
		parts = a.partsOf(i)
	}
	part := func(n int32) *tablePart {
		if n < 0 || int(n) >= len(parts) {
			return nil
		}
		return parts[n]
	}
	read, page := a.readOwn, a.pageOwn
	switch what {
	case staleGetAsked, stalePageAsked:
		read, page = readCopy, pageCopy
	}
	switch what {
	case getAsked, staleGetAsked:
		numbers, key := r.numbers(), bytes.Clone(r.bytes())
		if r.bad {
			return nil, errQuestion
		}
		var checked []int32
		for _, n := range numbers {
			p := part(n)
			if p == nil {
				continue
			}
			switch value, err := read(p, key); {
			case err != nil: // it is not read here
			case value != nil:
				return appendBytes(binary.AppendUvarint([]byte{1}, uint64(n)), value), nil
			default:
				checked = append(checked, n)
			}
		}
		return appendNumbers([]byte{0}, checked), nil
	case pageAsked, stalePageAsked:
		n, most := int32(r.number(askedPartitionsMax)), int(r.number(scanPage))
		prefix, hasAfter := r.bytes(), r.number(1<<31)
		var after []byte
		if hasAfter > 0 {
			after = r.take(hasAfter - 1)
		}
		if r.bad {
			return nil, errQuestion
		}
		p := part(n)
		if p == nil {
			return []byte{0}, nil
		}
		entries, more, err := page(p, prefix, after, most)
		if err != nil {
			return []byte{0}, nil
		}
		answer := []byte{1, 0}
		if more {
			answer[1] = 1
		}
		answer = binary.AppendUvarint(answer, uint64(len(entries)))
		for i := range entries {
			answer = appendBytes(appendBytes(answer, entries[i].Key), entries[i].Value)
		}
		return answer, nil
	}
	return nil, errQuestion
}

func appendBytes(to, b []byte) []byte { return append(binary.AppendUvarint(to, uint64(len(b))), b...) }

func appendNumbers(to []byte, list []int32) []byte {
	to = binary.AppendUvarint(to, uint64(len(list)))
	for _, n := range list {
		to = binary.AppendUvarint(to, uint64(n))
	}
	return to
}

// fields takes fields off the front of b, which comes from another process. After the first bad one it gives zeros.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) byte() byte {
	if len(f.b) == 0 {
		f.bad = true
		return 0
	}
	v := f.b[0]
	f.b = f.b[1:]
	return v
}

func (f *fields) number(most uint64) uint64 {
	v, n := binary.Uvarint(f.b)
	if f.bad || n <= 0 || v > most {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) take(n uint64) []byte {
	if f.bad || n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	v := f.b[:n:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) bytes() []byte { return f.take(f.number(1 << 31)) }

func (f *fields) numbers() []int32 {
	n := f.number(min(askedPartitionsMax, uint64(len(f.b))))
	list := make([]int32, 0, n)
	for range n {
		list = append(list, int32(f.number(askedPartitionsMax)))
	}
	return list
}
