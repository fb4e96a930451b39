"""The machinery of the scenarios: the registry, what they draw from the seed, and how one of them is run.

A scenario is an async function that uses a pool in a way that can go wrong, and checks the laws at its end. Its numbers
(how many workers, who is cancelled when) come from the seed too. The modules beside this one register theirs when they
are imported; test_schedules.py imports them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any

from asyncpool import Adaptive, AutoScale, Decision, FunctionPolicy, PoolLoad, Retry, WorkerPool
from asyncpool._chance import chance
from asyncpool._core import workers
from asyncpool.scaling import Decide
from tests.laws.witness import FACTORIES, Whim, Witness, busy

Scenario = Callable[[Witness, Random], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


async def turns(random: Random, most: int) -> None:
    """Let some turns of the loop go by."""
    for _ in range(random.randint(0, most)):
        await asyncio.sleep(0)


def sizes(random: Random) -> dict[str, Any]:
    """A small pool: that is where things meet. Many of them scale."""
    workers = policies(random) if random.random() < 0.35 else random.choice((1, 1, 2, 3))
    return {"workers": workers, "queue_size": random.choice((0, 1, 2, 5))}


def policies(random: Random, *, least: int = 0, most: int = 4) -> Any:
    """A scaling policy of one kind or another."""
    most = random.randint(max(1, least), most)
    least = random.randint(least, min(most, least + 1))
    interval = random.choice((0.002, 0.1, 0.1))
    match random.randint(0, 6):
        case 0 if not least:
            return busy
        case 1:
            return whim(random, most)
        case 2:
            return Adaptive(
                max(1, least),
                most,
                interval=interval,
                overload=ValueError,
                idle_timeout=random.choice((0.0, 0.003, 0.03, 30.0)),
            )
        case 3:
            return FunctionPolicy(busy, most)
        case _:
            return AutoScale(
                least,
                most,
                backlog_per_worker=random.choice((0.5, 1, 5)),
                interval=interval,
                idle_timeout=random.choice((0.0, 0.003, 0.03, 30.0)),
                max_wait=random.choice((0.002, 0.1, None)),
            )


def whim(random: Random, most: int) -> Whim:
    """A policy that answers at random."""
    answers = [random.randint(0, most + 1) for _ in range(random.randint(1, 12))]
    when = random.choice(
        (
            {},
            {},
            {"ask_again_in": 0.0},
            {"ask_again_in": 0.5},
            {"ask_again_after_failures": 1},
            {"ask_again_at_backlog": 1},
        )
    )
    return Whim(most, *answers, interval=random.choice((0.002, 0.1, 0.1)), **when)


def any_size(random: Random) -> Any:
    """What to resize a pool to."""
    return policies(random) if random.random() < 0.4 else random.randint(1, 4)


def patience(random: Random, **more: Any) -> Retry:
    """A retry whose pauses take no time, little time, or enough for all else to happen."""

    class Repeatable(Retry):
        """Draws its jitter from the seed."""

        def delay(self, attempt: int, error: BaseException, _: Random) -> float | None:
            return Retry.delay(self, attempt, error, random)

    backoff = random.choice((0.0, 0.004, 0.3))
    return Repeatable(**{"attempts": 3, "backoff": backoff, "jitter": random.random() < 0.3, **more})


async def pass_time(random: Random) -> None:
    """Let some turns of the loop go by, or some time."""
    if random.random() < 0.6:
        await turns(random, 4)
    else:
        await asyncio.sleep(random.choice((0.001, 0.004, 0.02, 0.3)))


async def all_done(pool: WorkerPool[Any, Any]) -> None:
    """Wait until the pool has nothing to do: whatever is delayed is due at some time."""
    async with asyncio.timeout(600.0):
        await pool.join()
    assert (pool.stats.queued, pool.stats.delayed, pool.stats.running) == (0, 0, 0)


async def read_all(stream: Any) -> list[Any]:
    return [outcome async for outcome in stream]


class Rogue:
    """A scaling policy of the user's own, which may do anything when it is asked; for a while, and then it is tame."""

    initial_workers = 1

    def __init__(self, act: Callable[[PoolLoad], Any], *, max_workers: int = 4, interval: float = 0.003) -> None:
        self._act = act
        self.max_workers = max_workers
        self.interval = interval

    def start(self) -> Decide:
        left = 30

        def decide(load: PoolLoad) -> Any:
            nonlocal left
            left -= 1
            return self._act(load) if left > 0 else Decision(2)

        return decide


class Doors:
    """Resources that take turns and time to enter. Some cannot be, and some are though nobody wants them any more."""

    def __init__(self, random: Random, *, failing: float = 0.0, slow: float = 0.0) -> None:
        self.held = 0
        self.entered = 0
        self._random = random
        self._failing = failing
        self._slow = slow

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        await turns(self._random, 2)
        if self._random.random() < self._slow:
            try:
                await asyncio.sleep(self._random.choice((0.001, 0.01, 0.3)))
            except asyncio.CancelledError:
                if self._random.random() < 0.7:
                    raise
        if self.entered and self._random.random() < self._failing:  # the first is start()'s
            raise OSError("no connection")
        self.entered += 1
        self.held += 1
        try:
            yield self.entered
        finally:
            try:
                await turns(self._random, 2)
            finally:
                self.held -= 1


async def program(name: str, mode: str, seed: int | None) -> None:
    factory = FACTORIES[mode]
    if factory is not None:
        asyncio.get_running_loop().set_task_factory(factory)
    random = Random(seed or 0)
    chance.seed(seed or 0)
    with workers_made_when_needed(seed is not None and seed % 4 == 3):
        await SCENARIOS[name](Witness(random), random)


@contextmanager
def workers_made_when_needed(is_on: bool) -> Iterator[None]:
    """Have pools make one worker when they open, and each other when it is needed: these pools are small."""
    usual = workers._FIRST_WORKERS
    workers._FIRST_WORKERS = 1 if is_on else usual
    try:
        yield
    finally:
        workers._FIRST_WORKERS = usual
