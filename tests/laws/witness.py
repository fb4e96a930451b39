"""A witness observes a pool from outside and compares its behaviour with the laws.

It provides the handler and the sources of the pool, counts every call and every input pulled, and uses public names
only, except in `check_parts`, which checks what no public name shows.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from asyncpool import (
    Adaptive,
    AutoScale,
    Breaker,
    Cancelled,
    CancelReason,
    DeadLetter,
    DeadLetters,
    Decision,
    Failed,
    JobHandle,
    Permanent,
    PoolClosed,
    PoolLoad,
    PoolStats,
    RateLimit,
    Retry,
    RetryAfter,
    ScalingPolicy,
    ShutdownReport,
    Succeeded,
    WorkerPool,
    current_job,
)
from asyncpool.events import JobAccepted, JobEnded, JobRetrying, JobStarted, PoolPaused, PoolResized, PoolResumed
from asyncpool.scaling import Decide, Workers
from tests.engines.memory import Portable, portable

HANDED_BACK = (CancelReason.SHUTDOWN, CancelReason.ABANDONED)

# What a handler may do. The slow ones need somebody who cancels them, or time.
QUICK = ("ok", "turn", "nap", "fail", "turn_fail", "crash", "exit", "stop")
SLOW = ("slow", "stubborn", "hang")
KINDS = QUICK + SLOW
# What another attempt changes: they fail once or twice, and then they are done.
FLAKY = ("flaky1", "flaky2", "later", "pausing")
RETRIED = (*FLAKY, *FLAKY, "ok", "turn", "nap", "fail", "turn_fail", "crash", "permanent")

FAILURES = {"flaky1": 1, "flaky2": 2, "later": 1, "pausing": 1}
LATER = 0.02  # seconds that `later` asks for, before another attempt
PAUSE = 0.015  # seconds, of which `pausing` asks for one, two or three times as many, from the whole pool


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


class Meter:
    """A rate limit, with the loop times of the starts under it."""

    def __init__(
        self,
        rate: float,
        per: float = 1.0,
        burst: int = 1,
        find: Callable[[], RateLimit] | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        limit = RateLimit(rate, per, burst)
        self._find = find or (lambda: limit)  # that of a key is another after the key was forgotten
        self.is_shared = is_shared
        self.interval = per / rate
        self.burst = burst
        self.starts: list[float] = []
        self.pauses: list[tuple[float, float]] = []

    @property
    def limit(self) -> RateLimit:
        """The limit, as it is now."""
        return self._find()

    def is_closed(self) -> bool:
        """Whether nothing may start now."""
        now, opens = asyncio.get_running_loop().time(), self.limit.next_start
        # In the moment in which it opens, a pool that has just taken a start lets the others try first.
        return opens > now or (self.is_shared and opens == now)

    def pause_for(self, seconds: float) -> None:
        """Pause the limit, and note it."""
        now = asyncio.get_running_loop().time()
        self.limit.pause_for(seconds)
        if seconds:  # else it came after what starts now, or before
            self.pauses.append((now, now + seconds))

    def check(self) -> None:
        """Check the law of the rate: in any window of `w` at most `rate * w / per + burst` starts, none in a pause."""
        least = float("inf")
        for index, start in enumerate(self.starts):
            # As many starts from any earlier one to this: so the smallest of what those gave is all to look at.
            least = min(least, index - start / self.interval)
            most = self.burst + least + start / self.interval
            assert index + 1 <= most + 1e-9, f"{self.limit}: too many starts before {start}: {self.starts}"
        for began, ended in self.pauses:
            inside = [start for start in self.starts if began < start < ended]
            assert not inside, f"{self.limit}: started in the pause from {began} to {ended}: {inside}"
            after = [start for start in self.starts if ended <= start < ended + self.interval - 1e-9]
            assert len(after) <= 1, f"{self.limit}: a burst after the pause that ended at {ended}: {after}"


class Letters(DeadLetters[Any]):
    """A store that also knows what was ever recorded."""

    def __init__(self, max_size: int = 10_000) -> None:
        super().__init__(max_size)
        self.recorded: list[DeadLetter[Any]] = []
        self.look: Callable[[], object] | None = None
        """Called at each letter."""

    def record(self, letter: DeadLetter[Any], /) -> None:
        if self.look is not None:
            self.look()
        self.recorded.append(letter)
        super().record(letter)


class Whim:
    """A scaling policy that changes its mind for no reason: it gives one answer after the other, and keeps the last."""

    def __init__(self, max_workers: int, *answers: int, interval: float = 0.001, **when: Any) -> None:
        self.max_workers = max_workers
        self.interval = interval
        self._answers = answers
        self._when = when  # to ask again

    @property
    def initial_workers(self) -> int:
        return min(self._answers[0], self.max_workers)

    def start(self) -> Decide:
        left = list(self._answers)

        def decide(_: PoolLoad) -> Decision:
            if len(left) > 1:
                return Decision(left.pop(0), "a whim", **self._when)
            return Decision(left[0], "the last whim")

        return decide


def busy(load: PoolLoad) -> int:
    """A scaling policy of one line, and so the first that comes to mind."""
    return min(4, load.queued + load.running)


def bounds_of(workers: Workers) -> tuple[int, float]:
    """The fewest and the most workers that a pool may have."""
    match workers:
        case int():
            return workers, workers
        case AutoScale() | Adaptive():
            return workers.min_workers, workers.max_workers
        case ScalingPolicy():
            return 0, workers.max_workers
        case _:
            return 0, float("inf")


class Watched:
    """A scaling policy that shows the witness each load that it gets and each decision."""

    def __init__(self, witness: Witness, policy: ScalingPolicy) -> None:
        self._witness = witness
        self._policy = policy
        self.initial_workers, self.max_workers = policy.initial_workers, policy.max_workers
        self.interval = policy.interval

    def start(self) -> Decide:
        decide = self._policy.start()
        is_ours = isinstance(self._policy, (AutoScale, Adaptive))
        least, most = bounds_of(self._policy)

        def watched(load: PoolLoad) -> Decision:
            self._witness.take_note_of(load)
            try:
                decision = decide(load)
            except Exception as error:
                if is_ours:
                    self._witness.problems.append(f"{self._policy} raised {error!r} for {load}")
                raise
            if is_ours and not least <= decision.workers <= most:
                self._witness.problems.append(f"{self._policy} answered {decision} to {load}")
            return decision

        return watched


class Witness:
    """Sees what a pool does with its inputs."""

    def __init__(self, random: Random | None = None) -> None:
        self.random = Random(0) if random is None else random
        self.pool: WorkerPool[Any, Any]
        self.wanted = 0  # workers, when we looked last
        self.limit = 0  # how many jobs may run: more than `wanted` only while what ran at a resize has not ended
        self.bounds: tuple[int, float] = (0, float("inf"))  # of what is wanted
        self.widest = 1  # the most workers that there ever might have been
        self.has_resource = False
        self.checks_resources = False  # then a worker that seems to be idle can have its resource checked
        self.engine: Any = None  # that the pool to be made has: then messages take time, and attempts may run again
        self._swaps = 0  # how often the policy was replaced
        self._told: tuple[float, int] | None = None  # when this policy was asked last: the time, and the successes
        self.calls: Counter[int] = Counter()  # how often the handler was called, by the job's number
        self.active_items: set[int] = set()  # whose handlers run now
        self.retry: Retry | None = None
        self.breaker: Breaker | None = None
        self.free: Counter[int] = Counter()  # how many calls did not count as attempts, because the breaker said so
        self.scheduled = 0  # how often another attempt was scheduled
        self.letters: Letters | None = None
        self.meter_of: Callable[[Item], Meter | None] | None = None
        self.meters: list[Meter] = []
        self.is_limited_as_one = False  # so that all jobs wait in the queue for the one limit
        self.is_exact = True  # whether each attempt calls the handler: a resource or a limiter may fail before that
        self.is_fair = True  # whether those that come back are taken first: neither keys nor limits of some decide
        self.not_before: dict[int, float] = {}  # loop time of a job's next attempt, as its last has asked
        self.pause_began = self.pause_ends = -1.0  # that jobs have asked for
        self.async_sources = 0
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
        # By the events: jobs that wait for a worker or their limit, and for their next attempt, with its time.
        self.waiting_jobs: dict[int, Item] = {}
        self.due: dict[int, float] = {}
        self.accepted_at: dict[int, float] = {}
        self.retries: Counter[int] = Counter()
        self.problems: list[str] = []  # what the events told
        self.submitting: set[asyncio.Task[Any]] = set()  # in calls of submit() that have begun and not ended
        self.may_abandon = False  # then handlers may go on when their jobs have their outcome
        self.release = asyncio.Event()  # ends the jobs that ignore their cancellation
        self._next = 0

    def make_pool(self, *, workers: Workers, observe: bool | None = None, **options: Any) -> WorkerPool[Any, Any]:
        """Make the pool to watch, and its policy.

        Its events are watched at random: most users do not watch, and that is other code. So it is with retries and
        dead letters, unless they are given.
        """
        if observe is None:
            observe = self.random.random() < 0.5
        if observe:
            self.accepted = {}
            options["observers"] = [self.see, *options.get("observers", ())]
        if "dead_letters" not in options and self.random.random() < 0.3:
            options["dead_letters"] = Letters()
        if "retry" not in options and self.random.random() < 0.2:
            backoff = self.random.choice((0.0, 0.001))
            options["retry"] = Retry(attempts=self.random.randint(1, 3), backoff=backoff, jitter=False)
        self.retry, self.letters = options.get("retry"), options.get("dead_letters")
        self.breaker = options.get("breaker")
        if type(self.letters) is Letters:
            self.letters.look = self._look
        limiter = options.get("limiter")
        if isinstance(limiter, Meter):
            options["limiter"] = limiter.limit
            self.is_limited_as_one = True
            self.meters = [limiter]
            self.meter_of = lambda _: limiter
        self.is_exact = "resource" not in options and (limiter is None or self.meter_of is not None)
        self.is_fair = "priority" not in options and (limiter is None or isinstance(limiter, Meter))
        self.queue_size = options.get("queue_size")
        self.max_delayed = options.get("max_delayed", 10_000)
        self.has_resource = "resource" in options
        if self.engine is not None:
            self.is_exact = self.has_resource = False
            options |= portable(options) | {"engine": self.engine}
        handler = self._noted(options.pop("handler", self.handle))
        if self.engine is not None:
            handler = Portable(handler)
        self.pool = WorkerPool(handler, workers=self._watched(workers), **options)
        self.limit = self.wanted = self.pool.stats.target_workers
        self._set_bounds(bounds_of(workers))
        return self.pool

    def _noted(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Note what a handler finds wrong: for the pool, that is the failure of a job."""

        async def noted(*args: Any) -> Any:
            try:
                return await handler(*args)
            except AssertionError as error:
                self.problems.append(f"in a handler: {error}")
                raise

        return noted

    def _look(self) -> None:
        """Check the first law where a letter is recorded, which is in the middle of settling a job."""
        try:
            check_conservation(self.pool.stats)
        except AssertionError as error:
            self.problems.append(f"in record(): {error}")

    def keys(self, count: int, rate: float, burst: int = 1) -> Callable[[Item], RateLimit]:
        """Make the limiter of a pool to be: a limit for each of some keys, which the items have by their numbers."""
        keyed = RateLimit.per_key(lambda item: item.n % count, rate, burst=burst)
        self.meters = [Meter(rate, 1.0, burst, partial(keyed, Item(key))) for key in range(count)]
        self.meter_of = lambda item: self.meters[item.n % count]
        return keyed

    def resize(self, workers: Workers) -> None:
        """Resize the pool, or give it another policy; what runs then may go on, but nothing new may begin above it."""
        self.check()
        self._swaps += 1
        swap, before, told = self._swaps, self.bounds, self._told
        self._set_bounds((0, float("inf")))
        self._told = None  # what has happened until now concerns no later policy
        try:
            self.pool.resize(self._watched(workers))
        except PoolClosed:
            self.bounds, self._told = before, told
            raise
        if self._swaps == swap:  # else the policy, or who observes the pool, has replaced it meanwhile
            self._set_bounds(bounds_of(workers))
        self.check()

    def _watched(self, workers: Workers) -> Workers:
        match workers:
            case int():
                return workers
            case ScalingPolicy():
                return Watched(self, workers)

        def watched(load: PoolLoad) -> int:
            self.take_note_of(load)
            return workers(load)

        return watched

    def _set_bounds(self, bounds: tuple[int, float]) -> None:
        self.bounds = bounds
        if bounds[1] < float("inf"):
            self.widest = max(self.widest, int(bounds[1]))

    def take_note_of(self, load: PoolLoad) -> None:
        """Record the load that a policy gets. As with observers, an error raised here would only be logged."""
        try:
            self._take_note_of(load, self.check())
        except AssertionError as error:
            self.problems.append(f"at {load}: {error}")

    def _take_note_of(self, load: PoolLoad, stats: PoolStats) -> None:
        now = asyncio.get_running_loop().time()
        assert load.now == now
        assert load.workers == stats.target_workers
        places = load.queued, load.delayed, load.running, load.idle
        assert places == (stats.queued, stats.delayed, stats.running, stats.workers - stats.running), stats
        assert load.running <= load.peak_running <= stats.peak_running, stats
        assert 0 <= load.blocked <= load.running
        assert (
            0 <= load.starting <= load.workers + 1
        )  # one more while observers get the event that a surplus worker's job ended
        asked_at, succeeded = self._told or (now, stats.succeeded)
        self._told = now, stats.succeeded
        assert load.elapsed == now - asked_at
        assert load.succeeded == len(load.seconds) == stats.succeeded - succeeded
        assert load.failed == len(load.errors)

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
        self.async_sources += 1
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
        task = asyncio.current_task()
        assert task is not None
        self.submitting.add(task)
        try:
            handle = await self.pool.submit(item)
        finally:
            self.submitting.discard(task)
        self.handles.append(handle)
        return handle

    @property
    def waiting(self) -> int:
        """How many tasks wait in submit(), without those that were just cancelled and have not run since."""
        return sum(not task.cancelling() for task in self.submitting)

    def submit_nowait(self, item: Item) -> JobHandle[Any, Any]:
        """Submit an item without waiting, which must not succeed while others wait, and note its handle."""
        handle = self.pool.submit_nowait(item)
        self.handles.append(handle)
        assert not self.waiting, f"{item} has overtaken {self.waiting} others"
        return handle

    # -- The handler -------------------------------------------------------------------------------------------------

    async def handle(self, item: Item, resource: object = None) -> int:
        """Do what the item says. It is the pool's handler."""
        job, now = current_job(), asyncio.get_running_loop().time()
        self.calls[job.id] += 1
        assert item.n not in self.active_items, f"{item} runs twice at a time"
        self.active_items.add(item.n)
        try:
            if self.is_exact:
                free = self.calls[job.id] - job.attempt
                most = 0 if self.breaker is None else self.free[job.id] + 1
                assert self.free[job.id] <= free <= most, f"{job} is call {self.calls[job.id]}"
                self.free[job.id] = free
                assert not self.pause_began < now < self.pause_ends, f"{job} was taken in a pause"
            assert now >= self.not_before.get(job.id, now), f"{job} is tried again too early"
            assert now < self._deadline(job.id), f"{job} begins when its time is over"
            # With an engine, attempts start at the rate and arrive when they do.
            if self.engine is None and self.meter_of is not None and (meter := self.meter_of(item)) is not None:
                meter.starts.append(now)
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
            case "permanent":
                raise Permanent from ValueError(item.n)
            case "flaky1" | "flaky2" | "later" | "pausing":
                await self._fail_at_first(item)
            case "ok":
                pass
        return item.n

    async def _fail_at_first(self, item: Item) -> None:
        number, now = current_job().id, asyncio.get_running_loop().time()
        if self.calls[number] > FAILURES[item.kind]:
            return
        error = ValueError(item.n)
        match item.kind:
            case "flaky2":
                await asyncio.sleep(0)
            case "later":
                self.not_before[number] = now + LATER
                raise RetryAfter(LATER) from error
            case "pausing":
                seconds = PAUSE * (1 + item.n % 3)
                if now >= self.pause_ends:
                    self.pause_began = now
                self.pause_ends = max(self.pause_ends, now + seconds)
                self.not_before[number] = now + seconds
                raise RetryAfter(seconds, pause=True) from error
        raise error

    # -- The laws ----------------------------------------------------------------------------------------------------

    def see(self, event: object) -> None:
        """Take an event of the pool in. It is an observer; one that raised would be dropped, so it takes notes."""
        try:
            self._see(event)
            if isinstance(
                event, (JobAccepted, JobStarted, JobRetrying, JobEnded, PoolPaused, PoolResized, PoolResumed)
            ):
                self.check()
        except AssertionError as error:
            self.problems.append(f"at {event}: {error}")

    def _see(self, event: object) -> None:
        assert self.accepted is not None
        now = asyncio.get_running_loop().time()
        match event:
            case JobAccepted(id=number, job=item):
                assert number == len(self.accepted) + 1
                self.accepted[number] = self.waiting_jobs[number] = item
                self.accepted_at[number] = now
            case JobStarted(id=number, attempt=attempt):
                if self.breaker is not None and attempt == self.retries[number]:
                    self.retries[number] -= 1  # it was put back
                assert attempt == self.retries[number] + 1
                assert self.breaker is not None or now >= self.due.get(number, now), "it was to wait longer"
                if self.is_fair and self.breaker is None and number not in self.due:
                    late = [other for other, due in self.due.items() if due < now and other in self.waiting_jobs]
                    assert not late, f"fresh, and taken before those that have come back: {late}"
                del self.waiting_jobs[number]
                self.due.pop(number, None)
            case JobRetrying(id=number, attempt=attempt, seconds=seconds):
                assert attempt == self.retries[number] + 1
                self.retries[number] = attempt
                self.scheduled += 1
                self.waiting_jobs[number] = self.accepted[number]
                self.due[number] = now + seconds
                assert self.breaker or self.due[number] < self._deadline(number), "its time is over before"
            case JobEnded(id=number, outcome=outcome):
                assert number in self.accepted, "never accepted"
                assert number not in self.ended, f"a second outcome, after {self.ended[number]}"
                least = 0 if self.breaker is None else -1  # it was put back, and then waited
                assert least <= outcome.attempts - self.retries[number] <= 1, f"{self.retries[number]} retries"
                self.ended[number] = outcome
                self.waiting_jobs.pop(number, None)
                self.due.pop(number, None)
            case PoolResized(old=old, new=new):
                assert old != new
                assert new == self.pool.stats.target_workers
            case _:
                pass

    def _deadline(self, number: int) -> float:
        """When a job has to be done, as far as we know."""
        if self.retry is None or self.retry.max_elapsed is None or number not in self.accepted_at:
            return float("inf")
        return self.accepted_at[number] + self.retry.max_elapsed

    def check(self) -> PoolStats:
        """Check what is true at every moment; return what it was checked on."""
        stats = self.pool.stats
        check_conservation(stats)
        # This runs before and after each change of it, so in between it was not more than at one of the two.
        wanted, (least, most) = stats.target_workers, self.bounds
        assert least <= wanted <= most, f"{wanted} workers are wanted, of {least} to {most}"
        self.limit = max(self.limit, wanted)
        assert stats.running <= self.limit, f"{stats.running} run, of {self.limit} at most"
        self.limit = max(wanted, min(self.limit, stats.running))
        self.wanted, self.widest = wanted, max(self.widest, wanted)
        assert self.may_abandon or self.active <= stats.running, f"{self.active} handlers run for {stats.running} jobs"
        if stats.delayed and self.queue_size is not None:
            # The intake stops at max_delayed; jobs that were accepted by then can be delayed on top.
            most = self.max_delayed - 1 + self.queue_size + self.widest + self.async_sources
            assert stats.queued + stats.delayed + stats.running <= most, f"more than {most} jobs: {stats}"
        return stats

    def check_settled(self, *, is_paused: bool = False, is_open: bool = True) -> None:
        """Check what is true when nobody has anything to do: no worker idles beside a job that it might take."""
        stats, now = self.pool.stats, asyncio.get_running_loop().time()
        idle = stats.workers - stats.running
        if is_paused or now < self.pause_ends or (self.is_limited_as_one and self.meters[0].is_closed()):
            idle = 0  # they take nothing
        if (self.engine is not None or self.breaker is not None) and self.pool.is_paused:
            idle = 0  # a pause that a handler asked for begins when that has arrived; the breaker is open
        if self.checks_resources:
            idle = 0  # `check_places` looks at the workers
        assert not (idle and stats.queued), f"a worker idles beside a queued job: {stats}"
        if is_open:
            # Whatever a policy says, work that is there gets a worker at once.
            assert stats.target_workers or not (stats.queued or self.waiting), f"jobs wait for a policy: {stats}"
            assert stats.workers <= max(stats.target_workers, stats.running), f"too many workers: {stats}"
            assert self.has_resource or stats.workers >= stats.target_workers, f"workers are missing: {stats}"
        if is_open and self.waiting and self.queue_size is not None and stats.delayed < self.max_delayed:
            room = self.queue_size + idle - stats.queued
            assert room <= 0, f"{self.waiting} wait, and there is room for {room}"
        if self.accepted is None or self.breaker is not None:
            return
        # Those that wait for their next attempt do, and those that are parked wait for a limit that is closed.
        backing_off = [number for number, due in self.due.items() if due > now]
        parked = stats.delayed - len(backing_off)
        ready = [item for number, item in self.waiting_jobs.items() if number not in backing_off]
        assert parked >= 0, f"{len(backing_off)} back off, but {stats.delayed} are delayed"
        assert len(ready) == parked + stats.queued, (ready, stats)
        if idle:
            assert not parked or self.meter_of is not None, f"{parked} are parked, and there is no limit"
            late = [item for item in ready if self._is_open_for(item)]
            assert not late, f"their limit is open, a worker idles, and they wait: {late}"

    def _is_open_for(self, item: Item) -> bool:
        meter = None if self.meter_of is None else self.meter_of(item)
        return meter is None or not meter.is_closed()

    def check_outcome(self, number: int, outcome: Any) -> None:
        """Check that an outcome tells what the handler saw."""
        calls, kind = self.calls[number], outcome.job.kind
        if self.breaker is not None:
            charged = calls - self.free[number]  # the last may have been put back
            # With an engine, a call that was put back is not told from one that ran again.
            assert not self.is_exact or charged - 1 <= outcome.attempts <= charged + 1, (calls, outcome)
            assert outcome.attempts <= (1 if self.retry is None else self.retry.attempts), outcome
            assert not isinstance(outcome, Succeeded) or outcome.value == outcome.job.n
            return
        assert calls <= outcome.attempts <= (1 if self.retry is None else self.retry.attempts), (calls, outcome)
        match outcome:
            case Succeeded(job, value):
                assert value == job.n
                if self.is_exact:
                    assert calls == outcome.attempts, (calls, outcome)
                    assert calls == 1 + FAILURES.get(kind, 0) or kind not in (*QUICK, *FLAKY), (calls, outcome)
            case Failed(_, error):
                assert error is not None
                # A task that others cancel before its first step never calls the handler.
                if self.is_exact and not isinstance(error, asyncio.CancelledError):
                    assert calls == outcome.attempts, (calls, outcome)
                if self.is_exact and kind in ("crash", "exit", "stop", "permanent"):
                    assert calls <= 1, f"tried again: {outcome}"
            case Cancelled():
                is_true = outcome.started == (calls > 0) or (self.engine is not None and outcome.started)
                assert is_true, f"{outcome}, and its handler was called {calls} times"
                # The last attempt may have been cancelled before its first step, and no other.
                assert not self.is_exact or outcome.attempts <= calls + 1, (calls, outcome)

    async def check_end(self) -> ShutdownReport[Any]:
        """Check what is true of a closed pool: nothing lost, nothing twice, nothing left. Returns its report."""
        self.check()
        assert not self.problems, self.problems
        stats, report = self.pool.stats, self.pool.report
        assert report is not None, "the pool is not closed"
        assert (stats.queued, stats.delayed, stats.running) == (0, 0, 0), stats
        self.check_parts()
        assert self.sources_open == 0, "a source was not closed"
        assert self.retry is not None or self.breaker is not None or max(self.calls.values(), default=0) <= 1, (
            "a job ran twice"
        )
        self.check_timers()
        for meter in self.meters:
            meter.check()
            assert not meter.limit.users, f"{meter.limit}: pools that are closed wait for it"

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
            assert self.scheduled == stats.retries
        for number, outcome in outcomes.items():
            self.check_outcome(number, outcome)
        if len(outcomes) == stats.submitted:
            attempts = [outcome.attempts for outcome in outcomes.values()]
            assert sum(attempts) - len(attempts) <= stats.retries
            assert self.breaker is not None or stats.retries <= sum(attempts)
        self._check_letters([outcome for outcome in outcomes.values() if isinstance(outcome, Failed)])

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

    def check_parts(self) -> None:
        """Check the ledger's own law, and that no task waits in the queue's `get()`, which no job of a pool wakes."""
        parts = self.pool._parts
        parts.ledger.check(len(parts.queue.order))
        getters = parts.queue._getters  # type: ignore[attr-defined]
        assert not getters, f"left in the queue's get(): {getters}"

    def check_timers(self) -> None:
        """Check that the closed pool has left no timer on the loop, but in jobs that it has abandoned."""
        scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        for timer in scheduled:
            callback: Any = timer._callback  # type: ignore[attr-defined]
            while isinstance(callback, partial):
                callback = callback.func
            module = getattr(callback, "__module__", None) or ""
            is_ours = module.startswith("asyncpool.") and not module.startswith("asyncpool.testing.")
            if self.engine is not None and not module.startswith("asyncpool._core.remote"):
                continue  # it may be that of a pool in a process, which ends later
            is_of_an_abandoned_job = self.may_abandon and module == "asyncpool._core.invoke"
            assert timer.cancelled() or not is_ours or is_of_an_abandoned_job, f"a timer is left: {timer}"

    def _check_letters(self, failures: list[Failed[Any]]) -> None:
        """Check that each failure is recorded, and nothing else; `failures` are those that we know."""
        if self.letters is None:
            return
        stats = self.pool.stats
        assert stats.unread_failures == 0
        assert len(self.letters.recorded) == stats.failed, f"{stats.failed} have failed: {self.letters.recorded}"
        recorded = Counter((letter.job, letter.attempts, letter.error) for letter in self.letters.recorded)
        texts = [
            DeadLetter.of(failed, first_at=0.0, last_at=0.0).error for failed in failures
        ]  # whatever `__str__` does
        known = Counter((failed.job, failed.attempts, text) for failed, text in zip(failures, texts, strict=True))
        assert known <= recorded, f"not recorded: {known - recorded}"
        for letter in self.letters.recorded:
            assert letter.first_at <= letter.last_at
            assert letter.pool == self.pool.name


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
    """Create a task. The caller waits for it."""
    return asyncio.get_running_loop().create_task(coro)


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait until these tasks have ended, however they did."""
    if tasks:
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()
