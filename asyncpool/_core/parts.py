"""Builds the parts of one pool from its options, and wires them together.

What the parts do is in their files; when they begin and end is `life.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from operator import index
from typing import Any

from asyncpool._core.breaking import Breaking, HoldingHeap
from asyncpool._core.cancellation import Cancellation
from asyncpool._core.claims import Resolver
from asyncpool._core.dispatch import Dispatcher
from asyncpool._core.gated import Deadlines, GatedDispatcher
from asyncpool._core.health import Health
from asyncpool._core.inspection import Inspection
from asyncpool._core.invoke import Invoke, call_job
from asyncpool._core.job import Job, Worker
from asyncpool._core.lanes import Lanes
from asyncpool._core.ledger import Ledger, Throughput
from asyncpool._core.load import Load
from asyncpool._core.orders import ByAge, ComebackFirst, Fifo, OldestComebackFirst, Order
from asyncpool._core.pauses import Pauses
from asyncpool._core.priorities import ByPriority, ByPriorityAndAge
from asyncpool._core.progress import Deadlock, Stall
from asyncpool._core.queue import JobQueue
from asyncpool._core.queue_timeouts import QueueTimeouts
from asyncpool._core.remote.attempts import RemoteHandler
from asyncpool._core.remote.fleet import Fleet
from asyncpool._core.remote.members import Remote
from asyncpool._core.retries import Retries
from asyncpool._core.scaler import Scaler
from asyncpool._core.state import State
from asyncpool._core.tasks import Tasks
from asyncpool._core.timed import TimedDispatcher
from asyncpool._core.timeouts import Timeout
from asyncpool._core.timers import TimerHeap
from asyncpool._core.wakeups import Producers, Wakeups
from asyncpool._core.workers import Workers
from asyncpool._guard import describe
from asyncpool.breaker import Breaker
from asyncpool.dead_letters.letter import DeadLetterSink
from asyncpool.dead_letters.writer import DeadLetterWriter
from asyncpool.events import Observers
from asyncpool.limits.limiter import is_manager
from asyncpool.limits.line import Limit
from asyncpool.limits.rate import RateLimit
from asyncpool.resources import Resource
from asyncpool.retry import Retry
from asyncpool.scaling.policy import ScalingPolicy
from asyncpool.stats import PoolStats

__all__ = ["Parts", "parts_of"]


class Parts:
    """The parts of a pool. Each owns what it is named for, and nobody else writes it."""

    def __init__(
        self,
        *,
        name: str,
        handler: Callable[..., Awaitable[Any]] | None,
        policy: ScalingPolicy,
        priority: Callable[[Any], Any] | None,
        queue_size: int | None,
        max_delayed: int,
        timeout: Timeout,
        queue_timeout: float | None = None,
        retry: Retry | None,
        limiters: tuple[Any, ...],
        dead_letters: DeadLetterSink[Any] | None,
        resource: Resource[Any] | None,
        observers: Observers,
        breaker: Breaker | None = None,
        remote: Remote | None = None,
    ) -> None:
        call: Callable[..., Awaitable[Any]] = call_job if handler is None else handler
        # A single rate limit of all jobs, or a single context manager, needs no lanes.
        single = limiters[0] if len(limiters) == 1 else None
        rate_limit = single if isinstance(single, RateLimit) and not single.is_weighted else None
        manager = single if is_manager(single) else None
        resolver = Resolver(limiters, name) if limiters and rate_limit is None and manager is None else None
        self._limits: tuple[Limit, ...] = resolver.shared if resolver is not None else ()
        if rate_limit is not None:
            self._limits = (rate_limit,)
        make_order = _order_maker(
            priority,
            comes_back=retry is not None or bool(limiters) or breaker is not None,
            has_lanes=resolver is not None,
        )
        order = make_order()
        budget = None if retry is None or retry.budget is None else retry.budget.start()
        if budget is not None:
            _report_appended(order, lambda job: budget.deposit(job.ready_at))
        max_elapsed = None if retry is None else retry.max_elapsed
        if max_elapsed is not None:
            _report_appended(order, self._watch_deadline)
        if queue_timeout is not None:
            _report_appended(order, self._watch_queue_timeout)
        if resource is not None and resource.check is not None:
            _report_appended(order, lambda job: self.health.job_arrived())
        # Shared by those who only read them; `Workers` and `Health` write them.
        by_number: dict[int, Worker] = {}
        idle: list[Worker] = []
        backing_off = (TimerHeap[Job] if breaker is None else HoldingHeap)(
            self._come_back, lambda job: job.outcome is None
        )

        self.observers = observers
        self.state = State(name)
        self.dead_letters = None if dead_letters is None else DeadLetterWriter(self.state, dead_letters)
        self.ledger = Ledger(self.state, observers, self.dead_letters)
        self.producers = Producers()
        self.wakeups = Wakeups(self.state, self.ledger, self.producers)
        self.tasks = Tasks(self.state, self.wakeups.notify)
        self.pauses = Pauses(self.state, observers, self.wakeups)
        self.queue = JobQueue(
            order,
            queue_size=queue_size,
            max_delayed=max_delayed,
            idle=idle,
            ledger=self.ledger,
            pauses=self.pauses,
            drained=partial(self.wakeups.wait_until, lambda: self.ledger.is_drained),
        )
        self.lanes: Lanes | None = None
        if resolver is not None:
            make_lane = ByAge if priority is None else partial(ByPriority, priority)
            self.lanes = Lanes(resolver, make_lane, self.queue, self.ledger, self.wakeups)
        self.breaking: Breaking | None = None
        if breaker is not None:
            assert isinstance(backing_off, HoldingHeap)
            self.breaking = Breaking(
                breaker,
                state=self.state,
                ledger=self.ledger,
                observers=observers,
                wakeups=self.wakeups,
                queue=self.queue,
                pauses=self.pauses,
                delayed=backing_off,
                watch_deadline=_ignore if max_elapsed is None else self._watch_deadline,
            )
        self.cancellation = Cancellation(
            self.state,
            self.ledger,
            observers,
            self.wakeups,
            queue=self.queue,
            backing_off=backing_off,
            lanes=self.lanes,
            pauses=self.pauses,
            workers=by_number,
        )
        self.inspection = Inspection(
            self.state, queue=self.queue, backing_off=backing_off, lanes=self.lanes, workers=by_number
        )
        self.health = Health(self.state, resource, queue=self.queue, pauses=self.pauses, idle=idle)
        self.workers = Workers(
            self.state,
            self.ledger,
            observers,
            self.wakeups,
            by_number=by_number,
            idle=idle,
            queue=self.queue,
            cancellation=self.cancellation,
            health=self.health,
            tasks=self.tasks,
            resource=resource,
            target=index(policy.initial_workers),
        )
        self.stall = Stall(
            self.state,
            self.ledger,
            observers,
            queue=self.queue,
            workers=self.workers,
            pauses=self.pauses,
            cancellation=self.cancellation,
        )
        self.health.on_usable = self.cancellation.on_stuck = self.stall.watch
        self.load = Load(
            self.state,
            self.ledger,
            self.wakeups,
            queue=self.queue,
            workers=self.workers,
            pauses=self.pauses,
            cancellation=self.cancellation,
            blocked=lambda: self.deadlock.blocked,
            limits=self._limits,
            has_limiter=manager is not None or (resolver is not None and resolver.has_managers),
        )
        self.scaler = Scaler(
            self.state, policy, load=self.load, workers=self.workers, queue=self.queue, wakeups=self.wakeups
        )
        self.deadlock = Deadlock(
            self.state,
            self.ledger,
            queue=self.queue,
            workers=self.workers,
            scaler=self.scaler,
            cancellation=self.cancellation,
            time_may_help=lambda: backing_off.size > 0 or (self.lanes is not None and self.lanes.waits_for_others),
            lanes=self.lanes,
        )
        self.retries = Retries(
            retry,
            budget,
            recycle_on=() if resource is None else resource.recycle_on,
            on_spoiled=self.health.suspect_all,
            state=self.state,
            ledger=self.ledger,
            observers=observers,
            wakeups=self.wakeups,
            queue=self.queue,
            pauses=self.pauses,
            load=self.load,
            scaler=self.scaler,
            backing_off=backing_off,
            breaking=self.breaking,
        )
        self.deadlines: Deadlines | None = None
        if max_elapsed is not None:
            self.deadlines = Deadlines(
                max_elapsed, pauses=self.pauses, cancellation=self.cancellation, retries=self.retries
            )
            self.pauses.on_change = self.deadlines.pause_changed
        self.queue_timeouts: QueueTimeouts | None = None
        if queue_timeout is not None:
            self.queue_timeouts = QueueTimeouts(queue_timeout, state=self.state, cancellation=self.cancellation)
            self.cancellation.on_left = self.queue_timeouts.unwatch
        self.fleet: Fleet | None = None
        if remote is not None:
            self.fleet = Fleet(
                remote,
                state=self.state,
                tasks=self.tasks,
                workers=self.workers,
                queue=self.queue,
                observers=observers,
                deadline=self.retries.deadline,
                on_stuck=self.cancellation.report_stuck,
            )
            self.workers.on_resized = self.fleet.resized
            self.stall.processes = self.fleet.presence
            self.fleet.presence.on_change = self.stall.watch
            call = RemoteHandler(self.fleet, self.state, call, timeout if callable(timeout) else None)
            timeout = None  # the process has it, around the handler
        invoke = Invoke(
            call,
            state=self.state,
            wakeups=self.wakeups,
            cancellation=self.cancellation,
            retries=self.retries,
            lanes=self.lanes,
            queue_timeouts=self.queue_timeouts,
            limiter=manager,
            timeout=timeout,
            has_resource=resource is not None,
            is_remote=remote is not None,
        )
        # Limits are asked before a job starts, so nothing of them surrounds the call.
        is_plain = (
            timeout is None
            and resource is None
            and manager is None
            and (resolver is None or not resolver.has_managers)
            and not self.retries.has_deadline
        )
        has_limit = rate_limit is not None or self.lanes is not None
        is_gated = has_limit or self.retries.has_deadline or self.breaking is not None
        make_dispatcher = GatedDispatcher if is_gated else Dispatcher
        if queue_timeout is not None:
            make_dispatcher = TimedDispatcher
        self.dispatcher = make_dispatcher(
            call,
            (None if remote is None else call) if is_plain else invoke,
            state=self.state,
            ledger=self.ledger,
            queue=self.queue,
            workers=self.workers,
            wakeups=self.wakeups,
            retries=self.retries,
            cancellation=self.cancellation,
            pauses=self.pauses,
            observers=observers,
        )
        if isinstance(self.dispatcher, GatedDispatcher):
            self.dispatcher.gate(rate_limit, self.lanes, self.breaking)
        if isinstance(self.dispatcher, TimedDispatcher):
            assert self.queue_timeouts is not None
            self.dispatcher.time_starts(self.queue_timeouts)
        self.queue.line.wait = self._wait_for_room
        self.wakeups.connect(
            line=self.queue.line,
            start_jobs=self.dispatcher.wake,
            wake_scaler=self.scaler.wake,
            check_deadlock=self.deadlock.check if self.breaking is None else self._check_held_and_deadlock,
            must_leave_fast_path=(
                *(() if self.breaking is None else (lambda: True,)),  # which hears of the end of each attempt
                lambda: observers.any,
                lambda: self.workers.resource is not None,
                lambda: self.workers.surplus,
                lambda: self.cancellation.is_active,
                lambda: self.pauses.is_paused,
                *(() if self.lanes is None else (lambda lanes=self.lanes: lanes.holds_slots,)),
            ),
            start_returned=self._start_returned if self.health.has_check else None,
            start_lifted=self._start_lifted if self.health.has_check else None,
        )

    def _start_returned(self) -> None:
        self.health.job_arrived()
        self.dispatcher.wake()

    def _start_lifted(self) -> None:
        self.health.pause_lifted()
        self.dispatcher.wake()

    def _come_back(self, job: Job) -> None:
        self.retries.come_back(job)  # which does not exist yet when the heap is made

    def _watch_deadline(self, job: Job) -> None:
        assert self.deadlines is not None
        self.deadlines.watch(job)  # which does not exist yet when the order is made

    def _watch_queue_timeout(self, job: Job) -> None:
        assert self.queue_timeouts is not None
        self.queue_timeouts.watch(job)

    def _check_held_and_deadlock(self) -> None:
        assert self.breaking is not None
        self.breaking.check_held()
        self.deadlock.check()

    async def _wait_for_room(self, future: asyncio.Future[None]) -> None:
        self.wakeups.submitter_waits()
        self.stall.watch()
        try:
            await self.deadlock.wait(future)
        finally:
            del future  # a PoolDeadlock is in it, and knows this frame

    def bind_shared(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use what pools can share on this loop: the limits of all jobs, and the breaker.

        Raises:
            WrongLoop: One is used on another loop.
        """
        if self.breaking is not None:
            self.breaking.bind(loop)
        for limit in self._limits:
            limit.bind(loop)

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind to the running loop."""
        # Timers and resources run in a copy of the context of `start()`, and not in that of whoever caused them.
        context = copy_context()
        self.state.bind(loop)
        self.ledger.throughput = Throughput(loop.time())
        # In an iteration of its own: the pool's step that called the observers must be finished.
        self.observers.interrupted = self.state.raise_later
        self.dispatcher.open(loop, context)
        self.workers.open(context)
        self.stall.open(context)
        self.scaler.open(context)
        self.deadlock.open(context)
        self.pauses.open(context)
        self.cancellation.open(loop, context)
        self.retries.open(loop, context)
        if self.breaking is not None:
            self.breaking.open(context)
        if self.deadlines is not None:
            self.deadlines.open(loop, context)
        if self.queue_timeouts is not None:
            self.queue_timeouts.open(context)
        if self.lanes is not None:
            self.lanes.open(loop)

    def close(self) -> None:
        """Drop all timers: every job is settled, and the pool is closed."""
        self.scaler.end()
        self.workers.close()
        self.stall.close()
        self.load.forget()
        self.deadlock.close()
        self.retries.close()
        if self.breaking is not None:
            self.breaking.close()
        if self.fleet is not None:
            self.fleet.end()
        if self.deadlines is not None:
            self.deadlines.close()
        if self.queue_timeouts is not None:
            self.queue_timeouts.close()
        self.cancellation.close()
        if self.lanes is not None:
            self.lanes.close()
        self.pauses.close()
        if self.dead_letters is not None:
            self.dead_letters.closed()

    def stats(self) -> PoolStats:
        """Return a snapshot."""
        ledger, state, resource_tasks = self.ledger, self.state, self.workers.resource_tasks()
        return PoolStats(
            name=state.name,
            submitted=ledger.submitted,
            queued=len(self.queue.order),
            delayed=ledger.delayed,
            running=ledger.running,
            succeeded=ledger.succeeded,
            failed=ledger.failed,
            cancelled=ledger.cancelled,
            workers=self.workers.usable + ledger.running,
            target_workers=self.workers.target,
            max_workers=self.workers.max_workers,
            resources_opening=sum(task.is_opening for task in resource_tasks),
            resources_closing=sum(task.is_closing for task in resource_tasks),
            resources_abandoned=self.tasks.abandoned,
            stalled_seconds=self.stall.seconds,
            peak_running=max(ledger.past_peak, ledger.peak_running),
            stuck=self.cancellation.stuck,
            unread_failures=ledger.unread_failures,
            retries=ledger.retries,
            rejected=ledger.rejected,
            retries_rejected=ledger.retries_rejected,
            seconds_queued=ledger.seconds_queued.snapshot(),
            seconds_running=ledger.seconds_running.snapshot(),
            throughput=ledger.throughput.rate(state.time(), ledger.ended) if state.is_bound else 0.0,
            processes=0 if self.fleet is None else self.fleet.processes,
            processes_lost=0 if self.fleet is None else self.fleet.processes_lost,
            reruns=0 if self.fleet is None else self.fleet.reruns,
            breaker=None if self.breaking is None else self.breaking.state,
            breaker_openings=0 if self.breaking is None else self.breaking.openings,
            resources_replaced=self.workers.log.replacements,
        )


def parts_of(pool: object) -> Parts:
    """Return the parts of a pool, for streams that are made elsewhere than in `pool.py`.

    Raises:
        TypeError: It is not a pool.
    """
    parts = getattr(pool, "_parts", None)
    if not isinstance(parts, Parts):
        raise TypeError(f"pool must be a WorkerPool, got {describe(pool)}")
    return parts


def _order_maker(priority: Callable[[Any], Any] | None, *, comes_back: bool, has_lanes: bool) -> Callable[[], Order]:
    """Return what makes the pool's order: the cheapest that can do what is asked of it."""
    if priority is not None:
        return partial(ByPriorityAndAge if has_lanes else ByPriority, priority)
    if has_lanes:
        return OldestComebackFirst
    return ComebackFirst if comes_back else Fifo


def _ignore(_: Job) -> None: ...


def _report_appended(order: Order, report: Callable[[Job], None]) -> None:
    """Call `report` for each job that is appended. A pool that reports nothing pays nothing for it."""
    append = order.append

    def append_and_report(job: Job) -> None:
        append(job)
        report(job)

    order.append = append_and_report
