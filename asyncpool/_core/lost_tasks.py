"""Tasks that asyncio will never resume, because a KeyboardInterrupt came when it was about to.

An interrupt that comes when the loop has taken a callback and not called it yet, or while a future schedules its
callbacks, drops these. The task whose next step was dropped is never resumed, and `asyncio.run` waits for it forever.
Such a task waits for nothing, or for what is done, and no callback of the loop is its next step. Only the loops of
asyncio itself show that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from asyncpool._core.state import State
from asyncpool._logs import log

__all__ = ["end_if_lost", "end_lost", "shows_lost_tasks", "wake_groups"]


def shows_lost_tasks(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether it can be seen of a loop that it has lost a task."""
    return type(loop).call_soon is asyncio.BaseEventLoop.call_soon


def end_lost(tasks: Iterable[asyncio.Task[Any]], state: State) -> None:
    """End those of these tasks that are lost, and log each of them."""
    for task in list(tasks):
        if end_if_lost(task, state.loop):
            log.error("pool %r: ended %s, which was never resumed after an interrupt", state.name, task.get_name())


def end_if_lost(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> bool:
    """End a task that is lost, as if it had been cancelled; return whether it was."""
    if not (shows_lost_tasks(loop) and _is_stopped(task)) or _has_next_step(task, loop):
        return False
    coroutine: Any = task.get_coro()
    try:
        for _ in range(2):
            coroutine.throw(asyncio.CancelledError())  # if this returns, it awaits in its cleanup: nobody can resume it
        coroutine.close()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        pass  # this is its end: the error of a job is in its outcome
    future: type[asyncio.Future[Any]] = asyncio.Future
    future.cancel(task)  # no step of its own will make it done, and others wait for that
    return True


def wake_groups(tasks: Iterable[asyncio.Task[Any]], state: State) -> None:
    """Let those of these tasks go on that leave a task group whose tasks have all ended, without its notice."""
    if not shows_lost_tasks(state.loop):
        return
    for task in tasks:
        awaited: Any = task.get_coro()
        while (frame := getattr(awaited, "cr_frame", None)) is not None:
            if frame.f_code.co_filename == asyncio.taskgroups.__file__:
                _notify_of_ends(frame.f_locals["self"], state.loop)
            awaited = getattr(awaited, "cr_await", None)


def _notify_of_ends(group: Any, loop: asyncio.AbstractEventLoop) -> None:
    children: list[asyncio.Task[Any]] = list(group._tasks)
    if all(child.done() for child in children) and not _has_next_step(group, loop):
        for child in children:
            group._on_task_done(child)  # the callback that was dropped; it keeps the error of the child, too


def _is_stopped(task: asyncio.Task[Any]) -> bool:
    """Whether a task does not run, and waits for nothing that is still to come."""
    waits_for: Any = getattr(task, "_fut_waiter", None)
    return (
        not task.done()
        and (waits_for is None or waits_for.done())
        # A handler that runs the loop itself is not the current task.
        and not getattr(task.get_coro(), "cr_running", True)
    )


def _has_next_step(owner: object, loop: Any) -> bool:
    return any(getattr(getattr(handle, "_callback", None), "__self__", None) is owner for handle in list(loop._ready))
