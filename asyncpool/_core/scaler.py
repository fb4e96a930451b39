"""Asks a pool's policy how many workers there should be, when there may be something new, and applies its answer.

What a policy answers is `asyncpool/scaling`; what becomes of the workers is `workers.py`.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from dataclasses import replace
from operator import index
from typing import cast

from asyncpool._checks import check_count, check_function, check_seconds, convert_field
from asyncpool._core.load import Load
from asyncpool._core.queue import JobQueue
from asyncpool._core.state import Phase, State
from asyncpool._core.wakeups import Wakeups
from asyncpool._core.workers import Workers
from asyncpool._guard import describe
from asyncpool._logs import is_logged, log
from asyncpool.scaling.function import FunctionPolicy
from asyncpool.scaling.policy import Decide, Decision, FixedSize, PoolLoad, ScalingPolicy
from asyncpool.scaling.policy import Workers as WorkersArgument

__all__ = ["Scaler", "as_policy"]

# The least seconds from one question to the next; and the least share of an interval, if the policy wants to be asked
# before that is over.
_SHORTEST = 0.001
_SHORTEST_SHARE = 0.1
# How many workers a function can ask for that was passed without a maximum.
_MAX_OF_FUNCTIONS = 1000
# While jobs wait and nothing changes, a policy is asked this many times before it is left alone: it may want to see
# that nothing changes.
_MAX_UNCHANGED = 50


def as_policy(workers: WorkersArgument) -> ScalingPolicy:
    """Return what a pool got as its number of workers as a policy.

    Raises:
        TypeError, ValueError: It is none of the three, or a number that is no size.
    """
    if hasattr(type(workers), "__index__") and not isinstance(workers, bool):
        return FixedSize(cast("int", workers))  # which makes it an int, or raises
    if isinstance(workers, ScalingPolicy) and not isinstance(workers, type):
        first = check_count("initial_workers of the scaling policy", workers.initial_workers, least=0)
        most = check_count("max_workers of the scaling policy", workers.max_workers, least=1)
        if first > most:
            raise ValueError(f"initial_workers of the scaling policy must be <= max_workers, got {first} > {most}")
        check_seconds("interval of the scaling policy", workers.interval, positive=True)
        return workers
    if callable(workers) and not isinstance(workers, type):
        check_function("workers", workers)
        return _PlainFunction(workers, _MAX_OF_FUNCTIONS)
    missing = [name for name in ("initial_workers", "max_workers", "interval") if not hasattr(workers, name)]
    hint = f" (it has start(), but no {' and no '.join(missing)})" if hasattr(workers, "start") else ""
    raise TypeError(
        f"workers must be an int, a scaling policy, or a function of a PoolLoad, got {describe(workers)}{hint}"
    )


def _started(policy: ScalingPolicy) -> Decide:
    decide = policy.start()
    check_function("what start() of the scaling policy returns", decide)
    return decide


class _PlainFunction(FunctionPolicy):
    """A function that was passed without a maximum."""

    __slots__ = ()


class Scaler:
    """Applies a policy to a pool, by a timer that runs only while something happens in the pool.

    Awake, it asks once an interval. When nothing changes any more from one question to the next, it sleeps until a job
    arrives or ends, and asks before that only when the policy has said so. So an idle pool costs nothing, and on
    virtual time a pool that can never go on is detected (test_a_deadlock_in_a_pool_that_scales_is_reported).

    Asleep or awake, it asks soon when the backlog rises above the number that the policy has named. Invariant: while
    there is such a number, `queue.append` counts for it, and every wakeup looks at it (tests/laws:
    a_backlog_wakes_the_policy_before_its_interval_is_over).
    """

    __slots__ = (
        "_asked_at",
        "_at_backlog",
        "_context",
        "_decide",
        "_failures",
        "_is_above",
        "_load",
        "_policy",
        "_queue",
        "_seen",
        "_state",
        "_timer",
        "_unchanged",
        "_wakeups",
        "_workers",
        "is_fixed",
        "is_function",
        "is_sleeping",
    )

    def __init__(
        self, state: State, policy: ScalingPolicy, *, load: Load, workers: Workers, queue: JobQueue, wakeups: Wakeups
    ) -> None:
        self._state = state
        self._load = load
        self._workers = workers
        self._queue = queue
        self._wakeups = wakeups
        self._decide: Decide | None = _started(policy)  # None: the pool has ended
        self._adopt(policy)
        self._timer: asyncio.Handle | None = None
        self._asked_at = -math.inf  # loop time
        self._at_backlog: int | None = None  # ask soon when the backlog rises above it
        self._is_above = False  # whether it is above, as far as we know
        self._seen: tuple[object, ...] = ()  # what was the case when the policy was asked last
        self._unchanged = 0  # how many times in a row it was the same
        self._failures = 0
        # Until the next job arrives or ends. Invariant: then `queue.append` and the housekeeping wake us (tests/laws:
        # a_job_comes_while_the_pool_falls_asleep, a_policy_is_asked_when_something_has_changed).
        self.is_sleeping = False

    def open(self, context: Context) -> None:
        """Start timers in this context from now on."""
        self._context = context

    def replace(self, policy: ScalingPolicy) -> None:
        """Apply another policy, now."""
        decide = _started(policy)
        self._adopt(policy)
        self._decide = decide
        self._seen = ()
        self._failures = 0
        self._load.forget()
        if self._state.phase is Phase.OPEN:
            self.evaluate()
            self._wakeups.size_changed()  # the maximum can be another, even if the number is the same
        else:
            self._workers.retarget(index(policy.initial_workers), "replaced before the pool was open")

    def _adopt(self, policy: ScalingPolicy) -> None:
        self._policy = policy
        self.is_fixed = isinstance(policy, FixedSize)  # always answers the same
        self.is_function = isinstance(policy, _PlainFunction)  # nobody knows how many workers it may want
        self._workers.set_limit(None if self.is_function else index(policy.max_workers))

    def end(self) -> None:
        """Ask no more."""
        self._decide = None
        self._at_backlog, self._is_above = None, False
        self._stop_timer()

    def wake(self) -> None:
        """Note that something has happened: if asleep, ask in an interval, or in a moment if there are no workers.

        Whether asleep or not, ask soon if the backlog has risen above what the policy has named.
        """
        was_above = self._is_above
        if self._at_backlog is not None:
            self._is_above = self._excess > self._at_backlog
        if self._is_above and not was_above:
            self._wake(at_once=not self._workers.target, soon=True)
        elif self.is_sleeping:
            self._wake(at_once=not self._workers.target)
        elif was_above and not self._is_above:
            self._watch_backlog()

    def wake_now(self) -> None:
        """Ask in a moment: something has happened that cannot wait."""
        self._wake(at_once=True)

    def _wake(self, *, at_once: bool, soon: bool = False) -> None:
        if self._decide is None or self.is_fixed:
            return
        self._stop_timer()
        if at_once:
            self._set_timer(0.0)
        elif soon:
            # Not in this turn of the loop: a burst must be in the queue first, and idle workers must have their share.
            least = self._asked_at + _SHORTEST_SHARE * float(self._policy.interval) - self._state.time()
            self._set_timer(max(least, _SHORTEST))
        else:
            self._set_timer(max(float(self._policy.interval), _SHORTEST))
            self._watch_backlog()
            return
        self._at_backlog, self._is_above = None, False

    @property
    def _excess(self) -> int:
        """The backlog, without the jobs that free workers are about to take."""
        return self._queue.backlog - len(self._workers.idle) - len(self._workers.health.checking)

    def _watch_backlog(self) -> None:
        """Have `append` call us when the backlog rises above the number that the policy has named.

        If it is above already: when it has fallen.
        """
        at = self._at_backlog
        if at is None:
            return
        if self._is_above:
            self._queue.notify_next(self._backlog_changed, most=at + 1)
        else:
            self._queue.notify_next(self._backlog_changed, least=at + 1)

    def _backlog_changed(self) -> None:
        """Before this job the backlog was not above what the policy has named. Now it may be: `append` counts more."""
        self._is_above = False
        self.wake()
        self._watch_backlog()

    def evaluate(self) -> None:
        """Ask the policy, and do as it says."""
        decide = self._decide
        if decide is None:
            return
        self._stop_timer()
        self._at_backlog, self._is_above = None, False
        self._asked_at = self._state.time()
        load = self._load.sample(goes_on=not self.is_fixed)
        decision: Decision | None = None
        try:
            decision = self._checked(decide(load))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._count(error)
        finally:
            # Not if it was swapped, or the pool closed, by what the policy or an observer did just now.
            if self._decide is decide:
                self._apply(decision, load)
            if self._decide is decide and self._timer is None and not self.is_fixed:
                self._go_on(load, decision)

    def _apply(self, decision: Decision | None, load: PoolLoad) -> None:
        if decision is None:
            decision = Decision(min(load.workers, index(self._policy.max_workers)), "the policy has failed")
        elif decision.workers > (most := index(self._policy.max_workers)):
            decision = replace(decision, workers=most, reason=f"{decision.reason} (capped at {most} workers)")
        # Whatever the policy says, work that is there is done.
        if load.backlog and not decision.workers:
            decision = Decision(1, "jobs wait, and there is no worker")
        # A worker whose job waits for this pool is no capacity (test_jobs_that_wait_for_their_own_pool_make_it_grow).
        # But what a function answers is all that we know of its bound.
        if not self.is_function and load.blocked and decision.workers <= load.blocked < self._workers.max_workers:
            decision = Decision(load.blocked + 1, f"{load.blocked} running jobs wait for this same pool")
        if decision.workers != load.workers:
            self._workers.resize(decision, load)

    def _checked(self, decision: object) -> Decision:
        if not isinstance(decision, Decision):
            raise TypeError(f"a scaling policy must return a Decision, got {describe(decision)}")
        workers = check_count("what a scaling policy answers", decision.workers, least=0)
        if decision.ask_again_in is not None:
            convert_field(decision, "ask_again_in", check_seconds)
        if decision.ask_again_after_failures is not None:
            convert_field(decision, "ask_again_after_failures", check_count, least=1)
        if decision.ask_again_at_backlog is not None:
            convert_field(decision, "ask_again_at_backlog", check_count, least=0)
        return decision if type(decision.workers) is int else replace(decision, workers=workers)

    def _count(self, error: BaseException) -> None:
        """A policy that fails leaves the number of workers as it is; the 1st, 2nd, 4th ... time is logged."""
        self._failures += 1
        if is_logged(self._failures):
            log.error(
                "pool %r: the scaling policy raised (occurrence %d); the pool keeps its %d workers",
                self._state.name,
                self._failures,
                self._workers.target,
                exc_info=error,
            )

    def _go_on(self, load: PoolLoad, decision: Decision | None) -> None:
        self._load.wake_after_failures(None if decision is None else decision.ask_again_after_failures)
        at = None if decision is None else decision.ask_again_at_backlog
        soon = math.inf if decision is None or decision.ask_again_in is None else decision.ask_again_in
        self._at_backlog = at
        self._is_above = at is not None and self._excess > at
        workers = self._workers.target
        seen = (
            load.running,
            load.queued,
            load.waiting,
            load.delayed,
            load.idle,
            load.starting,
            load.is_throttled,
            workers,
        )
        is_same = seen == self._seen and not (load.succeeded or load.failed or load.rejected)
        self._seen = seen
        self._unchanged = self._unchanged + 1 if is_same else 0
        if workers and self._unchanged < (_MAX_UNCHANGED if load.backlog else 1):
            interval = float(self._policy.interval)
            self._set_timer(max(min(interval, max(soon, _SHORTEST_SHARE * interval)), _SHORTEST))
            self._watch_backlog()
            return
        if not workers and self._queue.backlog:  # it arrived while the policy, or an observer, ran
            self._set_timer(0.0)
            return
        self.is_sleeping = True
        self._queue.notify_next(self.wake)
        self._wakeups.housekeep_next()
        seconds = self._load.seconds_until_open() if load.backlog else math.inf
        seconds = min(seconds, soon)
        if seconds < math.inf:
            self._set_timer(max(seconds, _SHORTEST))

    def _set_timer(self, seconds: float) -> None:
        if seconds:
            self._timer = self._state.loop.call_later(seconds, self.evaluate, context=self._context.copy())
        else:
            self._timer = self._state.loop.call_soon(self.evaluate, context=self._context.copy())

    def _stop_timer(self) -> None:
        self.is_sleeping = False
        self._queue.ignore_next()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
