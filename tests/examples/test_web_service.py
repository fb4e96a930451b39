"""The web service: what it answers, what it does when a client goes away, and how it stops."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from asyncpool import WorkerPool
from asyncpool.testing import run as run_virtual
from examples.image_service.images import Encoded, make_thumbnail
from examples.web_service import service as service_module
from examples.web_service import serving as serving_module
from examples.web_service.pixels import PixelLimit
from examples.web_service.refusals import REASONS
from examples.web_service.service import GONE, ThumbnailService, retry_after
from examples.web_service.serving import Server
from tests.loops import LOOPS, command_on
from tests.markdown import sample, without_figures

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-W", "error", "-m", "examples.web_service"]
ALERTS = ROOT / "examples" / "web_service" / "alerts.yml"
GIVE_UP = 30.0
LIMIT = 768 * 1024

Client = TestClient[web.Request, web.Application]


class Gate:
    """Holds each photo in its thread until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self.started = 0

    def make(self, *args: Any) -> Any:
        self.started += 1
        assert self._opened.wait(GIVE_UP)
        return make_thumbnail(*args)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(service_module, "make_thumbnail", gate.make)
    yield gate
    gate.open()


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[ThumbnailService, Client]]:
    service = ThumbnailService(**{"workers": 1, "queue_size": 2, "max_bytes": LIMIT} | options)
    async with TestClient(TestServer(service.app)) as client:
        yield service, client


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    async with served() as (_, client):
        yield client


@functools.cache
def small(width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    target = BytesIO()
    Image.new("RGB", (width, height), "navy").save(target, kind)
    return target.getvalue()


def size_of(thumbnail: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(thumbnail)) as image:
        image.load()
        assert image.format == "JPEG"
        return image.size


async def until(is_so: Any) -> None:
    """Wait for what another thread or another process does."""
    async with asyncio.timeout(GIVE_UP):
        while not is_so():
            await asyncio.sleep(0.002)


def adds_up(service: ThumbnailService) -> bool:
    stats = service.pool.stats
    ended = stats.succeeded + stats.failed + stats.cancelled
    return service.requests == service.answers.total() and stats.submitted == ended


# -- answers --


@pytest.mark.asyncio
async def test_a_photo_that_is_posted_comes_back_as_a_thumbnail(client: Client, photo: bytes) -> None:
    async with client.post("/thumbnail", data=photo) as response:
        assert response.status == 200
        assert response.content_type == "image/jpeg"
        assert size_of(await response.read()) == (320, 240)


@pytest.mark.asyncio
async def test_a_photo_may_be_a_file_of_a_form(client: Client, photo: bytes) -> None:
    form = aiohttp.FormData({"comment": "my cat"})
    form.add_field("image", photo, filename="cat.jpg", content_type="text/plain")
    async with client.post("/thumbnail", data=form) as response:
        assert response.status == 200
        assert size_of(await response.read()) == (320, 240)


@pytest.mark.asyncio
async def test_the_request_may_name_the_box(client: Client, photo: bytes) -> None:
    async with client.post("/thumbnail?size=50x600", data=photo) as response:
        assert size_of(await response.read()) == (50, 38)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/thumbnail", b"", 400, "the body is empty; send a photo"),
        ("/thumbnail", b"Hello", 415, "not an image: expected JPEG, PNG, WebP, GIF, BMP or TIFF"),
        ("/thumbnail", small(300, 300)[:-300], 422, "image damaged: the file is truncated"),
        ("/thumbnail", small(400, 300), 422, "image too large: max is 0.1 megapixels"),
        ("/thumbnail", bytes(LIMIT + 1), 413, "the photo is too large; the limit is 0.75 MB"),
        ("/thumbnail?size=big", small(), 400, "size must be WIDTHxHEIGHT in pixels, such as 320x240, got 'big'"),
        ("/thumbnail?size=0x1", small(), 400, "size must be between 1x1 and 65500x65500, got 0x1"),
        ("/thumbnails", small(), 404, "Not Found; see GET / for usage"),
        ("/healthz", small(), 405, "Method Not Allowed; see GET / for usage"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_a_sentence(path: str, body: bytes, status: int, sentence: str) -> None:
    async with served(max_pixels=100_000) as (service, client), client.post(path, data=BytesIO(body)) as response:
        assert (response.status, await response.text()) == (status, sentence + "\n")
        assert service.pool.stats.failed == 0  # what a client does wrong wakes nobody at night


@pytest.mark.asyncio
async def test_a_body_of_unknown_length_is_read_up_to_the_limit(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 50_000 + 1):
            yield bytes(50_000)

    async with client.post("/thumbnail", data=chunks()) as response:
        assert response.status == 413


@pytest.mark.asyncio
async def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_is_there(client: Client) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"POST /thumbnail HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content_type", "body", "sentence"),
    [
        ("multipart/form-data", b"x", "the body cannot be read: boundary missed for Content-Type: multipart/form-data"),
        ("multipart/form-data; boundary=a", b"x", "the body cannot be read: Could not find starting boundary b'--a'"),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--a--\r\n',
            "the form has no file; send the photo as a file, like curl -F image=@photo.jpg",
        ),
    ],
)
async def test_a_form_that_cannot_be_read_is_refused_in_a_sentence(
    client: Client, content_type: str, body: bytes, sentence: str
) -> None:
    async with client.post("/thumbnail", data=body, headers={"Content-Type": content_type}) as response:
        assert (response.status, await response.text()) == (400, sentence + "\n")


@pytest.mark.asyncio
async def test_a_compressed_body_is_refused_and_not_unpacked(client: Client) -> None:
    async with client.post("/thumbnail", data=b"no gzip", headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 415
        assert await response.text() == "Content-Encoding is not supported; send the photo as it is\n"


@pytest.mark.asyncio
async def test_a_photo_that_does_not_arrive_in_time_is_refused() -> None:
    async with served(upload_timeout=0.05) as (service, client):
        never = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await never.wait()

        async with client.post("/thumbnail", data=chunks()) as response:
            assert (response.status, await response.text()) == (408, "the upload took longer than 0.05 s\n")
        assert service.uploads.in_progress == 0


@pytest.mark.asyncio
async def test_an_error_of_our_own_is_a_500_and_in_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(service_module, "make_thumbnail", broken)

    async with client.post("/thumbnail", data=small()) as response:
        assert (response.status, await response.text()) == (500, "internal error; see the log of the service\n")
    assert "RuntimeError: out of order" in caplog.text


# -- too much, and too slow --


@pytest.mark.asyncio
async def test_what_there_is_no_room_for_is_refused_before_it_is_read(gate: Gate) -> None:
    async with served(workers=1, queue_size=2) as (service, client):
        accepted = [asyncio.create_task(client.post("/thumbnail", data=small())) for _ in range(3)]
        await until(lambda: service.pool.stats.queued == 2)
        never = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await never.wait()

        async with client.post("/thumbnail", data=chunks()) as response:
            assert (response.status, await response.text()) == (503, "too many photos are waiting; try again later\n")
            assert response.headers["Retry-After"] == "1"
        gate.open()
        assert [(await task).status for task in accepted] == [200] * 3


class SlowUploads:
    """Uploads that send their first bytes, and then nothing more, until their clients leave."""

    def __init__(self, service: ThumbnailService, client: Client, first: bytes = b"first") -> None:
        self._service = service
        self._client = client
        self._first = first
        self._never = asyncio.Event()
        self._tasks: list[asyncio.Task[aiohttp.ClientResponse]] = []

    async def start(self, count: int) -> None:
        for _ in range(count):
            self._tasks.append(asyncio.create_task(self._post()))
            total = len(self._tasks) * len(self._first)
            await until(lambda total=total: self._service.uploads.bytes == total)

    async def _post(self) -> aiohttp.ClientResponse:
        return await self._client.post("/thumbnail", data=self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield self._first
        await self._never.wait()

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await until(lambda: not self._service.uploads.in_progress)
        assert self._service.uploads.bytes == 0


@pytest.mark.asyncio
async def test_slow_uploads_take_no_place_in_the_pool() -> None:
    async with served(workers=1, queue_size=1) as (service, client):
        slow = SlowUploads(service, client)
        await slow.start(22)
        async with client.post("/thumbnail", data=small()) as response:
            assert response.status == 200
        await slow.leave()
        assert service.answers == {200: 1, GONE: 22}
        assert service.pool.stats.submitted == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        ({"max_uploads": 2}, "too many uploads are in progress; try again later\n"),
        ({"max_upload_bytes": 2000}, "the uploads in progress are too large together; try again later\n"),
    ],
)
async def test_uploads_are_limited_in_number_and_in_bytes(limit: dict[str, int], sentence: str) -> None:
    async with served(**limit) as (service, client):
        slow = SlowUploads(service, client, bytes(1000))
        await slow.start(2)
        async with client.post("/thumbnail", data=small()) as response:
            assert (response.status, await response.text()) == (503, sentence)
            assert response.headers["Retry-After"] == "1"
        await slow.leave()
        async with client.post("/thumbnail", data=small()) as response:
            assert response.status == 200


@pytest.mark.asyncio
async def test_an_upload_that_exceeds_the_bytes_of_all_is_rejected_and_the_others_are_not() -> None:
    async with served(max_upload_bytes=5000) as (service, client):
        slow = SlowUploads(service, client, bytes(1000))
        await slow.start(2)
        async with client.post("/thumbnail", data=bytes(4000)) as response:
            assert response.status == 503
        await until(lambda: service.uploads.bytes == 2000)
        assert service.uploads.in_progress == 2
        await slow.leave()


@pytest.mark.asyncio
@pytest.mark.parametrize("full", ["queue", "uploads", "no"])
async def test_a_client_that_asks_first_is_rejected_before_it_sends(gate: Gate, full: str) -> None:
    async with served(workers=1, queue_size=0, max_uploads=1) as (service, client):
        slow = SlowUploads(service, client)
        if full == "uploads":
            await slow.start(1)
        elif full == "queue":
            accepted = asyncio.create_task(client.post("/thumbnail", data=small()))
            await until(lambda: gate.started == 1)
        reader, writer = await asyncio.open_connection(client.host, client.port)
        head = f"POST /thumbnail HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(small())}\r\n\r\n"
        writer.write(head.encode())
        line = await reader.readline()
        gate.open()
        if full == "no":
            assert line == b"HTTP/1.1 100 Continue\r\n"
            writer.write(small())
            assert await reader.readline() == b"\r\n"
            line = await reader.readline()
            assert line.startswith(b"HTTP/1.1 200 ")
        else:
            assert line.startswith(b"HTTP/1.1 503 ")
        writer.close()
        if full == "uploads":
            await slow.leave()
        elif full == "queue":
            assert (await accepted).status == 200


@pytest.mark.asyncio
async def test_a_client_of_http_1_0_is_never_told_to_continue(client: Client) -> None:
    reader, writer = await asyncio.open_connection(client.host, client.port)
    head = f"POST /thumbnail HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: {len(small())}\r\n\r\n"
    writer.write(head.encode() + small())
    assert (await reader.readline()).startswith(b"HTTP/1.0 200 ")
    writer.close()


@pytest.mark.asyncio
async def test_no_more_pixels_are_decoded_at_a_time_than_allowed(gate: Gate) -> None:
    photo = small(300, 300, "PNG")
    async with served(workers=4, queue_size=4, max_pixels_at_once=200_000) as (service, client):
        posts = [asyncio.create_task(client.post("/thumbnail", data=photo)) for _ in range(4)]
        await until(lambda: gate.started == 2)
        await until(lambda: service.pool.stats.running == 4)
        assert (gate.started, service.pixels.in_use) == (2, 180_000)
        gate.open()
        assert [(await post).status for post in posts] == [200] * 4
        assert service.pixels.in_use == 0


@pytest.mark.asyncio
async def test_half_of_the_pixels_of_a_jpeg_count(gate: Gate) -> None:
    async with served() as (service, client):
        post = asyncio.create_task(client.post("/thumbnail", data=small(160, 100)))
        await until(lambda: gate.started == 1)
        assert service.pixels.in_use == 8000
        gate.open()
        assert (await post).status == 200


def test_the_pixel_limit_is_first_come_first_served_and_lets_a_large_photo_in_alone() -> None:
    async def main() -> None:
        limit, entered = PixelLimit(10), list[int]()

        async def decode(number: int, pixels: int) -> None:
            async with limit.of(pixels):
                entered.append(number)
                assert limit.in_use <= 10 or limit.in_use == pixels == 30
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(decode(number, pixels)) for number, pixels in enumerate([6, 6, 30, 1, 4, 5, 9])]
            await asyncio.sleep(0.5)
            tasks[1].cancel()  # it waits for room
            tasks[5].cancel()  # it waits for its turn
        assert entered == [0, 2, 3, 4, 6]
        assert limit.in_use == 0

    run_virtual(main)


@pytest.mark.asyncio
async def test_a_client_that_leaves_while_its_photo_waits_for_room_leaves_the_pool(gate: Gate) -> None:
    async with served(workers=2, max_pixels_at_once=1) as (service, client):
        posts = [asyncio.create_task(client.post("/thumbnail", data=small(kind="PNG"))) for _ in range(2)]
        await until(lambda: service.pool.stats.running == 2)
        await until(lambda: gate.started == 1)
        for post in posts:
            post.cancel()
        await until(lambda: service.pool.stats.running == 1)
        gate.open()
        await service.pool.join()
        assert (gate.started, service.pixels.in_use) == (1, 0)


@pytest.mark.asyncio
async def test_rejections_are_counted_by_their_reason(gate: Gate) -> None:
    async with served(workers=1, queue_size=0, max_uploads=1, timeout=0.1) as (service, client):
        slow = SlowUploads(service, client, bytes(1000))
        await slow.start(1)
        assert (await scrape(client))["thumbnail_uploads",] == 1
        assert (await scrape(client))["thumbnail_upload_bytes",] == 1000
        await client.post("/thumbnail", data=small())
        await slow.leave()
        await client.post("/thumbnail", data=b"")
        await client.post("/thumbnail", data=small())
        await client.post("/thumbnail", data=small())
        gate.open()
        await service.pool.join()
        await client.post("/thumbnail", data=b"Hello")

        counts = {
            name[1]: count for name, count in (await scrape(client)).items() if name[0] == "thumbnail_rejections_total"
        }
        expected = {"uploads": 1, "request": 1, "timeout": 1, "queue": 1, "photo": 1}
        assert counts == dict.fromkeys(REASONS, 0) | expected


@pytest.mark.asyncio
async def test_the_alerts_ask_only_for_metrics_that_there_are(client: Client) -> None:
    await client.get("/healthz")
    names = {name for name, *_ in await scrape(client)}
    asked = set(re.findall(r"\b(?:thumbnail|http|asyncpool)_\w+", ALERTS.read_text()))
    assert asked <= names
    assert "thumbnail_rejections_total" in asked


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_the_alerts_and_they_pass_their_tests() -> None:
    tests = ALERTS.with_name("alerts_test.yml")
    done = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def scrape(client: Client) -> dict[tuple[str, ...], float]:
    """What `/metrics` exports, by name and labels."""
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(await response.text())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_retry_after_is_the_time_that_the_jobs_ahead_will_take() -> None:
    async def main() -> None:
        async with WorkerPool(asyncio.sleep, workers=2) as pool:
            assert retry_after(pool.stats) == 1
            await pool.map([6.0, 8.0])
            for _ in range(5):
                await pool.submit(1.0)
            assert retry_after(pool.stats) == 18  # 5 jobs of 7 s on 2 workers: 17.5 s

    run_virtual(main)


@pytest.mark.asyncio
async def test_a_thumbnail_that_is_not_done_in_time_is_a_504_and_a_queued_one_leaves_the_queue(gate: Gate) -> None:
    async with served(timeout=0.05) as (service, client):
        first, second = [asyncio.create_task(client.post("/thumbnail", data=small())) for _ in range(2)]
        for answer in (await first, await second):
            assert (answer.status, await answer.text()) == (504, "the thumbnail was not ready within 0.05 s\n")
        stats = service.pool.stats
        assert (stats.queued, stats.running, stats.cancelled) == (0, 1, 1)  # a thread cannot be stopped
        gate.open()
        await service.pool.join()
        assert adds_up(service)


# -- clients that go away --


@pytest.mark.asyncio
async def test_a_queued_photo_leaves_the_queue_when_its_client_goes_away(gate: Gate) -> None:
    async with served() as (service, client):
        running = asyncio.create_task(client.post("/thumbnail", data=small()))
        await until(lambda: gate.started == 1)
        leaving = asyncio.create_task(client.post("/thumbnail", data=small()))
        await until(lambda: service.pool.stats.queued == 1)

        leaving.cancel()
        await until(lambda: service.answers[GONE] == 1)

        assert (service.pool.stats.queued, service.pool.stats.cancelled) == (0, 1)
        gate.open()
        assert (await running).status == 200
        assert gate.started == 1
        assert adds_up(service)


@pytest.mark.asyncio
async def test_the_request_of_a_client_that_goes_away_does_not_wait_for_its_running_job(gate: Gate) -> None:
    async with served() as (service, client):
        leaving = asyncio.create_task(client.post("/thumbnail", data=small()))
        await until(lambda: gate.started == 1)

        leaving.cancel()
        await until(lambda: service.answers[GONE] == 1)

        assert service.pool.stats.running == 1
        gate.open()
        await service.pool.join()
        assert adds_up(service)


@pytest.mark.asyncio
async def test_a_client_that_goes_away_while_it_sends_submits_nothing() -> None:
    async with served() as (service, client):
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"POST /thumbnail HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        await until(lambda: service.uploads.in_progress == 1)

        writer.close()
        await until(lambda: service.answers[GONE] == 1)

        assert await reader.read() == b""
        assert service.pool.stats.submitted == 0


# -- what is known of it --


@pytest.mark.asyncio
async def test_the_metrics_add_up_after_load() -> None:
    async with served(workers=2, queue_size=5) as (service, client):

        async def post(number: int) -> int:
            async with client.post("/thumbnail", data=small() if number % 10 else b"no photo") as response:
                await response.read()
                return response.status

        statuses = await asyncio.gather(*[post(number) for number in range(60)])
        samples = await scrape(client)

        assert set(statuses) <= {200, 415, 503}
        for status in set(statuses):
            assert samples["http_answers_total", str(status)] == statuses.count(status)
        done = statuses.count(200) + statuses.count(415)
        assert samples["asyncpool_jobs_submitted_total", "thumbnails"] == done
        assert {value for (name, *_), value in samples.items() if name == "asyncpool_jobs_ended_total"} == {done, 0}
        assert adds_up(service)


@pytest.mark.asyncio
async def test_the_dashboard_can_be_read_and_not_acted_on() -> None:
    async with served() as (service, client):
        async with client.get("/pools") as response:
            assert (response.status, response.url.path) == (200, "/pools/")
        async with client.get("/pools/api/state") as response:
            assert (await response.json())["now"][0][0]["name"] == "thumbnails"
        async with client.post("/pools/api/pools/0/pause", json={}) as response:
            assert response.status == 405
        assert not service.pool.is_paused


@pytest.mark.asyncio
async def test_an_open_dashboard_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "_CLOSE_TIMEOUT", 10 * GIVE_UP)
    stopped: list[str] = []
    service = ThumbnailService(workers=1)
    server = Server(
        service, host="127.0.0.1", port=0, reuse_port=False, lame_duck=0.0, drain_timeout=1.0, say=stopped.append
    )

    async def watch(address: str) -> None:
        async with ClientSession() as session, session.get(f"{address}/pools/api/events") as response:
            await response.content.readuntil(b"\n\n")
            server.stop("test")
            while await response.content.read(2**16):
                pass

    watching: list[asyncio.Task[None]] = []
    async with asyncio.timeout(GIVE_UP):
        await server.run(lambda address: watching.append(asyncio.create_task(watch(address))))
        await watching[0]
    assert (server.was_cut_short, service.answers[200]) == (False, 1)


@pytest.mark.asyncio
async def test_two_services_in_one_process_have_metrics_of_their_own(client: Client) -> None:
    async with served() as (_, other):
        await other.post("/thumbnail", data=small())
        async with client.get("/metrics") as mine, other.get("/metrics") as others:
            assert 'asyncpool_jobs_submitted_total{pool="thumbnails"} 0.0' in await mine.text()
            assert 'asyncpool_jobs_submitted_total{pool="thumbnails"} 1.0' in await others.text()


@pytest.mark.asyncio
async def test_healthz_is_200_while_photos_are_taken_and_503_when_the_service_stops() -> None:
    async with served() as (service, client):
        async with client.get("/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
            assert "Connection" not in response.headers
        service.is_draining = True
        async with client.get("/healthz") as response:
            assert (response.status, await response.text()) == (503, "draining\n")
            assert response.headers["Connection"] == "close"


@pytest.mark.asyncio
async def test_the_start_page_tells_how_to_use_it(client: Client) -> None:
    async with client.get("/") as response:
        assert f"http://{client.host}:{client.port}/thumbnail" in await response.text()


# -- stopping, in this process --


class Stopping:
    """A server in this process, which takes real signals."""

    def __init__(self, *, lame_duck: float = 0.1, **options: Any) -> None:
        self.service = ThumbnailService(**{"workers": 1, "queue_size": 5} | options)
        self.said: list[str] = []
        self.server = Server(
            self.service,
            host="127.0.0.1",
            port=0,
            reuse_port=False,
            lame_duck=lame_duck,
            drain_timeout=GIVE_UP,
            say=self.said.append,
        )

    async def __aenter__(self) -> Stopping:
        ready = asyncio.get_running_loop().create_future()
        self.ended = asyncio.create_task(self.server.run(ready.set_result))
        address = await ready
        self.port = int(address.rpartition(":")[2])
        self.session = aiohttp.ClientSession(address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        if not self.ended.done():
            self.ended.cancel()
            await asyncio.wait([self.ended])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def post(self) -> tuple[int, str | None]:
        async with self.session.post("/thumbnail", data=small()) as response:
            await response.read()
            return response.status, response.headers.get("Connection")


@pytest.mark.asyncio
async def test_a_signal_drains_and_everybody_is_answered(gate: Gate) -> None:
    async with Stopping() as running:
        accepted = [asyncio.create_task(running.post()) for _ in range(4)]
        await until(lambda: running.service.pool.stats.queued == 3)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: running.service.is_draining)
        accepted.append(asyncio.create_task(running.post()))  # a lame duck still flies
        await until(lambda: running.service.pool.state == "draining")
        with pytest.raises(aiohttp.ClientConnectorError):
            await running.post()
        gate.open()

        assert [await task for task in accepted] == [(200, "close")] * 5
        await running.ended
        assert running.service.answers == {200: 5}
        assert adds_up(running.service)
        assert running.server.summary() == (
            "5 requests: 5 answered (5 x 200), 0 abandoned by their clients",
            "5 jobs: 5 succeeded, 0 failed, 0 cancelled",
        )


@pytest.mark.asyncio
async def test_a_second_signal_cancels_what_is_queued_and_answers_it(gate: Gate) -> None:
    async with Stopping(lame_duck=GIVE_UP) as running:
        accepted = [asyncio.create_task(running.post()) for _ in range(4)]
        await until(lambda: running.service.pool.stats.queued == 3)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: running.service.is_draining)
        os.kill(os.getpid(), signal.SIGINT)  # at once: it is not the second
        await asyncio.sleep(0.5)
        assert running.service.pool.state == "open"
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: running.service.pool.state == "stopping")
        gate.open()

        answers = [await task for task in accepted]
        await running.ended
        assert sorted(answers) == [(200, "close")] + [(503, "close")] * 3
        assert adds_up(running.service)
        assert running.said[-1] == "SIGINT: cancelling"
        assert running.server.summary()[-1].endswith("3 cancelled; 3 accepted photos were not finished")


@pytest.mark.asyncio
async def test_an_upload_that_is_under_way_when_the_listener_closes_is_answered() -> None:
    async with Stopping() as running:
        never = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await never.wait()

        slow = asyncio.create_task(running.session.post("/thumbnail", data=chunks()))
        await until(lambda: running.service.uploads.in_progress == 1)
        running.server.stop("test")
        answer = await slow
        assert (answer.status, await answer.text()) == (503, "the service is stopping\n")
        assert (answer.headers["Connection"], answer.headers["Retry-After"]) == ("close", "1")
        answer.close()
        await running.ended


@pytest.mark.asyncio
async def test_the_rest_of_an_upload_that_is_refused_then_is_read_so_that_the_answer_is_not_lost() -> None:
    async with Stopping() as running:
        reader, writer = await running.connect()
        writer.write(b"POST /thumbnail HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n" + bytes(100_000))
        await until(lambda: running.service.uploads.in_progress == 1)
        running.server.stop("test")
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        for _ in range(4):
            await asyncio.sleep(0.02)
            writer.write(bytes(100_000))
            await writer.drain()
        assert (await reader.read()).endswith(b"the service is stopping\n")  # and no reset
        writer.close()
        await running.ended


@pytest.mark.asyncio
async def test_a_large_answer_is_sent_to_its_end_to_a_client_that_reads_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "_CLOSE_TIMEOUT", 10 * GIVE_UP)
    large = Random(1).randbytes(16_000_000)  # more than the buffers of the kernel take
    monkeypatch.setattr(service_module, "make_thumbnail", lambda *_: Encoded(data=large, width=1, height=1))
    monkeypatch.setattr(service_module, "pixels_to_decode", lambda *_: 1)
    async with Stopping() as running:
        reader, writer = await running.connect()
        writer.write(b"POST /thumbnail HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        await until(lambda: running.service.pool.stats.succeeded == 1)
        running.server.stop("test")
        await until(lambda: running.service.pool.state == "closed")
        await asyncio.sleep(0.1)
        assert running.service.answers.total() == 0

        async with asyncio.timeout(GIVE_UP):
            answer = await reader.read()
            await running.ended
        writer.close()
        assert answer.partition(b"\r\n\r\n")[2] == large


@pytest.mark.asyncio
async def test_an_idle_connection_is_closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "_CLOSE_TIMEOUT", 10 * GIVE_UP)
    async with Stopping(lame_duck=0.0) as running, asyncio.timeout(GIVE_UP):
        assert await running.post() == (200, None)
        reader, writer = await running.connect()
        running.server.stop("test")
        assert await reader.read() == b""
        writer.close()
        await running.ended


# -- the command --


@asynccontextmanager
async def command(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The command in a process of its own, and its address."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.match(r"Listening on (http://127\.0\.0\.1:\d+): ", line)
        assert found is not None, line
        yield process, found[1]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, list[str]]:
    async with asyncio.timeout(GIVE_UP):
        output, _ = await process.communicate()
    return process.returncode, output.decode().splitlines()


class Rolling:
    """What a load balancer and its clients do: all requests go to the first instance, until it says that it drains."""

    def __init__(self, first: str, second: str) -> None:
        self.up = first
        self.others = second
        self.first = first
        self.answers: dict[int, str] = {}

    async def watch(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self.first}/healthz") as response:
                    if response.status == 503:
                        self.up = self.others
                        return
                await asyncio.sleep(0.02)

    async def post(self, session: aiohttp.ClientSession, number: int) -> None:
        """Post a photo whose size no other has, until it was taken; no answer may be wrong, and no connection reset."""
        size = (400 + number % 16, 300 + number // 16)
        photo = await asyncio.to_thread(small, *size)
        to = self.up
        while True:
            try:
                async with session.post(f"{to}/thumbnail?size=999x999", data=photo) as response:
                    body = await response.read()
                    if response.status == 200:
                        assert await asyncio.to_thread(size_of, body) == size
                        assert number not in self.answers
                        self.answers[number] = to
                        return
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) >= 1
            except aiohttp.ClientConnectorError:
                pass
            to = self.up
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_no_request_is_lost_or_done_twice_while_an_instance_stops() -> None:
    requests, clients = 160, 12
    options = ("--port", "0", "--workers", "1", "--queue-size", "8", "--lame-duck", "0.3")
    async with command(*options) as (first, first_address), command(*options) as (second, second_address):
        rolling = Rolling(first_address, second_address)
        numbers = iter(range(requests))

        async def client() -> None:
            async with aiohttp.ClientSession() as session:  # with keep-alive
                for number in numbers:
                    await rolling.post(session, number)
                    if len(rolling.answers) == requests // 4:
                        first.send_signal(signal.SIGTERM)

        async with asyncio.TaskGroup() as group:
            group.create_task(rolling.watch())
            for _ in range(clients):
                group.create_task(client())
        second.send_signal(signal.SIGINT)
        ends = [await end_of(first), await end_of(second)]

    assert len(rolling.answers) == requests
    for address, (status, lines) in zip((first_address, second_address), ends, strict=True):
        answered_here = list(rolling.answers.values()).count(address)
        assert answered_here > 0
        assert status == 0
        assert len(lines) == 3
        figures = re.fullmatch(
            r"(\d+) requests: (\d+) answered \((\d+) x 200(?:, (\d+) x 503)?\), 0 abandoned by their clients\n"
            r"(\d+) jobs: (\d+) succeeded, 0 failed, 0 cancelled",
            "\n".join(lines[1:]),
        )
        assert figures is not None, lines
        came, answered, good, refused, submitted, succeeded = (int(figure or 0) for figure in figures.groups())
        assert came == answered == good + refused
        assert submitted == succeeded == answered_here


@pytest.mark.asyncio
async def test_a_second_sigterm_ends_the_command_with_130_and_answers_everybody() -> None:
    photo = small(3000, 3000, "PNG")  # takes a while to decode
    async with (
        command("--port", "0", "--workers", "1", "--lame-duck", "20") as (process, address),
        aiohttp.ClientSession(address) as session,
    ):
        posts = [asyncio.create_task(session.post("/thumbnail", data=photo)) for _ in range(20)]
        await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        process.terminate()
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"SIGTERM: draining")
        await asyncio.sleep(0.5)  # before that, it is not a second signal
        process.terminate()
        statuses = [(await post).status for post in posts]
        status, lines = await end_of(process)

    assert status == 130
    assert set(statuses) == {200, 503}
    assert lines[0] == "SIGTERM: cancelling"
    # If the photo in progress is done at once, the pool is closed, and logs it, before the program gets its report.
    assert any("20 requests: 20 answered" in line for line in lines[1:3])


@pytest.mark.asyncio
async def test_photos_that_are_not_finished_when_the_drain_timeout_is_over_are_answered_and_told_of() -> None:
    photo = small(3000, 3000, "PNG")  # takes a while to decode
    async with (
        command("--port", "0", "--workers", "1", "--lame-duck", "0", "--drain-timeout", "0.01") as (process, address),
        aiohttp.ClientSession(address) as session,
    ):
        posts = [asyncio.create_task(session.post("/thumbnail", data=photo)) for _ in range(20)]
        await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        process.send_signal(signal.SIGINT)
        statuses = [(await post).status for post in posts]
        status, lines = await end_of(process)

    assert status == 1
    assert set(statuses) == {200, 503}
    left = statuses.count(503)
    assert lines[-1].endswith(f"{left} cancelled; {left} accepted photos were not finished")


@pytest.mark.asyncio
async def test_a_service_whose_lines_nobody_reads_serves_and_drains_as_before() -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--port", "0", "--lame-duck", "0.3", cwd=ROOT, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    with open(reading) as lines:
        address = (await asyncio.to_thread(lines.readline)).split()[2].rstrip(":")
    async with aiohttp.ClientSession(address) as session:
        posts = [asyncio.create_task(session.post("/thumbnail", data=small(1000, 1000))) for _ in range(10)]
        await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        process.terminate()
        assert [(await post).status for post in posts] == [200] * 10
        _, errors = await process.communicate()

    assert (process.returncode, errors) == (1, b"")


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "--port", str(taken.getsockname()[1]), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        status, lines = await end_of(process)

    assert status == 1
    assert len(lines) == 1
    assert re.match(r"web_service: error: .*address already in use", lines[0])


@pytest.mark.asyncio
@pytest.mark.parametrize("loop", LOOPS)
async def test_the_demo_shows_what_the_service_does(loop: str) -> None:
    words = command_on(loop, "examples.web_service", "-W", "error")
    process = await asyncio.create_subprocess_exec(
        *words, "--demo", "--lame-duck", "0.1", cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    status, lines = await end_of(process)

    output = "\n".join(lines)
    assert status == 0, output
    for shown in ("200 320x240 JPEG", "415 not an image", "503 (Retry-After: 1)", "503 draining", "8 x 200"):
        assert shown in output
    assert lines[-1].endswith("succeeded, 0 failed, 0 cancelled")
    printed = {without_figures(line) for line in lines}
    assert sample(ROOT / "examples" / "web_service" / "README.md", "make service") - printed == set()
