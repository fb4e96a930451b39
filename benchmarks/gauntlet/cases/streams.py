"""Lazy in, streaming out: nothing is lost, nothing runs on, nothing piles up."""

from __future__ import annotations

import asyncio

from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases.tools import Recorder, Source, case, jobs, read, sleeps
from benchmarks.gauntlet.verdicts import check, leaf


@case()
async def break_leaves_orphans(library: Library) -> None:
    """Who leaves the loop after the first result leaves no job running, and does not wait for all inputs."""
    recorder = Recorder()

    async def handler(job: int) -> int:
        await asyncio.sleep(0.1 if job else 0.02)
        return job

    async with library.stream(recorder.of(handler), Source(60), workers=3) as values:
        async for _ in values:
            break
    await asyncio.sleep(0)
    begun = len(recorder.started)
    check(begun < 30, f"{begun} of 60 jobs are run before the loop is left")
    check(recorder.running == 0, f"{jobs(recorder.running)} still running")
    await asyncio.sleep(0.3)
    more = len(recorder.started) - begun
    check(more == 0, f"{jobs(more, 'more job')} begun after the loop is left")


@case()
async def input_is_lazy(library: Library) -> None:
    """The first result comes before all inputs are pulled: a cursor over a million rows, or an endless feed, is an
    input like others."""
    source = Source(20_000)
    async with library.lazy_stream(sleeps(0.0), source, workers=3) as values:
        async for _ in values:
            break
        pulled = source.pulled
    check(pulled < 1_000, f"{pulled:,} of 20,000 inputs are pulled before the first result")


@case()
async def slow_consumer(library: Library) -> None:
    """A reader that is slower than the jobs slows them down: results do not pile up without bound."""
    recorder = Recorder()
    count = 0
    async with library.stream(recorder.of(sleeps(0.0)), Source(5_000), workers=3) as values:
        async for _ in values:
            await asyncio.sleep(0.05)
            count += 1
            if count == 10:
                begun = len(recorder.started)
                break
    check(count == 10, f"{count} of 5,000 values")
    check(begun < 500, f"{begun:,} jobs have run for 10 results that were read")


@case()
async def source_raises(library: Library) -> None:
    """A source that raises acts as the last input: what it gave before is done and delivered, then comes its error."""
    values, error = await read(
        library.lazy_stream(sleeps(0.02), Source(5, ConnectionError("of the source")), workers=2)
    )
    check(error is not None, f"{len(values)} values, and no error")
    check(isinstance(leaf(error), ConnectionError), f"it comes as {type(leaf(error)).__name__}")
    check(len(values) == 5, f"{len(values)} of 5 results, then the error")


@case()
async def reader_is_cancelled(library: Library) -> None:
    """A step of the reader that is cancelled (a timeout around `anext`) loses nothing, and the stream does not look
    exhausted: else inputs that were pulled from the source are in nobody's hands."""
    values = []
    async with library.stream(sleeps(0.1), Source(6), workers=2) as results:
        reader = aiter(results)
        for _ in range(100):
            try:
                async with asyncio.timeout(0.03):
                    values.append(await anext(reader))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
    check(len(values) == 6, f"{len(values)} of 6 values, then it looks exhausted")


@case(schedules=10)
async def failure_with_a_full_queue(library: Library) -> None:
    """A failure while the queue is full does not leave the producer waiting for room for ever."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        if job == 1:
            raise ValueError(job)
        return job

    _, error = await read(library.values(handler, Source(200), workers=1))
    check(error is not None, "no error is raised")


@case()
async def all_results_come(library: Library) -> None:
    """All results come, also through a queue as long as there are workers: no batch ends early in silence."""
    await _all_come(library)


@case(needs="uvloop")
async def all_results_come_on_uvloop(library: Library) -> None:
    """The same on uvloop, whose callbacks come in another order."""
    await _all_come(library)


async def _all_come(library: Library) -> None:
    for _ in range(20):
        values, error = await read(library.values(sleeps(0), range(1_000), workers=10, queue_size=10))
        if error is not None:
            raise error
        check(len(values) == 1_000, f"{len(values):,} of 1,000 values, and no error")
