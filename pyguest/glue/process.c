/* A batch, unit by unit. A unit is a record, or the list of a take batch. What a unit wrote is cut off when it fails. */
#include "store.h"

unit_t kaspr_unit;

enum { APPLY_ERROR = -1, APPLY_DROP, APPLY_ONE, APPLY_GENERATOR, APPLY_ASYNC_GENERATOR, APPLY_WAITS };

static void at_operation(Py_ssize_t i)
{
    kaspr_state.phase = KASPR_PHASE_OPERATION;
    kaspr_state.operation = (uint32_t)i;
}

/* What a call of operation i with value gave (stolen): *result is new for everything but DROP, WAITS and ERROR. */
static int applied(Py_ssize_t i, PyObject *value, PyObject *r, PyObject **result)
{
    if (r == NULL)
        return kaspr_unit.run.iterator != NULL || kaspr_unit.run.ticket != 0 ? APPLY_WAITS : APPLY_ERROR;
    op_t *op = &kaspr_program.ops[i];
    if (op->kind != OP_FILTER) {
        *result = r;
        if (op->kind == OP_SEND || Py_TYPE(r)->tp_as_async == NULL)
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

/* Applies operation i to value. */
static int apply(Py_ssize_t i, PyObject *value, PyObject **result)
{
    op_t *op = &kaspr_program.ops[i];
    PyObject *r;
    at_operation(i);
    if (op->kind == OP_SEND) {
        PyObject *answer = NULL;
        int rc = kaspr_emit(op->send, value, op, op->send->ack && !op->pass_through ? &answer : NULL);
        if (rc == EMIT_DROPPED)
            return APPLY_DROP;
        r = rc != EMIT_SENT ? NULL : op->pass_through ? Py_NewRef(value) : answer != NULL ? answer : Py_NewRef(Py_None);
    } else {
        kaspr_unit.may_wait = kaspr_concurrent;
        r = kaspr_call(&op->code, i == 0 && kaspr_program.task ? NULL : value, op);
        kaspr_unit.may_wait = 0;
    }
    return applied(i, value, r, result);
}

/* What a generator gave for its next item: 1, 0 at its end, MORE_WAITS, -1 on error. */
enum { MORE_WAITS = 2 };
static int drawn(PyObject *item, PyObject **made)
{
    *made = item;
    if (item != NULL)
        return 1;
    if (kaspr_unit.run.iterator != NULL)
        return MORE_WAITS;
    if (!PyErr_ExceptionMatches(PyExc_StopAsyncIteration))
        return -1;
    PyErr_Clear();
    return 0;
}

/* Next item of a generator of operation i. */
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
    kaspr_unit.may_wait = kaspr_concurrent;
    next = kaspr_await(next);
    kaspr_unit.may_wait = 0;
    return drawn(next, item);
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

static void run_clear(run_t *r)
{
    Py_CLEAR(r->source);
    Py_CLEAR(r->item);
    Py_CLEAR(r->items);
    Py_CLEAR(r->out);
    Py_CLEAR(r->generator);
    Py_CLEAR(r->iterator);
    Py_CLEAR(r->waits_for);
    r->ticket = 0;
    r->at = RUN_BEGIN;
}

static inline PyObject *in_hand(const run_t *r) { return r->items != NULL ? PyList_GET_ITEM(r->items, r->k) : r->item; }

/* The pipeline. The first operation's generator is lazy: an item has gone through the outputs before the next one is made.
 * Where a later operation makes many of one, it goes on breadth first, with lists.
 *
 * All that is to be known to go on stands in the unit's run_t, so that it can be left where the code waits (RUN_WAITS) and entered
 * again with what the code waited for (got, stolen; NULL with an exception). */
static int run_on(unit_t *u, PyObject *got)
{
    run_t *r = &u->run;
    const Py_ssize_t last = kaspr_program.op_count;
    PyObject *made = NULL;
    int kind, more, at = r->at;

    r->at = RUN_BEGIN;
    switch (at) {
    case RUN_CALL:
        kind = applied(r->op, in_hand(r), got, &made);
        goto called;
    case RUN_NEXT:
        more = drawn(got, &made);
        goto drew;
    case RUN_SOURCE:
        more = drawn(got, &made);
        goto sourced;
    }
    r->op = 0;
single: /* r->item, before operation r->op */
    if (r->op == last) {
        if (send_outputs(r->item) < 0)
            return -1;
        goto done;
    }
call:
    kind = apply(r->op, in_hand(r), &made);
called:
    switch (kind) {
    case APPLY_ERROR:
        return -1;
    case APPLY_WAITS:
        r->at = RUN_CALL;
        return RUN_WAITS;
    case APPLY_DROP:
        if (r->items != NULL)
            goto advance;
        if (r->op == 0)
            u->dropped = 1;
        goto done;
    case APPLY_ONE:
        if (r->items == NULL) {
            Py_SETREF(r->item, made);
            r->op++;
            goto single;
        }
        more = PyList_Append(r->out, made);
        Py_DECREF(made);
        if (more < 0)
            return -1;
        goto advance;
    }
    if (r->op == 0) {
        r->source = made;
        r->source_kind = kind;
        goto done;
    }
    r->generator = made;
    r->generator_kind = kind;
    if (r->out == NULL && (r->out = PyList_New(0)) == NULL)
        return -1;
draw:
    more = next_item(r->op, r->generator, r->generator_kind, &made);
drew:
    if (more == MORE_WAITS) {
        r->at = RUN_NEXT;
        return RUN_WAITS;
    }
    if (more > 0) {
        more = PyList_Append(r->out, made);
        Py_DECREF(made);
        if (more < 0)
            return -1;
        goto draw;
    }
    Py_CLEAR(r->generator);
    if (more < 0)
        return -1;
    if (r->items == NULL)
        goto stage;
advance:
    if (++r->k < PyList_GET_SIZE(r->items))
        goto call;
stage: /* operation r->op is done: what it made goes to the next one */
    Py_CLEAR(r->item);
    Py_XSETREF(r->items, r->out);
    r->out = NULL;
    r->k = 0;
    r->op++;
    if (r->op < last && PyList_GET_SIZE(r->items) > 0) {
        if ((r->out = PyList_New(0)) == NULL)
            return -1;
        goto call;
    }
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(r->items); k++)
        if (send_outputs(PyList_GET_ITEM(r->items, k)) < 0)
            return -1;
done:
    Py_CLEAR(r->item);
    Py_CLEAR(r->items);
    if (r->source == NULL)
        return 0;
    more = next_item(0, r->source, r->source_kind, &made);
sourced:
    if (more == MORE_WAITS) {
        r->at = RUN_SOURCE;
        return RUN_WAITS;
    }
    if (more <= 0)
        return more;
    r->item = made;
    r->op = 1;
    goto single;
}

/* 0, -1 with an exception, or RUN_WAITS. */
static inline int run_ended(unit_t *u, int rc)
{
    if (rc <= 0)
        run_clear(&u->run);
    return rc;
}

static int run_pipeline(unit_t *u, PyObject *value)
{
    u->run.item = Py_NewRef(value);
    return run_ended(u, run_on(u, NULL));
}

int kaspr_unit_resume(unit_t *u, PyObject *got)
{
    if (got == NULL && u->run.ticket != 0)
        u->failure = KASPR_FAILURE_SEND;
    u->run.ticket = 0;
    return run_ended(u, run_on(u, got));
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
    u->sent = 0;
    kaspr_state.progress = index;
    store_unit_begin(index);
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

void kaspr_unit_drop(unit_t *u)
{
    run_clear(&u->run);
    u->aside.len = 0;
    unit_release(u);
}

/* Cuts off what a unit made and tells of its failure. 0, or -1: not even that was possible. */
static int unit_failed(unit_t *u, size_t start)
{
    PyObject *where = u->failure == KASPR_FAILURE_DECODE_KEY || u->failure == KASPR_FAILURE_DECODE_VALUE ? NULL : u->where;
    kaspr_result.len = start;
    kaspr_flight_cut();
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
    if (kaspr_loop_waiting() && kaspr_flights() == 0) /* what the failed unit left is not the next one's */
        kaspr_loop_idle();
    kaspr_result.len = end;
    store_undo();
    kaspr_tick_forget();
    PyErr_Clear();
    u->active = 0;
    return rc < 0 ? -1 : 0;
}

int kaspr_unit_end(unit_t *u, int rc, size_t start)
{
    if (rc == 0 && kaspr_loop_waiting())
        rc = kaspr_loop_idle();
    if (rc == 0)
        rc = store_emit(u->index);
    if (rc == 0)
        rc = kbuf_reserve(&kaspr_result, KASPR_ENTRY_HEADER_SIZE); /* what is kept must be done */
    if (rc < 0)
        return unit_failed(u, start);
    store_settle();
    unit_release(u);
    if (kaspr_tick_ordered)
        kaspr_tick_forget();
    return 1;
}

int kaspr_unit_done(uint32_t index)
{
    store_keep();
    return put_done(index);
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

/* The last item of the pipeline is answered with; None if there is none. */
static int run_request(unit_t *u, const uint8_t *record)
{
    const view_t *view = kaspr_program.view;
    u->dropped = 0;
    kaspr_state.operation = 0;
    if ((u->value = make_request(u, record)) == NULL || (kaspr_program.op_count > 0 && run_pipeline(u, u->value) < 0))
        return -1;
    if (u->dropped && view->status == 0 && view->status_of[SUCCESS].func == NULL)
        return kaspr_respond_empty(204);
    PyObject *data = u->last == NULL ? Py_NewRef(Py_None) : Py_NewRef(u->last);
    PyObject *given = kaspr_is_response(data) ? data : NULL;
    PyObject *value = given == NULL ? data : PyTuple_GET_ITEM(given, 0);
    int rc = kaspr_respond(value, value, SUCCESS, given);
    Py_DECREF(data);
    return rc;
}

int kaspr_unit_begin(unit_t *u, uint32_t index)
{
    const uint8_t *record = kaspr_unit_record(u, index);
    unit_begin(u, index, record);
    if (kaspr_program.view != NULL)
        return run_request(u, record);
    int rc = decode_key(u, record, &u->key);
    if (rc == 0 && (u->value = decode_value(u, record)) == NULL)
        rc = -1;
    if (rc < 0)
        return rc;
    u->failure = KASPR_FAILURE_CODE;
    return run_pipeline(u, u->value);
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
        rc = run_pipeline(u, values);
    Py_XDECREF(values);
    rc = kaspr_unit_end(u, rc, start);
    free(indexes);
    u->indexes = NULL;
    return rc < 0 ? -1 : kaspr_unit_done(0);
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
    store_begin(count > 0 ? (int32_t)get32(batch + KASPR_BATCH_HEADER_SIZE + 4) : -1, get32(batch + 20), count);
    int rc = 0;
    if (!(flags & KASPR_FLAG_TAKE))
        rc = kaspr_run_records(count, (flags & KASPR_FLAG_STOP_ON_FAILURE) != 0, get32(batch + KASPR_BATCH_CONCURRENCY));
    else if (count > 0)
        rc = kbuf_reserve(&kaspr_result, KASPR_UNIT_SPARE) < 0 ? -1 : run_take(u, count);
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
