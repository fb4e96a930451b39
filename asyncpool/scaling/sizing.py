"""How many workers to start with, calculated from what is known about the jobs.

It is a first estimate; `stats` of the running pool shows how many workers it really needs.
"""

from __future__ import annotations

import math

from asyncpool._checks import check_count, check_number, check_seconds

__all__ = ["recommended_workers"]


def recommended_workers(
    *,
    seconds: float,
    rate: float | None = None,
    cpu_seconds: float = 0.0,
    limit: int | None = None,
) -> int:
    """Return how many workers suit jobs of a known duration.

    Two laws bound the number. By Little's law (J. D. C. Little, "A Proof for the Queuing Formula L = λW", 1961), jobs
    that take `seconds` each and complete at `rate` per second are `rate * seconds` at a time. And an event loop is one
    thread: jobs that keep it busy for `cpu_seconds` each saturate it at `seconds / cpu_seconds` at a time (the
    single-processor case of B. Goetz's formula, "Java Concurrency in Practice", 8.2); more workers only add waiting.

    Args:
        seconds: Mean duration of a job, in seconds, including the time that it waits.
        rate: The jobs per second to reach. None: as many as the event loop can run.
        cpu_seconds: The part of `seconds` in which the job keeps the event loop's thread busy (parsing, encoding).
            Work passed to `offload` does not count.
        limit: The most jobs at a time that the backend can handle: the database's connections, or the concurrent
            requests that an API allows. None: no limit.

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
        bounds.append(check_number("rate", rate, above=True, what="number of jobs a second") * seconds)
    if cpu_seconds > 0:
        bounds.append(seconds / cpu_seconds)
    if limit is not None:
        bounds.append(check_count("limit", limit, least=1))
    if not bounds:
        raise ValueError(
            "recommended_workers needs at least one of rate, cpu_seconds and limit, "
            f"got only seconds={seconds:g}, which bounds nothing"
        )
    # 1e-9: the rounding error of a product such as 100 * 0.07 must not add a worker.
    return max(1, math.ceil(min(bounds) - 1e-9))
