package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/wasmhost"
)

// viewTables is what web views and tasks read of tables (wasmhost.RemoteTables): what is committed, wherever it is.
//
// A key of a table whose writes go to the partition of the record may be in any partition. The one its hash gives is asked first; there
// it is when the records are keyed as the table is. That a key is nowhere is said only when every partition was asked.
//
// Invariant: a partition is read only from its owner, as long as it is one (App.owns), or from a copy of a global table that was read to
// its end, or, when webStaleReads allows it, from a standby. What cannot be read is an error, never an empty answer.
type viewTables struct {
	app    *App
	tables []int // by the program's index, as indexes of the plan's
}

var _ wasmhost.RemoteTables = viewTables{}

// notReadyError is why a partition cannot be read now.
type notReadyError struct{ text string }

func (e *notReadyError) Error() string { return e.text }
func (e *notReadyError) Unwrap() error { return wasmhost.ErrNotReady }

func (t viewTables) partsOf(table int) ([]*tablePart, error) {
	if parts := t.app.partsOf(t.tables[table]); parts != nil {
		return parts, nil
	}
	return nil, &notReadyError{"tables cannot be read yet: the app is starting"}
}

func (t viewTables) TableGet(_ int32, table int, partition int32, key []byte) ([]byte, error) {
	parts, err := t.partsOf(table)
	if err != nil {
		return nil, err
	}
	if partition != record.RecordPartition {
		if partition < 0 || int(partition) >= len(parts) {
			return nil, nil
		}
		return t.app.readOwn(parts[partition], key)
	}
	value, _, err := t.app.find(parts, key)
	return value, err
}

// find reads a key wherever it is, of what is here: wasmhost.ErrElsewhere says that somebody else must be asked.
func (a *App) find(parts []*tablePart, key []byte) (value []byte, partition int32, err error) {
	home := record.PartitionOf(key, int32(len(parts)))
	value, err = a.readOwn(parts[home], key)
	if value != nil || err != nil {
		return value, home, err
	}
	for n := range int32(len(parts)) {
		if n == home {
			continue
		}
		if value, err = a.readOwn(parts[n], key); value != nil || err != nil {
			return value, n, err
		}
	}
	return nil, home, nil
}

// readOwn reads a key of a partition that is here to be read.
func (a *App) readOwn(p *tablePart, key []byte) ([]byte, error) {
	now := a.readableOwn(p)
	if now == nil {
		return nil, wasmhost.ErrElsewhere
	}
	value, err := now.store.Get(key)
	return value, a.still(p, now, err)
}

// readableOwn is what can be read of a partition here; nil when its owner, if there is one, is elsewhere.
func (a *App) readableOwn(p *tablePart) *readable {
	now := p.now.Load()
	if now == nil || now.staged == nil && !p.of.plan[p.table].Guest.Global {
		return nil
	}
	return now
}

// still judges a read that was made: it counts only if the partition was here to be read all the time.
func (a *App) still(p *tablePart, now *readable, err error) error {
	if errors.Is(err, state.ErrClosed) || err == nil && !a.owns(p, now) {
		return wasmhost.ErrElsewhere // it has just left
	}
	if err = p.trust(now, err); err != nil {
		return &notReadyError{fmt.Sprintf("partition %d of table %s: %v", p.number, p.of.plan[p.table].Name, err)}
	}
	return nil
}

// owns tells whether what was read of a partition just now is right: no other process may have become its owner before.
func (a *App) owns(p *tablePart, now *readable) bool {
	return now.staged == nil || p.now.Load() == now && a.member.Holds()
}

func (t viewTables) TableScan(_ int32, table int, partition int32, prefix, after []byte, each func(key, value []byte) bool) error {
	parts, err := t.partsOf(table)
	if err != nil {
		return err
	}
	if partition < 0 || int(partition) >= len(parts) {
		return nil
	}
	entries, more, err := t.app.pageOwn(parts[partition], prefix, after, scanPage)
	if err != nil {
		return err
	}
	for i := range entries {
		if !each(entries[i].Key, entries[i].Value) {
			return nil
		}
	}
	if more { // the caller takes less than a page, so it has stopped by now
		return fmt.Errorf("BUG: a scan takes more than %d bytes", scanPage)
	}
	return nil
}

// scanPage is more than the sandbox takes of a scan at once.
const scanPage = 4 << 20

// pageOwn is the entries of a partition that is here to be read, in key order, greater than after, of about most bytes, and whether there
// may be more.
func (a *App) pageOwn(p *tablePart, prefix, after []byte, most int) (entries []wasmhost.TableEntry, more bool, err error) {
	now := a.readableOwn(p)
	if now == nil {
		return nil, false, wasmhost.ErrElsewhere
	}
	entries, more, err = scanStore(now, prefix, after, most)
	return entries, more, a.still(p, now, err)
}

func scanStore(now *readable, prefix, after []byte, most int) (entries []wasmhost.TableEntry, more bool, err error) {
	r := state.Range{Prefix: prefix}
	if after != nil {
		r.From = append(slices.Clone(after), 0) // the least key that is greater
	}
	it, size := now.store.Scan(r), 0
	for it.Next() {
		if size += 8 + len(it.Key()) + len(it.Value()); len(entries) > 0 && size > most {
			more = true
			break
		}
		entries = append(entries, wasmhost.TableEntry{Key: slices.Clone(it.Key()), Value: slices.Clone(it.Value())})
	}
	return entries, more, it.Close()
}

// TableInfo is wasmhost.Tables's. To a request every partition is one to scan. The entries of those elsewhere are taken to be as many as
// of those that are here.
func (t viewTables) TableInfo(table int) (partitions int32, active []int32, entries int64, err error) {
	parts, err := t.partsOf(table)
	if err != nil {
		return 0, nil, 0, err
	}
	here := int64(0)
	for _, p := range parts {
		active = append(active, p.number)
		if now := t.app.readableOwn(p); now != nil {
			entries += now.store.SizeEstimate()
			here++
		}
	}
	if here > 0 {
		entries = entries * int64(len(parts)) / here
	}
	return int32(len(parts)), active, entries, nil
}

func (t viewTables) TableFetch(ctx context.Context, table int, partition int32, key []byte) ([]byte, error) {
	value, _, err := t.app.lookup(runningContext(ctx).forward(ctx), t.tables[table], partition, key)
	return value, err
}

func (t viewTables) TablePage(ctx context.Context, table int, partition int32, prefix, after []byte, most int) ([]wasmhost.TableEntry, bool, error) {
	return t.app.page(runningContext(ctx).forward(ctx), t.tables[table], partition, prefix, after, most)
}

// place makes records of the tables' writes topics of changes of a request, or of a run. A change without a partition goes to the one that has the
// key, or else to the one its hash gives. wasmhost.ErrElsewhere says that others must be asked for it: try again with remote.
func (t viewTables) place(ctx context.Context, changes []record.Change, remote bool) ([]record.Output, error) {
	outs := make([]record.Output, 0, len(changes))
	for i := range changes {
		c := &changes[i]
		to := &t.app.plan.Tables[t.tables[c.Table]]
		if size, most := len(c.Key)+len(c.Value), t.app.rowBytes(t.tables[c.Table]); size > most {
			return nil, &refusedError{fmt.Errorf("a write of %d bytes to %s is more than its changelog takes (%d)", size, to.Label, most)}
		}
		partition := c.Partition
		if partition == record.RecordPartition {
			parts, err := t.partsOf(int(c.Table))
			if err == nil {
				_, partition, err = t.app.find(parts, c.Key)
			}
			if remote && errors.Is(err, wasmhost.ErrElsewhere) {
				_, partition, err = t.app.lookup(ctx, t.tables[c.Table], record.RecordPartition, c.Key)
			}
			if err != nil {
				return nil, err
			}
		} else if partition >= t.app.counts[t.tables[c.Table]] {
			return nil, &refusedError{fmt.Errorf("%s has no partition %d", to.Label, partition)}
		}
		o := record.Output{Topic: to.Writes.Name, Partition: partition, Key: c.Key, Value: c.Value}
		if c.Value != nil && c.Expires != 0 {
			o.Headers = expiresHeader(c.Expires)
		}
		outs = append(outs, o)
	}
	return outs, nil
}
