"""How dead letters are listed: what one page costs, what many cost, and letters that are hard to show."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from asyncpool import DeadLetterFile, DeadLetters, WorkerPool
from tests.dashboard.tools import act, acting_views_of, ask, value_of, views_of
from tests.helpers import virtual

LETTERS = "/api/pools/0/letters"


async def refuse(job: object) -> None:
    raise ConnectionError("refused")


@virtual
async def test_pages_share_a_listing_until_the_page_changes_something() -> None:
    class Counting(DeadLetters[Any]):
        reads = 0

        def __iter__(self) -> Any:
            self.reads += 1
            return super().__iter__()

    letters = Counting()
    async with WorkerPool(refuse, workers=1, dead_letters=letters) as pool:
        await pool.outcomes(range(2))
        views = acting_views_of(pool)
        before = letters.reads
        found = [value_of(await ask(views, LETTERS)) for _ in range(50)]
        assert [listing["stored"] for listing in found] == [2] * 50
        assert letters.reads == before + 1
        await pool.outcomes(range(1))
        old = value_of(await ask(views, LETTERS))
        assert old["stored"] == 2
        await act(views, "discard", letter=old["groups"][0]["letters"][0]["key"])
        new = value_of(await ask(views, LETTERS))
        assert new["stored"] == 2
        assert new["version"] != old["version"]
        await pool.outcomes(range(1))
        await asyncio.sleep(3)
        assert value_of(await ask(views, LETTERS))["stored"] == 3


@virtual
async def test_a_listing_that_a_discard_overtakes_is_not_kept() -> None:
    is_read, can_end = asyncio.Event(), asyncio.Event()
    letters: DeadLetters[Any] = DeadLetters()
    async with WorkerPool(refuse, workers=1, dead_letters=letters) as pool:
        await pool.outcomes(range(2))
        views = acting_views_of(pool)
        shelf: Any = views.live.readers[0].shelf
        read = shelf.listing

        async def read_slowly() -> Any:
            listing = await read()
            is_read.set()
            await can_end.wait()
            return listing

        shelf.listing = read_slowly
        slow = asyncio.create_task(ask(views, LETTERS))
        await is_read.wait()
        await act(views, "discard", all=True)
        can_end.set()
        assert value_of(await slow)["stored"] == 2
        assert value_of(await ask(views, LETTERS))["stored"] == 0


@virtual
async def test_slow_reprs_are_described_in_the_next_listings() -> None:
    class Slow:
        def __repr__(self) -> str:
            loop: Any = asyncio.get_running_loop()
            loop._now += 0.008
            return "slow"

    async with WorkerPool(refuse, workers=1, dead_letters=DeadLetters[Any]()) as pool:
        await pool.outcomes([Slow() for _ in range(4)])
        views = views_of(pool)
        for expected in (["slow"] * 3 + [None], ["slow"] * 4):
            (group,) = value_of(await ask(views, LETTERS))["groups"]
            assert [letter["job"] for letter in group["letters"]] == expected
            await asyncio.sleep(3)


class Order:
    """A job without a `__repr__`: that of `object` has its address."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_a_letter_of_a_file_is_found_although_its_job_has_another_address_each_time(tmp_path: Path) -> None:
    runs: list[int] = []

    async def handler(order: Order) -> None:
        runs.append(order.number)
        if len(runs) <= 3:
            raise ConnectionError("refused")

    async def main() -> None:
        letters = DeadLetterFile[Order](tmp_path / "letters", encode=lambda order: order.number, decode=Order)
        async with WorkerPool(handler, workers=1, dead_letters=letters) as pool:
            await pool.outcomes(map(Order, range(3)))
            views = acting_views_of(pool)
            (group,) = value_of(await ask(views, LETTERS))["groups"]
            assert await act(views, "replay", letter=group["letters"][0]["key"]) == "Replayed 1 job."
            await pool.join()
        assert runs == [0, 1, 2, 2]

    asyncio.run(main())


def test_letters_of_a_file_that_cannot_be_replayed_are_counted(tmp_path: Path) -> None:
    async def main() -> None:
        letters = DeadLetterFile[Any](tmp_path / "letters")
        async with WorkerPool(refuse, workers=1, dead_letters=letters) as pool:
            await pool.outcomes([1, object(), object()])
            found = value_of(await ask(views_of(pool), LETTERS))
            assert (found["stored"], found["unreplayable"]) == (1, 2)

    asyncio.run(main())


def test_numbers_of_a_file_that_json_does_not_have_are_not_sent(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "letters"
        about = {"job": 1, "error_type": "OSError", "error": "", "attempts": 1, "first_at": 0, "pool": "pool"}
        lines = [json.dumps({"id": f"a.{last}.1", "last_at": last, **about}) for last in ("nan", "inf")]
        path.write_text("\n".join(lines) + "\n")
        pool = WorkerPool(refuse, workers=1, dead_letters=DeadLetterFile[Any](path))
        response = await ask(views_of(pool), LETTERS)
        assert (response.status, b"NaN" in response.body, b"Infinity" in response.body) == (200, False, False)
        assert value_of(response)["groups"][0]["count"] == 2

    asyncio.run(main())
