/* The guest's view of its tables' bytes (glue/store.c); tables.c makes Python objects of them. */
#ifndef KASPR_STORE_H
#define KASPR_STORE_H

#include "kaspr.h"

/* One key of one partition of one table. Valid until the next store_read, store_write or store_begin. */
typedef struct store_entry {
    struct store_entry *next; /* in its bucket */
    uint32_t hash, scope;
    uint32_t era;          /* of the scope when the value was known; another one: it is not known */
    int32_t key_len;
    int32_t value_len;     /* -1: the key has no value */
    uint32_t value_cap;
    int64_t expires;
    uint64_t read, written; /* serial number of the latest unit that did so, of those of this call and of earlier ones */
    int changed, touched;  /* by this call, by the unit in progress */
    char *value;
    char key[];
} store_entry;

/* Asks the host; the answer, status byte included, is in *answer. 0, or -1 with an exception: refused with the host's text, if it gave one. */
int store_ask(int32_t op, const kbuf *req, kbuf *answer, PyObject *refused);

/* A call begins: the batch is of this partition number, and of it table i is as this instance left it if bit i of valid is set. It
 * has so many units, whose serial numbers are the next ones. */
void store_begin(int32_t partition, uint32_t valid, uint32_t units);
/* Partition number of the running batch. */
int32_t store_own(void);

/* The entry of a key, with its value known; NULL with an exception. */
store_entry *store_read(uint32_t table, int32_t partition, const char *key, size_t len);
/* The value of a key in the partitions of this process that are not the batch's; *value_len -1: none. Until the next read. */
int store_others(uint32_t table, const char *key, size_t len, const char **value, int32_t *value_len);
/* Whether this call changed the key in a partition that is not the batch's. */
int store_changed_elsewhere(uint32_t table, const char *key, size_t len);
/* value_len -1 deletes. 0, or -1 with an exception and nothing changed. */
int store_write(uint32_t table, int32_t partition, const char *key, size_t len, const char *value, int32_t value_len, int64_t expires);

/* ([(key, value), ...], more) of what the host has, in key order, keys greater than after (after_len -1: from the start). */
PyObject *store_page(uint32_t table, int32_t partition, const char *prefix, size_t prefix_len, const char *after, Py_ssize_t after_len);
/* {key: value or None} of this call's changes. */
PyObject *store_pending(uint32_t table, int32_t partition);
/* (estimated entries, active partitions) */
PyObject *store_info(uint32_t table);
/* How many partitions the table has, or -1 with an exception. */
int32_t store_partitions(uint32_t table);

/* The unit's changes: appended to the result; then kept for the rest of the call, or taken back. Settled they are the work of no
 * unit in progress, but can still be taken back. */
int store_emit(uint32_t unit);
void store_settle(void);
void store_keep(void);
void store_undo(void);

/* Units that are in progress at once use tables as if they ran one after the other, or one of them fails with a clash.
 *
 * A unit must see neither what a later one wrote, nor what an earlier one wrote that has not ended; and it must not write what a
 * later one has read. */
extern uint64_t store_unit;  /* serial number of the unit in progress */
extern uint64_t store_floor; /* of the first one that is not done */
extern int store_shared;     /* several units are in progress */
extern int store_clashed;    /* one used what it must not */
void store_unit_begin(uint32_t index);
uint64_t store_serial(uint32_t index);

/* The changes of a unit that is left, until it goes on. */
typedef struct {
    struct undo *items;
    size_t len, cap;
} store_log;
void store_swap(store_log *log);

#endif
