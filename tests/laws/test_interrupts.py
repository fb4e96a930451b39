"""A KeyboardInterrupt that arrives between any two lines of the package leaves a pool that closes.

`asyncio.run` turns the first Ctrl+C into a cancellation of the main task, and raises the next one wherever the program
is, in the middle of the pool's own steps too. Here a trace function raises it at one line of the package after another,
on virtual time: a program that hangs then is a deadlock, which is detected at once.

An interrupt inside asyncio itself is not tried, because it is not ours. When it comes between taking a callback and
calling it, a task is never resumed, and the cancellation of all tasks at the end of `asyncio.run` waits for it forever.
This happens to programs without any pool too. Nor is one inside a finalizer, where Python swallows it.

The processes of an engine are simulated in the loop of the program, so they are interrupted too. Real ones are not, but
a process that fails in the middle of a step is one more that the pool must cope with.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import asyncpool
import asyncpool.options
from asyncpool import (
    AutoScale,
    Breaker,
    ConcurrencyLimit,
    DeadlineExceeded,
    JobExpired,
    RateLimit,
    Resource,
    Retry,
    TooManyFailures,
    WorkerPool,
    batches,
    current_job,
)
from asyncpool._core import bounds, cancellation, timers
from asyncpool._core.tasks import Tasks
from asyncpool.testing import DeadlockError, VirtualTimeLoop
from tests.engines.memory import InMemory, Portable
from tests.laws.budget import IS_LONG, IS_SHORT

PACKAGE = str(Path(asyncpool.__file__).parent)
TESTING = str(Path(asyncpool.__file__).parent / "testing")
RUNS = 3000 if IS_LONG else 25 if IS_SHORT else 50  # of a program, each with another line
GRACE = 5.0 + 2.0  # that of a pool, and what else the program takes
MAX_ITERATIONS = 20_000  # of the loop; the programs take some hundred


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of the package that runs after `begin()`."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.lines = 0
        self.place = ""
        self.pools: list[WorkerPool[Any, Any]] = []  # those that must be closed in the end

    def begin(self) -> None:
        sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        is_ours = name.startswith(PACKAGE) and not name.startswith(TESTING)
        return self._line if is_ours and not is_in_finalizer(frame) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}, {frame.f_code.co_name}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Whether the collector has called this."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@asynccontextmanager
async def connection() -> AsyncIterator[int]:
    await asyncio.sleep(0)
    yield 1
    await asyncio.sleep(0)


async def handler(job: int, resource: int = 0) -> int:
    await asyncio.sleep(0)
    if job == 3:
        raise ValueError(job)
    if job == 5:
        await asyncio.sleep(0.01)
    return job


async def numbers() -> AsyncIterator[int]:
    for number in range(8):
        await asyncio.sleep(0)
        yield number


async def all_ways(interrupt: Interrupt, *, has_resource: bool) -> None:
    """Jobs come to the pool in every way, some fail, and all end."""
    options: dict[str, Any] = {"resource": connection} if has_resource else {}
    interrupt.begin()
    async with WorkerPool(handler, workers=2, retry=Retry(attempts=2, backoff=0.001), **options) as pool:
        task = asyncio.ensure_future(pool.run(5))
        async for _ in pool.outcomes(numbers()):
            pass
        with contextlib.suppress(ValueError):
            await pool.map(range(6), ordered=False)
        await pool.submit(1)
        async with pool.group() as group:
            await group.submit(2)
        async for _ in group:
            pass
        await task


async def second_ctrl_c(interrupt: Interrupt, *, has_resource: bool) -> None:
    """The program is cancelled, as by a first Ctrl+C, while jobs run and wait."""
    options: dict[str, Any] = {"resource": connection} if has_resource else {}
    async with WorkerPool(handler, workers=2, **options) as pool:
        for number in range(4):
            await pool.submit(5 + number)
        main = asyncio.current_task()
        assert main is not None
        asyncio.get_running_loop().call_soon(lambda: (interrupt.begin(), main.cancel()))
        await asyncio.sleep(1)


async def many_waiting(interrupt: Interrupt, *, priority: bool) -> None:
    """A long queue, jobs that back off or are parked, cancellations by owners, and sizes that change."""
    options: dict[str, Any] = {"priority": lambda job: -job} if priority else {}
    limits = {0: RateLimit(1, per=0.01), 1: RateLimit(2, per=0.01), 2: None}
    interrupt.begin()
    async with WorkerPool(
        handler,
        workers=AutoScale(1, 3),
        queue_size=200,
        retry=Retry(attempts=3, backoff=0.005),
        limiter=lambda job: limits[job % 3],
        timeout=0.5,
        **options,
    ) as pool:
        async with pool.group() as group:
            handles = [await pool.submit(number) for number in range(20)]
            for number in range(90):
                await group.submit(number)
            for handle in handles[::3]:
                handle.cancel()
            await asyncio.sleep(0.02)
            group.cancel()
        pool.pause()
        pool.resize(2)
        handles = [await pool.submit(number) for number in range(70)]
        for handle in handles[:66]:
            handle.cancel()
        pool.resume()
        async for _ in pool.outcomes(range(10), ordered=True):
            break
        await pool.close(drain_timeout=0.0, grace=1.0)


async def limited_waits(interrupt: Interrupt) -> None:
    """Jobs wait too long, streams stop at their limits, waiting jobs are cancelled, and batches are read."""
    limiter = asyncio.Semaphore(1)
    interrupt.begin()
    async with WorkerPool(
        handler,
        workers=2,
        queue_size=40,
        queue_timeout=0.015,
        timeout=lambda job: None if job % 2 else 0.5,
        limiter=lambda job: limiter if job % 3 else None,
    ) as pool:
        interrupt.pools.append(pool)
        for number in range(12):
            await pool.submit(5 + number % 4)
        for options in ({"max_failures": 0}, {"deadline": 0.008}, {"max_failures": 0.1}):
            with contextlib.suppress(TooManyFailures, DeadlineExceeded):
                async for _ in pool.outcomes(numbers(), ordered=bool(options.get("deadline")), **options):
                    pass
        with contextlib.suppress(JobExpired):
            async with batches(pool.map(numbers(), max_failures=3), size=3, seconds=0.002) as grouped:
                async for _ in grouped:
                    pass
        pool.pause()
        for number in range(30):
            await pool.submit(number)
        pool.cancel_queued(lambda job: job % 2 == 0)
        pool.queued()
        pool.running()
        await asyncio.sleep(0.02)
        pool.resume()


async def resources_that_hang(interrupt: Interrupt, *, ignores: bool) -> None:
    """Opening and closing take too long, some end when they are cancelled, some ignore it."""
    opened = 0

    async def hang() -> None:
        end = asyncio.get_running_loop().time() + 0.1
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                if not ignores:
                    raise

    class Slow:
        async def __aenter__(self) -> int:
            nonlocal opened
            opened += 1
            self.number = opened
            if self.number % 3 == 2:
                await hang()
            return self.number

        async def __aexit__(self, *exc: object) -> None:
            if self.number % 2:
                await hang()

    async def spoil(job: int, resource: int) -> int:
        await asyncio.sleep(0)
        if job % 2:
            raise ConnectionResetError
        return resource

    resource = Resource(Slow, open_timeout=0.02, close_timeout=0.02)
    interrupt.begin()
    async with WorkerPool(spoil, workers=2, resource=resource) as pool:
        async for _ in pool.outcomes(range(8)):
            pass
        pool.resize(1)
        pool.resize(3)
        await asyncio.sleep(0.2)
        pool.resize(1)


async def start_beside_another(interrupt: Interrupt) -> None:
    """A pool starts while another one is open, which has to close before the interrupt reaches `asyncio.run`."""
    async with WorkerPool(handler, workers=1) as pool:
        interrupt.pools.append(pool)
        interrupt.begin()
        async with WorkerPool(handler, workers=1, breaker=Breaker()) as other:
            await other.run(1)


async def limits_and_breaker(interrupt: Interrupt) -> None:
    """Two pools share limits and a breaker, while their backend is down and comes back. Resources are checked, grow
    old, and are used up; limits are charged, changed, and used beside the pools; some jobs wait too long.
    """
    time = asyncio.get_running_loop().time
    back_at = time() + 0.02
    rate = RateLimit(2000, burst=5, weight=lambda job: 1 + job % 2)
    slots, keys = ConcurrencyLimit(3), ConcurrencyLimit.per_key(lambda job: job % 3, 1)
    breaker = Breaker(window=4, pause=0.004, max_pause=0.008)
    resource = Resource(
        connection, check=lambda _: time() < back_at or time() > back_at + 0.01, check_after=0.0,
        max_age=0.02, max_idle=0.01, max_jobs=3,
    )  # fmt: skip

    async def work(job: int, _resource: int) -> int:
        await asyncio.sleep(0.001)
        rate.charge(job % 3 - 1)
        if time() < back_at:
            raise ConnectionError
        if job == 7:
            current_job().recycle()
        return job

    async def use_a_slot() -> None:
        async with slots:
            await asyncio.sleep(0.002)

    options: dict[str, Any] = {"resource": resource, "breaker": breaker, "retry": Retry(attempts=3, backoff=0.001)}
    interrupt.begin()
    async with (
        WorkerPool(work, workers=3, limiter=[keys, slots, rate], queue_timeout=0.06, queue_size=20, **options) as pool,
        WorkerPool(work, workers=2, limiter=[rate, keys], queue_size=20, **options) as other,
    ):
        interrupt.pools += [pool, other]
        handles = [await one.submit(number) for number in range(6) for one in (pool, other)]
        outside = asyncio.ensure_future(use_a_slot())
        await asyncio.sleep(0.003)
        slots.change(1)
        handles[1].cancel()
        handles[2].cancel()
        await asyncio.sleep(0.01)
        rate.change(500, burst=2)
        pool.resume(force=True)
        breaker.open(0.002)
        await asyncio.sleep(0.02)
        slots.change(2)
        rate.pause_for(0.002)
        await outside
        async for _ in pool.outcomes(numbers()):
            pass
        await other.close(drain_timeout=0.01, grace=1.0)
        for handle in handles:
            await handle.outcome()


async def engine(interrupt: Interrupt) -> None:
    """Attempts run in simulated processes, of which one dies; the pool grows and shrinks, and jobs are cancelled."""
    processes = InMemory(2)
    interrupt.begin()
    try:
        async with WorkerPool(
            Portable(handler),
            workers=3,
            retry=Retry(attempts=2, backoff=0.001),
            resource=Portable(connection),
            engine=processes,
        ) as pool:
            interrupt.pools.append(pool)
            async for _ in pool.outcomes(numbers()):
                pass
            handles = [await pool.submit(5) for _ in range(6)]
            await asyncio.sleep(0.005)
            handles[0].cancel()
            processes.kill_one()
            pool.resize(1)
            for handle in handles:
                await handle.outcome()
            pool.resize(4)
            await pool.run(1)
            await pool.submit(5)
            await pool.close(drain_timeout=0.0, grace=1.0)
    finally:
        await processes.ended()


async def engine_second_ctrl_c(interrupt: Interrupt) -> None:
    """The program is cancelled, as by a first Ctrl+C, while attempts run in processes and wait for one that died."""
    processes = InMemory(2, replaced_after=0.0)
    try:
        async with WorkerPool(Portable(handler), workers=3, resource=Portable(connection), engine=processes) as pool:
            interrupt.pools.append(pool)
            for number in range(6):
                await pool.submit(5 + number)
            processes.kill_one()
            main = asyncio.current_task()
            assert main is not None
            asyncio.get_running_loop().call_soon(lambda: (interrupt.begin(), main.cancel()))
            await asyncio.sleep(1)
    finally:
        await processes.ended()


PROGRAMS: dict[str, Callable[[Interrupt], Coroutine[Any, Any, None]]] = {
    "all ways": partial(all_ways, has_resource=False),
    "all ways, resource": partial(all_ways, has_resource=True),
    "second Ctrl+C": partial(second_ctrl_c, has_resource=False),
    "second Ctrl+C, resource": partial(second_ctrl_c, has_resource=True),
    "resources that hang": partial(resources_that_hang, ignores=False),
    "resources that ignore": partial(resources_that_hang, ignores=True),
    "many waiting": partial(many_waiting, priority=False),
    "many waiting, priority": partial(many_waiting, priority=True),
    "limited waits": limited_waits,
    "start beside another": start_beside_another,
    "limits and breaker": limits_and_breaker,
    "engine": engine,
    "engine, second Ctrl+C": engine_second_ctrl_c,
}


class Loop(VirtualTimeLoop):
    """Virtual time stands still in a program that spins: so its iterations are limited."""

    def __init__(self) -> None:
        super().__init__()
        self.iterations = 0

    def _run_once(self) -> None:
        self.iterations += 1
        if self.iterations > MAX_ITERATIONS:
            raise RuntimeError("the loop spins")
        super()._run_once()  # type: ignore[misc]


def run_interrupted(at: int | None, main: Callable[[Interrupt], Any]) -> Interrupt:
    """Run a program as `asyncio.run` does, on virtual time, and interrupt it."""
    interrupt = Interrupt(at)
    loop = Loop()
    loop.set_exception_handler(lambda loop, context: None)  # what an interrupted step leaves behind is printed, no more
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main(interrupt))
    except DeadlockError as error:
        error.add_note(f"interrupted at {interrupt.place}")
        raise
    except (Exception, KeyboardInterrupt, asyncio.CancelledError, BaseExceptionGroup):
        pass  # what the program raises after an interrupt is its own affair: it has to end
    finally:
        sys.settrace(None)
    assert loop.iterations < MAX_ITERATIONS, f"interrupted at {interrupt.place}, it spins"
    assert loop.time() < GRACE, f"interrupted at {interrupt.place}, it took {loop.time():.1f} s"
    for pool in interrupt.pools:
        assert pool.state == "closed", f"interrupted at {interrupt.place}, it left {pool!r}"
    return interrupt


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_an_interrupt_at_any_line_leaves_a_pool_that_closes(
    program: Callable[[Interrupt], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bounds, "_IGNORED_AFTER", 0.02)  # seconds; resources that ignore theirs are not the only point
    monkeypatch.setattr(cancellation, "_FEW", 10)  # so that waiting jobs are settled in slices
    monkeypatch.setattr(timers, "_BATCH", 16)
    monkeypatch.setattr(asyncpool.options, "TICK", 1e12)  # idle processes are silent, so that a hang is a deadlock
    caplog.set_level(logging.ERROR, "asyncpool")
    lines = run_interrupted(None, program).lines
    assert lines > 100
    for at in range(1, lines, max(1, lines // RUNS)):
        interrupt = run_interrupted(at, program)
        assert interrupt.place or at > lines - 200  # it has run this far
        # Then the pool has closed, too, but all of its tasks were ended by force, and one that was lost held it.
        assert "an internal task failed" not in caplog.text, f"interrupted at {interrupt.place}"
        caplog.clear()
    gc.collect()  # here, where warnings are ignored: an attempt that was never begun must not fail another test


@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_of_a_task_that_begins_lets_other_pools_close(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = Tasks._guarded
    is_armed = False

    async def interrupted(self: Tasks, function: Callable[[], Awaitable[None]]) -> None:
        if is_armed:
            monkeypatch.setattr(Tasks, "_guarded", guarded)
            raise KeyboardInterrupt
        await guarded(self, function)

    async def cleans_up(job: int) -> None:
        try:
            await asyncio.sleep(10.0)
        finally:
            await asyncio.sleep(0.5)

    async def main() -> None:
        nonlocal is_armed
        async with WorkerPool(cleans_up, workers=1, name="other") as other, WorkerPool(handler, workers=1) as pool:
            pools.append(other)
            await other.submit(5)
            await asyncio.sleep(0.0)
            is_armed = True
            async for _ in pool.outcomes(numbers()):  # its source is pulled by a task of the pool
                pass

    pools: list[WorkerPool[int, None]] = []
    monkeypatch.setattr(Tasks, "_guarded", interrupted)
    loop = Loop()
    loop.set_exception_handler(lambda loop, context: None)
    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    assert pools[0].state == "closed"
    assert pools[0].report is not None
