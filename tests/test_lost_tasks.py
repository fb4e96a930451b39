"""Tasks that asyncio has lost: a KeyboardInterrupt came when it had taken their next step and not made it yet.

On a real loop, whose queue of callbacks is the one that loses them; the time that passes is some milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncpool import Cancelled, WorkerPool
from asyncpool._core import life
from asyncpool._core.lost_tasks import end_if_lost


def lose(task: asyncio.Task[Any]) -> None:
    """Drop the next step of a task, as `BaseEventLoop._run_once` does when an interrupt comes in the middle."""
    loop: Any = asyncio.get_running_loop()
    [handle] = [handle for handle in loop._ready if getattr(handle._callback, "__self__", None) is task]
    loop._ready.remove(handle)


def task_named(name: str) -> asyncio.Task[Any]:
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


async def spin(job: Any = None) -> None:
    """Be about to be resumed, at any moment."""
    while True:
        await asyncio.sleep(0)


async def cleans_up(job: int) -> None:
    try:
        await spin()
    finally:
        await asyncio.sleep(0)  # it cannot be resumed from here either


async def swallows(job: int) -> None:
    while True:
        try:
            await spin()
        except asyncio.CancelledError:
            pass


async def call(pool: WorkerPool[Any, Any], seen: list[str]) -> None:
    try:
        await pool.run(1)
    finally:
        seen.append("cleaned up")


@pytest.mark.parametrize("handler", [spin, cleans_up])
def test_a_job_whose_next_step_was_lost_holds_neither_close_nor_asyncio_run(
    handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with WorkerPool(handler, workers=1, name="shop") as pool:
            handle = await pool.submit(1)
            while pool.stats.running == 0 or not task_named("shop job"):
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            lose(task_named("shop job"))
            report = await pool.close(drain_timeout=0.0, grace=60.0)
        assert isinstance(await handle.outcome(), Cancelled)
        assert [entry.job for entry in report.unfinished] == [1]
        assert report.abandoned == ()

    asyncio.run(main())
    assert "pool 'shop': ended shop job, which was never resumed after an interrupt" in caplog.messages


def test_a_resource_and_a_feeder_that_were_lost_hold_nothing(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        yield
        await spin()

    async def source() -> AsyncIterator[int]:
        yield 1
        await spin()

    async def handler(job: int, resource: None) -> int:
        return job

    async def main() -> None:
        pool = WorkerPool(handler, workers=1, resource=connection, name="shop")
        await pool.start()
        stream = aiter(pool.outcomes(source()))
        await anext(stream)
        lose(task_named("shop feeder"))
        closing = asyncio.ensure_future(pool.close(drain_timeout=0.0, grace=60.0))
        resource = task_named("shop worker 1 resource")
        while not pool.stats.resources_closing:
            await asyncio.sleep(0)
        lose(resource)
        await closing
        assert resource.done()

    asyncio.run(main())
    ended = [message for message in caplog.messages if "never resumed" in message]
    assert len(ended) == 2


def test_the_end_of_a_child_that_nobody_was_told_of_does_not_hold_the_supervisor() -> None:
    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        yield

    async def handler(job: int, resource: None) -> int:
        return job

    async def main() -> None:
        pool = WorkerPool(handler, workers=1, resource=connection, name="shop")
        await pool.start()
        resource, supervisor = task_named("shop worker 1 resource"), task_named("shop supervisor")
        group: Any = pool._parts.tasks._group
        resource.remove_done_callback(group._on_task_done)
        await pool.close()
        await supervisor

    asyncio.run(main())


def test_a_feeder_that_was_lost_when_the_supervisor_failed_does_not_hold_its_group(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(life, "_WATCH_SECONDS", 0.01)

    async def source() -> AsyncIterator[int]:
        yield 1
        await swallows(1)

    async def main() -> None:
        pool = WorkerPool(asyncio.sleep, workers=1, name="shop")
        await pool.start()
        stream = aiter(pool.outcomes(source()))
        await anext(stream)

        def fail() -> None:
            monkeypatch.undo()
            monkeypatch.setattr(life, "_WATCH_SECONDS", 0.01)
            raise RuntimeError("a step of the end is broken")

        monkeypatch.setattr(pool._life, "_cancel_jobs", fail)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0.001)
        assert "an internal task failed" not in caplog.text  # the feeder holds the supervisor
        lose(task_named("shop feeder"))
        await closing

    asyncio.run(main())
    assert "pool 'shop': ended shop feeder, which was never resumed after an interrupt" in caplog.messages
    assert "pool 'shop': an internal task failed, so the pool was closed" in caplog.messages


def test_the_end_of_a_task_that_the_supervisor_waits_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "_WATCH_SECONDS", 0.01)
    is_over = False

    @asynccontextmanager
    async def connection() -> AsyncIterator[None]:
        yield
        while not is_over:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass

    async def handler(job: int, resource: None) -> int:
        return job

    async def main() -> None:
        nonlocal is_over
        pool = WorkerPool(handler, workers=1, resource=connection, name="shop")
        await pool.start()
        supervisor, resource = task_named("shop supervisor"), task_named("shop worker 1 resource")
        await pool.close(grace=0.0)
        while len(callbacks := resource._callbacks or []) < 3:
            await asyncio.sleep(0)
        for callback, _ in callbacks:
            if getattr(callback, "__qualname__", "").startswith("_wait."):
                resource.remove_done_callback(callback)
        is_over = True
        await supervisor

    asyncio.run(main())


def test_a_supervisor_that_was_lost_is_replaced_by_its_callback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(life, "_WATCH_SECONDS", 0.01)

    is_over = False

    async def ignores(job: int) -> None:
        while not is_over:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass

    async def main() -> None:
        nonlocal is_over
        pool = WorkerPool(ignores, workers=1, name="shop")
        await pool.start()
        handle = await pool.submit(1)
        await asyncio.sleep(0.001)
        closing = asyncio.ensure_future(pool.close(drain_timeout=0.0, grace=60.0))
        while pool.state != "stopping":
            await asyncio.sleep(0)
        lose(task_named("shop supervisor"))
        report = await closing
        assert [entry.job for entry in report.abandoned] == [1]
        assert handle.done()
        is_over = True

    asyncio.run(main())
    assert "pool 'shop': ended shop supervisor, which was never resumed after an interrupt" in caplog.messages


def test_a_caller_that_was_lost_does_not_hold_the_end_of_asyncio_run(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def main() -> None:
        pool = WorkerPool(asyncio.sleep, workers=1, name="shop")
        await pool.start()
        caller = asyncio.create_task(call(pool, seen), name="caller")
        await asyncio.sleep(0.001)
        caller.cancel()  # its wait has ended, and its wakeup is due
        lose(caller)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert seen == ["cleaned up"]
    assert "pool 'shop': ended caller, which was never resumed after an interrupt" in caplog.messages


def test_a_caller_that_was_lost_does_not_hold_the_end_of_asyncio_run_if_the_interrupt_came_in_the_block() -> None:
    seen: list[str] = []

    async def main() -> None:
        async with WorkerPool(asyncio.sleep, workers=1, name="shop") as pool:
            caller = asyncio.create_task(call(pool, seen), name="caller")
            await asyncio.sleep(0.001)
            caller.cancel()
            lose(caller)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert seen == ["cleaned up"]


@pytest.mark.parametrize("has_jobs", [False, True])
def test_a_task_group_that_was_not_told_of_the_end_of_its_tasks_does_not_hold_asyncio_run(has_jobs: bool) -> None:
    seen: list[str] = []

    children: list[Any] = []

    async def fail() -> None:
        raise ValueError("of a child")

    async def main() -> None:
        async with WorkerPool(asyncio.sleep, workers=1, name="shop") as pool:
            if has_jobs:
                await pool.submit(60)
            try:
                async with asyncio.TaskGroup() as group:
                    children.append(group.create_task(fail()))
                    children[0].remove_done_callback(group._on_task_done)  # type: ignore[attr-defined]
            except* ValueError:
                seen.append("left the group, with the error")

    async def interrupted() -> None:
        running = asyncio.create_task(main())
        while not children or not children[0].done():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not running.done()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted())
    assert seen == ["left the group, with the error"]


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_caller_that_was_lost_when_the_pool_had_closed_does_not_hold_the_end(
    is_cancelled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(life, "_WATCH_SECONDS", 0.01)

    async def wait_for(pool: WorkerPool[Any, Any]) -> None:
        await pool.close()

    async def main() -> None:
        pool = WorkerPool(asyncio.sleep, workers=1, name="shop")
        await pool.start()
        closing = asyncio.create_task(wait_for(pool), name="caller")
        while pool.state != "closed":
            await asyncio.sleep(0)
        lose(closing)
        if is_cancelled:
            closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()

    asyncio.run(main())
    assert "pool 'shop': ended caller, which was never resumed after an interrupt" in caplog.messages


def test_the_callback_of_a_supervisor_that_was_lost_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "_WATCH_SECONDS", 0.01)

    async def main() -> None:
        pool = WorkerPool(asyncio.sleep, workers=1, name="shop")
        await pool.start()
        supervisor = task_named("shop supervisor")
        supervisor.remove_done_callback(pool._life._supervisor_is_done)
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        supervisor.get_coro().close()
        await closing
        assert pool.state == "closed"

    asyncio.run(main())


def test_a_task_that_will_be_resumed_is_not_ended() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        tasks = {
            "waits": asyncio.ensure_future(event.wait()),
            "spins": asyncio.ensure_future(spin()),
            "swallows": asyncio.ensure_future(swallows(1)),
            "done": asyncio.ensure_future(asyncio.sleep(0)),
        }
        fresh = asyncio.ensure_future(spin())
        assert not end_if_lost(fresh, loop)  # before its first step
        for _ in range(3):
            await asyncio.sleep(0)
        for _ in range(10):
            tasks["swallows"].cancel()
            assert not any(end_if_lost(task, loop) for task in tasks.values())
            await asyncio.sleep(0)
        event.set()
        assert not end_if_lost(tasks["waits"], loop)  # what it waits for is done, and its wakeup is on its way
        current = asyncio.current_task()
        assert current is not None
        assert not end_if_lost(current, loop)
        asyncio.tasks._leave_task(loop, current)  # type: ignore[attr-defined]
        assert not end_if_lost(current, loop)  # it runs the loop itself: another task is the current one
        asyncio.tasks._enter_task(loop, current)  # type: ignore[attr-defined]
        lose(tasks["swallows"])
        assert end_if_lost(tasks["swallows"], loop)
        assert tasks["swallows"].cancelled()
        assert not end_if_lost(tasks["swallows"], loop)

    asyncio.run(main())
