"""How many downloads per second each host gets: as many as it takes, but at most `rate`.

A host that responds with 429 or 503 gets a pause: as long as its `Retry-After` asks for, or 1, 2, 4 ... seconds while
it goes on like that. Its rate is halved, and each second of successful downloads adds one per second. So the rate
follows what the host allows, as that of TCP does (additive increase, multiplicative decrease). Other hosts are not
affected. After a redirect, the host of the first URL counts.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from asyncpool import RateLimit

__all__ = ["Paces"]

_FIRST_RATE = 10.0  # downloads per second after the first pause of a host that had no limit
_LEAST_RATE = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds


@dataclass(slots=True, kw_only=True)
class _Pace:
    """The pace of a host that was too busy at least once. Those of the others are not kept."""

    limit: RateLimit
    rate: float
    pause: float = _FIRST_PAUSE
    until: float = -math.inf
    """When its last pause ends, as a time of the loop."""


class Paces:
    """The rate limit of each host.

    Args:
        rate: The most downloads per second from a host. None: no limit until the host is too busy.

    Raises:
        ValueError: `rate` is not > 0.
    """

    def __init__(self, rate: float | None = None) -> None:
        self._limits = None if rate is None else RateLimit.per_key(str, rate)
        self._most = math.inf if rate is None else rate
        self._slowed: dict[str, _Pace] = {}

    def limit_of(self, url: str) -> RateLimit | None:
        """Return the limit of the URL's host, for the `limiter` of a pool. None: it has no limit."""
        host = _host_of(url)
        if (pace := self._slowed.get(host)) is not None:
            return pace.limit
        return None if self._limits is None else self._limits(host)

    def slow_down(self, url: str, began: float, retry_after: float) -> float:
        """Note that the host was too busy for a download, and return the seconds until the next one can start.

        Args:
            url: The URL of the download.
            began: When the download began, as a time of the loop.
            retry_after: The seconds that the host asked for; 0 if none.
        """
        now = asyncio.get_running_loop().time()
        host = _host_of(url)
        if (pace := self._slowed.get(host)) is None:
            limit = RateLimit(_FIRST_RATE) if self._limits is None else self._limits(host)
            pace = self._slowed[host] = _Pace(limit=limit, rate=min(self._most, 2 * _FIRST_RATE))
        if began >= pace.until:  # otherwise it is one of several that were in progress
            pace.rate = max(_LEAST_RATE, pace.rate / 2)
            pace.limit.change(pace.rate)
            pace.until = now + min(max(retry_after, pace.pause), _LONGEST_PAUSE)
            pace.limit.pause_for(pace.until - now)
            pace.pause *= 2
        return max(0.0, pace.until - now)

    def speed_up(self, url: str) -> None:
        """Note that a download from the host has succeeded."""
        if (pace := self._slowed.get(_host_of(url))) is not None:
            pace.rate = min(self._most, pace.rate + 1 / pace.rate)
            pace.limit.change(pace.rate)
            pace.pause = _FIRST_PAUSE


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:  # not a URL: the download fails
        return ""
