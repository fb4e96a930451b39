"""Output: plain lines; on a terminal, colored lines above a progress bar."""

from __future__ import annotations

import io
import sys
from typing import TypeVar

import rich.console
import rich.text

import asyncpool
from asyncpool.progress import track
from examples.command_line import printable

__all__ = ["BarConsole", "Console", "make_console"]

ItemT = TypeVar("ItemT")


class Console:
    """Plain lines, for files, pipes and logs."""

    def say(self, text: str, style: str = "") -> None:
        """Print a line and flush it, for programs that follow a pipe. Only terminals use the style."""
        print(printable(text), flush=True)

    def track(self, images: asyncpool.Stream[ItemT], total: int) -> asyncpool.Stream[ItemT]:
        """Show the progress of a stream. Does nothing in this class: there is a line for each image."""
        return images


class BarConsole(Console):
    """Colored lines above a progress bar, for terminals."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False)

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the bar."""
        # A Text, because rich would interpret square brackets in a string as markup.
        self._console.print(rich.text.Text(printable(text), style), soft_wrap=True)

    def track(self, images: asyncpool.Stream[ItemT], total: int) -> asyncpool.Stream[ItemT]:
        """Show a bar while the stream is read."""
        return track(images, total=total, name="images", console=self._console)


def make_console() -> Console:
    """Return the console for standard output: with a bar if that is a terminal."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # Escape characters that the encoding of the terminal or file does not have.
        out.reconfigure(errors="backslashreplace")
    return BarConsole() if out.isatty() else Console()
