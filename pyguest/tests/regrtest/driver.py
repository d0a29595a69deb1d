"""Runs one module of CPython's regression tests; regrtest_test.go puts it into the zip as kaspr_regrtest.

Every test's begin and end is one line of the log: MARK and JSON. What the guest has not is given as far as tests need it:
files (files.py), modules that tests import and hardly use (stubs); asyncio gets the engine's own event loop.
"""

import json
import pkgutil
import sys
import time
import types
import unittest
from fnmatch import fnmatchcase

import _kaspr
import kaspr_regrtest_files

MARK = "\x1eregrtest "
_log = _kaspr.log
_clock = time.perf_counter


def _tell(**fields):
    _log(20, MARK + json_dumps(fields))


json_dumps = json.JSONEncoder().encode  # test_json and others replace what is in json


class _Result(unittest.TestResult):
    """Tells what became of each test. A test with several outcomes (subtests, cleanups) has the worst."""

    def __init__(self):
        super().__init__()
        self.state = None

    def startTest(self, test):
        super().startTest(test)
        self.state = ("pass", "")
        self.since = _clock()
        _tell(event="begin", id=test.id())

    def stopTest(self, test):
        super().stopTest(test)
        status, why = self.state
        self.state = None
        _tell(event="end", id=test.id(), status=status, why=why, ms=round((_clock() - self.since) * 1000))

    def _set(self, test, status, why):
        if self.state is None:  # setUpModule and the like
            _tell(event="end", id=test.id(), status=status, why=why, ms=0)
        elif self.state[0] != "fail":
            self.state = (status, why)

    def _failed(self, test, err):
        self._set(test, "fail", self._exc_info_to_string(err, test)[-6000:])

    def addError(self, test, err):
        self._failed(test, err)

    def addFailure(self, test, err):
        self._failed(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._failed(test, err)

    def addSkip(self, test, reason):
        self._set(test, "skip", str(reason))

    def addUnexpectedSuccess(self, test):
        self._set(test, "fail", "unexpected success")


def _tests(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _tests(test)
        else:
            yield test


def _select(suite, only, omit):
    """The suite without what is not asked for. Suites stay suites, whose class and module fixtures belong together."""
    kept = suite.__class__()
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.addTest(_select(test, only, omit))
            continue
        name = test.id()
        if any(fnmatchcase(name, p) for p in omit):
            _tell(event="end", id=name, status="omit", why="", ms=0)
        elif not only or any(fnmatchcase(name, p) for p in only):
            kept.addTest(test)
    return kept


def _patch_support(resources):
    from test import support
    from test.support import os_helper, socket_helper, threading_helper  # have looked at is_wasi  # noqa: F401

    support.is_wasi = False  # tests that refuse for its small stack or other reasons that need not be ours are tried
    support.use_resources = tuple(resources)
    support.verbose = 0

    def load_package_tests(pkg_dir, loader, standard_tests, pattern):
        name = pkg_dir.removeprefix("/lib/stdlib.zip/").replace("/", ".")
        package = sys.modules[name]
        for info in pkgutil.iter_modules(package.__path__, name + "."):
            if fnmatchcase(info.name.rpartition(".")[2], pattern or "test*"):
                standard_tests.addTests(loader.loadTestsFromName(info.name))
        return standard_tests

    real_requires_working_socket = support.requires_working_socket

    def requires_working_socket(*, module=False):
        # A whole module refuses because some of its tests need sockets; those fail, and are listed.
        return None if module else real_requires_working_socket()

    support.load_package_tests = load_package_tests
    support.requires_working_socket = requires_working_socket


class _Stub(types.ModuleType):
    """A module that is not in the guest, for tests that import it: a test that uses it is skipped."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise unittest.SkipTest(f"there is no module {self.__name__}")


def _add_stubs(names):
    for name in names:
        sys.modules[name] = _Stub(name)
        if name == "lzma":
            sys.modules[name].decompress = bytes  # zones.py has unpacked what test_zoneinfo unpacks
        above, _, last = name.rpartition(".")
        if above in sys.modules:
            setattr(sys.modules[above], last, sys.modules[name])


def _patch_asyncio():
    """No loop runs, and a new one is the engine's, made to start and to end."""
    import asyncio
    from asyncio import base_events, events, tasks
    import kaspr_loop
    import kaspr_runtime

    tasks._leave_task(kaspr_runtime.loop, kaspr_runtime.task.task)
    events._set_running_loop(None)
    events.set_event_loop(None)
    sys.set_asyncgen_hooks(None, None)

    class Loop(kaspr_loop.Loop):
        def __init__(self):
            super().__init__()
            self._thread_id = None

        def _run_once(self):
            self.turn(not self._stopping)

        close = base_events.BaseEventLoop.close
        stop = base_events.BaseEventLoop.stop

    class Policy(asyncio.DefaultEventLoopPolicy):
        _loop_factory = Loop

    asyncio.DefaultEventLoopPolicy = Policy
    events.set_event_loop_policy(None)
    asyncio.EventLoop = asyncio.SelectorEventLoop = Loop


def _patch_logging():
    import logging

    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    logging.raiseExceptions = True


def run(module, only=(), omit=(), resources=(), stubs=()):
    _patch_logging()
    kaspr_regrtest_files.install(__loader__)
    _add_stubs(stubs)
    _patch_asyncio()
    _patch_support(resources)
    since = _clock()
    loader = unittest.TestLoader()
    try:
        __import__(module)
        suite = loader.loadTestsFromModule(sys.modules[module])
    except unittest.SkipTest as exc:
        _tell(event="end", id=module, status="skip", why=str(exc), ms=0)
        suite = unittest.TestSuite()
    for text in loader.errors:
        _tell(event="end", id=module, status="fail", why=text, ms=0)
    imported = _clock()
    _select(suite, only, omit).run(_Result())
    _tell(event="done", id=module, status="", why="", ms=round((imported - since) * 1000))


def imports(names):
    """Imports every module of a list; for modules.txt."""
    import importlib

    for name in names:
        _tell(event="begin", id=name)
        try:
            importlib.import_module(name)
            status, why = "pass", ""
        except BaseException as exc:
            status, why = "fail", repr(exc)
        _tell(event="end", id=name, status=status, why=why, ms=0)
    _tell(event="done", id="", status="", why="", ms=0)
