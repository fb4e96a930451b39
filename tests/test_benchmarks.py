"""The benchmarks run with tiny numbers, and process figures correctly. No test depends on how long something takes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import child, plots, report, tables
from benchmarks.harness import (
    Answer,
    Budget,
    Case,
    ChildFailed,
    Figures,
    Measurement,
    Question,
    Settings,
    ask,
    by_python,
    in_a_child,
    run_child,
)
from benchmarks.questions import QUESTIONS
from benchmarks.questions.rate import burst_for
from benchmarks.readme import CannotReport, with_block
from benchmarks.rivals import RIVALS, Rival
from benchmarks.scale_out import __main__ as scale_out
from benchmarks.work import LostResults, Reader, do, do_nothing, yield_once

ROOT = Path(__file__).parent.parent
TINY = Settings(rounds=1, jobs=30)
WORKERS = 3
# Other libraries cause warnings of their own.
rivals_may_warn = pytest.mark.filterwarnings("default")


@pytest.fixture(params=RIVALS)
def rival(request: pytest.FixtureRequest) -> Rival:
    found: Rival = RIVALS[request.param]
    if found.missing:
        pytest.skip(f"{request.param} {found.missing}")
    return found


@pytest.fixture(autouse=True)
def loop_is_never_blocked() -> None:
    """Replace the fixture for the library, because a measurement can read /proc from inside a job."""


# -- Contenders --------------------------------------------------------------------------------------------------------


@rivals_may_warn
@pytest.mark.parametrize("handler", [do_nothing, yield_once])
@pytest.mark.parametrize("workers", [1, WORKERS])
def test_each_contender_returns_each_value_once(rival: Rival, workers: int, handler: Any) -> None:
    reader = Reader()
    asyncio.run(rival.run(handler, iter(range(100)), workers, reader))
    reader.check(100)


@rivals_may_warn
def test_each_contender_does_no_more_than_its_number_at_a_time(rival: Rival) -> None:
    running = peak = 0

    async def job(number: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return number

    asyncio.run(rival.run(job, range(50), WORKERS, lambda value: None))
    assert peak == (50 if rival is RIVALS["asyncio.gather"] else WORKERS)


@rivals_may_warn
def test_the_isolation_of_each_contender(rival: Rival) -> None:
    mark: ContextVar[int] = ContextVar("mark")
    seen_of_others = 0

    async def job(number: int) -> int:
        nonlocal seen_of_others
        await asyncio.sleep(0)
        seen_of_others += mark.get(number) != number
        mark.set(number)
        return number

    asyncio.run(rival.run(job, range(20), WORKERS, lambda value: None))
    assert (seen_of_others == 0) is rival.isolates


@rivals_may_warn
def test_whether_each_contender_continues_after_a_failure(rival: Rival) -> None:
    values: list[Any] = []

    async def job(number: int) -> int:
        await asyncio.sleep(0)
        if number == 5:
            raise LookupError("no such mailbox")
        return number

    try:
        asyncio.run(rival.run(job, range(20), WORKERS, values.append))
    except BaseException:
        assert not rival.goes_on
    numbers = sorted(value for value in values if isinstance(value, int))
    is_reported = len(values) > len(numbers)
    assert (is_reported and numbers == [number for number in range(20) if number != 5]) is rival.goes_on


@rivals_may_warn
def test_whether_each_contender_streams_and_is_bounded(rival: Rival) -> None:
    jobs, began = 500, 0
    pulled = 0
    at_first: list[tuple[int, int]] = []

    def source() -> Iterator[int]:
        nonlocal pulled
        for number in range(jobs):
            pulled += 1
            yield number

    async def job(number: int) -> int:
        nonlocal began
        began += 1
        await asyncio.sleep(0)
        return number

    asyncio.run(rival.run(job, source(), WORKERS, lambda value: at_first.append((began, pulled))))
    began_then, pulled_then = at_first[0]
    assert (began_then < jobs) is rival.streams
    assert (pulled_then < jobs) is rival.bounds


def test_a_rival_that_is_not_installed_names_what_to_install() -> None:
    there_is_none = replace(RIVALS["aqute"], distribution="asyncpool-there-is-no-such-thing")
    assert there_is_none.missing == "needs python3 -m pip install 'asyncpool-toolkit[bench]'"


def test_a_reader_notices_a_lost_value_and_a_duplicate() -> None:
    async def lose_one(handler: Any, jobs: Any, workers: int, seen: Callable[[Any], object]) -> None:
        for job in list(jobs)[1:]:
            seen(job)

    reader = Reader()
    for value in (0, 1, 1, 3):
        reader(value)
    with pytest.raises(LostResults, match=r"^4 jobs went in, 4 values came out, and their sum is 5$"):
        reader.check(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RIVALS, "loses one", Rival(run=lose_one))
        with pytest.raises(LostResults):
            asyncio.run(do("loses one", do_nothing, range(10), 10, WORKERS))


# -- Questions ---------------------------------------------------------------------------------------------------------


def in_this_process(question: Question, case: Case, contender: str, settings: Settings) -> Figures:
    order = {"question": question.name, "contender": contender, "parameters": case.parameters, "loop": settings.loop}
    answer = child.measure(order)
    if "failed" in answer:
        raise ChildFailed(answer["failed"])
    figures: Figures = answer["figures"]
    return figures


def answer_of(name: str, settings: Settings = TINY, pick: Callable[[Case], bool] = lambda case: True) -> Answer:
    question = QUESTIONS[name]
    few = replace(question, cases=lambda settings: [case for case in question.cases(settings) if pick(case)])
    answer = ask(few, settings, in_this_process)
    assert [one for one in answer.measurements if one.failures] == []
    assert all(one.figures or one.skipped for one in answer.measurements)
    assert {len(values) for one in answer.measurements for values in one.figures.values()} == {1}
    return answer


@rivals_may_warn
@pytest.mark.parametrize("name", [name for name in QUESTIONS if name not in ("http", "images", "rate")])
def test_each_question_is_answered_for_all_its_contenders(name: str) -> None:
    # Thousands of workers are slow, and so is a rival that gives its values once a second, at each size.
    answer = answer_of(
        name,
        pick=lambda case: (
            case.parameters.get("workers", 1) < 1000 and (name != "growth" or case.name == "3 no-op jobs")
        ),
    )
    assert QUESTIONS[name].title in tables.as_text(QUESTIONS[name], answer)
    assert Answer.from_json(json.loads(json.dumps(answer.as_json()))) == answer


def test_the_question_of_rates_is_answered() -> None:
    answer_of("rate", Settings(rounds=1, jobs=5))
    assert [burst_for(rate) for rate in (100, 5000)] == [2, 11]


def test_the_question_of_images_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.questions.images._SIZE", (300, 200))
    monkeypatch.setattr("benchmarks.questions.images._THUMBNAIL", (80, 60))
    answer_of("images", Settings(rounds=1, jobs=4))


def test_the_question_of_http_is_answered_and_its_server_counts_and_resets(keep_descriptors: None) -> None:
    parameters = {"requests": 130, "most": 100}
    case = Case(name="", contenders={}, parameters=parameters)
    naive = in_this_process(QUESTIONS["http"], case, "asyncio.gather, no limit", TINY)
    # Some of the reset requests succeed in the end: aiohttp retries over a connection that is free by then.
    assert naive["connections requested"] >= 130
    assert naive["peak connections"] == 100
    ours = in_this_process(QUESTIONS["http"], case, "pool.outcomes", TINY)
    assert ours["errors"] == 0
    assert ours["connections requested"] <= 100


@pytest.fixture
def keep_descriptors() -> Iterator[None]:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# -- Children ----------------------------------------------------------------------------------------------------------


def test_a_child_measures_in_a_process_of_its_own() -> None:
    case = Case(name="", contenders={}, parameters={"kind": "no-op", "workers": 3, "jobs": 10}, gibibytes=4.0)
    assert in_a_child(QUESTIONS["cost"], case, "pool.outcomes", TINY)["µs/job"] > 0


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(60)", "not done after 0.5 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("raise LookupError('no such thing')", "exit status 1: LookupError: no such thing"),
        ("", "exit status 0: no output"),
        ('print(\'{"failed": "10 jobs went in"}\')', "10 jobs went in"),
    ],
)
def test_a_child_that_hangs_dies_or_fails_is_a_result(program: str, reason: str) -> None:
    seconds = 0.5 if "sleep" in program else 60.0
    with pytest.raises(ChildFailed) as caught:
        run_child([sys.executable, "-S", "-c", program], seconds)
    assert str(caught.value) == reason


def test_only_the_last_line_of_a_child_counts() -> None:
    program = """print("a library greets"); print('{"figures": {"s": 1.5}}')"""
    assert run_child([sys.executable, "-S", "-c", program], 60.0) == {"s": 1.5}


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "needs more than 2 GiB of memory"), (LostResults("9 came out"), "LostResults: 9 came out")],
)
def test_a_failure_in_a_child_is_reported(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(contender: str) -> Figures:
        raise error

    monkeypatch.setitem(QUESTIONS, "cost", replace(QUESTIONS["cost"], measure=measure))
    order = {"question": "cost", "contender": "", "parameters": {}, "loop": "asyncio", "gibibytes": 2.0}
    assert child.measure(order) == {"failed": reason}


# -- Rounds, ratios, budgets -------------------------------------------------------------------------------------------


def asked(
    figures: Mapping[str, list[float | str]], *, missing: str | None = None, budgets: Any = None, **settings: Any
) -> tuple[dict[str, Measurement], list[str]]:
    """Answer a question with these figures or failures per round. Return the order of the contenders too."""
    left = {name: iter(values) for name, values in figures.items()}
    order: list[str] = []

    def measure(question: Question, case: Case, contender: str, settings: Settings) -> Figures:
        order.append(contender)
        match next(left[contender]):
            case str(reason):
                raise ChildFailed(reason)
            case value:
                return {"s": value, "MiB": 10 * value}

    async def never(contender: str) -> Figures:
        raise AssertionError

    question = Question(
        name="",
        asks="",
        title="",
        cases=lambda settings: [
            Case(
                name="one",
                contenders={name: len(values) for name, values in figures.items()},
                budgets=budgets or {},
            )
        ],
        measure=never,
        missing=lambda contender: "needs that" if contender == missing else None,
    )
    answer = ask(question, Settings(**settings), measure)
    return {one.contender: one for one in answer.measurements}, order


def test_contenders_take_turns() -> None:
    _, order = asked({"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0]})
    assert order == ["a", "b", "c", "a", "b"]


def test_a_ratio_is_to_the_reference_in_the_same_round() -> None:
    found, _ = asked({"a": [1.0, 2.0, 4.0], "b": [2.0, 1.0, 12.0]})
    assert found["b"].ratios == [2.0, 0.5, 3.0]
    assert found["a"].ratios == []
    assert found["b"].figures == {"s": [2.0, 1.0, 12.0], "MiB": [20.0, 10.0, 120.0]}


def test_a_failed_round_gives_no_ratio_and_stops_nothing() -> None:
    found, _ = asked({"a": [1.0, "died", 2.0], "b": ["hung", 3.0, 4.0]})
    assert (found["a"].failures, found["b"].failures) == (["died"], ["hung"])
    assert (found["b"].ratios, found["b"].figures["s"]) == ([2.0], [3.0, 4.0])
    assert tables.cell(found["b"], "s", ratio=True) == "3.50 (2.00), failed: hung"


def test_a_contender_that_is_not_installed_is_skipped_with_a_reason() -> None:
    found, order = asked({"a": [1.0], "b": [1.0]}, missing="b")
    assert order == ["a"]
    assert (found["b"].skipped, tables.cell(found["b"], "s")) == ("needs that", "-")


@pytest.mark.parametrize(
    ("budget", "is_held"),
    [
        (None, None),
        (Budget(limit=0.5), True),
        (Budget(limit=0.49), False),
        (Budget(limit=0.5, at_least=True), True),
        (Budget(limit=0.51, at_least=True), False),
        (Budget(limit=10.0, of="MiB"), True),
        (Budget(limit=9.0, of="MiB"), False),
        (Budget(limit=1.0, of="unknown"), False),
    ],
)
def test_a_budget_is_on_the_median_of_the_ratios_or_of_a_figure(budget: Budget | None, is_held: bool | None) -> None:
    found, _ = asked({"a": [10.0, 2.0, 2.0], "b": [1.0, 3.0, 1.0]}, budgets={"b": budget})
    assert found["b"].ratios == [0.1, 1.5, 0.5]
    assert found["b"].is_held is is_held


def test_a_contender_that_failed_once_has_missed_its_budget() -> None:
    found, _ = asked({"a": [1.0, 1.0], "b": [0.1, "died"]}, budgets={"b": Budget(limit=1.0)})
    assert found["b"].is_held is False


def test_a_budget_counts_for_the_usual_number_of_jobs_only() -> None:
    budgets = {"b": Budget(limit=0.1)}
    found, _ = asked({"a": [1.0], "b": [1.0]}, budgets=budgets, jobs=10)
    assert found["b"].is_held is None


def test_only_the_chosen_contender_and_the_reference_are_measured() -> None:
    found, order = asked({"a": [1.0, 1.0, 1.0], "b": [3.0], "c": [2.0, 4.0]}, only=("c",))
    assert order == ["a", "c", "a", "c"]
    assert (list(found), found["c"].ratios) == (["a", "c"], [2.0, 4.0])
    assert asked({"a": [1.0], "b": [1.0]}, only=("c",)) == ({}, [])


def test_budgets_go_by_python_and_the_newest_is_for_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {(3, 11): 0.4, (3, 13): 0.3}
    found = []
    for version in ((3, 11), (3, 12), (3, 13), (3, 15)):
        monkeypatch.setattr(sys, "version_info", version)
        found.append(by_python(limits))
    assert found == [Budget(limit=0.4), None, Budget(limit=0.3), Budget(limit=0.3)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.004, "0.004"), (0.123, "0.12"), (4.367, "4.37"), (43.67, "43.7"), (13426.3, "13,426")],
)
def test_a_number_is_shown_with_three_digits_or_all_before_the_point(value: float, text: str) -> None:
    assert tables.number(value) == text


# -- The command line and its saved results ----------------------------------------------------------------------------


def test_the_command_prints_tables_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.harness.in_a_child", in_this_process)
    assert benchmarks.main(["round-trip", "--rounds", "1", "--jobs", "100", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "pool.run" in printed
    assert "python  " in printed


def test_a_missed_budget_is_named_and_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = Measurement(case="c", contender="x", figures={"s": [2.0]}, budget=Budget(limit=1.0, of="s"))
    monkeypatch.setattr(benchmarks, "ask", lambda *_: Answer(question="cost", measurements=[missed]))
    assert benchmarks.main(["cost"]) == 0
    assert benchmarks.main(["cost", "--check"]) == 1
    assert "cost: c: x" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["weather"], ["--rounds", "0"], ["--jobs", "many"], ["report", "cost"], ["--save", "--quick"]]
)
def test_wrong_arguments_are_rejected(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        benchmarks.main(arguments)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_saving_keeps_the_answers_to_other_questions(tmp_path: Path) -> None:
    about = {"commit": "abc", "date": "today"}
    measured = Measurement(case="c", contender="x", figures={"s": [1.0]}, ratios=[0.5], failures=[])
    one = Answer(question="cost", measurements=[measured])
    benchmarks.save(tmp_path, TINY, about, {"cost": one})
    path = benchmarks.save(tmp_path, TINY, about | {"commit": "def"}, {"rate": replace(one, question="rate")})
    assert path.name == f"{sys.version_info.major}.{sys.version_info.minor}-asyncio.json"
    (found,) = report.load(tmp_path)
    assert (dict(found.commits), found.answers["cost"]) == ({"cost": "abc", "rate": "def"}, one)


def test_saving_one_contender_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    about = {"commit": "abc", "date": "today 12:00", "machine": "two cores", "peers": "aiohttp 1.0, aqute 0.1"}

    def answer(**figures: float) -> dict[str, Answer]:
        several = [Measurement(case="c", contender=name, figures={"s": [value]}) for name, value in figures.items()]
        return {"cost": Answer(question="cost", measurements=several)}

    benchmarks.save(tmp_path, TINY, about, answer(gather=1.0, aqute=2.0, other=3.0))
    path = benchmarks.save(
        tmp_path, replace(TINY, only=("aqute",)), about | {"commit": "def"}, answer(gather=9.0, aqute=8.0)
    )
    (found,) = report.load(tmp_path)
    assert {one.contender: one.figures["s"] for one in found.answers["cost"].measurements} == {
        "gather": [1.0],
        "aqute": [8.0],
        "other": [3.0],
    }
    assert (dict(found.commits), dict(found.later)) == ({"cost": "abc"}, {"aqute": "today on two cores"})
    assert json.loads(path.read_text(encoding="utf-8"))["about"]["peers"].startswith("aiohttp 1.0, aqute ")


# -- The report --------------------------------------------------------------------------------------------------------

COMMITTED = Path(benchmarks.__file__).parent / "results"


def test_the_committed_document_matches_the_committed_results() -> None:
    assert report.DOCUMENT.read_text(encoding="utf-8") == report.document(report.load(COMMITTED))


def test_the_figures_of_the_readme_are_those_of_the_committed_results() -> None:
    readme = report.README.read_text(encoding="utf-8")
    assert readme == with_block(readme, "benchmarks", report.readme_block(report.load(COMMITTED)))


@pytest.mark.parametrize("name", plots.PLOTS)
def test_the_committed_plots_show_the_committed_results(name: str) -> None:
    plot, main = plots.PLOTS[name], report.load(COMMITTED)[0]
    picture = (report.DOCUMENT.parent / "benchmarks" / f"{name}.svg").read_text(encoding="utf-8")
    assert plots.digest(plot.data(main.answers[plot.question])) in picture


def test_the_document_names_every_contender_that_is_better() -> None:
    several = [
        Measurement(case="c", contender=name, figures={"s": [value]})
        for name, value in (("pool.outcomes", 4.0), ("pool.map", 1.0), ("floor", 2.0), ("same", 3.99), ("worse", 9.0))
    ]
    less_is_better = replace(QUESTIONS["cost"], more_is_better=False)
    assert report._better(less_is_better, several) == [("floor", 2.0)]
    assert report._better(replace(less_is_better, more_is_better=True), several) == [("worse", 2.25)]


def test_a_report_without_results_or_without_marks_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CannotReport, match=r"has no results yet: make bench ARGS=--save$"):
        report.load(tmp_path)
    with pytest.raises(CannotReport, match="<!-- benchmarks: begin -->"):
        with_block("no marks", "benchmarks", "block")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_engines_are_measured(engine: str) -> None:
    if engine == "dask":
        pytest.importorskip("distributed", reason="needs the extra dask")
    command = [sys.executable, "-m", "benchmarks.scale_out", "--engine", engine, "--quick", "--rounds", "1"]
    done = subprocess.run(
        [*command, "noop", "roundtrip"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.count("jobs/s") == 4
    assert done.stdout.count("median") == 6


def test_an_unknown_question_of_an_engine_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale_out.main(["nonsense"])
    assert "unknown question 'nonsense'" in capsys.readouterr().err
