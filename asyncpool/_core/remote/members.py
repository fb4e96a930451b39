"""The options of a pool with an engine, its processes and the attempts that they were sent: plain data, and counts."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass
from typing import Any

from asyncpool._core.job import Job
from asyncpool.engines.contract import Engine, Process
from asyncpool.engines.wire import CANCEL, START
from asyncpool.stats import ProcessStats

__all__ = ["Errand", "Member", "Remote", "Slots"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The options of a pool with an engine."""

    engine: Engine
    spec: bytes
    is_required: bool
    """Whether `start()` waits for the first resource."""
    patience: float
    """Seconds without a process after which the engine is given up."""
    reruns: bool
    """Whether an attempt runs again whose process was lost."""
    responds_within: float | None
    """Seconds after which a process that does not respond is killed."""


class Errand:
    """One attempt that runs in a process, or is to.

    It waits here while `member` is None. It has ended once `end` is set.
    """

    __slots__ = (
        "carried",
        "data",
        "died_alone",
        "end",
        "ended",
        "id",
        "is_cancelled",
        "is_sent",
        "job",
        "member",
        "timeout",
        "was_sent",
    )

    def __init__(
        self,
        id: int,
        job: Job,
        data: bytes,
        carried: bytes | None,
        timeout: float | None,
        ended: asyncio.Future[None],
    ) -> None:
        self.id = id
        self.job = job
        self.data = data
        self.carried = carried
        self.timeout = timeout  # of this attempt, if a function of the job decides it
        self.ended = ended  # only wakes: a cancellation of the job cancels it, and the end would be lost with it
        self.end: tuple[int, Any, float] | None = None  # what kind of news, its content, the seconds that it ran
        self.member: Member | None = None
        self.is_cancelled = False
        self.is_sent = False  # whether it may have begun in `member`, or still waits for the next batch to that
        self.was_sent = False  # whether it may have begun anywhere
        self.died_alone = False  # whether its process died while it ran nothing else

    def settle(self, kind: int, content: Any, seconds: float) -> None:
        """Give it its end."""
        self.end = (kind, content, seconds)
        if not self.ended.done():
            self.ended.set_result(None)


class Counts:
    """What the processes of one place have done so far."""

    __slots__ = ("done", "lost", "seconds")

    def __init__(self) -> None:
        self.done = 0
        self.lost = 0
        self.seconds = 0.0


class Slots:
    """Numbers for processes, each the lowest that is free: so there are as few as there were processes at a time, and
    the counts of a process that was replaced go on.
    """

    __slots__ = ("_counts", "_free")

    def __init__(self) -> None:
        self._counts: dict[int, Counts] = {}
        self._free: list[int] = []

    def take(self) -> tuple[int, Counts]:
        """Return a number, and what was counted under it."""
        number = heapq.heappop(self._free) if self._free else len(self._counts) + 1
        return number, self._counts.setdefault(number, Counts())

    def give_back(self, number: int) -> None:
        """Let another process have this number."""
        heapq.heappush(self._free, number)


class Member:
    """A process, and what it was sent and has not ended."""

    __slots__ = (
        "bytes",
        "counts",
        "errands",
        "has_orders",
        "is_apart",
        "is_ready",
        "is_waiting",
        "number",
        "orders",
        "process",
        "share",
        "silent_checks",
        "tasks",
        "was_ready",
    )

    def __init__(self, process: Process, number: int, counts: Counts) -> None:
        self.process = process
        self.number = number
        self.counts = counts
        self.errands: dict[int, Errand] = {}
        self.orders: list[tuple[Any, ...]] = []  # to be sent with the next batch
        self.bytes = 0  # of the inputs in them
        self.has_orders = asyncio.Event()
        self.share = 0  # how many attempts it may run at a time, as it was sent
        self.is_ready = False  # whether it can run attempts
        self.is_waiting = False  # whether it could, if one of its workers had its resource
        self.was_ready = False  # whether it ever had: if not, it may be a process that cannot run the handler
        self.is_apart = False  # whether it runs one group of suspects, or is being emptied for one
        self.silent_checks = 0  # how many checks have passed without news from it
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """What it is called in logs and errors."""
        return self.process.name

    @property
    def room(self) -> int:
        """How many attempts it could take now."""
        return self.share - len(self.errands)

    def order(self, *order: Any) -> None:
        """Send an order with the next batch."""
        self.orders.append(order)
        self.has_orders.set()

    def hand(self, errand: Errand, seconds_left: float | None) -> None:
        """Send an attempt with the next batch."""
        errand.member, errand.is_sent = self, False
        self.errands[errand.id] = errand
        self.bytes += len(errand.data)
        job = errand.job
        times = (seconds_left, errand.timeout)
        self.order(START, errand.id, job.number, job.attempt, *times, errand.carried, errand.data)

    def take_orders(self) -> list[tuple[Any, ...]]:
        """Return the next batch. From now on its attempts may run there."""
        self.has_orders.clear()
        orders, self.orders, self.bytes = self.orders, [], 0
        for order in orders:
            if order[0] == START and (errand := self.errands.get(order[1])) is not None:
                errand.is_sent = errand.was_sent = True
        return orders

    def cancel(self, errand: Errand) -> None:
        """Ask for the end of an attempt that runs there."""
        self.order(CANCEL, errand.id)

    def release(self) -> list[Errand]:
        """Take back what it was sent and has not ended: it is gone. Return it in the order in which it was sent."""
        errands = list(self.errands.values())
        self.errands.clear()
        for errand in errands:
            errand.member = None
        return errands

    def stats(self) -> ProcessStats:
        """Return a snapshot."""
        return ProcessStats(
            number=self.number,
            name=self.name,
            workers=self.share,
            running=len(self.errands),
            done=self.counts.done,
            lost=self.counts.lost,
            seconds=self.counts.seconds,
        )
