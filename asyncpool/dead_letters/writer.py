"""Writes a dead letter for each job that failed permanently.

What a letter holds is `letter.py`; which jobs get one is decided by `_core/ledger.py`.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from asyncpool._guard import is_error
from asyncpool._logs import is_logged, log
from asyncpool.dead_letters.letter import DeadLetter, DeadLetterSink, PoolAwareSink
from asyncpool.outcomes import Failed

__all__ = ["DeadLetterWriter"]


class WritingPool(Protocol):
    """What the writer needs of its pool."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def raise_later(self, error: BaseException) -> None:
        """Raise a KeyboardInterrupt where it leaves no step of the pool half done."""
        ...


class DeadLetterWriter:
    """Gives letters to a sink. What the sink raises is logged, and changes nothing else."""

    __slots__ = ("_failures", "_pool", "_sink")

    def __init__(self, pool: WritingPool, sink: DeadLetterSink[Any]) -> None:
        self._pool = pool
        self._sink = sink
        self._failures = 0

    def write(self, failed: Failed[Any], accepted_at: float, now: float) -> None:
        """Record a job that was accepted at one loop time and has failed permanently at another."""
        try:
            # Letters are read tomorrow, in another process, where the loop's time means nothing.
            wall = time.time()  # noqa: TID251
            first_at = wall - (now - accepted_at)
            self._sink.record(DeadLetter.of(failed, pool=self._pool.name, first_at=first_at, last_at=wall))
        except BaseException as error:
            self._failures += 1
            if is_logged(self._failures):
                log.error(
                    "pool %r: could not record the dead letter of a failed job (occurrence %d): %r",
                    self._pool.name,
                    self._failures,
                    failed.job,
                    exc_info=failed.error,
                )
                log.error("pool %r: record() of the dead letters raised", self._pool.name, exc_info=error)
            if is_error(error, KeyboardInterrupt):
                self._pool.raise_later(error)

    def opened(self) -> None:
        """Report to the sink, if it wants to know, that the pool can write letters from now on."""
        self._report("pool_opened")

    def closed(self) -> None:
        """Report to the sink, if it wants to know, that the pool writes no more letters."""
        self._report("pool_closed")

    def _report(self, method: str) -> None:
        try:
            if isinstance(self._sink, PoolAwareSink):
                getattr(self._sink, method)(self._pool.name)
        except BaseException as error:
            log.error("pool %r: %s() of the dead letters raised", self._pool.name, method, exc_info=error)
            if is_error(error, KeyboardInterrupt):
                self._pool.raise_later(error)
