"""The timer heap by itself: one timer, in order, and nothing left of what is no longer live."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

from asyncpool._core.timers import TimerHeap
from tests.helpers import now, virtual


class Thing:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_live = True


class Clock:
    """A heap of things, and what rang when."""

    def __init__(self) -> None:
        self.rung: list[tuple[float, str]] = []
        self.alarms: TimerHeap[Thing] = TimerHeap(self.ring, lambda thing: thing.is_live)
        self.loop: Any = asyncio.get_running_loop()
        self.alarms.open(self.loop, copy_context())

    def ring(self, thing: Thing) -> None:
        self.rung.append((now(), thing.name))

    def set(self, when: float, name: str) -> Thing:
        thing = Thing(name)
        self.alarms.schedule(when, thing)
        return thing

    def kill(self, thing: Thing) -> None:
        thing.is_live = False
        self.alarms.discard(thing)

    @property
    def timers(self) -> int:
        return sum(not timer.cancelled() for timer in self.loop._scheduled)


@virtual
async def test_they_ring_in_the_order_of_their_times_then_of_their_setting() -> None:
    clock = Clock()
    for when, name in [(3.0, "c"), (1.0, "a"), (2.0, "b"), (1.0, "a, later"), (-5.0, "over already")]:
        clock.set(when, name)
        assert clock.timers == 1
    await asyncio.sleep(5)
    assert clock.rung == [(0.0, "over already"), (1.0, "a"), (1.0, "a, later"), (2.0, "b"), (3.0, "c")]
    assert (clock.alarms.size, clock.timers) == (0, 0)


@virtual
async def test_the_dead_do_not_ring_and_do_not_count() -> None:
    clock = Clock()
    things = [clock.set(1.0, str(number)) for number in range(200)]
    for thing in things[:150]:
        clock.kill(thing)
    assert clock.alarms.size == len(list(clock.alarms)) == 50
    assert len(clock.alarms._heap) < 150  # swept
    await asyncio.sleep(2)
    assert [name for _, name in clock.rung] == [str(number) for number in range(150, 200)]
    assert clock.alarms.size == 0


@virtual
async def test_a_few_dead_are_passed_over_when_their_time_comes() -> None:
    clock = Clock()
    dead, _ = clock.set(1.0, "dead"), clock.set(2.0, "living")
    clock.kill(dead)
    await asyncio.sleep(3)
    assert clock.rung == [(2.0, "living")]
    assert clock.alarms.size == 0


@virtual
async def test_nobody_is_woken_for_the_dead_alone() -> None:
    clock = Clock()
    clock.kill(clock.set(3600.0, "dead"))
    assert (clock.alarms.size, clock.timers) == (0, 0)
    clock.set(1.0, "next")
    await asyncio.sleep(2)
    assert clock.rung == [(1.0, "next")]


@virtual
async def test_the_loop_has_its_turn_while_many_ring_at_once() -> None:
    clock = Clock()
    for number in range(2000):
        clock.set(1.0, str(number))
    await asyncio.sleep(1)
    turns = 0
    while clock.alarms.size:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 3
    assert len(clock.rung) == 2000
    assert {when for when, _ in clock.rung} == {1.0}


@virtual
async def test_ringing_may_set_alarms() -> None:
    clock = Clock()

    def ring(thing: Thing) -> None:
        clock.rung.append((now(), thing.name))
        if len(clock.rung) < 4:
            clock.alarms.schedule(now() + 1.0, Thing(thing.name))

    clock.alarms._on_due = ring
    clock.set(1.0, "again")
    await asyncio.sleep(10)
    assert [when for when, _ in clock.rung] == [1.0, 2.0, 3.0, 4.0]


@virtual
async def test_cleared_they_ring_no_more() -> None:
    clock = Clock()
    clock.set(1.0, "never")
    clock.alarms.clear()
    assert clock.timers == 0
    await asyncio.sleep(2)
    assert clock.rung == []
