"""The laws of the journal, under random schedules: a batch is run, stopped in all ways, and run again until it is done.

After each run:

* What was delivered is recorded, and so is everything that succeeded.
* Nothing that was recorded before has run again, and no key has run twice.
* The file is closed, and no task is left.

And at the end every job is done.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from asyncpool import (
    Cancelled,
    Failed,
    JobCancelled,
    Journal,
    PoolClosed,
    RateLimit,
    Retry,
    StreamClosed,
    Succeeded,
    WorkerPool,
)
from asyncpool.testing import run
from tests.journal.tools import FAST_FOLDER
from tests.laws.budget import BATCHES


class Batch:
    """A batch of jobs with numbers, of which some repeat, and a handler that fails now and then."""

    def __init__(self, random: Random, folder: str) -> None:
        self.random = random
        self.path = Path(folder, "batch.db")
        self.size = random.randrange(1, 120)
        self.succeeded: Counter[int] = Counter()

    async def handle(self, job: int) -> int:
        random = self.random
        if random.random() < 0.8:
            await asyncio.sleep(random.choice((0.0, 0.001, 0.01)) * random.random())
        if random.random() < 0.04:
            raise ValueError(job)
        if random.random() < 0.1:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)  # ends with a value although it was cancelled
        self.succeeded[job] += 1
        return -job

    def source(self) -> Iterator[int]:
        for job in range(self.size):
            yield job
            if self.random.random() < 0.15:
                yield self.random.randrange(self.size)

    async def slow_source(self) -> AsyncIterator[int]:
        for job in self.source():
            if self.random.random() < 0.3:
                await asyncio.sleep(self.random.choice((0.0, 0.005)))
            yield job

    def done(self) -> set[int]:
        if not self.path.exists():
            return set()
        with closing(sqlite3.connect(self.path)) as base:
            if not base.execute("select 1 from sqlite_master limit 1").fetchone():
                return set()
            return {key for (key,) in base.execute("select key from done")}


async def one_run(batch: Batch) -> bool:
    """Run a batch, stop it perhaps, and check the laws; return whether everything is done."""
    random = batch.random
    journal = Journal[int](batch.path, key=int, values=True, durable=False)
    before, ran_before = batch.done(), Counter(batch.succeeded)
    handler: Callable[[int], Awaitable[int]] = batch.handle
    if random.random() < 0.3:
        handler = journal.recorded(handler)
    pool = WorkerPool(
        handler,
        workers=random.choice((1, 3, 10)),
        queue_size=random.choice((None, 0, 2)),
        retry=random.choice((None, Retry(attempts=2, backoff=0.001))),
        limiter=random.choice((None, None, RateLimit(2000.0))),
    )
    kind = random.choice(("outcomes", "outcomes", "earlier", "map"))
    leaves_after = random.randrange(1, batch.size + 1) if random.random() < 0.5 else None
    got: list[Any] = []
    is_whole = False
    async with pool:
        loop = asyncio.get_running_loop()
        end = random.choice((None, None, "drain", "cancel stream", "close pool"))
        jobs = random.choice((batch.source, batch.slow_source))()
        stream: Any = (
            journal.map(pool, jobs, ordered=random.random() < 0.5)
            if kind == "map"
            else journal.outcomes(pool, jobs, ordered=random.random() < 0.5, earlier=kind == "earlier")
        )
        at = random.random() * 0.05
        if end == "drain":
            loop.call_later(at, lambda: pool.drain(drain_timeout=random.choice((0.0, None))))
        elif end == "cancel stream":
            loop.call_later(at, stream.cancel)
        elif end == "close pool":
            loop.call_later(at, pool.cancel)
        if random.random() < 0.3:
            loop.call_later(at / 2, lambda: pool.state == "open" and pool.resize(random.randrange(1, 6)))
        with suppress(PoolClosed, StreamClosed, JobCancelled, ValueError):
            async with stream:
                async for entry in stream:
                    got.append(entry)
                    if random.random() < 0.05:
                        await asyncio.sleep(0.01)
                    if len(got) == leaves_after:
                        break
                else:
                    is_whole = True
    after, ran = batch.done(), batch.succeeded - ran_before
    assert not before & set(ran), "what is recorded does not run again"
    assert max(ran.values(), default=1) == 1, "a key runs once in a run"
    assert set(ran) == after - before, "all that succeeds is recorded"
    if kind == "map":
        delivered = {-value for value in got}
    else:
        delivered = {outcome.job for outcome in got if isinstance(outcome, Succeeded)}
        assert all(outcome.value == -outcome.job for outcome in got if isinstance(outcome, Succeeded))
    assert delivered <= after, "what is delivered is recorded"
    if kind == "outcomes":
        assert not delivered & before, "what was done before is not delivered"
        assert len(delivered) == sum(isinstance(outcome, Succeeded) for outcome in got)
    is_done = is_whole and not any(isinstance(outcome, (Failed, Cancelled)) for outcome in got)
    if is_done:
        assert after == set(range(batch.size)), "a run that is not stopped does everything"
        if kind != "outcomes":
            assert delivered == after
    return is_done


@pytest.mark.parametrize("part", range(4))
def test_a_batch_is_done_however_often_it_is_stopped(part: int) -> None:
    for seed in range(part, BATCHES, 4):

        async def main() -> None:
            with tempfile.TemporaryDirectory(dir=FAST_FOLDER) as folder:
                batch = Batch(Random(seed), folder)  # noqa: B023 -- it is run in this turn
                for _ in range(200):
                    if await one_run(batch):
                        return
                raise AssertionError("not done after 200 runs")

        try:
            run(main, seed=seed)
        except BaseException as error:
            error.add_note(f"seed={seed}")
            raise
