"""What `cancel_at` promises."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from asyncpool.testing import cancel_at, run, settle
from tests.testing.helpers import forever, now


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
