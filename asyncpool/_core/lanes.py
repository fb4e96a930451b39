"""Where jobs wait for their limits: a FIFO lane for those that have the same limits, and the slots that attempts hold.

The limits of a job are checked when a worker would start it (`gated.py`): all are taken in one step, or none. A job
that must wait is parked in the lane of its limits, so that jobs with other limits go past it. The lane waits for one
limit at a time, the one that has denied its first job. When that opens, the first job goes back to the queue, before
all that are fresh there, and is checked again; if another limit denies it now, the lane waits for that.

So a job is never moved from the lane of one limit to that of another. With two limits for all jobs, each opening of one
could move each job that waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncpool._core.claims import Claims, Resolver
from asyncpool._core.job import Job
from asyncpool._core.ledger import Ledger
from asyncpool._core.orders import ReentryOrder
from asyncpool._core.queue import JobQueue
from asyncpool._core.wakeups import Wakeups
from asyncpool.limits.line import Limit

__all__ = ["Lanes"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


class _Lane:
    """The jobs that have the same limits, and wait.

    Invariant: while it is in use, either its first job is released (back in the queue, to be asked for again) or it
    waits at a place. So its jobs start in their order (tests/laws:
    parked_jobs_start_in_the_moment_in_which_their_limit_opens, jobs_of_a_key_run_in_their_order).
    """

    __slots__ = ("entry", "limits", "order", "place", "released")

    def __init__(self, limits: tuple[Limit, ...], order: ReentryOrder) -> None:
        self.limits = limits
        self.order = order
        self.released: Job | None = None
        self.place: _Place | None = None
        self.entry: Job | None = None  # its first job, as its place knows it


class _Place:
    """The lanes of one pool that wait for one limit: the pool's place in the line of that limit.

    Invariant: while lanes wait here, it is in the line of its limit, or a job that it has released is in the queue
    (tests/laws: limits_are_shared_changed_and_charged).
    """

    __slots__ = ("_lanes", "is_in_line", "lanes", "limit", "order", "released", "unordered", "weight")

    def __init__(self, limit: Limit, order: ReentryOrder, lanes: Lanes) -> None:
        self._lanes = lanes
        self.limit = limit
        # The first job of each lane. There can be others, which were first before: see `Lanes._first_of`.
        self.order = order
        self.unordered: list[_Lane] = []  # lanes whose first job has changed, and is not in the order yet
        self.lanes = 0  # how many wait
        self.weight = 1.0  # of the first job
        self.is_in_line = False
        self.released: Job | None = None

    def offer(self) -> bool:
        self.is_in_line = False
        self._lanes.serve(self, is_offered=True)
        return self.released is None

    def limit_changed(self) -> None: ...


class Lanes:
    """Decides for each job whether it can start, and keeps those that cannot yet.

    Args:
        resolver: Says what a job claims.
        make_order: Makes the order of a lane. Not a queue: an `asyncio.Queue` takes 3 KiB, and there can be a lane for
            each host.
    """

    __slots__ = (
        "__weakref__",
        "_claims",
        "_held",
        "_lanes",
        "_ledger",
        "_left",
        "_make_order",
        "_managers",
        "_parked",
        "_places",
        "_queue",
        "_released",
        "_resolver",
        "_time",
        "_wakeups",
    )

    def __init__(
        self,
        resolver: Resolver,
        make_order: Callable[[], ReentryOrder],
        queue: JobQueue,
        ledger: Ledger,
        wakeups: Wakeups,
    ) -> None:
        self._resolver = resolver
        self._make_order = make_order
        self._queue = queue
        self._ledger = ledger
        self._wakeups = wakeups
        self._lanes: dict[tuple[Limit, ...], _Lane] = {}
        self._places: dict[Limit, _Place] = {}
        self._parked: dict[Job, _Lane] = {}
        # Jobs that are back in the queue, with the place that has released them, if one has.
        self._released: dict[Job, tuple[_Lane, _Place | None]] = {}
        self._claims: dict[Job, Claims] = {}  # of jobs that are parked or released
        # By the job that was just admitted. The next of the lane is released only when that runs: on its way a job is
        # counted nowhere (tests/laws: a_limiter_function_does_as_it_likes).
        self._left: tuple[_Lane, _Place | None] | None = None
        # The context managers of jobs that are about to begin.
        self._managers: dict[Job, tuple[AbstractAsyncContextManager[Any], ...]] = {}
        # The limits of attempts that hold slots. Invariant: an attempt leaves it when it has ended, however
        # (tests/laws: slots_are_given_back_however_attempts_end).
        self._held: dict[Job, tuple[Limit, ...]] = {}

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind to the running loop."""
        self._time = loop.time
        self._resolver.open(loop)

    def __iter__(self) -> Iterator[Job]:
        """The parked jobs."""
        return iter(self._parked)

    @property
    def shared(self) -> tuple[Limit, ...]:
        """The limits that every job has."""
        return self._resolver.shared

    # -- One job: asked, admitted or parked --------------------------------------------------------------------------

    def claims_of(self, job: Job) -> Claims:
        """Return what a job claims that is queued: the user's functions decide, and can raise.

        Raises:
            Exception: See `Resolver`.
        """
        if job in self._released:
            claims = self._claims[job]
            claims.check()  # the limits may have been changed meanwhile
            return claims
        return self._resolver(job.input)

    def admit_or_park(self, job: Job, claims: Claims, now: float) -> bool:
        """Return whether a job that was just taken from the queue can start now. If not, it is parked here."""
        if not self._lanes and len(claims.limits) == 1:  # nobody waits here, and most jobs have one limit
            limit = claims.limits[0]
            if limit.take_if_free(now, claims.weights[0]):
                if limit.has_slots or claims.managers:
                    self._admit(job, claims)
                return True
        released = self._released.pop(job, None) if self._released else None
        if released is None:
            lane, place = (self._lanes.get(claims.limits) if self._lanes else None), None
            # With a lane, the jobs parked there come first; unless the released one is behind this job in the queue,
            # which is more urgent then.
            if lane is not None and lane.released is None:
                self._park(job, lane, claims)
                self._wakeups.job_parked()
                return False
            denied = self._denied_by(claims, now)
        else:
            lane, place = released
            self._note_gone(lane, place)
            # It has waited for its turn at one limit. To wait for one at the next, and then perhaps at the first again,
            # could go on without end (tests/laws: limits_are_shared_changed_and_charged).
            denied = claims.denied_by(now)
        if denied is None:
            self._take(job, claims, now)
            if lane is not None and released is not None:
                self._left = lane, place
            return True
        if lane is None:
            lane = self._lanes[claims.limits] = _Lane(claims.limits, self._make_order())
        self._park(job, lane, claims)
        if lane.place is None and lane.released is None:
            self._wait_at(lane, denied)
        if place is not None:
            self.serve(place)
        self._wakeups.job_parked()
        return False

    def started(self) -> None:
        """Release the next of its lane, now that the job that was admitted has started.

        Not earlier: a job on its way is neither queued nor running, and the room that it leaves is not free.
        """
        left, self._left = self._left, None
        if left is not None:
            lane, place = left
            self._advance(lane)
            if place is not None:
                self.serve(place)

    def managers_of(self, job: Job) -> tuple[AbstractAsyncContextManager[Any], ...]:
        """Return, once, the context managers to run the attempt in."""
        return self._managers.pop(job, ())

    def discard(self, job: Job) -> bool:
        """Note that a waiting job was just settled; return whether it was parked here, and not in the queue."""
        released = self._released.pop(job, None)
        if released is not None:
            lane, place = released
            self._claims.pop(job, None)
            self._note_gone(lane, place)
            self._advance(lane)
            if place is not None:
                self.serve(place)
            return False
        parked_in = self._parked.pop(job, None)
        if parked_in is None:
            return False
        self._claims.pop(job, None)
        self._ledger.undelay(job)
        parked_in.order.discard_settled()
        self._first_has_changed(parked_in, job)
        return True

    def close(self) -> None:
        """Leave all lines. All jobs are settled."""
        for place in self._places.values():
            place.limit.leave(place)
        self._places.clear()
        self._lanes.clear()

    def _denied_by(self, claims: Claims, now: float) -> Limit | None:
        """Return the first limit that a newcomer must wait for, because it is closed, or others wait already."""
        for limit, weight in zip(claims.limits, claims.weights, strict=True):
            place = self._places.get(limit) if self._places else None
            waits = place is not None and place.lanes > 0 and place.released is None
            if waits or not limit.is_turn_of(place) or limit.opens_at(weight) > now:
                return limit
        return None

    def _take(self, job: Job, claims: Claims, now: float) -> None:
        self._claims.pop(job, None)
        for limit, weight in zip(claims.limits, claims.weights, strict=True):
            limit.take(now, weight)
        self._admit(job, claims)

    def _admit(self, job: Job, claims: Claims) -> None:
        if any(limit.has_slots for limit in claims.limits):
            self._held[job] = claims.limits
            self._wakeups.leave_fast_path()
        if claims.managers:
            self._managers[job] = claims.managers

    def _park(self, job: Job, lane: _Lane, claims: Claims) -> None:
        self._parked[job] = lane
        self._claims[job] = claims
        lane.order.put_in(job)
        self._ledger.delay(job)
        place = lane.place
        if place is not None and lane.entry is not None and lane.order.peek() is job:  # it goes before the others
            lane.entry = job
            place.order.put_in(job)
            self._first_of(place)

    # -- Lanes and places --------------------------------------------------------------------------------------------

    def _advance(self, lane: _Lane) -> None:
        """Let a lane wait for what its first job needs, or drop it if it is empty: the invariant of `_Lane`."""
        if lane.place is not None or lane.released is not None:
            return
        job = lane.order.peek()
        if job is None:
            self._lanes.pop(lane.limits, None)
            return
        denied = self._denied_by(self._claims[job], self._time())
        if denied is None:
            self._release(lane, None)
        else:
            self._wait_at(lane, denied)

    def _wait_at(self, lane: _Lane, limit: Limit) -> None:
        place = self._places.get(limit)
        if place is None:
            place = self._places[limit] = _Place(limit, self._make_order(), self)
        lane.place = place
        place.lanes += 1
        place.unordered.append(lane)
        self.serve(place)

    def serve(self, place: _Place, *, is_offered: bool = False) -> None:
        """Release the first job at a place, or wait in the line of its limit, or drop it: the invariant of `_Place`."""
        if place.released is not None:
            return
        lane, limit = self._first_of(place), place.limit
        if lane is None:
            limit.leave(place)
            if self._places.get(limit) is place:
                del self._places[limit]
        elif place.is_in_line:
            return
        elif limit.opens_at(place.weight) <= self._time() and (is_offered or limit.is_turn_of(place)):
            place.order.popleft()
            place.lanes -= 1
            lane.place = lane.entry = None
            self._release(lane, place)
        else:
            place.is_in_line = True
            limit.join(place, first=is_offered)  # again, if another job is the first now, of a larger weight

    def _release(self, lane: _Lane, place: _Place | None) -> None:
        job = lane.order.pop()
        assert job is not None
        del self._parked[job]
        self._released[job] = lane, place
        lane.released = job
        if place is not None:
            place.released = job
        self._queue.put_back(job)
        self._wakeups.job_came_back()

    def _note_gone(self, lane: _Lane, place: _Place | None) -> None:
        """Note that the released job of a lane is in the queue no more."""
        lane.released = None
        if place is not None:
            place.released = None

    def _first_has_changed(self, lane: _Lane, job: Job) -> None:
        """Note that a job of a lane has left it that may have been the first."""
        place, was_first = lane.place, lane.entry is job
        if place is None:
            return
        if was_first:
            lane.entry = None
            place.order.discard_settled()
        if lane.entry is None and lane.order.peek() is None:
            # Also if the lane was still unordered (test_a_lane_that_is_emptied_while_its_place_has_released_a_job).
            place.lanes -= 1
            lane.place = None
            self._advance(lane)
        elif was_first:
            place.unordered.append(lane)
        else:
            return
        self.serve(place)

    def _first_of(self, place: _Place) -> _Lane | None:
        """Return the lane whose first job comes first; note its weight."""
        while place.unordered:
            lane = place.unordered.pop()
            first = lane.order.peek()
            if lane.place is place and lane.entry is None and first is not None:
                lane.entry = first
                place.order.put_in(first)
        while (job := place.order.peek()) is not None:
            lane_of = self._parked.get(job)
            if lane_of is not None and lane_of.place is place and lane_of.entry is job:
                claims = self._claims[job]
                weight = claims.weights[claims.limits.index(place.limit)]
                if weight != place.weight:
                    place.weight = weight
                    if place.is_in_line:
                        place.limit.rearm()
                return lane_of
            place.order.popleft()  # it was first before another came, and its lane is elsewhere by now
        return None

    # -- Slots -------------------------------------------------------------------------------------------------------

    @property
    def holds_slots(self) -> bool:
        """Whether attempts hold slots that they must give back when they end."""
        return bool(self._held)

    def attempt_ended(self, job: Job) -> None:
        """Give back the slots of an attempt. Safe to repeat."""
        if self._held:
            for limit in self._held.pop(job, ()):
                limit.release_slot()

    def holders_of(self, limit: Limit) -> list[Job]:
        """The jobs whose attempts hold slots of a limit."""
        return [job for job, limits in self._held.items() if limit in limits]

    def obstacle_of(self, job: Job) -> Limit | Job | None:
        """Return what a wait for a job waits for: the job, if it runs, or the limit whose slots it is parked for.

        None: it is delayed, waits for a worker, or is done.
        """
        if job.is_running:
            return job
        lane = self._parked.get(job)
        place = None if lane is None else lane.place
        return place.limit if place is not None and place.is_in_line and place.limit.has_slots else None

    def can_open(self, limit: Limit, stuck: Container[Job]) -> bool:
        """Return whether a slot is free, or something else than these jobs can release one: a job, pool, other code."""
        holders = self.holders_of(limit)
        is_open = limit.opens_at(1.0) < math.inf
        return is_open or len(holders) < limit.held or any(job not in stuck for job in holders)

    @property
    def waits_for_others(self) -> bool:
        """Whether a lane waits for a rate, or for a slot that other pools or code hold. Otherwise all parked jobs wait
        for workers, or for running jobs of this pool.
        """
        return any(
            place.is_in_line and (not place.limit.has_slots or place.limit.held > len(self.holders_of(place.limit)))
            for place in self._places.values()
        )
