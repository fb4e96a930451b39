"""`max_failures=` and `deadline=`: a run that goes wrong stops, delivers what is done, and hands back the rest."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Cancelled,
    CancelReason,
    DeadLetters,
    DeadlineExceeded,
    Failed,
    JobCancelled,
    Journal,
    PoolClosed,
    Resource,
    Retry,
    Stream,
    Succeeded,
    TooManyFailures,
    WorkerPool,
    current_job,
)
from asyncpool.testing import settle
from tests.engines.conftest import no_signs_of_life  # noqa: F401  # a fixture
from tests.engines.memory import InMemory, Portable
from tests.helpers import Source, assert_conserved, echo, fuzzed, ignores_cancel, now, sleeper, virtual

pytestmark = pytest.mark.usefixtures("no_signs_of_life")


class Broken(Exception):
    pass


async def breaks_odd(job: int) -> int:
    await asyncio.sleep(0.1)
    if job % 2:
        raise Broken(job)
    return job


async def read(stream: Stream[Any]) -> tuple[list[Any], BaseException | None]:
    """Return what a stream delivers, and the error it ends with."""
    items: list[Any] = []
    try:
        async for item in stream:
            items.append(item)
    except Exception as error:
        return items, error
    return items, None


def kinds(outcomes: list[Any]) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]


orders = pytest.mark.parametrize("ordered", [False, True], ids=["as they complete", "in order"])


# -- max_failures of outcomes


@pytest.mark.parametrize("how", ["sync", "later"])
@orders
@fuzzed
async def test_a_run_stops_after_too_many_failures_and_loses_no_input(ordered: bool, how: str) -> None:
    source = Source(range(1000))
    async with WorkerPool(breaks_odd, workers=4) as pool:
        outcomes, error = await read(pool.outcomes(getattr(source, how)(), ordered=ordered, max_failures=3))
        assert isinstance(error, TooManyFailures)
        assert (error.failed, error.max_failures) == (4, 3)
        assert isinstance(error.__cause__, Broken)
        assert sorted(outcome.job for outcome in outcomes) == source.pulled
        assert len(source.pulled) < 60
        assert source.closed
        if ordered:
            assert [outcome.job for outcome in outcomes] == source.pulled
        assert sum(isinstance(outcome, Failed) for outcome in outcomes) >= 4
        cancelled = [outcome for outcome in outcomes if isinstance(outcome, Cancelled)]
        assert cancelled
        assert {outcome.reason for outcome in cancelled} == {CancelReason.STREAM}
        assert sum(not isinstance(outcome, Cancelled) for outcome in outcomes) >= error.settled
        assert pool.stats.running == pool.stats.queued == 0
        assert_conserved(pool)
        assert await pool.run(2) == 2  # the pool stays open
    assert pool.stats.unread_failures == 0


@virtual
async def test_as_many_failures_as_allowed_stop_nothing() -> None:
    async with WorkerPool(breaks_odd, workers=4) as pool:
        outcomes, error = await read(pool.outcomes(range(8), max_failures=4))
    assert (len(outcomes), error) == (8, None)


@virtual
async def test_no_failure_is_allowed() -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        outcomes, error = await read(pool.outcomes([0, 2, 1, 4], max_failures=0))
    assert kinds(outcomes) == ["Succeeded", "Succeeded", "Failed", "Cancelled"]
    assert str(error) == "1 of 3 jobs failed, more than max_failures=0 allows"


@virtual
async def test_the_last_job_can_be_one_too_many() -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        outcomes, error = await read(pool.outcomes([1, 3, 5], max_failures=2))
    assert kinds(outcomes) == ["Failed"] * 3
    assert isinstance(error, TooManyFailures)


@virtual
async def test_only_permanent_failures_count() -> None:
    async def handler(job: int) -> int:
        if current_job().attempt < 3:
            raise Broken
        return job

    async with WorkerPool(handler, workers=2, retry=Retry(attempts=3, backoff=0.1)) as pool:
        outcomes, error = await read(pool.outcomes(range(6), max_failures=0))
    assert (len(outcomes), error) == (6, None)


@virtual
async def test_delayed_jobs_are_handed_back_too() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(job)
        raise Broken if job else asyncpool.RetryAfter(1000.0)

    async with WorkerPool(handler, workers=3, retry=Retry(attempts=2, on=OSError)) as pool:
        outcomes, error = await read(pool.outcomes([0, 1], max_failures=0))
        assert now() == 1.0
    assert [(outcome.job, type(outcome), outcome.attempts) for outcome in outcomes] == [
        (1, Failed, 1),
        (0, Cancelled, 1),
    ]
    assert isinstance(error, TooManyFailures)


# -- A share


@orders
@virtual
async def test_a_share_counts_from_twenty_jobs_on(ordered: bool) -> None:
    seen: list[int] = []

    async def handler(job: int) -> int:
        seen.append(job)
        if job < 9:
            raise Broken
        return job

    async with WorkerPool(handler, workers=1) as pool:
        outcomes, error = await read(pool.outcomes(range(100), ordered=ordered, max_failures=0.5))
    assert (len(outcomes), error) == (100, None)  # nine of nine had failed, and nine of a hundred have


@virtual
async def test_a_share_stops_a_long_run() -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        _, error = await read(pool.outcomes(iter(range(10_000)), max_failures=0.4))
    assert isinstance(error, TooManyFailures)
    assert (error.failed, error.settled) == (10, 20)
    assert str(error) == "10 of 20 jobs failed, more than max_failures=0.4 allows"


@orders
@virtual
async def test_a_share_is_checked_at_the_end_of_a_short_run(ordered: bool) -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        outcomes, error = await read(pool.outcomes([1, 0, 3, 4], ordered=ordered, max_failures=0.25))
    assert kinds(outcomes) == ["Failed", "Succeeded", "Failed", "Succeeded"]
    assert (str(error), type(error)) == ("2 of 4 jobs failed, more than max_failures=0.25 allows", TooManyFailures)


@virtual
async def test_jobs_that_were_cancelled_do_not_count() -> None:
    async with WorkerPool(breaks_odd, workers=1, queue_size=50) as pool:
        stream = pool.outcomes([1, *range(2, 30, 2)], max_failures=0.5)
        reading = asyncio.ensure_future(read(stream))
        await settle()
        assert pool.cancel_queued() == 14
        outcomes, error = await reading
    assert len(outcomes) == 15
    assert isinstance(error, TooManyFailures)
    assert (error.failed, error.settled) == (1, 1)


# -- map


@orders
@fuzzed
async def test_map_leaves_failures_out_up_to_a_number(ordered: bool) -> None:
    letters: Any
    for letters in (None, DeadLetters[Any]()):
        async with WorkerPool(breaks_odd, workers=3, dead_letters=letters) as pool:
            values, error = await read(pool.map(range(40), ordered=ordered, max_failures=20))
            assert error is None
            assert sorted(values) == list(range(0, 40, 2))
            if ordered:
                assert values == sorted(values)
            await settle()
            assert pool.stats.unread_failures == (20 if letters is None else 0)
            assert letters is None or len(letters) == 20


@orders
@fuzzed
async def test_map_delivers_what_is_done_and_then_says_why_it_has_stopped(ordered: bool) -> None:
    source = Source(range(1000))
    async with WorkerPool(breaks_odd, workers=3) as pool:
        values, error = await read(pool.map(source.sync(), ordered=ordered, max_failures=5))
        assert isinstance(error, TooManyFailures)
        assert error.failed == 6
        assert len(values) >= error.settled - error.failed
        assert all(value % 2 == 0 for value in values)
        await settle()
        assert source.closed
        assert pool.stats.running == pool.stats.queued == 0
        assert pool.stats.unread_failures == pool.stats.failed >= 6


@virtual
async def test_a_full_window_of_failures_does_not_stop_the_source() -> None:
    async with WorkerPool(breaks_odd, workers=1, queue_size=0) as pool:
        values, error = await read(pool.map([1] * 50 + [2], max_failures=50))
    assert (values, error) == ([2], None)


@orders
@virtual
async def test_a_job_that_cannot_be_accepted_is_left_out_too(ordered: bool) -> None:
    def priority(job: int) -> int:
        if job == 3:
            raise Broken
        return job

    async with WorkerPool(echo, workers=1, priority=priority) as pool:
        values, error = await read(pool.map(range(6), ordered=ordered, max_failures=1))
        assert (values, error) == ([0, 1, 2, 4, 5], None)
        values, error = await read(pool.map([1, 3, 2], ordered=ordered, max_failures=0))
        assert isinstance(error, TooManyFailures)
        assert isinstance(error.__cause__, Broken)


@virtual
async def test_a_job_that_its_owner_cancelled_ends_map_as_ever() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        reading = asyncio.ensure_future(read(pool.map([1.0, 2.0], max_failures=5)))
        await settle()
        pool.cancel_queued()
        values, error = await reading
    assert values == [1.0]
    assert isinstance(error, JobCancelled)


@virtual
async def test_map_awaited_for_its_list() -> None:
    async with WorkerPool(breaks_odd, workers=2) as pool:
        assert await pool.map(range(6), max_failures=3) == [0, 2, 4]
        with pytest.raises(TooManyFailures):
            await pool.map(range(6), max_failures=2)
        await pool.join()


# -- deadline


@orders
@fuzzed
async def test_a_run_stops_when_its_time_is_over(ordered: bool) -> None:
    source = Source([1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 5.0, 0.5])
    async with WorkerPool(sleeper, workers=2, queue_size=1) as pool:
        outcomes, error = await read(pool.outcomes(source.sync(), ordered=ordered, deadline=3.5))
        assert now() == 3.5
        assert isinstance(error, DeadlineExceeded)
        assert error.deadline == 3.5
        assert isinstance(error, TimeoutError)
        assert str(error) == "the stream did not complete within its deadline of 3.5 s"
        assert len(outcomes) == len(source.pulled)
        assert [outcome.job for outcome in outcomes if isinstance(outcome, Succeeded)] == [1.0] * 3
        assert {(outcome.job, outcome.started) for outcome in outcomes if isinstance(outcome, Cancelled)} >= {
            (9.0, True)
        }
        assert source.closed
        assert_conserved(pool)


@virtual
async def test_a_run_that_completes_in_time_leaves_no_timer() -> None:
    loop: Any = asyncio.get_running_loop()
    async with WorkerPool(sleeper, workers=2) as pool:
        for ordered in (False, True):
            outcomes, error = await read(pool.outcomes([1.0, 2.0], ordered=ordered, deadline=1000.0, max_failures=5))
            assert (len(outcomes), error) == (2, None)
            assert await pool.map([1.0], deadline=1000.0) == [1.0]
            async for _ in pool.map([1.0, 2.0], deadline=1000.0):
                break
            await pool.join()
        await settle()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@virtual
async def test_the_time_counts_from_the_first_step() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        stream = pool.outcomes([1.0, 1.0], deadline=1.5)
        await asyncio.sleep(100)
        outcomes, _ = await read(stream)
        assert now() == 101.5
        assert kinds(outcomes) == ["Succeeded", "Cancelled"]


@virtual
async def test_values_in_order_end_with_the_first_that_is_missing() -> None:
    async with WorkerPool(sleeper, workers=4) as pool:
        values, error = await read(pool.map([1.0, 9.0, 2.0], deadline=3.0))
        assert values == [1.0]
        assert isinstance(error, DeadlineExceeded)
        values, error = await read(pool.map([1.0, 9.0, 2.0], ordered=False, deadline=3.0))
        assert values == [1.0, 2.0]
        assert isinstance(error, DeadlineExceeded)
        values, error = await read(pool.map([1.0, 9.0, 2.0], deadline=3.0, max_failures=0))
        assert values == [1.0, 2.0]
        assert isinstance(error, DeadlineExceeded)
        with pytest.raises(DeadlineExceeded):
            await pool.map([1.0, 9.0, 2.0], deadline=3.0)
        assert now() == 12.0
        await pool.join()
        assert now() == 12.0


@virtual
async def test_map_that_ends_with_a_failure_is_not_ended_again() -> None:
    async def handler(job: float) -> float:
        try:
            await asyncio.sleep(job)
        finally:
            await asyncio.sleep(2.0)
        if job == 1.0:
            raise Broken
        return job

    async with WorkerPool(handler, workers=2) as pool:
        _, error = await read(pool.map([5.0, 1.0], deadline=4.0, ordered=False))
        assert isinstance(error, Broken)
        await pool.join()


@virtual
async def test_a_source_that_is_slow_is_cancelled_and_what_it_gives_then_is_handed_back() -> None:
    async def source() -> AsyncIterator[float]:
        yield 1.0
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(100)
        yield 2.0

    async with WorkerPool(sleeper, workers=1) as pool:
        outcomes, error = await read(pool.outcomes(source(), deadline=3.0))
        assert now() == 3.0
    assert [(outcome.job, type(outcome)) for outcome in outcomes] == [(1.0, Succeeded), (2.0, Cancelled)]
    assert isinstance(error, DeadlineExceeded)


@virtual
async def test_a_slow_reader_uses_up_the_time_too() -> None:
    source = Source([0.0] * 100)
    async with WorkerPool(sleeper, workers=1, queue_size=1) as pool:
        outcomes = []
        with pytest.raises(DeadlineExceeded):
            async for outcome in pool.outcomes(source.sync(), deadline=3.0):
                outcomes.append(outcome)
                await asyncio.sleep(1)
        assert kinds(outcomes).count("Succeeded") >= 3
        assert len(outcomes) == len(source.pulled) < 10


# -- Those that do not stop


@orders
@virtual
async def test_a_job_that_ignores_its_cancellation_is_waited_for_five_seconds(ordered: bool) -> None:
    async def handler(job: float) -> float:
        if job > 10:
            await ignores_cancel(job)
        await asyncio.sleep(job)
        return job

    async with WorkerPool(handler, workers=2) as pool:
        outcomes, error = await read(pool.outcomes([20.0, 1.0, 9.0], ordered=ordered, deadline=3.0))
        assert now() == 8.0
        assert isinstance(error, DeadlineExceeded)
        assert [(outcome.job, type(outcome)) for outcome in outcomes] == [(1.0, Succeeded), (9.0, Cancelled)]
        assert pool.stats.stuck == 1
        await pool.join()
        assert pool.stats.stuck == 0
        assert_conserved(pool)


@virtual
async def test_a_job_that_was_stuck_before_holds_up_nothing() -> None:
    async with WorkerPool(ignores_cancel, workers=2) as pool:
        reading = asyncio.ensure_future(read(pool.outcomes([60.0, 0.0], deadline=20.0)))
        await asyncio.sleep(1)
        [running] = pool.running()
        worker = pool._parts.workers.by_number[running.worker]
        assert worker.job is not None
        pool._parts.cancellation.cancel(worker.job, CancelReason.HANDLE)
        outcomes, error = await reading
        assert now() == 20.0
        assert isinstance(error, DeadlineExceeded)
        assert [outcome.job for outcome in outcomes] == [0.0]
        await pool.join()


@virtual
async def test_a_source_that_ignores_its_cancellation_is_waited_for_five_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def source() -> AsyncIterator[float]:
        yield 1.0
        await ignores_cancel(20.0)
        yield 2.0

    async with WorkerPool(sleeper, workers=1) as pool:
        outcomes, error = await read(pool.outcomes(source(), deadline=3.0))
        assert now() == 8.0
        assert kinds(outcomes) == ["Succeeded"]
        assert isinstance(error, DeadlineExceeded)
        assert "the source is still running 5 s after it was asked to stop" in caplog.text
        await asyncio.sleep(20)
        assert_conserved(pool)


# -- With other ends


@virtual
async def test_an_error_of_the_source_stays_the_end() -> None:
    def source() -> Any:
        yield 1
        yield 3
        raise Broken("source")

    async with WorkerPool(breaks_odd, workers=1) as pool:
        outcomes, error = await read(pool.outcomes(source(), max_failures=0))
    assert str(error) == "source"
    assert kinds(outcomes) == ["Failed", "Cancelled"]


@virtual
async def test_an_error_of_the_source_after_the_stop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.sleep(100)
        finally:
            raise Broken("in the cleanup")

    async with WorkerPool(breaks_odd, workers=1) as pool:
        _, error = await read(pool.outcomes(source(), max_failures=0))
    assert isinstance(error, TooManyFailures)
    assert "the source raised this error after the stream had ended, so its reader does not get it" in caplog.text


@fuzzed
async def test_a_pool_that_closes_and_a_run_that_stops() -> None:
    pool = WorkerPool(breaks_odd, workers=2, queue_size=20)
    await pool.start()
    reading = asyncio.ensure_future(read(pool.outcomes(range(0, 80, 2), max_failures=0, deadline=60.0)))
    await asyncio.sleep(0.15)
    report = await pool.close(drain_timeout=0.1)
    outcomes, error = await reading
    assert isinstance(error, PoolClosed)
    assert len(report.unfinished) == kinds(outcomes).count("Cancelled") > 0


@virtual
async def test_too_many_failures_while_the_pool_drains() -> None:
    pool = WorkerPool(breaks_odd, workers=1, queue_size=20)
    await pool.start()
    reading = asyncio.ensure_future(read(pool.outcomes([0, 1, 3, 5], max_failures=0)))
    await settle()
    pool.drain()
    outcomes, error = await reading
    assert kinds(outcomes) == ["Succeeded", "Failed", "Cancelled", "Cancelled"]
    assert isinstance(error, TooManyFailures)
    await pool.close()
    assert not pool.report


@virtual
async def test_too_many_failures_while_the_pool_drains_and_the_source_is_not_exhausted() -> None:
    pool = WorkerPool(breaks_odd, workers=1, queue_size=2)
    await pool.start()
    reading = asyncio.ensure_future(read(pool.outcomes([1] * 100, max_failures=0)))
    await settle()
    pool.drain()
    outcomes, error = await reading
    assert kinds(outcomes) == ["Failed", "Cancelled", "Cancelled"]
    assert isinstance(error, TooManyFailures)  # that says more than PoolClosed
    await pool.close()


@virtual
async def test_a_reader_that_leaves_after_the_wait_for_a_stuck_job_closes_the_pool_of_the_stream() -> None:
    async def handler(job: float) -> None:
        if job > 10:
            return await ignores_cancel(job)
        await asyncio.sleep(job)

    async for outcome in asyncpool.outcomes(handler, [1.0, 30.0, 1.0], workers=3, ordered=True, deadline=2.0):
        assert outcome.job == 1.0
        await asyncio.sleep(10)  # until nothing else comes
        break
    await asyncio.sleep(30)


@virtual
async def test_a_reader_that_leaves_gets_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        async with pool.outcomes([1, 3, 5], max_failures=0) as stream:
            async for _ in stream:
                await asyncio.sleep(1)
                break
        await pool.join()
    assert "error of its source" not in caplog.text


@virtual
async def test_another_job_of_the_pool_goes_on() -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        reading = asyncio.ensure_future(read(pool.outcomes([1, 2, 4], max_failures=0)))
        await settle()
        others = [pool.submit_nowait(job) for job in (6, 8)]
        await reading
        assert [await handle for handle in others] == [6, 8]


@virtual
async def test_many_jobs_are_handed_back_in_slices() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=3000) as pool:
        outcomes, error = await read(pool.outcomes([5.0] * 3000, deadline=7.0))
        assert isinstance(error, DeadlineExceeded)
        assert (kinds(outcomes).count("Succeeded"), kinds(outcomes).count("Cancelled")) == (1, 2999)
        assert now() == 7.0
        assert await pool.run(1.0) == 1.0


# -- The one-shot functions, engines, journals


@orders
@virtual
async def test_the_one_shot_functions_stop_and_close_their_pool(ordered: bool) -> None:
    source = Source(range(1000))
    outcomes, error = await read(
        asyncpool.outcomes(breaks_odd, source.sync(), workers=2, ordered=ordered, max_failures=1)
    )
    assert isinstance(error, TooManyFailures)
    assert sorted(outcome.job for outcome in outcomes) == source.pulled
    assert source.closed
    values, error = await read(asyncpool.map(sleeper, [1.0, 9.0], workers=2, ordered=ordered, deadline=3.0))
    assert values == [1.0]
    assert isinstance(error, DeadlineExceeded)
    assert await asyncpool.map(breaks_odd, range(4), workers=2, max_failures=0.5) == [0, 2]


@virtual
async def test_the_deadline_ends_a_start_that_takes_too_long() -> None:
    left: list[float] = []

    @asynccontextmanager
    async def connect() -> AsyncIterator[None]:
        try:
            await asyncio.sleep(20)
        finally:
            left.append(now())
        yield

    async def handler(job: int, connection: None) -> None: ...

    source = Source([1])
    stream = asyncpool.outcomes(
        handler, source.sync(), workers=1, resource=Resource(connect), deadline=3.0, ordered=True
    )
    with pytest.raises(DeadlineExceeded):
        await anext(aiter(stream))
    assert now() == 3.0
    assert left == [3.0]
    assert source.pulled == []


@virtual
async def test_a_start_in_time_leaves_the_rest_of_the_deadline() -> None:
    @asynccontextmanager
    async def connect() -> AsyncIterator[None]:
        await asyncio.sleep(2)
        yield

    async def handler(job: float, connection: None) -> None:
        await asyncio.sleep(job)

    outcomes, error = await read(
        asyncpool.outcomes(handler, [0.5, 5.0], workers=1, resource=Resource(connect), deadline=3.0)
    )
    assert now() == 3.0
    assert kinds(outcomes) == ["Succeeded", "Cancelled"]
    assert isinstance(error, DeadlineExceeded)


@virtual
async def test_with_an_engine() -> None:
    async with WorkerPool(Portable(breaks_odd), workers=2, engine=InMemory(2)) as pool:
        source = Source(range(1000))
        outcomes, error = await read(pool.outcomes(source.sync(), max_failures=2))
        assert isinstance(error, TooManyFailures)
        assert sorted(outcome.job for outcome in outcomes) == source.pulled


@orders
def test_a_journal_records_what_was_done_and_the_next_run_goes_on(tmp_path: Path, ordered: bool) -> None:
    async def main() -> None:
        journal: Journal[int] = Journal(tmp_path / f"{ordered}.db", key=lambda job: job, values=True)
        source = Source([0, 2, 4, 1, 3, 5, *range(6, 200)])
        async with WorkerPool(breaks_odd, workers=1) as pool:
            outcomes, error = await read(journal.outcomes(pool, source.sync(), ordered=ordered, max_failures=1))
            assert isinstance(error, TooManyFailures)
            assert sorted(outcome.job for outcome in outcomes) == sorted(source.pulled)
            done = [outcome.job for outcome in outcomes if isinstance(outcome, Succeeded)]
            counts = await asyncio.to_thread(journal.count)
            assert (counts.done, counts.failed) == (len(done), kinds(outcomes).count("Failed"))
            values, error = await read(journal.map(pool, [0, 2, 1, 8], ordered=ordered, max_failures=1))
            assert (sorted(values), error) == ([0, 2, 8], None)
            values, error = await read(journal.map(pool, [0, 10, 1, 12], ordered=ordered, max_failures=0))
            assert values == [0, 10]
            assert isinstance(error, TooManyFailures)
        assert set(done) | {8, 10} <= {0, 2, 4, 6, 8, 10, *done}

    asyncio.run(main())


@pytest.mark.parametrize("way", ["outcomes", "map"])
def test_the_deadline_of_a_journaled_stream(tmp_path: Path, way: str) -> None:
    async def main() -> None:
        journal: Journal[float] = Journal(tmp_path / "journal.db", key=str, values=True)
        async with WorkerPool(sleeper, workers=2) as pool:
            stream: Any = getattr(journal, way)(pool, [0.0, 60.0, 61.0, 62.0], deadline=0.2)
            items, error = await read(stream)
            assert isinstance(error, DeadlineExceeded)
            if way == "map":
                assert items == [0.0]
            else:
                assert kinds(items) == ["Succeeded", "Cancelled", "Cancelled", "Cancelled"]
        assert (await asyncio.to_thread(journal.count)).done == 1

    asyncio.run(main())


# -- Arguments and errors


def streams() -> list[Callable[..., Any]]:
    pool = WorkerPool(echo, workers=1)
    journal: Journal[int] = Journal("unused.db", key=lambda job: job, values=True)
    return [
        lambda **options: pool.map([], **options),
        lambda **options: pool.outcomes([], **options),
        lambda **options: asyncpool.map(echo, [], workers=1, **options),
        lambda **options: asyncpool.outcomes(echo, [], workers=1, **options),
        lambda **options: journal.map(pool, [], **options),
        lambda **options: journal.outcomes(pool, [], **options),
    ]


RULE = "max_failures must be an int >= 0, or a share of the jobs between 0 and 1, got "


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"max_failures": -1}, ValueError, RULE + "-1"),
        ({"max_failures": 1.0}, ValueError, RULE + "1.0"),
        ({"max_failures": 0.0}, ValueError, RULE + "0.0"),
        ({"max_failures": 2.5}, ValueError, RULE + "2.5"),
        ({"max_failures": float("nan")}, ValueError, RULE + "nan"),
        ({"max_failures": True}, TypeError, RULE + "True"),
        ({"max_failures": "3"}, TypeError, RULE + "'3'"),
        ({"deadline": 0}, ValueError, "deadline must be a finite number of seconds > 0, got 0"),
        ({"deadline": "3"}, TypeError, "deadline must be a number of seconds, got '3'"),
    ],
)
@pytest.mark.parametrize("number", range(6))
def test_what_they_must_be(number: int, options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as raised:
        streams()[number](**options)
    assert str(raised.value) == text


@virtual
async def test_numbers_of_all_kinds() -> None:
    async with WorkerPool(breaks_odd, workers=1) as pool:
        for share in (Decimal("0.5"), 0.5):
            outcomes, error = await read(pool.outcomes([0, 1], max_failures=share))  # type: ignore[arg-type]
            assert (len(outcomes), error) == (2, None)


def test_the_errors_can_be_sent() -> None:
    error = pickle.loads(pickle.dumps(TooManyFailures(3, 9, 2)))
    assert (error.failed, error.settled, error.max_failures) == (3, 9, 2)
    assert pickle.loads(pickle.dumps(DeadlineExceeded(2.5))).deadline == 2.5
