"""What all stores of dead letters have in common: watching, and replaying.

What a letter is, is `letter.py`. The stores are `memory.py` and `file.py`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from asyncpool._checks import check_count, check_function
from asyncpool.dead_letters.letter import DeadLetter
from asyncpool.errors import StreamClosed

__all__ = [
    "BATCH",
    "DeadLetterStore",
    "DeadLetterWatch",
    "Submitter",
]

_log = logging.getLogger("asyncpool")

JobT = TypeVar("JobT")
JobT_contra = TypeVar("JobT_contra", contravariant=True)

BATCH = 64
"""After so many letters a replay gives the loop a turn, though the pool had room for all of them."""


class Submitter(Protocol[JobT_contra]):
    """Where letters are replayed to: a `WorkerPool`, a group, whatever has their `submit`."""

    def submit(self, job: JobT_contra, /) -> Awaitable[object]:
        """Accept a job, or raise; cancelled while it waits for room, it has not accepted it."""
        ...


# -- Watching ----------------------------------------------------------------------------------------------------------


class DeadLetterWatch(AsyncIterator[DeadLetter[JobT]]):
    """The letters recorded since the call of `watch()`, for one reader: `async for letter in letters.watch()`.

    Dropping it, `aclose()` and the end of the iteration all end it.
    """

    def __init__(self, reading: set[DeadLetterWatch[Any]], max_unseen: int) -> None:
        self._reading = reading
        self._max_unseen = max_unseen
        self._unseen: deque[DeadLetter[JobT]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._is_over = False
        self._is_cut = False
        self.skipped = 0
        """How many letters were passed over because the reader was `max_unseen` letters behind."""

    def __aiter__(self) -> DeadLetterWatch[JobT]:
        return self

    async def __anext__(self) -> DeadLetter[JobT]:
        """Return the next letter; waits for it. Cancel-safe: nothing is lost, and the watch stays open.

        Raises:
            StopAsyncIteration: All pools have closed, and all letters are read.
            StreamClosed: The watch was closed before its end, or another reader waits already.
        """
        if self._reader is not None:
            raise StreamClosed("a watch of dead letters is read by one reader, and another waits already")
        while not self._unseen:
            if self._is_cut:
                raise StreamClosed("this watch of dead letters was closed before its end")
            if self._is_over:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            # The store knows a watch weakly, and the loop its tasks: somebody has to hold a task that waits here.
            self._reading.add(self)
            try:
                await self._reader
            finally:
                self._reader = None
                self._reading.discard(self)
        return self._unseen.popleft()

    async def aclose(self) -> None:
        """End the watch: what is unread is forgotten here, and stays in the store. Never waits; safe to repeat."""
        self._is_cut = self._is_cut or bool(self._unseen) or not self._is_over
        self._unseen.clear()
        self._wake()

    def offer(self, letter: DeadLetter[JobT]) -> None:
        """Take a letter in. For the store."""
        if self._is_cut:
            return
        if len(self._unseen) == self._max_unseen:
            self._unseen.popleft()
            self.skipped += 1
        self._unseen.append(letter)
        self._wake()

    def finish(self) -> None:
        """Say that there will be no more letters. For the store."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class DeadLetterStore(ABC, Generic[JobT]):
    """What the stores have in common: who watches, and how a letter is submitted again.

    A store may be shared by several pools on one loop, and be used by one after the other, also on another loop.
    """

    def __init__(self) -> None:
        self._watches: WeakSet[DeadLetterWatch[JobT]] = WeakSet()
        self._reading: set[DeadLetterWatch[Any]] = set()
        self._open_pools: list[str] = []
        self._was_open = False

    def pool_opened(self, name: str, /) -> None:
        """Note that a pool writes here. Pools do it themselves."""
        self._was_open = True
        self._open_pools.append(name)

    def pool_closed(self, name: str, /) -> None:
        """Note that a pool writes here no more; after the last one, watches end. Pools do it themselves."""
        if name in self._open_pools:
            self._open_pools.remove(name)
            if not self._open_pools:
                for watch in self._watches:
                    watch.finish()
                self._watches.clear()

    def watch(self, max_unseen: int = 1000) -> DeadLetterWatch[JobT]:
        """Return an async iterator over the letters that are recorded from this call on, as they come.

        It ends when all pools that write here have closed, after the letters recorded by then; at once, if that was so
        before this call; if there was no pool yet, it waits for the first. To watch over pools that come one after the
        other, be one yourself: `pool_opened("all")` before the first, `pool_closed("all")` after the last.

        A slow reader slows no pool: when `max_unseen` letters are unread, the oldest unread one is passed over, and
        counted in `skipped`. It is still in the store.

        Raises:
            TypeError, ValueError: `max_unseen` is not an int of at least 1.
        """
        watch = DeadLetterWatch[JobT](self._reading, check_count("max_unseen", max_unseen, least=1))
        if self._was_open and not self._open_pools:
            watch.finish()
        else:
            self._watches.add(watch)
        return watch

    def _show(self, letter: DeadLetter[JobT]) -> None:
        if self._watches:
            for watch in self._watches:
                watch.offer(letter)

    async def _submit_again(
        self,
        pool: Submitter[JobT],
        where: Callable[[DeadLetter[JobT]], bool] | None,
        letters: Iterable[tuple[Hashable, DeadLetter[JobT]]],
    ) -> int:
        """Submit the jobs of those letters that are meant, are still there, and are in the hands of no other replay."""
        if where is not None:
            check_function("where", where)  # what has to be awaited is always true: all would be submitted
        count = 0
        for key, letter in letters:
            if not self._claim(key):
                continue
            accepted = False
            try:
                if where is None or where(letter):
                    await pool.submit(letter.job)
                    accepted = True
                    count += 1
            finally:
                self._release(key, accepted)
        return count

    @abstractmethod
    def _claim(self, key: Any) -> bool:
        """Take a letter in hand, so that no other replay does; False if it is gone, or in hand already."""

    @abstractmethod
    def _release(self, key: Any, accepted: bool) -> None:
        """Let a letter go that was in hand: it leaves the store if its job was accepted, and else it stays."""
