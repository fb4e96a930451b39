"""The gauntlet: asyncpool holds every case, and other verdicts are reported as they are. No peer must be installed."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from asyncpool.testing import VirtualTimeLoop
from benchmarks.gauntlet import __main__ as gauntlet
from benchmarks.gauntlet import child, report, runner
from benchmarks.gauntlet.adapter import Library
from benchmarks.gauntlet.cases import CASES, is_possible
from benchmarks.gauntlet.cases.tools import Case
from benchmarks.gauntlet.libraries import LIBRARIES
from benchmarks.gauntlet.notes import ALL, NOTES
from benchmarks.gauntlet.ours import Ours
from benchmarks.gauntlet.verdicts import Cell, Lacks, Verdict, check
from benchmarks.readme import with_block

SEEDS = range(3)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.needs])
def test_we_hold_the_case(name: str) -> None:
    case = CASES[name]
    for seed in (None, *SEEDS) if case.schedules else (None,):
        with asyncio.Runner(loop_factory=partial(VirtualTimeLoop, seed=seed)) as runner:
            runner.run(case.ask(Ours()))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.needs])
def test_we_hold_the_case_on_the_loop_that_it_needs(name: str) -> None:
    if not is_possible(CASES[name]):
        pytest.skip(f"needs {CASES[name].needs}")
    assert child.judge(CASES[name], Ours()) == (Verdict.HELD, "")


def case_of(ask: object) -> Case:
    return Case("fake", "", ask, schedules=0, needs=None, theme="isolation")  # type: ignore[arg-type]


async def holds(library: Library) -> None:
    check(True, "never")


async def breaks(library: Library) -> None:
    check(False, "2 of 3 values")


async def is_not_for_it(library: Library) -> None:
    raise Lacks("retries")


async def raises(library: Library) -> None:
    raise ExceptionGroup("several", [ValueError("first line\nsecond line"), KeyError()])


async def is_cancelled(library: Library) -> None:
    raise asyncio.CancelledError


async def exits(library: Library) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("ask", "judgement"),
    [
        (holds, (Verdict.HELD, "")),
        (breaks, (Verdict.WRONG, "2 of 3 values")),
        (is_not_for_it, (Verdict.LACKS, "retries")),
        (raises, (Verdict.WRONG, "ValueError: first line")),
        (is_cancelled, (Verdict.WRONG, "CancelledError")),
        (exits, (Verdict.WRONG, "the program exits")),
    ],
)
def test_a_case_is_judged(ask: object, judgement: tuple[Verdict, str]) -> None:
    assert child.judge(case_of(ask), Ours()) == judgement


def test_the_failing_schedule_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[None] = []

    async def breaks_the_third_time(library: Library) -> None:
        asked.append(None)
        check(len(asked) < 3, "lost")

    case = Case("fake", "", breaks_the_third_time, schedules=5, needs=None, theme="isolation")
    assert child.judge(case, Ours()) == (Verdict.WRONG, "lost (schedule 1)")
    assert capsys.readouterr().out.splitlines() == ["schedule 0", "schedule 1"]


def test_a_missing_library_is_reported_with_what_to_install() -> None:
    class Absent(Library):
        name = distribution = "absent-pool"
        module = "absent_pool"

    assert child.judge(case_of(holds), Absent()) == (
        Verdict.MISSING,
        "python3 -m pip install 'asyncpool-toolkit[bench]'",
    )


def test_a_library_that_cannot_be_imported_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_pool.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)

    class Broken(Library):
        name = "broken-pool"
        module = "broken_pool"

    how = "ModuleNotFoundError: No module named 'what_it_needs'"
    assert child.judge(case_of(holds), Broken()) == (Verdict.MISSING, how)


WRONG = """print('{"verdict": "wrong", "how": "2 of 3 values"}')"""
HANG = "print('schedule 7', flush=True); import time; time.sleep(60)"
CRASH = "print('schedule 0', flush=True); import os; os.abort()"
EXIT = "raise SystemExit(3)"


@pytest.mark.parametrize(
    ("program", "seconds", "verdict"),
    [
        (WRONG, 60, (Verdict.WRONG, "2 of 3 values")),
        (HANG, 0.5, (Verdict.HANG, "schedule 7")),
        (CRASH, 60, (Verdict.WRONG, "the process ended: SIGABRT")),
        (EXIT, 60, (Verdict.WRONG, "the process ended: exit status 3")),
    ],
    ids=["wrong", "hang", "crash", "exit"],
)
def test_the_end_of_a_process_is_reported(program: str, seconds: float, verdict: tuple[Verdict, str]) -> None:
    command = [sys.executable, "-I", "-S", "-c", program]
    reported, how = asyncio.run(runner.verdict_of(command, seconds))
    assert reported is verdict[0]
    assert how in (verdict[1], "")  # on a slow machine, the time can be over before the schedule is printed
    assert how or reported is Verdict.HANG


def test_one_cell_runs_in_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert gauntlet.main(["--only", "asyncpool", "--case", "limit-0"]) == 0
    assert "limit-0  asyncpool              held" in capsys.readouterr().out


def test_a_cell_of_asyncpool_that_is_not_held_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def lost(pairs: list[tuple[str, str]], **options: object) -> object:
        for case, library in pairs:
            yield Cell(case, library, Verdict.HANG)

    monkeypatch.setattr(gauntlet, "run", lost)
    assert gauntlet.main(["--only", "Queue workers", "--case", "limit-0"]) == 0
    assert gauntlet.main(["--only", "asyncpool", "--case", "limit-0"]) == 1
    assert capsys.readouterr().out.endswith("asyncpool  0 of 1\n")


def test_missing_peers_are_skipped_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gauntlet, "is_installed", lambda library: library.distribution in (None, "asyncpool-toolkit"))
    asked: list[str] = []

    async def note(pairs: list[tuple[str, str]], **options: object) -> object:
        for case, library in pairs:
            asked.append(library)
            yield Cell(case, library, Verdict.HELD)

    monkeypatch.setattr(gauntlet, "run", note)
    assert gauntlet.main(["--case", "limit-0"]) == 0
    assert asked == ["asyncpool", "gather + Semaphore", "TaskGroup + Semaphore", "Queue workers"]
    assert capsys.readouterr().err.startswith("Skipped, not installed: python3 -m pip install aqute aiometer ")
    with pytest.raises(SystemExit):
        gauntlet.main(["--save"])


@pytest.mark.parametrize("wrong", [["--only", "nobody"], ["--case", "nothing"], ["--seconds", "0"], ["--at-once", "x"]])
def test_wrong_arguments_are_rejected(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gauntlet.main(wrong)
    assert "must be" in capsys.readouterr().err


def test_the_list_has_each_case_and_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert gauntlet.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(case.statement in printed for case in CASES.values())
    assert all(f"  {name}" in printed for name in LIBRARIES)


def test_the_document_matches_the_results() -> None:
    assert report.DOCUMENT.read_text(encoding="utf-8") == report.as_markdown(report.load())


def test_the_block_of_the_readme_matches_the_results() -> None:
    readme = report.README.read_text(encoding="utf-8")
    assert readme == with_block(readme, "gauntlet", report.as_readme_block(report.load()))


def test_the_results_have_every_cell_and_asyncpool_holds_its_own() -> None:
    cells = {(cell.case, cell.library): cell.verdict for cell in report.load()["cells"]}
    assert list(cells) == [(case, library) for case in CASES for library in LIBRARIES]
    assert {cells[case, "asyncpool"] for case in CASES} == {Verdict.HELD}
    assert Verdict.MISSING not in cells.values()


def test_each_note_is_about_a_cell_that_is_not_held() -> None:
    bad = {(cell.case, cell.library) for cell in report.load()["cells"] if cell.verdict in report.BAD}
    bad |= {(case, ALL) for case, _ in bad}
    assert set(NOTES) - bad == set()


def test_a_report_of_incomplete_results_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "gauntlet.json")
    with pytest.raises(SystemExit):
        gauntlet.main(["--report"])
    assert "No such file" in capsys.readouterr().err
    content = {**report_content(), "cells": {}}
    (tmp_path / "gauntlet.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        gauntlet.main(["--report"])
    assert "the saved results lack failure-stops-others of asyncpool" in capsys.readouterr().err


def report_content() -> dict[str, object]:
    content: dict[str, object] = json.loads((runner.ROOT / "benchmarks/results/gauntlet.json").read_text())
    return content


def test_a_failed_import_is_reported_and_nothing_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(pairs: list[tuple[str, str]], **options: object) -> object:
        for case, library in pairs:
            yield Cell(case, library, Verdict.MISSING, "ModuleNotFoundError: No module named 'x'")

    monkeypatch.setattr(gauntlet, "run", broken)
    monkeypatch.setattr(gauntlet, "is_installed", lambda library: True)
    monkeypatch.setattr(gauntlet, "is_possible", lambda case: True)
    monkeypatch.setattr(report, "save", lambda cells, only: pytest.fail("saved"))
    gauntlet.main(["--save"])
    assert "aqute (ModuleNotFoundError: No module named 'x')" in capsys.readouterr().err


def test_results_are_saved_with_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "gauntlet.json")
    monkeypatch.setattr(report, "installed", lambda name: "1.2.3")
    cell = Cell("limit-0", "aqute", Verdict.WRONG, "how")
    report.save([cell])
    assert report.load()["cells"] == [cell]
    about = json.loads((tmp_path / "gauntlet.json").read_text())["about"]
    assert about["versions"]["aqute"] == "1.2.3"
    assert about["python"] == sys.version.split()[0]


def test_saving_one_library_keeps_the_cells_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "gauntlet.json")
    monkeypatch.setattr(report, "installed", lambda name: "1.2.3")
    before = [Cell("limit-0", name, Verdict.HELD) for name in ("asyncpool", "aqute", "aiometer")]
    report.save(before)
    monkeypatch.setattr(report, "installed", lambda name: "2.0.0")
    monkeypatch.setattr(report, "_commit", lambda: "abc")
    report.save([Cell("limit-0", "aqute", Verdict.WRONG, "how")], only=["aqute"])
    found = report.load()
    assert found["cells"] == [before[0], Cell("limit-0", "aqute", Verdict.WRONG, "how"), before[2]]
    assert (found["about"]["versions"]["aqute"], found["about"]["versions"]["aiometer"]) == ("2.0.0", "1.2.3")
    assert {name: one["commit"] for name, one in found["about"]["later"].items()} == {"aqute": "abc"}


def test_a_patient_library_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, float] = {}

    async def verdict_of(command: list[str], seconds: float) -> tuple[Verdict, str]:
        limits[command[-1]] = seconds
        return Verdict.HELD, ""

    async def run_all() -> None:
        async for _ in runner.run([("limit-0", "aqute"), ("limit-0", "AntFlow")], seconds=2.0):
            pass

    monkeypatch.setattr(runner, "verdict_of", verdict_of)
    asyncio.run(run_all())
    assert limits == {"aqute": 2.0, "AntFlow": 8.0}
