"""Whether and when a job of a pool that failed is tried again, and until when it may run at all.

The policy is `retry.py`. Where a job waits between two attempts is `_dispatch.py`.
"""

from __future__ import annotations

import logging
import math
import random
from random import Random

from asyncpool._core.job import Job
from asyncpool.errors import JobExpired, RetryAdvice
from asyncpool.outcomes import CancelReason, Failed
from asyncpool.retry import Retry
from asyncpool.stats import Counters

__all__ = ["Retries"]

_log = logging.getLogger("asyncpool")


class Retries:
    """One pool's use of a policy: the random numbers, and how much of the budget is used."""

    __slots__ = ("_counters", "_name", "_policy", "_random", "tally")

    def __init__(self, policy: Retry, name: str, counters: Counters) -> None:
        self._policy = policy
        self._name = name
        self._counters = counters
        # By way of the random numbers of the process: so processes with pools of the same name do not move in step,
        # and a program that seeds them can be repeated.
        self._random = Random(random.getrandbits(64))
        self.tally = None if policy.budget is None else policy.budget.start()

    @property
    def has_deadline(self) -> bool:
        """Whether jobs have a time in which they have to be done."""
        return self._policy.max_elapsed is not None

    def backoff(self, job: Job, failed: Failed[object], raised: BaseException, now: float) -> float | None:
        """Return the seconds until the next attempt of a job whose attempt has just failed; None if there is none.

        Raises what a predicate of the user raised; he may also have cancelled the job.
        """
        advice = raised if isinstance(raised, RetryAdvice) else failed.error
        backoff = self._policy.delay(job.attempt, advice, self._random)
        # Its end was asked for, or its time is over (by a timer, and some come a little early).
        if backoff is None or isinstance(job.doom, (CancelReason, JobExpired)):
            return None
        if self._policy.max_elapsed is not None and now + backoff >= self._deadline(job):
            elapsed = self._policy.max_elapsed
            _add_note(failed.error, f"not tried again: that would be later than max_elapsed={elapsed:g} s")
            return None
        if self.tally is not None and not self.tally.withdraw(now):
            _add_note(failed.error, f"not tried again: the budget is spent, {self._policy.budget!r}")
            self._tell_rejected(job)
            return None
        return backoff

    def seconds_left(self, job: Job, now: float) -> float:
        """Return how long a job may still take: 0 or less if its time is over, infinity if it has no end."""
        return math.inf if self._policy.max_elapsed is None else self._deadline(job) - now

    def expired(self, job: Job) -> JobExpired:
        """Make the error of a job whose time is over."""
        assert self._policy.max_elapsed is not None
        error = JobExpired(self._policy.max_elapsed)
        if job.past is not None:
            error.__cause__ = job.past.failed.error
        return error

    def _deadline(self, job: Job) -> float:
        assert self._policy.max_elapsed is not None
        return job.accepted_at + self._policy.max_elapsed

    def _tell_rejected(self, job: Job) -> None:
        self._counters.retries_rejected += 1
        count = self._counters.retries_rejected
        if count & (count - 1) == 0:
            _log.warning(
                "pool %r: the retry budget is spent, so a failed job is not tried again (number %d of such): %r",
                self._name,
                count,
                job.input,
            )


def _add_note(error: BaseException, note: str) -> None:
    """Say something at an error, once: it may be one object that is raised again and again."""
    try:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    except Exception:
        pass  # it takes no notes (a frozen dataclass does not): the note is a courtesy
