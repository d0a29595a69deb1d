/* The module _kaspr: what the Python side needs of C. User code can import it too, so every function checks what it gets. */
#include "kaspr.h"

enum { ANSWER_MAX = 64 << 10, LOG_MAX = 64 << 10 };

Py_ssize_t kaspr_host(int32_t op, const void *req, size_t len, const char **answer)
{
    static char buffer[ANSWER_MAX];
    int32_t n = kaspr_host_call(op, req, (int32_t)len, buffer, sizeof buffer);
    if (n < 0) {
        PyErr_SetString(PyExc_RuntimeError, n == KASPR_HOST_REFUSED ? "the engine does not offer this here" : "the engine's answer is too long");
        return -1;
    }
    if (answer != NULL)
        *answer = buffer;
    return n;
}

int kaspr_log(int level, PyObject *text)
{
    kbuf req = {0};
    char first = (char)level;
    PyObject *part = NULL, *bytes = NULL;
    int rc = -1;
    if (PyUnicode_GET_LENGTH(text) > LOG_MAX && (text = part = PyUnicode_Substring(text, 0, LOG_MAX)) == NULL)
        goto done;
    if ((bytes = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace")) == NULL)
        goto done;
    if (kbuf_append(&req, &first, 1) < 0 || kbuf_append(&req, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes)) < 0)
        goto done;
    kaspr_host_call(KASPR_OP_LOG, req.data, (int32_t)req.len, NULL, 0); /* a host that takes no lines is no error */
    rc = 0;
done:
    kbuf_free(&req);
    Py_XDECREF(part);
    Py_XDECREF(bytes);
    return rc;
}

static PyObject *py_log(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    (void)self;
    if (n != 2 || !PyUnicode_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "log takes a level and a text");
        return NULL;
    }
    long level = PyLong_AsLong(args[0]);
    if (level == -1 && PyErr_Occurred())
        return NULL;
    if (kaspr_log(level < 0 ? 0 : level > 255 ? 255 : (int)level, args[1]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_sleep(PyObject *self, PyObject *seconds)
{
    (void)self;
    double s = PyFloat_AsDouble(seconds);
    if (s == -1.0 && PyErr_Occurred())
        return NULL;
    uint64_t ns = s <= 0 ? 0 : s >= 1e9 ? (uint64_t)1e18 : (uint64_t)(s * 1e9);
    if (kaspr_host(KASPR_OP_SLEEP, &ns, sizeof ns, NULL) < 0)
        return NULL;
    /* The host may have ended the sleep because the deadline passed; here is no loop that would notice. */
    if (kaspr_state.interrupt)
        kaspr_tick();
    if (PyErr_CheckSignals() < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_step(PyObject *self, PyObject *task)
{
    (void)self;
    return kaspr_flight_step(task);
}

static PyObject *py_interrupted(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyBool_FromLong(kaspr_tick_take());
}

static PyObject *py_produce(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    (void)self;
    return kaspr_produce(args, n);
}

static PyObject *py_codec(PyObject *self, PyObject *name)
{
    (void)self;
    int codec = kaspr_codec_of(name);
    return codec < 0 ? NULL : PyLong_FromLong(codec);
}

static PyObject *py_ensure_topic(PyObject *self, PyObject *request)
{
    (void)self;
    Py_ssize_t n;
    const char *text, *answer;
    if (!PyUnicode_Check(request)) {
        PyErr_SetString(PyExc_TypeError, "ensure_topic takes a str");
        return NULL;
    }
    if ((text = PyUnicode_AsUTF8AndSize(request, &n)) == NULL)
        return NULL;
    Py_ssize_t len = kaspr_host(KASPR_OP_ENSURE_TOPIC, text, (size_t)n, &answer);
    return len < 0 ? NULL : PyBytes_FromStringAndSize(answer, len);
}

static PyObject *py_is_leader(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    const char *answer;
    Py_ssize_t len = kaspr_host(KASPR_OP_IS_LEADER, NULL, 0, &answer);
    return len < 0 ? NULL : PyBool_FromLong(len == 1 && answer[0] == 1);
}

static PyObject *exception_text(PyObject *exc, PyObject *(*text)(PyObject *))
{
    if (!PyExceptionInstance_Check(exc)) {
        PyErr_SetString(PyExc_TypeError, "not an exception");
        return NULL;
    }
    return text(exc);
}

static PyObject *py_message(PyObject *self, PyObject *exc) { (void)self; return exception_text(exc, kaspr_exception_message); }
static PyObject *py_traceback(PyObject *self, PyObject *exc) { (void)self; return exception_text(exc, kaspr_exception_traceback); }

/* set_sources(dict): the program's files, known before any of its code runs. */
static PyObject *py_set_sources(PyObject *self, PyObject *sources)
{
    (void)self;
    if (!PyDict_Check(sources)) {
        PyErr_SetString(PyExc_TypeError, "set_sources takes a dict");
        return NULL;
    }
    if (!kaspr_program.loaded) {
        if (kaspr_tick_files(sources) < 0)
            return NULL;
        Py_XSETREF(kaspr_program.sources, Py_NewRef(sources));
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"log", (PyCFunction)(void (*)(void))py_log, METH_FASTCALL, "log(level, text): a line of the engine's log"},
    {"sleep", py_sleep, METH_O, "sleep(seconds)"},
    {"step", py_step, METH_O, "step(unit task or None): what the event loop runs next belongs to it"},
    {"interrupted", py_interrupted, METH_NOARGS, "whether DeadlineExceeded is to be raised; the caller then does it"},
    {"produce", (PyCFunction)(void (*)(void))py_produce, METH_FASTCALL,
     "produce(topic, key, value, partition, timestamp_ms, headers, key_codec, value_codec)"},
    {"codec", py_codec, METH_O, "number of a serializer"},
    {"ensure_topic", py_ensure_topic, METH_O, "ensure_topic(json): the engine's answer as bytes"},
    {"is_leader", py_is_leader, METH_NOARGS, "whether this process leads the app"},
    {"message", py_message, METH_O, "text of an exception"},
    {"traceback", py_traceback, METH_O, "the user's frames of an exception"},
    {"set_sources", py_set_sources, METH_O, "set_sources({file: {line: text}})"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_kaspr", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__kaspr(void)
{
    PyObject *m = PyModule_Create(&definition);
    if (m != NULL && (kaspr_types_init(m) < 0 || PyModule_AddType(m, &KasprTable_Type) < 0))
        Py_CLEAR(m);
    return m;
}
