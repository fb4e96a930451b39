"""`pool.queued()`, `pool.running()` and `pool.cancel_queued()`: which jobs wait, which run, and letting go of some."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    DeadLetters,
    JobCancelled,
    QueuedJob,
    RateLimit,
    Retry,
    RunningJob,
    Succeeded,
    WorkerPool,
)
from asyncpool._core import timers
from asyncpool.events import JobEnded, JobStarted
from asyncpool.testing import settle
from tests.engines.conftest import no_signs_of_life  # noqa: F401  # a fixture
from tests.engines.memory import InMemory, Portable
from tests.helpers import TICK, assert_conserved, echo, fuzzed, now, sleeper, virtual
from tests.test_slices import MANY, Handler, each_place, filled, longest_iteration, pool_of

pytestmark = pytest.mark.usefixtures("no_signs_of_life")


def jobs_of(snapshots: list[Any]) -> list[Any]:
    return [snapshot.job for snapshot in snapshots]


# -- queued()


@virtual
async def test_queued_jobs_are_listed_in_the_order_of_their_start() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        pool.submit_nowait(9.0)
        await settle()
        handles = []
        for number in range(3):
            handles.append(pool.submit_nowait(number / 10))
            await asyncio.sleep(1)
        handles[1].cancel()
        assert pool.queued() == [
            QueuedJob(id=2, job=0.0, attempt=1, seconds=3.0, is_delayed=False),
            QueuedJob(id=4, job=0.2, attempt=1, seconds=1.0, is_delayed=False),
        ]
        assert pool.queued(1) == pool.queued()[:1]
        assert repr(pool.queued()[0]) == "QueuedJob(id=2, job=0.0, attempt=1, seconds=3.0, is_delayed=False)"
        with pytest.raises(FrozenInstanceError):
            pool.queued()[0].id = 7  # type: ignore[misc]
    assert pool.queued() == pool.running() == []


@pytest.mark.parametrize("limit", [None, 1, 4, 7])
@virtual
async def test_a_priority_decides_the_order(limit: int | None) -> None:
    started: list[int] = []

    async def handler(job: int) -> None:
        started.append(job)

    async with WorkerPool(handler, workers=1, queue_size=20, priority=lambda job: job % 5) as pool:
        pool.pause()
        for job in (7, 3, 10, 12, 5, 4, 2):
            pool.submit_nowait(job)
        listed = jobs_of(pool.queued(limit))
        pool.resume()
    assert listed == started[:limit]
    assert started == [10, 5, 7, 12, 2, 3, 4]


@virtual
async def test_delayed_jobs_come_last_and_are_marked() -> None:
    slow = RateLimit(1, per=100.0)

    async def handler(job: Any) -> None:
        if isinstance(job, float):
            raise OSError(job)

    limiter = lambda job: slow if job == "slow" else None  # noqa: E731
    retry = Retry(attempts=2, jitter=False, backoff=50.0, max_backoff=50.0)
    async with WorkerPool(handler, workers=2, limiter=limiter, retry=retry) as pool:
        pool.submit_nowait(0.5)
        await asyncio.sleep(1)
        for job in ("slow", "slow", 1.5, "slow"):
            pool.submit_nowait(job)
        await asyncio.sleep(1)
        pool.pause()
        pool.submit_nowait("fresh")
        listed = [(entry.job, entry.attempt, entry.seconds, entry.is_delayed) for entry in pool.queued()]
        assert listed == [
            ("fresh", 1, 0.0, False),
            ("slow", 1, 1.0, True),
            ("slow", 1, 1.0, True),
            (0.5, 2, 2.0, True),
            (1.5, 2, 1.0, True),
        ]
        assert jobs_of(pool.queued(2)) == ["fresh", "slow"]
        assert pool.stats.queued + pool.stats.delayed == 5
        await pool.close(drain_timeout=0.0)


@virtual
async def test_a_job_that_came_back_is_before_the_fresh_ones() -> None:
    async def handler(job: str) -> None:
        if job == "fails":
            raise OSError

    async with WorkerPool(handler, workers=1, retry=Retry(attempts=2, backoff=5.0, jitter=False)) as pool:
        pool.submit_nowait("fails")
        await settle()
        pool.pause()
        pool.submit_nowait("fresh")
        await asyncio.sleep(6.0)
        assert [(entry.job, entry.attempt, entry.seconds) for entry in pool.queued()] == [
            ("fails", 2, 6.0),
            ("fresh", 1, 6.0),
        ]
        pool.resume()


@virtual
async def test_keys_that_use_the_pool_while_they_are_compared_spoil_nothing() -> None:
    class Key:
        def __init__(self, job: int) -> None:
            self.job = job

        def __lt__(self, other: Any) -> bool:
            if is_listing:
                is_listing.clear()
                next(handle for handle in handles if handle.job == 4).cancel()
                handles.append(pool.submit_nowait(9))
                pool.resume()
                raise ValueError("not comparable today")
            return bool(self.job < other.job)

    is_listing: list[bool] = []
    async with WorkerPool(echo, workers=1, queue_size=20, priority=Key) as pool:
        pool.pause()
        handles = [pool.submit_nowait(job) for job in (5, 4, 3, 2, 1)]
        is_listing.append(True)
        assert set(jobs_of(pool.queued())) <= {1, 2, 3, 5}  # on 3.11, resuming starts the first at once
        await pool.join()
        assert_conserved(pool)
        assert [type(await handle.outcome()) for handle in handles] == [Succeeded, Cancelled, *[Succeeded] * 4]


# -- running()


@fuzzed
async def test_running_jobs_are_listed_longest_first() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        pool.submit_nowait(10.0)
        await asyncio.sleep(1)
        pool.submit_nowait(20.0)
        await asyncio.sleep(2)
        first, second = pool.running()
        assert (first.id, first.job, first.attempt, first.seconds) == (1, 10.0, 1, 3.0)
        assert (second.id, second.job, second.seconds) == (2, 20.0, 2.0)
        assert {first.worker, second.worker} == {1, 2}
        await asyncio.sleep(8)
        assert jobs_of(pool.running()) == [20.0]
    assert repr(first).startswith("RunningJob(id=1, job=10.0, attempt=1, worker=")
    assert isinstance(first, RunningJob)


@virtual
async def test_a_job_that_waits_in_its_limiter_has_run_for_no_time() -> None:
    async with WorkerPool(sleeper, workers=2, limiter=asyncio.Semaphore(1)) as pool:
        handles = [pool.submit_nowait(5.0), pool.submit_nowait(5.0)]
        await asyncio.sleep(2)
        assert [(entry.id, entry.seconds) for entry in pool.running()] == [(1, 2.0), (2, 0.0)]
        for handle in handles:
            await handle


@virtual
async def test_a_later_attempt_has_its_number_and_its_own_time() -> None:
    async def handler(job: object) -> None:
        await asyncio.sleep(4)
        raise OSError

    async with WorkerPool(handler, workers=1, retry=Retry(attempts=2, backoff=1.0, jitter=False)) as pool:
        pool.submit_nowait("x")
        await asyncio.sleep(7)
        [entry] = pool.running()
        assert (entry.attempt, entry.seconds) == (2, 2.0)


@virtual
async def test_attempts_in_processes_are_listed_too() -> None:
    async with WorkerPool(Portable(sleeper), workers=2, engine=InMemory(2)) as pool:
        handle = pool.submit_nowait(5.0)
        await asyncio.sleep(1)
        [entry] = pool.running()
        assert entry.job == 5.0
        assert 0.9 < entry.seconds <= 1.0
        await handle


@virtual
async def test_a_handler_and_an_observer_can_look() -> None:
    seen: list[Any] = []

    async def handler(job: str) -> None:
        seen.append((jobs_of(pool.running()), jobs_of(pool.queued())))

    def observer(event: object) -> None:
        if isinstance(event, (JobStarted, JobEnded)):
            seen.append((type(event).__name__, jobs_of(pool.running()), jobs_of(pool.queued())))

    async with WorkerPool(handler, workers=1, observers=[observer]) as pool:
        pool.pause()
        pool.submit_nowait("a")
        pool.submit_nowait("b")
        pool.resume()
    assert seen == [
        ("JobStarted", ["a"], ["b"]),
        (["a"], ["b"]),
        ("JobEnded", [], ["b"]),
        ("JobStarted", ["b"], []),
        (["b"], []),
        ("JobEnded", [], []),
    ]


# -- cancel_queued()


@fuzzed
async def test_the_chosen_jobs_are_cancelled_as_by_their_handles() -> None:
    letters = DeadLetters[float]()
    async with WorkerPool(sleeper, workers=1, queue_size=20, dead_letters=letters) as pool:
        busy = pool.submit_nowait(5.0)
        await settle()
        handles = [pool.submit_nowait(number / 10) for number in range(6)]
        assert pool.cancel_queued(lambda job: job > 0.25) == 3
        assert jobs_of(pool.queued()) == [0.0, 0.1, 0.2]
        outcomes = [await handle.outcome() for handle in handles]
        assert [type(outcome) for outcome in outcomes] == [Succeeded] * 3 + [Cancelled] * 3
        assert {(outcome.reason, outcome.started, outcome.attempts) for outcome in outcomes[3:]} == {  # type: ignore[union-attr]
            (CancelReason.HANDLE, False, 0)
        }
        assert await busy == 5.0
        assert pool.cancel_queued() == 0
        assert_conserved(pool)
    assert not letters
    assert not pool.report


@virtual
async def test_without_a_function_all_are_cancelled_and_their_owners_hear_of_it() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=20) as pool:
        busy = pool.submit_nowait(5.0)
        await settle()
        waiting: list[Any] = [
            asyncio.ensure_future(pool.run(1.0)),
            asyncio.ensure_future(anext(aiter(pool.map([1.0])))),
            asyncio.ensure_future(anext(aiter(pool.outcomes([1.0])))),
        ]
        await settle()
        assert pool.cancel_queued() == 3
        run, value, outcome = await asyncio.gather(*waiting, return_exceptions=True)
        assert (str(run), type(run)) == ("the job was cancelled (handle)", JobCancelled)
        assert type(value) is JobCancelled
        assert outcome.reason is CancelReason.HANDLE
        assert now() == 0.0
        assert busy.cancel()  # it went on


@virtual
async def test_delayed_jobs_wait_too() -> None:
    limit = RateLimit(1, per=1000.0)

    async def handler(job: str) -> None:
        if job == "fails":
            raise OSError

    limiter = lambda job: limit if job == "slow" else None  # noqa: E731
    retry = Retry(attempts=2, backoff=1000.0, max_backoff=1000.0)
    async with WorkerPool(handler, workers=2, limiter=limiter, retry=retry) as pool:
        handles = [pool.submit_nowait(job) for job in ("slow", "slow", "fails")]
        await settle()
        assert pool.stats.delayed == 2
        assert pool.cancel_queued() == 2
        assert [(type(await handle.outcome()), (await handle.outcome()).attempts) for handle in handles] == [
            (Succeeded, 1),
            (Cancelled, 0),
            (Cancelled, 1),
        ]
        assert not limit.users
        assert_conserved(pool)


@virtual
async def test_it_lets_submitters_in() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=1) as pool:
        pool.submit_nowait(9.0)
        await settle()
        pool.submit_nowait(0.0)
        submitter = asyncio.ensure_future(pool.submit(1.0))
        await settle()
        assert pool.cancel_queued() == 1
        await settle()
        assert jobs_of(pool.queued()) == [1.0]
        assert submitter.done()


class Broken(Exception):
    pass


class Undecided:
    def __bool__(self) -> bool:
        raise Broken("undecided")


def breaks_at_two(job: int) -> bool:
    if job == 2:
        raise Broken("at 2")
    return True


@pytest.mark.parametrize(
    ("where", "kind", "text"),
    [
        (breaks_at_two, Broken, "at 2"),
        (lambda job: Undecided(), Broken, "undecided"),
        (
            lambda job: sleeper(1.0),
            TypeError,
            "where is called and not awaited, so it must return a bool, got <coroutine",
        ),
        ("all", TypeError, "where must be callable, got 'all'"),
    ],
    ids=["raises", "its answer raises", "coroutine", "text"],
)
@virtual
async def test_a_function_that_fails_cancels_nothing(where: Any, kind: type[Exception], text: str) -> None:
    async with WorkerPool(echo, workers=1, queue_size=5) as pool:
        pool.pause()
        handles = [pool.submit_nowait(job) for job in range(4)]
        with pytest.raises(kind, match=text):
            pool.cancel_queued(where)
        assert pool.stats.queued == 4
        pool.resume()
        assert [await handle for handle in handles] == [0, 1, 2, 3]


ACTS: dict[str, Callable[[WorkerPool[Any, Any]], object]] = {
    "submits": lambda pool: pool.submit_nowait(100),
    "cancels all": lambda pool: pool.cancel_queued(),
    "resumes": lambda pool: pool.resume(),
    "resizes": lambda pool: pool.resize(3),
    "closes": lambda pool: pool.cancel(),
    "drains": lambda pool: pool.drain(),
    "lists": lambda pool: pool.queued(),
}


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
@fuzzed
async def test_a_function_can_do_to_the_pool_what_it_likes(act: Any) -> None:
    def where(job: int) -> bool:
        if job == 2:
            act(pool)
        return job % 2 == 0

    async with WorkerPool(echo, workers=1, queue_size=9) as pool:
        pool.pause()
        handles = [pool.submit_nowait(job) for job in range(5)]
        before = pool.stats.cancelled
        count = pool.cancel_queued(where)
        assert_conserved(pool)
        if act is ACTS["cancels all"]:
            assert (count, pool.stats.cancelled) == (0, 5)
        else:
            assert pool.stats.cancelled - before == count
        if pool.state == "open":
            pool.resume()
    outcomes = [await handle.outcome() for handle in handles]
    went_on = [outcome.job for outcome in outcomes if outcome.job % 2 == 0 and not isinstance(outcome, Cancelled)]
    # On 3.11, the end of the pause has started the first at once.
    assert went_on in ([], [0]) if act in (ACTS["resumes"], ACTS["closes"], ACTS["drains"]) else not went_on
    assert_conserved(pool)


@virtual
async def test_an_observer_of_the_first_that_is_cancelled_can_start_the_others() -> None:
    def observer(event: object) -> None:
        if isinstance(event, JobEnded) and isinstance(event.outcome, Cancelled):
            pool.resume()
            assert_conserved(pool)
            if event.outcome.job == 1:
                pool.cancel_queued()

    async with WorkerPool(echo, workers=1, queue_size=9, observers=[observer]) as pool:
        pool.pause()
        for job in range(4):
            pool.submit_nowait(job)
        pool.cancel_queued()
        await pool.join()
        stats = pool.stats
        assert stats.succeeded + stats.cancelled == 4
        assert_conserved(pool)


@each_place
@virtual
async def test_many_are_cancelled_in_slices_during_which_none_starts(options: dict[str, Any]) -> None:
    handler = Handler()
    async with pool_of(handler, options) as pool:
        group = await filled(pool, handler, options)
        began = list(handler.started)
        waiting = pool.stats.queued + pool.stats.delayed
        odd = [entry for entry in pool.queued() if entry.job % 2]
        assert pool.cancel_queued(lambda job: job % 2) == len(odd) > 500
        assert pool.stats.cancelled < len(odd)  # not yet all
        while pool.stats.cancelled < len(odd):
            assert handler.started == began
            assert_conserved(pool)
            await asyncio.sleep(0)
        assert pool.stats.queued + pool.stats.delayed == waiting - len(odd)
        assert {entry.job % 2 for entry in pool.queued()} == {0}
        await group.aclose()


def test_no_iteration_of_the_loop_is_long() -> None:
    async def main(loop: Any) -> None:
        handler = Handler()
        async with pool_of(handler, {}) as pool:
            group = await filled(pool, handler, {})
            await asyncio.sleep(1)
            loop.longest = 0.0
            pool.cancel_queued(lambda job: job % 3)
            await asyncio.sleep(1)
            assert pool.stats.cancelled > MANY // 2
            longest.append(loop.longest)
            await group.aclose()

    longest: list[float] = []
    longest_iteration(main)
    assert longest[0] < timers._SECONDS + 50 * TICK < MANY * TICK


# -- In every state of the pool


@virtual
async def test_a_pool_that_is_new_or_closed_has_no_jobs() -> None:
    pool = WorkerPool(echo, workers=1)
    assert (pool.queued(), pool.running(), pool.cancel_queued()) == ([], [], 0)
    async with pool:
        await pool.run(1)
    assert (pool.queued(), pool.running(), pool.cancel_queued()) == ([], [], 0)


@virtual
async def test_a_pool_that_drains_can_let_go_of_its_queue() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        for _ in range(4):
            pool.submit_nowait(5.0)
        await settle()
        pool.drain()
        assert jobs_of(pool.queued()) == [5.0] * 3
        assert pool.cancel_queued() == 3
    assert now() == 5.0
    assert not pool.report
