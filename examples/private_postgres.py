"""A private PostgreSQL in a temporary folder, which listens on a Unix socket only: `private_postgres`.

The server belongs to a small process, `python -m examples.private_postgres`. It prints the DSN, stops and starts the
server when it reads `stop` and `start`, and removes everything at the end of its input. So nothing stays behind, even
if the example is killed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = ["PrivatePostgres", "ServerError", "private_postgres"]

MISSING = "PostgreSQL is not installed: install it (Debian: apt install postgresql), or pass the DSN of a server"


class ServerError(Exception):
    """The private server cannot be started, in one sentence."""


class PrivatePostgres:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, dsn: str) -> None:
        self._process = process
        self.dsn = dsn
        """Where it listens."""

    async def stop(self) -> None:
        """Stop it in the middle of whatever it does, and wait until it is gone. Not cancel-safe."""
        await self._order("stop")

    async def start(self) -> None:
        """Start it again, and wait until it accepts connections. Not cancel-safe."""
        await self._order("start")

    async def _order(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n".encode())
        await self._process.stdin.drain()
        await _answer(self._process)


@asynccontextmanager
async def private_postgres() -> AsyncGenerator[PrivatePostgres]:
    """Run a server for the duration of the block.

    Raises:
        ServerError: PostgreSQL is not installed, or cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.private_postgres"),
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # so that a Ctrl+C in the terminal does not reach it
    )
    try:
        yield PrivatePostgres(process, await _answer(process))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def _answer(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    kind, _, text = (await process.stdout.readline()).decode().strip().partition(" ")
    if kind != "ok":
        raise ServerError(text or "the private PostgreSQL has ended")
    return text


# -- The process that owns the server --


def _main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        _serve(folder)
    except (OSError, subprocess.SubprocessError, ServerError) as error:
        print("error", " ".join(str(error).split()), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: Path) -> None:
    programs = _find_programs()
    user = _unprivileged(folder)

    def run(program: str, *arguments: str) -> None:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "PGDATA": str(folder / "data")}
        done = subprocess.run(
            [programs / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it, so it must not be a pipe that we read to its end
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            check=False,
            **user,
        )
        if done.returncode:
            raise ServerError(f"{program} of {programs} failed with exit status {done.returncode}")

    def start() -> None:
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")

    def stop() -> None:
        run("pg_ctl", "-w", "-m", "immediate", "stop")

    run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
    start()
    is_running = True
    try:
        print(f"ok postgresql://postgres@/postgres?host={quote(str(folder))}", flush=True)
        for line in sys.stdin:
            is_running = line.strip() == "start"
            (start if is_running else stop)()
            print("ok", flush=True)
    finally:
        if is_running:
            stop()


def _find_programs() -> Path:
    """Return the folder with initdb and pg_ctl: that of Debian's newest version, or of those in PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if folders:
        return folders[-1]
    found = shutil.which("pg_ctl")
    if found is None or os.name == "nt":
        raise ServerError(MISSING)
    return Path(found).resolve().parent


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Return the user that runs the server, and give it the folder: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    import pwd

    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        raise ServerError("PostgreSQL does not run as root, and there is no user postgres: use another user") from None
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


if __name__ == "__main__":
    _main()
