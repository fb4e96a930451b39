"""Schedules fuzzed by seed, on any loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from asyncpool.testing._driven import Driven

__all__ = ["fuzzing_task_factory"]

T = TypeVar("T")


class _Hesitant(Driven[T]):
    def __init__(self, coro: Coroutine[Any, Any, T], random: Random, lose_turn: float) -> None:
        super().__init__(coro)
        self._random = random
        self._lose_turn = lose_turn

    def send(self, value: Any, /) -> Any:
        return None if self._random.random() < self._lose_turn else super().send(value)


def fuzzing_task_factory(seed: int, *, lose_turn: float = 0.25) -> Callable[..., asyncio.Task[Any]]:
    """Make a factory for `loop.set_task_factory`, whose tasks lose their turn at random, on any loop.

    On a `VirtualTimeLoop` use its seed: a factory does not see tasks made before, nor those made without it
    (`asyncio.Task(..., eager_start=True)`).

    Args:
        seed: the same seed gives the same schedule, as far as the program has no other source of chance.
        lose_turn: how likely a task is to lose its turn, each time it has one, 0 <= lose_turn < 1.

    Raises:
        ValueError: `lose_turn` is out of range.
    """
    check_lose_turn(lose_turn)
    random = Random(seed)

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, T], /, **options: Any) -> asyncio.Task[T]:
        return asyncio.Task(_Hesitant(coro, random, lose_turn), loop=loop, **options)

    return factory


def check_lose_turn(lose_turn: float) -> None:
    if not 0 <= lose_turn < 1:
        raise ValueError(f"lose_turn must be >= 0 and < 1, got {lose_turn}")
