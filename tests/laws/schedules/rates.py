"""Scenarios of rate limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest

from asyncpool import PoolClosed, QueueFull
from asyncpool.testing import settle
from tests.laws.schedules.tools import all_done, any_size, pass_time, patience, scenario, sizes, turns
from tests.laws.witness import RETRIED, Item, Meter, Witness, ended, gather_all, spawn


async def use_at_random(witness: Witness, random: Random) -> None:
    """Do this and that to a pool with rate limits, and look at it now and then."""
    pool = witness.pool
    is_paused = False
    tasks = [spawn(witness.submit(witness.item(*RETRIED))) for _ in range(10)]
    for _ in range(8):
        await pass_time(random)
        match random.randint(0, 7):
            case 0:
                tasks += [spawn(witness.submit(witness.item("ok", "nap", "flaky1"))) for _ in range(3)]
            case 1:
                random.choice(witness.meters).pause_for(random.choice((0.0, 0.01, 0.3)))
            case 2:
                witness.resize(any_size(random))
            case 3 if witness.handles:
                random.choice(witness.handles).cancel()
            case 4:
                pool.pause()
                is_paused = True
            case 5:
                pool.resume()
                is_paused = False
            case 6:
                random.choice(tasks).cancel()
            case _:
                await settle()
                witness.check_settled(is_paused=is_paused)
    pool.resume()
    await ended(*tasks)
    if random.random() < 0.7:
        await all_done(pool)


@scenario
async def the_rate_of_all_jobs_is_kept(witness: Witness, random: Random) -> None:
    meter = Meter(random.choice((3.0, 50.0)), 1.0, random.randint(1, 3))
    options: dict[str, Any] = {"priority": lambda item: item.n % 3} if random.random() < 0.3 else {}
    async with witness.make_pool(limiter=meter, retry=patience(random), **sizes(random), **options):
        await use_at_random(witness, random)
    assert not (await witness.check_end())


@scenario
async def the_rates_of_keys_are_kept(witness: Witness, random: Random) -> None:
    count = 70 if random.random() < 0.03 else 3  # with many, the idle ones are forgotten
    options: dict[str, Any] = {"priority": lambda item: item.n % 2} if random.random() < 0.3 else {}
    options["limiter"] = witness.keys(count, random.choice((3.0, 50.0)), random.randint(1, 2))
    options["max_delayed"] = random.choice((1, 4, 10_000))
    async with witness.make_pool(retry=patience(random), **sizes(random), **options) as pool:
        await use_at_random(witness, random)
        if count > 3:
            await gather_all(*[witness.submit(witness.item("ok")) for _ in range(150)])
            await all_done(pool)
    assert not (await witness.check_end())


@scenario
async def parked_jobs_start_in_the_moment_in_which_their_limit_opens(witness: Witness, random: Random) -> None:
    """With a worker for each, and whoever of them is cancelled."""
    rate, burst = random.choice((5.0, 7.0)), random.randint(1, 2)
    limiter = witness.keys(2, rate, burst)
    async with witness.make_pool(workers=16, limiter=limiter, retry=None) as pool:
        handles = [await witness.submit(witness.item("ok", "nap")) for _ in range(12)]
        await settle()  # else one of the first may be cancelled between its start and its first step
        for handle in random.sample(handles, random.randint(0, 5)):
            await pass_time(random)
            handle.cancel()
            if random.random() < 0.3:
                await settle()
                witness.check_settled()
        await all_done(pool)
        for key, meter in enumerate(witness.meters):
            ran = [number for number in witness.calls if number % 2 == key]  # in the order of their first calls
            assert ran == sorted(ran) or burst > 1  # of two that start at once, either may have its first step first
            assert len(meter.starts) == len(ran)
            for index, start in enumerate(meter.starts):
                # In the beginning all are there: so each starts as soon as the limit lets it.
                assert start == pytest.approx(max(0.0, index - burst + 1) / rate)
    assert not (await witness.check_end())


@scenario
async def two_pools_share_a_limit(witness: Witness, random: Random) -> None:
    other = Witness(random)
    meter = Meter(random.choice((4.0, 50.0)), 1.0, random.randint(1, 3), is_shared=True)
    first = witness.make_pool(limiter=meter, retry=patience(random), name="first", **sizes(random))
    if random.random() < 0.5:
        second = other.make_pool(limiter=meter, name="second", **sizes(random))
    else:
        other.meters, other.meter_of = [meter], lambda item: meter if item.n % 2 else None
        second = other.make_pool(
            limiter=lambda item: meter.limit if item.n % 2 else None, retry=patience(random), **sizes(random)
        )
    async with first, second:
        tasks = [spawn(one.submit(one.item(*RETRIED))) for _ in range(7) for one in (witness, other)]
        for _ in range(5):
            await pass_time(random)
            one = random.choice((witness, other))
            match random.randint(0, 3):
                case 0:
                    meter.pause_for(0.1)
                case 1 if one.handles:
                    random.choice(one.handles).cancel()
                case 2 if one is other and random.random() < 0.3:
                    second.cancel()
                case 3:
                    random.choice(tasks).cancel()
            if second.report is None:
                await settle()
                witness.check_settled()
        await ended(*tasks)
        await all_done(first)
    await witness.check_end()
    await other.check_end()


@scenario
async def a_limiter_function_does_as_it_likes(witness: Witness, random: Random) -> None:
    loop = asyncio.get_running_loop()
    semaphore, in_use = asyncio.Semaphore(2), 0
    slow_limit = Meter(5.0)

    @asynccontextmanager
    async def counted() -> AsyncIterator[None]:
        nonlocal in_use
        if random.random() < 0.1:
            raise ValueError("not now")
        async with semaphore:
            in_use += 1
            assert in_use <= 2
            try:
                await turns(random, 1)
                yield
            finally:
                in_use -= 1

    def limiter(item: Item) -> Any:
        witness.check()
        match random.randint(0, 12):
            case 0:
                raise random.choice((KeyError, SystemExit))(item.n)
            case 1:
                for handle in witness.handles:
                    if handle.job is item:
                        handle.cancel()
            case 2 if witness.handles:
                random.choice(witness.handles).cancel()
            case 3:
                with suppress(QueueFull, PoolClosed):
                    witness.handles.append(pool.submit_nowait(witness.item("ok", "flaky1")))
            case 4:
                with suppress(PoolClosed):
                    witness.resize(any_size(random))
            case 5:
                with suppress(PoolClosed):
                    pool.pause()
                    loop.call_later(0.01, lambda: None if pool.report else resume())
            case 6:
                return "a limit"
            case 7 if random.random() < 0.2:
                random.choice((pool.cancel, pool.drain))()
            case 8:
                return counted()
            case 9:
                slow_limit.limit.pause_for(0.05)
            case _:
                pass
        return slow_limit.limit if random.random() < 0.5 else None

    def resume() -> None:
        with suppress(PoolClosed):
            pool.resume()

    pool = witness.make_pool(limiter=limiter, retry=patience(random), **sizes(random))
    async with pool:
        tasks = [spawn(witness.submit(witness.item(*RETRIED))) for _ in range(10)]
        await ended(*tasks)
        await all_done(pool)
    await witness.check_end()
    assert not slow_limit.limit.users
    assert in_use == 0
    assert not semaphore.locked()
    for task in tasks:
        assert isinstance(task.exception(), (PoolClosed, type(None)))
