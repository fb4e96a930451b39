"""Spans of jobs: whose children they are, what they tell, when they end."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from asyncpool import Failed, Retry, WorkerPool, current_job, offload
from asyncpool._guard import describe
from asyncpool.otel import PoolTracer
from asyncpool.testing import settle
from tests.engines.memory import InMemory, Portable
from tests.helpers import echo, fuzzed, ignores_cancel, sleeper, virtual


class Traces:
    """A tracer of pools, and what became of its spans and of those of the handlers."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = PoolTracer(provider)
        self.own = provider.get_tracer("test")

    def pool(self, handler: Callable[..., Any], workers: int = 2, **options: Any) -> WorkerPool[Any, Any]:
        return WorkerPool(self.tracer.wrap(handler), workers=workers, observers=[self.tracer], name="images", **options)

    async def work(self, job: Any) -> Any:
        with self.own.start_as_current_span(f"work {job}"):
            await asyncio.sleep(1)
        return job

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    @property
    def jobs(self) -> list[ReadableSpan]:
        return self.named("images job")

    def job(self) -> ReadableSpan:
        (span,) = self.jobs
        return span


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: trace.Span | ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def events_of(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    wanted = ("asyncpool.attempt", "asyncpool.worker", "asyncpool.backoff_seconds", "exception.type")
    return [(event.name, {k: v for k, v in (event.attributes or {}).items() if k in wanted}) for event in span.events]


async def through_submit(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    for handle in [await pool.submit(job) for job in jobs]:
        await handle


async def through_submit_nowait(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    for handle in [pool.submit_nowait(job) for job in jobs]:
        await handle


async def through_run(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    for job in jobs:
        await pool.run(job)


async def through_map(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    assert await pool.map(jobs) == jobs


async def through_map_of_an_async_source(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    async def source() -> AsyncIterator[str]:
        for job in jobs:
            await asyncio.sleep(1)
            yield job

    assert await pool.map(source()) == jobs


async def through_outcomes(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    assert len(await pool.outcomes(jobs)) == len(jobs)


async def through_a_group(pool: WorkerPool[Any, Any], jobs: list[str]) -> None:
    async with pool.group() as group:
        for job in jobs:
            await group.submit(job)
        group.close_intake()
        assert len([outcome async for outcome in group]) == len(jobs)


WAYS = [
    through_submit,
    through_submit_nowait,
    through_run,
    through_map,
    through_map_of_an_async_source,
    through_outcomes,
    through_a_group,
]


@pytest.mark.parametrize("way", WAYS)
def test_a_job_belongs_to_its_submitters_trace(way: Callable[..., Any]) -> None:
    @virtual
    async def test() -> None:
        traces = Traces()
        async with traces.pool(traces.work) as pool:
            with traces.own.start_as_current_span("request") as request:
                await way(pool, ["a", "b"])
        assert [parent_of(span) for span in traces.jobs] == [id_of(request)] * 2
        for name in ("work a", "work b"):
            (work,) = traces.named(name)
            assert parent_of(work) in {id_of(span) for span in traces.jobs}

    test()


@pytest.mark.parametrize("way", WAYS)
def test_two_submitters_at_a_time_keep_their_traces_apart(way: Callable[..., Any]) -> None:
    @fuzzed
    async def test() -> None:
        traces = Traces()

        async def submitter(name: str) -> trace.Span:
            with traces.own.start_as_current_span(name) as span:
                await way(pool, [f"{name}{number}" for number in range(3)])
            return span

        async with traces.pool(traces.work, workers=3) as pool:
            requests = await asyncio.gather(submitter("a"), submitter("b"))
        for name, request in zip("ab", requests, strict=True):
            for number in range(3):
                (work,) = traces.named(f"work {name}{number}")
                (job,) = [span for span in traces.jobs if id_of(span) == parent_of(work)]
                assert parent_of(job) == id_of(request)

    test()


@virtual
async def test_each_attempt_of_a_retried_job_belongs_to_its_one_span() -> None:
    traces = Traces()

    async def flaky(job: str) -> None:
        with traces.own.start_as_current_span("work"):
            if current_job().attempt < 3:
                raise OSError("not yet")

    async with traces.pool(flaky, workers=1, retry=Retry(attempts=3, backoff=2, factor=2, jitter=False)) as pool:
        with traces.own.start_as_current_span("request") as request:
            await pool.run("a")
    job = traces.job()
    assert parent_of(job) == id_of(request)
    assert [parent_of(span) for span in traces.named("work")] == [id_of(job)] * 3
    assert events_of(job) == [
        ("attempt", {"asyncpool.attempt": 1, "asyncpool.worker": 1}),
        ("exception", {"asyncpool.attempt": 1, "asyncpool.backoff_seconds": 2.0, "exception.type": "OSError"}),
        ("attempt", {"asyncpool.attempt": 2, "asyncpool.worker": 1}),
        ("exception", {"asyncpool.attempt": 2, "asyncpool.backoff_seconds": 4.0, "exception.type": "OSError"}),
        ("attempt", {"asyncpool.attempt": 3, "asyncpool.worker": 1}),
    ]
    assert job.status.status_code is StatusCode.UNSET


@virtual
async def test_a_job_of_nobodys_trace_is_the_root_of_its_own() -> None:
    traces = Traces()
    async with traces.pool(traces.work) as pool:
        await pool.run("a")
    assert parent_of(traces.job()) is None
    assert parent_of(traces.named("work a")[0]) == id_of(traces.job())


@virtual
async def test_a_span_names_pool_job_and_outcome() -> None:
    traces = Traces()
    async with traces.pool(echo) as pool:
        await pool.run("a")
    assert traces.job().attributes == {
        "asyncpool.pool": "images",
        "asyncpool.job.id": 1,
        "asyncpool.job.attempts": 1,
        "asyncpool.job.outcome": "succeeded",
    }


@virtual
async def test_a_failed_job_has_the_status_error_and_its_exception() -> None:
    traces = Traces()

    async def fails(job: str) -> None:
        raise ValueError("no such file")

    async with traces.pool(fails) as pool:
        with pytest.raises(ValueError, match="no such file"):
            await pool.run("a")
    job = traces.job()
    assert (job.status.status_code, job.status.description) == (StatusCode.ERROR, "no such file")
    assert job.attributes is not None
    assert job.attributes["asyncpool.job.outcome"] == "failed"
    assert job.attributes["error.type"] == "ValueError"
    assert events_of(job)[1:] == [("exception", {"asyncpool.attempt": 1, "exception.type": "ValueError"})]
    assert "in fails" in str((job.events[1].attributes or {})["exception.stacktrace"])


@virtual
async def test_jobs_that_are_cancelled_say_why_and_whether_they_had_begun() -> None:
    traces = Traces()
    async with traces.pool(sleeper, workers=1) as pool:
        running, queued = [await pool.submit(5) for _ in range(2)]
        await settle()
        running.cancel()
        queued.cancel()
        await running.outcome()
        await pool.submit(5)
        await settle()
        await pool.close(drain_timeout=0)
    marks = [span.attributes or {} for span in traces.jobs]
    assert sorted((mark["asyncpool.job.id"], mark["asyncpool.job.cancel_reason"]) for mark in marks) == [
        (1, "handle"),
        (2, "handle"),
        (3, "shutdown"),
    ]
    assert {mark["asyncpool.job.outcome"] for mark in marks} == {"cancelled"}
    assert {(mark["asyncpool.job.id"], mark["asyncpool.job.attempts"]) for mark in marks} == {(1, 1), (2, 0), (3, 1)}
    assert {span.status.status_code for span in traces.jobs} == {StatusCode.UNSET}


@virtual
async def test_a_job_that_ignores_its_cancellation_is_marked_as_stuck() -> None:
    traces = Traces()
    async with traces.pool(ignores_cancel) as pool:
        handle = await pool.submit(20)
        await settle()
        handle.cancel()
        await handle.outcome()
    assert [name for name, _ in events_of(traces.job())] == ["attempt", "stuck"]


class HandsOffError(Exception):
    """Each of its attributes asks to end the program."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


@virtual
async def test_an_error_that_cannot_be_read_costs_its_text_and_not_the_tracing() -> None:
    async def handler(job: int) -> int:
        if job:
            return job
        raise HandsOffError

    traces = Traces()
    async with traces.pool(handler, workers=1) as pool:
        for job in (0, 1):
            await (await pool.submit(job)).outcome()
    assert [(span.attributes or {})["asyncpool.job.outcome"] for span in traces.jobs] == ["failed", "succeeded"]
    assert (traces.jobs[0].attributes or {})["error.type"] == "HandsOffError"


@virtual
async def test_a_span_ends_with_its_job_and_not_before() -> None:
    traces = Traces()
    async with traces.pool(sleeper) as pool:
        handle = await pool.submit(5)
        await asyncio.sleep(4)
        assert traces.jobs == []
        await handle
        assert len(traces.jobs) == 1


@virtual
async def test_spans_of_ended_jobs_are_not_kept() -> None:
    traces = Traces()
    async with traces.pool(sleeper, workers=10, retry=Retry(attempts=2)) as pool:
        stream = pool.outcomes([1.0] * 100 + ["no number"] * 10)
        assert len(await stream) == 110
        handle = await pool.submit(100)
        await settle()
        await pool.close(drain_timeout=0)
        assert handle.done()
    assert traces.tracer._spans == {}
    assert len(traces.jobs) == 111


@virtual
async def test_a_submitter_that_is_not_sampled_makes_no_spans() -> None:
    traces = Traces()
    unsampled = trace.SpanContext(trace_id=1, span_id=1, is_remote=True, trace_flags=trace.TraceFlags(0))
    async with traces.pool(traces.work) as pool:
        with trace.use_span(trace.NonRecordingSpan(unsampled)):
            assert await pool.map(["a", "b"]) == ["a", "b"]
        assert traces.exporter.get_finished_spans() == ()
        await pool.run("c")
        assert len(traces.jobs) == 1


@virtual
async def test_one_tracer_serves_pools_of_different_names() -> None:
    traces = Traces()

    async def outer(job: str) -> Any:
        return await inner.run(job)

    inner = WorkerPool(traces.tracer.wrap(traces.work), workers=1, observers=[traces.tracer], name="inner")
    async with traces.pool(outer) as pool, inner:
        await pool.run("a")
    (inner_job,) = traces.named("inner job")
    assert parent_of(inner_job) == id_of(traces.job())
    assert parent_of(traces.named("work a")[0]) == id_of(inner_job)


@virtual
async def test_an_offloaded_handler_has_its_jobs_span_in_its_thread() -> None:
    traces = Traces()

    def blocking(job: str) -> int:
        return id_of(trace.get_current_span())

    async with traces.pool(offload(blocking)) as pool:
        assert await pool.run("a") == id_of(traces.job())


@virtual
async def test_without_an_sdk_jobs_run_as_ever() -> None:
    tracer = PoolTracer()
    async with WorkerPool(tracer.wrap(echo), workers=2, observers=[tracer]) as pool:
        assert await pool.map(range(5)) == [0, 1, 2, 3, 4]


@virtual
async def test_a_wrapped_handler_still_gets_its_resource() -> None:
    from contextlib import asynccontextmanager

    traces = Traces()

    @asynccontextmanager
    async def connection() -> AsyncIterator[str]:
        yield "connection"

    async def send(job: str, resource: str) -> str:
        return f"{job} by {resource}"

    async with traces.pool(send, resource=connection) as pool:
        assert await pool.run("mail") == "mail by connection"


@virtual
async def test_jobs_that_are_called_themselves_are_traced_too() -> None:
    traces = Traces()

    async def job() -> int:
        return id_of(trace.get_current_span())

    async with traces.pool(lambda job: job()) as pool:
        assert await pool.run(job) == id_of(traces.job())


@virtual
async def test_a_wrapped_function_that_is_not_async_is_told_of_offload() -> None:
    traces = Traces()
    async with traces.pool(lambda job: job) as pool:
        with pytest.raises(TypeError, match="offload"):
            await pool.run("a")


def test_only_what_can_be_called_is_wrapped() -> None:
    with pytest.raises(TypeError, match="handler must be callable, got 5"):
        PoolTracer().wrap(5)  # type: ignore[arg-type]


@virtual
async def test_an_error_that_cannot_be_looked_at_does_not_end_the_tracing() -> None:
    traces = Traces()

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    async def fails(job: int) -> None:
        raise Broken

    async with traces.pool(fails) as pool:
        assert [type(outcome) for outcome in await pool.outcomes(range(3))] == [Failed] * 3
    assert [span.status.status_code for span in traces.jobs] == [StatusCode.ERROR] * 3
    (exception,) = [event for event in traces.jobs[0].events if event.name == "exception"]
    assert exception.attributes is not None
    assert "Broken" in str(exception.attributes["exception.type"])


@virtual
async def test_a_tracer_that_is_no_observer_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    traces = Traces()
    async with WorkerPool(traces.tracer.wrap(echo), workers=2) as pool:
        assert await pool.map(range(3)) == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "pool 'pool': the handler is wrapped by a PoolTracer that is not an observer of the pool, so no spans are "
        "created: pass it to WorkerPool(..., observers=[tracer]) too"
    ]


@virtual
async def test_a_tracer_that_wraps_no_handler_makes_spans_all_the_same() -> None:
    traces = Traces()
    async with WorkerPool(traces.work, workers=2, observers=[traces.tracer], name="images") as pool:
        with traces.own.start_as_current_span("request") as request:
            await pool.run("a")
    assert parent_of(traces.job()) == id_of(request)
    assert parent_of(traces.named("work a")[0]) == id_of(request)


@virtual
async def test_a_kept_failure_of_a_wrapped_handler_keeps_no_payload() -> None:
    traces = Traces()

    class Payload:
        pass

    payloads: list[weakref.ref[Payload]] = []

    async def fails(job: str) -> None:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        raise ValueError(job)

    async with traces.pool(fails) as pool:
        (kept,) = await pool.outcomes(["a"])
    gc.collect()
    assert isinstance(kept, Failed)
    assert payloads[0]() is None
    assert kept.error.__traceback__ is not None
    assert kept.error.__traceback__.tb_frame.f_code.co_name == "fails"


@virtual
async def test_with_an_engine_the_spans_of_a_handler_are_children_of_its_job() -> None:
    traces = Traces()
    with traces.own.start_as_current_span("request") as request:
        async with traces.pool(Portable(traces.work), engine=InMemory(2)) as pool:
            assert await pool.map(["a", "b", "c"]) == ["a", "b", "c"]
    jobs = {id_of(span) for span in traces.jobs}
    assert {parent_of(span) for span in traces.jobs} == {id_of(request)}
    assert {parent_of(traces.named(f"work {job}")[0]) for job in "abc"} == jobs
    assert len(jobs) == 3


@virtual
async def test_with_an_engine_and_without_the_observer_the_handler_runs_without_a_parent() -> None:
    traces = Traces()
    async with WorkerPool(traces.tracer.wrap(Portable(traces.work)), workers=1, engine=InMemory(1)) as pool:
        assert await pool.run("a") == "a"
    assert parent_of(traces.named("work a")[0]) is None


def test_a_traced_handler_is_sent_without_its_tracer() -> None:
    sent = pickle.loads(pickle.dumps(PoolTracer().wrap(echo)))
    assert repr(sent) == f"<traced {describe(echo)}>"
    assert sent.carry() is None
