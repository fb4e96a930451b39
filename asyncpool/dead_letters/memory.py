"""`DeadLetters`: dead letters in memory.

`store.py` has what all stores have in common. For a store that outlives the process, see `file.py`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

from asyncpool._checks import check_count, check_function
from asyncpool._logs import is_logged, log
from asyncpool.dead_letters.letter import DeadLetter
from asyncpool.dead_letters.store import BATCH, DeadLetterStore, Submitter

__all__ = ["DeadLetters"]

JobT = TypeVar("JobT")


class DeadLetters(DeadLetterStore[JobT]):
    """Keeps dead letters in memory, up to a maximum number.

        letters: DeadLetters[str] = DeadLetters()
        async with WorkerPool(send, workers=20, dead_letters=letters) as pool:
            ...
        for letter in letters:
            print(letter.job, letter.error_type, letter.error)

    A full store drops its oldest letter to make room for a new one: the newest letters show what is wrong now, and the
    oldest was available for the longest time. `dropped` counts the dropped letters, and the 1st, 2nd, 4th, 8th ... is
    logged at ERROR.

    The letters are lost when the process ends; `DeadLetterFile` keeps them.

    Args:
        max_size: How many letters it keeps; at least 1.

    Raises:
        TypeError, ValueError: `max_size` is not an int of at least 1.
    """

    def __init__(self, max_size: int = 10_000) -> None:
        super().__init__()
        self._max_size = check_count("max_size", max_size, least=1)
        # By identity: jobs need not be hashable or comparable, and two equal letters are different letters.
        self._letters: OrderedDict[int, DeadLetter[JobT]] = OrderedDict()
        # The letters that a replay is submitting. Always a subset of the keys above.
        self._claimed: set[int] = set()
        self.dropped = 0
        """How many letters were dropped because the store was full."""

    @property
    def max_size(self) -> int:
        """How many letters the store keeps."""
        return self._max_size

    def record(self, letter: DeadLetter[JobT], /) -> None:
        """Add a letter; if the store is full, its oldest letter is dropped. Adding the same object again has no effect.

        Pools call this for each job that failed permanently.
        """
        self._letters[id(letter)] = letter
        if len(self._letters) > self._max_size:
            self._trim()
        self._notify_watches(letter)

    def _trim(self) -> None:
        # A letter that a replay is submitting is not dropped: if the pool rejected its job, the letter would be lost.
        # It does not count either, or a store full of these would drop every new one. So the store can exceed its size
        # by one letter per replay in progress.
        while len(self._letters) - len(self._claimed) > self._max_size:
            oldest = self._letters.pop(next(key for key in self._letters if key not in self._claimed))
            self.dropped += 1
            if is_logged(self.dropped):
                log.error(
                    "the store of %d dead letters is full, so its oldest is dropped (occurrence %d): %.200r",
                    self._max_size,
                    self.dropped,
                    oldest,
                )

    def __len__(self) -> int:
        """Return the number of letters, including those that a replay is submitting."""
        return len(self._letters)

    def __iter__(self) -> Iterator[DeadLetter[JobT]]:
        """Iterate over a copy of the current letters, the oldest first, so that the store can change meanwhile."""
        return iter(list(self._letters.values()))

    def __repr__(self) -> str:
        return f"<DeadLetters: {len(self)} of at most {self._max_size}, {self.dropped} dropped>"

    def find(self, where: Callable[[DeadLetter[JobT]], bool]) -> list[DeadLetter[JobT]]:
        """Return the letters for which `where(letter)` is true, the oldest first.

        Raises:
            TypeError: `where` is not callable, or is an async function.
            Exception: What `where` raised.
        """
        check_function("where", where)
        return [letter for letter in self if where(letter)]

    def remove(self, letter: DeadLetter[JobT]) -> bool:
        """Remove a letter, by identity and not by equality, and return whether it was in the store."""
        self._claimed.discard(id(letter))
        return self._letters.pop(id(letter), None) is not None

    def clear(self) -> None:
        """Remove all letters."""
        self._letters.clear()
        self._claimed.clear()

    async def replay(self, pool: Submitter[JobT], where: Callable[[DeadLetter[JobT]], bool] | None = None) -> int:
        """Submit the jobs of the letters again, the oldest first, and return how many were submitted.

        It takes the letters that are in the store when it begins, and of those only the ones for which `where(letter)`
        is true; without `where`, all. It waits for room in the pool for each job, but not for the jobs themselves. A
        job that fails again is recorded as a new letter, which is left for the next replay.

        Cancel-safe: a letter is removed from the store only when the pool has accepted its job, so it stays if the wait
        is cancelled or the pool rejects the job. Concurrent replays share the letters: none is submitted twice.

        Raises:
            PoolClosed, PoolNotStarted: The pool does not accept jobs.
            TypeError: `where` is not callable, or is an async function.
            Exception: What else `submit` or `where` raised.
        """
        if where is not None:
            check_function("where", where)  # a coroutine is always true, so an async function would select all letters
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
