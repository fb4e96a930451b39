"""What a pool counts and measures, as frozen snapshots.

`_core/ledger.py` counts and measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "BUCKET_BOUNDS",
    "Distribution",
    "PoolStats",
    "ProcessStats",
    "ReplacementReason",
    "Replacements",
    "Resize",
]

# From 1 us to 203 days, four buckets per doubling: a percentile read from them is at most 19% above the true one.
BUCKET_BOUNDS = tuple(1e-6 * 2 ** (step / 4) for step in range(177))


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram of a duration, in seconds, of the attempts that have ended.

    A percentile is the upper bound of its bucket: at most 19% too high, from 1 us to 203 days, and never above `max`.
    """

    count: int = 0
    """How many durations were measured."""
    sum: float = 0.0
    """Their sum, in seconds."""
    max: float = 0.0
    """The longest, in seconds."""
    buckets: tuple[int, ...] = field(default=(), repr=False)
    """The count of each bucket: bucket i counts durations > `bounds[i - 1]` and <= `bounds[i]`; the last, the rest."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """The upper bounds of the buckets, in seconds; one more bucket is for durations above all bounds."""
        return BUCKET_BOUNDS

    @property
    def mean(self) -> float:
        """The mean, in seconds; 0.0 if nothing was measured."""
        return self.sum / self.count if self.count else 0.0

    @property
    def p50(self) -> float:
        """The median, in seconds."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """The 95th percentile, in seconds."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """The 99th percentile, in seconds."""
        return self.percentile(99)

    def percentile(self, percent: float) -> float:
        """Return the duration, in seconds, that `percent` % of the attempts did not exceed; 0.0 if none was measured.

        Raises:
            ValueError: `percent` is not between 0 and 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be between 0 and 100, got {percent}")
        rank = self.count * percent / 100
        for bound, reached in zip(BUCKET_BOUNDS, accumulate(self.buckets), strict=False):
            if reached >= rank and reached:
                return min(bound, self.max)
        return self.max


ReplacementReason: TypeAlias = Literal["age", "idle", "jobs", "check", "recycle"]
"""Why a resource is closed by plan; `Replacements` explains each."""


class Replacements(NamedTuple):
    """How many open resources were closed by plan, by the reason. `sum(replacements)` is how many in all."""

    age: int = 0
    """They reached their `max_age`."""
    idle: int = 0
    """They were idle for `max_idle`. The worker opens the next one when a job needs it."""
    jobs: int = 0
    """They did `max_jobs`."""
    check: int = 0
    """They failed their `check`."""
    recycle: int = 0
    """A job on them failed with an error that matches `recycle_on`, was cancelled, timed out, or called
    `current_job().recycle()`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A snapshot of a pool's counters, all read at the same instant. In each snapshot
    `submitted == queued + delayed + running + succeeded + failed + cancelled`.
    """

    name: str
    """The pool's name."""
    submitted: int
    """Jobs accepted so far."""
    queued: int
    """Jobs that are waiting for a worker."""
    delayed: int
    """Jobs that are waiting for their next attempt, or for a rate limit that not all jobs share."""
    running: int
    """Jobs that hold a worker."""
    succeeded: int
    """Jobs whose handler returned."""
    failed: int
    """Jobs whose handler raised, or that timed out."""
    cancelled: int
    """Jobs that were cancelled, or handed back when the pool closed."""
    workers: int
    """Idle and busy workers, without those that are still waiting for their resource."""
    target_workers: int
    """The number of workers that the policy has decided on."""
    max_workers: int
    """The maximum number of workers."""
    resources_opening: int
    """Resources that are being opened. The pool never has more resources than `max_workers`, with those that are open
    or closing, and without abandoned ones."""
    resources_closing: int
    """Resources that are being closed."""
    resources_abandoned: int
    """Resources that ignored their cancellation while they were opened, checked or closed, and still do."""
    stalled_seconds: float
    """For how many seconds jobs have waited while no worker could take them, because none has its resource or all run
    jobs that ignore their cancellation; 0.0 until that has lasted five seconds, and when it is over."""
    peak_running: int
    """The most jobs that ever ran at the same time."""
    stuck: int
    """Running jobs that were cancelled, or timed out, over five seconds ago."""
    unread_failures: int
    """Failures that were never retrieved: a handle was dropped, a stream was cancelled. 0 if the pool has dead
    letters."""
    retries: int
    """How often a failed job was scheduled for another attempt."""
    rejected: int
    """How often a job was rejected with `QueueFull`."""
    retries_rejected: int
    """Retries denied because the retry budget was exhausted."""
    seconds_queued: Distribution
    """Seconds from acceptance, or from the end of the backoff, until the handler began: of the attempts whose handler
    has begun and ended."""
    seconds_running: Distribution
    """Seconds that the handler ran, of the same attempts."""
    throughput: float
    """Settled jobs per second, over the last ten seconds, or since the start if that is later."""
    processes: int = 0
    """Processes of the engine that can run attempts; 0 without an engine."""
    processes_lost: int = 0
    """Processes that died, or could not be reached, while they belonged to the pool."""
    reruns: int = 0
    """Attempts that were run again because their process was lost."""
    breaker: str | None = None
    """The state of the breaker: "closed", "open" or "half-open"; None without one."""
    breaker_openings: int = 0
    """How often the breaker has opened while the pool ran, also after a probe that failed."""
    resources_replaced: Replacements = field(default_factory=Replacements)
    """How many open resources were closed by plan, by the reason. Those that died are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStats:
    """A snapshot of what one process of an engine does for a pool."""

    number: int
    """Its number, from 1. What replaces a process that was lost has the same number, and its counts go on."""
    name: str
    """What the engine calls it."""
    workers: int
    """How many attempts it can run at the same time."""
    running: int
    """Attempts that it was sent and that have not ended, those on their way included."""
    done: int
    """Attempts that have ended there."""
    lost: int
    """Attempts that were there when a process of this number was lost."""
    seconds: float
    """Seconds that handlers have run there, in the attempts that have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """A change of the target number of workers, which a policy or `resize()` decided on."""

    old: int
    """The target before."""
    new: int
    """The target after it."""
    reason: str
    """The policy's reason, in a sentence."""
    seconds: float
    """Seconds since the decision."""
