"""What `asyncpool.testing` promises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import itertools
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import asyncpool.testing
from asyncpool.testing import (
    DeadlockError,
    LeakError,
    ManualHandler,
    VirtualTimeLoop,
    cancel_at,
    fuzzing_task_factory,
    run,
    settle,
)

needs_eager_tasks = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")


def now() -> float:
    return asyncio.get_running_loop().time()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def blocking() -> None:
    """Work of a thread."""
    time.sleep(0.02)


@contextmanager
def at_once() -> Generator[None]:
    """Fail if the patience (10 s) was used up. An older thread could wake a loop too, so it needs to be alone."""
    for _ in range(100):  # those of the test before may be about to end
        if threading.active_count() == 1:
            break
        time.sleep(0.005)
    else:
        pytest.skip("there are other threads (a debugger?)")
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


# ----------------------------------------------------------------------------------------------- virtual time


def test_a_year_passes_in_a_moment() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 24 * 3600)
        return now()

    assert run(main) == 365 * 24 * 3600


def test_the_clock_starts_at_zero() -> None:
    async def main() -> float:
        return now()

    assert run(main) == 0.0


def test_the_clock_stands_still_while_tasks_have_something_to_do() -> None:
    async def main() -> float:
        asyncio.get_running_loop().call_later(1, lambda: None)
        for _ in range(1000):
            await asyncio.sleep(0)
        return now()

    assert run(main) == 0.0


def test_timers_fire_in_the_order_of_their_times() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def note(seconds: int) -> None:
            await asyncio.sleep(seconds)
            order.append(seconds)

        await asyncio.gather(*(note(seconds) for seconds in (3, 1, 2)))
        return order

    assert run(main) == [1, 2, 3]


@pytest.mark.parametrize("start", [0.0, 0.1, 1e3, 1e7, 1e9, 1e15, 1e300])
def test_a_timer_fires_exactly_on_time_however_late_it_is(start: float) -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        whens = [start, math.nextafter(start, math.inf), start * 1.1, start * 1.1 + 0.1 + 0.2]
        fired: list[float] = []
        done = asyncio.Event()

        def note_delay(when: float) -> None:
            fired.append(loop.time() - when)

        for when in whens:
            loop.call_at(when, partial(note_delay, when))
        loop.call_at(whens[-1], done.set)
        await done.wait()
        return fired

    assert run(main) == [0.0] * 4


def test_a_sleep_without_end_counts_as_no_timer() -> None:
    async def main() -> None:
        await asyncio.sleep(math.inf)

    with pytest.raises(DeadlockError):
        run(main, patience=0.1)


def test_timeouts_of_asyncio_and_anyio_fire_on_virtual_time() -> None:
    async def main() -> tuple[float, float]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await forever()
        first = now()
        with anyio.move_on_after(3600):
            await anyio.sleep_forever()
        return first, now()

    assert run(main) == (60.0, 3660.0)


def test_anyio_deadlines_that_differ_by_rounding_all_fire() -> None:
    async def main() -> int:
        fired = 0

        async def wait(seconds: float) -> None:
            nonlocal fired
            with anyio.move_on_after(seconds):
                await anyio.sleep_forever()
            fired += 1

        async with anyio.create_task_group() as group:
            for seconds in (0.3, 0.1 + 0.2, math.nextafter(0.3, 0.0)):
                group.start_soon(wait, seconds)
        return fired

    assert run(main) == 3


def test_loopback_tcp_works() -> None:
    async def main() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(100)
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, asyncio.timeout(200):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        await settle()
        return answer

    assert run(main) == b"hello\n"


# ---------------------------------------------------------------------------------------------------- threads


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


# --------------------------------------------------------------------------------------------------- deadlock


def test_a_deadlock_is_reported_at_once_with_every_task_and_where_it_waits() -> None:
    async def waits_for_a_queue(queue: asyncio.Queue[None]) -> None:
        await queue.get()  # here

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_a_queue(asyncio.Queue()), name="reader")
            group.create_task(forever(), name="sleeper")

    with at_once(), pytest.raises(DeadlockError) as caught:
        run(main)
    report = str(caught.value)
    assert "'reader'" in report
    assert f"{__file__}:" in report
    assert "in waits_for_a_queue: await queue.get()  # here" in report
    assert "in get: await getter" in report
    assert "'sleeper'" in report


def test_a_deadlock_is_not_reported_as_a_leak_too() -> None:
    async def main() -> None:
        others = [asyncio.create_task(forever()) for _ in range(5)]
        await forever()
        await asyncio.wait(others)

    with pytest.raises(DeadlockError) as caught:
        run(main, patience=0.1)
    assert not hasattr(caught.value, "__notes__")


def test_a_deadlock_with_a_socket_open_is_reported_after_the_patience() -> None:
    async def main() -> None:
        async with await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0):
            await forever()

    with pytest.raises(DeadlockError, match=r"silent for 0\.02 s"):
        run(main, patience=0.02)


def test_a_deadlock_after_work_in_threads_is_reported_at_once() -> None:
    async def main() -> None:
        await asyncio.to_thread(int)
        await anyio.to_thread.run_sync(int)
        blocking()
        await forever()

    with at_once(), pytest.raises(DeadlockError):
        run(main)


def test_a_waiting_signal_handler_is_not_a_deadlock_before_the_patience_is_over() -> None:
    async def main() -> None:
        received = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, received.set)
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        await received.wait()

    run(main)


def test_the_runner_can_clean_up_after_a_deadlock() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(1)
            cleaned.append("main")

    with pytest.raises(DeadlockError), asyncio.Runner(loop_factory=partial(VirtualTimeLoop, patience=0.1)) as runner:
        runner.run(main())
    assert cleaned == ["main"]


# ---------------------------------------------------------------------------------------------------- fuzzing


async def order_of(
    loop_like: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
) -> list[tuple[int, int]]:
    order: list[tuple[int, int]] = []

    async def walk(name: int) -> None:
        for step in range(4):
            order.append((name, step))
            await asyncio.sleep(0)

    await asyncio.gather(*(loop_like(walk(name)) for name in range(4)))
    return order


def test_without_a_seed_the_order_is_the_plain_one() -> None:
    order = run(lambda: order_of(asyncio.create_task))
    assert order == sorted(order, key=lambda at: (at[1], at[0]))


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert run(lambda: order_of(asyncio.create_task), seed=7) == run(lambda: order_of(asyncio.create_task), seed=7)


def test_other_seeds_give_other_schedules() -> None:
    orders = [run(lambda: order_of(asyncio.create_task), seed=seed) for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20


def test_tasks_written_in_python_are_fuzzed_too() -> None:
    def make(coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = vars(asyncio.tasks)["_PyTask"](coro, loop=asyncio.get_running_loop())
        return task

    plain = run(lambda: order_of(make))
    assert any(run(lambda: order_of(make), seed=seed) != plain for seed in range(5))


@needs_eager_tasks
def test_eager_tasks_are_fuzzed_from_their_first_wake_up_on() -> None:
    def make(coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        make_task: Any = asyncio.Task  # the checkers may look at this as 3.11
        task: asyncio.Task[None] = make_task(coro, loop=asyncio.get_running_loop(), eager_start=True)
        return task

    plain = run(lambda: order_of(make))
    orders = [run(lambda: order_of(make), seed=seed) for seed in range(5)]
    assert all(order[:4] == plain[:4] for order in orders)
    assert any(order != plain for order in orders)


def test_wake_ups_by_futures_are_fuzzed() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        gates = [asyncio.get_running_loop().create_future() for _ in range(4)]

        async def wait(name: int) -> None:
            await gates[name]
            order.append(name)

        async with asyncio.TaskGroup() as group:
            for name in range(4):
                group.create_task(wait(name))
            await settle()
            for gate in gates:
                gate.set_result(None)
        return order

    assert run(main) == [0, 1, 2, 3]
    assert any(run(main, seed=seed) != [0, 1, 2, 3] for seed in range(10))


@pytest.mark.parametrize("seed", range(5))
def test_callbacks_that_are_no_task_steps_keep_their_order(seed: int) -> None:
    async def main() -> list[int]:
        order: list[int] = []
        loop = asyncio.get_running_loop()
        for name in range(50):
            loop.call_soon(partial(order.append, name))  # a partial has no name, as the steps of C tasks have none
        await settle()
        return order

    assert run(main, seed=seed, lose_turn=0.9) == list(range(50))


def test_a_cancel_by_callback_keeps_its_turn() -> None:
    async def main() -> bool:
        requests: list[int] = []
        task = asyncio.create_task(forever())
        asyncio.get_running_loop().call_soon(task.cancel)
        asyncio.get_running_loop().call_soon(lambda: requests.append(task.cancelling()))
        await asyncio.wait([task])
        return requests == [1]

    assert all(run(main, seed=seed, lose_turn=0.9) for seed in range(10))


def test_a_fuzzed_step_runs_in_its_own_context() -> None:
    variable = contextvars.ContextVar("variable", default="outer")

    async def main() -> str:
        async def child() -> None:
            variable.set("child")
            await asyncio.sleep(0)
            assert variable.get() == "child"

        await asyncio.gather(*(child() for _ in range(5)))
        return variable.get()

    assert {run(main, seed=seed, lose_turn=0.9) for seed in range(5)} == {"outer"}


async def lose_items(work: Callable[..., Coroutine[Any, Any, None]]) -> int:
    """How many of three items were lost by two workers that were cancelled at work."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    ledger = asyncio.Lock()
    accounted: list[int] = []
    workers = [asyncio.create_task(work(queue, ledger, accounted)) for _ in range(2)]
    await asyncio.sleep(0)
    for item in range(3):
        queue.put_nowait(item)
    for _ in range(6):
        await asyncio.sleep(0)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    return 3 - len(accounted) - queue.qsize()


async def buggy_worker(queue: asyncio.Queue[int], ledger: asyncio.Lock, accounted: list[int]) -> None:
    while True:
        item = await queue.get()
        async with ledger:  # a cancellation that arrives while this waits loses the item
            await asyncio.sleep(0)
            accounted.append(item)


def test_many_seeds_show_a_lost_item_that_the_plain_order_hides() -> None:
    assert run(lambda: lose_items(buggy_worker)) == 0
    assert sum(run(lambda: lose_items(buggy_worker), seed=seed) > 0 for seed in range(200)) >= 10


def test_the_fuzzing_task_factory_shows_the_same_bug_on_any_loop() -> None:
    def losses(seed: int) -> int:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.get_loop().set_task_factory(fuzzing_task_factory(seed))
            return runner.run(lose_items(buggy_worker))

    assert sum(losses(seed) > 0 for seed in range(100)) >= 5
    assert [losses(seed) for seed in range(20)] == [losses(seed) for seed in range(20)]


def test_a_task_of_the_fuzzing_factory_has_name_context_and_stack_as_any_other() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(fuzzing_task_factory(0))
        task = asyncio.create_task(forever(), name="fuzzed")
        await settle()
        assert task.get_name() == "fuzzed"
        assert "forever" in repr(task)
        assert task.get_stack()[0].f_code is forever.__code__
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(main)


@pytest.mark.parametrize("lose_turn", [-0.1, 1.0, math.nan])
def test_lose_turn_is_a_probability_below_one(lose_turn: float) -> None:
    with pytest.raises(ValueError, match="lose_turn must be >= 0 and < 1"):
        VirtualTimeLoop(seed=1, lose_turn=lose_turn)
    with pytest.raises(ValueError, match="lose_turn must be >= 0 and < 1"):
        fuzzing_task_factory(1, lose_turn=lose_turn)


def test_patience_is_not_negative() -> None:
    with pytest.raises(ValueError, match="patience must be >= 0, got -1"):
        VirtualTimeLoop(patience=-1)


# -------------------------------------------------------------------------------------------------------- run


def test_run_takes_a_coroutine_too() -> None:
    assert run(asyncio.sleep(3, "value")) == "value"


def test_run_fails_if_a_task_is_left_behind() -> None:
    async def main() -> None:
        task = asyncio.create_task(forever(), name="orphan")
        await settle()
        assert not task.done()

    with pytest.raises(LeakError, match=r"(?s)tasks left behind.*'orphan'.*in forever"):
        run(main)


def test_run_fails_if_a_task_left_behind_cannot_even_be_cancelled() -> None:
    async def stubborn() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await forever()

    async def main() -> None:
        task = asyncio.create_task(stubborn(), name="stubborn")
        await settle()
        assert not task.done()

    with pytest.raises(LeakError, match="could not be cancelled: nothing can happen"):
        run(main, patience=0.1)


def test_run_fails_if_an_exception_was_never_retrieved() -> None:
    async def broken() -> None:
        raise OSError("unseen")

    async def main() -> None:
        task = asyncio.create_task(broken())
        await settle()
        del task

    with pytest.raises(LeakError, match=r"never retrieved.*unseen") as caught:
        run(main)
    assert isinstance(caught.value.__cause__, OSError)


def test_run_finds_unretrieved_exceptions_in_cycles_if_it_collects() -> None:
    async def broken(itself: list[Any]) -> None:
        raise OSError("unseen")

    async def main() -> None:
        cycle: list[Any] = []
        cycle.append(cycle)
        cycle.append(asyncio.create_task(broken(cycle)))
        await settle()

    gc.disable()
    try:
        with pytest.raises(LeakError, match=r"never retrieved.*unseen"):
            run(main, collect=True)
    finally:
        gc.enable()


def test_run_fails_if_a_coroutine_was_never_awaited() -> None:
    async def main() -> None:
        _ = forever()

    with pytest.raises(LeakError, match="coroutine 'forever' was never awaited"):
        run(main)


def test_run_leaves_other_warnings_to_others() -> None:
    async def main() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="old"):
        run(main)


def test_run_leaves_the_filters_of_warnings_as_they_were() -> None:
    async def main() -> None:
        warnings.warn("odd", RuntimeWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="odd"):
            run(main)


def test_the_error_of_main_wins_and_carries_the_leaks_as_notes() -> None:
    async def main() -> None:
        task = asyncio.create_task(forever(), name="orphan")
        await settle()
        raise ValueError(task.get_name())

    with pytest.raises(ValueError, match="orphan") as caught:
        run(main)
    assert "task 'orphan' waits at" in "\n".join(caught.value.__notes__)


def test_tasks_left_behind_are_cancelled_when_run_ends() -> None:
    ends: list[str] = []

    async def orphan() -> None:
        try:
            await forever()
        finally:
            ends.append("cancelled")

    async def main() -> None:
        task = asyncio.create_task(orphan())
        await settle()
        assert not task.done()

    with pytest.raises(LeakError):
        run(main)
    assert ends == ["cancelled"]


@pytest.mark.parametrize("debug", [True, False])
def test_run_sets_the_debug_mode(debug: bool) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert run(main, debug=debug) is debug


def test_run_leaves_no_garbage() -> None:
    async def main() -> None:
        await asyncio.sleep(1)

    run(main)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            run(main, seed=1)
        assert gc.collect() == 0
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------------- settle


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_settle_returns_when_every_other_task_waits(seed: int | None) -> None:
    async def main() -> list[int]:
        steps: list[int] = []

        async def walk() -> None:
            for step in range(100):
                await asyncio.sleep(0)
                steps.append(step)
            await asyncio.sleep(1)

        task = asyncio.create_task(walk())
        await settle()
        walked = list(steps)
        await task
        return walked

    assert run(main, seed=seed) == list(range(100))


def test_settle_takes_no_virtual_time() -> None:
    async def main() -> float:
        asyncio.get_running_loop().call_later(1, lambda: None)
        await settle()
        return now()

    assert run(main) == 0.0


def test_settle_waits_for_timers_that_become_due() -> None:
    async def main() -> list[str]:
        fired: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_later, 0, fired.append, "due")  # runs in the turn in which settle looks
        await settle()
        return list(fired)

    assert run(main) == ["due"]


def test_settle_waits_for_what_sockets_have_to_say() -> None:
    async def main() -> bytes:
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            received: list[bytes] = []
            loop = asyncio.get_running_loop()
            loop.add_reader(left, lambda: received.append(left.recv(10)))
            loop.call_soon(right.send, b"hello")  # runs in the turn in which settle looks
            await settle()
            loop.remove_reader(left)
        return b"".join(received)

    assert run(main) == b"hello"


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_several_tasks_may_settle_at_once(seed: int | None) -> None:
    async def main() -> None:
        await asyncio.gather(*(settle() for _ in range(5)))

    run(main, seed=seed)


def test_a_cancelled_settle_does_not_confuse_the_next_one() -> None:
    async def main() -> list[int]:
        steps: list[int] = []

        async def walk() -> None:
            for step in range(10):
                await asyncio.sleep(0)
                steps.append(step)

        walker = asyncio.create_task(walk())
        cancelled = asyncio.create_task(settle())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        assert not walker.done()
        await settle()
        return steps

    assert run(main) == list(range(10))


def test_settle_gives_up_on_a_task_that_is_always_busy() -> None:
    async def busy() -> None:
        while True:
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(busy(), name="busy")
        try:
            await settle(turns=50)
        finally:
            task.cancel()
            await asyncio.wait([task])

    with pytest.raises(RuntimeError, match=r"(?s)not settled after 50 turns.*'busy'"):
        run(main)


def test_settle_on_another_loop_takes_a_bounded_number_of_turns() -> None:
    async def main() -> int:
        turns = 0

        async def busy() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(busy())
        await settle()
        task.cancel()
        return turns

    assert 90 <= asyncio.run(main()) <= 110


# ---------------------------------------------------------------------------------------------- ManualHandler


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
            with pytest.raises(LookupError, match="no call with job 'job' waits"):
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


# -------------------------------------------------------------------------------------------------- cancel_at


async def three_suspensions() -> str:
    await asyncio.sleep(0)
    await asyncio.sleep(1)
    await asyncio.create_task(asyncio.sleep(2))
    return "value"


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("late", [False, True])
def test_a_sweep_cancels_at_each_suspension_until_the_call_completes(late: bool, seed: int | None) -> None:
    async def main() -> list[tuple[bool, bool, str | None]]:
        results: list[tuple[bool, bool, str | None]] = []
        for step in itertools.count(1):
            result = await cancel_at(step, three_suspensions, late=late)
            results.append((result.completed, result.cancelled, result.value))
            if result.completed:
                return results
        raise AssertionError

    assert run(main, seed=seed) == [(False, True, None)] * 3 + [(True, False, "value")]


def test_a_sweep_works_on_any_loop() -> None:
    async def once() -> str:
        await asyncio.sleep(0)
        return "value"

    async def main() -> list[bool]:
        return [(await cancel_at(step, once)).completed for step in (1, 2)]

    assert asyncio.run(main()) == [False, True]


def test_the_cancellation_comes_once() -> None:
    async def main() -> tuple[str | None, float]:
        async def cleans_up() -> str:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                await asyncio.sleep(1)
            return "cleaned up"

        result = await cancel_at(1, cleans_up)
        assert (result.completed, result.cancelled) == (False, False)
        return result.value, now()

    assert run(main) == ("cleaned up", 2.0)


def test_a_late_cancellation_finds_the_item_taken_but_not_yet_received() -> None:
    async def main(late: bool) -> bool:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def open_gate() -> None:
            if not gate.done():
                gate.set_result(None)

        asyncio.get_running_loop().call_later(1, open_gate)

        async def wait() -> None:
            await gate

        result = await cancel_at(1, wait, late=late)
        assert result.cancelled
        return gate.cancelled()

    assert run(lambda: main(late=False)) is True
    assert run(lambda: main(late=True)) is False


def test_the_own_error_of_the_call_is_raised() -> None:
    async def broken() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        run(lambda: cancel_at(1, broken))


def test_a_cancelled_sweep_cancels_its_call_and_waits_for_that() -> None:
    async def main() -> list[float]:
        ends: list[float] = []

        async def cleans_up() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(5)
                ends.append(now())

        task = asyncio.create_task(cancel_at(10, cleans_up))
        await settle()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return ends

    assert run(main) == [5.0]


def test_steps_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="step must be >= 1, got 0"):
        run(lambda: cancel_at(0, forever))


# -------------------------------------------------------------------------------------------- as loop factory


def test_asyncio_run_takes_the_loop_as_a_factory() -> None:
    async def main() -> float:
        await asyncio.sleep(100)
        return now()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == 100.0
    if sys.version_info >= (3, 12):
        assert asyncio.run(main(), loop_factory=VirtualTimeLoop) == 100.0


def run_pytest(folder: Path, conftest: str, test: str, ini: str, *options: str) -> str:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text(test)
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n")
    root = Path(asyncpool.testing.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_pytest_asyncio_runs_tests_on_virtual_time(tmp_path: Path) -> None:
    pytest.importorskip("pytest_asyncio")
    conftest = """
from asyncpool.testing import VirtualTimeLoop
def pytest_asyncio_loop_factories(config, item):
    return {"virtual": VirtualTimeLoop}
"""
    test = """
import asyncio, pytest
from asyncpool.testing import VirtualTimeLoop
@pytest.mark.asyncio
async def test_sleep():
    await asyncio.to_thread(int)
    await asyncio.sleep(86400)
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
"""
    assert "1 passed" in run_pytest(tmp_path, conftest, test, "asyncio_default_fixture_loop_scope = function")


def test_the_pytest_plugin_of_anyio_runs_tests_and_fixtures_on_virtual_time(tmp_path: Path) -> None:
    conftest = """
import anyio, pytest
from asyncpool.testing import VirtualTimeLoop
@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": VirtualTimeLoop}
@pytest.fixture
async def slow(anyio_backend):
    await anyio.sleep(3600)
    yield anyio.current_time()
    await anyio.sleep(3600)
"""
    test = """
import anyio, pytest
@pytest.mark.anyio
async def test_sleep(slow):
    await anyio.to_thread.run_sync(int)
    await anyio.sleep(3600)
    assert (slow, anyio.current_time()) == (3600.0, 7200.0)
"""
    assert "1 passed" in run_pytest(tmp_path, conftest, test, "", "-p", "no:asyncio")
