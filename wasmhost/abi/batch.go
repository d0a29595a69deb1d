package abi

import (
	"encoding/binary"
	"fmt"

	"kaspr.io/kaspr/engine/record"
)

var le = binary.LittleEndian

// BatchBytesMax bounds an encoded batch: offsets in it are 32 bits, and lengths signed.
const BatchBytesMax = 1 << 30

// topicSet numbers the distinct topics of a batch. A batch has one, or a few when topics are co-partitioned.
type topicSet struct {
	names [8]string
	more  []string
	n     int
	last  int
}

func (t *topicSet) index(name string) int {
	if t.n > 0 && t.name(t.last) == name {
		return t.last
	}
	for i := range t.n {
		if t.name(i) == name {
			t.last = i
			return i
		}
	}
	if t.n < len(t.names) {
		t.names[t.n] = name
	} else {
		t.more = append(t.more, name)
	}
	t.last = t.n
	t.n++
	return t.last
}

func (t *topicSet) name(i int) string {
	if i < len(t.names) {
		return t.names[i]
	}
	return t.more[i-len(t.names)]
}

// BatchSize is the number of bytes PutBatch writes, or an error when that is more than BatchBytesMax.
func BatchSize(b *record.Batch) (int, error) {
	var topics topicSet
	size := BatchHeaderSize + len(b.Records)*RecordSize
	forms := false
	for i := range b.Records {
		r := &b.Records[i]
		topics.index(r.Topic)
		size += len(r.Key) + len(r.Value) + len(r.Headers)*HeaderSize
		for j := range r.Headers {
			size += len(r.Headers[j].Key) + len(r.Headers[j].Value)
		}
		if f := r.Forms; f != nil {
			forms = true
			size += len(f.Key) + len(f.Value)
		}
		if size > BatchBytesMax {
			return 0, fmt.Errorf("batch of %d records is larger than %d bytes", len(b.Records), BatchBytesMax)
		}
	}
	for i := range topics.n {
		size += TopicSize + len(topics.name(i))
	}
	if forms {
		size += len(b.Records) * FormsSize
	}
	if size > BatchBytesMax {
		return 0, fmt.Errorf("batch of %d records is larger than %d bytes", len(b.Records), BatchBytesMax)
	}
	return size, nil
}

// AppendBatch appends b's encoding to dst. It panics when BatchSize gives an error.
func AppendBatch(dst []byte, b *record.Batch) []byte {
	size, err := BatchSize(b)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	n := len(dst)
	dst = append(dst, make([]byte, size)...)
	PutBatch(dst[n:], b)
	return dst
}

// PutBatch writes b's encoding to dst, whose length must be what BatchSize gives, and allocates nothing (for up to eight
// topics). It overwrites all of dst, so dst may be a guest's memory with anything in it.
//
// Layout: header, records, topics, headers, forms, bytes.
func PutBatch(dst []byte, b *record.Batch) {
	var topics topicSet
	headers := 0
	forms := false
	for i := range b.Records {
		topics.index(b.Records[i].Topic)
		headers += len(b.Records[i].Headers)
		forms = forms || b.Records[i].Forms != nil
	}
	topicsOff := BatchHeaderSize + len(b.Records)*RecordSize
	headersOff := topicsOff + topics.n*TopicSize
	off := headersOff + headers*HeaderSize // where the next bytes go
	formsOff := 0
	if forms {
		formsOff = off
		off += len(b.Records) * FormsSize
	}

	flags := uint32(0)
	if b.Take {
		flags |= FlagTake
	}
	if b.StopOnFailure {
		flags |= FlagStopOnFailure
	}
	h := dst[:BatchHeaderSize]
	le.PutUint32(h[0:], BatchMagic)
	le.PutUint32(h[4:], uint32(len(b.Records)))
	le.PutUint32(h[8:], flags)
	le.PutUint32(h[12:], uint32(topics.n))
	le.PutUint32(h[16:], uint32(topicsOff))
	le.PutUint32(h[20:], b.CacheValid)
	le.PutUint32(h[24:], uint32(formsOff))
	le.PutUint32(h[BatchConcurrency:], uint32(b.Concurrency))

	for i := range topics.n {
		name := topics.name(i)
		t := dst[topicsOff+i*TopicSize:][:TopicSize]
		le.PutUint32(t[0:], uint32(off))
		le.PutUint32(t[4:], uint32(len(name)))
		off += copy(dst[off:], name)
	}
	for i := range b.Records {
		r := &b.Records[i]
		e := dst[BatchHeaderSize+i*RecordSize:][:RecordSize]
		le.PutUint32(e[0:], uint32(topics.index(r.Topic)))
		le.PutUint32(e[4:], uint32(r.Partition))
		le.PutUint64(e[8:], uint64(r.Offset))
		le.PutUint64(e[16:], uint64(r.Timestamp))
		le.PutUint32(e[24:], uint32(r.TimestampType))
		le.PutUint32(e[28:], uint32(r.Attempt))
		off = putBytes(dst, e[32:40], off, r.Key)
		off = putBytes(dst, e[40:48], off, r.Value)
		le.PutUint32(e[48:], uint32(headersOff))
		le.PutUint32(e[52:], uint32(len(r.Headers)))
		for j := range r.Headers {
			h := dst[headersOff:][:HeaderSize]
			le.PutUint32(h[0:], uint32(off))
			le.PutUint32(h[4:], uint32(len(r.Headers[j].Key)))
			off += copy(dst[off:], r.Headers[j].Key)
			off = putBytes(dst, h[8:16], off, r.Headers[j].Value)
			headersOff += HeaderSize
		}
		if forms {
			e := dst[formsOff+i*FormsSize:][:FormsSize]
			f := r.Forms
			if f == nil {
				f = &noForms
			}
			off = putBytes(dst, e[0:8], off, f.Key)
			off = putBytes(dst, e[8:16], off, f.Value)
		}
	}
	if off != len(dst) {
		panic("BUG: the batch changed between BatchSize and PutBatch")
	}
}

var noForms record.Forms

// putBytes writes v at off and its offset and length to at; nil is Kafka's null.
func putBytes(dst, at []byte, off int, v []byte) int {
	le.PutUint32(at[0:], uint32(off))
	if v == nil {
		le.PutUint32(at[4:], ^uint32(0))
		return off
	}
	le.PutUint32(at[4:], uint32(len(v)))
	return off + copy(dst[off:], v)
}
