/* A growable byte buffer on malloc. It never shrinks while it is filled. */
#ifndef KASPR_KBUF_H
#define KASPR_KBUF_H

#include <stddef.h>
#include <string.h>

typedef struct kbuf {
    char *data;
    size_t len, cap;
    /* Called after data moved and before the old bytes are freed: at every instant the pointer others know is good. */
    void (*moved)(struct kbuf *);
} kbuf;

/* Slow part of kbuf_reserve. */
int kbuf_grow(kbuf *b, size_t extra);
/* Frees the bytes; the buffer is then empty and can be used again. */
void kbuf_free(kbuf *b);

/* Makes room for extra bytes behind len. 0, or -1 with MemoryError. */
static inline int kbuf_reserve(kbuf *b, size_t extra)
{
    return __builtin_expect(b->cap - b->len >= extra, 1) ? 0 : kbuf_grow(b, extra);
}

static inline int kbuf_append(kbuf *b, const void *bytes, size_t n)
{
    if (kbuf_reserve(b, n) < 0)
        return -1;
    if (n > 0)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    return 0;
}

#endif
