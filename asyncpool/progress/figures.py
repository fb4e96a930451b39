"""The figures of a tracked stream, and their texts. Values only: `tracking.py` reads them, `displays.py` shows them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["Figures", "Pace", "duration_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a display shows of a stream, all read at the same instant."""

    name: str
    done: int
    """Outcomes that the reader has received, with those that a journal had."""
    total: int | None
    """The expected `done`; None if it is not known, or was too small."""
    earlier: int
    """Of `done`, those that a journal had."""
    failed: int
    """Of `done`, the failures."""
    cancelled: int
    """Of `done`, the cancelled jobs."""
    seconds: float
    """Seconds since the first step of the reader."""
    rate: float | None
    """Jobs of this run per second; None if that is not known yet."""
    running: int
    workers: int
    queued: int
    delayed: int
    retries: int
    processes: int
    """Of the engine; 0 without one."""
    is_over: bool = False
    """Whether nothing more is read."""
    is_complete: bool = False
    """Whether the stream was read to its end."""

    @property
    def left(self) -> float | None:
        """Seconds until the end, at this rate; None if that is not known."""
        if self.total is None or not self.rate:
            return None
        try:
            return max(0, self.total - self.done) / self.rate
        except OverflowError:
            return None  # a total like 10**400: there is no end of that

    def counts(self) -> str:
        """`1,234/10,000 (12%)`, or only `1,234` if the total is not known."""
        if self.total is None:
            return f"{self.done:,}"
        percent = 100 * self.done // self.total if self.total else 100
        return f"{self.done:,}/{self.total:,} ({percent}%)"

    def pace(self) -> str:
        """`103.2/s, 1:25 left`; after the end, `103.2/s, 1:37`."""
        parts = [] if self.rate is None else [f"{self.rate:,.1f}/s"]
        if self.is_over:
            parts.append(duration_text(self.seconds))
        elif self.left is not None:
            parts.append(f"{duration_text(self.left)} left")
        else:
            parts.append(duration_text(self.seconds))
        return ", ".join(parts)

    def state(self) -> str:
        """The failures, and what the pool is doing: `20/20 running, 200 queued, 3 delayed, 5 failed, 7 retries`."""
        parts: list[str] = []
        if not self.is_over:
            parts.append(f"{self.running:,}/{self.workers:,} running")
            if self.processes:
                parts.append(f"{self.processes:,} process{'es' * (self.processes > 1)}")
            parts.append(f"{self.queued:,} queued")
            if self.delayed:
                parts.append(f"{self.delayed:,} delayed")
        for count, word in (
            (self.failed, "failed"),
            (self.cancelled, "cancelled"),
            (self.earlier, "done before"),
            (self.retries, "retry" if self.retries == 1 else "retries"),
        ):
            if count:
                parts.append(f"{count:,} {word}")
        return ", ".join(parts)

    def line(self) -> str:
        """All of it in one line, for logs."""
        if not self.is_over:
            parts = [self.counts(), self.pace(), self.state()]
        else:
            counts = f"{self.done:,}" if self.done == self.total else self.counts()
            done = f"{counts} done" if self.is_complete else f"stopped at {counts}"
            rate = "" if self.rate is None else f"{self.rate:,.1f}/s"
            parts = [f"{done} in {duration_text(self.seconds)}", rate, self.state()]
        return f"{self.name}: {', '.join(part for part in parts if part)}"


class Pace:
    """Jobs per second, over the last half minute, or since the start if that is later."""

    WINDOW = 30.0

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])

    def rate(self, now: float, ran: int) -> float | None:
        """Return the rate, at a moment at which `ran` jobs have ended; None in the first half second."""
        marks = self._marks
        # The oldest mark stays until the next is out of the window too: it is the base that the rate counts from.
        while len(marks) > 1 and marks[1][0] <= now - self.WINDOW:
            marks.popleft()
        since, base = marks[0]
        if now - marks[-1][0] >= 0.5:
            marks.append((now, ran))
        return (ran - base) / (now - since) if now - since >= 0.5 else None


def duration_text(seconds: float) -> str:
    """Return a time as `0.4 s`, `12 s`, `1:25`, `2:03:09` or `3 d 2:03:09`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
