"""Scenarios of submitting: callers that are cancelled, impatient, or have a priority that raises."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any

from asyncpool import JobCrashed, QueueFull, Succeeded
from asyncpool.testing import settle
from tests.laws.schedules.tools import scenario, sizes, turns
from tests.laws.witness import KINDS, Item, Witness, ended, gather_all, spawn


@scenario
async def submitters_are_cancelled_while_they_wait(witness: Witness, random: Random) -> None:
    async with witness.make_pool(**sizes(random)) as pool:
        tasks = [spawn(witness.submit(witness.item())) for _ in range(12)]
        for task in random.sample(tasks, 5):
            await turns(random, 4)
            task.cancel()
        await ended(*tasks)
        witness.check()
        await pool.join()
        assert pool.stats.submitted == len(witness.handles)
    assert not (await witness.check_end())


@scenario
async def handles_and_their_readers_are_cancelled(witness: Witness, random: Random) -> None:
    async with witness.make_pool(**sizes(random)):
        readers = []

        async def submit() -> None:
            handle = await witness.submit(witness.item(*KINDS))
            readers.append(spawn(handle.outcome()))
            await turns(random, 5)
            if handle.job.kind in ("hang", "slow") or random.random() < 0.5:
                assert handle.cancel() or handle.done()

        await gather_all(*[submit() for _ in range(8)])
        for reader in random.sample(readers, 4):
            reader.cancel()
        await ended(*readers)
    report = await witness.check_end()
    assert not report.unfinished


@scenario
async def run_is_cancelled_with_its_job(witness: Witness, random: Random) -> None:
    async with witness.make_pool(**sizes(random)) as pool:

        async def use(item: Item) -> None:
            if_full: Any = random.choice(("wait", "raise"))
            witness.perhaps += 1
            try:
                assert await pool.run(item, if_full=if_full) == item.n
            except QueueFull:
                witness.perhaps -= 1
            except (ValueError, JobCrashed):
                pass

        tasks = [spawn(use(witness.item(*KINDS))) for _ in range(8)]
        await turns(random, 6)
        for task in tasks:
            task.cancel()
            await turns(random, 2)
        await ended(*tasks)
        # "waits until it has ended": nothing that was started for them is left.
        await settle()
        assert pool.stats.running == pool.stats.queued == pool.stats.delayed == 0
    await witness.check_end()


@scenario
async def the_impatient_do_not_overtake(witness: Witness, random: Random) -> None:
    async with witness.make_pool(**sizes(random)):
        tasks = [spawn(witness.submit(witness.item())) for _ in range(6)]
        for _ in range(10):
            item = witness.item()
            try:
                witness.submit_nowait(item)
            except QueueFull:
                pass
            witness.check()
            await turns(random, 2)
        await ended(*tasks)  # with somebody at the door all the time, those in the line are let in
    await witness.check_end()


@scenario
async def a_priority_that_raises_costs_only_its_job(witness: Witness, random: Random) -> None:
    def key(item: Item) -> int:
        if item.kind == "fail":
            raise TypeError("no key")
        return item.n % 3

    async with witness.make_pool(priority=key, **sizes(random)) as pool:

        async def read() -> None:
            async for _ in pool.outcomes(witness.any_source(witness.items(6, "turn", "fail", "ok"))):
                await turns(random, 2)

        async def bring(group: Any) -> None:
            for item in witness.items(3, "turn", "fail"):
                with suppress(TypeError):
                    await group.submit(item)
                    witness.others += 1

        group = pool.group(window=9)
        tasks = [spawn(witness.submit(witness.item("turn", "fail"))) for _ in range(5)]
        tasks += [spawn(read()), spawn(bring(group))]
        await ended(*tasks)
        group.close_intake()
        async for outcome in group:
            assert isinstance(outcome, Succeeded)
    await witness.check_end()
