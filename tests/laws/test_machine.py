"""The laws under random programs: Hypothesis invents what is done to a pool, and the laws are checked after each step.

Steps are taken on a loop on virtual time, which is moved by hand: most steps only ask for something, and what follows
happens in later steps, a turn of the loop at a time or all at once.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyncpool import (
    Adaptive,
    AutoScale,
    Cancelled,
    Failed,
    FunctionPolicy,
    JobCancelled,
    JobCrashed,
    JobExpired,
    JobTimeout,
    PoolClosed,
    PoolError,
    ResourceDied,
    Retry,
    StreamClosed,
)
from asyncpool._chance import chance
from asyncpool.retry import RetryBudget
from asyncpool.testing import VirtualTimeLoop, settle
from tests.laws.budget import IS_LONG, MACHINE_EXAMPLES, MACHINE_STEPS
from tests.laws.witness import FACTORIES, HANDED_BACK, Item, Letters, Meter, Whim, Witness, busy, ended, spawn

T = TypeVar("T")

KINDS = st.sampled_from(
    (
        "ok",
        "turn",
        "nap",
        "nap",
        "held",
        "held",
        "held",
        "fail",
        "turn_fail",
        "crash",
        "exit",
        "stop",
        "slow",
        "stubborn",
        "flaky1",
        "flaky2",
        "later",
        "pausing",
        "permanent",
    )
)
RETRIES = st.sampled_from(
    (
        None,
        Retry(attempts=3, backoff=0.0, jitter=False),
        Retry(attempts=3, backoff=0.3, jitter=False),
        Retry(attempts=2, backoff=0.01, jitter=False),
        Retry(attempts=4, backoff=0.3, max_elapsed=1.0, jitter=False),
        Retry(attempts=3, backoff=0.01, jitter=False, budget=RetryBudget(ratio=0.5, min_per_second=0.0, window=1.0)),
    )
)
# What a pool may get as its number of workers. All but two are policies, which come and go with what is done to it.
SIZES: tuple[Any, ...] = (
    1,
    3,
    busy,
    AutoScale(0, 1, backlog_per_worker=1, idle_timeout=0.0),
    AutoScale(0, 3, backlog_per_worker=0.5, interval=0.001, idle_timeout=0.01),
    AutoScale(0, 4, backlog_per_worker=1, interval=0.01, idle_timeout=0.3),
    AutoScale(1, 2, interval=0.3, idle_timeout=0.0),
    AutoScale(2, 4, backlog_per_worker=0.5, idle_timeout=1.0),
    Adaptive(1, 3, interval=0.001, overload=ValueError),
    AutoScale(1, 4, interval=0.3, max_wait=0.01),
    Adaptive(2, 4, interval=0.3),
    Adaptive(1, 4, interval=0.01, idle_timeout=0.02),
    FunctionPolicy(busy, 3),
    Whim(3, 2, 0, 3, 0, 4, 1, 0),
    Whim(2, 0, 2, 0, 1, 1, 0, 2, 0, interval=0.02, ask_again_in=0.0),
    Whim(4, 0, 3, 0, 1, 2, 0, interval=0.3, ask_again_after_failures=1),
    Whim(4, 1, 3, 2, 1, 0, interval=0.3, ask_again_at_backlog=0),
)
ANY_SIZE = st.one_of(st.integers(1, 4), st.sampled_from(SIZES))
ANY = st.integers(0, 1000)  # an index, taken modulo what there is


class Submission:
    """A call of `submit` that may wait."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.number: int | None = None  # in the order in which the calls began
        self.task: asyncio.Task[Any]


class Reading:
    """A stream or a group, with all that went in and came out."""

    def __init__(self, what: Any, *, is_ordered: bool, raises: bool) -> None:
        self.what = what
        self.is_ordered = is_ordered
        self.raises = raises
        self.front: Any = None
        self.went_in: list[Item] = []
        self.came_out: list[Any] = []
        self.step: asyncio.Task[Any] | None = None
        self.end: BaseException | None = None
        self.is_cancelled = False
        self.pulls_async = False
        self.is_limited = False  # by a number of failures, or a deadline


class PoolMachine(RuleBasedStateMachine):
    """What may be done to a pool, and what must be true of it after each step."""

    mode = "default"
    errors: tuple[type[BaseException], ...] = (
        asyncio.QueueFull,
        ValueError,
        PoolClosed,
        JobCancelled,
        JobCrashed,
        JobExpired,
        JobTimeout,
    )
    """What a job can fail with."""

    def __init__(self) -> None:
        super().__init__()
        chance.seed(0)  # Hypothesis repeats programs, and each must do the same again
        self.loop = VirtualTimeLoop()
        self.complaints: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.loop.set_task_factory(FACTORIES[self.mode])
        self.witness = MachineWitness()
        self.numbers = itertools.count()
        self.submissions: list[Submission] = []
        self.tasks: list[asyncio.Task[Any]] = []  # calls that may end as they like
        self.streams: list[Reading] = []
        self.groups: list[Reading] = []
        self.closers: list[asyncio.Task[Any]] = []
        self.is_closing = False
        self.is_paused = False
        self.is_settled = False
        self.slack = 0  # jobs for which there was room when they were let in, and then a pause or a resize took it
        self.is_scaled = False  # whether workers may go at any time
        self.user_cancelled: set[int] = set()
        self.not_to_hand_back: set[int] = set()
        self.replayed: set[int] = set()  # which items may have been submitted again
        self.scopes: list[anyio.CancelScope] = []  # of the resources that are held
        self.failing: list[bool] = []
        self.held = 0

    # -- Moving the loop ---------------------------------------------------------------------------------------------

    def do(self, act: Callable[[], T]) -> T:
        """Call something on the loop."""

        async def call() -> T:
            return act()

        return self.wait_for(call())

    def wait_for(self, coro: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coro)

    def spawn(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        async def begin() -> asyncio.Task[Any]:
            return spawn(make())

        return self.wait_for(begin())

    # -- The pool ----------------------------------------------------------------------------------------------------

    @initialize(
        workers=ANY_SIZE,
        queue_size=st.sampled_from((0, 1, 2, 5)),
        timeout=st.sampled_from((None, None, 0.5)),
        has_resource=st.booleans(),
        failing=st.lists(st.booleans(), max_size=6),
        observe=st.booleans(),
        retry=RETRIES,
        limiter=st.sampled_from((None, None, "all", "keys", "some")),
        rate=st.sampled_from((2.0, 100.0)),
        burst=st.integers(1, 2),
        max_delayed=st.sampled_from((1, 2, 10_000)),
        letters=st.sampled_from((None, 1, 100)),
        has_priority=st.booleans(),
        ends_in_peace=st.booleans(),
    )
    def start(
        self,
        workers: Any,
        queue_size: int,
        timeout: float | None,
        has_resource: bool,
        failing: list[bool],
        observe: bool,
        retry: Retry | None,
        limiter: str | None,
        rate: float,
        burst: int,
        max_delayed: int,
        letters: int | None,
        has_priority: bool,
        ends_in_peace: bool,
    ) -> None:
        self.queue_size = queue_size
        self.retry = retry
        self.ends_in_peace = ends_in_peace
        self.may_come_back = retry is not None or limiter is not None
        self.failing = [False, *failing]
        options: dict[str, Any] = {"resource": self.resource, "recycle_on": ValueError} if has_resource else {}
        if limiter == "all":
            options["limiter"] = Meter(rate, 1.0, burst)
        elif limiter == "keys":
            options["limiter"] = self.witness.keys(2, rate, burst)
        elif limiter == "some":  # the other jobs are not limited
            keyed = self.witness.keys(3, rate, burst)
            meter_of = self.witness.meter_of
            assert meter_of is not None
            options["limiter"] = lambda item: keyed(item) if item.n % 3 else None
            self.witness.meter_of = lambda item: meter_of(item) if item.n % 3 else None
        if has_priority:
            options["priority"] = lambda item: item.n % 3
        options["retry"] = retry
        options["max_delayed"] = max_delayed
        options["dead_letters"] = None if letters is None else Letters(letters)
        self.pool = self.witness.make_pool(
            workers=workers, queue_size=queue_size, timeout=timeout, observe=observe, **options
        )
        self.is_scaled = not isinstance(workers, int)
        self.wait_for(self.pool.start())

    @asynccontextmanager
    async def resource(self) -> AsyncIterator[object]:
        fails = bool(self.failing) and self.failing.pop(0)
        await asyncio.sleep(0.01)
        if fails:
            raise OSError("no connection")
        self.held += 1
        try:
            async with anyio.create_task_group() as group:
                self.scopes.append(group.cancel_scope)
                try:
                    yield group
                finally:
                    self.scopes.remove(group.cancel_scope)
        finally:
            try:
                await asyncio.sleep(0.01)
            finally:  # a grace of 0 leaves no time
                self.held -= 1

    @precondition(lambda self: self.scopes)
    @rule(which=ANY)
    def a_resource_dies(self, which: int) -> None:
        self.do(self.scopes[which % len(self.scopes)].cancel)
        self.is_settled = False

    # -- Jobs --------------------------------------------------------------------------------------------------------

    async def _submit(self, submission: Submission) -> None:
        submission.number = next(self.numbers)
        await self.witness.submit(submission.item)

    @rule(kind=KINDS, count=st.integers(1, 4))
    def submit(self, kind: str, count: int) -> None:
        for _ in range(count):
            submission = Submission(self.witness.item(kind))
            submission.task = self.spawn(partial(self._submit, submission))
            self.submissions.append(submission)
        self.is_settled = False

    @rule(kind=KINDS)
    def submit_nowait(self, kind: str) -> None:
        item = self.witness.item(kind)

        def act() -> None:
            self.witness.submit_nowait(item)

        with suppress(asyncio.QueueFull, PoolClosed):
            self.do(act)
        self.is_settled = False

    @rule(kind=KINDS, if_full=st.sampled_from(("wait", "raise")))
    def run(self, kind: str, if_full: Any) -> None:
        item = self.witness.item(kind)
        self.witness.perhaps += 1

        async def use() -> None:
            try:
                assert await self.pool.run(item, if_full=if_full) == item.n
            except self.errors:
                pass
            except asyncio.CancelledError:
                self.user_cancelled.add(item.n)
                raise
            except ResourceDied:
                pass

        self.tasks.append(self.spawn(use))
        self.is_settled = False

    @precondition(lambda self: self.submissions)
    @rule(which=ANY)
    def cancel_a_submitter(self, which: int) -> None:
        self.do(self.submissions[which % len(self.submissions)].task.cancel)

    @precondition(lambda self: self.tasks)
    @rule(which=ANY)
    def cancel_a_caller(self, which: int) -> None:
        self.do(self.tasks[which % len(self.tasks)].cancel)

    @precondition(lambda self: self.witness.handles)
    @rule(which=ANY)
    def cancel_a_job(self, which: int) -> None:
        handle = self.witness.handles[which % len(self.witness.handles)]

        def act() -> None:
            was_done = handle.done()
            assert handle.cancel() is not was_done
            if not was_done:
                self.user_cancelled.add(handle.job.n)
                if not self.is_closing:  # else the pool may have cancelled it before
                    self.not_to_hand_back.add(handle.job.n)

        self.do(act)
        self.is_settled = False

    @precondition(lambda self: self.witness.held_jobs)
    @rule(which=ANY, fails=st.booleans())
    def a_held_job_ends(self, which: int, fails: bool) -> None:
        held = list(self.witness.held_jobs.values())
        future = held[which % len(held)]

        def act() -> None:
            if not future.done():
                future.set_exception(ValueError("held")) if fails else future.set_result(None)

        self.do(act)
        self.is_settled = False

    @precondition(lambda self: self.witness.letters)
    @rule(which=st.sampled_from((None, 0, 1)))
    def replay(self, which: int | None) -> None:
        letters = self.witness.letters
        assert letters is not None
        self.replayed |= {letter.job.n for letter in letters}
        where = None if which is None else lambda letter: letter.job.n % 2 == which

        async def use() -> None:
            with suppress(PoolClosed):
                await letters.replay(self.witness, where)

        self.tasks.append(self.spawn(use))
        self.is_settled = False

    @precondition(lambda self: self.witness.meters)
    @rule(which=ANY, seconds=st.sampled_from((0.0, 0.01, 2.0)))
    def pause_a_limit(self, which: int, seconds: float) -> None:
        meters = self.witness.meters
        self.do(lambda: meters[which % len(meters)].pause_for(seconds))

    # -- Streams -----------------------------------------------------------------------------------------------------

    def _source(self, reading: Reading, items: list[Item], fails: bool) -> Iterator[Item]:
        for item in self.witness.source(items, fails=fails):
            reading.went_in.append(item)
            yield item

    async def _async_source(self, reading: Reading, items: list[Item], fails: bool) -> AsyncIterator[Item]:
        source = self.witness.async_source(items, fails=fails)
        try:
            async for item in source:
                reading.went_in.append(item)
                yield item
        finally:
            await source.aclose()  # type: ignore[attr-defined]

    @precondition(lambda self: len(self.streams) < 4 and not self.is_closing)
    @rule(
        raises=st.booleans(),
        is_ordered=st.booleans(),
        is_async=st.booleans(),
        kinds=st.lists(KINDS, max_size=12),
        fails=st.booleans(),
    )
    def make_a_stream(self, raises: bool, is_ordered: bool, is_async: bool, kinds: list[str], fails: bool) -> None:
        items = [self.witness.item(kind) for kind in kinds]
        reading = Reading(None, is_ordered=is_ordered, raises=raises)
        reading.pulls_async = is_async
        make = self.pool.map if raises else self.pool.outcomes
        source: Any = (self._async_source if is_async else self._source)(reading, items, fails)
        reading.what = self.do(lambda: make(source, ordered=is_ordered))
        reading.front = self.do(lambda: aiter(reading.what))
        self.streams.append(reading)

    @precondition(lambda self: len(self.groups) < 2 and not self.is_closing)
    @rule(is_ordered=st.booleans(), window=st.sampled_from((None, 1, 2)))
    def make_a_group(self, is_ordered: bool, window: int | None) -> None:
        reading = Reading(None, is_ordered=is_ordered, raises=False)
        reading.what = self.do(lambda: self.pool.group(ordered=is_ordered, window=window))
        reading.front = self.do(lambda: aiter(reading.what))
        self.groups.append(reading)

    @precondition(lambda self: self.groups)
    @rule(which=ANY, kind=KINDS)
    def submit_to_a_group(self, which: int, kind: str) -> None:
        group = self.groups[which % len(self.groups)]
        item = self.witness.item(kind)

        async def use() -> None:
            with suppress(StreamClosed, PoolClosed):
                await group.what.submit(item)
                group.went_in.append(item)
                self.witness.others += 1

        self.tasks.append(self.spawn(use))
        self.is_settled = False

    @precondition(lambda self: self.groups)
    @rule(which=ANY)
    def close_the_intake_of_a_group(self, which: int) -> None:
        self.do(self.groups[which % len(self.groups)].what.close_intake)
        self.is_settled = False

    def _readings(self) -> list[Reading]:
        return self.streams + self.groups

    @precondition(lambda self: self._readings())
    @rule(which=ANY, count=st.integers(1, 6))
    def read(self, which: int, count: int) -> None:
        reading = self._readings()[which % len(self._readings())]
        for _ in range(count):
            self._read(reading)
            self.wait_for(self._turns(2))
        self.is_settled = False

    def _read(self, reading: Reading) -> None:
        """Begin the next step of a reader, unless one is in progress."""
        self._finish_step(reading)
        if reading.step is None and reading.end is None and reading.front is not None:
            reading.step = self.spawn(lambda: anext(reading.front))

    def _finish_step(self, reading: Reading) -> None:
        step = reading.step
        if step is None or not step.done():
            return
        reading.step = None
        if step.cancelled():
            return  # "loses nothing and leaves the stream open"
        error = step.exception()
        if error is None:
            reading.came_out.append(step.result())
            return
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopAsyncIteration):
            error = error.__cause__  # a task cannot end with StopAsyncIteration
        reading.end = error

    @precondition(lambda self: self._readings())
    @rule(which=ANY)
    def cancel_a_reader(self, which: int) -> None:
        reading = self._readings()[which % len(self._readings())]
        if reading.step is not None:
            self.do(reading.step.cancel)

    @precondition(lambda self: self._readings())
    @rule(which=ANY, how=st.sampled_from(("leave", "aclose")))
    def cancel_a_stream(self, which: int, how: str) -> None:
        reading = self._readings()[which % len(self._readings())]
        self._finish_step(reading)
        reading.is_cancelled = True
        if how == "aclose":
            self.tasks.append(self.spawn(reading.what.aclose))
        elif reading.step is None:
            self.do(lambda: setattr(reading, "front", None))
        self.is_settled = False

    # -- The pool's switches -----------------------------------------------------------------------------------------

    def _room_may_go(self) -> None:
        if not self.is_settled:
            self.slack = max(self.slack, self.witness.limit)

    @rule()
    def pause(self) -> None:
        self._room_may_go()
        with suppress(PoolClosed):
            self.do(self.pool.pause)
            self.is_paused = True

    @rule()
    def resume(self) -> None:
        with suppress(PoolClosed):
            self.do(self.pool.resume)
            self.is_paused = False
        self.is_settled = False

    @rule(workers=ANY_SIZE)
    def resize(self, workers: Any) -> None:
        self._room_may_go()
        with suppress(PoolClosed):
            self.do(lambda: self._resize(workers))
        self.is_settled = False

    def _resize(self, workers: Any) -> None:
        self.witness.resize(workers)
        if self.is_scaled:  # until now
            self.slack = max(self.slack, self.witness.widest)
        self.is_scaled = not isinstance(workers, int)

    @rule(
        acts=st.lists(
            st.tuples(
                st.sampled_from(
                    ("job", "nowait", "submitter", "caller", "reader", "held", "pause", "resume", "resize")
                ),
                ANY,
            ),
            min_size=2,
            max_size=5,
        )
    )
    def all_in_one_turn(self, acts: list[tuple[str, int]]) -> None:
        """Do several things between two turns of the loop: so a waiter is cancelled who was just let in."""

        def pick(among: list[Any], which: int) -> Any:
            return among[which % len(among)] if among else None

        def act_on(kind: str, which: int) -> None:
            match kind:
                case "job" if handle := pick(self.witness.handles, which):
                    if handle.cancel():
                        self.user_cancelled.add(handle.job.n)
                case "nowait":
                    with suppress(asyncio.QueueFull):
                        handle = self.witness.submit_nowait(self.witness.item("ok", "nap", "held"))
                        if which % 2:
                            assert handle.cancel()
                            self.user_cancelled.add(handle.job.n)
                case "submitter" if waiting := pick([s for s in self.submissions if not s.task.done()], which):
                    waiting.task.cancel()
                case "caller" if task := pick(self.tasks, which):
                    task.cancel()
                case "reader" if reading := pick([r for r in self._readings() if r.step], which):
                    reading.step.cancel()
                case "held" if future := pick(list(self.witness.held_jobs.values()), which):
                    if not future.done():
                        future.set_result(None)
                case "pause" | "resume":
                    self.slack = max(self.slack, self.witness.limit)
                    getattr(self.pool, kind)()
                    self.is_paused = kind == "pause"
                case "resize":
                    self.slack = max(self.slack, self.witness.limit)
                    self._resize(SIZES[which % len(SIZES)])

        def act() -> None:
            for kind, which in acts:
                if not self.is_closing or kind in ("job", "submitter", "caller", "reader", "held"):
                    act_on(kind, which)

        self.do(act)
        self.is_settled = False

    # -- Time --------------------------------------------------------------------------------------------------------

    @staticmethod
    async def _turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    @rule(count=st.integers(1, 4))
    def turn_the_loop(self, count: int) -> None:
        self.wait_for(self._turns(count))

    @rule()
    def settle(self) -> None:
        self.wait_for(settle())
        self.check_settled()

    @rule(seconds=st.sampled_from((0.001, 0.02, 0.3, 0.5, 1.0, 6.0)))
    def let_time_pass(self, seconds: float) -> None:
        async def sleep() -> None:
            await asyncio.sleep(seconds)
            await settle()

        self.wait_for(sleep())
        self.check_settled()

    # -- The end -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.closers) < 3)
    @rule(drain_timeout=st.sampled_from((None, 0.0, 0.5)), grace=st.sampled_from((0.0, 1.0, 5.0)))
    def close(self, drain_timeout: float | None, grace: float) -> None:
        self.witness.may_abandon = True
        self.witness.is_hurried |= grace == 0.0
        self.closers.append(self.spawn(lambda: self.pool.close(drain_timeout=drain_timeout, grace=grace)))
        self._is_closed_soon()

    @rule(how=st.sampled_from(("cancel", "drain")))
    def ask_for_the_end(self, how: str) -> None:
        self.witness.may_abandon = True
        self.do(getattr(self.pool, how))
        self._is_closed_soon()

    def _is_closed_soon(self) -> None:
        self.is_closing = True
        self.is_paused = False
        self.is_settled = False

    @precondition(lambda self: self.closers)
    @rule(which=ANY)
    def cancel_a_close(self, which: int) -> None:
        self.witness.is_hurried = True
        self.do(self.closers[which % len(self.closers)].cancel)

    # -- The laws ----------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.witness.check()
            assert not self.witness.problems, self.witness.problems
            assert not self.complaints, self.complaints

    @invariant()
    def everything_is_bounded(self) -> None:
        if not hasattr(self, "pool"):
            return
        # What an async source gave is accepted, whoever has taken the room meanwhile: one job of each stream.
        late = sum(reading.pulls_async for reading in self.streams)
        # Idle workers count as room: they take their jobs at once, or in the pool's next turn.
        idle = 0 if self.is_paused else self.pool.stats.workers - self.pool.stats.running
        # Jobs that come back go past the bound: what bounds those is checked by the witness.
        slack = max(self.slack, self.witness.widest) if self.is_scaled else self.slack
        assert self.may_come_back or self.pool.stats.queued <= self.queue_size + idle + late + slack
        # Jobs that are delayed leave their places in the window to others.
        most = self.queue_size + self.witness.widest
        if self.may_come_back:
            most += self.witness.max_delayed - 1 + most + late
        for reading in self._readings():
            unread = len(reading.went_in) - len(reading.came_out) - (reading.step is not None)
            assert reading.is_cancelled or reading.raises or unread <= most, f"{unread} unread"

    @invariant()
    def submitters_are_let_in_in_the_order_they_came(self) -> None:
        if not hasattr(self, "pool"):
            return
        accepted = {
            handle.job.n: handle.id for handle in reversed(self.witness.handles)
        }  # the first, of those replayed
        began = sorted((s for s in self.submissions if s.number is not None), key=lambda s: s.number or 0)
        admitted = [(s.number or 0, accepted[s.item.n]) for s in began if s.item.n in accepted]
        assert [number for _, number in admitted] == sorted(number for _, number in admitted)
        if admitted:
            waiting = [s.number or 0 for s in began if not s.task.done()]
            assert all(number > admitted[-1][0] for number in waiting), "somebody was overtaken"

    @invariant()
    def readers_get_what_went_in(self) -> None:
        for reading in self._readings():
            self._finish_step(reading)
            self._check_reading(reading)

    def _check_reading(self, reading: Reading) -> None:
        went_in = [item.n for item in reading.went_in]
        came_out = [entry if reading.raises else entry.job.n for entry in reading.came_out]
        assert len(set(came_out)) == len(came_out), "delivered twice"
        if reading.is_ordered and reading in self.streams:
            assert came_out == went_in[: len(came_out)]
        if reading in self.streams:
            assert set(came_out) <= set(went_in)
        end = reading.end
        if end is None or reading.is_cancelled:
            return
        if not reading.raises:
            assert isinstance(end, (StopAsyncIteration, LookupError, PoolClosed)), repr(end)
            assert set(came_out) == set(went_in), f"{end!r}, and not all was delivered"
        elif isinstance(end, (StopAsyncIteration, LookupError)):
            assert set(came_out) == set(went_in), f"{end!r}, and not all was delivered"

    def check_settled(self) -> None:
        """Check what is true when nobody has anything to do."""
        self.is_settled = True
        stats = self.pool.stats
        late = sum(reading.pulls_async for reading in self.streams)
        if stats.queued <= self.queue_size + late:
            self.slack = 0
        waiting = sum(s.number is not None and not s.task.done() for s in self.submissions)
        assert self.witness.waiting >= waiting
        self.do(lambda: self.witness.check_settled(is_paused=self.is_paused, is_open=not self.is_closing))

    # -- At the end of a program -------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "pool"):
                self.wait_for(self._end())
            left = asyncio.all_tasks(self.loop)
            assert not left, left
            assert not self.complaints, self.complaints
        finally:
            self.complaints.clear()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            with suppress(BaseException):
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    async def _end(self) -> None:
        """Close the pool, read what there is to read, and check the laws of the end."""
        witness = self.witness
        if self.ends_in_peace and not self.is_closing:
            witness.let_all_go()
            self.pool.resume()
            async with asyncio.timeout(1000.0):  # whatever is delayed or parked is due at some time
                await self.pool.join()
            await settle()
            witness.check_settled()
        witness.may_abandon = True
        await self.pool.close(drain_timeout=0.0)
        witness.let_all_go()
        for reading in self._readings():
            if reading.step is not None:
                await ended(reading.step)
            self._finish_step(reading)
            while reading.end is None and not reading.is_cancelled:
                reading.step = spawn(anext(reading.front))
                await ended(reading.step)
                self._finish_step(reading)
            self._check_reading(reading)
            await reading.what.aclose()
            reading.front = None
        await ended(*self.tasks, *self.closers, *[submission.task for submission in self.submissions])
        for task in self.tasks:
            assert task.cancelled() or task.exception() is None, task
        for closer in self.closers:
            assert closer.cancelled() or closer.result() is self.pool.report
        for submission in self.submissions:
            task = submission.task
            assert task.cancelled() or task.exception() is None or isinstance(task.exception(), PoolClosed)
        report = await witness.check_end()
        for handle in witness.handles:
            self._check_own(handle.job, await handle.outcome())
        unfinished = {entry.job.n for entry in report.unfinished}
        assert not unfinished & self.not_to_hand_back - self.replayed, "handed back what the user has cancelled"
        await asyncio.sleep(10)  # what was abandoned ends
        assert witness.active == 0
        assert self.held == 0

    def _check_own(self, item: Item, outcome: Any) -> None:
        """Check the outcome of a job with a handle of its own against what was asked."""
        match outcome:
            case Cancelled(_, reason):
                assert reason in HANDED_BACK or item.n in self.user_cancelled, outcome
            case Failed(_, error):
                assert item.kind not in ("ok", "turn", "nap") or isinstance(error, PoolError), outcome
                if isinstance(error, ValueError) and self._has_all_attempts() and item.n not in self.user_cancelled:
                    most = 1 if item.kind == "permanent" else 1 if self.retry is None else self.retry.attempts
                    assert outcome.attempts == most or self.is_closing or item.kind == "held", outcome

    def _has_all_attempts(self) -> bool:
        return self.retry is None or (self.retry.max_elapsed is None and self.retry.budget is None)


class MachineWitness(Witness):
    """A witness whose handler knows one kind more: `held` runs until somebody lets it end."""

    def __init__(self) -> None:
        super().__init__()
        self.held_jobs: dict[int, asyncio.Future[None]] = {}
        self.is_over = False

    async def work(self, item: Item) -> int:
        if item.kind != "held":
            return await super().work(item)
        if not self.is_over:
            self.held_jobs[item.n] = asyncio.get_running_loop().create_future()
            try:
                await self.held_jobs[item.n]
            finally:
                del self.held_jobs[item.n]
        return item.n

    def let_all_go(self) -> None:
        self.is_over = True
        self.release.set()
        for future in self.held_jobs.values():
            if not future.done():
                future.set_result(None)


def machine_for(mode: str) -> type[PoolMachine]:
    return type(f"PoolMachine_{mode}", (PoolMachine,), {"mode": mode})


@pytest.mark.parametrize("mode", FACTORIES)
def test_the_laws_hold_in_random_programs(mode: str) -> None:
    share = 1.0 if mode == "default" else 0.2
    run_state_machine_as_test(
        machine_for(mode),
        settings=settings(
            max_examples=int(MACHINE_EXAMPLES * share),
            stateful_step_count=MACHINE_STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            derandomize=not IS_LONG,  # each commit is judged by the same programs; the night looks for new ones
            suppress_health_check=list(HealthCheck),
        ),
    )
