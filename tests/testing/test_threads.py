"""What `VirtualTimeLoop` knows of threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import pickle
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asyncpool.testing import VirtualTimeLoop, run, settle
from tests.testing.helpers import at_once, blocking, forever, now


async def in_asyncio() -> None:
    await asyncio.to_thread(blocking)


async def in_executor() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        await asyncio.get_running_loop().run_in_executor(executor, blocking)


async def in_anyio() -> None:
    await anyio.to_thread.run_sync(blocking)


async def in_anyio_with_a_limiter() -> None:
    await anyio.to_thread.run_sync(blocking, limiter=anyio.CapacityLimiter(1))


in_each_kind_of_thread = pytest.mark.parametrize("work", [in_asyncio, in_executor, in_anyio, in_anyio_with_a_limiter])


@in_each_kind_of_thread
def test_the_clock_stands_still_while_a_thread_works(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> float:
        async with asyncio.timeout(0.001):
            await work()
        return now()

    assert run(main) == 0.0


@in_each_kind_of_thread
def test_the_clock_goes_on_when_the_thread_is_done(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> float:
        await work()
        await asyncio.sleep(5)
        return now()

    assert run(main) == 5.0


@pytest.mark.parametrize("in_thread", [asyncio.to_thread, partial(anyio.to_thread.run_sync, abandon_on_cancel=True)])
def test_the_clock_stands_still_for_a_cancelled_call_while_its_thread_works_on(
    in_thread: Callable[[Callable[[], None]], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> list[float]:
        ends: list[float] = []
        loop = asyncio.get_running_loop()
        begun = asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(begun.set)
            blocking()
            ends.append(loop.time())

        task = asyncio.create_task(in_thread(work))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await asyncio.sleep(100)
        return ends

    assert run(main) == [0.0]


def test_the_clock_goes_on_while_a_thread_of_anyio_waits_for_the_loop() -> None:
    def work() -> str:
        anyio.from_thread.run(asyncio.sleep, 3600)
        return "done"

    async def main() -> tuple[str, float]:
        return await anyio.to_thread.run_sync(work), now()

    with at_once():
        assert run(main) == ("done", 3600.0)


def test_the_clock_goes_on_while_a_thread_of_an_executor_waits_for_the_loop() -> None:
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()

        def work() -> str:
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(3600, "done"), loop).result()

        return await asyncio.to_thread(work), now()

    with at_once():
        assert run(main) == ("done", 3600.0)


def test_the_clock_stands_still_while_a_thread_waits_for_another_thread() -> None:
    def work() -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            executor.submit(blocking).result()

    async def main() -> float:
        async with asyncio.timeout(0.001):
            await asyncio.to_thread(work)
        return now()

    assert run(main) == 0.0


def test_a_thread_that_calls_the_loop_again_and_again_never_looks_idle() -> None:
    def work() -> None:
        for _ in range(300):
            anyio.from_thread.run(asyncio.sleep, 0)

    async def main() -> float:
        async with asyncio.timeout(0.001):
            await anyio.to_thread.run_sync(work)
        return now()

    assert run(main) == 0.0


def test_what_a_thread_posts_just_before_it_seems_idle_comes_before_the_jump() -> None:
    class PostedAtLast(VirtualTimeLoop):
        def _threads_work(self) -> bool:
            if not answer.done():
                self.call_soon_threadsafe(answer.set_result, None)
            return False

    async def main() -> float:
        asyncio.get_running_loop().call_later(100, lambda: None)
        await answer
        return now()

    with asyncio.Runner(loop_factory=PostedAtLast) as runner:
        answer: asyncio.Future[None] = runner.get_loop().create_future()
        assert runner.run(main()) == 0.0


def test_other_executors_can_pickle_their_calls() -> None:
    class PicklingExecutor(concurrent.futures.Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
            pickle.dumps((fn, args, kwargs))
            done: concurrent.futures.Future[Any] = concurrent.futures.Future()
            done.set_result(fn(*args, **kwargs))
            return done

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(PicklingExecutor(), int, "7")

    assert run(main) == 7


def test_a_timer_fires_at_last_if_a_thread_is_silent_for_longer_than_the_patience() -> None:
    async def main() -> float:
        opened = threading.Event()
        asyncio.get_running_loop().call_later(7, opened.set)
        await asyncio.to_thread(opened.wait)
        return now()

    assert run(main, patience=0.02) == 7.0


def test_shutting_down_the_default_executor_does_not_jump_to_its_timeout() -> None:
    clock: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, blocking)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await loop.shutdown_default_executor(*([300] if sys.version_info >= (3, 12) else []))
        clock.append(loop.time())

    run(main)
    assert clock == [0.0]


def test_a_foreign_thread_wakes_the_loop() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()

        def work() -> None:
            blocking()
            loop.call_soon_threadsafe(answer.set_result, "hello")

        threading.Thread(target=work).start()
        return await answer

    assert run(main) == "hello"


def test_a_foreign_thread_that_knows_the_loop_does_not_hold_the_clock() -> None:
    class Background(threading.Thread):
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__()
            self.loop = loop
            self.stopped = threading.Event()

        def run(self) -> None:
            self.stopped.wait()

    async def main() -> float:
        thread = Background(asyncio.get_running_loop())
        thread.start()
        await asyncio.sleep(100)
        thread.stopped.set()
        thread.join()
        return now()

    with at_once():
        assert run(main) == 100.0


def test_a_thread_that_ends_with_its_call_never_looks_like_a_deadlock() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(200):
            answer = loop.create_future()
            threading.Thread(target=loop.call_soon_threadsafe, args=(answer.set_result, None)).start()
            await answer

    run(main)


def test_the_debug_mode_refuses_coroutine_functions_on_executors() -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            asyncio.get_running_loop().run_in_executor(None, forever)

    run(main, debug=True)


def test_calls_on_executors_are_forgotten_when_they_end() -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(asyncio.to_thread(int) for _ in range(50)))
        await settle()
        return len(vars(loop)["_calls"])

    assert run(main) == 0
