package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
)

// tableRole is what a keeper does with its partition.
type tableRole int

const (
	roleAbsent tableRole = iota // close the store
	roleCopy                    // follow the changelog
	roleActive                  // restore the store, then leave it to the owner
)

// wanted is the role the partition should have. tables.mu is held.
func (p *tablePart) wanted() tableRole {
	switch {
	case p.of.ctx.Err() != nil:
		return roleAbsent
	case p.wants.active > 0:
		return roleActive
	case p.wants.copy:
		return roleCopy
	}
	return roleAbsent
}

// wantsChanged has the keeper look again at what is wanted, and makes one if there must be. tables.mu is held.
func (p *tablePart) wantsChanged() {
	switch want := p.wanted(); {
	case !p.keeping && want != roleAbsent:
		p.keeping, p.left = true, time.Time{}
		p.of.joined.Go((&keeper{tablePart: p}).run)
	case p.keeping && want != p.role:
		p.interrupt()
	}
}

// interrupt ends what the keeper does now; it then looks at what is wanted. tables.mu is held.
func (p *tablePart) interrupt() {
	if p.stop != nil {
		p.stop()
	}
}

// keeper keeps one partition as it is wanted.
type keeper struct {
	*tablePart
	store   state.Store // nil while closed
	changes []state.Change
	delay   time.Duration // before the next attempt
	pause   time.Duration // the delay after the next failure; 0 after success
}

func (k *keeper) run() {
	for {
		ctx, role, inputs, more := k.next()
		if !more {
			return
		}
		if role == roleAbsent {
			k.close()
			continue
		}
		err := k.serve(ctx, role, inputs)
		fault := k.fault.Swap(nil)
		if fault != nil {
			err = *fault
		}
		if fault == nil && ctx.Err() != nil {
			continue // something else is wanted
		}
		k.recover(err)
	}
}

// next is what to do now; false when the partition is closed and shall be.
func (k *keeper) next() (ctx context.Context, role tableRole, inputs []record.Partition, more bool) {
	t := k.of
	t.mu.Lock()
	defer t.mu.Unlock()
	if k.stop != nil {
		k.stop()
	}
	ctx, k.stop = context.WithCancel(t.ctx)
	k.role = k.wanted()
	if k.role == roleAbsent && k.store == nil {
		k.stop()
		k.stop, k.keeping, k.left = nil, false, time.Now()
		k.progress.set(phaseAbsent)
		return ctx, roleAbsent, nil, false
	}
	return ctx, k.role, k.sortedInputs(), true
}

// serve does what the role asks for until ctx ends or something fails.
func (k *keeper) serve(ctx context.Context, role tableRole, inputs []record.Partition) error {
	if k.delay > 0 {
		pause := time.After(k.delay)
		k.delay = 0
		select {
		case <-pause:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	k.progress.begin(role)
	if err := k.open(); err != nil {
		return err
	}
	began := time.Now()
	s, from, to, err := k.begin(ctx, inputs)
	if err != nil {
		return err
	}
	defer s.Close()
	k.progress.restoring(from, to)
	if err := k.restore(ctx, s, from, to); err != nil {
		return err
	}
	k.pause = 0
	if !k.settled(ctx, role) {
		return ctx.Err()
	}
	k.log.Info("table restored", "role", role.String(), "from", from, "to", k.store.Offset(), "took", time.Since(began).Round(time.Millisecond))
	k.tell()
	if role == roleCopy {
		return k.pull(ctx, s, max(k.store.Offset(), from), forever)
	}
	s.Close()
	<-ctx.Done()
	return ctx.Err()
}

// restore reads the changelog to an end; before all copies when the partition is to be worked on.
func (k *keeper) restore(ctx context.Context, s changelog, from, to int64) error {
	if k.role == roleActive {
		k.of.urgent.begin()
		defer k.of.urgent.end()
	}
	return k.pull(ctx, s, from, to)
}

// settled shows the store, which has been read to its changelog's end; false when something else is wanted by now.
func (k *keeper) settled(ctx context.Context, role tableRole) bool {
	t := k.of
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	k.warm.Store(true)
	if role == roleActive {
		k.progress.set(phaseActive)
		k.now.Store(&readable{store: k.store, staged: state.NewStaged(k.store), faults: t.faults[k.table].count.Load()})
	} else {
		k.progress.set(phaseCopy)
		k.now.Store(&readable{store: k.store})
	}
	return true
}

// tell calls onReady for every number that may have become ready.
func (k *keeper) tell() {
	t := k.of
	if !t.plan[k.table].Guest.Global {
		if k.role == roleActive { // only this goroutine writes it
			t.onReady(k.number)
		}
		return
	}
	for _, p := range (*t.parts.Load())[k.table] {
		if _, staged := p.Store(); staged != nil {
			t.onReady(p.number)
		}
	}
	if k.warm.Load() {
		t.onReady(anyNumber) // agents also read it while they process partitions that the table does not have
	}
}

func (k *keeper) open() error {
	if k.store != nil {
		return nil
	}
	store, err := k.of.stores.Open(k.of.plan[k.table].Name, k.number)
	if err != nil {
		return err
	}
	k.store = store
	k.offset.Store(store.Offset())
	return nil
}

// hide takes the store from its readers.
func (k *keeper) hide() {
	k.of.mu.Lock()
	defer k.of.mu.Unlock()
	k.warm.Store(false)
	k.now.Store(nil)
}

func (k *keeper) close() {
	if k.store == nil {
		return
	}
	k.hide()
	if err := k.store.Close(); err != nil {
		k.log.Error("close table: what was not on disk yet will be read from the changelog again", "err", err)
	}
	k.store = nil
}

// recover makes another attempt possible, and says when.
func (k *keeper) recover(err error) {
	t := k.of
	k.progress.failed(err)
	var stall *stallError
	switch {
	case errors.As(err, &stall):
		k.progress.stalled()
		k.log.Warn("table makes no progress, its changelog is read anew", "changelog", k.changelog.Topic, "err", err)
		return
	case errors.Is(err, state.ErrCorrupt):
		k.close()
		aside, asideErr := t.stores.SetAside(t.plan[k.table].Name, k.number)
		k.offset.Store(0)
		k.log.Error("the store of a table is corrupt: it was set aside, and is restored from the changelog", "err", err, "aside", aside)
		if asideErr != nil {
			k.log.Error("set aside a corrupt store", "err", asideErr)
		} else if k.pause == 0 {
			k.pause = t.tuning.pause
			return // at once, the first time
		}
	case errors.Is(err, state.ErrDisk):
		k.close()
		k.log.Error("the disk refuses a table: its partition stands still until it is writable again; nothing is lost",
			"err", err, "directory", directory(t.stores), "retry", max(k.pause, t.tuning.pause))
	case errors.Is(err, state.ErrClosed):
		k.close()
		k.log.Error("the store of a table was closed", "err", err)
	default:
		k.log.Warn("restore table, will be tried again", "changelog", k.changelog.Topic, "err", err, "retry", max(k.pause, t.tuning.pause))
	}
	k.delay = max(k.pause, t.tuning.pause)
	k.pause = min(2*k.delay, t.tuning.pauseMax)
}

// directory is where the stores are, if they are somewhere.
func directory(stores state.Opener) string {
	if d, ok := stores.(interface{ Root() string }); ok {
		return d.Root()
	}
	return "memory"
}

func (r tableRole) String() string {
	switch r {
	case roleActive:
		return "active"
	case roleCopy:
		return "copy"
	}
	return "absent"
}

// stallError says that there are records to read, and they do not come.
type stallError struct {
	at, end int64
	why     string
	cause   error
}

func (e *stallError) Error() string {
	text := fmt.Sprintf("stands at offset %d of %d: %s", e.at, e.end, e.why)
	if e.cause != nil {
		text += ": " + e.cause.Error()
	}
	return text
}

func (e *stallError) Unwrap() error { return e.cause }
