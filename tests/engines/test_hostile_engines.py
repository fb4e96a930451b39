"""Engines, handlers and programs that do what they should not: no job is lost, and nothing waits forever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from asyncpool import Failed, Permanent, ProcessLost, Succeeded, WorkerPool
from asyncpool._core.remote.members import Errand
from asyncpool.engines.wire import BATCH_BYTES
from asyncpool.testing import VirtualTimeLoop
from tests.engines.memory import InMemory, Portable, Simulated
from tests.helpers import echo, fuzzed, now, sleeper, virtual

pytestmark = pytest.mark.usefixtures("no_signs_of_life")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@virtual
async def test_a_process_whose_kill_raises_loses_no_job(caplog: pytest.LogCaptureFixture) -> None:
    engine = InMemory(1)
    async with WorkerPool(Portable(sleeper), workers=3, engine=engine) as pool:
        handles = [await pool.submit(1.0) for _ in range(3)]
        await asyncio.sleep(0.5)
        process = engine.processes[0]

        def kill() -> None:
            process.given_up.set()
            raise PermissionError("not yours")

        process.kill = kill  # type: ignore[method-assign]
        process.died.set()
        assert [await handle for handle in handles] == [1.0] * 3
        assert pool.stats.reruns == 3
    assert "killing process 1 raised an exception" in caplog.text


@virtual
async def test_an_engine_whose_errors_have_no_text_loses_no_job() -> None:
    engine = InMemory(1)
    async with WorkerPool(Portable(sleeper), workers=1, engine=engine, reruns=False) as pool:
        handle = await pool.submit(1.0)
        await asyncio.sleep(0.5)
        process = engine.processes[0]

        async def put(batch: bytes) -> None:
            raise Unspeakable

        process.put = put  # type: ignore[method-assign]
        handle.cancel()  # which is to be sent
        await handle.outcome()
        other = await pool.submit(0.1)
        await asyncio.sleep(0.05)
        engine.processes[0].put = put  # type: ignore[method-assign]
        third = await pool.submit(0.1)
        assert await other == 0.1
        with pytest.raises(
            ProcessLost, match=r"not run again \(reruns=False\): <str\(\) of this .*Unspeakable raised ValueError>"
        ):
            await third
        assert await pool.run(0.1) == 0.1


class Carrying:
    """Takes nonsense along for one job."""

    def __call__(self, n: int) -> Any:
        return echo(n)

    def carry(self) -> Any:
        return (lambda: None) if NONSENSE else b"context"

    async def call_with(self, carried: bytes, n: int) -> bytes:
        return carried


NONSENSE: list[int] = []


@virtual
async def test_what_cannot_be_taken_along_fails_its_job_alone() -> None:
    async with WorkerPool(Carrying(), workers=2, engine=InMemory(1)) as pool:
        assert await pool.run(1) == b"context"
        NONSENSE.append(1)
        try:
            with pytest.raises(TypeError, match=r"carry\(\) of the handler must return bytes or None, got <function"):
                await pool.run(2)
        finally:
            NONSENSE.clear()
        assert await pool.run(3) == b"context"
        assert pool.stats.processes_lost == 0


@virtual
async def test_large_inputs_travel_in_batches_of_some_megabytes() -> None:
    sizes: list[int] = []

    class Measured(Simulated):
        async def put(self, batch: bytes) -> None:
            sizes.append(len(batch))
            await super().put(batch)

    engine = InMemory(1)
    engine.kind = Measured
    async with WorkerPool(Portable(length), workers=60, engine=engine) as pool:
        large = bytes(1 << 20)
        assert [value async for value in pool.map([large] * 60)] == [1 << 20] * 60
    assert max(sizes) < BATCH_BYTES + (2 << 20)
    assert len([size for size in sizes if size > 1 << 20]) >= 60 // 9


async def length(data: bytes) -> int:
    return len(data)


class Resources:
    """Counts how many are open."""

    def __init__(self) -> None:
        self.open = self.most = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        self.open += 1
        self.most = max(self.most, self.open)
        yield
        await asyncio.sleep(0.01)
        self.open -= 1


async def with_resource(seconds: float, _: object) -> float:
    return await sleeper(seconds)


@fuzzed
async def test_a_pool_that_grows_in_the_step_that_opened_it_never_has_too_many_resources() -> None:
    resources = Resources()
    engine = InMemory(3, Random(1))
    async with WorkerPool(Portable(with_resource), workers=1, resource=Portable(resources), engine=engine) as pool:
        pool.resize(6)
        outcomes = [outcome async for outcome in pool.outcomes([0.01] * 60)]
        assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
        assert resources.open == 6
    assert resources.most == 6
    assert resources.open == 0


@fuzzed
async def test_a_process_that_was_without_a_share_needs_not_end_its_jobs_first() -> None:
    engine = InMemory(2, Random(1))
    async with WorkerPool(Portable(sleeper), workers=2, engine=engine) as pool:
        long = [await pool.submit(seconds) for seconds in (1.0, 1000.0)]
        assert await long[0] == 1.0
        pool.resize(1)  # so one process has no share, and may have the long job
        await asyncio.sleep(1.0)
        pool.resize(4)
        began = now()
        assert [value async for value in pool.map([1.0] * 150)] == [1.0] * 150
        assert now() - began < 60  # three at a time, and not two
        long[1].cancel()


@virtual
async def test_a_program_that_blocks_its_loop_does_not_lose_its_engine() -> None:
    class Slow(InMemory):
        async def _keep(self, number: int, host: Any, processes: list[Simulated]) -> None:
            await asyncio.sleep(0.5)
            await super()._keep(number, host, processes)

    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    pool = WorkerPool(Portable(echo), workers=1, engine=Slow(1), patience=10.0)
    starting = asyncio.ensure_future(pool.start())
    await asyncio.sleep(0.1)
    loop._now += 60.0
    await starting
    assert await pool.run(1) == 1
    await pool.close()


@virtual
async def test_a_failure_of_a_handler_that_is_advice_without_truth_arrives() -> None:
    async with WorkerPool(Portable(raise_false), workers=1, engine=InMemory(1)) as pool:
        outcome = await (await pool.submit(1)).outcome()
        assert isinstance(outcome, Failed)


async def raise_false(_: int) -> None:
    raise FalsePermanent


class FalsePermanent(Permanent):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


def interrupted(main: Callable[[list[WorkerPool[Any, Any]]], Coroutine[Any, Any, None]]) -> WorkerPool[Any, Any]:
    """Run a program that is interrupted, and return its pool, as `asyncio.run` leaves it."""
    pools: list[WorkerPool[Any, Any]] = []
    loop = VirtualTimeLoop()
    loop.set_exception_handler(lambda loop, context: None)
    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(pools))
    return pools[0]


@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_while_an_attempt_ends_leaves_a_pool_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Errand.settle

    def settle_later(self: Errand, *end: Any) -> None:
        monkeypatch.setattr(Errand, "settle", settle)
        raise KeyboardInterrupt

    async def main(pools: list[WorkerPool[Any, Any]]) -> None:
        async with WorkerPool(Portable(sleeper), workers=3, engine=InMemory(1)) as pool:
            pools.append(pool)
            handles = [await pool.submit(1.0) for _ in range(3)]
            monkeypatch.setattr(Errand, "settle", settle_later)
            for handle in handles:
                await handle.outcome()

    pool = interrupted(main)
    assert pool.state == "closed"
    assert pool.report is not None
    assert len(pool.report.unfinished) + pool.stats.succeeded == 3


@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_in_a_task_of_an_engine_does_not_keep_the_pool_from_closing() -> None:
    class Interrupted(InMemory):
        async def _keep(self, number: int, host: Any, processes: list[Simulated]) -> None:
            if number:
                await asyncio.sleep(1.0)
                raise KeyboardInterrupt
            await super()._keep(number, host, processes)

    async def main(pools: list[WorkerPool[Any, Any]]) -> None:
        async with WorkerPool(Portable(sleeper), workers=2, engine=Interrupted(2)) as pool:
            pools.append(pool)
            handle = await pool.submit(10.0)
            await handle.outcome()

    pool = interrupted(main)
    assert pool.state == "closed"
    assert pool.report is not None
    assert len(pool.report.unfinished) == 1
