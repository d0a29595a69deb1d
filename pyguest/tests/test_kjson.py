"""The JSON codec against stock json: a difference here is a record that decodes to another value, fails in another way, or a key that hashes
to another partition.

    PYTHON=<native python 3.13> tests/run_kjson_native.sh [--san] [--seed N] [--cases N] [NAME...]

Random tests print the seed that replays them. NAMEs are parts of test names.
"""

import argparse
import codecs
import collections
import datetime
import decimal
import enum
import gc
import json
import math
import random
import struct
import sys
import time
import traceback
import types
import uuid
import zoneinfo

import _kjson

SEED = 0
CASES = 0


# ---- comparing -------------------------------------------------------------------------------------------------------


def outcome(f, *args):
    """What a call did: its value in a form that tells 1 from 1.0 and True, or everything a caller can see of its exception."""
    try:
        v = f(*args)
    except RecursionError as e:
        return ("RecursionError", str(e))
    except json.JSONDecodeError as e:
        return ("JSONDecodeError", str(e), e.msg, e.pos, e.lineno, e.colno, e.doc)
    except UnicodeDecodeError as e:
        return ("UnicodeDecodeError", str(e), e.object, e.start, e.end)
    except Exception as e:
        return (type(e).__name__, str(e))
    return ("value", type(v).__name__, v if isinstance(v, bytes) else repr(v))


def same_decode(doc):
    want = outcome(json.loads, doc)
    got = outcome(_kjson.loads, doc)
    assert got == want, f"loads({doc!r}):\n  json  {want!r}\n  kjson {got!r}"
    return want[0]


def original_default(o):
    """Section 3 of the serializers: how values that JSON does not know are written."""
    if isinstance(o, (decimal.Decimal, uuid.UUID, bytes)):
        return str(o)
    if isinstance(o, (datetime.date, datetime.time)):
        if not isinstance(o, (datetime.datetime, datetime.time)):
            o = datetime.datetime(o.year, o.month, o.day)
        text = o.isoformat()
        return text[:-6] + "Z" if text.endswith("+00:00") else text
    if isinstance(o, enum.Enum):
        return o.value
    if isinstance(o, (set, collections.deque)):
        return list(o)
    method = getattr(o, "__json__", None)
    if method is not None:
        return method()
    raise TypeError(f"Object of type {type(o).__name__} is not JSON serializable")


def stock_dumps(v, compact=False):
    return json.dumps(v, default=original_default, separators=(",", ":") if compact else None).encode()


def same_encode(v):
    for compact in (False, True):
        want = outcome(stock_dumps, v, compact)
        got = outcome(_kjson.dumps, v, compact)
        assert got == want, f"dumps({v!r}, compact={compact}):\n  json  {want!r}\n  kjson {got!r}"
    return want[0]


def raises(kind, text, f, *args):
    try:
        f(*args)
    except kind as e:
        assert text in str(e), f"{text!r} not in {e!r}"
        return e
    raise AssertionError(f"no {kind.__name__}")


# ---- decoding --------------------------------------------------------------------------------------------------------

VALID = r"""
null
true
false
0
-0
1
-1
10
123456789
12345678
1234567890123456
123456789012345678
-123456789012345678
999999999999999999
1000000000000000000
9223372036854775807
9223372036854775808
-9223372036854775808
-9223372036854775809
18446744073709551616
100000000000000000000000000000000000000000000000000
0.0
-0.0
0.5
1.0
12.34
-12.34
0.1
0.30000000000000004
0.000001
1e0
1E5
1e+5
1e-5
1.5e300
1e22
1e23
9007199254740993.0
9007199254740992.5
9007199254740993e0
1e308
1.7976931348623157e308
1.7976931348623159e308
1e309
-1e999
1e-323
5e-324
2e-324
1e-999
123456789012345678901234567890.123456789
0.00000000000000000000000000000000000000000000000001
0.12345678901234567890
1234567890123456789.5
12345678901234567890.5
0e5
0.0e-5
1e0000000000000005
1e99999999999999999999
2.2250738585072011e-308
179769313486231580793728971405301e277
NaN
Infinity
-Infinity
[NaN, Infinity, -Infinity]
""
"a"
"ab"
"abcdefg"
"abcdefgh"
"abcdefghi"
"é"
"aé"
"日本語"
"😀"
"abcdefghé"
"\""
"\\"
"\/"
"/"
"\b\f\n\r\t"
"\u0041"
"\u00e9"
"\u00E9\u65e5"
"\u0000"
"\ud83d\ude00"
"\uD83D\uDE00"
"\ud83d"
"\ude00"
"\ud83d\ud83d\ude00"
"\ud83dx"
"\ud83d\n"
"\ud83d\u0041"
"\ude00\ud83d"
"x\ud83d😀"
"\u007f"
"1234567\n"
"12345678\n"
"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\u0041é\\aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[]
[ ]
[[]]
[{}]
[1]
[1,2]
[ 1 , 2 ]
{}
{ }
{"a":1}
{ "a" : 1 }
{"a":1,"b":2}
{"a": 1, "b": 2}
{"a":1,"a":2}
{"a":1,"b":2,"a":3}
{"":0}
{"":0,"a":{"":1}}
{"é":1}
{"\u0061":1}
{"\u0061":1,"a":2}
{"a\"b":1}
{"a\\":1}
{"\ud800":1}
{"a":{"a":{"a":{"a":{}}}}}
{"abcdefg":1,"abcdefgh":2,"abcdefghi":3,"abcdefghijklmnop":4,"abcdefghijklmnopq":5}
{"a":[],"b":{},"c":"","d":null,"e":true,"f":false,"g":1.5,"h":-3}
""".strip("\n").split("\n") + [
    " 1 ", "\t1\n", "\r\n[\r\n1\r\n,\r\n2\r\n]\r\n", '{\n  "a": 1,\n  "b": [\n    1,\n    2\n  ]\n}', '"\x7f"', '"\u2028\u2029"', " " * 100 + "1" + " " * 100,
    '{"a"  :  1  ,  "b"  :  2  }', '"' + "x" * 100 + '"', '{"' + "k" * 63 + '":1}', '{"' + "k" * 64 + '":1}', '{"' + "k" * 65 + '":1}', "[" + "1," * 999 + "1]",
    "{" + ",".join(f'"k{i}":{i}' for i in range(200)) + "}", "[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500, "1" * 4300, "-" + "1" * 4300, "1" * 4000 + ".5",
]

INVALID = r"""
 
tru
trueX
True
nul
nulll
fals
-
--1
+1
01
-01
00
1.
.5
-.5
1.e5
1e
1e+
1e-
1.5e
1.5.5
0x10
1_000
1 2
NaNN
nan
-NaN
Infinit
-Infinit
-infinity
Infinityy
inf
"
"a
"\
"\"
"\x"
"\u"
"\u12"
"\u123"
"\u123g"
"\u 123"
"\u+123"
"\u-123"
"\u0x12"
"\ud83d\u"
"\ud83d\u12"
"\ud83d\uzzzz"
"\ud83d\
"a"b
'a'
[
[1
[1,
[1,]
[,1]
[1 2]
[1,,2]
[1}
]
[]]
[[]
{
{"a"
{"a":
{"a":1
{"a":1,
{"a":1,}
{,"a":1}
{"a" 1}
{"a":1 "b":2}
{"a":1,,"b":2}
{a:1}
{1:1}
{"a":1]
}
{}}
{"a":}
{"a"::1}
{"a":1,"b"}
{"a":1,b}
[1,2
{"a":[1,2}
/* c */ 1
1 // c
[1]x
{"a":1}x
"a" "b"
nullnull
""".strip("\n").split("\n") + [
    "", "\x00", "12345\x00", "[1\x00]", '"\x00"', '"a\nb"', '"a\tb"', '"\x1f"', '"12345678\x1f"', '{"a\nb":1}', '{"a":"\x01"}', "\x0b1", "\x0c1", "\xa01", "1\xa0", "\u20281", "[1,\u00a02]",
    "\ufeff", "é", "[é]", '{"a":é}', '{é":1}', "1é", "t\u0435st", "\n\n\n  x", '{\n"a": 1,\n"b" 2}', "1" * 4301, "-" + "1" * 4301, "[" + "1" * 5000 + ",", "é" * 3 + "x",
    '["é", "日本", x]', '{"é": 1, "日本": x}', '"' + "é" * 10 + "\n", "[" * 600, '{"a":' * 600, "[" * 300 + "]" * 299,
]

INVALID_UTF8 = [
    b'"\xff"', b'"\xc3"', b'"\xc3(', b'"\xe6\x97"', b'"\xf0\x9f\x98"', b'"\xc0\x80"', b'"\xe0\x80\x80"', b'"\xf4\x90\x80\x80"', b'"\xf8\x88\x80\x80\x80"', b'"\x80"', b"\xff", b"\xc3\xa9", b"[1,\xc3]",
    b'{"\xff": 1}', b'{"a": 1, "\xff": 1', b"x\xff", b'"\xed\xa0\x80"', b'"\xed\xa0\xbd\xed\xb8\x80"', b'"\xed\xb8\x80"', b'{"\xed\xa0\x80":1}', b'"\\ud83d\xed\xb8\x80"', b'"\xed\xa0\xbd\\ude00"', b'"12345678\xed\xa0\x80"', b'"\xed\xa0"',
    b"\xef\xbb\xbf1", b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf1", b"\xef\xbb\xbf[1,", b"\xef\xbb\xbf\xc3\xa9", b"\xef\xbb\xbf" + b'{"a": "\xc3\xa9"}', b"\xef\xbb1", b"\xef", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe1\x00", b"\xff\xfe\x00\x00",
    b"1\x00", b"\x001", b"1\x00\x00\x00", b"\x00\x00\x001", b"\x00\x00", b"\x00", b"[\x001\x00]\x00", b"\x00[\x001\x00]", b'{"a":1}\x00', b"1\x00\x00", b'"\x00"', b"1" * 4301 + b"\xff", b"1" * 4301 + b" x", b"[1e5, \xff",
]


def test_decode_tables():
    """Every edge of the grammar, as bytes, bytearray and str, and in the encodings json.loads detects."""
    for doc in VALID:
        before = _kjson._stats()["fallbacks"]
        assert same_decode(doc.encode()) == "value", doc
        assert same_decode(doc) == "value", doc
        assert same_decode(bytearray(doc.encode())) == "value", doc
        assert _kjson._stats()["fallbacks"] == before, f"not decoded by kjson itself: {doc!r}"
    for doc in INVALID:
        assert same_decode(doc.encode()) != "value", doc
        assert same_decode(doc) != "value", doc
    for doc in VALID + INVALID:
        for encoding in ("utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            same_decode(doc.encode(encoding))
    for doc in INVALID_UTF8:
        same_decode(doc)
    assert same_decode("\ufeff1") == "JSONDecodeError"


def test_decode_prefixes_and_wrapping():
    """A cut document fails as in json; a value means the same at the root, in a list and in an object."""
    for doc in VALID:
        if len(doc) < 300:
            for i in range(len(doc)):
                same_decode(doc[:i].encode())
    for doc in VALID + INVALID:
        if len(doc) < 3000:
            for form in ("[%s]", '{"k":%s}', '{"k": %s, "l": [%s]}', "[1,%s,2]", " %s", "%s,", '["é",%s]', "%s%s"):
                same_decode(form.replace("%s", doc).encode())


def test_decode_input_types():
    """What is no text fails as in json; a memoryview, which json refuses, is taken as bytes."""
    for doc in (None, 1, [], object(), 1.5):
        same_decode(doc)
    assert _kjson.loads(memoryview(b"xx[1, 2]xx")[2:-2]) == [1, 2]
    raises(json.JSONDecodeError, "Expecting value: line 1 column 1 (char 0)", _kjson.loads, memoryview(b"x"))
    raises(BufferError, "", _kjson.loads, memoryview(b"1 1 1")[::2])

    class Text(str):
        pass

    class Bytes(bytes):
        pass

    for doc in (Text("[1]"), Text("[é"), Bytes(b"[1]"), Bytes(b"[x")):
        same_decode(doc)


def test_decode_bytes_in_the_middle_of_others():
    """The glue decodes slices of a batch: what stands behind the document must not be read as part of it."""
    for doc in [d.encode() for d in VALID if len(d) < 200]:
        for behind in (b"1", b'"', b"]", b"e5", b".5", b"\x00", b"\\"):
            room = b'"[' + doc + behind
            assert outcome(_kjson.loads, memoryview(room)[2 : 2 + len(doc)]) == outcome(json.loads, doc), (doc, behind)


def test_decode_depth():
    """What json decodes is decoded, and two levels deeper is a RecursionError."""
    for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")):

        def deepest(f):
            low, high = 1, 60000
            while low < high:
                n = (low + high + 1) // 2
                middle = "1"
                try:
                    f(opening * n + middle + closing * n)
                    low = n
                except RecursionError:
                    high = n - 1
            return low

        want = deepest(json.loads)
        assert want < 60000
        assert 0 <= deepest(_kjson.loads) - want <= 1
        assert same_decode(opening * 100000) == "RecursionError"
        assert same_decode(opening * (want + 2) + "1" + closing * (want + 2)) == "RecursionError"
        assert same_decode((opening * 100000).encode() + b"\xff") == "UnicodeDecodeError"
    assert same_decode("[" * 5 + "]" * 5) == "value"


def test_decode_int_digits_limit():
    """The limit on int digits is the interpreter's."""
    old = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(640)
        assert same_decode(b"[" + b"1" * 641 + b"]") == "ValueError"
        assert same_decode(b"[" + b"1" * 640 + b"]") == "value"
        assert same_encode([10**640 - 1]) == "value"
        assert same_encode([10**640]) == "ValueError"
        assert same_encode({10**640: 1}) == "ValueError"
    finally:
        sys.set_int_max_str_digits(old)


def test_decode_inside_of_decode():
    """An error handler of the user runs in the middle of a document, and decodes another one."""
    stock = codecs.lookup_error("surrogatepass")
    inner = b'{"' + b"k" * 30 + b'": [' + b'"x", ' * 5000 + b'"\xed\xa0\x80"]}'

    def handler(e):
        if len(e.object) < 100:
            _kjson.loads(inner)
        return stock(e)

    doc = b'[{"a": [1, 2, "abcdefghijkl"], "b": "\xed\xa0\x80"}, "\xed\xb0\x80"]'
    codecs.register_error("surrogatepass", handler)
    try:
        for _ in range(3):
            assert _kjson.loads(doc) == [{"a": [1, 2, "abcdefghijkl"], "b": "\ud800"}, "\udc00"]
    finally:
        codecs.register_error("surrogatepass", stock)
    assert same_decode(doc) == "value"


def test_decode_results_are_ordinary_objects():
    """Decoded dicts and lists behave as others do when they are changed, copied, compared, iterated and collected."""
    doc = b'{"a": 1, "b": {"c": [1, 2]}, "d": "x", "e": null}'
    for _ in range(4):
        v = _kjson.loads(doc)
        w = json.loads(doc)
        assert v == w and list(v.items()) == list(w.items())
        for d in (v, w):
            d["new"] = 1
            del d["a"]
            d["b"]["c"].append(d)
            d.setdefault("f", 2)
            d["d"] += "y"
        del d
        assert list(v) == list(w)
        assert dict(v).keys() == w.keys() and v.copy().keys() == w.keys() and (v | {"z": 1})["z"] == 1
        assert sys.getrefcount(v) == sys.getrefcount(w)
        assert gc.is_tracked(v) and gc.is_tracked(v["b"])
        for i in range(100):
            v[f"k{i}"] = i
        for i in range(100):
            assert v.pop(f"k{i}") == i
        v.clear()
        assert v == {} and _kjson.loads(doc) == json.loads(doc)
    v = _kjson.loads(b'{"x": 1, "y": "z"}')
    v["self"] = v
    finished = []

    class Witness:
        def __del__(self):
            finished.append(1)

    v["w"] = Witness()
    del v
    gc.collect()
    assert finished == [1], "a cycle through a decoded dict was not collected"
    a = [_kjson.loads(b'{"p": "q", "r": 1}') for _ in range(3)]
    a[0]["p"] = 5
    assert a[1] == {"p": "q", "r": 1} == a[2], "two dicts share something"
    next(iter(a[1]))
    f = lambda **kw: kw
    assert f(**a[1]) == a[1]
    namespace = types.SimpleNamespace(**a[2])
    assert namespace.p == "q"


def test_decode_many_shapes():
    """More kinds of objects than the decoder keeps shapes for, and objects used as maps."""
    r = random.Random(SEED)
    for _ in range(CASES):
        n = r.choice((1, 2, 3, 5, 6, 10, 11, 20, 70))
        keys = [r.choice(("k", "key", "a-longer-key-than-a-word", "é")) + str(r.randrange(r.choice((4, 50, 100000)))) for _ in range(n)]
        doc = "{" + ",".join(f'"{k}":{i}' for i, k in enumerate(keys)) + "}"
        assert list(_kjson.loads(doc).items()) == list(json.loads(doc).items()), doc
    assert _kjson._stats()["shapes"] <= 1024
    for i in range(10000):  # known keys that come in any order
        keys = r.sample(range(100), 3)
        doc = "{" + ",".join(f'"known{k}":{i}' for k in keys) + "}"
        assert list(_kjson.loads(doc).items()) == list(json.loads(doc).items()), doc
    assert _kjson._stats()["shapes"] <= 1024


def random_text(r):
    n = r.choice((0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 30, 100))
    alphabet = r.choice(("abc", "abcdefghijklmnopqrstuvwxyz0123456789 _-", 'a"\\/\b\f\n\r\t\x00\x1f\x7f', "aé\xffĀ", "日本語ab", "a😀é日", "\ud800\udfff\udc00a", "".join(map(chr, range(0x180)))))
    return "".join(r.choice(alphabet) for _ in range(n))


def random_float(r):
    kind = r.randrange(8)
    if kind == 0:
        return struct.unpack("<d", r.getrandbits(64).to_bytes(8, "little"))[0]
    if kind == 1:
        return round(r.uniform(-1000, 1000), r.randrange(6))
    if kind == 2:
        return r.randrange(10 ** r.randrange(1, 18)) / 10 ** r.randrange(23)
    if kind == 3:
        return r.random() * 10 ** r.randrange(-10, 20)
    if kind == 4:
        return float(r.randrange(-(2**60), 2**60))
    if kind == 5:
        return math.ldexp(r.choice((1, -1)), r.randrange(-1074, 1024))
    if kind == 6:
        return math.nextafter(r.choice((1e-4, 1e16, 1e15, 2.0**53, 1.0, 1e22, 1e23, 0.1, 5e-324, 2.2250738585072014e-308)), r.choice((0, math.inf)))
    return r.choice((math.nan, math.inf, -math.inf, 0.0, -0.0, 1e16, 1e-4, 1e-5, 9999999999999998.0, 1e15, 123456789012345.6))


def random_int(r):
    n = r.getrandbits(r.choice((1, 4, 8, 15, 16, 30, 31, 32, 45, 60, 62, 63, 64, 65, 90, 200)))
    n = r.choice((n, 10 ** r.randrange(25) + r.randrange(-1, 2)))
    return r.choice((n, -n))


SHAPES = [["id", "name", "value"], ["id", "name", "other"], ["user_id", "event", "ts", "amount"], ["a"], ["b", "a"], ["x" * 7, "x" * 8, "x" * 15, "x" * 16], ["é", "日本", "k"]]


def random_value(r, depth=4, keys=None):
    """A value that JSON knows. keys: makes a key that is no str, or None."""
    kind = r.randrange(12 if depth else 8)
    if kind < 2:
        return random_text(r)
    if kind < 4:
        return random_int(r)
    if kind < 6:
        return random_float(r)
    if kind < 8:
        return r.choice((None, True, False))
    size = r.choice((0, 1, 2, 3, 4, 6, 9, 12))
    if kind < 10:
        return [random_value(r, depth - 1, keys) for _ in range(size)]
    if r.random() < 0.5:
        return {k: random_value(r, depth - 1, keys) for k in r.choice(SHAPES)}
    return {(keys(r) if keys and r.random() < 0.2 else random_text(r)): random_value(r, depth - 1, keys) for _ in range(size)}


def random_document(r):
    v = random_value(r)
    style = r.randrange(4)
    if style == 0:
        return json.dumps(v)
    if style == 1:
        return json.dumps(v, separators=(",", ":"), ensure_ascii=False)
    if style == 2:
        return json.dumps(v, indent=r.choice((0, 1, 4, "\t")), ensure_ascii=r.random() < 0.5)
    return json.dumps(v, separators=(r.choice((",", ", ", " ,\n ")), r.choice((":", ": ", "\t:\r\n"))))


def test_decode_random_valid():
    """Random documents decode to the same values, without the help of json."""
    r = random.Random(SEED)
    before = _kjson._stats()["fallbacks"]
    for _ in range(CASES):
        doc = random_document(r).encode("utf-8", "surrogatepass")
        assert same_decode(doc) == "value"
    assert _kjson._stats()["fallbacks"] == before


MUTATIONS = [bytes([c]) for c in b'"\\{}[]:,.-+eE0123456789tfnNI \t\n\r/u\x00\x1f\x7f\x80\xbf\xc3\xe6\xed\xf0\xff'] + [
    b"true", b"null", b"NaN", b"Infinity", b"-", b"\\u", b"\\ud800", b"\\udc00", b"\\u00e9", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"a":', b"1e5", b"1.5", b"00000000", b'""', b"[]", b"{}", b", ", b'\\"',
]


def mutate(r, doc):
    doc = bytearray(doc)
    for _ in range(r.choice((1, 1, 1, 2, 3, 8))):
        i = r.randrange(len(doc) + 1)
        kind = r.randrange(5)
        if kind == 0:
            doc[i : i + 1] = r.choice(MUTATIONS)
        elif kind == 1:
            doc[i:i] = r.choice(MUTATIONS)
        elif kind == 2:
            del doc[i : i + r.choice((1, 1, 2, 5))]
        elif kind == 3:
            del doc[i:]
        else:
            j = r.randrange(len(doc) + 1)
            doc[i:i] = doc[j : j + r.choice((1, 3, 10))]
    return bytes(doc)


def test_decode_random_mutated():
    """Damaged documents fail as in json, with the same message and position, or decode to the same value."""
    r = random.Random(SEED)
    valid = 0
    seeds = [d.encode() for d in VALID if len(d) < 200] + INVALID_UTF8
    for i in range(CASES * 3):
        doc = mutate(r, r.choice(seeds) if i % 3 else random_document(r)[:300].encode("utf-8", "surrogatepass"))
        accepted = _kjson._stats()["fallbacks_accepted"]
        if same_decode(doc) == "value":
            valid += 1
            if 0 not in doc and doc[:2] not in (b"\xff\xfe", b"\xfe\xff"):
                assert _kjson._stats()["fallbacks_accepted"] == accepted, f"not decoded by kjson itself: {doc!r}"
    assert CASES * 0.02 < valid < CASES * 2.5, valid


def test_decode_random_numbers():
    """Numbers of every length, with and without point and exponent, are rounded as Python rounds them."""
    r = random.Random(SEED)
    before = _kjson._stats()["fallbacks_accepted"]
    for i in range(CASES * 3):
        kind = i % 5
        digits = lambda n: "".join(r.choice("0123456789") for _ in range(n))
        if kind == 0:
            text = repr(random_float(r)).replace("inf", "Infinity").replace("nan", "NaN")
        elif kind == 1:
            text = str(random_int(r))
        elif kind == 2:
            text = r.choice(("", "-")) + r.choice(("0", str(r.randrange(1, 10)) + digits(r.randrange(25)))) + "." + digits(r.randrange(1, 25)) + r.choice(("", f"e{r.randrange(-40, 40)}", f"E+{r.randrange(400)}", f"e-{r.randrange(400)}"))
        elif kind == 3:  # halfway between two doubles, and next to it
            m = r.randrange(2**52, 2**53) * 2 + 1
            e = r.randrange(-80, 80)
            exact = decimal.Context(prec=400).multiply(decimal.Decimal(m), decimal.Context(prec=400).power(2, e))
            text = format(exact, "f") if r.random() < 0.5 else format(exact, "e").replace("E", "e")
            if "." in text and "e" not in text and r.random() < 0.5:
                text += r.choice(("0", "1", "0000000000000000001"))
        else:
            text = f"{r.choice((1, 9007199254740991, 9007199254740993, 5, r.getrandbits(63), r.getrandbits(53)))}e{r.randrange(-345, 312)}"
        assert same_decode(text.encode()) == "value", text
        same_decode(f"[{text},{text}]".encode())
    assert _kjson._stats()["fallbacks_accepted"] == before


# ---- encoding --------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    PAIR = (1, "x")
    NESTED = {"k": [1]}
    NONE = None


class Number(enum.IntEnum):
    ONE = 1
    BIG = 10**30


class Flag(enum.Flag):
    A = 1
    B = 2


class Word(enum.StrEnum):
    HELLO = "héllo"


class Real(float, enum.Enum):
    HALF = 0.5


class DateEnum(datetime.date, enum.Enum):
    DAY = 2020, 1, 2


class Point(collections.namedtuple("Point", "x y")):
    pass


class Json:
    def __init__(self, result):
        self.result = result

    def __json__(self):
        if isinstance(self.result, BaseException):
            raise self.result.with_traceback(None)
        return self.result

    def __repr__(self):
        return f"Json({self.result!r})"


class JsonStr(str):
    def __json__(self):
        return "not used"

    def __str__(self):
        return "not used either"


class OddInt(int):
    def __repr__(self):
        return "not a number"

    __str__ = __repr__
    __index__ = __repr__


class OddFloat(float):
    def __repr__(self):
        return "not a number"


class OddList(list):
    def __iter__(self):
        return iter(["from", "iter"])

    def __len__(self):
        return 17

    def __getitem__(self, i):
        raise AssertionError


class EndlessLength(list):
    def __len__(self):
        return 10**9


class OddTuple(tuple):
    def __iter__(self):
        return iter(("t",))


class OddDict(dict):
    def items(self):
        return [("from", "items"), (1, 2)]

    def __iter__(self):
        raise AssertionError

    def __getitem__(self, k):
        raise AssertionError


class BadItems(dict):
    def __init__(self, result):
        super().__init__(a=1)
        self.result = result

    def items(self):
        if isinstance(self.result, BaseException):
            raise self.result.with_traceback(None)
        return self.result


class JsonNone:
    __json__ = None


class JsonRaises:
    @property
    def __json__(self):
        raise KeyError("no")


class Stringy(decimal.Decimal):
    def __str__(self):
        return "é stringy"


class OddDate(datetime.date):
    def isoformat(self):
        return "odd"


class OddDatetime(datetime.datetime):
    def isoformat(self, *args):
        return "odd+00:00"


class OddTime(datetime.time):
    def isoformat(self, *args):
        return "é+00:00"


UTC = datetime.timezone.utc
HOUR = datetime.timezone(datetime.timedelta(hours=1))
ZERO = datetime.timezone(datetime.timedelta(0), "Zero")

VALUES = [
    None, True, False, 0, -0, 1, -1, 9, 10, 99, 100, 12345678, 99999999, 100000000, 10**16 - 1, 10**16, 10**17, 2**30, 2**31, 2**60, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**100, -(10**100),
    0.0, -0.0, 1.0, -1.0, 0.1, 12.34, 100.25, 1e15, 1e16, 1e17, 1e22, 1e-4, 1e-5, 0.00012345, 123456789.123456, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 0.1 + 0.2, 1 / 3, 9007199254740993.0, 999999999999999.9, 999999999999999.0, 99999999999999.98, 0.3, 2.5, 1e100,
    "", "a", "ab", "abc", "abcd", "abcde", "abcdefg", "abcdefgh", "abcdefghi", "x" * 100, "x" * 5000, '"', "\\", "/", "\b\f\n\r\t", "\x00\x01\x1f", "\x7f", "~", "é", "aé", "日本語", "😀", "\ud800", "\udfff", "\ud83d\ude00", "abcdefg\n", "abcdefgh\n", "abcdefg\x7f", "é" * 3000, "😀" * 3000, "\n" * 3000,
    [], [[]], [1], [1, 2], (), (1,), (1, (2, [3])), {}, {"a": 1}, {"a": {"b": {}}}, [{}, [], ()], {"": ""}, {"é": "é"},
    {1: 1, -5: 2, 10**30: 3, True: 4, None: 5, 1.5: 6, math.nan: 7, math.inf: 8, -math.inf: 9, 0.1: 10, 1e100: 11, "s": 12}, {False: 1}, {0: 1, "0": 2}, {JsonStr("k"): 1}, {Number.ONE: 1, Number.BIG: 2}, {OddInt(5): 1}, {OddFloat(2.5): 1}, {Word.HELLO: 1},
    {(1, 2): 3}, {b"x": 1}, {frozenset(): 1}, {Color.RED: 1}, {decimal.Decimal(1): 1}, {"a": {"b": [0, {(): 1}]}},
    Color.RED, Color.PAIR, Color.NESTED, Color.NONE, Number.ONE, Number.BIG, Flag.A, Flag.A | Flag.B, Word.HELLO, Real.HALF, DateEnum.DAY, [Color.RED, Number.ONE],
    Point(1, "y"), [Point(1, [2])], collections.Counter("abca"), collections.Counter(), collections.OrderedDict([("b", 1), ("a", 2)]), collections.defaultdict(list, {"a": [1]}), types.MappingProxyType({"a": 1}), collections.ChainMap({"a": 1}), collections.UserDict(a=1), collections.UserList([1]),
    {1, }, {"only"}, set(), [{(1, 2)}], collections.deque([1, "x", None]), collections.deque(), frozenset(), frozenset([1]), [frozenset([1])], range(3), iter([1]), (i for i in []), object, int, len, ..., NotImplemented, 1j, memoryview(b"x"), bytearray(b"x"),
    b"", b"x", b"it's", b'"\xff\n', [b"x"], {"k": b"\x00"},
    decimal.Decimal("1.50"), decimal.Decimal("NaN"), decimal.Decimal("-1E+5"), Stringy("1"), uuid.UUID(int=5), uuid.UUID("12345678123456781234567812345678"),
    datetime.date(2020, 1, 2), datetime.date(1, 1, 1), datetime.date(9999, 12, 31), datetime.datetime(2020, 1, 2), datetime.datetime(2020, 1, 2, 3, 4, 5), datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.datetime(1, 2, 3, 4, 5, 6, 999999, UTC), datetime.datetime(2020, 1, 2, 3, 4, 5, 600000, HOUR),
    datetime.datetime(2020, 1, 2, tzinfo=ZERO), datetime.datetime(2020, 1, 2, fold=1), datetime.datetime(2020, 7, 1, tzinfo=datetime.timezone(-datetime.timedelta(hours=3, minutes=30, seconds=5))), datetime.datetime(900, 1, 1, tzinfo=UTC), datetime.time(), datetime.time(1, 2, 3), datetime.time(1, 2, 3, 4), datetime.time(1, 2, 3, tzinfo=UTC), datetime.time(1, 2, tzinfo=HOUR),
    OddDate(2020, 1, 2), OddDatetime(2020, 1, 2), OddTime(1), datetime.timedelta(1), UTC,
    Json(1), Json(None), Json({"a": Json([Json("x")])}), Json(b"x"), Json(object()), Json(ValueError("é")), Json({(): 1}), JsonStr("own"), JsonStr("é\n"), JsonNone(), JsonRaises(), Json, [Json(datetime.date(2020, 1, 1))],
    OddInt(7), OddInt(10**20), OddFloat(0.5), OddFloat("nan"), OddList([1, 2]), OddList(), EndlessLength([1]), OddTuple((1, 2)), OddDict(a=1), OddDict(), BadItems([(1,)]), BadItems([[1, 2]]), BadItems([(1, 2, 3)]), BadItems(None), BadItems(KeyError("x")), BadItems([]), BadItems((("a", 1),)), BadItems({"ab": 1}.items()), BadItems([(b"", 1)]),
    object(), [object()], {"a": object()}, Exception("x"),
]


def test_encode_tables():
    """Every kind of value, at the root and inside of others, is written byte for byte as before or fails with the same words."""
    for v in VALUES:
        same_encode(v)
        for wrapped in ([v], [v, v], {"k": v}, (v, 1), {"a": [v], "b": v}, Json(v), Json([v]), collections.deque([v]), [[[[v]]]], OddDict({"x": v})):
            same_encode(wrapped)


def test_encode_compact():
    """Compact only drops the spaces behind separators."""
    assert _kjson.dumps({"a": [1, "é, : "], "b": {}}, compact=True) == b'{"a":[1,"\\u00e9, : "],"b":{}}'
    assert _kjson.dumps({"a": [1, 2]}) == b'{"a": [1, 2]}' == _kjson.dumps({"a": [1, 2]}, False) == _kjson.dumps({"a": [1, 2]}, compact=0)
    raises(TypeError, "dumps", _kjson.dumps)
    raises(TypeError, "dumps", _kjson.dumps, 1, 2, 3)
    try:
        _kjson.dumps(1, indent=2)
    except TypeError as e:
        assert "indent" in str(e)
    else:
        raise AssertionError


def test_encode_note_names_the_place():
    """What cannot be encoded is found in a large value."""
    e = raises(TypeError, "Object of type object is not JSON serializable", _kjson.dumps, {"page": [1, {"x": object()}]})
    assert e.__notes__ == ["in value['page'][1]['x']"], e.__notes__
    e = raises(TypeError, "keys must be", _kjson.dumps, [{"a": {(): 1}}])
    assert e.__notes__ == ["in value[0]['a']"], e.__notes__
    e = raises(TypeError, "Object of type complex", _kjson.dumps, 1j)
    assert not hasattr(e, "__notes__")
    deep = 1j
    for _ in range(1000):
        deep = [deep]
    assert not hasattr(raises(TypeError, "Object of type complex", _kjson.dumps, deep), "__notes__")


def test_encode_circular():
    """A value that contains itself fails as in json; one that is used twice does not."""
    a = []
    a.append(a)
    d = {}
    d["d"] = d
    b = [1, {"x": [2]}]
    b[1]["x"].append(b)
    j = Json(None)
    j.result = j
    k = Json(None)
    k.result = [k]
    t = ([],)
    t[0].append(t)
    q = collections.deque()
    q.append(q)
    for v in (a, d, b, j, k, t, q, [a], {"k": d}):
        assert same_encode(v) == "ValueError"
    twice = [1]
    assert same_encode([twice, twice, {"a": twice}, (twice,)]) == "value"
    empty = []
    assert same_encode([empty, [empty]]) == "value"


def test_encode_depth():
    """Depth ends in a RecursionError, at json's depth or one level deeper; the encoder works afterwards."""

    def nested(n, wrap):
        v = 1
        for _ in range(n):
            v = wrap(v)
        return v

    def deepest(f, wrap):
        low, high = 1, 30000
        while low < high:
            n = (low + high + 1) // 2
            v = nested(n, wrap)
            try:
                f(v)
                low = n
            except RecursionError:
                high = n - 1
            while isinstance(v, (list, dict, Json)):  # a deep value is taken apart step by step
                v = v.result if isinstance(v, Json) else v.popitem()[1] if isinstance(v, dict) else v.pop()
        return low

    for wrap in (lambda v: [v], lambda v: {"a": v}):
        want = deepest(stock_dumps, wrap)
        assert want < 30000
        assert 0 <= deepest(_kjson.dumps, wrap) - want <= 1

    class Endless:
        def __json__(self):
            return Endless()

    class EndlessList:
        def __json__(self):
            return [EndlessList()]

    for v in (Endless(), EndlessList()):
        raises(RecursionError, "maximum recursion depth exceeded", _kjson.dumps, v)
        assert _kjson.dumps([1]) == b"[1]"


class Mutator:
    """Runs an action when it is encoded."""

    def __init__(self, action):
        self.action = action

    def __json__(self):
        self.action()
        gc.collect()
        return ["x" * 10]


def test_encode_survives_mutation():
    """Code that runs in the middle may change or drop everything that is being encoded."""
    for size in (3, 10, 1000):
        for change in range(7):
            for kind in ("list", "dict", "general", "split"):
                if kind == "list":
                    v = [["y" * 20, object] for _ in range(size)]
                    v[1] = Mutator(lambda: (v.clear, lambda: v.extend(range(1000)), lambda: v.__delitem__(slice(1, None)), lambda: v.insert(0, 5), lambda: v.pop(), lambda: v.__setitem__(1, None), lambda: v.reverse())[change]())
                    v[2:] = [["z" * 20] for _ in range(size)]
                    holder = [v]
                elif kind == "split":

                    class Thing:
                        pass

                    thing = Thing()
                    for i in range(min(size, 20)):
                        setattr(thing, f"a{i}", [f"v{i}" * 5])
                    v = thing.__dict__
                    thing.a1 = Mutator(lambda: (v.clear, lambda: setattr(thing, "new", 1), lambda: delattr(thing, "a2"), lambda: v.update({1: 2}), lambda: v.popitem(), lambda: setattr(thing, "a1", 1), lambda: setattr(thing, "__dict__", {}))[change]())
                    holder = [v]
                else:
                    v = {(f"k{i}" if kind == "dict" else i): [f"v{i}" * 5] for i in range(size)}
                    first = list(v)[1]
                    v[first] = Mutator(lambda: (v.clear, lambda: v.update({f"n{i}": i for i in range(1000)}), lambda: v.pop(first), lambda: v.update({(1, 2): 3}), lambda: v.popitem(), lambda: v.update({k: 1 for k in v}), lambda: (v.clear(), v.update(a=[1], b=[2], c=[3])))[change]())
                    holder = {"v": v}
                outcome(_kjson.dumps, v)
                outcome(_kjson.dumps, holder)
    holder = [[Mutator(lambda: holder.clear()), ["x" * 30]], 5]
    assert _kjson.dumps(holder) == b'[[["xxxxxxxxxx"], ["' + b"x" * 30 + b'"]]]'
    holder = {"a": {"b": Mutator(lambda: holder.clear()), "c": ["x" * 30]}, "d": 1}
    assert _kjson.dumps(holder) == b'{"a": {"b": ["xxxxxxxxxx"], "c": ["' + b"x" * 30 + b'"]}}'

    class Keys(dict):
        def items(self):
            pairs = [(str(i) * 10, Mutator(pairs_clear)) for i in range(5)]
            self.pairs = pairs
            return pairs

    keys = Keys(a=1)
    pairs_clear = lambda: keys.pairs.clear()
    assert _kjson.dumps(keys) == b'{"0000000000": ["xxxxxxxxxx"]}'


def test_encode_nested_calls():
    """A value whose encoding itself decodes and encodes: both keep their state apart."""

    class Inner:
        def __init__(self, n):
            self.n = n

        def __json__(self):
            text = _kjson.dumps({"n": self.n, "inner": Inner(self.n - 1) if self.n else "x" * 5000})
            assert _kjson.loads(text)["n"] == self.n
            return _kjson.loads(text)

    v = {"a": "b" * 10000, "inner": Inner(5), "z": [Inner(1)]}
    assert _kjson.dumps(v) == json.dumps(v, default=lambda o: o.__json__()).encode()


def random_odd_value(r):
    """A value with types JSON does not know in it, some of them hopeless."""
    sub = lambda: random_odd_value(r)
    pick = r.randrange(24)
    if pick < 8:
        return random_value(r, 2, lambda r: r.choice((random_int(r), random_float(r), None, True, False, Number.ONE, JsonStr("k"), (1,), b"k")))
    if pick < 11:
        return r.choice(VALUES)
    if pick < 13:
        return [sub() for _ in range(r.randrange(4))]
    if pick < 15:
        return {random_text(r): sub() for _ in range(r.randrange(4))}
    if pick == 15:
        return tuple(sub() for _ in range(r.randrange(4)))
    if pick == 16:
        return collections.deque(sub() for _ in range(r.randrange(4)))
    if pick == 17:
        return Json(sub())
    if pick == 18:
        return set(random_text(r) for _ in range(r.randrange(4)))
    if pick == 19:
        zone = r.choice((None, UTC, HOUR, ZERO, zoneinfo.ZoneInfo("UTC") if r.random() < 0.5 else UTC))
        return datetime.datetime(r.randrange(1, 9999), r.randrange(1, 13), r.randrange(1, 29), r.randrange(24), r.randrange(60), r.randrange(60), r.choice((0, r.randrange(10**6))), zone)
    if pick == 20:
        return decimal.Decimal(random_float(r))
    if pick == 21:
        return uuid.UUID(int=r.getrandbits(128))
    if pick == 22:
        return collections.OrderedDict((random_text(r), sub()) for _ in range(r.randrange(4)))
    return Point(sub(), sub())


def test_encode_random():
    """Random values are written as json writes them, and read back."""
    r = random.Random(SEED)
    for i in range(CASES):
        v = random_value(r, keys=lambda r: r.choice((random_int(r), random_float(r), None, True, False)))
        assert same_encode(v) == "value"
        if i % 4 == 0:
            text = _kjson.dumps(v)
            assert repr(_kjson.loads(text)) == repr(json.loads(text))
    for _ in range(CASES // 2):
        same_encode(random_odd_value(r))


def test_encode_random_floats():
    """repr, for floats of every length."""
    r = random.Random(SEED)
    for i in range(CASES):
        floats = [random_float(r) for _ in range(8)]
        n = r.randrange(10 ** r.randrange(1, 17))
        k = r.randrange(0, 21)
        floats += [n / 10**k, math.nextafter(n / 10**k, math.inf), -n / 10**k, n * 10.0**-k, float(f"{n}e{r.randrange(-330, 300)}")]
        want = json.dumps(floats).encode()
        got = _kjson.dumps(floats)
        assert got == want, [(a, b) for a, b in zip(want.split(b","), got.split(b",")) if a != b]


def test_encode_random_ints():
    r = random.Random(SEED)
    for _ in range(CASES):
        ints = [random_int(r) for _ in range(8)] + [r.randrange(10 ** r.randrange(1, 22)) for _ in range(8)]
        assert _kjson.dumps(ints) == json.dumps(ints).encode()


def test_memory_is_given_back():
    """Nothing leaks, neither when all goes well nor on the ways out of errors."""
    r = random.Random(SEED)
    documents = [random_document(r).encode("utf-8", "surrogatepass") for _ in range(300)]
    documents += [mutate(r, d) for d in documents]
    # isoformat with a time zone keeps some blocks for a while, with stock json as well.
    values = [v for v in (random_odd_value(r) for _ in range(400)) if "tzinfo" not in repr(v)]
    values += [datetime.datetime(2020, 1, 2), datetime.date(2020, 1, 2), datetime.time(1, 2), datetime.datetime(2020, 1, 2, tzinfo=UTC)]

    def work():
        for d in documents:
            outcome(_kjson.loads, d)
        for v in values:
            outcome(_kjson.dumps, v)

    def used():
        _kjson._forget()
        gc.collect()
        return sys.getallocatedblocks()

    for _ in range(3):
        work()
    before = used()
    for _ in range(10):
        work()
    grown = used() - before
    assert grown < 10, f"{grown} blocks more after 10 rounds"
    references = sys.getrefcount(documents[0]), sys.getrefcount("user_id")
    for _ in range(100):
        _kjson.loads(documents[0])
        _kjson.loads('{"user_id": 1, "event": {"user_id": 2}}')
    assert abs(sys.getrefcount(documents[0]) - references[0]) <= 1
    assert abs(sys.getrefcount("user_id") - references[1]) <= 4


def main():
    global SEED, CASES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20261, help="0: a new one")
    parser.add_argument("--cases", type=int, default=20000, help="of each random test, times one to three")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    SEED = options.seed or random.SystemRandom().randrange(1, 10**9)
    CASES = options.cases
    failed = passed = 0
    for name, test in list(globals().items()):
        if not name.startswith("test_") or options.names and not any(n in name for n in options.names):
            continue
        start = time.perf_counter()
        try:
            test()
            passed += 1
            print(f"ok    {name} ({time.perf_counter() - start:.1f} s)", flush=True)
        except Exception as e:
            failed += 1
            text = "".join(traceback.format_exception(e))
            print(f"FAIL  {name}: {text if len(text) < 6000 else text[:3000] + ' ... ' + text[-3000:]}\n      replay with --seed {SEED} --cases {CASES} {name}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
