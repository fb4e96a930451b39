"""An SMTP server on loopback that takes its time, and has the faults that real ones have.

    python -m examples.email_campaign.server --latency 20-100 --faults 0.05

It delivers nothing. It tells its port in its first line, and ends when its standard input does: so it never outlives
the program that has started it.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP

from examples.email_campaign.faults import Fault, Faults, draw, no_faults, random_faults, read_faults

__all__ = ["Accepted", "DebugServer", "read_latency", "server_process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A mail that the server has taken over."""

    connection: int
    """Over which connection it came, counted from 1."""
    recipient: str
    message_id: str
    content: bytes


class DebugServer:
    """Takes mails over SMTP and forgets them. Use it as an async context manager.

    Args:
        latency: The least and the most seconds that a mail takes, from MAIL to the last reply; drawn by address.
        faults: What goes wrong, and when.
        seed: Of the latencies.
        on_accept: Called with each mail that is taken over, before the client is told.
    """

    def __init__(
        self,
        *,
        latency: tuple[float, float] = (0.0, 0.0),
        faults: Faults = no_faults,
        seed: int = 0,
        on_accept: Callable[[Accepted], None] = lambda mail: None,
    ) -> None:
        self.connections = 0
        """How many connections there have been."""
        self.port = 0
        self.attempts: dict[str, int] = {}
        """How often a mail was begun to each address."""
        self.faults = faults
        self.on_accept = on_accept
        self._latency = latency
        self._seed = seed
        self._sessions: set[_Session] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        """Listen on a port of loopback; 0: on one that is free."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Session(self), "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and drop what is connected."""
        if self._server is None:
            return
        self._server.close()
        tasks = [session.task for session in self._sessions if session.task is not None]
        for session in self._sessions:
            session.drop()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def seconds(self, address: str) -> float:
        """How long a mail to this address takes."""
        low, high = self._latency
        return low + (high - low) * draw(self._seed, address, -1)

    def opened(self, session: _Session) -> int:
        """Note a new connection, and return its number."""
        self._sessions.add(session)
        self.connections += 1
        return self.connections

    def closed(self, session: _Session) -> None:
        """Note that a connection has ended."""
        self._sessions.discard(session)


class _Session(SMTP):
    """One connection."""

    def __init__(self, server: DebugServer) -> None:
        # With a name and a loop of ours: it would look them up, and block for that.
        super().__init__(self, hostname="localhost", ident="debug server", loop=asyncio.get_running_loop())
        self._owner = server
        self._number = 0
        self._fault: Fault | None = None
        self._began = 0.0

    @property
    def task(self) -> asyncio.Task[None] | None:
        return self._handler_coroutine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._number = self._owner.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._owner.closed(self)

    def drop(self) -> None:
        """End the connection at once, without a word."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    async def smtp_MAIL(self, arg: str | None) -> None:
        self._began = self.loop.time()
        await super().smtp_MAIL(arg or "")

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        attempt = self._owner.attempts[address] = self._owner.attempts.get(address, 0) + 1
        self._fault = self._owner.faults(address, attempt)
        match self._fault:
            case Fault.CLOSING:
                await self.push("421 4.3.2 localhost is closing down")
                assert self.transport is not None
                self.transport.close()
                await asyncio.Event().wait()  # until the end of the connection cancels us
            case Fault.BUSY:
                return "451 4.3.0 try again later"
            case Fault.NO_MAILBOX:
                return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def smtp_DATA(self, arg: str | None) -> None:
        if self._fault is Fault.DROP:
            await self.push("354 go on")
            await self._reader.readline()
            self.drop()
            await asyncio.Event().wait()
        await super().smtp_DATA(arg or "")

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        address = envelope.rcpt_tos[0]
        if self._fault is Fault.STALL:
            await asyncio.Event().wait()
        # A mail is taken over in the middle of its time: who is cut off while he waits cannot know.
        seconds = self._owner.seconds(address)
        await self._sleep_until(self._began + seconds / 2)
        found = re.search(rb"(?im)^Message-ID:\s*(<[^>\r\n]*>)", envelope.content)
        self._owner.on_accept(
            Accepted(
                connection=self._number,
                recipient=address,
                message_id=found[1].decode() if found else "",
                content=envelope.content,
            )
        )
        if self._fault is Fault.LOST:
            self.drop()
            await asyncio.Event().wait()
        await self._sleep_until(self._began + seconds)
        return "250 OK"

    async def _sleep_until(self, when: float) -> None:
        # A loop on epoll wakes up 0 to 1 ms late, half a millisecond on the average.
        await asyncio.sleep(when - self.loop.time() - 0.0005)


# -- In a process of its own --


@asynccontextmanager
async def server_process(latency: str, faults: str, seed: int) -> AsyncGenerator[int]:
    """Run the server in a process of its own, and give its port. The arguments are those of its command line.

    In a process and not in our loop: what it computes would be taken from the campaign. In a session of its own: a
    Ctrl+C is not meant for it.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __spec__.name if __spec__ else __name__),
        *("--latency", latency, "--faults", faults, "--seed", str(seed)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


def read_latency(text: str) -> tuple[float, float]:
    """Read `20-100` or `20`, in milliseconds, as seconds.

    Raises:
        ValueError: It is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", text)
    low, high = (float(match[1]), float(match[2] or match[1])) if match else (1.0, 0.0)
    if low > high:
        raise ValueError(f"latency must be LEAST-MOST milliseconds, such as 20-100, got {text!r}")
    return low / 1000, high / 1000


async def _serve(server: DebugServer, port: int) -> None:
    loop = asyncio.get_running_loop()
    await server.start(port)
    print(server.port, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    await server.stop()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", default="0", type=read_latency, help="milliseconds that a mail takes: LEAST-MOST")
    parser.add_argument("--faults", default="0", type=read_faults, help="a share, or KIND=SHARE,...")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--port", default=0, type=int)
    parser.add_argument("--log", type=Path, help="where to write a line for each mail accepted: its Message-ID")
    found = parser.parse_args()
    log = found.log.open("a", buffering=1) if found.log else None

    def accept(mail: Accepted) -> None:
        if log is not None:
            log.write(f"{mail.message_id}\n")

    faults = random_faults(found.faults, found.seed)
    asyncio.run(
        _serve(DebugServer(latency=found.latency, faults=faults, seed=found.seed, on_accept=accept), found.port)
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
