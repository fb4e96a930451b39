"""`batches`: lists by number and by time, of any async iterable, of which nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from asyncpool import Batches, PoolDeadlock, SourceCrashed, StreamClosed, WorkerPool, batches
from asyncpool.testing import run, settle
from tests.helpers import Source, echo, fuzzed, later, now, sleeper, virtual


async def timed(*gaps: float) -> AsyncIterator[float]:
    """A source that waits before each item. The item is the time at which it arrives."""
    for gap in gaps:
        await asyncio.sleep(gap)
        yield now()


async def read(grouped: Batches[Any]) -> list[Any]:
    return [batch async for batch in grouped]


# -- What is in a batch, and when


@fuzzed
async def test_a_batch_is_full_or_its_time_is_over() -> None:
    source = timed(1, 0.5, 0.5, 0.5, 3, 1, 1, 0.5)
    seen = []
    async for batch in batches(source, size=3, seconds=1.5):
        seen.append((now(), batch))
    assert seen == [
        (2.0, [1.0, 1.5, 2.0]),  # full
        (4.0, [2.5]),  # 1.5 s after its first item
        (7.0, [5.5, 6.5]),
        (8.0, [7.5, 8.0]),  # the source has ended
    ]


@virtual
async def test_nothing_is_no_batch() -> None:
    assert await read(batches(later(), size=3, seconds=1.0)) == []


@pytest.mark.parametrize(
    ("size", "seconds", "expected"),
    [
        (1, 1.0, [[0.0], [0.0], [2.0]]),
        (2, None, [[0.0, 0.0], [2.0]]),
        (5, None, [[0.0, 0.0, 2.0]]),
        (5, 2.5, [[0.0, 0.0, 2.0]]),
    ],
)
@fuzzed
async def test_size_and_seconds(size: int, seconds: float | None, expected: list[Any]) -> None:
    assert await read(batches(timed(0, 0, 2), size=size, seconds=seconds)) == expected


@virtual
async def test_the_next_batch_fills_while_the_reader_works_and_no_more() -> None:
    source = Source(range(100))
    grouped = batches(source.later(), size=4, seconds=1.0)
    assert source.pulled == []
    async with grouped:
        assert await anext(grouped) == [0, 1, 2, 3]
        await asyncio.sleep(10)
        assert source.pulled == list(range(8))
        assert await anext(grouped) == [4, 5, 6, 7]
    assert source.closed


@virtual
async def test_the_time_of_a_batch_goes_on_while_the_reader_works() -> None:
    async with batches(timed(0, 1, 1, 1, 1, 100), size=3, seconds=2.5) as grouped:
        assert await anext(grouped) == [0.0, 1.0, 2.0]
        await asyncio.sleep(3.25)
        assert await anext(grouped) == [3.0, 4.0]
        assert now() == 5.5  # 2.5 s after the first came, and not after the reader did


@virtual
async def test_no_seconds_take_what_is_at_hand() -> None:
    async def two_at_once() -> AsyncIterator[int]:
        for number in range(3):
            yield number
            yield number
            await asyncio.sleep(1)

    assert await read(batches(two_at_once(), size=5, seconds=0)) == [[0, 0], [1, 1], [2, 2]]


# -- Ends


class Broken(Exception):
    pass


async def breaks(error: BaseException, *items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item
    raise error


@fuzzed
async def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    grouped = batches(breaks(Broken("oh"), 1, 2, 3), size=2, seconds=60.0)
    assert await anext(grouped) == [1, 2]
    assert await anext(grouped) == [3]
    with pytest.raises(Broken, match="oh"):
        await anext(grouped)
    with pytest.raises(StopAsyncIteration):
        await anext(grouped)
    assert now() == 0.0


@pytest.mark.parametrize("error", [asyncio.CancelledError("elsewhere"), SystemExit("bye"), GeneratorExit()], ids=repr)
@virtual
async def test_an_error_that_would_harm_the_reader_is_wrapped(error: BaseException) -> None:
    class Breaks:
        def __aiter__(self) -> Breaks:
            return self

        async def __anext__(self) -> int:
            raise error

    with pytest.raises(SourceCrashed) as raised:
        await read(batches(Breaks(), size=2, seconds=1.0))
    assert raised.value.error is error


@virtual
async def test_a_source_that_cannot_be_iterated_says_so() -> None:
    class Broke:
        def __aiter__(self) -> Any:
            raise Broken("not today")

    with pytest.raises(Broken, match="not today"):
        await anext(batches(Broke(), size=2, seconds=1.0))


def test_a_keyboard_interrupt_of_the_source_reaches_the_program() -> None:
    async def main() -> None:
        await read(batches(breaks(KeyboardInterrupt(), 1), size=5, seconds=1.0))

    with pytest.raises(KeyboardInterrupt):
        run(main)


@virtual
async def test_a_task_that_others_cancel_ends_the_batches() -> None:
    for turns in (0, 1, 3):
        reader = asyncio.ensure_future(read(batches(sleeping(), size=5, seconds=1.0)))
        task = None
        while task is None:
            await asyncio.sleep(0)
            task = next((task for task in asyncio.all_tasks() if task.get_name() == "asyncpool batches"), None)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(SourceCrashed, match="CancelledError"):
            await reader


async def sleeping() -> AsyncIterator[int]:
    await asyncio.sleep(1000)
    yield 1


# -- Readers that are cancelled


@pytest.mark.parametrize("by_scope", [False, True], ids=["task", "scope"])
@fuzzed
async def test_a_cancelled_reader_loses_nothing_whatever_the_source_is(by_scope: bool) -> None:
    """Also of an async generator, which a cancelled step would end."""
    grouped = batches(timed(*[0.25] * 20), size=3, seconds=0.6)
    seen: list[float] = []
    while True:
        step = asyncio.ensure_future(anext(grouped))
        if by_scope:
            with anyio.move_on_after(0.1):
                await asyncio.wait([step])
        else:
            await asyncio.wait([step], timeout=0.1)
        if not step.done():
            step.cancel()
            await asyncio.wait([step])
        if step.cancelled():
            continue
        if isinstance(step.exception(), StopAsyncIteration | RuntimeError):
            break
        seen += step.result()
    assert seen == [0.25 * (number + 1) for number in range(20)]


@virtual
async def test_a_cancelled_wait_for_a_stream_loses_nothing() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        grouped = batches(pool.map([0.5] * 6), size=4, seconds=10.0)
        for _ in range(3):
            with anyio.move_on_after(0.3) as scope:
                await anext(grouped)
            assert scope.cancelled_caught
        assert await read(grouped) == [[0.5] * 4, [0.5] * 2]


@virtual
async def test_there_is_one_reader() -> None:
    grouped = batches(later(1, seconds=1.0), size=2, seconds=1.0)
    first = asyncio.ensure_future(anext(grouped))
    await settle()
    with pytest.raises(StreamClosed, match="the batches have one reader, and another task is already waiting"):
        await anext(grouped)
    assert await first == [1]


# -- Leaving


class Scoped:
    """A generator that holds a cancel scope and a context variable, which belong to the task of its steps."""

    def __init__(self) -> None:
        self.is_closed = False
        self.tasks: set[Any] = set()

    async def items(self) -> AsyncIterator[int]:
        try:
            with anyio.CancelScope():
                async with anyio.create_task_group():
                    for number in range(1_000_000):
                        self.tasks.add(asyncio.current_task())
                        yield number
                        await asyncio.sleep(0.1)
        finally:
            await asyncio.sleep(0.1)
            self.tasks.add(asyncio.current_task())
            self.is_closed = True


@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.35])
@fuzzed
async def test_leaving_closes_the_source_in_the_task_that_pulled(seconds: float) -> None:
    source = Scoped()
    async with batches(source.items(), size=3, seconds=1.0) as grouped:
        assert await anext(grouped) == [0, 1, 2]
        await asyncio.sleep(seconds)
    assert source.is_closed
    assert len(source.tasks) == 1
    with pytest.raises(StreamClosed, match="the batches were closed before their end"):
        await anext(grouped)
    await grouped.aclose()


@fuzzed
async def test_a_loop_that_is_left_closes_the_source_in_the_background() -> None:
    source = Scoped()
    async for batch in batches(source.items(), size=2, seconds=1.0):
        assert batch == [0, 1]
        break
    gc.collect()
    await asyncio.sleep(1)
    assert source.is_closed


@fuzzed
async def test_closing_wakes_a_reader() -> None:
    source = Source([1])
    grouped = batches(source.later(), size=5, seconds=None)
    slow = batches(sleeping(), size=5, seconds=None)
    waits = asyncio.ensure_future(anext(slow))
    await settle()
    await asyncio.gather(slow.aclose(), slow.aclose())
    with pytest.raises(StreamClosed):
        await waits
    assert await anext(grouped) == [1]


@virtual
async def test_closing_before_the_first_step_closes_a_stream_that_nobody_has_read() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        await batches(pool.map([1]), size=2, seconds=1.0).aclose()  # without a warning
        source = Source([1])
        await batches(source.later(), size=2, seconds=1.0).aclose()
        assert source.pulled == []


@pytest.mark.parametrize("turns", range(4))
@virtual
async def test_closing_in_the_first_steps(turns: int) -> None:
    async with WorkerPool(echo, workers=1) as pool:
        grouped = batches(pool.map(range(100)), size=2, seconds=1.0)
        step = asyncio.ensure_future(anext(grouped))
        for _ in range(turns):
            await asyncio.sleep(0)
        await grouped.aclose()
        with suppress(StreamClosed):
            await step
    assert pool.stats.running == 0


@virtual
async def test_a_source_that_ignores_its_cancellation_is_left_after_five_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn() -> AsyncIterator[int]:
        end = now() + 20
        while now() < end:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(end - now())
        yield 1

    grouped = batches(stubborn(), size=2, seconds=1.0)
    with anyio.move_on_after(1):
        await anext(grouped)
    await grouped.aclose()
    assert now() == 6.0
    assert "batches: the source is still running 5 s after it was asked to stop" in caplog.text
    await asyncio.sleep(20)


@fuzzed
async def test_a_source_that_gives_an_item_when_it_is_cancelled_is_closed_all_the_same() -> None:
    closed: list[float] = []

    async def gives() -> AsyncIterator[int]:
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(100)
            yield 1
        finally:
            try:
                async with asyncio.TaskGroup() as group:  # would take our cancellation for that of its parent
                    group.create_task(breaks_after_a_second())
            except* Broken:
                await asyncio.sleep(1)
                closed.append(now())

    grouped = batches(gives(), size=2, seconds=1.0)
    with anyio.move_on_after(1):
        await anext(grouped)
    await grouped.aclose()
    assert closed == [3.0]


async def breaks_after_a_second() -> None:
    await asyncio.sleep(1)
    raise Broken


@virtual
async def test_an_error_of_a_cancelled_reader_that_is_kept_keeps_nothing() -> None:
    source = Scoped()
    grouped = batches(source.items(), size=50, seconds=None)
    step = asyncio.ensure_future(anext(grouped))
    await settle()
    step.cancel()
    kept = None
    try:
        await step
    except asyncio.CancelledError as error:
        kept = error
    del grouped, step
    gc.collect()
    await asyncio.sleep(1)
    assert source.is_closed
    assert kept is not None


@virtual
async def test_an_error_while_the_source_is_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks_late() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(100)
        finally:
            raise Broken("in the cleanup")

    async with batches(breaks_late(), size=1, seconds=1.0) as grouped:
        await anext(grouped)
        await asyncio.sleep(1)
    assert "batches: the source raised this error while it was closed" in caplog.text
    assert "in the cleanup" in caplog.text


@pytest.mark.parametrize("is_dropped", [False, True])
@virtual
async def test_an_error_that_its_reader_does_not_get_is_logged(
    is_dropped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    grouped = batches(breaks(Broken("the disk is full"), 1, 2, 3), size=2, seconds=None)
    assert await anext(grouped) == [1, 2]
    await settle()  # the source raises
    if is_dropped:
        del grouped
        await settle()
    else:
        await grouped.aclose()
    assert "a stream of batches was closed before its reader got this error of its source" in caplog.text
    assert "the disk is full" in caplog.text


@virtual
async def test_the_end_of_its_pool_is_no_error_that_a_reader_has_missed(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerPool(echo, workers=1) as pool:
        grouped = batches(pool.map(Source([1, 2, 3]).later()), size=2, seconds=None)
        assert await anext(grouped) == [1, 2]
    await settle()
    await grouped.aclose()
    assert caplog.text == ""


@virtual
async def test_after_closing_there_are_no_items_even_if_the_source_is_exhausted() -> None:
    grouped = batches(Source([1, 2, 3]).later(), size=2, seconds=None)
    assert await anext(grouped) == [1, 2]
    await asyncio.sleep(10)
    await grouped.aclose()
    with pytest.raises(StreamClosed):
        await anext(grouped)


@virtual
async def test_closing_after_the_end_does_nothing() -> None:
    grouped = batches(Source([1]).later(), size=2, seconds=None)
    assert await read(grouped) == [[1]]
    await grouped.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(grouped)


@virtual
async def test_a_reader_that_is_cancelled_in_aclose_leaves_a_source_that_is_closed() -> None:
    source = Scoped()
    grouped = batches(source.items(), size=2, seconds=1.0)
    await anext(grouped)
    with anyio.move_on_after(0.05):
        await grouped.aclose()
    assert not source.is_closed
    await asyncio.sleep(1)
    assert source.is_closed


# -- Sources and readers of all kinds


@virtual
async def test_a_group_is_a_source() -> None:
    async with WorkerPool(echo, workers=2) as pool, pool.group(ordered=True) as group:
        for number in range(5):
            await group.submit(number)
        group.close_intake()
        grouped = await read(batches(group, size=2, seconds=1.0))
    assert [[outcome.job for outcome in batch] for batch in grouped] == [[0, 1], [2, 3], [4]]


@virtual
async def test_an_iterator_that_cannot_be_closed_is_a_source() -> None:
    class Three:
        left = 3

        def __aiter__(self) -> Three:
            return self

        async def __anext__(self) -> int:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return self.left

    async with batches(Three(), size=2, seconds=1.0) as grouped:
        assert await anext(grouped) == [2, 1]
    assert await read(batches(Three(), size=2, seconds=1.0)) == [[2, 1], [0]]


@fuzzed
async def test_a_pipeline_that_is_left_stops_from_end_to_start() -> None:
    source = Source(range(1_000_000))

    async def write(rows: list[int]) -> int:
        await asyncio.sleep(0.1)
        return len(rows)

    async with WorkerPool(echo, workers=3) as reads, WorkerPool(write, workers=1, queue_size=1) as writes:
        rows = reads.map(source.later())
        async with writes.map(batches(rows, size=10, seconds=1.0)) as written:
            async for count in written:
                assert count == 10
                break
        assert source.closed
        assert reads.stats.running == writes.stats.running == 0
        assert len(source.pulled) < 200


@virtual
async def test_the_source_runs_in_the_context_of_the_reader() -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def source() -> AsyncIterator[str]:
        yield variable.get()

    variable.set("seen")
    assert await read(batches(source(), size=1, seconds=None)) == [["seen"]]


@virtual
async def test_a_wait_for_a_full_pool_by_way_of_batches_is_a_deadlock_too() -> None:
    async def handler(job: int) -> Any:
        if job == 0:
            return await read(batches(pool.map([1, 2]), size=2, seconds=None))
        return job

    async with WorkerPool(handler, workers=1, queue_size=0) as pool:
        with pytest.raises(PoolDeadlock):
            await pool.run(0)
        await pool.join()


@virtual
async def test_what_was_read_is_not_kept() -> None:
    class Thing:
        pass

    async def things() -> AsyncIterator[Thing]:
        while True:
            yield Thing()
            await asyncio.sleep(10)

    async with batches(things(), size=1, seconds=None) as grouped:
        [thing] = await anext(grouped)
        gone = weakref.ref(thing)
        del thing
        await settle()
        assert gone() is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager task factories are new in 3.12")
@virtual
async def test_tasks_that_start_eagerly() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    assert await read(batches(timed(0, 0, 1), size=2, seconds=0.5)) == [[0.0, 0.0], [1.0]]
    with pytest.raises(Broken):
        await anext(batches(breaks(Broken()), size=2, seconds=0.5))


@pytest.mark.parametrize(
    ("source", "size", "seconds", "kind", "text"),
    [
        (
            [1, 2],
            2,
            1.0,
            TypeError,
            "source must be an async iterable, got .1, 2.: use itertools.batched for a plain one",
        ),
        (later, 2, 1.0, TypeError, "source must be an async iterable, got <function later"),
        (later(), 0, 1.0, ValueError, "size must be >= 1, got 0"),
        (later(), 2.0, 1.0, TypeError, "size must be an int, got 2.0"),
        (later(), 2, -1, ValueError, "seconds must be a finite number of seconds >= 0, got -1"),
        (later(), 2, "1", TypeError, "seconds must be a number of seconds, got '1'"),
    ],
)
def test_what_it_takes(source: Any, size: Any, seconds: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        batches(source, size, seconds)
