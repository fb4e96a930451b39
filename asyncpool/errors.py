"""Every exception that asyncpool raises, and the rule for which exceptions of a job are safe to re-raise in a caller.

The functions that raise them document when: see `pool.py`, `streams.py` and `outcomes.py`.

    Exception
    └── PoolError
        ├── PoolStateError (RuntimeError)   the state of the pool does not allow the call
        │   ├── PoolNotStarted              the pool has not been started
        │   ├── PoolClosed                  the pool is closing or closed
        │   ├── PoolReused                  the pool was started before
        │   └── WrongLoop                   the call came from another event loop or thread
        ├── QueueFull (asyncio.QueueFull)   the pool has no room, and the call does not wait
        ├── PoolDeadlock (RuntimeError)     the wait would never end
        ├── StreamClosed (RuntimeError)     the stream was cancelled, is exhausted, or already has a reader
        ├── JobTimeout (TimeoutError)       an attempt ran longer than the pool's timeout
        ├── JobExpired (TimeoutError)       the job did not complete, or did not start, in time
        ├── JobCancelled                    the job was cancelled, so there is no value
        ├── JobCrashed                      the job raised an exception that is not safe to re-raise in a caller
        ├── TooManyFailures                 more jobs of a stream failed than its max_failures
        ├── DeadlineExceeded (TimeoutError) a stream did not complete within its deadline
        ├── SourceCrashed                   the iterable that a stream pulls its jobs from raised such an exception
        ├── WeightTooLarge (ValueError)     the job's weight is more than a rate limit can ever give
        ├── JournalError                    a journal cannot be opened, read or written
        ├── ResourceDied                    the worker's resource left its context while a job was running
        ├── ResourceTimeout                 a resource was not opened, or not closed, in time (a TimeoutError too)
        ├── EngineLost (ConnectionError)    the engine of the pool has had no process for too long
        ├── ProcessLost (ConnectionError)   the process that ran the attempt is gone, and the job must not run twice
        ├── ProcessDied                     the job has ended its process, twice
        ├── RemoteError                     stands for an error of another process that could not be sent
        └── RetryAdvice                     raised by a handler to control whether the job is retried
            ├── RetryAfter                  retry, but only after a number of seconds
            └── Permanent                   do not retry

Invalid arguments (a worker count of 0, a bool for seconds) raise plain `ValueError` and `TypeError`.
All of them carry their data as `args`, so that they can be pickled.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

from asyncpool._checks import check_delay
from asyncpool._guard import cause_of, describe, is_error, leaves_of, qualname_of, safe_text, set_cause

__all__ = [
    "DeadlineExceeded",
    "EngineLost",
    "ErrorFilter",
    "JobCancelled",
    "JobCrashed",
    "JobExpired",
    "JobTimeout",
    "JournalError",
    "Permanent",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolNotStarted",
    "PoolReused",
    "PoolStateError",
    "ProcessDied",
    "ProcessLost",
    "QueueFull",
    "RemoteError",
    "ResourceDied",
    "ResourceTimeout",
    "RetryAdvice",
    "RetryAfter",
    "SourceCrashed",
    "StreamClosed",
    "TooManyFailures",
    "WeightTooLarge",
    "WrongLoop",
    "is_safe_to_raise",
    "matches",
    "pauses_in",
    "recorded_error",
]

ErrorFilter: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]"
"""Selects errors: an exception type, a tuple of types, or a predicate.

It also selects an exception group of which it selects each error, in nested groups too. A predicate is asked for the
group first.
"""


def matches(which: ErrorFilter, error: BaseException) -> bool:
    """Return whether `which` selects `error`. Raises what a predicate raises."""
    if _selects(which, error):
        return True
    return is_error(error, BaseExceptionGroup) and all(_selects(which, leaf) for leaf in leaves_of(error))


def _selects(which: ErrorFilter, error: BaseException) -> bool:
    if isinstance(which, (type, tuple)):
        return is_error(error, which)  # pyright: ignore[reportUnknownArgumentType]  # narrowed to more than it can be
    return bool(which(error))


class PoolError(Exception):
    """The base class of all exceptions that asyncpool defines."""


class PoolStateError(PoolError, RuntimeError):
    """The state of the pool does not allow the call."""


class PoolNotStarted(PoolStateError):
    """The pool has not been started: enter `async with pool`, or `await pool.start()` first."""


class PoolClosed(PoolStateError):
    """The pool is closing or closed and no longer accepts jobs."""


class PoolReused(PoolStateError):
    """`start()` was called on a pool that has been started before: a pool can be started only once."""


class WrongLoop(PoolStateError):
    """The pool was used from another thread or event loop than the one that started it."""


class QueueFull(PoolError, asyncio.QueueFull):
    """The pool has no room for another job, or other callers are already waiting for room."""


class PoolDeadlock(PoolError, RuntimeError):
    """The wait would never end, because what it waits for cannot happen until it ends."""


class StreamClosed(PoolError, RuntimeError):
    """The stream was cancelled before its end, is exhausted, or already has a reader."""


class JobTimeout(PoolError, TimeoutError):
    """An attempt ran longer than the pool's `timeout`, which is in the attribute `timeout`, in seconds."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.timeout = timeout

    def __str__(self) -> str:
        return f"the job ran longer than its timeout of {self.timeout:g} s"


class JobExpired(PoolError, TimeoutError):
    """The job did not complete within `max_elapsed` seconds of its acceptance (see `Retry`), or did not start within
    the pool's `queue_timeout`. The attribute that applies has the seconds, and the other is None.

    Its `__cause__` is the failure of the last attempt, if there was one.
    """

    def __init__(self, max_elapsed: float | None, queue_timeout: float | None = None) -> None:
        super().__init__(*((max_elapsed,) if queue_timeout is None else (max_elapsed, queue_timeout)))
        self.max_elapsed = max_elapsed
        self.queue_timeout = queue_timeout

    def __str__(self) -> str:
        if self.queue_timeout is not None:
            return f"the job did not start within {self.queue_timeout:g} s of its acceptance"
        return f"the job did not complete within {self.max_elapsed:g} s of its acceptance"


class JobCancelled(PoolError):
    """The job was cancelled. `reason` is the reason in its `Cancelled` outcome, as a string.

    An `Exception`, not an `asyncio.CancelledError`: a `CancelledError` always means that the caller was cancelled.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the job was cancelled ({self.reason})"


class TooManyFailures(PoolError):
    """More jobs of a stream failed than its `max_failures` allows. Raised after the last outcome or value.

    `failed` jobs had failed when the stream stopped, of `settled` that had succeeded or failed. `max_failures` is the
    limit. The `__cause__` is the error of the last that failed.
    """

    def __init__(self, failed: int, settled: int, max_failures: float) -> None:
        super().__init__(failed, settled, max_failures)
        self.failed = failed
        self.settled = settled
        self.max_failures = max_failures

    def __str__(self) -> str:
        return f"{self.failed} of {self.settled} jobs failed, more than max_failures={self.max_failures:g} allows"


class DeadlineExceeded(PoolError, TimeoutError):
    """A stream did not complete within its `deadline`, in seconds. Raised after the last outcome or value."""

    def __init__(self, deadline: float) -> None:
        super().__init__(deadline)
        self.deadline = deadline

    def __str__(self) -> str:
        return f"the stream did not complete within its deadline of {self.deadline:g} s"


class _Crashed(PoolError):
    who = ""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error
        set_cause(self, error)

    def __str__(self) -> str:
        said = safe_text(str, self.error)
        name = qualname_of(type(self.error)).rpartition(".")[2]
        return f"{self.who} ended with {name}{': ' + said if said else ''}"


class JobCrashed(_Crashed):
    """The job raised `error`, which is not safe to re-raise in the task that awaits the job.

    These are `SystemExit`, `KeyboardInterrupt`, `GeneratorExit`, a `CancelledError` that is not a cancellation of the
    job (the job awaited a task that was cancelled elsewhere), `StopIteration` and `StopAsyncIteration`.
    """

    who = "the job"


class SourceCrashed(_Crashed):
    """The iterable that a stream pulls its jobs from raised `error`, one of the exceptions that `JobCrashed` lists."""

    who = "the source of the stream"


class WeightTooLarge(PoolError, ValueError):
    """The weight of a job, or of an `acquire`, is more than a `RateLimit` can ever give: see there.

    `weight` is the weight, `max_weight` the most that the limit can give, and `limit` its description.
    """

    def __init__(self, weight: float, max_weight: float, limit: str) -> None:
        super().__init__(weight, max_weight, limit)
        self.weight = weight
        self.max_weight = max_weight
        self.limit = limit

    def __str__(self) -> str:
        return f"a weight of {self.weight:g} is more than {self.limit} can ever give, which is {self.max_weight:g}"


class JournalError(PoolError):
    """A journal cannot be opened, read or written: the message has the reason, and what to do.

    `unrecorded` has the inputs of jobs that succeeded and could not be recorded: the next run repeats them.
    """

    def __init__(self, message: str, unrecorded: Sequence[Any] = ()) -> None:
        super().__init__(message, unrecorded)
        self.unrecorded = unrecorded

    def __str__(self) -> str:
        message: str = self.args[0]
        count = len(self.unrecorded)
        if not count:
            return message
        return f"{message}; {count} finished job{'' if count == 1 else 's'} could not be recorded and will run again"


class ResourceDied(PoolError):
    """The worker's resource left its context while the job was running; `__cause__` is its error, if it raised one."""


class ResourceTimeout(PoolError, TimeoutError):
    """A resource was not opened, checked or closed within the seconds of its `Resource`, which `timeout` has.

    `step` is "opened", "checked" or "closed". `is_abandoned` is true if the resource ignored its cancellation, and its
    task still ran when the pool stopped waiting for it. `__cause__` is what the resource raised when it was cancelled,
    if that was an error of its own.
    """

    def __init__(self, step: str, timeout: float, is_abandoned: bool = False) -> None:
        super().__init__(step, timeout, is_abandoned)
        self.step = step
        self.timeout = timeout
        self.is_abandoned = is_abandoned

    def __str__(self) -> str:
        ignores = ", ignores its cancellation, and is abandoned" if self.is_abandoned else ""
        return f"the resource was not {self.step} within {self.timeout:g} s{ignores}"


class EngineLost(PoolError, ConnectionError):
    """The engine of the pool has had no process for `patience` seconds, or has failed; then `__cause__` says how."""


class ProcessLost(PoolError, ConnectionError):
    """A process is gone, or cannot be reached. A job fails with it only in a pool with `reruns=False`: the attempt that
    ran there may have had effects.
    """


class ProcessDied(PoolError):
    """The job was alone in its process when that died, twice: so it probably ends each process that it runs in.

    It is not retried, whatever the pool's `Retry` allows.
    """


class RemoteError(PoolError):
    """Stands for an error that was raised in another process and cannot be sent.

    `kind` is the name of its type, `text` its text, and `where` its traceback there, as text.
    """

    def __init__(self, kind: str, text: str, where: str) -> None:
        super().__init__(kind, text, where)
        self.kind = kind
        self.text = text
        self.where = where

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" if self.text else self.kind


class RetryAdvice(PoolError):
    """Raised by a handler to control whether, and when, the job is retried: `RetryAfter` or `Permanent`.

    With `raise ... from error` the job fails with `error`, otherwise with the advice itself.

    Advice in an exception group is followed too, and the job fails with the group: one `Permanent` in it makes the job
    permanent; the longest `RetryAfter` counts, if the other errors in the group are retried.
    """


class RetryAfter(RetryAdvice):
    """The job failed, and should be retried, but only after `seconds` seconds.

        except TooManyRequests as error:
            raise RetryAfter.from_header(error.headers.get("Retry-After"), pause=True) from error

    `seconds` is the minimum of the backoff, whatever `Retry.on` is: jitter only adds to it, and `max_backoff` does not
    cap it, but `max_retry_after` does. The limits on attempts, `max_elapsed` and the budget apply as usual. Negative
    `seconds` are 0: the time to wait for is past.

    With `pause=True` no worker of the pool takes a job for `seconds` seconds, at most for `max_retry_after` (an hour in
    a pool without a `Retry`): an HTTP 429 applies to all of them. `pool.resume(force=True)` ends the pause.

    If this was the last attempt, the job fails with `error`, or with the advice itself if it has no cause.

    Raises:
        TypeError, ValueError: `seconds` is not a finite number of seconds, or `pause` is not a bool.
    """

    # Defaults for subclasses that do not call this `__init__`.
    seconds: float = 0.0
    pause: bool = False

    def __init__(self, seconds: float, *, pause: bool = False) -> None:
        self.seconds = check_delay("seconds", seconds)
        if not isinstance(pause, bool):
            raise TypeError(f"pause must be a bool, got {describe(pause)}")
        self.pause = pause
        super().__init__(self.seconds)

    @classmethod
    def from_header(cls, value: str | None, *, pause: bool = False) -> Self:
        """Return the advice in an HTTP header `Retry-After`, which is a number of seconds or a date.

        A date counts from the system clock; one that is past is 0 seconds. So is None (there is no such header), and a
        value that is neither a number nor a date: then only the backoff of the `Retry` applies. A header can hold
        anything, and an error here would replace the one to report.

        Args:
            value: The value of the header, or None.
            pause: As in `RetryAfter`.

        Raises:
            TypeError: `value` is not a str or None, or `pause` is not a bool.
        """
        if not isinstance(value, (str, type(None))):
            raise TypeError(f"value must be a str or None, got {describe(value)}")
        return cls(0.0 if value is None else _header_seconds(value), pause=pause)

    def __str__(self) -> str:
        return f"retry after {self.seconds:g} s{', the whole pool' if self.pause else ''}"

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _header_seconds(text: str) -> float:
    """Return the seconds in a `Retry-After` header; 0.0 if it cannot be read."""
    from datetime import UTC  # here, because both are slow to import and rarely needed
    from email.utils import parsedate_to_datetime

    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
            # The header was written in another process, where the loop's time means nothing. Its dates are in UTC.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()  # noqa: TID251
        except Exception:  # the parser raises all sorts
            seconds = 0.0
    # In this order NaN is 0.
    return min(max(0.0, seconds), sys.float_info.max)


def _restored(kind: type[RetryAfter], args: tuple[object, ...], attributes: dict[str, object]) -> RetryAfter:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class Permanent(RetryAdvice):
    """The job failed, and must not be retried, whatever the pool's `Retry` allows.

    With `raise Permanent("no such mailbox") from error` the job fails with `error`; without a cause, with the advice
    itself.
    """


def pauses_in(error: BaseException) -> list[RetryAfter]:
    """Return each `RetryAfter` that a handler has raised, by itself or in an exception group."""
    return [leaf for leaf in leaves_of(error) if is_error(leaf, RetryAfter)]


def recorded_error(error: BaseException) -> BaseException:
    """Return the error to record for a job that raised `error`: the cause of a `RetryAdvice`, otherwise `error`."""
    cause = cause_of(error) if is_error(error, RetryAdvice) else None
    return error if cause is None else cause


def is_safe_to_raise(error: BaseException) -> bool:
    """Return whether raising `error` in another task informs the caller and has no other effect.

    A `CancelledError` would silently end the caller's task group, a `StopAsyncIteration` would truncate its loop, and a
    `SystemExit` would end the program. So only an `Exception` is safe, except the two that end iterations.
    """
    return is_error(error, Exception) and not is_error(error, (StopIteration, StopAsyncIteration))
