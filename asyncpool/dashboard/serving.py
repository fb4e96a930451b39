"""`dashboard`: an aiohttp application, and `serve_dashboard`: a server of its own, beside any program."""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from asyncpool._checks import check_count, check_function
from asyncpool._guard import describe
from asyncpool.dashboard.building import build_views
from asyncpool.dashboard.reading import is_here
from asyncpool.errors import WrongLoop
from asyncpool.journal.journal import Journal
from asyncpool.pool import WorkerPool

if TYPE_CHECKING:
    from aiohttp import web

    from asyncpool.dashboard.web import Server

__all__ = ["dashboard", "serve_dashboard"]

_WILDCARDS = ("", "0.0.0.0", "::")


def dashboard(
    *pools: WorkerPool[Any, Any],
    journals: Iterable[Journal[Any]] = (),
    actions: bool = False,
    token: str | None = None,
    allowed_hosts: Iterable[str] = (),
    title: str = "asyncpool",
) -> web.Application:
    """Return the dashboard as an aiohttp application, to be mounted in another.

        app.add_subapp("/pools", dashboard(pool, other_pool))

    It must be served on the loop of the pools; a pool that runs on another loop is shown without figures. It keeps
    references to the pools, which can be new, open or closed.

    **Who can see it.** Without a token, everyone who can reach the path in your application: put it behind the
    authentication of the application, or pass a token. Open the page as `https://example.com/pools/#token=TOKEN`: a
    fragment is not sent to the server, and the page takes it out of the address. Without it, the page asks for it.

    Args:
        pools: The pools, in the order of the page.
        journals: Journals whose progress is shown.
        actions: Whether the page can pause, resume, resize and drain pools, cancel jobs, and replay and discard dead
            letters. Without it, there are no routes that change anything.
        token: What a client must have to read and to act; at least 16 characters. Required with `actions`.
        allowed_hosts: The names under which the page is reached (`Host`). IP addresses and `localhost` always work;
            other names must be listed, or a page of an attacker could pretend to be this one (DNS rebinding).
        title: The heading of the page.

    Raises:
        ModuleNotFoundError: aiohttp is not installed.
        TypeError, ValueError: An argument is not valid.
    """
    from asyncpool.dashboard.web import application

    return application(
        build_views(pools, journals=journals, actions=actions, token=token, allowed_hosts=allowed_hosts, title=title)
    )


class serve_dashboard:
    """Serves the dashboard at an address of its own, while the block runs, and prints the address.

        async with WorkerPool(fetch, workers=20) as pool:
            async with serve_dashboard(pool, actions=True):
                ...

    The address has a token, without which nothing can be read or changed: also on 127.0.0.1, which other users of the
    machine, and web pages in your browser, can reach. The connection is not encrypted. To look at another machine's
    pools, forward the port by ssh.

    Leaving the block closes the connections. `url` is the address with the token, and `port` the port.

    Args:
        pools: The pools, in the order of the page. They must run on this loop, or not yet run.
        host: The address to bind to.
        port: The port; 0: any free one.
        journals: Journals whose progress is shown.
        actions: Whether the page can change something: see `dashboard`.
        token: At least 16 characters. None: a random one.
        allowed_hosts: Names under which the page is reached: see `dashboard`. `host` is one of them, and so is the name
            of this machine if the dashboard listens at all addresses.
        title: The heading of the page.
        announce: Called with a line that has the address. None: nothing is printed. By default, it goes to stderr.

    Raises:
        ModuleNotFoundError: aiohttp is not installed.
        TypeError, ValueError: An argument is not valid.
    """

    def __init__(
        self,
        *pools: WorkerPool[Any, Any],
        host: str = "127.0.0.1",
        port: int = 0,
        journals: Iterable[Journal[Any]] = (),
        actions: bool = False,
        token: str | None = None,
        allowed_hosts: Iterable[str] = (),
        title: str = "asyncpool",
        announce: Callable[[str], object] | None = lambda line: sys.stderr.write(line + "\n"),
    ) -> None:
        from asyncpool.dashboard.web import Server

        if not isinstance(host, str):
            raise TypeError(f"host must be a str, got {describe(host)}")
        port = check_count("port", port, least=0)
        if port > 65535:
            raise ValueError(f"port must be <= 65535, got {port}")
        if announce is not None:
            check_function("announce", announce)
        self._is_everywhere = host in _WILDCARDS
        self._host = socket.gethostname().lower() if self._is_everywhere else host
        if isinstance(allowed_hosts, Iterable) and not isinstance(allowed_hosts, str) and ":" not in self._host:
            allowed_hosts = (*allowed_hosts, self._host)
        self.token = secrets.token_urlsafe(24) if token is None else token
        """What the page needs to read and to act."""
        self.port = port
        """The port, once the block has begun."""
        self._pools = pools
        self._announce = announce
        views = build_views(
            pools, journals=journals, actions=actions, token=self.token, allowed_hosts=allowed_hosts, title=title
        )
        self._make_server: Callable[[], Server] = lambda: Server(views, host, port)
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """The address of the page, with the token. The fragment is never sent to a server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}/#token={self.token}"

    async def __aenter__(self) -> Self:
        """Listen, and print the address.

        Raises:
            OSError: The address cannot be bound, for instance because the port is in use.
            WrongLoop: A pool runs on another event loop.
            RuntimeError: The block has begun already.
        """
        if self._server is not None:
            raise RuntimeError("this serve_dashboard() is in use: make one for each block")
        for pool in self._pools:
            if not is_here(pool):
                raise WrongLoop(f"pool {pool.name!r} runs on another event loop: serve its dashboard there")
        server = self._server = self._make_server()
        try:
            self.port = await server.start()
            if self._announce is not None:
                self._announce(f"Dashboard: {self.url}")
        except BaseException:
            self._server = None
            await server.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections. Waits up to a second for requests in progress, also if it is cancelled."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
