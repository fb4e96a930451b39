"""What a failure keeps alive: nothing, once nobody has it, and without the help of the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    DeadlineExceeded,
    Failed,
    PoolClosed,
    PoolDeadlock,
    Retry,
    StreamClosed,
    TooManyFailures,
    WorkerPool,
)
from asyncpool.testing import settle
from tests.helpers import virtual


class Thing:
    """What can be seen to be collected."""


class Oops(ValueError):
    """Errors of the standard library take no weak references."""


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def helper(job: object) -> None:
    await asyncio.sleep(0)
    raise Oops(job)


async def raises(job: object) -> None:
    raise Oops(job)


async def raises_later(job: object) -> None:
    await helper(job)


async def exits(job: object) -> None:
    raise SystemExit(3)


async def too_slow(job: object) -> None:
    await sleeps(Thing())


async def sleeps(thing: Thing) -> None:
    await asyncio.sleep(100)


async def by_run(pool: WorkerPool[Any, Any]) -> None:
    await pool.run(1)


async def by_handle(pool: WorkerPool[Any, Any]) -> None:
    await (await pool.submit(1))


async def by_map(pool: WorkerPool[Any, Any]) -> None:
    await pool.map([1, 2])


async def by_map_in_a_loop(pool: WorkerPool[Any, Any]) -> None:
    stream = pool.map([1, 2], ordered=False)
    async for _ in stream:
        pass


async def by_map_with_progress(pool: WorkerPool[Any, Any]) -> None:
    async for _ in pool.map([1, 2], progress=True):
        pass


async def by_map_of_its_own(pool: WorkerPool[Any, Any]) -> None:
    await asyncpool.map(pool._parts.dispatcher._handler, [1, 2], workers=1, timeout=1)


async def by_unwrap(pool: WorkerPool[Any, Any]) -> None:
    (await (await pool.submit(1)).outcome()).unwrap()


async def by_another_pool(pool: WorkerPool[Any, Any]) -> None:
    async with WorkerPool(pool.run, workers=1) as outer:
        await outer.run(1)


async def by_source(pool: WorkerPool[Any, Any]) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    stream = pool.outcomes(source())
    async for _ in stream:
        pass


WAYS = [
    *(by_run, by_handle, by_map, by_map_in_a_loop, by_map_with_progress, by_map_of_its_own, by_unwrap),
    *(by_another_pool, by_source),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("handler", [raises, raises_later, exits, too_slow])
@virtual
async def test_a_failure_that_is_raised_makes_no_reference_cycle(
    handler: Callable[[Any], Awaitable[Any]], way: Callable[[WorkerPool[Any, Any]], Awaitable[None]]
) -> None:
    seen: list[weakref.ref[Thing]] = []

    async def call() -> None:
        of_the_caller = Thing()
        seen.append(weakref.ref(of_the_caller))
        await way(pool)

    async with WorkerPool(handler, workers=2, timeout=1) as pool:
        for _ in range(3):
            text = ""
            try:
                await call()
            except Exception as error:
                text = "".join(traceback.format_exception(error))
            assert "in call" in text  # the line numbers are kept
        await settle()
        assert [ref() for ref in seen] == [None] * 3


@pytest.mark.parametrize("limits", [{"max_failures": 1}, {"deadline": 0.5}, {"max_failures": 0.5, "ordered": True}])
@pytest.mark.parametrize("method", ["map", "outcomes"])
@virtual
async def test_a_limit_that_stops_a_stream_makes_no_reference_cycle(method: str, limits: dict[str, Any]) -> None:
    seen: list[weakref.ref[Thing]] = []

    async def call() -> None:
        of_the_caller = Thing()
        seen.append(weakref.ref(of_the_caller))
        async for _ in getattr(pool, method)(range(4), **limits):
            pass

    async with WorkerPool(too_slow, workers=2, timeout=1) as pool:
        with pytest.raises((TooManyFailures, DeadlineExceeded)):
            await call()
        await settle()
        assert [ref() for ref in seen] == [None]


@pytest.mark.parametrize("handler", [raises, raises_later, too_slow])
@virtual
async def test_a_failure_that_nobody_reads_makes_no_reference_cycle(handler: Callable[[Any], Awaitable[Any]]) -> None:
    async with WorkerPool(handler, workers=2, timeout=1, retry=Retry(attempts=2, backoff=1)) as pool:
        outcomes = await pool.outcomes(Thing() for _ in range(4))
        assert all(isinstance(outcome, Failed) for outcome in outcomes)
        seen = [weakref.ref(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)]
        jobs = [weakref.ref(outcome.job) for outcome in outcomes]
        del outcomes
        await settle()
        assert [ref() for ref in seen + jobs] == [None] * 8


@virtual
async def test_a_stream_does_not_keep_its_last_input_while_it_waits_for_the_next() -> None:
    seen: list[weakref.ref[Thing]] = []
    more = asyncio.Event()

    class Source:
        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> Thing:
            if seen:
                await more.wait()
                raise StopAsyncIteration
            thing = Thing()
            seen.append(weakref.ref(thing))
            return thing

    async def handler(job: Thing) -> None:
        pass

    async with WorkerPool(handler, workers=1) as pool:
        stream = aiter(pool.outcomes(Source()))
        await anext(stream)
        await settle()
        assert seen[0]() is None
        more.set()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def waits_by_run(pool: WorkerPool[Any, Any]) -> None:
    await pool.run(2)


async def waits_by_handle(pool: WorkerPool[Any, Any]) -> None:
    await (await pool.submit(2))


async def waits_by_submit(pool: WorkerPool[Any, Any]) -> None:
    for _ in range(3):
        await pool.submit(2)


async def waits_by_map(pool: WorkerPool[Any, Any]) -> None:
    await pool.map([2])


async def waits_by_group(pool: WorkerPool[Any, Any]) -> None:
    group = pool.group(window=1)
    for _ in range(3):
        await group.submit(2)


@pytest.mark.parametrize("queue_size", [0, 1])
@pytest.mark.parametrize("wait", [waits_by_run, waits_by_handle, waits_by_submit, waits_by_map, waits_by_group])
@virtual
async def test_a_wait_that_would_never_end_makes_no_reference_cycle(
    wait: Callable[[WorkerPool[Any, Any]], Awaitable[None]], queue_size: int
) -> None:
    seen: list[weakref.ref[Thing]] = []

    async def call() -> None:
        of_the_caller = Thing()
        seen.append(weakref.ref(of_the_caller))
        await wait(pool)

    async def handler(job: int) -> None:
        if job == 1:
            try:
                await call()
            except PoolDeadlock:
                pass
            assert seen[0]() is None

    async with WorkerPool(handler, workers=1, queue_size=queue_size) as pool:
        await pool.run(1)


@virtual
async def test_the_end_of_a_stream_is_told_once() -> None:
    async with WorkerPool(raises, workers=1) as pool:
        stream = aiter(pool.map([1]))
        with pytest.raises(ValueError):
            await anext(stream)
        for _ in range(2):
            with pytest.raises(StreamClosed, match="read to its end"):
                await anext(stream)


@virtual
async def test_a_group_that_was_read_to_the_end_of_its_pool_still_says_that_the_pool_is_closed() -> None:
    async with WorkerPool(raises, workers=1) as pool:
        group = pool.group()
    with pytest.raises(PoolClosed):
        await anext(aiter(group))
    with pytest.raises(PoolClosed):
        await group.submit(1)
