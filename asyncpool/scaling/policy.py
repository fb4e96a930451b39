"""The interface between a pool and its scaling policy: the load, the decision, the protocol, and a fixed size.

Policies are pure: figures in, a number of workers out. `_core/scaler.py` calls them and applies the result;
`autoscale.py` and `adaptive.py` are the policies that scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from asyncpool._checks import check_count, convert_field

__all__ = ["Decide", "Decision", "FixedSize", "PoolLoad", "ScalingPolicy", "Workers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """How busy a pool is, and what has happened since the previous call of its policy."""

    now: float = 0.0
    """Loop time, in seconds."""
    elapsed: float = 0.0
    """Seconds since the previous call of the policy; 0.0 in the first call."""
    workers: int = 0
    """The target number of workers: the previous decision."""
    starting: int = 0
    """How many of these have no resource yet, and so take no jobs. A worker whose resource has been opening for more
    than five seconds no longer counts, so that a policy can grow past it."""
    idle: int = 0
    """Workers that could take a job now."""
    running: int = 0
    """Jobs that hold a worker."""
    peak_running: int = 0
    """The most jobs that held a worker at the same time since the previous call of the policy."""
    blocked: int = 0
    """Running jobs that are waiting for this pool itself."""
    queued: int = 0
    """Jobs that are waiting for a worker."""
    waiting: int = 0
    """Submitters and streams that are waiting for room in the queue."""
    oldest_wait: float = 0.0
    """Seconds that the oldest queued job has waited for a worker; 0.0 if none is queued. With `priority`, the oldest of
    the first thousand or so in the queue."""
    rejected: int = 0
    """Jobs that were rejected with `QueueFull` since the previous call of the policy."""
    delayed: int = 0
    """Jobs that are waiting for their next attempt or their rate limit. Not part of the backlog: no worker could take
    them."""
    is_throttled: bool = False
    """Whether something other than the number of workers holds jobs back: the pool is paused, its rate limit allows no
    start now, jobs that hold a worker are waiting in the limiter, or `max_delayed` jobs are delayed."""
    succeeded: int = 0
    """Attempts that have succeeded since the previous call of the policy."""
    failed: int = 0
    """Attempts that have failed since the previous call of the policy."""
    seconds: tuple[float, ...] = ()
    """Seconds that the handler ran, of the attempts that succeeded: of all of them, or of an even sample."""
    errors: tuple[BaseException, ...] = ()
    """What the attempts that failed raised, of the first thousand. Can include `RetryAfter` and `Permanent`."""

    @property
    def backlog(self) -> int:
        """Jobs that more workers could run now: those in the queue, and one for each waiting submitter or stream."""
        return self.queued + self.waiting


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy returns.

    Args:
        workers: The target number of workers.
        reason: Why, in a sentence with the figures; for observers.
        figures: The same figures, by name.
        ask_again_in: Call the policy again after this many seconds, even if the pool has no activity until then. While
            it is active, not sooner than a tenth of the interval after this call.
        ask_again_after_failures: Call the policy again when this many attempts have failed, even before the interval
            is over.
        ask_again_at_backlog: Call the policy again when the backlog rises above this number (without the jobs that idle
            workers are about to take), even before the interval is over, but not sooner than a tenth of the interval
            after this call. If the backlog is above the number already, it must fall first.
    """

    workers: int
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    ask_again_in: float | None = field(default=None, kw_only=True)
    ask_again_after_failures: int | None = field(default=None, kw_only=True)
    ask_again_at_backlog: int | None = field(default=None, kw_only=True)


Decide: TypeAlias = Callable[[PoolLoad], Decision]


@runtime_checkable
class ScalingPolicy(Protocol):
    """Decides how many workers a pool has. Only configuration: `start()` returns the mutable part, so that pools can
    share a policy.

    Whatever a policy returns, the pool has at most `max_workers`, and at least one worker while a job waits. While
    running jobs wait for this same pool, it has one worker more than there are such jobs, up to `max_workers`. If a
    policy raises or returns something else than a decision, the number of workers stays as it is, and the 1st, 2nd,
    4th, 8th ... time is logged.
    """

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with."""
        ...

    @property
    def max_workers(self) -> int:
        """The maximum number of workers; decisions above it are capped."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between two calls, while the pool is active.

        If the load did not change from one call to the next (while jobs wait: in 50 calls), the next call is only when
        it changes, or after the decision's `ask_again_in`. So an idle pool has no timer.
        """
        ...

    def start(self) -> Decide:
        """Return a new function that decides for one pool: the pool calls it with its `PoolLoad`, on its loop."""
        ...


Workers: TypeAlias = int | ScalingPolicy | Callable[[PoolLoad], int]
"""What a pool accepts as `workers=`: a number, a policy, or a function that returns a number."""


@dataclass(frozen=True, slots=True)
class FixedSize:
    """A fixed number of workers.

    Args:
        workers: The number of workers; at least 1.

    Raises:
        TypeError: `workers` is not an int.
        ValueError: `workers` is below 1.
    """

    workers: int

    def __post_init__(self) -> None:
        convert_field(self, "workers", check_count, least=1)

    @property
    def initial_workers(self) -> int:
        """How many workers the pool starts with: `workers`."""
        return self.workers

    @property
    def max_workers(self) -> int:
        """The maximum number of workers: `workers`."""
        return self.workers

    @property
    def interval(self) -> float:
        """Seconds between two calls. It has no effect: a pool of fixed size calls its policy once."""
        return 1.0

    def start(self) -> Decide:
        """Return a function that always returns the same decision."""
        decision = Decision(self.workers, f"the pool has a fixed size of {self.workers}")
        return lambda load: decision
