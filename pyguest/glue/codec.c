/* Codecs: raw, str, json, pickle and binary (base64), and that of channels; those with a schema are in form.c. Null decodes to None with every
 * one of them. */
#include "kaspr.h"

#include "kjson.h"

static const char *const codec_names[CODEC_COUNT] = {"raw", "json", "pickle", "binary", "channel", "str", "avro", "protobuf", "jsonschema"};

int kaspr_codec_of(PyObject *name)
{
    for (int i = 0; i < CODEC_COUNT; i++)
        if (PyUnicode_Check(name) && PyUnicode_EqualToUTF8(name, codec_names[i]))
            return i;
    PyErr_Format(PyExc_ValueError, "there is no serializer %R; there are raw, str, json, pickle, binary, avro, protobuf and jsonschema", name);
    return -1;
}

static PyObject *from_base64(const char *bytes, Py_ssize_t len)
{
    PyObject *text = PyBytes_FromStringAndSize(bytes, len);
    if (text == NULL)
        return NULL;
    PyObject *r = PyObject_CallOneArg(kaspr_runtime.a2b_base64, text);
    Py_DECREF(text);
    return r;
}

PyObject *kaspr_decode(int codec, const char *bytes, Py_ssize_t len)
{
    if (len < 0)
        Py_RETURN_NONE;
    switch (codec) {
    case CODEC_RAW:
        return PyBytes_FromStringAndSize(bytes, len);
    case CODEC_STR:
        return PyUnicode_DecodeUTF8(bytes, len, NULL);
    case CODEC_JSON:
        return kjson_decode(bytes, len);
    case CODEC_BINARY:
        return from_base64(bytes, len);
    case CODEC_CHANNEL:
        return kaspr_channel_decode(bytes, len);
    default: {
        PyObject *pickled = from_base64(bytes, len);
        if (pickled == NULL)
            return NULL;
        PyObject *r = PyObject_CallOneArg(kaspr_runtime.pickle_loads, pickled);
        Py_DECREF(pickled);
        return r;
    }
    }
}

static int to_base64(const unsigned char *in, size_t n, kbuf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (kbuf_reserve(out, (n + 2) / 3 * 4) < 0)
        return -1;
    char *p = out->data + out->len;
    for (; n >= 3; n -= 3, in += 3) {
        uint32_t v = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];
        *p++ = digits[v >> 18];
        *p++ = digits[v >> 12 & 63];
        *p++ = digits[v >> 6 & 63];
        *p++ = digits[v & 63];
    }
    if (n > 0) {
        uint32_t v = (uint32_t)in[0] << 16 | (n == 2 ? (uint32_t)in[1] << 8 : 0);
        *p++ = digits[v >> 18];
        *p++ = digits[v >> 12 & 63];
        *p++ = n == 2 ? digits[v >> 6 & 63] : '=';
        *p++ = '=';
    }
    out->len = (size_t)(p - out->data);
    return 0;
}

/* Bytes of a str, bytes or bytearray, borrowed from v. 0, or -1 with TypeError. */
static int bytes_of(PyObject *v, int codec, int is_key, const char **bytes, Py_ssize_t *n)
{
    if (PyUnicode_Check(v))
        return (*bytes = PyUnicode_AsUTF8AndSize(v, n)) == NULL ? -1 : 0;
    if (PyBytes_Check(v)) {
        *bytes = PyBytes_AS_STRING(v);
        *n = PyBytes_GET_SIZE(v);
        return 0;
    }
    if (PyByteArray_Check(v)) {
        *bytes = PyByteArray_AS_STRING(v);
        *n = PyByteArray_GET_SIZE(v);
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "the serializer %s takes str or bytes, not %s: return one of them, or use %sSerializer: json",
                 codec_names[codec], Py_TYPE(v)->tp_name, is_key ? "key" : "value");
    return -1;
}

int kaspr_encode(int codec, PyObject *v, int is_key, kbuf *out, int32_t *len)
{
    size_t start = out->len;
    if (v == Py_None && (is_key || codec == CODEC_RAW || codec == CODEC_STR)) {
        *len = -1;
        return 0;
    }
    const char *bytes;
    Py_ssize_t n;
    switch (codec) {
    case CODEC_RAW:
        if (bytes_of(v, codec, is_key, &bytes, &n) < 0 || kbuf_append(out, bytes, (size_t)n) < 0)
            return -1;
        break;
    case CODEC_STR:
        if (!PyUnicode_Check(v)) {
            PyErr_Format(PyExc_TypeError, "the serializer str takes str, not %s: return one, or use another %sSerializer",
                         Py_TYPE(v)->tp_name, is_key ? "key" : "value");
            return -1;
        }
        if (bytes_of(v, codec, is_key, &bytes, &n) < 0 || kbuf_append(out, bytes, (size_t)n) < 0)
            return -1;
        break;
    case CODEC_JSON:
        if (PyBytes_Check(v) || PyByteArray_Check(v)) {
            PyErr_Format(PyExc_TypeError, "%s cannot be encoded as json: decode it first, or use %sSerializer: raw",
                         Py_TYPE(v)->tp_name, is_key ? "key" : "value");
            return -1;
        }
        if (kjson_encode(v, out, !is_key && !kaspr_program.json_exact) < 0)
            return -1;
        break;
    case CODEC_BINARY:
        if (v == Py_None) {
            PyErr_SetString(PyExc_TypeError, "None cannot be encoded as binary");
            return -1;
        }
        if (bytes_of(v, codec, is_key, &bytes, &n) < 0 || to_base64((const unsigned char *)bytes, (size_t)n, out) < 0)
            return -1;
        break;
    case CODEC_CHANNEL:
        if (kaspr_channel_encode(v, is_key, out) < 0)
            return -1;
        break;
    default: {
        PyObject *pickled = PyObject_CallOneArg(kaspr_runtime.pickle_dumps, v);
        if (pickled == NULL)
            return -1;
        int rc = -1;
        if (PyBytes_Check(pickled))
            rc = to_base64((const unsigned char *)PyBytes_AS_STRING(pickled), (size_t)PyBytes_GET_SIZE(pickled), out);
        else
            PyErr_SetString(PyExc_TypeError, "pickle did not give bytes");
        Py_DECREF(pickled);
        if (rc < 0)
            return -1;
    }
    }
    *len = (int32_t)(out->len - start);
    return 0;
}
