"""Who can see and change something: the checks of `Host`, of the origin and of the token. Plain functions, no state.

A request is checked in this order, and each check is for one attack:

1. `Host` must be an IP address, `localhost`, or an allowed name. A page of an attacker whose own name points to this
   machine (DNS rebinding) sends that name.
2. Data and actions: a browser must not have sent the request for a page of another origin (CSRF).
3. Data and actions: the token must be the right one, if there is a token. It travels in a header of its own, which no
   page of another origin can set, and not in a cookie, which browsers attach for every page.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from asyncpool._guard import describe
from asyncpool.dashboard.messages import Request, Response, error

__all__ = ["MIN_TOKEN", "SECURITY_HEADERS", "TOKEN_HEADER", "Access"]

TOKEN_HEADER = "x-asyncpool-token"
MIN_TOKEN = 16
"""The fewest characters that a token can have: nobody is slowed down who tries one after the other."""

SECURITY_HEADERS: Mapping[str, str] = {
    # Nothing but the files beside the page. No inline script or style, and no string becomes markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Access:
    """The checks of one dashboard.

    Args:
        token: What requests for data and actions must have; None: these need no token.
        allowed_hosts: Names that `Host` can have, besides IP addresses and `localhost`.

    Raises:
        TypeError, ValueError: One of them is not valid.
    """

    def __init__(self, token: str | None, allowed_hosts: Iterable[str]) -> None:
        if token is not None and not isinstance(token, str):
            raise TypeError(f"token must be a str, got {type(token).__name__}")
        if token is not None and not (len(token) >= MIN_TOKEN and token.isascii() and token.isprintable()):
            raise ValueError(
                f"token must have at least {MIN_TOKEN} printable ASCII characters: use secrets.token_urlsafe(), got "
                f"one of {len(token)} characters"
            )
        if isinstance(allowed_hosts, str) or not isinstance(allowed_hosts, Iterable):
            raise TypeError(f"allowed_hosts must be a sequence of names, got {describe(allowed_hosts)}")
        hosts = tuple(allowed_hosts)
        for host in hosts:
            if not isinstance(host, str):
                raise TypeError(f"allowed_hosts must have names, got {describe(host)}")
            if not host or host != host.strip() or any(mark in host for mark in "/:*@"):
                raise ValueError(f"allowed_hosts must be names without scheme, port or wildcard, got {describe(host)}")
        self._token = token
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    @property
    def needs_token(self) -> bool:
        """Whether data needs a token."""
        return self._token is not None

    def refuse_host(self, request: Request) -> Response | None:
        """Return the response to a request with the wrong `Host`; None: it is right."""
        host = request.headers.get("host", "")
        if self._is_allowed(_name_in(host)):
            return None
        return error(403, f"the host {describe(host)} is not allowed: add it to allowed_hosts= of the dashboard")

    def _is_allowed(self, name: str) -> bool:
        if not name:
            return False
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # nobody can make an address point elsewhere

    def refuse(self, request: Request, *, changes: bool) -> Response | None:
        """Return the response to a request for data, or for a change, that is not permitted; None: it is."""
        headers = request.headers
        # A browser sends it with every request, unless the page is of another host and comes by plain HTTP.
        site = headers.get("sec-fetch-site")
        if site is not None and site != "same-origin" and (changes or site != "none"):
            return error(403, f"a page of another site must not use the dashboard (Sec-Fetch-Site: {site:.20})")
        # The scheme is not compared: behind a proxy that adds TLS we do not know it.
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != headers.get("host", "").lower():
            host = describe(headers.get("host", ""))
            return error(
                403,
                f"a page of another origin must not use the dashboard: Origin is {describe(origin)}, and Host is "
                f"{host}, which a proxy must pass on",
            )
        if self._token is None:
            return None
        given = headers.get(TOKEN_HEADER, "")
        # Bytes, because a str that is not ASCII raises.
        if hmac.compare_digest(given.encode("utf-8", "backslashreplace"), self._token.encode()):
            return None
        return error(401, "the token is wrong" if given else "a token is needed")


def _name_in(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".") if host.isprintable() else ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
