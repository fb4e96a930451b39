"""The laws under random schedules: small nasty programs, each under thousands of orders in which its tasks may run.

The programs are the scenarios of the modules beside this one. A failure names the seed; to see it again:

    python -m tests.laws.schedules.test_schedules NAME MODE SEED
"""

from __future__ import annotations

import sys
import traceback
from functools import partial
from pathlib import Path
from random import Random

import pytest

from asyncpool.testing import run
from tests.laws.budget import HOSTILE_SCHEDULES, IS_SHORT, SCHEDULES
from tests.laws.hostile import at_large
from tests.laws.schedules import (
    breakers,
    dead_letters,
    groups,
    jobs,
    life,
    limits,
    policies,
    queueing,
    rates,
    resources,
    retries,
    scaling,
    streams,
    submitting,
    watching,
)
from tests.laws.schedules.tools import SCENARIOS, program
from tests.laws.witness import FACTORIES, ended, spawn

# Importing them has registered their scenarios.
SUBJECTS = (
    breakers,
    submitting,
    life,
    streams,
    groups,
    jobs,
    resources,
    retries,
    rates,
    limits,
    scaling,
    policies,
    dead_letters,
    queueing,
    watching,
)


@pytest.mark.parametrize("mode", FACTORIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_laws_hold_in_the_plain_order(name: str, mode: str) -> None:
    run(partial(program, name, mode, None), collect=True)


@pytest.mark.parametrize("mode", FACTORIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_laws_hold_under_random_schedules(name: str, mode: str) -> None:
    for seed in range(SCHEDULES[mode]):
        try:
            # Collecting finds what only a cycle keeps alive, and costs more than the rest: now and then will do.
            run(partial(program, name, mode, seed), seed=seed, collect=seed % 40 == 0)
        except BaseException as error:
            error.add_note(f"the schedule was seed {seed} of {name!r}, mode {mode!r}")
            raise


@pytest.mark.parametrize("mode", FACTORIES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_laws_hold_whatever_the_log_and_the_methods_of_jobs_and_errors_raise(name: str, mode: str) -> None:
    for seed in range(HOSTILE_SCHEDULES[mode]):
        try:
            with at_large(Random(seed)):
                run(partial(program, name, mode, seed), seed=seed)
        except BaseException as error:  # which pytest may not be able to show
            where = "".join(traceback.format_tb(vars(BaseException)["__traceback__"].__get__(error)))
            pytest.fail(f"seed {seed} of {name!r}, mode {mode!r}: {type(error).__name__}\n{where}", pytrace=False)


def test_hostile_code_is_at_large_in_the_scenarios() -> None:
    with at_large(Random(0)) as hostile:
        for seed in range(8):
            run(partial(program, "jobs_run_into_their_timeout", "default", seed), seed=seed)
    assert hostile.raised


@pytest.mark.skipif(IS_SHORT, reason="this budget is a part of the default")
def test_the_default_budget_is_ten_thousand_schedules() -> None:
    assert len(SCENARIOS) * sum(SCHEDULES[mode] for mode in FACTORIES) >= 10_000


def test_every_file_of_scenarios_is_imported() -> None:
    files = {path.stem for path in Path(__file__).parent.glob("*.py")}
    imported = {module.__name__.rpartition(".")[2] for module in SUBJECTS}
    assert imported == files - {"test_schedules", "tools"}


def test_a_random_schedule_is_not_the_plain_order() -> None:
    """The fuzzer is at work: the order in which three tasks begin differs between seeds."""

    async def order() -> tuple[int, ...]:
        begun: list[int] = []

        async def begin(n: int) -> None:
            begun.append(n)

        await ended(*[spawn(begin(n)) for n in range(3)])
        return tuple(begun)

    assert len({run(order, seed=seed) for seed in range(100)}) == 6
    assert run(order) == (0, 1, 2)


if __name__ == "__main__":  # one schedule, as the test runs it
    name, mode, seed = sys.argv[1:]
    run(partial(program, name, mode, int(seed)), seed=int(seed), collect=True)
