"""`queue_timeout=`: a job that waits too long for its first attempt fails unrun, exactly then, wherever it waits."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import pytest

from asyncpool import (
    CancelReason,
    DeadLetters,
    Failed,
    JobExpired,
    PoolClosed,
    RateLimit,
    Resource,
    Retry,
    RetryAfter,
    Succeeded,
    WorkerPool,
    current_job,
    map,
    outcomes,
)
from asyncpool._core import timers
from asyncpool.events import JobEnded, JobStarted
from asyncpool.testing import settle
from tests.engines.conftest import no_signs_of_life  # noqa: F401  # a fixture
from tests.engines.memory import InMemory, Portable
from tests.helpers import assert_conserved, compute, echo, fuzzed, now, sleeper, virtual
from tests.test_slices import longest_iteration

pytestmark = pytest.mark.usefixtures("no_signs_of_life")


async def expired(handle: Any) -> float:
    """Return when a job failed because it did not start in time."""
    outcome = await handle.outcome()
    assert isinstance(outcome, Failed)
    assert type(outcome.error) is JobExpired
    assert str(outcome.error) == f"the job did not start within {outcome.error.queue_timeout:g} s of its acceptance"
    assert outcome.error.max_elapsed is None
    assert (outcome.attempts, outcome.worker, outcome.seconds_running) == (0, None, 0.0)
    assert outcome.seconds_queued == pytest.approx(outcome.error.queue_timeout)
    return now()


@pytest.mark.parametrize("priority", [None, lambda job: -job], ids=["fifo", "priority"])
@fuzzed
async def test_all_workers_are_busy(priority: Any) -> None:
    letters = DeadLetters[float]()
    async with WorkerPool(
        sleeper, workers=1, queue_size=9, queue_timeout=3.0, priority=priority, dead_letters=letters
    ) as pool:
        busy = pool.submit_nowait(10.0)
        await settle()
        waiting = []
        for number in range(3):
            waiting.append(pool.submit_nowait(number / 10))
            await asyncio.sleep(1)
        assert [await expired(handle) for handle in waiting] == [3.0, 4.0, 5.0]
        assert_conserved(pool)
        assert [letter.job for letter in letters] == [0.0, 0.1, 0.2]
        assert await busy == 10.0  # its time was over long ago, but it had started
        assert await pool.run(5.0) == 5.0


@pytest.mark.parametrize("by_job", [False, True], ids=["by user", "by job"])
@fuzzed
async def test_the_pool_is_paused(by_job: bool) -> None:
    async def handler(job: float) -> float:
        if job < 0:
            raise RetryAfter(60.0, pause=True)
        return job

    async with WorkerPool(handler, workers=2, queue_timeout=3.0) as pool:
        if by_job:
            with pytest.raises(RetryAfter):
                await pool.run(-1.0)
        else:
            pool.pause()
        handle = pool.submit_nowait(1.0)
        await asyncio.sleep(2)
        later = pool.submit_nowait(2.0)
        assert await expired(handle) == 3.0
        pool.resume(force=True)
        assert await later == 2.0


@virtual
async def test_the_rate_limit_of_all_jobs_is_closed() -> None:
    async with WorkerPool(echo, workers=2, limiter=RateLimit(1, per=100.0), queue_timeout=3.0) as pool:
        assert await pool.run(0) == 0
        assert await expired(pool.submit_nowait(1)) == 3.0
        await asyncio.sleep(98.5)
        assert await pool.submit_nowait(2) == 2  # it waited for half a second
        assert now() == pytest.approx(101.5) or now() == 100.0 + 1.5


@fuzzed
async def test_a_job_is_parked_for_its_limit() -> None:
    limits = {"slow": RateLimit(1, per=100.0)}
    async with WorkerPool(echo, workers=2, limiter=limits.get, queue_timeout=3.0) as pool:
        handles = [pool.submit_nowait("slow") for _ in range(3)]
        assert await handles[0] == "slow"
        assert pool.stats.delayed == 2
        assert await pool.run("quick") == "quick"
        assert [await expired(handle) for handle in handles[1:]] == [3.0, 3.0]
        assert_conserved(pool)
        assert not limits["slow"].users


class Door:
    """A limiter that is a context manager. It lets one in at a time."""

    def __init__(self, *, ignores_cancel: bool = False) -> None:
        self.lock = asyncio.Lock()
        self.inside = 0
        self.ignores_cancel = ignores_cancel

    async def __aenter__(self) -> None:
        while True:
            try:
                await self.lock.acquire()
                break
            except asyncio.CancelledError:
                if not self.ignores_cancel:
                    raise
        self.inside += 1

    async def __aexit__(self, *exc: object) -> None:
        self.inside -= 1
        self.lock.release()


@pytest.mark.parametrize("is_function", [False, True], ids=["manager", "function"])
@pytest.mark.parametrize("ignores_cancel", [False, True], ids=["leaves", "goes in all the same"])
@virtual
async def test_a_job_waits_in_its_limiter(ignores_cancel: bool, is_function: bool) -> None:
    """It holds a worker there, and its attempt has begun; but its handler has not."""
    started: list[float] = []

    async def handler(job: float) -> None:
        started.append(job)
        await asyncio.sleep(job)

    door = Door(ignores_cancel=ignores_cancel)
    limiter: Any = (lambda job: door) if is_function else door
    retry = Retry(attempts=3, backoff=0.0, on=Exception)
    async with WorkerPool(handler, workers=2, limiter=limiter, queue_timeout=3.0, retry=retry) as pool:
        inside, waits = pool.submit_nowait(5.0), pool.submit_nowait(0.5)
        outcome = await waits.outcome()
        assert now() == (5.0 if ignores_cancel else 3.0)
        assert isinstance(outcome, Failed)
        assert type(outcome.error) is JobExpired
        assert (outcome.attempts, outcome.worker, outcome.seconds_running) == (1, 1, 0.0)
        await inside
        assert door.inside == 0
        await pool.run(0.25)
    assert started == [5.0, 0.25]


@virtual
async def test_the_resource_of_no_worker_can_be_opened() -> None:
    opened = 0

    @asynccontextmanager
    async def connect() -> AsyncIterator[None]:
        nonlocal opened
        opened += 1
        if opened > 1:
            await asyncio.sleep(60)
        yield

    async def handler(job: str, resource: None) -> None:
        raise OSError

    async with WorkerPool(handler, workers=1, resource=Resource(connect), queue_timeout=3.0) as pool:
        with pytest.raises(OSError):
            await pool.run("it spoils the only resource")
        assert await expired(await pool.submit("waits")) == 3.0


@virtual
async def test_only_the_first_attempt_must_start_in_time() -> None:
    async def handler(job: str) -> int:
        if current_job().attempt < 3:
            raise ValueError
        return current_job().attempt

    retry = Retry(attempts=3, backoff=10.0, max_backoff=10.0, jitter=False)
    async with WorkerPool(handler, workers=1, queue_timeout=3.0, retry=retry) as pool:
        assert await pool.run("x") == 3
        assert now() == 20.0


@virtual
async def test_the_sooner_of_queue_timeout_and_max_elapsed_counts() -> None:
    for queue_timeout, max_elapsed in ((3.0, 5.0), (5.0, 3.0)):
        began = now()
        retry = Retry(max_elapsed=max_elapsed)
        async with WorkerPool(echo, workers=1, queue_timeout=queue_timeout, retry=retry) as pool:
            pool.pause()
            with pytest.raises(JobExpired):
                await pool.run(0)
            assert now() - began == 3.0
            pool.resume()


@virtual
async def test_a_loop_that_was_blocked_starts_no_job_that_is_too_late() -> None:
    started: list[object] = []

    async def handler(job: str) -> None:
        started.append(job)
        if job == "blocks":
            compute(10.0)

    async with WorkerPool(handler, workers=1, queue_timeout=3.0) as pool:
        blocks, waits = pool.submit_nowait("blocks"), pool.submit_nowait("waits")
        await blocks
        outcome = await waits.outcome()
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, JobExpired)
    assert started == ["blocks"]


@fuzzed
async def test_every_way_to_bring_jobs_hears_of_it() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=10, queue_timeout=2.0) as pool:
        busy = pool.submit_nowait(5.0)
        await settle()
        group = pool.group()
        await group.submit(1.0)
        group.close_intake()
        stream = pool.outcomes([2.0], ordered=True)
        results: list[Any] = await asyncio.gather(
            pool.run(0.5), pool.map([1.5]), stream, anext(aiter(group)), return_exceptions=True
        )
        assert now() == 2.0
        assert [type(error) for error in results[:2]] == [JobExpired, JobExpired]
        assert [type(outcome.error) for outcome in (results[2][0], results[3])] == [JobExpired, JobExpired]
        assert await busy == 5.0


@virtual
async def test_the_one_shot_functions_take_it() -> None:
    with pytest.raises(JobExpired):
        await map(sleeper, [5.0, 1.0], workers=1, queue_timeout=2.0)
    results = await outcomes(sleeper, [5.0, 1.0], workers=1, queue_timeout=2.0)
    assert {outcome.job: type(outcome) for outcome in results} == {5.0: Succeeded, 1.0: Failed}


@virtual
async def test_with_an_engine_it_counts_until_the_attempt_is_sent() -> None:
    async with WorkerPool(Portable(sleeper), workers=1, engine=InMemory(1), queue_timeout=2.0) as pool:
        busy = pool.submit_nowait(5.0)
        await settle()
        began = now()
        assert await expired(pool.submit_nowait(1.0)) == began + 2.0
        assert await busy == 5.0


@virtual
async def test_it_frees_the_place_in_the_queue() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=1, queue_timeout=2.0) as pool:
        pool.submit_nowait(9.0)
        await settle()
        first = pool.submit_nowait(0.0)
        second = await pool.submit(1.0)  # waits for room
        assert now() == 2.0
        assert await expired(first) == 2.0
        assert await expired(second) == 4.0


@virtual
async def test_a_cancelled_job_is_cancelled_and_a_closing_pool_hands_back() -> None:
    pool = WorkerPool(sleeper, workers=1, queue_timeout=2.0)
    await pool.start()
    pool.submit_nowait(9.0)
    await settle()
    handles = [pool.submit_nowait(1.0) for _ in range(3)]
    handles[0].cancel()
    await asyncio.sleep(1)
    report = await pool.close(drain_timeout=0.0)
    reasons = [(await handle.outcome()).reason for handle in handles]  # type: ignore[union-attr]
    assert reasons == [CancelReason.HANDLE, CancelReason.SHUTDOWN, CancelReason.SHUTDOWN]
    assert len(report.unfinished) == 3
    with pytest.raises(PoolClosed):
        await pool.submit(1.0)


@virtual
async def test_a_draining_pool_lets_them_expire() -> None:
    pool = WorkerPool(sleeper, workers=1, queue_timeout=2.0)
    await pool.start()
    pool.submit_nowait(9.0)
    await settle()
    handle = pool.submit_nowait(1.0)
    pool.drain()
    assert await expired(handle) == 2.0
    await pool.close()
    assert now() == 9.0


@virtual
async def test_a_pool_that_was_paused_before_its_start_tells_them_too() -> None:
    pool = WorkerPool(echo, workers=1, queue_timeout=3.0)
    pool.pause()
    async with pool:
        assert await expired(pool.submit_nowait(0)) == 3.0


@virtual
async def test_an_observer_of_an_expired_job_can_use_the_pool() -> None:
    more: list[Any] = []

    def observer(event: object) -> None:
        if isinstance(event, JobEnded) and event.outcome.job == 1.0:
            assert_conserved(pool)
            more.append(pool.submit_nowait(0.5))

    async with WorkerPool(sleeper, workers=1, queue_timeout=2.0, observers=[observer]) as pool:
        pool.submit_nowait(3.0)
        await settle()
        assert await expired(pool.submit_nowait(1.0)) == 2.0
        assert await more[0] == 0.5
        assert now() == 3.5


@fuzzed
async def test_no_job_that_may_start_waits_while_others_expire() -> None:
    started: list[tuple[float, int]] = []

    def observer(event: object) -> None:
        if isinstance(event, JobStarted):
            started.append((now(), event.id))

    async def handler(job: object) -> None:
        await asyncio.sleep(1.0)

    async with WorkerPool(handler, workers=1, queue_size=10, queue_timeout=2.5, observers=[observer]) as pool:
        for _ in range(6):
            pool.submit_nowait("x")
        await asyncio.sleep(1.25)
        pool.submit_nowait("x")  # its time is over later
    assert started == [(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 7)]
    assert all(earlier[0] + 1.0 == later[0] for earlier, later in pairwise(started))


@virtual
async def test_a_job_that_has_started_is_let_go_of() -> None:
    class Input:
        pass

    job: Any = Input()
    gone = weakref.ref(job)
    async with WorkerPool(echo, workers=1, queue_timeout=10_000.0) as pool:
        await pool.run(job)
        pool.pause()
        handle = pool.submit_nowait(job)
        handle.cancel()
        del job, handle
        await settle()
        gc.collect()
        assert gone() is None
        pool.resume()


@pytest.mark.parametrize("options", [{}, {"priority": lambda job: job % 7}], ids=["fifo", "priority"])
def test_no_iteration_of_the_loop_lets_them_all_expire(options: dict[str, Any]) -> None:
    many = 3000

    async def main(loop: Any) -> None:
        async with WorkerPool(sleeper, workers=1, queue_size=many, queue_timeout=100.0, **options) as pool:
            pool.pause()
            for number in range(many):
                pool.submit_nowait(number)
            loop.longest = 0.0
            await asyncio.sleep(101.0)
            assert pool.stats.failed == many
            pool.resume()

    assert longest_iteration(main) < timers._SECONDS + 0.001


@virtual
async def test_an_observer_that_takes_long_ends_its_slice() -> None:
    at: Counter[float] = Counter()

    def observe(event: object) -> None:
        if isinstance(event, JobEnded):
            compute(0.25)
            at[loop_iterations] += 1

    async def count_iterations() -> None:
        nonlocal loop_iterations
        while True:
            await asyncio.sleep(0)
            loop_iterations += 1

    loop_iterations = 0
    async with WorkerPool(echo, workers=1, queue_size=9, queue_timeout=2.0, observers=[observe]) as pool:
        pool.pause()
        for number in range(5):
            pool.submit_nowait(number)
        await asyncio.sleep(1.9)
        counting = asyncio.ensure_future(count_iterations())
        while pool.stats.failed < 5:
            compute(0.1)
            await asyncio.sleep(0)
        counting.cancel()
        pool.resume()
    assert list(at.values()) == [1] * 5


@virtual
async def test_no_timer_is_left_when_the_pool_is_closed() -> None:
    loop: Any = asyncio.get_running_loop()
    async with WorkerPool(echo, workers=1, limiter=Door(), queue_timeout=1000.0) as pool:
        assert await pool.run(1) == 1
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@virtual
async def test_a_caller_that_gives_up_before_that_cancels_its_job() -> None:
    async with WorkerPool(sleeper, workers=1, queue_timeout=5.0) as pool:
        busy = pool.submit_nowait(9.0)
        await settle()
        with anyio.move_on_after(2.0) as scope:
            await pool.run(1.0)
        assert scope.cancelled_caught
        assert pool.stats.cancelled == 1
        await busy


def test_the_error_is_a_timeout_that_can_be_sent() -> None:
    error = pickle.loads(pickle.dumps(JobExpired(None, 2.5)))
    assert isinstance(error, TimeoutError)
    assert (error.max_elapsed, error.queue_timeout) == (None, 2.5)
    assert str(error) == "the job did not start within 2.5 s of its acceptance"


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0, ValueError, "queue_timeout must be a finite number of seconds > 0, got 0"),
        ("5", TypeError, "queue_timeout must be a number of seconds, got '5'"),
        (lambda job: 5.0, TypeError, "queue_timeout must be a number of seconds, got <function"),
    ],
)
def test_what_it_must_be(value: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        WorkerPool(echo, workers=1, queue_timeout=value)
