"""A pool in an ASGI application: background jobs, 503 when the pool is full, and a stop that loses no job.

    python -m examples.asgi_service                                                  on http://127.0.0.1:8000
    uvicorn examples.asgi_service:app --workers 2
    gunicorn examples.asgi_service:app -k uvicorn_worker.UvicornWorker --workers 2

    curl -X POST 'localhost:8000/jobs?seconds=5'      202, with the address of the job
    curl localhost:8000/jobs/ID                       its status
    curl localhost:8000/jobs/ID/result                its result, as soon as it is there
    curl -X POST 'localhost:8000/run?seconds=0.5'     submits a job and responds with its result

/pools/ is the dashboard, /metrics/ is for Prometheus, and /healthz for load balancers. The framework is Starlette.
FastAPI is based on it, and takes the same lifespan, exception handlers and mounted applications. docs/services.md
describes what happens on SIGTERM.
"""

from __future__ import annotations

import sys

from examples.command_line import OK, USAGE, Parser, positive, starting, whole

with starting("asgi_service"):
    import argparse
    import asyncio
    import math
    import os
    import uuid
    from collections.abc import AsyncGenerator, Sequence
    from contextlib import asynccontextmanager

    from prometheus_client import CollectorRegistry, make_asgi_app
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    from asyncpool import (
        DeadLetters,
        JobCancelled,
        JobHandle,
        JobTimeout,
        PoolClosed,
        QueueFull,
        WorkerPool,
        current_job,
        drain_on_signal,
    )
    from asyncpool.dashboard import dashboard_asgi
    from asyncpool.prometheus import PoolCollector

__all__ = ["Service", "app", "main"]

_GRACE = 5.0
"""How many seconds cancelled jobs have to stop."""
_KEPT = 1_000
"""The number of finished jobs whose results can still be fetched."""


def drain_timeout() -> float:
    """Return the seconds that accepted jobs have after SIGTERM: the environment variable `DRAIN_TIMEOUT`, or 20.

    Together with the grace, this must be less than the time after which the process is killed: 30 seconds in gunicorn
    and Kubernetes, 10 in Docker.
    """
    try:
        return positive(86_400)(os.environ.get("DRAIN_TIMEOUT", "20"))
    except argparse.ArgumentTypeError as error:
        print(f"asgi_service: error: DRAIN_TIMEOUT {error}", file=sys.stderr)
        sys.exit(USAGE)


async def work(seconds: float) -> str:
    """Do a job: a handler that stands for a slow backend."""
    await asyncio.sleep(seconds)
    return f"took {seconds:g} s on worker {current_job().worker}"


class Service:
    """The pool of one process, and the endpoints that use it."""

    def __init__(self, *, drain_timeout: float) -> None:
        self._drain_timeout = drain_timeout
        # A background job has no caller that sees its failure, so dead letters keep it.
        letters: DeadLetters[float] = DeadLetters()
        self.pool = WorkerPool(work, workers=4, queue_size=20, timeout=10.0, dead_letters=letters, name="jobs")
        self.jobs: dict[str, JobHandle[float, str]] = {}
        """The background jobs of this process, in the order of their requests."""

    def create_app(self) -> Starlette:
        """Return the application. It can be started once, like its pool."""
        registry = CollectorRegistry()
        registry.register(PoolCollector(self.pool))
        return Starlette(
            lifespan=self.lifespan,
            routes=[
                Route("/jobs", self.submit, methods=["POST"]),
                Route("/jobs/{id}", self.status),
                Route("/jobs/{id}/result", self.result),
                Route("/run", self.run, methods=["POST"]),
                Route("/healthz", self.health),
                Mount("/pools", dashboard_asgi(self.pool)),
                Mount("/metrics", make_asgi_app(registry)),
            ],
            exception_handlers={
                QueueFull: _unavailable,
                PoolClosed: _unavailable,
                JobCancelled: _unavailable,  # the pool was closed, and the job was not done within `drain_timeout`
                JobTimeout: _timed_out,
            },
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        """Open the pool before the first request, and drain it after the last one."""
        async with self.pool:
            with drain_on_signal(self.pool, drain_timeout=self._drain_timeout, grace=_GRACE):
                yield
                # Without a signal too: servers can stop a process after a number of requests.
                await self.pool.close(drain_timeout=self._drain_timeout, grace=_GRACE)

    async def submit(self, request: Request) -> JSONResponse:
        """Start a background job, or respond with 503 if the pool has no room for it."""
        handle = self.pool.submit_nowait(_seconds(request))
        finished = [id for id, earlier in self.jobs.items() if earlier.done()]
        for id in finished[:-_KEPT]:
            del self.jobs[id]
        id = uuid.uuid4().hex  # not the number of the job, which the next process counts from 1 again
        self.jobs[id] = handle
        address = f"/jobs/{id}"
        return JSONResponse({"job": address, "result": f"{address}/result"}, 202, {"Location": address})

    async def status(self, request: Request) -> JSONResponse:
        """Respond with the status of a background job."""
        handle = self._job(request)
        if handle.done():
            status = type(await handle.outcome()).__name__.lower()
        elif any(job.id == handle.id for job in self.pool.running()):
            status = "running"
        else:
            status = "waiting"
        return JSONResponse({"status": status})

    async def result(self, request: Request) -> JSONResponse:
        """Wait until a background job is done, and respond with its result."""
        return JSONResponse({"result": await self._job(request)})

    async def run(self, request: Request) -> JSONResponse:
        """Run a job and respond with its result."""
        return JSONResponse({"result": await self.pool.run(_seconds(request), if_full="raise")})

    async def health(self, request: Request) -> JSONResponse:
        """Respond with 503 as soon as the pool drains."""
        return JSONResponse({"pool": self.pool.state}, 200 if self.pool.state == "open" else 503)

    def _job(self, request: Request) -> JobHandle[float, str]:
        try:
            return self.jobs[request.path_params["id"]]
        except KeyError:
            raise HTTPException(404, "this process has no such job") from None


def _seconds(request: Request) -> float:
    text = request.query_params.get("seconds", "1")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 60:
        raise HTTPException(400, f"seconds must be a number from 0 to 60, got {text!r:.40}")
    return seconds


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    """Respond to a request that found the pool full or closed: the client can repeat it, here or elsewhere."""
    return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})


async def _timed_out(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 504)


app = Service(drain_timeout=drain_timeout()).create_app()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve on loopback until SIGTERM or Ctrl+C. Raises `SystemExit` if the arguments or the port are not valid."""
    import uvicorn

    parser = Parser(
        prog="asgi_service",
        usage="python -m examples.asgi_service [options]",
        description="Serve background jobs over HTTP with Starlette and uvicorn.",
    )
    parser.add_argument("--port", type=whole(0, 65_535), default=8000, metavar="N", help="the port; 0 for a free one")
    # Requests that wait for jobs end with them. The limit is for clients that do not read their responses.
    most = math.ceil(drain_timeout() + _GRACE)
    uvicorn.run(app, port=parser.parse_args(arguments).port, timeout_graceful_shutdown=most)
    return OK


if __name__ == "__main__":
    with starting("asgi_service"):
        sys.exit(main())
