"""Takes from an iterator what is there, so that it can be looked up together: `take_ready` and `ReadyItems`.

What is done with the items is `channel.py` and `pending.py`.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, MutableSequence
from typing import Any, TypeAlias

from asyncpool._guard import is_error

__all__ = ["ReadyItems", "take_ready"]

_MAX_SECONDS = 0.005  # without a turn for the event loop

Items: TypeAlias = MutableSequence[Any]


def take_ready(iterator: Iterator[Any], most: int, time: Callable[[], float], items: Items) -> bool:
    """Append up to `most` items of a plain iterator, for some milliseconds at most; return whether it is exhausted.

    Raises what the iterator raises; what it gave before that is in `items`.
    """
    stop_at = time() + _MAX_SECONDS
    for item in iterator:
        items.append(item)
        if len(items) >= most or time() >= stop_at:
            return False
    return True


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


class ReadyItems:
    """The items of an async iterator, in groups of those that come without a wait.

    A call of `anext()` that has to wait is left as it is while the caller looks up what it has, and is resumed by the
    next `take`. It all happens in the caller's task: the iterator runs in one task, as in an `async for`, so its
    timeouts and cancel scopes work (test_a_source_runs_in_one_task).
    """

    def __init__(self, iterator: AsyncIterator[Any], time: Callable[[], float]) -> None:
        self._iterator = iterator
        self._time = time
        self._step: Coroutine[Any, Any, Any] | None = None  # the call of `anext()` that waits
        self._waits_for: Any = None  # what it has yielded to the event loop
        self.is_over = False
        """Whether the iterator is exhausted, or has raised."""

    async def take(self, most: int, items: Items) -> None:
        """Wait for an item, and append it and those that follow without a wait: up to `most`.

        Raises what the iterator raises; what it gave before that is in `items`. Cancelled, it cancels the `anext()`.
        """
        stop_at = self._time() + _MAX_SECONDS
        try:
            while len(items) < most and (not items or self._time() < stop_at):
                if self._step is None:
                    self._begin(items)
                elif items:
                    return
                else:
                    items.append(await self._finish(self._step))
        except BaseException as error:
            self.is_over = True
            if not is_error(error, StopAsyncIteration):
                raise

    async def end(self, items: Items) -> None:
        """Cancel an `anext()` that waits, and wait until it has ended: only then can the iterator be closed.

        If it gives an item nevertheless, that is appended.
        """
        step = self._step
        if step is None:
            return
        error = None
        if asyncio.isfuture(self._waits_for):
            self._waits_for.cancel()
        else:
            error = asyncio.CancelledError()
        try:
            items.append(await self._finish(step, error))
        except (StopAsyncIteration, asyncio.CancelledError):
            pass

    def _begin(self, items: Items) -> None:
        """Call `anext()`: append what it gives, or keep it if it has to wait."""
        step = _next(self._iterator)
        try:
            self._waits_for = step.send(None)
        except StopIteration as stop:
            items.append(stop.value)
        else:
            self._step = step

    @types.coroutine
    def _finish(self, step: Coroutine[Any, Any, Any], error: BaseException | None = None) -> Generator[Any, Any, Any]:
        """Drive an `anext()` that waits until it has ended, and return its item. `error` is raised in it first."""
        waits_for, self._waits_for, self._step = self._waits_for, None, None
        while True:
            if error is None:
                try:
                    yield waits_for
                except BaseException as caught:
                    error = caught
            try:
                waits_for = step.send(None) if error is None else step.throw(error)
            except StopIteration as stop:
                return stop.value
            finally:
                error = None
