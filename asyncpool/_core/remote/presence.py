"""Whether the processes of a pool can run anything: what `start()` waits for, and when the engine is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context

from asyncpool._core.remote.members import Member
from asyncpool._core.resource_log import ResourceLog
from asyncpool._core.resources import safe_error
from asyncpool._core.state import State
from asyncpool._guard import describe, is_error
from asyncpool._logs import log
from asyncpool.engines.contract import Process
from asyncpool.errors import ProcessLost

__all__ = ["CHECKS", "Presence"]

CHECKS = 4
"""How many checks in a row must fail before a process or the engine is given up. A program whose own loop was blocked
makes only one, and then hears what has happened meanwhile."""


class Presence:
    """Watches the processes of a pool for the fleet.

    A process that waits for its first resource is present: it is not replaced, however long its backend is down.
    """

    def __init__(
        self,
        state: State,
        members: Mapping[Process, Member],
        resource_log: ResourceLog,
        *,
        is_required: bool,
        patience: float,
        is_needed: Callable[[], bool],
        expected: Callable[[], int],
        give_up: Callable[[], None],
    ) -> None:
        self._state = state
        self._members = members
        self._resource_log = resource_log
        self._is_required = is_required
        self._patience = patience
        self._is_needed = is_needed
        self._expected = expected
        self._give_up = give_up
        self._opened: asyncio.Future[None] | None = None  # what `open` waits for; None before it is called
        self._failed_starts = 0
        self._failures: dict[Member, tuple[int, BaseException, float | None]] = {}  # while the pool starts
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when processes have become usable, or have stopped to be."""

    # -- The start ---------------------------------------------------------------------------------------------------

    def begin(self, context: Context) -> asyncio.Future[None]:
        """Begin to watch. Return a future for the first process that can run the handler."""
        self._context = context
        self._opened = self._state.loop.create_future()
        self.changed()
        return self._opened

    @property
    def has_begun(self) -> bool:
        """Whether the pool has started, or is starting."""
        return self._opened is not None

    @property
    def _is_opening(self) -> bool:
        return self._opened is not None and not self._opened.done()

    def open(self) -> None:
        """Let the pool open: a process is ready, or none is needed."""
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        refused, self._failures = self._failures, {}
        for member, failure in refused.items():
            self._resource_log.failed(*failure, process=member.name)

    def waits(self) -> None:
        """Note that a process waits for its first resource, which the pool need not wait for if it is not required."""
        if not self._is_required:
            self.open()
        self.changed()

    def leave(self) -> None:
        """Let nobody wait for the start any longer: the pool is closing."""
        self._failures.clear()
        self.open()

    def fail(self, error: BaseException) -> bool:
        """Let the start fail. Return False if the pool has started."""
        self._failures.clear()
        if self._opened is None or self._opened.done():
            return False
        self._opened.set_exception(error)
        return True

    def _has_failed(self) -> bool:
        """Whether each process that there is, or should be, has failed to start, or was refused its first resource."""
        return len(self._failures) + self._failed_starts >= self._expected() or not self._members.keys() - {
            member.process for member in self._failures
        }

    # -- News --------------------------------------------------------------------------------------------------------

    def resource_failed(
        self, member: Member, worker: int, error: BaseException, retry_in: float | None, *, is_abandoned: bool
    ) -> None:
        """A resource of a process has failed: log it, or raise it to the caller of `start()`."""
        if is_abandoned:
            self._resource_log.abandoned(worker, error, process=member.name)
        elif not self._is_opening:
            self._resource_log.failed(worker, error, retry_in, process=member.name)
        if not self._is_opening:
            return
        self._failures[member] = worker, error, retry_in
        if self._has_failed():
            self.fail(safe_error(error))

    def lost(self, member: Member, error: BaseException, attempts: int) -> None:
        """Log that a process is lost; let the start fail if that was the last that could run the handler."""
        self._resource_log.process_gone(member.name)
        self._failures.pop(member, None)
        name = self._state.name
        is_lost = is_error(error, ProcessLost)  # and what replaces it may do, within the patience
        self._failed_starts += not is_lost and not member.was_ready
        if self._is_opening and not is_lost and self._has_failed():
            self.fail(error)
        elif is_lost:
            log.warning("pool %r: lost %s with %d attempts: %s", name, member.name, attempts, str(error))
        elif self._is_opening:  # what keeps the last of them from that is raised to the caller, with its traceback
            log.warning("pool %r: %s cannot be used: %s", name, member.name, describe(error))
        else:
            log.error("pool %r: %s cannot be used", name, member.name, exc_info=error)

    # -- State ------------------------------------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether a process can run attempts, or none is needed."""
        return any(member.is_ready for member in self._members.values()) or not self._is_needed()

    @property
    def reason(self) -> str:
        """Why none is usable."""
        waiting = sum(member.is_waiting for member in self._members.values())
        if not waiting:
            return "there is no process that can run the handler"
        last = self._resource_log.last_failure
        return (
            f"no worker of any process can take a job ({waiting} process{'es wait' if waiting > 1 else ' waits'} for "
            f"a resource{'' if last is None else f'; the last failure was {last}'})"
        )

    def changed(self) -> None:
        """Give the engine up when workers have had no process for too long. Call it whenever a process has changed."""
        if self._opened is None:
            return
        is_served = any(member.is_ready or member.is_waiting for member in self._members.values())
        is_served = is_served or not self._is_needed()
        if is_served and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not is_served and self._timer is None and not self._is_over:
            self._lose_patience(CHECKS)
        self.on_change()

    @property
    def is_running_out(self) -> bool:
        """Whether the patience is running out."""
        return self._timer is not None

    def _lose_patience(self, checks: int) -> None:
        """Wait for a process until that many checks have passed."""
        if checks:
            self._timer = self._state.loop.call_later(
                self._patience / CHECKS, self._lose_patience, checks - 1, context=self._context.copy()
            )
        else:
            self._give_up()

    def end(self) -> None:
        """Watch no more. Safe to repeat."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
