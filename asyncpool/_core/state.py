"""Where in its life a pool is, and what callers can do there.

Who moves it from one phase to the next is `life.py`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol
from weakref import WeakSet

from asyncpool._guard import set_cause
from asyncpool.errors import PoolClosed, PoolError, PoolNotStarted, WrongLoop

__all__ = ["Phase", "PoolUser", "State"]


class Phase(Enum):
    """The phases of a pool's life, in their order."""

    NEW = "new"
    STARTING = "starting"
    OPEN = "open"
    DRAINING = "draining"
    STOPPING = "stopping"
    CLOSED = "closed"


_NEXT = {
    Phase.NEW: (Phase.STARTING, Phase.CLOSED),
    Phase.STARTING: (Phase.OPEN, Phase.DRAINING),
    Phase.OPEN: (Phase.DRAINING,),
    Phase.DRAINING: (Phase.STOPPING,),
    Phase.STOPPING: (Phase.CLOSED,),
    Phase.CLOSED: (),
}


def _raise(error: BaseException) -> None:
    raise error


class PoolUser(Protocol):
    """What must know that a pool is closed."""

    def pool_closed(self, pool: State, /) -> None:
        """Note that a pool is closed. Must not raise."""
        ...


class State:
    """The one state of a pool. `life.py` writes it; everybody reads it.

    Invariant: `takes_jobs` is true in STARTING and OPEN, and in no other phase (test_states.py walks the table).
    """

    __slots__ = (
        "__weakref__",
        "cause",
        "closed_at",
        "is_interrupted",
        "loop",
        "name",
        "opened_at",
        "phase",
        "supervisor",
        "takes_jobs",
        "thread",
        "time",
        "users",
    )

    loop: asyncio.AbstractEventLoop
    """The loop that the pool was started on; unset before, see `is_bound`."""

    thread: int
    """The thread in which that loop runs, whenever it runs."""

    time: Callable[[], float]
    """The clock of that loop: one for all parts, whatever the loop makes of `loop.time()`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.phase = Phase.NEW
        self.takes_jobs = False  # else accepted jobs are settled as cancelled at once
        self.supervisor: asyncio.Task[None] | None = None
        self.cause: PoolError | None = None
        """Why the pool ended by itself, if it did."""
        self.is_interrupted = False
        """Whether an interrupt (KeyboardInterrupt) has left the block of the pool. It may have lost tasks."""
        self.opened_at: float | None = None
        self.closed_at: float | None = None
        # Notified once, when the pool is closed. Weak: a handler may make one for each job.
        self.users: WeakSet[PoolUser] = WeakSet()

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop from now on."""
        self.loop = loop
        self.thread = threading.get_ident()
        # The standard loops read time.monotonic() in a Python method; the hot path calls the clock itself.
        is_standard = type(loop).time is asyncio.BaseEventLoop.time
        self.time = time.monotonic if is_standard else loop.time  # noqa: TID251  # it is the loop's clock
        self.opened_at = self.time()

    def move(self, phase: Phase) -> None:
        """Enter the next phase."""
        assert phase in _NEXT[self.phase], f"from {self.phase} to {phase}"
        self.phase = phase
        self.takes_jobs = phase is Phase.STARTING or phase is Phase.OPEN
        if phase is Phase.CLOSED:
            self.closed_at = None if self.opened_at is None else self.time()
            for user in list(self.users):
                user.pool_closed(self)

    @property
    def seconds(self) -> float:
        """For how many seconds the pool has run, or ran if it is closed; 0.0 if it was never started."""
        if self.opened_at is None:
            return 0.0
        return (self.time() if self.closed_at is None else self.closed_at) - self.opened_at

    @property
    def is_bound(self) -> bool:
        """Whether the pool was ever started."""
        return hasattr(self, "loop")

    @property
    def is_starting(self) -> bool:
        """Whether `start()` goes on."""
        return self.phase is Phase.STARTING

    @property
    def is_closing(self) -> bool:
        """Whether the pool has been asked to stop, or is closed."""
        return self.phase in (Phase.DRAINING, Phase.STOPPING, Phase.CLOSED)

    def is_loop_shutting_down(self) -> bool:
        """Whether somebody cancels every task, as asyncio.run does at its end.

        The supervisor is cancelled in the same turn as the jobs. So what cancelled them is the shutdown, not a failure
        of their own, and their inputs are to be handed back.
        """
        return self.supervisor is not None and self.supervisor.cancelling() > 0

    def raise_later(self, error: BaseException) -> None:
        """Raise what is the program's, a KeyboardInterrupt, in a loop iteration of its own.

        Raised where it came, in user code that a step of the pool calls, it would leave that step half done.
        """
        self.loop.call_soon(_raise, error)

    # -- What callers get wrong --------------------------------------------------------------------------------------

    def check_started(self) -> None:
        """Raise unless the pool was started, on the loop that runs here."""
        if not self.is_bound:
            if self.phase is Phase.CLOSED:
                raise self.closed_error()
            raise PoolNotStarted(
                f"pool {self.name!r} is not started: use `async with pool:`, or `await pool.start()` first"
            )
        self.check_loop()

    def check_loop(self) -> None:
        """Raise unless the pool's loop runs in this thread."""
        running = asyncio._get_running_loop()
        if running is not self.loop:
            raise WrongLoop(f"pool {self.name!r} {self._way_to_loop(has_loop=running is not None)}")

    def _way_to_loop(self, *, has_loop: bool) -> str:
        """What is wrong with a call from here, and what works: test_wrong_loop.py does what this says."""
        if self.loop.is_closed():
            return "belongs to an event loop that is closed: create a new pool in each asyncio.run()"
        if self.thread == threading.get_ident() or not self.loop.is_running():
            # Waiting for it would block forever: it cannot run while this code does.
            return (
                "belongs to an event loop that is not the one running here: call it in a coroutine on its own loop, "
                "for example with loop.run_until_complete(pool.run(job)) while that loop is not running"
            )
        call = "asyncio.run_coroutine_threadsafe(pool.run(job), pool.loop)"
        if has_loop:
            return f"belongs to the event loop of another thread: from this loop, await asyncio.wrap_future({call})"
        return f"belongs to the event loop of another thread: from here, call it with {call}.result()"

    def check_here(self) -> None:
        """Raise if the pool runs, but not on the loop that runs here."""
        if self.is_bound and self.phase is not Phase.CLOSED:
            self.check_loop()

    def check_open(self) -> None:
        """Raise unless the pool takes jobs from here now."""
        self.check_started()
        if not self.takes_jobs:
            raise self.closed_error()

    def check_not_closing(self) -> None:
        """Raise if the pool is closing or closed, or its loop does not run in this thread."""
        if self.is_closing:
            raise self.closed_error()
        if self.is_bound:
            self.check_loop()

    def closed_error(self) -> PoolClosed:
        """Return the error for callers that come too late."""
        reason = "" if self.cause is None else f": {self.cause}"
        error = PoolClosed(f"pool {self.name!r} is closed (or closing) and no longer accepts jobs{reason}")
        set_cause(error, self.cause)
        return error
