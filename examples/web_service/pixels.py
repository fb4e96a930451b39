"""`PixelLimit`: bounds the pixels that are decoded at the same time, and so the memory, whatever the photos are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

__all__ = ["PixelLimit"]


class PixelLimit:
    """Lets photos in while they have at most `most` pixels together, first come, first served.

    A photo that has more pixels than that by itself is let in alone.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.in_use = 0
        """The pixels of the photos that are in."""
        self._turn = asyncio.Lock()  # held by the one who is next
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def of(self, pixels: int) -> AsyncGenerator[None]:
        """Wait until there is room for this many pixels, and hold them in the block. Cancel-safe."""
        async with self._turn:
            while self.in_use and self.in_use + pixels > self._most:
                self._freed.clear()
                await self._freed.wait()
            self.in_use += pixels
        try:
            yield
        finally:
            self.in_use -= pixels
            self._freed.set()
