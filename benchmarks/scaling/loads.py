"""Loads: iterators of arrival times, in seconds from the start, drawn lazily from a seeded random generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from random import Random
from typing import TypeAlias

__all__ = ["Load", "Rate", "at_once", "backlogged", "burst", "day", "on_off", "poisson", "ramp", "steady"]

Load: TypeAlias = Callable[[Random], Iterable[float]]
"""Returns arrival times in ascending order."""
Rate: TypeAlias = Callable[[float], float]
"""Returns the jobs per second at a time, in seconds from the start."""


def backlogged(random: Random) -> Iterator[float]:
    """An endless backlog: at the start, more jobs have arrived than the pool can ever run."""
    return repeat(0.0)


def at_once(jobs: int) -> Load:
    """This many jobs at the start, and no more."""
    return lambda random: repeat(0.0, jobs)


def poisson(rate: Rate, most: float) -> Load:
    """Independent arrivals at a variable rate that never exceeds `most`, by thinning (Lewis, Shedler 1979)."""

    def arrivals(random: Random) -> Iterator[float]:
        at = 0.0
        while True:
            at += random.expovariate(most)
            if random.random() * most < rate(at):
                yield at

    return arrivals


def steady(rate: float) -> Load:
    """A constant rate."""
    return poisson(lambda at: rate, rate)


def burst(low: float, high: float, *, begin: float, end: float) -> Load:
    """The rate `low`, and `high` between two times."""
    return poisson(lambda at: high if begin <= at < end else low, max(low, high))


def ramp(low: float, high: float, *, begin: float, end: float) -> Load:
    """A rate that rises linearly from `low` to `high` between two times."""

    def rate(at: float) -> float:
        return low + (high - low) * min(1.0, max(0.0, (at - begin) / (end - begin)))

    return poisson(rate, max(low, high))


def on_off(rate: float, *, on: float, off: float) -> Load:
    """`rate` for `on` seconds, then nothing for `off` seconds, and so on."""
    return poisson(lambda at: rate if at % (on + off) < on else 0.0, rate)


def day(low: float, high: float, *, period: float = 86_400.0) -> Load:
    """A sinusoid with its minimum at midnight and its maximum at noon."""
    middle, swing = (low + high) / 2, (high - low) / 2
    return poisson(lambda at: middle - swing * math.cos(2 * math.pi * at / period), high)
