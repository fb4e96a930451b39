"""What a scrape shows: the right figures, at any moment of a pool's life, in whichever thread it happens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.aiohttp import make_aiohttp_handler
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from asyncpool import DeadLetterFile, DeadLetters, QueueFull, Retry, RetryAfter, WorkerPool
from asyncpool.prometheus import PoolCollector
from asyncpool.testing import settle
from tests.helpers import echo, fuzzed, sleeper, virtual

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[tuple[str, ...], float]


def registry_of(*pools: WorkerPool[Any, Any], **options: Any) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(PoolCollector(*pools, **options))
    return registry


def figures_in(text: str) -> Figures:
    """What an exposition tells of the pools."""
    return figures_of(parse_text(text))


def figures_of(families: Iterable[Metric]) -> Figures:
    """What metrics tell of the pools: (name without namespace, pool, other labels' values) to value."""
    figures: Figures = {}
    for family in families:
        for sample in family.samples:
            rest = [value for label, value in sorted(sample.labels.items()) if label != "pool"]
            key = (sample.name.removeprefix("asyncpool_"), sample.labels["pool"], *rest)
            assert key not in figures
            figures[key] = sample.value
    return figures


def scrape(registry: CollectorRegistry) -> Figures:
    """Scrape in this thread, and see that both formats agree with their parsers."""
    list(parse_openmetrics(generate_openmetrics(registry).decode()))
    return figures_in(generate_latest(registry).decode())


def assert_conserved(figures: Figures, pool: str = "pool") -> None:
    """The first law: every accepted job is in one place."""
    places = [figures["jobs", pool, state] for state in ("queued", "delayed", "running")]
    places += [figures["jobs_ended_total", pool, outcome] for outcome in ("succeeded", "failed", "cancelled")]
    assert figures["jobs_submitted_total", pool] == sum(places)


def state_in(figures: Figures, pool: str = "pool") -> list[str]:
    return [key[2] for key, value in figures.items() if key[:2] == ("pool_state", pool) and value == 1]


@contextmanager
def served(registry: CollectorRegistry) -> Iterator[str]:
    """The registry, served by prometheus_client in a thread of its own; yields where."""
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(url: str) -> Figures:
    with urllib.request.urlopen(url, timeout=20) as response:
        return figures_in(response.read().decode())


# -- The samples -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_scrape_shows_where_the_jobs_are() -> None:
    async def handler(job: str) -> None:
        await asyncio.sleep(10)
        if job == "fails" or job == "comes back":
            raise ValueError(job)

    retry = Retry(attempts=2, backoff=100, max_backoff=100, jitter=False, on=lambda error: "back" in str(error))
    pool = WorkerPool(handler, workers=3, queue_size=4, retry=retry)
    registry = registry_of(pool)
    async with pool:
        jobs = ["fine", "fails", "comes back", "running", "running", "running", "queued", "cancelled"]
        handles = [await pool.submit(job) for job in jobs[:4]]
        await asyncio.sleep(5)
        handles += [await pool.submit(job) for job in jobs[4:7]]
        extra = asyncio.create_task(pool.submit(jobs[7]))
        await settle()
        assert scrape(registry)["submitters_waiting", "pool"] == 1
        with pytest.raises(QueueFull):
            pool.submit_nowait(jobs[7])
        await asyncio.sleep(6)
        (await extra).cancel()
        figures = scrape(registry)
        assert_conserved(figures)
        expected = {
            ("loop_responding", "pool"): 1,
            ("pool_paused", "pool"): 0,
            ("jobs_submitted_total", "pool"): 8,
            ("jobs", "pool", "queued"): 1,
            ("jobs", "pool", "delayed"): 1,
            ("jobs", "pool", "running"): 3,
            ("jobs_ended_total", "pool", "succeeded"): 1,
            ("jobs_ended_total", "pool", "failed"): 1,
            ("jobs_ended_total", "pool", "cancelled"): 1,
            ("running_jobs_peak", "pool"): 3,
            ("queue_size", "pool"): 4,
            ("submitters_waiting", "pool"): 0,
            ("workers", "pool"): 3,
            ("workers_target", "pool"): 3,
            ("workers_max", "pool"): 3,
            ("stuck_jobs", "pool"): 0,
            ("retries_total", "pool"): 1,
            ("submissions_rejected_total", "pool"): 1,
            ("retries_rejected_total", "pool"): 0,
        }
        assert {key: figures[key] for key in expected} == expected
        assert state_in(figures) == ["open"]
        for handle in handles:
            await handle.outcome()


@virtual
async def test_histograms_are_cumulative_and_exact_at_their_bounds() -> None:
    seconds = [0.0, 1e-5, 0.001, 0.001024, 0.0011, 0.5, 0.6, 1.1, 60.0, 3000.0, 5000.0, 2 * 86400.0, 30 * 86400.0]
    async with WorkerPool(sleeper, workers=20) as pool:
        await pool.outcomes(seconds)
        figures = scrape(registry_of(pool))
    buckets = [(key[2], value) for key, value in figures.items() if key[0] == "attempt_running_seconds_bucket"]
    assert len(buckets) == 38
    assert float(buckets[0][0]) == pytest.approx(16e-6)
    assert 12 * 86400 < float(buckets[-2][0]) < 13 * 86400
    assert buckets[-1] == ("+Inf", len(seconds))
    for bound, count in buckets:
        # A virtual clock adds rounding errors: what lies on a bound may be just above it.
        least = sum(second < float(bound) * (1 - 1e-9) for second in seconds)
        most = sum(second <= float(bound) for second in seconds)
        assert least <= count <= most, bound
    assert figures["attempt_running_seconds_count", "pool"] == len(seconds)
    assert figures["attempt_running_seconds_sum", "pool"] == pytest.approx(sum(seconds))
    assert figures["attempt_queued_seconds_count", "pool"] == len(seconds)


@virtual
async def test_each_attempt_is_measured() -> None:
    async def fails(job: int) -> None:
        await asyncio.sleep(1)
        raise OSError

    async with WorkerPool(fails, workers=1, retry=Retry(attempts=3)) as pool:
        await pool.outcomes([1])
        figures = scrape(registry_of(pool))
    assert figures["attempt_running_seconds_count", "pool"] == 3
    assert figures["retries_total", "pool"] == 2


@virtual
async def test_a_pause_shows() -> None:
    async def asks_for_a_pause(job: int) -> None:
        raise RetryAfter(30, pause=True)

    async with WorkerPool(asks_for_a_pause, workers=1) as pool:
        registry = registry_of(pool)
        pool.pause()
        assert scrape(registry)["pool_paused", "pool"] == 1
        pool.resume()
        assert scrape(registry)["pool_paused", "pool"] == 0
        await (await pool.submit(1)).outcome()
        assert scrape(registry)["pool_paused", "pool"] == 1


@virtual
async def test_failures_that_nobody_read_show() -> None:
    async def fails(job: int) -> None:
        raise ValueError(job)

    async with WorkerPool(fails, workers=1) as pool:
        for job in range(3):
            await pool.submit(job)
        await pool.join()
        await settle()
        assert scrape(registry_of(pool))["unread_failures_total", "pool"] == 3


@virtual
async def test_dead_letters_in_memory_are_counted() -> None:
    async def fails(job: int) -> None:
        raise ValueError(job)

    letters: DeadLetters[int] = DeadLetters(max_size=3)
    async with WorkerPool(fails, workers=1, dead_letters=letters) as pool:
        await pool.outcomes(range(5))
        figures = scrape(registry_of(pool))
    names = ("dead_letters_recorded_total", "dead_letters_stored", "dead_letters_dropped_total")
    assert [figures[name, "pool"] for name in names] == [5, 3, 2]


@virtual
async def test_a_file_of_dead_letters_is_not_read_for_a_scrape(tmp_path: Path) -> None:
    class Unread(DeadLetterFile[int]):
        def __len__(self) -> int:
            raise AssertionError("read")

    async def fails(job: int) -> None:
        raise ValueError(job)

    async with WorkerPool(fails, workers=1, dead_letters=Unread(tmp_path / "letters")) as pool:
        await pool.outcomes(range(5))
        figures = scrape(registry_of(pool))
    assert figures["dead_letters_recorded_total", "pool"] == 5
    assert ("dead_letters_stored", "pool") not in figures


@virtual
async def test_a_pool_without_dead_letters_shows_none() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        assert not [key for key in scrape(registry_of(pool)) if "dead" in key[0]]


def test_names_and_texts_are_as_prometheus_asks() -> None:
    (text,) = [generate_latest(registry_of(WorkerPool(echo, workers=1))).decode()]
    families = list(parse_text(text))
    assert len(families) > 20
    for family in families:
        assert family.name.startswith("asyncpool_")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        assert family.type in ("counter", "gauge", "histogram")


def test_a_pool_may_have_any_name_that_utf8_has() -> None:
    name = 'a "b"\\\nc é'
    assert scrape(registry_of(WorkerPool(echo, workers=1, name=name)))["jobs_submitted_total", name] == 0


# -- When, and where ---------------------------------------------------------------------------------------------------


@fuzzed
async def test_the_figures_add_up_at_each_scrape() -> None:
    async def handler(job: int) -> None:
        await asyncio.sleep(job % 3)
        if job % 4 == 0:
            raise OSError

    pool = WorkerPool(handler, workers=3, retry=Retry(attempts=2, backoff=1))
    registry = registry_of(pool)
    submitted = []
    async with pool:
        stream = asyncio.create_task(collect(pool.outcomes(range(20))))
        while not stream.done():
            figures = figures_of(registry.collect())
            assert_conserved(figures)
            submitted.append(figures["jobs_submitted_total", "pool"])
            await asyncio.sleep(0.9)
    assert submitted == sorted(submitted)
    assert submitted[-1] == 20
    assert_conserved(scrape(registry))


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


def test_a_pool_that_was_not_started_shows_zeros() -> None:
    figures = scrape(registry_of(WorkerPool(echo, workers=7)))
    assert_conserved(figures)
    assert state_in(figures) == ["new"]
    assert figures["loop_responding", "pool"] == 1
    assert figures["workers_target", "pool"] == 7
    assert figures["attempt_running_seconds_bucket", "pool", "+Inf"] == 0


def test_a_pool_that_was_closed_before_its_start_shows_zeros() -> None:
    pool = WorkerPool(echo, workers=7)
    asyncio.run(pool.close())  # type: ignore[arg-type]
    figures = scrape(registry_of(pool))
    assert_conserved(figures)
    assert state_in(figures) == ["closed"]


@virtual
async def test_every_state_shows() -> None:
    async with WorkerPool(sleeper, workers=1) as pool:
        registry = registry_of(pool)
        await pool.submit(5)
        pool.drain()
        await settle()
        assert state_in(scrape(registry)) == ["draining"]
    assert state_in(scrape(registry)) == ["closed"]


def test_a_closed_pool_keeps_its_figures_when_its_loop_is_gone() -> None:
    pool = WorkerPool(echo, workers=2)

    async def main() -> None:
        async with pool:
            await pool.map(range(50))

    asyncio.run(main())
    figures = scrape(registry_of(pool))
    assert_conserved(figures)
    assert figures["jobs_ended_total", "pool", "succeeded"] == 50
    assert figures["attempt_running_seconds_count", "pool"] == 50


def test_an_open_pool_whose_loop_has_stopped_does_not_respond() -> None:
    pool = WorkerPool(echo, workers=2)
    registry = registry_of(pool)
    with asyncio.Runner() as runner:
        runner.run(pool.start())
        figures = scrape(registry)
        assert figures == {("loop_responding", "pool"): 0}
        runner.run(pool.close())  # type: ignore[arg-type]
        assert state_in(scrape(registry)) == ["closed"]


def test_scrapes_in_another_thread_see_figures_of_one_moment() -> None:
    """By prometheus_client's own server, while the pool is at work."""
    pool = WorkerPool(sleeper, workers=10)

    async def main() -> tuple[list[Figures], Figures]:
        with served(registry_of(pool)) as url:
            async with pool:
                stop = threading.Event()
                seen: list[Figures] = []

                def keep_scraping() -> None:
                    while not stop.is_set():
                        seen.append(fetch(url))

                scraping = asyncio.create_task(asyncio.to_thread(keep_scraping))
                while len(seen) < 20 and not scraping.done():
                    await pool.map([0.001] * 200)  # not busy all the time: each turn of the GIL would cost 5 ms
                stop.set()
                await scraping
                last = await asyncio.to_thread(fetch, url)
                assert last["jobs_submitted_total", "pool"] == pool.stats.submitted
        return seen, last

    seen, last = asyncio.run(main())
    assert len(seen) >= 20
    for figures in seen:
        assert figures["loop_responding", "pool"] == 1
        assert_conserved(figures)
        ended = sum(figures["jobs_ended_total", "pool", outcome] for outcome in ("succeeded", "failed"))
        assert figures["attempt_running_seconds_count", "pool"] == ended
    assert last["attempt_running_seconds_count", "pool"] == last["jobs_submitted_total", "pool"]


def test_an_aiohttp_service_serves_its_pools_on_their_loop() -> None:
    pool = WorkerPool(echo, workers=2, name="images")

    async def main() -> Figures:
        app = web.Application()
        app.router.add_get("/metrics", make_aiohttp_handler(registry_of(pool)))
        async with pool, serving(app) as url, ClientSession() as session:
            await pool.map(range(50))
            async with session.get(url + "/metrics") as response:
                assert response.status == 200
                return figures_in(await response.text())

    figures = asyncio.run(main())
    assert figures["jobs_ended_total", "images", "succeeded"] == 50
    assert_conserved(figures, "images")


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


class Elsewhere:
    """A pool on a loop of its own, in a thread of its own; `block()` blocks that loop until `unblock()`."""

    def __init__(self, name: str) -> None:
        self.pool: WorkerPool[Any, Any] = WorkerPool(echo, workers=1, name=name)
        self._may_go_on = threading.Event()

    def __enter__(self) -> Elsewhere:
        self._runner = asyncio.Runner()
        self.loop = self._runner.get_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._runner.run(self._live(started)))
        self._thread.start()
        assert started.wait(20)
        return self

    def __exit__(self, *exc: object) -> None:
        self.unblock()
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._runner.close()

    async def _live(self, started: threading.Event) -> None:
        self._end = asyncio.Event()
        async with self.pool:
            started.set()
            await self._end.wait()

    def block(self) -> None:
        blocked = threading.Event()

        def block() -> None:
            blocked.set()
            self._may_go_on.wait()

        self.loop.call_soon_threadsafe(block)
        assert blocked.wait(20)

    def unblock(self) -> None:
        self._may_go_on.set()


def test_a_blocked_loop_shows_as_such_and_hides_no_other_pool() -> None:
    with Elsewhere("stuck") as stuck, Elsewhere("fine") as fine:
        registry = registry_of(stuck.pool, fine.pool, timeout=0.05)
        stuck.block()
        figures = scrape(registry)
        assert {key: value for key, value in figures.items() if key[1] == "stuck"} == {("loop_responding", "stuck"): 0}
        assert_conserved(figures, "fine")
        stuck.unblock()
        asyncio.run_coroutine_threadsafe(stuck.pool.join(), stuck.loop).result(20)
        assert state_in(scrape(registry), "stuck") == ["open"]


def test_a_blocked_loop_is_asked_once_and_answers_with_what_is_true_then() -> None:
    with Elsewhere("stuck") as stuck:
        registry = registry_of(stuck.pool, timeout=0.01)
        asked = 0
        call_soon_threadsafe = stuck.loop.call_soon_threadsafe

        def count(*args: Any, **kwargs: Any) -> Any:
            nonlocal asked
            asked += 1
            return call_soon_threadsafe(*args, **kwargs)

        stuck.block()
        stuck.loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        for _ in range(10):
            scrape(registry)
        assert asked == 1
        stuck.loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[method-assign]
        stuck.unblock()
        asyncio.run_coroutine_threadsafe(stuck.pool.run(1), stuck.loop).result(20)
        registry_with_time = registry_of(stuck.pool, timeout=20)
        assert scrape(registry_with_time)["jobs_ended_total", "stuck", "succeeded"] == 1


# -- Which pools -------------------------------------------------------------------------------------------------------


@virtual
async def test_several_pools_are_told_apart_by_name() -> None:
    async with WorkerPool(echo, workers=1, name="a") as a, WorkerPool(echo, workers=2, name="b") as b:
        await a.run(1)
        await b.map([1, 2])
        figures = scrape(registry_of(a, b))
    assert (figures["jobs_submitted_total", "a"], figures["jobs_submitted_total", "b"]) == (1, 2)


def test_two_pools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="a pool named 'pool' is already collected, and the metrics of the two would"):
        PoolCollector(WorkerPool(echo, workers=1), WorkerPool(echo, workers=1))


def test_a_pool_can_follow_another_of_its_name() -> None:
    first, second = WorkerPool(echo, workers=1), WorkerPool(echo, workers=2)
    collector = PoolCollector(first)
    registry = CollectorRegistry()
    registry.register(collector)
    collector.remove(first)
    collector.add(second)
    assert scrape(registry)["workers_target", "pool"] == 2
    with pytest.raises(ValueError, match="pool 'pool' is not collected here"):
        collector.remove(first)


def test_a_second_collector_in_one_registry_is_refused_but_for_another_namespace() -> None:
    registry = registry_of(WorkerPool(echo, workers=1))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(PoolCollector(WorkerPool(echo, workers=1, name="b")))
    registry.register(PoolCollector(WorkerPool(echo, workers=1, name="b"), namespace="mine"))
    assert b'mine_jobs_submitted_total{pool="b"} 0.0' in generate_latest(registry)


@pytest.mark.parametrize("namespace", ["", "1st", "a-b", "a b", "é"])
def test_a_namespace_is_checked(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace must consist of letters, digits and _"):
        PoolCollector(namespace=namespace)


def test_only_pools_are_collected() -> None:
    with pytest.raises(TypeError, match="a PoolCollector takes WorkerPools, got 5"):
        PoolCollector(5)  # type: ignore[arg-type]


def test_a_name_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="the name of a pool must be encodable as UTF-8"):
        PoolCollector(WorkerPool(echo, workers=1, name="\ud800"))


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_checked(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be"):
        PoolCollector(timeout=timeout)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "otel")],
)
def test_a_missing_extra_says_what_to_install(module: str, package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import asyncpool; import asyncpool.{module}"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: asyncpool.{module} needs the package ")
    assert last.endswith(f"python3 -m pip install 'asyncpool-toolkit[{extra}]'")
