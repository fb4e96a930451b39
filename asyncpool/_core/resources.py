"""A worker: the slot that one job at a time may hold, and the keeper of the slot's resource.

A worker without a resource is no more than an entry in the list of idle ones; starting and ending its jobs is
`_dispatch.py`. One with a resource has a task of its own, the keeper, which enters the resource, offers the worker,
and leaves the resource again when the worker retires or its resource has to be replaced.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any, Protocol

from asyncpool._core.job import Job, JobOwner
from asyncpool.errors import PoolClosed, ResourceDied, is_safe_to_raise

__all__ = ["Keeper", "Worker", "WorkerHost"]

_log = logging.getLogger("asyncpool")

# The pause before a resource that could not be entered is tried again: doubled each time, with half of it random, so
# that the workers of a pool do not all knock at a database in the moment it is back.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


def _safe(error: BaseException | None) -> BaseException:
    if error is not None and is_safe_to_raise(error):
        return error
    died = ResourceDied("the resource could not be entered")
    died.__cause__ = error
    return died


class Worker:
    """A slot for one job at a time."""

    __slots__ = ("job", "keeper", "leaving", "number", "owner", "resource", "stale")

    def __init__(self, number: int, owner: JobOwner) -> None:
        self.number = number
        self.owner = owner
        self.job: Job | None = None
        self.resource: Any = None
        self.keeper: Keeper | None = None
        self.leaving = False  # takes no more jobs, and goes when its job has ended
        self.stale = False  # takes no more jobs until its resource is replaced

    def __repr__(self) -> str:
        return f"<Worker {self.number}{' leaving' if self.leaving else ''}{' stale' if self.stale else ''}>"


class WorkerHost(Protocol):
    """What a keeper needs of the pool."""

    @property
    def name(self) -> str: ...
    def is_torn_down(self) -> bool: ...
    def offer(self, worker: Worker, /) -> None: ...
    def withdraw(self, worker: Worker, /) -> BaseException | None: ...
    def dismiss(self, worker: Worker, /) -> None: ...
    def resource_failed(self, worker: Worker, error: BaseException, retry_in: float | None, /) -> None: ...


class Keeper:
    """The task that holds one worker's resource, and in which it is entered and left."""

    def __init__(
        self,
        worker: Worker,
        host: WorkerHost,
        enter: Callable[[], AbstractAsyncContextManager[Any]],
        context: Context,
        *,
        must_enter: bool,
    ) -> None:
        self._worker = worker
        self._host = host
        self._enter = enter
        self._random = random.Random(f"{host.name} {worker.number}")
        self._loop = asyncio.get_running_loop()
        self._bell: asyncio.Future[None] | None = None
        # Of the worker that start() waits for: resolved at the first entry; if that fails, its error, and the end.
        self.entered: asyncio.Future[None] | None = self._loop.create_future() if must_enter else None
        self._is_entering = False
        self.task: asyncio.Task[None] | None = None
        self.task = self._loop.create_task(
            self._keep(), name=f"{host.name} worker {worker.number} resource", context=context
        )
        self.task.add_done_callback(self._is_done)

    def ring(self) -> None:
        """Say that the worker's flags, or its job, have changed."""
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def leave(self) -> None:
        """Say that the worker is leaving: what is still being entered is given up, what is held is left in peace."""
        if self._is_entering and self.task is not None:
            self._is_entering = False  # once: what it does to give up may take its time
            self.task.cancel()
        self.ring()

    def give_up_entering(self) -> None:
        """Wake whoever waits for the first entry, which will not be."""
        if self.entered is not None and not self.entered.done():
            self.entered.set_exception(PoolClosed(f"pool {self._host.name!r} was closed while it started"))

    def _is_done(self, task: asyncio.Task[None]) -> None:
        """The end, also of a task that was cancelled before its first step."""
        worker = self._worker
        worker.leaving = True
        self.give_up_entering()
        if worker.job is None:
            self._host.dismiss(worker)
        else:
            worker.keeper = None  # it goes when its job has ended, as a worker without a resource does

    async def _keep(self) -> None:
        if self.task is None:
            await asyncio.sleep(0)  # an eager task factory runs us while the task is made
        worker = self._worker
        failures = 0  # since the resource was last let go in peace
        while not worker.leaving:
            held, lost, error = await self._enter_and_hold()
            failures = 0 if held and lost is None and error is None else failures + 1
            if lost is not None:
                lost.__cause__ = error
            if isinstance(error, asyncio.CancelledError) and self._is_ending():
                return  # given up, as leave() asked or whoever cancels every task
            if not held and self.entered is not None and not self.entered.done():
                self.entered.set_exception(_safe(error))
                return
            pause = self._pause(failures) if failures else 0.0
            if error is not None:
                self._host.resource_failed(worker, error, None if worker.leaving else pause)
            # A job whose resource died under it may not have ended yet: it holds the worker until it does.
            await self._surely(lambda: worker.job is None)
            if pause:
                await self._wait(pause)

    async def _enter_and_hold(self) -> tuple[bool, BaseException | None, BaseException | None]:
        """Enter the resource and hold it until it is let go. Never raises but KeyboardInterrupt.

        Returns whether it was held, the failure of the job that it died under, and what it raised.
        """
        worker = self._worker
        held = False
        lost: BaseException | None = None
        self._is_entering = True
        try:
            manager = self._enter()
            if not isinstance(manager, AbstractAsyncContextManager):
                raise TypeError(f"resource must return an async context manager, got {manager!r:.80}")
            async with manager as worker.resource:
                self._is_entering = False
                held = True
                worker.stale = False
                if self.entered is not None and not self.entered.done():
                    self.entered.set_result(None)
                self._host.offer(worker)
                try:
                    await self._until(self._is_let_go)
                except BaseException:
                    if self._loop.is_closed():
                        raise  # we are being collected
                    # Not by us: the resource's own scope cancelled us, or somebody cancels every task.
                    lost = self._host.withdraw(worker)
                    raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or self._loop.is_closed():
                raise
            if isinstance(error, asyncio.CancelledError):
                self._forget_cancellation()
            return held, lost, error
        finally:
            self._is_entering = False
            worker.resource = None
        return held, lost, None

    def _is_ending(self) -> bool:
        if self._host.is_torn_down():
            self._worker.leaving = True
        return self._worker.leaving

    def _is_let_go(self) -> bool:
        return self._worker.job is None and (self._worker.leaving or self._worker.stale)

    def _pause(self, failures: int) -> float:
        return min(_FIRST_PAUSE * 2.0 ** (failures - 1), _LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the worker shall leave."""
        is_over = False

        def end() -> None:  # the timer says so, and the clock is not asked: on some loops a timer comes a little early
            nonlocal is_over
            is_over = True
            self.ring()

        timer = self._loop.call_later(seconds, end)
        try:
            await self._surely(lambda: is_over or self._worker.leaving)
        finally:
            timer.cancel()

    async def _surely(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds, whoever cancels us meanwhile: a stray cancel costs no worker."""
        while not holds():
            try:
                await self._until(holds)
            except asyncio.CancelledError:
                self._forget_cancellation()
                if self._is_ending():
                    return

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._bell = self._loop.create_future()
            try:
                await self._bell
            finally:
                self._bell = None

    def _forget_cancellation(self) -> None:
        # The keeper ends by worker.leaving alone, so that a stray cancel costs no worker. What was delivered is taken
        # back, or the timeouts of the next resource to enter would take it for theirs.
        task = self.task
        while task is not None and task.cancelling():
            task.uncancel()
