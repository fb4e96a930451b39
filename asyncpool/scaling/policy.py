"""How many workers a pool has: what it tells its policy, what that answers, and the policy that answers always alike.

Pure: a policy sees numbers and answers with a number. When it is asked, and what the answer does, is the matter of
`_core/scaler.py`; policies that scale are `autoscale.py` and `adaptive.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from asyncpool._checks import check_count

__all__ = ["Decide", "Decision", "FixedSize", "PoolLoad", "ScalingPolicy", "Workers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """How busy a pool is, and what has happened since its policy was asked last."""

    now: float = 0.0
    """Loop time, in seconds."""
    elapsed: float = 0.0
    """Seconds since the policy was asked last; 0.0 the first time."""
    workers: int = 0
    """How many workers there should be: what was decided last."""
    starting: int = 0
    """How many of these have no resource yet, and so take no jobs."""
    idle: int = 0
    """Workers that could take a job now."""
    running: int = 0
    """Jobs that hold a worker."""
    peak_running: int = 0
    """The most of these at a time, since the policy was asked last."""
    blocked: int = 0
    """Running jobs that wait for this very pool."""
    queued: int = 0
    """Jobs that wait for a worker."""
    waiting: int = 0
    """Submitters and streams that wait for room in the queue."""
    rejected: int = 0
    """Jobs that were turned away by `QueueFull` since the policy was asked last."""
    delayed: int = 0
    """Jobs that wait for a time. They are no backlog: no worker could take them."""
    is_throttled: bool = False
    """Whether something else than workers is wanting: the pool is paused, its rate limit is closed, jobs that hold a
    worker wait in the limiter, or `max_delayed` jobs are delayed."""
    succeeded: int = 0
    """Attempts that have succeeded since the policy was asked last."""
    failed: int = 0
    """Attempts that have failed since then."""
    seconds: tuple[float, ...] = ()
    """How long the handler ran of those that succeeded: of all, or of an even sample."""
    errors: tuple[BaseException, ...] = ()
    """What the attempts that failed have raised, the first thousand; `RetryAfter` and `Permanent` as they are."""

    @property
    def backlog(self) -> int:
        """Jobs that more workers could run now, as far as the pool knows of them."""
        return self.queued + self.waiting


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy answers.

    Args:
        workers: How many workers there should be.
        reason: Why, in a sentence with the figures; for whoever observes the pool.
        figures: The same figures by name.
        ask_again_in: Ask again after so many seconds, even if the pool has nothing to do until then.
        ask_again_after_failures: Ask again when so many attempts have failed, even before the interval is over.
    """

    workers: int
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    ask_again_in: float | None = field(default=None, kw_only=True)
    ask_again_after_failures: int | None = field(default=None, kw_only=True)


Decide: TypeAlias = Callable[[PoolLoad], Decision]


@runtime_checkable
class ScalingPolicy(Protocol):
    """How many workers a pool has. Configuration only: what changes is in what `start()` returns, so that pools may
    share a policy.
    """

    @property
    def initial_workers(self) -> int:
        """How many workers a pool starts with."""
        ...

    @property
    def max_workers(self) -> int:
        """How many workers there may ever be; answers above it are capped."""
        ...

    @property
    def interval(self) -> float:
        """Seconds between two questions, while something happens in the pool.

        When nothing of the load has changed from one question to the next (or, while jobs wait, in 50 of them), it is
        not asked until something does, or until the decision's `ask_again_in`.
        """
        ...

    def start(self) -> Decide:
        """Return what decides for one pool."""
        ...


Workers: TypeAlias = int | ScalingPolicy | Callable[[PoolLoad], int]
"""What a pool takes as `workers=`: a number, a policy, or a function that answers with a number."""


@dataclass(frozen=True, slots=True)
class FixedSize:
    """Always `workers` workers.

    Args:
        workers: How many; at least 1.

    Raises:
        TypeError: `workers` is not an int.
        ValueError: `workers` is below 1.
    """

    workers: int

    def __post_init__(self) -> None:
        check_count("workers", self.workers, least=1)

    @property
    def initial_workers(self) -> int:
        """How many workers the pool starts with."""
        return self.workers

    @property
    def max_workers(self) -> int:
        """How many workers there may ever be."""
        return self.workers

    @property
    def interval(self) -> float:
        """Any will do: a pool of fixed size asks once."""
        return 1.0

    def start(self) -> Decide:
        """Return the answer that is always the same."""
        decision = Decision(self.workers, f"the pool has a fixed size of {self.workers}")
        return lambda load: decision
