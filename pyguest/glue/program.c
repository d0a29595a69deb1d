/* The loaded program as C structs. kaspr_load.py gives it as tuples; the order of their members is said there. */
#include "kaspr.h"

program_t kaspr_program;

static PyObject *member(PyObject *tuple, Py_ssize_t i)
{
    if (!PyTuple_Check(tuple) || i >= PyTuple_GET_SIZE(tuple)) {
        PyErr_SetString(PyExc_SystemError, "the program's tuples and program.c disagree");
        return NULL;
    }
    return PyTuple_GET_ITEM(tuple, i);
}

static int number(PyObject *tuple, Py_ssize_t i)
{
    PyObject *v = member(tuple, i);
    long n = v == NULL ? -1 : PyLong_AsLong(v);
    return PyErr_Occurred() ? -1 : (int)n;
}

/* None, or (function, where). */
static int code(PyObject *tuple, Py_ssize_t i, code_t *c)
{
    PyObject *v = member(tuple, i);
    if (v == NULL)
        return -1;
    if (v == Py_None)
        return 0;
    PyObject *func = member(v, 0), *where = member(v, 1);
    if (func == NULL || where == NULL)
        return -1;
    c->func = Py_NewRef(func);
    c->where = Py_NewRef(where);
    c->python = PyFunction_Check(func);
    return 0;
}

static PyObject *optional(PyObject *tuple, Py_ssize_t i)
{
    PyObject *v = member(tuple, i);
    return v == NULL || v == Py_None ? NULL : Py_NewRef(v);
}

static int output(PyObject *t, output_t *o)
{
    o->index = number(t, 0);
    o->topic = optional(t, 1);
    o->key_codec = number(t, 2);
    o->value_codec = number(t, 3);
    o->ack = number(t, 4);
    code_t *codes[] = {&o->name, &o->key, &o->value, &o->partition, &o->headers, &o->predicate};
    for (Py_ssize_t i = 0; i < 6; i++)
        if (code(t, 5 + i, codes[i]) < 0)
            return -1;
    o->where_topic = optional(t, 11);
    o->where_key = optional(t, 12);
    o->where_value = optional(t, 13);
    o->declare = optional(t, 14);
    o->carry = number(t, 15);
    o->no_value = number(t, 16);
    o->declared = PySet_New(NULL);
    o->key_schema = number(t, 17);
    o->value_schema = number(t, 18);
    if (!PyErr_Occurred() && (o->key_codec >= CODEC_AVRO || o->value_codec >= CODEC_AVRO))
        return kaspr_forms_init();
    return PyErr_Occurred() ? -1 : 0;
}

static int operation(PyObject *t, op_t *op)
{
    op->kind = number(t, 0);
    if (code(t, 1, &op->code) < 0)
        return -1;
    PyObject *names = member(t, 2), *values = member(t, 3), *send = member(t, 4);
    op->pass_through = number(t, 5);
    op->name = optional(t, 6);
    if (PyErr_Occurred())
        return -1;
    op->kwcount = PyTuple_GET_SIZE(values);
    op->params = PyTuple_GET_SIZE(names) - op->kwcount;
    if (op->kwcount > TABLES_MAX || op->params < 0 || op->params > PARAMS_MAX) {
        PyErr_Format(PyExc_ValueError, "an operation has at most %d tables, and a path %d parameters", (int)TABLES_MAX, (int)PARAMS_MAX);
        return -1;
    }
    op->kwnames = Py_NewRef(names);
    for (Py_ssize_t i = 0; i < op->kwcount; i++)
        op->kwvalues[i] = Py_NewRef(PyTuple_GET_ITEM(values, i));
    if (op->kind != OP_SEND)
        return 0;
    op->send = PyMem_Calloc(1, sizeof *op->send);
    if (op->send == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return output(send, op->send);
}

/* (content, status, params, headers, failed, and functions of status, headers and body, each of success and of an error). */
static int view(PyObject *t, view_t *v)
{
    v->content = number(t, 0);
    v->status = number(t, 1);
    v->params = number(t, 2);
    v->headers = optional(t, 3);
    v->failed = optional(t, 4);
    code_t *codes[] = {&v->status_of[SUCCESS], &v->status_of[ERROR], &v->headers_of[SUCCESS], &v->headers_of[ERROR],
                       &v->body_of[SUCCESS], &v->body_of[ERROR]};
    for (Py_ssize_t i = 0; i < 6; i++)
        if (code(t, 5 + i, codes[i]) < 0)
            return -1;
    return PyErr_Occurred() ? -1 : 0;
}

/* (key codec, value codec, json exact | task << 1, operations, outputs, sources, view or None). A program that fails half way is left behind: the
 * host throws the instance away. */
int kaspr_program_set(PyObject *spec)
{
    program_t p = {.loaded = 1, .key_codec = number(spec, 0), .value_codec = number(spec, 1), .json_exact = number(spec, 2) & 1, .task = number(spec, 2) >> 1};
    PyObject *ops = member(spec, 3), *outputs = member(spec, 4), *sources = member(spec, 5), *views = member(spec, 6);
    if (PyErr_Occurred() || ((p.key_codec >= CODEC_AVRO || p.value_codec >= CODEC_AVRO) && kaspr_forms_init() < 0))
        return -1;
    p.op_count = PyTuple_GET_SIZE(ops);
    p.output_count = PyTuple_GET_SIZE(outputs);
    p.ops = PyMem_Calloc((size_t)p.op_count + 1, sizeof *p.ops);
    p.outputs = PyMem_Calloc((size_t)p.output_count + 1, sizeof *p.outputs);
    if (p.ops == NULL || p.outputs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < p.op_count; i++)
        if (operation(PyTuple_GET_ITEM(ops, i), &p.ops[i]) < 0)
            return -1;
    for (Py_ssize_t i = 0; i < p.output_count; i++)
        if (output(PyTuple_GET_ITEM(outputs, i), &p.outputs[i]) < 0)
            return -1;
    p.detached = p.task || views != Py_None;
    if (views != Py_None) {
        if ((p.view = PyMem_Calloc(1, sizeof *p.view)) == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        if (view(views, p.view) < 0)
            return -1;
    }
    p.sources = Py_NewRef(sources);
    kaspr_program = p;
    return 0;
}
