"""Downloads are limited in size and time, and every failure is a sentence."""

from __future__ import annotations

import asyncio
import gzip
import socket
import traceback
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from aiohttp import web

from examples.image_service.download import Downloads
from examples.image_service.errors import BadUrl, DownloadFailed, DownloadTimedOut, DownloadTooLarge, ServerBusy

if TYPE_CHECKING:
    from conftest import Web

pytestmark = pytest.mark.asyncio

LIMIT = 100_000


@pytest_asyncio.fixture
async def downloads() -> AsyncIterator[Downloads]:
    async with Downloads(connections=4, timeout=0.3, max_bytes=LIMIT) as downloads:
        yield downloads


async def test_the_whole_body_is_returned_rewound(site: Web, downloads: Downloads) -> None:
    url = site.serve("/a", b"body")

    assert (await downloads.fetch(url)).read() == b"body"


async def test_a_file_as_large_as_the_limit_is_read(site: Web, downloads: Downloads) -> None:
    url = site.serve("/a", bytes(LIMIT))

    assert len((await downloads.fetch(url)).read()) == LIMIT


async def test_a_file_that_is_said_to_be_larger_is_not_read(site: Web, downloads: Downloads) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(LIMIT + 1)})
        await response.prepare(request)
        await site.never.wait()
        return response

    site.replies["/large"] = reply

    with pytest.raises(DownloadTooLarge, match=r"^download failed: the file is larger than 0.0954 MB$"):
        await downloads.fetch(f"{site.base}/large")


async def test_an_endless_body_of_unknown_length_is_cut_at_the_limit(site: Web, downloads: Downloads) -> None:
    sent = 0

    async def reply(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1000))
            sent += 1000

    site.replies["/endless"] = reply

    with pytest.raises(DownloadTooLarge):
        await downloads.fetch(f"{site.base}/endless")
    assert sent < 100 * LIMIT


async def test_a_small_body_that_unpacks_to_a_large_one_is_cut_at_the_limit(site: Web, downloads: Downloads) -> None:
    packed = gzip.compress(bytes(50 * LIMIT))
    assert len(packed) < LIMIT

    async def reply(request: web.Request) -> web.StreamResponse:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    site.replies["/packed"] = reply

    with pytest.raises(DownloadTooLarge):
        await downloads.fetch(f"{site.base}/packed")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (404, "download failed: the server responded with 404 Not Found"),
        (500, "download failed: the server responded with 500 Internal Server Error"),
        (204, "download failed: the server responded with 204 No Content"),
        (799, "download failed: the server responded with 799"),
    ],
)
async def test_any_answer_but_200_fails_with_its_status(
    site: Web, downloads: Downloads, status: int, says: str
) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, reason="What A Server Says")

    site.replies["/a"] = reply

    with pytest.raises(DownloadFailed) as caught:
        await downloads.fetch(f"{site.base}/a")
    assert str(caught.value) == says
    assert caught.value.status == status


@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_is_busy_says_for_how_long(site: Web, downloads: Downloads, status: int) -> None:
    in_100_s = datetime.now(UTC) + timedelta(seconds=100)
    headers = {"/none": None, "/seconds": "7", "/date": format_datetime(in_100_s, usegmt=True), "/nonsense": "soon"}

    async def reply(request: web.Request) -> web.StreamResponse:
        header = headers[request.path]
        return web.Response(status=status, headers={} if header is None else {"Retry-After": header})

    site.replies |= dict.fromkeys(headers, reply)

    said = {}
    for path in headers:
        with pytest.raises(ServerBusy) as caught:
            await downloads.fetch(site.base + path)
        assert caught.value.status == status
        said[path] = caught.value.retry_after
    assert 50 < said.pop("/date") <= 100
    assert said == {"/none": 0.0, "/seconds": 7.0, "/nonsense": 0.0}


@pytest.mark.parametrize(
    ("status", "is_temporary"), [(404, False), (403, False), (408, True), (500, True), (502, True)]
)
async def test_only_a_status_that_can_change_is_temporary(
    site: Web, downloads: Downloads, status: int, is_temporary: bool
) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    site.replies["/a"] = reply

    with pytest.raises(DownloadFailed) as caught:
        await downloads.fetch(f"{site.base}/a")
    assert caught.value.is_temporary == is_temporary


async def test_connections_are_used_again_also_after_an_error(site: Web) -> None:
    connections = set()  # holds them, so that no two have the same id

    async def reply(request: web.Request) -> web.StreamResponse:
        connections.add(request.protocol)
        return web.Response(status=200 if request.path == "/good" else 503, text="x" * 2000)

    site.replies |= {"/good": reply, "/busy": reply}
    async with Downloads(connections=3, timeout=10, max_bytes=LIMIT) as downloads:

        async def fetch(number: int) -> None:
            with suppress(ServerBusy):
                await downloads.fetch(site.base + ("/busy" if number % 3 else "/good"))

        await asyncio.gather(*map(fetch, range(60)))
    assert len(connections) <= 3


async def test_a_body_that_stalls_halfway_times_out(site: Web, downloads: Downloads) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(bytes(500))
        await site.never.wait()
        return response

    site.replies["/stalled"] = reply

    with pytest.raises(DownloadTimedOut, match=r"^download failed: timed out after 0.3 s$"):
        await downloads.fetch(f"{site.base}/stalled")


async def test_a_server_that_never_answers_times_out(site: Web, downloads: Downloads) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        await site.never.wait()
        return web.Response()

    site.replies["/silent"] = reply

    with pytest.raises(DownloadTimedOut):
        await downloads.fetch(f"{site.base}/silent")


async def test_a_connection_that_breaks_off_is_told_as_that(site: Web, downloads: Downloads) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(bytes(500))
        assert request.transport is not None
        request.transport.close()
        return response

    site.replies["/broken"] = reply

    with pytest.raises(DownloadFailed, match=r"^download failed: the connection was lost$") as caught:
        await downloads.fetch(f"{site.base}/broken")
    assert caught.value.is_temporary


async def test_a_port_where_nobody_listens_is_told_as_that(downloads: Downloads) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    with pytest.raises(DownloadFailed, match=rf"^download failed: cannot connect to 127.0.0.1:{port} ") as caught:
        await downloads.fetch(f"http://127.0.0.1:{port}/a.jpg")
    assert caught.value.is_temporary


async def test_redirects_are_followed(site: Web, downloads: Downloads) -> None:
    site.serve("/there", b"body")

    async def reply(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/there")

    site.replies["/here"] = reply

    assert (await downloads.fetch(f"{site.base}/here")).read() == b"body"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/a.jpg", "http://"])
async def test_a_redirect_out_of_the_web_is_not_followed(site: Web, downloads: Downloads, target: str) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": target})

    site.replies["/here"] = reply

    with pytest.raises(DownloadFailed, match="redirected to something that is not an http or https URL"):
        await downloads.fetch(f"{site.base}/here")


async def test_redirects_that_go_round_in_circles_end(site: Web, downloads: Downloads) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/here")

    site.replies["/here"] = reply

    with pytest.raises(DownloadFailed, match=r"^download failed: too many redirects$") as caught:
        await downloads.fetch(f"{site.base}/here")
    assert not caught.value.is_temporary


@pytest.mark.parametrize("path", ["/missing", "/broken", "/circle", "/away"])
async def test_the_log_of_a_failed_download_has_no_password_in_it(site: Web, downloads: Downloads, path: str) -> None:
    async def missing(request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    async def broken(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def redirect(request: web.Request) -> web.StreamResponse:
        target = "ftp://user:SECRET@host/" if request.path == "/away" else "/circle?token=SECRET"
        return web.Response(status=302, headers={"Location": target})

    site.replies |= {"/missing": missing, "/broken": broken, "/circle": redirect, "/away": redirect}
    url = site.base.replace("//", "//user:SECRET@") + path + "?token=SECRET"

    with pytest.raises(DownloadFailed) as caught:
        await downloads.fetch(url)

    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "img001.jpg",
        "//example.com/a.jpg",
        "ftp://example.com/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://",
        "http:///a.jpg",
        "http://[::1/a.jpg",
        "http://example.com:99999/a.jpg",
        "http://ex\udc80mple.com/a.jpg",
    ],
)
async def test_what_is_no_web_address_is_refused_without_asking_anybody(downloads: Downloads, url: str) -> None:
    with pytest.raises(BadUrl, match=r"^not an http or https URL$"):
        await downloads.fetch(url)


@pytest.mark.parametrize(("option", "value"), [("timeout", 0), ("timeout", float("nan")), ("max_bytes", 0)])
async def test_limits_that_make_no_sense_are_refused(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        Downloads(**{"connections": 1, "timeout": 1, "max_bytes": 1} | {option: value})  # type: ignore[arg-type]
