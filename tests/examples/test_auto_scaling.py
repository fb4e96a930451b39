"""`python -m examples.auto_scaling`: the burst on virtual time, and the command as a user runs it."""

from __future__ import annotations

import logging
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncpool.testing import run
from examples import auto_scaling, live_view
from examples.auto_scaling import Burst, Options

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "examples.auto_scaling"]
GIVE_UP = 60.0


@pytest.fixture(autouse=True)
def log_level_is_set_back() -> Iterator[None]:
    """The command quietens the library's log, for its process."""
    log = logging.getLogger("asyncpool")
    level = log.level
    yield
    log.setLevel(level)


def burst_of(**options: int | float) -> Burst:
    burst = Burst(Options(**options))  # type: ignore[arg-type]
    run(burst.run, collect=True)
    return burst


# -- the burst --


def test_the_pool_grows_to_ten_workers_and_comes_back_to_two(capsys: pytest.CaptureFixture[str]) -> None:
    burst = burst_of()

    assert sorted(burst.done) == list(range(100))
    assert max(burst.sizes) == 10
    assert burst.sizes[-1] == 2
    assert sorted(burst.sizes, reverse=True) == burst.sizes
    printed = capsys.readouterr().out
    assert re.search(r"^ +0\.\d s  2 -> 10 workers: \d+ jobs wait for 2 workers$", printed, re.M)
    assert re.search(r"^ +4\.\d s  \d+ -> 2 workers: \d workers idle for 3 s$", printed, re.M)
    assert re.search(r"^ +1\.0 s  10 workers, \d+ busy, \d+ jobs queued, \d+ done \(\d+\.\d jobs/s\)$", printed, re.M)
    end = re.search(
        r"^100 jobs in (\S+) s, on up to 10 workers; a fixed pool of 10 needs at least 1\.00 s\.\n"
        r"Back to 2 workers (\S+) s after the last job\.\n\Z",
        printed,
        re.M,
    )
    assert end is not None
    assert 1.0 <= float(end[1]) < 1.3
    assert 3.0 <= float(end[2]) < 3.3


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"min": 0, "max": 1, "jobs": 7}, 1),
        ({"min": 0, "max": 10, "jobs": 30}, 2),
        ({"min": 1, "max": 1, "jobs": 3}, 1),
        ({"min": 2, "max": 10, "jobs": 1}, 1),
        ({"min": 3, "max": 50, "jobs": 2000, "job_time": 1.5}, 50),
        ({"idle_timeout": 30.0}, 10),
    ],
)
def test_every_job_is_done_once_however_large_the_pool_may_be(
    options: dict[str, int | float], least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    burst = burst_of(**options)

    wanted = burst.options
    assert sorted(burst.done) == list(range(wanted.jobs))
    assert all(wanted.min <= size <= wanted.max for size in burst.sizes)
    assert not burst.sizes or burst.sizes[-1] == wanted.min
    printed = capsys.readouterr().out
    peak = re.search(r"^\d+ jobs in \S+ s, on up to (\d+) workers; ", printed, re.M)
    assert peak is not None
    assert least <= int(peak[1]) <= wanted.max
    assert f"Back to {wanted.min} workers " in printed


# -- the command --


def test_the_command_runs_and_gives_back_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert auto_scaling.main(["--jobs", "3", "--job-time", "0.001"]) == 0
    assert "3 jobs in " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--min", "-1"], "argument --min: must be an integer from 0 to 10000, got '-1'"),
        (["--max", "0"], "argument --max: must be an integer from 1 to 10000, got '0'"),
        (["--jobs", "1e3"], "argument --jobs: must be an integer from 1 to 10000000, got '1e3'"),
        (["--job-time", "0"], "argument --job-time: must be a number > 0 and <= 3600, got '0'"),
        (["--idle-timeout", "nan"], "argument --idle-timeout: must be a number > 0 and <= 3600, got 'nan'"),
        (["--min", "3", "--max", "2"], "--max must be at least --min, got 2 and 3"),
        (["burst"], "unrecognized arguments: burst"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        auto_scaling.main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"auto_scaling: error: {sentence} (see --help)\n"


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_tells_how_far_it_was(times: int) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--job-time", "60"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "submitting 100 jobs" in process.stdout.readline()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (130, "Interrupted: 0 of 100 jobs were done.\n")


def test_when_nobody_reads_its_lines_any_more_it_ends() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--job-time", "60"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=GIVE_UP)

    assert (process.returncode, errors) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_what_cannot_be_printed_ends_in_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--job-time", "60"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=GIVE_UP,
            check=False,
        )

    assert (done.returncode, done.stderr) == (1, "auto_scaling: error: [Errno 28] No space left on device\n")


def test_a_missing_package_is_told_in_a_sentence() -> None:
    program = (
        "import runpy, sys; sys.modules['anyio'] = None; runpy.run_module('examples.auto_scaling', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith("auto_scaling: error: the package 'anyio' is not installed; to install the packages")
    assert done.stderr.count("\n") == 1


# -- what is seen --


def test_on_a_terminal_there_are_bars_and_decisions() -> None:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--idle-timeout", "0.3", "--jobs", "30", "--job-time", "0.05"],
        cwd=ROOT,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(master)

    assert process.wait(GIVE_UP) == 0
    assert b"\x1b[2K" in shown  # lines are redrawn
    assert re.search(rb"\b(6|7|8|9|10) workers, \d+ busy", shown)
    assert re.search(rb"2 -> 6 workers: \d+ jobs wait for 2 workers\r\n", shown)
    assert b"30 jobs in " in shown


def test_without_rich_a_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert live_view.has_bars()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert not live_view.has_bars()
