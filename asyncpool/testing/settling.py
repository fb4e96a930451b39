"""Wait until nobody has anything to do, without waiting."""

from __future__ import annotations

import asyncio

from asyncpool.testing.virtual_time import VirtualTimeLoop

__all__ = ["settle"]


async def settle(turns: int = 10_000) -> None:
    """Wait until every other task waits for something that is not there yet. Takes no virtual time.

    Exact on a `VirtualTimeLoop`: nothing is ready, due or readable any more, and no step delayed by a seed.
    Several tasks may settle at once; threads at work are not waited for. On other loops it only lets
    min(turns, 100) turns of the loop go by, which is enough for short chains of tasks. Cancel-safe.

    Raises:
        RuntimeError: some task was still busy after that many turns of a `VirtualTimeLoop`.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        return await loop.settle(turns)
    for _ in range(min(turns, 100)):
        await asyncio.sleep(0)
