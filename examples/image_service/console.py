"""Output: plain lines; on a terminal, colored lines above a progress bar."""

from __future__ import annotations

import io
import sys
from collections.abc import Generator
from contextlib import contextmanager

import rich.console
import rich.progress
import rich.text

from examples.command_line import printable

__all__ = ["BarConsole", "Console", "make_console"]


class Console:
    """Plain lines, for files, pipes and logs."""

    def say(self, text: str, style: str = "") -> None:
        """Print a line and flush it, for programs that follow a pipe. Only terminals use the style."""
        print(printable(text), flush=True)

    @contextmanager
    def bar(self, total: int) -> Generator[None]:
        """Show how many of `total` images are done while the block runs. Does nothing in this class."""
        yield

    def advance(self, bytes_in: int | None) -> None:
        """Count one more image, for which `bytes_in` bytes were downloaded. Does nothing in this class."""


class BarConsole(Console):
    """Colored lines above a progress bar, for terminals."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False)
        self._progress = rich.progress.Progress(
            rich.progress.BarColumn(bar_width=None),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[speed]}"),
            rich.progress.TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: rich.progress.TaskID | None = None
        self._processed = 0
        self._bytes_in = 0

    def say(self, text: str, style: str = "") -> None:
        """Print a line above the bar."""
        # A Text, because rich would interpret square brackets in a string as markup.
        self._progress.console.print(rich.text.Text(printable(text), style), soft_wrap=True)

    @contextmanager
    def bar(self, total: int) -> Generator[None]:
        """Show how many of `total` images are done while the block runs."""
        self._task = self._progress.add_task("images", total=total, speed="")
        with self._progress:
            yield

    def advance(self, bytes_in: int | None) -> None:
        """Advance the bar by one image, for which `bytes_in` bytes were downloaded; None: it was skipped."""
        if self._task is None:
            return
        if bytes_in is not None:
            self._processed += 1
            self._bytes_in += bytes_in
        elapsed = self._progress.tasks[self._task].elapsed or 0.001
        speed = f"{self._processed / elapsed:.1f} images/s, {self._bytes_in / 1024**2 / elapsed:.1f} MB/s"
        self._progress.update(self._task, advance=1, speed=speed)


def make_console() -> Console:
    """Return the console for standard output: with a bar if that is a terminal."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # Escape characters that the encoding of the terminal or file does not have.
        out.reconfigure(errors="backslashreplace")
    return BarConsole() if out.isatty() else Console()
