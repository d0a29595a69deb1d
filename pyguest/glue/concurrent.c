/* The records of a batch, several of them in progress at once: while the code of one waits, those behind it begin.
 *
 * A record whose code never waits runs to its end on the spot, and while no other one waits nothing of this file costs it
 * anything. One that waits becomes a flight: what the glue knows of it is put aside (leave) and taken back (enter) when it goes on,
 * or when the event loop runs something that belongs to it. One unit is in progress at any moment; all entries behind what
 * kaspr_state says is committed are its own.
 *
 * Invariants: records begin in their order, and one only when none with its key is in progress. What they made goes into the
 * result in their order. A table is used as if they ran one after the other (store.h): where that would not be so they are all given
 * up and run again one by one, and the program's records are from then on. */
#include "store.h"

#include <time.h>

int kaspr_concurrent;

typedef struct {
    unit_t unit; /* this and the next ones: while it is not the one in progress */
    store_log log;
    PyObject *scratch;
    uint32_t phase, operation;
    kbuf out;         /* entries, but for those behind what is committed */
    PyObject *task;   /* unit task that runs the coroutine it waits for; NULL: it waits for an answer */
    PyObject *answer; /* bytes; NULL: there is none yet */
    int64_t ran;      /* nanoseconds: running, and waiting for anything but an answer */
    int ended, failed;
    int overdue; /* its deadline passed in the middle of something that cannot be interrupted */
} flight;

/* Flights are the units [head, next) of the call. */
static flight **flights;
static size_t flights_cap;
static uint32_t head, next;
static uint32_t flying;   /* that have not ended */
static uint32_t asked;    /* that wait for an answer, */
static uint32_t answers;  /* and of those that have it */
static flight *current;   /* the one in progress, NULL: none, or a unit that is no flight */
static flight *home;      /* in progress when the event loop got its turn */
static flight *at_fault;  /* in progress when it was over */
static int64_t entered;   /* when current was */
static int broken;        /* no memory for a flight's entries: the call cannot go on */
static int one_by_one;    /* records of this program share entries of tables */
static PyObject *spare;   /* list of unit tasks that run nothing */

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

uint32_t kaspr_flights(void) { return next - head; }

int kaspr_flight_ended(uint64_t serial)
{
    uint64_t i = serial - store_serial(0);
    return i >= head && i < next && flights[i]->ended;
}

/* ---- one unit after the other is the one in progress ------------------------------------------------------------- */

static void leave(void)
{
    flight *f = current;
    if (f == NULL)
        return;
    size_t start = kaspr_state.committed;
    if (kaspr_result.len > start && kbuf_append(&f->out, kaspr_result.data + start, kaspr_result.len - start) < 0) {
        PyErr_Clear();
        broken = 1;
    }
    kaspr_result.len = start;
    f->unit = kaspr_unit;
    kaspr_unit = (unit_t){.batch = f->unit.batch, .batch_len = f->unit.batch_len};
    store_swap(&f->log);
    f->scratch = kaspr_context_scratch;
    kaspr_context_scratch = NULL;
    f->phase = kaspr_state.phase;
    f->operation = kaspr_state.operation;
    f->ran += now() - entered;
    if (kaspr_tick_ordered) {
        kaspr_tick_forget();
        f->overdue = 1;
    }
    current = NULL;
}

static void enter(flight *f)
{
    if (f == current)
        return;
    leave();
    if (f == NULL)
        return;
    kaspr_unit = f->unit;
    store_swap(&f->log);
    kaspr_context_scratch = f->scratch;
    f->scratch = NULL;
    kaspr_state.phase = f->phase;
    kaspr_state.operation = f->operation;
    kaspr_state.progress = kaspr_unit.index;
    store_unit = store_serial(kaspr_unit.index);
    current = f;
    entered = now();
}

void kaspr_flight_cut(void)
{
    if (current != NULL)
        current->out.len = 0;
}

void *kaspr_flight_home(void) { return home = current; }

void kaspr_flight_return(void *to)
{
    at_fault = current;
    if (next > head)
        enter(to);
    home = NULL;
}

PyObject *kaspr_flight_step(PyObject *task)
{
    if (next == head)
        Py_RETURN_NONE;
    flight *f = home;
    if (task != Py_None && task != kaspr_runtime.task)
        for (uint32_t i = head; i < next; i++)
            if (flights[i]->task == task) {
                f = flights[i];
                break;
            }
    if (f == NULL) /* what records left behind belongs to the first one in progress */
        for (uint32_t i = head; f == NULL && i < next; i++)
            f = flights[i]->ended ? NULL : flights[i];
    enter(f);
    Py_RETURN_NONE;
}

/* ---- unit tasks -------------------------------------------------------------------------------------------------- */

/* Makes another unit task the one user code runs in; the one before is spare unless a flight has it. */
static int use_task(PyObject *task, int keep)
{
    runtime_t *rt = &kaspr_runtime;
    PyObject *before = rt->task;
    if (PyContext_Exit(rt->base_context) < 0)
        return -1;
    PyObject *r = PyObject_CallOneArg(rt->task_leave, before);
    Py_XDECREF(r);
    if (r == NULL)
        return -1;
    if (task == NULL) {
        Py_ssize_t n = PyList_GET_SIZE(spare);
        if (n > 0) {
            task = Py_NewRef(PyList_GET_ITEM(spare, n - 1));
            if (PyList_SetSlice(spare, n - 1, n, NULL) < 0)
                Py_CLEAR(task);
        } else {
            task = PyObject_CallOneArg(rt->task_type, rt->loop);
        }
    }
    PyObject *context = task == NULL ? NULL : PyObject_GetAttrString(task, "context");
    r = context == NULL ? NULL : PyObject_CallOneArg(rt->task_enter, task);
    if (r == NULL || PyContext_Enter(context) < 0) {
        Py_XDECREF(r);
        Py_XDECREF(context);
        Py_XDECREF(task);
        return -1;
    }
    Py_DECREF(r);
    rt->task = task;
    Py_SETREF(rt->base_context, context);
    int rc = keep ? PyList_Append(spare, before) : 0;
    Py_DECREF(before);
    return rc;
}

/* ---- flights ----------------------------------------------------------------------------------------------------- */

static flight *make_flight(uint32_t index)
{
    flight *f = PyMem_Calloc(1, sizeof *f);
    if (f == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    flights[index] = f;
    flying++;
    store_shared = 1;
    return f;
}

static void free_flight(flight *f)
{
    kbuf_free(&f->out);
    kbuf_free(&f->unit.aside);
    free(f->log.items);
    Py_XDECREF(f->answer);
    Py_XDECREF(f->task);
    PyMem_Free(f);
}

/* The unit in progress has come to rc. 0, or -1: the call cannot go on. */
static int came_to(flight *f, int rc)
{
    unit_t *u = &kaspr_unit;
    if (rc == RUN_WAITS) {
        if (u->run.ticket != 0) {
            asked++;
            return 0;
        }
        PyObject *r = PyObject_CallFunctionObjArgs(kaspr_runtime.task_begin, kaspr_runtime.task, u->run.iterator, u->run.waits_for, NULL);
        if (r == NULL)
            return -1;
        Py_DECREF(r);
        Py_CLEAR(u->run.iterator);
        Py_CLEAR(u->run.waits_for);
        f->task = Py_NewRef(kaspr_runtime.task);
        leave();
        return use_task(NULL, 0);
    }
    rc = kaspr_unit_end(u, rc, kaspr_state.committed);
    if (rc < 0)
        return -1;
    f->failed = rc == 0;
    f->ended = 1;
    flying--;
    return 0;
}

/* The flight's unit goes on, with what got gives it or with the exception that is set. */
static int go_on(flight *f, PyObject *got)
{
    enter(f);
    return came_to(f, kaspr_unit_resume(&kaspr_unit, got));
}

/* The coroutine the flight waits for has ended. */
static int returned(flight *f)
{
    PyObject *task = f->task;
    f->task = NULL;
    leave();
    if (use_task(task, 1) < 0) /* takes over the reference */
        return -1;
    enter(f);
    return go_on(f, PyObject_CallOneArg(kaspr_runtime.task_result, task));
}

/* The message the flight waits for was answered. */
static int answered(flight *f)
{
    asked--;
    answers--;
    enter(f);
    PyObject *got = PyObject_CallOneArg(kaspr_runtime.acked, f->answer);
    Py_CLEAR(f->answer);
    return go_on(f, got);
}

/* Lets go of what a flight waits for, and enters it. Its coroutine gets GeneratorExit, and can neither send nor use tables any more. */
static void abandon(flight *f)
{
    enter(f);
    kaspr_unit.active = 0;
    if (kaspr_unit.run.ticket != 0) {
        asked--;
        answers -= f->answer != NULL;
        kaspr_unit.run.ticket = 0;
    }
    if (f->task != NULL) {
        PyObject *r = PyObject_CallOneArg(kaspr_runtime.task_abandon, f->task);
        if (r == NULL)
            PyErr_Clear(); /* of a coroutine that nobody waits for */
        Py_XDECREF(r);
        Py_CLEAR(f->task);
    }
}

/* Raises exc (stolen) in the coroutine the flight waits for, or ends its unit with it. 0, or -1: the call cannot go on. */
static int inject(flight *f, PyObject *exc)
{
    if (exc == NULL)
        return -1;
    enter(f);
    int taken = 0;
    if (f->task != NULL) {
        PyObject *r = PyObject_CallFunctionObjArgs(kaspr_runtime.task_inject, f->task, exc, NULL);
        taken = r == NULL ? -1 : PyObject_IsTrue(r);
        Py_XDECREF(r);
    }
    if (taken != 0) {
        Py_DECREF(exc);
        return taken < 0 ? -1 : 0;
    }
    abandon(f);
    kaspr_unit.active = 1;
    PyErr_SetRaisedException(exc);
    return go_on(f, NULL);
}

/* Takes back all flights from unit to on, the last one first: what a unit wrote to tables lies over what those before it did. */
static void give_up(uint32_t to)
{
    while (next > to) {
        flight *f = flights[next - 1];
        if (!f->ended) {
            abandon(f);
            flying--;
        }
        enter(f);
        if (kaspr_unit.sent)
            kaspr_state.repeated = 1;
        kaspr_unit.active = 0;
        kaspr_unit_drop(&kaspr_unit);
        store_undo();
        kaspr_result.len = kaspr_state.committed;
        leave();
        free_flight(f);
        next--;
    }
    store_shared = next > head;
}

/* What the first flights made goes into the result. */
static int land(void)
{
    leave();
    while (head < next && flights[head]->ended) {
        flight *f = flights[head];
        if (kbuf_append(&kaspr_result, f->out.data, f->out.len) < 0)
            return -1;
        store_swap(&f->log);
        int rc = kaspr_unit_done(head);
        store_swap(&f->log);
        if (rc < 0)
            return -1;
        free_flight(f);
        head++;
    }
    store_floor = store_serial(head);
    store_shared = head < next;
    return 0;
}

/* ---- the batch --------------------------------------------------------------------------------------------------- */

/* Whether a record with the key of this one is in progress. */
static int key_in_progress(uint32_t index)
{
    const uint8_t *batch = kaspr_unit.batch, *record = kaspr_unit_record(&kaspr_unit, index);
    int32_t len = (int32_t)get32(record + 36);
    for (uint32_t i = head; len >= 0 && i < next; i++) {
        const uint8_t *other = kaspr_unit_record(&kaspr_unit, i);
        if (!flights[i]->ended && (int32_t)get32(other + 36) == len && memcmp(batch + get32(other + 32), batch + get32(record + 32), (size_t)len) == 0)
            return 1;
    }
    return 0;
}

/* Runs a record while no other one is in progress. 1: it failed, and that is the end. */
static int run_alone(uint32_t index, int stop)
{
    unit_t *u = &kaspr_unit;
    size_t start = kaspr_result.len;
    int rc = kaspr_unit_begin(u, index);
    if (rc == RUN_WAITS) {
        flight *f = make_flight(index);
        if (f == NULL)
            return -1;
        next = index + 1;
        current = f;
        entered = now();
        return came_to(f, rc);
    }
    rc = kaspr_unit_end(u, rc, start);
    if (rc < 0 || kaspr_unit_done(index) < 0)
        return -1;
    head = next = index + 1;
    return rc == 0 && stop;
}

static int begin_beside(uint32_t index)
{
    flight *f = make_flight(index);
    if (f == NULL)
        return -1;
    next = index + 1;
    f->unit = (unit_t){.batch = kaspr_unit.batch, .batch_len = kaspr_unit.batch_len};
    enter(f);
    return came_to(f, kaspr_unit_begin(&kaspr_unit, index));
}

/* What the host says of messages that were sent: for each u32 ticket, u32 length, JSON. */
static int take_answers(const char *p, Py_ssize_t n)
{
    while (n >= 8) {
        uint32_t ticket = get32(p), len = get32(p + 4);
        if (len > (uint32_t)(n - 8))
            break;
        for (uint32_t i = head; i < next; i++) {
            flight *f = flights[i];
            if (f->unit.run.ticket != ticket || f->answer != NULL)
                continue;
            if ((f->answer = PyBytes_FromStringAndSize(p + 8, len)) == NULL)
                return -1;
            answers++;
            break;
        }
        p += 8 + len;
        n -= 8 + (Py_ssize_t)len;
    }
    return 0;
}

/* Waits for an answer, or until the event loop has something to do in rest nanoseconds (-1: never). */
static int wait_for_host(int64_t rest)
{
    int64_t began = now();
    uint64_t most = (uint64_t)rest;
    const char *answer;
    kaspr_state.progress = head; /* whose time it is */
    Py_ssize_t n = kaspr_host(KASPR_OP_WAIT, &most, sizeof most, &answer);
    if (n < 0 || take_answers(answer, n) < 0)
        return -1;
    int64_t took = now() - began;
    for (uint32_t i = head; i < next; i++)
        if (flights[i]->task != NULL)
            flights[i]->ran += took;
    if (kaspr_state.interrupt)
        kaspr_tick();
    if (kaspr_tick_take())
        flights[head]->overdue = 1;
    return 0;
}

/* Takes all flights back. They and the rest of the batch run one after the other. */
static void alone(void)
{
    kaspr_concurrent = 0;
    give_up(head);
}

/* Lets the event loop turn, and waits when there is nothing else to do. */
static int turn(void)
{
    int64_t deadline = (int64_t)kaspr_state.deadline * 1000000;
    runtime_t *rt = &kaspr_runtime;
    leave();
    PyObject *r = kaspr_outside(rt->task_idle, NULL, NULL);
    if (r == NULL)
        return inject(at_fault != NULL && !at_fault->ended ? at_fault : flights[head], PyErr_GetRaisedException());
    Py_DECREF(r);
    if (PyList_GET_SIZE(rt->loop_ended) == 0) {
        r = PyObject_CallOneArg(rt->loop_rest, rt->loop);
        int64_t rest = r == NULL ? -1 : PyLong_AsLongLong(r);
        Py_XDECREF(r);
        if (rest == -1 && PyErr_Occurred())
            return -1;
        if (rest < 0 && asked == 0) { /* one waits for what nobody does, or a deadline has taken a callback of another one with it */
            alone();
            return 0;
        }
        if ((rest != 0 || asked > 0) && wait_for_host(rest) < 0)
            return -1;
    }
    for (uint32_t i = head; i < next; i++) {
        flight *f = flights[i];
        /* The host looks after the first one: nothing a program does keeps it from that. */
        if (f->task != NULL && (f->overdue || (i > head && deadline > 0 && f->ran > deadline))) {
            f->overdue = 0;
            f->ran = 0;
            if (inject(f, PyObject_CallNoArgs(rt->deadline)) < 0)
                return -1;
        }
    }
    return 0;
}

/* One step with several records in progress. 1: one failed, and nothing behind it is to count. */
static int step(uint32_t count, int stop, uint32_t limit)
{
    PyObject *ended = kaspr_runtime.loop_ended;
    if (store_clashed) {
        store_clashed = 0;
        one_by_one = 1;
        alone();
        PyObject *text = PyUnicode_FromString("records of different keys use the same entry of a table while others wait: "
                                              "from now on this instance processes records one after the other");
        int rc = text == NULL ? -1 : kaspr_log(30, text);
        Py_XDECREF(text);
        return rc;
    }
    for (uint32_t i = head; stop && i < next; i++)
        if (flights[i]->failed) {
            count = i + 1;
            give_up(count);
        }
    int failed = stop && next == count && flights[count - 1]->failed;
    if (land() < 0)
        return -1;
    if (head == next)
        return failed;
    if (broken) {
        PyErr_NoMemory();
        return -1;
    }
    while (PyList_GET_SIZE(ended) > 0) {
        PyObject *task = Py_NewRef(PyList_GET_ITEM(ended, 0));
        int rc = PyList_SetSlice(ended, 0, 1, NULL);
        for (uint32_t i = head; rc == 0 && i < next; i++)
            if (flights[i]->task == task) {
                rc = returned(flights[i]);
                Py_DECREF(task);
                return rc;
            }
        Py_DECREF(task);
        if (rc < 0)
            return -1;
    }
    for (uint32_t i = head; answers > 0 && i < next; i++)
        if (flights[i]->answer != NULL)
            return answered(flights[i]);
    if (next < count && flying < limit && !key_in_progress(next))
        return begin_beside(next);
    return turn();
}

int kaspr_run_records(uint32_t count, int stop, uint32_t limit)
{
    int rc = 0;
    head = next = flying = asked = answers = 0;
    broken = 0;
    kaspr_concurrent = limit > 1 && !one_by_one;
    if (kaspr_concurrent && spare == NULL && (spare = PyList_New(0)) == NULL)
        return -1;
    if (kaspr_concurrent && count > flights_cap) {
        flight **more = realloc(flights, count * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        flights = more;
        flights_cap = count;
    }
    while (rc == 0 && head < count) {
        if (kbuf_reserve(&kaspr_result, KASPR_UNIT_SPARE) < 0)
            rc = -1;
        else if (head < next)
            rc = step(count, stop, limit);
        else
            rc = run_alone(next, stop);
    }
    kaspr_concurrent = 0;
    return rc < 0 ? -1 : 0;
}
