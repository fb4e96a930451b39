"""The table of states and calls in the docstring of `asyncpool.pool`, cell by cell; and who may call at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import PoolClosed, PoolNotStarted, PoolReused, ShutdownReport, WorkerPool
from asyncpool.testing import settle
from tests.helpers import echo, fuzzed, ignores_cancel, virtual

STATES = ["new", "starting", "open", "draining", "stopping", "closed"]


class Scene:
    """A pool that was brought into a state, and is brought to its end afterwards."""

    def __init__(self) -> None:
        self.may_enter = asyncio.Event()
        self.entering = 0
        self.pool: WorkerPool[float, None] = WorkerPool(self.handler, workers=1, resource=self.resource)
        self.starting: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def resource(self) -> AsyncIterator[None]:
        self.entering += 1
        await self.may_enter.wait()
        yield

    async def handler(self, seconds: float, resource: None) -> None:
        await ignores_cancel(seconds)

    async def bring_into(self, state: str) -> None:
        if state == "new":
            return
        self.starting = asyncio.create_task(self.pool.start())
        await settle()
        if state == "starting":
            return
        self.may_enter.set()
        await self.starting
        if state == "open":
            return
        if state != "closed":
            await self.pool.submit(3)
            await settle()
        self.pool.drain(drain_timeout=0 if state == "stopping" else None)
        await settle()
        if state == "closed":
            await self.pool.close()

    async def end(self) -> None:
        self.may_enter.set()
        await self.pool.close()
        if self.starting is not None:
            await asyncio.wait([self.starting])
            self.starting.exception()


def state_of(pool: WorkerPool[Any, Any]) -> str:
    return repr(pool).split()[2].rstrip(":,")


def in_states(*states: str) -> Callable[[Any], Any]:
    def decorate(test: Any) -> Any:
        async def on_scene(state: str) -> None:
            scene = Scene()
            await scene.bring_into(state)
            assert state_of(scene.pool) == scene.pool.state == state
            try:
                await test(scene, state)
            finally:
                await scene.end()

        on_scene.__name__ = test.__name__
        return pytest.mark.parametrize("state", states)(fuzzed(on_scene))

    return decorate


async def intake(pool: WorkerPool[Any, Any], call: str) -> Any:
    if call == "submit":
        return await pool.submit(0)
    if call == "submit_nowait":
        return pool.submit_nowait(0)
    if call == "run":
        return await pool.run(0)
    if call == "map":
        return await pool.map([0])
    if call == "outcomes":
        return await pool.outcomes([0])
    group = pool.group()
    await group.submit(0)
    group.close_intake()
    return [outcome async for outcome in group]


CALLS = ["submit", "submit_nowait", "run", "map", "outcomes", "group"]


# -- submit, run, map ...


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("state", "error"),
    [("new", PoolNotStarted), ("draining", PoolClosed), ("stopping", PoolClosed), ("closed", PoolClosed)],
)
@virtual
async def test_a_pool_that_is_not_open_takes_no_jobs(call: str, state: str, error: type[Exception]) -> None:
    scene = Scene()
    await scene.bring_into(state)
    with pytest.raises(error, match="pool 'pool' is"):
        await intake(scene.pool, call)
    await scene.end()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", ["starting", "open"])
@fuzzed
async def test_a_pool_that_starts_or_is_open_takes_jobs_and_runs_them_when_it_can(call: str, state: str) -> None:
    scene = Scene()
    await scene.bring_into(state)
    task = asyncio.create_task(intake(scene.pool, call))
    await settle()
    assert scene.pool.stats.submitted == 1
    scene.may_enter.set()
    await task
    await scene.pool.join()
    assert scene.pool.stats.succeeded == 1
    await scene.end()


# -- close


@in_states("new")
async def test_close_of_a_new_pool_closes_it_with_an_empty_report(scene: Scene, state: str) -> None:
    report = await scene.pool.close()
    assert not report
    assert isinstance(report, ShutdownReport)
    assert scene.pool.report is report
    assert state_of(scene.pool) == "closed"
    with pytest.raises(PoolReused, match="closed"):
        await scene.pool.start()


@in_states("starting")
async def test_close_of_a_starting_pool_makes_start_raise_and_hands_back_what_was_accepted(
    scene: Scene, state: str
) -> None:
    await scene.pool.submit(7)
    report = await scene.pool.close()
    assert [(entry.job, entry.started) for entry in report.unfinished] == [(7, False)]
    assert scene.starting is not None
    with pytest.raises(PoolClosed):
        await scene.starting


@in_states("starting")
async def test_start_does_not_wait_for_a_resource_that_ignores_its_cancellation(scene: Scene, state: str) -> None:
    pool: WorkerPool[int, None]

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        await ignores_cancel(50)
        yield

    pool = WorkerPool(scene.handler, workers=1, resource=resource)
    starting = asyncio.create_task(pool.start())
    await settle()
    await pool.close(grace=1)
    await settle()
    assert starting.done()
    assert isinstance(starting.exception(), PoolClosed)
    await asyncio.sleep(100)


@in_states("open")
async def test_close_of_an_open_pool_drains(scene: Scene, state: str) -> None:
    handle = await scene.pool.submit(1)
    closing = asyncio.create_task(scene.pool.close())
    await settle()
    assert state_of(scene.pool) == "draining"
    assert not await closing
    assert handle.done()


@in_states("draining", "stopping")
async def test_a_later_close_shortens_the_first(scene: Scene, state: str) -> None:
    report = await scene.pool.close(drain_timeout=0, grace=1)
    assert asyncio.get_running_loop().time() == 1
    assert len(report.abandoned) == 1
    await asyncio.sleep(10)


@in_states("closed")
async def test_close_of_a_closed_pool_returns_the_report_at_once(scene: Scene, state: str) -> None:
    assert await scene.pool.close() is scene.pool.report


# -- cancel


@in_states("new")
async def test_cancel_of_a_new_pool_closes_it(scene: Scene, state: str) -> None:
    scene.pool.cancel()
    assert state_of(scene.pool) == "closed"
    assert not scene.pool.report


@in_states("starting")
async def test_cancel_of_a_starting_pool_makes_start_raise(scene: Scene, state: str) -> None:
    scene.pool.cancel()
    assert scene.starting is not None
    with pytest.raises(PoolClosed):
        await scene.starting


@in_states("open", "draining")
async def test_cancel_goes_to_stopping(scene: Scene, state: str) -> None:
    if state == "open":
        await scene.pool.submit(3)
        await settle()
    scene.pool.cancel()
    await settle()
    assert state_of(scene.pool) == "stopping"


@in_states("stopping", "closed")
async def test_cancel_of_a_pool_that_is_past_that_does_nothing(scene: Scene, state: str) -> None:
    report = scene.pool.report
    scene.pool.cancel()
    assert state_of(scene.pool) == state
    assert scene.pool.report is report


# -- pause, resume, resize


@in_states("new", "starting")
async def test_pause_and_resize_are_kept_for_the_start(scene: Scene, state: str) -> None:
    scene.pool.pause()
    scene.pool.resize(2)
    scene.may_enter.set()
    if scene.starting is None:
        await scene.pool.start()
    else:
        await scene.starting
    await settle()
    handle = await scene.pool.submit(0)
    await settle()
    assert not handle.done()
    assert scene.pool.stats.workers == 2
    scene.pool.resume()
    await handle


@in_states("open")
async def test_an_open_pool_is_paused_resumed_and_resized(scene: Scene, state: str) -> None:
    scene.pool.pause()
    handle = await scene.pool.submit(0)
    scene.pool.resize(2)
    await settle()
    assert not handle.done()
    scene.pool.resume()
    await handle
    assert scene.pool.stats.workers == 2


@in_states("draining", "stopping", "closed")
async def test_a_closing_pool_is_not_paused_resumed_or_resized(scene: Scene, state: str) -> None:
    for call in (scene.pool.pause, scene.pool.resume, lambda: scene.pool.resize(2)):
        with pytest.raises(PoolClosed):
            call()


# -- stats, start, join


@pytest.mark.parametrize("state", STATES)
@virtual
async def test_stats_and_repr_work_in_every_state(state: str) -> None:
    scene = Scene()
    await scene.bring_into(state)
    assert scene.pool.stats.submitted == (1 if state in ("draining", "stopping") else 0)
    assert state in repr(scene.pool)
    await scene.end()
    assert scene.pool.stats.submitted == (1 if state in ("draining", "stopping") else 0)


@in_states("starting", "open", "draining", "stopping", "closed")
async def test_a_pool_is_started_once(scene: Scene, state: str) -> None:
    with pytest.raises(PoolReused, match=f"is {state}: a pool can be started only once"):
        await scene.pool.start()


@virtual
async def test_a_pool_is_used_in_one_block_only() -> None:
    pool = WorkerPool(echo, workers=1)
    async with pool:
        pass
    with pytest.raises(PoolReused):
        async with pool:
            pass


@virtual
async def test_join_of_a_pool_that_was_never_started_says_so() -> None:
    with pytest.raises(PoolNotStarted, match="async with pool"):
        await WorkerPool(echo, workers=1).join()


@virtual
async def test_start_cancelled_closes_the_pool() -> None:
    scene = Scene()
    await scene.bring_into("starting")
    assert scene.starting is not None
    scene.starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.starting
    assert state_of(scene.pool) == "closed"
