"""Drives a guest through frames on its stdin and stdout: the native one (native/main.c) or one of wasm (KASPR_GUEST).

Frames are u32 length (of what follows), u8 type, payload; little-endian.

To the guest:  S start; L load, C check, P process, R reseed with the input; B u32 repetitions and a batch (r tells the
               processor time);
               T u32 ms, u32 ms, answers: ticks of the next call; a i32 code, u8 tick, bytes: answer to a host call
From it:       r reply of a call (struct _reply) and the result; h i32 op and request; d reply, u32 length, report, result
"""

import functools
import json
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field

HERE = os.path.dirname(os.path.abspath(__file__))
_reply = struct.Struct("<iQIIII")
KINDS = {1: "code", 2: "decode-key", 3: "decode-value", 4: "encode", 5: "deadline", 6: "memory", 7: "trap", 8: "send"}
OP_LOG, OP_SLEEP, OP_SEND, OP_ENSURE_TOPIC, OP_TABLE_GET, OP_TABLE_SCAN, OP_TABLE_INFO, OP_IS_LEADER = 1, 2, 3, 4, 5, 6, 7, 9
CONTINUE, RAISE, DIE = 0, 1, 2


@functools.cache
def command():
    """How to start a guest: KASPR_GUEST, or the native one, built here."""
    if os.environ.get("KASPR_GUEST"):
        return os.environ["KASPR_GUEST"].split()
    out = os.environ.get("KASPR_NATIVE_OUT") or os.path.join(tempfile.gettempdir(), f"kaspr-native-{os.getuid()}")
    subprocess.run([os.path.join(HERE, "native", "build.sh"), out], check=True)
    build = os.path.join(HERE, "..", "build.sh")
    python = subprocess.run([build, "--print", "native-python"], check=True, capture_output=True, text=True).stdout.strip()
    lib = os.path.join(os.path.dirname(python), "..", "lib", "python3.13")
    return [os.path.join(out, "guest"), os.path.join(HERE, "..", "runtime"), lib, os.path.join(lib, "lib-dynload")]


@dataclass
class Record:
    value: bytes | None
    key: bytes | None = None
    headers: list = field(default_factory=list)
    topic: str = "in"
    partition: int = 0
    offset: int = 0
    timestamp: int = 1_700_000_000_123
    timestamp_type: int = 0


@dataclass
class Output:
    unit: int
    index: int
    topic: str
    partition: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list


@dataclass
class Change:
    unit: int
    table: int
    partition: int
    key: bytes
    value: bytes | None
    expires: int


@dataclass
class Failure:
    unit: int
    kind: str
    type: str
    message: str
    traceback: str
    operation: str


@dataclass
class Result:
    outputs: list
    failures: list
    done: list
    ns: int = 0
    entries: list = None
    changes: list = field(default_factory=list)


class Died(Exception):
    """The guest called die()."""

    def __init__(self, report, result, reply):
        super().__init__(report)
        self.report, self.result = report, result
        _, _, self.progress, self.phase, self.operation, self.committed = reply


def encode_batch(records, take=False, stop=False, valid=0):
    topics = list(dict.fromkeys(r.topic for r in records))
    head, tail = bytearray(), bytearray()
    fixed = 32 + 56 * len(records) + 8 * len(topics) + 16 * sum(len(r.headers) for r in records)

    def put(data):
        off = fixed + len(tail)
        if data is None:
            return off, -1
        tail.extend(data)
        return off, len(data)

    headers_off = 32 + 56 * len(records) + 8 * len(topics)
    headers = bytearray()
    head += struct.pack("<8I", 0x3142534B, len(records), take | stop << 1, len(topics), 32 + 56 * len(records), valid, 0, 0)
    for r in records:
        k, v = put(r.key), put(r.value)
        head += struct.pack("<IiqqIIIiIiII", topics.index(r.topic), r.partition, r.offset, r.timestamp, r.timestamp_type, 1,
                            *k, *v, headers_off + len(headers), len(r.headers))
        for name, value in r.headers:
            headers += struct.pack("<IIIi", *put(name.encode()), *put(value))
    for topic in topics:
        head += struct.pack("<II", *put(topic.encode()))
    return bytes(head + headers + tail)


def decode_result(data):
    result = Result([], [], [], entries=[])
    at = 0
    while at < len(data):
        size, kind, unit = struct.unpack_from("<III", data, at)
        entry = data[at:at + size]
        assert len(entry) == size
        if kind == 1:
            index, topic_len, partition, timestamp, key_len, value_len, count = struct.unpack_from("<iIiqiiI", entry, 12)
            p = 44

            def cut(n):
                nonlocal p
                if n < 0:
                    return None
                p += n
                return entry[p - n:p]
            topic, key, value = cut(topic_len).decode(), cut(key_len), cut(value_len)
            headers = []
            for _ in range(count):
                a, b = struct.unpack_from("<Ii", entry, p)
                p += 8
                headers.append((cut(a).decode(), cut(b)))
            assert p == size, (p, size)
            item = Output(unit, index, topic, partition, timestamp, key, value, headers)
            result.outputs.append(item)
        elif kind == 2:
            code, *lens = struct.unpack_from("<5I", entry, 12)
            p, texts = 32, []
            for n in lens:
                texts.append(entry[p:p + n].decode())
                p += n
            assert p == size
            item = Failure(unit, KINDS[code], *texts)
            result.failures.append(item)
        elif kind == 4:
            table, partition, key_len, value_len, expires = struct.unpack_from("<Iiiiq", entry, 12)
            assert size == 36 + key_len + max(value_len, 0)
            item = Change(unit, table, partition, entry[36:36 + key_len], None if value_len < 0 else entry[36 + key_len:], expires)
            result.changes.append(item)
        elif kind == 3:
            assert size == 12
            item = unit
            result.done.append(unit)
        else:
            raise AssertionError(f"entry of kind {kind}")
        result.entries.append(item)
        at += size
    return result


class Guest:
    def __init__(self, start=True):
        self.process_ = subprocess.Popen(command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.logs = []  # (level, text)
        self.calls = []  # (op, request) but logs
        self.answers = {}  # op: function(request) -> bytes, or (code, bytes)
        self.tick_on = None  # a log line with this text makes the guest tick with ...
        self.tick_answer = CONTINUE
        self.tick_next = 0  # the next host call that is no log line ends in a tick: 1 + answer
        if start:
            rc, text, _ = self.call("S")
            if rc != 0:
                raise RuntimeError(text.decode())

    def close(self):
        self.process_.stdin.close()
        self.process_.stdout.close()
        self.process_.kill()
        self.process_.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _write(self, type, payload):
        self.process_.stdin.write(struct.pack("<Ic", len(payload) + 1, type.encode()) + payload)
        self.process_.stdin.flush()

    def _read(self):
        head = self.process_.stdout.read(5)
        if len(head) < 5:
            raise EOFError(f"the guest ended: {self.process_.wait()}")
        n, type = struct.unpack("<Ic", head)
        return type.decode(), self.process_.stdout.read(n - 1)

    def ticks(self, first_ms, every_ms, answers):
        """During the next call ticks come after first_ms, then every every_ms; the host's answers in order, the last repeated."""
        self._write("T", struct.pack("<II", first_ms, every_ms) + bytes(answers))

    def call(self, type, payload=b""):
        self._write(type, payload)
        while True:
            kind, data = self._read()
            if kind == "h":
                op, = struct.unpack_from("<i", data)
                self._host(op, data[4:])
            elif kind == "r":
                reply = _reply.unpack_from(data)
                self.reply = reply
                return reply[0], data[_reply.size:], reply[1]
            elif kind == "d":
                reply = _reply.unpack_from(data)
                n, = struct.unpack_from("<I", data, _reply.size)
                p = _reply.size + 4
                raise Died(data[p:p + n].decode(), decode_result(data[p + n:]), reply)
            else:
                raise AssertionError(kind)

    def _host(self, op, request):
        code, data, tick = 0, b"", 0
        if op == OP_LOG:
            self.logs.append((request[0], request[1:].decode()))
            if self.tick_on is not None and request[1:].decode() == self.tick_on:
                tick = self.tick_answer + 1
        else:
            self.calls.append((op, request))
            answer = self.answers.get(op)
            if answer is not None:
                data = answer(request)
            elif op != OP_SLEEP:
                code = -1 << 31
            tick, self.tick_next = self.tick_next, 0
        self._write("a", struct.pack("<iB", code, tick) + data)

    def load(self, program):
        """The problems; [] when it is loaded."""
        rc, text, self.load_ns = self.call("L", json.dumps(program).encode())
        return json.loads(text) if rc != 0 else []

    def check(self, program):
        rc, text, _ = self.call("C", json.dumps(program).encode())
        return json.loads(text) if rc != 0 else []

    def process(self, records, take=False, stop=False, valid=0):
        rc, data, ns = self.call("P", encode_batch(records, take, stop, valid))
        if rc != 0:
            raise RuntimeError(data.decode())
        result = decode_result(data)
        result.ns = ns
        return result

    def bench(self, records, repeat):
        """Nanoseconds per record."""
        rc, data, ns = self.call("B", struct.pack("<I", repeat) + encode_batch(records))
        assert rc == 0, data
        return ns / repeat / len(records), decode_result(data)


class Tables:
    """A host's tables: {(table, partition): {key: value}}, and what is asked of them."""

    def __init__(self, guest, partitions=4, page=1 << 20):
        self.data, self.partitions, self.page, self.asked = {}, partitions, page, []
        guest.answers.update({OP_TABLE_GET: self.get, OP_TABLE_SCAN: self.scan, OP_TABLE_INFO: self.info})
        self.own = 0

    def of(self, table, partition):
        return self.data.setdefault((table, partition), {})

    def get(self, request):
        table, partition = struct.unpack_from("<Ii", request)
        key = request[8:]
        self.asked.append((table, partition, key))
        for p in [partition] if partition != -2 else [p for p in range(self.partitions) if p != self.own]:
            if p >= self.partitions:
                return b"\2no such partition"
            if key in self.of(table, p):
                return b"\1" + self.of(table, p)[key]
        return b"\0"

    def scan(self, request):
        table, partition, most, prefix_len, after_len = struct.unpack_from("<IiIIi", request)
        prefix, after = request[20:20 + prefix_len], request[20 + prefix_len:] if after_len >= 0 else None
        out, n = b"", 0
        for key, value in sorted(self.of(table, partition).items()):
            if key.startswith(prefix) and (after is None or key > after):
                if n == self.page:
                    return b"\1" + out
                n += 1
                out += struct.pack("<II", len(key), len(value)) + key + value
        return b"\0" + out

    def info(self, request):
        table, = struct.unpack("<I", request)
        active = sorted(p for t, p in self.data if t == table)
        return b"\1" + struct.pack("<QII", sum(len(self.of(table, p)) for p in active), self.partitions, len(active)) + struct.pack(f"<{len(active)}i", *active)

    def apply(self, result, own=0):
        for c in result.changes:
            to = self.of(c.table, own if c.partition < 0 else c.partition)
            if c.value is None:
                to.pop(c.key, None)
            else:
                to[c.key] = c.value


def table(name="t", default=None, window=None, selector=None, **more):
    """A table of a program; default and selector are sources."""
    def code(source, where):
        return {"python": source, "file": "table.yaml", "line": 5, "where": where}
    t = {"name": name, "help": "what it is", "changelog": f"shop-app-{name}-changelog", "keySerializer": "json",
         "valueSerializer": "json", **more}
    if default is not None:
        t["default"] = code(default, f'table "{name}", defaultSelector')
    if window is not None:
        t["window"] = dict(window)
        if selector is not None:
            t["window"]["selector"] = code(selector, f'table "{name}", relativeToSelector')
    return t


def program(ops=(), outputs=({},), init=None, key="raw", value="json", file="agent.yaml", tables=(), **more):
    """A program of short forms: an operation is ("map", source) or a dict; an output a dict of members, a selector its source."""
    line = [10]

    def code(source, where):
        if isinstance(source, dict):
            return {"file": file, "line": 1, "where": where, **source}
        block = {"python": source, "file": file, "line": line[0], "where": where}
        if "def f(" in source:
            block["entrypoint"] = "f"
        line[0] += 100
        return block

    def output(o, where):
        o = {"keySerializer": "json", "valueSerializer": "json", **o}
        if "nameSelector" not in o:
            o.setdefault("topic", "out")
        for name in ("nameSelector", "keySelector", "valueSelector", "partitionSelector", "headersSelector", "predicate"):
            if name in o:
                o[name] = code(o[name], f"{where}, {name}")
        return o

    data = {"kind": "KasprAgent", "name": "test", "app": {"name": "shop", "id": "shop-app", "conf": {}}, "env": {},
            "input": {"keySerializer": key, "valueSerializer": value}, "operations": [], "jsonExact": True}
    if init is not None:
        data["init"] = code(init, "init")
    for i, op in enumerate(ops):
        if isinstance(op, tuple):
            op = {op[0]: op[1]}
        op = {"name": f"op{i}", **op}
        if tables:
            op.setdefault("tables", [{"name": t["name"], "paramName": t["name"]} for t in tables])
        for role in ("map", "filter"):
            if role in op:
                op[role] = code(op[role], f'operation "{op["name"]}", {role}')
        if "topicSend" in op:
            op["topicSend"] = output(op["topicSend"], f'operation "{op["name"]}"')
        data["operations"].append(op)
    data["outputs"] = [output(o, f"output {i + 1}") for i, o in enumerate(outputs)]
    data["tables"] = list(tables)
    data.update(more)
    return data
