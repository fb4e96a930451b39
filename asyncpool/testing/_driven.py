"""A coroutine that sees every step of the one inside."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Driven"]

T = TypeVar("T")


class Driven(Coroutine[Any, Any, T]):
    """A coroutine around another one, which sees every step that the task takes in it."""

    def __init__(self, coro: Coroutine[Any, Any, T]) -> None:
        self._coro = coro

    def send(self, value: Any, /) -> Any:
        return self._coro.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coro.__await__()

    def __getattr__(self, name: str) -> Any:  # names and frames, for reprs and stacks
        return getattr(self._coro, name)
