"""Cancel a call at each of its suspensions, one after the other.

What must hold after a cancellation is for the test to check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from asyncpool.testing._driven import Driven

__all__ = ["CancelSweepResult", "cancel_at"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSweepResult(Generic[T]):
    """How a call finished that `cancel_at` ran.

    Attributes:
        completed: Whether the call finished before its cancellation was due. Nothing was cancelled: the sweep
            is complete.
        cancelled: Whether the call finished with `CancelledError`.
        value: What the call returned, or None if it was cancelled.
    """

    completed: bool
    cancelled: bool
    value: T | None


class _CancelledAt(Driven[T]):
    """Cancels its own task once: at suspension number `step` or, if `late`, when the task is about to resume there."""

    def __init__(self, coro: Coroutine[Any, Any, T], step: int, late: bool) -> None:
        super().__init__(coro)
        self._suspensions = 0
        self._step = step
        self._late = late
        self.sent = False
        """Whether the cancellation was requested."""

    def send(self, value: Any, /) -> Any:
        if self._late and self._suspensions == self._step and not self.sent:
            # Yields without resuming `main`: what it waited for is there, and its next step raises CancelledError
            # (test_a_late_cancellation_finds_the_item_taken_but_not_yet_received).
            return self._cancel(None)
        return self._suspended(super().send(value))

    def throw(self, *error: Any) -> Any:
        return self._suspended(super().throw(*error))

    def _suspended(self, awaited: Any) -> Any:
        self._suspensions += 1
        return self._cancel(awaited) if self._suspensions == self._step and not self._late else awaited

    def _cancel(self, awaited: Any) -> Any:
        self.sent = True
        cast("asyncio.Task[T]", asyncio.current_task()).cancel()
        return awaited


async def cancel_at(step: int, main: Callable[[], Awaitable[T]], *, late: bool = False) -> CancelSweepResult[T]:
    """Run `main` in a task of its own, cancel it once at its `step`-th suspension, and wait until it finishes.

    Works on any loop. A sweep cancels at every point where a cancellation can arrive:

        for step in itertools.count(1):
            result = await cancel_at(step, main)
            ...                                 # check that nothing is lost or leaked
            if result.completed:
                break

    Cancel-safe: if `cancel_at` is cancelled, it cancels `main` and waits until `main` has finished.

    Args:
        step: The number of the suspension, counted from 1. Only suspensions of `main` itself count, not those
            of tasks that it starts.
        main: An async callable without arguments.
        late: Cancel only after the event that `main` waits for has happened, just before `main` resumes. Items
            and wake-ups get lost there, so sweep both.

    Raises:
        ValueError: `step` is less than 1.
        BaseException: Whatever `main` raised, except `CancelledError`.
    """
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step}")

    async def call() -> T:
        return await main()

    driven = _CancelledAt(call(), step, late)
    task = asyncio.get_running_loop().create_task(driven, name=f"cancel_at({step})")
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    value = None if task.cancelled() else task.result()
    return CancelSweepResult(completed=not driven.sent, cancelled=task.cancelled(), value=value)
