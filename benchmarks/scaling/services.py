"""Service times of a backend: distributions with a known mean, drawn from a seeded random generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

__all__ = ["Constant", "Lognormal", "Mix", "Pareto", "Service"]


class Service(Protocol):
    """A distribution of service times, in seconds."""

    @property
    def mean(self) -> float:
        """The mean, in seconds."""
        ...

    def draw(self, random: Random) -> float:
        """Return the service time of one job, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant service time."""

    mean: float

    def draw(self, random: Random) -> float:
        return self.mean


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A peak with a tail, like most services. `cv` is the coefficient of variation."""

    mean: float
    cv: float = 0.5

    def draw(self, random: Random) -> float:
        variance = math.log(1 + self.cv**2)
        return self.mean * math.exp(random.gauss(0.0, 1.0) * math.sqrt(variance) - variance / 2)


@dataclass(frozen=True, slots=True)
class Pareto:
    """A bounded Pareto distribution: the longest takes `ratio` times as long as the shortest."""

    mean: float
    alpha: float = 1.5
    ratio: float = 100.0

    @property
    def shortest(self) -> float:
        """The lower bound, in seconds."""
        alpha = self.alpha
        return (
            self.mean * (alpha - 1) / alpha * (1 - math.pow(self.ratio, -alpha)) / (1 - math.pow(self.ratio, 1 - alpha))
        )

    def draw(self, random: Random) -> float:
        within = 1 - math.pow(self.ratio, -self.alpha)
        return self.shortest * math.pow(1 - random.random() * within, -1 / self.alpha)


@dataclass(frozen=True, slots=True)
class Mix:
    """A mix of small and large jobs: pairs of a probability (their sum is 1) and a service time in seconds."""

    parts: Sequence[tuple[float, float]]

    @property
    def mean(self) -> float:
        return sum(often * seconds for often, seconds in self.parts)

    def draw(self, random: Random) -> float:
        left = random.random()
        for often, seconds in self.parts:
            left -= often
            if left < 0:
                return seconds
        return self.parts[-1][1]
