"""What the page can do to a pool: each action checks its arguments, acts, and reports in a sentence.

`access.py` decides who is permitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from asyncpool._core.parts import parts_of
from asyncpool._guard import describe
from asyncpool.dashboard.letters import Selection
from asyncpool.dashboard.reading import PoolReader
from asyncpool.outcomes import CancelReason

__all__ = ["ACTIONS", "Action"]

Action: TypeAlias = Callable[[PoolReader, Mapping[str, Any]], Awaitable[str]]
"""Acts on a pool, with arguments of the client, and returns a sentence. Raises ValueError for bad arguments."""

_MAX_WORKERS = 100_000
# A replay waits for room in the pool. The page should not have to wait for long.
_REPLAYING = 10.0


async def _pause(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    reader.pool.pause()
    return "Paused: workers finish their jobs and take no others."


async def _resume(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    reader.pool.resume(force=True)
    return "Resumed."


async def _resize(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    workers = _integer(arguments, "workers")
    if not 1 <= workers <= _MAX_WORKERS:
        raise ValueError(f"workers must be from 1 to {_MAX_WORKERS}, got {workers}")
    reader.pool.resize(workers)
    return f"The number of workers is now {workers}."


async def _drain(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    reader.pool.drain()
    return "Draining: the pool finishes its jobs, accepts no others, and closes."


async def _cancel_job(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    number = _integer(arguments, "job")
    parts = parts_of(reader.pool)
    if not parts.state.is_bound:
        return f"Job {number} has ended already."
    found = (job for job in parts.cancellation.unfinished_jobs() if job.number == number and job.outcome is None)
    job = next(found, None)
    if job is None or not parts.cancellation.cancel(job, CancelReason.HANDLE):
        return f"Job {number} has ended already."
    return f"Job {number} is cancelled." if job.outcome is not None else f"Job {number} was asked to stop."


class _Replay:
    """Submits jobs to the pool, and counts them."""

    def __init__(self, reader: PoolReader) -> None:
        self._pool = reader.pool
        self.count = 0

    async def submit(self, job: Any, /) -> None:
        await self._pool.submit(job)
        self.count += 1


class _Discard:
    """Takes jobs, and does nothing with them: so the store removes their letters, as those that were replayed."""

    def __init__(self) -> None:
        self.count = 0

    async def submit(self, job: Any, /) -> None:
        self.count += 1


async def _replay(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    replay = _Replay(reader)
    if not await _submit_letters(reader, arguments, replay):
        return f"Replayed {_jobs(replay.count)}. The queue is full: the other letters are kept."
    return f"Replayed {_jobs(replay.count)}."


async def _discard(reader: PoolReader, arguments: Mapping[str, Any]) -> str:
    discard = _Discard()
    is_complete = await _submit_letters(reader, arguments, discard)
    return f"Discarded {_letters(discard.count)}." + ("" if is_complete else " There are more: repeat it.")


async def _submit_letters(reader: PoolReader, arguments: Mapping[str, Any], target: _Replay | _Discard) -> bool:
    """Submit the selected letters; return whether there was enough time for all."""
    if reader.shelf is None:
        raise ValueError("this pool has no dead letters")
    selection = _selection(arguments)
    try:
        async with asyncio.timeout(_REPLAYING):
            await reader.shelf.submit(target, selection)
    except TimeoutError:
        return False
    finally:
        reader.letters_have_changed()
    return True


def _selection(arguments: Mapping[str, Any]) -> Selection:
    letter, group, takes_all = arguments.get("letter"), arguments.get("group"), arguments.get("all")
    if (letter is not None) + (group is not None) + (takes_all is not None) != 1:
        raise ValueError('exactly one of "letter", "group" and "all" must be given')
    if takes_all is not None and takes_all is not True:
        raise ValueError(f'"all" must be true, got {describe(takes_all)}')
    for name, value in (("letter", letter), ("group", group)):
        if value is not None and type(value) is not str:
            raise ValueError(f'"{name}" must be a string, got {describe(value)}')
    return Selection(letter=letter, group=group)


def _integer(arguments: Mapping[str, Any], name: str) -> int:
    value = arguments.get(name)
    if type(value) is not int:
        raise ValueError(f'"{name}" must be an integer, got {describe(value)}')
    return value


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _letters(count: int) -> str:
    return f"{count} letter{'' if count == 1 else 's'}"


ACTIONS: Mapping[str, Action] = {
    "pause": _pause,
    "resume": _resume,
    "resize": _resize,
    "drain": _drain,
    "cancel": _cancel_job,
    "replay": _replay,
    "discard": _discard,
}
"""Every action, by its name in the path."""
