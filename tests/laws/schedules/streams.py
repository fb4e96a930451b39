"""Scenarios of streams: readers that leave, sources that fail, pools that stop meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

import asyncpool
from asyncpool import Cancelled, JobCancelled, JobCrashed, PoolClosed, QueueFull, StreamClosed, WorkerPool
from asyncpool.progress import track
from asyncpool.testing import settle
from tests.laws.schedules.tools import any_size, pass_time, patience, read_all, scenario, sizes, turns
from tests.laws.witness import KINDS, Item, Witness, ended, spawn
from tests.progress.tools import Screen


@scenario
async def a_stream_is_read_by_an_impatient_reader(witness: Witness, random: Random) -> None:
    items = witness.items(10)
    async with witness.make_pool(**sizes(random)) as pool:
        is_ordered = random.random() < 0.5
        stream = aiter(pool.outcomes(witness.any_source(items), ordered=is_ordered))
        read = []
        while True:
            step = spawn(anext(stream))
            if random.random() < 0.5:
                await turns(random, 3)
                step.cancel()
            await ended(step)
            if step.cancelled():
                continue
            if step.exception():
                assert isinstance(step.exception(), (StopAsyncIteration, RuntimeError))
                break
            read.append(step.result())
        assert sorted(outcome.job.n for outcome in read) == [item.n for item in items]
        if is_ordered:
            assert [outcome.job for outcome in read] == items
    assert not (await witness.check_end())


@scenario
async def a_loop_is_left_early(witness: Witness, random: Random) -> None:
    items = witness.items(10, *KINDS, "ok", "turn", "nap")
    async with witness.make_pool(timeout=3.0, **sizes(random)) as pool:
        stop = random.randint(0, 5)
        stream = pool.outcomes(witness.any_source(items), ordered=random.random() < 0.5)
        count = 0
        if random.random() < 0.5:
            async with stream:
                async for _ in stream:
                    count += 1
                    if count >= stop:
                        break
            assert pool.stats.running == pool.stats.queued == pool.stats.delayed == 0
            assert witness.sources_open == 0
        else:
            async for _ in stream:
                count += 1
                if count >= stop:
                    break
            await pool.join()
        assert await pool.run(Item(1000)) == 1000  # the pool lives on
        witness.others += 1
    assert not (await witness.check_end())


@scenario
async def a_tracked_stream_is_left_or_read_to_its_end(witness: Witness, random: Random) -> None:
    screen = Screen(is_terminal=random.random() < 0.5)
    items = witness.items(10, *KINDS, "ok", "turn", "nap")
    kind = random.choice(("stream", "stream", "group"))
    async with witness.make_pool(timeout=3.0, **sizes(random)) as pool:
        stop = random.choice((0, 2, 5, 99))
        source = pool.group() if kind == "group" else pool.outcomes(witness.any_source(items))
        stream: Any = track(source, total=random.choice((None, 3, 10)), console=screen.console, interval=0.002)
        read = []

        async def submitting() -> None:
            with suppress(StreamClosed, PoolClosed):
                async with stream:
                    for item in items:
                        await stream.submit(item)
                        witness.others += 1

        async def reading() -> None:
            cursor = aiter(stream)
            while len(read) < stop:
                step = spawn(anext(cursor))
                if random.random() < 0.3:
                    await turns(random, 3)
                    step.cancel()
                await ended(step)
                if not step.cancelled():
                    if step.exception():
                        assert isinstance(
                            step.exception(), (StopAsyncIteration, StreamClosed, PoolClosed, RuntimeError)
                        )
                        return
                    read.append(step.result())
                elif stop == 2:
                    await stream.aclose()

        tasks = [spawn(work()) for work in ((reading, submitting) if kind == "group" else (reading,))]
        await ended(*tasks)
        assert tasks[0].exception() is None
        # Leaving the loop has ended the display: it does not wait for the next step of the loop.
        shown = screen.is_restored if screen.console.is_interactive else screen.lines[-1].startswith("pool: ")
        assert shown or not read
        if stop == 99:
            assert len({outcome.job.n for outcome in read}) == len(read)
    assert not (await witness.check_end())


@scenario
async def map_ends_with_the_first_failure(witness: Witness, random: Random) -> None:
    items = witness.items(9, "ok", "turn", "nap")
    bad = sorted(random.sample(range(9), random.randint(0, 2)))
    for index in bad:
        items[index] = Item(items[index].n, random.choice(("fail", "turn_fail", "crash", "stop", "exit")))
    async with witness.make_pool(**sizes(random)) as pool:
        is_ordered = random.random() < 0.5
        values = []
        try:
            async for value in pool.map(witness.any_source(items), ordered=is_ordered):
                values.append(value)
            assert not bad
        except (ValueError, JobCrashed) as error:
            assert bad
            if is_ordered and isinstance(error, ValueError):
                args: object = vars(BaseException)["args"].__get__(error)  # which the error may not let us ask for
                assert args == (items[bad[0]].n,)
        if is_ordered:
            assert values == [item.n for item in items[: bad[0] if bad else None]]
        else:
            good = {item.n for index, item in enumerate(items) if index not in bad}
            assert len(set(values)) == len(values)
            assert set(values) <= good
    assert not (await witness.check_end())


@scenario
async def a_stream_meets_the_end_of_its_pool(witness: Witness, random: Random) -> None:
    pool = witness.make_pool(**sizes(random))
    await pool.start()
    read = []
    items = witness.items(12, *KINDS)

    async def reading() -> None:
        try:
            async for outcome in pool.outcomes(witness.any_source(items), ordered=random.random() < 0.5):
                read.append(outcome)
                await turns(random, 2)
        except PoolClosed:
            return
        assert len(read) == len(items)

    reader = spawn(reading())
    await turns(random, 12)
    report = await pool.close(drain_timeout=random.choice((0.0, 0.001)), grace=1.0)
    await ended(reader)
    assert reader.exception() is None
    # What was pulled has an outcome each, and the reader has got them all.
    assert sorted(outcome.job.n for outcome in read) == sorted(item.n for item in witness.pulled)
    lost = {outcome.job for outcome in read if isinstance(outcome, Cancelled)}
    assert lost == {entry.job for entry in report.unfinished}
    await witness.check_end()


@scenario
async def a_source_fails(witness: Witness, random: Random) -> None:
    items = witness.items(random.randint(0, 6))
    async with witness.make_pool(**sizes(random)) as pool:
        read = []
        with pytest.raises(LookupError):
            async for outcome in pool.outcomes(witness.any_source(items, fails=True)):
                read.append(outcome)
        assert sorted(outcome.job.n for outcome in read) == [item.n for item in items]
    assert not (await witness.check_end())


@scenario
async def a_source_stops_what_it_feeds(witness: Witness, random: Random) -> None:
    pool = witness.make_pool(**sizes(random))
    await pool.start()
    how = random.choice(("drain", "cancel", "cancel the stream"))
    is_closed = False

    async def source() -> AsyncIterator[Item]:
        nonlocal is_closed
        try:
            for count in range(20):
                await turns(random, 1)
                if count == 3:
                    stream.cancel() if how == "cancel the stream" else getattr(pool, how)()
                item = witness.item("ok", "turn")
                witness.pulled.append(item)
                yield item
        finally:
            await asyncio.sleep(0.5)  # closing a connection takes time, and is not cut short
            is_closed = True

    stream = pool.outcomes(source())
    with pytest.raises((PoolClosed, StreamClosed)):
        async for _ in stream:
            pass
    await stream.aclose()
    await pool.close()
    assert is_closed
    await witness.check_end()


@scenario
async def sources_and_first_steps_do_as_they_like(witness: Witness, random: Random) -> None:
    """Both run in the middle of the pool's own step: plain iterators while it accepts, eager jobs while it starts."""
    streams: list[Any] = []
    tasks: list[asyncio.Task[Any]] = []
    is_paused = False

    def resume() -> None:
        nonlocal is_paused
        with suppress(PoolClosed):
            pool.resume()
            is_paused = False

    def act() -> None:
        nonlocal is_paused
        witness.check()
        with suppress(PoolClosed, QueueFull):
            match random.randint(0, 9):
                case 0 | 1:
                    witness.handles.append(pool.submit_nowait(witness.item("ok", "turn", "nap")))
                case 2:
                    tasks.append(spawn(witness.submit(witness.item("ok", "turn", "nap"))))
                case 3:
                    pool.pause()
                    is_paused = True
                    asyncio.get_running_loop().call_later(random.choice((0.0, 0.001, 0.01)), resume)
                case 4 | 5:
                    witness.resize(any_size(random))
                case 6 if witness.handles:
                    random.choice(witness.handles).cancel()
                case 7 if random.random() < 0.3:
                    random.choice(streams).cancel()
                case 8 if random.random() < 0.1:
                    random.choice((pool.cancel, pool.drain))()
                case _:
                    pass
        witness.check()

    async def handler(item: Item) -> int:
        if random.random() < acting:
            act()
        return await witness.handle(item)

    def source() -> Iterator[Item]:
        for item in witness.items(12, "ok", "turn", "nap", "fail", "turn_fail", "stubborn"):
            if random.random() < acting:
                act()
            if random.random() < 0.02:
                raise LookupError
            witness.pulled.append(item)
            yield item

    def falls_out(_: object) -> None:
        if random.random() < 0.1:
            raise ValueError("an observer")

    async def read(stream: Any) -> None:
        with suppress(PoolClosed, StreamClosed, LookupError, ValueError, JobCancelled):
            async for _ in stream:
                if random.random() < 0.05:
                    break
        await stream.aclose()

    acting = random.choice((0.05, 0.2, 0.5))
    options: dict[str, Any] = {"observers": [falls_out]} if random.random() < 0.3 else {}
    if random.random() < 0.2:
        options["priority"] = lambda item: item.n % 3
    if random.random() < 0.3:
        options["retry"] = patience(random)
    pool = witness.make_pool(handler=handler, **sizes(random), **options)
    async with pool:
        make = random.choice((pool.map, pool.outcomes))
        streams += [make(source(), ordered=random.random() < 0.5) for _ in range(random.randint(1, 3))]
        readers = [spawn(read(stream)) for stream in streams]
        for _ in range(3):
            await pass_time(random)
            if pool.state == "open" and not is_paused:
                await settle()
                if pool.state == "open" and not is_paused:
                    witness.check_settled()
        await ended(*readers)
        await ended(*tasks)
    await pool.close()
    await ended(*tasks)  # some were begun by the last jobs
    for reader in readers:
        reader.result()
    await witness.check_end()
    stats = pool.stats
    assert stats.seconds_queued.count == stats.seconds_running.count == sum(witness.calls.values())


@scenario
async def streams_and_submitters_share_a_pool(witness: Witness, random: Random) -> None:
    size = sizes(random)
    async with witness.make_pool(**size) as pool:
        lazy_items = witness.items(30)
        lazy = pool.outcomes(witness.any_source(lazy_items), ordered=random.random() < 0.5)
        front = aiter(lazy)
        await anext(front)  # and then it does not read on, which must block nobody
        items = witness.items(8)
        others = [spawn(read_all(pool.outcomes(witness.any_source(items)))) for items in (items, witness.items(5))]
        others += [spawn(witness.submit(witness.item())) for _ in range(6)]
        await ended(*others)
        assert [task.exception() for task in others] == [None] * len(others)
        assert len(others[0].result()) == len(items)
        unread = len(set(witness.pulled) & set(lazy_items)) - 1
        # What waits for another attempt leaves its place in the window to others.
        most = size["queue_size"] + witness.widest + pool.stats.retries
        assert unread <= most, "a slow reader does not slow the intake"
        rest = [outcome async for outcome in front]
        assert len(rest) == len(lazy_items) - 1
    assert not (await witness.check_end())


@scenario
async def a_pipeline_of_two_pools_is_cancelled(witness: Witness, random: Random) -> None:
    async def double(value: int) -> int:
        await turns(random, 1)
        return 2 * value

    async with (
        witness.make_pool(**sizes(random)) as first,
        WorkerPool(double, **sizes(random)) as second,
    ):
        items = witness.items(10, "ok", "turn", "nap")
        stop = random.randint(1, 12)
        values = []
        async with second.map(first.map(witness.any_source(items))) as stream:
            async for value in stream:
                values.append(value)
                if len(values) >= stop:
                    break
        assert values == [2 * item.n for item in items[:stop]]
        assert first.stats.running == first.stats.queued == 0
        assert second.stats.running == second.stats.queued == 0
    assert not (await witness.check_end())


@scenario
async def nested_streams_of_one_pool_do_not_starve(witness: Witness, random: Random) -> None:
    async with witness.make_pool(**sizes(random)) as pool:
        items = witness.items(8, "ok", "turn", "nap")
        again: dict[int, Item] = {}

        async def middle() -> AsyncIterator[Item]:
            async for value in pool.map(witness.any_source(items)):
                again[value] = witness.item("ok", "turn")
                witness.pulled.append(again[value])
                yield again[value]

        values = await pool.map(middle())
        assert values == [again[item.n].n for item in items]
    assert not (await witness.check_end())


@scenario
async def a_oneshot_stream_is_left_or_cancelled(witness: Witness, random: Random) -> None:
    items = witness.items(10, "ok", "turn", "nap", "slow")
    read = []
    stream = asyncpool.outcomes(no_checks(witness), witness.any_source(items), **sizes(random))

    async def reading() -> None:
        async with stream:
            async for outcome in stream:
                read.append(outcome)
                await turns(random, 1)
                if len(read) == 8:
                    break

    reader = spawn(reading())
    await turns(random, 10)
    if random.random() < 0.6:
        reader.cancel()
    await ended(reader)
    await stream.aclose()
    assert witness.sources_open == 0
    assert witness.active == 0
    assert max(witness.calls.values(), default=0) <= 1
    assert len({outcome.job.n for outcome in read}) == len(read)


def no_checks(witness: Witness) -> Callable[[Item], Awaitable[int]]:
    """The witness's handler, for a pool that the witness does not check."""

    async def handler(item: Item) -> int:
        witness.calls[item.n] += 1
        witness.active_items.add(item.n)
        try:
            return await witness.work(item)
        finally:
            witness.active_items.discard(item.n)

    return handler
