// The crossings that matter, each one call for a whole batch: grocksdb makes one call per key. Everything else (options,
// opening, flushing, properties) goes through grocksdb.
#pragma once
#include <rocksdb/c.h>
#include <stdint.h>
#include <stdlib.h>

// A scratch is what one reader needs; it grows and is used again. Results are in out[0:len] until the next call.
typedef struct {
	char* out;
	size_t len, cap;
	// Arrays of a kst_multi_get, each for room keys.
	const char** keys;
	size_t* sizes;
	rocksdb_pinnableslice_t** values;
	char** errs;
	size_t room;
} kst_scratch;

void kst_scratch_free(kst_scratch* s);

// kst_get puts the value of key[0:n] into s. It returns 1, 0 for no such key, -1 with *err set.
int kst_get(rocksdb_t* db, const rocksdb_readoptions_t* ro, const char* key, size_t n, kst_scratch* s, char** err);

// kst_multi_get puts the values of n keys into s, one behind the other. ends[i] is the end of key i within keys, and becomes
// the length of its value plus one, or 0 for no such key. It returns 0, or -1 with *err set.
int kst_multi_get(rocksdb_t* db, const rocksdb_readoptions_t* ro, rocksdb_column_family_handle_t* cf, const char* keys,
                  uint32_t* ends, size_t n, kst_scratch* s, char** err);

// kst_write writes a WriteBatch in its wire format.
void kst_write(rocksdb_t* db, const rocksdb_writeoptions_t* wo, const char* rep, size_t n, char** err);

// A kst_iter is an iterator from a key to before another, over the moment it was made at.
typedef struct {
	rocksdb_readoptions_t* ro;
	rocksdb_iterator_t* it;
	char* upper; // RocksDB keeps a pointer to it
} kst_iter;

// kst_iter_new makes an iterator over [lower, upper); an upper of length 0 is the end. It returns NULL without memory.
kst_iter* kst_iter_new(rocksdb_t* db, const rocksdb_snapshot_t* snapshot, int fill_cache, size_t readahead,
                       const char* lower, size_t lower_len, const char* upper, size_t upper_len);

// kst_iter_read puts entries into s until one of the bounds is reached: each is the lengths of key and value (uint32), then
// both. It returns their number, or -1 with *err set; *more tells whether the iterator has others.
int64_t kst_iter_read(kst_iter* it, size_t entries_max, size_t bytes_max, kst_scratch* s, int* more, char** err);

void kst_iter_free(kst_iter* it);

// A kst_status is what the bookkeeping needs to know of a database.
typedef struct {
	uint64_t memory;     // bytes of memtables that are not on disk
	uint64_t active;     // bytes of the one that is being written
	uint64_t immutable;  // how many wait for their flush
	uint64_t background; // errors of flushes and compactions so far
} kst_status;

void kst_get_status(rocksdb_t* db, kst_status* s);

// kst_readoptions makes options to read through a snapshot (NULL: none).
rocksdb_readoptions_t* kst_readoptions(const rocksdb_snapshot_t* snapshot);
