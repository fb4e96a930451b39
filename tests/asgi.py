"""Requests to ASGI applications: by a call, or over a Unix socket to a real server in a process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
GIVE_UP = 60


class Answer(NamedTuple):
    """The response to a request."""

    status: int
    headers: Mapping[str, str]
    """The names are in lower case."""
    body: bytes


async def call(
    app: Any,
    path: str,
    *,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    root: str = "",
) -> Answer:
    """Send a request to an application, the body in pieces."""
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)] or [b""]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        if not pieces:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope_of(path, method=method, headers=headers, root=root), receive, send)
    found = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def scope_of(
    path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, root: str = ""
) -> dict[str, Any]:
    """Return the scope of a request."""
    path, _, query = path.partition("?")
    headers = {"host": "localhost", **(headers or {})}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": root,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 5),
    }


UVICORN = ("uvicorn", "--uds", "{socket}")
GUNICORN = ("gunicorn", "--bind", "unix:{socket}", "--no-control-socket")
UVICORN_WORKER = ("--worker-class", "uvicorn_worker.UvicornWorker")


class Server:
    """A server of the application in `app.py` of a folder, in a process group of its own.

    Args:
        command: A module and its arguments, with `{socket}` for the path of the socket.
        folder: An empty folder, for the module and the output.
        app: The text of `app.py`.
        environment: Variables for the server.
    """

    def __init__(self, command: Sequence[str], folder: Path, app: str, environment: Mapping[str, str]) -> None:
        self.socket = folder / "socket"
        self._output = folder / "output.txt"
        (folder / "app.py").write_text(app)
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *(part.format(socket=self.socket) for part in command)],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
                    "PYTHONUNBUFFERED": "1",
                    **environment,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What the server and the application have written."""
        return self._output.read_text()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a function returns something true."""
        deadline = time.monotonic() + GIVE_UP
        while not condition():
            assert time.monotonic() < deadline, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.02)

    def listen(self) -> None:
        """Wait until the server listens."""
        self.wait_until(self._listens)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self.socket)) == 0

    def request(self, method: str, path: str) -> Answer:
        """Send a request on a connection of its own. Raises `OSError` if there is no response."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(GIVE_UP)
            connection.connect(str(self.socket))
            connection.sendall(
                f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            with connection.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        if not first:
            raise ConnectionResetError("the server closed the connection without a response")
        headers = dict(line.split(": ", 1) for line in lines)
        return Answer(int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body)

    def stop(self, number: int) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until the server has stopped, and return the exit status."""
        try:
            return self.process.wait(GIVE_UP)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the server goes on after the signal:\n{self.output}")

    def kill(self) -> None:
        """Kill the server and its processes, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
