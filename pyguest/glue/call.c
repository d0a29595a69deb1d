/* Calls of user code. A coroutine that never waits for anything runs to its end right here: all user code runs with the
 * loop set as running and with the unit's task as the current one (see kaspr_loop.py), so nothing has to be entered or
 * left. Only when it waits does Python's event loop turn. */
#include "kaspr.h"

#include "internal/pycore_call.h"
#include "internal/pycore_genobject.h"

PyObject *kaspr_outside(PyObject *method, PyObject *a, PyObject *b)
{
    runtime_t *rt = &kaspr_runtime;
    void *home = kaspr_flight_home();
    /* Tasks enter their context themselves for every step they make. */
    if (PyContext_Exit(rt->base_context) < 0)
        return NULL;
    PyObject *r = PyObject_CallFunctionObjArgs(method, rt->task, a, b, NULL);
    PyObject *exc = r == NULL ? PyErr_GetRaisedException() : NULL;
    kaspr_flight_return(home);
    if (PyContext_Enter(rt->base_context) < 0) {
        Py_CLEAR(r);
        Py_XSETREF(exc, PyErr_GetRaisedException());
    }
    if (exc != NULL)
        PyErr_SetRaisedException(exc);
    return r;
}

PyObject *kaspr_await(PyObject *awaitable)
{
    PyObject *iterator = _PyCoro_GetAwaitableIter(awaitable);
    Py_DECREF(awaitable);
    if (iterator == NULL)
        return NULL;
    PyObject *r = NULL;
    if (PyIter_Send(iterator, Py_None, &r) == PYGEN_NEXT) {
        PyObject *waits_for = r;
        if (kaspr_unit.may_wait) {
            kaspr_unit.run.iterator = iterator;
            kaspr_unit.run.waits_for = waits_for;
            return NULL;
        }
        r = kaspr_outside(kaspr_runtime.task_finish, iterator, waits_for);
        Py_DECREF(waits_for);
    }
    Py_DECREF(iterator);
    return r;
}

static int is_awaitable(PyObject *v)
{
    if (PyCoro_CheckExact(v))
        return 1;
    if (PyGen_CheckExact(v)) {
        PyCodeObject *code = PyGen_GetCode((PyGenObject *)v);
        int flags = code->co_flags;
        Py_DECREF(code);
        return (flags & CO_ITERABLE_COROUTINE) != 0;
    }
    return Py_TYPE(v)->tp_as_async->am_await != NULL;
}

PyObject *kaspr_call(const code_t *code, PyObject *value, const op_t *op)
{
    kaspr_unit.where = code->where;
    if (kaspr_context_scratch != NULL)
        Py_CLEAR(kaspr_context_scratch);
    PyObject *stack[2 + TABLES_MAX + PARAMS_MAX];
    stack[1] = value;
    size_t n = value == NULL ? 0 : 1;
    PyObject *kwnames = NULL;
    if (op != NULL && op->kwcount + op->params > 0) {
        memcpy(stack + 2, op->kwvalues, (size_t)op->kwcount * sizeof(PyObject *));
        for (Py_ssize_t i = 0; i < op->params; i++)
            stack[2 + op->kwcount + i] = PyTuple_GET_ITEM(kaspr_unit.params, i);
        kwnames = op->kwnames;
    }
    PyObject *r = code->python ? _PyFunction_Vectorcall(code->func, stack + 2 - n, n | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames)
                               : PyObject_Vectorcall(code->func, stack + 2 - n, n | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
    if (r == NULL || Py_TYPE(r)->tp_as_async == NULL || !is_awaitable(r))
        return r;
    return kaspr_await(r);
}

int kaspr_loop_idle(void)
{
    PyObject *r = kaspr_outside(kaspr_runtime.task_idle, NULL, NULL);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}
