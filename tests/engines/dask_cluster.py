"""A Dask scheduler and its workers as processes of their own, as on a real cluster; each is ended by its pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed import Client, LocalCluster

ROOT = Path(__file__).parents[2]


def in_process(n_workers: int = 2, **options: Any) -> LocalCluster:
    """A cluster whose scheduler and workers run on this event loop. All messages are pickled as usual."""
    defaults = {"threads_per_worker": 1, "processes": False, "asynchronous": True, "dashboard_address": None}
    return LocalCluster(n_workers=n_workers, **{**defaults, **options})


class Cluster:
    """`dask scheduler` and `dask worker` commands on the loopback interface.

    With `nanny`, a worker that dies is restarted by its nanny, which is the process that we know.
    """

    def __init__(self, workers: int = 2, *, nanny: bool = False, threads: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.folder: Path  # of the scheduler and the workers, which can import from it
        self.scheduler: subprocess.Popen[bytes]
        self._started: list[subprocess.Popen[bytes]] = []
        self._count = workers
        self._nanny = nanny
        self._threads = threads

    def __enter__(self) -> Cluster:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self._log = open(self.folder / "log", "wb")
        self.start()
        return self

    def start(self) -> None:
        """Start the scheduler and its workers."""
        self.start_scheduler()
        for _ in range(self._count):
            self.add_worker()

    def start_scheduler(self) -> None:
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-show")

    def add_worker(self, folder: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a worker, in another folder if one is given."""
        arguments = ["--host", "127.0.0.1", "--nthreads", str(self._threads), "--local-directory", str(self.folder)]
        arguments.append("--nanny" if self._nanny else "--no-nanny")
        return self._start("dask_worker", self.address, *arguments, folder=folder)

    def end_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker that was added, and its nanny."""
        _kill_group(worker)
        worker.wait()

    async def ready(self) -> None:
        """Wait for the first workers."""
        async with Client(self.address, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(self._count)

    def log(self) -> str:
        """What the scheduler and the workers have logged so far."""
        return (self.folder / "log").read_text()

    def _start(self, command: str, *arguments: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--no-dashboard"],
            stdout=self._log,
            stderr=self._log,
            cwd=folder or self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # so that a nanny can be ended with its worker
        )
        self._started.append(process)
        return process

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._started:
            if process.poll() is None:
                _kill_group(process)
        for process in self._started:
            process.wait()
        self._log.close()
        self._temporary.cleanup()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Runs:
    """What the handlers of all processes have noted in a folder: each begin, end and cancellation of a job."""

    def __init__(self, folder: Path) -> None:
        self.begun: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.cancelled: Counter[int] = Counter()
        kinds = {"b": self.begun, "e": self.ended, "c": self.cancelled}
        for path in folder.glob("*.runs"):
            for line in path.read_text().splitlines():
                kind, number = line.split()
                kinds[kind][int(number)] += 1
