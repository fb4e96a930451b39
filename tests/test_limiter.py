"""A limiter of another library around each job."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from aiolimiter import AsyncLimiter

from asyncpool import Cancelled, Failed, WorkerPool
from asyncpool.testing import ManualHandler, settle
from tests.helpers import assert_conserved, echo, fuzzed, now, sleeper, virtual


class Recorder:
    """A limiter that records who is in it, and may fail."""

    def __init__(self, enter: BaseException | None = None, leave: BaseException | None = None) -> None:
        self.inside: list[Any] = []
        self.entered = 0
        self.left_elsewhere = False
        self.enter = enter
        self.leave = leave

    async def __aenter__(self) -> None:
        if self.enter:
            raise self.enter
        self.entered += 1
        self.inside.append(asyncio.current_task())

    async def __aexit__(self, *exc: object) -> None:
        self.left_elsewhere |= asyncio.current_task() not in self.inside
        self.inside.remove(asyncio.current_task())
        if self.leave:
            raise self.leave


@virtual
async def test_an_aiolimiter_spreads_the_starts() -> None:
    begun = []

    async def handler(job: int) -> None:
        begun.append(now())

    async with WorkerPool(handler, workers=20, limiter=AsyncLimiter(2, 1)) as pool:
        await pool.map(range(12))
    assert len(begun) == 12
    for start in begun:
        assert sum(start <= other < start + 1 for other in begun) <= 2 + 2


@pytest.mark.parametrize("make", [asyncio.Semaphore, anyio.CapacityLimiter])
@fuzzed
async def test_a_semaphore_bounds_jobs_over_two_pools(make: Any) -> None:
    handler = ManualHandler[int, None]()
    semaphore = make(3)
    async with (
        WorkerPool(handler, workers=5, limiter=semaphore) as first,
        WorkerPool(handler, workers=5, limiter=semaphore) as second,
    ):
        for job in range(6):
            await first.submit(job)
            await second.submit(job)
        while first.stats.succeeded + second.stats.succeeded < 12:
            await settle()
            assert 0 < len(handler.running) <= 3
            handler.finish_all()
            await settle()
    assert handler.peak_running == 3


@fuzzed
async def test_the_limiter_is_entered_and_left_in_the_jobs_own_task() -> None:
    limiter = Recorder()
    async with WorkerPool(sleeper, workers=3, limiter=limiter) as pool:
        await pool.map([1] * 9)
    assert limiter.entered == 9
    assert limiter.inside == []
    assert not limiter.left_elsewhere


@fuzzed
async def test_waiting_for_the_limiter_is_not_counted_in_the_timeout() -> None:
    async with WorkerPool(sleeper, workers=3, timeout=2, limiter=asyncio.Semaphore(1)) as pool:
        outcomes = await pool.outcomes([1.5] * 3)
    assert [outcome.unwrap() for outcome in outcomes] == [1.5] * 3
    assert sorted(outcome.seconds_queued for outcome in outcomes) == [0, 1.5, 3]
    assert {outcome.seconds_running for outcome in outcomes} == {1.5}


@fuzzed
async def test_a_job_that_waits_for_the_limiter_holds_its_worker() -> None:
    semaphore = asyncio.Semaphore(1)
    await semaphore.acquire()
    async with WorkerPool(sleeper, workers=2, limiter=semaphore) as pool:
        for _ in range(3):
            await pool.submit(1)
        await settle()
        assert pool.stats.running == 2
        semaphore.release()


@pytest.mark.parametrize("how", ["handle", "shutdown"])
@fuzzed
async def test_a_job_cancelled_while_it_waits_for_the_limiter_had_not_started(how: str) -> None:
    semaphore = asyncio.Semaphore(1)
    await semaphore.acquire()
    begun: list[int] = []

    async def handler(job: int) -> None:
        begun.append(job)

    pool = WorkerPool(handler, workers=1, limiter=semaphore)
    await pool.start()
    handle = await pool.submit(1)
    await settle()
    if how == "handle":
        handle.cancel()
    report = await pool.close(drain_timeout=0)
    outcome = await handle.outcome()
    assert isinstance(outcome, Cancelled)
    assert not outcome.started
    assert outcome.seconds_running == 0
    assert begun == []
    assert [entry.started for entry in report.unfinished] == ([] if how == "handle" else [False])
    semaphore.release()
    assert not semaphore.locked()


@fuzzed
async def test_the_limiter_is_left_when_the_job_fails_is_cancelled_or_times_out() -> None:
    semaphore = asyncio.Semaphore(2)

    async def handler(job: str) -> None:
        if job == "fail":
            raise ValueError
        await asyncio.sleep(100)

    async with WorkerPool(handler, workers=3, timeout=5, limiter=semaphore) as pool:
        cancelled = await pool.submit("cancel")
        await settle()
        cancelled.cancel()
        await pool.outcomes(["fail", "time out", "fail"])
        assert not semaphore.locked()
        assert semaphore._value == 2
        assert_conserved(pool)


@pytest.mark.parametrize("where", ["enter", "leave"])
@fuzzed
async def test_an_error_of_the_limiter_fails_the_job_and_costs_no_worker(where: str) -> None:
    limiter = Recorder(**{where: OSError("limiter")})
    async with WorkerPool(echo, workers=1, limiter=limiter) as pool:
        with pytest.raises(OSError, match="limiter"):
            await pool.run(1)
        setattr(limiter, where, None)
        assert await pool.run(2) == 2


@fuzzed
async def test_a_limiter_that_swallows_errors_does_not_make_a_failure_a_success() -> None:
    class Swallows(Recorder):
        async def __aexit__(self, *exc: object) -> bool:  # type: ignore[override]
            await super().__aexit__(*exc)
            return True

    async def handler(job: int) -> None:
        raise ValueError(job)

    async with WorkerPool(handler, workers=1, limiter=Swallows()) as pool:
        [outcome] = await pool.outcomes([1])
        assert isinstance(outcome, Failed)
