"""Handlers that run on threads and processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from blockbuster import BlockBuster

from asyncpool import (
    Cancelled,
    Failed,
    JobCrashed,
    JobTimeout,
    Offloaded,
    PoolDeadlock,
    Succeeded,
    WorkerPool,
    current_job,
    offload,
)
from asyncpool.testing import run, settle
from tests.helpers import echo, virtual

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="default")


def double(job: int) -> int:
    return job * 2


def divide(job: int) -> float:
    return 1 / job


class Gate:
    """A function that waits in its thread until the test opens it."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.begun = 0
        self.running = 0
        self.peak = 0
        self.lock = threading.Lock()

    def __call__(self, job: Any) -> Any:
        with self.lock:
            self.begun += 1
            self.running += 1
            self.peak = max(self.peak, self.running)
        assert self.opened.wait(20)
        with self.lock:
            self.running -= 1
        return job

    async def wait_begun(self, count: int) -> None:
        while self.begun < count:
            await asyncio.sleep(0)


@virtual
async def test_a_function_runs_in_a_thread() -> None:
    async with WorkerPool(offload(lambda job: threading.get_ident()), workers=2) as pool:
        assert threading.get_ident() not in await pool.map(range(4))
    async with WorkerPool(offload(double), workers=2) as pool:
        assert await pool.map(range(10)) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


@virtual
async def test_an_error_is_the_jobs_error() -> None:
    async with WorkerPool(offload(divide), workers=1) as pool:
        with pytest.raises(ZeroDivisionError):
            await pool.run(0)
        assert await pool.run(2) == 0.5


def stop_iteration(job: int) -> Any:
    return next(iter(()))


def cancelled_future(job: int) -> Any:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    future.cancel()
    return future.result()


def cancelled_error(job: int) -> Any:
    raise asyncio.CancelledError


def system_exit(job: int) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize("fn", [stop_iteration, cancelled_future, cancelled_error, system_exit])
@pytest.mark.timeout(30)
def test_whatever_a_function_raises_ends_its_job_only(fn: Callable[[int], Any]) -> None:
    async def main() -> None:
        async with WorkerPool(offload(fn), workers=1) as pool:
            handle = await pool.submit(1)
            async with asyncio.timeout(10):
                outcome = await handle.outcome()
            assert isinstance(outcome, Failed)
            with pytest.raises((JobCrashed, RuntimeError, StopIteration, concurrent.futures.CancelledError)):
                outcome.unwrap()

    asyncio.run(main())


@virtual
async def test_a_function_runs_in_the_context_of_its_job() -> None:
    def look(job: int) -> tuple[str, int]:
        seen = VARIABLE.get()
        VARIABLE.set("from the thread")
        return seen, current_job().id

    async with WorkerPool(offload(look), workers=1) as pool:
        VARIABLE.set("mine")
        assert await pool.map([1, 2]) == [("mine", 1), ("mine", 2)]
        assert VARIABLE.get() == "mine"


def run_in(pool: WorkerPool[int, Any], job: int) -> Any:
    """Run a job from another thread, and wait for its value."""
    assert pool.loop is not None
    return asyncio.run_coroutine_threadsafe(pool.run(job), pool.loop).result()


@virtual
async def test_a_function_can_run_a_job_in_another_pool() -> None:
    def measure(job: int) -> str:
        return f"job {current_job().id}: {run_in(other, job)}"

    async with WorkerPool(echo, workers=1) as other, WorkerPool(offload(measure), workers=2) as pool:
        assert await pool.map([5, 6]) == ["job 1: 5", "job 2: 6"]


@virtual
async def test_a_function_that_runs_a_job_in_its_own_pool_gets_a_deadlock_error_and_does_not_hang() -> None:
    def call_itself(job: int) -> Any:
        return run_in(pool, job + 1)

    async with WorkerPool(offload(call_itself), workers=1) as pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(1)


@virtual
async def test_there_are_never_more_calls_than_workers() -> None:
    gate = Gate()
    async with WorkerPool(offload(gate), workers=3) as pool:
        handles = [await pool.submit(job) for job in range(9)]
        await gate.wait_begun(3)
        gate.opened.set()
        assert [await handle for handle in handles] == list(range(9))
    assert gate.peak == 3


@virtual
async def test_a_call_that_has_begun_holds_its_worker_until_it_ends_though_its_job_was_cancelled() -> None:
    gate = Gate()
    async with WorkerPool(offload(gate), workers=1) as pool:
        handle = await pool.submit(1)
        waiting = await pool.submit(2)
        await gate.wait_begun(1)
        handle.cancel()
        await settle()
        assert not handle.done()
        assert gate.begun == 1
        assert pool.stats.running == 1
        gate.opened.set()
        outcome = await handle.outcome()
        assert isinstance(outcome, Succeeded)
        assert await waiting == 2


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@virtual
async def test_a_call_that_has_not_begun_is_dropped_when_its_job_is_cancelled(executor: ThreadPoolExecutor) -> None:
    gate = Gate()
    async with WorkerPool(offload(gate, executor), workers=2) as pool:
        first = await pool.submit(1)
        second = await pool.submit(2)
        await gate.wait_begun(1)
        second.cancel()
        assert isinstance(await second.outcome(), Cancelled)
        gate.opened.set()
        assert await first == 1
    assert gate.begun == 1


@pytest.mark.timeout(30)
def test_a_call_that_times_out_ends_as_what_it_ended_as() -> None:
    gate = Gate()

    async def main() -> None:
        async with WorkerPool(offload(gate), workers=1, timeout=0.05) as pool:
            handle = await pool.submit(1)
            await gate.wait_begun(1)
            await asyncio.sleep(0.2)
            assert not handle.done()
            gate.opened.set()
            assert await handle == 1

    asyncio.run(main())


@pytest.mark.timeout(30)
def test_a_call_that_times_out_before_it_begins_is_a_job_timeout(executor: ThreadPoolExecutor) -> None:
    gate = Gate()

    async def main() -> None:
        async with WorkerPool(offload(gate, executor), workers=2, timeout=0.05) as pool:
            first = await pool.submit(1)
            await gate.wait_begun(1)
            second = await pool.submit(2)
            with pytest.raises(JobTimeout):
                await second
            gate.opened.set()
            assert await first == 1

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_function_runs_in_processes(loop_is_never_blocked: BlockBuster) -> None:
    loop_is_never_blocked.deactivate()  # ProcessPoolExecutor.submit starts a process and writes to a pipe

    async def main() -> None:
        async with WorkerPool(offload(double, executor), workers=2) as pool:
            assert await pool.map(range(5)) == [0, 2, 4, 6, 8]
        async with WorkerPool(offload(divide, executor), workers=2) as pool:
            outcomes = await pool.outcomes([0, 1], ordered=True)
            assert isinstance(outcomes[0], Failed)
            assert isinstance(outcomes[0].error, ZeroDivisionError)
            assert outcomes[1].unwrap() == 1

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        asyncio.run(main())


def test_the_executor_stays_the_callers(executor: ThreadPoolExecutor) -> None:
    async def main() -> None:
        async with WorkerPool(offload(double, executor), workers=2) as pool:
            assert await pool.run(1) == 2

    run(main)
    assert executor.submit(double, 2).result() == 4


@virtual
async def test_a_job_of_an_executor_that_was_shut_down_fails() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    async with WorkerPool(offload(double, executor), workers=1) as pool:
        with pytest.raises(RuntimeError, match="shutdown"):
            await pool.run(1)


@virtual
async def test_an_offloaded_function_can_be_awaited_without_a_pool_and_with_keywords() -> None:
    call = offload(lambda a, *, b: (a, b))
    assert isinstance(call, Offloaded)
    assert await call(1, b=2) == (1, 2)
    assert "offload(" in repr(call)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((5,), "fn must be callable, got 5"),
        ((echo,), "fn must be a synchronous function, got the async function"),
        (
            (double, "threads"),
            "executor must be a concurrent.futures.Executor, or a function that makes one, got 'threads'",
        ),
    ],
)
def test_offload_says_what_is_wrong(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        offload(*arguments)
    assert text in str(caught.value)
