"""`DeadLetters`: dead letters in memory.

What all stores have in common is `store.py`. The store that outlives its process is `file.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from asyncpool._checks import check_count
from asyncpool.dead_letters.letter import DeadLetter, safe_text
from asyncpool.dead_letters.store import BATCH, DeadLetterStore, Submitter

__all__ = ["DeadLetters"]

_log = logging.getLogger("asyncpool")

JobT = TypeVar("JobT")


class DeadLetters(DeadLetterStore[JobT]):
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
                    "the store of %d dead letters is full, and its oldest is dropped (occurrence %d): %.200s",
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
