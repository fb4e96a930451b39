"""Run a test on virtual time: what it leaves behind fails it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from asyncpool.testing._task_report import task_report
from asyncpool.testing.virtual_time import DeadlockError, VirtualTimeLoop

__all__ = ["LeakError", "run"]

T = TypeVar("T")


class LeakError(AssertionError):
    """`main` returned, but left something behind: a task, an unseen error, a coroutine never awaited."""


def run(
    main: Callable[[], Awaitable[T]] | Coroutine[Any, Any, T],
    *,
    seed: int | None = None,
    lose_turn: float = 0.25,
    patience: float = 10.0,
    debug: bool | None = None,
    collect: bool = False,
) -> T:
    """Run `main` on a fresh `VirtualTimeLoop` and return its value; fail if it leaves anything behind.

    Left behind is: a task that is not done when `main` ends (it is cancelled then); what the loop's exception
    handler was called for, as for an exception nobody retrieved; a coroutine that was never awaited.

    Args:
        main: a zero-argument async callable, or a coroutine.
        seed: as of `VirtualTimeLoop`.
        lose_turn: as of `VirtualTimeLoop`.
        patience: seconds of real time, as of `VirtualTimeLoop`.
        debug: asyncio's debug mode; None leaves it as it is.
        collect: run the garbage collector at the end, to find what only a reference cycle keeps alive, too.
            It costs milliseconds, many times as much as all the rest.

    Raises:
        LeakError: something was left behind. If `main` raised, its error is raised, with that as a note.
        DeadlockError: `main` cannot end.
        RuntimeError: called where a loop is running.
    """
    if asyncio._get_running_loop() is not None:
        if inspect.iscoroutine(main):
            main.close()
        raise RuntimeError("run() makes a loop of its own, and one runs here: let this test run on VirtualTimeLoop")

    async def body(problems: _Problems) -> T:
        asyncio.get_running_loop().set_exception_handler(problems.handle)
        try:
            return await (main() if callable(main) else main)
        finally:
            left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            if left and not problems.closing:
                problems.texts.append(f"tasks left behind:\n{task_report(left)}")

    factory = partial(VirtualTimeLoop, seed=seed, lose_turn=lose_turn, patience=patience)
    with _no_problems(collect) as problems:
        runner = asyncio.Runner(debug=debug, loop_factory=factory)
        try:
            return runner.run(body(problems))
        finally:
            # Closing cancels the tasks left; the error of `main` is worth more than one of closing.
            problems.closing = True
            try:
                runner.close()
            except DeadlockError as error:
                problems.texts.append(f"tasks left behind could not be cancelled: {error}")


class _Problems:
    """What went wrong besides `main`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.cause: BaseException | None = None
        self.closing = False

    def handle(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.cause = self.cause or context.get("exception")
        details = ", ".join(f"{key}={value!r}" for key, value in context.items() if key != "message")
        self.texts.append(f"{context['message']}: {details}")


@contextmanager
def _no_problems(collect: bool) -> Generator[_Problems]:
    """Raise what is in the yielded `_Problems` at the end, or note it on the error on its way."""
    problems = _Problems()
    never_awaited = r"coroutine .* was never awaited"
    with warnings.catch_warnings():
        # A hook, because under "error" such a warning could only be printed; all others go their usual way.
        warnings.filterwarnings("always", never_awaited, RuntimeWarning)
        show = warnings.showwarning

        def catch(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RuntimeWarning) and re.match(never_awaited, str(message)):
                problems.texts.append(str(message))
            else:
                show(message, category, *where, **more)

        warnings.showwarning = catch
        try:
            yield problems
        except BaseException as error:
            for text in problems.texts:
                error.add_note(text)
            raise
        if collect:
            gc.collect()
    if problems.texts:
        raise LeakError("\n".join(problems.texts)) from problems.cause
