"""Calls the handler inside whatever surrounds the call: limiter, deadline scope, resource.

A pool without any of these calls its handler directly, in `dispatch.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any

import anyio

from asyncpool._core.cancellation import Cancellation
from asyncpool._core.failures import not_awaitable_error
from asyncpool._core.job import Job, Worker
from asyncpool._core.lanes import Lanes
from asyncpool._core.queue_timeouts import QueueTimeouts
from asyncpool._core.retries import Retries
from asyncpool._core.state import State
from asyncpool._core.timeouts import Timeout, seconds_for
from asyncpool._core.wakeups import Wakeups
from asyncpool._guard import describe
from asyncpool.errors import JobTimeout

__all__ = ["Invoke", "call_handler", "call_job", "within_deadline"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


def call_job(job: Any) -> Any:
    """Call a job that is a function itself: the handler of pools without a handler."""
    if not callable(job):
        raise TypeError(
            f"a job of a pool without a handler must be an async function without arguments, got {describe(job)}: "
            "pass the function itself, or functools.partial(function, ...)"
        )
    return job()


class Invoke:
    """The handler's call, and what surrounds it: the limiter outside, so that the wait there is not timed."""

    __slots__ = (
        "_cancellation",
        "_handler",
        "_has_resource",
        "_is_remote",
        "_lanes",
        "_limiter",
        "_queue_timeouts",
        "_retries",
        "_state",
        "_timeout",
        "_timeout_of",
        "_wakeups",
    )

    def __init__(
        self,
        handler: Callable[..., Any],
        *,
        state: State,
        wakeups: Wakeups,
        cancellation: Cancellation,
        retries: Retries,
        lanes: Lanes | None,
        queue_timeouts: QueueTimeouts | None,
        limiter: AbstractAsyncContextManager[Any] | None,
        timeout: Timeout,
        has_resource: bool,
        is_remote: bool,
    ) -> None:
        self._handler = handler
        self._state = state
        self._wakeups = wakeups
        self._cancellation = cancellation
        self._retries = retries
        self._lanes = lanes
        self._queue_timeouts = queue_timeouts
        self._limiter = limiter
        self._timeout_of = timeout if callable(timeout) else None
        self._timeout = math.inf if timeout is None or callable(timeout) else timeout
        self._has_resource = has_resource
        self._is_remote = is_remote  # then the handler is a `RemoteHandler`, which takes the job itself

    async def __call__(self, job: Job, worker: Worker) -> Any:
        """Call the handler for a job that has a worker."""
        managers = () if self._lanes is None else self._lanes.managers_of(job)
        limiter = self._limiter
        if managers:
            limiter = managers[0] if len(managers) == 1 else _Nested(managers)
        args: tuple[Any, ...] = (job.input, worker.resource) if self._has_resource else (job.input,)
        if self._is_remote:
            args = (job,)
        inner = self._timed(job, args)
        if limiter is None:
            return await inner
        if self._queue_timeouts is not None:
            self._queue_timeouts.enter_limiter(job)
        try:
            return await _within_limiter(limiter, inner)
        finally:
            inner.close()  # if the limiter never let it begin
            if self._queue_timeouts is not None:
                self._queue_timeouts.leave_limiter(job)

    async def _timed(self, job: Job, args: tuple[Any, ...]) -> Any:
        now = self._state.time()
        deadline = self._retries.deadline(job)
        if deadline <= now:  # it has waited for the limiter
            raise self._retries.expired(job)
        if self._queue_timeouts is not None:
            self._queue_timeouts.begin(job, now)
        timeout = self._timeout
        if self._timeout_of is not None:
            seconds = seconds_for(self._timeout_of, job.input)
            timeout, now = math.inf if seconds is None else seconds, self._state.time()
        job.started_at = now
        if self._limiter is not None or self._lanes is not None:
            self._wakeups.limiter_entered()
        if deadline < now + timeout:
            return await within_deadline(deadline, partial(self._expire, job), self._handler, *args)
        if timeout < math.inf:
            return await within_deadline(now + timeout, partial(self._time_out, job, timeout), self._handler, *args)
        return await call_handler(self._handler, *args)

    def _expire(self, job: Job) -> None:
        self._cancellation.request(job, self._retries.expired(job))

    def _time_out(self, job: Job, timeout: float) -> None:
        self._cancellation.request(job, JobTimeout(timeout))


def call_handler(handler: Callable[..., Awaitable[Any]], *args: Any) -> Awaitable[Any]:
    """Call a handler and return its awaitable, or raise a TypeError that says how to run synchronous functions."""
    awaitable = handler(*args)
    if not inspect.isawaitable(awaitable):
        raise not_awaitable_error(awaitable)
    return awaitable


class _Nested:
    """Several limiters as one: entered in their order, and left in the opposite one."""

    __slots__ = ("_managers", "_stack")

    def __init__(self, managers: Sequence[AbstractAsyncContextManager[Any]]) -> None:
        self._managers = managers
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> None:
        async with AsyncExitStack() as stack:
            for manager in self._managers:
                await stack.enter_async_context(manager)
            self._stack = stack.pop_all()

    async def __aexit__(self, *raised: Any) -> bool | None:
        return await self._stack.__aexit__(*raised)

    def __repr__(self) -> str:
        return ", ".join(describe(manager) for manager in self._managers)


async def _within_limiter(limiter: AbstractAsyncContextManager[Any], inner: Awaitable[Any]) -> Any:
    """Await `inner` inside the limiter, which is entered and left in the job's own task."""
    async with limiter:
        return await inner
    raise RuntimeError(
        f"the limiter {describe(limiter)} swallowed the job's exception: its __aexit__() must not return a true value"
    )


async def within_deadline(
    deadline: float,
    expire: Callable[[], None],
    handler: Callable[..., Awaitable[Any]],
    *args: Any,
) -> Any:
    """Call the handler in a cancel scope whose deadline it can see, and call `expire` once when that is over.

    The cancel scope is what a Go callee gets as `ctx`. It only shows the deadline
    (`anyio.current_effective_deadline()`); the timer here enforces it and disarms the scope. A scope that expired would
    cancel again in each loop iteration, and a job that swallows that would spin. The timer is due one float before the
    scope's own, and armed before it, so that it always comes first.

    A scope whose deadline is past when it is entered expires at once. It is left unused, and the handler sees no
    deadline (test_a_deadline_that_passes_at_any_reading_of_the_clock_is_a_timeout).
    """
    loop = asyncio.get_running_loop()
    scope = anyio.CancelScope(deadline=math.nextafter(deadline, math.inf))

    def over() -> None:
        scope.deadline = math.inf
        expire()

    timer: asyncio.Handle = loop.call_at(deadline, over)
    is_past = False
    try:
        with scope:
            is_past = scope.cancel_called
            if not is_past:
                return await call_handler(handler, *args)
        if not is_past:
            raise AssertionError("a scope that is never cancelled swallowed an exception")
        timer.cancel()
        timer = loop.call_soon(expire)  # before the handler schedules anything: its first suspension is cancelled
        return await call_handler(handler, *args)
    finally:
        timer.cancel()
