"""The dashboard behind real servers: in an aiohttp application, by itself, in Starlette, and as plain ASGI."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from starlette.applications import Starlette
from starlette.routing import Mount

from asyncpool import WorkerPool, WrongLoop
from asyncpool.dashboard import dashboard, dashboard_asgi, serve_dashboard
from asyncpool.dashboard.assets import ASSETS
from tests import asgi
from tests.asgi import Answer
from tests.dashboard.tools import TOKEN
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
