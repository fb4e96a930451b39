"""Ctrl+C two and three times under plain `asyncio.run`: no task of the pool or of a job keeps the program from ending.

What can still hang is a task of the program that asyncio loses after its pools are closed. That is not tested, because
no library can help it. `python -m tests.signals.interrupted --runs 1000` counts everything.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.laws.budget import IS_LONG
from tests.programs import ROOT

RUNS = 1000 if IS_LONG else 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.timeout(3600 if IS_LONG else 300)
@pytest.mark.parametrize("signals", [2, 3])
@pytest.mark.parametrize("program", ["pool", "plain"])
def test_interrupts_at_any_moment_leave_no_task_of_the_pool_behind(program: str, signals: int) -> None:
    command = [sys.executable, "-m", "tests.signals.interrupted", "--program", program]
    command += ["--runs", str(RUNS), "--signals", str(signals), "--seed", "1"]
    ran = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    assert f"of {RUNS} hung" in ran.stdout, ran.stderr
    assert "LOST pool" not in ran.stdout
    assert "waits pool" not in ran.stdout
