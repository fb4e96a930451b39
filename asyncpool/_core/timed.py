"""The dispatcher of pools with a `queue_timeout`: it does not start jobs that have waited too long.

The timer that fails jobs while they wait is in `queue_timeouts.py`.
"""

from __future__ import annotations

from asyncpool._core.gated import GatedDispatcher
from asyncpool._core.job import Job, Worker
from asyncpool._core.queue_timeouts import QueueTimeouts

__all__ = ["TimedDispatcher"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


class TimedDispatcher(GatedDispatcher):
    """A dispatcher whose jobs must start within some time of their acceptance."""

    __slots__ = ("_queue_timeouts",)

    _queue_timeouts: QueueTimeouts

    def time_starts(self, queue_timeouts: QueueTimeouts) -> None:
        """Set what watches the jobs that wait."""
        self._queue_timeouts = queue_timeouts

    def _start(self, job: Job, worker: Worker) -> None:
        self._queue_timeouts.unwatch(job)
        super()._start(job, worker)
        del job  # see `_start_on`

    def _settle_first_if_expired(self, now: float) -> bool:
        # The timer can be late: a job that blocks the loop holds it up too.
        job = self._queue.order.peek()
        if job is not None and self._queue_timeouts.is_too_late(job, now):
            self._fail_first(job, self._queue_timeouts.expired(), now)
            return True
        return super()._settle_first_if_expired(now)

    def _fail_first(self, job: Job, error: BaseException, now: float) -> None:
        self._queue_timeouts.unwatch(job)
        super()._fail_first(job, error, now)
