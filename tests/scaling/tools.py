"""Policies, resources and observers for the tests of how a pool scales."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncpool import Decision, Event, PoolLoad
from asyncpool.events import PoolResized
from asyncpool.testing import VirtualTimeLoop
from tests.helpers import now

SOON = 0.25  # seconds: two intervals, and a little
Call = Callable[[], Awaitable[Any]]


class Own:
    """A policy of one's own, that a test answers for; it keeps what it was asked."""

    def __init__(
        self,
        answer: Callable[[PoolLoad], Any] | int = 1,
        *,
        initial_workers: int = 1,
        max_workers: int = 100,
        interval: float = 0.1,
    ) -> None:
        self.initial_workers = initial_workers
        self.max_workers = max_workers
        self.interval = interval
        self.answer: Any = answer
        self.loads: list[PoolLoad] = []
        self.started = 0

    def start(self) -> Callable[[PoolLoad], Decision]:
        self.started += 1
        return self.decide

    def decide(self, load: PoolLoad) -> Decision:
        self.loads.append(load)
        answer = self.answer(load) if callable(self.answer) else self.answer
        return Decision(answer, "as the test says") if type(answer) is int else answer

    @property
    def times(self) -> list[float]:
        return [load.now for load in self.loads]


class Sizes:
    """An observer that notes how many workers there should be, and since when."""

    def __init__(self) -> None:
        self.events: list[PoolResized] = []
        self.times: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, PoolResized):
            self.events.append(event)
            self.times.append(now())

    @property
    def sizes(self) -> list[int]:
        return [event.new for event in self.events]


class Connections:
    """Makes connections, slowly or not, and counts what was entered and left; none from `refused_from` on."""

    def __init__(self, seconds: float = 0.0, *, refused_from: float = float("inf")) -> None:
        self.seconds = seconds
        self.refused_from = refused_from
        self.asked = 0
        self.entered = 0
        self.open: list[int] = []
        self.left: list[int] = []

    def __call__(self) -> _Connection:
        return _Connection(self)


class _Connection(AbstractAsyncContextManager[int]):
    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.number = 0

    async def __aenter__(self) -> int:
        connections = self.connections
        connections.asked += 1
        await asyncio.sleep(connections.seconds)
        if connections.entered + 1 >= connections.refused_from:
            raise ConnectionRefusedError
        connections.entered += 1
        self.number = connections.entered
        connections.open.append(self.number)
        return self.number

    async def __aexit__(self, *exc: object) -> None:
        self.connections.open.remove(self.number)
        await asyncio.sleep(0)
        self.connections.left.append(self.number)


async def use(seconds: float, connection: int) -> int:
    await asyncio.sleep(seconds)
    return connection


async def fails(job: Any) -> Any:
    if isinstance(job, BaseException):
        raise job
    return job


def timers() -> list[asyncio.TimerHandle]:
    """What the loop would go on for though nobody does anything."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return [timer for timer in loop._scheduled if not timer.cancelled()]


def says_three(load: PoolLoad) -> int:
    return 3
