"""The policies that `Adaptive` is compared with: each does what it is known for, on virtual time."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from asyncpool import JobTimeout, PoolLoad, RetryAfter
from asyncpool.scaling import Decide, ScalingPolicy
from benchmarks.scaling.rivals import AIMD, RIVALS, EnvoyGradient, Gradient2, HillClimbing, Rival, Vegas
from benchmarks.scaling.scenarios import TWENTY
from benchmarks.scaling.simulate import simulate

SERVICE = 0.050
MOST = 400.0  # jobs a second of the twenty servers


def ended(workers: int, seconds: float, *, now: float = 0.0, jobs: int = 20, **more: Any) -> PoolLoad:
    """The load after a second in which `jobs` jobs have taken `seconds` each."""
    return PoolLoad(
        **{
            "now": now,
            "elapsed": 1.0,
            "workers": workers,
            "running": workers,
            "queued": 100,
            "succeeded": jobs,
            "seconds": (seconds,) * jobs,
            **more,
        }
    )


def after(decide: Decide, *loads: PoolLoad) -> int:
    """The last answer."""
    return [decide(load).workers for load in loads][-1]


@pytest.mark.parametrize("kind", RIVALS)
def test_each_reaches_half_of_the_capacity_of_twenty_servers(kind: type[Rival]) -> None:
    policy = kind(8, 60)  # eight do 160 jobs/s
    assert isinstance(policy, ScalingPolicy)
    result = simulate(TWENTY, policy, seconds=9.0, settle=6.0)
    assert result.settled.throughput >= MOST / 2
    assert all(8 <= sample.wanted <= 60 for sample in result.trace)


@pytest.mark.parametrize("kind", RIVALS)
def test_each_stays_within_its_range(kind: type[Rival]) -> None:
    result = simulate(TWENTY, kind(4, 9), seconds=9.0, settle=0.0)
    assert all(4 <= sample.wanted <= 9 for sample in result.trace)
    assert max(sample.wanted for sample in result.trace) >= 8  # HillClimbing only swings up to it


@pytest.mark.parametrize("kind", RIVALS)
def test_each_is_configuration_only(kind: type[Rival]) -> None:
    policy = kind(1, 50)
    one, other = policy.start(), policy.start()
    after(one, *(ended(policy.initial_workers, SERVICE) for _ in range(20)))
    assert other(PoolLoad(workers=policy.initial_workers)).workers == policy.initial_workers
    assert copy.deepcopy(policy) == policy


def test_a_baseline_needs_three_workers() -> None:
    assert EnvoyGradient(1, 200).initial_workers == 3
    assert EnvoyGradient(1, 2).initial_workers == 2


@pytest.mark.parametrize("error", [JobTimeout(1.0), RetryAfter(1.0)])
def test_aimd_adds_one_and_takes_a_tenth(error: BaseException) -> None:
    decide = AIMD(1, 200).start()
    assert after(decide, *(ended(20, SERVICE) for _ in range(29))) == 30
    assert after(decide, ended(30, SERVICE, failed=1, errors=(error,))) == 27
    assert after(decide, ended(27, SERVICE, failed=1, errors=(ValueError(),))) == 28
    assert after(decide, ended(28, SERVICE, running=13)) == 28


def test_aimd_takes_what_is_too_slow_for_a_drop() -> None:
    decide = AIMD(20, 200).start()
    assert after(decide, ended(20, SERVICE), ended(21, 5.1)) == 20


def test_vegas_keeps_some_jobs_queued() -> None:
    decide = Vegas(10, 200).start()
    assert after(decide, ended(10, SERVICE)) == 10  # the baseline
    assert after(decide, ended(10, SERVICE)) == 16  # no queue
    assert after(decide, ended(16, SERVICE * 16 / 14.5)) == 17  # two jobs queued
    assert after(decide, ended(17, SERVICE * 17 / 12.5)) == 17  # five
    assert after(decide, ended(17, SERVICE * 17 / 9.5)) == 16  # eight


def test_vegas_forgets_its_baseline() -> None:
    decide = Vegas(10, 200).start()
    slow = ended(10, SERVICE * 10 / 5.5)  # five queued: as it should be
    assert after(decide, ended(10, SERVICE), *[slow] * 224) == 10
    assert after(decide, slow) == 16


def test_gradient2_grows_by_less_than_one_and_shrinks_when_the_short_run_is_slow() -> None:
    decide = Gradient2(20, 200).start()
    assert after(decide, *(ended(20, SERVICE) for _ in range(10))) == 28
    assert after(decide, *(ended(28, SERVICE * 1.4) for _ in range(5))) == 32
    assert after(decide, ended(32, SERVICE * 10)) == 29


def test_envoy_goes_back_to_three_workers_each_minute() -> None:
    decide = EnvoyGradient(1, 200).start()
    assert decide(ended(3, SERVICE, now=0.0, jobs=49)).workers == 3
    assert decide(ended(3, SERVICE, now=1.0, jobs=1)).workers == 3
    assert decide(ended(3, SERVICE, now=2.0)).workers == int(3 * 1.25 + (3 * 1.25) ** 0.5)
    grown = decide(ended(5, SERVICE, now=3.0)).workers
    assert grown > 5
    assert decide(ended(grown, SERVICE, now=61.0)).workers == 3
    # What began before does not count: these are still slow.
    assert decide(ended(3, 1.0, now=61.1, jobs=grown)).workers == 3
    assert decide(ended(3, SERVICE, now=61.2, jobs=50)).workers == grown
    assert decide(ended(grown, SERVICE * 1.25, now=61.3)).workers > grown


def climbed(speed: float, *, power: float) -> int:
    """Where a wave ends at that began with twenty workers, if the throughput goes with a power of their number."""
    decide, workers = HillClimbing(1, 200).start(), 20
    for number in range(200):
        jobs = round(speed * workers**power)
        workers = decide(PoolLoad(now=number, elapsed=1.0, workers=workers, succeeded=jobs)).workers
    return workers


def test_a_wave_follows_the_throughput() -> None:
    assert climbed(200.0, power=1.0) > 100
    assert climbed(100_000.0, power=-1.0) < 10
