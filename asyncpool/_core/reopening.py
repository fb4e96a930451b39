"""When the workers of a pool try again to open a resource that could not be opened.

The task that waits and tries is that of `resources.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from asyncpool._chance import chance

__all__ = ["Opener", "Reopening", "backoff"]

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
# While no resource is open, one worker waits no longer than this, so that a backend that is back is soon noticed.
_LONGEST_PROBE_PAUSE = 0.5
# How many workers stop waiting when a resource opens. The number of open resources can triple with each round trip, but
# a backend that has just started gets two new connections for each that it has accepted.
_FOLLOWERS = 2


def backoff(failures: int, longest: float = _LONGEST_PAUSE) -> float:
    """Return the pause after this many failures, in seconds: doubled each time, and half of it random."""
    exponent = min(failures - 1, 10)
    return min(_FIRST_PAUSE * 2.0**exponent, longest) * chance.uniform(0.5, 1.0)


class Opener(Protocol):
    """A task that opens a resource."""

    def try_now(self) -> None:
        """End the pause."""
        ...


class Reopening:
    """The workers of a pool that wait to try again, and what the success of one means for the others.

    Each worker has its own backoff. While no resource is open, one of those that wait is the probe, whose pauses stay
    short. Each resource that opens ends the pauses of the first that wait. So a pool is back soon after its backend,
    however long the outage was (test_a_pool_is_back_within_a_second_of_its_backend), and its workers do not connect all
    at once (test_a_backend_that_is_back_gets_two_new_connections_for_each_that_it_has_accepted).

    A worker whose resource was opened and then died waits for the whole of its backoff, because a backend can accept
    connections and drop them (test_a_backend_that_drops_what_it_accepts_is_left_alone_for_longer_and_longer).
    """

    __slots__ = ("_open", "_probe", "_waiting")

    def __init__(self) -> None:
        self._open: set[Opener] = set()
        self._waiting: OrderedDict[Opener, None] = OrderedDict()
        self._probe: Opener | None = None

    def refused(self, opener: Opener, failures: int) -> float:
        """Note that a resource could not be opened; return the seconds until the opener tries again by itself.

        Its `try_now` can be called until then, or until `leave()`.
        """
        self._waiting[opener] = None
        if self._open or self._probe is not None:
            return backoff(failures)
        self._probe = opener
        return backoff(failures, _LONGEST_PROBE_PAUSE)

    def leave(self, opener: Opener) -> None:
        """Note that an opener neither waits nor has an open resource: it tries again, or closes. Safe to repeat."""
        self._open.discard(opener)
        self._waiting.pop(opener, None)
        if self._probe is opener:
            self._probe = None

    def retire(self, opener: Opener) -> None:
        """Note that an opener has ended. If that leaves no probe, another one tries at once, and is the next probe."""
        self.leave(opener)
        if not self._open and self._probe is None:
            self._end_pauses(1)

    def opened(self, opener: Opener) -> None:
        """Note that a resource is open, and let others try."""
        self._open.add(opener)
        self._end_pauses(_FOLLOWERS)

    def _end_pauses(self, most: int) -> None:
        for _ in range(min(most, len(self._waiting))):
            follower = next(iter(self._waiting))
            self.leave(follower)
            follower.try_now()
