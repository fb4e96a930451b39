"""Where dead letters are kept: what all stores have, watching and replaying, and the store in memory.

What a letter is, and who else may keep them, is `letters.py`; how letters get here, `_letterbox.py`. The store that
outlives its process is `dead_letter_file.py`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

from asyncpool._checks import check_count, check_function
from asyncpool.errors import StreamClosed
from asyncpool.letters import DeadLetter, safe_text

__all__ = [
    "BATCH",
    "DeadLetters",
    "LetterStore",
    "LetterWatch",
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


class LetterWatch(AsyncIterator[DeadLetter[JobT]]):
    """The letters recorded since the call of `watch()`, for one reader: `async for letter in letters.watch()`.

    Dropping it, `aclose()` and the end of the iteration all end it.
    """

    def __init__(self, reading: set[LetterWatch[Any]], max_unseen: int) -> None:
        self._reading = reading
        self._max_unseen = max_unseen
        self._unseen: deque[DeadLetter[JobT]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._is_over = False
        self._is_cut = False
        self.skipped = 0
        """How many letters were passed over because the reader was `max_unseen` letters behind."""

    def __aiter__(self) -> LetterWatch[JobT]:
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


class LetterStore(ABC, Generic[JobT]):
    """What the stores have in common: who watches, and how a letter is submitted again.

    A store may be shared by several pools on one loop, and be used by one after the other, also on another loop.
    """

    def __init__(self) -> None:
        self._watches: WeakSet[LetterWatch[JobT]] = WeakSet()
        self._reading: set[LetterWatch[Any]] = set()
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

    def watch(self, max_unseen: int = 1000) -> LetterWatch[JobT]:
        """Return an async iterator over the letters that are recorded from this call on, as they come.

        It ends when all pools that write here have closed, after the letters recorded by then; at once, if that was so
        before this call; if there was no pool yet, it waits for the first. To watch over pools that come one after the
        other, be one yourself: `pool_opened("all")` before the first, `pool_closed("all")` after the last.

        A slow reader slows no pool: when `max_unseen` letters are unread, the oldest unread one is passed over, and
        counted in `skipped`. It is still in the store.

        Raises:
            TypeError, ValueError: `max_unseen` is not an int of at least 1.
        """
        watch = LetterWatch[JobT](self._reading, check_count("max_unseen", max_unseen, least=1))
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


# -- The store in memory -----------------------------------------------------------------------------------------------


class DeadLetters(LetterStore[JobT]):
    """Keeps dead letters in memory, up to a number.

        letters: DeadLetters[str] = DeadLetters()
        async with WorkerPool(send, workers=20, dead_letters=letters) as pool:
            ...
        for letter in letters:
            print(letter.job, letter.error_type, letter.error)

    A full store drops its oldest letter for a new one: the newest say what is wrong now, and the oldest had the longest
    time to be looked at. What is dropped is counted in `dropped`, and logged at ERROR the 1st, 2nd, 4th, 8th ... time.

    The letters end with the process: see `DeadLetterFile`.

    Args:
        max_size: How many letters it keeps, at least 1.

    Raises:
        TypeError, ValueError: `max_size` is not an int of at least 1.
    """

    def __init__(self, max_size: int = 10_000) -> None:
        super().__init__()
        self._max_size = check_count("max_size", max_size, least=1)
        # By identity: jobs need be neither hashable nor comparable, and equal letters are letters of their own.
        self._letters: OrderedDict[int, DeadLetter[JobT]] = OrderedDict()
        # The letters that a replay has in hand. Always a part of the keys above.
        self._claimed: set[int] = set()
        self.dropped = 0
        """How many letters were dropped because the store was full."""

    @property
    def max_size(self) -> int:
        """How many letters it keeps."""
        return self._max_size

    def record(self, letter: DeadLetter[JobT], /) -> None:
        """Keep a letter; the oldest is dropped if the store is full. The same object twice is one letter."""
        self._letters[id(letter)] = letter
        if len(self._letters) > self._max_size:
            self._trim()
        self._show(letter)

    def _trim(self) -> None:
        # A letter in hand is not dropped: if the pool did not accept its job, it would be nowhere. Nor does it count,
        # or a store full of such letters would drop the news; so there may be one more for each replay under way.
        while len(self._letters) - len(self._claimed) > self._max_size:
            oldest = self._letters.pop(next(key for key in self._letters if key not in self._claimed))
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                _log.error(
                    "the store of %d dead letters is full, and its oldest is dropped (number %d of such): %.200s",
                    self._max_size,
                    self.dropped,
                    safe_text(repr, oldest),
                )

    def __len__(self) -> int:
        """How many letters there are, those in the hands of a replay included."""
        return len(self._letters)

    def __iter__(self) -> Iterator[DeadLetter[JobT]]:
        """Iterate over the letters that are there now, the oldest first: the store may change meanwhile."""
        return iter(list(self._letters.values()))

    def __repr__(self) -> str:
        return f"<DeadLetters: {len(self)} of at most {self._max_size}, {self.dropped} dropped>"

    def find(self, where: Callable[[DeadLetter[JobT]], bool]) -> list[DeadLetter[JobT]]:
        """Return the letters for which `where(letter)` is true, the oldest first. Raises what it raises."""
        return [letter for letter in self if where(letter)]

    def remove(self, letter: DeadLetter[JobT]) -> bool:
        """Take out this very letter, and return whether it was there. An equal one is another letter."""
        self._claimed.discard(id(letter))
        return self._letters.pop(id(letter), None) is not None

    def clear(self) -> None:
        """Take out all letters."""
        self._letters.clear()
        self._claimed.clear()

    async def replay(self, pool: Submitter[JobT], where: Callable[[DeadLetter[JobT]], bool] | None = None) -> int:
        """Submit the jobs of the letters again, the oldest first, and return how many were submitted.

        Of the letters that are there when it begins, those for which `where(letter)` is true; without it, all. A job
        that fails again comes back as a new letter, which waits for the next replay. Each waits for room in the pool.

        Cancel-safe: a letter leaves the store once its job is accepted, and not before; so it stays if the wait is
        cancelled, or the pool refuses the job. Several replays at once share the letters: none is submitted twice.

        Raises:
            PoolClosed, PoolNotStarted: The pool takes no jobs, or no more; or what else its `submit` raised.
            Exception: What `where` raised.
        """
        count = 0
        letters = list(self._letters.items())
        for start in range(0, len(letters), BATCH):
            count += await self._submit_again(pool, where, letters[start : start + BATCH])
            await asyncio.sleep(0)
        return count

    def _claim(self, key: int) -> bool:
        if key not in self._letters or key in self._claimed:
            return False
        self._claimed.add(key)
        return True

    def _release(self, key: int, accepted: bool) -> None:
        if accepted:
            self._letters.pop(key, None)
        self._claimed.discard(key)
        self._trim()
