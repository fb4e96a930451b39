"""One job cannot hurt another job or the reader of the results."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref
from contextvars import ContextVar

from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases.tools import (
    Recorder,
    all_of,
    awaits_what_was_cancelled,
    case,
    jobs,
    read,
    sleeps,
    values_of,
)
from benchmarks.gauntlet.verdicts import check, leaf

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="default")


@case()
async def failure_stops_others(library: Library) -> None:
    """When failures are returned as data, a failing job costs only its own result."""

    async def handler(job: int) -> int:
        if job == 3:
            raise ValueError(job)
        return job

    ended = await all_of(library.outcomes(handler, range(10), workers=2))
    check(len(ended) == 10, f"{len(ended)} of 10 outcomes")
    check(values_of(ended) == [job for job in range(10) if job != 3], "values are lost")
    check(
        [type(leaf(one.error)) for one in ended if one.error] == [ValueError],
        "the failure is not reported as it was raised",
    )


@case(schedules=20)
async def failure_is_reported(library: Library) -> None:
    """A failure reaches the reader of the values and is never dropped silently."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        if job == 5:
            raise ValueError("job 5")
        return job

    values, error = await read(library.values(handler, range(10), workers=3))
    check(error is not None, f"{len(values)} of 10 values and no error")


@case()
async def job_awaits_what_was_cancelled(library: Library) -> None:
    """A job that awaits a task cancelled elsewhere fails alone and costs no worker, because neither the job nor the
    pool was cancelled."""

    async def handler(job: int) -> int:
        return await awaits_what_was_cancelled(job) if job % 2 else job

    ended = await all_of(library.outcomes(handler, range(20), workers=2))
    check(len(ended) == 20, f"{len(ended)} of 20 outcomes")
    check(values_of(ended) == list(range(0, 20, 2)), "values of other jobs are lost")


@case()
async def stray_cancel_is_reported(library: Library) -> None:
    """A job's stray `CancelledError` neither drops values silently nor reaches the reader as a `CancelledError`, as if
    the reader had been cancelled."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        return await awaits_what_was_cancelled(job) if job == 2 else job

    values, error = await read(library.values(handler, range(6), workers=2))
    check(error is not None or len(values) == 6, f"{len(values)} of 6 values and no error")
    check(not isinstance(error, asyncio.CancelledError), "CancelledError in a reader that was not cancelled")


@case()
async def job_raises_stop_async_iteration(library: Library) -> None:
    """A job's `StopAsyncIteration` does not end the reader's `async for` early."""

    async def handler(job: int) -> int:
        if job == 2:
            raise StopAsyncIteration
        return job

    values, error = await read(library.values(handler, range(6), workers=2))
    check(error is not None or len(values) == 6, f"{len(values)} of 6 values and no error")


@case()
async def job_raises_stop_iteration(library: Library) -> None:
    """A job's `StopIteration`, for example of a bare `next()`, is reported like any other error."""

    async def handler(job: int) -> int:
        return next(iter(())) if job == 2 else job  # type: ignore[arg-type]

    values, error = await read(library.values(handler, range(6), workers=2))
    check(error is not None or len(values) == 6, f"{len(values)} of 6 values and no error")


@case()
async def job_raises_system_exit(library: Library) -> None:
    """A job's `SystemExit`, for example of a command-line `main()`, fails that job and does not exit the program."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        if job == 2:
            raise SystemExit(3)
        return job

    ended = await all_of(library.outcomes(handler, range(6), workers=2))
    check(len(ended) == 6, f"{len(ended)} of 6 outcomes")
    check(values_of(ended) == [0, 1, 3, 4, 5], "values of other jobs are lost")


@case()
async def context_leaks(library: Library) -> None:
    """A context variable set by one job, such as the current user or transaction, is not visible to the next."""

    async def handler(job: int) -> str:
        seen = VARIABLE.get()
        VARIABLE.set(f"set by job {job}")
        await asyncio.sleep(0)
        return seen

    values, error = await read(library.values(handler, range(6), workers=2))
    if error is not None:
        raise error
    strangers = sum(value != "default" for value in values)
    check(strangers == 0, f"{strangers} of 6 jobs see another job's value")


@case()
async def submitters_context(library: Library) -> None:
    """A job runs in the context of its submitter, even if it had to wait, for the sake of traces and log lines."""

    async def handler(job: str) -> str:
        await asyncio.sleep(0.01)
        return VARIABLE.get()

    names = list("abcdef")
    async with library.pool(handler, workers=1, room=2) as pool:

        async def submitter(name: str) -> str:
            VARIABLE.set(name)
            return await pool.run(name)

        seen = await asyncio.gather(*[asyncio.create_task(submitter(name)) for name in names])
    wrong = sum(a != b for a, b in zip(names, seen, strict=True))
    check(wrong == 0, f"{wrong} of 6 jobs run in the wrong context")


@case()
async def own_timeout_error(library: Library) -> None:
    """A job's own `TimeoutError`, for example of its socket, has a different type from the pool's timeout."""

    async def handler(job: int) -> int:
        if job == 0:
            raise TimeoutError("of the socket")
        await asyncio.sleep(60)
        return job

    ended = await all_of(library.outcomes(handler, range(2), workers=2, timeout=0.05))
    types = [type(one.error) for one in ended]
    check(len(types) == 2, f"{len(types)} of 2 outcomes")
    check(types[0] is not types[1], f"both are a {types[0].__name__}")
    check(TimeoutError in types, "the job's own error is not reported as it was raised")


@case()
async def timeout_is_reported(library: Library) -> None:
    """A job that times out raises an error, instead of just missing from the results."""

    async def handler(job: int) -> int:
        await asyncio.sleep(60 if job == 1 else 0)
        return job

    values, error = await read(library.values(handler, range(3), workers=2, timeout=0.05))
    check(error is not None, f"{len(values)} of 3 values and no error")


@case()
async def timeout_costs_no_worker(library: Library) -> None:
    """All workers are still available after as many timeouts as there are workers."""

    async def handler(job: int) -> int:
        await asyncio.sleep(60 if job < 4 else 0.05)
        return job

    ended = await all_of(library.outcomes(handler, range(8), workers=2, timeout=0.2))
    check(len(ended) == 8, f"{len(ended)} of 8 outcomes")
    check(values_of(ended) == [4, 5, 6, 7], "values after the timeouts are lost")


@case()
async def timeout_counts_running_only(library: Library) -> None:
    """A job's timeout does not include the time it waited for a worker."""
    ended = await all_of(library.outcomes(sleeps(0.1), range(5), workers=1, timeout=0.25))
    check(values_of(ended) == list(range(5)), f"{5 - len(values_of(ended))} of 5 timed out while waiting for a worker")


class Payload:
    """Something large in a local variable of a job."""


@case()
async def kept_failures_hold_frames(library: Library) -> None:
    """Kept failures show the failed lines in their tracebacks, but do not keep the local variables of their jobs, such
    as response bodies, alive."""
    payloads: list[weakref.ref[Payload]] = []

    async def handler(job: int) -> int:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        await asyncio.sleep(0)
        raise ValueError(job)

    kept = await all_of(library.outcomes(handler, range(4), workers=2))
    await asyncio.sleep(0.01)
    gc.collect()
    alive = sum(payload() is not None for payload in payloads)
    check(len(kept) == 4, f"{len(kept)} of 4 outcomes")
    check(alive == 0, f"the local variables of {alive} of 4 jobs stay alive")
    lines = [entry.name for one in kept if one.error for entry in traceback.extract_tb(one.error.__traceback__)]
    check(lines.count("handler") == 4, "the traceback does not show the job")


@case()
async def failure_leaves_orphans(library: Library) -> None:
    """Once a job's failure is raised to the reader, no other job of the same map keeps running."""
    recorder = Recorder()

    async def handler(job: int) -> int:
        await asyncio.sleep(0.01 if job == 0 else 0.3)
        if job == 0:
            raise ValueError(job)
        return job

    _, error = await read(library.values(recorder.of(handler), range(6), workers=3))
    check(error is not None, "no error raised")
    check(recorder.running == 0, f"{jobs(recorder.running)} still running")
    begun = len(recorder.started)
    await asyncio.sleep(0.5)
    more = len(recorder.started) - begun
    check(more == 0, f"{jobs(more, 'more job')} started after it was raised")
