"""Reports of what happens to a pool's resources: failures, failed checks, replacements."""

from __future__ import annotations

from asyncpool._core.state import State
from asyncpool._guard import describe
from asyncpool._logs import is_logged, log
from asyncpool.events import Observers, ResourceFailed, ResourceReplaced
from asyncpool.stats import ReplacementReason, Replacements

__all__ = ["ResourceLog"]

# After this many seconds without a failure, the next one begins another outage, whose first failure is logged.
_QUIET = 60.0


class ResourceLog:
    """Reports what happens to the resources of all workers.

    Failures are counted for all workers together: when a backend is down, they all fail, again and again. The 1st, 2nd,
    4th, 8th ... failure is logged, and the recovery if a failure was logged before it. So a resource that fails as soon
    as it is open does not fill the log either (test_a_backend_that_flaps_does_not_fill_the_log).

    The workers of a pool with an engine are in its processes, which report to the one `ResourceLog` of the program
    (test_an_outage_that_all_processes_see_is_logged_sparsely).
    """

    __slots__ = (
        "_began_at",
        "_count",
        "_failed_at",
        "_failed_checks",
        "_failing",
        "_is_recovery_logged",
        "_observers",
        "_state",
        "last_failure",
        "replacements",
    )

    def __init__(self, state: State, observers: Observers) -> None:
        self._state = state
        self._observers = observers
        self._failing: dict[str | None, set[int]] = {}  # by process, the numbers of workers that try again
        self._count = 0
        self._began_at = 0.0
        self._failed_at = 0.0
        self._is_recovery_logged = False
        self._failed_checks = 0
        self.last_failure: str | None = None
        """The last failure: a text, because the error would keep frames alive."""
        self.replacements = Replacements()
        """How many resources were closed by plan."""

    @property
    def failing(self) -> int:
        """How many workers try again to open their resource."""
        return sum(map(len, self._failing.values()))

    def failed(self, worker: int, error: BaseException, retry_in: float | None, process: str | None = None) -> None:
        """Count a failure; None: the worker retires."""
        now = self._state.time()
        if not self._count or now - self._failed_at >= _QUIET:
            self._count = 0
            self._began_at = now
        self._count += 1
        self.last_failure = describe(error)
        self._failed_at = now
        if retry_in is not None:
            self._failing.setdefault(process, set()).add(worker)
        if is_logged(self._count):
            self._is_recovery_logged |= retry_in is not None
            log.error(
                "pool %r: the resource of worker %d%s failed (occurrence %d)%s",
                self._state.name,
                worker,
                "" if process is None else f" of {process}",
                self._count,
                "" if not retry_in else f", next try in {retry_in:.2g} s",
                exc_info=error,
            )
        self._report(worker, error, retry_in, process)

    def abandoned(self, worker: int, error: BaseException, process: str | None = None) -> None:
        """Report a resource that ignores its cancellation. The caller logs it."""
        self._report(worker, error, None, process)

    def _report(self, worker: int, error: BaseException, retry_in: float | None, process: str | None) -> None:
        if self._observers.any:
            self._observers.emit(
                ResourceFailed(pool=self._state.name, worker=worker, error=error, retry_in=retry_in, process=process)
            )

    def opened(self, worker: int, process: str | None = None) -> None:
        """Note that a worker's resource is open."""
        self.left(worker, process)
        if self._is_recovery_logged and not self._failing:
            self._is_recovery_logged = False
            log.warning(
                "pool %r: the resources are open again, after %d failure%s in %.2g s",
                self._state.name,
                self._count,
                "" if self._count == 1 else "s",
                self._state.time() - self._began_at,
            )

    def left(self, worker: int, process: str | None = None) -> None:
        """Note that a worker has left, and does not try again."""
        failing = self._failing.get(process)
        if failing is not None:
            failing.discard(worker)
            if not failing:
                del self._failing[process]

    def process_gone(self, process: str) -> None:
        """Note that the workers of a process have left."""
        self._failing.pop(process, None)

    # -- By plan -----------------------------------------------------------------------------------------------------

    def failed_check(self, worker: int, error: BaseException | None) -> None:
        """Count a failed check. It is not a failure: the resource is replaced before a job gets it."""
        self._failed_checks += 1
        if is_logged(self._failed_checks):
            log.warning(
                "pool %r: the resource of worker %d failed its check (occurrence %d), and is replaced: %s",
                self._state.name,
                worker,
                self._failed_checks,
                "it returned False" if error is None else describe(error),
            )

    def replaced(self, worker: int, reason: ReplacementReason, process: str | None = None) -> None:
        """Count a resource that is about to be closed by plan."""
        self.replacements = self.replacements._replace(**{reason: getattr(self.replacements, reason) + 1})
        if self._observers.any:
            self._observers.emit(ResourceReplaced(pool=self._state.name, worker=worker, reason=reason, process=process))
