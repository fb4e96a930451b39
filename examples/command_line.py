"""Shared by the commands of the examples: startup, argument errors, output and exit status."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "USAGE",
    "Parser",
    "finish",
    "finish_plain",
    "positive",
    "printable",
    "start",
    "starting",
    "whole",
]

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def start(program: str) -> int:
    """Run `main()` of a program's `command.py` and return its exit status.

    The module is imported here, so a missing package or an early Ctrl+C ends in a one-line message, not in a traceback.
    """
    with starting(program):
        command = importlib.import_module(f"examples.{program}.command")
    return int(command.main())


@contextmanager
def starting(program: str) -> Generator[None]:
    """Wrap a program's imports: exit with a one-line message if a package is missing or Ctrl+C is pressed."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "examples":
            raise
        print(
            f"{program}: error: the package {error.name!r} is not installed; to install the packages that the "
            "examples need, run python3 -m pip install -e '.[examples]' in the project folder",
            file=sys.stderr,
        )
        sys.exit(USAGE)


def finish(program: str, main: Callable[[], Coroutine[Any, Any, None]], how_far: Callable[[], str]) -> int:
    """Run `main` and return the exit status. Ctrl+C and output errors end in a one-line message.

    The first Ctrl+C cancels `main`. Further ones are ignored: asyncio.run would raise them wherever the program
    happens to be, even in the middle of its cleanup. `how_far` describes the progress, for the message.
    """
    import asyncio

    interrupts = 0
    cancel: Callable[[], object] = int  # nothing yet

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            cancel()

    async def run() -> None:
        nonlocal cancel
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel = partial(loop.call_soon_threadsafe, task.cancel)
        try:
            if interrupts:
                task.cancel()
            await main()
        finally:
            cancel = int

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # escape characters that the encoding does not have
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        with _ungrouped():
            asyncio.run(run())
        sys.stdout.flush()
    except asyncio.CancelledError:
        if not interrupts:
            raise
    except OSError as error:
        return _failed(program, error)
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            # After an interrupt the program only has to exit, so ignore further ones.
            signal.signal(signal.SIGINT, signal.SIG_IGN if interrupts else signal.default_int_handler)
    if interrupts:
        print(f"Interrupted: {how_far()}.", file=sys.stderr)
        return INTERRUPTED
    return OK


def finish_plain(program: str, main: Callable[[], None]) -> int:
    """Like `finish`, for a short program that runs several event loops, one after the other."""
    try:
        with _ungrouped():
            main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _failed(program, error)
    return OK


@contextmanager
def _ungrouped() -> Generator[None]:
    """Replace a group of `OSError` by the first of them: tasks of a `TaskGroup` that cannot print raise a group."""
    try:
        yield
    except ExceptionGroup as errors:
        if errors.split(OSError)[1] is not None:
            raise
        first: Exception = errors
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _failed(program: str, error: OSError) -> int:
    """Report the error in one line. A closed pipe is not reported: its reader has seen enough."""
    if not isinstance(error, BrokenPipeError):
        print(f"{program}: error: {error}", file=sys.stderr)
    # Python flushes stdout once more when it exits: let that go to /dev/null.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with one line, without the usage text before it."""
        self.exit(USAGE, f"{self.prog}: error: {printable(message)} (see --help)\n")


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a converter for arguments that are integers in this range."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be an integer from {least} to {most}, got {text!r:.40}")
        return int(text)

    return read


def positive(most: float) -> Callable[[str], float]:
    """Return a converter for arguments that are numbers above 0."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(f"must be a number > 0 and <= {most:g}, got {text!r:.40}")
        return number

    return read


def printable(text: str) -> str:
    """Replace control characters by `?`: file names and URLs can hold anything, even terminal escape sequences."""
    return "".join(character if character.isprintable() else "?" for character in text)
