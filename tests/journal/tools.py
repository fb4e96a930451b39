"""What the tests of the journal share."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncpool import Journal, JournalCounts, WorkerPool
from asyncpool.journal.file import JournalFile

# For tests with many journals: a file costs more than all else in them. In memory, where the system has such a folder.
FAST_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def identity(job: Any) -> Any:
    return job


def make_journal(folder: Path, name: str = "batch.db", **options: Any) -> Journal[Any]:
    return Journal(folder / name, **{"key": identity, "durable": False, **options})


async def counts(journal: Journal[Any]) -> JournalCounts:
    return await asyncio.to_thread(journal.count)


async def echo(job: Any) -> Any:
    return job


def echo_pool(workers: int = 5, **options: Any) -> WorkerPool[Any, Any]:
    return WorkerPool(echo, workers=workers, **options)


def recorded_in(path: Path) -> set[Any]:
    with closing(sqlite3.connect(path)) as base:
        return {key for (key,) in base.execute("select key from done")}


class Runs:
    """A handler that notes each call, and does what the test has planned for a job."""

    def __init__(self, act: Callable[[Any], Any] = identity) -> None:
        self.jobs: list[Any] = []
        self._act = act

    async def __call__(self, job: Any) -> Any:
        self.jobs.append(job)
        await asyncio.sleep(0.001)
        return self._act(job)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, pages: int) -> Iterator[None]:
    """Let journals have at most this many pages: SQLite then says that the disk is full."""
    prepare = JournalFile._prepare

    def prepared(self: JournalFile, base: sqlite3.Connection) -> None:
        prepare(self, base)
        base.execute(f"pragma max_page_count = {pages}")

    with monkeypatch.context() as patch:
        patch.setattr(JournalFile, "_prepare", prepared)
        yield
