"""The interface between cases and libraries. A feature that a library does not override raises `Lacks`.

A library offers up to three things. `values` maps a handler over many jobs and raises what a job raised. `outcomes`
does the same with failures as data. `pool` lives as long as an application and takes one job at a time. Each is an
async context manager, whose exit ends the library's work as its documentation recommends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from benchmarks.gauntlet.verdicts import Lacks

Handler = Callable[[Any], Awaitable[Any]]
Results = AbstractAsyncContextManager[AsyncIterator[Any]]


class Ended(NamedTuple):
    """How a job ended: its value or its error."""

    value: Any
    error: BaseException | None


class Mapped:
    """Applies a function to each item of an iterator. Not a generator, which would end when its reader is cancelled."""

    def __init__(self, items: AsyncIterator[Any], function: Callable[[Any], Any]) -> None:
        self._items = items
        self._function = function

    def __aiter__(self) -> Mapped:
        return self

    async def __anext__(self) -> Any:
        item = await anext(self._items)
        try:
            return self._function(item)
        except StopAsyncIteration as error:  # raised in the body of a loop, it would not end the loop
            raise RuntimeError("StopAsyncIteration") from error


@dataclass(frozen=True, slots=True)
class Options:
    """Options besides the handler, the jobs and the limit.

    Attributes:
        queue_size: how many jobs can wait, if the library has such an option; None: its default.
        timeout: seconds of one attempt.
        attempts: how many attempts a failing job has.
        backoff: seconds before the second attempt.
        jitter: allows a random pause, if the library supports it.
        rate: the number of starts allowed in `per` seconds.
        per: the seconds to which `rate` refers.
    """

    queue_size: int | None = None
    timeout: float | None = None
    attempts: int = 1
    backoff: float = 0.0
    jitter: bool = False
    rate: int | None = None
    per: float = 1.0

    @property
    def features(self) -> set[str]:
        """The features that a library needs for these options."""
        asked = {
            "timeouts": self.timeout is not None,
            "retries": self.attempts > 1,
            "rate limits": self.rate is not None,
        }
        return {name for name, is_asked in asked.items() if is_asked}


class Pool:
    """A running pool, as a web service or a bot has one for its whole life."""

    async def submit(self, job: Any) -> None:
        """Wait for a free place, and submit a job."""
        raise Lacks("back-pressure")

    def submit_nowait(self, job: Any) -> None:
        """Submit a job, or raise `asyncio.QueueFull`."""
        raise Lacks("submit without waiting")

    async def run(self, job: Any) -> Any:
        """Submit a job, and return its value."""
        raise Lacks("results per caller")

    async def stop(self) -> list[Any]:
        """Stop now, whatever is running, and return the unfinished jobs that the library knows of."""
        raise NotImplementedError

    def outcomes(self, jobs: Iterable[Any]) -> AsyncIterator[Ended]:
        """Stream many jobs through this pool."""
        raise Lacks("streams of a pool")


class Library:
    """One column of the table.

    Attributes:
        name: the heading of the column.
        distribution: the distribution to install, whose version is shown; None for the standard library.
        module: the module that must be importable.
        features: which of "timeouts", "retries" and "rate limits" its map has.
        streams: results arrive while jobs still wait.
        is_lazy: takes any iterable, and gives the first result before it has read all of it.
        stops: its pool can be stopped without waiting for all jobs.
        hands_back: a stopped pool returns its unfinished jobs.
        patience: a factor for the time limit of a cell.
    """

    name: ClassVar[str]
    distribution: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    features: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[bool] = False
    is_lazy: ClassVar[bool] = False
    stops: ClassVar[bool] = False
    hands_back: ClassVar[bool] = False
    patience: ClassVar[float] = 1.0

    def load(self) -> None:
        """Import it, or raise an ImportError."""
        if self.module is not None:
            import_module(self.module)

    def values(self, handler: Handler, jobs: Iterable[Any], *, workers: int, **options: Any) -> Results:
        """Give the values, and raise the first failure."""
        return self._values(handler, jobs, workers, self._checked(options))

    def outcomes(self, handler: Handler, jobs: Iterable[Any], *, workers: int, **options: Any) -> Results:
        """Give an `Ended` for each job."""
        return self._outcomes(handler, jobs, workers, self._checked(options))

    def stream(self, handler: Handler, jobs: Iterable[Any], *, workers: int) -> Results:
        """Give values, the first before the last job has started."""
        if not self.streams:
            raise Lacks("streaming")
        return self.values(handler, jobs, workers=workers)

    def lazy_stream(self, handler: Handler, jobs: Iterable[Any], *, workers: int) -> Results:
        """As `stream`, and the inputs can be any iterable."""
        results = self.stream(handler, jobs, workers=workers)
        if not self.is_lazy:
            raise Lacks("lazy input")
        return results

    def pool(self, handler: Handler, *, workers: int, room: int) -> AbstractAsyncContextManager[Pool]:
        """Open a pool in which `room` jobs can wait."""
        raise Lacks("a pool")

    def stoppable_pool(self, handler: Handler, *, workers: int, room: int) -> AbstractAsyncContextManager[Pool]:
        """As `pool`, if the pool can be stopped early."""
        pool = self.pool(handler, workers=workers, room=room)
        if not self.stops:
            raise Lacks("early stop")
        return pool

    def accountable_pool(self, handler: Handler, *, workers: int, room: int) -> AbstractAsyncContextManager[Pool]:
        """As `stoppable_pool`, if the pool returns its unfinished jobs."""
        pool = self.stoppable_pool(handler, workers=workers, room=room)
        if not self.hands_back:
            raise Lacks("unfinished jobs")
        return pool

    def retry_after(self, seconds: float) -> Exception:
        """Return the exception that makes a handler be retried, but not within this many seconds."""
        raise Lacks("retry delay per error")

    def _checked(self, options: dict[str, Any]) -> Options:
        asked = Options(**options)
        for feature in sorted(asked.features - self.features):
            raise Lacks(feature)
        return asked

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        raise Lacks("a map over many jobs")

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        raise Lacks("failures as data")
