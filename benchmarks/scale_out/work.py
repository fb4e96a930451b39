"""The handlers of the processes, in a module of their own because workers import it by name."""

from __future__ import annotations

import asyncio
import time

__all__ = ["cpu", "io", "noop", "uneven"]


async def noop(job: int) -> int:
    """Do nothing, which leaves only the round trip."""
    return job


async def io(job: int) -> int:
    """Wait for 10 ms."""
    await asyncio.sleep(0.01)
    return job


async def cpu(job: int) -> int:
    """Use 1 ms of CPU time."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass
    return job


async def uneven(job: int) -> int:
    """Wait for 10 ms, or for a second in one job of a hundred."""
    await asyncio.sleep(1.0 if job % 100 == 50 else 0.01)
    return job
