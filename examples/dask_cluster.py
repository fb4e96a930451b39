"""A Dask scheduler and workers as separate processes on this machine, like those of a real cluster on many machines."""

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
"""The scheduler and its workers exit after this time without work, for example when this program was killed."""


class DaskCluster:
    """The processes that `dask_cluster` has started."""

    def __init__(self, folder: Path) -> None:
        self.address = ""
        """The address of the scheduler."""
        self.workers: list[subprocess.Popen[bytes]] = []
        """All workers that were started, including those that have exited."""
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._log = folder / "log"
        self._scheduler: subprocess.Popen[bytes] | None = None

    def start(self, workers: int) -> None:
        """Start the processes and wait until they are ready."""
        self._scheduler = self._run("dask_scheduler", "--port", "0", "--idle-timeout", _IDLE_TIMEOUT)
        for _ in range(workers):
            self.add_worker()
        until = time.monotonic() + _START_TIMEOUT
        while not self.address:
            if self._scheduler.poll() is not None or time.monotonic() > until:
                raise OSError(f"the Dask scheduler did not start: {self._last_line()}")
            time.sleep(0.02)
            try:
                self.address = json.loads(self._file.read_text())["address"]
            except (FileNotFoundError, ValueError):  # the file does not exist yet, or is incomplete
                pass
        asyncio.run(self._wait_for_workers(workers))

    async def _wait_for_workers(self, count: int) -> None:
        client_of: Any = import_module("distributed").Client  # it has no types
        async with client_of(self.address, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(count, timeout=_START_TIMEOUT)

    def add_worker(self) -> None:
        """Start a worker with one thread, because each runs one event loop. Without a nanny, it is not restarted."""
        folder = str(self._folder)
        self.workers.append(self._run("dask_worker", "--nthreads", "1", "--no-nanny", "--local-directory", folder))

    def kill_worker(self) -> int:
        """Kill one worker, like `kill -9`, and return its process id."""
        worker = next(worker for worker in self.workers if worker.poll() is None)
        worker.kill()
        worker.wait()
        return worker.pid

    def close(self) -> None:
        """Kill all processes."""
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
                start_new_session=True,  # Ctrl+C must only reach the program, which has jobs to finish
            )

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"


@contextmanager
def dask_cluster(workers: int) -> Generator[DaskCluster]:
    """Start a scheduler and workers, and kill them at the end of the block.

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
    """Raise `KeyboardInterrupt` for a signal that would kill this process, so that the block can clean up."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _environment() -> Mapping[str, str]:
    """Return an environment in which the workers find the same modules as this program."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
