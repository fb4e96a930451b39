"""The dashboard behind real servers: in an aiohttp application, by itself, in Starlette, and as plain ASGI."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from starlette.applications import Starlette
from starlette.routing import Mount

from asyncpool import WorkerPool, WrongLoop
from asyncpool.dashboard import dashboard, dashboard_asgi, messages, serve_dashboard
from asyncpool.dashboard import web as server_module
from asyncpool.dashboard.assets import ASSETS
from asyncpool.dashboard.live import LiveStream
from asyncpool.dashboard.web import Server
from tests import asgi
from tests.asgi import Answer
from tests.dashboard.tools import TOKEN, views_of
from tests.helpers import echo

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"Origin": "http://evil.com"}
HEADERS = {"X-Asyncpool-Token": TOKEN}


def served(**options: Any) -> dict[str, Any]:
    return {"token": TOKEN, "announce": None} | options


# -- A server of its own -----------------------------------------------------------------------------------------------


def test_the_address_has_the_port_and_a_random_token() -> None:
    async def main() -> None:
        lines: list[str] = []
        async with WorkerPool(echo, workers=1) as pool:
            first, second = serve_dashboard(pool, announce=lines.append), serve_dashboard(pool, announce=None)
            async with first, second:
                assert lines == [f"Dashboard: http://127.0.0.1:{first.port}/#token={first.token}"]
                assert first.token != second.token
                assert len(first.token) == 32
                async with ClientSession(f"http://127.0.0.1:{first.port}") as session:
                    for token, status in ((first.token, 200), (second.token, 401)):
                        async with session.get("/api/state", headers={"X-Asyncpool-Token": token}) as response:
                            assert response.status == status
                    async with session.get("/") as response:
                        assert response.status == 200
                        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
                        assert "default-src 'none'" in response.headers["Content-Security-Policy"]

    asyncio.run(main())


def test_the_address_is_printed_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with serve_dashboard(WorkerPool(echo, workers=1)) as served:
            assert capsys.readouterr() == ("", f"Dashboard: {served.url}\n")

    asyncio.run(main())


def test_the_end_of_the_block_ends_open_pages_at_once() -> None:
    async def main() -> None:
        async with ClientSession() as session:
            async with serve_dashboard(WorkerPool(echo, workers=1), **served()) as server:
                url = f"http://127.0.0.1:{server.port}/api/events"
                response = await session.get(url, headers=HEADERS)
                assert response.headers["Content-Type"] == "text/event-stream"
                assert (await response.content.readuntil(b"\n\n")).startswith(b"data: {")
            assert await response.content.read() is not None  # it has an end
            with pytest.raises(OSError):
                await session.get(url, headers=HEADERS)

    asyncio.run(main())


def test_an_action_travels() -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=1) as pool, serve_dashboard(pool, **served(actions=True)) as server:
            async with ClientSession(f"http://127.0.0.1:{server.port}", headers=HEADERS) as session:
                async with session.post("/api/pools/0/resize", json={"workers": 3}) as response:
                    assert (response.status, await response.json()) == (
                        200,
                        {"message": "The number of workers is now 3."},
                    )
                async with session.post("/api/pools/0/resize", data=b" " * 200_000) as response:
                    assert response.status == 400
                async with session.post(
                    "/api/pools/0/pause", json={}, headers={"Origin": "http://evil.com"}
                ) as response:
                    assert response.status == 403
                async with session.get("/api/state", headers={"Host": "evil.com"}) as response:
                    assert response.status == 403
            assert (pool.stats.target_workers, pool.is_paused) == (3, False)

    asyncio.run(main())


@pytest.mark.skipif(sys.platform == "darwin", reason="has only one address of its own")
def test_all_addresses_of_a_host_have_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        both = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        ]

        async def resolve(host: Any, port: int, **_: Any) -> Any:
            return [(*found[:4], (found[4][0], port)) for found in both]

        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        async with serve_dashboard(WorkerPool(echo, workers=1), host="machine.test", announce=None) as server:
            monkeypatch.undo()
            for address in ("127.0.0.1", "127.0.0.2"):
                _, writer = await asyncio.open_connection(address, server.port)
                writer.close()

    asyncio.run(main())


def test_a_body_that_is_not_encoded_as_its_header_says_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=1) as pool:
            app = web.Application()
            app.add_subapp("/pools", dashboard(pool, token=TOKEN, actions=True))
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            headers = HEADERS | {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            async with serve_dashboard(pool, **served(actions=True)) as server:
                for prefix, port in (("/pools", runner.addresses[0][1]), ("", server.port)):
                    path = f"http://127.0.0.1:{port}{prefix}/api/pools/0/pause"
                    async with ClientSession() as session, session.post(path, data=b"no gzip", headers=headers) as got:
                        assert got.status == 400, await got.text()
            await runner.cleanup()
            assert not pool.is_paused

    asyncio.run(main())
    assert [record for record in caplog.records if record.name == "asyncpool"] == []


# -- Clients that do not read ------------------------------------------------------------------------------------------


class Flood:
    """Has events without an end, for a client that does not read them."""

    headers = LiveStream.headers

    def __init__(self) -> None:
        self.is_closed = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: " + b"x" * 1_000_000 + b"\n\n"
        finally:
            self.is_closed = True

    def end(self) -> None: ...


@asynccontextmanager
async def flooding(flood: Flood) -> AsyncGenerator[Server]:
    """Serve a page to a client that does not read it."""
    views = views_of(WorkerPool(echo, workers=1))

    async def answer(request: object) -> Flood:
        return flood

    views.answer = answer
    server = Server(views, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", await server.start(), limit=1)
    writer.write(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readexactly(1)
    try:
        yield server
    finally:
        writer.close()
        await server.stop()


def test_a_client_that_does_not_read_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_MAX_SENDING", 0.05)

    async def main() -> None:
        flood = Flood()
        async with asyncio.timeout(60), flooding(flood):
            while not flood.is_closed:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_end_of_the_block_does_not_wait_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HALF_GRACE", 3600.0)

    async def main() -> None:
        flood = Flood()
        async with asyncio.timeout(60), flooding(flood) as server:
            await server.stop()
            assert flood.is_closed

    asyncio.run(main())


def test_an_asgi_client_that_does_not_read_is_disconnected() -> None:
    from asyncpool.testing import run

    async def main() -> None:
        app = dashboard_asgi(WorkerPool(echo, workers=1), token=TOKEN)

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if "body" in message:
                await asyncio.Event().wait()

        began = asyncio.get_running_loop().time()
        await app(scope_of("/api/events"), receive, send)
        assert asyncio.get_running_loop().time() - began == 30.0

    run(main)


def test_an_asgi_client_that_disconnects_in_its_body_gets_no_answer() -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=1) as pool:
            app = dashboard_asgi(pool, token=TOKEN, actions=True)
            incoming = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
            sent: list[Any] = []

            async def receive() -> Any:
                return incoming.pop(0)

            async def send(message: Any) -> None:
                sent.append(message)

            scope = asgi.scope_of("/api/pools/0/pause", method="POST", headers=headers_of(TOKEN))
            await app(scope, receive, send)
            assert (sent, incoming, pool.is_paused) == ([], [], False)

    asyncio.run(main())


def test_a_server_that_cannot_listen_leaves_nothing() -> None:
    async def main() -> None:
        async with serve_dashboard(WorkerPool(echo, workers=1), **served()) as server:
            other = serve_dashboard(WorkerPool(echo, workers=1), **served(port=server.port))
            with pytest.raises(OSError):
                async with other:
                    raise AssertionError
            with pytest.raises(RuntimeError, match="is in use"):
                await server.__aenter__()
        async with other:  # the port is free now
            pass
        async with other:
            pass

    asyncio.run(main())


def test_a_cancelled_stop_stops_all_the_same() -> None:
    async def main() -> None:
        pool = WorkerPool(echo, workers=1)

        async def serve() -> None:
            async with serve_dashboard(pool, **served()):
                await asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(task.cancel)

        task = asyncio.create_task(serve())
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1
        loop: Any = asyncio.get_running_loop()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # no samples are taken

    asyncio.run(main())


def test_a_pool_of_another_loop_is_refused() -> None:
    async def start() -> WorkerPool[Any, Any]:
        pool: WorkerPool[Any, Any] = WorkerPool(echo, workers=1, name="far")
        await pool.start()
        return pool

    async def here(pool: WorkerPool[Any, Any]) -> None:
        with pytest.raises(WrongLoop, match="pool 'far' runs on another event loop"):
            async with serve_dashboard(pool, **served()):
                raise AssertionError

    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(start())
    asyncio.run(here(pool))
    loop.run_until_complete(pool.close())
    loop.close()


# -- In an application -------------------------------------------------------------------------------------------------


def test_it_is_mounted_in_an_aiohttp_application() -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=1, name="here") as pool:
            app = web.Application(client_max_size=10)  # the limit of the application is not that of the dashboard
            app.add_subapp("/pools", dashboard(pool, token=TOKEN, actions=True))
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}", headers=HEADERS) as session:
                for path in ("/pools/", "/pools", "/pools/script.js", "/pools/style.css"):
                    async with session.get(path) as response:
                        assert response.status == 200, path
                async with session.get("/pools?x=1") as response:
                    assert response.url.path == "/pools/"
                async with session.get("/pools/api/state") as response:
                    assert (await response.json())["now"][0][0]["name"] == "here"
                async with session.post("/pools/api/pools/0/pause", json={}) as response:
                    assert response.status == 200
                async with session.get("/pools/api/events") as response:
                    await response.content.readuntil(b"\n\n")
                    await runner.cleanup()  # does not wait for the page

    asyncio.run(main())


def test_it_is_mounted_in_starlette() -> None:
    async def main() -> None:
        async with WorkerPool(echo, workers=1, name="here") as pool:
            app = Starlette(routes=[Mount("/pools", dashboard_asgi(pool, token=TOKEN, actions=True))])
            status, _, body = await call(app, "/pools/")
            assert (status, b"<!doctype html>" in body) == (200, True)
            status, _, body = await call(app, "/pools/api/state")
            assert json.loads(body)["now"][0][0]["name"] == "here"
            status, _, body = await call(app, "/pools")
            assert status in (307, 308)
            status, _, _ = await call(app, "/pools/api/state", token="")
            assert status == 401
            status, _, body = await call(app, "/pools/api/pools/0/resize", method="POST", body=b'{"workers": 4}')
            assert (status, pool.stats.target_workers) == (200, 4)
            status, _, body = await call(app, "/pools/api/pools/0/resize", method="POST", body=b" " * 200_000)
            assert status == 400

    asyncio.run(main())


# -- ASGI --------------------------------------------------------------------------------------------------------------


async def call(
    app: Any, path: str, *, method: str = "GET", body: bytes = b"", token: str = TOKEN, root: str = ""
) -> Answer:
    return await asgi.call(app, path, method=method, body=body, headers=headers_of(token), root=root)


def scope_of(path: str, token: str = TOKEN) -> dict[str, Any]:
    return asgi.scope_of(path, headers=headers_of(token))


def headers_of(token: str) -> dict[str, str]:
    return {"x-asyncpool-token": token, "content-type": "application/json"}


@pytest.mark.parametrize(("path", "root"), [("/", ""), ("/pools/", "/pools"), ("/", "/pools")])
def test_asgi_paths_can_have_that_of_the_mount_or_not(path: str, root: str) -> None:
    status, headers, _ = asyncio.run(call(dashboard_asgi(WorkerPool(echo, workers=1)), path, root=root))
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_an_asgi_stream_ends_when_the_client_disconnects() -> None:
    async def main() -> None:
        app = dashboard_asgi(WorkerPool(echo, workers=1), token=TOKEN)
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        sent: list[Any] = []
        first = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 2:
                first.set()

        incoming.put_nowait({"type": "http.request", "body": b""})
        serving = asyncio.create_task(app(scope_of("/api/events"), incoming.get, send))
        await first.wait()
        assert dict(sent[0]["headers"])[b"content-type"] == b"text/event-stream"
        assert sent[1]["body"].startswith(b"data: {")
        incoming.put_nowait({"type": "http.disconnect"})
        await serving
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_an_asgi_stream_ends_by_itself_because_servers_wait_for_it() -> None:
    from asyncpool.testing import run

    async def main() -> None:
        app = dashboard_asgi(WorkerPool(echo, workers=1), token=TOKEN)
        began = asyncio.get_running_loop().time()
        status, _, body = await call(app, "/api/events")
        assert (status, body.count(b"data: ")) == (200, 11)
        assert asyncio.get_running_loop().time() - began == 10.0

    run(main)


def test_lifespan_takes_samples_and_ends_streams() -> None:
    async def main() -> None:
        app = dashboard_asgi(WorkerPool(echo, workers=1), token=TOKEN)
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        sent: asyncio.Queue[Any] = asyncio.Queue()
        life = asyncio.create_task(app({"type": "lifespan"}, incoming.get, sent.put))
        incoming.put_nowait({"type": "lifespan.startup"})
        assert await sent.get() == {"type": "lifespan.startup.complete"}
        streaming = asyncio.create_task(call(app, "/api/events"))
        await asyncio.sleep(0.05)
        incoming.put_nowait({"type": "lifespan.shutdown"})
        status, _, body = await streaming
        assert (status, body.count(b"data: ")) == (200, 1)
        await life
        assert await sent.get() == {"type": "lifespan.shutdown.complete"}

    asyncio.run(main())


def test_a_websocket_is_closed() -> None:
    async def main() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await dashboard_asgi(WorkerPool(echo, workers=1))({"type": "websocket"}, asyncio.Event().wait, send)
        assert sent == [{"type": "websocket.close", "code": 1000}]

    asyncio.run(main())


# -- The package -------------------------------------------------------------------------------------------------------


def run_python(program: str) -> str:
    """Run a program in another interpreter, and return what it prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout


def test_without_aiohttp_only_asgi_works_and_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["aiohttp"] = None
from asyncpool import WorkerPool
from asyncpool.dashboard import dashboard, dashboard_asgi, serve_dashboard
async def echo(job): return job
pool = WorkerPool(echo, workers=1)
dashboard_asgi(pool)
for make in (dashboard, serve_dashboard):
    try:
        make(pool)
    except ModuleNotFoundError as error:
        print(error)
"""
    done = run_python(program)
    assert done.count("python3 -m pip install 'asyncpool-toolkit[dashboard]'") == 2


def test_importing_asyncpool_does_not_import_the_dashboard() -> None:
    program = "import asyncpool, sys; print([name for name in sys.modules if 'dashboard' in name])"
    done = run_python(program)
    assert done.strip() == "[]"


def test_the_page_is_small_and_uses_nothing_from_elsewhere() -> None:
    assert sum(len(asset.body) for asset in ASSETS.values()) < 50_000
    for name, asset in ASSETS.items():
        text = asset.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, name
        assert "https:" not in text, name
        assert "//" not in text.replace("// ", ""), name
    page = ASSETS["index.html"].body.decode()
    assert "<style" not in page
    assert "style=" not in page
    assert " on" not in "".join(part.split(">")[0] for part in page.split("<")[1:])
    script = ASSETS["script.js"].body.decode()
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert unsafe not in script


@pytest.mark.slow
def test_the_wheel_has_the_files_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("hatchling.build")
    program = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    done = run_python(program)
    with zipfile.ZipFile(tmp_path / done.split()[-1]) as wheel:
        assert {f"asyncpool/dashboard/static/{name}" for name in ASSETS} <= set(wheel.namelist())
