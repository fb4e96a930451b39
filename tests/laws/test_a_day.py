"""The laws in the long run: pools that scale, for twenty-four hours of virtual time, with tides of load.

Each tide is like all others. So what there is more of at a later one has leaked, and what is other has drifted.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
from typing import Any

from asyncpool import Adaptive, AutoScale, Retry, RetryAfter, ScalingPolicy, WorkerPool, current_job
from asyncpool.testing import run, settle
from tests.laws.witness import check_conservation

TIDE = 2 * 3600.0
TIDES = 12
PHASES = 8
JOBS = 240  # in one tide
JOB_SECONDS = 160.0
SERVERS = 10  # of the backend: with more jobs at a time, each takes longer


def seconds_of_jobs() -> list[float]:
    """When jobs come in a tide: hardly any at its ends, and in the middle as many as just keep the backend busy."""
    shares = [(1.0 - math.cos(2.0 * math.pi * second / TIDE)) / TIDE for second in range(int(TIDE))]
    seconds, due = [], 0.5
    for second, share in enumerate(shares):
        due += JOBS * share
        if due >= 1.0:
            due -= 1.0
            seconds.append(float(second))
    return seconds


class Backend:
    """What the jobs wait for."""

    def __init__(self) -> None:
        self.active = self.calls = 0

    async def __call__(self, number: int) -> None:
        self.calls += 1
        self.active += 1
        try:
            await asyncio.sleep(JOB_SECONDS * max(1.0, self.active / SERVERS) * (0.9 + number % 7 / 50))
        finally:
            self.active -= 1
        if number % 20 == 3 and current_job().attempt == 1:
            raise RetryAfter(5.0) from ConnectionError(number)


class Day:
    """A pool that lives for a day."""

    def __init__(self, policy: ScalingPolicy) -> None:
        self.backend = Backend()
        retry = Retry(attempts=2, backoff=1.0, jitter=False)
        self.pool: WorkerPool[int, None] = WorkerPool(self.backend, workers=policy, queue_size=40, retry=retry)
        self.seconds = seconds_of_jobs()
        self.wanted: list[list[int]] = []  # at each phase of each tide
        self.peaks: list[int] = []  # the most of these in each tide
        self.memory: list[int] = []

    async def live(self) -> None:
        """Live, and look at it now and then."""
        async with self.pool:
            submitter = asyncio.create_task(self._submit())
            for tide in range(TIDES):
                self.wanted.append([])
                self.peaks.append(0)
                for phase in range(PHASES):
                    await self._sleep_until(tide, phase * TIDE / PHASES)
                    self._look()
                if tide in (1, TIDES - 1):
                    await self._sleep_until(tide, TIDE - 1.0)  # the ebb: nothing is on its way
                    self._measure()
            await submitter
        assert not self.pool.report
        stats = self.pool.stats
        assert stats.submitted == stats.succeeded == TIDES * len(self.seconds)
        assert stats.retries == TIDES * JOBS // 20
        assert self.backend.calls == stats.succeeded + stats.retries

    async def _sleep_until(self, tide: int, second: float) -> None:
        await asyncio.sleep(tide * TIDE + second - asyncio.get_running_loop().time())
        await settle()

    async def _submit(self) -> None:
        for tide in range(TIDES):
            for number, second in enumerate(self.seconds):
                await self._sleep_until(tide, second)
                await self.pool.submit(number)

    def _look(self) -> None:
        stats = self.pool.stats
        check_conservation(stats)
        self.wanted[-1].append(stats.target_workers)
        self.peaks[-1] = max(self.peaks[-1], stats.target_workers)
        scheduled: list[Any] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        timers = sum(not timer.cancelled() for timer in scheduled)
        # Of each job that runs its sleep; of the policy, of the delayed jobs, of the submitter one each.
        assert timers <= stats.running + 3
        assert len(scheduled) <= 2 * timers + 200, "asyncio sweeps out what was cancelled"

    def _measure(self) -> None:
        stats = self.pool.stats
        assert (stats.queued, stats.delayed, stats.running) == (0, 0, 0)
        gc.collect()
        self.memory.append(sys.getallocatedblocks())


def live_for_a_day(policy: ScalingPolicy) -> Day:
    """Return a day that is over, and check that it has left nothing."""
    day = Day(policy)
    run(day.live)
    more = day.memory[1] - day.memory[0]
    # One for each job would be thousands; some numbers are longer late in the day.
    assert more < 500, f"{more} blocks of memory more, at the same phase of a later tide"
    return day


def test_a_pool_that_scales_with_its_backlog_is_at_each_tide_as_before() -> None:
    day = live_for_a_day(AutoScale(0, 20, backlog_per_worker=2, interval=10.0, idle_timeout=300.0))
    assert day.wanted == [day.wanted[0]] * TIDES
    assert day.wanted[0][0] == 0
    assert SERVERS <= day.peaks[0] < 20


def test_a_pool_that_finds_its_size_keeps_it_at_each_tide() -> None:
    day = live_for_a_day(Adaptive(4, 20, interval=10.0))
    later = day.peaks[2:]  # then it has found it
    assert all(0.6 * SERVERS <= peak <= 1.6 * SERVERS for peak in later), day.wanted
    half = len(later) // 2
    assert abs(sum(later[:half]) - sum(later[half:])) <= 2 * half, day.wanted
