"""The life of a pool: the supervisor task that starts it, and takes it through the steps of `close()`.

Stop is a level and not an event: a request changes a state or brings a deadline forward, synchronously, and the
supervisor acts on what holds when it looks. So a request can come at any moment, from anybody, any number of times.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context, copy_context
from operator import itemgetter
from typing import Any

import anyio

from asyncpool._core.lost_tasks import end_lost, shows_lost_tasks, wake_groups
from asyncpool._core.parts import Parts
from asyncpool._core.state import Phase
from asyncpool._core.tasks import PoolTaskGroup
from asyncpool._guard import cause_of, is_error
from asyncpool._logs import log
from asyncpool.errors import EngineLost, PoolClosed, PoolReused
from asyncpool.events import PoolEnded, PoolStarted, PoolStopping
from asyncpool.outcomes import CancelReason, ShutdownReport, Unfinished
from asyncpool.scaling.policy import Decision

__all__ = ["Life"]

# What was just cancelled gets this many loop iterations to end by itself, however short the grace.
_LAST_TURNS = 16
# After this many interrupts of itself the supervisor no longer begins again.
_MAX_INTERRUPTS = 8
# While the pool ends, the supervisor is checked after each of these intervals, and then who waits for the end: an
# interrupt can have lost any of them.
_WATCH_SECONDS = 1.0


def _in_order(numbered: list[tuple[int, Unfinished[Any]]]) -> tuple[Unfinished[Any], ...]:
    return tuple(map(itemgetter(1), sorted(numbered, key=itemgetter(0))))


class Life:
    """Starts and ends the parts of a pool."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._state = parts.state
        self.report: ShutdownReport[Any] | None = None
        self.is_report_awaited = False  # otherwise nobody may ever look at it, and the log says what it says
        # Invariant: each of the next three only gets smaller (tests/laws: a_close_is_cancelled_once_or_twice).
        self._drain_until = math.inf  # loop time at which step 3 begins
        self._grace = math.inf  # seconds
        self._grace_until = math.inf  # loop time at which step 4 begins, once step 3 has
        self._stop_is_requested = asyncio.Event()
        self._interrupts = 0  # of the supervisor
        self._watch: asyncio.TimerHandle | None = None  # of the supervisor

    # -- The beginning -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the pool. Waits for the first resource, if workers have one, or for the first process of an engine."""
        parts, state = self._parts, self._state
        if state.phase is not Phase.NEW:
            raise PoolReused(
                f"pool {state.name!r} is {state.phase.value}: a pool can be started only once, so create a new one"
            )
        # Imports anyio's backend here, and not inside the first job with a timeout: that takes tens of milliseconds.
        anyio.get_current_task()
        loop = asyncio.get_running_loop()
        parts.bind_shared(loop)  # before there is anything to undo
        # First of all, and with a context like the jobs' tasks: a task factory that cannot do that says so here.
        supervise = self._supervise()
        try:
            supervisor = loop.create_task(supervise, name=f"{state.name} supervisor", context=copy_context())
        except BaseException:
            supervise.close()
            raise
        try:
            parts.open(loop)
            state.move(Phase.STARTING)
            state.supervisor = supervisor
            supervisor.add_done_callback(self._supervisor_is_done)
        except BaseException:  # a KeyboardInterrupt: the caller has no pool that they could close
            supervisor.cancel()
            if state.is_starting:
                supervisor.add_done_callback(self._supervisor_is_done)
            elif parts.breaking is not None:
                parts.breaking.close()
            raise
        if parts.dead_letters is not None:  # the sink can do anything, even close the pool
            parts.dead_letters.opened()
        if parts.workers.resource is not None or parts.fleet is not None:
            await self._open_first()
        elif not state.is_starting:
            await self.wait_closed()
            raise self._closed_while_starting()
        state.move(Phase.OPEN)  # first: jobs that were submitted already begin now, and can ask for the end
        parts.workers.resize(Decision(parts.workers.target), None)
        log.debug("pool %r: started with %d workers", state.name, parts.workers.target)
        if parts.observers.any:
            parts.observers.emit(PoolStarted(pool=state.name, workers=parts.workers.target))
        if not parts.scaler.is_fixed:
            try:
                parts.scaler.evaluate()
            except BaseException:  # a KeyboardInterrupt
                self.cancel()
                await self.wait_closed()
                raise

    async def _open_first(self) -> None:
        """Wait for the first worker's resource, or for the first process."""
        parts, resource = self._parts, self._parts.workers.resource
        try:
            await parts.tasks.wait_open()  # for the group that their tasks run in; which can be over by then
            if self._state.is_starting:
                if parts.fleet is not None:
                    parts.fleet.on_lost = self._engine_is_lost
                    await parts.fleet.open(copy_context())
                elif parts.workers.target and resource is not None and resource.required:
                    opened = parts.workers.add_first().opened
                    assert opened is not None
                    await opened
            if not self._state.is_starting:
                raise self._closed_while_starting()
        except BaseException:
            self.cancel()
            await self.wait_closed()
            raise

    def _engine_is_lost(self, error: EngineLost) -> None:
        log.error(
            "pool %r: the engine is lost, so the pool is cancelled: %s",
            self._state.name,
            str(error),
            exc_info=cause_of(error),
        )
        self._state.cause = error
        self._parts.ledger.resource_errors.append(error)
        self.cancel()

    def _closed_while_starting(self) -> PoolClosed:
        return PoolClosed(f"pool {self._state.name!r} was closed while it was starting")

    # -- Requests: synchronous, from anybody, any number of times ----------------------------------------------------

    def stop(self, *, drain_timeout: float | None, grace: float) -> None:
        """Ask for the end; a later request can only bring it forward."""
        state = self._state
        if state.phase is Phase.NEW:
            state.move(Phase.CLOSED)
            self.report = ShutdownReport()
        if state.phase is Phase.CLOSED:
            return
        now = state.loop.time()
        if drain_timeout is not None:
            self._drain_until = min(self._drain_until, now + drain_timeout)
        self._grace = min(self._grace, grace)
        if state.phase is Phase.STOPPING:
            self._grace_until = min(self._grace_until, now + grace)
        elif state.phase is Phase.STARTING:
            self._drain_until = now  # nothing runs yet that could be drained
        # First: if an interrupt comes from here on, the supervisor does what is left.
        if self._watch is None:
            self._watch_supervisor()  # before the supervisor is woken: that can be the wakeup that is lost
        self._stop_is_requested.set()
        if state.phase in (Phase.STARTING, Phase.OPEN):
            self._stop_intake(drains=self._drain_until > now)
        self._parts.wakeups.notify()

    def cancel(self) -> None:
        """Ask for step 3, at once."""
        self.stop(drain_timeout=0.0, grace=5.0 if self._grace == math.inf else self._grace)

    def abandon(self) -> None:
        """Ask for step 4, at once."""
        self.stop(drain_timeout=0.0, grace=0.0)

    def _stop_intake(self, *, drains: bool) -> None:
        parts, state = self._parts, self._state
        state.move(Phase.DRAINING)
        self._close_intake()
        if parts.observers.any:
            parts.observers.emit(PoolStopping(pool=state.name, drains=drains))

    def _close_intake(self) -> None:
        """Turn submitters away, stop the producers and lift the user's pause. Safe to repeat."""
        parts, state = self._parts, self._state
        parts.queue.line.close(state.closed_error)
        for producer in parts.producers:
            producer.stop(state.closed_error())
        parts.pauses.resume()

    # -- The ladder --------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Take the pool to its end, whatever happens."""
        parts = self._parts
        async with PoolTaskGroup() as group:
            parts.tasks.open(group)  # from here on, resource tasks and feeders run in it
            try:
                while self.report is None:
                    await self._climb()
            except BaseException:
                if not self._state.loop.is_closed():  # else we are being collected
                    parts.workers.retire_all()  # the group waits for its children, and nobody else would end these
                raise
            # Close() has returned by now. Only the supervisor waits for tasks that ignore their cancellation
            # (test_a_task_that_ignores_the_end_holds_the_supervisor). Here, and not by leaving the block: if every task
            # is cancelled meanwhile, as at the end of asyncio.run, the group would cancel these once more.
            while True:
                try:
                    await parts.tasks.wait_done()
                    break
                except asyncio.CancelledError:
                    continue

    async def _climb(self) -> None:
        """Take the pool through the steps, until the report is made, or an interrupt comes."""
        try:
            await self._take_to_end()
        except (KeyboardInterrupt, SystemExit) as error:
            self._interrupts += 1
            if self._state.loop.is_closed() or self._interrupts > _MAX_INTERRUPTS:
                raise
            # The program gets it now, and the pool goes on. Raised here, it would wait in the group for the children,
            # and the program would not even know (test_an_interrupt_of_the_supervisor_reaches_the_program).
            self._state.raise_later(error)
            self.cancel()

    async def _take_to_end(self) -> None:
        """Take the pool through the steps of `WorkerPool.close` and docs/semantics.md. Can be repeated."""
        parts = self._parts
        await self._until_asked_to_stop()
        if self.report is not None:
            return
        self._finish_stopping_intake()
        # 1. The intake is stopped and a pause lifted, by the request.
        # 2. Let queued, delayed and running jobs finish.
        await self._until_settled()
        await self._until(lambda: parts.ledger.is_drained, lambda: self._drain_until)
        # 3. Hand back what is queued or delayed, and cancel what runs; no worker that becomes free takes anything
        # meanwhile (`Cancellation.cancel_where`).
        if self._state.phase is Phase.DRAINING:
            self._state.move(Phase.STOPPING)
        self._cancel_jobs()
        await self._until_settled()
        self._grace_until = min(self._grace_until, self._state.loop.time() + self._grace)
        await self._until(self._is_empty, lambda: -math.inf, turns=_LAST_TURNS)
        self._end_lost_tasks()
        parts.workers.release_lost()
        # A job that has swallowed its cancellation gets another when half of the grace is over.
        began = self._state.loop.time()
        await self._until(self._is_empty, lambda: began + (self._grace_until - began) / 2)
        parts.cancellation.repeat()
        await self._until(self._is_empty, lambda: self._grace_until)
        # 4. Abandon and name what ignores its cancellation.
        self._end_lost_tasks()
        parts.workers.abandon()
        await self._until(self._is_empty, lambda: -math.inf, turns=_LAST_TURNS)
        leftover = parts.tasks.cancel_all()
        await self._until(lambda: parts.tasks.is_done, lambda: -math.inf, turns=_LAST_TURNS)
        self._end_lost_tasks()
        await self._until(lambda: parts.tasks.is_done, lambda: -math.inf, turns=1)
        self._close([task for task in leftover if not task.done()])

    def _end_lost_tasks(self) -> None:
        """End the tasks of the pool and of its jobs that are lost after an interrupt: they cannot end by themselves.

        After an interrupt, and when somebody cancels every task, as asyncio.run does at its end, also the others that
        were cancelled: a caller that was lost while it waited for the pool would hang the program as well.
        """
        parts, state = self._parts, self._state
        tasks: list[asyncio.Task[Any]] = [job.task for job in parts.cancellation.running_jobs() if job.task is not None]
        tasks += parts.tasks.all
        if state.is_interrupted or state.is_loop_shutting_down():
            cancelled = [task for task in asyncio.all_tasks(state.loop) if task.cancelling()]
            wake_groups(cancelled, state)
            tasks += cancelled
        end_lost(tasks, state)

    def _watch_supervisor(self) -> None:
        """End the supervisor if it is lost: its callback closes the pool then. End what it waits for, if that is."""
        parts, state, supervisor = self._parts, self._state, self._state.supervisor
        if supervisor is None or not shows_lost_tasks(state.loop):
            return
        if supervisor.done():  # its callback was lost: that would have cancelled this watch
            self._supervisor_is_done(supervisor)
            return
        end_lost([supervisor, *parts.tasks.all], state)
        if self.report is not None and all(task.done() for task in parts.tasks.all):
            supervisor.cancel()  # it was not notified of their end: let it look again
        self._watch = state.loop.call_later(_WATCH_SECONDS, self._watch_supervisor, context=Context())

    def _watch_waiters(self) -> None:
        """End the tasks that wait for the end of the pool and are lost: the supervisor is gone, so nobody else can."""
        state, wakeups = self._state, self._parts.wakeups
        end_lost(filter(wakeups.is_awaited_by, asyncio.all_tasks(state.loop)), state)
        if wakeups.is_awaited:
            self._watch = state.loop.call_later(_WATCH_SECONDS, self._watch_waiters, context=Context())

    def _finish_stopping_intake(self) -> None:
        """Repeat what a KeyboardInterrupt in the middle of a request may have left out; otherwise nothing is left to do
        (test_an_interrupt_at_any_line_leaves_a_pool_that_closes).
        """
        if self._state.phase in (Phase.STARTING, Phase.OPEN):
            self._stop_intake(drains=False)
        self._close_intake()

    async def _until_asked_to_stop(self) -> None:
        # With a report, the pool has not even started: an interrupt came in `start`.
        while not self._stop_is_requested.is_set() and self.report is None:
            try:
                await self._stop_is_requested.wait()
            except asyncio.CancelledError:
                self.cancel()

    def _cancel_jobs(self) -> None:
        self._parts.cancellation.cancel_where(lambda job: True, CancelReason.SHUTDOWN)
        self._parts.scaler.end()
        self._parts.workers.retire_all()
        if self._parts.fleet is not None:
            self._parts.fleet.leave(lambda: self._grace_until)

    async def _until_settled(self) -> None:
        """Wait until each waiting job is settled that was cancelled. Takes as long as that takes, and no more."""
        cancellation = self._parts.cancellation
        while cancellation.is_settling:
            cancellation.settle_on()
            await self._until(lambda: not cancellation.is_settling, lambda: -math.inf, turns=1)

    def _is_empty(self) -> bool:
        return not self._parts.workers.by_number and self._parts.tasks.is_empty

    def _close(self, abandoned_tasks: list[asyncio.Task[None]]) -> None:
        parts, name = self._parts, self._state.name
        for task in abandoned_tasks:
            parts.ledger.resource_errors.append(TimeoutError(f"task {task.get_name()!r} ignores its cancellation"))
        self.report = report = ShutdownReport(
            unfinished=_in_order(parts.ledger.unfinished),
            abandoned=_in_order(parts.ledger.abandoned),
            errors=tuple(parts.ledger.resource_errors),
        )
        self._state.move(Phase.CLOSED)
        parts.close()
        for producer in parts.producers:
            producer.stop_waiting_for_feeder()
        for entry in report.abandoned:
            log.error("pool %r: abandoned a job that ignores its cancellation: %r", name, entry.job)
        for task in abandoned_tasks:
            log.error("pool %r: abandoned %s, which ignores its cancellation", name, task.get_name())
        if parts.ledger.unread_failures == 1:
            log.error("pool %r: 1 failure was never retrieved", name)
        elif parts.ledger.unread_failures:
            log.error("pool %r: %d failures were never retrieved", name, parts.ledger.unread_failures)
        if report.unfinished and not self.is_report_awaited:
            log.warning(
                "pool %r: closed with %d unfinished jobs, listed in pool.report; the first is %r",
                name,
                len(report.unfinished),
                report.unfinished[0].job,
            )
        log.debug("pool %r: closed; %d unfinished jobs", name, len(report.unfinished))
        if parts.observers.any:
            parts.observers.emit(PoolEnded(pool=name, report=report))
        parts.wakeups.notify()

    def _supervisor_is_done(self, supervisor: asyncio.Task[None]) -> None:
        """Close what a supervisor leaves open that was cancelled before its first step, and log what it raised."""
        parts, state = self._parts, self._state
        parts.tasks.give_up_opening()
        if self._watch is not None:
            self._watch.cancel()
        if state.phase is not Phase.CLOSED:
            if state.phase in (Phase.STARTING, Phase.OPEN):
                self._stop_intake(drains=False)
            if state.phase is Phase.DRAINING:
                state.move(Phase.STOPPING)
            self._cancel_jobs()
            parts.cancellation.settle_all()
            parts.workers.abandon()
            self._close([task for task in parts.tasks.cancel_all() if not task.done()])
        parts.wakeups.notify()
        # Who waits for the end was resumed before this, or will be in the next turn.
        if parts.wakeups.is_awaited and shows_lost_tasks(state.loop):
            state.loop.call_soon(self._watch_waiters, context=Context())
        if supervisor.cancelled():
            return
        error = supervisor.exception()
        # The loop has raised an interrupt already (test_an_interrupt_of_the_supervisor_is_not_logged_as_a_failure).
        if error is not None and not is_error(error, (KeyboardInterrupt, SystemExit)):
            log.error("pool %r: an internal task failed, so the pool was closed", state.name, exc_info=error)

    # -- Waiting -----------------------------------------------------------------------------------------------------

    async def _until(
        self, holds: Callable[[], bool], deadline: Callable[[], float] = lambda: math.inf, *, turns: int = 0
    ) -> None:
        """Let the supervisor wait until something holds or a deadline, which can be brought forward, is over.

        Cancelling the supervisor, as asyncio.run does at its end with every task, requests the next step.
        """
        loop = self._state.loop
        while not holds() and (turns or loop.time() < deadline()):
            try:
                if turns:
                    turns -= 1
                    await asyncio.sleep(0)
                else:
                    await self._watch_until(holds, deadline)
            except asyncio.CancelledError:
                if self._state.phase is Phase.STOPPING:
                    self.abandon()
                else:
                    self.cancel()

    async def _watch_until(self, holds: Callable[[], bool], deadline: Callable[[], float]) -> None:
        until = deadline()
        await self._parts.wakeups.wait_until(lambda: holds() or deadline() < until, until=until)

    async def wait_closed(self) -> ShutdownReport[Any]:
        """Wait for the end. Cancelled once, it asks for step 3; a second time, for step 4; and waits on each time."""
        cancelled: asyncio.CancelledError | None = None
        while self.report is None:
            try:
                # Shielded from the second on: a cancelled anyio scope cancels again in each iteration, and counts once.
                with anyio.CancelScope(shield=cancelled is not None):
                    await self._parts.wakeups.wait_until(lambda: self.report is not None)
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
