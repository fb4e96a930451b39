"""`NeededWorkers`: how many workers were needed at the same time in the last `idle_timeout` seconds.

What the policies that scale have in common: surplus workers retire only after they were not needed for that long.
"""

from __future__ import annotations

from collections import deque

from asyncpool.scaling.policy import PoolLoad

__all__ = ["EARLY", "NeededWorkers"]

EARLY = 1e-3
"""How early a timer can fire, in seconds."""


class NeededWorkers:
    """The most workers that were needed at the same time in the last `idle_timeout` seconds.

    Idle workers are a stack: the worker that became idle last takes the next job. So the number of workers that were
    idle during a whole period is the number of workers minus the most that were busy at once in it, and there is no
    need to keep a time for each worker.
    """

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        # Pairs (until when it counts, how many workers were needed), each number smaller than the one before it: the
        # first is the most that were needed at once in the last idle_timeout.
        self._needed: deque[tuple[float, int]] = deque()

    def note(self, now: float, workers: int) -> None:
        """Note that this many workers are needed now."""
        while self._needed and self._needed[-1][1] <= workers:
            self._needed.pop()
        self._needed.append((now + self._idle_timeout, workers))

    def observe(self, load: PoolLoad) -> tuple[int, float]:
        """Note how many workers the load needs; return the most in the timeout, and in how many seconds it is over."""
        needed = max(load.running, load.peak_running)
        if load.backlog:
            needed += load.starting  # a worker that is starting has not been idle
        # In the first call, all workers count as needed until now.
        self.note(load.now, needed if self._needed else load.workers)
        while len(self._needed) > 1 and self._needed[0][0] <= load.now + EARLY:
            self._needed.popleft()
        until, most = self._needed[0]
        return most, max(until - load.now, EARLY)
