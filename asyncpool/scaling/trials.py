"""What `Adaptive` measures with a number of workers, and how two such measurements compare.

What it tries, and what it makes of the comparison, is `adaptive.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from asyncpool.scaling.policy import PoolLoad

__all__ = ["SHORTEST", "Gain", "Trial", "compare"]

# The expected elasticity before any measurement, and its standard error. Without this prior, small samples lead to
# extreme estimates.
_EXPECTED = 0.5
_EXPECTED_WITHIN = 1.0
# A measurement has at least and at most these numbers of attempts per worker; in between, as many as bring the standard
# error of the elasticity to at most the last number.
SHORTEST = 4
_LONGEST = 20
_PRECISION = 0.2
# The longest measurement has at least and at most this many attempts, whatever the number of workers.
_SMALL_SAMPLE = 120
_LARGE_SAMPLE = 2000
# The cost of a failed attempt, in attempts.
_PRICE_OF_OVERLOAD = 5.0
_PRICE_OF_FAILURE = 2.0


class Trial:
    """The measurements with one number of workers, while all of them were busy."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.seconds: list[float] = []  # running times, in the order in which they were added
        self.ended = 0
        self.overloads = 0
        self.failures = 0  # of other kinds

    def add(self, load: PoolLoad, overloads: int) -> None:
        """Add the attempts that have ended since the previous call."""
        self.seconds += load.seconds
        self.ended += load.succeeded + load.failed
        self.overloads += overloads
        self.failures += load.failed - overloads
        self._forget(3 * self.most)

    def joined(self, earlier: Trial | None) -> Trial:
        """Return this trial merged with an earlier one with the same number of workers."""
        if earlier is None:
            return self
        both = Trial(self.workers)
        both.seconds = earlier.seconds + self.seconds
        both.ended = earlier.ended + self.ended
        both.overloads = earlier.overloads + self.overloads
        both.failures = earlier.failures + self.failures
        both._forget(3 * self.most)
        return both

    def _forget(self, most: int) -> None:
        """Keep at most `most` attempts, the latest."""
        del self.seconds[:-most]
        if self.ended > most:
            self.overloads = round(self.overloads * most / self.ended)
            self.failures = round(self.failures * most / self.ended)
            self.ended = most

    @property
    def most(self) -> int:
        """The maximum number of attempts to measure before a decision."""
        most = min(_LARGE_SAMPLE, max(_SMALL_SAMPLE, _LONGEST * self.workers))
        return max(most, SHORTEST * self.workers)

    @property
    def overloaded(self) -> float:
        """The share of the attempts that were overloads."""
        return self.overloads / self.ended if self.ended else 0.0

    @property
    def throughput(self) -> float:
        """Jobs per second, by Little's law."""
        mean, _ = _mean(self.seconds)
        return self.workers / mean if mean else 0.0

    def is_known(self, other: int) -> bool:
        """Return whether enough was measured to compare it with another number of workers."""
        size = len(self.seconds)
        if size < max(8, SHORTEST * self.workers):
            return False
        if size >= self.most:
            return True
        _, spread = _mean(self.seconds, _cap(self.seconds))
        return spread * math.sqrt(2.0 / size) <= _PRECISION * abs(math.log(other / self.workers))


def _cap(values: Sequence[float]) -> float:
    """Return the cap for the longest values: in a heavy tail, a few would outweigh all others."""
    return sorted(values)[-1 - min(len(values) - 1, max(2, len(values) // 50))]


def _mean(values: Sequence[float], cap: float = math.inf) -> tuple[float, float]:
    """Return the mean of the capped values, and their standard deviation relative to it."""
    if not values:
        return 0.0, 1.0
    n = len(values)
    cut = values if cap == math.inf else [min(value, cap) for value in values]
    mean = sum(cut) / n
    if not mean:
        return 0.0, 1.0
    deviation = math.sqrt(sum((value - mean) ** 2 for value in cut) / max(1, n - 1))
    return mean, deviation / mean + 0.05  # increased a little, because a small sample underestimates it


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much the throughput of two trials differs, and by how much their workers: as logarithms of the ratios."""

    gain: float
    error: float  # its standard error
    step: float  # the logarithm of the ratio of the workers

    @property
    def _doubt(self) -> float:
        """The weight of the expected elasticity relative to the measured one, between 0 and 1."""
        return self.error**2 / (self.error**2 + (_EXPECTED_WITHIN * self.step) ** 2)

    @property
    def elasticity(self) -> float:
        """By how many percent the throughput rises for each percent of workers: the Bayesian estimate."""
        return self._doubt * _EXPECTED + (1 - self._doubt) * self.gain / self.step

    @property
    def elasticity_error(self) -> float:
        """The standard error of the elasticity."""
        return _EXPECTED_WITHIN * math.sqrt(self._doubt)

    def at_least(self, errors: float) -> float:
        """Return the elasticity minus `errors` standard errors."""
        return self.elasticity - errors * self.elasticity_error

    def at_most(self, errors: float) -> float:
        """Return the elasticity plus `errors` standard errors."""
        return self.elasticity + errors * self.elasticity_error

    def __str__(self) -> str:
        change = f"{math.expm1(self.gain):+.0%} throughput"
        return f"{change} (elasticity {self.elasticity:.2f} +- {self.elasticity_error:.2f})"


def compare(a: Trial, b: Trial) -> Gain:
    """Return by how much the throughput of `b` is higher than that of `a`.

    By Little's law (1961) the throughput of busy workers is their number divided by the mean running time. Failures
    reduce it, but only by how many more of them there are than before: jobs that fail anyway are not caused by load.
    """
    step = math.log(b.workers / a.workers)
    gain, variance = step, 0.0
    if a.seconds and b.seconds:
        cap = _cap(a.seconds + b.seconds)
        (mean_a, spread_a), (mean_b, spread_b) = _mean(a.seconds, cap), _mean(b.seconds, cap)
        if mean_a and mean_b:
            gain -= math.log(mean_b / mean_a)
        # The larger spread of the two: if few jobs are long, a sample without them would seem fast with certainty.
        variance = max(spread_a, spread_b) ** 2 * (1 / len(a.seconds) + 1 / len(b.seconds))
    for price, in_a, in_b in (
        (_PRICE_OF_OVERLOAD, a.overloads, b.overloads),
        (_PRICE_OF_FAILURE, a.failures, b.failures),
    ):
        if in_a or in_b:
            share_a, share_b = in_a / max(1, a.ended), in_b / max(1, b.ended)
            gain -= price * (share_b - share_a)
            variance += price**2 * (share_a * (1 - share_a) / max(1, a.ended))
            variance += price**2 * (share_b * (1 - share_b) / max(1, b.ended))
    return Gain(gain, math.sqrt(variance), step)
