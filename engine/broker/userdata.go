package broker

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The user data of a join (a MemberState) and of an assignment (a Placement) as bytes. Both begin with a version; what
// follows the known fields is of a later one and skipped. They come from other members of the group, whatever these
// are: every length is checked against what is there before anything is made of it.
const (
	stateVersion     = 1
	placementVersion = 1

	stateBytesMax     = 1 << 20 // of the data of a join
	placementBytesMax = 8 << 20 // of a placement, inflated
	storesMax         = 1 << 14
	tablesMax         = 1 << 14
	instanceBytesMax  = 255
	addressBytesMax   = 1023
	tableBytesMax     = 249 // a table's name is part of a topic's
)

// errUserData says that bytes are not what they are taken for.
var errUserData = errors.New("malformed user data")

// check tells what of the state others would refuse to read.
func (s MemberState) check() error {
	if len(s.Instance) > instanceBytesMax {
		return fmt.Errorf("the instance id has %d bytes; at most %d are possible", len(s.Instance), instanceBytesMax)
	}
	if len(s.Address) > addressBytesMax {
		return fmt.Errorf("the advertised address has %d bytes; at most %d are possible", len(s.Address), addressBytesMax)
	}
	return nil
}

// appendState appends the user data of a join: version, asked, instance, address, then by table its name and the
// (number, offset) of its stores. asked counts the rebalances the member wanted: a join that says nothing new starts none.
func appendState(to []byte, s MemberState, asked uint32) []byte {
	to = append(to, stateVersion)
	to = binary.AppendUvarint(to, uint64(asked))
	to = appendText(to, s.Instance)
	to = appendText(to, s.Address)
	stores := slices.Clone(s.Stores[:min(len(s.Stores), storesMax)])
	slices.SortFunc(stores, func(a, b Store) int { return compareTablePartitions(a.TablePartition, b.TablePartition) })
	tables := 0
	for i := range stores {
		if i == 0 || stores[i].Table != stores[i-1].Table {
			tables++
		}
	}
	to = binary.AppendUvarint(to, uint64(tables))
	for len(stores) > 0 {
		n := 1
		for n < len(stores) && stores[n].Table == stores[0].Table {
			n++
		}
		to = appendText(to, stores[0].Table)
		to = binary.AppendUvarint(to, uint64(n))
		for _, st := range stores[:n] {
			to = binary.AppendUvarint(to, uint64(st.Number))
			to = binary.AppendUvarint(to, uint64(max(st.Offset, 0)))
		}
		stores = stores[n:]
	}
	return to
}

func compareTablePartitions(a, b TablePartition) int {
	if c := strings.Compare(a.Table, b.Table); c != 0 {
		return c
	}
	return int(a.Number) - int(b.Number)
}

func appendText(to []byte, s string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(s))), s...)
}

// parseState reads the user data of a join.
func parseState(b []byte) (MemberState, error) {
	if len(b) > stateBytesMax {
		return MemberState{}, errUserData
	}
	r := reader{b: b}
	if v := r.byte(); v != stateVersion {
		return MemberState{}, fmt.Errorf("%w: version %d", errUserData, v)
	}
	r.number(math.MaxUint32)
	s := MemberState{Instance: r.text(instanceBytesMax), Address: r.text(addressBytesMax)}
	for range r.count(2, storesMax) {
		table := r.text(tableBytesMax)
		for range r.count(2, storesMax-len(s.Stores)) {
			s.Stores = append(s.Stores, Store{
				TablePartition{table, int32(r.number(math.MaxInt32))},
				int64(r.number(math.MaxInt64)),
			})
		}
	}
	if r.bad {
		return MemberState{}, errUserData
	}
	return s, nil
}

// appendShared appends the part of the placement all members get: peers, tables and their owners. index is where a
// table's name stands, for the members' own parts.
func appendShared(to []byte, peers []Peer, owners map[string][]int32) (_ []byte, index map[string]int) {
	to = binary.AppendUvarint(to, uint64(len(peers)))
	for _, p := range peers {
		to = appendText(appendText(to, p.Instance), p.Address)
	}
	tables := make([]string, 0, len(owners))
	for t := range owners {
		tables = append(tables, t)
	}
	slices.Sort(tables)
	index = make(map[string]int, len(tables))
	to = binary.AppendUvarint(to, uint64(len(tables)))
	for i, t := range tables {
		index[t] = i
		to = appendText(to, t)
		to = binary.AppendUvarint(to, uint64(len(owners[t])))
		for _, o := range owners[t] {
			to = binary.AppendUvarint(to, uint64(o+1))
		}
	}
	return to, index
}

// appendPlacement appends the user data of an assignment: version, then deflated the shared part and the (table,
// number) of the member's standbys. Deflated, because every member gets the addresses of all, and the group's state must
// fit into one Kafka message.
func appendPlacement(to, shared []byte, index map[string]int, standbys []TablePartition) []byte {
	body := binary.AppendUvarint(slices.Clone(shared), uint64(len(standbys)))
	for _, s := range standbys {
		body = binary.AppendUvarint(body, uint64(index[s.Table]))
		body = binary.AppendUvarint(body, uint64(s.Number))
	}
	out := bytes.NewBuffer(append(to, placementVersion))
	w, err := flate.NewWriter(out, flate.BestSpeed)
	if err == nil {
		if _, err = w.Write(body); err == nil {
			err = w.Close()
		}
	}
	if err != nil {
		panic("BUG: deflate into memory: " + err.Error())
	}
	return out.Bytes()
}

// parsePlacement reads the user data of an assignment.
func parsePlacement(b []byte) (Placement, error) {
	if len(b) == 0 || b[0] != placementVersion {
		return Placement{}, errUserData
	}
	body, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b[1:])), placementBytesMax+1))
	if err != nil {
		return Placement{}, fmt.Errorf("%w: %w", errUserData, err)
	}
	if len(body) > placementBytesMax {
		return Placement{}, errUserData
	}
	r := reader{b: body}
	var p Placement
	for range r.count(2, len(body)) {
		p.Peers = append(p.Peers, Peer{r.text(instanceBytesMax), r.text(addressBytesMax)})
	}
	n := r.count(2, tablesMax)
	tables := make([]string, 0, n)
	p.Owners = make(map[string][]int32, n)
	for range n {
		table := r.text(tableBytesMax)
		owners := make([]int32, r.count(1, len(body)))
		for i := range owners {
			owners[i] = int32(r.number(uint64(len(p.Peers)))) - 1
		}
		tables = append(tables, table)
		p.Owners[table] = owners
	}
	for range r.count(2, len(body)) {
		table, number := r.number(math.MaxInt32), r.number(math.MaxInt32)
		if r.bad || table >= uint64(len(tables)) {
			return Placement{}, errUserData
		}
		p.Standbys = append(p.Standbys, TablePartition{tables[table], int32(number)})
	}
	if r.bad {
		return Placement{}, errUserData
	}
	return p, nil
}

// reader takes fields off the front of b. After the first bad one it gives zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) number(max uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > max {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count is how many things of at least size bytes each follow.
func (r *reader) count(size, max int) int {
	n := r.number(uint64(max))
	if n*uint64(size) > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) text(max int) string {
	n := r.count(1, max)
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}
