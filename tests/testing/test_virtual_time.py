"""What `VirtualTimeLoop` promises of its clock."""

from __future__ import annotations

import asyncio
import math
from functools import partial

import anyio
import pytest

from asyncpool.testing import DeadlockError, VirtualTimeLoop, run, settle
from tests.testing.helpers import forever, now


def test_a_year_passes_in_a_moment() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 24 * 3600)
        return now()

    assert run(main) == 365 * 24 * 3600


def test_the_clock_starts_at_zero() -> None:
    async def main() -> float:
        return now()

    assert run(main) == 0.0


def test_the_clock_stands_still_while_tasks_have_something_to_do() -> None:
    async def main() -> float:
        asyncio.get_running_loop().call_later(1, lambda: None)
        for _ in range(1000):
            await asyncio.sleep(0)
        return now()

    assert run(main) == 0.0


def test_timers_fire_in_the_order_of_their_times() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def note(seconds: int) -> None:
            await asyncio.sleep(seconds)
            order.append(seconds)

        await asyncio.gather(*(note(seconds) for seconds in (3, 1, 2)))
        return order

    assert run(main) == [1, 2, 3]


@pytest.mark.parametrize("start", [0.0, 0.1, 1e3, 1e7, 1e9, 1e15, 1e300])
def test_a_timer_fires_exactly_on_time_however_late_it_is(start: float) -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        whens = [start, math.nextafter(start, math.inf), start * 1.1, start * 1.1 + 0.1 + 0.2]
        fired: list[float] = []
        done = asyncio.Event()

        def note_delay(when: float) -> None:
            fired.append(loop.time() - when)

        for when in whens:
            loop.call_at(when, partial(note_delay, when))
        loop.call_at(whens[-1], done.set)
        await done.wait()
        return fired

    assert run(main) == [0.0] * 4


def test_a_sleep_without_end_counts_as_no_timer() -> None:
    async def main() -> None:
        await asyncio.sleep(math.inf)

    with pytest.raises(DeadlockError):
        run(main, patience=0.1)


def test_timeouts_of_asyncio_and_anyio_fire_on_virtual_time() -> None:
    async def main() -> tuple[float, float]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await forever()
        first = now()
        with anyio.move_on_after(3600):
            await anyio.sleep_forever()
        return first, now()

    assert run(main) == (60.0, 3660.0)


def test_anyio_deadlines_that_differ_by_rounding_all_fire() -> None:
    async def main() -> int:
        fired = 0

        async def wait(seconds: float) -> None:
            nonlocal fired
            with anyio.move_on_after(seconds):
                await anyio.sleep_forever()
            fired += 1

        async with anyio.create_task_group() as group:
            for seconds in (0.3, 0.1 + 0.2, math.nextafter(0.3, 0.0)):
                group.start_soon(wait, seconds)
        return fired

    assert run(main) == 3


def test_loopback_tcp_works() -> None:
    async def main() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(100)
            writer.write(await reader.readline())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, asyncio.timeout(200):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        await settle()
        return answer

    assert run(main) == b"hello\n"


def test_patience_is_not_negative() -> None:
    with pytest.raises(ValueError, match="patience must be >= 0, got -1"):
        VirtualTimeLoop(patience=-1)
