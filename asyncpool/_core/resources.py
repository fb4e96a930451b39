"""The task that opens, holds, checks and closes one worker's resource.

What becomes of the worker meanwhile is `workers.py`; when its resource is checked is `health.py`, and when one that
could not be opened is tried again `reopening.py`; the bounds of each step are those of `bounds.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from enum import Enum
from typing import Any, NamedTuple, Protocol

from asyncpool._chance import chance
from asyncpool._core.bounds import Bound, Places
from asyncpool._core.job import Worker
from asyncpool._core.reopening import Reopening, backoff
from asyncpool._core.resource_log import ResourceLog
from asyncpool._core.tasks import Tasks
from asyncpool._core.wakeups import wake
from asyncpool._guard import describe, is_error, set_cause
from asyncpool.errors import PoolClosed, ResourceDied, ResourceTimeout, is_safe_to_raise
from asyncpool.resources import Resource

__all__ = ["SPREAD", "ResourceHost", "ResourceTask", "safe_error"]

# A resource that was held this long was a good one, so that the next begins with the first pause, in seconds.
_LONG_LIFE = 30.0
# A worker that has waited this long for a resource is no longer one that is about to start, in seconds.
_SLOW_AFTER = 5.0


# Between which shares of `max_age` and `max_jobs` a resource is replaced, at random: so not all in the same moment.
SPREAD = 0.9, 1.0


def safe_error(error: BaseException | None) -> BaseException:
    """Return the error that `start()` raises for one of the first resource."""
    if error is not None and is_safe_to_raise(error):
        return error
    died = ResourceDied("the resource could not be opened")
    set_cause(died, error)
    return died


class ResourceHost(Protocol):
    """What a resource task reports to."""

    def worker_ready(self, worker: Worker, /) -> None: ...
    def worker_slow(self, worker: Worker, /) -> None: ...
    def resource_passed_check(self, worker: Worker, /) -> None: ...
    def resource_failed_check(self, worker: Worker, error: BaseException | None, /) -> None: ...
    def resource_too_old(self, worker: Worker, /) -> None: ...
    def resource_lost(self, worker: Worker, /) -> BaseException | None: ...
    def resource_failed(self, worker: Worker, error: BaseException, retry_in: float | None, /) -> None: ...
    def resource_abandoned(self, worker: Worker, error: ResourceTimeout, failures: int, /) -> None: ...
    def remove(self, worker: Worker, /) -> None: ...


class _Step(Enum):
    """The user code that a resource task waits for, if it does."""

    OPENING = "opened"
    CHECKING = "checked"
    CLOSING = "closed"


class _Held(NamedTuple):
    """How it went with one resource."""

    was_opened: bool
    lost: BaseException | None = None
    """The failure of the job that ran when the resource died."""
    error: BaseException | None = None
    """What the resource raised, or a `ResourceTimeout`."""
    seconds: float = 0.0
    """How long it was held."""


class ResourceTask:
    """Holds one worker's resource, which is opened and closed in this one task.

    Invariant: the task ends only when the worker retires, or has another task because this one was abandoned; so a
    stray cancellation costs no worker (test_a_stray_cancel_of_whatever_task_costs_no_worker).
    """

    def __init__(
        self,
        worker: Worker,
        host: ResourceHost,
        resource: Resource[Any],
        places: Places,
        reopening: Reopening,
        log: ResourceLog,
        context: Context,
        *,
        must_open: bool = False,
        failures: int = 0,
    ) -> None:
        self._worker = worker
        self._state = worker.pool
        self._host = host
        self._resource = resource
        self._places = places
        self._reopening = reopening
        self._log = log
        self._failures = failures  # since a resource was last closed without one, or held for long
        self._loop = self._state.loop
        self._changed: asyncio.Future[None] | None = None
        # Of the worker that start() waits for: resolved when its resource is open; if that fails, with the error.
        self.opened: asyncio.Future[None] | None = self._loop.create_future() if must_open else None
        self._context = context
        self._bound = Bound(self._loop, context, cancel=self._cancel, ignored=self._abandon)
        self._step: _Step | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_abandoned = False
        self._must_check = False
        self._must_try = False
        self._age_timer: asyncio.TimerHandle | None = None
        self._slow_timer: asyncio.TimerHandle | None = None
        self.is_slow = failures > 0
        """Whether the worker has waited some seconds for a resource that was not refused: nobody knows how long yet."""

    def start(self, tasks: Tasks) -> None:
        """Begin to open the resource."""
        name = f"{self._state.name} worker {self._worker.number} resource"
        self._tasks = tasks
        self._task = tasks.spawn(self._hold, name=name, context=self._context.copy())
        self._task.add_done_callback(self._is_done)

    @property
    def is_opening(self) -> bool:
        """Whether it opens its resource at the moment."""
        return self._step is _Step.OPENING

    @property
    def is_closing(self) -> bool:
        """Whether it closes its resource at the moment."""
        return self._step is _Step.CLOSING

    def notify(self) -> None:
        """Note that the worker's flags, its job, or its place have changed."""
        if self._changed is not None:
            wake(self._changed)

    def check(self) -> None:
        """Ask the user's check whether the resource is still good, and report the answer."""
        self._must_check = True
        self.notify()

    def try_now(self) -> None:
        """Open the resource without waiting for the end of the pause."""
        self._must_try = True
        self.notify()

    def leave(self) -> None:
        """Note that the worker retires: give up what is being opened or checked, and close what is held."""
        if self._step is _Step.OPENING:
            self._bound.cancel_now()
        elif self._step is _Step.CHECKING:
            # Not now: it can be the check that calls us, and if it never suspends again, closing would be cancelled.
            self._loop.call_soon(self._give_up_check, context=self._context.copy())
        self.notify()

    def _give_up_check(self) -> None:
        if self._step is _Step.CHECKING:
            self._bound.cancel_now()

    def _fail_start(self) -> None:
        """Wake whoever waits for the first resource, which will not be opened."""
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(PoolClosed(f"pool {self._state.name!r} was closed while it was starting"))

    def close(self) -> None:
        """Note that the pool is closed: nobody waits for us any more."""
        self._is_abandoned = True
        self._bound.end()
        self._set_waiting(False)
        self._set_age_timer(None)
        self._fail_start()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _abandon(self) -> None:
        """Let the worker go on without us: our resource ignores that we were cancelled."""
        if self._task is None or self._task.done() or self._step is None:
            return  # an interrupt came in the middle of a step
        self._is_abandoned = True
        error = self._timeout()
        self._set_waiting(False)
        self._set_age_timer(None)
        self._places.leave(self)
        self._reopening.leave(self)
        self._tasks.abandon(self._task)
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(error)
            self._worker.retiring = True
        self._host.resource_abandoned(self._worker, error, self._failures + 1)

    def _is_done(self, task: asyncio.Task[None]) -> None:
        """The end, also of a task that was cancelled before its first step."""
        self._bound.end()
        self._set_waiting(False)
        self._set_age_timer(None)
        self._places.leave(self)
        self._reopening.retire(self)
        if self._is_abandoned:
            return
        worker = self._worker
        worker.retiring = True
        self._fail_start()
        if worker.job is None:
            self._host.remove(worker)
        else:
            worker.resource_task = None  # it goes when its job has ended, as a worker without a resource does

    async def _hold(self) -> None:
        if self._task is None:
            await asyncio.sleep(0)  # an eager task factory runs us while the task is made
        worker = self._worker
        pause = backoff(self._failures) if self._failures else 0.0
        while not self._is_over():
            # A job whose resource has died, or was abandoned, may not have ended yet: it holds the worker until then.
            await self._wait_uncancelled(lambda: worker.job is None)
            if pause:
                await self._wait(pause)
            if not self._is_over():
                self._reopening.leave(self)
            self._set_waiting(not worker.retiring)
            self._places.join(self)
            await self._wait_uncancelled(lambda: self in self._places.taken or self._is_over())
            if self._is_over():
                return
            held = await self._open_and_hold()
            self._places.leave(self)
            if self._is_abandoned:
                return
            if held.lost is not None:
                set_cause(held.lost, held.error)
            if is_error(held.error, asyncio.CancelledError) and self._is_ending():
                return  # given up, because of leave() or because somebody cancels every task
            if not held.was_opened and self.opened is not None and not self.opened.done():
                self.opened.set_exception(safe_error(held.error))
                return
            is_clean = held.was_opened and held.lost is None and held.error is None
            if is_clean or held.seconds >= _LONG_LIFE:
                self._failures = 0
            if not is_clean:
                self._failures += 1
            if held.was_opened:
                pause = backoff(self._failures) if self._failures else 0.0
            else:
                pause = self._reopening.refused(self, self._failures)
            if held.error is not None and not is_error(held.error, ResourceTimeout):
                self._set_waiting(False)
            if held.error is not None:
                self._host.resource_failed(worker, held.error, None if worker.retiring else pause)

    async def _open_and_hold(self) -> _Held:
        """Open the resource and hold it until it is to be closed. Raises nothing but KeyboardInterrupt."""
        worker = self._worker
        was_opened = False
        seconds = 0.0
        lost: BaseException | None = None
        error: BaseException | None = None
        late: ResourceTimeout | None = None
        interrupt: KeyboardInterrupt | None = None
        self._begin(_Step.OPENING)
        try:
            manager = self._resource.open()
            if not isinstance(manager, AbstractAsyncContextManager):
                raise TypeError(f"resource must return an async context manager, got {describe(manager)}")
            async with manager as resource:
                late = self._end()
                try:
                    if late is not None:
                        raise late  # it has swallowed that it was cancelled: nobody knows in which state it is
                    was_opened = True
                    self._reopening.opened(self)
                    opened_at = self._state.time()
                    worker.resource = resource
                    worker.needs_recycle = self._must_check = False
                    worker.recycle_reason = "recycle"
                    self._set_waiting(False)
                    self._set_age_timer(self._resource.max_age)
                    if self.opened is not None and not self.opened.done():
                        self.opened.set_result(None)
                    self._host.worker_ready(worker)
                    try:
                        await self._hold_until_left(resource)
                    except BaseException:
                        if self._loop.is_closed():
                            raise  # we are being collected
                        # Not by us: the resource's own scope cancelled us, or somebody cancels every task.
                        lost = self._host.resource_lost(worker)
                        raise
                    finally:
                        self._set_age_timer(None)
                        self._reopening.leave(self)
                        seconds = self._state.time() - opened_at
                except KeyboardInterrupt as raised:
                    interrupt = raised
                    raise
                finally:
                    self._begin(_Step.CLOSING)
        except BaseException as raised:
            if is_error(raised, KeyboardInterrupt) or self._loop.is_closed():
                raise
            error = raised
        finally:
            late = self._end() or late
            if not self._is_abandoned:
                worker.resource = None
        if interrupt is not None:  # leaving the resource has replaced it, by the error of its own or of its timeout
            try:
                raise interrupt
            finally:
                del interrupt, error, late  # their tracebacks refer to this frame
        if late is not None and late is not error:
            set_cause(late, None if is_error(error, asyncio.CancelledError) else error)
            error = late
        if error is not None:
            self._forget_cancellation()
        try:
            return _Held(was_opened, lost, error, seconds)
        finally:
            del error, late  # their tracebacks refer to this frame

    async def _hold_until_left(self, resource: Any) -> None:
        """Wait until the open resource is to be closed, and check it when that is asked for."""
        worker = self._worker
        while True:
            await self._until(lambda: self._must_check or self._is_to_be_left())
            if self._is_to_be_left():
                break
            self._must_check = False
            await self._check(resource)
            if self._is_abandoned:
                return
        if not worker.retiring:
            self._log.replaced(worker.number, worker.recycle_reason)

    async def _check(self, resource: Any) -> None:
        """Ask the user's check about the resource, within its bound, and report the answer.

        Raises:
            CancelledError: Somebody else has cancelled us: the resource's own scope, or whoever cancels every task.
        """
        task, check, worker = self._task, self._resource.check, self._worker
        assert task is not None
        assert check is not None
        answer: Any = False
        error: BaseException | None = None
        self._begin(_Step.CHECKING)
        try:
            answer = check(resource)
            while inspect.isawaitable(answer):
                answer = await answer
        except BaseException as raised:
            if self._loop.is_closed() or is_error(raised, GeneratorExit):
                raise  # we are being collected
            error = raised
        is_cancelled = self._bound.is_cancelled
        error = self._end() or error
        try:
            if is_cancelled:
                task.uncancel()  # only ours: there can be others, of the scopes of the resource
            elif error is not None and is_error(error, asyncio.CancelledError):
                raise error
            if error is not None and is_error(error, KeyboardInterrupt):
                self._state.raise_later(error)
            if self._is_abandoned or worker.retiring:
                return
            if error is None and answer is not False:
                self._set_waiting(False)
                self._host.resource_passed_check(worker)
            else:
                self._host.resource_failed_check(worker, error)
        finally:
            del error, answer  # its traceback refers to this frame

    # -- The bounds --------------------------------------------------------------------------------------------------

    def _begin(self, step: _Step) -> None:
        """Bound the step that begins now."""
        if self._is_abandoned or self._loop.is_closed():
            return
        self._step = step
        self._set_waiting(not self._worker.retiring)
        self._bound.begin(self._seconds(step))

    def _end(self) -> ResourceTimeout | None:
        """End the step; return the error if it has taken too long, whatever the resource has made of that."""
        self._bound.end()
        late = self._timeout() if self._step is not None and (self._bound.is_over or self._is_abandoned) else None
        self._step = None
        return late

    def _seconds(self, step: _Step) -> float:
        match step:
            case _Step.OPENING:
                return self._resource.open_timeout
            case _Step.CHECKING:
                return self._resource.check_timeout
            case _Step.CLOSING:
                return self._resource.close_timeout

    def _timeout(self) -> ResourceTimeout:
        assert self._step is not None
        return ResourceTimeout(self._step.value, self._seconds(self._step), self._is_abandoned)

    def _set_age_timer(self, max_age: float | None) -> None:
        """Have the resource that was just opened replaced when it is too old; None: do not, any more."""
        if self._age_timer is not None:
            self._age_timer.cancel()
            self._age_timer = None
        if max_age is not None:
            seconds = max_age * chance.uniform(*SPREAD)
            self._age_timer = self._loop.call_later(seconds, self._becomes_old, context=self._context.copy())

    def _becomes_old(self) -> None:
        self._age_timer = None
        self._host.resource_too_old(self._worker)

    def _set_waiting(self, is_waiting: bool) -> None:
        """Note whether the worker waits for its resource, and has not just been refused one."""
        if is_waiting == (self._slow_timer is not None):
            return
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
            self.is_slow = False
        else:
            self._slow_timer = self._loop.call_later(_SLOW_AFTER, self._becomes_slow, context=self._context.copy())

    def _becomes_slow(self) -> None:
        self.is_slow = True
        self._host.worker_slow(self._worker)

    # -- Waiting -----------------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        return self._worker.retiring or self._is_abandoned

    def _is_ending(self) -> bool:
        if self._state.is_loop_shutting_down():
            self._worker.retiring = True
        return self._worker.retiring

    def _is_to_be_left(self) -> bool:
        return self._worker.job is None and (self._worker.retiring or self._worker.needs_recycle)

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until `try_now()`, or until the worker retires."""
        is_over = False

        def end() -> None:  # a flag and not the clock: on some loops a timer fires a little early
            nonlocal is_over
            is_over = True
            self.notify()

        timer = self._loop.call_later(seconds, end)
        try:
            await self._wait_uncancelled(lambda: is_over or self._must_try or self._worker.retiring)
        finally:
            timer.cancel()
            self._must_try = False

    async def _wait_uncancelled(self, holds: Callable[[], bool]) -> None:
        """Wait until a condition holds, whoever cancels us meanwhile."""
        while not holds():
            try:
                await self._until(holds)
            except asyncio.CancelledError:
                self._forget_cancellation()
                if self._is_ending():
                    return

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed = self._loop.create_future()
            try:
                await self._changed
            finally:
                self._changed = None

    def _forget_cancellation(self) -> None:
        # Taken back, because the timeouts of the next resource to open would take it for theirs.
        task = self._task
        while task is not None and task.cancelling():
            task.uncancel()
