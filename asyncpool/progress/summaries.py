"""`summary`: what a pool did, as values and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from asyncpool._checks import check_count
from asyncpool._core.channel import Readable, channel_of
from asyncpool._core.parts import parts_of
from asyncpool._guard import describe
from asyncpool.progress.errors import errors_of, one_line
from asyncpool.progress.figures import duration_text
from asyncpool.stats import Distribution, PoolStats

__all__ = ["PoolSummary", "summary"]

_SHOWN_ERRORS = 10


class _HasStats(Protocol):
    """A pool, for the type checker: `parts_of` checks the rest."""

    @property
    def stats(self) -> PoolStats:
        """Its counters."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """What a pool did until a moment. `str()` gives a text of several lines. Made by `summary()`."""

    stats: PoolStats
    """The counters of the pool. The durations are those of attempts, so a retried job has several."""
    seconds: float
    """Seconds from the start of the pool until then, or until it was closed, idle times included."""
    errors: Mapping[str, int] | None
    """How often each error occurred, the most frequent first, by its type and the first line of its text. None: nothing
    counted them, because no stream of the pool was tracked."""

    @property
    def ended(self) -> int:
        """Jobs that succeeded, failed or were cancelled."""
        return self.stats.succeeded + self.stats.failed + self.stats.cancelled

    @property
    def rate(self) -> float:
        """Jobs that ended, per second."""
        return self.ended / self.seconds if self.seconds else 0.0

    @property
    def uncounted_errors(self) -> int:
        """Failed jobs whose errors are not in `errors`, for example those of other streams, or read by a handle."""
        return max(0, self.stats.failed - sum((self.errors or {}).values()))

    def __str__(self) -> str:
        stats = self.stats
        jobs = "1 job" if self.ended == 1 else f"{self.ended:,} jobs"
        lines = [f"{one_line(stats.name)}: {jobs} in {duration_text(self.seconds)}, {self.rate:,.1f} per second"]
        lines.append(f"  {stats.succeeded:,} succeeded, {stats.failed:,} failed, {stats.cancelled:,} cancelled")
        if open_jobs := stats.submitted - self.ended:
            lines.append(f"  {open_jobs:,} not ended: {_states(stats)}")
        if stats.retries:
            lines.append(f"  {stats.retries:,} {'retry' if stats.retries == 1 else 'retries'}")
        if stats.seconds_running.count:
            lines.append(f"  waiting: {_percentiles(stats.seconds_queued)}")
            lines.append(f"  running: {_percentiles(stats.seconds_running)}")
        lines += self._error_lines()
        return "\n".join(lines)

    def _error_lines(self) -> list[str]:
        if not self.errors:
            return []
        shown = list(self.errors.items())[:_SHOWN_ERRORS]
        width = max(len(f"{count:,}") for _, count in shown)
        lines = ["  errors:", *(f"    {count:{width},} x {text}" for text, count in shown)]
        if others := len(self.errors) - len(shown):
            lines.append(f"    and {others:,} other{'s' * (others > 1)}")
        if self.uncounted_errors:
            lines.append(f"    {self.uncounted_errors:,} failed jobs whose errors were not counted")
        return lines


def summary(pool: _HasStats | Readable[Any, Any], *, errors: Mapping[str, int] | None = None) -> PoolSummary:
    """Return what a pool has done so far: outcomes, retries, time, rate, waiting and running times, frequent errors.

        print(summary(pool))

    Statistics do not have errors, so they must be counted. `track` counts those of each stream whose progress it shows,
    by their type and first line, as it delivers them. It counts up to a thousand different errors of a pool. For other
    jobs, pass `errors`:

        errors = Counter(letter.error_type for letter in dead_letters)
        print(summary(pool, errors=errors))

    Args:
        pool: The pool, before, during or after its run; or a stream or group of it, such as that of
            `asyncpool.outcomes`.
        errors: How often each error occurred, in place of what `track` has counted.

    Raises:
        TypeError: `pool` is neither; `errors` is not a mapping of texts to integers.
        ValueError: A count is negative.
    """
    parts = channel_of(pool).parts if isinstance(pool, Readable) else parts_of(pool)
    if errors is None:
        counted = errors_of(parts)
        errors = None if counted is None else counted.by_text
    elif not isinstance(errors, Mapping):
        raise TypeError(f"errors must map texts to how often they occurred, got {describe(errors)}")
    if errors is not None:
        counts: Counter[str] = Counter()
        for text, count in errors.items():  # texts with the same first line are one
            counts[_text(text)] += check_count("a count of errors", count, least=0)
        errors = dict(counts.most_common())
    return PoolSummary(stats=parts.stats(), seconds=parts.state.seconds, errors=errors)


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"errors must map texts to how often they occurred, got the key {describe(text)}")
    return one_line(text)


def _states(stats: PoolStats) -> str:
    return f"{stats.queued:,} queued, {stats.delayed:,} delayed, {stats.running:,} running"


def _percentiles(times: Distribution) -> str:
    named = (("p50", times.p50), ("p95", times.p95), ("p99", times.p99), ("max", times.max))
    return ", ".join(f"{name} {_short(seconds)}" for name, seconds in named)


def _short(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else duration_text(seconds)
