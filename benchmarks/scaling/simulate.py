"""A simulation: one pool, one load and one backend in virtual time, with samples every half second and totals."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from statistics import median
from typing import Any, TypeAlias

from asyncpool import Retry, RetryAfter, WorkerPool
from asyncpool.events import Event, PoolResized, PoolStarted
from asyncpool.testing import run
from benchmarks.scaling.backends import Backend
from benchmarks.scaling.loads import Load
from benchmarks.scaling.totals import Sample, Totals

__all__ = ["Job", "Policy", "Result", "Scenario", "Steer", "drive", "simulate"]

Policy: TypeAlias = Any
"""What a pool accepts as `workers`: a number, a policy, or a function of the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A backend and a load that a policy must handle."""

    name: str
    about: str
    backend: Callable[[Random], Backend]
    load: Load
    seconds: float = 300.0
    settle: float = 60.0  # the time before this is not judged
    most: int = 80  # the largest fixed size to try
    max_overload: float = 0.02  # the share of the attempts that the backend may reject
    retry: Retry | None = None
    max_workers: int = 40  # the setting of a user who does not know the capacity
    best: int | None = None  # the best fixed size, if it is known; None: search for it
    phases: Sequence[tuple[float, Scenario]] = ()  # when the capacity changes, and a scenario that has the new one


@dataclass(slots=True)
class Job:
    """A job, with the time of its arrival, which can be long before the pool accepts it."""

    arrived: float


Steer: TypeAlias = Callable[[WorkerPool[Job, None], asyncio.AbstractEventLoop], object]
"""Called with the pool and its loop at the start, to schedule changes."""


@dataclass(slots=True, kw_only=True)
class Result:
    """The result of running a pool in a scenario."""

    scenario: Scenario
    policy: Policy
    capacity: str
    trace: list[Sample]
    decisions: list[tuple[float, PoolResized]]
    """When the target number of workers changed, and the event with the reason."""
    overall: Totals
    settled: Totals
    """The same, without the time to settle."""
    finished: float
    """When the last job completed, or the time was over."""

    def __str__(self) -> str:
        one = self.settled
        return (
            f"{self.scenario.name}, {self.policy!r}: "
            f"{one.throughput:.1f} jobs/s ({self.overall.throughput:.1f} overall), "
            f"running {one.running.p50 * 1e3:.0f}/{one.running.p99 * 1e3:.0f} ms, "
            f"waiting {one.waiting.p50 * 1e3:.0f}/{one.waiting.p99 * 1e3:.0f} ms (p50/p99), "
            f"{one.mean_workers:.1f} workers, overload {one.overload:.1%} of {one.attempts}, "
            f"{len(self.decisions)} decisions"
        )


def simulate(
    scenario: Scenario,
    policy: Policy,
    *,
    seconds: float | None = None,
    settle: float | None = None,
    seed: int = 1,
    every: float = 0.5,
    keep_decisions: bool = True,
    steer: Steer | None = None,
) -> Result:
    """Run a pool with this policy in a scenario. All policies get the same jobs and service times for the same seed.

    Args:
        scenario: The backend, the load and the time.
        policy: Passed to the pool as `workers`.
        seconds: The duration, if it differs from that of the scenario. Jobs that are not complete then are dropped.
        settle: The time before the policy is judged, if it differs from that of the scenario.
        seed: The seed for arrivals and service times.
        every: Seconds between two samples of the trace.
        keep_decisions: Whether to keep the decisions. Each one has its load, which needs much memory in a long run.
        steer: Called with the pool and its loop at the start; used to resize the pool as the best fixed size changes.
    """

    async def main() -> Result:
        return await drive(
            scenario,
            policy,
            scenario.backend(Random(f"{seed} backend")),
            seconds=scenario.seconds if seconds is None else seconds,
            settle=scenario.settle if settle is None else settle,
            seed=seed,
            every=every,
            keep_decisions=keep_decisions,
            steer=steer,
        )

    return run(main)


async def drive(
    scenario: Scenario,
    policy: Policy,
    backend: Backend,
    *,
    seconds: float,
    settle: float,
    seed: int = 1,
    every: float = 0.5,
    keep_decisions: bool = True,
    steer: Steer | None = None,
) -> Result:
    """Do what `simulate` does, on the running loop and with an existing backend."""
    loop = asyncio.get_running_loop()
    recorder = _Recorder(loop, min(settle, seconds), keep_decisions)
    arrivals = _Arrivals(scenario.load(Random(f"{seed} load")), loop.time())
    pool: WorkerPool[Job, None] = WorkerPool(
        recorder.handler(backend), workers=policy, retry=scenario.retry, observers=[recorder.observe]
    )
    async with pool:
        if steer is not None:
            steer(pool, loop)
        sampler = loop.create_task(recorder.sample(pool, arrivals, every), name="sampler")
        submitter = loop.create_task(arrivals.submit_all(pool), name="submitter")
        try:
            async with asyncio.timeout(seconds):
                await submitter
                await pool.join()
        except TimeoutError:
            pass
        finally:
            sampler.cancel()
            submitter.cancel()
            await asyncio.wait([sampler, submitter])
        finished = recorder.close()
        await pool.close(drain_timeout=0.0)
    for task in (sampler, submitter):
        if not task.cancelled():
            task.result()  # raises if the simulator itself has failed
    return Result(
        scenario=scenario,
        policy=policy,
        capacity=backend.capacity,
        trace=recorder.trace,
        decisions=recorder.decisions,
        overall=recorder.settling + recorder.settled,
        settled=recorder.settled,
        finished=finished,
    )


class _Arrivals:
    """Submits jobs to the pool in the order of their arrival. Jobs that arrive while the pool is full wait here."""

    def __init__(self, times: Iterable[float], start: float) -> None:
        self._times = iter(times)
        self._start = start
        self._arrived: deque[float] = deque()  # arrived or next to arrive, and not submitted

    async def submit_all(self, pool: WorkerPool[Job, None]) -> None:
        """Submit each job when it has arrived and the pool has room."""
        loop = asyncio.get_running_loop()
        while self._arrived or self._fetch():
            at = self._arrived[0]
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            await pool.submit(Job(at))
            self._arrived.popleft()

    def count_waiting(self, now: float) -> int:
        """Return how many jobs have arrived and are not submitted. Of those there at the start, only one counts."""
        while not self._arrived or self._start < self._arrived[-1] <= now:
            if not self._fetch():
                return len(self._arrived)
        return len(self._arrived) - (self._arrived[-1] > now)

    def _fetch(self) -> bool:
        for at in self._times:
            self._arrived.append(self._start + at)
            return True
        return False


class _Recorder:
    """Records each attempt in the handler, and each change of the number of workers as an observer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settle: float, keep_decisions: bool) -> None:
        self.trace: list[Sample] = []
        self.decisions: list[tuple[float, PoolResized]] = []
        self.settling = Totals()
        self.settled = Totals()
        self._time = loop.time
        self._began = loop.time()
        self._settle = settle
        self._keep_decisions = keep_decisions
        self._wanted = 0
        self._wanted_since = self._began
        self._totals = self.settling if settle else self.settled
        self._fresh: list[float] = []  # running times of the successful attempts since the last sample
        self._overloads = 0

    def handler(self, backend: Backend) -> Callable[[Job], Coroutine[Any, Any, None]]:
        """Return the handler of the pool."""
        time, call = self._time, backend.call

        async def handle(job: Job) -> None:
            began = time()
            try:
                await call(job)
            except RetryAfter:
                self._totals.overloads += 1
                self._overloads += 1
                raise
            except Exception:
                self._totals.failures += 1
                raise
            running = time() - began
            totals = self._totals
            totals.good += 1
            totals.running.add(running)
            totals.waiting.add(began - job.arrived)
            self._fresh.append(running)

        return handle

    def observe(self, event: Event) -> None:
        """Record events that concern the number of workers."""
        if type(event) is PoolResized:
            now = self._time()
            if self._keep_decisions:
                self.decisions.append((now - self._began, event))
            self._count_workers(now)
            self._wanted = event.new
        elif type(event) is PoolStarted:
            self._wanted = event.workers

    async def sample(self, pool: WorkerPool[Job, None], arrivals: _Arrivals, every: float) -> None:
        """Add a sample to the trace periodically, and switch from `settling` to `settled` when that time is over."""
        for number in count(1):
            at = number * every
            if self._totals is self.settling and at >= self._settle:
                await self._until(self._settle)
                self._count_workers(self._time())
                self._totals = self.settled
            await self._until(at)
            stats, fresh = pool.stats, self._fresh
            self.trace.append(
                Sample(
                    at=at,
                    wanted=self._wanted,
                    ready=stats.workers,
                    queued=stats.queued + stats.delayed + arrivals.count_waiting(self._time()),
                    running=stats.running,
                    throughput=len(fresh) / every,
                    median_running=median(fresh) if fresh else math.nan,
                    overloads=self._overloads,
                )
            )
            self._fresh = []
            self._overloads = 0

    def close(self) -> float:
        """Stop recording, and return for how many seconds it has recorded."""
        now = self._time()
        self._count_workers(now)
        self._totals = Totals()
        return now - self._began

    def _count_workers(self, now: float) -> None:
        self._totals.worker_seconds += self._wanted * (now - self._wanted_since)
        self._totals.seconds += now - self._wanted_since
        self._wanted_since = now

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self._began + at - self._time()))
