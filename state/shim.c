#include "shim.h"

#include <stdbool.h>
#include <string.h>

static int no_memory(char** err) {
	*err = strdup("Memory limit: malloc failed");
	return -1;
}

// reserve makes room for n more bytes of output.
static int reserve(kst_scratch* s, size_t n) {
	if (n <= s->cap - s->len) return 0;
	size_t cap = s->cap ? s->cap : 4096;
	while (cap - s->len < n) cap *= 2;
	char* out = realloc(s->out, cap);
	if (!out) return -1;
	s->out = out;
	s->cap = cap;
	return 0;
}

void kst_scratch_free(kst_scratch* s) {
	free(s->out);
	free(s->keys);
	free(s->sizes);
	free(s->values);
	free(s->errs);
	free(s);
}

int kst_get(rocksdb_t* db, const rocksdb_readoptions_t* ro, const char* key, size_t n, kst_scratch* s, char** err) {
	s->len = 0;
	rocksdb_pinnableslice_t* v = rocksdb_get_pinned(db, ro, key, n, err);
	if (*err) {
		if (v) rocksdb_pinnableslice_destroy(v);
		return -1;
	}
	if (!v) return 0;
	size_t size;
	const char* p = rocksdb_pinnableslice_value(v, &size);
	int bad = reserve(s, size);
	if (!bad) {
		memcpy(s->out, p, size);
		s->len = size;
	}
	rocksdb_pinnableslice_destroy(v);
	return bad ? no_memory(err) : 1;
}

int kst_multi_get(rocksdb_t* db, const rocksdb_readoptions_t* ro, rocksdb_column_family_handle_t* cf, const char* keys,
                  uint32_t* ends, size_t n, kst_scratch* s, char** err) {
	s->len = 0;
	if (n > s->room) {
		free(s->keys);
		free(s->sizes);
		free(s->values);
		free(s->errs);
		s->keys = malloc(n * sizeof *s->keys);
		s->sizes = malloc(n * sizeof *s->sizes);
		s->values = malloc(n * sizeof *s->values);
		s->errs = malloc(n * sizeof *s->errs);
		s->room = s->keys && s->sizes && s->values && s->errs ? n : 0;
		if (!s->room) return no_memory(err);
	}
	for (size_t i = 0, at = 0; i < n; at = ends[i++]) {
		s->keys[i] = keys + at;
		s->sizes[i] = ends[i] - at;
	}
	rocksdb_batched_multi_get_cf(db, ro, cf, n, s->keys, s->sizes, s->values, s->errs, false);
	int bad = 0;
	for (size_t i = 0; i < n; i++) {
		rocksdb_pinnableslice_t* v = s->values[i];
		if (s->errs[i]) {
			if (*err) free(s->errs[i]);
			else *err = s->errs[i];
		}
		ends[i] = 0;
		if (!v) continue;
		size_t size;
		const char* p = rocksdb_pinnableslice_value(v, &size);
		if (size >= UINT32_MAX || reserve(s, size)) {
			bad = 1;
		} else {
			memcpy(s->out + s->len, p, size);
			s->len += size;
			ends[i] = size + 1;
		}
		rocksdb_pinnableslice_destroy(v);
	}
	if (*err) return -1;
	return bad ? no_memory(err) : 0;
}

void kst_write(rocksdb_t* db, const rocksdb_writeoptions_t* wo, const char* rep, size_t n, char** err) {
	rocksdb_writebatch_t* b = rocksdb_writebatch_create_from(rep, n);
	rocksdb_write(db, wo, b, err);
	rocksdb_writebatch_destroy(b);
}

kst_iter* kst_iter_new(rocksdb_t* db, const rocksdb_snapshot_t* snapshot, int fill_cache, size_t readahead,
                       const char* lower, size_t lower_len, const char* upper, size_t upper_len) {
	kst_iter* it = malloc(sizeof *it);
	if (!it) return NULL;
	it->upper = NULL;
	if (upper_len && !(it->upper = malloc(upper_len))) {
		free(it);
		return NULL;
	}
	it->ro = kst_readoptions(snapshot);
	rocksdb_readoptions_set_fill_cache(it->ro, fill_cache);
	rocksdb_readoptions_set_readahead_size(it->ro, readahead);
	if (upper_len) {
		memcpy(it->upper, upper, upper_len);
		rocksdb_readoptions_set_iterate_upper_bound(it->ro, it->upper, upper_len);
	}
	it->it = rocksdb_create_iterator(db, it->ro);
	rocksdb_iter_seek(it->it, lower, lower_len);
	return it;
}

int64_t kst_iter_read(kst_iter* it, size_t entries_max, size_t bytes_max, kst_scratch* s, int* more, char** err) {
	s->len = 0;
	int64_t n = 0;
	while (rocksdb_iter_valid(it->it) && (size_t)n < entries_max && s->len < bytes_max) {
		size_t klen, vlen;
		const char* k = rocksdb_iter_key(it->it, &klen);
		const char* v = rocksdb_iter_value(it->it, &vlen);
		uint32_t head[2] = {klen, vlen};
		if (klen > UINT32_MAX || vlen > UINT32_MAX || reserve(s, sizeof head + klen + vlen)) return no_memory(err);
		memcpy(s->out + s->len, head, sizeof head);
		memcpy(s->out + s->len + sizeof head, k, klen);
		memcpy(s->out + s->len + sizeof head + klen, v, vlen);
		s->len += sizeof head + klen + vlen;
		n++;
		rocksdb_iter_next(it->it);
	}
	*more = rocksdb_iter_valid(it->it);
	if (!*more) {
		rocksdb_iter_get_error(it->it, err);
		if (*err) return -1;
	}
	return n;
}

void kst_iter_free(kst_iter* it) {
	rocksdb_iter_destroy(it->it);
	rocksdb_readoptions_destroy(it->ro);
	free(it->upper);
	free(it);
}

void kst_get_status(rocksdb_t* db, kst_status* s) {
	rocksdb_property_int(db, "rocksdb.cur-size-all-mem-tables", &s->memory);
	rocksdb_property_int(db, "rocksdb.cur-size-active-mem-table", &s->active);
	rocksdb_property_int(db, "rocksdb.num-immutable-mem-table", &s->immutable);
	rocksdb_property_int(db, "rocksdb.background-errors", &s->background);
}

rocksdb_readoptions_t* kst_readoptions(const rocksdb_snapshot_t* snapshot) {
	rocksdb_readoptions_t* ro = rocksdb_readoptions_create();
	if (snapshot) rocksdb_readoptions_set_snapshot(ro, snapshot);
	return ro;
}
