"""The past of a pool, one sample per second, for the charts: throughput, backlog, workers, and how long attempts take.

`live.py` decides when a sample is taken.
"""

from __future__ import annotations

from collections import deque
from itertools import accumulate
from typing import TypeAlias

from asyncpool.stats import Distribution, PoolStats

__all__ = ["COLUMNS", "KEPT", "PoolHistory", "Sample"]

KEPT = 300
"""How many samples are kept: five minutes."""
COLUMNS = (
    "throughput",
    "failing",
    "queued",
    "running",
    "target",
    "wait50",
    "wait95",
    "wait99",
    "run50",
    "run95",
    "run99",
)
Sample: TypeAlias = tuple[float | None, ...]
"""A figure for each of `COLUMNS`; None: nothing was measured."""
_Percentiles: TypeAlias = tuple[float | None, float | None, float | None]

# Percentiles are those of the attempts of the last seconds: in one second there are few, or none.
_WINDOW = 10


class PoolHistory:
    """Makes samples of the snapshots of one pool, each from what has changed since earlier ones."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, PoolStats]] = deque(maxlen=_WINDOW)

    def sample(self, now: float, stats: PoolStats) -> Sample:
        """Return the sample of a snapshot, which was taken at this loop time."""
        throughput: float | None = None
        failing: float | None = None
        waits: _Percentiles = (None, None, None)
        runs: _Percentiles = (None, None, None)
        if self._past:
            when, last = self._past[-1]
            seconds = max(now - when, 1e-9)
            throughput = _short((_ended(stats) - _ended(last)) / seconds)
            failing = _short((stats.failed - last.failed) / seconds)
            oldest = self._past[0][1]
            waits = _percentiles(stats.seconds_queued, oldest.seconds_queued)
            runs = _percentiles(stats.seconds_running, oldest.seconds_running)
        self._past.append((now, stats))
        return throughput, failing, stats.queued, stats.running, stats.target_workers, *waits, *runs

    def skip(self) -> Sample:
        """Return the sample of a second in which the pool could not be read."""
        self._past.clear()
        return (None,) * len(COLUMNS)


def _ended(stats: PoolStats) -> int:
    return stats.succeeded + stats.failed + stats.cancelled


def _percentiles(new: Distribution, old: Distribution) -> _Percentiles:
    """Return p50, p95 and p99 of what one histogram has more than another, an earlier one."""
    count = new.count - old.count
    if count <= 0:
        return None, None, None
    before = old.buckets or (0,) * len(new.buckets)
    reached = list(accumulate(now - then for now, then in zip(new.buckets, before, strict=True)))
    found: list[float] = []
    bucket = 0
    for percent in (50, 95, 99):
        while reached[bucket] < count * percent / 100:
            bucket += 1
        found.append(_short(min(new.bounds[bucket], new.max) if bucket < len(new.bounds) else new.max))
    return found[0], found[1], found[2]


def _short(value: float) -> float:
    """Round a figure to what a chart can show, so that little is sent."""
    return float(f"{value:.4g}")
