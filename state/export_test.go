package state

import (
	"slices"

	"github.com/linxGnu/grocksdb"
)

// Abandon drops a store as SIGKILL does: what is not flushed is gone. (Options say that RocksDB does not flush by itself.)
func Abandon(s Store) {
	p := s.(*partition)
	p.handle.Load().close()
	p.forget()
	p.dir.closed(p)
}

// Folder is where a store is.
func Folder(s Store) string { return s.(*partition).path }

// EncodeBatch is the WriteBatch of an Apply.
func EncodeBatch(changes []Change, offset int64, origin string) []byte {
	var b batch
	b.reset()
	for _, c := range changes {
		b.change(c)
	}
	b.position(position{offset: offset, origin: origin})
	return b.rep
}

// LibraryBatch is the same, made by RocksDB.
func LibraryBatch(changes []Change, offset int64, origin string) []byte {
	b := grocksdb.NewWriteBatch()
	defer b.Destroy()
	for _, c := range changes {
		key := append([]byte{spaceData}, c.Key...)
		switch {
		case c.Value == nil:
			b.Delete(key)
		case c.Expires == 0:
			b.Put(key, append([]byte{headerPlain}, c.Value...))
		default:
			at := []byte{0, 0, 0, 0, 0, 0, 0, 0}
			for i := range 8 {
				at[i] = byte(c.Expires >> (56 - 8*i))
			}
			b.Put(key, slices.Concat([]byte{headerExpires}, at, c.Value))
			b.Put(slices.Concat([]byte{spaceExpiry}, at, c.Key), nil)
		}
	}
	b.Put([]byte{spaceMeta}, position{offset: offset, origin: origin}.encode(nil))
	return slices.Clone(b.Data())
}

// Raw writes to a store's database past all rules.
func Raw(s Store, key, value []byte) error {
	o := grocksdb.NewDefaultWriteOptions()
	defer o.Destroy()
	o.DisableWAL(true)
	return s.(*partition).handle.Load().db.Put(o, key, value)
}

// MemoryUsed is what the accounts say the memtables of a Dir take.
func MemoryUsed(d *Dir) int64 { return d.memory.Load() }

// ContainerMemoryAt is ContainerMemory with another root folder.
var ContainerMemoryAt = containerMemory

// Classify gives a message of RocksDB its meaning.
var Classify = classify
