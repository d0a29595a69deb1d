"""The glue against a guest, native or wasm (see guest.py). Every test loads a program and reads the entries of a result."""

import base64
import json
import os
import pickle
import unittest

from guest import (CONTINUE, DIE, OP_ENSURE_TOPIC, OP_IS_LEADER, OP_SEND, OP_SLEEP, RAISE, Died, Guest, Record, decode_result, program)

WASM = bool(os.environ.get("KASPR_GUEST"))


def js(*values):
    return [Record(json.dumps(v).encode(), offset=i) for i, v in enumerate(values)]


class Case(unittest.TestCase):
    maxDiff = None

    def guest(self, *args, **kw):
        g = Guest()
        self.addCleanup(g.close)
        problems = g.load(program(*args, **kw))
        self.assertEqual(problems, [])
        return g

    def run1(self, source, *values, role="map", **kw):
        """Values that the outputs of one operation have."""
        g = self.guest([(role, source)], **kw)
        return self.values(g.process(js(*values)))

    def values(self, result):
        self.assertEqual(result.failures, [])
        return [json.loads(o.value) for o in result.outputs]

    def failure(self, result):
        self.assertEqual(len(result.failures), 1, result.entries)
        return result.failures[0]

    def problems(self, *args, check=False, **kw):
        with Guest() as g:
            p = program(*args, **kw)
            return g.check(p) if check else g.load(p)


class Pipeline(Case):
    def test_filter_drops_falsy_and_none_is_a_value(self):
        g = self.guest([("filter", "def f(v): return v"), ("map", "def m(v): return None")])
        r = g.process(js(0, 1, [], {}, "", "x"))
        self.assertEqual([(o.unit, o.value) for o in r.outputs], [(1, b"null"), (5, b"null")])
        self.assertEqual(r.done, [0, 1, 2, 3, 4, 5])

    def test_lists_are_values_generators_fan_out(self):
        self.assertEqual(self.run1("def f(v): return [1, 2]", 0), [[1, 2]])
        self.assertEqual(self.run1("def f(v): return (x for x in (1, 2))", 0), [1, 2])
        self.assertEqual(self.run1("def f(v):\n  yield from (1, None, 2)", 0), [1, None, 2])
        self.assertEqual(self.run1("def f(v): return map(str, (1, 2)) and {'m': 1}", 0), [{"m": 1}])
        self.assertEqual(self.run1("async def f(v):\n  yield 1\n  yield 2", 0), [1, 2])
        self.assertEqual(self.run1("async def f(v):\n  return (x for x in (1, 2))", 0), [1, 2])

    def test_first_generator_is_lazy_later_stages_breadth_first(self):
        g = self.guest([
            ("map", "def f(v):\n  for i in (1, 2):\n    log.append(f'a{i}')\n    yield i"),
            ("map", "def f(v):\n  for i in (1, 2):\n    log.append(f'b{v}{i}')\n    yield v * 10 + i"),
            ("map", "async def f(v):\n  for i in (1, 2):\n    log.append(f'c{v}{i}')\n    yield [list(log), log.clear()][0]"),
        ], init="log = []", outputs=[{"predicate": "def p(v):\n  log.append('p')\n  return True"}])
        self.assertEqual(self.values(g.process(js(0))), [
            ["a1", "b11", "b12", "c111"], ["c112"], ["c121"], ["c122"],
            ["p", "p", "p", "p", "a2", "b21", "b22", "c211"], ["c212"], ["c221"], ["c222"]])

    def test_changes_in_place_are_seen_downstream(self):
        g = self.guest([("filter", "def f(v):\n  v['n'] += 1\n  return True"), ("map", "def m(v):\n  v['n'] += 1\n  return v")],
                       outputs=[{"valueSelector": "def s(v):\n  v['n'] += 1\n  return v"}, {}])
        self.assertEqual(self.values(g.process(js({"n": 0}))), [{"n": 3}, {"n": 3}])

    def test_filter_falsy_in_the_middle_of_a_fan_out(self):
        g = self.guest([("map", "def f(v):\n  yield from range(v)"), ("filter", "def f(v): return v % 2"),
                        ("map", "def f(v):\n  yield v\n  yield -v"), ("filter", "def f(v): return v > 0")])
        self.assertEqual(self.values(g.process(js(6))), [1, 3, 5])

    def test_outputs_in_order_per_item(self):
        g = self.guest([("map", "def f(v):\n  yield 1\n  yield 2")], outputs=[{"topic": "a"}, {"topic": "b"}])
        self.assertEqual([(o.index, o.topic, o.value) for o in g.process(js(0)).outputs],
                         [(0, "", b"1"), (1, "", b"1"), (0, "", b"2"), (1, "", b"2")])

    def test_no_operations_and_no_outputs(self):
        self.assertEqual(self.values(self.guest([]).process(js(1))), [1])
        g = self.guest([("map", "def f(v): return v")], outputs=[])
        r = g.process(js(1, 2))
        self.assertEqual(r.entries, [0, 1])

    def test_stop_on_failure_and_empty_batch(self):
        g = self.guest([("map", "def f(v): return 1 / v")])
        self.assertEqual(g.process(js(1, 0, 1), stop=True).done, [0, 1])
        self.assertEqual(g.process([]).entries, [])
        self.assertEqual(g.process([], take=True).entries, [])

    def test_an_operation_named_twice_is_one_block(self):
        op = {"name": "inc", "map": {"python": "n = [0]\ndef f(v):\n  n[0] += 1\n  return v + [n[0]]", "file": "a", "line": 1}}
        g = self.guest([op, op])
        self.assertEqual(self.values(g.process(js([], []))), [[1, 2], [3, 4]])


class Scopes(Case):
    def test_init_names_are_seen_live_and_helpers_do_not_collide(self):
        g = self.guest([
            ("map", "def helper(v): return v + 1\ndef f(v):\n  bump()\n  return helper(v)"),
            ("map", "def helper(v): return v * 10\ndef f(v): return [helper(v), n, table['x']]"),
        ], init="n = 0\ntable = {'x': 1}\ndef bump():\n  global n\n  n += 1\n  table['x'] += n")
        self.assertEqual(self.values(g.process(js(1, 2, 3))), [[20, 1, 2], [30, 2, 4], [40, 3, 7]])

    def test_global_in_an_operation_reaches_init(self):
        source = """
def f(v):
    global n, last, mod, made, C
    n += 1
    for last in (1, v): pass
    import json as mod
    def made(): return n
    class C: pass
    if (late := 1): pass
    [last := x for x in (7, 8)]
    try: 1 / 0
    except ZeroDivisionError as e: pass
    return n
"""
        g = self.guest([("map", source), ("map", "def f(v): return [v, n, look(), last, mod.__name__, made(), C.__name__]")],
                       init="n = 0\nlast = mod = made = C = None\ndef look(): return [n, last]")
        self.assertEqual(self.values(g.process(js(5, 6))), [[1, 1, [1, 8], 8, "json", 1, "C"], [2, 2, [2, 8], 8, "json", 2, "C"]])

    def test_global_walrus_del_and_nested(self):
        source = """
def f(v):
    global n, gone
    if (n := v) and 'gone' in globals_of_init():
        del gone
    def inner():
        global n
        n += 100
    inner()
    return 'gone' in globals_of_init()
"""
        g = self.guest([("map", source), ("map", "def f(v): return [v, n]")],
                       init="n = 0\ngone = 1\ndef globals_of_init(): return globals()")
        self.assertEqual(self.values(g.process(js(5, 6))), [[False, 105], [False, 106]])

    def test_a_name_the_block_binds_itself_stays_its_own(self):
        g = self.guest([("map", "n = 100\ndef f(v):\n  global n\n  n += 1\n  return n"), ("map", "def f(v): return [v, n]")], init="n = 0")
        self.assertEqual(self.values(g.process(js(0, 0))), [[101, 0], [102, 0]])

    def test_module_level_of_an_operation_persists_and_sees_init(self):
        self.assertEqual(self.run1("import math\nseen = [base]\ndef f(v):\n  seen.append(v)\n  return len(seen) + math.floor(0.5)",
                                   1, 2, init="base = 1"), [2, 3])

    def test_init_shadows_builtins_for_operations(self):
        self.assertEqual(self.run1("def f(v): return len(v)", [1], init="def len(x): return 'mine'"), ["mine"])

    def test_selectors_see_init_and_context(self):
        g = self.guest([], init="suffix = '!'", outputs=[{
            "keySelector": "def k(v): return context['event'].key.decode() + suffix",
            "headersSelector": "def h(v): return {'app': context['app'].name}"}])
        r = g.process([Record(b"1", key=b"k")])
        self.assertEqual((r.outputs[0].key, r.outputs[0].headers), (b'"k!"', [("app", b"shop")]))

    def test_classes_dataclasses_enums_and_pickle_work_in_blocks(self):
        source = """
from __future__ import annotations
import dataclasses, enum, pickle, typing
@dataclasses.dataclass
class P:
    x: int
    y: typing.ClassVar[int] = 3
class E(enum.Enum):
    A = 1
class T(typing.NamedTuple):
    a: int
def f(v):
    return [dataclasses.asdict(pickle.loads(pickle.dumps(P(v)))), E.A.name, T(1)._asdict(), super.__name__]
"""
        self.assertEqual(self.run1(source, 4), [[{"x": 4}, "A", {"a": 1}, "super"]])

    def test_environment_is_the_program_s(self):
        self.assertEqual(self.run1("import os\ndef f(v): return dict(os.environ)", 0, env={"A": "ä"}), [{"A": "ä"}])


class Entrypoints(Case):
    def test_first_function_defined_in_the_block(self):
        self.assertEqual(self.run1("from os.path import join\nclass K: pass\nif True:\n  g = lambda v: v + 1\ndef h(v): return 0", 1,
                                   init="def i(v): return 'init'"), [2])
        self.assertEqual(self.run1({"python": "def a(v): return 0\ndef b(v): return 1", "entrypoint": "b"}, 0), [1])
        self.assertEqual(self.run1({"python": "from functools import partial\nb = partial(max, 5)", "entrypoint": "b"}, 0), [5])

    def test_problems_are_collected(self):
        args = dict(init={"python": "x = ", "line": 5},
                    ops=[("map", {"python": "def enrich(v): pass\ndef other(v): pass", "entrypoint": "enrch", "line": 20}),
                         ("filter", {"python": "\ndef f(v):\n    return (v", "line": 30}),
                         ("map", {"python": "import math", "line": 40}),
                         ("filter", {"python": "def f(v):\n    yield v", "line": 50})],
                    outputs=[{"predicate": {"python": "return 1", "line": 60}},
                             {"keySelector": {"python": "x = 1\ndef k(v): return undefined", "line": 70}}])
        for check in (True, False):
            got = [(p["line"], p["type"], p["message"], p["where"]) for p in self.problems(**args, check=check)]
            self.assertEqual(got, [
                (5, "SyntaxError", "invalid syntax", "init"),
                (20, "Entrypoint", 'entrypoint "enrch" is not defined in this block; did you mean "enrich"?; it defines enrich, other', 'operation "op0", map'),
                (32, "SyntaxError", "'(' was never closed", 'operation "op1", filter'),
                (40, "Entrypoint", "the block defines no function: it needs one, as def NAME(...)", 'operation "op2", map'),
                (50, "Entrypoint", "a filter must return a value, not yield", 'operation "op3", filter'),
                (60, "SyntaxError", "'return' outside function", "output 1, predicate"),
            ], check)

    def test_init_and_module_errors_have_a_traceback(self):
        [p] = self.problems([("map", {"python": "def f(v): return v", "line": 50})], init={"python": "import json\ndef g():\n    return 1 / 0\ng()", "line": 7})
        self.assertEqual((p["file"], p["line"], p["type"], p["message"], p["where"]), ("agent.yaml", 9, "ZeroDivisionError", "division by zero", "init"))
        self.assertEqual(p["traceback"], "    agent.yaml:10, in <module>\n        g()\n    agent.yaml:9, in g\n        return 1 / 0\n")
        got = self.problems([("map", "x = nope\ndef f(v): return v"), ("map", "import sys; sys.exit(3)"), ("map", "import faust\ndef f(v): pass")])
        self.assertEqual([(p["type"], p["message"]) for p in got], [
            ("NameError", "name 'nope' is not defined"), ("SystemExit", "3"),
            ("ModuleNotFoundError", "faust is not available to user code: context[\"event\"] and context[\"app\"] give what current_event() and the app gave")])

    def test_entrypoint_of_init(self):
        [p] = self.problems([("map", {"python": "x = 1", "entrypoint": "helper"})], init="def helper(v): pass")
        self.assertEqual(p["message"], 'entrypoint "helper" is not defined in this block; init defines it, but an entrypoint is looked up in its own block: call it from a function here')

    def test_syntax_warnings_have_the_line(self):
        g = Guest()
        self.addCleanup(g.close)
        g.load(program([("map", {"python": "def f(v): return '\\d'", "line": 33})]))
        self.assertIn("agent.yaml:33: SyntaxWarning", g.logs[0][1])

    def test_check_runs_nothing(self):
        self.assertEqual(self.problems([("map", "1 / 0\ndef f(v): return v")], init="import sys; sys.exit()", check=True), [])

    def test_arguments_and_kinds_are_checked(self):
        got = self.problems([{"map": "def f(v): pass", "filter": "def f(v): pass"}], outputs=[{"topic": ""}, {"keySerializer": "xml"}])
        self.assertEqual([p["message"] for p in got], [
            "an operation has exactly one of map, filter and topicSend", "an output has exactly one of topic and nameSelector",
            'keySerializer "xml" is not one of raw, str, json, pickle, binary, avro, protobuf, jsonschema'])
        got = self.problems([("map", {"python": "def f(): pass", "line": 5}), ("map", {"python": "f = 3", "entrypoint": "f", "line": 6})])
        self.assertEqual([p["message"] for p in got], ["f is called with one value: too many positional arguments",
                                                       'entrypoint "f" is int, which cannot be called; it defines no function'])

    def test_tables_are_refused_clearly(self):
        [p] = self.problems([{"map": "def f(v, t): return v", "tables": [{"name": "stock", "paramName": "t"}]}])
        self.assertIn('table "stock"', p["message"])

    def test_selectors_that_yield_are_refused(self):
        [p] = self.problems([], outputs=[{"keySelector": "def k(v):\n  yield 1"}])
        self.assertEqual(p["message"], "a keySelector must return a value, not yield")


class Codecs(Case):
    def out(self, value, source="def f(v): return v", **output):
        g = self.guest([("map", source)], outputs=[output])
        return g.process(js(value))

    def test_decode(self):
        pickled = base64.b64encode(pickle.dumps({"a": {1, 2}}))
        for codec, data, want in (("raw", b"\xff", "b'\\xff'"), ("str", b"\xc3\xa9", "'é'"), ("json", b'{"a": 1}', "{'a': 1}"), ("binary", b"cw==", "b's'"),
                                  ("pickle", pickled, "{'a': {1, 2}}")):
            g = self.guest([("map", "def f(v):\n  e = context['event']\n  return [repr(v), repr(e.key)]")], key=codec, value=codec)
            r = self.values(g.process([Record(data, key=data), Record(None), Record(b"", b"") if codec == "raw" else Record(data, key=None)]))
            self.assertEqual(r[0], [want, want])
            self.assertEqual(r[1], ["None", "None"])

    def test_decode_failures(self):
        for codec in ("json", "pickle", "binary"):
            g = self.guest([("map", "def f(v): return 1")], key=codec, value=codec)
            ok = base64.b64encode(pickle.dumps(1)) if codec == "pickle" else b"1111"
            r = g.process([Record(b"x", key=b"x"), Record(b"x", key=ok), Record(ok, key=ok)])
            self.assertEqual([(f.unit, f.kind, f.operation) for f in r.failures], [(0, "decode-key", ""), (1, "decode-value", "")])
            self.assertEqual([o.unit for o in r.outputs], [2])
        g = self.guest([("map", "def f(v): return 1")])
        self.assertEqual(self.failure(g.process([Record(b'{"a":')])).type, "JSONDecodeError")
        g = self.guest([("map", "def f(v): return 1")], key="str", value="str")
        r = g.process([Record(b"x", key=b"\xff"), Record(b"\xff", key=b"k"), Record(b"x", key=b"k")])
        self.assertEqual([(f.unit, f.kind, f.type) for f in r.failures], [(0, "decode-key", "UnicodeDecodeError"), (1, "decode-value", "UnicodeDecodeError")])
        self.assertEqual([o.unit for o in r.outputs], [2])

    def test_encode_values(self):
        cases = {
            "raw": {"'s'": b"s", "b'x'": b"x", "None": None, "5": "the serializer raw takes str or bytes, not int"},
            "str": {"'é'": b"\xc3\xa9", "''": b"", "None": None, "b'x'": "the serializer str takes str, not bytes", "5": "takes str, not int"},
            "json": {"'s'": b'"s"', "{'a': 'é'}": b'{"a": "\\u00e9"}', "None": b"null", "b'x'": "bytes cannot be encoded as json"},
            "binary": {"'s'": b"cw==", "b'xy'": b"eHk=", "b'xyz'": b"eHl6", "b''": b"", "None": "None cannot be encoded as binary", "[1]": "not list"},
            "pickle": {"5": base64.b64encode(pickle.dumps(5, 4)), "None": base64.b64encode(pickle.dumps(None, 4)), "b'x'": base64.b64encode(pickle.dumps(b"x", 4))},
        }
        for codec, table in cases.items():
            g = self.guest([("map", "def f(v): return eval(v)")], outputs=[{"valueSerializer": codec}])
            for source, want in table.items():
                r = g.process(js(source))
                if isinstance(want, str):
                    f = self.failure(r)
                    self.assertIn(want, f.message)
                    self.assertEqual((f.kind, f.type, f.operation), ("encode", "TypeError", 'output "out", value'))
                else:
                    self.assertEqual([o.value for o in r.outputs], [want])

    def test_encode_keys(self):
        for codec, source, want in (("raw", "'k'", b"k"), ("json", "'k'", b'"k"'), ("json", "{'a': 1}", b'{"a": 1}'), ("json", "None", None),
                                    ("raw", "None", None), ("binary", "None", None), ("pickle", "None", None), ("binary", "'s'", b"cw=="),
                                    ("str", "'k'", b"k"), ("str", "None", None)):
            g = self.guest([], jsonExact=False, outputs=[{"keySerializer": codec, "keySelector": f"def k(v): return {source}"}])
            self.assertEqual(g.process(js({"x": 1})).outputs[0].key, want)
        g = self.guest([], outputs=[{"keySelector": "def k(v): return b'k'"}])
        f = self.failure(g.process(js(1)))
        self.assertEqual((f.kind, f.operation), ("encode", 'output "out", key'))

    def test_compact_values_when_not_exact(self):
        self.assertEqual(self.guest([], jsonExact=False).process(js({"a": [1, 2]})).outputs[0].value, b'{"a":[1,2]}')

    def test_json_of_other_types(self):
        g = self.guest([("map", "import datetime, decimal, uuid\ndef f(v): return [datetime.date(2024, 1, 2), decimal.Decimal('1.50'), {1}, (1, 2), b'x']")])
        self.assertEqual(self.values(g.process(js(0))), [["2024-01-02T00:00:00", "1.50", [1], [1, 2], "b'x'"]])
        f = self.failure(self.guest([("map", "def f(v): return {'a': object()}")]).process(js(0)))
        self.assertEqual((f.kind, f.type), ("encode", "TypeError"))


class Outputs(Case):
    def send(self, **output):
        return self.guest([], outputs=[output]).process(js({"a": 1, "t": "T"}))

    def test_selectors(self):
        o = self.send(keySelector="def k(v): return v['a']", valueSelector="async def s(v): return [v['a']]", partitionSelector="def p(v): return 3",
                      headersSelector="def h(v): return {'s': 'é', 'b': b'\\xff', 'n': None}", nameSelector="def n(v): return 'to-' + v['t']").outputs[0]
        self.assertEqual((o.index, o.topic, o.key, o.value, o.partition, o.headers),
                         (-1, "to-T", b"1", b"[1]", 3, [("s", "é".encode()), ("b", b"\xff"), ("n", None)]))

    def test_carried_keys(self):
        for key, read, write, want in ((b"\xff", "raw", "raw", b"\xff"), (b'{"a":1}', "json", "json", b'{"a": 1}'), (b'"k"', "json", "raw", b"k"), (None, "json", "json", None)):
            g = self.guest([("map", "def f(v):\n  yield v\n  yield v")], key=read, outputs=[{"keySerializer": write, "carryKey": True}, {"keySerializer": write}])
            r = g.process([Record(b"1", key=key, headers=[("h", b"1")])])
            self.assertEqual([(o.key, o.partition, o.headers) for o in r.outputs], [(want, -1, []), (None, -1, [])] * 2)
        g = self.guest([], key="raw", outputs=[{"keySerializer": "json", "carryKey": True}])
        f = self.failure(g.process([Record(b"1", key=b"k")]))
        self.assertEqual((f.kind, f.operation), ("encode", 'output "out", key'))

    def test_header_forms(self):
        for source, want in (("None", []), ("{}", []), ("[('a', b'1'), ('a', '2')]", [("a", b"1"), ("a", b"2")]), ("(('a', bytearray(b'1')),)", [("a", b"1")]),
                             ("__import__('types').MappingProxyType({'a': b'1'})", [("a", b"1")]), ("iter([['a', b'1']])", [("a", b"1")])):
            self.assertEqual(self.send(headersSelector=f"def h(v): return {source}").outputs[0].headers, want, source)
        for source in ("{'a': 1}", "{1: b''}", "'x'", "5", "[1]", "[('a',)]"):
            f = self.failure(self.send(headersSelector=f"def h(v): return {source}"))
            self.assertEqual((f.kind, f.type, f.operation), ("encode", "TypeError", "output 1, headersSelector"), source)
        r = self.send(headersSelector="class H:\n  def __getitem__(self, i): raise IndexError\n  @property\n  def items(self): return 1 // 0\ndef h(v): return H()")
        self.assertEqual(self.failure(r).type, "ZeroDivisionError")

    def test_partitions(self):
        self.assertEqual(self.send(partitionSelector="def p(v): return None").outputs[0].partition, -1)
        self.assertEqual(self.send(partitionSelector="def p(v): return 0").outputs[0].partition, 0)
        for source in ("True", "-1", "1.0", "'1'", "2**40"):
            f = self.failure(self.send(partitionSelector=f"def p(v): return {source}"))
            self.assertEqual((f.kind, f.operation), ("encode", "output 1, partitionSelector"), source)

    def test_topic_names(self):
        for source in ("None", "''", "5", "'a b'", "'x' * 250", "'..'", "b'x'"):
            f = self.failure(self.send(nameSelector=f"def n(v): return {source}"))
            self.assertEqual((f.kind, f.operation), ("encode", "output 1, nameSelector"), source)

    def test_predicates(self):
        for source, sent in (("def p(v): return v['a']", 1), ("async def p(v): return 0", 0), ("def p(v): return []", 0)):
            self.assertEqual(len(self.send(predicate=source).outputs), sent)

    def test_a_selector_must_not_return_a_generator(self):
        f = self.failure(self.send(keySelector="def k(v): return (x for x in v)"))
        self.assertEqual((f.kind, f.type, f.message), ("code", "TypeError", "a selector returns a value, not a generator"))

    def test_order_of_selectors(self):
        g = self.guest([], init="log = []", outputs=[{**{s: f"def f(v):\n  log.append('{s}')\n  return {r}" for s, r in (
            ("headersSelector", "None"), ("partitionSelector", "None"), ("valueSelector", "log"), ("keySelector", "1"), ("nameSelector", "'t'"), ("predicate", "1"))}}])
        self.assertEqual(self.values(g.process(js(0))), [["predicate", "nameSelector", "keySelector", "valueSelector", "partitionSelector", "headersSelector"]])

    def test_declare_asks_once(self):
        g = self.guest([], outputs=[{"topic": "t", "declare": {"partitions": 3, "config": {"a": "b"}}},
                                    {"nameSelector": "def n(v): return v", "declare": {}}])
        g.answers[OP_ENSURE_TOPIC] = lambda request: b"{}"
        g.process(js("x", "y", "x"))
        self.assertEqual([json.loads(r) for op, r in g.calls], [{"name": "t", "partitions": 3, "config": {"a": "b"}}, {"name": "x"}, {"name": "y"}])
        g = self.guest([], outputs=[{"topic": "t", "declare": {}}])
        g.answers[OP_ENSURE_TOPIC] = lambda request: b'{"error": "no rights"}'
        f = self.failure(g.process(js(1)))
        self.assertEqual((f.kind, f.type, f.message), ("send", "SendError", "no rights"))


class TopicSend(Case):
    def run_send(self, values=(1,), passthrough=False, after="def f(v): return v", answer=b"{}", **send):
        g = self.guest([{"topicSend": {"topic": "side", **send}, "passThrough": passthrough}, ("map", after)])
        g.answers[OP_SEND] = lambda request: answer
        return g, g.process(js(*values))

    def test_downstream_values(self):
        meta = {"topic": "side", "partition": 1, "offset": 7, "timestamp": 1.5, "timestamp_type": 0}
        for passthrough, ack, want in ((True, False, 1), (True, True, 1), (False, False, None), (False, True, {**meta, "topic_partition": ["side", 1]})):
            g, r = self.run_send(passthrough=passthrough, ack=ack, answer=json.dumps(meta).encode())
            self.assertEqual(self.values(r)[-1], want)
            sent = [decode_result(request).outputs[0] for op, request in g.calls] + r.outputs[:-1]
            self.assertEqual([(o.index, o.topic, o.value) for o in sent], [(-1, "side", b"1")])

    def test_predicate_drops_and_selectors(self):
        g, r = self.run_send(values=(0, 1), passthrough=True, predicate="def p(v): return v", keySelector="def k(v): return 'k'")
        self.assertEqual([(o.unit, o.topic, o.key) for o in r.outputs], [(1, "side", b'"k"'), (1, "", None)])

    def test_errors(self):
        g, r = self.run_send(ack=True, answer=b'{"error": "too large"}')
        f = self.failure(r)
        self.assertEqual((f.kind, f.type, f.message, f.operation), ("send", "SendError", "too large", 'operation "op0"'))
        g, r = self.run_send(keySelector="def k(v): return 1 / 0")
        self.assertEqual((self.failure(r).kind, self.failure(r).operation), ("code", 'operation "op0", keySelector'))

    def test_as_the_only_operation(self):
        g = self.guest([{"topicSend": {"topic": "side"}}], outputs=[])
        self.assertEqual([o.value for o in g.process(js(1, 2)).outputs], [b"1", b"2"])


class Async(Case):
    def test_the_asyncio_zoo(self):
        source = """
import asyncio
async def double(x):
    await asyncio.sleep(0.001 * x)
    return x * 2
async def f(v):
    out = [await double(1), await asyncio.gather(double(2), double(1)), await asyncio.wait_for(double(3), 1)]
    async with asyncio.TaskGroup() as group:
        a, b = group.create_task(double(4)), group.create_task(double(5))
    out += [a.result(), b.result()]
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(10)
    except TimeoutError:
        out.append('timeout')
    try:
        await asyncio.wait_for(asyncio.sleep(10), 0.001)
    except TimeoutError:
        out.append('timeout')
    q = asyncio.Queue()
    task = asyncio.create_task(q.get())
    await q.put(1)
    out.append(await task)
    lock = asyncio.Lock()
    async with lock:
        out.append(await asyncio.to_thread(lambda: 'thread'))
    out.append(asyncio.current_task() is asyncio.current_task() is not None)
    out.append(asyncio.get_running_loop() is context['app'].loop)
    return out
"""
        g = self.guest([("map", source)])
        want = [2, [4, 2], 6, 8, 10, "timeout", "timeout", 1, "thread", True, True]
        self.assertEqual(self.values(g.process(js(0, 1))), [want, want])
        self.assertEqual(g.logs, [])

    def test_everywhere(self):
        pause = "import asyncio\nasync def f(v):\n  await asyncio.sleep(0)\n  return "
        g = self.guest([("filter", pause + "v"), ("map", "import asyncio\nasync def f(v):\n  for i in (1, 2):\n    await asyncio.sleep(0)\n    yield i"),
                        ("map", "import asyncio\nasync def f(v):\n  yield v\n  await asyncio.sleep(0)\n  yield v * 10"),
                        {"topicSend": {"topic": "side", "predicate": pause + "True", "keySelector": pause + "v"}, "passThrough": True}],
                       outputs=[{"predicate": pause + "v > 1", "keySelector": pause + "v", "valueSelector": pause + "v", "nameSelector": pause + "'t'",
                                 "headersSelector": pause + "{'a': 'b'}", "partitionSelector": pause + "1"}])
        r = g.process(js(0, 1))
        self.assertEqual(r.failures, [])
        self.assertEqual([(o.topic, o.key) for o in r.outputs], [("side", b"1"), ("side", b"10"), ("side", b"2"), ("side", b"20"), ("t", b"10"), ("t", b"2"), ("t", b"20")])

    def test_any_awaitable(self):
        source = """
import asyncio, types
class A:
    def __init__(self, v): self.v = v
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self.v
@types.coroutine
def old(v):
    yield
    return v
def f(v):
    if v == 0: return A(v)
    if v == 1: return old(v)
    future = asyncio.get_running_loop().create_future()
    if v == 2: future.set_result(v)
    else: asyncio.get_running_loop().call_later(0.001, future.set_result, v)
    return future
"""
        self.assertEqual(self.run1(source, 0, 1, 2, 3), [0, 1, 2, 3])

    def test_exceptions_after_waiting_have_the_user_s_frames(self):
        source = "import asyncio\nasync def inner(v):\n  await asyncio.sleep(0)\n  return v['x']\nasync def f(v):\n  return await inner(v)"
        f = self.failure(self.guest([("map", source)]).process(js({})))
        self.assertEqual((f.kind, f.type, f.message), ("code", "KeyError", "'x'"))
        self.assertEqual(f.traceback, "    agent.yaml:15, in f\n        return await inner(v)\n    agent.yaml:13, in inner\n        return v['x']\n")

    def test_a_failing_await_leaves_the_next_records_alone(self):
        source = """
import asyncio
async def f(v):
    if v == 1: raise KeyboardInterrupt('no')
    if v == 2: raise SystemExit(4)
    if v == 3: asyncio.current_task().cancel()
    if v == 4: raise GeneratorExit
    if v == 5: await asyncio.get_running_loop().create_future()
    if v == 6:
        async with asyncio.TaskGroup() as g: g.create_task(boom())
    await asyncio.sleep(0)
    if v == 7: raise SystemExit
    if v == 8: await asyncio.gather(boom(), boom())
    if v == 9: raise asyncio.CancelledError
    if v == 10: asyncio.current_task().cancel()
    if v == 11: raise StopIteration
    return v
async def boom(): raise ValueError('boom')
"""
        g = self.guest([("map", source)])
        values = [0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0, 10, 0, 11, 0]
        r = g.process(js(*values))
        self.assertEqual({values[f.unit]: (f.kind, f.type) for f in r.failures}, {
            1: ("code", "KeyboardInterrupt"), 2: ("code", "SystemExit"), 3: ("code", "CancelledError"), 4: ("code", "GeneratorExit"), 5: ("code", "Stuck"),
            6: ("code", "ExceptionGroup"), 7: ("code", "SystemExit"), 8: ("code", "ValueError"), 9: ("code", "CancelledError"), 11: ("code", "RuntimeError")})
        self.assertEqual(len(r.outputs), len(values) - 10)
        group = [f for f in r.failures if f.type == "ExceptionGroup"][0]
        self.assertIn("in boom", group.traceback)
        self.assertIn("ValueError: boom", group.traceback)

    def test_background_tasks_run_on(self):
        g = self.guest([("map", "import asyncio\nasync def later(v):\n  seen.append(v)\n  await context['app'].send('later', value=v)\ndef f(v):\n  asyncio.get_running_loop().create_task(later(v))\n  return list(seen)")],
                       init="seen = []")
        r = g.process(js(1, 2))
        self.assertEqual([(o.unit, o.topic, o.value) for o in r.outputs], [(0, "", b"[]"), (0, "later", b"1"), (1, "", b"[1]"), (1, "later", b"2")])

    def test_init_may_start_tasks_and_timers(self):
        init = "import asyncio\nn = 0\nasync def tick():\n  global n\n  while True:\n    n += 1\n    await asyncio.sleep(0)\nloop = asyncio.get_running_loop()\ntask = loop.create_task(tick())\nevent = asyncio.Event()\nloop.call_later(0.002, event.set)"
        r = self.run1("async def f(v):\n  await event.wait()\n  return n > 0", 1, 2, init=init)
        self.assertEqual(r, [True, True])

    def test_async_generators_that_are_not_exhausted(self):
        source = "async def gen():\n  try:\n    yield 1\n    yield 2\n  finally:\n    closed.append(1)\nasync def f(v):\n  async for x in gen():\n    break\n  return len(closed)"
        self.assertEqual(self.run1(source, 0, 0, init="closed = []"), [0, 1])

    def test_contextvars_survive_waiting(self):
        source = "import asyncio, contextvars\nvar = contextvars.ContextVar('var', default=0)\nasync def f(v):\n  before = var.get()\n  var.set(v)\n  await asyncio.sleep(0)\n  return [before, var.get()]"
        self.assertEqual(self.run1(source, 1, 2), [[0, 1], [1, 2]])

    def test_sync_code_inside_asyncio_run_is_told(self):
        f = self.failure(self.guest([("map", "import asyncio\nasync def a(): pass\ndef f(v): asyncio.run(a())")]).process(js(0)))
        self.assertEqual((f.type, f.message), ("RuntimeError", "asyncio.run() cannot be called from a running event loop"))


class Failures(Case):
    def test_partial_outputs_are_rolled_back(self):
        g = self.guest([("map", "async def f(v):\n  yield 1\n  await context['app'].send('x', value=1)\n  if v: raise ValueError('half way')\n  yield 2")],
                       outputs=[{}, {"topic": "b"}])
        r = g.process(js(1, 0, 1))
        self.assertEqual([(o.unit, o.topic or o.index) for o in r.outputs], [(1, 0), (1, 1), (1, "x"), (1, 0), (1, 1)])
        self.assertEqual([f.unit for f in r.failures], [0, 2])
        self.assertEqual(r.done, [0, 1, 2])

    def test_encode_failure_in_the_second_output_takes_the_first_back(self):
        r = self.guest([], outputs=[{}, {"valueSerializer": "raw"}]).process(js(1, "a"))
        self.assertEqual([(o.unit, o.index) for o in r.outputs], [(1, 0), (1, 1)])
        self.assertEqual(self.failure(r).kind, "encode")

    def test_traceback_and_chain(self):
        source = "def g(v):\n  return 1 / v\ndef f(v):\n  try:\n    g(v)\n  except ZeroDivisionError as e:\n    raise ValueError('bad\\nvalue') from e"
        f = self.failure(self.guest([("map", {"python": source, "line": 42, "entrypoint": "f"})]).process(js(0)))
        self.assertEqual(f.traceback,
                         "    agent.yaml:46, in f\n        g(v)\n    agent.yaml:43, in g\n        return 1 / v\n    ZeroDivisionError: division by zero\n"
                         "    which is the cause of:\n    agent.yaml:48, in f\n        raise ValueError('bad\\nvalue') from e\n")
        self.assertEqual((f.type, f.message), ("ValueError", "bad\nvalue"))

    def test_frames_of_libraries_are_left_out(self):
        f = self.failure(self.guest([("map", "import json\ndef f(v): return json.loads('{')")]).process(js(0)))
        self.assertEqual(f.traceback, "    agent.yaml:11, in f\n        def f(v): return json.loads('{')\n")

    def test_deep_recursion(self):
        f = self.failure(self.guest([("map", "def f(v): return f(v)")]).process(js(0)))
        self.assertEqual((f.kind, f.type), ("code", "RecursionError"))
        self.assertIn("frames more", f.traceback)
        self.assertLess(len(f.traceback), 4000)

    def test_hostile_exceptions(self):
        source = """
class Silent(Exception):
    def __str__(self): raise KeyError('inner')
class Huge(Exception):
    def __str__(self): return 'ä' * 10_000_000
class Odd(Exception):
    def __str__(self): return chr(0xD800) + 'x'
class NotText(Exception):
    def __str__(self): return 5
def f(v):
    if v < 4: raise [Silent, Huge, Odd, NotText][v]()
    if v == 4:
        a, b = ValueError('a'), ValueError('b')
        a.__cause__, b.__cause__ = b, a
        raise a
    if v == 5:
        e = ValueError('x')
        for _ in range(100000):
            new = ValueError('x'); new.__context__ = e; e = new
        raise e
    if v == 6: raise type('N' * 100000, (Exception,), {})()
    if v == 7: raise BaseException
    if v == 8: exec('def ' + 'n' * 5000 + '(): 1/0\\n' + 'n' * 5000 + '()')
    return v
"""
        r = self.guest([("map", source)]).process(js(*range(10)))
        messages = [(f.type[:10], f.message[:60]) for f in r.failures]
        self.assertEqual(messages[0], ("Silent", "<its text is not known: str() raised KeyError>"))
        self.assertEqual(messages[2], ("Odd", "\\ud800x"))
        self.assertEqual(messages[3], ("NotText", "<its text is not known: str() raised TypeError>"))
        self.assertLess(len(r.failures[1].message.encode()), 9000)
        self.assertLess(len(r.failures[6].type), 250)
        self.assertEqual([f.unit for f in r.failures], list(range(9)))
        self.assertEqual([o.unit for o in r.outputs], [9])
        for f in r.failures:
            self.assertLess(len(f.traceback), 20000)

    def test_exits_are_failures(self):
        source = "import sys\ndef f(v):\n  if v == 0: sys.exit(1)\n  if v == 1: raise KeyboardInterrupt\n  if v == 2: raise GeneratorExit\n  if v == 3: exit()\n  return v"
        r = self.guest([("map", source)]).process(js(0, 1, 2, 3, 4))
        self.assertEqual([(f.kind, f.type) for f in r.failures], [("code", t) for t in ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "NameError")])

    def test_memory_error(self):
        f = self.failure(self.guest([("map", "import sys\ndef f(v): return [bytearray(sys.maxsize - 99) for _ in range(3)]")]).process(js(0)))
        self.assertIn(f.kind, ("memory", "code"))
        self.assertIn(f.type, ("MemoryError", "OverflowError"))
        f = self.failure(self.guest([("map", "def f(v): raise MemoryError")]).process(js(0)))
        self.assertEqual(f.kind, "memory")

    def test_overwritten_modules_and_builtins_do_not_reach_other_records(self):
        source = """
import builtins, json, sys, pickle, asyncio
def f(v):
    if v == 0:
        json.loads = json.dumps = pickle.loads = None
        for name in ('str', 'len', 'isinstance', 'getattr', 'repr'): setattr(builtins, name, None)
        for name in list(sys.modules):
            if name not in ('sys', 'builtins'): sys.modules[name] = None
        sys.stdout = sys.stderr = None
        sys.excepthook = None
        del sys.meta_path[:]
        import gc; gc.disable() if gc else None
    return v
"""
        r = self.guest([("map", source)]).process(js(0, 1, {"a": 1}, 3))
        self.assertEqual([o.value for o in r.outputs if o.unit], [b"1", b'{"a": 1}', b"3"])

    def test_user_code_in_encoders_that_sends(self):
        source = "class X:\n  def __json__(self):\n    context['app'].send('no')  \n    send('inner')\n    return 'x'\ndef f(v): return X()"
        init = "import _kaspr\ndef send(t): _kaspr.produce(t, None, 1, None, None, None, 0, 1)"
        r = self.guest([("map", source)], init=init).process(js(1))
        self.assertEqual([(o.topic, o.value) for o in r.outputs], [("", b'"x"'), ("inner", b"1")])
        r = self.guest([("map", source.replace("return 'x'", "return object()"))], init=init).process(js(1))
        self.assertEqual((r.outputs, self.failure(r).kind), ([], "encode"))

    def test_destructors_that_raise(self):
        g = self.guest([("map", "class D:\n  def __del__(self): raise ValueError('late')\ndef f(v):\n  D()\n  return v")])
        self.assertEqual(self.values(g.process(js(1))), [1])
        self.assertIn("ValueError: late", "\n".join(text for _, text in g.logs))

    def test_destructors_see_no_event(self):
        source = "class D:\n  def __del__(self): seen.append([context.get('event'), list(context)])\ndef f(v):\n  v['d'] = [D()]\n  return list(seen)"
        g = self.guest([("map", source)], init="seen = []", outputs=[{}])
        r = g.process(js({"a": 1}, {"a": 1}))
        self.assertEqual(self.values(r), [[], [[None, ["app"]]]])
        r = g.process(js({"a": 1}, {"a": 1}), take=True)
        self.assertEqual([f.type for f in r.failures], ["TypeError"])

    def test_bad_batches_are_refused(self):
        g = self.guest([])
        for data in (b"", b"x" * 100, b"KSB1" + b"\xff" * 100):
            rc, text, _ = g.call("P", data)
            self.assertEqual(rc, 1)
            self.assertIn(b"ValueError", text)
        self.assertEqual(self.values(g.process(js(1))), [1])

    def test_nothing_is_loaded(self):
        with Guest() as g:
            with self.assertRaisesRegex(RuntimeError, "no program is loaded"):
                g.process(js(1))


class Context(Case):
    HEADERS = [("h", b"1"), ("h", b"2"), ("n", None)]

    def test_event_and_message(self):
        source = """
def f(v):
    e = context['event']
    m = e.message
    assert context['event'] is e and context.get('event') is e and 'event' in context and list(context) == ['app', 'event']
    assert e.app is context['app'] and e.value is v and e.message is m and e.ack() is None and len(context) == 2
    assert m.tp == (m.topic, m.partition) and m.checksum is None and e.headers is e.headers
    return [e.key, {k: str(x) for k, x in e.headers.items()}, m.topic, m.partition, m.offset, m.timestamp, m.timestamp_type, str(m.key), str(m.value),
            [(k, str(x)) for k, x in m.headers], m.serialized_key_size, m.serialized_value_size]
"""
        g = self.guest([("filter", "def f(v): return True"), ("map", source)], key="json")
        r = g.process([Record(b'{"a": 1}', key=b'"k"', headers=self.HEADERS, topic="tö", partition=3, offset=1 << 40, timestamp=1500, timestamp_type=1),
                       Record(b"1")])
        self.assertEqual(self.values(r), [
            ["k", {"h": "b'2'", "n": "None"}, "tö", 3, 1 << 40, 1.5, 1, "b'\"k\"'", "b'{\"a\": 1}'", [["h", "b'1'"], ["h", "b'2'"], ["n", "None"]], 3, 8],
            [None, {}, "in", 0, 0, 1700000000.123, 0, "None", "b'1'", [], 0, 1]])

    def test_an_event_outlives_its_record(self):
        source = "def f(v):\n  kept.append(context['event'])\n  return None\n"
        later = "def f(v):\n  return [[e.key.decode(), e.value, e.message.value.decode(), e.message.headers[0][0], e.headers['h'].decode()] for e in kept[:-1]]"
        g = self.guest([("map", source), ("map", later)], init="kept = []")
        g.process([Record(b"1", key=b"one", headers=self.HEADERS)])
        g.process([Record(b"222222", key=b"xxxxxxxxx", headers=self.HEADERS) for _ in range(3)])
        r = g.process([Record(b"9" * 200, key=b"nine", headers=self.HEADERS)])
        want = [["one", 1, "1", "h", "2"]] + [["xxxxxxxxx", 222222, "222222", "h", "2"]] * 3
        self.assertEqual(self.values(r)[-1], want)

    def test_unknown_members(self):
        for source, want in (("context['event'].offset", "event has no member 'offset'; it has key, value, headers, message, app, forward, send and ack"),
                             ("context['event'].message.values", "message has no member 'values'"), ("context['app'].http_client", "user code has no network"),
                             ("context['app'].conf.nope", "app.conf has no member 'nope'; it has"), ("context['app'].agents", "app has no member 'agents'; it has send")):
            f = self.failure(self.guest([("map", f"def f(v): return {source}")]).process(js(0)))
            self.assertEqual(f.type, "AttributeError")
            self.assertIn(want, f.message)

    def test_context_is_fresh_for_every_call(self):
        g = self.guest([("map", "def f(v):\n  context['x'] = 1\n  return [context['x'], sorted(context)]"), ("map", "def f(v): return v + [context.get('x', 'gone')]")])
        self.assertEqual(self.values(g.process(js(0))), [[1, ["app", "event", "x"], "gone"]])

    def test_init_has_no_event(self):
        self.assertEqual(self.run1("def f(v): return early", 0, init="early = ['event' in context, context['app'].name, list(context)]"), [[False, "shop", ["app"]]])
        [p] = self.problems([("map", "def f(v): pass")], init="context['event']")
        self.assertEqual((p["type"], p["message"]), ("KeyError", "'event'"))

    def test_app(self):
        source = "def f(v):\n  a = context['app']\n  return [a.conf.name, a.conf.id, a.conf['topic_partitions'], a.conf.get('x', 5), a.is_leader(), a.rebalancing, a.name]"
        for leads in (False, True):
            g = self.guest([("map", source)], app={"name": "shop", "id": "shop-app", "conf": {"topic_partitions": 8, "is_leader": not leads}})
            g.answers[OP_IS_LEADER] = lambda request: bytes([leads])
            self.assertEqual(self.values(g.process(js(0))), [["shop", "shop-app", 8, 5, leads, False, "shop"]])

    def test_send_forward_and_topics(self):
        source = """
async def f(v):
    a, e = context['app'], context['event']
    t = a.topic('typed', key_serializer='json', value_serializer='raw')
    sent = await a.send('s', key='k', value={'x': 1}, partition=2, timestamp=1.5, headers={'h': 'v'})
    meta = await sent
    assert (meta.topic, meta.partition) == ('s', 2)
    await t.send(key='k', value='raw')
    await a.send(t, value=b'raw2')
    await e.forward('f')
    await e.forward('f', value=None)
    await e.send('e', value_serializer='raw', value='over')
    await e.send('e')
    try: meta.offset
    except RuntimeError as x: return str(x)[:19]
"""
        g = self.guest([("map", source)])
        r = g.process([Record(b'{"a":  1}', key=b"kk", headers=self.HEADERS)])
        self.assertEqual(r.failures, [])
        h = self.HEADERS
        self.assertEqual([(o.topic, o.key, o.value, o.partition, o.timestamp, o.headers) for o in r.outputs], [
            ("s", b"k", b'{"x": 1}', 2, 1500, [("h", b"v")]), ("typed", b'"k"', b"raw", -1, 0, []), ("typed", None, b"raw2", -1, 0, []),
            ("f", b"kk", b'{"a":  1}', -1, 0, h), ("f", b"kk", b"null", -1, 0, h), ("e", b"kk", b"over", -1, 0, h), ("e", b"kk", b'{"a": 1}', -1, 0, h),
            ("", None, b'"offset is not known"', -1, 0, [])])

    def test_topics_are_declared(self):
        g = self.guest([("map", "t = context['app'].topic('new', partitions=3, compacting=True, retention=60)\nasync def f(v):\n  await t.maybe_declare()\n  return v")])
        g.answers[OP_ENSURE_TOPIC] = lambda request: b"{}"
        g.process(js(1, 2))
        self.assertEqual([json.loads(r) for _, r in g.calls], [{"name": "new", "partitions": 3, "config": {"cleanup.policy": "compact", "retention.ms": "60000"}}])

    def test_sending_from_init_is_refused(self):
        [p] = self.problems([("map", "def f(v): pass")], init="import asyncio\ncoro = context['app'].send('x', value=1)\ntry: coro.send(None)\nexcept StopIteration: pass")
        self.assertIn("not from init", p["message"])

    def test_log_and_print(self):
        source = "import logging, sys, warnings\ndef f(v):\n  print('a', 'b', end='')\n  print('c\\nd')\n  print('é\\ud800', file=sys.stderr)\n  context['app'].log.error('x %d', 5)\n  logging.getLogger('mine').warning('w')\n  logging.info('i')\n  logging.debug('d')\n  try: 1/0\n  except Exception: context['app'].log.exception('oops')"
        g = self.guest([("map", source)])
        g.process(js(0))
        self.assertEqual(g.logs[:6], [(30, "a bc"), (30, "d"), (30, "é\\ud800"), (40, "x 5"), (30, "mine: w"), (20, "i")])
        self.assertEqual(g.logs[6][0], 40)
        self.assertIn("oops\nTraceback", g.logs[6][1])


class Take(Case):
    def test_a_list_of_values_and_events(self):
        g = self.guest([("map", "def f(vs): return [vs, [(e.value, e.key.decode(), e.message.offset) for e in context['event']]]")])
        r = g.process([Record(b"1", key=b"a", offset=5), Record(b"2", key=b"b", offset=6)], take=True)
        self.assertEqual(self.values(r), [[[1, 2], [[1, "a", 5], [2, "b", 6]]]])
        self.assertEqual(r.done, [0])

    def test_undecodable_records_fail_alone(self):
        g = self.guest([("map", "def f(vs): return [vs, [e.message.offset for e in context['event']]]")])
        r = g.process([Record(b"{", offset=1), Record(b"2", offset=2), Record(b"}", offset=3), Record(b"4", offset=4)], take=True)
        self.assertEqual([(f.unit, f.kind) for f in r.failures], [(0, "decode-value"), (2, "decode-value")])
        self.assertEqual(json.loads(r.outputs[0].value), [[2, 4], [2, 4]])
        r = g.process([Record(b"{")], take=True)
        self.assertEqual((r.outputs, r.done), ([], [0]))

    def test_a_failing_list_is_one_failure(self):
        g = self.guest([("map", "async def f(vs):\n  yield 1\n  raise ValueError(sum(vs))")])
        r = g.process([Record(b"1"), Record(b"{"), Record(b"2")], take=True)
        self.assertEqual([(f.unit, f.kind, f.message[:3]) for f in r.failures], [(1, "decode-value", "Exp"), (0, "code", "3")])
        self.assertEqual((r.outputs, r.done), ([], [0]))

    def test_fan_out_and_mutation(self):
        g = self.guest([("map", "def f(vs):\n  vs.sort()\n  return (v for v in vs)"), ("map", "def f(v): return [v, [e.value for e in context['event']]]")])
        self.assertEqual(self.values(g.process(js(3, 1), take=True)), [[1, [3, 1]], [3, [3, 1]]])

    def test_the_list_of_events_is_made_once(self):
        g = self.guest([("map", "def f(vs): return context['event'] is context['event']")])
        self.assertEqual(self.values(g.process(js(3, 1), take=True)), [True])

    def test_events_of_a_list_outlive_it(self):
        g = self.guest([("map", "def f(vs):\n  old = [e.message.value.decode() for e in kept]\n  kept[:] = context['event']\n  return old")], init="kept = []")
        g.process(js(1, 2), take=True)
        self.assertEqual(self.values(g.process(js(33333, 4), take=True)), [["1", "2"]])


class Interruption(Case):
    LOOP = "def inner(v):\n  while v: pass\n  return v\ndef f(v): return inner(v)"

    def test_raise_now(self):
        source = "import time\ndef f(v):\n  if v: print('tick')\n  x = 0\n  for i in range(100000): x += i\n  return v"
        g = self.guest([("map", source)])
        g.tick_on, g.tick_answer = "tick", RAISE
        r = g.process(js(0, 1, 0, 1, 0))
        self.assertEqual([(f.unit, f.kind, f.type, f.message) for f in r.failures], [(n, "deadline", "DeadlineExceeded", "the record runs longer than its deadline") for n in (1, 3)])
        self.assertIn("in f\n", r.failures[0].traceback)
        self.assertEqual([o.unit for o in r.outputs], [0, 2, 4])

    def test_it_can_be_caught(self):
        source = "import kaspr\ndef f(v):\n  try:\n    print('tick')\n    while True: pass\n  except kaspr.DeadlineExceeded:\n    return 'late'"
        g = self.guest([("map", source)])
        g.tick_on, g.tick_answer = "tick", RAISE
        self.assertEqual(self.values(g.process(js(0))), ["late"])

    def test_one_that_comes_too_late_is_forgotten(self):
        g = self.guest([("map", "import _kaspr\nf = lambda v: _kaspr.log(30, 'tick')"), ])
        g.tick_on, g.tick_answer = "tick", RAISE
        r = g.process(js(0, 1))
        self.assertLessEqual(len(r.failures), 2)
        g.tick_on = None
        self.assertEqual(self.values(g.process(js(0, 1))), [None, None])

    def test_in_a_sleeping_coroutine(self):
        source = "import asyncio\nasync def inner(v):\n  try:\n    await asyncio.sleep(5 * v)\n  finally:\n    seen.append('finally')\nasync def f(v):\n  await asyncio.gather(inner(v), inner(0))\n  return seen"
        g = self.guest([("map", source)], init="seen = []")
        g.answers[OP_SLEEP] = lambda request: self._tick(g)
        r = g.process(js(1, 0))
        f = self.failure(r)
        self.assertEqual((f.kind, f.unit), ("deadline", 0))
        self.assertIn("await asyncio.gather", f.traceback)
        self.assertEqual(json.loads(r.outputs[0].value), ["finally"] * 4)

    def _tick(self, g):
        """The sleep is ended by a tick that raises."""
        g.tick_next = RAISE + 1
        return b""

    def test_die_leaves_a_report_and_the_finished_units(self):
        source = "def inner(v):\n  if v: print('tick')\n  return v\ndef f(v):\n  return sum(inner(x) for x in [v])"
        g = self.guest([("filter", "def f(v): return True"), ("map", {"python": source, "line": 100, "entrypoint": "f"})])
        g.tick_on, g.tick_answer = "tick", DIE
        with self.assertRaises(Died) as died:
            g.process(js(0, 0, 1, 0))
        d = died.exception
        self.assertEqual(d.report, "agent.yaml:104\tf\nagent.yaml:104\t<genexpr>\nagent.yaml:101\tinner\n")
        self.assertEqual((d.result.done, d.progress, d.phase, d.operation), ([0, 1], 2, 3, 1))
        self.assertEqual([o.value for o in d.result.outputs], [b"0", b"0"])

    def test_die_with_many_frames_and_large_results(self):
        g = self.guest([("map", "def g(n):\n  if n: return g(n - 1)\n  print('tick')\ndef f(v):\n  if v == 0: return 'x' * 100000\n  g(200)")])
        g.tick_on, g.tick_answer = "tick", DIE
        with self.assertRaises(Died) as died:
            g.process(js(*[0] * 50, 1))
        self.assertEqual(len(died.exception.result.outputs), 50)
        self.assertEqual(died.exception.report.count("\n"), 64)

    @unittest.skipIf(WASM, "needs the loop checks of the host's rewriter")
    def test_endless_loops(self):
        for source in (self.LOOP, "import re\ndef f(v): return re.match('(a+)+$', 'a' * (40 if v else 1) + 'b')", "def f(v): return v and 7 ** (10 ** 8)",
                       "import time\ndef f(v): time.sleep(20 * v)", "import asyncio\nasync def f(v): await asyncio.sleep(20 * v)",
                       "def f(v):\n  while v:\n    try: x = 1\n    except Exception: pass", "import asyncio\nasync def f(v):\n  while v: await asyncio.sleep(0)",
                       "def f(v):\n  while v: yield 1"):
            g = self.guest([("map", source)], outputs=[])
            g.ticks(50, 1000, [RAISE])
            r = g.process(js(0, 1, 0))
            self.assertEqual([(f.unit, f.kind) for f in r.failures], [(1, "deadline")], source)
            self.assertLess(r.ns, 5e9)

    @unittest.skipIf(WASM, "needs the loop checks of the host's rewriter")
    def test_stubborn_loops_die(self):
        for source in ("def f(v):\n  while v:\n    try:\n      while True: pass\n    except BaseException: pass", "def f(v): return v and sum(range(10 ** 15))",
                       "async def g():\n  while True:\n    try:\n      while True: pass\n    except BaseException: pass\nasync def f(v):\n  import asyncio\n  await asyncio.sleep(0)\n  if v: await g()",
                       "def f(v): return v and [0] * 10 in iter(int, 1)"):
            g = self.guest([("map", source)], outputs=[])
            g.ticks(50, 50, [RAISE, CONTINUE, DIE])
            with self.assertRaises(Died) as died:
                g.process(js(0, 1, 0))
            self.assertEqual(died.exception.result.done, [0], source)
            self.assertIn("\tf\n", died.exception.report)

    @unittest.skipIf(WASM, "needs the loop checks of the host's rewriter")
    def test_loading(self):
        with Guest() as g:
            g.ticks(100, 1000, [RAISE])
            [p] = g.load(program([("map", "def f(v): pass")], init={"python": "\nwhile True: pass", "line": 7}))
            self.assertEqual((p["type"], p["line"]), ("DeadlineExceeded", 8))

    def test_a_deadline_in_the_event_loop_is_a_deadline(self):
        imports = "import asyncio\nfrom kaspr import DeadlineExceeded\n"
        in_a_callback = "async def f(v):\n  loop = asyncio.get_running_loop()\n  wake = loop.create_future()\n  def late():\n    if v: raise DeadlineExceeded\n    wake.set_result(v)\n  loop.call_soon(late)\n  return await wake"
        between_callbacks = "async def f(v):\n  task = asyncio.create_task(g(v))\n  if v:\n    ready = asyncio.get_running_loop()._ready\n    ready.pop()\n    ready.append(Late())\n  return (await asyncio.gather(task))[0]\nasync def g(v): return v\nclass Late:\n  @property\n  def _cancelled(self): raise DeadlineExceeded"
        for source in in_a_callback, between_callbacks:
            r = self.guest([("map", imports + source)]).process(js(0, 1, 0))
            self.assertEqual([(f.unit, f.kind) for f in r.failures], [(1, "deadline")], source)
            self.assertEqual([o.value for o in r.outputs], [b"0", b"0"], source)

    def test_a_unit_task_that_was_given_up_takes_no_place(self):
        # Two deadlines before it comes to its work: the next record has another task, whose place the old one must not take once it wakes up.
        source = "import asyncio\nfrom kaspr import DeadlineExceeded\nasync def f(v):\n  if v: asyncio.get_running_loop()._ready.extend([Late(), Late()])\n  await asyncio.sleep(0)\n  return v\nclass Late:\n  @property\n  def _cancelled(self): raise DeadlineExceeded"
        r = self.guest([("map", source)]).process(js(0, 1, 0, 0))
        self.assertEqual([(f.unit, f.kind) for f in r.failures], [(1, "deadline")])
        self.assertEqual([(o.unit, o.value) for o in r.outputs], [(0, b"0"), (2, b"0"), (3, b"0")])

    @unittest.skipIf(WASM, "needs the loop checks of the host's rewriter")
    def test_ticks_at_any_moment_do_no_harm(self):
        source = "import asyncio, json, re\nasync def g(v):\n  await asyncio.sleep(0)\n  return json.loads(json.dumps({'a': [v] * 50}))\nasync def f(v):\n  out = await asyncio.gather(g(v), g(v))\n  for x in range(20): yield {**out[0], 'x': x}"
        g = self.guest([("map", source)])
        records = js(*range(300))
        total = 0
        for n in range(60):
            g.ticks(1, 1, [RAISE])
            r = g.process(records)
            self.assertEqual(r.done, list(range(300)))
            for f in r.failures:
                self.assertEqual(f.kind, "deadline", f)
            total += len(r.failures)
            self.assertEqual(len(r.outputs), 20 * (300 - len(r.failures)))
        self.assertGreater(total, 50)
        self.assertEqual(len(g.process(records).outputs), 6000)


@unittest.skipIf(WASM, "the native guest tells")
class Leaks(Case):
    CASES = {
        "plain": ("def f(v): return {**v, 'x': 1}", {}),
        "raise": ("def f(v): return v['nothing']", {}),
        "chain": ("def f(v):\n  try: 1 / 0\n  except Exception as e: raise ValueError([v]) from e", {}),
        "generator": ("def f(v):\n  yield v\n  yield [v]", {}),
        "generator that fails": ("def f(v):\n  yield v\n  raise ValueError", {}),
        "async generator": ("import asyncio\nasync def f(v):\n  yield v\n  await asyncio.sleep(0)\n  yield [v]", {}),
        "async generator that fails": ("import asyncio\nasync def f(v):\n  yield v\n  await asyncio.sleep(0)\n  raise ValueError", {}),
        "coroutine": ("async def f(v): return v", {}),
        "waiting": ("import asyncio\nasync def f(v):\n  await asyncio.sleep(0)\n  return v", {}),
        "waiting and failing": ("import asyncio\nasync def f(v):\n  await asyncio.sleep(0)\n  raise ValueError(v)", {}),
        "stuck": ("import asyncio\nasync def f(v): await asyncio.get_running_loop().create_future()", {}),
        "cancelled": ("import asyncio\nasync def f(v):\n  asyncio.current_task().cancel()\n  await asyncio.sleep(0)", {}),
        "tasks": ("import asyncio\nasync def g(v): return v\nasync def f(v):\n  asyncio.create_task(g(v))\n  return await asyncio.gather(g(v), g(v))", {}),
        "exit": ("import asyncio\nasync def f(v):\n  await asyncio.sleep(0)\n  raise SystemExit", {}),
        "event": ("def f(v):\n  e = context['event']\n  context['x'] = e\n  return [str(e.key), str(e.headers), str(e.message.value), e.message.offset, e.message.topic, str(e.message.headers)]", {}),
        "event in a cycle": ("def f(v):\n  v['e'] = context['event']\n  v['m'] = v['e'].message\n  v['m'].headers.append(v)", {}),
        "send": ("async def f(v):\n  await context['app'].send('t', value=v, headers={'a': 'b'})\n  await context['event'].forward('x')", {}),
        "selectors": ("def f(v): return v", dict(keySelector="def k(v): return [v]", valueSelector="def s(v): return [v]", headersSelector="def h(v): return [('a', b'b')]",
                                                 partitionSelector="def p(v): return 70000", nameSelector="def n(v): return 't' * 40", predicate="def p(v): return [1]")),
        "encode error": ("def f(v): return object()", {}),
        "header error": ("def f(v): return v", dict(headersSelector="def h(v): return [('a', b'b'), ('c', 5)]")),
        "topic error": ("def f(v): return v", dict(nameSelector="def n(v): return 'no good'")),
        "partition error": ("def f(v): return v", dict(partitionSelector="def p(v): return -70000")),
        "decode": ("def f(v): return v", {}),
        "pickle": ("def f(v): return v", dict(valueSerializer="pickle", keySerializer="binary", keySelector="def k(v): return b'k' * 99")),
    }

    def test_nothing_is_left_of_a_record(self):
        # CPython's method cache keeps a name for every place; where names are made anew each time, it fills up one by one for a while.
        probe = "import gc, sys\ndef f(v):\n  if v in ('probe', ['probe']):\n    gc.collect()\n    sys._clear_type_cache()\n    print(sys.getallocatedblocks())\n    return False\n  return True"
        for take in (False, True):
            for name, (source, output) in self.CASES.items():
                g = self.guest([("filter", probe), ("map", source)], outputs=[output])
                records = [Record(b'{"a": "a value that is not interned %d"}' % i, key=b"a key", headers=[("h", b"a value")]) for i in range(20)]
                records += [Record(b'{"a": ')] if name == "decode" else []
                counts = []
                for _ in range(12):
                    for _ in range(10):
                        g.process(records, take=take)
                    g.process(js("probe"), take=take)
                    counts.append(int(g.logs[-1][1]))
                # A leak adds at least one block for every batch.
                self.assertLess(min(b - a for a, b in zip(counts[3:], counts[4:])), 10, (name, take, counts))


class Reseed(Case):
    def test_randomness_is_fresh(self):
        source = "import random, uuid, tempfile, secrets\ndef f(v): return [random.random(), uuid.uuid4().hex, uuid.uuid1().hex, secrets.token_hex(4)]"
        seen = []
        for seed in (b"a" * 64, b"b" * 64, b"a" * 64):
            g = self.guest([("map", source)], init="import random\nrandom.seed(1)")
            self.assertEqual(g.call("R", seed)[0], 0)
            seen.append(self.values(g.process(js(0)))[0])
        self.assertEqual(seen[0][0], seen[2][0])
        self.assertNotEqual(seen[0][0], seen[1][0])
        self.assertNotEqual(seen[0][1:], seen[2][1:])


if __name__ == "__main__":
    unittest.main()
