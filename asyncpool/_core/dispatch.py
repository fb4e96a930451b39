"""The hot path: accept a job, hand it to a worker, run it in a task of its own, settle it, take the next.

Every decision here is a plain function on the loop's thread: between reading the state and changing it there is no
`await`, so there is no interleaving to think about. When the pool starts and stops is `_life.py`.

What is always true (each checked after every step of a random schedule by tests/laws):

* `submitted == queue.size + delayed + running + succeeded + failed + cancelled`;
* an idle worker and a queued job exist side by side only while paused, while the pump is scheduled, or while
  observers are told;
* a job waits for its next attempt in `_delays`, for its rate limit in `_gate`, and else for a worker in `queue`;
* `running` workers hold a job, and there are never more than there may be;
* when there is no worker, the scaler dozes, and so is roused by what comes.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from functools import partial
from itertools import chain
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

from asyncpool._checks import check_seconds
from asyncpool._core.dead_letter_writer import Letterbox
from asyncpool._core.deadlock import Waits
from asyncpool._core.failures import (
    blame_handler,
    call_handler,
    inside_try,
    judge,
    strip,
    within_deadline,
    within_limiter,
)
from asyncpool._core.job import CURRENT_JOB, Job, Past, Sink, new_job
from asyncpool._core.lanes import Gate
from asyncpool._core.load import Recent
from asyncpool._core.pauses import Pauses
from asyncpool._core.queue import JobQueue, Line, PriorityJobQueue, ReturnQueue
from asyncpool._core.resources import Keeper, Worker
from asyncpool._core.retries import Retries
from asyncpool._core.scaler import Scaler
from asyncpool._core.timers import Alarms
from asyncpool.dead_letters.letter import DeadLetterSink
from asyncpool.errors import (
    ErrorFilter,
    JobTimeout,
    PoolClosed,
    PoolError,
    PoolNotStarted,
    ResourceDied,
    RetryAfter,
    WrongLoop,
    matches,
    recorded_error,
)
from asyncpool.events import (
    JobAccepted,
    JobEnded,
    JobRetrying,
    JobStarted,
    JobStuck,
    Observers,
    PoolPaused,
    PoolResized,
    PoolResumed,
    ResourceFailed,
)
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded, Unfinished
from asyncpool.rate import KeyedRateLimit, Limiter, RateLimit, is_manager
from asyncpool.retry import Retry
from asyncpool.scaling.policy import Decision, PoolLoad, ScalingPolicy
from asyncpool.stats import Counters, Histogram, PoolStats, Throughput

__all__ = ["Dispatcher", "Guest"]

_log = logging.getLogger("asyncpool")

# How long a running job may ignore its cancellation before it is called stuck, in seconds.
STUCK_AFTER = 5.0
# The pump gives the loop its turn after so many jobs for each worker, so many in all, or so many seconds: eager jobs
# that never suspend would keep it.
_PUMP_JOBS = 64
_MOST_PUMP_JOBS = 256
_PUMP_SECONDS = 0.005
# How often what was measured is sorted into the histograms: at most some thousand jobs end in that time.
_TIDY_SECONDS = 0.002
# A function that has to say whether a pool of waiting jobs may grow is asked again after so many seconds.
_ASK_ONCE_MORE = 0.1
# From 3.12 a task can run its first step while it is made. On 3.11 it never does, so making one is harmless anywhere.
_HAS_EAGER_TASKS = sys.version_info >= (3, 12)
# Bound once: looking them up costs at each job.
_set_current_job = CURRENT_JOB.set
_new: Any = object.__new__
_NOTHING_YET: Any = object()
_Task: Any = asyncio.Task  # Any: the type checkers know of `eager_start` from 3.12 only


def _raise(error: BaseException) -> None:
    raise error


def _call(job: Any) -> Any:
    if not callable(job):
        raise TypeError(
            f"a job of a pool without a handler must be an async function without arguments, got {job!r:.80}: "
            "pass the function itself, or functools.partial(function, ...)"
        )
    return job()


class Puller(Protocol):
    """A stream that pulls its jobs from an iterator, and is their sink."""

    @property
    def is_stopped(self) -> bool:
        """Whether it wants no more."""
        ...

    context: Context
    """That of its jobs, to be copied for each."""
    live: int
    """How many jobs are accepted and not settled."""
    in_order: deque[Job] | None
    """If it is ordered: the jobs whose outcomes are not yet ready."""

    def bring(self, input: Any, /) -> Job:
        """Have an input accepted, whatever has happened since it was pulled."""
        ...

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None: ...
    def count_delayed(self, change: int, /) -> None: ...
    def give_up_job(self, job: Job, /) -> None: ...


class Guest(Protocol):
    """A stream or group that brings jobs: it is told when the pool takes no more."""

    @property
    def feeder(self) -> asyncio.Task[None] | None:
        """The task that pulls from the stream's source, for the pool to wait for."""
        ...

    @property
    def line(self) -> Line:
        """Who waits for room in its window, which grows with the pool."""
        ...

    def stop(self, error: PoolError, /) -> None:
        """Bring no more jobs; whoever reads to the end gets the error."""
        ...

    def give_up_feeder(self) -> None:
        """Do not wait for the feeder any more: it ignores its cancellation."""
        ...


class Dispatcher:
    """The queue, the workers, and the jobs on their way from one to the other."""

    __slots__ = (
        "__weakref__",
        "_asking",
        "_attend_at",
        "_context",
        "_delays",
        "_dying",
        "_enter_resource",
        "_free_numbers",
        "_gate",
        "_handler",
        "_has_delays",
        "_has_handler",
        "_has_plain_queue",
        "_is_direct",
        "_is_eager",
        "_is_gated",
        "_is_plain",
        "_is_pumping",
        "_letterbox",
        "_limiter",
        "_max_delayed",
        "_past_peak",
        "_push",
        "_queue_size",
        "_rate_limit",
        "_recent",
        "_record_failed",
        "_record_queued",
        "_record_running",
        "_recycle_on",
        "_retries",
        "_returns",
        "_surplus",
        "_take_turn",
        "_task_name",
        "_tidy_at",
        "_time",
        "_timeout",
        "_waiting",
        "_was_told",
        "_when_less",
        "abandoned",
        "counters",
        "guests",
        "idle",
        "is_ended",
        "is_open",
        "is_paused",
        "line",
        "loop",
        "name",
        "observers",
        "pauses",
        "peak_running",
        "queue",
        "queue_size",
        "resource_errors",
        "running",
        "scaler",
        "seconds_queued",
        "seconds_running",
        "supervisor",
        "target_workers",
        "throughput",
        "unfinished",
        "waits",
        "window",
        "workers",
    )

    def __init__(
        self,
        *,
        name: str,
        handler: Callable[..., Awaitable[Any]] | None,
        policy: ScalingPolicy,
        make_queue: Callable[[], JobQueue],
        queue_size: int | None,
        max_delayed: int,
        timeout: float | None,
        retry: Retry | None,
        limiter: Limiter[Any] | None,
        dead_letters: DeadLetterSink[Any] | None,
        resource: Callable[[], AbstractAsyncContextManager[Any]] | None,
        recycle_on: ErrorFilter,
        observers: Observers,
    ) -> None:
        self.name = name
        # Jobs of a pool without a handler are called themselves.
        self._handler: Callable[..., Any] = _call if handler is None else handler
        self._has_handler = handler is not None
        self._timeout = timeout
        self.counters = Counters()
        self._retries = None if retry is None else Retries(retry, name, self.counters)
        self._letterbox = None if dead_letters is None else Letterbox(dead_letters, name)
        self._enter_resource = resource
        self._recycle_on = recycle_on
        self.observers = observers
        self._queue_size = queue_size
        self._max_delayed = max_delayed

        self.queue = make_queue()
        self._has_plain_queue = not isinstance(self.queue, PriorityJobQueue)  # to accept a job never raises
        self._returns = self.queue if isinstance(self.queue, ReturnQueue) else None  # the same, where jobs come back
        if self._retries is not None and self._retries.tally is not None:
            tally, push = self._retries.tally, self.queue.push

            def push_and_count(job: Job) -> None:
                push(job)
                tally.deposit(job.ready_at)

            self.queue.push = push_and_count
        # Between two attempts.
        self._delays: Alarms[Job] = Alarms(self._come_back, lambda job: job.outcome is None)
        # A limiter is one of three: a rate limit of all jobs, a function of the job, or a context manager.
        self._rate_limit: RateLimit | None = None
        self._limiter: AbstractAsyncContextManager[Any] | None = None
        self._gate: Gate | None = None
        if isinstance(limiter, RateLimit):
            self._rate_limit = limiter
        elif is_manager(limiter):
            self._limiter = limiter
        elif limiter is not None:
            self._gate = Gate(
                cast("Callable[[Any], object]", limiter),
                cast("Callable[[], ReturnQueue]", make_queue),
                self._put_back,
            )
        self._has_delays = retry is not None or self._gate is not None
        # Whether nothing surrounds the handler's call.
        self._is_plain = (
            timeout is None
            and resource is None
            and self._limiter is None
            and (self._gate is None or type(limiter) is KeyedRateLimit)
            and (self._retries is None or not self._retries.has_deadline)
        )
        self.workers: dict[int, Worker] = {}
        self.idle: list[Worker] = []
        self.running = 0
        self.peak_running = 0  # since the policy was asked last; before that, the record is the past one
        self._past_peak = 0
        self.target_workers = policy.initial_workers
        self.scaler = Scaler(self, policy)
        self.queue_size = self.window = 0  # how many jobs may wait; how many of a stream may be accepted and not read
        self.measure()
        self._recent: Recent | None = None  # what a policy may want to know
        self._asking: asyncio.Handle | None = None  # while a function is asked for more workers, because all jobs wait
        self._surplus = 0  # how many busy workers are to retire after their job, whoever ends first
        self.pauses = Pauses(self._pauses_changed)
        self.is_paused = False  # whether there are any
        self._was_told = False  # whether observers have been told of one
        self.is_ended = False
        self.supervisor: asyncio.Task[None] | None = None
        self.is_open = False  # whether accepted jobs are run; else they are settled as cancelled at once
        self._free_numbers: list[int] = []
        self._is_pumping = False
        # Whether it is asked of each job whether it may begin.
        self._is_gated = (
            self._rate_limit is not None
            or self._gate is not None
            or (self._retries is not None and self._retries.has_deadline)
        )
        self._take_turn = self._pump_gated if self._is_gated else self._pump
        # Running jobs that were cancelled: the timer until they are called stuck, then None.
        self._dying: dict[Job, asyncio.TimerHandle | None] = {}

        self.waits = Waits(
            self,
            running=lambda: self.running,
            most=self.most,
            may_end_by_itself=self._room_may_come_by_itself,
            needs_worker=self._needs_worker,
            on_all_waiting=self._all_wait,
            may_grow=self._may_grow,
        )
        self.line = Line(self.room, self._wait_for_room)
        self._waiting = self.line.waiting
        self.seconds_queued = Histogram()
        self.seconds_running = Histogram()
        self._record_queued = self.seconds_queued.record
        self._record_running = self.seconds_running.record
        self._record_failed = self.seconds_running.record_aside
        # What the pool hands back when it closes, with the jobs' numbers.
        self.unfinished: list[tuple[int, Unfinished[Any]]] = []
        self.abandoned: list[tuple[int, Unfinished[Any]]] = []
        self.resource_errors: list[BaseException] = []
        # Called whenever a job has ended or a worker is gone, while somebody waits for that.
        self._when_less: Callable[[], None] | None = None
        # The streams and groups that may still bring jobs.
        self.guests: WeakKeyDictionary[Guest, None] = WeakKeyDictionary()  # a set, in the order of its entries

    @property
    def has_resource(self) -> bool:
        """Whether each worker holds a resource."""
        return self._enter_resource is not None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind to the running loop and begin to take jobs."""
        self.loop = loop
        # The standard loops read time.monotonic() in a Python method; the hot path calls the clock itself.
        is_standard = type(loop).time is asyncio.BaseEventLoop.time
        self._time = time.monotonic if is_standard else loop.time  # noqa: TID251  # it is the loop's clock
        self.throughput = Throughput(loop.time())
        self._tidy_at = loop.time()
        # From when on the end of a job has to look whether there is more to do than to let its worker go on: now and
        # then to tidy, and always while `_is_special`.
        self._attend_at = -math.inf
        self._context = copy_context()
        # In a turn of its own: the pool's step that told the observers is to be finished.
        self.observers.interrupted = lambda error: loop.call_soon(_raise, error)
        # A task factory sees every task, as on any loop; but it may be an eager one, and may wrap the coroutine. Where
        # making a task never runs the job, it may be made at once, by whoever made the room or brought the job.
        has_factory = loop.get_task_factory() is not None
        self._is_eager = _HAS_EAGER_TASKS and not has_factory
        self._is_direct = not _HAS_EAGER_TASKS and not has_factory and not self._is_gated
        self._task_name = f"{self.name} job"
        self._push = self.queue.push
        self.scaler.open(loop, self._context)
        self.pauses.open(loop, self._context)
        self._delays.open(loop, self._context)
        if self._gate is not None:
            self._gate.open(loop, self._context)
        if self._letterbox is not None:
            self._letterbox.interrupted = self.observers.interrupted
        self.is_open = True

    # -- Intake ------------------------------------------------------------------------------------------------------

    def most(self) -> int:
        """How many workers there may be."""
        return self.scaler.most

    def measure(self) -> None:
        """Work out the bounds anew. To be called when there may be more, or fewer workers at most."""
        most = self.most()
        self.queue_size = 10 * most if self._queue_size is None else self._queue_size
        self.window = max(1, self.queue_size + most)

    def room(self) -> int:
        """How many jobs may be accepted now: what the queue holds, and what idle workers will take from it."""
        if self._has_delays and self.are_too_many_delayed():
            return 0
        # Of a pool that sleeps without workers, the first job brings one.
        idle = 0 if self.is_paused else len(self.idle)
        if not idle and not self.running and not self.target_workers and not self.is_paused:
            idle = 1
        return self.queue_size + idle - self.queue.size

    def are_too_many_delayed(self) -> bool:
        """Whether nothing is accepted because of that."""
        return self.delayed >= self._max_delayed

    def _room_may_come_by_itself(self) -> bool:
        """Whether nothing is accepted because too many are delayed, and the time of some is still to come."""
        if not self.are_too_many_delayed():
            return False
        return self._delays.size > 0 or (self._gate is not None and self._gate.waits_for_a_time)

    def accept(self, input: Any, sink: Sink, context: Context) -> Job:
        """Take charge of an input, whether or not there is room: that was its submitter's to wait for.

        Raises what the priority function raises; then nothing was accepted.
        """
        counters = self.counters
        job = new_job(input, counters.submitted + 1, sink, context, self._time())
        self.queue.push(job)
        counters.submitted += 1
        if self.observers.any:
            self._tell_accepted(job)
        if not self.is_open:
            self.cancel(job, CancelReason.SHUTDOWN)
        elif self.idle and not self._is_pumping:
            self._wake()
        elif not self.target_workers and self.scaler.is_dozing:  # the priority function has changed the size
            self._rouse()
        return job

    def accept_from(self, source: Iterator[Any], room: int, stop_at: float, stream: Puller) -> bool:
        """Take charge of what a plain iterator gives, up to `room` inputs or a loop time; return whether it gave all.

        Raises what the iterator raises. It is the user's code, and may do anything to the pool and the stream: what it
        gives after it has stopped the stream, the stream brings itself, as all inputs where to accept may raise or is
        told.
        """
        is_plain = self._has_plain_queue and not self.observers.any
        counters, idle, queue, expected = self.counters, self.idle, self.queue, stream.in_order
        copy, time = stream.context.copy, self._time
        most = counters.submitted + room  # what the source itself submits takes its share of the room
        for input in source:
            if is_plain and not stream.is_stopped:
                # What `new_job` and `accept` do, without the calls.
                job = Job()
                job.input = input
                job.number = counters.submitted = counters.submitted + 1
                job.sink = stream
                job.context = copy()
                job.ready_at = now = time()
                job.attempt = 1
                job.started_at = job.worker = job.task = job.doom = job.outcome = job.past = None
                queue.push(job)
                stream.live += 1
                if expected is not None:
                    expected.append(job)
                if idle and not self._is_pumping:
                    self._wake()
            else:
                now = stream.bring(input).ready_at
            if counters.submitted >= most or now >= stop_at or stream.is_stopped:
                return False
        return True

    @property
    def delayed(self) -> int:
        """How many jobs wait for a time."""
        return self._delays.size if self._gate is None else self._delays.size + self._gate.size

    def refuse(self, input: Any, sink: Sink, context: Context, error: BaseException) -> Job:
        """Take charge of an input that `accept` raised `error` for: it has failed. Return its job."""
        self.counters.submitted += 1
        job = new_job(input, self.counters.submitted, sink, context, self._time())
        failed: Failed[Any] = Failed(input, error)
        self._count(job, failed)
        self._tell_accepted(job)
        self._tell(job, failed)
        return job

    def _tell_accepted(self, job: Job) -> None:
        if self.observers.any:
            self.observers.emit(JobAccepted(pool=self.name, id=job.number, job=job.input))

    # -- From the queue to the workers -------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Let idle workers take what is queued."""
        if self.is_paused:
            return
        if self._is_direct:
            while self.idle and (job := self.queue.pop()) is not None:
                self._begin(job, self.idle.pop())
        elif not self._is_pumping:
            # Never from here: an eager task would run handler code inside submit(), or inside a job that just ended.
            self._is_pumping = True
            self.loop.call_soon(self._take_turn, context=self._context)

    def _pump(self) -> None:
        """Start jobs on idle workers: the pool's own turn, the only place where an eager job may begin."""
        idle, queue, loop, name = self.idle, self.queue, self.loop, self._task_name
        entries, take = queue.entries, queue.take
        is_plain = self._is_eager and not self.observers.any
        stop_at = self._time() + _PUMP_SECONDS
        try:
            for _ in range(min(_PUMP_JOBS * len(self.workers), _MOST_PUMP_JOBS)):
                if not idle or not entries or self.is_paused:
                    break
                job = take()
                if job.outcome is not None:
                    queue.bury()
                    continue
                worker = idle.pop()
                if is_plain:
                    # What _begin does, without the calls.
                    self.running = running = self.running + 1
                    if running > self.peak_running:
                        self.peak_running = running
                    job.worker = worker
                    worker.job = job
                    attempt = self._attempt(job, worker)
                    context, job.context = job.context, None
                    task = _Task(attempt, loop=loop, name=name, context=context, eager_start=True)
                    if worker.job is job:
                        job.task = task
                        if job.doom is not None:
                            task.cancel()
                    del attempt, context, task
                else:
                    self._begin(job, worker)
                began = job.started_at  # None: the handler has not begun, or the job waits for its next attempt
                del job  # see _start_in_turn
                if (self._time() if began is None else began) >= stop_at:
                    break
        finally:  # also when a job raised KeyboardInterrupt: the others go on if the program does
            self._is_pumping = False
            if self.idle and self.queue.size:
                self._wake()

    def _pump_gated(self) -> None:
        """Start jobs on idle workers that may begin now: the pump of pools with rate limits or a time for each job."""
        idle, queue, rate_limit, gate = self.idle, self.queue, self._rate_limit, self._gate
        now = self._time()
        stop_at = now + _PUMP_SECONDS
        try:
            for _ in range(min(_PUMP_JOBS * len(self.workers), _MOST_PUMP_JOBS)):
                if not idle or not queue.size or self.is_paused or now >= stop_at:
                    break
                if self._settle_first_if_expired(now):  # it shall use up no start, no worker and no resource
                    continue
                if gate is not None:
                    self._ask_for_first(gate, now)
                elif rate_limit is not None and not self.pauses.take_start(rate_limit, now):
                    break  # all wait in the queue, in its order: nobody could go past
                else:
                    job = queue.pop()
                    assert job is not None
                    self._begin(job, idle.pop())
                    del job  # see _start_in_turn
                now = self._time()
        finally:
            self._is_pumping = False
            if self.idle and self.queue.size:
                self._wake()
            if self.line.waiting:
                self.line.advance()  # what was parked has left the queue

    def _settle_first_if_expired(self, now: float) -> bool:
        """Settle the first job of the queue if it is too late to begin it."""
        job = None if self._retries is None else self.queue.first()
        if job is None or self._retries is None or self._retries.seconds_left(job, now) > 0.0:
            return False
        self.queue.take()
        self._settle(job, self._failed_unrun(job, self._retries.expired(job)))
        if self._gate is not None:
            self._gate.forget(job)
        self._less()
        return True

    def _ask_for_first(self, gate: Gate, now: float) -> None:
        """Start the first job of the queue, if its limit lets it, or park it."""
        job = self.queue.first()
        if job is None:
            return
        # The user's function is called while the job is still in the queue: it may look at the pool, and change it.
        try:
            limiter = gate.limiter_of(job)
        except BaseException as error:  # then the job has no limit, and cannot run
            if self.queue.first() is job:
                self.queue.take()
                self._settle(job, self._failed_unrun(job, error))
                self._less()
            if isinstance(error, KeyboardInterrupt):
                raise
            return
        if self.queue.first() is not job or not self.idle or self.is_paused:
            return  # it has changed it
        self.queue.take()
        if gate.admit_or_park(job, limiter, now):
            try:
                self._begin(job, self.idle.pop())
            finally:  # also when it raised KeyboardInterrupt in its first step
                del job  # see _start_in_turn
                gate.begun()
        else:
            job.sink.count_delayed(1)

    def _begin(self, job: Job, worker: Worker) -> None:
        """Give a job to a worker that was idle."""
        self.running = running = self.running + 1
        if running > self.peak_running:
            self.peak_running = running
        self._start(job, worker)

    def _start(self, job: Job, worker: Worker) -> None:
        """Start the attempt's task."""
        job.worker = worker
        worker.job = job
        if self.observers.any:
            self.observers.emit(
                JobStarted(pool=self.name, id=job.number, job=job.input, attempt=job.attempt, worker=worker.number)
            )
        if not self._is_direct:
            self._start_in_turn(job, worker)
            return
        attempt = self._attempt(job, worker)
        context, job.context = job.context, None  # the task has it, and it has the job: kept, it would be a cycle
        # Into its `try` before there is a task: one that is cancelled before its first step never enters it, and
        # the job would have no outcome (test_a_job_cancelled_before_its_first_step_has_an_outcome).
        attempt.send(None)
        job.task = task = _Task(attempt, loop=self.loop, name=self._task_name, context=context)
        if job.doom is not None:  # an observer has cancelled it
            task.cancel()

    def _start_in_turn(self, job: Job, worker: Worker) -> None:
        """Start the attempt's task where that may run the job's first step: in the pool's own turn."""
        attempt = self._attempt(job, worker)
        context, job.context = job.context, None
        if self._is_eager:
            task = _Task(attempt, loop=self.loop, name=self._task_name, context=context, eager_start=True)
        else:
            try:
                task = self.loop.create_task(attempt, name=self._task_name, context=context)
            except BaseException as error:  # the loop's task factory raised: it may not leave a job without an end
                attempt.close()
                now = self._time()
                job.context = context
                if self._gate is not None:
                    self._gate.manager_of(job)
                self._end(job, worker, judge(job, error, now, None), now, error)
                if isinstance(error, KeyboardInterrupt):
                    raise
                return
            task.add_done_callback(partial(self._never_began, job, worker, attempt, context))
        if worker.job is job:  # else it has ended already, and may even wait for its next attempt
            job.task = task
            if job.doom is not None:  # an eager job was cancelled in its first step, by what it called itself
                task.cancel()
        # The traceback of an eager job that failed in its first step leads to this frame (f_back), and so to all that
        # it knows: with the job, and so its outcome, it would be a cycle.
        del job, task, context, attempt

    async def _attempt(self, job: Job, worker: Worker) -> None:
        """Run one attempt at a job, in its own task and context. Whatever happens, the job has an outcome after it."""
        awaitable: Any = _NOTHING_YET
        try:
            if self._is_direct:
                await inside_try()
            _set_current_job(job)
            if self._is_plain:
                job.started_at = began = self._time()
                awaitable = self._handler(job.input)
                value: Any = await awaitable
            else:
                value = await self._surrounded(job, worker)
                started_at: Any = job.started_at  # Any: it is a number by now
                began = started_at
            now = self._time()
        except BaseException as error:
            if self.loop.is_closed():  # the coroutine of an abandoned job is being collected: nobody is left to tell
                raise
            # To ask only now what the handler has returned costs nothing where it returned what it should.
            raised = error if awaitable is _NOTHING_YET else blame_handler(awaitable, error)
        else:
            # Succeeded(...), without the calls.
            ended = _new(Succeeded)
            ended._job = job.input
            ended._value = value
            ended._attempts = job.attempt
            ended._worker = worker.number
            ended._seconds_queued = queued = began - job.ready_at
            ended._seconds_running = ran = now - began
            self._record_queued(queued)
            self._record_running(ran)
            if now >= self._attend_at:
                self._end(job, worker, ended, now)
                return
            # What _end does where nothing else is to do: the end of most jobs.
            worker.job = job.task = None
            job.outcome = ended
            self.counters.succeeded += 1
            job.sink.deliver(job, ended)
            if self._is_direct and (fresh := self.queue.pop()) is not None:
                self._start(fresh, worker)
            else:
                self.running -= 1
                self.idle.append(worker)
                if not self._is_pumping and self.queue.size:
                    self._wake()
            if self._waiting:
                self.line.advance()
            return
        self._end_raised(job, worker, raised)
        del job, worker  # see _start_in_turn
        try:
            if isinstance(raised, KeyboardInterrupt):
                raise raised
        finally:
            del raised  # its traceback knows this frame

    def _end_raised(self, job: Job, worker: Worker, error: BaseException) -> None:
        """End an attempt in its own task and context, by what was raised."""
        if job.doom is None and self.is_torn_down() and isinstance(recorded_error(error), asyncio.CancelledError):
            job.doom = CancelReason.SHUTDOWN
        now = self._time()
        outcome: Failed[Any] | Cancelled[Any]
        try:
            outcome = judge(job, error, now, self._handler if self._has_handler else job.input)
        except Exception as broken:  # an error whose own attributes raise is an outcome all the same
            kinds = type(error).__qualname__, type(broken).__qualname__
            _log.error("pool %r: an error of type %s cannot be looked at: that raises %s", self.name, *kinds)
            outcome = Failed(job.input, error, job.attempt, worker.number, now - job.ready_at, 0.0)
        if job.started_at is not None:
            self._record_queued(outcome.seconds_queued)
            self._record_failed(outcome.seconds_running)
        if self._retries is not None:
            job.context = copy_context()  # of this very attempt: the next goes on with it
        self._end(job, worker, outcome, now, error)

    async def _surrounded(self, job: Job, worker: Worker) -> Any:
        """Call the handler with what was asked to surround it: the limiter outside, so that its wait is not timed."""
        limiter = self._limiter if self._gate is None else self._gate.manager_of(job)
        args = (job.input,) if self._enter_resource is None else (job.input, worker.resource)
        inner = self._timed(job, args)
        if limiter is None:
            return await inner
        try:
            return await within_limiter(limiter, inner)
        finally:
            inner.close()  # if the limiter never let it begin

    async def _timed(self, job: Job, args: tuple[Any, ...]) -> Any:
        now = self._time()
        seconds = math.inf if self._timeout is None else self._timeout
        left = math.inf if self._retries is None else self._retries.seconds_left(job, now)
        if left <= 0.0:  # it has waited for the limiter
            assert self._retries is not None
            raise self._retries.expired(job)
        job.started_at = now
        if self.scaler.is_dozing:  # it may have seen us wait in the limiter
            self._rouse()
        if left < seconds:
            return await within_deadline(left, partial(self._expire, job), self._handler, *args)
        if seconds < math.inf:
            return await within_deadline(seconds, partial(self._time_out, job), self._handler, *args)
        return await call_handler(self._handler, *args)

    def _expire(self, job: Job) -> None:
        assert self._retries is not None
        self._doom(job, self._retries.expired(job))

    def _time_out(self, job: Job) -> None:
        assert self._timeout is not None
        self._doom(job, JobTimeout(self._timeout))

    def _never_began(
        self, job: Job, worker: Worker, attempt: Any, context: Context | None, task: asyncio.Task[None]
    ) -> None:
        """End an attempt whose task a factory made, and which was cancelled before its first step."""
        if job.task is task and worker.job is job:
            attempt.close()
            now = self._time()
            job.context = context
            if self._gate is not None:
                self._gate.manager_of(job)
            if job.doom is None and self.is_torn_down():
                job.doom = CancelReason.SHUTDOWN
            error = asyncio.CancelledError()
            self._end(job, worker, judge(job, error, now, None), now, error)

    # -- The end of an attempt, and of a job -------------------------------------------------------------------------

    def _end(
        self,
        job: Job,
        worker: Worker,
        outcome: Outcome[Any, Any],
        now: float,
        raised: BaseException | None = None,
    ) -> None:
        """Settle a job whose task is about to end, or put it off to its next attempt; its worker takes the next job."""
        backoff = (
            None if raised is None or job.outcome is not None else self._what_follows(job, worker, outcome, raised, now)
        )
        if self._dying:
            timer = self._dying.pop(job, None)
            if timer is not None:
                timer.cancel()
        if job.outcome is not None:
            _log.warning(
                "pool %r: job %d, abandoned when the pool closed, has ended: %r", self.name, job.number, outcome
            )
            return
        if job.doom is not None and worker.keeper is not None:
            worker.stale = True
        worker.job = job.task = None
        self.running -= 1
        if backoff is not None and isinstance(outcome, Failed):
            self._put_off(job, outcome, backoff, now)
        else:
            self._settle(job, outcome)
        if now >= self._tidy_at:
            self._tidy(now)

        if self._surplus and not worker.leaving:
            self._surplus -= 1
            worker.leaving = True
        if worker.leaving or worker.stale:
            self._put_down(worker)
        elif self._is_direct and not self.is_paused and (fresh := self.queue.pop()) is not None:
            self._begin(fresh, worker)
        else:
            self.idle.append(worker)
            if not self._is_pumping and self.queue.size:
                self._wake()
        if self.line.waiting:
            self.line.advance()
        self.tell_less()

    def _is_special(self) -> bool:
        """Whether there is more to do at the end of each job than to let its worker go on.

        Whatever makes it so calls `_attend`; that it is so no more is seen when it is tidied.
        """
        return bool(
            self.observers.any
            or self._enter_resource is not None
            or self._when_less is not None
            or self._surplus
            or self._dying  # so also what runs while the pool comes to its end
            or self.is_paused
        )

    def _attend(self) -> None:
        """Look at the end of the next job, whatever its time."""
        self._attend_at = -math.inf

    def _tidy(self, now: float) -> None:
        """What need not be done for each job, but soon."""
        self._tidy_at = now + _TIDY_SECONDS
        self._attend_at = -math.inf if self._is_special() else self._tidy_at
        if self.scaler.is_dozing:
            self._rouse()
        self.seconds_queued.fold()
        self.seconds_running.fold()
        if now >= self.throughput.due:
            self.throughput.mark(now, self.counters.ended)

    # -- Between two attempts ----------------------------------------------------------------------------------------

    def _what_follows(
        self, job: Job, worker: Worker, outcome: Outcome[Any, Any], raised: BaseException, now: float
    ) -> float | None:
        """Ask the user's functions what follows from a failure; return the backoff before the next attempt, if any.

        The job still counts as running meanwhile: they may look at the pool, cancel this very job, or close the pool.
        """
        if not isinstance(outcome, Failed):
            return None
        if self._recent is not None and self._recent.take_error(raised, outcome.error):
            self.queue.push = self._push
            self.scaler.rouse(at_once=True)
        if worker.keeper is not None and not worker.stale and job.started_at is not None:
            worker.stale = self._spoils_resource(outcome)
        try:
            if isinstance(raised, RetryAfter) and raised.pause:
                self._pause_for(check_seconds("seconds", raised.seconds), now)
            return None if self._retries is None else self._retries.backoff(job, outcome, raised, now)
        except BaseException as error:
            self._log_hook("the predicate `on` of the retry, or the advice of the handler,", error)
            return None

    def _put_off(self, job: Job, failed: Failed[Any], backoff: float, now: float) -> None:
        """Let a job wait for its next attempt. It has left its worker."""
        job.past = Past(failed, job.accepted_at, job.has_begun)
        job.worker = job.started_at = job.doom = None
        job.attempt += 1
        self.counters.retries += 1
        self._delays.set(now + backoff, job)
        job.sink.count_delayed(1)
        if self.observers.any:
            self.observers.emit(
                JobRetrying(
                    pool=self.name,
                    id=job.number,
                    job=job.input,
                    attempt=failed.attempts,
                    error=failed.error,
                    seconds=backoff,
                )
            )

    def _come_back(self, job: Job) -> None:
        """A job's pause is over: it may be taken for its next attempt."""
        assert job.past is not None
        job.past.is_waiting = False
        job.ready_at = self._time()
        self._put_back(job)

    def _put_back(self, job: Job) -> None:
        assert self._returns is not None
        self._returns.put_back(job)
        job.sink.count_delayed(-1)
        if self.scaler.is_dozing:
            self._rouse()
        if self.idle and not self._is_pumping:
            self._wake()
        if self.line.waiting:
            self.line.advance()  # there is room where the delayed jobs are, if that is what was missing
        self.waits.check()  # and if it was not, that wait may be a deadlock

    def _failed_unrun(self, job: Job, error: BaseException) -> Failed[Any]:
        """The outcome of a job that fails while it waits."""
        strip(error)
        return Failed(job.input, error, job.attempts, *self._figures(job))

    def _figures(self, job: Job) -> tuple[int | None, float, float]:
        """The worker, and the seconds queued and run, of this attempt; between two attempts, of the last."""
        if job.worker is None and job.past is not None:
            last = job.past.failed
            return last.worker, last.seconds_queued, last.seconds_running
        now, began = self._time(), job.started_at
        worker = None if job.worker is None else job.worker.number
        return worker, (now if began is None else began) - job.ready_at, 0.0 if began is None else now - began

    def _settle(self, job: Job, outcome: Outcome[Any, Any]) -> None:
        """Give a job its one outcome, and whoever accepted it the news. The caller has moved it out of its place."""
        self._count(job, outcome)
        self._tell(job, outcome)

    def _count(self, job: Job, outcome: Outcome[Any, Any]) -> None:
        job.outcome = outcome
        job.context = None
        counters = self.counters
        if isinstance(outcome, Succeeded):
            counters.succeeded += 1
        elif isinstance(outcome, Failed):
            counters.failed += 1
            if self._letterbox is not None:
                self._letterbox.post(job, outcome, self._time())
        else:
            counters.cancelled += 1
            if outcome.reason in (CancelReason.SHUTDOWN, CancelReason.ABANDONED):
                self._hand_back(job, outcome)

    def _hand_back(self, job: Job, outcome: Cancelled[Any]) -> None:
        """Note for the report that a job was not done."""
        if self.is_ended:  # its source ignored the end of the pool: the report is made
            _log.warning("pool %r: a job that came after the pool was closed is not done: %r", self.name, job.input)
        entry = (job.number, Unfinished(job=job.input, started=outcome.started))
        if not isinstance(job.doom, CancelReason) or job.doom is CancelReason.SHUTDOWN:
            self.unfinished.append(entry)  # else its owner has cancelled it, and does not want it back
        if outcome.reason is CancelReason.ABANDONED:
            self.abandoned.append(entry)

    def _tell(self, job: Job, outcome: Outcome[Any, Any]) -> None:
        if self.observers.any:
            self.observers.emit(JobEnded(pool=self.name, id=job.number, outcome=outcome))
        job.sink.deliver(job, outcome)

    def _log_hook(self, what: str, error: BaseException) -> None:
        """What the user's code raises at the end of a job is logged, and changes nothing: the job is to be settled."""
        _log.error("pool %r: %s raised", self.name, what, exc_info=error)
        if isinstance(error, KeyboardInterrupt):
            self.loop.call_soon(_raise, error)

    def _handed_back(self, job: Job, reason: CancelReason) -> Cancelled[Any]:
        """The outcome of a job that is cancelled by us and not by its own end."""
        return Cancelled(job.input, reason, job.has_begun, job.attempts, *self._figures(job))

    # -- Cancellation ------------------------------------------------------------------------------------------------

    def cancel(self, job: Job, reason: CancelReason) -> bool:
        """Settle a waiting job as cancelled, ask a running one to end; False if it is settled already."""
        if job.outcome is not None:
            return False
        if job.worker is not None:
            self._doom(job, reason)
            return True
        outcome = self._handed_back(job, reason)
        self._count(job, outcome)
        is_delayed = job.past is not None and job.past.is_waiting
        if is_delayed:
            self._delays.forget(job)
        elif self._gate is not None:
            is_delayed = self._gate.forget(job)
        if not is_delayed:
            self.queue.forget()
        else:
            job.sink.count_delayed(-1)
        self._tell(job, outcome)
        self._less()
        return True

    def call_when_less(self, call: Callable[[], None] | None) -> None:
        """Have something called whenever a job has ended or a worker is gone; None: nothing any more."""
        self._when_less = call
        self._attend()

    def tell_less(self) -> None:
        """Call it."""
        if self._when_less is not None:
            self._when_less()

    def _less(self) -> None:
        """Tell whoever waits for that: there is a job less."""
        if self.scaler.is_dozing:
            self._rouse()
        self.line.advance()
        self.waits.check()  # what was delayed may have been all that was still to come
        self.tell_less()

    def _doom(self, job: Job, why: CancelReason | PoolError) -> None:
        """Cancel the task of a running job, once. A reason that is later wins over an error, and cancels nothing."""
        if job.outcome is not None or isinstance(job.doom, CancelReason):
            return
        is_first = job.doom is None
        if is_first or isinstance(why, CancelReason):
            job.doom = why
        if is_first:
            self._attend()
            if job.task is not None:
                job.task.cancel()
            self._dying[job] = self.loop.call_later(STUCK_AFTER, self._call_stuck, job)

    def _call_stuck(self, job: Job) -> None:
        worker = job.worker
        assert worker is not None
        self._dying[job] = None
        job.sink.give_up_job(job)
        _log.warning(
            "pool %r: job %d ignores its cancellation for %g s and holds worker %d until it ends: %r",
            self.name,
            job.number,
            STUCK_AFTER,
            worker.number,
            job.input,
        )
        if self.observers.any:
            self.observers.emit(
                JobStuck(pool=self.name, id=job.number, job=job.input, worker=worker.number, seconds=STUCK_AFTER)
            )

    def is_stuck(self, job: Job) -> bool:
        """Whether a running job has ignored its cancellation for too long."""
        return self._dying.get(job, _NOTHING_YET) is None

    def is_waited_for(self, sink: Sink) -> bool:
        """Whether some job of this sink runs that is not stuck."""
        return any(job.sink is sink and not self.is_stuck(job) for job in self.running_jobs())

    def is_torn_down(self) -> bool:
        """Whether somebody cancels every task, as asyncio.run does at its end.

        The supervisor is cancelled in the same turn as the jobs: so what cancelled them is the shutdown, and not a
        failure of their own, and their inputs are to be handed back.
        """
        return self.supervisor is not None and self.supervisor.cancelling() > 0

    def running_jobs(self) -> list[Job]:
        """The jobs that hold a worker."""
        return [worker.job for worker in self.workers.values() if worker.job is not None]

    def waiting_jobs(self) -> list[Job]:
        """The jobs that wait for a worker or for a time, in the order of acceptance."""
        parked = () if self._gate is None else self._gate
        return sorted(chain(self.queue, self._delays, parked), key=lambda job: job.number)

    def cancel_where(self, belongs: Callable[[Job], bool], reason: CancelReason) -> None:
        """Cancel all jobs that belong; those that wait first, so that no worker that is freed takes one of them."""
        for job in self.waiting_jobs() + self.running_jobs():
            if belongs(job):
                self.cancel(job, reason)

    def retire_all(self) -> None:
        """Let every worker go: at once, or when its job has ended."""
        self.scaler.end()
        self._surplus = 0
        self.idle.clear()
        for worker in list(self.workers.values()):
            worker.leaving = True
            if worker.job is None:
                self._put_down(worker)

    def abandon_running(self) -> None:
        """Settle what still runs, whatever its tasks do: the last resort when the pool closes."""
        for job in self.running_jobs():
            worker = job.worker
            assert worker is not None
            timer = self._dying.pop(job, None)
            if timer is not None:
                timer.cancel()
            outcome = self._handed_back(job, CancelReason.ABANDONED)
            worker.job = None
            worker.leaving = True
            self.running -= 1
            self._settle(job, outcome)
            self._put_down(worker)

    # -- Workers -----------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Take no more jobs from the queue."""
        self.pauses.by_user()
        if self.observers.any:
            self.observers.emit(PoolPaused(pool=self.name, seconds=None))

    def resume(self) -> None:
        """Take jobs from the queue again, unless a job has asked for a pause that is not over."""
        self.pauses.lift_by_user()

    def _pause_for(self, seconds: float, now: float) -> None:
        """Take no more jobs for a time, as a job has asked."""
        if self.pauses.until(now + seconds):
            _log.info("pool %r: a job has asked for a pause of %g s", self.name, seconds)
            if self.observers.any:
                self.observers.emit(PoolPaused(pool=self.name, seconds=seconds))

    def _pauses_changed(self, is_paused: bool) -> None:
        was_told, self._was_told = self._was_told, self.pauses.is_told
        self.is_paused = is_paused
        self._attend()
        if self.scaler.is_dozing:
            self._rouse()
        if not is_paused:
            if self.queue.size:
                self._wake()
            self.line.advance()
        if was_told and not self._was_told and self.observers.any:
            self.observers.emit(PoolResumed(pool=self.name))

    def tell_opened(self) -> None:
        """Tell whoever keeps the dead letters that there may be some. It may do anything, even close the pool."""
        if self._letterbox is not None:
            self._letterbox.tell_opened()

    def silence(self) -> None:
        """Drop all timers: every job is settled, and the pool is closed."""
        self.scaler.end()
        self.forget_recent()
        self.waits.close()
        if self._asking is not None:
            self._asking.cancel()
        self._delays.clear()
        if self._gate is not None:
            self._gate.close()
        self.pauses.close(self._rate_limit)
        if self._letterbox is not None:
            self._letterbox.tell_closed()

    def resize(self, decision: Decision, load: PoolLoad | None) -> None:
        """Change how many workers there should be, and tell it."""
        old = self.target_workers
        self._set_workers(decision.workers)
        if old != decision.workers and self.observers.any:
            self.observers.emit(
                PoolResized(
                    pool=self.name,
                    old=old,
                    new=decision.workers,
                    reason=decision.reason,
                    figures=decision.figures,
                    load=load,
                )
            )
        # After the news, so that what an observer does about the next step comes after what he hears of this one.
        if self.queue.size:
            self._wake()
        self.make_way()
        self.waits.check()

    def _set_workers(self, wanted: int) -> None:
        """Make new workers, or retire surplus ones: at once who has no job, then whoever ends his job first."""
        self.target_workers = wanted
        self.measure()
        staying = [worker for worker in self.workers.values() if not worker.leaving]
        for _ in range(wanted - len(staying)):
            self.add_worker()
        excess = max(0, len(staying) - wanted)
        # Of those without a job first who has no resource yet, the youngest first; then who has been idle longest.
        idle = {worker: place for place, worker in enumerate(self.idle)}
        free = [worker for worker in staying if worker.job is None]
        free.sort(key=lambda worker: (idle.get(worker, -1), -worker.number))
        for worker in free[:excess]:
            worker.leaving = True
        self.idle[:] = [worker for worker in self.idle if not worker.leaving]
        for worker in free[:excess]:
            self._put_down(worker)
        self._surplus = max(0, excess - len(free))
        self._attend()

    def make_way(self) -> None:
        """Let in who waits for room: in the queue, or in a window. Both grow with the most workers there may be."""
        self.line.advance()
        for guest in list(self.guests):
            guest.line.advance()

    def add_worker(self, *, must_enter: bool = False) -> Worker:
        """Make a worker; one with a resource takes jobs once that is entered."""
        number = heapq.heappop(self._free_numbers) if self._free_numbers else len(self.workers) + 1
        worker = self.workers[number] = Worker(number, self)
        if self._enter_resource is None:
            self.idle.append(worker)
        else:
            context = self._context.copy()  # not that of whoever resizes
            worker.keeper = Keeper(worker, self, self._enter_resource, context, must_enter=must_enter)
        return worker

    def dismiss(self, worker: Worker) -> None:
        """Forget a worker that has left."""
        if self.workers.get(worker.number) is worker:  # else its number is somebody else's by now
            del self.workers[worker.number]
            heapq.heappush(self._free_numbers, worker.number)
            self.waits.check()
        self.tell_less()

    def _put_down(self, worker: Worker) -> None:
        """Let go of a worker that has no job and is not among the idle: its keeper does the rest, if it has one."""
        if worker.keeper is not None:
            if worker.leaving:
                worker.keeper.leave()
            else:
                worker.keeper.ring()
        elif worker.leaving:
            self.dismiss(worker)

    # -- Workers with a resource: what their keepers call ------------------------------------------------------------

    def offer(self, worker: Worker) -> None:
        """A worker's resource is entered: it takes jobs."""
        if worker.leaving:
            return
        self.idle.append(worker)
        if self.scaler.is_dozing:
            self._rouse()
        if self.queue.size:
            self._wake()
        self.line.advance()

    def withdraw(self, worker: Worker) -> BaseException | None:
        """A worker's resource ends by itself: fail the job that runs on it, and return the failure to be."""
        worker.stale = True
        if worker in self.idle:
            self.idle.remove(worker)
        if worker.job is None or worker.job.doom is not None:
            return None
        if self.is_torn_down():
            self._doom(worker.job, CancelReason.SHUTDOWN)
            return None
        died = ResourceDied(f"the resource of worker {worker.number} of pool {self.name!r} ended while the job ran")
        self._doom(worker.job, died)
        return died

    def resource_failed(self, worker: Worker, error: BaseException, retry_in: float | None) -> None:
        """A worker's resource could not be entered or left, or has died."""
        if retry_in is None:
            self.resource_errors.append(error)
        _log.error(
            "pool %r: the resource of worker %d failed%s",
            self.name,
            worker.number,
            "" if not retry_in else f", next try in {retry_in:.2g} s",
            exc_info=error,
        )
        if self.observers.any:
            self.observers.emit(ResourceFailed(pool=self.name, worker=worker.number, error=error, retry_in=retry_in))

    # -- Scaling: what the scaler asks and what it is told -----------------------------------------------------------

    def take_load(self) -> PoolLoad:
        """Return how busy the pool is, and what has happened since this was called last."""
        now, counters = self._time(), self.counters
        self.seconds_running.fold()  # so that all that was measured is in the sample
        recent = self._recent or Recent(now, counters.succeeded)
        load = PoolLoad(
            now=now,
            elapsed=now - recent.asked_at,
            workers=self.target_workers,
            starting=self._starting(),
            idle=len(self.idle),
            running=self.running,
            peak_running=self.peak_running,
            blocked=self.waits.blocked(),
            queued=self.queue.size,
            waiting=len(self.line.waiting),
            rejected=recent.rejected,
            delayed=self.delayed,
            is_throttled=self._is_throttled(now),
            succeeded=counters.succeeded - recent.succeeded,
            failed=recent.failed,
            seconds=tuple(recent.seconds),
            errors=tuple(recent.errors),
        )
        self.forget_recent()
        if not self.scaler.is_fixed:
            self._recent = Recent(now, counters.succeeded)
            self.seconds_running.reader = self._recent.take_seconds
        return load

    def forget_recent(self) -> None:
        """What has happened until now concerns no later question."""
        self._past_peak = max(self._past_peak, self.peak_running)
        self.peak_running = self.running
        self._recent = self.seconds_running.reader = None

    def _starting(self) -> int:
        """How many workers have no resource yet, or not again."""
        if self._enter_resource is None:
            return 0
        free = sum(worker.job is None and not worker.leaving for worker in self.workers.values())
        return free - len(self.idle)

    def _is_throttled(self, now: float) -> bool:
        """Whether something else than workers is wanting."""
        return (
            self.is_paused
            or (self._rate_limit is not None and self._rate_limit.next_start > now)
            or self._waits_in_limiter()
            or (self._has_delays and self.are_too_many_delayed())
        )

    def seconds_until_open(self) -> float:
        """In how many seconds the rate limit of all jobs opens; inf if there is none, or it is open.

        While all workers are busy nobody waits for that.
        """
        seconds = 0.0 if self._rate_limit is None else self._rate_limit.next_start - self._time()
        return seconds if seconds > 0.0 else math.inf

    def _waits_in_limiter(self) -> bool:
        """Whether some job that holds a worker waits for its limiter."""
        if self._limiter is None and self._gate is None:
            return False
        return any(job.started_at is None for job in self.running_jobs())

    @property
    def has_backlog(self) -> bool:
        """Whether a job waits for a worker, or for room."""
        return self.queue.size > 0 or len(self.line.waiting) > 0

    def rouse_at_change(self) -> None:
        """Rouse the scaler at the next job that comes or ends, and whatever else may change its policy's mind."""
        self.queue.push = self._push_and_rouse
        self._tidy_at = -math.inf
        self._attend()

    def rouse_after_failures(self, failures: int | None) -> None:
        """Rouse the scaler at once when so many attempts have failed."""
        if self._recent is not None:
            self._recent.most_failed = math.inf if failures is None else failures

    def _push_and_rouse(self, job: Job) -> None:
        self._push(job)
        self._rouse()

    def _rouse(self) -> None:
        self.queue.push = self._push
        self.scaler.rouse(at_once=not self.target_workers)

    def _all_wait(self) -> None:
        """Every job that runs waits for this pool: ask for one more worker."""
        self.queue.push = self._push
        self.scaler.rouse(at_once=True)

    def _needs_worker(self) -> bool:
        return not self.idle and not self.scaler.is_fixed and not self._starting()

    def _may_grow(self) -> bool:
        """Whether the policy is a function, so that it has to be asked before anybody knows."""
        if self.scaler.is_function and self._asking is None:
            self._asking = self.loop.call_soon(self._ask_whether_to_grow, context=self._context)
        return self.scaler.is_function

    def _ask_whether_to_grow(self) -> None:
        self.queue.push = self._push
        self.scaler.look()
        # Once more a little later: what the jobs wait for may be about to be submitted.
        self._asking = self.loop.call_later(_ASK_ONCE_MORE, self._tell_deadlock, context=self._context)

    def _tell_deadlock(self) -> None:
        self._asking = None
        self.queue.push = self._push
        self.scaler.look()
        self.waits.check(is_final=True)

    async def _wait_for_room(self, future: asyncio.Future[None]) -> None:
        if self.scaler.is_dozing:
            self._rouse()
        await self.waits.wait(future)

    def count_rejected(self) -> None:
        """A job was turned away, because the pool is full."""
        self.counters.rejected += 1
        if self._recent is not None:
            self._recent.rejected += 1
            if self.scaler.is_dozing:
                self._rouse()

    def _spoils_resource(self, outcome: Outcome[Any, Any]) -> bool:
        if not isinstance(outcome, Failed):
            return False
        try:
            return matches(self._recycle_on, outcome.error)
        except BaseException as error:
            self._log_hook("recycle_on, so that the resource is replaced to be safe,", error)
            return True

    # -- What is known -----------------------------------------------------------------------------------------------

    async def wait(self, future: asyncio.Future[Any]) -> None:
        """Wait for something of this pool, which a job may only do while others can still run."""
        await self.waits.wait(future)

    def note_unread(self, failed: Failed[Any]) -> None:
        """Count a failure that was delivered to nobody. From any thread, and while the collector runs."""
        if self._letterbox is not None:
            return  # it is kept there
        try:
            self.loop.call_soon_threadsafe(self.count_unread, (failed,))
        except RuntimeError:  # the loop is closed, and so is the pool: nobody is left to race with
            self.count_unread((failed,))

    def count_unread(self, failures: Sequence[Failed[Any]]) -> None:
        """Count failures that were delivered to nobody; log the 1st, 2nd, 4th, 8th ... of them."""
        if self._letterbox is not None:
            return  # they are kept there
        for failed in failures:
            self.counters.unread_failures += 1
            count = self.counters.unread_failures
            if count & (count - 1) == 0:
                _log.error(
                    "pool %r: a job failed and nobody read its outcome (number %d of such): %r",
                    self.name,
                    count,
                    failed.job,
                    exc_info=failed.error,
                )

    def stats(self) -> PoolStats:
        """Return a snapshot."""
        counters = self.counters
        return PoolStats(
            name=self.name,
            submitted=counters.submitted,
            queued=self.queue.size,
            delayed=self.delayed,
            running=self.running,
            succeeded=counters.succeeded,
            failed=counters.failed,
            cancelled=counters.cancelled,
            workers=len(self.idle) + self.running,
            target_workers=self.target_workers,
            max_workers=self.most(),
            peak_running=max(self._past_peak, self.peak_running),
            stuck=sum(timer is None for timer in self._dying.values()),
            unread_failures=counters.unread_failures,
            retries=counters.retries,
            rejected=counters.rejected,
            retries_rejected=counters.retries_rejected,
            seconds_queued=self.seconds_queued.snapshot(),
            seconds_running=self.seconds_running.snapshot(),
            throughput=self.throughput.rate(self._time(), counters.ended) if self.is_bound else 0.0,
        )

    # -- What callers get wrong --------------------------------------------------------------------------------------

    @property
    def is_bound(self) -> bool:
        """Whether the pool was ever started."""
        return hasattr(self, "loop")

    def check_started(self) -> None:
        """Raise unless the pool was started, on the loop that runs here."""
        if not self.is_bound:
            if self.is_ended:
                raise self.closed_error()
            raise PoolNotStarted(
                f"pool {self.name!r} is not started: use `async with pool:`, or `await pool.start()` first"
            )
        self.check_loop()

    def check_loop(self) -> None:
        """Raise unless the pool's loop runs in this thread."""
        running = asyncio._get_running_loop()
        if running is None:
            raise WrongLoop(
                f"pool {self.name!r} belongs to another thread: call it with "
                "asyncio.run_coroutine_threadsafe(pool.run(job), loop).result(), or from a thread of anyio.to_thread "
                "with anyio.from_thread.run(pool.run, job)"
            )
        if running is not self.loop:
            raise WrongLoop(
                f"pool {self.name!r} belongs to another event loop: a pool lives in one asyncio.run(), so make one in "
                "each; from another thread's loop call it with asyncio.run_coroutine_threadsafe(pool.run(job), loop), "
                "from a thread without one with anyio.from_thread.run(pool.run, job)"
            )

    def check_open(self) -> None:
        """Raise unless the pool takes jobs from here now."""
        self.check_started()
        if not self.is_open:
            raise self.closed_error()

    def closed_error(self) -> PoolClosed:
        """The error of whoever comes too late."""
        return PoolClosed(f"pool {self.name!r} is closing or closed, and takes no more jobs")
