"""What a pool tells its policy: every field of `PoolLoad`."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import Any

import pytest

import asyncpool
from asyncpool import Failed, JobTimeout, Permanent, PoolLoad, QueueFull, RateLimit, Retry, RetryAfter, WorkerPool
from asyncpool._core.load import LoadWindow
from asyncpool.testing import settle
from tests.helpers import echo, sleeper, virtual
from tests.scaling.tools import SOON, Call, Connections, Own, fails, use


def test_every_field_of_a_load_is_held_by_a_test_below() -> None:
    known = {
        *("now", "elapsed", "workers", "starting", "idle", "running", "peak_running", "blocked", "queued", "waiting"),
        *("oldest_wait", "rejected", "delayed", "is_throttled", "succeeded", "failed", "seconds", "errors"),
    }
    assert {field.name for field in fields(PoolLoad)} == known


@virtual
async def test_the_first_load_is_that_of_a_pool_that_has_done_nothing() -> None:
    policy = Own(3, initial_workers=3)
    await asyncio.sleep(7)
    async with WorkerPool(sleeper, workers=policy):
        assert policy.loads == [PoolLoad(now=7, workers=3, idle=3)]


@virtual
async def test_a_load_has_all_that_is_the_case_and_has_happened_since() -> None:
    """Four workers: one opens, one runs, one waits for the pool, one is idle; and what ended meanwhile."""
    errors = [ConnectionError("1"), RetryAfter(1000), Permanent(), ValueError("2")]

    async def handler(job: Any, connection: int) -> Any:
        if job == "nested":
            return await pool.run("child")
        if isinstance(job, BaseException):
            raise job
        if isinstance(job, float):
            await asyncio.sleep(job)
        elif job == "child":
            await asyncio.sleep(1000)
        return job

    policy = Own(4, initial_workers=4, interval=100)
    connections = Connections(refused_from=4)
    pool: WorkerPool[Any, Any] = WorkerPool(
        handler,
        workers=policy,
        resource=connections,
        recycle_on=(),
        retry=Retry(attempts=2, backoff=1000, max_backoff=1000, jitter=False, on=ConnectionError),
        queue_size=10,
    )
    await pool.start()
    await asyncio.sleep(1)
    handles: list[Any] = [await pool.submit(job) for job in (0.5, 0.25, 0.125)]
    await asyncio.sleep(1)
    handles += [await pool.submit(job) for job in errors]
    await settle()
    handles.append(await pool.submit("nested"))
    await asyncio.sleep(97.9)
    del policy.loads[:-1]
    await asyncio.sleep(0.2)
    [_, load] = policy.loads
    assert load == PoolLoad(
        now=100.0,
        elapsed=100.0,
        workers=4,
        starting=1,
        idle=1,
        running=2,
        peak_running=3,
        blocked=1,
        queued=0,
        waiting=0,
        rejected=0,
        delayed=2,
        is_throttled=False,
        succeeded=3,
        failed=4,
        seconds=(0.125, 0.25, 0.5),
        errors=tuple(errors),
    )
    pool.cancel()
    await pool.close()
    for handle in handles:
        await handle.outcome()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="first in, first out"),
        pytest.param({"retry": Retry(attempts=2, backoff=20, max_backoff=20, jitter=False)}, id="with retries"),
        pytest.param({"priority": lambda job: job}, id="by priority"),
    ],
)
@virtual
async def test_a_load_says_how_long_the_oldest_queued_job_has_waited(options: dict[str, Any]) -> None:
    policy = Own(1, interval=1)
    async with WorkerPool(sleeper, workers=policy, **options) as pool:
        await pool.submit(100)
        await asyncio.sleep(10)
        assert policy.loads[-1].oldest_wait == 0.0
        oldest = await pool.submit(50)
        await asyncio.sleep(5)
        await pool.submit(40)
        await asyncio.sleep(1.5)
        assert policy.loads[-1].oldest_wait == pytest.approx(policy.loads[-1].now - 10)
        oldest.cancel()
        await asyncio.sleep(2)
        assert policy.loads[-1].oldest_wait == pytest.approx(policy.loads[-1].now - 15)
        pool.cancel()


@virtual
async def test_what_a_job_that_came_back_has_waited_counts_from_its_return() -> None:
    async def handler(job: float) -> None:
        if job < 1 and asyncpool.current_job().attempt == 1:
            raise ConnectionError
        await asyncio.sleep(job)

    policy = Own(1, interval=1)
    retry = Retry(attempts=2, backoff=20, max_backoff=20, jitter=False)
    async with WorkerPool(handler, workers=policy, retry=retry) as pool:
        await pool.submit(0.5)
        await pool.submit(1000)
        await asyncio.sleep(23)
        assert policy.loads[-1].oldest_wait == pytest.approx(policy.loads[-1].now - 20)
        pool.cancel()


@virtual
async def test_what_has_happened_is_told_once() -> None:
    policy = Own(2)
    async with WorkerPool(fails, workers=policy, queue_size=0) as pool:
        await pool.run(1)
        [failed] = [outcome async for outcome in pool.outcomes([KeyError()])]
        assert isinstance(failed, Failed)
        pool.pause()
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await asyncio.sleep(1)
    told = [load for load in policy.loads if load.succeeded or load.failed or load.rejected or load.errors]
    assert len(told) == 1
    assert (told[0].succeeded, told[0].failed, told[0].rejected, told[0].peak_running) == (1, 1, 1, 1)
    assert told[0].seconds == (0.0,)
    assert policy.loads[-1].peak_running == 0


@virtual
async def test_elapsed_is_the_time_since_the_last_question() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for seconds in (0.05, 3, 100):
            await pool.run(seconds)
        await asyncio.sleep(1)
    assert policy.loads[0].elapsed == 0
    gaps = [later - earlier for earlier, later in zip(policy.times, policy.times[1:], strict=False)]
    assert [load.elapsed for load in policy.loads[1:]] == gaps
    assert max(gaps) > 90


@virtual
async def test_workers_are_those_that_were_decided_last() -> None:
    policy = Own(lambda load: min(5, load.workers + 1))
    connections = Connections(20)
    pool = WorkerPool(use, workers=policy, resource=connections)
    starting = asyncio.create_task(pool.start())
    await starting
    await asyncio.sleep(10)
    assert [load.workers for load in policy.loads[:5]] == [1, 2, 3, 4, 5]
    assert [load.starting for load in policy.loads[:5]] == [0, 1, 2, 3, 4]
    assert pool.stats.workers == 1
    await pool.close()


@virtual
async def test_workers_that_retire_after_their_job_are_no_workers_but_their_jobs_run() -> None:
    policy = Own(lambda load: 4 if load.now < 1 else 1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for _ in range(4):
            await pool.submit(5)
        await asyncio.sleep(1.5)
        await pool.submit(0)
        await asyncio.sleep(SOON)
        load = policy.loads[-1]
        assert (load.workers, load.running, load.idle, load.queued) == (1, 4, 0, 1)


@virtual
async def test_the_peak_of_running_jobs_is_that_since_the_last_question() -> None:
    policy = Own(5, initial_workers=5, interval=10)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await asyncio.gather(*(pool.run(1) for _ in range(4)))
        await pool.run(1)
        await asyncio.sleep(10)
        await asyncio.gather(*(pool.run(15) for _ in range(2)))
        await asyncio.sleep(20)
        assert pool.stats.peak_running == 4
    assert [load.peak_running for load in policy.loads if load.peak_running] == [4, 2, 2]


@virtual
async def test_queued_jobs_and_those_who_wait_for_room_are_told() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, queue_size=3) as pool:
        stream = asyncio.ensure_future(drained(pool))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(pool.run(1)) for _ in range(4)]
        await asyncio.sleep(SOON)
        load = policy.loads[-1]
        assert (load.queued, load.waiting, load.backlog) == (3, 5, 8)
        await asyncio.gather(stream, *waiting)


async def drained(pool: WorkerPool[float, float]) -> list[float]:
    return await pool.map([1.0] * 10)


@virtual
async def test_rejections_are_told_however_they_come() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, queue_size=0) as pool:
        first = asyncio.create_task(pool.run(2))
        await asyncio.sleep(1)
        for _ in range(3):
            with pytest.raises(QueueFull):
                pool.submit_nowait(1)
        with pytest.raises(QueueFull):
            await pool.run(1, if_full="raise")
        await asyncio.sleep(SOON)
        assert sum(load.rejected for load in policy.loads) == 4
        await first


@virtual
async def test_delayed_jobs_are_those_that_back_off_and_those_parked_for_their_own_rate() -> None:
    policy = Own(2)
    limiter = RateLimit.per_key(str, 0.01)
    retry = Retry(backoff=500, max_backoff=500, jitter=False)
    async with WorkerPool(fails, workers=policy, limiter=limiter, retry=retry) as pool:
        for job in ("a", "a", "a", ConnectionError()):
            await pool.submit(job)
        await asyncio.sleep(1)
        load = policy.loads[-1]
        assert (load.delayed, load.queued, load.backlog, load.is_throttled) == (3, 0, 0, False)
        pool.cancel()


@virtual
async def test_a_pool_is_throttled_while_it_is_paused() -> None:
    policy = Own(1)
    async with WorkerPool(echo, workers=policy) as pool:
        pool.pause()
        await asyncio.sleep(1)
        assert policy.loads[-1].is_throttled
        pool.resume()
        await asyncio.sleep(1)
        assert not policy.loads[-1].is_throttled


@virtual
async def test_a_pool_is_throttled_while_the_rate_limit_of_all_jobs_is_closed() -> None:
    policy = Own(1)
    async with WorkerPool(echo, workers=policy, limiter=RateLimit(0.1)) as pool:
        assert not policy.loads[-1].is_throttled
        handles = [await pool.submit(job) for job in range(2)]
        await asyncio.sleep(9)
        assert policy.loads[-1].is_throttled
        for handle in handles:
            await handle


@virtual
async def test_a_pool_is_throttled_while_a_job_waits_in_its_limiter() -> None:
    policy = Own(2)
    semaphore = asyncio.Semaphore(1)
    async with WorkerPool(sleeper, workers=policy, limiter=semaphore) as pool:
        handles = [await pool.submit(10) for _ in range(2)]
        await asyncio.sleep(9)
        assert policy.loads[-1].is_throttled
        await handles[0]
        await asyncio.sleep(SOON)
        assert not policy.loads[-1].is_throttled
        assert policy.loads[-1].running == 1


@virtual
async def test_blocked_jobs_are_those_that_wait_for_this_pool_and_were_not_woken() -> None:
    policy = Own(3, initial_workers=3)
    pool: WorkerPool[Call, Any] = WorkerPool(workers=policy)
    async with WorkerPool(sleeper, workers=1) as other, pool:

        async def waits_for_own() -> None:
            await pool.run(lambda: asyncio.sleep(5))

        async def waits_for_other() -> None:
            await other.run(5)

        handles = [await pool.submit(call) for call in (waits_for_own, waits_for_other)]
        await asyncio.sleep(1)
        assert policy.loads[-1].running == 3
        assert policy.loads[-1].blocked == 1
        for handle in handles:
            await handle


@pytest.mark.parametrize(
    "raised", [RetryAfter(1), RetryAfter(1, pause=True), Permanent("no"), KeyError("x"), TimeoutError("mine")], ids=repr
)
@virtual
async def test_errors_are_what_the_handler_has_raised(raised: BaseException) -> None:
    policy = Own(1)

    async def handler(job: Any) -> None:
        raise raised from ConnectionError("the cause")

    async with WorkerPool(handler, workers=policy) as pool:
        handle = await pool.submit(1)
        await handle.outcome()
        await asyncio.sleep(2)
    [error] = [error for load in policy.loads for error in load.errors]
    assert error is raised


@virtual
async def test_the_error_of_an_attempt_that_timed_out_is_job_timeout() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, timeout=1) as pool:
        await (await pool.submit(5)).outcome()
        await asyncio.sleep(1)
    [error] = [error for load in policy.loads for error in load.errors]
    assert isinstance(error, JobTimeout)
    assert [load.seconds for load in policy.loads if load.failed] == [()]


@virtual
async def test_each_attempt_that_failed_counts() -> None:
    policy = Own(1)
    async with WorkerPool(fails, workers=policy, retry=Retry(attempts=3, backoff=0.01)) as pool:
        outcome = await (await pool.submit(OSError())).outcome()
        assert outcome.attempts == 3
        await asyncio.sleep(1)
    assert sum(load.failed for load in policy.loads) == 3
    assert sum(len(load.errors) for load in policy.loads) == 3
    assert sum(load.succeeded for load in policy.loads) == 0


@virtual
async def test_what_was_cancelled_is_neither_a_success_nor_a_failure() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        handles = [await pool.submit(5) for _ in range(3)]
        await asyncio.sleep(1)
        for handle in handles:
            handle.cancel()
        await asyncio.sleep(1)
    assert [load for load in policy.loads if load.succeeded or load.failed or load.errors or load.seconds] == []


@virtual
async def test_jobs_that_fail_without_an_attempt_are_no_failures_of_attempts() -> None:
    policy = Own(1)
    async with WorkerPool(sleeper, workers=policy, retry=Retry(max_elapsed=2)) as pool:
        handles = [await pool.submit(1) for _ in range(5)]
        for handle in handles:
            await handle.outcome()
        await asyncio.sleep(1)
        assert pool.stats.failed > sum(load.failed for load in policy.loads) > 0
    for load in policy.loads:
        assert load.failed == len(load.errors)


@virtual
async def test_of_many_errors_the_first_thousand_are_told_and_all_are_counted() -> None:
    policy = Own(1, interval=10)

    async def handler(job: int) -> None:
        raise ValueError(job)

    async with WorkerPool(handler, workers=policy) as pool:
        async for _ in pool.outcomes(range(1500)):
            pass
        await asyncio.sleep(11)
    [load] = [load for load in policy.loads if load.failed]
    assert load.failed == 1500
    assert [error.args for error in load.errors] == [(number,) for number in range(1000)]


@virtual
async def test_of_many_running_times_an_even_sample_is_told_and_all_are_counted() -> None:
    policy = Own(1, interval=100_000)
    async with WorkerPool(sleeper, workers=policy) as pool:
        for _ in range(10):
            await pool.map([number / 1000 for number in range(1000)])
        await asyncio.sleep(100_001)
    [load] = [load for load in policy.loads if load.succeeded]
    assert load.succeeded == 10_000
    assert 2000 <= len(load.seconds) <= 4096
    assert sum(load.seconds) / len(load.seconds) == pytest.approx(0.4995, rel=0.02)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64, 1000, 5000])
def test_the_sample_takes_each_nth_whatever_the_batches(batch: int) -> None:
    recent = LoadWindow(0.0, 0)
    times = [float(number) for number in range(20_000)]
    for start in range(0, len(times), batch):
        recent.take_seconds(times[start : start + batch])
    assert recent.seconds == times[:: int(recent.seconds[1] - recent.seconds[0])]
    assert 2000 <= len(recent.seconds) <= 4096
