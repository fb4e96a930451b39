"""`Journal`: which jobs of a batch are done, in a file, so that a program that was killed goes on where it was.

The streams are `channel.py`, the thread `session.py`, the file `file.py`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asyncpool._checks import check_function
from asyncpool._core.parts import parts_of
from asyncpool._core.run_limits import RunLimits
from asyncpool._guard import describe
from asyncpool.errors import JournalError
from asyncpool.journal.entries import FailedJob, JournalCounts, Key, check_key
from asyncpool.outcomes import Outcome
from asyncpool.pool import WorkerPool
from asyncpool.streams import Stream

if TYPE_CHECKING:
    from asyncpool.journal.session import JournalSession

__all__ = ["Journal"]

JobT = TypeVar("JobT")
ValueT = TypeVar("ValueT")
HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[Any]])


class Journal(Generic[JobT]):
    """Keeps in a file which jobs of a batch are done: run the program again after a crash, and it goes on.

        journal = Journal("mails.db", key=lambda mail: mail.id)
        async with WorkerPool(send, workers=20) as pool:
            async for outcome in journal.outcomes(pool, mails()):
                ...

    A job is recorded when it ends, and delivered to the reader after that. So whatever the reader has received is
    recorded, and never runs again. **At least once**: a job whose process is killed (or whose machine loses power)
    between its effect and the commit runs again in the next run. For each stream these are at most twice as many jobs
    as the pool has workers; make them idempotent, or use `recorded` for a shorter gap.

    Jobs that failed permanently are kept with their error (`failed()`), and tried again by the next run. Jobs that were
    cancelled are not recorded.

    Nothing has to be opened or closed: the file is opened when the first stream is read, and closed when the last one
    has ended and everything is written. That is one *run*. Within a run, jobs with the same key run once. Several
    streams of one event loop can use one journal object at the same time; a second process, or another journal object
    with the same path, gets a `JournalError`. A run holds a lock on `FILE.lock`, which disappears with its process; the
    file itself stays, and is empty.

    The file is an SQLite database. It is written by one thread; all jobs that end during a commit share the next one.

    Args:
        path: The file. It is created if it does not exist; its folder must exist, and should not be on a network file
            system, whose locks cannot be relied on.
        key: Returns what identifies a job, in all runs: a str, an int of 64 bits, or bytes. A job for which it raises,
            or returns anything else, fails with that error.
        version: What the entries mean. A file of another version is rejected: change it if jobs that are done must run
            again, because the handler or the meaning of a key has changed.
        values: Whether values are kept too, pickled, so that a later run can deliver them: for `map` and `earlier`.
            Reading a pickle can run code, so nobody else should be able to write to the file.
        durable: Whether each commit waits until the disk has it. If not, the record survives the end of the process,
            but the last commits can be lost in a power failure.

    Raises:
        TypeError: An argument is not of its type.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: Callable[[JobT], Key],
        version: str = "",
        values: bool = False,
        durable: bool = True,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a str or a path, got {describe(path)}")
        check_function("key", key)
        if not isinstance(version, str):
            raise TypeError(f"version must be a str, got {describe(version)}")
        for name, value in (("values", values), ("durable", durable)):
            _check_flag(name, value)
        # Absolute, because a program can change its working directory.
        self.path = os.path.abspath(path)
        """The file, as an absolute path."""
        self.skipped = 0
        """How many jobs were passed over because they are done, or delivered without running."""
        self.repeated = 0
        """How many jobs were passed over because another with the same key runs, or has failed, in the same run."""
        self._key = key
        self._version = version
        self._values = values
        self._durable = durable
        self._session: JournalSession | None = None

    # -- Streams -----------------------------------------------------------------------------------------------------

    def outcomes(
        self,
        pool: WorkerPool[JobT, ValueT],
        jobs: Iterable[JobT] | AsyncIterable[JobT],
        *,
        ordered: bool = False,
        earlier: bool = False,
        skip_failed: bool = False,
        max_failures: float | None = None,
        deadline: float | None = None,
    ) -> Stream[Outcome[JobT, ValueT]]:
        """Return the stream of `pool.outcomes(jobs)` without the jobs that are done; it records before it delivers.

        It behaves as every stream: it can be iterated, awaited for a list, closed, left early; a slow reader slows the
        source. When it ends, everything it has delivered is recorded, and the file is closed. If the journal cannot be
        written any more (the disk is full), it cancels what runs, and ends with a `JournalError` whose `unrecorded` has
        the inputs of the jobs that succeeded and could not be recorded; what was delivered before is recorded.

        Inputs are looked up in groups: as many as there is room for, and up to 256 while all of them are done.

        Args:
            pool: The pool that runs the jobs, with or without an engine. Its workers bound how many jobs can run again
                after a kill: twice as many as there are workers.
            jobs: All inputs of the batch, an iterable or async iterable.
            ordered: Whether outcomes come in the order of the jobs, or as jobs complete.
            earlier: Also deliver what is done already, with the recorded value; such a `Succeeded` has 0 `attempts`. An
                input whose key repeats waits for the first, and gets its value. Needs `values=True`. A job whose value
                could not be pickled or cannot be read runs again, which is logged.
            skip_failed: Do not try jobs again that failed in an earlier run.
            max_failures: As in `WorkerPool.outcomes`. Jobs that do not run in this run do not count.
            deadline: As in `WorkerPool.outcomes`.

        Raises:
            TypeError: An argument is not of its type, or `earlier` without `values=True`.
            ValueError: A number is out of range.
        """
        for name, value in (("earlier", earlier), ("skip_failed", skip_failed)):
            _check_flag(name, value)
        if earlier:
            self._check_values("earlier=True")
        limits = RunLimits.of(max_failures, deadline)
        return self._stream(pool, jobs, ordered, False, earlier, skip_failed, limits)

    def map(
        self,
        pool: WorkerPool[JobT, ValueT],
        jobs: Iterable[JobT] | AsyncIterable[JobT],
        *,
        ordered: bool = True,
        max_failures: float | None = None,
        deadline: float | None = None,
    ) -> Stream[ValueT]:
        """Return the stream of `pool.map(jobs)`; jobs that are done do not run, and their values come from the journal.

        The first failure is raised, as by `pool.map`, and the job is recorded as failed. All else as in `outcomes`.

        Args:
            pool: The pool that runs the jobs.
            jobs: All inputs of the batch, an iterable or async iterable.
            ordered: Whether values come in the order of the jobs, or as jobs complete.
            max_failures: As in `WorkerPool.map`. Jobs that do not run in this run do not count.
            deadline: As in `WorkerPool.map`.

        Raises:
            TypeError: An argument is not of its type, or the journal was made without `values=True`.
            ValueError: A number is out of range.
        """
        self._check_values("map()")
        limits = RunLimits.of(max_failures, deadline)
        return self._stream(pool, jobs, ordered, True, True, False, limits)

    def _stream(
        self,
        pool: object,
        jobs: Any,
        ordered: bool,
        raises: bool,
        earlier: bool,
        skip_failed: bool,
        limits: RunLimits | None,
    ) -> Stream[Any]:
        with _needing_sqlite():
            from asyncpool.journal.channel import JournalChannel, LimitedJournalChannel

        channel = (JournalChannel if limits is None else LimitedJournalChannel)(
            parts_of(pool),
            jobs,
            ordered=ordered,
            raises=raises,
            key_of=self._key_of,
            enter=self._enter,
            tally=self,
            keeps_values=self._values,
            earlier=earlier,
            skip_failed=skip_failed,
        )
        if limits is not None and isinstance(channel, LimitedJournalChannel):
            channel.limit(limits)
        return Stream(channel)

    # -- Parts of it, for programs that are not one stream -----------------------------------------------------------

    def recorded(self, handler: HandlerT) -> HandlerT:
        """Return a handler that records its job inside the job: it returns once the record is on the disk.

            async with WorkerPool(journal.recorded(send), workers=20) as pool:
                async for outcome in journal.outcomes(pool, mails()):
                    ...

        For jobs whose effect must not be repeated, such as an e-mail: after a kill, at most the jobs that were running
        run again, which are as many as there are workers, and usually only those whose record was being written.

        The job holds its worker during the commit, and the commit counts for the `timeout`; but once the handler has
        returned, neither a timeout nor a cancellation makes the job fail. It does not look whether a job is done:
        `outcomes` and `pending` do. It records jobs that succeed; failures are recorded by `outcomes`. If the journal
        cannot be written, the job fails with a `JournalError`, and is not retried.

        It works in the process of the journal only, so not with an engine. The file stays open until the pool closes.

        Args:
            handler: `handler(job)`, or `handler(job, resource)`: an async function.

        Raises:
            TypeError: `handler` is not callable.
        """
        with _needing_sqlite():
            from asyncpool.journal.recorded import RecordedHandler

        if not callable(handler):
            raise TypeError(f"handler must be callable, got {describe(handler)}")
        recorded: Any = RecordedHandler(handler, key_of=self._key_of, session=self._enter, keeps_values=self._values)
        return recorded  # type: ignore[no-any-return]  # it is called as the handler is

    def pending(self, jobs: Iterable[JobT] | AsyncIterable[JobT]) -> AsyncGenerator[JobT, None]:
        """Return an async iterator over the jobs that are not done: a source for anything that takes one.

            pages = downloads.map(journal.pending(urls))       # does not download again what is done
            async for outcome in journal.outcomes(parsers, pages):
                ...

        Of jobs with the same key, only the first is given in one run. Failed jobs are given. A job without a valid key
        is given too, and fails where it runs. It records nothing: combine it with `outcomes` or `recorded`. Closing it
        closes `jobs`; as with any async generator, a cancelled `anext()` ends it.

        Args:
            jobs: An iterable or async iterable. Pulled 16 at a time, and up to 256 while all of them are done.

        Raises:
            TypeError: `jobs` is not iterable.
            JournalError: Raised by the first step: the file cannot be opened, or cannot be read.
        """
        with _needing_sqlite():
            from asyncpool.journal.pending import pending

        if not isinstance(jobs, (Iterable, AsyncIterable)):
            raise TypeError(f"jobs must be an iterable or an async iterable, got {describe(jobs)}")
        return pending(jobs, key_of=self._key_of, enter=self._enter, tally=self)

    # -- What it holds -----------------------------------------------------------------------------------------------

    def failed(self) -> list[FailedJob]:
        """Return the jobs that failed permanently and did not succeed since, the oldest failure first.

        Can be called at any time, from any thread or process, also while a run writes the file; empty if there is no
        file. Blocks while it reads.

        Raises:
            JournalError: The file cannot be read, or is not a journal.
        """
        with _needing_sqlite():
            from asyncpool.journal.reading import failed_in

        return failed_in(self.path)

    def count(self) -> JournalCounts:
        """Return how many jobs are done, and how many have failed.

        Can be called at any time, from any thread or process, also while a run writes the file; zeros if there is no
        file. Blocks while it counts: it reads the whole file, so for millions of jobs call it in a thread.

        Raises:
            JournalError: The file cannot be read, or is not a journal.
        """
        with _needing_sqlite():
            from asyncpool.journal.reading import counts_of

        return counts_of(self.path)

    def __repr__(self) -> str:
        return f"<Journal {self.path}>"

    # -- The session -------------------------------------------------------------------------------------------------

    def _key_of(self, job: JobT) -> Key:
        return check_key(self._key(job))

    def _enter(self) -> JournalSession:
        """Return the session of this run, with a user more, which must call `leave`. It may be opening."""
        # Here, because SQLite takes some milliseconds to import, and is not in every build of Python.
        with _needing_sqlite():
            from asyncpool.journal.file import JournalFile
            from asyncpool.journal.session import JournalSession

        session = self._session
        if session is None or session.is_over or session.loop.is_closed():
            file = JournalFile(self.path, self._version, durable=self._durable)
            session = self._session = JournalSession(file, self.path, session)
        elif session.loop is not asyncio.get_running_loop():
            raise JournalError(
                f"the journal {self.path} is in use on another event loop of this program: use it on one at a time"
            )
        session.enter()
        return session

    def _check_values(self, what: str) -> None:
        if not self._values:
            raise TypeError(f"{what} needs the values of jobs that are done: use Journal(..., values=True)")


@contextmanager
def _needing_sqlite() -> Generator[None]:
    try:
        yield
    except ImportError as error:
        raise JournalError(f"a journal needs sqlite3, which this build of Python does not have: {error}") from error


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {describe(value)}")
