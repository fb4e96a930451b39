"""The limit and the rate are never exceeded, and limits of 0, 1 and n mean what they say."""

from __future__ import annotations

import asyncio

from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases.tools import Recorder, Source, case, now, read, sleeps
from benchmarks.gauntlet.verdicts import check, leaf


@case()
async def limit_1_as_limit_n(library: Library) -> None:
    """Limits 1 and n give the same values and errors, read the source once, and run exactly that many jobs at a
    time."""

    async def fails(job: int) -> int:
        await asyncio.sleep(0)
        raise ConnectionError(job)

    kinds = set()
    for workers in (1, 2, 10):
        source = Source(20)
        recorder = Recorder()
        values, error = await read(library.values(recorder.of(sleeps(0.01)), source, workers=workers))
        if error is not None:
            raise error
        check(sorted(values) == list(range(20)), f"{len(values)} of 20 values with limit {workers}")
        check(source.pulled == 20, f"{source.pulled} of 20 inputs read with limit {workers}")
        check(recorder.peak_running == workers, f"{recorder.peak_running} jobs at a time with limit {workers}")
        _, error = await read(library.values(fails, range(3), workers=workers))
        kinds.add(type(leaf(error)).__name__ if error is not None else "none")
    check(len(kinds) == 1, f"the errors differ with the limit: {', '.join(sorted(kinds))}")


@case()
async def limit_0(library: Library) -> None:
    """A limit of 0 raises an error, and neither hangs nor means "no limit"."""
    recorder = Recorder()
    try:
        results = library.values(recorder.of(sleeps(0.01)), range(20), workers=0)
    except ValueError:
        return
    values, error = await read(results)
    check(error is not None, f"{len(values)} of 20 values with {recorder.peak_running} jobs at a time and no error")


@case()
async def rate_in_a_burst(library: Library) -> None:
    """No window, including the first, has more than one start above the rate (one, for its edges)."""
    rate, per = 10, 0.5
    starts: list[float] = []

    async def handler(job: int) -> int:
        starts.append(now())
        return job

    values, error = await read(library.values(handler, range(25), workers=25, rate=rate, per=per))
    if error is not None:
        raise error
    check(len(values) == 25, f"{len(values)} of 25 values")
    most = max(sum(begin <= other < begin + 0.99 * per for other in starts) for begin in starts)
    check(most <= rate + 1, f"{most} starts in {per} s, {rate} allowed")
