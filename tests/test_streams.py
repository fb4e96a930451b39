"""`map`, `outcomes`, groups, and the one-line functions around them."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import asyncpool
from asyncpool import (
    Cancelled,
    CancelReason,
    Failed,
    PoolClosed,
    PoolDeadlock,
    PoolNotStarted,
    QueueFull,
    SourceCrashed,
    StreamClosed,
    Succeeded,
    WorkerPool,
)
from asyncpool.testing import ManualHandler, settle
from tests.helpers import Source, cancel_soon, echo, fuzzed, ignores_cancel, later, now, sleeper, virtual

KINDS = ["sync", "later"]


async def odd_fail(job: int) -> int:
    await asyncio.sleep(job)
    if job % 2:
        raise ValueError(job)
    return job


# -- Lazy in, streaming out


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_nothing_is_pulled_before_the_first_step(kind: str) -> None:
    source = Source([1, 2])
    async with WorkerPool(echo, workers=1) as pool:
        stream = pool.map(getattr(source, kind)())
        await asyncio.sleep(10)
        assert source.pulled == []
        await stream
        assert source.pulled == [1, 2]


@fuzzed
async def test_map_gives_values_in_the_order_of_the_jobs() -> None:
    async with WorkerPool(sleeper, workers=3) as pool:
        assert await pool.map([5, 1, 3, 2, 4]) == [5, 1, 3, 2, 4]


@fuzzed
async def test_unordered_map_gives_values_as_jobs_complete() -> None:
    async with WorkerPool(sleeper, workers=5) as pool:
        assert await pool.map([5, 1, 3, 2, 4], ordered=False) == [1, 2, 3, 4, 5]


@fuzzed
async def test_outcomes_come_as_jobs_complete_and_never_raise_for_a_job() -> None:
    async with WorkerPool(odd_fail, workers=3) as pool:
        outcomes = await pool.outcomes([3, 2, 1])
    assert [type(outcome) for outcome in outcomes] == [Failed, Succeeded, Failed]
    assert [outcome.job for outcome in outcomes] == [1, 2, 3]


@fuzzed
async def test_ordered_outcomes_come_in_the_order_of_the_jobs() -> None:
    async with WorkerPool(odd_fail, workers=3) as pool:
        outcomes = await pool.outcomes([3, 2, 1], ordered=True)
    assert [outcome.job for outcome in outcomes] == [3, 2, 1]


@virtual
async def test_a_value_is_delivered_as_soon_as_it_is_there() -> None:
    times = []
    async with WorkerPool(sleeper, workers=2) as pool:
        async for value in pool.map([1, 2, 2]):
            times.append((value, now()))
    assert times == [(1, 1), (2, 2), (2, 3)]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("items", [[], [1]])
@virtual
async def test_empty_and_single_inputs(workers: int, items: list[int]) -> None:
    async with WorkerPool(echo, workers=workers) as pool:
        for source in (items, iter(items), later(*items), Source(items).sync(), Source(items).later()):
            assert await pool.map(source) == items
        assert [outcome.job for outcome in await pool.outcomes(items)] == items
    assert await asyncpool.map(echo, items, workers=workers) == items


@pytest.mark.parametrize("bad", [5, None, echo])
def test_what_is_not_iterable_is_refused_at_once(bad: Any) -> None:
    pool = WorkerPool(echo, workers=1)
    with pytest.raises(TypeError, match="jobs must be an iterable or an async iterable, got"):
        pool.map(bad)
    with pytest.raises(TypeError, match="jobs must be an iterable"):
        asyncpool.outcomes(echo, bad, workers=1)
    gc.collect()


@virtual
async def test_a_stream_of_a_pool_that_is_not_started_says_so_and_may_be_read_later() -> None:
    pool = WorkerPool(echo, workers=1)
    with pytest.raises(PoolNotStarted):
        async for _ in pool.map([1]):
            pass
    stream = pool.map([1])
    async with pool:
        assert await stream == [1]


@virtual
async def test_a_stream_of_a_closed_pool_raises_pool_closed() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        stream = pool.map([1])
    with pytest.raises(PoolClosed):
        await stream
    with pytest.raises(PoolClosed):
        await pool.outcomes([])


# -- Back-pressure


@pytest.mark.parametrize(("workers", "queue_size"), [(1, 0), (1, 1), (2, 0), (3, 5), (20, 10)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ordered", [True, False])
@virtual
async def test_a_slow_reader_stops_the_intake_at_queue_size_plus_workers(
    workers: int, queue_size: int, kind: str, ordered: bool
) -> None:
    source = Source(range(1000))
    async with (
        WorkerPool(echo, workers=workers, queue_size=queue_size) as pool,
        pool.outcomes(getattr(source, kind)(), ordered=ordered) as stream,
    ):
        read = 0
        async for _ in stream:
            read += 1
            await asyncio.sleep(1)
            assert len(source.pulled) == read + queue_size + workers
            if read == 5:
                break


@virtual
async def test_a_slow_head_of_line_does_not_idle_the_workers() -> None:
    handler = ManualHandler[int, int]()
    async with WorkerPool(handler, workers=2, queue_size=4) as pool, pool.map(range(100)) as stream:
        reader = asyncio.create_task(anext(aiter(stream)))
        await handler.wait_started(2)
        for job in range(1, 6):
            handler.finish(job, job)
            await settle()
        assert handler.started == [0, 1, 2, 3, 4, 5]
        handler.finish(0, 0)
        assert await reader == 0


@virtual
async def test_a_slow_source_does_not_idle_a_worker() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        slow = asyncio.create_task(_list(pool.map(later(1, seconds=100))))
        await settle()
        assert [await pool.run(1) for _ in range(5)] == [1] * 5
        assert now() == 5
        assert await slow == [1]


@fuzzed
async def test_a_stream_that_had_its_turn_gives_the_place_to_others_while_it_pulls() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        await pool.submit(1)
        slow = asyncio.create_task(_list(pool.map(later(1, seconds=100))))
        await settle()
        assert await pool.run(1) == 1
        assert now() == 2
        assert await slow == [1]


async def _list(stream: Any) -> list[Any]:
    return [item async for item in stream]


@fuzzed
async def test_streams_that_share_a_pool_both_go_on() -> None:
    async with WorkerPool(sleeper, workers=2, queue_size=0) as pool:
        results = await asyncio.gather(_list(pool.map([1] * 10)), _list(pool.map(later(*[1] * 10))))
    assert results == [[1] * 10] * 2
    assert now() == 10


@fuzzed
async def test_one_stream_accepts_at_most_one_job_past_the_bound() -> None:
    most = 0

    def watch(event: object) -> None:
        nonlocal most
        most = max(most, pool.stats.queued + pool.stats.running)

    pool = WorkerPool(sleeper, workers=2, queue_size=1, observers=[watch])
    async with pool:
        await asyncio.gather(*(_list(pool.map(later(*[1] * 5, seconds=0.5))) for _ in range(3)))
    assert most <= 2 + 1 + 3


@pytest.mark.parametrize("priority", [None, abs])
@virtual
async def test_what_a_source_submits_itself_takes_its_share_of_the_room(priority: Any) -> None:
    most = 0

    def source() -> Any:
        nonlocal most
        for job in range(100):
            if job % 2:
                with suppress(QueueFull):
                    pool.submit_nowait(1)
            yield 1
            most = max(most, pool.stats.queued + pool.stats.running)

    async with WorkerPool(sleeper, workers=2, queue_size=20, priority=priority) as pool:
        await pool.map(source())
    assert most <= 2 + 20 + 1


# -- The source


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
async def test_a_generator_is_closed_when_the_stream_ends_early(kind: str) -> None:
    source = Source(range(100))
    async with WorkerPool(echo, workers=1) as pool:
        async with pool.map(getattr(source, kind)()) as stream:
            async for _ in stream:
                break
        assert source.closed


@virtual
async def test_an_iterator_that_is_not_ours_is_left_open() -> None:
    async with WorkerPool(echo, workers=1, queue_size=0) as pool:
        items = iter(range(100))
        async with pool.map(items) as stream:
            async for _ in stream:
                break
        assert next(items) > 0


@fuzzed
async def test_a_pipeline_stops_upstream() -> None:
    source = Source(range(1000))
    async with WorkerPool(sleeper, workers=2) as first, WorkerPool(echo, workers=2) as second:
        async with second.map(first.map(source.sync())) as stream:
            async for _ in stream:
                break
        assert source.closed
        assert first.stats.queued == first.stats.running == 0


@virtual
async def test_a_pipeline_has_back_pressure_end_to_end() -> None:
    source = Source(range(1000))
    async with (
        WorkerPool(echo, workers=1, queue_size=1) as first,
        WorkerPool(echo, workers=1, queue_size=1) as second,
        second.map(first.map(source.sync())) as stream,
    ):
        async for _ in stream:
            await asyncio.sleep(1)
            break
        await settle()
        assert len(source.pulled) <= 1 + 2 + 2


@pytest.mark.parametrize("ordered", [True, False])
@fuzzed
async def test_an_error_of_the_source_comes_after_what_was_accepted(ordered: bool) -> None:
    async def source() -> AsyncIterator[int]:
        yield 2
        yield 1
        raise KeyError("source")

    seen = []
    async with WorkerPool(sleeper, workers=2) as pool:
        with pytest.raises(KeyError, match="source"):
            async for value in pool.map(source(), ordered=ordered):
                seen.append(value)
        assert sorted(seen) == [1, 2]
        assert await pool.run(1) == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(1), GeneratorExit(), StopAsyncIteration()])
@fuzzed
async def test_what_a_source_must_not_raise_comes_as_source_crashed(error: BaseException) -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            raise error

    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(SourceCrashed) as caught:
            await pool.map(Broken())
        assert caught.value.error is error


@virtual
async def test_an_iterable_that_cannot_begin_raises_its_error() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise KeyError("iter")

    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(KeyError, match="iter"):
            await pool.map(Broken())


@virtual
async def test_an_error_that_closing_the_source_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise KeyError("closing")

    async with WorkerPool(echo, workers=1) as pool, pool.map(source()) as stream:
        async for _ in stream:
            break
    assert "the source raised this error after the stream had ended" in caplog.text
    assert "closing" in caplog.text


@virtual
async def test_an_error_of_the_source_is_not_lost_when_a_job_fails_before_it(caplog: pytest.LogCaptureFixture) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("source")

    async with WorkerPool(odd_fail, workers=2) as pool:
        with pytest.raises(ValueError, match="1"):
            await pool.map(source())
        await settle()
    assert "KeyError: 'source'" in caplog.text


@virtual
async def test_the_source_runs_in_the_context_of_the_call() -> None:
    names = []

    def source() -> Iterator[int]:
        names.append(asyncio.current_task().get_name())  # type: ignore[union-attr]
        yield 1

    async with WorkerPool(echo, workers=1, name="named") as pool:
        await pool.map(source())
    assert names == ["named feeder"]


# -- Failures in map


@fuzzed
async def test_map_raises_the_first_failure_in_input_order_after_the_values_before_it() -> None:
    async def handler(job: tuple[int, bool]) -> int:
        seconds, good = job
        await asyncio.sleep(seconds)
        if not good:
            raise ValueError(seconds)
        return seconds

    seen = []
    async with WorkerPool(handler, workers=4) as pool:
        with pytest.raises(ValueError, match="3"):
            async for value in pool.map([(4, True), (3, False), (2, True), (1, False)]):
                seen.append(value)
        assert seen == [4]
        assert now() == 4


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
async def test_as_soon_as_a_job_fails_map_pulls_no_more_and_cancels_the_later_jobs(kind: str) -> None:
    handler = ManualHandler[int, int]()
    source = Source(range(100))
    async with WorkerPool(handler, workers=3, queue_size=2) as pool:
        reading = asyncio.create_task(_list(pool.map(getattr(source, kind)())))
        await handler.wait_started(3)
        await settle()
        pulled = len(source.pulled)
        handler.fail(1, ValueError("no"))
        await settle()
        assert handler.running == [0]
        assert handler.cancelled == [2]
        assert len(source.pulled) == pulled
        assert source.closed
        assert pool.stats.queued == 0
        assert not reading.done()
        handler.finish(0, 0)
        with pytest.raises(ValueError, match="no"):
            await reading
        assert pool.stats.cancelled == pulled - 2


@fuzzed
async def test_unordered_map_cancels_all_others_when_a_job_fails() -> None:
    handler = ManualHandler[int, int]()
    async with WorkerPool(handler, workers=3) as pool:
        reading = asyncio.create_task(_list(pool.map(range(10), ordered=False)))
        await handler.wait_started(3)
        await settle()
        handler.fail(handler.started[1], ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await reading
        await settle()
        assert handler.running == []
        assert pool.stats.queued == 0


@fuzzed
async def test_the_pool_lives_on_after_a_failed_map() -> None:
    async with WorkerPool(odd_fail, workers=2) as pool:
        with pytest.raises(ValueError, match="1"):
            await pool.map([1, 2, 3])
        assert await pool.map([2, 4]) == [2, 4]


@virtual
async def test_a_failed_map_says_stream_closed_when_it_is_read_again() -> None:
    async with WorkerPool(odd_fail, workers=2) as pool:
        reader = aiter(pool.map([1, 2]))
        with pytest.raises(ValueError, match="1"):
            await anext(reader)
        with pytest.raises(StreamClosed):
            await anext(reader)


@virtual
async def test_failures_that_nobody_reads_are_counted_when_a_stream_is_cancelled() -> None:
    async with WorkerPool(odd_fail, workers=3) as pool:
        async for outcome in pool.outcomes([0, 1, 3]):
            assert outcome.job == 0
            await asyncio.sleep(10)
            break
        await settle()
        assert pool.stats.unread_failures == 2


# -- The pool closes under a stream


@pytest.mark.parametrize("kind", KINDS)
@fuzzed
async def test_a_stream_delivers_what_was_accepted_and_then_pool_closed(kind: str) -> None:
    source = Source(range(100))
    seen = []
    async with WorkerPool(lambda job: sleeper(1), workers=2, queue_size=1) as pool:
        with pytest.raises(PoolClosed):
            async for outcome in pool.outcomes(getattr(source, kind)()):
                seen.append(outcome)
                if len(seen) == 2:
                    pool.drain()
    assert sorted(outcome.job for outcome in seen) == source.pulled
    assert sum(isinstance(outcome, Succeeded) for outcome in seen) >= 2
    assert source.closed


@virtual
async def test_a_stream_whose_source_is_exhausted_ends_well_when_the_pool_drains() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        reading = asyncio.create_task(_list(pool.map([1, 2, 3])))
        await settle()
        await pool.close()
        assert await reading == [1, 2, 3]


@virtual
async def test_what_was_delivered_can_be_read_after_the_pool_is_closed() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        reader = aiter(pool.map([1, 2, 3]))
        assert await anext(reader) == 1
    assert [value async for value in reader] == [2, 3]


@fuzzed
async def test_jobs_of_a_stream_are_handed_back_when_the_pool_is_cancelled() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=9) as pool:
        reading = asyncio.create_task(_list(pool.outcomes([1000] * 3)))
        await settle()
        pool.cancel()
        outcomes = await reading
        assert [outcome.reason for outcome in outcomes] == [CancelReason.SHUTDOWN] * 3
        assert len((await pool.close()).unfinished) == 3


# -- Leaving


@pytest.mark.parametrize("leave", ["break", "return", "raise"])
@pytest.mark.parametrize("ordered", [True, False])
@fuzzed
async def test_every_way_out_of_the_loop_cancels_the_stream(leave: str, ordered: bool) -> None:
    async def read(pool: WorkerPool[int, float]) -> None:
        async for _ in pool.map([1, 1000, 1000], ordered=ordered):
            if leave == "break":
                break
            if leave == "return":
                return
            raise KeyError("out")

    async with WorkerPool(sleeper, workers=2) as pool:
        try:
            await read(pool)
        except KeyError:
            pass
        await settle()
        assert pool.stats.queued == pool.stats.running == 0
        assert pool.stats.cancelled == 2


@fuzzed
async def test_awaiting_a_stream_that_is_cancelled_cuts_it() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        task = asyncio.create_task(_list(pool.map([1000] * 5)))
        cancel_soon(task, 1)
        with pytest.raises(asyncio.CancelledError):
            await task
        await settle()
        assert pool.stats.cancelled == 5


@fuzzed
async def test_a_cancelled_anext_loses_nothing_and_leaves_the_stream_open() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        reader = aiter(pool.map([1, 2, 3, 4]))
        seen = []
        while len(seen) < 4:
            try:
                async with asyncio.timeout(0.3):
                    seen.append(await anext(reader))
            except TimeoutError:
                pass
        assert seen == [1, 2, 3, 4]
        with pytest.raises(StopAsyncIteration):
            await anext(reader)


@fuzzed
async def test_a_stream_that_another_task_cuts_does_not_look_exhausted() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        stream = pool.map([1000] * 5)
        reading = asyncio.create_task(_list(stream))
        await settle()
        await stream.aclose()
        with pytest.raises(StreamClosed, match="was cancelled before its end"):
            await reading


@virtual
async def test_closing_a_stream_twice_or_after_its_end_does_nothing() -> None:
    async with WorkerPool(echo, workers=2) as pool:
        async with pool.map([1]) as stream:
            assert await stream == [1]
        await stream.aclose()
        never_read = pool.map([1])
        await never_read.aclose()
        await never_read.aclose()
        with pytest.raises(StreamClosed):
            aiter(never_read)
        assert pool.stats.submitted == 1


@virtual
async def test_a_stream_has_one_reader() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        stream = pool.map([1, 2])
        reader = aiter(stream)
        with pytest.raises(StreamClosed, match="already has a reader, or had one"):
            aiter(stream)
        waiting = asyncio.create_task(anext(reader))
        await settle()
        with pytest.raises(StreamClosed, match="another task is already waiting"):
            await anext(reader)
        assert await waiting == 1
        assert await anext(reader) == 2


@virtual
async def test_a_stream_is_read_once() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        stream = pool.map([1])
        assert await stream == [1]
        with pytest.raises(StreamClosed):
            await stream


@virtual
async def test_a_stream_that_waits_for_a_job_that_ignores_its_cancellation_waits_in_aclose() -> None:
    async with WorkerPool(ignores_cancel, workers=2) as pool:
        async with pool.map([3, 3]) as stream:
            reading = asyncio.create_task(anext(aiter(stream)))
            await settle()
        assert now() == 3
        with pytest.raises(StreamClosed):
            await reading


# -- Nesting


@fuzzed
async def test_nested_streams_on_one_pool_go_on() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        assert await pool.map(pool.map(pool.map([1, 2, 3]))) == [1, 2, 3]


@fuzzed
async def test_a_stream_inside_the_loop_of_another_on_the_same_pool_goes_on() -> None:
    seen = []
    async with WorkerPool(echo, workers=1, queue_size=0) as pool:
        async for outer in pool.map(range(3)):
            async for inner in pool.map(range(3)):
                seen.append((outer, inner))
    assert seen == [(outer, inner) for outer in range(3) for inner in range(3)]


@fuzzed
async def test_a_handler_may_map_on_its_own_pool_while_a_worker_is_free() -> None:
    pool: WorkerPool[Any, Any]

    async def handler(job: Any) -> Any:
        if isinstance(job, list):
            return sum(await pool.map(job))
        await asyncio.sleep(1)
        return job

    pool = WorkerPool(handler, workers=3, queue_size=0)
    async with pool:
        assert await asyncio.gather(pool.run([1, 2, 3]), pool.run([4, 5, 6])) == [6, 15]


@fuzzed
async def test_a_handler_that_maps_on_its_own_full_pool_gets_pool_deadlock() -> None:
    pool: WorkerPool[Any, Any]

    async def handler(job: Any) -> Any:
        return sum(await pool.map(job)) if isinstance(job, list) else job

    pool = WorkerPool(handler, workers=2)
    async with pool:
        outcomes = await pool.outcomes([[1, 2], [3, 4], [5]])
        assert any(isinstance(outcome, Succeeded) for outcome in outcomes)
        assert all(isinstance(outcome.error, PoolDeadlock) for outcome in outcomes if isinstance(outcome, Failed))


# -- Groups


@fuzzed
async def test_a_group_gives_the_outcomes_of_what_anybody_submitted() -> None:
    async with WorkerPool(odd_fail, workers=2) as pool:
        async with pool.group() as group:
            await asyncio.gather(*(group.submit(job) for job in range(4)))
        outcomes = [outcome async for outcome in group]
    assert sorted(outcome.job for outcome in outcomes) == [0, 1, 2, 3]
    assert sum(isinstance(outcome, Failed) for outcome in outcomes) == 2


@fuzzed
async def test_an_ordered_group_gives_outcomes_in_the_order_of_submission() -> None:
    async with WorkerPool(sleeper, workers=3) as pool:
        async with pool.group(ordered=True) as group:
            for job in (3, 1, 2):
                await group.submit(job)
        assert [outcome.job async for outcome in group] == [3, 1, 2]


@virtual
async def test_a_group_without_jobs_is_at_its_end() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        async with pool.group() as group:
            pass
        assert [outcome async for outcome in group] == []


@pytest.mark.parametrize("window", [1, 2, 7])
@fuzzed
async def test_submit_waits_while_the_window_is_unread(window: int) -> None:
    submitted = 0
    async with WorkerPool(echo, workers=2) as pool:
        group = pool.group(window=window)

        async def submit() -> None:
            nonlocal submitted
            async with group:
                for job in range(20):
                    await group.submit(job)
                    submitted += 1

        submitting = asyncio.create_task(submit())
        await settle()
        assert submitted == window
        reader = aiter(group)
        await anext(reader)
        await settle()
        assert submitted == window + 1
        assert len([outcome async for outcome in reader]) == 19
        await submitting


@virtual
async def test_the_window_of_a_group_is_queue_size_plus_workers() -> None:
    async with WorkerPool(echo, workers=2, queue_size=3) as pool:
        assert pool.group()._channel.window == 5


@pytest.mark.parametrize(("window", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)])
@virtual
async def test_a_window_is_an_int_of_at_least_1(window: Any, error: type[Exception]) -> None:
    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(error, match="window must be"):
            pool.group(window=window)
    gc.collect()


@fuzzed
async def test_the_reading_task_that_submits_past_the_window_gets_pool_deadlock() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        group = pool.group(window=2)
        await group.submit(0)
        async for outcome in group:
            await group.submit(outcome.job + 1)
            if outcome.job < 3:
                continue
            await group.submit(100)
            with pytest.raises(PoolDeadlock):
                await group.submit(101)
            break


@fuzzed
async def test_whoever_submits_past_the_window_and_never_reads_gets_pool_deadlock() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        with pytest.raises(PoolDeadlock, match="2 outcomes are unread"):
            async with pool.group(window=2) as group:
                for job in range(10):
                    await group.submit(job)


@fuzzed
async def test_close_intake_ends_the_iteration_and_turns_submitters_away() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        group = pool.group(window=1)
        await group.submit(1)
        waiting = asyncio.create_task(group.submit(1000))
        await settle()
        group.close_intake()
        with pytest.raises(StreamClosed, match="takes no more jobs"):
            await waiting
        with pytest.raises(StreamClosed, match="takes no more jobs"):
            await group.submit(1)
        assert [outcome.job async for outcome in group] == [1]


@fuzzed
async def test_close_intake_turns_those_away_who_wait_for_the_pool() -> None:
    async with WorkerPool(sleeper, workers=1, queue_size=0) as pool:
        await pool.submit(100)
        group = pool.group()
        waiting = asyncio.create_task(group.submit(1000))
        await settle()
        group.close_intake()
        with pytest.raises(StreamClosed, match="takes no more jobs"):
            await waiting
        assert now() == 0
        assert [outcome async for outcome in group] == []


@fuzzed
async def test_leaving_a_group_by_an_exception_cancels_its_jobs() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        with pytest.raises(KeyError):
            async with pool.group() as group:
                for _ in range(3):
                    await group.submit(1000)
                raise KeyError
        assert pool.stats.cancelled == 3
        with pytest.raises(StreamClosed):
            await group.submit(1)


@fuzzed
async def test_leaving_the_loop_over_a_group_cancels_it() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        group = pool.group()
        for job in (1, 1000, 1000):
            await group.submit(job)
        async for _ in group:
            break
        await settle()
        assert pool.stats.cancelled == 2
        with pytest.raises(StreamClosed):
            await group.submit(1)


@fuzzed
async def test_a_group_whose_pool_closes_gives_what_was_accepted_and_then_pool_closed() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        group = pool.group()
        await group.submit(1)
        await group.submit(2)
        pool.drain()
        with pytest.raises(PoolClosed):
            await group.submit(3)
        reader = aiter(group)
        assert [(await anext(reader)).job, (await anext(reader)).job] == [1, 2]
        with pytest.raises(PoolClosed):
            await anext(reader)


@virtual
async def test_a_group_that_nobody_read_counts_its_failures() -> None:
    async with WorkerPool(odd_fail, workers=1) as pool:
        async with pool.group() as group:
            await group.submit(1)
            await group.submit(2)
        await pool.join()
        del group
        gc.collect()
        await settle()
        assert pool.stats.unread_failures == 1


# -- One line


@fuzzed
async def test_oneshot_map_gives_values_and_closes_its_pool() -> None:
    assert await asyncpool.map(sleeper, [3, 1, 2], workers=2) == [3, 1, 2]
    assert len(asyncio.all_tasks()) == 1


@fuzzed
async def test_oneshot_outcomes_gives_outcomes() -> None:
    outcomes = await asyncpool.outcomes(odd_fail, later(1, 2, 3), workers=2, ordered=True)
    assert [type(outcome) for outcome in outcomes] == [Failed, Succeeded, Failed]


@fuzzed
async def test_oneshot_map_raises_when_nothing_runs_any_more() -> None:
    handler = ManualHandler[int, int]()
    task = asyncio.create_task(_list(asyncpool.map(handler, range(10), workers=2)))
    await handler.wait_started(2)
    handler.fail(0, ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await task
    assert handler.running == []
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("how", ["break", "async with", "raise", "cancel", "source"])
@fuzzed
async def test_oneshot_map_closes_its_pool_in_every_ending(how: str) -> None:
    closed: list[object] = []

    def observe(event: object) -> None:
        closed.append(type(event).__name__)

    def source() -> Iterator[float]:
        yield 1
        yield 1000
        if how == "source":
            raise KeyError("source")

    stream = asyncpool.map(sleeper, source(), workers=1, observers=[observe])

    async def read() -> None:
        if how == "async with":
            async with stream:
                async for _ in stream:
                    return
        async for _ in stream:
            if how == "break":
                break
            if how == "raise":
                raise KeyError("out")

    task = asyncio.create_task(read())
    if how == "cancel":
        cancel_soon(task, 0.5)
    await asyncio.wait([task])
    await settle()
    assert closed[-1] == "PoolEnded"
    assert len(asyncio.all_tasks()) == 1
    assert task.cancelled() or isinstance(task.exception(), (KeyError, type(None)))


@virtual
async def test_a_oneshot_stream_that_is_never_read_does_nothing() -> None:
    source = Source([1])
    stream = asyncpool.map(echo, source.sync(), workers=1)
    await settle()
    await stream.aclose()
    assert source.pulled == []
    del stream


def drop_a_stream() -> None:
    asyncpool.map(echo, [1], workers=1)
    gc.collect()


@virtual
async def test_a_stream_that_is_dropped_unread_warns_as_a_coroutine_does() -> None:
    with pytest.warns(RuntimeWarning, match="the stream of pool 'map' was never read"):
        drop_a_stream()


@virtual
async def test_a_oneshot_stream_raises_the_error_of_its_resource() -> None:
    @asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        raise OSError("no connection")
        yield 1

    async def handler(job: int, resource: int) -> int:
        return job

    with pytest.raises(OSError, match="no connection"):
        await asyncpool.map(handler, [1], workers=1, resource=resource)
    assert len(asyncio.all_tasks()) == 1


@virtual
async def test_a_oneshot_failure_that_its_cancelled_reader_never_got_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)

    async def handler(job: int) -> None:
        if job:
            await ignores_cancel(3)
        await asyncio.sleep(1)
        raise ValueError("lost?")

    task = asyncio.create_task(_list(asyncpool.map(handler, [0, 1], workers=2)))
    cancel_soon(task, 2)
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    await settle()
    assert "lost?" in caplog.text


# -- Outcomes of cancelled jobs


@fuzzed
async def test_a_job_of_a_cancelled_stream_is_cancelled_with_reason_stream() -> None:
    reasons: list[Any] = []

    def observe(event: Any) -> None:
        outcome = getattr(event, "outcome", None)
        if isinstance(outcome, Cancelled):
            reasons.append((outcome.reason, outcome.started))

    async with WorkerPool(sleeper, workers=1, observers=[observe]) as pool, pool.map([1, 1000, 1000]) as stream:
        async for _ in stream:
            break
    assert sorted(reasons) == [(CancelReason.STREAM, False), (CancelReason.STREAM, False)] or sorted(reasons) == [
        (CancelReason.STREAM, False),
        (CancelReason.STREAM, True),
    ]
