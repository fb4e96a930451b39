"""What the tests of the pool share."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import wraps
from typing import Any

import pytest

from asyncpool import WorkerPool
from asyncpool.testing import VirtualTimeLoop, run

SEEDS = range(20)

# There, asyncio refuses to begin a task while another one runs, and nest_asyncio (1.6) does not change that.
needs_nested_loops = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="no loop can run inside another one from Python 3.14 on"
)


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on virtual time."""

    @wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        run(lambda: test(*args, **kwargs))

    return call


def fuzzed(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on virtual time, in the plain order of the loop and in twenty random ones."""

    @wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        for seed in (None, *SEEDS):
            try:
                run(lambda: test(*args, **kwargs), seed=seed)
            except BaseException as error:
                error.add_note(f"seed={seed}")
                raise

    return call


def now() -> float:
    return asyncio.get_running_loop().time()


async def echo(job: Any) -> Any:
    return job


async def sleeper(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def ignores_cancel(seconds: float) -> None:
    """Go on for some seconds, whoever cancels."""
    end = now() + seconds
    while now() < end:
        try:
            await asyncio.sleep(end - now())
        except asyncio.CancelledError:
            pass


def compute(seconds: float) -> None:
    """Let time go by while the loop stands still, as code that computes does."""
    loop: Any = asyncio.get_running_loop()
    loop._now += seconds
    loop._clock_resolution = math.ulp(loop._now)


TICK = 2.0**-20


class TickingLoop(VirtualTimeLoop):
    """A virtual clock that goes on by a tick whenever it is read, so a time can pass between any two readings."""

    def time(self) -> float:
        self._now += TICK
        self._clock_resolution = math.ulp(self._now)
        return self._now


async def later(*items: Any, seconds: float = 0.0) -> AsyncIterator[Any]:
    """An async source; `seconds` pass before each item."""
    for item in items:
        await asyncio.sleep(seconds)
        yield item


class Source:
    """A plain iterator that records what was pulled, and whether it was closed."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self.pulled: list[Any] = []
        self.closed = False

    def sync(self) -> Any:
        try:
            for item in self.items:
                self.pulled.append(item)
                yield item
        finally:
            self.closed = True

    async def later(self) -> Any:
        try:
            for item in self.items:
                self.pulled.append(item)
                yield item
                await asyncio.sleep(0)
        finally:
            self.closed = True


def assert_conserved(pool: WorkerPool[Any, Any]) -> None:
    """The first law: every accepted job is in one place."""
    stats = pool.stats
    places = stats.queued + stats.delayed + stats.running + stats.succeeded + stats.failed + stats.cancelled
    assert stats.submitted == places, stats


def cancel_soon(task: asyncio.Task[Any], seconds: float) -> None:
    """Cancel a task after some seconds."""
    asyncio.get_running_loop().call_later(seconds, task.cancel)
