"""`ThumbnailService`: an aiohttp application that makes thumbnails of photos that are posted to it, in a pool.

Each request is rejected with 503 if the pool is full or too many uploads are in progress. Otherwise the service reads
the body, submits it to the pool, whose threads decode and resize it, and responds. The pool lives as long as the
application. `serving.py` listens and stops.
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

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler
from prometheus_client.aiohttp import make_aiohttp_handler

from asyncpool import JobCancelled, PoolClosed, PoolStats, QueueFull, WorkerPool, offload
from asyncpool.dashboard import dashboard
from examples.image_service.errors import ImageServiceError, NotAnImage
from examples.image_service.images import Encoded, Recipe, make_thumbnail, pixels_to_decode
from examples.web_service.metrics import Metrics
from examples.web_service.pixels import PixelLimit
from examples.web_service.refusals import Refusal
from examples.web_service.uploads import Uploads, continue_later

__all__ = ["GONE", "ThumbnailService", "retry_after"]

GONE = 499
"""The status that is counted, but not sent, for a request whose client has disconnected. nginx uses the same number."""

_log = logging.getLogger("web_service")
_USAGE = """\
POST a photo to /thumbnail and get a JPEG:

    curl --data-binary @photo.jpg 'http://HOST/thumbnail?size=320x240' > thumbnail.jpg
    curl -F image=@photo.jpg http://HOST/thumbnail > thumbnail.jpg

GET /healthz: 200 while photos are accepted, 503 while the service stops. GET /metrics: for Prometheus.
GET /pools/: what the pool does, for people.
"""
_HOW_CONNECTIONS_ARE_HANDLED = {
    "handler_cancellation": True,  # otherwise a handler would not notice that its client has disconnected
    "auto_decompress": False,  # photos are compressed already, and this excludes gzip bombs
    "lingering_time": 2.0,  # seconds to read the rest of a rejected body, so that the client gets the response
    "keepalive_timeout": 75.0,  # seconds; longer than that of a reverse proxy, so that the proxy closes first
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    photo: bytes = field(repr=False)
    recipe: Recipe


@offload
def _measure(job: _Job) -> int:
    return pixels_to_decode(BytesIO(job.photo), job.recipe)


@offload
def _convert(job: _Job) -> Encoded:
    return make_thumbnail(BytesIO(job.photo), job.recipe)


class ThumbnailService:
    """The application `app`, and the `pool` that is started and closed with it.

    Memory is bounded: at most `queue_size + workers` photos of at most `max_bytes` are in the pool, the uploads in
    progress have at most `max_upload_bytes` together, and the photos that are decoded at most `max_pixels_at_once`. The
    README has the memory per megapixel.

    Args:
        workers: How many thumbnails are made at a time, each in a thread.
        queue_size: How many photos can wait for a worker. Further requests get a 503.
        size: The box that thumbnails must fit into, unless the request has another one.
        timeout: Seconds from the end of the upload until the client gets a 504, including the time in the queue.
        upload_timeout: Time limit in seconds for the upload of a photo.
        max_bytes: Reject larger bodies.
        max_pixels: Reject photos that have more pixels. This bounds the memory and the time of each worker.
        max_pixels_at_once: How many pixels are decoded at the same time, by all workers together. None: 12.5 million
            for each worker, or `max_pixels` if that is more.
        max_uploads: How many photos can be uploaded at the same time. Further requests get a 503.
        max_upload_bytes: How many bytes the uploads in progress can have sent, together.

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
        max_pixels_at_once: int | None = None,
        max_uploads: int = 200,
        max_upload_bytes: int = 100 * 1024**2,
    ) -> None:
        self.pool: WorkerPool[_Job, Encoded | ImageServiceError] = WorkerPool(
            self._make, workers=workers, queue_size=queue_size, name="thumbnails"
        )
        self.uploads = Uploads(
            max_bytes=max_bytes, timeout=upload_timeout, max_count=max_uploads, max_total=max_upload_bytes
        )
        if max_pixels_at_once is None:
            max_pixels_at_once = max(max_pixels, workers * 12_500_000)
        self.pixels = PixelLimit(max_pixels_at_once)
        self._recipe = Recipe(size=size, max_pixels=max_pixels)
        self._timeout = timeout
        self._places = queue_size + workers
        self.requests = 0
        """The number of requests received. Each is counted in `answers` or still in progress."""
        self.answers: Counter[int] = Counter()
        """The number of responses by status, counted when completely written. `GONE`: the client had disconnected."""
        self.is_draining = False
        """Whether the service is stopping: `/healthz` reports it, and each response closes its connection."""
        self._busy: set[RequestHandler] = set()
        self._metrics = Metrics(
            self.pool,
            {
                "thumbnail_uploads": ("Uploads in progress.", lambda: self.uploads.in_progress),
                "thumbnail_upload_bytes": ("Bytes of the uploads in progress.", lambda: self.uploads.bytes),
                "thumbnail_pixels": ("Pixels that are being decoded.", lambda: self.pixels.in_use),
            },
        )
        self.app = web.Application(
            client_max_size=max_bytes, middlewares=[self._answer], handler_args=_HOW_CONNECTIONS_ARE_HANDLED
        )
        self.app.cleanup_ctx.append(self._run_pool)
        self.app.router.add_post("/thumbnail", self._thumbnail, expect_handler=continue_later)
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/metrics", make_aiohttp_handler(self._metrics.registry))
        self.app.router.add_get("/", self._usage)
        # It can only be read. To let people act, or to reach it by a name, pass actions, token and allowed_hosts.
        self.app.add_subapp("/pools", dashboard(self.pool, title="Thumbnails"))

    def is_idle(self, connection: RequestHandler) -> bool:
        """Return whether the connection has no request in progress and no pending `Connection: close`."""
        return connection not in self._busy

    async def _run_pool(self, app: web.Application) -> AsyncGenerator[None]:
        await self.pool.start()
        yield
        self.is_draining = True
        await self.pool.close()  # returns immediately if `serving.py` has closed it

    # -- Requests --

    async def _usage(self, request: web.Request) -> web.Response:
        return web.Response(text=_USAGE.replace("HOST", request.host))

    async def _healthz(self, request: web.Request) -> web.Response:
        """Readiness, for load balancers. A full queue still counts as ready, or all instances could be taken out."""
        if self.is_draining or self.pool.state != "open":
            raise Refusal(503, "stopping", "draining")
        return web.Response(text="ok\n")

    async def _thumbnail(self, request: web.Request) -> web.Response:
        recipe = self._recipe_for(request)
        # Check before reading the body: this saves the upload of a photo that would be rejected.
        stats = self.pool.stats
        if stats.queued + stats.running >= self._places:
            raise self._full()
        # An upload takes no place in the pool: a slow client must not keep others out of it.
        photo = await self.uploads.read(request)
        made = await self._made(_Job(photo=photo, recipe=recipe))
        if isinstance(made, ImageServiceError):
            raise Refusal(415 if isinstance(made, NotAnImage) else 422, "photo", str(made))
        return web.Response(body=made.data, content_type="image/jpeg")

    async def _make(self, job: _Job) -> Encoded | ImageServiceError:
        """Make one thumbnail: the handler of the pool. A bad photo is an error of the client, so the job succeeds."""
        try:
            async with self.pixels.of(await _measure(job)):
                return await _convert(job)
        except ImageServiceError as error:
            return error.with_traceback(None)

    async def _made(self, job: _Job) -> Encoded | ImageServiceError:
        """Run the job. It is cancelled if the client disconnects or the time limit is reached.

        Most handlers can simply use `pool.run(job, if_full="raise")`. It waits until a cancelled job has stopped,
        though, and a thread cannot be stopped: the client should not have to wait for that.
        """
        try:
            handle = self.pool.submit_nowait(job)
        except QueueFull:
            raise self._full() from None
        except PoolClosed:
            raise Refusal(503, "stopping", "the service is stopping", retry_after=1) from None
        try:
            async with asyncio.timeout(self._timeout):
                return await handle
        except TimeoutError:  # a JobTimeout of the pool would be one too
            raise Refusal(504, "timeout", f"the thumbnail was not ready within {self._timeout:g} s") from None
        except JobCancelled:
            raise Refusal(503, "stopping", "the service was stopped", retry_after=1) from None
        finally:
            handle.cancel()  # a queued job leaves the queue immediately; a finished job is not affected

    def _recipe_for(self, request: web.Request) -> Recipe:
        asked = request.query.get("size")
        if asked is None:
            return self._recipe
        match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", asked)
        if match is None:
            raise Refusal(400, "request", f"size must be WIDTHxHEIGHT in pixels, such as 320x240, got {asked!r:.40}")
        try:
            return replace(self._recipe, size=(int(match[1]), int(match[2])))
        except ValueError as error:
            raise Refusal(400, "request", str(error)) from None

    def _full(self) -> Refusal:
        sentence = "too many photos are waiting; try again later"
        return Refusal(503, "queue", sentence, retry_after=retry_after(self.pool.stats))

    # -- Responses --

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Wrap each request: turn errors into responses, write the response, and count it.

        aiohttp would write the response after the middleware. This one writes it itself, so it counts only responses
        that were really written.
        """
        self.requests += 1
        self._busy.add(request.protocol)
        status, closes = GONE, False
        try:
            response = await self._respond(request, handler)
            if self.is_draining:
                response.force_close()  # "Connection: close" tells the client that its next request goes elsewhere
                closes = True
            try:
                await response.prepare(request)
                await response.write_eof()
                status = response.status
            except ConnectionError:
                pass  # aiohttp sees the same error and closes the connection
            return response
        finally:
            self.answers[status] += 1
            self._metrics.count_answer(status)
            if not closes:  # otherwise aiohttp closes it, after it has read the rest of the request
                self._busy.discard(request.protocol)

    async def _respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            self._metrics.count_rejection(refusal.reason)
            return web.Response(status=refusal.status, text=refusal.sentence + "\n", headers=refusal.headers)
        except web.HTTPException as error:  # from aiohttp itself: 404, 405
            response = web.Response(status=error.status, text=f"{error.reason}; see GET / for usage\n")
            if isinstance(error, web.HTTPMethodNotAllowed):
                response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        except ConnectionError:  # the client disconnected during the upload
            return web.Response(status=GONE)
        except Exception:
            _log.exception("%s %s failed", request.method, request.path)
            return web.Response(status=500, text="internal error; see the log of the service\n")


def retry_after(stats: PoolStats) -> int:
    """Estimate the time until the current jobs are done, from the speed so far: whole seconds, at least 1."""
    ahead = stats.queued + stats.running
    return max(1, math.ceil(ahead * stats.seconds_running.mean / max(1, stats.workers)))
