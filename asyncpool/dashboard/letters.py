"""Dead letters for the page: grouped by error, replayed and discarded, in memory or in a file.

Letters are named by digests of what they have, so that a page which is a minute old cannot replay the wrong ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from asyncpool.dashboard.texts import Texts, cell, text, time_to_describe
from asyncpool.dead_letters.file import DeadLetterFile
from asyncpool.dead_letters.letter import DeadLetter
from asyncpool.dead_letters.memory import DeadLetters
from asyncpool.dead_letters.store import Submitter

__all__ = ["Selection", "Shelf", "shelf_of"]

_MAX_READ = 2000
_MAX_GROUPS = 20
_MAX_LETTERS = 10
_MAX_FILE = 16 * 1024 * 1024
# Seconds in which the jobs of a listing are described on the event loop; a `__repr__` can be slow.
_DESCRIBING = 0.02
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
_Letter: TypeAlias = DeadLetter[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters to replay or to discard: one, those of a group, or all."""

    letter: str | None = None
    group: str | None = None


class Shelf(Protocol):
    """The dead letters of a pool, which can be listed."""

    def summary(self, failed: int) -> dict[str, Any]:
        """Return how many letters there are, and a `version` that changes when the page should list them again.

        Args:
            failed: How many jobs of the pool have failed.
        """
        ...

    async def listing(self) -> dict[str, Any]:
        """Return the newest letters, grouped by error. Cancel-safe."""
        ...

    async def submit(self, target: Submitter[Any], selection: Selection) -> None:
        """Submit the jobs of the selected letters, and remove those letters. Cancel-safe, as `replay` is."""
        ...


def shelf_of(store: Any, pool: str) -> Shelf | None:
    """Return the shelf of a pool's store of dead letters; None: there is no store.

    Pools can share a store. Only the letters of this pool are on its shelf: another pool has another handler.
    """
    if store is None:
        return None
    kinds: dict[type, Callable[[Any, str], Shelf]] = {DeadLetters: _MemoryShelf, DeadLetterFile: _FileShelf}
    return next((make(store, pool) for kind, make in kinds.items() if isinstance(store, kind)), _OtherShelf())


class _MemoryShelf:
    def __init__(self, store: DeadLetters[Any], pool: str) -> None:
        self._store = store
        self._pool = pool
        self._texts = Texts()

    def summary(self, failed: int) -> dict[str, Any]:
        stored, dropped = len(self._store), self._store.dropped
        return {"kind": "memory", "stored": stored, "dropped": dropped, "version": f"{stored}-{dropped}-{failed}"}

    async def listing(self) -> dict[str, Any]:
        letters = [letter for letter in self._store if letter.pool == self._pool]
        has_time, shown = time_to_describe(_DESCRIBING), set[str]()

        def described(letter: _Letter) -> tuple[str, str | None]:
            key = self._key(letter)
            shown.add(key)
            return key, self._texts.of(key, letter.job, may_describe=has_time())

        found = _grouped(letters[-_MAX_READ:], len(letters), described)
        self._texts.keep(shown)
        return found

    async def submit(self, target: Submitter[Any], selection: Selection) -> None:
        await self._store.replay(target, _where(selection, self._pool, self._key))

    @staticmethod
    def _key(letter: _Letter) -> str:
        return f"{id(letter):x}{_digest(_facts(letter))}"


class _FileShelf:
    def __init__(self, store: DeadLetterFile[Any], pool: str) -> None:
        self._store = store
        self._pool = pool

    def summary(self, failed: int) -> dict[str, Any]:
        # A look at the file would block the event loop: that of a network can take long.
        return {"kind": "file", "stored": None, "dropped": 0, "version": str(failed)}

    async def listing(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._list)

    def _list(self) -> dict[str, Any]:
        if self._store.path.exists() and self._store.path.stat().st_size > _MAX_FILE:
            return {"groups": [], "read": 0, "stored": None, "note": "The file is too large to be listed here."}
        count = 0
        newest: deque[_Letter] = deque(maxlen=_MAX_READ)
        for letter in self._store:
            if letter.pool == self._pool:
                count += 1
                newest.append(letter)
        as_text = sum(letter.pool == self._pool for letter in self._store.unreplayable())
        found = _grouped(newest, count, lambda letter: (self._key(letter), cell(letter.job)))
        return found | {"unreplayable": as_text}

    async def submit(self, target: Submitter[Any], selection: Selection) -> None:
        await self._store.replay(target, _where(selection, self._pool, self._key))

    @staticmethod
    def _key(letter: _Letter) -> str:
        # It is read again for each listing, so it is not the same object, and its repr can have another address. Equal
        # letters have the same key.
        return _digest(f"{_facts(letter)}\0{_ADDRESS.sub('', cell(letter.job))}")


class _OtherShelf:
    def summary(self, failed: int) -> dict[str, Any]:
        return {"kind": "other", "stored": None, "dropped": 0, "version": ""}

    async def listing(self) -> dict[str, Any]:
        return {"groups": [], "read": 0, "stored": None, "note": "A sink of the program keeps them; see there."}

    async def submit(self, target: Submitter[Any], selection: Selection) -> None:
        raise ValueError("the sink of this pool's dead letters cannot replay or discard them")


@dataclass(slots=True)
class _Group:
    key: str
    error_type: str
    error: str
    count: int = 0
    last_at: float = 0.0


def _grouped(
    letters: Iterable[_Letter], stored: int, described: Callable[[_Letter], tuple[str, str | None]]
) -> dict[str, Any]:
    """Group letters by the type and text of their error, without its numbers.

    Args:
        letters: The newest letters, the oldest first.
        stored: How many there are.
        described: Returns the key of a letter, and the cell of its job. Called only for those that are shown.
    """
    groups: dict[str, _Group] = {}
    shown: dict[str, deque[_Letter]] = {}
    read = 0
    for letter in letters:
        read += 1
        kind, error = text(letter.error_type), text(letter.error)
        same = _alike(kind, error)
        group = groups.get(same)
        if group is None:
            group = groups[same] = _Group(_digest(same), kind, error)
            shown[same] = deque(maxlen=_MAX_LETTERS)
        group.count += 1
        group.error, group.last_at = error, max(group.last_at, _finite(letter.last_at))
        shown[same].append(letter)
    largest = sorted(groups.items(), key=lambda item: -item[1].count)[:_MAX_GROUPS]
    return {
        "stored": stored,
        "read": read,
        "more": len(groups) - len(largest),
        "note": "",
        "groups": [
            {
                "key": group.key,
                "error_type": group.error_type,
                "error": group.error,
                "count": group.count,
                "last_at": group.last_at,
                "letters": [
                    {
                        "key": key,
                        "job": job,
                        "error": text(letter.error),
                        "attempts": letter.attempts,
                        "last_at": _finite(letter.last_at),
                    }
                    for letter in reversed(shown[same])
                    for key, job in [described(letter)]
                ],
            }
            for same, group in largest
        ],
    }


def _where(selection: Selection, pool: str, key_of: Callable[[_Letter], str]) -> Callable[[_Letter], bool]:
    """Return the function that selects letters of a pool; of several with the key of one, the first."""
    is_found = False

    def is_selected(letter: _Letter) -> bool:
        nonlocal is_found
        if letter.pool != pool or is_found:
            return False
        if selection.letter is not None:
            is_found = key_of(letter) == selection.letter
            return is_found
        same = _alike(text(letter.error_type), text(letter.error))
        return selection.group is None or _digest(same) == selection.group

    return is_selected


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0  # JSON has no other numbers, and anybody can write to a file


def _alike(error_type: str, error: str) -> str:
    return f"{error_type}\0{_NUMBERS.sub('0', error)}"


def _facts(letter: _Letter) -> str:
    return "\0".join(
        (
            text(letter.error_type),
            text(letter.error),
            repr(letter.attempts),
            repr(letter.first_at),
            repr(letter.last_at),
        )
    )


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()[:20]
