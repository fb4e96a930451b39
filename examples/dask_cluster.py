"""A Dask scheduler and workers on this machine, as processes of their own: what a real cluster has on many machines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["DaskCluster", "dask_cluster"]

_START_TIMEOUT = 60.0
_IDLE_TIMEOUT = "60s"
"""After so long without work, the scheduler ends, and its workers with it: if this program was killed, say."""


class DaskCluster:
    """What `dask_cluster` has started."""

    def __init__(self, folder: Path) -> None:
        self.address = ""
        """Of the scheduler."""
        self.workers: list[subprocess.Popen[bytes]] = []
        """Each worker that was started, also those that have ended."""
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._log = folder / "log"
        self._scheduler: subprocess.Popen[bytes] | None = None

    def start(self, workers: int) -> None:
        """Start all, and wait until they are there."""
        self._scheduler = self._run("dask_scheduler", "--port", "0", "--idle-timeout", _IDLE_TIMEOUT)
        for _ in range(workers):
            self.add_worker()
        until = time.monotonic() + _START_TIMEOUT
        while not self.address:
            if self._scheduler.poll() is not None or time.monotonic() > until:
                raise OSError(f"the Dask scheduler has not started: {self._last_line()}")
            time.sleep(0.02)
            try:
                self.address = json.loads(self._file.read_text())["address"]
            except (FileNotFoundError, ValueError):  # it is not there, or not whole
                pass
        asyncio.run(self._wait_for_workers(workers))

    async def _wait_for_workers(self, count: int) -> None:
        client_of: Any = import_module("distributed").Client  # it has no types
        async with client_of(self.address, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(count, timeout=_START_TIMEOUT)

    def add_worker(self) -> None:
        """Start a worker with one thread, as each runs one event loop. Without a nanny, so nobody restarts it."""
        folder = str(self._folder)
        self.workers.append(self._run("dask_worker", "--nthreads", "1", "--no-nanny", "--local-directory", folder))

    def kill_worker(self) -> int:
        """Kill one as `kill -9` does, and return its process id."""
        worker = next(worker for worker in self.workers if worker.poll() is None)
        worker.kill()
        worker.wait()
        return worker.pid

    def close(self) -> None:
        """End all, at once."""
        processes = [*self.workers, *([self._scheduler] if self._scheduler else [])]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()

    def _run(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", f"distributed.cli.{command}", "--host", "127.0.0.1", *arguments),
                    *("--scheduler-file", str(self._file), "--dashboard-address", "127.0.0.1:0"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # a Ctrl+C is for the program, which has jobs to finish
            )

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it has written nothing"


@contextmanager
def dask_cluster(workers: int) -> Generator[DaskCluster]:
    """Start a scheduler and workers, and end them with the block, however that ends.

    Raises:
        OSError: The scheduler could not be started.
    """
    with ExitStack() as stack:
        cluster = DaskCluster(Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))))
        stack.callback(cluster.close)
        if hasattr(signal, "SIGHUP"):  # the terminal is closed
            stack.enter_context(_as_ctrl_c(signal.SIGHUP))
        stack.enter_context(_as_ctrl_c(signal.SIGTERM))
        cluster.start(workers)
        yield cluster


@contextmanager
def _as_ctrl_c(number: signal.Signals) -> Generator[None]:
    """Let a signal that would end this process on the spot end the block."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _environment() -> Mapping[str, str]:
    """The workers find the modules that the program finds in its folder."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
