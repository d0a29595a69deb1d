/* The JSON codec of the guest.
 *
 * The contract is stock json of the same CPython, byte for byte and error for error (tests/test_kjson.py compares them). What
 * makes it fast, in order of weight:
 *
 * 1. Objects of a known shape. Records of a topic look alike: the same keys in the same order. The decoder keeps a trie of key
 *    sequences ("shape" below); a key is recognised by comparing a few words with the text the trie predicts, and a complete
 *    object becomes a dict by copying the hash table of the last one, without hashing or inserting anything.
 * 2. Fewer objects: keys are interned once; values wait on one stack and are moved into lists and dicts of the final size.
 * 3. Eight or 16 bytes at a time in strings and numbers.
 *
 * The decoder only knows the right way. Whatever it does not like (an error, UTF-16, depth) is given to json.loads, which
 * decides what the input is worth and what the exception says; an invalid document costs two attempts. */

#define PY_SSIZE_T_CLEAN
#ifndef Py_BUILD_CORE_MODULE
#define Py_BUILD_CORE_MODULE 1
#endif
#include "Python.h"
#include "datetime.h"
#include "internal/pycore_ceval.h"
#include "internal/pycore_dict.h"
#include "internal/pycore_long.h"

#include <float.h>
#include <stdint.h>
#include <string.h>

#include "kjson.h"

#if PY_VERSION_HEX < 0x030d0000 || PY_VERSION_HEX >= 0x030e0000
#error "kjson.c builds dicts and strings by hand and was checked against CPython 3.13 only: read instantiate and new_ascii"
#endif
#if PY_BIG_ENDIAN || defined(Py_GIL_DISABLED)
#error "kjson.c loads words as little endian and has unguarded caches"
#endif
#if FLT_EVAL_METHOD != 0
#error "the float conversions need double arithmetic without extra precision"
#endif

#ifdef __wasm__ /* the file is compiled without -msimd128, like the others */
#pragma clang attribute push(__attribute__((target("simd128"))), apply_to = function)
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

typedef uint64_t u64;
typedef int64_t i64;
typedef uint32_t u32;

/* ---- words ------------------------------------------------------------------------------------------------------- */

#define ONES 0x0101010101010101u
#define HIGHS 0x8080808080808080u

INLINE u64 load64(const void *p) { u64 v; memcpy(&v, p, 8); return v; }
INLINE u32 load32(const void *p) { u32 v; memcpy(&v, p, 4); return v; }
INLINE void store64(void *p, u64 v) { memcpy(p, &v, 8); }
INLINE int first_byte(u64 high_bits) { return __builtin_ctzll(high_bits) >> 3; }

/* The next two set the high bit of the bytes of w they look for. The lowest one set is exact; those above it may be due to a
 * borrow or carry. */
/* Bytes that end the simple run of a JSON string: quote, backslash, control. */
INLINE u64 bytes_special(u64 w)
{
    u64 quote = w ^ ONES * '"', backslash = w ^ ONES * '\\';
    return (((quote - ONES) & ~quote) | ((backslash - ONES) & ~backslash) | ((w - ONES * 0x20) & ~w)) & HIGHS;
}
/* Bytes the encoder has to escape: these, DEL and bytes >= 0x80. With the last the rest is cheaper: a byte below 0x80 has no
 * high bit of its own. */
INLINE u64 bytes_to_escape(u64 w)
{
    return (((w ^ ONES * '"') - ONES) | ((w ^ ONES * '\\') - ONES) | (w - ONES * 0x20) | (w + ONES) | w) & HIGHS;
}

/* ---- vectors ----------------------------------------------------------------------------------------------------- */

#if defined(__wasm__) || defined(__SSE2__)
typedef signed char vector __attribute__((vector_size(16)));

/* A bit per byte. */
INLINE u32 vector_mask(vector v)
{
#ifdef __wasm__
    return __builtin_wasm_bitmask_i8x16(v);
#else
    typedef char chars __attribute__((vector_size(16)));
    return (u32)__builtin_ia32_pmovmskb128((chars)v);
#endif
}
INLINE vector vector_load(const char *p) { vector v; memcpy(&v, p, 16); return v; }
INLINE void vector_store(char *p, vector v) { memcpy(p, &v, 16); }
/* Signed: less than 0x20 is control or >= 0x80. */
INLINE u32 vector_not_plain(vector v) { return vector_mask((v == '"') | (v == '\\') | (v < 0x20)); }
INLINE u32 vector_to_escape(vector v) { return vector_mask((v == '"') | (v == '\\') | (v < 0x20) | (v == 0x7f)); }
INLINE int vector_first(u32 mask) { return __builtin_ctz(mask); }
#else
INLINE u64 bytes_not_plain(u64 w)
{
    return (((w ^ ONES * '"') - ONES) | ((w ^ ONES * '\\') - ONES) | (w - ONES * 0x20) | w) & HIGHS;
}
typedef struct { u64 low, high; } vector;
INLINE vector vector_load(const char *p) { return (vector){load64(p), load64(p + 8)}; }
INLINE void vector_store(char *p, vector v) { store64(p, v.low); store64(p + 8, v.high); }
/* Here masks have the bit 7 of bytes: those of the low word at the even bits, of the high word at the odd ones. */
INLINE u64 vector_not_plain(vector v) { return bytes_not_plain(v.low) ? bytes_not_plain(v.low) : bytes_not_plain(v.high) >> 1; }
INLINE u64 vector_to_escape(vector v) { return bytes_to_escape(v.low) ? bytes_to_escape(v.low) : bytes_to_escape(v.high) >> 1; }
INLINE int vector_first(u64 mask) { return first_byte(mask) + (mask & HIGHS ? 0 : 8); }
#endif

/* Copies n bytes in vectors: up to 15 bytes behind both ends are read and written. */
INLINE void copy_vectors(char *to, const char *from, size_t n)
{
    vector_store(to, vector_load(from));
    for (size_t i = 16; unlikely(i < n); i += 16)
        vector_store(to + i, vector_load(from + i));
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The guest always has pymalloc (kjson_init makes sure): two calls less, one of them indirect. */
#ifdef __wasm__
extern void *_PyObject_Malloc(void *, size_t);
INLINE void *object_malloc(size_t n) { return _PyObject_Malloc(NULL, n); }
INLINE void *memory_malloc(size_t n) { return _PyObject_Malloc(NULL, n); }
#else
INLINE void *object_malloc(size_t n) { return PyObject_Malloc(n); }
INLINE void *memory_malloc(size_t n) { return PyMem_Malloc(n); }
#endif

static void check_allocators(void)
{
#ifdef __wasm__
    PyMemAllocatorEx object, memory;
    PyMem_GetAllocator(PYMEM_DOMAIN_OBJ, &object);
    PyMem_GetAllocator(PYMEM_DOMAIN_MEM, &memory);
    if (object.malloc != _PyObject_Malloc || memory.malloc != _PyObject_Malloc)
        Py_FatalError("kjson: the allocator is not pymalloc");
#endif
}

/* ---- shared state ------------------------------------------------------------------------------------------------ */

static PyObject *json_loads, *empty_str, *one_char[128];
static PyObject *str_json, *str_value, *str_isoformat, *str_utc, *str_add_note;
/* Classes of modules that may never be imported; NULL until one is found in sys.modules. */
static PyObject *class_decimal, *class_uuid, *class_enum, *class_deque;

/* Counters for tests: documents that were not decoded here, and those json.loads then accepted. */
static size_t stat_fallback, stat_fallback_accepted;

/* ---- powers of ten ----------------------------------------------------------------------------------------------- */

static const double exact_pow10[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                     1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* 10^j = 5^j * 2^j, and 5^j is p * 2^(pow5_exponent(j) - 127) rounded down to the 128 bits of p, the first of which is set. */
enum { POW5_MIN = -342, POW5_MAX = 324 };
static struct { u64 high, low; } pow5[POW5_MAX - POW5_MIN + 1];

/* floor(log2(5^j)), with log2(5) * 2^19 rounded; pow5_init checks it for the whole range. */
INLINE int pow5_exponent(int j) { return (j * 1217359) >> 19; }

/* Fills pow5 by multiplying 1 with 5, and by dividing 2^1087 by 5: floor(floor(x / 5) / 5) is floor(x / 25), so the division is
 * exact, and what is left of the number after 342 steps has more than 256 bits. -1: pow5_exponent is wrong. */
static int pow5_init(void)
{
    enum { WORDS = 34 }; /* of 32 bits */
    for (int down = 0; down < 2; down++) {
        u32 x[WORDS] = {0};
        x[down ? WORDS - 1 : 0] = down ? (u32)1 << 31 : 1;
        for (int i = 0; i <= (down ? -POW5_MIN : POW5_MAX); i++) {
            int top = WORDS - 1;
            while (x[top] == 0)
                top--;
            int shift = __builtin_clz(x[top]);
            u32 word[5], first[4];
            for (int n = 0; n < 5; n++)
                word[n] = top >= n ? x[top - n] : 0;
            for (int n = 0; n < 4; n++)
                first[n] = (u32)(((u64)word[n] << 32 | word[n + 1]) << shift >> 32);
            int j = down ? -i : i;
            pow5[j - POW5_MIN].high = (u64)first[0] << 32 | first[1];
            pow5[j - POW5_MIN].low = (u64)first[2] << 32 | first[3];
            if (pow5_exponent(j) != top * 32 + 31 - shift - (down ? WORDS * 32 - 1 : 0))
                return -1;
            u64 carry = 0;
            if (down)
                for (int n = WORDS - 1; n >= 0; n--) {
                    carry = carry << 32 | x[n];
                    x[n] = (u32)(carry / 5);
                    carry %= 5;
                }
            else
                for (int n = 0; n < WORDS; n++) {
                    carry += (u64)x[n] * 5;
                    x[n] = (u32)carry;
                    carry >>= 32;
                }
        }
    }
    return 0;
}

/* a * b: returns the high word. */
INLINE u64 multiply(u64 a, u64 b, u64 *low)
{
#ifdef __wasm__ /* has no wide product, and __int128 becomes a call */
    u64 a0 = (u32)a, a1 = a >> 32, b0 = (u32)b, b1 = b >> 32;
    u64 p00 = a0 * b0, p01 = a0 * b1, p10 = a1 * b0;
    u64 middle = p10 + (p00 >> 32) + (u32)p01;
    *low = middle << 32 | (u32)p00;
    return a1 * b1 + (middle >> 32) + (p01 >> 32);
#else
    unsigned __int128 p = (unsigned __int128)a * b;
    *low = (u64)p;
    return (u64)(p >> 64);
#endif
}

/* ================================================================================================================== */
/* Decoding                                                                                                           */
/* ================================================================================================================== */

/* ---- key cache --------------------------------------------------------------------------------------------------- */

/* Direct mapped: a new key takes the place of another. A key seen twice is interned, so that user code's d["key"] is found by
 * identity and equal keys of the trie are the same object. */
enum { KEY_LEN_MAX = 64, KEYS = 1024 };
typedef struct {
    PyObject *key;    /* owned, NULL: free */
    const char *text; /* its UTF-8 form, owned by key */
    u32 len;
    u32 hash;
    int interned;
} key_entry;
static key_entry key_cache[KEYS];

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* A shape is a sequence of keys: the path from the root of a trie. Children are found by what came last ("next"), then in the
 * list. Invariants: keys of a path are distinct and interned; a shape that is reachable lives until the next decode at least
 * (they are only freed all together, between two decodes). Bounds: SHAPES in all, SHAPE_CHILDREN each, SHAPE_KEYS deep; objects
 * beyond them are built in the ordinary way. Keys that were never seen before make no shape, so a map from ids does not fill
 * the trie; if something else does, it is emptied after SHAPE_STALE refusals and learns what comes then. */
enum { SHAPES = 1024, SHAPE_CHILDREN = 16, SHAPE_ROOT_CHILDREN = 64, SHAPE_KEYS = 64, SHAPE_STALE = 4096 };
typedef struct shape {
    struct shape *next; /* the child that was right last time */
    u32 text_len;       /* of text: key and closing quote */
    u32 text_words;     /* whole words to compare before the last, masked one */
    u64 text_mask;
    u32 count;          /* keys on the path */
    u32 table_head;     /* bytes of table before the entries */
    PyDictKeysObject *table; /* of a dict with these keys, entries without values; NULL until one was seen */
    size_t table_size;
    PyObject *key;      /* owned */
    struct shape *parent, *children, *sibling;
    u32 child_count;
    u64 text[];
} shape;
static shape *shape_root;
static size_t shape_count;
static size_t shape_refused; /* children not made because of a bound; when there were many, all starts afresh */

static shape *shape_new(shape *parent, PyObject *key, const char *text, size_t len)
{
    size_t words = len / 8 + 1; /* text and quote */
    shape *s = PyMem_Malloc(sizeof(shape) + words * 8);
    if (s == NULL)
        return NULL;
    memset(s, 0, sizeof(shape) + words * 8);
    s->text_len = (u32)len + 1;
    s->text_words = (u32)(len / 8);
    memcpy(s->text, text, len);
    ((char *)s->text)[len] = '"';
    s->text_mask = len % 8 == 7 ? ~(u64)0 : ((u64)1 << (len % 8 + 1) * 8) - 1;
    s->parent = parent;
    if (parent != NULL) {
        s->count = parent->count + 1;
        s->key = Py_NewRef(key);
        s->sibling = parent->children;
        parent->children = s;
        parent->child_count++;
    }
    shape_count++;
    return s;
}

static void shape_free(shape *s)
{
    while (s != NULL) { /* recursion is bounded by SHAPE_KEYS */
        shape *sibling = s->sibling;
        shape_free(s->children);
        Py_XDECREF(s->key);
        PyMem_Free(s->table);
        PyMem_Free(s);
        s = sibling;
    }
}

static int shapes_reset(void)
{
    shape_free(shape_root);
    shape_count = shape_refused = 0;
    shape_root = shape_new(NULL, NULL, "", 0);
    return shape_root == NULL ? -1 : 0;
}

/* Is the text at p (behind the opening quote) the shape's key and its closing quote? */
INLINE int shape_matches(const shape *s, const char *p)
{
    const u64 *t = s->text;
    for (u32 n = s->text_words; unlikely(n > 0); n--, p += 8, t++)
        if (load64(p) != *t)
            return 0;
    return ((load64(p) ^ *t) & s->text_mask) == 0;
}

/* ---- decoder ----------------------------------------------------------------------------------------------------- */

/* Functions take the position and return the one behind what they read, or NULL. NULL without an exception: try json.loads.
 * They push their value on the stack, which owns it. The text is a copy that ends in NUL and PADDING readable bytes, so nothing
 * checks for the end: NUL is no JSON. The copy may be overwritten behind the position that was read. */
enum { PADDING = 32, TEXT_KEPT = 256 << 10, STACK_KEPT = 16 << 10 };
typedef struct {
    PyObject **stack;
    size_t n, cap;
    size_t containers; /* lists and dicts made so far */
    const char *too_deep; /* "array" or "object": what reached the recursion limit */
    PyThreadState *ts;
} decoder;

static PyObject **kept_stack;
static size_t kept_stack_cap;
static char *kept_text;
static size_t kept_text_cap;

NOINLINE int stack_grow(decoder *d)
{
    size_t cap = d->cap ? d->cap * 2 : 256;
    PyObject **stack = PyMem_Realloc(d->stack, cap * sizeof *stack);
    if (stack == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    d->stack = stack;
    d->cap = cap;
    return 0;
}

/* Takes the reference, also when it fails. */
INLINE int push(decoder *d, PyObject *v)
{
    if (unlikely(v == NULL))
        return -1;
    if (unlikely(d->n == d->cap) && stack_grow(d) < 0) {
        Py_DECREF(v);
        return -1;
    }
    d->stack[d->n++] = v;
    return 0;
}

INLINE const char *pushed(decoder *d, PyObject *v, const char *p)
{
    return likely(push(d, v) == 0) ? p : NULL;
}

NOINLINE const char *skip_space_slow(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')
        p++;
    return p;
}

INLINE const char *skip_space(const char *p)
{
    if (likely((unsigned char)*p > ' '))
        return p;
    if (likely(*p == ' ' && (unsigned char)p[1] > ' '))
        return p + 1;
    return skip_space_slow(p);
}

/* ---- strings ----------------------------------------------------------------------------------------------------- */

/* A str of n ASCII bytes; up to 15 bytes behind them are read. What PyUnicode_New does, plus room to write whole vectors. */
INLINE PyObject *new_ascii(const char *p, size_t n)
{
    if (unlikely(n < 2))
        return Py_NewRef(n == 0 ? empty_str : one_char[(unsigned char)*p]);
    PyASCIIObject *s = object_malloc(sizeof(PyASCIIObject) + n + 16);
    if (unlikely(s == NULL))
        return PyErr_NoMemory();
    ((PyObject *)s)->ob_refcnt = 1;
    ((PyObject *)s)->ob_type = &PyUnicode_Type; /* static: not counted */
    s->length = (Py_ssize_t)n;
    s->hash = -1;
    memset(&s->state, 0, sizeof s->state);
    s->state.kind = PyUnicode_1BYTE_KIND;
    s->state.compact = 1;
    s->state.ascii = 1;
    char *to = (char *)(s + 1);
    copy_vectors(to, p, n);
    to[n] = 0;
    return (PyObject *)s;
}

static int hex4(const char *p)
{
    int v = 0;
    for (int i = 0; i < 4; i++) {
        unsigned char c = (unsigned char)p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0)
            return -1;
        v = v << 4 | digit;
    }
    return v;
}

/* The rest of the string that began at start and has an escape at p. Unescapes in place: no escape is shorter than its UTF-8. A
 * lone surrogate becomes three bytes, which "surrogatepass" turns back, like those of the input. */
NOINLINE const char *string_with_escapes(const char *start, const char *p, int ascii, PyObject **result)
{
    char *to = (char *)p;
    for (;;) {
        unsigned char c = (unsigned char)*p;
        if (c == '"')
            break;
        if (c < 0x20)
            return NULL;
        if (c != '\\') {
            u64 w = load64(p), special = bytes_special(w);
            int n = special ? first_byte(special) : 8;
            if (w << (8 - n) * 8 & HIGHS)
                ascii = 0;
            if (n == 8) {
                store64(to, w);
                to += 8;
                p += 8;
            }
            else /* a word would overwrite what was not read yet */
                for (; n > 0; n--)
                    *to++ = *p++;
            continue;
        }
        c = (unsigned char)p[1];
        p += 2;
        switch (c) {
        case '"': case '\\': case '/': *to++ = (char)c; continue;
        case 'b': *to++ = '\b'; continue;
        case 'f': *to++ = '\f'; continue;
        case 'n': *to++ = '\n'; continue;
        case 'r': *to++ = '\r'; continue;
        case 't': *to++ = '\t'; continue;
        case 'u': break;
        default: return NULL;
        }
        int u = hex4(p);
        if (u < 0)
            return NULL;
        p += 4;
        if (u < 0x80) {
            *to++ = (char)u;
            continue;
        }
        ascii = 0;
        if (u < 0x800) {
            *to++ = (char)(0xc0 | u >> 6);
            *to++ = (char)(0x80 | (u & 0x3f));
            continue;
        }
        if (u >= 0xd800 && u < 0xdc00 && p[0] == '\\' && p[1] == 'u') {
            int low = hex4(p + 2);
            if (low < 0)
                return NULL;
            if (low >= 0xdc00 && low < 0xe000) {
                p += 6;
                u = 0x10000 + ((u - 0xd800) << 10 | (low - 0xdc00));
                *to++ = (char)(0xf0 | u >> 18);
                *to++ = (char)(0x80 | (u >> 12 & 0x3f));
                *to++ = (char)(0x80 | (u >> 6 & 0x3f));
                *to++ = (char)(0x80 | (u & 0x3f));
                continue;
            }
        }
        *to++ = (char)(0xe0 | u >> 12);
        *to++ = (char)(0x80 | (u >> 6 & 0x3f));
        *to++ = (char)(0x80 | (u & 0x3f));
    }
    *result = ascii ? new_ascii(start, (size_t)(to - start)) : PyUnicode_DecodeUTF8(start, to - start, "surrogatepass");
    return *result != NULL ? p + 1 : NULL;
}

/* The string behind an opening quote, from p on: start..p is simple ASCII. */
NOINLINE const char *string_slow(const char *start, const char *p, PyObject **result)
{
    int ascii = 1;
    for (;;) {
        u64 w = load64(p), special = bytes_special(w);
        int n = special ? first_byte(special) : 8;
        if (n > 0 && (w << (8 - n) * 8) & HIGHS)
            ascii = 0;
        p += n;
        if (special)
            break;
    }
    if (*p == '"') {
        *result = ascii ? new_ascii(start, (size_t)(p - start)) : PyUnicode_DecodeUTF8(start, p - start, "surrogatepass");
        return *result != NULL ? p + 1 : NULL;
    }
    if (*p == '\\')
        return string_with_escapes(start, p, ascii, result);
    return NULL;
}

/* Strings of up to 8 bytes are mostly names of states, kinds, countries: the last ones are kept and used again, which saves the
 * making and freeing of an object. JSON strings have no NUL, so a word padded with NULs is its string and no other. Direct mapped.
 * (Longer strings are mostly ids and texts: looking for them cost more than it saved.) */
enum { SHORT_STRINGS = 512 };
static struct short_string {
    u64 text;
    PyObject *v; /* owned; NULL only where text is 0 */
} short_strings[SHORT_STRINGS];

NOINLINE PyObject *short_string_new(struct short_string *s, const char *p, size_t n, u64 text)
{
    PyObject *v = new_ascii(p, n);
    if (v == NULL)
        return NULL;
    s->text = text;
    Py_XSETREF(s->v, Py_NewRef(v)); /* the old one is an exact str: no code of others runs */
    return v;
}

/* 2 <= n <= 8 */
INLINE PyObject *short_string(const char *p, size_t n)
{
    u64 text = load64(p) << (8 - n) * 8 >> (8 - n) * 8;
    struct short_string *s = &short_strings[((u32)text ^ (u32)(text >> 32)) * 2654435769u >> 23];
    return likely(s->text == text) ? Py_NewRef(s->v) : short_string_new(s, p, n, text);
}

/* p is behind the opening quote. */
NOINLINE const char *string_value(decoder *d, const char *p)
{
    const char *start = p;
    __auto_type hit = vector_not_plain(vector_load(p));
    while (hit == 0) {
        p += 16;
        hit = vector_not_plain(vector_load(p));
    }
    p += vector_first(hit);
    PyObject *v;
    if (unlikely(*p != '"')) {
        p = string_slow(start, p, &v);
        return likely(p != NULL) ? pushed(d, v, p) : NULL;
    }
    size_t n = (size_t)(p - start);
    v = n - 2 <= 6 ? short_string(start, n) : new_ascii(start, n);
    return pushed(d, v, p + 1);
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* The high bit of the bytes that are no digits; exact up to the first. */
INLINE u64 not_digits(u64 w) { return ((w + ONES * 0x46) | (w - ONES * '0') | w) & HIGHS; }

/* The value of eight digits: pairs, fours, eight. */
INLINE u64 eight_digits_value(u64 w)
{
    w -= ONES * '0';
    w = (w * 10 + (w >> 8)) & 0x00ff00ff00ff00ffu;
    w = (w * 100 + (w >> 16)) & 0x0000ffff0000ffffu;
    return (w * 10000 + (w >> 32)) & 0xffffffffu;
}

/* Appends the digits at p to *value, modulo 2^64. */
INLINE const char *digits(const char *p, u64 *value)
{
    u64 v = *value, w = load64(p), others;
    while (unlikely((others = not_digits(w)) == 0)) {
        v = v * 100000000 + eight_digits_value(w);
        p += 8;
        w = load64(p);
    }
    int n = first_byte(others);
    if (likely(n > 0)) { /* n digits behind zeros */
        static const u32 pow10[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};
        v = v * pow10[n] + eight_digits_value(w << (8 - n) * 8 | ONES * '0' >> n * 8);
    }
    *value = v;
    return p + n;
}

/* Is w * 10^exponent a normal double whose rounding is beyond doubt? Then *v is it. w > 0.
 *
 * With w shifted to have its first bit set, and 5^exponent = (p + d) * 2^e, 0 <= d < 1 in units of p's first word, the product is
 * between w * p and w * p + w: a sum that changes high, the first word of w * p, by one at most. high has the 53 bits of the
 * result, a bit that says half, and 9 or 10 more. When half is 0 and not all of the rest are 1, one more in high changes
 * nothing: down. When half is 1 and something behind it is not 0, it is up, even if one more carries into the result. */
INLINE int round_decimal(u64 w, int exponent, double *v)
{
    if (exponent < -300 || exponent > 280) /* w may add 19 digits: stay away from denormals and infinity */
        return 0;
    int shift = __builtin_clzll(w);
    u64 low, high = multiply(w << shift, pow5[exponent - POW5_MIN].high, &low);
    int upper = (int)(high >> 63);
    int below = 10 + upper; /* bits below the result's 53 */
    u64 half = (u64)1 << (below - 1), rest = high & (half - 1);
    u64 mantissa = high >> below;
    if (high & half) {
        if (unlikely(rest == 0 && low == 0))
            return 0;
        mantissa++;
    }
    else if (unlikely(rest == half - 1))
        return 0;
    int power = exponent + pow5_exponent(exponent) - 127 + 64 + 64 - shift + below; /* of the mantissa's last bit */
    u64 bits = ((u64)(power + 52 + 1023) << 52) + (mantissa - ((u64)1 << 52)); /* a mantissa of 2^53 carries into the exponent */
    memcpy(v, &bits, 8);
    return 1;
}

/* start..p is a number in JSON's grammar. */
NOINLINE const char *number_slow(decoder *d, const char *start, const char *p, int is_float)
{
    char *end = (char *)p, c = *end;
    *end = 0;
    PyObject *v = NULL;
    if (is_float) {
        double f = PyOS_string_to_double(start, NULL, NULL);
        if (f != -1.0 || !PyErr_Occurred())
            v = PyFloat_FromDouble(f);
    }
    else
        v = PyLong_FromString(start, NULL, 10);
    *end = c;
    return pushed(d, v, p);
}

/* An int that is none of the small ones, which exist. What _PyLong_New does. 256 < w < 10^18 */
INLINE PyObject *new_int(u64 w, int negative)
{
    size_t n = (size_t)(63 - __builtin_clzll(w)) / PyLong_SHIFT + 1;
    PyLongObject *v = object_malloc(offsetof(PyLongObject, long_value.ob_digit) + n * sizeof(digit));
    if (unlikely(v == NULL))
        return PyErr_NoMemory();
    ((PyObject *)v)->ob_refcnt = 1;
    ((PyObject *)v)->ob_type = &PyLong_Type; /* static: not counted */
    v->long_value.lv_tag = n << NON_SIZE_BITS | (negative ? SIGN_NEGATIVE : 0);
    digit *to = v->long_value.ob_digit;
    do {
        *to++ = (digit)(w & PyLong_MASK);
        w >>= PyLong_SHIFT;
    } while (w != 0);
    return (PyObject *)v;
}

NOINLINE const char *parse_number(decoder *d, const char *p)
{
    const char *start = p;
    int negative = *p == '-';
    p += negative;
    u64 w = 0;
    const char *first = p;
    if (likely(*p >= '1' && *p <= '9'))
        p = digits(p, &w);
    else if (*p == '0')
        p++;
    else if (negative && memcmp(p, "Infinity", 8) == 0)
        return pushed(d, PyFloat_FromDouble(-Py_HUGE_VAL), p + 8);
    else
        return NULL;
    size_t count = (size_t)(p - first);
    if (*p != '.' && (*p | 32) != 'e') {
        if (unlikely(count > 18))
            return number_slow(d, start, p, 0);
        return pushed(d, w > 256 ? new_int(w, negative) : PyLong_FromLong(negative ? -(long)w : (long)w), p);
    }

    i64 exponent = 0;
    if (*p == '.') {
        const char *fraction = ++p;
        p = digits(p, &w);
        exponent = fraction - p;
        if (exponent == 0)
            return NULL;
        if (*first == '0') { /* leading zeros are no digits of w */
            while (*fraction == '0')
                fraction++;
            count = (size_t)(p - fraction);
        }
        else
            count += (size_t)(p - fraction);
    }
    if (unlikely((*p | 32) == 'e')) {
        p++;
        int minus = *p == '-';
        if (minus || *p == '+')
            p++;
        const char *e = p;
        u64 value = 0;
        p = digits(p, &value);
        if (p == e)
            return NULL;
        if (p - e > 8)
            return number_slow(d, start, p, 1);
        exponent += minus ? -(i64)value : (i64)value;
    }
    /* w is exact, 10^22 and below are exact, so one rounding happens and it is the right one. */
    if (likely(count <= 19 && w <= (u64)1 << 53 && exponent >= -22 && exponent <= 22)) {
        double v = (double)(i64)w;
        v = exponent < 0 ? v / exact_pow10[-exponent] : v * exact_pow10[exponent];
        return pushed(d, PyFloat_FromDouble(negative ? -v : v), p);
    }
    double v;
    if (likely(count <= 19 && w != 0 && exponent >= POW5_MIN && exponent <= POW5_MAX && round_decimal(w, (int)exponent, &v)))
        return pushed(d, PyFloat_FromDouble(negative ? -v : v), p);
    return number_slow(d, start, p, 1);
}

/* ---- keys -------------------------------------------------------------------------------------------------------- */

INLINE u32 key_hash(const char *p, size_t n)
{
    u64 h = n * 0x9e3779b97f4a7c15u, w;
    for (; n >= 8; n -= 8, p += 8)
        h = (h ^ load64(p)) * 0xff51afd7ed558ccdu, h ^= h >> 32;
    if (n > 0) {
        w = load64(p) << (8 - n) * 8;
        h = (h ^ w) * 0xff51afd7ed558ccdu, h ^= h >> 32;
    }
    h *= 0xc4ceb9fe1a85ec53u;
    return (u32)(h >> 32);
}

/* The key of n bytes at p, which has no escapes. Borrowed from the cache, or *owned is set. *known: it was seen before and is
 * interned. */
NOINLINE PyObject *key_object(const char *p, size_t n, int ascii, int *owned, int *known)
{
    *owned = *known = 0;
    if (n > KEY_LEN_MAX) {
        *owned = 1;
        return ascii ? new_ascii(p, n) : PyUnicode_DecodeUTF8(p, (Py_ssize_t)n, "surrogatepass");
    }
    u32 hash = key_hash(p, n);
    key_entry *e = &key_cache[hash % KEYS];
    if (e->key != NULL && e->hash == hash && e->len == n && memcmp(e->text, p, n) == 0) {
        if (!e->interned) {
            PyUnicode_InternInPlace(&e->key); /* may put an equal string in its place */
            e->text = PyUnicode_AsUTF8(e->key);
            if (e->text == NULL) {
                Py_CLEAR(e->key);
                return NULL;
            }
            e->interned = 1;
        }
        *known = 1;
        return e->key;
    }
    PyObject *key = ascii ? new_ascii(p, n) : PyUnicode_DecodeUTF8(p, (Py_ssize_t)n, "surrogatepass");
    if (key == NULL)
        return NULL;
    const char *text = PyUnicode_AsUTF8(key);
    if (text == NULL) { /* a surrogate: not worth keeping */
        PyErr_Clear();
        *owned = 1;
        return key;
    }
    PyObject *old = e->key;
    *e = (key_entry){key, text, (u32)n, hash, 0};
    Py_XDECREF(old); /* a str: no code of others runs */
    return key;
}

/* Reads the key at p. Returned owned; *known as above. */
static const char *key_any(const char *p, PyObject **key, int *known)
{
    const char *start = p;
    int ascii = 1;
    for (;;) {
        u64 w = load64(p), special = bytes_special(w);
        int n = special ? first_byte(special) : 8;
        if (n > 0 && (w << (8 - n) * 8) & HIGHS)
            ascii = 0;
        p += n;
        if (special)
            break;
    }
    if (unlikely(*p != '"')) {
        *known = 0;
        return *p == '\\' ? string_with_escapes(start, p, ascii, key) : NULL;
    }
    int owned;
    *key = key_object(start, (size_t)(p - start), ascii, &owned, known);
    if (*key == NULL)
        return NULL;
    if (!owned)
        Py_INCREF(*key);
    return p + 1;
}

/* The stack has values from base on, their keys are those of s: make it key, value, key, value. */
static int unshape(decoder *d, const shape *s, size_t base)
{
    size_t n = s->count;
    while (d->cap - d->n < n)
        if (stack_grow(d) < 0)
            return -1;
    for (; n > 0; n--, s = s->parent) {
        d->stack[base + 2 * n - 1] = d->stack[base + n - 1];
        d->stack[base + 2 * n - 2] = Py_NewRef(s->key);
    }
    d->n = base + 2 * (d->n - base);
    return 0;
}

/* Reads a key that *sp did not predict: moves *sp to another child or, when there is none and none is made, gives up shapes for
 * this object: *sp is NULL and the stack has keys, the new one last. */
NOINLINE const char *key_unpredicted(decoder *d, const char *p, shape **sp, size_t base)
{
    shape *s = *sp, *child;
    for (child = s->children; child != NULL; child = child->sibling)
        if (child != s->next && shape_matches(child, p)) {
            *sp = s->next = child;
            return p + child->text_len;
        }
    PyObject *key;
    int known;
    const char *text = p;
    p = key_any(p, &key, &known);
    if (p == NULL)
        return NULL;
    if (known && s->count < SHAPE_KEYS) {
        const shape *up = s;
        while (up->parent != NULL && up->key != key)
            up = up->parent;
        if (up->parent == NULL) { /* not a duplicate */
            if (shape_count >= SHAPES || s->child_count >= (s->parent != NULL ? SHAPE_CHILDREN : SHAPE_ROOT_CHILDREN))
                shape_refused++;
            else {
                child = shape_new(s, key, text, (size_t)(p - text) - 1);
                Py_DECREF(key);
                if (child == NULL) {
                    PyErr_NoMemory();
                    return NULL;
                }
                *sp = s->next = child;
                return p;
            }
        }
    }
    if (unshape(d, s, base) < 0) {
        Py_DECREF(key);
        return NULL;
    }
    *sp = NULL;
    return pushed(d, key, p);
}

/* ---- containers -------------------------------------------------------------------------------------------------- */

/* The condition and the message are those of stock json's scanner, whose call takes a level (one at most) more. */
INLINE int enter(decoder *d, const char *what)
{
    if (unlikely(d->ts->c_recursion_remaining < 0)) {
        d->too_deep = what;
        return -1;
    }
    d->ts->c_recursion_remaining--;
    return 0;
}

INLINE void leave(decoder *d) { d->ts->c_recursion_remaining++; }

/* Replaces the key, value pairs from base on by a dict. */
static int close_object(decoder *d, size_t base)
{
    PyObject **items = d->stack + base;
    size_t n = (d->n - base) / 2;
    PyObject *dict = _PyDict_FromItems(items, 2, items + 1, 2, (Py_ssize_t)n);
    if (dict == NULL)
        return -1;
    for (size_t i = 0; i < 2 * n; i++)
        Py_DECREF(items[i]);
    items[0] = dict;
    d->n = base + 1;
    return 0;
}

/* The first object of a shape: it is built in the ordinary way and its hash table kept as the template of the next ones. */
NOINLINE int first_of_shape(decoder *d, shape *s, size_t base)
{
    if (unshape(d, s, base) < 0 || close_object(d, base) < 0)
        return -1;
    PyDictObject *dict = (PyDictObject *)d->stack[base];
    PyDictKeysObject *keys = dict->ma_keys;
    if (dict->ma_values != NULL || !DK_IS_UNICODE(keys) || (size_t)keys->dk_nentries != s->count ||
        (size_t)dict->ma_used != s->count)
        return 0;
    size_t head = offsetof(PyDictKeysObject, dk_indices) + ((size_t)1 << keys->dk_log2_index_bytes);
    size_t entries = (size_t)(keys->dk_nentries + keys->dk_usable);
    size_t size = head + entries * sizeof(PyDictUnicodeEntry);
    PyDictKeysObject *table = PyMem_Malloc(size);
    if (table == NULL)
        return 0;
    memcpy(table, keys, size);
    table->dk_refcnt = 1;
    table->dk_version = 0;
    for (size_t i = 0; i < s->count; i++)
        DK_UNICODE_ENTRIES(table)[i].me_value = NULL;
    s->table = table;
    s->table_head = (u32)head;
    s->table_size = size;
    return 0;
}

/* A dict of shape s with the values, whose references it takes. This is what PyDict_Copy does with an unfragmented dict: one block
 * with the index and the entries of the original. track: a value is a container. */
INLINE PyObject *instantiate(const shape *s, PyObject **values, int track)
{
    PyDictKeysObject *keys = memory_malloc(s->table_size);
    if (unlikely(keys == NULL))
        return PyErr_NoMemory();
    PyObject *dict = PyDict_New();
    if (unlikely(dict == NULL)) {
        PyMem_Free(keys);
        return NULL;
    }
    size_t head = s->table_head, n = s->count;
    const char *from = (const char *)s->table;
    copy_vectors((char *)keys, from, head); /* and some of the entries: the smallest table has 5 */
    const PyDictUnicodeEntry *template = (const PyDictUnicodeEntry *)(from + head);
    PyDictUnicodeEntry *entry = (PyDictUnicodeEntry *)((char *)keys + head);
    for (size_t i = 0; i < n; i++) {
        entry[i].me_key = Py_NewRef(template[i].me_key);
        entry[i].me_value = values[i];
    }
    PyDictUnicodeEntry *end = (PyDictUnicodeEntry *)((char *)keys + s->table_size);
    for (entry += n; entry < end; entry++)
        entry->me_key = entry->me_value = NULL;
    /* The empty table PyDict_New gave it is shared and immortal. */
    ((PyDictObject *)dict)->ma_keys = keys;
    ((PyDictObject *)dict)->ma_used = (Py_ssize_t)n;
    if (track)
        PyObject_GC_Track(dict);
    return dict;
}

static const char *parse_array(decoder *d, const char *p);
static const char *parse_object(decoder *d, const char *p);
static const char *parse_other(decoder *d, const char *p);

INLINE const char *parse_value(decoder *d, const char *p)
{
    p = skip_space(p);
    if (likely(*p == '"'))
        return string_value(d, p + 1);
    if (likely((unsigned char)(*p - '0') < 10))
        return parse_number(d, p);
    return parse_other(d, p);
}

NOINLINE const char *parse_other(decoder *d, const char *p)
{
    switch (*p) {
    case '{': return parse_object(d, p + 1);
    case '[': return parse_array(d, p + 1);
    case '-': return parse_number(d, p);
    case 't': return load32(p) == 0x65757274 ? pushed(d, Py_True, p + 4) : NULL;
    case 'f': return load32(p + 1) == 0x65736c61 ? pushed(d, Py_False, p + 5) : NULL;
    case 'n': return load32(p) == 0x6c6c756e ? pushed(d, Py_None, p + 4) : NULL;
    case 'N': return p[1] == 'a' && p[2] == 'N' ? pushed(d, PyFloat_FromDouble(Py_NAN), p + 3) : NULL;
    case 'I': return memcmp(p, "Infinity", 8) == 0 ? pushed(d, PyFloat_FromDouble(Py_HUGE_VAL), p + 8) : NULL;
    default: return NULL;
    }
}

/* p is behind the bracket. */
NOINLINE const char *parse_array(decoder *d, const char *p)
{
    if (enter(d, "array") < 0)
        return NULL;
    size_t base = d->n;
    p = skip_space(p);
    if (*p == ']')
        p++;
    else
        for (;;) {
            p = parse_value(d, p);
            if (unlikely(p == NULL))
                return NULL;
            p = skip_space(p);
            char c = *p++;
            if (c == ',') {
                p = skip_space(p);
                continue;
            }
            if (likely(c == ']'))
                break;
            return NULL;
        }
    size_t n = d->n - base;
    PyObject *list = PyList_New((Py_ssize_t)n);
    if (unlikely(list == NULL))
        return NULL;
    PyObject **items = ((PyListObject *)list)->ob_item;
    for (size_t i = 0; i < n; i++)
        items[i] = d->stack[base + i];
    d->n = base;
    d->containers++;
    leave(d);
    return pushed(d, list, p);
}

/* p is behind the brace. */
NOINLINE const char *parse_object(decoder *d, const char *p)
{
    if (enter(d, "object") < 0)
        return NULL;
    size_t base = d->n, containers = d->containers;
    shape *s = shape_root;
    p = skip_space(p);
    if (*p == '}') {
        leave(d);
        d->containers++;
        return pushed(d, PyDict_New(), p + 1);
    }
    for (;;) {
        if (unlikely(*p != '"'))
            return NULL;
        p++;
        if (likely(s != NULL)) {
            shape *next = s->next;
            if (likely(next != NULL && shape_matches(next, p))) {
                p += next->text_len;
                s = next;
            }
            else {
                p = key_unpredicted(d, p, &s, base);
                if (unlikely(p == NULL))
                    return NULL;
            }
        }
        else {
            PyObject *key;
            int known;
            p = key_any(p, &key, &known);
            if (unlikely(p == NULL || push(d, key) < 0))
                return NULL;
        }
        if (unlikely(*p != ':')) {
            p = skip_space(p);
            if (*p != ':')
                return NULL;
        }
        p = parse_value(d, p + 1);
        if (unlikely(p == NULL))
            return NULL;
        if (unlikely((unsigned char)*p <= ' '))
            p = skip_space(p);
        char c = *p++;
        if (c == ',') {
            p = skip_space(p);
            continue;
        }
        if (likely(c == '}'))
            break;
        return NULL;
    }
    if (likely(s != NULL && s->table != NULL)) {
        PyObject *dict = instantiate(s, d->stack + base, d->containers != containers);
        if (unlikely(dict == NULL))
            return NULL;
        d->stack[base] = dict;
        d->n = base + 1;
    }
    else if ((s != NULL ? first_of_shape(d, s, base) : close_object(d, base)) < 0)
        return NULL;
    d->containers++;
    leave(d);
    return p;
}

/* ---- entry ------------------------------------------------------------------------------------------------------- */

/* The document, or NULL: then with MemoryError, RecursionError or without an exception. Code of others could run in here only if
 * someone registered an error handler of theirs as "surrogatepass"; what it decodes is left to json. */
static PyObject *decode(const char *buf, size_t len, int skip_bom)
{
    static int busy;
    if (unlikely(busy))
        return NULL;
    if (unlikely(shape_refused > SHAPE_STALE || shape_root == NULL) && shapes_reset() < 0)
        return PyErr_NoMemory();
    char *text = kept_text;
    if (unlikely(len + PADDING > kept_text_cap)) {
        size_t cap = len + PADDING < 4096 ? 4096 : len + PADDING;
        if (cap <= TEXT_KEPT) {
            PyMem_Free(kept_text);
            kept_text_cap = 0;
            text = kept_text = PyMem_Malloc(cap);
            if (text != NULL)
                kept_text_cap = cap;
        }
        else
            text = PyMem_Malloc(cap);
        if (text == NULL)
            return PyErr_NoMemory();
    }
    memcpy(text, buf, len);
    memset(text + len, 0, PADDING);

    busy = 1;
    decoder d = {.stack = kept_stack, .cap = kept_stack_cap, .ts = PyThreadState_Get()};
    int depth = d.ts->c_recursion_remaining;
    const char *p = text;
    if (skip_bom && len >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0)
        p += 3;
    p = parse_value(&d, skip_space(p));
    if (p != NULL)
        p = skip_space(p);
    PyObject *result = NULL;
    if (likely(p != NULL && p == text + len))
        result = d.stack[0];
    else {
        d.ts->c_recursion_remaining = depth;
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_MemoryError))
            PyErr_Clear();
        while (d.n > 0)
            Py_DECREF(d.stack[--d.n]);
        if (d.too_deep != NULL) {
            /* json decodes the bytes first, so an encoding error further on comes before this one. */
            PyObject *whole = PyUnicode_DecodeUTF8(buf, (Py_ssize_t)len, "surrogatepass");
            if (whole != NULL)
                PyErr_Format(PyExc_RecursionError,
                             "maximum recursion depth exceeded while decoding a JSON %s from a unicode string", d.too_deep);
            else if (!PyErr_ExceptionMatches(PyExc_MemoryError))
                PyErr_Clear();
            Py_XDECREF(whole);
        }
    }

    if (unlikely(text != kept_text))
        PyMem_Free(text);
    if (unlikely(d.cap > STACK_KEPT)) {
        PyMem_Free(d.stack);
        d.stack = NULL;
        d.cap = 0;
    }
    kept_stack = d.stack;
    kept_stack_cap = d.cap;
    busy = 0;
    return result;
}

static PyObject *ask_json(PyObject *doc)
{
    stat_fallback++;
    PyObject *v = PyObject_CallOneArg(json_loads, doc);
    stat_fallback_accepted += v != NULL;
    return v;
}

PyObject *kjson_decode(const char *buf, Py_ssize_t len)
{
    PyObject *v = decode(buf, (size_t)len, 1);
    if (likely(v != NULL) || PyErr_Occurred())
        return v;
    PyObject *doc = PyBytes_FromStringAndSize(buf, len);
    if (doc == NULL)
        return NULL;
    v = ask_json(doc);
    Py_DECREF(doc);
    return v;
}

static PyObject *decode_str(PyObject *doc)
{
    PyObject *v = NULL;
    if (PyUnicode_IS_ASCII(doc))
        v = decode(PyUnicode_DATA(doc), (size_t)PyUnicode_GET_LENGTH(doc), 0);
    else {
        PyObject *utf8 = PyUnicode_AsEncodedString(doc, "utf-8", "surrogatepass");
        if (utf8 == NULL)
            return NULL;
        v = decode(PyBytes_AS_STRING(utf8), (size_t)PyBytes_GET_SIZE(utf8), 0);
        Py_DECREF(utf8);
    }
    return v != NULL || PyErr_Occurred() ? v : ask_json(doc);
}

/* ================================================================================================================== */
/* Encoding                                                                                                           */
/* ================================================================================================================== */

/* Containers that are being encoded, innermost first. */
typedef struct frame {
    const struct frame *up;
    PyObject *object;
} frame;

typedef struct {
    char *w, *limit; /* out->data + out->len and out->data + out->cap, valid while no code of others runs: suspend, resume */
    kbuf *out;
    PyThreadState *ts;
    PyObject *path; /* of an error: list of keys and indexes, innermost first; NULL: no path wanted */
    char comma[2], colon[2];
    u32 comma_len, colon_len;
} encoder;

static int encode(encoder *e, PyObject *v, const frame *up);

INLINE void suspend(encoder *e) { e->out->len = (size_t)(e->w - e->out->data); }
INLINE void resume(encoder *e)
{
    e->w = e->out->data + e->out->len;
    e->limit = e->out->data + e->out->cap;
}

NOINLINE char *room_grow(encoder *e, size_t n)
{
    suspend(e);
    int r = kbuf_reserve(e->out, n);
    resume(e);
    return r < 0 ? NULL : e->w;
}

/* Room for n bytes behind the text and SLACK for punctuation, or NULL with MemoryError. done() takes what was written. */
enum { SLACK = 8 };
INLINE char *room(encoder *e, size_t n)
{
    return likely((size_t)(e->limit - e->w) >= n + SLACK) ? e->w : room_grow(e, n + SLACK);
}
INLINE int done(encoder *e, char *end)
{
    e->w = end;
    return 0;
}

/* Drops a reference that may be the last one: code of others may run. */
INLINE void drop(encoder *e, PyObject *v)
{
    suspend(e);
    Py_DECREF(v);
    resume(e);
}

static int append(encoder *e, const char *s, size_t n)
{
    char *w = room(e, n);
    if (w == NULL)
        return -1;
    memcpy(w, s, n);
    return done(e, w + n);
}

/* ---- strings ----------------------------------------------------------------------------------------------------- */

static const char hex_digits[] = "0123456789abcdef";

INLINE char *write_u(char *w, u32 c)
{
    w[0] = '\\';
    w[1] = 'u';
    w[2] = hex_digits[c >> 12 & 15];
    w[3] = hex_digits[c >> 8 & 15];
    w[4] = hex_digits[c >> 4 & 15];
    w[5] = hex_digits[c & 15];
    return w + 6;
}

INLINE char *write_char(char *w, u32 c)
{
    if (likely(c >= ' ' && c <= '~' && c != '\\' && c != '"')) {
        *w = (char)c;
        return w + 1;
    }
    char escape;
    switch (c) {
    case '\\': case '"': escape = (char)c; break;
    case '\b': escape = 'b'; break;
    case '\f': escape = 'f'; break;
    case '\n': escape = 'n'; break;
    case '\r': escape = 'r'; break;
    case '\t': escape = 't'; break;
    default:
        if (c >= 0x10000) {
            c -= 0x10000;
            w = write_u(w, 0xd800 + (c >> 10));
            c = 0xdc00 + (c & 0x3ff);
        }
        return write_u(w, c);
    }
    w[0] = '\\';
    w[1] = escape;
    return w + 2;
}

/* Characters from i on, and the closing quote. Room is made piece by piece: a character can become 12 bytes, but hardly all do. */
NOINLINE int string_rest(encoder *e, PyObject *v, Py_ssize_t i)
{
    enum { PIECE = 1024 };
    int kind = PyUnicode_KIND(v);
    const void *data = PyUnicode_DATA(v);
    Py_ssize_t n = PyUnicode_GET_LENGTH(v);
    while (i < n) {
        Py_ssize_t end = n - i > PIECE ? i + PIECE : n;
        char *w = room(e, (size_t)(end - i) * 12);
        if (w == NULL)
            return -1;
        switch (kind) {
        case PyUnicode_1BYTE_KIND:
            while (i < end) {
                const char *s = (const char *)data + i;
                if (end - i >= 8) {
                    u64 text = load64(s), hit = bytes_to_escape(text);
                    int plain = hit ? first_byte(hit) : 8;
                    store64(w, text);
                    w += plain;
                    s += plain;
                    i += plain;
                    if (!hit)
                        continue;
                }
                w = write_char(w, (unsigned char)*s);
                i++;
            }
            break;
        case PyUnicode_2BYTE_KIND:
            for (; i < end; i++)
                w = write_char(w, ((const Py_UCS2 *)data)[i]);
            break;
        default:
            for (; i < end; i++)
                w = write_char(w, ((const Py_UCS4 *)data)[i]);
        }
        done(e, w);
    }
    return append(e, "\"", 1);
}

/* n < 8 bytes as a word whose other bytes are spaces. Reads no other byte. */
INLINE u64 load_short(const char *s, size_t n)
{
    u64 w;
    if (n >= 4)
        w = load32(s) | (u64)load32(s + n - 4) << (n - 4) * 8;
    else if (n > 0)
        w = (unsigned char)s[0] | (u64)(unsigned char)s[n / 2] << n / 2 * 8 | (u64)(unsigned char)s[n - 1] << (n - 1) * 8;
    else
        w = 0;
    return w | ONES * 0x20 << n * 8;
}

/* An ASCII str of at least 16 characters. */
NOINLINE int encode_long_str(encoder *e, PyObject *v)
{
    const char *s = (const char *)((PyASCIIObject *)v + 1);
    size_t n = (size_t)PyUnicode_GET_LENGTH(v), i = 0;
    char *w = room(e, n + 2);
    if (unlikely(w == NULL))
        return -1;
    *w++ = '"';
    for (;;) {
        vector text = vector_load(s + i);
        vector_store(w + i, text);
        if (unlikely(vector_to_escape(text))) {
            done(e, w + i); /* what is before i is written */
            return string_rest(e, v, (Py_ssize_t)i);
        }
        if (i == n - 16)
            break;
        i = i + 16 <= n - 16 ? i + 16 : n - 16; /* the last one overlaps */
    }
    w[n] = '"';
    return done(e, w + n + 1);
}

/* The text in quotes. v is a str or an instance of a subclass. Nothing behind the text is read: it can end where memory does. */
INLINE int encode_str(encoder *e, PyObject *v)
{
    size_t n = (size_t)PyUnicode_GET_LENGTH(v);
    int ascii = PyUnicode_IS_COMPACT_ASCII(v);
    if (ascii && n > 32) /* shorter ones need no loop */
        return encode_long_str(e, v);
    char *w = room(e, n + 16);
    if (unlikely(w == NULL))
        return -1;
    *w++ = '"';
    if (unlikely(!ascii))
        goto rest;
    const char *s = (const char *)((PyASCIIObject *)v + 1);
    if (n >= 16) {
        vector first = vector_load(s), last = vector_load(s + n - 16);
        vector_store(w, first);
        vector_store(w + n - 16, last);
        if (unlikely(vector_to_escape(first) | vector_to_escape(last)))
            goto rest;
    }
    else if (n >= 8) {
        u64 first = load64(s), last = load64(s + n - 8);
        store64(w, first);
        store64(w + n - 8, last);
        if (unlikely(bytes_to_escape(first) | bytes_to_escape(last)))
            goto rest;
    }
    else {
        u64 text = load_short(s, n);
        store64(w, text);
        if (unlikely(bytes_to_escape(text)))
            goto rest;
    }
    w[n] = '"';
    return done(e, w + n + 1);
rest:
    done(e, w);
    return string_rest(e, v, 0);
}

NOINLINE int encode_str_call(encoder *e, PyObject *v) { return encode_str(e, v); }

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* Eight digits of n < 10^8, the first in the lowest byte: split into fours, twos and ones side by side in one word. The
 * multipliers are reciprocals that are exact in their range: n * 10486 >> 20 is n / 100 below 10^4, n * 103 >> 10 is n / 10 below
 * 10^2. */
INLINE u64 digits_of_8(u32 n)
{
    u64 high = (u64)n * 3518437209u >> 45; /* n / 10000, exact for all 32 bits */
    u64 v = high | (u64)(n - (u32)high * 10000) << 32;
    u64 q = (v * 10486 >> 20) & 0x0000007f0000007fu;
    v = q | (v - q * 100) << 16;
    q = (v * 103 >> 10) & 0x000f000f000f000fu;
    return q | (v - q * 10) << 8;
}

/* n < 10^8 without leading zeros; 8 bytes are written. */
INLINE char *write_upto8(char *w, u32 n)
{
    if (n < 10) {
        *w = (char)('0' + n);
        return w + 1;
    }
    u64 d = digits_of_8(n);
    int skip = first_byte(d);
    store64(w, (d + ONES * '0') >> skip * 8);
    return w + 8 - skip;
}

INLINE char *write_8(char *w, u32 n)
{
    store64(w, digits_of_8(n) + ONES * '0');
    return w + 8;
}

/* n without leading zeros. Room: 24. */
INLINE char *write_uint(char *w, u64 n)
{
    enum { E8 = 100000000 };
    if (likely(n < E8))
        return write_upto8(w, (u32)n);
    u64 high = n / E8;
    if (high < E8)
        w = write_upto8(w, (u32)high);
    else {
        w = write_upto8(w, (u32)(high / E8));
        w = write_8(w, (u32)(high % E8));
    }
    return write_8(w, (u32)(n - high * E8));
}

NOINLINE int encode_big_int(encoder *e, PyObject *v)
{
    int overflow;
    i64 n = PyLong_AsLongLongAndOverflow(v, &overflow);
    if (!overflow) {
        char *w = room(e, 32);
        if (w == NULL)
            return -1;
        if (n < 0)
            *w++ = '-';
        return done(e, write_uint(w, n < 0 ? 0 - (u64)n : (u64)n));
    }
    PyObject *text = PyLong_Type.tp_repr(v);
    if (text == NULL)
        return -1;
    int r = append(e, PyUnicode_DATA(text), (size_t)PyUnicode_GET_LENGTH(text));
    Py_DECREF(text);
    return r;
}

/* v is an int or an instance of a subclass, which counts as its number. */
INLINE int encode_int(encoder *e, PyObject *v)
{
    i64 n;
    if (PyUnstable_Long_IsCompact((PyLongObject *)v))
        n = PyUnstable_Long_CompactValue((PyLongObject *)v);
    else {
        const _PyLongValue *value = &((PyLongObject *)v)->long_value;
        size_t count = value->lv_tag >> NON_SIZE_BITS;
        if (count > 60 / PyLong_SHIFT)
            return encode_big_int(e, v);
        n = 0;
        while (count-- > 0)
            n = n << PyLong_SHIFT | value->ob_digit[count];
        if ((value->lv_tag & SIGN_MASK) == SIGN_NEGATIVE)
            n = -n;
    }
    char *w = room(e, 32);
    if (unlikely(w == NULL))
        return -1;
    u64 u = (u64)n;
    if (n < 0) {
        *w++ = '-';
        u = 0 - u;
    }
    return done(e, write_uint(w, u));
}

/* Digits of a float: d * 10^k. */
typedef struct {
    u64 d;
    int k;
} decimal;

/* The shortest decimal that reads as v, and of those the nearest to v: repr's digits. 0: in doubt, or v is a rare case. v is
 * positive and finite.
 *
 * v = c * 2^q, its neighbours are 2^q away. Let r = 2^q * 10^-k with the k that makes it 1 <= r < 10. In units of 10^k, v is
 * x = c * r, and what is between x - r/2 and x + r/2 reads as v. An interval of that length holds at least one integer and at
 * most one multiple of ten. A multiple of ten is shorter than the other integers, and the only one; without one it is the
 * integer nearest to x, which is inside. Finer decimals are longer.
 * The numbers are kept with 64 bits behind the point. 10^-k is rounded down to 128 bits and c has less than 2^57 with its factor,
 * so x and r/2 are less than 2 units of the last bit too small, and the ends less than 4 off. If no end is that close to an
 * integer and x not that close to a half, every comparison is certain; otherwise (ends that are integers, ties) the answer is 0.
 * At powers of two the neighbour below is nearer, and denormals have no c of 53 bits: 0 as well. */
INLINE int shortest(double v, decimal *result)
{
    u64 bits;
    memcpy(&bits, &v, 8);
    u64 fraction = bits & (((u64)1 << 52) - 1);
    int biased = (int)(bits >> 52);
    if (unlikely(fraction == 0 || biased == 0))
        return 0;
    int q = biased - 1075;
    int k = (int)(((i64)q * 1292913986) >> 32); /* floor(q * log10(2)): log10(2) * 2^32 = 1292913986.03, and |q| < 1100 */
    u64 p_high = pow5[-k - POW5_MIN].high, p_low = pow5[-k - POW5_MIN].low;
    int a = q - k + pow5_exponent(-k); /* r = p * 2^(a - 127), 0 <= a <= 3 */
    u64 c = (fraction | (u64)1 << 52) << (a + 1);
    u64 x, x_frac, low, ignored;
    x = multiply(c, p_high, &x_frac);
    low = multiply(c, p_low, &ignored);
    x_frac += low;
    x += x_frac < low;
    u64 half = a == 0 ? 0 : p_high >> (64 - a), half_frac = a == 0 ? p_high : p_high << a | p_low >> (64 - a);
    u64 from = x - half - (x_frac < half_frac), from_frac = x_frac - half_frac;
    u64 to_frac = x_frac + half_frac, to = x + half + (to_frac < half_frac);
    const u64 doubt = 8;
    u64 middle = x_frac - ((u64)1 << 63);
    if (unlikely(from_frac + doubt < 2 * doubt || to_frac + doubt < 2 * doubt || middle + doubt < 2 * doubt))
        return 0;
    u64 tens = to / 10;
    if (tens * 10 > from) {
        k++;
        while (tens % 10 == 0) {
            tens /= 10;
            k++;
        }
        result->d = tens;
    }
    else
        result->d = x + (x_frac >> 63);
    result->k = k;
    return 1;
}

/* d * 10^k as repr writes it: with an exponent when the first digit is that of 10^16 or more, or of less than 10^-4. Room: 40. */
INLINE char *write_decimal(char *w, decimal n)
{
    char text[32];
    int count = (int)(write_uint(text, n.d) - text), point = count + n.k; /* digits before the point */
    if (point > 16 || point <= -4) {
        *w++ = text[0];
        if (count > 1) {
            *w++ = '.';
            memcpy(w, text + 1, 16); /* digits are 17 at most */
            w += count - 1;
        }
        *w++ = 'e';
        int e = point - 1;
        *w++ = e < 0 ? '-' : '+';
        e = e < 0 ? -e : e;
        if (e >= 100) {
            *w++ = (char)('0' + e / 100);
            e %= 100;
        }
        *w++ = (char)('0' + e / 10);
        *w++ = (char)('0' + e % 10);
        return w;
    }
    if (point <= 0) {
        memcpy(w, "0.000000", 8);
        w += 2 - point;
        memcpy(w, text, 24);
        return w + count;
    }
    if (n.k >= 0) { /* d has less than 17 digits then, and point is up to 16 */
        memcpy(w, text, 24);
        memset(w + count, '0', 16);
        w += point;
        memcpy(w, ".0", 2);
        return w + 2;
    }
    memcpy(w, text, 16);
    w += point;
    *w++ = '.';
    memcpy(w, text + point, 16);
    return w + count - point;
}

/* repr(v); NULL: PyOS_double_to_string must do it. v is finite. Room: 56.
 *
 * Whole numbers and those with up to four decimals are what people write, and quickly found: n < 10^15 and 10^4 are doubles, so
 * n / 10^4 is rounded once, and the test says that the decimal n * 10^-4 reads as v. No two decimals of up to 15 digits read as
 * the same double (DBL_DIG is 15; v is far from the denormals), so it is the only such decimal. repr(v) is the shortest decimal
 * that reads as v: not longer, hence of up to 15 digits too, hence the same number, and without trailing zeros the same digits. */
NOINLINE char *write_double(char *w, double v)
{
    if (signbit(v)) {
        *w++ = '-';
        v = -v;
    }
    if (v < 1e10) {
        i64 whole = (i64)v;
        if (v == (double)whole) {
            w = write_uint(w, (u64)whole);
            memcpy(w, ".0", 2);
            return w + 2;
        }
        i64 n = (i64)(v * 1e4 + 0.5);
        if ((double)n / 1e4 == v && n != 0) { /* then v >= 1e-4 */
            /* v is no integer, so the integers next to it (all doubles) have the decimal between them too. */
            u32 decimals = (u32)(n - whole * 10000);
            w = write_uint(w, (u64)whole);
            *w = '.';
            w[1] = (char)('0' + decimals / 1000);
            w[2] = (char)('0' + decimals / 100 % 10);
            w[3] = (char)('0' + decimals / 10 % 10);
            w[4] = (char)('0' + decimals % 10);
            w += 4;
            while (*w == '0')
                w--;
            return w + 1;
        }
    }
    decimal n;
    return shortest(v, &n) ? write_decimal(w, n) : NULL;
}

/* v is a float or an instance of a subclass, which counts as its number. */
NOINLINE int encode_float(encoder *e, PyObject *o)
{
    double v = PyFloat_AS_DOUBLE(o);
    if (unlikely(!isfinite(v)))
        return isnan(v) ? append(e, "NaN", 3) : v > 0 ? append(e, "Infinity", 8) : append(e, "-Infinity", 9);
    char *w = room(e, 56);
    if (w == NULL)
        return -1;
    char *end = write_double(w, v);
    if (likely(end != NULL))
        return done(e, end);
    char *text = PyOS_double_to_string(v, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (text == NULL)
        return -1;
    int r = append(e, text, strlen(text));
    PyMem_Free(text);
    return r;
}

/* ---- errors ------------------------------------------------------------------------------------------------------ */

/* Where the exception happened, for its note: the containers on the way out add their key or index. */
static void path_begin(encoder *e)
{
    PyObject *error = PyErr_GetRaisedException();
    e->path = PyList_New(0);
    PyErr_Clear();
    PyErr_SetRaisedException(error);
}

/* Takes the reference of step, which may be NULL. */
NOINLINE void path_add(encoder *e, PyObject *step)
{
    PyObject *error = PyErr_GetRaisedException();
    if (e->path != NULL && (step == NULL || PyList_Append(e->path, step) < 0))
        Py_CLEAR(e->path);
    Py_XDECREF(step);
    PyErr_Clear();
    PyErr_SetRaisedException(error);
}

/* The exception gets a note such as: in value['items'][3] */
static void path_end(encoder *e)
{
    PyObject *error = PyErr_GetRaisedException();
    Py_ssize_t n = PyList_GET_SIZE(e->path);
    PyObject *note = n > 0 && n <= 100 ? PyUnicode_FromString("in value") : NULL;
    for (Py_ssize_t i = n; note != NULL && i > 0; i--) {
        PyObject *longer = PyUnicode_FromFormat("%U[%R]", note, PyList_GET_ITEM(e->path, i - 1));
        Py_SETREF(note, longer);
    }
    if (note != NULL)
        Py_XDECREF(PyObject_CallMethodOneArg(error, str_add_note, note));
    Py_XDECREF(note);
    Py_CLEAR(e->path);
    PyErr_Clear();
    PyErr_SetRaisedException(error);
}

static int circular(const frame *up, PyObject *v)
{
    for (; up != NULL; up = up->up)
        if (up->object == v) {
            PyErr_SetString(PyExc_ValueError, "Circular reference detected");
            return -1;
        }
    return 0;
}

/* ---- default: what JSON has no word for -------------------------------------------------------------------------- */

INLINE char *write_2(char *w, int n, char before)
{
    w[0] = before;
    w[1] = (char)('0' + n / 10);
    w[2] = (char)('0' + n % 10);
    return w + 3;
}

static char *write_date(char *w, PyObject *v)
{
    int year = PyDateTime_GET_YEAR(v);
    *w++ = '"';
    *w++ = (char)('0' + year / 1000);
    *w++ = (char)('0' + year / 100 % 10);
    *w++ = (char)('0' + year / 10 % 10);
    *w++ = (char)('0' + year % 10);
    w = write_2(w, PyDateTime_GET_MONTH(v), '-');
    return write_2(w, PyDateTime_GET_DAY(v), '-');
}

/* A date counts as its midnight; "+00:00" is written "Z". */
static int encode_datetime(encoder *e, PyObject *v)
{
    char *w = room(e, 48);
    if (w == NULL)
        return -1;
    if (Py_IS_TYPE(v, PyDateTimeAPI->DateTimeType)) { /* what isoformat writes, for the usual time zones */
        PyObject *zone = PyDateTime_DATE_GET_TZINFO(v);
        if (zone == Py_None || zone == PyDateTime_TimeZone_UTC) {
            w = write_date(w, v);
            w = write_2(w, PyDateTime_DATE_GET_HOUR(v), 'T');
            w = write_2(w, PyDateTime_DATE_GET_MINUTE(v), ':');
            w = write_2(w, PyDateTime_DATE_GET_SECOND(v), ':');
            int us = PyDateTime_DATE_GET_MICROSECOND(v);
            if (us != 0) {
                *w++ = '.';
                store64(w, (digits_of_8((u32)us) + ONES * '0') >> 16);
                w += 6;
            }
            if (zone != Py_None)
                *w++ = 'Z';
            *w++ = '"';
            return done(e, w);
        }
    }
    else if (PyDate_Check(v) && !PyDateTime_Check(v)) {
        w = write_date(w, v);
        memcpy(w, "T00:00:00\"", 10);
        return done(e, w + 10);
    }
    suspend(e);
    PyObject *text = PyObject_CallMethodNoArgs(v, str_isoformat);
    resume(e);
    if (text == NULL)
        return -1;
    if (!PyUnicode_Check(text)) {
        PyErr_Format(PyExc_TypeError, "isoformat of %.100s returned %.100s", Py_TYPE(v)->tp_name, Py_TYPE(text)->tp_name);
        Py_DECREF(text);
        return -1;
    }
    Py_ssize_t n = PyUnicode_GET_LENGTH(text), utc = PyUnicode_Tailmatch(text, str_utc, 0, n, 1);
    if (utc > 0) {
        PyObject *local = PyUnicode_Substring(text, 0, n - 6);
        PyObject *z = local != NULL ? PyUnicode_FromFormat("%UZ", local) : NULL;
        Py_XDECREF(local);
        Py_SETREF(text, z);
    }
    int r = text != NULL && utc >= 0 ? encode_str_call(e, text) : -1;
    Py_XDECREF(text);
    return r;
}

/* Is v an instance of a class that has to be imported to have instances? */
static int is_instance(PyObject *v, PyObject **class, const char *module, const char *name)
{
    if (unlikely(*class == NULL)) {
        PyObject *modules = PyImport_GetModuleDict(); /* borrowed */
        PyObject *m = modules != NULL && PyDict_Check(modules) ? Py_XNewRef(PyDict_GetItemString(modules, module)) : NULL;
        if (m == NULL)
            return 0;
        *class = PyObject_GetAttrString(m, name);
        Py_DECREF(m);
        if (*class != NULL && !PyType_Check(*class))
            Py_CLEAR(*class);
        if (*class == NULL) {
            PyErr_Clear();
            return 0;
        }
    }
    return PyObject_TypeCheck(v, (PyTypeObject *)*class);
}

static PyObject *unencodable(encoder *e, PyObject *v)
{
    PyObject *name = PyType_GetName(Py_TYPE(v));
    if (name != NULL) {
        PyErr_Format(PyExc_TypeError, "Object of type %U is not JSON serializable", name);
        Py_DECREF(name);
    }
    path_begin(e);
    return NULL;
}

/* What default returns for v: a new reference, or NULL with an exception. The order of the questions is the original's. */
NOINLINE PyObject *instead_of(encoder *e, PyObject *v)
{
    if (PyBytes_Check(v) || is_instance(v, &class_decimal, "decimal", "Decimal") || is_instance(v, &class_uuid, "uuid", "UUID"))
        return PyObject_Str(v);
    if (is_instance(v, &class_enum, "enum", "Enum"))
        return PyObject_GetAttr(v, str_value);
    if (PySet_Check(v) || is_instance(v, &class_deque, "collections", "deque"))
        return PySequence_List(v);
    PyObject *method, *result;
    if (PyObject_GetOptionalAttr(v, str_json, &method) < 0)
        return NULL;
    if (method == NULL || method == Py_None) {
        Py_XDECREF(method);
        return unencodable(e, v);
    }
    result = PyObject_CallNoArgs(method);
    Py_DECREF(method);
    return result;
}

NOINLINE int encode_default(encoder *e, PyObject *v, const frame *up)
{
    if (circular(up, v) < 0)
        return -1;
    /* No class derives from one of the datetime module and from one that is asked about before it: the order is kept. */
    if (PyDate_Check(v) || PyTime_Check(v))
        return encode_datetime(e, v);
    suspend(e);
    PyObject *instead = instead_of(e, v);
    resume(e);
    if (instead == NULL)
        return -1;
    int r = -1;
    if (_Py_EnterRecursiveCallTstate(e->ts, " while encoding a JSON object") == 0) {
        frame here = {up, v};
        r = encode(e, instead, &here);
        _Py_LeaveRecursiveCallTstate(e->ts);
    }
    drop(e, instead);
    return r;
}

/* ---- containers -------------------------------------------------------------------------------------------------- */

/* Two bytes at most. No check: room() leaves SLACK behind everything, and punctuation and text alternate. */
INLINE void separate(encoder *e, const char *s, u32 len)
{
    memcpy(e->w, s, 2);
    e->w += len;
}

INLINE int bracket(encoder *e, char c)
{
    char *w = room(e, 1);
    if (unlikely(w == NULL))
        return -1;
    *w = c;
    return done(e, w + 1);
}

INLINE int encode_word(encoder *e, const char *word, size_t n)
{
    char *w = room(e, 8);
    if (unlikely(w == NULL))
        return -1;
    memcpy(w, word, 8);
    return done(e, w + n);
}

/* Values that need no reference and run no code of others. 1: not one of them. */
INLINE int encode_simple(encoder *e, PyObject *v)
{
    PyTypeObject *type = Py_TYPE(v);
    if (type == &PyUnicode_Type)
        return encode_str(e, v);
    if (type == &PyLong_Type)
        return encode_int(e, v);
    if (type == &PyFloat_Type)
        return encode_float(e, v);
    if (v == Py_None)
        return encode_word(e, "null    ", 4);
    if (v == Py_True)
        return encode_word(e, "true    ", 4);
    if (v == Py_False)
        return encode_word(e, "false   ", 5);
    return 1;
}

NOINLINE int encode_list(encoder *e, PyObject *v, const frame *up)
{
    suspend(e);
    PyObject *items = PySequence_Fast(v, "not a sequence"); /* v itself, or a list of what a subclass iterates over */
    resume(e);
    if (items == NULL)
        return -1;
    if (PySequence_Fast_GET_SIZE(items) == 0) {
        Py_DECREF(items);
        return append(e, "[]", 2);
    }
    int r = -1;
    if (circular(up, v) < 0 || bracket(e, '[') < 0)
        goto out;
    frame here = {up, v};
    /* The size is asked each time: code that runs for an item may change the list. */
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        if (i > 0)
            separate(e, e->comma, e->comma_len);
        r = encode_simple(e, item);
        if (r > 0) {
            Py_INCREF(item);
            r = encode(e, item, &here);
            drop(e, item);
        }
        if (unlikely(r < 0)) {
            if (e->path != NULL)
                path_add(e, PyLong_FromSsize_t(i));
            goto out;
        }
    }
    r = bracket(e, ']');
out:
    drop(e, items);
    return r;
}

NOINLINE int encode_key_other(encoder *e, PyObject *key)
{
    if (PyUnicode_Check(key))
        return encode_str(e, key);
    int number = PyLong_Check(key) && !PyBool_Check(key), r;
    if (!number && !PyFloat_Check(key) && key != Py_None && !PyBool_Check(key)) {
        PyErr_Format(PyExc_TypeError, "keys must be str, int, float, bool or None, not %.100s", Py_TYPE(key)->tp_name);
        path_begin(e);
        return -1;
    }
    if (bracket(e, '"') < 0)
        return -1;
    if (PyFloat_Check(key))
        r = encode_float(e, key);
    else
        r = number ? encode_int(e, key) : encode_simple(e, key);
    return r < 0 ? -1 : bracket(e, '"');
}

/* The text of interned keys, with the comma before and the colon behind them, in pairs of places by address. An entry holds a
 * reference, so nothing else gets that address. */
enum { KEY_TEXTS = 256, KEY_TEXT_MAX = 40 };
typedef struct {
    PyObject *key; /* owned, NULL: free */
    unsigned char len, comma_len, turn;
    char text[KEY_TEXT_MAX + 16];
} key_text;
static key_text key_texts[2 * KEY_TEXTS];

INLINE key_text *key_text_of(PyObject *key) { return &key_texts[((u32)((uintptr_t)key >> 3) * 2654435769u >> 24) * 2]; }

/* A key that is interned, or no exact str. */
NOINLINE int encode_key(encoder *e, PyObject *key, int first)
{
    if (!first)
        separate(e, e->comma, e->comma_len);
    size_t start = (size_t)(e->w - e->out->data);
    if ((PyUnicode_CheckExact(key) ? encode_str(e, key) : encode_key_other(e, key)) < 0)
        return -1;
    separate(e, e->colon, e->colon_len);
    size_t len = (size_t)(e->w - e->out->data) - start;
    if (PyUnicode_CheckExact(key) && PyUnicode_CHECK_INTERNED(key) && e->comma_len + len <= KEY_TEXT_MAX) {
        key_text *t = key_text_of(key);
        if (t->key != NULL && t->key != key)
            t += (t[1].key == NULL || t[1].key == key) ? 1 : t->turn++ & 1;
        Py_XSETREF(t->key, Py_NewRef(key)); /* the old one is an exact str: no code of others runs */
        t->len = (unsigned char)(e->comma_len + len);
        t->comma_len = (unsigned char)e->comma_len;
        memcpy(t->text, e->comma, e->comma_len);
        memcpy(t->text + e->comma_len, e->out->data + start, len);
    }
    return 0;
}

/* One member. Only a value that is not simple needs references: nothing else runs code that could drop the last one. */
INLINE int encode_member(encoder *e, PyObject *key, PyObject *v, int first, const frame *here)
{
    const key_text *t = key_text_of(key);
    if (unlikely(t->key != key))
        t++;
    if (likely(t->key == key && t->comma_len == e->comma_len)) {
        char *w = room(e, KEY_TEXT_MAX + 16);
        if (unlikely(w == NULL))
            return -1;
        size_t skip = first ? t->comma_len : 0;
        const char *text = t->text + skip;
        size_t n = t->len - skip;
        vector_store(w, vector_load(text));
        if (n > 16) { /* no loop: the host puts a check into each */
            vector_store(w + 16, vector_load(text + 16));
            if (n > 32)
                vector_store(w + 32, vector_load(text + 32));
        }
        done(e, w + n);
    }
    else if (encode_key(e, key, first) < 0)
        return -1;
    int r = encode_simple(e, v);
    if (r > 0) {
        Py_INCREF(key);
        Py_INCREF(v);
        r = encode(e, v, here);
        if (r < 0 && e->path != NULL)
            path_add(e, Py_NewRef(key));
        drop(e, v);
        drop(e, key);
    }
    return r;
}

/* PyDict_Next, for the usual case without the call. Good for a dict that changes between two calls. */
INLINE int next_member(PyObject *v, Py_ssize_t *pos, PyObject **key, PyObject **value)
{
    PyDictObject *dict = (PyDictObject *)v;
    PyDictKeysObject *keys = dict->ma_keys;
    if (unlikely(dict->ma_values != NULL || !DK_IS_UNICODE(keys)))
        return PyDict_Next(v, pos, key, value);
    if (*pos >= keys->dk_nentries)
        return 0;
    PyDictUnicodeEntry *entry = &DK_UNICODE_ENTRIES(keys)[*pos];
    if (unlikely(entry->me_value == NULL)) /* deleted */
        return PyDict_Next(v, pos, key, value);
    *key = entry->me_key;
    *value = entry->me_value;
    ++*pos;
    return 1;
}

NOINLINE int encode_dict(encoder *e, PyObject *v, const frame *up)
{
    if (PyDict_GET_SIZE(v) == 0)
        return append(e, "{}", 2);
    if (circular(up, v) < 0 || bracket(e, '{') < 0)
        return -1;
    frame here = {up, v};
    PyObject *key, *value;
    if (PyDict_CheckExact(v)) {
        int first = 1;
        for (Py_ssize_t pos = 0; next_member(v, &pos, &key, &value); first = 0)
            if (unlikely(encode_member(e, key, value, first, &here) < 0))
                return -1;
        return bracket(e, '}');
    }
    suspend(e);
    PyObject *items = PyMapping_Items(v);
    resume(e);
    if (items == NULL)
        return -1;
    int r = 0;
    for (Py_ssize_t i = 0; r == 0 && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
            PyErr_SetString(PyExc_ValueError, "items must return 2-tuples");
            r = -1;
            break;
        }
        Py_INCREF(item); /* items may be a list that others know */
        r = encode_member(e, PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1), i == 0, &here);
        drop(e, item);
    }
    drop(e, items);
    return r < 0 ? -1 : bracket(e, '}');
}

/* The caller holds a reference of v. */
NOINLINE int encode(encoder *e, PyObject *v, const frame *up)
{
    int r = encode_simple(e, v);
    if (r <= 0)
        return r;
    /* These four exclude each other (their layouts do); float is last, its check is a call. */
    int list = PyList_Check(v) || PyTuple_Check(v);
    if (!list && !PyDict_Check(v)) {
        if (PyUnicode_Check(v))
            return encode_str_call(e, v);
        if (PyLong_Check(v))
            return encode_int(e, v);
        if (PyFloat_Check(v))
            return encode_float(e, v);
        return encode_default(e, v, up);
    }
    if (_Py_EnterRecursiveCallTstate(e->ts, " while encoding a JSON object"))
        return -1;
    r = list ? encode_list(e, v, up) : encode_dict(e, v, up);
    _Py_LeaveRecursiveCallTstate(e->ts);
    return r;
}

int kjson_encode(PyObject *v, kbuf *out, int compact)
{
    encoder e = {.out = out, .ts = PyThreadState_Get(), .comma = {',', ' '}, .colon = {':', ' '}};
    e.comma_len = e.colon_len = compact ? 1 : 2;
    size_t len = out->len;
    Py_INCREF(v);
    resume(&e);
    int r = encode(&e, v, NULL);
    suspend(&e);
    Py_DECREF(v);
    if (unlikely(r < 0)) {
        out->len = len;
        if (e.path != NULL)
            path_end(&e);
    }
    return r;
}

/* ================================================================================================================== */
/* Module                                                                                                             */
/* ================================================================================================================== */

int kjson_init(void)
{
    if (json_loads != NULL)
        return 0;
    PyDateTime_IMPORT;
    if (PyDateTimeAPI == NULL)
        return -1;
    check_allocators();
    if (pow5_init() < 0)
        Py_FatalError("kjson: pow5_exponent");
    if ((empty_str = PyUnicode_New(0, 0)) == NULL)
        return -1;
    for (int c = 0; c < 128; c++)
        if ((one_char[c] = PyUnicode_FromOrdinal(c)) == NULL)
            return -1;
    str_json = PyUnicode_InternFromString("__json__");
    str_value = PyUnicode_InternFromString("value");
    str_isoformat = PyUnicode_InternFromString("isoformat");
    str_add_note = PyUnicode_InternFromString("add_note");
    str_utc = PyUnicode_FromString("+00:00");
    if (str_utc == NULL || str_json == NULL || str_value == NULL || str_isoformat == NULL || str_add_note == NULL)
        return -1;
    PyObject *json = PyImport_ImportModule("json");
    if (json == NULL)
        return -1;
    json_loads = PyObject_GetAttrString(json, "loads");
    Py_DECREF(json);
    return json_loads == NULL ? -1 : 0;
}

static PyObject *module_loads(PyObject *module, PyObject *doc)
{
    (void)module;
    if (PyBytes_CheckExact(doc)) {
        PyObject *v = decode(PyBytes_AS_STRING(doc), (size_t)PyBytes_GET_SIZE(doc), 1);
        return v != NULL || PyErr_Occurred() ? v : ask_json(doc);
    }
    if (PyUnicode_Check(doc))
        return decode_str(doc);
    if (!PyObject_CheckBuffer(doc))
        return ask_json(doc); /* raises the TypeError */
    Py_buffer buffer;
    if (PyObject_GetBuffer(doc, &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *v = kjson_decode(buffer.buf, buffer.len);
    PyBuffer_Release(&buffer);
    return v;
}

/* One buffer is kept for dumps; a dumps inside of a dumps (in __json__) makes its own. */
static kbuf kept_out;

static PyObject *module_dumps(PyObject *module, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    (void)module;
    int compact = 0;
    Py_ssize_t named = names != NULL ? PyTuple_GET_SIZE(names) : 0;
    if (n < 1 || n + named > 2) {
        PyErr_SetString(PyExc_TypeError, "dumps(obj, compact=False)");
        return NULL;
    }
    if (named == 1 && !PyUnicode_EqualToUTF8(PyTuple_GET_ITEM(names, 0), "compact")) {
        PyErr_Format(PyExc_TypeError, "dumps() got an unexpected keyword argument %R", PyTuple_GET_ITEM(names, 0));
        return NULL;
    }
    if (n + named == 2 && (compact = PyObject_IsTrue(args[1])) < 0)
        return NULL;
    kbuf out = kept_out;
    memset(&kept_out, 0, sizeof kept_out);
    out.len = 0;
    PyObject *result = NULL;
    if (kjson_encode(args[0], &out, compact) == 0)
        result = PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.len);
    if (kept_out.data == NULL && out.cap <= TEXT_KEPT)
        kept_out = out;
    else
        kbuf_free(&out);
    return result;
}

static PyObject *module_stats(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    return Py_BuildValue("{s:n,s:n,s:n,s:n}", "fallbacks", (Py_ssize_t)stat_fallback, "fallbacks_accepted",
                         (Py_ssize_t)stat_fallback_accepted, "shapes", (Py_ssize_t)shape_count, "shapes_refused",
                         (Py_ssize_t)shape_refused);
}

static PyObject *module_forget(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    for (int i = 0; i < KEYS; i++)
        Py_CLEAR(key_cache[i].key);
    for (int i = 0; i < SHORT_STRINGS; i++) {
        short_strings[i].text = 0;
        Py_CLEAR(short_strings[i].v);
    }
    for (int i = 0; i < 2 * KEY_TEXTS; i++)
        Py_CLEAR(key_texts[i].key);
    if (shapes_reset() < 0)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"loads", module_loads, METH_O, "loads(doc): json.loads, for bytes, bytearray, memoryview and str."},
    {"dumps", (PyCFunction)(void (*)(void))module_dumps, METH_FASTCALL | METH_KEYWORDS,
     "dumps(obj, compact=False) -> bytes: the encoding of json values; see kjson.c."},
    {"_stats", module_stats, METH_NOARGS, "Counters, for tests."},
    {"_forget", module_forget, METH_NOARGS, "Empties what is kept between calls, for tests."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_kjson",
    .m_doc = "The JSON codec of the guest.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__kjson(void)
{
    if (kjson_init() < 0)
        return NULL;
    return PyModule_Create(&module_def);
}

#ifdef __wasm__
#pragma clang attribute pop
#endif
