"""What can be observed of a pool: a closed union of events, and the list of observers that get them.

When each happens is decided where it happens; an observer that wants the time reads its own clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from asyncpool.outcomes import Outcome, ShutdownReport
from asyncpool.scaling.policy import PoolLoad

__all__ = [
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
    "PoolResized",
    "PoolResumed",
    "PoolStarted",
    "PoolStopping",
    "ResourceFailed",
]

_log = logging.getLogger("asyncpool")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    pool: str
    """The name of the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStarted(_Event):
    """The pool takes jobs."""

    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolResized(_Event):
    """The number of workers that there should be has changed."""

    old: int
    new: int
    reason: str
    """Why, in a sentence: as the policy has put it."""
    figures: Mapping[str, float]
    """The figures of the reason, by name, if the policy gives some."""
    load: PoolLoad | None
    """What it was decided on; None before the pool is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPaused(_Event):
    """Workers take no jobs until the pool is resumed; or for `seconds`, as a job asked by `RetryAfter(pause=True)`."""

    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolResumed(_Event):
    """Workers take jobs again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStopping(_Event):
    """The pool takes no new jobs; `drains` tells whether it finishes those that it has."""

    drains: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEnded(_Event):
    """The pool is closed."""

    report: ShutdownReport[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAccepted(_Event):
    """The pool has taken charge of a job."""

    id: int
    job: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(_Event):
    """A worker has taken a job; its handler begins now, or as soon as the limiter lets it."""

    id: int
    job: Any
    attempt: int
    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRetrying(_Event):
    """An attempt has failed, and in `seconds` the job may be taken for the next one."""

    id: int
    job: Any
    attempt: int
    """The one that failed, counted from 1."""
    error: BaseException
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(_Event):
    """A job has its outcome."""

    id: int
    outcome: Outcome[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStuck(_Event):
    """A running job was cancelled, or timed out, and has not ended `seconds` later: it holds its worker until then."""

    id: int
    job: Any
    worker: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceFailed(_Event):
    """A worker's resource could not be entered, could not be left, or ended by itself.

    `retry_in` is in seconds; None if the worker does not enter it again after this.
    """

    worker: int
    error: BaseException
    retry_in: float | None


Event: TypeAlias = (
    PoolStarted
    | PoolResized
    | PoolPaused
    | PoolResumed
    | PoolStopping
    | PoolEnded
    | JobAccepted
    | JobStarted
    | JobRetrying
    | JobEnded
    | JobStuck
    | ResourceFailed
)
Observer: TypeAlias = Callable[[Event], None]


class Observers:
    """Those who get the events, in order. One that raises is dropped, and logged once: it never hurts a job.

    `any` is False while there are none, so that no event is made that nobody gets.
    """

    __slots__ = ("_observers", "any", "interrupted")

    def __init__(self, observers: Iterable[Observer]) -> None:
        if callable(observers) or not isinstance(observers, Iterable):
            raise TypeError(f"observers must be a sequence of callables that take an event, got {observers!r}")
        self._observers = tuple(observers)
        for observer in self._observers:
            if not callable(observer):
                raise TypeError(f"observers must be callables that take an event, got {observer!r}")
        self.any = bool(self._observers)
        # Gets the KeyboardInterrupt that comes while an observer runs, and raises it where that does no harm.
        self.interrupted: Callable[[KeyboardInterrupt], object] = _log.error

    def emit(self, event: Event) -> None:
        """Give the event to each observer."""
        for observer in self._observers:
            try:
                observer(event)
            except KeyboardInterrupt as error:
                self.interrupted(error)
            except BaseException:
                self._observers = tuple(other for other in self._observers if other is not observer)
                self.any = bool(self._observers)
                _log.exception("pool %r: observer %r raised and is dropped", event.pool, observer)
