"""An event loop on virtual time: no waiting, deadlocks reported, schedules fuzzed by seed.

Detecting leaks is left to `runner.py`, fuzzing the schedule on other loops to `fuzzing.py`.
"""

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
    """Nothing is ready to run, no timer is set, and tasks still wait: the message names each one and where it waits."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock starts at 0.0 and jumps to the next timer as soon as nothing else is ready.

    The clock stops while any task has something to do, so a task that yields indefinitely (`while True: await
    sleep(0)`) stops it permanently. I/O within the process (loopback TCP, pipes) works. While a timer is set,
    the loop does not wait for peers outside the process.

    **Threads.** The clock also stops while a call of `run_in_executor` (`asyncio.to_thread`) or of
    `anyio.to_thread.run_sync` is in progress, even if the call was cancelled or abandoned, so a timeout around
    it does not fire. The clock advances while all such threads wait for this loop, in `anyio.from_thread.run` or
    in `run_coroutine_threadsafe(...).result()`. The loop does not detect threads started in other ways, calls
    that a program submits to an executor itself, or child processes: the clock jumps past their work. A thread
    that waits for the loop in another way (a `threading.Event`) counts as working until `patience` is over.

    **Deadlock.** If nothing is ready and no timer is set, the running loop raises `DeadlockError`: at once if
    nothing could wake it, or after `patience` if I/O or a signal handler is registered or another thread is
    alive. Idle workers of executors and of anyio do not count.

    The class is its own loop factory: pass it to `asyncio.Runner(loop_factory=...)`, return it from
    `pytest_asyncio_loop_factories` (pytest-asyncio), or give it to anyio's pytest plugin:
    `anyio_backend = "asyncio", {"loop_factory": VirtualTimeLoop}`.

    Args:
        seed: Fuzz the schedule: at random, steps of tasks lose their turn for one to three loop iterations. A
            step is the start of a task or a wake-up; of an eager task, which starts at once, only a wake-up. The
            same seed gives the same schedule, unless threads or I/O take part. Other callbacks keep their order.
            None: the plain order of asyncio.
        lose_turn: The probability that a step loses its turn, 0 <= lose_turn < 1.
        patience: How many seconds of real time threads and I/O can be silent. Then the next timer fires or, if
            there is none, the loop raises `DeadlockError`.

    Raises:
        ValueError: `lose_turn` or `patience` is out of range.
    """

    # The destructor reads this, also if `__init__` raised before there was anything to close
    # (test_patience_is_not_negative).
    _closed = True

    # Attributes and methods of asyncio's loops that its stubs do not declare.
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
        """How many tasks are in `settle`."""
        self._calls: dict[Future[Any], list[int]] = {}
        """Calls on executors, each with the thread that runs it, if known. A call is removed once its thread is done
        and the loop has seen the result (test_calls_on_executors_are_forgotten_when_they_end)."""
        self._joining_threads = False
        """Whether the loop waits for the threads of its default executor to end. They count as working
        (test_shutting_down_the_default_executor_does_not_jump_to_its_timeout)."""
        super().__init__(_Poller(self._wait))
        # asyncio fires the timers with `when < time() + resolution`. With a resolution of one unit in the last place,
        # these are exactly those with `when <= time()` (test_a_timer_fires_exactly_on_time_however_late_it_is).
        self._clock_resolution = math.ulp(self._now)

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was created."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As in asyncio. With a seed, the steps of tasks, which are scheduled through here, can lose their turn."""
        if self._random is not None and _is_task_step(callback) and self._random.random() < self._lose_turn:
            turns = 1 + int(self._random.random() * 3)
            return super().call_soon(self._run_later, turns, callback, args, context, context=context)
        return super().call_soon(callback, *args, context=context)

    def _run_later(
        self, turns: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        """Call back after `turns` more loop iterations, not through `call_soon`: a step loses its turn only once."""
        if turns > 1:
            super().call_soon(self._run_later, turns - 1, callback, args, context, context=context)
        else:
            super().call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """As in asyncio. The clock stops until the call has finished, unless its thread waits for this loop."""
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

        # Not wrapped for other executors: they might have to pickle it (test_other_executors_can_pickle_their_calls).
        source = executor.submit(call if type(executor) is ThreadPoolExecutor else func, *args)
        result = asyncio.wrap_future(source, loop=self)
        self._calls[source] = thread
        # The call is over when both futures are done. If only `source` is, the loop does not know it yet. If only
        # `result` is, the call was cancelled and its thread still works
        # (test_the_clock_stands_still_for_a_cancelled_call_while_its_thread_works_on).
        result.add_done_callback(lambda _: source.add_done_callback(lambda _: self._calls.pop(source, None)))
        return result

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """As in asyncio: wait until the threads of the default executor have ended.

        asyncio can set a timer of 300 s here. It does not fire while the threads end.
        """
        self._joining_threads = True
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._joining_threads = False

    def _wait(self) -> list[tuple[SelectorKey, int]]:
        """Wait in real time, jump to the next timer, or raise `DeadlockError`: nothing is ready, and I/O is silent."""
        give_up = time.monotonic() + self._patience  # noqa: TID251 (threads and I/O live in real time)
        while True:
            when = self._scheduled[0].when() if self._scheduled else math.inf
            work = self._threads_work()
            hope = work or when < math.inf or self._may_be_woken()
            # Checked after the threads: a thread that has posted a callback and then waits for it, or ends, does not
            # count as working any more (test_what_a_thread_posts_just_before_it_seems_idle_comes_before_the_jump).
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
                raise DeadlockError(
                    f"deadlock: nothing is ready to run and no timer is set{silent}. Waiting tasks:\n{report}"
                )
            if events := self._selector.poll(0.001):
                return events

    def _threads_work(self) -> bool:
        """Whether a thread works for a task of this loop. A thread that itself waits for this loop does not."""
        if self._joining_threads:
            return True
        if not self._calls and threading.active_count() == 1:  # a cheap check, nearly always true
            return False
        threads = [thread[0] if thread else None for thread in list(self._calls.values())]
        threads += [thread.ident for thread in threading.enumerate() if self._is_anyio_worker(thread, idle=False)]
        frames = _current_frames() if threads else {}
        # A call whose thread is not known counts as working: it has not started, or the executor is of another kind.
        return not all(_waits_for_loop(frames.get(thread or 0)) for thread in threads)

    def _may_be_woken(self) -> bool:
        """Whether I/O, a signal or a thread could wake the loop. Idle workers of anyio and of executors could not."""
        if len(self._selector.get_map()) > self._internal_fds or getattr(self, "_signal_handlers", None):
            return True
        frames = _current_frames()
        others = {thread for thread in threading.enumerate() if thread is not threading.current_thread()}
        return any(
            not self._is_anyio_worker(thread, idle=True) and not _is_idle(frames.get(thread.ident or 0))
            for thread in others
        )

    def _is_anyio_worker(self, thread: threading.Thread, *, idle: bool) -> bool:
        # anyio moves a worker into and out of `idle_workers` on this loop, so never while this method runs.
        workers = getattr(thread, "idle_workers", None)
        return workers is not None and getattr(thread, "loop", None) is self and (thread in workers) is idle

    async def settle(self, turns: int = 10_000) -> None:
        """Wait until every other task waits: what the function `settle` does on this loop. Cancel-safe."""
        self._settling += 1
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
                if self._is_quiet():
                    return
        finally:
            self._settling -= 1
        report = task_report(asyncio.all_tasks(self))
        raise RuntimeError(
            f"not settled after {turns} loop iterations; at least one of these tasks is always busy:\n{report}"
        )

    def _is_quiet(self) -> bool:
        """Whether only the settling tasks have anything to do: one is running, the others are ready.

        Timers and I/O that became due in this very iteration are not in `_ready` yet
        (test_settle_waits_for_timers_that_become_due, test_settle_waits_for_what_sockets_have_to_say).
        """
        if len(self._ready) >= self._settling:
            return False
        due = bool(self._scheduled) and self._scheduled[0].when() <= self._now
        return not due and not self._selector.poll(0)


class _Poller(DefaultSelector):
    """The selector of `VirtualTimeLoop`: it never blocks by itself, but lets the loop decide how to wait."""

    def __init__(self, wait: Callable[[], list[tuple[SelectorKey, int]]]) -> None:
        super().__init__()
        self._wait = wait

    def poll(self, timeout: float) -> list[tuple[SelectorKey, int]]:
        return super().select(timeout)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        events = self.poll(0)
        # asyncio passes 0 if a callback is ready, if a timer is due, or if the loop is stopping.
        return events if events or timeout == 0 else self._wait()


def _is_task_step(callback: Callable[..., object]) -> bool:
    """Whether a callback starts a task or wakes one up.

    Other callbacks keep their order (test_callbacks_that_are_no_task_steps_keep_their_order), also other methods of a
    task (test_a_cancel_by_callback_keeps_its_turn).
    """
    # The wrapper around the step of a C task has no name. The other names are those of methods, of C and Python tasks.
    name = getattr(callback, "__name__", None)
    if name not in (None, "task_wakeup", "__step", "__wakeup"):
        return False
    return asyncio.isfuture(getattr(callback, "__self__", None))


def _waits_for_loop(frame: FrameType | None) -> bool:
    """Whether a thread waits for a future that an event loop resolves.

    A future that another thread computes would be running
    (test_the_clock_stands_still_while_a_thread_waits_for_another_thread). If the future is done, the thread is about to
    continue (test_a_thread_that_calls_the_loop_again_and_again_never_looks_idle).
    """
    while frame is not None:
        if frame.f_code is _FUTURE_RESULT:
            future = frame.f_locals.get("self")
            return isinstance(future, Future) and not future.running() and not future.done()
        frame = frame.f_back
    return False


def _is_idle(frame: FrameType | None) -> bool:
    """Whether a thread belongs to an executor and waits for its next call."""
    if frame is None:
        return False
    return (frame.f_code.co_filename, frame.f_code.co_name) == (concurrent.futures.thread.__file__, "_worker")
