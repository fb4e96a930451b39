"""What all stores of dead letters have in common: watching and replaying.

The letters are in `letter.py`, the stores in `memory.py` and `file.py`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from asyncpool._checks import check_count
from asyncpool.dead_letters.letter import DeadLetter
from asyncpool.errors import StreamClosed

__all__ = [
    "BATCH",
    "DeadLetterStore",
    "DeadLetterWatch",
    "Submitter",
]

JobT = TypeVar("JobT")
JobT_contra = TypeVar("JobT_contra", contravariant=True)

BATCH = 64
"""After this many letters a replay lets other tasks run, even if the pool has room for all letters."""


class Submitter(Protocol[JobT_contra]):
    """The target of a replay: a `WorkerPool`, a group, or any object with such a `submit`."""

    def submit(self, job: JobT_contra, /) -> Awaitable[object]:
        """Accept a job, or raise. If it is cancelled while it waits for room, it must not have accepted the job."""
        ...


# -- Watching ----------------------------------------------------------------------------------------------------------


class _Feed(Generic[JobT]):
    """The unread letters of one watch: the store puts letters in, and the watch takes them out.

    Args:
        reading: The feeds of the store in which a reader waits.
        max_unseen: How many letters it keeps; a further letter replaces the oldest.
    """

    def __init__(self, reading: set[_Feed[Any]], max_unseen: int) -> None:
        self._reading = reading
        self._max_unseen = max_unseen
        self._unseen: deque[DeadLetter[JobT]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._is_finished = False
        self._is_closed = False
        self.skipped = 0

    def put(self, letter: DeadLetter[JobT]) -> None:
        """Add a letter and wake the reader; does nothing if the feed is closed."""
        if self._is_closed:
            return
        if len(self._unseen) == self._max_unseen:
            self._unseen.popleft()
            self.skipped += 1
        self._unseen.append(letter)
        self._wake()

    def finish(self) -> None:
        """Let the reader end after the letters that are unread now: no more will be put in."""
        self._is_finished = True
        self._wake()

    async def take(self) -> DeadLetter[JobT]:
        """Wait for the next letter and return it. Cancel-safe: no letter is lost.

        Raises:
            StopAsyncIteration: The feed is finished, and all letters are taken.
            StreamClosed: The feed was closed before that, or another reader is already waiting.
        """
        if self._reader is not None:
            raise StreamClosed("a watch of dead letters has one reader, and another task is already waiting for it")
        while not self._unseen:
            if self._is_closed:
                raise StreamClosed("this watch of dead letters was closed before its end")
            if self._is_finished:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            # The store has only a weak reference to a feed, and the loop to a task: without a strong reference here, a
            # task that waits for its letter could be garbage-collected.
            self._reading.add(self)
            try:
                await self._reader
            finally:
                self._reader = None
                self._reading.discard(self)
        return self._unseen.popleft()

    def close(self) -> None:
        """Drop the unread letters and wake the reader."""
        self._is_closed = self._is_closed or bool(self._unseen) or not self._is_finished
        self._unseen.clear()
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class DeadLetterWatch(AsyncIterator[DeadLetter[JobT]]):
    """The letters recorded since the call of `watch()`, for one reader: `async for letter in letters.watch()`.

    It ends with the iteration, by `aclose()`, or when the last reference to it is dropped.
    """

    def __init__(self, feed: _Feed[JobT]) -> None:
        self._feed = feed

    @property
    def skipped(self) -> int:
        """How many letters were skipped because the reader was `max_unseen` letters behind."""
        return self._feed.skipped

    def __aiter__(self) -> DeadLetterWatch[JobT]:
        return self

    async def __anext__(self) -> DeadLetter[JobT]:
        """Wait for the next letter and return it. Cancel-safe: no letter is lost, and the watch stays open.

        Raises:
            StopAsyncIteration: All pools have closed, and all letters are read.
            StreamClosed: The watch was closed before its end, or another reader is already waiting.
        """
        return await self._feed.take()

    async def aclose(self) -> None:
        """End the watch and skip its unread letters, which stay in the store. Never waits, and can be repeated."""
        self._feed.close()


class DeadLetterStore(ABC, Generic[JobT]):
    """What the stores have in common: watches, and submitting the job of a letter again.

    Several pools on one loop can share a store. Pools that run one after the other can use it on different loops.
    """

    def __init__(self) -> None:
        # Weak: a watch has its feed, so dropping the watch ends it.
        self._feeds: WeakSet[_Feed[JobT]] = WeakSet()
        self._reading: set[_Feed[Any]] = set()
        self._open_pools: list[str] = []
        self._was_open = False

    def pool_opened(self, name: str, /) -> None:
        """Register a pool that records letters here. Pools call this when they start."""
        self._was_open = True
        self._open_pools.append(name)

    def pool_closed(self, name: str, /) -> None:
        """Remove a pool that records no more letters here; after the last one, watches end. Pools call this."""
        if name in self._open_pools:
            self._open_pools.remove(name)
            if not self._open_pools:
                for feed in self._feeds:
                    feed.finish()
                self._feeds.clear()

    def watch(self, max_unseen: int = 1000) -> DeadLetterWatch[JobT]:
        """Return an async iterator over the letters that are recorded from this call on.

        It ends when all pools that record letters here have closed, after the letters recorded until then. If they had
        already closed before this call, it ends at once; if no pool has started yet, it waits for the first. To watch
        pools that run one after the other, register a pool of your own around them: `pool_opened("all")` before the
        first, `pool_closed("all")` after the last.

        A slow reader does not slow the pools: while `max_unseen` letters are unread, each new letter makes the watch
        skip the oldest unread one. `skipped` counts these letters; they are still in the store.

        Args:
            max_unseen: How many letters the watch keeps for its reader; at least 1.

        Raises:
            TypeError, ValueError: `max_unseen` is not an int of at least 1.
        """
        feed = _Feed[JobT](self._reading, check_count("max_unseen", max_unseen, least=1))
        if self._was_open and not self._open_pools:
            feed.finish()
        else:
            self._feeds.add(feed)
        return DeadLetterWatch(feed)

    def _notify_watches(self, letter: DeadLetter[JobT]) -> None:
        if self._feeds:
            for feed in self._feeds:
                feed.put(letter)

    async def _submit_again(
        self,
        pool: Submitter[JobT],
        where: Callable[[DeadLetter[JobT]], bool] | None,
        letters: Iterable[tuple[Hashable, DeadLetter[JobT]]],
    ) -> int:
        """Submit the jobs of the letters for which `where` is true, are still stored, and are not in another replay."""
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
        """Reserve a letter for this replay; return False if it is gone, or reserved by another replay."""

    @abstractmethod
    def _release(self, key: Any, accepted: bool) -> None:
        """Release a reserved letter: remove it from the store if its job was accepted, otherwise keep it."""
