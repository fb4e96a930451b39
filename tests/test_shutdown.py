"""The end of a pool: the ladder of `close()`, step by step, and everything that can happen on it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    Failed,
    JobCancelled,
    PoolClosed,
    PoolDeadlock,
    StreamClosed,
    Succeeded,
    Unfinished,
    WorkerPool,
)
from asyncpool.testing import ManualHandler, VirtualTimeLoop, run, settle
from tests.helpers import assert_conserved, cancel_soon, echo, fuzzed, ignores_cancel, now, sleeper, virtual


async def filled(pool: WorkerPool[Any, Any], *jobs: Any) -> list[Any]:
    """Start a pool and submit jobs to it."""
    await pool.start()
    return [await pool.submit(job) for job in jobs]


# -- Step 1: the intake


@fuzzed
async def test_waiting_submitters_get_pool_closed() -> None:
    pool = WorkerPool(sleeper, workers=1, queue_size=0)
    await filled(pool, 1)
    waiting = [asyncio.create_task(pool.submit(1)) for _ in range(3)]
    waiting += [asyncio.create_task(pool.run(1)), asyncio.create_task(pool.group().submit(1))]
    await settle()
    await pool.close()
    assert [type(task.exception()) for task in waiting] == [PoolClosed] * 5
    assert pool.stats.submitted == 1


@fuzzed
async def test_close_lifts_a_pause() -> None:
    pool = WorkerPool(sleeper, workers=1)
    pool.pause()
    [handle] = await filled(pool, 1)
    assert not await pool.close()
    assert await handle == 1


# -- Step 2: drain


@pytest.mark.parametrize("workers", [1, 2, 20])
@fuzzed
async def test_close_finishes_what_is_queued_and_what_runs(workers: int) -> None:
    pool = WorkerPool(sleeper, workers=workers, queue_size=20)
    handles = await filled(pool, *[1] * 10)
    report = await pool.close()
    assert not report
    assert len(report.unfinished) + len(report.abandoned) + len(report.errors) == 0
    assert [handle.done() for handle in handles] == [True] * 10
    assert pool.stats.succeeded == 10
    assert now() == math.ceil(10 / workers)


@fuzzed
async def test_drain_timeout_ends_the_draining() -> None:
    pool = WorkerPool(sleeper, workers=1)
    handles = await filled(pool, 1, 1, 1, 1)
    report = await pool.close(drain_timeout=2.5)
    assert now() == 2.5
    assert [type(await handle.outcome()) for handle in handles] == [Succeeded, Succeeded, Cancelled, Cancelled]
    assert list(report.unfinished) == [Unfinished(job=1, started=True), Unfinished(job=1, started=False)]


@fuzzed
async def test_drain_timeout_0_does_not_drain() -> None:
    pool = WorkerPool(sleeper, workers=1)
    await filled(pool, 1, 2, 3)
    report = await pool.close(drain_timeout=0)
    assert now() == 0
    assert [entry.job for entry in report.unfinished] == [1, 2, 3]


@virtual
async def test_drain_asks_for_the_end_and_returns_at_once() -> None:
    pool = WorkerPool(sleeper, workers=1)
    [handle] = await filled(pool, 1)
    pool.drain()
    assert not handle.done()
    with pytest.raises(PoolClosed):
        pool.submit_nowait(1)
    await pool.close()
    assert await handle == 1


# -- Step 3: cancel


@fuzzed
async def test_queued_jobs_are_settled_before_running_ones_are_cancelled_so_that_none_of_them_begins() -> None:
    handler = ManualHandler[int, None]()
    pool = WorkerPool(handler, workers=2)
    await filled(pool, *range(8))
    await handler.wait_started(2)
    await pool.close(drain_timeout=0)
    assert sorted(handler.started) == [0, 1]
    assert sorted(handler.cancelled) == [0, 1]


@fuzzed
async def test_unfinished_jobs_come_in_the_order_of_submission_with_whether_they_had_started() -> None:
    pool = WorkerPool(sleeper, workers=2, priority=lambda job: -job)
    handles = await filled(pool, 100, 101, 102, 103, 104)
    await settle()
    [queued] = [handle for handle in handles if handle.job == 102]
    queued.cancel()
    report = await pool.close(drain_timeout=0)
    assert [entry.job for entry in report.unfinished] == [100, 101, 103, 104]
    assert sum(entry.started for entry in report.unfinished) == 2
    outcomes = {handle.job: await handle.outcome() for handle in handles}
    assert all(entry.started == outcomes[entry.job].started for entry in report.unfinished)


@fuzzed
async def test_a_job_that_its_owner_cancelled_is_not_handed_back() -> None:
    pool = WorkerPool(ignores_cancel, workers=2)
    handles = await filled(pool, 3, 1000, 1)
    await settle()
    for handle in handles:
        handle.cancel()
    report = await pool.close(drain_timeout=0, grace=1)
    assert [entry.job for entry in report.unfinished] == []
    assert [entry.job for entry in report.abandoned] == [3, 1000]
    await asyncio.sleep(1000)


@fuzzed
async def test_a_job_may_clean_up_in_its_own_time_within_half_of_the_grace() -> None:
    cleaned = []

    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2.4)
            cleaned.append(job)

    pool = WorkerPool(handler, workers=2)
    await filled(pool, 1, 2)
    await settle()
    report = await pool.close(drain_timeout=0)
    assert sorted(cleaned) == [1, 2]
    assert now() == 2.4
    assert not report.abandoned


@fuzzed
async def test_a_value_returned_in_spite_of_the_cancellation_is_a_success() -> None:
    async def handler(job: int) -> str:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
        return "saved"

    pool = WorkerPool(handler, workers=1)
    [handle] = await filled(pool, 1)
    await settle()
    report = await pool.close(drain_timeout=0)
    assert await handle == "saved"
    assert not report.unfinished


@fuzzed
async def test_cancel_asks_for_step_3_and_returns_at_once() -> None:
    pool = WorkerPool(sleeper, workers=1)
    handles = await filled(pool, 100, 100)
    await settle()
    pool.cancel()
    pool.cancel()
    report = await pool.close()
    assert now() == 0
    assert [(await handle.outcome()).reason for handle in handles] == [CancelReason.SHUTDOWN] * 2
    assert [entry.started for entry in report.unfinished] == [True, False]


@fuzzed
async def test_a_job_may_cancel_its_pool() -> None:
    pool: WorkerPool[int, None]

    async def handler(job: int) -> None:
        pool.cancel()
        await asyncio.sleep(1000)

    pool = WorkerPool(handler, workers=1)
    [handle] = await filled(pool, 1)
    assert isinstance(await handle.outcome(), Cancelled)
    await pool.close()


# -- Step 4: abandon


@fuzzed
async def test_a_job_that_ignores_its_cancellation_is_abandoned_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    pool = WorkerPool(ignores_cancel, workers=3)
    handles = await filled(pool, 100, 1, 200)
    await settle()
    report = await pool.close(drain_timeout=0, grace=2)
    assert now() == 2
    assert [entry.job for entry in report.abandoned] == [100, 200]
    assert [entry.job for entry in report.unfinished] == [100, 200]
    outcome = await handles[0].outcome()
    assert isinstance(outcome, Cancelled)
    assert outcome.reason is CancelReason.ABANDONED
    assert outcome.started
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert sum("abandoned a job that ignores its cancellation" in error for error in errors) == 2
    assert_conserved(pool)
    await asyncio.sleep(200)
    assert "abandoned when the pool closed, has ended" in caplog.text
    assert_conserved(pool)


@fuzzed
async def test_a_job_is_named_once_when_it_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    async with WorkerPool(ignores_cancel, workers=2) as pool:
        handle = await pool.submit(20)
        await settle()
        handle.cancel()
        await asyncio.sleep(4.9)
        assert pool.stats.stuck == 0
        await asyncio.sleep(0.2)
        assert pool.stats.stuck == 1
        assert pool.stats.running == 1
        await asyncio.sleep(10)
        assert caplog.text.count("was cancelled 5 s ago and is still running; it keeps worker") == 1
        await asyncio.sleep(10)
        assert pool.stats.stuck == pool.stats.running == 0


@virtual
async def test_grace_0_gives_jobs_their_last_turns_and_no_time() -> None:
    pool = WorkerPool(sleeper, workers=2)
    await filled(pool, 100, 100)
    await settle()
    report = await pool.close(drain_timeout=0, grace=0)
    assert now() == 0
    assert not report.abandoned
    assert len(report.unfinished) == 2


# -- Who calls


@fuzzed
async def test_every_caller_of_close_gets_the_same_report() -> None:
    pool = WorkerPool(sleeper, workers=1)
    await filled(pool, 1, 2)
    assert pool.report is None
    reports = await asyncio.gather(*(pool.close(drain_timeout=1.5) for _ in range(3)))
    assert all(report is pool.report for report in reports)
    assert await pool.close() is pool.report


@fuzzed
async def test_a_later_close_can_only_shorten() -> None:
    pool = WorkerPool(ignores_cancel, workers=1)
    await filled(pool, 1000)
    await settle()
    closing = asyncio.create_task(pool.close(drain_timeout=10, grace=3))
    await settle()
    for longer in ({}, {"drain_timeout": 100}, {"drain_timeout": 100, "grace": 100}):
        asyncio.get_running_loop().call_soon(lambda longer=longer: pool.drain(**longer))
    await closing
    assert now() == 13
    await asyncio.sleep(1000)


@fuzzed
async def test_a_later_close_does_not_lengthen_a_grace_that_runs() -> None:
    pool = WorkerPool(ignores_cancel, workers=1)
    await filled(pool, 1000)
    await settle()
    closing = asyncio.create_task(pool.close(drain_timeout=0, grace=2))
    await asyncio.sleep(1)
    pool.drain(grace=100)
    await closing
    assert now() == 2
    await asyncio.sleep(1000)


@fuzzed
async def test_a_later_close_shortens_each_step() -> None:
    pool = WorkerPool(ignores_cancel, workers=1)
    await filled(pool, 1000)
    await settle()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(1)
    pool.drain(drain_timeout=1, grace=100)
    await asyncio.sleep(2)
    assert not closing.done()
    pool.drain(grace=1)
    await closing
    assert now() == 4
    await asyncio.sleep(1000)


@fuzzed
async def test_close_from_another_task_than_start_is_fine() -> None:
    pool = WorkerPool(sleeper, workers=1)
    await asyncio.create_task(pool.start())
    handle = await asyncio.create_task(pool.submit(1))
    await asyncio.create_task(pool.close())
    assert await handle == 1


@fuzzed
async def test_a_job_that_closes_or_joins_its_pool_gets_pool_deadlock() -> None:
    pool: WorkerPool[str, Any]

    async def handler(what: str) -> None:
        wait = {"close": pool.close, "join": pool.join}[what.removesuffix(" in a task")]
        await (asyncio.create_task(wait()) if what.endswith("task") else wait())

    pool = WorkerPool(handler, workers=1)
    async with pool:
        for what in ("close", "join", "close in a task", "join in a task"):
            with pytest.raises(PoolDeadlock, match=what.split()[0]):
                await pool.run(what)
        assert pool.report is None


@fuzzed
async def test_a_job_may_close_another_pool() -> None:
    inner = WorkerPool(sleeper, workers=1)
    await filled(inner, 1)

    async def handler(job: int) -> Any:
        return await inner.close()

    async with WorkerPool(handler, workers=1) as pool:
        assert await pool.run(1) is inner.report


# -- A close that is cancelled


@fuzzed
async def test_close_cancelled_once_goes_to_step_3_and_waits_on() -> None:
    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2)

    pool = WorkerPool(handler, workers=1)
    await filled(pool, 1, 2)
    await settle()
    closing = asyncio.create_task(pool.close())
    cancel_soon(closing, 1)
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert now() == 3
    assert pool.report is not None
    assert [entry.started for entry in pool.report.unfinished] == [True, False]
    assert not pool.report.abandoned


@fuzzed
async def test_close_cancelled_twice_goes_to_step_4() -> None:
    pool = WorkerPool(ignores_cancel, workers=1)
    await filled(pool, 100)
    await settle()
    closing = asyncio.create_task(pool.close())
    cancel_soon(closing, 1)
    cancel_soon(closing, 2)
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert now() == 2
    assert pool.report is not None
    assert len(pool.report.abandoned) == 1
    await asyncio.sleep(100)


@fuzzed
async def test_a_level_triggered_cancel_counts_once() -> None:
    pool = WorkerPool(ignores_cancel, workers=1)
    await filled(pool, 3)
    await settle()
    with anyio.move_on_after(1) as scope:
        await pool.close()
    assert scope.cancelled_caught
    assert now() == 3
    assert pool.report is not None
    assert not pool.report.abandoned


@fuzzed
async def test_a_cancelled_close_does_not_end_that_of_another_caller() -> None:
    pool = WorkerPool(sleeper, workers=1)
    await filled(pool, 1000)
    first, second = (asyncio.create_task(pool.close()) for _ in range(2))
    await settle()
    first.cancel()
    assert await second is pool.report
    assert first.cancelled() or not first.done()
    await asyncio.wait([first])


# -- The block


@fuzzed
async def test_a_clean_exit_drains() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        handle = await pool.submit(10)
    assert handle.done()
    assert now() == 10


@fuzzed
async def test_an_exit_by_exception_cancels() -> None:
    with pytest.raises(KeyError, match="body"):
        async with WorkerPool(sleeper, workers=1) as pool:
            handle = await pool.submit(10)
            await settle()
            raise KeyError("body")
    assert now() == 0
    with pytest.raises(JobCancelled):
        await handle


@fuzzed
async def test_the_exception_of_the_body_wins_over_those_of_closing() -> None:
    class Resource:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc: object) -> None:
            raise OSError("closing")

    async def handler(job: int, resource: None) -> int:
        return job

    with pytest.raises(KeyError, match="body"):
        async with WorkerPool(handler, workers=2, resource=Resource) as pool:
            raise KeyError("body")
    assert pool.report is not None
    assert {str(error) for error in pool.report.errors} == {"closing"}


@fuzzed
async def test_a_pool_that_was_closed_inside_the_block_leaves_it_well() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        await pool.close()
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.submit(1000)
        pool.cancel()
    assert now() == 0


@fuzzed
async def test_no_task_is_left_behind() -> None:
    async with WorkerPool(sleeper, workers=5) as pool:
        await pool.outcomes([1] * 10)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- join


@fuzzed
async def test_join_waits_until_nothing_is_queued_or_running() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        await pool.join()
        assert now() == 0
        for _ in range(4):
            await pool.submit(1)
        await pool.join()
        assert now() == 2
        assert pool.stats.succeeded == 4
        assert await pool.run(1) == 1


@fuzzed
async def test_join_sees_a_moment_without_jobs_even_if_more_follow_at_once() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:

        async def submit_again() -> None:
            for _ in range(5):
                await pool.run(1)

        submitting = asyncio.create_task(submit_again())
        await settle()
        await pool.join()
        assert now() == 1
        await submitting


@fuzzed
async def test_join_ends_when_the_last_queued_job_is_cancelled_or_the_pool_is() -> None:
    pool = WorkerPool(sleeper, workers=1)
    pool.pause()
    [handle] = await filled(pool, 1)
    joining = asyncio.create_task(pool.join())
    await settle()
    handle.cancel()
    await joining
    await pool.submit(1)
    joining = asyncio.create_task(pool.join())
    await settle()
    pool.cancel()
    await joining
    await pool.close()


@virtual
async def test_a_cancelled_join_changes_nothing() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.submit(5)
        with anyio.move_on_after(1):
            await pool.join()
        await pool.join()
        assert now() == 5


# -- Without a close


def test_asyncio_run_ends_though_a_pool_was_never_closed() -> None:
    pool = WorkerPool(sleeper, workers=2)

    async def main() -> None:
        await filled(pool, *[1000] * 5)
        await settle()

    asyncio.run(main())
    assert pool.report is not None
    assert [entry.started for entry in pool.report.unfinished] == [True, True, False, False, False]
    assert pool.stats.cancelled == 5


def test_asyncio_run_hands_back_the_jobs_of_a_pool_with_resources_that_was_never_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = []

    class Resource:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc: object) -> None:
            left.append(1)

    async def handler(job: float, resource: None) -> None:
        await asyncio.sleep(job)

    pool = WorkerPool(handler, workers=3, resource=Resource)

    async def main() -> None:
        await filled(pool, *[1000] * 5)
        await settle()

    asyncio.run(main())
    assert len(left) == 3
    assert pool.report is not None
    assert len(pool.report.unfinished) == 5
    assert not pool.report.errors
    assert [record.getMessage() for record in caplog.records] == [
        "pool 'pool': closed with 5 unfinished jobs, listed in pool.report; the first is 1000"
    ]


@virtual
async def test_unfinished_jobs_are_logged_if_nobody_awaits_the_report(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="body"):
        async with WorkerPool(sleeper, workers=1) as pool:
            await pool.submit(10)
            await pool.submit(20)
            raise ValueError("body")
    assert "closed with 2 unfinished jobs" in caplog.text


@virtual
async def test_unfinished_jobs_are_not_logged_if_the_report_is_awaited(caplog: pytest.LogCaptureFixture) -> None:
    pool = WorkerPool(sleeper, workers=1)
    await filled(pool, 10, 20)
    assert len((await pool.close(drain_timeout=0)).unfinished) == 2
    assert caplog.text == ""


def test_asyncio_run_ends_though_a_pool_had_just_been_started() -> None:
    class Resource:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *exc: object) -> None: ...

    async def handler(job: float, resource: None) -> None: ...

    pool = WorkerPool(handler, workers=3, resource=Resource)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        runner.run(pool.start())
    assert pool.report is not None
    assert loop.time() == 0


def test_keyboard_interrupt_in_a_job_settles_it_and_goes_on_to_the_program() -> None:
    handles = []

    async def handler(job: int) -> None:
        await asyncio.sleep(0)
        if job == 1:
            raise KeyboardInterrupt

    async def main() -> None:
        async with WorkerPool(handler, workers=1) as pool:
            handles.append(await pool.submit(1))
            handles.append(await pool.submit(2))
            await asyncio.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert handles[0].done()
    outcome = handles[0]._completion.job.outcome
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, KeyboardInterrupt)
    assert handles[1].done()


# -- Arguments


@pytest.mark.parametrize("name", ["drain_timeout", "grace"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(True, TypeError), ("1", TypeError), (-1, ValueError), (math.nan, ValueError), (math.inf, ValueError)],
)
@virtual
async def test_seconds_are_checked_before_anything_is_stopped(name: str, value: Any, error: type[Exception]) -> None:
    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(error, match=f"{name} must be a .*number of seconds.*, got"):
            await pool.close(**{name: value})
        with pytest.raises(error, match=f"{name} must be"):
            pool.drain(**{name: value})
        assert await pool.run(1) == 1


@virtual
async def test_grace_none_is_refused() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(TypeError, match="grace must be a number of seconds, got None"):
            await pool.close(grace=None)  # type: ignore[arg-type]


# -- What was found late


@pytest.mark.parametrize("ordered", [True, False])
def test_cancelling_a_pool_hands_back_every_accepted_input_of_its_maps(ordered: bool) -> None:
    async def main() -> None:
        pool = WorkerPool(sleeper, workers=2)
        await pool.start()
        delivered = []
        with pytest.raises(JobCancelled):
            async for value in pool.map([1.0, 1.0, *[1000.0] * 30], ordered=ordered):
                delivered.append(value)
                pool.cancel()
        report = await pool.close()
        assert len(delivered) + len(report.unfinished) >= pool.stats.submitted - 1
        assert pool.stats.succeeded + len(report.unfinished) == pool.stats.submitted

    run(main)


@virtual
async def test_a_drain_keeps_its_grace_when_the_block_is_left() -> None:
    left_at = []

    async def stubborn(job: int) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(30)
            left_at.append(now())

    with pytest.raises(PoolClosed):
        async with WorkerPool(stubborn, workers=1) as pool:
            await pool.submit(1)
            pool.drain(drain_timeout=1, grace=60)
            await pool.submit(2)
    assert left_at == [31]
    assert pool.report is not None
    assert not pool.report.abandoned


@virtual
async def test_a_reader_wakes_when_its_source_is_abandoned() -> None:
    forever = asyncio.Event()

    async def source() -> Any:
        yield 1
        while not forever.is_set():
            try:
                await forever.wait()
            except asyncio.CancelledError:
                continue

    pool = WorkerPool(echo, workers=1)
    await pool.start()
    read = []

    async def reader() -> None:
        with pytest.raises(PoolClosed):
            async for value in pool.map(source()):
                read.append(value)

    reading = asyncio.create_task(reader())
    await settle()
    report = await pool.close(grace=1)
    await reading
    assert read == [1]
    assert [type(error) for error in report.errors] == [TimeoutError]
    forever.set()
    await settle()


# -- What is special at the end of a job, though it comes while nothing is due: within two milliseconds of the last look


async def swallows_cancel(job: object) -> object:
    """Return in spite of the cancellation, in the step in which it comes."""
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        pass
    return job


@virtual
async def test_a_cancelled_job_that_returns_at_once_is_not_called_stuck_later(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(swallows_cancel, workers=2) as pool:
        first, second = await pool.submit(1), await pool.submit(2)
        await settle()
        first.cancel()  # the pool checks its end in any case, and checks again in two milliseconds
        await settle()
        second.cancel()
        assert [await handle for handle in (first, second)] == [1, 2]
        await asyncio.sleep(10)
        assert pool.stats.stuck == 0
    assert "ignores its cancellation" not in caplog.text


@virtual
async def test_a_cancelled_job_is_not_forgotten_when_another_ends_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()

    async def handler(job: str) -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.001)  # less than it takes until something is due again
        return job

    async with WorkerPool(handler, workers=2) as pool:
        cancelled, other = await pool.submit("cancelled"), await pool.submit("other")
        await asyncio.sleep(1)
        cancelled.cancel()
        gate.set()
        assert await other == "other"
        assert await cancelled == "cancelled"
        await asyncio.sleep(10)
        assert pool.stats.stuck == 0
    assert "ignores its cancellation" not in caplog.text


@virtual
async def test_a_job_that_ends_right_after_it_was_abandoned_has_one_outcome(caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()

    async def handler(job: int) -> int:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                pass
        return job

    pool = WorkerPool(handler, workers=2)
    await pool.start()
    handles = [await pool.submit(job) for job in range(2)]
    await settle()
    report = await pool.close(drain_timeout=0, grace=0)
    assert [entry.job for entry in report.abandoned] == [0, 1]
    gate.set()
    await settle()
    assert_conserved(pool)
    assert pool.stats.cancelled == 2
    for handle in handles:
        assert isinstance(await handle.outcome(), Cancelled)
    assert caplog.text.count("abandoned when the pool closed, has ended") == 2


@pytest.mark.parametrize("pause", [0.0, 1.0])
@virtual
async def test_surplus_workers_retire_with_the_very_next_jobs_that_end(pause: float) -> None:
    handler: ManualHandler[int, int] = ManualHandler()
    async with WorkerPool(handler, workers=4) as pool:
        handles = [await pool.submit(job) for job in range(5)]
        await settle()
        handler.finish(0)  # from now on nothing is due for two milliseconds
        await handles[0]
        pool.resize(1)
        await asyncio.sleep(pause)
        for job in range(1, 4):
            handler.finish(job)
        await settle()
        assert pool.stats.workers == pool.stats.running == 1
        handler.finish(4)


@virtual
async def test_an_input_that_its_reader_gave_up_is_not_handed_back() -> None:
    async with WorkerPool(echo, workers=1) as pool:

        def source() -> Iterator[int]:
            yield 1
            stream.cancel()
            pool.drain()
            yield 2  # pulled, and given up before the pool began to close

        stream = pool.outcomes(source())
        with pytest.raises(StreamClosed):
            async for _ in stream:
                pass
        report = await pool.close()
    assert report.unfinished == ()
    assert pool.stats.cancelled == pool.stats.submitted == 2
