package engine

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"kaspr.io/kaspr/engine/broker"
	"kaspr.io/kaspr/engine/plan"
	"kaspr.io/kaspr/engine/record"
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
