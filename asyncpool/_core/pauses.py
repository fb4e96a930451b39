"""Why workers are not taking jobs, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from enum import Enum

from asyncpool._core.state import State
from asyncpool._core.wakeups import Wakeups
from asyncpool._logs import log
from asyncpool.events import Observers, PoolPaused, PoolResumed
from asyncpool.limits.rate import RateLimit

__all__ = ["Pauses"]


class _Reason(Enum):
    USER = "pause()"
    ADVICE = "RetryAfter(pause=True)"
    RATE = "the rate limit of all jobs"
    BREAKER = "a breaker that is open, or has its probe running"
    SETTLING = "many waiting jobs are being settled"


# A pause by the rate limit of all jobs that is at least this long is one in which jobs can become too late, in seconds.
_LONG = 1.0
_UNREPORTED = {_Reason.RATE, _Reason.SETTLING}  # they begin and end too often


class Pauses:
    """The reasons for which no worker takes jobs.

    Invariant: `is_paused` is true while there is a reason (tests/laws: several_jobs_ask_for_a_pause). It is a field,
    because the hot path reads it.
    """

    __slots__ = (
        "_context",
        "_is_announced",
        "_is_in_line",
        "_is_rate_closed_long",
        "_limit",
        "_observers",
        "_reasons",
        "_state",
        "_timers",
        "_until",
        "_wakeups",
        "is_paused",
        "on_change",
    )

    def __init__(self, state: State, observers: Observers, wakeups: Wakeups) -> None:
        self._state = state
        self._observers = observers
        self._wakeups = wakeups
        self.is_paused = False
        self.on_change: Callable[[], None] | None = None
        """Called when a reason has begun or ended."""
        self._reasons: set[_Reason] = set()
        self._timers: dict[_Reason, asyncio.Handle] = {}
        self._until = 0.0  # when the pause that a job has asked for is over
        self._limit: RateLimit | None = None  # of all jobs, once it was closed
        self._is_in_line = False  # whether we wait for it
        self._is_rate_closed_long = False
        self._is_announced = False  # whether observers have heard of a pause, and not of its end

    def open(self, context: Context) -> None:
        """Start timers in this context from now on."""
        self._context = context

    @property
    def is_by_user(self) -> bool:
        """Whether `pause()` was called, and not `resume()` since."""
        return _Reason.USER in self._reasons

    @property
    def is_reported(self) -> bool:
        """Whether there is a reason that users hear of."""
        return bool(self._reasons - _UNREPORTED)

    @property
    def is_long(self) -> bool:
        """Whether it can last: a pause that is reported, or one by the rate limit if that opens in a second or later.

        Shorter ones come a thousand times in a second, and their end finds the jobs that are too late by itself.
        """
        return self.is_reported or (_Reason.RATE in self._reasons and self._is_rate_closed_long)

    def pause(self) -> None:
        """Take no more jobs from the queue, until `resume`."""
        if not self.is_by_user:
            self._begin(_Reason.USER)
            self._report(None)

    def resume(self, *, force: bool = False) -> None:
        """End the user's pause, and with `force` also the one that jobs have asked for. Any other goes on."""
        if self.is_by_user:
            self._end(_Reason.USER)
        if force and _Reason.ADVICE in self._reasons:
            self._timers[_Reason.ADVICE].cancel()
            self._end(_Reason.ADVICE)

    def pause_for(self, seconds: float, now: float) -> None:
        """Take no more jobs for a time, as a job has asked. The latest end that was asked for counts."""
        when = now + seconds
        if not seconds or (_Reason.ADVICE in self._reasons and self._until >= when):
            return
        self._until = when
        self._begin(_Reason.ADVICE, when)
        log.info("pool %r: a job asked for a pause of %g s", self._state.name, seconds)
        self._report(seconds)

    @property
    def is_held(self) -> bool:
        """Whether `hold()` was called, and not `let_go()` since."""
        return _Reason.SETTLING in self._reasons

    def hold(self) -> None:
        """Take no more jobs, until `let_go`: some that wait are about to be settled."""
        if not self.is_held:
            self._begin(_Reason.SETTLING)

    def let_go(self) -> None:
        """End `hold`. Safe to repeat."""
        if self.is_held:
            self._end(_Reason.SETTLING)

    def set_broken(self, is_broken: bool) -> None:
        """Take no more jobs while the breaker does not let one start. It reports that itself."""
        if is_broken is not (_Reason.BREAKER in self._reasons):
            (self._begin if is_broken else self._end)(_Reason.BREAKER)

    def take_start(self, limit: RateLimit, now: float) -> bool:
        """Take a start of the limit of all jobs, and return True; if there is none, pause until there may be one."""
        if limit.take_turn(now, self):
            return True
        self._limit = limit
        self._is_rate_closed_long = self._is_expected_late(limit, now)
        if not self._is_in_line:
            self._is_in_line = True
            limit.join(self)
        self._begin(_Reason.RATE)
        return False

    weight = 1.0  # of a start, for the line of the limit

    def offer(self) -> bool:
        """Take starts again: the limit of all jobs is open, and it is the pool's turn."""
        self._is_in_line = False
        self._end(_Reason.RATE)
        return False

    def limit_changed(self) -> None:
        """Note that the limit of all jobs opens at another time. A pause that was short can be long now."""
        if self._limit is not None and self._is_in_line:
            self._is_rate_closed_long = self._is_expected_late(self._limit, self._state.loop.time())
            self._wakeups.pause_changed(is_lifted=False)
            if self.on_change is not None:
                self.on_change()

    def _is_expected_late(self, limit: RateLimit, now: float) -> bool:
        # Nobody else asks, and those that wait before us can be many.
        return self.on_change is not None and limit.expected_at(now) - now >= _LONG

    def close(self) -> None:
        """Drop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._limit is not None:
            self._is_in_line = False
            self._limit.leave(self)

    def _begin(self, reason: _Reason, until: float | None = None) -> None:
        if until is not None:
            if reason in self._timers:
                self._timers[reason].cancel()
            self._timers[reason] = self._state.loop.call_at(until, self._end, reason, context=self._context.copy())
        self._reasons.add(reason)
        self.is_paused = True
        self._wakeups.pause_changed(is_lifted=False)
        if self.on_change is not None:
            self.on_change()

    def _end(self, reason: _Reason) -> None:
        self._timers.pop(reason, None)
        self._reasons.discard(reason)
        self.is_paused = bool(self._reasons)
        # Before the pool is started, there are no workers that could take jobs.
        self._wakeups.pause_changed(is_lifted=not self.is_paused and self._state.is_bound)
        if self.on_change is not None:
            self.on_change()
        if self._is_announced and not self.is_reported:
            self._is_announced = False
            if self._observers.any:
                self._observers.emit(PoolResumed(pool=self._state.name))

    def _report(self, seconds: float | None) -> None:
        self._is_announced = True
        if self._observers.any:
            self._observers.emit(PoolPaused(pool=self._state.name, seconds=seconds))
