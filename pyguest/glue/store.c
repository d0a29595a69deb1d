/* What the guest knows of tables: the changes of the running call, and values it has read or written, for as long as the host
 * says that nobody else changed them (abi.go, cacheValid). One hash table holds both; an entry's value is what a read gives.
 *
 * A scope is one partition of one table. An entry whose era is not its scope's is not known any more: the host is asked.
 * The undo log has one item for each entry the unit in progress has written; its order is that of the unit's changes. */
#define Py_BUILD_CORE_MODULE 1
#include "store.h"

#include "internal/pycore_pyhash.h"

enum { CACHE_MAX = 8 << 20, DETACHED_MAX = 64 << 10, BUCKETS_MIN = 1024, ENTRY_COST = sizeof(store_entry) + 32, OWN_MAX = 32 };

typedef struct {
    uint32_t table;
    int32_t partition;
    uint32_t era;
    int foreign; /* used in this call and not the batch's own partition: what is known is good for this call only */
    uint64_t scanned; /* serial number of the latest unit that looked through it */
} scope_t;

typedef struct undo {
    store_entry *entry;
    char *value; /* what it was */
    int32_t value_len;
    uint32_t value_cap;
    uint32_t era;
    int64_t expires;
    int changed;
} undo_t;

static scope_t *scopes;
static uint32_t scope_count, scope_cap, scope_last;
static store_entry **buckets;
static size_t bucket_count, entry_count, bytes_held;
static undo_t *undo;
static size_t undo_len, undo_cap;
static uint64_t serials;       /* given to units of earlier calls */
static uint64_t others_read;   /* serial number of the latest unit that read other partitions */
uint64_t store_unit, store_floor;
int store_shared, store_clashed;
static store_entry **changed; /* of the call; an entry may stand here twice */
static size_t changed_len, changed_cap;
static size_t bound = CACHE_MAX; /* of bytes_held: beyond it, what the call did not change is let go */
static int32_t own = -1;
static uint32_t own_scopes[OWN_MAX]; /* of the batch's partition, by table; 0: not looked up yet, else one more than the scope */

int32_t store_own(void) { return own; }

static int grow(void **list, size_t *cap, size_t len, size_t size)
{
    if (len < *cap)
        return 0;
    size_t more = *cap < 64 ? 64 : *cap * 2;
    void *p = realloc(*list, more * size);
    if (p == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *list = p;
    *cap = more;
    return 0;
}

static int find_scope(uint32_t table, int32_t partition, uint32_t *scope)
{
    if (scope_last < scope_count && scopes[scope_last].table == table && scopes[scope_last].partition == partition) {
        *scope = scope_last;
        return 0;
    }
    for (uint32_t i = 0; i < scope_count; i++)
        if (scopes[i].table == table && scopes[i].partition == partition) {
            *scope = scope_last = i;
            return 0;
        }
    size_t cap = scope_cap;
    if (grow((void **)&scopes, &cap, scope_count, sizeof *scopes) < 0)
        return -1;
    scope_cap = (uint32_t)cap;
    scopes[scope_count] = (scope_t){.table = table, .partition = partition, .era = 1};
    *scope = scope_last = scope_count++;
    return 0;
}

static int scope_of(uint32_t table, int32_t partition, uint32_t *scope)
{
    if (partition == own && table < OWN_MAX) {
        if (own_scopes[table] == 0) {
            if (find_scope(table, partition, scope) < 0)
                return -1;
            own_scopes[table] = *scope + 1;
        }
        *scope = own_scopes[table] - 1;
        return 0;
    }
    if (find_scope(table, partition, scope) < 0)
        return -1;
    scope_t *s = &scopes[*scope];
    if (partition != own && !s->foreign) {
        s->foreign = 1;
        s->era++;
    }
    return 0;
}

/* Keys come from strangers: the hash is a keyed one. */
static uint32_t hash_of(uint32_t scope, const char *key, size_t len)
{
    uint64_t h = (uint64_t)_Py_HashBytes(key, (Py_ssize_t)len);
    return (uint32_t)(h ^ h >> 32) ^ scope * 0x9E3779B9u;
}

static int rehash(void)
{
    size_t n = bucket_count == 0 ? BUCKETS_MIN : bucket_count * 2;
    store_entry **fresh = calloc(n, sizeof *fresh);
    if (fresh == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < bucket_count; i++)
        for (store_entry *e = buckets[i], *next; e != NULL; e = next) {
            next = e->next;
            e->next = fresh[e->hash & (n - 1)];
            fresh[e->hash & (n - 1)] = e;
        }
    free(buckets);
    buckets = fresh;
    bucket_count = n;
    return 0;
}

/* Lets go of all that the running call has not changed. */
static void shed(void)
{
    size_t n = 0;
    for (size_t i = 0; i < changed_len; i++)
        if (changed[i]->changed)
            changed[n++] = changed[i];
    changed_len = n;
    for (size_t i = 0; i < bucket_count; i++)
        for (store_entry **at = &buckets[i], *e; (e = *at) != NULL;) {
            if (e->changed || e->touched) {
                at = &e->next;
                continue;
            }
            *at = e->next;
            entry_count--;
            bytes_held -= ENTRY_COST + (size_t)e->key_len + e->value_cap;
            free(e->value);
            free(e);
        }
    if (entry_count == 0) {
        free(buckets);
        buckets = NULL;
        bucket_count = 0;
    }
    bound = bytes_held > CACHE_MAX / 2 ? bytes_held * 2 : CACHE_MAX;
}

static store_entry *find_entry(uint32_t h, uint32_t scope, const char *key, size_t len)
{
    if (bucket_count > 0)
        for (store_entry *e = buckets[h & (bucket_count - 1)]; e != NULL; e = e->next)
            if (e->hash == h && e->scope == scope && (size_t)e->key_len == len && memcmp(e->key, key, len) == 0)
                return e;
    return NULL;
}

/* The entry of a key, made when there is none; a new one is not known. */
static store_entry *entry_of(uint32_t scope, const char *key, size_t len)
{
    uint32_t h = hash_of(scope, key, len);
    store_entry *e = find_entry(h, scope, key, len);
    if (e != NULL)
        return e;
    if (bytes_held > bound && !store_shared) /* who has read what is kept in the entries */
        shed();
    if (entry_count >= bucket_count && rehash() < 0)
        return NULL;
    e = malloc(sizeof *e + len);
    if (e == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    *e = (store_entry){.next = buckets[h & (bucket_count - 1)], .hash = h, .scope = scope, .key_len = (int32_t)len, .value_len = -1};
    memcpy(e->key, key, len);
    buckets[h & (bucket_count - 1)] = e;
    entry_count++;
    bytes_held += ENTRY_COST + len;
    return e;
}

static int known(const store_entry *e) { return e->era == scopes[e->scope].era; }

static int set_value(store_entry *e, const char *value, int32_t len)
{
    if (len > (int32_t)e->value_cap || e->value == NULL) {
        uint32_t cap = len < 16 ? 16 : (uint32_t)len + (uint32_t)len / 4;
        char *p = malloc(cap);
        if (p == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        bytes_held += cap - e->value_cap;
        free(e->value);
        e->value = p;
        e->value_cap = cap;
    }
    if (len > 0)
        memcpy(e->value, value, (size_t)len);
    e->value_len = len;
    e->era = scopes[e->scope].era;
    return 0;
}

/* ---- several units at once ----------------------------------------------------------------------------------------- */

uint64_t store_serial(uint32_t index) { return serials + index; }

void store_unit_begin(uint32_t index)
{
    store_unit = serials + index;
    if (!store_shared)
        store_floor = store_unit;
}

/* Whether what the unit with this serial number wrote must not be seen by the one in progress. */
static int unseen(uint64_t writer)
{
    return writer != store_unit && writer >= store_floor && (writer > store_unit || !kaspr_flight_ended(writer));
}

static int clash(void)
{
    store_clashed = 1;
    PyErr_SetNone(kaspr_runtime.clash);
    return -1;
}

static inline int may_read(store_entry *e)
{
    if (store_shared && unseen(e->written))
        return clash();
    if (e->read < store_unit)
        e->read = store_unit;
    return 0;
}

static inline int may_write(store_entry *e, const scope_t *s)
{
    if (store_shared && (unseen(e->written) || e->read > store_unit || s->scanned > store_unit ||
                         (s->partition != own && others_read > store_unit)))
        return clash();
    e->written = store_unit;
    return 0;
}

static int may_scan(uint32_t table, int32_t partition)
{
    uint32_t scope;
    if (scope_of(table, partition, &scope) < 0)
        return -1;
    for (size_t i = 0; store_shared && i < changed_len; i++)
        if (changed[i]->changed && changed[i]->scope == scope && unseen(changed[i]->written))
            return clash();
    if (scopes[scope].scanned < store_unit)
        scopes[scope].scanned = store_unit;
    return 0;
}

void store_swap(store_log *log)
{
    store_log own_log = {undo, undo_len, undo_cap};
    undo = log->items;
    undo_len = log->len;
    undo_cap = log->cap;
    *log = own_log;
}

/* ---- the host ---------------------------------------------------------------------------------------------------- */

int store_ask(int32_t op, const kbuf *req, kbuf *answer, PyObject *refused)
{
    answer->len = 0;
    if (kbuf_reserve(answer, 4096) < 0)
        return -1;
    int32_t n = kaspr_host_call(op, req->data, (int32_t)req->len, answer->data, (int32_t)answer->cap);
    if (n < 0 && n != KASPR_HOST_REFUSED) { /* -1 - needed: it is kept for us */
        if (kbuf_reserve(answer, (size_t)(-1 - n)) < 0)
            return -1;
        n = kaspr_host_call(op, req->data, (int32_t)req->len, answer->data, (int32_t)answer->cap);
    }
    if (n < 1) {
        PyErr_SetString(PyExc_RuntimeError, "the engine does not offer this here");
        return -1;
    }
    answer->len = (size_t)n;
    if (answer->data[0] == KASPR_TABLE_ERROR || answer->data[0] == KASPR_TABLE_NOT_READY) {
        PyObject *text = PyUnicode_DecodeUTF8(answer->data + 1, n - 1, "replace");
        if (text != NULL)
            PyErr_SetObject(answer->data[0] == KASPR_TABLE_ERROR ? refused : kaspr_runtime.not_ready, text);
        Py_XDECREF(text);
        return -1;
    }
    return 0;
}

static int put_u32(kbuf *b, uint32_t v) { return kbuf_append(b, &v, 4); }

static kbuf request, response; /* no user code runs between filling and reading them */

/* Bounds what large reads leave behind. */
static void trim(kbuf *b)
{
    if (b->cap > 1 << 20)
        kbuf_free(b);
}

int store_others(uint32_t table, const char *key, size_t len, const char **value, int32_t *value_len)
{
    if (others_read < store_unit)
        others_read = store_unit;
    request.len = 0;
    if (put_u32(&request, table) < 0 || put_u32(&request, (uint32_t)KASPR_TABLE_OTHERS) < 0 || kbuf_append(&request, key, len) < 0 ||
        store_ask(KASPR_OP_TABLE_GET, &request, &response, PyExc_RuntimeError) < 0)
        return -1;
    *value = response.data + 1;
    *value_len = response.data[0] == KASPR_TABLE_FOUND ? (int32_t)response.len - 1 : -1;
    return 0;
}

store_entry *store_read(uint32_t table, int32_t partition, const char *key, size_t len)
{
    uint32_t scope;
    if (scope_of(table, partition, &scope) < 0)
        return NULL;
    store_entry *e = entry_of(scope, key, len);
    if (e == NULL || may_read(e) < 0)
        return NULL;
    if (known(e))
        return e;
    request.len = 0;
    if (put_u32(&request, table) < 0 || put_u32(&request, (uint32_t)partition) < 0 || kbuf_append(&request, key, len) < 0 ||
        store_ask(KASPR_OP_TABLE_GET, &request, &response, PyExc_RuntimeError) < 0)
        return NULL;
    if (response.data[0] == KASPR_TABLE_FOUND) {
        if (set_value(e, response.data + 1, (int32_t)response.len - 1) < 0)
            return NULL;
    } else {
        e->value_len = -1;
        e->era = scopes[scope].era;
    }
    trim(&response);
    return e;
}

int store_changed_elsewhere(uint32_t table, const char *key, size_t len)
{
    for (uint32_t i = 0; i < scope_count; i++) {
        const store_entry *e = scopes[i].foreign && scopes[i].table == table ? find_entry(hash_of(i, key, len), i, key, len) : NULL;
        if (e != NULL && e->changed)
            return 1;
    }
    return 0;
}

PyObject *store_page(uint32_t table, int32_t partition, const char *prefix, size_t prefix_len, const char *after, Py_ssize_t after_len)
{
    enum { PAGE = 128 << 10 };
    if (may_scan(table, partition) < 0)
        return NULL;
    request.len = 0;
    if (put_u32(&request, table) < 0 || put_u32(&request, (uint32_t)partition) < 0 || put_u32(&request, PAGE) < 0 ||
        put_u32(&request, (uint32_t)prefix_len) < 0 || put_u32(&request, (uint32_t)(int32_t)after_len) < 0 ||
        kbuf_append(&request, prefix, prefix_len) < 0 || (after_len > 0 && kbuf_append(&request, after, (size_t)after_len) < 0) ||
        store_ask(KASPR_OP_TABLE_SCAN, &request, &response, PyExc_RuntimeError) < 0)
        return NULL;
    PyObject *list = PyList_New(0);
    const char *p = response.data + 1, *end = response.data + response.len;
    while (list != NULL && end - p >= 8) {
        uint32_t k = get32(p), v = get32(p + 4);
        p += 8;
        if (k > (size_t)(end - p) || v > (size_t)(end - p) - k)
            break;
        PyObject *pair = Py_BuildValue("(y#y#)", p, (Py_ssize_t)k, p + k, (Py_ssize_t)v);
        if (pair == NULL || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
        p += (size_t)k + v;
    }
    if (list == NULL)
        return NULL;
    PyObject *r = Py_BuildValue("(NO)", list, response.data[0] == KASPR_TABLE_FOUND ? Py_True : Py_False);
    trim(&response);
    return r;
}

PyObject *store_pending(uint32_t table, int32_t partition)
{
    if (may_scan(table, partition) < 0)
        return NULL;
    PyObject *d = PyDict_New();
    for (size_t i = 0; d != NULL && i < changed_len; i++) {
        store_entry *e = changed[i];
        if (!e->changed || scopes[e->scope].table != table || scopes[e->scope].partition != partition)
            continue;
        PyObject *key = PyBytes_FromStringAndSize(e->key, e->key_len);
        PyObject *value = e->value_len < 0 ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(e->value, e->value_len);
        if (key == NULL || value == NULL || PyDict_SetItem(d, key, value) < 0)
            Py_CLEAR(d);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return d;
}

PyObject *store_info(uint32_t table)
{
    request.len = 0;
    if (put_u32(&request, table) < 0 || store_ask(KASPR_OP_TABLE_INFO, &request, &response, PyExc_RuntimeError) < 0)
        return NULL;
    if (response.len < 17 || (response.len - 17) / 4 < get32(response.data + 13)) {
        PyErr_SetString(PyExc_SystemError, "abi.go and store.c disagree");
        return NULL;
    }
    uint32_t n = get32(response.data + 13);
    PyObject *list = PyTuple_New(n);
    for (uint32_t i = 0; list != NULL && i < n; i++) {
        PyObject *p = PyLong_FromLong((int32_t)get32(response.data + 17 + 4 * (size_t)i));
        if (p == NULL)
            Py_CLEAR(list);
        else
            PyTuple_SET_ITEM(list, i, p);
    }
    return list == NULL ? NULL : Py_BuildValue("(LN)", (long long)get64(response.data + 1), list);
}

int32_t store_partitions(uint32_t table)
{
    request.len = 0;
    if (put_u32(&request, table) < 0 || store_ask(KASPR_OP_TABLE_INFO, &request, &response, PyExc_RuntimeError) < 0)
        return -1;
    return response.len < 17 ? 0 : (int32_t)get32(response.data + 9);
}

/* ---- changes ----------------------------------------------------------------------------------------------------- */

int store_write(uint32_t table, int32_t partition, const char *key, size_t len, const char *value, int32_t value_len, int64_t expires)
{
    uint32_t scope;
    size_t size = len + (value_len < 0 ? 0 : (size_t)value_len);
    if (size > KASPR_CHANGE_BYTES_MAX) {
        PyErr_Format(PyExc_ValueError, "a table write of %zu bytes, key and value, is more than the changelog takes (%d)", size, KASPR_CHANGE_BYTES_MAX);
        return -1;
    }
    if (scope_of(table, partition, &scope) < 0)
        return -1;
    store_entry *e = entry_of(scope, key, len);
    if (e == NULL || may_write(e, &scopes[scope]) < 0)
        return -1;
    if (!e->changed && grow((void **)&changed, &changed_cap, changed_len, sizeof *changed) < 0)
        return -1;
    if (!e->touched) {
        if (grow((void **)&undo, &undo_cap, undo_len, sizeof *undo) < 0)
            return -1;
        undo_t u = {.entry = e, .value_len = e->value_len, .era = e->era, .expires = e->expires, .changed = e->changed};
        /* The old value goes to the log as it is; the new one gets bytes of its own. */
        u.value = e->value;
        u.value_cap = e->value_cap;
        e->value = NULL;
        e->value_cap = 0;
        if (value_len >= 0 && set_value(e, value, value_len) < 0) {
            e->value = u.value;
            e->value_cap = u.value_cap;
            return -1;
        }
        undo[undo_len++] = u;
        e->touched = 1;
    } else if (value_len >= 0 && set_value(e, value, value_len) < 0) {
        return -1;
    }
    if (value_len < 0)
        e->value_len = -1;
    e->era = scopes[scope].era;
    e->expires = value_len < 0 ? 0 : expires;
    if (!e->changed) {
        e->changed = 1;
        changed[changed_len++] = e;
    }
    return 0;
}

int store_emit(uint32_t unit)
{
    for (size_t i = 0; i < undo_len; i++) {
        store_entry *e = undo[i].entry;
        const scope_t *s = &scopes[e->scope];
        size_t value_len = e->value_len < 0 ? 0 : (size_t)e->value_len, size = KASPR_CHANGE_FIXED_SIZE + (size_t)e->key_len + value_len;
        if (kbuf_reserve(&kaspr_result, size) < 0)
            return -1;
        char *p = kaspr_result.data + kaspr_result.len;
        put32(p, (uint32_t)size);
        put32(p + 4, KASPR_ENTRY_CHANGE);
        put32(p + 8, unit);
        put32(p + 12, s->table);
        put32(p + 16, s->partition == own ? (uint32_t)-1 : (uint32_t)s->partition);
        put32(p + 20, (uint32_t)e->key_len);
        put32(p + 24, (uint32_t)e->value_len);
        put64(p + 28, e->expires);
        memcpy(p + KASPR_CHANGE_FIXED_SIZE, e->key, (size_t)e->key_len);
        if (value_len > 0)
            memcpy(p + KASPR_CHANGE_FIXED_SIZE + e->key_len, e->value, value_len);
        kaspr_result.len += size;
    }
    return 0;
}

void store_settle(void)
{
    for (size_t i = 0; i < undo_len; i++)
        undo[i].entry->touched = 0;
}

void store_keep(void)
{
    for (size_t i = 0; i < undo_len; i++) {
        bytes_held -= undo[i].value_cap;
        free(undo[i].value);
    }
    undo_len = 0;
}

void store_undo(void)
{
    while (undo_len > 0) {
        undo_t *u = &undo[--undo_len];
        store_entry *e = u->entry;
        bytes_held -= e->value_cap;
        free(e->value);
        e->value = u->value;
        e->value_cap = u->value_cap;
        e->value_len = u->value_len;
        e->era = u->era;
        e->expires = u->expires;
        e->changed = u->changed;
        e->touched = 0;
    }
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

void store_begin(int32_t partition, uint32_t valid, uint32_t units)
{
    store_undo(); /* nothing is left of a call that ended well */
    static uint32_t before;
    serials += before;
    if (serials == 0)
        serials = 1; /* 0 is no unit's */
    before = units;
    store_shared = store_clashed = 0;
    for (size_t i = 0; i < changed_len; i++)
        changed[i]->changed = 0;
    changed_len = 0;
    own = partition;
    memset(own_scopes, 0, sizeof own_scopes);
    /* What a request or a run reads is not known in the next call: kept, it would only push out of the processor's caches what is. */
    if (bytes_held > (size_t)(kaspr_program.detached ? DETACHED_MAX : CACHE_MAX))
        shed();
    bound = CACHE_MAX;
    for (uint32_t i = 0; i < scope_count; i++) {
        scope_t *s = &scopes[i];
        if (s->foreign || (s->partition == own && (s->table >= 32 || !(valid >> s->table & 1))))
            s->era++;
        s->foreign = 0;
    }
}
