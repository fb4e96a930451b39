"""Simulated backends with a known capacity.

Each has a method `call(job)`, which the handler awaits, and a property `capacity`, which describes it in the report.
Backends use the clock of the running loop, and a random generator of their own, so that all contenders with the same
seed get the same service times.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any, Protocol

from asyncpool import RetryAfter
from benchmarks.scaling.services import Service

__all__ = ["Backend", "Changing", "Drifting", "RateLimited", "Servers", "Thrashing", "TooManyRequests"]


class Backend(Protocol):
    """A backend that runs jobs."""

    @property
    def capacity(self) -> str:
        """Its capacity, in words."""
        ...

    async def call(self, job: Any) -> None:
        """Run one job. Cancelling the caller does not stop the job: the server is not notified."""
        ...


class Servers:
    """`servers` servers behind one first-come, first-served queue: more calls at a time only wait."""

    def __init__(self, servers: int, service: Service, *, random: Random) -> None:
        self.servers = servers
        self.service = service
        self.random = random
        self._loop = asyncio.get_running_loop()
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def capacity(self) -> str:
        return f"{self.servers} servers, {self.service.mean * 1e3:.0f} ms a job: {self.most_per_second:.0f} jobs/s"

    @property
    def most_per_second(self) -> float:
        """The maximum throughput, in jobs per second."""
        return self.servers / self.service.mean

    async def call(self, job: Any) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        if self._busy < self.servers:
            self._begin(ready)
        else:
            self._waiting.append(ready)
        await ready

    def seconds(self) -> float:
        """Return the service time of the next job, in seconds."""
        return self.service.draw(self.random)

    def resize(self, servers: int) -> None:
        """Change the number of servers. A surplus server stops after its current job."""
        self.servers = servers
        self._go_on()

    def _begin(self, ready: asyncio.Future[None]) -> None:
        self._busy += 1
        self._loop.call_later(self.seconds(), self._end, ready)

    def _end(self, ready: asyncio.Future[None]) -> None:
        self._busy -= 1
        if not ready.done():
            ready.set_result(None)
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._busy < self.servers:
            ready = self._waiting.popleft()
            if not ready.done():
                self._begin(ready)


class Changing(Servers):
    """A number of servers that changes: `schedule` has pairs of a time in seconds and a number; the first time is 0."""

    def __init__(self, schedule: Sequence[tuple[float, int]], service: Service, *, random: Random) -> None:
        super().__init__(schedule[0][1], service, random=random)
        self._schedule = schedule
        began = self._loop.time()
        for since, servers in schedule[1:]:
            self._loop.call_at(began + since, self.resize, servers)

    @property
    def capacity(self) -> str:
        steps = " -> ".join(str(servers) for _, servers in self._schedule)
        return f"{steps} servers, {self.service.mean * 1e3:.0f} ms a job"


class Drifting(Servers):
    """Servers that become slower: service times double every `doubling` seconds."""

    def __init__(self, servers: int, service: Service, *, doubling: float, random: Random) -> None:
        super().__init__(servers, service, random=random)
        self._doubling = doubling
        self._began = self._loop.time()

    @property
    def capacity(self) -> str:
        return f"{self.servers} servers, {self.service.mean * 1e3:.0f} ms a job, doubling every {self._doubling:.0f} s"

    def seconds(self) -> float:
        return super().seconds() * 2 ** ((self._loop.time() - self._began) / self._doubling)


class Thrashing:
    """A database that thrashes: from some number of concurrent jobs on, the throughput falls.

    Processor sharing by the Universal Scalability Law (N. Gunther, Guerrilla Capacity Planning, 2007): the throughput
    of n concurrent jobs is X(n) = n / (mean * (1 + contention * (n - 1) + coherence * n * (n - 1))), and all of them
    progress at the same speed. A virtual clock that runs at that speed gives the completion times: a job is complete
    when the clock has advanced by its work since it started. A heap has the completion times, and one timer waits for
    the next.
    """

    def __init__(self, service: Service, *, contention: float, coherence: float, random: Random) -> None:
        self.service = service
        self.contention = contention
        self.coherence = coherence
        self.random = random
        self._loop = asyncio.get_running_loop()
        self._marks: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._worked = 0.0  # the virtual clock, in seconds of work
        self._at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def knee(self) -> float:
        """The number of concurrent jobs with the maximum throughput."""
        return math.sqrt((1 - self.contention) / self.coherence)

    @property
    def capacity(self) -> str:
        knee = round(self.knee)
        most = self.per_second(knee)
        return f"at most {most:.0f} jobs/s, with {knee} at a time; {self.per_second(5 * knee):.0f} with {5 * knee}"

    def per_second(self, inside: int) -> float:
        """Return the throughput with this many concurrent jobs."""
        return inside * self._speed(inside) / self.service.mean

    async def call(self, job: Any) -> None:
        self._go_on()
        ready: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._marks, (self._worked + self.service.draw(self.random), next(self._numbers), ready))
        self._arm()
        await ready

    def _speed(self, inside: int) -> float:
        return 1 / (1 + self.contention * (inside - 1) + self.coherence * inside * (inside - 1))

    def _go_on(self) -> None:
        now = self._loop.time()
        if self._marks:
            self._worked += (now - self._at) * self._speed(len(self._marks))
        self._at = now

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._marks:
            left = max(0.0, self._marks[0][0] - self._worked)
            self._timer = self._loop.call_later(left / self._speed(len(self._marks)), self._finish)

    def _finish(self) -> None:
        self._go_on()
        mark, _, ready = heapq.heappop(self._marks)  # the timer always waits for the first one
        self._worked = mark
        if not ready.done():
            ready.set_result(None)
        self._arm()


class TooManyRequests(Exception):
    """The response 429 of an API above its rate."""


class RateLimited:
    """An API with a rate limit: a bucket of `burst` tokens that is refilled at `rate` per second. Without a token: 429.

    A rejected request takes `refusal` seconds, for the round trip. The response has a Retry-After of about
    `retry_after` seconds.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        service: Service,
        *,
        random: Random,
        refusal: float = 0.02,
        retry_after: float = 1.0,
    ) -> None:
        self.rate = rate
        self.burst = burst
        self.service = service
        self.random = random
        self.accepted = 0
        self._refusal = refusal
        self._retry_after = retry_after
        self._loop = asyncio.get_running_loop()
        self._tokens = float(burst)
        self._at = self._loop.time()

    @property
    def capacity(self) -> str:
        calls = self.rate * self.service.mean
        return f"{self.rate:.0f} jobs/s (429 above), {self.service.mean * 1e3:.0f} ms a job: {calls:.0f} at a time"

    async def call(self, job: Any) -> None:
        """Run one job.

        Raises:
            RetryAfter: The API rejected the request. Its cause is a `TooManyRequests`.
        """
        now = self._loop.time()
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            self.accepted += 1
            await asyncio.sleep(self.service.draw(self.random))
        else:
            await asyncio.sleep(self._refusal)
            seconds = self._retry_after * self.random.uniform(0.5, 1.5)
            raise RetryAfter(seconds) from TooManyRequests(f"429: more than {self.rate:g} requests per second")
