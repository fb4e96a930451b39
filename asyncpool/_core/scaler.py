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

# The least seconds from one question to the next.
_SHORTEST = 0.001
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
    """

    __slots__ = (
        "_context",
        "_decide",
        "_failures",
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
        self._stop_timer()

    def wake(self) -> None:
        """If asleep, ask in an interval, because something has happened; in a moment if there are no workers."""
        if self.is_sleeping:
            self._wake(at_once=not self._workers.target)

    def wake_now(self) -> None:
        """Ask in a moment: something has happened that cannot wait."""
        self._wake(at_once=True)

    def _wake(self, *, at_once: bool) -> None:
        if self._decide is not None and not self.is_fixed:
            self._stop_timer()
            self._set_timer(0.0 if at_once else max(float(self._policy.interval), _SHORTEST))

    def evaluate(self) -> None:
        """Ask the policy, and do as it says."""
        decide = self._decide
        if decide is None:
            return
        self._stop_timer()
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
            raise TypeError(f"a scaling policy must answer with a Decision, got {describe(decision)}")
        workers = check_count("what a scaling policy answers", decision.workers, least=0)
        if decision.ask_again_in is not None:
            convert_field(decision, "ask_again_in", check_seconds)
        if decision.ask_again_after_failures is not None:
            convert_field(decision, "ask_again_after_failures", check_count, least=1)
        return decision if type(decision.workers) is int else replace(decision, workers=workers)

    def _count(self, error: BaseException) -> None:
        """A policy that fails leaves the number of workers as it is; the 1st, 2nd, 4th ... time is logged."""
        self._failures += 1
        if is_logged(self._failures):
            log.error(
                "pool %r: the scaling policy has failed (occurrence %d); there are %d workers as before",
                self._state.name,
                self._failures,
                self._workers.target,
                exc_info=error,
            )

    def _go_on(self, load: PoolLoad, decision: Decision | None) -> None:
        self._load.wake_after_failures(None if decision is None else decision.ask_again_after_failures)
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
            self._set_timer(max(float(self._policy.interval), _SHORTEST))
            return
        if not workers and self._queue.has_backlog:  # it arrived while the policy, or an observer, ran
            self._set_timer(0.0)
            return
        self.is_sleeping = True
        self._queue.notify_next(self.wake)
        self._wakeups.housekeep_next()
        seconds = self._load.seconds_until_open() if load.backlog else math.inf
        if decision is not None and decision.ask_again_in is not None:
            seconds = min(seconds, decision.ask_again_in)
        if seconds < math.inf:
            self._set_timer(max(seconds, _SHORTEST))

    def _set_timer(self, seconds: float) -> None:
        if seconds:
            self._timer = self._state.loop.call_later(seconds, self.evaluate, context=self._context.copy())
        else:
            self._timer = self._state.loop.call_soon(self.evaluate, context=self._context.copy())

    def _stop_timer(self) -> None:
        if self.is_sleeping:
            self.is_sleeping = False
            self._queue.ignore_next()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
