"""One pool, one load, one backend, on virtual time: what happened, half second by half second and in all."""

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
"""What a pool takes as `workers`: a number, a policy, a function of the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a policy has to cope with."""

    name: str
    about: str
    backend: Callable[[Random], Backend]
    load: Load
    seconds: float = 300.0
    settle: float = 60.0  # what comes before is not judged
    most: int = 80  # of the fixed sizes that are tried, the largest
    max_overload: float = 0.02  # the share of attempts that may be turned away
    retry: Retry | None = None
    max_workers: int = 40  # what a user sets who does not know the capacity
    best: int | None = None  # the size to compare with, where it is known; None: look for it
    phases: Sequence[tuple[float, Scenario]] = ()  # where capacity jumps: since when it is as in which other scenario


@dataclass(slots=True)
class Job:
    """Something to do, and when it came: that may be long before the pool accepts it."""

    arrived: float


Steer: TypeAlias = Callable[[WorkerPool[Job, None], asyncio.AbstractEventLoop], object]
"""What an oracle does with a pool."""


@dataclass(slots=True, kw_only=True)
class Result:
    """What a pool made of a scenario."""

    scenario: Scenario
    policy: Policy
    capacity: str
    trace: list[Sample]
    decisions: list[tuple[float, PoolResized]]
    """When the number of workers changed, and what the pool said about it."""
    overall: Totals
    settled: Totals
    """The same, without the time that the scenario gives to settle."""
    finished: float
    """When the last job was done, or the time was over."""

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
    """Run a pool with this policy through a scenario. The same seed gives the same jobs and services to each policy.

    Args:
        scenario: The backend, the load and the time.
        policy: What the pool gets as `workers`.
        seconds: How long, if not as the scenario says. Jobs that are not done by then are left.
        settle: How long the policy may look around before it is judged, if not as the scenario says.
        seed: For arrivals and services.
        every: Seconds from one sample of the trace to the next.
        keep_decisions: Whether the result is to have them. They hold what they were decided on, which adds up in a day.
        steer: Called with the pool and its loop at the start, for what an oracle knows.
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
    """Do what `simulate` does, by the time of the running loop, and to a backend that is there."""
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
        bringer = loop.create_task(arrivals.bring(pool), name="bringer")
        try:
            async with asyncio.timeout(seconds):
                await bringer
                await pool.join()
        except TimeoutError:
            pass
        finally:
            sampler.cancel()
            bringer.cancel()
            await asyncio.wait([sampler, bringer])
        finished = recorder.close()
        await pool.close(drain_timeout=0.0)
    for task in (sampler, bringer):
        if not task.cancelled():
            task.result()  # a fault of the simulator must not pass for a result
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
    """Brings jobs to the pool in the order they came. Those that come while the pool is full wait here."""

    def __init__(self, times: Iterable[float], start: float) -> None:
        self._times = iter(times)
        self._start = start
        self._came: deque[float] = deque()  # not brought yet, as far as anybody has looked

    async def bring(self, pool: WorkerPool[Job, None]) -> None:
        """Submit each job when it has come and there is room."""
        loop = asyncio.get_running_loop()
        while self._came or self._look():
            at = self._came[0]
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            await pool.submit(Job(at))
            self._came.popleft()

    def count_waiting(self, now: float) -> int:
        """Return how many have come and were not brought; of those there from the start, only the next."""
        while not self._came or self._start < self._came[-1] <= now:
            if not self._look():
                return len(self._came)
        return len(self._came) - (self._came[-1] > now)

    def _look(self) -> bool:
        for at in self._times:
            self._came.append(self._start + at)
            return True
        return False


class _Recorder:
    """Sees each attempt from inside, and each change of size as an observer."""

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
        self._fresh: list[float] = []  # what the good attempts took since the last sample
        self._overloads = 0

    def handler(self, backend: Backend) -> Callable[[Job], Coroutine[Any, Any, None]]:
        """Return what the pool is to run."""
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
        """Keep what concerns the number of workers."""
        if type(event) is PoolResized:
            now = self._time()
            if self._keep_decisions:
                self.decisions.append((now - self._began, event))
            self._count_workers(now)
            self._wanted = event.new
        elif type(event) is PoolStarted:
            self._wanted = event.workers

    async def sample(self, pool: WorkerPool[Job, None], arrivals: _Arrivals, every: float) -> None:
        """Add to the trace, again and again; and go over from settling to settled."""
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
        """Count nothing more, and return how long it was counted."""
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
