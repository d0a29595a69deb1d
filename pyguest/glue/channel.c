/* Keys and values of channels: Python values that stay what they are. The forms are those of wasmhost/abi/abi.go. */
#include "kaspr.h"

#include "kjson.h"

static PyObject *bad(void)
{
    PyErr_SetString(PyExc_ValueError, "this is not of a channel: only agents' outputs and joins write to its topic");
    return NULL;
}

/* An item that a table's codec has made. */
static PyObject *plain(const char *bytes, Py_ssize_t len)
{
    switch (len > 0 ? bytes[0] : 0) {
    case KASPR_CHANNEL_RAW:
        return PyBytes_FromStringAndSize(bytes + 1, len - 1);
    case KASPR_CHANNEL_JSON:
        return kjson_decode(bytes + 1, len - 1);
    default:
        return bad();
    }
}

static PyObject *joined(const char *bytes, Py_ssize_t len)
{
    static const char *const changes[] = {NULL, "left", "right"};
    unsigned char change = len > 1 ? (unsigned char)bytes[1] : 0;
    if (change != KASPR_JOINED_LEFT && change != KASPR_JOINED_RIGHT)
        return bad();
    PyObject *parts[3] = {NULL, NULL, NULL}, *r = NULL;
    bytes += 2;
    len -= 2;
    for (int i = 0; i < 3; i++) {
        if (len < 4) {
            bad();
            goto done;
        }
        int32_t n = (int32_t)get32(bytes);
        bytes += 4;
        len -= 4;
        if (n > len || n < -1) {
            bad();
            goto done;
        }
        parts[i] = n < 0 ? Py_NewRef(Py_None) : plain(bytes, n);
        if (parts[i] == NULL)
            goto done;
        if (n > 0) {
            bytes += n;
            len -= n;
        }
    }
    if (len == 0)
        r = PyObject_CallFunction(kaspr_runtime.joined, "OOOs", parts[0], parts[1], parts[2], changes[change]);
    else
        bad();
done:
    for (int i = 0; i < 3; i++)
        Py_XDECREF(parts[i]);
    return r;
}

PyObject *kaspr_channel_decode(const char *bytes, Py_ssize_t len)
{
    switch (len > 0 ? bytes[0] : 0) {
    case KASPR_CHANNEL_PICKLE: {
        PyObject *pickled = PyMemoryView_FromMemory((char *)bytes + 1, len - 1, PyBUF_READ);
        PyObject *r = pickled == NULL ? NULL : PyObject_CallOneArg(kaspr_runtime.pickle_loads, pickled);
        Py_XDECREF(pickled);
        return r;
    }
    case KASPR_CHANNEL_JOINED:
        return joined(bytes, len);
    default:
        return plain(bytes, len);
    }
}

static int put(kbuf *out, char kind, const char *bytes, Py_ssize_t n)
{
    return kbuf_append(out, &kind, 1) < 0 || kbuf_append(out, bytes, (size_t)n) < 0 ? -1 : 0;
}

/* Equal keys must be the same bytes, or they would go to different partitions: str and int are JSON, as a join's keys mostly are;
 * what else there is is pickled without memo, in which the identity of its parts would show. */
int kaspr_channel_encode(PyObject *v, int is_key, kbuf *out)
{
    if (PyBytes_CheckExact(v))
        return put(out, KASPR_CHANNEL_RAW, PyBytes_AS_STRING(v), PyBytes_GET_SIZE(v));
    if (is_key && (PyUnicode_CheckExact(v) || PyLong_CheckExact(v))) {
        char kind = KASPR_CHANNEL_JSON;
        return kbuf_append(out, &kind, 1) < 0 ? -1 : kjson_encode(v, out, 0);
    }
    PyObject *pickled = PyObject_CallOneArg(is_key ? kaspr_runtime.pickle_key : kaspr_runtime.pickle_dumps, v);
    if (pickled == NULL)
        return -1;
    int rc = -1;
    if (PyBytes_Check(pickled))
        rc = put(out, KASPR_CHANNEL_PICKLE, PyBytes_AS_STRING(pickled), PyBytes_GET_SIZE(pickled));
    else
        PyErr_SetString(PyExc_TypeError, "pickle did not give bytes");
    Py_DECREF(pickled);
    return rc;
}
