"""The event loop of an instance, and how a coroutine that C began is run to its end.

All user code of a record runs as if it were one task: the loop is always set as running, and outside of its turns a real
asyncio task, a unit task, is the current one. So C can start a coroutine and, as long as it waits for nothing, end it without
the loop (call.c). When it does wait, the unit task gets it and resumes it until it is done, while C goes on with other records
under another unit task (begin; concurrent.c) or waits too (finish). Timeouts and task groups, which remember the current task
and cancel it, thus find the task that really runs their coroutine.

What the loop runs belongs to the record whose unit task stands in its context. Tasks a record started and did not wait for go
on living. They get a turn when a unit ends and whenever the loop turns. What they send after their record ended belongs to a
unit that is in progress then.
"""

import asyncio
import contextvars
import heapq
import sys
import threading
import time
import types
from asyncio import base_events, events, tasks

import _kaspr
from kaspr import DeadlineExceeded

_interrupted = _kaspr.interrupted
_step = _kaspr.step
_monotonic = time.monotonic
_heappop = heapq.heappop


class Stuck(RuntimeError):
    """A coroutine waits for something that cannot happen any more."""


class Clash(BaseException):
    """A record used an entry of a table out of turn: it and those beside it run again, one by one. Nobody gets to see this."""


_unit = contextvars.ContextVar("kaspr_unit", default=None)  # the UnitTask of the record that code belongs to


class Loop(base_events.BaseEventLoop):
    """An event loop without files: it knows callbacks and timers, and waits with the host's sleep."""

    def __init__(self):
        super().__init__()
        self._thread_id = threading.get_ident()  # is_running() is true, as everything runs inside of it
        self._offset = 0.0
        self._frozen = None
        self.ended = []  # unit tasks whose coroutine has ended, for C

    # Time goes on where it stood when the image was taken, although the clock of a later process is another one.
    def time(self):
        return _monotonic() + self._offset

    def freeze_time(self):
        self._frozen = self.time()

    def thaw_time(self):
        if self._frozen is not None:
            self._offset = self._frozen - _monotonic()
            self._frozen = None

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass

    def call_soon_threadsafe(self, callback, *args, context=None):
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor, func, *args):
        """There are no threads: func runs here and now."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except StopIteration as exc:
            future.set_exception(RuntimeError(f"run_in_executor: {exc!r}"))
        except Exception as exc:
            future.set_exception(exc)
        return future

    def call_exception_handler(self, context):
        if "handle" in context and isinstance(context.get("exception"), DeadlineExceeded):
            raise context["exception"]  # a deadline in the middle of a callback is none of the callback's business
        super().call_exception_handler(context)

    def close(self):
        raise RuntimeError("the engine's event loop cannot be closed")

    def stop(self):
        raise RuntimeError("the engine's event loop cannot be stopped")

    def turn(self, may_wait):
        """One turn: due timers, then the callbacks that were ready. Waits for a timer if nothing else is to do."""
        ready, scheduled = self._ready, self._scheduled
        self._drop_cancelled()
        if scheduled:
            if not ready and may_wait:
                wait = scheduled[0]._when - self.time()
                if wait > 0:
                    _kaspr.sleep(wait)
            end = self.time() + self._clock_resolution
            while scheduled and scheduled[0]._when < end:
                handle = _heappop(scheduled)
                handle._scheduled = False
                ready.append(handle)
        elif not ready and may_wait:
            raise Stuck("the coroutine waits for something nobody will do: no task is ready and no timer is set")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                _step(handle._context.get(_unit))
                handle._run()
        handle = None
        _step(None)

    def rest(self):
        """Nanoseconds until there is something to do; -1: there will be nothing by itself."""
        if self._ready:
            return 0
        self._drop_cancelled()
        if not self._scheduled:
            return -1
        return max(0, int((self._scheduled[0]._when - self.time()) * 1e9))

    def _drop_cancelled(self):
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            handle = _heappop(scheduled)
            handle._scheduled = False
            self._timer_cancelled_count -= 1


class _Work:
    """A coroutine that began in C and waits for something, on its way through the unit task."""

    __slots__ = ("iterator", "waits_for", "done", "result", "error", "inject")

    def __init__(self, iterator, waits_for):
        self.iterator, self.waits_for = iterator, waits_for
        self.done = False
        self.result = self.error = None
        self.inject = None  # exception to raise in the coroutine in place of the cancellation it gets


class UnitTask:
    """The task that stands for a unit's own code."""

    def __init__(self, loop):
        self.loop = loop
        self.context = contextvars.copy_context()
        self.context.run(_unit.set, self)
        self.renew()

    def renew(self):
        """A new task, parked."""
        self.work = self.parked = self.beside = None
        self.task = tasks.Task(self._drive(), loop=self.loop, context=self.context, name="record")
        self.loop._ready.pop()._run()  # its first step, which waits to be given work

    def enter(self):
        tasks._enter_task(self.loop, self.task)

    def leave(self):
        tasks._leave_task(self.loop, self.task)

    async def _drive(self):
        me = tasks.current_task()
        while True:
            parked = self.parked = self.loop.create_future()
            cancelled = False
            try:
                await parked
            except asyncio.CancelledError:
                cancelled = True
            if self.task is not me:  # given up before it came to its work: neither that nor self.parked is its own any more
                return
            work, self.work = self.work, None
            if work is not None:
                try:
                    work.result = await _resume(work, cancelled)
                except BaseException as exc:
                    work.error = exc
                work.done = True
                if work is self.beside:
                    self.loop.ended.append(self)
                if self.task is not me:  # given up, and another one runs
                    return
                work = None
            while me.cancelling():
                me.uncancel()

    def finish(self, iterator, waits_for):
        """Runs a suspended coroutine to its end; called by C outside of the base context."""
        loop, task = self.loop, self.task
        try:
            work = self._give(iterator, waits_for)
            self.leave()
            while not work.done:
                try:
                    if _interrupted():
                        raise DeadlineExceeded
                    loop.turn(True)
                except BaseException as exc:  # a deadline or nothing to wait for: it belongs into the coroutine
                    if work.done:
                        raise
                    if work.inject is not None:
                        # What interrupted the loop may have taken a callback with it that was to wake the coroutine up.
                        raise work.inject if isinstance(exc, Stuck) else exc
                    work.inject = exc
                    if not task.cancel():
                        raise
            self.enter()
        except BaseException:
            # The coroutine does not end, or the task did, or it was not even given to it as a whole: another one takes its place.
            if tasks.current_task(loop) is task:
                self.leave()
            task._log_destroy_pending = False
            self.renew()
            self.enter()
            raise
        if work.error is not None:
            try:
                raise work.error
            finally:
                work = None
        return work.result

    def _give(self, iterator, waits_for):
        work = self.work = _Work(iterator, waits_for)
        if not self.parked.done():
            self.parked.set_result(None)
        return work

    def begin(self, iterator, waits_for):
        """Goes on with a suspended coroutine whenever the loop turns. It has ended when self stands in loop.ended."""
        self.beside = self._give(iterator, waits_for)

    def result(self):
        """What became of the coroutine of begin."""
        work, self.beside = self.beside, None
        if work.error is not None:
            try:
                raise work.error
            finally:
                work = None
        return work.result

    def inject(self, exc):
        """Has exc raised in the coroutine of begin. False: the last one has not arrived there, or it has ended."""
        work = self.beside
        if work.done or work.inject is not None or not self.task.cancel():
            return False
        work.inject = exc
        return True

    def abandon(self):
        """Ends the coroutine of begin, and what it waits for. The task is of no further use."""
        work, self.beside = self.beside, None
        self.task._log_destroy_pending = False
        self.task.cancel()
        if not work.done:
            getattr(work.waits_for, "cancel", lambda: None)()  # the task may not have come to wait for it
            getattr(work.iterator, "close", lambda: None)()

    def idle(self):
        """A turn for all tasks."""
        self.leave()
        try:
            self.loop.turn(False)
        finally:
            self.enter()


@types.coroutine
def _resume(work, cancelled):
    """Goes on with a coroutine whose first steps C made: yield from, but from the middle."""
    iterator, waits_for = work.iterator, work.waits_for
    send = getattr(iterator, "send", None)
    if cancelled:
        waits_for = _thrown(work, asyncio.CancelledError())
        if type(waits_for) is _Result:
            return waits_for.value
    while True:
        try:
            value = yield waits_for
        except BaseException as exc:
            waits_for = _thrown(work, exc)
            if type(waits_for) is _Result:
                return waits_for.value
        else:
            try:
                waits_for = iterator.__next__() if send is None else send(value)
            except StopIteration as stop:
                return stop.value


class _Result:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def _thrown(work, exc):
    if work.inject is not None:
        exc, work.inject = work.inject, None
        task = tasks.current_task()
        while task.cancelling():
            task.uncancel()
    throw = getattr(work.iterator, "throw", None)
    if throw is None:
        raise exc
    try:
        return throw(exc)
    except StopIteration as stop:
        return _Result(stop.value)


def make():
    """The loop and its first unit task, which is the current one, with the loop set as running for good."""
    loop = Loop()
    events._set_running_loop(loop)
    events.set_event_loop(loop)
    sys.set_asyncgen_hooks(finalizer=lambda agen: loop.create_task(agen.aclose()))
    task = UnitTask(loop)
    task.enter()
    return loop, task
