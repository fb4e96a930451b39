"""Fuzz the schedule by seed, on any event loop.

The fuzzing that `VirtualTimeLoop` does itself is in `virtual_time.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from asyncpool.testing._driven import Driven

__all__ = ["fuzzing_task_factory"]

T = TypeVar("T")


class _Hesitant(Driven[T]):
    """Loses turns at random: the step yields at once, and the task runs it again in the next loop iteration.

    Only `send` is overridden: a cancellation, which arrives by `throw`, never loses its turn.
    """

    def __init__(self, coro: Coroutine[Any, Any, T], random: Random, lose_turn: float) -> None:
        super().__init__(coro)
        self._random = random
        self._lose_turn = lose_turn

    def send(self, value: Any, /) -> Any:
        # The lost turn loses no value: asyncio only ever sends None.
        return None if self._random.random() < self._lose_turn else super().send(value)


def fuzzing_task_factory(seed: int, *, lose_turn: float = 0.25) -> Callable[..., asyncio.Task[Any]]:
    """Create a factory for `loop.set_task_factory` whose tasks lose their turn at random. Works on any loop.

    On a `VirtualTimeLoop`, use its `seed` instead: a factory does not affect tasks that were created before it
    was set, nor tasks created without it (`asyncio.Task(..., eager_start=True)`).

    Args:
        seed: The same seed gives the same schedule, unless the program has another source of randomness.
        lose_turn: The probability that a task loses its turn each time it is about to run, 0 <= lose_turn < 1.

    Raises:
        ValueError: `lose_turn` is out of range.
    """
    check_lose_turn(lose_turn)
    random = Random(seed)

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], /, **options: Any) -> asyncio.Task[T]:
        return asyncio.Task(_Hesitant(coro, random, lose_turn), loop=loop, **options)

    return factory


def check_lose_turn(lose_turn: float) -> None:
    """Raise `ValueError` unless 0 <= lose_turn < 1. With 1, no task would ever run."""
    if not 0 <= lose_turn < 1:
        raise ValueError(f"lose_turn must be >= 0 and < 1, got {lose_turn}")
