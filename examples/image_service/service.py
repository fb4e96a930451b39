"""`ImageService`: downloads photos and writes thumbnails of them, on a `WorkerPool`.

The way of one image: find its file, and be done if that is there and whole; else download, convert, write.
The loop only waits for the network. All that reads files or computes runs in threads, one for each core.
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
from examples.image_service.images import Recipe, make_thumbnail
from examples.image_service.names import stem_of
from examples.image_service.output import OutputFolder, Stamp

__all__ = ["ImageService", "Photo", "Source", "Thumbnail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A photo to download that is not known by its URL alone."""

    url: str
    """Where it is downloaded from, and what its file is named after."""
    origin: str
    """What it is known by on the next run: not the URL, if a server on loopback has another port then."""
    revision: str = ""
    """Another revision of the same origin is another picture: it is made anew, and replaces the old one."""


Photo: TypeAlias = str | Source
"""What the service takes: a URL, or a `Source`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A thumbnail that is on the disk, whole."""

    path: Path
    width: int
    height: int
    bytes_in: int
    """How much was downloaded for it."""
    bytes_out: int
    """How large its file is."""
    skipped: bool
    """Whether it was there already, so that nothing was done."""

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        return self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What the threads get: which thumbnail is wanted, and the photo once it is downloaded."""

    stem: str
    stamp: Stamp
    photo: BytesIO = field(default_factory=BytesIO)


class ImageService:
    """Makes thumbnails of photos that it downloads, many at a time, and never more than `workers`.

        async with ImageService("thumbnails", size=(800, 600), workers=8) as service:
            async for outcome in service.process(urls):
                match outcome:
                    case Succeeded(url, thumbnail):
                        print(url, thumbnail.path)
                    case Failed(url, error):
                        print(url, error)

    Files are written whole or not at all, and only into the folder `out`. What is there already, whole and
    made of the same photo in the same way, is not made again. One service writes to a folder at a time.
    `pool` is the `WorkerPool` it runs on, for its `stats` and for `drain_on_signal`.

    Args:
        out: The folder of the thumbnails. It is made if it is missing.
        size: The box that thumbnails fit into: width and height in pixels.
        quality: Of the JPEGs, from 1 to 100.
        workers: How many images are under way at a time, and how many connections there are.
        max_width: Photos that are wider are refused, in pixels.
        max_pixels: Photos of more pixels are refused.
        max_bytes: Files that are larger are not downloaded. Those under way are in memory.
        timeout: Seconds that a download may take.
        observers: Get the events of the pool.

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
        max_width: int = 4000,
        max_pixels: int = 50_000_000,
        max_bytes: int = 50 * 1024**2,
        timeout: float = 30.0,
        observers: Sequence[asyncpool.Observer] = (),
    ) -> None:
        self._recipe = Recipe(size=size, quality=quality, max_width=max_width, max_pixels=max_pixels)
        self._downloads = Downloads(connections=workers, timeout=timeout, max_bytes=max_bytes)
        self._folder = OutputFolder(Path(out))
        self.pool = asyncpool.WorkerPool(
            self._make,
            workers=workers,
            # No waiting room: a drain finishes what is under way, and nothing that merely waits in a queue.
            queue_size=0,
            observers=observers,
            name="images",
        )
        # Threads for the cores and not for the workers: more would take memory and turns from one another.
        self._threads = ThreadPoolExecutor(os.cpu_count(), "images")
        self._find = asyncpool.offload(self._find_now, executor=self._threads)
        self._convert = asyncpool.offload(self._convert_now, executor=self._threads)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by origin
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Prepare the folder, open the session, start the workers.

        Raises:
            OutputError: The folder cannot be made or written to.
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
        """Finish what is under way; leaving by an exception cancels it. Waits for its threads either way."""
        await self._exit.__aexit__(kind, error, traceback)

    def process(
        self, photos: Iterable[Photo] | AsyncIterable[Photo]
    ) -> asyncpool.Stream[asyncpool.Outcome[Photo, Thumbnail]]:
        """Make thumbnails of all the photos: a stream of outcomes, in the order in which they are done.

        Lazy on both sides: it takes a photo when a worker is free, and works ahead of its reader by no more
        than the number of workers. `Failed.error` is an `ImageServiceError`.
        """
        return self.pool.outcomes(photos)

    async def thumbnail(self, photo: Photo) -> Thumbnail:
        """Make one thumbnail. Waits for a free worker, then for the work; cancelling it cancels the work.

        Raises:
            ImageServiceError: It could not be made; which subclass says why.
            asyncpool.PoolClosed: The service is closing.
        """
        return await self.pool.run(photo)

    async def _make(self, photo: Photo) -> Thumbnail:
        source = photo if isinstance(photo, Source) else Source(url=photo, origin=photo)
        stamp = Stamp.of(source.origin, source.revision, self._recipe.size, self._recipe.quality)
        wanted = _Wanted(stem=stem_of(source.url), stamp=stamp)
        # One at a time of the same photo: asked for twice, the second finds what the first made.
        async with self._turns.setdefault(source.origin, asyncio.Lock()):
            if (there := await self._find(wanted)) is not None:
                return there
            wanted = replace(wanted, photo=await self._downloads.fetch(source.url))
            return await self._convert(wanted)

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
