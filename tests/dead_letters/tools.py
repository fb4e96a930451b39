"""What the tests of dead letters share: letters, stores, and a pool that takes replayed jobs."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from asyncpool import DeadLetter, DeadLetterFile, DeadLetters, PoolClosed

ROOT = Path(__file__).resolve().parents[2]

Store: TypeAlias = DeadLetters[Any] | DeadLetterFile[Any]
MakeStore: TypeAlias = Callable[[], Store]


def letter(job: Any = 1, **options: Any) -> DeadLetter[Any]:
    fields = {"error_type": "ValueError", "error": "no", "attempts": 1, "first_at": 1.5, "last_at": 2.25, "pool": "p"}
    return DeadLetter(job=job, **(fields | options))


def jobs(store: Any) -> list[Any]:
    return [letter.job for letter in store]


def fill(store: Any, jobs: Any) -> Any:
    for job in jobs:
        store.record(letter(job))
    return store


def read(path: Path) -> DeadLetterFile[Any]:
    """The file as tomorrow's process sees it."""
    return DeadLetterFile(path)


class FakePool:
    """Accepts jobs while there is room, and then makes submitters wait."""

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self.accepted: list[Any] = []
        self.waiting_submitters = 0
        self.closed = False
        self.news = asyncio.Event()

    async def submit(self, job: Any) -> None:
        self.waiting_submitters += 1
        try:
            while len(self.accepted) >= self.room and not self.closed:
                await self.news.wait()
        finally:
            self.waiting_submitters -= 1
        if self.closed:
            raise PoolClosed("the pool is closed")
        self.accepted.append(job)

    def open(self, room: float = math.inf) -> None:
        self.room = room
        self._tell()

    def close(self) -> None:
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()


async def fails(job: Any) -> None:
    raise ValueError(f"no {job}")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def python(code: str, *arguments: Any) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
