"""How a pool's failures get to whoever keeps its dead letters.

What a letter is, and who may keep them, is `dead_letters/letter.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from asyncpool._core.job import Job
from asyncpool.dead_letters.letter import DeadLetter, DeadLetterSink, PoolAwareSink, safe_text
from asyncpool.outcomes import Failed

__all__ = ["Letterbox"]

_log = logging.getLogger("asyncpool")


class Letterbox:
    """Writes a letter for each job that failed for good. What the sink raises is logged, and changes nothing else.

    `interrupted` gets a KeyboardInterrupt that came while the sink ran, and raises it where that does no harm.
    """

    __slots__ = ("_name", "_refused", "_sink", "interrupted")

    def __init__(self, sink: DeadLetterSink[Any], name: str) -> None:
        self._sink = sink
        self._name = name
        self._refused = 0
        self.interrupted: Callable[[KeyboardInterrupt], object] = _log.error

    def post(self, job: Job, failed: Failed[Any], now: float) -> None:
        """Record a job that has failed for good at loop time `now`."""
        try:
            # Letters are read tomorrow, in another process, where the loop's time says nothing.
            wall = time.time()  # noqa: TID251
            first_at = wall - (now - job.accepted_at)
            self._sink.record(DeadLetter.of(failed, pool=self._name, first_at=first_at, last_at=wall))
        except BaseException as error:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                _log.error(
                    "pool %r: a job failed that the dead letters do not have (number %d of such): %s",
                    self._name,
                    self._refused,
                    safe_text(repr, job.input),
                    exc_info=failed.error,
                )
                _log.error("pool %r: record() of the dead letters raised", self._name, exc_info=error)
            if isinstance(error, KeyboardInterrupt):
                self.interrupted(error)

    def tell_opened(self) -> None:
        """Tell the sink that the pool may write letters from now on, if it wants to know."""
        if isinstance(self._sink, PoolAwareSink):
            self._tell(self._sink.pool_opened)

    def tell_closed(self) -> None:
        """Tell the sink that the pool writes no more letters, if it wants to know."""
        if isinstance(self._sink, PoolAwareSink):
            self._tell(self._sink.pool_closed)

    def _tell(self, method: Callable[[str], object]) -> None:
        try:
            method(self._name)
        except BaseException as error:
            _log.error("pool %r: %s of the dead letters raised", self._name, method.__name__, exc_info=error)
            if isinstance(error, KeyboardInterrupt):
                self.interrupted(error)
