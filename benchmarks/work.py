"""The jobs of the contenders, and a reader that checks their values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.rivals import RIVALS, Handler

__all__ = ["JOBS", "LostResults", "Reader", "do", "do_nothing", "missing", "yield_once"]


class LostResults(Exception):
    """The values that came out are not those of the jobs that went in."""


async def do_nothing(job: int) -> int:
    """Do nothing, which leaves only the overhead."""
    return job


async def yield_once(job: int) -> int:
    """Yield to the loop once, as every job that waits does."""
    await asyncio.sleep(0)
    return job


JOBS = {"no-op": do_nothing, "yields once": yield_once}


class Reader:
    """Counts and adds up the values, to check that all have arrived."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0

    def __call__(self, value: Any) -> None:
        self.count += 1
        self.total += value

    def check(self, jobs: int) -> None:
        """Raise `LostResults` unless each number below `jobs` has arrived once."""
        if (self.count, self.total) != (jobs, jobs * (jobs - 1) // 2):
            raise LostResults(f"{jobs:,} jobs went in, {self.count:,} values came out, and their sum is {self.total:,}")


async def do(contender: str, handler: Handler, jobs: Iterable[Any], count: int, workers: int) -> float:
    """Run jobs that return the numbers below `count`, in any order, and return the seconds it takes.

    Raises:
        LostResults: Not every number came out exactly once.
    """
    reader = Reader()
    began = time.perf_counter()
    await RIVALS[contender].run(handler, jobs, workers, reader)
    seconds = time.perf_counter() - began
    reader.check(count)
    return seconds


def missing(contender: str) -> str | None:
    """Return what a rival needs that is not installed, as a phrase."""
    return RIVALS[contender].missing
