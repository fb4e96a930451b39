"""The task of an attempt: how it comes to its first step, and which tasks wait for its job."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Generator
from enum import Enum
from typing import Any

from asyncpool._core.job import Job

__all__ = ["HAS_CALL_GRAPH", "TaskStart", "inside_try", "link", "link_waiters", "unlink"]

HAS_CALL_GRAPH = sys.version_info >= (3, 14)


class TaskStart(Enum):
    """How the task of an attempt comes to its first step."""

    AT_ONCE = 1  # making a task never runs it (3.11): so it is made by the step that frees a worker, or brings a job
    EAGER = 2  # making a task runs its first step (3.12+): so only from the pump, never inside `submit` or another job
    BY_LOOP = 3  # the loop has a task factory, which can be an eager one or wrap the coroutine: from the pump, too


@types.coroutine
def inside_try() -> Generator[None, None, None]:
    """Suspend once, so that a coroutine can be driven to this point before its task is made."""
    yield


if sys.version_info >= (3, 14):
    link = asyncio.future_add_to_awaited_by
    unlink = asyncio.future_discard_from_awaited_by
else:

    def link(future: asyncio.Future[Any], waiter: asyncio.Future[Any], /) -> None:
        """Do nothing: this Python has no links between tasks."""

    def unlink(future: asyncio.Future[Any], waiter: asyncio.Future[Any], /) -> None:
        """Do nothing: this Python has no links between tasks."""


def link_waiters(job: Job, task: asyncio.Task[Any]) -> None:
    """Link the task of an attempt to the tasks that wait for its job, for `python -m asyncio pstree` (Python 3.14).

    They wait for a future, from which nothing else leads to the task that runs the job. The reader of a stream or group
    waits for whichever job ends next, and has no links.
    """
    for _, waiter in (job.sink.waiters or {}).values():
        if waiter is not None:
            link(task, waiter)
