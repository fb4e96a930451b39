"""Tools for the cases: their registry, and sources, handlers and readers that keep records."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks.gauntlet.adapter import Ended, Library
from benchmarks.gauntlet.verdicts import Lacks, Wrong

Ask = Callable[[Library], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        name: the name of its row.
        statement: what must hold, and why.
        ask: runs the case with one library.
        schedules: the number of random schedules, besides the plain order.
        needs: a module that must be importable.
        theme: the module that contains it.
    """

    name: str
    statement: str
    ask: Ask
    schedules: int
    needs: str | None
    theme: str


CASES: dict[str, Case] = {}


def is_possible(case: Case) -> bool:
    """Return whether the module that the case needs can be imported here."""
    return case.needs is None or find_spec(case.needs) is not None


def case(*, schedules: int = 0, needs: str | None = None) -> Callable[[Ask], Ask]:
    """Register a function as a case. Its name and docstring become the name and the statement."""

    def register(ask: Ask) -> Ask:
        name = ask.__name__.replace("_", "-")
        statement = re.sub(r"\s+", " ", ask.__doc__ or "").strip()
        CASES[name] = Case(name, statement, ask, schedules, needs, ask.__module__.rpartition(".")[2])
        return ask

    return register


class Source:
    """An iterable of numbers that counts how many were read."""

    def __init__(self, size: int, error: Exception | None = None) -> None:
        self._size = size
        self._error = error
        self.pulled = 0

    def __iter__(self) -> Any:
        return self._items()  # a generator can be iterated only once, like a cursor or a file

    def _items(self) -> Any:
        for number in range(self._size):
            self.pulled += 1
            yield number
        if self._error is not None:
            raise self._error


class Recorder:
    """Counts the jobs that start and that are running."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.running = 0
        self.peak_running = 0

    def of(self, function: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Return a handler that records the calls of a function."""

        async def call(job: Any) -> Any:
            self.started.append(job)
            self.running += 1
            self.peak_running = max(self.peak_running, self.running)
            try:
                return await function(job)
            finally:
                self.running -= 1

        return call


def sleeps(seconds: float) -> Callable[[Any], Awaitable[Any]]:
    """Return a handler that sleeps and returns its job."""

    async def sleep(job: Any) -> Any:
        await asyncio.sleep(seconds)
        return job

    return sleep


async def awaits_what_was_cancelled(job: Any) -> Any:
    """Await a task that is cancelled elsewhere: the `CancelledError` is not meant for this job."""
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task
    return job


async def read(results: AbstractAsyncContextManager[AsyncIterator[Any]]) -> tuple[list[Any], BaseException | None]:
    """Read all values, and return them with the error if one was raised."""
    values: list[Any] = []
    try:
        async with results as items:
            async for item in items:
                values.append(item)
    except (Lacks, Wrong):
        raise
    except (Exception, asyncio.CancelledError, BaseExceptionGroup) as error:
        return values, error
    return values, None


async def all_of(results: AbstractAsyncContextManager[AsyncIterator[Ended]]) -> list[Ended]:
    """Read all outcomes."""
    async with results as items:
        return [item async for item in items]


def values_of(ended: Iterable[Ended]) -> list[Any]:
    """Return the values of the jobs that succeeded, sorted."""
    return sorted(one.value for one in ended if one.error is None)


def jobs(number: int, what: str = "job") -> str:
    """Return a number of jobs, in words."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def now() -> float:
    """Return the time of the loop."""
    return asyncio.get_running_loop().time()
