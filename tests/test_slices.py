"""Many jobs are cancelled in slices, so that the loop is never held; each law holds between two slices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from itertools import pairwise
from typing import Any

import pytest

from asyncpool import (
    Cancelled,
    CancelReason,
    DeadLetters,
    Group,
    PoolDeadlock,
    RateLimit,
    Retry,
    StreamClosed,
    WorkerPool,
)
from asyncpool._core import timers
from asyncpool._core.timers import Slices
from asyncpool.events import Event, JobEnded
from asyncpool.testing import VirtualTimeLoop, settle
from tests.helpers import TICK, TickingLoop, assert_conserved, compute, now, virtual

MANY = 3000
LIMIT = RateLimit(1, per=1000.0)
OPTIONS: dict[str, dict[str, Any]] = {
    "in order": {},
    "by priority": {"priority": lambda job: job * 7 % 11},
    "delayed": {"retry": Retry(attempts=2, backoff=1000.0, max_backoff=1000.0), "max_delayed": MANY},
    "in lanes": {"limiter": lambda job: LIMIT, "max_delayed": MANY},
}
each_place = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class Handler:
    """Holds its worker, or fails, so that its jobs back off."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.fails = False

    async def __call__(self, job: int) -> int:
        self.started.append(job)
        if self.fails and job < MANY - 2:
            raise ValueError(job)
        await asyncio.sleep(10_000.0)
        return job


async def filled(pool: WorkerPool[Any, Any], handler: Handler, options: dict[str, Any]) -> Group[Any, Any]:
    """Fill a pool by a group, until its jobs wait where the options let them."""
    handler.fails = "retry" in options
    group = pool.group(window=MANY)
    for number in range(MANY):
        await group.submit(number)
    await settle()
    assert pool.stats.queued + pool.stats.delayed >= MANY - 4
    return group


def pool_of(handler: Callable[..., Any], options: dict[str, Any], **others: Any) -> WorkerPool[Any, Any]:
    return WorkerPool(handler, workers=2, queue_size=MANY + 100, **options, **others)


# -- The loop is not held


class Clocked(TickingLoop):
    """Counts how long its iterations take: on a clock that goes on whenever it is read, so also with each outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0.0

    def _run_once(self) -> None:
        self._began = self._now
        super()._run_once()  # type: ignore[misc]
        self.longest = max(self.longest, self._now - self._began)

    def _process_events(self, event_list: Any) -> None:  # after the wait for the next timer
        self._began = self._now
        super()._process_events(event_list)  # type: ignore[misc]


def longest_iteration(main: Callable[[Clocked], Any]) -> float:
    loop = Clocked()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop))
    return loop.longest


@each_place
@pytest.mark.parametrize("ends_by", ["close", "aclose"])
def test_no_iteration_of_the_loop_settles_them_all(options: dict[str, Any], ends_by: str) -> None:
    async def main(loop: Clocked) -> None:
        handler = Handler()
        async with pool_of(handler, options) as pool:
            group = await filled(pool, handler, options)
            loop.longest = 0.0
            await (group.aclose() if ends_by == "aclose" else pool.close(drain_timeout=0.0))
            assert pool.stats.cancelled >= MANY - 4

    assert longest_iteration(main) < timers._SECONDS + 50 * TICK < MANY * TICK


@virtual
async def test_an_observer_that_takes_long_ends_its_slice() -> None:
    ended: Counter[float] = Counter()

    def observe(event: Event) -> None:
        if isinstance(event, JobEnded):
            compute(0.25)
            ended[now()] += 1
            asyncio.get_running_loop().call_soon(turns.append, now())

    turns: list[float] = []
    async with pool_of(Handler(), {}, observers=[observe]) as pool:
        pool.pause()
        group = pool.group(window=MANY)
        for number in range(600):
            await group.submit(number)
        await group.aclose()
    assert turns == sorted(turns)
    assert len(set(turns)) == 600  # the loop had its turn after each


@virtual
async def test_deadlines_that_many_jobs_miss_in_a_pause_are_slices_too() -> None:
    settled: list[int] = []
    letters: DeadLetters[Any] = DeadLetters(max_size=MANY)
    handler = Handler()
    async with pool_of(handler, {}, retry=Retry(attempts=2, max_elapsed=5.0), dead_letters=letters) as pool:
        pool.pause()
        for number in range(MANY):
            pool.submit_nowait(number)
        await asyncio.sleep(4.9)
        while pool.stats.failed < MANY:
            settled.append(pool.stats.failed)
            await asyncio.sleep(0 if settled[-1] else 0.05)
    steps = [after - before for before, after in pairwise(settled)]
    assert 0 < max(steps) <= timers._BATCH
    assert handler.started == []
    assert len(letters) == MANY


# -- The laws in between


@each_place
@virtual
async def test_each_iteration_finds_every_job_in_one_place_and_none_of_them_starts(options: dict[str, Any]) -> None:
    handler = Handler()
    async with pool_of(handler, options) as pool:
        group = await filled(pool, handler, options)
        others = [await pool.submit(-1) for _ in range(2)]  # behind all of them, or once there is room
        await settle()
        started = len(handler.started)
        closing = asyncio.ensure_future(group.aclose())
        slices = 0
        while not closing.done():
            assert_conserved(pool)
            slices += 1
            await asyncio.sleep(0)
        assert slices > MANY / timers._BATCH
        assert group._channel.live == 0
        await settle()
        assert set(handler.started[started:]) <= {-1}
        for other in others:
            other.cancel()


@virtual
async def test_workers_take_the_jobs_of_others_as_soon_as_all_are_settled() -> None:
    done: list[int] = []

    async def handler(job: int) -> None:
        if job < MANY:
            await asyncio.sleep(10_000.0)
        done.append(job)

    async with pool_of(handler, {}) as pool:
        group = pool.group(window=MANY)
        for number in range(MANY):
            await group.submit(number)
        await settle()
        handles = [await pool.submit(MANY + number) for number in range(10)]
        group.cancel()
        for handle in handles:
            await handle
        assert done == list(range(MANY, MANY + 10))
        assert now() == 0.0
        assert not pool.is_paused


@virtual
async def test_the_report_has_all_inputs_in_their_order() -> None:
    for options in OPTIONS.values():
        handler = Handler()
        pool = pool_of(handler, options)
        await pool.start()
        await filled(pool, handler, options)
        report = await pool.close(drain_timeout=0.0)
        inputs = [entry.job for entry in report.unfinished]
        assert inputs == sorted(inputs)
        assert len(inputs) == pool.stats.cancelled >= MANY - 4
        assert_conserved(pool)


@virtual
async def test_close_returns_when_all_handles_are_settled() -> None:
    pool = pool_of(Handler(), {})
    await pool.start()
    handler_pool_handles = [pool.submit_nowait(number) for number in range(MANY)]
    await pool.close(drain_timeout=0.0)
    assert all(handle.done for handle in handler_pool_handles)


@virtual
async def test_a_few_are_settled_at_once() -> None:
    handler = Handler()
    async with pool_of(handler, {}) as pool:
        group = pool.group()
        for number in range(100):
            await group.submit(number)
        await settle()
        group.cancel()
        assert pool.stats.cancelled == 98  # two run, and end when they have been cancelled
        assert not pool._parts.cancellation.is_settling


@virtual
async def test_a_failing_map_cancels_what_comes_after_in_slices() -> None:
    started: list[int] = []
    fail = asyncio.Event()

    async def handler(job: int) -> int:
        started.append(job)
        await fail.wait()
        raise ValueError(job)

    async with pool_of(handler, {}) as pool:
        stream = pool.map(range(MANY))
        reading = asyncio.ensure_future(anext(aiter(stream)))
        await settle()
        assert pool.stats.queued == MANY - 2
        fail.set()
        with pytest.raises(ValueError, match="0"):
            await reading
        await stream.aclose()
        assert started == [0, 1]
        assert_conserved(pool)
        assert pool.stats.submitted == pool.stats.failed + pool.stats.cancelled == MANY


@virtual
async def test_the_end_of_the_pool_hands_back_what_a_failing_map_of_a_priority_pool_had_queued() -> None:
    pool = pool_of(Handler(), {"priority": lambda job: 0})
    await pool.start()
    stream = pool.map(range(MANY))
    reading = asyncio.ensure_future(anext(aiter(stream)))
    await asyncio.sleep(0)
    pool.pause()
    await settle()
    looks = 0

    def belongs(cancel_where: Any) -> Any:
        def count(*args: Any) -> None:
            nonlocal looks
            looks += 1
            cancel_where(*args)

        return count

    type(pool._parts.cancellation).cancel_where = belongs(original := type(pool._parts.cancellation).cancel_where)  # type: ignore[method-assign]
    try:
        report = await pool.close(drain_timeout=0.0)
    finally:
        type(pool._parts.cancellation).cancel_where = original  # type: ignore[method-assign]
    with suppress(Exception):
        await reading
    assert [entry.job for entry in report.unfinished] == sorted(entry.job for entry in report.unfinished)
    assert looks <= 3  # the last in the heap is settled first: not each that is earlier cancels all after it again


# -- Requests in between


@virtual
async def test_a_second_close_in_between_gets_the_same_report() -> None:
    pool = pool_of(Handler(), {})
    await pool.start()
    for number in range(MANY):
        pool.submit_nowait(number)
    first = asyncio.ensure_future(pool.close(drain_timeout=0.0, grace=1.0))
    for _ in range(4):
        await asyncio.sleep(0)
    assert pool._parts.cancellation.is_settling
    pool.cancel()
    report = await pool.close(grace=0.0)
    assert report is await first
    assert len(report.unfinished) == MANY - len(report.abandoned)


@virtual
async def test_a_stream_that_is_cancelled_while_another_is_and_then_the_pool() -> None:
    handler = Handler()
    pool = pool_of(handler, {})
    await pool.start()
    groups = [pool.group(window=MANY) for _ in range(2)]
    for number in range(MANY // 2):
        for group in groups:
            await group.submit(number)
    groups[0].cancel()
    await asyncio.sleep(0)
    groups[1].cancel()
    groups[1].cancel()
    handle = await pool.submit(-1)
    report = await pool.close(drain_timeout=0.0)
    assert [entry.job for entry in report.unfinished] == [-1]  # the rest was cancelled by its owner
    outcome = await handle.outcome()
    assert isinstance(outcome, Cancelled)
    assert outcome.reason is CancelReason.SHUTDOWN
    assert pool.stats.cancelled == MANY + 1


@virtual
async def test_observers_that_cancel_and_submit_in_between() -> None:
    late: list[Any] = []

    def observe(event: Event) -> None:
        if isinstance(event, JobEnded) and event.id == 700:
            second.cancel()
            late.append(pool.submit_nowait(-1))
            handles[-1].cancel()

    async def handler(job: int) -> int:
        if job >= 0:
            await asyncio.sleep(10_000.0)
        return job

    async with pool_of(handler, {}, observers=[observe]) as pool:
        first, second = pool.group(window=MANY), pool.group(window=MANY)
        for number in range(1000):
            await first.submit(number)
        for number in range(1000):
            await second.submit(number)
        handles = [await pool.submit(0) for _ in range(2)]
        await first.aclose()
        assert await late[0] == -1
        await second.aclose()
        assert isinstance(await handles[-1].outcome(), Cancelled)
        assert pool.stats.cancelled == 2001
        handles[0].cancel()
        assert_conserved(pool)


@virtual
async def test_a_job_that_waits_for_one_of_them_is_no_deadlock() -> None:
    seen: list[object] = []

    async def handler(job: int) -> None:
        if job < 0:
            group.cancel()
            seen.append(await last.outcome())

    async with WorkerPool(handler, workers=1, queue_size=MANY + 2) as pool:
        pool.pause()
        first = await pool.submit(-1)
        group = pool.group(window=MANY)
        for number in range(MANY):
            await group.submit(number)
        last = await pool.submit(MANY)
        pool.resume()
        with pytest.raises(PoolDeadlock):  # it waits for a job behind it, which is still to run
            await first
        await last
        assert pool.stats.cancelled == MANY
    assert seen == []


def test_the_end_of_asyncio_run_in_the_middle_settles_all() -> None:
    pool: WorkerPool[Any, Any] = pool_of(Handler(), {})

    async def main() -> None:
        await pool.start()
        group = pool.group(window=MANY)
        for number in range(MANY):
            await group.submit(number)
        group.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pool._parts.cancellation.is_settling
        raise KeyError

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, pytest.raises(KeyError):
        runner.run(main())
    assert pool.state == "closed"
    assert pool.stats.cancelled == MANY
    assert_conserved(pool)


@virtual
async def test_a_slice_that_an_interrupt_has_lost_is_made_up_for() -> None:
    handler = Handler()
    async with pool_of(handler, {}) as pool:
        group = await filled(pool, handler, {})
        group.cancel()
        lost = pool._parts.cancellation._slices._handle
        assert lost is not None
        lost.cancel()  # asyncio takes a handle, is interrupted, and never runs it
        await settle()
        assert pool.stats.queued
        await group.aclose()
        assert not pool.stats.queued
        with pytest.raises(StreamClosed):
            aiter(group)


# -- What is not read


@virtual
async def test_many_failures_that_nobody_reads_are_counted_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(job: int) -> None:
        raise ValueError(job)

    async with pool_of(handler, {}) as pool:
        group = pool.group(window=MANY)
        for number in range(MANY):
            await group.submit(number)
        await settle()
        group.cancel()
        assert pool.stats.unread_failures == MANY
        occurrences = [record.args[1] for record in caplog.records if "never retrieved" in record.message]  # type: ignore[index]
        assert occurrences == [1 << power for power in range(12)]


@virtual
async def test_outcomes_that_nobody_reads_are_let_go_of_one_after_the_other() -> None:
    alive = 0

    class Value:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    async def handler(job: int) -> Value:
        return Value()

    async with pool_of(handler, {}) as pool:
        group = pool.group(window=MANY, ordered=True)
        for number in range(MANY):
            await group.submit(number)
        await settle()
        assert alive == MANY
        group.cancel()
        counts = []
        while alive:
            counts.append(alive)
            await asyncio.sleep(0)
        assert len(counts) >= MANY / timers._BATCH


# -- The helper alone


class Steps:
    def __init__(self) -> None:
        self.done: list[int] = []
        self.slices = 0
        self.slices_of = Slices(self.on_slice)
        self.slices_of.open(asyncio.get_running_loop(), copy_context())

    def on_slice(self) -> None:
        self.slices += 1


@virtual
async def test_steps_come_in_the_order_of_their_requests_and_can_add_others() -> None:
    steps = Steps()

    def step(item: int) -> None:
        steps.done.append(item)
        steps.slices_of.add([item * 10], steps.done.append)

    steps.slices_of.add([1, 2], step)
    steps.slices_of.add([3], steps.done.append)
    assert steps.done == []
    await settle()
    assert steps.done == [1, 2, 3, 10, 20]
    assert steps.slices_of.is_empty


@virtual
async def test_steps_can_all_be_done_at_once() -> None:
    steps = Steps()
    steps.slices_of.add(range(MANY), steps.done.append)
    steps.slices_of.finish()
    assert steps.done == list(range(MANY))
    assert (steps.slices, steps.slices_of.is_empty) == (1, True)
    await settle()
    assert steps.done == list(range(MANY))


@virtual
async def test_nothing_to_do_is_no_slice() -> None:
    steps = Steps()
    steps.slices_of.add([], steps.done.append)
    await settle()
    assert steps.slices == 0


def test_a_step_that_an_interrupt_ends_is_not_the_last() -> None:
    done: list[int] = []

    def step(item: int) -> None:
        if item == 3:
            raise KeyboardInterrupt
        done.append(item)

    async def main() -> None:
        slices = Slices(lambda: None)
        slices.open(asyncio.get_running_loop(), copy_context())
        slices.add(range(10), step)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)
        await settle()
        assert done == [0, 1, 2, 4, 5, 6, 7, 8, 9]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner, suppress(KeyboardInterrupt):
        runner.run(main())
    assert len(done) == 9
