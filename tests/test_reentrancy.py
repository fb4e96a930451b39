"""User code that calls its own pool in the middle of a step: hooks, sources, handlers that run the loop themselves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncpool import ConcurrencyLimit, Failed, JobHandle, RateLimit, WorkerPool
from asyncpool.testing import settle
from tests.helpers import assert_conserved, echo, needs_nested_loops, virtual

# -- Priorities


@virtual
async def test_a_priority_function_that_submits_gets_another_number() -> None:
    inner: list[JobHandle[int, int]] = []

    def priority(job: int) -> int:
        if job < 3:
            inner.append(pool.submit_nowait(job + 10))
        return job

    async with WorkerPool(echo, workers=1, queue_size=20, priority=priority) as pool:
        handles = [pool.submit_nowait(job) for job in range(5)]
        streamed = [outcome.job async for outcome in pool.outcomes([1, 20])]
        ids = [handle.id for handle in handles + inner]
        assert sorted(ids) == sorted(set(ids))
        assert [await handle for handle in handles + inner] == [0, 1, 2, 3, 4, 10, 11, 12, 11]
        assert sorted(streamed) == [1, 20]
        assert_conserved(pool)


@virtual
async def test_a_key_that_submits_while_it_is_compared_is_refused() -> None:
    refused: list[BaseException] = []

    class Key(int):
        def __lt__(self, other: object) -> bool:
            try:
                pool.submit_nowait(100)
            except RuntimeError as error:
                refused.append(error)
            return int(self) < int(other)  # type: ignore[call-overload, no-any-return]

    def priority(job: int) -> Any:
        return Key(job) if job < 100 else job

    async with WorkerPool(echo, workers=1, queue_size=1000, priority=priority) as pool:
        handles = []
        for job in (7, 3, 5, 1, 6, 2, 4, 0):
            try:
                handles.append(pool.submit_nowait(job))
            except RuntimeError as error:  # its own submission was refused, in the check of its key
                refused.append(error)
        await pool.join()
        assert_conserved(pool)
        assert all(handle.done() for handle in handles)
        assert len({handle.id for handle in handles}) == len(handles)
    assert any("must not submit a job while it is compared" in str(error) for error in refused)


LIMITERS: dict[str, Any] = {
    "none": None,
    "rate": RateLimit(100),
    "slots": ConcurrencyLimit(3),
    "rate and slots": [RateLimit(100), ConcurrencyLimit(3)],
}
ACTS: dict[str, Callable[[Any, list[Any]], object]] = {
    "cancel the first": lambda pool, handles: handles[2].cancel(),
    "cancel all": lambda pool, handles: pool.cancel_queued(),
    "let the last idle worker go": lambda pool, handles: pool.resize(2),
    "resize": lambda pool, handles: pool.resize(4),
    "pause": lambda pool, handles: (pool.pause(), asyncio.get_running_loop().call_soon(pool.resume)),
}


@pytest.mark.parametrize("limiter", LIMITERS)
@pytest.mark.parametrize("act", ACTS)
@virtual
async def test_a_key_does_as_it_likes_while_it_is_compared(act: str, limiter: str) -> None:
    is_armed = False

    class Key(int):
        def __lt__(self, other: object) -> bool:
            nonlocal is_armed
            if is_armed:
                is_armed = False
                ACTS[act](pool, handles)
            return int(self) < int(other)  # type: ignore[call-overload, no-any-return]

    async def handler(_: int) -> None:
        await asyncio.sleep(1.0)

    async with WorkerPool(handler, workers=3, queue_size=20, priority=Key, limiter=LIMITERS[limiter]) as pool:
        handles = [await pool.submit(job) for job in range(2)]
        await settle()
        pool.pause()
        handles += [await pool.submit(job) for job in range(2, 10)]
        is_armed = True
        pool.resume()
        await pool.join()
        assert all(handle.done() for handle in handles)
        assert_conserved(pool)


# -- Sources


@pytest.mark.parametrize(
    "act",
    [lambda pool: pool.pause(), lambda pool: pool.resize(1), lambda pool: pool.resize(2)],
    ids=["pause", "resize to 1", "resize to 2"],
)
@virtual
async def test_a_source_that_leaves_less_room_does_not_pass_the_bound(act: Callable[[Any], object]) -> None:
    pulled = 0

    def source() -> Iterator[int]:
        nonlocal pulled
        for job in range(100):
            pulled += 1
            if job == 3:
                act(pool)
            yield job

    async def forever(job: int) -> None:
        await asyncio.Event().wait()

    async with WorkerPool(forever, workers=10, queue_size=5) as pool:
        reading = asyncio.ensure_future(anext(aiter(pool.outcomes(source()))))
        await settle()
        # What ran or was accepted when it acted, the item itself, and what the queue holds.
        assert pool.stats.queued <= 5
        assert pulled <= 4 + 5
        reading.cancel()
        await asyncio.wait([reading])
        pool.cancel()


# -- Handles


@virtual
async def test_a_failure_of_a_job_that_its_owner_cancelled_is_not_unread() -> None:
    async def fails(job: int) -> None:
        try:
            await asyncio.sleep(1)
        finally:
            raise OSError("as a thread does, which cannot be cancelled")

    async with WorkerPool(fails, workers=1) as pool:
        handle: Any = await pool.submit(1)
        await settle()
        assert handle.cancel()
        await pool.join()
        assert isinstance(await handle.outcome(), Failed)
        dropped: Any = await pool.submit(2)
        await settle()
        assert dropped.cancel()
        del dropped
        await pool.join()
        await settle()
        assert pool.stats.failed == 2
        assert pool.stats.unread_failures == 0


# -- Handlers that run the loop

NESTED = """
import asyncio, sys
import nest_asyncio
from asyncpool import RateLimit, Retry, WorkerPool

nest_asyncio.apply()
options = eval(sys.argv[1])

async def handler(job):
    if job == 0:
        return asyncio.get_running_loop().run_until_complete(inner())  # as in a notebook
    await asyncio.sleep(0)
    return job

async def inner():
    return await pool.run(5) + await pool.run(6)

async def main():
    global pool
    async with WorkerPool(handler, workers=3, **options) as pool:
        print(await asyncio.wait_for(pool.run(0), 20))
        print(await pool.map(range(4)))

asyncio.run(main())
"""


@needs_nested_loops
@pytest.mark.parametrize(
    "options", ["{}", "{'retry': Retry(max_elapsed=60)}", "{'limiter': RateLimit(1000, burst=10)}"]
)
def test_a_handler_can_run_the_loop_in_its_first_step(options: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", NESTED, options], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stderr == ""
    assert ended.stdout == "11\n[11, 1, 2, 3]\n"
