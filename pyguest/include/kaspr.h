/* What the files of the glue share. The ABI with the host is abi.h; the order of things is in glue/README.md. */
#ifndef KASPR_H
#define KASPR_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include "Python.h"

#include <stdint.h>

#include "abi.h"
#include "kbuf.h"

/* ---- the host ---------------------------------------------------------------------------------------------------- */

#ifdef __wasm__
#define KASPR_EXPORT(name) __attribute__((export_name(#name), used))
#define KASPR_IMPORT(name) __attribute__((import_module("kaspr"), import_name(#name)))
#else
#define KASPR_EXPORT(name) __attribute__((visibility("default"), used))
#define KASPR_IMPORT(name)
#endif

KASPR_IMPORT(tick) int32_t kaspr_host_tick(void);
KASPR_IMPORT(die) void kaspr_host_die(void);
KASPR_IMPORT(host) int32_t kaspr_host_call(int32_t op, const void *req, int32_t req_len, void *resp, int32_t resp_cap);

/* State of abi.go: the host reads and writes it while the guest runs. */
typedef struct {
    volatile uint32_t interrupt;
    volatile uint32_t progress;
    volatile uint32_t result_ptr, result_len, committed;
    volatile uint32_t report_ptr, report_len;
    volatile uint32_t phase, operation;
    volatile uint32_t repeated, deadline;
    uint32_t reserved[5];
} kaspr_state_t;
_Static_assert(sizeof(kaspr_state_t) == KASPR_STATE_SIZE, "abi.go: State");
_Static_assert(offsetof(kaspr_state_t, committed) == KASPR_STATE_COMMITTED, "abi.go: State");
_Static_assert(offsetof(kaspr_state_t, operation) == KASPR_STATE_OPERATION, "abi.go: State");
extern kaspr_state_t kaspr_state;

KASPR_EXPORT(kaspr_start) int32_t kaspr_start(void);
KASPR_EXPORT(kaspr_input) void *kaspr_input(int32_t n);
KASPR_EXPORT(kaspr_load) int32_t kaspr_load(int32_t n);
KASPR_EXPORT(kaspr_check) int32_t kaspr_check(int32_t n);
KASPR_EXPORT(kaspr_process) int32_t kaspr_process(int32_t n);
KASPR_EXPORT(kaspr_reseed) int32_t kaspr_reseed(int32_t n);
KASPR_EXPORT(kaspr_tick) void kaspr_tick(void);

/* Result of the running call. Its address is always the one in kaspr_state. */
extern kbuf kaspr_result;

/* ---- the program (program.c) ------------------------------------------------------------------------------------- */

/* From CODEC_AVRO on the bytes are described by a schema: the engine reads and writes them, form.c its forms. */
enum { CODEC_RAW, CODEC_JSON, CODEC_PICKLE, CODEC_BINARY, CODEC_CHANNEL, CODEC_STR, CODEC_AVRO, CODEC_PROTOBUF, CODEC_JSONSCHEMA, CODEC_COUNT };
enum { OP_MAP, OP_FILTER, OP_SEND };
enum { TABLES_MAX = 16, PARAMS_MAX = 32 };

/* One function of the user and the words that name it in failures. func is NULL when the manifest has none. */
typedef struct {
    PyObject *func;
    PyObject *where;
    int python; /* func is a function written in Python */
} code_t;

/* What is the record's own where no selector says it: nothing, key and partition and headers, the key alone. */
enum { CARRY_NOTHING, CARRY_ALL, CARRY_KEY };

typedef struct {
    int32_t index;   /* in Program.Outputs, -1 for a topicSend */
    PyObject *topic; /* str; NULL with a nameSelector */
    int key_codec, value_codec;
    int key_schema, value_schema; /* abi.Output */
    int ack;
    int no_value;
    int carry; /* CARRY_* */
    code_t name, key, value, partition, headers, predicate;
    PyObject *where_topic, *where_key, *where_value; /* what failures of the addressing and encoding are called */
    PyObject *declare;  /* str: JSON members of OpEnsureTopic without the name, NULL: not declared */
    PyObject *declared; /* set of topics declared by this instance */
} output_t;

typedef struct {
    int kind;
    code_t code; /* not of OP_SEND */
    PyObject *name;    /* str: what the manifest calls it */
    PyObject *kwnames; /* of tables; of a view's first operation, of its path's parameters behind them */
    PyObject *kwvalues[TABLES_MAX];
    Py_ssize_t kwcount; /* tables */
    Py_ssize_t params;  /* parameters, whose values are the unit's */
    output_t *send;
    int pass_through;
} op_t;

/* How a web view answers. The selectors come in pairs: of success, of an error. */
enum { CONTENT_TEXT, CONTENT_JSON, CONTENT_BYTES };
enum { SUCCESS, ERROR };
typedef struct {
    int content; /* CONTENT_* */
    int status;  /* of success; 0: the manifest has none */
    Py_ssize_t params;
    PyObject *headers; /* tuple of pairs */
    PyObject *failed;  /* (operation, cause, traceback) -> (what onError gets, the body without a selector) */
    code_t status_of[2], headers_of[2], body_of[2];
} view_t;

typedef struct {
    int loaded;
    int key_codec, value_codec;
    int json_exact;
    int task;     /* of a KasprTask: the first operation is called without a value */
    int detached; /* of a task or a web view: a unit is no record, and has neither an event nor a partition of its own */
    op_t *ops;
    Py_ssize_t op_count;
    output_t *outputs;
    Py_ssize_t output_count;
    PyObject *sources; /* dict: file name -> dict: line number -> text */
    view_t *view;      /* of a web view: a record is a request, and a response comes of it; else NULL */
} program_t;
extern program_t kaspr_program;

/* Takes over what kaspr_load.load returned. 0, or -1 with an exception. */
int kaspr_program_set(PyObject *spec);

/* References the glue holds so that nothing user code does to modules can reach it. */
typedef struct {
    PyObject *load, *check, *reseed;           /* kaspr_runtime */
    PyObject *loaded;                          /* kaspr_runtime.loaded: called when the program is in place */
    PyObject *deadline;                        /* class kaspr.DeadlineExceeded */
    PyObject *loop;                            /* kaspr_loop */
    PyObject *loop_rest;                       /* its method: nanoseconds until it has something to do */
    PyObject *loop_ready, *loop_scheduled;     /* its deque and heap (list) */
    PyObject *loop_ended;                      /* its list of unit tasks whose coroutine has ended */
    PyObject *task_type;                       /* kaspr_loop.UnitTask, and its functions: */
    PyObject *task_finish, *task_idle, *task_enter, *task_leave, *task_begin, *task_result, *task_inject, *task_abandon;
    PyObject *task;                            /* the unit task that is the current one of asyncio */
    PyObject *base_context;                    /* its contextvars.Context: user code that C calls runs in it */
    PyObject *clash;                           /* class kaspr_loop.Clash */
    PyObject *app, *forward, *send, *acked;    /* kaspr_app */
    PyObject *request;                         /* class kaspr_request.Request */
    PyObject *not_ready;                       /* class kaspr.NotReady */
    PyObject *response, *http_error;           /* classes kaspr.Response and kaspr.HTTPError */
    PyObject *pickle_dumps, *pickle_loads, *a2b_base64;
    PyObject *joined, *pickle_key;             /* class kaspr.Joined; pickles a channel's key */
} runtime_t;
extern runtime_t kaspr_runtime;

/* ---- a unit: a record, or the list of a take batch (process.c) --------------------------------------------------- */

enum { KASPR_UNIT_SPARE = 4096 }; /* room kept for telling a failure */

/* Where a unit is in the pipeline (process.c). */
enum { RUN_WAITS = 1 }; /* instead of 0 or -1: its code waits */
enum { RUN_BEGIN, RUN_CALL, RUN_NEXT, RUN_SOURCE };
typedef struct {
    PyObject *source;      /* what the first operation yields from, item by item */
    PyObject *item;        /* before operation op; NULL: there are several */
    PyObject *items, *out; /* lists: before operation op, and what it has made of the first k */
    PyObject *generator;   /* what operation op yields from, into out */
    Py_ssize_t op, k;
    int source_kind, generator_kind;
    int at;                       /* RUN_*: what waits */
    PyObject *iterator, *waits_for; /* a coroutine that waits, and for what; not once a task has it */
    uint32_t ticket;              /* of a message that was sent, while its answer is waited for */
} run_t;

typedef struct {
    int active;
    uint32_t index;        /* unit in the batch: StateProgress */
    const uint8_t *batch;  /* input buffer */
    size_t batch_len;
    const uint8_t *record; /* of the unit; of a take batch NULL */
    PyObject *value;       /* decoded, as handed to the first operation; of a take batch a tuple of the list's values */
    PyObject *key;         /* decoded, NULL: not decoded yet (raw only) */
    PyObject *event;       /* EventObject, or a tuple of them in a take batch; NULL: nobody asked yet */
    PyObject *events;      /* the list of them that user code sees */
    PyObject *where;       /* borrowed: name of what runs now */
    int failure;           /* KASPR_FAILURE_*: kind of the exception that is set */
    int building;          /* an output entry is half written */
    kbuf aside;            /* outputs sent while building */
    int may_wait;          /* code that is called may be left where it waits */
    int sent;              /* it has sent something ahead of its outputs, with other units in progress */
    run_t run;
    /* of a request */
    PyObject *params;      /* tuple of str: values of the path's parameters */
    PyObject *last;        /* the last item that came through the pipeline; NULL: none yet */
    int dropped;           /* the first operation dropped the request */
    /* of a take batch */
    PyObject *keys;        /* list, parallel to value; Ellipsis: not decoded (raw) */
    uint32_t *indexes;     /* record of each value */
} unit_t;
extern unit_t kaspr_unit;

static inline const uint8_t *kaspr_unit_record(const unit_t *u, uint32_t index)
{
    return u->batch + KASPR_BATCH_HEADER_SIZE + (size_t)index * KASPR_RECORD_SIZE;
}

/* Both give 0, -1 with an exception, or RUN_WAITS; got is what the code waited for (stolen; NULL with an exception). */
int kaspr_unit_begin(unit_t *u, uint32_t index);
int kaspr_unit_resume(unit_t *u, PyObject *got);
/* Ends a unit whose run gave rc, and whose entries begin at start: 1 it succeeded, 0 it failed and says so, -1 not even that was
 * possible. Then done makes that count. */
int kaspr_unit_end(unit_t *u, int rc, size_t start);
int kaspr_unit_done(uint32_t index);
/* Forgets a unit that is not to count. */
void kaspr_unit_drop(unit_t *u);

/* ---- several units in progress (concurrent.c) -------------------------------------------------------------------- */

/* Units may be left where their code waits. */
extern int kaspr_concurrent;
/* Units of the call that were left and are not done. */
uint32_t kaspr_flights(void);
/* Records [0, count) of the batch, at most limit of them in progress at once. 0, or -1. */
int kaspr_run_records(uint32_t count, int stop, uint32_t limit);
/* The unit that is in progress, for kaspr_flight_return: it is to be that again. */
void *kaspr_flight_home(void);
void kaspr_flight_return(void *home);
/* Drops what the unit in progress wrote before it was left. */
void kaspr_flight_cut(void);
/* _kaspr.step: the event loop runs something that belongs to this unit task, or None: to who let it run. */
PyObject *kaspr_flight_step(PyObject *task);
/* Whether the unit of this serial number (store.h), one of this call's, has ended. */
int kaspr_flight_ended(uint64_t serial);

/* ---- context, events (types.c) ----------------------------------------------------------------------------------- */

extern PyTypeObject KasprContext_Type, KasprEvent_Type, KasprMessage_Type, KasprTable_Type;
extern PyObject *kaspr_context_scratch; /* what the running function wrote to context; dropped with the next call */
extern PyObject *kaspr_context;
int kaspr_types_init(PyObject *module);
/* Copies what the event needs to outlive the input buffer, if user code kept it; forgets it otherwise. */
void kaspr_event_release(PyObject *event);
PyObject *kaspr_record_key(const uint8_t *record);
/* Key of the record in progress, decoded, and its headers as a list of pairs; new references, None where there is no one record. */
PyObject *kaspr_unit_key(void);
PyObject *kaspr_unit_headers(void);

static inline uint32_t get32(const void *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline int64_t get64(const void *p) { int64_t v; memcpy(&v, p, 8); return v; }
static inline void put32(void *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void put64(void *p, uint64_t v) { memcpy(p, &v, 8); }

/* ---- codecs and output entries (codec.c, output.c) --------------------------------------------------------------- */

int kaspr_codec_of(PyObject *name); /* CODEC_*, or -1 with ValueError */
PyObject *kaspr_decode(int codec, const char *bytes, Py_ssize_t len); /* len -1: null */
/* Appends v's encoding; *len is its length, -1 for Kafka's null. Not with a schema. */
int kaspr_encode(int codec, PyObject *v, int is_key, kbuf *out, int32_t *len);

/* The same for a channel (channel.c). None of a value is pickled as others are. */
PyObject *kaspr_channel_decode(const char *bytes, Py_ssize_t len);
int kaspr_channel_encode(PyObject *v, int is_key, kbuf *out);

/* What a value with a schema is encoded for. */
typedef struct {
    int codec;
    int schema;      /* abi.Output: 0 when only the topic says */
    PyObject *topic; /* str, borrowed */
} schema_t;

/* form.c. A form's value, or an exception; as kaspr_encode, by the engine; what kaspr_forms does is at hand from now on. */
PyObject *kaspr_form_decode(const char *bytes, size_t len);
int kaspr_encode_schema(const schema_t *s, PyObject *v, int is_key, kbuf *out, int32_t *len);
int kaspr_forms_init(void);

enum { EMIT_ERROR = -1, EMIT_DROPPED = 0, EMIT_SENT = 1, EMIT_WAITS = 2 };
/* Runs an output's selectors on value and writes an EntryOutput. With answer, a send that waits for the broker stores
 * its metadata there, or is left waiting for it, with its ticket in the unit (EMIT_WAITS). */
int kaspr_emit(output_t *o, PyObject *value, const op_t *op, PyObject **answer);
/* Answers a request: writes its response, an EntryOutput. value is what the selectors of outcome get; body what is sent without one.
 * given is what code said itself, (body, status, headers), or NULL; it counts before the view's own. Ellipsis and None leave that open. */
int kaspr_respond(PyObject *value, PyObject *body, int outcome, PyObject *given);
/* The same with a status and no body. */
int kaspr_respond_empty(int status);

/* Whether a pipeline's result is such a tuple. */
int kaspr_is_response(PyObject *value);
/* _kaspr.produce: what app.send does. */
PyObject *kaspr_produce(PyObject *const *args, Py_ssize_t n);

/* ---- calls of user code (call.c) --------------------------------------------------------------------------------- */

/* Calls a function with value and op's tables (op may be NULL) and awaits what is awaitable. */
PyObject *kaspr_call(const code_t *code, PyObject *value, const op_t *op);
/* Awaits an awaitable; steals it. NULL without an exception: it waits, and stands in the unit's run (may_wait). */
PyObject *kaspr_await(PyObject *awaitable);
/* Calls a function of the current unit task outside of its context: one that lets the event loop turn. */
PyObject *kaspr_outside(PyObject *function, PyObject *a, PyObject *b);
/* Lets due timers and ready callbacks of the event loop run once. 0, or -1 with an exception. */
int kaspr_loop_idle(void);

/* Processes a batch into kaspr_result. 0, or -1 with an exception: the batch could not be read. */
int kaspr_run_batch(const uint8_t *batch, size_t n);

/* ---- failures (failure.c) ---------------------------------------------------------------------------------------- */

/* Appends an EntryFailure for the exception that is set and clears it. 0, or -1: no memory even for that. */
int kaspr_fail(uint32_t unit, int kind, PyObject *where);
/* Texts of an exception, bounded; new references, never fail but by memory. */
PyObject *kaspr_exception_message(PyObject *exc);
PyObject *kaspr_exception_traceback(PyObject *exc);

/* ---- interruption (tick.c) --------------------------------------------------------------------------------------- */

int kaspr_tick_init(void);
/* An exception is to be raised as soon as the user's code is the innermost one. */
extern int kaspr_tick_ordered;
/* Forgets an exception that was ordered but not raised yet. */
void kaspr_tick_forget(void);
/* The same for the event loop, which is never interrupted itself: whether there was one. */
int kaspr_tick_take(void);
/* File names of the program: frames of other files are not in the report. */
int kaspr_tick_files(PyObject *sources);
const char *kaspr_report(void);

/* ---- the module _kaspr (module.c) -------------------------------------------------------------------------------- */

PyMODINIT_FUNC PyInit__kaspr(void);
/* Host call whose answer fits a fixed buffer; *answer points into it until the next one. Length, or -1 with RuntimeError. */
Py_ssize_t kaspr_host(int32_t op, const void *req, size_t len, const char **answer);
int kaspr_log(int level, PyObject *text);

#endif
