"""The orders without a pool: which job leaves first, and what becomes of jobs that are settled while queued."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from random import Random
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpool._core.job import Job
from asyncpool._core.orders import ComebackFirst, Fifo, OldestComebackFirst, Order, ReentryOrder
from asyncpool._core.priorities import ByPriority, ByPriorityAndAge
from tests.core.tools import cancelled, make_job


def by_itself() -> ByPriority:
    """An order whose jobs are their own keys."""
    return ByPriority(lambda input: input)


def by_nothing() -> ByPriority:
    """An order in which all keys are equal."""
    return ByPriority(lambda _: 0)


ORDERS = [Fifo, ComebackFirst, by_itself, by_nothing]
REENTRY_ORDERS = [ComebackFirst, by_nothing]

each_order = pytest.mark.parametrize("make", ORDERS)
each_reentry_order = pytest.mark.parametrize("make", REENTRY_ORDERS)


def add(order: Order, job: Job) -> None:
    """Add a job as the dispatcher does."""
    order.set_key(job)
    order.append(job)


def filled(make: Callable[[], Order], jobs: int) -> tuple[Any, list[Job]]:
    """Make an order with jobs from number 1 on."""
    order, queued = make(), [make_job(number) for number in range(1, jobs + 1)]
    for job in queued:
        add(order, job)
    return order, queued


def settle(order: Order, *jobs: Job) -> None:
    """Settle jobs that are queued."""
    for job in jobs:
        job.outcome = cancelled(job)
        order.discard_settled()


def drained(order: Order) -> list[int]:
    """Take all jobs, and return their numbers."""
    numbers = []
    while (job := order.pop()) is not None:
        numbers.append(job.number)
    return numbers


# -- The oldest


def ready_at(job: Job, seconds: float) -> Job:
    job.ready_at, job.key = seconds, 0
    return job


@each_order
def test_the_oldest_is_the_live_job_that_has_waited_longest_and_stays(make: Callable[[], Order]) -> None:
    order: Any = make()
    assert order.oldest() is None
    jobs = [ready_at(make_job(number, -number), float(number)) for number in range(1, 5)]
    for job in jobs:
        order.append(job)
    assert order.oldest() is jobs[0]
    settle(order, jobs[0], jobs[1])
    assert order.oldest() is jobs[2]
    assert len(order) == 2
    settle(order, jobs[2], jobs[3])
    assert order.oldest() is None


@each_reentry_order
def test_the_oldest_can_be_one_that_came_back_or_a_fresh_one(make: Callable[[], ReentryOrder]) -> None:
    order = make()
    order.append(ready_at(make_job(2), 2.0))
    order.put_back(ready_at(make_job(1), 3.0))
    order.put_back(ready_at(make_job(3), 4.0))
    oldest = order.oldest()
    assert oldest is not None
    assert oldest.number == 2
    assert drained(order) == [1, 3, 2]


def test_the_oldest_of_a_long_heap_is_looked_for_among_its_first_thousand() -> None:
    order = by_itself()
    for number in range(5000):
        order.append(ready_at(make_job(number, number), float(-number)))
    oldest = order.oldest()
    assert oldest is not None
    assert 999 <= oldest.number < 5000


# -- All orders


@each_order
def test_jobs_leave_in_the_order_in_which_they_came(make: Callable[[], Order]) -> None:
    order, _ = filled(make, 5)
    assert drained(order) == [1, 2, 3, 4, 5]


@each_order
def test_the_container_gives_the_first_entry(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 3)
    assert order.popleft() is jobs[0]
    assert list(order) == jobs[1:]


@each_order
def test_an_empty_order_has_no_first_job(make: Callable[[], Order]) -> None:
    order = make()
    assert (order.pop(), order.peek(), len(order), list(order)) == (None, None, 0, [])


@each_order
def test_peek_leaves_the_job_where_it_is(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 2)
    assert order.peek() is jobs[0]
    assert drained(order) == [1, 2]


@each_order
def test_pop_skips_settled_jobs(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 5)
    settle(order, jobs[0], jobs[1], jobs[3])
    assert drained(order) == [3, 5]


@each_order
def test_peek_skips_settled_jobs(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 3)
    settle(order, *jobs[:2])
    assert order.peek() is jobs[2]


@each_order
def test_peek_of_settled_jobs_alone_finds_none(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 3)
    settle(order, *jobs)
    assert order.peek() is None
    assert not order.entries


@each_order
def test_only_live_jobs_count(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 5)
    settle(order, jobs[1], jobs[4])
    assert len(order) == 3


@each_order
def test_iteration_gives_the_live_jobs(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 5)
    settle(order, jobs[1], jobs[4])
    assert sorted(job.number for job in order) == [1, 3, 4]


def by_seven() -> ByPriority:
    """An order with few keys."""
    return ByPriority(lambda input: input * 5 % 7)


def by_seven_and_age() -> ByPriorityAndAge:
    return ByPriorityAndAge(lambda input: input * 5 % 7)


@pytest.mark.parametrize("most", [3, 99])
@pytest.mark.parametrize(
    "make", [Fifo, ComebackFirst, OldestComebackFirst, by_itself, by_nothing, by_seven, by_seven_and_age]
)
def test_jobs_are_listed_in_the_order_in_which_they_leave(make: Callable[[], Order], most: int) -> None:
    order, queued = filled(make, 20)
    if isinstance(order, ReentryOrder):
        taken = [order.pop() for _ in range(9)]
        for job in (taken[at] for at in (4, 0, 7, 2, 8, 1, 5)):
            assert job is not None
            order.put_back(job)
    settle(order, *(job for job in order.snapshot() if job.number % 4 == 0))
    before = order.snapshot()
    listed = [job.number for job in order.in_order(most)]
    assert order.snapshot() == before
    assert listed == drained(order)[:most]
    assert len(queued) == 20


@each_order
def test_a_tombstone_that_is_taken_counts_no_longer(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 3)
    settle(order, jobs[1])
    assert [order.popleft(), order.popleft()] == jobs[:2]
    order.drop_tombstone()
    assert len(order) == len(order.entries) == 1


@each_order
def test_jobs_that_are_settled_in_the_order_of_a_snapshot_leave_no_tombstones(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 100)
    entries = order.snapshot()
    assert set(entries) == set(jobs)
    for left, job in enumerate(entries):
        settle(order, job)
        assert len(order.entries) == len(order) == len(jobs) - left - 1


@each_order
def test_tombstones_are_swept_before_they_outnumber_live_jobs(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 1000)
    for left, job in enumerate(reversed(jobs)):
        settle(order, job)
        live = len(jobs) - left - 1
        assert len(order) == live
        assert len(order.entries) - live <= live + 64  # those few are not worth a walk
    assert drained(order) == []


@each_order
def test_a_sweep_keeps_the_order_of_live_jobs(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 200)
    settle(order, *(job for job in jobs if job.number % 4))
    assert len(order.entries) < 200
    assert drained(order) == [number for number in range(1, 201) if number % 4 == 0]


@each_order
def test_the_container_is_always_the_same_object(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 200)
    entries = order.entries
    settle(order, *jobs[:150])
    drained(order)
    add(order, make_job(201))
    assert order.entries is entries
    assert len(entries) == 1


@each_order
def test_the_bound_methods_of_the_hot_path_survive_a_sweep(make: Callable[[], Order]) -> None:
    order, jobs = filled(make, 200)
    append, popleft, job = order.append, order.popleft, make_job(201)
    settle(order, *jobs[:199])
    drained(order)
    order.set_key(job)
    append(job)
    assert popleft().number == 201


@each_order
def test_an_order_says_whether_it_calls_functions_of_the_user(make: Callable[[], Order]) -> None:
    assert make().calls_user is (make in (by_itself, by_nothing))


# -- Orders that take jobs back


@each_reentry_order
def test_a_job_that_came_back_leaves_before_fresh_ones(make: Callable[[], ReentryOrder]) -> None:
    order, _ = filled(make, 3)
    first = order.pop()
    order.put_back(first)
    add(order, make_job(4))
    assert drained(order) == [1, 2, 3, 4]


@each_reentry_order
def test_jobs_that_came_back_leave_in_the_order_in_which_they_did(make: Callable[[], ReentryOrder]) -> None:
    order, _ = filled(make, 5)
    taken = [order.pop() for _ in range(3)]
    for job in (taken[2], taken[0], taken[1]):
        order.put_back(job)
    assert drained(order) == [3, 1, 2, 4, 5]


@each_reentry_order
def test_put_in_adds_a_job_behind_fresh_ones_that_are_older(make: Callable[[], ReentryOrder]) -> None:
    order, _ = filled(make, 2)
    order.put_in(_with_key(make_job(3), 0))
    assert drained(order) == [1, 2, 3]


@each_reentry_order
def test_jobs_that_came_back_are_swept_too(make: Callable[[], ReentryOrder]) -> None:
    order, jobs = filled(make, 100)
    for job in [order.pop() for _ in jobs]:
        order.put_back(job)
    settle(order, *jobs[:99])
    assert len(order.entries) < 100
    assert drained(order) == [100]


@each_reentry_order
def test_a_job_that_came_back_and_was_settled_is_skipped(make: Callable[[], ReentryOrder]) -> None:
    order, jobs = filled(make, 2)
    order.put_back(order.pop())
    settle(order, jobs[0])
    assert order.peek() is jobs[1]
    assert len(order) == 1


# -- By priority


def _with_key(job: Job, key: Any) -> Job:
    job.key = key
    return job


def test_smaller_keys_leave_first() -> None:
    order = by_itself()
    for number, key in enumerate([3, 1, 2], 1):
        add(order, make_job(number, key))
    assert drained(order) == [2, 3, 1]


def test_equal_keys_leave_in_the_order_of_their_acceptance() -> None:
    order = by_itself()
    for number, key in enumerate([2, 1, 2, 1], 1):
        add(order, make_job(number, key))
    assert drained(order) == [2, 4, 1, 3]


def test_a_job_that_came_back_does_not_overtake_smaller_keys() -> None:
    order = by_itself()
    for number, key in enumerate([1, 2, 2], 1):
        add(order, make_job(number, key))
    first, second = order.pop(), order.pop()
    assert first is not None
    assert second is not None
    order.put_back(second)
    order.put_back(first)
    assert drained(order) == [1, 2, 3]


def test_put_in_goes_by_the_age_of_the_job_among_equal_keys() -> None:
    order = by_nothing()
    add(order, make_job(2))
    add(order, make_job(4))
    order.put_in(_with_key(make_job(3), 0))
    assert drained(order) == [2, 3, 4]


def test_a_job_is_put_back_and_in_by_the_key_that_it_has() -> None:
    keys = count()
    order = ByPriority(lambda _: next(keys))
    add(order, make_job(1))
    add(order, make_job(2))
    order.put_back(order.pop())  # type: ignore[arg-type]  # there is one
    second = _with_key(make_job(3), -1)
    order.put_in(second)
    assert next(keys) == 2, "the key function was called again"
    assert drained(order) == [3, 1, 2]


class Unsure:
    """A key whose comparisons raise once `comparisons_left` are used up."""

    comparisons_left = math.inf

    def __init__(self, value: int) -> None:
        self.value = value

    def __lt__(self, other: Unsure) -> bool:
        if Unsure.comparisons_left <= 0:
            raise RuntimeError("cannot decide")
        Unsure.comparisons_left -= 1
        return self.value < other.value


def test_a_key_function_that_raises_refuses_the_job() -> None:
    def key(_: Any) -> Any:
        raise LookupError("no key")

    order = ByPriority(key)
    with pytest.raises(LookupError, match="no key"):
        add(order, make_job())
    assert (len(order), len(order.entries)) == (0, 0)


@pytest.mark.parametrize("key", [None, object(), 1j], ids=["None", "object", "complex"])
def test_the_first_key_is_refused_if_it_does_not_compare_with_itself(key: Any) -> None:
    order = ByPriority(lambda _: key)
    with pytest.raises(TypeError, match="not supported between"):
        add(order, make_job())
    assert len(order) == 0


def test_a_key_that_does_not_compare_with_the_others_is_refused() -> None:
    order = by_itself()
    add(order, make_job(1, 5))
    with pytest.raises(TypeError, match="not supported between"):
        add(order, make_job(2, "five"))
    assert drained(order) == [1]


def test_a_refused_job_has_no_key() -> None:
    order = by_itself()
    add(order, make_job(1, 5))
    refused = make_job(2, "five")
    with pytest.raises(TypeError):
        add(order, refused)
    assert not hasattr(refused, "key")


def test_a_comparison_whose_truth_cannot_be_told_refuses_the_job() -> None:
    class Vague:
        def __lt__(self, other: object) -> Any:
            return Vague()

        def __bool__(self) -> bool:
            raise ValueError("ambiguous")

    order = ByPriority(lambda _: Vague())
    with pytest.raises(ValueError, match="ambiguous"):
        add(order, make_job())
    assert len(order) == 0


@pytest.mark.parametrize("comparisons", range(1, 16))
def test_no_job_is_lost_when_a_comparison_raises_inside_the_heap(
    comparisons: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ByPriority(Unsure)
    for number in range(1, 8):
        add(order, make_job(number, -number))
    monkeypatch.setattr(Unsure, "comparisons_left", comparisons)
    add(order, make_job(8, -8))
    assert sorted(drained(order)) == list(range(1, 9))


def test_keys_that_no_longer_compare_are_ordered_by_age() -> None:
    order = by_itself()
    order.put_in(_with_key(make_job(2), "two"))
    order.put_in(_with_key(make_job(1), 1))
    order.put_in(_with_key(make_job(3), None))
    assert drained(order) == [1, 2, 3]


@dataclass(order=True)
class Urgency:
    level: float
    ignored: float = field(default=0.0, compare=False)


class Place(NamedTuple):
    urgency: Urgency


@attrs.define(order=True)
class Cost:
    value: Any
    ignored: float = attrs.field(default=math.nan, eq=False)


NANS = [
    math.nan,
    Decimal("nan"),
    (1, math.nan),
    [math.nan],
    (1, ("a", [Decimal("nan")])),
    deque([math.nan]),
    Urgency(math.nan),
    (1, Urgency(math.nan)),
    Place(Urgency(math.nan)),
    Cost(math.nan),
    Cost([Urgency(math.nan)]),
]


@pytest.mark.parametrize("key", [Urgency(1.0, math.nan), Cost(1), Place(Urgency(1.0)), (), "nan"], ids=str)
def test_a_key_is_not_refused_for_what_it_does_not_compare(key: Any) -> None:
    order = ByPriority(lambda _: key)
    add(order, make_job(1))
    assert drained(order) == [1]


@pytest.mark.parametrize("key", NANS, ids=str)
def test_a_key_that_is_not_a_number_is_refused(key: Any) -> None:
    order = ByPriority(lambda _: key)
    with pytest.raises(TypeError, match="priority must return keys that can be ordered, and NaN cannot: got"):
        add(order, make_job())
    assert len(order) == 0


def test_keys_that_are_not_a_number_leave_the_others_in_order() -> None:
    random = Random(1)
    for _ in range(50):
        order = by_itself()
        keys = [random.choice((math.nan, random.random(), math.inf, -math.inf)) for _ in range(30)]
        for number, key in enumerate(keys):
            if math.isnan(key):
                with pytest.raises(TypeError):
                    add(order, make_job(number, key))
            else:
                add(order, make_job(number, key))
        assert [keys[number] for number in drained(order)] == sorted(key for key in keys if not math.isnan(key))


def test_a_key_whose_difference_cannot_be_told_is_no_nan() -> None:
    class Vague:
        def __lt__(self, other: object) -> bool:
            return False

        def __ne__(self, other: object) -> Any:
            raise ValueError("ambiguous")

    order = ByPriority(lambda _: Vague())
    add(order, make_job(1))
    assert drained(order) == [1]


# -- Any order of steps, against a list


class Model:
    """An order that is a sorted list of its live jobs: the truth, slowly."""

    def __init__(self, key: Callable[[Job], Any]) -> None:
        self._key = key
        self._place: dict[Job, tuple[int, int]] = {}  # (0, when it came back) or (1, its age)
        self._returned = 0
        self.live: list[Job] = []

    def add(self, job: Job, *, came_back: bool = False) -> None:
        self._returned += came_back
        self._place[job] = (0, self._returned) if came_back else (1, job.number)
        self.live.append(job)
        self.live.sort(key=lambda job: (self._key(job), self._place[job]))


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "pop", "take", "peek", "settle", "put_back", "put_in"]), st.integers(0, 9)),
    max_size=200,
)


@pytest.mark.parametrize("make", ORDERS)
@settings(deadline=None)
@given(steps=STEPS)
def test_an_order_does_what_a_sorted_list_does(make: Callable[[], Any], steps: list[tuple[str, int]]) -> None:
    order = make()
    entries = order.entries
    model = Model((lambda job: job.input) if make is by_itself else lambda _: 0)
    held: list[Job] = []  # taken, and not put back yet
    numbers = count(1)
    for step, choice in steps:
        if step == "append":
            job = make_job(next(numbers), choice)
            add(order, job)
            model.add(job)
        elif step == "pop":
            job = order.pop()
            assert job is (model.live.pop(0) if model.live else None)
            held += [] if job is None else [job]
        elif step == "take" and order.entries:  # as the pump does
            job = order.popleft()
            if job.outcome is None:
                assert job is model.live.pop(0)
                held.append(job)
            else:
                order.drop_tombstone()
        elif step == "peek":
            assert order.peek() is (model.live[0] if model.live else None)
        elif step == "settle" and model.live:
            settle(order, model.live.pop(choice % len(model.live)))
        elif step in ("put_back", "put_in") and held and isinstance(order, ReentryOrder):
            job = held.pop(choice % len(held))
            if step == "put_in" and isinstance(order, ComebackFirst):
                continue  # what is put in there is not fresh, and goes behind: the model knows its age only
            getattr(order, step)(job)
            model.add(job, came_back=step == "put_back")
        assert len(order) == len(model.live)
        assert {job.number for job in order} == {job.number for job in model.live}
        assert order.entries is entries
        assert len(entries) - len(order) <= len(order) + 64
    assert drained(order) == [job.number for job in model.live]
