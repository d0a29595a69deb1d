"""KasprTables as user code sees them (docs/tables.md). _kaspr.Table does what happens for every record; here are scans,
access to other partitions, and windows.

A read decodes the stored bytes anew and a write encodes at once, so an object that was read or written is never the table's.
"""

import inspect as _inspect
import time as _time
from datetime import datetime as _datetime, timezone as _timezone

import _kaspr

_missing = object()


def _items_of(other, more):
    """The pairs update() takes: a mapping or pairs, and keywords."""
    if other is None:
        pairs = []
    elif hasattr(other, "keys"):
        pairs = [(key, other[key]) for key in other.keys()]
    else:
        pairs = [(key, value) for key, value in other]
    return pairs + list(more.items())


class _View:
    """What keys(), values() and items() give: made anew by each iteration."""

    def __init__(self, table, what, make):
        self._table, self._what, self._make = table, what, make

    def __iter__(self):
        return self._make()

    def __len__(self):
        return len(self._table)

    def __contains__(self, item):
        if self._what == "keys":
            return item in self._table
        return any(item == other for other in self)

    def __repr__(self):
        return f"<{self._what} of table {self._table.name}>"


class Table(_kaspr.Table):
    """A mapping from keys to values, kept in the partition of the record in progress."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def __repr__(self):
        return f"<table {self.name}>"

    def __bool__(self):
        return True  # never a scan by accident

    # -- scans

    def _scan(self, partition, prefix=b""):
        """(key, value) bytes of one partition in key order, this call's changes over what was there before."""
        after, more = None, True
        while more:
            page, more = self._page(partition, prefix, after)
            last = page[-1][0] if page else None
            pending = self._pending(partition)
            if pending:
                merged = dict(page)
                for key, value in pending.items():
                    if key.startswith(prefix) and (after is None or key > after) and (not more or key <= last):
                        merged[key] = value
                page = sorted((key, value) for key, value in merged.items() if value is not None)
            yield from page
            after = last

    def _partitions(self):
        own = self._own()
        active = self._info()[1]
        return active if own in active or own < 0 or own >= self._count() else tuple(sorted((*active, own)))

    def _scan_all(self, prefix=b""):
        return self._scan_many(self._partitions(), prefix, self._own() < 0)

    def _scan_many(self, partitions, prefix, requested=False):
        """requested: for a request, whose changes are in no partition yet: they are laid over all of them."""
        changed = self._pending(-1) if requested else {}
        for partition in partitions:
            for key, value in self._scan(partition, prefix):
                if key in changed:
                    value, changed[key] = changed[key], None
                if value is not None:
                    yield key, value
        for key in sorted(changed):
            if changed[key] is not None and key.startswith(prefix):
                yield key, changed[key]

    def __iter__(self):
        return self._keys()

    def _keys(self):
        for key, _value in self._scan_all():
            yield self._unkey(key)

    def _values(self):
        for _key, value in self._scan_all():
            yield self._unvalue(value)

    def _items(self):
        for key, value in self._scan_all():
            yield self._unkey(key), self._unvalue(value)

    def keys(self):
        return _View(self, "keys", self._keys)

    def values(self):
        return _View(self, "values", self._values)

    def items(self):
        return _View(self, "items", self._items)

    def __len__(self):
        return sum(1 for _ in self._scan_all())

    def prefix_scan(self, prefix, partition=None):
        """(key, value) of the keys that start with prefix: a str, or bytes where keys are raw."""
        raw = self._key(prefix)
        if raw[:1] == b'"' and isinstance(prefix, str) and raw[-1:] == b'"' and self._unkey(raw) == prefix:
            raw = raw[:-1]  # a JSON text without its end
        elif not isinstance(prefix, (str, bytes)):
            raise TypeError(f"prefix_scan takes the beginning of a text, not {type(prefix).__name__}")
        return self._prefixed(raw, None if partition is None else (partition,))

    def _prefixed(self, raw, partitions):
        for key, value in self._scan_all(raw) if partitions is None else self._scan_many(partitions, raw):
            yield self._unkey(key), self._unvalue(value)

    # -- changes of many keys

    def update(self, other=None, /, **more):
        for key, value in _items_of(other, more):
            self[key] = value

    def clear(self):
        raise NotImplementedError(f"table {self.name} cannot be cleared: delete its keys one by one")

    # -- partitions

    def items_for_partition(self, partition):
        for key, value in self._scan(partition):
            yield self._unkey(key), self._unvalue(value)

    def get_for_partition(self, key, partition):
        value = self._read(partition, self._key(key))
        return None if value is None else self._unvalue(value)

    def update_for_partition(self, other=None, /, *, partition, **more):
        for key, value in _items_of(other, more):
            self._write(partition, self._key(key), self._value(value))

    def del_for_partition(self, key, partition):
        self._write(partition, self._key(key), None)

    def size_estimate(self):
        return self._info()[0]


# ---- windows ----------------------------------------------------------------------------------------------------------

def _milliseconds(moment):
    """A moment as people write it: seconds since the epoch, a datetime (UTC unless it says otherwise), an ISO text."""
    if isinstance(moment, str):
        moment = _datetime.fromisoformat(moment)
    if isinstance(moment, _datetime):
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=_timezone.utc)
        moment = moment.timestamp()
    if isinstance(moment, bool) or not isinstance(moment, (int, float)):
        raise TypeError(f"a moment is seconds since the epoch, a datetime or an ISO text, not {type(moment).__name__}")
    return round(moment * 1000)


def _now():
    return round(_time.time() * 1000)


class WindowedTable(Table):
    """A table with a value for each key and window, as of a moment: reads are of the newest window that covers it, changes of all
    that do. The moment is what the manifest says; relative_to and its siblings give the same table as of another one."""

    __slots__ = ("_size", "_step", "_expires", "_moment")

    def _as_of(self, moment):
        view = self._view()
        view._size, view._step, view._expires, view._moment = self._size, self._step, self._expires, moment
        return view

    def relative_to_now(self):
        """The table as of the clock."""
        return self._as_of(_now)

    def relative_to_stream(self):
        """The table as of the record's timestamp."""
        return self._as_of(self._time)

    def relative_to(self, moment):
        """The table as of a moment: seconds, datetime, ISO text, or a function without arguments that gives one."""
        if callable(moment):
            return self._as_of(lambda: _milliseconds(moment()))
        fixed = _milliseconds(moment)
        return self._as_of(lambda: fixed)

    # Stored keys are those of the user and 8 bytes: the start of the window in milliseconds, big endian.

    def _starts(self, moment):
        """The windows that cover the moment, oldest first."""
        return range(((moment - self._size) // self._step + 1) * self._step, moment + 1, self._step)

    def _newest(self, moment):
        return (moment - moment % self._step).to_bytes(8, "big", signed=True)

    def _at(self, key, moment):
        """The value in the newest window that covers the moment, or _missing."""
        raw = self._key(key)
        value = self._read(self._source(raw), raw + self._newest(moment))
        return _missing if value is None else self._unvalue(value)

    def _put(self, partition, raw, start, value):
        expires = max(1, start + self._size + self._expires) if self._expires and value is not None else 0
        self._write(partition, raw + start.to_bytes(8, "big", signed=True), value, expires)

    def _put_all(self, partition, raw, value):
        for start in self._starts(self._moment()):
            self._put(partition, raw, start, value)

    def _change(self, key, change):
        """Gives each window the value that change makes of its own, or of _missing."""
        raw = self._key(key)
        partition = self._source(raw)
        values = []
        for start in self._starts(self._moment()):
            old = self._read(partition, raw + start.to_bytes(8, "big", signed=True))
            value = change(_missing if old is None else self._unvalue(old))
            if value is not _missing:
                values.append((start, self._value(value)))
        for start, value in values:
            self._put(partition, raw, start, value)

    # -- the mapping

    def __getitem__(self, key):
        return _Cell(self, key)

    def __setitem__(self, key, value):
        if isinstance(value, _Cell):
            if value._done and value._table is self and value._key is key:
                value._done = False  # the second half of t[key] += x, which is done already
                return
            value = value.value()
        raw = self._key(key)
        self._put_all(self._home(raw), raw, self._value(value))

    def __delitem__(self, key):
        raw = self._key(key)
        self._put_all(self._home(raw), raw, None)

    def __contains__(self, key):
        return self._at(key, self._moment()) is not _missing

    def get(self, key, default=_missing):
        value = self._at(key, self._moment())
        if value is not _missing:
            return value
        return self._default(None) if default is _missing else default

    def pop(self, key, default=_missing):
        value = self._at(key, self._moment())
        if value is not _missing:
            del self[key]
            return value
        value = self._default(_missing) if default is _missing else default
        if value is _missing:
            raise KeyError(key)
        return value

    def setdefault(self, key, default=_missing):
        value = self._at(key, self._moment())
        if value is _missing:
            value = self._default(None) if default is _missing else default
        self._change(key, lambda old: value if old is _missing else _missing)
        return value

    # -- scans and other partitions

    def _entries(self, partitions=None, prefix=b""):
        start = self._newest(self._moment())
        for key, value in self._scan_all(prefix) if partitions is None else self._scan_many(partitions, prefix):
            if key[-8:] == start and len(key) >= len(prefix) + 8:
                yield key[:-8], value

    def _keys(self):
        for key, _value in self._entries():
            yield self._unkey(key)

    def _values(self):
        for _key, value in self._entries():
            yield self._unvalue(value)

    def _items(self):
        for key, value in self._entries():
            yield self._unkey(key), self._unvalue(value)

    def __len__(self):
        return sum(1 for _ in self._entries())

    def _prefixed(self, raw, partitions):
        for key, value in self._entries(partitions, raw):
            yield self._unkey(key), self._unvalue(value)

    def items_for_partition(self, partition):
        for key, value in self._entries((partition,)):
            yield self._unkey(key), self._unvalue(value)

    def get_for_partition(self, key, partition):
        value = self._read(partition, self._key(key) + self._newest(self._moment()))
        return None if value is None else self._unvalue(value)

    def update_for_partition(self, other=None, /, *, partition, **more):
        for key, value in _items_of(other, more):
            self._put_all(partition, self._key(key), self._value(value))

    def del_for_partition(self, key, partition):
        self._put_all(partition, self._key(key), None)


class _Cell:
    """t[key] of a windowed table: its value in the windows that cover the moment. Where a value is wanted, it is its value."""

    __slots__ = ("_table", "_key", "_done")

    def __init__(self, table, key):
        self._table, self._key, self._done = table, key, False

    def _at(self, moment):
        value = self._table._at(self._key, moment)
        if value is _missing:
            value = self._table._default(_missing)
        if value is _missing:
            raise KeyError(self._key)
        return value

    def value(self):
        """In the newest window that covers the moment of the table."""
        return self._at(self._table._moment())

    def now(self):
        """In the window of the clock."""
        return self._at(_now())

    def current(self):
        """In the window of the record's timestamp."""
        return self._at(self._table._time())

    def delta(self, seconds):
        """In the window that many seconds before the moment of the table; a timedelta will do."""
        if hasattr(seconds, "total_seconds"):
            seconds = seconds.total_seconds()
        return self._at(self._table._moment() - round(seconds * 1000))

    def get(self, default=None):
        value = self._table._at(self._key, self._table._moment())
        return default if value is _missing else value

    def _apply(self, operation, operand):
        """Each window that covers the moment has a value of its own to change."""
        def change(value):
            if value is _missing:
                value = self._table._default(_missing)
            if value is _missing:
                raise KeyError(self._key)
            return operation(value, operand)

        self._table._change(self._key, change)
        self._done = True
        return self

    def __json__(self):
        return self.value()

    def __repr__(self):
        return repr(self.value())

    def __str__(self):
        return str(self.value())

    def __format__(self, spec):
        return format(self.value(), spec)

    def __bool__(self):
        return bool(self.value())

    def __hash__(self):
        return hash(self.value())

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.value(), name)


def _plain(value):
    return value.value() if isinstance(value, _Cell) else value


def _delegate():
    import operator

    def binary(name, function):
        setattr(_Cell, f"__{name}__", lambda self, other: function(self.value(), _plain(other)))

    def reflected(name, function):
        setattr(_Cell, f"__r{name}__", lambda self, other: function(_plain(other), self.value()))

    def in_place(name, function):
        setattr(_Cell, f"__i{name}__", lambda self, other: self._apply(function, _plain(other)))

    def unary(name, function):
        setattr(_Cell, f"__{name}__", lambda self: function(self.value()))

    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
        function = getattr(operator, f"__{name}__")
        binary(name, function)
        reflected(name, function)
        in_place(name, getattr(operator, f"__i{name}__"))
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "getitem", "contains"):
        binary(name, getattr(operator, name))
    for function in (operator.neg, operator.pos, operator.abs, operator.index, int, float, len, iter, round):
        unary(function.__name__, function)


_delegate()


# ---- the app's tables -------------------------------------------------------------------------------------------------

class Tables:
    """context["app"].tables: the tables of the program by name."""

    def __init__(self):
        self._tables = {}

    def __getitem__(self, name):
        table = self._tables.get(name)
        if table is None:
            there = ", ".join(sorted(self._tables)) or "none"
            raise KeyError(f"there is no table {name!r} here; there are: {there}")
        return table

    def get(self, name, default=None):
        return self._tables.get(name, default)

    def __contains__(self, name):
        return name in self._tables

    def __iter__(self):
        return iter(self._tables)

    def __len__(self):
        return len(self._tables)

    def keys(self):
        return self._tables.keys()

    def values(self):
        return self._tables.values()

    def items(self):
        return self._tables.items()

    def __repr__(self):
        return f"<tables {', '.join(self._tables)}>"


def make(program):
    """The tables of a program, in its order."""
    made = []
    for index, t in enumerate(program.get("tables") or ()):
        window = t.get("window")
        codecs = [_kaspr.codec(t.get(side) or "json") for side in ("keySerializer", "valueSerializer")]
        table = (WindowedTable if window else Table)(
            index, t["name"], t.get("help") or "", t.get("changelog") or "", *codecs, bool(t.get("global")),
            bool(t.get("partitionByKey")), t.get("ttl") or 0)
        if window:
            table._size, table._step, table._expires = window["size"], window.get("step") or window["size"], window.get("expires") or 0
            table._moment = _now if window.get("relativeTo") == "now" else table._time
        made.append(table)
    return made


def _settled(value):
    """A selector may be async, but has nothing to wait for: it is called in the middle of an access."""
    if not _inspect.iscoroutine(value):
        return value
    try:
        value.send(None)
    except StopIteration as exc:
        return exc.value
    value.close()
    raise TypeError("the selector of a table waits for something")


def set_default(table, made):
    """made is what defaultSelector gave: a class or another callable, or the value itself."""
    made = _settled(made)
    if callable(made):
        table._set_default(made)
        return
    raw = table._value(made)
    table._set_default(lambda: table._unvalue(raw))


def set_selector(table, function, value_of):
    """relativeTo custom: function gives a record's moment; value_of the value of the record in progress. A request, which is no
    record, has no value_of: then it is the clock's."""
    table._moment = _now if value_of is None else lambda: _milliseconds(_settled(function(value_of())))
