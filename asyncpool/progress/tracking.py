"""`track`: counts what the reader of a stream receives, and shows it until the stream is read, left or cancelled.

What it looks like is `displays.py`.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from asyncpool._checks import check_count, check_seconds
from asyncpool._core.channel import Channel, Cursor, Readable, Reading, channel_of
from asyncpool._guard import describe, is_error
from asyncpool._logs import log
from asyncpool.errors import StreamClosed
from asyncpool.outcomes import Failed, Outcome, Succeeded
from asyncpool.progress.errors import counting_errors_of, one_line
from asyncpool.progress.figures import Figures, Pace

if TYPE_CHECKING:
    from rich.console import Console

    from asyncpool.progress.displays import Display

__all__ = ["track", "track_channel"]

StreamT = TypeVar("StreamT", bound=Readable[Any, Any])

_MAX_NAME = 30
# A console of rich exits the program if nobody reads its output. Progress is not worth that.
_DISPLAY_ERRORS = (Exception, SystemExit)


def track(
    stream: StreamT,
    *,
    total: int | None = None,
    name: str | None = None,
    interval: float | None = None,
    console: Console | None = None,
) -> StreamT:
    """Show the progress of a stream or group while it is read, and return it.

        async for page in track(pool.map(urls)):
            ...

    It is the same object, so all that the stream does and guarantees stays as it is: it can be awaited, closed and
    left, and a cancelled `anext()` loses nothing. Each outcome is counted when the reader receives it. A timer draws;
    jobs do not. The display ends with the stream, whether that is read to its end, left by `break`, `return` or an
    error, cancelled or closed.

    It shows the jobs that are done, the total, the jobs per second of the last half minute and the time left. Of the
    pool, it shows the running jobs and the workers, the processes of the engine, and the jobs that are queued, delayed
    and retried, those of other streams included. Failures are those that this stream has delivered. Jobs that a journal
    has passed over count as done. They are also shown as "done before", and do not count for the rate.

    Where it is shown depends on standard error, so that standard output can be a file or a pipe:

    * A terminal gets a bar with a line below it, drawn five times a second. What the program prints and logs to the
      terminal meanwhile appears above the bar. Several streams have a bar each.
    * A notebook (IPython kernel) gets one output, which is updated twice a second.
    * Anything else, and a terminal in CI (the environment variable `CI` is set), gets a plain line every five seconds,
      less often while nothing changes, and one at the end.

    If the display raises, because standard error is closed for example, this is logged, and the stream continues
    without it. On virtual time, the timer keeps a deadlock from being detected.

    Args:
        stream: What `map` or `outcomes` of a pool, of a journal or of `asyncpool` returned, or a group.
        total: The number of jobs. None: the `len()` of the source, if it has one. If more jobs than this are done, the
            total counts as unknown.
        name: What the display calls it. None: the name of the pool.
        interval: Seconds between two plain lines. None: 5.
        console: The rich console to show it on. None: standard error.

    Raises:
        ModuleNotFoundError: The package rich is not installed.
        StreamClosed: Somebody reads the stream already, or it is cancelled.
        TypeError, ValueError: An argument is not of its type or range.
    """
    track_channel(channel_of(stream), total=total, name=name, interval=interval, console=console)
    return stream


def track_channel(
    channel: Channel[Any],
    *,
    total: int | None = None,
    name: str | None = None,
    interval: float | None = None,
    console: Console | None = None,
) -> None:
    """Do what `track` does, for the channel of a stream."""
    from asyncpool.progress.displays import check_console, open_display  # they need rich

    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, got {describe(name)}")
    total = channel.source_length() if total is None else check_count("total", total, least=0)
    if interval is not None:
        interval = check_seconds("interval", interval, positive=True)
    check_console(console)
    if channel.reading is not Reading.NEW:
        raise StreamClosed(f"{channel.name} is already {channel.reading.value}: call track() before the first step")
    name = one_line(channel.parts.state.name if name is None else name, _MAX_NAME)
    channel.tracker = StreamTracker(channel, name, total, lambda: open_display(console, interval))


class StreamTracker:
    """Counts the outcomes of one stream, and shows them from the first step of its reader to its end."""

    def __init__(
        self,
        channel: Channel[Any],
        name: str,
        total: int | None,
        open_display: Callable[[], Display],
    ) -> None:
        self.done = 0  # the cursor counts
        self._is_begun = False
        self._is_complete = False  # whether the reader has received the end
        self._failed = 0
        self._cancelled = 0
        self._channel = channel
        self._name = name
        self._total = total
        self._open_display = open_display
        self._errors = counting_errors_of(channel.parts)
        self._display: Display | None = None  # from the first step on; None again when it ends, or has failed
        self._timer: asyncio.TimerHandle | None = None

    def open_cursor(self, channel: Channel[Any]) -> TrackedCursor:
        """Return the cursor of the channel, which counts."""
        if asyncio._get_running_loop() is not None:
            self.begin()
        return TrackedCursor(channel, self)

    def begin(self) -> None:
        """Begin to show, once, when the reader comes."""
        if self._is_begun:
            return
        self._is_begun = True
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._pace = Pace(self._began)
        try:
            self._display = self._open_display()
        except _DISPLAY_ERRORS as error:
            self._report(error)
            return
        atexit.register(self.end)  # if the loop is abandoned, the terminal must be restored all the same
        self._show()

    def count_other(self, outcome: Outcome[Any, Any]) -> None:
        """Count an outcome that is no success."""
        if isinstance(outcome, Failed):
            self._failed += 1
            self._errors.count(outcome.error)
        else:
            self._cancelled += 1

    def left_out(self, outcome: Outcome[Any, Any], /) -> None:
        """Count an outcome that the reader does not get, although the stream goes on."""
        self.done += 1
        self.count_other(outcome)

    def reader_got(self, error: BaseException) -> None:
        """Note what the wait of the reader raised: the end, or only its own cancellation."""
        if self._channel.reading is not Reading.READING:
            self._is_complete = is_error(error, StopAsyncIteration)
            self.end()

    def end(self) -> None:
        """Show the last figures, and stop."""
        display, self._display = self._display, None
        if display is None:
            return
        atexit.unregister(self.end)
        if self._timer is not None:
            self._timer.cancel()
        try:
            display.close(self._figures(is_over=True))
        except _DISPLAY_ERRORS as error:
            self._fail(display, error)

    def end_soon(self) -> None:
        """End, because the cursor is dropped: from any thread, and while the collector runs."""
        if self._display is None:
            return
        if asyncio._get_running_loop() is self._loop:
            self.end()  # at once, so that what the program prints next comes after it
            return
        try:
            self._loop.call_soon_threadsafe(self.end)
        except RuntimeError:  # the loop is closed
            self.end()

    def _show(self) -> None:
        display = self._display
        if display is None:
            return
        if self._channel.reading is not Reading.READING:
            self.end()
            return
        try:
            display.show(self._figures(is_over=False))
        except _DISPLAY_ERRORS as error:
            self._fail(display, error)
            return
        self._timer = self._loop.call_later(display.interval, self._show)

    def _fail(self, display: Display, error: BaseException) -> None:
        """Show no more, and leave the terminal as it was before."""
        self._display = None
        atexit.unregister(self.end)
        display.abandon()
        self._report(error)

    def _report(self, error: BaseException) -> None:
        log.warning(
            "pool %r: the progress of a stream is no longer shown, because the display raised %s",
            self._channel.parts.state.name,
            describe(error),
        )

    def _figures(self, *, is_over: bool) -> Figures:
        stats = self._channel.parts.stats()
        passed_over, given = self._channel.passed_over, min(self._channel.given, self.done)
        now = self._loop.time()
        done, ran, seconds = self.done + passed_over, self.done - given, now - self._began
        rate = (ran / seconds if seconds > 0 else None) if is_over else self._pace.rate(now, ran)
        return Figures(
            name=self._name,
            done=done,
            total=None if self._total is None or done > self._total else self._total,
            earlier=passed_over + given,
            failed=self._failed,
            cancelled=self._cancelled,
            seconds=seconds,
            rate=rate,
            running=stats.running,
            workers=stats.workers,
            queued=stats.queued,
            delayed=stats.delayed,
            retries=stats.retries,
            processes=stats.processes,
            is_over=is_over,
            is_complete=self._is_complete,
        )


class TrackedCursor(Cursor[Any]):
    """A cursor that counts what it gives, in the tracker."""

    __slots__ = ("_tracker",)

    def __init__(self, channel: Channel[Any], tracker: StreamTracker) -> None:
        super().__init__(channel)
        self._tracker = tracker

    async def __anext__(self) -> Any:
        """Return the next item. Cancel-safe: nothing is lost, and the stream stays open.

        It is the `__anext__` of its base, which counts. To call that would cost 8% of a job that does nothing.
        """
        tracker, channel = self._tracker, self._channel
        ready = channel.ready
        while True:
            if not ready:
                tracker.begin()  # if there was no loop before
                try:
                    await channel.wait_for_news()
                except BaseException as error:
                    tracker.reader_got(error)
                    del self  # or the traceback, if somebody keeps it, keeps the cursor alive, and so the stream
                    raise
                continue
            outcome: Any = ready.popleft()
            tracker.done += 1
            if channel.line.waiting:
                channel.line.wake_next()
            if type(outcome) is not Succeeded:
                tracker.count_other(outcome)
                if channel.raises:
                    channel.end_with(outcome)
                    del outcome  # its error knows this frame when it is raised
                    continue
            return outcome.value if channel.raises else outcome  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # of Any

    def __del__(self) -> None:
        try:
            tracker = self._tracker
        except AttributeError:  # an interrupt came before `__init__` had ended (tests/test_finalizers.py)
            tracker = None
        try:
            if tracker is not None:
                tracker.end_soon()
        finally:
            super().__del__()
