"""What the user sees: plain lines; and on a terminal, in color, with a progress bar that stays below them."""

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
    """Lines only: for files, pipes and logs."""

    def say(self, text: str, style: str = "") -> None:
        """Print a line, at once: whoever reads a pipe wants to follow. The style is for terminals."""
        print(printable(text), flush=True)

    @contextmanager
    def bar(self, total: int) -> Generator[None]:
        """Show how many of `total` images are done, while the block runs. Not here."""
        yield

    def advance(self, bytes_in: int | None) -> None:
        """Note that one more image is done, for which so many bytes were downloaded. Not here."""


class BarConsole(Console):
    """Lines in color, and a bar below them: for terminals."""

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
        # A Text and not a string: square brackets in names are no markup.
        self._progress.console.print(rich.text.Text(printable(text), style), soft_wrap=True)

    @contextmanager
    def bar(self, total: int) -> Generator[None]:
        """Show how many of `total` images are done, while the block runs."""
        self._task = self._progress.add_task("images", total=total, speed="")
        with self._progress:
            yield

    def advance(self, bytes_in: int | None) -> None:
        """Move the bar on by one image, for which so many bytes were downloaded; None if it was there already."""
        if self._task is None:
            return
        if bytes_in is not None:
            self._processed += 1
            self._bytes_in += bytes_in
        elapsed = self._progress.tasks[self._task].elapsed or 0.001
        speed = f"{self._processed / elapsed:.1f} images/s, {self._bytes_in / 1024**2 / elapsed:.1f} MB/s"
        self._progress.update(self._task, advance=1, speed=speed)


def make_console() -> Console:
    """The console that suits where standard output goes."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # What the encoding of the terminal or the file cannot show is shown somehow.
        out.reconfigure(errors="backslashreplace")
    return BarConsole() if out.isatty() else Console()
