"""`Adaptive`: finds the right number of concurrent jobs by small experiments on the running pool.

Pure, as all policies. It knows nothing about the backend: it sees only how long jobs take and how they fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum

from asyncpool._checks import check_count, check_filter, check_seconds, convert_field
from asyncpool._guard import is_error, leaves_of
from asyncpool.errors import ErrorFilter, JobTimeout, RetryAfter, matches
from asyncpool.scaling.policy import Decide, Decision, PoolLoad

__all__ = ["Adaptive"]

# An experiment changes the number of workers by a factor between these two, and by at least one.
_LEAST_STEP = 1.2
_MOST_STEP = 2.0
# More workers are kept if their elasticity (by how many percent the throughput rises for each percent of workers) is
# above the first number; fewer, if it is below the second. In both cases by at least this many standard errors.
_WORTH_MORE = 0.15
_WORTH_FEWER = 0.25
_SURELY_MORE = 1.0
_SURELY_FEWER = 1.0
# The expected elasticity before any measurement, and its standard error. Without this prior, small samples lead to
# extreme estimates.
_EXPECTED = 0.5
_EXPECTED_WITHIN = 1.0
# A significantly higher elasticity than this is not possible: it means that the backend changed during an experiment.
_IMPOSSIBLE = 1.3
# After a change of the number of workers, the first number of attempts per worker is not measured, because jobs that
# began before the change must end. Then at least and at most the next two numbers are measured; in between, until the
# standard error of the elasticity is at most the last.
_SETTLING = 2
_SHORTEST = 4
_LONGEST = 20
_PRECISION = 0.2
# The longest measurement has at least and at most this many attempts, whatever the number of workers.
_SMALL_SAMPLE = 120
_LARGE_SAMPLE = 2000
# After an experiment with fewer workers that was rejected, the next waits for this many rounds (attempts per worker),
# and longer each time, up to the other number: fewer workers cost throughput, more workers cost only some latency.
_FEWER_AFTER = 30.0
_FEWER_AFTER_LONG = 120.0
# By which share, and by how many standard errors, the throughput must differ from before to count as changed by itself.
_CHANGED = 0.2
_SURELY_CHANGED = 4.0
# The cost of a failed attempt, in attempts.
_PRICE_OF_OVERLOAD = 5.0
_PRICE_OF_FAILURE = 2.0
# The backend is overloaded from this many overloads and this share of the attempts on. From the second share on, the
# number of workers is reduced without an experiment. The last number is the factor of the reduction.
_FEW_OVERLOADS = 5
_FEW_OVERLOADS_MORE = 2  # while an experiment with more workers runs
_OVERLOADED = 0.02
_SWAMPED = 0.3
_BACK_OFF = 0.75
# For this many rounds (attempts per worker) the number of workers that overloaded the backend is not tried again; after
# each further overload, for twice as many, up to the other number.
_CEILING_LASTS = 100.0
_CEILING_LASTS_LONG = 1600.0
# Measurements from before a pause in the load of this many seconds are discarded.
_STALE = 10.0


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Adds workers while that raises the throughput, and removes workers while that does not lower it.

    Hill climbing by experiment: it measures the throughput with the current number of workers, tries more, or now and
    then fewer, and keeps the number that was better. The criterion is the elasticity of the throughput. The throughput
    follows from the running times of the jobs by Little's law (J. D. C. Little, 1961): while all workers are busy, it
    is their number divided by the mean running time. It measures only while all workers are busy and nothing else holds
    jobs back. It combines the incremental steps of H.-U. Heiss and R. Wagner (Adaptive Load Control in Transaction
    Processing Systems, 1991) with the hill climbing of the .NET thread pool (J. L. Hellerstein, V. Morrison,
    E. Eilebrecht, 2009). It responds to signals of overload with multiplicative decrease (D.-M. Chiu, R. Jain, 1989),
    and approaches a number of workers that was too high by halving the distance, as BIC does (L. Xu, K. Harfoush,
    I. Rhee, 2004).

    Each alternative is worse in some case of the simulation (`python -m benchmarks.scaling`, docs/scaling.md):

    * AIMD grows without limit if the backend never reports overload.
    * TCP Vegas and Envoy's gradient compare with the shortest running time, so they mistake contention, and the
      variance of the jobs, for a queue.
    * Netflix's Gradient2 compares with a long average, which in a pool that is always busy includes the queue that the
      pool itself has caused.
    * The hill climbing of the thread pool is as good for all backends that queue, but ignores a backend that reports
      overload.

    Args:
        min_workers: The minimum number of workers; at least 1. The pool starts with it, and doubles the number while
            that raises the throughput.
        max_workers: The maximum number of workers; at least `min_workers`.
        interval: Seconds between two decisions; above 0.
        overload: Which errors mean that the backend is overloaded, besides `JobTimeout` and `RetryAfter`: a type, a
            tuple of types, or a predicate.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """

    min_workers: int
    max_workers: int
    _: KW_ONLY
    interval: float = 0.1
    overload: ErrorFilter = ()

    def __post_init__(self) -> None:
        convert_field(self, "min_workers", check_count, least=1)
        convert_field(self, "max_workers", check_count, least=1)
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers must be >= min_workers, got {self.max_workers} < {self.min_workers}")
        convert_field(self, "interval", check_seconds, positive=True)
        check_filter("overload", self.overload)

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with: `min_workers`."""
        return self.min_workers

    def start(self) -> Decide:
        """Return a new function that decides for one pool."""
        return _Climb(self)


class _Trial:
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

    def joined(self, earlier: _Trial | None) -> _Trial:
        """Return this trial merged with an earlier one with the same number of workers."""
        if earlier is None:
            return self
        both = _Trial(self.workers)
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
        return max(most, _SHORTEST * self.workers)

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
        if size < max(8, _SHORTEST * self.workers):
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
class _Gain:
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


def _compare(a: _Trial, b: _Trial) -> _Gain:
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
    return _Gain(gain, math.sqrt(variance), step)


class _Way(Enum):
    MORE = "more"
    FEWER = "fewer"


class _Climb:
    """The decisions for one pool: it measures a base, tries more or fewer workers, and keeps the better number."""

    def __init__(self, policy: Adaptive) -> None:
        self._policy = policy
        self._base = _Trial(policy.initial_workers)
        self._before: _Trial | None = None  # the same number of workers, before the last experiment
        self._probe: _Trial | None = None  # the number that is being tried
        self._way = _Way.MORE
        self._step = {_Way.MORE: _MOST_STEP, _Way.FEWER: _MOST_STEP}
        self._rounds = 0.0  # how many attempts per worker have ended: a clock that runs at the speed of the jobs
        self._fewer_from = 0.0  # on that clock: from when on fewer workers can be tried again
        self._fewer_after = _FEWER_AFTER
        self._ceiling: int | None = None  # the number of workers that overloaded the backend
        self._ceiling_until = 0.0  # on that clock
        self._ceiling_lasts = _CEILING_LASTS
        self._is_careful = False  # whether the backend was ever overloaded: it can show late, and each time costs jobs
        self._tolerated = 0.0  # the share of overloads that the last experiment with fewer workers did not reduce
        self._unsettled = 0  # how many attempts must end before attempts are measured
        self._was_busy = False
        self._busy_at = 0.0
        self._is_begun = False

    def __call__(self, load: PoolLoad) -> Decision:
        if not self._is_begun:
            self._is_begun = True
            self._base = _Trial(max(self._policy.min_workers, min(self._policy.max_workers, load.workers)))
        here = self._probe or self._base
        was_busy, self._was_busy = self._was_busy, load.backlog > 0 and not load.is_throttled and not load.starting
        if not self._was_busy:
            return self._stay("the workers are not all busy")
        busy_at, self._busy_at = self._busy_at, load.now
        if load.now - busy_at > _STALE:
            self._base, self._before, self._probe = _Trial(self._base.workers), None, None
            return self._stay("measures again after a pause")
        if load.workers != here.workers:
            return self._stay("waits for its workers")
        overloads = self._overloads(load)
        self._rounds += (load.succeeded + load.failed) / load.workers
        if self._rounds > self._ceiling_until:
            self._ceiling = None
        if not was_busy or self._unsettled > 0 or load.running > load.workers:
            self._unsettled -= load.succeeded + load.failed
            if not (overloads and self._probe is not None and self._probe.workers > self._base.workers):
                return self._stay("waits for jobs that began before the change")
        here.add(load, overloads)
        return self._at_base() if self._probe is None else self._at_probe(self._probe)

    def _overloads(self, load: PoolLoad) -> int:
        if not load.errors:
            return 0
        kinds = (JobTimeout, RetryAfter)
        count = sum(
            any(is_error(leaf, kinds) for leaf in leaves_of(error)) or matches(self._policy.overload, error)
            for error in load.errors
        )
        return round(count * load.failed / len(load.errors)) if len(load.errors) >= 1000 else count

    # -- At the base -------------------------------------------------------------------------------------------------

    def _at_base(self) -> Decision:
        base = self._base
        if base.overloads >= _FEW_OVERLOADS and base.overloaded > _OVERLOADED + 1.5 * self._tolerated:
            return self._back_off()
        if self._before is not None and len(base.seconds) >= max(30, _SHORTEST * base.workers):
            changed = _compare(self._before, base)
            if abs(changed.gain) > max(_CHANGED, _SURELY_CHANGED * changed.error):
                return self._follow(changed)
        self._way = self._next_way()
        if not self._can_try(self._way) or not base.is_known(self._target(self._way)):
            return self._stay("measures")
        return self._try(f"{base.throughput:.4g} jobs/s with {base.workers} workers")

    def _back_off(self) -> Decision:
        base, policy = self._base, self._policy
        why = f"{base.overloaded:.0%} of {base.ended} attempts with {base.workers} workers were overloads"
        self._meet_ceiling(base.workers)
        self._way = _Way.FEWER
        self._step[_Way.FEWER] = 1 / _BACK_OFF
        if base.workers == policy.min_workers:
            self._base, self._before = _Trial(base.workers), None
            return self._stay(why)
        if base.overloaded < _SWAMPED:
            return self._try(why)
        # Without an experiment: with so severe an overload there is no need to compare.
        self._base, self._before = _Trial(self._target(_Way.FEWER)), None
        return self._settle(why)

    def _meet_ceiling(self, workers: int) -> None:
        self._ceiling = workers
        self._ceiling_until = self._rounds + self._ceiling_lasts
        self._is_careful = True
        self._step[_Way.MORE] = _LEAST_STEP

    def _follow(self, changed: _Gain) -> Decision:
        """Measure a backend again that became faster or slower, then try a number that would make up for it."""
        self._way = _Way.MORE if changed.gain > 0 else _Way.FEWER
        self._step[self._way] = min(_MOST_STEP, max(_LEAST_STEP, math.exp(abs(changed.gain))))
        self._forget()
        self._base = _Trial(self._base.workers)  # the change could have come in the middle of the measurements
        return self._stay("the throughput has changed by itself")

    def _forget(self) -> None:
        self._before = None
        self._fewer_from = self._rounds
        self._fewer_after = _FEWER_AFTER

    def _target(self, way: _Way) -> int:
        here, step, policy = self._base.workers, self._step[way], self._policy
        if way is _Way.FEWER:
            return max(policy.min_workers, min(here - 1, round(here / step)))
        target = min(policy.max_workers, max(here + 1, round(here * step)))
        if self._ceiling is not None:  # half way to it, as in binary search
            target = max(here, min(target, (here + self._ceiling) // 2))
        return target

    def _next_way(self) -> _Way:
        """Return the current way if there is a number to try in it, otherwise the other if that can be tried now."""
        other = _Way.FEWER if self._way is _Way.MORE else _Way.MORE
        return self._way if self._can_try(self._way) or not self._can_try(other) else other

    def _can_try(self, way: _Way) -> bool:
        is_early = way is _Way.FEWER and self._rounds < self._fewer_from
        return not is_early and self._target(way) != self._base.workers

    def _try(self, why: str, figures: dict[str, float] | None = None) -> Decision:
        self._probe = _Trial(self._target(self._way))
        return self._settle(f"{why}; tries {self._probe.workers}", figures)

    # -- At the probe ------------------------------------------------------------------------------------------------

    def _at_probe(self, probe: _Trial) -> Decision:
        base = self._base.joined(self._before)
        is_more = probe.workers > base.workers
        expected = base.overloaded * probe.ended
        if is_more and probe.overloads > _FEW_OVERLOADS_MORE + expected + 2 * math.sqrt(expected):
            self._meet_ceiling(probe.workers)
            self._ceiling_lasts = min(_CEILING_LASTS_LONG, 2 * self._ceiling_lasts)
            why = f"{probe.overloads} overloads with {probe.workers} workers"
            return self._reject(f"{why}; goes back to {base.workers}", {"overloads": probe.overloads})
        if len(probe.seconds) < max(8, _SHORTEST * probe.workers) and probe.ended < probe.most:
            return self._stay("measures")
        found = _compare(base, probe)
        figures = {"elasticity": found.elasticity, "throughput": probe.throughput}
        why = f"{found} with {probe.workers} workers instead of {base.workers}"
        is_over = probe.is_known(base.workers) or probe.ended >= probe.most
        if is_more:
            if found.at_least(_SURELY_MORE) > _WORTH_MORE and (is_over or not self._is_careful):
                return self._accept(why, figures, is_clear=found.at_least(1.0) > 0.6)
            if is_over or found.at_most(2.0) < _WORTH_MORE:
                return self._reject(f"{why}; goes back", figures)
        else:
            if found.at_least(_SURELY_FEWER) > _IMPOSSIBLE:
                self._base, self._probe = _Trial(probe.workers), None
                self._forget()
                return self._stay("the backend has changed", figures)
            if found.at_most(_SURELY_FEWER) < _WORTH_FEWER:
                return self._accept(why, figures, is_clear=found.at_most(1.0) < 0.1)
            if is_over or found.at_least(2.0) > _WORTH_FEWER:
                self._tolerate(base, probe)
                return self._reject(f"{why}; goes back", figures)
        return self._stay("measures")

    def _tolerate(self, base: _Trial, fewer: _Trial) -> None:
        """Note the share of overloads that fewer workers did not reduce, so that it is no longer a reason to shrink."""
        self._tolerated = (base.overloads + fewer.overloads) / (base.ended + fewer.ended)
        if fewer.overloaded > base.overloaded / 2:
            self._ceiling = None

    def _accept(self, why: str, figures: dict[str, float], *, is_clear: bool) -> Decision:
        assert self._probe is not None
        self._base, self._probe = self._probe, None
        self._forget()
        if self._way is _Way.MORE:
            self._ceiling_lasts = _CEILING_LASTS
        if is_clear:
            self._step[self._way] = min(_MOST_STEP, self._step[self._way] ** 2)
        if self._target(self._way) == self._base.workers:
            return self._stay(why, figures)
        return self._try(why, figures)

    def _reject(self, why: str, figures: dict[str, float]) -> Decision:
        self._before = self._base.joined(self._before)
        self._base, self._probe = _Trial(self._base.workers), None
        self._step[self._way] = max(_LEAST_STEP, math.sqrt(self._step[self._way]))
        if self._way is _Way.FEWER:
            self._fewer_from = self._rounds + self._fewer_after
            self._fewer_after = min(_FEWER_AFTER_LONG, self._fewer_after + _FEWER_AFTER)
            self._way = _Way.MORE
        else:
            self._way = _Way.FEWER
        return self._settle(why, figures)

    # -- Decisions ---------------------------------------------------------------------------------------------------

    def _settle(self, why: str, figures: dict[str, float] | None = None) -> Decision:
        """Return a decision for a new number of workers, and measure only when jobs that began before have ended."""
        workers = (self._probe or self._base).workers
        self._unsettled = _SETTLING * workers
        return self._stay(why, figures)

    def _stay(self, why: str, figures: dict[str, float] | None = None) -> Decision:
        workers = (self._probe or self._base).workers
        is_more = workers > self._base.workers
        failures = _FEW_OVERLOADS_MORE + 1 if is_more else None  # an overload must be noticed as soon as possible
        return Decision(workers, why, figures or {}, ask_again_after_failures=failures)
