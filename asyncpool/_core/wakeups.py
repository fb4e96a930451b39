"""Who waits, who must be woken when something changes, and when the end of a job has more to do than to let its worker
go on.

This table is the only place that decides it; the methods below are its rows.

    what changed                                  start   wake     let sub-    check for  notify
                                                  jobs    scaler   mitters in  deadlock   waiters
    job accepted                                  yes     asleep                                     (1)
    job_came_back   its backoff is over,          yes     yes      yes         yes
                    its rate limit is open
    job_parked      its limit is closed                                        yes
    job_left        cancelled or expired                  yes      yes         yes        yes
                    while it waited
    job_ended       its worker is free            yes              yes                    yes        (1)
    worker_ready    its resource is entered       yes     yes      yes
    worker_slow     it has waited some seconds            yes
                    for its resource
    worker_gone                                                                yes        yes
    pause_changed                                 lifted  yes      lifted
    size_changed                                  yes              yes (2)     yes
    submitter_waits                                       yes                  yes (3)
    submitter_rejected                                    yes
    limiter_entered                                       yes
    child_gone      a resource task or feeder                                             yes

(1) The hot path does this itself: see `dispatch.py`. A scaler that sleeps is woken by the queue's `append`, or by the
next housekeeping.  (2) And into the windows of streams and groups.  (3) By `Deadlock.wait`, which it waits in.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from asyncpool._core.ledger import Ledger
from asyncpool._core.state import State
from asyncpool.errors import PoolError

__all__ = ["Producer", "Producers", "WaitLine", "Wakeups", "wake"]

# How often what was measured is sorted into the histograms: some thousand jobs end in that time, at most.
_HOUSEKEEPING_SECONDS = 0.002


def wake(future: asyncio.Future[None]) -> None:
    """Let the waiter of a future go on, unless it does already."""
    if not future.done():
        future.set_result(None)


class WaitLine:
    """A fair line of callers that wait for room; how much there is, is the rule of its owner.

    Invariant: `waiting` is empty, or there is no room that is not promised (tests/laws: the_impatient_do_not_overtake).
    Code that makes room must call `wake_next()`.

    A place that is granted is promised until its waiter resumes, so that nobody takes it in between. A waiter that is
    cancelled in between passes it on (test_cancelled_submitter_passes_its_place_on).
    """

    __slots__ = ("_closed", "_promised", "_room", "wait", "waiting")

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        # How to wait for a future of the line; None: just await it. Set while the parts are wired, if at all.
        self.wait: Callable[[asyncio.Future[None]], Awaitable[None]] | None = None
        self._promised = 0
        self._closed: Callable[[], BaseException] | None = None
        # A dict, for its order and its removal in O(1): a thousand waiters can be cancelled in one loop iteration.
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    def is_free(self) -> bool:
        """Whether there is room, and nobody waits for it."""
        return not self.waiting and not self._promised and self._room() > 0

    async def wait_turn(self, also_in: set[asyncio.Future[None]] | None = None) -> None:
        """Wait until there is room and all earlier waiters have theirs. The caller must use it, or call `wake_next()`.

        While it waits, its future is also in `also_in`, whose owner can turn it away with an exception. Cancel-safe: a
        place that was granted meanwhile goes to the next.

        Raises:
            BaseException: What `close()` was given, if the line is closed.
        """
        if self._closed is not None:
            raise self._closed()
        if self.is_free():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting[future] = None
        self.wake_next()  # there may be room beside what is promised to those who have not resumed yet
        if also_in is not None:
            also_in.add(future)
        try:
            if future.done():  # granted just now, but those before us have not resumed yet
                await asyncio.sleep(0)
            await (future if self.wait is None else self.wait(future))
        except BaseException:
            self.waiting.pop(future, None)
            granted = future.done() and not future.cancelled() and future.exception() is None
            if granted and self._closed is None:
                self._promised -= 1
                self.wake_next()
            raise
        finally:
            if also_in is not None:
                also_in.discard(future)
            del future  # an error that ends the wait is in it, and knows this frame
        if self._closed is not None:  # closed between the grant and now
            raise self._closed()
        self._promised -= 1

    def wake_next(self) -> None:
        """Grant the room there is to the first in the line."""
        while self.waiting and self._room() > self._promised:
            future, _ = self.waiting.popitem(last=False)
            if not future.done():
                self._promised += 1
                future.set_result(None)

    def close(self, error: Callable[[], BaseException]) -> None:
        """Turn everybody away, now and later, each with an error of their own."""
        self._closed = error
        self._promised = 0
        while self.waiting:
            future, _ = self.waiting.popitem(last=False)
            wake(future)


class Producer(Protocol):
    """A stream or group that brings jobs."""

    @property
    def line(self) -> WaitLine:
        """Who waits for room in its window, which grows with the pool."""
        ...

    def stop(self, error: PoolError, /) -> None:
        """Bring no more jobs, because the pool closes; a reader that reads to the end gets the error."""
        ...

    def stop_waiting_for_feeder(self) -> None:
        """Do not wait for the feeder any more: it ignores its cancellation."""
        ...


class Producers:
    """The streams and groups that can still bring jobs, in the order of their registration. None is kept alive here."""

    __slots__ = ("_producers",)

    def __init__(self) -> None:
        self._producers: WeakKeyDictionary[Producer, None] = WeakKeyDictionary()

    def add(self, producer: Producer) -> None:
        """Register a producer."""
        self._producers[producer] = None

    def discard(self, producer: Producer) -> None:
        """Forget a producer that brings no more jobs."""
        self._producers.pop(producer, None)

    def __contains__(self, producer: object) -> bool:
        return producer in self._producers

    def __iter__(self) -> Iterator[Producer]:
        """Those registered now; producers can come and go meanwhile."""
        return iter(list(self._producers))


class Wakeups:
    """The bells of a pool. The parts that a change concerns are connected once they exist."""

    __slots__ = (
        "_check_deadlock",
        "_housekeep_at",
        "_ledger",
        "_line",
        "_must_leave_fast_path",
        "_producers",
        "_start_jobs",
        "_start_lifted",
        "_start_returned",
        "_state",
        "_wake_scaler",
        "_watchers",
        "fast_until",
    )

    def __init__(self, state: State, ledger: Ledger, producers: Producers) -> None:
        self._state = state
        self._ledger = ledger
        self._producers = producers
        # Who waits for what: checked whenever a job has ended, a worker is gone, or a state or deadline changed.
        self._watchers: dict[asyncio.Future[None], Callable[[], bool]] = {}
        # Until this loop time jobs end by the fast path; then `housekeep` finds out whether they go on to.
        # Invariant: -inf while one of `_must_leave_fast_path` is true; code that makes it true calls `leave_fast_path`
        # (test_surplus_workers_retire_with_the_very_next_jobs_that_end).
        self.fast_until = -math.inf
        self._housekeep_at = -math.inf

    def connect(
        self,
        *,
        line: WaitLine,
        start_jobs: Callable[[], None],
        wake_scaler: Callable[[], None],
        check_deadlock: Callable[[], None],
        must_leave_fast_path: tuple[Callable[[], object], ...],
        start_returned: Callable[[], None] | None = None,
        start_lifted: Callable[[], None] | None = None,
    ) -> None:
        """Connect the parts that are woken. How to start a job that came back, and after a pause, can have more to do:
        workers may have been idle for long then.
        """
        self._line = line
        self._start_jobs = start_jobs
        self._start_returned = start_jobs if start_returned is None else start_returned
        self._start_lifted = start_jobs if start_lifted is None else start_lifted
        self._wake_scaler = wake_scaler
        self._check_deadlock = check_deadlock
        self._must_leave_fast_path = must_leave_fast_path

    # -- The rows of the table ---------------------------------------------------------------------------------------

    def job_accepted(self) -> None:
        """A job is queued in a pool without workers. Otherwise the hot path does this itself."""
        self._wake_scaler()

    def job_came_back(self) -> None:
        """A delayed job is queued again. If room was missing where delayed jobs are, there is some; if not, the wait
        for it can be a deadlock.
        """
        self._wake_scaler()
        self._start_returned()
        self._line.wake_next()
        self._check_deadlock()

    def job_parked(self) -> None:
        """A job must wait for its limit. If running jobs keep that closed, a wait for this job can be a deadlock."""
        self._check_deadlock()

    def job_left(self) -> None:
        """A waiting job is settled. It may have been all that was still to come."""
        self._wake_scaler()
        self._line.wake_next()
        self._check_deadlock()
        self.notify()

    def job_ended(self) -> None:
        """A running job has ended, and its worker goes on."""
        if self._line.waiting:
            self._line.wake_next()
        self.notify()

    def worker_ready(self) -> None:
        """A worker with a resource is idle."""
        self._wake_scaler()
        self._start_jobs()
        self._line.wake_next()

    def worker_slow(self) -> None:
        """A worker has waited for its resource so long that nothing should depend on it any more."""
        self._wake_scaler()

    def worker_gone(self) -> None:
        """A worker has left."""
        self._check_deadlock()
        self.notify()

    def pause_changed(self, *, is_lifted: bool) -> None:
        """There is one reason more, or less, not to take jobs."""
        self.leave_fast_path()
        self._wake_scaler()
        if is_lifted:
            self._start_lifted()
            self._line.wake_next()

    def size_changed(self) -> None:
        """There are, or can be, more workers, or fewer. The queue and the windows of streams grow with them."""
        self._start_jobs()
        self._line.wake_next()
        for producer in self._producers:
            producer.line.wake_next()
        self._check_deadlock()

    def submitter_waits(self) -> None:
        """A submitter begins to wait for room."""
        self._wake_scaler()

    def submitter_rejected(self) -> None:
        """A submitter that does not wait was turned away."""
        self._wake_scaler()

    def limiter_entered(self) -> None:
        """A job that holds a worker has passed its limiter."""
        self._wake_scaler()

    def notify(self) -> None:
        """Wake those in `wait_until` whose condition holds."""
        if self._watchers:
            for future, holds in list(self._watchers.items()):
                if holds():
                    wake(future)

    # -- Waiting for a condition -------------------------------------------------------------------------------------

    async def wait_until(self, holds: Callable[[], bool], *, until: float = math.inf) -> None:
        """Wait until a condition holds, for one moment at least, or until a loop time. Cancel-safe."""
        if holds():
            return
        loop = self._state.loop
        future: asyncio.Future[None] = loop.create_future()
        self._watchers[future] = holds
        self.leave_fast_path()
        timer = None if until == math.inf else loop.call_at(until, wake, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            del self._watchers[future]

    @property
    def is_awaited(self) -> bool:
        """Whether somebody is in `wait_until`."""
        return bool(self._watchers)

    def is_awaited_by(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task is in `wait_until`, as far as its loop shows that."""
        waits_for = getattr(task, "_fut_waiter", None)
        return any(future is waits_for for future in self._watchers)

    # -- The fast path -----------------------------------------------------------------------------------------------

    def leave_fast_path(self) -> None:
        """Have the next job that ends find out what there is to do, whatever its time."""
        self.fast_until = -math.inf

    def housekeep_next(self) -> None:
        """Have the next job that ends do the housekeeping, and so wake the scaler."""
        self._housekeep_at = self.fast_until = -math.inf

    def housekeep(self, now: float) -> None:
        """Do what need not be done for each job, if it is due."""
        if now < self._housekeep_at:
            return
        self._housekeep_at = now + _HOUSEKEEPING_SECONDS
        is_special = bool(self._watchers) or any(condition() for condition in self._must_leave_fast_path)
        self.fast_until = -math.inf if is_special else self._housekeep_at
        self._wake_scaler()
        self._ledger.flush(now)
