"""Scenarios of dead letters: replayed and watched."""

from __future__ import annotations

from random import Random
from typing import Any

from asyncpool import PoolClosed
from tests.laws.schedules.tools import all_done, pass_time, patience, scenario, sizes, turns
from tests.laws.witness import Letters, Witness, ended, spawn


@scenario
async def dead_letters_are_replayed_into_a_pool_that_closes(witness: Witness, random: Random) -> None:
    letters = Letters(random.choice((3, 100)))
    async with witness.make_pool(dead_letters=letters, retry=None, **sizes(random)):
        for item in witness.items(8, "fail", "turn_fail", "crash"):
            await witness.submit(item)
    await witness.check_end()
    assert len(letters) + letters.dropped == len(letters.recorded) == 8

    again = Witness(random)
    kept = letters if random.random() < 0.5 else Letters()
    pool = again.make_pool(dead_letters=kept, retry=patience(random), **sizes(random))
    before, dropped, removed = len(letters), letters.dropped, 0
    kept.recorded.clear()
    await pool.start()
    where = random.choice((None, lambda letter: letter.job.n % 2 == 0))
    replays = [spawn(letters.replay(again, where)) for _ in range(random.randint(1, 3))]
    for _ in range(3):
        await pass_time(random)
        if random.random() < 0.3:
            random.choice(replays).cancel()
        if random.random() < 0.2 and len(letters):
            removed += letters.remove(random.choice(list(letters)))
    if random.random() < 0.5:
        random.choice((pool.cancel, pool.drain))()
    else:
        await ended(*replays)
        await all_done(pool)
    await pool.close()
    await ended(*replays)
    await again.check_end()
    for replay in replays:
        assert replay.cancelled() or isinstance(replay.exception(), (PoolClosed, type(None)))
    # Each letter is in the store, or its job was accepted, once; one that was taken out in that moment may be both.
    there_were = before + (len(letters.recorded) if kept is letters else 0)
    there_are = len(letters) + len(again.handles) + letters.dropped - dropped
    assert there_were - removed <= there_are <= there_were
    assert removed or there_are == there_were
    assert kept is letters or len({handle.job.n for handle in again.handles}) == len(again.handles)


@scenario
async def dead_letters_are_watched(witness: Witness, random: Random) -> None:
    letters = Letters(random.choice((2, 100)))
    seen: list[tuple[int, list[Any], Any]] = []

    async def reading() -> None:
        watch = letters.watch(max_unseen=random.choice((1, 2, 100)))
        read: list[Any] = []
        seen.append((len(letters.recorded), read, watch))
        while True:
            step = spawn(anext(watch))
            if random.random() < 0.3:
                await turns(random, 2)
                step.cancel()
            await ended(step)
            if step.cancelled():
                await turns(random, 2)
                continue
            if isinstance(step.exception(), (StopAsyncIteration, RuntimeError)):
                return
            read.append(step.result())
            await pass_time(random)

    readers = [spawn(reading())]
    pool = witness.make_pool(dead_letters=letters, retry=patience(random), **sizes(random))
    async with pool:
        kinds = ("fail", "turn_fail", "flaky1", "ok", "permanent")
        tasks = [spawn(witness.submit(witness.item(*kinds))) for _ in range(9)]
        for _ in range(2):
            await pass_time(random)
            readers.append(spawn(reading()))
            letters.watch()  # and nobody reads it
        if random.random() < 0.3:
            pool.cancel()
        await ended(*tasks)
    await ended(*readers)
    await witness.check_end()
    for first, read, watch in seen:
        # In their order, without those that were passed over. One that began to watch too late got none.
        rest = iter(letters.recorded[first:])
        assert all(any(letter is other for other in rest) for letter in read)
        assert len(read) + watch.skipped == len(letters.recorded) - first
