"""An event loop on virtual time: no waiting, deadlocks reported, schedules fuzzed by seed."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context
from random import Random
from selectors import DefaultSelector, SelectorKey
from types import CodeType, FrameType
from typing import Any, TypeVar, TypeVarTuple, cast

from asyncpool.testing._task_report import task_report
from asyncpool.testing.fuzzing import check_lose_turn

__all__ = ["DeadlockError", "VirtualTimeLoop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_current_frames = sys._current_frames  # pyright: ignore[reportPrivateUsage] (it is documented)
_FUTURE_RESULT: CodeType = vars(Future)["result"].__code__


class DeadlockError(AssertionError):
    """Nothing can happen any more, and tasks still wait: the message says each one's name and where."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at 0.0 and jumps to the next timer as soon as nothing else is ready.

    The clock stands still while a task has something to do, so one that yields for ever (`while True: await
    sleep(0)`) stops it. I/O within the process (loopback TCP, pipes) works, but while a timer is armed, peers
    outside are not waited for.

    **Threads.** The clock also stands still while a call of `run_in_executor` (`asyncio.to_thread`) or of
    `anyio.to_thread.run_sync` is under way, also a cancelled or abandoned one: a timeout around it does not
    fire. It goes on while all such threads wait for this loop, in `anyio.from_thread.run` or in
    `run_coroutine_threadsafe(...).result()`. Not detected, so that the clock jumps past their work: threads
    started in other ways, calls that a program makes on an executor itself, child processes. A thread that
    waits for the loop by other means (a `threading.Event`) seems at work until `patience` is over.

    **Deadlock.** With nothing ready and no timer armed, the running loop raises `DeadlockError`: at once if
    nobody could wake it; after `patience` if I/O or a signal handler is registered or another thread lives.

    It is its own loop factory: for `asyncio.Runner(loop_factory=...)`, for `pytest_asyncio_loop_factories` of
    pytest-asyncio, for anyio's pytest plugin: `anyio_backend = "asyncio", {"loop_factory": VirtualTimeLoop}`.

    Args:
        seed: fuzz the schedule: steps of tasks (the first, and each wake-up, of eager tasks too) lose their
            turn at random, for one to three turns of the loop. The same seed gives the same schedule, unless
            threads or I/O take part. Other callbacks keep their order. None: the plain order of asyncio.
        lose_turn: how likely a step is to lose its turn, 0 <= lose_turn < 1.
        patience: for how many seconds of real time threads or I/O may be silent. Then the next timer fires,
            or, if there is none, `DeadlockError` is raised.

    Raises:
        ValueError: `lose_turn` or `patience` is out of range.
    """

    _closed = True  # until there is something to close: `__init__` may raise before that

    # Parts of asyncio's own loop that it does not declare.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _clock_resolution: float
    _internal_fds: int
    _selector: _Poller
    _default_executor: ThreadPoolExecutor | None
    _check_callback: Callable[[object, str], None]
    _check_closed: Callable[[], None]
    _check_default_executor: Callable[[], None]

    def __init__(self, *, seed: int | None = None, lose_turn: float = 0.25, patience: float = 10.0) -> None:
        check_lose_turn(lose_turn)
        if not patience >= 0:
            raise ValueError(f"patience must be >= 0, got {patience}")
        self._now = 0.0
        self._random = None if seed is None else Random(seed)
        self._lose_turn = lose_turn
        self._patience = patience
        self._settling = 0
        # Calls on executors, until the loop has seen the result; each with the thread it runs on, if known.
        self._calls: dict[Future[Any], list[int]] = {}
        self._joining_threads = False
        super().__init__(_Poller(self._wait))
        # asyncio fires timers with `when < time() + resolution`: with one unit in the last place this is
        # exactly `when <= time()`, at any time (test_a_timer_fires_exactly_on_time_however_late_it_is).
        self._clock_resolution = math.ulp(self._now)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As in asyncio. With a seed, the steps of tasks, which come along here, may lose their turn."""
        if self._random is not None and _is_task_step(callback) and self._random.random() < self._lose_turn:
            turns = 1 + int(self._random.random() * 3)
            return super().call_soon(self._run_later, turns, callback, args, context, context=context)
        return super().call_soon(callback, *args, context=context)

    def _run_later(
        self, turns: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        if turns > 1:
            super().call_soon(self._run_later, turns - 1, callback, args, context, context=context)
        else:
            super().call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As in asyncio. The clock stands still until the call has ended."""
        self._check_closed()
        if self.get_debug():
            self._check_callback(func, "run_in_executor")
        if executor is None:
            self._check_default_executor()
            if self._default_executor is None:
                self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
            executor = cast(ThreadPoolExecutor, self._default_executor)
        thread: list[int] = []

        def call(*args: *Ts) -> T:
            thread.append(threading.get_ident())
            return func(*args)

        # Other executors may have to pickle what they call.
        source = executor.submit(call if type(executor) is ThreadPoolExecutor else func, *args)
        result = asyncio.wrap_future(source, loop=self)
        self._calls[source] = thread
        # Over when both are done: with the source alone, the loop does not know yet; with the result alone,
        # the thread of a cancelled call still works.
        result.add_done_callback(lambda _: source.add_done_callback(lambda _: self._calls.pop(source, None)))
        return result

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As in asyncio, which may arm a timer of 300 s here: it does not fire while the threads end."""
        self._joining_threads = True
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._joining_threads = False

    def _wait(self) -> list[tuple[SelectorKey, int]]:
        """Nothing is ready and I/O is silent: wait in real time, jump to the next timer, or give up."""
        give_up = time.monotonic() + self._patience  # noqa: TID251 (threads and I/O live in real time)
        while True:
            when = self._scheduled[0].when() if self._scheduled else math.inf
            work = self._threads_work()
            hope = work or when < math.inf or self._may_be_woken()
            # Read after the threads: one that posts a callback, then waits for it or ends, is not at work.
            if self._ready:
                return []
            over = time.monotonic() >= give_up  # noqa: TID251 (as above)
            if when < math.inf and (over or not work):
                self._now = when
                self._clock_resolution = math.ulp(when)
                return []
            if over or not hope:
                silent = f" (I/O and threads were silent for {self._patience} s)" if hope else ""
                report = task_report(asyncio.all_tasks(self))
                raise DeadlockError(f"nothing can happen any more{silent}, and these tasks wait:\n{report}")
            if events := self._selector.poll(0.001):
                return events

    def _threads_work(self) -> bool:
        """Whether a thread works for a task of ours, rather than waiting for this loop itself."""
        if self._joining_threads:
            return True
        if not self._calls and threading.active_count() == 1:  # cheap, and so it nearly always is
            return False
        threads = [thread[0] if thread else None for thread in list(self._calls.values())]
        threads += [thread.ident for thread in threading.enumerate() if self._is_anyio_worker(thread, idle=False)]
        frames = _current_frames() if threads else {}
        return not all(_waits_for_loop(frames.get(thread or 0)) for thread in threads)

    def _may_be_woken(self) -> bool:
        """Whether I/O, a signal or a thread could call back. Idle workers of anyio and executors do not."""
        if len(self._selector.get_map()) > self._internal_fds or getattr(self, "_signal_handlers", None):
            return True
        frames = _current_frames()
        others = {thread for thread in threading.enumerate() if thread is not threading.current_thread()}
        return any(
            not self._is_anyio_worker(thread, idle=True) and not _is_idle(frames.get(thread.ident or 0))
            for thread in others
        )

    def _is_anyio_worker(self, thread: threading.Thread, *, idle: bool) -> bool:
        # anyio moves its threads to and from `idle_workers` on the loop, so there is no moment in between.
        workers = getattr(thread, "idle_workers", None)
        return workers is not None and getattr(thread, "loop", None) is self and (thread in workers) is idle

    async def settle(self, turns: int = 10_000) -> None:
        """See the function of this name."""
        self._settling += 1
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
                if self._is_quiet():
                    return
        finally:
            self._settling -= 1
        report = task_report(asyncio.all_tasks(self))
        raise RuntimeError(f"not settled after {turns} turns of the loop; always busy is one of:\n{report}")

    def _is_quiet(self) -> bool:
        """Whether nobody has anything to do but the tasks that settle: one runs, the others are all ready."""
        if len(self._ready) >= self._settling:
            return False
        due = bool(self._scheduled) and self._scheduled[0].when() <= self._now
        return not due and not self._selector.poll(0)


class _Poller(DefaultSelector):
    """The selector of `VirtualTimeLoop`: never blocks, but asks the loop how to wait."""

    def __init__(self, wait: Callable[[], list[tuple[SelectorKey, int]]]) -> None:
        super().__init__()
        self._wait = wait

    def poll(self, timeout: float) -> list[tuple[SelectorKey, int]]:
        return super().select(timeout)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        events = self.poll(0)
        # The loop says 0 if something is ready or due, or if it stops.
        return events if events or timeout == 0 else self._wait()


def _is_task_step(callback: Callable[..., object]) -> bool:
    # The wrapper of a C task's step has no name; the others are methods, of C and of Python tasks.
    name = getattr(callback, "__name__", None)
    if name not in (None, "task_wakeup", "__step", "__wakeup"):
        return False
    return asyncio.isfuture(getattr(callback, "__self__", None))


def _waits_for_loop(frame: FrameType | None) -> bool:
    """Whether a thread waits for a future that no thread computes (then it would be running), but a loop."""
    while frame is not None:
        if frame.f_code is _FUTURE_RESULT:
            future = frame.f_locals.get("self")
            return isinstance(future, Future) and not future.running() and not future.done()
        frame = frame.f_back
    return False


def _is_idle(frame: FrameType | None) -> bool:
    """Whether a thread of an executor waits for its next call."""
    if frame is None:
        return False
    return (frame.f_code.co_filename, frame.f_code.co_name) == (concurrent.futures.thread.__file__, "_worker")
