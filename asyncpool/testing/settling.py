"""Wait until every other task waits, instead of sleeping for a guessed time.

How a `VirtualTimeLoop` knows that is in `virtual_time.py`.
"""

from __future__ import annotations

import asyncio

from asyncpool.testing.virtual_time import VirtualTimeLoop

__all__ = ["settle"]


async def settle(turns: int = 10_000) -> None:
    """Wait until every other task waits for something that has not happened yet. Takes no virtual time.

    Exact on a `VirtualTimeLoop`: when `settle` returns, no callback is ready, no timer is due, no I/O is ready,
    and no step is still delayed by a seed. Several tasks can settle at the same time. `settle` does not wait for
    threads. On other loops it only lets min(turns, 100) loop iterations pass, which is enough for short chains
    of tasks. Cancel-safe.

    Args:
        turns: The maximum number of loop iterations.

    Raises:
        RuntimeError: A task was still busy after `turns` iterations of a `VirtualTimeLoop`.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        return await loop.settle(turns)
    for _ in range(min(turns, 100)):
        await asyncio.sleep(0)
