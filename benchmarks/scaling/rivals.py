"""Published algorithms that find a concurrency limit, as scaling policies to compare `Adaptive` with.

Each has the constants of the implementation named in its docstring, and uses only what `PoolLoad` has: failed attempts
have no running time. Jitter is left out, because there is only one client. Like `Adaptive`, all of them start at
`min_workers`.
"""

from __future__ import annotations

import cmath
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeAlias

from asyncpool import JobTimeout, RetryAfter
from asyncpool.scaling import Decide, Decision, PoolLoad

__all__ = ["AIMD", "RIVALS", "EnvoyGradient", "Gradient2", "HillClimbing", "Rival", "Vegas"]


@dataclass(frozen=True, slots=True)
class Rival:
    """The base of all policies: the range, and the interval between two decisions."""

    min_workers: int
    max_workers: int
    _: KW_ONLY
    interval: float = 1.0

    @property
    def initial_workers(self) -> int:
        """The number of workers that a pool starts with."""
        return self.min_workers

    def within(self, limit: float) -> float:
        """Return the nearest limit in the range."""
        return max(float(self.initial_workers), min(float(self.max_workers), limit))

    def start(self) -> Decide:
        """Return a function that decides for one pool."""
        raise NotImplementedError


# -- Netflix: concurrency-limits ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Window:
    """The attempts that ended in an interval, or in several until there are ten."""

    attempts: int = 0
    drops: int = 0
    running: int = 0
    seconds: list[float] = field(default_factory=list[float])

    def add(self, load: PoolLoad) -> None:
        self.attempts += load.succeeded + load.failed
        self.drops += sum(isinstance(error, (JobTimeout, RetryAfter)) for error in load.errors)
        self.running = max(self.running, load.running)
        self.seconds += load.seconds

    @property
    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds) if self.seconds else 0.0


_Update: TypeAlias = Callable[[float, _Window], float]
"""Returns the next limit, from the limit and the attempts that ended under it."""


class _Windowed:
    """Updates a limit after each window, like WindowedLimit of that library: at least 1 s and 10 samples, averaged."""

    _SAMPLES = 10

    def __init__(self, policy: Rival, update: _Update) -> None:
        self._policy = policy
        self._update = update
        self._limit = float(policy.initial_workers)
        self._window = _Window()

    def __call__(self, load: PoolLoad) -> Decision:
        self._window.add(load)
        if self._window.attempts >= self._SAMPLES:
            self._limit = self._policy.within(self._update(self._limit, self._window))
            self._window = _Window()
        return Decision(int(self._limit), f"{type(self._policy).__name__}: {self._limit:.1f}", {"limit": self._limit})


@dataclass(frozen=True, slots=True)
class AIMD(Rival):
    """Adds one worker per window, and removes a tenth when jobs are rejected.

    Additive increase, multiplicative decrease: D. Chiu, R. Jain, Analysis of the Increase and Decrease Algorithms for
    Congestion Avoidance in Computer Networks (1989). As in Netflix's AIMDLimit, an average running time of more than
    5 s counts as a drop, and the limit grows only while at least half of it is in use. That library updates the limit
    with each response or, as here, with each window; the paper with each round trip.
    """

    ratio: float = field(default=0.9, kw_only=True)
    timeout: float = field(default=5.0, kw_only=True)

    def start(self) -> Decide:
        def update(limit: float, window: _Window) -> float:
            if window.drops or window.mean > self.timeout:
                return min(limit - 1, float(int(limit * self.ratio)))
            return limit + 1 if window.running * 2 >= limit else limit

        return _Windowed(self, update)


@dataclass(frozen=True, slots=True)
class Vegas(Rival):
    """Keeps a few jobs queued in the backend, estimated from how far the running time exceeds the shortest one.

    TCP Vegas: L. Brakmo, L. Peterson, TCP Vegas: End to End Congestion Avoidance on a Global Internet (1995). As in
    Netflix's VegasLimit, 3 to 6 jobs are queued for each power of ten of the limit (at least one). The shortest running
    time is discarded every 30 * limit windows, less a jitter, which is replaced by its mean here.
    """

    probe: float = field(default=30 * 0.75, kw_only=True)

    def start(self) -> Decide:
        shortest, windows = math.inf, 0

        def update(limit: float, window: _Window) -> float:
            nonlocal shortest, windows
            unit, mean = max(1, int(math.log10(limit))), window.mean
            windows += 1
            is_over = windows >= self.probe * limit
            if mean and (is_over or mean < shortest):
                shortest, windows = mean, 0 if is_over else windows
                return limit
            if window.drops:
                return limit - unit
            if not mean or window.running * 2 < limit:
                return limit
            queue = math.ceil(limit * (1 - shortest / mean))
            if queue <= unit:
                return limit + 6 * unit
            if queue < 3 * unit:
                return limit + unit
            return limit - unit if queue > 6 * unit else limit

        return _Windowed(self, update)


@dataclass(frozen=True, slots=True)
class Gradient2(Rival):
    """Shrinks while jobs take more than 1.5 times their long-term average, and otherwise grows slowly.

    As in Netflix's Gradient2Limit, the new limit is limit * gradient + 4, smoothed by a factor of 0.2. The gradient is
    1.5 * long / short, between 0.5 and 1. `short` is the mean of the last window. `long` is the exponential average
    over 600 windows (the arithmetic mean of the first ten); it is reduced by 5% while it is more than twice `short`.
    Drops have no effect.
    """

    tolerance: float = field(default=1.5, kw_only=True)
    smoothing: float = field(default=0.2, kw_only=True)
    queue: float = field(default=4.0, kw_only=True)
    long_window: int = field(default=600, kw_only=True)

    def start(self) -> Decide:
        long, windows = 0.0, 0

        def update(limit: float, window: _Window) -> float:
            nonlocal long, windows
            short = window.mean
            if not short:
                return limit
            windows += 1
            long += (short - long) * (1 / windows if windows <= 10 else 2 / (self.long_window + 1))
            baseline = long
            if long > 2 * short:
                long *= 0.95
            if window.running < limit / 2:
                return limit
            gradient = max(0.5, min(1.0, self.tolerance * baseline / short))
            return limit * (1 - self.smoothing) + (limit * gradient + self.queue) * self.smoothing

        return _Windowed(self, update)


# -- Envoy -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnvoyGradient(Rival):
    """Compares running times with a baseline: the running times with three workers, measured once a minute.

    As in Envoy's adaptive concurrency filter (gradient_controller.cc) with the settings of its documented example.
    Every 0.1 s the new limit is limit * gradient plus the square root of that. The gradient is the p90 of the baseline
    (50 jobs) plus 25%, divided by the current p90, between 0.5 and 2. Five updates in a row at the lowest limit start a
    measurement of the baseline, too. (By default the filter compares medians.)
    """

    interval: float = field(default=0.1, kw_only=True)
    percentile: float = field(default=90.0, kw_only=True)
    every: float = field(default=60.0, kw_only=True)
    lowest: int = field(default=3, kw_only=True)
    samples: int = field(default=50, kw_only=True)
    buffer: float = field(default=0.25, kw_only=True)

    @property
    def initial_workers(self) -> int:
        """The number of workers that a pool starts with, which is also the lowest limit."""
        return min(self.max_workers, max(self.min_workers, self.lowest))

    def start(self) -> Decide:
        return _Gradient(self)


class _Gradient:
    def __init__(self, policy: EnvoyGradient) -> None:
        self._policy = policy
        self._limit = policy.initial_workers  # while the baseline is measured: the limit to return to
        self._baseline = 0.0
        self._next_at = 0.0
        self._is_measuring = True
        self._old = 0  # how many of the next jobs to end started before the measurement
        self._at_lowest = 0
        self._seconds: list[float] = []

    def __call__(self, load: PoolLoad) -> Decision:
        policy = self._policy
        self._seconds += load.seconds[self._old :]
        self._old = max(0, self._old - load.succeeded - load.failed)
        if self._is_measuring:
            if len(self._seconds) < policy.samples:
                return Decision(policy.initial_workers, "measures the baseline")
            self._is_measuring = False
            self._baseline = self._take()
            self._next_at = load.now + policy.every
        elif load.now >= self._next_at or self._at_lowest >= 5:
            self._is_measuring = True
            self._at_lowest, self._old = 0, load.running
            self._seconds.clear()
            return Decision(policy.initial_workers, "measures the baseline")
        elif self._seconds:
            gradient = max(0.5, min(2.0, self._baseline * (1 + policy.buffer) / self._take()))
            limit = int(policy.within(self._limit * gradient + math.sqrt(self._limit * gradient)))
            self._at_lowest = self._at_lowest + 1 if limit == self._limit == policy.initial_workers else 0
            self._limit = limit
        return Decision(self._limit, f"EnvoyGradient: {self._limit}", {"baseline": self._baseline})

    def _take(self) -> float:
        """Return the percentile of the collected running times, and discard them."""
        rank = math.ceil(len(self._seconds) * self._policy.percentile / 100)
        found = sorted(self._seconds)[rank - 1]
        self._seconds.clear()
        return max(found, 1e-9)


# -- .NET --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HillClimbing(Rival):
    """Varies the number of workers periodically, and moves in the direction in which the throughput follows.

    J. Hellerstein, V. Morrison, E. Eilebrecht, Optimizing Concurrency Levels in the .NET ThreadPool (2008), and
    Applying Control Theory in the Real World (2009). As in .NET's PortableThreadPool.HillClimbing, the number of
    workers follows a square wave with a period of four samples, and an amplitude that depends on the noise. The wave of
    the throughput at that frequency, over 32 samples, is divided by the wave of the workers. The move is the square of
    that ratio minus 15%, scaled down if the wave is close to the noise, and at most 4 workers per second.

    Simplified: all samples have the same length, and the CPU load is ignored. It is given an advantage: it sees the
    throughput of successful jobs, not of all.
    """

    interval: float = field(default=0.1, kw_only=True)
    bias: float = field(default=0.15, kw_only=True)
    signal_to_noise: float = field(default=3.0, kw_only=True)
    per_second: float = field(default=4.0, kw_only=True)
    inaccuracy: float = field(default=0.15, kw_only=True)

    def start(self) -> Decide:
        return _Wave(self)


class _Wave:
    _PERIOD = 4
    _HISTORY = 8 * _PERIOD
    _LARGEST = 20

    def __init__(self, policy: HillClimbing) -> None:
        self._policy = policy
        self._setting = float(policy.initial_workers)
        self._noise = 0.0
        self._done = 0
        self._elapsed = 0.0
        self._count = 0
        self._speeds: deque[float] = deque(maxlen=self._HISTORY)
        self._workers: deque[float] = deque(maxlen=self._HISTORY)

    def __call__(self, load: PoolLoad) -> Decision:
        policy = self._policy
        self._done += load.succeeded
        self._elapsed += load.elapsed
        # With too few jobs in a sample, the result depends on which jobs end just before or after its end.
        if not self._done or (self._count and (load.workers - 1) / self._done >= policy.inaccuracy):
            return Decision(load.workers, "still sampling")
        self._speeds.append(self._done / self._elapsed)
        self._workers.append(float(load.workers))
        self._count += 1
        ratio, confidence = self._compare()
        move = max(-1.0, min(1.0, ratio)) * min(1.0, confidence)
        self._setting += math.copysign(min(move * move * policy.per_second * self._elapsed, 20.0), move)
        self._done, self._elapsed = 0, 0.0
        wave = int(0.5 + self._setting * self._noise * policy.signal_to_noise * 2)
        wave = max(1, min(self._LARGEST, wave))
        self._setting = max(float(policy.min_workers), min(float(policy.max_workers - wave), self._setting))
        is_up = self._count // (self._PERIOD // 2) % 2
        figures = {"setting": self._setting, "wave": wave, "ratio": ratio, "confidence": confidence}
        return Decision(int(policy.within(self._setting + wave * is_up)), f"setting {self._setting:.1f}", figures)

    def _compare(self) -> tuple[float, float]:
        """Return the wave of the throughput relative to that of the workers, minus the bias, and the confidence."""
        size = min(self._count - 1, self._HISTORY) // self._PERIOD * self._PERIOD
        if size <= self._PERIOD:
            return 0.0, 0.0
        waves = size // self._PERIOD
        speeds, workers = list(self._speeds)[-size:], list(self._workers)[-size:]
        found, swing = _swing(speeds, waves), _swing(workers, waves)
        noise = max(abs(_swing(speeds, waves + 1)), abs(_swing(speeds, waves - 1)))
        self._noise += (noise - self._noise) * (0.01 if self._noise else 1.0)
        if not abs(swing):
            return 0.0, 0.0
        worst = max(noise, self._noise)
        return (found / swing).real - self._policy.bias, abs(
            swing
        ) / worst / self._policy.signal_to_noise if worst else 1.0


def _swing(values: Sequence[float], waves: int) -> complex:
    """Return the Fourier coefficient for this many waves, relative to the mean."""
    turn = -2j * math.pi * waves / len(values)
    return sum((value * cmath.exp(turn * at) for at, value in enumerate(values)), 0j) / sum(values)


RIVALS: tuple[type[Rival], ...] = (AIMD, Vegas, Gradient2, EnvoyGradient, HillClimbing)
