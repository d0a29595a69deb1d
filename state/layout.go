package state

import (
	"encoding/binary"
	"fmt"
)

// formatVersion is that of everything in this file; a store of another version is not read but restored anew.
const formatVersion = 1

// Spaces: the first byte of every key (doc.go tells the layout).
const (
	spaceMeta   = 0x00
	spaceData   = 0x01
	spaceExpiry = 0x02
)

// Headers of a data value.
const (
	headerPlain   = 0x00
	headerExpires = 0x01
)

// positionKey is the one key of the meta space.
var positionKey = []byte{spaceMeta}

// position says which prefix of which changelog a store is.
type position struct {
	offset int64
	origin string
}

func (p position) encode(b []byte) []byte {
	b = append(b, formatVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(p.offset))
	return append(b, p.origin...)
}

func decodePosition(b []byte) (position, error) {
	switch {
	case len(b) == 0:
		return position{}, fmt.Errorf("%w: the position record is empty", ErrCorrupt)
	case b[0] != formatVersion:
		return position{}, fmt.Errorf("%w: format version %d, this program knows %d", ErrCorrupt, b[0], formatVersion)
	case len(b) < 9:
		return position{}, fmt.Errorf("%w: the position record is cut off", ErrCorrupt)
	}
	p := position{offset: int64(binary.BigEndian.Uint64(b[1:])), origin: string(b[9:])}
	if p.offset < 0 {
		return position{}, fmt.Errorf("%w: offset %d", ErrCorrupt, p.offset)
	}
	return p, nil
}

// decodeValue takes the header off a data value.
func decodeValue(b []byte) (value []byte, expires int64, err error) {
	switch {
	case len(b) >= 1 && b[0] == headerPlain:
		return b[1:], 0, nil
	case len(b) >= 9 && b[0] == headerExpires:
		return b[9:], int64(binary.BigEndian.Uint64(b[1:])), nil
	}
	return nil, 0, fmt.Errorf("%w: a value without a known header", ErrCorrupt)
}

// upperBound is the least key above all keys that start with prefix; empty when there is none.
func upperBound(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			up := append([]byte(nil), prefix[:i+1]...)
			up[i]++
			return up
		}
	}
	return nil
}

// A batch is a RocksDB WriteBatch in its wire format, built here: RocksDB's own needs a crossing for each record. The format
// is that of the write-ahead log and of replication, so it changes only with a major version; TestBatchFormat compares
// ours with the library's. It is:
//
//	sequence number (8 bytes), count (4 bytes), then records: 0x01 key value, or 0x00 key
//
// integers little endian, keys and values with a varint length before them.
type batch struct{ rep []byte }

const (
	batchHeader = 12
	batchPut    = 0x01
	batchDelete = 0x00
)

func (b *batch) reset() {
	if cap(b.rep) > 4<<20 { // do not keep the memory of one large transaction for ever
		b.rep = nil
	}
	var header [batchHeader]byte
	b.rep = append(b.rep[:0], header[:]...)
}

func (b *batch) started(op byte) {
	b.rep = append(b.rep, op)
	n := b.rep[8:batchHeader]
	binary.LittleEndian.PutUint32(n, binary.LittleEndian.Uint32(n)+1)
}

// change adds one table write: its data, and its entry in the expiry index.
func (b *batch) change(c Change) {
	if c.Expires < 0 {
		panic("BUG: state: a change that expires before the epoch")
	}
	if c.Value == nil {
		b.started(batchDelete)
		b.key(spaceData, c.Key)
		return
	}
	b.started(batchPut)
	b.key(spaceData, c.Key)
	if c.Expires == 0 {
		b.rep = binary.AppendUvarint(b.rep, uint64(1+len(c.Value)))
		b.rep = append(b.rep, headerPlain)
		b.rep = append(b.rep, c.Value...)
		return
	}
	b.rep = binary.AppendUvarint(b.rep, uint64(9+len(c.Value)))
	b.rep = append(b.rep, headerExpires)
	b.rep = binary.BigEndian.AppendUint64(b.rep, uint64(c.Expires))
	b.rep = append(b.rep, c.Value...)
	b.started(batchPut)
	b.expiryKey(Expiry{Key: c.Key, At: c.Expires})
	b.rep = append(b.rep, 0)
}

// deleteExpiry drops an entry of the expiry index.
func (b *batch) deleteExpiry(e Expiry) {
	b.started(batchDelete)
	b.expiryKey(e)
}

func (b *batch) position(p position) {
	b.started(batchPut)
	b.rep = binary.AppendUvarint(b.rep, uint64(len(positionKey)))
	b.rep = append(b.rep, positionKey...)
	b.rep = binary.AppendUvarint(b.rep, uint64(9+len(p.origin)))
	b.rep = p.encode(b.rep)
}

func (b *batch) key(space byte, key []byte) {
	b.rep = binary.AppendUvarint(b.rep, uint64(1+len(key)))
	b.rep = append(b.rep, space)
	b.rep = append(b.rep, key...)
}

func (b *batch) expiryKey(e Expiry) {
	b.rep = binary.AppendUvarint(b.rep, uint64(9+len(e.Key)))
	b.rep = append(b.rep, spaceExpiry)
	b.rep = binary.BigEndian.AppendUint64(b.rep, uint64(e.At))
	b.rep = append(b.rep, e.Key...)
}
