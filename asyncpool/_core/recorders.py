"""What is measured per job: durations in a histogram, and the rate of jobs that end.

The frozen snapshots that users see are `asyncpool/stats.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from itertools import pairwise

from asyncpool.stats import BUCKET_BOUNDS, Distribution

__all__ = ["Histogram", "Throughput"]


class Histogram:
    """Records durations in O(1) and constant memory.

    `record` is an append, the cheapest there is; the buckets are filled for a batch at a time, by `flush`. A reader
    gets each batch, sorted, without what `record_failure` recorded.
    """

    __slots__ = ("_buckets", "_failures", "_fresh", "_max", "_sum", "reader", "record", "record_failure")

    def __init__(self) -> None:
        self._buckets = [0] * (len(BUCKET_BOUNDS) + 1)
        self._sum = 0.0
        self._max = 0.0
        self._fresh: list[float] = []
        self._failures: list[float] = []
        self.record = self._fresh.append
        self.record_failure = self._failures.append
        self.reader: Callable[[list[float]], None] | None = None

    def flush(self) -> None:
        """Sort what was recorded into the buckets. Call it from time to time: until then it takes memory."""
        fresh = self._fresh
        if not fresh and not self._failures:
            return
        # Sorted, so that each bucket takes its share with one search, and not each duration its own.
        fresh.sort()
        if self.reader is not None:
            self.reader(fresh)
        if self._failures:
            fresh += self._failures
            fresh.sort()
            self._failures.clear()
        self._sum += sum(fresh)
        self._max = max(self._max, fresh[-1])
        start = 0
        while start < len(fresh):
            bucket = bisect_left(BUCKET_BOUNDS, fresh[start])
            end = bisect_right(fresh, BUCKET_BOUNDS[bucket], start) if bucket < len(BUCKET_BOUNDS) else len(fresh)
            self._buckets[bucket] += end - start
            start = end
        fresh.clear()

    def snapshot(self) -> Distribution:
        """Return what was recorded so far."""
        self.flush()
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
        """Note that `ended` jobs have ended by `now`."""
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
