"""Pools with some load, for the tests in a browser and for the picture in the documentation."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from asyncpool import AutoScale, DeadLetters, RateLimit, Retry, WorkerPool

__all__ = ["Mail", "scene"]


@dataclass(frozen=True)
class Mail:
    """A job of the scene."""

    id: int
    to: str


class Bounced(Exception):
    """The server does not know the address."""


async def _send(mail: Mail, rng: random.Random) -> None:
    await asyncio.sleep(rng.lognormvariate(-1.7, 0.45))
    chance = rng.random()
    if chance < 0.006:
        raise Bounced(f"550 mailbox {mail.to} is unknown")
    if chance < 0.03:
        raise ConnectionResetError(104, "Connection reset by peer")
    if chance < 0.032:
        await asyncio.sleep(12)


@asynccontextmanager
async def scene(seed: int = 1) -> AsyncGenerator[list[WorkerPool[Any, Any]]]:
    """Run three pools with a load that comes and goes."""
    rng = random.Random(seed)
    letters: DeadLetters[Mail] = DeadLetters()

    async def send(mail: Mail) -> None:
        await _send(mail, rng)

    async def resize(name: str) -> None:
        await asyncio.sleep(rng.uniform(0.05, 0.3))

    mails: WorkerPool[Mail, None] = WorkerPool(
        send,
        workers=AutoScale(min_workers=4, max_workers=40),
        queue_size=400,
        retry=Retry(attempts=2, backoff=0.5, on=OSError),
        limiter=RateLimit(200, burst=10),
        timeout=10.0,
        dead_letters=letters,
        name="campaign",
    )
    thumbnails: WorkerPool[str, None] = WorkerPool(resize, workers=8, name="thumbnails")
    reports: WorkerPool[str, None] = WorkerPool(resize, workers=2, name="reports")

    async def bring() -> None:
        number = 0
        for tick in count():
            for _ in range(round(rng.uniform(0.4, 1.6) * (9 + 6 * math.sin(tick / 120)))):
                number += 1
                await mails.submit(Mail(number, f"user{number}@example.com"))
            await asyncio.sleep(0.1)

    async def photos() -> None:
        for number in count():
            await thumbnails.submit(f"photo-{number}.jpg")
            await asyncio.sleep(rng.uniform(0.0, 0.08))

    async with AsyncExitStack() as stack:
        pools: list[WorkerPool[Any, Any]] = [mails, thumbnails, reports]
        for pool in pools:
            await stack.enter_async_context(pool)
        reports.pause()
        await reports.submit("report-1")
        tasks = [asyncio.create_task(bring()), asyncio.create_task(photos())]
        try:
            yield pools
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for pool in pools:
                pool.cancel()
