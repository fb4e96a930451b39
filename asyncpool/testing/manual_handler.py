"""A handler that the test opens by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

__all__ = ["ManualHandler"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")


class ManualHandler(Generic[JobT, ValueT]):
    """A handler whose calls wait until the test lets them end: `handler(job)` or `handler(job, resource)`.

    Of calls with equal jobs, the one that began first ends first. A call runs until its task goes on, so for
    a moment after `finish` too.

    Attributes:
        started: the jobs of all calls, in the order they began.
        cancelled: the jobs whose calls were cancelled, in that order.
        peak_running: the most calls that ever ran at once.
    """

    def __init__(self) -> None:
        self.started: list[JobT] = []
        self.cancelled: list[JobT] = []
        self.peak_running = 0
        self._calls: list[_Call[JobT, ValueT]] = []
        self._begun: list[asyncio.Future[None]] = []

    @property
    def running(self) -> list[JobT]:
        """The jobs of the calls that run now, in the order they began."""
        return [call.job for call in self._calls]

    async def __call__(self, job: JobT, resource: object = None, /) -> ValueT:
        """Wait until the test ends this call. Cancel-safe: the call is recorded in `cancelled`.

        Raises:
            BaseException: what the test gave to `fail`.
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
        """Let the oldest running call with this job return `value`.

        Raises:
            LookupError: no such call is running, or all were told to end already.
        """
        self._open(job).end.set_result(lambda: cast(ValueT, value))

    def fail(self, job: JobT, error: BaseException) -> None:
        """Let the oldest running call with this job raise `error`.

        Raises:
            LookupError: as of `finish`.
        """

        def end() -> ValueT:
            raise error

        self._open(job).end.set_result(end)

    def finish_all(self, value: ValueT | None = None) -> None:
        """Let all calls return `value` that run now and were not told to end."""
        for call in self._calls:
            if not call.end.done():
                call.end.set_result(lambda: cast(ValueT, value))

    async def wait_started(self, n: int) -> None:
        """Wait until at least `n` calls have begun, since the handler was made. Cancel-safe."""
        while len(self.started) < n:
            waiter = asyncio.get_running_loop().create_future()
            self._begun.append(waiter)
            await waiter

    def _open(self, job: JobT) -> _Call[JobT, ValueT]:
        for call in self._calls:
            if call.job == job and not call.end.done():
                return call
        raise LookupError(f"no call with job {job!r} waits; running: {self.running!r}")


@dataclass(slots=True, eq=False)
class _Call(Generic[JobT, ValueT]):
    job: JobT
    end: asyncio.Future[Callable[[], ValueT]]
