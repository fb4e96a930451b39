"""The bells of a pool: which of them each change rings, and when jobs can end by the fast path.

The table that is tested is the one in the docstring of the module. Each of its cells is compared with what the method
of that name does.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from asyncpool._core import wakeups as module
from asyncpool._core.ledger import Ledger
from asyncpool._core.wakeups import Producers, Wakeups
from asyncpool.options import build_parts
from asyncpool.testing import settle
from tests.core.tools import make_ledger, make_state
from tests.helpers import cancel_soon, echo, now, virtual

START, SCALER, LINE, DEADLOCK, WAITERS = (
    "start jobs",
    "wake scaler",
    "let submitters in",
    "check for deadlock",
    "notify",
)
BELLS = (START, SCALER, LINE, DEADLOCK, WAITERS)
WINDOW = "window of a stream"


class FakeLine:
    """A line that records when it is asked to let somebody in. By default somebody waits in it."""

    def __init__(self, ring: Callable[[], None], waiting: tuple[object, ...] = ("a submitter",)) -> None:
        self.wake_next = ring
        self.waiting = waiting


class FakeProducer:
    """A stream with a window."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.line: Any = FakeLine(ring)


class Bells:
    """A `Wakeups` that is connected to recorders instead of parts, in a pool that is open."""

    def __init__(self, *, submitters: tuple[object, ...] = ("a submitter",)) -> None:
        self.rung: list[str] = []
        self.ledger: Ledger = make_ledger()
        self.producers = Producers()
        self.producer = FakeProducer(self.ringer(WINDOW))
        self.producers.add(self.producer)  # type: ignore[arg-type]
        self.line: Any = FakeLine(self.ringer(LINE), submitters)
        self.conditions: list[Any] = [False, 0]
        self.state = make_state()
        self.wakeups = Wakeups(self.state, self.ledger, self.producers)
        self.wakeups.connect(
            line=self.line,
            start_jobs=self.ringer(START),
            wake_scaler=self.ringer(SCALER),
            check_deadlock=self.ringer(DEADLOCK),
            must_leave_fast_path=(lambda: self.conditions[0], lambda: self.conditions[1]),
        )

    def ringer(self, bell: str) -> Callable[[], None]:
        return lambda: self.rung.append(bell)

    def watch(self, holds: Callable[[], bool]) -> asyncio.Task[None]:
        """Wait for a condition, in a task."""
        self.state.loop = asyncio.get_running_loop()
        return asyncio.create_task(self.wakeups.wait_until(holds))

    def recorded(self, method: str, **arguments: Any) -> list[str]:
        """Call a row of the table; return the bells that it rings, in their order. Waiters are asked once."""

        def holds() -> bool:
            self.rung.append(WAITERS)
            return False

        self.wakeups._watchers[object()] = holds  # type: ignore[index]  # it only asks the condition
        getattr(self.wakeups, method)(**arguments)
        self.wakeups._watchers.clear()
        return self.rung


# -- The table

# What each method rings. `size_changed` also lets submitters into the windows of streams and groups.
ROWS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("job_accepted", {}, (SCALER,)),
    ("job_came_back", {}, (START, SCALER, LINE, DEADLOCK)),
    ("job_parked", {}, (DEADLOCK,)),
    ("job_left", {}, (SCALER, LINE, DEADLOCK, WAITERS)),
    ("job_ended", {}, (LINE, WAITERS)),
    ("worker_ready", {}, (START, SCALER, LINE)),
    ("worker_slow", {}, (SCALER,)),
    ("worker_gone", {}, (DEADLOCK, WAITERS)),
    ("pause_changed", {"is_lifted": True}, (START, SCALER, LINE)),
    ("pause_changed", {"is_lifted": False}, (SCALER,)),
    ("size_changed", {}, (START, LINE, WINDOW, DEADLOCK)),
    ("submitter_waits", {}, (SCALER,)),
    ("submitter_rejected", {}, (SCALER,)),
    ("limiter_entered", {}, (SCALER,)),
]
METHODS = {method for method, _, _ in ROWS}

# Cells of the table that are not the work of the row's own method, and who sees to them.
BY_OTHERS = {
    "job_accepted": {START: "yes"},  # (1), the dispatcher
    "job_ended": {START: "yes"},  # (1), the dispatcher
    "submitter_waits": {DEADLOCK: "yes (3)"},  # the wait itself
    "child_gone": {WAITERS: "yes"},  # the task group, by `notify`: there is no method
}


def read_table() -> dict[str, dict[str, str]]:
    """Return the cells of the table in the docstring of the module, by row and bell. Empty cells are left out."""
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    [lines] = [paragraph.splitlines() for paragraph in paragraphs if paragraph.lstrip().startswith("what changed")]
    starts = [match.start() for match in re.finditer(r"(?<=  )\S", lines[1])]
    edges = list(zip(starts, [*starts[1:], None], strict=True))
    upper, lower = ([line[start:end].strip() for start, end in edges] for line in lines[:2])
    names = [
        above.removesuffix("-") + below if above.endswith("-") else f"{above} {below}".removesuffix(" waiters")
        for above, below in zip(upper, lower, strict=True)
    ]
    assert tuple(names) == BELLS
    table: dict[str, dict[str, str]] = {}
    for line in lines[2:]:
        name = re.match(r" *((\w+ ?)+)", line[: starts[0]])
        cells = [line[start:end].removesuffix("(1)").strip() for start, end in edges]
        if any(cells):  # otherwise the line goes on with the row above
            assert name is not None
            table[name[1].strip().replace(" ", "_")] = {
                bell: cell for bell, cell in zip(BELLS, cells, strict=True) if cell
            }
    return table


def recorded_table() -> dict[str, dict[str, str]]:
    """Return what the methods do, and what others do, in the words of the table."""
    table: dict[str, dict[str, str]] = {method: {} for method in [*METHODS, *BY_OTHERS]}
    for method, arguments, _ in ROWS:
        for bell in Bells().recorded(method, **arguments):
            if bell == WINDOW:
                table[method][LINE] += " (2)"
            elif arguments.get("is_lifted", True):
                table[method].setdefault(bell, "lifted" if arguments else "yes")
    for bell in Bells().recorded("pause_changed", is_lifted=False):
        table["pause_changed"][bell] = "yes"  # whether it is lifted or not
    for row, cells in BY_OTHERS.items():
        table[row] |= cells
    assert table["job_accepted"].pop(SCALER) == "yes"
    return table | {"job_accepted": table["job_accepted"] | {SCALER: "asleep"}}  # (1): it is called only then


@pytest.mark.parametrize(("method", "arguments", "bells"), ROWS)
def test_each_change_rings_the_bells_of_its_row_once_and_no_others(
    method: str, arguments: dict[str, Any], bells: tuple[str, ...]
) -> None:
    assert sorted(Bells().recorded(method, **arguments)) == sorted(bells)


def test_the_table_in_the_docstring_says_what_the_methods_do() -> None:
    assert read_table() == recorded_table()


def test_each_method_that_reports_a_change_has_a_row() -> None:
    public = {name for name, _ in inspect.getmembers(Wakeups, inspect.isfunction) if not name.startswith("_")}
    others = {"connect", "notify", "wait_until", "leave_fast_path", "housekeep", "housekeep_next", "is_awaited_by"}
    assert public - others == METHODS


def test_the_task_group_notifies_those_who_wait_when_a_child_is_gone() -> None:
    parts = build_parts(echo, workers=1)
    assert parts.tasks._on_done == parts.wakeups.notify


def test_a_job_that_ends_does_not_look_for_room_that_nobody_waits_for() -> None:
    bells = Bells(submitters=())
    assert bells.recorded("job_ended") == [WAITERS]


def test_a_size_that_changes_lets_submitters_into_the_window_of_each_producer() -> None:
    bells = Bells()
    more = [FakeProducer(bells.ringer(f"window {number}")) for number in range(2)]
    for producer in more:
        bells.producers.add(producer)  # type: ignore[arg-type]
    bells.wakeups.size_changed()
    assert [bell for bell in bells.rung if "window" in bell] == [WINDOW, "window 0", "window 1"]


def test_a_size_that_changes_leaves_a_producer_alone_that_brings_no_more_jobs() -> None:
    bells = Bells()
    bells.producers.discard(bells.producer)  # type: ignore[arg-type]
    assert sorted(bells.recorded("size_changed")) == sorted((START, LINE, DEADLOCK))


def test_a_producer_can_go_while_the_windows_grow() -> None:
    bells = Bells()
    other = FakeProducer(lambda: bells.producers.discard(other))  # type: ignore[arg-type]
    bells.producers.add(other)  # type: ignore[arg-type]
    bells.wakeups.size_changed()
    assert other not in bells.producers


# -- Waiting for a condition


def test_a_condition_that_holds_is_not_waited_for() -> None:
    bells = Bells()
    with pytest.raises(StopIteration):
        bells.wakeups.wait_until(lambda: True).send(None)
    assert not bells.wakeups._watchers


@virtual
async def test_a_condition_that_holds_later_ends_the_wait() -> None:
    bells, facts = Bells(), set[str]()
    task = bells.watch(lambda: "yes" in facts)
    await settle()
    assert not task.done()
    facts.add("yes")
    bells.wakeups.notify()
    await task
    assert not bells.wakeups._watchers


@virtual
async def test_a_condition_that_does_not_hold_yet_goes_on_being_waited_for() -> None:
    bells, facts = Bells(), set[str]()
    task = bells.watch(lambda: "yes" in facts)
    await settle()
    bells.wakeups.notify()
    await settle()
    assert not task.done()
    facts.add("yes")
    bells.wakeups.notify()
    await task


@virtual
async def test_a_condition_that_held_for_one_moment_ends_the_wait() -> None:
    bells, facts = Bells(), set[str]()
    task = bells.watch(lambda: "yes" in facts)
    await settle()
    facts.add("yes")
    bells.wakeups.notify()
    facts.clear()
    bells.wakeups.notify()
    await task


@virtual
async def test_only_those_are_woken_whose_condition_holds() -> None:
    bells, facts = Bells(), set[str]()
    tasks = {fact: bells.watch(lambda fact=fact: fact in facts) for fact in "abc"}  # type: ignore[misc]
    await settle()
    for fact in "bac":
        facts.add(fact)
        bells.wakeups.notify()
        await settle()
        assert {fact for fact, task in tasks.items() if task.done()} == facts


@virtual
async def test_a_wait_ends_at_its_time() -> None:
    bells = Bells()
    bells.state.loop = asyncio.get_running_loop()
    await bells.wakeups.wait_until(lambda: False, until=3.0)
    assert now() == 3.0
    assert not bells.wakeups._watchers


@virtual
async def test_a_wait_until_a_time_that_is_over_ends_at_once() -> None:
    bells = Bells()
    bells.state.loop = asyncio.get_running_loop()
    await bells.wakeups.wait_until(lambda: False, until=-1.0)
    assert now() == 0.0


@virtual
async def test_a_wait_that_ends_before_its_time_leaves_no_timer() -> None:
    bells, facts = Bells(), set[str]()
    loop: Any = asyncio.get_running_loop()
    bells.state.loop = loop
    task = asyncio.create_task(bells.wakeups.wait_until(lambda: "yes" in facts, until=60.0))
    await settle()
    facts.add("yes")
    bells.wakeups.notify()
    await task
    assert now() == 0.0
    assert all(timer.cancelled() for timer in loop._scheduled)


@virtual
async def test_a_cancelled_wait_leaves_no_watcher_and_no_timer() -> None:
    bells = Bells()
    loop: Any = asyncio.get_running_loop()
    bells.state.loop = loop
    task = asyncio.create_task(bells.wakeups.wait_until(lambda: False, until=60.0))
    cancel_soon(task, 1.0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 1.0
    assert not bells.wakeups._watchers
    assert all(timer.cancelled() for timer in loop._scheduled)


# -- The fast path


def is_open(wakeups: Wakeups, now: float) -> bool:
    """Whether a job that ends now ends by the fast path, as the dispatcher asks."""
    return now < wakeups.fast_until


def test_the_fast_path_is_closed_until_the_first_housekeeping() -> None:
    assert not is_open(Bells().wakeups, 0.0)


def test_housekeeping_opens_the_fast_path_until_it_is_due_again() -> None:
    wakeups = Bells().wakeups
    wakeups.housekeep(5.0)
    assert is_open(wakeups, 5.0)
    assert not is_open(wakeups, 5.0 + module._HOUSEKEEPING_SECONDS)


def test_housekeeping_wakes_the_scaler_and_sorts_what_was_measured() -> None:
    bells = Bells()
    flushed: list[list[float]] = []
    bells.ledger.seconds_running.reader = flushed.append
    bells.ledger.seconds_running.record(0.5)
    bells.wakeups.housekeep(5.0)
    assert bells.rung == [SCALER]
    assert len(flushed) == 1


def test_housekeeping_that_is_not_due_does_nothing() -> None:
    bells = Bells()
    bells.wakeups.housekeep(5.0)
    bells.rung.clear()
    bells.wakeups.leave_fast_path()
    bells.wakeups.housekeep(5.0)
    assert (bells.rung, bells.wakeups.fast_until) == ([], -math.inf)


def test_housekeeping_that_is_due_again_opens_a_fast_path_that_was_left() -> None:
    wakeups = Bells().wakeups
    wakeups.housekeep(5.0)
    wakeups.leave_fast_path()
    wakeups.housekeep(6.0)
    assert is_open(wakeups, 6.0)


def test_the_fast_path_is_left_at_once() -> None:
    wakeups = Bells().wakeups
    wakeups.housekeep(5.0)
    wakeups.leave_fast_path()
    assert not is_open(wakeups, -math.inf)


def test_the_next_job_that_ends_does_the_housekeeping_when_it_is_told_to() -> None:
    bells = Bells()
    bells.wakeups.housekeep(5.0)
    bells.rung.clear()
    bells.wakeups.housekeep_next()
    assert not is_open(bells.wakeups, 5.0)
    bells.wakeups.housekeep(5.0)
    assert bells.rung == [SCALER]
    assert is_open(bells.wakeups, 5.0)


@pytest.mark.parametrize("condition", [0, 1])
def test_the_fast_path_stays_closed_while_a_condition_is_true(condition: int) -> None:
    bells = Bells()
    bells.conditions[condition] = 1
    bells.wakeups.housekeep(5.0)
    assert not is_open(bells.wakeups, 5.0)


def test_the_fast_path_opens_again_when_no_condition_is_true() -> None:
    bells = Bells()
    bells.conditions[0] = True
    bells.wakeups.housekeep(5.0)
    bells.conditions[0] = False
    bells.wakeups.housekeep(6.0)
    assert is_open(bells.wakeups, 6.0)


def test_a_pause_that_begins_closes_the_fast_path() -> None:
    bells = Bells()
    bells.wakeups.housekeep(5.0)
    bells.wakeups.pause_changed(is_lifted=False)
    assert not is_open(bells.wakeups, 5.0)


@virtual
async def test_the_fast_path_is_closed_while_somebody_waits_for_a_condition() -> None:
    bells, facts = Bells(), set[str]()
    bells.wakeups.housekeep(5.0)
    task = bells.watch(lambda: "yes" in facts)
    await settle()
    assert not is_open(bells.wakeups, 5.0)
    bells.wakeups.housekeep(6.0)
    assert not is_open(bells.wakeups, 6.0)
    facts.add("yes")
    bells.wakeups.notify()
    await task
    bells.wakeups.housekeep(7.0)
    assert is_open(bells.wakeups, 7.0)


# -- The producers


class Anything:
    """A producer, as far as the registry looks at it."""


def test_producers_come_in_the_order_of_their_registration() -> None:
    producers, some = Producers(), [Anything() for _ in range(3)]
    for producer in some:
        producers.add(producer)  # type: ignore[arg-type]
    assert list(producers) == some
    assert some[1] in producers


def test_a_producer_that_was_discarded_is_gone_and_can_be_discarded_again() -> None:
    producers, one = Producers(), Anything()
    producers.add(one)  # type: ignore[arg-type]
    producers.discard(one)  # type: ignore[arg-type]
    producers.discard(one)  # type: ignore[arg-type]
    assert list(producers) == []


def test_a_producer_is_not_kept_alive() -> None:
    producers, one = Producers(), Anything()
    producers.add(one)  # type: ignore[arg-type]
    del one
    gc.collect()
    assert list(producers) == []
