"""A private Postfix in a temporary folder, which discards what it accepts, and a policy service that decides for it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

__all__ = ["Postfix", "is_usable", "policy_service"]

_SERVICES = """\
127.0.0.1:{port} inet n - n - 50 smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
discard   unix  - - n - - discard
error     unix  - - n - - error
retry     unix  - - n - - error
anvil     unix  - - n - 1 anvil
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
"""
_SETTINGS = {
    "compatibility_level": "3.6",
    "mail_owner": "postfix",
    "setgid_group": "postdrop",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "myhostname": "mail.example.com",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "alias_maps": "",
    "default_transport": "discard",
    "smtpd_client_event_limit_exceptions": "",  # by default, limits do not apply to mynetworks
    "smtpd_error_sleep_time": "0",
}


def is_usable() -> bool:
    """Return whether Postfix is installed. Its master must be started by root."""
    return os.name != "nt" and os.getuid() == 0 and shutil.which("postfix", path="/usr/sbin:/usr/bin") is not None


class Postfix:
    """A running server on a free port.

    Args:
        settings: Lines of its main.cf, besides those that it needs.
    """

    def __init__(self, **settings: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postfix-"))
        self._folder.chmod(0o755)
        self.port, self.policy_port = _free_ports()
        for name in ("queue", "data", "config"):
            (self._folder / name).mkdir()
        shutil.chown(self._folder / "data", "postfix")
        self._config = self._folder / "config"
        (self._config / "master.cf").write_text(_SERVICES.format(port=self.port))
        settings = {
            **_SETTINGS,
            "queue_directory": f"{self._folder}/queue",
            "data_directory": f"{self._folder}/data",
            "maillog_file": f"{self._folder}/log",
            "maillog_file_prefixes": str(self._folder),
            "smtpd_recipient_restrictions": f"check_policy_service inet:127.0.0.1:{self.policy_port}, permit",
            **settings,
        }
        (self._config / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        self.start()

    def start(self) -> None:
        self._run("start")

    def stop(self) -> None:
        """Stop it at once, in the middle of whatever it does."""
        self._run("abort")

    def close(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def accepted(self) -> Counter[str]:
        """How often each mail was accepted, by its Message-ID."""
        log = (self._folder / "log").read_text(errors="replace")
        queued = set(re.findall(r"/qmgr\[[0-9]+\]: (\w+): from=", log))
        ids = dict(re.findall(r"/cleanup\[[0-9]+\]: (\w+): message-id=(\S+)", log))
        return Counter(id for queue_id, id in ids.items() if queue_id in queued)

    def _run(self, command: str) -> None:
        subprocess.run(
            ["/usr/sbin/postfix", "-c", self._config, command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@asynccontextmanager
async def policy_service(port: int, decide: Callable[[str], str | None]) -> AsyncIterator[None]:
    """Answer Postfix's check_policy_service: `decide(address)` returns the reply to a recipient; None to accept."""

    open_ones: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        try:
            while request := await reader.readuntil(b"\n\n"):
                fields = dict(line.partition("=")[::2] for line in request.decode().splitlines() if line)
                writer.write(f"action={decide(fields['recipient']) or 'DUNNO'}\n\n".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            open_ones.discard(writer)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in open_ones:  # Postfix keeps them open
            writer.close()
        await server.wait_closed()
