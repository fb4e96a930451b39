"""What `ManualHandler` promises."""

from __future__ import annotations

import asyncio

import pytest

from asyncpool.testing import ManualHandler, run, settle


def test_a_manual_handler_ends_its_calls_as_told() -> None:
    async def main() -> None:
        handler = ManualHandler[str, int]()
        calls = {job: asyncio.create_task(handler(job)) for job in ("a", "b", "c")}
        await handler.wait_started(3)
        assert handler.started == handler.running == ["a", "b", "c"]
        handler.finish("b", 2)
        assert await calls["b"] == 2
        assert handler.running == ["a", "c"]
        handler.fail("a", OSError("broken"))
        with pytest.raises(OSError, match="broken"):
            await calls["a"]
        handler.finish_all(3)
        assert await calls["c"] == 3
        assert (handler.running, handler.peak_running, handler.cancelled) == ([], 3, [])

    run(main)


def test_of_two_calls_with_equal_jobs_the_first_ends_first() -> None:
    async def main() -> None:
        handler = ManualHandler[str, int]()
        first, second = (asyncio.create_task(handler("job")) for _ in range(2))
        await settle()
        handler.finish("job", 1)
        handler.finish("job", 2)
        assert (await first, await second) == (1, 2)

    run(main)


def test_a_manual_handler_takes_a_resource() -> None:
    async def main() -> None:
        handler = ManualHandler[str, None]()
        task = asyncio.create_task(handler("job", object()))
        await handler.wait_started(1)
        handler.finish("job")
        await task

    run(main)


def test_a_cancelled_call_is_recorded() -> None:
    async def main() -> None:
        handler = ManualHandler[str, None]()
        task = asyncio.create_task(handler("job"))
        await settle()
        task.cancel()
        await asyncio.wait([task])
        assert (handler.cancelled, handler.running) == (["job"], [])

    run(main)


def test_a_call_told_to_raise_cancelled_error_does_not_count_as_cancelled() -> None:
    async def main() -> None:
        handler = ManualHandler[str, None]()
        task = asyncio.create_task(handler("job"))
        await settle()
        handler.fail("job", asyncio.CancelledError())
        await asyncio.wait([task])
        assert (task.cancelled(), handler.cancelled) == (True, [])

    run(main)


def test_a_call_cancelled_after_fail_leaves_no_unretrieved_error() -> None:
    async def main() -> None:
        handler = ManualHandler[str, None]()
        task = asyncio.create_task(handler("job"))
        await settle()
        handler.fail("job", OSError())
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), handler.cancelled) == (True, ["job"])

    run(main)


@pytest.mark.parametrize("begun", [False, True])
def test_ending_a_call_that_does_not_wait_is_an_error(begun: bool) -> None:
    async def main() -> None:
        handler = ManualHandler[str, None]()
        async with asyncio.TaskGroup() as group:
            if begun:
                group.create_task(handler("job"))
                await settle()
                handler.finish("job")
            with pytest.raises(LookupError, match="no call with job 'job' is waiting"):
                handler.finish("job")

    run(main)


def test_wait_started_waits_for_that_many_calls_ever() -> None:
    async def main() -> list[str]:
        handler = ManualHandler[str, None]()
        async with asyncio.TaskGroup() as group:

            def begin(job: str) -> None:
                group.create_task(handler(job))

            for delay, job in enumerate("abc"):
                asyncio.get_running_loop().call_later(delay, begin, job)
            await handler.wait_started(2)
            begun = list(handler.started)
            handler.finish_all()
            await handler.wait_started(3)
            handler.finish_all()
        return begun

    assert run(main) == ["a", "b"]
