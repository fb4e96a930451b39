"""Watching a store: `watch()`."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from asyncpool import DeadLetters, StreamClosed, WorkerPool
from asyncpool.dead_letters.store import DeadLetterWatch
from asyncpool.testing import cancel_at, run, settle
from tests.dead_letters.tools import MakeStore, Store, fails, fill, jobs
from tests.helpers import fuzzed, virtual


async def watched(watch: DeadLetterWatch[Any]) -> list[Any]:
    return [letter.job async for letter in watch]


@fuzzed
async def test_a_watch_gives_all_letters_and_ends_with_the_pool() -> None:
    letters: DeadLetters[int] = DeadLetters()
    task = asyncio.create_task(watched(letters.watch()))
    async with WorkerPool(fails, workers=3, dead_letters=letters) as pool:
        await pool.outcomes(range(20))
    assert sorted(await task) == list(range(20))


@virtual
async def test_a_watch_begins_at_its_call_and_not_at_its_first_step(make_store: MakeStore) -> None:
    store = fill(make_store(), [1])
    store.pool_opened("p")
    watch = store.watch()
    fill(store, [2])
    late = store.watch()
    fill(store, [3])
    store.pool_closed("p")
    assert await watched(watch) == [2, 3]
    assert await watched(late) == [3]


@virtual
async def test_a_watch_waits_for_the_first_pool_and_for_the_last(make_store: MakeStore) -> None:
    store = make_store()
    task = asyncio.create_task(watched(store.watch()))
    await settle()
    assert not task.done()
    store.pool_opened("p")
    store.pool_opened("p")
    fill(store, [1])
    store.pool_closed("p")
    await settle()
    assert not task.done()
    fill(store, [2])
    store.pool_closed("p")
    assert await task == [1, 2]


@virtual
async def test_a_watch_made_after_the_last_pool_has_closed_ends_at_once(make_store: MakeStore) -> None:
    store = make_store()
    async with WorkerPool(fails, workers=1, dead_letters=store) as pool:
        await pool.submit(1)
    assert await watched(store.watch()) == []


@virtual
async def test_a_watch_has_ended_for_good_when_the_last_pool_closed(make_store: MakeStore) -> None:
    store = make_store()
    watch = store.watch()
    store.pool_opened("a")
    fill(store, [1])
    store.pool_closed("a")
    store.pool_opened("b")
    fill(store, [2])
    assert await watched(watch) == [1]
    assert await watched(watch) == []
    store.pool_closed("b")


@virtual
async def test_a_program_keeps_a_watch_open_over_pools_by_being_one(make_store: MakeStore) -> None:
    store = make_store()
    store.pool_opened("all")
    task = asyncio.create_task(watched(store.watch()))
    for job in range(3):
        async with WorkerPool(fails, workers=1, dead_letters=store) as pool:
            await pool.submit(job)
    store.pool_closed("all")
    assert await task == [0, 1, 2]


@virtual
async def test_a_pool_that_closes_without_having_opened_ends_no_watch(make_store: MakeStore) -> None:
    store = make_store()
    store.pool_opened("a")
    task = asyncio.create_task(watched(store.watch()))
    store.pool_closed("unheard of")
    await settle()
    assert not task.done()
    store.pool_closed("a")
    assert await task == []


@virtual
async def test_a_slow_watcher_slows_no_pool_and_is_told_what_it_missed(make_store: MakeStore) -> None:
    store = make_store()
    watch = store.watch(max_unseen=4)
    async with WorkerPool(fails, workers=1, dead_letters=store) as pool:
        await pool.outcomes(range(10))
    assert await watched(watch) == [6, 7, 8, 9]
    assert watch.skipped == 6
    assert jobs(store) == list(range(10))


@fuzzed
async def test_a_watch_whose_reader_is_cancelled_loses_nothing() -> None:
    letters: DeadLetters[int] = DeadLetters()
    letters.pool_opened("p")
    watch = letters.watch()
    got: list[int] = []

    async def step() -> None:
        got.append((await anext(watch)).job)

    for job in range(10):
        task = asyncio.create_task(step())
        await asyncio.sleep(0)
        fill(letters, [job])
        task.cancel()
        await asyncio.wait([task])
    letters.pool_closed("p")
    assert got + await watched(watch) == list(range(10))


@pytest.mark.parametrize("late", [False, True])
@virtual
async def test_a_watch_cancelled_at_its_suspension_goes_on_afterwards(late: bool) -> None:
    letters: DeadLetters[int] = DeadLetters()
    watch = letters.watch()
    asyncio.get_running_loop().call_later(1, fill, letters, [1])
    result = await cancel_at(1, lambda: anext(watch), late=late)
    assert result.cancelled
    assert (await anext(watch)).job == 1


@virtual
async def test_a_watch_has_one_reader_at_a_time() -> None:
    letters: DeadLetters[int] = DeadLetters()
    watch = letters.watch()
    first = asyncio.ensure_future(anext(watch))
    await settle()
    with pytest.raises(StreamClosed, match="one reader"):
        await anext(watch)
    fill(letters, [1])
    assert (await first).job == 1


@virtual
async def test_a_watch_that_is_closed_does_not_look_like_one_that_ended() -> None:
    letters: DeadLetters[int] = DeadLetters()
    watch = letters.watch()
    reader = asyncio.ensure_future(anext(watch))
    await settle()
    await watch.aclose()
    with pytest.raises(StreamClosed, match="closed before its end"):
        await reader
    fill(letters, [1])
    with pytest.raises(StreamClosed, match="closed before its end"):
        await anext(watch)


@virtual
async def test_closing_a_watch_that_has_ended_changes_nothing() -> None:
    letters: DeadLetters[int] = DeadLetters()
    watch = letters.watch()
    letters.pool_opened("p")
    fill(letters, [1])
    letters.pool_closed("p")
    assert await watched(watch) == [1]
    await watch.aclose()
    assert await watched(watch) == []


@virtual
async def test_a_watch_closed_with_letters_unread_does_not_look_like_one_that_ended() -> None:
    letters: DeadLetters[int] = DeadLetters()
    watch = letters.watch()
    letters.pool_opened("p")
    fill(letters, [1])
    letters.pool_closed("p")
    await watch.aclose()
    with pytest.raises(StreamClosed):
        await anext(watch)


@virtual
async def test_a_watch_that_is_dropped_is_forgotten(make_store: MakeStore) -> None:
    store = make_store()
    watch = weakref.ref(store.watch())
    gc.collect()
    assert watch() is None
    fill(store, [1])


@virtual
async def test_leaving_the_loop_over_a_watch_drops_it(make_store: MakeStore) -> None:
    store = make_store()
    asyncio.get_running_loop().call_later(1, fill, store, [1])
    seen = []
    async for kept in store.watch():
        seen.append(kept.job)
        break
    gc.collect()
    assert seen == [1]
    assert len(store._feeds) == 0


@virtual
async def test_a_task_that_waits_in_a_watch_is_not_collected() -> None:
    letters: DeadLetters[int] = DeadLetters()
    got: list[int] = []

    async def monitor() -> None:
        async for letter in letters.watch():
            got.append(letter.job)

    asyncio.create_task(monitor())  # noqa: RUF006  # that nobody keeps it is the point
    await settle()
    gc.collect()
    letters.pool_opened("p")
    fill(letters, [1])
    letters.pool_closed("p")
    await settle()
    assert got == [1]


@pytest.mark.parametrize(("most", "error"), [(0, ValueError), (True, TypeError), (2.0, TypeError)])
def test_max_unseen_is_a_count(most: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_unseen must be"):
        DeadLetters().watch(max_unseen=most)


def test_a_store_is_used_on_one_loop_after_the_other(make_store: MakeStore) -> None:
    store = make_store()

    async def main() -> list[Any]:
        task = asyncio.create_task(watched(store.watch()))
        await asyncio.sleep(0)
        async with WorkerPool(fails, workers=1, dead_letters=store) as pool:
            await pool.submit(1)
        return await task

    assert run(main) == [1]
    store.pool_opened("over both")
    assert run(main_with(store)) == [1]


def main_with(store: Store) -> Callable[[], Any]:
    async def main() -> list[Any]:
        task = asyncio.create_task(watched(store.watch()))
        await asyncio.sleep(0)
        async with WorkerPool(fails, workers=1, dead_letters=store) as pool:
            await pool.submit(1)
        store.pool_closed("over both")
        return await task

    return main
