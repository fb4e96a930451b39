"""One FIFO per rate limit, for jobs that do not share the pool's limit.

The limit of a job is checked when a worker would start it (`gated.py`). A job that must wait is parked in the lane of
its limit, so that jobs with other limits go past it. When the limit opens, the first of the lane goes back to the
queue, before all that are fresh there.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any

from asyncpool._core.job import Job
from asyncpool._core.ledger import Ledger
from asyncpool._core.orders import ReentryOrder
from asyncpool._core.queue import JobQueue
from asyncpool._core.timers import TimerHeap
from asyncpool._core.wakeups import Wakeups
from asyncpool._guard import describe
from asyncpool._logs import log
from asyncpool.rate import KeyedRateLimit, RateLimit, is_manager

__all__ = ["RateLanes"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

# A function of a pool's limits is suspected after this many limits that nothing keeps, or that were never used before.
_MAX_GONE = 10
_MAX_UNUSED = 1000


class _Lane:
    """The jobs that wait for one limit.

    Invariant: while it is in use, either one of its jobs is released (back in the queue, to be asked for again) or its
    timer is set. So its jobs start in their order, and no two wake for the same opening
    (tests/laws: parked_jobs_start_in_the_moment_in_which_their_limit_opens).
    """

    __slots__ = ("has_released", "has_timer", "limit", "order")

    def __init__(self, limit: RateLimit, order: ReentryOrder) -> None:
        self.limit = limit
        self.order = order
        self.has_released = False
        self.has_timer = False


class _ReuseCheck:
    """Calls the function of a pool's limits until it returns one that was used before, and warns if it never does.

    `limiter=lambda job: RateLimit(1)` limits nothing: each limit is asked once. It is noticed by limits that are gone
    when the next is asked for, because only the pool referred to them, or by many that are all unused.
    """

    __slots__ = ("_function", "_gone", "_lanes", "_last", "_name", "_unused")

    def __init__(self, function: Callable[[Any], object], lanes: RateLanes, name: str) -> None:
        self._function = function
        self._lanes = weakref.ref(lanes)
        self._name = name
        self._last: weakref.ref[RateLimit] | None = None
        self._gone = 0
        self._unused = 0

    def __call__(self, job: Any) -> object:
        limit = self._function(job)
        if isinstance(limit, RateLimit):
            self._unused += 1
            self._gone += self._last is not None and self._last() is None
            self._last = weakref.ref(limit)
            is_new_each_time = self._gone >= _MAX_GONE or self._unused >= _MAX_UNUSED
            if is_new_each_time:
                log.warning(
                    "pool %r: the limiter function has returned %d rate limits, all of them new, so nothing was "
                    "limited: return the same RateLimit for jobs that share it, or use RateLimit.per_key",
                    self._name,
                    self._unused,
                )
            lanes = self._lanes()
            if lanes is not None and (is_new_each_time or limit.was_used):
                lanes.stop_reuse_check(self._function)
        return limit


class RateLanes:
    """Decides for each job whether it can start, and keeps those that cannot yet.

    Args:
        limiter_of: The limit of a job, or another context manager to run it in, or None.
        name: The pool's, for the log.
        make_order: Makes the order of a lane. Not a queue: an `asyncio.Queue` takes 3 KiB, and there can be a lane for
            each host.
    """

    __slots__ = (
        "__weakref__",
        "_lanes",
        "_ledger",
        "_left",
        "_limiter_of",
        "_make_order",
        "_managers",
        "_parked",
        "_queue",
        "_released",
        "_time",
        "_timers",
        "_wakeups",
    )

    def __init__(
        self,
        limiter_of: Callable[[Any], object],
        name: str,
        make_order: Callable[[], ReentryOrder],
        queue: JobQueue,
        ledger: Ledger,
        wakeups: Wakeups,
    ) -> None:
        # A keyed limit returns a new one for each new key, as it should.
        is_keyed = type(limiter_of) is KeyedRateLimit
        self._limiter_of = limiter_of if is_keyed else _ReuseCheck(limiter_of, self, name)
        self._make_order = make_order
        self._queue = queue
        self._ledger = ledger
        self._wakeups = wakeups
        self._lanes: dict[RateLimit, _Lane] = {}
        self._parked: dict[Job, _Lane] = {}
        self._released: dict[Job, _Lane] = {}
        # By the job that was just admitted. The next of the lane is released only when that runs: on its way a job is
        # counted nowhere (tests/laws: a_limiter_function_does_as_it_likes).
        self._left: _Lane | None = None
        # The context managers of jobs that are about to begin.
        self._managers: dict[Job, AbstractAsyncContextManager[Any]] = {}
        self._timers: TimerHeap[_Lane] = TimerHeap(self._on_due, lambda lane: lane.has_timer)

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._time = loop.time
        self._timers.open(loop, context)

    def __iter__(self) -> Iterator[Job]:
        """The parked jobs."""
        return iter(self._parked)

    @property
    def waits_for_a_time(self) -> bool:
        """Whether a lane waits for its limit. Otherwise all parked jobs wait for workers."""
        return self._timers.size > 0

    def limiter_of(self, job: Job) -> RateLimit | AbstractAsyncContextManager[Any] | None:
        """Return what limits a job that is queued: the user's function decides, and can raise.

        Raises:
            TypeError: It returned something else.
        """
        lane = self._released.get(job)
        if lane is not None:
            return lane.limit
        limiter = self._limiter_of(job.input)
        if limiter is None or isinstance(limiter, RateLimit) or is_manager(limiter):
            return limiter
        raise TypeError(
            f"limiter(job) must return a RateLimit, an async context manager or None, got {describe(limiter)}"
        )

    def admit_or_park(self, job: Job, limiter: RateLimit | AbstractAsyncContextManager[Any] | None, now: float) -> bool:
        """Return whether a job that was just taken from the queue can start now. If not, it is parked here."""
        if not isinstance(limiter, RateLimit):
            if limiter is not None:
                self._managers[job] = limiter
            return True
        lane = self._released.pop(job, None)
        if lane is not None:
            lane.has_released = False
            if not limiter.take(now):
                self._left = lane
                return True
            self._park(job, lane, lane.order.put_back)  # another pool was faster
            return False
        lane = self._lanes.get(limiter)
        # With a lane, the jobs parked there come first; unless the released one is behind this job in the queue, which
        # is more urgent then.
        if (lane is None or lane.has_released) and not limiter.take(now):
            return True
        if lane is None:
            lane = self._lanes[limiter] = _Lane(limiter, self._make_order())
            limiter.join()
        self._park(job, lane, lane.order.put_in if job.prior is None else lane.order.put_back)
        return False

    def _park(self, job: Job, lane: _Lane, add: Callable[[Job], None]) -> None:
        self._parked[job] = lane
        add(job)
        self._ledger.delay(job)
        if not lane.has_released and not lane.has_timer:
            self._serve(lane)

    def started(self) -> None:
        """Release the next of its lane, now that the job that was admitted has started.

        Not earlier: a job on its way is neither queued nor running, and the room that it leaves is not free.
        """
        lane, self._left = self._left, None
        if lane is not None:
            self._serve(lane, has_taken=True)

    def stop_reuse_check(self, limiter_of: Callable[[Any], object]) -> None:
        """Call the user's function directly from now on."""
        self._limiter_of = limiter_of

    def manager_of(self, job: Job) -> AbstractAsyncContextManager[Any] | None:
        """Return, once, the context manager to run the attempt in, if the job has one."""
        return self._managers.pop(job, None)

    def discard(self, job: Job) -> bool:
        """Note that a waiting job was just settled; return whether it was parked here, and not in the queue."""
        lane = self._released.pop(job, None)
        if lane is not None:
            lane.has_released = False
            self._serve(lane)
            return False
        lane = self._parked.pop(job, None)
        if lane is None:
            return False
        lane.order.discard_settled()
        self._ledger.undelay(job)
        if not lane.order and lane.has_timer:
            lane.has_timer = False
            self._timers.discard(lane)
            self._serve(lane)
        return True

    def close(self) -> None:
        """Drop the timer. All jobs are settled."""
        self._timers.clear()

    def _on_due(self, lane: _Lane) -> None:
        lane.has_timer = False
        self._serve(lane)

    def _serve(self, lane: _Lane, *, has_taken: bool = False) -> None:
        """Release the first job of a lane, or set the timer for it, or drop the lane: the invariant of `_Lane`."""
        if not lane.order:
            del self._lanes[lane.limit]
            lane.limit.leave()
        elif lane.limit.next_start > self._time():
            lane.has_timer = True
            self._timers.schedule(lane.limit.when_to_ask(lets_others_first=has_taken and lane.limit.users > 1), lane)
        else:
            job = lane.order.pop()
            assert job is not None
            del self._parked[job]
            self._released[job] = lane
            lane.has_released = True
            self._queue.put_back(job)
            self._wakeups.job_came_back()
