"""`Adaptive`: finds the right number of concurrent jobs by small experiments on the running pool.

Pure, as all policies. It knows nothing about the backend: it sees only how long jobs take and how they fail.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from enum import Enum

from asyncpool._checks import check_count, check_filter, check_seconds, convert_field
from asyncpool._guard import is_error, leaves_of
from asyncpool.errors import ErrorFilter, JobTimeout, RetryAfter, matches
from asyncpool.scaling.idle import NeededWorkers
from asyncpool.scaling.policy import Decide, Decision, PoolLoad
from asyncpool.scaling.trials import SHORTEST, Gain, Trial, compare

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
# A significantly higher elasticity than this is not possible: it means that the backend changed during an experiment.
_IMPOSSIBLE = 1.3
# After a change of the number of workers, this many attempts per worker are not measured: jobs that began before the
# change must end.
_SETTLING = 2
# After an experiment with fewer workers that was rejected, the next waits for this many rounds (attempts per worker),
# and longer each time, up to the other number: fewer workers cost throughput, more workers cost only some latency.
_FEWER_AFTER = 30.0
_FEWER_AFTER_LONG = 120.0
# By which share, and by how many standard errors, the throughput must differ from before to count as changed by itself.
_CHANGED = 0.2
_SURELY_CHANGED = 4.0
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

    The published alternatives (AIMD, TCP Vegas, Envoy's gradient, Netflix's Gradient2, the hill climbing of the thread
    pool) are each worse in some case of the simulation: docs/benchmarks/scaling.md has the figures and the reasons.

    Args:
        min_workers: The minimum number of workers; at least 1. The pool starts with it, and doubles the number while
            that raises the throughput.
        max_workers: The maximum number of workers; at least `min_workers`.
        interval: Seconds between two decisions; above 0.
        overload: Which errors mean that the backend is overloaded, besides `JobTimeout` and `RetryAfter`: a type, a
            tuple of types, or a predicate.
        idle_timeout: Workers that were not needed for this many seconds retire; at least 0. What was learned is kept:
            when jobs wait again, the number goes back up to it at once, as far as there are jobs for the workers.

    Raises:
        TypeError, ValueError: An argument is not of its type or range.
    """

    min_workers: int
    max_workers: int
    _: KW_ONLY
    interval: float = 0.1
    overload: ErrorFilter = ()
    idle_timeout: float = 30.0

    def __post_init__(self) -> None:
        convert_field(self, "min_workers", check_count, least=1)
        convert_field(self, "max_workers", check_count, least=1)
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers must be >= min_workers, got {self.max_workers} < {self.min_workers}")
        convert_field(self, "interval", check_seconds, positive=True)
        check_filter("overload", self.overload)
        check_seconds("idle_timeout", self.idle_timeout)

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with: `min_workers`."""
        return self.min_workers

    def start(self) -> Decide:
        """Return a new function that decides for one pool."""
        return _Climb(self)


class _Way(Enum):
    MORE = "more"
    FEWER = "fewer"


class _Climb:
    """The decisions for one pool: it measures a base, tries more or fewer workers, and keeps the better number."""

    def __init__(self, policy: Adaptive) -> None:
        self._policy = policy
        self._base = Trial(policy.initial_workers)
        self._before: Trial | None = None  # the same number of workers, before the last experiment
        self._probe: Trial | None = None  # the number that is being tried
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
        self._needed = NeededWorkers(policy.idle_timeout)
        self._was_busy = False
        self._busy_at = 0.0
        self._is_begun = False

    def __call__(self, load: PoolLoad) -> Decision:
        if not self._is_begun:
            self._is_begun = True
            self._base = Trial(max(self._policy.min_workers, min(self._policy.max_workers, load.workers)))
        was_busy, self._was_busy = self._was_busy, load.backlog > 0 and not load.is_throttled and not load.starting
        if not self._was_busy:
            return self._at_rest(load)
        self._needed.note(load.now, load.workers)
        busy_at, self._busy_at = self._busy_at, load.now
        is_stale = load.now - busy_at > _STALE
        if is_stale:
            self._base, self._before, self._probe = Trial(self._base.workers), None, None
        here = self._probe or self._base
        if load.workers < here.workers:
            return self._come_back(load, max(0, load.backlog - load.idle))
        if is_stale:
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

    # -- At rest -----------------------------------------------------------------------------------------------------

    def _at_rest(self, load: PoolLoad) -> Decision:
        """Let workers go that were not needed for the idle timeout. The trials keep the number that was learned."""
        policy = self._policy
        learned = (self._probe or self._base).workers
        needed, seconds = self._needed.observe(load)
        if load.rejected and load.peak_running >= load.workers and load.workers < learned:
            return self._come_back(load, load.rejected)
        workers = max(policy.min_workers, min(learned, load.workers, needed))
        if workers < min(learned, load.workers):
            why = f"{min(learned, load.workers) - workers} workers were idle for {policy.idle_timeout:g} s"
            return self._stay(why, {"learned": learned}, workers=workers)
        may_retire = workers > policy.min_workers and load.running < workers
        return self._stay("the workers are not all busy", workers=workers, ask_again_in=seconds if may_retire else None)

    def _come_back(self, load: PoolLoad, jobs: int) -> Decision:
        """Bring back workers that retired: one for each job that waits, up to the number that was learned."""
        learned = (self._probe or self._base).workers
        workers = min(learned, max(self._policy.min_workers, load.workers + jobs))
        self._needed.note(load.now, workers)
        self._unsettled = _SETTLING * learned
        return self._stay(f"{jobs} jobs wait again; {learned} workers were learned", workers=workers)

    # -- At the base -------------------------------------------------------------------------------------------------

    def _at_base(self) -> Decision:
        base = self._base
        if base.overloads >= _FEW_OVERLOADS and base.overloaded > _OVERLOADED + 1.5 * self._tolerated:
            return self._back_off()
        if self._before is not None and len(base.seconds) >= max(30, SHORTEST * base.workers):
            changed = compare(self._before, base)
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
            self._base, self._before = Trial(base.workers), None
            return self._stay(why)
        if base.overloaded < _SWAMPED:
            return self._try(why)
        # Without an experiment: with so severe an overload there is no need to compare.
        self._base, self._before = Trial(self._target(_Way.FEWER)), None
        return self._settle(why)

    def _meet_ceiling(self, workers: int) -> None:
        self._ceiling = workers
        self._ceiling_until = self._rounds + self._ceiling_lasts
        self._is_careful = True
        self._step[_Way.MORE] = _LEAST_STEP

    def _follow(self, changed: Gain) -> Decision:
        """Measure a backend again that became faster or slower, then try a number that would make up for it."""
        self._way = _Way.MORE if changed.gain > 0 else _Way.FEWER
        self._step[self._way] = min(_MOST_STEP, max(_LEAST_STEP, math.exp(abs(changed.gain))))
        self._forget()
        self._base = Trial(self._base.workers)  # the change could have come in the middle of the measurements
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
        self._probe = Trial(self._target(self._way))
        return self._settle(f"{why}; tries {self._probe.workers}", figures)

    # -- At the probe ------------------------------------------------------------------------------------------------

    def _at_probe(self, probe: Trial) -> Decision:
        base = self._base.joined(self._before)
        is_more = probe.workers > base.workers
        expected = base.overloaded * probe.ended
        if is_more and probe.overloads > _FEW_OVERLOADS_MORE + expected + 2 * math.sqrt(expected):
            self._meet_ceiling(probe.workers)
            self._ceiling_lasts = min(_CEILING_LASTS_LONG, 2 * self._ceiling_lasts)
            why = f"{probe.overloads} overloads with {probe.workers} workers"
            return self._reject(f"{why}; goes back to {base.workers}", {"overloads": probe.overloads})
        if len(probe.seconds) < max(8, SHORTEST * probe.workers) and probe.ended < probe.most:
            return self._stay("measures")
        found = compare(base, probe)
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
                self._base, self._probe = Trial(probe.workers), None
                self._forget()
                return self._stay("the backend has changed", figures)
            if found.at_most(_SURELY_FEWER) < _WORTH_FEWER:
                return self._accept(why, figures, is_clear=found.at_most(1.0) < 0.1)
            if is_over or found.at_least(2.0) > _WORTH_FEWER:
                self._tolerate(base, probe)
                return self._reject(f"{why}; goes back", figures)
        return self._stay("measures")

    def _tolerate(self, base: Trial, fewer: Trial) -> None:
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
        self._base, self._probe = Trial(self._base.workers), None
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

    def _stay(
        self,
        why: str,
        figures: dict[str, float] | None = None,
        *,
        workers: int | None = None,
        ask_again_in: float | None = None,
    ) -> Decision:
        """Return a decision for the number that is measured or tried, or for fewer workers while that is enough."""
        here = (self._probe or self._base).workers
        is_more = here > self._base.workers
        workers = here if workers is None else workers
        return Decision(
            workers,
            why,
            figures or {},
            ask_again_in=ask_again_in,
            # An overload must be noticed as soon as possible, and so must jobs that wait for workers that have retired.
            ask_again_after_failures=_FEW_OVERLOADS_MORE + 1 if is_more else None,
            ask_again_at_backlog=0 if workers < here else None,
        )
