"""Jobs, and parts of a pool, without the pool."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

from asyncpool._core.job import NULL_SINK, Job, Sink, Waiters, Worker, new_job
from asyncpool._core.ledger import Ledger
from asyncpool._core.state import Phase, State
from asyncpool.dead_letters.writer import DeadLetterWriter
from asyncpool.events import Observers
from asyncpool.outcomes import Cancelled, CancelReason, Failed, Outcome, Succeeded


class RecordingSink:
    """A sink that keeps what it is given."""

    waiters: Waiters | None = None  # nobody waits for one of its jobs alone

    def __init__(self) -> None:
        self.delivered: list[tuple[Job, Outcome[Any, Any]]] = []
        self.delayed = 0

    def deliver(self, job: Job, outcome: Outcome[Any, Any], /) -> None:
        self.delivered.append((job, outcome))

    def on_delayed(self, change: int, /) -> None:
        self.delayed += change

    def on_stuck(self, job: Job, /) -> None: ...


def make_job(number: int = 1, input: Any = None, *, sink: Sink = NULL_SINK, now: float = 0.0) -> Job:
    """Make a job; its input is its number if none is given."""
    return new_job(number if input is None else input, number, sink, copy_context(), now)


def make_state(phase: Phase = Phase.OPEN, name: str = "pool") -> State:
    """Make the state of a pool, and take it to a phase."""
    state = State(name)
    path = [Phase.STARTING, Phase.OPEN, Phase.DRAINING, Phase.STOPPING, Phase.CLOSED]
    for step in path[: path.index(phase) + 1] if phase in path else ():
        state.move(step)
    return state


def make_ledger(state: State | None = None, *observers: Any, dead_letters: DeadLetterWriter | None = None) -> Ledger:
    """Make a ledger with nothing in it."""
    return Ledger(make_state() if state is None else state, Observers(observers), dead_letters)


def begin(job: Job, now: float, worker: int = 1) -> None:
    """Start an attempt of a job at a loop time, as the dispatcher does."""
    job.worker = Worker(worker, make_state())
    job.started_at = now


def succeeded(job: Job, value: Any = None) -> Succeeded[Any, Any]:
    return Succeeded(job.input, value, job.attempts, 1, 0.0, 0.0)


def failed(job: Job, error: BaseException | None = None) -> Failed[Any]:
    return Failed(job.input, ValueError("broken") if error is None else error, job.attempts)


def cancelled(job: Job, reason: CancelReason = CancelReason.HANDLE) -> Cancelled[Any]:
    return Cancelled(job.input, reason, job.has_started, job.attempts, None, 0.0, 0.0)
