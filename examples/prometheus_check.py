"""Check the metrics of pools with a real Prometheus, which scrapes them once a second.

    python3 -m examples.prometheus_check                                   its own pools, under a known load
    python3 -m examples.prometheus_check http://127.0.0.1:8080/metrics     your own running service

It needs the program `prometheus` on PATH and queries it over its HTTP API. It checks three things:

* The figures. For its own pools it compares them with the load. For a service it checks that they add up in each
  scrape.
* That each query of docs/monitoring/dashboard.json returns data.
* Which alerts of docs/monitoring/alerts.yml fire. Their `for` is reduced to one second; nothing else is changed.

Prometheus listens on 127.0.0.1 only. It is stopped at the end, and its data is deleted.
"""

from __future__ import annotations

import sys

from examples.command_line import FAILED, OK, Parser, finish, positive, printable, starting

PROGRAM = "prometheus_check"

with starting(PROGRAM):
    import argparse
    import asyncio
    import json
    import logging
    import math
    import re
    import shutil
    import socket
    import subprocess
    import tempfile
    import time
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
    from contextlib import asynccontextmanager
    from pathlib import Path
    from typing import Any
    from urllib.error import HTTPError
    from urllib.parse import urlencode, urlsplit
    from urllib.request import urlopen

    from asyncpool import Breaker, DeadLetters, Processes, Retry, WorkerPool, current_job

__all__ = ["Prometheus", "dashboard_queries", "main"]

MONITORING = Path(__file__).parent.parent / "docs" / "monitoring"
# The largest difference, in all scrapes of the last ten minutes, between the jobs submitted and the jobs in any state.
# By the first law of asyncpool it is 0. The three samples are of the same scrape: a query uses the newest of each.
LAW = (
    "max(max_over_time(abs(sum by (pool) (asyncpool_jobs_submitted_total) - sum by (pool) (asyncpool_jobs) "
    "- sum by (pool) (asyncpool_jobs_ended_total))[10m:{step}]))"
)


class Prometheus:
    """A running Prometheus that scrapes one page."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """Return the series that a query currently gives.

        Raises:
            ValueError: Prometheus rejected the query.
        """
        answer = await self._get("/api/v1/query", query=query)
        result: list[dict[str, Any]] = answer["result"]
        return result

    async def number(self, query: str) -> float:
        """Return the single number that a query gives; nan if there is not exactly one series."""
        series = await self.ask(query)
        return float(series[0]["value"][1]) if len(series) == 1 else math.nan

    async def alerts(self) -> set[str]:
        """Return the names of the alerts that are firing."""
        answer = await self._get("/api/v1/alerts")
        return {alert["labels"]["alertname"] for alert in answer["alerts"] if alert["state"] == "firing"}

    async def is_ready(self) -> bool:
        """Return whether it responds."""
        try:
            await self._get("/api/v1/status/buildinfo")
        except (OSError, ValueError):
            return False
        return True

    async def _get(self, path: str, **arguments: str) -> Any:
        url = f"{self.url}{path}?{urlencode(arguments)}"
        return await asyncio.to_thread(_read, url)


def _read(url: str) -> Any:
    try:
        with urlopen(url, timeout=10) as response:
            return json.load(response)["data"]
    except HTTPError as error:
        with error:
            raise ValueError(error.read().decode(errors="replace")) from None


@asynccontextmanager
async def running_prometheus(page: str, interval: float) -> AsyncGenerator[Prometheus]:
    """Run a Prometheus that scrapes a page and evaluates our alerts while the block runs."""
    with tempfile.TemporaryDirectory(prefix="prometheus-check-") as folder:
        _configure(Path(folder), page, interval)
        port = _free_port()
        with tempfile.TemporaryFile(dir=folder) as log:
            process = await asyncio.create_subprocess_exec(
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                prometheus = Prometheus(f"http://127.0.0.1:{port}")
                if not await _until(prometheus.is_ready, seconds=30, or_until=lambda: process.returncode is not None):
                    log.seek(0)
                    raise OSError(f"prometheus did not start: {log.read().decode(errors='replace')[-1000:]}")
                yield prometheus
            finally:
                if process.returncode is None:
                    process.terminate()
                await process.wait()


def _configure(folder: Path, page: str, interval: float) -> None:
    rules = folder / "alerts.yml"
    alerts = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    rules.write_text(re.sub(r"\bfor: \d+m\b", "for: 1s", alerts), encoding="utf-8")
    target = urlsplit(page)
    step = f"{round(interval * 1000)}ms"
    scraped = {
        "job_name": "asyncpool",
        "scheme": target.scheme,
        "metrics_path": target.path or "/metrics",
        "static_configs": [{"targets": [target.netloc]}],
    }
    config = {
        "global": {"scrape_interval": step, "scrape_timeout": step, "evaluation_interval": step},
        "rule_files": [str(rules)],
        "scrape_configs": [scraped],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML too


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until(
    holds: Callable[[], Coroutine[Any, Any, bool]], *, seconds: float, or_until: Callable[[], bool] = bool
) -> bool:
    """Check a condition ten times a second, for at most `seconds`; return whether it holds."""
    end = time.monotonic() + seconds
    # Polling is necessary, because Prometheus has no notification for a scrape.
    while not (does := await holds()) and time.monotonic() < end and not or_until():  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return does


# -- Own pools under a known load --------------------------------------------------------------------------------------


async def work(job: int) -> int:
    """Take 20 ms. Of ten jobs, one fails in all attempts, and one only in its first."""
    await asyncio.sleep(0.02)
    if job % 10 == 0 or (job % 10 == 5 and current_job().attempt == 1):
        raise OSError(f"job {job} has no connection")
    return job


async def work_elsewhere(job: int) -> int:
    """Return the job: the handler of the pool with an engine."""
    return job


async def go_on(released: asyncio.Event) -> None:
    """Run until released, and ignore cancellations."""
    while not released.is_set():
        try:
            await released.wait()
        except asyncio.CancelledError:
            pass


async def fail(job: int) -> None:
    """Fail without a reader."""
    raise ValueError(f"job {job} failed, and its outcome is not read")


FIGURES: list[tuple[str, float, float]] = [
    # query, minimum, maximum
    ('asyncpool_jobs_submitted_total{pool="checked"}', 200, 200),
    ('asyncpool_jobs_ended_total{pool="checked",outcome="succeeded"}', 180, 180),
    ('asyncpool_jobs_ended_total{pool="checked",outcome="failed"}', 20, 20),
    ('asyncpool_retries_total{pool="checked"}', 40, 40),
    ('asyncpool_attempt_running_seconds_count{pool="checked"}', 240, 240),
    ('asyncpool_dead_letters_recorded_total{pool="checked"}', 20, 20),
    ('asyncpool_dead_letters_stored{pool="checked"}', 5, 5),
    ('asyncpool_dead_letters_dropped_total{pool="checked"}', 15, 15),
    # 20 ms lie between the bounds 16.384 and 32.768 ms; a busy machine may take longer.
    ('histogram_quantile(0.5, sum by (le) (asyncpool_attempt_running_seconds_bucket{pool="checked"}))', 0.016, 0.066),
    ('histogram_quantile(0.99, sum by (le) (asyncpool_attempt_queued_seconds_bucket{pool="checked"}))', 0.016, 5),
    ('asyncpool_unread_failures_total{pool="unread"}', 5, 5),
    ('asyncpool_stuck_jobs{pool="held"}', 1, 1),
    ('asyncpool_jobs{pool="held",state="queued"}', 2, 2),
    ('asyncpool_jobs{pool="held",state="running"}', 1, 1),
    ('asyncpool_workers_target{pool="checked"}', 4, 4),
    ('asyncpool_breaker_state{pool="checked",state="closed"}', 1, 1),
    ('asyncpool_process_attempts_done_total{pool="engine"}', 3, 3),
]
OPTIONAL = ("asyncpool_dead_letters_", "asyncpool_breaker_", "asyncpool_process_")
"""The metrics of pools with in-memory dead letters, a breaker or an engine. The pools here have these, a service might
not."""
ALERTS = {
    "AsyncpoolQueueSaturated",
    "AsyncpoolNoThroughput",
    "AsyncpoolStuckJobs",
    "AsyncpoolDeadLettersGrow",
    "AsyncpoolDeadLettersDropped",
    "AsyncpoolUnreadFailures",
}


class Check:
    """Prints and counts the results."""

    def __init__(self) -> None:
        self.failed = 0
        self.done = 0

    def say(self, good: bool, text: str) -> None:
        """Print a result."""
        self.done += 1
        self.failed += not good
        print(f"{'ok    ' if good else 'WRONG '} {printable(text)}", flush=True)


async def check_own_pools(check: Check, interval: float) -> None:
    """Run pools whose figures are known, and compare them with those of Prometheus."""
    from prometheus_client import CollectorRegistry, start_http_server

    from asyncpool.prometheus import PoolCollector

    logging.getLogger("asyncpool").setLevel(logging.CRITICAL)  # the failures here are deliberate
    letters: DeadLetters[int] = DeadLetters(max_size=5)
    released = asyncio.Event()
    checked = WorkerPool(
        work,
        workers=4,
        retry=Retry(attempts=2, backoff=0.01),
        breaker=Breaker(on=ConnectionError),  # not what `work` raises
        dead_letters=letters,
        name="checked",
    )
    engine = WorkerPool(work_elsewhere, workers=1, engine=Processes(1), name="engine")
    unread = WorkerPool(fail, workers=1, name="unread")
    held = WorkerPool(go_on, workers=1, queue_size=2, name="held")
    registry = CollectorRegistry()
    registry.register(PoolCollector(checked, engine, unread, held))
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        page = f"http://127.0.0.1:{server.server_port}/metrics"
        async with running_prometheus(page, interval) as prometheus, checked, engine, unread, held:
            try:
                # Wait for a first scrape with counters at 0: `increase` does not see growth before the first scrape.
                seen = 'count(asyncpool_pool_state{state="open"} == 1) == 4'
                await _until(lambda: _is_answered(prometheus, seen), seconds=30)
                stubborn, *_ = [await held.submit(released) for _ in range(3)]
                await asyncio.sleep(0)
                stubborn.cancel()
                await checked.outcomes(range(200))
                await engine.map(range(3))
                for job in range(5):
                    await unread.submit(job)
                await unread.join()
                await _check_figures(check, prometheus)
                await _check_law_and_queries(check, prometheus, interval)
                await _until(lambda: _fire(prometheus, ALERTS), seconds=30)
                firing = await prometheus.alerts()
                for name in sorted(ALERTS | firing):
                    check.say(name in ALERTS and name in firing, f"{name} {'fires' if name in firing else 'is silent'}")
            finally:
                released.set()
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


async def _is_answered(prometheus: Prometheus, query: str) -> bool:
    return bool(await prometheus.ask(query))


async def _fire(prometheus: Prometheus, names: set[str]) -> bool:
    return names <= await prometheus.alerts()


async def _check_figures(check: Check, prometheus: Prometheus) -> None:
    for query, least, most in FIGURES:

        async def is_right(query: str = query, least: float = least, most: float = most) -> bool:
            return least <= await prometheus.number(query) <= most

        # This needs another scrape, and a job counts as stuck only after five seconds.
        good = await _until(is_right, seconds=20)
        wanted = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        check.say(good, f"{query} is {await prometheus.number(query):.4g}; expected {wanted}")


async def _check_law_and_queries(
    check: Check, prometheus: Prometheus, interval: float, optional: Sequence[str] = ()
) -> None:
    worst = await prometheus.number(LAW.format(step=f"{round(interval * 1000)}ms"))
    check.say(worst == 0, f"in each scrape, jobs submitted = jobs in all states; the largest difference is {worst:g}")
    queries = list(dashboard_queries(interval))
    unanswered = [query for query in queries if not await _is_answered(prometheus, query)]
    missing = [query for query in unanswered if not any(name in query for name in optional)]
    check.say(not missing, f"{len(queries) - len(unanswered)} of {len(queries)} queries of the dashboard return data")
    for query in unanswered:
        print(f"        no data: {printable(query)}")


def dashboard_queries(interval: float) -> Iterator[str]:
    """Yield the queries of the dashboard for all pools, with rates over ten scrapes."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    window = f"{max(1, round(10 * interval))}s"
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query: str = target["expr"]
            for name in ("job", "instance", "pool"):
                query = query.replace(f'"${name}"', '".*"')
            yield query.replace("$__rate_interval", window).replace("$__range", "10m")


# -- A running service -------------------------------------------------------------------------------------------------


async def check_service(check: Check, page: str, seconds: float, interval: float) -> None:
    """Watch a service for a while. Its figures must add up; its alerts are printed, but are not errors."""
    async with running_prometheus(page, interval) as prometheus:
        pools = "count by (pool) (asyncpool_jobs_submitted_total)"
        if not await _until(lambda: _is_answered(prometheus, pools), seconds=10):
            check.say(False, f"there are no pools at {page}")
            return
        await asyncio.sleep(seconds)
        for series in await prometheus.ask("asyncpool_jobs_submitted_total"):
            name = series["metric"]["pool"]
            check.say(True, f"pool {name!r} has accepted {series['value'][1]} jobs")
        await _check_law_and_queries(check, prometheus, interval, OPTIONAL)
        firing = await prometheus.alerts()
        print(f"        firing alerts: {', '.join(sorted(firing)) or 'none'}")


# -- The command -------------------------------------------------------------------------------------------------------


def page(text: str) -> str:
    """Validate the argument URL."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"must be an http URL such as http://127.0.0.1:8080/metrics, got {text!r:.80}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all checks passed."""
    parser = Parser(prog=PROGRAM, description="Let a real Prometheus scrape pools, and check its data.")
    parser.add_argument("url", nargs="?", type=page, metavar="URL", help="the metrics page of a running service")
    parser.add_argument(
        "--seconds", type=positive(3600), default=10.0, help="how long to watch a service (default: 10)"
    )
    parser.add_argument("--interval", type=positive(60), default=1.0, help="seconds between two scrapes (default: 1)")
    options = parser.parse_args(arguments)
    if shutil.which("prometheus") is None:
        parser.error("the program 'prometheus' is not on PATH; install it (Debian: apt install prometheus)")
    check = Check()

    async def run() -> None:
        if options.url is None:
            await check_own_pools(check, options.interval)
        else:
            await check_service(check, options.url, options.seconds, options.interval)
        print(f"{check.done - check.failed} of {check.done} checks passed")

    status = finish(PROGRAM, run, lambda: f"{check.done} checks done")
    return FAILED if status == OK and check.failed else status


if __name__ == "__main__":
    with starting(PROGRAM):
        sys.exit(main())
