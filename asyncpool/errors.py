"""Every exception that asyncpool raises, and the rule by which a job's own exception may be raised to somebody else.

When each is raised is said where it is raised: `pool.py`, `streams.py`, `outcomes.py`.

    Exception
    └── PoolError
        ├── PoolStateError (RuntimeError)   the pool cannot do that now
        │   ├── PoolNotStarted              ... not yet
        │   ├── PoolClosed                  ... not any more
        │   ├── PoolReused                  ... not a second time
        │   └── WrongLoop                   ... not from this event loop or thread
        ├── QueueFull (asyncio.QueueFull)   no room, and the caller did not want to wait
        ├── PoolDeadlock (RuntimeError)     waiting here could never end
        ├── StreamClosed (RuntimeError)     a cancelled stream, or one that is read already, was read (again)
        ├── JobTimeout (TimeoutError)       an attempt ran longer than the pool's timeout
        ├── JobExpired (TimeoutError)       the job was not done within the max_elapsed of its pool's retry
        ├── JobCancelled                    the job was cancelled, so there is no value
        ├── JobCrashed                      the job ended with something that must not be raised to an innocent caller
        ├── SourceCrashed                   the same, of the iterable that a stream pulled its jobs from
        ├── ResourceDied                    the worker's resource ended by itself under a running job
        └── RetryAdvice                     what a handler raises to say whether another attempt makes sense:
            ├── RetryAfter                  ... not before some seconds have passed
            └── Permanent                   ... never

The caller's mistakes (a worker count of 0, a bool for seconds) are plain `ValueError` and `TypeError`.
All of them carry their data as `args`, so that they can be pickled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from asyncpool._checks import check_seconds

__all__ = [
    "ErrorFilter",
    "JobCancelled",
    "JobCrashed",
    "JobExpired",
    "JobTimeout",
    "Permanent",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolNotStarted",
    "PoolReused",
    "PoolStateError",
    "QueueFull",
    "ResourceDied",
    "RetryAdvice",
    "RetryAfter",
    "SourceCrashed",
    "StreamClosed",
    "WrongLoop",
    "is_safe_to_raise",
    "matches",
    "recorded_error",
]

ErrorFilter: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]"
"""Which errors are meant: a type, several types, or a predicate."""


def matches(which: ErrorFilter, error: BaseException) -> bool:
    """Whether `error` is one of those that are meant. Raises what a predicate raises."""
    if isinstance(which, (type, tuple)):
        return isinstance(error, which)
    return bool(which(error))


class PoolError(Exception):
    """The root of everything that asyncpool raises on its own account."""


class PoolStateError(PoolError, RuntimeError):
    """The pool is not in a state in which it can do what was asked."""


class PoolNotStarted(PoolStateError):
    """The pool has not been started: enter `async with pool`, or `await pool.start()` first."""


class PoolClosed(PoolStateError):
    """The pool is closing or closed and takes no jobs any more."""


class PoolReused(PoolStateError):
    """`start()` was called on a pool that has been started before: a pool is used once."""


class WrongLoop(PoolStateError):
    """The pool was used from another thread or event loop than the one that started it."""


class QueueFull(PoolError, asyncio.QueueFull):
    """The pool has no room for another job, or others have been waiting for room before this call."""


class PoolDeadlock(PoolError, RuntimeError):
    """This wait could never end, because what it waits for cannot happen before it ends."""


class StreamClosed(PoolError, RuntimeError):
    """The stream was cancelled before its end, has been read to its end, or has a reader already."""


class JobTimeout(PoolError, TimeoutError):
    """An attempt ran longer than the pool's `timeout`, in seconds: `timeout`."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.timeout = timeout

    def __str__(self) -> str:
        return f"the job ran longer than its timeout of {self.timeout:g} s"


class JobExpired(PoolError, TimeoutError):
    """The job was not done within `max_elapsed` seconds of its acceptance: see `Retry`.

    Its `__cause__` is the failure of the last attempt, if there was one.
    """

    def __init__(self, max_elapsed: float) -> None:
        super().__init__(max_elapsed)
        self.max_elapsed = max_elapsed

    def __str__(self) -> str:
        return f"the job was not done within {self.max_elapsed:g} s of its acceptance"


class JobCancelled(PoolError):
    """The job was cancelled, for the `reason` that its `Cancelled` outcome has.

    An `Exception`, not an `asyncio.CancelledError`: that one always means that the caller himself was cancelled.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the job was cancelled ({self.reason})"


class _Crashed(PoolError):
    who = ""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error
        self.__cause__ = error

    def __str__(self) -> str:
        said = str(self.error)
        return f"{self.who} ended with {type(self.error).__name__}{': ' + said if said else ''}"


class JobCrashed(_Crashed):
    """The job ended with `error`, which would do harm if it were raised to whoever awaits the job.

    Such are `SystemExit`, `KeyboardInterrupt`, `GeneratorExit`, a `CancelledError` that nobody asked for (the job
    awaited a task that was cancelled elsewhere), `StopIteration` and `StopAsyncIteration`.
    """

    who = "the job"


class SourceCrashed(_Crashed):
    """The iterable that a stream pulls its jobs from raised `error`, of the kinds that `JobCrashed` lists."""

    who = "the source of the stream"


class ResourceDied(PoolError):
    """The worker's resource left its context by itself while the job ran; `__cause__` is its error, if it had one."""


class RetryAdvice(PoolError):
    """What a handler raises to tell its pool of another attempt: `RetryAfter` or `Permanent`.

    `raise ... from error` makes `error` what the job failed with; without it, that is the advice itself. It counts if
    the handler itself raises it, and not inside an exception group.
    """


class RetryAfter(RetryAdvice):
    """The job failed, and another attempt makes sense, but not before `seconds` have passed.

        except TooManyRequests as error:
            raise RetryAfter(float(error.headers["Retry-After"]), pause=True) from error

    A floor under the backoff, whatever `Retry.on` says: jitter only adds to it, and `max_backoff` does not cap it. How
    many attempts there are, `max_elapsed` and the budget count as ever.

    With `pause` no worker of the pool takes a job for so long: an HTTP 429 is meant for all of them.

    The job fails with `error`, if this was the last attempt; with the advice itself if it was raised from nothing.

    Raises:
        TypeError, ValueError: `seconds` is not a number of seconds >= 0, or `pause` not a bool.
    """

    # For subclasses that do not call this `__init__`.
    seconds: float = 0.0
    pause: bool = False

    def __init__(self, seconds: float, *, pause: bool = False) -> None:
        self.seconds = check_seconds("seconds", seconds)
        if not isinstance(pause, bool):
            raise TypeError(f"pause must be a bool, got {pause!r}")
        self.pause = pause
        super().__init__(self.seconds)

    def __str__(self) -> str:
        return f"retry after {self.seconds:g} s{', the whole pool' if self.pause else ''}"

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[RetryAfter], args: tuple[object, ...], attributes: dict[str, object]) -> RetryAfter:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class Permanent(RetryAdvice):
    """The job failed, and no other attempt makes sense, whatever the pool's `Retry` thinks.

    `raise Permanent("no such mailbox") from error`: the job fails with `error`; with the advice itself if it was raised
    from nothing.
    """


def recorded_error(error: BaseException) -> BaseException:
    """What a job that raised `error` failed with: for advice about retries, the error that it was raised from."""
    if isinstance(error, RetryAdvice) and error.__cause__ is not None:
        return error.__cause__
    return error


def is_safe_to_raise(error: BaseException) -> bool:
    """Whether raising `error` to an innocent caller tells him of it, and does nothing else to him.

    A `CancelledError` would end his task group silently, a `StopAsyncIteration` truncate his loop, a `SystemExit`
    end his program: whatever is not an `Exception`, and the two that end iterations.
    """
    return isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration))
