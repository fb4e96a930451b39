"""Metrics of pools for Prometheus: `PoolCollector`, for a registry of `prometheus_client` (extra `prometheus`).

It reads `pool.stats` at each scrape, so jobs have no extra cost. `prometheus_client` serves the metrics, and
docs/metrics.md lists them.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, get_args
from weakref import WeakKeyDictionary

from asyncpool._checks import check_seconds
from asyncpool._guard import describe
from asyncpool.dead_letters.memory import DeadLetters
from asyncpool.pool import WorkerPool
from asyncpool.stats import Distribution, PoolStats, ProcessStats, ReplacementReason

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asyncpool.prometheus needs the package prometheus_client: python3 -m pip install "
        "'asyncpool-toolkit[prometheus]'",
        name=error.name,
    ) from error

__all__ = ["PoolCollector"]

_REASONS = get_args(ReplacementReason)
_STATES = ("new", "starting", "open", "draining", "stopping", "closed")
_BREAKER_STATES = ("closed", "open", "half-open")
# Every fourth of the pool's own bounds, doubling from 16 us to 12.7 days. So the counts are exact, and a quantile is
# off by less than a factor of two. All of the pool's bounds would be 177 series per histogram.
_FIRST_BOUND, _LAST_BOUND, _BOUND_STEP = 16, 160, 4
# Held while reading a closed pool whose loop no longer runs: two scrapes at once would sort its histograms twice.
_reading_closed = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What is reported of a pool, all read at the same instant."""

    stats: PoolStats
    state: str
    is_paused: bool
    queue_size: int
    waiting_submitters: int
    has_dead_letters: bool
    stored_letters: int | None
    dropped_letters: int | None
    processes: tuple[ProcessStats, ...]


def _look(pool: WorkerPool[Any, Any]) -> _Snapshot:
    """Read a pool. Call it in the thread of the pool's loop: in another, the pool could change while it is read."""
    letters = pool.dead_letters
    # Not `len()` of any store that has it: that could read a file or query a table.
    store = letters if isinstance(letters, DeadLetters) else None
    return _Snapshot(
        stats=pool.stats,
        state=pool.state,
        is_paused=pool.is_paused,
        queue_size=pool.queue_size,
        waiting_submitters=pool.waiting_submitters,
        has_dead_letters=letters is not None,
        stored_letters=None if store is None else len(store),
        dropped_letters=None if store is None else store.dropped,
        processes=pool.processes(),
    )


class PoolCollector:
    """Collects the metrics of pools at each scrape, for a registry of `prometheus_client`.

        from prometheus_client import REGISTRY, start_http_server

        REGISTRY.register(PoolCollector(pool))
        start_http_server(9000, addr="127.0.0.1")

    One collector can have any number of pools, before, while and after they run. A registry can have one collector, or
    several with different namespaces. The label `pool` is the pool's name, so names must differ.

    **Threads.** It can be scraped on the loop of the pools (an aiohttp or ASGI handler), or in any other thread
    (`start_http_server`). A pool is always read on its own loop, between two of its steps, so that all its figures
    belong to the same instant and add up. A scrape in another thread schedules that on the loop and waits for it;
    `timeout` bounds the wait, for all pools together. If a pool's loop does not answer in time, because something
    blocks it, that scrape has `loop_responding` 0 for the pool and none of its other metrics; the scrape succeeds.

    Args:
        pools: The pools; `add` adds more.
        namespace: The prefix of the names of the metrics.
        timeout: How many seconds a scrape waits for the loops of the pools, at most. Must be below the scrape timeout
            of your Prometheus (10 seconds by default).

    Raises:
        TypeError: One of `pools` is not a `WorkerPool`, or `timeout` is not a number.
        ValueError: Two pools have the same name, or one that cannot be encoded as UTF-8; `namespace` is not a valid
            prefix of a metric's name; `timeout` is not > 0.
    """

    def __init__(self, *pools: WorkerPool[Any, Any], namespace: str = "asyncpool", timeout: float = 1.0) -> None:
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", namespace):
            raise ValueError(
                f"namespace must consist of letters, digits and _, and not begin with a digit, got {namespace!r}"
            )
        self._namespace = namespace
        self._timeout = check_seconds("timeout", timeout, positive=True)
        self._lock = threading.Lock()  # held, only briefly, while the two attributes below change
        self._pools: dict[str, WorkerPool[Any, Any]] = {}
        # The last read that was scheduled on the loop of each pool. While it is pending, no other is scheduled, or they
        # would pile up on a blocked loop (test_a_blocked_loop_is_asked_once_and_answers_with_what_is_true_then).
        self._asked: WeakKeyDictionary[WorkerPool[Any, Any], Future[_Snapshot]] = WeakKeyDictionary()
        for pool in pools:
            self.add(pool)

    def add(self, pool: WorkerPool[Any, Any]) -> None:
        """Add a pool to those whose metrics are collected. Can be called from any thread.

        Raises:
            TypeError: `pool` is not a `WorkerPool`.
            ValueError: A pool with this name is already collected, or the name cannot be encoded as UTF-8.
        """
        if not isinstance(pool, WorkerPool):
            raise TypeError(f"a PoolCollector takes WorkerPools, got {describe(pool)}")
        try:
            pool.name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name of a pool must be encodable as UTF-8, to be a label for Prometheus, got {pool.name!r}"
            ) from None
        with self._lock:
            if pool.name in self._pools:
                raise ValueError(
                    f"a pool named {pool.name!r} is already collected, and the metrics of the two would be mixed: give "
                    "each its own WorkerPool(..., name=...), or remove() the first"
                )
            self._pools[pool.name] = pool

    def remove(self, pool: WorkerPool[Any, Any]) -> None:
        """Stop collecting the metrics of a pool. Can be called from any thread.

        Use it for short-lived pools: the collector keeps a reference to each pool until it is removed.

        Raises:
            ValueError: The pool is not collected; a pool with the same name is another pool.
        """
        with self._lock:
            if self._pools.get(pool.name) is not pool:
                raise ValueError(f"pool {pool.name!r} is not collected here")
            del self._pools[pool.name]

    def describe(self) -> list[Metric]:
        """Return the metrics without values, from which the registry detects names that are already taken."""
        return _Families(self._namespace).all

    def collect(self) -> Iterator[Metric]:
        """Return the current metrics of all pools; called by the registry. Can be called from any thread.

        For pools of the running loop it does not wait. For pools of another loop it blocks the calling thread, and so
        also the loop that runs in it, for up to `timeout` seconds in all.
        """
        families = _Families(self._namespace)
        for name, snapshot in self._snapshots():
            families.add(name, snapshot)
        yield from families.all

    def _snapshots(self) -> list[tuple[str, _Snapshot | None]]:
        with self._lock:
            pools = list(self._pools.items())
        answers = [(name, self._look_or_ask(pool)) for name, pool in pools]
        wait([answer for _, answer in answers if isinstance(answer, Future)], self._timeout)
        return [(name, _answer(answer)) for name, answer in answers]

    def _look_or_ask(self, pool: WorkerPool[Any, Any]) -> _Snapshot | Future[_Snapshot] | None:
        """Read a pool if that is possible in this thread; otherwise schedule that on its loop. None: neither works."""
        loop = pool.loop
        if loop is None:
            snapshot = _look(pool)
            loop = pool.loop  # again: if the pool was started during the read, the snapshot can be inconsistent
            if loop is None:
                return snapshot
        if loop is _running_loop():
            return _look(pool)
        if not loop.is_running():
            if pool.state != "closed":
                return None  # between two `run_until_complete`: the next could begin while we read
            with _reading_closed:
                return _look(pool)
        with self._lock:
            asked = self._asked.get(pool)
            if asked is None or asked.done():
                asked = Future[_Snapshot]()
                try:
                    loop.call_soon_threadsafe(_fill, asked, pool)
                except RuntimeError:  # the loop was closed meanwhile
                    return None
                self._asked[pool] = asked
            return asked


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _fill(answer: Future[_Snapshot], pool: WorkerPool[Any, Any]) -> None:
    try:
        answer.set_result(_look(pool))
    except Exception as error:
        answer.set_exception(error)


def _answer(answer: _Snapshot | Future[_Snapshot] | None) -> _Snapshot | None:
    if isinstance(answer, Future):
        return answer.result() if answer.done() else None
    return answer


class _Families:
    """The metrics of one scrape: their names, help texts and values."""

    def __init__(self, namespace: str) -> None:
        self.all: list[Metric] = []

        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            family = GaugeMetricFamily(f"{namespace}_{name}", text, labels=("pool", *labels))
            self.all.append(family)
            return family

        def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
            family = CounterMetricFamily(f"{namespace}_{name}", text, labels=("pool", *labels))
            self.all.append(family)
            return family

        def histogram(name: str, text: str) -> HistogramMetricFamily:
            family = HistogramMetricFamily(f"{namespace}_{name}", text, labels=("pool",), unit="seconds")
            self.all.append(family)
            return family

        self._responding = gauge(
            "loop_responding",
            "1 if the pool's event loop answered this scrape in time; 0 if it is blocked or has stopped.",
        )
        self._state = gauge("pool_state", "1 for the current state of the pool, 0 for the others.", "state")
        self._paused = gauge(
            "pool_paused", "1 while workers take no jobs because the pool is paused, or its breaker is open."
        )
        self._breaker = gauge("breaker_state", "1 for the current state of the breaker, 0 for the others.", "state")
        self._opened = counter("breaker_opened", "How often the breaker has opened, also after a probe that failed.")
        self._submitted = counter("jobs_submitted", "Jobs accepted.")
        self._ended = counter("jobs_ended", "Jobs ended, by outcome: succeeded, failed or cancelled.", "outcome")
        self._jobs = gauge(
            "jobs",
            "Unsettled jobs: queued (waiting for a worker), delayed (waiting for their next attempt or rate limit) or "
            "running (holding a worker).",
            "state",
        )
        self._stuck = gauge("stuck_jobs", "Running jobs that were cancelled over five seconds ago.")
        self._peak = gauge("running_jobs_peak", "The most jobs that ever ran at the same time.")
        self._queue_size = gauge("queue_size", "How many jobs can wait for a worker.")
        self._waiting = gauge("submitters_waiting", "Submitters and streams that are waiting for room in the pool.")
        self._workers = gauge("workers", "Idle and busy workers, without those that are waiting for their resource.")
        self._target = gauge("workers_target", "The number of workers that the scaling policy has decided on.")
        self._max = gauge("workers_max", "The maximum number of workers.")
        self._resources = gauge(
            "resources",
            "Resources that are opening, closing, or abandoned because they ignore that they were cancelled.",
            "state",
        )
        self._replaced = counter(
            "resources_replaced",
            "Resources closed by plan: they reached max_age, max_idle (idle) or max_jobs, failed their check, or were "
            "spoiled by a job (recycle).",
            "reason",
        )
        self._stalled = gauge(
            "stalled_seconds",
            "Seconds for which jobs have waited and no worker could take them; 0 if the pool is not stalled.",
        )
        self._retries = counter("retries", "Failed attempts after which another attempt was scheduled.")
        self._rejected = counter("submissions_rejected", "Jobs rejected because the pool was full (QueueFull).")
        self._retries_rejected = counter("retries_rejected", "Retries denied because the retry budget was exhausted.")
        self._unread = counter(
            "unread_failures", "Failures that were never retrieved: a handle was dropped, a stream was cancelled."
        )
        self._recorded = counter("dead_letters_recorded", "Jobs that failed permanently and have a dead letter.")
        self._stored = gauge(
            "dead_letters_stored",
            "Dead letters in the store, if it is in memory. Pools that share a store all report the same number.",
        )
        self._dropped = counter(
            "dead_letters_dropped",
            "Dead letters that a store in memory dropped because it was full. The same for pools that share a store.",
        )
        self._processes = gauge("processes", "Processes of the pool's engine that can run attempts.")
        self._processes_lost = counter("processes_lost", "Processes that died or could not be reached.")
        self._reruns = counter("attempts_rerun", "Attempts that were run again because their process was lost.")
        # The label is a small number, which a process inherits from the one that it replaces, and not its name: there
        # are as many values as there were processes at a time.
        self._process_workers = gauge("process_workers", "Attempts that the process can run at a time.", "process")
        self._process_running = gauge("process_attempts_running", "Attempts that the process has.", "process")
        self._process_done = counter("process_attempts_done", "Attempts that have ended in the process.", "process")
        self._process_lost = counter("process_attempts_lost", "Attempts that were lost with the process.", "process")
        self._process_seconds = counter("process_handler_seconds", "Time that handlers ran in the process.", "process")
        self._seconds_queued = histogram(
            "attempt_queued_seconds", "Time from acceptance, or the end of the backoff, until the handler began."
        )
        self._seconds_running = histogram("attempt_running_seconds", "Time that the handler ran, per attempt.")

    def add(self, pool: str, snapshot: _Snapshot | None) -> None:
        """Add the figures of a pool; None: its loop did not answer."""
        self._responding.add_metric([pool], snapshot is not None)
        if snapshot is None:
            return
        stats = snapshot.stats
        for state in _STATES:
            self._state.add_metric([pool, state], state == snapshot.state)
        self._paused.add_metric([pool], snapshot.is_paused)
        if stats.breaker is not None:
            for state in _BREAKER_STATES:
                self._breaker.add_metric([pool, state], state == stats.breaker)
            self._opened.add_metric([pool], stats.breaker_openings)
        self._submitted.add_metric([pool], stats.submitted)
        self._ended.add_metric([pool, "succeeded"], stats.succeeded)
        self._ended.add_metric([pool, "failed"], stats.failed)
        self._ended.add_metric([pool, "cancelled"], stats.cancelled)
        self._jobs.add_metric([pool, "queued"], stats.queued)
        self._jobs.add_metric([pool, "delayed"], stats.delayed)
        self._jobs.add_metric([pool, "running"], stats.running)
        self._stuck.add_metric([pool], stats.stuck)
        self._peak.add_metric([pool], stats.peak_running)
        self._queue_size.add_metric([pool], snapshot.queue_size)
        self._waiting.add_metric([pool], snapshot.waiting_submitters)
        self._workers.add_metric([pool], stats.workers)
        self._target.add_metric([pool], stats.target_workers)
        self._max.add_metric([pool], stats.max_workers)
        self._resources.add_metric([pool, "opening"], stats.resources_opening)
        self._resources.add_metric([pool, "closing"], stats.resources_closing)
        self._resources.add_metric([pool, "abandoned"], stats.resources_abandoned)
        for reason, count in zip(_REASONS, stats.resources_replaced, strict=True):
            self._replaced.add_metric([pool, reason], count)
        self._stalled.add_metric([pool], stats.stalled_seconds)
        self._retries.add_metric([pool], stats.retries)
        self._rejected.add_metric([pool], stats.rejected)
        self._retries_rejected.add_metric([pool], stats.retries_rejected)
        self._unread.add_metric([pool], stats.unread_failures)
        if snapshot.has_dead_letters:
            self._recorded.add_metric([pool], stats.failed)
        if snapshot.stored_letters is not None and snapshot.dropped_letters is not None:
            self._stored.add_metric([pool], snapshot.stored_letters)
            self._dropped.add_metric([pool], snapshot.dropped_letters)
        self._processes.add_metric([pool], stats.processes)
        self._processes_lost.add_metric([pool], stats.processes_lost)
        self._reruns.add_metric([pool], stats.reruns)
        for process in snapshot.processes:
            labels = [pool, str(process.number)]
            self._process_workers.add_metric(labels, process.workers)
            self._process_running.add_metric(labels, process.running)
            self._process_done.add_metric(labels, process.done)
            self._process_lost.add_metric(labels, process.lost)
            self._process_seconds.add_metric(labels, process.seconds)
        self._seconds_queued.add_metric([pool], _buckets(stats.seconds_queued), stats.seconds_queued.sum)
        self._seconds_running.add_metric([pool], _buckets(stats.seconds_running), stats.seconds_running.sum)


def _buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Return cumulative buckets, as Prometheus needs them: each counts all durations up to its bound."""
    reported = slice(_FIRST_BOUND, _LAST_BOUND + 1, _BOUND_STEP)
    reached = list(accumulate(distribution.buckets))
    pairs = zip(distribution.bounds[reported], reached[reported], strict=True)
    return [*((repr(bound), count) for bound, count in pairs), ("+Inf", distribution.count)]
