"""Cancel a call at each point where it waits."""

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
    """How a call ended that `cancel_at` was to cancel.

    Attributes:
        completed: it ended before the cancellation was due, which was not sent: the sweep is over.
        cancelled: it ended with `CancelledError`.
        value: what it returned; None if it was cancelled.
    """

    completed: bool
    cancelled: bool
    value: T | None


class _CancelledAt(Driven[T]):
    def __init__(self, coro: Coroutine[Any, Any, T], step: int, late: bool) -> None:
        super().__init__(coro)
        self._suspensions = 0
        self._step = step
        self._late = late
        self.sent = False

    def send(self, value: Any, /) -> Any:
        if self._late and self._suspensions == self._step and not self.sent:
            return self._cancel(None)  # gives the turn back: the next one brings the CancelledError
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
    """Run `main` in a task of its own and cancel it once, at its `step`-th suspension. Works on any loop.

    A sweep cancels at every point where a cancellation can arrive:

        for step in itertools.count(1):
            result = await cancel_at(step, main)
            ...                                 # nothing lost, nothing leaked?
            if result.completed:
                break

    Args:
        step: which suspension, from 1 on. Those of `main` count, not those of tasks that it starts.
        main: a zero-argument async callable.
        late: cancel only when what `main` waits for there has come, but before `main` goes on with it. That
            is where items and wake-ups get lost: sweep both.

    Cancel-safe: if it is cancelled itself, it cancels `main` and waits for that.

    Raises:
        ValueError: `step` is less than 1.
        BaseException: whatever `main` raised, except for `CancelledError`.
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
