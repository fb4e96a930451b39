"""How many workers to begin with, from what is known of the work.

A first guess from arithmetic; what a pool really needs shows in its `stats`.
"""

from __future__ import annotations

import math

from asyncpool._checks import check_count, check_seconds

__all__ = ["recommended_workers"]


def recommended_workers(
    *,
    seconds: float,
    rate: float | None = None,
    cpu_seconds: float = 0.0,
    limit: int | None = None,
) -> int:
    """Return how many workers suit jobs of a known duration.

    Two laws bound it. Little's law (J. D. C. Little, "A Proof for the Queuing Formula L = λW", 1961): jobs that take
    `seconds` each, ended at `rate` a second, are `rate * seconds` at a time. And an event loop is one thread: jobs
    that keep it busy for `cpu_seconds` each saturate it at `seconds / cpu_seconds` at a time (the single-processor
    case of B. Goetz's formula, "Java Concurrency in Practice", 8.2), more workers only add waiting.

    Args:
        seconds: Mean duration of a job, in seconds, waiting included.
        rate: Jobs a second that are wanted. None: as many as the loop can carry.
        cpu_seconds: The part of `seconds` in which the job keeps the event loop's thread busy (parsing, encoding).
            Work that is handed to `offload` does not count.
        limit: The most that the other side bears: connections of the database, requests that an API allows at once.

    Returns:
        At least 1, and at most `limit`.

    Raises:
        TypeError: An argument is not a number.
        ValueError: A number is out of range, or neither `rate`, `cpu_seconds` nor `limit` bounds the answer.
    """
    seconds = check_seconds("seconds", seconds, positive=True)
    cpu_seconds = check_seconds("cpu_seconds", cpu_seconds)
    if cpu_seconds > seconds:
        raise ValueError(f"cpu_seconds must be <= seconds, got {cpu_seconds:g} > {seconds:g}")
    bounds: list[float] = []
    if rate is not None:
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            raise TypeError(f"rate must be a number of jobs a second, got {rate!r}")
        if not math.isfinite(rate) or rate <= 0:
            raise ValueError(f"rate must be a finite number of jobs a second > 0, got {rate}")
        bounds.append(rate * seconds)
    if cpu_seconds > 0:
        bounds.append(seconds / cpu_seconds)
    if limit is not None:
        bounds.append(check_count("limit", limit, least=1))
    if not bounds:
        raise ValueError("recommended_workers needs rate, cpu_seconds or limit: seconds alone bounds nothing")
    # 1e-9: a product such as 100 * 0.07 must not round up to a worker more than the numbers say.
    return max(1, math.ceil(min(bounds) - 1e-9))
