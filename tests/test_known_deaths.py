"""Ways in which pools of this kind are known to die, one or more tests each; also under random schedules."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Cancelled,
    Failed,
    JobCancelled,
    JobCrashed,
    PoolClosed,
    PoolDeadlock,
    QueueFull,
    Succeeded,
    WorkerPool,
)
from asyncpool.testing import ManualHandler, cancel_at, settle
from tests.helpers import Source, assert_conserved, echo, fuzzed, ignores_cancel, later, now, sleeper, virtual

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="default")


async def cancelled_elsewhere(job: object) -> None:
    """Await a task that somebody else cancels."""
    task = asyncio.create_task(asyncio.sleep(100))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


# -- A job awaits a task that was cancelled elsewhere, and takes its worker with it


@pytest.mark.parametrize("workers", [1, 2, 10])
@fuzzed
async def test_a_job_that_awaits_a_cancelled_task_fails_alone_and_its_worker_lives_on(workers: int) -> None:
    async def handler(job: int) -> int:
        if job % 2:
            await cancelled_elsewhere(job)
        return job

    async with WorkerPool(handler, workers=workers) as pool:
        outcomes = await pool.outcomes(range(40), ordered=True)
        assert pool.stats.workers == workers
    assert [isinstance(outcome, Succeeded) for outcome in outcomes] == [True, False] * 20
    assert all(isinstance(outcome.error, asyncio.CancelledError) for outcome in outcomes if isinstance(outcome, Failed))


# -- Break out of a stream leaves orphans, or waits for all inputs


@pytest.mark.parametrize("ordered", [True, False])
@fuzzed
async def test_breaking_out_of_a_stream_cancels_what_runs_and_pulls_no_more(ordered: bool) -> None:
    running = 0

    async def handler(job: int) -> int:
        nonlocal running
        running += 1
        try:
            await asyncio.sleep(1 if job == 0 else 1000)
        finally:
            running -= 1
        return job

    source = Source(range(10_000))
    async with WorkerPool(handler, workers=3, queue_size=2) as pool:
        async for value in pool.map(source.sync(), ordered=ordered):
            assert value == 0
            break
        await settle()
        assert running == 0
        assert pool.stats.queued == pool.stats.running == 0
        assert source.closed
        assert len(source.pulled) <= 6
        assert now() == 1


@fuzzed
async def test_breaking_out_of_a_stream_that_is_held_in_a_variable_cancels_it_too() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        stream = pool.map([1, 1000, 1000, 1000])
        async for _ in stream:
            break
        await settle()
        assert pool.stats.queued == pool.stats.running == 0


@fuzzed
async def test_leaving_a_stream_by_async_with_waits_for_its_jobs_and_not_for_all_inputs() -> None:
    handler = ManualHandler[int, None]()
    source = Source(range(10_000))
    async with WorkerPool(handler, workers=2) as pool:
        async with pool.map(source.later(), ordered=False) as stream:
            reader = asyncio.create_task(anext(aiter(stream)))
            await handler.wait_started(2)
            handler.finish(handler.started[0])
            await reader
        assert handler.running == []
        assert source.closed


# -- An outer timeout hangs the exit


@fuzzed
async def test_a_timeout_around_the_pool_ends_it() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            async with WorkerPool(sleeper, workers=2) as pool:
                await pool.map([1000] * 50)
    assert now() == 5
    assert pool.report is not None
    assert pool.stats.running == pool.stats.queued == 0


@fuzzed
async def test_a_timeout_during_the_exit_ends_it() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            async with WorkerPool(sleeper, workers=2) as pool:
                for _ in range(10):
                    await pool.submit(1000)
    assert now() == 5
    assert pool.report is not None
    assert len(pool.report.unfinished) == 10


async def use_run(pool: WorkerPool[float, None]) -> None:
    await pool.run(1000)


async def use_stream(pool: WorkerPool[float, None]) -> None:
    async with pool.outcomes([1000, 1000, 1000]) as stream:
        async for _ in stream:
            pass


async def use_list(pool: WorkerPool[float, None]) -> None:
    await pool.map([1000, 1000])


async def use_group(pool: WorkerPool[float, None]) -> None:
    async with pool.group() as group:
        await group.submit(1000)
        async for _ in group:
            pass


@pytest.mark.parametrize("use", [use_run, use_stream, use_list, use_group])
@fuzzed
async def test_a_timeout_around_a_job_that_ignores_its_cancellation_ends_the_wait_and_the_pool(use: Any) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            async with WorkerPool(ignores_cancel, workers=2) as pool:
                await use(pool)
    assert now() == 1 + 5 + 5  # until it is called stuck, and the grace of the pool's end
    assert pool.report is not None
    assert pool.report.abandoned
    assert_conserved(pool)
    await asyncio.sleep(1000)


@fuzzed
async def test_a_job_that_is_stuck_already_is_not_waited_for() -> None:
    async with WorkerPool(ignores_cancel, workers=2, timeout=1) as pool:
        running = asyncio.create_task(pool.run(100))
        stream = pool.outcomes([100])
        reading = asyncio.create_task(anext(aiter(stream)))
        await asyncio.sleep(10)
        assert pool.stats.stuck == 2
        running.cancel()
        reading.cancel()
        await asyncio.wait([running, reading])
        await stream.aclose()
        assert now() == 10
    assert_conserved(pool)


@pytest.mark.parametrize("ordered", [True, False])
@fuzzed
async def test_leaving_a_stream_waits_for_the_jobs_that_end_beside_one_that_is_stuck_already(ordered: bool) -> None:
    async def handler(seconds: float) -> None:
        if seconds == 1000:
            await ignores_cancel(seconds)
        try:
            await asyncio.sleep(seconds)
        finally:
            await asyncio.sleep(2)

    async with WorkerPool(handler, workers=3, timeout=10) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(15.5):
                await pool.outcomes([1000, 5.7, 5.7, 100, 100], ordered=ordered)  # the last two time out at 17.7
        assert now() == 15.5 + 2
        assert (pool.stats.stuck, pool.stats.running) == (1, 1)
    assert_conserved(pool)


@fuzzed
async def test_a_source_that_ignores_its_end_is_waited_for_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()

    async def source() -> Any:
        yield 1
        await ignores_cancel(1000)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            async with WorkerPool(echo, workers=1) as pool, pool.map(source()) as stream:
                async for _ in stream:
                    pass
    assert now() == 1 + 5 + 5
    assert "the source is still running 5 s after it was asked to stop" in caplog.text
    await asyncio.sleep(1000)


# -- A failure with a full queue leaves the producer blocked permanently


@fuzzed
async def test_a_failure_with_a_full_queue_does_not_block_the_producer() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(1)
        raise ValueError(job)

    async with WorkerPool(handler, workers=1, queue_size=1) as pool:
        handles = [await pool.submit(job) for job in range(10)]
        outcomes = [await handle.outcome() for handle in handles]
    assert [outcome.job for outcome in outcomes if isinstance(outcome, Failed)] == list(range(10))


@fuzzed
async def test_a_failure_in_map_with_a_full_queue_ends_the_stream_and_frees_the_other_submitters() -> None:
    async def handler(job: int) -> int:
        await asyncio.sleep(1)
        if job == 2:
            raise ValueError(job)
        return job

    async with WorkerPool(handler, workers=1, queue_size=1) as pool:
        waiting = asyncio.create_task(pool.run(100))
        with pytest.raises(ValueError, match="2"):
            await pool.map(range(50))
        assert await waiting == 100
        assert await pool.run(101) == 101


# -- Context variables leak from one job to the next, or the job runs in the wrong submitter's context


async def take_variable(name: str) -> str:
    seen = VARIABLE.get()
    VARIABLE.set(f"set by job {name}")
    await asyncio.sleep(1)
    return seen


@pytest.mark.parametrize("workers", [1, 2, 10])
@fuzzed
async def test_context_variables_do_not_leak_from_one_job_to_the_next(workers: int) -> None:
    async with WorkerPool(take_variable, workers=workers) as pool:
        assert set(await pool.map(map(str, range(12)))) == {"default"}
    assert VARIABLE.get() == "default"


@fuzzed
async def test_a_job_runs_in_the_context_of_its_own_submitter() -> None:
    async with WorkerPool(take_variable, workers=1, queue_size=0) as pool:

        async def submitter(name: str) -> str:
            VARIABLE.set(name)
            return await pool.run(name)

        names = list("abcdef")
        assert await asyncio.gather(*(submitter(name) for name in names)) == names


@fuzzed
async def test_a_job_of_a_group_runs_in_the_context_of_its_own_submitter() -> None:
    async with WorkerPool(take_variable, workers=1) as pool:
        VARIABLE.set("maker of the group")
        async with pool.group() as group:

            async def submitter(name: str) -> None:
                VARIABLE.set(name)
                await group.submit(name)

            await asyncio.gather(*(submitter(name) for name in "abc"))
        seen = {outcome.job: outcome.unwrap() async for outcome in group}
        assert seen == {"a": "a", "b": "b", "c": "c"}


@fuzzed
async def test_jobs_of_a_stream_run_in_the_context_of_the_call_that_made_it() -> None:
    async with WorkerPool(take_variable, workers=2) as pool:
        VARIABLE.set("at map")
        stream = pool.map("abc")
        VARIABLE.set("later")
        assert await stream == ["at map"] * 3


# -- Clear or crash leaves awaiters pending


@pytest.mark.parametrize("end", ["close", "cancel", "crash"])
@fuzzed
async def test_no_awaiter_is_left_pending_when_the_pool_ends(end: str) -> None:
    pool = WorkerPool(sleeper, workers=2, queue_size=2)
    await pool.start()

    async def read_group() -> list[Any]:
        async with pool.group() as group:
            await group.submit(1000)
        return [outcome async for outcome in group]

    async def read_stream() -> list[Any]:
        return await pool.outcomes([1000] * 5)

    runs = [asyncio.create_task(pool.run(1000)) for _ in range(6)]
    waiters = [*runs, *(asyncio.create_task(wait()) for wait in (read_group, read_stream, pool.join))]
    await settle()
    if end == "close":
        await pool.close(drain_timeout=0)
    elif end == "cancel":
        pool.cancel()
    else:
        [supervisor] = [task for task in asyncio.all_tasks() if task.get_name() == "pool supervisor"]
        supervisor.cancel()
    _, pending = await asyncio.wait(waiters, timeout=100)
    assert not pending
    assert all(isinstance(task.exception(), (JobCancelled, PoolClosed)) for task in runs)
    await pool.close()
    for task in waiters[6:]:
        task.exception()
    assert_conserved(pool)


# -- Cancel arrives between dequeue and accounting, and the item is lost


@fuzzed
async def test_no_job_is_lost_when_jobs_are_cancelled_at_any_moment() -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=3) as pool:
        handles = []
        for number in range(12):
            handles.append(await pool.submit(1))
            for victim in handles[::3]:
                victim.cancel()
            if number % 4 == 0:
                await asyncio.sleep(0)
            assert_conserved(pool)
        outcomes = [await handle.outcome() for handle in handles]
        assert all(isinstance(outcome, (Succeeded, Cancelled)) for outcome in outcomes)
        assert pool.stats.submitted == 12
        assert pool.stats.succeeded + pool.stats.cancelled == 12
        assert pool.stats.workers == 2


@fuzzed
async def test_a_job_cancelled_before_its_first_step_has_an_outcome() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        handle = pool.submit_nowait(1)
        handle.cancel()
        assert isinstance(await handle.outcome(), Cancelled)
        assert pool.stats.cancelled == 1
        assert await pool.run(1) == 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("step", range(1, 7))
@fuzzed
async def test_a_reader_cancelled_at_any_point_loses_no_outcome(step: int, late: bool) -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=1) as pool:
        reader = aiter(pool.outcomes([1, 2, 3, 4, 5]))
        seen: list[Any] = []

        async def read() -> None:
            async for outcome in reader:
                seen.append(outcome.job)

        await cancel_at(step, read, late=late)
        if len(seen) < 5:
            await read()
        assert sorted(seen) == [1, 2, 3, 4, 5]


# -- An input already pulled from the source is in nobody's hands


@pytest.mark.parametrize("kind", ["sync", "later"])
@pytest.mark.parametrize("seconds", [0, 0.5, 1, 2.5])
@fuzzed
async def test_every_pulled_input_has_an_outcome_or_is_handed_back_when_the_pool_is_cancelled(
    kind: str, seconds: float
) -> None:
    source = Source(range(100))
    seen: list[int] = []
    async with WorkerPool(lambda job: sleeper(1), workers=2, queue_size=1) as pool:
        asyncio.get_running_loop().call_later(seconds, pool.cancel)
        with pytest.raises(PoolClosed):
            async for outcome in pool.outcomes(getattr(source, kind)()):
                seen.append(outcome.job)
    assert sorted(seen) == source.pulled
    assert pool.stats.submitted == len(source.pulled)


@fuzzed
async def test_an_input_pulled_while_the_pool_closes_is_handed_back() -> None:
    async def source() -> Any:
        yield 1
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            yield 2

    async with WorkerPool(echo, workers=1) as pool:
        stream = aiter(pool.outcomes(source()))
        assert (await anext(stream)).unwrap() == 1
        report = await pool.close()
        assert [entry.job for entry in report.unfinished] == [2]
        outcome = await anext(stream)
        assert isinstance(outcome, Cancelled)
        assert outcome.job == 2
        with pytest.raises(PoolClosed):
            await anext(stream)


# -- Cancel of a woken waiter loses the wake-up


@pytest.mark.parametrize("late", [False, True])
@fuzzed
async def test_cancelled_submitter_passes_its_place_on(late: bool) -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        await pool.submit(1)
        first = asyncio.create_task(cancel_at(1, lambda: pool.submit(1000), late=late))
        await settle()
        second = asyncio.create_task(pool.run(1))
        assert await second == 1
        assert (await first).cancelled
        assert now() == 2
        assert pool.stats.submitted == 2


@pytest.mark.parametrize("late", [False, True])
@fuzzed
async def test_a_reader_cancelled_when_it_was_woken_leaves_the_outcome_to_the_next(late: bool) -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        reader = aiter(pool.map([1]))
        await cancel_at(1, lambda: anext(reader), late=late)
        async with asyncio.timeout(10):
            values = [value async for value in reader]
        assert values in ([1], [])


# -- A put_nowait overtakes waiting putters indefinitely


@fuzzed
async def test_submit_nowait_never_overtakes_those_who_wait() -> None:
    order: list[str] = []

    async def handler(job: str) -> None:
        order.append(job)
        await asyncio.sleep(1)

    async with WorkerPool(handler, workers=1, queue_size=1) as pool:
        await pool.submit("runs")
        await pool.submit("queued")
        waiting = []
        for number in range(3):
            waiting.append(asyncio.create_task(pool.submit(f"waits {number}")))
            await settle()
        pushed = 0
        while not all(task.done() for task in waiting):
            try:
                pool.submit_nowait("pushes")
                pushed += 1
            except QueueFull:
                await asyncio.sleep(0.1)
        assert pushed == 0
    assert order == ["runs", "queued", "waits 0", "waits 1", "waits 2"]


# -- Limit 1 and limit n behave differently; limit 0 hangs


@pytest.mark.parametrize("workers", [1, 2, 50])
@pytest.mark.parametrize("queue_size", [0, 1, 10])
@pytest.mark.parametrize("items", [0, 1, 2, 20])
@virtual
async def test_all_limits_give_the_same_values(workers: int, queue_size: int, items: int) -> None:
    async with WorkerPool(echo, workers=workers, queue_size=queue_size) as pool:
        assert await pool.map(range(items)) == list(range(items))
        assert await pool.map(later(*range(items))) == list(range(items))
        outcomes = await pool.outcomes(range(items))
        assert sorted(outcome.unwrap() for outcome in outcomes) == list(range(items))


@pytest.mark.parametrize("workers", [1, 2, 50])
@virtual
async def test_with_every_limit_the_source_runs_once(workers: int) -> None:
    source = Source(range(5))
    async with WorkerPool(echo, workers=workers) as pool:
        await pool.map(source.sync())
    assert source.pulled == [0, 1, 2, 3, 4]


def test_limit_0_is_refused_and_does_not_hang() -> None:
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        WorkerPool(echo, workers=0)
    with pytest.raises(ValueError, match="workers must be >= 1, got 0"):
        asyncpool.map(echo, [1], workers=0)


# -- Input that must be a list


@virtual
async def test_input_may_be_endless() -> None:
    def count() -> Any:
        number = 0
        while True:
            yield number
            number += 1

    seen = []
    async with WorkerPool(echo, workers=3) as pool, pool.map(count()) as stream:
        async for value in stream:
            seen.append(value)
            if value == 100:
                break
    assert seen == list(range(101))


# -- Results that hold whole frames


class Payload:
    """Something large that a job has."""


@virtual
async def test_a_failure_that_is_kept_does_not_keep_the_locals_of_its_frames() -> None:
    payloads: list[weakref.ref[Payload]] = []

    def deep() -> None:
        local = Payload()
        payloads.append(weakref.ref(local))
        raise ValueError("no")

    async def handler(job: int) -> None:
        local = Payload()
        payloads.append(weakref.ref(local))
        deep()

    async with WorkerPool(handler, workers=2) as pool:
        kept = await pool.outcomes(range(3))
    assert len(payloads) == 6
    assert [payload() for payload in payloads] == [None] * 6
    del kept


@virtual
async def test_outcomes_make_no_reference_cycles() -> None:
    class Thing:
        def __init__(self, number: int) -> None:
            self.number = number

    async def handler(job: Thing) -> int:
        if job.number % 2:
            raise ValueError(job.number)
        return job.number

    gc.collect()
    gc.disable()
    try:
        async with WorkerPool(handler, workers=2) as pool:
            outcomes = await pool.outcomes(Thing(number) for number in range(10))
            refs = [weakref.ref(outcome.job) for outcome in outcomes]
            del outcomes
            await settle()
            assert [ref() for ref in refs] == [None] * 10
    finally:
        gc.enable()


# -- A job's StopAsyncIteration or CancelledError, re-raised in the waiting task


async def stop_async_iteration(job: object) -> None:
    raise StopAsyncIteration


async def cancelled_error(job: object) -> None:
    raise asyncio.CancelledError


async def system_exit(job: object) -> None:
    raise SystemExit(3)


async def generator_exit(job: object) -> None:
    raise GeneratorExit


def stop_iteration(job: object) -> Any:
    raise StopIteration


HARMFUL = [stop_async_iteration, cancelled_error, cancelled_elsewhere, system_exit, generator_exit, stop_iteration]


@pytest.mark.parametrize("handler", HARMFUL)
@fuzzed
async def test_what_would_harm_an_innocent_caller_comes_as_job_crashed(handler: Any) -> None:
    async with WorkerPool(handler, workers=1) as pool:
        with pytest.raises(JobCrashed) as by_run:
            await pool.run(1)
        with pytest.raises(JobCrashed):
            await (await pool.submit(1))
        [outcome] = await pool.outcomes([1])
        assert isinstance(outcome, Failed)
        with pytest.raises(JobCrashed):
            outcome.unwrap()
    assert type(by_run.value.error) is type(outcome.error)


@pytest.mark.parametrize("handler", HARMFUL)
@pytest.mark.parametrize("ordered", [True, False])
@fuzzed
async def test_what_would_truncate_a_loop_is_raised_out_of_it(handler: Any, ordered: bool) -> None:
    async with WorkerPool(handler, workers=1) as pool:
        with pytest.raises(JobCrashed):
            async for _ in pool.map([1, 2, 3], ordered=ordered):
                pass


@fuzzed
async def test_a_stray_cancelled_error_does_not_end_a_task_group_silently() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with WorkerPool(cancelled_elsewhere, workers=1) as pool, asyncio.TaskGroup() as tasks:
            tasks.create_task(pool.run(1))
    assert isinstance(caught.value.exceptions[0], JobCrashed)


# -- A handler that waits for its own full pool


@pytest.mark.parametrize("workers", [1, 2, 10])
@fuzzed
async def test_a_handler_that_waits_for_its_own_full_pool_gets_pool_deadlock(workers: int) -> None:
    pool: WorkerPool[int, int]

    async def handler(depth: int) -> int:
        await asyncio.sleep(0)
        return depth if depth == 0 else await pool.run(depth - 1)

    pool = WorkerPool(handler, workers=workers)
    async with pool:
        assert await pool.run(workers - 1) == 0
        with pytest.raises(PoolDeadlock, match=f"all {workers} running jobs"):
            await pool.run(workers)
        assert await pool.run(0) == 0


@pytest.mark.parametrize("queue_size", [0, 1])
@fuzzed
async def test_a_handler_that_submits_to_its_own_full_pool_gets_pool_deadlock(queue_size: int) -> None:
    pool: WorkerPool[int, None]

    async def handler(job: int) -> None:
        if job == 0:
            for _ in range(queue_size + 1):
                await pool.submit(1)

    pool = WorkerPool(handler, workers=1, queue_size=queue_size)
    async with pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(0)
