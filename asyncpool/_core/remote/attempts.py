"""Runs an attempt in another process: what the pool calls in place of the handler, in the job's own task."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import anyio

from asyncpool._core.job import Job, Worker
from asyncpool._core.remote.fleet import LOST, Fleet
from asyncpool._core.remote.members import Errand
from asyncpool._core.state import State
from asyncpool._core.timeouts import TimeoutFunction, seconds_for
from asyncpool._guard import describe, name_of, safe_text, set_cause
from asyncpool.engines.contract import ContextCarrier
from asyncpool.engines.remote_errors import load_error
from asyncpool.engines.wire import CANCELLED, VALUE, dumps, load_value
from asyncpool.errors import Permanent

__all__ = ["RemoteHandler"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module


class RemoteHandler:
    """Takes a job, and returns or raises what its handler does in another process.

    A cancellation is handed on to the handler there, and its end is waited for, as that of any handler.
    """

    def __init__(self, fleet: Fleet, state: State, handler: object, timeout_of: TimeoutFunction | None) -> None:
        self._fleet = fleet
        self._state = state
        self._timeout_of = timeout_of  # the processes know one that is the same for all jobs
        self._carrier = handler if isinstance(handler, ContextCarrier) else None

    async def __call__(self, job: Job, _: Worker | None = None) -> Any:
        """Run one attempt. Called by `Invoke`, or with the worker by the dispatcher, if nothing surrounds the call."""
        # Asked here, so that it is called with the very object that was submitted, and needs not be picklable.
        timeout = None if self._timeout_of is None else seconds_for(self._timeout_of, job.input)
        job.started_at = self._state.time()
        errand = self._post(job, timeout)
        try:
            await errand.ended
        except asyncio.CancelledError:
            if errand.end is None:  # otherwise the cancellation came after the end, and is too late
                await self._cancel(errand)
        assert errand.end is not None
        kind, content, seconds = errand.end
        del errand
        # The way there and back, and the wait in the process, count as the job's wait: `seconds_queued`.
        job.started_at = max(job.started_at, self._state.time() - seconds)
        if kind == VALUE:
            return load_value(content, "the value that the handler returned")
        if kind == CANCELLED:
            if not content:
                job.started_at = None
            raise asyncio.CancelledError
        try:
            if kind == LOST:
                raise Permanent from content
            raise load_error(content)
        finally:
            del content, job

    def _post(self, job: Job, timeout: float | None) -> Errand:
        try:
            data = dumps(job.input, shares_main=self._fleet.shares_main)
        except Exception as error:
            job.started_at = None
            text = f"{name_of(type(error))}: {safe_text(str, error, 500)}"
            failure = pickle.PicklingError(f"the job cannot be sent to another process: pickling it raised {text}")
            set_cause(failure, error)
            raise Permanent from failure
        carried = None if self._carrier is None else self._carrier.carry()
        if carried is not None and type(carried) is not bytes:  # it would spoil the batch that it travels in
            raise TypeError(f"carry() of the handler must return bytes or None, got {describe(carried)}")
        return self._fleet.post(job, data, carried, timeout)

    async def _cancel(self, errand: Errand) -> None:
        """Have an attempt cancelled where it runs, and wait for its end; each further cancellation is handed on."""
        # Shielded: a cancelled anyio scope cancels again in each loop iteration, and is one request.
        with anyio.CancelScope(shield=True):
            while not self._fleet.withdraw(errand):
                errand.ended = self._state.loop.create_future()
                try:
                    await errand.ended
                    return
                except asyncio.CancelledError:
                    if errand.end is not None:
                        return
