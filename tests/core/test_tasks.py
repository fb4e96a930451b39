"""The task group of a pool: what is in it, who waits for it, and what a child that raises does to the others."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest

from asyncpool import PoolClosed, PoolError, SourceCrashed, StreamClosed, WorkerPool
from asyncpool._core.feeder import FedChannel
from asyncpool._core.life import Life
from asyncpool._core.resources import ResourceTask
from asyncpool._core.state import State
from asyncpool._core.tasks import Tasks
from asyncpool.testing import VirtualTimeLoop, settle
from tests.helpers import Source, echo, fuzzed, ignores_cancel, now, sleeper, virtual


async def nap(seconds: float, resource: object) -> float:
    """A handler for a pool with resources."""
    return await sleeper(seconds)


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """A resource that is easily had."""
    yield


def supervisor_of(pool: WorkerPool[Any, Any]) -> asyncio.Task[None]:
    supervisor = pool._parts.state.supervisor
    assert supervisor is not None
    return supervisor


def others() -> set[asyncio.Task[Any]]:
    """All tasks but this one."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[return-value]


# -- The set of children, without a pool


class StateThatRecords(State):
    """A state that keeps what would be raised later."""

    def __init__(self) -> None:
        super().__init__("pool")
        self.loop = asyncio.get_running_loop()
        self.raised: list[BaseException] = []

    def raise_later(self, error: BaseException) -> None:
        self.raised.append(error)


class Children:
    """A `Tasks` without a pool, which records how often a child was gone."""

    def __init__(self) -> None:
        self.state = StateThatRecords()
        self.gone = 0
        self.tasks = Tasks(self.state, self.note)

    def note(self) -> None:
        self.gone += 1

    def spawn(self, function: Callable[[], Any]) -> asyncio.Task[None]:
        return self.tasks.spawn(function, name="child", context=copy_context())


@fuzzed
async def test_a_child_is_counted_until_it_is_done() -> None:
    children, released = Children(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
        assert children.tasks.is_empty
        children.spawn(released.wait)
        await settle()
        assert (children.tasks.is_empty, children.gone) == (False, 0)
        released.set()
    assert (children.tasks.is_empty, children.gone) == (True, 1)


@fuzzed
async def test_the_group_has_no_child_either_when_the_last_one_is_reported_gone() -> None:
    seen: list[tuple[bool, int]] = []
    async with asyncio.TaskGroup() as group:
        in_group: set[Any] = group._tasks  # type: ignore[attr-defined]
        tasks = Tasks(StateThatRecords(), lambda: seen.append((tasks.is_empty, len(in_group))))
        tasks.open(group)
        for seconds in (1.0, 2.0):
            tasks.spawn(partial(sleeper, seconds), name="child", context=copy_context())
    assert seen == [(False, 1), (True, 0)]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager task factories are new in 3.12")
@virtual
async def test_a_child_that_an_eager_task_factory_runs_to_its_end_is_never_counted() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    children = Children()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
        assert children.spawn(lambda: echo(1)).done()
        assert children.tasks.is_empty


@fuzzed
async def test_all_children_are_cancelled_once() -> None:
    children = Children()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
        spawned = [children.spawn(lambda: sleeper(60)) for _ in range(3)]
        await settle()
        assert set(children.tasks.cancel_all()) == set(spawned)
        assert [task.cancelling() for task in spawned] == [1, 1, 1]
    assert now() == 0


@fuzzed
async def test_a_child_cancelled_before_its_first_step_never_calls_its_function() -> None:
    children, called = Children(), list[int]()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
        children.spawn(lambda: called.append(1)).cancel()
    assert (called, children.tasks.is_empty) == ([], True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@fuzzed
async def test_an_exception_of_the_program_goes_to_the_program_and_not_into_the_group(
    error: type[BaseException],
) -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise error

    children = Children()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
        children.spawn(fail)
        sibling = children.spawn(lambda: sleeper(60))
    assert [type(raised) for raised in children.state.raised] == [error]
    assert (sibling.cancelled(), now()) == (False, 60)


@fuzzed
async def test_a_waiter_for_the_group_that_is_cancelled_takes_no_other_with_it() -> None:
    children = Children()
    waiters = [asyncio.create_task(children.tasks.wait_open()) for _ in range(2)]
    await settle()
    waiters[0].cancel()
    await settle()
    assert not waiters[1].done()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
    await waiters[1]


@virtual
async def test_a_group_that_is_open_is_not_waited_for() -> None:
    children = Children()
    async with asyncio.TaskGroup() as group:
        children.tasks.open(group)
        with pytest.raises(StopIteration):
            children.tasks.wait_open().send(None)


@fuzzed
async def test_who_waits_for_a_group_that_will_never_open_goes_on() -> None:
    children = Children()
    waiter = asyncio.create_task(children.tasks.wait_open())
    await settle()
    children.tasks.give_up_opening()
    await waiter


# -- Whose children they are


@fuzzed
async def test_resource_tasks_and_feeders_are_children_of_the_supervisor() -> None:
    async with WorkerPool(nap, workers=2, resource=nothing, queue_size=0) as pool:
        reader = asyncio.create_task(anext(aiter(pool.map([60.0] * 50))))
        await settle()
        group: Any = pool._parts.tasks._group
        assert group._parent_task is supervisor_of(pool)
        names = sorted(task.get_name() for task in group._tasks)
        assert names == ["pool feeder", "pool worker 1 resource", "pool worker 2 resource"]
        assert group._tasks == pool._parts.tasks._children
        assert await reader == 60.0


@fuzzed
async def test_the_tasks_of_jobs_are_not_in_the_group() -> None:
    async with WorkerPool(sleeper, workers=2) as pool:
        await pool.submit(1)
        await settle()
        assert pool._parts.tasks.is_empty


# -- The end


@pytest.mark.parametrize("drain_timeout", [None, 0.0, 3.0])
@fuzzed
async def test_nothing_runs_when_close_returns(drain_timeout: float | None) -> None:
    @asynccontextmanager
    async def slow_to_leave() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(1)

    before = others()
    pool = WorkerPool(nap, workers=3, resource=slow_to_leave)
    await pool.start()
    stream = pool.map([2.0] * 20)
    cursor = aiter(stream)
    await anext(cursor)
    await pool.close(drain_timeout=drain_timeout)
    assert others() == before
    assert supervisor_of(pool).done()


@fuzzed
async def test_nothing_runs_when_close_returns_that_was_called_before_the_supervisor_began() -> None:
    before = others()
    pool = WorkerPool(echo, workers=1)
    await pool.start()
    await pool.close()
    assert others() == before


@fuzzed
async def test_a_task_that_ignores_the_end_holds_the_supervisor() -> None:
    @asynccontextmanager
    async def stubborn() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await ignores_cancel(60)

    pool = WorkerPool(nap, workers=1, resource=stubborn)
    await pool.start()
    report = await pool.close()
    assert now() == 5
    assert [str(error) for error in report.errors] == ["task 'pool worker 1 resource' ignores its cancellation"]
    supervisor = supervisor_of(pool)
    assert not supervisor.done()
    await asyncio.wait([supervisor])
    assert now() == 60
    assert supervisor.exception() is None


@fuzzed
async def test_a_source_that_ignores_the_end_holds_the_supervisor_and_not_close() -> None:
    async def stubborn() -> AsyncIterator[float]:
        yield 1.0
        await ignores_cancel(60)

    pool = WorkerPool(sleeper, workers=1)
    await pool.start()
    cursor = aiter(pool.map(stubborn()))
    assert await anext(cursor) == 1.0
    await pool.close()
    closed_at = now()
    supervisor = supervisor_of(pool)
    assert not supervisor.done()
    await asyncio.wait([supervisor])
    assert closed_at < now() == 60


# -- An exception of the program, in a resource or in a source


class Interrupted:
    """A pool with a stream, two workers and their resources; one of them raises what is the program's."""

    def __init__(self, origin: str, error: type[BaseException]) -> None:
        self.origin = origin
        self.error = error
        self.tries = 0
        self.entered = 0
        self.left = 0
        self.cleaned_up: list[str] = []
        self.seen: list[Any] = []
        self.pool: WorkerPool[int, int] = WorkerPool(self.handler, workers=2, resource=self.resource)

    async def handler(self, job: int, resource: None) -> int:
        return job

    @asynccontextmanager
    async def resource(self) -> AsyncIterator[None]:
        self.tries += 1
        if self.origin == "resource" and self.tries == 2:
            raise self.error
        self.entered += 1
        try:
            yield
            await asyncio.sleep(0)
        finally:
            self.left += 1

    def source(self) -> Iterator[int]:
        yield 1
        if self.origin == "source":
            raise self.error
        yield 2

    async def main(self) -> None:
        """Read a stream, then wait to be cancelled; clean up in several steps."""
        try:
            async with self.pool as pool:
                try:
                    async for value in pool.map(self.source()):
                        self.seen.append(value)
                except PoolError as error:
                    self.seen.append(type(error))
                await asyncio.Event().wait()
        finally:
            for step in ("first", "second", "last"):
                await asyncio.sleep(0)
                self.cleaned_up.append(step)


@pytest.mark.parametrize("origin", ["resource", "source"])
def test_the_main_task_of_asyncio_run_cleans_up_after_a_keyboard_interrupt(
    origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Interrupted(origin, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(scene.main())
    gc.collect()
    assert scene.cleaned_up == ["first", "second", "last"]
    assert scene.pool.report is not None
    assert scene.left == scene.entered
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize(("origin", "others"), [("resource", 1), ("source", 2)])
def test_a_keyboard_interrupt_cancels_no_other_child(origin: str, others: int) -> None:
    scene = Interrupted(origin, KeyboardInterrupt)

    async def look() -> None:
        await settle()
        assert supervisor_of(scene.pool).cancelling() == 0
        assert (scene.entered, scene.left) == (others, 0)
        assert len(scene.pool._parts.tasks._children) == others

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        with pytest.raises(KeyboardInterrupt):
            runner.run(scene.main())
        runner.run(look())  # a program can go on after that


@pytest.mark.parametrize("origin", ["resource", "source"])
def test_a_system_exit_ends_no_other_child_and_not_the_pool(origin: str, caplog: pytest.LogCaptureFixture) -> None:
    scene = Interrupted(origin, SystemExit)

    async def main() -> None:
        running = asyncio.create_task(scene.main())
        await settle()
        assert await scene.pool.run(3) == 3
        running.cancel()
        await asyncio.wait([running])

    with caplog.at_level(logging.CRITICAL, "asyncpool"):
        asyncio.run(main())
    assert scene.seen == ([1, 2] if origin == "resource" else [1, SourceCrashed])
    assert scene.cleaned_up == ["first", "second", "last"]
    assert scene.left == scene.entered


# -- A bug in a child


class Planted:
    """A bug in a child: it raises once `raises` is set."""

    def __init__(self) -> None:
        self.raises = asyncio.Event()

    async def raise_it(self) -> None:
        await self.raises.wait()
        raise RuntimeError("planted")


def failures_logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, list[str]]]:
    """What the log says of a pool whose task has failed: the message, and the errors in the group."""
    found = []
    for record in caplog.records:
        if record.name == "asyncpool" and record.levelno == logging.ERROR and record.exc_info:
            error = record.exc_info[1]
            assert isinstance(error, ExceptionGroup)
            found.append((record.getMessage(), [str(inner) for inner in error.exceptions]))
    return found


LOGGED = [("pool 'shop': an internal task failed, so the pool was closed", ["planted"])]


@virtual
async def test_a_bug_in_a_resource_task_ends_the_pool_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug, hold = Planted(), ResourceTask._hold

    async def hold_or_raise(self: ResourceTask) -> None:
        await (bug.raise_it() if self._worker.number == 2 else hold(self))

    monkeypatch.setattr(ResourceTask, "_hold", hold_or_raise)
    left: list[float] = []

    @asynccontextmanager
    async def resource() -> AsyncIterator[None]:
        try:
            yield
        finally:
            left.append(now())

    pool = WorkerPool(nap, workers=2, resource=resource, name="shop")
    await pool.start()
    handles = [await pool.submit(60) for _ in range(3)]
    await settle()
    bug.raises.set()
    await settle()
    report = pool.report
    assert report is not None
    assert [(entry.job, entry.started) for entry in report.unfinished] == [(60, True), (60, False), (60, False)]
    assert [handle.done() for handle in handles] == [True] * 3
    assert left == [0]
    assert supervisor_of(pool).done()
    assert failures_logged(caplog) == LOGGED


@virtual
async def test_a_bug_in_a_feeder_ends_the_pool_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug = Planted()
    monkeypatch.setattr(FedChannel, "_feed", lambda self: bug.raise_it())
    pool = WorkerPool(sleeper, workers=1, name="shop")
    await pool.start()
    reader = asyncio.create_task(anext(aiter(pool.map([1.0]))))
    handles = [await pool.submit(60) for _ in range(2)]
    await settle()
    bug.raises.set()
    await settle()
    report = pool.report
    assert report is not None
    assert [(entry.job, entry.started) for entry in report.unfinished] == [(60, True), (60, False)]
    assert [handle.done() for handle in handles] == [True] * 2
    assert isinstance(reader.exception(), PoolError)
    assert supervisor_of(pool).done()
    assert failures_logged(caplog) == LOGGED


@virtual
async def test_a_bug_in_the_first_resource_task_fails_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug = Planted()
    bug.raises.set()
    monkeypatch.setattr(ResourceTask, "_hold", lambda self: bug.raise_it())
    pool = WorkerPool(nap, workers=2, resource=nothing, name="shop")
    with pytest.raises(PoolClosed, match="was closed while it was starting"):
        await pool.start()
    await settle()
    assert pool.report is not None
    assert failures_logged(caplog) == LOGGED


@virtual
async def test_a_pool_that_a_bug_has_ended_takes_no_more_jobs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bug = Planted()
    monkeypatch.setattr(FedChannel, "_feed", lambda self: bug.raise_it())
    pool = WorkerPool(sleeper, workers=1)
    await pool.start()
    reader = asyncio.create_task(anext(aiter(pool.map([1.0]))))
    await settle()
    bug.raises.set()
    await settle()
    with pytest.raises(PoolClosed):
        await pool.submit(1)
    assert not await pool.close()
    reader.exception()


def interrupter(kind: type[BaseException], times: int) -> Callable[[Life], None]:
    """A step of the supervisor that is interrupted some times."""
    left = [kind] * times

    def interrupt(self: Life) -> None:
        if left:
            raise left.pop()

    return interrupt


@pytest.mark.parametrize("times", [1, 3, 20])
def test_an_interrupt_of_the_supervisor_reaches_the_program(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The workers hold resources, whose tasks nobody has told to end: the supervisor's group would wait for them.
    monkeypatch.setattr(Life, "_finish_stopping_intake", interrupter(KeyboardInterrupt, times))
    loop = VirtualTimeLoop()
    pool = WorkerPool(nap, workers=2, resource=nothing)
    loop.run_until_complete(pool.start())
    handle = loop.run_until_complete(pool.submit(60))
    interrupts = 0
    while pool.report is None:
        try:
            loop.run_until_complete(pool.close())
        except KeyboardInterrupt:
            interrupts += 1
    loop.run_until_complete(settle())
    loop.run_until_complete(handle.outcome())
    loop.close()
    assert interrupts == min(times, 9)
    if times < 9:  # otherwise its resource was given up, and so it has failed
        assert [(entry.job, entry.started) for entry in pool.report.unfinished] == [(60, True)]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_the_supervisor_is_not_logged_as_a_failure(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Life, "_finish_stopping_intake", interrupter(kind, 1))
    loop = VirtualTimeLoop()
    pool = WorkerPool(sleeper, workers=1)
    loop.run_until_complete(pool.start())
    handles = [loop.run_until_complete(pool.submit(60)) for _ in range(2)]
    with pytest.raises(kind):
        loop.run_until_complete(pool.close())
    report = loop.run_until_complete(pool.close())
    loop.close()
    assert [(entry.job, entry.started) for entry in report.unfinished] == [(60, True), (60, False)]
    assert [handle.done() for handle in handles] == [True] * 2
    assert failures_logged(caplog) == []


# -- Before the supervisor's first step


def has_begun(pool: WorkerPool[Any, Any]) -> bool:
    """Whether the supervisor has had its first step."""
    return pool._parts.tasks.is_open


@fuzzed
async def test_the_first_step_of_a_stream_can_come_before_that_of_the_supervisor() -> None:
    async with WorkerPool(echo, workers=2) as pool:
        assert not has_begun(pool)
        assert [value async for value in pool.map([1, 2, 3])] == [1, 2, 3]


@fuzzed
async def test_streams_that_wait_for_the_supervisor_are_independent() -> None:
    async with WorkerPool(echo, workers=2) as pool:
        cursors = [aiter(pool.map([number])) for number in range(3)]
        steps = [anext(cursor) for cursor in cursors]
        readers = [asyncio.ensure_future(step) for step in steps]
        assert not has_begun(pool)
        readers[1].cancel()
        await asyncio.wait(readers)
        assert (readers[0].result(), readers[2].result()) == (0, 2)


@fuzzed
async def test_two_readers_of_a_stream_that_wait_for_the_supervisor_start_one_feeder() -> None:
    class Counted:
        """A source that counts how often somebody begins to pull it."""

        begun = 0

        def __iter__(self) -> Iterator[int]:
            self.begun += 1
            return iter([1, 2])

    source = Counted()
    async with WorkerPool(echo, workers=2) as pool:
        cursor = aiter(pool.map(source))
        assert not has_begun(pool)
        read = await asyncio.gather(anext(cursor), anext(cursor), return_exceptions=True)
        rest = [value async for value in cursor]
    # A stream has one reader: the second gets an error, unless the first has its value by then.
    assert sorted([value for value in read if not isinstance(value, StreamClosed)] + rest) == [1, 2]
    assert source.begun == 1


@pytest.mark.parametrize("is_begun", [False, True], ids=["before its first step", "after its first step"])
@pytest.mark.parametrize("end", ["cancel", "drain"])
@fuzzed
async def test_a_stream_whose_pool_is_closed_while_it_waits_for_the_supervisor_raises_pool_closed(
    is_begun: bool, end: str
) -> None:
    source = Source([1, 2])
    pool = WorkerPool(echo, workers=1)
    close = pool.drain if end == "drain" else pool.cancel
    loop = asyncio.get_running_loop()
    if not is_begun:
        loop.call_soon(close)
    await pool.start()
    assert not has_begun(pool)
    if is_begun:
        loop.call_soon(close)  # after the supervisor's step, and before the reader goes on
    with pytest.raises(PoolClosed):
        await anext(aiter(pool.map(source.sync())))
    assert source.pulled == []
    assert not await pool.close()


@fuzzed
async def test_a_supervisor_cancelled_before_its_first_step_closes_the_pool() -> None:
    pool = WorkerPool(sleeper, workers=1)
    await pool.start()
    handles = [pool.submit_nowait(number) for number in (1, 2)]
    assert not has_begun(pool)
    supervisor_of(pool).cancel()
    await settle()
    assert pool.report is not None
    assert [entry.job for entry in pool.report.unfinished] == [1, 2]
    assert [handle.done() for handle in handles] == [True, True]


@fuzzed
async def test_a_stream_that_waits_for_a_supervisor_cancelled_before_its_first_step_raises_pool_closed() -> None:
    pool = WorkerPool(echo, workers=1)
    asyncio.get_running_loop().call_soon(lambda: supervisor_of(pool).cancel())
    await pool.start()
    with pytest.raises(PoolClosed):
        await anext(aiter(pool.map([1])))
    await settle()
    assert pool.report is not None


@fuzzed
async def test_a_start_that_waits_for_a_supervisor_cancelled_before_its_first_step_raises_pool_closed() -> None:
    def enter() -> AbstractAsyncContextManager[None]:
        raise AssertionError("nobody needs it")

    pool = WorkerPool(nap, workers=1, resource=enter)
    asyncio.get_running_loop().call_soon(lambda: supervisor_of(pool).cancel())
    with pytest.raises(PoolClosed, match="was closed while it was starting"):
        await pool.start()
    assert pool.report is not None
