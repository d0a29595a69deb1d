/* A batch, unit by unit. A unit is a record, or the list of a take batch. What a unit wrote is cut off when it fails. */
#include "store.h"

unit_t kaspr_unit;

enum { APPLY_ERROR = -1, APPLY_DROP, APPLY_ONE, APPLY_GENERATOR, APPLY_ASYNC_GENERATOR };
enum { UNIT_SPARE = 4096 }; /* room kept for telling a failure */

static void at_operation(Py_ssize_t i)
{
    kaspr_state.phase = KASPR_PHASE_OPERATION;
    kaspr_state.operation = (uint32_t)i;
}

/* Applies operation i to value; *result is new for everything but DROP and ERROR. */
static int apply(Py_ssize_t i, PyObject *value, PyObject **result)
{
    op_t *op = &kaspr_program.ops[i];
    at_operation(i);
    if (op->kind == OP_SEND) {
        PyObject *answer = NULL;
        int rc = kaspr_emit(op->send, value, op, op->send->ack && !op->pass_through ? &answer : NULL);
        if (rc != EMIT_SENT)
            return rc == EMIT_DROPPED ? APPLY_DROP : APPLY_ERROR;
        *result = op->pass_through ? Py_NewRef(value) : answer != NULL ? answer : Py_NewRef(Py_None);
        return APPLY_ONE;
    }
    PyObject *r = kaspr_call(&op->code, i == 0 && kaspr_program.task ? NULL : value, op);
    if (r == NULL)
        return APPLY_ERROR;
    if (op->kind == OP_MAP) {
        *result = r;
        if (Py_TYPE(r)->tp_as_async == NULL)
            return APPLY_ONE;
        return PyGen_CheckExact(r) ? APPLY_GENERATOR : PyAsyncGen_CheckExact(r) ? APPLY_ASYNC_GENERATOR : APPLY_ONE;
    }
    int truth;
    if (r == Py_True)
        truth = 1;
    else if (r == Py_False)
        truth = 0;
    else if (PyGen_CheckExact(r) || PyAsyncGen_CheckExact(r)) {
        PyErr_SetString(PyExc_TypeError, "a filter returns a value, not a generator: that is always true");
        truth = -1;
    } else
        truth = PyObject_IsTrue(r);
    Py_DECREF(r);
    if (truth <= 0)
        return truth < 0 ? APPLY_ERROR : APPLY_DROP;
    *result = Py_NewRef(value);
    return APPLY_ONE;
}

/* Next item of a generator of operation i: 1, 0 at its end, -1 on error. */
static int next_item(Py_ssize_t i, PyObject *generator, int kind, PyObject **item)
{
    at_operation(i);
    kaspr_unit.where = kaspr_program.ops[i].code.where;
    if (kind == APPLY_GENERATOR) {
        PyObject *v = NULL;
        switch (PyIter_Send(generator, Py_None, &v)) {
        case PYGEN_NEXT:
            *item = v;
            return 1;
        case PYGEN_RETURN:
            Py_DECREF(v);
            return 0;
        default:
            return -1;
        }
    }
    PyObject *next = Py_TYPE(generator)->tp_as_async->am_anext(generator);
    if (next == NULL)
        return -1;
    *item = kaspr_await(next);
    if (*item != NULL)
        return 1;
    if (!PyErr_ExceptionMatches(PyExc_StopAsyncIteration))
        return -1;
    PyErr_Clear();
    return 0;
}

static int send_outputs(PyObject *value)
{
    if (kaspr_program.view != NULL) {
        Py_XSETREF(kaspr_unit.last, Py_NewRef(value));
        return 0;
    }
    for (Py_ssize_t i = 0; i < kaspr_program.output_count; i++) {
        kaspr_state.phase = KASPR_PHASE_OUTPUT;
        kaspr_state.operation = (uint32_t)i;
        if (kaspr_emit(&kaspr_program.outputs[i], value, NULL, NULL) == EMIT_ERROR)
            return -1;
    }
    return 0;
}

/* Appends what operation i makes of value to list. */
static int apply_to_list(Py_ssize_t i, PyObject *value, PyObject *list)
{
    PyObject *r;
    int kind = apply(i, value, &r), rc = 0;
    switch (kind) {
    case APPLY_ERROR:
        return -1;
    case APPLY_DROP:
        return 0;
    case APPLY_ONE:
        rc = PyList_Append(list, r);
        break;
    default: {
        PyObject *item;
        int more;
        while ((more = next_item(i, r, kind, &item)) > 0) {
            more = PyList_Append(list, item);
            Py_DECREF(item);
            if (more < 0)
                break;
        }
        rc = more;
    }
    }
    Py_DECREF(r);
    return rc;
}

/* Runs items (stolen) through the operations from i on, breadth first, and through the outputs. */
static int run_list(PyObject *items, Py_ssize_t i)
{
    int rc = 0;
    for (; i < kaspr_program.op_count && PyList_GET_SIZE(items) > 0; i++) {
        PyObject *next = PyList_New(0);
        rc = next == NULL ? -1 : 0;
        for (Py_ssize_t k = 0; rc == 0 && k < PyList_GET_SIZE(items); k++)
            rc = apply_to_list(i, PyList_GET_ITEM(items, k), next);
        Py_DECREF(items);
        if (rc < 0) {
            Py_XDECREF(next);
            return -1;
        }
        items = next;
    }
    for (Py_ssize_t k = 0; rc == 0 && k < PyList_GET_SIZE(items); k++)
        rc = send_outputs(PyList_GET_ITEM(items, k));
    Py_DECREF(items);
    return rc;
}

/* Runs one item (stolen) through the operations from i on and through the outputs. */
static int run_item(PyObject *item, Py_ssize_t i)
{
    for (; i < kaspr_program.op_count; i++) {
        PyObject *r;
        int kind = apply(i, item, &r);
        if (kind == APPLY_ONE) {
            Py_SETREF(item, r);
            continue;
        }
        if (kind >= APPLY_GENERATOR) {
            PyObject *items = PyList_New(0), *v;
            int more = items == NULL ? -1 : 0;
            while (items != NULL && (more = next_item(i, r, kind, &v)) > 0) {
                more = PyList_Append(items, v);
                Py_DECREF(v);
                if (more < 0)
                    break;
            }
            Py_DECREF(r);
            Py_DECREF(item);
            if (more < 0) {
                Py_XDECREF(items);
                return -1;
            }
            return run_list(items, i + 1);
        }
        Py_DECREF(item);
        return kind == APPLY_ERROR ? -1 : 0;
    }
    int rc = send_outputs(item);
    Py_DECREF(item);
    return rc;
}

/* The pipeline over one value. The first operation's generator is lazy: an item is sent before the next one is made. */
static int run_pipeline(PyObject *value)
{
    if (kaspr_program.op_count == 0)
        return send_outputs(value);
    PyObject *r;
    int kind = apply(0, value, &r);
    if (kind == APPLY_ONE)
        return run_item(r, 1);
    if (kind < APPLY_GENERATOR) {
        kaspr_unit.dropped = kind == APPLY_DROP;
        return kind;
    }
    PyObject *item;
    int more;
    while ((more = next_item(0, r, kind, &item)) > 0)
        if ((more = run_item(item, 1)) < 0)
            break;
    Py_DECREF(r);
    return more;
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

/* A record's key (side 0) or value (side 1). */
static PyObject *decode(unit_t *u, const uint8_t *record, int codec, int side)
{
    const uint8_t *entry = record + 32 + 8 * side;
    int32_t len = (int32_t)get32(entry + 4);
    if (codec < CODEC_AVRO || len < 0)
        return kaspr_decode(codec, (const char *)u->batch + get32(entry), len);
    uint32_t forms = get32(u->batch + 24);
    size_t index = (size_t)(record - u->batch - KASPR_BATCH_HEADER_SIZE) / KASPR_RECORD_SIZE;
    entry = u->batch + forms + index * KASPR_FORMS_SIZE + 8 * side;
    if (forms == 0 || (len = (int32_t)get32(entry + 4)) < 0) {
        PyErr_SetString(PyExc_SystemError, "the engine did not decode the record");
        return NULL;
    }
    return kaspr_form_decode((const char *)u->batch + get32(entry), (size_t)len);
}

static int decode_key(unit_t *u, const uint8_t *record, PyObject **key)
{
    int codec = kaspr_program.key_codec;
    if (codec == CODEC_RAW) {
        *key = NULL;
        return 0;
    }
    kaspr_state.phase = KASPR_PHASE_DECODE_KEY;
    u->failure = KASPR_FAILURE_DECODE_KEY;
    *key = decode(u, record, codec, 0);
    return *key == NULL ? -1 : 0;
}

static PyObject *decode_value(unit_t *u, const uint8_t *record)
{
    kaspr_state.phase = KASPR_PHASE_DECODE_VALUE;
    u->failure = KASPR_FAILURE_DECODE_VALUE;
    return decode(u, record, kaspr_program.value_codec, 1);
}

static inline int put_done(uint32_t unit)
{
    if (kbuf_reserve(&kaspr_result, KASPR_ENTRY_HEADER_SIZE) < 0)
        return -1;
    char *e = kaspr_result.data + kaspr_result.len;
    put32(e, KASPR_ENTRY_HEADER_SIZE);
    put32(e + 4, KASPR_ENTRY_DONE);
    put32(e + 8, unit);
    kaspr_result.len += KASPR_ENTRY_HEADER_SIZE;
    kaspr_state.committed = (uint32_t)kaspr_result.len;
    return 0;
}

static inline void unit_begin(unit_t *u, uint32_t index, const uint8_t *record)
{
    u->active = 1;
    u->index = index;
    u->record = record;
    u->where = NULL;
    u->failure = KASPR_FAILURE_CODE;
    kaspr_state.progress = index;
}

/* Whether the event loop has anything to do. */
static inline int kaspr_loop_waiting(void)
{
    return Py_SIZE(kaspr_runtime.loop_ready) != 0 || PyList_GET_SIZE(kaspr_runtime.loop_scheduled) != 0;
}

/* Lets go of what the unit held. Destructors of the user's objects run here: for them there is no unit any more. */
static inline void unit_release(unit_t *u)
{
    u->active = 0;
    if (u->event != NULL) {
        PyObject *event = u->event;
        u->event = NULL;
        kaspr_event_release(event);
    }
    Py_CLEAR(u->value);
    if (u->key != NULL)
        Py_CLEAR(u->key);
    if (u->keys != NULL)
        Py_CLEAR(u->keys);
    if (u->events != NULL)
        Py_CLEAR(u->events);
    if (u->params != NULL)
        Py_CLEAR(u->params);
    if (u->last != NULL)
        Py_CLEAR(u->last);
    if (kaspr_context_scratch != NULL)
        Py_CLEAR(kaspr_context_scratch);
}

/* What a kaspr.HTTPError says to answer: (body, status, headers); NULL for another exception, or one whose members are gone. */
static PyObject *answer_of(PyObject *exc)
{
    if (!PyErr_GivenExceptionMatches(exc, kaspr_runtime.http_error))
        return NULL;
    PyObject *body = PyObject_GetAttrString(exc, "body"), *status = body == NULL ? NULL : PyObject_GetAttrString(exc, "status");
    PyObject *headers = status == NULL ? NULL : PyObject_GetAttrString(exc, "headers");
    PyObject *r = headers == NULL ? NULL : PyTuple_Pack(3, body, status, headers);
    Py_XDECREF(body);
    Py_XDECREF(status);
    Py_XDECREF(headers);
    PyErr_Clear();
    return r;
}

/* What a view's onError and its error body are made of: (operation, cause, traceback) of the exception that is set, which stays.
 * given: what it says itself, or NULL. NULL without an exception: there is no memory for it. */
static PyObject *view_error(PyObject **given)
{
    PyObject *exc = PyErr_GetRaisedException();
    *given = NULL;
    if (exc == NULL)
        return NULL;
    *given = answer_of(exc);
    PyObject *name = kaspr_program.op_count > 0 ? kaspr_program.ops[kaspr_state.operation].name : NULL;
    PyObject *cause = kaspr_exception_message(exc), *traceback = kaspr_exception_traceback(exc);
    PyObject *r = cause == NULL || traceback == NULL ? NULL : PyTuple_Pack(3, name == NULL ? Py_None : name, cause, traceback);
    PyErr_Clear();
    Py_XDECREF(cause);
    Py_XDECREF(traceback);
    PyErr_SetRaisedException(exc);
    return r;
}

/* Answers a request that failed. Whatever fails here is logged; the host answers then. */
static void respond_error(unit_t *u, PyObject *error, PyObject *given)
{
    size_t start = kaspr_result.len;
    PyObject *made = PyObject_CallObject(kaspr_program.view->failed, error);
    int rc = made == NULL ? -1 : kaspr_respond(PyTuple_GET_ITEM(made, 0), PyTuple_GET_ITEM(made, 1), ERROR, given);
    Py_XDECREF(made);
    store_undo();
    u->aside.len = 0;
    u->building = 0;
    if (rc == 0)
        return;
    kaspr_result.len = start;
    PyObject *exc = PyErr_GetRaisedException();
    PyObject *message = exc == NULL ? NULL : kaspr_exception_message(exc), *traceback = exc == NULL ? NULL : kaspr_exception_traceback(exc);
    PyObject *text = message == NULL || traceback == NULL ? NULL :
        PyUnicode_FromFormat("the error response failed: %U: %s: %U\n%U", u->where == NULL ? message : u->where, Py_TYPE(exc)->tp_name, message, traceback);
    if (text != NULL)
        kaspr_log(40, text);
    Py_XDECREF(text);
    Py_XDECREF(message);
    Py_XDECREF(traceback);
    Py_XDECREF(exc);
    PyErr_Clear();
}

/* Ends a unit whose run gave rc: 1 it succeeded, 0 it failed and says so, -1 not even that was possible. */
static int unit_failed(unit_t *u, size_t start)
{
    PyObject *where = u->failure == KASPR_FAILURE_DECODE_KEY || u->failure == KASPR_FAILURE_DECODE_VALUE ? NULL : u->where;
    kaspr_result.len = start;
    u->aside.len = 0;
    u->building = 0;
    store_undo();
    PyObject *given = NULL, *error = kaspr_program.view == NULL ? NULL : view_error(&given);
    int rc = kaspr_fail(u->index, u->failure, where);
    if (error != NULL) {
        if (rc == 0)
            respond_error(u, error, given);
        Py_DECREF(error);
    }
    Py_XDECREF(given);
    unit_release(u);
    size_t end = kaspr_result.len;
    u->active = 1;
    if (kaspr_loop_waiting()) /* what the failed unit left is not the next one's */
        kaspr_loop_idle();
    kaspr_result.len = end;
    store_undo();
    kaspr_tick_forget();
    PyErr_Clear();
    u->active = 0;
    return rc < 0 || put_done(u->index) < 0 ? -1 : 0;
}

static inline int unit_end(unit_t *u, int rc, size_t start)
{
    if (rc == 0 && kaspr_loop_waiting())
        rc = kaspr_loop_idle();
    if (rc == 0)
        rc = store_emit(u->index);
    if (rc == 0)
        rc = kbuf_reserve(&kaspr_result, KASPR_ENTRY_HEADER_SIZE); /* what is kept must be done */
    if (rc < 0)
        return unit_failed(u, start);
    store_keep();
    unit_release(u);
    if (kaspr_tick_ordered)
        kaspr_tick_forget();
    return put_done(u->index) < 0 ? -1 : 1;
}

/* 1, 0 or -1 as unit_end. */
static int run_record(unit_t *u, uint32_t index)
{
    const uint8_t *record = u->batch + KASPR_BATCH_HEADER_SIZE + (size_t)index * KASPR_RECORD_SIZE;
    size_t start = kaspr_result.len;
    unit_begin(u, index, record);
    int rc = decode_key(u, record, &u->key);
    if (rc == 0 && (u->value = decode_value(u, record)) == NULL)
        rc = -1;
    if (rc == 0) {
        u->failure = KASPR_FAILURE_CODE;
        rc = run_pipeline(u->value);
    }
    return unit_end(u, rc, start);
}

/* The request of a record: its key is the head (kaspr_request.py), its value the body, and its headers, without names, the values
 * of the path's parameters. */
static PyObject *make_request(unit_t *u, const uint8_t *record)
{
    const char *batch = (const char *)u->batch;
    if ((Py_ssize_t)get32(record + 52) != kaspr_program.view->params) {
        PyErr_SetString(PyExc_SystemError, "a request has other parameters than its path");
        return NULL;
    }
    if ((u->params = PyTuple_New(kaspr_program.view->params)) == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < kaspr_program.view->params; i++) {
        const char *h = batch + get32(record + 48) + (size_t)i * KASPR_HEADER_SIZE;
        int32_t len = (int32_t)get32(h + 12);
        PyObject *text = PyUnicode_DecodeUTF8(batch + get32(h + 8), len < 0 ? 0 : len, "surrogateescape");
        if (text == NULL)
            return NULL;
        PyTuple_SET_ITEM(u->params, i, text);
    }
    PyObject *head = kaspr_decode(CODEC_RAW, batch + get32(record + 32), (int32_t)get32(record + 36));
    PyObject *body = kaspr_decode(CODEC_RAW, batch + get32(record + 40), (int32_t)get32(record + 44));
    PyObject *r = head == NULL || body == NULL ? NULL : PyObject_CallFunctionObjArgs(kaspr_runtime.request, head, body, u->params, NULL);
    Py_XDECREF(head);
    Py_XDECREF(body);
    return r;
}

/* 1, 0 or -1 as unit_end. The last item of the pipeline is answered with; None if there is none. */
static int run_request(unit_t *u, uint32_t index)
{
    const uint8_t *record = u->batch + KASPR_BATCH_HEADER_SIZE + (size_t)index * KASPR_RECORD_SIZE;
    const view_t *view = kaspr_program.view;
    size_t start = kaspr_result.len;
    unit_begin(u, index, record);
    u->dropped = 0;
    kaspr_state.operation = 0;
    int rc = (u->value = make_request(u, record)) == NULL ? -1 : 0;
    if (rc == 0 && kaspr_program.op_count > 0)
        rc = run_pipeline(u->value);
    if (rc == 0) {
        if (u->dropped && view->status == 0 && view->status_of[SUCCESS].func == NULL)
            rc = kaspr_respond_empty(204);
        else {
            PyObject *data = u->last == NULL ? Py_NewRef(Py_None) : Py_NewRef(u->last);
            PyObject *given = kaspr_is_response(data) ? data : NULL;
            PyObject *value = given == NULL ? data : PyTuple_GET_ITEM(given, 0);
            rc = kaspr_respond(value, value, SUCCESS, given);
            Py_DECREF(data);
        }
    }
    return unit_end(u, rc, start);
}

static int run_take(unit_t *u, uint32_t count)
{
    unit_begin(u, 0, NULL);
    PyObject *values = PyList_New(0), *keys = PyList_New(0);
    uint32_t *indexes = malloc((count + 1) * sizeof *indexes);
    int rc = values == NULL || keys == NULL || indexes == NULL ? -1 : 0;
    if (rc < 0)
        PyErr_NoMemory();
    u->keys = keys;
    u->indexes = indexes;
    uint32_t good = 0;
    for (uint32_t i = 0; rc == 0 && i < count; i++) {
        const uint8_t *record = u->batch + KASPR_BATCH_HEADER_SIZE + (size_t)i * KASPR_RECORD_SIZE;
        PyObject *key, *value = NULL;
        if (decode_key(u, record, &key) < 0 || (value = decode_value(u, record)) == NULL) {
            int deadline = PyErr_ExceptionMatches(kaspr_runtime.deadline);
            if (deadline || kaspr_fail(i, u->failure, NULL) < 0)
                rc = -1;
        } else {
            rc = PyList_Append(values, value);
            if (rc == 0)
                rc = PyList_Append(keys, key == NULL ? Py_Ellipsis : key);
            indexes[good++] = i;
        }
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    size_t start = kaspr_result.len; /* records that could not be decoded stay failed, whatever becomes of the others */
    u->failure = KASPR_FAILURE_CODE;
    if (rc == 0 && good > 0 && (u->value = PyList_AsTuple(values)) == NULL)
        rc = -1;
    if (rc == 0 && good > 0)
        rc = run_pipeline(values);
    Py_XDECREF(values);
    rc = unit_end(u, rc, start);
    free(indexes);
    u->indexes = NULL;
    return rc;
}

/* ---- the batch --------------------------------------------------------------------------------------------------- */

static int bad(const char *text)
{
    PyErr_SetString(PyExc_ValueError, text);
    return -1;
}

static int inside(uint64_t off, uint64_t len, size_t n) { return off <= n && len <= n - off; }

static int bad_slice(const uint8_t *entry, size_t n)
{
    int32_t len = (int32_t)get32(entry + 4);
    return len < -1 || !inside(get32(entry), len < 0 ? 0 : (uint64_t)len, n);
}

/* The host writes the batch; this is a check against bugs, and cheap. */
static int check_batch(const uint8_t *b, size_t n)
{
    if (n < KASPR_BATCH_HEADER_SIZE || get32(b) != KASPR_BATCH_MAGIC)
        return bad("this is not a batch");
    uint32_t count = get32(b + 4), topics = get32(b + 12), forms = get32(b + 24);
    if (!inside(KASPR_BATCH_HEADER_SIZE, (uint64_t)count * KASPR_RECORD_SIZE, n) ||
        !inside(get32(b + 16), (uint64_t)topics * KASPR_TOPIC_SIZE, n) ||
        (forms > 0 && !inside(forms, (uint64_t)count * KASPR_FORMS_SIZE, n)))
        return bad("the batch is cut off");
    for (uint32_t i = 0; i < topics; i++) {
        const uint8_t *t = b + get32(b + 16) + (size_t)i * KASPR_TOPIC_SIZE;
        if (!inside(get32(t), get32(t + 4), n))
            return bad("a topic lies outside the batch");
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *r = b + KASPR_BATCH_HEADER_SIZE + (size_t)i * KASPR_RECORD_SIZE;
        uint32_t headers = get32(r + 52);
        if (get32(r) >= topics || bad_slice(r + 32, n) || bad_slice(r + 40, n) ||
            (headers > 0 && !inside(get32(r + 48), (uint64_t)headers * KASPR_HEADER_SIZE, n)))
            return bad("a record lies outside the batch");
        const uint8_t *f = b + forms + (size_t)i * KASPR_FORMS_SIZE;
        if (forms > 0 && (bad_slice(f, n) || bad_slice(f + 8, n)))
            return bad("a form lies outside the batch");
        for (uint32_t k = 0; k < headers; k++) {
            const uint8_t *h = b + get32(r + 48) + (size_t)k * KASPR_HEADER_SIZE;
            if (!inside(get32(h), get32(h + 4), n) || bad_slice(h + 8, n))
                return bad("a header lies outside the batch");
        }
    }
    return 0;
}

int kaspr_run_batch(const uint8_t *batch, size_t n)
{
    unit_t *u = &kaspr_unit;
    if (!kaspr_program.loaded)
        return bad("no program is loaded");
    if (check_batch(batch, n) < 0)
        return -1;
    uint32_t count = get32(batch + 4), flags = get32(batch + 8);
    u->batch = batch;
    u->batch_len = n;
    store_begin(count > 0 ? (int32_t)get32(batch + KASPR_BATCH_HEADER_SIZE + 4) : -1, get32(batch + 20));
    int rc = 1;
    if (flags & KASPR_FLAG_TAKE) {
        if (count > 0)
            rc = kbuf_reserve(&kaspr_result, UNIT_SPARE) < 0 ? -1 : run_take(u, count);
    } else {
        for (uint32_t i = 0; i < count; i++) {
            rc = kbuf_reserve(&kaspr_result, UNIT_SPARE) < 0 ? -1 : kaspr_program.view != NULL ? run_request(u, i) : run_record(u, i);
            if (rc < 0 || (rc == 0 && (flags & KASPR_FLAG_STOP_ON_FAILURE)))
                break;
        }
    }
    u->active = 0;
    u->batch = NULL;
    kaspr_state.progress = KASPR_PROGRESS_IDLE;
    kaspr_state.phase = KASPR_PHASE_IDLE;
    if (rc >= 0)
        return 0;
    if (!PyErr_Occurred())
        PyErr_NoMemory();
    return -1;
}
