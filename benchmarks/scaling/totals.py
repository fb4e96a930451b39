"""The measurements of a run: periodic samples, and sums over a period."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Durations", "Sample", "Totals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What happened since the previous sample, and the state of the pool at the time `at`."""

    at: float
    wanted: int
    """The target number of workers."""
    ready: int
    """Workers that have started."""
    queued: int
    """Jobs that have arrived and are not running: in the pool's queue, before the pool, or between two attempts."""
    running: int
    throughput: float
    """Successful jobs per second."""
    median_running: float
    """In seconds, of the successful attempts; nan if there were none."""
    overloads: int


class Durations:
    """A histogram of durations with a precision of 1%; its size does not grow with their number."""

    _STEP = math.log(1.01)

    def __init__(self) -> None:
        self.count = 0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Add a duration."""
        self.count += 1
        self._buckets[math.ceil(math.log(seconds) / self._STEP) if seconds > 1e-9 else -10_000] += 1

    def percentile(self, percent: float) -> float:
        """Return a percentile, in seconds; nan if there are no durations."""
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
    """Sums over a period."""

    seconds: float = 0.0
    good: int = 0
    overloads: int = 0
    failures: int = 0
    """Attempts that failed for other reasons."""
    worker_seconds: float = 0.0
    """The integral of the target number of workers."""
    waiting: Durations = field(default_factory=Durations)
    """From the arrival of a job to the start of the attempt that succeeds."""
    running: Durations = field(default_factory=Durations)
    """How long the successful attempts ran."""

    @property
    def throughput(self) -> float:
        """Successful jobs per second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def attempts(self) -> int:
        """The number of attempts that have ended."""
        return self.good + self.overloads + self.failures

    @property
    def overload(self) -> float:
        """The share of the attempts that the backend rejected."""
        return self.overloads / self.attempts if self.attempts else 0.0

    @property
    def mean_workers(self) -> float:
        """The mean of the target number of workers."""
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
