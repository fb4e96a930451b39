"""Programs with `Processes`: how they are started, and how they end. None leaves a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines.handlers import Notes
from tests.programs import ROOT

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
LONGEST = 60  # seconds, for a program that hangs

DOUBLE = """
import asyncio
from asyncpool import Processes, WorkerPool

async def double(n):
    return 2 * n

async def main():
    async with WorkerPool(double, workers=2, engine=Processes(1)) as pool:
        print([value async for value in pool.map(range(5))])
"""
GUARDED = (
    DOUBLE
    + """
if __name__ == "__main__":
    asyncio.run(main())
"""
)
UNGUARDED = DOUBLE.replace("Processes(1)", "Processes(2)") + "\nasyncio.run(main())\n"
LONG = """
import asyncio, os, sys, time
from asyncpool import Processes, WorkerPool, drain_on_signal
from tests.engines import handlers
from tests.engines.handlers import Noted, Notes, Stubborn

class Blocking(Noted):
    async def __call__(self, n):
        self.notes.add("begun", n)
        time.sleep(600)

async def main(handler, count, how):
    pool = WorkerPool(handler, workers=4, queue_size=100, engine=Processes(2 if how == "drains" else 1))
    async with pool:
        if how == "forks" and not os.fork():
            time.sleep(600)  # it has all that the program has, also the ends of the connections
        if how == "drains":
            with drain_on_signal(pool):
                done = 0
                async for outcome in pool.outcomes(range(count)):
                    done += 1
            print("done", done, "reruns", pool.stats.reruns, "lost", pool.stats.processes_lost)
            return
        for n in range(count):
            await pool.submit(n)
        if how == "exits":
            sys.exit("the program has ended")
        await pool.join()

if __name__ == "__main__":
    kind, path, count, how = sys.argv[1:]
    handler = {"sleeps": lambda: Noted(Notes(path), 600), "blocks": lambda: Blocking(Notes(path)),
               "ignores": lambda: Stubborn(Notes(path)), "works": lambda: Noted(Notes(path), 0.2)}[kind]()
    if how == "never closes":
        loop = asyncio.new_event_loop()
        pool = WorkerPool(handler, workers=4, engine=Processes(1))
        loop.run_until_complete(pool.start())
        loop.run_until_complete(pool.submit(1))
        sys.exit("the program has ended")
    asyncio.run(main(handler, int(count), how))
"""


class Program:
    """A program in a session of its own."""

    def __init__(self, *arguments: str, cwd: Path, stdin: str | None = None) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
            start_new_session=True,
        )
        self._stdin = stdin

    def end(self) -> tuple[int, str, str]:
        """Wait for its end. Return its exit status, and what it has written to stdout and stderr."""
        output, errors = self.popen.communicate(self._stdin, timeout=LONGEST)
        return self.popen.returncode, output, errors

    def processes(self) -> list[int]:
        """The processes that live in its session."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.popen.pid and state != "Z":
                found.append(int(entry.name))
        return found

    def wait_until_only(self, *stay: int) -> None:
        """Wait until no other process lives in its session, but for what multiprocessing has started."""
        until = time.monotonic() + LONGEST
        while (left := self._without_tracker(stay)) and time.monotonic() < until:
            time.sleep(0.02)
        assert not left, [_command_of(pid) for pid in left]

    def _without_tracker(self, stay: tuple[int, ...]) -> list[int]:
        living = [pid for pid in self.processes() if pid not in stay]
        return [pid for pid in living if not stay or "resource_tracker" not in _command_of(pid)]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@contextmanager
def program(*arguments: str, cwd: Path, stdin: str | None = None) -> Iterator[Program]:
    started = Program(*arguments, cwd=cwd, stdin=stdin)
    try:
        yield started
    finally:
        for pid in started.processes():
            os.kill(pid, signal.SIGKILL)
        started.popen.wait()
        for stream in (started.popen.stdin, started.popen.stdout, started.popen.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def long_program(folder: Path, kind: str, count: int, how: str, begun: int) -> Iterator[tuple[Program, Notes]]:
    """Start a program, and wait until handlers have begun."""
    (folder / "long.py").write_text(LONG)
    notes = Notes(folder / "notes.txt")
    with program("long.py", kind, notes.path, str(count), how, cwd=folder) as started:
        while len(notes.lines()) < begun:
            assert started.popen.poll() is None, started.end()
            time.sleep(0.01)
        yield started, notes


# -- How they are started ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a script", "-m", "-c"])
def test_a_program_can_be(how: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(GUARDED)
    arguments = {"a script": ["shop.py"], "-m": ["-m", "shop"], "-c": ["-c", GUARDED]}[how]
    with program(*arguments, cwd=tmp_path) as started:
        assert started.end() == (0, "[0, 2, 4, 6, 8]\n", "")
        started.wait_until_only()


def test_a_program_from_stdin_says_that_it_must_be_a_file(tmp_path: Path) -> None:
    with program(cwd=tmp_path, stdin=GUARDED) as started:
        status, output, errors = started.end()
        assert status == 1
        assert output == ""
        assert "cannot start processes for a program that is read from <stdin>" in errors.splitlines()[-1]
        started.wait_until_only()


def test_a_program_without_a_guard_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(UNGUARDED)
    with program("shop.py", cwd=tmp_path) as started:
        status, output, errors = started.end()
        assert status == 1
        assert output == ""
        assert "must start the program only under `if __name__ == '__main__':`" in errors.splitlines()[-1]
        assert errors.count("Traceback") == 1
        assert errors.count("main module") <= 2  # and maybe in the log, of the other process
        started.wait_until_only()


# -- How they end ------------------------------------------------------------------------------------------------------


def in_parallel(check: Callable[..., None], folder: Path, variants: list[tuple[object, ...]]) -> None:
    """Run a test in several variants: most of their time is spent on waiting for what is given up on."""
    with ThreadPoolExecutor(len(variants)) as threads:
        running = []
        for number, variant in enumerate(variants):
            (folder / str(number)).mkdir()
            running.append(threads.submit(check, folder / str(number), *variant))
        for result in running:
            result.result()


def test_a_program_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    def check(folder: Path, kind: str, how: str) -> None:
        with long_program(folder, kind, 4, how, 4 if kind != "blocks" else 1) as (started, notes):
            before = started.processes()
            assert len(before) >= 2
            started.popen.kill()
            started.popen.wait()
            if how == "forks":  # the processes notice the end of the program, although its fork has all that it had
                (fork,) = [pid for pid in before if pid != started.popen.pid and "long.py" in _command_of(pid)]
                started.wait_until_only(fork)
                os.kill(fork, signal.SIGKILL)
            started.wait_until_only()
            if kind == "sleeps" and how == "joins":
                assert sum(line.startswith("cancelled") for line in notes.lines()) == 4

    in_parallel(check, tmp_path, [("sleeps", "joins"), ("blocks", "joins"), ("sleeps", "forks")])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_all_drains(number: int, tmp_path: Path) -> None:
    with long_program(tmp_path, "works", 20, "drains", 4) as (started, _):
        os.killpg(started.popen.pid, number)
        _, output, errors = started.end()
        words = output.split()
        assert words[0] == "done", (output, errors)
        assert words[2:] == ["reruns", "0", "lost", "0"]
        assert int(words[1]) >= 4
        assert "Traceback" not in errors
        started.wait_until_only()


def test_ctrl_c_ends_a_program(tmp_path: Path) -> None:
    def check(folder: Path, kind: str, times: int) -> None:
        with long_program(folder, kind, 4, "joins", 4) as (started, notes):
            for _ in range(times):
                os.killpg(started.popen.pid, signal.SIGINT)
                time.sleep(0.1)
            status, _, errors = started.end()
            assert status != 0
            assert errors.splitlines()[-1].startswith("KeyboardInterrupt")
            assert "asyncpool process" not in errors  # no traceback of a process
            if kind == "sleeps" and times == 1:
                assert sum(line.startswith("cancelled") for line in notes.lines()) == 4
            started.wait_until_only()

    in_parallel(check, tmp_path, [("sleeps", 1), ("sleeps", 2), ("sleeps", 3), ("ignores", 1), ("ignores", 2)])


@pytest.mark.parametrize("how", ["exits", "never closes"])
def test_a_program_that_exits_leaves_no_process(how: str, tmp_path: Path) -> None:
    with long_program(tmp_path, "sleeps", 1, how, 0) as (started, _):
        status, _, errors = started.end()
        assert status == 1
        assert "the program has ended" in errors
        started.wait_until_only()
