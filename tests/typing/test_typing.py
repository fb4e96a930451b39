"""Runs the type checkers over the programs beside this file: those that must type-check, and those that must not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["mypy", "--strict", "--no-incremental", "accepted.py", "rejected.py"], id="mypy"),
        pytest.param(["pyright", "--pythonpath", sys.executable, "--project", "."], id="pyright"),
    ],
)
def test_a_type_checker_accepts_the_right_programs_and_rejects_the_wrong_ones(command: list[str]) -> None:
    root = str(FOLDER.parent.parent)
    environment = {**os.environ, "MYPYPATH": root, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
