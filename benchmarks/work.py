"""What the contenders are given to do, and who reads what comes out and counts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from benchmarks.rivals import RIVALS, Handler

__all__ = ["JOBS", "LostResults", "Reader", "do", "do_nothing", "missing", "yield_once"]


class LostResults(Exception):
    """Not all that went in came out, or something else did."""


async def do_nothing(job: int) -> int:
    """The least that a job can do: what is measured is what surrounds it."""
    return job


async def yield_once(job: int) -> int:
    """A job that gives the loop its turn, as everything does that waits for something."""
    await asyncio.sleep(0)
    return job


JOBS = {"no-op": do_nothing, "yields once": yield_once}


class Reader:
    """Takes the values, as numbers, and knows whether all have come."""

    __slots__ = ("count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0

    def __call__(self, value: Any) -> None:
        self.count += 1
        self.total += value

    def check(self, jobs: int) -> None:
        """Raise `LostResults` unless each number below `jobs` has come once."""
        if (self.count, self.total) != (jobs, jobs * (jobs - 1) // 2):
            raise LostResults(f"{jobs:,} jobs went in, {self.count:,} values came out, and their sum is {self.total:,}")


async def do(contender: str, handler: Handler, jobs: Iterable[Any], count: int, workers: int) -> float:
    """Let a rival do jobs that return the numbers below `count`, in any order, and return the seconds it takes.

    Raises:
        LostResults: Not all of them came out, once each.
    """
    reader = Reader()
    began = time.perf_counter()
    await RIVALS[contender].run(handler, jobs, workers, reader)
    seconds = time.perf_counter() - began
    reader.check(count)
    return seconds


def missing(contender: str) -> str | None:
    """Return what a rival needs that is not installed, as a sentence."""
    return RIVALS[contender].missing
