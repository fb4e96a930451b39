"""Journaled streams: what they run, deliver, record and pass over."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import anyio
import pytest

from asyncpool import (
    Cancelled,
    Failed,
    Journal,
    JournalError,
    PoolClosed,
    PoolNotStarted,
    Retry,
    StreamClosed,
    Succeeded,
    WorkerPool,
)
from asyncpool.journal.entries import Entry, Key
from asyncpool.journal.file import Found, JournalFile
from tests.engines.memory import InMemory, Portable
from tests.helpers import fuzzed, virtual
from tests.journal.tools import FAST_FOLDER, Runs, counts, echo, echo_pool, full_disk, make_journal, recorded_in


def fails_on(*jobs: Any) -> Callable[[Any], Any]:
    def act(job: Any) -> Any:
        if job in jobs:
            raise ValueError(f"no {job}")
        return job

    return act


async def each(jobs: Any) -> AsyncIterator[Any]:
    for job in jobs:
        yield job


async def each_slowly(jobs: Any) -> AsyncIterator[Any]:
    for job in jobs:
        await asyncio.sleep(0.001)
        yield job


SOURCES: list[Callable[[Any], Any]] = [list, each, each_slowly]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("source", SOURCES)
@virtual
async def test_the_next_run_passes_over_what_is_done(tmp_path: Path, source: Any, ordered: bool) -> None:
    runs = Runs()
    async with WorkerPool(runs, workers=3) as pool:
        first = make_journal(tmp_path)
        assert len(await first.outcomes(pool, source(range(30)), ordered=ordered)) == 30
        second = make_journal(tmp_path)
        outcomes = await second.outcomes(pool, source(range(40)), ordered=ordered)
    assert sorted(outcome.job for outcome in outcomes) == list(range(30, 40))
    assert (first.skipped, second.skipped, second.repeated) == (0, 30, 0)
    assert Counter(runs.jobs) == Counter(range(40))


@pytest.mark.parametrize("source", SOURCES)
@virtual
async def test_ordered_outcomes_are_in_the_order_of_the_jobs(tmp_path: Path, source: Any) -> None:
    async def uneven(job: int) -> int:
        await asyncio.sleep(0.01 * (7 * job % 5))
        return job

    async with WorkerPool(uneven, workers=4) as pool:
        outcomes = await make_journal(tmp_path).outcomes(pool, source(range(50)), ordered=True)
    assert [outcome.job for outcome in outcomes] == list(range(50))


@virtual
async def test_an_outcome_is_delivered_once_it_is_recorded(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with echo_pool() as pool:
        async for outcome in journal.outcomes(pool, range(30)):
            assert outcome.job in await asyncio.to_thread(recorded_in, tmp_path / "batch.db")


@virtual
async def test_a_job_is_recorded_when_it_ends_and_not_when_it_is_read(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with echo_pool(workers=5, queue_size=20) as pool, journal.outcomes(pool, range(100)) as stream:
        front = aiter(stream)
        await anext(front)
        await asyncio.sleep(1.0)
        assert (await counts(journal)).done == 26  # the window, and the one that was read


def test_a_disk_that_stands_still_stops_the_intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = threading.Event()
    record = JournalFile.record

    def stuck(self: JournalFile, entries: Sequence[Entry]) -> None:
        moves.wait(20.0)
        record(self, entries)

    async def main() -> None:
        runs = Runs()
        monkeypatch.setattr(JournalFile, "record", stuck)
        async with WorkerPool(runs, workers=4) as pool:
            reading = asyncio.ensure_future(_read(make_journal(tmp_path).outcomes(pool, range(100))))
            while pool.stats.succeeded < 4 or pool.stats.running:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert 4 <= len(runs.jobs) <= 8  # of which as many could run again
            moves.set()
            assert len(await reading) == 100

    asyncio.run(main())


async def _read(stream: Any) -> list[Any]:
    return [entry async for entry in stream]


@virtual
async def test_many_that_are_done_are_looked_up_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with echo_pool() as pool:
        await make_journal(tmp_path).outcomes(pool, range(10_000))
        for source in (range(10_000), each(range(10_000))):
            lookups = _spy_on_lookups(monkeypatch)
            journal = make_journal(tmp_path)
            assert await journal.outcomes(pool, source) == []
            assert journal.skipped == 10_000
            assert len(lookups) < 60


def _spy_on_lookups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    lookups: list[int] = []
    find = JournalFile.find

    def noted(self: JournalFile, keys: Sequence[Key], *, values: bool) -> Found:
        lookups.append(len(keys))
        return find(self, keys, values=values)

    monkeypatch.setattr(JournalFile, "find", noted)
    return lookups


@virtual
async def test_jobs_that_are_new_are_looked_up_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups = _spy_on_lookups(monkeypatch)
    async with WorkerPool(Runs(), workers=10) as pool:
        await make_journal(tmp_path).outcomes(pool, range(200))
    assert lookups[0] == max(lookups) == 20


@virtual
async def test_a_job_of_a_slow_source_does_not_wait_for_the_next(tmp_path: Path) -> None:
    journal, go_on = make_journal(tmp_path), asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        await go_on.wait()
        yield 2

    async with echo_pool() as pool, journal.outcomes(pool, source()) as stream:
        front = aiter(stream)
        assert (await anext(front)).job == 1
        go_on.set()
        assert (await anext(front)).job == 2


@virtual
async def test_a_source_runs_in_one_task(tmp_path: Path) -> None:
    tasks = set()

    async def source() -> AsyncIterator[int]:
        with anyio.CancelScope():  # which must be left in the task that entered it
            for n in range(20):
                tasks.add(asyncio.current_task())
                if n % 3:
                    await asyncio.sleep(0.001)
                yield n

    async with echo_pool() as pool:
        assert len(await make_journal(tmp_path).outcomes(pool, source())) == 20
    assert len(tasks) == 1


# -- Keys ------------------------------------------------------------------------------------------------------------


@fuzzed
async def _a_key_that_repeats_runs_once(tmp_path: Path, source: Any, act: Any) -> None:
    runs, journal = Runs(act), make_journal(Path(mkdtemp(dir=tmp_path)))
    jobs = [n % 7 for n in range(60)]
    async with WorkerPool(runs, workers=4) as pool:
        outcomes = await journal.outcomes(pool, source(jobs))
    assert Counter(runs.jobs) == Counter(range(7))
    assert sorted(outcome.job for outcome in outcomes) == list(range(7))
    assert journal.skipped + journal.repeated == 53


@pytest.mark.parametrize("source", SOURCES)
def test_a_key_that_repeats_runs_once(tmp_path: Path, source: Any) -> None:
    _a_key_that_repeats_runs_once(tmp_path, source, fails_on())


def test_a_key_that_repeats_runs_once_also_if_its_job_fails(tmp_path: Path) -> None:
    _a_key_that_repeats_runs_once(tmp_path, list, fails_on(*range(7)))


@virtual
async def test_two_streams_of_one_journal_share_the_jobs(tmp_path: Path) -> None:
    runs, journal = Runs(), make_journal(tmp_path)
    async with WorkerPool(runs, workers=4) as pool:
        first, second = await asyncio.gather(
            _read(journal.outcomes(pool, range(40))), _read(journal.outcomes(pool, range(40)))
        )
    assert Counter(runs.jobs) == Counter(range(40))
    assert len(first) + len(second) == 40


@virtual
async def test_a_job_without_a_valid_key_fails_alone(tmp_path: Path) -> None:
    jobs: list[Any] = [1, "a", b"b", 1.0, None, True, 2**63, "\ud800", (1,), -(2**63), "b", "nul\0byte"]
    journal = make_journal(tmp_path)
    async with echo_pool() as pool:
        outcomes = await journal.outcomes(pool, jobs, ordered=True)
    assert [outcome.job for outcome in outcomes] == jobs
    good = [outcome.job for outcome in outcomes if isinstance(outcome, Succeeded)]
    assert good == [1, "a", b"b", -(2**63), "b", "nul\0byte"]
    assert await asyncio.to_thread(recorded_in, tmp_path / "batch.db") == set(good)
    texts = [str(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)]
    assert texts[0] == "the key of a job must be a str, an int or bytes, got 1.0; use str(key)"
    assert texts[3] == f"the key of a job must be an int of at most 64 bits, got {2**63}; use str(key)"
    assert texts[4] == "the key of a job must be text that UTF-8 can encode, got '\\ud800'"
    assert (await counts(journal)).failed == 0


@virtual
async def test_a_key_function_that_raises_fails_its_job(tmp_path: Path) -> None:
    journal = make_journal(tmp_path, key=lambda job: {1: "one", 3: "three"}[job])
    async with echo_pool() as pool:
        outcomes = await journal.outcomes(pool, [1, 2, 3], ordered=True)
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
    assert isinstance(outcomes[1], Failed)
    assert isinstance(outcomes[1].error, KeyError)


@virtual
async def test_a_priority_that_raises_is_a_failure_that_is_recorded(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with WorkerPool(echo, workers=2, priority=fails_on(3)) as pool:
        outcomes = await journal.outcomes(pool, range(6), ordered=True)
    assert [type(outcome) for outcome in outcomes] == [Succeeded] * 3 + [Failed] + [Succeeded] * 2
    assert [job.key for job in await asyncio.to_thread(journal.failed)] == [3]


# -- Failures --------------------------------------------------------------------------------------------------------


@virtual
async def test_failed_jobs_are_kept_and_tried_again(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with WorkerPool(Runs(fails_on(3, 5)), workers=2, retry=Retry(attempts=2, backoff=0.0)) as pool:
        await journal.outcomes(pool, range(8))
    failed = await asyncio.to_thread(journal.failed)
    assert {(job.key, job.job, job.error_type, job.error, job.attempts) for job in failed} == {
        (3, "3", "ValueError", "no 3", 2),
        (5, "5", "ValueError", "no 5", 2),
    }
    assert await counts(journal) == (6, 2)
    runs = Runs(fails_on(5))
    async with WorkerPool(runs, workers=2) as pool:
        await journal.outcomes(pool, range(8))
    assert sorted(runs.jobs) == [3, 5]
    [job] = await asyncio.to_thread(journal.failed)
    assert (job.key, job.attempts) == (5, 3)  # of all runs
    assert job.first_at <= job.last_at
    assert await counts(journal) == (7, 1)


@virtual
async def test_failed_jobs_can_be_left_out(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with WorkerPool(Runs(fails_on(3)), workers=2) as pool:
        await journal.outcomes(pool, range(5))
    async with echo_pool() as pool:
        assert [o.job for o in await journal.outcomes(pool, range(6), skip_failed=True)] == [5]
        assert [o.job for o in await journal.outcomes(pool, range(6))] == [3]
        assert await journal.outcomes(pool, range(6), skip_failed=True) == []


@virtual
async def test_texts_that_cannot_be_stored_as_they_are_spoil_nothing(tmp_path: Path) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            return "\ud800 is no character"

    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def act(job: str) -> str:
        if job == "good":
            return job
        raise Odd if job.isascii() else Hostile

    journal = make_journal(tmp_path, key=len)
    async with WorkerPool(Runs(act), workers=3) as pool:
        await journal.outcomes(pool, ["bad", "good", "\udfff"])
    failed = {job.key: job for job in await asyncio.to_thread(journal.failed)}
    assert failed[3].error == "\\ud800 is no character"
    assert failed[1].error == f"<str() of this {__name__}.{Hostile.__qualname__} raised RuntimeError>"
    assert await counts(journal) == (1, 2)


@virtual
async def test_a_job_that_is_cancelled_is_not_recorded(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with WorkerPool(asyncio.sleep, workers=2) as pool, journal.outcomes(pool, [1, 500, 600]) as stream:
        assert (await anext(aiter(stream))).job == 1
    assert await counts(journal) == (1, 0)
    async with echo_pool() as again:
        assert {outcome.job for outcome in await journal.outcomes(again, [1, 500, 600])} == {500, 600}


# -- Values of earlier runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@virtual
async def test_map_gives_all_values_in_order(tmp_path: Path, source: Any) -> None:
    runs = Runs(lambda job: {"value": job})
    journal = make_journal(tmp_path, values=True)
    async with WorkerPool(runs, workers=3) as pool:
        await journal.map(pool, source(range(0, 40, 2)))
        assert await journal.map(pool, source(range(40))) == [{"value": n} for n in range(40)]
    assert Counter(runs.jobs) == Counter(range(40))


@fuzzed
async def _map_with_keys_that_repeat(tmp_path: Path) -> None:
    runs, journal = Runs(), make_journal(Path(mkdtemp(dir=tmp_path)), values=True)
    jobs = [1, 2, 1, 1, 3, 2, 4, 4, 1]
    async with WorkerPool(runs, workers=3) as pool:
        assert await journal.map(pool, jobs) == jobs
    assert Counter(runs.jobs) == Counter([1, 2, 3, 4])


def test_map_gives_a_key_that_repeats_the_value_of_the_first(tmp_path: Path) -> None:
    _map_with_keys_that_repeat(tmp_path)


@virtual
async def test_map_raises_the_first_failure_and_records_it(tmp_path: Path) -> None:
    journal, values = make_journal(tmp_path, values=True), []
    async with WorkerPool(Runs(fails_on(4)), workers=3) as pool:
        with pytest.raises(ValueError, match="no 4"):
            async for value in journal.map(pool, range(100)):
                values.append(value)
    assert values == [0, 1, 2, 3]
    assert [job.key for job in await asyncio.to_thread(journal.failed)] == [4]
    async with echo_pool() as pool:
        assert await journal.map(pool, range(100)) == list(range(100))


@virtual
async def test_earlier_outcomes_have_no_attempts(tmp_path: Path) -> None:
    journal = make_journal(tmp_path, values=True)
    async with echo_pool() as pool:
        await journal.outcomes(pool, range(5))
        outcomes = await journal.outcomes(pool, range(8), earlier=True, ordered=True)
    assert [(outcome.job, outcome.unwrap(), outcome.attempts) for outcome in outcomes] == [
        (n, n, int(n >= 5)) for n in range(8)
    ]


@virtual
async def test_a_slow_reader_of_earlier_values_slows_the_source(tmp_path: Path) -> None:
    journal, pulled = make_journal(tmp_path, values=True), []

    def source() -> Iterator[int]:
        for n in range(5000):
            pulled.append(n)
            yield n

    async with echo_pool(workers=2, queue_size=10) as pool:
        await journal.outcomes(pool, range(5000))
        async with journal.map(pool, source()) as stream:
            front = aiter(stream)
            assert [await anext(front) for _ in range(20)] == list(range(20))
            await asyncio.sleep(1.0)
            assert len(pulled) <= 20 + 2 * 256
            assert [await anext(front) for _ in range(2000)] == list(range(20, 2020))


@virtual
async def test_a_value_that_cannot_be_kept_is_logged_and_its_job_runs_again_where_values_are_wanted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, runs = make_journal(tmp_path, values=True), Runs(lambda job: (lambda: job) if job == 2 else job)
    async with WorkerPool(runs, workers=3) as pool:
        await journal.outcomes(pool, range(4))
        assert "a value cannot be pickled" in caplog.text
        assert await counts(journal) == (4, 0)
        assert await journal.outcomes(pool, range(4)) == []
        assert len(await journal.map(pool, range(4))) == 4
    assert Counter(runs.jobs) == Counter([0, 1, 2, 2, 3])


class Changed:
    """A value whose class cannot be unpickled any more."""

    def __reduce__(self) -> Any:
        return _raise, ("the class has changed",)


def _raise(text: str) -> None:
    raise RuntimeError(text)


@virtual
async def test_a_value_that_cannot_be_read_is_logged_and_its_job_runs_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = make_journal(tmp_path, values=True)
    async with WorkerPool(Runs(lambda job: Changed()), workers=3) as pool:
        await journal.outcomes(pool, range(2))
    async with echo_pool() as pool:
        assert await journal.map(pool, range(3)) == [0, 1, 2]
    assert "a recorded value cannot be unpickled" in caplog.text


@virtual
async def test_values_are_wanted_by_whoever_made_the_journal(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with echo_pool() as pool:
        with pytest.raises(TypeError, match=r"map\(\) needs the values .*: use Journal\(..., values=True\)"):
            journal.map(pool, [])
        with pytest.raises(TypeError, match="earlier=True needs the values"):
            journal.outcomes(pool, [], earlier=True)


# -- Streams like all others -----------------------------------------------------------------------------------------


@virtual
async def test_leaving_the_loop_closes_the_journal(tmp_path: Path) -> None:
    async with echo_pool() as pool:
        for _ in range(3):
            async for _outcome in make_journal(tmp_path).outcomes(pool, range(1000)):
                break
            async with make_journal(tmp_path).outcomes(pool, range(1000)) as stream:
                await anext(aiter(stream))
        journal = make_journal(tmp_path)  # which the others must have closed
        await journal.outcomes(pool, range(1000))
        assert await counts(journal) == (1000, 0)


@virtual
async def test_what_succeeds_although_its_stream_was_cancelled_is_recorded(tmp_path: Path) -> None:
    async def stubborn(job: int) -> int:
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
        return job

    journal = make_journal(tmp_path)
    async with WorkerPool(stubborn, workers=3) as pool:
        stream = journal.outcomes(pool, range(3))
        reading = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.sleep(0.5)
        stream.cancel()
        with pytest.raises(StreamClosed):
            await reading
        await stream.aclose()
        assert (await counts(journal)).done == 3


@virtual
async def test_a_pool_that_closes_ends_the_stream_after_what_it_has_done(tmp_path: Path) -> None:
    journal, outcomes = make_journal(tmp_path), []
    async with WorkerPool(Runs(), workers=3) as pool:
        stream = journal.outcomes(pool, each(range(1000)))
        with pytest.raises(PoolClosed):
            async for outcome in stream:
                outcomes.append(outcome)
                if len(outcomes) == 20:
                    pool.drain(drain_timeout=0.0)
    done = {outcome.job for outcome in outcomes if isinstance(outcome, Succeeded)}
    cancelled = {outcome.job for outcome in outcomes if isinstance(outcome, Cancelled)}
    assert await asyncio.to_thread(recorded_in, tmp_path / "batch.db") == done
    assert pool.report is not None
    assert {unfinished.job for unfinished in pool.report.unfinished} == cancelled  # with what was being looked up


@virtual
async def test_an_error_of_the_source_comes_after_what_it_gave_before(tmp_path: Path) -> None:
    def source() -> Iterator[int]:
        yield from range(7)
        raise LookupError("no more")

    async def async_source() -> AsyncIterator[int]:
        for n in source():
            yield n

    for name, make in (("a.db", source), ("b.db", async_source)):
        outcomes = []
        async with WorkerPool(Runs(), workers=3) as pool:
            with pytest.raises(LookupError, match="no more"):
                async for outcome in make_journal(tmp_path, name).outcomes(pool, make()):
                    outcomes.append(outcome.job)
        assert sorted(outcomes) == list(range(7))


@virtual
async def test_a_source_is_closed_when_its_stream_is_left(tmp_path: Path) -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append("plain")

    async def async_source() -> AsyncIterator[int]:
        try:
            for n in range(1000):
                await asyncio.sleep(0.001)
                yield n
        finally:
            closed.append("async")

    async with echo_pool() as pool:
        for make in (source, async_source):
            async with make_journal(tmp_path).outcomes(pool, make()) as stream:
                await anext(aiter(stream))
    assert closed == ["plain", "async"]


@virtual
async def test_a_stream_can_feed_another(tmp_path: Path) -> None:
    first, second = make_journal(tmp_path, "1.db", values=True), make_journal(tmp_path, "2.db")
    async with echo_pool() as a, echo_pool() as b:
        assert len(await second.outcomes(b, first.map(a, range(100)))) == 100
        assert await second.outcomes(b, first.map(a, range(100))) == []


@virtual
async def test_a_pool_that_is_not_open_creates_no_file(tmp_path: Path) -> None:
    pool = echo_pool()
    journal = make_journal(tmp_path)
    with pytest.raises(PoolNotStarted):
        await journal.outcomes(pool, [1])
    async with pool:
        pass
    with pytest.raises(PoolClosed):
        await journal.outcomes(pool, [1])
    assert list(tmp_path.iterdir()) == []


@virtual
async def test_a_stream_can_be_read_in_another_order_than_it_was_made_and_never(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with echo_pool() as pool:
        with pytest.warns(RuntimeWarning, match="was never read"):
            journal.outcomes(pool, range(5))
        stream = journal.outcomes(pool, range(5))
        stream.cancel()
        with pytest.raises(StreamClosed):
            await stream
        await stream.aclose()
    assert list(tmp_path.iterdir()) == []


@virtual
async def test_jobs_that_are_delayed_do_not_hold_up_the_others(tmp_path: Path) -> None:
    attempts: Counter[int] = Counter()

    async def flaky(job: int) -> int:
        attempts[job] += 1
        if attempts[job] < 3:
            raise ConnectionError
        return job

    journal = make_journal(tmp_path)
    async with WorkerPool(flaky, workers=2, retry=Retry(attempts=3, backoff=5.0, jitter=False)) as pool:
        began = asyncio.get_running_loop().time()
        assert len(await journal.outcomes(pool, range(50))) == 50
        assert asyncio.get_running_loop().time() - began < 20.0
    assert await counts(journal) == (50, 0)


@virtual
async def test_a_stream_that_is_read_by_a_job_of_its_pool_is_no_deadlock(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)

    async def job(what: Any) -> Any:
        return len(await journal.outcomes(pool, range(20))) if what == "read" else what

    async with WorkerPool(job, workers=2) as pool:
        assert await pool.run("read") == 20


# -- A disk that is full ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["outcomes", "ordered outcomes", "map"])
@virtual
async def test_a_full_disk_ends_the_stream_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.CRITICAL, logger="asyncpool")
    journal = make_journal(tmp_path, key=lambda n: f"{n:0100d}", values=True)
    runs, got = Runs(), []
    async with WorkerPool(runs, workers=10) as pool:
        with full_disk(monkeypatch, 30):
            stream: Any = (
                journal.map(pool, range(10_000))
                if kind == "map"
                else journal.outcomes(pool, range(10_000), ordered=kind.startswith("ordered"))
            )
            with pytest.raises(JournalError, match=r"cannot be written: the disk is full; \d+ finished job") as caught:
                async for entry in stream:
                    if kind == "map" or isinstance(entry, Succeeded):
                        got.append(entry if kind == "map" else entry.job)
        assert await pool.run(-1) == -1  # the pool lives on
        runs.jobs.remove(-1)
        unrecorded = caught.value.unrecorded
        assert 0 < len(unrecorded) <= 20
        done = {int(key) for key in await asyncio.to_thread(recorded_in, tmp_path / "batch.db")}
        assert set(got) <= done
        assert kind == "map" or set(got) == done
        assert set(runs.jobs) >= done | set(unrecorded)
        assert not done & set(unrecorded)
        assert len(await journal.outcomes(pool, range(300))) == 300 - len(done)  # there is room again


@pytest.mark.parametrize("source", SOURCES)
@virtual
async def test_a_file_that_cannot_be_read_any_more_ends_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    find, calls, outcomes = JournalFile.find, [], []

    def broken(self: JournalFile, keys: Sequence[Key], *, values: bool) -> Found:
        calls.append(len(keys))
        if len(calls) > 3:
            raise JournalError("the disk is gone")
        return find(self, keys, values=values)

    monkeypatch.setattr(JournalFile, "find", broken)
    runs = Runs()
    async with WorkerPool(runs, workers=3) as pool:
        with pytest.raises(JournalError, match="the disk is gone"):
            async for outcome in make_journal(tmp_path).outcomes(pool, source(range(1000))):
                outcomes.append(outcome)
    done = {outcome.job for outcome in outcomes if isinstance(outcome, Succeeded)}
    assert done == set(runs.jobs) == await asyncio.to_thread(recorded_in, tmp_path / "batch.db")
    assert {outcome.job for outcome in outcomes} == set(range(len(outcomes)))  # each that was pulled has an outcome
    assert len(outcomes) == len(done) + calls[3]


@virtual
async def test_an_unexpected_error_of_the_thread_is_an_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: JournalFile, entries: Sequence[Entry]) -> None:
        raise MemoryError

    monkeypatch.setattr(JournalFile, "record", broken)
    async with echo_pool() as pool:
        with pytest.raises(JournalError, match=r"cannot be written: MemoryError\(\); \d+ finished job") as caught:
            await make_journal(tmp_path).outcomes(pool, range(100))
    assert len(caught.value.unrecorded) >= 1
    assert "MemoryError" in caplog.text


def test_a_journal_error_can_be_pickled() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(JournalError("full", (1, 2))))
    assert error.unrecorded == (1, 2)
    assert str(error) == "full; 2 finished jobs could not be recorded and will run again"
    assert str(JournalError("full")) == "full"


# -- Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Journal(5, key=len), "path must be a str or a path, got 5"),  # type: ignore[arg-type]
        (lambda: Journal("a", key="id"), "key must be callable, got 'id'"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=echo), "key is called and not awaited"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len, version=1), "version must be a str, got 1"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len, values=1), "values must be a bool, got 1"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len, durable=None), "durable must be a bool, got None"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len).outcomes(5, []), "pool must be a WorkerPool, got 5"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len).outcomes(echo_pool(), 5), "jobs must be an iterable or an async iterable"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len).outcomes(echo_pool(), [], earlier=1), "earlier must be a bool"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len).pending(5), "jobs must be an iterable or an async iterable, got 5"),  # type: ignore[arg-type]
        (lambda: Journal("a", key=len).recorded(5), "handler must be callable, got 5"),  # type: ignore[type-var]
    ],
)
def test_arguments_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("ordered", [False, True])
@fuzzed
async def test_a_wait_for_the_journal_is_no_part_of_a_deadlock(ordered: bool) -> None:
    """All workers run jobs that read streams of their pool, and one of them waits only for its record."""
    journal = make_journal(Path(mkdtemp(dir=FAST_FOLDER)))
    others = []

    async def handler(job: str) -> Any:
        match job:
            case "reads the journal's stream":
                return await journal.outcomes(pool, ["brings another"], ordered=ordered)
            case "brings another":
                others.append(pool.submit_nowait("reads a stream"))
            case "reads a stream":
                return await pool.map(["plain"])
        return job

    pool: WorkerPool[str, Any]
    async with WorkerPool(handler, workers=2) as pool:
        assert [outcome.unwrap() for outcome in await pool.run("reads the journal's stream")] == ["brings another"]
        assert await others[0] == ["plain"]


@virtual
async def test_with_an_engine_what_is_done_is_recorded_and_skipped() -> None:
    path = Path(mkdtemp(dir=FAST_FOLDER))
    handler = Runs()
    for jobs in (range(20), range(30)):
        engine = InMemory(2)
        async with WorkerPool(Portable(handler), workers=4, engine=engine) as pool:
            stream = make_journal(path).outcomes(pool, jobs)
            killing = asyncio.get_running_loop().call_later(0.003, engine.kill_one)
            done = await stream
            killing.cancel()
            assert all(isinstance(outcome, Succeeded) for outcome in done)
        await engine.ended()
    assert set(handler.jobs) == set(range(30))
    assert len(handler.jobs) <= 30 + 2 * 4  # what was in a process that died ran again
    assert recorded_in(path / "batch.db") == set(range(30))
