"""One job cannot hurt another, nor who reads their results."""

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
async def failure_stops_nobody(library: Library) -> None:
    """With failures as data, one job that fails costs its own result and no other."""

    async def handler(job: int) -> int:
        if job == 3:
            raise ValueError(job)
        return job

    ended = await all_of(library.outcomes(handler, range(10), workers=2))
    check(len(ended) == 10, f"{len(ended)} of 10 outcomes")
    check(values_of(ended) == [job for job in range(10) if job != 3], "values are lost")
    check([type(leaf(one.error)) for one in ended if one.error] == [ValueError], "the failure is not told as it was")


@case(schedules=20)
async def failure_is_told(library: Library) -> None:
    """A failure reaches whoever reads the values, whatever the schedule: it is never dropped in silence."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        if job == 5:
            raise ValueError("job 5")
        return job

    values, error = await read(library.values(handler, range(10), workers=3))
    check(error is not None, f"{len(values)} of 10 values, and no error")


@case()
async def job_awaits_what_was_cancelled(library: Library) -> None:
    """A job that awaits a task which somebody else cancels fails alone, and its worker lives on: `CancelledError` in a
    job need not mean that the job, its worker or its pool was cancelled."""

    async def handler(job: int) -> int:
        return await awaits_what_was_cancelled(job) if job % 2 else job

    ended = await all_of(library.outcomes(handler, range(20), workers=2))
    check(len(ended) == 20, f"{len(ended)} of 20 outcomes")
    check(values_of(ended) == list(range(0, 20, 2)), "values of other jobs are lost")


@case()
async def stray_cancel_is_told(library: Library) -> None:
    """A job's stray `CancelledError` neither shortens the values in silence nor reaches the reader as a
    `CancelledError`: that would look as if the reader itself was cancelled, and end its task group without a word."""

    async def handler(job: int) -> int:
        await asyncio.sleep(0)
        return await awaits_what_was_cancelled(job) if job == 2 else job

    values, error = await read(library.values(handler, range(6), workers=2))
    check(error is not None or len(values) == 6, f"{len(values)} of 6 values, and no error")
    check(not isinstance(error, asyncio.CancelledError), "CancelledError for a reader whom nobody cancelled")


@case()
async def job_raises_stop_async_iteration(library: Library) -> None:
    """A job's `StopAsyncIteration` does not end the reader's `async for` as if all was read."""

    async def handler(job: int) -> int:
        if job == 2:
            raise StopAsyncIteration
        return job

    values, error = await read(library.values(handler, range(6), workers=2))
    check(error is not None or len(values) == 6, f"{len(values)} of 6 values, and no error")


@case()
async def job_raises_stop_iteration(library: Library) -> None:
    """A job's `StopIteration` (a bare `next()` that is at its end) is an error like others."""

    async def handler(job: int) -> int:
        return next(iter(())) if job == 2 else job  # type: ignore[arg-type]

    values, error = await read(library.values(handler, range(6), workers=2))
    check(error is not None or len(values) == 6, f"{len(values)} of 6 values, and no error")


@case()
async def job_raises_system_exit(library: Library) -> None:
    """A job's `SystemExit` (a command line's `main()`, called as a job) costs that job, not the program."""

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
    """A context variable that one job sets is not seen by the next: else one user's request runs with another user's
    name, language or database transaction."""

    async def handler(job: int) -> str:
        seen = VARIABLE.get()
        VARIABLE.set(f"set by job {job}")
        await asyncio.sleep(0)
        return seen

    values, error = await read(library.values(handler, range(6), workers=2))
    if error is not None:
        raise error
    strangers = sum(value != "default" for value in values)
    check(strangers == 0, f"{strangers} of 6 jobs see what another job has set")


@case()
async def submitters_context(library: Library) -> None:
    """A job runs in the context of who submitted it, also if it had to wait: traces, log lines and transactions hang
    on that."""

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
    check(wrong == 0, f"{wrong} of 6 jobs run in another context")


@case()
async def own_timeout_error(library: Library) -> None:
    """A job's own `TimeoutError` (of its socket, say) is told apart from the timeout of the pool, by its type: one is a
    fault of the server, the other says that the limit is too small."""

    async def handler(job: int) -> int:
        if job == 0:
            raise TimeoutError("of the socket")
        await asyncio.sleep(60)
        return job

    ended = await all_of(library.outcomes(handler, range(2), workers=2, timeout=0.05))
    types = [type(one.error) for one in ended]
    check(len(types) == 2, f"{len(types)} of 2 outcomes")
    check(types[0] is not types[1], f"both are a {types[0].__name__}")
    check(TimeoutError in types, "the job's own error is not told as it was")


@case()
async def timeout_is_told(library: Library) -> None:
    """A job that times out is told of: its result is not just missing."""

    async def handler(job: int) -> int:
        await asyncio.sleep(60 if job == 1 else 0)
        return job

    values, error = await read(library.values(handler, range(3), workers=2, timeout=0.05))
    check(error is not None, f"{len(values)} of 3 values, and no error")


@case()
async def timeout_costs_no_worker(library: Library) -> None:
    """After as many timeouts as there are workers, all workers are still there."""

    async def handler(job: int) -> int:
        await asyncio.sleep(60 if job < 4 else 0.05)
        return job

    ended = await all_of(library.outcomes(handler, range(8), workers=2, timeout=0.2))
    check(len(ended) == 8, f"{len(ended)} of 8 outcomes")
    check(values_of(ended) == [4, 5, 6, 7], "values after the timeouts are lost")


@case()
async def timeout_counts_running_only(library: Library) -> None:
    """The timeout of a job does not count the time that it waited for a worker: else a full queue fails all of it."""
    ended = await all_of(library.outcomes(sleeps(0.1), range(5), workers=1, timeout=0.25))
    check(values_of(ended) == list(range(5)), f"{5 - len(values_of(ended))} of 5 timed out while they waited")


class Payload:
    """Something large that a job has in a local variable."""


@case()
async def kept_failures_hold_frames(library: Library) -> None:
    """Failures that are kept for a report do not keep the local variables of their jobs (ten thousand failed downloads
    would keep ten thousand half-read bodies), and yet their tracebacks show the lines that failed."""
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
    check(alive == 0, f"the local variables of {alive} of 4 jobs are alive")
    lines = [entry.name for one in kept if one.error for entry in traceback.extract_tb(one.error.__traceback__)]
    check(lines.count("handler") == 4, "the traceback does not show the job")


@case()
async def failure_leaves_orphans(library: Library) -> None:
    """Once the failure of one job was raised to the reader, no other job of the same map runs behind its back."""
    recorder = Recorder()

    async def handler(job: int) -> int:
        await asyncio.sleep(0.01 if job == 0 else 0.3)
        if job == 0:
            raise ValueError(job)
        return job

    _, error = await read(library.values(recorder.of(handler), range(6), workers=3))
    check(error is not None, "no error is raised")
    check(recorder.running == 0, f"{jobs(recorder.running)} still running")
    begun = len(recorder.started)
    await asyncio.sleep(0.5)
    more = len(recorder.started) - begun
    check(more == 0, f"{jobs(more, 'more job')} begun after it was raised")
