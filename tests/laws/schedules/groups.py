"""Scenarios of groups: many submitters, one reader."""

from __future__ import annotations

from random import Random
from typing import Any

from asyncpool import PoolClosed, StreamClosed
from asyncpool.groups import Producer
from asyncpool.testing import settle
from tests.laws.schedules.tools import scenario, sizes, turns
from tests.laws.witness import KINDS, Item, Witness, ended, spawn


@scenario
async def a_group_has_many_submitters_and_one_reader(witness: Witness, random: Random) -> None:
    read = []
    async with witness.make_pool(**sizes(random)) as pool:
        group = pool.group(window=random.choice((1, 2, None)), ordered=random.random() < 0.5)
        accepted = []

        async def bring() -> None:
            for item in witness.items(3):
                await group.submit(item)
                accepted.append(item.n)

        async def reading() -> None:
            async for outcome in group:
                read.append(outcome)
                await turns(random, 2)

        reader = spawn(reading())
        tasks = [spawn(bring()) for _ in range(4)]
        for task in random.sample(tasks, 2):
            await turns(random, 4)
            task.cancel()
        if random.random() < 0.5:
            await ended(*tasks)
        group.close_intake()
        await ended(*tasks, reader)
        assert reader.exception() is None
        assert sorted(outcome.job.n for outcome in read) == sorted(accepted)
        witness.others = len(accepted)
    assert not (await witness.check_end())


@scenario
async def a_group_is_cancelled_or_its_pool_closed(witness: Witness, random: Random) -> None:
    pool = witness.make_pool(**sizes(random))
    await pool.start()
    group = pool.group(window=random.choice((1, 3)))
    read = []

    async def bring() -> None:
        for item in witness.items(3, *KINDS):
            await group.submit(item)
            witness.others += 1

    async def reading() -> None:
        async for outcome in group:
            read.append(outcome)

    tasks = [spawn(bring()) for _ in range(3)] + [spawn(reading())]
    await turns(random, 10)
    match random.randint(0, 2):
        case 0:
            await group.aclose()
            assert pool.stats.running == pool.stats.queued == pool.stats.delayed == 0
        case 1:
            pool.cancel()
        case 2:  # nobody makes room, and still nobody waits on
            pool.pause()
            group.close_intake()
            await settle()
            assert all(task.done() for task in tasks[:3])
    await pool.close(drain_timeout=0.0)
    await ended(*tasks)
    for task in tasks:
        assert isinstance(task.exception(), (PoolClosed, StreamClosed, type(None))), task.exception()
    await witness.check_end()


@scenario
async def the_last_of_several_producers_ends_a_group(witness: Witness, random: Random) -> None:
    read: list[int] = []
    accepted: list[int] = []
    async with witness.make_pool(**sizes(random)) as pool:
        group = pool.group(window=random.choice((1, 2, None)))

        async def produce(producer: Producer[Item, Any]) -> None:
            async with producer:
                for item in witness.items(2):
                    await group.submit(item)
                    accepted.append(item.n)
                    await turns(random, 2)
                if random.random() < 0.3:
                    raise OSError("no more input")

        async def reading() -> None:
            async for outcome in group:
                read.append(outcome.job.n)
                await turns(random, 2)

        reader = spawn(reading())
        async with group.producer():
            tasks = [spawn(produce(group.producer())) for _ in range(random.randint(0, 4))]
            for task in list(tasks):
                if random.random() < 0.3:
                    await turns(random, 4)
                    task.cancel()
                    await ended(task)
                    tasks.remove(task)  # while we refer to a task that never began, so does it to its producer
                del task
        await ended(*tasks, reader)
        assert reader.exception() is None
        assert sorted(read) == sorted(accepted)
        witness.others = len(accepted)
    assert not (await witness.check_end())
