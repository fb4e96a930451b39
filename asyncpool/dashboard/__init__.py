"""A page that shows what the pools of a process do, and replays what failed (extra `dashboard`).

    app.add_subapp("/pools", dashboard(pool))           # in an aiohttp application
    app.mount("/pools", dashboard_asgi(pool))           # in Starlette or FastAPI; needs no aiohttp

    async with serve_dashboard(pool):                   # beside any program; prints its address
        ...

docs/dashboard.md describes the page and its protection.
"""

from asyncpool.dashboard.asgi import DashboardASGI, dashboard_asgi
from asyncpool.dashboard.serving import dashboard, serve_dashboard

__all__ = ["DashboardASGI", "dashboard", "dashboard_asgi", "serve_dashboard"]
