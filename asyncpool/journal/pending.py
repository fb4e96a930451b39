"""`pending`: the jobs of a source that are not done, for programs that do more with them than one stream.

A stream that leaves out what is done, and records what ends, is `channel.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from contextlib import aclosing
from typing import Any

from asyncpool.journal.channel import Tally
from asyncpool.journal.entries import Key
from asyncpool.journal.ready_items import ReadyItems, take_ready
from asyncpool.journal.session import JournalSession

__all__ = ["pending"]

# How many jobs are pulled and looked up together. As long as all of them are done, twice as many each time.
_MIN_LOOKUP = 16
_MAX_LOOKUP = 256


class _Size:
    """How many jobs to pull next."""

    most = _MIN_LOOKUP


async def pending(
    jobs: Iterable[Any] | AsyncIterable[Any],
    *,
    key_of: Callable[[Any], Key],
    enter: Callable[[], JournalSession],
    tally: Tally,
) -> AsyncGenerator[Any, None]:
    """Yield the jobs that are not done, and of jobs with the same key the first."""
    session, size = enter(), _Size()
    try:
        await session.opened()
        time = session.loop.time
        groups = _groups_of_async(jobs, size, time) if isinstance(jobs, AsyncIterable) else _groups_of(jobs, size, time)
        async with aclosing(groups):
            async for group in groups:
                todo = _claim(group, key_of, session, tally)
                try:
                    await _drop_done(todo, session, tally)
                    size.most = _MIN_LOOKUP if todo else min(2 * size.most, _MAX_LOOKUP)
                    while todo:
                        yield todo.popleft()[0]
                finally:
                    session.given.difference_update(key for _, key in todo)  # it was closed: nobody has got them
    finally:
        session.leave()


def _claim(
    jobs: list[Any], key_of: Callable[[Any], Key], session: JournalSession, tally: Tally
) -> deque[tuple[Any, Key | None]]:
    """Return those of some jobs that were not given before, with their keys."""
    claimed: deque[tuple[Any, Key | None]] = deque()
    for job in jobs:
        try:
            key = key_of(job)
        except Exception:
            claimed.append((job, None))  # it fails by itself, when its handler or stream asks for the key
            continue
        if key in session.given:
            tally.repeated += 1
        else:
            session.given.add(key)  # before the look-up, see `JournalSession.claim`
            claimed.append((job, key))
    return claimed


async def _drop_done(claimed: deque[tuple[Any, Key | None]], session: JournalSession, tally: Tally) -> None:
    """Look jobs up, and remove those that are done."""
    done = (await session.find([key for _, key in claimed if key is not None])).done
    session.given.difference_update(done)
    tally.skipped += len(done)
    for _ in range(len(claimed)):
        job, key = claimed.popleft()
        if key not in done:
            claimed.append((job, key))


async def _groups_of(jobs: Iterable[Any], size: _Size, time: Callable[[], float]) -> AsyncGenerator[list[Any], None]:
    iterator, is_exhausted = iter(jobs), False
    try:
        while not is_exhausted:
            group: list[Any] = []
            error = None
            try:
                is_exhausted = take_ready(iterator, size.most, time, group)
            except Exception as raised:
                error = raised  # after what the source gave before
            if group:
                yield group
            if error is not None:
                raise error
    finally:
        if isinstance(iterator, Generator):
            iterator.close()
        error = None  # it knows this frame


async def _groups_of_async(
    jobs: AsyncIterable[Any], size: _Size, time: Callable[[], float]
) -> AsyncGenerator[list[Any], None]:
    iterator = aiter(jobs)
    items, error = ReadyItems(iterator, time), None
    try:
        while not items.is_over:
            group: list[Any] = []
            try:
                await items.take(size.most, group)
            except Exception as raised:
                error = raised
            if group:
                yield group
            if error is not None:
                raise error
    finally:
        error = None
        await items.end([])
        aclose = getattr(iterator, "aclose", None)
        if aclose is not None:
            await aclose()
