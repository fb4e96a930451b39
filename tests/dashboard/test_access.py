"""Who can read and change something through a dashboard, and who cannot."""

from __future__ import annotations

from typing import Any

import pytest

from asyncpool import DeadLetters, WorkerPool
from asyncpool.dashboard import dashboard, dashboard_asgi, serve_dashboard
from asyncpool.dashboard.messages import Request, Response
from asyncpool.dashboard.views import Views
from tests.dashboard.tools import ACTIONS, TOKEN, acting_views_of, ask, value_of, views_of
from tests.helpers import echo, virtual

DATA = ("/api/state", "/api/pools/0/letters", "/api/pools/0/queued")


def pool_of(**options: Any) -> WorkerPool[Any, Any]:
    return WorkerPool(echo, workers=1, dead_letters=DeadLetters(), **options)


async def refusals(views: Views, **headers: str) -> set[int]:
    """The statuses of all requests for data and for actions."""
    found = {(await ask(views, path, **headers)).status for path in DATA}
    for action in ACTIONS:
        found.add((await ask(views, f"/api/pools/0/{action}", method="POST", **headers)).status)
    return found


# -- The token ---------------------------------------------------------------------------------------------------------


@virtual
async def test_without_the_token_nothing_is_read_or_changed() -> None:
    async with pool_of() as pool:
        views = acting_views_of(pool)
        for token in ("", "x" * 30, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 20, "\ud800" * 20):
            assert await refusals(views, x_asyncpool_token=token) == {401}
        assert pool.state == "open"
        assert not pool.is_paused
        assert (await ask(views, "/api/state")).status == 200


@virtual
async def test_the_body_of_a_request_that_is_not_permitted_is_not_read() -> None:
    reads: list[str] = []

    async def read() -> bytes:
        reads.append("read")
        return b"{}"

    async with WorkerPool(echo, workers=1) as pool:
        views = acting_views_of(pool)
        headers = {"host": "localhost", "content-type": "application/json", "x-asyncpool-token": "wrong" * 4}
        for token, status in (("wrong" * 4, 401), (TOKEN, 200)):
            request = Request(
                method="POST", path="/api/pools/0/pause", headers={**headers, "x-asyncpool-token": token}, read=read
            )
            response = await views.answer(request)
            assert isinstance(response, Response)
            assert (response.status, reads) == (status, ["read"] * (status == 200))


@virtual
async def test_a_page_of_an_earlier_run_cannot_act_on_the_jobs_of_this_one() -> None:
    async with WorkerPool(echo, workers=1) as pool:
        views = acting_views_of(pool)
        for run, status in (("0badcafe", 409), (views.live.run, 200)):
            response = await ask(views, "/api/pools/0/pause", method="POST", x_asyncpool_run=run)
            assert (response.status, pool.is_paused) == (status, status == 200)
            response = await ask(views, "/api/pools/0/queued", x_asyncpool_run=run)
            assert response.status == status


@virtual
async def test_the_token_is_not_taken_from_the_query_or_a_cookie() -> None:
    # A query is logged, and sent on as the referrer; a cookie is sent with the requests of every page.
    views = acting_views_of(pool_of())
    response = await ask(views, f"/api/state?token={TOKEN}", token=None, cookie=f"token={TOKEN}")
    assert response.status == 401


@virtual
async def test_the_page_itself_needs_no_token_and_has_no_data() -> None:
    views = acting_views_of(pool_of(name="secret-name"))
    for path in ("/", "/style.css", "/script.js", "/icon.svg", "/index.html"):
        response = await ask(views, path, token=None)
        assert response.status == 200
        assert b"secret-name" not in response.body
        assert TOKEN.encode() not in response.body


@virtual
async def test_a_dashboard_without_a_token_can_be_read_but_cannot_have_actions() -> None:
    assert (await ask(views_of(pool_of()), "/api/state", token=None)).status == 200
    for make in (dashboard, dashboard_asgi):
        with pytest.raises(ValueError, match="actions=True needs a token"):
            make(pool_of(), actions=True)


@pytest.mark.parametrize("token", ["short", "x" * 15, "spaces are fine but not é", "a" * 20 + "\n"])
def test_a_token_that_is_short_or_no_header_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token must have at least 16 printable ASCII characters"):
        views_of(pool_of(), token=token)


# -- Where a request comes from ----------------------------------------------------------------------------------------


@virtual
async def test_only_addresses_localhost_and_allowed_names_are_hosts() -> None:
    views = views_of(pool_of(), allowed_hosts=["Pools.Example.com"])
    allowed = ["localhost", "localhost:1", "a.localhost", "127.0.0.1:8080", "10.1.2.3", "[::1]", "[::1]:80"]
    allowed += ["pools.example.com", "POOLS.example.com:443", "pools.example.com."]
    for host in allowed:
        assert (await ask(views, "/api/state", host=host)).status == 200, host
        assert (await ask(views, "/", host=host)).status == 200, host
    # The name of an attacker that points to this machine; and what is no host at all.
    refused = ["", "evil.com", "evil.com:8080", "pools.example.com.evil.com", "xlocalhost", "localhost.evil.com"]
    refused += ["127.0.0.1.evil.com", "[::1", "localhost, evil.com", "evil.com@x", "\x00", "127.0.0.1\t.evil.com"]
    for host in refused:
        for path in ("/api/state", "/", "/api/events", "/nothing"):
            assert (await ask(views, path, host=host)).status == 403, host


@virtual
async def test_a_page_of_another_origin_cannot_use_the_dashboard() -> None:
    async with pool_of() as pool:
        views = acting_views_of(pool)
        assert await refusals(views, sec_fetch_site="cross-site") == {403}
        assert await refusals(views, sec_fetch_site="same-site") == {403}
        for origin in ("http://evil.com", "null", "http://localhost:9", "http://localhost.evil.com:8080", "http://["):
            assert await refusals(views, origin=origin) == {403}, origin
        assert not pool.is_paused
        # Only an address that was typed in has this, and nobody types in an action.
        assert (await ask(views, "/api/state", sec_fetch_site="none")).status == 200
        assert (await ask(views, "/api/pools/0/pause", method="POST", sec_fetch_site="none")).status == 403
        # Programs send neither.
        assert (await ask(views, "/api/pools/0/pause", method="POST", sec_fetch_site="", origin="")).status == 200


@virtual
async def test_a_form_cannot_act() -> None:
    views = acting_views_of(pool_of())
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = await ask(views, "/api/pools/0/pause", method="POST", content_type=kind)
        assert response.status == 400
        assert "Content-Type" in value_of(response)["error"]
    response = await ask(views, "/api/pools/0/pause", method="POST", content_type="application/json; charset=utf-8")
    assert response.status == 200


# -- Methods and routes ------------------------------------------------------------------------------------------------


@virtual
async def test_get_changes_nothing() -> None:
    async with pool_of() as pool:
        views = acting_views_of(pool)
        for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            for action in ACTIONS:
                response = await ask(views, f"/api/pools/0/{action}", method=method)
                assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert (pool.state, pool.is_paused) == ("open", False)


@virtual
async def test_without_actions_no_route_changes_anything() -> None:
    async with pool_of() as pool:
        views = views_of(pool, token=TOKEN)
        for action in (*ACTIONS, "letters", "queued", "nothing"):
            response = await ask(views, f"/api/pools/0/{action}", method="POST", json_body={"workers": 5, "all": True})
            assert response.status == 405, action
        for action in ACTIONS:
            assert (await ask(views, f"/api/pools/0/{action}")).status == 404
        assert (pool.state, pool.is_paused, pool.stats.target_workers) == ("open", False, 1)


@virtual
async def test_unknown_paths_are_not_found() -> None:
    views = acting_views_of(pool_of())
    for path in (
        "/nothing",
        "/../secrets",
        "/static/script.js",
        "/api/",
        "/api/pools/1/letters",
        "/api/pools/-1/letters",
    ):
        assert (await ask(views, path)).status == 404, path
    for path in ("/api/pools/1/pause", "/api/pools/0/explode", "/api/pools/0/pause/", "/api/pools/\u0660/pause"):
        assert (await ask(views, path, method="POST")).status == 404, path
    assert (await ask(views, "/", method="POST")).status == 405


@virtual
async def test_every_response_has_the_security_headers() -> None:
    views = acting_views_of(pool_of())
    for path in ("/", "/script.js", "/api/state", "/api/nothing", "/nothing"):
        headers = (await ask(views, path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]


@virtual
async def test_head_has_no_body() -> None:
    response = await ask(views_of(pool_of()), "/", method="HEAD")
    assert (response.status, response.body) == (200, b"")


@virtual
async def test_a_place_without_a_slash_leads_to_the_page_and_nowhere_else() -> None:
    views = views_of(pool_of())
    for path, location in (
        ("/pools", "./pools/"),
        ("/a/pools", "./pools/"),
        ("//evil.com", "./evil.com/"),
        ("/x:y", "./x%3Ay/"),
    ):
        response = await views.answer(Request(method="GET", path="", full_path=path, headers={"host": "localhost"}))
        assert isinstance(response, Response)
        assert (response.status, response.headers["Location"]) == (308, location)


# -- Arguments ---------------------------------------------------------------------------------------------------------


def test_arguments_are_checked() -> None:
    pool = pool_of()
    bad: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "needs at least one WorkerPool", dashboard),
        (TypeError, "shows WorkerPools, got 3", lambda: dashboard(3)),
        (TypeError, "journals must be Journals, got 3", lambda: dashboard(pool, journals=[3])),
        (TypeError, "journals must be a sequence", lambda: dashboard(pool, journals=3)),
        (TypeError, "actions must be a bool, got 1", lambda: dashboard(pool, actions=1)),
        (TypeError, "title must be a str", lambda: dashboard(pool, title=1)),
        (TypeError, "token must be a str, got bytes", lambda: dashboard(pool, token=b"x" * 20)),
        (TypeError, "allowed_hosts must be a sequence", lambda: dashboard(pool, allowed_hosts="a.com")),
        (TypeError, "allowed_hosts must have names", lambda: dashboard(pool, allowed_hosts=[1])),
        (ValueError, "without scheme", lambda: dashboard(pool, allowed_hosts=["https://a.com"])),
        (ValueError, "without scheme, port or wildcard", lambda: dashboard(pool, allowed_hosts=["*.a.com"])),
        (ValueError, "port must be >= 0", lambda: serve_dashboard(pool, port=-1)),
        (ValueError, "port must be <= 65535", lambda: serve_dashboard(pool, port=70000)),
        (TypeError, "host must be a str", lambda: serve_dashboard(pool, host=None)),
        (TypeError, "announce must be callable", lambda: serve_dashboard(pool, announce=3)),
    ]
    for kind, message, make in bad:
        with pytest.raises(kind, match=message):
            make()
