package engine

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost/abi"
)

// clean runs the fixture's cleanupLoop with a delay of ten minutes, in a group that the process is part of as member says.
func (x *tablesFixture) clean(member *atomic.Bool) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.cleanupLoop(ctx, 10*time.Minute, member.Load)
	}()
	x.t.Cleanup(func() {
		stop()
		<-done
	})
}

// stored is which partitions of a table have a store.
func (x *tablesFixture) stored(table int, want ...int32) {
	x.t.Helper()
	synctest.Wait()
	if got := slices.Sorted(maps.Keys(x.Offsets()[table])); !slices.Equal(got, want) {
		x.t.Errorf("there are stores of %v, want %v", got, want)
	}
}

// A process that partitions come to and leave for months must not fill its disk with what is worked on elsewhere; and what comes back soon
// must not be read from the start again.
func TestCleanup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		var member atomic.Bool
		member.Store(true)
		x.clean(&member)
		for n := range int32(3) {
			x.append("users-log", n, "a=1", "b=2")
		}
		x.append("rates-log", 0, "eur=1")
		x.append("rates-log", 1, "usd=1")
		all := map[string]string{"a": "1", "b": "2"}
		x.Acquire(0, []int{users}, nil)
		x.Acquire(1, []int{users}, nil)
		x.Follow([]standby{{users, 2}})
		x.ready(0, users)
		x.ready(1, users)
		time.Sleep(time.Hour) // what is here stays
		x.stored(users, 0, 1, 2)
		x.stored(rates, 0, 1)

		x.Release(0, []int{users})
		x.Release(1, []int{users})
		time.Sleep(9*time.Minute + 59*time.Second)
		x.stored(users, 0, 1, 2)
		before := x.records()
		x.Acquire(1, []int{users}, nil)
		x.ready(1, users)
		x.want(users, 1, all)
		if n := x.records() - before; n != 0 {
			t.Errorf("read %d records of a store that was there", n)
		}
		time.Sleep(5 * time.Minute)
		x.stored(users, 1, 2)
		x.stored(rates, 0, 1)
		x.want(users, 1, all)
		x.want(users, 2, all)
		x.logged("was deleted\" table=users partition=0", 1)
		x.logged("was deleted", 1)

		// It comes back, with all that is in its changelog.
		before = x.records()
		x.append("users-log", 0, "b", "c=3")
		x.Acquire(0, []int{users}, nil)
		x.ready(0, users)
		x.want(users, 0, map[string]string{"a": "1", "c": "3"})
		if n := x.records() - before; n != 4 {
			t.Errorf("read %d records, want all 4", n)
		}

		// An owner's store becomes a copy, which stays, and then neither.
		x.Follow([]standby{{users, 1}})
		x.Release(1, []int{users})
		time.Sleep(12 * time.Minute)
		x.stored(users, 0, 1) // 2 is no copy any more
		x.want(users, 1, all)
		x.Follow(nil)
		time.Sleep(12 * time.Minute)
		x.stored(users, 0)
		x.logged("level=ERROR", 0)
	})
}

// While Kafka is away a process has no partitions, and then most of those it had: it must not have thrown them away.
func TestCleanupWantsTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		var member atomic.Bool
		x.clean(&member)
		x.append("users-log", 0, "a=1")
		x.append("users-log", 1, "a=1")
		x.Acquire(0, []int{users}, nil)
		x.Acquire(1, []int{users}, nil)
		x.ready(0, users)
		x.ready(1, users)
		x.Release(0, []int{users})
		x.Release(1, []int{users})
		time.Sleep(time.Hour)
		x.stored(users, 0, 1)
		member.Store(true)
		time.Sleep(9 * time.Minute)
		member.Store(false)
		time.Sleep(2 * time.Minute)
		member.Store(true)
		time.Sleep(9 * time.Minute)
		x.stored(users, 0, 1)
		x.Acquire(0, []int{users}, nil)
		time.Sleep(5 * time.Minute)
		x.stored(users, 0)
	})
}

// slowStores takes its time to delete, or refuses to.
type slowStores struct {
	*mem.Stores
	asked chan int32
	let   chan error
}

func (s slowStores) Destroy(table string, number int32) error {
	s.asked <- number
	if err := <-s.let; err != nil {
		return err
	}
	return s.Stores.Destroy(table, number)
}

// Who wants the partition at the moment its store is being deleted gets all of it, from the changelog, and never half of a store. A disk
// that refuses to delete is told, and stops nobody.
func TestCleanupMeetsAnOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.append("users-log", 0, "a=1", "b=2")
		synctest.Wait()
		slow := slowStores{x.stores, make(chan int32), make(chan error)}
		x.tables.stores = slow
		var member atomic.Bool
		member.Store(true)
		x.clean(&member)
		for _, refusal := range []error{nil, errors.New("read-only file system")} {
			x.Acquire(0, []int{users}, nil)
			x.ready(0, users)
			x.Release(0, []int{users})
			if n := <-slow.asked; n != 0 {
				t.Errorf("partition %d is deleted", n)
			}
			before := x.records()
			x.Acquire(0, []int{users}, nil)
			time.Sleep(time.Minute)
			x.notReady(0, users)
			slow.let <- refusal
			x.ready(0, users)
			x.want(users, 0, map[string]string{"a": "1", "b": "2"})
			if n, want := x.records()-before, map[bool]int{true: 2, false: 0}[refusal == nil]; n != want {
				t.Errorf("read %d records, want %d", n, want)
			}
			x.Release(0, []int{users})
			go func() { // what is refused is tried again
				<-slow.asked
				slow.let <- refusal
				if refusal != nil {
					<-slow.asked
					slow.let <- nil
				}
			}()
			time.Sleep(12 * time.Minute)
			if refusal != nil {
				x.stored(users, 0)
				time.Sleep(12 * time.Minute)
			}
			x.stored(users)
		}
		x.logged("level=ERROR", 2)
		x.logged("read-only file system", 2)
	})
}

// What an earlier process left on disk, of partitions that are elsewhere now, must not stay because nobody here has ever asked for it.
func TestCleanupAfterAnEarlierProcess(t *testing.T) {
	logs, root := newFakeLogs(), t.TempDir()
	entry := broker.Logged{Key: []byte("a"), Value: []byte("1"), Timestamp: 1}
	part := fakePartition{high: 1, records: []broker.Logged{entry}}
	logs.topics["users-log"] = &fakeLog{broker.TopicID{1}, []fakePartition{part, part, part}}
	p := []plan.Table{{Name: "users", Guest: abi.Table{Changelog: "users-log"}}}
	process := func(do func(x *tables, dir *state.Dir)) {
		t.Helper()
		dir, err := state.OpenDir(state.Options{Dir: root, MemoryLimit: 32 << 20})
		if err != nil {
			t.Fatal(err)
		}
		x := newTables(dir, logs, "group", p, slog.New(slog.DiscardHandler), func(int32) {})
		x.Start([]int32{3})
		do(x, dir)
		if err := errors.Join(x.Close(context.Background()), dir.Close()); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for began := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatal(what)
			}
		}
	}
	ready := func(x *tables, n int32) {
		t.Helper()
		x.Acquire(n, []int{0}, nil)
		until("not restored", func() bool { return x.Ready(n, []int{0}) })
	}
	process(func(x *tables, _ *state.Dir) {
		for n := range int32(3) {
			ready(x, n)
		}
	})
	process(func(x *tables, dir *state.Dir) {
		on := func(want ...int32) func() bool {
			return func() bool {
				got, err := dir.Partitions("users")
				if err != nil {
					t.Fatal(err)
				}
				return slices.Equal(got, want)
			}
		}
		if !on(0, 1, 2)() || len(x.Offsets()[0]) != 3 {
			t.Fatal("the stores of the earlier process are not there: this tests nothing")
		}
		ready(x, 0)
		x.Follow([]standby{{0, 1}})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			x.cleanupLoop(ctx, 300*time.Millisecond, func() bool { return true })
		}()
		until("the store of partition 2 is still there", on(0, 1))
		time.Sleep(time.Second)
		if !on(0, 1)() {
			t.Error("a store that is in use is gone")
		}
		stop()
		<-done
		ready(x, 2)
		if at := x.Offsets()[0]; !maps.Equal(at, map[int32]int64{0: 1, 1: 1, 2: 1}) || !on(0, 1, 2)() {
			t.Errorf("the stores are at %v", at)
		}
	})
}
