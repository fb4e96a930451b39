"""`AutoScale`: as many workers as the backlog needs, and no more than were needed recently.

Pure, as all policies. For a pool that must find out how much load its backend can take, see `adaptive.py`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import KW_ONLY, dataclass

from asyncpool._checks import check_count, check_number, check_seconds, convert_field
from asyncpool.scaling.policy import Decide, Decision, PoolLoad

__all__ = ["AutoScale"]


@dataclass(frozen=True, slots=True)
class AutoScale:
    """Adds workers at once when the backlog grows; removes workers that have been idle for some time.

    The rule of the scaling goroutine in Go's worker pools (add a worker when more than five jobs per worker are queued;
    end a worker that has had nothing to do for 30 s), with three changes:

    * It grows in proportion to the backlog, to `backlog / backlog_per_worker` workers in one step, and not by one
      worker per tick.
    * It does not grow while more workers would not help: while the pool is paused, jobs wait for a limiter, workers
      wait for their resource, or some workers are idle.
    * One place decides which workers retire, so that there are never fewer than `min_workers`.

    If the queue does not show the whole backlog because it is full (submitters wait or are rejected), it doubles the
    number of workers. A worker retires only `idle_timeout` seconds after it was last needed, so the number of workers
    does not oscillate with the load.

    Args:
        min_workers: The minimum number of workers; at least 0. With 0 an idle pool has no workers, and the first job
            starts one at once.
        max_workers: The maximum number of workers; at least 1.
        backlog_per_worker: How many jobs per worker can wait before workers are added; above 0. The backlog is what is
            queued, not what is delayed.
        interval: Seconds between two checks of the backlog; above 0.
        idle_timeout: Workers that were not needed for this many seconds retire; at least 0.

    Raises:
        TypeError, ValueError: An argument is not a number of its range, or `max_workers` is below `min_workers`.
    """

    min_workers: int
    max_workers: int
    _: KW_ONLY
    backlog_per_worker: float = 5
    interval: float = 0.1
    idle_timeout: float = 30.0

    def __post_init__(self) -> None:
        convert_field(self, "min_workers", check_count, least=0)
        convert_field(self, "max_workers", check_count, least=1)
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers must be >= min_workers, got {self.max_workers} < {self.min_workers}")
        convert_field(self, "backlog_per_worker", check_number, above=True)
        convert_field(self, "interval", check_seconds, positive=True)
        convert_field(self, "idle_timeout", check_seconds)

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with: `min_workers`."""
        return self.min_workers

    def start(self) -> Decide:
        """Return a new function that decides for one pool."""
        return _Backlog(self)


# How early a timer can fire, in seconds.
_EARLY = 1e-3


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class _Backlog:
    """The decisions for one pool.

    Idle workers are a stack: the worker that became idle last takes the next job. So the number of workers that were
    idle during a whole period is the number of workers minus the most that were busy at once in it, and there is no
    need to keep a time for each worker.
    """

    def __init__(self, policy: AutoScale) -> None:
        self._policy = policy
        # Pairs (until when it counts, how many workers were needed), each number smaller than the one before it: the
        # first is the most that were needed at once in the last idle_timeout.
        self._needed: deque[tuple[float, int]] = deque()

    def __call__(self, load: PoolLoad) -> Decision:
        policy = self._policy
        if load.workers < policy.min_workers:
            return self._grow(load, policy.min_workers, f"min_workers is {policy.min_workers}")
        if load.workers > policy.max_workers:
            return Decision(policy.max_workers, f"max_workers is {policy.max_workers}")
        wanted, why = self._wanted(load)
        if wanted > load.workers:
            return self._grow(load, wanted, why)
        return self._shrink(load)

    def _wanted(self, load: PoolLoad) -> tuple[int, str]:
        policy = self._policy
        wanted, why = 0, ""
        if load.is_throttled or load.starting:
            return wanted, why
        if not load.idle and load.backlog > policy.backlog_per_worker * load.workers:
            wanted = self._workers_for(load.backlog)
            why = f"{load.backlog} jobs wait for {_count(load.workers, 'worker')}"
        # The queue is full, so it does not show the whole backlog.
        if (load.waiting and not load.idle) or (load.rejected and load.peak_running >= load.workers):
            more = max(2 * load.workers, self._workers_for(load.backlog + load.rejected))
            if more > wanted:
                wanted, why = more, f"the queue of {_count(load.workers, 'worker')} is full"
        return min(wanted, policy.max_workers), why

    def _workers_for(self, jobs: int) -> int:
        return math.ceil(min(jobs / self._policy.backlog_per_worker, self._policy.max_workers))

    def _grow(self, load: PoolLoad, wanted: int, why: str) -> Decision:
        self._note(load.now, wanted)  # a new worker can be idle for idle_timeout too before it retires
        return Decision(wanted, why, {"backlog": load.backlog, "rejected": load.rejected})

    def _shrink(self, load: PoolLoad) -> Decision:
        policy = self._policy
        needed = max(load.running, load.peak_running)
        if load.backlog:
            needed += load.starting  # a worker that is starting has not been idle
        # In the first call, all workers count as needed until now.
        self._note(load.now, needed if self._needed else load.workers)
        while len(self._needed) > 1 and self._needed[0][0] <= load.now + _EARLY:
            self._needed.popleft()
        until, needed = self._needed[0]
        spare = load.workers - max(needed, policy.min_workers)
        if spare > 0:
            why = f"{_count(spare, 'worker')} idle for {policy.idle_timeout:g} s"
            return Decision(load.workers - spare, why, {"idle": spare})
        more = load.workers > policy.min_workers and load.running < load.workers
        return Decision(
            load.workers,
            f"as many workers as were needed in the last {policy.idle_timeout:g} s",
            ask_again_in=max(until - load.now, _EARLY) if more else None,
        )

    def _note(self, now: float, needed: int) -> None:
        while self._needed and self._needed[-1][1] <= needed:
            self._needed.pop()
        self._needed.append((now + self._policy.idle_timeout, needed))
