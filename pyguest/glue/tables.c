/* _kaspr.Table: a KasprTable as user code sees it. What happens for every record is here; scans, windows and the like are its
 * subclasses' (runtime/kaspr_tables.py), made of the methods whose names begin with an underscore. */
#include "kjson.h"
#include "store.h"

#include <structmember.h>

typedef struct TableObject {
    PyObject_HEAD
    struct TableObject *base; /* the table this is a view of; NULL: it is the table itself */
    int index, key_codec, value_codec;
    int global, by_key;
    int partitions; /* 0: not asked yet */
    long long ttl; /* milliseconds, 0: none */
    PyObject *name, *help, *changelog;
    PyObject *factory; /* called for the value of a missing key; NULL: a missing key is a KeyError */
} TableObject;

/* ---- bytes of keys and values ------------------------------------------------------------------------------------ */

/* User code may run while a key or value is encoded, and use tables: each use has a buffer of its own, kept for the next. */
enum { SPARE_MAX = 8, SPARE_BYTES = 64 << 10 };
static kbuf spare[SPARE_MAX];
static int spare_count;

static kbuf take_buffer(void)
{
    kbuf b = {0};
    if (spare_count > 0)
        b = spare[--spare_count];
    b.len = 0;
    return b;
}

static void give_buffer(kbuf *b)
{
    if (spare_count < SPARE_MAX && b->cap <= SPARE_BYTES)
        spare[spare_count++] = *b;
    else
        kbuf_free(b);
}

static int encode(int codec, PyObject *v, int is_key, const char *table, kbuf *out)
{
    if (codec == CODEC_JSON)
        return kjson_encode(v, out, !is_key && !kaspr_program.json_exact);
    const char *bytes;
    Py_ssize_t n;
    if (PyUnicode_Check(v)) {
        if ((bytes = PyUnicode_AsUTF8AndSize(v, &n)) == NULL)
            return -1;
    } else if (PyBytes_Check(v)) {
        bytes = PyBytes_AS_STRING(v);
        n = PyBytes_GET_SIZE(v);
    } else {
        PyErr_Format(PyExc_TypeError, "a raw %s of table %s is str or bytes, not %s", is_key ? "key" : "value", table, Py_TYPE(v)->tp_name);
        return -1;
    }
    return kbuf_append(out, bytes, (size_t)n);
}

static const char *name_of(const TableObject *t)
{
    const char *name = t->name == NULL ? NULL : PyUnicode_AsUTF8(t->name);
    if (name == NULL)
        PyErr_Clear();
    return name == NULL ? "?" : name;
}

static PyObject *decode(int codec, const char *bytes, Py_ssize_t n)
{
    return codec == CODEC_JSON ? kjson_decode(bytes, n) : PyBytes_FromStringAndSize(bytes, n);
}

/* Kafka's murmur2 (org.apache.kafka.common.utils.Utils), as its default partitioner uses it. */
static int32_t murmur2(const char *data, size_t n)
{
    const uint32_t m = 0x5bd1e995;
    uint32_t h = 0x9747b28c ^ (uint32_t)n;
    for (; n >= 4; data += 4, n -= 4) {
        uint32_t k = get32(data) * m;
        h = h * m ^ (k ^ k >> 24) * m;
    }
    if (n >= 3)
        h ^= (uint32_t)(uint8_t)data[2] << 16;
    if (n >= 2)
        h ^= (uint32_t)(uint8_t)data[1] << 8;
    if (n >= 1)
        h = (h ^ (uint8_t)data[0]) * m;
    h = (h ^ h >> 13) * m;
    return (int32_t)((h ^ h >> 15) & 0x7fffffff);
}

/* ---- reads and writes -------------------------------------------------------------------------------------------- */

/* Whether t can be used now; then its number of partitions is known. */
static int usable(TableObject *t)
{
    if (kaspr_unit.active) {
        if (t->partitions > 0)
            return 1;
        int32_t n = store_partitions((uint32_t)t->index);
        if (n > 0)
            t->partitions = n;
        else if (n == 0)
            PyErr_SetString(PyExc_SystemError, "the engine does not know the table's partitions");
        return n > 0;
    }
    PyErr_Format(PyExc_RuntimeError, "table %s can be used only while a record is processed, not from init or afterwards", name_of(t));
    return 0;
}

static int32_t home(const TableObject *t, const char *key, size_t len)
{
    return t->by_key ? murmur2(key, len) % t->partitions : store_own();
}

/* The partition that is read for a key; -1 with an exception when it is not this record's to read. A request has none of its own: its
 * -1, without an exception, stands for wherever the key is. */
static int32_t source(const TableObject *t, const char *key, size_t len)
{
    int32_t partition = home(t, key, len);
    if (partition == store_own() || t->global || kaspr_program.detached)
        return partition;
    /* Its owner may be changing it right now: what could be read here would be wrong to build on. */
    PyErr_Format(PyExc_LookupError,
                 "table %s keeps this key in partition %d, and the record comes from partition %d: records that read a table with "
                 "partitionBy: key must be keyed as the table is; send them on under the table's key first", name_of(t), (int)partition, (int)store_own());
    return -1;
}

/* Writes have a place: a partition that the changelog has. */
static int has_partition(const TableObject *t, long partition)
{
    if ((partition >= 0 && partition < t->partitions) || (kaspr_program.detached && partition == store_own()))
        return 1;
    if (partition == store_own() && !t->by_key)
        PyErr_Format(PyExc_ValueError,
                     "table %s has %d partitions, and the record comes from partition %ld: give the table as many partitions as the input topic has",
                     name_of(t), t->partitions, partition);
    else
        PyErr_Format(PyExc_ValueError, "table %s has no partition %ld, it has %d", name_of(t), partition, t->partitions);
    return 0;
}

/* The value's bytes; *len -1 when there is none. They stay until the next use of a table. */
static int lookup(TableObject *t, const kbuf *key, const char **value, int32_t *len)
{
    uint32_t index = (uint32_t)t->index;
    int32_t partition = source(t, key->data, key->len);
    store_entry *e = partition < 0 && PyErr_Occurred() ? NULL : store_read(index, partition, key->data, key->len);
    if (e == NULL)
        return -1;
    *value = e->value;
    *len = e->value_len;
    if (*len >= 0 || !t->global || t->by_key || kaspr_program.detached)
        return 0;
    if (!store_changed_elsewhere(index, key->data, key->len))
        return store_others(index, key->data, key->len, value, len);
    for (int32_t p = 0; *len < 0 && p < t->partitions; p++) {
        if (p == store_own())
            continue;
        if ((e = store_read(index, p, key->data, key->len)) == NULL)
            return -1;
        *value = e->value;
        *len = e->value_len;
    }
    return 0;
}

/* The decoded value of k; NULL without an exception when there is none. */
static PyObject *read_value(TableObject *t, PyObject *k)
{
    if (!usable(t))
        return NULL;
    kbuf key = take_buffer();
    PyObject *r = NULL;
    const char *value;
    int32_t len = -1;
    if (encode(t->key_codec, k, 1, name_of(t), &key) == 0 && lookup(t, &key, &value, &len) == 0 && len >= 0)
        r = decode(t->value_codec, value, len);
    give_buffer(&key);
    return r;
}

static int64_t unit_time(void)
{
    const uint8_t *records = kaspr_unit.batch + KASPR_BATCH_HEADER_SIZE;
    if (kaspr_unit.record != NULL)
        return get64(kaspr_unit.record + 16);
    int64_t latest = 0; /* of a list: its latest record's */
    for (uint32_t i = 0; i < get32(kaspr_unit.batch + 4); i++) {
        int64_t at = get64(records + (size_t)i * KASPR_RECORD_SIZE + 16);
        if (at > latest)
            latest = at;
    }
    return latest;
}

/* Rounded up to 1/64 of the lifetime, so that a key that is written often has few entries in the expiry index. */
static int64_t expiry(const TableObject *t)
{
    if (t->ttl <= 0)
        return 0;
    int64_t step = t->ttl / 64 < 1 ? 1 : t->ttl / 64, at = unit_time() + t->ttl;
    return at <= 0 ? 1 : (at + step - 1) / step * step;
}

/* v NULL deletes. */
static int write_value(TableObject *t, PyObject *k, PyObject *v)
{
    if (!usable(t))
        return -1;
    kbuf key = take_buffer(), value = take_buffer();
    int rc = encode(t->key_codec, k, 1, name_of(t), &key);
    if (rc == 0 && v != NULL)
        rc = encode(t->value_codec, v, 0, name_of(t), &value);
    int32_t partition = rc == 0 ? home(t, key.data, key.len) : 0;
    if (rc == 0 && !has_partition(t, partition))
        rc = -1;
    if (rc == 0)
        rc = store_write((uint32_t)t->index, partition, key.data, key.len, value.data, v == NULL ? -1 : (int32_t)value.len, v == NULL ? 0 : expiry(t));
    give_buffer(&value);
    give_buffer(&key);
    return rc;
}

/* NULL without an exception when the table has no default. */
static PyObject *make_default(TableObject *t)
{
    PyObject *factory = t->base == NULL ? t->factory : t->base->factory;
    if (factory == NULL)
        return NULL;
    Py_INCREF(factory);
    PyObject *v = PyObject_CallNoArgs(factory);
    Py_DECREF(factory);
    return v;
}

/* ---- the mapping ------------------------------------------------------------------------------------------------- */

static PyObject *table_subscript(TableObject *t, PyObject *k)
{
    PyObject *v = read_value(t, k);
    if (v != NULL || PyErr_Occurred())
        return v;
    if ((v = make_default(t)) == NULL && !PyErr_Occurred())
        PyErr_SetObject(PyExc_KeyError, k);
    return v;
}

static int table_ass_subscript(TableObject *t, PyObject *k, PyObject *v) { return write_value(t, k, v); }

static int table_contains(TableObject *t, PyObject *k)
{
    if (!usable(t))
        return -1;
    kbuf key = take_buffer();
    const char *value;
    int32_t len = -1;
    int rc = encode(t->key_codec, k, 1, name_of(t), &key);
    if (rc == 0)
        rc = lookup(t, &key, &value, &len);
    give_buffer(&key);
    return rc < 0 ? -1 : len >= 0;
}

static int one_or_two(const char *name, Py_ssize_t n)
{
    if (n == 1 || n == 2)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s takes a key and at most one default", name);
    return 0;
}

static PyObject *table_get(TableObject *t, PyObject *const *args, Py_ssize_t n)
{
    if (!one_or_two("get", n))
        return NULL;
    PyObject *v = read_value(t, args[0]);
    if (v != NULL || PyErr_Occurred())
        return v;
    if (n == 2)
        return Py_NewRef(args[1]);
    v = make_default(t);
    return v != NULL || PyErr_Occurred() ? v : Py_NewRef(Py_None);
}

static PyObject *table_pop(TableObject *t, PyObject *const *args, Py_ssize_t n)
{
    if (!one_or_two("pop", n))
        return NULL;
    PyObject *v = read_value(t, args[0]);
    if (v != NULL) {
        if (write_value(t, args[0], NULL) < 0)
            Py_CLEAR(v);
        return v;
    }
    if (PyErr_Occurred())
        return NULL;
    if (n == 2)
        return Py_NewRef(args[1]);
    if ((v = make_default(t)) == NULL && !PyErr_Occurred())
        PyErr_SetObject(PyExc_KeyError, args[0]);
    return v;
}

static PyObject *table_setdefault(TableObject *t, PyObject *const *args, Py_ssize_t n)
{
    if (!one_or_two("setdefault", n))
        return NULL;
    PyObject *v = read_value(t, args[0]);
    if (v != NULL || PyErr_Occurred())
        return v;
    v = n == 2 ? Py_NewRef(args[1]) : make_default(t);
    if (v == NULL) {
        if (PyErr_Occurred())
            return NULL;
        v = Py_NewRef(Py_None);
    }
    if (write_value(t, args[0], v) < 0)
        Py_CLEAR(v);
    return v;
}

/* ---- what the Python side is made of ----------------------------------------------------------------------------- */

static PyObject *bytes_of(int codec, PyObject *v, int is_key, const char *table)
{
    kbuf b = take_buffer();
    PyObject *r = encode(codec, v, is_key, table, &b) < 0 ? NULL : PyBytes_FromStringAndSize(b.data, (Py_ssize_t)b.len);
    give_buffer(&b);
    return r;
}

static PyObject *table_key(TableObject *t, PyObject *v) { return bytes_of(t->key_codec, v, 1, name_of(t)); }
static PyObject *table_value(TableObject *t, PyObject *v) { return bytes_of(t->value_codec, v, 0, name_of(t)); }

static PyObject *object_of(int codec, PyObject *bytes)
{
    char *data;
    Py_ssize_t n;
    return PyBytes_AsStringAndSize(bytes, &data, &n) < 0 ? NULL : decode(codec, data, n);
}

static PyObject *table_unkey(TableObject *t, PyObject *bytes) { return object_of(t->key_codec, bytes); }
static PyObject *table_unvalue(TableObject *t, PyObject *bytes) { return object_of(t->value_codec, bytes); }

static PyObject *partition_of(TableObject *t, PyObject *bytes, int32_t (*of)(const TableObject *, const char *, size_t))
{
    char *data;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(bytes, &data, &n) < 0 || !usable(t))
        return NULL;
    int32_t partition = of(t, data, (size_t)n);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(partition);
}

/* _home(key bytes): the partition a key is written to; _source(key bytes): the one it is read from. */
static PyObject *table_home(TableObject *t, PyObject *bytes) { return partition_of(t, bytes, home); }
static PyObject *table_source(TableObject *t, PyObject *bytes) { return partition_of(t, bytes, source); }

/* _read(partition, key bytes): value bytes or None. */
static PyObject *table_read(TableObject *t, PyObject *args)
{
    int partition;
    const char *key;
    Py_ssize_t len;
    if (!PyArg_ParseTuple(args, "iy#", &partition, &key, &len) || !usable(t) || !has_partition(t, partition))
        return NULL;
    store_entry *e = store_read((uint32_t)t->index, partition, key, (size_t)len);
    if (e == NULL)
        return NULL;
    return e->value_len < 0 ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(e->value, e->value_len);
}

/* _write(partition, key bytes, value bytes or None[, expires]); without expires the table's own lifetime. */
static PyObject *table_write(TableObject *t, PyObject *args)
{
    int partition;
    const char *key, *value;
    Py_ssize_t len, value_len;
    long long expires = -1;
    if (!PyArg_ParseTuple(args, "iy#z#|L", &partition, &key, &len, &value, &value_len, &expires) || !usable(t) || !has_partition(t, partition))
        return NULL;
    if (expires < 0)
        expires = value == NULL ? 0 : expiry(t);
    if (store_write((uint32_t)t->index, partition, key, (size_t)len, value, value == NULL ? -1 : (int32_t)value_len, expires) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* _page(partition, prefix, after or None): ([(key, value), ...], more), without this call's changes. */
static PyObject *table_page(TableObject *t, PyObject *args)
{
    int partition;
    const char *prefix, *after;
    Py_ssize_t prefix_len, after_len;
    if (!PyArg_ParseTuple(args, "iy#z#", &partition, &prefix, &prefix_len, &after, &after_len) || !usable(t) || !has_partition(t, partition))
        return NULL;
    return store_page((uint32_t)t->index, partition, prefix, (size_t)prefix_len, after, after == NULL ? -1 : after_len);
}

static PyObject *table_pending(TableObject *t, PyObject *partition)
{
    long p = PyLong_AsLong(partition);
    if ((p == -1 && PyErr_Occurred()) || !usable(t))
        return NULL;
    return store_pending((uint32_t)t->index, (int32_t)p);
}

static PyObject *table_info(TableObject *t, PyObject *unused)
{
    (void)unused;
    return usable(t) ? store_info((uint32_t)t->index) : NULL;
}

/* _count(): how many partitions the table has. */
static PyObject *table_count(TableObject *t, PyObject *unused)
{
    (void)unused;
    return usable(t) ? PyLong_FromLong(t->partitions) : NULL;
}

static PyObject *table_own(TableObject *t, PyObject *unused)
{
    (void)unused;
    return usable(t) ? PyLong_FromLong(store_own()) : NULL;
}

static PyObject *table_time(TableObject *t, PyObject *unused)
{
    (void)unused;
    return usable(t) ? PyLong_FromLongLong(unit_time()) : NULL;
}

/* _set_default(callable) */
static PyObject *table_set_default(TableObject *t, PyObject *factory)
{
    Py_XSETREF(t->factory, Py_NewRef(factory));
    Py_RETURN_NONE;
}

/* _default(otherwise): a missing key's value, or otherwise when the table has none. */
static PyObject *table_default(TableObject *t, PyObject *otherwise)
{
    PyObject *v = make_default(t);
    return v != NULL || PyErr_Occurred() ? v : Py_NewRef(otherwise);
}

/* _view(): another object of the same class for the same table; what the class itself keeps is not set. */
static PyObject *table_view(TableObject *t, PyObject *unused)
{
    (void)unused;
    TableObject *v = (TableObject *)Py_TYPE(t)->tp_alloc(Py_TYPE(t), 0);
    if (v == NULL)
        return NULL;
    v->base = (TableObject *)Py_NewRef(t->base == NULL ? t : t->base);
    v->index = t->index;
    v->key_codec = t->key_codec;
    v->value_codec = t->value_codec;
    v->global = t->global;
    v->by_key = t->by_key;
    v->partitions = t->partitions;
    v->ttl = t->ttl;
    v->name = Py_XNewRef(t->name);
    v->help = Py_XNewRef(t->help);
    v->changelog = Py_XNewRef(t->changelog);
    return (PyObject *)v;
}

static PyMethodDef table_methods[] = {
    {"get", (PyCFunction)(void (*)(void))table_get, METH_FASTCALL, "get(key[, default])"},
    {"pop", (PyCFunction)(void (*)(void))table_pop, METH_FASTCALL, "pop(key[, default])"},
    {"setdefault", (PyCFunction)(void (*)(void))table_setdefault, METH_FASTCALL, "setdefault(key[, default])"},
    {"_key", (PyCFunction)table_key, METH_O, NULL},
    {"_value", (PyCFunction)table_value, METH_O, NULL},
    {"_unkey", (PyCFunction)table_unkey, METH_O, NULL},
    {"_unvalue", (PyCFunction)table_unvalue, METH_O, NULL},
    {"_home", (PyCFunction)table_home, METH_O, NULL},
    {"_source", (PyCFunction)table_source, METH_O, NULL},
    {"_read", (PyCFunction)table_read, METH_VARARGS, NULL},
    {"_write", (PyCFunction)table_write, METH_VARARGS, NULL},
    {"_page", (PyCFunction)table_page, METH_VARARGS, NULL},
    {"_pending", (PyCFunction)table_pending, METH_O, NULL},
    {"_info", (PyCFunction)table_info, METH_NOARGS, NULL},
    {"_count", (PyCFunction)table_count, METH_NOARGS, NULL},
    {"_own", (PyCFunction)table_own, METH_NOARGS, NULL},
    {"_time", (PyCFunction)table_time, METH_NOARGS, NULL},
    {"_set_default", (PyCFunction)table_set_default, METH_O, NULL},
    {"_default", (PyCFunction)table_default, METH_O, NULL},
    {"_view", (PyCFunction)table_view, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef table_members[] = {
    {"name", T_OBJECT, offsetof(TableObject, name), READONLY, NULL},
    {"help", T_OBJECT, offsetof(TableObject, help), READONLY, NULL},
    {"changelog_topic_name", T_OBJECT, offsetof(TableObject, changelog), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    TableObject *t = (TableObject *)type->tp_alloc(type, 0);
    PyObject *name, *help, *changelog;
    if (t == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "iUUUiippL", &t->index, &name, &help, &changelog, &t->key_codec, &t->value_codec, &t->global, &t->by_key,
                          &t->ttl)) {
        Py_DECREF(t);
        return NULL;
    }
    t->name = Py_NewRef(name);
    t->help = Py_NewRef(help);
    t->changelog = Py_NewRef(changelog);
    if (t->index < 0 || (t->key_codec != CODEC_RAW && t->key_codec != CODEC_JSON) ||
        (t->value_codec != CODEC_RAW && t->value_codec != CODEC_JSON)) {
        PyErr_Format(PyExc_ValueError, "table %U: a table has the serializers raw or json", name);
        Py_DECREF(t);
        return NULL;
    }
    return (PyObject *)t;
}

static int table_traverse(TableObject *t, visitproc visit, void *arg)
{
    Py_VISIT(t->factory);
    Py_VISIT(t->base);
    return 0;
}

static int table_clear(TableObject *t)
{
    Py_CLEAR(t->factory);
    Py_CLEAR(t->base);
    return 0;
}

static void table_dealloc(TableObject *t)
{
    PyObject_GC_UnTrack(t);
    table_clear(t);
    Py_CLEAR(t->name);
    Py_CLEAR(t->help);
    Py_CLEAR(t->changelog);
    Py_TYPE(t)->tp_free((PyObject *)t);
}

static PyMappingMethods table_mapping = {
    .mp_subscript = (binaryfunc)table_subscript,
    .mp_ass_subscript = (objobjargproc)table_ass_subscript,
};

static PySequenceMethods table_sequence = {.sq_contains = (objobjproc)table_contains};

PyTypeObject KasprTable_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "_kaspr.Table",
    .tp_basicsize = sizeof(TableObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = table_new,
    .tp_dealloc = (destructor)table_dealloc,
    .tp_traverse = (traverseproc)table_traverse,
    .tp_clear = (inquiry)table_clear,
    .tp_as_mapping = &table_mapping,
    .tp_as_sequence = &table_sequence,
    .tp_methods = table_methods,
    .tp_members = table_members,
};
