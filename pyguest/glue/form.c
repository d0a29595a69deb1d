/* Forms: plain values between the engine, which knows schemas, and Python (wasmhost/abi/abi.go, Form). */
#include "store.h"

#include "kjson.h"

/* ---- decoding ---------------------------------------------------------------------------------------------------- */

typedef struct {
    const char *at, *end;
    int depth;
} reader;

static PyObject *broken(void)
{
    PyErr_SetString(PyExc_SystemError, "the engine's form of a value is broken");
    return NULL;
}

static int get_u32(reader *r, uint32_t *n)
{
    if (r->end - r->at < 4)
        return broken(), -1;
    *n = get32(r->at);
    r->at += 4;
    return 0;
}

static int get_i64(reader *r, int64_t *n)
{
    if (r->end - r->at < 8)
        return broken(), -1;
    *n = get64(r->at);
    r->at += 8;
    return 0;
}

/* Length and bytes, borrowed from the input. */
static int get_bytes(reader *r, const char **bytes, uint32_t *n)
{
    if (get_u32(r, n) < 0)
        return -1;
    if ((size_t)(r->end - r->at) < *n)
        return broken(), -1;
    *bytes = r->at;
    r->at += *n;
    return 0;
}

/* What kaspr_forms makes of values that Python's core has no type for, and back; NULL until it is needed. */
static PyObject *made, *taken;

int kaspr_forms_init(void)
{
    if (made != NULL && taken != NULL)
        return 0;
    PyObject *module = PyImport_ImportModule("kaspr_forms");
    if (module == NULL)
        return -1;
    Py_XSETREF(made, PyObject_GetAttrString(module, "made"));
    Py_XSETREF(taken, PyObject_GetAttrString(module, "taken"));
    Py_DECREF(module);
    return made == NULL || taken == NULL ? -1 : 0;
}

static PyObject *make(int tag, PyObject *payload)
{
    if (payload == NULL || kaspr_forms_init() < 0) {
        Py_XDECREF(payload);
        return NULL;
    }
    PyObject *r = PyObject_CallFunction(made, "iO", tag, payload);
    Py_DECREF(payload);
    return r;
}

/* Keys are the same few texts again and again: field names. Direct mapped; a new key takes the place of another. */
enum { KEYS = 512, KEY_LEN_MAX = 64 };
static struct {
    PyObject *key;
    const char *text;
    uint32_t len;
} keys[KEYS];

static PyObject *key_of(const char *text, uint32_t n)
{
    if (n > KEY_LEN_MAX)
        return PyUnicode_DecodeUTF8(text, n, NULL);
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)text[i]) * 16777619u;
    hash ^= hash >> 15;
    PyObject *old = keys[hash % KEYS].key;
    if (old != NULL && keys[hash % KEYS].len == n && memcmp(keys[hash % KEYS].text, text, n) == 0)
        return Py_NewRef(old);
    PyObject *key = PyUnicode_DecodeUTF8(text, n, NULL);
    if (key == NULL)
        return NULL;
    PyUnicode_InternInPlace(&key); /* user code's d["name"] is then found by identity */
    const char *own = PyUnicode_AsUTF8(key);
    if (own == NULL) {
        Py_DECREF(key);
        return NULL;
    }
    keys[hash % KEYS].key = Py_NewRef(key);
    keys[hash % KEYS].text = own;
    keys[hash % KEYS].len = n;
    Py_XDECREF(old);
    return key;
}

static PyObject *get_form(reader *r);

static PyObject *get_list(reader *r)
{
    uint32_t n;
    if (get_u32(r, &n) < 0)
        return NULL;
    if (n > (size_t)(r->end - r->at)) /* every item is a byte at least */
        return broken();
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (uint32_t i = 0; list != NULL && i < n; i++) {
        PyObject *item = get_form(r);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *get_map(reader *r)
{
    uint32_t n, len;
    if (get_u32(r, &n) < 0)
        return NULL;
    PyObject *dict = PyDict_New();
    for (uint32_t i = 0; dict != NULL && i < n; i++) {
        PyObject *key = NULL, *value = NULL;
        const char *text;
        if (r->at < r->end && *r->at == KASPR_FORM_TEXT) {
            r->at++;
            if (get_bytes(r, &text, &len) == 0)
                key = key_of(text, len);
        } else
            key = get_form(r);
        if (key == NULL || (value = get_form(r)) == NULL || PyDict_SetItem(dict, key, value) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *get_form(reader *r)
{
    if (r->at >= r->end)
        return broken();
    int tag = (unsigned char)*r->at++;
    const char *bytes;
    uint32_t n;
    int64_t i;
    switch (tag) {
    case KASPR_FORM_NULL:
        Py_RETURN_NONE;
    case KASPR_FORM_TRUE:
        Py_RETURN_TRUE;
    case KASPR_FORM_FALSE:
        Py_RETURN_FALSE;
    case KASPR_FORM_INT:
        return get_i64(r, &i) < 0 ? NULL : PyLong_FromLongLong(i);
    case KASPR_FORM_UINT:
        return get_i64(r, &i) < 0 ? NULL : PyLong_FromUnsignedLongLong((uint64_t)i);
    case KASPR_FORM_FLOAT: {
        double d;
        if (get_i64(r, &i) < 0)
            return NULL;
        memcpy(&d, &i, sizeof d);
        return PyFloat_FromDouble(d);
    }
    case KASPR_FORM_TEXT:
        return get_bytes(r, &bytes, &n) < 0 ? NULL : PyUnicode_DecodeUTF8(bytes, n, NULL);
    case KASPR_FORM_BYTES:
        return get_bytes(r, &bytes, &n) < 0 ? NULL : PyBytes_FromStringAndSize(bytes, n);
    case KASPR_FORM_DECIMAL:
    case KASPR_FORM_UUID:
        return get_bytes(r, &bytes, &n) < 0 ? NULL : make(tag, PyUnicode_DecodeUTF8(bytes, n, NULL));
    case KASPR_FORM_DATE:
    case KASPR_FORM_TIME:
    case KASPR_FORM_INSTANT:
    case KASPR_FORM_DATETIME:
        return get_i64(r, &i) < 0 ? NULL : make(tag, PyLong_FromLongLong(i));
    case KASPR_FORM_JSON:
        return get_bytes(r, &bytes, &n) < 0 ? NULL : kjson_decode(bytes, n);
    case KASPR_FORM_ERROR: {
        PyObject *text = get_bytes(r, &bytes, &n) < 0 ? NULL : PyUnicode_DecodeUTF8(bytes, n, "replace");
        if (text != NULL)
            PyErr_SetObject(PyExc_ValueError, text);
        Py_XDECREF(text);
        return NULL;
    }
    case KASPR_FORM_LIST:
    case KASPR_FORM_MAP: {
        if (++r->depth > KASPR_FORM_DEPTH_MAX)
            return broken();
        PyObject *v = tag == KASPR_FORM_LIST ? get_list(r) : get_map(r);
        r->depth--;
        return v;
    }
    }
    return broken();
}

PyObject *kaspr_form_decode(const char *bytes, size_t len)
{
    reader r = {bytes, bytes + len, 0};
    PyObject *v = get_form(&r);
    if (v != NULL && r.at != r.end) {
        Py_DECREF(v);
        return broken();
    }
    return v;
}

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

static int put_tag(kbuf *out, int tag)
{
    char c = (char)tag;
    return kbuf_append(out, &c, 1);
}

static int put_number(kbuf *out, int tag, int64_t n)
{
    return put_tag(out, tag) < 0 ? -1 : kbuf_append(out, &n, 8);
}

static int put_bytes(kbuf *out, int tag, const char *bytes, Py_ssize_t n)
{
    if (n > INT32_MAX / 2) {
        PyErr_SetString(PyExc_ValueError, "the value is too large");
        return -1;
    }
    uint32_t len = (uint32_t)n;
    return put_tag(out, tag) < 0 || kbuf_append(out, &len, 4) < 0 ? -1 : kbuf_append(out, bytes, (size_t)n);
}

static int put_text(kbuf *out, int tag, PyObject *text)
{
    Py_ssize_t n;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &n);
    return utf8 == NULL ? -1 : put_bytes(out, tag, utf8, n);
}

static int put_int(kbuf *out, PyObject *v)
{
    int overflow;
    long long n = PyLong_AsLongLongAndOverflow(v, &overflow);
    if (overflow == 0)
        return n == -1 && PyErr_Occurred() ? -1 : put_number(out, KASPR_FORM_INT, n);
    if (overflow > 0) {
        unsigned long long u = PyLong_AsUnsignedLongLong(v);
        if (!(u == (unsigned long long)-1 && PyErr_Occurred()))
            return put_number(out, KASPR_FORM_UINT, (int64_t)u);
        PyErr_Clear();
    }
    PyObject *text = PyLong_Type.tp_repr(v);
    int rc = text == NULL ? -1 : put_text(out, KASPR_FORM_BIG_INT, text);
    Py_XDECREF(text);
    return rc;
}

static int put_form(PyObject *v, kbuf *out, int depth);

/* User code can run while items are put (kaspr_forms.taken), and change the container: nothing is read ahead. */
static int put_items(PyObject *v, kbuf *out, int tag, int depth)
{
    size_t head = out->len;
    uint32_t n = 0;
    if (put_tag(out, tag) < 0 || kbuf_append(out, &n, 4) < 0)
        return -1;
    if (tag == KASPR_FORM_MAP) {
        Py_ssize_t at = 0;
        PyObject *key, *value;
        while (PyDict_Next(v, &at, &key, &value)) {
            Py_INCREF(key);
            Py_INCREF(value);
            int rc = put_form(key, out, depth) < 0 ? -1 : put_form(value, out, depth);
            Py_DECREF(key);
            Py_DECREF(value);
            if (rc < 0)
                return -1;
            n++;
        }
    } else {
        for (; (Py_ssize_t)n < PySequence_Fast_GET_SIZE(v); n++) {
            PyObject *item = Py_NewRef(PySequence_Fast_GET_ITEM(v, n));
            int rc = put_form(item, out, depth);
            Py_DECREF(item);
            if (rc < 0)
                return -1;
        }
    }
    put32(out->data + head + 1, n);
    return 0;
}

/* A value of another type: kaspr_forms.taken gives (tag, text or int), or (0, a value to take instead). */
static int put_other(PyObject *v, kbuf *out, int depth)
{
    if (kaspr_forms_init() < 0)
        return -1;
    PyObject *pair = PyObject_CallOneArg(taken, v), *payload;
    int tag, rc;
    if (pair == NULL)
        return -1;
    if (!PyArg_ParseTuple(pair, "iO", &tag, &payload))
        rc = -1;
    else if (tag == 0)
        rc = put_form(payload, out, depth);
    else if (PyUnicode_Check(payload))
        rc = put_text(out, tag, payload);
    else {
        long long n = PyLong_AsLongLong(payload);
        rc = n == -1 && PyErr_Occurred() ? -1 : put_number(out, tag, n);
    }
    Py_DECREF(pair);
    return rc;
}

static int put_form(PyObject *v, kbuf *out, int depth)
{
    if (++depth > KASPR_FORM_DEPTH_MAX) {
        PyErr_Format(PyExc_ValueError, "the value is nested deeper than %d levels, or contains itself", (int)KASPR_FORM_DEPTH_MAX);
        return -1;
    }
    if (v == Py_None)
        return put_tag(out, KASPR_FORM_NULL);
    if (v == Py_True || v == Py_False)
        return put_tag(out, v == Py_True ? KASPR_FORM_TRUE : KASPR_FORM_FALSE);
    if (PyUnicode_Check(v))
        return put_text(out, KASPR_FORM_TEXT, v);
    if (PyLong_Check(v))
        return put_int(out, v);
    if (PyFloat_Check(v)) {
        double d = PyFloat_AS_DOUBLE(v);
        int64_t bits;
        memcpy(&bits, &d, sizeof bits);
        return put_number(out, KASPR_FORM_FLOAT, bits);
    }
    if (PyBytes_Check(v))
        return put_bytes(out, KASPR_FORM_BYTES, PyBytes_AS_STRING(v), PyBytes_GET_SIZE(v));
    if (PyByteArray_Check(v))
        return put_bytes(out, KASPR_FORM_BYTES, PyByteArray_AS_STRING(v), PyByteArray_GET_SIZE(v));
    if (PyDict_Check(v))
        return put_items(v, out, KASPR_FORM_MAP, depth);
    if (PyList_Check(v))
        return put_items(v, out, KASPR_FORM_LIST, depth);
    if (PyTuple_Check(v))
        return put_items(v, out, KASPR_FORM_TUPLE, depth);
    return put_other(v, out, depth);
}

static int put_request(const schema_t *s, PyObject *v, int is_key, kbuf *req)
{
    Py_ssize_t n;
    const char *topic = PyUnicode_AsUTF8AndSize(s->topic, &n);
    if (topic == NULL)
        return -1;
    char head[12] = {(char)(s->codec - CODEC_AVRO + KASPR_SERIALIZER_AVRO), (char)is_key};
    put32(head + 4, (uint32_t)s->schema);
    put32(head + 8, (uint32_t)n);
    if (kbuf_append(req, head, sizeof head) < 0 || kbuf_append(req, topic, (size_t)n) < 0)
        return -1;
    if (s->codec != CODEC_JSONSCHEMA)
        return put_form(v, req, 0);
    if (PyBytes_Check(v) || PyByteArray_Check(v)) {
        PyErr_Format(PyExc_TypeError, "%s cannot be encoded as jsonschema: decode it first", Py_TYPE(v)->tp_name);
        return -1;
    }
    size_t start = req->len;
    if (put_bytes(req, KASPR_FORM_JSON, NULL, 0) < 0 || kjson_encode(v, req, !is_key && !kaspr_program.json_exact) < 0)
        return -1;
    put32(req->data + start + 1, (uint32_t)(req->len - start - 5));
    return 0;
}

int kaspr_encode_schema(const schema_t *s, PyObject *v, int is_key, kbuf *out, int32_t *len)
{
    if (v == Py_None) { /* what readers with a schema take for a deletion, as for every serializer of theirs */
        *len = -1;
        return 0;
    }
    kbuf req = {0}, answer = {0};
    int rc = put_request(s, v, is_key, &req);
    if (rc == 0)
        rc = store_ask(KASPR_OP_ENCODE, &req, &answer, PyExc_ValueError);
    if (rc == 0)
        rc = kbuf_append(out, answer.data + 1, answer.len - 1);
    *len = (int32_t)answer.len - 1;
    kbuf_free(&req);
    kbuf_free(&answer);
    return rc;
}
