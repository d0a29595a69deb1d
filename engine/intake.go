package engine

import (
	"context"
	"sync"
	"time"
)

// intake bounds how many fetched records wait in the engine: polling goes on only while there is room.
type intake struct {
	each int // records per feed

	mu     sync.Mutex
	max    int           // guarded by mu
	queued int           // guarded by mu; records in feeds that are not paused
	room   chan struct{} // capacity 1: queued went down
	poll   func()        // guarded by mu; ends the poll under way
}

func newIntake(each int) *intake { return &intake{each: each, max: each, room: make(chan struct{}, 1)} }

// resize follows the number of feeds, so that each has its share of the room.
func (in *intake) resize(feeds int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.max = in.each * max(1, feeds)
}

func (in *intake) add(n int) {
	in.mu.Lock()
	in.queued += n
	free := in.queued < in.max
	in.mu.Unlock()
	if n < 0 && free {
		select {
		case in.room <- struct{}{}:
		default:
		}
	}
}

func (in *intake) count() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.queued
}

func (in *intake) full() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.queued >= in.max
}

// drained tells of a paused feed with so many records that it should be fetched again.
func (in *intake) drained(queued int) bool { return queued < max(1, in.each/8) }

// polling is the context of one poll, which interrupt ends. A poll waits for records of the partitions that are not paused:
// without an end it would wait for ever where there are no others.
func (in *intake) polling(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.poll = cancel
	return ctx, cancel
}

func (in *intake) interrupt() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.poll != nil {
		in.poll()
	}
}

// wait returns when there is room, or after stall without any: then some feed may be holding up the others.
func (in *intake) wait(ctx context.Context, stall time.Duration) (room bool) {
	timer := time.NewTimer(stall)
	defer timer.Stop()
	for in.full() {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return false
		case <-in.room:
		}
	}
	return true
}
