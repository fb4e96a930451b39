"""The cost of a job, step by step: how much is isolation, and how much the pool."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, ContextVar, copy_context
from itertools import islice
from typing import Any

from asyncpool import Succeeded
from benchmarks.harness import Case, Figures, Question, Settings
from benchmarks.rivals import REFERENCE, RIVALS, Handler
from benchmarks.work import JOBS, Reader

__all__ = ["PIECES"]

_AT_ONCE = 100
_JOB: ContextVar[object] = ContextVar("_JOB")
_HAS_EAGER_TASKS = sys.version_info >= (3, 12)
_Task: Any = asyncio.Task  # Any: type checkers accept `eager_start` only from 3.12


class _Batches:
    """Runs jobs in tasks of their own, in batches, to measure the work per job.

    This is the cheapest way to run them: a batch is created in one go, and the next one follows when all are done, so
    there is no queue and no limit to maintain.
    """

    def __init__(self, handler: Handler, seen: Callable[[Any], object]) -> None:
        self._handler = handler
        self._seen = seen
        self._left = 0
        self._all_done: asyncio.Future[None] | None = None

    async def run(self, jobs: Iterable[Any], start: Callable[[Any], object]) -> None:
        iterator = iter(jobs)
        loop = asyncio.get_running_loop()
        while batch := list(islice(iterator, _AT_ONCE)):
            self._left, self._all_done = len(batch), loop.create_future()
            for job in batch:
                start(job)
            await self._all_done

    def _ended(self, value: Any) -> None:
        self._seen(value)
        self._left -= 1
        if not self._left and self._all_done is not None:
            self._all_done.set_result(None)

    def in_a_task(self, job: Any) -> None:
        """Start a job in a task, eager if possible."""
        _start(self._bare(job), None)

    def in_a_context(self, job: Any) -> None:
        """And in a context of its own that knows the job."""
        _start(self._known(job), copy_context())

    def with_an_outcome(self, job: Any) -> None:
        """And with timestamps and an outcome."""
        _start(self._timed(job, time.monotonic()), copy_context())

    async def _bare(self, job: Any) -> None:
        try:
            value = await self._handler(job)
        except BaseException as error:
            value = error
        self._ended(value)

    async def _known(self, job: Any) -> None:
        _JOB.set(job)
        await self._bare(job)

    async def _timed(self, job: Any, accepted: float) -> None:
        try:
            _JOB.set(job)
            began = time.monotonic()
            value = await self._handler(job)
            outcome = Succeeded(job, value, 1, 1, began - accepted, time.monotonic() - began)
        except BaseException as error:
            self._ended(error)
        else:
            self._ended(outcome.value)


def _start(attempt: Any, context: Context | None) -> None:
    if _HAS_EAGER_TASKS:
        loop = asyncio.get_running_loop()
        _Task(attempt, loop=loop, name="job", context=context, eager_start=True)
    else:
        _Task(attempt, name="job", context=context)


async def _awaited(handler: Handler, jobs: Iterable[Any], seen: Callable[[Any], object]) -> None:
    for job in jobs:
        seen(await handler(job))


_PIECES = {
    "awaited one after another": None,
    "each in a task": _Batches.in_a_task,
    "and in its own context": _Batches.in_a_context,
    "and with timestamps and an outcome": _Batches.with_an_outcome,
}


def _cases(settings: Settings) -> Sequence[Case]:
    jobs = settings.count(100_000)
    return [
        Case(
            name=f"{kind}, {_AT_ONCE} at a time, {jobs:,} jobs",
            contenders=dict.fromkeys((REFERENCE, *_PIECES, "pool.outcomes"), 5),
            parameters={"kind": kind, "jobs": jobs},
        )
        for kind in JOBS
    ]


async def _measure(contender: str, *, kind: str, jobs: int) -> Figures:
    handler = JOBS[kind]
    reader = Reader()
    began = time.perf_counter()
    if contender not in _PIECES:
        await RIVALS[contender].run(handler, range(jobs), _AT_ONCE, reader)
    elif (start := _PIECES[contender]) is None:
        await _awaited(handler, range(jobs), reader)
    else:
        batches = _Batches(handler, reader)
        await batches.run(range(jobs), start.__get__(batches))
    seconds = time.perf_counter() - began
    reader.check(jobs)
    return {"µs/job": seconds / jobs * 1e6}


PIECES = Question(
    name="pieces",
    asks="Where does the cost come from?",
    title="Cost, step by step",
    cases=_cases,
    measure=_measure,
    are_rivals=False,
    method=(
        "Each row adds something to the row above. A task and a context of its own isolate a job. The pool adds a "
        "bounded queue, a window, statistics, and checks for stop, pause, resize and deadlines. The rows above it run "
        "jobs in batches of a hundred, and maintain no limit."
    ),
)
