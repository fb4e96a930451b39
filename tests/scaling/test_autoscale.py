"""`AutoScale`: what it answers to a load, and what becomes of a pool that has it. Time is virtual.

How any policy is asked, and how its answers are applied, is in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

import asyncpool
from asyncpool import AutoScale, Decision, PoolLoad, QueueFull, RateLimit, Retry, RetryAfter, WorkerPool
from asyncpool.testing import ManualHandler, VirtualTimeLoop, settle
from tests.helpers import assert_conserved, echo, fuzzed, now, sleeper, virtual
from tests.scaling.tools import SOON, Sizes

IDLE = 30.0  # seconds: the default of idle_timeout


def busy(workers: int, *, queued: int = 0, **more: Any) -> PoolLoad:
    """The load of a pool whose workers all have a job."""
    return PoolLoad(**{"workers": workers, "running": workers, "peak_running": workers, "queued": queued, **more})


def at_rest(workers: int, *, now: float = 0.0, **more: Any) -> PoolLoad:
    """The load of a pool whose workers are all idle."""
    return PoolLoad(now=now, workers=workers, idle=workers, **more)


# -- Growing, as a pure function of loads ------------------------------------------------------------------------------


def test_a_pool_begins_with_the_fewest_workers() -> None:
    assert AutoScale(2, 10).initial_workers == 2
    assert AutoScale(2, 10).max_workers == 10


@pytest.mark.parametrize(
    ("queued", "workers"), [(0, 2), (10, 2), (11, 3), (15, 3), (16, 4), (49, 10), (50, 10), (51, 10), (10_000, 10)]
)
def test_it_grows_in_proportion_to_the_backlog_in_one_step(queued: int, workers: int) -> None:
    assert AutoScale(2, 10).start()(busy(2, queued=queued)).workers == workers


@pytest.mark.parametrize(("queued", "workers"), [(4, 10), (1, 10), (0, 2)])
def test_one_job_may_wait_for_several_workers(queued: int, workers: int) -> None:
    assert AutoScale(2, 10, backlog_per_worker=0.1).start()(busy(2, queued=queued)).workers == workers


def test_who_waits_for_room_counts_as_backlog() -> None:
    assert AutoScale(2, 100).start()(busy(2, queued=20, waiting=80)).workers == 20


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(busy(2, queued=100, is_throttled=True), id="throttled"),
        pytest.param(busy(2, queued=100, waiting=5, rejected=5, is_throttled=True), id="throttled and full"),
        pytest.param(PoolLoad(workers=2, running=1, peak_running=2, idle=1, queued=100), id="idle"),
        pytest.param(PoolLoad(workers=2, running=1, peak_running=1, idle=1, queued=1, waiting=9), id="idle and full"),
        pytest.param(PoolLoad(workers=2, running=1, peak_running=2, starting=1, queued=100), id="starting"),
        pytest.param(
            PoolLoad(workers=2, running=1, peak_running=2, starting=1, waiting=9, rejected=9), id="starting, full"
        ),
        pytest.param(busy(2, delayed=1000), id="delayed"),
        pytest.param(busy(2), id="no backlog"),
        pytest.param(at_rest(2, rejected=9), id="rejected though not busy"),
    ],
)
def test_it_does_not_grow_where_workers_would_not_help(load: PoolLoad) -> None:
    assert AutoScale(2, 10).start()(load).workers == 2


@pytest.mark.parametrize(
    ("load", "workers"),
    [
        pytest.param(busy(3, waiting=1), 6, id="one waits"),
        pytest.param(busy(3, queued=3, rejected=1), 6, id="one was rejected"),
        pytest.param(busy(30, waiting=1), 50, id="no more than the most"),
        pytest.param(busy(3, waiting=100), 20, id="more than twice as many wait"),
        pytest.param(replace(at_rest(3), peak_running=3, rejected=1), 6, id="rejected when all were busy, idle now"),
        pytest.param(PoolLoad(workers=0, waiting=1), 1, id="from none"),
        pytest.param(PoolLoad(workers=0, rejected=1), 1, id="from none, rejected"),
    ],
)
def test_it_doubles_where_the_queue_is_full_and_cannot_show_the_backlog(load: PoolLoad, workers: int) -> None:
    assert AutoScale(0, 50).start()(load).workers == workers


@pytest.mark.parametrize("backlog_per_worker", [5, 0.5, 1e-9, 5e-324])
def test_it_never_asks_for_more_than_the_most(backlog_per_worker: float) -> None:
    decide = AutoScale(1, 7, backlog_per_worker=backlog_per_worker).start()
    assert decide(busy(1, queued=10**6, waiting=10**6, rejected=10**6)).workers == 7


def test_fewer_workers_than_the_fewest_are_made_up_for_at_once() -> None:
    assert AutoScale(4, 10).start()(busy(1, starting=1, is_throttled=True)).workers == 4


def test_more_workers_than_the_most_retire_at_once() -> None:
    assert AutoScale(4, 10).start()(busy(25, queued=1000)).workers == 10


def test_it_says_why_with_the_figures() -> None:
    decide = AutoScale(1, 10, idle_timeout=10).start()
    grown = decide(busy(1, queued=30))
    assert "30 jobs wait for 1 worker" in grown.reason
    assert grown.figures["backlog"] == 30
    assert "the queue of 6 workers is full" in decide(busy(6, now=1.0, waiting=1)).reason
    decide(at_rest(10, now=2.0))
    shrunk = decide(at_rest(10, now=20.0))
    assert "9 workers" in shrunk.reason
    assert "10 s" in shrunk.reason
    assert shrunk.figures["idle"] == 9


# -- Growing by waiting time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oldest_wait", "queued", "workers"),
    [(0.0, 3, 4), (2.0, 3, 4), (2.01, 3, 5), (3.0, 3, 6), (3.5, 3, 7), (100.0, 3, 7), (100.0, 20, 8), (100.0, 21, 8)],
)
def test_it_grows_by_how_much_too_long_a_job_has_waited_and_not_beyond_the_jobs_that_wait(
    oldest_wait: float, queued: int, workers: int
) -> None:
    decide = AutoScale(1, 100, max_wait=2.0).start()
    assert decide(busy(4, queued=queued, oldest_wait=oldest_wait)).workers == workers


@pytest.mark.parametrize(
    "more", [{"is_throttled": True}, {"starting": 1}, {"idle": 1}, {"queued": 0, "oldest_wait": 0.0}], ids=str
)
def test_what_jobs_have_waited_for_something_else_does_not_count(more: dict[str, Any]) -> None:
    decide = AutoScale(1, 100, max_wait=2.0).start()
    long = busy(4, queued=3, oldest_wait=100.0)
    assert decide(replace(long, now=100.0, **more)).workers == 4
    since = 101.0 if {"is_throttled", "starting"} & more.keys() else 100.0  # it may have ended just before this look
    answer = decide(replace(long, now=101.0, oldest_wait=101.0))
    assert answer.workers == 4
    assert answer.ask_again_in == pytest.approx(since + 2.0 - 101.0, abs=0.01)
    assert decide(replace(long, now=since + 3.0, oldest_wait=since + 3.0)).workers == 6


def test_a_job_can_wait_a_little_longer_than_jobs_take_but_not_half_a_minute() -> None:
    decide = AutoScale(1, 100).start()
    assert decide(busy(4, queued=3, oldest_wait=29.0)).workers == 4
    assert decide(busy(4, queued=3, oldest_wait=31.0)).workers == 5
    decide = AutoScale(1, 100).start()
    decide(busy(4, succeeded=10, seconds=(4.0,) * 10))
    assert decide(busy(4, now=60.0, queued=3, oldest_wait=5.9)).workers == 4
    assert decide(busy(4, now=60.0, queued=3, oldest_wait=6.1)).workers == 5
    decide(busy(4, now=60.0, succeeded=5000, seconds=(0.1,) * 5000))
    decide(busy(4, now=60.0, succeeded=5000, seconds=(0.1,) * 5000))
    assert decide(busy(4, now=70.0, queued=3, oldest_wait=1.0)).workers > 4


def test_jobs_that_take_no_time_can_wait_for_a_moment() -> None:
    decide = AutoScale(1, 100).start()
    assert decide(busy(4, succeeded=2, seconds=(0.0, 0.0), queued=3, oldest_wait=0.001)).workers == 4
    assert decide(busy(4, queued=3, oldest_wait=0.011)).workers == 5


def test_it_asks_to_be_asked_again_when_a_job_will_have_waited_too_long() -> None:
    decide = AutoScale(1, 10).start()
    assert decide(busy(1, queued=3, oldest_wait=10.0)).ask_again_in == pytest.approx(20.0, abs=0.01)
    assert decide(busy(10, queued=3, oldest_wait=10.0)).ask_again_in is None


def test_it_asks_to_be_asked_again_at_the_backlog_that_makes_it_grow() -> None:
    decide = AutoScale(1, 10, backlog_per_worker=2.5).start()
    assert decide(busy(3, queued=7)).ask_again_at_backlog == 7
    grown = decide(busy(3, queued=8))
    assert (grown.workers, grown.ask_again_at_backlog) == (4, 10)
    assert decide(busy(10, queued=8)).ask_again_at_backlog is None


def test_it_says_how_long_a_job_has_waited() -> None:
    grown = AutoScale(1, 10, max_wait=1.0).start()(busy(2, queued=3, oldest_wait=1.75))
    assert "a job has waited 1.75 s for 2 workers" in grown.reason
    assert grown.figures["oldest_wait"] == 1.75


@pytest.mark.parametrize("policy", [AutoScale(4, 64), AutoScale(4, 64, interval=50.0), AutoScale(4, 64, max_wait=1.0)])
@virtual
async def test_jobs_that_hang_do_not_hold_up_the_few_that_wait(policy: AutoScale) -> None:
    done: list[int] = []

    async def handler(job: int) -> None:
        await asyncio.sleep(3600 if job < 20 else 0.05)
        done.append(job)

    async with WorkerPool(handler, workers=policy) as pool:
        for job in range(43):
            await pool.submit(job)
        await asyncio.sleep(150)
        assert len(done) == 23
        assert pool.stats.queued == 0
        assert pool.stats.running == 20
        pool.cancel()


@virtual
async def test_a_pause_is_no_wait_that_makes_it_grow() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(4, 64, max_wait=5.0), observers=[sizes]) as pool:
        pool.pause()
        for _ in range(12):
            await pool.submit(1)
        await asyncio.sleep(1000)
        pool.resume()
        await pool.join()
        assert sizes.sizes == []


# -- Shrinking ---------------------------------------------------------------------------------------------------------


def test_workers_that_were_not_needed_for_the_whole_time_retire_together() -> None:
    decide = AutoScale(2, 10).start()
    assert decide(busy(10)).workers == 10
    assert decide(at_rest(10, now=0.1, peak_running=10)).workers == 10
    assert decide(at_rest(10, now=30.0)).workers == 10
    assert decide(at_rest(10, now=30.2)).workers == 2


def test_as_many_stay_as_were_busy_at_once_in_that_time() -> None:
    decide = AutoScale(2, 10).start()
    decide(busy(10))
    decide(at_rest(10, now=10.0, peak_running=7))
    decide(at_rest(10, now=20.0, peak_running=4))
    assert decide(at_rest(10, now=30.1, peak_running=3)).workers == 7
    assert decide(at_rest(7, now=40.1)).workers == 4
    assert decide(at_rest(4, now=50.1)).workers == 3
    assert decide(at_rest(3, now=60.2)).workers == 2


def test_jobs_that_run_all_the_time_keep_their_workers() -> None:
    decide = AutoScale(1, 10).start()
    for seconds in range(0, 500, 10):
        load = PoolLoad(now=seconds, workers=10 if seconds < 30 else 4, running=4, peak_running=4, idle=6)
        assert decide(load).workers == (10 if seconds < 30 else 4)


def test_what_there_is_when_it_begins_has_its_time_too() -> None:
    decide = AutoScale(1, 10).start()
    assert decide(at_rest(8, now=1000.0)).workers == 8
    assert decide(at_rest(8, now=1029.0)).workers == 8
    assert decide(at_rest(8, now=1030.0)).workers == 1


def test_what_is_new_has_its_time_too() -> None:
    decide = AutoScale(1, 10).start()
    decide(busy(1, queued=50))
    assert decide(PoolLoad(now=20.0, workers=10, running=1, peak_running=1, idle=9)).workers == 10
    assert decide(PoolLoad(now=29.0, workers=10, running=1, peak_running=1, idle=9)).workers == 10
    assert decide(PoolLoad(now=30.0, workers=10, running=1, peak_running=1, idle=9)).workers == 1


def test_it_never_goes_below_the_fewest_though_all_were_idle() -> None:
    decide = AutoScale(3, 10).start()
    decide(at_rest(10))
    assert decide(at_rest(10, now=1000.0)).workers == 3


def test_without_a_fewest_all_may_retire() -> None:
    decide = AutoScale(0, 10).start()
    decide(at_rest(1))
    assert decide(at_rest(1, now=30.0)).workers == 0


def test_workers_that_open_slowly_do_not_retire_while_jobs_wait_for_them() -> None:
    decide = AutoScale(1, 10).start()
    decide(busy(1, queued=100))
    for seconds in range(1, 100):
        load = PoolLoad(now=seconds, workers=10, running=1, peak_running=1, starting=9, queued=90)
        assert decide(load).workers == 10


def test_workers_that_still_open_when_nothing_waits_any_more_have_their_time_and_retire() -> None:
    decide = AutoScale(1, 10).start()
    decide(busy(1, queued=100))
    assert decide(PoolLoad(now=25.0, workers=10, running=1, peak_running=1, starting=9, queued=50)).workers == 10
    assert decide(PoolLoad(now=50.0, workers=10, idle=1, starting=9)).workers == 10
    assert decide(PoolLoad(now=80.0, workers=10, idle=1, starting=9)).workers == 1


def test_an_idle_timeout_of_nothing_retires_at_once_what_is_not_needed() -> None:
    decide = AutoScale(1, 10, idle_timeout=0).start()
    decide(busy(10))
    assert decide(PoolLoad(now=0.1, workers=10, running=4, peak_running=4, idle=6)).workers == 4


def test_it_asks_to_be_asked_again_when_the_first_may_retire() -> None:
    decide = AutoScale(1, 10).start()
    decide(busy(10))
    assert decide(at_rest(10, now=5.0, peak_running=10)).ask_again_in == 30.0
    assert decide(at_rest(10, now=8.0)).ask_again_in == 27.0


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(at_rest(1), id="the fewest"),
        pytest.param(busy(5), id="all busy"),
        pytest.param(busy(10, queued=3), id="the most, all busy, with a backlog"),
    ],
)
def test_where_nobody_could_retire_it_does_not_ask_to_be_asked(load: PoolLoad) -> None:
    decide = AutoScale(1, 10).start()
    decide(load)
    assert decide(replace(load, now=100.0)).ask_again_in is None


def test_a_timer_that_is_a_little_early_is_not_taken_for_a_look_too_many() -> None:
    decide = AutoScale(1, 10).start()
    decide(at_rest(10, now=1000.0))
    assert decide(at_rest(10, now=1029.9999)).workers == 1


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, int, int, int]]:
    """Seconds that pass, how many were busy at the most, how many of these are, and how many jobs are queued."""
    steps = st.tuples(
        st.floats(0.1, 40.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.sampled_from([0, 0, 0, 3, 11, 60, 500])
    )
    return [(round(pause, 3), peak, share, queued) for pause, peak, share, queued in draw(st.lists(steps, max_size=60))]  # type: ignore[misc]


@given(st.integers(0, 4), st.integers(1, 12), histories())
def test_it_keeps_its_bounds_and_retires_nobody_who_was_needed(
    fewest: int, more: int, history: list[tuple[float, float, float, int]]
) -> None:
    policy = AutoScale(fewest, fewest + more)
    decide = policy.start()
    workers, time = policy.initial_workers, 0.0
    begun = [(time, workers)]  # how many there were to be, or were busy at once, and when
    for pause, peak, share, queued in history:
        time += pause
        peak_running = round(peak * workers)
        running = workers if queued else round(share * peak_running)
        peak_running = max(running, peak_running)
        load = PoolLoad(
            now=time,
            workers=workers,
            running=running,
            peak_running=peak_running,
            idle=workers - running,
            queued=queued,
        )
        decision = decide(load)
        begun.append((time, peak_running))
        assert fewest <= decision.workers <= fewest + more
        if decision.workers > workers:
            assert queued > 5 * workers
            begun.append((time, decision.workers))
        else:
            recent = max(size for when, size in begun if when > time - IDLE + 0.01 or when == time)
            assert decision.workers >= min(workers, recent)
            # Somebody is to ask again if there is one who might retire.
            if workers > fewest and running < workers and decision.workers == workers:
                assert decision.ask_again_in is not None
                assert 0 < decision.ask_again_in <= IDLE + 0.01
        workers = decision.workers


def test_a_load_around_the_threshold_does_not_make_it_flap() -> None:
    decide = AutoScale(2, 20).start()
    workers, changes = 2, 0
    for tick in range(6000):  # ten minutes
        queued = 5 * workers + (1 if tick % 20 < 10 else -1)
        answer = decide(busy(workers, now=tick / 10, queued=queued)).workers
        changes += answer != workers
        workers = answer
    assert workers == 20
    assert changes <= 18


# -- A policy is a value -----------------------------------------------------------------------------------------------


def test_policies_are_equal_by_their_arguments_and_can_be_keys() -> None:
    assert AutoScale(1, 10) == AutoScale(1, 10, backlog_per_worker=5, interval=0.1, idle_timeout=30.0)
    assert AutoScale(1, 10) != AutoScale(1, 11)
    assert len({AutoScale(1, 10), AutoScale(1, 10), AutoScale(1, 10, interval=1)}) == 2


def test_a_policy_is_frozen() -> None:
    policy: Any = AutoScale(1, 10)
    with pytest.raises(FrozenInstanceError):
        policy.max_workers = 20


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_policy_can_be_copied_and_pickled(again: Callable[[AutoScale], AutoScale]) -> None:
    policy = AutoScale(1, 10, idle_timeout=5)
    assert again(policy) == policy
    assert again(policy).start()(busy(1, queued=20)).workers == 4


def test_its_repr_is_how_it_was_made() -> None:
    policy = AutoScale(1, 10, idle_timeout=5.0)
    text = (
        "AutoScale(min_workers=1, max_workers=10, backlog_per_worker=5, interval=0.1, idle_timeout=5.0, max_wait=None)"
    )
    assert repr(policy) == text
    assert eval(text) == policy


def test_each_start_decides_for_itself() -> None:
    policy = AutoScale(1, 10)
    before = repr(policy), hash(policy)
    one, other = policy.start(), policy.start()
    one(busy(10, now=100.0))
    other(at_rest(10, now=70.0))
    assert one(at_rest(10, now=100.1)).workers == 10
    assert other(at_rest(10, now=100.1)).workers == 1
    assert (repr(policy), hash(policy)) == before


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"min_workers": -1}, ValueError, "min_workers must be >= 0, got -1"),
        ({"min_workers": True}, TypeError, "min_workers must be an int, got True"),
        ({"min_workers": 1.0}, TypeError, "min_workers must be an int, got 1.0"),
        ({"min_workers": "1"}, TypeError, "min_workers must be an int, got '1'"),
        ({"min_workers": None}, TypeError, "min_workers must be an int, got None"),
        ({"min_workers": 0, "max_workers": 0}, ValueError, "max_workers must be >= 1, got 0"),
        ({"max_workers": -3}, ValueError, "max_workers must be >= 1, got -3"),
        ({"max_workers": False}, TypeError, "max_workers must be an int, got False"),
        ({"max_workers": "10"}, TypeError, "max_workers must be an int, got '10'"),
        ({"max_workers": float("nan")}, TypeError, "max_workers must be an int, got nan"),
        ({"min_workers": 5, "max_workers": 4}, ValueError, "max_workers must be >= min_workers, got 4 < 5"),
        ({"backlog_per_worker": 0}, ValueError, "backlog_per_worker must be a finite number > 0, got 0"),
        ({"backlog_per_worker": -5}, ValueError, "backlog_per_worker must be a finite number > 0, got -5"),
        ({"backlog_per_worker": float("nan")}, ValueError, "backlog_per_worker must be a finite number > 0, got nan"),
        ({"backlog_per_worker": float("inf")}, ValueError, "backlog_per_worker must be a finite number > 0, got inf"),
        ({"backlog_per_worker": True}, TypeError, "backlog_per_worker must be a number, got True"),
        ({"backlog_per_worker": "5"}, TypeError, "backlog_per_worker must be a number, got '5'"),
        ({"interval": 0}, ValueError, "interval must be a finite number of seconds > 0, got 0"),
        ({"interval": -0.1}, ValueError, "interval must be a finite number of seconds > 0, got -0.1"),
        ({"interval": float("nan")}, ValueError, "interval must be a finite number of seconds > 0, got nan"),
        ({"interval": True}, TypeError, "interval must be a number of seconds, got True"),
        ({"interval": "1s"}, TypeError, "interval must be a number of seconds, got '1s'"),
        ({"idle_timeout": -1}, ValueError, "idle_timeout must be a finite number of seconds >= 0, got -1"),
        ({"idle_timeout": float("nan")}, ValueError, "idle_timeout must be a finite number of seconds >= 0, got nan"),
        ({"idle_timeout": False}, TypeError, "idle_timeout must be a number of seconds, got False"),
        ({"max_wait": 0}, ValueError, "max_wait must be a finite number of seconds > 0, got 0"),
        ({"max_wait": float("inf")}, ValueError, "max_wait must be a finite number of seconds > 0, got inf"),
        ({"max_wait": True}, TypeError, "max_wait must be a number of seconds, got True"),
        ({"idle_timeout": "30"}, TypeError, "idle_timeout must be a number of seconds, got '30'"),
    ],
    ids=str,
)
def test_each_argument_that_is_wrong_is_refused_with_the_rule_and_the_value(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as raised:
        AutoScale(**{"min_workers": 1, "max_workers": 10, **arguments})
    assert str(raised.value) == said


def test_all_but_the_bounds_go_by_name() -> None:
    with pytest.raises(TypeError):
        AutoScale(1, 10, 5)  # type: ignore[call-arg]


# -- A burst in a pool -------------------------------------------------------------------------------------------------


async def seconds_for_the_burst(workers: Any, *, quiet: float = 0.0, sizes: Sizes | None = None) -> float:
    """How long a hundred jobs of 100 ms take, that come at once after a quiet time."""
    async with WorkerPool(sleeper, workers=workers, observers=[] if sizes is None else [sizes]) as pool:
        await asyncio.sleep(quiet)
        begun = now()
        handles = [await pool.submit(0.1) for _ in range(100)]
        for handle in handles:
            await handle
        return now() - begun


@pytest.mark.parametrize("quiet", [0.0, 0.03, 1000.0])
@virtual
async def test_a_burst_brings_all_workers_within_two_intervals(quiet: float) -> None:
    sizes = Sizes()
    await seconds_for_the_burst(AutoScale(2, 10), quiet=quiet, sizes=sizes)
    assert sizes.sizes == [10]
    assert sizes.times[0] <= quiet + 0.2


@pytest.mark.parametrize("interval", [0.1, 10.0, 100.0])
@virtual
async def test_a_burst_after_a_quiet_time_does_not_wait_for_the_next_look(interval: float) -> None:
    sizes = Sizes()
    await seconds_for_the_burst(AutoScale(2, 10, interval=interval), quiet=1000.0, sizes=sizes)
    assert sizes.sizes == [10]
    assert sizes.times[0] <= 1000.002


@pytest.mark.parametrize("quiet", [0.0, 0.03, 1000.0])
@virtual
async def test_a_burst_takes_at_most_a_tenth_longer_than_with_all_workers_from_the_start(quiet: float) -> None:
    fixed = await seconds_for_the_burst(10)
    assert await seconds_for_the_burst(AutoScale(2, 10), quiet=quiet) <= 1.1 * fixed + 1e-9


@fuzzed
async def test_a_burst_under_any_schedule_ends_with_every_value_and_within_the_bounds() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(2, 10), observers=[sizes]) as pool:
        assert await pool.map([0.1] * 100) == [0.1] * 100
        assert pool.stats.peak_running == 10
        await asyncio.sleep(IDLE + 1)
        assert pool.stats.workers == 2
        assert sizes.sizes[0] == 10
        assert sizes.sizes == sorted(sizes.sizes, reverse=True)
        assert_conserved(pool)


@virtual
async def test_the_pool_is_back_at_the_fewest_once_all_were_idle_for_their_time() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(2, 10)) as pool:
        await pool.map([0.1] * 100)
        await asyncio.sleep(IDLE - 0.2)
        assert pool.stats.workers == 10
        await asyncio.sleep(0.2 + SOON)
        assert pool.stats.workers == pool.stats.target_workers == 2


@virtual
async def test_no_look_sees_fewer_workers_than_the_fewest_though_all_go_idle_at_once() -> None:
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(pool.stats.workers)
            await asyncio.sleep(0.05)

    async with WorkerPool(sleeper, workers=AutoScale(4, 10, idle_timeout=1)) as pool:
        looking = asyncio.create_task(look())
        for _ in range(5):
            await pool.map([0.5] * 100)
            await asyncio.sleep(3)
        looking.cancel()
    assert min(seen) == 4
    assert max(seen) == 10


@virtual
async def test_never_more_jobs_run_than_the_most_whoever_submits_however_many() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 7), queue_size=2) as pool:
        streams = [asyncio.ensure_future(anext_all(pool, 30)) for _ in range(5)]
        runs = [asyncio.create_task(pool.run(0.1)) for _ in range(50)]
        await asyncio.gather(*streams, *runs)
        assert pool.stats.peak_running == 7
        assert pool.stats.succeeded == 200


async def anext_all(pool: WorkerPool[float, float], jobs: int) -> list[float]:
    return await pool.map([0.1] * jobs)


@virtual
async def test_a_service_that_is_used_a_little_stays_at_the_fewest() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(2, 10), observers=[sizes]) as pool:
        for _ in range(300):
            await asyncio.gather(*(pool.run(0.3) for _ in range(3)))
    assert sizes.sizes == []


# -- Where it does not grow --------------------------------------------------------------------------------------------


@virtual
async def test_a_paused_pool_does_not_grow_and_does_so_when_it_is_resumed() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(2, 10)) as pool:
        pool.pause()
        for _ in range(100):
            await pool.submit(1)
        await asyncio.sleep(10)
        assert pool.stats.target_workers == 2
        pool.resume()
        await asyncio.sleep(SOON)
        assert pool.stats.target_workers == 10


@virtual
async def test_a_pool_that_a_job_has_paused_does_not_grow() -> None:
    async def handler(job: int) -> None:
        if job == 0:
            raise RetryAfter(20, pause=True)
        await asyncio.sleep(1)

    async with WorkerPool(handler, workers=AutoScale(2, 10), retry=Retry(jitter=False, attempts=1)) as pool:
        first = await pool.submit(0)
        for job in range(1, 100):
            await pool.submit(job)
        await asyncio.sleep(19)
        assert pool.stats.target_workers == 2
        await asyncio.sleep(1 + SOON)
        assert pool.stats.target_workers == 10
        await first.outcome()


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 0.09])
@pytest.mark.parametrize("offset", [0.0, 0.005, 0.05])
@pytest.mark.parametrize("workers", [1, 2])
@virtual
async def test_a_pool_does_not_grow_for_jobs_that_wait_for_the_rate_limit_of_all(
    workers: int, offset: float, seconds: float
) -> None:
    sizes = Sizes()
    policy = AutoScale(workers, 50)
    async with WorkerPool(sleeper, workers=policy, limiter=RateLimit(10), observers=[sizes]) as pool:
        await asyncio.sleep(offset)
        await pool.map([seconds] * 300)
    assert sizes.sizes == []


@virtual
async def test_a_pool_whose_rate_limit_is_open_grows_until_the_rate_is_reached() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 50), limiter=RateLimit(20, burst=2)) as pool:
        await pool.map([1.0] * 400)
        assert now() < 25
        assert pool.stats.peak_running >= 20


@virtual
async def test_a_pool_grows_when_the_rate_limit_opens_while_all_workers_are_busy() -> None:
    policy = AutoScale(1, 50, backlog_per_worker=1)
    async with WorkerPool(sleeper, workers=policy, limiter=RateLimit(0.1)) as pool:
        for _ in range(50):
            await pool.submit(10_000)
        await asyncio.sleep(100 + SOON)
        assert pool.stats.running >= 10
        pool.cancel()


@virtual
async def test_a_pool_does_not_grow_while_jobs_wait_in_a_semaphore() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(4, 50), limiter=asyncio.Semaphore(3), observers=[sizes]) as pool:
        await pool.map([0.35] * 100)
    assert sizes.sizes == []


@virtual
async def test_a_pool_does_not_grow_while_jobs_wait_in_a_semaphore_of_their_own() -> None:
    sizes, semaphore = Sizes(), asyncio.Semaphore(3)
    async with WorkerPool(sleeper, workers=AutoScale(4, 50), limiter=lambda job: semaphore, observers=[sizes]) as pool:
        await pool.map([0.35] * 100)
    assert sizes.sizes == []


@virtual
async def test_a_pool_grows_as_soon_as_the_semaphore_lets_its_jobs_begin() -> None:
    semaphore = asyncio.Semaphore(5)
    for _ in range(5):
        await semaphore.acquire()
    async with WorkerPool(sleeper, workers=AutoScale(1, 5), limiter=semaphore) as pool:
        for _ in range(30):
            await pool.submit(60)
        await asyncio.sleep(10)
        assert pool.stats.target_workers == 1
        for _ in range(5):
            semaphore.release()
        await asyncio.sleep(SOON)
        assert pool.stats.target_workers == 5
        assert pool.stats.running == 5
        pool.cancel()


@virtual
async def test_jobs_that_are_parked_for_their_own_rate_limit_are_no_backlog() -> None:
    sizes = Sizes()
    limiter = RateLimit.per_key(lambda job: "one host", 10)
    async with WorkerPool(echo, workers=AutoScale(2, 50), limiter=limiter, observers=[sizes]) as pool:
        await pool.map(range(200))
        assert now() > 19
    assert sizes.sizes == []


@virtual
async def test_jobs_that_back_off_are_no_backlog() -> None:
    sizes = Sizes()

    async def handler(job: int) -> None:
        if asyncpool.current_job().attempt == 1:
            raise ConnectionError

    retry = Retry(backoff=20, jitter=False, max_backoff=60)
    async with WorkerPool(handler, workers=AutoScale(2, 10), retry=retry, observers=[sizes]) as pool:
        handles = [await pool.submit(job) for job in range(100)]
        await asyncio.sleep(19)
        assert pool.stats.delayed == 100
        assert sizes.sizes == []
        for handle in handles:
            await handle


@virtual
async def test_who_waits_because_too_many_jobs_are_delayed_is_no_backlog() -> None:
    async def handler(job: float) -> None:
        if not job and asyncpool.current_job().attempt == 1:
            raise RetryAfter(500)
        await asyncio.sleep(job)

    async with WorkerPool(handler, workers=AutoScale(1, 10), max_delayed=3, retry=Retry()) as pool:
        for job in (0, 0, 0, 60):
            pool.submit_nowait(job)
        await asyncio.sleep(1)
        waiting = asyncio.create_task(pool.submit(1))
        with pytest.raises(QueueFull):
            pool.submit_nowait(1)
        await asyncio.sleep(10)
        assert pool.stats.target_workers == 1
        await (await waiting)


@virtual
async def test_a_load_that_goes_up_and_down_around_the_threshold_gives_few_decisions() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(2, 20), observers=[sizes]) as pool:
        for size in itertools.islice(itertools.cycle([12, 14, 11, 13]), 120):  # two begin at once, ten may wait
            for _ in range(size):
                pool.submit_nowait(0.5)
            await asyncio.sleep(5)
        assert now() == 600
    assert 1 <= len(sizes.sizes) <= 4


@virtual
async def test_what_a_slow_reader_has_not_read_is_no_reason_to_grow() -> None:
    sizes = Sizes()
    async with (
        WorkerPool(sleeper, workers=AutoScale(1, 10), queue_size=3, observers=[sizes]) as pool,
        pool.map(itertools.repeat(0.5), ordered=False) as values,
    ):
        async for _ in values:  # at first it fills the window, and does so quickly
            await asyncio.sleep(2)
            if now() > 600:
                break
    assert sizes.sizes[-1] == 1
    assert sizes.times[-1] < 2 * IDLE


# -- A full queue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_size", [0, 1, 3])
@virtual
async def test_it_grows_when_submitters_wait(queue_size: int) -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 8), queue_size=queue_size) as pool:
        waiting = [asyncio.create_task(pool.run(100)) for _ in range(20)]
        await asyncio.sleep(1)
        assert pool.stats.running == 8
        pool.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("queue_size", [0, 1, 3])
@virtual
async def test_it_grows_when_a_stream_waits(queue_size: int) -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 8), queue_size=queue_size) as pool:
        assert await pool.map([1.0] * 80) == [1.0] * 80
        assert now() < 12
        assert pool.stats.peak_running == 8


@pytest.mark.parametrize("queue_size", [0, 1])
@virtual
async def test_it_grows_when_submitters_are_rejected(queue_size: int) -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 8), queue_size=queue_size) as pool:
        rejected = 0
        for _ in range(200):
            try:
                pool.submit_nowait(1.0)
            except QueueFull:
                rejected += 1
            await asyncio.sleep(0.05)
        assert rejected
        assert pool.stats.peak_running == 8


@virtual
async def test_it_grows_when_runs_are_rejected() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 8), queue_size=0) as pool:
        first = asyncio.create_task(pool.run(100))
        await asyncio.sleep(50)
        with pytest.raises(QueueFull):
            await pool.run(1, if_full="raise")
        await asyncio.sleep(SOON)
        assert pool.stats.target_workers == 2
        await first


@virtual
async def test_the_queue_holds_ten_times_the_most_workers() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(2, 10)) as pool:
        pool.pause()
        for _ in range(100):
            pool.submit_nowait(0)
        with pytest.raises(QueueFull, match="100 of 100 queued"):
            pool.submit_nowait(0)
        assert pool.group()._channel.window == 110


# -- Sleep, and waking -------------------------------------------------------------------------------------------------


@virtual
async def test_with_no_fewest_the_pool_goes_to_sleep_without_any_worker() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(0, 10, idle_timeout=5)) as pool:
        assert pool.stats.workers == pool.stats.target_workers == 0
        await pool.map([0.1] * 100)
        assert pool.stats.workers == 10
        await asyncio.sleep(6)
        assert pool.stats.workers == pool.stats.target_workers == 0
        await pool.join()


async def by_submit(pool: WorkerPool[float, float]) -> None:
    await (await pool.submit(0))


async def by_submit_nowait(pool: WorkerPool[float, float]) -> None:
    await pool.submit_nowait(0)


async def by_run(pool: WorkerPool[float, float]) -> None:
    await pool.run(0, if_full="raise")


async def by_stream(pool: WorkerPool[float, float]) -> None:
    await pool.map([0, 0])


async def by_group(pool: WorkerPool[float, float]) -> None:
    async with pool.group() as group:
        await group.submit(0)
    assert len([outcome async for outcome in group]) == 1


async def by_resume(pool: WorkerPool[float, float]) -> None:
    pool.pause()
    begun = now()
    waiting = asyncio.create_task(pool.run(0))
    await asyncio.sleep(10)
    assert not waiting.done()
    pool.resume()
    await waiting
    assert now() == begun + 10


@pytest.mark.parametrize("queue_size", [0, 1, None])
@pytest.mark.parametrize(
    "wake", [by_submit, by_submit_nowait, by_run, by_stream, by_group, by_resume], ids=lambda wake: wake.__name__
)
@fuzzed
async def test_the_first_job_wakes_the_pool_without_waiting_for_a_look(
    wake: Callable[[Any], Any], queue_size: int | None
) -> None:
    policy = AutoScale(0, 3, interval=1000, idle_timeout=5)
    async with WorkerPool(sleeper, workers=policy, queue_size=queue_size) as pool:
        for _ in range(2):  # from its first sleep, and from a later one
            await asyncio.sleep(5000)
            assert pool.stats.workers == 0
            begun = now()
            await wake(pool)
            assert now() - begun == (10 if wake is by_resume else 0)


@fuzzed
async def test_a_job_that_comes_back_wakes_the_pool_without_waiting_for_a_look() -> None:
    begun: list[float] = []

    async def handler(job: int) -> None:
        begun.append(now())
        if len(begun) < 3:
            raise ConnectionError

    policy = AutoScale(0, 3, interval=5, idle_timeout=10)
    retry = Retry(backoff=100, factor=1, max_backoff=100, jitter=False)
    async with WorkerPool(handler, workers=policy, retry=retry) as pool:
        handle = await pool.submit(1)
        await asyncio.sleep(90)
        assert pool.stats.workers == 0
        assert pool.stats.delayed == 1
        await handle
    assert begun == [0, 100, 200]


@fuzzed
async def test_a_pool_that_sleeps_drains_the_jobs_that_come_back() -> None:
    async def handler(job: int) -> int:
        if asyncpool.current_job().attempt == 1:
            raise RetryAfter(100)
        return job

    async with WorkerPool(handler, workers=AutoScale(0, 3, idle_timeout=1), retry=Retry(jitter=False)) as pool:
        handles = [await pool.submit(job) for job in range(5)]
    assert [await handle for handle in handles] == list(range(5))
    assert now() == 100


@pytest.mark.parametrize("end", ["drain", "cancel"])
@fuzzed
async def test_a_pool_that_sleeps_ends_at_once(end: str) -> None:
    pool = WorkerPool(sleeper, workers=AutoScale(0, 3))
    await pool.start()
    await asyncio.sleep(10)
    if end == "cancel":
        pool.cancel()
    assert (await pool.close()).unfinished == ()
    assert now() == 10


@virtual
async def test_a_pool_that_slept_grows_in_one_step_to_what_came_at_once() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(0, 10), observers=[sizes]) as pool:
        for _ in range(30):
            pool.submit_nowait(1)
        await settle()
        assert sizes.sizes == [6]
        assert now() == 0


@virtual
async def test_a_worker_that_a_queued_job_had_woken_goes_when_that_is_cancelled() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(0, 3, idle_timeout=5)) as pool:
        pool.pause()
        handle = await pool.submit(1)
        await asyncio.sleep(100)
        handle.cancel()
        await asyncio.sleep(10)
        assert pool.stats.workers == 0


# -- Who retires -------------------------------------------------------------------------------------------------------


@virtual
async def test_workers_that_are_used_stay_and_the_others_retire() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 5, idle_timeout=10)) as pool:
        await pool.map([0.5] * 50)
        assert pool.stats.workers == 5
        for _ in range(100):
            await asyncio.gather(pool.run(0.2), pool.run(0.2))
            await asyncio.sleep(0.8)
        assert pool.stats.workers == 2


@virtual
async def test_long_jobs_keep_their_workers_and_these_have_their_time_afterwards() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 4)) as pool:
        handles = [await pool.submit(1000) for _ in range(24)]
        await asyncio.sleep(500)
        assert pool.stats.running == pool.stats.target_workers == 4
        for handle in handles[4:]:
            handle.cancel()
        await handles[0]
        await asyncio.sleep(IDLE - 1)
        assert pool.stats.workers == 4
        await asyncio.sleep(1 + SOON)
        assert pool.stats.workers == 1


@virtual
async def test_a_burst_now_and_then_keeps_the_workers_if_it_comes_within_their_time() -> None:
    sizes = Sizes()
    async with WorkerPool(sleeper, workers=AutoScale(2, 10), observers=[sizes]) as pool:
        for _ in range(50):
            await pool.map([0.1] * 100)
            await asyncio.sleep(IDLE - 2)
        assert sizes.sizes == [10]


@virtual
async def test_an_idle_timeout_of_nothing_retires_workers_at_the_next_look() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 10, idle_timeout=0)) as pool:
        await pool.map([0.1] * 100)
        await asyncio.sleep(SOON)
        assert pool.stats.workers == 1


@virtual
async def test_a_pool_that_is_idle_at_the_fewest_is_left_alone() -> None:
    """Otherwise the clock of a program that waits indefinitely would keep running."""
    async with WorkerPool(sleeper, workers=AutoScale(1, 10)) as pool:
        await pool.map([0.1] * 100)
        await asyncio.sleep(100)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


# -- More ways -------------------------------------------------------------------------------------------------------


@fuzzed
async def test_oneshot_takes_a_policy() -> None:
    sizes = Sizes()
    values = await asyncpool.map(sleeper, [0.1] * 100, workers=AutoScale(2, 10), observers=[sizes])
    assert values == [0.1] * 100
    assert sizes.sizes == [10]
    outcomes = await asyncpool.outcomes(sleeper, [0.1] * 30, workers=AutoScale(0, 10))
    assert len(outcomes) == 30


@virtual
async def test_jobs_by_priority_scale_too() -> None:
    async with WorkerPool(sleeper, workers=AutoScale(1, 10), priority=lambda job: -job) as pool:
        await pool.map([0.1, 0.2] * 50)
        assert pool.stats.peak_running == 10


@virtual
async def test_jobs_that_are_tried_again_scale_too() -> None:
    async def handler(job: int) -> int:
        await asyncio.sleep(0.1)
        if asyncpool.current_job().attempt < 3:
            raise ConnectionError
        return job

    async with WorkerPool(handler, workers=AutoScale(1, 10), retry=Retry(backoff=0.01)) as pool:
        assert await pool.map(range(100)) == list(range(100))
        assert pool.stats.peak_running == 10


@fuzzed
async def test_the_queue_is_drained_by_more_workers_than_there_were() -> None:
    handler = ManualHandler[int, None]()
    pool = WorkerPool(handler, workers=AutoScale(1, 4))
    await pool.start()
    for job in range(30):
        await pool.submit(job)
    pool.drain()
    await asyncio.sleep(SOON)
    assert len(handler.running) == 4
    while handler.running:
        handler.finish_all()
        await settle()
    assert (await pool.close()).unfinished == ()


def test_a_decision_is_a_value_with_defaults() -> None:
    assert Decision(3) == Decision(workers=3, reason="", figures={}, ask_again_in=None)
