"""`RecordedHandler`: a handler whose job is recorded inside the job, before the worker takes the next one.

A stream records outside of the job, see `channel.py`: that needs no place in the handler, and holds no worker.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NoReturn, TypeVar

import anyio

from asyncpool._core.invoke import call_handler
from asyncpool._core.job import CURRENT_JOB
from asyncpool._core.state import Phase
from asyncpool._guard import describe
from asyncpool.errors import JournalError, Permanent
from asyncpool.journal.entries import Entry, Key
from asyncpool.journal.session import JournalSession
from asyncpool.journal.values import pickled

__all__ = ["RecordedHandler"]

ValueT = TypeVar("ValueT")


class RecordedHandler(Generic[ValueT]):
    """An async function that calls a handler, and returns once it is on the disk that its job is done.

    Created by `Journal.recorded`.
    """

    def __init__(
        self,
        handler: Callable[..., Awaitable[ValueT]],
        *,
        key_of: Callable[[Any], Key],
        session: Callable[[], JournalSession],
        keeps_values: bool,
    ) -> None:
        self._handler = handler
        self._key_of = key_of
        self._session = session
        self._keeps_values = keeps_values
        functools.update_wrapper(self, handler, updated=())

    async def __call__(self, job: Any, *resource: Any) -> ValueT:
        """Call the handler, have the job recorded if it returns, and return its value.

        Once the handler has returned, a cancellation or a timeout comes too late: the job succeeds.

        Raises:
            Permanent: The journal cannot be used: a `JournalError` is its cause, with which a job of a pool fails. It
                is not retried, because what the handler did is done.
            Exception: What the handler raised; nothing is recorded then.
        """
        key = self._key_of(job)
        session = self._enter()
        try:
            try:
                await session.opened()
            except JournalError as error:
                _fail(error)
            if session.broken is not None:
                _fail(session.broken)
            value: ValueT = await call_handler(self._handler, job, *resource)
            if (broken := await self._record(session, key, value)) is not None:
                _fail(JournalError(str(broken), (job,)))
            return value
        finally:
            session.leave()

    def _enter(self) -> JournalSession:
        """Return the open session, which stays open until the pool closes whose job this is."""
        session = self._session()
        job = CURRENT_JOB.get(None)
        if job is not None and job.worker is not None and job.worker.pool.phase is not Phase.CLOSED:
            session.keep_for(job.worker.pool)
        return session

    async def _record(self, session: JournalSession, key: Key, value: ValueT) -> JournalError | None:
        """Record the job, and wait for that whatever happens; return why it could not be recorded."""
        written: asyncio.Future[JournalError | None] = session.loop.create_future()
        data = None
        if self._keeps_values:
            data = pickled(value, session.path, lambda error: session.loop.call_soon(_raise, error))
        session.record(Entry(key, None, data), written.set_result)
        is_cancelled = False
        while not written.done():
            try:
                # Shielded after the first cancellation: a cancelled anyio scope cancels in each loop iteration.
                with anyio.CancelScope(shield=is_cancelled):
                    await asyncio.wait([written])
            except asyncio.CancelledError:
                is_cancelled = True
        return written.result()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a handler of Journal.recorded() cannot be sent to another process, because it writes to the journal of "
            "this one: use journal.outcomes(pool, jobs) with the plain handler"
        )

    def __repr__(self) -> str:
        return f"Journal.recorded({describe(self._handler)})"


def _fail(error: JournalError) -> NoReturn:
    raise Permanent(str(error)) from error


def _raise(error: BaseException) -> NoReturn:
    raise error
