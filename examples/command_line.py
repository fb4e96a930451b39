"""What the commands of the examples share: how they start, how they refuse, what they print, how they end."""

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
    """Run `main()` of a program's `command.py`, and return its exit status.

    It is imported here, so that a missing package and an early Ctrl+C end in a sentence too.
    """
    with starting(program):
        command = importlib.import_module(f"examples.{program}.command")
    return int(command.main())


@contextmanager
def starting(program: str) -> Generator[None]:
    """Around a program's imports: a missing package and an early Ctrl+C end it in a sentence, with an exit status."""
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
            f"{program}: error: the package {error.name!r} is missing; install what the examples need by "
            "python3 -m pip install -e '.[examples]' in the project's folder (asyncpool-toolkit[examples])",
            file=sys.stderr,
        )
        sys.exit(USAGE)


def finish(program: str, main: Callable[[], Coroutine[Any, Any, None]], how_far: Callable[[], str]) -> int:
    """Run `main` to its end, and return the exit status. Ctrl+C, and lines that nobody takes, end in a sentence.

    The first Ctrl+C cancels `main`, and further ones change nothing: asyncio.run would raise them wherever the program
    is just then, in the midst of its cleanup too. `how_far` says what was done until then.
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
        sys.stdout.reconfigure(errors="backslashreplace")  # what it has no character for is shown somehow
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
    try:
        asyncio.run(run())
        sys.stdout.flush()
    except asyncio.CancelledError:
        if not interrupts:
            raise
    except OSError as error:
        return _failed(program, error)
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            # After an interrupt the program ends: there is nothing left to interrupt.
            signal.signal(signal.SIGINT, signal.SIG_IGN if interrupts else signal.default_int_handler)
    if interrupts:
        print(f"Interrupted: {how_far()}.", file=sys.stderr)
        return INTERRUPTED
    return OK


def finish_plain(program: str, main: Callable[[], None]) -> int:
    """As `finish`, for a short program that runs event loops of its own, one after the other."""
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _failed(program, error)
    return OK


def _failed(program: str, error: OSError) -> int:
    """End in a sentence. Not if whoever read our lines had enough of them."""
    if not isinstance(error, BrokenPipeError):
        print(f"{program}: error: {error}", file=sys.stderr)
    # What Python would still write at its exit goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


class Parser(argparse.ArgumentParser):
    """Refuses what makes no sense in one sentence."""

    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage text before it."""
        self.exit(USAGE, f"{self.prog}: error: {printable(message)} (--help tells what there is)\n")


def whole(least: int, most: int) -> Callable[[str], int]:
    """What reads an argument that is a whole number in this range."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"it must be a whole number from {least} to {most}, got {text!r:.40}")
        return int(text)

    return read


def positive(most: float) -> Callable[[str], float]:
    """What reads an argument that is a number above 0."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(f"it must be a number > 0 and <= {most:g}, got {text!r:.40}")
        return number

    return read


def printable(text: str) -> str:
    """The text without what a terminal could take for commands: names and addresses may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text)
