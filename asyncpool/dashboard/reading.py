"""Reads a pool for the page: one dictionary of plain values, all of the same instant.

The past is `history.py`, dead letters are `letters.py`. Call it on the loop of the pool, between two of its steps.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import anyio

from asyncpool._core.parts import Parts, parts_of
from asyncpool._guard import name_of
from asyncpool.dashboard.letters import Shelf, shelf_of
from asyncpool.dashboard.texts import Texts, cell, text, time_to_describe
from asyncpool.limits.limiter import is_limit, is_several
from asyncpool.pool import WorkerPool
from asyncpool.stats import PoolStats

__all__ = ["PoolReader", "is_here"]

_MAX_RUNNING = 10
_MAX_QUEUED = 50
_MAX_RESIZES = 8
_MAX_PROCESSES = 64
_MAX_LIMITS = 8
# Seconds in which queued jobs are described. A page asks for them when its user does.
_DESCRIBING = 0.02
# A listing of dead letters is made at most every three seconds, and takes at most a fiftieth of the time.
_LISTED_FOR, _LISTED_SHARE = 3.0, 50.0

_COUNTS = (
    "submitted",
    "queued",
    "delayed",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "workers",
    "target_workers",
    "max_workers",
    "peak_running",
    "stuck",
    "unread_failures",
    "retries",
    "rejected",
    "retries_rejected",
    "stalled_seconds",
    "throughput",
)


def is_here(pool: WorkerPool[Any, Any]) -> bool:
    """Return whether a pool can be read and used here: it runs on this loop, or runs no more, or not yet."""
    return pool.loop is None or pool.loop is asyncio.get_running_loop() or pool.state == "closed"


class PoolReader:
    """Reads one pool, again and again."""

    def __init__(self, pool: WorkerPool[Any, Any]) -> None:
        self.pool = pool
        self._parts: Parts = parts_of(pool)
        self._texts, self._queued_texts = Texts(), Texts()
        self._listing: dict[str, Any] | None = None
        self._is_listed_until = 0.0  # on the clock of the loop
        self._letter_changes = 0
        self._listing_lock = anyio.Lock()  # one of asyncio would belong to one event loop
        self.shelf = shelf_of(pool.dead_letters, pool.name)

    def stats(self) -> PoolStats | None:
        """Return the statistics of the pool; None: it runs on another event loop."""
        return self.pool.stats if is_here(self.pool) else None

    def read(self, stats: PoolStats | None, has_time: Callable[[], bool]) -> dict[str, Any]:
        """Return what the page shows of the pool.

        Args:
            stats: What `stats()` has returned just now.
            has_time: Whether there is still time to describe objects of the user.
        """
        pool = self.pool
        if stats is None:
            return {
                "name": text(pool.name),
                "state": "elsewhere",
                "refused": "This pool runs on another event loop. Serve its dashboard there.",
            }
        found: dict[str, Any] = {"name": text(pool.name), "state": pool.state}
        found |= {name: getattr(stats, name) for name in _COUNTS}
        found |= {
            "queue_size": pool.queue_size,
            "waiting_submitters": pool.waiting_submitters,
            "is_fixed": self._parts.scaler.is_fixed,
            "pause": self._pause(stats),
            "limits": _limits(pool.limiter, has_time),
            "breaker": None if stats.breaker is None else {"state": stats.breaker, "openings": stats.breaker_openings},
            "resources": self._resources(stats),
            "processes": self._processes(stats),
            "resizes": self._resizes(),
            "jobs": self._running(has_time),
            "letters": None if self.shelf is None else self.shelf.summary(stats.failed),
        }
        return found

    def _pause(self, stats: PoolStats) -> str:
        pauses = self._parts.pauses
        if pauses.is_by_user:
            return "pause()"
        if stats.breaker not in (None, "closed"):
            return "breaker"
        if self.pool.is_paused:
            return "requested by a job"
        return "rate limit" if pauses.is_paused else ""

    def _resources(self, stats: PoolStats) -> dict[str, Any] | None:
        workers = self._parts.workers
        if workers.resource is None:
            return None
        failure = workers.log.last_failure
        return {
            "open": stats.workers,
            "opening": stats.resources_opening,
            "failing": workers.log.failing,
            "closing": stats.resources_closing,
            "replaced": sum(stats.resources_replaced),
            "abandoned": stats.resources_abandoned,
            "last_failure": None if failure is None else text(failure),
        }

    def _processes(self, stats: PoolStats) -> dict[str, Any] | None:
        processes = self.pool.processes()
        if self._parts.fleet is None:
            return None
        rows = [
            {
                "number": process.number,
                "name": text(process.name, 80),
                "workers": process.workers,
                "running": process.running,
                "done": process.done,
                "lost": process.lost,
                "seconds": process.seconds,
            }
            for process in processes[:_MAX_PROCESSES]
        ]
        return {"rows": rows, "total": len(processes), "lost": stats.processes_lost, "reruns": stats.reruns}

    def _resizes(self) -> list[dict[str, Any]]:
        changes = self.pool.resizes()[-_MAX_RESIZES:]
        return [
            {"old": change.old, "new": change.new, "reason": text(change.reason, 300), "seconds": change.seconds}
            for change in reversed(changes)
        ]

    def _running(self, has_time: Callable[[], bool]) -> list[dict[str, Any]]:
        """Return the jobs that have run longest. `pool.running()` would describe all, of thousands of workers too."""
        if not self._parts.state.is_bound:
            return []
        now = self._parts.state.time()
        running = [
            (now if job.started_at is None else job.started_at, job.number, job, worker.number)
            for worker in self._parts.workers.by_number.values()
            if (job := worker.job) is not None and job.outcome is None
        ]
        longest = heapq.nsmallest(_MAX_RUNNING, running)
        rows = [
            {
                "id": number,
                "job": self._texts.of(number, job.input, may_describe=has_time()),
                "attempt": job.attempt,
                "worker": worker,
                "seconds": now - started,
                "is_stuck": self._parts.cancellation.is_stuck(job),
            }
            for started, number, job, worker in longest
        ]
        self._texts.keep({number for _, number, _, _ in longest})
        return rows

    def queued(self) -> list[dict[str, Any]]:
        """Return the jobs that are next."""
        jobs = self.pool.queued(limit=_MAX_QUEUED)
        has_time = time_to_describe(_DESCRIBING)
        rows = [
            {
                "id": job.id,
                "job": self._queued_texts.of(job.id, job.job, may_describe=has_time()),
                "attempt": job.attempt,
                "seconds": job.seconds,
                "is_delayed": job.is_delayed,
            }
            for job in jobs
        ]
        self._queued_texts.keep({job.id for job in jobs})
        return rows

    async def letters(self, shelf: Shelf) -> dict[str, Any]:
        """Return the dead letters of the pool, and their version. Cancel-safe.

        All pages share a listing for a while, because making it can take long.

        Raises:
            OSError: They cannot be read.
        """
        async with self._listing_lock:
            time = asyncio.get_running_loop().time
            began = time()
            if self._listing is None or began >= self._is_listed_until:
                changes = self._letter_changes
                version = shelf.summary(self.pool.stats.failed)["version"]
                self._listing = {"version": version, **await shelf.listing()}
                if changes == self._letter_changes:
                    self._is_listed_until = began + max(_LISTED_FOR, _LISTED_SHARE * (time() - began))
            return self._listing

    def letters_have_changed(self) -> None:
        """Note that pages must not get a listing of the dead letters that was begun before."""
        self._letter_changes += 1
        self._is_listed_until = 0.0


def _limits(limiter: object, has_time: Callable[[], bool]) -> list[str]:
    if limiter is None:
        return []
    several = limiter if is_several(limiter) else (limiter,)
    return [_limit(limit) if has_time() else name_of(type(limit)) for limit in several[:_MAX_LIMITS]]


def _limit(limit: object) -> str:
    in_use: object = None
    if is_limit(limit):
        in_use = getattr(limit, "in_use", None)
    return cell(limit) + (f", {in_use} in use" if type(in_use) is int else "")
