"""What is kept of the jobs that failed: what a letter has, and what goes from a pool to its store."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from typing import Any

import pytest

from asyncpool import DeadLetter, DeadLetterFile, DeadLetters, Failed, Retry, WorkerPool
from asyncpool.dead_letters import DeadLetterSink, PoolAwareSink
from asyncpool.dead_letters.store import DeadLetterStore
from asyncpool.testing import run, settle
from tests.dead_letters.tools import MakeStore, fails, jobs
from tests.helpers import sleeper, virtual

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


def test_both_stores_are_one_kind() -> None:
    assert issubclass(DeadLetters, DeadLetterStore)
    assert issubclass(DeadLetterFile, DeadLetterStore)
