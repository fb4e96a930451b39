"""A witness who sees a pool from outside, and compares what it did with the laws.

He gives the pool its handler and its sources, counts every call and every input pulled, and uses public names only.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from asyncpool import (
    Cancelled,
    CancelReason,
    Failed,
    JobHandle,
    PoolClosed,
    PoolStats,
    ShutdownReport,
    Succeeded,
    WorkerPool,
)
from asyncpool.events import JobAccepted, JobEnded, JobStarted

HANDED_BACK = (CancelReason.SHUTDOWN, CancelReason.ABANDONED)

# What a handler may do. The last three need somebody who cancels them, or time.
QUICK = ("ok", "turn", "nap", "fail", "turn_fail", "crash", "exit", "stop")
SLOW = ("slow", "stubborn", "hang")
KINDS = QUICK + SLOW


@dataclass(frozen=True, slots=True)
class Item:
    """An input: its number, unlike all others, and what the handler does with it."""

    n: int
    kind: str = "ok"


def check_conservation(stats: PoolStats) -> None:
    """Check law 1: every job that was accepted is in exactly one place."""
    places = stats.queued + stats.delayed + stats.running + stats.succeeded + stats.failed + stats.cancelled
    assert stats.submitted == places, f"{stats.submitted} submitted, but {places} are somewhere: {stats}"
    assert min(stats.queued, stats.delayed, stats.running, stats.stuck, stats.workers) >= 0, stats


class Witness:
    """Sees what a pool does with its inputs."""

    def __init__(self, random: Random | None = None) -> None:
        self.random = Random(0) if random is None else random
        self.pool: WorkerPool[Any, Any]
        self.wanted = 0  # workers
        self.limit = 0  # how many jobs may run: more than `wanted` only while what ran at a resize has not ended
        self.calls: Counter[int] = Counter()  # how often the handler was called with an item
        self.active_items: set[int] = set()  # whose handlers run now
        self.handles: list[JobHandle[Any, Any]] = []
        self.pulled: list[Item] = []  # from all sources, each of which must have been accepted
        self.sources_open = 0
        self.is_hurried = (
            False  # whether the pool is closed with no grace: then the closing of a source may be cut short
        )
        self.others = 0  # jobs that were certainly accepted in other ways
        self.perhaps = 0  # jobs that may have been accepted: a cancelled run() does not tell
        self.accepted: dict[int, Any] | None = None  # by the job's number, if the pool's events are watched
        self.ended: dict[int, Any] = {}
        self.problems: list[str] = []  # what the events told
        self.waiting = 0  # calls of submit() that have begun and not ended
        self.may_abandon = False  # then handlers may go on when their jobs have their outcome
        self.release = asyncio.Event()  # ends the jobs that ignore their cancellation
        self._next = 0

    def make_pool(self, *, workers: int, observe: bool | None = None, **options: Any) -> WorkerPool[Any, Any]:
        """Make the pool to watch. Its events are watched at random: most users do not watch, and that is other code."""
        if observe is None:
            observe = self.random.random() < 0.5
        if observe:
            self.accepted = {}
            options["observers"] = [self.see]
        self.limit = self.wanted = workers
        self.pool = WorkerPool(self.handle, workers=workers, **options)
        return self.pool

    def resize(self, workers: int) -> None:
        """Resize the pool; what runs then may go on, but nothing new may begin above the limit."""
        before = self.limit, self.wanted
        self.limit = max(workers, self.pool.stats.running)
        self.wanted = workers
        try:
            self.pool.resize(workers)
        except PoolClosed:
            self.limit, self.wanted = before
            raise

    # -- Inputs ------------------------------------------------------------------------------------------------------

    def item(self, *kinds: str) -> Item:
        """Make a new item of one of these kinds, `QUICK` if none is named."""
        self._next += 1
        return Item(self._next, self.random.choice(kinds or QUICK))

    def items(self, count: int, *kinds: str) -> list[Item]:
        """Make several."""
        return [self.item(*kinds) for _ in range(count)]

    def source(self, items: Iterable[Item], *, fails: bool = False) -> Iterator[Item]:
        """A plain generator of items, which notes what is pulled, and that it is closed."""
        self.sources_open += 1
        try:
            for item in items:
                self.pulled.append(item)
                yield item
            if fails:
                raise LookupError("the source failed")
        finally:
            self.sources_open -= 1

    async def async_source(
        self, items: Iterable[Item], *, fails: bool = False, waits: float = 0.0
    ) -> AsyncIterator[Item]:
        """An asynchronous generator of items, which waits before each, and while it is closed early."""
        self.sources_open += 1
        try:
            for item in items:
                if self.random.random() < 0.7:
                    await asyncio.sleep(waits)
                self.pulled.append(item)
                yield item
        except BaseException:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if not self.is_hurried:  # else a grace of 0 leaves no time
                    raise
            self.sources_open -= 1
            raise
        self.sources_open -= 1
        if fails:
            raise LookupError("the source failed")

    def any_source(self, items: Iterable[Item], *, fails: bool = False) -> Any:
        """One of the two, at random."""
        make = self.async_source if self.random.random() < 0.5 else self.source
        return make(items, fails=fails)

    async def submit(self, item: Item) -> JobHandle[Any, Any]:
        """Submit an item and note its handle."""
        self.waiting += 1
        try:
            handle = await self.pool.submit(item)
        finally:
            self.waiting -= 1
        self.handles.append(handle)
        return handle

    def submit_nowait(self, item: Item) -> JobHandle[Any, Any]:
        """Submit an item without waiting, which must not succeed while others wait, and note its handle."""
        handle = self.pool.submit_nowait(item)
        self.handles.append(handle)
        assert not self.waiting, f"{item} has overtaken {self.waiting} others"
        return handle

    # -- The handler -------------------------------------------------------------------------------------------------

    async def handle(self, item: Item, resource: object = None) -> int:
        """Do what the item says. It is the pool's handler."""
        self.calls[item.n] += 1
        self.active_items.add(item.n)
        try:
            self.check()
            return await self.work(item)
        finally:
            self.active_items.discard(item.n)

    @property
    def active(self) -> int:
        """How many handlers run now."""
        return len(self.active_items)

    async def work(self, item: Item) -> int:
        """Do what the item says, and note nothing."""
        match item.kind:
            case "turn":
                await asyncio.sleep(0)
            case "nap":
                await asyncio.sleep(0.001 * (item.n % 5))
            case "fail":
                raise ValueError(item.n)
            case "turn_fail":
                await asyncio.sleep(0)
                raise ValueError(item.n)
            case "crash":
                raise asyncio.CancelledError
            case "exit":
                raise SystemExit(item.n)
            case "stop":
                raise StopAsyncIteration
            case "slow":
                try:
                    await asyncio.sleep(1.0)
                finally:
                    await asyncio.sleep(0)  # cleaning up takes a turn, and must not be cut short
                    await asyncio.sleep(0.001)
            case "stubborn":
                try:
                    await asyncio.sleep(1.0)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.002)
            case "stuck":
                while not self.release.is_set():
                    try:
                        await self.release.wait()
                    except asyncio.CancelledError:
                        pass
            case "hang":
                await asyncio.get_running_loop().create_future()
            case "ok":
                pass
        return item.n

    # -- The laws ----------------------------------------------------------------------------------------------------

    def see(self, event: object) -> None:
        """Take an event of the pool in. It is an observer; one that raised would be dropped, so it takes notes."""
        assert self.accepted is not None
        if isinstance(event, JobAccepted):
            if event.id != len(self.accepted) + 1:
                self.problems.append(f"{event} is number {len(self.accepted) + 1}")
            self.accepted[event.id] = event.job
        elif isinstance(event, JobEnded):
            if event.id not in self.accepted:
                self.problems.append(f"never accepted: {event}")
            if event.id in self.ended:
                self.problems.append(f"job {event.id} has two outcomes: {self.ended[event.id]}, {event}")
            self.ended[event.id] = event.outcome
        if isinstance(event, (JobAccepted, JobStarted, JobEnded)):
            try:
                self.check()
            except AssertionError as error:
                self.problems.append(f"at {event}: {error}")

    def check(self) -> None:
        """Check what is true at every moment."""
        stats = self.pool.stats
        check_conservation(stats)
        assert stats.running <= self.limit, f"{stats.running} run, of {self.limit} at most"
        self.limit = max(self.wanted, min(self.limit, stats.running))
        assert self.may_abandon or self.active <= stats.running, f"{self.active} handlers run for {stats.running} jobs"

    def check_outcome(self, outcome: Any) -> None:
        """Check that an outcome tells what the handler saw."""
        calls = self.calls[outcome.job.n]
        match outcome:
            case Succeeded(job, value):
                assert calls == 1
                assert value == job.n
            case Failed(_, error):
                # A task that others cancel before its first step never calls the handler.
                assert calls == 1 or (calls == 0 and outcome.attempts <= 1), outcome
                assert error is not None
            case Cancelled():
                assert outcome.started == (calls == 1), f"{outcome}, and its handler was called {calls} times"

    async def check_end(self) -> ShutdownReport[Any]:
        """Check what is true of a closed pool: nothing lost, nothing twice, nothing left. Returns its report."""
        self.check()
        assert not self.problems, self.problems
        stats, report = self.pool.stats, self.pool.report
        assert report is not None, "the pool is not closed"
        assert (stats.queued, stats.delayed, stats.running) == (0, 0, 0), stats
        assert self.sources_open == 0, "a source was not closed"
        assert max(self.calls.values(), default=0) <= 1, "a job ran twice"

        certain = len(self.handles) + len(self.pulled) + self.others
        assert certain <= stats.submitted <= certain + self.perhaps, (certain, self.perhaps, stats)
        outcomes = dict(self.ended)  # by the job's number
        for handle in self.handles:
            assert handle.done(), f"{handle} never settled"
            outcome = await handle.outcome()
            assert outcome is await handle.outcome()
            assert outcome.job is handle.job
            assert outcomes.setdefault(handle.id, outcome) is outcome
        if self.accepted is not None:
            assert set(self.accepted) == set(self.ended), "a job has no outcome"
            assert len(self.accepted) == stats.submitted
        for outcome in outcomes.values():
            self.check_outcome(outcome)

        # What is handed back: all that was cancelled for the pool's end. Of what was abandoned, that which its owner
        # had not cancelled before, and we do not know of each.
        unfinished = [(entry.job, entry.started) for entry in report.unfinished]
        abandoned = [(entry.job, entry.started) for entry in report.abandoned]
        by_reason: dict[CancelReason, list[Any]] = {CancelReason.SHUTDOWN: [], CancelReason.ABANDONED: []}
        for _, outcome in sorted(outcomes.items()):
            if isinstance(outcome, Cancelled) and outcome.reason in HANDED_BACK:
                by_reason[outcome.reason].append((outcome.job, outcome.started))
        if len(outcomes) == stats.submitted:  # we know them all
            assert abandoned == by_reason[CancelReason.ABANDONED], report
            assert [entry for entry in unfinished if entry not in abandoned] == by_reason[CancelReason.SHUTDOWN], report
        assert len({item.n for item, _ in unfinished}) == len(unfinished), "handed back twice"
        return report


# -- How a loop makes tasks ------------------------------------------------------------------------------------------


def plain_factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    """A task factory that does what asyncio does without one."""
    return asyncio.Task(coro, loop=loop, **options)


def wrapping_factory(
    loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    """A task factory that puts a coroutine of its own around each, as tracing tools do."""

    async def traced() -> Any:
        return await coro

    task = asyncio.Task(traced(), loop=loop, **options)
    task.add_done_callback(lambda _: coro.close())  # if it was cancelled before its first step
    return task


FACTORIES: dict[str, Callable[..., Any] | None] = {
    "default": None,
    "factory": plain_factory,
    "wrapping": wrapping_factory,
}
if sys.version_info >= (3, 12):
    FACTORIES["eager"] = asyncio.eager_task_factory


async def gather_all(*awaitables: Awaitable[Any]) -> list[Any]:
    """Wait for all, and return their values or errors."""
    return await asyncio.gather(*awaitables, return_exceptions=True)


def spawn(coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Make a task. Whoever spawns it waits for it."""
    return asyncio.get_running_loop().create_task(coro)


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait until these tasks have ended, however they did."""
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()
