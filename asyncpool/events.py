"""What can be observed of a pool: a closed union of events, and the list of observers that receive them.

The modules of `_core/` decide when each event occurs. Events have no timestamp: an observer reads its own clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncpool._checks import check_function
from asyncpool._guard import describe, fields_text
from asyncpool._logs import log
from asyncpool.outcomes import Outcome, ShutdownReport
from asyncpool.scaling.policy import PoolLoad
from asyncpool.stats import ReplacementReason

__all__ = [
    "BreakerClosed",
    "BreakerHalfOpened",
    "BreakerOpened",
    "Event",
    "JobAccepted",
    "JobEnded",
    "JobRetrying",
    "JobStarted",
    "JobStuck",
    "Observer",
    "Observers",
    "PoolEnded",
    "PoolPaused",
    "PoolRecovered",
    "PoolResized",
    "PoolResumed",
    "PoolStalled",
    "PoolStarted",
    "PoolStopping",
    "ProcessGone",
    "ProcessJoined",
    "ResourceFailed",
    "ResourceReplaced",
]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Event:
    pool: str
    """The name of the pool."""

    def __repr__(self) -> str:
        return fields_text(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolStarted(_Event):
    """The pool has started and accepts jobs."""

    workers: int
    """The number of workers that it starts with."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolResized(_Event):
    """The target number of workers has changed."""

    old: int
    """The target before."""
    new: int
    """The target now."""
    reason: str
    """The policy's reason, in a sentence."""
    figures: Mapping[str, float]
    """The figures of the reason, by name, if the policy returned any."""
    load: PoolLoad | None
    """The load that the decision is based on; None before the pool is open."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolPaused(_Event):
    """Workers take no jobs until the pool is resumed, or until the pause of a `RetryAfter(pause=True)` is over.

    A breaker that pauses the pool has events of its own.
    """

    seconds: float | None
    """The length of the pause that a `RetryAfter` requested; None after `pause()`, which lasts until `resume()`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolResumed(_Event):
    """Workers take jobs again."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolStalled(_Event):
    """For five seconds, jobs have waited and no worker could take them."""

    reason: str
    """Why: workers have no resource, or run jobs that ignore their cancellation, or the engine has no process."""
    queued: int
    """How many jobs wait in the queue or for a process, and submitters for room in the queue."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolRecovered(_Event):
    """The pool is no longer stalled: a worker can take jobs, or none wait."""

    seconds: float
    """For how many seconds it was stalled."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BreakerOpened(_Event):
    """The breaker has opened, or is open again because a probe has failed: workers take no jobs."""

    failures: int
    """How many of the last `attempts` attempts have failed; 1 for a probe, 0 after a call of `Breaker.open`."""
    attempts: int
    """How many attempts were considered: 1 for a probe, 0 after a call of `Breaker.open`."""
    error: BaseException | None
    """The last failure; None after a call of `Breaker.open`, and for a probe that has not ended in time."""
    seconds: float
    """Seconds until a probe can start."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BreakerHalfOpened(_Event):
    """The breaker lets one job start, the probe, in one of the pools that use it."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BreakerClosed(_Event):
    """The breaker has closed: workers take jobs again."""

    seconds: float
    """Seconds since it opened first, with all probes that have failed since."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolStopping(_Event):
    """The pool accepts no new jobs."""

    drains: bool
    """Whether it finishes the jobs that it has already accepted."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolEnded(_Event):
    """The pool is closed."""

    report: ShutdownReport[Any]
    """What it did not finish, as `close()` returns it."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobAccepted(_Event):
    """The pool has accepted a job."""

    id: int
    """The job's number in its pool."""
    job: Any
    """The input, as it was submitted."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobStarted(_Event):
    """A worker has taken a job; its handler begins now, or as soon as the limiter allows."""

    id: int
    """The job's number in its pool."""
    job: Any
    """The input, as it was submitted."""
    attempt: int
    """Which attempt this is, counted from 1."""
    worker: int
    """The number of the worker."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobRetrying(_Event):
    """An attempt has failed, and the job will be retried after a backoff, or was put back because of an outage."""

    id: int
    """The job's number in its pool."""
    job: Any
    """The input, as it was submitted."""
    attempt: int
    """The attempt that failed, counted from 1."""
    error: BaseException
    """What it raised."""
    seconds: float
    """The backoff, in seconds: after it a worker can take the job again. If the job was put back: the seconds until the
    breaker lets a probe start."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobEnded(_Event):
    """A job has its outcome."""

    id: int
    """The job's number in its pool."""
    outcome: Outcome[Any, Any]
    """The outcome, which also has the input."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobStuck(_Event):
    """A running job was cancelled or timed out, and is still running. It keeps its worker busy until it stops."""

    id: int
    """The job's number in its pool."""
    job: Any
    """The input, as it was submitted."""
    worker: int
    """The number of the worker."""
    seconds: float
    """Seconds since the job was cancelled or timed out."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResourceFailed(_Event):
    """A worker's resource could not be opened, could not be closed, or left its context by itself."""

    worker: int
    """The number of the worker, in its process if the pool has an engine."""
    error: BaseException
    """What the resource raised, or a `ResourceTimeout`."""
    retry_in: float | None
    """Seconds until the worker opens a resource again, or less if another worker succeeds before; None if it does not,
    or if the resource is abandoned.
    """
    process: str | None = None
    """What the engine calls the process of the worker; None if the pool has no engine."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ResourceReplaced(_Event):
    """A worker's open resource is about to be closed by plan: it has not died. See `Replacements` for the reasons."""

    worker: int
    """The number of the worker."""
    reason: ReplacementReason
    """Why. After "idle", the next resource is opened when a job needs one, otherwise at once."""
    process: str | None = None
    """With an engine, the process that the worker is in."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProcessJoined(_Event):
    """A process of the engine can run attempts from now on."""

    process: str
    """What the engine calls it."""
    number: int
    """Its number, as in `ProcessStats`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProcessGone(_Event):
    """A process of the engine died, could not be reached, or could not run the handler."""

    process: str
    """What the engine calls it."""
    number: int
    """Its number, as in `ProcessStats`. The process that replaces it has the same."""
    attempts: int
    """How many attempts may have been running there."""
    error: BaseException
    """How it was lost."""


Event: TypeAlias = (
    PoolStarted
    | PoolResized
    | PoolPaused
    | PoolResumed
    | PoolStalled
    | PoolRecovered
    | BreakerOpened
    | BreakerHalfOpened
    | BreakerClosed
    | PoolStopping
    | PoolEnded
    | JobAccepted
    | JobStarted
    | JobRetrying
    | JobEnded
    | JobStuck
    | ResourceFailed
    | ResourceReplaced
    | ProcessJoined
    | ProcessGone
)
Observer: TypeAlias = Callable[[Event], None]


class Observers:
    """The observers of a pool, called in order. One that raises is removed and logged; jobs are not affected.

    `any` is False while there are none, so that callers can skip creating an event.
    """

    __slots__ = ("_observers", "any", "interrupted")

    def __init__(self, observers: Iterable[Observer]) -> None:
        if callable(observers) or not isinstance(observers, Iterable):
            raise TypeError(f"observers must be a sequence of callables that take an event, got {describe(observers)}")
        self._observers = tuple(observers)
        for observer in self._observers:
            if not callable(observer):
                raise TypeError(f"observers must be callables that take an event, got {describe(observer)}")
            check_function("an observer", observer)
        self.any = bool(self._observers)
        # Receives a KeyboardInterrupt raised while an observer runs, and re-raises it where that is safe.
        self.interrupted: Callable[[KeyboardInterrupt], object] = _log_interrupt

    def emit(self, event: Event) -> None:
        """Call each observer with the event."""
        for observer in self._observers:
            try:
                observer(event)
            except KeyboardInterrupt as error:
                self.interrupted(error)
            except BaseException as error:
                self._observers = tuple(other for other in self._observers if other is not observer)
                self.any = bool(self._observers)
                log.error(
                    "pool %r: observer %r raised an exception and was removed", event.pool, observer, exc_info=error
                )


def _log_interrupt(error: KeyboardInterrupt) -> None:
    log.error("an observer raised KeyboardInterrupt before its pool was started", exc_info=error)
