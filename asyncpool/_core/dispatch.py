"""THE HOT PATH, from top to bottom: accept a job, give it to a worker, run it in a task of its own, end it, go on.

Every decision is a plain function: there is no `await` between reading state and changing it, so there are no
interleavings to think about. What most jobs do not need is a call to another part.

Invariants, each checked after every step of a random schedule by tests/laws:

* An idle worker and a queued job exist side by side only in a pause, while the pump is scheduled, or in an observer.
* A worker holds at most one job, and `ledger.running` workers hold one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from functools import partial
from typing import Any, ClassVar

from asyncpool._core.attempt_tasks import HAS_CALL_GRAPH, TaskStart, inside_try, link_waiters
from asyncpool._core.cancellation import Cancellation
from asyncpool._core.failures import outcome_of, returned_error
from asyncpool._core.invoke import call_job
from asyncpool._core.job import CURRENT_JOB, Job, Puller, Sink, Worker, new_job
from asyncpool._core.ledger import Ledger
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue
from asyncpool._core.retries import Again, Retries
from asyncpool._core.state import State
from asyncpool._core.wakeups import Wakeups
from asyncpool._core.workers import Workers
from asyncpool.events import Observers
from asyncpool.outcomes import CancelReason, Failed, Outcome, Succeeded

__all__ = ["Dispatcher"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

# Limits of one run of the pump, as eager jobs may never suspend: seconds, jobs per worker, jobs in all.
PUMP_SECONDS = 0.005
PUMP_JOBS = 64
MAX_PUMP_JOBS = 256
# Bound once: looking them up costs at each job.
_set_current_job = CURRENT_JOB.set
_new: Any = object.__new__
_NOTHING_YET: Any = object()
_Task: Any = asyncio.Task  # Any: the type checkers know of `eager_start` from 3.12 only
_AT_ONCE, _EAGER = TaskStart.AT_ONCE, TaskStart.EAGER


class Dispatcher:
    """Takes jobs from the queue to the workers, and through one attempt."""

    _without_eager_tasks: ClassVar[TaskStart] = TaskStart.AT_ONCE

    __slots__ = (
        "_cancellation",
        "_context",
        "_entries",
        "_handler",
        "_idle",
        "_invoke",
        "_is_pump_scheduled",
        "_ledger",
        "_observers",
        "_order",
        "_pauses",
        "_queue",
        "_record_queued",
        "_record_running",
        "_retries",
        "_state",
        "_task_name",
        "_task_start",
        "_time",
        "_waiting",
        "_wakeups",
        "_workers",
    )

    def __init__(
        self,
        handler: Callable[..., Any],
        invoke: Callable[[Job, Worker], Awaitable[Any]] | None,
        *,
        state: State,
        ledger: Ledger,
        queue: JobQueue,
        workers: Workers,
        wakeups: Wakeups,
        retries: Retries,
        cancellation: Cancellation,
        pauses: Pauses,
        observers: Observers,
    ) -> None:
        self._handler = handler
        self._invoke = invoke  # None: nothing surrounds the handler's call
        self._state = state
        self._ledger = ledger
        self._queue = queue
        self._workers = workers
        self._wakeups = wakeups
        self._retries = retries
        self._cancellation = cancellation
        self._pauses = pauses
        self._observers = observers
        # Owned by the parts above, and always the same objects: the hot path loads them from here.
        self._order: Any = queue.order  # only one that compares keys must take jobs back
        self._entries = queue.order.entries
        self._idle = workers.idle
        self._waiting = queue.line.waiting
        self._record_queued = ledger.seconds_queued.record
        self._record_running = ledger.seconds_running.record
        self._is_pump_scheduled = False  # whether the pump is scheduled

    def open(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        """Bind to the running loop."""
        self._time = self._state.time
        self._context = context
        self._task_name = f"{self._state.name} job"
        self._task_start = _EAGER if sys.version_info >= (3, 12) else self._without_eager_tasks
        if loop.get_task_factory() is not None:
            self._task_start = TaskStart.BY_LOOP

    # -- Accept ------------------------------------------------------------------------------------------------------

    def accept(
        self, input: Any, sink: Sink, context: Context, *, if_closed: CancelReason = CancelReason.SHUTDOWN
    ) -> Job:
        """Accept a job, whether or not there is room; not if the priority function raises, which is raised here.

        In a pool that takes no jobs any more it is cancelled at once, for the reason `if_closed`.
        """
        ledger = self._ledger
        job = new_job(input, 0, sink, context, self._time())
        self._order.set_key(job)  # can call the user's code, which can submit jobs too: so the number comes after it
        job.number = ledger.submitted = ledger.submitted + 1
        self._queue.append(job)
        if self._observers.any:
            ledger.tell_accepted(job)
        if not self._state.takes_jobs:
            self._cancellation.cancel(job, if_closed)
        elif self._idle and not self._is_pump_scheduled:
            self.wake()
        elif not self._workers.target:  # the priority function has just let all workers go
            self._wakeups.job_accepted()
        return job

    def accept_from(self, source: Iterator[Any], room: int, stop_at: float, puller: Puller) -> bool:
        """Accept what a plain iterator gives, up to `room` inputs or a loop time; return whether it is exhausted.

        Raises what the iterator raises. It is the user's code, and can do anything to the pool and the stream.
        """
        queue, ledger, idle, expected = self._queue, self._ledger, self._idle, puller.in_order
        copy, time = puller.context.copy, self._time
        is_plain, pauses, resizes = not self._order.calls_user and not self._observers.any, self._pauses, queue.resizes
        last = ledger.submitted + room  # what the source itself submits takes its share of the room
        for input in source:
            if is_plain and not puller.is_stopped:
                # What `new_job` and `accept` do, without the calls (x1.02 with them on 3.13, x1.00 on 3.11).
                job = Job()
                job.input = input
                job.number = ledger.submitted = ledger.submitted + 1
                job.sink = puller
                job.context = copy()
                job.ready_at = now = time()
                job.attempt = 1
                job.started_at = job.worker = job.task = job.cancel_reason = job.outcome = job.prior = None
                queue.append(job)
                puller.live += 1
                if expected is not None:
                    expected.append(job)
                if idle and not self._is_pump_scheduled:
                    self.wake()
            else:  # to accept can raise, is observed, or the source has stopped its stream
                now = puller.accept_pulled(input).ready_at
            if ledger.submitted >= last or now >= stop_at or puller.is_stopped:
                return False
            if pauses.is_paused or queue.resizes != resizes:  # the source did that, and there may be less room now
                return False
        return True

    # -- Start -------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let idle workers take what is queued."""
        if self._pauses.is_paused:
            return
        if self._task_start is _AT_ONCE and not self._order.is_comparing:
            while self._idle and (job := self._order.pop()) is not None:
                if not self._idle:  # see `_pump`
                    self._order.put_back(job)
                    break
                self._start(job, self._idle.pop())
        elif self._idle and not self._is_pump_scheduled and self._order:  # its length: tombstones alone wake nobody
            self._is_pump_scheduled = True
            self._state.loop.call_soon(self._pump, context=self._context.copy())
        if not self._idle and self._queue.reserve and self._workers.make_more():
            self.wake()

    def _pump(self) -> None:
        """Start jobs on idle workers, in a loop iteration of its own: the only place where an eager job begins."""
        self._is_pump_scheduled = False  # a first step can run the loop itself, and then the others must start
        idle, entries, ledger, pauses = self._idle, self._entries, self._ledger, self._pauses
        popleft, loop, name = self._queue.popleft, self._state.loop, self._task_name
        is_plain = self._task_start is _EAGER and not self._observers.any
        stop_at = self._time() + PUMP_SECONDS
        try:
            for _ in range(min(PUMP_JOBS * len(self._workers.by_number), MAX_PUMP_JOBS)):
                if not idle or not entries or pauses.is_paused:
                    break
                job = popleft()
                if job.outcome is not None:
                    self._order.drop_tombstone()
                    continue
                try:
                    worker = idle.pop()
                except IndexError:  # keys of the user were compared, and one has let the last idle worker go
                    self._order.put_back(job)
                    break
                if is_plain:
                    # What `_start` does, without the calls (x1.03 with them on 3.13).
                    ledger.running = running = ledger.running + 1
                    if running > ledger.peak_running:
                        ledger.peak_running = running
                    job.worker = worker
                    worker.job = job
                    attempt = self._attempt(job, worker)
                    context, job.context = job.context, None
                    task = _Task(attempt, loop=loop, name=name, context=context, eager_start=True)
                    if worker.job is job:
                        job.task = task
                        if HAS_CALL_GRAPH and job.sink.waiters:
                            link_waiters(job, task)
                        if job.cancel_reason is not None:
                            task.cancel()
                    del attempt, context, task
                else:
                    self._start(job, worker)
                started = job.started_at  # None: the handler has not started, or the job waits for its next attempt
                del job  # see `_start_on`
                if (self._time() if started is None else started) >= stop_at:
                    break
        finally:  # also when a job raised KeyboardInterrupt: the others go on if the program does
            self.wake()

    def _start(self, job: Job, worker: Worker) -> None:
        """Give a job to a worker that was idle."""
        ledger = self._ledger
        ledger.running = running = ledger.running + 1
        if running > ledger.peak_running:
            ledger.peak_running = running
        self._start_on(job, worker)

    def _start_on(self, job: Job, worker: Worker) -> None:
        """Start an attempt on a worker that is counted as running."""
        job.worker = worker
        worker.job = job
        if self._observers.any:
            self._ledger.tell_started(job, worker)
        attempt = self._attempt(job, worker)
        context, job.context = job.context, None  # the task has it, and it has the job: kept, it would be a cycle
        if self._task_start is _AT_ONCE:
            # Into its `try` before there is a task: one that is cancelled before its first step never enters it, and
            # the job would have no outcome (test_a_job_cancelled_before_its_first_step_has_an_outcome).
            attempt.send(None)
            task = _Task(attempt, loop=self._state.loop, name=self._task_name, context=context)
        elif self._task_start is _EAGER:
            task = _Task(attempt, loop=self._state.loop, name=self._task_name, context=context, eager_start=True)
        else:
            try:
                task = self._state.loop.create_task(attempt, name=self._task_name, context=context)
            except BaseException as error:  # the loop's task factory raised: it must not leave a job without an outcome
                self._fail_unstarted(job, worker, attempt, context, error)
                if issubclass(type(error), KeyboardInterrupt):
                    raise
                return
            task.add_done_callback(partial(self._task_is_done, job, worker, attempt, context))
        if worker.job is job:  # otherwise it has ended already, and may even wait for its next attempt
            job.task = task
            if HAS_CALL_GRAPH and job.sink.waiters:
                link_waiters(job, task)
            if job.cancel_reason is not None:  # by an observer, or in an eager first step by what that called
                task.cancel()
        # The traceback of an eager job that failed in its first step leads here (f_back): the job would be in a cycle.
        del job, task, context, attempt

    def _task_is_done(self, job: Job, worker: Worker, attempt: Any, context: Any, task: asyncio.Task[None]) -> None:
        """End an attempt whose task a factory made, and which was cancelled before its first step."""
        if job.task is task and worker.job is job:
            self._fail_unstarted(job, worker, attempt, context, asyncio.CancelledError())

    def _fail_unstarted(self, job: Job, worker: Worker, attempt: Any, context: Any, error: BaseException) -> None:
        """End an attempt that never began."""
        attempt.close()
        now = self._time()
        job.context = context
        self._ended(job, worker, outcome_of(job, error, now, None, self._state), now, error)

    # -- Attempt -----------------------------------------------------------------------------------------------------

    async def _attempt(self, job: Job, worker: Worker) -> None:
        """Run one attempt at a job, in its own task and context. Whatever happens, the job has an outcome after it."""
        awaitable: Any = _NOTHING_YET
        started: Any  # a number, once the handler has returned
        try:
            if self._task_start is _AT_ONCE:
                await inside_try()
            _set_current_job(job)
            if self._invoke is None:
                job.started_at = started = self._time()
                awaitable = self._handler(job.input)
                value: Any = await awaitable
            else:
                value = await self._invoke(job, worker)
                started = job.started_at
            now = self._time()
        except BaseException as error:
            if self._state.loop.is_closed():  # the coroutine of an abandoned job is collected: nobody is left to tell
                raise
            # To ask only now what the handler has returned costs nothing where it returned what it should.
            raised = error if awaitable is _NOTHING_YET else returned_error(awaitable, error)
        else:
            # Succeeded(...), without the calls.
            ended = _new(Succeeded)
            ended._job = job.input
            ended._value = value
            ended._attempts = job.attempt
            ended._worker = worker.number
            ended._seconds_queued = queued = started - job.ready_at
            ended._seconds_running = ran = now - started
            self._record_queued(queued)
            self._record_running(ran)
            if now >= self._wakeups.fast_until:
                self._ended(job, worker, ended, now)
                return
            # What `_ended` does where nothing else is to do: the end of most jobs (x1.10 without, x1.11 on 3.11).
            worker.job = job.task = None
            job.outcome = ended
            ledger = self._ledger
            ledger.succeeded += 1
            job.sink.deliver(job, ended)
            if self._task_start is _AT_ONCE and (following := self._order.pop()) is not None:
                self._start_on(following, worker)
            else:
                ledger.running -= 1
                self._idle.append(worker)
                if not self._is_pump_scheduled and self._entries:
                    self.wake()
            if self._waiting:
                self._queue.line.wake_next()
            return
        self._ended_by(raised, job, worker)
        del job, worker  # see `_start_on`
        try:
            if issubclass(type(raised), KeyboardInterrupt):
                raise raised
        finally:
            del raised  # its traceback refers to this frame

    # -- End ---------------------------------------------------------------------------------------------------------

    def _ended(
        self, job: Job, worker: Worker, outcome: Outcome[Any, Any], now: float, raised: BaseException | None = None
    ) -> None:
        """Settle the job of an attempt that ended, or put it off to its next attempt; its worker takes the next job."""
        again: Again | None = None
        if raised is not None and isinstance(outcome, Failed) and job.outcome is None:
            again = self._retries.after_failure(job, worker, outcome, raised, now)
        self._cancellation.attempt_ended(job)
        if job.outcome is not None:
            self._cancellation.report_abandoned(job, outcome)
            return
        if job.cancel_reason is not None and worker.resource_task is not None:
            worker.needs_recycle = True
        worker.job = job.task = None
        self._ledger.running -= 1
        # Any of the user's functions that were called since the attempt ended can have cancelled the job.
        if again is not None and isinstance(outcome, Failed) and not job.is_over:
            self._retries.put_off(job, outcome, again, now)
        else:
            self._ledger.settle(job, outcome, now)
        self._wakeups.housekeep(now)
        if self._workers.job_ended(worker):
            self._idle.append(worker)
            self.wake()
        self._wakeups.job_ended()

    def _ended_by(self, error: BaseException, job: Job, worker: Worker) -> None:
        """End an attempt by what was raised, in its own task and context."""
        now = self._time()
        handler = job.input if self._handler is call_job else self._handler
        outcome = outcome_of(job, error, now, handler, self._state)
        if job.started_at is not None:
            self._ledger.seconds_queued.record(outcome.seconds_queued)
            self._ledger.seconds_running.record_failure(outcome.seconds_running)
        if self._retries.is_on:
            job.context = copy_context()  # of this very attempt: the next goes on with it
        self._ended(job, worker, outcome, now, error)
