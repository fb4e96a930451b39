"""`recorded` and `pending`: the journal for programs that are not one stream; and `ReadyItems`."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from asyncpool import JournalError, Permanent, Retry, WorkerPool, current_job
from asyncpool.journal.file import JournalFile
from asyncpool.journal.ready_items import ReadyItems
from asyncpool.testing import settle
from tests.helpers import virtual
from tests.journal.tools import Runs, counts, echo, echo_pool, full_disk, make_journal, recorded_in

# -- recorded --------------------------------------------------------------------------------------------------------


@virtual
async def test_a_recorded_job_is_on_the_disk_before_it_ends(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    async with WorkerPool(journal.recorded(echo), workers=5) as pool:
        for job in range(10):
            assert await pool.run(job) == job
            assert job in await asyncio.to_thread(recorded_in, tmp_path / "batch.db")
    assert len(await _again(tmp_path, range(12))) == 2  # the journal was closed with the pool


async def _again(folder: Path, jobs: Any) -> list[Any]:
    async with echo_pool() as pool:
        return await make_journal(folder).outcomes(pool, jobs)


@virtual
async def test_recorded_jobs_and_a_stream_go_together(tmp_path: Path) -> None:
    def act(job: int) -> int:
        if job == 7:
            raise ValueError("no 7")
        return job

    journal, runs = make_journal(tmp_path, values=True), Runs(act)
    async with WorkerPool(journal.recorded(runs), workers=3) as pool:
        assert len(await journal.outcomes(pool, [n % 20 for n in range(50)])) == 20
    assert Counter(runs.jobs) == Counter(range(20))
    assert await counts(journal) == (19, 1)
    async with echo_pool() as pool:
        assert await journal.map(pool, range(20)) == list(range(20))


@virtual
async def test_a_recorded_handler_can_have_a_resource(tmp_path: Path) -> None:
    @asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        yield "connection"

    async def send(job: int, connection: str) -> str:
        """Send it."""
        return f"{job} by {connection} as job {current_job().id}"

    journal = make_journal(tmp_path)
    recorded = journal.recorded(send)
    assert recorded.__doc__ == "Send it."
    async with WorkerPool(recorded, workers=2, resource=resource) as pool:
        assert await pool.run(5) == "5 by connection as job 1"


@virtual
async def test_a_job_that_fails_is_not_recorded_by_its_handler(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    attempts = Counter[int]()

    async def flaky(job: int) -> int:
        attempts[job] += 1
        if attempts[job] == 1:
            raise ConnectionError
        return job

    async with WorkerPool(journal.recorded(flaky), workers=1, retry=Retry(attempts=2, backoff=0.0)) as pool:
        assert await pool.run(1) == 1
    assert await counts(journal) == (1, 0)


@pytest.mark.parametrize("how", ["timeout", "cancel", "scope"])
@virtual
async def test_a_cancellation_during_the_commit_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    record, journal = JournalFile.record, make_journal(tmp_path)
    loop = asyncio.get_running_loop()
    calls: list[int] = []

    def slow(self: JournalFile, entries: Any) -> None:
        # Cancelled while the thread has the entry.
        asyncio.run_coroutine_threadsafe(_cancel(), loop).result()
        record(self, entries)

    async def _cancel() -> None:
        if how == "cancel":
            handle.cancel()
        await asyncio.sleep(3.0)

    async def call(job: int) -> int:
        calls.append(job)
        return job

    handler = journal.recorded(call)

    async def scoped(job: int) -> int:
        with anyio.move_on_after(1.0):
            return await handler(job)
        return -1

    monkeypatch.setattr(JournalFile, "record", slow)
    retry = Retry(attempts=3, backoff=0.0)
    async with WorkerPool(
        scoped if how == "scope" else handler, workers=1, timeout=1.0 if how == "timeout" else None, retry=retry
    ) as pool:
        handle = await pool.submit(1)
        assert await handle == 1
    assert calls == [1]
    assert await counts(journal) == (1, 0)


@virtual
async def test_a_job_that_cannot_be_recorded_fails_and_is_not_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, runs = make_journal(tmp_path, key=lambda job: f"{job:01000d}"), Runs()
    with full_disk(monkeypatch, 20):
        async with WorkerPool(journal.recorded(runs), workers=2, retry=Retry(attempts=5, backoff=0.0)) as pool:
            outcomes = await pool.outcomes(range(200), ordered=True)
    done = [outcome.job for outcome in outcomes if type(outcome).__name__ == "Succeeded"]
    errors = [outcome.error for outcome in outcomes if type(outcome).__name__ == "Failed"]  # type: ignore[union-attr]
    assert len(done) + len(errors) == 200
    assert all(isinstance(error, JournalError) for error in errors)
    assert Counter(runs.jobs).most_common(1)[0][1] == 1
    assert len(runs.jobs) <= len(done) + 2  # the others did not even begin: their effect could not be recorded
    assert len(await asyncio.to_thread(recorded_in, tmp_path / "batch.db")) == len(done)


@virtual
async def test_a_recorded_handler_can_be_called_without_a_pool(tmp_path: Path) -> None:
    handler = make_journal(tmp_path).recorded(echo)
    assert [await handler(n) for n in range(3)] == [0, 1, 2]
    assert len(await _again(tmp_path, range(5))) == 2
    with pytest.raises(Permanent) as caught:
        await make_journal(tmp_path / "missing").recorded(echo)(1)
    assert isinstance(caught.value.__cause__, JournalError)


@virtual
async def test_a_job_without_a_key_does_not_begin(tmp_path: Path) -> None:
    runs = Runs()
    async with WorkerPool(make_journal(tmp_path).recorded(runs), workers=1) as pool:
        with pytest.raises(TypeError, match="the key of a job must be"):
            await pool.run(1.5)
    assert runs.jobs == []


def test_a_recorded_handler_does_not_travel(tmp_path: Path) -> None:
    handler = make_journal(tmp_path).recorded(echo)
    with pytest.raises(TypeError, match=r"use journal.outcomes\(pool, jobs\) with the plain handler"):
        pickle.dumps(handler)
    assert "echo" in repr(handler)


# -- pending ---------------------------------------------------------------------------------------------------------


async def each(jobs: Any) -> AsyncIterator[Any]:
    for job in jobs:
        if job % 5 == 0:
            await asyncio.sleep(0.001)
        yield job


@pytest.mark.parametrize("source", [list, iter, each])
@virtual
async def test_pending_gives_what_is_not_done_each_key_once(tmp_path: Path, source: Any) -> None:
    journal = make_journal(tmp_path)
    async with echo_pool() as pool:
        await journal.outcomes(pool, range(0, 1000, 2))
    jobs = [n // 2 for n in range(2000)]
    again = make_journal(tmp_path)
    assert [job async for job in again.pending(source(jobs))] == list(range(1, 1000, 2))
    assert (again.skipped + again.repeated) == 1500
    assert (await _again(tmp_path, range(1000))) != []  # it records nothing, and the file is closed


@virtual
async def test_pending_feeds_recorded_jobs(tmp_path: Path) -> None:
    journal, runs = make_journal(tmp_path), Runs()
    async with WorkerPool(journal.recorded(runs), workers=3) as pool:
        assert await pool.map(journal.pending([1, 2, 1, 3, 2])) == [1, 2, 3]
        assert await pool.map(journal.pending([1, 2, 3, 4, 4])) == [4]
    assert runs.jobs == [1, 2, 3, 4]


@virtual
async def test_pending_feeds_a_pipeline_whose_end_is_recorded(tmp_path: Path) -> None:
    downloads = Runs()
    for wanted in (30, 50):
        journal = make_journal(tmp_path)
        async with WorkerPool(downloads, workers=3) as first, echo_pool() as second:
            pages = first.map(journal.pending(range(wanted)))
            await journal.outcomes(second, pages)
    assert Counter(downloads.jobs) == Counter(range(50))


@virtual
async def test_pending_gives_a_job_without_a_key(tmp_path: Path) -> None:
    assert [job async for job in make_journal(tmp_path).pending([1, 1.5, 2])] == [1, 1.5, 2]


@virtual
async def test_pending_gives_what_came_before_an_error_of_its_source(tmp_path: Path) -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise LookupError

    async def async_source() -> AsyncIterator[int]:
        for job in source():
            yield job

    for jobs in (source(), async_source()):
        got = []
        with pytest.raises(LookupError):
            async for job in make_journal(tmp_path).pending(jobs):
                got.append(job)
        assert got == [0, 1, 2]


@virtual
async def test_pending_closes_its_source_and_the_file(tmp_path: Path) -> None:
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
            await asyncio.sleep(0.001)
            closed.append("async")

    for jobs in (source(), async_source()):
        stream = make_journal(tmp_path).pending(jobs)
        assert await anext(stream) == 0
        await stream.aclose()
    assert closed == ["plain", "async"]
    assert len(await _again(tmp_path, range(5))) == 5


@virtual
async def test_jobs_that_pending_has_pulled_and_not_given_are_given_to_others(tmp_path: Path) -> None:
    journal = make_journal(tmp_path)
    keeps_open = journal.pending([100])
    await anext(keeps_open)
    first, second = journal.pending(range(10)), journal.pending(range(10))
    assert [await anext(first), await anext(first)] == [0, 1]
    await first.aclose()
    assert [job async for job in second] == list(range(2, 10))
    assert journal.repeated == 2
    await keeps_open.aclose()


@virtual
async def test_pending_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "batch.db").write_text("text " * 1000)
    with pytest.raises(JournalError, match="is not a journal"):
        await anext(make_journal(tmp_path).pending([1]))


# -- ReadyItems ------------------------------------------------------------------------------------------------------


def ready_items(source: Any) -> ReadyItems:
    return ReadyItems(aiter(source), asyncio.get_running_loop().time)


@virtual
async def test_items_that_need_no_wait_come_together() -> None:
    ready = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        yield 2
        await ready.wait()
        yield 3
        await asyncio.sleep(0)
        yield 4

    items, groups = ready_items(source()), []
    while not items.is_over:
        group: list[int] = []
        await items.take(10, group)
        groups.append(group)
        ready.set()
    assert groups == [[1, 2], [3], [4]]


@virtual
async def test_no_more_items_are_taken_than_asked_for() -> None:
    async def source() -> AsyncIterator[int]:
        for n in range(10):
            yield n

    items, group = ready_items(source()), deque[int]()
    await items.take(4, group)
    assert list(group) == [0, 1, 2, 3]


class _Counting:
    """An async iterator that is not a generator, whose `__anext__` is a plain function."""

    def __init__(self) -> None:
        self.given = 0

    def __aiter__(self) -> _Counting:
        return self

    def __anext__(self) -> asyncio.Future[int]:
        self.given += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.given > 3:
            future.set_exception(StopAsyncIteration)
        else:
            asyncio.get_running_loop().call_soon(future.set_result, self.given)
        return future


@virtual
async def test_an_iterator_need_not_be_a_generator() -> None:
    class Few(_Counting):
        async def __anext__(self) -> int:  # type: ignore[override]
            if self.given == 3:
                raise StopAsyncIteration
            return await super().__anext__()

    items, got = ready_items(Few()), list[int]()
    while not items.is_over:
        group: list[int] = []
        await items.take(10, group)
        got += group
    assert got == [1, 2, 3]


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("waits", ["future", "turn"])
@virtual
async def test_an_item_that_is_waited_for_is_cancelled_at_the_end(stubborn: bool, waits: str) -> None:
    log: list[str] = []

    async def source() -> AsyncIterator[int]:
        yield 1
        try:
            await (asyncio.Event().wait() if waits == "future" else asyncio.sleep(0))
        except asyncio.CancelledError:
            log.append("cancelled")
            if not stubborn:
                raise
        yield 2

    iterator = source()
    items, group = ReadyItems(iterator, asyncio.get_running_loop().time), list[int]()
    await items.take(10, group)
    await items.end(group)
    assert (group, log) == ([1, 2] if stubborn else [1], ["cancelled"])
    await iterator.aclose()
    await items.end(group)


@virtual
async def test_cancelling_the_wait_for_an_item_cancels_the_source() -> None:
    log: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            log.append("ended")

    items = ready_items(source())
    waiting = asyncio.ensure_future(items.take(10, []))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert log == ["ended"]
    assert items.is_over
