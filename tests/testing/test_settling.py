"""What `settle` promises."""

from __future__ import annotations

import asyncio
import socket

import pytest

from asyncpool.testing import run, settle
from tests.testing.helpers import now


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_settle_returns_when_every_other_task_waits(seed: int | None) -> None:
    async def main() -> list[int]:
        steps: list[int] = []

        async def walk() -> None:
            for step in range(100):
                await asyncio.sleep(0)
                steps.append(step)
            await asyncio.sleep(1)

        task = asyncio.create_task(walk())
        await settle()
        walked = list(steps)
        await task
        return walked

    assert run(main, seed=seed) == list(range(100))


def test_settle_takes_no_virtual_time() -> None:
    async def main() -> float:
        asyncio.get_running_loop().call_later(1, lambda: None)
        await settle()
        return now()

    assert run(main) == 0.0


def test_settle_waits_for_timers_that_become_due() -> None:
    async def main() -> list[str]:
        fired: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_later, 0, fired.append, "due")  # runs in the turn in which settle looks
        await settle()
        return list(fired)

    assert run(main) == ["due"]


def test_settle_waits_for_what_sockets_have_to_say() -> None:
    async def main() -> bytes:
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            received: list[bytes] = []
            loop = asyncio.get_running_loop()
            loop.add_reader(left, lambda: received.append(left.recv(10)))
            loop.call_soon(right.send, b"hello")  # runs in the turn in which settle looks
            await settle()
            loop.remove_reader(left)
        return b"".join(received)

    assert run(main) == b"hello"


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_several_tasks_may_settle_at_once(seed: int | None) -> None:
    async def main() -> None:
        await asyncio.gather(*(settle() for _ in range(5)))

    run(main, seed=seed)


def test_a_cancelled_settle_does_not_confuse_the_next_one() -> None:
    async def main() -> list[int]:
        steps: list[int] = []

        async def walk() -> None:
            for step in range(10):
                await asyncio.sleep(0)
                steps.append(step)

        walker = asyncio.create_task(walk())
        cancelled = asyncio.create_task(settle())
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        assert not walker.done()
        await settle()
        return steps

    assert run(main) == list(range(10))


def test_settle_gives_up_on_a_task_that_is_always_busy() -> None:
    async def busy() -> None:
        while True:
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(busy(), name="busy")
        try:
            await settle(turns=50)
        finally:
            task.cancel()
            await asyncio.wait([task])

    with pytest.raises(RuntimeError, match=r"(?s)not settled after 50 loop iterations.*'busy'"):
        run(main)


def test_settle_on_another_loop_takes_a_bounded_number_of_turns() -> None:
    async def main() -> int:
        turns = 0

        async def busy() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(busy())
        await settle()
        task.cancel()
        return turns

    assert 90 <= asyncio.run(main()) <= 110
