"""`Runner`: the far side of an engine. It runs the attempts that it is sent on an ordinary pool in its own process.

What belongs to one attempt happens here: the handler, its timeout, the worker's resource. What lies between attempts
(retries, rates, order, priorities, dead letters, the end) stays in the program, which has the job.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import copy_context
from functools import partial
from operator import attrgetter
from typing import Any

from asyncpool._core.invoke import call_handler, within_deadline
from asyncpool._core.job import CURRENT_JOB, Job, Waiters
from asyncpool._core.life import Life
from asyncpool._core.parts import Parts
from asyncpool._core.resource_log import ResourceLog
from asyncpool._core.scaler import as_policy
from asyncpool.engines.contract import ContextCarrier
from asyncpool.engines.remote_errors import dump_error
from asyncpool.engines.wire import (
    BATCH_BYTES,
    BROKEN,
    CANCEL,
    CANCELLED,
    ERROR,
    FAULT,
    LEFT,
    LOG,
    OPENED,
    READY,
    REPLACED,
    START,
    STUCK,
    TICK,
    VALUE,
    WAITING,
    Spec,
    dumps,
    load_value,
    loads,
    unpack_spec,
)
from asyncpool.errors import JobCrashed, JobExpired, RetryAdvice
from asyncpool.options import build_parts
from asyncpool.outcomes import Cancelled, CancelReason, Outcome, Succeeded
from asyncpool.stats import ReplacementReason

__all__ = ["Runner"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

_ORPHANED_AFTER = 10  # ticks


class _Errand:
    """One attempt that was sent here. It is the input of a job of the pool that runs it."""

    __slots__ = ("advice", "carried", "data", "id", "seconds_left", "timeout")

    def __init__(
        self, id: int, seconds_left: float | None, timeout: float | None, carried: bytes | None, data: bytes
    ) -> None:
        self.id = id
        self.seconds_left = seconds_left
        self.timeout = timeout
        self.carried = carried
        self.data = data
        self.advice: RetryAdvice | None = None

    def __repr__(self) -> str:
        return f"attempt {self.id} of the program"


class Runner:
    """Takes attempts in and gives their ends out, both in batches. Belongs to the event loop that runs when it is made.

    A runner has a pool while its share of the workers is not 0, and so it has resources. It opens one first, and the
    others when that is open. What goes wrong with them is reported to the program, which logs it.

    Args:
        spec: `EngineHost.spec`, as bytes.
        place: What this process is called in errors.
    """

    waiters: Waiters | None = None  # nobody waits for one of its jobs alone

    def __init__(self, spec: bytes, place: str) -> None:
        self._spec_data = spec
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._spec: Spec | None = None
        self._life: Life | None = None  # of the pool, from its start to its end
        self._parts: Parts | None = None  # of the pool, once it has started
        self._is_open = False  # whether the pool takes jobs
        self._is_usable = False  # whether one of its workers can run a job, as last reported to the program
        self._was_usable = False  # whether one ever could
        self._is_check_scheduled = False
        self._jobs: dict[int, Job] = {}
        self._news: deque[tuple[Any, ...]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._tick = TICK
        self._ticks_without_reader = 0
        self._share = 0
        self._share_changed = asyncio.Event()
        self._is_closing = False
        self._keeper: asyncio.Task[None] | None = None

    # -- Orders ------------------------------------------------------------------------------------------------------

    def put(self, batch: bytes) -> None:
        """Take a batch of orders. Does not wait: what they lead to comes out of `take`."""
        for order in loads(batch):
            kind = order[0]
            if kind == START:
                self._start(*order[1:])
            elif kind == CANCEL:
                job = self._jobs.get(order[1])
                if job is not None and self._parts is not None:
                    self._parts.cancellation.cancel(job, CancelReason.HANDLE)
            elif not self._is_closing:
                self._share = order[1]
                self._share_changed.set()
                if self._is_open and self._share:  # it may have been 0 in between, for too short a time to close
                    self._tell((READY if self._is_usable else WAITING, 0, None, 0.0))
                if self._keeper is None:
                    self._keeper = self._loop.create_task(self._keep_pool(), name="asyncpool runner")

    def _start(
        self,
        id: int,
        number: int,
        attempt: int,
        seconds_left: float | None,
        timeout: float | None,
        carried: bytes | None,
        data: bytes,
    ) -> None:
        # It closes its pool, because its share was 0, or its workers have lost their resources.
        if not self._is_open or self._parts is None or not self._is_usable:
            self._tell((CANCELLED, id, False, 0.0))
            return
        errand = _Errand(id, seconds_left, timeout, carried, data)
        job = self._parts.dispatcher.accept(errand, self, copy_context())
        job.number, job.attempt = number, attempt  # for current_job()
        if job.outcome is None:
            self._jobs[id] = job

    # -- The pool ----------------------------------------------------------------------------------------------------

    async def _keep_pool(self) -> None:
        """Have a pool while there is a share of the workers, and none while there is not."""
        while not self._is_closing:
            self._share_changed.clear()
            if self._share > 0:
                await self._run_pool()
            else:
                await self._share_changed.wait()

    async def _run_pool(self) -> None:
        """Run one pool, until the share is 0 or the runner is closed."""
        try:
            await self._start_pool()
        except Exception as error:
            self._life, self._share = None, 0
            self._tell((BROKEN, 0, self._dump_error(error), 0.0))
            return
        assert self._life is not None
        assert self._parts is not None
        self._is_open, self._is_usable, self._was_usable = True, False, False
        if self._parts.workers.resource is not None:
            self._tell((WAITING, 0, None, 0.0))
        # Without a share it goes on until its jobs have ended, so that a new share needs not wait for them.
        while (self._share > 0 or self._jobs) and not self._is_closing:
            # One resource first: if it cannot be opened, neither can the others, and it is tried again alone.
            is_first = self._parts.workers.resource is not None and not self._was_usable
            self._parts.scaler.replace(as_policy(1 if is_first else max(1, self._share)))
            self._check_usable()
            await self._share_changed.wait()
            self._share_changed.clear()
        self._is_open = False
        if not self._is_closing:
            self._life.stop(drain_timeout=None, grace=5.0)
        await self._life.wait_closed()
        self._life = self._parts = None

    async def _start_pool(self) -> None:
        spec = self._spec
        if spec is None:
            spec = self._spec = unpack_spec(self._spec_data, self._place)
            self._tick = spec.tick
        parts = build_parts(
            self._run,
            workers=1,
            timeout=attrgetter("timeout") if spec.timeout_varies else spec.timeout,
            resource=spec.resource,
            name=spec.pool,
        )
        parts.workers.log = _RemoteLog(parts, self)
        parts.health.keeps_one = True  # so that the process is never without a resource by its own doing
        parts.health.on_usable = parts.cancellation.on_stuck = self._usable_may_change
        parts.cancellation.logs_stuck = False
        parts.workers.retarget(0, "the runner makes them")  # so that it starts without a resource
        self._life = Life(parts)
        self._life.is_report_awaited = True  # the program has the inputs
        await self._life.start()
        self._parts = parts

    def _usable_may_change(self) -> None:
        if not self._is_check_scheduled:  # not here: the step of the pool that calls it is not finished
            self._is_check_scheduled = True
            self._loop.call_soon(self._check_usable)

    def _check_usable(self) -> None:
        """Report whether a worker can run a job. If none can, give back those that wait for one."""
        self._is_check_scheduled = False
        parts = self._parts
        if not self._is_open or parts is None:
            return
        usable = parts.workers.usable + len(parts.health.checking) + parts.ledger.running
        is_usable = usable > parts.cancellation.stuck
        if is_usable == self._is_usable:
            return
        self._is_usable = is_usable
        if self._share:
            self._tell((READY if is_usable else WAITING, 0, None, 0.0))
        if is_usable and not self._was_usable:
            self._was_usable = True
            self._share_changed.set()  # for the other workers
        elif not is_usable:
            parts.cancellation.cancel_where(lambda job: job.worker is None, CancelReason.HANDLE)

    async def _run(self, errand: _Errand, *resource: Any) -> bytes:
        """Run one attempt: the handler of this process's pool."""
        spec, data, errand.data = self._spec, errand.data, b""
        assert spec is not None
        try:
            args = (load_value(data, "the input of the job"), *resource)
            del data
            if errand.carried is not None and isinstance(spec.handler, ContextCarrier):
                handler: Any = partial(spec.handler.call_with, errand.carried)
            else:
                handler = spec.handler
            if errand.seconds_left is None:
                value = await call_handler(handler, *args)
            else:
                job = CURRENT_JOB.get()
                expire = partial(self._expire, job, spec.max_elapsed or 0.0)
                value = await within_deadline(self._loop.time() + errand.seconds_left, expire, handler, *args)
            return dumps(value, shares_main=spec.shares_main)
        except RetryAdvice as advice:
            errand.advice = advice  # of a failure the pool keeps only its cause
            raise
        except KeyboardInterrupt as error:  # it would end this process, and nobody pressed Ctrl+C here
            raise JobCrashed(error) from None

    def _expire(self, job: Job, max_elapsed: float) -> None:
        if self._parts is not None:
            self._parts.cancellation.request(job, JobExpired(max_elapsed))

    # -- The sink of its own jobs ------------------------------------------------------------------------------------

    def deliver(self, job: Job, outcome: Outcome[_Errand, bytes], /) -> None:
        """Report the end of an attempt to the program."""
        errand = outcome.job
        self._jobs.pop(errand.id, None)
        if not self._share:
            self._share_changed.set()  # this may have been the last
        ran = outcome.seconds_running
        if isinstance(outcome, Succeeded):
            self._tell((VALUE, errand.id, outcome.value, ran))
        elif isinstance(outcome, Cancelled):
            self._tell((CANCELLED, errand.id, outcome.started, ran))
        else:
            error = outcome.error if errand.advice is None else errand.advice
            self._tell((ERROR, errand.id, self._dump_error(error), ran))

    def on_delayed(self, change: int, /) -> None:
        """Nothing here is delayed: the pool has no retries."""

    def on_stuck(self, job: Job, /) -> None:
        """Report a job that ignores its cancellation."""
        self._tell((STUCK, 0, job.input.id, 0.0))

    def _dump_error(self, error: BaseException) -> bytes:
        return dump_error(error, self._place, shares_main=self._spec is not None and self._spec.shares_main)

    # -- News --------------------------------------------------------------------------------------------------------

    def log(self, attributes: dict[str, Any]) -> None:
        """Send a log record to the program, as the attributes for `logging.makeLogRecord`."""
        self._tell((LOG, 0, attributes, 0.0))

    def report(self, kind: int, content: Any) -> None:
        """Report something about the workers to the program."""
        self._tell((kind, 0, content, 0.0))

    def report_fault(self, worker: int, error: BaseException, retry_in: float | None, *, is_abandoned: bool) -> None:
        """Report that a resource has failed."""
        self.report(FAULT, (worker, self._dump_error(error), retry_in, is_abandoned))

    def _tell(self, news: tuple[Any, ...]) -> None:
        self._news.append(news)
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> bytes:
        """Wait until something has ended, and return what has; after a while nothing (b""), as a sign of life.

        Cancel-safe. Call it in one task at a time.
        """
        self._ticks_without_reader = 0
        if not self._news and not self._is_closing:
            self._reader = reader = self._loop.create_future()
            timer = self._loop.call_later(self._tick, self._wake_reader)
            try:
                await reader
            finally:
                timer.cancel()
                self._reader = None
            await asyncio.sleep(0)  # what ends in this same iteration goes along
        batch: list[tuple[Any, ...]] = []
        size = 0
        while self._news and size < BATCH_BYTES:
            news = self._news.popleft()
            batch.append(news)
            if type(news[2]) is bytes:
                size += len(news[2])
        return dumps(batch, shares_main=True) if batch else b""

    def tick(self) -> bool:
        """Return whether the program has probably gone. Call it every `TICK` seconds if nothing else shows that.

        Counted in calls and not by the clock: a handler may block the loop for minutes, and `take` with it.
        """
        self._ticks_without_reader += 1
        return self._ticks_without_reader > _ORPHANED_AFTER

    # -- The end -----------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more orders."""
        return self._is_closing

    async def close(self, grace: float = 5.0) -> None:
        """Cancel what runs, close the resources, and wait for that, for up to `grace` seconds.

        Cancelled while waiting, it goes on in the background. `take` returns at once from now on.
        """
        self._is_closing = True
        self._share_changed.set()
        self._wake_reader()
        if self._life is not None:
            self._life.stop(drain_timeout=0.0, grace=grace)
        if self._keeper is not None:
            await asyncio.wait([self._keeper])


class _RemoteLog(ResourceLog):
    """Reports what happens to resources to the program, which counts those of all its processes.

    While the runner closes, they are logged here: the engine may no longer take news.
    """

    __slots__ = ("_reported", "_runner")

    def __init__(self, parts: Parts, runner: Runner) -> None:
        super().__init__(parts.state, parts.observers)
        self._runner = runner
        self._reported: set[int] = set()  # the workers whose failures were reported

    def failed(self, worker: int, error: BaseException, retry_in: float | None, process: str | None = None) -> None:
        """Report a failure."""
        if self._runner.is_closed:
            super().failed(worker, error, retry_in, process)
            return
        if retry_in is not None:
            self._reported.add(worker)
        self._runner.report_fault(worker, error, retry_in, is_abandoned=False)

    def abandoned(self, worker: int, error: BaseException, process: str | None = None) -> None:
        """Report a resource that was abandoned."""
        self._runner.report_fault(worker, error, None, is_abandoned=True)

    def opened(self, worker: int, process: str | None = None) -> None:
        """Report that the resource of a worker is open that was refused one before."""
        self._forget(worker, OPENED)

    def left(self, worker: int, process: str | None = None) -> None:
        """Report that such a worker does not try again."""
        self._forget(worker, LEFT)

    def _forget(self, worker: int, kind: int) -> None:
        if worker in self._reported:
            self._reported.discard(worker)
            self._runner.report(kind, worker)

    def replaced(self, worker: int, reason: ReplacementReason, process: str | None = None) -> None:
        """Report a resource that is about to be closed by plan."""
        self._runner.report(REPLACED, (worker, reason))
