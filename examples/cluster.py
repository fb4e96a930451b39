"""Start a Dask scheduler and some workers on this machine, run a command with them, and end them again.

    python -m examples.cluster -- python -m examples.crunch --dask {address}
    python -m examples.cluster --workers 4 --kill-after 3 -- python my_program.py {address}

`{address}` in the command becomes the address of the scheduler. With `--kill-after`, one worker is killed (SIGKILL)
after that many seconds, and another takes its place: a pool loses no job by that. The exit status is that of the
command.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

Process = subprocess.Popen[bytes]


class Cluster:
    """The processes. Their output goes to a file, which is removed with them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._log = stack.enter_context((self._folder / "log.txt").open("wb"))
        self.address = f"tcp://127.0.0.1:{_free_port()}"
        self.workers: list[Process] = []
        self._start("dask_scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2])

    def add_worker(self) -> None:
        """Start a worker with one thread: a pool uses one core of each."""
        options = ("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--local-directory", str(self._folder))
        self.workers.append(self._start("dask_worker", self.address, *options))

    def kill_worker(self) -> int:
        """Kill a worker as a machine that loses its power would, and return its process id."""
        worker = self.workers.pop(0)
        worker.kill()
        worker.wait()
        return worker.pid

    def _start(self, command: str, *arguments: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--no-dashboard"],
            stdout=self._log,
            stderr=self._log,
            # They import the modules of the command's folder.
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,  # Ctrl+C is for the command
        )
        self._stack.callback(_end, process)
        return process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.cluster", description="Run a command with a Dask cluster on this machine."
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="how many workers to start (default: 2)")
    parser.add_argument("--kill-after", type=float, metavar="SECONDS", help="kill one worker then, and start another")
    parser.add_argument("command", nargs="+", help="after --; {address} in it is the address of the scheduler")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, not {options.workers}")
    if find_spec("distributed") is None:
        parser.error("it needs Dask: python3 -m pip install 'asyncpool-toolkit[dask]'")
    with ExitStack() as stack, _ctrl_c_ignored():
        cluster = Cluster(stack)
        for _ in range(options.workers):
            cluster.add_worker()
        print(f"A scheduler at {cluster.address}, {options.workers} workers", flush=True)
        command = [word.replace("{address}", cluster.address) for word in options.command]
        try:
            process = subprocess.Popen(command)
        except OSError as error:
            print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
            return 127
        stack.callback(_end, process)
        if options.kill_after is not None:
            _kill_one(cluster, process, options.kill_after)
        return process.wait()


def _kill_one(cluster: Cluster, process: Process, seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"Killing the worker with process id {cluster.kill_worker()}, and starting another", flush=True)
        cluster.add_worker()


@contextmanager
def _ctrl_c_ignored() -> Generator[None]:
    """Leave Ctrl+C to the command, which gets it too: the cluster must live until the command has ended.

    With a function, because what ignores a signal by SIG_IGN hands that on to the command.
    """

    def ignore(number: int, frame: FrameType | None) -> None:
        return

    before = signal.signal(signal.SIGINT, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(process: Process) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
