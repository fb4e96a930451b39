"""The laws with an engine: the scenarios of tests/laws, with simulated processes between the pool and its handler."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest

from asyncpool.testing import run
from tests.engines.memory import InMemory
from tests.laws.budget import IS_LONG, IS_SHORT
from tests.laws.schedules import test_schedules  # noqa: F401  # importing it registers the scenarios
from tests.laws.schedules.tools import SCENARIOS
from tests.laws.witness import Witness

# They compare times that are exact only if attempts take no time to arrive.
EXACT = {
    "a_backlog_wakes_the_policy_before_its_interval_is_over",
    "a_policy_is_asked_when_something_has_changed",
    "a_pool_without_workers_is_woken",
    "parked_jobs_start_in_the_moment_in_which_their_limit_opens",
    "a_pool_closes_while_its_breaker_is_open",  # as the next
    "retries_meet_the_end_of_their_pool",  # an attempt may have failed already when its cancellation arrives
    "slots_are_given_back_however_attempts_end",  # an abandoned attempt ends here before its handler does there
}
# Their handlers use their own pool, or they know in which order its resources are opened.
LOCAL = {
    "jobs_wait_for_jobs_of_their_own_key",
    "jobs_submit_to_their_pool_while_others_are_delayed",
    "resources_fail_and_die",
    "resources_fail_to_open_while_the_pool_scales",
}
pytestmark = pytest.mark.usefixtures("no_signs_of_life")

# More than 10,000 schedules in the long budget.
SEEDS = 200 if IS_LONG else 2 if IS_SHORT else 6


async def program(name: str, seed: int) -> None:
    random = Random(seed)
    witness = Witness(random)
    witness.engine = InMemory(random.randint(1, 3), Random(seed))
    await SCENARIOS[name](witness, random)
    await witness.engine.ended()


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - EXACT - LOCAL))
def test_the_laws_hold_with_an_engine(name: str) -> None:
    for seed in range(SEEDS):
        try:
            run(partial(program, name, seed), seed=seed)
        except BaseException as error:
            error.add_note(f"the schedule was seed {seed} of {name!r}")
            raise
