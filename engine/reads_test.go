package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
	apphttp "kaspr.io/kaspr/http"
	"kaspr.io/kaspr/state"
	"kaspr.io/kaspr/state/mem"
	"kaspr.io/kaspr/wasmhost"
)

// Owners that are not known, or are this process itself, cannot be asked; a placement that lies about its peers must not end the process.
func TestOwners(t *testing.T) {
	var none *owners
	o := &owners{self: "me", placement: broker.Placement{
		Peers:  []broker.Peer{{Instance: "me", Address: "http://s@a"}, {Instance: "you", Address: "http://s@b"}},
		Owners: map[string][]int32{"t": {0, 1, -1, 9}},
	}}
	for _, c := range []struct {
		o     *owners
		table string
		n     int32
		want  string
	}{{none, "t", 0, ""}, {o, "t", 0, ""}, {o, "t", 1, "http://s@b"}, {o, "t", 2, ""}, {o, "t", 3, ""}, {o, "t", 4, ""}, {o, "u", 0, ""}} {
		if got := c.o.owner(c.table, c.n); got != c.want {
			t.Errorf("%s/%d: %q, want %q", c.table, c.n, got, c.want)
		}
	}
}

// A partition that nobody can be asked for makes a read an error: an empty answer would be taken for the truth.
func TestLookupOfUnreadable(t *testing.T) {
	a := &App{log: slog.New(slog.DiscardHandler)}
	p := []plan.Table{{Name: "t"}}
	tables := &tables{plan: p}
	parts := []*tablePart{{of: tables, number: 0}, {of: tables, number: 1}}
	_, _, err := a.lookupAll(t.Context(), parts, []byte("k"))
	if !errors.Is(err, wasmhost.ErrNotReady) {
		t.Errorf("error %v", err)
	}
	if _, _, err := a.find(parts, []byte("k")); !errors.Is(err, wasmhost.ErrElsewhere) {
		t.Errorf("error %v", err)
	}
	all := [][]*tablePart{parts}
	tables.parts.Store(&all)
	a.tables = tables
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := a.lookup(ctx, 0, record.RecordPartition, []byte("k")); !errors.Is(err, wasmhost.ErrNotReady) {
		t.Errorf("error %v", err)
	}
}

// FuzzPeerQuestion: whatever is asked, the process lives, and says nothing of partitions it does not have.
func FuzzPeerQuestion(f *testing.F) {
	f.Add(appendBytes(appendNumbers(appendBytes([]byte{getAsked}, []byte("t")), []int32{0, 1}), []byte("key")))
	f.Add(appendBytes(appendNumbers(appendBytes([]byte{staleGetAsked}, []byte("t")), []int32{0, 1}), []byte("key")))
	f.Add(append(appendBytes([]byte{pageAsked}, []byte("t")), 0, 1, 0, 0))
	tables := &tables{plan: []plan.Table{{Name: "t"}}}
	all := [][]*tablePart{{{of: tables, number: 0}}}
	tables.parts.Store(&all)
	a := &App{plan: &plan.Plan{Tables: tables.plan}, tables: tables}
	a.seen.running.Store(true)
	f.Fuzz(func(t *testing.T, question []byte) {
		answer, err := a.answerPeer(question)
		if err == nil && !slices.ContainsFunc([][]byte{{0, 0}, {0}}, func(want []byte) bool { return bytes.Equal(answer, want) }) {
			t.Errorf("answer %v", answer)
		}
	})
}

// FuzzFields: the answer of another process is not trusted.
func FuzzFields(f *testing.F) {
	f.Add([]byte{3, 1, 2, 3, 2, 'a', 'b'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := fields{b: b}
		if n := len(r.numbers()); n > len(b) {
			t.Fatalf("%d numbers of %d bytes", n, len(b))
		}
		if v := r.bytes(); len(v) > len(b) {
			t.Fatalf("%d bytes of %d", len(v), len(b))
		}
	})
}

// staleApp is a process with copies of some partitions of the table "t", which holds nothing as their owner.
func staleApp(t *testing.T, copies map[int32]string) *App {
	t.Helper()
	a := &App{log: slog.New(slog.DiscardHandler), plan: &plan.Plan{Tables: []plan.Table{{Name: "t"}}}, secret: "s", peers: apphttp.NewPeers(nil)}
	a.tables = &tables{plan: a.plan.Tables}
	stores := mem.New()
	all := [][]*tablePart{nil}
	for n := range int32(3) {
		p := &tablePart{of: a.tables, number: n}
		if key, ok := copies[n]; ok {
			store, err := stores.Open("t", n)
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Apply([]state.Change{{Key: []byte(key), Value: []byte("old " + key)}}, 1); err != nil {
				t.Fatal(err)
			}
			p.now.Store(&readable{store: store})
		}
		all[0] = append(all[0], p)
	}
	a.tables.parts.Store(&all)
	a.seen.running.Store(true)
	registry := prometheus.NewRegistry()
	web, err := apphttp.Listen(t.Context(), apphttp.Options{
		Addr: "127.0.0.1:0", App: observer{a}, Registry: registry, Own: registry, Log: a.log, Peer: a.answerTraced, PeerSecret: a.secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	a.seen.web = web
	t.Cleanup(func() {
		if err := web.Close(context.Background()); err != nil {
			t.Error(err)
		}
		a.peers.Close()
		if err := stores.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// With webStaleReads a view must get what any process still has of a partition whose owner is gone, and without it an error, never an old value. That a key
// is not there may be said only if a copy of every partition was read.
func TestStaleReads(t *testing.T) {
	asked := staleApp(t, map[int32]string{0: "a"})
	one, two := staleApp(t, map[int32]string{1: "b"}), staleApp(t, map[int32]string{1: "b", 2: "c"})
	dead := broker.Peer{Instance: "dead", Address: "http://s@127.0.0.1:1"} // owns all of it, as far as anybody knows
	peers := func(apps ...*App) *owners {
		o := &owners{self: "asked", placement: broker.Placement{Peers: []broker.Peer{{Instance: "asked", Address: asked.advertised()}, dead}, Owners: map[string][]int32{"t": {1, 1, 1}}}}
		for i, a := range apps {
			_, port, err := net.SplitHostPort(a.seen.web.Addr())
			if err != nil {
				t.Fatal(err)
			}
			o.placement.Peers = append(o.placement.Peers, broker.Peer{Instance: fmt.Sprint("other", i), Address: "http://s@127.0.0.1:" + port})
		}
		return o
	}
	asked.placement.Store(peers(one, two))
	if _, _, err := asked.lookup(t.Context(), 0, record.RecordPartition, []byte("c")); !errors.Is(err, wasmhost.ErrNotReady) {
		t.Errorf("without webStaleReads: %v", err)
	}
	if _, _, err := asked.page(t.Context(), 0, 2, nil, nil, 1000); !errors.Is(err, wasmhost.ErrNotReady) {
		t.Errorf("a page without webStaleReads: %v", err)
	}
	asked.cfg.Web.StaleReads = true
	for key, want := range map[string]int32{"a": 0, "b": 1, "c": 2} {
		value, at, err := asked.lookup(t.Context(), 0, record.RecordPartition, []byte(key))
		if err != nil || string(value) != "old "+key || at != want {
			t.Errorf("%s: %q in %d, %v", key, value, at, err)
		}
		value, _, err = asked.lookup(t.Context(), 0, want, []byte(key))
		if err != nil || string(value) != "old "+key {
			t.Errorf("%s of its partition: %q, %v", key, value, err)
		}
		entries, more, err := asked.page(t.Context(), 0, want, nil, nil, 1000)
		if err != nil || more || len(entries) != 1 || string(entries[0].Key) != key {
			t.Errorf("the page with %s: %v, %v, %v", key, entries, more, err)
		}
	}
	if value, _, err := asked.lookup(t.Context(), 0, record.RecordPartition, []byte("none")); err != nil || value != nil {
		t.Errorf("a key that no copy has: %q, %v", value, err)
	}
	asked.placement.Store(peers(one)) // nobody has partition 2
	if value, _, err := asked.lookup(t.Context(), 0, record.RecordPartition, []byte("none")); !errors.Is(err, wasmhost.ErrNotReady) {
		t.Errorf("a key that may be where nobody can look: %q, %v", value, err)
	}
	if _, _, err := asked.page(t.Context(), 0, 2, nil, nil, 1000); !errors.Is(err, wasmhost.ErrNotReady) {
		t.Errorf("a page that nobody has: %v", err)
	}
}
