"""Where progress is shown: as bars on a terminal, as one output of a notebook, or as plain lines. Needs rich.

What is shown is `figures.py`, and when is `tracking.py`.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from asyncpool._guard import describe
from asyncpool._logs import redirect_handlers
from asyncpool.progress.figures import Figures

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "the progress of a stream needs the package rich: python3 -m pip install 'asyncpool-toolkit[progress]'",
        name=error.name,
    ) from error

__all__ = ["LINE_INTERVAL", "BarDisplay", "Display", "LineDisplay", "NotebookDisplay", "check_console", "open_display"]


LINE_INTERVAL = 5.0
"""Seconds between two lines."""
_MAX_LINE_INTERVAL = 60.0


class Display(Protocol):
    """Shows the figures of one stream. Its methods can raise what the output raises."""

    @property
    def interval(self) -> float:
        """Seconds until the next call of `show`."""
        ...

    def show(self, figures: Figures, /) -> None:
        """Show figures in place of the last ones."""
        ...

    def close(self, figures: Figures, /) -> None:
        """Show the last figures, and stop."""
        ...

    def abandon(self) -> None:
        """Stop, after another method has raised. Does not raise."""
        ...


class _StandardError(Console):
    """The console of standard error. A closed pipe is an error here, while rich exits the program then."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Raise an error: that there is nobody who reads progress must not end the program."""
        raise BrokenPipeError("standard error is closed")


def check_console(console: object) -> None:
    """Raise TypeError unless this is a console of rich, or None."""
    if console is not None and not isinstance(console, Console):
        raise TypeError(f"console must be a rich.console.Console, got {describe(console)}")


def open_display(console: Console | None, interval: float | None = None) -> Display:
    """Return the display that fits a console; None: standard error. `interval` is that of plain lines."""
    is_default = console is None
    if console is None:
        console = _StandardError()
    if is_default and _is_notebook():
        return NotebookDisplay()
    # A console that the program made can state that it is a terminal. Otherwise colors in a log (FORCE_COLOR) are not
    # enough: bars move the cursor.
    if console.is_interactive and not (is_default and (_is_set("CI") or not _is_terminal(console.file))):
        return BarDisplay(console, is_default=is_default)
    return LineDisplay(console, LINE_INTERVAL if interval is None else interval)


def _is_notebook() -> bool:
    """Return whether the program runs in an IPython kernel, whose output is that of a cell."""
    ipython = sys.modules.get("IPython")
    try:
        return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None
    except Exception:
        return False


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")


def _is_terminal(file: Any) -> bool:
    try:
        return bool(file.isatty())
    except Exception:
        return False  # there is none, or it is closed


# -- Plain lines -------------------------------------------------------------------------------------------------------


class LineDisplay:
    """A line every few seconds, and one at the end."""

    def __init__(self, console: Console, interval: float) -> None:
        self.interval = interval
        self._least = interval
        self._most = max(interval, _MAX_LINE_INTERVAL)
        self._console = console
        self._last: tuple[int, int] | None = None

    def show(self, figures: Figures) -> None:
        """Write a line, but not for the first figures. While nothing changes, lines come less and less often."""
        last, self._last = self._last, (figures.done, figures.running)
        if last is None:
            return
        self.interval = min(self._most, 2 * self.interval) if last == self._last else self._least
        self._write(figures.line())

    def close(self, figures: Figures) -> None:
        """Write the last line."""
        self._write(figures.line())

    def abandon(self) -> None:
        """Do nothing: there is nothing to restore."""

    def _write(self, line: str) -> None:
        file = self._console.file
        try:
            file.write(line + "\n")
        except UnicodeEncodeError:
            file.write(line.encode("ascii", "backslashreplace").decode() + "\n")
        file.flush()


# -- A notebook --------------------------------------------------------------------------------------------------------


class NotebookDisplay:
    """One output of a notebook, which is updated in its place."""

    interval = 0.5
    WIDTH = 30

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, figures: Figures) -> None:
        """Replace the text of the output."""
        text = {"text/plain": self._text(figures)}
        if self._handle is None:
            show = importlib.import_module("IPython.display").display  # it is not a requirement
            self._handle = show(text, raw=True, display_id=True)
        else:
            self._handle.update(text, raw=True)

    def close(self, figures: Figures) -> None:
        """Leave the last text."""
        self.show(figures)

    def abandon(self) -> None:
        """Do nothing: there is nothing to restore."""

    def _text(self, figures: Figures) -> str:
        bar = ""
        if figures.total:
            full = self.WIDTH * figures.done // figures.total
            bar = f"[{'#' * full}{'-' * (self.WIDTH - full)}] "
        first = f"{figures.name} {bar}{figures.counts()}, {figures.pace()}"
        return f"{first}\n{figures.state()}".rstrip()


# -- A terminal --------------------------------------------------------------------------------------------------------


class _Screen:
    """The bars of one terminal, below what the program prints. It takes and restores the terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: dict[BarDisplay, Figures] = {}
        self._take_back: list[Callable[[], None]] = []
        # What is not on a terminal, such as standard output in a pipe, must not be redirected to the terminal.
        self._live = Live(
            console=console,
            get_renderable=self._rendered,
            auto_refresh=False,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )

    def start(self) -> None:
        atexit.register(self.stop)
        before = (sys.stdout, sys.stderr)
        self._live.start()
        # Log handlers keep the stream that they were made with. What they write there would be drawn over.
        for old, new in zip(before, (sys.stdout, sys.stderr), strict=True):
            if new is not old:
                self._take_back.append(redirect_handlers(old, new))

    def stop(self) -> None:
        atexit.unregister(self.stop)
        try:
            self._live.stop()
        finally:
            while self._take_back:
                self._take_back.pop()()

    def refresh(self) -> None:
        self._live.refresh()

    def leave(self, figures: Figures) -> None:
        """Print the last figures of a stream above the bars of the others."""
        self.console.print(_rendered(figures, self.console.width))

    def _rendered(self) -> Group:
        return Group(*(_rendered(figures, self.console.width) for figures in list(self.rows.values())))


_screens: dict[Console | None, _Screen] = {}  # those with bars now; None: of standard error
_lock = threading.RLock()  # programs can have a loop in each of several threads


class BarDisplay:
    """A bar, and a line below it. All bars of a terminal are drawn together."""

    interval = 0.2

    def __init__(self, console: Console, *, is_default: bool) -> None:
        self._key = None if is_default else console
        self._console = console

    def show(self, figures: Figures) -> None:
        """Draw the bars."""
        with _lock:
            screen = _screens.get(self._key)
            if screen is None:
                screen = _screens[self._key] = _Screen(self._console)
                screen.start()
            screen.rows[self] = figures
            screen.refresh()

    def close(self, figures: Figures) -> None:
        """Leave the last figures on the terminal. The last bar restores the terminal."""
        with _lock:
            screen = _screens.get(self._key)
            if screen is None or self not in screen.rows:
                return
            screen.rows[self] = figures
            if len(screen.rows) > 1:
                del screen.rows[self]
                screen.leave(figures)
            else:
                del _screens[self._key]
                screen.stop()

    def abandon(self) -> None:
        """Leave the terminal as it was, as far as it still takes anything."""
        with _lock:
            screen = _screens.get(self._key)
            if screen is None:
                return
            screen.rows.pop(self, None)
            if not screen.rows:
                del _screens[self._key]
                try:
                    screen.stop()
                except (Exception, SystemExit):
                    pass  # it raised before, which is logged


def _rendered(figures: Figures, width: int) -> Group:
    """Return the bar and the line below it."""
    name, counts, pace = figures.name, figures.counts(), figures.pace()
    total: float | None = figures.total
    if figures.is_over:
        total = max(1, figures.done if total is None else total)
    room = width - len(name) - len(counts) - len(pace) - 4
    row = Table.grid(padding=(0, 1))
    for _ in range(4):
        row.add_column(no_wrap=True, overflow="crop")
    done = max(1, figures.done) if figures.is_complete else figures.done
    bar = ProgressBar(total=total, completed=done, width=max(4, min(40, room)))
    row.add_row(Text(name), bar, Text(counts), Text(pace, style="dim"))
    state = Text(
        f"  {figures.state()}".rstrip(), style="red" if figures.failed else "dim", no_wrap=True, overflow="crop"
    )
    return Group(row, state) if state.plain else Group(row)
