"""Retries help, and do not hurt other jobs."""

from __future__ import annotations

import asyncio
from collections import Counter

from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases.tools import all_of, case, now, values_of
from benchmarks.gauntlet.verdicts import check, leaf


@case()
async def retry_shares_state(library: Library) -> None:
    """Jobs that fail at the same time have separate attempts, although they share the retry policy."""
    attempts: Counter[int] = Counter()

    async def handler(job: int) -> int:
        attempts[job] += 1
        await asyncio.sleep(0.01)
        if job == 3 and attempts[job] == 3:
            return job
        raise ConnectionError(job)

    ended = await all_of(library.outcomes(handler, range(5), workers=3, attempts=3, backoff=0.01))
    check(len(ended) == 5, f"{len(ended)} of 5 outcomes")
    check(set(attempts.values()) == {3}, f"attempts of each job: {sorted(attempts.values())}, expected 3")
    check(values_of(ended) == [3], "the job whose last attempt succeeds is reported as failed")


@case()
async def cancellation_is_retried(library: Library) -> None:
    """A cancelled job is not retried."""
    attempts = 0

    async def handler(job: int) -> int:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(60)
        return job

    outcomes = library.outcomes(handler, [1], workers=1, attempts=3, backoff=0.01)
    reader = asyncio.create_task(all_of(outcomes))
    await asyncio.sleep(0.05)
    reader.cancel()
    await asyncio.wait([reader])
    await asyncio.sleep(0.1)
    check(attempts == 1, f"{attempts} attempts")


@case()
async def backoff_holds_the_worker(library: Library) -> None:
    """A job that waits for its next attempt does not occupy a worker, so other jobs continue."""
    order: list[str] = []

    async def handler(job: str) -> str:
        order.append(job)
        if order.count(job) == 1 and job == "fails":
            raise ConnectionError(job)
        return job

    ended = await all_of(library.outcomes(handler, ["fails", "b", "c"], workers=1, attempts=2, backoff=0.3))
    check(len(ended) == 3, f"{len(ended)} of 3 outcomes")
    check(order[:3] == ["fails", "b", "c"], f"order: {', '.join(order)}")


@case()
async def retry_after_is_undercut(library: Library) -> None:
    """If the server sets a retry delay, no attempt starts earlier, even with jitter."""
    seconds = 0.2
    first: dict[int, float] = {}
    early = 0

    async def handler(job: int) -> int:
        nonlocal early
        if job in first:
            early += now() - first[job] < 0.99 * seconds
            return job
        first[job] = now()
        raise library.retry_after(seconds) from ConnectionError("429")

    library.retry_after(seconds)  # raises Lacks
    ended = await all_of(library.outcomes(handler, range(20), workers=20, attempts=2, backoff=0.01, jitter=True))
    errors = [one.error for one in ended if one.error is not None]
    if errors:
        raise leaf(errors[0])
    check(early == 0, f"{early} of 20 start too early")
