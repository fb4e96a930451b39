"""`Adaptive`: finds by itself how many jobs at a time are right, by small experiments on the running pool.

Pure, as all policies. Nobody tells it what the backend is; it sees how long jobs take and how they fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum

from asyncpool._checks import check_count, check_filter, check_seconds
from asyncpool.errors import ErrorFilter, JobTimeout, RetryAfter, matches
from asyncpool.scaling.policy import Decide, Decision, PoolLoad

__all__ = ["Adaptive"]

# An experiment changes the workers by a factor between these two, and by one at least.
_LEAST_STEP = 1.2
_MOST_STEP = 2.0
# More workers are kept if their elasticity (by how many percent the throughput rises for each percent of workers) is
# surely above the first number; fewer, if it is surely below the second. "Surely" is in standard errors.
_WORTH_MORE = 0.15
_WORTH_FEWER = 0.25
_SURELY_MORE = 1.0
_SURELY_FEWER = 1.0
# What an elasticity is before anything was measured, and its standard error: else small samples make wild guesses.
_EXPECTED = 0.5
_EXPECTED_WITHIN = 1.0
# An elasticity surely above this is not possible: then the backend has changed in the middle of an experiment.
_IMPOSSIBLE = 1.3
# After a change of ours, so many attempts for each worker are not measured: what began before it is to end. Then at
# least and at most so many are; in between, until the elasticity is known to this standard error.
_SETTLING = 2
_SHORTEST = 4
_LONGEST = 20
_PRECISION = 0.2
# The longest measurement takes so many attempts at least, and no more than that, whatever the number of workers.
_SMALL_SAMPLE = 120
_LARGE_SAMPLE = 2000
# After an experiment with fewer workers that was not worth it, the next waits for so many rounds (attempts of each
# worker), and longer each time, up to the other number: fewer workers cost throughput, more cost only some latency.
_FEWER_AFTER = 30.0
_FEWER_AFTER_LONG = 120.0
# By how much the throughput must differ from before, and in how many standard errors, to have changed by itself.
_CHANGED = 0.2
_SURELY_CHANGED = 4.0
# What an attempt costs that failed, in attempts.
_PRICE_OF_OVERLOAD = 5.0
_PRICE_OF_FAILURE = 2.0
# From how many overloads on, and from which share of the attempts, the backend has said that it is too much; what share
# is too much to experiment with; and what is done about it.
_FEW_OVERLOADS = 5
_FEW_OVERLOADS_MORE = 2  # while more workers are tried
_OVERLOADED = 0.02
_SWAMPED = 0.3
_BACK_OFF = 0.75
# For so many rounds (attempts of each worker) the number that was too much is not tried again; each time that it is too
# much again, for twice as many, up to the other number.
_CEILING_LASTS = 100.0
_CEILING_LASTS_LONG = 1600.0
# What was measured before a pause in the load of so many seconds says nothing any more.
_STALE = 10.0


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Raises the number of workers while that raises the throughput, and lowers it while that does not lower it.

    Hill climbing by experiment: it measures with the workers that there are, tries more, or now and then fewer, and
    keeps what was worth it. Worth it is judged by the elasticity of the throughput, and that by Little's law (J. D. C.
    Little, 1961) from how long jobs run: while all workers are busy, the throughput is their number over the mean
    running time. It learns only while the pool is busy, and while nothing else holds jobs back. Its parents are the
    incremental steps of H.-U. Heiss and R. Wagner (Adaptive Load Control in Transaction Processing Systems, 1991) and
    the hill climbing of the .NET thread pool (J. L. Hellerstein, V. Morrison, E. Eilebrecht, 2009). What signals
    overload is met by multiplicative decrease (D.-M. Chiu, R. Jain, 1989), and the number that was too much is
    approached by halving the way, as in BIC (L. Xu, K. Harfoush, I. Rhee, 2004).

    Each of the others lost somewhere in the simulation (`python -m benchmarks.scaling`, docs/scaling.md). AIMD grows
    without end where nobody says no. TCP Vegas and Envoy's gradient compare with the shortest running time, and so take
    contention, and the variance of the jobs, for a queue. Netflix's Gradient2 compares with a long average, which in a
    pool that is always busy learns the queue that it made itself. And the thread pool's climbing, which is as good on
    all backends that queue, does not hear one that says no.

    Args:
        min_workers: Never fewer; at least 1. The pool starts with them, and doubles them while it pays.
        max_workers: Never more.
        interval: Seconds between two looks at what has ended.
        overload: Which errors say that there is too much load, besides `JobTimeout` and `RetryAfter`: a type, a tuple
            of types, or a predicate.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """

    min_workers: int
    max_workers: int
    _: KW_ONLY
    interval: float = 0.1
    overload: ErrorFilter = ()

    def __post_init__(self) -> None:
        check_count("min_workers", self.min_workers, least=1)
        check_count("max_workers", self.max_workers, least=1)
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers must be >= min_workers, got {self.max_workers} < {self.min_workers}")
        check_seconds("interval", self.interval, positive=True)
        check_filter("overload", self.overload)

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with: `min_workers`."""
        return self.min_workers

    def start(self) -> Decide:
        """Return what decides for one pool."""
        return _Climb(self)


class _Trial:
    """What was measured with one number of workers, while all of them were busy."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.seconds: list[float] = []  # running times, in the order of the looks
        self.ended = 0
        self.overloads = 0
        self.failures = 0  # of other kinds

    def add(self, load: PoolLoad, overloads: int) -> None:
        """Take in what has ended since the last look."""
        self.seconds += load.seconds
        self.ended += load.succeeded + load.failed
        self.overloads += overloads
        self.failures += load.failed - overloads
        self._forget(3 * self.most)

    def joined(self, earlier: _Trial | None) -> _Trial:
        """This trial and an earlier one with the same workers, as one."""
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
        """Keep no more than so many attempts, the latest."""
        del self.seconds[:-most]
        if self.ended > most:
            self.overloads = round(self.overloads * most / self.ended)
            self.failures = round(self.failures * most / self.ended)
            self.ended = most

    @property
    def most(self) -> int:
        """How many attempts are measured at most, before it is decided."""
        most = min(_LARGE_SAMPLE, max(_SMALL_SAMPLE, _LONGEST * self.workers))
        return max(most, _SHORTEST * self.workers)

    @property
    def overloaded(self) -> float:
        """The share of the attempts that were overloads."""
        return self.overloads / self.ended if self.ended else 0.0

    @property
    def throughput(self) -> float:
        """Jobs a second, by Little's law."""
        mean, _ = _mean(self.seconds)
        return self.workers / mean if mean else 0.0

    def is_known(self, other: int) -> bool:
        """Whether enough was measured to compare it with another number of workers."""
        size = len(self.seconds)
        if size < max(8, _SHORTEST * self.workers):
            return False
        if size >= self.most:
            return True
        _, spread = _mean(self.seconds, _cap(self.seconds))
        return spread * math.sqrt(2.0 / size) <= _PRECISION * abs(math.log(other / self.workers))


def _cap(values: Sequence[float]) -> float:
    """Where to cut off the longest: a few would outweigh the rest of a heavy tail."""
    return sorted(values)[-1 - min(len(values) - 1, max(2, len(values) // 50))]


def _mean(values: Sequence[float], cap: float = math.inf) -> tuple[float, float]:
    """The mean, and the standard deviation relative to it, of values that are cut to a cap."""
    if not values:
        return 0.0, 1.0
    n = len(values)
    cut = values if cap == math.inf else [min(value, cap) for value in values]
    mean = sum(cut) / n
    if not mean:
        return 0.0, 1.0
    deviation = math.sqrt(sum((value - mean) ** 2 for value in cut) / max(1, n - 1))
    return mean, deviation / mean + 0.05  # a little more, for what a small sample does not know


@dataclass(frozen=True, slots=True)
class _Gain:
    """How much more throughput one trial had than another, as the logarithm of the ratio, by the change in workers."""

    gain: float
    error: float  # its standard error
    step: float  # the logarithm of the ratio of the workers

    @property
    def _doubt(self) -> float:
        """How much of the elasticity is what was expected, and not what was measured."""
        return self.error**2 / (self.error**2 + (_EXPECTED_WITHIN * self.step) ** 2)

    @property
    def elasticity(self) -> float:
        """By how many percent the throughput rises for each percent of workers: the best guess (Bayes)."""
        return self._doubt * _EXPECTED + (1 - self._doubt) * self.gain / self.step

    @property
    def elasticity_error(self) -> float:
        """The standard error of that."""
        return _EXPECTED_WITHIN * math.sqrt(self._doubt)

    def at_least(self, errors: float) -> float:
        """The elasticity, less so many standard errors."""
        return self.elasticity - errors * self.elasticity_error

    def at_most(self, errors: float) -> float:
        """The elasticity, and so many standard errors more."""
        return self.elasticity + errors * self.elasticity_error

    def __str__(self) -> str:
        change = f"{math.expm1(self.gain):+.0%} throughput"
        return f"{change} (elasticity {self.elasticity:.2f} +- {self.elasticity_error:.2f})"


def _compare(a: _Trial, b: _Trial) -> _Gain:
    """How much more `b` did than `a`.

    By Little's law (1961) the throughput of busy workers is their number over the mean running time. Failures count
    against it, but only so far as there are more of them than before: what fails anyway says nothing about the load.
    """
    step = math.log(b.workers / a.workers)
    gain, variance = step, 0.0
    if a.seconds and b.seconds:
        cap = _cap(a.seconds + b.seconds)
        (mean_a, spread_a), (mean_b, spread_b) = _mean(a.seconds, cap), _mean(b.seconds, cap)
        if mean_a and mean_b:
            gain -= math.log(mean_b / mean_a)
        # The larger of the two: where few jobs are long, a sample without any of them seems fast, and sure of it.
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
    """The decisions for one pool: it measures its base, tries more or fewer workers, and keeps what was worth it."""

    def __init__(self, policy: Adaptive) -> None:
        self._policy = policy
        self._base = _Trial(policy.initial_workers)
        self._before: _Trial | None = None  # the same number of workers, before the last experiment
        self._probe: _Trial | None = None  # the number that is being tried
        self._way = _Way.MORE
        self._step = {_Way.MORE: _MOST_STEP, _Way.FEWER: _MOST_STEP}
        self._rounds = 0.0  # how many attempts for each worker have ended: a clock that goes as fast as the jobs
        self._fewer_from = 0.0  # of that clock: when fewer workers may be tried again
        self._fewer_after = _FEWER_AFTER
        self._ceiling: int | None = None  # how many workers were too much for the backend
        self._ceiling_until = 0.0  # of that clock
        self._ceiling_lasts = _CEILING_LASTS
        self._is_careful = False  # whether the backend has ever said so: it may do so late, and each time costs jobs
        self._tolerated = 0.0  # which share of overloads fewer workers did not help against, when that was tried last
        self._unsettled = 0  # how many attempts are to end before they are measured
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
            return self._stay("measures anew after a pause")
        if load.workers != here.workers:
            return self._stay("waits for its workers")
        overloads = self._overloads(load)
        self._rounds += (load.succeeded + load.failed) / load.workers
        if self._rounds > self._ceiling_until:
            self._ceiling = None
        if not was_busy or self._unsettled > 0 or load.running > load.workers:
            self._unsettled -= load.succeeded + load.failed
            if not (overloads and self._probe is not None and self._probe.workers > self._base.workers):
                return self._stay("lets go what began before")
        here.add(load, overloads)
        return self._at_base() if self._probe is None else self._at_probe(self._probe)

    def _overloads(self, load: PoolLoad) -> int:
        if not load.errors:
            return 0
        kinds = (JobTimeout, RetryAfter)
        count = sum(isinstance(error, kinds) or matches(self._policy.overload, error) for error in load.errors)
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
        if not self._may_try(self._way) or not base.is_known(self._target(self._way)):
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
        # Not an experiment: it is not the time for questions.
        self._base, self._before = _Trial(self._target(_Way.FEWER)), None
        return self._settle(why)

    def _meet_ceiling(self, workers: int) -> None:
        self._ceiling = workers
        self._ceiling_until = self._rounds + self._ceiling_lasts
        self._is_careful = True
        self._step[_Way.MORE] = _LEAST_STEP

    def _follow(self, changed: _Gain) -> Decision:
        """The backend has become faster or slower: measure it anew, then try a number that would make up for it."""
        self._way = _Way.MORE if changed.gain > 0 else _Way.FEWER
        self._step[self._way] = min(_MOST_STEP, max(_LEAST_STEP, math.exp(abs(changed.gain))))
        self._forget()
        self._base = _Trial(self._base.workers)  # the change may have come in the middle of it
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
        """The way that is due, if there are numbers to try there; else the other, if that may be tried now."""
        other = _Way.FEWER if self._way is _Way.MORE else _Way.MORE
        return self._way if self._may_try(self._way) or not self._may_try(other) else other

    def _may_try(self, way: _Way) -> bool:
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
        """Fewer workers did not help against the overloads, if there are any: they are no reason to shrink."""
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

    # -- Answers -----------------------------------------------------------------------------------------------------

    def _settle(self, why: str, figures: dict[str, float] | None = None) -> Decision:
        """A new number of workers: what they do is measured when they have settled."""
        workers = (self._probe or self._base).workers
        self._unsettled = _SETTLING * workers
        return self._stay(why, figures)

    def _stay(self, why: str, figures: dict[str, float] | None = None) -> Decision:
        workers = (self._probe or self._base).workers
        is_more = workers > self._base.workers
        failures = _FEW_OVERLOADS_MORE + 1 if is_more else None  # it may be too much: then each moment counts
        return Decision(workers, why, figures or {}, ask_again_after_failures=failures)
