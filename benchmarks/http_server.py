"""`python -m benchmarks.http_server [MOST]`: an HTTP server on loopback that counts its connections.

It answers every request with the same body, and resets connections above MOST, if given. It prints its port, runs until
its standard input is closed, which ensures that it never outlives its client, and then prints its counters.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

from benchmarks.harness import ROOT

__all__ = ["BODY", "Counted", "serving"]

BODY = b"x" * 10_240
_BACKLOG = 2048  # as on servers that expect many clients; with less, gather without a limit would do worse


@dataclass(kw_only=True)
class Counted:
    """The counters of a server, complete when it has stopped."""

    port: int
    opened: int = 0
    peak: int = 0
    reset: int = 0


@asynccontextmanager
async def serving(most: int | None = None) -> AsyncIterator[Counted]:
    """Run the server in a process of its own, where it takes no CPU time from the client."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.http_server", *([] if most is None else [str(most)])),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        counted = Counted(port=int(await process.stdout.readline()))
        yield counted
        process.stdin.close()
        for name, value in json.loads(await process.stdout.read()).items():
            setattr(counted, name, value)
    finally:
        process.stdin.close()
        await process.wait()


# -- In the server's process -------------------------------------------------------------------------------------------


@dataclass
class _Door:
    """Creates aiohttp's protocols, and counts them while they are connected."""

    server: web.Server
    most: int | None
    connected: set[asyncio.BaseProtocol] = field(default_factory=set)
    opened: int = 0
    peak: int = 0
    reset: int = 0

    def __call__(self) -> asyncio.Protocol:
        return _Counting(self, self.server())


class _Counting(asyncio.Protocol):
    """Passes the connection to aiohttp's protocol, or resets it if there are too many."""

    def __init__(self, door: _Door, protocol: Any) -> None:
        self._door = door
        self._protocol = protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        door = self._door
        if door.most is not None and len(door.connected) >= door.most:
            door.reset += 1
            cast("asyncio.Transport", transport).abort()  # uvloop's transports are not instances of this class
            return
        door.connected.add(self._protocol)
        door.opened += 1
        door.peak = max(door.peak, len(door.connected))
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)


async def _answer(request: web.BaseRequest) -> web.Response:
    return web.Response(body=BODY)


async def _serve(most: int | None) -> None:
    loop = asyncio.get_running_loop()
    server = _Server(_answer, access_log=None)
    door = server.door = _Door(server, most)
    listener = await loop.create_server(door, "127.0.0.1", 0, backlog=_BACKLOG)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()
    await server.shutdown(1.0)
    print(json.dumps({"opened": door.opened, "peak": door.peak, "reset": door.reset}), flush=True)


class _Server(web.Server):
    door: _Door

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        self.door.connected.discard(handler)
        super().connection_lost(handler, exc)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else None))
