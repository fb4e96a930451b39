"""Progress in a real pseudo-terminal, in a pipe, and in a notebook."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import types
from pathlib import Path
from typing import Any

import pytest

from asyncpool import WorkerPool
from asyncpool.progress import track
from asyncpool.progress.displays import BarDisplay, NotebookDisplay, open_display
from tests.helpers import sleeper, virtual

ROOT = Path(__file__).resolve().parents[2]
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("CI", "FORCE_COLOR", "NO_COLOR")} | {
    "TERM": "xterm-256color",
    "COLUMNS": "100",
}


def run_in_terminal(how: str, *, interrupt: int = 0, stdout: Any = None) -> tuple[int, str]:
    """Run the program in a pseudo-terminal; press Ctrl+C that many times; return its status and its output."""
    master, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.progress.program", how],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=terminal,
        stdout=terminal if stdout is None else stdout,
        stderr=terminal,
    ) as program:
        output = b""
        while True:
            # Nothing is written any more when the program has ended, but something could still be in the terminal.
            is_over = program.poll() is not None
            os.set_blocking(master, False)
            try:
                output += os.read(master, 100_000)
            except BlockingIOError:
                if is_over:
                    break
                try:
                    program.wait(0.01)
                except subprocess.TimeoutExpired:
                    pass
            if interrupt and b"started" in output and b"running" in output:
                interrupt -= 1
                program.send_signal(signal.SIGINT)
        assert termios.tcgetattr(terminal) == before
    os.close(master)
    os.close(terminal)
    return program.returncode, output.decode()


def assert_clean(output: str) -> None:
    """The cursor was hidden while the bar was there, and it is visible at the end, on a new line."""
    assert output.count(HIDE) == output.count(SHOW) == 1
    assert output.index(HIDE) < output.index(SHOW)
    assert output.removesuffix(SHOW).endswith("\n")


@pytest.mark.slow
def test_a_bar_and_lines_above_it() -> None:
    status, output = run_in_terminal("whole")
    assert status == 0, output
    assert_clean(output)
    bar, _, after = output.partition(SHOW)
    assert "━" in bar
    assert "40/40 (100%)" in bar
    assert "4 failed" in bar
    # On lines of their own: the bar is erased before them, and drawn again after them.
    for line in ("line of a job", "started", "logged"):
        assert re.search(rf"\x1b\[2K{line}\r\n", bar), line
    assert after.endswith("\r\nlogged at the end\r\n")
    assert "left the loop" in after
    assert re.search(r"pool: 40 jobs in .* s, .* per second\r\n  36 succeeded, 4 failed, 0 cancelled\r\n", after)
    assert re.search(r"  errors:\r\n    2 x ValueError: job 1\r\n    2 x ValueError: job 3\r\n", after)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["break", "error"])
def test_leaving_the_loop_restores_the_terminal_before_the_next_line(how: str) -> None:
    status, output = run_in_terminal(how)
    assert status == (1 if how == "error" else 0), output
    assert_clean(output)
    after = output.partition(SHOW)[2]
    assert "left the loop" in after
    assert ("the reader has failed" in after) == (how == "error")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "times"), [("interrupt", 1), ("interrupt", 2), ("drain", 1), ("drain", 2)])
def test_control_c_restores_the_terminal(how: str, times: int) -> None:
    status, output = run_in_terminal(how, interrupt=times)
    assert_clean(output)
    assert "left the loop" in output.partition(SHOW)[2]
    if how == "interrupt" and times == 1:
        assert status == 0
        assert output.endswith("interrupted\r\n")


@pytest.mark.slow
def test_standard_output_in_a_pipe_gets_what_is_printed_and_no_bar() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as file:
        status, output = run_in_terminal("whole", stdout=write)
        os.close(write)
        printed = file.read()
    assert status == 0, output
    assert_clean(output)
    assert printed.startswith("line of a job\nleft the loop\npool: 40 jobs in ")
    assert "line of a job" not in output


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}])
def test_a_pipe_gets_plain_lines(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.progress.program", "whole"],
        cwd=ROOT,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "\x1b" not in done.stderr + done.stdout
    [*logged, line, last] = done.stderr.splitlines()
    assert (logged, last) == (["started", "logged"], "logged at the end")
    assert re.fullmatch(r"pool: 40 done in [\d.]+ s, [\d.,]+/s, 4 failed", line)
    assert done.stdout.startswith("line of a job\nleft the loop\npool: 40 jobs in ")


@pytest.mark.slow
def test_without_rich_a_sentence_says_what_to_install() -> None:
    code = """
import sys
sys.modules.update({"rich": None, "rich.console": None, "rich.live": None})
import asyncio, asyncpool
from asyncpool.progress import summary, track

async def echo(job):
    return job

async def main():
    async with asyncpool.WorkerPool(echo, workers=1) as pool:
        stream = pool.map([1])
        for call in (
            lambda: track(stream),
            lambda: pool.map([1], progress=True),
            lambda: pool.outcomes([1], progress=True),
            lambda: asyncpool.map(echo, [1], workers=1, progress=True),
            lambda: asyncpool.outcomes(echo, [1], workers=1, progress=True),
        ):
            try:
                call()
            except ModuleNotFoundError as error:
                print(error)
        print(await stream)
        print(str(summary(pool)).partition(" in ")[0])

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    sentence = "the progress of a stream needs the package rich: python3 -m pip install 'asyncpool-toolkit[progress]'"
    assert lines == [sentence] * 5 + ["[1]", "pool: 1 job"]


# -- Notebooks --


class Kernel:
    """IPython in a kernel, as far as a display needs it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, kernel: object = "a kernel") -> None:
        self.displayed: list[str] = []
        self.updated: list[str] = []
        ipython: Any = types.ModuleType("IPython")
        ipython.get_ipython = lambda: types.SimpleNamespace(kernel=kernel)
        ipython.display = types.ModuleType("IPython.display")
        ipython.display.display = self._display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)

    def _display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        self.displayed.append(data["text/plain"])
        return types.SimpleNamespace(update=lambda data, raw: self.updated.append(data["text/plain"]))


def test_a_notebook_gets_one_output_that_is_updated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch)

    @virtual
    async def test() -> None:
        async with WorkerPool(sleeper, workers=2) as pool:
            await track(pool.map([1.0] * 8))

    test()
    assert len(kernel.displayed) == 1
    assert len(kernel.updated) <= 4 * 2 + 1  # seconds, updates per second, the last figures
    assert kernel.updated[4] == (  # after 2.5 s
        "pool [###############---------------] 4/8 (50%), 1.6/s, 2.5 s left\n2/2 running, 2 queued"
    )
    assert kernel.updated[-1] == "pool [##############################] 8/8 (100%), 2.0/s, 4.0 s"
    assert capsys.readouterr() == ("", "")


def test_a_notebook_with_an_unknown_total(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)

    @virtual
    async def test() -> None:
        async with WorkerPool(sleeper, workers=1) as pool:
            await track(pool.map(iter([1.0] * 3)))

    test()
    assert kernel.displayed == ["pool 0, 0.0 s\n0/1 running, 0 queued"]
    assert kernel.updated[-1] == "pool 3, 1.0/s, 3.0 s"


def test_ipython_in_a_terminal_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    Kernel(monkeypatch, kernel=None)
    assert isinstance(open_display(None), BarDisplay)
    Kernel(monkeypatch)
    assert isinstance(open_display(None), NotebookDisplay)
    ipython: Any = sys.modules["IPython"]
    del ipython.get_ipython
    assert isinstance(open_display(None), BarDisplay)
