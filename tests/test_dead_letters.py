"""What is kept of the jobs that failed: letters, the store in memory, the file, watching and replaying."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpool import (
    DeadLetter,
    DeadLetterFile,
    DeadLetters,
    Failed,
    PoolClosed,
    Retry,
    StreamClosed,
    Succeeded,
    WorkerPool,
)
from asyncpool.dead_letters import DeadLetterSink, PoolAwareSink
from asyncpool.dead_letters.store import BATCH, DeadLetterStore, DeadLetterWatch
from asyncpool.testing import ManualHandler, cancel_at, run, settle
from tests.helpers import assert_conserved, cancel_soon, echo, fuzzed, sleeper, virtual

ROOT = Path(__file__).resolve().parent.parent

Store: TypeAlias = DeadLetters[Any] | DeadLetterFile[Any]
MakeStore: TypeAlias = Callable[[], Store]


@pytest.fixture(params=["memory", "file"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    numbers = count()
    if request.param == "memory":
        return DeadLetters
    return lambda: DeadLetterFile(tmp_path / f"letters{next(numbers)}.jsonl")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "letters.jsonl"


def letter(job: Any = 1, **options: Any) -> DeadLetter[Any]:
    fields = {"error_type": "ValueError", "error": "no", "attempts": 1, "first_at": 1.5, "last_at": 2.25, "pool": "p"}
    return DeadLetter(job=job, **(fields | options))


def jobs(store: Any) -> list[Any]:
    return [letter.job for letter in store]


def fill(store: Any, jobs: Any) -> Any:
    for job in jobs:
        store.record(letter(job))
    return store


def read(path: Path) -> DeadLetterFile[Any]:
    """The file as tomorrow's process sees it."""
    return DeadLetterFile(path)


class FakePool:
    """Accepts jobs while there is room, and then makes submitters wait."""

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self.accepted: list[Any] = []
        self.waiting_submitters = 0
        self.closed = False
        self.news = asyncio.Event()

    async def submit(self, job: Any) -> None:
        self.waiting_submitters += 1
        try:
            while len(self.accepted) >= self.room and not self.closed:
                await self.news.wait()
        finally:
            self.waiting_submitters -= 1
        if self.closed:
            raise PoolClosed("the pool is closed")
        self.accepted.append(job)

    def open(self, room: float = math.inf) -> None:
        self.room = room
        self._tell()

    def close(self) -> None:
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


async def fails(job: Any) -> None:
    raise ValueError(f"no {job}")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# -- Letters -----------------------------------------------------------------------------------------------------------


class OwnError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("x"), "ValueError"),
        (json.JSONDecodeError("x", "", 0), "json.decoder.JSONDecodeError"),
        (OwnError("x"), f"{__name__}.OwnError"),
        (SystemExit(3), "SystemExit"),
    ],
)
def test_a_letter_names_the_type_of_its_error(error: BaseException, name: str) -> None:
    assert DeadLetter.of(Failed("job", error), first_at=1, last_at=2).error_type == name


def test_a_letter_has_the_job_the_text_the_attempts_and_the_times() -> None:
    made = DeadLetter.of(Failed("job", ValueError("no")), pool="mail", first_at=1, last_at=2)
    assert made == DeadLetter(
        job="job", error_type="ValueError", error="no", attempts=0, first_at=1, last_at=2, pool="mail"
    )


def test_the_text_of_an_error_is_bounded() -> None:
    texts = [DeadLetter.of(Failed(1, ValueError("x" * n)), first_at=1, last_at=2).error for n in (4000, 4001, 10**6)]
    assert texts == ["x" * 4000, "x" * 3999 + "…", "x" * 3999 + "…"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
def test_an_error_that_cannot_be_printed_says_so(error: type[BaseException]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise error

    text = DeadLetter.of(Failed(1, Mute()), first_at=1, last_at=2).error
    assert text.startswith("<str() of this ")
    assert "Mute raised " in text
    assert error.__name__ in text


def test_the_text_of_an_error_is_a_plain_str() -> None:
    class Rich(str):
        secret: Any

    class Odd(Exception):
        def __str__(self) -> str:
            return Rich("no")

    assert type(DeadLetter.of(Failed(1, Odd()), first_at=1, last_at=2).error) is str


def test_letters_hold_neither_error_nor_frames() -> None:
    class Big:
        pass

    seen: list[weakref.ref[Any]] = []

    async def handler(job: int) -> None:
        big = Big()
        error = OwnError("no")
        seen.extend([weakref.ref(big), weakref.ref(error)])
        raise error

    async def main() -> DeadLetters[int]:
        letters: DeadLetters[int] = DeadLetters()
        async with WorkerPool(handler, workers=1, dead_letters=letters) as pool:
            await pool.submit(1)
        return letters

    letters = run(main)
    gc.collect()
    assert len(letters) == 1
    assert [ref() for ref in seen] == [None, None]


# -- In a pool ---------------------------------------------------------------------------------------------------------


@virtual
async def test_every_failure_is_recorded_once_however_else_it_is_delivered(make_store: MakeStore) -> None:
    store = make_store()
    async with WorkerPool(fails, workers=2, dead_letters=store, name="mail") as pool:
        await pool.submit(1)
        assert isinstance(await (await pool.submit(2)).outcome(), Failed)
        with pytest.raises(ValueError, match="no 3"):
            await pool.run(3)
        with pytest.raises(ValueError, match="no 4"):
            await pool.map([4])
        await pool.outcomes([5])
    assert sorted(jobs(store)) == [1, 2, 3, 4, 5]
    assert {(letter.pool, letter.attempts, letter.error_type) for letter in store} == {("mail", 1, "ValueError")}


@virtual
async def test_a_retried_job_leaves_one_letter_with_all_its_attempts_and_both_times(make_store: MakeStore) -> None:
    store = make_store()
    retry = Retry(attempts=3, backoff=10, max_backoff=10, jitter=False)
    async with WorkerPool(fails, workers=2, dead_letters=store, retry=retry) as pool:
        await pool.submit(1)
    [kept] = store
    assert kept.attempts == 3
    assert kept.last_at - kept.first_at == pytest.approx(20)


@virtual
async def test_what_is_cancelled_or_handed_back_leaves_no_letter(make_store: MakeStore) -> None:
    store = make_store()
    async with WorkerPool(sleeper, workers=1, dead_letters=store) as pool:
        handles = [await pool.submit(9) for _ in range(3)]
        await settle()
        handles[0].cancel()
        handles[1].cancel()
        await pool.close(drain_timeout=0)
    assert jobs(store) == []


@virtual
async def test_a_store_is_shared_by_pools_and_used_by_one_after_the_other(make_store: MakeStore) -> None:
    store = make_store()
    for _ in range(2):
        async with (
            WorkerPool(fails, workers=1, dead_letters=store, name="a") as first,
            WorkerPool(fails, workers=1, dead_letters=store, name="b") as second,
        ):
            await first.submit(1)
            await second.submit(2)
    assert sorted((letter.pool, letter.job) for letter in store) == [("a", 1), ("a", 1), ("b", 2), ("b", 2)]


def test_both_stores_are_sinks_that_want_to_know_their_pools(make_store: MakeStore) -> None:
    assert isinstance(make_store(), DeadLetterSink)
    assert isinstance(make_store(), PoolAwareSink)


@virtual
async def test_any_object_with_a_record_is_a_sink() -> None:
    class Mine:
        def __init__(self) -> None:
            self.jobs: list[Any] = []

        def record(self, letter: DeadLetter[Any], /) -> None:
            self.jobs.append(letter.job)

    mine = Mine()
    assert not isinstance(mine, PoolAwareSink)
    async with WorkerPool(fails, workers=1, dead_letters=mine) as pool:
        await pool.submit(1)
    assert mine.jobs == [1]


# -- In memory ---------------------------------------------------------------------------------------------------------


def test_a_full_store_drops_its_oldest_and_never_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    letters = fill(DeadLetters(max_size=3), range(13))
    assert jobs(letters) == [10, 11, 12]
    assert (len(letters), letters.dropped) == (3, 10)
    told = [record for record in caplog.records if "its oldest is dropped" in record.message]
    assert [record.args[1] for record in told if isinstance(record.args, tuple)] == [1, 2, 4, 8]
    assert {record.levelno for record in told} == {logging.ERROR}


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (True, TypeError), (1.5, TypeError), (None, TypeError)])
def test_max_size_is_a_count(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_size must be"):
        DeadLetters(max_size=size)


def test_letters_are_found_by_a_predicate() -> None:
    letters = fill(DeadLetters(), range(5))
    assert [letter.job for letter in letters.find(lambda letter: letter.job % 2)] == [1, 3]


def test_a_letter_is_removed_by_identity() -> None:
    letters = fill(DeadLetters(), [1, 1])
    first, second = letters
    assert first == second
    assert letters.remove(second)
    assert not letters.remove(second)
    assert not letters.remove(letter(1))
    assert [kept is first for kept in letters] == [True]


def test_jobs_need_be_neither_hashable_nor_comparable() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise TypeError

    letters = fill(DeadLetters(), [{}, Odd(), Odd()])
    assert letters.remove(list(letters)[1])
    assert len(letters) == 2


def test_a_store_may_change_while_it_is_iterated() -> None:
    letters = fill(DeadLetters(), range(3))
    for kept in letters:
        letters.remove(kept)
        letters.record(letter(kept.job + 10))
    assert jobs(letters) == [10, 11, 12]
    letters.clear()
    assert jobs(letters) == []
    assert repr(letters) == "<DeadLetters: 0 of at most 10000, 0 dropped>"


# -- Replay ------------------------------------------------------------------------------------------------------------


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


# -- Watch -------------------------------------------------------------------------------------------------------------


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
    assert len(store._watches) == 0


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


# -- The file ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=[]), max_size=20) | st.text("a\n\0\u2028\ud83d\ude00", max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=8,
)
letters_of_json = st.builds(
    DeadLetter,
    job=json_values,
    error_type=texts,
    error=texts,
    attempts=st.integers(0),
    first_at=st.floats(allow_nan=False),
    last_at=st.floats(allow_nan=False),
    pool=texts,
)


def as_json_tells(letter: DeadLetter[Any]) -> DeadLetter[Any]:
    """JSON joins the halves of a surrogate pair that stood side by side in a str."""
    names = ("job", "error_type", "error", "attempts", "first_at", "last_at", "pool")
    fields = {name: getattr(letter, name) for name in names}
    try:
        str(fields).encode()
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        fields = json.loads(json.dumps(fields))
    return DeadLetter(**fields)


@settings(deadline=None)
@given(st.lists(letters_of_json, max_size=4))
def test_letters_come_back_from_the_file_as_they_were(letters: list[DeadLetter[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "letters.jsonl")
        file = DeadLetterFile[Any](path)
        for one in letters:
            file.record(one)
        again = read(path)
        assert list(again) == [as_json_tells(one) for one in letters]
        assert len(again) == len(letters)
        assert again.skipped == 0
        if letters:
            lines = path.read_bytes().decode().split("\n")
            assert [len(json.loads(line)) for line in lines[:-1]] == [8] * len(letters)


def test_a_letter_is_one_line_of_readable_json(path: Path) -> None:
    DeadLetterFile[Any](path).record(letter({"to": "Jürgen"}, error="a\nb\0\u2028"))
    [line] = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert "Jürgen" in line
    fields = json.loads(line)
    assert fields.pop("id")
    assert fields == {
        "job": {"to": "Jürgen"},
        "error_type": "ValueError",
        "error": "a\nb\0\u2028",
        "attempts": 1,
        "first_at": 1.5,
        "last_at": 2.25,
        "pool": "p",
    }


def test_jobs_go_through_encode_and_decode(path: Path) -> None:
    file = DeadLetterFile[complex](path, encode=lambda job: [job.real, job.imag], decode=lambda pair: complex(*pair))
    file.record(letter(1 + 2j))
    assert jobs(file) == [1 + 2j]
    assert jobs(read(path)) == [[1, 2]]


def test_a_missing_file_has_no_letters_and_is_made_by_the_first(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    assert jobs(file) == []
    assert len(file) == 0
    assert run(lambda: file.replay(FakePool())) == 0
    file.compact()
    assert not path.exists()
    fill(file, [1])
    assert path.exists()
    assert jobs(file) == [1]


@pytest.mark.parametrize(
    ("where", "error"),
    [(".", IsADirectoryError), ("missing/letters", FileNotFoundError), ("file/letters", NotADirectoryError)],
)
def test_a_path_that_cannot_be_a_file_is_refused_at_once(tmp_path: Path, where: str, error: type[OSError]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error, match=str(tmp_path)):
        DeadLetterFile(tmp_path / where)


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_encode_and_decode_must_be_callable(path: Path, name: str) -> None:
    options: dict[str, Any] = {name: 3}
    with pytest.raises(TypeError, match=f"{name} must be callable, got 3"):
        DeadLetterFile(path, **options)


def test_the_path_stays_the_same_when_the_program_changes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = DeadLetterFile[Any]("letters.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fill(file, [1])
    assert jobs(read(tmp_path / "letters.jsonl")) == [1]
    assert repr(file) == f"<DeadLetterFile {str(tmp_path / 'letters.jsonl')!r}>"


def test_no_descriptor_is_kept_so_the_file_may_be_renamed(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), [1])
    path.rename(path.with_suffix(".old"))
    fill(file, [2])
    assert jobs(read(path)) == [2]
    assert jobs(read(path.with_suffix(".old"))) == [1]


def test_a_record_that_the_disk_refuses_raises_and_is_shown_all_the_same(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    watch = file.watch()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        fill(file, [1])
    assert run(lambda: anext(watch)).job == 1


@virtual
async def test_a_disk_that_refuses_costs_no_outcome(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = DeadLetterFile[Any](path)
    path.mkdir()
    async with WorkerPool(fails, workers=1, dead_letters=file) as pool:
        [outcome] = await pool.outcomes([1])
    assert isinstance(outcome, Failed)
    assert "IsADirectoryError" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_raises() -> None:
    with pytest.raises(OSError, match="No space left"):
        fill(DeadLetterFile[Any]("/dev/full"), [1])


def test_iterating_gives_what_was_there_when_it_began_and_is_lazy(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(3))
    seen = []
    for kept in file:
        seen.append(kept.job)
        fill(file, [kept.job + 10])
    assert seen == [0, 1, 2]
    assert len(file) == 6


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_disk_that_fills_up_in_the_middle_of_a_line_raises_and_costs_one_letter(path: Path) -> None:
    code = """
import resource, signal, sys
from asyncpool import DeadLetter, DeadLetterFile

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = DeadLetterFile(sys.argv[1])
one = dict(error_type="E", error="no", attempts=1, first_at=0, last_at=0)
file.record(DeadLetter(job=1, **one))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 50, most))
for job in (2, 3):
    try:
        file.record(DeadLetter(job=job, **one))
    except OSError as error:
        print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
file.record(DeadLetter(job=4, **one))
"""
    assert python(code, path).splitlines() == ["File too large"] * 2
    file = read(path)
    assert jobs(file) == [1, 4]
    assert file.skipped == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@virtual
async def test_a_replay_that_ended_early_has_closed_the_file(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(3 * BATCH))
    pool = FakePool()
    pool.close()
    with pytest.raises(PoolClosed) as caught:
        await file.replay(pool)
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert str(path) not in opened
    assert caught.tb is not None  # which keeps the frames, and would keep the file open


# -- Lines that cannot be read, and jobs that cannot be written


def test_a_line_torn_at_any_byte_costs_one_letter(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(DeadLetterFile[Any](path), [1])
    start = path.stat().st_size
    fill(DeadLetterFile[Any](path), ["two"])
    whole = path.read_bytes()
    for length in range(start, len(whole) + 1):
        path.write_bytes(whole[:length])
        file = DeadLetterFile[Any](path)
        is_whole = length >= len(whole) - 1  # the newline alone is not missed
        is_torn = not is_whole and length > start
        assert jobs(file) == ([1, "two"] if is_whole else [1])
        fill(file, [3])
        assert jobs(file) == ([1, "two", 3] if is_whole else [1, 3])
        assert file.skipped == is_torn
        assert path.read_bytes().startswith(whole[:length])
    assert f"{path}:2 cannot be read" in caplog.text


ABOUT = b'"error_type": "", "error": "", "attempts": 1, "first_at": 0, "last_at": 0, "pool": ""'


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe",
        b"\0\0\0\0{}",
        b"{\0}\0",
        b"{}",
        b"[]",
        b"3",
        b'{"job": 1}',
        b'{"id": "no-dot", "job": 1}',
        b'{"id": "a.x", "job": 1, %b}' % ABOUT,
        b'{"id": "a.1", %b}' % ABOUT,
        b'{"id": "a.1", "job": 1, %b}' % ABOUT.replace(b"1", b"[]"),
        b"[" * 100_000,
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_a_line_that_cannot_be_read_is_skipped_told_once_and_never_deleted(
    path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = fill(DeadLetterFile[Any](path), [1])
    with path.open("ab") as raw:
        raw.write(line + b"\n\n  \n")
    fill(file, [2])
    for _ in range(3):
        assert jobs(file) == [1, 2]
        assert list(file.unreplayable()) == []
    assert file.skipped == 1
    [told] = [record for record in caplog.records if "cannot be read" in record.message]
    assert f"{path}:2 " in told.message
    assert told.levelno == logging.ERROR
    assert run(lambda: file.replay(FakePool())) == 2
    file.compact()
    assert path.read_bytes() == line + b"\n"
    fill(file, [3])
    assert jobs(file) == [3]
    assert file.skipped == 1


def test_each_unreadable_line_is_counted_once_also_after_compacting(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    for n in range(3):
        fill(file, [n])
        with path.open("ab") as raw:
            raw.write(b"garbage\n")
    assert len(file) == 3
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 0))
    file.compact()
    assert jobs(file) == [1, 2]
    assert file.skipped == 3
    with path.open("ab") as raw:
        raw.write(b"garbage\n")
    assert jobs(file) == [1, 2]
    assert file.skipped == 4


def test_a_file_that_was_replaced_by_another_is_read_afresh(path: Path) -> None:
    file = DeadLetterFile[Any](path)
    path.write_bytes(b"garbage\n" * 3)
    assert jobs(file) == []
    path.rename(path.with_suffix(".old"))
    path.write_bytes(b"garbage\n" * 5)
    assert jobs(file) == []
    assert file.skipped == 8


def test_a_job_that_decode_refuses_is_a_line_that_cannot_be_read(path: Path) -> None:
    def decode(value: Any) -> Any:
        if value == 2:
            raise LookupError("no such order")
        return value

    file = fill(DeadLetterFile[Any](path, decode=decode), [1, 2, 3])
    pool = FakePool()
    assert jobs(file) == [1, 3]
    assert run(lambda: file.replay(pool)) == 2
    assert file.skipped == 1
    file.compact()
    assert jobs(read(path)) == [2]


def refuse(job: Any) -> Any:
    raise LookupError("cannot")


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("job", "options", "text"),
    [
        ({1, 2}, {}, "{1, 2}"),
        (b"bytes", {}, "b'bytes'"),
        (1, {"encode": refuse}, "1"),
        (Unprintable(), {}, "<repr() of this "),
        (10**5000, {}, "<repr() of this int raised ValueError>"),
    ],
    ids=["set", "bytes", "refused", "unprintable", "long"],
)
def test_a_job_that_cannot_be_written_is_kept_as_text(
    path: Path, job: Any, options: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = fill(DeadLetterFile[Any](path, **options), [job])
    DeadLetterFile[Any](path).record(letter("fine"))
    assert jobs(file) == ["fine"]
    assert len(file) == 1
    [kept] = read(path).unreplayable()
    assert kept.job.startswith(text)
    assert kept.error == "no"
    assert "cannot be replayed (number 1 of such)" in caplog.text
    assert file.skipped == 0


def test_jobs_that_cannot_be_written_are_not_logged_without_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(DeadLetterFile[Any](path), [{n} for n in range(10)])
    assert sum("cannot be replayed" in record.message for record in caplog.records) == 4


@virtual
async def test_replay_passes_over_a_job_kept_as_text_and_says_so(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = fill(DeadLetterFile[Any](path), [1, {2}, 3])
    pool = FakePool()
    assert await file.replay(pool) == 2
    assert pool.accepted == [1, 3]
    assert f"1 in {path} hold no job that could be replayed" in caplog.text
    file.compact()
    assert [kept.job for kept in file.unreplayable()] == ["{2}"]


# -- Leaving the file


def test_what_was_replayed_is_gone_tomorrow(path: Path) -> None:
    fill(DeadLetterFile[Any](path), range(5))
    pool = FakePool()
    assert run(lambda: read(path).replay(pool, where=lambda letter: letter.job != 2)) == 4
    assert jobs(read(path)) == [2]
    assert run(lambda: read(path).replay(pool)) == 1
    assert pool.accepted == [0, 1, 3, 4, 2]
    assert jobs(read(path)) == []


def test_marks_mean_the_same_letters_when_lines_were_deleted_by_hand_or_files_joined(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(4))
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 2))
    lines = path.read_bytes().splitlines(keepends=True)
    other = path.with_suffix(".other")
    fill(DeadLetterFile[Any](other), [10])
    path.write_bytes(b"".join(lines[1:]) + other.read_bytes() + lines[0])
    assert jobs(read(path)) == [1, 3, 10, 0]


def test_a_job_that_speaks_of_being_replayed_is_a_job(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), [{"replayed": "a.1"}, '"replayed"'])
    assert jobs(file) == [{"replayed": "a.1"}, '"replayed"']


def test_compacting_keeps_what_is_there_and_the_permissions(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(5))
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job % 2 == 0))
    path.chmod(0o640)
    before = path.stat().st_size
    file.compact()
    assert path.stat().st_size < before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == [path.name]
    assert jobs(file) == jobs(read(path)) == [1, 3]
    file.compact()
    assert jobs(file) == [1, 3]
    fill(file, [9])
    assert run(lambda: file.replay(FakePool())) == 3


def test_compacting_a_link_keeps_the_link(path: Path) -> None:
    fill(DeadLetterFile[Any](path), [1, 2])
    link = path.with_suffix(".link")
    link.symlink_to(path)
    file = DeadLetterFile[Any](link)
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 1))
    file.compact()
    assert link.is_symlink()
    assert jobs(read(path)) == [2]


@pytest.mark.parametrize("at", ["replace", "fsync"])
def test_a_compacting_that_fails_leaves_the_file_as_it_was(
    path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fill(DeadLetterFile[Any](path), [1, 2])
    run(lambda: file.replay(FakePool(), where=lambda letter: letter.job == 1))
    before = path.read_bytes()

    def refuse(*args: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, at, refuse)
    with pytest.raises(OSError, match="no"):
        file.compact()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    assert jobs(file) == [2]


@virtual
async def test_letters_recorded_while_a_thread_compacts_are_kept(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(2000))
    compacting = asyncio.create_task(asyncio.to_thread(file.compact))
    recorded = 2000
    while not compacting.done():
        await asyncio.to_thread(fill, file, [recorded])
        recorded += 1
    await compacting
    assert jobs(file) == list(range(recorded))


@virtual
async def test_a_replay_goes_on_while_the_file_is_compacted(path: Path) -> None:
    file = fill(DeadLetterFile[Any](path), range(2 * BATCH))
    pool = FakePool(room=5)
    task = asyncio.create_task(file.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    await asyncio.to_thread(file.compact)
    assert jobs(file) == list(range(5, 2 * BATCH))
    pool.open()
    assert await task == 2 * BATCH
    assert pool.accepted == list(range(2 * BATCH))
    assert jobs(read(path)) == []


@virtual
async def test_a_mark_that_cannot_be_written_raises_and_its_job_is_not_submitted_again_by_this_program(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fill(DeadLetterFile[Any](path), [1, 2])
    pool = FakePool()

    def refuse(line: bytes) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(file, "_append", refuse)
        with pytest.raises(OSError, match="no"):
            await file.replay(pool)
    assert jobs(file) == [1, 2]
    assert await file.replay(pool) == 1
    assert pool.accepted == [1, 2]


@virtual
async def test_replay_reads_a_little_at_a_time_and_in_a_thread(path: Path) -> None:
    decoded: list[int] = []

    def decode(value: str) -> int:
        assert threading.current_thread() is not threading.main_thread()
        decoded.append(int(value[:10]))
        return decoded[-1]

    file = fill(DeadLetterFile[int](path, encode=lambda job: f"{job:010}" + "x" * 300_000, decode=decode), range(20))
    pool = FakePool(room=1)
    task = asyncio.create_task(file.replay(pool))
    await until(lambda: pool.waiting_submitters == 1)
    assert len(decoded) <= 4
    pool.open()
    assert await task == 20
    assert file.skipped == 0


@virtual
async def test_a_replay_cancelled_while_its_thread_reads_ends_and_submits_nothing(path: Path) -> None:
    is_reading, may_go_on = threading.Event(), threading.Event()

    def decode(value: Any) -> Any:
        is_reading.set()
        may_go_on.wait(10)
        return value

    fill(DeadLetterFile[Any](path), range(3))
    pool = FakePool()
    task = asyncio.create_task(DeadLetterFile[Any](path, decode=decode).replay(pool))
    while not is_reading.is_set():
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    may_go_on.set()
    assert await read(path).replay(pool) == 3
    assert pool.accepted == [0, 1, 2]


@pytest.mark.slow
def test_memory_is_flat_when_many_letters_are_replayed(path: Path) -> None:
    code = """
import asyncio, resource, sys
from asyncpool import DeadLetterFile, DeadLetter

class Pool:
    async def submit(self, job): pass

async def main():
    file = DeadLetterFile(sys.argv[1])
    one = dict(error_type="E", error="x" * 200, attempts=1, first_at=0.0, last_at=0.0)
    for n in range(2000):
        file.record(DeadLetter(job=n, **one))
    await file.replay(Pool())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(50_000):
        file.record(DeadLetter(job=n, **one))
    assert await file.replay(Pool()) == 50_000
    assert len(file) == 0
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""
    grown = int(python(code, path))
    assert grown < 3000  # kilobytes; the file has 20,000


# -- Real processes


def python(code: str, *arguments: Any) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout


RECORDING = """
import sys
from asyncpool import DeadLetter, DeadLetterFile

file = DeadLetterFile(sys.argv[1])
name, size, most = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for n in range(most):
    job = [name, n, "x" * size]
    file.record(DeadLetter(job=job, error_type="E", error="no", attempts=1, first_at=0, last_at=0))
    print(n, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_kill_9_loses_no_letter_that_was_recorded(path: Path, size: int) -> None:
    for life in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", RECORDING, str(path), f"life{life}", str(size), "1000000"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as said:
            for _ in range(5):
                recorded = int(said.readline())
            process.send_signal(signal.SIGKILL)
            process.wait()
            recorded = max([recorded, *(int(line) for line in said if line.endswith("\n"))])
        file = read(path)
        numbers = [n for name, n, _ in jobs(file) if name == f"life{life}"]
        assert numbers[: recorded + 1] == list(range(recorded + 1))
        assert len(numbers) <= recorded + 2
        assert file.skipped <= life + 1
        path.write_bytes(path.read_bytes()[:-3])  # as if it had been torn, in case it was not
        assert len(list(read(path))) >= len(list(file)) - 1


def test_two_processes_may_record_at_once(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RECORDING, str(path), name, "20", "1000"], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        for name in ("a", "b")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    file = read(path)
    assert sorted((name, n) for name, n, _ in jobs(file)) == [(name, n) for name in ("a", "b") for n in range(1000)]
    assert file.skipped == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_letters_recorded_before_and_after_a_fork_are_letters_of_their_own(path: Path) -> None:
    code = """
import os, sys
from asyncpool import DeadLetter, DeadLetterFile

file = DeadLetterFile(sys.argv[1])
child = os.fork()
file.record(DeadLetter(job=bool(child), error_type="E", error="no", attempts=1, first_at=0, last_at=0))
if child:
    os.waitpid(child, 0)
"""
    python(code, path)
    pool = FakePool()
    assert run(lambda: read(path).replay(pool, where=lambda letter: letter.job is True)) == 1
    assert jobs(read(path)) == [False]


def test_the_next_process_replays_what_failed_in_a_pool_of_the_last(path: Path) -> None:
    code = """
import asyncio, sys
from asyncpool import DeadLetterFile, WorkerPool

async def fails(job):
    raise OSError(job)

async def main():
    async with WorkerPool(fails, workers=3, dead_letters=DeadLetterFile(sys.argv[1])) as pool:
        await pool.outcomes(range(10))

asyncio.run(main())
"""
    python(code, path)

    async def main() -> list[int]:
        done = []

        async def handler(job: int) -> None:
            done.append(job)

        async with WorkerPool(handler, workers=2, dead_letters=(file := DeadLetterFile[int](path))) as pool:
            assert await file.replay(pool) == 10
        return done

    assert sorted(run(main)) == list(range(10))
    assert jobs(read(path)) == []


def test_both_stores_are_one_kind() -> None:
    assert issubclass(DeadLetters, DeadLetterStore)
    assert issubclass(DeadLetterFile, DeadLetterStore)
