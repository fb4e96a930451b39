"""Run a test on virtual time, and fail it if it leaves anything behind.

The event loop is in `virtual_time.py`.
"""

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

from asyncpool._guard import add_note
from asyncpool.testing._task_report import task_report
from asyncpool.testing.virtual_time import DeadlockError, VirtualTimeLoop

__all__ = ["LeakError", "run"]

T = TypeVar("T")


class LeakError(AssertionError):
    """`main` returned but left something behind: a task, an error never retrieved, a coroutine never awaited."""


def run(
    main: Callable[[], Awaitable[T]] | Coroutine[Any, Any, T],
    *,
    seed: int | None = None,
    lose_turn: float = 0.25,
    patience: float = 10.0,
    debug: bool | None = None,
    collect: bool = False,
) -> T:
    """Run `main` on a new `VirtualTimeLoop` and return its value. Fail if it leaves anything behind:

    * a task that is not done when `main` finishes (it is then cancelled and waited for),
    * anything reported to the loop's exception handler, such as an exception that was never retrieved,
    * a coroutine that was never awaited.

    Args:
        main: An async callable without arguments, or a coroutine.
        seed: As in `VirtualTimeLoop`.
        lose_turn: As in `VirtualTimeLoop`.
        patience: As in `VirtualTimeLoop`, in seconds of real time.
        debug: Whether asyncio's debug mode is on. None: asyncio's default.
        collect: Run the garbage collector at the end, to also find leaks that a reference cycle keeps alive.
            This takes milliseconds, many times longer than everything else `run` does.

    Raises:
        LeakError: `main` returned but left something behind. If `main` raised, `run` raises that error instead,
            and a note on it describes each leak.
        DeadlockError: `main` can never finish.
        RuntimeError: An event loop is already running in this thread.
        ValueError: `lose_turn` or `patience` is out of range.
    """
    if asyncio._get_running_loop() is not None:
        if inspect.iscoroutine(main):
            main.close()
        raise RuntimeError(
            "run() creates its own event loop, but one is already running: run this test on VirtualTimeLoop"
        )

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
            # Closing cancels the remaining tasks. If that deadlocks, the error is only added to the problems: an
            # error of `main` is more useful (test_run_fails_if_a_task_left_behind_cannot_even_be_cancelled).
            problems.closing = True
            try:
                runner.close()
            except DeadlockError as error:
                problems.texts.append(f"tasks left behind could not be cancelled: {error}")


class _Problems:
    """Everything that went wrong, except an error that `main` raised."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.cause: BaseException | None = None
        """The first exception that the loop reported."""
        self.closing = False
        """Whether the runner is closing. If it still has to cancel `main`, because that deadlocked, the other tasks
        are part of the deadlock, not leaks (test_a_deadlock_is_not_reported_as_a_leak_too)."""

    def handle(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Record a problem, as the exception handler of the loop."""
        self.cause = self.cause or context.get("exception")
        details = ", ".join(f"{key}={value!r}" for key, value in context.items() if key != "message")
        self.texts.append(f"{context['message']}: {details}")


@contextmanager
def _no_problems(collect: bool) -> Generator[_Problems]:
    """Raise the yielded problems as `LeakError` at the end or, if the block raised, add them to its error as notes."""
    problems = _Problems()
    never_awaited = r"coroutine .* was never awaited"
    with warnings.catch_warnings():
        # A hook and not the filter "error": these warnings come from a destructor, where an error is only printed
        # (test_run_fails_if_a_coroutine_was_never_awaited). All other warnings are handled as before
        # (test_run_leaves_other_warnings_to_others, test_run_leaves_the_filters_of_warnings_as_they_were).
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
                add_note(error, text)
            raise
        if collect:
            gc.collect()
    if problems.texts:
        raise LeakError("\n".join(problems.texts)) from problems.cause
