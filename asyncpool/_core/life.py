"""The life of a pool: its states, and the supervisor task that starts it and takes it down the ladder to its end.

Stop is a level and not an event: whoever asks for it changes a state or brings a deadline forward, synchronously, and
the supervisor acts on what holds when it looks. So a request can come at any moment, from anybody, any number of times.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextvars import copy_context
from enum import Enum
from typing import Any

import anyio

from asyncpool._core.dispatch import Dispatcher
from asyncpool.errors import PoolClosed, PoolReused
from asyncpool.events import PoolEnded, PoolStarted, PoolStopping
from asyncpool.outcomes import CancelReason, ShutdownReport, Unfinished
from asyncpool.scaling.policy import Decision

__all__ = ["Life", "State"]

_log = logging.getLogger("asyncpool")

# What was just cancelled gets so many turns of the loop to end by itself, however short the grace.
_LAST_TURNS = 16


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _in_order(numbered: list[tuple[int, Unfinished[Any]]]) -> tuple[Unfinished[Any], ...]:
    return tuple(entry for _, entry in sorted(numbered, key=lambda pair: pair[0]))


class State(Enum):
    """Where in its life a pool is."""

    NEW = "new"
    STARTING = "starting"
    OPEN = "open"
    DRAINING = "draining"
    STOPPING = "stopping"
    CLOSED = "closed"


class Life:
    """Starts and ends a dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.state = State.NEW
        self.report: ShutdownReport[Any] | None = None
        self.is_report_awaited = False  # else nobody may ever look at it, and the log says what it says
        self._drain_until = math.inf  # loop time at which step 3 begins
        self._grace = math.inf
        self._grace_until = math.inf  # loop time at which step 4 begins, once step 3 has
        self._supervisor: asyncio.Task[None] | None = None
        self._stop_is_asked = asyncio.Event()
        # Who waits for what: looked at whenever a job has ended, a worker is gone, or a state or deadline changed.
        self._watchers: dict[asyncio.Future[None], Callable[[], bool]] = {}

    # -- The beginning -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool. Waits for the first resource, if workers have one."""
        dispatcher = self._dispatcher
        if self.state is not State.NEW:
            raise PoolReused(f"pool {dispatcher.name!r} is {self.state.value}: a pool is started and used once")
        # Imports anyio's backend here, and not inside the first job with a timeout: that takes tens of milliseconds.
        anyio.get_current_task()
        loop = asyncio.get_running_loop()
        # First of all, and with a context as the jobs' tasks: a task factory that cannot do that says so here.
        supervise = self._supervise()
        try:
            name = f"{dispatcher.name} supervisor"
            self._supervisor = loop.create_task(supervise, name=name, context=copy_context())
        except BaseException:
            supervise.close()
            raise
        dispatcher.open(loop)
        self.state = State.STARTING
        self._supervisor.add_done_callback(self._supervisor_is_done)
        dispatcher.supervisor = self._supervisor
        dispatcher.tell_opened()
        if dispatcher.has_resource and dispatcher.target_workers:
            await self._enter_first_resource()
        elif self.state is not State.STARTING:  # whoever keeps the dead letters has closed the pool
            await self.wait_closed()
            raise PoolClosed(f"pool {dispatcher.name!r} was closed while it started")
        dispatcher.resize(Decision(dispatcher.target_workers), None)
        self.state = State.OPEN
        _log.debug("pool %r: started with %d workers", dispatcher.name, dispatcher.target_workers)
        if dispatcher.observers.any:
            dispatcher.observers.emit(PoolStarted(pool=dispatcher.name, workers=dispatcher.target_workers))
        if not dispatcher.scaler.is_fixed:
            try:
                dispatcher.scaler.look()
            except BaseException:  # a KeyboardInterrupt
                self.cancel()
                await self.wait_closed()
                raise

    async def _enter_first_resource(self) -> None:
        keeper = self._dispatcher.add_worker(must_enter=True).keeper
        assert keeper is not None
        assert keeper.entered is not None
        try:
            await keeper.entered
            if self.state is not State.STARTING:
                raise PoolClosed(f"pool {self._dispatcher.name!r} was closed while it started")
        except BaseException:
            self.cancel()
            await self.wait_closed()
            raise

    # -- Requests: synchronous, from anybody, any number of times ----------------------------------------------------

    def stop(self, *, drain_timeout: float | None, grace: float) -> None:
        """Ask for the end; a later request can only bring it forward."""
        if self.state is State.NEW:
            self.state = State.CLOSED
            self.report = ShutdownReport()
            self._dispatcher.is_ended = True
        if self.state is State.CLOSED:
            return
        now = self._dispatcher.loop.time()
        if drain_timeout is not None:
            self._drain_until = min(self._drain_until, now + drain_timeout)
        self._grace = min(self._grace, grace)
        if self.state is State.STOPPING:
            self._grace_until = min(self._grace_until, now + grace)
        elif self.state is State.STARTING:
            self._drain_until = now  # nothing runs yet that could be drained
        if self.state in (State.STARTING, State.OPEN):
            self._stop_intake(drains=self._drain_until > now)
        self.look()

    def cancel(self) -> None:
        """Ask for step 3, at once."""
        self.stop(drain_timeout=0.0, grace=5.0 if self._grace == math.inf else self._grace)

    def abandon(self) -> None:
        """Ask for step 4, at once."""
        self.stop(drain_timeout=0.0, grace=0.0)

    def _stop_intake(self, *, drains: bool) -> None:
        dispatcher = self._dispatcher
        self.state = State.DRAINING
        self._stop_is_asked.set()
        dispatcher.is_open = False
        dispatcher.line.close(dispatcher.closed_error)
        for guest in list(dispatcher.guests):
            guest.stop(dispatcher.closed_error())
        if dispatcher.pauses.is_by_user:
            dispatcher.resume()
        if dispatcher.observers.any:
            dispatcher.observers.emit(PoolStopping(pool=dispatcher.name, drains=drains))

    # -- The ladder --------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Take the pool to its end. The numbers are those of `WorkerPool.close` and docs/semantics.md."""
        dispatcher = self._dispatcher
        await self._until_asked_to_stop()
        # 1. The intake is stopped and a pause lifted, by whoever asked for the end.
        # 2. Let queued, delayed and running jobs finish.
        await self._until(self.is_drained, lambda: self._drain_until)
        # 3. Hand back what is queued or delayed, then cancel what runs: in this order, so that a freed worker takes
        # nothing.
        self.state = State.STOPPING
        self._grace_until = dispatcher.loop.time() + self._grace
        dispatcher.cancel_where(lambda job: True, CancelReason.SHUTDOWN)
        dispatcher.retire_all()
        await self._until(self._is_empty, lambda: self._grace_until, turns=_LAST_TURNS)
        # 4. Abandon and name what ignores its cancellation.
        dispatcher.abandon_running()
        await self._until(self._is_empty, lambda: -math.inf, turns=_LAST_TURNS)
        leftover = self._cancel_tasks()
        await self._until(lambda: all(task.done() for task in leftover), lambda: -math.inf, turns=_LAST_TURNS)
        self._close([task for task in leftover if not task.done()])

    async def _until_asked_to_stop(self) -> None:
        while not self._stop_is_asked.is_set():
            try:
                await self._stop_is_asked.wait()
            except asyncio.CancelledError:
                self.cancel()

    def is_drained(self) -> bool:
        """Whether nothing is queued, delayed or running."""
        dispatcher = self._dispatcher
        return not dispatcher.queue.size and not dispatcher.running and not dispatcher.delayed

    def _is_empty(self) -> bool:
        return not self._dispatcher.workers and not self._feeders()

    def _feeders(self) -> list[asyncio.Task[None]]:
        return [guest.feeder for guest in self._dispatcher.guests if guest.feeder is not None]

    def _cancel_tasks(self) -> list[asyncio.Task[None]]:
        """Cancel what holds resources and closes sources, and return it."""
        keepers = [worker.keeper for worker in self._dispatcher.workers.values() if worker.keeper is not None]
        tasks = [keeper.task for keeper in keepers if keeper.task is not None] + self._feeders()
        for task in tasks:
            task.cancel()
        return tasks

    def _close(self, abandoned_tasks: list[asyncio.Task[None]]) -> None:
        dispatcher = self._dispatcher
        for task in abandoned_tasks:
            dispatcher.resource_errors.append(TimeoutError(f"task {task.get_name()!r} ignores its cancellation"))
        self.report = ShutdownReport(
            unfinished=_in_order(dispatcher.unfinished),
            abandoned=_in_order(dispatcher.abandoned),
            errors=tuple(dispatcher.resource_errors),
        )
        self.state = State.CLOSED
        dispatcher.is_ended = True
        dispatcher.silence()
        for worker in dispatcher.workers.values():  # abandoned, perhaps while start() waits for the first resource
            if worker.keeper is not None:
                worker.keeper.give_up_entering()
        for guest in list(dispatcher.guests):
            guest.give_up_feeder()
        name, report = dispatcher.name, self.report
        for entry in report.abandoned:
            _log.error("pool %r: abandoned a job that ignores its cancellation: %r", name, entry.job)
        for task in abandoned_tasks:
            _log.error("pool %r: abandoned %s, which ignores its cancellation", name, task.get_name())
        if dispatcher.counters.unread_failures:
            _log.error("pool %r: %d failed jobs were read by nobody", name, dispatcher.counters.unread_failures)
        if report.unfinished and not self.is_report_awaited:
            _log.warning(
                "pool %r: closed with %d unfinished jobs, which pool.report has; the first is %r",
                name,
                len(report.unfinished),
                report.unfinished[0].job,
            )
        _log.debug("pool %r: closed; %d unfinished jobs", name, len(report.unfinished))
        if dispatcher.observers.any:
            dispatcher.observers.emit(PoolEnded(pool=name, report=report))
        self.look()

    def _supervisor_is_done(self, supervisor: asyncio.Task[None]) -> None:
        """Close what a supervisor leaves open that was cancelled before its first step."""
        if self.state is not State.CLOSED:
            if self.state is not State.DRAINING:
                self._stop_intake(drains=False)
            self.state = State.STOPPING
            self._dispatcher.cancel_where(lambda job: True, CancelReason.SHUTDOWN)
            self._dispatcher.retire_all()
            self._dispatcher.abandon_running()
            self._close([task for task in self._cancel_tasks() if not task.done()])

    # -- Waiting -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Wake whoever waits for what is the case now."""
        for future, holds in list(self._watchers.items()):
            if holds():
                _resolve(future)

    async def watch(self, holds: Callable[[], bool], *, until: float = math.inf) -> None:
        """Wait until something holds, for one moment at least, or until a loop time."""
        if holds():
            return
        loop = self._dispatcher.loop
        future: asyncio.Future[None] = loop.create_future()
        self._watchers[future] = holds
        self._dispatcher.call_when_less(self.look)
        timer = None if until == math.inf else loop.call_at(until, _resolve, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            del self._watchers[future]
            if not self._watchers:
                self._dispatcher.call_when_less(None)

    async def _until(
        self, holds: Callable[[], bool], deadline: Callable[[], float] = lambda: math.inf, *, turns: int = 0
    ) -> None:
        """Let the supervisor wait until something holds or a deadline, which may be brought forward, is over.

        Whoever cancels the supervisor (asyncio.run does at its end, with every task) asks for the next step.
        """
        loop = self._dispatcher.loop
        while not holds() and (turns or loop.time() < deadline()):
            try:
                if turns:
                    turns -= 1
                    await asyncio.sleep(0)
                else:
                    await self._watch_until(holds, deadline)
            except asyncio.CancelledError:
                if self.state is State.STOPPING:
                    self.abandon()
                else:
                    self.cancel()

    async def _watch_until(self, holds: Callable[[], bool], deadline: Callable[[], float]) -> None:
        until = deadline()
        await self.watch(lambda: holds() or deadline() < until, until=until)

    async def wait_closed(self) -> ShutdownReport[Any]:
        """Wait for the end. Cancelled once, it asks for step 3; a second time, for step 4; and waits on each time."""
        cancelled: asyncio.CancelledError | None = None
        while self.report is None:
            try:
                # Shielded from the second on: a cancelled anyio scope cancels again at each turn, and that is one.
                with anyio.CancelScope(shield=cancelled is not None):
                    await self.watch(lambda: self.report is not None)
            except asyncio.CancelledError as error:
                if cancelled is None:
                    self.cancel()
                else:
                    self.abandon()
                cancelled = error
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # it knows this frame: kept, it would be a cycle that keeps the caller's frames too
        return self.report
