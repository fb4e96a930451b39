"""What a seed does to a schedule."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from asyncpool.testing import VirtualTimeLoop, fuzzing_task_factory, run, settle
from tests.testing.helpers import forever

needs_eager_tasks = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")


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
            loop.call_soon(partial(order.append, name))  # like the steps of C tasks, a partial has no name
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
