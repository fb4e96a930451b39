"""A private PostgreSQL in a temporary folder, for tests that break its connections."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Postgres", "find_programs"]


def find_programs() -> Path | None:
    """Return the folder with initdb and pg_ctl: that of Debian's newest version, or of those in PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if folders:
        return folders[-1]
    found = shutil.which("pg_ctl")
    return None if found is None or os.name == "nt" else Path(found).resolve().parent


class Postgres:
    """A running server on a free port, which trusts everybody on this machine."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:  # the server refuses to run as root
            import pwd

            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
        self.start()

    @property
    def url(self) -> str:
        # A password and no TLS, so that clients look for no file of passwords or certificates.
        return f"postgresql://postgres:none@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def start(self) -> None:
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, in the middle of whatever it does."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGDATA": str(self._folder / "data")}
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
            env=environment,
            **self._as_user,
        )
