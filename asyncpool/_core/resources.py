"""The task that opens, holds and closes one worker's resource.

What becomes of the worker meanwhile is `workers.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any, Protocol

from asyncpool._core.job import Worker
from asyncpool._core.line import wake
from asyncpool._core.tasks import Tasks
from asyncpool._guard import describe, is_error, set_cause
from asyncpool.errors import PoolClosed, ResourceDied, is_safe_to_raise

__all__ = ["ResourceHost", "ResourceTask"]

# The pause before a resource that could not be entered is tried again: doubled each time, with half of it random, so
# that the workers of a pool do not all connect to a database in the moment in which it is back.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


def _safe(error: BaseException | None) -> BaseException:
    if error is not None and is_safe_to_raise(error):
        return error
    died = ResourceDied("the resource could not be entered")
    set_cause(died, error)
    return died


class ResourceHost(Protocol):
    """What a resource task reports to."""

    def worker_ready(self, worker: Worker, /) -> None: ...
    def resource_lost(self, worker: Worker, /) -> BaseException | None: ...
    def resource_failed(self, worker: Worker, error: BaseException, retry_in: float | None, /) -> None: ...
    def remove(self, worker: Worker, /) -> None: ...


class ResourceTask:
    """Holds one worker's resource, which is entered and left in this one task.

    Invariant: the task ends only when the worker retires, so that a stray cancellation costs no worker
    (test_a_stray_cancel_of_whatever_task_costs_no_worker).
    """

    def __init__(
        self,
        worker: Worker,
        host: ResourceHost,
        enter: Callable[[], AbstractAsyncContextManager[Any]],
        *,
        must_enter: bool,
    ) -> None:
        self._worker = worker
        self._state = worker.pool
        self._host = host
        self._enter = enter
        self._random = random.Random(f"{self._state.name} {worker.number}")
        self._loop = self._state.loop
        self._changed: asyncio.Future[None] | None = None
        # Of the worker that start() waits for: resolved at the first entry; if that fails, with its error.
        self.entered: asyncio.Future[None] | None = self._loop.create_future() if must_enter else None
        self._is_entering = False
        self._task: asyncio.Task[None] | None = None

    def start(self, tasks: Tasks, context: Context) -> None:
        """Begin to open the resource."""
        name = f"{self._state.name} worker {self._worker.number} resource"
        self._task = tasks.spawn(self._hold, name=name, context=context)
        self._task.add_done_callback(self._is_done)

    def notify(self) -> None:
        """Note that the worker's flags, or its job, have changed."""
        if self._changed is not None:
            wake(self._changed)

    def leave(self) -> None:
        """Note that the worker retires: give up what is still being entered, and leave what is held."""
        if self._is_entering and self._task is not None:
            self._is_entering = False  # once: what it does to give up can take its time
            self._task.cancel()
        self.notify()

    def fail_start(self) -> None:
        """Wake whoever waits for the first entry, which will not happen."""
        if self.entered is not None and not self.entered.done():
            self.entered.set_exception(PoolClosed(f"pool {self._state.name!r} was closed while it started"))

    def _is_done(self, task: asyncio.Task[None]) -> None:
        """The end, also of a task that was cancelled before its first step."""
        worker = self._worker
        worker.retiring = True
        self.fail_start()
        if worker.job is None:
            self._host.remove(worker)
        else:
            worker.resource_task = None  # it goes when its job has ended, as a worker without a resource does

    async def _hold(self) -> None:
        if self._task is None:
            await asyncio.sleep(0)  # an eager task factory runs us while the task is made
        worker = self._worker
        failures = 0  # since the resource was last left without one
        while not worker.retiring:
            held, lost, error = await self._enter_and_hold()
            failures = 0 if held and lost is None and error is None else failures + 1
            if lost is not None:
                set_cause(lost, error)
            if is_error(error, asyncio.CancelledError) and self._is_ending():
                return  # given up, because of leave() or because somebody cancels every task
            if not held and self.entered is not None and not self.entered.done():
                self.entered.set_exception(_safe(error))
                return
            pause = self._pause(failures) if failures else 0.0
            if error is not None:
                self._host.resource_failed(worker, error, None if worker.retiring else pause)
            # A job whose resource has died may not have ended yet: it holds the worker until it does.
            await self._wait_uncancelled(lambda: worker.job is None)
            if pause:
                await self._wait(pause)

    async def _enter_and_hold(self) -> tuple[bool, BaseException | None, BaseException | None]:
        """Enter the resource and hold it until it is to be left. Raises nothing but KeyboardInterrupt.

        Returns whether it was held, the failure of the job that ran when it died, and what it raised.
        """
        worker = self._worker
        held = False
        lost: BaseException | None = None
        self._is_entering = True
        try:
            manager = self._enter()
            if not isinstance(manager, AbstractAsyncContextManager):
                raise TypeError(f"resource must return an async context manager, got {describe(manager)}")
            async with manager as worker.resource:
                self._is_entering = False
                held = True
                worker.needs_recycle = False
                if self.entered is not None and not self.entered.done():
                    self.entered.set_result(None)
                self._host.worker_ready(worker)
                try:
                    await self._until(self._is_to_be_left)
                except BaseException:
                    if self._loop.is_closed():
                        raise  # we are being collected
                    # Not by us: the resource's own scope cancelled us, or somebody cancels every task.
                    lost = self._host.resource_lost(worker)
                    raise
        except BaseException as error:
            if is_error(error, KeyboardInterrupt) or self._loop.is_closed():
                raise
            if is_error(error, asyncio.CancelledError):
                self._forget_cancellation()
            return held, lost, error
        finally:
            self._is_entering = False
            worker.resource = None
        return held, lost, None

    def _is_ending(self) -> bool:
        if self._state.is_loop_shutting_down():
            self._worker.retiring = True
        return self._worker.retiring

    def _is_to_be_left(self) -> bool:
        return self._worker.job is None and (self._worker.retiring or self._worker.needs_recycle)

    def _pause(self, failures: int) -> float:
        return min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 10), _LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the worker retires."""
        is_over = False

        def end() -> None:  # a flag and not the clock: on some loops a timer fires a little early
            nonlocal is_over
            is_over = True
            self.notify()

        timer = self._loop.call_later(seconds, end)
        try:
            await self._wait_uncancelled(lambda: is_over or self._worker.retiring)
        finally:
            timer.cancel()

    async def _wait_uncancelled(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds, whoever cancels us meanwhile."""
        while not holds():
            try:
                await self._until(holds)
            except asyncio.CancelledError:
                self._forget_cancellation()
                if self._is_ending():
                    return

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed = self._loop.create_future()
            try:
                await self._changed
            finally:
                self._changed = None

    def _forget_cancellation(self) -> None:
        # Taken back, because the timeouts of the next resource to enter would take it for theirs.
        task = self._task
        while task is not None and task.cancelling():
            task.uncancel()
