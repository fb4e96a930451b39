"""Replaying letters, from memory and from a file."""

from __future__ import annotations

import asyncio
import tempfile
from itertools import count
from pathlib import Path

import pytest

from asyncpool import DeadLetterFile, DeadLetters, PoolClosed, Succeeded, WorkerPool
from asyncpool.dead_letters.store import BATCH
from asyncpool.testing import ManualHandler, cancel_at, run, settle
from tests.dead_letters.tools import FakePool, MakeStore, Store, fails, fill, jobs, until
from tests.helpers import assert_conserved, cancel_soon, echo, fuzzed, virtual


@virtual
async def test_replay_submits_the_oldest_first_and_empties_the_store(make_store: MakeStore) -> None:
    store = fill(make_store(), range(200))
    pool = FakePool()
    assert await store.replay(pool) == 200
    assert pool.accepted == list(range(200))
    assert jobs(store) == []
    assert await store.replay(pool) == 0


@virtual
async def test_replay_takes_those_that_are_meant(make_store: MakeStore) -> None:
    store = fill(make_store(), range(6))
    pool = FakePool()
    assert await store.replay(pool, where=lambda letter: letter.job % 2 == 0) == 3
    assert pool.accepted == [0, 2, 4]
    assert jobs(store) == [1, 3, 5]


@virtual
async def test_a_where_that_raises_loses_nothing(make_store: MakeStore) -> None:
    store = fill(make_store(), [1, 2, 0, 3])
    pool = FakePool()
    with pytest.raises(ZeroDivisionError):
        await store.replay(pool, where=lambda letter: 1 / letter.job > 0)
    assert pool.accepted == [1, 2]
    assert jobs(store) == [0, 3]
    assert await store.replay(pool) == 2


@virtual
async def test_replay_waits_for_room_and_a_letter_stays_until_its_job_is_accepted(make_store: MakeStore) -> None:
    store = fill(make_store(), range(3))
    pool = FakePool(room=1)
    task = asyncio.create_task(store.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    assert jobs(store) == [1, 2]
    pool.open()
    assert await task == 3


@pytest.mark.parametrize("late", [False, True])
def test_a_replay_cancelled_anywhere_loses_nothing_and_doubles_nothing(make_store: MakeStore, late: bool) -> None:
    wanted = list(range(BATCH + 3))

    async def main(step: int) -> bool:
        store = fill(make_store(), wanted)
        async with WorkerPool(sleeper_of_one, workers=2, queue_size=BATCH - 2) as pool:
            handed: list[int] = []

            class Recorder:
                async def submit(self, job: int) -> None:
                    await pool.submit(job)
                    handed.append(job)

            result = await cancel_at(step, lambda: store.replay(Recorder()), late=late)
            await settle()
            assert handed + jobs(store) == wanted
            await store.replay(Recorder())
            assert handed == wanted
            assert jobs(store) == []
        return result.completed

    for step in count(1):
        if run(lambda step=step: main(step)):  # type: ignore[misc]
            break
    assert step > 3


async def sleeper_of_one(job: int) -> None:
    await asyncio.sleep(1)


@virtual
async def test_a_pool_that_closes_under_a_replay_leaves_the_letters(make_store: MakeStore) -> None:
    store = fill(make_store(), range(4))
    handler = ManualHandler[int, None]()
    pool = WorkerPool(handler, workers=1, queue_size=1)
    await pool.start()
    task = asyncio.create_task(store.replay(pool))
    await handler.wait_started(1)
    await until(lambda: pool.stats.queued == 1)
    await settle()
    closing = asyncio.create_task(pool.close(drain_timeout=0))
    with pytest.raises(PoolClosed):
        await task
    report = await closing
    assert [entry.job for entry in report.unfinished] == [0, 1]
    assert jobs(store) == [2, 3]
    with pytest.raises(PoolClosed):
        await store.replay(pool)
    assert jobs(store) == [2, 3]


@virtual
async def test_a_job_that_fails_again_comes_back_once_and_is_not_replayed_in_the_same_call(
    make_store: MakeStore,
) -> None:
    store = make_store()
    async with WorkerPool(fails, workers=2, queue_size=2, dead_letters=store) as pool:
        await pool.outcomes(range(150))
        assert await store.replay(pool) == 150
        await pool.join()
        assert pool.stats.submitted == 300
        assert sorted(jobs(store)) == list(range(150))
        assert_conserved(pool)


@fuzzed
async def test_two_replays_at_once_submit_no_letter_twice_in_memory() -> None:
    await two_replays(DeadLetters())


@fuzzed
async def test_two_replays_at_once_submit_no_letter_twice_from_a_file() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await two_replays(DeadLetterFile(Path(folder, "letters.jsonl")))


async def two_replays(store: Store) -> None:
    fill(store, range(100))
    handed: list[int] = []

    async def handler(job: int) -> None:
        handed.append(job)
        await asyncio.sleep(1)

    async with WorkerPool(handler, workers=2, queue_size=1) as first, WorkerPool(handler, workers=3) as second:
        replays = [asyncio.create_task(store.replay(pool)) for pool in (first, second, first)]
        cancel_soon(replays[2], 5)
        ended = await asyncio.gather(*replays, return_exceptions=True)
        submitted = first.stats.submitted + second.stats.submitted
    assert isinstance(ended[2], asyncio.CancelledError) or sum(n for n in ended if isinstance(n, int)) == submitted
    assert sorted(handed + jobs(store)) == list(range(100))
    assert len(handed) >= 99  # the cancelled replay gave one back, which the others had passed by then


@virtual
async def test_a_letter_that_is_given_back_is_there_for_the_next_replay(make_store: MakeStore) -> None:
    store = fill(make_store(), range(3))
    full = FakePool(room=0)
    first = asyncio.create_task(store.replay(full))
    await until(lambda: full.waiting_submitters == 1)
    other = FakePool()
    assert await store.replay(other) == 2
    assert other.accepted == [1, 2]
    first.cancel()
    await asyncio.wait([first])
    assert jobs(store) == [0]
    assert await store.replay(other) == 1


@pytest.mark.parametrize("is_cancelled", [False, True])
@virtual
async def test_a_full_store_drops_no_letter_that_a_replay_has_in_hand(is_cancelled: bool) -> None:
    letters = fill(DeadLetters(max_size=2), [1, 2])
    pool = FakePool(room=0)
    task = asyncio.create_task(letters.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    fill(letters, [3])
    assert jobs(letters) == [1, 2, 3]
    fill(letters, [4])
    assert jobs(letters) == [1, 3, 4]
    assert letters.dropped == 1
    if is_cancelled:
        task.cancel()
        await asyncio.wait([task])
        assert jobs(letters) == [3, 4]
        assert letters.dropped == 2
    else:
        pool.open()
        assert await task == 1
        assert jobs(letters) == [3, 4]
        assert letters.dropped == 1


@virtual
async def test_a_store_whose_only_letter_is_in_hand_takes_the_news() -> None:
    letters = fill(DeadLetters(max_size=1), [1])
    pool = FakePool(room=0)
    task = asyncio.create_task(letters.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    fill(letters, [2, 3])
    assert jobs(letters) == [1, 3]
    pool.open()
    assert await task == 1
    assert jobs(letters) == [3]


@pytest.mark.parametrize("how", ["remove", "clear"])
@virtual
async def test_a_letter_removed_while_a_replay_has_it_in_hand_does_not_come_back(how: str) -> None:
    letters = fill(DeadLetters(max_size=2), [1, 2])
    pool = FakePool(room=0)
    task = asyncio.create_task(letters.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    if how == "clear":
        letters.clear()
    else:
        assert letters.remove(next(iter(letters)))
    fill(letters, [3, 4, 5])
    assert jobs(letters) == [4, 5]  # and it does not count as one of the two
    task.cancel()
    await asyncio.wait([task])
    assert jobs(letters) == [4, 5]
    assert await letters.replay(FakePool()) == 2


@virtual
async def test_a_replay_leaves_turns_to_others(make_store: MakeStore) -> None:
    store = fill(make_store(), range(3 * BATCH))
    pool = FakePool()
    seen: list[int] = []

    async def other() -> None:
        while len(pool.accepted) < 3 * BATCH:
            seen.append(len(pool.accepted))
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await store.replay(pool)
    await task
    assert {BATCH, 2 * BATCH} <= set(seen)


@virtual
async def test_a_group_can_be_replayed_to(make_store: MakeStore) -> None:
    store = fill(make_store(), range(3))
    async with WorkerPool(echo, workers=2) as pool:
        async with pool.group(window=9) as group:
            await store.replay(group)
        outcomes = [outcome async for outcome in group]
    assert sorted(outcome.job for outcome in outcomes) == [0, 1, 2]
    assert all(isinstance(outcome, Succeeded) for outcome in outcomes)
