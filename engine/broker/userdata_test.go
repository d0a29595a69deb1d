package broker

import (
	"bytes"
	"compress/flate"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func testState() MemberState {
	return MemberState{Instance: "i-1", Address: "http://10.0.0.1:6065", Stores: []Store{
		{TablePartition{"a", 0}, 7}, {TablePartition{"a", 300}, 1 << 40}, {TablePartition{"b", 2}, 0},
	}}
}

func testPlacement() Placement {
	return Placement{
		Standbys: []TablePartition{{"a", 1}, {"b", 0}},
		Peers:    []Peer{{"i-1", "http://10.0.0.1:6065"}, {"i-2", ""}},
		Owners:   map[string][]int32{"a": {0, -1, 1}, "b": {1}},
	}
}

func encodePlacement(p Placement) []byte {
	shared, index := appendShared(nil, p.Peers, p.Owners)
	return appendPlacement(nil, shared, index, p.Standbys)
}

// What a member says must reach the leader as it was said, and the leader's answer the member.
func TestUserDataRoundTrip(t *testing.T) {
	state, err := parseState(appendState(nil, testState(), 3))
	if err != nil || !reflect.DeepEqual(state, testState()) {
		t.Errorf("state %+v, %v", state, err)
	}
	if s, err := parseState(appendState(nil, MemberState{}, 0)); err != nil || !reflect.DeepEqual(s, MemberState{}) {
		t.Errorf("empty state %+v, %v", s, err)
	}
	placement, err := parsePlacement(encodePlacement(testPlacement()))
	if err != nil || !reflect.DeepEqual(placement, testPlacement()) {
		t.Errorf("placement %+v, %v", placement, err)
	}
	if p, ok := placement.Owner(TablePartition{"a", 2}); !ok || p.Instance != "i-2" {
		t.Errorf("owner of a/2: %v, %v", p, ok)
	}
	for _, none := range []TablePartition{{"a", 1}, {"a", 3}, {"a", -1}, {"c", 0}} {
		if p, ok := placement.Owner(none); ok {
			t.Errorf("owner of %v: %v", none, p)
		}
	}
}

// A member of a later version appends fields; those of this one must stay readable.
func TestUserDataOfLaterVersions(t *testing.T) {
	if s, err := parseState(append(appendState(nil, testState(), 3), "more"...)); err != nil || !reflect.DeepEqual(s, testState()) {
		t.Errorf("%+v, %v", s, err)
	}
}

// One member with too many stores, too long a name or plain rubbish must not cost the leader memory or a panic.
func TestUserDataIsBounded(t *testing.T) {
	many := MemberState{}
	for i := range storesMax + 5 {
		many.Stores = append(many.Stores, Store{TablePartition{"t", int32(i)}, 1})
	}
	if s, err := parseState(appendState(nil, many, 0)); err != nil || len(s.Stores) != storesMax {
		t.Errorf("%d stores, %v", len(s.Stores), err)
	}
	full := appendState(nil, testState(), 3)
	for n := range full {
		if s, err := parseState(full[:n]); err == nil {
			t.Errorf("cut to %d bytes: %+v", n, s)
		}
	}
	var bomb bytes.Buffer
	bomb.WriteByte(placementVersion)
	w, err := flate.NewWriter(&bomb, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, placementBytesMax+1)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cases := map[string]func() error{
		"empty state":   func() error { _, err := parseState(nil); return err },
		"other version": func() error { _, err := parseState([]byte{9, 0, 0, 0, 0}); return err },
		"many tables":   func() error { _, err := parseState([]byte{1, 0, 0, 0, 0xff, 0xff, 0x03}); return err },
		"long instance": func() error {
			_, err := parseState(appendState(nil, MemberState{Instance: strings.Repeat("i", 256)}, 0))
			return err
		},
		"huge state":       func() error { _, err := parseState(append(full, make([]byte, stateBytesMax)...)); return err },
		"empty placement":  func() error { _, err := parsePlacement(nil); return err },
		"not deflated":     func() error { _, err := parsePlacement([]byte{1, 0xff, 0xff}); return err },
		"inflates too far": func() error { _, err := parsePlacement(bomb.Bytes()); return err },
		"owner who is not": func() error {
			_, err := parsePlacement(encodePlacement(Placement{Owners: map[string][]int32{"a": {0}}}))
			return err
		},
		"long table in join": func() error {
			_, err := parseState(appendState(nil, MemberState{Stores: []Store{{TablePartition{strings.Repeat("t", 250), 0}, 0}}}, 0))
			return err
		},
	}
	for name, parse := range cases {
		if parse() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if (MemberState{Instance: strings.Repeat("i", 256)}).check() == nil || (MemberState{Address: strings.Repeat("a", 1024)}).check() == nil {
		t.Error("a state nobody can read passes the check")
	}
}

// The state of a large group must fit into one Kafka message (1 MB), which the broker writes at every rebalance.
func TestUserDataOfALargeGroupIsSmall(t *testing.T) {
	p := Placement{Owners: map[string][]int32{}}
	for i := range 100 {
		p.Peers = append(p.Peers, Peer{fmt.Sprintf("orders-%d", i), fmt.Sprintf("http://orders-%d.orders.shop.svc.cluster.local:6065", i)})
	}
	for i := range 10 {
		for n := range 100 {
			name := fmt.Sprintf("table-%d", i)
			p.Owners[name] = append(p.Owners[name], int32((n*37)%100))
		}
	}
	shared, index := appendShared(nil, p.Peers, p.Owners)
	if n := len(appendPlacement(nil, shared, index, nil)) * len(p.Peers); n > 500<<10 {
		t.Errorf("placements of 100 members take %d bytes", n)
	} else {
		t.Logf("placements of 100 members, 10 tables of 100 partitions: %d bytes, not deflated %d", n, len(shared)*len(p.Peers))
	}
}

func FuzzMemberState(f *testing.F) {
	f.Add(appendState(nil, testState(), 3))
	f.Add(appendState(nil, MemberState{}, 0))
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0x03})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseState(b)
		if err != nil {
			return
		}
		if len(s.Stores) > storesMax || s.check() != nil {
			t.Fatalf("out of bounds: %d stores, %v", len(s.Stores), s.check())
		}
		for _, st := range s.Stores {
			if st.Number < 0 || st.Offset < 0 {
				t.Fatalf("store %+v", st)
			}
		}
		again, err := parseState(appendState(nil, s, 0))
		slices.SortStableFunc(s.Stores, func(a, b Store) int { return compareTablePartitions(a.TablePartition, b.TablePartition) })
		slices.SortStableFunc(again.Stores, func(a, b Store) int { return compareTablePartitions(a.TablePartition, b.TablePartition) })
		if err != nil || len(again.Stores) != len(s.Stores) || again.Instance != s.Instance || again.Address != s.Address {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

func FuzzPlacement(f *testing.F) {
	f.Add(encodePlacement(testPlacement())[1:])
	f.Add(encodePlacement(Placement{})[1:])
	f.Add([]byte{2, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		// Mostly plain bytes that are deflated here, so that the fuzzer gets past the checksum-like outer coat.
		var coated bytes.Buffer
		coated.WriteByte(placementVersion)
		w, err := flate.NewWriter(&coated, flate.HuffmanOnly)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, data := range [][]byte{b, append([]byte{placementVersion}, b...), coated.Bytes()} {
			p, err := parsePlacement(data)
			if err != nil {
				continue
			}
			for table, owners := range p.Owners {
				for n := range owners {
					p.Owner(TablePartition{table, int32(n)})
				}
			}
			again, err := parsePlacement(encodePlacement(p))
			if err != nil || !reflect.DeepEqual(again, p) {
				t.Fatalf("%+v became %+v, %v", p, again, err)
			}
		}
	})
}
