"""What a case may ask of a library. What a library has not, it leaves as it is here: it raises `Lacks`.

A library is asked in three ways. `values` is its map over many jobs, which raises what a job raised; `outcomes` is the
same with failures as data; `pool` is what lives as long as an app and takes one job at a time. Each is an async context
manager, which is left as the library wants to be left early: by closing its stream, by stopping its workers.
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
    """What became of a job: its value, or the error."""

    value: Any
    error: BaseException | None


class Mapped:
    """An iterator whose items go through a function. Not a generator: one would end where its reader is cancelled."""

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
    """What may be asked for besides the handler, the jobs and the limit.

    Attributes:
        queue_size: how many may wait, where the library lets one choose; None: as it likes it.
        timeout: seconds of one attempt.
        attempts: how often a failing job is tried.
        backoff: seconds before the second attempt.
        jitter: the pause may be random, if the library can.
        rate: at most so many starts ...
        per: ... in so many seconds.
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
        """The features that a library must have for this."""
        asked = {"timeouts": self.timeout is not None, "retries": self.attempts > 1, "rates": self.rate is not None}
        return {name for name, is_asked in asked.items() if is_asked}


class Pool:
    """A pool that runs: what a web service or a bot has for as long as it lives."""

    async def submit(self, job: Any) -> None:
        """Wait for room, and hand a job in."""
        raise Lacks("jobs one by one, with back-pressure")

    def submit_nowait(self, job: Any) -> None:
        """Hand a job in, or raise `asyncio.QueueFull`."""
        raise Lacks("a submit that refuses when full")

    async def run(self, job: Any) -> Any:
        """Hand a job in, and return its value."""
        raise Lacks("a value for each submitter")

    async def stop(self) -> list[Any]:
        """Stop now, whatever runs; return the jobs that were not done, as far as the library knows."""
        raise NotImplementedError

    def outcomes(self, jobs: Iterable[Any]) -> AsyncIterator[Ended]:
        """Stream many jobs through this pool."""
        raise Lacks("streams through a pool that can be stopped")


class Library:
    """One column of the table.

    Attributes:
        name: what the column is called.
        distribution: whose version is told, and what to install if it is missing; None for the standard library.
        module: what must be importable.
        features: which of "timeouts", "retries" and "rates" its map has.
        streams: results come while jobs still wait.
        is_lazy: takes any iterable, and need not have all of it before the first result.
        stops: its pool can be stopped without waiting for all jobs.
        hands_back: it then tells what was not done.
    """

    name: ClassVar[str]
    distribution: ClassVar[str | None] = None
    module: ClassVar[str | None] = None
    features: ClassVar[frozenset[str]] = frozenset()
    streams: ClassVar[bool] = False
    is_lazy: ClassVar[bool] = False
    stops: ClassVar[bool] = False
    hands_back: ClassVar[bool] = False

    def load(self) -> None:
        """Import it; raises an ImportError if something is missing that it needs."""
        if self.module is not None:
            import_module(self.module)

    def values(self, handler: Handler, jobs: Iterable[Any], *, workers: int, **options: Any) -> Results:
        """Values, and the first failure raised."""
        return self._values(handler, jobs, workers, self._checked(options))

    def outcomes(self, handler: Handler, jobs: Iterable[Any], *, workers: int, **options: Any) -> Results:
        """An `Ended` for each job."""
        return self._outcomes(handler, jobs, workers, self._checked(options))

    def stream(self, handler: Handler, jobs: Iterable[Any], *, workers: int) -> Results:
        """Values, of a library that gives the first before the last job has begun."""
        if not self.streams:
            raise Lacks("results before all jobs are done")
        return self.values(handler, jobs, workers=workers)

    def lazy_stream(self, handler: Handler, jobs: Iterable[Any], *, workers: int) -> Results:
        """The same, and inputs need not be a list."""
        results = self.stream(handler, jobs, workers=workers)
        if not self.is_lazy:
            raise Lacks("lazy input: it takes a list")
        return results

    def pool(self, handler: Handler, *, workers: int, room: int) -> AbstractAsyncContextManager[Pool]:
        """A pool in which `room` jobs may wait."""
        raise Lacks("a pool that takes jobs one by one")

    def stoppable_pool(self, handler: Handler, *, workers: int, room: int) -> AbstractAsyncContextManager[Pool]:
        """The same, of a library whose pool can be stopped early."""
        pool = self.pool(handler, workers=workers, room=room)
        if not self.stops:
            raise Lacks("a stop that does not wait for all jobs")
        return pool

    def accountable_pool(self, handler: Handler, *, workers: int, room: int) -> AbstractAsyncContextManager[Pool]:
        """The same, and told what was not done."""
        pool = self.stoppable_pool(handler, workers=workers, room=room)
        if not self.hands_back:
            raise Lacks("a list of what was not done")
        return pool

    def retry_after(self, seconds: float) -> Exception:
        """Make what a handler raises to be tried again, but not before so many seconds."""
        raise Lacks("a failure that says when to come back")

    def _checked(self, options: dict[str, Any]) -> Options:
        asked = Options(**options)
        for feature in sorted(asked.features - self.features):
            raise Lacks(feature)
        return asked

    def _values(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        raise Lacks("a map over many jobs")

    def _outcomes(self, handler: Handler, jobs: Iterable[Any], workers: int, options: Options) -> Results:
        raise Lacks("failures as data: the first ends it all")
