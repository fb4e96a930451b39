"""Every public awaitable, cancelled at its 1st, 2nd, 3rd ... suspension until it completes.

Each place is cancelled in three ways: when the call suspends there; late, when what it waits for has come but the call
has not gone on with it; and by a cancel scope of anyio, which cancels again at each turn. After each, nothing is lost
(an input was never accepted, or has one outcome), nothing is left behind, and the pool works and closes as before.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import tempfile
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest

import asyncpool
from asyncpool import (
    AutoScale,
    Breaker,
    ConcurrencyLimit,
    JobCancelled,
    Journal,
    PoolClosed,
    QueueFull,
    RateLimit,
    Resource,
    Retry,
    StreamClosed,
    WorkerPool,
    batches,
    offload,
)
from asyncpool.testing import CancelSweepResult, cancel_at, run, settle
from tests.journal.tools import FAST_FOLDER
from tests.laws.witness import Item, Letters, Witness, ended, spawn

Main = Callable[[], Awaitable[Any]]
Cancelling = Callable[[Main], Awaitable[CancelSweepResult[Any]]]
Case = Callable[[Witness, Cancelling], Awaitable[None]]
CASES: dict[str, Case] = {}
WAYS = ("early", "late", "scope")
MOST_STEPS = 100


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@types.coroutine
def _counted(coro: Coroutine[Any, Any, Any], step: int, hit: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Drive a coroutine, and call `hit` at its `step`-th suspension."""
    resume = partial(coro.send, None)
    for suspension in itertools.count(1):
        try:
            awaited = resume()
        except StopIteration as stop:
            return stop.value
        if suspension == step:
            hit()
        try:
            yield awaited
            resume = partial(coro.send, None)
        except BaseException as error:
            resume = partial(coro.throw, error)


async def _cancel_by_scope(step: int, main: Main) -> CancelSweepResult[Any]:
    """As `cancel_at`, but by a cancel scope around it."""
    value = None
    hits: list[int] = []

    async def call() -> Any:
        return await main()

    async def scoped() -> None:
        nonlocal value
        with anyio.CancelScope() as scope:

            def hit() -> None:
                hits.append(step)
                scope.cancel()

            value = await _counted(call(), step, hit)
            return
        cancelled.append(True)

    cancelled: list[bool] = []
    task = spawn(scoped())
    await asyncio.wait([task])
    task.result()
    return CancelSweepResult(completed=not hits, cancelled=bool(cancelled), value=value)


def _cancelling(way: str, step: int, results: list[CancelSweepResult[Any]]) -> Cancelling:
    async def cancelling(main: Main) -> CancelSweepResult[Any]:
        result = await (_cancel_by_scope(step, main) if way == "scope" else cancel_at(step, main, late=way == "late"))
        results.append(result)
        return result

    return cancelling


async def still_works(witness: Witness) -> None:
    """Check that the pool takes jobs and runs them, with all of its workers."""
    await settle()
    witness.check()
    assert await witness.pool.run(Item(10_000)) == 10_000
    witness.others += 1
    stats = witness.pool.stats
    assert stats.workers == witness.wanted, stats


async def close(witness: Witness) -> None:
    """Close the pool at once, and check the laws of its end."""
    await witness.pool.close(drain_timeout=0.0)
    await witness.check_end()


# -- Life ------------------------------------------------------------------------------------------------------------


class Resources:
    """Resources that take turns and time to enter and to leave."""

    def __init__(self) -> None:
        self.held = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        self.held += 1
        try:
            yield self.held
        finally:
            await asyncio.sleep(0.01)
            self.held -= 1


@case
async def start(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2)
    await cancelling(pool.start)
    await still_works(witness)
    await close(witness)


@case
async def start_with_a_resource(witness: Witness, cancelling: Cancelling) -> None:
    resources = Resources()
    pool = witness.make_pool(workers=2, resource=resources)
    result = await cancelling(pool.start)
    if result.cancelled:
        assert pool.report is not None  # it has closed the pool, and waited for that
        with pytest.raises(PoolClosed):
            await pool.submit(witness.item())
    else:
        assert await pool.run(Item(10_000)) == 10_000
        witness.others += 1
    await close(witness)
    assert resources.held == 0


@case
async def the_block_of_a_pool(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2, queue_size=1, resource=Resources())

    async def main() -> None:
        async with pool:
            for item in witness.items(4, "nap"):
                await witness.submit(item)

    await cancelling(main)
    assert pool.report is not None
    await witness.check_end()


@case
async def close_that_drains(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1)
    await pool.start()
    for item in witness.items(3, "nap"):
        await witness.submit(item)
    result = await cancelling(pool.close)
    assert pool.report is not None
    assert result.cancelled or result.value is pool.report
    await witness.check_end()


@case
async def close_that_cancels(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2, resource=Resources())
    await pool.start()
    for item in witness.items(4, "slow", "stubborn", "hang"):
        await witness.submit(item)
    await cancelling(partial(pool.close, drain_timeout=0.5))
    assert pool.report is not None
    assert not pool.report.abandoned
    await witness.check_end()


@case
async def close_with_a_stuck_job(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2)
    witness.may_abandon = True
    await pool.start()
    stuck = await witness.submit(witness.item("stuck"))
    await witness.submit(witness.item("nap"))
    await settle()
    await cancelling(partial(pool.close, drain_timeout=1.0, grace=1.0))
    assert pool.report is not None
    assert [entry.job for entry in pool.report.abandoned] == [stuck.job]
    await witness.check_end()
    witness.release.set()
    await settle()


@case
async def join(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1)
    await pool.start()
    for item in witness.items(3, "nap"):
        await witness.submit(item)
    result = await cancelling(pool.join)
    assert result.cancelled or (pool.stats.queued, pool.stats.running) == (0, 0)
    await still_works(witness)
    await close(witness)


# -- Intake ----------------------------------------------------------------------------------------------------------


@case
async def submit_to_a_free_pool(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1)
    await pool.start()
    await cancelling(partial(witness.submit, witness.item()))
    assert pool.stats.submitted == len(witness.handles)
    await still_works(witness)
    await close(witness)


@case
async def submit_in_line(witness: Witness, cancelling: Cancelling) -> None:
    """With some before and some behind, who all get their turn."""
    pool = witness.make_pool(workers=1, queue_size=1)
    await pool.start()
    before = [spawn(witness.submit(witness.item("nap"))) for _ in range(3)]
    me = spawn(cancelling(partial(witness.submit, witness.item("nap"))))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    behind = [spawn(witness.submit(witness.item("nap"))) for _ in range(2)]
    await ended(me)
    await ended(*before, *behind)
    assert pool.stats.submitted == len(witness.handles) == 6 - me.result().cancelled
    await still_works(witness)
    await close(witness)


@case
async def submit_as_the_last_hope_of_an_idle_worker(witness: Witness, cancelling: Cancelling) -> None:
    """If a submitter is cancelled after it got a place, the next one must get it, or the pool hangs."""
    pool = witness.make_pool(workers=1, queue_size=0)
    await pool.start()
    first = await witness.submit(witness.item("nap"))
    me = spawn(cancelling(partial(witness.submit, witness.item("ok"))))  # type: ignore[arg-type]
    await settle()
    behind = spawn(witness.submit(witness.item("ok")))
    await first.outcome()
    await ended(me, behind)
    assert behind.exception() is None
    await still_works(witness)
    await close(witness)


async def _run(witness: Witness, cancelling: Cancelling, kind: str, full: bool, if_full: Any = "wait") -> None:
    pool = witness.make_pool(workers=1, queue_size=1)
    await pool.start()
    if full:
        for item in witness.items(2, "nap"):
            await witness.submit(item)
    item = witness.item(kind)
    witness.perhaps += 1

    async def main() -> Any:
        with suppress(QueueFull, JobCancelled):
            return await pool.run(item, if_full=if_full)

    result = await cancelling(main)
    assert result.cancelled or result.value in (item.n, None)
    if result.cancelled:
        assert item.n not in witness.active_items  # it has waited for the job's end
    await still_works(witness)
    await close(witness)


@case
async def run_on_a_free_pool(witness: Witness, cancelling: Cancelling) -> None:
    await _run(witness, cancelling, "nap", full=False)


@case
async def run_of_a_slow_job_waits_for_its_cleanup(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1, queue_size=1)
    await pool.start()
    witness.perhaps += 1
    await cancelling(partial(pool.run, witness.item("slow")))
    assert witness.active == 0
    assert pool.stats.running == 0
    await still_works(witness)
    await close(witness)


@case
async def run_on_a_full_pool(witness: Witness, cancelling: Cancelling) -> None:
    await _run(witness, cancelling, "nap", full=True)


@case
async def run_that_does_not_wait(witness: Witness, cancelling: Cancelling) -> None:
    await _run(witness, cancelling, "nap", full=False, if_full="raise")
    witness_full = Witness()
    await _run(witness_full, cancelling, "nap", full=True, if_full="raise")


@case
async def the_value_of_a_handle(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1)
    await pool.start()
    handle = await witness.submit(witness.item("nap"))

    async def main() -> Any:
        return await handle

    await cancelling(main)
    assert await handle == handle.job.n  # a waiter's cancellation is not the job's
    await still_works(witness)
    await close(witness)


@case
async def the_outcome_of_a_handle(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1)
    await pool.start()
    await witness.submit(witness.item("nap"))
    handle = await witness.submit(witness.item("turn_fail"))
    await cancelling(handle.outcome)
    outcome = await handle.outcome()
    assert isinstance(outcome, asyncpool.Failed)
    await still_works(witness)
    await close(witness)


# -- Streams ---------------------------------------------------------------------------------------------------------


def _stream(witness: Witness, how: str, items: list[Item]) -> Any:
    """A stream by its description: "map ordered sync"."""
    kind, order, source = how.split()
    make = witness.pool.map if kind == "map" else witness.pool.outcomes
    items_source = witness.source(items) if source == "sync" else witness.async_source(items, waits=0.0005)
    return make(items_source, ordered=order == "ordered")


STREAMS = [
    " ".join(words) for words in itertools.product(("map", "outcomes"), ("ordered", "unordered"), ("sync", "async"))
]


def stream_cases(
    function: Callable[[Witness, Cancelling, str], Awaitable[None]], ways: Sequence[str] = tuple(STREAMS)
) -> None:
    for how in ways:
        CASES[f"{function.__name__}: {how}"] = partial(_with_description, function, how)


async def _with_description(
    function: Callable[[Witness, Cancelling, str], Awaitable[None]], how: str, witness: Witness, cancelling: Cancelling
) -> None:
    await function(witness, cancelling, how)


def _numbers(read: list[Any]) -> list[int]:
    return [entry if isinstance(entry, int) else entry.job.n for entry in read]


@stream_cases
async def next_of_a_stream(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    items = witness.items(7, "ok", "turn", "nap")
    stream = aiter(_stream(witness, how, items))
    read: list[Any] = []

    async def main() -> None:
        async for entry in stream:
            read.append(entry)

    if (await cancelling(main)).cancelled:
        await main()  # whatever the cancelled one did not get
    assert sorted(_numbers(read)) == [item.n for item in items]
    if " ordered" in how:
        assert _numbers(read) == [item.n for item in items]
    await still_works(witness)
    await close(witness)


@stream_cases
async def a_stream_awaited_for_its_list(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    items = witness.items(5, "ok", "turn", "nap")

    async def main() -> Any:
        return await _stream(witness, how, items)

    result = await cancelling(main)
    if not result.cancelled:
        assert sorted(_numbers(result.value or [])) == [item.n for item in items]
    await settle()
    await pool.join()
    await still_works(witness)
    await close(witness)


@stream_cases
async def a_stream_in_a_block(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    items = witness.items(9, "ok", "turn", "nap", "slow")
    stream = _stream(witness, how, items)

    async def main() -> None:
        async with stream:
            count = 0
            async for _ in stream:
                count += 1
                if count == 3:
                    break

    result = await cancelling(main)
    if not result.cancelled:
        assert (pool.stats.running, pool.stats.queued) == (0, 0)
    else:
        await stream.aclose()  # its own was cancelled: what it asked for goes on
    assert (pool.stats.running, pool.stats.queued) == (0, 0)
    assert witness.sources_open == 0
    with pytest.raises(StreamClosed):
        aiter(stream)
    await still_works(witness)
    await close(witness)


@stream_cases
async def aclose_of_a_stream(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    stream = _stream(witness, how, [witness.item("ok"), *witness.items(6, "slow")])
    front = aiter(stream)
    await anext(front)
    await settle()
    await cancelling(stream.aclose)
    await stream.aclose()
    assert (pool.stats.running, pool.stats.queued) == (0, 0)
    assert witness.sources_open == 0
    await still_works(witness)
    await close(witness)


@case
async def next_of_batches(witness: Witness, cancelling: Cancelling) -> None:
    """Of a stream, and of an async generator, which a cancelled step would end."""
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    items = [Item(n, "nap") for n in range(7)]
    for source, expected in (
        (pool.map(each_slowly(items)), [item.n for item in items]),
        (each_slowly(items), items),
    ):
        grouped: Any = batches(source, size=3, seconds=0.003)
        read: list[Any] = []
        while True:
            result = await cancelling(partial(_next_or_none, grouped))
            if result.cancelled:
                await asyncio.sleep(0.001)
                continue
            if result.value is None:
                break
            read += result.value
        assert read == expected
    witness.others += len(items)
    await still_works(witness)
    await close(witness)


async def _next_or_none(items: Any) -> Any:
    return await anext(items, None)


@case
async def aclose_of_batches(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    grouped: Any = batches(pool.map(witness.source([Item(n, "slow") for n in range(7)])), size=3, seconds=0.003)
    step = spawn(anext(grouped))
    await settle()
    await cancelling(grouped.aclose)
    await ended(step)
    await pool.join()
    await still_works(witness)
    await close(witness)


@case
async def a_pipeline(witness: Witness, cancelling: Cancelling) -> None:
    async def double(value: int) -> int:
        await asyncio.sleep(0)
        return 2 * value

    first = witness.make_pool(workers=2, queue_size=1)
    await first.start()
    items = witness.items(6, "ok", "turn", "nap")
    async with WorkerPool(double, workers=1, queue_size=1) as second:
        stream = aiter(second.map(first.map(witness.async_source(items))))
        values = []

        async def main() -> None:
            async for value in stream:
                values.append(value)

        if (await cancelling(main)).cancelled:
            await main()
        assert values == [2 * item.n for item in items]
    await still_works(witness)
    await close(witness)


# -- Journals --------------------------------------------------------------------------------------------------------


JOURNALED = ["map ordered sync", "outcomes unordered async"]


@contextmanager
def _journal() -> Generator[Journal[Item]]:
    with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
        yield Journal(f"{folder}/batch.db", key=lambda item: item.n, values=True, durable=False)


def _journaled(witness: Witness, journal: Journal[Item], how: str, items: list[Item]) -> Any:
    """A stream of a journal by its description."""
    kind, order, source = how.split()
    items_source = witness.source(items) if source == "sync" else witness.async_source(items, waits=0.0005)
    if kind == "map":
        return journal.map(witness.pool, items_source, ordered=order == "ordered")
    return journal.outcomes(witness.pool, items_source, ordered=order == "ordered")


async def _check_journal(journal: Journal[Item], delivered: list[Any]) -> None:
    """Check that what was delivered is recorded, and that the journal is free for the next run."""
    await settle()
    done = _done_in(journal)
    assert set(_numbers(delivered)) <= done
    async with WorkerPool(_number_of, workers=1) as pool:
        again = Journal[Item](journal.path, key=lambda item: item.n)
        left = await again.outcomes(pool, [Item(n) for n in range(10)])
    assert {outcome.job.n for outcome in left} == set(range(10)) - done


def _done_in(journal: Journal[Item]) -> set[int]:
    with closing(sqlite3.connect(journal.path)) as base:
        if not base.execute("select 1 from sqlite_master limit 1").fetchone():
            return set()  # it was never opened
        return {key for (key,) in base.execute("select key from done")}


async def _number_of(item: Item) -> int:
    return item.n


@partial(stream_cases, ways=JOURNALED)
async def next_of_a_journaled_stream(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    items = witness.items(5, "ok", "turn", "nap")
    with _journal() as journal:
        stream = aiter(_journaled(witness, journal, how, items))
        read: list[Any] = []

        async def main() -> None:
            async for entry in stream:
                read.append(entry)

        if (await cancelling(main)).cancelled:
            await main()
        assert sorted(_numbers(read)) == [item.n for item in items]
        if " ordered" in how:
            assert _numbers(read) == [item.n for item in items]
        await still_works(witness)
        await close(witness)
        await _check_journal(journal, read)


@partial(stream_cases, ways=JOURNALED)
async def a_journaled_stream_in_a_block(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    items = [witness.item("ok"), *witness.items(5, "slow", "nap")]
    read: list[Any] = []
    with _journal() as journal:
        stream = _journaled(witness, journal, how, items)

        async def main() -> None:
            async with stream:
                async for entry in stream:
                    read.append(entry)
                    break

        await cancelling(main)
        await stream.aclose()
        assert (pool.stats.running, pool.stats.queued) == (0, 0)
        assert witness.sources_open == 0
        await still_works(witness)
        await close(witness)
        await _check_journal(journal, read)


@case
async def a_recorded_job(witness: Witness, cancelling: Cancelling) -> None:
    with _journal() as journal:
        pool = witness.make_pool(workers=1, handler=journal.recorded(witness.handle))
        await pool.start()
        item = witness.item("nap")
        witness.perhaps += 1
        results: list[Any] = []

        async def main() -> None:
            with suppress(JobCancelled):
                results.append(await pool.run(item))

        await cancelling(main)
        assert item.n not in witness.active_items
        await still_works(witness)
        await close(witness)
        await settle()
        assert set(results) <= _done_in(journal) <= {item.n, 10_000}


@case
async def next_of_what_is_pending(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1)
    await pool.start()
    with _journal() as journal:
        got: list[Item] = []
        pending = journal.pending(each_slowly([Item(n) for n in range(5)]))

        async def main() -> None:
            async for item in pending:
                got.append(item)

        await cancelling(main)
        await pending.aclose()
        assert got == [Item(n) for n in range(len(got))]
        await still_works(witness)
        await close(witness)
        await _check_journal(journal, [])


async def each_slowly(items: list[Item]) -> AsyncIterator[Item]:
    for item in items:
        await asyncio.sleep(0.001)
        yield item


# -- Groups ----------------------------------------------------------------------------------------------------------


@case
async def submit_to_a_group(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=1, queue_size=0)
    await pool.start()
    group = pool.group(window=2)
    accepted: list[int] = []

    async def bring() -> None:
        for item in witness.items(4, "ok", "nap"):
            await group.submit(item)
            accepted.append(item.n)

    read: list[Any] = []

    async def reading() -> None:
        async for outcome in group:
            read.append(outcome)

    reader = spawn(reading())
    other = spawn(bring())
    await cancelling(bring)
    await ended(other)
    assert other.exception() is None
    group.close_intake()
    await ended(reader)
    assert reader.exception() is None
    assert sorted(_numbers(read)) == sorted(accepted)
    witness.others = len(accepted)
    await still_works(witness)
    await close(witness)


@case
async def next_of_a_group(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    group = pool.group()
    front = aiter(group)
    read: list[Any] = []

    async def bring() -> None:
        for item in witness.items(5, "ok", "turn", "nap"):
            await group.submit(item)
            witness.others += 1
        group.close_intake()

    async def main() -> None:
        async for outcome in front:
            read.append(outcome)

    submitter = spawn(bring())
    if (await cancelling(main)).cancelled:
        await main()
    await ended(submitter)
    assert len(read) == witness.others == 5
    await still_works(witness)
    await close(witness)


@case
async def aclose_of_a_group(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    group = pool.group()
    for item in witness.items(3, "slow", "stubborn"):
        await group.submit(item)
        witness.others += 1
    await settle()
    await cancelling(group.aclose)
    await group.aclose()
    assert (pool.stats.running, pool.stats.queued) == (0, 0)
    await still_works(witness)
    await close(witness)


@case
async def the_block_of_a_group(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(workers=2, queue_size=1)
    await pool.start()
    group = pool.group(window=9)

    async def main() -> None:
        with suppress(LookupError):
            async with group:
                for item in witness.items(4, "slow", "nap"):
                    await group.submit(item)
                    witness.others += 1
                raise LookupError

    await cancelling(main)
    await group.aclose()
    assert (pool.stats.running, pool.stats.queued) == (0, 0)
    with pytest.raises(StreamClosed):
        await group.submit(witness.item())
    await still_works(witness)
    await close(witness)


# -- Limits outside of a pool ----------------------------------------------------------------------------------------


@case
async def acquire_of_a_rate_limit(witness: Witness, cancelling: Cancelling) -> None:
    limit = RateLimit(10)
    pool = witness.make_pool(workers=2, limiter=limit)
    await pool.start()
    await limit.acquire()
    await cancelling(limit.acquire)
    assert not limit.users
    began = asyncio.get_running_loop().time()
    await limit.acquire()
    assert asyncio.get_running_loop().time() - began <= 0.2
    await still_works(witness)
    await close(witness)


@case
async def acquire_of_a_concurrency_limit(witness: Witness, cancelling: Cancelling) -> None:
    limit = ConcurrencyLimit(1)
    pool = witness.make_pool(workers=2, limiter=limit)
    await pool.start()
    await limit.acquire()
    asyncio.get_running_loop().call_later(0.01, limit.release)
    result = await cancelling(limit.acquire)
    if not result.cancelled:
        limit.release()
    await asyncio.sleep(0.02)
    assert not limit.in_use
    assert not limit.users
    await still_works(witness)
    await close(witness)


async def limited_pool(witness: Witness, slots: ConcurrencyLimit, breaker: Breaker, resources: Resources) -> Any:
    """Start a pool whose jobs wait for limits, for a breaker that is open, and for resources that are checked."""

    async def check(_: int) -> None:
        await asyncio.sleep(0.001)

    pool = witness.make_pool(
        workers=2,
        limiter=[slots, ConcurrencyLimit.per_key(lambda item: item.n % 2, 1), RateLimit(100)],
        breaker=breaker,
        queue_timeout=10.0,
        resource=Resource(resources, check=check, check_after=0.0, max_jobs=2),
    )
    await pool.start()
    await witness.submit(witness.item("nap"))
    await settle()
    breaker.open(0.02)
    await witness.submit(witness.item("nap"))
    return pool


@case
async def run_behind_limits_and_a_breaker(witness: Witness, cancelling: Cancelling) -> None:
    slots, breaker, resources = ConcurrencyLimit(1), Breaker(), Resources()
    pool = await limited_pool(witness, slots, breaker, resources)
    item = witness.item("turn")
    witness.perhaps += 1
    result = await cancelling(partial(pool.run, item))
    assert result.cancelled or result.value == item.n
    async with asyncio.timeout(60.0):
        await pool.join()
        assert await pool.run(Item(10_000)) == 10_000
    witness.others += 1
    assert breaker.state == "closed"
    assert not slots.in_use
    await close(witness)
    assert resources.held == 0


@case
async def close_behind_limits_and_a_breaker(witness: Witness, cancelling: Cancelling) -> None:
    slots, breaker, resources = ConcurrencyLimit(1), Breaker(), Resources()
    pool = await limited_pool(witness, slots, breaker, resources)
    await cancelling(pool.close)
    await witness.check_end()
    assert not slots.in_use
    assert not slots.users
    assert not breaker._users
    assert resources.held == 0


# -- Jobs that are delayed -------------------------------------------------------------------------------------------

# In these there is always a job that waits for its next attempt, and one that is parked for its rate limit.
DELAYED = ("flaky1", "flaky2", "later", "pausing", "fail")


async def delaying_pool(witness: Witness, *, letters: bool = True, **options: Any) -> WorkerPool[Any, Any]:
    """Start a pool in which jobs are tried again, and have limits."""
    pool = witness.make_pool(
        observe=True,
        retry=Retry(attempts=3, backoff=0.05, jitter=False),
        limiter=witness.keys(2, 20.0),
        dead_letters=Letters() if letters else None,
        **{"workers": 2, "queue_size": 2, **options},
    )
    await pool.start()
    return pool


async def delay_some(witness: Witness, count: int = 4) -> None:
    """Submit jobs, and wait until some are delayed and parked."""
    for kind in DELAYED[:count]:
        await witness.submit(witness.item(kind))
    await settle()
    witness.check_settled()
    assert witness.pool.stats.delayed >= 2
    assert witness.due


async def still_tries_again(witness: Witness) -> None:
    """Check that the pool does what it has to do, in time."""
    async with asyncio.timeout(60.0):
        await witness.pool.join()
    assert witness.pool.stats.delayed == 0
    await still_works(witness)
    for handle in witness.handles:
        outcome = await handle.outcome()
        assert isinstance(outcome, asyncpool.Failed if handle.job.kind == "fail" else asyncpool.Succeeded), outcome


@case
async def join_of_delayed_jobs(witness: Witness, cancelling: Cancelling) -> None:
    pool = await delaying_pool(witness)
    await delay_some(witness)
    result = await cancelling(pool.join)
    assert result.cancelled or pool.stats.delayed == 0
    await still_tries_again(witness)
    await close(witness)


@case
async def close_that_waits_for_delayed_jobs(witness: Witness, cancelling: Cancelling) -> None:
    pool = await delaying_pool(witness)
    await delay_some(witness)
    result = await cancelling(pool.close)
    report = await witness.check_end()
    assert result.cancelled or not report
    # Delayed and parked ones, unless they had all ended when it was cancelled.
    assert {entry.started for entry in report.unfinished} in (set(), {True, False})


@case
async def close_that_ends_while_jobs_are_delayed(witness: Witness, cancelling: Cancelling) -> None:
    pool = await delaying_pool(witness)
    await delay_some(witness)
    await cancelling(partial(pool.close, drain_timeout=0.06))
    report = await witness.check_end()
    assert report.unfinished
    assert not report.abandoned


@case
async def the_block_of_a_pool_with_delayed_jobs(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(
        workers=1, queue_size=0, max_delayed=1, retry=Retry(attempts=3, backoff=0.05, jitter=False)
    )

    async def main() -> None:
        async with pool:
            for kind in DELAYED:
                await witness.submit(witness.item(kind))

    await cancelling(main)
    assert pool.report is not None
    await witness.check_end()


@case
async def the_value_of_a_delayed_job(witness: Witness, cancelling: Cancelling) -> None:
    await delaying_pool(witness)
    await delay_some(witness)
    delayed, parked = witness.handles[0], witness.handles[2]

    async def main() -> Any:
        return await parked, await delayed

    result = await cancelling(main)
    assert result.cancelled or result.value == (parked.job.n, delayed.job.n)
    await still_tries_again(witness)
    await close(witness)


@case
async def the_outcome_of_a_delayed_job_that_fails(witness: Witness, cancelling: Cancelling) -> None:
    await delaying_pool(witness)
    failing = await witness.submit(witness.item("fail"))
    await delay_some(witness)
    result = await cancelling(failing.outcome)
    assert result.cancelled or (result.value is not None and result.value.attempts == 3)
    await still_tries_again(witness)
    await close(witness)


@case
async def run_of_a_job_that_is_tried_again(witness: Witness, cancelling: Cancelling) -> None:
    """In a pool that is full of delayed jobs, so that it waits for them first."""
    pool = await delaying_pool(witness, max_delayed=2)
    await delay_some(witness, 3)
    item = witness.item("flaky2")
    witness.perhaps += 1
    result = await cancelling(partial(pool.run, item))
    assert result.cancelled or result.value == item.n
    assert not [one for one in witness.waiting_jobs.values() if one is item]  # cancelled with its caller
    assert item.n not in witness.active_items
    await still_tries_again(witness)
    await close(witness)


@case
async def submit_while_too_many_are_delayed(witness: Witness, cancelling: Cancelling) -> None:
    """With some before and some behind, who all get their turn."""
    pool = await delaying_pool(witness, max_delayed=2, queue_size=9)
    await delay_some(witness, 3)
    before = [spawn(witness.submit(witness.item("flaky1"))) for _ in range(2)]
    me = spawn(cancelling(partial(witness.submit, witness.item("flaky1"))))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    behind = [spawn(witness.submit(witness.item("flaky1"))) for _ in range(2)]
    await settle()
    witness.check_settled()
    await ended(me, *before, *behind)
    assert pool.stats.submitted == len(witness.handles) == 8 - me.result().cancelled
    await still_tries_again(witness)
    await close(witness)


@stream_cases
async def next_of_a_stream_of_delayed_jobs(witness: Witness, cancelling: Cancelling, how: str) -> None:
    await delaying_pool(witness, letters=False)
    items = witness.items(7, "flaky1", "later", "ok", "nap")
    stream = aiter(_stream(witness, how, items))
    read: list[Any] = []

    async def main() -> None:
        async for entry in stream:
            read.append(entry)

    if (await cancelling(main)).cancelled:
        await main()
    assert sorted(_numbers(read)) == [item.n for item in items]
    if " ordered" in how:
        assert _numbers(read) == [item.n for item in items]
    await still_tries_again(witness)
    await close(witness)


@stream_cases
async def aclose_of_a_stream_of_delayed_jobs(witness: Witness, cancelling: Cancelling, how: str) -> None:
    pool = await delaying_pool(witness, workers=4)
    items = [witness.item("ok"), *witness.items(4, "flaky1", "later", "slow"), *witness.items(4, "slow", "flaky2")]
    stream = _stream(witness, how, items)
    front = aiter(stream)
    await anext(front)
    await asyncio.sleep(0.2)
    await cancelling(stream.aclose)
    await stream.aclose()
    assert (pool.stats.running, pool.stats.queued, pool.stats.delayed) == (0, 0, 0)
    assert witness.sources_open == 0
    await still_tries_again(witness)
    await close(witness)


@case
async def a_group_with_delayed_jobs(witness: Witness, cancelling: Cancelling) -> None:
    await delaying_pool(witness, max_delayed=1, queue_size=0)
    group = witness.pool.group(window=3)
    accepted: list[int] = []

    async def bring() -> None:
        for item in witness.items(3, "flaky1", "later"):
            await group.submit(item)
            accepted.append(item.n)

    read: list[Any] = []

    async def reading() -> None:
        async for outcome in group:
            read.append(outcome)

    reader, other = spawn(reading()), spawn(bring())
    await cancelling(bring)
    await ended(other)
    group.close_intake()
    await ended(reader)
    assert (other.exception(), reader.exception()) == (None, None)
    assert sorted(_numbers(read)) == sorted(accepted)
    assert all(isinstance(outcome, asyncpool.Succeeded) for outcome in read)
    witness.others = len(accepted)
    await still_tries_again(witness)
    await close(witness)


# -- Pools that scale ------------------------------------------------------------------------------------------------


async def sleeping_pool(witness: Witness, *, backlog: float = 0.5, **options: Any) -> WorkerPool[Any, Any]:
    """Start a pool that has no workers while it has nothing to do, and wakes without a tick of its policy."""
    policy = AutoScale(0, 3, backlog_per_worker=backlog, interval=1.0, idle_timeout=0.5)
    pool = witness.make_pool(workers=policy, observe=True, **{"queue_size": 0, **options})
    await pool.start()
    await falls_asleep(witness)
    return pool


async def falls_asleep(witness: Witness) -> None:
    """Wait until the pool has done all it has to do, and has no workers."""
    async with asyncio.timeout(60.0):
        await witness.pool.join()
    await asyncio.sleep(6.0)
    await settle()
    stats = witness.pool.stats
    assert (stats.queued, stats.delayed, stats.running) == (0, 0, 0)
    assert (stats.target_workers, stats.workers) == (0, 0)


async def still_wakes(witness: Witness) -> None:
    """Check that the pool goes to sleep, and wakes for a job."""
    await falls_asleep(witness)
    witness.submit_nowait(witness.item("ok"))
    async with asyncio.timeout(0.5):
        await witness.pool.join()
    await falls_asleep(witness)
    await close(witness)


@case
async def the_block_of_a_pool_that_scales(witness: Witness, cancelling: Cancelling) -> None:
    resources = Resources()
    policy = AutoScale(0, 3, backlog_per_worker=0.5, interval=0.001)
    pool = witness.make_pool(workers=policy, queue_size=1, resource=resources)

    async def main() -> None:
        async with pool:
            for item in witness.items(5, "nap"):
                await witness.submit(item)

    await cancelling(main)
    assert pool.report is not None
    assert resources.held == 0
    await witness.check_end()


@case
async def close_while_the_pool_grows(witness: Witness, cancelling: Cancelling) -> None:
    """With workers that have their resources, and others that are just getting them."""
    resources = Resources()
    policy = AutoScale(1, 4, backlog_per_worker=0.5, interval=0.001)
    pool = witness.make_pool(workers=policy, queue_size=9, resource=resources)
    await pool.start()
    for item in witness.items(8, "slow", "nap", "stubborn"):
        await witness.submit(item)
    await asyncio.sleep(0.005)
    assert pool.stats.workers < pool.stats.target_workers
    await cancelling(partial(pool.close, drain_timeout=0.5))
    assert pool.report is not None
    assert not pool.report.abandoned
    assert resources.held == 0
    await witness.check_end()


@case
async def submit_to_a_sleeping_pool(witness: Witness, cancelling: Cancelling) -> None:
    """The first gets in at once, and has the only worker."""
    pool = await sleeping_pool(witness, backlog=5.0)
    first = witness.submit_nowait(witness.item("nap"))
    me = spawn(cancelling(partial(witness.submit, witness.item("ok"))))  # type: ignore[arg-type]
    await settle()
    behind = [spawn(witness.submit(witness.item("ok"))) for _ in range(2)]
    await first.outcome()
    now = asyncio.get_running_loop().time()
    await settle()
    assert all(task.done() for task in (me, *behind))
    assert pool.stats.succeeded == len(witness.handles) == 4 - me.result().cancelled
    assert asyncio.get_running_loop().time() == now
    await still_wakes(witness)


@case
async def submit_to_a_sleeping_pool_that_is_paused(witness: Witness, cancelling: Cancelling) -> None:
    pool = await sleeping_pool(witness)
    pool.pause()
    me = spawn(cancelling(partial(witness.submit, witness.item("ok"))))  # type: ignore[arg-type]
    await settle()
    behind = spawn(witness.submit(witness.item("ok")))
    await settle()
    assert pool.stats.submitted == 0
    pool.resume()
    await settle()
    assert me.done()
    assert behind.done()
    assert pool.stats.succeeded == 2 - me.result().cancelled
    await still_wakes(witness)


@case
async def run_on_a_sleeping_pool(witness: Witness, cancelling: Cancelling) -> None:
    """Which first has to enter a resource."""
    resources = Resources()
    pool = await sleeping_pool(witness, resource=resources)
    item = witness.item("nap")
    witness.perhaps += 1
    result = await cancelling(partial(pool.run, item))
    assert result.cancelled or result.value == item.n
    assert item.n not in witness.active_items
    await still_wakes(witness)
    assert resources.held == 0


@case
async def run_of_a_job_that_makes_its_own_pool_grow(witness: Witness, cancelling: Cancelling) -> None:
    outer: set[int] = set()

    async def handler(item: Item) -> int:
        if item.n in outer:
            witness.perhaps += 1
            await pool.run(witness.item("nap"))
        return item.n

    pool = witness.make_pool(
        handler=handler, workers=AutoScale(1, 2, interval=1.0, idle_timeout=0.5), queue_size=0, retry=None
    )
    await pool.start()
    item = witness.item("ok")
    outer.add(item.n)
    witness.perhaps += 1
    result = await cancelling(partial(pool.run, item))
    assert result.cancelled or result.value == item.n
    assert (pool.stats.queued, pool.stats.running) == (0, 0)  # and the inner one has ended with it
    await asyncio.sleep(6.0)
    assert pool.stats.workers == pool.stats.target_workers == 1
    await pool.close()
    assert pool.stats.submitted == pool.stats.succeeded + pool.stats.cancelled


@case
async def the_value_of_a_job_that_is_tried_again_by_a_sleeping_pool(witness: Witness, cancelling: Cancelling) -> None:
    pool = await sleeping_pool(witness, retry=Retry(attempts=2, backoff=5.0, jitter=False))
    handle = await witness.submit(witness.item("flaky1"))
    await asyncio.sleep(4.0)
    assert (pool.stats.delayed, pool.stats.target_workers) == (1, 0)
    due = witness.due[handle.id]

    async def main() -> Any:
        return await handle

    await cancelling(main)
    assert await handle == handle.job.n
    assert asyncio.get_running_loop().time() == due
    await still_wakes(witness)


@case
async def join_of_a_pool_that_shrinks(witness: Witness, cancelling: Cancelling) -> None:
    pool = witness.make_pool(
        workers=AutoScale(0, 4, backlog_per_worker=0.5, interval=0.001, idle_timeout=0.0), queue_size=9
    )
    await pool.start()
    for item in witness.items(9, "nap"):
        await witness.submit(item)
    result = await cancelling(pool.join)
    assert result.cancelled or (pool.stats.queued, pool.stats.running) == (0, 0)
    await still_wakes(witness)


@stream_cases
async def next_of_a_stream_of_a_sleeping_pool(witness: Witness, cancelling: Cancelling, how: str) -> None:
    await sleeping_pool(witness, queue_size=1)
    items = witness.items(6, "ok", "turn", "nap")
    stream = aiter(_stream(witness, how, items))
    read: list[Any] = []

    async def main() -> None:
        async for entry in stream:
            read.append(entry)

    if (await cancelling(main)).cancelled:
        await main()
    assert sorted(_numbers(read)) == [item.n for item in items]
    if " ordered" in how:
        assert _numbers(read) == [item.n for item in items]
    await still_wakes(witness)


@case
async def a_group_of_a_sleeping_pool(witness: Witness, cancelling: Cancelling) -> None:
    pool = await sleeping_pool(witness)
    group = pool.group(window=2)
    accepted: list[int] = []

    async def bring() -> None:
        for item in witness.items(3, "ok", "nap"):
            await group.submit(item)
            accepted.append(item.n)

    read: list[Any] = []

    async def reading() -> None:
        async for outcome in group:
            read.append(outcome)

    reader = spawn(reading())
    await cancelling(bring)
    group.close_intake()
    await ended(reader)
    assert reader.exception() is None
    assert sorted(_numbers(read)) == sorted(accepted)
    witness.others = len(accepted)
    await still_wakes(witness)


# -- Dead letters ----------------------------------------------------------------------------------------------------


@case
async def replay(witness: Witness, cancelling: Cancelling) -> None:
    """Into a pool that is full: a letter leaves the store with its job's acceptance, neither before nor without it."""
    dead = Witness()
    letters = Letters()
    async with dead.make_pool(workers=1, dead_letters=letters, retry=None):
        for item in dead.items(5, "fail"):
            await dead.submit(item)
    await delaying_pool(witness, max_delayed=1, queue_size=0)
    result = await cancelling(partial(letters.replay, witness))
    assert len(letters) + len(witness.handles) == 5
    if not result.cancelled:
        assert (result.value, len(letters)) == (5, 0)
    else:
        await letters.replay(witness)
    assert len({handle.job.n for handle in witness.handles}) == len(witness.handles) == 5
    await still_tries_again(witness)
    await close(witness)


@case
async def next_of_a_watch(witness: Witness, cancelling: Cancelling) -> None:
    pool = await delaying_pool(witness)
    letters = witness.letters
    assert letters is not None
    watch = letters.watch()
    read: list[Any] = []

    async def main() -> None:
        async for letter in watch:
            read.append(letter)

    async def use() -> None:
        for item in witness.items(3, "fail", "permanent", "turn_fail"):
            await witness.submit(item)
        await pool.close()

    user = spawn(use())
    if (await cancelling(main)).cancelled:
        await main()
    await ended(user)
    assert user.exception() is None
    assert len(read) == 3
    assert all(one is other for one, other in zip(read, letters.recorded, strict=True))
    await witness.check_end()


# -- One line, and threads -------------------------------------------------------------------------------------------


async def _oneshot(witness: Witness, cancelling: Cancelling, main: Callable[[Any], Main], **options: Any) -> Any:
    active = 0

    async def handler(item: Item, resource: object = None) -> int:
        nonlocal active
        active += 1
        try:
            return await witness.work(item)
        finally:
            active -= 1

    items = witness.items(5, "ok", "turn", "nap")
    stream = asyncpool.map(handler, witness.async_source(items), workers=2, queue_size=1, **options)
    result = await cancelling(main(stream))
    if not result.cancelled:
        assert result.value == [item.n for item in items]
    await stream.aclose()
    assert active == 0
    assert witness.sources_open == 0
    return result


@case
async def oneshot_awaited(witness: Witness, cancelling: Cancelling) -> None:
    def main(stream: Any) -> Main:
        async def collect() -> Any:
            return await stream

        return collect

    await _oneshot(witness, cancelling, main)


@case
async def oneshot_with_a_resource_in_a_block(witness: Witness, cancelling: Cancelling) -> None:
    def main(stream: Any) -> Main:
        async def collect() -> Any:
            async with stream:
                return [value async for value in stream]

        return collect

    resources = Resources()
    await _oneshot(witness, cancelling, main, resource=resources)
    assert resources.held == 0


@case
async def oneshot_of_outcomes(witness: Witness, cancelling: Cancelling) -> None:
    items = witness.items(5, "ok", "fail", "slow")
    read: list[Any] = []
    stream = asyncpool.outcomes(witness.work, witness.source(items), workers=1)
    front = aiter(stream)

    async def main() -> None:
        async for outcome in front:
            read.append(outcome)

    if (await cancelling(main)).cancelled:
        await main()  # the stream is still open, or was just about to tell its end
    assert sorted(_numbers(read)) == [item.n for item in items]


@case
async def an_offloaded_call(witness: Witness, cancelling: Cancelling) -> None:
    ended_calls: list[int] = []

    def work(n: int) -> int:
        time.sleep(0.001)
        ended_calls.append(n)
        return n

    work_offloaded = offload(work)
    result = await cancelling(partial(work_offloaded, 1))
    assert result.cancelled or result.value == 1
    async with WorkerPool(work_offloaded, workers=1) as pool:
        assert await pool.map(range(3)) == [0, 1, 2]
    assert ended_calls[-3:] == [0, 1, 2]


@case
async def a_job_on_a_thread(witness: Witness, cancelling: Cancelling) -> None:
    def work(n: int) -> int:
        time.sleep(0.001)
        return n

    async with WorkerPool(offload(work), workers=1) as pool:
        result = await cancelling(partial(pool.run, 5))
        assert result.cancelled or result.value == 5
        assert pool.stats.running == 0  # it has waited for the thread, which no cancellation stops
        assert await pool.run(6) == 6


# -- The sweep -------------------------------------------------------------------------------------------------------


def sweep(name: str, way: str, seed: int | None) -> int:
    """Cancel at each suspension in turn; return how many there were."""
    for step in range(1, MOST_STEPS):
        results: list[CancelSweepResult[Any]] = []

        async def main() -> None:
            witness = Witness()
            await CASES[name](witness, _cancelling(way, step, results))  # noqa: B023 -- it is run in this turn

        try:
            run(main, seed=seed)
        except BaseException as error:
            error.add_note(f"cancelled {way} at suspension {step} of {name!r}, seed {seed}")
            raise
        if all(result.completed for result in results):
            return step - 1
    raise AssertionError(f"{name!r} has no end: it was suspended {MOST_STEPS} times")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_call_may_be_cancelled_at_each_of_its_suspensions(name: str, way: str) -> None:
    for seed in (None, 1, 2):
        sweep(name, way, seed)


# Those which never wait in their case, so that there is nothing to cancel.
NEVER_SUSPEND = {"start", "submit_to_a_free_pool"}


@pytest.mark.parametrize("name", CASES)
def test_the_sweep_has_something_to_cancel(name: str) -> None:
    assert (sweep(name, "early", None) == 0) == (name in NEVER_SUSPEND)
