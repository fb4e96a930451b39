"""`JournalSession`: one run of a journal on one event loop. It has the thread that calls the file, and group commit.

Opened by whatever uses the journal first, and closed when nothing does any more. What SQLite does is `file.py`; which
jobs are looked up and recorded is decided by `channel.py`, `pending.py` and `recorded.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from asyncpool._core.state import State
from asyncpool._core.wakeups import wake
from asyncpool._guard import describe, is_error
from asyncpool._logs import log
from asyncpool.errors import JournalError
from asyncpool.journal.entries import Entry, Key
from asyncpool.journal.file import Found, JournalFile

__all__ = ["JournalSession"]

T = TypeVar("T")
Recorded: TypeAlias = Callable[[JournalError | None], object]
"""Called on the loop with None once an entry is on the disk, or with the reason why it is not. Must not raise."""


class JournalSession:
    """One run: from the first user that enters to the last that leaves.

    All state changes on the loop, in plain functions; the thread only runs calls of the file, in their order. So a
    later session that takes the thread over opens the file after this one has closed it.

    Group commit: everything that ends while a commit is being made is in the next one (DeWitt et al., "Implementation
    techniques for main memory database systems", SIGMOD 1984). Nobody has to choose a size or a delay.
    """

    def __init__(self, file: JournalFile, path: str, previous: JournalSession | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.path = path
        self.broken: JournalError | None = None
        """Why nothing can be recorded any more."""
        self._file = file
        taken_over = None if previous is None else previous.hand_over()
        self._thread = ThreadPoolExecutor(1, "asyncpool journal") if taken_over is None else taken_over
        self._has_thread = True
        # Keys of jobs that are not recorded yet, each with those who wait for that. Claimed before they are looked up:
        # otherwise a job could end between the look-up and the start of another with the same key
        # (test_a_key_that_repeats_runs_once).
        self._claimed: dict[Key, list[asyncio.Future[None]]] = {}
        # Keys that `pending` has given away and that are not recorded yet.
        self.given: set[Key] = set()
        self._users = 0
        self._pools: set[State] = set()  # those whose jobs record themselves: users until they close
        # What the next call of the thread does; and whether one is made, or about to be.
        self._lookups: list[_Lookup] = []
        self._entries: list[tuple[Entry, Recorded]] = []
        self._is_busy = False
        self._closing: asyncio.Future[None] | None = None
        self._is_closed = False
        self._waiters: list[asyncio.Future[None]] = []  # for the end of closing
        self._opening = self._call(file.open)
        self._opening.add_done_callback(self._opened)

    # -- Life --------------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether it is closed, is being closed, or could not be opened."""
        return self._closing is not None

    @property
    def is_busy(self) -> bool:
        """Whether something is being looked up or recorded."""
        return self._is_busy

    def enter(self) -> None:
        """Add a user: the file stays open until it leaves."""
        self._users += 1
        self._wake_waiters()

    def leave(self) -> None:
        """Remove a user. After the last one the file is closed, once everything is written."""
        self._users -= 1
        self._close_if_unused()

    def keep_for(self, pool: State) -> None:
        """Keep the file open until this pool is closed."""
        if pool not in self._pools:
            self._pools.add(pool)
            pool.users.add(self)
            self.enter()

    def pool_closed(self, pool: State, /) -> None:
        """Note that a pool is closed."""
        if pool in self._pools:
            self._pools.discard(pool)
            self.leave()

    async def opened(self) -> None:
        """Wait until the file is open. Cancel-safe: it goes on opening.

        Raises:
            JournalError: It cannot be opened.
        """
        if not self._opening.done():
            await asyncio.wait([self._opening])
        error = self._opening.exception()
        if error is None:
            return
        try:
            # A new one for each caller: its traceback leads to this session, which would keep it, and so all callers.
            raise (JournalError(*error.args) if is_error(error, JournalError) else _unexpected(self.path, error))
        finally:
            del error

    async def closed(self) -> None:
        """Wait until the file is closed, or in use again. Cancel-safe: it goes on closing."""
        if not self._users and not self._is_closed:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            wake(waiter)

    def hand_over(self) -> ThreadPoolExecutor | None:
        """Give the thread to a later session; None if there is none to give."""
        if self.loop.is_closed():
            self._abandon()
        if not self._has_thread or self.loop is not asyncio.get_running_loop():
            return None
        self._has_thread = False
        return self._thread

    def _abandon(self) -> None:
        """Close the file without the loop, which was closed first."""
        if self._has_thread:
            self._thread.submit(self._file.close)
            self._end_thread()

    def _opened(self, opening: asyncio.Future[None]) -> None:
        if opening.cancelled() or opening.exception() is not None:
            self._closing = opening  # there is nothing to close
            self._end()

    def _close_if_unused(self) -> None:
        if self._users or self._is_busy or self._closing is not None:
            return
        if self.loop.is_closed():
            self._abandon()
            return
        self._closing = self._call(self._file.close)
        self._closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Future[None]) -> None:
        if not closing.cancelled() and (error := closing.exception()) is not None:
            log.error("closing the journal %s raised", self.path, exc_info=error)
        self._end()

    def _end(self) -> None:
        self._is_closed = True
        self._wake_waiters()
        self._end_thread()

    def _end_thread(self) -> None:
        if self._has_thread:
            self._has_thread = False
            self._thread.shutdown(wait=False)

    def _call(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return self.loop.run_in_executor(self._thread, function, *args)

    # -- Keys of jobs that are not recorded --------------------------------------------------------------------------

    def claim(self, key: Key) -> bool:
        """Claim a key for a job that is about to run; False if another job has it."""
        if key in self._claimed:
            return False
        self._claimed[key] = []
        return True

    def release(self, key: Key) -> None:
        """Give a key up, whether or not its job is recorded."""
        for waiter in self._claimed.pop(key, ()):
            wake(waiter)

    async def released(self, key: Key) -> None:
        """Wait until no job has this key any more. Cancel-safe."""
        if key in self._claimed:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._claimed[key].append(waiter)
            await waiter

    async def find(self, keys: Sequence[Key], *, values: bool = False) -> Found:
        """Look keys up. Cancel-safe.

        Raises:
            JournalError: The file cannot be read.
        """
        if not keys:
            return Found()
        found: asyncio.Future[Found] = self.loop.create_future()
        self._lookups.append(_Lookup(keys, values, found))
        self._work_soon()
        try:
            return await found
        finally:
            del found  # an error is in it, and knows this frame

    # -- Recording: group commit -------------------------------------------------------------------------------------

    def record(self, entry: Entry, recorded: Recorded) -> None:
        """Have an entry recorded, and `recorded` called after that."""
        self._entries.append((entry, recorded))
        self._work_soon()

    def _work_soon(self) -> None:
        if not self._is_busy:
            self._is_busy = True
            self.loop.call_soon(self._work_next)  # with what else comes up in this iteration of the loop

    def _work_next(self) -> None:
        """Have the thread do all that has come up, in one call. What comes up meanwhile is the next."""
        work = _Work(self._lookups, self._entries)
        self._lookups, self._entries = [], []
        if self.broken is not None:
            self._report_recorded(work.entries)
            work = _Work(work.lookups, [])
        if work.lookups or work.entries:
            self._call(self._work, work).add_done_callback(partial(self._did, work))
        else:
            self._is_busy = False
            self._close_if_unused()

    def _work(self, work: _Work) -> None:
        """Do it, in the thread."""
        for lookup in work.lookups:
            try:
                lookup.result = self._file.find(lookup.keys, values=lookup.values)
            except JournalError as error:
                lookup.result = error
        if work.entries:
            self._file.record([entry for entry, _ in work.entries])

    def _did(self, work: _Work, working: asyncio.Future[None]) -> None:
        """Report what the thread has done."""
        try:
            error = asyncio.CancelledError() if working.cancelled() else working.exception()
            if error is not None and self.broken is None:
                self.broken = error if is_error(error, JournalError) else _unexpected(self.path, error)
                log.error("nothing more is recorded in this run: %s", str(self.broken))
            for lookup in work.lookups:
                lookup.report()
            self._report_recorded(work.entries)
        finally:
            # Two iterations of the loop later, so that the next call has what the reports bring up: the look-up of a
            # feeder that now has room, and jobs that start now and end at once. Without, 1.5 times as many calls.
            self.loop.call_soon(self.loop.call_soon, self._work_next)

    def _report_recorded(self, entries: list[tuple[Entry, Recorded]]) -> None:
        for (key, _, _), recorded in entries:
            if self.given:
                self.given.discard(key)
            self.release(key)
            recorded(self.broken)


class _Lookup:
    """Keys to be looked up, and who waits for that."""

    __slots__ = ("_found", "keys", "result", "values")

    def __init__(self, keys: Sequence[Key], values: bool, found: asyncio.Future[Found]) -> None:
        self.keys = keys
        self.values = values
        self.result: Found | JournalError | None = None
        self._found = found

    def report(self) -> None:
        """Wake the caller, unless it was cancelled."""
        if self._found.done():
            return
        if isinstance(self.result, Found):
            self._found.set_result(self.result)
        else:
            self._found.set_exception(self.result or JournalError("the journal was closed"))


class _Work(NamedTuple):
    """What one call of the thread does."""

    lookups: list[_Lookup]
    entries: list[tuple[Entry, Recorded]]


def _unexpected(path: str, error: BaseException) -> JournalError:
    return JournalError(f"the journal {path} cannot be written: {describe(error)}")
