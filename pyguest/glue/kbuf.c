#include "Python.h"

#include "kbuf.h"

enum { KBUF_FIRST = 4096, KBUF_GENTLE = 8 << 20 };

int kbuf_grow(kbuf *b, size_t extra)
{
    if (extra > (size_t)INT32_MAX - b->len) {
        PyErr_NoMemory();
        return -1;
    }
    size_t need = b->len + extra;
    size_t cap = b->cap < KBUF_GENTLE ? b->cap * 2 : b->cap + b->cap / 4;
    if (cap < need)
        cap = need;
    if (cap < KBUF_FIRST)
        cap = KBUF_FIRST;
    char *data = malloc(cap);
    if (data == NULL && cap > need) {
        cap = need;
        data = malloc(cap);
    }
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    char *old = b->data;
    if (b->len > 0)
        memcpy(data, old, b->len);
    b->data = data;
    b->cap = cap;
    if (b->moved != NULL)
        b->moved(b);
    free(old);
    return 0;
}

void kbuf_free(kbuf *b)
{
    char *old = b->data;
    b->data = NULL;
    b->len = b->cap = 0;
    if (b->moved != NULL)
        b->moved(b);
    free(old);
}
