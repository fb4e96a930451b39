"""A handler whose calls finish when the test says so.

Waiting until jobs have reached the handler is `settle` in `settling.py`, or `ManualHandler.wait_started`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

__all__ = ["ManualHandler"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")


class ManualHandler(Generic[JobT, ValueT]):
    """A handler whose calls wait until the test finishes them: `handler(job)` or `handler(job, resource)`.

    If several running calls have equal jobs, `finish` and `fail` apply to the one that started first. A call
    counts as running until its task resumes, that is, still for a moment after `finish` or `fail`.

    Attributes:
        started: The jobs of all calls, in the order in which the calls started.
        cancelled: The jobs of the cancelled calls, in the order in which they were cancelled.
        peak_running: The highest number of calls that were running at the same time.
    """

    def __init__(self) -> None:
        self.started: list[JobT] = []
        self.cancelled: list[JobT] = []
        self.peak_running = 0
        self._calls: list[_Call[JobT, ValueT]] = []
        self._begun: list[asyncio.Future[None]] = []

    @property
    def running(self) -> list[JobT]:
        """The jobs of the calls that are running now, in the order in which the calls started."""
        return [call.job for call in self._calls]

    async def __call__(self, job: JobT, resource: object = None, /) -> ValueT:
        """Wait until the test finishes this call, and return the value passed to `finish` or `finish_all`.

        Cancel-safe: a cancelled call is recorded in `cancelled`.

        Raises:
            BaseException: The error passed to `fail`.
        """
        loop = asyncio.get_running_loop()
        call = _Call[JobT, ValueT](job, loop.create_future())
        self._calls.append(call)
        self.started.append(job)
        self.peak_running = max(self.peak_running, len(self._calls))
        for waiter in self._begun:
            if not waiter.done():
                waiter.set_result(None)
        self._begun.clear()
        try:
            end = await call.end
        except asyncio.CancelledError:
            self.cancelled.append(job)
            raise
        finally:
            self._calls.remove(call)
        return end()

    def finish(self, job: JobT, value: ValueT | None = None) -> None:
        """Make the oldest running call with this job return `value`.

        Raises:
            LookupError: No call with this job is running, or each one has been finished already.
        """
        self._open(job).end.set_result(lambda: cast(ValueT, value))

    def fail(self, job: JobT, error: BaseException) -> None:
        """Make the oldest running call with this job raise `error`.

        Raises:
            LookupError: No call with this job is running, or each one has been finished already.
        """

        def end() -> ValueT:
            raise error

        self._open(job).end.set_result(end)

    def finish_all(self, value: ValueT | None = None) -> None:
        """Make all running calls return `value`, except those that have been finished already."""
        for call in self._calls:
            if not call.end.done():
                call.end.set_result(lambda: cast(ValueT, value))

    async def wait_started(self, n: int) -> None:
        """Wait until at least `n` calls have started since the handler was created, finished ones included.

        Cancel-safe.
        """
        while len(self.started) < n:
            waiter = asyncio.get_running_loop().create_future()
            self._begun.append(waiter)
            await waiter

    def _open(self, job: JobT) -> _Call[JobT, ValueT]:
        for call in self._calls:
            if call.job == job and not call.end.done():
                return call
        raise LookupError(f"no call with job {job!r} is waiting; running: {self.running!r}")


@dataclass(slots=True, eq=False)
class _Call(Generic[JobT, ValueT]):
    """A running call."""

    job: JobT
    end: asyncio.Future[Callable[[], ValueT]]
    """Its result is a function that returns the value or raises the error of the call.

    The error is not set on the future itself: there, a `CancelledError` would look as if the call had been cancelled
    (test_a_call_told_to_raise_cancelled_error_does_not_count_as_cancelled).
    """
