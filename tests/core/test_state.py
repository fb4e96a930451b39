"""The state of a pool: which phase can follow which, and in which of them jobs are taken."""

from __future__ import annotations

from itertools import product

import pytest

from asyncpool._core.state import Phase, State
from tests.core.tools import make_state

ALLOWED = {
    (Phase.NEW, Phase.STARTING),
    (Phase.NEW, Phase.CLOSED),
    (Phase.STARTING, Phase.OPEN),
    (Phase.STARTING, Phase.DRAINING),
    (Phase.OPEN, Phase.DRAINING),
    (Phase.DRAINING, Phase.STOPPING),
    (Phase.STOPPING, Phase.CLOSED),
}
IN_ORDER = sorted(ALLOWED, key=lambda move: (list(Phase).index(move[0]), list(Phase).index(move[1])))
REFUSED = [move for move in product(Phase, Phase) if move not in ALLOWED]


def name_of(value: object) -> str:
    return value.value if isinstance(value, Phase) else str(value)


@pytest.mark.parametrize(("before", "after"), IN_ORDER, ids=name_of)
def test_each_move_of_the_table_is_allowed(before: Phase, after: Phase) -> None:
    state = make_state(before)
    state.move(after)
    assert state.phase is after


@pytest.mark.parametrize(("before", "after"), REFUSED, ids=name_of)
def test_every_other_move_is_refused_and_changes_nothing(before: Phase, after: Phase) -> None:
    state = make_state(before)
    took_jobs = state.takes_jobs
    with pytest.raises(AssertionError, match=f"from {before} to {after}"):
        state.move(after)
    assert (state.phase, state.takes_jobs) == (before, took_jobs)


@pytest.mark.parametrize("phase", Phase, ids=name_of)
def test_a_pool_takes_jobs_while_it_starts_and_while_it_is_open(phase: Phase) -> None:
    assert make_state(phase).takes_jobs is (phase in (Phase.STARTING, Phase.OPEN))


def test_a_pool_that_is_closed_before_it_was_started_takes_no_jobs() -> None:
    state = State("pool")
    state.move(Phase.CLOSED)
    assert not state.takes_jobs


@pytest.mark.parametrize("phase", Phase, ids=name_of)
def test_a_pool_is_starting_in_one_phase_only(phase: Phase) -> None:
    assert make_state(phase).is_starting is (phase is Phase.STARTING)


@pytest.mark.parametrize("phase", Phase, ids=name_of)
def test_a_pool_is_closing_from_the_moment_it_drains(phase: Phase) -> None:
    assert make_state(phase).is_closing is (phase in (Phase.DRAINING, Phase.STOPPING, Phase.CLOSED))
