"""An SMTP server on loopback with latency, and with the faults of real servers.

    python -m examples.email_campaign.server --latency 20-100 --faults 0.05

It delivers nothing. Its first line of output is its port. It stops when its standard input is closed, so it never
outlives the program that started it.
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
from typing import Any, Self, cast

from aiosmtpd.smtp import SMTP

from examples.email_campaign.faults import Fault, Faults, draw, no_faults, random_faults, read_faults

__all__ = ["Accepted", "DebugServer", "read_latency", "server_process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A mail that the server has accepted."""

    connection: int
    """The number of its connection, starting from 1."""
    recipient: str
    message_id: str
    content: bytes


class DebugServer:
    """Accepts mails over SMTP and discards them. Use it as an async context manager.

    Args:
        latency: The minimum and the maximum duration of a mail in seconds, from MAIL to the last reply. The duration
            depends on the address.
        faults: Returns the fault of each attempt.
        seed: The seed of the latencies.
        on_accept: Called with each accepted mail before the server replies to the client.
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
        """How many connections were opened."""
        self.port = 0
        self.attempts: dict[str, int] = {}
        """The number of attempts by address."""
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
        """Listen on a port of loopback; 0 chooses a free port."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Session(self), "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop all connections."""
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
        """Return how long a mail to this address takes."""
        low, high = self._latency
        return low + (high - low) * draw(self._seed, address, -1)

    def opened(self, session: _Session) -> int:
        """Register a new connection and return its number."""
        self._sessions.add(session)
        self.connections += 1
        return self.connections

    def closed(self, session: _Session) -> None:
        """Unregister a closed connection."""
        self._sessions.discard(session)


class _Session(SMTP):
    """One connection."""

    def __init__(self, server: DebugServer) -> None:
        # Pass the host name and the loop, because aiosmtpd would look them up and block.
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
        """Abort the connection without a reply."""
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()  # uvloop's transports are not instances of this class

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
                await asyncio.Event().wait()  # until the closed connection cancels this task
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
        # Accept the mail in the middle of its duration: a client that is cut off while it waits cannot know.
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
        # An epoll loop wakes up 0 to 1 ms late, by half a millisecond on average.
        await asyncio.sleep(when - self.loop.time() - 0.0005)


# -- In a separate process --


@asynccontextmanager
async def server_process(latency: str, faults: str, seed: int) -> AsyncGenerator[int]:
    """Run the server in a separate process and yield its port. The arguments are those of its command line.

    A server in the same process would use CPU time of the campaign. The process has its own session, so a Ctrl+C on the
    terminal does not reach it.
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
    """Parse `20-100` or `20`, in milliseconds, and return seconds.

    Raises:
        ValueError: The text has neither form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", text)
    low, high = (float(match[1]), float(match[2] or match[1])) if match else (1.0, 0.0)
    if low > high:
        raise ValueError(f"must be MIN-MAX in milliseconds, such as 20-100, got {text!r}")
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
    parser.add_argument("--latency", default="0", type=read_latency, help="milliseconds per mail: MIN-MAX")
    parser.add_argument("--faults", default="0", type=read_faults, help="a share, or KIND=SHARE,...")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--port", default=0, type=int)
    parser.add_argument("--log", type=Path, help="write the Message-ID of each accepted mail to this file")
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
