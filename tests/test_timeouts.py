"""The timeout of an attempt."""

from __future__ import annotations

import asyncio
import math
import traceback
from typing import Any

import anyio
import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    Failed,
    JobExpired,
    JobTimeout,
    Retry,
    Succeeded,
    WorkerPool,
)
from asyncpool.testing import settle
from tests.helpers import TICK, TickingLoop, echo, fuzzed, ignores_cancel, now, sleeper, virtual


@virtual
async def test_a_job_that_takes_too_long_fails_with_job_timeout() -> None:
    async with WorkerPool(sleeper, workers=1, timeout=2) as pool:
        assert await pool.run(1.5) == 1.5
        with pytest.raises(JobTimeout, match="longer than its timeout of 2 s") as caught:
            await pool.run(3)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout == 2
        assert now() == pytest.approx(3.5)
        outcome = await (await pool.submit(3)).outcome()
        assert isinstance(outcome, Failed)
        assert outcome.seconds_running == pytest.approx(2)


@virtual
async def test_the_handler_sees_its_deadline() -> None:
    async def handler(job: int) -> float:
        await asyncio.sleep(1)
        return anyio.current_effective_deadline()

    async with WorkerPool(handler, workers=1, timeout=5) as pool:
        assert await pool.map([1, 2]) == pytest.approx([5, 6])
    async with WorkerPool(handler, workers=1) as pool:
        assert await pool.run(1) == math.inf


@virtual
async def test_the_deadline_reaches_into_tasks_of_the_handler() -> None:
    async def handler(job: int) -> float:
        deadlines = []

        async def child() -> None:
            deadlines.append(anyio.current_effective_deadline())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        return deadlines[0]

    async with WorkerPool(handler, workers=1, timeout=5) as pool:
        assert await pool.run(1) == pytest.approx(5)


@fuzzed
async def test_a_jobs_own_timeout_error_stays_what_it_is() -> None:
    async def handler(job: str) -> None:
        if job == "raise":
            raise TimeoutError("mine")
        if job == "asyncio":
            async with asyncio.timeout(1):
                await asyncio.sleep(100)
        with anyio.fail_after(1):
            await asyncio.sleep(100)

    async with WorkerPool(handler, workers=1, timeout=50) as pool:
        for job in ("raise", "asyncio", "anyio"):
            with pytest.raises(TimeoutError) as caught:
                await pool.run(job)
            assert not isinstance(caught.value, JobTimeout)


@fuzzed
async def test_inner_timeouts_do_not_swallow_that_of_the_pool() -> None:
    async def handler(job: str) -> None:
        if job == "asyncio":
            async with asyncio.timeout(100):
                await asyncio.sleep(1000)
        with anyio.move_on_after(100):
            await asyncio.sleep(1000)

    async with WorkerPool(handler, workers=2, timeout=2) as pool:
        outcomes = await pool.outcomes(["asyncio", "anyio"])
    assert all(isinstance(outcome.error, JobTimeout) for outcome in outcomes if isinstance(outcome, Failed))
    assert [type(outcome) for outcome in outcomes] == [Failed, Failed]
    assert now() == pytest.approx(2)


@fuzzed
async def test_a_job_that_swallows_its_cancellation_is_cancelled_once() -> None:
    cancels = 0

    async def handler(job: int) -> str:
        nonlocal cancels
        while now() < 10:
            try:
                await asyncio.sleep(10 - now())
            except asyncio.CancelledError:
                cancels += 1
        return "value"

    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        assert await pool.run(1) == "value"
    assert cancels == 1


@fuzzed
async def test_a_value_after_the_timeout_is_a_success() -> None:
    async def handler(job: int) -> int:
        try:
            return await sleeper(10)
        except asyncio.CancelledError:
            await asyncio.sleep(1)
            return job

    async with WorkerPool(handler, workers=1, timeout=2) as pool:
        outcome = await (await pool.submit(7)).outcome()
        assert isinstance(outcome, Succeeded)
        assert outcome.value == 7
        assert outcome.seconds_running == pytest.approx(3)


@fuzzed
async def test_cleanup_after_a_timeout_may_await() -> None:
    cleaned = []

    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(2)
            cleaned.append(job)

    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        with pytest.raises(JobTimeout):
            await pool.run(1)
    assert cleaned == [1]


@fuzzed
async def test_an_error_raised_while_cleaning_up_is_the_outcome() -> None:
    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise OSError("while cleaning up") from None

    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        with pytest.raises(OSError, match="while cleaning up"):
            await pool.run(1)


@pytest.mark.parametrize("workers", [1, 2, 5])
@fuzzed
async def test_a_timeout_never_costs_a_worker(workers: int) -> None:
    async with WorkerPool(sleeper, workers=workers, timeout=1) as pool:
        outcomes = await pool.outcomes([10] * 20)
        assert pool.stats.workers == workers
        assert await pool.map([0.5] * 10) == [0.5] * 10
    assert all(isinstance(outcome, Failed) for outcome in outcomes)
    assert now() == pytest.approx(20 / workers + math.ceil(10 / workers) * 0.5)


@fuzzed
async def test_a_requested_cancel_wins_over_a_timeout_of_the_same_tick() -> None:
    async with WorkerPool(sleeper, workers=1, timeout=2) as pool:
        handle = await pool.submit(10)
        await settle()
        for when in (math.nextafter(2, 0), 2, math.nextafter(2, 3)):
            asyncio.get_running_loop().call_at(when, handle.cancel)
        outcome = await handle.outcome()
        assert isinstance(outcome, Cancelled)
        assert outcome.reason is CancelReason.HANDLE


@fuzzed
async def test_a_job_that_ignores_its_timeout_holds_its_worker_and_shows_as_stuck() -> None:
    async with WorkerPool(ignores_cancel, workers=2, timeout=1, queue_size=5) as pool:
        stuck = await pool.submit(20)
        await asyncio.sleep(7)
        assert pool.stats.stuck == 1
        assert pool.stats.running == 1
        begun = [await pool.submit(0.5) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert pool.stats.running == 2
        for handle in begun:
            await handle
        await stuck
        assert pool.stats.stuck == 0
        assert pool.stats.peak_running == 2


@virtual
async def test_waiting_in_the_queue_does_not_count() -> None:
    async with WorkerPool(sleeper, workers=1, timeout=2) as pool:
        outcomes = await pool.outcomes([1.5] * 4)
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)


@virtual
async def test_the_error_of_a_timeout_says_where_the_job_was() -> None:
    async def deep() -> None:
        await asyncio.sleep(10)

    async def handler(job: int) -> None:
        await deep()

    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        [outcome] = await pool.outcomes([1])
    assert isinstance(outcome, Failed)
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(outcome.error.__traceback__)]
    assert names[:2] == ["handler", "deep"]


@virtual
async def test_a_job_that_ends_in_time_leaves_no_timer() -> None:
    async with WorkerPool(echo, workers=1, timeout=1000) as pool:
        await pool.map(range(10))
    await asyncio.sleep(1)
    loop: Any = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@fuzzed
async def test_a_job_that_ends_at_its_deadline_has_one_outcome() -> None:
    async with WorkerPool(sleeper, workers=1, timeout=2) as pool:
        outcome = await (await pool.submit(2)).outcome()
        assert isinstance(outcome, (Succeeded, Failed))
        stats = pool.stats
        assert stats.succeeded + stats.failed == 1
        assert await pool.run(1) == 1


@pytest.mark.parametrize("cleanup", [0, 1, 2])
@pytest.mark.parametrize("option", ["timeout", "max_elapsed"])
def test_a_deadline_that_passes_at_any_reading_of_the_clock_is_a_timeout(option: str, cleanup: int) -> None:
    """The clock goes on while the attempt is prepared: also between two lines, so the deadline can be past anywhere."""
    cancelled = 0

    async def handler(job: int) -> int:
        nonlocal cancelled
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            cancelled += 1
            for _ in range(cleanup):
                await asyncio.sleep(0)  # a scope that had expired would cancel again here
            raise
        return job

    async def main() -> int:
        """Return how many deadlines passed before the handler was called."""
        unrun = 0
        for ticks in range(1, 80):
            seconds = ticks * TICK / 2
            kind = JobTimeout if option == "timeout" else JobExpired
            timeout = seconds if option == "timeout" else None
            retry = None if option == "timeout" else Retry(max_elapsed=seconds)
            before = cancelled
            async with WorkerPool(handler, workers=1, timeout=timeout, retry=retry) as pool:
                [outcome] = await pool.outcomes([1])
            assert isinstance(outcome, Failed), ticks
            assert isinstance(outcome.error, kind), (ticks, outcome)
            assert cancelled - before in (0, 1), ticks
            unrun += cancelled == before
        return unrun

    with asyncio.Runner(loop_factory=TickingLoop) as runner:
        unrun = runner.run(main())
    assert unrun < 40
    assert option == "max_elapsed" or not unrun  # a timeout begins when the handler is called


def test_a_handler_that_swallows_a_deadline_which_was_past_goes_on() -> None:
    async def handler(job: int) -> int:
        for _ in range(3):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                job += 1
        return job

    async def main() -> list[int]:
        async with WorkerPool(handler, workers=2, timeout=TICK / 2) as pool:
            return await pool.map([10, 20, 30])

    with asyncio.Runner(loop_factory=TickingLoop) as runner:
        assert runner.run(main()) == [11, 21, 31]
