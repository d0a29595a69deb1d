"""Values with a schema that JSON has no word for, between forms (wasmhost/abi/abi.go) and Python.

Tags are those of abi.go. form.c imports this module when a program has a serializer with schemas.
"""

from collections import deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from uuid import UUID

_UTC_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EPOCH = datetime(1970, 1, 1)
_DAY = date(1970, 1, 1).toordinal()
_MICROSECOND = timedelta(microseconds=1)


def _time(n):
    seconds, micros = divmod(n, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    return time(*divmod(minutes, 60), seconds, micros)


_make = {
    ord("D"): Decimal,
    ord("U"): UUID,
    ord("y"): lambda n: date.fromordinal(n + _DAY),
    ord("c"): _time,
    ord("z"): lambda n: _UTC_EPOCH + timedelta(microseconds=n),
    ord("w"): lambda n: _EPOCH + timedelta(microseconds=n),
}


def made(tag, payload):
    try:
        return _make[tag](payload)
    except OverflowError:
        raise ValueError(f"{payload} is outside of what Python's {'date' if tag == ord('y') else 'datetime'} holds") from None


def taken(value):
    """(tag, text or int) of a value, or (0, another value to take in its place)."""
    if isinstance(value, Decimal):
        return ord("D"), str(value)
    if isinstance(value, UUID):
        return ord("U"), str(value)
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            return ord("w"), (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
        return ord("z"), (value - _UTC_EPOCH) // _MICROSECOND
    if isinstance(value, date):
        return ord("y"), value.toordinal() - _DAY
    if isinstance(value, time):
        return ord("c"), ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    if isinstance(value, Enum):
        return 0, value.value
    if isinstance(value, (set, frozenset, deque)):
        return 0, list(value)
    if isinstance(value, Mapping):
        return 0, dict(value)
    if isinstance(value, memoryview):
        return 0, bytes(value)
    json = getattr(value, "__json__", None)
    if json is not None:
        return 0, json()
    raise TypeError(f"{type(value).__name__} is not a plain value: return dicts, lists, text, numbers, bytes, dates, Decimal or UUID")
