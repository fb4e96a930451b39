"""Which workers a cluster has, and which of them a pool uses: looks once a second, adds and drops processes."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup

from asyncpool._guard import describe
from asyncpool._logs import log
from asyncpool.dask.growth import Placeholders
from asyncpool.dask.processes import DaskProcess
from asyncpool.engines.contract import EngineHost

__all__ = ["Session"]

_LOOK_EVERY = 1.0  # seconds
_LOOK_ANSWERS_WITHIN = 5.0  # seconds
_MAX_PAUSE = 60.0  # seconds, before a worker is tried again that could not be used
_PROVEN_AFTER = 60.0  # seconds: a worker that is lost later than that is tried again soon
_OPENED_AT_ONCE = 32
_FIRST_JOIN_WITHIN = 2.0  # seconds
_LOST_GRACE = 5.0  # seconds, for the handlers of a process that the pool has lost
_LAST_CALL = 1.0  # seconds, for a process that the pool has lost, once the pool closes
_LAST_LOOKS_EVERY = 0.25  # seconds, while processes are closed
_CLIENT_NEEDS = 0.25  # seconds of the grace, for the client to close: of a short grace, a tenth
_MANY_THREADS = 3


@dataclass(slots=True)
class _Place:
    """A worker of the cluster, and the process of the pool that runs there, if one does."""

    process: DaskProcess | None = None
    used_since: float = 0.0  # loop time
    failures: int = 0  # in a row
    try_at: float = 0.0  # loop time


class Session:
    """One pool on one cluster, for as long as one Dask client lives.

    Args:
        client: The asynchronous Dask client.
        host: The pool.
        is_adaptive: Returns whether the cluster can grow.
    """

    def __init__(self, client: Any, host: EngineHost, *, is_adaptive: Callable[[], bool]) -> None:
        self._client = client
        self._host = host
        self._is_adaptive = is_adaptive
        self._places: dict[str, _Place] = {}
        self._opening = anyio.Semaphore(_OPENED_AT_ONCE)  # the scheduler holds the spec once for each
        self._unopened: set[DaskProcess] = set()
        self._ending: set[DaskProcess] = set()  # lost ones that are being closed
        self._lost: asyncio.Queue[DaskProcess] = asyncio.Queue()  # those of them whose end has not begun
        self._can_join = anyio.Event()
        self._placeholders = Placeholders(client)
        self._has_warned = False
        self._is_over = False

    async def run(self) -> bool:
        """Provide processes. Return whether the pool is closing and they have ended: if not, the scheduler is lost."""
        is_closing = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, tasks)
                tasks.start_soon(self._let_join)
                tasks.start_soon(self._end_lost, tasks)
                await self._host.closing()
                is_closing = True
                tasks.cancel_scope.cancel()
        finally:
            self._is_over = True
            if not is_closing:
                for process in self._processes():
                    process.vanish()
        if is_closing:
            await self._close_processes()
        return is_closing

    async def _close_processes(self) -> None:
        self._placeholders.clear()
        grace = self._host.grace
        # Not for all of it: the pool would abandon an engine that still closes its client.
        with anyio.move_on_after(grace - min(_CLIENT_NEEDS, grace / 10)):
            async with anyio.create_task_group() as looking:
                looking.start_soon(self._vanish_gone)
                async with anyio.create_task_group() as tasks:
                    for process in self._processes():
                        tasks.start_soon(process.close, grace)
                    for process in self._ending:
                        tasks.start_soon(self._close_lost, process)
                looking.cancel_scope.cancel()

    async def _vanish_gone(self) -> None:
        """Wait for no worker that leaves the cluster while its process is closed."""
        while True:
            await anyio.sleep(_LAST_LOOKS_EVERY)
            threads = await self._threads()
            if threads is not None:
                self._drop_gone(threads)

    async def _close_lost(self, process: DaskProcess) -> None:
        """Ask a process that was lost once more to close. Its worker may be gone: the end of its pool cannot wait for
        that (test_a_worker_is_killed_and_nothing_is_lost). If it lives, it notices the end of its lease.
        """
        with anyio.move_on_after(_LAST_CALL):
            await process.close(0.0)

    def _processes(self) -> list[DaskProcess]:
        return [place.process for place in self._places.values() if place.process is not None]

    # -- The workers of the cluster ----------------------------------------------------------------------------------

    async def _watch(self, tasks: TaskGroup) -> None:
        """Follow the cluster, until the client has given up its scheduler."""
        while self._client.status in ("running", "connecting"):
            workers = self._host.workers
            threads = await self._threads()
            if threads is not None:
                self._drop_gone(threads)
                self._use(threads, tasks)
                self._grow(threads)
            with anyio.move_on_after(_LOOK_EVERY):
                await self._host.workers_above(workers)
        tasks.cancel_scope.cancel()

    async def _threads(self) -> Mapping[str, int] | None:
        """Return the workers of the cluster with their numbers of threads. None: the scheduler does not answer."""
        try:
            with anyio.fail_after(_LOOK_ANSWERS_WITHIN):
                # `scheduler_info` of an asynchronous client returns what it last heard.
                threads: Mapping[str, int] = await self._client.nthreads()
                return threads
        except Exception as error:  # the client tries to connect again
            log.debug("pool %r: the scheduler of Dask does not answer: %s", self._host.pool, describe(error))
            return None

    def _drop_gone(self, threads: Mapping[str, int]) -> None:
        for address in self._places.keys() - threads.keys():
            process = self._places.pop(address).process
            if process is not None:
                process.vanish()

    def _use(self, threads: Mapping[str, int], tasks: TaskGroup) -> None:
        """Open a process in each worker that can be used, up to as many as can run an attempt."""
        now = asyncio.get_running_loop().time()
        used = len(self._processes())
        chosen: list[str] = []
        for address in threads:
            place = self._places.setdefault(address, _Place())
            if used + len(chosen) < self._host.workers and place.process is None and now >= place.try_at:
                chosen.append(address)
        self._host.expect(used + len(chosen))  # first: or the first to join would be given all there is to do
        for address in chosen:
            place = self._places[address]
            place.process = process = DaskProcess(self._client, address, self._lose)
            place.used_since = now
            self._unopened.add(process)
            tasks.start_soon(self._open, process)
        self._warn_of_threads(threads)

    async def _open(self, process: DaskProcess) -> None:
        try:
            async with self._opening:
                await process.open(self._host.spec)
        except Exception as error:
            if process.address in self._places:  # otherwise it has left in this moment
                log.warning("pool %r: %s could not be opened: %s", self._host.pool, process.name, describe(error))
            self._lose(process)
            return
        finally:
            self._unopened.discard(process)
            if not self._unopened:
                self._can_join.set()
        await self._can_join.wait()
        self._host.join(process)

    async def _let_join(self) -> None:
        """Let the first processes join together: one that cannot run the handler fails the start if it is alone."""
        await anyio.sleep(_FIRST_JOIN_WITHIN)
        self._can_join.set()

    def _lose(self, process: DaskProcess) -> None:
        """Let go of a process that is lost, and try its worker again later: it may only have lost the connection.

        Can be called by a timer, where no task runs and so no function of anyio can be used.
        """
        if self._is_over:
            return
        place = self._places.get(process.address)
        if place is not None and place.process is process:
            now = asyncio.get_running_loop().time()
            place.failures = 0 if now - place.used_since > _PROVEN_AFTER else place.failures + 1
            place.try_at = now + min(_MAX_PAUSE, 2.0**place.failures / 2)
            place.process = None  # it is expected no longer from the next look on
        self._ending.add(process)
        self._lost.put_nowait(process)

    async def _end_lost(self, tasks: TaskGroup) -> None:
        while True:
            tasks.start_soon(self._end, await self._lost.get())

    async def _end(self, process: DaskProcess) -> None:
        """Close a process that is lost, and have its worker restarted if its event loop is blocked."""
        was_reached = await process.close(_LOST_GRACE)
        self._ending.discard(process)
        if was_reached or not await process.is_hung():
            return
        log.warning("%s does not respond; asking its nanny to restart it", process.name)
        try:
            await self._client.restart_workers([process.address], raise_for_error=False)
        except Exception as error:  # it has no nanny, for example
            log.warning("%s could not be restarted: %s", process.name, describe(error))

    def _warn_of_threads(self, threads: Mapping[str, int]) -> None:
        if self._has_warned:
            return
        for address, count in threads.items():
            if count >= _MANY_THREADS:
                self._has_warned = True
                log.warning(
                    "pool %r: Dask worker %s has %d threads in one process, but the pool uses only one event loop, and "
                    "so one core, per process. Start workers with --nworkers auto --nthreads 1 to use all cores",
                    self._host.pool,
                    address,
                    count,
                )
                return

    def _grow(self, threads: Mapping[str, int]) -> None:
        """Ask an adaptive cluster for more workers while jobs wait: for twice as many, up to one for each attempt."""
        if self._unopened:
            return  # it would close a new worker that has no lease yet, because nothing seems to wait any longer
        wanted = 0
        if not threads or (self._host.backlog > 0 and len(self._processes()) >= len(threads)):
            wanted = min(self._host.workers, max(1, 2 * len(threads)), len(threads) + max(1, self._host.backlog))
        if wanted <= len(threads) or not self._is_adaptive():
            wanted = 0
        self._placeholders.want(wanted, round(statistics.mean(threads.values())) if threads else 1)
