"""A handler, or a library that it uses, swallows a cancellation: the next request cancels it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncpool import Cancelled, CancelReason, Failed, JobTimeout, WorkerPool
from asyncpool.testing import settle
from tests.helpers import now, virtual


class Stubborn:
    """A handler that swallows its first cancellations, and obeys the next."""

    def __init__(self, swallows: int) -> None:
        self.swallows = swallows
        self.cancelled_at: list[float] = []

    async def __call__(self, job: int, *resource: object) -> None:
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.cancelled_at.append(now())
                if len(self.cancelled_at) > self.swallows:
                    raise


@virtual
async def test_a_handle_cancels_again() -> None:
    handler = Stubborn(2)
    async with WorkerPool(handler, workers=1) as pool:
        handle = await pool.submit(1)
        for _ in range(2):
            await settle()
            assert handle.cancel()
            await asyncio.sleep(1)
            assert not handle.done()
        assert handle.cancel()
        assert isinstance(await handle.outcome(), Cancelled)
    assert handler.cancelled_at == [0, 1, 2]


@virtual
async def test_two_calls_of_a_handle_in_one_moment_are_one_request() -> None:
    handler = Stubborn(1)
    async with WorkerPool(handler, workers=1) as pool:
        handle = await pool.submit(1)
        await settle()
        assert handle.cancel()
        await asyncio.sleep(0.05)
        assert handle.cancel()
        await asyncio.sleep(1)
        assert handler.cancelled_at == [0]
        assert handle.cancel()
        await handle.outcome()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 3.0])
@virtual
async def test_a_handle_cancels_after_a_timeout(delay: float) -> None:
    handler = Stubborn(1)
    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        handle = await pool.submit(1)
        await asyncio.sleep(1 + delay)
        await settle()
        assert handle.cancel()
        outcome = await handle.outcome()
    assert isinstance(outcome, Cancelled)
    assert outcome.reason is CancelReason.HANDLE
    assert handler.cancelled_at == [1, pytest.approx(max(1.1, 1 + delay))]


@virtual
async def test_a_timeout_cancels_after_a_handle() -> None:
    handler = Stubborn(1)
    async with WorkerPool(handler, workers=1, timeout=2) as pool:
        handle = await pool.submit(1)
        await asyncio.sleep(1)
        assert handle.cancel()
        outcome = await handle.outcome()
    assert isinstance(outcome, Cancelled)  # a requested cancel wins
    assert handler.cancelled_at == [1, 2]


@virtual
async def test_the_end_of_a_stream_cancels_after_a_timeout() -> None:
    handler = Stubborn(1)
    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        stream = pool.outcomes([1])
        reading = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(3)
        await stream.aclose()
        reading.cancel()
        await asyncio.wait([reading])
    assert handler.cancelled_at == [1, 3]


@virtual
async def test_failures_of_a_stream_cancel_its_other_jobs_once() -> None:
    cancels: list[int] = []

    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(job)
        except asyncio.CancelledError:
            cancels.append(job)
            await asyncio.sleep(10)  # cleans up while others fail
            cancels.append(-job)
            raise
        raise OSError(job)

    async with WorkerPool(handler, workers=5) as pool:
        with pytest.raises(OSError, match="2"):
            await pool.map([4, 3, 2, 50, 60], ordered=False)
        await pool.join()
    assert sorted(cancels) == [-60, -50, -4, -3, 3, 4, 50, 60]


@pytest.mark.parametrize("swallows", [1, 2])
@virtual
async def test_the_shutdown_cancels_again_at_half_of_its_grace(swallows: int) -> None:
    handler = Stubborn(swallows)
    pool = WorkerPool(handler, workers=1, timeout=1)
    await pool.start()
    handle = await pool.submit(1)
    await asyncio.sleep(3)  # a swallowed timeout, for one
    report = await pool.close(drain_timeout=0, grace=30)
    assert not report.abandoned
    assert handler.cancelled_at == [1, 3, 18][: swallows + 1]
    assert isinstance(await handle.outcome(), Cancelled)


@virtual
async def test_a_shutdown_right_after_another_request_leaves_time_to_clean_up() -> None:
    cleaned: list[int] = []

    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2)
            cleaned.append(job)

    with pytest.raises(ValueError, match="the loop is left"):
        async with WorkerPool(handler, workers=2) as pool:
            async with pool.group() as group:
                await group.submit(1)
                await group.submit(2)
            await settle()
            group.cancel()
            pool.cancel()
            raise ValueError("the loop is left")
    assert sorted(cleaned) == [1, 2]


@virtual
async def test_a_grace_that_is_shortened_has_another_half() -> None:
    handler = Stubborn(1)
    pool = WorkerPool(handler, workers=1)
    await pool.start()
    await pool.submit(1)
    await settle()
    closing = asyncio.create_task(pool.close(drain_timeout=0, grace=1000))
    await asyncio.sleep(10)
    await pool.close(grace=20)
    await closing
    assert pool.report is not None
    assert not pool.report.abandoned
    assert 10 < handler.cancelled_at[1] <= 30


@virtual
async def test_the_end_of_a_resource_cancels_after_a_timeout() -> None:
    handler, lost = Stubborn(1), asyncio.Event()

    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail_at(2.0))
            yield 1

    async def fail_at(seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not lost.is_set():
            lost.set()
            raise ConnectionError("lost")

    async with WorkerPool(handler, workers=1, timeout=1, resource=resource) as pool:
        outcome = await (await pool.submit(1)).outcome()
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, JobTimeout)  # the first error says why
    assert handler.cancelled_at == [1, 2]
