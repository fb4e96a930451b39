"""The task that opens, holds and closes one worker's resource; and the log of those that fail.

What becomes of the worker meanwhile is `workers.py`; the bounds for opening and closing are those of `bounds.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from enum import Enum
from typing import Any, NamedTuple, Protocol

from asyncpool._chance import chance
from asyncpool._core.bounds import Bound, Places
from asyncpool._core.job import Worker
from asyncpool._core.state import State
from asyncpool._core.tasks import Tasks
from asyncpool._core.wakeups import wake
from asyncpool._guard import describe, is_error, set_cause
from asyncpool._logs import is_logged, log
from asyncpool.errors import PoolClosed, ResourceDied, ResourceTimeout, is_safe_to_raise
from asyncpool.events import Observers, ResourceFailed
from asyncpool.resources import Resource

__all__ = ["Outage", "ResourceHost", "ResourceTask", "safe_error"]

# The pause before a resource that could not be opened is tried again: doubled each time, with half of it random, so
# that the workers of a pool do not all connect to a database in the moment in which it is back.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
# A resource that was held this long was a good one, so that the next begins with the first pause, in seconds.
_LONG_LIFE = 30.0
# A worker that has waited this long for a resource is no longer one that is about to start, in seconds.
_SLOW_AFTER = 5.0
# After this many seconds without a failure, the next one begins another outage, whose first failure is logged.
_QUIET = 60.0


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
    def resource_lost(self, worker: Worker, /) -> BaseException | None: ...
    def resource_failed(self, worker: Worker, error: BaseException, retry_in: float | None, /) -> None: ...
    def resource_abandoned(self, worker: Worker, error: ResourceTimeout, failures: int, /) -> None: ...
    def remove(self, worker: Worker, /) -> None: ...


class _Step(Enum):
    """The user code that a resource task waits for, if it does."""

    OPENING = 1
    CLOSING = 2


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
        *,
        must_open: bool = False,
        failures: int = 0,
    ) -> None:
        self._worker = worker
        self._state = worker.pool
        self._host = host
        self._resource = resource
        self._places = places
        self._failures = failures  # since a resource was last closed without one, or held for long
        self._loop = self._state.loop
        self._changed: asyncio.Future[None] | None = None
        # Of the worker that start() waits for: resolved when its resource is open; if that fails, with the error.
        self.opened: asyncio.Future[None] | None = self._loop.create_future() if must_open else None
        self._step: _Step | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_abandoned = False
        self._slow_timer: asyncio.TimerHandle | None = None
        self.is_slow = failures > 0
        """Whether the worker has waited some seconds for a resource that was not refused: nobody knows how long yet."""

    def start(self, tasks: Tasks, context: Context) -> None:
        """Begin to open the resource."""
        name = f"{self._state.name} worker {self._worker.number} resource"
        self._tasks = tasks
        self._context = context
        self._bound = Bound(self._loop, context, cancel=self._cancel, ignored=self._abandon)
        self._task = tasks.spawn(self._hold, name=name, context=context)
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

    def leave(self) -> None:
        """Note that the worker retires: give up what is still being opened, and close what is held."""
        if self._step is _Step.OPENING:
            self._bound.cancel_now()
        self.notify()

    def _fail_start(self) -> None:
        """Wake whoever waits for the first resource, which will not be opened."""
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(PoolClosed(f"pool {self._state.name!r} was closed while it was starting"))

    def close(self) -> None:
        """Note that the pool is closed: nobody waits for us any more."""
        self._is_abandoned = True
        self._bound.end()
        self._set_waiting(False)
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
        self._places.leave(self)
        self._tasks.abandon(self._task)
        if self.opened is not None and not self.opened.done():
            self.opened.set_exception(error)
            self._worker.retiring = True
        self._host.resource_abandoned(self._worker, error, self._failures + 1)

    def _is_done(self, task: asyncio.Task[None]) -> None:
        """The end, also of a task that was cancelled before its first step."""
        self._bound.end()
        self._set_waiting(False)
        self._places.leave(self)
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
        pause = self._pause() if self._failures else 0.0
        while not self._is_over():
            # A job whose resource has died, or was abandoned, may not have ended yet: it holds the worker until then.
            await self._wait_uncancelled(lambda: worker.job is None)
            if pause:
                await self._wait(pause)
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
            pause = self._pause() if self._failures else 0.0
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
                    opened_at = self._state.time()
                    worker.resource = resource
                    worker.needs_recycle = False
                    self._set_waiting(False)
                    if self.opened is not None and not self.opened.done():
                        self.opened.set_result(None)
                    self._host.worker_ready(worker)
                    try:
                        await self._until(self._is_to_be_left)
                    except BaseException:
                        if self._loop.is_closed():
                            raise  # we are being collected
                        # Not by us: the resource's own scope cancelled us, or somebody cancels every task.
                        lost = self._host.resource_lost(worker)
                        raise
                    finally:
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

    # -- The bounds --------------------------------------------------------------------------------------------------

    def _begin(self, step: _Step) -> None:
        """Bound the step that begins now."""
        if self._is_abandoned or self._loop.is_closed():
            return
        self._step = step
        self._set_waiting(not self._worker.retiring)
        is_opening = step is _Step.OPENING
        self._bound.begin(self._resource.open_timeout if is_opening else self._resource.close_timeout)

    def _end(self) -> ResourceTimeout | None:
        """End the step; return the error if it has taken too long, whatever the resource has made of that."""
        self._bound.end()
        late = self._timeout() if self._step is not None and (self._bound.is_over or self._is_abandoned) else None
        self._step = None
        return late

    def _timeout(self) -> ResourceTimeout:
        is_opening = self._step is _Step.OPENING
        seconds = self._resource.open_timeout if is_opening else self._resource.close_timeout
        return ResourceTimeout("opened" if is_opening else "closed", seconds, self._is_abandoned)

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

    def _pause(self) -> float:
        exponent = min(self._failures - 1, 10)
        return min(_FIRST_PAUSE * 2.0**exponent, _LONGEST_PAUSE) * chance.uniform(0.5, 1.0)

    async def _wait(self, seconds: float) -> None:
        """Wait for some seconds, or until the worker retires."""
        is_over = False

        def end() -> None:  # a flag and not the clock: on some loops a timer fires a little early
            nonlocal is_over
            is_over = True
            self.notify()

        timer = self._loop.call_later(seconds, end)
        try:
            await self._wait_uncancelled(lambda: is_over or self._worker.retiring)
        finally:
            timer.cancel()

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


class Outage:
    """Counts the failures of all workers together: when a backend is down, they all fail, again and again.

    The 1st, 2nd, 4th, 8th ... failure is logged, and the recovery if a failure was logged before it. So a resource that
    fails as soon as it is open does not fill the log either (test_a_backend_that_flaps_does_not_fill_the_log).

    The workers of a pool with an engine are in its processes, which report their failures to the one `Outage` of the
    program (test_an_outage_that_all_processes_see_is_logged_sparsely).
    """

    __slots__ = ("_began_at", "_count", "_failed_at", "_failing", "_is_recovery_logged", "_observers", "_state", "last")

    def __init__(self, state: State, observers: Observers) -> None:
        self._state = state
        self._observers = observers
        self._failing: dict[str | None, set[int]] = {}  # by process, the numbers of workers that try again
        self._count = 0
        self._began_at = 0.0
        self._failed_at = 0.0
        self._is_recovery_logged = False
        self.last: str | None = None
        """The last failure: a text, because the error would keep frames alive."""

    def failed(self, worker: int, error: BaseException, retry_in: float | None, process: str | None = None) -> None:
        """Count a failure; None: the worker retires."""
        now = self._state.time()
        if not self._count or now - self._failed_at >= _QUIET:
            self._count = 0
            self._began_at = now
        self._count += 1
        self.last = describe(error)
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
