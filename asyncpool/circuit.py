"""The state machine of a circuit breaker: when it opens, lets a probe start, and closes.

Pure: attempts begin and end here at times that are passed in. What an error says about the backend is `breaker.py`; the
timers and the waiting are `_core/breaking.py`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from asyncpool.errors import WrongLoop

__all__ = ["BreakerChange", "BreakerUser", "Circuit", "CircuitState", "Verdict"]


class CircuitState(Enum):
    """The states of a breaker. Their values are what `Breaker.state` returns."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Verdict(Enum):
    """What the end of an attempt tells about the backend."""

    FAILURE = "it is down"
    SUCCESS = "it can be reached"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChange:
    """A change of a breaker, as each pool that uses it reports it."""

    state: CircuitState
    """The state from now on."""
    by: BreakerUser | None
    """The pool that has caused it; None: a call of `open` or `close`."""
    seconds: float = 0.0
    """For how long it is open; if it has closed, for how long it was not closed."""
    failures: int = 0
    """How many of the last `attempts` have failed, if that has opened it."""
    attempts: int = 0
    """0 if a call of `open` has opened it."""
    error: BaseException | None = None
    """The last failure. None: there is none, or the probe has not ended in time."""
    failed_probes: int = 0
    """How many probes have failed since it was closed."""


class BreakerUser(Protocol):
    """A pool that uses a breaker."""

    def moved(self) -> None:
        """Take jobs, or stop to take them, as the breaker is now. It can be called twice for one change."""
        ...

    def report(self, change: BreakerChange, /, *, is_logged: bool) -> None:
        """Report a change to observers, and in one of the pools to the log. Must not raise."""
        ...


class Circuit:
    """The state machine of a `Breaker`, which pools use; users call the methods of `Breaker` itself.

    Each attempt is passed to `begin` and, with the period that this returned, to `end`. An attempt counts only in the
    period in which it began: what is left of an outage says nothing about the time after it, whenever it ends.

    Invariant: at most one attempt is the probe (tests/laws: a_breaker_lets_one_probe_through). `begin` must not be
    called unless `lets_start` is true.
    """

    __slots__ = (
        "__weakref__",
        "_changes",
        "_factor",
        "_failed_probes",
        "_failures",
        "_following",
        "_is_reporting",
        "_loop",
        "_max_pause",
        "_opened_at",
        "_pause",
        "_period",
        "_recent",
        "_seconds",
        "_state",
        "_threshold",
        "_users",
        "probe",
        "until",
    )

    def __init__(self, *, threshold: int, window: int, pause: float, factor: float, max_pause: float) -> None:
        self._threshold = threshold
        self._pause = pause
        self._factor = factor
        self._max_pause = max_pause
        self._state = CircuitState.CLOSED
        # Whether each of the last attempts that count has failed, and how many of them have.
        self._recent: deque[bool] = deque(maxlen=window)
        self._failures = 0
        self._period = 0  # even: the breaker is closed. One more when it opens, and when it closes
        self._opened_at = 0.0
        self._seconds = pause  # for which it was opened last
        self._following = pause  # for which it will be opened next
        self._failed_probes = 0
        self.probe: object | None = None
        """The attempt that decides, if it is half-open and has let one start."""
        self.until = 0.0
        """Loop time: if it is open, at which a probe can start; if there is a probe, from which that has failed."""
        # The pools that run, in the order in which they can start a probe.
        self._users: dict[BreakerUser, None] = {}
        self._changes: deque[BreakerChange] = deque()
        self._is_reporting = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_closed(self) -> bool:
        """Whether jobs run as in a pool without a breaker."""
        return self._state is CircuitState.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether nothing can start before `until`."""
        return self._state is CircuitState.OPEN

    @property
    def lets_start(self) -> bool:
        """Whether an attempt can start now. If the breaker is half-open, that is the probe."""
        return self._state is CircuitState.CLOSED or (self._state is CircuitState.HALF_OPEN and self.probe is None)

    # -- The pools that use it ---------------------------------------------------------------------------------------

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Belong to this loop from now on. What was kept of another one, whose clock was another, is dropped.

        Raises:
            WrongLoop: Pools of another loop use it.
        """
        if self._loop is loop:
            return
        if self._users and self._loop is not None and not self._loop.is_closed():
            raise WrongLoop("the breaker is used by pools of another event loop: each loop needs a breaker of its own")
        self._users.clear()
        self._loop = loop
        if self._state is not CircuitState.CLOSED:
            self._period += 1
        self._reset()

    def join(self, user: BreakerUser) -> None:
        """Have a pool hear of each change."""
        self._users[user] = None

    def leave(self, user: BreakerUser) -> None:
        """Forget a pool, which has no attempts any more."""
        self._users.pop(user, None)

    # -- Attempts ----------------------------------------------------------------------------------------------------

    def begin(self, attempt: object, now: float, by: BreakerUser) -> int:
        """Note that an attempt starts, and return its period, which is odd for a probe."""
        if self._state is CircuitState.HALF_OPEN:
            self.probe = attempt
            self.until = now + max(self._pause, self._seconds)
            self._users.pop(by, None)
            self._users[by] = None  # behind the other pools, which have the next probe first
            self._move(None)
        return self._period

    def end(
        self, attempt: object, period: int, verdict: Verdict, now: float, by: BreakerUser, error: BaseException | None
    ) -> bool:
        """Note that an attempt has ended; return whether it failed because of an outage.

        It has if it opens the breaker, or if it began before the breaker last opened or closed, or as a probe.
        """
        was_probe = self.probe is attempt
        if was_probe:
            self.probe = None
        is_failure = verdict is Verdict.FAILURE
        if period != self._period:
            return is_failure
        if self._state is CircuitState.CLOSED:
            return self._record(verdict, now, by, error)
        if verdict is Verdict.SUCCESS:  # also of a probe that was given up
            self._shut(now, by)
        elif was_probe and is_failure:
            self._reopen(now, by, error)
        elif was_probe:
            self._move(None)  # the next job is the probe
        return is_failure

    def _record(self, verdict: Verdict, now: float, by: BreakerUser, error: BaseException | None) -> bool:
        """Count an attempt while the breaker is closed; return whether that opens it."""
        if verdict is Verdict.NOTHING:
            return False
        is_failure = verdict is Verdict.FAILURE
        if len(self._recent) == self._recent.maxlen:
            self._failures -= self._recent[0]
        self._recent.append(is_failure)
        self._failures += is_failure
        if self._failures < self._threshold or not is_failure:
            return False
        self._trip(now, None, by, error)
        return True

    # -- Changes -----------------------------------------------------------------------------------------------------

    def half_open(self, by: BreakerUser | None) -> None:
        """Let a probe start, if the breaker is open: `until` has come, or the user does not want to wait for it."""
        if self._state is CircuitState.OPEN:
            self._state = CircuitState.HALF_OPEN
            self._move(BreakerChange(state=CircuitState.HALF_OPEN, by=by))

    def give_up_probe(self, now: float, by: BreakerUser) -> None:
        """Count the probe as failed, because it has not ended by `until`."""
        if self.probe is not None:
            self.probe = None
            self._reopen(now, by, None)

    def _trip(self, now: float, seconds: float | None, by: BreakerUser | None, error: BaseException | None) -> None:
        """Open because of the failures that were counted, or without an error because of a call."""
        counts = (0, 0) if error is None else (self._failures, len(self._recent))
        if self._state is CircuitState.CLOSED:
            self._reset()
            self._period += 1
            self._opened_at = now
        self._open(now, seconds, by, error, counts)

    def _reopen(self, now: float, by: BreakerUser, error: BaseException | None) -> None:
        self._failed_probes += 1
        self._open(now, None, by, error, (1, 1))

    def _open(
        self,
        now: float,
        seconds: float | None,
        by: BreakerUser | None,
        error: BaseException | None,
        counts: tuple[int, int],
    ) -> None:
        if seconds is None:
            seconds = self._following
            self._following = min(seconds * self._factor, self._max_pause)
        self._state = CircuitState.OPEN
        self._seconds = seconds
        self.until = now + seconds
        self.probe = None
        self._move(
            BreakerChange(
                state=CircuitState.OPEN,
                by=by,
                seconds=seconds,
                failures=counts[0],
                attempts=counts[1],
                error=error,
                failed_probes=self._failed_probes,
            )
        )

    def _shut(self, now: float, by: BreakerUser | None) -> None:
        """Close, and begin with an empty window."""
        self._period += 1
        seconds = now - self._opened_at
        self._reset()
        self._state = CircuitState.CLOSED
        self._move(BreakerChange(state=CircuitState.CLOSED, by=by, seconds=seconds))

    def _reset(self) -> None:
        """Forget what was counted."""
        self._recent.clear()
        self._failures = self._failed_probes = 0
        self._seconds = self._following = self._pause
        self._state = CircuitState.CLOSED
        self.probe = None

    def _move(self, change: BreakerChange | None) -> None:
        """Have all pools take jobs, or stop, and then report the change.

        What is reported is user code, which can change the breaker again: the reports stay in their order, and the
        pools act on what the state is by then (test_observers_change_the_breaker).
        """
        if change is not None:
            self._changes.append(change)
        for user in tuple(self._users):
            user.moved()
        if self._is_reporting:
            return
        self._is_reporting = True
        try:
            while self._changes:
                change = self._changes.popleft()
                users = tuple(self._users)
                logger = change.by if change.by in self._users else next(iter(users), None)
                for user in users:
                    user.report(change, is_logged=user is logger)
        finally:
            self._is_reporting = False
