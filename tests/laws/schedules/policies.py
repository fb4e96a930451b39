"""Scenarios of scaling policies: replaced, misbehaving, or meeting all that can go wrong."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from asyncpool import Adaptive, Decision, PoolClosed, PoolLoad, QueueFull, Retry
from asyncpool.events import PoolResized
from asyncpool.testing import settle
from tests.laws.schedules.tools import Doors, Rogue, all_done, any_size, pass_time, patience, read_all, scenario, sizes
from tests.laws.witness import RETRIED, Item, Meter, Witness, ended, spawn


@scenario
async def a_policy_is_asked_when_something_has_changed(witness: Witness, random: Random) -> None:
    """Within an interval, and else not at all: a pool in which nothing happens costs nothing."""
    asked: list[float] = []
    loop = asyncio.get_running_loop()

    def steady(load: PoolLoad) -> int:
        asked.append(load.now)
        return 2

    options: dict[str, Any] = {"resource": Doors(random)} if random.random() < 0.3 else {}
    retry = Retry(attempts=2, backoff=300.0, max_backoff=300.0, jitter=False)
    async with witness.make_pool(workers=steady, queue_size=1, retry=retry, **options) as pool:

        async def nothing_happens(seconds: float) -> None:
            await asyncio.sleep(20.0)
            count = len(asked)
            await asyncio.sleep(seconds - 20.0)
            assert len(asked) == count

        async def was_asked() -> None:
            now = loop.time()
            await asyncio.sleep(0.1)
            await settle()
            assert asked[-1] >= now

        await nothing_happens(100.0)
        for item in witness.items(2, "hang"):
            await witness.submit(item)
        await was_asked()
        waiting = await witness.submit(witness.item("ok"))
        await was_asked()
        await nothing_happens(100.0)
        for what in random.sample(("wait", "refuse", "pause", "end", "retry"), 2):
            match what:
                case "wait":
                    task = spawn(witness.submit(witness.item("ok")))
                    await was_asked()
                    task.cancel()
                    await ended(task)
                case "refuse" if not waiting.done():
                    with pytest.raises(QueueFull):
                        pool.submit_nowait(witness.item("ok"))
                    await was_asked()
                case "pause":
                    pool.pause()
                    await was_asked()
                    await nothing_happens(100.0)
                    pool.resume()
                    await was_asked()
                case "end" if not witness.handles[0].done():
                    witness.handles[0].cancel()
                    await was_asked()
                case "retry":
                    witness.handles[0].cancel()
                    await pool.submit(witness.item("ok"))
                    witness.others += 1
                    handle = await witness.submit(witness.item("flaky1"))
                    await nothing_happens(300.0)
                    await handle.outcome()
                    await was_asked()
        for handle in witness.handles:
            handle.cancel()
    assert not (await witness.check_end())


@scenario
async def the_policy_is_replaced_from_everywhere(witness: Witness, random: Random) -> None:
    """From jobs, observers, sources, and all functions that a pool asks, the policy itself among them."""
    left = 20

    def swap(chance: float = 0.15) -> None:
        nonlocal left
        if left and random.random() < chance:
            left -= 1
            with suppress(PoolClosed):
                witness.resize(Rogue(restless) if random.random() < 0.3 else any_size(random))

    def restless(load: PoolLoad) -> Decision:
        swap()
        return Decision(random.randint(0, 4), "restless")

    async def handler(item: Item, resource: object = None) -> int:
        swap()
        try:
            return await witness.handle(item)
        finally:
            swap()

    def key(item: Item) -> int:
        swap()
        return item.n % 3

    def limit(item: Item) -> None:
        swap()

    def again(error: BaseException) -> bool:
        swap()
        return True

    def source(items: list[Item]) -> Any:
        for item in witness.source(items):
            swap()
            yield item

    options: dict[str, Any] = {"priority": key} if random.random() < 0.3 else {}
    options["limiter"] = limit if random.random() < 0.3 else None
    if random.random() < 0.3:
        options["resource"] = Doors(random)
    pool = witness.make_pool(
        handler=handler,
        observe=random.random() < 0.7,
        observers=[lambda _: swap(0.05)],
        retry=patience(random, on=again),
        **{**sizes(random), "workers": Rogue(restless)},
        **options,
    )
    async with pool:
        tasks = [spawn(witness.submit(witness.item(*RETRIED))) for _ in range(8)]
        tasks.append(spawn(read_all(pool.outcomes(source(witness.items(4, *RETRIED))))))
        for _ in range(4):
            await pass_time(random)
            await settle()
            witness.check_settled()
        if random.random() < 0.8:
            await ended(*tasks)
            await all_done(pool)
    await ended(*tasks)
    assert not (await witness.check_end())


@scenario
async def policies_do_as_they_like(witness: Witness, random: Random) -> None:
    """They raise, answer with anything, and use the pool that asks them. Jobs are done for all that."""
    tasks: list[asyncio.Task[Any]] = []
    loop = asyncio.get_running_loop()
    is_paused = False
    garbage: tuple[Any, ...] = (
        None,
        3,
        "many",
        Decision(-1),
        Decision(1.5),  # type: ignore[arg-type]
        Decision(True),
        Decision(2, ask_again_in=-1.0),
        Decision(2, ask_again_after_failures=0),
        Decision(2, ask_again_at_backlog=-1),
    )

    again: tuple[dict[str, Any], ...] = (
        {},
        {"ask_again_in": 0.0},
        {"ask_again_in": 0.01},
        {"ask_again_at_backlog": 0},
        {"ask_again_at_backlog": 2, "ask_again_in": 0.5},
    )

    def resume() -> None:
        nonlocal is_paused
        is_paused = False
        with suppress(PoolClosed):
            pool.resume()

    def act(load: PoolLoad | None) -> Any:
        nonlocal is_paused
        with suppress(PoolClosed, QueueFull):
            match random.randint(0, 16):
                case 0:
                    raise random.choice((ValueError, SystemExit, asyncio.CancelledError))("a policy")
                case 1:
                    return random.choice(garbage)
                case 2 | 3:
                    witness.handles.append(pool.submit_nowait(witness.item(*RETRIED)))
                case 4 | 5 if len(tasks) < 20:
                    tasks.append(spawn(witness.submit(witness.item(*RETRIED))))
                case 6 if witness.handles:
                    random.choice(witness.handles).cancel()
                case 7:
                    pool.pause()
                    is_paused = True
                    loop.call_later(0.01, resume)
                case 8 if random.random() < 0.3:
                    witness.resize(Rogue(lambda _: 1 // 0, max_workers=random.randint(1, 3)))
                case 8 if random.random() < 0.7:
                    witness.resize(
                        Rogue(act, max_workers=random.randint(1, 4)) if random.random() < 0.7 else any_size(random)
                    )
                case 9 if random.random() < 0.1:
                    is_paused = False
                    random.choice((pool.cancel, pool.drain))()
                case 10:
                    raise RuntimeError("a policy") from None
                case _:
                    pass
        return Decision(random.choice((0, 0, 1, 2, 5)), "as I like", **random.choice(again))

    def answer(load: PoolLoad) -> Any:
        decision = act(load)
        return min(decision.workers, 5) if isinstance(decision, Decision) and load.now < 1.0 else 1

    def observe(event: object) -> None:
        if isinstance(event, PoolResized) and random.random() < 0.2:
            with suppress(PoolClosed, QueueFull):
                witness.handles.append(pool.submit_nowait(witness.item("ok", "nap")))

    pool = witness.make_pool(
        observe=random.random() < 0.7,
        observers=[observe],
        retry=patience(random),
        **{**sizes(random), "workers": Rogue(act) if random.random() < 0.7 else answer},
    )
    async with pool:
        with suppress(PoolClosed):
            for item in witness.items(6, *RETRIED):
                tasks.append(spawn(witness.submit(item)))
                await pass_time(random)
                if pool.report is None and not is_paused:
                    await settle()
                    witness.check_settled(is_paused=is_paused, is_open=False)
        await ended(*tasks)
        async with asyncio.timeout(600.0):
            await pool.join()  # and while it tells us, the policy may bring more
    await ended(*tasks)
    await witness.check_end()
    for task in tasks:
        assert isinstance(task.exception(), (PoolClosed, type(None)))


@scenario
async def adaptive_meets_all_that_can_go_wrong(witness: Witness, random: Random) -> None:
    """Times from nothing to seconds, failures, pauses, limits: it may decide as it likes, but within its bounds."""
    least = random.randint(1, 2)
    most = random.randint(least, 6)
    options: dict[str, Any] = {}
    match random.randint(0, 3):
        case 0:
            options["limiter"] = witness.keys(3, random.choice((20.0, 500.0)), 2)
        case 1:
            options["limiter"] = Meter(random.choice((50.0, 1000.0)), 1.0, 2)
        case 2:
            options["priority"] = lambda item: item.n % 3
    if random.random() < 0.5:
        options["timeout"] = 0.5
    pool = witness.make_pool(
        workers=Adaptive(least, most, interval=random.choice((0.001, 0.02)), overload=random.choice(((), ValueError))),
        queue_size=random.choice((0, 5, None)),
        retry=patience(random),
        **options,
    )
    kinds = random.choice((("ok", "turn", "nap"), ("nap",), (*RETRIED, "nap", "slow"), ("later", "nap", "pausing")))
    async with pool:
        items = witness.items(random.choice((9, 30)), *kinds)
        reader = spawn(read_all(pool.outcomes(witness.any_source(items))))
        for _ in range(3):
            await pass_time(random)
            await settle()
            witness.check_settled()
            if random.random() < 0.2:
                pool.pause()
                await pass_time(random)
                pool.resume()
            if random.random() < 0.2:
                witness.resize(any_size(random))
        await ended(reader)
        assert len(reader.result()) == len(items)
        await all_done(pool)
    assert not (await witness.check_end())
