/* The JSON codec of the guest. As a module it is _kjson: loads(bytes | bytearray | memoryview | str) and
 * dumps(obj, compact=False) -> bytes. */
#ifndef KASPR_KJSON_H
#define KASPR_KJSON_H

#include "Python.h"

#include "kbuf.h"

/* Needs an initialised interpreter; call it before the others. A second call does nothing. 0, or -1 with an exception. */
int kjson_init(void);

/* json.loads(buf[:len]) as the json module does it: same values, same exceptions. New reference. buf need not end in NUL. */
PyObject *kjson_decode(const char *buf, Py_ssize_t len);

/* Appends v's JSON text to out: what json.dumps writes with its defaults and, for types JSON has no word for, the forms of
 * the original (kjson.c, "default"). With compact the separators are "," and ":"; non-ASCII text is escaped all the same.
 * 0, or -1 with an exception and out->len as it was. User code can run in between (__json__, __str__, isoformat, methods of
 * subclasses) and may append to and remove from the end of out, if it leaves out->len as it found it. */
int kjson_encode(PyObject *v, kbuf *out, int compact);

PyMODINIT_FUNC PyInit__kjson(void);

#endif
