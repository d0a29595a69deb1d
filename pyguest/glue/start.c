/* The exports, and the start of Python. */
#include "kaspr.h"

#include "kjson.h"

kaspr_state_t kaspr_state = {.progress = KASPR_PROGRESS_IDLE};
runtime_t kaspr_runtime;

enum { RESULT_KEEP = 4 << 20, INPUT_KEEP = 4 << 20 };

static void result_moved(kbuf *b) { kaspr_state.result_ptr = (uint32_t)(uintptr_t)b->data; }
kbuf kaspr_result = {.moved = result_moved};

static char *input;
static size_t input_cap;

static void call_begin(void)
{
    kaspr_state.committed = kaspr_state.result_len = kaspr_state.repeated = 0;
    kaspr_state.report_len = 0;
    kaspr_result.len = 0;
    if (kaspr_result.cap > RESULT_KEEP)
        kbuf_free(&kaspr_result);
}

static int32_t call_end(int32_t rc)
{
    kaspr_tick_forget();
    PyErr_Clear();
    kaspr_state.result_len = (uint32_t)kaspr_result.len;
    return rc;
}

static void put_text(const char *text) { kbuf_append(&kaspr_result, text, strlen(text)); }

/* The exception that is set, as the text of the result. */
static int32_t call_failed(void)
{
    kaspr_result.len = 0;
    PyObject *exc = PyErr_GetRaisedException();
    PyObject *text = exc == NULL ? NULL : kaspr_exception_message(exc);
    Py_ssize_t n = 0;
    const char *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, &n);
    put_text(exc == NULL ? "failed without an exception" : Py_TYPE(exc)->tp_name);
    if (utf8 != NULL) {
        put_text(": ");
        kbuf_append(&kaspr_result, utf8, (size_t)n);
    }
    Py_XDECREF(text);
    Py_XDECREF(exc);
    return call_end(1);
}

static int32_t start_failed(PyStatus status)
{
    kaspr_result.len = 0;
    put_text("Python does not start: ");
    put_text(status.err_msg == NULL ? "no reason given" : status.err_msg);
    kaspr_state.result_len = (uint32_t)kaspr_result.len;
    return 1;
}

#ifdef __wasm__
static const wchar_t *const kaspr_paths[] = {L"/lib/stdlib.zip", NULL};
#else
extern const wchar_t *kaspr_paths[];
#endif

static PyStatus start_python(void)
{
    PyPreConfig pre;
    PyPreConfig_InitIsolatedConfig(&pre);
    pre.utf8_mode = 1;
#ifdef __SANITIZE_ADDRESS__
    pre.allocator = PYMEM_ALLOCATOR_MALLOC; /* so that the sanitizer sees Python's objects */
#endif
    PyStatus status = Py_PreInitialize(&pre);
    if (PyStatus_Exception(status))
        return status;
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.install_signal_handlers = 0;
    config.use_hash_seed = 0; /* random: from the host's random source */
    config.write_bytecode = 0;
    config.pathconfig_warnings = 0;
    config.parse_argv = 0;
    config.module_search_paths_set = 1;
    status = PyConfig_SetString(&config, &config.program_name, L"kaspr");
    for (int i = 0; !PyStatus_Exception(status) && kaspr_paths[i] != NULL; i++)
        status = PyWideStringList_Append(&config.module_search_paths, kaspr_paths[i]);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

static int take_runtime(void)
{
    runtime_t *rt = &kaspr_runtime;
    const struct {
        const char *module, *name;
        PyObject **to;
    } wanted[] = {
        {"kaspr", "DeadlineExceeded", &rt->deadline},
        {"kaspr_runtime", "load", &rt->load},
        {"kaspr_runtime", "check", &rt->check},
        {"kaspr_runtime", "reseed", &rt->reseed},
        {"kaspr_runtime", "loaded", &rt->loaded},
        {"kaspr_runtime", "loop", &rt->loop},
        {"kaspr_runtime", "loop_ready", &rt->loop_ready},
        {"kaspr_runtime", "loop_scheduled", &rt->loop_scheduled},
        {"kaspr_runtime", "loop_ended", &rt->loop_ended},
        {"kaspr_runtime", "loop_rest", &rt->loop_rest},
        {"kaspr_runtime", "UnitTask", &rt->task_type},
        {"kaspr_runtime", "task_finish", &rt->task_finish},
        {"kaspr_runtime", "task_idle", &rt->task_idle},
        {"kaspr_runtime", "task_enter", &rt->task_enter},
        {"kaspr_runtime", "task_leave", &rt->task_leave},
        {"kaspr_runtime", "task_begin", &rt->task_begin},
        {"kaspr_runtime", "task_result", &rt->task_result},
        {"kaspr_runtime", "task_inject", &rt->task_inject},
        {"kaspr_runtime", "task_abandon", &rt->task_abandon},
        {"kaspr_runtime", "task", &rt->task},
        {"kaspr_loop", "Clash", &rt->clash},
        {"kaspr_runtime", "base_context", &rt->base_context},
        {"kaspr_runtime", "app", &rt->app},
        {"kaspr_runtime", "forward", &rt->forward},
        {"kaspr_runtime", "send", &rt->send},
        {"kaspr_runtime", "acked", &rt->acked},
        {"kaspr_request", "Request", &rt->request},
        {"kaspr", "NotReady", &rt->not_ready},
        {"kaspr", "Response", &rt->response},
        {"kaspr", "HTTPError", &rt->http_error},
        {"pickle", "dumps", &rt->pickle_dumps},
        {"pickle", "loads", &rt->pickle_loads},
        {"binascii", "a2b_base64", &rt->a2b_base64},
        {"kaspr", "Joined", &rt->joined},
        {"kaspr_runtime", "pickle_key", &rt->pickle_key},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        PyObject *module = PyImport_ImportModule(wanted[i].module);
        if (module == NULL)
            return -1;
        *wanted[i].to = PyObject_GetAttrString(module, wanted[i].name);
        Py_DECREF(module);
        if (*wanted[i].to == NULL)
            return -1;
    }
    if (!PyList_CheckExact(rt->loop_scheduled) || !PyList_CheckExact(rt->loop_ended) || !PyContext_CheckExact(rt->base_context)) {
        PyErr_SetString(PyExc_TypeError, "kaspr_runtime and start.c disagree");
        return -1;
    }
    return PyContext_Enter(rt->base_context);
}

/* Known before the runtime is imported, so that a deadline in an import has an exception to raise. */
static int take_deadline(void)
{
    PyObject *module = PyImport_ImportModule("kaspr");
    kaspr_runtime.deadline = module == NULL ? NULL : PyObject_GetAttrString(module, "DeadlineExceeded");
    Py_XDECREF(module);
    return kaspr_runtime.deadline == NULL ? -1 : 0;
}

int32_t kaspr_start(void)
{
    call_begin();
    if (PyImport_AppendInittab("_kaspr", PyInit__kaspr) < 0 || PyImport_AppendInittab("_kjson", PyInit__kjson) < 0)
        return start_failed(PyStatus_NoMemory());
    PyStatus status = start_python();
    if (PyStatus_Exception(status))
        return start_failed(status);
    if (take_deadline() < 0 || kaspr_tick_init() < 0 || kjson_init() < 0 || take_runtime() < 0)
        return call_failed();
    return call_end(0);
}

void *kaspr_input(int32_t n)
{
    size_t need = n < 1 ? 1 : (size_t)n;
    if (need > input_cap || (input_cap > INPUT_KEEP && need < INPUT_KEEP)) {
        free(input); /* nothing of it is needed any more: no realloc, which copies */
        input_cap = need < 64 << 10 ? 64 << 10 : need;
        input = malloc(input_cap);
        if (input == NULL)
            input_cap = 0;
    }
    return input;
}

static int32_t put_result(PyObject *bytes)
{
    if (!PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "kaspr_runtime and start.c disagree");
        return -1;
    }
    return kbuf_append(&kaspr_result, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
}

/* A failure of the engine's own code while loading, as the list of problems the host expects. */
static int32_t load_failed(void)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyObject *text = exc == NULL ? NULL : kaspr_exception_message(exc);
    PyObject *list = Py_BuildValue("[{sssisisssssO}]", "file", "", "line", 0, "column", 0, "where", "", "type",
                                   exc == NULL ? "SystemError" : Py_TYPE(exc)->tp_name, "message",
                                   text == NULL ? Py_None : text);
    Py_XDECREF(text);
    Py_XDECREF(exc);
    kaspr_result.len = 0;
    if (list == NULL || kjson_encode(list, &kaspr_result, 1) < 0)
        put_text("[]");
    Py_XDECREF(list);
    return call_end(1);
}

/* Both answer (problems as JSON or None, program or None). */
static int32_t load(PyObject *function, int32_t n, int keep)
{
    call_begin();
    if (function == NULL || n < 0 || (size_t)n > input_cap)
        return call_end(1);
    PyObject *answer = PyObject_CallFunction(function, "y#", input, (Py_ssize_t)n);
    PyObject *problems = NULL, *spec = NULL;
    int32_t rc = answer != NULL && PyArg_ParseTuple(answer, "OO", &problems, &spec) ? 0 : -1;
    if (rc == 0 && problems != Py_None) {
        rc = put_result(problems);
        Py_DECREF(answer);
        return rc < 0 ? load_failed() : call_end(1);
    }
    if (rc == 0 && keep) {
        rc = kaspr_program_set(spec);
        PyObject *r = rc == 0 ? PyObject_CallNoArgs(kaspr_runtime.loaded) : NULL;
        if (r == NULL)
            rc = -1;
        Py_XDECREF(r);
    }
    Py_XDECREF(answer);
    return rc < 0 ? load_failed() : call_end(0);
}

int32_t kaspr_load(int32_t n) { return load(kaspr_runtime.load, n, 1); }
int32_t kaspr_check(int32_t n) { return load(kaspr_runtime.check, n, 0); }

int32_t kaspr_process(int32_t n)
{
    call_begin();
    if (n < 0 || (size_t)n > input_cap || kaspr_run_batch((const uint8_t *)input, (size_t)n) < 0)
        return call_failed();
    return call_end(0);
}

int32_t kaspr_reseed(int32_t n)
{
    call_begin();
    if (kaspr_runtime.reseed == NULL || n < 0 || (size_t)n > input_cap)
        return call_end(1);
    PyObject *r = PyObject_CallFunction(kaspr_runtime.reseed, "y#", input, (Py_ssize_t)n);
    if (r == NULL)
        return call_failed();
    Py_DECREF(r);
    return call_end(0);
}
