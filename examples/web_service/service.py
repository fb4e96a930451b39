"""`ThumbnailService`: an aiohttp application that makes thumbnails of the photos that are posted to it, on a pool.

The way of a request: is there room, else 503; read the body; hand it to the pool, whose threads decode and resize;
answer. The pool lives as long as the application. Where it listens and how it stops is `serving.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from io import BytesIO

import prometheus_client
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler
from prometheus_client.aiohttp import make_aiohttp_handler

from asyncpool import JobCancelled, PoolClosed, PoolStats, QueueFull, WorkerPool, offload
from asyncpool.prometheus import PoolCollector
from examples.image_service.errors import ImageServiceError, NotAnImage
from examples.image_service.images import Encoded, Recipe, make_thumbnail
from examples.web_service.refusals import Refusal
from examples.web_service.uploads import Uploads

__all__ = ["GONE", "ThumbnailService", "retry_after"]

GONE = 499
"""What is noted, and sent to nobody, for a request whose client went away: nginx's number for it."""

_log = logging.getLogger("web_service")
_USAGE = """\
POST a photo to /thumbnail and get a JPEG:

    curl --data-binary @photo.jpg 'http://HOST/thumbnail?size=320x240' > thumbnail.jpg
    curl -F image=@photo.jpg http://HOST/thumbnail > thumbnail.jpg

GET /healthz: 200 while photos are taken, 503 when the service stops. GET /metrics: for Prometheus.
"""
_HOW_CONNECTIONS_ARE_HANDLED = {
    "handler_cancellation": True,  # without, a handler would not notice that its client has gone
    "auto_decompress": False,  # photos are compressed already, and nobody shall send us a gzip bomb
    "lingering_time": 2.0,  # seconds for which the rest of a refused body is read, so that its client sees the answer
    "keepalive_timeout": 75.0,  # seconds; longer than a reverse proxy keeps idle connections, so that it closes first
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    photo: bytes = field(repr=False)
    recipe: Recipe


def _make(job: _Job) -> Encoded | ImageServiceError:
    """Make one thumbnail, in a thread. A photo that cannot be read is the client's failure, and no failure of a job."""
    try:
        return make_thumbnail(BytesIO(job.photo), job.recipe)
    except ImageServiceError as error:
        return error.with_traceback(None)


class ThumbnailService:
    """The application `app`, and the `pool` that is started and closed with it.

    Memory is bounded: there are at most `queue_size + workers` photos in the pool, and as many on their way to it.

    Args:
        workers: How many thumbnails are made at a time, each in a thread.
        queue_size: How many photos may wait for a worker; with one more, the answer is 503.
        size: The box that thumbnails fit into, if the request names no other.
        timeout: Seconds until the client gets a 504: from when its photo was there, the queue included.
        upload_timeout: Seconds that a photo may take to arrive.
        max_bytes: Larger bodies are refused.
        max_pixels: Photos of more pixels are refused: this bounds the memory that a worker takes, and its time.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        *,
        workers: int,
        queue_size: int = 20,
        size: tuple[int, int] = (320, 240),
        timeout: float = 10.0,
        upload_timeout: float = 10.0,
        max_bytes: int = 10 * 1024**2,
        max_pixels: int = 50_000_000,
    ) -> None:
        self.pool: WorkerPool[_Job, Encoded | ImageServiceError] = WorkerPool(
            offload(_make), workers=workers, queue_size=queue_size, name="thumbnails"
        )
        self.uploads = Uploads(max_bytes=max_bytes, timeout=upload_timeout)
        self._recipe = Recipe(size=size, max_width=65_500, max_pixels=max_pixels)
        self._timeout = timeout
        self._places = queue_size + workers
        self.requests = 0
        """How many requests have come. Each is in `answers`, or is under way."""
        self.answers: Counter[int] = Counter()
        """How many were answered, by status: counted when the whole answer was written. `GONE`: there was nobody."""
        self.is_draining = False
        """Whether the service is about to stop: `/healthz` says so, and each answer closes its connection."""
        self._busy: set[RequestHandler] = set()
        registry = prometheus_client.CollectorRegistry()
        registry.register(PoolCollector(self.pool))
        self._answers_by_status = prometheus_client.Counter(
            "http_answers", "Requests answered.", labelnames=["status"], registry=registry
        )
        self.app = web.Application(
            client_max_size=max_bytes, middlewares=[self._answer], handler_args=_HOW_CONNECTIONS_ARE_HANDLED
        )
        self.app.cleanup_ctx.append(self._run_pool)
        self.app.router.add_post("/thumbnail", self._thumbnail)
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/metrics", make_aiohttp_handler(registry))
        self.app.router.add_get("/", self._usage)

    def is_idle(self, connection: RequestHandler) -> bool:
        """Whether no request is under way on it and none was answered by `Connection: close`: it closes by itself."""
        return connection not in self._busy

    async def _run_pool(self, app: web.Application) -> AsyncGenerator[None]:
        await self.pool.start()
        yield
        self.is_draining = True
        await self.pool.close()  # at once, if `serving.py` has closed it

    # -- What is asked --

    async def _usage(self, request: web.Request) -> web.Response:
        return web.Response(text=_USAGE.replace("HOST", request.host))

    async def _healthz(self, request: web.Request) -> web.Response:
        """Ready or not, for load balancers. Not whether the queue is full: then all instances would be taken out."""
        if self.is_draining or self.pool.state != "open":
            raise Refusal(503, "draining")
        return web.Response(text="ok\n")

    async def _thumbnail(self, request: web.Request) -> web.Response:
        recipe = self._recipe_for(request)
        # Before the body is read: there is no use in taking what will be refused, and memory for so many only.
        stats = self.pool.stats
        if max(self.uploads.under_way, stats.queued + stats.running) >= self._places:
            raise self._full()
        made = await self._made(_Job(photo=await self.uploads.read(request), recipe=recipe))
        if isinstance(made, ImageServiceError):
            raise Refusal(415 if isinstance(made, NotAnImage) else 422, str(made))
        return web.Response(body=made.data, content_type="image/jpeg")

    async def _made(self, job: _Job) -> Encoded | ImageServiceError:
        """Run the job. It is cancelled if its client goes away, and if its time is over.

        Not `pool.run(job, if_full="raise")`, which would do for most handlers: it waits until a cancelled job has
        ended, but a thread cannot be stopped, and the client shall not wait for that.
        """
        try:
            handle = self.pool.submit_nowait(job)
        except QueueFull:
            raise self._full() from None
        except PoolClosed:
            raise Refusal(503, "the service is stopping", retry_after=1) from None
        try:
            async with asyncio.timeout(self._timeout):
                return await handle
        except TimeoutError:  # a JobTimeout of the pool would be one too
            raise Refusal(504, f"the thumbnail was not done after {self._timeout:g} s") from None
        except JobCancelled:
            raise Refusal(503, "the service was stopped", retry_after=1) from None
        finally:
            handle.cancel()  # queued, it leaves the queue at once; done, nothing happens

    def _recipe_for(self, request: web.Request) -> Recipe:
        asked = request.query.get("size")
        if asked is None:
            return self._recipe
        match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", asked)
        if match is None:
            raise Refusal(400, f"size must be WIDTHxHEIGHT in pixels, such as 320x240, got {asked!r:.40}")
        try:
            return replace(self._recipe, size=(int(match[1]), int(match[2])))
        except ValueError as error:
            raise Refusal(400, str(error)) from None

    def _full(self) -> Refusal:
        return Refusal(503, "too many photos are waiting: try again", retry_after=retry_after(self.pool.stats))

    # -- How it is answered --

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Around each request: make an answer of what went wrong, write it, and count.

        It writes the answer itself, where aiohttp would do it after: so that "answered" means that it was written.
        """
        self.requests += 1
        self._busy.add(request.protocol)
        status, closes = GONE, False
        try:
            response = await _respond(request, handler)
            if self.is_draining:
                response.force_close()  # "Connection: close" tells the client that its next request goes elsewhere
                closes = True
            try:
                await response.prepare(request)
                await response.write_eof()
                status = response.status
            except ConnectionError:
                pass  # aiohttp meets it too, and lets the connection go
            return response
        finally:
            self.answers[status] += 1
            self._answers_by_status.labels(status).inc()
            if not closes:  # else aiohttp closes it, when it has read what may still come of the request
                self._busy.discard(request.protocol)


async def _respond(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return web.Response(status=refusal.status, text=refusal.sentence + "\n", headers=refusal.headers)
    except web.HTTPException as error:  # of aiohttp itself: 404, 405
        response = web.Response(status=error.status, text=f"{error.reason}: GET / tells what there is\n")
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except ConnectionError:  # the client went away while it sent its photo
        return web.Response(status=GONE)
    except Exception:
        _log.exception("%s %s failed", request.method, request.path)
        return web.Response(status=500, text="something went wrong here, and is in the log\n")


def retry_after(stats: PoolStats) -> int:
    """Whole seconds after which there will be room: until what is there is done, at the speed so far. At least 1."""
    ahead = stats.queued + stats.running
    return max(1, math.ceil(ahead * stats.seconds_running.mean / max(1, stats.workers)))
