"""Logs the failures of a pool's resources: sparsely while they go on, and once when they are over."""

from __future__ import annotations

from asyncpool._core.job import Worker
from asyncpool._core.state import State
from asyncpool._guard import describe
from asyncpool._logs import is_logged, log

__all__ = ["Outage"]

# After this many seconds without a failure, the next one begins another outage, whose first failure is logged.
_QUIET = 60.0


class Outage:
    """Counts the failures of all workers together: when a backend is down, they all fail, again and again.

    The 1st, 2nd, 4th, 8th ... failure is logged, and the recovery if a failure was logged before it. So a resource that
    fails as soon as it is open does not fill the log either (test_a_backend_that_flaps_does_not_fill_the_log).
    """

    __slots__ = ("_began_at", "_count", "_failed_at", "_failing", "_is_recovery_logged", "_state", "last")

    def __init__(self, state: State) -> None:
        self._state = state
        self._failing: set[int] = set()  # the numbers of workers that try again
        self._count = 0
        self._began_at = 0.0
        self._failed_at = 0.0
        self._is_recovery_logged = False
        self.last: str | None = None
        """The last failure: a text, because the error would keep frames alive."""

    def failed(self, worker: Worker, error: BaseException, retry_in: float | None) -> None:
        """Count a failure; None: the worker retires."""
        now = self._state.time()
        if not self._count or now - self._failed_at >= _QUIET:
            self._count = 0
            self._began_at = now
        self._count += 1
        self.last = describe(error)
        self._failed_at = now
        if retry_in is not None:
            self._failing.add(worker.number)
        if is_logged(self._count):
            self._is_recovery_logged |= retry_in is not None
            log.error(
                "pool %r: the resource of worker %d failed (occurrence %d)%s",
                self._state.name,
                worker.number,
                self._count,
                "" if not retry_in else f", next try in {retry_in:.2g} s",
                exc_info=error,
            )

    def opened(self, worker: Worker) -> None:
        """Note that a worker's resource is open."""
        self._failing.discard(worker.number)
        if self._is_recovery_logged and not self._failing:
            self._is_recovery_logged = False
            log.warning(
                "pool %r: the resources are open again, after %d failure%s in %.2g s",
                self._state.name,
                self._count,
                "" if self._count == 1 else "s",
                self._state.time() - self._began_at,
            )

    def left(self, worker: Worker) -> None:
        """Note that a worker has left, and does not try again."""
        self._failing.discard(worker.number)
