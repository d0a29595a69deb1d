/* kaspr_tick runs at any loop of the guest, also within malloc and the garbage collector. So it only sets flags, and
 * writes the report into a static buffer. */
#include "kaspr.h"

#include "internal/pycore_ceval.h"
#include "internal/pycore_code.h"
#include "internal/pycore_frame.h"
#include "internal/pycore_pystate.h"
#include "internal/pycore_runtime.h"
#include "internal/pycore_signal.h"

#include <signal.h>

enum { REPORT_BYTES = 16 << 10, REPORT_FRAMES = 64, REPORT_WALK = 100000 };
static char report[REPORT_BYTES];
static PyObject *handler; /* raises DeadlineExceeded; put into the interpreter's slot for SIGINT */

int kaspr_tick_ordered;

static void trip(void);
static int is_user_file(PyObject *name);

static int contains(PyObject *text, const char *word)
{
    if (!PyUnicode_Check(text) || !PyUnicode_IS_ASCII(text))
        return 0;
    return strstr((const char *)PyUnicode_1BYTE_DATA(text), word) != NULL;
}

/* Whether the event loop runs, and not something the user's code called: an exception there would lose callbacks. */
static int in_machinery(void)
{
    for (_PyInterpreterFrame *frame = _PyThreadState_GET()->current_frame; frame != NULL; frame = frame->previous) {
        if (frame->owner == FRAME_OWNED_BY_CSTACK || frame->f_executable == NULL || !PyCode_Check(frame->f_executable))
            continue;
        PyObject *file = _PyFrame_GetCode(frame)->co_filename;
        if (is_user_file(file))
            return 0;
        if (contains(file, "/asyncio/") || contains(file, "/kaspr_"))
            return 1;
    }
    return 0;
}

static PyObject *raise_deadline(PyObject *self, PyObject *args)
{
    (void)self, (void)args;
    if (kaspr_tick_ordered && in_machinery()) {
        trip(); /* again: at the next check, or kaspr_tick_take */
        Py_RETURN_NONE;
    }
    if (!kaspr_tick_ordered)
        Py_RETURN_NONE;
    kaspr_tick_ordered = 0;
    PyErr_SetNone(kaspr_runtime.deadline);
    return NULL;
}

int kaspr_tick_take(void)
{
    int was = kaspr_tick_ordered;
    kaspr_tick_forget();
    return was;
}

static PyMethodDef raise_deadline_def = {"deadline", raise_deadline, METH_VARARGS, NULL};

int kaspr_tick_init(void)
{
    handler = PyCFunction_New(&raise_deadline_def, NULL);
    return handler == NULL ? -1 : 0;
}

/* A simulated signal and not an asynchronous exception: it is also seen by C code that calls PyErr_CheckSignals, such as
 * regular expressions and big powers. */
static void trip(void)
{
    struct _signals_runtime_state *signals = &_PyRuntime.signals;
    if (signals->handlers[SIGINT].func != handler) {
        Py_INCREF(handler);
        signals->handlers[SIGINT].func = handler; /* what stood there is not released: no place to run a destructor */
    }
    signals->handlers[SIGINT].tripped = 1;
    signals->is_tripped = 1;
    _Py_set_eval_breaker_bit(_PyRuntime.main_tstate, _PY_SIGNALS_PENDING_BIT);
}

void kaspr_tick_forget(void)
{
    kaspr_tick_ordered = 0;
    _PyRuntime.signals.handlers[SIGINT].tripped = 0;
}

static size_t put_text(size_t at, PyObject *text)
{
    if (!PyUnicode_Check(text))
        return at;
    Py_ssize_t n = PyUnicode_GET_LENGTH(text);
    int kind = PyUnicode_KIND(text);
    const void *data = PyUnicode_DATA(text);
    for (Py_ssize_t i = 0; i < n && i < 512 && at + 4 < REPORT_BYTES; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);
        if (c == '\n' || c == '\t' || (c >= 0xD800 && c < 0xE000))
            c = '?';
        if (c < 0x80) {
            report[at++] = (char)c;
        } else if (c < 0x800) {
            report[at++] = (char)(0xC0 | c >> 6);
            report[at++] = (char)(0x80 | (c & 0x3F));
        } else if (c < 0x10000) {
            report[at++] = (char)(0xE0 | c >> 12);
            report[at++] = (char)(0x80 | (c >> 6 & 0x3F));
            report[at++] = (char)(0x80 | (c & 0x3F));
        } else {
            report[at++] = (char)(0xF0 | c >> 18);
            report[at++] = (char)(0x80 | (c >> 12 & 0x3F));
            report[at++] = (char)(0x80 | (c >> 6 & 0x3F));
            report[at++] = (char)(0x80 | (c & 0x3F));
        }
    }
    return at;
}

static int same_text(PyObject *a, PyObject *b)
{
    return a == b || (PyUnicode_GET_LENGTH(a) == PyUnicode_GET_LENGTH(b) && PyUnicode_KIND(a) == PyUnicode_KIND(b) &&
                      memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)PyUnicode_GET_LENGTH(a) * PyUnicode_KIND(a)) == 0);
}

/* The program's file names. Not a dict: it may be the very one that is being changed. */
static PyObject **files;
static Py_ssize_t file_count;

int kaspr_tick_files(PyObject *sources)
{
    PyObject **array = calloc((size_t)PyDict_GET_SIZE(sources) + 1, sizeof *array);
    if (array == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Py_ssize_t at = 0, n = 0;
    PyObject *name, *lines;
    while (PyDict_Next(sources, &at, &name, &lines))
        if (PyUnicode_Check(name))
            array[n++] = Py_NewRef(name);
    file_count = 0; /* the old ones stay: a load happens once, or again after it failed */
    files = array;
    file_count = n;
    return 0;
}

static int is_user_file(PyObject *name)
{
    for (Py_ssize_t i = 0; i < file_count; i++)
        if (same_text(files[i], name))
            return 1;
    return 0;
}

static void write_report(void)
{
    static _PyInterpreterFrame *found[REPORT_FRAMES]; /* the newest; a deep recursion keeps its end */
    int count = 0;
    PyThreadState *tstate = _PyRuntime.main_tstate;
    if (tstate == NULL)
        return;
    _PyInterpreterFrame *frame = tstate->current_frame;
    for (int i = 0; frame != NULL && count < REPORT_FRAMES && i < REPORT_WALK; frame = frame->previous, i++) {
        if (frame->owner == FRAME_OWNED_BY_CSTACK || frame->f_executable == NULL || !PyCode_Check(frame->f_executable))
            continue;
        if (is_user_file(_PyFrame_GetCode(frame)->co_filename))
            found[count++] = frame;
    }
    size_t at = 0;
    while (count-- > 0 && at + 2048 < REPORT_BYTES) {
        frame = found[count];
        PyCodeObject *code = _PyFrame_GetCode(frame);
        int line = PyCode_Addr2Line(code, _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT));
        at = put_text(at, code->co_filename);
        char digits[12];
        int n = 0;
        do
            digits[n++] = (char)('0' + (line < 0 ? 0 : line % 10));
        while ((line /= 10) > 0);
        report[at++] = ':';
        while (n > 0)
            report[at++] = digits[--n];
        report[at++] = '\t';
        at = put_text(at, code->co_name);
        report[at++] = '\n';
    }
    kaspr_state.report_ptr = (uint32_t)(uintptr_t)report;
    kaspr_state.report_len = (uint32_t)at;
}

const char *kaspr_report(void) { return report; }

void kaspr_tick(void)
{
    static int busy; /* loops of this file are loops too */
    if (busy)
        return;
    busy = 1;
    kaspr_state.interrupt = 0;
    switch (kaspr_host_tick()) {
    case KASPR_TICK_RAISE:
        if (handler != NULL && kaspr_runtime.deadline != NULL)
            kaspr_tick_ordered = 1, trip();
        break;
    case KASPR_TICK_DIE:
        write_report();
        kaspr_host_die();
        break;
    default:
        break;
    }
    busy = 0;
}
