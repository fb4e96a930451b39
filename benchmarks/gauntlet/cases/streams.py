"""Lazy input and streaming output: nothing is lost, keeps running or piles up."""

from __future__ import annotations

import asyncio

from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases.tools import Recorder, Source, case, jobs, read, sleeps
from benchmarks.gauntlet.verdicts import check, leaf


@case()
async def break_leaves_orphans(library: Library) -> None:
    """A reader that leaves the loop after the first result leaves no job running and does not wait for all inputs."""
    recorder = Recorder()

    async def handler(job: int) -> int:
        await asyncio.sleep(0.1 if job else 0.02)
        return job

    async with library.stream(recorder.of(handler), Source(60), workers=3) as values:
        async for _ in values:
            break
    await asyncio.sleep(0)
    begun = len(recorder.started)
    check(begun < 30, f"{begun} of 60 jobs ran before the loop was left")
    check(recorder.running == 0, f"{jobs(recorder.running)} still running")
    await asyncio.sleep(0.3)
    more = len(recorder.started) - begun
    check(more == 0, f"{jobs(more, 'more job')} started after the loop was left")


@case()
async def input_is_lazy(library: Library) -> None:
    """The first result arrives before all inputs are read, so the source can be an endless feed."""
    source = Source(20_000)
    async with library.lazy_stream(sleeps(0.0), source, workers=3) as values:
        async for _ in values:
            break
        pulled = source.pulled
    check(pulled < 1_000, f"{pulled:,} of 20,000 inputs read before the first result")


@case()
async def slow_consumer(library: Library) -> None:
    """A reader that is slower than the jobs slows them down, so results do not pile up without bound."""
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
    check(begun < 500, f"{begun:,} jobs ran while the reader took 10 results")


@case()
async def source_raises(library: Library) -> None:
    """When the source raises, the inputs it gave before are processed and delivered, and then its error is raised."""
    values, error = await read(
        library.lazy_stream(sleeps(0.02), Source(5, ConnectionError("of the source")), workers=2)
    )
    check(error is not None, f"{len(values)} values and no error")
    check(isinstance(leaf(error), ConnectionError), f"it is raised as {type(leaf(error)).__name__}")
    check(len(values) == 5, f"{len(values)} of 5 results, then the error")


@case()
async def reader_is_cancelled(library: Library) -> None:
    """A cancelled read, for example a timeout around `anext`, loses no result and does not make the stream look
    exhausted."""
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
    check(len(values) == 6, f"{len(values)} of 6 values, then the stream looks exhausted")


@case(schedules=10)
async def failure_with_a_full_queue(library: Library) -> None:
    """A failure while the queue is full does not leave the producer waiting for a free place."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        if job == 1:
            raise ValueError(job)
        return job

    _, error = await read(library.values(handler, Source(200), workers=1))
    check(error is not None, "no error raised")


@case()
async def all_results_come(library: Library) -> None:
    """No batch ends early and silently, even if the queue has only as many places as there are workers."""
    await _all_come(library)


@case(needs="uvloop")
async def all_results_come_on_uvloop(library: Library) -> None:
    """The same holds on uvloop, which runs callbacks in another order."""
    await _all_come(library)


async def _all_come(library: Library) -> None:
    for _ in range(20):
        values, error = await read(library.values(sleeps(0), range(1_000), workers=10, queue_size=10))
        if error is not None:
            raise error
        check(len(values) == 1_000, f"{len(values):,} of 1,000 values and no error")
