"""Writes a dead letter for each job that failed permanently.

What a letter holds, and who may keep it, is `asyncpool/dead_letters`.
"""

from __future__ import annotations

import time
from typing import Any

from asyncpool._core.job import Job
from asyncpool._core.state import State
from asyncpool._guard import is_error
from asyncpool._logs import is_logged, log
from asyncpool.dead_letters.letter import DeadLetter, DeadLetterSink, PoolAwareSink
from asyncpool.outcomes import Failed

__all__ = ["DeadLetterWriter"]


class DeadLetterWriter:
    """Gives letters to a sink. What the sink raises is logged, and changes nothing else."""

    __slots__ = ("_failures", "_sink", "_state")

    def __init__(self, state: State, sink: DeadLetterSink[Any]) -> None:
        self._state = state
        self._sink = sink
        self._failures = 0

    def write(self, job: Job, failed: Failed[Any], now: float) -> None:
        """Record a job that has failed permanently at loop time `now`."""
        try:
            # Letters are read tomorrow, in another process, where the loop's time means nothing.
            wall = time.time()  # noqa: TID251
            first_at = wall - (now - job.accepted_at)
            self._sink.record(DeadLetter.of(failed, pool=self._state.name, first_at=first_at, last_at=wall))
        except BaseException as error:
            self._failures += 1
            if is_logged(self._failures):
                log.error(
                    "pool %r: could not record the dead letter of a failed job (occurrence %d): %r",
                    self._state.name,
                    self._failures,
                    job.input,
                    exc_info=failed.error,
                )
                log.error("pool %r: record() of the dead letters raised", self._state.name, exc_info=error)
            if is_error(error, KeyboardInterrupt):
                self._state.raise_later(error)

    def opened(self) -> None:
        """Report to the sink, if it wants to know, that the pool can write letters from now on."""
        self._report("pool_opened")

    def closed(self) -> None:
        """Report to the sink, if it wants to know, that the pool writes no more letters."""
        self._report("pool_closed")

    def _report(self, method: str) -> None:
        try:
            if isinstance(self._sink, PoolAwareSink):
                getattr(self._sink, method)(self._state.name)
        except BaseException as error:
            log.error("pool %r: %s() of the dead letters raised", self._state.name, method, exc_info=error)
            if is_error(error, KeyboardInterrupt):
                self._state.raise_later(error)
