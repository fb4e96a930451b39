"""`AutoScale`: as many workers as the backlog needs, and no more than were needed recently.

Pure, as all policies. For a pool that must find out how much load its backend can take, see `adaptive.py`.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from asyncpool._checks import check_count, check_number, check_seconds, convert_field
from asyncpool.scaling.idle import EARLY, NeededWorkers
from asyncpool.scaling.policy import Decide, Decision, PoolLoad

__all__ = ["AutoScale"]

# Unless `max_wait` is given, a job can wait for this many times as long as jobs take on average, within these bounds in
# seconds. While no job has succeeded yet, it can wait for the longest time.
_PATIENCE = 1.5
_LEAST_PATIENCE = 0.01  # not 0.0, which would be the mean of jobs that take no time
_MOST_PATIENCE = 30.0
# From this many running times on, the older ones lose half of their weight.
_MANY = 1000


@dataclass(frozen=True, slots=True)
class AutoScale:
    """Adds workers at once when the backlog grows; removes workers that have been idle for some time.

    The rule of the scaling goroutine in Go's worker pools (add a worker when more than five jobs per worker are queued;
    end a worker that has had nothing to do for 30 s), with four changes:

    * It grows in proportion to the backlog, to `backlog / backlog_per_worker` workers in one step, and not by one
      worker per tick.
    * It also grows if jobs wait too long, however few they are: so a few jobs that hang, or take hours, do not hold up
      the others.
    * It does not grow while more workers would not help: while the pool is paused, jobs wait for a limiter, workers
      wait for their resource, or some workers are idle.
    * One place decides which workers retire, so that there are never fewer than `min_workers`.

    It checks the load once per `interval`, and at once when the backlog rises above the threshold. If the queue does
    not show the whole backlog because it is full (submitters wait or are rejected), it doubles the number of workers.
    A worker retires only `idle_timeout` seconds after it was last needed, so the number of workers does not oscillate
    with the load.

    Args:
        min_workers: The minimum number of workers; at least 0. With 0 an idle pool has no workers, and the first job
            starts one at once, also with `queue_size=0`. Such a pool opens no resource when it starts, so an error such
            as a wrong password surfaces only with the first job.
        max_workers: The maximum number of workers; at least 1.
        backlog_per_worker: How many jobs per worker can wait before workers are added; above 0. The backlog is what is
            queued, not what is delayed.
        interval: Seconds between two checks of the load; above 0. A check because of the backlog comes sooner, but not
            sooner than a tenth of this after the previous one.
        idle_timeout: Workers that were not needed for this many seconds retire; at least 0.
        max_wait: Seconds that a queued job can wait for a worker before workers are added; above 0. None: 1.5 times as
            long as jobs take on average, between 10 ms and 30 s; 30 s while no job has succeeded yet.

    Raises:
        TypeError, ValueError: An argument is not a number of its range, or `max_workers` is below `min_workers`.
    """

    min_workers: int
    max_workers: int
    _: KW_ONLY
    backlog_per_worker: float = 5
    interval: float = 0.1
    idle_timeout: float = 30.0
    max_wait: float | None = None

    def __post_init__(self) -> None:
        convert_field(self, "min_workers", check_count, least=0)
        convert_field(self, "max_workers", check_count, least=1)
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers must be >= min_workers, got {self.max_workers} < {self.min_workers}")
        convert_field(self, "backlog_per_worker", check_number, above=True)
        convert_field(self, "interval", check_seconds, positive=True)
        convert_field(self, "idle_timeout", check_seconds)
        if self.max_wait is not None:
            convert_field(self, "max_wait", check_seconds, positive=True)

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with: `min_workers`."""
        return self.min_workers

    def start(self) -> Decide:
        """Return a new function that decides for one pool."""
        return _Backlog(self)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class _MeanSeconds:
    """How long jobs take on average. Older ones count less and less."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0.0

    def add(self, load: PoolLoad) -> None:
        """Add the jobs that have succeeded since the previous call."""
        if load.seconds:
            self._sum += sum(load.seconds)
            self._count += len(load.seconds)
            if self._count > _MANY:
                share = _MANY / 2 / self._count
                self._sum, self._count = share * self._sum, share * self._count

    @property
    def value(self) -> float | None:
        """The mean in seconds; None if there was no job yet."""
        return self._sum / self._count if self._count else None


class _Backlog:
    """The decisions for one pool."""

    def __init__(self, policy: AutoScale) -> None:
        self._policy = policy
        self._needed = NeededWorkers(policy.idle_timeout)
        self._mean = _MeanSeconds()
        # Since when jobs wait for lack of workers, at most. What they waited before that does not count: for a pause, a
        # rate limit, a resource.
        self._short_since = -math.inf
        self._was_held = False  # whether something else held jobs back, when the load was last seen

    def __call__(self, load: PoolLoad) -> Decision:
        policy = self._policy
        self._mean.add(load)
        is_short = self._is_short(load)
        if self._was_held and is_short:
            self._short_since = load.now
        wait = min(load.oldest_wait, load.now - self._short_since) if is_short else 0.0
        if not is_short:
            self._short_since = load.now
        self._was_held = load.is_throttled or load.starting > 0
        if load.workers < policy.min_workers:
            return self._grow(load, policy.min_workers, f"min_workers is {policy.min_workers}")
        if load.workers > policy.max_workers:
            return Decision(policy.max_workers, f"max_workers is {policy.max_workers}")
        wanted, why = self._wanted(load, wait)
        if wanted > load.workers:
            return self._grow(load, wanted, why)
        return self._stay_or_shrink(
            load, self._max_wait - wait if is_short and load.workers < policy.max_workers else None
        )

    @property
    def _max_wait(self) -> float:
        """How long a job can wait, in seconds."""
        policy, mean = self._policy, self._mean.value
        if policy.max_wait is not None:
            return policy.max_wait
        return _MOST_PATIENCE if mean is None else max(_LEAST_PATIENCE, min(_MOST_PATIENCE, _PATIENCE * mean))

    @staticmethod
    def _is_short(load: PoolLoad) -> bool:
        """Whether jobs wait and more workers would help."""
        return load.backlog > 0 and not (load.is_throttled or load.starting or load.idle)

    def _wanted(self, load: PoolLoad, wait: float) -> tuple[int, str]:
        policy = self._policy
        wanted, why = 0, ""
        if load.is_throttled or load.starting:
            return wanted, why
        if not load.idle and load.backlog > policy.backlog_per_worker * load.workers:
            wanted = self._workers_for(load.backlog)
            why = f"{load.backlog} jobs wait for {_count(load.workers, 'worker')}"
        # The longer, the more: if the oldest has waited for twice as long as it should, there should be twice as many.
        if wait > self._max_wait:
            more = math.ceil(load.workers * min(2.0, wait / self._max_wait))
            if (more := min(more, load.workers + load.backlog)) > wanted:
                wanted, why = more, f"a job has waited {wait:.3g} s for {_count(load.workers, 'worker')}"
        # The queue is full, so it does not show the whole backlog.
        if (load.waiting and not load.idle) or (load.rejected and load.peak_running >= load.workers):
            more = max(2 * load.workers, self._workers_for(load.backlog + load.rejected))
            if more > wanted:
                wanted, why = more, f"the queue of {_count(load.workers, 'worker')} is full"
        return min(wanted, policy.max_workers), why

    def _workers_for(self, jobs: int) -> int:
        return math.ceil(min(jobs / self._policy.backlog_per_worker, self._policy.max_workers))

    def _grow(self, load: PoolLoad, wanted: int, why: str) -> Decision:
        self._needed.note(load.now, wanted)  # a new worker can be idle for idle_timeout too before it retires
        figures = {"backlog": load.backlog, "rejected": load.rejected, "oldest_wait": load.oldest_wait}
        return Decision(wanted, why, figures, ask_again_at_backlog=self._threshold(wanted))

    def _stay_or_shrink(self, load: PoolLoad, patience: float | None) -> Decision:
        policy = self._policy
        needed, seconds = self._needed.observe(load)
        spare = load.workers - max(needed, policy.min_workers)
        if spare > 0:
            why = f"{_count(spare, 'worker')} idle for {policy.idle_timeout:g} s"
            return Decision(
                load.workers - spare,
                why,
                {"idle": spare},
                ask_again_at_backlog=self._threshold(load.workers - spare),
            )
        may_retire = load.workers > policy.min_workers and load.running < load.workers
        times = [seconds] if may_retire else []
        if patience is not None:
            times.append(max(patience, 0.0) + EARLY)
        return Decision(
            load.workers,
            f"as many workers as were needed in the last {policy.idle_timeout:g} s",
            ask_again_in=min(times, default=None),
            ask_again_at_backlog=self._threshold(load.workers),
        )

    def _threshold(self, workers: int) -> int | None:
        """Return the backlog above which this many workers are too few; None if there can be no more."""
        if workers >= self._policy.max_workers:
            return None
        return math.floor(self._policy.backlog_per_worker * workers)
