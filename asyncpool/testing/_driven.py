"""A coroutine that wraps another one and sees each of its steps.

What to do with the steps is decided in `fuzzing.py` and `cancellation.py`.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Driven"]

T = TypeVar("T")


class Driven(Coroutine[Any, Any, T]):
    """Passes each step of its task on to the wrapped coroutine. Subclasses override `send` and `throw`."""

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

    def __getattr__(self, name: str) -> Any:
        # Names and frames of the wrapped coroutine, so that reprs and stacks of the task look as usual
        # (test_a_task_of_the_fuzzing_factory_has_name_context_and_stack_as_any_other).
        return getattr(self._coro, name)
