"""Where jobs wait for their rate limit when not all jobs have the same: a lane for each limit that is closed.

A job is asked for when a worker would start it. What must wait goes to the lane of its limit, so that jobs of other
limits go past it; when the limit opens, the first of the lane goes back to the queue, before all that is fresh there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from typing import Any

from asyncpool._core.job import Job
from asyncpool._core.queue import ReturnQueue
from asyncpool._core.timers import Alarms
from asyncpool.rate import RateLimit, is_manager

__all__ = ["Gate"]


class _Lane:
    """The jobs that wait for one limit.

    Invariant: as long as it is in use, either one of its jobs is released (back in the queue, to be asked for again)
    or its alarm is set. So its jobs start in their order, and no two wake for the same opening.
    """

    __slots__ = ("has_alarm", "has_released", "limit", "queue")

    def __init__(self, limit: RateLimit, queue: ReturnQueue) -> None:
        self.limit = limit
        self.queue = queue
        self.has_released = False
        self.has_alarm = False


class Gate:
    """Asks for each job whether it may start, and keeps those that may not yet.

    Args:
        limiter_of: The limit of a job, or another context manager to run it in, or None.
        make_queue: Makes the queue of a lane.
        put_back: Takes a job back into the queue, to be asked for again.
    """

    __slots__ = (
        "_alarms",
        "_lanes",
        "_left",
        "_limiter_of",
        "_make_queue",
        "_managers",
        "_parked",
        "_put_back",
        "_released",
        "_time",
    )

    def __init__(
        self,
        limiter_of: Callable[[Any], object],
        make_queue: Callable[[], ReturnQueue],
        put_back: Callable[[Job], None],
    ) -> None:
        self._limiter_of = limiter_of
        self._make_queue = make_queue
        self._put_back = put_back
        self._lanes: dict[RateLimit, _Lane] = {}
        self._parked: dict[Job, _Lane] = {}
        self._released: dict[Job, _Lane] = {}
        self._left: _Lane | None = None  # by the job that was just admitted
        # The context managers of jobs that are about to begin.
        self._managers: dict[Job, AbstractAsyncContextManager[Any]] = {}
        self._alarms: Alarms[_Lane] = Alarms(self._ring, lambda lane: lane.has_alarm)

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._time = loop.time
        self._alarms.open(loop, context)

    @property
    def size(self) -> int:
        """How many jobs are parked."""
        return len(self._parked)

    def __iter__(self) -> Iterator[Job]:
        """The parked jobs."""
        return iter(self._parked)

    @property
    def waits_for_a_time(self) -> bool:
        """Whether some lane does. Else all that is parked waits for workers."""
        return self._alarms.size > 0

    def limiter_of(self, job: Job) -> RateLimit | AbstractAsyncContextManager[Any] | None:
        """Return what limits a job that is queued: the user's function decides, and may raise.

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
            "the function that is the limiter must return a RateLimit, an async context manager or None, "
            f"got {limiter!r:.80}"
        )

    def admit_or_park(self, job: Job, limiter: RateLimit | AbstractAsyncContextManager[Any] | None, now: float) -> bool:
        """Return whether a job that was just taken from the queue may start now. If not, it is parked here."""
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
            self._park(job, lane, lane.queue.put_back)  # another pool was faster
            return False
        lane = self._lanes.get(limiter)
        # With a lane, those that wait there come first; unless the one that was released is behind this job in the
        # queue, which is more urgent then.
        if (lane is None or lane.has_released) and not limiter.take(now):
            return True
        if lane is None:
            lane = self._lanes[limiter] = _Lane(limiter, self._make_queue())
            limiter.join()
        self._park(job, lane, lane.queue.put_in if job.past is None else lane.queue.put_back)
        return False

    def _park(self, job: Job, lane: _Lane, add: Callable[[Job], None]) -> None:
        self._parked[job] = lane
        add(job)
        if not lane.has_released and not lane.has_alarm:
            self._serve(lane)

    def begun(self) -> None:
        """Let the next of its lane be released, as the job that was admitted has begun.

        Not before: a job that is on its way is neither queued nor running, and the room that it leaves is not free.
        """
        lane, self._left = self._left, None
        if lane is not None:
            self._serve(lane, has_taken=True)

    def manager_of(self, job: Job) -> AbstractAsyncContextManager[Any] | None:
        """The context manager to run the attempt in, if the job has one. To be asked for once."""
        return self._managers.pop(job, None)

    def forget(self, job: Job) -> bool:
        """Say that a waiting job was just settled; return whether it was parked here, and not in the queue."""
        lane = self._released.pop(job, None)
        if lane is not None:
            lane.has_released = False
            self._serve(lane)
            return False
        lane = self._parked.pop(job, None)
        if lane is None:
            return False
        lane.queue.forget()
        if not lane.queue.size and lane.has_alarm:
            lane.has_alarm = False
            self._alarms.forget(lane)
            self._serve(lane)
        return True

    def close(self) -> None:
        """Drop the timer. All jobs are settled."""
        self._alarms.clear()

    def _ring(self, lane: _Lane) -> None:
        lane.has_alarm = False
        self._serve(lane)

    def _serve(self, lane: _Lane, *, has_taken: bool = False) -> None:
        """Release the first job of a lane, or set the alarm for it, or give the lane up: the invariant of `_Lane`."""
        if not lane.queue.size:
            del self._lanes[lane.limit]
            lane.limit.leave()
        elif lane.limit.next_start > self._time():
            lane.has_alarm = True
            self._alarms.set(lane.limit.when_to_ask(lets_others_first=has_taken and lane.limit.users > 1), lane)
        else:
            job = lane.queue.pop()
            assert job is not None
            del self._parked[job]
            self._released[job] = lane
            lane.has_released = True
            self._put_back(job)
