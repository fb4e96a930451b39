"""What a pool counts and measures: the frozen snapshot `PoolStats`, and the recorders behind it.

Who counts what, and when, is decided where it happens: `_core/dispatch.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

__all__ = ["Counters", "Distribution", "Histogram", "PoolStats", "Throughput"]

# From 1 us to over an hour, four buckets to the octave: a percentile read from it is at most 19% above the true one.
_BOUNDS = tuple(1e-6 * 2 ** (step / 4) for step in range(129))


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
        return _BOUNDS

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
        for bound, reached in zip(_BOUNDS, accumulate(self.buckets), strict=False):
            if reached >= rank and reached:
                return min(bound, self.max)
        return self.max


class Histogram:
    """Records durations in O(1) and constant memory.

    `record` is an append, the cheapest that there is; the buckets are filled for a batch at a time, by `fold`. A reader
    gets each batch, sorted, but not what is recorded aside.
    """

    __slots__ = ("_aside", "_buckets", "_fresh", "_max", "_sum", "reader", "record", "record_aside")

    def __init__(self) -> None:
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._sum = 0.0
        self._max = 0.0
        self._fresh: list[float] = []
        self._aside: list[float] = []
        self.record = self._fresh.append
        self.record_aside = self._aside.append
        self.reader: Callable[[list[float]], None] | None = None

    def fold(self) -> None:
        """Sort what was recorded into the buckets. To be called now and then: until then it takes memory."""
        fresh = self._fresh
        if not fresh and not self._aside:
            return
        # Sorted, so that each bucket takes its share with one search, and not each duration its own.
        fresh.sort()
        if self.reader is not None:
            self.reader(fresh)
        if self._aside:
            fresh += self._aside
            fresh.sort()
            self._aside.clear()
        self._sum += sum(fresh)
        self._max = max(self._max, fresh[-1])
        start = 0
        while start < len(fresh):
            bucket = bisect_left(_BOUNDS, fresh[start])
            end = bisect_right(fresh, _BOUNDS[bucket], start) if bucket < len(_BOUNDS) else len(fresh)
            self._buckets[bucket] += end - start
            start = end
        fresh.clear()

    def snapshot(self) -> Distribution:
        """Return what was recorded so far."""
        self.fold()
        buckets = tuple(self._buckets)
        return Distribution(count=sum(buckets), sum=self._sum, max=self._max, buckets=buckets)


class Throughput:
    """Jobs ended per second, over the last `WINDOW` seconds.

    Keeps one mark per second in which a job ended. `due` is when the next is to be set, so that the hot path pays one
    comparison.
    """

    WINDOW = 10.0
    __slots__ = ("_marks", "due")

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        self.due = now + 1.0

    def mark(self, now: float, ended: int) -> None:
        """Say that `ended` jobs have ended by `now`."""
        self._marks.append((now, ended))
        self.due = now + 1.0
        # The oldest mark stays until the next is out of the window too: it is the base that the rate counts from.
        while len(self._marks) > 1 and self._marks[1][0] <= now - self.WINDOW:
            self._marks.popleft()

    def rate(self, now: float, ended: int) -> float:
        """Return jobs per second up to `now`, at which `ended` have ended."""
        begin = now - self.WINDOW
        since, base = self._marks[0][0], float(self._marks[0][1])
        for (when, count), (_, following) in pairwise((*self._marks, (now, ended))):
            if when > begin:
                break
            # What is counted at the next mark has ended within a second of this one: the first job after that sets it.
            since, base = begin, count + (following - count) * min(1.0, begin - when)
        return (ended - base) / (now - since) if now > since else 0.0


class Counters:
    """The tally of a pool: how the jobs ended that ended, and what went unread."""

    __slots__ = (
        "cancelled",
        "failed",
        "rejected",
        "retries",
        "retries_rejected",
        "submitted",
        "succeeded",
        "unread_failures",
    )

    def __init__(self) -> None:
        self.submitted = 0
        self.succeeded = 0
        self.failed = 0
        self.cancelled = 0
        self.unread_failures = 0
        self.retries = 0
        self.rejected = 0
        self.retries_rejected = 0

    @property
    def ended(self) -> int:
        """How many jobs have their outcome."""
        return self.succeeded + self.failed + self.cancelled


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
