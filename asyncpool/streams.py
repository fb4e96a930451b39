"""`Stream`: jobs are pulled lazily from an iterable, and their values or outcomes stream out, with back-pressure.

Streams are made by `pool.map()` and `pool.outcomes()`. To submit from several places, see `groups.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from typing import Any, TypeVar

from asyncpool._core.channel import Readable
from asyncpool._core.feeder import FedChannel
from asyncpool._guard import describe

__all__ = ["Stream"]

ItemT_co = TypeVar("ItemT_co", covariant=True)


class Stream(Readable[ItemT_co, FedChannel[Any]]):
    """The values or outcomes of the jobs that an iterable gives. Made by `pool.map()` and `pool.outcomes()`.

    Iterate it (`async for`), await it for a list, or use `async with` where you may leave the loop early and want
    nothing left running behind you. It is read once, by one reader. Nothing is pulled before the first step.

    Its window is the number of jobs that can be accepted but not yet delivered: `queue_size` + workers (of a policy,
    `max_workers`). Delayed jobs do not count, or a few long backoffs would leave all workers idle. So when they return,
    up to `max_delayed` more outcomes can be unread: pass a smaller `max_delayed` if values are large. An ordered stream
    cannot deliver what comes after its first delayed job.

    Leaving the loop cancels the stream, even if a variable still refers to it. A stream that ends early closes its
    source, in the task that pulled from it, if that is a generator, an async generator or another stream.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, list[ItemT_co]]:
        """Read the whole stream into a list.

        Cancelled while waiting, or at the first failure of `map`, the stream is cancelled, and what it ran has ended
        before this raises.
        """
        return self._collect().__await__()

    async def _collect(self) -> list[ItemT_co]:
        cursor = aiter(self)  # before the block: if somebody else reads, it is not ours to close
        async with self:
            items: list[ItemT_co] = []
            async for item in cursor:  # not a comprehension: on 3.11 its frame, in a traceback, keeps the cursor alive
                items.append(item)
            return items

    async def __aenter__(self) -> Stream[ItemT_co]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Stream: {self._channel!r}>"

    def __del__(self) -> None:
        try:
            channel = self._channel
        except AttributeError:  # an interrupt came before `__init__` had ended (tests/test_finalizers.py)
            return
        if channel.is_missed:
            # stacklevel: where it was dropped, as far as the interpreter knows.
            warnings.warn(f"{channel.name} was never read: await or iterate it", RuntimeWarning, stacklevel=2)


def stream_of(channel: FedChannel[Any], progress: bool) -> Stream[Any]:
    """Return the stream of a channel; with `progress`, one whose progress is shown.

    Raises:
        TypeError: `progress` is not a bool.
        ModuleNotFoundError: rich is not installed.
    """
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be a bool, got {describe(progress)}: for more, use asyncpool.progress.track")
    if progress:
        from asyncpool.progress.tracking import track_channel

        track_channel(channel)  # before there is a stream, which warns if it is not read
    return Stream(channel)
