"""Short texts of objects of the user, for the cells of the page: bounded, and whatever their `__repr__` does."""

from __future__ import annotations

import asyncio
import reprlib
from array import array
from collections import deque
from collections.abc import Callable, Collection, Hashable

from asyncpool._guard import safe_text

__all__ = ["MAX_CELL", "Texts", "cell", "text", "time_to_describe"]

MAX_CELL = 200
"""How many characters of an object are shown."""

# Describes only the beginning of long strings and containers: the repr of a photo as bytes would take as long as the
# photo is.
_bounded = reprlib.Repr()
_bounded.maxstring = _bounded.maxother = _bounded.maxlong = MAX_CELL
_bounded.maxlevel = 4
_bounded.maxlist = _bounded.maxtuple = _bounded.maxset = _bounded.maxfrozenset = _bounded.maxdeque = 8
_bounded.maxdict = _bounded.maxarray = 8


_BOUNDED = frozenset({str, int, list, tuple, set, frozenset, dict, deque, array})


def _repr(value: object) -> str:
    if type(value) in _BOUNDED:
        return _bounded.repr(value)
    if isinstance(value, (bytes, bytearray)):
        return repr(value[:MAX_CELL])
    return repr(value)


_repr.__name__ = "repr"  # what safe_text says has raised


def cell(value: object) -> str:
    """Return the `repr` of any object: at most `MAX_CELL` characters, or a note if it raised."""
    return safe_text(_repr, value, MAX_CELL)


def text(value: object, most: int = MAX_CELL) -> str:
    """Return a text as it is, cut to a maximum length."""
    return safe_text(str, value, most)


class Texts:
    """The cells of jobs that are shown for a while, so that each is described only once.

    A `__repr__` can be slow. When the time for one snapshot is over, the others are described in the next.
    """

    def __init__(self) -> None:
        self._cells: dict[Hashable, str] = {}

    def of(self, key: Hashable, job: object, *, may_describe: bool) -> str | None:
        """Return the cell of a job, by its key; None: not yet known, and there is no time to describe it now."""
        known = self._cells.get(key)
        if known is None and may_describe:
            known = self._cells[key] = cell(job)
        return known

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forget all other jobs."""
        if len(self._cells) > len(keys):
            self._cells = {key: known for key, known in self._cells.items() if key in keys}


def time_to_describe(seconds: float) -> Callable[[], bool]:
    """Return a function that returns whether there is still time, of these seconds, to describe jobs."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    return lambda: loop.time() < until
