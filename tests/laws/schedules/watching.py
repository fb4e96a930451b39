"""Scenarios of a dashboard: pages are read, and people act on the pool, while everything else goes on."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random

from tests.dashboard.tools import acting_views_of, ask, events, state_of
from tests.laws.schedules.tools import all_done, pass_time, patience, scenario, sizes
from tests.laws.witness import RETRIED, Letters, Witness, ended, spawn


@scenario
async def a_dashboard_is_used_while_its_pool_runs(witness: Witness, random: Random) -> None:
    """What it shows adds up at every moment, and what people do on it breaks no law."""
    letters = Letters(random.choice((3, 100)))
    pool = witness.make_pool(dead_letters=letters, retry=patience(random), **sizes(random))
    views = acting_views_of(pool)

    async def read_page() -> None:
        places = ("queued", "delayed", "running", "succeeded", "failed", "cancelled")
        async with aclosing(events(views)) as stream:
            async for event in stream:
                (shown,) = event["now"][0]
                assert shown["submitted"] == sum(shown[name] for name in places)
                assert len(shown["jobs"]) == min(shown["running"], 10)
                await pass_time(random)

    async def act() -> None:
        action, arguments = random.choice(
            (
                ("pause", {}),
                ("resume", {}),
                ("cancel", {"job": random.randint(1, 14)}),
                ("discard", {"all": True}),
                ("drain", {}) if random.random() < 0.2 else ("resume", {}),
            )
        )
        if action == "resume":  # it also ends the pauses that jobs have requested
            witness.pause_ends = min(witness.pause_ends, asyncio.get_running_loop().time())
        response = await ask(views, f"/api/pools/0/{action}", method="POST", json_body=arguments)
        assert response.status == 200 or (response.status == 409 and pool.state != "open"), response.body

    async with pool:
        pages = [spawn(read_page()) for _ in range(random.randint(1, 3))]
        kinds = (*RETRIED, "slow", "fail", "stubborn")
        acts = []
        tasks = [spawn(witness.submit(witness.item(*kinds))) for _ in range(12)]
        for _ in range(8):
            await pass_time(random)
            acts.append(spawn(act()))
            assert (await ask(views, "/api/pools/0/queued")).status == 200
            assert (await ask(views, "/api/pools/0/letters")).status == 200
            assert len(await state_of(views)) == 1
            if random.random() < 0.2:
                random.choice(pages).cancel()
        await ended(*acts)
        if random.random() < 0.5:
            pool.cancel()
        else:
            if pool.state == "open":
                pool.resume()
            await ended(*tasks)
            await all_done(pool)
        await ended(*tasks)
    for page in pages:
        page.cancel()
    await ended(*pages)
    assert [page.exception() for page in pages if not page.cancelled()] == []
    assert [act.exception() for act in acts] == [None] * 8
    assert views.live.streams == set()
    await witness.check_end()
