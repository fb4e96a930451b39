"""`ImageService`: downloads photos and writes thumbnails of them, in a `WorkerPool`.

For each image, the service looks for an existing thumbnail. If there is none, it downloads the photo, converts it and
writes the thumbnail. The event loop only waits for the network; file access and computation run in threads, one per
core.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias
from weakref import WeakValueDictionary

import asyncpool
from examples.image_service.download import Downloads
from examples.image_service.errors import DownloadFailed, ServerBusy
from examples.image_service.images import Recipe, make_thumbnail
from examples.image_service.names import shown_url, stem_of
from examples.image_service.output import OutputFolder, Stamp
from examples.image_service.pacing import Paces

__all__ = ["RETRY", "ImageService", "Photo", "Source", "Thumbnail"]

RETRY = asyncpool.Retry(attempts=8, backoff=0.5, max_backoff=10.0, max_retry_after=60.0, on=())
"""How failed downloads are retried. `on` selects nothing: the service raises `RetryAfter` for what can be retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A photo to download that has an identity other than its URL."""

    url: str = field(repr=False)
    """The URL to download. The file name is derived from it."""
    origin: str = field(repr=False)
    """Identifies the photo across runs, if its URL cannot: a server on loopback has another port in each run."""
    revision: str = ""
    """The version of the photo. If it differs from that of an existing thumbnail, the thumbnail is made again."""
    label: str = ""
    """What logs, reports and the dashboard show of it. Empty: the URL without user, password and query."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", shown_url(self.url))


Photo: TypeAlias = str | Source
"""The input of the service: a URL or a `Source`. Pass a URL with a password or a token in it as a `Source`, because the
dashboard shows strings as they are.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A complete thumbnail on disk."""

    path: Path
    width: int
    height: int
    bytes_in: int
    """The size of the download."""
    bytes_out: int
    """The size of the file."""
    skipped: bool
    """Whether the thumbnail existed already, so there was nothing to do."""

    @property
    def name(self) -> str:
        """The file name without the suffix."""
        return self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """The input of the threads: which thumbnail to make, and the photo once it is downloaded."""

    stem: str
    stamp: Stamp
    photo: BytesIO = field(default_factory=BytesIO)


class ImageService:
    """Downloads photos and makes thumbnails of them, at most `workers` at a time.

        async with ImageService("thumbnails", size=(800, 600), workers=8) as service:
            async for outcome in service.process(urls):
                match outcome:
                    case Succeeded(url, thumbnail):
                        print(url, thumbnail.path)
                    case Failed(url, error):
                        print(url, error)

    Files are written atomically, and only into the folder `out`. A thumbnail that is complete and was made from the
    same photo with the same options is not made again. Only one service may write to a folder at a time. `pool` is
    the `WorkerPool`, for its `stats` and for `drain_on_signal`.

    Args:
        out: The folder for the thumbnails. It is created if it does not exist.
        size: The box that thumbnails must fit into: width and height in pixels.
        quality: The JPEG quality, from 1 to 100.
        workers: How many images are processed at a time; also the maximum number of connections.
        max_width: Reject photos that are wider, in pixels.
        max_pixels: Reject photos that have more pixels.
        max_bytes: Reject larger files. Each file in progress is held in memory.
        timeout: Time limit in seconds for each download.
        rate: The most downloads per second from each host. None: no limit, until a host responds with 429 or 503.
        retry: How often and when downloads are retried that failed temporarily: one like `RETRY`, whose `on` selects
            nothing. A download that timed out is not retried.
        observers: Receive the events of the pool.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        size: tuple[int, int] = (800, 600),
        quality: int = 85,
        workers: int = 8,
        max_width: int = 65_500,
        max_pixels: int = 50_000_000,
        max_bytes: int = 50 * 1024**2,
        timeout: float = 30.0,
        rate: float | None = None,
        retry: asyncpool.Retry = RETRY,
        observers: Sequence[asyncpool.Observer] = (),
    ) -> None:
        self._recipe = Recipe(size=size, quality=quality, max_width=max_width, max_pixels=max_pixels)
        self._downloads = Downloads(connections=workers, timeout=timeout, max_bytes=max_bytes)
        self._folder = OutputFolder(Path(out))
        self._paces = Paces(rate)
        self.pool = asyncpool.WorkerPool(
            self._make,
            workers=workers,
            # No queue: a drain should only finish the images in progress.
            queue_size=0,
            # Photos that wait for their host hold no worker, so those of other hosts overtake them.
            limiter=lambda photo: self._paces.limit_of(_url_of(photo)),
            max_delayed=1000,
            retry=retry,
            observers=observers,
            name="images",
        )
        # One thread per core, not per worker: more threads would use more memory without being faster.
        self._threads = ThreadPoolExecutor(os.cpu_count(), "images")
        self._find = asyncpool.offload(self._find_now)  # not in these threads: photos in progress would delay it
        self._convert = asyncpool.offload(self._convert_now, executor=self._threads)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by origin
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Prepare the folder, open the HTTP session, start the workers.

        Raises:
            OutputError: The folder cannot be created or written to.
        """
        async with AsyncExitStack() as stack:
            stack.callback(self._threads.shutdown, wait=False)
            await asyncpool.offload(self._folder.prepare, self._threads)()
            await stack.enter_async_context(self._downloads)
            await stack.enter_async_context(self.pool)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the images in progress, or cancel them after an exception. Waits for the threads in both cases."""
        await self._exit.__aexit__(kind, error, traceback)

    def process(
        self, photos: Iterable[Photo] | AsyncIterable[Photo]
    ) -> asyncpool.Stream[asyncpool.Outcome[Photo, Thumbnail]]:
        """Make thumbnails of all photos. Returns a stream of outcomes in order of completion.

        The stream is lazy at both ends: it takes a photo when a worker is free, and it is ahead of its reader by at
        most the number of workers. Up to a thousand photos can wait for their host in addition. `Failed.error` is an
        `ImageServiceError`.
        """
        return self.pool.outcomes(photos)

    async def thumbnail(self, photo: Photo) -> Thumbnail:
        """Make one thumbnail. Waits for a free worker and for the thumbnail. Cancelling the call cancels the work.

        Raises:
            ImageServiceError: The thumbnail could not be made; the subclass gives the reason.
            asyncpool.PoolClosed: The service is closing.
        """
        return await self.pool.run(photo)

    async def _make(self, photo: Photo) -> Thumbnail:
        source = photo if isinstance(photo, Source) else Source(url=photo, origin=photo)
        stamp = Stamp.of(source.origin, source.revision, self._recipe.size, self._recipe.quality)
        wanted = _Wanted(stem=stem_of(source.url), stamp=stamp)
        # Process the same photo only once at a time: a second request finds the thumbnail of the first.
        async with self._turns.setdefault(source.origin, asyncio.Lock()):
            if (there := await self._find(wanted)) is not None:
                if (limit := self._paces.limit_of(source.url)) is not None:
                    limit.charge(-1.0)  # nothing was downloaded
                return there
            wanted = replace(wanted, photo=await self._download(source.url))
            return await self._convert(wanted)

    async def _download(self, url: str) -> BytesIO:
        began = asyncio.get_running_loop().time()
        try:
            photo = await self._downloads.fetch(url)
        except DownloadFailed as error:
            seconds = self._paces.slow_down(url, began, error.retry_after) if isinstance(error, ServerBusy) else 0.0
            if not error.is_temporary or self.pool.state != "open":  # a drain does not wait for another attempt
                raise
            raise asyncpool.RetryAfter(seconds) from error
        self._paces.speed_up(url)
        return photo

    def _find_now(self, wanted: _Wanted) -> Thumbnail | None:
        there = self._folder.find(wanted.stem, wanted.stamp)
        if there is None:
            return None
        return Thumbnail(
            path=there.path,
            width=there.width,
            height=there.height,
            bytes_in=0,
            bytes_out=there.bytes,
            skipped=True,
        )

    def _convert_now(self, wanted: _Wanted) -> Thumbnail:
        bytes_in = wanted.photo.getbuffer().nbytes
        made = make_thumbnail(wanted.photo, self._recipe, wanted.stamp.encode())
        return Thumbnail(
            path=self._folder.write(wanted.stem, wanted.stamp, made.data),
            width=made.width,
            height=made.height,
            bytes_in=bytes_in,
            bytes_out=len(made.data),
            skipped=False,
        )


def _url_of(photo: Photo) -> str:
    return photo.url if isinstance(photo, Source) else photo
