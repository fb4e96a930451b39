"""What a pool counts and measures, as frozen snapshots: `PoolStats` and `Distribution`.

The counts themselves are `_core/ledger.py`, the measurements `_core/recorders.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

__all__ = ["BUCKET_BOUNDS", "Distribution", "PoolStats"]

# From 1 us to over an hour, four buckets to the octave: a percentile read from it is at most 19% above the true one.
BUCKET_BOUNDS = tuple(1e-6 * 2 ** (step / 4) for step in range(129))


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How a duration in seconds is distributed over the jobs that ended.

    Percentiles are the upper bound of their bucket, at most 19% too high, and never above `max`.
    """

    count: int = 0
    """How many were measured."""
    sum: float = 0.0
    """Their sum, in seconds."""
    max: float = 0.0
    """The longest, in seconds."""
    buckets: tuple[int, ...] = field(default=(), repr=False)
    """How many fell into each bucket: bucket i holds those <= `bounds[i]` and > `bounds[i - 1]`; the last, the rest."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """Upper bounds of the buckets, in seconds; there is one bucket more, for what is longer than all."""
        return BUCKET_BOUNDS

    @property
    def mean(self) -> float:
        """Seconds; 0.0 if nothing was measured."""
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
        """Return the duration in seconds that `percent` of the jobs did not exceed; 0.0 if nothing was measured.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A snapshot of a pool. At every moment
    `submitted == queued + delayed + running + succeeded + failed + cancelled`.
    """

    name: str
    """The pool's name."""
    submitted: int
    """Jobs accepted so far."""
    queued: int
    """Jobs that wait for a worker."""
    delayed: int
    """Jobs that wait for a time: for their next attempt, or for the rate limit that not all jobs have."""
    running: int
    """Jobs that hold a worker."""
    succeeded: int
    """Jobs whose handler returned."""
    failed: int
    """Jobs whose handler raised, or that timed out."""
    cancelled: int
    """Jobs that were cancelled, or handed back when the pool closed."""
    workers: int
    """Workers there are now, idle and busy, without those that still wait for their resource."""
    target_workers: int
    """Workers there should be now."""
    max_workers: int
    """Workers there may be."""
    peak_running: int
    """The most jobs that ever ran at the same time."""
    stuck: int
    """Running jobs that were cancelled over five seconds ago and have not ended."""
    unread_failures: int
    """Failures delivered to nobody: a handle was dropped, a stream was cancelled. 0 if the pool has dead letters."""
    retries: int
    """How often a failed job was put off to another attempt."""
    rejected: int
    """How often a job was turned away with `QueueFull`, and not accepted."""
    retries_rejected: int
    """Retries denied because the retry budget was exhausted."""
    seconds_queued: Distribution
    """From acceptance, or from the end of the pause before it, until the handler began, of the attempts in which it has
    begun and ended."""
    seconds_running: Distribution
    """How long the handler ran, of the same attempts."""
    throughput: float
    """Jobs ended per second, over the last ten seconds, or since the start if that is later."""
