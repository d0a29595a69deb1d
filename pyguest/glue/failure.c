/* Exceptions as text: the frames of the user's code only, with the manifest's file and line, oldest first. Everything is
 * bounded, and nothing an exception's own methods do can hurt. */
#include "kaspr.h"

#include "internal/pycore_frame.h"
#include "internal/pycore_pyerrors.h"

enum {
    TYPE_MAX = 200,
    MESSAGE_MAX = 8 << 10,
    TRACEBACK_MAX = 16 << 10,
    SOURCE_MAX = 300,
    CHAIN_MAX = 8,   /* exceptions of a chain or group */
    FRAMES_FIRST = 8, /* of a long traceback */
    FRAMES_LAST = 24,
};

/* Appends at most max bytes of a str, cut between characters. Never leaves an exception; out of memory it appends less. */
static void put_str(kbuf *out, PyObject *text, size_t max)
{
    PyObject *part = NULL, *bytes = NULL;
    if (PyUnicode_GET_LENGTH(text) > (Py_ssize_t)max && (text = part = PyUnicode_Substring(text, 0, (Py_ssize_t)max)) == NULL)
        goto done;
    Py_ssize_t n;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &n);
    if (utf8 == NULL) { /* lone surrogates */
        PyErr_Clear();
        bytes = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace");
        if (bytes == NULL)
            goto done;
        utf8 = PyBytes_AS_STRING(bytes);
        n = PyBytes_GET_SIZE(bytes);
    }
    size_t len = (size_t)n;
    if (len > max) {
        len = max;
        while (len > 0 && ((unsigned char)utf8[len] & 0xC0) == 0x80)
            len--;
    }
    kbuf_append(out, utf8, len);
    if (part != NULL || len < (size_t)n)
        kbuf_append(out, "…", 3);
done:
    PyErr_Clear();
    Py_XDECREF(part);
    Py_XDECREF(bytes);
}

static void put_text(kbuf *out, const char *text) { kbuf_append(out, text, strlen(text)); }

/* The name of its type, without what stands before a dot: only the engine's own have that, whatever code calls its classes. */
static void put_type(kbuf *out, PyObject *exc)
{
    PyObject *name = PyType_GetName(Py_TYPE(exc));
    if (name != NULL && PyUnicode_Check(name)) {
        Py_ssize_t len = PyUnicode_GET_LENGTH(name), dot = PyUnicode_FindChar(name, '.', 0, len, -1);
        if (dot >= 0)
            Py_SETREF(name, PyUnicode_Substring(name, dot + 1, len));
        if (name != NULL)
            put_str(out, name, TYPE_MAX);
    }
    Py_XDECREF(name);
    PyErr_Clear();
}

static void put_message(kbuf *out, PyObject *exc)
{
    PyObject *text = PyObject_Str(exc);
    if (text == NULL) {
        PyObject *second = PyErr_GetRaisedException();
        put_text(out, "<its text is not known: str() raised ");
        put_type(out, second);
        put_text(out, ">");
        Py_DECREF(second);
        return;
    }
    put_str(out, text, MESSAGE_MAX);
    Py_DECREF(text);
}

static void put_indent(kbuf *out, int indent)
{
    while (indent-- > 0)
        kbuf_append(out, " ", 1);
}

static void put_frame(kbuf *out, PyTracebackObject *tb, PyObject *lines, int indent)
{
    PyCodeObject *code = PyFrame_GetCode(tb->tb_frame);
    int line = tb->tb_lineno;
    if (line < 0)
        line = PyCode_Addr2Line(code, tb->tb_lasti);
    char number[32];
    snprintf(number, sizeof number, ":%d, in ", line);
    put_indent(out, indent);
    put_str(out, code->co_filename, SOURCE_MAX);
    put_text(out, number);
    put_str(out, code->co_name, SOURCE_MAX);
    put_text(out, "\n");
    PyObject *key = PyLong_FromLong(line);
    PyObject *source = key == NULL || !PyDict_Check(lines) ? NULL : PyDict_GetItemWithError(lines, key);
    if (source != NULL && PyUnicode_Check(source) && PyUnicode_GET_LENGTH(source) > 0) {
        put_indent(out, indent + 4);
        put_str(out, source, SOURCE_MAX);
        put_text(out, "\n");
    }
    Py_XDECREF(key);
    PyErr_Clear();
    Py_DECREF(code);
}

/* The lines of the program's file a frame stands in, or NULL: not the user's. Borrowed. */
static PyObject *lines_of(PyTracebackObject *tb)
{
    if (kaspr_program.sources == NULL)
        return NULL;
    PyCodeObject *code = PyFrame_GetCode(tb->tb_frame);
    PyObject *lines = PyDict_GetItemWithError(kaspr_program.sources, code->co_filename);
    if (lines == NULL)
        PyErr_Clear();
    Py_DECREF(code);
    return lines;
}

static void put_frames(kbuf *out, PyObject *exc, int indent)
{
    PyObject *first = ((PyBaseExceptionObject *)exc)->traceback;
    if (first == NULL || !PyTraceBack_Check(first))
        return;
    Py_INCREF(first);
    int count = 0, at = 0;
    for (PyTracebackObject *tb = (PyTracebackObject *)first; tb != NULL; tb = tb->tb_next)
        count += lines_of(tb) != NULL;
    for (PyTracebackObject *tb = (PyTracebackObject *)first; tb != NULL; tb = tb->tb_next) {
        PyObject *lines = lines_of(tb);
        if (lines == NULL)
            continue;
        if (at < FRAMES_FIRST || at >= count - FRAMES_LAST) {
            put_frame(out, tb, lines, indent);
        } else if (at == FRAMES_FIRST) {
            char text[64];
            snprintf(text, sizeof text, "… %d frames more …\n", count - FRAMES_FIRST - FRAMES_LAST);
            put_indent(out, indent);
            put_text(out, text);
        }
        at++;
    }
    Py_DECREF(first);
}

static void put_headline(kbuf *out, PyObject *exc, int indent)
{
    put_indent(out, indent);
    put_type(out, exc);
    size_t colon = out->len;
    put_text(out, ": ");
    size_t text = out->len;
    put_message(out, exc);
    if (out->len == text)
        out->len = colon;
    for (size_t i = text; i < out->len; i++)
        if (out->data[i] == '\n')
            out->data[i] = ' ';
    put_text(out, "\n");
}

typedef struct {
    PyObject *seen[CHAIN_MAX];
    int count;
} chain_t;

/* Frames of exc; before them what it came from, after them what a group holds. The headline of exc itself is the
 * caller's. */
static void put_chain(kbuf *out, PyObject *exc, int indent, chain_t *chain)
{
    for (int i = 0; i < chain->count; i++)
        if (chain->seen[i] == exc)
            return;
    if (chain->count == CHAIN_MAX || out->len > TRACEBACK_MAX)
        return;
    chain->seen[chain->count++] = exc;
    PyBaseExceptionObject *e = (PyBaseExceptionObject *)exc;
    PyObject *from = e->cause != NULL ? e->cause : e->suppress_context ? NULL : e->context;
    if (from != NULL && PyExceptionInstance_Check(from)) {
        int known = 0, caused = from == e->cause;
        for (int i = 0; i < chain->count; i++)
            known |= chain->seen[i] == from;
        if (!known && chain->count < CHAIN_MAX) {
            Py_INCREF(from);
            put_chain(out, from, indent, chain);
            put_headline(out, from, indent);
            put_indent(out, indent);
            put_text(out, caused ? "which is the cause of:\n" : "and while that was handled:\n");
            Py_DECREF(from);
        }
    }
    put_frames(out, exc, indent);
    if (PyObject_TypeCheck(exc, (PyTypeObject *)PyExc_BaseExceptionGroup)) {
        PyObject *members = Py_XNewRef(((PyBaseExceptionGroupObject *)exc)->excs);
        for (Py_ssize_t i = 0; members != NULL && PyTuple_Check(members) && i < PyTuple_GET_SIZE(members); i++) {
            PyObject *member = PyTuple_GET_ITEM(members, i);
            if (!PyExceptionInstance_Check(member) || chain->count == CHAIN_MAX)
                break;
            put_indent(out, indent);
            put_text(out, "of the group:\n");
            put_chain(out, member, indent + 4, chain);
            put_headline(out, member, indent + 4);
        }
        Py_XDECREF(members);
    }
}

static void put_traceback(kbuf *out, PyObject *exc)
{
    chain_t chain = {.count = 0};
    put_chain(out, exc, 4, &chain);
    if (out->len > TRACEBACK_MAX) { /* drop the oldest: the end says most */
        size_t cut = out->len - TRACEBACK_MAX;
        while (cut < out->len && out->data[cut] != '\n')
            cut++;
        if (cut < out->len)
            cut++;
        memmove(out->data, out->data + cut, out->len - cut);
        out->len -= cut;
    }
}

static PyObject *as_str(void (*put)(kbuf *, PyObject *), PyObject *exc)
{
    kbuf text = {0};
    put(&text, exc);
    PyErr_Clear();
    PyObject *r = PyUnicode_DecodeUTF8(text.data, (Py_ssize_t)text.len, "replace");
    kbuf_free(&text);
    return r;
}

PyObject *kaspr_exception_message(PyObject *exc) { return as_str(put_message, exc); }
PyObject *kaspr_exception_traceback(PyObject *exc) { return as_str(put_traceback, exc); }

int kaspr_fail(uint32_t unit, int kind, PyObject *where)
{
    PyObject *exc = PyErr_GetRaisedException();
    kbuf type = {0}, message = {0}, traceback = {0};
    Py_ssize_t where_len = 0;
    const char *where_text = where == NULL ? "" : PyUnicode_AsUTF8AndSize(where, &where_len);
    if (where_text == NULL) {
        where_text = "";
        where_len = 0;
        PyErr_Clear();
    }
    if (exc == NULL) {
        put_text(&type, "SystemError");
        put_text(&message, "failed without an exception");
    } else {
        if (PyErr_GivenExceptionMatches(exc, kaspr_runtime.deadline))
            kind = KASPR_FAILURE_DEADLINE;
        else if (PyErr_GivenExceptionMatches(exc, PyExc_MemoryError))
            kind = KASPR_FAILURE_MEMORY;
        if (PyErr_GivenExceptionMatches(exc, kaspr_runtime.http_error))
            put_text(&type, KASPR_HTTP_ERROR);
        else if (PyErr_GivenExceptionMatches(exc, kaspr_runtime.not_ready))
            put_text(&type, KASPR_NOT_READY);
        else
            put_type(&type, exc);
        put_message(&message, exc);
        put_traceback(&traceback, exc);
        PyErr_Clear();
        Py_DECREF(exc); /* runs destructors of what its frames held */
        PyErr_Clear();
    }
    size_t size = KASPR_FAILURE_FIXED_SIZE + type.len + message.len + traceback.len + (size_t)where_len;
    int rc = kbuf_reserve(&kaspr_result, size);
    if (rc < 0) {
        PyErr_Clear();
        traceback.len = message.len = 0;
        size = KASPR_FAILURE_FIXED_SIZE + type.len + (size_t)where_len;
        rc = kbuf_reserve(&kaspr_result, size);
    }
    if (rc == 0) {
        char *e = kaspr_result.data + kaspr_result.len;
        put32(e, (uint32_t)size);
        put32(e + 4, KASPR_ENTRY_FAILURE);
        put32(e + 8, unit);
        put32(e + 12, (uint32_t)kind);
        put32(e + 16, (uint32_t)type.len);
        put32(e + 20, (uint32_t)message.len);
        put32(e + 24, (uint32_t)traceback.len);
        put32(e + 28, (uint32_t)where_len);
        kaspr_result.len += KASPR_FAILURE_FIXED_SIZE;
        kbuf_append(&kaspr_result, type.data, type.len);
        kbuf_append(&kaspr_result, message.data, message.len);
        kbuf_append(&kaspr_result, traceback.data, traceback.len);
        kbuf_append(&kaspr_result, where_text, (size_t)where_len);
    }
    kbuf_free(&type);
    kbuf_free(&message);
    kbuf_free(&traceback);
    PyErr_Clear();
    return rc;
}
