"""The event loop of an instance, and how a coroutine that C began is run to its end.

All user code runs as if it were one task: the loop is always set as running, and outside of its turns a real asyncio
task, the unit task, is the current one. So C can start a coroutine and, as long as it waits for nothing, end it without
the loop (call.c). When it does wait, finish() hands it to the unit task, which resumes it until it is done. Timeouts and
task groups, which remember the current task and cancel it, thus find the task that really runs their coroutine.

Tasks a record started and did not wait for go on living. They get a turn when a unit ends and whenever the loop turns.
What they send belongs to the unit that is in progress then.
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
_monotonic = time.monotonic
_heappop = heapq.heappop


class Stuck(RuntimeError):
    """A coroutine waits for something that cannot happen any more."""


class Loop(base_events.BaseEventLoop):
    """An event loop without files: it knows callbacks and timers, and waits with the host's sleep."""

    def __init__(self):
        super().__init__()
        self._thread_id = threading.get_ident()  # is_running() is true, as everything runs inside of it
        self._offset = 0.0
        self._frozen = None

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

    def close(self):
        raise RuntimeError("the engine's event loop cannot be closed")

    def stop(self):
        raise RuntimeError("the engine's event loop cannot be stopped")

    def turn(self, may_wait):
        """One turn: due timers, then the callbacks that were ready. Waits for a timer if nothing else is to do."""
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0]._cancelled:
            handle = _heappop(scheduled)
            handle._scheduled = False
            self._timer_cancelled_count -= 1
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
                handle._run()
        handle = None


class _Work:
    """A coroutine that began in C and waits for something, on its way through the unit task."""

    __slots__ = ("iterator", "waits_for", "done", "result", "error", "inject")

    def __init__(self, iterator, waits_for):
        self.iterator, self.waits_for = iterator, waits_for
        self.done = False
        self.result = self.error = None
        self.inject = None  # exception to raise in the coroutine in place of the cancellation it gets


class UnitTask:
    """The task that stands for the unit's own code."""

    def __init__(self, loop, context):
        self.loop = loop
        self.context = context
        self.renew()

    def renew(self):
        """A new task, parked and current."""
        self.work = self.parked = None
        self.task = tasks.Task(self._drive(), loop=self.loop, context=self.context, name="record")
        while self.parked is None:
            self.loop.turn(False)
        tasks._enter_task(self.loop, self.task)

    async def _drive(self):
        me = tasks.current_task()
        while True:
            parked = self.parked = self.loop.create_future()
            cancelled = False
            try:
                await parked
            except asyncio.CancelledError:
                cancelled = True
            work, self.work = self.work, None
            if work is not None:
                try:
                    work.result = await _resume(work, cancelled)
                except BaseException as exc:
                    work.error = exc
                work.done = True
                if self.task is not me:  # given up, and another one runs
                    return
                work = None
            while me.cancelling():
                me.uncancel()

    def finish(self, iterator, waits_for):
        """Runs a suspended coroutine to its end; called by C outside of the base context."""
        loop, task = self.loop, self.task
        work = self.work = _Work(iterator, waits_for)
        if not self.parked.done():
            self.parked.set_result(None)
        tasks._leave_task(loop, task)
        try:
            while not work.done:
                try:
                    if _interrupted():
                        raise DeadlineExceeded
                    loop.turn(True)
                except BaseException as exc:  # a deadline or nothing to wait for: it belongs into the coroutine
                    if work.done or work.inject is not None:
                        raise
                    work.inject = exc
                    if not task.cancel():
                        raise
        except BaseException:
            # The coroutine does not end, or the task did: another one takes its place.
            task._log_destroy_pending = False
            self.renew()
            raise
        tasks._enter_task(loop, task)
        if work.error is not None:
            try:
                raise work.error
            finally:
                work = None
        return work.result

    def idle(self):
        """A turn for other tasks, at the end of a unit."""
        tasks._leave_task(self.loop, self.task)
        try:
            self.loop.turn(False)
        finally:
            tasks._enter_task(self.loop, self.task)


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
    """The loop and its unit task, with the loop set as running for good."""
    loop = Loop()
    events._set_running_loop(loop)
    events.set_event_loop(loop)
    sys.set_asyncgen_hooks(finalizer=lambda agen: loop.create_task(agen.aclose()))
    return loop, UnitTask(loop, contextvars.copy_context())
