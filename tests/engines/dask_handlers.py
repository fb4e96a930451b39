"""Handlers for clusters: in a module of their own, because workers import them by name."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from pathlib import Path

from asyncpool import current_job

variable = contextvars.ContextVar("variable", default="default")


async def context(job: int) -> tuple[str, int, int]:
    """Fail once; return a context variable, and what the job knows of itself."""
    if current_job().attempt == 1:
        raise ValueError
    return variable.get(), current_job().id, current_job().attempt


async def echo(job: int) -> int:
    return job


async def short(job: int) -> int:
    await asyncio.sleep(0.01)
    return job


def thread_name(job: int) -> str:
    return threading.current_thread().name


async def where(job: int) -> int:
    """Return the id of the process that runs the job."""
    await asyncio.sleep(0.02)
    return os.getpid()


async def noted(job: tuple[int, float, Path]) -> int:
    """Sleep; note the beginning, and the end or the cancellation. Return the id of the process."""
    number, seconds, folder = job
    with open(folder / f"{os.getpid()}.runs", "ab", buffering=0) as file:
        file.write(b"b %d\n" % number)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            file.write(b"c %d\n" % number)
            raise
        file.write(b"e %d\n" % number)
    return os.getpid()


async def poison(job: int) -> int:
    """Kill the process with job 77."""
    await asyncio.sleep(0.02)
    if job == 77:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


async def blocks(job: float) -> int:
    """Block the event loop for some seconds."""
    time.sleep(job)  # noqa: ASYNC251
    return os.getpid()


async def hangs_once(folder: Path) -> int:
    """Block the event loop for an hour, the first time. Return the id of the process that did."""
    path = folder / "pid"
    if not path.exists():
        path.write_text(str(os.getpid()))
        time.sleep(3600)  # noqa: ASYNC251
    return int(path.read_text())
