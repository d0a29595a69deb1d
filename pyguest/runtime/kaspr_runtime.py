"""What the C glue calls: start.c takes the names below. Importing it prepares the interpreter for user code."""

import gc
import io
import logging
import os
import pickle
import sys
from json import dumps as _dumps, loads as _loads

import _kaspr
import kaspr_app
import kaspr_load
import kaspr_loop

# Imported now, they are part of the image every instance starts from.
for _name in (
    "asyncio base64 binascii collections collections.abc contextlib copy csv dataclasses datetime decimal enum functools "
    "hashlib hmac html io itertools json math operator pickle random re secrets statistics string struct textwrap time "
    "traceback types typing urllib.parse uuid zlib zoneinfo"
).split():
    try:
        __import__(_name)
    except ImportError:  # not every build has every module
        pass

_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40


class _Lines(io.TextIOBase):
    """sys.stdout and sys.stderr: whole lines go to the engine's log."""

    encoding = "utf-8"
    errors = "backslashreplace"
    _LONGEST = 32 << 10

    def __init__(self, name):
        self.name = name
        self._part = ""

    def writable(self):
        return True

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() takes a str, not {type(text).__name__}")
        lines = (self._part + text).split("\n")
        self._part = lines.pop()
        for line in lines:
            _kaspr.log(_WARNING, line)
        if len(self._part) > self._LONGEST:
            _kaspr.log(_WARNING, self._part)
            self._part = ""
        return len(text)


class _LogHandler(logging.Handler):
    def emit(self, record):
        try:
            text = self.format(record)
            if record.name not in ("root", "app"):
                text = f"{record.name}: {text}"
            _kaspr.log(record.levelno, text)
        except Exception:
            self.handleError(record)


class _Refuse:
    """Names of modules user code may know from the original and cannot have here, with what to do instead."""

    _reasons = {
        "faust": "context[\"event\"] and context[\"app\"] give what current_event() and the app gave",
        "mode": "it belongs to the original worker",
        "aiokafka": "context[\"app\"].send produces messages",
    }

    def find_spec(self, name, path=None, target=None):
        reason = self._reasons.get(name.partition(".")[0])
        if reason is not None:
            raise ModuleNotFoundError(f"{name} is not available to user code: {reason}", name=name)
        return None


def _prepare():
    sys.stdout, sys.stderr = _Lines("<stdout>"), _Lines("<stderr>")
    sys.stdin = io.StringIO()
    sys.__stdout__, sys.__stderr__, sys.__stdin__ = sys.stdout, sys.stderr, sys.stdin
    sys.argv = ["kaspr"]
    sys.meta_path.insert(0, _Refuse())
    logging.root.addHandler(_LogHandler())
    logging.root.setLevel(logging.INFO)
    logging.raiseExceptions = False


_prepare()
loop, task = kaspr_loop.make()
loop_ready, loop_scheduled, loop_ended, loop_rest = loop._ready, loop._scheduled, loop.ended, kaspr_loop.Loop.rest
UnitTask = kaspr_loop.UnitTask
task_finish, task_idle, task_enter, task_leave = UnitTask.finish, UnitTask.idle, UnitTask.enter, UnitTask.leave
task_begin, task_result, task_inject, task_abandon = UnitTask.begin, UnitTask.result, UnitTask.inject, UnitTask.abandon
base_context = task.context
app = kaspr_app.app = kaspr_app.App(loop)
forward, send, acked = kaspr_app.forward, kaspr_app.send, kaspr_app.acked


def pickle_key(value):
    """A pickle that is the same for equal keys: without the memo, in which the identity of parts would show."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def _problem(exc):
    """An exception of the engine's own code: better said than lost."""
    return _dumps([{"file": "", "line": 0, "column": 0, "where": "", "type": type(exc).__name__,
                    "message": _kaspr.message(exc), "traceback": _kaspr.traceback(exc)}]).encode()


def check(data):
    try:
        return kaspr_load.check(_loads(data)), None
    except BaseException as exc:
        return _problem(exc), None


def load(data):
    try:
        program = _loads(data)
        info = program.get("app") or {}
        app._configure(info.get("name") or "", info.get("id") or "", info.get("conf") or {})
        os.environ.clear()
        os.environ.update(program.get("env") or {})
        return kaspr_load.load(program)
    except BaseException as exc:
        return _problem(exc), None


def loaded():
    """The program is in place; what lives now lives as long as the instance."""
    gc.collect()
    gc.freeze()
    loop.freeze_time()


def reseed(seed):
    """Fresh randomness for an instance restored from an image, which is the same for all of them.

    Instances of random.Random that user code made keep the state they had in the image.
    """
    loop.thaw_time()
    modules = sys.modules
    if "random" in modules:
        _random.seed(int.from_bytes(seed, "big"))
    if "uuid" in modules:
        modules["uuid"]._node = None
        modules["uuid"]._last_timestamp = None
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None


import random as _random_module

_random = _random_module._inst
