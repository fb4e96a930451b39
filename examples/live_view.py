"""Show the progress of a running example: as bars on a terminal, as plain lines everywhere else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from examples.command_line import printable

if TYPE_CHECKING:
    import rich.console

__all__ = ["BarView", "Gauge", "View", "has_bars", "live_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """A figure to show: as words in a line, and on a terminal also as a bar if `full`, its maximum, is not 0."""

    name: str
    words: str
    value: float = 0.0
    full: float = 0.0


Gauges = Callable[[], Sequence[Gauge]]


class View:
    """Plain lines: messages, and once a second the gauges."""

    interval = 1.0

    def __init__(self, gauges: Gauges) -> None:
        self.gauges = gauges
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        """Fails when a line cannot be printed."""

    @property
    def seconds(self) -> float:
        """The seconds since the start, by the clock of the loop."""
        return self._loop.time() - self._began

    def say(self, text: str) -> None:
        """Print a permanent line with its time. Never raises, because observers call it; an error ends the block."""
        try:
            self._print(f"{self.seconds:5.1f} s  {printable(text)}")
        except OSError as error:
            if not self.failed.done():
                self.failed.set_exception(error)

    def show(self) -> None:
        """Show the gauges."""
        self.say(", ".join(gauge.words for gauge in self.gauges()))

    def close(self) -> None:
        """Stop showing."""

    def _print(self, line: str) -> None:
        print(line, flush=True)


class BarView(View):
    """Bars below the permanent lines, updated ten times a second. It needs `rich`."""

    interval = 0.1

    def __init__(self, gauges: Gauges) -> None:
        import rich.live

        super().__init__(gauges)
        self._live = rich.live.Live(get_renderable=self._drawn, auto_refresh=False, transient=True)
        self._live.start()

    def show(self) -> None:
        """Draw the gauges."""
        self._live.refresh()

    def close(self) -> None:
        """Remove the gauges."""
        self._live.stop()

    def _drawn(self) -> rich.console.RenderableType:
        import rich.console
        import rich.progress_bar
        import rich.table
        import rich.text

        bars = rich.table.Table.grid(padding=(0, 1))
        lines: list[rich.console.RenderableType] = [bars]
        for gauge in self.gauges():
            words = printable(gauge.words)
            if gauge.full:
                bar = rich.progress_bar.ProgressBar(total=gauge.full, completed=min(gauge.value, gauge.full), width=40)
                bars.add_row(gauge.name, bar, rich.text.Text(words))
            else:
                lines.append(rich.text.Text(words, no_wrap=True, overflow="ellipsis"))
        return rich.console.Group(*lines)

    def _print(self, line: str) -> None:
        self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)


@asynccontextmanager
async def live_view(gauges: Gauges) -> AsyncGenerator[View]:
    """Show the gauges while the block runs: as bars if standard output is a terminal and `rich` is installed.

    Raises:
        OSError: A line could not be printed. The block is cancelled.
    """
    view = (BarView if has_bars() else View)(gauges)
    try:
        async with asyncio.TaskGroup() as tasks:
            showing = tasks.create_task(_show(view), name="view")
            yield view
            showing.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        view.close()


async def _show(view: View) -> None:
    while True:
        await asyncio.wait([view.failed], timeout=view.interval)
        if view.failed.done():
            view.failed.result()
        view.show()


def has_bars() -> bool:
    """Return whether standard output is a terminal on which `rich` can draw."""
    if not sys.stdout.isatty():
        return False
    try:
        import rich.console
    except ModuleNotFoundError:
        return False
    return not rich.console.Console().is_dumb_terminal
