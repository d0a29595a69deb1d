package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/enginetest"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost/abi"
)

// fakeLogs is changelogs in memory, in the form a reader of committed records sees them.
type fakeLogs struct {
	mu       sync.Mutex
	changed  chan struct{}       // guarded by mu; closed and replaced at every change
	topics   map[string]*fakeLog // guarded by mu
	unstable bool                // guarded by mu; a transaction is about to change the group's offsets
	silent   bool                // guarded by mu; streams return nothing
	follows  int                 // guarded by mu; streams begun
	read     int                 // guarded by mu; records handed out
	stable   []record.Partition  // guarded by mu; inputs asked for last
}

type fakeLog struct {
	id    broker.TopicID
	parts []fakePartition
}

// fakePartition has gaps between its records, as markers, aborted records and compaction make them.
type fakePartition struct {
	start, open, high int64 // open: where the first open transaction begins; 0 for none
	records           []broker.Logged
}

func newFakeLogs() *fakeLogs {
	return &fakeLogs{changed: make(chan struct{}), topics: map[string]*fakeLog{}}
}

func (f *fakeLogs) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
	close(f.changed)
	f.changed = make(chan struct{})
}

// wait calls do, with mu held, until it says true, after every change.
func (f *fakeLogs) wait(ctx context.Context, do func() bool) error {
	for {
		f.mu.Lock()
		done, changed := do(), f.changed
		f.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fakeLogs) StableOffsets(ctx context.Context, _ string, ps []record.Partition) (map[record.Partition]broker.Position, error) {
	return nil, f.wait(ctx, func() bool { f.stable = ps; return !f.unstable })
}

func (f *fakeLogs) Describe(_ context.Context, topics ...string) (map[string]broker.TopicInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]broker.TopicInfo{}
	for _, name := range topics {
		if t := f.topics[name]; t != nil {
			out[name] = broker.TopicInfo{ID: t.id, Partitions: int32(len(t.parts))}
		}
	}
	return out, nil
}

func (f *fakeLogs) Bounds(_ context.Context, ps ...record.Partition) (map[record.Partition]broker.Bounds, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[record.Partition]broker.Bounds{}
	for _, p := range ps {
		x := &f.topics[p.Topic].parts[p.Number]
		out[p] = broker.Bounds{Start: x.start, High: x.high}
	}
	return out, nil
}

func (f *fakeLogs) Follow(p record.Partition, topic broker.TopicID, from int64) changelog {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.follows++
	return &fakeStream{f: f, p: p, topic: topic, at: from}
}

type fakeStream struct {
	f     *fakeLogs
	p     record.Partition
	topic broker.TopicID
	at    int64
}

func (s *fakeStream) Next(ctx context.Context) (broker.Chunk, error) {
	var c broker.Chunk
	var failed error
	err := s.f.wait(ctx, func() bool {
		t := s.f.topics[s.p.Topic]
		x := &t.parts[s.p.Number]
		switch {
		case s.f.silent:
			return false
		case t.id != s.topic:
			failed = broker.ErrRecreated
			return true
		case s.at < x.start || s.at > x.high:
			failed = broker.ErrOutOfRange
			return true
		}
		end := x.high
		if x.open > 0 {
			end = min(end, x.open)
		}
		if s.at >= end {
			return false
		}
		c = broker.Chunk{Next: end, High: x.high}
		for _, r := range x.records {
			if r.Offset < s.at || r.Offset >= end {
				continue
			}
			if len(c.Entries) == 3 {
				c.Next = r.Offset
				break
			}
			c.Entries = append(c.Entries, r)
		}
		s.at = c.Next
		s.f.read += len(c.Entries)
		return true
	})
	return c, errors.Join(err, failed)
}

func (s *fakeStream) State() broker.StreamState {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	x := &s.f.topics[s.p.Topic].parts[s.p.Number]
	st := broker.StreamState{Next: s.at, High: x.high, Stable: x.high, Answered: time.Now()}
	if x.open > 0 {
		st.Stable = min(st.High, x.open)
	}
	return st
}

func (s *fakeStream) Close() {}

// tablesFixture is the tables "users" (3 partitions) and "rates" (global, 2 partitions) of one process.
type tablesFixture struct {
	*tables
	t      *testing.T
	logs   *fakeLogs
	stores *mem.Stores
	fault  atomic.Pointer[func(op, table string, number int32) error]
	log    enginetest.Buffer
	told   atomic.Int64 // onReady calls
}

const (
	users = 0
	rates = 1
)

// newTablesFixture starts tables over changelogs that exist and are empty. It is to be used in a synctest bubble.
func newTablesFixture(t *testing.T) *tablesFixture {
	x := &tablesFixture{t: t, logs: newFakeLogs(), stores: mem.New()}
	x.stores.Fault = func(op, table string, number int32) error {
		if f := x.fault.Load(); f != nil {
			return (*f)(op, table, number)
		}
		return nil
	}
	x.logs.topics["users-log"] = &fakeLog{broker.TopicID{1}, make([]fakePartition, 3)}
	x.logs.topics["rates-log"] = &fakeLog{broker.TopicID{2}, make([]fakePartition, 2)}
	x.open()
	return x
}

// open starts tables on what the stores hold.
func (x *tablesFixture) open() {
	p := []plan.Table{
		{Name: "users", Guest: abi.Table{Changelog: "users-log"}},
		{Name: "rates", Guest: abi.Table{Changelog: "rates-log", Global: true}},
	}
	log := slog.New(slog.NewTextHandler(&x.log, nil))
	tables := newTables(x.stores, x.logs, "group", p, log, func(int32) { x.told.Add(1) })
	tables.Start([]int32{3, 2})
	x.tables = tables
	x.t.Cleanup(func() { // t.Context has ended by then
		if err := tables.Close(context.Background()); err != nil {
			x.t.Error(err)
		}
	})
}

// append writes records at the changelog's end: "k=v" or "k" to delete, or a number of offsets without a record.
func (x *tablesFixture) append(topic string, number int32, items ...any) {
	x.t.Helper()
	x.logs.change(func() {
		p := &x.logs.topics[topic].parts[number]
		for _, item := range items {
			switch item := item.(type) {
			case int:
				p.high += int64(item)
			case string:
				r := broker.Logged{Offset: p.high, Timestamp: 1}
				key, value, ok := strings.Cut(item, "=")
				r.Key = []byte(key)
				if ok {
					r.Value = []byte(value)
				}
				p.records = append(p.records, r)
				p.high++
			}
		}
	})
}

// hold has an open transaction begin at an offset; 0 ends it.
func (x *tablesFixture) hold(topic string, number int32, at int64) {
	x.logs.change(func() { x.logs.topics[topic].parts[number].open = at })
}

// content is what a batch of the partition would read.
func (x *tablesFixture) content(table int, number int32) map[string]string {
	x.t.Helper()
	got := map[string]string{}
	v := x.view([]int{users, rates})
	err := v.TableScan(number, table, number, nil, nil, func(k, v []byte) bool {
		got[string(k)] = string(v)
		return true
	})
	if err != nil {
		x.t.Error(err)
	}
	return got
}

func (x *tablesFixture) want(table int, number int32, want map[string]string) {
	x.t.Helper()
	if got := x.content(table, number); !maps.Equal(got, want) {
		x.t.Errorf("table %d partition %d holds %v, want %v", table, number, got, want)
	}
}

func (x *tablesFixture) ready(number int32, tables ...int) {
	x.t.Helper()
	synctest.Wait()
	if !x.Ready(number, tables) {
		x.t.Fatalf("partition %d of %v is not ready: %+v\n%s", number, tables, x.Progress(), &x.log)
	}
}

func (x *tablesFixture) notReady(number int32, tables ...int) {
	x.t.Helper()
	synctest.Wait()
	if x.Ready(number, tables) {
		x.t.Fatalf("partition %d of %v is ready", number, tables)
	}
}

func (x *tablesFixture) logged(part string, times int) {
	x.t.Helper()
	if n := strings.Count(x.log.String(), part); n != times {
		x.t.Errorf("the log has %q %d times, want %d:\n%s", part, n, times, &x.log)
	}
}

func (x *tablesFixture) faulty(f func(op, table string, number int32) error) {
	if f == nil {
		x.fault.Store(nil)
		return
	}
	x.fault.Store(&f)
}

func (x *tablesFixture) records() int {
	x.logs.mu.Lock()
	defer x.logs.mu.Unlock()
	return x.logs.read
}

// A new owner must see exactly the committed changes, and the end of a changelog need not be a record.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.append("users-log", 1, "a=1", "b=2", 1, "c=3", "a=4", 5, "b", "d=", 7)
		inputs := []record.Partition{{Topic: "in", Number: 1}}
		x.Acquire(1, []int{users}, inputs)
		x.ready(1, users)
		x.want(users, 1, map[string]string{"a": "4", "c": "3", "d": ""})
		if x.told.Load() == 0 || !slices.Equal(x.logs.stable, inputs) {
			t.Errorf("told %d times, waited for the offsets of %v", x.told.Load(), x.logs.stable)
		}
		store, staged := x.part(users, 1).Store()
		if store.Offset() != x.logs.topics["users-log"].parts[1].high {
			t.Errorf("the store is at %d", store.Offset())
		}
		x.notReady(0, users)

		// Its own changes go on from there; a second owner of the process shares it.
		staged.Stage([]state.Change{{Key: []byte("a"), Value: []byte("5")}})
		x.Acquire(1, []int{users}, nil)
		x.want(users, 1, map[string]string{"a": "5", "c": "3", "d": ""})
		x.append("users-log", 1, "a=5", 1)
		if err := staged.Commit(staged.Freeze(), store.Offset()+2); err != nil {
			t.Fatal(err)
		}
		staged.Stage([]state.Change{{Key: []byte("never"), Value: []byte("committed")}})
		x.Release(1, []int{users})
		x.ready(1, users)
		x.Release(1, []int{users})
		x.notReady(1, users)
		x.want(users, 1, map[string]string{})
		if _, err := store.Get([]byte("a")); !errors.Is(err, state.ErrClosed) {
			t.Errorf("a late read got %v", err)
		}

		// Coming back reads only what is new.
		before := x.records()
		x.append("users-log", 1, "e=6")
		x.Acquire(1, []int{users}, nil)
		x.ready(1, users)
		x.want(users, 1, map[string]string{"a": "5", "c": "3", "d": "", "e": "6"})
		if n := x.records() - before; n != 1 {
			t.Errorf("read %d records, want 1", n)
		}
		x.logged("level=ERROR", 0)
	})
}

// A store that is not a prefix of its changelog must never be shown.
func TestRestoreClearsAStoreThatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(log *fakeLog)
		want map[string]string
		says string
	}{
		{"the topic was made anew, and has grown past the store's offset", func(log *fakeLog) {
			log.id, log.parts[0] = broker.TopicID{9}, fakePartition{high: 30, records: []broker.Logged{{Key: []byte("new"), Value: []byte("1"), Offset: 20}}}
		}, map[string]string{"new": "1"}, "made anew"},
		{"the broker lost the end", func(log *fakeLog) {
			log.parts[0].high, log.parts[0].records = 2, log.parts[0].records[:2]
		}, map[string]string{"a": "1", "b": "2"}, "ends before the store does"},
		{"the start was deleted", func(log *fakeLog) {
			log.parts[0].start, log.parts[0].high = 20, 30
			log.parts[0].records = []broker.Logged{{Key: []byte("z"), Value: []byte("9"), Offset: 25}}
		}, map[string]string{"z": "9"}, "deleted from the changelog"},
		{"all of it was deleted", func(log *fakeLog) {
			log.parts[0] = fakePartition{start: 20, high: 20}
		}, map[string]string{}, "deleted from the changelog"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTablesFixture(t)
				x.append("users-log", 0, "a=1", "b=2", "c=3", "d=4", "e=5")
				x.Acquire(0, []int{users}, nil)
				x.ready(0, users)
				x.Release(0, []int{users})
				synctest.Wait()
				x.logs.change(func() { c.do(x.logs.topics["users-log"]) })
				x.Acquire(0, []int{users}, nil)
				x.ready(0, users)
				x.want(users, 0, c.want)
				x.logged(c.says, 1)
				x.logged("level=ERROR", 1)
			})
		})
	}
}

// What happens to the changelog while it is read must not leave a mixture of two logs behind.
func TestRestoreSeesTheChangelogChangeUnderneath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.hold("users-log", 0, 5)
		x.append("users-log", 0, "a=1", 10)
		x.Acquire(0, []int{users}, nil)
		x.notReady(0, users)
		x.logs.change(func() {
			x.logs.topics["users-log"] = &fakeLog{broker.TopicID{7}, make([]fakePartition, 3)}
		})
		x.append("users-log", 0, "b=2")
		time.Sleep(x.tuning.pause)
		x.ready(0, users)
		x.want(users, 0, map[string]string{"b": "2"})

		// The same for a copy that is followed.
		x.append("rates-log", 0, "a=1")
		synctest.Wait()
		x.want(rates, 0, map[string]string{"a": "1"})
		x.logs.change(func() {
			x.logs.topics["rates-log"].parts[0] = fakePartition{start: 10, high: 11, records: []broker.Logged{{Key: []byte("b"), Value: []byte("2"), Offset: 10}}}
		})
		time.Sleep(x.tuning.pause)
		synctest.Wait()
		x.want(rates, 0, map[string]string{"b": "2"})
	})
}

// A successor that starts before its predecessor's transaction has ended would miss its changes.
func TestRestoreWaitsForStableOffsets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.logs.change(func() { x.logs.unstable = true })
		x.append("users-log", 0, "a=1")
		x.Acquire(0, []int{users}, []record.Partition{{Topic: "in"}})
		time.Sleep(2*x.tuning.stalledAfter + time.Second)
		x.notReady(0, users)
		x.logged("makes no progress", 2)
		x.append("users-log", 0, "a=2")

		// An input that is assigned later counts, too, until the partition is ready.
		x.Acquire(0, []int{users}, []record.Partition{{Topic: "later"}})
		synctest.Wait()
		if want := []record.Partition{{Topic: "in"}, {Topic: "later"}}; !slices.Equal(x.logs.stable, want) {
			t.Errorf("waits for the offsets of %v, want %v", x.logs.stable, want)
		}
		x.logs.change(func() { x.logs.unstable = false })
		x.ready(0, users)
		x.want(users, 0, map[string]string{"a": "2"})
		follows := x.logs.follows
		x.Acquire(0, []int{users}, []record.Partition{{Topic: "last"}})
		x.ready(0, users)
		if x.logs.follows != follows {
			t.Error("a ready partition was restored again")
		}
	})
}

// A restore that hangs must be named and begun anew, not wait silently.
func TestStalledRestoreIsNamedAndRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.append("users-log", 2, "a=1", "b=2")
		x.logs.change(func() { x.logs.silent = true })
		x.Acquire(2, []int{users}, nil)
		time.Sleep(x.tuning.stalledAfter + time.Second)
		x.notReady(2, users)
		x.logged(`msg="table makes no progress, its changelog is read anew" table=users partition=2`, 1)
		x.logged("stands at offset 0 of 2: the broker returns no records", 1)
		if p := x.Progress(); p[0].Stalls != 1 || p[0].Err == nil || p[0].Left != 2 {
			t.Errorf("progress %+v", p)
		}
		x.logs.change(func() { x.logs.silent = false })
		x.ready(2, users)

		// An idle copy is no stall, one held back by an open transaction is.
		x.log.Reset()
		time.Sleep(10 * x.tuning.stalledAfter)
		x.logged("no progress", 0)
		x.hold("rates-log", 0, 1)
		x.append("rates-log", 0, "a=1")
		x.append("rates-log", 0, "b=2")
		time.Sleep(3 * x.tuning.stalledAfter)
		if !strings.Contains(x.log.String(), "a transaction that is still open holds back what follows") {
			t.Errorf("the log says:\n%s", &x.log)
		}
		x.want(rates, 0, map[string]string{"a": "1"})
	})
}

// Revocation in the middle of a restore must not wait for its end.
func TestRestoreIsCancelledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.hold("users-log", 0, 5)
		x.append("users-log", 0, "a=1", 10)
		x.Acquire(0, []int{users}, nil)
		x.notReady(0, users)
		began := time.Now()
		x.Release(0, []int{users})
		synctest.Wait()
		if store, err := x.stores.Open("users", 0); err != nil || store.Offset() != 5 {
			t.Errorf("the store is not closed at what was read: %v", err)
		} else if err := store.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		x.notReady(0, users)
		if n := len(x.Progress()); n != 2 { // the copies of rates
			t.Errorf("progress %+v", x.Progress())
		}
	})
}

// A full disk stops one partition; it must say so, lose nothing, and go on by itself.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		full := fmt.Errorf("%w: No space left on device", state.ErrDisk)
		x.faulty(func(op, table string, number int32) error {
			if op == "apply" && table == "users" && number == 0 {
				return full
			}
			return nil
		})
		x.append("users-log", 0, "a=1", "b=2")
		x.append("users-log", 1, "c=3")
		x.Acquire(0, []int{users}, nil)
		x.Acquire(1, []int{users}, nil)
		x.ready(1, users)
		x.notReady(0, users)
		time.Sleep(10 * time.Second)
		x.notReady(0, users)
		if p := x.Progress()[0]; p.Phase != phaseFailed || !errors.Is(p.Err, state.ErrDisk) {
			t.Errorf("progress %+v", p)
		}
		if n := strings.Count(x.log.String(), "level=ERROR msg=\"the disk refuses a table"); n < 2 || n > 5 {
			t.Errorf("%d lines about the disk in 10 s:\n%s", n, &x.log)
		}
		x.logged("partition=1 err=", 0)
		x.faulty(nil)
		time.Sleep(x.tuning.pauseMax)
		x.ready(0, users)
		x.want(users, 0, map[string]string{"a": "1", "b": "2"})

		// The same when a commit finds it.
		store, staged := x.part(users, 0).Store()
		x.faulty(func(op, table string, number int32) error {
			if op == "apply" {
				return full
			}
			return nil
		})
		staged.Stage([]state.Change{{Key: []byte("a"), Value: []byte("7")}})
		x.append("users-log", 0, "a=7")
		err := staged.Commit(staged.Freeze(), store.Offset()+1)
		if !errors.Is(err, state.ErrDisk) {
			t.Fatalf("commit: %v", err)
		}
		x.Failed(users, 0, err)
		x.notReady(0, users)
		x.faulty(nil)
		time.Sleep(x.tuning.pauseMax)
		x.ready(0, users)
		x.want(users, 0, map[string]string{"a": "7", "b": "2"})
	})
}

// A corrupt store must be replaced by what the changelog says, whenever it is found out.
func TestCorruptStoreIsRebuilt(t *testing.T) {
	corrupt := fmt.Errorf("%w: checksum mismatch", state.ErrCorrupt)
	for _, op := range []string{"open", "apply", "read"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTablesFixture(t)
				x.append("users-log", 0, "a=1", "b=2")
				x.Acquire(0, []int{users}, nil)
				x.ready(0, users)
				if op != "read" {
					x.Release(0, []int{users})
					synctest.Wait()
				}
				var once sync.Once
				x.faulty(func(o, table string, number int32) (err error) {
					if o == op && table == "users" {
						once.Do(func() { err = corrupt })
					}
					return err
				})
				if op == "read" {
					v := x.view([]int{users})
					if _, err := v.TableGet(0, 0, 0, []byte("a")); !errors.Is(err, state.ErrCorrupt) {
						t.Fatalf("read: %v", err)
					}
					table, err := x.Trouble(0, []int{users})
					if err == nil || table != users {
						t.Fatalf("trouble %d, %v", table, err)
					}
					x.notReady(0, users)
					x.Failed(table, 0, err)
				} else {
					x.append("users-log", 0, "c=3")
					x.Acquire(0, []int{users}, nil)
				}
				x.ready(0, users)
				want := map[string]string{"a": "1", "b": "2"}
				if op != "read" {
					want["c"] = "3"
				}
				x.want(users, 0, want)
				x.logged("it was set aside", 1)
			})
		})
	}
}

// A corrupt copy is nobody's but its keeper's: nobody else would cure it.
func TestCorruptCopyIsRebuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		x.append("rates-log", 1, "a=1")
		x.Acquire(0, []int{rates}, nil)
		x.ready(0, rates)
		var once sync.Once
		x.faulty(func(op, table string, number int32) (err error) {
			if op == "read" && number == 1 {
				once.Do(func() { err = state.ErrCorrupt })
			}
			return err
		})
		v := x.view([]int{rates})
		if _, err := v.TableGet(0, 0, abi.TableOthers, []byte("a")); !errors.Is(err, state.ErrCorrupt) {
			t.Fatalf("read: %v", err)
		}
		// The batch that read it is void, also when the copy is whole again.
		x.notReady(0, rates)
		table, err := x.Trouble(0, []int{users, rates})
		if table != rates || err == nil {
			t.Fatalf("trouble %d, %v", table, err)
		}
		x.Failed(table, 0, err)
		time.Sleep(x.tuning.pause)
		x.ready(0, rates)
		x.logged("it was set aside", 1)
		if value, err := v.TableGet(0, 0, abi.TableOthers, []byte("a")); err != nil || string(value) != "1" {
			t.Errorf("got %q, %v", value, err)
		}
	})
}

// Every process sees all of a global table, also what others write, and does not begin before it does.
func TestGlobalTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		v := x.view([]int{rates})
		x.append("rates-log", 0, "eur=1", "both=0")
		x.hold("rates-log", 1, 2)
		x.append("rates-log", 1, "usd=2", "both=1", 3)
		x.Acquire(0, []int{rates}, nil)
		x.notReady(0, rates)
		x.hold("rates-log", 1, 0)
		x.ready(0, rates)
		if x.told.Load() == 0 {
			t.Error("nobody was told")
		}
		get := func(own, partition int32, key, want string) {
			t.Helper()
			got, err := v.TableGet(own, 0, partition, []byte(key))
			if err != nil || string(got) != want {
				t.Errorf("get %q of %d in a batch of %d: %q, %v, want %q", key, partition, own, got, err, want)
			}
		}
		get(0, 0, "eur", "1")
		get(0, 0, "usd", "")
		get(0, abi.TableOthers, "usd", "2")
		get(0, abi.TableOthers, "eur", "")
		get(-1, abi.TableOthers, "both", "0")
		get(0, 1, "usd", "2")
		get(0, 7, "usd", "")
		if n, active, entries, err := v.TableInfo(0); err != nil || n != 2 || !slices.Equal(active, []int32{0, 1}) || entries != 4 {
			t.Errorf("info: %d, %v, %d, %v", n, active, entries, err)
		}
		x.append("rates-log", 1, "usd=3")
		synctest.Wait()
		get(0, abi.TableOthers, "usd", "3")

		// What is staged is seen by batches of its own partition only.
		_, staged := x.part(rates, 0).Store()
		staged.Stage([]state.Change{{Key: []byte("eur"), Value: []byte("9")}})
		get(0, 0, "eur", "9")
		get(1, 0, "eur", "1")
		var keys []string
		if err := v.TableScan(0, 0, 1, []byte("u"), []byte("u"), func(k, _ []byte) bool { keys = append(keys, string(k)); return true }); err != nil || !slices.Equal(keys, []string{"usd"}) {
			t.Errorf("scan: %q, %v", keys, err)
		}

		// Given up, it goes on as a copy without what was staged.
		x.Release(0, []int{rates})
		synctest.Wait()
		get(-1, 0, "eur", "1")
		x.append("rates-log", 0, "eur=4")
		synctest.Wait()
		get(-1, 0, "eur", "4")
	})
}

// A standby is there to make taking over cheap: nothing may be read twice, in either direction.
func TestStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		v := x.view([]int{users})
		x.append("users-log", 2, "a=1", "b=2")
		x.Follow([]standby{{users, 2}, {users, 99}})
		synctest.Wait()
		if _, active, _, _ := v.TableInfo(0); len(active) != 0 {
			t.Errorf("active: %v", active)
		}
		if value, err := v.TableGet(-1, 0, abi.TableOthers, []byte("b")); err != nil || string(value) != "2" {
			t.Errorf("got %q, %v", value, err)
		}
		x.Acquire(2, []int{users}, nil)
		x.ready(2, users)
		_, staged := x.part(users, 2).Store()
		staged.Stage([]state.Change{{Key: []byte("c"), Value: []byte("3")}})
		x.Release(2, []int{users})
		x.append("users-log", 2, "d=4")
		synctest.Wait()
		if got := x.content(users, 2); !maps.Equal(got, map[string]string{"a": "1", "b": "2", "d": "4"}) {
			t.Errorf("the standby holds %v", got)
		}
		if got := x.Offsets(); !reflect.DeepEqual(got, map[int]map[int32]int64{users: {2: 3}}) {
			t.Errorf("offsets %v", got)
		}
		if n := x.records(); n != 3 {
			t.Errorf("read %d records, want 3", n)
		}
		x.Follow(nil)
		synctest.Wait()
		x.want(users, 2, map[string]string{})
		if got := x.Offsets(); got[users][2] != 3 {
			t.Errorf("offsets after closing: %v", got)
		}
	})
}

// A process that comes back restores what records wait for first: copies took the disk and the processor from it. But one restore that
// cannot go on must not keep all copies from being followed.
func TestCopiesGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		copied := func() int64 { return x.Offsets()[users][0] }
		x.append("users-log", 1, "a=1", "b=2")
		x.hold("users-log", 1, 1)
		x.Acquire(1, []int{users}, nil)
		synctest.Wait()
		x.append("users-log", 0, "c=3")
		x.Follow([]standby{{users, 0}})
		time.Sleep(giveWayMost / 2)
		if n := copied(); n != 0 {
			t.Errorf("the copy is at %d while a partition is being restored", n)
		}
		x.hold("users-log", 1, 0)
		x.ready(1, users)
		synctest.Wait()
		if n := copied(); n != 1 {
			t.Errorf("the copy is at %d after the restore", n)
		}
		x.append("users-log", 2, "d=4", "e=5")
		x.hold("users-log", 2, 1)
		x.Acquire(2, []int{users}, nil)
		synctest.Wait()
		x.append("users-log", 0, "f=6")
		time.Sleep(giveWayMost + time.Millisecond)
		if n := copied(); n != 2 {
			t.Errorf("the copy is at %d beside a restore that stands", n)
		}
		x.hold("users-log", 2, 0)
		x.ready(2, users)
	})
}

// Owners come and go while others read: run with the race detector.
func TestTablesUnderConcurrentUse(t *testing.T) {
	x := newTablesFixture(t)
	for n := range int32(3) {
		x.append("users-log", n, "a=1", "b=2", "c=3", "d=4")
	}
	stop := make(chan struct{})
	var readers, owners sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			v := x.view([]int{users, rates})
			for {
				select {
				case <-stop:
					return
				default:
				}
				if value, err := v.TableGet(-1, 0, abi.TableOthers, []byte("a")); err != nil || value != nil && string(value) != "1" {
					t.Errorf("got %q, %v", value, err)
				}
				if err := v.TableScan(-1, 0, 1, nil, nil, func(_, _ []byte) bool { return true }); err != nil {
					t.Error(err)
				}
				if _, _, _, err := v.TableInfo(0); err != nil {
					t.Error(err)
				}
				x.Progress()
			}
		})
	}
	for n := range int32(3) {
		owners.Go(func() {
			for i := range 30 {
				x.Acquire(n, []int{users, rates}, []record.Partition{{Topic: "in", Number: n}})
				if i%3 == 0 {
					x.Follow([]standby{{users, n}})
				}
				if i%2 == 0 {
					for !x.Ready(n, []int{users}) {
						time.Sleep(100 * time.Microsecond)
					}
				}
				x.Release(n, []int{users, rates})
			}
		})
	}
	owners.Wait()
	close(stop)
	readers.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := x.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := x.stores.Close(); err != nil {
		t.Fatal(err)
	}
}

// Somebody who waits for a restore wants to know how long.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTablesFixture(t)
		p := &x.part(users, 1).progress
		p.begin(roleActive)
		p.restoring(1000, 11000)
		for i := range int64(4) {
			time.Sleep(time.Second)
			p.at(1000+(i+1)*500, 11000)
		}
		got := x.Progress()[0]
		want := tableProgress{
			Table: "users", Partition: 1, Role: "active", Phase: phaseRestoring,
			Offset: 3000, End: 11000, Left: 8000, Rate: 500, ETA: 16 * time.Second,
		}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		time.Sleep(2 * time.Second)
		x.logged("msg=\"restoring table\" table=users partition=1 role=active phase=restoring offset=3000 left=8000 rate=500 eta=16s", 1)
	})
}

// Entries of a restored table must expire when those of the table it was restored from do.
func TestExpiresFromTheChangelog(t *testing.T) {
	key := func(start uint64) []byte {
		return append([]byte("k"), byte(start>>56), byte(start>>48), byte(start>>40), byte(start>>32), byte(start>>24), byte(start>>16), byte(start>>8), byte(start))
	}
	hour := abi.Table{TTL: 3600_000}
	window := abi.Table{Window: &abi.Window{Size: 100, Step: 50, Expires: 1000}}
	for _, c := range []struct {
		name  string
		table abi.Table
		entry broker.Logged
		want  int64
	}{
		{"no lifetime", abi.Table{}, broker.Logged{Value: []byte("v"), Timestamp: 5}, 0},
		{"lifetime, rounded up", hour, broker.Logged{Value: []byte("v"), Timestamp: 1}, 3600_000 + 56250},
		{"lifetime, even", hour, broker.Logged{Value: []byte("v"), Timestamp: 56250}, 3600_000 + 56250},
		{"deleted", hour, broker.Logged{Timestamp: 1}, 0},
		{"short lifetime", abi.Table{TTL: 10}, broker.Logged{Value: []byte("v"), Timestamp: 3}, 13},
		{"window", window, broker.Logged{Key: key(700), Value: []byte("v"), Timestamp: 9}, 1800},
		{"window that stays", abi.Table{Window: &abi.Window{Size: 100, Step: 100}}, broker.Logged{Key: key(700), Value: []byte("v")}, 0},
		{"window before the epoch", window, broker.Logged{Key: key(^uint64(0) - 9999), Value: []byte("v")}, 1},
		{"not a window's key", window, broker.Logged{Key: []byte("k"), Value: []byte("v")}, 0},
	} {
		if got := expires(&c.table, &c.entry); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
