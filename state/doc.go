// Package state keeps tables: for each partition of a table a committed prefix of its changelog.
//
// The changelog is the truth, a store is a cache of it. It can be thrown away at any time; what it may never do is show
// something that is not a prefix of the committed changelog. The package knows neither Kafka nor Python nor manifests:
// whoever owns a partition hands in changes and the offset they end at.
//
// # The invariant
//
// A store equals the fold of its changelog up to [Store.Offset]: now, after Close, after SIGKILL, after a power cut. Data
// and offset are written by one RocksDB WriteBatch, into one memtable, which reaches the disk as a whole or not at all.
// There is no write-ahead log: a crash loses the suffix since the last flush, offset included, and recovery reads it from
// the changelog again (see RATIONALE.md, "Why no write-ahead log?").
//
// # Ownership
//
//   - A [Dir] is the state directory of one process (locked against others), with the block cache and the memory bound all
//     its stores share.
//   - A [Store] is one partition. One goroutine at a time owns it: it alone calls Apply, Clear, Flush and Close. Everybody
//     may read, at any time, Close included: a read that comes too late gets [ErrClosed].
//   - A [View] is a Store at one moment. Web views and tasks read through one.
//   - A [Staged] lies over a Store and belongs to the same owner: changes of records that were processed but not committed.
//     Only Commit may run on another goroutine, so that processing goes on during a transaction.
//
// No lock is held across a call into RocksDB. Slices that are returned stay valid and are not to be modified; slices that are
// handed in (keys and values of changes) belong to the package from then on.
//
// # On disk
//
// One RocksDB database per table and partition, in DIR/TABLE/PARTITION. Keys are ordered bytewise. The first byte of a key
// is its space:
//
//	0x00 meta    0x00               -> format version, changelog offset, origin; part of every batch
//	0x01 data    0x01 key           -> header, changelog value; header is 0x00, or 0x01 and an expiry (8 bytes, big endian)
//	0x02 expiry  0x02 time key      -> nothing; time is 8 bytes big endian, so that what expires first comes first
//
// Times are milliseconds since the Unix epoch. The expiry index belongs to Changes with Expires set (table TTL, windows): an
// entry counts only while the data's header names the same time, so overwriting needs no read; the entries left behind
// are dropped once [Store.Expired] has come across them. A windowed table puts the window's start behind its key (8 bytes,
// big endian): the windows of a key lie side by side, in order. Other spaces are free for later formats, which
// must come with a new version.
//
// # Failure
//
// [ErrCorrupt]: the store fails its checks or has an unknown format. [Dir.SetAside] moves it out of the way and the
// next Open makes an empty one, to be restored. [ErrDisk]: the disk is full or fails; the store refuses all further
// changes until it is opened again, and still answers reads. In both cases what is on disk is the prefix up to the last flush.
package state
