/* From a value to output entries: selectors, checks, encoding. Also what app.send and topicSend write. */
#include "kaspr.h"

enum { TOPIC_MAX = 249 };

/* An error of ours about what a selector returned, or of a codec: not the user's exception. */
static int encode_error(void)
{
    kaspr_unit.failure = KASPR_FAILURE_ENCODE;
    return -1;
}

static int check_topic(PyObject *topic, const char **text, Py_ssize_t *len)
{
    if (!PyUnicode_Check(topic)) {
        PyErr_Format(PyExc_TypeError, "a topic's name is a str, not %s", Py_TYPE(topic)->tp_name);
        return -1;
    }
    *text = PyUnicode_AsUTF8AndSize(topic, len);
    if (*text == NULL)
        return -1;
    int good = *len > 0 && *len <= TOPIC_MAX && !(*len <= 2 && memcmp(*text, "..", (size_t)*len) == 0);
    for (Py_ssize_t i = 0; good && i < *len; i++) {
        unsigned char c = (unsigned char)(*text)[i];
        good = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    }
    if (!good) {
        if (*len == 0)
            PyErr_SetString(PyExc_ValueError, "the topic's name is empty");
        else
            PyErr_Format(PyExc_ValueError, "%R is not a topic's name: at most %d letters, digits, dots, underscores and dashes",
                         topic, (int)TOPIC_MAX);
        return -1;
    }
    return 0;
}

static int partition_of(PyObject *v, int32_t *partition)
{
    if (v == NULL || v == Py_None) {
        *partition = KASPR_PARTITION_BY_KEY;
        return 0;
    }
    if (PyBool_Check(v) || !PyIndex_Check(v)) {
        PyErr_Format(PyExc_TypeError, "a partition is an int or None, not %s", Py_TYPE(v)->tp_name);
        return -1;
    }
    PyObject *number = PyNumber_Index(v);
    if (number == NULL)
        return -1;
    int overflow;
    long long n = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (overflow != 0 || n < 0 || n > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%S is not a partition", number);
        Py_DECREF(number);
        return -1;
    }
    Py_DECREF(number);
    *partition = (int32_t)n;
    return 0;
}

static int put_header(PyObject *key, PyObject *value, kbuf *out)
{
    if (!PyUnicode_Check(key)) {
        PyErr_Format(PyExc_TypeError, "a header's name is a str, not %s", Py_TYPE(key)->tp_name);
        return -1;
    }
    Py_ssize_t key_len, value_len = -1;
    const char *key_text = PyUnicode_AsUTF8AndSize(key, &key_len), *bytes = NULL;
    if (key_text == NULL)
        return -1;
    if (PyBytes_Check(value)) {
        bytes = PyBytes_AS_STRING(value);
        value_len = PyBytes_GET_SIZE(value);
    } else if (PyUnicode_Check(value)) {
        if ((bytes = PyUnicode_AsUTF8AndSize(value, &value_len)) == NULL)
            return -1;
    } else if (PyByteArray_Check(value)) {
        bytes = PyByteArray_AS_STRING(value);
        value_len = PyByteArray_GET_SIZE(value);
    } else if (value != Py_None) {
        PyErr_Format(PyExc_TypeError, "the value of header %R is a str, bytes or None, not %s", key, Py_TYPE(value)->tp_name);
        return -1;
    }
    char fixed[8];
    put32(fixed, (uint32_t)key_len);
    put32(fixed + 4, (uint32_t)(int32_t)value_len);
    return kbuf_append(out, fixed, 8) < 0 || kbuf_append(out, key_text, (size_t)key_len) < 0 ||
                   (value_len > 0 && kbuf_append(out, bytes, (size_t)value_len) < 0)
               ? -1
               : 0;
}

/* A mapping or an iterable of pairs. The number of headers, or -1. */
static Py_ssize_t put_headers(PyObject *headers, kbuf *out)
{
    if (headers == NULL || headers == Py_None)
        return 0;
    PyObject *pairs = NULL; /* a list or tuple */
    if (PyDict_CheckExact(headers)) {
        Py_ssize_t at = 0, count = 0;
        PyObject *key, *value;
        while (PyDict_Next(headers, &at, &key, &value)) { /* put_header runs no user code */
            if (put_header(key, value, out) < 0)
                return -1;
            count++;
        }
        return count;
    }
    if (PyList_CheckExact(headers) || PyTuple_CheckExact(headers)) /* the usual forms, which need no look for a method */
        pairs = PySequence_Tuple(headers);
    else if (!PyUnicode_Check(headers) && !PyBytes_Check(headers)) {
        int has_items = PyMapping_Check(headers) ? PyObject_HasAttrStringWithError(headers, "items") : 0;
        if (has_items < 0) /* user code's own error */
            return -1;
        pairs = has_items ? PyMapping_Items(headers) : PySequence_Tuple(headers);
    }
    if (pairs == NULL) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "headers are a mapping of str to bytes or a list of pairs, not %s",
                         Py_TYPE(headers)->tp_name);
        }
        return -1;
    }
    Py_ssize_t count = PySequence_Fast_GET_SIZE(pairs);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PySequence_Fast(PySequence_Fast_GET_ITEM(pairs, i), "headers are pairs of a name and a value");
        if (pair == NULL)
            goto fail;
        if (PySequence_Fast_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "headers are pairs of a name and a value");
            Py_DECREF(pair);
            goto fail;
        }
        int rc = put_header(PySequence_Fast_GET_ITEM(pair, 0), PySequence_Fast_GET_ITEM(pair, 1), out);
        Py_DECREF(pair);
        if (rc < 0)
            goto fail;
    }
    Py_DECREF(pairs);
    return count;
fail:
    Py_DECREF(pairs);
    return -1;
}

typedef struct {
    int32_t index;
    const char *topic;
    Py_ssize_t topic_len;
    int32_t partition;
    int64_t timestamp;
    schema_t key_codec, value_codec;
    PyObject *key, *value, *headers; /* key and headers may be NULL */
    const output_t *names;           /* for failures; NULL: leave kaspr_unit.where alone */
} message_t;

static int encode(const schema_t *codec, PyObject *v, int is_key, kbuf *out, int32_t *len)
{
    return codec->codec < CODEC_AVRO ? kaspr_encode(codec->codec, v, is_key, out, len) : kaspr_encode_schema(codec, v, is_key, out, len);
}

/* Writes one EntryOutput. On failure out is as before. */
static int put_entry(const message_t *m, kbuf *out)
{
    size_t start = out->len;
    if (kbuf_reserve(out, KASPR_OUTPUT_FIXED_SIZE + (size_t)m->topic_len) < 0)
        return -1;
    out->len += KASPR_OUTPUT_FIXED_SIZE;
    if (m->topic_len > 0)
        kbuf_append(out, m->topic, (size_t)m->topic_len);
    int32_t key_len = -1, value_len = -1;
    if (m->key != NULL && m->key != Py_None) {
        if (m->names != NULL)
            kaspr_unit.where = m->names->where_key;
        if (encode(&m->key_codec, m->key, 1, out, &key_len) < 0)
            goto fail;
    }
    if (m->names != NULL)
        kaspr_unit.where = m->names->where_value;
    if (encode(&m->value_codec, m->value, 0, out, &value_len) < 0)
        goto fail;
    Py_ssize_t headers = 0;
    if (m->headers != NULL && m->headers != Py_None) {
        if (m->names != NULL)
            kaspr_unit.where = m->names->headers.where;
        headers = put_headers(m->headers, out);
        if (headers < 0)
            goto fail;
    }
    if (out->len - start > INT32_MAX / 2) {
        PyErr_SetString(PyExc_ValueError, "the message is too large");
        goto fail;
    }
    char *e = out->data + start;
    put32(e, (uint32_t)(out->len - start));
    put32(e + 4, KASPR_ENTRY_OUTPUT);
    put32(e + 8, kaspr_unit.index);
    put32(e + 12, (uint32_t)m->index);
    put32(e + 16, (uint32_t)m->topic_len);
    put32(e + 20, (uint32_t)m->partition);
    put64(e + 24, (uint64_t)m->timestamp);
    put32(e + 32, (uint32_t)key_len);
    put32(e + 36, (uint32_t)value_len);
    put32(e + 40, (uint32_t)headers);
    return 0;
fail:
    out->len = start;
    return -1;
}

/* put_entry at the end of the result, followed by what user code sent while it was being encoded. */
static int put_result(const message_t *m)
{
    unit_t *u = &kaspr_unit;
    if (u->building) { /* sent by user code that a codec called */
        kbuf own = {0};
        int rc = put_entry(m, &own);
        if (rc == 0)
            rc = kbuf_append(&u->aside, own.data, own.len);
        kbuf_free(&own);
        return rc;
    }
    u->building = 1;
    int rc = put_entry(m, &kaspr_result);
    u->building = 0;
    if (u->aside.len > 0) {
        if (rc == 0)
            rc = kbuf_append(&kaspr_result, u->aside.data, u->aside.len);
        u->aside.len = 0;
    }
    return rc;
}

static int declare(output_t *o, PyObject *topic)
{
    if (o->declare == NULL)
        return 0;
    int known = PySet_Contains(o->declared, topic);
    if (known != 0)
        return known < 0 ? -1 : 0;
    /* The name is checked before and needs no escapes; declare is {} or its members. */
    PyObject *req = PyUnicode_FromFormat("{\"name\": \"%U\"%s%U}", topic, PyUnicode_GET_LENGTH(o->declare) > 0 ? ", " : "", o->declare);
    if (req == NULL)
        return -1;
    Py_ssize_t n;
    const char *text = PyUnicode_AsUTF8AndSize(req, &n), *answer;
    Py_ssize_t len = text == NULL ? -1 : kaspr_host(KASPR_OP_ENSURE_TOPIC, text, (size_t)n, &answer);
    PyObject *r = len < 0 ? NULL : PyObject_CallFunction(kaspr_runtime.acked, "y#", answer, len);
    Py_DECREF(req);
    if (r == NULL) {
        kaspr_unit.failure = KASPR_FAILURE_SEND;
        return -1;
    }
    Py_DECREF(r);
    return PySet_Add(o->declared, topic);
}

/* What a selector returns: a value, not a generator. NULL with an exception; 1 in *code when it is the user's own. */
static PyObject *select_value(const code_t *c, PyObject *value, const op_t *op)
{
    PyObject *r = kaspr_call(c, value, op);
    if (r != NULL && Py_TYPE(r)->tp_as_async != NULL && (PyGen_CheckExact(r) || PyAsyncGen_CheckExact(r))) {
        Py_DECREF(r);
        PyErr_SetString(PyExc_TypeError, "a selector returns a value, not a generator");
        return NULL;
    }
    return r;
}

int kaspr_emit(output_t *o, PyObject *value, const op_t *op, PyObject **answer)
{
    int rc = EMIT_ERROR;
    PyObject *topic = NULL, *key = NULL, *payload = NULL, *headers = NULL;
    message_t m = {.index = o->index, .names = o};

    if (o->predicate.func != NULL) {
        PyObject *r = select_value(&o->predicate, value, op);
        if (r == NULL)
            return EMIT_ERROR;
        int truth = r == Py_True ? 1 : r == Py_False ? 0 : PyObject_IsTrue(r);
        Py_DECREF(r);
        if (truth <= 0)
            return truth < 0 ? EMIT_ERROR : EMIT_DROPPED;
    }
    if (o->name.func != NULL) {
        topic = select_value(&o->name, value, op);
        if (topic == NULL)
            goto done;
        m.index = -1;
        if (check_topic(topic, &m.topic, &m.topic_len) < 0) {
            encode_error();
            goto done;
        }
    } else {
        topic = Py_NewRef(o->topic);
        if (m.index < 0 || answer != NULL) {
            m.index = -1;
            m.topic = PyUnicode_AsUTF8AndSize(topic, &m.topic_len);
        }
    }
    m.partition = KASPR_PARTITION_BY_KEY;
    if (o->key.func != NULL) {
        if ((key = select_value(&o->key, value, op)) == NULL)
            goto done;
    } else if (o->carry != CARRY_NOTHING) {
        if ((key = kaspr_unit_key()) == NULL)
            goto done;
        if (o->carry == CARRY_ALL)
            m.partition = (int32_t)get32(kaspr_unit.batch + KASPR_BATCH_HEADER_SIZE + 4); /* one for all records of a batch */
    }
    if (o->value.func != NULL) {
        payload = select_value(&o->value, value, op);
        if (payload == NULL)
            goto done;
    } else {
        payload = Py_NewRef(o->no_value ? Py_None : value);
    }
    if (o->partition.func != NULL) {
        PyObject *r = select_value(&o->partition, value, op);
        if (r == NULL)
            goto done;
        int bad = partition_of(r, &m.partition);
        Py_DECREF(r);
        if (bad) {
            encode_error();
            goto done;
        }
    }
    if (o->headers.func != NULL)
        headers = select_value(&o->headers, value, op);
    else if (o->carry == CARRY_ALL)
        headers = kaspr_unit_headers();
    if (headers == NULL && (o->headers.func != NULL || o->carry == CARRY_ALL))
        goto done;

    if (o->declare != NULL) {
        kaspr_unit.where = o->where_topic;
        if (declare(o, topic) < 0)
            goto done;
    }
    m.key_codec = (schema_t){o->key_codec, o->key_schema, topic};
    m.value_codec = (schema_t){o->value_codec, o->value_schema, topic};
    m.key = key;
    m.value = payload;
    m.headers = headers;
    if (answer == NULL) {
        if (put_result(&m) < 0) {
            encode_error();
            goto done;
        }
    } else {
        kbuf own = {0};
        if (put_entry(&m, &own) < 0) {
            kbuf_free(&own);
            encode_error();
            goto done;
        }
        const char *text;
        kaspr_unit.where = o->where_topic;
        Py_ssize_t len = kaspr_host(kaspr_concurrent ? KASPR_OP_SEND_START : KASPR_OP_SEND, own.data, own.len, &text);
        kbuf_free(&own);
        if (kaspr_concurrent && len == 4) {
            kaspr_unit.run.ticket = get32(text);
            kaspr_unit.sent = 1;
            rc = EMIT_WAITS;
            goto done;
        }
        *answer = len < 0 ? NULL : PyObject_CallFunction(kaspr_runtime.acked, "y#", text, len);
        if (*answer == NULL) {
            kaspr_unit.failure = KASPR_FAILURE_SEND;
            goto done;
        }
    }
    rc = EMIT_SENT;
done:
    Py_XDECREF(topic);
    Py_XDECREF(key);
    Py_XDECREF(payload);
    Py_XDECREF(headers);
    return rc;
}

/* What a response's selector gives; NULL with an exception. */
static PyObject *selected(const code_t *c, PyObject *value)
{
    PyObject *r = select_value(c, value, NULL);
    kaspr_unit.where = c->where;
    return r;
}

static int status_of(PyObject *v, int32_t *status)
{
    int overflow = 0;
    long n = PyLong_Check(v) && !PyBool_Check(v) ? PyLong_AsLongAndOverflow(v, &overflow) : -1;
    if (overflow != 0 || n < 200 || n > 599) {
        PyErr_Format(PyExc_ValueError, "a status is an int from 200 to 599, not %R", v);
        return encode_error();
    }
    *status = (int32_t)n;
    return 0;
}

/* What contentType takes, and in which codec it is sent. */
static int check_body(int content, PyObject *body, int *codec)
{
    *codec = content == CONTENT_JSON ? CODEC_JSON : CODEC_RAW;
    if (content == CONTENT_JSON || body == Py_None)
        return 0;
    if (content == CONTENT_BYTES ? PyBytes_Check(body) || PyByteArray_Check(body) : PyUnicode_Check(body))
        return 0;
    if (content == CONTENT_BYTES)
        PyErr_Format(PyExc_TypeError, "the body of application/octet-stream is bytes or None, not %s", Py_TYPE(body)->tp_name);
    else
        PyErr_Format(PyExc_TypeError, "the body of a text is a str or None, not %s: with contentType application/json it is sent as JSON",
                     Py_TYPE(body)->tp_name);
    return encode_error();
}

static int respond(message_t *m)
{
    m->index = -1;
    m->topic = KASPR_RESPONSE_TOPIC;
    m->topic_len = sizeof KASPR_RESPONSE_TOPIC - 1;
    return put_result(m) < 0 ? encode_error() : 0;
}

int kaspr_respond_empty(int status)
{
    return respond(&(message_t){.partition = status, .value = Py_None, .headers = kaspr_program.view->headers});
}

/* Whether what a pipeline gave says itself what to answer. A plain tuple of three does where it could not be anything else: it may be
 * a JSON array, or what bodySelector makes a body of. */
int kaspr_is_response(PyObject *value)
{
    const view_t *v = kaspr_program.view;
    return PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 3 &&
           (Py_IS_TYPE(value, (PyTypeObject *)kaspr_runtime.response) || (v->content != CONTENT_JSON && v->body_of[SUCCESS].func == NULL));
}

int kaspr_respond(PyObject *value, PyObject *body, int outcome, PyObject *given)
{
    const view_t *v = kaspr_program.view;
    PyObject *body_given = given == NULL ? Py_Ellipsis : PyTuple_GET_ITEM(given, 0);
    PyObject *status_given = given == NULL ? Py_None : PyTuple_GET_ITEM(given, 1);
    PyObject *headers_given = given == NULL ? Py_None : PyTuple_GET_ITEM(given, 2);
    message_t m = {.partition = outcome == SUCCESS ? v->status == 0 ? 200 : v->status : 500};
    PyObject *headers = NULL, *made = NULL;
    int rc = -1;
    if (status_given != Py_None) {
        if (status_of(status_given, &m.partition) < 0)
            return -1;
    } else if (v->status_of[outcome].func != NULL) {
        PyObject *status = selected(&v->status_of[outcome], value);
        int bad = status == NULL || status_of(status, &m.partition) < 0;
        Py_XDECREF(status);
        if (bad)
            return -1;
    }
    if (headers_given != Py_None)
        headers = Py_NewRef(headers_given);
    else if (v->headers_of[outcome].func != NULL && (headers = selected(&v->headers_of[outcome], value)) == NULL)
        goto done;
    if (body_given != Py_Ellipsis)
        body = body_given;
    else if (v->body_of[outcome].func != NULL && (body = made = selected(&v->body_of[outcome], value)) == NULL)
        goto done;
    if (check_body(v->content, body, &m.value_codec.codec) < 0)
        goto done;
    m.headers = headers == NULL ? v->headers : headers;
    m.value = body;
    rc = respond(&m);
done:
    Py_XDECREF(headers);
    Py_XDECREF(made);
    return rc;
}

/* produce(topic, key, value, partition, timestamp_ms, headers, key_codec, value_codec) */
PyObject *kaspr_produce(PyObject *const *args, Py_ssize_t n)
{
    if (n != 8) {
        PyErr_SetString(PyExc_TypeError, "produce takes eight arguments");
        return NULL;
    }
    if (!kaspr_unit.active) {
        PyErr_SetString(PyExc_RuntimeError, "messages can only be sent while a record is processed, not from init");
        return NULL;
    }
    message_t m = {.index = -1, .key = args[1], .value = args[2], .headers = args[5]};
    if (check_topic(args[0], &m.topic, &m.topic_len) < 0 || partition_of(args[3], &m.partition) < 0)
        return NULL;
    if (args[4] != Py_None && (m.timestamp = PyLong_AsLongLong(args[4])) == -1 && PyErr_Occurred())
        return NULL;
    long key_codec = PyLong_AsLong(args[6]), value_codec = PyLong_AsLong(args[7]);
    if (PyErr_Occurred())
        return NULL;
    if (key_codec < 0 || key_codec >= CODEC_COUNT || value_codec < 0 || value_codec >= CODEC_COUNT) {
        PyErr_SetString(PyExc_ValueError, "there is no such serializer");
        return NULL;
    }
    m.key_codec = (schema_t){(int)key_codec, 0, args[0]};
    m.value_codec = (schema_t){(int)value_codec, 0, args[0]};
    if (put_result(&m) < 0)
        return NULL;
    Py_RETURN_NONE;
}
