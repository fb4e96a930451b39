"""Traces of jobs for OpenTelemetry: `PoolTracer` makes a span for each job (extra `otel`).

It needs only the OpenTelemetry API. The SDK that the program sets up exports the spans; without one, nothing is
recorded. The tracer is an observer and a wrapper around the handler, so a pool without it has no extra cost.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, TypeVar

from asyncpool._core.invoke import call_handler
from asyncpool._guard import describe, qualname_of, safe_text
from asyncpool._logs import log
from asyncpool.events import Event, JobAccepted, JobEnded, JobRetrying, JobStarted, JobStuck
from asyncpool.jobs import current_job
from asyncpool.outcomes import Cancelled, Failed, Outcome

try:
    from opentelemetry import context, propagate, trace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "asyncpool.otel needs the package opentelemetry-api: python3 -m pip install 'asyncpool-toolkit[otel]'",
        name=error.name,
    ) from error

__all__ = ["PoolTracer", "TracedHandler"]

_IS_PART_OF_ATTEMPT = True  # so `failures.py` releases the frames of this module

P = ParamSpec("P")
ValueT = TypeVar("ValueT")


class PoolTracer:
    """Creates a span for each job, from its acceptance to its outcome, and makes it current while the handler runs.

        tracer = PoolTracer()
        async with WorkerPool(tracer.wrap(fetch), workers=20, observers=[tracer]) as pool:
            ...

    Both uses are needed. As an observer it sees when each job is accepted and settled, including jobs that never run.
    Around the handler it runs in the job's context, so spans that the handler creates become children of the job's.

    **Parent.** The span of a job is a child of the span that was current where the job was submitted (for a stream:
    where `map()` or `outcomes()` was called), or the root of a new trace if there was none. It is a child and not a
    link, because the submitter caused the job and usually waits for it: one trace shows a request with all its jobs,
    and a request that is not sampled creates no spans for its jobs. A job's span can end after its parent; tracing
    backends accept that.

    **Contents of a span.** Its name is "<pool> job". Its attributes are `asyncpool.pool` and `asyncpool.job.id`, and
    when it ends also `asyncpool.job.attempts`, `asyncpool.job.outcome` (succeeded, failed, cancelled), and
    `asyncpool.job.cancel_reason` or `error.type`. Its events are `attempt` at the start of each attempt, `exception`
    for each that failed, and `stuck`. A failed job has the status ERROR. Inputs and values are not recorded, because
    they can be secret or large. The handler can add attributes to `opentelemetry.trace.get_current_span()`.

    **Processes.** With an engine, the context of the job's span travels with each attempt, in the format of the global
    propagator. It is current while the handler runs there, so spans that the handler creates become children of the
    job's, if the process has set up an SDK: `Processes(setup=...)`.

    One tracer can serve any number of pools, if their names differ.

    Args:
        tracer_provider: Creates the spans. None: the global provider.
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("asyncpool", tracer_provider=tracer_provider)
        # The spans of the jobs that are not settled, by pool and number.
        self._spans: dict[tuple[str, int], trace.Span] = {}
        self._has_observed = False
        self._has_warned = False

    def wrap(self, handler: Callable[P, Awaitable[ValueT]]) -> TracedHandler[P, ValueT]:
        """Return a handler that calls `handler` with the job's span as the current one.

        For a pool without a handler, whose jobs are callables: `wrap(lambda job: job())`.

        Raises:
            TypeError: `handler` is not callable.
        """
        if not callable(handler):
            raise TypeError(f"handler must be callable, got {describe(handler)}")
        return TracedHandler(handler, self._span_of_current_job)

    def __call__(self, event: Event) -> None:
        """Record an event in the span of its job: the tracer is an observer, which pools call."""
        self._has_observed = True
        if isinstance(event, JobAccepted):
            # This runs in the submitter's context, so the current span is the submitter's.
            self._spans[event.pool, event.id] = self._tracer.start_span(
                f"{event.pool} job", attributes={"asyncpool.pool": event.pool, "asyncpool.job.id": event.id}
            )
        elif isinstance(event, JobStarted):
            span = self._spans[event.pool, event.id]
            span.add_event("attempt", {"asyncpool.attempt": event.attempt, "asyncpool.worker": event.worker})
        elif isinstance(event, JobRetrying):
            attributes = {"asyncpool.attempt": event.attempt, "asyncpool.backoff_seconds": event.seconds}
            _record_exception(self._spans[event.pool, event.id], event.error, attributes)
        elif isinstance(event, JobStuck):
            self._spans[event.pool, event.id].add_event("stuck", {"asyncpool.stuck_seconds": event.seconds})
        elif isinstance(event, JobEnded):
            _end(self._spans.pop((event.pool, event.id)), event.outcome)

    def _span_of_current_job(self) -> trace.Span | None:
        job = current_job()
        span = self._spans.get((job.pool, job.id))
        if span is None and not self._has_observed and not self._has_warned:
            self._has_warned = True
            log.warning(
                "pool %r: the handler is wrapped by a PoolTracer that is not an observer of the pool, so no spans are "
                "created: pass it to WorkerPool(..., observers=[tracer]) too",
                job.pool,
            )
        return span


class TracedHandler(Generic[P, ValueT]):
    """A handler that runs with its job's span as the current one. Created by `PoolTracer.wrap`."""

    def __init__(
        self, handler: Callable[P, Awaitable[ValueT]], span_of_current_job: Callable[[], trace.Span | None]
    ) -> None:
        self._handler = handler
        self._span_of_current_job = span_of_current_job
        # The pool finds the handler's frame by its code: a failure that is kept must not keep the frame's locals.
        self.__code__ = getattr(handler, "__code__", None)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ValueT:
        """Call the handler, wait for it, and return what it returns or raise what it raises."""
        span = self._span_of_current_job()
        # Not `use_span`, which records the exception: what it means for the job is known only with the outcome.
        token = None if span is None else context.attach(trace.set_span_in_context(span))
        try:
            value: ValueT = await call_handler(self._handler, *args, **kwargs)
            return value
        finally:
            if token is not None:
                context.detach(token)

    def carry(self) -> bytes | None:
        """Return the context of the job's span, to be taken along to another process: see `ContextCarrier`."""
        span = self._span_of_current_job()
        if span is None:
            return None
        fields: dict[str, str] = {}
        propagate.inject(fields, trace.set_span_in_context(span))
        return json.dumps(fields).encode() if fields else None

    async def call_with(self, carried: bytes, /, *args: Any) -> Any:
        """Call the handler in another process, as a child of the job's span there."""
        token = context.attach(propagate.extract(json.loads(carried)))
        try:
            return await call_handler(self._handler, *args)
        finally:
            context.detach(token)

    def __reduce__(self) -> tuple[Any, ...]:
        # The tracer and its spans stay in the program.
        return TracedHandler, (self._handler, _no_span)

    def __repr__(self) -> str:
        return f"<traced {describe(self._handler)}>"


def _no_span() -> None:
    return None


def _end(span: trace.Span, outcome: Outcome[Any, Any]) -> None:
    span.set_attribute("asyncpool.job.attempts", outcome.attempts)
    if isinstance(outcome, Failed):
        span.set_attribute("asyncpool.job.outcome", "failed")
        span.set_attribute("error.type", qualname_of(type(outcome.error)))
        _record_exception(span, outcome.error, {"asyncpool.attempt": outcome.attempts})
        span.set_status(trace.StatusCode.ERROR, safe_text(str, outcome.error))
    elif isinstance(outcome, Cancelled):
        span.set_attribute("asyncpool.job.outcome", "cancelled")
        span.set_attribute("asyncpool.job.cancel_reason", outcome.reason.value)
    else:
        span.set_attribute("asyncpool.job.outcome", "succeeded")
    span.end()


def _record_exception(span: trace.Span, error: BaseException, attributes: dict[str, Any]) -> None:
    try:
        span.record_exception(error, attributes)
    except KeyboardInterrupt:
        raise
    except BaseException:  # an error whose own methods raise: one bad job must not end the tracing of all jobs
        what = {"exception.type": qualname_of(type(error)), "exception.message": safe_text(str, error)}
        span.add_event("exception", {**what, **attributes})
