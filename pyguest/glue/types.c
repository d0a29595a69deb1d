/* context, events and messages. A record gets an event only when user code asks for context["event"]; until the unit
 * ends the event points into the input buffer, and only an event that is kept longer is filled with copies. */
#include "kaspr.h"

#include <structmember.h>

PyObject *kaspr_context_scratch;
PyObject *kaspr_context;

/* ---- Message ----------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    const uint8_t *record; /* entry in the input buffer, NULL once the unit is over */
    PyObject *topic, *key, *value, *headers; /* NULL: not made yet */
    int64_t offset, timestamp;
    int32_t partition, key_len, value_len;
    uint32_t timestamp_type;
} MessageObject;

typedef struct {
    PyObject_HEAD
    const uint8_t *record; /* as of the message */
    PyObject *key, *value, *headers; /* key and headers NULL: not made yet */
    MessageObject *message;          /* NULL: not made yet */
} EventObject;

static PyObject *slice(const uint8_t *entry)
{
    int32_t len = (int32_t)get32(entry + 4);
    if (len < 0)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)kaspr_unit.batch + get32(entry), len);
}

PyObject *kaspr_record_key(const uint8_t *record) { return slice(record + 32); }

static PyObject *make_headers(const uint8_t *record);

PyObject *kaspr_unit_key(void)
{
    unit_t *u = &kaspr_unit;
    return u->key != NULL ? Py_NewRef(u->key) : u->record != NULL ? slice(u->record + 32) : Py_NewRef(Py_None);
}

PyObject *kaspr_unit_headers(void)
{
    return kaspr_unit.record != NULL ? make_headers(kaspr_unit.record) : Py_NewRef(Py_None);
}

/* The topic's name; the same object as long as the topic stays the same. A channel is none. */
static PyObject *topic_name(const uint8_t *record)
{
    if (kaspr_program.value_codec == CODEC_CHANNEL)
        Py_RETURN_NONE;
    static PyObject *last;
    const uint8_t *batch = kaspr_unit.batch;
    const uint8_t *topic = batch + get32(batch + 16) + (size_t)get32(record) * KASPR_TOPIC_SIZE;
    const char *text = (const char *)batch + get32(topic);
    Py_ssize_t len = get32(topic + 4);
    if (last != NULL) {
        Py_ssize_t n;
        const char *utf8 = PyUnicode_AsUTF8AndSize(last, &n);
        if (utf8 == NULL)
            PyErr_Clear();
        else if (n == len && memcmp(utf8, text, (size_t)n) == 0)
            return Py_NewRef(last);
    }
    PyObject *name = PyUnicode_DecodeUTF8(text, len, "replace");
    if (name != NULL)
        Py_XSETREF(last, Py_NewRef(name));
    return name;
}

static PyObject *make_headers(const uint8_t *record)
{
    uint32_t count = get32(record + 52);
    const uint8_t *entry = kaspr_unit.batch + get32(record + 48);
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list != NULL && i < count; i++, entry += KASPR_HEADER_SIZE) {
        PyObject *key = PyUnicode_DecodeUTF8((const char *)kaspr_unit.batch + get32(entry), get32(entry + 4), "replace");
        PyObject *value = key == NULL ? NULL : slice(entry + 8);
        PyObject *pair = value == NULL ? NULL : PyTuple_Pack(2, key, value);
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (pair == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, pair);
    }
    return list;
}

static MessageObject *message_new(const uint8_t *record)
{
    MessageObject *m = PyObject_GC_New(MessageObject, &KasprMessage_Type);
    if (m == NULL)
        return NULL;
    m->record = record;
    m->key = m->value = m->headers = NULL;
    m->partition = (int32_t)get32(record + 4);
    m->offset = get64(record + 8);
    m->timestamp = get64(record + 16);
    m->timestamp_type = get32(record + 24);
    m->key_len = (int32_t)get32(record + 36);
    m->value_len = (int32_t)get32(record + 44);
    m->topic = topic_name(record);
    PyObject_GC_Track(m);
    if (m->topic == NULL)
        Py_CLEAR(m);
    return m;
}

static int message_traverse(MessageObject *m, visitproc visit, void *arg)
{
    Py_VISIT(m->headers); /* a list: user code may put anything in */
    return 0;
}

static int message_clear(MessageObject *m)
{
    Py_CLEAR(m->headers);
    return 0;
}

static void message_dealloc(MessageObject *m)
{
    PyObject_GC_UnTrack(m);
    Py_XDECREF(m->topic);
    Py_XDECREF(m->key);
    Py_XDECREF(m->value);
    Py_XDECREF(m->headers);
    PyObject_GC_Del(m);
}

static PyObject *message_key(MessageObject *m, void *unused)
{
    (void)unused;
    if (m->key == NULL && (m->record == NULL || (m->key = slice(m->record + 32)) == NULL))
        return m->record == NULL ? Py_NewRef(Py_None) : NULL;
    return Py_NewRef(m->key);
}

static PyObject *message_value(MessageObject *m, void *unused)
{
    (void)unused;
    if (m->value == NULL && (m->record == NULL || (m->value = slice(m->record + 40)) == NULL))
        return m->record == NULL ? Py_NewRef(Py_None) : NULL;
    return Py_NewRef(m->value);
}

static PyObject *message_headers(MessageObject *m, void *unused)
{
    (void)unused;
    if (m->headers == NULL && (m->record == NULL || (m->headers = make_headers(m->record)) == NULL))
        return m->record == NULL ? PyList_New(0) : NULL;
    return Py_NewRef(m->headers);
}

static PyObject *message_number(MessageObject *m, void *which)
{
    switch ((intptr_t)which) {
    case 0:
        return PyLong_FromLong(m->partition);
    case 1:
        return PyLong_FromLongLong(m->offset);
    case 2:
        return PyFloat_FromDouble((double)m->timestamp / 1000.0);
    case 3:
        return PyLong_FromUnsignedLong(m->timestamp_type);
    case 4:
        return PyLong_FromLong(m->key_len < 0 ? 0 : m->key_len);
    case 5:
        return PyLong_FromLong(m->value_len < 0 ? 0 : m->value_len);
    case 6:
        Py_RETURN_NONE; /* checksum: the brokers of today send none */
    case 7:
        return Py_BuildValue("(Oi)", m->topic, (int)m->partition);
    default:
        return Py_NewRef(m->topic);
    }
}

static PyObject *message_repr(MessageObject *m)
{
    return PyUnicode_FromFormat("<Message %S/%d@%lld>", m->topic, (int)m->partition, (long long)m->offset);
}

/* Attribute names as the compiler interns them: comparing pointers is a tenth of a lookup in the type. */
static struct {
    const char *text;
    PyObject *name;
} names[] = {{"key", NULL}, {"value", NULL}, {"headers", NULL}, {"message", NULL}, {"topic", NULL}, {"partition", NULL}, {"offset", NULL}, {"timestamp", NULL}};
enum { NAME_KEY, NAME_VALUE, NAME_HEADERS, NAME_MESSAGE, NAME_TOPIC, NAME_PARTITION, NAME_OFFSET, NAME_TIMESTAMP, NAME_COUNT };

/* An attribute error that names what there is. */
static PyObject *getattr_naming(PyObject *self, PyObject *name, const char *supported)
{
    PyObject *v = PyObject_GenericGetAttr(self, name);
    if (v == NULL && PyErr_ExceptionMatches(PyExc_AttributeError) && PyUnicode_Check(name) &&
        !(PyUnicode_GET_LENGTH(name) > 0 && PyUnicode_READ_CHAR(name, 0) == '_')) {
        PyErr_Clear();
        PyErr_Format(PyExc_AttributeError, "%s has no member %R; it has %s", Py_TYPE(self)->tp_name, name, supported);
    }
    return v;
}

static PyObject *message_getattro(PyObject *self, PyObject *name)
{
    MessageObject *m = (MessageObject *)self;
    if (name == names[NAME_OFFSET].name)
        return PyLong_FromLongLong(m->offset);
    if (name == names[NAME_PARTITION].name)
        return PyLong_FromLong(m->partition);
    if (name == names[NAME_TIMESTAMP].name)
        return PyFloat_FromDouble((double)m->timestamp / 1000.0);
    if (name == names[NAME_TOPIC].name)
        return Py_NewRef(m->topic);
    if (name == names[NAME_KEY].name)
        return message_key(m, NULL);
    if (name == names[NAME_VALUE].name)
        return message_value(m, NULL);
    if (name == names[NAME_HEADERS].name)
        return message_headers(m, NULL);
    return getattr_naming(self, name,
                          "topic, partition, offset, timestamp, timestamp_type, key, value, headers, "
                          "serialized_key_size, serialized_value_size, checksum and tp");
}

static PyGetSetDef message_getset[] = {
    {"topic", (getter)message_number, NULL, NULL, (void *)-1},
    {"partition", (getter)message_number, NULL, NULL, (void *)0},
    {"offset", (getter)message_number, NULL, NULL, (void *)1},
    {"timestamp", (getter)message_number, NULL, "seconds since the epoch", (void *)2},
    {"timestamp_type", (getter)message_number, NULL, "0 create time, 1 log append time", (void *)3},
    {"serialized_key_size", (getter)message_number, NULL, NULL, (void *)4},
    {"serialized_value_size", (getter)message_number, NULL, NULL, (void *)5},
    {"checksum", (getter)message_number, NULL, "always None", (void *)6},
    {"tp", (getter)message_number, NULL, "(topic, partition)", (void *)7},
    {"key", (getter)message_key, NULL, "raw bytes or None", NULL},
    {"value", (getter)message_value, NULL, "raw bytes or None", NULL},
    {"headers", (getter)message_headers, NULL, "list of (str, bytes), duplicates kept", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject KasprMessage_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "message",
    .tp_doc = "A record as it came from Kafka.",
    .tp_basicsize = sizeof(MessageObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)message_dealloc,
    .tp_traverse = (traverseproc)message_traverse,
    .tp_clear = (inquiry)message_clear,
    .tp_getattro = message_getattro,
    .tp_getset = message_getset,
    .tp_repr = (reprfunc)message_repr,
};

/* ---- Event ------------------------------------------------------------------------------------------------------- */

static PyObject *event_new(const uint8_t *record, PyObject *key, PyObject *value)
{
    EventObject *e = PyObject_GC_New(EventObject, &KasprEvent_Type);
    if (e == NULL)
        return NULL;
    e->key = Py_XNewRef(key);
    e->value = Py_XNewRef(value);
    e->record = record;
    e->headers = NULL;
    e->message = NULL;
    PyObject_GC_Track(e);
    return (PyObject *)e;
}

/* Borrowed. While the record is at hand there always can be a message; afterwards there is one. */
static MessageObject *message_of(EventObject *e)
{
    if (e->message == NULL && e->record != NULL)
        e->message = message_new(e->record);
    if (e->message == NULL && !PyErr_Occurred())
        PyErr_NoMemory(); /* there was none to keep it when the record ended */
    return e->message;
}

static int event_traverse(EventObject *e, visitproc visit, void *arg)
{
    Py_VISIT(e->key);
    Py_VISIT(e->value);
    Py_VISIT(e->headers);
    Py_VISIT(e->message);
    return 0;
}

static int event_clear(EventObject *e)
{
    Py_CLEAR(e->key);
    Py_CLEAR(e->value);
    Py_CLEAR(e->headers);
    return 0; /* the message stays: members of a cleared event must not crash */
}

static void event_dealloc(EventObject *e)
{
    PyObject_GC_UnTrack(e);
    Py_XDECREF(e->key);
    Py_XDECREF(e->value);
    Py_XDECREF(e->headers);
    Py_XDECREF(e->message);
    PyObject_GC_Del(e);
}

static PyObject *event_key(EventObject *e, void *unused)
{
    (void)unused;
    if (e->key == NULL) { /* raw: nothing to decode */
        if (e->message == NULL && e->record != NULL)
            e->key = slice(e->record + 32);
        else if (message_of(e) != NULL)
            e->key = message_key(e->message, NULL);
        if (e->key == NULL)
            return NULL;
    }
    return Py_NewRef(e->key);
}

static PyObject *event_value(EventObject *e, void *unused)
{
    (void)unused;
    return Py_NewRef(e->value == NULL ? Py_None : e->value);
}

static PyObject *event_headers(EventObject *e, void *unused)
{
    (void)unused;
    if (e->headers == NULL) {
        PyObject *list = e->message == NULL && e->record != NULL ? make_headers(e->record)
                         : message_of(e) == NULL                 ? NULL
                                                                 : message_headers(e->message, NULL);
        if (list == NULL)
            return NULL;
        PyObject *dict = PyDict_New();
        for (Py_ssize_t i = 0; dict != NULL && i < PyList_GET_SIZE(list); i++) {
            PyObject *pair = PyList_GET_ITEM(list, i); /* user code may have changed the list */
            if (PyTuple_Check(pair) && PyTuple_GET_SIZE(pair) == 2 &&
                PyDict_SetItem(dict, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1)) < 0)
                Py_CLEAR(dict);
        }
        Py_DECREF(list);
        e->headers = dict;
        if (dict == NULL)
            return NULL;
    }
    return Py_NewRef(e->headers);
}

static PyObject *event_message(EventObject *e, void *unused)
{
    (void)unused;
    return Py_XNewRef(message_of(e));
}

static PyObject *event_app(EventObject *e, void *unused)
{
    (void)e, (void)unused;
    return Py_NewRef(kaspr_runtime.app);
}

static PyObject *event_ack(PyObject *e, PyObject *unused)
{
    (void)e, (void)unused;
    Py_RETURN_NONE; /* a record is acknowledged when all its effects are stored, never before */
}

static PyObject *with_self(PyObject *func, PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)
{
    PyObject *stack[24];
    Py_ssize_t all = n + (kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames));
    if (all > 20) {
        PyErr_SetString(PyExc_TypeError, "too many arguments");
        return NULL;
    }
    stack[0] = self;
    if (all > 0)
        memcpy(stack + 1, args, (size_t)all * sizeof(PyObject *));
    return PyObject_Vectorcall(func, stack, (size_t)n + 1, kwnames);
}

static PyObject *event_forward(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)
{
    return with_self(kaspr_runtime.forward, self, args, n, kwnames);
}

static PyObject *event_send(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames)
{
    return with_self(kaspr_runtime.send, self, args, n, kwnames);
}

static PyObject *event_repr(EventObject *e)
{
    MessageObject *m = message_of(e);
    return m == NULL ? NULL : PyUnicode_FromFormat("<Event %S/%d@%lld>", m->topic, (int)m->partition, (long long)m->offset);
}

static PyObject *event_getattro(PyObject *self, PyObject *name)
{
    EventObject *e = (EventObject *)self;
    if (name == names[NAME_MESSAGE].name)
        return event_message(e, NULL);
    if (name == names[NAME_KEY].name)
        return event_key(e, NULL);
    if (name == names[NAME_HEADERS].name)
        return event_headers(e, NULL);
    if (name == names[NAME_VALUE].name)
        return event_value(e, NULL);
    return getattr_naming(self, name, "key, value, headers, message, app, forward, send and ack");
}

static PyGetSetDef event_getset[] = {
    {"key", (getter)event_key, NULL, "decoded key", NULL},
    {"value", (getter)event_value, NULL, "decoded value", NULL},
    {"headers", (getter)event_headers, NULL, "dict of str to bytes; of duplicates the last", NULL},
    {"message", (getter)event_message, NULL, "the record as it came from Kafka", NULL},
    {"app", (getter)event_app, NULL, "the application", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef event_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))event_forward, METH_FASTCALL | METH_KEYWORDS,
     "await forward(topic, key=, value=, partition=, timestamp=, headers=): send the record's bytes on"},
    {"send", (PyCFunction)(void (*)(void))event_send, METH_FASTCALL | METH_KEYWORDS,
     "await send(topic, ...): as forward, with the decoded key and value encoded again"},
    {"ack", event_ack, METH_NOARGS, "does nothing: a record is acknowledged when everything it did is stored"},
    {NULL, NULL, 0, NULL},
};

PyTypeObject KasprEvent_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "event",
    .tp_doc = "The record being processed.",
    .tp_basicsize = sizeof(EventObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)event_dealloc,
    .tp_traverse = (traverseproc)event_traverse,
    .tp_clear = (inquiry)event_clear,
    .tp_getattro = event_getattro,
    .tp_getset = event_getset,
    .tp_methods = event_methods,
    .tp_repr = (reprfunc)event_repr,
};

static void detach(MessageObject *m)
{
    Py_XDECREF(message_key(m, NULL));
    Py_XDECREF(message_value(m, NULL));
    Py_XDECREF(message_headers(m, NULL));
    if (PyErr_Occurred()) /* no memory: the members are then None or empty */
        PyErr_Clear();
    m->record = NULL;
}

static void detach_if_kept(EventObject *e)
{
    if (e->record == NULL)
        return;
    if (Py_REFCNT(e) > 1 && message_of(e) == NULL)
        PyErr_Clear();
    if (e->message != NULL && (Py_REFCNT(e) > 1 || Py_REFCNT(e->message) > 1))
        detach(e->message);
    e->record = NULL;
}

void kaspr_event_release(PyObject *event)
{
    if (Py_IS_TYPE(event, &KasprEvent_Type)) {
        detach_if_kept((EventObject *)event);
        Py_DECREF(event);
        return;
    }
    /* The tuple of a take batch; a list that user code kept holds the events too. */
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(event); i++) {
        PyObject *e = PyTuple_GET_ITEM(event, i);
        detach_if_kept((EventObject *)e);
    }
    Py_DECREF(event);
}

static PyObject *current_event(void)
{
    unit_t *u = &kaspr_unit;
    if (u->record != NULL) {
        if (u->event == NULL)
            u->event = event_new(u->record, u->key, u->value);
        return Py_XNewRef(u->event);
    }
    if (u->event == NULL) { /* the list of a take batch; kept as a tuple, so that what user code does to its list is its own */
        Py_ssize_t n = u->value == NULL ? 0 : PyTuple_GET_SIZE(u->value);
        PyObject *events = PyTuple_New(n);
        for (Py_ssize_t i = 0; events != NULL && i < n; i++) {
            PyObject *key = PyList_GET_ITEM(u->keys, i);
            PyObject *e = event_new(u->batch + KASPR_BATCH_HEADER_SIZE + (size_t)u->indexes[i] * KASPR_RECORD_SIZE,
                                    key == Py_Ellipsis ? NULL : key, PyTuple_GET_ITEM(u->value, i));
            if (e == NULL)
                Py_CLEAR(events);
            else
                PyTuple_SET_ITEM(events, i, e);
        }
        u->event = events;
        if (events == NULL)
            return NULL;
    }
    if (u->events == NULL)
        u->events = PySequence_List(u->event);
    return Py_XNewRef(u->events);
}

/* ---- context ----------------------------------------------------------------------------------------------------- */

/* What is written to context lives until the next function is called, as in a dict made for every call. */

static PyObject *name_app, *name_event;

/* 1 found (*v new), 0 absent, -1 error. v may be NULL: only look. */
static int context_find(PyObject *key, PyObject **v)
{
    if (kaspr_context_scratch != NULL) {
        PyObject *found;
        int rc = PyDict_GetItemRef(kaspr_context_scratch, key, &found);
        if (rc < 0)
            return -1;
        if (rc > 0) {
            if (v != NULL)
                *v = found;
            else
                Py_DECREF(found);
            return 1;
        }
    }
    if (!PyUnicode_Check(key))
        return 0;
    if (key == name_event || PyUnicode_Compare(key, name_event) == 0) {
        if (!kaspr_unit.active || kaspr_program.detached)
            return 0;
        return v == NULL ? 1 : (*v = current_event()) == NULL ? -1 : 1;
    }
    if (PyUnicode_Compare(key, name_app) == 0) {
        if (v != NULL)
            *v = Py_NewRef(kaspr_runtime.app);
        return 1;
    }
    return 0;
}

static PyObject *context_subscript(PyObject *self, PyObject *key)
{
    (void)self;
    PyObject *v = NULL;
    int rc = context_find(key, &v);
    if (rc == 0)
        PyErr_SetObject(PyExc_KeyError, key);
    return rc > 0 ? v : NULL;
}

static int context_contains(PyObject *self, PyObject *key)
{
    (void)self;
    return context_find(key, NULL);
}

static int context_assign(PyObject *self, PyObject *key, PyObject *value)
{
    (void)self;
    if (kaspr_context_scratch == NULL && (kaspr_context_scratch = PyDict_New()) == NULL)
        return -1;
    if (value == NULL)
        return PyDict_DelItem(kaspr_context_scratch, key);
    return PyDict_SetItem(kaspr_context_scratch, key, value);
}

static PyObject *context_dict(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    PyObject *d = PyDict_New(), *event = NULL;
    if (d == NULL || PyDict_SetItem(d, name_app, kaspr_runtime.app) < 0)
        goto fail;
    if (kaspr_unit.active && !kaspr_program.detached) {
        event = current_event();
        if (event == NULL || PyDict_SetItem(d, name_event, event) < 0)
            goto fail;
        Py_CLEAR(event);
    }
    if (kaspr_context_scratch != NULL && PyDict_Update(d, kaspr_context_scratch) < 0)
        goto fail;
    return d;
fail:
    Py_XDECREF(event);
    Py_XDECREF(d);
    return NULL;
}

static PyObject *context_view(PyObject *self, const char *method)
{
    PyObject *d = context_dict(self, NULL), *r = NULL;
    if (d != NULL) {
        r = PyObject_CallMethod(d, method, NULL);
        Py_DECREF(d);
    }
    return r;
}

static PyObject *context_keys(PyObject *self, PyObject *unused) { (void)unused; return context_view(self, "keys"); }
static PyObject *context_values(PyObject *self, PyObject *unused) { (void)unused; return context_view(self, "values"); }
static PyObject *context_items(PyObject *self, PyObject *unused) { (void)unused; return context_view(self, "items"); }

static PyObject *context_iter(PyObject *self)
{
    PyObject *d = context_dict(self, NULL), *r = NULL;
    if (d != NULL) {
        r = PyObject_GetIter(d);
        Py_DECREF(d);
    }
    return r;
}

static Py_ssize_t context_length(PyObject *self)
{
    PyObject *d = context_dict(self, NULL);
    if (d == NULL)
        return -1;
    Py_ssize_t n = PyDict_GET_SIZE(d);
    Py_DECREF(d);
    return n;
}

static PyObject *context_get(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    (void)self;
    if (n < 1 || n > 2) {
        PyErr_SetString(PyExc_TypeError, "get takes a key and a default");
        return NULL;
    }
    PyObject *v = NULL;
    int rc = context_find(args[0], &v);
    if (rc == 0)
        return Py_NewRef(n == 2 ? args[1] : Py_None);
    return rc > 0 ? v : NULL;
}

static PyObject *context_repr(PyObject *self)
{
    (void)self;
    return PyUnicode_FromString(kaspr_unit.active && !kaspr_program.detached ? "<context: app, event>" : "<context: app>");
}

static PyMappingMethods context_mapping = {
    .mp_length = context_length, .mp_subscript = context_subscript, .mp_ass_subscript = context_assign};
static PySequenceMethods context_sequence = {.sq_contains = context_contains};
static PyMethodDef context_methods[] = {
    {"get", (PyCFunction)(void (*)(void))context_get, METH_FASTCALL, "get(key, default=None)"},
    {"keys", context_keys, METH_NOARGS, NULL},
    {"values", context_values, METH_NOARGS, NULL},
    {"items", context_items, METH_NOARGS, NULL},
    {"copy", context_dict, METH_NOARGS, "a dict"},
    {NULL, NULL, 0, NULL},
};

PyTypeObject KasprContext_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "context",
    .tp_doc = "What a function can know of where it runs: \"app\" and, while a record is processed, \"event\".",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_MAPPING,
    .tp_as_mapping = &context_mapping,
    .tp_as_sequence = &context_sequence,
    .tp_iter = context_iter,
    .tp_methods = context_methods,
    .tp_repr = context_repr,
};

int kaspr_types_init(PyObject *module)
{
    if (PyType_Ready(&KasprMessage_Type) < 0 || PyType_Ready(&KasprEvent_Type) < 0 || PyType_Ready(&KasprContext_Type) < 0)
        return -1;
    for (int i = 0; i < NAME_COUNT; i++)
        if ((names[i].name = PyUnicode_InternFromString(names[i].text)) == NULL)
            return -1;
    name_app = PyUnicode_InternFromString("app");
    name_event = PyUnicode_InternFromString("event");
    kaspr_context = PyObject_New(PyObject, &KasprContext_Type);
    if (name_app == NULL || name_event == NULL || kaspr_context == NULL)
        return -1;
    return PyModule_AddObjectRef(module, "context", kaspr_context);
}
