"""What has happened in a pool since its policy was asked last: a bounded record, emptied by each question."""

from __future__ import annotations

import math

from asyncpool.errors import RetryAdvice

__all__ = ["Recent"]

# The sample of running times is thinned when it gets longer than this; errors after so many are only counted.
_MOST_SECONDS = 4096
_MOST_ERRORS = 1000


class Recent:
    """Running times, errors and rejections since the last question."""

    __slots__ = ("_seen", "_step", "asked_at", "errors", "failed", "most_failed", "rejected", "seconds", "succeeded")

    def __init__(self, now: float, succeeded: int) -> None:
        self.asked_at = now
        self.succeeded = succeeded  # how many jobs had, before
        self.failed = 0
        self.most_failed = math.inf  # before the policy is to be asked again
        self.errors: list[BaseException] = []
        self.seconds: list[float] = []
        self.rejected = 0
        self._seen = 0
        self._step = 1

    def take_seconds(self, seconds: list[float]) -> None:
        """Take note of how long some handlers ran that succeeded: of all, or of every second, fourth ... one."""
        self.seconds += seconds[-self._seen % self._step :: self._step]
        self._seen += len(seconds)
        while len(self.seconds) > _MOST_SECONDS:
            self.seconds = self.seconds[::2]
            self._step *= 2

    def take_error(self, raised: BaseException, error: BaseException) -> bool:
        """Take note of a failure: what the handler raised, and the error that was made of it.

        Return whether that is as many as the policy wanted to hear of at once.
        """
        self.failed += 1
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append(raised if isinstance(raised, RetryAdvice) else error)
        return self.failed == self.most_failed
