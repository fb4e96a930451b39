"""What the processes are given to do: in a module of its own, because workers import it by name."""

from __future__ import annotations

import asyncio
import time

__all__ = ["cpu", "io", "noop", "uneven"]


async def noop(job: int) -> int:
    """Do nothing: what is measured is the way there and back."""
    return job


async def io(job: int) -> int:
    """Wait for 10 ms."""
    await asyncio.sleep(0.01)
    return job


async def cpu(job: int) -> int:
    """Use 1 ms of CPU, whatever else the machine does."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass
    return job


async def uneven(job: int) -> int:
    """Wait for 10 ms, and one job of a hundred for a second."""
    await asyncio.sleep(1.0 if job % 100 == 50 else 0.01)
    return job
