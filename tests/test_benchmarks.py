"""The benchmarks run: with tiny numbers, and no word about the time they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.harness import Budget, Measurement


@pytest.mark.parametrize("question", benchmarks.QUESTIONS)
def test_each_question_is_answered(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = "5" if question == "rate" else "200"  # ten a second take their time
    assert benchmarks.main([question, "--rounds", "1", "--jobs", jobs]) == 0
    printed = capsys.readouterr().out
    assert "pool." in printed
    assert "python" in printed


def test_the_figures_can_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "results")
    assert benchmarks.main(["round-trip", "--rounds", "2", "--jobs", "100", "--save"]) == 0
    (path,) = (tmp_path / "results").iterdir()
    assert str(path) in capsys.readouterr().out
    measurements = json.loads(path.read_text())["answers"]["round-trip"]["measurements"]
    assert [len(one["values"]) for one in measurements] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("budget", "is_held"),
    [
        (None, None),
        (Budget(limit=0.5), True),
        (Budget(limit=0.4), False),
        (Budget(limit=3.0, of="value"), True),
        (Budget(limit=2.0, of="value"), False),
    ],
)
def test_a_budget_is_on_the_median_ratio_or_the_worst_value(budget: Budget | None, is_held: bool | None) -> None:
    one = Measurement(case="", contender="", unit="", values=[1.0, 3.0, 2.0], ratios=[0.1, 0.5, 0.9], budget=budget)
    assert one.is_held is is_held
