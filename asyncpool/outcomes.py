"""The outcomes of a job, `Succeeded`, `Failed` and `Cancelled`, and the report of a closed pool, `ShutdownReport`.

`_core/dispatch.py` decides when a job is settled and with which outcome, and delivers it to the handle, stream or group
that submitted the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from asyncpool._guard import fields_text, safe_text, traceback_of
from asyncpool.errors import JobCancelled, JobCrashed, is_safe_to_raise

__all__ = ["CancelReason", "Cancelled", "Failed", "Outcome", "ShutdownReport", "Succeeded", "Unfinished"]

JobT_co = TypeVar("JobT_co", covariant=True)
ValueT_co = TypeVar("ValueT_co", covariant=True)


class CancelReason(StrEnum):
    """Why a job was cancelled."""

    HANDLE = "handle"
    """`JobHandle.cancel()`, or the caller of `run()` was cancelled."""
    STREAM = "stream"
    """The stream or group it belonged to was cancelled, an earlier job of the same `map()` failed, or the stream has
    reached its `max_failures` or `deadline`."""
    SHUTDOWN = "shutdown"
    """The pool was closed or cancelled before the job completed."""
    ABANDONED = "abandoned"
    """The pool closed, and the job ignored its cancellation for the whole grace period. Its task is still running."""


class _Ended(Generic[JobT_co]):
    """What all outcomes have in common.

    Read-only by properties over slots: creating a frozen dataclass with the same fields takes three times as long, and
    one is created per job.
    """

    __slots__ = ("_attempts", "_job", "_seconds_queued", "_seconds_running", "_worker")

    def __init__(
        self, job: JobT_co, attempts: int, worker: int | None, seconds_queued: float, seconds_running: float
    ) -> None:
        self._job = job
        self._attempts = attempts
        self._worker = worker
        self._seconds_queued = seconds_queued
        self._seconds_running = seconds_running

    @property
    def job(self) -> JobT_co:
        """The input, as it was submitted."""
        return self._job

    @property
    def attempts(self) -> int:
        """The number of attempts that began; 0 if no worker took the job."""
        return self._attempts

    @property
    def worker(self) -> int | None:
        """The number of the worker that ran the last attempt; None if none did."""
        return self._worker

    @property
    def seconds_queued(self) -> float:
        """Seconds that the job waited, in its last attempt, until the handler began or until the job was settled.

        Counted from acceptance, or from the end of the backoff before that attempt. Includes waiting for the limiter.
        """
        return self._seconds_queued

    @property
    def seconds_running(self) -> float:
        """Seconds that the handler ran in the last attempt; 0.0 if it did not begin."""
        return self._seconds_running


class Succeeded(_Ended[JobT_co], Generic[JobT_co, ValueT_co]):
    """The handler returned `value`. Matches as `Succeeded(job, value)`."""

    __match_args__ = ("job", "value")
    __slots__ = ("_value",)

    def __init__(
        self,
        job: JobT_co,
        value: ValueT_co,
        attempts: int,
        worker: int | None,
        seconds_queued: float,
        seconds_running: float,
    ) -> None:
        super().__init__(job, attempts, worker, seconds_queued, seconds_running)
        self._value = value

    @property
    def value(self) -> ValueT_co:
        """What the handler returned."""
        return self._value

    def unwrap(self) -> ValueT_co:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return f"Succeeded({safe_text(repr, self._job)}, {safe_text(repr, self._value)})"


class Failed(_Ended[JobT_co]):
    """The handler raised `error`. Matches as `Failed(job, error)`."""

    __match_args__ = ("job", "error")
    __slots__ = ("_error", "_traceback")

    def __init__(
        self,
        job: JobT_co,
        error: BaseException,
        attempts: int = 0,
        worker: int | None = None,
        seconds_queued: float = 0.0,
        seconds_running: float = 0.0,
    ) -> None:
        super().__init__(job, attempts, worker, seconds_queued, seconds_running)
        self._error = error
        self._traceback: TracebackType | None = traceback_of(error)

    @property
    def error(self) -> BaseException:
        """What the handler raised, or the pool's own error, such as `JobTimeout`.

        Its traceback has the line numbers, but not the values of local variables. Before Python 3.13, only the frames
        of plain functions and of the handler itself are cleared: clearing the frame of another coroutine there would
        close it, although it may still be running.
        """
        return self._error

    def unwrap(self) -> NoReturn:
        """Raise the job's own error, or a `JobCrashed` if that is not safe to re-raise in the caller.

        Each call raises the same error object, with the traceback of the job.
        """
        # The traceback is reset before each raise, or every reader would add its frames to the one object (bpo-45924).
        error = self._error
        BaseException.with_traceback(error, self._traceback)
        try:
            if is_safe_to_raise(error):
                raise error
            raise JobCrashed(error)
        finally:
            # The traceback knows this frame: with the error in it, it would be a cycle that keeps the frames of all
            # callers until the collector runs (test_a_failure_that_is_raised_makes_no_reference_cycle).
            del self, error

    def __reduce__(self) -> tuple[Any, ...]:
        # A traceback cannot be pickled, so the error is pickled without it.
        state = {"_" + name: getattr(self, name) for name in _FAILED_FIELDS} | {"_traceback": None}
        return _restore_failed, (state,)

    def __repr__(self) -> str:
        return f"Failed({safe_text(repr, self._job)}, {safe_text(repr, self._error)})"


_FAILED_FIELDS = ("job", "error", "attempts", "worker", "seconds_queued", "seconds_running")


def _restore_failed(state: dict[str, Any]) -> Failed[Any]:
    failed: Failed[Any] = Failed.__new__(Failed)  # pyright: ignore[reportUnknownVariableType]  # of Any
    for name, value in state.items():
        setattr(failed, name, value)
    return failed


class Cancelled(_Ended[JobT_co]):
    """The job was cancelled by its owner or by the pool. Matches as `Cancelled(job, reason)`."""

    __match_args__ = ("job", "reason")
    __slots__ = ("_reason", "_started")

    def __init__(
        self,
        job: JobT_co,
        reason: CancelReason,
        started: bool,
        attempts: int,
        worker: int | None,
        seconds_queued: float,
        seconds_running: float,
    ) -> None:
        super().__init__(job, attempts, worker, seconds_queued, seconds_running)
        self._reason = reason
        self._started = started

    @property
    def reason(self) -> CancelReason:
        """Why it was cancelled."""
        return self._reason

    @property
    def started(self) -> bool:
        """Whether the handler began, in any attempt. If so, the job might have had effects."""
        return self._started

    def unwrap(self) -> NoReturn:
        """Raise `JobCancelled`."""
        raise JobCancelled(self._reason.value)

    def __repr__(self) -> str:
        return f"Cancelled({safe_text(repr, self._job)}, {self._reason.value!r}, started={self._started})"


Outcome: TypeAlias = Succeeded[JobT_co, ValueT_co] | Failed[JobT_co] | Cancelled[JobT_co]
"""The closed union of the outcomes of a job."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Unfinished(Generic[JobT_co]):
    """An input that the pool hands back when it closes, because its job did not complete."""

    job: JobT_co
    """The input, as it was submitted."""
    started: bool
    """Whether the handler began. If so, the job might have had effects, although it did not complete."""

    def __repr__(self) -> str:
        return fields_text(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShutdownReport(Generic[JobT_co]):
    """What a pool did not finish when it closed. Empty, and false, if all jobs completed and all resources were left
    without an error.
    """

    unfinished: Sequence[Unfinished[JobT_co]] = ()
    """The inputs that were accepted but did not complete, in the order of submission, except those that their owner
    cancelled."""
    abandoned: Sequence[Unfinished[JobT_co]] = ()
    """Jobs whose tasks ignored their cancellation, so they might still be running. They are also in `unfinished`,
    except those that their owner had cancelled."""
    errors: Sequence[BaseException] = ()
    """What resources raised while the pool closed, and a `TimeoutError` for each resource or source that ignored its
    cancellation and still runs."""

    def __repr__(self) -> str:
        return fields_text(self)

    def __bool__(self) -> bool:
        return bool(self.unfinished or self.abandoned or self.errors)
