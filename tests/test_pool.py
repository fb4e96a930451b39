"""Intake, handlers, handles, outcomes, priority, observers and statistics of a pool."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import pickle
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    CurrentJob,
    DeadLetters,
    Failed,
    FixedSize,
    JobCancelled,
    JobCrashed,
    JobHandle,
    JobTimeout,
    PoolClosed,
    PoolDeadlock,
    PoolNotStarted,
    PoolReused,
    QueueFull,
    ResourceDied,
    Retry,
    RetryAfter,
    SourceCrashed,
    Stream,
    StreamClosed,
    Succeeded,
    Unfinished,
    WorkerPool,
    WrongLoop,
    current_job,
)
from asyncpool.events import (
    JobAccepted,
    JobEnded,
    JobStarted,
    PoolEnded,
    PoolPaused,
    PoolResized,
    PoolResumed,
    PoolStarted,
    PoolStopping,
)
from asyncpool.testing import ManualHandler, settle
from tests.helpers import assert_conserved, cancel_soon, compute, echo, fuzzed, later, now, sleeper, virtual

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="default")


async def fail(job: Any) -> None:
    raise ValueError(job)


# -- Intake


@pytest.mark.parametrize(("workers", "queue_size"), [(1, 0), (1, 1), (2, 0), (2, 3), (10, 5)])
@fuzzed
async def test_a_pool_has_room_for_queue_size_jobs_and_one_for_each_idle_worker(workers: int, queue_size: int) -> None:
    async with WorkerPool(sleeper, workers=workers, queue_size=queue_size) as pool:
        for _ in range(workers + queue_size):
            pool.submit_nowait(1)
        with pytest.raises(QueueFull, match="is full"):
            pool.submit_nowait(1)
        await settle()
        assert pool.stats.running == workers
        assert pool.stats.queued == queue_size


@virtual
async def test_the_default_queue_size_is_ten_times_the_workers() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        for _ in range(22):
            pool.submit_nowait(1)
        with pytest.raises(asyncio.QueueFull):
            pool.submit_nowait(1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("queue_size", [0, 1, 4])
@fuzzed
async def test_those_who_wait_are_admitted_in_the_order_in_which_they_came(workers: int, queue_size: int) -> None:
    order: list[int] = []
    async with WorkerPool(lambda job: sleeper(1), workers=workers, queue_size=queue_size) as pool:

        async def submit(number: int) -> None:
            await pool.submit(number)
            order.append(number)

        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(submit(number)))
            await settle()
        await asyncio.gather(*tasks)
        handles = sorted(order)
    assert handles == list(range(20))
    assert pool.stats.succeeded == 20


@virtual
async def test_jobs_begin_in_the_order_in_which_their_submitters_came() -> None:
    begun: list[int] = []

    async def handler(job: int) -> None:
        begun.append(job)
        await asyncio.sleep(1)

    async with WorkerPool(handler, workers=1, queue_size=1) as pool:
        await asyncio.gather(*(pool.submit(number) for number in range(10)))
    assert begun == list(range(10))


@virtual
async def test_submit_nowait_raises_queue_full_while_others_wait_though_there_is_room() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1, queue_size=0) as pool:
        await pool.submit(0)
        waiting = asyncio.create_task(pool.submit(1))
        await settle()
        pool.resize(2)  # there is room now, and it is promised
        with pytest.raises(QueueFull):
            pool.submit_nowait(2)
        await waiting
        await settle()
        handler.finish_all()


@fuzzed
async def test_a_submitter_does_not_wait_for_room_that_is_there_while_another_was_just_granted_his() -> None:
    pool = WorkerPool(echo, workers=1, queue_size=3)
    pool.pause()
    async with pool:
        handles = [pool.submit_nowait(number) for number in range(3)]
        waiting = asyncio.create_task(pool.submit(3))
        await settle()
        for handle in handles:
            handle.cancel()
        async with asyncio.timeout(10):
            await pool.submit(4)
            await waiting
        assert pool.stats.queued == 2


@fuzzed
async def test_cancelling_a_queued_job_lets_the_first_who_waits_in() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=1) as pool:
        await pool.submit(100)
        queued = await pool.submit(1)
        waiting = [asyncio.create_task(pool.submit(number)) for number in (2, 3)]
        await settle()
        queued.cancel()
        await settle()
        assert sum(task.done() for task in waiting) == 1
        pool.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@fuzzed
async def test_submit_cancelled_while_it_waits_submits_nothing() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        await pool.submit(5)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await pool.submit(1)
        assert pool.stats.submitted == 1
        await pool.join()
        assert pool.stats.submitted == 1


@pytest.mark.parametrize("workers", [1, 2])
@virtual
async def test_submit_never_runs_handler_code_itself(workers: int) -> None:
    begun: list[int] = []

    async def handler(job: int) -> None:
        begun.append(job)

    async with WorkerPool(handler, workers=workers) as pool:
        pool.submit_nowait(1)
        assert begun == []
        await pool.submit(2)
        assert begun == []
        await pool.join()
        assert begun == [1, 2]


# -- run


@fuzzed
async def test_run_returns_the_value_or_raises_the_error_of_the_job() -> None:
    async def handler(job: int) -> int:
        if job < 0:
            raise ValueError(job)
        return job * 2

    async with WorkerPool(handler, workers=1) as pool:
        assert await pool.run(2) == 4
        with pytest.raises(ValueError, match="-1"):
            await pool.run(-1)
        assert await pool.run(3, if_full="raise") == 6
        assert pool.stats.unread_failures == 0


@virtual
async def test_run_raises_queue_full_if_it_is_told_not_to_wait() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        await pool.submit(1)
        with pytest.raises(QueueFull):
            await pool.run(1, if_full="raise")
        with pytest.raises(ValueError, match='if_full must be "wait" or "raise", got \'drop\''):
            await pool.run(1, if_full="drop")  # type: ignore[arg-type]
        assert pool.stats.submitted == 1


@fuzzed
async def test_run_that_is_cancelled_cancels_its_job_and_waits_for_its_end() -> None:
    ended = []

    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(2)
            ended.append(now())

    async with WorkerPool(handler, workers=1) as pool:
        task = asyncio.create_task(pool.run(1))
        cancel_soon(task, 1)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [3] == [now()]
        assert pool.stats.cancelled == 1


# -- Handlers


class Double:
    async def __call__(self, job: int) -> int:
        return job * 2

    async def method(self, job: int) -> int:
        return job * 2

    @staticmethod
    async def static(job: int) -> int:
        return job * 2


class Awaitable:
    def __init__(self, job: int) -> None:
        self.job = job

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        return self.job * 2


async def times(factor: int, job: int) -> int:
    return job * factor


def future(job: int) -> asyncio.Future[int]:
    result: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    result.set_result(job * 2)
    return result


HANDLERS: list[Callable[[int], Any]] = [
    lambda job: times(2, job),
    functools.partial(times, 2),
    Double(),
    Double().method,
    Double.static,
    Awaitable,
    future,
    lambda job: asyncio.create_task(times(2, job)),
]


@pytest.mark.parametrize("handler", HANDLERS)
@fuzzed
async def test_whatever_returns_an_awaitable_is_a_handler(handler: Callable[[int], Any]) -> None:
    async with WorkerPool(handler, workers=2) as pool:
        assert await pool.map([1, 2, 3]) == [2, 4, 6]


@fuzzed
async def test_a_pool_without_a_handler_runs_callables() -> None:
    async with WorkerPool(workers=2) as pool:
        assert await pool.run(functools.partial(echo, 1)) == 1
        assert await pool.run(lambda: sleeper(2)) == 2
        with pytest.raises(TypeError):
            await pool.run(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="offload"):
            await pool.run(lambda: 5)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("value", [None, 5, "text", [1], iter([])])
@fuzzed
async def test_a_handler_that_returns_no_awaitable_fails_its_job_with_an_error_that_names_offload(value: Any) -> None:
    async with WorkerPool(lambda job: value, workers=1) as pool:
        with pytest.raises(TypeError, match=rf"must return an awaitable, got {type(value).__name__}.*offload"):
            await pool.run(1)


class Unbound:
    """Like the proxies of web frameworks outside of a request: reading its class raises an error."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("outside of a request")


@pytest.mark.parametrize("timeout", [None, 5])
@fuzzed
async def test_a_handler_that_returns_what_cannot_be_looked_at_fails_its_job(timeout: float | None) -> None:
    async with WorkerPool(lambda job: Unbound(), workers=1, timeout=timeout) as pool:  # type: ignore[arg-type,return-value]
        outcomes = await pool.outcomes([1, 2])
        assert [type(outcome) for outcome in outcomes] == [Failed, Failed]


def generator(job: int) -> Iterator[int]:
    yield job


async def async_generator(job: int) -> AsyncIterator[int]:
    yield job


class GeneratorCall:
    def __call__(self, job: int) -> Iterator[int]:
        yield job


@pytest.mark.parametrize(
    "handler",
    [generator, async_generator, GeneratorCall(), functools.partial(generator), functools.partial(async_generator)],
)
def test_generator_functions_are_refused_at_once(handler: Any) -> None:
    with pytest.raises(TypeError, match="handler must return one awaitable, got the generator function"):
        WorkerPool(handler, workers=1)


@pytest.mark.parametrize("handler", [5, "text", [echo]])
def test_what_cannot_be_called_is_refused_at_once(handler: Any) -> None:
    with pytest.raises(TypeError, match="handler must be callable, got"):
        WorkerPool(handler, workers=1)


def test_a_coroutine_is_refused_with_a_hint() -> None:
    coroutine = echo(1)
    with pytest.raises(TypeError, match="pass the function, do not call it"):
        WorkerPool(coroutine, workers=1)  # type: ignore[call-overload]
    coroutine.close()


ERRORS = [ValueError("no"), TimeoutError("mine"), OSError(5, "io"), KeyError("k"), AssertionError(), RecursionError()]


@pytest.mark.parametrize("error", ERRORS)
@fuzzed
async def test_a_handlers_error_is_the_outcome_as_it_is(error: Exception) -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(0)
        raise error

    async with WorkerPool(handler, workers=1, timeout=1) as pool:
        handle = await pool.submit(1)
        outcome = await handle.outcome()
        assert isinstance(outcome, Failed)
        assert outcome.error is error
        with pytest.raises(type(error)) as caught:
            await handle
        assert caught.value is error


@fuzzed
async def test_an_exception_group_is_a_failure_as_any_other() -> None:
    async def handler(job: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(1))

    async with WorkerPool(handler, workers=1) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            await pool.run(1)
        assert isinstance(caught.value.exceptions[0], ValueError)


@fuzzed
async def test_a_job_that_cancels_its_own_task_fails() -> None:
    async def handler(job: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async with WorkerPool(handler, workers=1) as pool:
        with pytest.raises(JobCrashed, match="CancelledError"):
            await pool.run(1)
        assert pool.stats.failed == 1


# -- Context


@fuzzed
async def test_submit_run_and_streams_take_the_context_of_their_caller() -> None:
    async def handler(job: int) -> str:
        return VARIABLE.get()

    async with WorkerPool(handler, workers=1) as pool:
        VARIABLE.set("a")
        handle = await pool.submit(1)
        nowait = pool.submit_nowait(1)
        stream = pool.map([1])
        VARIABLE.set("b")
        assert await pool.run(1) == "b"
        assert [await handle, await nowait, *await stream] == ["a", "a", "a"]


# -- current_job


@virtual
async def test_a_handler_and_the_tasks_that_it_spawns_know_their_job() -> None:
    async def spawned() -> CurrentJob:
        return current_job()

    async def handler(job: int) -> tuple[CurrentJob, CurrentJob]:
        return current_job(), await asyncio.create_task(spawned())

    async with WorkerPool(handler, workers=1, name="mine") as pool:
        first = await pool.run(1)
        second = await pool.run(1)
    assert first == (CurrentJob(pool="mine", id=1, attempt=1, worker=1),) * 2
    assert second[0].id == 2


@fuzzed
async def test_two_jobs_that_run_at_the_same_time_have_different_workers() -> None:
    running: set[int] = set()

    async def handler(job: int) -> None:
        worker = current_job().worker
        assert worker not in running
        running.add(worker)
        await asyncio.sleep(job % 3)
        running.remove(worker)

    async with WorkerPool(handler, workers=3) as pool:
        outcomes = await pool.outcomes(range(30))
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
    assert {outcome.worker for outcome in outcomes} == {1, 2, 3}


@virtual
async def test_outside_of_a_running_job_there_is_no_current_job() -> None:
    async def spawned() -> None:
        await asyncio.sleep(1)
        current_job()

    async def handler(job: int) -> asyncio.Task[None]:
        return asyncio.create_task(spawned())

    with pytest.raises(LookupError, match="current_job"):
        current_job()
    async with WorkerPool(handler, workers=1) as pool:
        task = await pool.run(1)
        with pytest.raises(LookupError):
            await task


# -- Handles


@fuzzed
async def test_many_tasks_may_wait_for_one_handle() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        handle = await pool.submit(1)

        async def wait() -> Any:
            return await handle

        assert await asyncio.gather(*(wait() for _ in range(5))) == [1] * 5
        assert await handle == 1
        assert (await handle.outcome()).unwrap() == 1


@fuzzed
async def test_cancelling_a_waiter_does_not_cancel_the_job() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        handle = await pool.submit(2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await handle
        assert await handle == 2
        assert now() == 2


@fuzzed
async def test_cancelling_a_queued_job_settles_it_at_once() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.submit(1)
        handle = await pool.submit(2)
        await settle()
        assert handle.cancel()
        assert handle.done()
        assert not handle.cancel()
        outcome = await handle.outcome()
        assert outcome == outcome
        assert isinstance(outcome, Cancelled)
        assert (outcome.reason, outcome.started, outcome.attempts, outcome.worker) == (
            CancelReason.HANDLE,
            False,
            0,
            None,
        )
        with pytest.raises(JobCancelled, match="handle"):
            await handle


@fuzzed
async def test_cancelling_a_running_job_settles_it_when_its_task_ends() -> None:
    async def handler(job: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)

    async with WorkerPool(handler, workers=1) as pool:
        handle = await pool.submit(1)
        await settle()
        assert handle.cancel()
        assert handle.cancel()
        assert not handle.done()
        assert pool.stats.running == 1
        outcome = await handle.outcome()
        assert isinstance(outcome, Cancelled)
        assert outcome.started
        assert now() == 1
        assert not handle.cancel()


@fuzzed
async def test_cancelling_a_job_that_is_done_changes_nothing() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        handle = await pool.submit(1)
        assert await handle == 1
        assert not handle.cancel()
        assert await handle == 1


@fuzzed
async def test_a_job_may_cancel_itself_by_its_handle() -> None:
    handles: list[JobHandle[Any, Any]] = []

    async def handler(job: int) -> None:
        await asyncio.sleep(0)
        handles[0].cancel()
        await asyncio.sleep(100)

    async with WorkerPool(handler, workers=1) as pool:
        handles.append(await pool.submit(1))
        assert isinstance(await handles[0].outcome(), Cancelled)


@virtual
async def test_a_handle_knows_its_job_and_number() -> None:
    async with WorkerPool(echo, workers=1, name="mine") as pool:
        first, second = await pool.submit("a"), await pool.submit("b")
        assert (first.job, first.id, second.job, second.id) == ("a", 1, "b", 2)
        assert "queued" in repr(second)
        await second
        assert "ended" in repr(second)
        assert "'mine' open" in repr(pool)


@virtual
async def test_unread_failures_are_counted_and_logged_at_the_1st_2nd_4th_and_summed_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with WorkerPool(fail, workers=1) as pool:
        for number in range(5):
            await pool.submit(number)
        await pool.join()
        gc.collect()
        await settle()
        assert pool.stats.unread_failures == 5
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [f"(occurrence {n})" in record.getMessage() for n, record in zip((1, 2, 4), errors, strict=False)] == [
        True
    ] * 3
    assert all(record.exc_info is not None and record.exc_info[0] is ValueError for record in errors[:3])
    assert "5 failures were never retrieved" in errors[3].getMessage()
    assert len(errors) == 4


@virtual
async def test_a_failure_that_was_read_is_not_counted() -> None:
    async with WorkerPool(fail, workers=1) as pool:
        handle = await pool.submit(1)
        await handle.outcome()
        with pytest.raises(ValueError):
            await pool.run(1)
        await pool.outcomes([1, 2])
        del handle
        gc.collect()
        await settle()
        assert pool.stats.unread_failures == 0


@virtual
async def test_a_cancelled_job_that_nobody_reads_is_not_a_failure() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        (await pool.submit(1)).cancel()
        gc.collect()
        await settle()
        assert pool.stats.unread_failures == 0


# -- Outcomes


@virtual
async def test_outcomes_match_by_position() -> None:
    async def handler(job: int) -> int:
        if job == 1:
            raise ValueError("no")
        await asyncio.sleep(job)
        return job * 2

    seen = []
    async with WorkerPool(handler, workers=3) as pool:
        doomed = await pool.submit(2)
        doomed.cancel()
        for outcome in [await doomed.outcome(), *await pool.outcomes([0, 1], ordered=True)]:
            match outcome:
                case Succeeded(job, value):
                    seen.append(("succeeded", job, value))
                case Failed(job, error):
                    seen.append(("failed", job, str(error)))
                case Cancelled(job, reason):
                    seen.append(("cancelled", job, str(reason)))
    assert seen == [("cancelled", 2, "handle"), ("succeeded", 0, 0), ("failed", 1, "no")]


@virtual
async def test_an_outcome_has_its_attempts_worker_and_times() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        first, second = await pool.outcomes([2, 3], ordered=True)
    assert (first.attempts, first.worker, first.seconds_queued, first.seconds_running) == (1, 1, 0, 2)
    assert (second.attempts, second.worker, second.seconds_queued, second.seconds_running) == (1, 1, 2, 3)


@virtual
async def test_outcomes_are_read_only() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        [outcome] = await pool.outcomes([1])
    for name in ("job", "value", "worker"):
        with pytest.raises(AttributeError):
            setattr(outcome, name, 2)


@virtual
async def test_the_error_keeps_its_line_numbers_and_drops_its_locals() -> None:
    def deep(job: int) -> None:
        local = "a local value"
        raise ValueError(job, local)

    async def handler(job: int) -> None:
        local = "another"
        deep(job)
        del local

    async with WorkerPool(handler, workers=1) as pool:
        [outcome] = await pool.outcomes([1])
    assert isinstance(outcome, Failed)
    frames = list(traceback.walk_tb(outcome.error.__traceback__))
    assert [frame.f_code.co_name for frame, _ in frames] == ["handler", "deep"]
    assert all(frame.f_locals == {} for frame, _ in frames)
    assert "raise ValueError(job, local)" in "".join(traceback.format_exception(outcome.error))


@virtual
async def test_reading_an_error_twice_does_not_grow_its_traceback() -> None:
    async with WorkerPool(fail, workers=1) as pool:
        handle = await pool.submit(1)
        lengths = []
        for _ in range(3):
            with pytest.raises(ValueError) as caught:
                await handle
            lengths.append(len(list(traceback.walk_tb(caught.value.__traceback__))))
    assert len(set(lengths)) == 1


@fuzzed
async def test_a_live_coroutine_in_the_traceback_of_a_failure_is_left_alone() -> None:
    shared = ValueError("shared")

    async def survivor() -> str:
        try:
            raise shared
        except ValueError:
            await asyncio.sleep(5)
        return "alive"

    task = asyncio.create_task(survivor())
    await settle()

    async def handler(job: int) -> None:
        raise shared

    async with WorkerPool(handler, workers=1) as pool:
        [outcome] = await pool.outcomes([1])
        assert isinstance(outcome, Failed)
    assert await task == "alive"


@pytest.mark.parametrize(
    "error",
    [
        PoolNotStarted("x"),
        PoolClosed("x"),
        PoolReused("x"),
        WrongLoop("x"),
        QueueFull("x"),
        PoolDeadlock("x"),
        StreamClosed("x"),
        JobTimeout(1.5),
        JobCancelled("shutdown"),
        JobCrashed(SystemExit(3)),
        SourceCrashed(asyncio.CancelledError()),
        ResourceDied("x"),
    ],
)
def test_errors_can_be_pickled(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert repr(vars(copy)) == repr(vars(error))


@virtual
async def test_outcomes_and_reports_can_be_pickled() -> None:
    async def handler(job: int) -> int:
        if job == 1:
            raise ValueError("no")
        await asyncio.sleep(job)
        return job

    async with WorkerPool(handler, workers=3) as pool:
        doomed = await pool.submit(1000)
        outcomes = await pool.outcomes([0, 1], ordered=True)
        report = await pool.close(drain_timeout=0)
        outcomes.append(await doomed.outcome())
    for outcome in outcomes:
        copy = pickle.loads(pickle.dumps(outcome))
        assert repr(copy) == repr(outcome)
        assert (copy.attempts, copy.worker, copy.seconds_running) == (
            outcome.attempts,
            outcome.worker,
            outcome.seconds_running,
        )
    assert list(pickle.loads(pickle.dumps(report)).unfinished) == [Unfinished(job=1000, started=True)]


# -- Priority


@virtual
async def test_smaller_keys_come_first_and_equals_in_the_order_of_acceptance() -> None:
    handler = ManualHandler[tuple[int, str], None]()
    async with WorkerPool(handler, workers=1, priority=lambda job: job[0]) as pool:
        for job in [(5, "first"), (3, "a"), (1, "b"), (3, "c"), (2, "d"), (1, "e")]:
            await pool.submit(job)
            await settle()
        for _ in range(6):
            handler.finish_all()
            await settle()
    assert [name for _, name in handler.started] == ["first", "b", "e", "d", "a", "c"]


@fuzzed
async def test_a_priority_that_raises_is_told_to_the_submitter_and_submits_nothing() -> None:
    async with WorkerPool(echo, workers=1, queue_size=0, priority=lambda job: job["key"]) as pool:
        for submit in (pool.submit, pool.run):
            with pytest.raises(TypeError):
                await submit(None)
        with pytest.raises(KeyError):
            pool.submit_nowait({})
        assert pool.stats.submitted == 0
        assert await pool.run({"key": 1}) == {"key": 1}


@pytest.mark.parametrize("source", [list, lambda items: later(*items)])
@fuzzed
async def test_a_priority_that_raises_fails_that_job_of_a_stream_and_no_other(source: Any) -> None:
    async with WorkerPool(echo, workers=1, queue_size=0, priority=lambda job: 1 / job) as pool:
        await pool.submit(1)
        waiting = asyncio.create_task(pool.run(7))
        outcomes = await pool.outcomes(source([1, 0, 2]), ordered=True)
        assert await waiting == 7
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
    assert isinstance(outcomes[1].error, ZeroDivisionError)
    assert_conserved(pool)


@fuzzed
async def test_a_group_submitter_whose_priority_raises_passes_its_place_on() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0, priority=lambda job: 1 / job) as pool:
        await pool.submit(1)
        async with pool.group() as group:
            bad = asyncio.create_task(group.submit(0))
            await settle()
            good = asyncio.create_task(pool.run(2))
            with pytest.raises(ZeroDivisionError):
                await bad
            assert await good == 2
        assert [outcome async for outcome in group] == []


@pytest.mark.parametrize("keys", [[(-1, "r"), (0, "a"), (0, None), (0, 5)], [1, 2, 3, "text"], [1, None, 2]])
@fuzzed
async def test_keys_that_do_not_compare_lose_no_job(keys: list[Any]) -> None:
    async with WorkerPool(lambda job: sleeper(1), workers=1, priority=lambda job: job) as pool:
        await pool.submit(keys[0])
        await settle()
        handles = []
        for key in keys:
            try:
                handles.append(await pool.submit(key))
            except TypeError:
                pass
        async with asyncio.timeout(100):
            outcomes = [await handle.outcome() for handle in handles]
        assert len(outcomes) >= len(keys) - 1
        assert_conserved(pool)
        assert await pool.run(keys[0]) == 1


@fuzzed
async def test_a_key_that_is_nan_is_refused_and_a_job_of_a_stream_fails_with_it() -> None:
    async with WorkerPool(echo, workers=1, priority=lambda job: job) as pool:
        with pytest.raises(TypeError, match="NaN cannot"):
            await pool.submit(math.nan)
        assert pool.stats.submitted == 0
        outcomes = await pool.outcomes([1.0, math.nan, 0.5])
        assert [type(outcome).__name__ for outcome in outcomes].count("Failed") == 1
        assert_conserved(pool)


@fuzzed
async def test_cancelled_jobs_leave_a_priority_queue_in_order() -> None:
    handler = ManualHandler[int, None]()
    async with WorkerPool(handler, workers=1, queue_size=500, priority=lambda job: job) as pool:
        await pool.submit(-1)
        await settle()
        handles = [await pool.submit(number * 37 % 200) for number in range(200)]
        for handle in handles:
            if handle.job % 10:
                handle.cancel()
        assert pool.stats.queued == 20
        while handler.running:
            handler.finish_all()
            await settle()
    assert handler.started == [-1, *range(0, 200, 10)]


# -- Observers


@virtual
async def test_observers_get_the_events_of_a_job_and_of_the_pool_in_order() -> None:
    events: list[Any] = []
    pool = WorkerPool(echo, workers=1, observers=[events.append], name="seen")
    async with pool:
        await pool.run(7)
        pool.pause()
        pool.pause()
        pool.resume()
        pool.resize(3)
        pool.resize(3)
    assert [type(event) for event in events] == [
        PoolStarted,
        JobAccepted,
        JobStarted,
        JobEnded,
        PoolPaused,
        PoolResumed,
        PoolResized,
        PoolStopping,
        PoolEnded,
    ]
    assert {event.pool for event in events} == {"seen"}
    assert (events[1].id, events[1].job, events[2].worker, events[2].attempt) == (1, 7, 1, 1)
    assert events[3].outcome.unwrap() == 7
    assert (events[6].old, events[6].new) == (1, 3)
    assert events[7].drains
    assert events[8].report is pool.report


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError(), StopIteration(), SystemExit(3)])
@pytest.mark.parametrize("kind", [JobAccepted, JobStarted, JobEnded])
@fuzzed
async def test_an_observer_that_raises_is_dropped_and_hurts_no_job(error: BaseException, kind: type) -> None:
    seen: list[Any] = []

    def broken(event: Any) -> None:
        if isinstance(event, kind):
            raise error

    async with WorkerPool(echo, workers=1, observers=[broken, seen.append]) as pool:
        async with asyncio.timeout(10):
            assert await pool.map([1, 2, 3]) == [1, 2, 3]
        assert_conserved(pool)
    assert sum(isinstance(event, JobEnded) for event in seen) == 3


@virtual
async def test_a_broken_observer_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(echo, workers=1, observers=[lambda event: 1 / 0]) as pool:
        await pool.map([1, 2, 3])
    assert caplog.text.count("raised an exception and was removed") == 1


@fuzzed
async def test_the_first_law_holds_inside_every_observer() -> None:
    def check(event: Any) -> None:
        assert_conserved(pool)

    problems: list[Any] = []

    def observe(event: Any) -> None:
        try:
            check(event)
        except AssertionError as error:
            problems.append((event, error))

    pool = WorkerPool(sleeper, workers=1, observers=[observe])
    async with pool:
        await pool.submit(1)
        handles = [await pool.submit(2) for _ in range(3)]
        await settle()
        handles[1].cancel()
        await asyncio.sleep(2)
        handles[0].cancel()
    assert problems == []


@fuzzed
async def test_an_observer_may_use_the_pool() -> None:
    def again(event: Any) -> None:
        if isinstance(event, JobEnded) and event.outcome.job < 5:
            pool.submit_nowait(event.outcome.job + 1)
            pool.resize(1 + event.outcome.job % 3)

    pool = WorkerPool(echo, workers=2, observers=[again])
    async with pool:
        await pool.submit(0)
        await pool.join()
        assert pool.stats.succeeded == 6
        assert_conserved(pool)


@virtual
async def test_nothing_is_logged_above_debug_for_jobs_that_succeed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with WorkerPool(echo, workers=2) as pool:
        await pool.map(range(10))
    assert [record.levelname for record in caplog.records if record.levelno > logging.DEBUG] == []


# -- Statistics


@virtual
async def test_stats_count_every_place_that_a_job_can_be_in() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(job)
        if job % 2:
            raise ValueError(job)

    pool = WorkerPool(handler, workers=2, name="counted")
    assert pool.stats.submitted == pool.stats.workers == 0
    async with pool:
        handles = [await pool.submit(job) for job in (1, 2, 100, 100, 100)]
        await asyncio.sleep(3)
        handles[4].cancel()
        handles.append(await pool.submit(7))
        stats = pool.stats
        assert stats.name == "counted"
        assert (stats.submitted, stats.queued, stats.delayed, stats.running) == (6, 1, 0, 2)
        assert (stats.succeeded, stats.failed, stats.cancelled) == (1, 1, 1)
        assert (stats.workers, stats.max_workers, stats.peak_running, stats.stuck) == (2, 2, 2, 0)
        await handles[0].outcome()
        await pool.close(drain_timeout=0)
        assert pool.stats.cancelled == 4


@virtual
async def test_durations_are_measured_as_histograms() -> None:
    async with WorkerPool(sleeper, workers=100) as pool:
        await pool.outcomes([float(seconds) for seconds in range(1, 101)])
        running = pool.stats.seconds_running
    assert (running.count, running.sum, running.max, running.mean) == (100, 5050, 100, 50.5)
    assert 50 <= running.p50 <= 50 * 1.19
    assert 95 <= running.p95 <= 100
    assert 99 <= running.p99 <= 100
    assert running.percentile(100) == 100
    assert running.percentile(0) <= 1.19
    assert len(running.buckets) == len(running.bounds) + 1
    assert sum(running.buckets) == 100
    for bad in (-1, 101, math.nan):
        with pytest.raises(ValueError, match="percent must be between 0 and 100"):
            running.percentile(bad)


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 1.0, 3600.0, 4300.0, 86400.0, 7 * 86400.0, 200 * 86400.0])
@virtual
async def test_a_percentile_is_at_most_19_percent_too_high_also_of_jobs_of_days(seconds: float) -> None:
    shares = [share / 10 for share in range(1, 11)]
    async with WorkerPool(sleeper, workers=10) as pool:
        await pool.outcomes([seconds * share for share in shares])
        running = pool.stats.seconds_running
    for share in shares:
        true = max(1e-6, seconds * share)
        assert true * 0.999 <= running.percentile(100 * share) <= true * 1.19


@virtual
async def test_waiting_and_running_are_measured_apart() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        await pool.outcomes([2, 2, 2])
        stats = pool.stats
    assert (stats.seconds_queued.sum, stats.seconds_queued.max) == (6, 4)
    assert (stats.seconds_running.sum, stats.seconds_running.max) == (6, 2)


@virtual
async def test_without_jobs_every_measure_is_zero() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        stats = pool.stats
    assert stats.seconds_running.count == stats.seconds_running.p99 == stats.seconds_running.mean == 0
    assert stats.throughput == 0


@virtual
async def test_throughput_of_a_steady_flow_is_what_flows() -> None:
    async with WorkerPool(asyncio.sleep, workers=10) as pool:
        stream = asyncio.create_task(_read_all(pool.outcomes([0.05] * 8000)))
        for second in range(15, 35):
            await asyncio.sleep(second + 0.77 - asyncio.get_running_loop().time())
            assert pool.stats.throughput == pytest.approx(200, rel=0.01)
        await stream


async def _read_all(stream: Stream[Any]) -> None:
    async for _ in stream:
        pass


@virtual
async def test_throughput_is_of_the_last_ten_seconds() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        for _ in range(40):
            await pool.run(0.5)
        assert pool.stats.throughput == pytest.approx(2, rel=0.1)
        await asyncio.sleep(5)
        assert pool.stats.throughput == pytest.approx(1, rel=0.2)
        await asyncio.sleep(20)
        assert pool.stats.throughput == 0


# -- The constructor


class AsyncSink:
    async def record(self, letter: object) -> None:
        """Never called."""


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"workers": 0}, ValueError, "workers must be >= 1, got 0"),
    ({"workers": -3}, ValueError, "workers must be >= 1, got -3"),
    ({"workers": True}, TypeError, "workers must be an int, a scaling policy, or a function of a PoolLoad, got True"),
    ({"workers": 2.0}, TypeError, "workers must be an int, a scaling policy, or a function of a PoolLoad, got 2.0"),
    ({"workers": None}, TypeError, "workers must be an int, a scaling policy, or a function of a PoolLoad, got None"),
    ({"queue_size": -1}, ValueError, "queue_size must be >= 0, got -1"),
    ({"queue_size": 1.5}, TypeError, "queue_size must be an int, got 1.5"),
    ({"timeout": 0}, ValueError, "timeout must be a finite number of seconds > 0, got 0"),
    ({"timeout": -1}, ValueError, "timeout must be a finite number of seconds > 0, got -1"),
    ({"timeout": math.inf}, ValueError, "timeout must be a finite number of seconds > 0, got inf"),
    ({"timeout": math.nan}, ValueError, "timeout must be a finite number of seconds > 0, got nan"),
    ({"timeout": True}, TypeError, "timeout must be a number of seconds, got True"),
    ({"limiter": 5}, TypeError, "an async context manager, or a list of these, got 5"),
    ({"dead_letters": DeadLetters}, TypeError, "dead_letters must have a method record(letter), got <class"),
    ({"dead_letters": []}, TypeError, "dead_letters must have a method record(letter), got []"),
    (
        {"limiter": asyncio.Semaphore},
        TypeError,
        "limiter must be a RateLimit or ConcurrencyLimit, a function of the job that",
    ),
    ({"resource": 5}, TypeError, "resource must be callable, got 5"),
    ({"recycle_on": 5}, TypeError, "recycle_on must be an exception type, a tuple of them, or a predicate, got 5"),
    ({"recycle_on": (OSError, 5)}, TypeError, "recycle_on must be"),
    ({"recycle_on": int}, TypeError, "recycle_on must be"),
    ({"priority": 5}, TypeError, "priority must be callable, got 5"),
    ({"observers": [5]}, TypeError, "observers must be callables that take an event, got 5"),
    ({"observers": print}, TypeError, "observers must be"),
    ({"name": 5}, TypeError, "name must be a str, got 5"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD_ARGUMENTS)
def test_the_constructor_says_the_rule_and_the_value(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        WorkerPool(echo, **({"workers": 1} | arguments))
    assert text in str(caught.value)


def test_a_resource_needs_a_handler() -> None:
    with pytest.raises(TypeError, match="resource= needs a handler"):
        WorkerPool(workers=1, resource=lambda: None)  # type: ignore[call-overload]


def test_the_constructor_needs_no_loop_and_takes_a_policy() -> None:
    pool = WorkerPool(echo, workers=FixedSize(3))
    assert pool.stats.max_workers == 3
    assert "new" in repr(pool)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="before Python 3.12 each job begins in a step of its own")
@pytest.mark.parametrize("retry", [None, Retry(backoff=1)])
@pytest.mark.parametrize("fails", [False, True])
@virtual
async def test_jobs_that_compute_for_long_and_never_suspend_leave_the_loop_its_turn(
    retry: Retry | None, fails: bool
) -> None:
    turns = 0
    begun: list[int] = []

    async def handler(job: int) -> None:
        begun.append(turns)
        compute(0.01)
        if fails:
            raise ValueError(job)

    async def turn() -> None:
        nonlocal turns
        while len(begun) < 20:
            turns += 1
            await asyncio.sleep(0)

    async with WorkerPool(handler, workers=10, retry=retry) as pool:
        turning = asyncio.create_task(turn())
        for job in range(20):
            await pool.submit(job)
        await turning
    assert max(begun[:20].count(turn) for turn in begun) <= 2, begun


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager task factories came with Python 3.12")
@fuzzed
async def test_a_loop_with_an_eager_task_factory_runs_pools() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    async with WorkerPool(sleeper, workers=2) as pool:
        handle = pool.submit_nowait(100)
        handle.cancel()
        with pytest.raises(JobCancelled):
            await handle
        assert await pool.map([1, 2, 3]) == [1, 2, 3]


@fuzzed
async def test_a_loop_with_a_task_factory_runs_every_job_through_it() -> None:
    made: list[asyncio.Task[Any]] = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coro, loop=loop, **options))
        return made[-1]

    asyncio.get_running_loop().set_task_factory(factory)
    async with WorkerPool(echo, workers=2, name="made") as pool:
        assert await pool.map([1, 2, 3]) == [1, 2, 3]
        handle = pool.submit_nowait(1)
        handle.cancel()
        await handle.outcome()
    assert [task.get_name() for task in made].count("made job") >= 3


@pytest.mark.parametrize("name", ["priority", "limiter", "recycle_on", "dead_letters"])
def test_an_async_function_is_refused_where_it_would_not_be_awaited(name: str) -> None:
    options: Any = {name: AsyncSink() if name == "dead_letters" else sleeper}
    with pytest.raises(TypeError, match="is called and not awaited, so it must not be an async function"):
        WorkerPool(echo, workers=1, **options)


@virtual
async def test_who_comes_while_others_are_let_in_comes_after_them() -> None:
    async with WorkerPool(echo, workers=2, queue_size=0) as pool:
        pool.pause()
        waiting = asyncio.create_task(pool.submit("first"))
        await settle()
        pool.resume()
        second = await pool.submit("second")
        first = await waiting
        assert first.id < second.id


# -- What is known -----------------------------------------------------------------------------------------------------


@virtual
async def test_a_pool_tells_how_much_room_its_queue_has_and_who_waits_for_it() -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=1) as pool:
        assert (pool.queue_size, pool.waiting_submitters) == (1, 0)
        tasks = [asyncio.create_task(pool.run(1)) for _ in range(5)]
        await settle()
        assert (pool.queue_size, pool.waiting_submitters) == (1, 2)
        await asyncio.gather(*tasks)
        assert pool.waiting_submitters == 0


@virtual
async def test_the_default_queue_size_follows_the_workers() -> None:
    async with WorkerPool(echo, workers=2) as pool:
        assert pool.queue_size == 20
        pool.resize(3)
        assert pool.queue_size == 30


@virtual
async def test_a_pool_is_paused_by_its_user_or_by_a_jobs_advice() -> None:
    async def handler(job: int) -> None:
        raise RetryAfter(5, pause=True)

    async with WorkerPool(handler, workers=1) as pool:
        assert not pool.is_paused
        pool.pause()
        assert pool.is_paused
        pool.resume()
        assert not pool.is_paused
        await (await pool.submit(1)).outcome()
        assert pool.is_paused
        await asyncio.sleep(6)
        assert not pool.is_paused


@virtual
async def test_a_pool_knows_its_dead_letters_and_its_loop() -> None:
    letters: DeadLetters[int] = DeadLetters()
    pool: WorkerPool[int, int] = WorkerPool(echo, workers=1, dead_letters=letters)
    assert pool.dead_letters is letters
    assert pool.loop is None
    async with pool:
        assert pool.loop is asyncio.get_running_loop()
    assert pool.loop is asyncio.get_running_loop()
    assert WorkerPool(echo, workers=1).dead_letters is None
