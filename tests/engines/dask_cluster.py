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
    """A cluster whose scheduler and workers live on this event loop; what travels is pickled as ever."""
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
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler: subprocess.Popen[bytes]
        self._count = workers
        self._nanny = nanny
        self._threads = threads

    def __enter__(self) -> Cluster:
        self._folder = tempfile.TemporaryDirectory()
        self._log = open(Path(self._folder.name) / "log", "wb")
        self.start()
        return self

    def start(self) -> None:
        """Start the scheduler and its workers."""
        self.start_scheduler()
        for _ in range(self._count):
            self.add_worker()

    def start_scheduler(self) -> None:
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-show")

    def add_worker(self, **environment: str) -> subprocess.Popen[bytes]:
        nanny = "--nanny" if self._nanny else "--no-nanny"
        threads = str(self._threads)
        arguments = ("--host", "127.0.0.1", nanny, "--nthreads", threads, "--local-directory", self._folder.name)
        worker = self._start("dask_worker", self.address, *arguments, **environment)
        self.workers.append(worker)
        return worker

    async def started(self, workers: int | None = None) -> None:
        """Wait until there are this many workers, or all that were started."""
        async with Client(self.address, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(workers or len(self.workers))

    def log(self) -> str:
        """What the scheduler and the workers have logged so far."""
        return (Path(self._folder.name) / "log").read_text()

    def _start(self, command: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--no-dashboard"],
            stdout=self._log,
            stderr=self._log,
            cwd=self._folder.name,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,  # so that a nanny can be ended with its worker
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        started = [*self.workers, *([self.scheduler] if hasattr(self, "scheduler") else [])]
        for process in started:
            _kill_group(process)
        for process in started:
            process.wait()
        self._log.close()
        self._folder.cleanup()


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
