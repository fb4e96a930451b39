"""Another loop, another thread: `WrongLoop` says what works from there, and that is tried."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

import anyio.from_thread
import anyio.to_thread
import pytest

from asyncpool import PoolClosed, WorkerPool, WrongLoop, offload
from tests.helpers import echo, needs_nested_loops, virtual

CALLERS: dict[str, Callable[[WorkerPool[Any, Any]], Any]] = {
    "submit_nowait": lambda pool: pool.submit_nowait(1),
    "cancel": lambda pool: pool.cancel(),
    "drain": lambda pool: pool.drain(),
    "pause": lambda pool: pool.pause(),
    "resume": lambda pool: pool.resume(),
    "resize": lambda pool: pool.resize(2),
    "group": lambda pool: pool.group(),
    "queued": lambda pool: pool.queued(),
    "running": lambda pool: pool.running(),
    "cancel_queued": lambda pool: pool.cancel_queued(),
}
WAITERS: dict[str, Callable[[WorkerPool[Any, Any]], Any]] = {
    "submit": lambda pool: pool.submit(1),
    "run": lambda pool: pool.run(1),
    "map": lambda pool: anext(aiter(pool.map([1]))),
    "close": lambda pool: pool.close(),
    "join": lambda pool: pool.join(),
}


def advised(error: pytest.ExceptionInfo[WrongLoop]) -> str:
    """Return the expression that the message names."""
    found = re.search(r"(asyncio\.\w+|loop\.run_until_complete)\(.*\)(\.result\(\))?", str(error.value))
    assert found is not None, error.value
    return found[0]


@pytest.mark.parametrize("call", CALLERS)
@virtual
async def test_a_call_from_another_thread_names_the_way_to_do_it(call: str) -> None:
    def ask() -> Any:
        with pytest.raises(WrongLoop, match=r"another thread.*\.result\(\)$") as error:
            CALLERS[call](pool)
        return eval(advised(error), {"asyncio": asyncio, "pool": pool, "job": 3})

    async with WorkerPool(echo, workers=1) as pool:
        assert await asyncio.to_thread(ask) == 3
        assert await anyio.to_thread.run_sync(ask) == 3


@virtual
async def test_the_advice_works_in_a_thread_of_offload() -> None:
    def ask(job: int) -> Any:
        if job == 0:
            return 0
        with pytest.raises(WrongLoop) as error:
            pool.submit_nowait(0)
        return eval(advised(error), {"asyncio": asyncio, "pool": pool, "job": 0})

    async with WorkerPool(offload(ask), workers=2) as pool:
        assert await pool.run(1) == 0


@pytest.mark.parametrize("call", WAITERS)
@virtual
async def test_a_call_from_the_loop_of_another_thread_names_the_way_to_do_it(call: str) -> None:
    async def ask() -> Any:
        with pytest.raises(WrongLoop, match="another thread") as error:
            await WAITERS[call](pool)
        return await eval(advised(error), {"asyncio": asyncio, "pool": pool, "job": 3})

    async with WorkerPool(echo, workers=1) as pool:
        assert await asyncio.to_thread(asyncio.run, ask()) == 3


@pytest.mark.parametrize("call", CALLERS)
def test_a_loop_that_does_not_run_is_not_in_another_thread(call: str) -> None:
    loop = asyncio.new_event_loop()
    pool = WorkerPool(echo, workers=1)
    loop.run_until_complete(pool.start())
    with pytest.raises(WrongLoop, match="not the one running here") as error:
        CALLERS[call](pool)
    assert eval(advised(error), {"loop": loop, "pool": pool, "job": 3}) == 3
    with pytest.raises(WrongLoop, match="not the one running here"):  # nor is there one that could be waited for
        in_thread(lambda: CALLERS[call](pool))
    loop.run_until_complete(pool.close())
    loop.close()


def in_thread(call: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.to_thread(call))


@needs_nested_loops
@virtual
async def test_an_outer_loop_of_the_same_thread_is_not_in_another_thread() -> None:
    async def inner() -> None:
        with pytest.raises(WrongLoop, match="not the one running here"):
            await pool.run(1)

    async with WorkerPool(echo, workers=1) as pool:
        outer = asyncio.get_running_loop()
        asyncio._set_running_loop(None)  # what notebooks and nested runners do
        try:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(inner())
            loop.close()
        finally:
            asyncio._set_running_loop(outer)


def test_a_pool_does_not_move_to_the_next_loop() -> None:
    async def later() -> None:
        with pytest.raises((WrongLoop, PoolClosed), match="closed"):
            await pool.run(1)

    pool = WorkerPool(echo, workers=1)
    asyncio.run(pool.start())
    asyncio.run(later())


def test_a_closed_loop_is_named() -> None:
    loop = asyncio.new_event_loop()
    pool = WorkerPool(echo, workers=1)
    loop.run_until_complete(pool.start())
    loop.close()
    with pytest.raises(WrongLoop, match=r"an event loop that is closed: create a new pool in each asyncio\.run"):
        pool.submit_nowait(1)


@virtual
async def test_a_thread_may_run_jobs_through_anyio() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        values = await anyio.to_thread.run_sync(lambda: [anyio.from_thread.run(pool.run, job) for job in range(3)])
        assert values == [0, 1, 2]
    assert threading.current_thread() is threading.main_thread()
