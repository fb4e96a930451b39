"""Hosts that are too busy are asked less often, and no photo is lost: on virtual time, with functions as servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from PIL import Image

from asyncpool import Failed, Outcome, Retry
from asyncpool.testing import run
from examples.image_service import pacing
from examples.image_service.download import Downloads
from examples.image_service.errors import DownloadFailed, DownloadTimedOut, ServerBusy
from examples.image_service.pacing import Paces
from examples.image_service.service import RETRY, ImageService, Photo, Thumbnail

if TYPE_CHECKING:
    from conftest import Web

Server = Callable[[float, str], None]
"""Gets the time and the URL of a request, and raises if it does not send the photo."""


def now() -> float:
    return asyncio.get_running_loop().time()


class Servers:
    """Servers by host. Requests that they answer with an error are in `rejected`, those with a photo in `served`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, photo: bytes) -> None:
        self.by_host: dict[str, Server] = {}
        self.served: list[tuple[float, str]] = []
        self.rejected: list[tuple[float, str]] = []

        async def fetch(downloads: Downloads, url: str) -> BytesIO:
            await asyncio.sleep(0.005)  # the way there
            host = url.split("/")[2]
            try:
                self.by_host.get(host, lambda at, url: None)(now(), url)
            except DownloadFailed:
                self.rejected.append((now(), url))
                raise
            finally:
                await asyncio.sleep(0.005)
            self.served.append((now(), url))
            return BytesIO(photo)

        monkeypatch.setattr(Downloads, "fetch", fetch)

    def times(self, host: str) -> list[float]:
        return sorted(at for at, url in self.served + self.rejected if f"//{host}/" in url)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    small = BytesIO()
    Image.new("RGB", (8, 8)).save(small, "JPEG")
    return Servers(monkeypatch, small.getvalue())


def leaky_bucket(rate: float, retry_after: float = 0.0) -> Server:
    """What `limit_req` of nginx does without a burst: a request sooner than `1 / rate` after the last one is a 503."""
    last = -1.0

    def server(at: float, url: str) -> None:
        nonlocal last
        if at - last < 1 / rate:
            raise ServerBusy("busy", 503, retry_after)
        last = at

    return server


def down_until(end: float, error: Callable[[], DownloadFailed]) -> Server:
    def server(at: float, url: str) -> None:
        if at < end:
            raise error()

    return server


def busy(seconds: float = 0.0) -> ServerBusy:
    return ServerBusy("busy", 429, seconds)


def process(out: Path, urls: list[str], **options: Any) -> tuple[list[Outcome[Photo, Thumbnail]], float]:
    """Process the URLs; return the outcomes and how long that took, in virtual seconds."""

    async def main() -> tuple[list[Outcome[Photo, Thumbnail]], float]:
        began = now()
        async with ImageService(out, **options) as service:
            outcomes = await service.process(urls)
        return outcomes, now() - began

    return run(main)


def kinds(outcomes: list[Outcome[Photo, Thumbnail]]) -> Counter[str]:
    return Counter(type(outcome).__name__ for outcome in outcomes)


def urls_of(host: str, count: int) -> list[str]:
    return [f"http://{host}/img{number:03}.jpg" for number in range(count)]


@pytest.mark.parametrize("rate", [5.0, 20.0])
def test_of_a_host_that_allows_only_so_many_nothing_is_lost(servers: Servers, tmp_path: Path, rate: float) -> None:
    servers.by_host["host"] = leaky_bucket(rate)

    outcomes, seconds = process(tmp_path, urls_of("host", 150))

    assert kinds(outcomes) == {"Succeeded": 150}
    assert len(servers.rejected) < 50
    assert seconds < 2.5 * 150 / rate


def test_a_rate_that_the_host_allows_is_never_rejected(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["host"] = leaky_bucket(20)

    outcomes, seconds = process(tmp_path, urls_of("host", 60), rate=19)

    assert (kinds(outcomes), servers.rejected) == ({"Succeeded": 60}, [])
    assert seconds == pytest.approx(59 / 19, abs=0.5)


def test_a_host_is_left_alone_for_as_long_as_it_asks_and_others_are_not(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["slow"] = down_until(30.0, lambda: busy(30.0))
    urls = [url for pair in zip(urls_of("slow", 20), urls_of("fast", 20), strict=True) for url in pair]

    outcomes, _ = process(tmp_path, urls, workers=4)

    assert kinds(outcomes) == {"Succeeded": 40}
    assert max(servers.times("fast")) < 5.0
    assert not [at for at in servers.times("slow") if 0.1 < at < 30.0]


def test_a_host_that_is_busy_for_a_minute_without_a_word_loses_nothing(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["host"] = down_until(60.0, busy)

    outcomes, _ = process(tmp_path, urls_of("host", 50))

    assert kinds(outcomes) == {"Succeeded": 50}
    assert len(servers.rejected) < 30


def test_a_host_that_asks_for_a_year_is_asked_again_after_a_minute(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["host"] = down_until(59.0, lambda: busy(31_536_000.0))

    outcomes, seconds = process(tmp_path, urls_of("host", 3))

    assert kinds(outcomes) == {"Succeeded": 3}
    assert seconds < 120


def test_a_server_that_restarts_loses_nothing(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["host"] = down_until(3.0, lambda: DownloadFailed("the connection was lost", is_temporary=True))

    outcomes, _ = process(tmp_path, urls_of("host", 30))

    assert kinds(outcomes) == {"Succeeded": 30}


def test_a_host_that_stays_busy_fails_with_its_answer(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["host"] = down_until(float("inf"), busy)

    outcomes, _ = process(tmp_path, urls_of("host", 2))

    assert [str(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)] == ["download failed: busy"] * 2
    assert len(servers.rejected) == 2 * RETRY.attempts


@pytest.mark.parametrize("error", [DownloadFailed("404", 404), DownloadTimedOut(4.0)])
def test_what_cannot_succeed_and_what_has_had_its_time_is_not_retried(
    servers: Servers, tmp_path: Path, error: DownloadFailed
) -> None:
    servers.by_host["host"] = down_until(float("inf"), lambda: error)

    outcomes, _ = process(tmp_path, urls_of("host", 1))

    assert [outcome.error for outcome in outcomes if isinstance(outcome, Failed)] == [error]
    assert len(servers.rejected) == 1


def test_a_rerun_does_not_wait_for_a_host_that_it_does_not_need(servers: Servers, tmp_path: Path) -> None:
    process(tmp_path, urls_of("host", 20))
    servers.served.clear()

    outcomes, seconds = process(tmp_path, urls_of("host", 20), rate=0.1)

    assert all(outcome.unwrap().skipped for outcome in outcomes)
    assert servers.served == []
    assert seconds < 10.0


def test_a_drain_does_not_wait_for_another_attempt(servers: Servers, tmp_path: Path) -> None:
    servers.by_host["host"] = down_until(float("inf"), lambda: busy(60.0))

    async def main() -> list[Outcome[Photo, Thumbnail]]:
        async with ImageService(tmp_path, workers=2) as service:
            handles = [await service.pool.submit(url) for url in urls_of("host", 2)]
            await asyncio.sleep(0.007)  # both are rejected at this moment
            service.pool.drain()
            outcomes = [await handle.outcome() for handle in handles]
        assert now() < 1.0
        return outcomes

    assert kinds(run(main)) == {"Failed": 2}


def test_the_limit_of_a_host_that_is_never_busy_is_none_or_the_rate() -> None:
    assert Paces().limit_of("http://host/a.jpg") is None
    paces = Paces(5)
    assert paces.limit_of("http://HOST/a.jpg") is paces.limit_of("http://user:secret@host/b.jpg")
    assert paces.limit_of("http://[::1") is not None  # it is not a URL, which the download notices


@pytest.mark.asyncio
async def test_a_real_server_that_limits_its_requests_loses_nothing(
    site: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(pacing, "_FIRST_RATE", 40.0)
    bucket, rejections = leaky_bucket(100), 0

    async def reply(request: web.Request) -> web.StreamResponse:
        nonlocal rejections
        try:
            bucket(now(), request.path)
        except ServerBusy:
            rejections += 1
            return web.Response(status=429 if rejections % 2 else 503, text="busy")
        return web.Response(body=site.photo)

    urls = [f"{site.base}/img{number:02}.jpg" for number in range(40)]
    site.replies |= {url.removeprefix(site.base): reply for url in urls}
    async with ImageService(tmp_path, size=(40, 40), retry=Retry(attempts=8, backoff=0.01, on=())) as service:
        outcomes = await service.process(urls)
        assert service.pool.stats.retries == rejections > 0

    assert kinds(outcomes) == {"Succeeded": 40}
