"""Turns an exception of an attempt into an outcome, and releases what its frames hold.

What follows from the outcome is `retries.py` and `ledger.py`.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import types
from collections.abc import Awaitable
from typing import Any, cast

from asyncpool._core.job import Job
from asyncpool._core.state import State
from asyncpool._guard import (
    cause_of,
    context_of,
    errors_of_group,
    is_error,
    qualname_of,
    set_cause,
    traceback_of,
)
from asyncpool._logs import log
from asyncpool.errors import RetryAdvice, recorded_error
from asyncpool.outcomes import Cancelled, CancelReason, Failed

__all__ = ["Awaited", "not_awaitable_error", "outcome_of", "release_frames", "returned_error"]


def returned_error(returned: object, error: BaseException) -> BaseException:
    """Return the error of an attempt at whose end `await returned` raised this one: a handler can return anything."""
    # By its type, as `await` sees it: asking the object for its class can raise, and the job would have no outcome
    # (test_a_handler_that_returns_what_cannot_be_looked_at_fails_its_job).
    kind = type(returned)
    is_awaitable = inspect.isawaitable(returned) if kind is types.GeneratorType else issubclass(kind, Awaitable)
    return error if is_awaitable else not_awaitable_error(returned)


def not_awaitable_error(returned: object) -> TypeError:
    """Make the error for a handler that returned something else than an awaitable."""
    return TypeError(
        f"the handler must return an awaitable, got {type(returned).__name__}: "
        "make it an `async def`, or wrap a synchronous function in asyncpool.offload(...)"
    )


def outcome_of(
    job: Job, error: BaseException, now: float, handler: object, state: State
) -> Failed[Any] | Cancelled[Any]:
    """Return the outcome of a running job whose attempt ended with `error` at loop time `now`. Never raises.

    A job is also cancelled by code that cancels every task, as asyncio.run does at its end.
    """
    assert job.worker is not None
    try:
        if (
            job.cancel_reason is None
            and state.is_loop_shutting_down()
            and is_error(recorded_error(error), asyncio.CancelledError)
        ):
            job.cancel_reason = CancelReason.SHUTDOWN
        return _classify(job, error, now, handler)
    except Exception as broken:  # an outcome all the same; no way to get here is known
        kinds = qualname_of(type(error)), qualname_of(type(broken))
        log.error("pool %r: inspecting the %s raised by a job raised %s", state.name, *kinds)
        return Failed(job.input, error, job.attempt, job.worker.number, now - job.ready_at, 0.0)


def _classify(job: Job, error: BaseException, now: float, handler: object) -> Failed[Any] | Cancelled[Any]:
    """Return the outcome of a running job whose attempt ended with `error` at loop time `now`.

    Advice about retries stands for the error that it was raised from. A CancelledError is `Cancelled` only if we
    requested it; otherwise somebody cancelled a task that the job awaited, which is a failure like any other.
    """
    assert job.worker is not None
    started, reason = job.started_at, job.cancel_reason
    queued = (now if started is None else started) - job.ready_at
    ran = 0.0 if started is None else now - started
    raised, error = error, recorded_error(error)
    if reason is not None and is_error(error, asyncio.CancelledError):
        if isinstance(reason, CancelReason):
            return Cancelled(job.input, reason, job.has_started, job.attempt, job.worker.number, queued, ran)
        # Where the job was when its time was over: the line numbers are worth having.
        error = reason.with_traceback(traceback_of(error))
        if is_error(raised, RetryAdvice):
            set_cause(raised, error)
    if raised is not error:
        release_frames(raised)  # nobody gets it, but the frames that it knows lead to what others keep
    release_frames(error, handler)
    return Failed(job.input, error, job.attempt, job.worker.number, queued, ran)


def release_frames(error: BaseException, handler: object = None) -> None:
    """Release what a failure would keep alive: our own frames, and the values that the others hold.

    Ours hold the job, and so its outcome, which holds this error: a cycle.
    """
    traceback = traceback_of(error)
    while traceback is not None and traceback.tb_frame.f_globals.get("_IS_PART_OF_ATTEMPT"):
        _clear(traceback.tb_frame)  # the frames of the handler lead back to it
        traceback = traceback.tb_next
    _drop_earlier_raises(traceback)
    # Not by setting the attribute: an error may be a frozen dataclass, and refuse that.
    BaseException.with_traceback(error, traceback)
    _clear_locals(error, getattr(handler, "__code__", None))


def _drop_earlier_raises(traceback: types.TracebackType | None) -> None:
    """Remove the entries that an error object which is raised again and again has from its earlier raises.

    Each raise puts its entries before those that are there: the entries, and the time to walk them, would grow with
    each job. An earlier raise begins with the code that this one begins with, in a frame that was cleared then.
    """
    if traceback is None:
        return
    code = traceback.tb_frame.f_code
    for _ in range(_MOST_ENTRIES):
        following = traceback.tb_next
        if following is None:
            return
        frame = following.tb_frame
        # Not where a job raises the failure of another job that it awaited: that belongs to this raise.
        is_handed_on = traceback.tb_frame.f_globals.get("__name__") == "asyncpool.outcomes"
        if frame.f_code is code and code.co_argcount and not is_handed_on and not frame.f_locals:
            break
        traceback = following
    traceback.tb_next = None


def _clear(frame: types.FrameType) -> None:
    try:
        frame.clear()
    except RuntimeError:
        pass  # it still runs: it is ours, or of somebody who raised an error that a job had raised before


# More than a stack may have by default.
_MOST_ENTRIES = 1000
# Only in modules that run attempts are frames over when an attempt is. An error object that a stream or another pool
# raised before leads to frames of theirs that are alive
# (test_a_live_stream_in_the_traceback_of_a_shared_error_is_left_alone).
_IS_PART_OF_ATTEMPT = True
_SUSPENDABLE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
# From 3.13 frame.clear() refuses a suspended frame. Before, it closes the coroutine, which may be a live one that only
# shares the traceback (test_a_live_coroutine_in_the_traceback_of_a_failure_is_left_alone).
_CLEARS_ONLY_DEAD_FRAMES = sys.version_info >= (3, 13)


def _clear_locals(error: BaseException, handler_code: object) -> None:
    """Drop the values that the frames of a failure hold, and keep its line numbers.

    A failure that is kept would keep the payload of its job alive otherwise. Before 3.13 only frames that cannot be
    suspended are cleared, and the handler's own, which has just ended.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        error_or_none = todo.pop()
        if error_or_none is None or id(error_or_none) in seen:
            continue
        seen.add(id(error_or_none))
        todo += (cause_of(error_or_none), context_of(error_or_none))
        if is_error(error_or_none, BaseExceptionGroup):
            todo += errors_of_group(error_or_none)
        traceback = traceback_of(error_or_none)
        handler_is_next = error_or_none is error
        while traceback is not None:
            frame = traceback.tb_frame
            is_handler = handler_is_next and frame.f_code is handler_code
            if is_handler:
                handler_is_next = False
            if _CLEARS_ONLY_DEAD_FRAMES or is_handler or not frame.f_code.co_flags & _SUSPENDABLE:
                _clear(frame)
            traceback = traceback.tb_next


class Awaited:
    """The coroutines that a task awaits when it is cancelled, and their frames, until its attempt has ended.

    Before 3.13, `_clear_locals` leaves these frames alone, for one of them may be suspended. Their coroutines know
    which are over. They hold futures and timers, whose context holds the job, whose outcome holds the error: a
    cycle (test_a_failure_that_nobody_reads_makes_no_reference_cycle).
    """

    __slots__ = ("_coroutines",)

    def __init__(self) -> None:
        self._coroutines: list[tuple[Any, types.FrameType]] = []

    def note(self, task: asyncio.Task[Any]) -> None:
        """Note what a task awaits now."""
        if _CLEARS_ONLY_DEAD_FRAMES:
            return
        awaited: Any = task.get_coro()
        for _ in range(_MOST_ENTRIES):
            # Other awaitables may be the user's.
            if type(cast("object", awaited)) is not types.CoroutineType or (frame := awaited.cr_frame) is None:
                return
            self._coroutines.append((awaited, frame))
            awaited = awaited.cr_await

    def clear(self) -> None:
        """Clear the frames of those coroutines that have ended."""
        coroutines, self._coroutines = self._coroutines, []
        for coroutine, frame in coroutines:
            if coroutine.cr_frame is None:
                _clear(frame)
