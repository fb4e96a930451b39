"""What is counted in a run: a sample now and then, and sums over a time."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Durations", "Sample", "Totals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What happened in the time up to `at`, and how things stood then."""

    at: float
    wanted: int
    """Workers that there should be."""
    ready: int
    """Workers that there are."""
    queued: int
    """Jobs that had come and were not begun: in the pool's queue, before the pool, or between two attempts."""
    running: int
    throughput: float
    """Good jobs a second."""
    median_running: float
    """Seconds, of the good ones; nan if there were none."""
    overloads: int


class Durations:
    """How durations are distributed, to 1%, in memory that does not grow with their number."""

    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self.count = 0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.count += 1
        self._buckets[math.ceil(math.log(seconds) / self._STEP) if seconds > 1e-9 else -10_000] += 1

    def percentile(self, percent: float) -> float:
        """Return the seconds that so many percent did not exceed; nan if there was none."""
        left = self.count * percent / 100
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return 0.0 if bucket == -10_000 else math.exp((bucket - 0.5) * self._STEP)
        return math.nan

    def __add__(self, other: Durations) -> Durations:
        both = Durations()
        both.count = self.count + other.count
        both._buckets = self._buckets + other._buckets
        return both

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p99(self) -> float:
        return self.percentile(99)


@dataclass(slots=True)
class Totals:
    """Sums over a time."""

    seconds: float = 0.0
    good: int = 0
    overloads: int = 0
    failures: int = 0
    """Attempts that failed otherwise."""
    worker_seconds: float = 0.0
    """The integral of the number of workers that there should be."""
    waiting: Durations = field(default_factory=Durations)
    """From a job's arrival until the attempt begins that succeeds."""
    running: Durations = field(default_factory=Durations)
    """Of the attempts that succeeded."""

    @property
    def throughput(self) -> float:
        """Good jobs a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def attempts(self) -> int:
        """All that ended."""
        return self.good + self.overloads + self.failures

    @property
    def overload(self) -> float:
        """The share of the attempts that were turned away."""
        return self.overloads / self.attempts if self.attempts else 0.0

    @property
    def mean_workers(self) -> float:
        """Workers that there should be, over time."""
        return self.worker_seconds / self.seconds if self.seconds else 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.seconds + other.seconds,
            self.good + other.good,
            self.overloads + other.overloads,
            self.failures + other.failures,
            self.worker_seconds + other.worker_seconds,
            self.waiting + other.waiting,
            self.running + other.running,
        )
