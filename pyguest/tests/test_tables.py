"""Tables in a guest, against a model of the host's side (guest.Tables). See spec numbers in the comments: table.md."""

import json
import random
import unittest

from guest import OP_TABLE_GET, Record, Tables, table
from test_glue import WASM, Case, js

HOUR = 3_600_000


def user(*values, at=0, partition=0):
    return [Record(json.dumps(v).encode(), key=b"k", offset=i, timestamp=at, partition=partition) for i, v in enumerate(values)]


class TableCase(Case):
    def tables(self, source, *tables, page=1 << 20, partitions=4, **kw):
        """A guest with one map operation that gets the tables, and its host."""
        g = self.guest([("map", source)], tables=tables or (table(),), **kw)
        return g, Tables(g, page=page, partitions=partitions)

    def outputs(self, g, host, *values, **kw):
        r = g.process(user(*values, **kw))
        host.apply(r)
        return self.values(r)


class Mapping(TableCase):
    def test_counts_within_and_over_calls(self):
        g, host = self.tables("def f(v, t):\n  t[v] += 1\n  return t[v]", table(default="def d(): return int"))
        self.assertEqual(self.outputs(g, host, "a", "b", "a", "a"), [1, 1, 2, 3])
        self.assertEqual(self.outputs(g, host, "a"), [4])
        self.assertEqual(host.of(0, 0), {b'"a"': b"4", b'"b"': b"1"})

    def test_changes_are_the_last_ones_of_a_unit_in_order(self):
        g, host = self.tables("def f(v, t):\n  t['x'] = 1\n  t['y'] = 2\n  t['x'] = 3\n  del t['z']\n  return 0")
        r = g.process(user(0))
        self.assertEqual([(c.unit, c.table, c.partition, c.key, c.value, c.expires) for c in r.changes],
                         [(0, 0, -1, b'"x"', b"3", 0), (0, 0, -1, b'"y"', b"2", 0), (0, 0, -1, b'"z"', None, 0)])

    def test_reads(self):  # section 4
        source = """def f(v, t):
  out = []
  for step in (lambda: t['there'], lambda: t['gone'], lambda: t.get('gone'), lambda: t.get('gone', 7), lambda: t.get('there', 7),
               lambda: 'there' in t, lambda: 'gone' in t, lambda: t.pop('gone'), lambda: t.pop('gone', 8), lambda: t.pop('there'),
               lambda: 'there' in t, lambda: t.setdefault('new', 9), lambda: t.setdefault('new', 10), lambda: t.clear()):
    try: out.append(step())
    except Exception as e: out.append(type(e).__name__)
  return out"""
        want = [[1], "KeyError", None, 7, [1], True, False, "KeyError", 8, [1], False, 9, 9, "NotImplementedError"]
        for default, changed in (None, {}), ("def d(): return dict", {1: {}, 2: {}, 7: {}}), ("def d(): return {'a': 1}", {1: {"a": 1}, 2: {"a": 1}, 7: {"a": 1}}):
            g, host = self.tables(source, table(default=default))
            host.of(0, 0)[b'"there"'] = b"[1]"
            expected = [changed.get(i, w) for i, w in enumerate(want)]
            self.assertEqual(self.outputs(g, host, 0), [expected], default)
            self.assertEqual(host.of(0, 0), {b'"new"': b"9"})

    def test_reads_give_copies(self):  # 4.1
        g, host = self.tables("def f(v, t):\n  t['a'].append(1)\n  d = t['b']\n  d.append(2)\n  t['b'] = d\n  d.append(3)\n  return [t['a'], t['b']]",
                              table(default="def d(): return list"))
        self.assertEqual(self.outputs(g, host, 0), [[[], [2]]])

    def test_keys_and_values_go_through_json(self):  # 4.2, 4.3
        g, host = self.tables("""def f(v, t):
  for k in (1, '1', None, 1.5, True, (1, 2), [3]): t[k] = {'k': str(k)}
  t['none'] = None
  t['set'] = {1}
  t['int keys'] = {1: 2}
  return ['none' in t, t['none'], t['set'], t['int keys'], t[None], t[(1, 2)]]""")
        self.assertEqual(self.outputs(g, host, 0), [[True, None, [1], {"1": 2}, {"k": "None"}, {"k": "(1, 2)"}]])
        self.assertEqual(sorted(host.of(0, 0)), sorted([b"1", b'"1"', b"null", b"1.5", b"true", b"[1, 2]", b"[3]", b'"none"', b'"set"', b'"int keys"']))

    def test_raw(self):
        g, host = self.tables("""def f(v, t):
  t['ü'] = 'text'
  t[b'b'] = b'\\xff'
  out = [t['ü'].decode(), repr(t[b'b']), sorted(repr(k) for k in t)]
  for bad in (lambda: t[1], lambda: t.update(x=None), lambda: t.update(x=5)):
    try: bad()
    except TypeError as e: out.append(str(e))
  return out + ['x' in t]""", table(keySerializer="raw", valueSerializer="raw"))
        self.assertEqual(self.outputs(g, host, 0), [["text", "b'\\xff'", ["b'\\xc3\\xbc'", "b'b'"], "a raw key of table t is str or bytes, not int",
                         "a raw value of table t is str or bytes, not NoneType", "a raw value of table t is str or bytes, not int", False]])
        self.assertEqual(host.of(0, 0), {"ü".encode(): b"text", b"b": b"\xff"})

    def test_metadata_and_the_same_object_everywhere(self):  # 4.7
        g, host = self.tables("""def f(v, t):
  tables = context['app'].tables
  try: tables['other']
  except KeyError as e: text = e.args[0]
  return [t.name, t.help, t.changelog_topic_name, tables['t'] is t, tables.get('t') is t, kept is t, tables.get('x'), list(tables), text, t.size_estimate()]""",
                              init="kept = context['app'].tables['t']")
        host.of(0, 0).update({b"1": b"2", b"3": b"4"})
        self.assertEqual(self.outputs(g, host, 0), [["t", "what it is", "shop-app-t-changelog", True, True, True, None, ["t"],
                                                      "there is no table 'other' here; there are: t", 2]])

    def test_not_from_init(self):
        problems = self.problems([("map", "def f(v): return v")], init="context['app'].tables['t']['a'] = 1", tables=[table()])
        self.assertIn("only while a record is processed", problems[0]["message"])

    def test_default_selectors(self):  # E3
        for default, want in (("def d(): return int", 0), ("def d(): return [1]", [1]), ("class C(dict): pass\ndef d(): return C", {}),
                              ("def d():\n  return lambda: 'made'", "made"), ("def d(): return None", None),
                              ("def d(): return context['app'].name", "shop")):
            g, host = self.tables("def f(v, t): return t['x']", table(default=default))
            self.assertEqual(self.outputs(g, host, 0), [want])
        bad = self.problems([("map", "def f(v, t): return v")], tables=[table(default="\ndef d(): return 1 / 0")])
        self.assertEqual([(p["file"], p["line"], p["type"]) for p in bad], [("table.yaml", 6, "ZeroDivisionError")])
        bad = self.problems([("map", "def f(v, t): return v")], tables=[table(default="def d(x): return 1")])
        self.assertIn("d is called with nothing", bad[0]["message"])

    def test_a_default_that_raises(self):
        # LookupError is what an absent default was once told by.
        for window in (None, {"size": HOUR, "step": HOUR, "relativeTo": "stream"}):
            g, host = self.tables("def f(v, t): return t.get('x')", table(default="def d():\n  def make(): raise LookupError('mine')\n  return make", window=window))
            f = self.failure(g.process(user(0)))
            self.assertEqual((f.type, f.message), ("LookupError", "mine"))
            self.assertIn("table.yaml:6, in make", f.traceback)

    def test_async_code(self):
        g, host = self.tables("import asyncio\nasync def f(v, t):\n  t['n'] += v\n  await asyncio.sleep(0)\n  t['n'] += v\n  if v == 2: raise ValueError\n  return t['n']",
                              table(default="async def d(): return int"))
        r = g.process(user(1, 2, 3))
        self.assertEqual([json.loads(o.value) for o in r.outputs], [2, 8])
        bad = self.problems([("map", "def f(v, t): return v")], tables=[table(default="import asyncio\nasync def d():\n  await asyncio.sleep(0)\n  return int")])
        self.assertIn("waits for something", bad[0]["message"])

    def test_generators_and_later_operations(self):
        tables = (table(default="def d(): return int"),)
        g = self.guest([("map", "def f(v, t):\n  for i in range(v):\n    t['n'] += 1\n    yield t['n']"), ("filter", "def f(v, t): return t['n'] % 2"),
                        {"topicSend": {"topic": "side", "keySelector": "def k(v, t): return f\"{v}/{t['n']}\""}, "passThrough": True}], tables=tables)
        host = Tables(g)
        r = g.process(user(3))
        host.apply(r)
        self.assertEqual([(o.topic or o.index, o.key, o.value) for o in r.outputs if o.key], [("side", b'"1/1"', b"1"), ("side", b'"3/3"', b"3")])
        self.assertEqual(host.of(0, 0), {b'"n"': b"3"})

    def test_name_selectors_with_and_without_tables(self):  # agent.md 6, B-12
        def send(source):
            return {"topicSend": {"nameSelector": source}, "passThrough": True}
        g = self.guest([("map", "def f(v, t):\n  t['to'] = v\n  return v"), send("def n(v): return v + '-value'"), send("def n(v, t): return t['to'] + '-table'"),
                        send("def n(v, **tables): return '-'.join([v, *tables])"), send("async def n(v): return v + '-async'")], tables=(table(),))
        Tables(g)
        self.assertEqual([o.topic for o in g.process(user("a")).outputs], ["a-value", "a-table", "a-t", "a-async", ""])
        g = self.guest([send("def n(v): return v.missing")], tables=(table(),))
        f = self.failure(g.process(user("a")))
        self.assertEqual((f.type, f.operation), ("AttributeError", 'operation "op0", nameSelector'))
        self.assertNotIn("kaspr_load", f.traceback)
        for source in ("def n(v, other): return v", "def n(): return 'x'"):
            [bad] = self.problems([send(source)], tables=[table()])
            self.assertIn("n is called with one value, t=:", bad["message"])
        [bad] = self.problems([{"topicSend": {"topic": "x", "keySelector": "def k(v): return v"}}], tables=[table()])
        self.assertIn("k is called with one value, t=:", bad["message"])

    def test_several_tables(self):
        g, host = self.tables("def f(v, a, b):\n  a[v] = 'a'\n  b[v] = 'b'\n  return [a[v], b[v], a is context['app'].tables['a'], a == b, bool(a), repr(a)]",
                              table("a"), table("b", keySerializer="raw"))
        self.assertEqual(self.outputs(g, host, "k"), [["a", "b", True, False, True, "<table a>"]])
        self.assertEqual((host.of(0, 0), host.of(1, 0)), ({b'"k"': b'"a"'}, {b"k": b'"b"'}))

    def test_compact_values_exact_keys(self):
        g, host = self.tables("def f(v, t): t[1, 2] = {'a': [1, 2]}", jsonExact=False)
        r = g.process(user(0))
        self.assertEqual([(c.key, c.value) for c in r.changes], [(b"[1, 2]", b'{"a":[1,2]}')])

    def test_operation_without_its_parameter(self):
        bad = self.problems([("map", "def f(v): return v")], tables=[table()])
        self.assertIn("t=", bad[0]["message"])


class Scans(TableCase):
    def test_pages_and_changes_of_the_call(self):
        for page in (1, 2, 3, 100):
            g, host = self.tables("""def f(v, t):
  t['b'] = 20
  del t['d']
  t['f'] = 6
  t['0'] = 0
  return [list(t), list(t.values()), list(t.items()), len(t), 'b' in t.keys(), sorted(t.keys())]""", page=page)
            host.of(0, 0).update({json.dumps(k).encode(): str(i).encode() for i, k in enumerate("abcde", 1)})
            keys, values = ["0", "a", "b", "c", "e", "f"], [0, 1, 20, 3, 5, 6]
            self.assertEqual(self.outputs(g, host, 0), [[keys, values, [list(p) for p in zip(keys, values)], 6, True, keys]], page)

    def test_prefix(self):
        g, host = self.tables("def f(v, t):\n  t['ab3'] = 3\n  return [list(t.prefix_scan('ab')), list(t.prefix_scan('ab', partition=1)), list(t.prefix_scan(''))]")
        host.of(0, 0).update({b'"ab1"': b"1", b'"abc"': b"2", b'"b"': b"4"})
        host.of(0, 1).update({b'"ab9"': b"9"})
        self.assertEqual(self.outputs(g, host, 0), [[[["ab1", 1], ["ab3", 3], ["abc", 2], ["ab9", 9]], [["ab9", 9]],
                                                      [["ab1", 1], ["ab3", 3], ["abc", 2], ["b", 4], ["ab9", 9]]]])

    def test_partitions(self):
        g, host = self.tables("""def f(v, t):
  t.update_for_partition({'x': 1, 'y': 2}, partition=2)
  t.del_for_partition('old', 2)
  out = [t.get_for_partition('x', 2), t.get_for_partition('x', 0), t.get_for_partition('old', 2), sorted(t.items_for_partition(2)), 'x' in t]
  try: t.get_for_partition('x', 4)
  except ValueError as e: out.append(str(e))
  return out""")
        host.of(0, 2)[b'"old"'] = b"0"
        self.assertEqual(self.outputs(g, host, 0), [[1, None, None, [["x", 1], ["y", 2]], False, "table t has no partition 4, it has 4"]])
        self.assertEqual(host.of(0, 2), {b'"x"': b"1", b'"y"': b"2"})

    def test_writing_while_scanning(self):
        # What is written ahead of a scan may be seen by it or not; what was there is seen once.
        for page in (1, 100):
            g, host = self.tables("def f(v, t):\n  seen = []\n  for k in t:\n    seen.append(k)\n    t[k + '!' if len(k) < 3 else k] = 1\n    t['a'] = 2\n  return seen", page=page)
            host.of(0, 0).update({b'"a"': b"1", b'"b"': b"1"})
            seen, = self.outputs(g, host, 0)
            self.assertEqual([k for k in seen if len(k) == 1], ["a", "b"])
            self.assertEqual(seen, sorted(set(seen)))


class Partitions(TableCase):
    def test_the_records_partition(self):  # 3.1, 4.4
        g, host = self.tables("def f(v, t):\n  t['k'] += 1\n  return t['k']", table(default="def d(): return int"))
        r = g.process(user(0, partition=3))
        self.assertEqual([(c.partition, c.value) for c in r.changes], [(-1, b"1")])
        host.apply(r, 3)
        self.assertEqual(self.outputs(g, host, 0, partition=1), [1])
        self.assertEqual(host.of(0, 3), {b'"k"': b"1"})

    def test_more_partitions_than_the_table(self):  # 3.3
        g, host = self.tables("def f(v, t):\n  t['k'] = 1", table(), partitions=2)
        f = self.failure(g.process(user(0, partition=2)))
        self.assertEqual((f.type, f.kind), ("ValueError", "code"))
        self.assertIn("table t has 2 partitions, and the record comes from partition 2", f.message)

    def test_by_key(self):
        # Partitions of Kafka's default partitioner for these keys among 4 (murmur2).
        g, host = self.tables("""def f(v, t):
  t[v] = v
  try: return t[v]
  except LookupError as e: return str(e)[:39]""", table(keySerializer="raw", partitionByKey=True))
        keys = [b"a", b"ab", b"abc", b"abcd", b"hello"]
        r = g.process(user("a", "ab", "abc", "abcd", "hello"))
        self.assertEqual(self.values(r), [k.decode() if murmur2(k) % 4 == 0 else f"table t keeps this key in partition {murmur2(k) % 4}, "[:39] for k in keys])
        self.assertEqual([0 if c.partition < 0 else c.partition for c in r.changes], [murmur2(k) % 4 for k in keys])

    def test_windows_by_key(self):
        g, host = self.tables("""def f(v, t):
  out = []
  for step in (lambda: t[v].value(), lambda: t.get(v, 0), lambda: v in t, lambda: t.setdefault(v, 1), lambda: t.__getitem__(v).__iadd__(1)):
    try: out.append(repr(step()))
    except LookupError as e: out.append(type(e).__name__)
  t[v] = 5
  return out""", table(partitionByKey=True, window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}))
        r = g.process(user("a", "ab", "abc"))
        away = [murmur2(json.dumps(k).encode()) % 4 for k in ("a", "ab", "abc")]
        self.assertTrue(0 in away and any(away), away)
        self.assertEqual(self.values(r), [["LookupError"] * 5 if p else ["KeyError", "0", "False", "1", "2"] for p in away])
        self.assertEqual([max(c.partition, 0) for c in r.changes], away)

    def test_global(self):  # 5.2
        g, host = self.tables("def f(v, t):\n  t['own'] = 1\n  return [t['own'], t['far'], 'far' in t, t.get('none'), len(t)]", table(**{"global": True}))
        host.of(0, 2)[b'"far"'] = b"2"
        host.of(0, 0)
        self.assertEqual(self.outputs(g, host, 0), [[1, 2, True, None, 2]])

    def test_global_sees_what_the_record_wrote_elsewhere(self):
        g, host = self.tables("""def f(v, t):
  t.update_for_partition({'new': 1, 'far': 3}, partition=2)
  t.del_for_partition('old', 1)
  return [t['new'], t['far'], t.get('old'), 'old' in t]""", table(**{"global": True}))
        host.of(0, 2)[b'"far"'] = b"2"
        host.of(0, 1)[b'"old"'] = b"2"
        self.assertEqual(self.outputs(g, host, 0), [[1, 3, None, False]])

    def test_own_partition_by_number(self):
        g, host = self.tables("def f(v, t):\n  t.update_for_partition(x=1, partition=1)\n  return [t['x'], t.get_for_partition('x', 1)]")
        r = g.process(user(0, partition=1))
        self.assertEqual(self.values(r), [[1, 1]])
        self.assertEqual([c.partition for c in r.changes], [-1])

    def test_a_list_that_failed(self):
        g, host = self.tables("def f(vs, t):\n  for v in vs:\n    t['n'] = t.get('n', 0) + 1\n    if v == 'bad': raise ValueError\n  return t['n']")
        self.assertEqual(g.process(user("a", "bad"), take=True).changes, [])
        r = g.process([Record(b"{")] + user("a", "b"), take=True, valid=1)
        self.assertEqual([json.loads(o.value) for o in r.outputs], [2])
        self.assertEqual([(c.unit, c.value) for c in r.changes], [(0, b"2")])

    def test_take(self):
        g, host = self.tables("def f(vs, t):\n  for v in vs: t[v] += 1\n  return sorted(t.items())", table(default="def d(): return int"))
        r = g.process(user("a", "b", "a", partition=1), take=True)
        self.assertEqual(self.values(r), [[["a", 2], ["b", 1]]])
        self.assertEqual([(c.unit, c.partition, c.key, c.value) for c in r.changes], [(0, -1, b'"a"', b"2"), (0, -1, b'"b"', b"1")])


def murmur2(data):
    """As org.apache.kafka.common.utils.Utils does it, positive."""
    m, mask = 0x5bd1e995, 0xffffffff
    h = (0x9747b28c ^ len(data)) & mask
    n = len(data) // 4 * 4
    for i in range(0, n, 4):
        k = int.from_bytes(data[i:i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    tail = data[n:]
    if len(tail) == 3:
        h ^= tail[2] << 16
    if len(tail) >= 2:
        h ^= tail[1] << 8
    if len(tail) >= 1:
        h = (h ^ tail[0]) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7fffffff


class Failures(TableCase):
    def test_a_failed_record_leaves_no_change(self):  # E2
        g, host = self.tables("""def f(v, t):
  t['n'] += v
  t[f'new{v}'] = v
  del t['gone']
  if v == 2: raise ValueError('no')
  return [t['n'], 'new2' in t, t.get('gone')]""", table(default="def d(): return int"))
        host.of(0, 0).update({b'"n"': b"10", b'"gone"': b"1"})
        r = g.process(user(1, 2, 3))
        self.assertEqual([f.unit for f in r.failures], [1])
        self.assertEqual([json.loads(o.value) for o in r.outputs], [[11, False, 0], [14, False, 0]])
        self.assertEqual([(c.unit, c.key, c.value) for c in r.changes if c.unit == 1], [])
        host.apply(r)
        self.assertEqual(host.of(0, 0), {b'"n"': b"14", b'"new1"': b"1", b'"new3"': b"3"})

    def test_what_failed_first_is_not_remembered(self):
        g, host = self.tables("def f(v, t):\n  t['n'] = v\n  if v == 1: raise ValueError\n  return v")
        r = g.process(user(1))
        host.apply(r)
        self.assertEqual(g.process(user(1)).changes, [])
        self.assertEqual(host.of(0, 0), {})

    def test_generators_that_outlive_their_record(self):
        g, host = self.tables("""def f(v, t):
  global kept
  if v == 0:
    kept = t
    return 0
  return kept.get('x', 'none')""")
        self.assertEqual(self.outputs(g, host, 0, 1), [0, "none"])
        g, host = self.tables("""class Late:
  def __del__(self): saved['x'] = 1
def f(v, t):
  global saved, late
  saved, late = t, (Late() if v == 0 else None)
  return v""")
        r = g.process(user(0, 1, 2))
        self.assertEqual([o.unit for o in r.outputs], [0, 1, 2])  # a destructor in a record is that record's; it may write
        self.assertEqual(len(r.changes), 1)

    def test_a_key_that_cannot_be_encoded(self):
        g, host = self.tables("def f(v, t):\n  x = []\n  x.append(x)\n  t[str(x)] = 1\n  t[(x,)] = 2")
        f = self.failure(g.process(user(0)))
        self.assertEqual(f.kind, "code")
        self.assertIn("agent.yaml", f.traceback)

    def test_the_hosts_error_is_the_records(self):
        g, host = self.tables("def f(v, t): return t['x']")
        g.answers[OP_TABLE_GET] = lambda request: b"\2the disk is gone"
        f = self.failure(g.process(user(0)))
        self.assertEqual((f.type, f.message), ("RuntimeError", "the disk is gone"))

    def test_encoding_that_uses_tables(self):
        g, host = self.tables("""class V:
  def __json__(self): return table.get('inner', 0) + 1
def f(v, t):
  global table
  table = t
  t['inner'] = 5
  t['outer'] = V()
  t['inner'] = V()
  return [t['outer'], t['inner']]""")
        self.assertEqual(self.outputs(g, host, 0), [[6, 6]])


class Model(TableCase):
    """Whatever happens in whatever order, a table is the dict of what was encoded, minus what failed."""

    SOURCE = """def f(v, t):
  out = []
  for op, k, x in v:
    if op == 'set': t[k] = x
    elif op == 'add': t[k] = (t.get(k) or 0) + x
    elif op == 'del': del t[k]
    elif op == 'pop': out.append(t.pop(k, 'none'))
    elif op == 'get': out.append(t.get(k, 'none'))
    elif op == 'in': out.append(k in t)
    elif op == 'items': out.append([list(i) for i in t.prefix_scan(k, partition=context['event'].message.partition)])
    elif op == 'fill':
      for i in range(x): t.get(f'{k}/{i:05000}')
    else: raise ValueError
  return out"""

    def run_model(self, t, ops, keys):
        out = []
        for op, k, x in ops:
            if op in ("set", "add"):
                t[k] = x if op == "set" else (t.get(k) or 0) + x
            elif op == "del":
                t.pop(k, None)
            elif op == "pop":
                out.append(t.pop(k, "none"))
            elif op == "get":
                out.append(t.get(k, "none"))
            elif op == "in":
                out.append(k in t)
            elif op == "items":
                out.append([[i, t[i]] for i in sorted(t) if i.startswith(k)])
            elif op == "fail":
                return None
        return out

    def test_random_histories(self):
        for seed in range(6):
            rnd = random.Random(seed)
            g, host = self.tables(self.SOURCE, page=rnd.choice([1, 3, 1000]))
            keys = [f"{a}{b}" for a in "xyz" for b in range(rnd.choice([2, 20]))]
            models = {0: {}, 1: {}}
            valid = {0: 0, 1: 0}
            for _ in range(30):
                partition = rnd.randrange(2)
                model, batch, want = models[partition], [], []
                for _ in range(rnd.randrange(1, 8)):
                    ops = [(rnd.choice(["set", "set", "add", "del", "pop", "get", "get", "in", "items"]), rnd.choice(keys), rnd.randrange(100)) for _ in range(rnd.randrange(1, 12))]
                    ops = [(op, k[:1] if op == "items" else k, x) for op, k, x in ops]
                    if rnd.random() < 0.2:
                        ops.append(("fail", "", 0))
                    if rnd.random() < 0.05:
                        ops.insert(0, ("fill", "far", 2000))  # more than is remembered
                    trial = dict(model)
                    got = self.run_model(trial, ops, keys)
                    if got is not None:
                        model.clear()
                        model.update(trial)
                        want.append(got)
                    batch.append(ops)
                r = g.process(user(*batch, partition=partition), valid=valid[partition])
                self.assertEqual([json.loads(o.value) for o in r.outputs], want, seed)
                host.apply(r, partition)
                self.assertEqual({json.loads(k): json.loads(v) for k, v in host.of(0, partition).items()}, model, seed)
                valid[partition] = 1
                if rnd.random() < 0.2:  # somebody else writes
                    key = rnd.choice(keys)
                    model[key] = 1000
                    host.of(0, partition)[json.dumps(key).encode()] = b"1000"
                    valid[partition] = 0


class Cache(TableCase):
    def test_what_is_remembered_is_bounded(self):
        # 2 MB a read: without a bound the call would need 400 MB.
        g, host = self.tables("def f(v, t):\n  t['mine'] = 'm'\n  n = sum(len(t[k]) for k in range(200))\n  t['mine'] += 'n'\n  return [n, t['mine'], resident()]",
                              init="def resident():\n  try: return int(open('/proc/self/statm').read().split()[1]) * 4096\n  except OSError: return 0")
        value = b'"' + b"v" * (2 << 20) + b'"'
        for i in range(200):
            host.of(0, 0)[str(i).encode()] = value
        (n, mine, resident), = self.outputs(g, host, 0)
        self.assertEqual((n, mine), (200 * (2 << 20), "mn"))
        self.assertLess(resident, 200 << 20)
        self.assertEqual(host.of(0, 0)[b'"mine"'], b'"mn"')

    def test_the_host_is_asked_once(self):
        g, host = self.tables("def f(v, t):\n  t[v] = t.get(v, 0) + 1\n  return t[v]")
        host.of(0, 0)[b'"a"'] = b"41"
        self.assertEqual(self.outputs(g, host, "a", "b", "a"), [42, 1, 43])
        self.assertEqual(len(host.asked), 2)
        r = g.process(user("a", "c"), valid=1)
        self.assertEqual(self.values(r), [44, 1])
        self.assertEqual(len(host.asked), 3)

    def test_not_valid_any_more(self):
        g, host = self.tables("def f(v, t):\n  t[v] = t.get(v, 0) + 1\n  return t[v]")
        self.assertEqual(self.values(g.process(user("a"))), [1])  # and thrown away by the host
        host.of(0, 0)[b'"a"'] = b"7"
        self.assertEqual(self.values(g.process(user("a"))), [8])

    def test_other_partitions_are_read_anew(self):
        g, host = self.tables("def f(v, t): return t.get_for_partition('a', 1)")
        for n in range(3):
            host.of(0, 1)[b'"a"'] = str(n).encode()
            self.assertEqual(self.values(g.process(user(0), valid=1)), [n])

    def test_partitions_in_turn_keep_their_own(self):
        g, host = self.tables("def f(v, t):\n  t['n'] = t.get('n', 0) + 1\n  return t['n']")
        for n in range(1, 5):
            for p in (0, 1, 2):
                r = g.process(user(0, partition=p), valid=1 if n > 1 else 0)
                self.assertEqual(self.values(r), [n])
        self.assertEqual(len(host.asked), 3)

    def test_many_keys(self):
        g, host = self.tables("def f(v, t):\n  for i in range(20000):\n    t[v, i] = t.get((v, i), 0) + 1\n  return len(t)")
        r = g.process(user(0))
        self.assertEqual(self.values(r), [20000])
        self.assertEqual(len(r.changes), 20000)
        host.apply(r)
        self.assertEqual(self.values(g.process(user(0), valid=1)), [20000])

    def test_large_values(self):
        # A large value is read whole; a write larger than the changelog takes fails in its line, and nobody sees it.
        g, host = self.tables("""def f(v, t):
  t['new'] = t['big'][:1_000_000] + 'x'
  try: t['new'] = t['big']
  except ValueError as e: return [len(t['new']), len(t['big']), str(e)]""")
        host.of(0, 0)[b'"big"'] = b'"' + b"y" * 3_000_000 + b'"'
        self.assertEqual(self.outputs(g, host, 0), [[1_000_001, 3_000_000,
            "a table write of 3000007 bytes, key and value, is more than the changelog takes (1047552)"]])


class Lifetime(TableCase):
    def test_ttl(self):
        g, host = self.tables("def f(v, t):\n  t['a'] = 1\n  del t['b']", table(ttl=64_000))
        r = g.process(user(0, at=1_000_500))
        self.assertEqual([(c.key, c.expires) for c in r.changes], [(b'"a"', 1_065_000), (b'"b"', 0)])


class Windows(TableCase):
    def key(self, key, start):
        return json.dumps(key).encode() + start.to_bytes(8, "big")

    def test_tumbling(self):
        g, host = self.tables("def f(v, t):\n  t[v] += 1\n  return [t[v].value(), t[v].current(), t[v].delta(3600), v in t, t[v]]",
                              table(default="def d(): return int", window={"size": HOUR, "step": HOUR, "expires": 2 * HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, "a", "a", at=10 * HOUR + 5), [[1, 1, 0, True, 1], [2, 2, 0, True, 2]])
        self.assertEqual(self.outputs(g, host, "a", at=11 * HOUR), [[1, 1, 2, True, 1]])
        self.assertEqual(host.of(0, 0), {self.key("a", 10 * HOUR): b"2", self.key("a", 11 * HOUR): b"1"})
        r = g.process(user("a", at=11 * HOUR))
        self.assertEqual([c.expires for c in r.changes], [14 * HOUR])

    def test_hopping_counts_each_window(self):
        g, host = self.tables("def f(v, t):\n  t[v] += v\n  return 0", table(default="def d(): return int",
                              window={"size": HOUR, "step": HOUR // 2, "relativeTo": "stream"}))
        self.outputs(g, host, 1, at=10 * HOUR)
        self.outputs(g, host, 1, at=10 * HOUR + HOUR // 2)
        half = HOUR // 2
        self.assertEqual({k[-8:]: v for k, v in host.of(0, 0).items()},
                         {(10 * HOUR - half).to_bytes(8, "big"): b"1", (10 * HOUR).to_bytes(8, "big"): b"2", (10 * HOUR + half).to_bytes(8, "big"): b"1"})

    def test_mapping_of_the_moment(self):
        g, host = self.tables("""def f(v, t):
  t['a'] = 5
  t.setdefault('b', 6)
  out = [t.get('a'), t.get('x', 7), t.pop('x', 8), sorted(t.items()), len(t), list(t.prefix_scan('a')), 't' in t, t['a'] + 1, 2 * t['a'], t['a'] > 4, int(t['a'])]
  del t['a']
  try: t['a'].value()
  except KeyError: out.append('gone')
  out.append(t.pop('b'))
  out.append(t.relative_to(7200).get('a', 'not then'))
  return out""", table(window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 0, at=5 * HOUR), [[5, 7, 8, [["a", 5], ["b", 6]], 2, [["a", 5]], False, 6, 10, True, 5, "gone", 6, "not then"]])

    def test_custom_and_now(self):
        g, host = self.tables("def f(v, t):\n  t['a'] = 1\n  return t['a'].value()",
                              table(window={"size": HOUR, "step": HOUR, "relativeTo": "custom"}, selector="def at(value): return value['at']"))
        self.assertEqual(self.outputs(g, host, {"at": 7200}, {"at": "1970-01-01T05:30:00"}), [1, 1])
        self.assertEqual(sorted(host.of(0, 0)), [self.key("a", 2 * HOUR), self.key("a", 5 * HOUR)])
        f = self.failure(g.process(user({"at": None})))
        self.assertEqual(f.type, "TypeError")
        import time
        g, host = self.tables("def f(v, t):\n  t['a'] = 1\n  return t['a'].now()", table(window={"size": HOUR, "step": HOUR, "relativeTo": "now"}))
        self.assertEqual(self.outputs(g, host, 0, at=5), [1])
        start = int.from_bytes(list(host.of(0, 0))[0][-8:], "big")
        self.assertLess(abs(start - time.time() * 1000), 2 * HOUR)

    def test_a_value_is_no_view(self):
        g, host = self.tables("def f(v, t):\n  t['a'] += [v]\n  x = t['a']\n  t['b'] = x\n  return {'all': t['a'], 'n': len(t['b']), 'first': t['b'][0], 'text': f\"{t['a']}\"}",
                              table(default="def d(): return list", window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 1, 2), [{"all": [1], "n": 1, "first": 1, "text": "[1]"}, {"all": [1, 2], "n": 2, "first": 1, "text": "[1, 2]"}])


    def test_setdefault_fills_what_is_missing(self):
        g, host = self.tables("def f(v, t): return [t.setdefault('a', v), t.setdefault('n', None), t.pop('a') if v == 3 else 0]",
                              table(default="def d(): return int", window={"size": HOUR, "step": HOUR // 2, "relativeTo": "stream"}))
        half = HOUR // 2
        self.assertEqual(self.outputs(g, host, 1, at=10 * HOUR), [[1, None, 0]])
        self.assertEqual(self.outputs(g, host, 2, at=10 * HOUR + half), [[2, None, 0]])
        self.assertEqual({int.from_bytes(k[-8:], "big") / HOUR: v for k, v in host.of(0, 0).items() if k.startswith(b'"a"')}, {9.5: b"1", 10: b"1", 10.5: b"2"})
        self.assertEqual(self.outputs(g, host, 3, at=10 * HOUR + half), [[2, None, 2]])
        self.assertEqual([int.from_bytes(k[-8:], "big") / HOUR for k in host.of(0, 0) if k.startswith(b'"a"')], [9.5])

    def test_views_are_whole_tables(self):
        g, host = self.tables("""def f(v, t):
  old = t.relative_to(7200)
  old['a'] += 1
  old['a'] += 1
  old.update({'b': 5})
  t['a'] = 9
  return [list(old.items()), len(old), 'b' in old, 'b' in t, list(t), list(old.prefix_scan('b')), old.pop('b'), old['a'].value(), t['a'].value(),
          t.relative_to_stream()['a'].value(), t.relative_to(lambda: '1970-01-01T02:10:00+00:00').get('a'), old.name, kept['a'].value(),
          old.get_for_partition('a', 0), t['a'].delta(3 * 3600), list(old.items_for_partition(0)), [old.update_for_partition(q=1, partition=0), old['q'].value()][1]]""",
                              table(default="def d(): return int", window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}), init="kept = context['app'].tables['t'].relative_to(7200)")
        self.assertEqual(self.outputs(g, host, 0, at=5 * HOUR), [[[["a", 2], ["b", 5]], 2, True, False, ["a"], [["b", 5]], 5, 2, 9, 9, 2, "t", 2, 2, 2, [["a", 2]], 1]])

    def test_a_cell_in_a_variable(self):
        g, host = self.tables("""def f(v, t):
  row = t['a']
  row += 5
  t['b'] = row
  t['b'] = t['b']
  row -= 1
  t['list'] = [1]
  t['list'] += (2,)
  try: t['a'][0] = 1
  except TypeError: row *= 2
  return [t['a'], t['b'], row, t['list'], sum(t['list']), max(t['list']), [*t['list']], round(t['a'] / 3, 1), -t['a'], hash(t['b']) == hash(5), t['a'] if t['a'] else 0,
          f"{t['a']:03}", str(t['b']), t['a'] == t['a'], t['list'].count(2), divmod(int(t['a']), 3), t['a'].get(), t['none'].get(7), {'x': t['b']}]""",
                              table(default="def d(): return int", window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 0), [[8, 5, 8, [1, 2], 3, 2, [1, 2], 2.7, -8, True, 8, "008", "5", True, 1, [2, 2], 8, 7, {"x": 5}]])

    def test_windows_without_a_value(self):
        g, host = self.tables("""def f(v, t):
  out = []
  for step in (lambda: t['a'].value(), lambda: t['a'] + 1, lambda: str(t['a']), lambda: t['a'].now(), lambda: t.pop('a'), lambda: t['a'].delta(5)):
    try: out.append(step())
    except KeyError as e: out.append(e.args[0])
  try: t['a'] += 1
  except KeyError as e: out.append('no ' + e.args[0])
  del t['a']
  return out + [t.get('a'), t['a'].get(), 'a' in t]""", table(window={"size": HOUR, "step": HOUR // 4, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 0, at=HOUR), [["a"] * 6 + ["no a", None, None, False]])

    def test_late_records(self):
        # A record whose windows have expired changes them all the same; the expiry in the past has the owner delete them again.
        g, host = self.tables("def f(v, t):\n  t['a'] += 1\n  return t['a']", table(default="def d(): return int", window={"size": HOUR, "step": HOUR, "expires": HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 0, at=100 * HOUR), [1])
        r = g.process(user(0, at=2 * HOUR))
        self.assertEqual(self.values(r), [1])
        self.assertEqual([(c.key, c.expires) for c in r.changes], [(self.key("a", 2 * HOUR), 4 * HOUR)])
        r = g.process(user(0, at=-1))  # Kafka's "no timestamp"
        self.assertEqual((self.values(r), [c.expires for c in r.changes]), ([1], [HOUR]))

    def test_prefixes_end_before_the_window(self):
        g, host = self.tables("def f(v, t):\n  t['a'] = b'1'\n  return [len(list(t.prefix_scan('a'))), len(list(t.prefix_scan(b'a\\0')))]",
                              table(keySerializer="raw", valueSerializer="raw", window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 0), [[1, 0]])

    def test_a_failed_record_changes_no_window(self):
        g, host = self.tables("def f(v, t):\n  t['a'] += v\n  if v == 2: raise ValueError\n  return t['a']",
                              table(default="def d(): return int", window={"size": HOUR, "step": HOUR // 2, "relativeTo": "stream"}))
        r = g.process(user(1, 2, 3))
        self.assertEqual([json.loads(o.value) for o in r.outputs], [1, 4])
        self.assertEqual([(c.unit, c.value) for c in r.changes], [(0, b"1"), (0, b"1"), (2, b"4"), (2, b"4")])

    def test_moments(self):
        g, host = self.tables("""from datetime import datetime, timezone, timedelta
def f(v, t):
  t.relative_to(3600)['a'] = 1
  out = [t.relative_to(m).get('a', 0) for m in (3600.5, datetime(1970, 1, 1, 1), datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=1))), '1970-01-01T01:59:59Z', 7200)]
  out.append(t.relative_to(7200)['a'].delta(timedelta(hours=1)))
  for bad in (None, True, 'soon', [1]):
    try: out.append(t.relative_to(bad))
    except Exception as e: out.append(type(e).__name__)
  return out""", table(window={"size": HOUR, "step": HOUR, "relativeTo": "stream"}))
        self.assertEqual(self.outputs(g, host, 0), [[1, 1, 1, 1, 0, 1, "TypeError", "TypeError", "ValueError", "TypeError"]])


class Hostile(TableCase):
    def test_patched_classes(self):
        g, host = self.tables("""def f(v, t):
  cls = type(t)
  if v == 0:
    cls._scan = lambda *a: 5
    cls.__getitem__ = lambda self, k: 'mine'
    return t['x']
  if v == 1: return len(t)
  if v == 2:
    del cls.__getitem__
    t['x'] = 1
    return t['x']
  import _kaspr
  _kaspr.Table.get = None""")
        r = g.process(user(0, 1, 2, 3, 2))
        self.assertEqual([json.loads(o.value) for o in r.outputs], ["mine", 1])
        self.assertEqual([(f.unit, f.type) for f in r.failures], [(1, "TypeError"), (3, "TypeError"), (4, "AttributeError")])

    def test_huge_keys_and_values(self):
        g, host = self.tables("def f(v, t):\n  k = 'k' * v\n  t[k] = k\n  out = [len(t[k]), k in t, len(list(t)[0])]\n  del t[k]\n  return out + [k in t]")
        self.assertEqual(self.outputs(g, host, 500_000), [[500_000, True, 500_000, False]])

    def test_a_table_in_a_scan_that_outlives_its_record(self):
        g, host = self.tables("""kept = None
def f(v, t):
  global kept
  if kept is None:
    kept = iter(t)
    return next(kept)
  t['new'] = 1
  return list(kept)""", page=1)
        host.of(0, 0).update({b'"a"': b"1", b'"b"': b"2", b'"c"': b"3"})
        self.assertEqual(self.outputs(g, host, 0, 1), ["a", ["b", "c", "new"]])

    def test_from_a_destructor_after_the_record(self):
        g, host = self.tables("""class Late:
  def __del__(self):
    try: self.t['x'] = 1
    except RuntimeError as e: print(e)
def f(v, t):
  context['late'] = late = Late()
  late.t = t
  return v""")
        self.assertEqual(g.process(user(0)).changes, [])
        self.assertIn("only while a record is processed", g.logs[-1][1])

    def test_odd_uses(self):
        g, host = self.tables("""import _kaspr
def f(v, t):
  out = []
  for step in (lambda: t._read(0, 5), lambda: t._write(-1, b'x', b'1'), lambda: t._write(9, b'x', b'1'), lambda: t._page(0, b'', 1),
               lambda: t.get(), lambda: t.get(1, 2, 3), lambda: t._unkey(b'{'), lambda: t._unvalue(None), lambda: t.prefix_scan(5),
               lambda: _kaspr.Table(0), lambda: _kaspr.Table(-1, 'a', 'b', 'c', 1, 1, 0, 0, 0), lambda: setattr(t, 'name', 'x'),
               lambda: t._pending('x'), lambda: t.update(5), lambda: t.update_for_partition({'a': 1})):
    try: out.append(repr(step()))
    except Exception as e: out.append(type(e).__name__)
  return out""")
        self.assertEqual(self.outputs(g, host, 0), [["TypeError", "ValueError", "ValueError", "TypeError", "TypeError", "TypeError", "JSONDecodeError",
                         "TypeError", "TypeError", "TypeError", "ValueError", "AttributeError", "TypeError", "TypeError", "TypeError"]])

    def test_a_made_up_table(self):
        g, host = self.tables("import _kaspr\ndef f(v, t):\n  x = _kaspr.Table(99, 'a', 'b', 'c', 1, 1, 0, 0, 0)\n  x['k'] = 1\n  return 1")
        r = g.process(user(0))
        self.assertEqual([c.table for c in r.changes], [99])  # which the host refuses: the guest's word counts for nothing


@unittest.skipIf(WASM, "the native guest tells")
class Leaks(TableCase):
    CASES = {
        "plain": "t[v['a']] = v\n  t['n'] += 1\n  t.pop(v['a'])\n  t.setdefault('list', [v])\n  return [t['n'], 'x' in t, t.get('x', v)]",
        "same key": "t['n'] += 1\n  t['n'] += 1\n  return t['n']",
        "raise": "t['n'] += 1\n  t['other'] = [v]\n  del t['n']\n  raise ValueError",
        "errors": "for k, x in ((object(), 1), ('k', object()), ('k', {(1,): 2})):\n    try: t[k] = x\n    except TypeError: pass\n  return t['nothing']['x']",
        "scans": "t['k', 1] = v\n  return [len(t), list(t.items()), list(t.prefix_scan('n')), sorted(t.values(), key=str), list(t.items_for_partition(0))]",
        "partitions": "t.update_for_partition({'a': v}, partition=2)\n  t.del_for_partition('a', 3)\n  return t.get_for_partition('a', 2)",
        "windows": "w['n'] += 1\n  w['v'] = v\n  return [w['n'].value(), w['n'].delta(60), list(w.items()), w.relative_to_now().get('n'), w.pop('v')]",
        "windows raise": "w['n'] += 1\n  x = w.relative_to(5)\n  x['n'] += [1]",
    }

    def test_nothing_is_left_of_a_record(self):
        probe = "import gc, sys\ndef f(v):\n  if v == 'probe':\n    gc.collect()\n    print(sys.getallocatedblocks())\n    return False\n  return True"
        tables = (table("t", default="def d(): return int"), table("w", default="def d(): return int", window={"size": HOUR, "step": HOUR // 2, "relativeTo": "stream"}))
        for name, body in self.CASES.items():
            with self.subTest(name):
                refs = [{"name": t["name"], "paramName": t["name"]} for t in tables]
                g = self.guest([{"filter": probe, "tables": []}, {"map": f"def f(v, t, w):\n  {body}", "tables": refs}], tables=tables)
                Tables(g)
                records = [Record(b'{"a": "a value that is not interned %d"}' % i, timestamp=5) for i in range(20)]
                counts = []
                for _ in range(8):
                    for _ in range(10):
                        g.process(records, valid=3)
                    g.process(js("probe"), valid=3)
                    counts.append(int(g.logs[-1][1]))
                self.assertLess(min(b - a for a, b in zip(counts[3:], counts[4:])), 10, counts)


if __name__ == "__main__":
    unittest.main()
