"""Runs many programs fast: each in a fork of one interpreter that has imported already what they need.

An interpreter that imports asyncpool takes a fifth of a second to start, its fork some milliseconds. And a fork is a
process of its own: what a program leaves behind, it leaves behind there, and its end is that of any program.

This file is both sides: the tests use `Programs`, which runs this file as a script.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COSTLY = ["asyncio", "asyncpool.testing", "sqlite3"]
"""What many programs need and takes long to import."""
LONGEST = 60
"""Seconds after which a program that does not end is killed."""


class Ran(NamedTuple):
    """How a program ended: what it wrote to stdout and stderr, in that order, and its exit status."""

    output: str
    status: int


class Programs:
    """Runs programs of the documents, with warnings as errors."""

    def __init__(self) -> None:
        command = [sys.executable, "-u", "-W", "error", __file__]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, argv: list[str], folder: Path) -> Ran:
        """Run `python ARGV...` in a folder, to its end."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        output = folder / "output.txt"
        self._server.stdin.write(json.dumps([argv, str(folder), str(output)]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        text = output.read_text(encoding="utf-8")
        output.unlink()
        return Ran(text, status)

    def close(self) -> None:
        """End the interpreter."""
        self._server.communicate()


def serve() -> None:
    """Fork for each request; the forks return from here and run their program."""
    for module in COSTLY:
        importlib.import_module(module)
    for request in sys.stdin:
        child = os.fork()
        if child == 0:
            run_here(*json.loads(request))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))


def run_here(argv: list[str], folder: str, output: str) -> None:
    """Become the program: its folder, its arguments, its output, and tracebacks that begin with it."""
    signal.alarm(LONGEST)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    sys.path[0] = folder
    if os.path.exists("pytest.ini"):  # it is for pytest-asyncio: the one plugin that documents speak of
        os.environ["PYTEST_PLUGINS"] = "pytest_asyncio.plugin"
    is_module = argv[0] == "-m"
    sys.argv = argv[1:] if is_module else argv
    sys.excepthook = print_error
    if is_module:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


def print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error as the program's own interpreter would: without the frames that started it."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


if __name__ == "__main__":
    serve()
