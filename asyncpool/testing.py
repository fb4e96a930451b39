"""Tests on virtual time: no waiting, deadlocks reported, schedules fuzzed by seed, and leaks fail the test.

It knows nothing of pools, and leaves to others: collecting tests (pytest), inventing inputs (Hypothesis),
blocking calls (blockbuster), and tasks that are busy for ever (pytest-timeout).
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import gc
import inspect
import linecache
import math
import re
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from random import Random
from selectors import DefaultSelector, SelectorKey
from types import CodeType, FrameType
from typing import Any, Generic, TypeVar, TypeVarTuple, cast

__all__ = [
    "CancelSweepResult",
    "DeadlockError",
    "LeakError",
    "ManualHandler",
    "VirtualTimeLoop",
    "cancel_at",
    "fuzzing_task_factory",
    "run",
    "settle",
]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")

_current_frames = sys._current_frames  # pyright: ignore[reportPrivateUsage] (it is documented)
_FUTURE_RESULT: CodeType = vars(Future)["result"].__code__


class DeadlockError(AssertionError):
    """Nothing can happen any more, and tasks still wait: the message says each one's name and where."""


class LeakError(AssertionError):
    """`main` returned, but left something behind: a task, an unseen error, a coroutine never awaited."""


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
        _check_lose_turn(lose_turn)
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
                report = _report(asyncio.all_tasks(self))
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
        report = _report(asyncio.all_tasks(self))
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


def _report(tasks: set[asyncio.Task[Any]]) -> str:
    """One paragraph per task: its name, and the lines it waits at, outermost first."""
    lines: list[str] = []
    for task in sorted(tasks, key=lambda task: task.get_name()):
        lines.append(f"  task {task.get_name()!r} waits at")
        awaited: Any = task.get_coro()
        while awaited is not None:
            kind = next((kind for kind in ("cr", "gi", "ag") if hasattr(awaited, f"{kind}_frame")), "")
            if frame := cast("FrameType | None", getattr(awaited, f"{kind}_frame", None)):
                file, line = frame.f_code.co_filename, frame.f_lineno
                source = linecache.getline(file, line).strip()
                lines.append(f"    {file}:{line} in {frame.f_code.co_name}: {source}")
            awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
    return "\n".join(lines) or "  (none)"


def run(
    main: Callable[[], Awaitable[T]] | Coroutine[Any, Any, T],
    *,
    seed: int | None = None,
    lose_turn: float = 0.25,
    patience: float = 10.0,
    debug: bool | None = None,
    collect: bool = False,
) -> T:
    """Run `main` on a fresh `VirtualTimeLoop` and return its value; fail if it leaves anything behind.

    Left behind is: a task that is not done when `main` ends (it is cancelled then); what the loop's exception
    handler was called for, as for an exception nobody retrieved; a coroutine that was never awaited.

    Args:
        main: a zero-argument async callable, or a coroutine.
        seed: as of `VirtualTimeLoop`.
        lose_turn: as of `VirtualTimeLoop`.
        patience: seconds of real time, as of `VirtualTimeLoop`.
        debug: asyncio's debug mode; None leaves it as it is.
        collect: run the garbage collector at the end, to find what only a reference cycle keeps alive, too.
            It costs milliseconds, many times as much as all the rest.

    Raises:
        LeakError: something was left behind. If `main` raised, its error is raised, with that as a note.
        DeadlockError: `main` cannot end.
        RuntimeError: called where a loop is running.
    """
    if asyncio._get_running_loop() is not None:
        if inspect.iscoroutine(main):
            main.close()
        raise RuntimeError("run() makes a loop of its own, and one runs here: let this test run on VirtualTimeLoop")

    async def body(problems: _Problems) -> T:
        asyncio.get_running_loop().set_exception_handler(problems.handle)
        try:
            return await (main() if callable(main) else main)
        finally:
            left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            if left and not problems.closing:
                problems.texts.append(f"tasks left behind:\n{_report(left)}")

    factory = partial(VirtualTimeLoop, seed=seed, lose_turn=lose_turn, patience=patience)
    with _no_problems(collect) as problems:
        runner = asyncio.Runner(debug=debug, loop_factory=factory)
        try:
            return runner.run(body(problems))
        finally:
            # Closing cancels the tasks left; the error of `main` is worth more than one of closing.
            problems.closing = True
            try:
                runner.close()
            except DeadlockError as error:
                problems.texts.append(f"tasks left behind could not be cancelled: {error}")


class _Problems:
    """What went wrong besides `main`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.cause: BaseException | None = None
        self.closing = False

    def handle(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.cause = self.cause or context.get("exception")
        details = ", ".join(f"{key}={value!r}" for key, value in context.items() if key != "message")
        self.texts.append(f"{context['message']}: {details}")


@contextmanager
def _no_problems(collect: bool) -> Generator[_Problems]:
    """Raise what is in the yielded `_Problems` at the end, or note it on the error on its way."""
    problems = _Problems()
    never_awaited = r"coroutine .* was never awaited"
    with warnings.catch_warnings():
        # A hook, because under "error" such a warning could only be printed; all others go their usual way.
        warnings.filterwarnings("always", never_awaited, RuntimeWarning)
        show = warnings.showwarning

        def catch(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RuntimeWarning) and re.match(never_awaited, str(message)):
                problems.texts.append(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = catch
        try:
            yield problems
        except BaseException as error:
            for text in problems.texts:
                error.add_note(text)
            raise
        if collect:
            gc.collect()
    if problems.texts:
        raise LeakError("\n".join(problems.texts)) from problems.cause


async def settle(turns: int = 10_000) -> None:
    """Wait until every other task waits for something that is not there yet. Takes no virtual time.

    Exact on a `VirtualTimeLoop`: nothing is ready, due or readable any more, and no step delayed by a seed.
    Several tasks may settle at once; threads at work are not waited for. On other loops it only lets
    min(turns, 100) turns of the loop go by, which is enough for short chains of tasks. Cancel-safe.

    Raises:
        RuntimeError: some task was still busy after that many turns of a `VirtualTimeLoop`.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        return await loop.settle(turns)
    for _ in range(min(turns, 100)):
        await asyncio.sleep(0)


class _Driven(Coroutine[Any, Any, T]):
    """A coroutine around another one, which sees every step that the task takes in it."""

    def __init__(self, coro: Coroutine[Any, Any, T]) -> None:
        self._coro = coro

    def send(self, value: Any, /) -> Any:
        return self._coro.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coro.__await__()

    def __getattr__(self, name: str) -> Any:  # names and frames, for reprs and stacks
        return getattr(self._coro, name)


class _Hesitant(_Driven[T]):
    def __init__(self, coro: Coroutine[Any, Any, T], random: Random, lose_turn: float) -> None:
        super().__init__(coro)
        self._random = random
        self._lose_turn = lose_turn

    def send(self, value: Any, /) -> Any:
        return None if self._random.random() < self._lose_turn else super().send(value)


def fuzzing_task_factory(seed: int, *, lose_turn: float = 0.25) -> Callable[..., asyncio.Task[Any]]:
    """Make a factory for `loop.set_task_factory`, whose tasks lose their turn at random, on any loop.

    On a `VirtualTimeLoop` use its seed: a factory does not see tasks made before, nor those made without it
    (`asyncio.Task(..., eager_start=True)`).

    Args:
        seed: the same seed gives the same schedule, as far as the program has no other source of chance.
        lose_turn: how likely a task is to lose its turn, each time it has one, 0 <= lose_turn < 1.

    Raises:
        ValueError: `lose_turn` is out of range.
    """
    _check_lose_turn(lose_turn)
    random = Random(seed)

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], /, **options: Any) -> asyncio.Task[T]:
        return asyncio.Task(_Hesitant(coro, random, lose_turn), loop=loop, **options)

    return factory


def _check_lose_turn(lose_turn: float) -> None:
    if not 0 <= lose_turn < 1:
        raise ValueError(f"lose_turn must be >= 0 and < 1, got {lose_turn}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSweepResult(Generic[T]):
    """How a call ended that `cancel_at` was to cancel.

    Attributes:
        completed: it ended before the cancellation was due, which was not sent: the sweep is over.
        cancelled: it ended with `CancelledError`.
        value: what it returned; None if it was cancelled.
    """

    completed: bool
    cancelled: bool
    value: T | None


class _CancelledAt(_Driven[T]):
    def __init__(self, coro: Coroutine[Any, Any, T], step: int, late: bool) -> None:
        super().__init__(coro)
        self._suspensions = 0
        self._step = step
        self._late = late
        self.sent = False

    def send(self, value: Any, /) -> Any:
        if self._late and self._suspensions == self._step and not self.sent:
            return self._cancel(None)  # gives the turn back: the next one brings the CancelledError
        return self._suspended(super().send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(super().throw(*error))

    def _suspended(self, awaited: Any) -> Any:
        self._suspensions += 1
        return self._cancel(awaited) if self._suspensions == self._step and not self._late else awaited

    def _cancel(self, awaited: Any) -> Any:
        self.sent = True
        cast("asyncio.Task[T]", asyncio.current_task()).cancel()
        return awaited


async def cancel_at(step: int, main: Callable[[], Awaitable[T]], *, late: bool = False) -> CancelSweepResult[T]:
    """Run `main` in a task of its own and cancel it once, at its `step`-th suspension. Works on any loop.

    A sweep cancels at every point where a cancellation can arrive:

        for step in itertools.count(1):
            result = await cancel_at(step, main)
            ...                                 # nothing lost, nothing leaked?
            if result.completed:
                break

    Args:
        step: which suspension, from 1 on. Those of `main` count, not those of tasks that it starts.
        main: a zero-argument async callable.
        late: cancel only when what `main` waits for there has come, but before `main` goes on with it. That
            is where items and wake-ups get lost: sweep both.

    Cancel-safe: if it is cancelled itself, it cancels `main` and waits for that.

    Raises:
        ValueError: `step` is less than 1.
        BaseException: whatever `main` raised, except for `CancelledError`.
    """
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step}")

    async def call() -> T:
        return await main()

    driven = _CancelledAt(call(), step, late)
    task = asyncio.get_running_loop().create_task(driven, name=f"cancel_at({step})")
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    value = None if task.cancelled() else task.result()
    return CancelSweepResult(completed=not driven.sent, cancelled=task.cancelled(), value=value)


class ManualHandler(Generic[JobT, ValueT]):
    """A handler whose calls wait until the test lets them end: `handler(job)` or `handler(job, resource)`.

    Of calls with equal jobs, the one that began first ends first. A call runs until its task goes on, so for
    a moment after `finish` too.

    Attributes:
        started: the jobs of all calls, in the order they began.
        cancelled: the jobs whose calls were cancelled, in that order.
        peak_running: the most calls that ever ran at once.
    """

    def __init__(self) -> None:
        self.started: list[JobT] = []
        self.cancelled: list[JobT] = []
        self.peak_running = 0
        self._calls: list[_Call[JobT, ValueT]] = []
        self._begun: list[asyncio.Future[None]] = []

    @property
    def running(self) -> list[JobT]:
        """The jobs of the calls that run now, in the order they began."""
        return [call.job for call in self._calls]

    async def __call__(self, job: JobT, resource: object = None, /) -> ValueT:
        """Wait until the test ends this call. Cancel-safe: the call is recorded in `cancelled`.

        Raises:
            BaseException: what the test gave to `fail`.
        """
        loop = asyncio.get_running_loop()
        call = _Call[JobT, ValueT](job, loop.create_future())
        self._calls.append(call)
        self.started.append(job)
        self.peak_running = max(self.peak_running, len(self._calls))
        for waiter in self._begun:
            if not waiter.done():
                waiter.set_result(None)
        self._begun.clear()
        try:
            end = await call.end
        except asyncio.CancelledError:
            self.cancelled.append(job)
            raise
        finally:
            self._calls.remove(call)
        return end()

    def finish(self, job: JobT, value: ValueT | None = None) -> None:
        """Let the oldest running call with this job return `value`.

        Raises:
            LookupError: no such call is running, or all were told to end already.
        """
        self._open(job).end.set_result(lambda: cast(ValueT, value))

    def fail(self, job: JobT, error: BaseException) -> None:
        """Let the oldest running call with this job raise `error`.

        Raises:
            LookupError: as of `finish`.
        """

        def end() -> ValueT:
            raise error

        self._open(job).end.set_result(end)

    def finish_all(self, value: ValueT | None = None) -> None:
        """Let all calls return `value` that run now and were not told to end."""
        for call in self._calls:
            if not call.end.done():
                call.end.set_result(lambda: cast(ValueT, value))

    async def wait_started(self, n: int) -> None:
        """Wait until at least `n` calls have begun, since the handler was made. Cancel-safe."""
        while len(self.started) < n:
            waiter = asyncio.get_running_loop().create_future()
            self._begun.append(waiter)
            await waiter

    def _open(self, job: JobT) -> _Call[JobT, ValueT]:
        for call in self._calls:
            if call.job == job and not call.end.done():
                return call
        raise LookupError(f"no call with job {job!r} waits; running: {self.running!r}")


@dataclass(slots=True, eq=False)
class _Call(Generic[JobT, ValueT]):
    job: JobT
    end: asyncio.Future[Callable[[], ValueT]]
