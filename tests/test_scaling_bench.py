"""The simulator behind `python -m benchmarks.scaling`: its backends obey arithmetic, and its report hides nothing."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from asyncpool import AutoScale, RetryAfter
from asyncpool.testing import run
from benchmarks.harness import ROOT
from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import day, loads, oracle, page, real
from benchmarks.scaling.backends import Changing, Drifting, RateLimited, Servers, Thrashing, TooManyRequests
from benchmarks.scaling.compare import compare
from benchmarks.scaling.contenders import Contender
from benchmarks.scaling.measure import Figures, Goal, goals_of, worst
from benchmarks.scaling.oracle import Best, best_fixed, recovery, smallest_best, unsteady
from benchmarks.scaling.scenarios import SCENARIOS
from benchmarks.scaling.services import Constant, Lognormal, Mix, Pareto, Service
from benchmarks.scaling.simulate import Scenario, simulate
from benchmarks.scaling.tables import Answer, as_markdown, as_text, summary
from benchmarks.scaling.totals import Durations, Sample


def now() -> float:
    return asyncio.get_running_loop().time()


def small(backend: Callable[[Random], Any], load: loads.Load = loads.backlogged, **more: Any) -> Scenario:
    return Scenario(name="small", about="", backend=backend, load=load, **({"seconds": 10.0, "settle": 2.0} | more))


# -- Services, loads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "service",
    [Constant(0.05), Lognormal(0.05), Pareto(0.05), Mix(((0.9, 0.01), (0.1, 0.2)))],
    ids=lambda one: type(one).__name__,
)
def test_a_service_has_the_mean_that_it_says(service: Service) -> None:
    random = Random(1)
    drawn = [service.draw(random) for _ in range(50_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(service.mean, rel=0.03)


def test_a_bounded_pareto_has_its_bounds() -> None:
    service, random = Pareto(0.05, ratio=100.0), Random(1)
    drawn = [service.draw(random) for _ in range(50_000)]
    assert service.shortest <= min(drawn) < 1.01 * service.shortest
    assert 50 * service.shortest < max(drawn) <= 100 * service.shortest


def test_arrivals_come_at_their_rate() -> None:
    def count(load: loads.Load, begin: float, end: float) -> int:
        times = [at for at in islice(load(Random(1)), 40_000) if at < 200.0]
        assert all(a <= b for a, b in pairwise(times))
        return sum(begin <= at < end for at in times)

    assert count(loads.steady(50.0), 0.0, 100.0) == pytest.approx(5000, rel=0.05)
    burst = loads.burst(10.0, 100.0, begin=50.0, end=100.0)
    assert count(burst, 0.0, 50.0) == pytest.approx(500, rel=0.15)
    assert count(burst, 50.0, 100.0) == pytest.approx(5000, rel=0.05)
    assert count(loads.ramp(0.0, 100.0, begin=0.0, end=100.0), 0.0, 100.0) == pytest.approx(5000, rel=0.05)
    assert count(loads.on_off(50.0, on=20.0, off=30.0), 20.0, 50.0) == 0
    assert count(loads.on_off(50.0, on=20.0, off=30.0), 50.0, 70.0) == pytest.approx(1000, rel=0.1)
    night_and_day = loads.day(0.0, 100.0, period=100.0)
    assert count(night_and_day, 0.0, 100.0) == pytest.approx(5000, rel=0.05)
    assert count(night_and_day, 40.0, 60.0) > 5 * count(night_and_day, 0.0, 20.0)


# -- Backends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 10, 20])
def test_servers_do_as_much_as_there_are_callers_or_servers(size: int) -> None:
    result = simulate(small(lambda random: Servers(10, Lognormal(0.05), random=random)), size)
    assert result.settled.throughput == pytest.approx(min(size, 10) / 0.05, rel=0.05)
    assert result.settled.mean_workers == size
    assert result.settled.seconds == pytest.approx(8.0)


def test_servers_take_callers_first_come_first_served() -> None:
    async def main() -> None:
        servers = Servers(1, Constant(1.0), random=Random(1))
        ends: list[tuple[int, float]] = []

        async def call(number: int) -> None:
            await servers.call(number)
            ends.append((number, now()))

        gone = asyncio.create_task(call(99))
        calls = [asyncio.create_task(call(number)) for number in range(3)]
        await asyncio.sleep(0.5)
        calls[1].cancel()  # nobody waits for it any more, so no server begins it
        gone.cancel()  # and this one goes on to the end
        await asyncio.wait([gone, *calls])
        assert ends == [(0, 2.0), (2, 3.0)]

    run(main)


def test_changing_servers_change_when_the_schedule_says_so() -> None:
    schedule = ((0.0, 10), (10.0, 5), (20.0, 20))
    result = simulate(small(lambda random: Changing(schedule, Lognormal(0.05), random=random), seconds=30.0), 20)
    for (since, servers), end in zip(schedule, (10.0, 20.0, 30.0), strict=True):
        done = [sample.throughput for sample in result.trace if since + 1.0 < sample.at <= end]
        assert sum(done) / len(done) == pytest.approx(servers / 0.05, rel=0.05)


def test_drifting_servers_become_slower() -> None:
    scenario = small(lambda random: Drifting(10, Constant(0.1), doubling=10.0, random=random), seconds=21.0, settle=0.0)
    result = simulate(scenario, 10)
    assert result.trace[0].median_running == pytest.approx(0.1, rel=0.1)
    assert result.trace[-1].median_running == pytest.approx(0.4, rel=0.1)


def test_a_thrashing_backend_follows_its_law_and_does_most_at_its_knee() -> None:
    def thrashing(random: Random) -> Thrashing:
        return Thrashing(Lognormal(0.05), contention=0.02, coherence=0.98 / 400, random=random)

    done = {size: simulate(small(thrashing, seconds=30.0), size).settled.throughput for size in (5, 10, 20, 40, 100)}
    assert max(done, key=lambda size: done[size]) == 20

    async def main() -> None:
        law = thrashing(Random(1))
        assert law.knee == pytest.approx(20.0)
        for size, throughput in done.items():
            assert throughput == pytest.approx(law.per_second(size), rel=0.05)

    run(main)


def test_all_jobs_in_a_thrashing_backend_progress_equally() -> None:
    async def main() -> None:
        backend = Thrashing(Constant(1.0), contention=0.0, coherence=0.5, random=Random(1))
        first = asyncio.create_task(backend.call(1))
        await asyncio.sleep(0.5)
        second = asyncio.create_task(backend.call(2))  # from here on, both at half speed
        await first
        assert now() == pytest.approx(1.5)
        await second  # which has done half of its work, and is alone now
        assert now() == pytest.approx(2.0)

    run(main)


def test_a_rate_limited_backend_lets_no_more_through_than_its_rate_and_burst() -> None:
    async def main() -> None:
        api = RateLimited(100.0, 10, Constant(0.1), random=Random(1))
        passed: list[float] = []
        refused: list[tuple[float, RetryAfter]] = []

        async def call(number: int) -> None:
            began = now()
            try:
                await api.call(number)
                passed.append(began)
            except RetryAfter as error:
                refused.append((now() - began, error))

        calls: list[Awaitable[None]] = []
        random = Random(1)
        for number in range(3000):
            calls.append(asyncio.create_task(call(number)))
            await asyncio.sleep(random.expovariate(300.0))
        await asyncio.gather(*calls)
        assert len(passed) == api.accepted == 3000 - len(refused)
        assert all(isinstance(error.__cause__, TooManyRequests) for _, error in refused)
        assert max(seconds for seconds, _ in refused) == pytest.approx(0.02)
        passed.sort()
        for at, first in enumerate(passed):
            for last in range(at, len(passed), 7):
                assert last - at + 1 <= 100.0 * (passed[last] - first) + 10 + 1e-6
        assert len(passed) == pytest.approx(100.0 * now(), rel=0.05)

    run(main)


def test_too_many_workers_are_turned_away_by_a_rate_limited_backend() -> None:
    scenario = SCENARIOS["rate-limited"]
    fitting = simulate(scenario, 18, seconds=10.0, settle=2.0).settled
    many = simulate(scenario, 25, seconds=10.0, settle=2.0).settled
    assert fitting.overload < 0.02 < 0.1 < many.overload
    assert many.throughput == pytest.approx(200.0, rel=0.05)


# -- The simulator -----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run() -> None:
    one, again, other = (
        simulate(SCENARIOS["steady"], AutoScale(2, 20), seconds=5.0, settle=1.0, seed=seed).trace for seed in (1, 1, 2)
    )
    assert repr(one) == repr(again)  # nan is not itself
    assert repr(one) != repr(other)


def test_waiting_counts_from_the_arrival_also_before_a_full_pool() -> None:
    # Two hundred jobs at once, one a second: the last waits 199 s, the queue of one worker holds but ten of them.
    result = simulate(
        small(lambda random: Servers(1, Constant(1.0), random=random), loads.at_once(200), seconds=300.0, settle=0.0), 1
    )
    assert result.overall.good == 200
    assert result.finished == pytest.approx(200.0)
    assert result.overall.waiting.p50 == pytest.approx(99.0, rel=0.02)
    assert result.overall.waiting.percentile(100) == pytest.approx(199.0, rel=0.02)


def test_jobs_that_wait_before_the_pool_are_in_the_trace() -> None:
    backend = small(lambda random: Servers(1, Constant(100.0), random=random), loads.steady(50.0), settle=0.0)
    result = simulate(backend, 1)
    came = sum(at <= 10.0 for at in islice(loads.steady(50.0)(Random("1 load")), 1000))
    assert result.trace[-1].queued == came - 1


def test_worker_seconds_are_the_integral_of_the_workers_wanted() -> None:
    def steer(pool: Any, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(4.25, pool.resize, 5)

    result = simulate(small(lambda random: Servers(10, Constant(0.1), random=random)), 2, steer=steer)
    assert result.overall.worker_seconds == pytest.approx(2 * 4.25 + 5 * 5.75)
    assert result.settled.worker_seconds == pytest.approx(2 * 2.25 + 5 * 5.75)
    assert [(at, event.old, event.new) for at, event in result.decisions] == [(4.25, 2, 5)]
    assert [sample.wanted for sample in result.trace[7:10]] == [2, 5, 5]


def test_a_fault_of_a_backend_is_counted_and_not_taken_for_a_good_job() -> None:
    class Broken:
        capacity = "none"

        async def call(self, job: object) -> None:
            await asyncio.sleep(0.1)
            raise OSError("broken")

    result = simulate(small(lambda random: Broken(), loads.at_once(5), settle=0.0), 1)
    assert (result.overall.good, result.overall.failures) == (0, 5)


def test_percentiles_are_within_one_percent() -> None:
    durations = Durations()
    for number in range(1, 10_001):
        durations.add(number / 1000)
    assert durations.p50 == pytest.approx(5.0, rel=0.01)
    assert durations.p99 == pytest.approx(9.9, rel=0.01)
    assert (durations + durations).count == 20_000
    assert math.isnan(Durations().p50)


# -- The oracle and its measures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("knee", [1, 2, 7, 20, 33, 80])
def test_the_oracle_finds_the_smallest_size_within_one_percent(knee: int) -> None:
    size, _ = smallest_best(lambda size: float(min(size, knee)), 80)
    assert size == knee
    peak, tried = smallest_best(lambda size: float(size if size <= knee else 2 * knee - size), 80)
    assert peak == math.ceil(0.99 * knee)
    assert len(tried) < 40


def test_the_oracle_takes_no_size_that_is_not_allowed() -> None:
    assert smallest_best(lambda size: None if size > 17 else float(size), 80)[0] == 17


@pytest.fixture
def short_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "SWEEP_SECONDS", 6.0)
    monkeypatch.setattr(oracle, "SWEEP_SETTLE", 1.0)


@pytest.fixture
def changing() -> Scenario:
    service = Lognormal(0.05, cv=0.1)  # so few servers, and so little time, that chance would say too much

    def servers(count: int) -> Scenario:
        return small(lambda random: Servers(count, service, random=random), most=12)

    schedule = ((0.0, 8), (30.0, 4), (60.0, 8))
    return small(
        lambda random: Changing(schedule, service, random=random),
        seconds=90.0,
        most=12,
        phases=tuple((since, servers(count)) for since, count in schedule),
    )


@pytest.mark.usefixtures("short_sweeps")
def test_the_best_fixed_size_follows_the_phases_and_recovers_at_once(changing: Scenario) -> None:
    best = best_fixed(changing)
    assert best.sizes == (8, 4, 8)
    assert recovery(best.result, best) == [0.0, 0.0, 0.0]
    assert recovery(simulate(changing, 4), best)[::2] == [math.inf, math.inf]


@pytest.mark.usefixtures("short_sweeps")
def test_recovery_is_when_the_first_good_window_begins(changing: Scenario) -> None:
    best = best_fixed(changing)
    good = best.throughput[2]
    trace = [
        Sample(
            at=sample.at,
            wanted=8,
            ready=8,
            queued=0,
            running=8,
            throughput=(0.2 if sample.at <= 3.0 or 62.0 < sample.at <= 65.0 or 80.0 < sample.at <= 81.5 else 1.0)
            * good,
            median_running=0.05,
            overloads=0,
        )
        for sample in best.result.trace
    ]
    result = replace(best.result, trace=trace)
    # A window of 2000 jobs, 12.5 s, that begins at 2.5 s misses 80% of half a second, and so 3%.
    assert recovery(result, best) == [2.5, 0.0, 4.5]
    assert 0.0 < unsteady(result, best) < 0.2
    assert unsteady(best.result, best) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_chance_keeps_no_window_of_the_best_size_from_enough(seed: int) -> None:
    phases = ((0.0, 20), (60.0, 10))
    scenario = small(
        lambda random: Changing(phases, Lognormal(0.05), random=random),
        seconds=120.0,
        phases=tuple((since, SCENARIOS["servers"]) for since, _ in phases),
    )

    def steer(pool: Any, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_at(60.0, pool.resize, 10)

    result = simulate(scenario, 20, seed=seed, steer=steer)
    best = Best(sizes=(20, 10), throughput=(400.0, 200.0), sweep={}, result=result)
    assert recovery(result, best) == [0.0, 0.0]
    assert unsteady(result, best) == 0.0


# -- The report --------------------------------------------------------------------------------------------------------

FIGURES = Figures(
    throughput=100.0,
    share=0.96,
    running_p50=0.05,
    running_p99=0.1,
    running_ratio=1.2,
    waiting_p50=0.0,
    waiting_p99=0.0,
    worker_seconds=100.0,
    mean_workers=10.0,
    overload=0.01,
    start=None,
    recovery=150.0,
    unsteady=0.01,
)


def test_a_goal_is_met_or_missed_on_its_side_of_the_limit() -> None:
    assert Goal(what="", value=95.0, limit=95.0, at_least=True).is_met
    assert not Goal(what="", value=94.9, limit=95.0, at_least=True).is_met
    assert Goal(what="", value=1.1000000000000003, limit=1.1).is_met  # what adding floats costs
    assert not Goal(what="", value=1.11, limit=1.1).is_met
    assert not Goal(what="", value=math.inf, limit=200.0).is_met
    assert not Goal(what="", value=math.nan, limit=1.0).is_met
    assert not Goal(what="", value=math.nan, limit=1.0, at_least=True).is_met


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"share": 0.94}, ["throughput"]),
        ({"running_ratio": 1.6}, ["p99 running"]),
        ({"overload": 0.03}, ["overloads"]),
        ({"recovery": math.inf}, ["recovery"]),
        ({"recovery": None}, []),
    ],
)
def test_each_goal_of_a_policy_can_be_missed(change: dict[str, Any], missed: list[str]) -> None:
    goals = goals_of("x", replace(FIGURES, **change), most_overload=0.02)
    assert [goal.what for goal in goals if not goal.is_met] == [f"x, {what}" for what in missed]


def test_of_several_seeds_the_worst_counts() -> None:
    one = worst([FIGURES, replace(FIGURES, share=0.9, running_ratio=1.1, start=3.0, recovery=math.inf)])
    assert (one.share, one.running_ratio, one.start, one.recovery) == (0.9, 1.2, 3.0, math.inf)


def test_the_tables_of_the_page_are_those_of_the_saved_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    assert text == page.with_tables(text, results)
    results["answers"]["real"]["data"]["fixed 10"]["throughput"] += 1.0
    assert text != page.with_tables(text, results)


def test_a_missed_goal_is_shown_as_missed() -> None:
    goals = [
        Goal(what="speed", value=80.0, limit=95.0, at_least=True, unit="%"),
        Goal(what="cost", value=1.0, limit=2.0, unit="x"),
    ]
    assert summary(goals) == "Goals: 1 met, 1 missed\n  speed: 80%, goal >= 95%: MISSED"
    answer = Answer(title="T", header=("a", "b"), rows=[("1x", "2.0"), ("y", "")], goals=goals)
    assert as_text(answer) == "T\n  a     b\n  1x  2.0\n  y"
    assert as_markdown(answer) == "### T\n\n| a | b |\n| --- | ---: |\n| 1x | 2.0 |\n| y |  |\n"


@pytest.mark.usefixtures("short_sweeps")
def test_a_policy_that_is_too_small_misses_its_goals_in_the_table() -> None:
    scenario = small(lambda random: Servers(4, Lognormal(0.05), random=random), most=6)
    answer = compare([scenario], others=[Contender("two", 2, finds_capacity=True), Contender("four", 4)])
    fixed, two, four = answer.rows
    assert fixed[1] == "fixed 4"
    assert two[-1] == "MISSED: throughput"
    assert four[-1] == ""  # nothing was promised
    assert [goal.is_met for goal in answer.goals] == [False, True, True]
    assert [kept["contender"] for kept in answer.data] == ["fixed 4", "two", "four"]
    json.dumps(answer.data)


def test_a_short_day_is_looked_at_in_a_process_of_its_own() -> None:
    seen = day.live(0, 0.5)
    assert seen["leaked"] == 0
    assert len(seen["workers"]) == 4
    json.dumps(seen)


# -- The real server ---------------------------------------------------------------------------------------------------


def test_the_real_server_is_gone_however_the_benchmark_ends() -> None:
    pytest.importorskip("aiohttp")
    urls: list[str] = []
    with pytest.raises(KeyboardInterrupt), real.serving() as url:
        urls.append(url)
        with urlopen(url) as response:
            assert response.read() == b"done"
        raise KeyboardInterrupt
    with pytest.raises(URLError):
        urlopen(urls[0])


def test_the_real_server_ends_with_its_standard_input() -> None:
    pytest.importorskip("aiohttp")
    command = [sys.executable, "-m", "benchmarks.scaling.real"]
    done = subprocess.run(command, cwd=ROOT, input="", capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("http://127.0.0.1:")
    assert done.stderr == ""


# -- The command line --------------------------------------------------------------------------------------------------


def test_a_question_is_answered_saved_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    scenario = small(lambda random: Servers(20, Lognormal(0.05), random=random), best=20)
    monkeypatch.setattr(scaling, "SCENARIOS", {"small": scenario})
    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "results")
    drawn: list[bytes] = []
    for folder in ("once", "again"):
        assert scaling.main(["small", "--save", "--plots", str(tmp_path / folder)]) == 0
        drawn.append((tmp_path / folder / "small.svg").read_bytes())
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) < 80_000
    printed = capsys.readouterr().out
    assert "fixed 20" in printed
    assert "Goals: " in printed
    saved = json.loads((tmp_path / "results" / "scaling.json").read_text())
    assert {"machine", "python", "commit"} <= saved["about"].keys()
    assert [kept["scenario"] for kept in saved["answers"]["scenarios"]["data"]] == ["small"] * 3
    assert "| scenario |" in (tmp_path / "results" / "scaling.md").read_text()


def test_the_published_algorithms_can_be_asked_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = small(lambda random: Servers(5, Lognormal(0.05), random=random), seconds=3.0, best=5)
    monkeypatch.setattr(scaling, "SCENARIOS", {"small": scenario})
    assert scaling.main(["small", "--rivals"]) == 0
    printed = capsys.readouterr().out
    for name in ("Adaptive", "AIMD", "Vegas", "Gradient2", "EnvoyGradient", "HillClimbing"):
        assert name in printed


def test_what_never_came_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    goals = [Goal(what="recovery", value=math.inf, limit=200.0)]
    answer = Answer(title="T", header=("a",), rows=[("b",)], goals=goals, data={"p99": math.nan})
    monkeypatch.setitem(scaling.OTHERS, "autoscale", lambda: answer)
    monkeypatch.setattr(scaling, "RESULTS", tmp_path)
    assert scaling.main(["autoscale", "--save"]) == 0
    saved = json.loads((tmp_path / "scaling.json").read_text(), parse_constant=pytest.fail)
    assert saved["goals"][0]["value"] == "never"
    assert saved["goals"][0]["is_met"] is False
    assert saved["answers"]["autoscale"]["data"] == {"p99": None}
    assert "- recovery: inf, goal <= 200: MISSED" in (tmp_path / "scaling.md").read_text()


def test_check_fails_if_a_goal_is_missed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(value: float) -> int:
        goal = Goal(what="speed", value=value, limit=1.0)
        answer = Answer(title="T", header=("a",), rows=[("b",)], goals=[goal])
        monkeypatch.setitem(scaling.OTHERS, "autoscale", lambda: answer)
        return scaling.main(["autoscale", "--check"])

    assert (ask(1.0), ask(2.0)) == (0, 1)
    assert "speed: 2, goal <= 1: MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "argument QUESTION: must be one of servers, thrashing,"),
        (["nothing"], "real, got 'nothing'"),
        (["--seeds", "0"], "argument --seeds: must be a whole number of at least 1, got '0'"),
        (["--seeds", "x"], "argument --seeds: must be a whole number of at least 1, got 'x'"),
        (["--plots", __file__], "File exists"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "find_spec", lambda name: True)  # matplotlib may not be there, and is not needed
    with pytest.raises(SystemExit) as ended:
        scaling.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_without_matplotlib_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        scaling.main(["--plots", str(tmp_path)])
    assert "--plots needs matplotlib: pip install 'asyncpool-toolkit[bench]'" in capsys.readouterr().err


def test_the_list_names_each_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*SCENARIOS, "autoscale", "day", "real"]
