"""The processes of a pool: which there are, what each may run, and what they have ended.

The attempt travels, the job stays: a job is an ordinary job of the pool, whose handler hands the attempt to a process
and waits for its end (`attempts.py`). So what lies between attempts is not written again, and holds as it is.
Attempts and ends travel in batches that nobody sizes: what came up while the last batch was on its way goes with the
next.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any

from asyncpool._core.job import Job
from asyncpool._core.queue import JobQueue
from asyncpool._core.remote.members import Errand, Member, Remote, Slots
from asyncpool._core.remote.presence import CHECKS, Presence
from asyncpool._core.remote.quarantine import Quarantine
from asyncpool._core.state import State
from asyncpool._core.tasks import Tasks
from asyncpool._core.workers import Workers
from asyncpool._guard import describe, is_error, name_of, safe_text, set_cause
from asyncpool._logs import log, relay
from asyncpool.engines import wire
from asyncpool.engines.contract import Process
from asyncpool.engines.remote_errors import load_error
from asyncpool.engines.wire import BATCH_BYTES, CANCELLED, SHARE, dumps, loads
from asyncpool.errors import EngineLost, PoolError, ProcessDied, ProcessLost
from asyncpool.events import Observers, ProcessGone, ProcessJoined
from asyncpool.stats import ProcessStats

__all__ = ["LOST", "Fleet"]

LOST = -1
"""The kind of end of an attempt that is not run again although its process is gone."""
_LATER = 0.001  # seconds that a process waits longer for the end of a job's time: that is the program's to say
_WAIT_FOR_REPLACEMENT = 1.0  # seconds, before a busy process is emptied for suspects


class Fleet:
    """Hands attempts to processes. It is the `EngineHost` of its engine, which runs in a task of the pool.

    Invariant: an attempt that has not ended is in the outbox, in the quarantine, or in the errands of one member
    (tests/engines/test_laws.py).
    """

    def __init__(
        self,
        options: Remote,
        *,
        state: State,
        tasks: Tasks,
        workers: Workers,
        queue: JobQueue,
        observers: Observers,
        deadline: Callable[[Job], float],
        on_stuck: Callable[[Job], None],
    ) -> None:
        self.pool = state.name
        self.spec = options.spec
        self._engine = options.engine
        self._options = options
        self._state = state
        self._tasks = tasks
        self._workers = workers
        self._queue = queue
        self._observers = observers
        self._deadline = deadline
        self._on_stuck = on_stuck
        self.on_lost: Callable[[EngineLost], None] = lambda error: None
        """Called once, when the engine is lost while the pool is open."""
        self.reruns = 0
        self.processes_lost = 0
        self._members: dict[Process, Member] = {}
        self._slots = Slots()
        self._errands: dict[int, Errand] = {}
        self._outbox: deque[Errand] = deque()
        self._quarantine = Quarantine()
        self.shares_main = options.engine.shares_main
        self._reserve_at = -math.inf  # loop time from which busy processes are emptied for suspects
        self._count = 0
        self._most = 1
        self._is_pump_scheduled = False
        self._lost: EngineLost | None = None
        self._is_over = False
        self._closing = asyncio.Event()
        self._is_leaving = False
        self._grace_until: Callable[[], float] = lambda: math.inf
        self._grown = asyncio.Event()
        self._silence_timer: asyncio.TimerHandle | None = None
        self._reserve_timer: asyncio.TimerHandle | None = None
        self.presence = Presence(
            state,
            self._members,
            workers.log,
            is_required=options.is_required,
            patience=options.patience,
            is_needed=lambda: self._workers.target > 0 or bool(self._errands),
            expected=lambda: self._expected,
            give_up=self._lose_patience,
        )

    # -- Life --------------------------------------------------------------------------------------------------------

    async def open(self, context: Context) -> None:
        """Start the engine, and wait for the first process that can run the handler. Raises what kept it from that."""
        self._loop, self._context = self._state.loop, context
        opened = self.presence.begin(context)
        self._tasks.spawn(self._run_engine, name=f"{self.pool} engine", context=context.copy())
        if self._options.responds_within is not None:
            self._check_silence(self._options.responds_within / CHECKS)
        if not self._workers.target:
            self.presence.open()  # nothing is to run yet
        await opened

    async def _run_engine(self) -> None:
        cause: BaseException | None = None
        try:
            await self._engine.run(self)
        except Exception as error:
            cause = error
        except BaseException as error:  # somebody else has cancelled its task, or it wants to end the program
            self.end()
            if not self._state.is_loop_shutting_down():
                self._lose_engine(f"{describe(self._engine)} was ended by {name_of(type(error))}", None)
            elif is_error(error, (KeyboardInterrupt, SystemExit)):
                # An interrupt of a task of the engine, which the loop has raised already. Raised again, it would stop
                # the cleanup of asyncio.run before the pool is closed (tests/laws/test_interrupts.py).
                return
            raise
        self.end()
        if not self._closing.is_set() and not self._is_leaving:
            what = "has ended" if cause is None else "has failed"
            self._lose_engine(f"{describe(self._engine)} {what} while the pool was open", cause)
        elif cause is not None:
            log.error("pool %r: the engine raised an exception while it was closing", self.pool, exc_info=cause)

    def end(self) -> None:
        """Let go of all processes: the engine has ended, or was cancelled before it began. Safe to repeat.

        What has not ended by now waits for its cancellation.
        """
        self._is_over = True
        self.presence.end()
        for timer in (self._silence_timer, self._reserve_timer):
            if timer is not None:
                timer.cancel()
        for member in list(self._members.values()):
            for errand in self._remove(member):
                if errand.is_cancelled:
                    self._settle(errand, CANCELLED, True)
        for errand in [errand for errand in self._errands.values() if errand.is_cancelled]:
            self._settle(errand, CANCELLED, errand.was_sent)

    def leave(self, grace_until: Callable[[], float]) -> None:
        """Let the engine end as soon as no attempt is left: the pool is closing."""
        self._is_leaving = True
        self._grace_until = grace_until
        self.presence.leave()
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if self._is_leaving and not self._errands:
            self._closing.set()

    def _lose_patience(self) -> None:
        self._lose_engine(
            f"{describe(self._engine)} has had no process that can run the handler for {self._options.patience:g} s",
            None,
        )

    def _lose_engine(self, text: str, cause: BaseException | None) -> None:
        if self._lost is not None or self._is_leaving:
            return
        self._lost = error = EngineLost(text)
        set_cause(error, cause)
        if not self.presence.fail(error):
            self.on_lost(error)

    # -- What the engine sees ----------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """How many attempts can run at the same time now."""
        return self._workers.target

    @property
    def backlog(self) -> int:
        """How many jobs wait for a worker, or for room to do that."""
        return len(self._queue.order) + len(self._queue.line.waiting)

    @property
    def grace(self) -> float:
        """Seconds that are left to end what runs in the processes."""
        return max(0.0, self._grace_until() - self._state.time())

    def expect(self, processes: int) -> None:
        """Share the workers out among this many processes."""
        self._most = max(1, processes)
        self._pump_soon()

    def join(self, process: Process) -> None:
        """Use a process from now on."""
        if self._is_over or self._closing.is_set():
            process.kill()
            return
        member = self._members[process] = Member(process, *self._slots.take())
        for talk in (self._send, self._receive):
            name = f"{self.pool} {talk.__name__.strip('_')} {member.number}"
            member.tasks.append(
                self._tasks.spawn(partial(self._talk, member, talk), name=name, context=self._context.copy())
            )
        self._pump_soon()

    @property
    def _expected(self) -> int:
        """How many processes there should be: not more than workers, of which each has one at least."""
        return max(1, min(self._most, self._workers.target))

    async def workers_above(self, count: int) -> None:
        """Wait until there may be more workers than `count`."""
        while self._workers.target <= count:
            self._grown.clear()
            await self._grown.wait()

    async def closing(self) -> None:
        """Wait until no process is needed any more."""
        await self._closing.wait()

    def resized(self) -> None:
        """Note that the number of workers has changed."""
        if self.presence.has_begun:
            self._grown.set()
            self.presence.changed()
            self._pump_soon()

    # -- Attempts, which `attempts.py` brings ------------------------------------------------------------------------

    def post(self, job: Job, data: bytes, carried: bytes | None, timeout: float | None) -> Errand:
        """Have an attempt run in a process as soon as one has room."""
        self._count += 1
        ended: asyncio.Future[None] = self._loop.create_future()
        errand = self._errands[self._count] = Errand(self._count, job, data, carried, timeout, ended)
        self._outbox.append(errand)
        self._pump_soon()
        return errand

    def withdraw(self, errand: Errand) -> bool:
        """Request the end of an attempt. Return whether it has ended with that, because it runs nowhere."""
        errand.is_cancelled = True
        # An interrupt in the middle of a step may have lost an attempt that its process has ended, or was never sent.
        if errand.member is not None and errand.id in errand.member.errands:
            errand.member.cancel(errand)
            return False
        self._settle(errand, CANCELLED, errand.was_sent)
        return True

    def _settle(self, errand: Errand, kind: int, content: Any, seconds: float = 0.0) -> None:
        errand.settle(kind, content, seconds)
        self._errands.pop(errand.id, None)
        if not self._errands:
            self._close_if_empty()
            if self.presence.is_running_out:
                self.presence.changed()

    # -- To the processes --------------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        if not self._is_pump_scheduled and not self._is_over and self._state.is_bound:
            self._is_pump_scheduled = True
            self._state.loop.call_soon(self._pump, context=self._context.copy())

    def _pump(self) -> None:
        """Hand out what waits: suspects to a process of their own, everything else evenly."""
        self._is_pump_scheduled = False
        if self._is_over:
            return
        self._share_out()
        members = [member for member in self._members.values() if member.is_ready and member.share]
        now = self._state.time()
        if self._quarantine or any(member.is_apart for member in members):
            for member, group in self._quarantine.assign(members, reserves=now >= self._reserve_at):
                for errand in group:
                    member.hand(errand, self._left(errand, now))
            members = [member for member in members if not member.is_apart]
        if not members or not self._outbox:
            return
        members.sort(key=_load_of)
        level = math.ceil((sum(map(_load_of, members)) + len(self._outbox)) / len(members))
        for member in members:
            room = min(member.room, level - len(member.errands))
            while room > 0 and self._outbox and member.bytes < BATCH_BYTES:
                errand = self._outbox.popleft()
                if errand.end is None:
                    member.hand(errand, self._left(errand, now))
                    room -= 1

    def _left(self, errand: Errand, now: float) -> float | None:
        left = self._deadline(errand.job) - now
        return None if left == math.inf else max(0.0, left) + _LATER

    def _share_out(self) -> None:
        """Tell each process how many attempts may run there at the same time: together as many as there are workers."""
        members = sorted(self._members.values(), key=lambda member: member.number)
        # While the pool shrinks, jobs that have a worker already are more than there should be workers.
        wanted = max(self._workers.target, len(self._errands))
        base, more = divmod(wanted, max(self._expected, len(members)))
        for place, member in enumerate(members):
            share = base + (place < more)
            if member.share != share:
                member.share = share
                if not share:  # it closes its pool, and so its resources, when what runs there has ended
                    member.is_ready = member.is_waiting = False
                member.order(SHARE, share)

    async def _send(self, member: Member) -> None:
        while True:
            await member.has_orders.wait()
            await member.process.put(dumps(member.take_orders(), shares_main=True))
            if self._outbox:
                self._pump_soon()

    # -- And back ----------------------------------------------------------------------------------------------------

    async def _receive(self, member: Member) -> None:
        while True:
            batch = await member.process.take()
            member.silent_checks = 0
            for kind, id, content, seconds in loads(batch) if batch else ():
                errand = member.errands.pop(id, None)
                if errand is None:
                    self._hear(member, kind, content)
                elif kind == CANCELLED and not errand.is_cancelled:
                    member.is_ready = False  # it is being closed there, by somebody else
                    self._run_elsewhere(errand, member, content)
                else:
                    member.counts.done += 1
                    member.counts.seconds += seconds
                    self._settle(errand, kind, content, seconds)
            if self._outbox or self._quarantine or member.is_apart:
                self._pump_soon()

    def _hear(self, member: Member, kind: int, content: Any) -> None:
        """Take news that are not the end of an attempt."""
        match kind:
            case wire.BROKEN:
                raise load_error(content)
            case wire.LOG:
                relay(content)
            case wire.READY:
                self._is_ready(member)
            case wire.WAITING if member.share:
                member.is_ready, member.is_waiting = False, True
                self.presence.waits()
            case wire.FAULT:
                worker, error, retry_in, is_abandoned = content
                self.presence.resource_failed(member, worker, load_error(error), retry_in, is_abandoned=is_abandoned)
            case wire.OPENED:
                self._workers.log.opened(content, process=member.name)
            case wire.LEFT:
                self._workers.log.left(content, process=member.name)
            case wire.REPLACED:
                worker, reason = content
                self._workers.log.replaced(worker, reason, process=member.name)
            case wire.STUCK if content in member.errands:
                self._on_stuck(member.errands[content].job)
            case _:
                pass  # it came too late

    def _is_ready(self, member: Member) -> None:
        if not member.share:
            return
        member.is_ready, member.is_waiting = True, False
        if not member.was_ready:
            member.was_ready = True
            log.debug("pool %r: %s has joined", self.pool, member.name)
            if self._observers.any:
                self._observers.emit(ProcessJoined(pool=self.pool, process=member.name, number=member.number))
        self.presence.open()
        self.presence.changed()
        self._pump_soon()

    # -- Losses ------------------------------------------------------------------------------------------------------

    async def _talk(self, member: Member, talk: Callable[[Member], Awaitable[None]]) -> None:
        """Send or receive until the process is lost."""
        try:
            await talk(member)
        except Exception as error:
            self._lose(member, error)
        except BaseException as error:
            # Cancelled at the end of the pool, it leaves the rest to the engine, which is so, too.
            if not (self._is_leaving or self._state.is_loop_shutting_down()):
                self._lose(member, ProcessLost(f"the task that talks to it was ended by {name_of(type(error))}"))
            raise

    def _remove(self, member: Member) -> list[Errand]:
        """Talk to a process no more, and return what it has not ended."""
        del self._members[member.process]
        self._slots.give_back(member.number)
        for task in member.tasks:
            task.cancel()
        return member.release()

    def _lose(self, member: Member, error: BaseException) -> None:
        if self._is_over or self._members.get(member.process) is not member:
            return
        errands = self._remove(member)
        if self._closing.is_set():  # the engine ends its processes
            return
        try:
            member.process.kill()
        except Exception as raised:  # what the process had must run elsewhere all the same
            log.error("pool %r: killing %s raised an exception", self.pool, member.name, exc_info=raised)
        self.processes_lost += 1
        self.presence.lost(member, error, len(errands))
        sent = [errand for errand in errands if errand.is_sent and not errand.is_cancelled]
        member.counts.lost += len(sent)
        for errand in reversed(errands):
            if errand.is_cancelled:
                self._settle(errand, CANCELLED, errand.was_sent)
            elif not errand.is_sent:  # it is not to blame for this death
                self._outbox.appendleft(errand)
        if sent and not self._options.reruns:
            for errand in sent:
                self._settle(errand, LOST, self._not_run_again(member, error))
        elif sent:
            self._suspect(sent, member, error)
        if self._observers.any:
            self._observers.emit(
                ProcessGone(pool=self.pool, process=member.name, number=member.number, attempts=len(sent), error=error)
            )
        self.presence.changed()
        self._pump_soon()

    def _not_run_again(self, member: Member, error: BaseException) -> PoolError:
        how = safe_text(str, error)
        lost = ProcessLost(f"{member.name} was lost while it had the job, which is not run again (reruns=False): {how}")
        set_cause(lost, error)
        return lost

    def _suspect(self, errands: list[Errand], member: Member, error: BaseException) -> None:
        """Run what a dead process had again, apart from others, unless one is found guilty of its death."""
        guilty = self._quarantine.take_in(errands)
        if guilty is not None:
            how = safe_text(str, error)
            died = ProcessDied(f"{member.name} died while it had only this job, as another process did before: {how}")
            set_cause(died, error)
            self._settle(guilty, LOST, died)
            return
        self.reruns += len(errands)
        if len(self._members) < self._expected:
            self._reserve_at = self._state.time() + _WAIT_FOR_REPLACEMENT
            if self._reserve_timer is not None:
                self._reserve_timer.cancel()
            self._reserve_timer = self._loop.call_at(self._reserve_at, self._pump_soon, context=self._context.copy())

    def _run_elsewhere(self, errand: Errand, member: Member, had_started: bool) -> None:
        """Run an attempt again that its process has cancelled without being asked: it is closed there."""
        errand.member = None
        if had_started and not self._options.reruns:
            self._settle(errand, LOST, self._not_run_again(member, ProcessLost("it was closed")))
            return
        self.reruns += had_started
        self._outbox.appendleft(errand)
        self.presence.changed()

    def _check_silence(self, interval: float) -> None:
        """Look for processes that live and do not respond: a handler blocks their event loop, for example."""
        if self._is_over:
            return
        self._silence_timer = self._loop.call_later(
            interval, self._check_silence, interval, context=self._context.copy()
        )
        for member in list(self._members.values()):
            if member.was_ready:
                member.silent_checks += 1
                if member.silent_checks > CHECKS:
                    self._lose(member, ProcessLost(f"it did not respond within {self._options.responds_within:g} s"))

    # -- What is counted ---------------------------------------------------------------------------------------------

    @property
    def processes(self) -> int:
        """How many processes can run attempts."""
        return sum(member.is_ready for member in self._members.values())

    def stats(self) -> tuple[ProcessStats, ...]:
        """Return a snapshot of each process, in the order of their numbers."""
        return tuple(member.stats() for member in sorted(self._members.values(), key=lambda member: member.number))


def _load_of(member: Member) -> int:
    return len(member.errands)
