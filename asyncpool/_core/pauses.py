"""Why workers take no jobs for now, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from enum import Enum

from asyncpool.rate import RateLimit

__all__ = ["Pauses"]


class _Reason(Enum):
    USER = "pause()"
    ADVICE = "RetryAfter(pause=True)"
    RATE = "the rate limit of all jobs"


class Pauses:
    """The reasons for which no worker takes jobs: `on_change(is_paused)` is called when there is one more or less."""

    __slots__ = ("_context", "_has_taken", "_is_in_line", "_loop", "_on_change", "_reasons", "_timers", "_until")

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._reasons: set[_Reason] = set()
        self._timers: dict[_Reason, asyncio.Handle] = {}
        self._until = 0.0  # when the pause that a job has asked for is over
        # Of the rate limit of all jobs: whether we have got a start since it was last closed; and whether it was closed
        # since we last got one, so that we count among those who wait for it.
        self._has_taken = False
        self._is_in_line = False

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._loop = loop
        self._context = context

    @property
    def is_by_user(self) -> bool:
        """Whether `pause()` was called, and not `resume()` since."""
        return _Reason.USER in self._reasons

    @property
    def is_told(self) -> bool:
        """Whether there is a reason that observers are told: the rate limit opens and closes too often for that."""
        return bool(self._reasons - {_Reason.RATE})

    def by_user(self) -> None:
        """Pause until `lift_by_user`."""
        self._begin(_Reason.USER)

    def lift_by_user(self) -> None:
        """End the user's pause. Another one goes on."""
        self._end(_Reason.USER)

    def until(self, when: float) -> bool:
        """Pause until a loop time, as a job has asked; the latest that was asked for counts. Return whether this is."""
        if _Reason.ADVICE in self._reasons and self._until >= when:
            return False
        self._until = when
        self._begin(_Reason.ADVICE, when)
        return True

    def take_start(self, limit: RateLimit, now: float) -> bool:
        """Take a start of the limit of all jobs, and return True; if there is none, pause until there may be one."""
        if not limit.take(now):
            self._has_taken = True
            self._leave(limit)
            return True
        others = limit.users - self._is_in_line
        when = limit.when_to_ask(lets_others_first=self._has_taken and others > 0)
        self._has_taken = False
        if not self._is_in_line:
            self._is_in_line = True
            limit.join()
        self._begin(_Reason.RATE, when)
        return False

    def close(self, limit: RateLimit | None) -> None:
        """Drop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if limit is not None:
            self._leave(limit)

    def _leave(self, limit: RateLimit) -> None:
        if self._is_in_line:
            self._is_in_line = False
            limit.leave()

    def _begin(self, reason: _Reason, until: float | None = None) -> None:
        if until is not None:
            if reason in self._timers:
                self._timers[reason].cancel()
            self._timers[reason] = self._loop.call_at(until, self._end, reason, context=self._context)
        self._reasons.add(reason)
        self._on_change(True)

    def _end(self, reason: _Reason) -> None:
        self._timers.pop(reason, None)
        self._reasons.discard(reason)
        self._on_change(bool(self._reasons))
