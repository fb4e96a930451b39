"""Notices that a pool has work and no worker that could do it, and reports when that begins and ends."""

from __future__ import annotations

import asyncio
from contextvars import Context

from asyncpool._core.cancellation import Cancellation
from asyncpool._core.ledger import Ledger
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import Phase, State
from asyncpool._core.workers import Workers
from asyncpool._logs import log
from asyncpool.events import Observers, PoolRecovered, PoolStalled

__all__ = ["Stall"]

# Seconds for which there must be work and no usable worker before it is reported.
_STALLED_AFTER = 5.0
# While no worker is usable, this many seconds from one look to the next: jobs arrive without a word to us.
_INTERVAL = 1.0


class Stall:
    """Whether a pool is stalled.

    A worker is usable if it is idle, or runs a job that does not ignore its cancellation. `watch` must be called when a
    worker becomes usable, or stops to be. A pool with a usable worker costs nothing more and arms no timer.
    """

    __slots__ = (
        "_cancellation",
        "_context",
        "_is_stalled",
        "_ledger",
        "_observers",
        "_pauses",
        "_queue",
        "_since",
        "_state",
        "_timer",
        "_workers",
    )

    def __init__(
        self,
        state: State,
        ledger: Ledger,
        observers: Observers,
        *,
        queue: JobQueue,
        workers: Workers,
        pauses: Pauses,
        cancellation: Cancellation,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._observers = observers
        self._queue = queue
        self._workers = workers
        self._pauses = pauses
        self._cancellation = cancellation
        self._timer: asyncio.TimerHandle | None = None
        self._since: float | None = None  # since when there was work and no usable worker
        self._is_stalled = False  # whether that was reported

    def open(self, context: Context) -> None:
        """Start timers in this context from now on."""
        self._context = context

    @property
    def seconds(self) -> float:
        """For how many seconds the pool has been stalled; 0.0 if it is not."""
        return self._state.time() - self._since if self._is_stalled and self._since is not None else 0.0

    def watch(self) -> None:
        """Look whether the pool is stalled, and look again later if it may become so."""
        if self._workers.idle and self._since is None:
            return  # the usual case
        is_open = self._state.phase in (Phase.OPEN, Phase.DRAINING)
        is_unusable = is_open and self._workers.free + self._ledger.running <= self._cancellation.stuck
        has_work = is_unusable and self._queue.backlog > 0 and not self._pauses.is_paused
        now = self._state.time()
        if not has_work:
            self._end(now)
        elif self._since is None:
            self._since = now
        elif not self._is_stalled and now - self._since >= _STALLED_AFTER:
            self._begin(now - self._since)
        # A worker without a job that is not idle waits for its resource, and that takes no longer than its bounds. If
        # all run stuck jobs, the end of one of them is the next to happen: no timer then, once that is reported.
        waits = is_unusable and len(self._workers.by_number) > self._ledger.running
        if waits or (has_work and not self._is_stalled):
            if self._timer is None:
                self._timer = self._state.loop.call_later(_INTERVAL, self._look_again, context=self._context.copy())
        else:
            self._stop_timer()

    def close(self) -> None:
        """Look no more: the pool is closed."""
        self._stop_timer()
        self._is_stalled = False

    def _look_again(self) -> None:
        self._timer = None
        self.watch()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self, seconds: float) -> None:
        self._is_stalled = True
        reason, queued = self._reason(), len(self._queue.order) + len(self._queue.line.waiting)
        log.warning(
            "pool %r: %d waiting, and no usable worker for %.2g s: %s", self._state.name, queued, seconds, reason
        )
        if self._observers.any:
            self._observers.emit(PoolStalled(pool=self._state.name, reason=reason, queued=queued))

    def _end(self, now: float) -> None:
        since, was_stalled = self._since, self._is_stalled
        self._since, self._is_stalled = None, False
        if since is None or not was_stalled:
            return
        log.warning("pool %r: a worker is usable again, or none is needed, after %.2g s", self._state.name, now - since)
        if self._observers.any:
            self._observers.emit(PoolRecovered(pool=self._state.name, seconds=now - since))

    def _reason(self) -> str:
        workers, stuck = self._workers, self._cancellation.stuck
        reasons: list[str] = []
        if stuck:
            reasons.append(f"{stuck} of {len(workers.by_number)} workers run jobs that ignore their cancellation")
        if len(workers.by_number) > self._ledger.running:
            last = workers.last_failure
            reasons.append(
                f"no worker has its resource ({workers.opening} opening, {workers.closing} closing"
                f"{'' if last is None else f'; the last failure was {last}'})"
            )
        return " and ".join(reasons) or "there is no worker"
