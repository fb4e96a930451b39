"""What the answers of a policy do: those that are numbers, garbage, and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from asyncpool import AutoScale, Decision, Event, JobHandle, PoolLoad, QueueFull, WorkerPool
from asyncpool.events import PoolResized
from asyncpool.testing import VirtualTimeLoop, run
from tests.helpers import assert_conserved, fuzzed, now, sleeper, virtual
from tests.scaling.tools import SOON, Connections, Own, Sizes, use


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged as an error of a policy."""
    caplog.set_level(logging.ERROR, logger="asyncpool")
    return lambda: [
        record.getMessage() for record in caplog.records if "the scaling policy raised" in record.getMessage()
    ]


@virtual
async def test_an_answer_is_applied_at_once() -> None:
    sizes = Sizes()
    policy = Own(lambda load: 6 if load.queued else 2)
    async with WorkerPool(sleeper, workers=policy, observers=[sizes]) as pool:
        for _ in range(10):
            await pool.submit(1)
        await asyncio.sleep(0.15)
        assert pool.stats.running == pool.stats.workers == 6
        await pool.join()
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 2
    assert sizes.sizes[0] == 2
    assert max(sizes.sizes) == 6


@virtual
async def test_an_answer_above_the_most_is_capped() -> None:
    async with WorkerPool(sleeper, workers=Own(1000, max_workers=7)) as pool:
        assert pool.stats.workers == pool.stats.target_workers == pool.stats.max_workers == 7


@virtual
async def test_an_answer_of_none_lets_the_pool_sleep() -> None:
    async with WorkerPool(sleeper, workers=lambda load: load.backlog and 3) as pool:
        assert pool.stats.workers == 0
        await pool.map([1] * 9)
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 0
        assert await pool.run(2) == 2


@fuzzed
async def test_an_answer_of_none_while_jobs_wait_leaves_one_worker() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 0) as pool:
        assert pool.stats.workers == 0
        assert await pool.map([1] * 5) == [1] * 5
        assert pool.stats.peak_running == 1
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 0


@fuzzed
async def test_surplus_workers_finish_their_jobs_first() -> None:
    policy = Own(lambda load: 4 if load.now < 5 else 1)
    async with WorkerPool(sleeper, workers=policy) as pool:
        handles = [await pool.submit(10) for _ in range(8)]
        await asyncio.sleep(1)
        assert pool.stats.running == 4
        assert [await handle for handle in handles] == [10] * 8
        assert pool.stats.workers == 1
        assert_conserved(pool)


GARBAGE = [
    pytest.param(None, id="None"),
    pytest.param("3", id="str"),
    pytest.param(2.5, id="float"),
    pytest.param(float("nan"), id="nan"),
    pytest.param(True, id="bool"),
    pytest.param(-1, id="negative"),
    pytest.param([3], id="list"),
    pytest.param(ValueError("not raised"), id="an error"),
]


def answers_with(garbage: Any, *, after: int) -> Callable[[PoolLoad], Any]:
    asked = 0

    def policy(load: PoolLoad) -> Any:
        nonlocal asked
        asked += 1
        if asked <= after:
            return 3
        if isinstance(garbage, BaseException):
            raise garbage
        return garbage

    return policy


@pytest.mark.parametrize("garbage", GARBAGE)
@virtual
async def test_a_garbage_answer_keeps_the_number_and_is_logged(garbage: Any, errors: Callable[[], list[str]]) -> None:
    async with WorkerPool(sleeper, workers=answers_with(garbage, after=1)) as pool:
        assert pool.stats.workers == 3
        await pool.map([0.1] * 30)
        assert pool.stats.workers == pool.stats.peak_running == 3
    assert errors()[0].startswith("pool 'pool': the scaling policy raised (occurrence 1)")
    assert "the pool keeps its 3 workers" in errors()[0]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(Decision(-1), id="negative"),
        pytest.param(Decision(True), id="bool"),
        pytest.param(Decision("3"), id="str"),  # type: ignore[arg-type]
        pytest.param(Decision(2, ask_again_in=-1), id="asks in the past"),
        pytest.param(Decision(2, ask_again_in=float("nan")), id="asks at no time"),
        pytest.param(Decision(2, ask_again_in=float("inf")), id="asks never"),
        pytest.param(Decision(2, ask_again_in="1"), id="asks in a str"),  # type: ignore[arg-type]
        pytest.param(Decision(2, ask_again_after_failures=0), id="asks after no failure"),
        pytest.param(Decision(2, ask_again_after_failures=True), id="asks after a bool"),
        pytest.param(Decision(2, ask_again_after_failures=1.5), id="asks after a float"),  # type: ignore[arg-type]
        pytest.param(Decision(2, ask_again_at_backlog=-1), id="asks below an empty queue"),
        pytest.param(Decision(2, ask_again_at_backlog=True), id="asks at a backlog of a bool"),
        pytest.param(Decision(2, ask_again_at_backlog=1.5), id="asks at half a job"),  # type: ignore[arg-type]
        pytest.param(7.0, id="a number"),
        pytest.param(Decision, id="the class"),
    ],
)
@virtual
async def test_a_garbage_decision_keeps_the_number_and_is_logged(garbage: Any, errors: Callable[[], list[str]]) -> None:
    policy = Own(lambda load: 3 if load.now == 0 else garbage)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.1] * 30)
        assert pool.stats.workers == pool.stats.peak_running == 3
    assert len(errors()) >= 1


@pytest.mark.parametrize(
    "error", [ValueError("bug"), SystemExit(1), asyncio.CancelledError(), StopIteration(), GeneratorExit()], ids=repr
)
@virtual
async def test_what_a_policy_raises_keeps_the_number_and_is_logged(
    error: BaseException, errors: Callable[[], list[str]]
) -> None:
    async with WorkerPool(sleeper, workers=answers_with(error, after=1)) as pool:
        assert await pool.map([0.1] * 30) == [0.1] * 30
        assert pool.stats.workers == pool.stats.peak_running == 3
    assert len(errors()) >= 1


@virtual
async def test_failures_of_a_policy_are_logged_at_the_first_second_fourth_eighth_time(
    errors: Callable[[], list[str]],
) -> None:
    policy = Own(lambda load: None)
    async with WorkerPool(sleeper, workers=policy) as pool:
        await pool.map([0.01] * 200)
    assert len(policy.loads) > 16
    assert [int(text.split("(occurrence ")[1].split(")")[0]) for text in errors()] == [1, 2, 4, 8, 16]


@virtual
async def test_a_policy_that_failed_is_asked_again(errors: Callable[[], list[str]]) -> None:
    def answer(load: PoolLoad) -> int:
        if load.now < 1:
            raise LookupError("no metrics yet")
        return 4

    async with WorkerPool(sleeper, workers=Own(answer)) as pool:
        await pool.map([0.01] * 200)
        assert pool.stats.workers == 4
    assert errors()


@virtual
async def test_the_first_failure_of_a_policy_that_replaced_another_is_logged(errors: Callable[[], list[str]]) -> None:
    async with WorkerPool(sleeper, workers=Own(lambda load: None)) as pool:
        await pool.map([0.01] * 50)
        logged = len(errors())
        pool.resize(Own(lambda load: None))
        assert len(errors()) == logged + 1
        assert "occurrence 1" in errors()[-1]


@fuzzed
async def test_a_policy_that_fails_does_not_keep_a_sleeping_pool_asleep() -> None:
    logging.getLogger("asyncpool").disabled = True
    try:
        policy = Own(lambda load: None, initial_workers=0)
        async with WorkerPool(sleeper, workers=policy) as pool:
            assert await pool.run(1) == 1
            assert now() == 1
    finally:
        logging.getLogger("asyncpool").disabled = False


def test_a_keyboard_interrupt_in_a_policy_goes_to_the_program_and_scaling_goes_on() -> None:
    def policy(load: PoolLoad) -> int:
        asked.append(load.now)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 2 if len(asked) < 6 else 4

    async def main() -> None:
        await pool.start()
        handles.extend([await pool.submit(0.1) for _ in range(40)])
        await pool.join()

    async def go_on() -> None:
        for handle in handles:
            await handle
        assert pool.stats.workers == 4
        await pool.close()

    asked: list[float] = []
    handles: list[JobHandle[float, float]] = []
    pool = WorkerPool(sleeper, workers=policy, queue_size=100)
    loop = VirtualTimeLoop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert len(asked) == 3
    for task in asyncio.all_tasks(loop):
        if task.get_name() == "Task-1":
            task.cancel()
    loop.run_until_complete(go_on())
    assert len(asked) > 6
    loop.close()


def test_a_keyboard_interrupt_in_a_policy_while_the_pool_starts_leaves_nothing_behind() -> None:
    def policy(load: PoolLoad) -> int:
        raise KeyboardInterrupt

    async def main() -> None:
        connections = Connections()
        try:
            async with WorkerPool(use, workers=policy, resource=connections):
                await asyncio.sleep(1)
        finally:
            assert connections.open == []

    with pytest.raises(KeyboardInterrupt):
        run(main)


@virtual
async def test_a_policy_may_look_at_the_pool_and_change_it() -> None:
    def policy(load: PoolLoad) -> int:
        assert pool.stats.target_workers == load.workers
        if load.now > 1:
            pool.resize(5)
            return 3
        return 2

    pool = WorkerPool(sleeper, workers=policy)
    async with pool:
        await pool.map([0.1] * 40)
        assert pool.stats.workers == pool.stats.max_workers == 5


@fuzzed
async def test_a_job_that_comes_while_the_pool_goes_to_sleep_wakes_it() -> None:
    handles: list[JobHandle[float, float]] = []

    def submit(event: Event) -> None:
        if isinstance(event, PoolResized) and event.new == 0 and len(handles) < 3:
            handles.append(pool.submit_nowait(1))

    pool = WorkerPool(sleeper, workers=AutoScale(0, 3, idle_timeout=1), observers=[submit])
    async with pool:
        await pool.run(1)
        await asyncio.sleep(20)
        assert [await handle for handle in handles] == [1] * 3
        assert pool.stats.workers == 0


@fuzzed
async def test_a_job_that_a_policy_submits_itself_is_done() -> None:
    handles: list[JobHandle[float, float]] = []

    def policy(load: PoolLoad) -> int:
        if len(handles) < 3:
            handles.append(pool.submit_nowait(1))
        return 0

    pool = WorkerPool(sleeper, workers=policy)
    async with pool:
        await asyncio.sleep(10)
        assert [await handle for handle in handles] == [1] * 3
        assert pool.stats.workers == 0


@fuzzed
async def test_a_priority_function_may_swap_the_policy_while_a_job_is_accepted() -> None:
    def key(job: float) -> float:
        pool.resize(lambda load: 0)
        return job

    pool = WorkerPool(sleeper, workers=lambda load: 1, priority=key)
    async with pool:
        assert await pool.run(1) == 1
        await asyncio.sleep(10)
        assert await pool.map([1, 2]) == [1, 2]
        assert pool.stats.workers in (0, 1)


@virtual
async def test_without_a_waiting_room_a_pool_whose_last_worker_retires_after_its_job_is_full() -> None:
    async with WorkerPool(sleeper, workers=lambda load: 0 if load.running else load.backlog, queue_size=0) as pool:
        handle = pool.submit_nowait(10)
        await asyncio.sleep(1)
        assert (pool.stats.target_workers, pool.stats.running) == (0, 1)
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await handle
        await pool.submit_nowait(1)


@virtual
async def test_a_sleeping_pool_that_is_paused_is_full_without_a_waiting_room() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(0, 3), queue_size=0) as pool:
        pool.pause()
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        pool.resume()
        await pool.submit_nowait(1)


@pytest.mark.parametrize("end", ["drain", "cancel"])
@virtual
async def test_a_policy_may_end_the_pool(end: str) -> None:
    def policy(load: PoolLoad) -> int:
        if load.now > 1:
            getattr(pool, end)()
        return 3

    pool = WorkerPool(sleeper, workers=policy)
    await pool.start()
    handles = [await pool.submit(0.5) for _ in range(9)]
    await asyncio.sleep(2)
    report = await pool.close()
    assert len(report.unfinished) == (0 if end == "drain" else 3)
    for handle in handles:
        await handle.outcome()
