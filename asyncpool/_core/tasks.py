"""The pool's own tasks, which live longer than a job: of resources, feeders and engines.

The tasks of jobs are not here: see docs/architecture.md for the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from types import TracebackType
from typing import Any

from asyncpool._core.state import State

__all__ = ["PoolTaskGroup", "Tasks"]


class PoolTaskGroup(asyncio.TaskGroup):
    """A task group that a coroutine leaves at once when it is collected: its loop is closed, nothing can be awaited."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:
            # A child that is done, and whose callback an interrupt has dropped: the group would wait for it forever.
            children: set[asyncio.Task[Any]] = getattr(self, "_tasks", set())
            children.difference_update([task for task in children if task.done()])
            ending = list(children)
            earlier = getattr(self, "_base_error", None)  # read here: from Python 3.14 on the group forgets it
            try:
                await super().__aexit__(kind, error, traceback)
            except (KeyboardInterrupt, SystemExit) as raised:
                # An interrupt of a child, at a line that `_guarded` does not guard. The loop has raised it already.
                # Raised again, it would stop the cleanup of asyncio.run before other pools are closed
                # (test_an_interrupt_of_a_task_that_begins_lets_other_pools_close).
                if raised is not earlier and not any(_raised(task, raised) for task in ending):
                    raise


def _raised(task: asyncio.Task[Any], error: BaseException) -> bool:
    return task.done() and not task.cancelled() and task.exception() is error


class Tasks:
    """The children of the pool's `asyncio.TaskGroup`, which the supervisor holds open.

    Invariant: while `is_empty`, the group has no child either except abandoned ones, so without these the supervisor
    leaves the group without a suspension, and is done when `close()` returns (test_nothing_runs_when_close_returns).
    """

    __slots__ = ("_abandoned", "_children", "_group", "_on_done", "_opened", "_state")

    def __init__(self, state: State, on_done: Callable[[], None]) -> None:
        self._state = state
        self._on_done = on_done
        self._group: asyncio.TaskGroup | None = None
        self._opened = asyncio.Event()
        self._children: set[asyncio.Task[None]] = set()
        self._abandoned: set[asyncio.Task[None]] = set()  # a subset of the children

    def open(self, group: asyncio.TaskGroup) -> None:
        """Spawn tasks in this group from now on."""
        self._group = group
        self._opened.set()

    @property
    def is_open(self) -> bool:
        """Whether tasks can be spawned, or the supervisor has ended."""
        return self._opened.is_set()

    async def wait_open(self) -> None:
        """Wait for the supervisor's first step. The pool may have ended after that: look again."""
        # An event and no shared future: cancelling one waiter would cancel it for all.
        await self._opened.wait()

    def give_up_opening(self) -> None:
        """Wake those that wait for a supervisor that was cancelled before its first step."""
        self._opened.set()

    def spawn(self, function: Callable[[], Awaitable[None]], *, name: str, context: Context) -> asyncio.Task[None]:
        """Start a task of the pool. A function and no coroutine: a task that is cancelled before its first step then
        leaves nothing behind that was never awaited.
        """
        assert self._group is not None
        child = self._guarded(function)
        try:
            task = self._group.create_task(child, name=name, context=context)
        except BaseException:  # the loop's task factory raised
            child.close()
            raise
        if task.done():  # an eager task factory has run all of it
            self._children.discard(task)
        elif task not in self._children:
            self._register(task)
        return task

    def _register(self, task: asyncio.Task[None]) -> None:
        self._children.add(task)
        # After the group's own callback: when our set is empty, the group's is too. And a method of the set itself,
        # which no KeyboardInterrupt can leave half done.
        task.add_done_callback(self._children.discard)
        task.add_done_callback(self._abandoned.discard)
        task.add_done_callback(self._child_is_done)

    @property
    def is_empty(self) -> bool:
        """Whether no task is left but abandoned ones."""
        return len(self._children) <= len(self._abandoned)

    @property
    def is_done(self) -> bool:
        """Whether no task is left."""
        return not self._children

    @property
    def abandoned(self) -> int:
        """How many tasks were abandoned and still run."""
        return len(self._abandoned)

    def abandon(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait any more for a task that ignores its cancellation, except the supervisor at its very end."""
        self._abandoned.add(task)

    @property
    def all(self) -> list[asyncio.Task[None]]:
        """Those that run."""
        return list(self._children)

    async def wait_done(self) -> None:
        """Wait until no task runs."""
        # For the tasks themselves: a KeyboardInterrupt can keep one from its callbacks, and can end `spawn` before it
        # has added them (test_an_interrupt_at_any_line_leaves_a_pool_that_closes).
        while running := [task for task in self._children if not task.done()]:
            await asyncio.wait(running)

    def cancel_all(self) -> list[asyncio.Task[None]]:
        """Cancel every task, once, and return them."""
        children = list(self._children)
        for task in children:
            task.cancel()
        return children

    async def _guarded(self, function: Callable[[], Awaitable[None]]) -> None:
        """Keep the program's own exceptions out of the group, which would cancel the siblings and raise them twice."""
        # A KeyboardInterrupt can end `spawn` when the task is made and not yet in the set; it must be cancelled all the
        # same at the end (test_an_interrupt_at_any_line_leaves_a_pool_that_closes).
        task = asyncio.current_task()
        assert task is not None
        if task not in self._children:
            self._register(task)
        try:
            await function()
        except (KeyboardInterrupt, SystemExit) as error:
            if self._state.loop.is_closed():
                raise
            self._state.raise_later(error)

    def _child_is_done(self, task: asyncio.Task[None]) -> None:
        self._on_done()
